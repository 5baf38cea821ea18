//! The checkpoint, taken while requests go on: changed map pages, then the changed pages of
//! table, bitmap and the rest, then the root, then the superblock. With that the log before the
//! place noted at the beginning is free.
//!
//! What a page catches of changes made meanwhile does no harm, because before the flush all
//! records up to the last one caught have completed, and replay of the records after the noted
//! place sets everything to its last state.

use super::root::RootLevel;
use super::{Lineage, Mark, Operation, Serving};
use crate::Effect;
use crate::layout::{
    CheckpointKind, DROPS_PER_PAGE, LAYERS_PER_PAGE, LINEAGES_PER_PAGE, LayerRow, LineageRow,
    MARKS_PER_PAGE, MarkRow, PARTITIONS_PER_PAGE, PageHeader, PageName, PartitionRow, RootEntry,
    Run, StatePage, Superblock, encode_bitmap, encode_drops, encode_layers, encode_lineages,
    encode_marks, encode_partitions, encode_state, encode_table,
};
use crate::log::LogPlace;
use crate::space::Purpose;
use crate::table::Slot;
use proto::{BLOCK_SIZE, Buffer, LayerId, LineageId, Payload, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Pages written with one operation at most.
const PAGES_PER_WRITE: usize = 32;
/// Writes under way at most.
pub(super) const WRITES_MAX: usize = 8;

/// Where a page of the checkpoint is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Listed {
    pub(crate) address: u64,
    pub(crate) twin: u64,
    pub(crate) checksum: u64,
}

/// All pages of a checkpoint, those of its root included.
pub(crate) type Listing = BTreeMap<PageHeader, Listed>;

/// How far the checkpoint is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Idle,
    /// Changed map pages are written.
    Maps,
    /// Changed pages of table, bitmap and the rest are written.
    Tables,
    /// The root is written.
    Root,
    /// Waiting for writes, and for all records caught.
    Complete,
    /// Waiting for the flush of all that.
    Flush,
    /// Waiting for the superblock.
    Superblock,
    /// Waiting for the flush of the superblock.
    Seal,
    /// Waiting for the second copy of the superblock.
    Twin,
    /// No checkpoint: waiting for the superblock that says that this opening was agreed.
    Noting,
    /// Waiting for the flush of that one.
    NotingSeal,
}

/// See the module's description.
pub(super) struct Checkpoint {
    phase: Phase,
    requested: bool,
    /// The superblock is to say that this opening was agreed, and somebody waits for that.
    agreed: bool,
    /// Where replay will start.
    place: LogPlace,
    maps: VecDeque<(u32, Slot, u8)>,
    pages: VecDeque<PageHeader>,
    hidden: Vec<Run>,
    /// All lineages, marks, partitions, layers and layers being dropped, at one moment: they are
    /// packed, so a page taken later than its neighbour might miss one that moved.
    lineages: Vec<LineageRow>,
    layers: Vec<LayerRow>,
    marks: Vec<MarkRow>,
    partitions: Vec<PartitionRow>,
    drops: Vec<(LineageId, LayerId)>,
    /// Pages found damaged: they are written again even if nothing changed.
    again: BTreeSet<PageHeader>,
    pub(super) writes: usize,
    pub(super) listing: Listing,
    pub(super) root: RootLevel,
    /// The last record caught by any page.
    caught_lsn: u64,
    /// What is going to rule.
    next: Option<Superblock>,
}

impl Checkpoint {
    /// `listing` is that of the checkpoint that rules.
    pub(super) fn new(listing: Listing) -> Checkpoint {
        Checkpoint {
            phase: Phase::Idle,
            requested: false,
            agreed: false,
            place: LogPlace { position: 0, block: 0, sequence: 0, lsn: 0 },
            maps: VecDeque::new(),
            pages: VecDeque::new(),
            hidden: Vec::new(),
            lineages: Vec::new(),
            layers: Vec::new(),
            marks: Vec::new(),
            partitions: Vec::new(),
            drops: Vec::new(),
            again: BTreeSet::new(),
            writes: 0,
            listing,
            root: RootLevel::default(),
            caught_lsn: 0,
            next: None,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Takes a checkpoint soon.
    pub(super) fn request(&mut self) {
        self.requested = true;
    }

    /// Takes a checkpoint soon if none is under way after which replay begins behind a record.
    pub(super) fn request_past(&mut self, lsn: u64) {
        if self.phase == Phase::Idle || self.place.lsn <= lsn {
            self.requested = true;
        }
    }

    /// Notes soon that this opening was agreed.
    pub(super) fn note_agreed(&mut self) {
        self.agreed = true;
    }

    /// Whether that is still to be noted; nobody waits for it any more.
    pub(super) fn give_up_agreed(&mut self) -> bool {
        std::mem::take(&mut self.agreed)
    }

    /// Takes a checkpoint soon that writes this page, too.
    pub(super) fn write_again(&mut self, header: PageHeader) {
        // The root is written by every checkpoint.
        if header.kind != CheckpointKind::Root {
            self.again.insert(header);
        }
        self.requested = true;
    }

    /// Pages of table, bitmap and the rest that are still to be written.
    pub(super) fn pages_left(&self) -> usize {
        self.pages.len()
    }

    /// Pages that there are, those of the root included.
    pub(super) fn pages_listed(&self) -> usize {
        self.listing.len()
    }

    /// Where all pages are, or are going to be.
    pub(super) fn listing(&self) -> &Listing {
        &self.listing
    }

    /// A write of pages has completed.
    pub(super) fn write_done(&mut self) {
        self.writes -= 1;
    }
}

impl Serving {
    /// Pages of a checkpoint that are made anew each time.
    pub(super) fn small_pages(&self) -> usize {
        self.lineages.len() / LINEAGES_PER_PAGE
            + self.lineages.len() / MARKS_PER_PAGE
            + self.configurations.refusals.partitions() / PARTITIONS_PER_PAGE
            + self.drops.count() / DROPS_PER_PAGE
            + self.layers.len() / LAYERS_PER_PAGE
            + 6
    }

    /// Begins a checkpoint when one is due and takes the next steps of the one under way.
    pub(super) fn step_checkpoint(&mut self, effects: &mut Vec<Effect>) {
        if self.checkpoint.phase == Phase::Idle && self.checkpoint.agreed {
            return self.write_agreed(effects);
        }
        if self.checkpoint.phase == Phase::Idle {
            let last = self.closing
                && self.requests == 0
                && self.in_flight.is_empty()
                && (self.log.tail() != self.log.head() || self.cache.dirty() > 0);
            let due = self.log.wants_checkpoint() && self.log.used_blocks() > 0
                || self.cache.wants_checkpoint();
            if !(last || due || self.checkpoint.requested) {
                return;
            }
            self.checkpoint.requested = false;
            self.checkpoint.place = self.log.head();
            self.checkpoint.maps = self.cache.dirty_list().into();
            self.checkpoint.phase = Phase::Maps;
        }
        if self.checkpoint.phase == Phase::Maps {
            self.write_maps(effects);
        }
        if self.checkpoint.phase == Phase::Tables {
            self.write_tables(effects);
        }
        if self.checkpoint.phase == Phase::Root {
            self.write_root(effects);
        }
        if self.checkpoint.phase == Phase::Complete
            && self.checkpoint.writes == 0
            && self.in_flight.complete_lsn() >= self.checkpoint.caught_lsn
        {
            self.checkpoint.phase = Phase::Flush;
            self.flusher.want_for_checkpoint();
        }
    }

    /// Writes a superblock that differs from the one that rules in what was agreed alone.
    fn write_agreed(&mut self, effects: &mut Vec<Effect>) {
        let next = Superblock {
            sequence: self.superblock.next_sequence(&self.damages),
            agreed_incarnation: self.superblock.incarnation,
            ..self.superblock.clone()
        };
        let (address, bytes) = (next.address(), next.encode().freeze());
        self.checkpoint.next = Some(next);
        self.checkpoint.phase = Phase::Noting;
        self.operations.write(Operation::Superblock, address, bytes, effects);
    }

    /// How many of the next pages there is space for, if each takes `copies` blocks.
    pub(super) fn pages_with_room(&self, copies: u64) -> usize {
        (self.space.available() / copies).min(PAGES_PER_WRITE as u64) as usize
    }

    /// There is no space for the next page: what may free some begins.
    pub(super) fn want_metadata_space(&mut self) {
        if self.space.quarantined() > 0 {
            self.flush_for_space();
        } else {
            self.demand_growth();
        }
    }

    /// Writes changed map pages, several at a time.
    fn write_maps(&mut self, effects: &mut Vec<Effect>) {
        while self.checkpoint.writes < WRITES_MAX && !self.checkpoint.maps.is_empty() {
            let pages = self.next_maps(self.pages_with_room(1));
            if !pages.is_empty() {
                self.write_map_run(pages, effects);
            } else if !self.checkpoint.maps.is_empty() {
                return self.want_metadata_space();
            }
        }
        if self.checkpoint.maps.is_empty() && self.checkpoint.writes == 0 {
            self.list_pages();
            self.checkpoint.phase = Phase::Tables;
        }
    }

    /// Takes the next map pages to be written, as many as there is room for. One that has become
    /// empty needs none.
    fn next_maps(&mut self, room: usize) -> Vec<(u32, Slot, u8)> {
        let mut pages = Vec::with_capacity(room);
        while let Some((index, slot, page)) = self.checkpoint.maps.pop_front() {
            let row = self.table.row_in(slot);
            if row.is_none_or(|row| row.cached[usize::from(page)] != index)
                || self.cache.peek(index).dirty_since == 0
            {
                continue;
            }
            if self.cache.peek(index).map.is_empty() {
                self.cache.begin_write(index, false);
                self.move_page(slot, page, 0, 0);
            } else if pages.len() < room {
                pages.push((index, slot, page));
            } else {
                self.checkpoint.maps.push_front((index, slot, page));
                break;
            }
        }
        pages
    }

    /// Writes some map pages as they are now.
    fn write_map_run(&mut self, pages: Vec<(u32, Slot, u8)>, effects: &mut Vec<Effect>) {
        let mut runs = Vec::new();
        self.space.allocate(Purpose::Metadata, pages.len() as u32, &mut runs);
        let covers_lsn = self.log.next_lsn() - 1;
        let mut left = &pages[..];
        for run in runs {
            let (these, rest) = left.split_at(run.count as usize);
            left = rest;
            let mut buffer = Buffer::stale(these.len() * BLOCK_SIZE);
            let blocks = buffer.as_mut_slice().chunks_exact_mut(BLOCK_SIZE);
            for ((&(index, slot, page), block), address) in these.iter().zip(blocks).zip(run.iter())
            {
                let row = self.table.row(slot);
                let name = PageName { lineage: row.lineage, key: row.key, page };
                let checksum = self.cache.peek(index).map.encode(&name, covers_lsn, block);
                self.cache.begin_write(index, true);
                self.move_page(slot, page, address, checksum);
            }
            self.counters.metadata_bytes += buffer.len() as u64;
            self.checkpoint.writes += 1;
            let operation = Operation::MapPages { pages: these.to_vec() };
            self.operations.write(operation, run.address, buffer.freeze(), effects);
        }
    }

    /// A map page is at another address now (0: it is not kept); the old one goes.
    fn move_page(&mut self, slot: Slot, page: u8, address: u64, checksum: u64) {
        let row = self.table.change(slot);
        let (old, _) = row.page(usize::from(page));
        row.set_page(usize::from(page), address, checksum);
        let layer = self.layers.get_mut(&row.key.layer).expect("an object's layer is known");
        layer.usage.map_blocks =
            layer.usage.map_blocks + u64::from(address != 0) - u64::from(old != 0);
        if old != 0 {
            self.space.free_after_checkpoint(Run { address: old, count: 1 });
        }
    }

    /// Map pages have been written.
    pub(super) fn map_pages_written(&mut self, pages: &[(u32, Slot, u8)]) {
        self.checkpoint.writes -= 1;
        for &(index, slot, page) in pages {
            // The object may have been dropped since; then nothing of it is cached.
            let row = self.table.row_in(slot);
            if row.is_some_and(|row| row.cached[usize::from(page)] == index) {
                self.cache.end_write(index);
            }
        }
    }

    /// Lists the pages of table, bitmap and the rest that differ from the last checkpoint.
    fn list_pages(&mut self) {
        let page = |kind| move |number| PageHeader { kind, number };
        let (bitmap, hidden) = self.space.take_dirty();
        let lineages = self.lineages.len().div_ceil(LINEAGES_PER_PAGE) as u32;
        let drops = self.drops.count().div_ceil(DROPS_PER_PAGE) as u32;
        self.checkpoint.layers = self.layer_rows();
        let layers = self.checkpoint.layers.len().div_ceil(LAYERS_PER_PAGE) as u32;
        let marked = |(&lineage, known): (&LineageId, &Lineage)| {
            known.mark.map(|Mark { generation, settled }| MarkRow { lineage, generation, settled })
        };
        self.checkpoint.marks = self.lineages.iter().filter_map(marked).collect();
        let marks = self.checkpoint.marks.len().div_ceil(MARKS_PER_PAGE) as u32;
        self.checkpoint.partitions = self.configurations.refusals.rows();
        let partitions = self.checkpoint.partitions.len().div_ceil(PARTITIONS_PER_PAGE) as u32;
        let mut pages: BTreeSet<PageHeader> = BTreeSet::new();
        pages.extend(self.table.take_dirty().into_iter().map(page(CheckpointKind::Table)));
        pages.extend(bitmap.into_iter().map(page(CheckpointKind::Bitmap)));
        pages.extend((0..lineages).map(page(CheckpointKind::Lineages)));
        pages.extend((0..drops).map(page(CheckpointKind::Drops)));
        pages.extend((0..layers).map(page(CheckpointKind::Layers)));
        pages.extend((0..marks).map(page(CheckpointKind::Marks)));
        pages.extend((0..partitions).map(page(CheckpointKind::Partitions)));
        pages.insert(PageHeader { kind: CheckpointKind::State, number: 0 });
        let listing = &self.checkpoint.listing;
        pages.extend(self.checkpoint.again.iter().filter(|&header| listing.contains_key(header)));
        self.checkpoint.pages = pages.into_iter().collect();
        self.checkpoint.hidden = hidden;
        let row = |(&lineage, known): (&LineageId, &Lineage)| LineageRow {
            lineage,
            fence: known.fence,
            settled: known.settled,
        };
        self.checkpoint.lineages = self.lineages.iter().map(row).collect();
        self.checkpoint.drops = self.drops.list();
        self.unlist_from(PageHeader { kind: CheckpointKind::Lineages, number: lineages });
        self.unlist_from(PageHeader { kind: CheckpointKind::Drops, number: drops });
        self.unlist_from(PageHeader { kind: CheckpointKind::Layers, number: layers });
        self.unlist_from(PageHeader { kind: CheckpointKind::Marks, number: marks });
        self.unlist_from(PageHeader { kind: CheckpointKind::Partitions, number: partitions });
    }

    /// The pages of a kind from a number on are not needed any more.
    fn unlist_from(&mut self, first: PageHeader) {
        let last = PageHeader { number: u32::MAX, ..first };
        let listed = self.checkpoint.listing.range(first..=last);
        let gone: Vec<PageHeader> = listed.map(|(&header, _)| header).collect();
        for header in gone {
            self.checkpoint.pages.retain(|&page| page != header);
            self.unlist(header);
        }
    }

    fn unlist(&mut self, header: PageHeader) {
        if let Some(old) = self.checkpoint.listing.remove(&header) {
            for address in [old.address, old.twin] {
                self.space.supersede_checkpoint(Run { address, count: 1 });
            }
        }
    }

    /// Writes listed pages, several at a time, each twice.
    fn write_tables(&mut self, effects: &mut Vec<Effect>) {
        while self.checkpoint.writes < WRITES_MAX && !self.checkpoint.pages.is_empty() {
            let mut buffer = Buffer::stale(PAGES_PER_WRITE * BLOCK_SIZE);
            let written = self.next_tables(self.pages_with_room(2), buffer.as_mut_slice());
            if !written.is_empty() {
                self.write_twice(&written, buffer.freeze(), effects);
            } else if !self.checkpoint.pages.is_empty() {
                return self.want_metadata_space();
            }
        }
        if self.checkpoint.pages.is_empty() {
            self.unlist_from(PageHeader { kind: CheckpointKind::Root, number: 0 });
            self.checkpoint.root = RootLevel::lowest(self.checkpoint.listing.len());
            self.checkpoint.phase = Phase::Root;
        }
    }

    /// Takes the next pages to be written, as many as there is room for, and puts them into a
    /// buffer as they are now. One that is as it was needs none.
    fn next_tables(&mut self, room: usize, buffer: &mut [u8]) -> Vec<(PageHeader, u64)> {
        let mut written = Vec::with_capacity(room);
        while written.len() < room.max(1) {
            let Some(header) = self.checkpoint.pages.pop_front() else { break };
            let start = written.len() * BLOCK_SIZE;
            let checksum = self.encode_page(header, &mut buffer[start..start + BLOCK_SIZE]);
            let listed = self.checkpoint.listing.get(&header);
            let same = listed.is_some_and(|listed| listed.checksum == checksum);
            if same && !self.checkpoint.again.contains(&header) {
                continue;
            }
            if room == 0 {
                self.checkpoint.pages.push_front(header);
                break;
            }
            self.checkpoint.again.remove(&header);
            written.push((header, checksum));
        }
        self.checkpoint.caught_lsn = self.log.next_lsn() - 1;
        written
    }

    /// Writes a page of the checkpoint as it is now; returns its checksum.
    fn encode_page(&self, header: PageHeader, block: &mut [u8]) -> u64 {
        let number = header.number;
        match header.kind {
            CheckpointKind::Table => encode_table(self.table.stored_page(number), number, block),
            CheckpointKind::Bitmap => {
                let chunks = self.space.bitmap_page(number, &self.checkpoint.hidden);
                encode_bitmap(&chunks, number, block)
            }
            CheckpointKind::Lineages => {
                let rows = self.checkpoint.lineages.chunks(LINEAGES_PER_PAGE).nth(number as usize);
                encode_lineages(rows.unwrap_or(&[]), number, block)
            }
            CheckpointKind::Drops => {
                let rows = self.checkpoint.drops.chunks(DROPS_PER_PAGE).nth(number as usize);
                encode_drops(rows.unwrap_or(&[]), number, block)
            }
            CheckpointKind::Layers => {
                let rows = self.checkpoint.layers.chunks(LAYERS_PER_PAGE).nth(number as usize);
                encode_layers(rows.unwrap_or(&[]), number, block)
            }
            CheckpointKind::Marks => {
                let rows = self.checkpoint.marks.chunks(MARKS_PER_PAGE).nth(number as usize);
                encode_marks(rows.unwrap_or(&[]), number, block)
            }
            CheckpointKind::Partitions => {
                let all = &self.checkpoint.partitions;
                let rows = all.chunks(PARTITIONS_PER_PAGE).nth(number as usize);
                encode_partitions(rows.unwrap_or(&[]), number, block)
            }
            CheckpointKind::State => {
                let place = self.scrub.place();
                let state = StatePage {
                    scrub_pass: place.pass,
                    scrub_position: place.position,
                    scrub_errors: place.errors,
                    scrub_passes_done: place.passes_done,
                    lost_blocks: self.lost_blocks,
                };
                encode_state(&state, block)
            }
            CheckpointKind::Root => unreachable!("the root is no page of itself"),
        }
    }

    /// Writes encoded pages to two places and lists them.
    pub(super) fn write_twice(
        &mut self,
        pages: &[(PageHeader, u64)],
        bytes: Payload,
        effects: &mut Vec<Effect>,
    ) {
        let addresses: [Vec<u64>; 2] = std::array::from_fn(|_| {
            let mut runs = Vec::new();
            self.space.allocate_checkpoint(pages.len() as u32, &mut runs);
            self.write_runs(&runs, &bytes, effects);
            runs.iter().flat_map(Run::iter).collect()
        });
        for (at, &(header, checksum)) in pages.iter().enumerate() {
            self.unlist(header);
            let listed = Listed { address: addresses[0][at], twin: addresses[1][at], checksum };
            self.checkpoint.listing.insert(header, listed);
        }
    }

    fn write_runs(&mut self, runs: &[Run], bytes: &Payload, effects: &mut Vec<Effect>) {
        let mut start = 0;
        for run in runs {
            let length = run.count as usize * BLOCK_SIZE;
            let part = bytes.slice(start, length);
            start += length;
            self.checkpoint.writes += 1;
            self.counters.metadata_bytes += length as u64;
            self.operations.write(Operation::CheckpointPages, run.address, part, effects);
        }
    }

    /// The root is written: prepares the superblock that names its top.
    pub(super) fn root_written(&mut self, top: RootEntry) {
        let place = self.checkpoint.place;
        self.checkpoint.next = Some(Superblock {
            sequence: self.superblock.next_sequence(&self.damages),
            replay_position: place.block,
            replay_sequence: place.sequence,
            replay_lsn: place.lsn,
            replay_incarnation: self.superblock.incarnation,
            durable_lsn: 0,
            root: Some(top),
            ..self.superblock.clone()
        });
        self.checkpoint.phase = Phase::Complete;
    }

    /// The flush that the checkpoint asked for has completed.
    pub(super) fn checkpoint_flushed(&mut self, _now: Time, effects: &mut Vec<Effect>) {
        match self.checkpoint.phase {
            Phase::Flush => {
                let mut next = self.checkpoint.next.take().expect("the root was written");
                next.durable_lsn = self.flusher.durable_lsn();
                let (address, bytes) = (next.address(), next.encode().freeze());
                self.checkpoint.next = Some(next);
                self.checkpoint.phase = Phase::Superblock;
                self.operations.write(Operation::Superblock, address, bytes, effects);
            }
            Phase::Seal | Phase::NotingSeal => {
                self.superblock = self.checkpoint.next.take().expect("it was just written");
                if self.checkpoint.phase == Phase::Seal {
                    self.log.trim(self.checkpoint.place);
                    let replay_lsn = self.superblock.replay_lsn;
                    self.copied.retain(|_, lsn| *lsn >= replay_lsn);
                    self.space.checkpoint_done(self.reads.next());
                    self.counters.checkpoints += 1;
                } else if self.checkpoint.give_up_agreed() {
                    effects.push(Effect::AgreedNoted);
                }
                // A rotten superblock must not bring back the checkpoint before: both say the same.
                let address = (self.superblock.address() + 1) % 2;
                let bytes = self.superblock.encode().freeze();
                self.checkpoint.phase = Phase::Twin;
                self.operations.write(Operation::Superblock, address, bytes, effects);
            }
            phase => unreachable!("no flush was asked for in {phase:?}"),
        }
    }

    /// The superblock has been written.
    pub(super) fn superblock_written(&mut self, effects: &mut Vec<Effect>) {
        match self.checkpoint.phase {
            phase @ (Phase::Superblock | Phase::Noting) => {
                let noting = phase == Phase::Noting;
                self.checkpoint.phase = if noting { Phase::NotingSeal } else { Phase::Seal };
                self.flusher.want_for_checkpoint();
            }
            Phase::Twin => {
                self.checkpoint.phase = Phase::Idle;
                self.tell_mended(effects);
            }
            phase => unreachable!("no superblock was being written in {phase:?}"),
        }
    }
}
