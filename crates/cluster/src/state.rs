//! The state machine: applies commands one after the other, each wholly or not at all.

use crate::attempt;
use crate::command::{Answer, Command};
use crate::durability::{self, Durability};
use crate::group;
use crate::layer::{self, Layer, hold};
use crate::layering::add_layer;
use crate::machine;
use crate::map::Map;
use crate::membership;
use crate::partition::Partitions;
use crate::recovery;
use crate::redundancy;
use crate::refusal::Refusal;
use crate::schedule;
use crate::source;
use crate::token::{self, Applicant};
use crate::volume::{
    Attachment, PendingDiscard, Volume, check_name, check_size, check_tag, printable,
};
use proto::limits::{
    ATTACHMENTS_MAX, HOLDER_BYTES_MAX, LAYERS_MAX, PARTITION_BITS_MAX, SCHEDULES_MAX,
    SNAPSHOTS_MAX, VOLUMES_MAX,
};
use proto::{ClusterId, Epoch, Generation, LayerId, LineageId, NodeId, VolumeId};
use std::sync::Arc;

/// Epochs, ids, generations and configurations are counted up to here: one step a nanosecond gets
/// there in three centuries, so what is read from a snapshot can always be counted on.
pub(crate) const COUNT_MAX: u64 = u64::MAX / 2;

/// The cluster's agreed state.
///
/// It is one [`Map`], changed in place as long as nobody else holds it and otherwise copied first;
/// the parts of it that a command does not touch are shared between copies.
///
/// ```
/// use cluster::{Answer, Command, State};
/// use proto::{ClusterId, DiskId, Incarnation, NodeId};
///
/// let mut state = State::default();
/// let (cluster, node, disk) = (ClusterId(1), NodeId(2), DiskId(3));
/// state.apply(&Command::CreateCluster { cluster, partition_bits: 12, unix_s: 0 }).unwrap();
/// state.apply(&Command::AddNode { node, name: "alpha".into() }).unwrap();
/// state.apply(&Command::OpenDisk { disk, node, incarnation: Incarnation(1) }).unwrap();
/// let create = Command::CreateVolume { name: "vm1".into(), bytes: 1 << 30, unix_s: 0 };
/// let Ok(Answer::VolumeCreated { volume }) = state.apply(&create) else { panic!() };
/// assert_eq!(state.map().volume_named("vm1").unwrap().id, volume);
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    pub(crate) map: Arc<Map>,
}

impl Default for State {
    /// The state before the cluster is created.
    fn default() -> State {
        State { map: Arc::new(Map::empty()) }
    }
}

impl State {
    /// The present map; costs a reference.
    pub fn map(&self) -> Arc<Map> {
        Arc::clone(&self.map)
    }

    /// Carries out one command, or refuses it and changes nothing. The epoch grows by one exactly
    /// if something changed.
    pub fn apply(&mut self, command: &Command) -> Result<Answer, Refusal> {
        let creating = matches!(command, Command::CreateCluster { .. });
        if self.map.cluster == ClusterId(0) && !creating {
            return Err(Refusal::NoCluster);
        }
        match command {
            &Command::CreateCluster { cluster, partition_bits, unix_s } => {
                self.create_cluster(cluster, partition_bits, unix_s)
            }
            Command::AddNode { node, name } => self.add_node(*node, name),
            &Command::OpenDisk { disk, node, incarnation } => {
                self.open_disk(disk, node, incarnation)
            }
            Command::CreateVolume { name, bytes, unix_s } => {
                self.create_volume(name, *bytes, *unix_s)
            }
            &Command::ResizeVolume { volume, bytes, allow_shrink } => {
                self.resize_volume(volume, bytes, allow_shrink)
            }
            Command::RenameVolume { volume, name } => self.rename_volume(*volume, name),
            &Command::DeleteVolume { volume, with_snapshots } => {
                self.drop_volume(volume, with_snapshots, 0)
            }
            Command::Attach { volume, node, holder, read_only, unix_s } => {
                self.attach(*volume, *node, holder, *read_only, *unix_s)
            }
            &Command::Detach { volume, generation } => Ok(self.detach(volume, generation)),
            &Command::ShrinkDone { volume, generation, discarded } => {
                self.shrink_done(volume, generation, discarded)
            }
            &Command::ReleaseNode { node } => self.release_node(node),
            Command::CreateSnapshot { volume, tag, unix_s } => {
                self.create_snapshot(*volume, tag, *unix_s)
            }
            &Command::LayerOpened { volume, generation, layer } => {
                self.layer_opened(volume, generation, layer)
            }
            Command::DeleteSnapshot { volume, tag } => self.drop_snapshot(*volume, tag, 0),
            Command::CloneSnapshot { volume, tag, name, unix_s } => {
                self.clone_snapshot(*volume, tag, name, *unix_s)
            }
            Command::Rollback { volume, tag } => self.rollback(*volume, tag),
            &Command::Flattened { volume, generation } => self.flattened(volume, generation),
            Command::AttachSnapshot { volume, tag, node, holder, unix_s } => {
                self.attach_snapshot(*volume, tag, *node, holder, *unix_s)
            }
            &Command::SetFlatten { volume, wanted } => self.set_flatten(volume, wanted),
            command => self.apply_rare(command),
        }
    }

    /// Those that came later: trash, locks, groups, schedules, sources, shortening.
    fn apply_rare(&mut self, command: &Command) -> Result<Answer, Refusal> {
        match command {
            &Command::DropVolume { volume, with_snapshots, unix_s } => {
                self.drop_volume(volume, with_snapshots, unix_s)
            }
            Command::DropSnapshot { volume, tag, unix_s } => {
                self.drop_snapshot(*volume, tag, *unix_s)
            }
            &Command::TrashVolume { volume, with_snapshots, unix_s, expires_unix_s } => {
                self.trash_volume(volume, with_snapshots, unix_s, expires_unix_s)
            }
            Command::Undelete { volume, name } => self.undelete(*volume, name),
            &Command::Purge { volume } => self.purge(volume),
            Command::LockSnapshot { volume, tag, until_unix_s } => {
                self.lock_snapshot(*volume, tag, *until_unix_s)
            }
            Command::CreateGroup { name, unix_s } => self.create_group(name, *unix_s),
            Command::DeleteGroup { name } => self.delete_group(name),
            Command::ChangeGroup { name, volumes, member } => {
                self.change_members(name, volumes, *member)
            }
            Command::SnapshotGroup { name, tag, unix_s } => self.snapshot_group(name, tag, *unix_s),
            Command::DropGroupSnapshot { name, tag, unix_s } => {
                self.drop_group_snapshot(name, tag, *unix_s)
            }
            Command::RollbackGroup { name, tag } => self.rollback_group(name, tag),
            Command::SetSchedule { volume, schedule, every_s, keep, unix_s } => {
                self.set_schedule(*volume, schedule, *every_s, *keep, *unix_s)
            }
            Command::RemoveSchedule { volume, schedule } => self.remove_schedule(*volume, schedule),
            Command::ScheduledSnapshot { volume, schedule, slot, tag, unix_s } => {
                self.scheduled_snapshot(*volume, schedule, *slot, tag, *unix_s)
            }
            Command::CreateVolumeFrom { name, bytes, address, source_bytes, unix_s } => {
                self.create_volume_from(name, *bytes, address, *source_bytes, *unix_s)
            }
            &Command::Shortened { volume, generation, parent } => {
                self.shortened(volume, generation, parent)
            }
            command => self.apply_to_machines(command),
        }
    }

    /// Those that concern nodes, disks, and who holds what.
    fn apply_to_machines(&mut self, command: &Command) -> Result<Answer, Refusal> {
        match command {
            &Command::AddDisk { disk, node, bytes } => self.add_disk(disk, node, bytes),
            Command::SetZone { node, zone } => self.set_zone(*node, zone),
            Command::SetAddresses { node, addresses } => self.set_addresses(*node, addresses),
            &Command::SetWeight { disk, bytes } => self.set_weight(disk, bytes),
            &Command::DrainDisk { disk, wanted } => self.drain_disk(disk, wanted),
            &Command::DrainNode { node, wanted } => self.drain_node(node, wanted),
            &Command::RemoveDisk { disk } => self.remove_disk(disk),
            &Command::RemoveNode { node } => self.remove_node(node),
            &Command::SetCopies { volume, copies, min_copies } => {
                self.set_copies(volume, copies, min_copies)
            }
            Command::CreateVolumeKept { name, bytes, from, copies, min_copies, unix_s } => {
                let (bytes, kept) = (*bytes, (*copies, *min_copies));
                self.create_volume_kept(name, bytes, from.as_ref(), kept, *unix_s)
            }
            &Command::KeepCopies { volume, copies, min_copies } => {
                self.keep_copies(volume, copies, min_copies)
            }
            Command::CreateVolumeDurable {
                name,
                bytes,
                from,
                copies,
                min_copies,
                durability,
                unix_s,
            } => {
                let (bytes, kept) = (*bytes, (*copies, *min_copies));
                let made = self.create_volume_kept(name, bytes, from.as_ref(), kept, *unix_s)?;
                Ok(self.make_durable(made, *durability))
            }
            &Command::SetDurability { volume, durability } => {
                self.set_durability(volume, durability)
            }
            &Command::StableFromNow { volume, generation, since } => {
                self.stable_from_now(volume, generation, since)
            }
            &Command::CopiesMoved { volume, generation, copies } => {
                self.copies_moved(volume, generation, copies)
            }
            Command::BeginAttempt { copies, bits, owner, changes } => {
                self.begin_attempt(*copies, *bits, *owner, changes)
            }
            Command::Activate { attempt, openings } => self.activate(*attempt, openings),
            &Command::GiveUpAttempt { attempt, may_be_refused } => {
                Ok(self.give_up_attempt(attempt, may_be_refused))
            }
            &Command::SplitPartitions { bits } => self.split_partitions(bits),
            &Command::AddToken { id, secret, uses, unix_s, expires_unix_s } => {
                self.add_token(id, secret, uses, unix_s, expires_unix_s)
            }
            &Command::RevokeToken { id } => self.revoke_token(id),
            Command::AdmitNode { token, secret, node, key, name, unix_s } => {
                let (token, secret, node, key) = (*token, *secret, *node, *key);
                self.admit_node(&Applicant { token, secret, node, key }, name, *unix_s)
            }
            Command::Recover { lost, .. } => self.recover(lost),
            &Command::GiveUpNode { node } => self.give_up_node(node),
            &Command::RemoveLostNode { node } => self.remove_lost_node(node),
            other => unreachable!("{other:?} is applied above"),
        }
    }

    /// The map for an effective change: the epoch moves here and nowhere else.
    pub(crate) fn change(&mut self) -> &mut Map {
        let map = Arc::make_mut(&mut self.map);
        map.epoch = Epoch(map.epoch.0 + 1);
        map
    }

    /// A volume for an effective change. The caller has found it before.
    pub(crate) fn change_volume(&mut self, volume: VolumeId) -> &mut Volume {
        self.change();
        self.volume_again(volume)
    }

    /// A volume, further within a change that was begun with [`State::change`].
    pub(crate) fn volume_again(&mut self, volume: VolumeId) -> &mut Volume {
        let volumes = Arc::make_mut(&mut Arc::make_mut(&mut self.map).volumes);
        Arc::make_mut(volumes.get_mut(&volume).expect("looked up before"))
    }

    /// A volume that is not in the trash.
    pub(crate) fn volume(&self, volume: VolumeId) -> Result<&Volume, Refusal> {
        match self.map.volume(volume) {
            Some(known) if known.trash.is_some() => {
                Err(Refusal::InTrash { name: known.name.clone(), volume })
            }
            Some(known) => Ok(known),
            None => Err(Refusal::UnknownVolume { volume }),
        }
    }

    /// A volume that is not in the trash, for who has it attached to write under this generation.
    pub(crate) fn written_by(
        &self,
        volume: VolumeId,
        generation: Generation,
    ) -> Result<&Volume, Refusal> {
        let volume = self.volume(volume)?;
        match volume.writer() {
            Some(writer) if writer.generation == generation => Ok(volume),
            _ => Err(Refusal::NotTheWriter { name: volume.name.clone(), generation }),
        }
    }

    /// What people call a node.
    pub(crate) fn node_name(&self, node: NodeId) -> String {
        match self.map.node(node) {
            Some(known) if !known.name.is_empty() => known.name.clone(),
            _ => node.to_string(),
        }
    }

    pub(crate) fn attached(&self, volume: &Volume, by: &Attachment) -> Refusal {
        Refusal::Attached {
            name: volume.name.clone(),
            holder: by.holder.clone(),
            node: self.node_name(by.node),
            read_only: by.read_only,
        }
    }

    pub(crate) fn snapshot_read(
        &self,
        volume: &Volume,
        snapshot: &crate::Snapshot,
        by: &Attachment,
    ) -> Refusal {
        Refusal::SnapshotRead {
            name: volume.name.clone(),
            tag: snapshot.tag.clone(),
            holder: by.holder.clone(),
            node: self.node_name(by.node),
        }
    }

    fn create_cluster(
        &mut self,
        cluster: ClusterId,
        partition_bits: u8,
        unix_s: u64,
    ) -> Result<Answer, Refusal> {
        if self.map.cluster != ClusterId(0) {
            return Err(Refusal::ClusterExists);
        }
        if cluster == ClusterId(0) {
            return Err(Refusal::ZeroId { what: "cluster" });
        }
        if partition_bits > PARTITION_BITS_MAX {
            return Err(Refusal::TooManyPartitions { bits: partition_bits });
        }
        let map = self.change();
        map.cluster = cluster;
        map.created_unix_s = unix_s;
        map.partitions = Arc::new(Partitions::new(partition_bits));
        Ok(Answer::Done)
    }

    pub(crate) fn create_volume(
        &mut self,
        name: &str,
        bytes: u64,
        unix_s: u64,
    ) -> Result<Answer, Refusal> {
        check_name(name)?;
        check_size(bytes)?;
        self.vet_new_volume(name)?;
        let layer = |id: LayerId| {
            let (lineage, parent) = (LineageId(id.0), LayerId(0));
            Layer { lineage, parent, overlap: 0, opened: true }
        };
        Ok(self.add_volume(name, bytes, layer, unix_s))
    }

    /// Adds a volume, vetted before, with its first layer.
    pub(crate) fn add_volume(
        &mut self,
        name: &str,
        bytes: u64,
        layer: impl FnOnce(LayerId) -> Layer,
        unix_s: u64,
    ) -> Answer {
        let map = self.change();
        let id = map.next_volume;
        map.next_volume = VolumeId(id.0 + 1);
        let head = add_layer(map, layer);
        map.add_lineage(map.layers[&head]);
        map.provisioned_bytes += u128::from(bytes);
        Arc::make_mut(&mut map.names).insert(name.to_owned(), id);
        let volume = Volume {
            id,
            name: name.to_owned(),
            bytes,
            lineage: LineageId(head.0),
            head,
            snapshots: Vec::new(),
            generation: Generation(0),
            attachments: Vec::new(),
            pending_discard: None,
            created_unix_s: unix_s,
            flattening: false,
            trash: None,
            schedules: Vec::new(),
            durability: Durability::default(),
            awaits_stable: None,
        };
        Arc::make_mut(&mut map.volumes).insert(id, Arc::new(volume));
        Answer::VolumeCreated { volume: id }
    }

    fn resize_volume(
        &mut self,
        id: VolumeId,
        bytes: u64,
        allow_shrink: bool,
    ) -> Result<Answer, Refusal> {
        check_size(bytes)?;
        let volume = self.volume(id)?;
        let (present, pending) = (volume.bytes, volume.pending_discard);
        if bytes == present {
            return Ok(Answer::Resized { pending_discard: pending });
        }
        if bytes < present && !allow_shrink {
            return Err(Refusal::WouldShrink { name: volume.name.clone(), present, bytes });
        }
        // An open session would show its client the new end, with the old data still behind it.
        if bytes > present && pending.is_some() && !volume.attachments.is_empty() {
            return Err(Refusal::ShrinkPending { name: volume.name.clone() });
        }
        let pending_discard = if bytes > present {
            pending
        } else {
            let above = pending.map_or(bytes, |earlier| earlier.above.min(bytes));
            let end = pending.map_or(present, |earlier| earlier.end.max(present));
            Some(PendingDiscard { above, end })
        };
        let volume = self.change_volume(id);
        volume.bytes = bytes;
        volume.pending_discard = pending_discard;
        let head = volume.head;
        let map = Arc::make_mut(&mut self.map);
        if map.layers[&head].overlap > bytes {
            let layers = Arc::make_mut(&mut map.layers);
            layers.get_mut(&head).expect("a volume has its head").overlap = bytes;
        }
        map.provisioned_bytes = map.provisioned_bytes - u128::from(present) + u128::from(bytes);
        Ok(Answer::Resized { pending_discard })
    }

    fn rename_volume(&mut self, id: VolumeId, name: &str) -> Result<Answer, Refusal> {
        check_name(name)?;
        let volume = self.volume(id)?;
        if volume.name == name {
            return Ok(Answer::Done);
        }
        if self.map.names.contains_key(name) {
            return Err(Refusal::NameTaken { name: name.to_owned() });
        }
        let former = std::mem::replace(&mut self.change_volume(id).name, name.to_owned());
        let names = Arc::make_mut(&mut Arc::make_mut(&mut self.map).names);
        names.remove(&former);
        names.insert(name.to_owned(), id);
        Ok(Answer::Done)
    }

    fn attach(
        &mut self,
        id: VolumeId,
        node: NodeId,
        holder: &str,
        read_only: bool,
        unix_s: u64,
    ) -> Result<Answer, Refusal> {
        let volume = self.volume(id)?;
        if self.map.node(node).is_none() {
            return Err(Refusal::UnknownNode { node });
        }
        let in_the_way = if read_only { volume.writer() } else { volume.attachments.first() };
        if let Some(by) = in_the_way {
            return Err(self.attached(volume, by));
        }
        if read_only && volume.served_bytes() < volume.bytes {
            return Err(Refusal::ShrinkNeedsWriter { name: volume.name.clone() });
        }
        if self.map.attachments >= ATTACHMENTS_MAX {
            return Err(Refusal::TooManyAttachments);
        }
        let volume = self.change_volume(id);
        let generation = Generation(volume.generation.0 + 1);
        volume.generation = generation;
        let holder = printable(holder, HOLDER_BYTES_MAX);
        let attachment = Attachment { node, generation, holder, read_only, since_unix_s: unix_s };
        volume.attachments.push(attachment);
        Arc::make_mut(&mut self.map).attachments += 1;
        Ok(Answer::Attached { generation })
    }

    fn detach(&mut self, id: VolumeId, generation: Generation) -> Answer {
        let held =
            self.map.volume(id).is_some_and(|volume| volume.attachment(generation).is_some());
        if held {
            let released = self.change_volume(id).release(|held| held.generation == generation);
            Arc::make_mut(&mut self.map).attachments -= released;
        }
        Answer::Done
    }

    fn shrink_done(
        &mut self,
        id: VolumeId,
        generation: Generation,
        discarded: PendingDiscard,
    ) -> Result<Answer, Refusal> {
        let volume = self.written_by(id, generation)?;
        // Another shrink may have widened the range since: then all of it is still to be done.
        if volume.pending_discard == Some(discarded) {
            self.change_volume(id).pending_discard = None;
        }
        Ok(Answer::Resized { pending_discard: self.volume(id)?.pending_discard })
    }

    fn release_node(&mut self, node: NodeId) -> Result<Answer, Refusal> {
        if self.map.node(node).is_none() {
            return Err(Refusal::UnknownNode { node });
        }
        let held_there = |volume: &Volume| volume.all_attachments().any(|held| held.node == node);
        let volumes: Vec<VolumeId> = self
            .map
            .volumes()
            .filter(|volume| held_there(volume))
            .map(|volume| volume.id)
            .collect();
        if volumes.is_empty() && !group::is_taking_any(&self.map) {
            return Ok(Answer::Done);
        }
        let map = self.change();
        // Their sessions, and what those had not flushed, may be gone with the node.
        group::tear(map);
        for id in volumes {
            let volume = Arc::make_mut(&mut map.volumes).get_mut(&id).expect("listed above");
            map.attachments -= Arc::make_mut(volume).release(|held| held.node == node);
        }
        Ok(Answer::Done)
    }

    /// Asserts every invariant of the state.
    ///
    /// # Panics
    /// If one does not hold: a bug.
    pub fn check(&self) {
        if let Err(what) = self.contradiction() {
            panic!("the cluster's state contradicts itself: {what}");
        }
    }

    /// The first invariant that does not hold. Also the judge of decoded snapshots, so it must
    /// neither panic nor trust any number.
    pub(crate) fn contradiction(&self) -> Result<(), &'static str> {
        let map = &*self.map;
        hold(map.volumes.len() <= VOLUMES_MAX, "too many volumes")?;
        hold(map.attachments <= ATTACHMENTS_MAX, "too many attachments")?;
        hold(map.snapshots <= SNAPSHOTS_MAX, "too many snapshots")?;
        hold(map.layers.len() <= LAYERS_MAX, "too many layers")?;
        if map.cluster == ClusterId(0) {
            return hold(*map == Map::empty(), "things without a cluster");
        }
        hold(map.epoch > Epoch(0), "a cluster without an epoch")?;
        let counts = [map.epoch.0, map.next_volume.0, map.next_layer.0];
        hold(counts.into_iter().all(|count| count <= COUNT_MAX), "a count without end")?;
        machine::contradiction(map)?;
        membership::contradiction(map)?;
        attempt::contradiction(map)?;
        redundancy::contradiction(map)?;
        let mut provisioned_bytes = 0;
        let (mut attachments, mut snapshots, mut named) = (0, 0, 0);
        for volume in map.volumes() {
            contradiction_in_volume(map, volume)?;
            if volume.trash.is_none() {
                provisioned_bytes += u128::from(volume.bytes);
                named += 1;
            }
            attachments += volume.all_attachments().count();
            snapshots += volume.snapshots.len();
        }
        hold(map.names.len() == named, "two volumes with one name")?;
        hold(map.provisioned_bytes == provisioned_bytes, "the sum of the sizes")?;
        hold(map.attachments == attachments, "the number of attachments")?;
        hold(map.snapshots == snapshots, "the number of snapshots")?;
        hold(map.schedules == schedule::count(map), "the number of schedules")?;
        hold(map.schedules <= SCHEDULES_MAX, "too many schedules")?;
        layer::contradiction(map)?;
        group::contradiction(map)?;
        source::contradiction(map)?;
        token::contradiction(map)?;
        recovery::contradiction(map)?;
        let lineages: std::collections::BTreeSet<_> =
            map.volumes().map(|volume| volume.lineage).collect();
        hold(lineages.len() == map.volumes.len(), "two volumes with one lineage")
    }
}

/// The first invariant that does not hold for a volume.
fn contradiction_in_volume(map: &Map, volume: &Volume) -> Result<(), &'static str> {
    hold(volume.generation.0 <= COUNT_MAX, "a count without end")?;
    hold(volume.id > VolumeId(0) && volume.id < map.next_volume, "a volume's id")?;
    for layer in volume.layers() {
        let known = map.layer(layer).ok_or("a volume without its layer")?;
        hold(known.lineage == volume.lineage, "a layer of another volume's lineage")?;
        let is_first = layer.0 == volume.lineage.0;
        hold(known.opened || (layer == volume.head && !is_first), "a layer that is not opened")?;
    }
    let shows_through = map.layer(volume.head).is_some_and(|head| head.overlap > 0);
    hold(shows_through || !volume.flattening, "nothing to flatten")?;
    let mut tags = std::collections::BTreeSet::new();
    for snapshot in &volume.snapshots {
        hold(check_tag(&snapshot.tag).is_ok(), "a snapshot's tag")?;
        hold(tags.insert(&snapshot.tag), "two snapshots with one tag")?;
        hold(check_size(snapshot.bytes).is_ok(), "a snapshot's size")?;
        hold(snapshot.layer < volume.head, "a snapshot above the head")?;
        contradiction_in_attachments(map, volume, &snapshot.readers)?;
        hold(snapshot.readers.iter().all(|reader| reader.read_only), "a snapshot's writer")?;
    }
    hold(check_name(&volume.name).is_ok(), "a volume's name")?;
    hold(check_size(volume.bytes).is_ok(), "a volume's size")?;
    let is_named = map.names.get(&volume.name) == Some(&volume.id);
    hold(is_named == volume.trash.is_none(), "two volumes with one name")?;
    let is_held = volume.all_attachments().next().is_some();
    hold(volume.trash.is_none() || !is_held, "an attachment of what is in the trash")?;
    schedule::contradiction(volume)?;
    durability::contradiction(volume)?;
    if let Some(discard) = volume.pending_discard {
        hold(discard.above < discard.end, "an empty discard")?;
        hold(check_size(discard.above).is_ok(), "where a discard begins")?;
        hold(check_size(discard.end).is_ok(), "where a discard ends")?;
        hold(
            volume.bytes <= discard.above
                || volume.writer().is_some()
                || volume.attachments.is_empty(),
            "a reader that sees what is to be discarded",
        )?;
    }
    let writers = volume.attachments.iter().filter(|held| !held.read_only).count();
    hold(writers == 0 || volume.attachments.len() == 1, "a writer that is not alone")?;
    contradiction_in_attachments(map, volume, &volume.attachments)
}

/// The first invariant that does not hold for some attachments of a volume.
fn contradiction_in_attachments(
    map: &Map,
    volume: &Volume,
    attachments: &[Attachment],
) -> Result<(), &'static str> {
    let mut last = Generation(0);
    for held in attachments {
        hold(held.generation > last && held.generation <= volume.generation, "a generation")?;
        hold(map.node(held.node).is_some(), "an attachment of an unknown node")?;
        hold(printable(&held.holder, HOLDER_BYTES_MAX) == held.holder, "a holder's text")?;
        last = held.generation;
    }
    Ok(())
}
