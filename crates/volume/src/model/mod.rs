//! A session against a model: a register per sector, and a disk that answers in any order, is
//! busy, full, damaged, dies and comes back with or without what was not flushed.
//!
//! The model knows the changes of each sector in the order in which their requests came. A read
//! must find the last change before it that is certain, or a later one whose outcome is unknown:
//! it failed, or was not flushed when power failed. What a read has found stays found.

mod cases;
mod disk;
mod layer_cases;
mod layers;
mod register;
mod seal_cases;
mod source;
mod source_cases;
mod stable_cases;
mod tests;

use crate::{Completion, Effect, Error, Event, Operation, Request, RequestId, Session, View};
use cluster::{Answer, Command, Durability, Map, State};
use disk::{FakeDisk, Faults, Random};
use proto::{
    BLOCK_SIZE, Buffer, ClusterId, DiskId, Duration, Generation, Incarnation, LayerId, LineageId,
    MemberError, MemberReply, MemberRequest, MemberToken, NodeId, Payload, Stamp, Time, VolumeId,
};
use register::Register;
use source::FakeSource;
use std::collections::BTreeMap;
use std::sync::Arc;

const SECTOR: u64 = 512;
/// What waits for sources may hold so much for each request, where their number is limited: less
/// than long ones take.
const SHARE_BYTES: usize = 8 * BLOCK_SIZE;
const READER: View = View::Head { read_only: true };
const NODE: NodeId = NodeId(2);
const DISK: DiskId = DiskId(3);

/// Everything around one session.
struct World {
    random: Random,
    now: Time,
    state: State,
    volume: VolumeId,
    generation: Generation,
    disk: FakeDisk,
    source: FakeSource,
    /// What the disk may do in this run.
    faults: Faults,
    session: Session,
    /// What the session knows of the cluster.
    map: Arc<Map>,
    register: Register,
    /// The snapshots of all volumes.
    snaps: Vec<layers::Snap>,
    /// Sessions reported the end of a flatten.
    flattened: u64,
    /// Volumes lie on another layer since.
    shortened: u64,
    /// Requests that have not ended, with their number in the register.
    open: BTreeMap<RequestId, Open>,
    /// Writes under way whose answers the session still hears, by token.
    writes: BTreeMap<MemberToken, ((LineageId, u32), Stamp)>,
    next: u64,
    opened: Option<Result<(), Error>>,
    closed: bool,
    /// The session is closed over requests that nobody waits for any more.
    abandoned: bool,
    fenced: bool,
    /// Acknowledged writes were lost, and no flush has said so yet.
    unreported: bool,
    completed: u64,
    /// How many requests may wait for sources and hold a place, if that is not as always.
    share: Option<usize>,
    /// Reports of opened layers, and of promises that were taken, get lost.
    deaf: bool,
    /// Reports of promises that were lost.
    unheard: usize,
    /// What is acknowledged is promised to be stable.
    ack: bool,
    trace: bool,
}

/// A request that has not ended.
struct Open {
    /// The requests before it, in order of arrival.
    place: usize,
    /// What must come of it, if that is an error known before.
    error: Option<Error>,
    what: What,
}

enum What {
    Read { first: u64, sectors: u64, losses: u64 },
    Change { operation: usize, fua: bool },
    Flush { step: u64 },
    Status { first: u64, sectors: u64 },
    Other,
}

impl World {
    fn new(seed: u64, bytes: u64, faults: Faults) -> World {
        let mut state = State::default();
        let mut apply = |command| state.apply(&command).expect("a good command");
        apply(Command::CreateCluster { cluster: ClusterId(1), partition_bits: 4, unix_s: 0 });
        apply(Command::AddNode { node: NODE, name: "alpha".into() });
        let disk = FakeDisk::new(faults);
        apply(Command::OpenDisk { disk: DISK, node: NODE, incarnation: disk.incarnation });
        let create = Command::CreateVolume { name: "vm".into(), bytes, unix_s: 0 };
        let Answer::VolumeCreated { volume } = apply(create) else { panic!("created") };
        let (now, map) = (Time(1), state.map());
        // Replaced by the first attachment.
        let session =
            Session::open(now, volume, Generation(0), READER, map.clone(), &mut Vec::new());
        let mut world = World {
            random: Random(seed),
            now,
            state,
            volume,
            generation: Generation(0),
            disk,
            source: FakeSource::default(),
            faults,
            session,
            map,
            register: Register::new(bytes / SECTOR),
            snaps: Vec::new(),
            flattened: 0,
            shortened: 0,
            open: BTreeMap::new(),
            writes: BTreeMap::new(),
            next: 0,
            opened: None,
            closed: false,
            abandoned: false,
            fenced: false,
            unreported: false,
            completed: 0,
            share: None,
            deaf: false,
            unheard: 0,
            ack: false,
            trace: std::env::var("TRACE").is_ok(),
        };
        world.attach(false);
        world
    }

    /// Attaches the volume; whoever had it lost it.
    fn attach(&mut self, read_only: bool) {
        self.detach();
        let (volume, holder) = (self.volume, "test".to_string());
        let attach = Command::Attach { volume, node: NODE, holder, read_only, unix_s: 0 };
        let answer = self.state.apply(&attach).expect("it is free");
        let Answer::Attached { generation } = answer else { panic!("attached") };
        self.generation = generation;
        self.open_session(View::Head { read_only });
    }

    /// Acknowledgements of the volume promise from now on that what was changed is stable.
    fn promise(&mut self) {
        let (volume, durability) = (self.volume, Durability::Ack);
        self.state.apply(&Command::SetDurability { volume, durability }).expect("it exists");
        self.tell_map();
        self.ack = true;
    }

    fn detach(&mut self) {
        if self.generation != Generation(0) {
            let generation = self.generation;
            let detach = Command::Detach { volume: self.volume, generation };
            self.state.apply(&detach).expect("it is attached");
        }
        self.generation = Generation(0);
    }

    fn open_session(&mut self, view: View) {
        let (volume, generation) = (self.volume, self.generation);
        self.map = self.state.map();
        self.opened = None;
        self.closed = false;
        self.writes.clear();
        // What the session before asked for is answered to nobody.
        self.source.questions.clear();
        let mut effects = Vec::new();
        let map = Arc::clone(&self.map);
        self.session = Session::open(self.now, volume, generation, view, map, &mut effects);
        if let Some(requests) = self.share {
            let bytes = requests * SHARE_BYTES;
            let most = &mut self.session.shelf.most;
            (most.requests, most.bytes) = (requests, bytes);
        }
        self.take(effects);
    }

    /// A session that nobody uses, to stand in while the real one is elsewhere.
    fn session_to_spare(&self) -> Session {
        let map = Arc::clone(&self.map);
        Session::open(self.now, self.volume, Generation(0), READER, map, &mut Vec::new())
    }

    fn tell(&mut self, event: Event) {
        if self.trace {
            println!("{} <- {event:?}", self.now.0);
        }
        let mut effects = Vec::new();
        self.session.handle(self.now, event, &mut effects);
        self.take(effects);
        self.session.check();
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            if self.trace {
                println!("{} -> {effect:?}", self.now.0);
            }
            match effect {
                Effect::Member { member, token, request } => {
                    assert_eq!(member.disk, DISK);
                    if let MemberRequest::Write(write) = &request {
                        let place = (write.lineage, write.key.index);
                        self.writes.insert(token, (place, write.stamp));
                    }
                    self.disk.questions.push_back((token, request));
                }
                Effect::Opened(result) => assert!(self.opened.replace(result).is_none()),
                Effect::Complete { id, result } => self.complete(id, result),
                Effect::ShrinkDone { discarded } => {
                    let (first, end) = (discarded.above / SECTOR, discarded.end / SECTOR);
                    self.register.discarded(first, end - first);
                    self.unsealed(|snap| snap.register.discarded(first, end - first));
                    let (volume, generation) = (self.volume, self.generation);
                    let done = Command::ShrinkDone { volume, generation, discarded };
                    self.state.apply(&done).expect("the session writes");
                }
                Effect::LayerOpened { layer } => self.layer_opened(layer),
                Effect::Flattened => self.report_flattened(),
                Effect::Shortened { parent } => self.report_shortened(parent),
                Effect::Stable { .. } if self.deaf => self.unheard += 1,
                Effect::Stable { since } => {
                    let (volume, generation) = (self.volume, self.generation);
                    let taken = Command::StableFromNow { volume, generation, since };
                    self.state.apply(&taken).expect("the session writes");
                }
                Effect::Fenced => self.fenced = true,
                Effect::Closed => self.closed = true,
                Effect::Source { token, layer, offset, length, kind_only } => {
                    self.ask_source(token, layer, (offset, length), kind_only);
                }
            }
        }
    }

    // -- the disk --

    /// One answer reaches the session.
    fn deliver(&mut self) {
        let Some((token, result)) = self.disk.deliver(&mut self.random) else { return };
        let write = self.writes.remove(&token);
        // Once the disk is out of service, or another opening of it than the one known, the session
        // hears nothing more of what it asked: that acknowledges nothing.
        match (&result, write) {
            (Ok(MemberReply::Written { incarnation }), Some((key, stamp)))
                if *incarnation == self.listed() =>
            {
                self.disk.acknowledged(key, stamp);
            }
            (Err(MemberError::Retired), _) => self.writes.clear(),
            (
                Ok(
                    MemberReply::Written { incarnation }
                    | MemberReply::Flushed { incarnation }
                    | MemberReply::Fenced { incarnation, .. },
                ),
                _,
            ) if *incarnation != self.listed() => self.writes.clear(),
            _ => {}
        }
        self.tell(Event::Member { disk: DISK, token, result });
    }

    /// Which opening of the disk the session knows of.
    fn listed(&self) -> Incarnation {
        let configuration = self.map.configurations().next().expect("there are partitions");
        configuration.current[0].incarnation
    }

    fn die(&mut self, power: bool) {
        if self.trace {
            println!("{} dies, power failure: {power}", self.now.0);
        }
        let before = self.disk.losses;
        self.disk.die(power, &mut self.random);
        // What was acknowledged to the guest was stable.
        self.unreported |= self.disk.losses > before && !self.ack;
        if power {
            self.register.power_failed();
            self.unsealed(|snap| {
                snap.register.power_failed();
                snap.power_failed = true;
            });
        }
    }

    fn reopen(&mut self) {
        self.disk.reopen();
        let incarnation = self.disk.incarnation;
        let open = Command::OpenDisk { disk: DISK, node: NODE, incarnation };
        self.state.apply(&open).expect("a new incarnation");
    }

    fn tell_map(&mut self) {
        let before = self.listed();
        self.map = self.state.map();
        if self.listed() != before {
            // Answers to what was asked of the opening before are not heard.
            self.writes.clear();
        }
        self.tell(Event::Map(Arc::clone(&self.map)));
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now + span;
        if self.session.deadline().is_some_and(|at| at <= self.now) {
            self.tell(Event::Tick);
            // Else its driver would do nothing but tell it the time.
            let next = self.session.deadline();
            assert!(next.is_none_or(|at| at > self.now), "time came and still has to come");
        }
    }

    /// Lets everything go on until nothing is open, or it takes too long.
    fn settle(&mut self) {
        for _ in 0..200_000 {
            if self.open.is_empty() && self.opened.is_some() {
                return;
            }
            self.advance();
        }
        panic!("it does not end: {:?}", self.session.waiting(self.now));
    }

    fn advance(&mut self) {
        if self.disk.dead {
            self.reopen();
        }
        if !Arc::ptr_eq(&self.map, &self.state.map()) {
            self.tell_map();
        }
        self.disk.step(&mut self.random);
        self.deliver();
        self.deliver_source();
        self.pass(Duration::from_millis(1));
    }

    /// Closes the session in good order.
    fn close(&mut self) {
        self.settle();
        self.tell(Event::Close);
        for _ in 0..10_000 {
            if self.closed {
                self.register.flushed(self.register.step());
                return;
            }
            self.advance();
        }
        panic!("it does not close");
    }

    // -- requests --

    fn sectors(&self) -> u64 {
        self.map.volume(self.volume).expect("it exists").served_bytes() / SECTOR
    }

    fn submit(&mut self, offset: u64, length: u64, operation: Operation, open: Open) {
        self.next += 1;
        let id = RequestId(self.next);
        self.open.insert(id, open);
        self.tell(Event::Request(Request { id, offset, length, operation }));
    }

    fn read(&mut self, first: u64, sectors: u64) {
        let losses = self.register.failures();
        let what = What::Read { first, sectors, losses };
        self.request(first, sectors, Operation::Read, what, None);
    }

    fn write(&mut self, first: u64, sectors: u64, fua: bool) {
        let (start, end) = (first / 8 * 8, (first + sectors).div_ceil(8) * 8);
        let mut buffer = Buffer::zeroed(((end - start) * SECTOR) as usize);
        // What the guest does not write may be anything.
        buffer.as_mut_slice().fill(0xee);
        let tag = self.register.next_tag();
        let from = ((first - start) * SECTOR) as usize;
        let target = &mut buffer.as_mut_slice()[from..from + (sectors * SECTOR) as usize];
        target.chunks_mut(4).for_each(|word| word.copy_from_slice(&tag.to_le_bytes()));
        let operation = Operation::Write { buffer, fua };
        self.change(first, sectors, first, sectors, tag, operation, fua, None);
    }

    fn discard(&mut self, first: u64, sectors: u64, fua: bool) {
        let (start, end) = (first.div_ceil(8) * 8, (first + sectors) / 8 * 8);
        let count = end.saturating_sub(start);
        let operation = Operation::Discard { fua };
        self.change(first, sectors, start, count, 0, operation, fua, None);
    }

    fn zero(&mut self, first: u64, sectors: u64, may_unmap: bool, fast_only: bool, fua: bool) {
        let aligned = first.is_multiple_of(8) && sectors.is_multiple_of(8);
        let slow = fast_only && !(may_unmap && aligned);
        let operation = Operation::WriteZeroes { may_unmap, fast_only, fua };
        let error = slow.then_some(Error::NotFast);
        self.change(first, sectors, first, sectors, 0, operation, fua, error);
    }

    /// Submits a change of `first ..+ sectors` that effects `start ..+ count`.
    #[expect(clippy::too_many_arguments)]
    fn change(
        &mut self,
        first: u64,
        sectors: u64,
        start: u64,
        count: u64,
        tag: u32,
        operation: Operation,
        fua: bool,
        error: Option<Error>,
    ) {
        let fails = error.is_some() || first + sectors > self.sectors();
        let count = if fails { 0 } else { count };
        let fua = fua || self.ack;
        let number = self.register.begin(start, count, tag, fua);
        self.unsealed(|snap| {
            snap.register.begin(start, count, tag, fua);
        });
        // What changes nothing has nothing that could be lost.
        let what = What::Change { operation: number, fua: fua && count > 0 };
        self.request(first, sectors, operation, what, error);
    }

    fn flush(&mut self) {
        let what = What::Flush { step: self.register.step() };
        let open = Open { place: self.register.place(), error: None, what };
        self.submit(0, 0, Operation::Flush, open);
    }

    fn request(
        &mut self,
        first: u64,
        sectors: u64,
        operation: Operation,
        what: What,
        error: Option<Error>,
    ) {
        let outside = first + sectors > self.sectors();
        let error = if outside { Some(Error::OutOfRange) } else { error };
        let open = Open { place: self.register.place(), error, what };
        self.submit(first * SECTOR, sectors * SECTOR, operation, open);
    }

    fn complete(&mut self, id: RequestId, result: Result<Completion, Error>) {
        let open = self.open.remove(&id).expect("a request completes once");
        self.completed += 1;
        if let Some(wanted) = open.error {
            let error = result.expect_err("it must fail");
            assert!(error == wanted || self.fenced, "{error:?} instead of {wanted:?}");
            if let What::Change { operation, .. } = open.what {
                self.register.failed(operation);
                self.knowing(operation, |register| register.failed(operation));
            }
            return;
        }
        match (open.what, result) {
            (What::Read { first, sectors, losses }, Ok(Completion::Data(content))) => {
                let bytes = Payload::joined(&content);
                assert_eq!(bytes.len() as u64, sectors * SECTOR);
                let sure = losses == self.register.failures();
                for (place, sector) in bytes.chunks(SECTOR as usize).enumerate() {
                    let tag = tag_of(sector);
                    self.register.found(first + place as u64, tag, open.place, sure);
                }
            }
            (What::Change { operation, .. }, Ok(Completion::Done)) => {
                self.register.done(operation);
                self.knowing(operation, |register| register.done(operation));
            }
            (What::Flush { step }, Ok(Completion::Done)) => {
                assert!(!self.unreported, "writes were lost and a flush succeeded");
                self.register.flushed(step);
            }
            (What::Status { first, sectors }, Ok(Completion::Status(extents))) => {
                let covered: u64 = extents.iter().map(|extent| extent.length).sum();
                assert!(covered > 0 && covered <= sectors * SECTOR, "{first}+{sectors}");
                assert!(extents.windows(2).all(|pair| pair[0].state != pair[1].state));
            }
            (What::Other, Ok(_)) => {}
            (what, Err(error)) => self.check_error(what, error),
            (_, Ok(_)) => panic!("a completion of another kind"),
        }
    }

    fn check_error(&mut self, what: What, error: Error) {
        let faults = self.faults;
        match &error {
            Error::NoSpace => {
                assert!(faults.no_space > 0 && matches!(what, What::Change { .. }));
            }
            Error::Corrupt { .. } => {
                assert!(faults.corrupt > 0 && !matches!(what, What::Flush { .. }));
            }
            Error::Fenced => assert!(self.fenced || self.opened == Some(Err(Error::Fenced))),
            Error::Io(_) if self.abandoned => {}
            Error::Io(_) => {
                assert!(!self.ack, "nothing that the guest counts on was lost: {error}");
                let is_flush = matches!(what, What::Flush { .. });
                let flushes = is_flush || matches!(what, What::Change { fua: true, .. });
                assert!(self.register.failures() > 0 && flushes, "{error}");
                // A change that failed tells nothing of others.
                if is_flush {
                    self.unreported = false;
                    self.register.loss_reported();
                }
            }
            _ => panic!("unexpected: {error}"),
        }
        if let What::Change { operation, .. } = what {
            self.register.failed(operation);
            self.knowing(operation, |register| register.failed(operation));
        }
    }
}

/// The tag a sector is full of.
fn tag_of(sector: &[u8]) -> u32 {
    let first = sector[..4].try_into().expect("a sector has words");
    assert!(sector[4..] == sector[..sector.len() - 4], "a torn sector");
    u32::from_le_bytes(first)
}

const _: () = assert!(BLOCK_SIZE == 4096);
