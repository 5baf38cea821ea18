//! Every crash point around a slot of a schedule: whatever a crash leaves and whatever the clock
//! says at the start after it, no slot has two snapshots, and the present one has one.

use crate::{
    crashpoints::{Tally, check_offline},
    disk::{CrashState, Image},
    driver::{Driver, Pace},
    ledger::Crash,
    node::{Media, Medium, SimNode},
    nodepoints::states,
    onedisk::Setup,
    random::{Random, mix},
};
use engine::{
    ConnectionId, NoticeLevel,
    admin::{AdminReply, AdminRequest},
};
use proto::{BLOCK_SIZE, Buffer, Duration, Time};
use std::collections::BTreeSet;
use volume::{Answer, Operation};

const NAME: &str = "volume";
const SCHEDULE: &str = "m";
const EVERY_S: u64 = 60;
const KEEP: usize = 2;
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
            for (disk, journal) in states(bench.driver.node.media(), tally.points) {
                tally.states += 1;
                let media = bench.driver.node.media();
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
        if !bench.driver.proceed(end) {
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
    after.idle(after.driver.now + IDLE)?;
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
    after.idle(after.time_of(later) + IDLE)?;
    let found = slots(&after.snapshots()?)?;
    if found != [newest, later] {
        return Err(format!("in the next slot there are snapshots of the slots {found:?}"));
    }
    after.driver.node.engine().check();
    check_offline(&after.driver.node.media().disk)
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
    driver: Driver,
    started: Time,
    unix_s: u64,
}

impl Bench {
    fn start(setup: &Setup, unix_s: u64, media: Media) -> Result<Bench, String> {
        let started = Time(5_000_000_000);
        let node = SimNode::start_at(started, unix_s, setup, media);
        let mut bench =
            Bench { driver: Driver::of(node, started, Pace::OneByOne), started, unix_s };
        bench.driver.await_ready()?;
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
            let connection = bench.open(NAME)?;
            bench.write(connection, slot as u8)?;
            if slot < CRASHED || holder == Holder::Nobody {
                bench.driver.hang_up(connection);
            }
            let begins = bench.time_of(slot);
            let is_last = slot == CRASHED;
            bench.idle(if is_last { Time(begins.0 - 1) } else { begins + IDLE })?;
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
        let connection = self.open(&format!("{NAME}@{}", tag_of(slot)))?;
        let content = self.driver.read(connection, 0, 512)?;
        self.driver.hang_up(connection);
        // Everything ends that does so without time.
        while self.driver.step() {}
        Ok(content[0])
    }

    fn write(&mut self, connection: ConnectionId, byte: u8) -> Result<(), String> {
        let mut buffer = Buffer::zeroed(BLOCK_SIZE);
        buffer.as_mut_slice().fill(byte);
        let operation = Operation::Write { buffer, fua: true };
        self.driver.complete(connection, (0, BLOCK_SIZE as u64), operation).map(|_| ())
    }

    fn open(&mut self, name: &str) -> Result<ConnectionId, String> {
        match self.driver.open("guest", name)? {
            (connection, Answer::Opened { .. }) => Ok(connection),
            (_, other) => Err(format!("opening {name} was answered {other:?}")),
        }
    }

    fn consult(&mut self, request: AdminRequest) -> Result<AdminReply, String> {
        self.driver.consult(request).map_err(|error| error.sentence)
    }

    /// Lets everything happen until then; nothing may be amiss.
    fn idle(&mut self, end: Time) -> Result<(), String> {
        self.driver.idle(end);
        let mut notices = self.driver.notices.iter();
        match notices.find(|(level, _)| *level != NoticeLevel::Info) {
            Some((_, sentence)) => Err(format!("it says: {sentence}")),
            None => Ok(()),
        }
    }
}
