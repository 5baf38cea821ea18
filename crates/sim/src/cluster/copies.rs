//! The copies that the cluster keeps: whether all are there, and whether they are equal.

use super::{
    member::{CLUSTER, Process},
    net::Place,
    world::ClusterWorld,
};
use crate::{
    node::{Life, SimNode},
    onedisk::{OneDisk, Order, Reader, Setup},
};
use cluster::Map;
use proto::{
    BLOCK_SIZE, BlockRange, DiskId, Duration, Generation, LayerId, LineageId, MemberReply,
    MemberRequest, OBJECT_SIZE, ObjectKey, PartitionId, Stamp, limits,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use store::Identity;

/// Copies that a volume has unless told otherwise, if there are as many disks.
const COPIES: u8 = 3;
/// After so long what was written is flushed, whatever is asked for.
const ROT_UNFLUSHED: Duration = Duration::from_millis(4 * limits::STORE_FLUSH_INTERVAL_MS);
/// Blocks of an object.
const OBJECT_BLOCKS: u32 = (OBJECT_SIZE / BLOCK_SIZE) as u32;

/// What one disk holds of one object.
type Held = (Stamp, Vec<u8>);

/// What is lost, or may be, since all copies were last there.
#[derive(Debug, Default)]
pub struct Losses {
    /// Machines with disks that lost what they had not flushed.
    pub lossy: BTreeSet<Place>,
    /// Machines whose disk has failed.
    pub failed: BTreeSet<Place>,
}

/// Which disks are the members of partitions, as a map has it.
#[derive(Debug, Default)]
pub struct Books {
    epoch: u64,
    /// The current members that are present, how many there are in all.
    pub sets: BTreeSet<(Vec<DiskId>, usize)>,
    /// Whether all partitions have as many members as there are disks, and nothing else to wish.
    is_whole: bool,
}

impl Books {
    /// Brings them up to date.
    pub fn learn(&mut self, map: &Map) {
        if self.epoch == map.epoch().0 {
            return;
        }
        let mut books = Books { epoch: map.epoch().0, is_whole: true, ..Books::default() };
        let wanted = map.disks().len().min(usize::from(COPIES));
        for index in 0..1u32 << map.partition_bits() {
            let held = map.configuration(COPIES, PartitionId(index));
            let present = held.current.iter().filter(|member| map.is_present(**member));
            let present: Vec<DiskId> = present.map(|member| member.disk).collect();
            let all = held.current.len();
            books.is_whole &= present.len() == wanted && all == wanted && held.attempt == 0;
            books.is_whole &= held.recovering.is_empty() && !held.may_be_refused;
            books.sets.insert((present, all));
        }
        *self = books;
    }

    /// How many members those partitions have that have the fewest.
    pub fn fewest(&self) -> usize {
        self.sets.iter().map(|(_, all)| *all).min().unwrap_or(0)
    }

    /// A partition that lacks something, in words.
    pub fn lacking(&self) -> String {
        let count = self.sets.len();
        let some: Vec<_> = self.sets.iter().take(4).collect();
        format!("{count} sets of members, among them {some:?}")
    }
}

impl ClusterWorld {
    /// The map of the node that knows most.
    pub(super) fn furthest_map(&self) -> Option<Arc<Map>> {
        let known = self.members.iter().filter_map(|member| member.sim()?.engine().voter());
        known.max_by_key(|voter| voter.applied()).map(|voter| voter.map())
    }

    /// Brings the books about members up to date.
    pub(super) fn learn_members(&mut self) {
        if let Some(map) = self.furthest_map() {
            self.books.learn(&map);
        }
    }

    /// Whether every partition has all the members that it can have, all of them present and
    /// serving, with what has happened to their disks known to all.
    pub(super) fn is_whole(&mut self) -> bool {
        let Some(map) = self.furthest_map() else { return false };
        self.books.learn(&map);
        let disks = self.members.iter().filter(|member| member.disk.is_some()).count();
        // A node says that it is ready when the opening of its disk is agreed.
        let is_ready = |sim: &SimNode| *sim.life() == Life::Ready;
        self.books.is_whole
            && map.disks().len() == disks
            && self.members.iter().all(|member| member.sim().is_some_and(is_ready))
            && self.losses.failed.is_empty()
    }

    /// If everything is whole, what was lost before is no matter any more.
    pub(super) fn forget_losses(&mut self) {
        // What had rotted before it was flushed is lost if its process ends.
        let may_rot = !self.rotten.is_empty() && self.now < self.rotted_at + ROT_UNFLUSHED;
        let has_losses = !(self.losses.lossy.is_empty() && self.losses.failed.is_empty());
        if has_losses && !may_rot && self.is_whole() {
            self.trace.line(self.now, format_args!("everything is whole"));
            self.losses = Losses::default();
        }
    }

    /// Compares all copies of all objects, each disk opened alone as if its process had died now.
    pub(super) fn compare_copies(&mut self) -> Result<(), String> {
        let map = self.furthest_map().ok_or("nobody knows a map")?;
        let lineages: BTreeMap<LayerId, LineageId> =
            map.layers().map(|(lineage, layer)| (layer, lineage)).collect();
        let mut disks: BTreeMap<DiskId, BTreeMap<ObjectKey, Held>> = BTreeMap::new();
        for member in &self.members {
            let (Some(disk), Process::Runs(sim)) = (member.disk, &member.process) else { continue };
            let identity = Identity { cluster: CLUSTER, node: member.node, disk };
            let setup = Setup { identity, ..self.mix.setup.clone() };
            let image = sim.media().disk.image().clone();
            let report = store::check::check(&mut Reader(&image))
                .map_err(|error| format!("{disk} could not be looked at: {error}"))?;
            let mut open = OneDisk::open(&setup, image, Order::FirstFirst)
                .map_err(|error| format!("{disk} could not be opened alone: {error}"))?;
            let mut objects = BTreeMap::new();
            for (key, stamp) in report.objects {
                let Some(lineage) = lineages.get(&key.layer) else { continue };
                // What is left of what others keep is nobody's, and may have rotted.
                let held = map.configuration_of(*lineage, key.index);
                if held.current.iter().any(|member| member.disk == disk) {
                    let content = read_object(&mut open, *lineage, key).map_err(|error| {
                        let damages = open.store().status().damages;
                        format!("{error}; damages of {disk}: {damages:?}")
                    })?;
                    objects.insert(key, (stamp, content));
                }
            }
            disks.insert(disk, objects);
        }
        let keys: BTreeSet<ObjectKey> =
            disks.values().flat_map(|objects| objects.keys().copied()).collect();
        for key in keys {
            let held = map.configuration_of(lineages[&key.layer], key.index);
            let copies =
                held.current.iter().map(|member| (member.disk, disks[&member.disk].get(&key)));
            let copies: Vec<(DiskId, Option<&Held>)> = copies.collect();
            let Some((first, best)) = copies.first() else { continue };
            for (disk, copy) in &copies {
                if copy.map(|(stamp, _)| stamp) != best.map(|(stamp, _)| stamp) {
                    let stamps: Vec<_> =
                        copies.iter().map(|(disk, copy)| (disk, copy.map(|c| c.0))).collect();
                    return Err(format!("copies of {key:?} have other stamps: {stamps:?}"));
                }
                if copy != best {
                    return Err(format!("copies of {key:?} on {first} and {disk} differ"));
                }
            }
            self.summary.compared += 1;
        }
        Ok(())
    }
}

fn read_object(disk: &mut OneDisk, lineage: LineageId, key: ObjectKey) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(OBJECT_SIZE);
    let step = limits::MEMBER_REQUEST_BLOCKS_MAX;
    for first in (0..OBJECT_BLOCKS).step_by(step as usize) {
        let blocks =
            BlockRange::new(first, step.min(OBJECT_BLOCKS - first)).expect("within an object");
        let generation = Generation(u64::MAX);
        let request = MemberRequest::Read { lineage, key, generation, under: None, blocks };
        match disk.call(request) {
            Ok(MemberReply::Data { content, .. }) => {
                content.iter().for_each(|piece| bytes.extend_from_slice(piece.as_slice()));
            }
            other => return Err(format!("a disk alone answers {other:?} for {key:?}")),
        }
    }
    Ok(bytes)
}
