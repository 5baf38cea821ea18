//! The machine that answers requests: its parts, and how a round of events goes through them.

use super::checkpoint::Checkpoint;
use super::configurations::Configurations;
use super::doubts::Doubts;
use super::drops::Drops;
use super::flush::Flusher;
use super::growth::Growth;
use super::mend::Mend;
use super::pages::Loads;
use super::read::Reads;
use super::requests::Queues;
use super::scrub::{Scrub, ScrubPlace};
use super::staging::Staging;
use super::sweep::Sweeps;
use super::{Listing, Operation, Operations};
use crate::cache::Cache;
use crate::inflight::{InFlight, Ready};
use crate::layout::{Run, Superblock, WriteRecord};
use crate::log::Log;
use crate::refusals::Refusals;
use crate::space::Space;
use crate::table::{Row, Slot, Table};
use crate::tree::LayerTree;
use crate::{
    Counters, DAMAGES_MAX, Damage, DamagedPart, Effect, Event, LayerHere, Notice, Options,
    ScrubStatus, SpaceStatus, State, Status, Usage, Waiting,
};
use proto::{
    BLOCK_SIZE, DiskDone, Generation, LayerId, LineageId, MemberError, MemberReply, MemberToken,
    Mistake, ObjectKey, Stamp, Time, planted,
};
use std::collections::{BTreeMap, BTreeSet};

/// What is known of a lineage.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lineage {
    /// Requests of lower generations are refused.
    pub(crate) fence: Generation,
    /// Below this stamp every current member has everything.
    pub(crate) settled: Stamp,
    /// The record that moved the fence last; 0: it was there when the disk was opened.
    pub(crate) fence_lsn: u64,
    /// Who has settled every object at or below a stamp.
    pub(crate) mark: Option<Mark>,
    /// Slots of rows for which the mark does not count, and perhaps some whose rows are gone.
    pub(crate) unmarked: BTreeSet<Slot>,
    /// Rows of it in the table.
    pub(crate) objects: u64,
    /// Its layers that were opened or written here.
    pub(crate) tree: LayerTree,
    /// The record that added the last of them.
    pub(crate) opened_lsn: u64,
    /// Its first layer was dropped: without any other, nothing of it needs keeping.
    pub(crate) first_is_gone: bool,
}

/// By whom all objects of a lineage at or below a stamp are settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mark {
    pub(crate) generation: Generation,
    pub(crate) settled: Stamp,
}

impl Lineage {
    /// Who has settled an object last. An incomplete one counts for nothing.
    pub(crate) fn settled_by(&self, row: &Row) -> Generation {
        if row.stamp == Stamp::INCOMPLETE {
            return Generation(0);
        }
        let mark = self.mark.filter(|mark| !row.unmarked && row.stamp <= mark.settled);
        let marked = mark.map_or(Generation(0), |mark| mark.generation);
        row.settled_generation.max(row.stamp.generation).max(marked)
    }

    /// Who has settled it that an object was never written.
    pub(crate) fn settled_nothing(&self) -> Generation {
        self.mark.map_or(Generation(0), |mark| mark.generation)
    }

    /// Everything at or below a stamp is settled: marks from before an adoption count no more.
    pub(crate) fn set_mark(&mut self, lineage: LineageId, mark: Mark, table: &mut Table) {
        self.mark = Some(mark);
        for slot in std::mem::take(&mut self.unmarked) {
            // The slot may be another object's by now.
            if table.row_in(slot).is_some_and(|row| row.lineage == lineage && row.unmarked) {
                table.change(slot).unmarked = false;
            }
        }
    }

    /// An object was adopted: what the mark says counts for it no more.
    pub(crate) fn unmark(&mut self, slot: Slot, table: &mut Table) {
        let row = table.row(slot);
        let above = |mark: Mark| {
            row.stamp <= mark.settled
                && mark.generation > row.settled_generation.max(row.stamp.generation)
        };
        let unmarked = self.mark.is_some_and(above);
        table.change(slot).unmarked = unmarked;
        if unmarked {
            self.unmarked.insert(slot);
        }
    }
}

/// What is known of a layer of a lineage's tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer {
    pub(crate) lineage: LineageId,
    pub(crate) usage: Usage,
}

/// What opening a disk brings up.
pub(crate) struct ServingParts {
    pub(crate) options: Options,
    pub(crate) superblock: Superblock,
    pub(crate) operations: Operations,
    pub(crate) space: Space,
    pub(crate) limit_chunks: Option<u32>,
    pub(crate) table: Table,
    pub(crate) cache: Cache,
    pub(crate) log: Log,
    pub(crate) durable_lsn: u64,
    pub(crate) lineages: BTreeMap<LineageId, Lineage>,
    pub(crate) refusals: Refusals,
    pub(crate) layers: BTreeMap<LayerId, Layer>,
    pub(crate) dropping: Vec<(LineageId, LayerId)>,
    pub(crate) copied: BTreeMap<ObjectKey, u64>,
    pub(crate) left_chunks: Vec<u32>,
    pub(crate) listing: Listing,
    pub(crate) scrub: ScrubPlace,
    pub(crate) lost_blocks: u64,
    pub(crate) damages: Vec<Damage>,
}

/// See the module's description.
pub(crate) struct Serving {
    /// The superblock that rules.
    pub(super) superblock: Superblock,
    pub(super) operations: Operations,
    pub(super) space: Space,
    pub(super) table: Table,
    pub(super) cache: Cache,
    pub(super) log: Log,
    pub(super) in_flight: InFlight,
    pub(super) lineages: BTreeMap<LineageId, Lineage>,
    pub(super) layers: BTreeMap<LayerId, Layer>,
    pub(super) configurations: Configurations,
    pub(super) staging: Staging,
    pub(super) sweeps: Sweeps,
    /// Objects that pages were copied from, and the last record that did, as far as replay would
    /// do it again.
    pub(super) copied: BTreeMap<ObjectKey, u64>,
    pub(super) flusher: Flusher,
    pub(super) reads: Reads,
    pub(super) loads: Loads,
    pub(super) queues: Queues,
    pub(super) checkpoint: Checkpoint,
    pub(super) growth: Growth,
    pub(super) drops: Drops,
    pub(super) scrub: Scrub,
    pub(super) damages: Vec<Damage>,
    /// Blocks that are to be read alone.
    pub(super) doubts: Doubts,
    /// Damaged blocks that are being written anew from a peer's copy.
    pub(super) mends: Vec<Mend>,
    pub(super) damages_dropped: u64,
    pub(super) lost_blocks: u64,
    pub(super) counters: Counters,
    /// Member requests not answered yet.
    pub(super) requests: usize,
    /// Why the disk is out of service.
    pub(super) retired: Option<String>,
    /// The medium was asked to remember that.
    pub(super) failure_told: bool,
    pub(super) closing: bool,
    pub(super) closed: bool,
    /// Memory used again for every write.
    pub(super) record: WriteRecord,
    pub(super) runs: Vec<Run>,
}

impl Serving {
    /// Puts the parts together.
    pub(crate) fn new(now: Time, parts: ServingParts) -> Serving {
        let next_lsn = parts.log.next_lsn();
        let mut serving = Serving {
            checkpoint: Checkpoint::new(parts.listing),
            growth: Growth::new(parts.options.kind, parts.limit_chunks, parts.left_chunks),
            scrub: Scrub::new(now, parts.options.scrub, parts.scrub),
            drops: Drops::new(parts.dropping),
            flusher: Flusher::new(parts.durable_lsn, now),
            in_flight: InFlight::new(next_lsn),
            superblock: parts.superblock,
            operations: parts.operations,
            space: parts.space,
            table: parts.table,
            cache: parts.cache,
            log: parts.log,
            lineages: parts.lineages,
            layers: parts.layers,
            configurations: Configurations::new(parts.refusals),
            staging: Staging::default(),
            sweeps: Sweeps::default(),
            copied: parts.copied,
            reads: Reads::default(),
            loads: Loads::default(),
            queues: Queues::default(),
            damages: parts.damages,
            doubts: Doubts::default(),
            mends: Vec::new(),
            damages_dropped: 0,
            lost_blocks: parts.lost_blocks,
            counters: Counters::default(),
            requests: 0,
            retired: None,
            failure_told: false,
            closing: false,
            closed: false,
            record: WriteRecord::default(),
            runs: Vec::new(),
        };
        serving.mend_opened();
        serving
    }

    /// Takes one event.
    pub(crate) fn handle(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Member { token, request } => self.handle_member(now, token, request, effects),
            Event::Disk(done) => self.handle_disk(now, done, effects),
            Event::DropLayer { lineage, layer } => self.drop_layer(now, lineage, layer, effects),
            Event::Scrub(command) => self.scrub_command(now, command),
            Event::MediumSpace { free_bytes } => self.growth.medium_has(free_bytes),
            Event::Agreed if self.retired.is_some() => effects.push(Effect::AgreedNoted),
            Event::Agreed => self.checkpoint.note_agreed(),
            Event::Close => self.closing = true,
            Event::GivesWay { more } => self.growth.gives_way(now, more),
            Event::Mend { damage, payload } => self.mend(damage, payload, effects),
        }
    }

    /// Ends a round: see [`crate::Store::poll`].
    pub(crate) fn poll(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.retired.is_none() && !self.closed {
            self.release_space(now, effects);
            self.step_sweeps(effects);
            self.step_doubts(effects);
            self.step_mends(effects);
            if !self.closing {
                self.step_drops(now, effects);
                self.step_scrub(now, effects);
            }
            self.step_checkpoint(effects);
            self.step_growth(now, effects);
            self.seal_batch(now, effects);
            self.step_flush(now, effects);
        }
        self.cache.shrink(&mut self.table);
        self.step_close(effects);
    }

    /// When `poll` wants to be called at the latest.
    pub(crate) fn deadline(&self) -> Option<Time> {
        if self.retired.is_some() || self.closed {
            return None;
        }
        let drops = self.drops.deadline().filter(|_| !self.closing);
        let (growth, patience) = (self.growth.deadline(), self.space_wait_ends());
        let sweeps = self.sweeps.deadline();
        [self.flush_deadline(), self.scrub_deadline(), growth, patience, drops, sweeps]
            .into_iter()
            .flatten()
            .min()
    }

    fn handle_disk(&mut self, now: Time, done: DiskDone, effects: &mut Vec<Effect>) {
        let DiskDone { token, result } = done;
        let operation = self.operations.finish(token);
        let read = |result: Result<Option<proto::Buffer>, proto::DiskError>| {
            result.and_then(|buffer| buffer.ok_or(proto::DiskError::Io(0)))
        };
        match operation {
            Operation::Read { read: id, piece } => {
                self.piece_read(id, piece, read(result), effects)
            }
            Operation::LoadPage { slot, page } => {
                self.page_loaded(now, slot, page, read(result), effects);
            }
            Operation::Scrub { piece } => self.scrub_read(now, piece, read(result), effects),
            Operation::Doubt => self.doubt_read(read(result), effects),
            Operation::MendRead { address } => self.mend_read(address, read(result), effects),
            Operation::Grow { first, count, zeroed } => {
                self.grown(now, (first, count, zeroed), result, effects);
            }
            Operation::GiveBack { first, count } => self.given_back(first, count, result.is_ok()),
            write => match result {
                Ok(_) => self.written(now, write, effects),
                Err(_)
                    if matches!(write, Operation::Flush)
                        && planted(Mistake::FailedFlushBelieved) =>
                {
                    self.written(now, write, effects);
                }
                Err(error) => {
                    self.retire(&format!("{} failed: {error}", what(&write)), effects);
                    if matches!(write, Operation::Superblock) {
                        self.tell_failure(effects);
                    }
                }
            },
        }
    }

    /// A write or flush has completed.
    fn written(&mut self, now: Time, operation: Operation, effects: &mut Vec<Effect>) {
        if self.retired.is_some() {
            if matches!(operation, Operation::Superblock) {
                self.tell_failure(effects);
            }
            return;
        }
        let mut ready = Ready::default();
        match operation {
            Operation::Data { lsn } => self.in_flight.data_done(lsn, &mut ready),
            Operation::Staged { write } => self.staged_written(write, &mut ready, effects),
            Operation::Batch { sequence } => {
                if self.log.complete(sequence) {
                    self.in_flight.logged(self.log.complete_lsn(), &mut ready);
                }
            }
            Operation::Flush => self.flushed(now, effects),
            Operation::MapPages { pages } => self.map_pages_written(&pages),
            Operation::CheckpointPages => self.checkpoint.write_done(),
            Operation::Superblock => self.superblock_written(effects),
            Operation::Mend { address } => self.mend_written(address, effects),
            other => unreachable!("{other:?} is no write"),
        }
        self.go_on(now, ready, effects);
    }

    /// Answers and wakes what a completion lets go on.
    pub(super) fn go_on(&mut self, now: Time, ready: Ready, effects: &mut Vec<Effect>) {
        for acknowledgement in ready.acknowledgements {
            self.acknowledge(acknowledgement, effects);
        }
        for read in ready.readers {
            self.retry_read(now, read, effects);
        }
    }

    /// Answers a member request.
    pub(super) fn answer(
        &mut self,
        token: MemberToken,
        result: Result<MemberReply, MemberError>,
        effects: &mut Vec<Effect>,
    ) {
        assert!(self.requests > 0, "a request is answered twice");
        self.requests -= 1;
        effects.push(Effect::Member { token, result });
    }

    /// Remembers a damage and tells of it, once.
    pub(super) fn damaged(&mut self, damage: Damage, effects: &mut Vec<Effect>) {
        if damage.unreadable {
            self.counters.read_errors += 1;
        } else {
            self.counters.checksum_errors += 1;
        }
        // A page of a map that is known in part moves with checkpoints.
        let is_page = matches!(damage.part, DamagedPart::MapPage { .. });
        let is_it = |known: &Damage| *known == damage || (is_page && known.part == damage.part);
        if self.damages.iter().any(is_it) {
            return;
        }
        if self.damages.len() < DAMAGES_MAX {
            self.damages.push(damage);
        } else {
            self.damages_dropped += 1;
        }
        effects.push(Effect::Notice(Notice::Damaged(damage)));
    }

    /// Forgets damages that are gone, because what was damaged is.
    pub(super) fn forget_damages(&mut self, gone: impl Fn(&Damage) -> bool) {
        if !self.damages.is_empty() {
            self.damages.retain(|damage| !gone(damage));
        }
    }

    /// Once everything is done and in a checkpoint, closing ends.
    fn step_close(&mut self, effects: &mut Vec<Effect>) {
        if !self.closing || self.closed || self.operations.count() > 0 {
            return;
        }
        if self.retired.is_none() {
            let idle = self.requests == 0
                && self.in_flight.is_empty()
                && !self.log.has_pending()
                && self.checkpoint.is_idle();
            if !idle || self.log.tail() != self.log.head() || self.cache.dirty() > 0 {
                return;
            }
        }
        self.closed = true;
        effects.push(Effect::Closed);
    }

    /// What is kept of a layer.
    pub(crate) fn usage(&self, layer: LayerId) -> Usage {
        self.layers.get(&layer).map(|layer| layer.usage).unwrap_or_default()
    }

    /// See [`crate::Store::layers`].
    pub(crate) fn layers_here(&self) -> Vec<LayerHere> {
        let known = self.layers.iter().map(|(&layer, known)| (known.lineage, layer));
        let only_fenced = self
            .lineages
            .iter()
            .filter(|(_, lineage)| lineage.tree.is_empty())
            .map(|(&lineage, _)| (lineage, LayerId(lineage.0)));
        known.chain(only_fenced).collect()
    }

    fn used_data_and_maps(&self) -> (u64, u64) {
        self.layers.values().fold((0, 0), |(data, maps), layer| {
            (data + layer.usage.data_blocks, maps + layer.usage.map_blocks)
        })
    }

    /// See [`crate::Store::status`].
    pub(crate) fn status(&self) -> Status {
        let bytes = |blocks: u64| blocks * BLOCK_SIZE as u64;
        let (data, maps) = self.used_data_and_maps();
        Status {
            state: match &self.retired {
                Some(reason) => State::Retired(reason.clone()),
                None if self.closed => State::Closed,
                None if self.closing => State::Closing,
                None => State::Serving,
            },
            identity: self.superblock.identity,
            kind: self.superblock.kind,
            incarnation: self.superblock.incarnation,
            created_unix_s: self.superblock.created_unix_s,
            space: SpaceStatus {
                limit_bytes: self.growth.limit_blocks().map(bytes),
                allocated_bytes: bytes(self.space.allocated()),
                data_bytes: bytes(data),
                map_bytes: bytes(maps),
                checkpoint_bytes: bytes(self.space.checkpoint_blocks()),
                staged_bytes: bytes(self.space.staged_blocks()),
                quarantined_bytes: bytes(
                    self.space.quarantined() + self.space.freed_by_checkpoint(),
                ),
                free_bytes: bytes(self.space.available()),
                reserve_bytes: bytes(self.growth.reserve()),
                full: self.growth.is_full(),
            },
            log_bytes: bytes(self.log.blocks()),
            log_used_bytes: bytes(self.log.used_blocks()),
            objects: self.table.rows(),
            map_pages_cached: self.cache.count() as u64,
            map_pages_dirty: self.cache.dirty() as u64,
            requests: self.requests as u64,
            waiting: self.waiting(),
            layers_dropping: self.drops.count() as u64,
            counters: Counters { rows_visited: self.table.steps(), ..self.counters },
            scrub: self.scrub_status(),
            damages: self.damages.clone(),
            damages_dropped: self.damages_dropped,
            lost_blocks: self.lost_blocks,
            lossless_from: self.superblock.lossless_from,
            partitions_refused: self.configurations.refusals.refusing() as u64,
        }
    }

    fn waiting(&self) -> Option<Waiting> {
        self.queues.waiting()
    }

    fn scrub_status(&self) -> ScrubStatus {
        self.scrub.status(self.scrub_progress_permille())
    }

    /// Asserts what must always hold.
    pub(crate) fn check(&self) {
        self.space.check();
        self.table.check();
        self.cache.check(&self.table);
        self.check_layers();
        let mut layers: BTreeMap<LayerId, Usage> =
            self.layers.keys().map(|&layer| (layer, Usage::default())).collect();
        let mut objects: BTreeMap<LineageId, u64> = BTreeMap::new();
        for (_, row) in self.table.slots() {
            let usage = layers.entry(row.key.layer).or_default();
            usage.objects += 1;
            for page in 0..crate::layout::PAGES_PER_OBJECT {
                usage.data_blocks += u64::from(row.counts[page]);
                let (address, _) = row.page(page);
                usage.map_blocks += u64::from(address != 0);
                assert!(address == 0 || self.space.is_taken(address), "a map page is available");
            }
            *objects.entry(row.lineage).or_default() += 1;
        }
        let known: BTreeMap<LayerId, Usage> =
            self.layers.iter().map(|(&layer, known)| (layer, known.usage)).collect();
        assert_eq!(layers, known, "usage is miscounted");
        for (lineage, known) in &self.lineages {
            let counted = objects.remove(lineage).unwrap_or(0);
            assert_eq!(counted, known.objects, "objects of lineage {lineage} are miscounted");
        }
        assert!(objects.is_empty(), "an object has no lineage");
        self.check_staging();
        for (slot, row) in self.table.slots().filter(|(_, row)| row.unmarked) {
            let known = self.lineages.get(&row.lineage);
            let noted = known.is_some_and(|l| l.mark.is_some() && l.unmarked.contains(&slot));
            assert!(noted, "object {} was adopted after no mark", row.key);
        }
        let (data, maps) = self.used_data_and_maps();
        let taken = self.space.allocated() - self.space.available();
        let owned = data
            + maps
            + self.lost_blocks
            + self.space.checkpoint_blocks()
            + self.space.quarantined()
            + self.space.staged_blocks()
            + self.space.freed_map_pages();
        assert_eq!(taken, owned, "blocks are leaked or owned twice");
    }
}

/// What an operation was, for people.
fn what(operation: &Operation) -> &'static str {
    match operation {
        Operation::Data { .. } | Operation::Staged { .. } | Operation::Mend { .. } => {
            "a write of data"
        }
        Operation::Batch { .. } => "a write of the log",
        Operation::Flush => "a flush",
        Operation::MapPages { .. } | Operation::CheckpointPages => "a write of the checkpoint",
        Operation::Superblock => "a write of the superblock",
        _ => "a write",
    }
}
