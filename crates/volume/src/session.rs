//! The machine that serves one attached volume.

use crate::closing::{Closing, being_closed};
use crate::event::{Effect, Event, Waiting};
use crate::flatten::Flatten;
use crate::locks::Locks;
use crate::origin::{Follow, Through, Whole};
use crate::pieces::{Range, piece};
use crate::request::{Completion, Error, Operation, Request, RequestId};
use crate::shelf::{Arrival, Shelf};
use crate::shrink::Shrink;
use crate::source::Sources;
use crate::stable::Stable;
use crate::switch::Switch;
use crate::work::{Stage, Task, Work, prefetched_bytes, status_bytes};
use cluster::Map;
use proto::limits::{
    FLATTEN_PIECES_MAX, MEMBER_REQUEST_BLOCKS_MAX, REQUEST_BYTES_MAX, REQUEST_PIECES_MAX,
    SESSION_BYTES_MAX, SESSION_PIECES_MAX, SESSION_REQUESTS_MAX, STATUS_OBJECTS_MAX,
};
use proto::{
    BLOCK_SIZE, BlockRange, DiskId, Duration, Generation, LayerId, OBJECT_SIZE, PartitionId,
    Payload, Time, VolumeId,
};
use replica::{Answer, Coordinator, Slots, Source, View};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Serves one attached volume.
///
/// Invariants: every accepted request completes exactly once; two requests of which one changes
/// blocks of the other are never in work together, and the earlier goes first; what is in work
/// stays under its limits, and what is beyond waits in the order of arrival. The inbox and the
/// shelf have no limit here: the fronts bound how many requests they have open.
#[derive(Debug)]
pub struct Session {
    pub(crate) now: Time,
    /// When it began.
    begun: Time,
    pub(crate) volume: VolumeId,
    view: View,
    /// How long a snapshot is.
    sealed_bytes: u64,
    pub(crate) read_only: bool,
    pub(crate) map: Arc<Map>,
    pub(crate) coordinator: Coordinator,
    pub(crate) life: Life,
    /// Since when the session is closing.
    pub(crate) closing: Option<Closing>,
    /// Requests that are not in work yet, in order.
    pub(crate) inbox: VecDeque<Arrival>,
    /// Requests that wait for a source and hold no place.
    pub(crate) shelf: Shelf,
    pub(crate) works: Slots<Work>,
    pub(crate) locks: Locks,
    /// Object requests under way.
    pub(crate) pieces: Slots<Piece>,
    /// Those that have ended and are being completed with what shows through.
    pub(crate) follows: Slots<Follow>,
    pub(crate) through: Through,
    /// What is asked of what lies elsewhere.
    pub(crate) sources: Sources,
    /// Works that have pieces to send, each once.
    pub(crate) runnable: VecDeque<u64>,
    /// Bytes that the works hold at most.
    pub(crate) bytes: usize,
    pub(crate) shrink: Shrink,
    pub(crate) switch: Switch,
    pub(crate) stable: Stable,
    pub(crate) flatten: Flatten,
    /// Zeros for one piece, once they were needed.
    zeros: Option<Payload>,
    /// What the coordinator wants done, and a spare list.
    pub(crate) scratch: Vec<replica::Effect>,
    spare: Vec<replica::Effect>,
    /// Works whose lock was granted.
    granted: Vec<u64>,
    /// Number of the next work.
    pub(crate) next: u64,
    /// Requests accepted and completed.
    accepted: u64,
    completed: u64,
}

/// Where a session is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    Opening,
    Open,
    /// A newer attachment exists.
    Fenced,
    Closed,
}

/// An object request under way.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) work: u64,
    pub(crate) role: Role,
    /// What is looked at, if it looks.
    pub(crate) place: Option<(u32, BlockRange)>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// Brings the present content of this block.
    Edge(u64),
    /// This part of the body.
    Part(u32),
    /// A part of another piece, from so far along what shows through.
    Through {
        follow: u64,
        level: usize,
    },
    /// Likewise, but of the volume's own disks instead of the source that it was asked of: all was
    /// copied meanwhile, and copies had been lost so many times by then.
    Instead {
        follow: u64,
        level: usize,
        losses: u64,
    },
    /// Finds out what is to be copied.
    Look,
    /// Finds out which of it still is, now that nobody else can write there.
    LookAgain,
    /// Brings what is to be copied.
    Copy,
    /// Tells the disks of a new head.
    Switch,
    Flush,
}

impl Session {
    /// Starts the session of an attachment: fences and settles, then [`Effect::Opened`].
    ///
    /// A read-only session fences nobody. Its generation is newer than any fence of an earlier
    /// writer, so its reads are served until a later writer's fence ends it. That of a snapshot is
    /// not ended by anything.
    ///
    /// # Panics
    /// If the map does not know the volume or the snapshot: a bug of the caller, who has just
    /// attached it.
    pub fn open(
        now: Time,
        volume: VolumeId,
        generation: Generation,
        view: View,
        map: Arc<Map>,
        effects: &mut Vec<Effect>,
    ) -> Session {
        let known = map.volume(volume).expect("the volume is in the map");
        let (shown, sealed_bytes, read_only) = match view {
            View::Head { read_only } => (known.head, 0, read_only),
            View::Snapshot { layer } => {
                let mut snapshots = known.snapshots.iter();
                let snapshot = snapshots.find(|snapshot| snapshot.layer == layer);
                (layer, snapshot.expect("the snapshot is in the map").bytes, true)
            }
        };
        let through = Through::new(&map, shown);
        let mut scratch = Vec::new();
        let shared = Arc::clone(&map);
        let coordinator = Coordinator::open(now, volume, generation, view, shared, &mut scratch);
        let mut session = Session {
            now,
            begun: now,
            volume,
            view,
            sealed_bytes,
            read_only,
            map,
            coordinator,
            life: Life::Opening,
            closing: None,
            inbox: VecDeque::new(),
            shelf: Shelf::default(),
            works: Slots::default(),
            locks: Locks::default(),
            pieces: Slots::default(),
            follows: Slots::default(),
            through,
            sources: Sources::default(),
            runnable: VecDeque::new(),
            bytes: 0,
            shrink: Shrink::default(),
            switch: Switch::new(shown),
            stable: Stable::default(),
            flatten: Flatten::default(),
            zeros: None,
            scratch,
            spare: Vec::new(),
            granted: Vec::new(),
            next: 0,
            accepted: 0,
            completed: 0,
        };
        session.drive(effects);
        session
    }

    /// Takes in what has happened.
    pub fn handle(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) {
        self.now = now;
        if self.life == Life::Closed && !matches!(event, Event::Request(_)) {
            return;
        }
        match event {
            Event::Request(request) => {
                self.accepted += 1;
                if self.closing.is_some() {
                    self.complete(request.id, Err(being_closed()), effects);
                } else {
                    let (since, order) = (now, self.accepted);
                    self.inbox.push_back(Arrival { since, order, pieces: 0, request });
                    self.admit(effects);
                }
            }
            Event::Member { disk, token, result } => {
                let event = replica::Event::Member { disk, token, result };
                self.coordinator.handle(now, event, &mut self.scratch);
            }
            Event::Map(map) if self.is_known_to(&map) => {
                self.map = Arc::clone(&map);
                self.coordinator.handle(now, replica::Event::Map(map), &mut self.scratch);
                self.take_through_map(effects);
                self.advance_switch(effects);
                self.advance_shrink(effects);
                self.advance_stable(effects);
            }
            Event::Flatten { start } => self.handle_flatten(start, effects),
            Event::Shorten { parent } => self.handle_shorten(parent, effects),
            // A volume that is attached cannot be deleted: the map is one of before.
            Event::Map(_) => {}
            Event::Close => self.begin_closing(effects),
            Event::Tick => self.handle_tick(effects),
            Event::Source { token, result } => self.handle_source(token, result, effects),
            Event::FillRate { bytes_per_s } => self.set_fill_rate(bytes_per_s, effects),
            Event::Ended => {
                self.coordinator.handle(now, replica::Event::Ended, &mut self.scratch);
            }
        }
        self.drive(effects);
    }

    /// Which map it goes by; nothing once it is closed.
    pub fn epoch(&self) -> Option<proto::Epoch> {
        (self.life != Life::Closed).then(|| self.map.epoch())
    }

    /// Whether each change that comes from now on will be in the head of its map, and in no layer
    /// below it. It is so from the moment the session learns of that head.
    pub fn is_past_the_cut(&self) -> bool {
        let Some(volume) = self.map.volume(self.volume) else { return true };
        // One that opens serves nothing before it has turned, and one that closes takes nothing.
        let takes_changes = self.life == Life::Open && !self.read_only && !self.is_closing();
        !takes_changes || self.switch.leads_to(volume.head)
    }

    /// When [`Event::Tick`] wants to come at the latest.
    pub fn deadline(&self) -> Option<Time> {
        if self.life == Life::Closed {
            return None;
        }
        let closing = self.closing.as_ref().map(|closing| closing.look_at);
        let own = [
            self.shrink.deadline(),
            self.switch.deadline(),
            self.stable.deadline(),
            self.flatten.deadline(),
        ];
        let sources = self.sources.deadline();
        let all = own.into_iter().chain([self.coordinator.deadline(), closing, sources]);
        all.flatten().min()
    }

    /// Current members of the volume's partitions that do not have everything: of which partition
    /// of which table, and on which disk. They become whole by a change of the members.
    pub fn behind(&self) -> impl Iterator<Item = (u8, PartitionId, DiskId)> {
        self.coordinator.behind_in()
    }

    /// Why the oldest unfinished request has not ended, and since when it has not; or why the
    /// attachment itself is not open.
    pub fn waiting(&self, _now: Time) -> Option<Waiting> {
        let oldest = self.works.iter().min_by_key(|(_, work)| work.number);
        let since = match (oldest, self.inbox.front()) {
            (Some((_, work)), _) => work.since,
            _ if self.life == Life::Opening => self.begun,
            (None, Some(arrival)) => arrival.since,
            (None, None) => return None,
        };
        if let Some((earlier, layer)) = self.shelf.oldest().filter(|(at, _)| *at < since) {
            let reason = format!("waiting for {}", self.source_words(layer));
            return Some(Waiting { since: earlier, reason });
        }
        let source = oldest.and_then(|(number, _)| self.sources.awaited_by(number));
        let source = source.map(|layer| self.source_words(layer));
        let is_seal = oldest.is_some_and(|(_, work)| matches!(work.task, Task::Seal { .. }));
        let seal = || self.coordinator.seal_obstacle().filter(|_| is_seal);
        let obstacle = source.or_else(|| self.coordinator.obstacle()).or_else(seal);
        let what = obstacle.unwrap_or_else(|| "the disks to answer".to_string());
        Some(Waiting { since, reason: format!("waiting for {what}") })
    }

    /// Asserts the invariants; for tests and simulation, it looks at everything.
    pub fn check(&self) {
        self.coordinator.check();
        self.sources.check(|piece, work| self.pieces.at(piece).is_some_and(|p| p.work == work));
        self.locks.check();
        self.flatten.check();
        let guests = self.works.iter().filter(|(_, work)| work.id.is_some()).count();
        let open = self.inbox.len() + self.shelf.len() + guests;
        assert_eq!(self.accepted, self.completed + open as u64, "a request was lost");
        let mut pieces: BTreeMap<u64, usize> = BTreeMap::new();
        for (_, piece) in self.pieces.iter() {
            *pieces.entry(piece.work).or_default() += 1;
        }
        let held = &self.switch.held;
        let queued: BTreeSet<u64> = self.runnable.iter().chain(held).copied().collect();
        assert_eq!(queued.len(), self.runnable.len() + held.len(), "a work is queued once");
        assert!(held.is_empty() || self.switch.is_draining(), "a work is held for nothing");
        let granted = self.locks.granted();
        let mut bytes = 0;
        let mut locked = 0;
        for (number, work) in self.works.iter() {
            bytes += work.bytes();
            let under_way = pieces.get(&number).copied().unwrap_or(0);
            assert_eq!(under_way, work.in_flight, "{work:?}");
            assert_eq!(queued.contains(&number), work.queued, "{work:?}");
            let granted = granted.get(&number).copied();
            locked += usize::from(granted.is_some());
            match work.stage {
                Stage::Locking => assert_eq!(granted, Some(false), "{work:?}"),
                Stage::Edges | Stage::Body => {
                    assert_eq!(granted, work.lock().map(|_| true), "{work:?}");
                    assert!(work.in_flight > 0 || work.queued, "it waits for nothing: {work:?}");
                }
                Stage::Flushing => {
                    let kept = work.lock().filter(|_| work.keeps).map(|_| true);
                    assert_eq!((granted, work.in_flight), (kept, 1), "{work:?}");
                }
            }
        }
        assert_eq!((bytes, locked), (self.bytes, self.locks.len()));
        let edges = 2 * BLOCK_SIZE * SESSION_REQUESTS_MAX;
        assert!(bytes <= SESSION_BYTES_MAX + edges, "too much in work");
        assert!(self.pieces.len() <= SESSION_PIECES_MAX + SESSION_REQUESTS_MAX * 2);
        assert!(self.works.len() <= SESSION_REQUESTS_MAX + FLATTEN_PIECES_MAX + 4);
        let idle = self.works.is_empty() && matches!(self.life, Life::Open | Life::Fenced);
        let waiting = self.inbox.len() + self.shelf.len();
        assert!(!idle || waiting == 0, "requests wait for nothing");
        self.check_shelf();
    }

    // -- into work --

    /// Takes requests into work, in order, as far as the limits allow.
    fn admit(&mut self, effects: &mut Vec<Effect>) {
        while self.life != Life::Opening && self.works.len() < SESSION_REQUESTS_MAX {
            let Some(Arrival { request, .. }) = self.inbox.front() else { return };
            let id = request.id;
            let early = match self.validate(request) {
                _ if self.life != Life::Open => Err(Err(Error::Fenced)),
                Ok(Some(range)) => Ok(range),
                Ok(None) => Err(Ok(nothing(&request.operation))),
                Err(error) => Err(Err(error)),
            };
            let range = match early {
                Ok(range) => range,
                Err(result) => {
                    self.inbox.pop_front();
                    self.complete(id, result, effects);
                    continue;
                }
            };
            let bytes = match request.operation {
                Operation::Read | Operation::Write { .. } => range.touched_bytes(),
                Operation::Prefetch => prefetched_bytes(range),
                Operation::Status | Operation::Difference { .. } => status_bytes(range),
                _ => 0,
            };
            if self.bytes > 0 && self.bytes + bytes > SESSION_BYTES_MAX {
                return;
            }
            let arrival = self.inbox.pop_front().expect("just seen");
            let Arrival { since, order, pieces, request } = arrival;
            let (task, fua) = task(request.operation);
            let mut work = Work::new(Some(id), task, range, fua, since, self.next);
            (work.order, work.pieces) = (order, pieces);
            match self.waits_behind(&work) {
                Some(source) => self.shelf.put(work, source),
                None => {
                    self.begin(work, effects);
                }
            }
        }
    }

    /// A request that was put off goes into work before those that came after it.
    pub(crate) fn admit_again(&mut self, arrival: Arrival, effects: &mut Vec<Effect>) {
        self.inbox.push_front(arrival);
        self.admit(effects);
    }

    /// Whether one that comes back finds no room yet.
    pub(crate) fn has_returned(&self) -> bool {
        self.inbox.front().is_some_and(|arrival| arrival.pieces > 0)
    }

    /// Whether a request makes sense now, and its range; nothing if there is nothing to do.
    fn validate(&self, request: &Request) -> Result<Option<Range>, Error> {
        let operation = &request.operation;
        if let Operation::Flush = operation {
            let flush = Range { offset: 0, length: 0 };
            return Ok((!self.read_only).then_some(flush));
        }
        let end = request.offset.checked_add(request.length);
        if end.is_none_or(|end| end > self.served_bytes()) {
            return Err(Error::OutOfRange);
        }
        let range = Range::new(request.offset, request.length).ok_or(Error::Misaligned)?;
        let (first, end) = range.touched();
        match operation {
            Operation::Write { .. } | Operation::Discard { .. } | Operation::WriteZeroes { .. }
                if self.read_only =>
            {
                return Err(Error::ReadOnly);
            }
            Operation::Read | Operation::Write { .. }
                if request.length > REQUEST_BYTES_MAX as u64 =>
            {
                return Err(Error::TooLong);
            }
            Operation::Write { buffer, .. } => {
                let covered = (end - first) as usize * BLOCK_SIZE;
                assert_eq!(buffer.len(), covered, "the buffer covers the touched blocks");
            }
            Operation::WriteZeroes { may_unmap, fast_only: true, .. }
                if !may_unmap || range.head().is_some() || range.tail().is_some() =>
            {
                return Err(Error::NotFast);
            }
            Operation::Difference { base } if !self.is_base(*base) => {
                return Err(Error::UnknownBase);
            }
            Operation::Status | Operation::Difference { .. } => {
                // The answer may cover less than was asked about.
                let most = STATUS_OBJECTS_MAX * OBJECT_SIZE as u64;
                let length = range.length.min(most);
                return Ok((length > 0).then_some(Range { length, ..range }));
            }
            _ => {}
        }
        let (first, end) = match operation {
            Operation::Discard { .. } => range.whole(),
            _ => (first, end),
        };
        Ok((range.length > 0 && first < end).then_some(range))
    }

    /// Whether the map has what the session shows.
    fn is_known_to(&self, map: &Map) -> bool {
        map.volume(self.volume).is_some_and(|volume| match self.view {
            View::Head { .. } => true,
            View::Snapshot { layer } => volume.layers().any(|known| known == layer),
        })
    }

    /// The layer that is read.
    pub(crate) fn shown_layer(&self) -> LayerId {
        match self.view {
            View::Head { .. } => {
                self.map.volume(self.volume).expect("maps without it are not taken").head
            }
            View::Snapshot { layer } => layer,
        }
    }

    fn served_bytes(&self) -> u64 {
        match self.view {
            View::Head { .. } => {
                self.map.volume(self.volume).expect("maps without it are not taken").served_bytes()
            }
            View::Snapshot { .. } => self.sealed_bytes,
        }
    }

    /// Whether what is read can be compared with this layer: nothing at all, or a snapshot below
    /// that can be read.
    fn is_base(&self, base: LayerId) -> bool {
        if base == LayerId(0) {
            return true;
        }
        let volume = self.map.volume(self.volume).expect("maps without it are not taken");
        let is_named = volume.snapshots.iter().any(|snapshot| snapshot.layer == base);
        if !is_named || self.map.sealing(volume) == Some(base) {
            return false;
        }
        let mut at = self.shown_layer();
        while let Some(below) = self.map.parent_in_lineage(at) {
            if below == base {
                return true;
            }
            at = below;
        }
        false
    }

    /// A work that leaves without an end holds nothing any more.
    pub(crate) fn release_bytes(&mut self, bytes: usize) {
        self.bytes -= bytes;
    }

    /// Bytes that the works hold at most.
    pub(crate) fn held_bytes(&self) -> usize {
        self.bytes
    }

    /// Puts a work in line for its blocks, and starts it if they are free.
    pub(crate) fn begin(&mut self, mut work: Work, effects: &mut Vec<Effect>) -> u64 {
        self.next = work.number + 1;
        if !self.through.chain.is_empty() {
            work.chain = Some(Arc::clone(&self.through.chain));
        }
        work.zero_below = self.through.zero_below;
        self.bytes += work.bytes();
        let number = self.works.insert(work);
        self.lock(number, effects);
        number
    }

    /// Puts a work in line for its blocks, if it wants any.
    fn lock(&mut self, number: u64, effects: &mut Vec<Effect>) {
        let work = self.works.at_mut(number).expect("it is in work");
        work.stage = Stage::Locking;
        let granted = match work.lock() {
            Some((first, end, exclusive)) => self.locks.take(number, first, end, exclusive),
            None => true,
        };
        let copies = matches!(work.task, Task::Flatten { .. });
        if granted {
            self.start(number, effects);
        } else if copies {
            self.make_way(effects);
        }
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.next
    }

    /// The blocks are free: what is to be changed in part is read first.
    pub(crate) fn start(&mut self, number: u64, effects: &mut Vec<Effect>) {
        let work = self.works.at_mut(number).expect("it waited for its lock");
        if work.error.is_some() {
            work.stage = Stage::Body;
            self.advance(number, effects);
            return;
        }
        match work.task {
            Task::Flush | Task::LastFlush | Task::FlattenFlush | Task::Seal { layers: None } => {
                self.flush(number);
                return;
            }
            Task::Seal { layers: Some((layer, parent)) } => {
                work.stage = Stage::Body;
                let request = replica::Request::SwitchLayer { layer, parent };
                self.send(number, Role::Switch, request);
                return;
            }
            Task::Flatten { fetched, .. } => {
                work.stage = Stage::Edges;
                let (first, end) = work.range.touched();
                let (index, blocks) = piece(first, end, MEMBER_REQUEST_BLOCKS_MAX);
                let request = replica::Request::Map { source: Source::Own, index, blocks };
                let role = if fetched { Role::LookAgain } else { Role::Look };
                self.send(number, role, request);
                return;
            }
            _ => {}
        }
        let edges = work.edges();
        work.stage = Stage::Edges;
        let mut any = false;
        for block in edges {
            any = true;
            let (index, blocks) = piece(block, block + 1, 1);
            let request = replica::Request::Read { source: Source::Own, index, blocks };
            self.send(number, Role::Edge(block), request);
        }
        if !any {
            self.begin_body(number);
        }
    }

    fn begin_body(&mut self, number: u64) {
        let work = self.works.at_mut(number).expect("it is in work");
        work.begin_body();
        work.queued = true;
        self.runnable.push_back(number);
        self.pump();
    }

    // -- pieces --

    pub(crate) fn send(&mut self, number: u64, role: Role, request: replica::Request) {
        let place = match request {
            replica::Request::Read { index, blocks, .. }
            | replica::Request::Map { index, blocks, .. } => Some((index, blocks)),
            _ => None,
        };
        let token = self.insert_piece(number, role, place);
        let event = replica::Event::Request { token, request };
        self.coordinator.handle(self.now, event, &mut self.scratch);
    }

    fn insert_piece(&mut self, work: u64, role: Role, place: Option<(u32, BlockRange)>) -> u64 {
        self.works.at_mut(work).expect("it is in work").in_flight += 1;
        self.pieces.insert(Piece { work, role, place })
    }

    /// A piece that is not asked of the disks.
    pub(crate) fn begin_piece(&mut self, work: u64, role: Role, place: (u32, BlockRange)) -> u64 {
        self.insert_piece(work, role, Some(place))
    }

    /// Sends the pieces of those works that have some, as far as the limits allow.
    pub(crate) fn pump(&mut self) {
        while self.pieces.len() < SESSION_PIECES_MAX {
            let Some(&number) = self.runnable.front() else { return };
            let work = self.works.at_mut(number).expect("a work leaves the list before it ends");
            if self.switch.holds(work) {
                self.runnable.pop_front();
                self.switch.held.push_back(number);
                continue;
            }
            if !work.has_more() || work.in_flight >= REQUEST_PIECES_MAX {
                work.queued = false;
                self.runnable.pop_front();
                continue;
            }
            let zeros = &mut self.zeros;
            let (part, request) = work.next_piece(|| zeros_of(zeros));
            if !work.has_more() {
                work.queued = false;
                self.runnable.pop_front();
            }
            self.send(number, Role::Part(part), request);
        }
    }

    /// An object request has ended.
    pub(crate) fn handle_piece(
        &mut self,
        token: u64,
        result: Result<replica::Answer, replica::Error>,
        effects: &mut Vec<Effect>,
    ) {
        let piece = self.pieces.remove(token).expect("it was asked for");
        let number = piece.work;
        self.works.at_mut(number).expect("a work outlives its pieces").in_flight -= 1;
        match (piece, result) {
            (Piece { role: Role::Instead { follow, level, losses }, place, .. }, Ok(_))
                if !self.flatten.is_copied_since(losses) =>
            {
                let (_, blocks) = place.expect("it is a look");
                self.ask_source_again(follow, level, blocks);
            }
            (
                Piece {
                    role: Role::Through { follow, level } | Role::Instead { follow, level, .. },
                    place,
                    ..
                },
                result,
            ) => {
                let (_, blocks) = place.expect("it is a look");
                let whole = self.take_through(follow, level, blocks, result.as_ref().ok());
                if let Some(Whole { role, answer, places }) = whole {
                    self.deliver(number, role, answer, places);
                }
                if let Err(error) = result {
                    self.works.at_mut(number).expect("it is in work").abandon(translate(error));
                }
            }
            (piece @ Piece { role: Role::Look, .. }, Ok(answer)) => self.begin_copy(piece, &answer),
            (piece @ Piece { role: Role::LookAgain, .. }, Ok(answer)) => {
                self.keep_absent(&piece, &answer);
            }
            (piece, Ok(answer)) => {
                let role = piece.role;
                if let Some(answer) = self.follow(piece, answer) {
                    self.deliver(number, role, answer, Vec::new());
                }
            }
            (_, Err(error)) => {
                self.works.at_mut(number).expect("it is in work").abandon(translate(error));
            }
        }
        self.advance(number, effects);
        self.pump();
    }

    /// A work gets what it asked for.
    fn deliver(&mut self, number: u64, role: Role, answer: Answer, places: Vec<(u32, Payload)>) {
        let work = self.works.at_mut(number).expect("a work outlives its pieces");
        match (answer, role) {
            (Answer::Data { content, .. }, Role::Edge(block)) => work.fill(block, &content),
            (Answer::Data { .. }, Role::Copy) => {
                let copied = places.iter().map(|(_, payload)| payload.len()).sum();
                if work.shortens() {
                    self.flatten.spend(copied);
                }
                work.take_copy(places);
            }
            (answer, Role::Part(part)) => work.take_part(part, answer),
            _ => {}
        }
    }

    /// Brings a work to its next stage if this one is over.
    pub(crate) fn advance(&mut self, number: u64, effects: &mut Vec<Effect>) {
        let work = self.works.at_mut(number).expect("it is in work");
        let stage = work.stage;
        match stage {
            Stage::Locking => {}
            Stage::Edges if work.in_flight > 0 => {}
            Stage::Edges if work.error.is_none() && work.is_fetched_now() => {
                self.lock(number, effects)
            }
            Stage::Edges if work.error.is_none() && !work.has_nothing() => self.begin_body(number),
            Stage::Body if work.has_more() => {
                if !work.queued {
                    work.queued = true;
                    self.runnable.push_back(number);
                }
            }
            Stage::Body if work.in_flight > 0 => {}
            Stage::Edges | Stage::Body => {
                if std::mem::take(&mut work.queued) {
                    self.runnable.retain(|queued| *queued != number);
                    self.switch.held.retain(|queued| *queued != number);
                }
                let is_answered = work.id.is_some() && work.is_change();
                let (fua, is_done) = (work.fua, work.error.is_none());
                let keeps = is_done && is_answered && self.promises_stable();
                // Also of one that is done again: what is promised may be another by now.
                self.works.at_mut(number).expect("it is in work").keeps = keeps;
                if !keeps {
                    self.unlock(number, effects);
                }
                if keeps || (fua && is_done) {
                    self.flush(number);
                    return;
                }
                if is_answered && is_done {
                    self.stable.answered();
                }
                self.end(number, effects);
            }
            Stage::Flushing if self.is_repeated(number) => {}
            Stage::Flushing => {
                let work = self.works.at_mut(number).expect("it is in work");
                let (keeps, covers) = (work.keeps, work.covers);
                if work.error.is_none() && matches!(work.task, Task::Flush) {
                    self.stable.flushed(covers);
                }
                if keeps {
                    self.unlock(number, effects);
                }
                self.end(number, effects);
            }
        }
    }

    /// Gives a work's blocks free; who waited for them goes on.
    fn unlock(&mut self, number: u64, effects: &mut Vec<Effect>) {
        if self.works.at(number).is_none_or(|work| work.lock().is_none()) {
            return;
        }
        let mut granted = std::mem::take(&mut self.granted);
        self.locks.release(number, &mut granted);
        for next in granted.drain(..) {
            self.start(next, effects);
        }
        self.granted = granted;
    }

    pub(crate) fn flush(&mut self, number: u64) {
        let work = self.works.at_mut(number).expect("it is in work");
        work.stage = Stage::Flushing;
        work.covers = self.stable.so_far();
        let request = match work.task {
            Task::Seal { .. } => replica::Request::Seal,
            // One that ends a change tells of that change alone: it cannot speak for others.
            _ => replica::Request::Flush { reported: matches!(work.task, Task::Flush) },
        };
        self.send(number, Role::Flush, request);
    }

    /// A work is over.
    fn end(&mut self, number: u64, effects: &mut Vec<Effect>) {
        let is_going = self.life != Life::Open || self.is_closing();
        let work = self.works.at_mut(number).expect("it is in work");
        if work.put_off && !is_going {
            let source = work.source;
            self.shelve(number, source);
            self.admit(effects);
            self.advance_flatten(effects);
            return;
        }
        let mut work = self.works.remove(number).expect("it is in work");
        self.bytes -= work.bytes();
        self.shelf.ended(&work);
        if work.put_off {
            work.error = Some(self.error_of_the_end());
        }
        // Once the map has no such snapshot the disks may take it for one that never was.
        let lost_base = matches!(work.task, Task::Difference { base, .. } if !self.is_base(base));
        let result = match work.error.take() {
            _ if lost_base => Err(Error::UnknownBase),
            None => Ok(work.completion()),
            Some(error) => Err(error),
        };
        match work.id {
            Some(id) => self.complete(id, result, effects),
            None => match work.task {
                Task::Shrink => self.shrink_ended(result, effects),
                Task::Seal { .. } => self.seal_ended(result, effects),
                Task::Flatten { .. } => self.copy_ended(number, result, effects),
                Task::FlattenFlush => self.flatten_flushed(result, effects),
                _ => {}
            },
        }
        self.admit(effects);
        self.advance_flatten(effects);
    }

    pub(crate) fn complete(
        &mut self,
        id: RequestId,
        result: Result<Completion, Error>,
        effects: &mut Vec<Effect>,
    ) {
        self.completed += 1;
        effects.push(Effect::Complete { id, result });
    }

    /// Does what the coordinator wants until it wants nothing more.
    pub(crate) fn drive(&mut self, effects: &mut Vec<Effect>) {
        self.carry_out(effects);
        loop {
            if self.sources.len() == 0 {
                // Nothing is asked.
            } else if self.life == Life::Fenced || self.is_closing() {
                self.give_up_sources(effects);
                self.carry_out(effects);
                continue;
            } else if self.flatten.has_copied_all() {
                self.ask_disks_instead();
                self.carry_out(effects);
                continue;
            }
            if !self.tend_shelf(effects) {
                break;
            }
            self.carry_out(effects);
        }
        self.pump_sources(effects);
        self.advance_closing(effects);
    }

    fn carry_out(&mut self, effects: &mut Vec<Effect>) {
        while !self.scratch.is_empty() {
            let mut batch = std::mem::replace(&mut self.scratch, std::mem::take(&mut self.spare));
            for effect in batch.drain(..) {
                match effect {
                    replica::Effect::Member { member, token, request } => {
                        effects.push(Effect::Member { member, token, request });
                    }
                    replica::Effect::Done { token, result } => {
                        self.handle_piece(token, result, effects);
                    }
                    replica::Effect::Lost => self.repeat_changes(),
                    replica::Effect::Opened => self.opened(effects),
                    replica::Effect::Fenced => self.fenced(effects),
                }
            }
            self.spare = batch;
            if self.switch.is_draining() {
                self.advance_switch(effects);
            }
        }
    }

    /// Parts of changes under way may be gone: these start once more, under their locks.
    fn repeat_changes(&mut self) {
        let numbers: Vec<u64> = self.works.iter().map(|(number, _)| number).collect();
        for number in numbers {
            let work = self.works.at_mut(number).expect("listed just now");
            if work.rewind() && !work.queued {
                work.queued = true;
                self.runnable.push_back(number);
            }
        }
        self.copies_lost();
        self.pump();
    }

    fn opened(&mut self, effects: &mut Vec<Effect>) {
        self.life = Life::Open;
        effects.push(Effect::Opened(Ok(())));
        self.advance_switch(effects);
        self.advance_stable(effects);
        self.advance_flatten(effects);
        self.advance_shrink(effects);
        self.admit(effects);
    }

    fn fenced(&mut self, effects: &mut Vec<Effect>) {
        let opening = self.life == Life::Opening;
        self.life = Life::Fenced;
        effects.push(match opening {
            true => Effect::Opened(Err(Error::Fenced)),
            false => Effect::Fenced,
        });
        self.abandon_switch();
        self.admit(effects);
    }

    fn handle_tick(&mut self, effects: &mut Vec<Effect>) {
        self.coordinator.handle(self.now, replica::Event::Tick, &mut self.scratch);
        self.advance_shrink(effects);
        self.advance_switch(effects);
        self.advance_stable(effects);
        self.advance_flatten(effects);
        let Some(closing) = &mut self.closing else { return };
        if self.life == Life::Closed || closing.look_at > self.now {
            return;
        }
        closing.look_at = self.now + Duration::from_secs(1);
        if self.coordinator.is_stalled() {
            self.give_up(effects);
        }
    }
}

/// Zeros for one piece of data.
fn zeros_of(zeros: &mut Option<Payload>) -> Payload {
    let blocks = MEMBER_REQUEST_BLOCKS_MAX as usize;
    zeros.get_or_insert_with(|| Payload::zeroed(blocks * BLOCK_SIZE)).clone()
}

/// What an operation turns into, and whether it ends with a flush.
fn task(operation: Operation) -> (Task, bool) {
    match operation {
        Operation::Read => (Task::Read { first: Vec::new(), more: Vec::new() }, false),
        Operation::Write { buffer, fua } => {
            (Task::Write { buffer: Some(buffer), payload: None }, fua)
        }
        Operation::Discard { fua } => (Task::Discard, fua),
        Operation::WriteZeroes { may_unmap, fast_only: _, fua } => {
            (Task::WriteZeroes { may_unmap, head: None, tail: None }, fua)
        }
        Operation::Flush => (Task::Flush, false),
        Operation::Status => (Task::Status { runs: Vec::new(), count: 0 }, false),
        Operation::Difference { base } => {
            (Task::Difference { base, runs: Vec::new(), count: 0 }, false)
        }
        Operation::Prefetch => (Task::Prefetch, false),
    }
}

/// What an operation on nothing brings.
fn nothing(operation: &Operation) -> Completion {
    match operation {
        Operation::Read => Completion::Data(Vec::new()),
        Operation::Status => Completion::Status(Vec::new()),
        Operation::Difference { .. } => Completion::Difference(Vec::new()),
        _ => Completion::Done,
    }
}

fn translate(error: replica::Error) -> Error {
    match error {
        replica::Error::NoSpace => Error::NoSpace,
        replica::Error::Corrupt { key, block } => {
            let object = u64::from(key.index) * OBJECT_SIZE as u64;
            Error::Corrupt { offset: object + u64::from(block) * BLOCK_SIZE as u64 }
        }
        replica::Error::Fenced => Error::Fenced,
        replica::Error::Io(what) => Error::Io(what),
    }
}
