//! A simulated medium behind the seam of `proto::DiskOp`.
//!
//! What was *written* and what is *durable* are kept apart. A change (write, discard, allocation)
//! becomes visible when it completes and durable when a flush completes that was asked for after
//! it had completed; until then a crash may keep, lose or tear it, sector by sector.

mod crash;
mod fault;
mod image;

pub use crash::{CrashState, Mixture, Unit};
pub use fault::{Effect, Fault, OperationKind};
pub use image::Image;

use crate::random::Random;
use proto::{
    BLOCK_SIZE, Buffer, DiskDone, DiskError, DiskOp, DiskRequest, DiskToken, Duration, Payload,
    SECTOR_SIZE, Time,
};
use std::collections::BTreeMap;

/// How long operations take: uniformly drawn between the two.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// At least.
    pub low: Duration,
    /// At most.
    pub high: Duration,
}

/// Something that changes the medium and is not durable yet.
#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, payload: Payload },
    Punch { offset: u64, length: u64 },
    Allocate { offset: u64, length: u64, zero: bool },
}

/// How far a change is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    InFlight(DiskToken),
    /// Visible; the number counts completions, so that a flush knows what it covers.
    Completed(u64),
    /// Part of it may be visible, and no flush says anything about it any more.
    Doubtful,
}

#[derive(Clone, Debug)]
struct Unsynced {
    change: Change,
    progress: Progress,
}

/// What an operation in flight will do when it ends.
#[derive(Debug)]
struct InFlight {
    due: Time,
    request: Pending,
    fault: Option<Effect>,
}

#[derive(Debug)]
enum Pending {
    Read {
        offset: u64,
        buffer: Buffer,
    },
    /// A write, discard or allocation: its changes are among the unsynced ones.
    Change,
    /// Covers the changes that had completed before this number.
    Flush {
        covers: u64,
    },
}

/// What a medium has done, for reports and for tests.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Operations that ended, of any kind.
    pub operations: u64,
    /// Flushes that ended well.
    pub flushes: u64,
    /// Operations that met a fault.
    pub faults: u64,
    /// Writes to space that had not been allocated before.
    pub writes_unallocated: u64,
}

/// A simulated medium.
#[derive(Debug)]
pub struct SimDisk {
    random: Random,
    latency: Latency,
    faults: Vec<Fault>,
    /// How much may be allocated in all, in bytes.
    capacity: u64,
    written: Image,
    durable: Image,
    unsynced: Vec<Unsynced>,
    in_flight: BTreeMap<DiskToken, InFlight>,
    completions: u64,
    counters: Counters,
}

impl SimDisk {
    /// A medium that holds `image`, all of it durable, and may grow to `capacity` bytes of space.
    pub fn new(image: Image, capacity: u64, random: Random) -> SimDisk {
        SimDisk {
            random,
            latency: Latency { low: Duration::from_micros(20), high: Duration::from_micros(400) },
            faults: Vec::new(),
            capacity,
            written: image.clone(),
            durable: image,
            unsynced: Vec::new(),
            in_flight: BTreeMap::new(),
            completions: 0,
            counters: Counters::default(),
        }
    }

    /// Sets how long operations take from now on.
    pub fn set_latency(&mut self, latency: Latency) {
        self.latency = latency;
    }

    /// Sets how much may be allocated in all, in bytes; what has space keeps it.
    pub fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
    }

    /// How much may be allocated in all, in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Adds a fault. The first that fits an operation hits it.
    pub fn add_fault(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// Takes all faults away; operations that hang go on hanging.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// What reads see.
    pub fn image(&self) -> &Image {
        &self.written
    }

    /// The length in bytes that an opener would find.
    pub fn length(&self) -> u64 {
        self.written.length()
    }

    /// What it has done.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Changes the content behind the store's back: rot, a restored old copy, a truncation. What
    /// is done is durable.
    pub fn spoil(&mut self, damage: impl Fn(&mut Image)) {
        damage(&mut self.written);
        damage(&mut self.durable);
    }

    /// Takes an operation. It ends at some later time, in any order with others.
    ///
    /// # Panics
    /// If the operation breaks the seam's contract (misaligned, empty, or a token in use).
    pub fn submit(&mut self, now: Time, op: DiskOp) {
        let DiskOp { token, request } = op;
        let (kind, offset, length) = extent_of(&request);
        if kind != OperationKind::Flush {
            let block = BLOCK_SIZE as u64;
            assert!(offset % block == 0 && length % block == 0, "misaligned {kind:?} at {offset}");
            assert!(length > 0, "{kind:?} of nothing at {offset}");
        }
        let fault = self.draw_fault(kind, offset, length);
        let spread = self.latency.high.saturating_sub(self.latency.low).as_nanos() as u64;
        let mut due = now + self.latency.low + Duration::from_nanos(self.random.below(spread + 1));
        match &fault {
            Some(Effect::Delay(delay)) => due = due + *delay,
            Some(Effect::Hang) => due = Time(u64::MAX),
            _ => {}
        }
        let request = self.begin(token, request, fault.as_ref());
        let before = self.in_flight.insert(token, InFlight { due, request, fault });
        assert!(before.is_none(), "the token {token:?} is in flight already");
    }

    /// When the next operation ends; nothing: none is in flight, or all hang.
    pub fn next_due(&self) -> Option<Time> {
        let due = self.in_flight.values().map(|op| op.due).min()?;
        (due != Time(u64::MAX)).then_some(due)
    }

    /// Ends the first operation that is due, if one is.
    pub fn complete_due(&mut self, now: Time) -> Option<DiskDone> {
        let due = self.in_flight.iter().map(|(token, op)| (op.due, *token)).min();
        let (_, token) = due.filter(|(due, _)| *due <= now)?;
        Some(self.complete(token))
    }

    /// Operations in flight, by token.
    pub fn in_flight(&self) -> impl Iterator<Item = DiskToken> {
        self.in_flight.keys().copied()
    }

    /// Lets what hangs or takes longer end now.
    pub fn release(&mut self, now: Time) {
        for op in self.in_flight.values_mut().filter(|op| op.due > now) {
            op.due = now;
        }
    }

    /// Ends one operation now, whenever it was due.
    ///
    /// # Panics
    /// If no operation with this token is in flight.
    pub fn complete(&mut self, token: DiskToken) -> DiskDone {
        let op = self.in_flight.remove(&token).expect("only operations in flight can end");
        self.counters.operations += 1;
        let result = match op.request {
            Pending::Read { offset, buffer } => self.end_read(offset, buffer, op.fault),
            Pending::Change => self.end_change(token, op.fault),
            Pending::Flush { covers } => self.end_flush(covers, op.fault),
        };
        DiskDone { token, result }
    }

    /// The process dies, the machine lives: what completed stays, what was in flight is there in
    /// part, sector by sector. Nothing of it becomes durable by that.
    pub fn kill(&mut self) {
        self.in_flight.clear();
        for mut unsynced in std::mem::take(&mut self.unsynced) {
            match unsynced.progress {
                Progress::InFlight(_) => self.apply_partly(unsynced.change, Some(AT_KILL)),
                // The kernel forgets what it could not write: now it is decided what is there.
                Progress::Doubtful => self.decide(&unsynced.change),
                Progress::Completed(_) => {
                    unsynced.progress = AT_KILL;
                    self.unsynced.push(unsynced);
                }
            }
        }
    }

    /// The power goes: only what is durable is sure to be there, the rest as `state` says.
    pub fn power_cut(&mut self, state: &CrashState) {
        let image = self.crashed(state);
        self.written = image.clone();
        self.durable = image;
        self.unsynced.clear();
        self.in_flight.clear();
        self.completions = 0;
    }

    /// The first fault that fits and hits.
    fn draw_fault(&mut self, kind: OperationKind, offset: u64, length: u64) -> Option<Effect> {
        for index in 0..self.faults.len() {
            let fault = &self.faults[index];
            let touches = kind == OperationKind::Flush
                || (offset < fault.range.end && offset + length > fault.range.start);
            if fault.on != kind || !touches || fault.times == Some(0) {
                continue;
            }
            if fault.per_million < 1_000_000 && !self.random.chance(fault.per_million) {
                continue;
            }
            let fault = &mut self.faults[index];
            fault.times = fault.times.map(|times| times - 1);
            self.counters.faults += 1;
            return Some(fault.effect.clone());
        }
        None
    }

    /// Notes what the operation will change and how it will end.
    fn begin(&mut self, token: DiskToken, request: DiskRequest, fault: Option<&Effect>) -> Pending {
        let progress = Progress::InFlight(token);
        match request {
            DiskRequest::Read { offset, buffer } => Pending::Read { offset, buffer },
            DiskRequest::Write { offset, payloads } => {
                let mut at = match fault {
                    Some(Effect::Misdirect(by)) => offset.saturating_add_signed(*by),
                    _ => offset,
                };
                for payload in payloads {
                    let length = payload.len() as u64;
                    if fault != Some(&Effect::Lose) {
                        let change = Change::Write { offset: at, payload };
                        self.unsynced.push(Unsynced { change, progress });
                    }
                    at += length;
                }
                Pending::Change
            }
            DiskRequest::Flush => Pending::Flush { covers: self.completions },
            DiskRequest::Discard { offset, length } => {
                let change = Change::Punch { offset, length };
                self.unsynced.push(Unsynced { change, progress });
                Pending::Change
            }
            DiskRequest::Allocate { offset, length, zero } => {
                let change = Change::Allocate { offset, length, zero };
                self.unsynced.push(Unsynced { change, progress });
                Pending::Change
            }
        }
    }

    fn end_read(
        &mut self,
        offset: u64,
        mut buffer: Buffer,
        fault: Option<Effect>,
    ) -> Result<Option<Buffer>, DiskError> {
        let mut from = offset;
        match fault {
            Some(Effect::Error(error)) => return Err(error),
            Some(Effect::Misdirect(by)) => from = offset.saturating_add_signed(by),
            _ => {}
        }
        if offset + buffer.len() as u64 > self.written.length() {
            return Err(DiskError::Io(SHORT_READ));
        }
        self.written.read(from, buffer.as_mut_slice());
        self.mix_in_flight(from, buffer.as_mut_slice());
        if fault == Some(Effect::FlipOnRead) {
            let at = self.random.below(buffer.len() as u64) as usize;
            buffer.as_mut_slice()[at] ^= 1 << self.random.below(8);
        }
        Ok(Some(buffer))
    }

    /// A read that overlaps a write in flight finds each sector old or new.
    fn mix_in_flight(&mut self, offset: u64, target: &mut [u8]) {
        let end = offset + target.len() as u64;
        for unsynced in &self.unsynced {
            let (Progress::InFlight(_), Change::Write { offset: at, payload }) =
                (unsynced.progress, &unsynced.change)
            else {
                continue;
            };
            for (number, sector) in payload.as_slice().chunks(SECTOR_SIZE).enumerate() {
                let here = at + (number * SECTOR_SIZE) as u64;
                if here >= offset && here < end && self.random.coin() {
                    let start = (here - offset) as usize;
                    target[start..start + SECTOR_SIZE].copy_from_slice(sector);
                }
            }
        }
    }

    fn end_change(
        &mut self,
        token: DiskToken,
        fault: Option<Effect>,
    ) -> Result<Option<Buffer>, DiskError> {
        let mut failed = match fault {
            Some(Effect::Error(error)) => Some(error),
            _ => None,
        };
        if failed.is_none() && !self.has_room(token) {
            failed = Some(DiskError::NoSpace);
        }
        self.completions += 1;
        let progress = Progress::InFlight(token);
        let mut mine = Vec::new();
        for unsynced in self.unsynced.iter_mut().filter(|u| u.progress == progress) {
            unsynced.progress = match failed {
                None => Progress::Completed(self.completions),
                Some(_) => Progress::Doubtful,
            };
            mine.push(unsynced.change.clone());
        }
        match failed {
            None => mine.iter().for_each(|change| self.apply_visible(change)),
            Some(DiskError::NoSpace) => self.unsynced.retain(|u| u.progress != Progress::Doubtful),
            Some(DiskError::Io(_)) => {
                mine.into_iter().for_each(|change| self.apply_partly(change, None));
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Whether what the operation needs fits into the capacity.
    fn has_room(&mut self, token: DiskToken) -> bool {
        let progress = Progress::InFlight(token);
        let mut needed = 0;
        for unsynced in self.unsynced.iter().filter(|u| u.progress == progress) {
            needed += match &unsynced.change {
                Change::Write { offset, payload } => {
                    let missing = self.written.missing_bytes(*offset, payload.len() as u64);
                    self.counters.writes_unallocated += u64::from(missing > 0);
                    missing
                }
                Change::Allocate { offset, length, .. } => {
                    self.written.missing_bytes(*offset, *length)
                }
                Change::Punch { .. } => 0,
            };
        }
        needed == 0 || self.written.allocated_bytes() + needed <= self.capacity
    }

    fn end_flush(
        &mut self,
        covers: u64,
        fault: Option<Effect>,
    ) -> Result<Option<Buffer>, DiskError> {
        let covered = |u: &Unsynced| matches!(u.progress, Progress::Completed(n) if n <= covers);
        match fault {
            Some(Effect::Lose) => return Ok(None),
            Some(Effect::Error(_) | Effect::Swallow) => {
                for unsynced in self.unsynced.iter_mut().filter(|u| covered(u)) {
                    unsynced.progress = Progress::Doubtful;
                }
                return match fault {
                    Some(Effect::Error(error)) => Err(error),
                    _ => Ok(None),
                };
            }
            _ => {}
        }
        let (mut synced, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.unsynced).into_iter().partition(covered);
        self.unsynced = rest;
        synced.sort_by_key(|u| match u.progress {
            Progress::Completed(number) => number,
            _ => unreachable!("only completed changes are covered by a flush"),
        });
        for unsynced in &synced {
            apply(&mut self.durable, &unsynced.change);
        }
        self.counters.flushes += 1;
        Ok(None)
    }

    fn apply_visible(&mut self, change: &Change) {
        apply(&mut self.written, change);
    }

    /// Makes each sector of the change visible or not, by chance. With `progress`, what is visible
    /// counts as completed that far.
    fn apply_partly(&mut self, change: Change, progress: Option<Progress>) {
        for change in pieces(&change) {
            if self.random.coin() {
                apply(&mut self.written, &change);
                self.unsynced.extend(progress.map(|progress| Unsynced { change, progress }));
            }
        }
    }

    /// Makes each sector of a doubtful change durable, or as it was before, by chance.
    fn decide(&mut self, change: &Change) {
        for piece in pieces(change) {
            match &piece {
                Change::Write { offset, .. } if self.random.coin() => {
                    let old = self.durable.sector(offset / SECTOR_SIZE as u64);
                    self.written.write(*offset, old);
                }
                _ => {
                    apply(&mut self.written, &piece);
                    apply(&mut self.durable, &piece);
                }
            }
        }
    }
}

/// What a process that died had completed, or the kernel went on with: the next flush covers it.
const AT_KILL: Progress = Progress::Completed(0);

/// The change cut into what survives or not on its own.
fn pieces(change: &Change) -> Vec<Change> {
    match change {
        Change::Write { offset, payload } => (0..payload.len())
            .step_by(SECTOR_SIZE)
            .map(|start| Change::Write {
                offset: offset + start as u64,
                payload: payload.slice(start, SECTOR_SIZE),
            })
            .collect(),
        Change::Punch { .. } | Change::Allocate { .. } => vec![change.clone()],
    }
}

/// EIO, which stands for a short read too: the file ends before what was asked for.
const SHORT_READ: i32 = 5;

/// Kind, offset and length of an operation.
fn extent_of(request: &DiskRequest) -> (OperationKind, u64, u64) {
    match request {
        DiskRequest::Read { offset, buffer } => (OperationKind::Read, *offset, buffer.len() as u64),
        DiskRequest::Write { offset, payloads } => {
            (OperationKind::Write, *offset, payloads.iter().map(|p| p.len() as u64).sum())
        }
        DiskRequest::Flush => (OperationKind::Flush, 0, 0),
        DiskRequest::Discard { offset, length } => (OperationKind::Discard, *offset, *length),
        DiskRequest::Allocate { offset, length, .. } => (OperationKind::Allocate, *offset, *length),
    }
}

/// Makes the whole change in an image.
fn apply(image: &mut Image, change: &Change) {
    match change {
        Change::Write { offset, payload } => image.write(*offset, payload.as_slice()),
        Change::Punch { offset, length } => image.punch(*offset, *length),
        Change::Allocate { offset, length, zero } => {
            image.allocate(*offset, *length);
            if *zero {
                image.zero(*offset, *length);
            }
        }
    }
}

#[cfg(test)]
mod tests;
