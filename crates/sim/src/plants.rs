//! Mistakes planted in the product, and the seeds that notice them (decision 0011).
//!
//! The seeds were found by `sim hunt`, and a test replays each, or one of the next few, with the
//! mistake and without. A
//! change of what is drawn from a seed makes others of them: then `sim hunt` finds new ones.

use crate::{
    cluster::ClusterWorld,
    crashpoints::{random_bases, random_workload},
    world::World,
};
use proto::Mistake;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a seed is run in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// One disk without the rest of a node.
    Disk,
    /// One node.
    Node,
    /// Several nodes.
    Cluster,
    /// Several nodes, a disk of which may rot.
    Rot,
    /// Several nodes, with volumes that promise that what is acknowledged is stable.
    Ack,
}

use Kind::{Ack, Cluster, Disk, Node, Rot};

/// Which mistake is noticed by which seed of what.
pub const CAUGHT: &[(Mistake, Kind, u64)] = &[
    (Mistake::FlushBeforeItIsMade, Disk, 3),
    (Mistake::FreedReusedEarly, Disk, 4),
    (Mistake::AttachUnagreed, Cluster, 1),
    (Mistake::DiscardNotReplicated, Cluster, 1),
    (Mistake::FailedFlushBelieved, Cluster, 11),
    (Mistake::VoteNotWritten, Cluster, 1),
    (Mistake::AckBelowQuorum, Cluster, 23),
    (Mistake::GenerationUnchecked, Cluster, 67),
    (Mistake::DamageLeft, Rot, 94),
    (Mistake::AckBeforeFlush, Ack, 5),
];

/// How a mistake is called on the command line.
pub fn name(mistake: Mistake) -> String {
    let mut name = String::new();
    for letter in format!("{mistake:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// The mistake that is called so.
pub fn by_name(wanted: &str) -> Option<Mistake> {
    Mistake::ALL.into_iter().find(|mistake| name(*mistake) == wanted)
}

/// Runs a seed with a mistake, or none. The error says what was noticed, be it by a panic.
///
/// # Panics
/// If a mistake is wanted of a program that has none in it, being without debug assertions.
pub fn run(kind: Kind, seed: u64, mistake: Option<Mistake>) -> Result<String, String> {
    plant(mistake);
    let outcome = catch_unwind(AssertUnwindSafe(|| match kind {
        Disk => random_workload(&random_bases(), seed).map(|tally| format!("{tally:?}")),
        Node => World::new(seed, false).run().map(|summary| format!("{summary:?}")),
        Cluster => ClusterWorld::new(seed, false).run().map(|summary| format!("{summary:?}")),
        Rot => ClusterWorld::rotting(seed, false).run().map(|summary| format!("{summary:?}")),
        Ack => ClusterWorld::acknowledging(seed, false).run().map(|summary| format!("{summary:?}")),
    }));
    plant(None);
    outcome.unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).into()));
        Err(format!("seed {seed}: panic: {}", words.unwrap_or_default()))
    })
}

/// Plants a mistake in what this thread does, or none.
///
/// # Panics
/// If one is wanted of a program that has none in it, being without debug assertions.
pub fn plant(mistake: Option<Mistake>) {
    #[cfg(debug_assertions)]
    proto::plant(mistake);
    #[cfg(not(debug_assertions))]
    assert!(mistake.is_none(), "this program has no mistakes in it; use `--profile hunt`");
}
