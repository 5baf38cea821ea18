//! Every crash point of small workloads on a whole node: guest's request, administrator's command,
//! session, store and agreed log together, each medium crashing in its own way.

mod acts;
mod bench;
mod books;
mod recovery;
pub mod trees;

pub use acts::{ACTS, Act, GROUP_ACTS, LAYER_ACTS};

use crate::{
    crashpoints::{MIXTURES, Tally},
    disk::{CrashState, Image, Mixture},
    driver::Driver,
    ledger::Crash,
    node::{Life, Media, Medium, SimNode},
    onedisk::Setup,
    oracle::Oracle,
    random::mix,
};
use bench::Bench;
use books::{Books, Group};
use engine::{Input, admin::AdminRequest};
use proto::{BLOCK_SIZE, Duration, Time};
use std::collections::BTreeSet;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Sizes the volume changes between, in bytes.
const LARGE: u64 = 8 * BLOCK;
const SMALL: u64 = 2 * BLOCK;
const NAME: &str = "volume";
/// The volume that is in a group with it.
const PARTNER: &str = "partner";
const GROUP: &str = "group";

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

    /// Two volumes in a group, with data on both.
    pub fn grouped(setup: Setup) -> Base {
        let mut bench = Bench::founded(&setup);
        for name in [PARTNER, NAME] {
            bench.create(name).expect("a volume can be created");
        }
        let volumes = vec![NAME.to_owned(), PARTNER.to_owned()];
        let request = AdminRequest::GroupCreate { name: GROUP.into(), volumes: volumes.clone() };
        bench.consult(request).expect("a group can be created");
        let members = volumes.into_iter().collect();
        let group = Group { partner: PARTNER.into(), members, snapshots: Vec::new() };
        bench.books.group = Some(group);
        let acts = [Act::AlignedWrite, Act::UnalignedWrite, Act::PartnerWrite, Act::Flush];
        Base::with(setup, bench, &acts)
    }

    fn after(setup: Setup, acts: &[Act]) -> Base {
        let mut bench = Bench::founded(&setup);
        bench.create(NAME).expect("a volume can be created");
        Base::with(setup, bench, acts)
    }

    fn with(setup: Setup, mut bench: Bench, acts: &[Act]) -> Base {
        bench.open().expect("it can be attached");
        for act in acts {
            bench.act(*act).expect("nothing fails");
        }
        Base::stopped(setup, bench)
    }

    fn stopped(setup: Setup, mut bench: Bench) -> Base {
        bench.hang_up_all();
        bench.idle(Duration::from_secs(1));
        bench.driver.tell(Input::Stop);
        let is_over = |driver: &mut Driver| *driver.node.life() == Life::Stopped;
        bench.driver.run_until("the end", is_over).expect("it stops");
        let Bench { driver, oracle, books, .. } = bench;
        let media = driver.node.into_media();
        let [disk, journal] =
            [&media.disk, &media.journal].map(|medium| medium.crashed(&CrashState::New));
        Base { setup, disk, journal, oracle, books }
    }

    fn start(&self) -> Result<Bench, String> {
        let media = Media::of(&self.setup, self.disk.clone(), self.journal.clone());
        let now = Time(5_000_000_000);
        let node = SimNode::start(now, &self.setup, media);
        let mut bench = Bench::of(node, now, self.oracle.clone(), self.books.clone());
        bench.driver.await_ready()?;
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
        let idle_until = bench.driver.now + IDLE;
        loop {
            while bench.advance_act(&mut steps)? {}
            self.crash_everywhere(&bench, &context, point)?;
            point += 1;
            if !bench.driver.proceed(idle_until) {
                break;
            }
        }
        if steps.is_empty() { Ok(()) } else { Err(format!("{context}: never answered")) }
    }

    fn crash_everywhere(&mut self, bench: &Bench, context: &str, point: u32) -> Result<(), String> {
        self.tally.points += 1;
        let media = bench.driver.node.media();
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
