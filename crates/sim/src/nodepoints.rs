//! Every crash point of small workloads on a whole node: guest's request, session, store and
//! agreed log together, each medium crashing in its own way.

use crate::{
    crashpoints::{MIXTURES, Tally, check_offline},
    disk::{CrashState, Image, Mixture},
    ledger::Crash,
    node::{Life, Media, Medium, Said, SimNode},
    onedisk::Setup,
    oracle::{Action, OperationId, Oracle},
    random::mix,
};
use engine::{
    Client, ConnectionId, Input,
    admin::{AdminReply, AdminRequest, AdminToken},
};
use proto::{BLOCK_SIZE, Buffer, Duration, Time};
use std::collections::{BTreeMap, BTreeSet};
use volume::{Answer, Completion, Operation, Request, RequestId};

/// What workloads consist of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Act {
    /// Two whole blocks.
    AlignedWrite,
    /// Sectors from the middle of one block to the middle of the next.
    UnalignedWrite,
    /// Two whole blocks, one of them that of the aligned write.
    OverlappingWrite,
    /// A block and a half.
    Discard,
    /// Zeros over a block and some sectors.
    Zero,
    /// Smaller if it is large, larger if it is small.
    Resize,
    /// The volume goes; another one of the same name comes.
    Delete,
    /// What is acknowledged becomes durable.
    Flush,
    /// The volume goes into the trash and comes back.
    Trash,
}

/// The eight operations of the first issue.
pub const ACTS: [Act; 8] = [
    Act::AlignedWrite,
    Act::UnalignedWrite,
    Act::OverlappingWrite,
    Act::Discard,
    Act::Zero,
    Act::Resize,
    Act::Delete,
    Act::Flush,
];

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Sizes the volume changes between, in bytes.
const LARGE: u64 = 8 * BLOCK;
const SMALL: u64 = 2 * BLOCK;
const NAME: &str = "volume";
/// How long the trash keeps it, in seconds.
const KEEP_S: u64 = 24 * 3600;
const CONNECTION: ConnectionId = ConnectionId(1);

/// All workloads of one up to `longest` operations.
pub fn workloads(longest: usize) -> Vec<Vec<Act>> {
    let mut all: Vec<Vec<Act>> = vec![Vec::new()];
    let mut from = 0;
    for _ in 0..longest {
        let end = all.len();
        for at in from..end {
            for act in ACTS {
                let mut longer = all[at].clone();
                longer.push(act);
                all.push(longer);
            }
        }
        from = end;
    }
    all.split_off(1)
}

/// A node with one volume that has some data, stopped in order.
pub struct Base {
    setup: Setup,
    disk: Image,
    journal: Image,
    oracle: Oracle,
    volume: u64,
}

/// A node being driven, and what is known of it from outside.
struct Bench {
    node: SimNode,
    now: Time,
    oracle: Oracle,
    volume: u64,
    next_request: u64,
    next_token: u64,
    answers: BTreeMap<u64, Answer>,
    completions: BTreeMap<RequestId, Result<Completion, volume::Error>>,
    replies: BTreeMap<AdminToken, Result<AdminReply, String>>,
    /// Of a change of the volume itself that is under way: the sizes it may have afterwards, or
    /// whether it may be gone.
    sizes: BTreeSet<u64>,
    may_be_gone: bool,
    /// Whether it may be in the trash: then it comes back with all it had.
    may_be_in_trash: bool,
}

impl Base {
    /// Makes one.
    pub fn new(setup: Setup) -> Base {
        let media = Media::blank(&setup, &mut crate::random::Random::new(1));
        let now = Time(1_000_000_000);
        let mut bench = Bench::of(SimNode::start(now, &setup, media), Oracle::new(), 0);
        bench.await_ready().expect("a node can be founded");
        bench.create().expect("a volume can be created");
        bench.open().expect("it can be attached");
        for act in [Act::AlignedWrite, Act::UnalignedWrite, Act::Flush] {
            bench.act(act).expect("nothing fails");
        }
        bench.hang_up();
        bench.idle(Duration::from_secs(1));
        bench.node.input(bench.now, Input::Stop);
        bench.node.poll(bench.now);
        bench.run_until(|bench| *bench.node.life() == Life::Stopped).expect("it stops");
        let Bench { node, oracle, volume, .. } = bench;
        let media = node.into_media();
        let [disk, journal] =
            [&media.disk, &media.journal].map(|medium| medium.crashed(&CrashState::New));
        Base { setup, disk, journal, oracle, volume }
    }

    fn start(&self) -> Result<Bench, String> {
        let media = Media::of(&self.setup, self.disk.clone(), self.journal.clone());
        let node = SimNode::start(Time(5_000_000_000), &self.setup, media);
        let mut bench = Bench::of(node, self.oracle.clone(), self.volume);
        bench.await_ready()?;
        bench.oracle.killed();
        bench.open()?;
        Ok(bench)
    }
}

/// Explores workloads from one base. Remembers which states it has seen.
pub struct Explorer<'a> {
    base: &'a Base,
    seen: BTreeSet<u64>,
    /// What was tried so far.
    pub tally: Tally,
}

impl<'a> Explorer<'a> {
    /// An explorer that has seen nothing.
    pub fn new(base: &'a Base) -> Explorer<'a> {
        Explorer { base, seen: BTreeSet::new(), tally: Tally::default() }
    }

    /// Tries every crash point of the last operation of a workload (those of the operations before
    /// it belong to the shorter workloads). The error says which one went wrong and how.
    pub fn explore(&mut self, workload: &[Act]) -> Result<(), String> {
        self.tally.workloads += 1;
        let mut bench = self.base.start().map_err(|error| format!("the base: {error}"))?;
        let (last, before) = workload.split_last().expect("workloads are not empty");
        for act in before {
            bench.act(*act).map_err(|error| format!("{workload:?}: {error}"))?;
        }
        let context = format!("{workload:?}");
        let _loud = Loud(&context);
        let mut steps = bench.begin(*last)?;
        let mut point = 0;
        let idle_until = bench.now + IDLE;
        loop {
            while bench.advance_act(&mut steps)? {}
            self.crash_everywhere(&bench, &context, point)?;
            point += 1;
            if !bench.step() && !bench.pass_time(idle_until) {
                break;
            }
        }
        if steps.is_empty() { Ok(()) } else { Err(format!("{context}: never answered")) }
    }

    fn crash_everywhere(&mut self, bench: &Bench, context: &str, point: u32) -> Result<(), String> {
        self.tally.points += 1;
        let media = bench.node.media();
        for crash in [Crash::Power, Crash::Kill] {
            for (disk_state, journal_state) in states(media, self.tally.points) {
                self.tally.states += 1;
                let left = |medium: Medium, state| match crash {
                    Crash::Power => media.get(medium).crashed(&state),
                    Crash::Kill => media.get(medium).killed(&state),
                };
                let disk = left(Medium::Disk, disk_state);
                let journal = left(Medium::Journal, journal_state);
                let key = mix(disk.key()) ^ journal.key() ^ mix(bench.key() ^ crash as u64);
                if !self.seen.insert(key) {
                    continue;
                }
                self.tally.recoveries += 1;
                let context = format!(
                    "{context}, crash point {point}, {crash:?}, disk {disk_state:?}, journal \
                     {journal_state:?}"
                );
                let _loud = Loud(&context);
                bench
                    .recover(&self.base.setup, disk, journal, crash, key)
                    .map_err(|error| format!("{context}: {error}"))?;
            }
        }
        Ok(())
    }
}

/// Every combination of what the two media may be left as.
pub(crate) fn states(media: &Media, point: u64) -> Vec<(CrashState, CrashState)> {
    let (old, new) = (CrashState::Old, CrashState::New);
    let mut states = vec![(old, old), (new, new), (old, new), (new, old)];
    for unit in media.disk.units() {
        states.push((CrashState::OneOld(unit), new));
        states.push((CrashState::OneNew(unit), old));
    }
    for unit in media.journal.units() {
        states.push((new, CrashState::OneOld(unit)));
        states.push((old, CrashState::OneNew(unit)));
    }
    let mixture = |n: u64| CrashState::Mixture(Mixture { seed: mix(point ^ (n << 32)) });
    states.extend((0..MIXTURES).map(|n| (mixture(2 * n), mixture(2 * n + 1))));
    states
}

/// How long a node may go on working by itself after the last answer.
const IDLE: Duration = Duration::from_millis(400);

/// Says where we were when something panics.
struct Loud<'a>(&'a str);

impl Drop for Loud<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("at {}", self.0);
        }
    }
}

fn undelete() -> AdminRequest {
    AdminRequest::TrashUndelete { which: NAME.into(), new_name: None }
}

/// One thing to ask for and to wait for; an operation is one or a few of them.
#[derive(Clone, Copy, Debug)]
enum Step {
    HangUp,
    DeleteVolume,
    Deleting(AdminToken),
    TrashVolume,
    Trashing(AdminToken),
    Undelete,
    Undeleting(AdminToken),
    CreateVolume,
    Creating(AdminToken),
    Open,
    Opening,
    Resizing(AdminToken, u64),
    Requesting(RequestId, OperationId),
}

impl Bench {
    fn of(node: SimNode, oracle: Oracle, volume: u64) -> Bench {
        Bench {
            node,
            now: Time(5_000_000_000),
            oracle,
            volume,
            next_request: 0,
            next_token: 0,
            answers: BTreeMap::new(),
            completions: BTreeMap::new(),
            replies: BTreeMap::new(),
            sizes: BTreeSet::new(),
            may_be_gone: false,
            may_be_in_trash: false,
        }
    }

    /// Equal for equal expectations.
    fn key(&self) -> u64 {
        let sizes = self.sizes.iter().fold(0, |key, size| key ^ mix(size + 1));
        let may_be = u64::from(self.may_be_gone) + 2 * u64::from(self.may_be_in_trash);
        self.oracle.key() ^ sizes ^ mix(may_be)
    }

    /// Runs one operation to its end.
    fn act(&mut self, act: Act) -> Result<(), String> {
        let mut steps = self.begin(act)?;
        while !steps.is_empty() {
            if !self.advance_act(&mut steps)? && !self.step() && !self.pass_time(Time(u64::MAX)) {
                return Err(format!("{act:?} never ends"));
            }
        }
        Ok(())
    }

    /// Begins an operation; what is left to do of it is returned, last thing first.
    fn begin(&mut self, act: Act) -> Result<Vec<Step>, String> {
        let bytes = self.oracle.bytes(self.volume);
        let (action, offset, length) = match act {
            Act::AlignedWrite => (Action::Write, 0, 2 * BLOCK),
            Act::UnalignedWrite => (Action::Write, 1536, BLOCK),
            Act::OverlappingWrite => (Action::Write, BLOCK, 2 * BLOCK),
            Act::Discard => (Action::Discard, BLOCK / 2, BLOCK + BLOCK / 2),
            Act::Zero => (Action::Zero, 1024, BLOCK),
            Act::Flush => (Action::Flush, 0, 0),
            Act::Resize => {
                let wanted = if bytes == LARGE { SMALL } else { LARGE };
                self.sizes = BTreeSet::from([bytes, wanted]);
                let request = AdminRequest::VolumeResize {
                    name: NAME.into(),
                    bytes: wanted,
                    allow_shrink: true,
                };
                let token = self.administer(request);
                return Ok(vec![Step::Resizing(token, wanted)]);
            }
            Act::Delete => {
                return Ok(vec![Step::Open, Step::CreateVolume, Step::DeleteVolume, Step::HangUp]);
            }
            Act::Trash => {
                return Ok(vec![Step::Open, Step::Undelete, Step::TrashVolume, Step::HangUp]);
            }
        };
        let length = length.min(bytes - offset);
        let booked = self.oracle.invoke(self.volume, 0, action, offset, length);
        let operation = match action {
            Action::Write => {
                let start = offset - offset % BLOCK;
                let end = (offset + length).next_multiple_of(BLOCK);
                let mut buffer = Buffer::zeroed((end - start) as usize);
                let inside = (offset - start) as usize;
                let target = &mut buffer.as_mut_slice()[inside..inside + length as usize];
                self.oracle.fill(booked, target);
                Operation::Write { buffer, fua: false }
            }
            Action::Discard => Operation::Discard { fua: false },
            Action::Zero => {
                Operation::WriteZeroes { may_unmap: true, fast_only: false, fua: false }
            }
            Action::Flush => Operation::Flush,
            Action::Read => unreachable!("no operation of a workload reads"),
        };
        let id = self.request(offset, length, operation);
        Ok(vec![Step::Requesting(id, booked)])
    }

    /// Takes the next part of an operation if it can be taken. False: it waits.
    fn advance_act(&mut self, steps: &mut Vec<Step>) -> Result<bool, String> {
        self.listen();
        let Some(step) = steps.pop() else { return Ok(false) };
        let next = match step {
            Step::HangUp => {
                self.hang_up();
                None
            }
            Step::DeleteVolume => {
                self.may_be_gone = true;
                Some(Step::Deleting(self.administer(AdminRequest::VolumeDelete {
                    name: NAME.into(),
                    with_snapshots: false,
                    keep_s: Some(0),
                })))
            }
            Step::Deleting(token) => match self.replies.remove(&token) {
                None => {
                    steps.push(step);
                    return Ok(false);
                }
                // The volume may still be on its way out of somebody's hands: ask again.
                Some(Err(_)) => {
                    steps.push(Step::DeleteVolume);
                    return Ok(false);
                }
                Some(Ok(_)) => {
                    self.oracle.remove(self.volume);
                    None
                }
            },
            Step::TrashVolume => {
                self.may_be_in_trash = true;
                let (name, with_snapshots, keep_s) = (NAME.into(), false, Some(KEEP_S));
                let request = AdminRequest::VolumeDelete { name, with_snapshots, keep_s };
                Some(Step::Trashing(self.administer(request)))
            }
            Step::Trashing(token) => match self.replies.remove(&token) {
                None => {
                    steps.push(step);
                    return Ok(false);
                }
                // As above.
                Some(Err(_)) => {
                    steps.push(Step::TrashVolume);
                    return Ok(false);
                }
                Some(Ok(_)) => None,
            },
            Step::Undelete => Some(Step::Undeleting(self.administer(undelete()))),
            Step::Undeleting(token) => match self.replies.remove(&token) {
                None => Some(step),
                Some(Ok(AdminReply::Volume(report))) if report.volume.0 == self.volume => {
                    self.may_be_in_trash = false;
                    None
                }
                Some(other) => return Err(format!("undeleting was answered {other:?}")),
            },
            Step::CreateVolume => {
                let request = AdminRequest::VolumeCreate { name: NAME.into(), bytes: LARGE };
                Some(Step::Creating(self.administer(request)))
            }
            Step::Creating(token) => match self.replies.remove(&token) {
                None => Some(step),
                Some(Ok(AdminReply::Volume(report))) => {
                    self.volume = report.volume.0;
                    self.may_be_gone = false;
                    self.oracle.create(self.volume, LARGE);
                    None
                }
                Some(other) => return Err(format!("creating was answered {other:?}")),
            },
            Step::Open => {
                self.ask_open();
                Some(Step::Opening)
            }
            Step::Opening => match self.answers.remove(&CONNECTION.0) {
                None => Some(step),
                Some(Answer::Opened { .. }) => {
                    self.oracle.attached(self.volume);
                    None
                }
                Some(other) => return Err(format!("opening was answered {other:?}")),
            },
            Step::Resizing(token, bytes) => match self.replies.remove(&token) {
                None => Some(step),
                Some(Ok(_)) => {
                    self.oracle.resize(self.volume, bytes);
                    self.sizes.clear();
                    None
                }
                Some(Err(sentence)) => return Err(format!("resizing failed: {sentence}")),
            },
            Step::Requesting(id, booked) => match self.completions.remove(&id) {
                None => Some(step),
                Some(Ok(Completion::Done)) => {
                    self.oracle.ok(booked, false);
                    None
                }
                Some(other) => return Err(format!("a request was answered {other:?}")),
            },
        };
        let waits = matches!(
            (&step, &next),
            (Step::Creating(_) | Step::Undeleting(_), Some(_))
                | (Step::Opening, Some(_))
                | (Step::Resizing(..), Some(_))
                | (Step::Requesting(..), Some(_))
        );
        steps.extend(next);
        Ok(!waits)
    }

    /// Starts a node on what a crash left and verifies it.
    fn recover(
        &self,
        setup: &Setup,
        disk: Image,
        journal: Image,
        crash: Crash,
        key: u64,
    ) -> Result<(), String> {
        let mut oracle = self.oracle.clone();
        match crash {
            Crash::Power => oracle.power_cut(),
            Crash::Kill => oracle.killed(),
        }
        let node = SimNode::start(self.now, setup, Media::of(setup, disk, journal));
        let mut after = Bench::of(node, oracle, self.volume);
        after.await_ready()?;
        let mut volumes = after.volumes()?;
        if volumes.is_empty() && self.may_be_in_trash {
            after.consult(undelete())?;
            volumes = after.volumes()?;
        }
        match volumes.as_slice() {
            [] if self.may_be_gone => {}
            [report] => {
                self.compare(report, &mut after)?;
                after.open()?;
                after.read_all()?;
                after.compare_space()?;
            }
            other => return Err(format!("there are the volumes {other:?}")),
        }
        after.node.engine().check();
        if key % 8 < 2 {
            after.empty(!volumes.is_empty())?;
        }
        check_offline(&after.node.media().disk)
    }

    fn volumes(&mut self) -> Result<Vec<engine::admin::VolumeReport>, String> {
        match self.consult(AdminRequest::VolumeList)? {
            AdminReply::Volumes(volumes) => Ok(volumes),
            other => Err(format!("the list of volumes is {other:?}")),
        }
    }

    /// Compares name, id and size with what was promised, and tells the oracle.
    fn compare(
        &self,
        report: &engine::admin::VolumeReport,
        after: &mut Bench,
    ) -> Result<(), String> {
        let id = report.volume.0;
        if self.oracle.volumes().all(|known| known != id) {
            // The one that was being created when it happened.
            if !self.may_be_gone || report.bytes != LARGE {
                return Err(format!("a volume came from nowhere: {report:?}"));
            }
            after.oracle.create(id, LARGE);
        }
        after.volume = id;
        let known = after.oracle.bytes(id);
        if report.bytes != known && !self.sizes.contains(&report.bytes) {
            return Err(format!("the volume has {} bytes, not {known}", report.bytes));
        }
        after.oracle.resize(id, report.bytes);
        Ok(())
    }

    /// Compares the space in use with what it must be.
    fn compare_space(&mut self) -> Result<(), String> {
        let request = AdminRequest::VolumeInfo { name: NAME.into() };
        let AdminReply::Volume(report) = self.consult(request)? else {
            return Err("the report of a volume is none".into());
        };
        let (used, owed) = (report.used_bytes / BLOCK, self.oracle.data_blocks(self.volume));
        if owed.contains(&used) { Ok(()) } else { Err(format!("{used} blocks used, not {owed:?}")) }
    }

    /// Deletes the volume: all space must come back.
    fn empty(&mut self, exists: bool) -> Result<(), String> {
        if exists {
            self.hang_up();
            self.idle(Duration::from_millis(1));
            self.consult(AdminRequest::VolumeDelete {
                name: NAME.into(),
                with_snapshots: false,
                keep_s: Some(0),
            })?;
        }
        self.idle(Duration::from_secs(5));
        match self.consult(AdminRequest::DiskList)? {
            AdminReply::Disks(disks) if disks.iter().all(|disk| disk.data_bytes == 0) => Ok(()),
            other => Err(format!("with the volume deleted, space is still used: {other:?}")),
        }
    }

    fn create(&mut self) -> Result<(), String> {
        let request = AdminRequest::VolumeCreate { name: NAME.into(), bytes: LARGE };
        let AdminReply::Volume(report) = self.consult(request)? else {
            return Err("the report of a volume is none".into());
        };
        self.volume = report.volume.0;
        self.oracle.create(self.volume, LARGE);
        Ok(())
    }

    fn ask_open(&mut self) {
        let client = Client { identity: "guest".into(), description: "guest".into() };
        let input = Input::Open { connection: CONNECTION, client, name: NAME.into() };
        self.node.input(self.now, input);
        self.node.poll(self.now);
    }

    fn open(&mut self) -> Result<(), String> {
        self.ask_open();
        self.run_until(|bench| bench.answers.contains_key(&CONNECTION.0))?;
        match self.answers.remove(&CONNECTION.0) {
            Some(Answer::Opened { bytes, .. }) if bytes == self.oracle.bytes(self.volume) => {
                self.oracle.attached(self.volume);
                Ok(())
            }
            other => Err(format!("opening was answered {other:?}")),
        }
    }

    fn hang_up(&mut self) {
        self.node.input(self.now, Input::Close { connection: CONNECTION });
        self.node.poll(self.now);
    }

    fn read_all(&mut self) -> Result<(), String> {
        let length = self.oracle.bytes(self.volume);
        let booked = self.oracle.invoke(self.volume, 0, Action::Read, 0, length);
        let id = self.request(0, length, Operation::Read);
        self.run_until(|bench| bench.completions.contains_key(&id))?;
        match self.completions.remove(&id) {
            Some(Ok(Completion::Data(payloads))) => {
                let bytes: Vec<u8> =
                    payloads.iter().flat_map(|p| p.as_slice().iter().copied()).collect();
                self.oracle.ok_read(booked, &bytes).map_err(|wrong| wrong.to_string())
            }
            other => Err(format!("reading was answered {other:?}")),
        }
    }

    fn request(&mut self, offset: u64, length: u64, operation: Operation) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        let request = Request { id, offset, length, operation };
        self.node.input(self.now, Input::Request { connection: CONNECTION, request });
        self.node.poll(self.now);
        id
    }

    fn administer(&mut self, request: AdminRequest) -> AdminToken {
        self.next_token += 1;
        let token = AdminToken(self.next_token);
        self.node.input(self.now, Input::Admin { token, request });
        self.node.poll(self.now);
        token
    }

    fn consult(&mut self, request: AdminRequest) -> Result<AdminReply, String> {
        let token = self.administer(request);
        self.run_until(|bench| bench.replies.contains_key(&token))?;
        self.replies.remove(&token).expect("just seen")
    }

    fn await_ready(&mut self) -> Result<(), String> {
        self.run_until(|bench| *bench.node.life() == Life::Ready)
    }

    fn run_until(&mut self, done: impl Fn(&Bench) -> bool) -> Result<(), String> {
        loop {
            self.listen();
            if done(self) {
                return Ok(());
            }
            if let Life::Failed(sentence) = self.node.life() {
                return Err(format!("the node failed: {sentence}"));
            }
            if !self.step() && !self.pass_time(Time(u64::MAX)) {
                return Err("what is waited for never comes".into());
            }
        }
    }

    fn step(&mut self) -> bool {
        self.node.step(self.now)
    }

    fn pass_time(&mut self, end: Time) -> bool {
        let Some(deadline) = self.node.engine().deadline().filter(|at| *at <= end) else {
            return false;
        };
        self.now = self.now.max(deadline);
        self.node.input(self.now, Input::Tick);
        self.node.poll(self.now);
        true
    }

    fn idle(&mut self, span: Duration) {
        let end = self.now + span;
        while self.step() || self.pass_time(end) {}
        self.now = end;
    }

    fn listen(&mut self) {
        for said in self.node.take_said() {
            match said {
                Said::Answer { connection, answer } => {
                    self.answers.insert(connection.0, answer);
                }
                Said::Complete { id, result, .. } => {
                    let before = self.completions.insert(id, result);
                    assert!(before.is_none(), "a request is answered once");
                }
                Said::Admin { token, result } => {
                    self.replies.insert(token, (*result).map_err(|error| error.sentence));
                }
                _ => {}
            }
        }
    }
}
