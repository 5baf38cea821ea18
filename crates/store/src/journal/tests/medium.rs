//! A medium in memory that keeps what is written and what is durable apart, and a journal on it.

use crate::journal::layout::Header;
use crate::journal::{AppendError, Effect, Expected, Journal, OpenError, Recovered, Token};
use proto::{ClusterId, DiskDone, DiskError, DiskOp, DiskRequest, NodeId};
use std::collections::{BTreeMap, BTreeSet};

const SECTOR: usize = 512;

/// A small generator of numbers that look random: splitmix64.
#[derive(Clone)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % limit as u64) as usize
    }

    pub(super) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}

/// What a crash makes of the sectors that were written and not flushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Crash {
    AllOld,
    AllNew,
    /// All new but the n-th, counted around, which has arbitrary content.
    OneTorn(usize),
    /// Each for itself old, one of the new versions, or arbitrary.
    Mixture(u64),
}

/// The medium.
#[derive(Clone, Default)]
pub(super) struct Medium {
    pub(super) durable: Vec<u8>,
    /// Versions of sectors since the last flush, oldest first.
    unsynced: BTreeMap<usize, Vec<Vec<u8>>>,
    /// The present length; the durable one is that of `durable`.
    length: usize,
    /// Pages that were ever written, for the limit.
    pages: BTreeSet<usize>,
    /// How many pages may be written.
    pub(super) pages_max: Option<usize>,
    /// Sectors that cannot be read.
    pub(super) unreadable: BTreeSet<usize>,
}

impl Medium {
    pub(super) fn of(bytes: Vec<u8>) -> Medium {
        Medium { length: bytes.len(), durable: bytes, ..Medium::default() }
    }

    pub(super) fn limited(pages_max: Option<usize>) -> Medium {
        Medium { pages_max, ..Medium::default() }
    }

    pub(super) fn length(&self) -> u64 {
        self.length as u64
    }

    fn sector(&self, sector: usize) -> Vec<u8> {
        if let Some(version) = self.unsynced.get(&sector).and_then(|versions| versions.last()) {
            return version.clone();
        }
        let start = (sector * SECTOR).min(self.durable.len());
        let end = (start + SECTOR).min(self.durable.len());
        let mut bytes = self.durable[start..end].to_vec();
        bytes.resize(SECTOR, 0);
        bytes
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        assert_eq!(offset as usize % 4096, 0);
        assert_eq!(bytes.len() % 4096, 0);
        self.length = self.length.max(offset as usize + bytes.len());
        for (place, sector) in bytes.chunks(SECTOR).enumerate() {
            let versions = self.unsynced.entry(offset as usize / SECTOR + place).or_default();
            versions.push(sector.to_vec());
        }
    }

    fn allocate(&mut self, offset: u64, length: u64, zero: bool) -> Result<(), DiskError> {
        let pages = (offset as usize / 4096)..((offset + length) as usize / 4096);
        let new = pages.clone().filter(|page| !self.pages.contains(page)).count();
        if new > 0 && self.pages_max.is_some_and(|max| self.pages.len() + new > max) {
            return Err(DiskError::NoSpace);
        }
        self.pages.extend(pages);
        self.length = self.length.max((offset + length) as usize);
        if zero {
            self.write(offset, &vec![0; length as usize]);
        }
        Ok(())
    }

    fn perform(&mut self, op: DiskOp) -> DiskDone {
        let result = match op.request {
            DiskRequest::Read { offset, mut buffer } => {
                let first = offset as usize / SECTOR;
                let count = buffer.len() / SECTOR;
                assert!(offset as usize + buffer.len() <= self.length, "a read beyond the end");
                if (first..first + count).any(|sector| self.unreadable.contains(&sector)) {
                    Err(DiskError::Io(5))
                } else {
                    for (place, sector) in buffer.as_mut_slice().chunks_mut(SECTOR).enumerate() {
                        sector.copy_from_slice(&self.sector(first + place));
                    }
                    Ok(Some(buffer))
                }
            }
            DiskRequest::Write { offset, payloads } => {
                let bytes: Vec<u8> =
                    payloads.iter().flat_map(|payload| payload.as_slice().to_vec()).collect();
                let sectors = offset as usize / SECTOR..(offset as usize + bytes.len()) / SECTOR;
                self.unreadable.retain(|sector| !sectors.contains(sector));
                self.write(offset, &bytes);
                Ok(None)
            }
            DiskRequest::Flush => {
                self.settle(|_, versions| versions.last().cloned());
                Ok(None)
            }
            DiskRequest::Discard { .. } => panic!("a journal discards nothing"),
            DiskRequest::Allocate { offset, length, zero } => {
                self.allocate(offset, length, zero).map(|()| None)
            }
        };
        DiskDone { token: op.token, result }
    }

    /// Makes every unsynced sector durable as `choose` says; nothing keeps the durable one.
    fn settle(&mut self, mut choose: impl FnMut(usize, &[Vec<u8>]) -> Option<Vec<u8>>) {
        self.durable.resize(self.length, 0);
        for (place, (sector, versions)) in
            std::mem::take(&mut self.unsynced).into_iter().enumerate()
        {
            if let Some(bytes) = choose(place, &versions) {
                self.durable[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(&bytes);
            }
        }
    }

    /// What the death of the process alone leaves: all that was performed, and of what is in flight
    /// some. Nothing of it is more durable than before.
    pub(super) fn kill(&self, in_flight: &[DiskOp], seed: u64) -> Medium {
        let (mut after, mut dice) = (self.clone(), Dice(seed));
        for op in in_flight.iter().filter(|_| dice.below(2) == 0) {
            after.perform_write(&op.request);
        }
        after
    }

    fn perform_write(&mut self, request: &DiskRequest) {
        match request {
            DiskRequest::Write { offset, payloads } => {
                let bytes: Vec<u8> =
                    payloads.iter().flat_map(|payload| payload.as_slice().to_vec()).collect();
                self.write(*offset, &bytes);
            }
            DiskRequest::Allocate { offset, length, zero } => {
                let _ = self.allocate(*offset, *length, *zero);
            }
            _ => {}
        }
    }

    /// What a power cut leaves, with these operations in flight.
    pub(super) fn crash(&self, in_flight: &[DiskOp], how: Crash) -> Medium {
        let mut after = self.clone();
        for op in in_flight {
            after.perform_write(&op.request);
        }
        let durable_length = after.durable.len();
        let count = after.unsynced.len().max(1);
        let mut dice = Dice(match how {
            Crash::Mixture(seed) => seed,
            _ => 1,
        });
        let shorter =
            how == Crash::AllOld || matches!(how, Crash::Mixture(_)) && dice.below(4) == 0;
        after.settle(|place, versions| match how {
            Crash::AllOld => None,
            Crash::AllNew => versions.last().cloned(),
            Crash::OneTorn(torn) if torn % count == place => Some(dice.bytes(SECTOR)),
            Crash::OneTorn(_) => versions.last().cloned(),
            Crash::Mixture(_) => match dice.below(4) {
                0 => None,
                1 => Some(dice.bytes(SECTOR)),
                2 => versions.last().cloned(),
                _ => versions.get(dice.below(versions.len())).cloned(),
            },
        });
        if shorter {
            after.durable.truncate(durable_length);
            after.length = durable_length;
        }
        after
    }
}

/// A journal at work on its medium.
pub(super) struct Bench {
    pub(super) medium: Medium,
    pub(super) journal: Journal,
    pub(super) in_flight: Vec<DiskOp>,
    /// Operations performed so far.
    pub(super) performed: usize,
    /// Counted down with each operation; at 0 the operation fails.
    pub(super) fail_after: Option<usize>,
    opened: Option<Result<Recovered, OpenError>>,
    verified: Option<Result<u32, OpenError>>,
    done: Option<Result<(), AppendError>>,
    dice: Dice,
}

pub(super) const STEP_BLOCKS: u32 = 4;

pub(super) fn header(half_blocks: u32) -> Header {
    let (cluster, node) = (ClusterId(11), NodeId(22));
    Header { half_blocks, cluster, node, generation: 1, created_unix_s: 33 }
}

impl Bench {
    fn start(medium: Medium, seed: u64, journal: Journal, effects: Vec<Effect>) -> Bench {
        let mut bench = Bench {
            medium,
            journal,
            in_flight: Vec::new(),
            performed: 0,
            fail_after: None,
            opened: None,
            verified: None,
            done: None,
            dice: Dice(seed),
        };
        bench.take(effects);
        bench
    }

    pub(super) fn create(medium: Medium, half_blocks: u32, seed: u64) -> Bench {
        let mut effects = Vec::new();
        let header = header(half_blocks);
        let journal = Journal::create_sized(header, STEP_BLOCKS, medium.length(), &mut effects);
        Bench::start(medium, seed, journal, effects)
    }

    pub(super) fn open(medium: Medium, seed: u64) -> Bench {
        let mut effects = Vec::new();
        let length = medium.length();
        let expected = Expected::default();
        let journal = Journal::open_sized(expected, STEP_BLOCKS, length, &mut effects);
        Bench::start(medium, seed, journal, effects)
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Disk(op) => self.in_flight.push(op),
                Effect::Opened(result) => self.opened = Some(result),
                Effect::Verified(result) => self.verified = Some(result),
                Effect::Done { token, result } => {
                    assert_eq!(token, Token(5));
                    self.done = Some(result);
                }
            }
        }
    }

    /// Performs operations in random order; stops when none is in flight (true) or when so many
    /// were performed in all (false).
    pub(super) fn run(&mut self, performed_max: usize) -> bool {
        while !self.in_flight.is_empty() {
            if self.performed >= performed_max {
                return false;
            }
            self.performed += 1;
            let next = self.dice.below(self.in_flight.len());
            let op = self.in_flight.swap_remove(next);
            let fails = self.fail_after.is_some_and(|left| left == 0);
            self.fail_after = self.fail_after.and_then(|left| left.checked_sub(1));
            let done = if fails {
                DiskDone { token: op.token, result: Err(DiskError::Io(5)) }
            } else {
                self.medium.perform(op)
            };
            let mut effects = Vec::new();
            self.journal.handle(done, &mut effects);
            self.take(effects);
        }
        true
    }

    /// The outcome of opening or creating, once there.
    pub(super) fn opened(&mut self) -> Result<Recovered, OpenError> {
        assert!(self.run(usize::MAX));
        self.opened.take().expect("opening has an outcome")
    }

    pub(super) fn begin_verify(&mut self) {
        let mut effects = Vec::new();
        self.journal.verify(&mut effects);
        self.take(effects);
    }

    pub(super) fn take_verified(&mut self) -> Option<Result<u32, OpenError>> {
        self.verified.take()
    }

    pub(super) fn begin_append(&mut self, records: Vec<Vec<u8>>) {
        let mut effects = Vec::new();
        self.journal.append(Token(5), records, &mut effects);
        self.take(effects);
    }

    pub(super) fn begin_snapshot(&mut self, bytes: Vec<u8>) {
        let mut effects = Vec::new();
        self.journal.snapshot(Token(5), bytes, &mut effects);
        self.take(effects);
    }

    /// The outcome of an append or snapshot, if it is there.
    pub(super) fn take_done(&mut self) -> Option<Result<(), AppendError>> {
        self.done.take()
    }

    pub(super) fn take_opened(&mut self) -> Option<Result<Recovered, OpenError>> {
        self.opened.take()
    }
}
