//! Who may have space, and how the medium gives and takes it: growth in steps, holes punched into
//! what is not needed.

use super::{Operation, Serving};
use crate::layout::{Record, root_pages};
use crate::space::{CHUNK_BLOCKS, ChunkState, Space};
use crate::{Effect, MediumKind, Notice, Room, Waiting};
use proto::{BLOCK_SIZE, Buffer, DiskError, DiskRequest, Duration, Time, limits};
use std::collections::VecDeque;

/// Chunks asked of the medium at once: 64 MiB.
const GROWTH_CHUNKS_MAX: u32 = 64;
/// Blocks that may be missing before growth begins ahead of need.
const AHEAD_BLOCKS: u64 = 4096;
/// Blocks beyond the reserve and what growth would fetch again that stay before any are given back.
const SLACK_BLOCKS: u64 = 16_384;
/// Blocks in chunks with nothing in them below which growth begins, so that long writes find them.
/// Scattered blocks are not counted, so such growth has a bound: see [`Growth::wants_whole`].
const WHOLE_BLOCKS: u64 = 8192;
/// Empty chunks that were written before, below which some are fetched and written with zeros:
/// short writes that are flushed one by one go there. The first write to a part of a file that is
/// only allocated makes the next flush a commit of the file system, which takes many times as long.
const USED_CHUNKS: u32 = 16;
/// So many are fetched at once.
const ZEROED_CHUNKS: u32 = 8;
/// Blocks in quarantine that are worth a flush when space is short.
const FLUSH_BLOCKS: u64 = 8192;
/// Chunks are given back when they were not needed for this long: what a checkpoint or a flush sets
/// free is mostly written again at once, and giving it back and fetching it again costs more than
/// keeping it.
const SPARE_FOR: Duration = Duration::from_secs(10);
/// The reserve is this part of the disk, within bounds. The lower one lets the longest overwrite
/// use half of it; the upper one is what metadata and overwrites between two flushes want.
const RESERVE_DIVISOR: u64 = 64;
const RESERVE_BLOCKS_MIN: u64 = 640;
const RESERVE_BLOCKS_MAX: u64 = 16_384;
/// Runs of chunks on their way back to the medium at once while nobody asks for anything. With
/// requests about it is one: guests come first.
const LEAVING_MAX_IDLE: usize = 2;
/// How long a medium that had no space is not asked again.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// How long new data waits from one step of deleting to the next.
const SPACE_WAIT: Duration = Duration::from_millis(limits::STORE_SPACE_WAIT_MS);

const _: () = assert!(RESERVE_BLOCKS_MIN / 2 > limits::MEMBER_REQUEST_BLOCKS_MAX as u64);

/// What space is for, and so how much of it must stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// Blocks that the object did not have: the whole reserve stays.
    Data,
    /// Blocks that replace others: half of the reserve stays.
    Overwrite,
    /// Changes that take map pages alone.
    Metadata,
}

/// Whether a change may have its space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admission {
    Granted,
    Wait(Waiting),
    Refused,
}

/// Chunks that could be given back.
#[derive(Default)]
struct Spare {
    /// Since when there were always some, and how few there were at the least.
    since: Option<(Time, u32)>,
    /// These were not needed for long enough.
    settled: u32,
}

impl Spare {
    /// So many are spare now. Returns how many of them may be given back.
    fn observe(&mut self, now: Time, spare: u32) -> u32 {
        self.settled = self.settled.min(spare);
        if spare == 0 {
            self.since = None;
            return 0;
        }
        let (since, least) = self.since.get_or_insert((now, spare));
        *least = (*least).min(spare);
        if now >= *since + SPARE_FOR {
            self.settled = self.settled.max(*least);
            self.since = Some((now, spare));
        }
        self.settled
    }

    /// So many are not spare any more because they were given back.
    fn given(&mut self, chunks: u32) {
        self.settled -= chunks;
        if let Some((_, least)) = &mut self.since {
            *least = least.saturating_sub(chunks);
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.since.map(|(since, _)| since + SPARE_FOR)
    }
}

/// See the module's description.
pub(super) struct Growth {
    kind: MediumKind,
    limit_chunks: Option<u32>,
    reserve: u64,
    under_way: bool,
    /// Chunks asked for at once: less after a refusal.
    step: u32,
    /// The medium refused even one chunk; not asked again before then.
    refused_until: Option<Time>,
    /// New data is being refused.
    full: bool,
    /// A request waits for growth.
    demanded: bool,
    /// Chunks recorded as holes by a record: first, count, record.
    leaving: VecDeque<(u32, u32, u64)>,
    giving_back: usize,
    spare: Spare,
    /// What the file system still has, in blocks, if that is known.
    medium_free: Option<u64>,
    /// The medium cannot give space back.
    keeps_all: bool,
    /// Something would be deleted for want of space.
    has_more: bool,
    /// New data waits for what is being deleted, or would be.
    waits: bool,
    /// When that began, or when deleting last made a step.
    step_at: Time,
    /// It waited long enough: it is refused until deleting makes a step.
    gave_up: bool,
}

impl Growth {
    /// `left` are chunks that were recorded as holes but perhaps not given back.
    pub(super) fn new(kind: MediumKind, limit_chunks: Option<u32>, left: Vec<u32>) -> Growth {
        let limit = limit_chunks.map(|chunks| u64::from(chunks) * u64::from(CHUNK_BLOCKS));
        let reserve = limit.map_or(RESERVE_BLOCKS_MAX, |limit| {
            (limit / RESERVE_DIVISOR).clamp(RESERVE_BLOCKS_MIN, RESERVE_BLOCKS_MAX)
        });
        Growth {
            kind,
            limit_chunks,
            reserve,
            under_way: false,
            step: GROWTH_CHUNKS_MAX,
            refused_until: None,
            full: false,
            demanded: false,
            leaving: left.into_iter().map(|chunk| (chunk, 1, 0)).collect(),
            giving_back: 0,
            spare: Spare::default(),
            medium_free: None,
            keeps_all: false,
            has_more: false,
            waits: false,
            step_at: Time::default(),
            gave_up: false,
        }
    }

    /// Something would be deleted for want of space, or nothing would any more.
    pub(super) fn gives_way(&mut self, now: Time, more: bool) {
        self.has_more = more;
        self.deleting_goes_on(now);
    }

    /// Something that was deleted has given its space back, or is about to.
    pub(super) fn deleting_goes_on(&mut self, now: Time) {
        self.step_at = now;
        self.gave_up = false;
    }

    /// Whether new data waits (on) for what is being deleted, or would be.
    fn has_patience(&mut self, now: Time) -> bool {
        if self.gave_up {
            return false;
        }
        if !std::mem::replace(&mut self.waits, true) {
            self.step_at = now;
        }
        self.gave_up = now >= self.step_at + SPACE_WAIT;
        !self.gave_up
    }

    pub(super) fn reserve(&self) -> u64 {
        self.reserve
    }

    pub(super) fn limit_blocks(&self) -> Option<u64> {
        self.limit_chunks.map(|chunks| u64::from(chunks) * u64::from(CHUNK_BLOCKS))
    }

    /// Blocks taken from the medium beyond the limit, as after an opening with a lower one. New
    /// data must not use what is free among the rest.
    fn beyond_limit(&self, space: &Space) -> u64 {
        self.limit_blocks().map_or(0, |limit| space.allocated().saturating_sub(limit))
    }

    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Blocks in chunks with nothing in them that there should be.
    fn whole_blocks(&self) -> u64 {
        self.limit_blocks().map_or(WHOLE_BLOCKS, |limit| WHOLE_BLOCKS.min(limit / 32))
    }

    /// Whether chunks with nothing in them are few, and fetching more is no waste: what is free
    /// beyond `wanted` is less than what is in use, and than what the file system has left.
    fn wants_whole(&self, space: &Space, wanted: u64) -> bool {
        space.empty() < self.whole_blocks() && self.may_exceed(space, wanted)
    }

    /// Whether chunks that were written before are few, and fetching some is no waste.
    fn wants_used(&self, space: &Space, wanted: u64) -> bool {
        let few = USED_CHUNKS.min((self.whole_blocks() / u64::from(CHUNK_BLOCKS)) as u32);
        space.used_before() < few && self.may_exceed(space, wanted)
    }

    fn may_exceed(&self, space: &Space, wanted: u64) -> bool {
        let free = space.available() + space.quarantined();
        let excess = free.saturating_sub(wanted);
        let bound = (space.allocated() - free).max(wanted);
        excess < bound && self.medium_free.is_none_or(|left| excess < left)
    }

    /// The file system under the medium has so many bytes free.
    pub(super) fn medium_has(&mut self, free_bytes: u64) {
        self.medium_free = Some(free_bytes / BLOCK_SIZE as u64);
    }

    /// When chunks that are spare may be given back, if nobody needed them until then.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.spare.deadline()
    }

    fn keeps(&self, class: Class) -> u64 {
        match class {
            Class::Data => self.reserve,
            Class::Overwrite => self.reserve / 2,
            Class::Metadata => self.reserve / 8,
        }
    }
}

impl Serving {
    /// Blocks that the next checkpoint will take, whatever else happens.
    pub(super) fn promised_to_metadata(&self) -> u64 {
        let pages = self.table.dirty_pages()
            + self.space.dirty_pages()
            + self.checkpoint.pages_left()
            + self.small_pages();
        let root = root_pages(self.checkpoint.pages_listed() + pages);
        (self.cache.dirty() + 2 * (pages + root)) as u64
    }

    /// Decides whether `blocks` may be taken, with `pages` map pages becoming dirty. If they may
    /// later, what makes it so is under way.
    pub(super) fn admit(
        &mut self,
        now: Time,
        class: Class,
        blocks: u32,
        pages: u32,
        effects: &mut Vec<Effect>,
    ) -> Admission {
        let promised = self.promised_to_metadata() + u64::from(pages);
        let beyond = match class {
            Class::Data => self.growth.beyond_limit(&self.space),
            Class::Overwrite | Class::Metadata => 0,
        };
        let wanted = self.growth.keeps(class) + u64::from(blocks) + beyond;
        let available = self.space.available();
        if available >= promised + wanted {
            self.growth.waits = false;
            if class == Class::Data && std::mem::take(&mut self.growth.full) {
                effects.push(Effect::Notice(Notice::NoLongerFull));
            }
            return Admission::Granted;
        }
        self.growth.demanded = true;
        if self.growth.under_way {
            return Admission::Wait(Waiting::Space);
        }
        let quarantined = self.space.quarantined();
        if available + quarantined >= promised + wanted {
            self.flush_for_space();
            return Admission::Wait(Waiting::Space);
        }
        if self.growth_step(now, 1).is_some() {
            return Admission::Wait(Waiting::Space);
        }
        let changed = self.cache.dirty() > 0;
        let helps = available + quarantined + promised >= wanted + u64::from(pages);
        if helps && (changed || !self.checkpoint.is_idle()) {
            // A checkpoint turns promises into pages and frees the old ones.
            self.checkpoint.request();
            return Admission::Wait(Waiting::Space);
        }
        if self.expects_space() && self.growth.has_patience(now) {
            return Admission::Wait(Waiting::Space);
        }
        self.growth.waits = false;
        if !std::mem::replace(&mut self.growth.full, true) {
            effects.push(Effect::Notice(Notice::Full));
        }
        Admission::Refused
    }

    /// Whether deleting gives space back, or is about to.
    fn expects_space(&self) -> bool {
        !self.closing && (self.growth.has_more || self.drops.count() > 0)
    }

    /// Whether new data waits for space that deleting will give back.
    fn waits_for_deleting(&self) -> bool {
        self.growth.waits && self.queues.is_stalled()
    }

    /// When new data has waited long enough for that.
    pub(super) fn space_wait_ends(&self) -> Option<Time> {
        self.waits_for_deleting().then(|| self.growth.step_at + SPACE_WAIT)
    }

    /// See [`crate::Store::room`].
    pub(crate) fn room(&self) -> Option<Room> {
        if self.retired.is_some() || self.closing {
            return None;
        }
        let bytes = |blocks: u64| blocks * BLOCK_SIZE as u64;
        let (space, growth) = (&self.space, &self.growth);
        let kept = self.promised_to_metadata() + growth.reserve + growth.beyond_limit(space);
        let free = space.available() + space.quarantined() + space.freed_by_checkpoint();
        Some(Room {
            bytes: bytes(free.saturating_sub(kept)),
            allocated_bytes: bytes(space.allocated()),
            limit_bytes: growth.limit_blocks().map(bytes),
            is_wanted: growth.full || self.waits_for_deleting(),
            is_growing: self.drops.count() > 0,
        })
    }

    /// Flushes if that makes freed space available.
    pub(super) fn flush_for_space(&mut self) {
        if self.space.waits_for_flush(self.flusher.durable_lsn()) {
            self.flusher.want();
        }
    }

    /// Somebody needs more than there is.
    pub(super) fn demand_growth(&mut self) {
        self.growth.demanded = true;
    }

    /// What growth would ask the medium for now.
    fn growth_step(&self, now: Time, step: u32) -> Option<(u32, u32)> {
        let growth = &self.growth;
        let step = step.min(growth.step);
        let refused = growth.refused_until.is_some_and(|until| now < until);
        if growth.kind == MediumKind::Device || growth.under_way || refused {
            return None;
        }
        let limit = growth.limit_chunks.unwrap_or(u32::MAX);
        // Whatever lies beyond the limit counts, too: holes below it are not to make more of it.
        let allocated = (self.space.allocated() / u64::from(CHUNK_BLOCKS)) as u32;
        let step = step.min(limit.saturating_sub(allocated));
        if step == 0 {
            return None;
        }
        if let Some(holes) = self.space.find_chunks(ChunkState::Hole, step) {
            let count = holes.1.min(limit.saturating_sub(holes.0));
            return (count > 0).then_some((holes.0, count));
        }
        let first = self.space.chunk_count();
        let addresses = (crate::layout::ADDRESS_MAX - self.space.address_of(0)) / 256;
        let limit = limit.min(addresses as u32);
        let count = step.min(limit.saturating_sub(first));
        (count > 0).then_some((first, count))
    }

    /// Asks for space ahead of need, and gives back what is not needed.
    pub(super) fn step_growth(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let wanted = self.promised_to_metadata() + self.growth.reserve + AHEAD_BLOCKS;
        let demanded = std::mem::take(&mut self.growth.demanded);
        let available = self.space.available();
        let short = available + self.space.quarantined() < wanted;
        let whole = self.space.empty() >= self.growth.whole_blocks();
        if (available < wanted || !whole) && self.space.quarantined() >= FLUSH_BLOCKS {
            // Before anybody has to wait for it, or to do with pieces.
            self.flush_for_space();
        }
        let needed = demanded || short || self.growth.wants_whole(&self.space, wanted);
        if (needed || self.growth.wants_used(&self.space, wanted)) && self.log.has_room_for_growth()
        {
            self.begin_growth(now, !needed, effects);
        }
        self.give_back(now, wanted, effects);
        self.end_full(effects);
    }

    /// New data is taken again once there is room for the longest write of it, asked for or not.
    fn end_full(&mut self, effects: &mut Vec<Effect>) {
        let longest = limits::MEMBER_REQUEST_BLOCKS_MAX as u64;
        let kept = self.growth.reserve + self.growth.beyond_limit(&self.space);
        if self.growth.full
            && self.space.available() >= self.promised_to_metadata() + kept + longest
        {
            self.growth.full = false;
            effects.push(Effect::Notice(Notice::NoLongerFull));
        }
    }

    /// Asks the medium for chunks; with `zeroed` for a few that are written once.
    fn begin_growth(&mut self, now: Time, zeroed: bool, effects: &mut Vec<Effect>) {
        let step = if zeroed { ZEROED_CHUNKS } else { GROWTH_CHUNKS_MAX };
        let Some((first, count)) = self.growth_step(now, step) else { return };
        self.growth.under_way = true;
        self.space.set_chunks(first, count, ChunkState::Growing);
        let request = DiskRequest::Allocate {
            offset: self.space.address_of(first) * BLOCK_SIZE as u64,
            length: u64::from(count) * u64::from(CHUNK_BLOCKS) * BLOCK_SIZE as u64,
            zero: zeroed,
        };
        self.operations.submit(Operation::Grow { first, count, zeroed }, request, effects);
    }

    /// The medium has allocated chunks, or not.
    pub(super) fn grown(
        &mut self,
        now: Time,
        (first, count, zeroed): (u32, u32, bool),
        result: Result<Option<Buffer>, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        self.growth.under_way = false;
        if self.retired.is_some() {
            return;
        }
        match result {
            Ok(_) => {
                self.growth.step = (self.growth.step * 2).min(GROWTH_CHUNKS_MAX);
                self.growth.refused_until = None;
                let lsn = self.log.append(&Record::Chunks { first, count, allocated: true });
                self.in_flight.push(lsn, None, None, 0, 0, None);
                self.seal_full_batch(effects);
                self.space.grow(first, count, zeroed);
            }
            Err(DiskError::NoSpace) => {
                self.space.set_chunks(first, count, ChunkState::Hole);
                if self.growth.step == 1 {
                    self.growth.refused_until = Some(now + REFUSED_PAUSE);
                }
                self.growth.step = (self.growth.step / 2).max(1);
            }
            Err(error) => self.retire(&format!("allocating space failed: {error}"), effects),
        }
    }

    /// Records empty chunks as holes, and punches those whose record is durable.
    fn give_back(&mut self, now: Time, wanted: u64, effects: &mut Vec<Effect>) {
        if self.growth.kind == MediumKind::Device || self.growth.keeps_all || self.closing {
            self.growth.spare = Spare::default();
            return;
        }
        let durable = self.flusher.durable_lsn();
        let complete = self.in_flight.complete_lsn();
        while let Some(&(first, count, _)) =
            self.growth.leaving.front().filter(|&&(.., lsn)| lsn <= durable)
        {
            self.growth.leaving.pop_front();
            self.growth.giving_back += 1;
            let request = DiskRequest::Discard {
                offset: self.space.address_of(first) * BLOCK_SIZE as u64,
                length: u64::from(count) * u64::from(CHUNK_BLOCKS) * BLOCK_SIZE as u64,
            };
            self.operations.submit(Operation::GiveBack { first, count }, request, effects);
        }
        let slack = self.growth.limit_blocks().map_or(SLACK_BLOCKS, |l| SLACK_BLOCKS.min(l / 16));
        let spare = self.space.empty().saturating_sub(wanted + slack) / u64::from(CHUNK_BLOCKS);
        let chunks = self.growth.spare.observe(now, spare as u32);
        let idle = self.requests == 0;
        let most = if idle { LEAVING_MAX_IDLE } else { 1 };
        let mut left = chunks;
        while left > 0
            && self.growth.leaving.len() + self.growth.giving_back < most
            && !self.growth.under_way
            && self.log.has_room_for_background()
        {
            let run = self.space.find_empty_chunks(left.min(GROWTH_CHUNKS_MAX));
            let Some((first, count)) = run else { break };
            left -= count;
            self.growth.spare.given(count);
            self.space.set_chunks(first, count, ChunkState::Leaving);
            let lsn = self.log.append(&Record::Chunks { first, count, allocated: false });
            self.in_flight.push(lsn, None, None, 0, 0, None);
            self.seal_full_batch(effects);
            self.growth.leaving.push_back((first, count, lsn));
        }
        if idle && self.growth.leaving.front().is_some_and(|&(.., lsn)| lsn <= complete) {
            // They wait for nothing but a flush, and nobody is in its way.
            self.flusher.want();
        }
    }

    /// Chunks have been given back, or cannot be on this medium.
    pub(super) fn given_back(&mut self, first: u32, count: u32, given: bool) {
        self.growth.giving_back -= 1;
        self.space.set_chunks(first, count, ChunkState::Hole);
        if given {
            let blocks = u64::from(count) * u64::from(CHUNK_BLOCKS);
            self.counters.given_back_bytes += blocks * BLOCK_SIZE as u64;
        } else {
            self.growth.keeps_all = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::Purpose;

    /// 100 chunks, of which so many blocks are in use, each chunk as full as the others.
    fn cut_up(used: u32) -> Space {
        let mut space = Space::new(3);
        space.set_chunks(0, 100, ChunkState::Allocated);
        let mut runs = Vec::new();
        space.allocate(Purpose::Data, 100 * 256, &mut runs);
        let all: Vec<u64> = runs.iter().flat_map(crate::layout::Run::iter).collect();
        for (at, &address) in all.iter().enumerate() {
            if at as u32 % 256 >= used / 100 {
                space.give(crate::layout::Run { address, count: 1 });
            }
        }
        space
    }

    #[test]
    fn growth_for_long_runs_has_bounds() {
        let mut growth = Growth::new(MediumKind::File, None, Vec::new());
        // 12,800 of 25,600 blocks are free, in pieces.
        let space = cut_up(100 * 128);
        assert_eq!((space.available(), space.empty()), (12_800, 0));
        assert!(growth.wants_whole(&space, 100));
        assert!(!growth.wants_whole(&space, 0), "more is free than in use");
        assert!(growth.wants_used(&space, 100));
        growth.medium_has(13_000 << 12);
        assert!(growth.wants_whole(&space, 100));
        growth.medium_has(12_000 << 12);
        assert!(!growth.wants_whole(&space, 100), "the file system has less than that");
        let mut space = cut_up(100 * 200);
        assert!(growth.wants_whole(&space, 0));
        space.set_chunks(100, 32, ChunkState::Allocated);
        assert!(!growth.wants_whole(&space, 0), "there are enough");
        assert!(!growth.wants_used(&space, 0), "there are enough");
    }

    #[test]
    fn only_what_was_spare_all_the_time_is_given_back() {
        let at = |ms| Time::default() + Duration::from_millis(ms);
        let after = SPARE_FOR.as_millis() as u64;
        let mut spare = Spare::default();
        assert_eq!(spare.observe(at(0), 50), 0);
        assert_eq!(spare.observe(at(100), 10), 0);
        assert_eq!(spare.deadline(), Some(at(after)));
        assert_eq!(spare.observe(at(after), 40), 10);
        // Given back step by step.
        assert_eq!(spare.observe(at(after + 1), 36), 10);
        assert_eq!(spare.observe(at(after + 2), 7), 7);
        // Needed after all.
        assert_eq!(spare.observe(at(after + 3), 0), 0);
        assert_eq!(spare.deadline(), None);
        assert_eq!(spare.observe(at(after + 4), 30), 0);
        assert_eq!(spare.observe(at(2 * after + 3), 30), 0);
        assert_eq!(spare.observe(at(2 * after + 4), 30), 30);
    }
}
