//! Every crash point of small workloads on a whole node: guest's request, administrator's command,
//! session, store and agreed log together, each medium crashing in its own way.

mod acts;
mod bench;
mod books;
mod recovery;
pub mod trees;

pub use acts::{ACTS, Act, LAYER_ACTS};

use crate::{
    crashpoints::{MIXTURES, Tally},
    disk::{CrashState, Image, Mixture},
    ledger::Crash,
    node::{Life, Media, Medium, SimNode},
    onedisk::Setup,
    oracle::Oracle,
    random::mix,
};
use bench::Bench;
use books::Books;
use engine::Input;
use proto::{BLOCK_SIZE, Duration, Time};
use std::collections::BTreeSet;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Sizes the volume changes between, in bytes.
const LARGE: u64 = 8 * BLOCK;
const SMALL: u64 = 2 * BLOCK;
const NAME: &str = "volume";

/// All workloads of one up to `longest` of these operations.
pub fn workloads(acts: &[Act], longest: usize) -> Vec<Vec<Act>> {
    let mut all: Vec<Vec<Act>> = vec![Vec::new()];
    let mut from = 0;
    for _ in 0..longest {
        let end = all.len();
        for at in from..end {
            for act in acts {
                let mut longer = all[at].clone();
                longer.push(*act);
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
    books: Books,
}

impl Base {
    /// A volume without layers below its head.
    pub fn new(setup: Setup) -> Base {
        Base::after(setup, &[Act::AlignedWrite, Act::UnalignedWrite, Act::Flush])
    }

    /// A volume whose head has something of its own above a snapshot.
    pub fn layered(setup: Setup) -> Base {
        let acts = [Act::AlignedWrite, Act::UnalignedWrite, Act::Snapshot, Act::OverlappingWrite];
        Base::after(setup, &acts)
    }

    fn after(setup: Setup, acts: &[Act]) -> Base {
        let media = Media::blank(&setup, &mut crate::random::Random::new(1));
        let node = SimNode::start(Time(1_000_000_000), &setup, media);
        let mut bench = Bench::of(node, Oracle::new(), Books::default());
        bench.await_ready().expect("a node can be founded");
        bench.create(NAME).expect("a volume can be created");
        bench.open().expect("it can be attached");
        for act in acts {
            bench.act(*act).expect("nothing fails");
        }
        Base::stopped(setup, bench)
    }

    fn stopped(setup: Setup, mut bench: Bench) -> Base {
        bench.hang_up(bench.connection);
        bench.idle(Duration::from_secs(1));
        bench.node.input(bench.now, Input::Stop);
        bench.node.poll(bench.now);
        bench.run_until(|bench| *bench.node.life() == Life::Stopped).expect("it stops");
        let Bench { node, oracle, books, .. } = bench;
        let media = node.into_media();
        let [disk, journal] =
            [&media.disk, &media.journal].map(|medium| medium.crashed(&CrashState::New));
        Base { setup, disk, journal, oracle, books }
    }

    fn start(&self) -> Result<Bench, String> {
        let media = Media::of(&self.setup, self.disk.clone(), self.journal.clone());
        let node = SimNode::start(Time(5_000_000_000), &self.setup, media);
        let mut bench = Bench::of(node, self.oracle.clone(), self.books.clone());
        bench.await_ready()?;
        bench.oracle.killed();
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
        bench.open()?;
        let (last, before) = workload.split_last().expect("workloads are not empty");
        for act in before {
            bench.act(*act).map_err(|error| format!("{workload:?}: {error}"))?;
        }
        let context = format!("{workload:?}");
        let _loud = Loud(&context);
        let mut steps = bench.begin(*last);
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
