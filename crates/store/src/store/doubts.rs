//! Blocks that could not be read together with others: each is read alone, so that it is known
//! which one the medium has lost.

use super::{Operation, Serving};
use crate::layout::BLOCKS_PER_PAGE;
use crate::table::NOT_CACHED;
use crate::{DAMAGES_MAX, Damage, DamagedPart, Effect};
use proto::{Buffer, DiskError, LineageId, ObjectKey, block_checksum};
use std::collections::BTreeMap;

/// A block that may be readable or not.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    lineage: LineageId,
    key: ObjectKey,
    block: u32,
    checksum: u64,
    /// Whether the scrub met it.
    by_scrub: bool,
}

/// The doubts there are.
#[derive(Default)]
pub(super) struct Doubts {
    /// By address.
    waiting: BTreeMap<u64, Doubt>,
    /// What is being read, and what keeps it from being used again.
    reading: Option<(u64, Doubt, u64)>,
}

impl Doubts {
    /// Whether the scrub does not know yet what it has met.
    pub(super) fn is_of_scrub(&self) -> bool {
        let reading = self.reading.iter().map(|(_, doubt, _)| doubt);
        reading.chain(self.waiting.values()).any(|doubt| doubt.by_scrub)
    }
}

/// What a doubt comes to next.
enum Step {
    /// The page of the map is on its way.
    Wait,
    Read,
    /// Nobody misses the block any more.
    Drop,
}

impl Serving {
    /// The medium could not read blocks that lie one after another.
    pub(super) fn doubt(
        &mut self,
        (lineage, key): (LineageId, ObjectKey),
        first: u32,
        address: u64,
        checksums: &[u64],
        by_scrub: bool,
        effects: &mut Vec<Effect>,
    ) {
        let is_full = self.doubts.waiting.len() + checksums.len() > DAMAGES_MAX;
        if checksums.len() == 1 || is_full {
            let part = DamagedPart::Data { lineage, key, block: first };
            return self.tell_doubt(Damage { part, address, unreadable: true }, by_scrub, effects);
        }
        for ((block, address), &checksum) in (first..).zip(address..).zip(checksums) {
            self.doubts.waiting.insert(address, Doubt { lineage, key, block, checksum, by_scrub });
        }
    }

    /// Reads the next block alone.
    pub(super) fn step_doubts(&mut self, effects: &mut Vec<Effect>) {
        if self.closing {
            self.doubts.waiting.clear();
        }
        while self.doubts.reading.is_none()
            && let Some((&address, &doubt)) = self.doubts.waiting.first_key_value()
        {
            let step = self.next_of_doubt(address, &doubt, effects);
            if matches!(step, Step::Wait) {
                return;
            }
            self.doubts.waiting.pop_first();
            if matches!(step, Step::Read) {
                let hold = self.reads.hold();
                self.doubts.reading = Some((address, doubt, hold));
                self.operations.read(Operation::Doubt, address, 1, effects);
            }
        }
    }

    /// Looks at the block's entry in its map, which may have changed meanwhile.
    fn next_of_doubt(&mut self, address: u64, doubt: &Doubt, effects: &mut Vec<Effect>) -> Step {
        let Some(slot) = self.table.find(doubt.lineage, doubt.key) else { return Step::Drop };
        let page = (doubt.block / BLOCKS_PER_PAGE) as usize;
        if !self.load_page(slot, page, None, effects) {
            return Step::Wait;
        }
        let index = self.table.row(slot).cached[page];
        if index == NOT_CACHED {
            return Step::Drop;
        }
        let entry = self.cache.peek(index).map.entry(doubt.block % BLOCKS_PER_PAGE);
        match entry.is_data_at(address, doubt.checksum) {
            true => Step::Read,
            false => Step::Drop,
        }
    }

    /// A block was read alone, or not.
    pub(super) fn doubt_read(
        &mut self,
        result: Result<Buffer, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        let reading = self.doubts.reading.take();
        let (address, doubt, hold) = reading.expect("a block that was read was in doubt");
        self.reads.release(hold);
        let Doubt { lineage, key, block, checksum, by_scrub } = doubt;
        let unreadable = result.is_err();
        let is_good = result
            .is_ok_and(|found| block_checksum(lineage, key, block, found.as_slice()) == checksum);
        // It may have been overwritten meanwhile; then nobody misses it.
        if !is_good && self.names(lineage, key, block, address) {
            let part = DamagedPart::Data { lineage, key, block };
            self.tell_doubt(Damage { part, address, unreadable }, by_scrub, effects);
        }
    }

    fn tell_doubt(&mut self, damage: Damage, by_scrub: bool, effects: &mut Vec<Effect>) {
        match by_scrub {
            true => self.scrub_found(damage, effects),
            false => self.damaged(damage, effects),
        }
    }
}
