//! What the fuzz targets, the replay of their corpora and the random tests run: two links over a
//! network that does what networks do, and one link against a peer that does what it likes.

mod copying;
mod disk;
pub mod hostile;
pub mod pair;
mod requests;

use crate::Settings;
use proto::wire::{Identity, VERSION};
use proto::{ClusterId, NodeId};

/// Reads decisions out of bytes; zeros where they end.
#[derive(Debug)]
pub struct Steps<'a> {
    rest: &'a [u8],
}

impl Steps<'_> {
    /// From the first byte on.
    pub fn new(bytes: &[u8]) -> Steps<'_> {
        Steps { rest: bytes }
    }

    /// The next one, until they end.
    pub fn next_step(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn byte(&mut self) -> u8 {
        self.next_step().unwrap_or(0)
    }

    fn number(&mut self) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    /// Below `end`, which is at most 256.
    fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }
}

/// Random decisions of a seed.
pub fn random_steps(seed: u64, count: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

/// Settings of one of two nodes of a small cluster.
pub fn settings(node: u128, instance: u64, requests: u32, bytes: u32) -> Settings {
    let identity = Identity { cluster: ClusterId(7), node: NodeId(node), instance };
    Settings {
        era: proto::wire::Era::default(),
        identity,
        version_min: VERSION,
        version_max: VERSION,
        features: 0b11,
        requests,
        bytes,
    }
}
