//! Makes a failing run of a cluster smaller: what is not needed for it to fail goes, first whole
//! classes of things, then faults one by one.
//!
//! A run that lacks something is another run, and may fail otherwise: any failure counts.

use super::{ClusterMix, ClusterWorld};
use crate::random::Random;
use proto::Duration;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A run that fails.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// What it is made of.
    pub mix: ClusterMix,
    /// The numbers of the faults that are left out.
    pub spared: BTreeSet<u64>,
    /// How it fails.
    pub error: String,
    /// How many runs it took to find it.
    pub runs: u64,
}

/// Faults of one run, more than there ever are.
const FAULTS_MAX: u64 = 4096;

type Edit = (&'static str, fn(&mut ClusterMix));

/// What is tried, the greatest relief first. Each leaves the mix as it is where it is so already.
const EDITS: &[Edit] = &[
    ("partitions", |mix| mix.partition_bits = mix.partition_bits.min(1)),
    ("all", |mix| mix.troubles.all = 0),
    ("pause", |mix| mix.troubles.pause = 0),
    ("reset", |mix| mix.troubles.reset = 0),
    ("one way", |mix| mix.troubles.one_way = 0),
    ("partial", |mix| mix.troubles.partial = 0),
    ("partition", |mix| mix.troubles.partition = 0),
    ("stall", |mix| mix.troubles.stall = 0),
    ("slow link", |mix| mix.troubles.slow_link = 0),
    ("slow medium", |mix| mix.troubles.slow_medium = 0),
    ("disk fault", |mix| mix.troubles.disk_fault = 0),
    ("rot", |mix| mix.rot = 0),
    ("jump", |mix| mix.troubles.jump = 0),
    ("ghosts", |mix| mix.troubles.ghosts = 0),
    ("ambush", |mix| mix.troubles.ambush = 0),
    ("kill", |mix| mix.troubles.kill = 0),
    ("power cut", |mix| mix.troubles.power_cut = 0),
    ("early", |mix| mix.early = false),
    ("witness", |mix| mix.witness = false),
    ("rivals", |mix| mix.rivals = 0),
    ("takeovers", |mix| mix.takeovers = 0),
    ("snapshots", |mix| mix.snapshots = 0),
    ("drains", |mix| mix.drains = 0),
    ("moves", |mix| mix.moves = 0),
    ("volumes", |mix| mix.volumes = 1),
    ("depth", |mix| mix.depth = 1),
    ("nodes", |mix| mix.nodes = mix.nodes.min(3)),
    ("a node", |mix| mix.nodes = mix.nodes.saturating_sub(1).max(1)),
    ("unaligned writes", |mix| mix.guest.write_unaligned = 0),
    ("zeroes as data", |mix| mix.guest.write_zero_data = 0),
    ("discards", |mix| mix.guest.discard = 0),
    ("zeroes", |mix| mix.guest.zero = 0),
    ("states", |mix| mix.guest.status = 0),
    ("flushes", |mix| mix.guest.flush = 0),
    ("half of the time", |mix| mix.span = (mix.span / 2).max(Duration::from_secs(1))),
];

/// The smallest run that was found to fail, beginning with that of a seed; nothing if that passes.
/// It is over at the latest when `may_go_on` says no.
pub fn shrink(seed: u64, setup: impl Fn(), mut may_go_on: impl FnMut() -> bool) -> Option<Shrunk> {
    let mut runs = 0;
    let mut fails = |mix: &ClusterMix, spared: &BTreeSet<u64>| -> Option<String> {
        runs += 1;
        setup();
        let world = ClusterWorld::with_mix(seed, mix.clone(), false).sparing(spared.clone());
        match catch_unwind(AssertUnwindSafe(|| world.run())) {
            Ok(outcome) => outcome.err(),
            Err(_) => Some("it panics".to_string()),
        }
    };
    let mix = ClusterMix::draw(&mut Random::new(seed));
    let spared = BTreeSet::new();
    let error = fails(&mix, &spared)?;
    let mut best = Shrunk { mix, spared, error, runs: 0 };
    // Bounded: each round but the last makes something smaller, and few rounds do.
    for _ in 0..8 {
        let mut is_smaller = false;
        for (_, edit) in EDITS {
            let mut mix = best.mix.clone();
            edit(&mut mix);
            if format!("{mix:?}") == format!("{:?}", best.mix) || !may_go_on() {
                continue;
            }
            if let Some(error) = fails(&mix, &best.spared) {
                (best.mix, best.error, is_smaller) = (mix, error, true);
            }
        }
        if !is_smaller {
            break;
        }
    }
    // The first faults alone: as few of them as will do.
    let (mut few, mut many) = (0, FAULTS_MAX);
    while few < many && may_go_on() {
        let middle = few + (many - few) / 2;
        let spared: BTreeSet<u64> = (middle..FAULTS_MAX).collect();
        match fails(&best.mix, &spared) {
            Some(error) => {
                (best.spared, best.error) = (spared, error);
                many = middle;
            }
            None => few = middle + 1,
        }
    }
    // And of these one after the other.
    for fault in (0..many).rev() {
        let mut spared = best.spared.clone();
        if many == FAULTS_MAX || !spared.insert(fault) || !may_go_on() {
            continue;
        }
        if let Some(error) = fails(&best.mix, &spared) {
            (best.spared, best.error) = (spared, error);
        }
    }
    best.runs = runs;
    Some(best)
}

impl Shrunk {
    /// The faults that are left, if they are known to be few.
    pub fn faults(&self) -> Vec<u64> {
        let end = self.spared.last().map_or(0, |last| last + 1);
        (0..end).filter(|fault| !self.spared.contains(fault)).collect()
    }
}
