//! Every crash point around a slot of a schedule: whatever a crash leaves and whatever the clock
//! says at the start after it, no slot has two snapshots, and the present one has one.

use crate::{
    crashpoints::{Tally, check_offline},
    disk::{CrashState, Image},
    ledger::Crash,
    node::{Life, Media, Medium, Said, SimNode},
    nodepoints::states,
    onedisk::Setup,
    random::{Random, mix},
};
use engine::{
    Client, ConnectionId, Input,
    admin::{AdminReply, AdminRequest, AdminToken},
};
use proto::{BLOCK_SIZE, Buffer, Duration, Time};
use std::collections::{BTreeMap, BTreeSet};
use volume::{Answer, Completion, Operation, Request, RequestId};

const NAME: &str = "volume";
const SCHEDULE: &str = "m";
const EVERY_S: u64 = 60;
const KEEP: usize = 2;
const CONNECTION: ConnectionId = ConnectionId(1);
/// The first second of a slot: the one in which the schedule is set.
const FIRST_UNIX_S: u64 = 1_700_000_040;
/// The slot, counted from that one, around whose start the node crashes. By then there is a
/// snapshot that has to go for it.
const CRASHED: u64 = 3;
/// How long a node is given to do what it does by itself.
const IDLE: Duration = Duration::from_secs(5);

/// Whether somebody has the volume, or the node itself has to settle its snapshots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder {
    /// A guest that writes.
    Guest,
    /// Nobody.
    Nobody,
}

/// What the clock says at the start after the crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clock {
    /// A little later in the same slot.
    Right,
    /// One slot before.
    Back,
    /// The next slot.
    Next,
    /// A year later.
    Far,
}

const CLOCKS: [Clock; 4] = [Clock::Right, Clock::Back, Clock::Next, Clock::Far];

impl Clock {
    /// The slot it is in, counted from the first one.
    fn slot(self) -> u64 {
        match self {
            Clock::Right => CRASHED,
            Clock::Back => CRASHED - 1,
            Clock::Next => CRASHED + 1,
            Clock::Far => CRASHED + 365 * 86_400 / EVERY_S,
        }
    }
}

/// Tries every crash point from just before a slot begins until all is done. The error says which
/// one went wrong and how.
pub fn explore(setup: &Setup, holder: Holder) -> Result<Tally, String> {
    let mut bench = Bench::before_the_slot(setup, holder)?;
    let mut tally = Tally { workloads: 1, ..Tally::default() };
    let mut seen = BTreeSet::new();
    let end = bench.time_of(CRASHED) + IDLE;
    let mut point = 0;
    loop {
        tally.points += 1;
        for crash in [Crash::Power, Crash::Kill] {
            for (disk, journal) in states(bench.node.media(), tally.points) {
                tally.states += 1;
                let media = bench.node.media();
                let left = |medium: Medium, state: &CrashState| match crash {
                    Crash::Power => media.get(medium).crashed(state),
                    Crash::Kill => media.get(medium).killed(state),
                };
                let images = (left(Medium::Disk, &disk), left(Medium::Journal, &journal));
                if !seen.insert(mix(images.0.key()) ^ images.1.key()) {
                    continue;
                }
                for clock in CLOCKS {
                    tally.recoveries += 1;
                    recover(setup, images.clone(), clock).map_err(|error| {
                        format!(
                            "{holder:?}, crash point {point}, {crash:?}, disk {disk:?}, journal \
                             {journal:?}, clock {clock:?}: {error}"
                        )
                    })?;
                }
            }
        }
        point += 1;
        if !bench.node.step(bench.now) && !bench.pass_time(end) {
            break;
        }
    }
    let snapshots = bench.snapshots()?;
    let (found, wanted) = (slots(&snapshots)?, vec![CRASHED - 1, CRASHED]);
    if found == wanted { Ok(tally) } else { Err(format!("without a crash: {found:?}")) }
}

/// Starts a node on what a crash left, and looks at what it does until the slot after the next.
fn recover(setup: &Setup, (disk, journal): (Image, Image), clock: Clock) -> Result<(), String> {
    let unix_s = FIRST_UNIX_S + clock.slot() * EVERY_S + 7;
    let mut after = Bench::start(setup, unix_s, Media::of(setup, disk, journal))?;
    after.idle(after.now + IDLE);
    let found = slots(&after.snapshots()?)?;
    let newest = match clock {
        // Unless it was taken before the crash, this slot's time is over.
        Clock::Back => found.last().copied().filter(|slot| *slot + 1 >= CRASHED),
        _ => Some(clock.slot()),
    };
    if found.last().copied() != newest || found.len() != KEEP {
        return Err(format!("at the start there are snapshots of the slots {found:?}"));
    }
    let newest = newest.expect("compared just now");
    for slot in &found {
        // What was stable when the slot began shows in it.
        let (expected, byte) = ((*slot).min(CRASHED) as u8, after.look(*slot)?);
        if byte != expected {
            return Err(format!("the snapshot of slot {slot} shows {byte}, not {expected}"));
        }
    }
    let later = newest.max(clock.slot()) + 1;
    after.idle(after.time_of(later) + IDLE);
    let found = slots(&after.snapshots()?)?;
    if found != [newest, later] {
        return Err(format!("in the next slot there are snapshots of the slots {found:?}"));
    }
    after.node.engine().check();
    check_offline(&after.node.media().disk)
}

/// The slots that these snapshots are of, counted from the first one.
fn slots(tags: &[String]) -> Result<Vec<u64>, String> {
    let mut slots = Vec::new();
    for tag in tags {
        let mut near = 0..2 * 365 * 86_400 / EVERY_S;
        // One with a suffix is the second one of its slot.
        let slot = near.find(|slot| *tag == tag_of(*slot));
        slots.push(slot.ok_or_else(|| format!("there is a snapshot {tag} among {tags:?}"))?);
    }
    Ok(slots)
}

fn tag_of(slot: u64) -> String {
    format!("{SCHEDULE}-{}", proto::calendar::stamp(FIRST_UNIX_S + slot * EVERY_S))
}

struct Bench {
    node: SimNode,
    now: Time,
    started: Time,
    unix_s: u64,
    next: u64,
    answers: BTreeMap<u64, Answer>,
    completions: BTreeMap<RequestId, Result<Completion, volume::Error>>,
    replies: BTreeMap<AdminToken, Result<AdminReply, String>>,
}

impl Bench {
    fn start(setup: &Setup, unix_s: u64, media: Media) -> Result<Bench, String> {
        let now = Time(5_000_000_000);
        let mut bench = Bench {
            node: SimNode::start_at(now, unix_s, setup, media),
            now,
            started: now,
            unix_s,
            next: 0,
            answers: BTreeMap::new(),
            completions: BTreeMap::new(),
            replies: BTreeMap::new(),
        };
        bench.run_until(|bench| *bench.node.life() == Life::Ready)?;
        Ok(bench)
    }

    /// A node with a schedule and two of its snapshots, a moment before the slot begins.
    fn before_the_slot(setup: &Setup, holder: Holder) -> Result<Bench, String> {
        let media = Media::blank(setup, &mut Random::new(1));
        let mut bench = Bench::start(setup, FIRST_UNIX_S + 1, media)?;
        let bytes = 8 * BLOCK_SIZE as u64;
        bench.consult(AdminRequest::VolumeCreate { name: NAME.into(), bytes })?;
        bench.consult(AdminRequest::ScheduleSet {
            name: NAME.into(),
            schedule: SCHEDULE.into(),
            every_s: EVERY_S as u32,
            keep: KEEP as u32,
        })?;
        for slot in 1..=CRASHED {
            bench.open(NAME)?;
            bench.write(slot as u8)?;
            if slot < CRASHED || holder == Holder::Nobody {
                bench.close();
            }
            let begins = bench.time_of(slot);
            if slot == CRASHED {
                bench.idle(Time(begins.0 - 1));
            } else {
                bench.idle(begins + IDLE);
            }
        }
        Ok(bench)
    }

    /// When a slot begins.
    fn time_of(&self, slot: u64) -> Time {
        self.started + Duration::from_secs(FIRST_UNIX_S + slot * EVERY_S - self.unix_s)
    }

    fn snapshots(&mut self) -> Result<Vec<String>, String> {
        let request = AdminRequest::SnapshotList { name: NAME.into(), reclaimable: false };
        match self.consult(request)? {
            AdminReply::Snapshots(all) => match all.iter().find(|snapshot| snapshot.sealing) {
                None => Ok(all.into_iter().map(|snapshot| snapshot.tag).collect()),
                Some(sealing) => Err(format!("{} is not settled", sealing.tag)),
            },
            other => Err(format!("the list of snapshots is {other:?}")),
        }
    }

    /// The first byte of the snapshot of a slot.
    fn look(&mut self, slot: u64) -> Result<u8, String> {
        self.open(&format!("{NAME}@{}", tag_of(slot)))?;
        let completion = self.request(512, Operation::Read)?;
        self.close();
        self.run_idle();
        match completion {
            Completion::Data(payloads) => Ok(payloads[0].as_slice()[0]),
            other => Err(format!("reading was answered {other:?}")),
        }
    }

    fn write(&mut self, byte: u8) -> Result<(), String> {
        let mut buffer = Buffer::zeroed(BLOCK_SIZE);
        buffer.as_mut_slice().fill(byte);
        let operation = Operation::Write { buffer, fua: true };
        self.request(BLOCK_SIZE as u64, operation).map(|_| ())
    }

    fn request(&mut self, length: u64, operation: Operation) -> Result<Completion, String> {
        self.next += 1;
        let id = RequestId(self.next);
        let request = Request { id, offset: 0, length, operation };
        self.tell(Input::Request { connection: CONNECTION, request });
        self.run_until(|bench| bench.completions.contains_key(&id))?;
        let result = self.completions.remove(&id).expect("just seen");
        result.map_err(|error| error.to_string())
    }

    fn open(&mut self, name: &str) -> Result<(), String> {
        let client = Client { identity: "guest".into(), description: "guest".into() };
        self.tell(Input::Open { connection: CONNECTION, client, name: name.into() });
        self.run_until(|bench| bench.answers.contains_key(&CONNECTION.0))?;
        match self.answers.remove(&CONNECTION.0) {
            Some(Answer::Opened { .. }) => Ok(()),
            other => Err(format!("opening {name} was answered {other:?}")),
        }
    }

    fn close(&mut self) {
        self.tell(Input::Close { connection: CONNECTION });
    }

    fn consult(&mut self, request: AdminRequest) -> Result<AdminReply, String> {
        self.next += 1;
        let token = AdminToken(self.next);
        self.tell(Input::Admin { token, request });
        self.run_until(|bench| bench.replies.contains_key(&token))?;
        self.replies.remove(&token).expect("just seen")
    }

    fn tell(&mut self, input: Input) {
        self.node.input(self.now, input);
        self.node.poll(self.now);
    }

    fn run_until(&mut self, done: impl Fn(&Bench) -> bool) -> Result<(), String> {
        loop {
            self.listen()?;
            if done(self) {
                return Ok(());
            }
            if let Life::Failed(sentence) = self.node.life() {
                return Err(format!("the node failed: {sentence}"));
            }
            if !self.node.step(self.now) && !self.pass_time(Time(u64::MAX)) {
                return Err("what is waited for never comes".into());
            }
        }
    }

    /// Lets everything end that does so without time.
    fn run_idle(&mut self) {
        while self.node.step(self.now) {}
    }

    fn idle(&mut self, end: Time) {
        while self.node.step(self.now) || self.pass_time(end) {}
        self.now = self.now.max(end);
    }

    fn pass_time(&mut self, end: Time) -> bool {
        let Some(deadline) = self.node.engine().deadline().filter(|at| *at <= end) else {
            return false;
        };
        self.now = self.now.max(deadline);
        self.tell(Input::Tick);
        true
    }

    fn listen(&mut self) -> Result<(), String> {
        for said in self.node.take_said() {
            match said {
                Said::Answer { connection, answer } => {
                    self.answers.insert(connection.0, answer);
                }
                Said::Complete { id, result, .. } => {
                    self.completions.insert(id, result);
                }
                Said::Admin { token, result } => {
                    self.replies.insert(token, (*result).map_err(|error| error.sentence));
                }
                Said::Notice { level, sentence } if level != engine::NoticeLevel::Info => {
                    return Err(format!("it says: {sentence}"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
