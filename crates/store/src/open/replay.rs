//! What the log does to the checkpoint: the state that replay builds up, record by record.

use crate::layout::{
    BLOCKS_PER_PAGE, Content, Entry, Kind, MapPage, MergeRecord, MergedPage, PAGES_PER_OBJECT,
    Record, Run, Superblock, WriteRecord,
};
use crate::log::{LiveBatch, LogPlace};
use crate::refusals::Refusals;
use crate::space::{CHUNK_BLOCKS, ChunkState, Space};
use crate::store::{Lineage, Listing, Mark, ScrubPlace};
use crate::table::{History, Row, Slot, Table};
use crate::{MediumKind, OpenError, Options};
use proto::{BLOCK_SIZE, LayerId, LineageId, ObjectKey, Stamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the log says of one block.
#[derive(Clone, Copy, Debug)]
pub(super) enum Patched {
    /// Its entry.
    Entry(Entry),
    /// What the page shows there belongs to the page.
    Owned,
}

/// What the log says of one map page: the last word on each block it names.
#[derive(Default, Debug)]
pub(super) struct Patch(BTreeMap<u8, Patched>);

impl Patch {
    /// Whether it says everything about the page.
    pub(super) fn is_whole(&self) -> bool {
        let entries = self.0.values().filter(|patched| matches!(patched, Patched::Entry(_)));
        entries.count() == BLOCKS_PER_PAGE as usize
    }

    /// Puts it on the page.
    pub(super) fn apply(&self, map: &mut MapPage) {
        for (&at, patched) in &self.0 {
            let entry = match *patched {
                Patched::Entry(entry) => entry,
                Patched::Owned => {
                    let entry = map.entry(u32::from(at));
                    Entry { owner: entry.kind == Kind::Data, ..entry }
                }
            };
            map.replace(u32::from(at), entry);
        }
    }
}

/// See the module's description.
pub(crate) struct Replay {
    pub(crate) superblock: Superblock,
    pub(crate) space: Space,
    pub(crate) table: Table,
    pub(crate) listing: Listing,
    pub(crate) lineages: BTreeMap<LineageId, Lineage>,
    pub(crate) refusals: Refusals,
    pub(super) dropping: BTreeMap<LayerId, LineageId>,
    pub(super) scrub: ScrubPlace,
    /// Blocks that the checkpoint knows to have no owner any more.
    pub(crate) lost_blocks: u64,
    pub(super) patches: BTreeMap<(Slot, u8), Patch>,
    /// Pages that the log copied, and the rows they were copied from.
    pub(super) copies: BTreeMap<(Slot, u8), Slot>,
    /// Objects that pages were copied from, and the last record that did.
    pub(super) copied: BTreeMap<ObjectKey, u64>,
    /// Records of objects that were perhaps not flushed, and what others say of them, in order.
    pub(super) held: VecDeque<(u64, Record)>,
    /// All records up to here are durable, with their data, as far as is known.
    pub(super) durable_lsn: u64,
    /// Chunks that the log says were made holes.
    left_chunks: BTreeSet<u32>,
    pub(crate) records: u64,
    /// Where replay began and where the log goes on.
    pub(super) tail: LogPlace,
    pub(super) head: LogPlace,
    /// Histories whose records from some number on never happened.
    pub(super) cuts: Vec<(History, u64)>,
    pub(super) records_cut: u64,
    /// The batches of the chain.
    pub(super) live: VecDeque<LiveBatch>,
}

impl Replay {
    /// Begins with what the checkpoint says.
    pub(super) fn new(
        superblock: Superblock,
        space: Space,
        table: Table,
        listing: Listing,
    ) -> Replay {
        let tail = LogPlace {
            position: 0,
            block: superblock.replay_position,
            sequence: superblock.replay_sequence,
            lsn: superblock.replay_lsn,
        };
        Replay {
            durable_lsn: superblock.durable_lsn.max(superblock.replay_lsn - 1),
            superblock,
            space,
            table,
            listing,
            lineages: BTreeMap::new(),
            refusals: Refusals::default(),
            dropping: BTreeMap::new(),
            scrub: ScrubPlace::default(),
            lost_blocks: 0,
            patches: BTreeMap::new(),
            copies: BTreeMap::new(),
            copied: BTreeMap::new(),
            held: VecDeque::new(),
            left_chunks: BTreeSet::new(),
            records: 0,
            tail,
            head: tail,
            cuts: Vec::new(),
            records_cut: 0,
            live: VecDeque::new(),
        }
    }

    /// How many chunks there may be; `None`: as many as the medium gives.
    pub(super) fn limit_chunks(&self, options: &Options) -> Option<u32> {
        let block = BLOCK_SIZE as u64;
        let limit = options.limit_bytes.map(|bytes| bytes / block);
        let limit = match self.superblock.kind {
            MediumKind::File => limit,
            MediumKind::Device => Some(limit.unwrap_or(u64::MAX).min(options.medium_bytes / block)),
        };
        limit.map(|limit| {
            let chunks =
                limit.saturating_sub(self.superblock.space_first) / u64::from(CHUNK_BLOCKS);
            chunks.min(u64::from(u32::MAX)) as u32
        })
    }

    /// On a device all chunks are ours.
    pub(super) fn allocate_device(&mut self, options: &Options) {
        if self.superblock.kind == MediumKind::Device {
            let first = self.space.chunk_count();
            let limit = self.limit_chunks(options).unwrap_or(first);
            if limit > first {
                self.space.set_chunks(first, limit - first, ChunkState::Allocated);
            }
        }
    }

    /// Takes the records of one batch, the first of them numbered `first_lsn`, of which all up to
    /// `durable_lsn` are known to be durable.
    pub(super) fn batch(
        &mut self,
        first_lsn: u64,
        durable_lsn: u64,
        records: Vec<Record>,
    ) -> Option<()> {
        for (lsn, record) in (first_lsn..).zip(records) {
            self.records += 1;
            match record {
                Record::Write(_)
                | Record::Adopt(_)
                | Record::Settled { .. }
                | Record::Mark { .. }
                | Record::Settle { .. }
                | Record::DropObject { .. }
                | Record::Merge(_) => {
                    self.held.push_back((lsn, record));
                }
                Record::Cut { lineage, index, from_lsn } => {
                    self.cut((lineage, index), from_lsn);
                }
                other => self.apply_other(other)?,
            }
        }
        self.durable_lsn = self.durable_lsn.max(durable_lsn);
        while self.held.front().is_some_and(|(lsn, _)| *lsn <= self.durable_lsn) {
            let Some((lsn, record)) = self.held.pop_front() else { break };
            self.apply(lsn, record)?;
        }
        Some(())
    }

    /// The records of a history from one on never happened. What was said after it of all objects
    /// of the lineage did not either: nothing of it is durable, and it may be about what is cut.
    pub(super) fn cut(&mut self, history: History, from_lsn: u64) {
        let (lineage, _) = history;
        self.held.retain_mut(|(lsn, record)| {
            if *lsn < from_lsn {
                return true;
            }
            match record {
                Record::Settled { lineage: of, .. } | Record::Mark { lineage: of, .. } => {
                    return *of != lineage;
                }
                Record::Write(write) | Record::Adopt(write) if write.lineage == lineage => {
                    write.settled = Stamp::default();
                }
                _ => {}
            }
            history_of(record) != Some(history)
        });
    }

    /// Notes that a lineage has a layer. One that is known stays where it is: the checkpoint knows
    /// more than the record.
    pub(super) fn add_layer(&mut self, lineage: LineageId, layer: LayerId, parent: LayerId) {
        let tree = &mut self.lineages.entry(lineage).or_default().tree;
        if tree.contains(layer) {
            return;
        }
        if parent.0 == lineage.0 && !tree.contains(parent) {
            tree.insert(parent, LayerId(0));
        }
        tree.insert(layer, parent);
    }

    fn apply_other(&mut self, record: Record) -> Option<()> {
        match record {
            Record::Fence { lineage, generation } => {
                let known = self.lineages.entry(lineage).or_default();
                known.fence = known.fence.max(generation);
            }
            Record::Attempt(attempt) => {
                self.refusals.apply(&attempt);
                for (lineage, generation) in attempt.fences {
                    let known = self.lineages.entry(lineage).or_default();
                    known.fence = known.fence.max(generation);
                }
            }
            Record::Layer { lineage, layer, parent } => self.add_layer(lineage, layer, parent),
            Record::LayerGone { lineage, layer, parent } => {
                let known = self.lineages.entry(lineage).or_default();
                known.tree.remove(layer);
                known.tree.raise(layer, parent);
            }
            Record::DropLayer { lineage, layer } => {
                self.dropping.insert(layer, lineage);
            }
            Record::Chunks { first, count, allocated } => {
                // The log names chunks in the order in which they came to be.
                if first > self.space.chunk_count() {
                    return None;
                }
                let state = if allocated { ChunkState::Allocated } else { ChunkState::Hole };
                self.space.set_chunks(first, count, state);
                for chunk in first..first + count {
                    if allocated {
                        self.left_chunks.remove(&chunk);
                    } else {
                        self.left_chunks.insert(chunk);
                    }
                }
            }
            Record::Scrub { pass, position, errors, passes_done } => {
                self.scrub = ScrubPlace { pass, position, errors, passes_done };
            }
            _ => unreachable!("records of objects are held"),
        }
        Some(())
    }

    /// Lets a record of an object happen. `None`: it names space that does not exist.
    pub(super) fn apply(&mut self, lsn: u64, record: Record) -> Option<()> {
        match record {
            Record::Write(write) => self.apply_write(lsn, &write, false).map(drop),
            Record::Adopt(write) => {
                let slot = self.apply_write(lsn, &write, true)?;
                self.lineages.entry(write.lineage).or_default().unmark(slot, &mut self.table);
                Some(())
            }
            Record::Settled { lineage, settled } => {
                let known = self.lineages.entry(lineage).or_default();
                known.settled = known.settled.max(settled);
                Some(())
            }
            Record::Mark { lineage, generation, settled } => {
                let known = self.lineages.entry(lineage).or_default();
                known.settled = known.settled.max(settled);
                known.set_mark(lineage, Mark { generation, settled }, &mut self.table);
                Some(())
            }
            Record::Settle { lineage, key, generation, .. } => {
                if let Some(slot) = self.table.find(lineage, key)
                    && self.table.row(slot).lsn < lsn
                {
                    let row = self.table.change(slot);
                    row.settled_generation = row.settled_generation.max(generation);
                    row.lsn = lsn;
                }
                Some(())
            }
            Record::DropObject { lineage, key, freed } => {
                self.apply_drop(lsn, lineage, key, &freed)
            }
            Record::Merge(merge) => self.apply_merge(lsn, &merge),
            _ => unreachable!("only records of objects are held"),
        }
    }

    /// Returns the slot of the object.
    fn apply_write(&mut self, lsn: u64, write: &WriteRecord, adopted: bool) -> Option<Slot> {
        let slot = match self.table.find(write.lineage, write.key) {
            Some(slot) => slot,
            None => {
                let mut row = Row::new(write.lineage, write.key);
                row.settled_generation = write.settled_generation.unwrap_or_default();
                self.table.insert(row)
            }
        };
        // A row that has the record says which pages it owns: it may be a later one than that which
        // the record changed.
        let is_news = self.table.row(slot).lsn < lsn;
        if is_news {
            let row = self.table.change(slot);
            row.stamp = write.stamp;
            row.lsn = lsn;
            if adopted {
                row.settled_generation = write.settled_generation?;
            }
        }
        for copy in &write.copies {
            // No object goes while a record to be replayed has copied from it.
            let key = ObjectKey { layer: copy.source, ..write.key };
            let source = self.table.find(write.lineage, key)?;
            self.copies.insert((slot, copy.page), source);
            self.copied.insert(key, lsn);
        }
        let lineage = self.lineages.entry(write.lineage).or_default();
        lineage.settled = lineage.settled.max(write.settled);
        for run in &write.freed {
            self.space.replay_free(*run)?;
        }
        let mut checksums = write.checksums.iter();
        for run in &write.runs {
            if let Content::Data(address) = run.content {
                self.space.replay_used(Run { address, count: u32::from(run.count) })?;
            }
            for at in 0..run.count {
                let block = u32::from(run.first + at);
                let entry = match run.content {
                    Content::Absent => Entry::ABSENT,
                    Content::Zero => Entry::ZERO,
                    Content::Data(address) => {
                        Entry::data(address + u64::from(at), *checksums.next()?)
                    }
                };
                let page = (block / BLOCKS_PER_PAGE) as u8;
                if is_news {
                    self.table.change(slot).own(usize::from(page));
                }
                let patch = &mut self.patches.entry((slot, page)).or_default().0;
                patch.insert((block % BLOCKS_PER_PAGE) as u8, Patched::Entry(entry));
            }
        }
        Some(slot)
    }

    fn apply_merge(&mut self, lsn: u64, merge: &MergeRecord) -> Option<()> {
        let MergeRecord { lineage, index, .. } = *merge;
        for run in &merge.freed {
            self.space.replay_free(*run)?;
        }
        let gone = ObjectKey { layer: merge.source, index };
        let source = self.table.find(lineage, gone);
        let key = ObjectKey { layer: merge.target, index };
        let target = self.table.find(lineage, key);
        // The object goes when no record to be replayed changes it or copies from it.
        if self.copied.contains_key(&gone) || source.is_some_and(|slot| self.is_patched(slot)) {
            return None;
        }
        let slot = match (source, target) {
            (Some(source), None) => {
                self.table.change_layer(source, merge.target);
                source
            }
            (Some(source), Some(target)) => {
                self.table.remove(source);
                target
            }
            (None, Some(target)) => target,
            (None, None) => self.table.insert(Row::new(lineage, key)),
        };
        if self.table.row(slot).lsn < lsn {
            let row = self.table.change(slot);
            row.lsn = lsn;
            if let Some((stamp, settled_generation)) = merge.new_row {
                (row.stamp, row.settled_generation) = (stamp, settled_generation);
            }
            for (page, merged) in merge.pages.iter().enumerate() {
                if let MergedPage::Moved { address, checksum, data } = *merged {
                    row.own(page);
                    row.set_page(page, address, checksum);
                    row.counts[page] = data;
                }
            }
        }
        for run in &merge.owned {
            for block in u32::from(run.first)..u32::from(run.first + run.count) {
                let page = (block / BLOCKS_PER_PAGE) as u8;
                let patch = &mut self.patches.entry((slot, page)).or_default().0;
                patch.entry((block % BLOCKS_PER_PAGE) as u8).or_insert(Patched::Owned);
            }
        }
        Some(())
    }

    fn is_patched(&self, slot: Slot) -> bool {
        self.patches.range((slot, 0)..=(slot, u8::MAX)).next().is_some()
    }

    fn apply_drop(
        &mut self,
        lsn: u64,
        lineage: LineageId,
        key: ObjectKey,
        freed: &[Run],
    ) -> Option<()> {
        // It goes when no record to be replayed copies from it.
        if self.copied.contains_key(&key) {
            return None;
        }
        for run in freed {
            self.space.replay_free(*run)?;
        }
        let Some(slot) = self.table.find(lineage, key) else { return Some(()) };
        for page in 0..PAGES_PER_OBJECT {
            self.patches.remove(&(slot, page as u8));
            self.copies.remove(&(slot, page as u8));
        }
        if self.table.row(slot).lsn > lsn {
            // It is there again, after a layer's object was taken back.
            self.table.change(slot).unmarked = false;
            return Some(());
        }
        // The checkpoint that was under way when the record was written may have moved the pages
        // that the record names; in this one they are where the row says.
        let row = self.table.remove(slot);
        for page in 0..PAGES_PER_OBJECT {
            let (address, _) = row.page(page);
            if address != 0 {
                self.space.replay_free(Run { address, count: 1 })?;
            }
        }
        Some(())
    }

    /// Gives the pages of the maps and of the checkpoint their blocks, once all records have
    /// happened. A checkpoint takes blocks without a record, also ones that were freed by a record
    /// after its beginning, and replay of that record has just freed them again.
    pub(super) fn own_pages(&mut self) -> Result<(), OpenError> {
        let address = self.superblock.root.map_or(0, |top| top.address);
        let damaged = OpenError::TableDamaged { address };
        for (_, row) in self.table.slots() {
            for page in 0..PAGES_PER_OBJECT {
                let (address, _) = row.page(page);
                if address != 0 {
                    let used = self.space.replay_used(Run { address, count: 1 });
                    used.ok_or_else(|| damaged.clone())?;
                }
            }
        }
        let listed = self.listing.values().flat_map(|listed| [listed.address, listed.twin]);
        for address in listed {
            self.space.checkpoint_owns(Run { address, count: 1 }).ok_or_else(|| damaged.clone())?;
        }
        Ok(())
    }

    /// Takes back chunks that a power cut took from the end of the medium together with the
    /// record's durability; refuses a medium that lacks anything in use.
    pub(super) fn vet_length(&mut self, options: &Options) -> Result<(), OpenError> {
        let block = BLOCK_SIZE as u64;
        let end_of = |space: &Space, chunk: u32| space.address_of(chunk + 1) * block;
        for chunk in (0..self.space.chunk_count()).rev() {
            let needed = end_of(&self.space, chunk);
            if needed <= options.medium_bytes {
                break;
            }
            if self.space.chunk_state(chunk) != ChunkState::Allocated {
                continue;
            }
            if !self.space.is_chunk_empty(chunk) {
                return Err(OpenError::Truncated { found: options.medium_bytes, needed });
            }
            self.space.set_chunks(chunk, 1, ChunkState::Hole);
        }
        Ok(())
    }

    /// Chunks that were made holes and perhaps not given back. They are leaving again.
    pub(super) fn take_left_chunks(&mut self) -> Vec<u32> {
        let left = std::mem::take(&mut self.left_chunks);
        let holes = left.into_iter().filter(|&c| self.space.chunk_state(c) == ChunkState::Hole);
        let holes: Vec<u32> = holes.collect();
        for &chunk in &holes {
            self.space.set_chunks(chunk, 1, ChunkState::Leaving);
        }
        holes
    }
}

/// Whose object a held record changes.
pub(super) fn history_of(record: &Record) -> Option<History> {
    match record {
        Record::Write(write) | Record::Adopt(write) => Some((write.lineage, write.key.index)),
        Record::Settle { lineage, key, .. } | Record::DropObject { lineage, key, .. } => {
            Some((*lineage, key.index))
        }
        Record::Merge(merge) => Some((merge.lineage, merge.index)),
        _ => None,
    }
}
