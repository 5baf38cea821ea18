//! See `inputs/cluster_snapshot.rs`; the corpus is replayed by a test of the parser's crate.
#![no_main]

#[path = "../inputs/cluster_snapshot.rs"]
mod cluster_snapshot;

libfuzzer_sys::fuzz_target!(|data: &[u8]| cluster_snapshot::cluster_snapshot(data));
