//! Recovery from a lost majority of the voters (decision 0013): what the state makes of it, and how
//! the lost are taken out afterwards.

use crate::command::Answer;
use crate::group;
use crate::layer::hold;
use crate::machine::{DiskState, NodeState};
use crate::map::Map;
use crate::partition::Configuration;
use crate::refusal::Refusal;
use crate::state::State;
use proto::limits::{RECOVERIES_MAX, RECOVERY_JUMP};
use proto::{
    ConfigurationNumber, DiskId, Epoch, Generation, LayerId, NodeId, PartitionId, VolumeId,
};
use std::collections::BTreeSet;
use std::sync::Arc;

impl State {
    /// The log goes on from what one node had of it. Nothing that the lost part of it may have
    /// issued is ever issued again, and what the disks know beyond the map is asked of them.
    pub(crate) fn recover(&mut self, lost: &[NodeId]) -> Result<Answer, Refusal> {
        if self.map.gaps.len() >= RECOVERIES_MAX {
            return Err(Refusal::TooManyRecoveries);
        }
        let map = self.change();
        map.epoch = Epoch(map.epoch.0 + RECOVERY_JUMP);
        let (first, end) = (map.next_layer, LayerId(map.next_layer.0 + RECOVERY_JUMP));
        Arc::make_mut(&mut map.gaps).push((first, end));
        map.next_layer = end;
        map.next_volume = VolumeId(map.next_volume.0 + RECOVERY_JUMP);
        map.end_attempts(true, |_, _| true);
        map.next_attempt += RECOVERY_JUMP;
        // Of one disk the next opening is all there is to know.
        let is_doubtful = map.disks.len() > 1;
        Arc::make_mut(&mut map.partitions).jump(RECOVERY_JUMP, is_doubtful);
        for node in lost {
            if let Some(known) = Arc::make_mut(&mut map.nodes).get_mut(node) {
                known.state = NodeState::Lost;
            }
        }
        group::tear(map);
        let mut released = 0;
        for volume in Arc::make_mut(&mut map.volumes).values_mut() {
            let volume = Arc::make_mut(volume);
            volume.generation = Generation(volume.generation.0 + RECOVERY_JUMP);
            released += volume.release(|held| lost.contains(&held.node));
        }
        map.attachments -= released;
        Ok(Answer::Done)
    }

    /// A node that knows another end of the former era can have no part in this one.
    pub(crate) fn give_up_node(&mut self, node: NodeId) -> Result<Answer, Refusal> {
        let name = self.node_name(node);
        match self.map.node(node) {
            None => return Err(Refusal::UnknownNode { node }),
            Some(_) if self.map.is_lost(node) => return Ok(Answer::Done),
            Some(_) if self.map.gaps.is_empty() => return Err(Refusal::NodeNotLost { name }),
            Some(_) => {}
        }
        let map = self.change();
        map.end_attempts_of(node);
        let known = Arc::make_mut(&mut map.nodes).get_mut(&node);
        known.expect("looked up just now").state = NodeState::Lost;
        let mut released = 0;
        for volume in Arc::make_mut(&mut map.volumes).values_mut() {
            if volume.all_attachments().any(|held| held.node == node) {
                released += Arc::make_mut(volume).release(|held| held.node == node);
            }
        }
        map.attachments -= released;
        Ok(Answer::Done)
    }

    /// A node that was given up goes, with its disks: partitions do without them from now on.
    pub(crate) fn remove_lost_node(&mut self, node: NodeId) -> Result<Answer, Refusal> {
        let name = self.node_name(node);
        match self.map.node(node) {
            None => return Err(Refusal::UnknownNode { node }),
            Some(_) if !self.map.is_lost(node) => return Err(Refusal::NodeNotLost { name }),
            Some(_) => {}
        }
        let disks: BTreeSet<DiskId> = self.map.disks_of(node).map(|disk| disk.id).collect();
        let places = self.map.places_of(&disks);
        let is_only = |(copies, partition): &&(u8, PartitionId)| {
            let held = self.map.configuration(*copies, *partition);
            let is_there = !held.current.is_empty() && self.map.is_used(*copies);
            is_there && held.current.iter().all(|member| disks.contains(&member.disk))
        };
        let count = places.iter().filter(is_only).count();
        if count > 0 {
            return Err(Refusal::OnlyOnLostNode { name, count });
        }
        let map = self.change();
        map.end_attempts_of(node);
        map.end_attempts(true, |attempt, partition| places.contains(&(attempt.copies, partition)));
        for disk in &disks {
            let known = Arc::make_mut(&mut map.disks).get_mut(disk).expect("listed above");
            known.state = DiskState::Gone;
        }
        for disk in &disks {
            map.end_attempts_with(*disk);
            map.take_from_unused(*disk);
        }
        map.do_without(&disks, &places);
        map.forget_gone();
        let mut released = 0;
        for volume in Arc::make_mut(&mut map.volumes).values_mut() {
            if volume.all_attachments().any(|held| held.node == node) {
                released += Arc::make_mut(volume).release(|held| held.node == node);
            }
        }
        map.attachments -= released;
        // A disk that is still listed somewhere needs its node.
        if map.disks_of(node).next().is_none() {
            Arc::make_mut(&mut map.nodes).remove(&node);
            Arc::make_mut(&mut map.addresses).remove(&node);
        }
        Ok(Answer::Done)
    }
}

impl Map {
    /// The partitions, by table, that list any of these disks.
    fn places_of(&self, disks: &BTreeSet<DiskId>) -> BTreeSet<(u8, PartitionId)> {
        disks.iter().flat_map(|disk| self.partitions_on(*disk)).collect()
    }

    /// Partitions that have other members go on with those alone, which are to be agreed anew.
    fn do_without(&mut self, disks: &BTreeSet<DiskId>, places: &BTreeSet<(u8, PartitionId)>) {
        for &(copies, partition) in places {
            let held = self.configuration(copies, partition);
            let stays = |member: &&crate::Member| !disks.contains(&member.disk);
            let current: Vec<_> = held.current.iter().filter(stays).copied().collect();
            if current.is_empty() || current.len() == held.current.len() {
                continue;
            }
            let number = ConfigurationNumber(held.number.0 + 1);
            let new = Configuration { number, current, may_be_refused: true, ..Default::default() };
            Arc::make_mut(&mut self.partitions).set(copies, partition, Arc::new(new));
        }
    }
}

/// The first invariant that does not hold for what was jumped over.
pub(crate) fn contradiction(map: &Map) -> Result<(), &'static str> {
    hold(map.gaps.len() <= RECOVERIES_MAX, "too many recoveries")?;
    let mut last = LayerId(1);
    for &(first, end) in &*map.gaps {
        hold(last <= first && first < end, "ids that were jumped over")?;
        last = end;
    }
    hold(last <= map.next_layer, "ids that were jumped over and issued")
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
