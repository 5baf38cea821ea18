//! Damages that are mended: by a checkpoint, because it writes anew what was damaged, and by a
//! peer's copy, where that is what the map says (decision 0014).

use super::layers::Owner;
use super::{Operation, Serving};
use crate::layout::BLOCKS_PER_PAGE;
use crate::table::NOT_CACHED;
use crate::{Damage, DamagedPart, Effect, Notice};
use proto::{BLOCK_SIZE, BlockRange, Buffer, DiskError, Mistake, Payload, block_checksum, planted};

impl Serving {
    /// What was damaged before this checkpoint and belongs to checkpoints was written anew.
    pub(super) fn tell_mended(&mut self, effects: &mut Vec<Effect>) {
        let table = &self.table;
        let is_mended = |damage: &Damage| match damage.part {
            DamagedPart::Superblock | DamagedPart::Log | DamagedPart::Checkpoint => true,
            DamagedPart::MapPage { lineage, key, page } => {
                table.find(lineage, key).is_none_or(|slot| {
                    let row = table.row(slot);
                    let index = row.cached[usize::from(page)];
                    // What the log said of a page that was lost is written; the rest is not known.
                    // One that left the cache is looked at when it is read again.
                    let is_whole = index != NOT_CACHED && !self.cache.peek(index).map.has_lost();
                    is_whole && row.page(usize::from(page)).0 != damage.address
                })
            }
            DamagedPart::Data { .. } => false,
        };
        let mended: Vec<Damage> = self.damages.iter().copied().filter(is_mended).collect();
        self.damages.retain(|damage| !mended.contains(damage));
        effects.extend(mended.into_iter().map(|damage| Effect::Notice(Notice::Mended(damage))));
    }

    /// Damages met while the disk was opened: what a checkpoint can mend, the first one does.
    pub(super) fn mend_opened(&mut self) {
        for damage in &self.damages {
            match damage.part {
                DamagedPart::Superblock => self.checkpoint.request(),
                DamagedPart::Checkpoint => {
                    self.checkpoint.request();
                    let listed = self.checkpoint.listing().iter().find(|(_, listed)| {
                        [listed.address, listed.twin].contains(&damage.address)
                    });
                    if let Some((&header, _)) = listed {
                        self.checkpoint.write_again(header);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Blocks that are written anew from a peer's copy at once, at most.
const MENDS_MAX: usize = 4;

/// A block of data that is written anew where it is, because what it must be is known: its map has
/// the checksum. So neither the map nor the log nor any stamp changes, and whatever borrows the
/// block has it too.
#[derive(Debug)]
pub(super) struct Mend {
    damage: Damage,
    payload: Payload,
    /// Keeps the block from being used again while it is written and read.
    hold: Option<u64>,
    is_written: bool,
}

/// What a mend comes to next.
enum Step {
    /// The page of the map is on its way.
    Wait,
    /// The block is what it should be.
    Write,
    /// Nobody misses it any more, or the content is not what it should be.
    Drop,
}

impl Serving {
    /// Content for a damaged block has come.
    pub(super) fn mend(&mut self, damage: Damage, payload: Payload, effects: &mut Vec<Effect>) {
        let is_taken = self.mends.len() < MENDS_MAX
            && self.retired.is_none()
            && !self.closing
            && payload.len() == BLOCK_SIZE
            && !self.mends.iter().any(|mend| mend.damage.address == damage.address);
        if is_taken {
            self.mends.push(Mend { damage, payload, hold: None, is_written: false });
        } else {
            effects.push(Effect::MendEnded { damage });
        }
    }

    /// Goes on with what waits for its page of the map.
    pub(super) fn step_mends(&mut self, effects: &mut Vec<Effect>) {
        for at in (0..self.mends.len()).rev() {
            if self.mends[at].hold.is_some() {
                continue;
            }
            let step = if self.closing { Step::Drop } else { self.next_of_mend(at, effects) };
            match step {
                Step::Wait => {}
                Step::Write if planted(Mistake::DamageLeft) => {
                    let damage = self.mends.remove(at).damage;
                    self.forget_damages(|known| known == &damage);
                    effects.push(Effect::Notice(Notice::Mended(damage)));
                    effects.push(Effect::MendEnded { damage });
                }
                Step::Write => {
                    let hold = self.reads.hold();
                    let mend = &mut self.mends[at];
                    mend.hold = Some(hold);
                    let (address, payload) = (mend.damage.address, mend.payload.clone());
                    let operation = Operation::Mend { address };
                    self.operations.write(operation, address, payload, effects);
                }
                Step::Drop => {
                    let damage = self.mends.remove(at).damage;
                    self.forget_if_unnamed(&damage);
                    effects.push(Effect::MendEnded { damage });
                }
            }
        }
    }

    /// Looks at the block's entry in its map, which may have changed since the damage was met.
    fn next_of_mend(&mut self, at: usize, effects: &mut Vec<Effect>) -> Step {
        let Mend { damage, payload, .. } = &self.mends[at];
        let damage = *damage;
        let DamagedPart::Data { lineage, key, block } = damage.part else { return Step::Drop };
        let sum = block_checksum(lineage, key, block, payload.as_slice());
        let address = damage.address;
        let Some(slot) = self.table.find(lineage, key) else { return Step::Drop };
        let page = (block / BLOCKS_PER_PAGE) as usize;
        if !self.load_page(slot, page, None, effects) {
            return Step::Wait;
        }
        let index = self.table.row(slot).cached[page];
        if index == NOT_CACHED {
            return Step::Drop;
        }
        let entry = self.cache.peek(index).map.entry(block % BLOCKS_PER_PAGE);
        // Borrowed or not: it is the same block, and below it is mended too.
        let is_it = entry.is_data_at(address, sum);
        if is_it && !entry.owner {
            match self.owner_below(slot, page, block % BLOCKS_PER_PAGE, address) {
                Owner::Layer => {}
                Owner::NotLoaded(lower) => {
                    return match self.load_page(lower, page, None, effects) {
                        true => Step::Drop,
                        false => Step::Wait,
                    };
                }
                // It may be used again already.
                Owner::Damaged | Owner::Unknown => return Step::Drop,
            }
        }
        // What is on its way there is not to be mixed with this.
        let range = BlockRange::new(block, 1).expect("a block of an object");
        let is_written = self.in_flight.writing((lineage, key.index), &range).is_some();
        match (is_it, is_written) {
            (true, false) => Step::Write,
            (true, true) => Step::Wait,
            (false, _) => Step::Drop,
        }
    }

    /// The damage of a block that its map does not name there any more is none.
    fn forget_if_unnamed(&mut self, damage: &Damage) {
        let DamagedPart::Data { lineage, key, block } = damage.part else { return };
        if !self.names(lineage, key, block, damage.address) {
            self.forget_damages(|known| known == damage);
        }
    }

    /// The block was written anew: it is read again, to see whether the medium keeps it.
    pub(super) fn mend_written(&mut self, address: u64, effects: &mut Vec<Effect>) {
        if let Some(mend) = self.mends.iter_mut().find(|mend| mend.damage.address == address) {
            mend.is_written = true;
            self.operations.read(Operation::MendRead { address }, address, 1, effects);
        }
    }

    /// The block was read again.
    pub(super) fn mend_read(
        &mut self,
        address: u64,
        result: Result<Buffer, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        let of = |mend: &Mend| mend.is_written && mend.damage.address == address;
        let Some(at) = self.mends.iter().position(of) else { return };
        let Mend { damage, payload, hold, .. } = self.mends.remove(at);
        hold.into_iter().for_each(|hold| self.reads.release(hold));
        let is_good = result.is_ok_and(|found| found.as_slice() == payload.as_slice());
        if is_good {
            // One address is one block, whichever layers show it, and however it was met.
            let is_data = |known: &Damage| matches!(known.part, DamagedPart::Data { .. });
            self.forget_damages(|known| is_data(known) && known.address == address);
            effects.push(Effect::Notice(Notice::Mended(damage)));
        } else {
            effects.push(Effect::Notice(Notice::Relapsed(damage)));
        }
        effects.push(Effect::MendEnded { damage });
    }

    /// The damages that are known and not mended, oldest first.
    pub(crate) fn damages(&self) -> &[Damage] {
        &self.damages
    }
}
