//! The partitions that hold a volume: who their members are, and which of them have everything.

use crate::coordinator::Coordinator;
use crate::peer::{PeerIndex, PeerSet};
use cluster::{Configuration, Map};
use proto::limits::{COPIES_DEFAULT, MEMBERS_MAX, RECOVERY_JUMP};
use proto::{ConfigurationNumber, OBJECT_SIZE, PartitionId, Under, partition_of};
use std::collections::{BTreeMap, BTreeSet};

/// One partition, as the session goes by it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Partition {
    /// Its configuration.
    pub(crate) under: Under,
    /// The current members, each as the opening that is listed.
    pub(crate) members: PeerSet,
    /// Those of them that get every write and are read from; the others are behind.
    pub(crate) whole: PeerSet,
}

/// What is said of objects that lie nowhere: they wait.
static NOWHERE: Partition = Partition {
    under: Under { copies: 0, bits: 0, number: ConfigurationNumber(0) },
    members: PeerSet::EMPTY,
    whole: PeerSet::EMPTY,
};

impl Partition {
    /// How many members make a quorum: a majority, behind or not.
    pub(crate) fn quorum(&self) -> usize {
        self.members.len() / 2 + 1
    }
}

/// All of them, and what many share.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    bits: u8,
    by_id: BTreeMap<PartitionId, Partition>,
    /// The different sets of members.
    pub(crate) groups: Vec<Group>,
}

/// What all partitions with the same members have in common.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Group {
    pub(crate) members: PeerSet,
    pub(crate) whole: PeerSet,
}

impl Group {
    pub(crate) fn quorum(&self) -> usize {
        self.members.len() / 2 + 1
    }

    pub(crate) fn is_sole(&self) -> bool {
        self.members.len() == 1
    }
}

impl Partitions {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PartitionId, &Partition)> {
        self.by_id.iter().map(|(id, partition)| (*id, partition))
    }

    fn regroup(&mut self) {
        let mut groups = BTreeSet::new();
        let mut last = None;
        for partition in self.by_id.values() {
            let group = Group { members: partition.members, whole: partition.whole };
            if last != Some(group) {
                groups.insert(group);
                last = Some(group);
            }
        }
        self.groups = groups.into_iter().collect();
    }

    /// The table has this power of two of partitions.
    pub(crate) fn bits(&self) -> u8 {
        self.bits
    }

    /// How many members of a partition make a quorum.
    pub(crate) fn quorum_of(&self, id: PartitionId) -> usize {
        self.by_id.get(&id).unwrap_or(&NOWHERE).quorum()
    }

    /// Whether some member of some partition is behind.
    pub(crate) fn is_any_behind(&self) -> bool {
        self.groups.iter().any(|group| group.whole != group.members)
    }

    /// Whether this peer is a member that is behind somewhere.
    pub(crate) fn is_behind(&self, peer: PeerIndex) -> bool {
        let is = |group: &Group| group.members.contains(peer) && !group.whole.contains(peer);
        self.groups.iter().any(is)
    }

    /// The members that do not get everything: of which partition of which table.
    pub(crate) fn behind(&self) -> impl Iterator<Item = (u8, PartitionId, PeerIndex)> {
        self.by_id.iter().flat_map(|(id, partition)| {
            let behind = partition.members.iter().filter(|it| !partition.whole.contains(*it));
            behind.map(|peer| (partition.under.copies, *id, peer))
        })
    }

    /// Whether every partition has one member.
    pub(crate) fn are_sole(&self) -> bool {
        self.groups.iter().all(Group::is_sole)
    }

    /// Whether the peer is a member of any partition with others.
    pub(crate) fn has_peers_of(&self, peer: PeerIndex) -> bool {
        self.groups.iter().any(|group| !group.is_sole() && group.members.contains(peer))
    }

    /// The peer does not get everything any more, except where it is the only member. Gives back
    /// whether that is new.
    pub(crate) fn leave_behind(&mut self, peer: PeerIndex) -> bool {
        let mut is_new = false;
        for partition in self.by_id.values_mut() {
            if partition.members.len() > 1 && partition.whole.contains(peer) {
                partition.whole.remove(peer);
                is_new = true;
            }
        }
        if is_new {
            self.regroup();
        }
        is_new
    }

    /// Everybody is as good as the others again: what they have is to be compared.
    pub(crate) fn forgive_all(&mut self) {
        for partition in self.by_id.values_mut() {
            partition.whole = partition.members;
        }
        self.regroup();
    }
}

/// Whether a configuration is the known one, but for a number that recoveries jumped to.
fn jumps(known: &Partition, under: Under) -> bool {
    let by = under.number.0.wrapping_sub(known.under.number.0);
    by > 0 && by.is_multiple_of(RECOVERY_JUMP)
}

/// Who has everything of members that were not made equal, but are fewer than before: nothing made
/// anybody whole who was not.
fn left_whole(known: &Partition, members: PeerSet) -> PeerSet {
    let are_fewer = members.iter().all(|peer| known.members.contains(peer));
    if !are_fewer || members.len() == 1 {
        return members;
    }
    members.iter().filter(|peer| known.whole.contains(*peer)).collect()
}

impl Coordinator {
    /// The partition of an object of the volume.
    pub(crate) fn partition_at(&self, object: u32) -> &Partition {
        let id = self.partition_id(object);
        self.partitions.by_id.get(&id).unwrap_or(&NOWHERE)
    }

    pub(crate) fn partition_id(&self, object: u32) -> PartitionId {
        partition_of(self.lineage, object, self.partitions.bits)
    }

    /// The configurations of the partitions that hold the volume.
    fn own_configurations<'a>(&self, map: &'a Map) -> Vec<(PartitionId, &'a Configuration)> {
        let Some(volume) = map.volume(self.volume) else { return Vec::new() };
        let discard = volume.pending_discard.map_or(0, |discard| discard.end);
        // A snapshot may be longer than the volume is now.
        let of_layer = |snapshot: &&cluster::Snapshot| snapshot.layer == self.layer;
        let sealed = volume.snapshots.iter().find(of_layer).map_or(0, |snapshot| snapshot.bytes);
        let bytes = volume.bytes.max(discard).max(sealed);
        let copies = self.copies(map);
        let objects = bytes.div_ceil(OBJECT_SIZE as u64);
        let bits = map.partition_bits();
        let ids: BTreeSet<PartitionId> = if objects < 1 << bits {
            (0..objects as u32).map(|index| map.partition_of(self.lineage, index)).collect()
        } else {
            // Nearly every partition holds something.
            (0..1 << bits).map(PartitionId).collect()
        };
        let of = |id| (id, map.configuration(copies, id));
        let has_members = |(_, it): &(PartitionId, &Configuration)| !it.current.is_empty();
        ids.into_iter().map(of).filter(has_members).collect()
    }

    /// The table by which the volume lies.
    fn copies(&self, map: &Map) -> u8 {
        map.redundancy(self.lineage).map_or(COPIES_DEFAULT, |known| known.copies)
    }

    /// Takes the partitions from the map. Gives back those whose members are others than before.
    pub(crate) fn take_partitions(&mut self) -> BTreeSet<PartitionId> {
        let map = self.map.clone();
        let (copies, bits) = (self.copies(&map), map.partition_bits());
        let before = std::mem::take(&mut self.partitions);
        let mut changed = BTreeSet::new();
        for (id, configuration) in self.own_configurations(&map) {
            let under = Under { copies, bits, number: configuration.number };
            // Partitions that double keep their members and numbers.
            let shift = bits.saturating_sub(before.bits);
            let former = PartitionId(id.0 >> shift);
            let former = before.by_id.get(&former).filter(|former| {
                let same = Under { bits: former.under.bits, ..under };
                former.under == same && bits >= before.bits
            });
            let partition = match former {
                Some(former) => Partition { under, ..*former },
                None => {
                    let count = configuration.current.len();
                    assert!(count <= MEMBERS_MAX, "more members than a partition has");
                    let members = configuration.current.iter();
                    let members: PeerSet = members
                        .map(|member| self.own_peer(member.disk, member.incarnation))
                        .collect();
                    let before = before.by_id.get(&PartitionId(id.0 >> shift));
                    match before.filter(|known| known.under.copies == copies) {
                        // Only its number is another, since a recovery jumped over those that may
                        // have been given (decision 0013): nobody has refused the former one, and
                        // who was behind still is.
                        Some(known) if known.members == members && jumps(known, under) => {
                            Partition { under: Under { bits, ..known.under }, ..*known }
                        }
                        known => {
                            changed.insert(id);
                            let whole = match known {
                                Some(known) if configuration.may_be_refused => {
                                    left_whole(known, members)
                                }
                                _ => members,
                            };
                            Partition { under, members, whole }
                        }
                    }
                }
            };
            self.partitions.by_id.insert(id, partition);
        }
        self.partitions.bits = bits;
        self.partitions.regroup();
        changed
    }

    /// Asserts what is known of partitions.
    pub(crate) fn check_partitions(&self) {
        for (id, partition) in self.partitions.iter() {
            assert!(!partition.members.is_empty(), "partition {id:?} without members");
            let sole = partition.members.len() == 1;
            assert!(!sole || partition.whole == partition.members, "a sole member is whole");
            let is_member = |peer| partition.members.contains(peer);
            assert!(partition.whole.iter().all(is_member), "partition {id:?}");
            let is_own = |peer: PeerIndex| self.peers[usize::from(peer)].own;
            assert!(partition.members.iter().all(is_own), "partition {id:?}");
        }
    }
}
