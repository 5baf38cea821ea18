//! What must be true of a node that is started on what a crash left.

use super::{
    acts::request_for,
    bench::{Bench, Takings},
    books::{Change, GroupSnapshot, Shape, entry},
};
use crate::{
    crashpoints::check_offline,
    disk::Image,
    driver::Driver,
    ledger::Crash,
    node::{Media, SimNode},
    onedisk::Setup,
    oracle::Blocks,
};
use engine::admin::{AdminReply, AdminRequest, LayerKind, LayerReport, VolumeReport};
use proto::{BLOCK_SIZE, Duration, Time};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

impl Bench {
    /// Starts a node on what a crash left and verifies it.
    pub(super) fn recover(
        &self,
        setup: &Setup,
        disk: Image,
        journal: Image,
        crash: Crash,
        key: u64,
    ) -> Result<(), String> {
        let mut oracle = self.oracle.clone();
        match crash {
            Crash::Power => oracle.power_cut(),
            Crash::Kill => oracle.killed(),
        }
        let now = self.driver.now;
        let node = SimNode::start(now, setup, Media::of(setup, disk, journal));
        let mut after = Bench::of(node, now, oracle, self.books.clone());
        after.driver.await_ready()?;
        after.reconcile(self.pending.as_ref().map(|(change, _)| change))?;
        after.verify()?;
        after.driver.node.engine().check();
        if key % 8 < 2 {
            after.empty()?;
        }
        check_offline(&after.driver.node.media().disk)
    }

    /// Compares what there is with the books: the change that was under way was made wholly, and
    /// then it is booked, or not at all.
    fn reconcile(&mut self, pending: Option<&Change>) -> Result<(), String> {
        let may_tear = matches!(pending, Some(Change::SnapshotGroup { .. }));
        if may_tear {
            self.await_duties()?;
        } else if self.driver.node.engine().torn_groups() > 0 {
            return Err("a group snapshot that was answered is torn".into());
        }
        let reports = self.volumes()?;
        let mut shape = Shape::new();
        for report in &reports {
            let tags = shape.entry(report.name.clone()).or_default();
            tags.extend(self.tags(&report.name)?);
        }
        let (before, after) = (self.books.shape(), pending.map(|p| self.books.shape_after(p)));
        let was_made = match pending {
            None => false,
            Some(Change::Resize { name, bytes }) => {
                reports.iter().any(|report| report.name == *name && report.bytes == *bytes)
            }
            Some(Change::Rollback { name, .. }) => self.has_new_heads([name.clone()])?,
            Some(Change::RollbackGroup { tag }) => {
                self.has_new_heads(self.books.parts(tag).into_keys())?
            }
            Some(Change::Join { name }) => {
                let groups = self.groups()?;
                groups.iter().any(|group| group.volumes.contains(name))
            }
            Some(_) => Some(&shape) == after.as_ref(),
        };
        let wanted = after.filter(|_| was_made).unwrap_or(before);
        if shape != wanted {
            return Err(format!("there are {shape:?}, not {wanted:?}, {pending:?} under way"));
        }
        if let Some(change) = pending.filter(|_| was_made) {
            self.book(change.clone(), Takings::new())?;
        } else if may_tear {
            self.book_torn()?;
        }
        self.oracle.forget_interrupted();
        reports.iter().try_for_each(|report| self.compare(report))?;
        self.undelete_all()
    }

    /// Whether all of these volumes write other layers than the books say. Some of them: an error.
    fn has_new_heads(&mut self, names: impl IntoIterator<Item = String>) -> Result<bool, String> {
        let mut found = BTreeSet::new();
        for name in names {
            found.insert(self.head(&name)? != self.books.volume(&name).head);
        }
        match found.len() {
            0 | 1 => Ok(found.contains(&true)),
            _ => Err("something was done to some volumes and not to others".into()),
        }
    }

    /// A group snapshot was not taken, or was torn and is gone by now. Then the volumes have new
    /// heads.
    fn book_torn(&mut self) -> Result<(), String> {
        let members = self.books.group().members.clone();
        if self.has_new_heads(members.clone())? {
            for name in members {
                let head = self.head(&name)?;
                let former = std::mem::replace(&mut self.books.volume_mut(&name).head, head);
                self.books.sealed.insert(former);
            }
        }
        Ok(())
    }

    /// What is in the trash comes back as it was.
    fn undelete_all(&mut self) -> Result<(), String> {
        for name in self.books.in_trash() {
            let change = Change::Undelete { name };
            self.consult(request_for(&change))?;
            self.book(change, Takings::new())?;
        }
        let reports = self.volumes()?;
        reports.iter().try_for_each(|report| self.compare(report))
    }

    fn tags(&mut self, name: &str) -> Result<Vec<String>, String> {
        let request = AdminRequest::SnapshotList { name: name.into(), reclaimable: false };
        match self.consult(request)? {
            AdminReply::Snapshots(reports) => Ok(reports.into_iter().map(|r| r.tag).collect()),
            other => Err(format!("the list of snapshots is {other:?}")),
        }
    }

    /// Compares id, size and head of a volume.
    fn compare(&mut self, report: &VolumeReport) -> Result<(), String> {
        let head = self.head(&report.name)?;
        let known = self.books.volume(&report.name);
        let (found, wanted) = ((report.volume.0, head), (known.id, known.head));
        if found != wanted {
            return Err(format!("id and head of {} are {found:?}, not {wanted:?}", report.name));
        }
        let bytes = self.oracle.bytes(known.id);
        if report.bytes != bytes {
            return Err(format!("{} has {} bytes, not {bytes}", report.name, report.bytes));
        }
        Ok(())
    }

    /// Reads every volume at once, every snapshot when it is sealed, and counts what is used.
    pub(super) fn verify(&mut self) -> Result<(), String> {
        self.read_volumes()?;
        if self.books.sealed.is_empty() {
            self.compare_groups()?;
            return self.compare_space(false);
        }
        self.await_duties()?;
        self.read_snapshots()?;
        self.compare_groups()?;
        self.idle(DROPPING);
        self.compare_space(true)
    }

    fn read_volumes(&mut self) -> Result<(), String> {
        for name in self.books.volumes.keys().cloned().collect::<Vec<_>>() {
            let connection = self.ask_open(&name);
            let is_answered = |driver: &mut Driver| driver.answers.contains_key(&connection);
            self.driver.run_until(&name, is_answered)?;
            let answer = self.driver.answers.remove(&connection).expect("just seen");
            self.opened(&name, answer)?;
            self.read_all(connection, self.books.volume(&name).id)?;
            self.hang_up_all();
        }
        Ok(())
    }

    fn read_snapshots(&mut self) -> Result<(), String> {
        for (name, volume) in self.books.volumes.clone() {
            for (tag, layer) in volume.snapshots {
                let full = format!("{name}@{tag}");
                let connection = self.open_at(&full, entry(layer))?;
                self.read_all(connection, entry(layer))
                    .map_err(|error| format!("{full}: {error}"))?;
                self.driver.hang_up(connection);
            }
        }
        Ok(())
    }

    /// Compares the groups with the books, when all snapshots were read.
    fn compare_groups(&mut self) -> Result<(), String> {
        let Some(known) = self.books.group.clone() else { return Ok(()) };
        let groups = self.groups()?;
        let [group] = &groups[..] else { return Err(format!("there are groups {groups:?}")) };
        if !known.members.iter().eq(&group.volumes) {
            return Err(format!("{:?} are in the group, not {:?}", group.volumes, known.members));
        }
        let mut found = Vec::new();
        for snapshot in &group.snapshots {
            let parts: BTreeSet<u64> = snapshot.members.iter().map(|part| part.layer.0).collect();
            let is_whole = snapshot.count as usize == parts.len();
            if snapshot.complete != is_whole || snapshot.sealing {
                return Err(format!("an odd group snapshot: {snapshot:?}"));
            }
            let entries: Vec<u64> = parts.iter().map(|layer| entry(*layer)).collect();
            self.oracle.check_moment(&entries).map_err(|wrong| wrong.to_string())?;
            let (tag, count) = (snapshot.tag.clone(), snapshot.count as usize);
            found.push(GroupSnapshot { tag, count, parts });
        }
        match found == known.snapshots {
            true => Ok(()),
            false => Err(format!("there are {found:?}, not {:?}", known.snapshots)),
        }
    }

    /// Waits until the node has sealed and flattened what was to be, and deleted what was torn.
    fn await_duties(&mut self) -> Result<(), String> {
        loop {
            let reports = self.volumes()?;
            let is_over = |report: &VolumeReport| !report.sealing && report.flatten.is_none();
            let is_torn = self.driver.node.engine().torn_groups() > 0;
            if !is_torn && reports.iter().all(is_over) {
                for report in reports.iter().filter(|report| report.origin.is_none()) {
                    self.books.volume_mut(&report.name).origin = None;
                }
                return Ok(());
            }
            if !self.driver.proceed(Time(u64::MAX)) {
                return Err(format!("sealing and flattening never end: {reports:?}"));
            }
        }
    }

    /// Compares the space in use with what it must be: all of it, when nothing is being dropped.
    fn compare_space(&mut self, of_all: bool) -> Result<(), String> {
        let layers = self.layers()?;
        let owed = self.owed(&layers)?;
        let of_layers = layers.iter().map(|layer| layer.used_bytes).sum();
        let used = if of_all { self.data_bytes()? } else { of_layers } / BLOCK_SIZE as u64;
        if owed.contains(&used) {
            return Ok(());
        }
        Err(format!("{used} blocks are used, not {owed:?}, by {layers:?}"))
    }

    /// How many blocks these layers must have: each what it shows and its parent does not. What is
    /// kept unseen must be needed by others.
    fn owed(&self, layers: &[LayerReport]) -> Result<RangeInclusive<u64>, String> {
        let heads: BTreeMap<u64, u64> =
            self.books.volumes.values().map(|volume| (volume.head, volume.id)).collect();
        let mut shown: BTreeMap<u64, (Blocks, Blocks)> = BTreeMap::new();
        let (mut least, mut most) = (0, 0);
        for report in layers {
            let layer = report.layer.0;
            let known = match heads.get(&layer) {
                Some(volume) => *volume,
                None if self.books.sealed.contains(&layer) => entry(layer),
                None => return Err(format!("nobody knows {report:?}")),
            };
            let children = || layers.iter().filter(|child| child.parent == Some(report.layer));
            if report.kind == LayerKind::Hidden {
                // Of volumes that are gone nobody tells which layer was whose.
                let is_clones =
                    |child: &LayerReport| child.volume != report.volume || report.volume.is_none();
                if children().count() < 2 && !children().any(is_clones) {
                    return Err(format!("{report:?} is needed by nobody"));
                }
            }
            let (sure, possible) = self.oracle.data(known);
            let none = Default::default();
            let (parent_sure, parent_possible) = match report.parent {
                Some(parent) => shown.get(&parent.0).ok_or("a layer comes before its parent")?,
                None => &none,
            };
            least += sure.difference(parent_possible).count() as u64;
            most += possible.difference(parent_sure).count() as u64;
            shown.insert(layer, (sure, possible));
        }
        Ok(least..=most)
    }

    fn data_bytes(&mut self) -> Result<u64, String> {
        match self.consult(AdminRequest::DiskList)? {
            AdminReply::Disks(disks) => Ok(disks.iter().map(|disk| disk.data_bytes).sum()),
            other => Err(format!("the list of disks is {other:?}")),
        }
    }

    /// Deletes everything: all space must come back.
    pub(super) fn empty(&mut self) -> Result<(), String> {
        for name in self.books.shape().into_keys() {
            let (with_snapshots, keep_s) = (true, Some(0));
            self.consult(AdminRequest::VolumeDelete { name, with_snapshots, keep_s })?;
        }
        self.check_empty()
    }

    /// Everything was deleted: all space must come back.
    pub(super) fn check_empty(&mut self) -> Result<(), String> {
        self.idle(DROPPING);
        let (layers, used) = (self.layers()?, self.data_bytes()?);
        if used != 0 || !layers.is_empty() {
            return Err(format!("with everything deleted, {used} bytes are used by {layers:?}"));
        }
        self.driver.node.engine().check();
        Ok(())
    }
}

/// Time within which what was dropped is gone.
pub(super) const DROPPING: Duration = Duration::from_secs(5);
