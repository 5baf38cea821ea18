//! A whole node in its world: guests, an administrator, faults, and one seed that decides all.

mod guest;
mod life;
mod mix;
mod office;
mod shelf;

pub use guest::{Guest, InFlight, Link, Outcome};
pub use mix::{FaultMix, GuestMix, Mix};

use crate::{
    disk::{CrashState, Effect, Fault, Mixture, OperationKind},
    node::{Happened, Life, Media, Said, SimNode},
    oracle::Oracle,
    random::Random,
    trace::Trace,
};
use engine::{Client, ConnectionId, Input};
use office::Errand;
use proto::{DiskError, Duration, Time};
use shelf::{Reader, Snapshot};
use std::collections::BTreeMap;
use volume::Answer;

/// What came of a run.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Hash of the trace.
    pub hash: u64,
    /// Lines of the trace.
    pub lines: u64,
    /// Requests that guests made.
    pub requests: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Snapshots taken, clones made, rollbacks, flattenings asked for, snapshots deleted.
    pub layers: [u64; 5],
    /// Reads of snapshots.
    pub snapshot_reads: u64,
    /// Kills, power cuts, stops, and restarts after a disk failed.
    pub crashes: [u64; 4],
    /// Simulated time.
    pub simulated: Duration,
}

/// A run. See the module.
pub struct World {
    seed: u64,
    mix: Mix,
    random: Random,
    trace: Trace,
    now: Time,
    node: SimNode,
    oracle: Oracle,
    guests: BTreeMap<u64, Guest>,
    /// The snapshots, by layer.
    snapshots: BTreeMap<u64, Snapshot>,
    /// Who reads snapshots, by connection.
    readers: BTreeMap<u64, Reader>,
    /// Sizes of all snapshots that ever were: some are kept, hidden, for others.
    sealed_bytes: u64,
    /// A snapshot that was taken and that the disks were too slow to seal in time.
    late: Option<Errand>,
    errand: Option<Errand>,
    next_name: u64,
    next_connection: u64,
    next_token: u64,
    /// A write or flush may have failed since the process was started: what was not flushed may
    /// be lost, and the disk needs a restart.
    doubtful: bool,
    /// Faults that may excuse an error have been injected since the process was started.
    excused: bool,
    summary: Summary,
}

/// Simulated time within which anything that was asked for must have happened, faults apart.
const PATIENCE: Duration = Duration::from_secs(120);

impl World {
    /// A run by this seed, with the mix that the seed draws.
    pub fn new(seed: u64, print: bool) -> World {
        let mut random = Random::new(seed);
        let mix = Mix::draw(&mut random);
        World::with_mix(seed, mix, print)
    }

    /// A run by this seed with a given mix.
    pub fn with_mix(seed: u64, mix: Mix, print: bool) -> World {
        let mut random = Random::new(seed ^ 0x5157_4152_4d21);
        let now = Time(1_000_000_000);
        let media = Media::blank(&mix.setup, &mut random);
        let mut trace = Trace::new(print);
        trace.line(now, format_args!("seed {seed}: {mix:?}"));
        let mut node = SimNode::start(now, &mix.setup, media);
        node.media_mut().disk.set_latency(mix.latency);
        World {
            seed,
            mix,
            random,
            trace,
            now,
            node,
            oracle: Oracle::new(),
            guests: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            readers: BTreeMap::new(),
            sealed_bytes: 0,
            late: None,
            errand: None,
            next_name: 0,
            next_connection: 0,
            next_token: 0,
            doubtful: false,
            excused: false,
            summary: Summary::default(),
        }
    }

    /// Runs it to its end. The error says what went wrong.
    pub fn run(mut self) -> Result<Summary, String> {
        let _loud = Loud(self.seed);
        let outcome = self.safety().and_then(|()| self.finish());
        self.summary.hash = self.trace.hash();
        self.summary.lines = self.trace.lines();
        self.summary.simulated = self.now.since(Time(1_000_000_000));
        outcome.map(|()| self.summary).map_err(|error| format!("seed {}: {error}", self.seed))
    }

    /// The phase in which everything may go wrong.
    fn safety(&mut self) -> Result<(), String> {
        self.await_ready()?;
        self.resync()?;
        for _ in 0..self.mix.steps {
            self.misfortune()?;
            if self.errand.is_none() && self.random.chance(self.mix.admin) {
                self.send_errand()?;
            }
            if self.guests.is_empty() && self.errand.is_none() {
                self.create_volume();
            }
            self.step()?;
        }
        Ok(())
    }

    /// Lets the next thing happen, be it by a guest or by the node.
    fn step(&mut self) -> Result<(), String> {
        let guest = self.guests.values().map(|guest| (guest.next_at, guest.volume)).min();
        let reader = self.readers.iter().map(|(number, reader)| (reader.next_at, *number)).min();
        let node = self.node.next_due();
        if let Some((at, number)) = reader
            && at < Time(u64::MAX)
            && guest.is_none_or(|(other, _)| at <= other)
            && node.is_none_or(|due| at <= due)
        {
            self.now = self.now.max(at);
            self.reader_acts(number);
            return self.listen();
        }
        match (guest, node) {
            (Some((at, volume)), due) if due.is_none_or(|due| at <= due) => {
                self.now = self.now.max(at);
                self.guest_acts(volume);
                self.listen()
            }
            (_, Some(due)) => {
                self.now = self.now.max(due);
                self.node_acts()
            }
            (_, None) => Err("nothing will ever happen again".into()),
        }
    }

    /// The node does the next thing that is due.
    fn node_acts(&mut self) -> Result<(), String> {
        match self.node.advance(self.now) {
            Some(Happened::Ended(medium, token, well)) => {
                let outcome = if well { "ended" } else { "failed" };
                self.trace.line(self.now, format_args!("{medium:?} {} {outcome}", token.0));
            }
            Some(Happened::Tick) => self.trace.line(self.now, format_args!("tick")),
            None => {}
        }
        // The daemon gathers what has come before it polls.
        let more = self.node.next_due().is_some_and(|due| due <= self.now);
        if !more || self.random.coin() {
            self.node.poll(self.now);
        }
        self.listen()
    }

    /// A guest does its next thing.
    fn guest_acts(&mut self, volume: u64) {
        let think = self.random.below(self.mix.think.as_nanos() as u64 + 1);
        let guest = self.guests.get_mut(&volume).expect("only guests that exist act");
        guest.next_at = self.now + Duration::from_nanos(think);
        if *self.node.life() != Life::Ready {
            guest.next_at = guest.next_at + Duration::from_millis(5);
            return;
        }
        match guest.link {
            Link::None => self.connect(volume),
            Link::Opening(_) => {}
            Link::Closing(connection) if guest.in_flight.is_empty() => {
                self.hang_up(volume, connection);
            }
            Link::Closing(_) => guest.next_at = guest.next_at + Duration::from_millis(1),
            Link::Open(connection) => {
                let goes = u64::from(self.mix.guest.reconnect);
                if goes > 0 && self.random.below(400) < goes {
                    self.hang_up(volume, connection);
                } else if guest.in_flight.len() < self.mix.depth {
                    self.guest_asks(volume, connection);
                }
            }
        }
    }

    fn guest_asks(&mut self, volume: u64, connection: ConnectionId) {
        let guest = self.guests.get_mut(&volume).expect("it acts");
        let Some(request) = guest.next(&self.mix.guest, &mut self.random, &mut self.oracle) else {
            return;
        };
        self.ask(connection, request);
    }

    fn ask(&mut self, connection: ConnectionId, request: volume::Request) {
        self.summary.requests += 1;
        self.trace.line(
            self.now,
            format_args!(
                "guest {} asks {}: {:?} {}+{}",
                connection.0, request.id.0, request.operation, request.offset, request.length
            ),
        );
        self.node.input(self.now, Input::Request { connection, request });
        if self.random.coin() {
            self.node.poll(self.now);
        }
    }

    /// A guest asks for its volume.
    fn connect(&mut self, volume: u64) {
        self.next_connection += 1;
        let connection = ConnectionId(self.next_connection);
        let guest = self.guests.get_mut(&volume).expect("it acts");
        guest.link = Link::Opening(connection);
        let identity = format!("guest of volume {volume}");
        let client = Client { description: identity.clone(), identity };
        let name = guest.name.clone();
        self.trace.line(self.now, format_args!("guest {} opens {name}", connection.0));
        self.node.input(self.now, Input::Open { connection, client, name });
        self.node.poll(self.now);
    }

    /// A guest goes away, whatever it has in flight.
    fn hang_up(&mut self, volume: u64, connection: ConnectionId) {
        let guest = self.guests.get_mut(&volume).expect("it acts");
        guest.forget();
        self.trace.line(self.now, format_args!("guest {} goes", connection.0));
        self.node.input(self.now, Input::Close { connection });
        self.node.poll(self.now);
    }

    /// Takes in all that the node said.
    fn listen(&mut self) -> Result<(), String> {
        for said in self.node.take_said() {
            match said {
                Said::Answer { connection, answer } => self.answered(connection, answer)?,
                Said::Complete { connection, id, result } => {
                    self.completed(connection, id, result)?;
                }
                Said::Resized { connection, bytes } => {
                    self.trace.line(self.now, format_args!("guest {} has {bytes}", connection.0));
                }
                Said::Disconnect { connection, reason } => {
                    self.trace.line(self.now, format_args!("guest {} out: {reason}", connection.0));
                    if !self.reader_disconnected(connection)
                        && let Some(guest) = self.guest_of(connection)
                    {
                        guest.link = Link::Closing(connection);
                    }
                }
                Said::Admin { token, result } => self.errand_answered(token, *result)?,
                Said::Notice { level, sentence } => {
                    self.trace.line(self.now, format_args!("notice {level:?}: {sentence}"));
                }
                other => unreachable!("the node keeps {other:?} to itself"),
            }
        }
        if let Life::Failed(sentence) = self.node.life()
            && !self.excused
        {
            return Err(format!("the node failed: {sentence}"));
        }
        Ok(())
    }

    fn guest_of(&mut self, connection: ConnectionId) -> Option<&mut Guest> {
        self.guests.values_mut().find(|guest| guest.connection() == Some(connection))
    }

    fn answered(&mut self, connection: ConnectionId, answer: Answer) -> Result<(), String> {
        self.trace.line(self.now, format_args!("guest {} told {answer:?}", connection.0));
        if self.reader_answered(connection, &answer)? {
            return Ok(());
        }
        let now = self.now;
        let Some(guest) = self.guest_of(connection) else { return Ok(()) };
        match answer {
            Answer::Opened { bytes, read_only } => {
                if bytes < guest.bytes || read_only {
                    let owed = guest.bytes;
                    return Err(format!("a guest got {bytes} bytes instead of {owed}"));
                }
                guest.link = Link::Open(connection);
                let volume = guest.volume;
                self.oracle.attached(volume);
                Ok(())
            }
            Answer::Refused { .. } => {
                guest.link = Link::None;
                guest.next_at = now + Duration::from_millis(20);
                Ok(())
            }
            Answer::Unknown { sentence } => {
                guest.link = Link::None;
                guest.next_at = now + Duration::from_millis(20);
                let deleted = matches!(&self.errand, Some(Errand::Delete { .. }));
                if deleted { Ok(()) } else { Err(format!("a volume is gone: {sentence}")) }
            }
            Answer::Listed(_) | Answer::Described { .. } | Answer::Bases(_) => {
                unreachable!("nobody asked for that")
            }
        }
    }

    fn completed(
        &mut self,
        connection: ConnectionId,
        id: volume::RequestId,
        result: Result<volume::Completion, volume::Error>,
    ) -> Result<(), String> {
        let error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        self.trace.line(self.now, format_args!("guest {} has {}: {error}", connection.0, id.0));
        if self.reader_completed(connection, id, &result)? {
            return Ok(());
        }
        let found = self.guests.values_mut().find(|guest| guest.connection() == Some(connection));
        let Some(guest) = found else { return Ok(()) };
        match guest.ended(id, result, &mut self.oracle).map_err(|wrong| wrong.to_string())? {
            Outcome::Done => Ok(()),
            Outcome::Failed(error) => {
                self.summary.failures += 1;
                self.judge_failure(&error)
            }
        }
    }

    /// Whether a request may fail like this now.
    fn judge_failure(&self, error: &volume::Error) -> Result<(), String> {
        let right = match error {
            volume::Error::NoSpace => self.may_be_full(),
            volume::Error::Io(_) | volume::Error::Corrupt { .. } => self.excused,
            volume::Error::Fenced => !matches!(self.node.life(), Life::Ready),
            _ => false,
        };
        if right { Ok(()) } else { Err(format!("a request failed without a reason: {error}")) }
    }

    /// Whether the volumes together could outgrow the disk.
    fn may_be_full(&self) -> bool {
        let heads: u64 = self.guests.values().map(|guest| guest.bytes).sum();
        let wanted = heads + self.sealed_bytes;
        let room = self.mix.setup.limit_bytes.unwrap_or(self.mix.setup.capacity);
        // Half again for what the store keeps for itself and for what is freed but not flushed.
        wanted + wanted / 2 + (8 << 20) > room
    }

    /// Lets something go wrong, or not.
    fn misfortune(&mut self) -> Result<(), String> {
        let faults = self.mix.faults;
        if self.node.life() != &Life::Ready {
            return match self.node.life() {
                Life::Failed(_) => self.restart(Restart::Kill),
                _ => Ok(()),
            };
        }
        if self.doubtful && self.random.chance(20_000) {
            return self.restart(Restart::Kill);
        }
        if self.random.chance(faults.kill) {
            return self.restart(Restart::Kill);
        }
        if self.random.chance(faults.power_cut) {
            return self.restart(Restart::Power);
        }
        if self.random.chance(faults.stop) {
            return self.stop_and_start();
        }
        let error = Effect::Error(DiskError::Io(5));
        let mut slow = Effect::Delay(Duration::from_millis(self.random.between(1, 2_000)));
        if self.random.chance(100_000) {
            slow = Effect::Delay(Duration::from_secs(30));
        }
        for (odds, on, effect, doubtful) in [
            (faults.write_error, OperationKind::Write, error.clone(), true),
            (faults.flush_error, OperationKind::Flush, error.clone(), true),
            (faults.read_error, OperationKind::Read, error, false),
            (faults.flip_on_read, OperationKind::Read, Effect::FlipOnRead, false),
            (faults.slow, OperationKind::Write, slow, false),
        ] {
            if self.random.chance(odds) {
                self.trace.line(self.now, format_args!("fault: {on:?} {effect:?}"));
                self.doubtful |= doubtful;
                self.excused |= !matches!(effect, Effect::Delay(_));
                self.node.media_mut().disk.add_fault(Fault::once(on, effect));
            }
        }
        Ok(())
    }

    fn crash_state(&mut self) -> CrashState {
        match self.random.below(5) {
            0 => CrashState::Old,
            1 => CrashState::New,
            _ => CrashState::Mixture(Mixture { seed: self.random.next() }),
        }
    }
}

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Restart {
    /// By itself; the machine lives.
    Kill,
    /// With the machine.
    Power,
}

/// Says which seed it was when something panics.
struct Loud(u64);

impl Drop for Loud {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}: replay with `cargo run -p sim -- --seed {0} --trace`", self.0);
        }
    }
}
