//! The trash, deletion for good, and locks against both.

use crate::command::Answer;
use crate::group::{forget_member, forget_snapshot};
use crate::layer::prune;
use crate::refusal::Refusal;
use crate::state::State;
use crate::volume::{Trash, Volume, check_name};
use proto::{LayerId, VolumeId};
use std::sync::Arc;

impl State {
    /// Whether a volume may be deleted or put into the trash at this time.
    fn vet_delete(&self, volume: &Volume, with_snapshots: bool, now: u64) -> Result<(), Refusal> {
        if let Some(by) = volume.all_attachments().next() {
            return Err(self.attached(volume, by));
        }
        let count = volume.snapshots.len();
        if count > 0 && !with_snapshots {
            return Err(Refusal::HasSnapshots { name: volume.name.clone(), count });
        }
        match volume.snapshots.iter().find(|snapshot| snapshot.is_locked(now)) {
            Some(locked) => Err(locked.refusal(volume)),
            None => Ok(()),
        }
    }

    pub(crate) fn drop_volume(
        &mut self,
        id: VolumeId,
        with_snapshots: bool,
        now: u64,
    ) -> Result<Answer, Refusal> {
        self.vet_delete(self.volume(id)?, with_snapshots, now)?;
        Ok(self.erase(id))
    }

    /// Takes a volume, vetted before, out of the map for good.
    fn erase(&mut self, id: VolumeId) -> Answer {
        let map = self.change();
        let volume = Arc::make_mut(&mut map.volumes).remove(&id).expect("looked up before");
        if volume.trash.is_none() {
            Arc::make_mut(&mut map.names).remove(&volume.name);
            map.provisioned_bytes -= u128::from(volume.bytes);
        }
        map.snapshots -= volume.snapshots.len();
        map.schedules -= volume.schedules.len();
        forget_member(map, id);
        for snapshot in &volume.snapshots {
            forget_snapshot(map, snapshot.layer);
        }
        // The newest first: a layer without children goes whole, without being merged.
        let mut layers: Vec<LayerId> = volume.layers().collect();
        layers.sort_unstable();
        Answer::Dropped(prune(map, layers))
    }

    pub(crate) fn trash_volume(
        &mut self,
        id: VolumeId,
        with_snapshots: bool,
        now: u64,
        expires_unix_s: u64,
    ) -> Result<Answer, Refusal> {
        self.vet_delete(self.volume(id)?, with_snapshots, now)?;
        let map = self.change();
        let trashed = Arc::make_mut(&mut map.volumes).get_mut(&id).expect("looked up before");
        let trashed = Arc::make_mut(trashed);
        trashed.trash = Some(Trash { since_unix_s: now, expires_unix_s });
        let (name, bytes) = (trashed.name.clone(), trashed.bytes);
        Arc::make_mut(&mut map.names).remove(&name);
        map.provisioned_bytes -= u128::from(bytes);
        forget_member(map, id);
        Ok(Answer::Done)
    }

    /// A volume that is in the trash.
    fn trashed(&self, id: VolumeId) -> Result<&Volume, Refusal> {
        match self.map.volume(id) {
            Some(volume) if volume.trash.is_some() => Ok(volume),
            Some(volume) => Err(Refusal::NotInTrash { name: volume.name.clone() }),
            None => Err(Refusal::UnknownVolume { volume: id }),
        }
    }

    pub(crate) fn undelete(&mut self, id: VolumeId, name: &str) -> Result<Answer, Refusal> {
        check_name(name)?;
        self.trashed(id)?;
        if self.map.names.contains_key(name) {
            return Err(Refusal::NameTaken { name: name.to_owned() });
        }
        let volume = self.change_volume(id);
        volume.trash = None;
        volume.name = name.to_owned();
        let bytes = volume.bytes;
        let map = Arc::make_mut(&mut self.map);
        Arc::make_mut(&mut map.names).insert(name.to_owned(), id);
        map.provisioned_bytes += u128::from(bytes);
        Ok(Answer::Done)
    }

    pub(crate) fn purge(&mut self, id: VolumeId) -> Result<Answer, Refusal> {
        self.trashed(id)?;
        Ok(self.erase(id))
    }

    pub(crate) fn lock_snapshot(
        &mut self,
        id: VolumeId,
        tag: &str,
        until: u64,
    ) -> Result<Answer, Refusal> {
        let (volume, snapshot) = self.snapshot(id, tag)?;
        let (layer, present) = (snapshot.layer, snapshot.locked_until_unix_s);
        if until == present {
            return Ok(Answer::Done);
        }
        if until < present {
            let (name, tag) = (volume.name.clone(), tag.to_owned());
            return Err(Refusal::LockedLonger { name, tag, until_unix_s: present });
        }
        let mut snapshots = self.change_volume(id).snapshots.iter_mut();
        let snapshot = snapshots.find(|snapshot| snapshot.layer == layer).expect("found above");
        snapshot.locked_until_unix_s = until;
        Ok(Answer::Done)
    }

    /// Whether a snapshot may be dropped at this time; what it names.
    pub(crate) fn vet_drop_snapshot(
        &self,
        volume: &Volume,
        tag: &str,
        now: u64,
    ) -> Result<LayerId, Refusal> {
        let (volume, snapshot) = self.sealed_snapshot_of(volume, tag)?;
        if let Some(reader) = snapshot.readers.first() {
            return Err(self.snapshot_read(volume, snapshot, reader));
        }
        match snapshot.is_locked(now) {
            true => Err(snapshot.refusal(volume)),
            false => Ok(snapshot.layer),
        }
    }

    /// Takes a snapshot's name away, within a change; its layer is still to be pruned.
    pub(crate) fn unname(&mut self, id: VolumeId, layer: LayerId) {
        self.volume_again(id).snapshots.retain(|snapshot| snapshot.layer != layer);
        let map = Arc::make_mut(&mut self.map);
        map.snapshots -= 1;
        forget_snapshot(map, layer);
    }

    pub(crate) fn drop_snapshot(
        &mut self,
        id: VolumeId,
        tag: &str,
        now: u64,
    ) -> Result<Answer, Refusal> {
        let layer = self.vet_drop_snapshot(self.volume(id)?, tag, now)?;
        self.change();
        self.unname(id, layer);
        Ok(Answer::Dropped(prune(Arc::make_mut(&mut self.map), [layer])))
    }
}
