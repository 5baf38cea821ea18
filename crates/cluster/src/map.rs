//! The map: one immutable state of the cluster, as everybody but the state machine sees it.

use crate::attempt::Attempt;
use crate::group::Group;
use crate::layer::Layer;
use crate::machine::{Disk, Node, NodeState};
use crate::partition::{Configuration, Member, Partitions};
use crate::redundancy::Redundancy;
use crate::source::Source;
use crate::token::Token;
use crate::volume::Volume;
use proto::limits::COPIES_DEFAULT;
use proto::{
    ClusterId, ConfigurationNumber, DiskId, Epoch, LayerId, LineageId, NodeId, PartitionId, Under,
    VolumeId,
};
use std::{collections::BTreeMap, sync::Arc};

/// What the map says about a layer that was found on a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LayerFate {
    /// It exists: keep it.
    Live,
    /// It was deleted: the disk may drop it. Ids are never reused, so this is for ever.
    Deleted,
    /// It was never issued: this map is older than the disk (an old copy of the cluster's state was
    /// put back), or the layer is another cluster's. Never drop it; raise an alarm.
    NeverIssued,
    /// It may have been issued by what a lost majority had agreed on (decision 0013), and nobody
    /// knows it any more. It is kept: nothing says that it was deleted.
    Unknown,
}

/// One state of the cluster. It never changes; shared as `Arc<Map>`, and a newer one shares with it
/// whatever did not change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Map {
    pub(crate) epoch: Epoch,
    pub(crate) cluster: ClusterId,
    pub(crate) created_unix_s: u64,
    pub(crate) nodes: Arc<BTreeMap<NodeId, Node>>,
    pub(crate) disks: Arc<BTreeMap<DiskId, Disk>>,
    /// Under which addresses nodes are reached; those without any are not listed.
    pub(crate) addresses: Arc<BTreeMap<NodeId, Vec<String>>>,
    pub(crate) partitions: Arc<Partitions>,
    /// The attempts under way to change members, by number.
    pub(crate) attempts: Arc<BTreeMap<u64, Arc<Attempt>>>,
    /// The number of the next one.
    pub(crate) next_attempt: u64,
    pub(crate) volumes: Arc<BTreeMap<VolumeId, Arc<Volume>>>,
    pub(crate) layers: Arc<BTreeMap<LayerId, Layer>>,
    /// How the lineages of these layers are kept, but for those of source layers.
    pub(crate) lineages: Arc<BTreeMap<LineageId, Redundancy>>,
    /// What the source layers among them show.
    pub(crate) sources: Arc<BTreeMap<LayerId, Source>>,
    pub(crate) groups: Arc<BTreeMap<String, Arc<Group>>>,
    /// Join tokens, in order of id.
    pub(crate) tokens: Arc<Vec<Token>>,
    /// Which volume has which name: always exactly the names of `volumes` out of the trash.
    pub(crate) names: Arc<BTreeMap<String, VolumeId>>,
    /// Ids of layers that were jumped over by recoveries, from the first up to and without the
    /// second, in order.
    pub(crate) gaps: Arc<Vec<(LayerId, LayerId)>>,
    /// The next ids to issue; every id ever issued is below.
    pub(crate) next_volume: VolumeId,
    pub(crate) next_layer: LayerId,
    /// Sum of the sizes of the volumes out of the trash. Their largest number at the largest size
    /// exceeds 64 bits.
    pub(crate) provisioned_bytes: u128,
    /// Number of attachments of all volumes and snapshots.
    pub(crate) attachments: usize,
    /// Number of snapshots of all volumes.
    pub(crate) snapshots: usize,
    /// Number of schedules of all volumes.
    pub(crate) schedules: usize,
}

impl Map {
    /// The map before the cluster is created: nothing exists.
    pub(crate) fn empty() -> Map {
        Map {
            epoch: Epoch(0),
            cluster: ClusterId(0),
            created_unix_s: 0,
            nodes: Arc::default(),
            disks: Arc::default(),
            addresses: Arc::default(),
            partitions: Arc::new(Partitions::new(0)),
            attempts: Arc::default(),
            next_attempt: 1,
            volumes: Arc::default(),
            layers: Arc::default(),
            lineages: Arc::default(),
            sources: Arc::default(),
            groups: Arc::default(),
            tokens: Arc::default(),
            names: Arc::default(),
            gaps: Arc::default(),
            next_volume: VolumeId(1),
            next_layer: LayerId(1),
            provisioned_bytes: 0,
            attachments: 0,
            snapshots: 0,
            schedules: 0,
        }
    }

    /// Its stamp: grows by one with each command that changed something. 0 before the cluster is
    /// created.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The cluster's identity; `ClusterId(0)` before it is created.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// When the cluster was created, in seconds since 1970; for people.
    pub fn created_unix_s(&self) -> u64 {
        self.created_unix_s
    }

    /// A node.
    pub fn node(&self, node: NodeId) -> Option<&Node> {
        self.nodes.get(&node)
    }

    /// All nodes, in order of id.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Node> {
        self.nodes.values()
    }

    /// A disk.
    pub fn disk(&self, disk: DiskId) -> Option<&Disk> {
        self.disks.get(&disk)
    }

    /// All disks, in order of id.
    pub fn disks(&self) -> impl ExactSizeIterator<Item = &Disk> {
        self.disks.values()
    }

    /// A volume, in the trash or not.
    pub fn volume(&self, volume: VolumeId) -> Option<&Volume> {
        self.volumes.get(&volume).map(|volume| &**volume)
    }

    /// The volume with this name.
    pub fn volume_named(&self, name: &str) -> Option<&Volume> {
        self.names.get(name).and_then(|volume| self.volume(*volume))
    }

    /// All volumes, in order of id, with those in the trash.
    pub fn volumes(&self) -> impl ExactSizeIterator<Item = &Volume> {
        self.volumes.values().map(|volume| &**volume)
    }

    /// How many volumes are in the trash.
    pub fn trashed(&self) -> usize {
        self.volumes.len() - self.names.len()
    }

    /// The volumes out of the trash, in order of name.
    pub fn volumes_by_name(&self) -> impl Iterator<Item = &Volume> {
        self.names.values().filter_map(|volume| self.volume(*volume))
    }

    /// The volumes that are not what they were in an earlier map, and those that are gone, by id.
    /// What did not change is passed over by address, not by content.
    pub fn changed_volumes(&self, before: &Map) -> Vec<VolumeId> {
        if Arc::ptr_eq(&self.volumes, &before.volumes) {
            return Vec::new();
        }
        let (mut old, mut new) = (before.volumes.iter(), self.volumes.iter());
        let (mut was, mut is) = (old.next(), new.next());
        let mut changed = Vec::new();
        loop {
            match (was, is) {
                (None, None) => return changed,
                (Some((gone, _)), Some((id, _))) if gone < id => {
                    changed.push(*gone);
                    was = old.next();
                }
                (Some((gone, _)), None) => {
                    changed.push(*gone);
                    was = old.next();
                }
                (Some((id, former)), Some((same, present))) if id == same => {
                    if !Arc::ptr_eq(former, present) {
                        changed.push(*id);
                    }
                    (was, is) = (old.next(), new.next());
                }
                (_, Some((id, _))) => {
                    changed.push(*id);
                    is = new.next();
                }
            }
        }
    }

    /// What each of the layers found on a disk (`Store::layers`) is to the map, in the same order.
    pub fn layer_fates(
        &self,
        found: &[(LineageId, LayerId)],
    ) -> Vec<(LineageId, LayerId, LayerFate)> {
        let fate = |lineage, layer| {
            if self.layer(layer).is_some_and(|known| known.lineage == lineage) {
                LayerFate::Live
            } else if self.is_in_gap(layer) || self.is_in_gap(LayerId(lineage.0)) {
                LayerFate::Unknown
            } else if layer < self.next_layer && lineage.0 < self.next_layer.0 {
                LayerFate::Deleted
            } else {
                LayerFate::NeverIssued
            }
        };
        found.iter().map(|&(lineage, layer)| (lineage, layer, fate(lineage, layer))).collect()
    }

    /// Whether an id was jumped over by a recovery.
    fn is_in_gap(&self, layer: LayerId) -> bool {
        self.gaps.iter().any(|(first, end)| (*first..*end).contains(&layer))
    }

    /// Whether anything lies by the table for a number of copies.
    pub fn is_in_use(&self, copies: u8) -> bool {
        self.is_used(copies)
    }

    /// Whether a node was given up when a majority of the voters was lost.
    pub fn is_lost(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|known| known.state == NodeState::Lost)
    }

    /// How many binary digits a partition number has: there are 2^this partitions.
    pub fn partition_bits(&self) -> u8 {
        self.partitions.bits()
    }

    /// The partition of the objects `index` of a lineage's layers.
    pub fn partition_of(&self, lineage: LineageId, index: u32) -> PartitionId {
        proto::partition_of(lineage, index, self.partition_bits())
    }

    /// For which numbers of copies there are tables of partitions.
    pub fn tables(&self) -> impl Iterator<Item = u8> {
        self.partitions.tables().map(|(copies, _)| copies)
    }

    /// Who holds a partition of what is kept in so many copies.
    ///
    /// # Panics
    /// If there is no such partition or table: a bug of the caller, partitions come from
    /// [`Map::partition_of`] and tables from [`Map::redundancy`] or [`Map::tables`].
    pub fn configuration(&self, copies: u8, partition: PartitionId) -> &Configuration {
        self.partitions.configuration(copies, partition).expect("partition of another map")
    }

    /// Who holds the objects `index` of a lineage's layers.
    pub fn configuration_of(&self, lineage: LineageId, index: u32) -> &Configuration {
        // A lineage that does not exist any more is asked for by those that have not learned yet.
        let copies = self.redundancy(lineage).map_or(COPIES_DEFAULT, |known| known.copies);
        self.configuration(copies, self.partition_of(lineage, index))
    }

    /// The configuration of that partition as requests name it.
    pub fn under_of(&self, lineage: LineageId, index: u32) -> Under {
        let copies = self.redundancy(lineage).map_or(COPIES_DEFAULT, |known| known.copies);
        let number = self.configuration(copies, self.partition_of(lineage, index)).number;
        Under { copies, bits: self.partition_bits(), number }
    }

    /// The different configurations of all partitions, each at least once: what to go through to
    /// reach every disk that holds anything.
    pub fn configurations(&self) -> impl Iterator<Item = &Configuration> {
        self.partitions.distinct()
    }

    /// The same map with these as the current members of every partition. For tests of machines
    /// that are shaped for several copies, without the steps that lead there.
    #[doc(hidden)]
    pub fn with_members(&self, number: ConfigurationNumber, current: Vec<Member>) -> Map {
        let all = Configuration { number, current, ..Default::default() };
        let mut partitions = Partitions::clone(&self.partitions);
        partitions.replace(|_| Some(all.clone()));
        Map { partitions: Arc::new(partitions), ..self.clone() }
    }

    /// The same map with this configuration of one partition, in all tables; as `with_members`.
    #[doc(hidden)]
    pub fn with_configuration(&self, partition: PartitionId, new: Configuration) -> Map {
        let mut partitions = Partitions::clone(&self.partitions);
        let new = Arc::new(new);
        for copies in self.tables() {
            partitions.set(copies, partition, Arc::clone(&new));
        }
        Map { partitions: Arc::new(partitions), ..self.clone() }
    }

    /// Sum of the sizes of all volumes out of the trash in bytes, what their guests may come to
    /// fill; `u64::MAX` if it is more than that. More than the disks can hold is overcommitted.
    pub fn provisioned_bytes(&self) -> u64 {
        u64::try_from(self.provisioned_bytes).unwrap_or(u64::MAX)
    }
}
