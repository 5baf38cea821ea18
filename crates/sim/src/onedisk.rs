//! A store on its simulated medium, driven by hand: the smallest thing that can crash and recover.

use crate::{
    disk::{Image, SimDisk},
    random::Random,
};
use proto::{
    ClusterId, DiskError, DiskId, DiskOp, DiskToken, Duration, MemberError, MemberReply,
    MemberRequest, MemberToken, NodeId, Time,
};
use std::collections::{BTreeMap, VecDeque};
use store::{
    Effect, Event, Format, FormatOptions, Identity, MediumKind, Notice, OpenError, Opened, Options,
    ScrubRate, Store,
};

/// The answer to a member request.
pub type Answer = Result<MemberReply, MemberError>;

/// Whose disk every simulated disk is.
pub const IDENTITY: Identity =
    Identity { cluster: ClusterId(0xc1), node: NodeId(0x0d), disk: DiskId(0xd1) };

/// How a disk is made and opened.
#[derive(Clone, Debug)]
pub struct Setup {
    /// A file or a device.
    pub kind: MediumKind,
    /// How much space the medium has in all, in bytes.
    pub capacity: u64,
    /// Where the disk may end at most, in bytes.
    pub limit_bytes: Option<u64>,
    /// Length of the log, in bytes.
    pub log_bytes: u64,
    /// Memory for map pages, in bytes.
    pub map_cache_bytes: usize,
    /// How fast scrub reads, in bytes per second; 0 is off.
    pub scrub_bytes_per_s: u64,
    /// Whose disk it is.
    pub identity: Identity,
}

impl Default for Setup {
    /// A small file.
    fn default() -> Setup {
        Setup {
            kind: MediumKind::File,
            capacity: 64 << 20,
            limit_bytes: Some(32 << 20),
            log_bytes: 2 * store::LOG_BYTES_MIN,
            map_cache_bytes: proto::limits::MAP_CACHE_BYTES_MIN,
            scrub_bytes_per_s: 0,
            identity: IDENTITY,
        }
    }
}

impl Setup {
    /// A blank medium.
    pub fn blank(&self) -> Image {
        match self.kind {
            MediumKind::File => Image::empty(),
            MediumKind::Device => Image::device(self.capacity),
        }
    }

    /// A medium that has just been made a disk.
    pub fn formatted(&self) -> Result<Image, OpenError> {
        let blank = self.blank();
        let options = FormatOptions {
            identity: self.identity,
            kind: self.kind,
            medium_bytes: blank.length(),
            limit_bytes: self.limit_bytes,
            log_bytes: Some(self.log_bytes),
            created_unix_s: 1_700_000_000,
        };
        let mut disk = SimDisk::new(blank, self.capacity, Random::new(0));
        let mut operations = Vec::new();
        let mut format = Format::new(options, &mut operations)?;
        loop {
            operations.drain(..).for_each(|op| disk.submit(Time(0), op));
            let token = disk.in_flight().next().expect("format asks until it is done");
            let done = disk.complete(token);
            if let Some(outcome) = format.handle(done, &mut operations) {
                assert!(operations.is_empty(), "format asks for nothing after its end");
                assert!(outcome.is_err() || !disk.is_unsynced(), "a formatted disk is durable");
                return outcome.map(|()| disk.image().clone());
            }
        }
    }

    /// How a medium of this length is opened.
    pub fn options(&self, medium_bytes: u64) -> Options {
        Options {
            identity: self.identity.into(),
            limit_bytes: self.limit_bytes,
            map_cache_bytes: self.map_cache_bytes,
            scrub: ScrubRate(self.scrub_bytes_per_s),
            ..Options::new(self.kind, medium_bytes)
        }
    }
}

/// In which order operations in flight end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// As they were asked for.
    FirstFirst,
    /// The latest first.
    LastFirst,
    /// By this seed.
    Seeded(u64),
}

/// A store on its medium. Time stands still unless it is moved.
pub struct OneDisk {
    setup: Setup,
    store: Store,
    disk: SimDisk,
    now: Time,
    order: Order,
    random: Random,
    next_token: u64,
    effects: Vec<Effect>,
    answers: BTreeMap<MemberToken, Answer>,
    opened: Option<Result<Opened, OpenError>>,
    closed: bool,
    notices: VecDeque<Notice>,
}

impl OneDisk {
    /// Begins to open the disk.
    pub fn start(setup: &Setup, disk: SimDisk, order: Order) -> OneDisk {
        let now = Time(1_000_000_000);
        let mut effects = Vec::new();
        let store = Store::open(now, setup.options(disk.length()), &mut effects);
        let seed = if let Order::Seeded(seed) = order { seed } else { 0 };
        let mut this = OneDisk {
            setup: setup.clone(),
            store,
            disk,
            now,
            order,
            random: Random::new(seed),
            next_token: 0,
            effects,
            answers: BTreeMap::new(),
            opened: None,
            closed: false,
            notices: VecDeque::new(),
        };
        this.perform();
        this
    }

    /// Opens a medium and waits until it serves.
    pub fn open(setup: &Setup, image: Image, order: Order) -> Result<OneDisk, OpenError> {
        let disk = SimDisk::new(image, setup.capacity, Random::new(7));
        OneDisk::open_disk(setup, disk, order)
    }

    /// Opens a medium that may have faults and waits until it serves.
    pub fn open_disk(setup: &Setup, disk: SimDisk, order: Order) -> Result<OneDisk, OpenError> {
        let mut this = OneDisk::start(setup, disk, order);
        while this.opened.is_none() {
            assert!(this.step() || this.pass_time(), "opening ends: {:?}", this.store.status());
        }
        match this.opened.take() {
            Some(Err(error)) => Err(error),
            outcome => {
                this.opened = outcome;
                Ok(this)
            }
        }
    }

    /// What the disk said of itself when it was opened.
    pub fn opened(&self) -> Option<&Result<Opened, OpenError>> {
        self.opened.as_ref()
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The medium.
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// The medium, to be given faults.
    pub fn disk_mut(&mut self) -> &mut SimDisk {
        &mut self.disk
    }

    /// The medium alone: the store is dropped, as if its process had died.
    pub fn into_disk(self) -> SimDisk {
        self.disk
    }

    /// Notices since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.notices.drain(..).collect()
    }

    /// Asks without waiting. Needs [`OneDisk::round`] before anything happens.
    pub fn ask(&mut self, request: MemberRequest) -> MemberToken {
        let token = MemberToken(self.next_token);
        self.next_token += 1;
        self.event(Event::Member { token, request });
        token
    }

    /// Hands an event to the store.
    pub fn event(&mut self, event: Event) {
        self.store.handle(self.now, event, &mut self.effects);
        self.perform();
    }

    /// Ends a round: what was asked for goes to the medium.
    pub fn round(&mut self) {
        self.store.poll(self.now, &mut self.effects);
        self.perform();
    }

    /// The answer to a request, once there is one.
    pub fn answer(&mut self, token: MemberToken) -> Option<Answer> {
        self.answers.remove(&token)
    }

    /// Asks and waits for the answer; asks again while the disk is too busy to take it.
    pub fn call(&mut self, request: MemberRequest) -> Answer {
        loop {
            let token = self.ask(request.clone());
            let answer = self.wait(token);
            if answer.as_ref().err() != Some(&MemberError::Busy) {
                return answer;
            }
            let moved = self.step() || self.pass_time();
            assert!(moved, "busy for ever: {:?}", self.store.status());
        }
    }

    /// Waits for an answer, passing time where nothing else is left to do.
    ///
    /// # Panics
    /// If it never comes: a bug of the store.
    pub fn wait(&mut self, token: MemberToken) -> Answer {
        self.round();
        loop {
            if let Some(answer) = self.answer(token) {
                return answer;
            }
            let moved = self.step() || self.pass_time();
            assert!(moved, "the answer never comes: {:?}", self.store.status());
        }
    }

    /// Lets one operation of the medium end. False: none is in flight.
    pub fn step(&mut self) -> bool {
        let Some(token) = self.choose() else { return false };
        let done = self.disk.complete(token);
        self.event(Event::Disk(done));
        self.round();
        true
    }

    /// Moves the clock to when the store wants to be called. False: it does not want to.
    pub fn pass_time(&mut self) -> bool {
        let Some(deadline) = self.store.deadline() else { return false };
        self.now = self.now.max(deadline);
        self.round();
        true
    }

    /// The same, if that is not after `end`.
    pub fn pass_time_until(&mut self, end: Time) -> bool {
        self.store.deadline().is_some_and(|deadline| deadline <= end) && self.pass_time()
    }

    /// What time it is.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Lets everything in flight end, without passing time.
    pub fn settle(&mut self) {
        self.round();
        while self.step() {}
    }

    /// Passes this much time, doing all that there is to do.
    pub fn idle(&mut self, span: Duration) {
        let end = self.now + span;
        self.settle();
        while let Some(deadline) = self.store.deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    /// Closes the store in order and returns its medium.
    pub fn close(mut self) -> SimDisk {
        self.event(Event::Close);
        self.round();
        while !self.closed {
            let moved = self.step() || self.pass_time();
            assert!(moved, "closing ends: {:?}", self.store.status());
        }
        self.disk
    }

    /// How the disk is set up.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    fn choose(&mut self) -> Option<DiskToken> {
        let tokens: Vec<DiskToken> = self.disk.in_flight().collect();
        match self.order {
            _ if tokens.is_empty() => None,
            Order::FirstFirst => tokens.first().copied(),
            Order::LastFirst => tokens.last().copied(),
            Order::Seeded(_) => Some(*self.random.pick(&tokens)),
        }
    }

    fn perform(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Disk(op) => self.submit(op),
                Effect::Member { token, result } => {
                    let before = self.answers.insert(token, result);
                    assert!(before.is_none(), "a request is answered once");
                }
                Effect::Opened(outcome) => {
                    assert!(self.opened.is_none(), "opening ends once");
                    self.opened = Some(outcome);
                }
                Effect::AgreedNoted => panic!("nothing was told to be agreed"),
                Effect::Closed => self.closed = true,
                Effect::Notice(notice) => self.notices.push_back(notice),
                Effect::MendEnded { .. } => {}
            }
        }
    }

    fn submit(&mut self, op: DiskOp) {
        self.disk.submit(self.now, op);
    }
}

/// The image as the offline check wants it.
pub struct Reader<'a>(pub &'a Image);

impl store::check::ReadMedium for Reader<'_> {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.0.read(offset, buffer);
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.0.length()
    }
}
