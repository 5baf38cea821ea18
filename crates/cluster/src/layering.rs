//! The commands that make and drop layers: snapshots, clones, rollback, flattening, shortening.

use crate::command::Answer;
use crate::group::part_sealed;
use crate::layer::{Layer, Snapshot, onto, prune};
use crate::map::Map;
use crate::refusal::Refusal;
use crate::state::State;
use crate::volume::{Attachment, Volume, check_name, check_tag, printable};
use proto::limits::{ATTACHMENTS_MAX, HOLDER_BYTES_MAX, LAYERS_MAX, SNAPSHOTS_MAX, VOLUMES_MAX};
use proto::{Generation, LayerId, LineageId, NodeId, VolumeId};
use std::sync::Arc;

/// Puts a new layer into the map.
pub(crate) fn add_layer(map: &mut Map, layer: impl FnOnce(LayerId) -> Layer) -> LayerId {
    let id = map.next_layer;
    map.next_layer = LayerId(id.0 + 1);
    Arc::make_mut(&mut map.layers).insert(id, layer(id));
    id
}

impl State {
    pub(crate) fn snapshot(
        &self,
        volume: VolumeId,
        tag: &str,
    ) -> Result<(&Volume, &Snapshot), Refusal> {
        self.snapshot_of(self.volume(volume)?, tag)
    }

    fn snapshot_of<'a>(
        &self,
        volume: &'a Volume,
        tag: &str,
    ) -> Result<(&'a Volume, &'a Snapshot), Refusal> {
        check_tag(tag)?;
        match volume.snapshot(tag) {
            Some(snapshot) => Ok((volume, snapshot)),
            None => {
                Err(Refusal::UnknownSnapshot { name: volume.name.clone(), tag: tag.to_owned() })
            }
        }
    }

    /// A snapshot whose layer is sealed for good.
    pub(crate) fn sealed_snapshot(
        &self,
        volume: VolumeId,
        tag: &str,
    ) -> Result<(&Volume, &Snapshot), Refusal> {
        self.sealed_snapshot_of(self.volume(volume)?, tag)
    }

    /// The same of a volume that may be in the trash.
    pub(crate) fn sealed_snapshot_of<'a>(
        &self,
        volume: &'a Volume,
        tag: &str,
    ) -> Result<(&'a Volume, &'a Snapshot), Refusal> {
        let (volume, snapshot) = self.snapshot_of(volume, tag)?;
        if self.map.sealing(volume) == Some(snapshot.layer) {
            return Err(Refusal::Sealing { name: volume.name.clone() });
        }
        Ok((volume, snapshot))
    }

    fn not_sealing(&self, volume: &Volume) -> Result<(), Refusal> {
        match self.map.sealing(volume) {
            Some(_) => Err(Refusal::Sealing { name: volume.name.clone() }),
            None => Ok(()),
        }
    }

    /// Whether so many layers may be added.
    pub(crate) fn vet_new_layers(&self, count: usize) -> Result<(), Refusal> {
        // Hidden layers are as many as clones of clones were deleted.
        match self.map.layers.len() + count > LAYERS_MAX {
            true => Err(Refusal::TooManyLayers),
            false => Ok(()),
        }
    }

    /// Whether so many snapshots may be added, of whatever volumes.
    pub(crate) fn vet_snapshots(&self, count: usize) -> Result<(), Refusal> {
        if self.map.snapshots + count > SNAPSHOTS_MAX {
            return Err(Refusal::TooManySnapshots);
        }
        self.vet_new_layers(count)
    }

    /// Whether a snapshot of this volume may be taken now.
    pub(crate) fn vet_snapshot(&self, id: VolumeId, tag: &str) -> Result<(), Refusal> {
        check_tag(tag)?;
        let volume = self.volume(id)?;
        if volume.snapshot(tag).is_some() {
            return Err(Refusal::TagTaken { name: volume.name.clone(), tag: tag.to_owned() });
        }
        self.not_sealing(volume)?;
        if volume.pending_discard.is_some() {
            return Err(Refusal::ShrinkPending { name: volume.name.clone() });
        }
        // Readers of the head would have to move to the new one.
        match volume.attachments.iter().find(|held| held.read_only) {
            Some(reader) => Err(self.attached(volume, reader)),
            None => Ok(()),
        }
    }

    /// Takes a snapshot that was vetted before, within a change; what it names.
    pub(crate) fn take_snapshot(
        &mut self,
        id: VolumeId,
        tag: &str,
        unix_s: u64,
        schedule: Option<&str>,
    ) -> LayerId {
        let volume = self.map.volume(id).expect("vetted before");
        let (lineage, sealed, bytes) = (volume.lineage, volume.head, volume.bytes);
        let overlap = self.map.layers[&sealed].overlap;
        let map = Arc::make_mut(&mut self.map);
        map.snapshots += 1;
        let head = add_layer(map, |_| Layer { lineage, parent: sealed, overlap, opened: false });
        let volume = self.volume_again(id);
        volume.head = head;
        volume.snapshots.push(Snapshot {
            tag: tag.to_owned(),
            layer: sealed,
            bytes,
            created_unix_s: unix_s,
            readers: Vec::new(),
            locked_until_unix_s: 0,
            schedule: schedule.map(str::to_owned),
        });
        sealed
    }

    pub(crate) fn create_snapshot(
        &mut self,
        id: VolumeId,
        tag: &str,
        unix_s: u64,
    ) -> Result<Answer, Refusal> {
        self.vet_snapshot(id, tag)?;
        self.vet_snapshots(1)?;
        self.change();
        Ok(Answer::SnapshotCreated { layer: self.take_snapshot(id, tag, unix_s, None) })
    }

    pub(crate) fn layer_opened(
        &mut self,
        id: VolumeId,
        generation: Generation,
        layer: LayerId,
    ) -> Result<Answer, Refusal> {
        let volume = self.written_by(id, generation)?;
        if volume.head != layer || self.map.layers[&layer].opened {
            return Ok(Answer::Done);
        }
        let map = self.change();
        let layers = Arc::make_mut(&mut map.layers);
        let head = layers.get_mut(&layer).expect("a volume has its head");
        head.opened = true;
        let sealed = head.parent;
        part_sealed(map, sealed);
        Ok(Answer::Done)
    }

    pub(crate) fn clone_snapshot(
        &mut self,
        id: VolumeId,
        tag: &str,
        name: &str,
        unix_s: u64,
    ) -> Result<Answer, Refusal> {
        check_name(name)?;
        let (volume, snapshot) = self.sealed_snapshot(id, tag)?;
        let durability = volume.durability;
        self.vet_new_volume(name)?;
        let (parent, bytes) = (snapshot.layer, snapshot.bytes);
        let layer = |id: LayerId| {
            let lineage = LineageId(id.0);
            Layer { lineage, parent, overlap: bytes, opened: true }
        };
        let made = self.add_volume(name, bytes, layer, unix_s);
        Ok(self.make_durable(made, durability))
    }

    /// Whether a volume of that name may be added.
    pub(crate) fn vet_new_volume(&self, name: &str) -> Result<(), Refusal> {
        if self.map.names.contains_key(name) {
            return Err(Refusal::NameTaken { name: name.to_owned() });
        }
        if self.map.volumes.len() >= VOLUMES_MAX {
            return Err(Refusal::TooManyVolumes);
        }
        self.vet_new_layers(1)
    }

    /// Whether a volume may be rolled back to a snapshot now.
    pub(crate) fn vet_rollback(&self, id: VolumeId, tag: &str) -> Result<(), Refusal> {
        let (volume, _) = self.sealed_snapshot(id, tag)?;
        // The layer below an unopened head, were that head to go, would never be settled.
        self.not_sealing(volume)?;
        match volume.attachments.first() {
            Some(by) => Err(self.attached(volume, by)),
            None => Ok(()),
        }
    }

    /// Rolls a volume back that was vetted before, within a change; the head it had, which is still
    /// to be pruned.
    pub(crate) fn roll_back(&mut self, id: VolumeId, tag: &str) -> LayerId {
        let volume = self.map.volume(id).expect("vetted before");
        let snapshot = volume.snapshot(tag).expect("vetted before");
        let (lineage, parent, bytes) = (volume.lineage, snapshot.layer, snapshot.bytes);
        let (former, present) = (volume.head, volume.bytes);
        // What shows through the lineage is what did when the snapshot was taken.
        let overlap = self.map.layers[&parent].overlap;
        let map = Arc::make_mut(&mut self.map);
        let head = add_layer(map, |_| Layer { lineage, parent, overlap, opened: false });
        map.provisioned_bytes = map.provisioned_bytes - u128::from(present) + u128::from(bytes);
        let volume = self.volume_again(id);
        volume.head = head;
        volume.bytes = bytes;
        volume.pending_discard = None;
        volume.flattening &= overlap > 0;
        former
    }

    pub(crate) fn rollback(&mut self, id: VolumeId, tag: &str) -> Result<Answer, Refusal> {
        self.vet_rollback(id, tag)?;
        self.vet_new_layers(1)?;
        self.change();
        let former = self.roll_back(id, tag);
        Ok(Answer::Dropped(prune(Arc::make_mut(&mut self.map), [former])))
    }

    pub(crate) fn set_flatten(&mut self, id: VolumeId, wanted: bool) -> Result<Answer, Refusal> {
        let volume = self.volume(id)?;
        if volume.flattening == wanted {
            return Ok(Answer::Done);
        }
        if wanted && self.map.layers[&volume.head].overlap == 0 {
            return Err(Refusal::NothingToFlatten { name: volume.name.clone() });
        }
        self.change_volume(id).flattening = wanted;
        Ok(Answer::Done)
    }

    pub(crate) fn flattened(
        &mut self,
        id: VolumeId,
        generation: Generation,
    ) -> Result<Answer, Refusal> {
        let volume = self.written_by(id, generation)?;
        let head = volume.head;
        let layer = self.map.layers[&head];
        // It was called off meanwhile: the session goes on as if nothing had been copied.
        if layer.overlap == 0 || !volume.flattening {
            return Ok(Answer::Dropped(Vec::new()));
        }
        let is_lowest = self.map.parent_in_lineage(head).is_none();
        self.change_volume(id).flattening = false;
        let map = Arc::make_mut(&mut self.map);
        let flat = Arc::make_mut(&mut map.layers).get_mut(&head).expect("a volume has its head");
        flat.overlap = 0;
        if !is_lowest {
            // Older layers of the lineage may still show the parent.
            return Ok(Answer::Dropped(Vec::new()));
        }
        flat.parent = LayerId(0);
        Ok(Answer::Dropped(prune(map, [layer.parent])))
    }

    pub(crate) fn shortened(
        &mut self,
        id: VolumeId,
        generation: Generation,
        parent: LayerId,
    ) -> Result<Answer, Refusal> {
        let volume = self.volume(id)?;
        if volume.writer().is_none_or(|writer| writer.generation != generation) {
            return Err(Refusal::NotTheWriter { name: volume.name.clone(), generation });
        }
        let head = volume.head;
        let former = self.map.layers[&head].parent;
        // A snapshot goes on showing the former parent. Else it is reported twice, or everything is
        // to be copied: the session goes on as if nothing had been.
        let has_snapshots = self.map.parent_in_lineage(head).is_some();
        if has_snapshots || volume.flattening || former == parent {
            return Ok(Answer::Dropped(Vec::new()));
        }
        let chain = self.map.chain(head);
        let Some(origin) = onto(&chain, parent) else {
            return Err(Refusal::NotBelow { name: volume.name.clone(), layer: parent });
        };
        let map = self.change();
        let layer = Arc::make_mut(&mut map.layers).get_mut(&head).expect("a volume has its head");
        (layer.parent, layer.overlap) = (parent, origin.bytes);
        Ok(Answer::Dropped(prune(map, [former])))
    }

    pub(crate) fn attach_snapshot(
        &mut self,
        id: VolumeId,
        tag: &str,
        node: NodeId,
        holder: &str,
        unix_s: u64,
    ) -> Result<Answer, Refusal> {
        let layer = self.sealed_snapshot(id, tag)?.1.layer;
        if self.map.node(node).is_none() {
            return Err(Refusal::UnknownNode { node });
        }
        if self.map.attachments >= ATTACHMENTS_MAX {
            return Err(Refusal::TooManyAttachments);
        }
        let volume = self.change_volume(id);
        let generation = Generation(volume.generation.0 + 1);
        volume.generation = generation;
        let holder = printable(holder, HOLDER_BYTES_MAX);
        let reader = Attachment { node, generation, holder, read_only: true, since_unix_s: unix_s };
        let mut snapshots = volume.snapshots.iter_mut();
        let snapshot = snapshots.find(|snapshot| snapshot.layer == layer).expect("found above");
        snapshot.readers.push(reader);
        Arc::make_mut(&mut self.map).attachments += 1;
        Ok(Answer::Attached { generation })
    }
}
