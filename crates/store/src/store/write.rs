//! Changing blocks of an object: what a write needs before it can be applied, and applying it.
//! Once applied it is in memory, its data and its record are on their way at the same time, and
//! nothing can refuse it any more.

use super::growth::{Admission, Class};
use super::pages::Waiter;
use super::requests::{Outcome, Settle};
use super::{Operation, Serving};
use crate::inflight::Acknowledgement;
use crate::layout::{
    BLOCKS_PER_PAGE, Content, Entry, Kind, MapPage, MapRun, PAGES_PER_OBJECT, PageCopy, Record,
    Run, push_block,
};
use crate::space::Purpose;
use crate::table::{NOT_CACHED, Row, Slot};
use crate::{DamagedPart, Effect, Waiting};
use proto::{
    BLOCK_SIZE, BlockRange, Change, Generation, LayerId, LineageId, MemberError, MemberToken,
    Mistake, ObjectKey, Payload, Stamp, Time, Write, block_checksum, is_zero, planted,
};

/// What a change needs.
#[derive(Default, Debug)]
struct Needs {
    /// Blocks of space.
    data: u32,
    /// Of these, blocks that replace one the object owns.
    replacing: u32,
    /// Map pages that become dirty.
    pages: u32,
    /// Map pages that did not exist.
    new_pages: u32,
}

/// A page of a map that a change touches.
#[derive(Clone, Copy)]
struct Touched {
    page: usize,
    /// The blocks touched.
    first: u32,
    end: u32,
    /// The row whose page is changed or copied. Nobody's: all of it is absent.
    source: Option<Slot>,
    /// Whether that is a layer's below.
    inherited: bool,
}

impl Touched {
    fn is_whole(&self) -> bool {
        self.end - self.first == BLOCKS_PER_PAGE
    }

    /// The page whose entries matter: of one from below that is replaced as a whole none does.
    fn wanted(&self) -> Option<Slot> {
        self.source.filter(|_| !(self.inherited && self.is_whole()))
    }
}

/// The blocks of a change, or what is wrong with it.
pub(super) fn blocks_of(change: &Change) -> Result<BlockRange, MemberError> {
    match change {
        Change::Data { first, payload, .. } => {
            let count = payload.len() / BLOCK_SIZE;
            if payload.is_empty() || !payload.len().is_multiple_of(BLOCK_SIZE) {
                return Err(MemberError::invalid("the payload is not whole blocks"));
            }
            let blocks = u32::try_from(count).ok().and_then(|count| BlockRange::new(*first, count));
            let blocks = blocks.ok_or(MemberError::invalid("the write leaves its object"))?;
            if super::requests::is_too_long(&blocks) {
                return Err(MemberError::invalid("the write is too long"));
            }
            Ok(blocks)
        }
        Change::Zero { blocks } | Change::Absent { blocks } => Ok(*blocks),
    }
}

/// The pages of a map that a range touches, with the part of the range in each.
pub(super) fn pages_of(blocks: &BlockRange) -> impl Iterator<Item = (usize, u32, u32)> + use<> {
    let (first, end) = (blocks.first(), blocks.end());
    (first / BLOCKS_PER_PAGE..=(end - 1) / BLOCKS_PER_PAGE).map(move |page| {
        let start = page * BLOCKS_PER_PAGE;
        (page as usize, first.max(start), end.min(start + BLOCKS_PER_PAGE))
    })
}

/// What a block of a change becomes: its bytes, if it takes space.
fn content_at(change: &Change, block: u32) -> (Kind, Option<&[u8]>) {
    match change {
        Change::Zero { .. } => (Kind::Zero, None),
        Change::Absent { .. } => (Kind::Absent, None),
        Change::Data { first, payload, detect_zeroes } => {
            let start = (block - first) as usize * BLOCK_SIZE;
            let bytes = &payload.as_slice()[start..start + BLOCK_SIZE];
            if *detect_zeroes && is_zero(bytes) {
                (Kind::Zero, None)
            } else {
                (Kind::Data, Some(bytes))
            }
        }
    }
}

impl Serving {
    /// Applies a write, refuses it, or says what it waits for.
    pub(super) fn write(
        &mut self,
        now: Time,
        token: MemberToken,
        write: &Write,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        let blocks = match self.vet_write(write) {
            Ok(blocks) => blocks,
            Err(error) => {
                self.answer(token, Err(error), effects);
                return Outcome::Done;
            }
        };
        let shown = self.shown(write.lineage, write.key);
        let (have, lsn) = shown.map_or((Stamp::default(), 0), |slot| {
            let row = self.table.row(slot);
            (row.stamp, row.lsn)
        });
        let is_again = match planted(Mistake::DuplicateByNumber) {
            false => have == write.stamp,
            true => have.sequence == write.stamp.sequence,
        };
        if is_again {
            // Sent again: it is here, or on its way.
            self.acknowledge_after(lsn, Acknowledgement::Written(token), effects);
            return Outcome::Done;
        }
        if have != write.previous {
            self.answer(token, Err(MemberError::WrongStamp { have }), effects);
            return Outcome::Done;
        }
        if self.table.is_covered(self.tree(write.lineage), write.lineage, write.key) {
            let error = MemberError::invalid("a layer above has the object");
            self.answer(token, Err(error), effects);
            return Outcome::Done;
        }
        if !self.load_for_write(shown, &blocks, write, effects) {
            return Outcome::Page;
        }
        let needs = match self.needs(shown, &blocks, write) {
            Ok(needs) => needs,
            Err(error) => {
                self.answer(token, Err(error), effects);
                return Outcome::Done;
            }
        };
        match self.admit_write(now, &needs, &write.change, effects) {
            Admission::Granted => {}
            Admission::Wait(reason) => return Outcome::Resource(reason),
            Admission::Refused => {
                self.answer(token, Err(MemberError::NoSpace), effects);
                return Outcome::Done;
            }
        }
        self.apply(token, write, &blocks, shown, needs.data, effects);
        Outcome::Done
    }

    /// What is wrong with a write, whatever the disk holds.
    fn vet_write(&self, write: &Write) -> Result<BlockRange, MemberError> {
        if write.stamp.generation == Generation::SEALED {
            return Err(MemberError::invalid("no attachment has this generation"));
        }
        if let Some(error) = self.fenced(write.lineage, write.stamp.generation)
            && !planted(Mistake::GenerationUnchecked)
        {
            return Err(error);
        }
        let refused = self.refused(write.under, write.lineage, write.key.index);
        if let Some(error) = refused.or_else(|| self.foreign(write.lineage, write.key)) {
            return Err(error);
        }
        if self.drops.contains(write.key.layer) {
            return Err(MemberError::invalid("the layer is deleted"));
        }
        if write.stamp <= write.previous {
            return Err(MemberError::invalid("the stamp does not grow"));
        }
        blocks_of(&write.change)
    }

    /// The pages that a change touches, with whose they are now.
    fn touched(
        &mut self,
        shown: Option<Slot>,
        layer: LayerId,
        blocks: &BlockRange,
    ) -> impl Iterator<Item = Touched> + use<> {
        let own = shown.filter(|&slot| self.table.row(slot).key.layer == layer);
        let mut touched = [None; PAGES_PER_OBJECT];
        for (page, first, end) in pages_of(blocks) {
            let source = shown.and_then(|slot| self.source(slot, page));
            let inherited = source.is_some() && source != own;
            touched[page] = Some(Touched { page, first, end, source, inherited });
        }
        touched.into_iter().flatten()
    }

    /// Whether the pages that a write must know are cached. If not, their loads are under way.
    fn load_for_write(
        &mut self,
        shown: Option<Slot>,
        blocks: &BlockRange,
        write: &Write,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let waiter = Some(Waiter::Queue((write.lineage, write.key.index)));
        let mut all = true;
        for touched in self.touched(shown, write.key.layer, blocks) {
            if let Some(source) = touched.wanted() {
                all &= self.load_page(source, touched.page, waiter, effects);
            }
        }
        all
    }

    /// What a write needs. The pages it must know are cached.
    fn needs(
        &mut self,
        shown: Option<Slot>,
        blocks: &BlockRange,
        write: &Write,
    ) -> Result<Needs, MemberError> {
        let mut needs = Needs::default();
        for touched in self.touched(shown, write.key.layer, blocks) {
            let Touched { page, first, end, inherited, .. } = touched;
            let index =
                touched.wanted().map_or(NOT_CACHED, |slot| self.table.row(slot).cached[page]);
            let cached = (index != NOT_CACHED).then(|| self.cache.peek(index));
            if cached.is_some_and(|cached| cached.damaged) && !touched.is_whole() {
                return Err(MemberError::Corrupt { key: write.key, block: first });
            }
            // What is copied needs a page of its own, unless nothing is in it.
            let mut kept = inherited && cached.is_some_and(|cached| !cached.map.is_empty());
            for block in first..end {
                let (kind, _) = content_at(&write.change, block);
                kept |= kind != Kind::Absent;
                if kind == Kind::Data {
                    needs.data += 1;
                    let old = cached.map(|cached| cached.map.entry(block % BLOCKS_PER_PAGE));
                    let owned = old.is_some_and(|old| old.kind == Kind::Data && old.owner);
                    needs.replacing += u32::from(owned && !inherited);
                }
            }
            match cached.filter(|_| !inherited) {
                Some(cached) => needs.pages += u32::from(cached.dirty_since == 0),
                None if kept => {
                    needs.pages += 1;
                    needs.new_pages += 1;
                }
                None => {}
            }
        }
        Ok(needs)
    }

    fn admit_write(
        &mut self,
        now: Time,
        needs: &Needs,
        change: &Change,
        effects: &mut Vec<Effect>,
    ) -> Admission {
        if !self.log.has_room() {
            return Admission::Wait(Waiting::Log);
        }
        if needs.pages > 0 && self.cache.is_full_of_changes(needs.pages as usize) {
            return Admission::Wait(Waiting::MapCache);
        }
        let class = match change {
            Change::Absent { .. } => Class::Metadata,
            _ if needs.data > needs.replacing || needs.new_pages > 0 => Class::Data,
            Change::Data { .. } | Change::Zero { .. } => Class::Overwrite,
        };
        self.admit(now, class, needs.data, needs.pages, effects)
    }

    /// Makes the change: in memory, to the log, and its data to the medium.
    fn apply(
        &mut self,
        token: MemberToken,
        write: &Write,
        blocks: &BlockRange,
        shown: Option<Slot>,
        data_blocks: u32,
        effects: &mut Vec<Effect>,
    ) {
        let lsn = self.log.next_lsn();
        let mut runs = std::mem::take(&mut self.runs);
        runs.clear();
        self.space.allocate(Purpose::Data, data_blocks, &mut runs);
        let mut record = std::mem::take(&mut self.record);
        record.clear();
        record.lineage = write.lineage;
        record.key = write.key;
        record.previous = write.previous;
        record.stamp = write.stamp;
        describe(write.lineage, write.key, &write.change, blocks, &runs, &mut record);
        self.point_logged(write.lineage);
        let lineage = self.lineages.entry(write.lineage).or_default();
        lineage.settled = lineage.settled.max(write.settled);
        record.settled = lineage.settled;
        let own = shown.filter(|&slot| self.table.row(slot).key.layer == write.key.layer);
        let slot =
            own.unwrap_or_else(|| self.new_object(write.lineage, write.key, shown, &mut record));
        let pages =
            pages_of(blocks).map(|(page, first, end)| (page, end - first == BLOCKS_PER_PAGE));
        self.take_pages(slot, pages, lsn, &mut record);
        self.change_map(slot, lsn, &mut record);
        let row = self.table.change(slot);
        row.lsn = lsn;
        row.stamp = write.stamp;
        for run in &record.freed {
            self.space.free_after_record(*run, lsn, self.reads.next());
        }
        let appended = self.log.append_write(&record);
        assert_eq!(appended, lsn, "records are numbered in order");
        let operation = || Operation::Data { lsn };
        let writes = self.write_data(&write.change, &record.runs, operation, effects);
        self.in_flight.push(
            lsn,
            Some((write.lineage, write.key.index)),
            Some(*blocks),
            writes,
            u64::from(data_blocks) * BLOCK_SIZE as u64,
            Some(Acknowledgement::Written(token)),
        );
        self.counters.writes += 1;
        self.counters.write_bytes += u64::from(data_blocks) * BLOCK_SIZE as u64;
        self.record = record;
        self.runs = runs;
        self.heal(write.key, blocks);
        self.seal_full_batch(effects);
    }

    /// Gives an object a row. It goes on with what its layer has shown so far.
    pub(super) fn new_object(
        &mut self,
        lineage: LineageId,
        key: ObjectKey,
        shown: Option<Slot>,
        record: &mut crate::layout::WriteRecord,
    ) -> Slot {
        let layer = key.layer;
        // Only the first layer of a lineage need not be opened.
        self.add_layer(lineage, layer, LayerId(0));
        let mut row = Row::new(lineage, key);
        if let Some(shown) = shown {
            let settled = self.table.row(shown).settled_generation;
            row.settled_generation = settled;
            record.settled_generation = Some(settled);
        }
        self.layers.get_mut(&layer).expect("it was just added").usage.objects += 1;
        self.lineages.entry(lineage).or_default().objects += 1;
        let slot = self.table.insert(row);
        // The row below knows where it takes its pages from: so reads never follow many rows.
        for page in 0..PAGES_PER_OBJECT {
            self.source(slot, page);
        }
        slot
    }

    /// Makes the pages that a change touches, each as a whole or not, the object's own. Where it
    /// replaces a part of a page from below, it begins with a copy.
    pub(super) fn take_pages(
        &mut self,
        slot: Slot,
        pages: impl Iterator<Item = (usize, bool)>,
        lsn: u64,
        record: &mut crate::layout::WriteRecord,
    ) {
        for (page, is_whole) in pages {
            let row = self.table.row(slot);
            if row.owns(page) {
                let index = row.cached[page];
                if index != NOT_CACHED && self.cache.peek(index).damaged {
                    self.give_up_page(slot, page, index);
                }
                continue;
            }
            let source = self.source(slot, page);
            self.table.change(slot).own(page);
            let Some(source) = source.filter(|_| !is_whole) else { continue };
            let (index, key) = (self.table.row(source).cached[page], self.table.row(source).key);
            if index == NOT_CACHED || self.cache.peek(index).map.is_empty() {
                continue;
            }
            let copy = self.cache.read(index).map.borrowed();
            self.cache.insert(&mut self.table, slot, page as u8, copy);
            self.cache.change(self.table.row(slot).cached[page], lsn);
            record.copies.push(PageCopy { page: page as u8, source: key.layer });
            self.copied.insert(key, lsn);
        }
    }

    /// Enters the runs of the record in the object's map, and what they replace in the record.
    pub(super) fn change_map(
        &mut self,
        slot: Slot,
        lsn: u64,
        record: &mut crate::layout::WriteRecord,
    ) {
        let mut checksums = record.checksums.iter().copied();
        for at in 0..record.runs.len() {
            let run = record.runs[at];
            let Some(blocks) = BlockRange::new(u32::from(run.first), u32::from(run.count)) else {
                unreachable!("runs lie inside the object")
            };
            for (page, first, end) in pages_of(&blocks) {
                let Some(index) = self.page_to_change(slot, page, run.content) else {
                    continue;
                };
                let cached = self.cache.change(index, lsn);
                let before = cached.map.data();
                for block in first..end {
                    let entry = match run.content {
                        Content::Absent => Entry::ABSENT,
                        Content::Zero => Entry::ZERO,
                        Content::Data(address) => Entry::data(
                            address + u64::from(block - blocks.first()),
                            checksums.next().expect("one for each data block"),
                        ),
                    };
                    let old = cached.map.replace(block % BLOCKS_PER_PAGE, entry);
                    if old.kind == Kind::Data && old.owner {
                        push_block(&mut record.freed, old.address);
                    }
                }
                let after = cached.map.data();
                self.count_data(slot, page, before, after);
            }
        }
    }

    /// The cached page to change, made if it does not exist and is needed.
    fn page_to_change(&mut self, slot: Slot, page: usize, content: Content) -> Option<u32> {
        if self.table.row(slot).cached[page] == NOT_CACHED {
            if content == Content::Absent {
                return None;
            }
            self.cache.insert(&mut self.table, slot, page as u8, MapPage::new());
        }
        Some(self.table.row(slot).cached[page])
    }

    /// A damaged page is replaced as a whole: what it named belongs to nobody from now on.
    fn give_up_page(&mut self, slot: Slot, page: usize, index: u32) {
        self.cache.remove(&mut self.table, index);
        let row = self.table.change(slot);
        let lost = std::mem::take(&mut row.counts[page]);
        let (lineage, key) = (row.lineage, row.key);
        self.lost_blocks += u64::from(lost);
        if let Some(layer) = self.layers.get_mut(&key.layer) {
            layer.usage.data_blocks -= u64::from(lost);
        }
        let page = page as u8;
        self.forget_damages(|damage| damage.part == DamagedPart::MapPage { lineage, key, page });
        self.cache.insert(&mut self.table, slot, page, MapPage::new());
    }

    /// Keeps the counts of a page and its layer when the page changes.
    fn count_data(&mut self, slot: Slot, page: usize, before: u16, after: u16) {
        let row = self.table.change(slot);
        row.counts[page] = after;
        let layer = self.layers.get_mut(&row.key.layer).expect("an object's layer is known");
        layer.usage.data_blocks = layer.usage.data_blocks + u64::from(after) - u64::from(before);
    }

    /// Sends the data on its way; returns in how many writes.
    pub(super) fn write_data(
        &mut self,
        change: &Change,
        runs: &[MapRun],
        operation: impl Fn() -> Operation,
        effects: &mut Vec<Effect>,
    ) -> u32 {
        let Change::Data { first, payload, .. } = change else { return 0 };
        let mut writes = 0;
        for run in runs {
            let Content::Data(address) = run.content else { continue };
            let start = (u32::from(run.first) - first) as usize * BLOCK_SIZE;
            let part: Payload = payload.slice(start, usize::from(run.count) * BLOCK_SIZE);
            self.operations.write(operation(), address, part, effects);
            writes += 1;
        }
        writes
    }

    /// Damages of blocks that have new content are gone.
    pub(super) fn heal(&mut self, written: ObjectKey, blocks: &BlockRange) {
        self.forget_damages(|damage| match damage.part {
            DamagedPart::Data { key, block, .. } => {
                key == written && (blocks.first()..blocks.end()).contains(&block)
            }
            _ => false,
        });
    }

    /// Marks an object as settled, refuses to, or says what that waits for.
    pub(super) fn settle(
        &mut self,
        token: MemberToken,
        lineage: LineageId,
        settle: &Settle,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        let Settle { key, generation, under, stamp } = *settle;
        let have = self.stamp_of(lineage, key).stamp;
        let sealed = (generation == Generation::SEALED)
            .then_some(MemberError::invalid("no attachment has this generation"));
        let refusal = sealed
            .or_else(|| self.fenced(lineage, generation))
            .or_else(|| {
                self.refused(under, lineage, key.index)
                    .filter(|_| !planted(Mistake::SettleUnderRefused))
            })
            .or_else(|| self.foreign(lineage, key))
            .or_else(|| (have != stamp).then_some(MemberError::WrongStamp { have }));
        if let Some(error) = refusal {
            self.answer(token, Err(error), effects);
            return Outcome::Done;
        }
        // The stamp belongs to the row that the layer shows.
        let Some(slot) = self.shown(lineage, key) else {
            // Never written: there is nothing to settle.
            self.acknowledge_after(0, Acknowledgement::Done(token), effects);
            return Outcome::Done;
        };
        if !self.log.has_room() {
            return Outcome::Resource(Waiting::Log);
        }
        let row = self.table.change(slot);
        let key = row.key;
        row.settled_generation = row.settled_generation.max(generation);
        row.lsn = self.log.next_lsn();
        let lsn = self.log.append(&Record::Settle { lineage, key, generation, stamp });
        let acknowledgement = Some(Acknowledgement::Done(token));
        let history = Some((lineage, key.index));
        self.in_flight.push(lsn, history, None, 0, 0, acknowledgement);
        self.seal_full_batch(effects);
        Outcome::Done
    }
}

/// Fills in the runs and checksums of a record: data blocks take the allocated runs in order.
pub(super) fn describe(
    lineage: LineageId,
    key: ObjectKey,
    change: &Change,
    blocks: &BlockRange,
    allocated: &[Run],
    record: &mut crate::layout::WriteRecord,
) {
    let mut addresses = allocated.iter().flat_map(Run::iter);
    if !matches!(change, Change::Data { .. }) {
        let (kind, _) = content_at(change, blocks.first());
        let content = if kind == Kind::Zero { Content::Zero } else { Content::Absent };
        let (first, count) = (blocks.first() as u16, blocks.count() as u16);
        record.runs.push(MapRun { first, count, content });
        return;
    }
    for block in blocks.iter() {
        let (_, bytes) = content_at(change, block);
        let content = match bytes {
            None => Content::Zero,
            Some(bytes) => {
                record.checksums.push(block_checksum(lineage, key, block, bytes));
                Content::Data(addresses.next().expect("as many blocks as were counted"))
            }
        };
        match record.runs.last_mut() {
            Some(last) if continues(last, content) => last.count += 1,
            _ => record.runs.push(MapRun { first: block as u16, count: 1, content }),
        }
    }
}

/// How many blocks of space a change takes.
pub(super) fn data_blocks(change: &Change, blocks: &BlockRange) -> u32 {
    if !matches!(change, Change::Data { .. }) {
        return 0;
    }
    blocks.iter().filter(|&block| content_at(change, block).0 == Kind::Data).count() as u32
}

/// Whether one block more of `content` belongs to the same run.
fn continues(run: &MapRun, content: Content) -> bool {
    match (run.content, content) {
        (Content::Data(address), Content::Data(next)) => address + u64::from(run.count) == next,
        (run, next) => run == next,
    }
}
