//! The simulator: the real machines of one node, or of several that make a cluster, on simulated
//! media, clocks, clients and a simulated network, driven by one seed, and the oracle that says
//! whether what they did was right.
//!
//! It must never ask for time, randomness or a thread while a run is going on: equal seeds give
//! equal runs, proven by the hash of their traces. Its main types are [`disk::SimDisk`] and
//! [`oracle::Oracle`].
#![forbid(unsafe_code)]

pub mod cluster;
pub mod crashpoints;
pub mod disk;
pub mod driver;
pub mod far;
pub mod ledger;
pub mod node;
pub mod nodepoints;
pub mod onedisk;
pub mod oracle;
pub mod plants;
pub mod random;
pub mod schedulepoints;
pub mod stamp;
pub mod trace;
pub mod world;

/// A fresh seed from the operating system, for the outermost layer of a test only: it prints the
/// seed when the run fails, and everything inside is decided by it.
pub fn entropy() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library keys each of these from the operating system's source of randomness.
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
