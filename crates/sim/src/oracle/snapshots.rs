//! Snapshots and what is made of them.
//!
//! A snapshot is a cut through its volume's history (C4 of RELIABILITY): it shows the volume at
//! one moment between being asked for and being answered. Per block the registers know what that
//! may be. Across blocks the writes are looked at that were under way then: a snapshot has each of
//! them wholly or not at all, and none without those that had ended before it began. When it is
//! answered, all of it is on stable media.

use super::{Action, OperationId, Oracle, SECTORS, Value, Violation, Volume, Written, Wrong};
use crate::oracle::register::Register;
use std::collections::{BTreeMap, BTreeSet};

/// Blocks by number, with what they hold.
pub type Blocks = BTreeSet<(u64, Value)>;

/// A snapshot that was asked for and not answered.
#[derive(Clone, Debug)]
pub(super) struct Taking {
    pub(super) volume: u64,
    /// Writes that may fall on either side of it.
    writes: Vec<u64>,
}

/// What a snapshot shows that a crash interrupted, if it was taken.
#[derive(Clone, Debug)]
pub(super) struct Interrupted {
    /// If it was sealed after the crash: of what was lost it has nothing.
    taken: Volume,
    /// If it was sealed before.
    whole: Volume,
}

/// What is known of the moment that a snapshot shows.
#[derive(Clone, Default, Debug)]
pub(super) struct Cut {
    /// Writes that were under way when it was taken.
    writes: Vec<u64>,
    /// Those of them that it surely has a part of.
    included: BTreeSet<u64>,
    /// Those of them that it surely misses a part of.
    excluded: BTreeSet<u64>,
}

impl Oracle {
    /// A snapshot of a volume is asked for.
    pub fn invoke_snapshot(&mut self, volume: u64) -> OperationId {
        self.next_operation += 1;
        let id = OperationId(self.next_operation);
        let target = self.volume_mut(volume);
        target.cuts.insert(id);
        for register in target.blocks.values_mut() {
            register.invoke_cut(id);
            register.invoke_flush(id);
        }
        let of_volume = self.operations.values().filter(|operation| operation.volume == volume);
        let writes = of_volume.filter(|operation| operation.action == Action::Write);
        let writes = writes.map(|operation| operation.stamp.serial).collect();
        self.taking.insert(id, Taking { volume, writes });
        id
    }

    /// It was taken; `snapshot` is what it is called from now on, as volumes are.
    pub fn ok_snapshot(&mut self, id: OperationId, snapshot: u64) {
        let Taking { volume, writes } = self.taking.remove(&id).expect("a snapshot ends once");
        let cut = Cut { writes, ..Cut::default() };
        let target = self.volume_mut(volume);
        target.cuts.remove(&id);
        let taken = target.cut_out(id, Register::cut);
        target.blocks.values_mut().for_each(|register| register.flushed(id));
        target.blocks.retain(|_, register| !register.is_plain_zero());
        let before = self.volumes.insert(snapshot, Volume { cut: Some(cut), ..taken });
        assert!(before.is_none(), "layer ids are never reused");
    }

    /// It is not taken, and will not be.
    pub fn failed_snapshot(&mut self, id: OperationId) {
        let Taking { volume, .. } = self.taking.remove(&id).expect("a snapshot ends once");
        let target = self.volume_mut(volume);
        target.cuts.remove(&id);
        for register in target.blocks.values_mut() {
            register.forget_cut(id);
            register.forget_flush(id);
        }
    }

    /// After a restart it turns out that the snapshot was taken that the crash interrupted; with
    /// `sealed`, that all of it was on stable media before. False: there was none.
    pub fn recover_snapshot(&mut self, volume: u64, snapshot: u64, sealed: bool) -> bool {
        let Some(Interrupted { taken, whole }) = self.interrupted.remove(&volume) else {
            return false;
        };
        let shown = if sealed { whole } else { taken };
        self.volumes.insert(snapshot, shown).is_none()
    }

    /// Whether these snapshots can show one moment, as far as they were read: no write is in one of
    /// them without those in others that had ended before it began.
    pub fn check_moment(&self, snapshots: &[u64]) -> Result<(), Violation> {
        let mut whole = Cut::default();
        for cut in snapshots.iter().filter_map(|snapshot| self.volumes[snapshot].cut.as_ref()) {
            whole.included.extend(&cut.included);
            whole.excluded.extend(&cut.excluded);
        }
        whole.contradiction(&self.writes).map_or(Ok(()), |what| {
            let sentence = format!("snapshots {snapshots:?} of one moment: {what}");
            Err(Violation { kind: Wrong::NoCut, sentence })
        })
    }

    /// After a restart it turned out which interrupted snapshots were taken: all that were told.
    pub fn forget_interrupted(&mut self) {
        self.interrupted.clear();
    }

    /// A new volume with the content of a snapshot.
    pub fn clone_snapshot(&mut self, snapshot: u64, volume: u64) {
        let source = &self.volumes[&snapshot];
        let mut clone = Volume { generation: 0, cut: None, ..source.clone() };
        clone.family.insert(volume);
        let before = self.volumes.insert(volume, clone);
        assert!(before.is_none(), "volume ids are never reused");
    }

    /// The volume has the content and size of one of its snapshots.
    pub fn roll_back(&mut self, volume: u64, snapshot: u64) {
        let Volume { bytes, blocks, .. } = self.volumes[&snapshot].clone();
        let target = self.volume_mut(volume);
        (target.bytes, target.blocks) = (bytes, blocks);
        assert!(target.cuts.is_empty(), "a volume is not rolled back while a snapshot is taken");
    }

    /// The contents of blocks that hold data, as far as they are known: those that are surely one
    /// of their kind, and all that may be.
    pub fn data(&self, volume: u64) -> (Blocks, Blocks) {
        let (mut sure, mut possible) = (BTreeSet::new(), BTreeSet::new());
        for (block, register) in &self.volumes[&volume].blocks {
            let values = register.values();
            let data = values.iter().filter(|value| value.iter().any(|&serial| serial != 0));
            let data: Vec<(u64, Value)> = data.map(|value| (*block, *value)).collect();
            if values.len() == 1 && register.pending() == 0 {
                sure.extend(data.iter().copied());
            }
            possible.extend(data);
        }
        (sure, possible)
    }

    /// A write was invoked while snapshots of its volume are being taken.
    pub(super) fn note_write(&mut self, volume: u64, serial: u64) {
        for taking in self.taking.values_mut().filter(|taking| taking.volume == volume) {
            taking.writes.push(serial);
        }
    }

    /// The process is gone: what was being taken is taken or is not.
    pub(super) fn interrupt_snapshots(
        &mut self,
        cut: impl Fn(&mut Register, OperationId) -> Register,
    ) {
        for (id, Taking { volume, writes }) in std::mem::take(&mut self.taking) {
            let target = self.volume_mut(volume);
            target.cuts.remove(&id);
            let mut whole = target.clone().cut_out(id, Register::cut);
            whole.cut = Some(Cut { writes, ..Cut::default() });
            let taken = target.cut_out(id, &cut);
            self.interrupted.insert(volume, Interrupted { taken, whole });
        }
    }

    /// Looks at what a block of a snapshot says of the writes that were under way.
    pub(super) fn check_cut(
        &mut self,
        snapshot: u64,
        block: u64,
        mask: u8,
        value: &Value,
    ) -> Result<(), Violation> {
        let target = self.volumes.get_mut(&snapshot).expect("only volumes that exist are read");
        let Some(cut) = &mut target.cut else { return Ok(()) };
        let writes = &self.writes;
        for number in (0..SECTORS).filter(|number| mask & (1 << number) != 0) {
            let (shown, sector) = (value[number], block * SECTORS as u64 + number as u64);
            for serial in cut.writes.clone() {
                if !writes[&serial].covers(sector) || shown == 0 {
                    continue;
                }
                // One that never ended may be in it as well as others.
                let ended = writes[&serial].acknowledged;
                let shown_ended = writes[&shown].acknowledged;
                if shown == serial || ended.is_some_and(|ended| shown > ended) {
                    cut.included.insert(serial);
                } else if ended.is_some() && shown_ended.is_some_and(|ended| ended < serial) {
                    cut.excluded.insert(serial);
                }
            }
        }
        cut.contradiction(writes).map_or(Ok(()), |what| {
            let sentence = format!("snapshot {snapshot}: {what}");
            Err(Violation { kind: Wrong::NoCut, sentence })
        })
    }
}

impl Volume {
    /// What a cut through it shows.
    fn cut_out(
        &mut self,
        id: OperationId,
        cut: impl Fn(&mut Register, OperationId) -> Register,
    ) -> Volume {
        let blocks = self.blocks.iter_mut().map(|(block, register)| (*block, cut(register, id)));
        let mut blocks: BTreeMap<u64, Register> = blocks.collect();
        blocks.retain(|_, register| !register.is_plain_zero());
        Volume { bytes: self.bytes, blocks, family: self.family.clone(), ..Volume::default() }
    }
}

impl Cut {
    /// Why no moment explains it.
    fn contradiction(&self, writes: &BTreeMap<u64, Written>) -> Option<String> {
        if let Some(split) = self.included.intersection(&self.excluded).next() {
            return Some(format!("it has a part of write {split}"));
        }
        let last = *self.included.last()?;
        let ended = |serial: &u64| writes[serial].acknowledged.is_some_and(|ended| ended < last);
        let missed = self.excluded.iter().find(|serial| ended(serial))?;
        Some(format!("it has write {last}, but not {missed}, which ended before that began"))
    }
}
