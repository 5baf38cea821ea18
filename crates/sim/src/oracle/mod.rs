//! The judge: knows what every client asked for and was told, and says whether what is read can
//! be right. It lives outside the fault domain and looks at nothing but requests and answers.
//!
//! Per block it is the register checker C1 and the durability checker C2 of RELIABILITY: contents
//! are unique, so a read names its write. An operation is *invoked*, then *ok*, *failed* (has
//! taken effect or never will) or left pending for ever (unknown).
//!
//! Snapshots (`snapshots`) are volumes that nobody writes; they and what is made of them are
//! checked like any other, and that each is a cut through its volume's history besides.

mod register;
mod snapshots;

pub use register::Value;
pub use snapshots::Blocks;

use crate::stamp::{Content, Stamp};
use proto::{BLOCK_SIZE, SECTOR_SIZE};
use register::{Change, Register, SECTORS};
use snapshots::{Cut, Interrupted, Taking};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{Hash, Hasher},
    ops::RangeInclusive,
};

/// Names an operation the oracle was told of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OperationId(pub u64);

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// New content.
    Write,
    /// Zeros, surely.
    Zero,
    /// Whole blocks become zeros, parts of blocks perhaps.
    Discard,
    /// Content is wanted.
    Read,
    /// What is acknowledged shall be made durable.
    Flush,
}

#[derive(Clone, Debug)]
struct Operation {
    action: Action,
    volume: u64,
    offset: u64,
    length: u64,
    stamp: Stamp,
}

#[derive(Clone, Debug, Default)]
struct Volume {
    bytes: u64,
    generation: u64,
    /// Blocks that are or were anything but zeros.
    blocks: BTreeMap<u64, Register>,
    /// The volumes whose writes it may show: itself, and those it descends from.
    family: BTreeSet<u64>,
    /// Snapshots of it that are being taken.
    cuts: BTreeSet<OperationId>,
    /// Of a snapshot: what is known of the moment it shows.
    cut: Option<Cut>,
}

/// A write that was invoked once.
#[derive(Clone, Debug)]
struct Written {
    volume: u64,
    offset: u64,
    length: u64,
    /// On the same scale as the serials, which say when writes were invoked.
    acknowledged: Option<u64>,
}

/// Something was read that cannot be right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// What kind of wrong.
    pub kind: Wrong,
    /// Where and why, in a sentence.
    pub sentence: String,
}

/// Kinds of wrong content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrong {
    /// A sector is no sector that any test wrote.
    Garbage,
    /// A sector of another place or volume.
    Misdirected,
    /// A serial that nobody was ever given.
    Invented,
    /// The sectors of one block come from different moments.
    Torn,
    /// A value that was there once, or will never be: lost, or risen from the dead.
    Stale,
    /// A snapshot has a part of a write, or a write without one that ended before it began.
    NoCut,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.sentence)
    }
}

/// The judge. See the module.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    volumes: BTreeMap<u64, Volume>,
    operations: BTreeMap<OperationId, Operation>,
    /// Every write ever invoked, by serial.
    writes: BTreeMap<u64, Written>,
    taking: BTreeMap<OperationId, Taking>,
    /// The snapshots that a crash interrupted, by volume.
    interrupted: BTreeMap<u64, Interrupted>,
    next_operation: u64,
    epoch: u64,
}

impl Oracle {
    /// An oracle that knows no volume.
    pub fn new() -> Oracle {
        Oracle::default()
    }

    /// A new volume, all zeros.
    pub fn create(&mut self, volume: u64, bytes: u64) {
        let family = BTreeSet::from([volume]);
        let fresh = Volume { bytes, family, ..Volume::default() };
        let before = self.volumes.insert(volume, fresh);
        assert!(before.is_none(), "volume ids are never reused");
    }

    /// The volume is gone, and everything asked of it.
    pub fn remove(&mut self, volume: u64) {
        self.volumes.remove(&volume);
        self.operations.retain(|_, operation| operation.volume != volume);
        self.taking.retain(|_, taking| taking.volume != volume);
    }

    /// The volume has another size. What lies beyond a smaller one is gone for good: if it comes
    /// back by growing again, it reads as zeros.
    pub fn resize(&mut self, volume: u64, bytes: u64) {
        assert!(bytes.is_multiple_of(BLOCK_SIZE as u64), "volumes are made of whole blocks");
        let volume = self.volume_mut(volume);
        volume.bytes = bytes;
        volume.blocks.split_off(&(bytes / BLOCK_SIZE as u64));
    }

    /// Ranges of bytes that hold everything ever written below `end`, and a block of what was not.
    pub fn touched(&self, volume: u64, end: u64) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let block = BLOCK_SIZE as u64;
        let known = self.volumes[&volume].blocks.keys().map(|number| number * block);
        for offset in std::iter::once(0).chain(known).filter(|offset| *offset < end) {
            match ranges.last_mut() {
                Some((start, length)) if *start + *length == offset && *length < RANGE_MAX => {
                    *length += block;
                }
                Some((start, length)) if offset < *start + *length => {}
                _ => ranges.push((offset, block)),
            }
        }
        ranges
    }

    /// The volume's size in bytes.
    pub fn bytes(&self, volume: u64) -> u64 {
        self.volumes[&volume].bytes
    }

    /// The volumes that exist.
    pub fn volumes(&self) -> impl Iterator<Item = u64> {
        self.volumes.keys().copied()
    }

    /// Something is asked of a volume.
    pub fn invoke(
        &mut self,
        volume: u64,
        writer: u64,
        action: Action,
        offset: u64,
        length: u64,
    ) -> OperationId {
        self.next_operation += 1;
        let id = OperationId(self.next_operation);
        let serial = if action == Action::Write { id.0 } else { 0 };
        let generation = self.volumes[&volume].generation;
        let stamp = Stamp { volume, sector: 0, writer, serial, epoch: self.epoch, generation };
        let operation = Operation { action, volume, offset, length, stamp };
        let target = self.volume_mut(volume);
        match action {
            Action::Flush => {
                target.blocks.values_mut().for_each(|register| register.invoke_flush(id));
            }
            Action::Read => {
                for block in blocks_of(offset, length) {
                    target.register(block).invoke_read(id);
                }
            }
            Action::Write | Action::Zero | Action::Discard => {
                for block in blocks_of(offset, length) {
                    let sectors = mask_of(block, offset, length);
                    let optional = action == Action::Discard && sectors != u8::MAX;
                    let change = Change { sectors, serial, optional };
                    target.register(block).invoke(id, change);
                }
            }
        }
        if action == Action::Write {
            self.writes.insert(serial, Written { volume, offset, length, acknowledged: None });
            self.note_write(volume, serial);
        }
        self.operations.insert(id, operation);
        id
    }

    /// What a write has to write: fills the whole of `target`, which is the write's range.
    pub fn fill(&self, id: OperationId, target: &mut [u8]) {
        let operation = &self.operations[&id];
        assert_eq!((operation.action, operation.length), (Action::Write, target.len() as u64));
        let first = operation.offset / SECTOR_SIZE as u64;
        for (number, sector) in target.chunks_exact_mut(SECTOR_SIZE).enumerate() {
            Stamp { sector: first + number as u64, ..operation.stamp }.fill(sector);
        }
    }

    /// Whether a block of the range has so much going on that one more change would be too much
    /// to follow.
    pub fn is_crowded(&self, volume: u64, offset: u64, length: u64) -> bool {
        let blocks = &self.volumes[&volume].blocks;
        blocks_of(offset, length).any(|block| blocks.get(&block).is_some_and(Register::is_crowded))
    }

    /// A change or flush was acknowledged; with `durable` (FUA), as being on stable media.
    pub fn ok(&mut self, id: OperationId, durable: bool) {
        let operation = self.operations.remove(&id).expect("an operation ends once");
        if let Some(write) = self.writes.get_mut(&operation.stamp.serial) {
            self.next_operation += 1;
            write.acknowledged = Some(self.next_operation);
        }
        let volume = self.volume_mut(operation.volume);
        match operation.action {
            Action::Read => unreachable!("a read is answered by its content"),
            Action::Flush => volume.blocks.values_mut().for_each(|register| register.flushed(id)),
            Action::Write | Action::Zero | Action::Discard => {
                for block in blocks_of(operation.offset, operation.length) {
                    // A block that is gone with a shrink has nothing to tell.
                    if let Some(register) = volume.blocks.get_mut(&block) {
                        register.acknowledge(id, durable);
                    }
                }
            }
        }
        volume.blocks.retain(|_, register| !register.is_plain_zero());
    }

    /// A read was answered with this content.
    pub fn ok_read(&mut self, id: OperationId, content: &[u8]) -> Result<(), Violation> {
        let operation = self.operations.remove(&id).expect("an operation ends once");
        assert_eq!(operation.action, Action::Read);
        if content.len() as u64 != operation.length {
            let (want, have) = (operation.length, content.len());
            let sentence = format!("{want} bytes were asked for, {have} came");
            return Err(Violation { kind: Wrong::Garbage, sentence });
        }
        for block in blocks_of(operation.offset, operation.length) {
            let mask = mask_of(block, operation.offset, operation.length);
            let value = self.parse(&operation, block, mask, content)?;
            let volume = self.volume_mut(operation.volume);
            let Some(register) = volume.blocks.get_mut(&block) else { continue };
            if !register.read(id, mask, &value) {
                return Err(wrong(&operation, block, mask, &value, register));
            }
            self.check_cut(operation.volume, block, mask, &value)?;
        }
        self.volume_mut(operation.volume).blocks.retain(|_, register| !register.is_plain_zero());
        Ok(())
    }

    /// An operation was answered with an error: a change has taken effect by now, or never will.
    pub fn failed(&mut self, id: OperationId) {
        let operation = self.operations.remove(&id).expect("an operation ends once");
        let volume = self.volume_mut(operation.volume);
        match operation.action {
            Action::Flush => {
                volume.blocks.values_mut().for_each(|register| register.forget_flush(id));
            }
            Action::Read => {
                for block in blocks_of(operation.offset, operation.length) {
                    if let Some(register) = volume.blocks.get_mut(&block) {
                        register.forget_read(id);
                    }
                }
            }
            Action::Write | Action::Zero | Action::Discard => {
                for block in blocks_of(operation.offset, operation.length) {
                    if let Some(register) = volume.blocks.get_mut(&block) {
                        register.fail(id);
                    }
                }
            }
        }
    }

    /// A new attachment of the volume is open: what the one before asked for has taken effect or
    /// never will.
    pub fn attached(&mut self, volume: u64) {
        self.operations.retain(|_, operation| operation.volume != volume);
        let volume = self.volume_mut(volume);
        volume.generation += 1;
        volume.blocks.values_mut().for_each(Register::settle);
    }

    /// The process died; the machine lives.
    pub fn killed(&mut self) {
        self.interrupt_snapshots(Register::cut);
        self.restarted(Register::settle);
    }

    /// The power went.
    pub fn power_cut(&mut self) {
        self.interrupt_snapshots(Register::cut_by_power);
        self.restarted(Register::power_cut);
    }

    /// The machine with the content lost its power, those who use the volumes live: what is not
    /// flushed may be lost, what they asked for may still happen. Of these operations in flight
    /// nothing is learned any more: reads and flushes are forgotten, changes stay pending until the
    /// volume is attached anew.
    pub fn lost_power(&mut self, unheard: impl IntoIterator<Item = OperationId>) {
        for id in unheard {
            let action = self.operations.get(&id).map(|operation| operation.action);
            if matches!(action, Some(Action::Read | Action::Flush)) {
                self.failed(id);
            }
        }
        for volume in self.volumes.values_mut() {
            volume.blocks.values_mut().for_each(Register::lose);
        }
    }

    /// Blocks of the volume that hold data: at least and at most.
    pub fn data_blocks(&self, volume: u64) -> RangeInclusive<u64> {
        let holds = |value: &Value| value.iter().any(|&serial| serial != 0);
        let (mut least, mut most) = (0, 0);
        for register in self.volumes[&volume].blocks.values() {
            let values = register.values();
            least += u64::from(values.iter().all(holds));
            most += u64::from(values.iter().any(holds) || register.pending() > 0);
        }
        least..=most
    }

    /// A number that is equal where the same contents would be accepted.
    pub fn key(&self) -> u64 {
        // Its keys are fixed: equal in every run.
        let mut hasher = std::hash::DefaultHasher::new();
        for (id, volume) in &self.volumes {
            (id, volume.bytes, &volume.blocks).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The blocks of the volume that were ever written, and what they may hold, in words.
    pub fn describe(&self, volume: u64) -> Vec<String> {
        let blocks = self.volumes[&volume].blocks.iter();
        blocks.map(|(block, register)| format!("{block}: {}", register.describe())).collect()
    }

    fn restarted(&mut self, each: impl Fn(&mut Register)) {
        self.operations.clear();
        self.epoch += 1;
        for volume in self.volumes.values_mut() {
            volume.blocks.values_mut().for_each(&each);
        }
    }

    fn volume_mut(&mut self, volume: u64) -> &mut Volume {
        self.volumes.get_mut(&volume).expect("only volumes that exist are asked")
    }

    /// The serials of one block's sectors, each sector proven to be one of that place.
    fn parse(
        &self,
        operation: &Operation,
        block: u64,
        mask: u8,
        content: &[u8],
    ) -> Result<Value, Violation> {
        let mut value = [0; SECTORS];
        let first = operation.offset / SECTOR_SIZE as u64;
        for (number, serial) in value.iter_mut().enumerate() {
            if mask & (1 << number) == 0 {
                continue;
            }
            let sector = block * SECTORS as u64 + number as u64;
            let at = (sector - first) as usize * SECTOR_SIZE;
            let found = Stamp::parse(&content[at..at + SECTOR_SIZE]);
            *serial = self.judge_sector(operation.volume, sector, found).map_err(|kind| {
                let volume = operation.volume;
                let sentence = format!("volume {volume} block {block} sector {number}: {found:?}");
                Violation { kind, sentence }
            })?;
        }
        Ok(value)
    }

    fn judge_sector(&self, volume: u64, sector: u64, found: Content) -> Result<u64, Wrong> {
        let stamp = match found {
            Content::Zero => return Ok(0),
            Content::Garbage => return Err(Wrong::Garbage),
            Content::Stamped(stamp) => stamp,
        };
        let is_of_family = self.volumes[&volume].family.contains(&stamp.volume);
        if !is_of_family || stamp.sector != sector {
            return Err(Wrong::Misdirected);
        }
        match self.writes.get(&stamp.serial) {
            Some(write) if write.volume == stamp.volume && write.covers(sector) => Ok(stamp.serial),
            _ => Err(Wrong::Invented),
        }
    }
}

impl Volume {
    /// The block's register; one that nothing was asked of before is of zeros.
    fn register(&mut self, block: u64) -> &mut Register {
        self.blocks.entry(block).or_insert_with(|| {
            let mut register = Register::default();
            self.cuts.iter().for_each(|cut| register.invoke_cut(*cut));
            register
        })
    }
}

impl Written {
    fn covers(&self, sector: u64) -> bool {
        let at = sector * SECTOR_SIZE as u64;
        (self.offset..self.offset + self.length).contains(&at)
    }
}

/// Says what is wrong with a block that no history explains.
fn wrong(
    operation: &Operation,
    block: u64,
    mask: u8,
    value: &Value,
    register: &Register,
) -> Violation {
    let read: Vec<u64> = (0..SECTORS).filter(|s| mask & (1 << s) != 0).map(|s| value[s]).collect();
    let kind =
        if read.iter().any(|serial| *serial != read[0]) { Wrong::Torn } else { Wrong::Stale };
    let sentence = format!(
        "volume {} block {block} reads {}, but should read {}",
        operation.volume,
        register::describe(value),
        register.describe(),
    );
    Violation { kind, sentence }
}

/// Longest range to be read at once, in bytes.
const RANGE_MAX: u64 = 1 << 20;

/// The blocks a range of bytes touches.
fn blocks_of(offset: u64, length: u64) -> std::ops::Range<u64> {
    offset / BLOCK_SIZE as u64..(offset + length).div_ceil(BLOCK_SIZE as u64)
}

/// The sectors of one block that a range of bytes covers, as bits.
fn mask_of(block: u64, offset: u64, length: u64) -> u8 {
    let start = block * SECTORS as u64;
    let first = (offset / SECTOR_SIZE as u64).max(start) - start;
    let end = ((offset + length) / SECTOR_SIZE as u64).min(start + SECTORS as u64) - start;
    (first..end).fold(0, |mask, sector| mask | (1 << sector))
}

#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod tests;
