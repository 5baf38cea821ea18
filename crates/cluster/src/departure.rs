//! What may not go: a disk without which something that was written could be lost, or would have
//! too few disks to lie on, so that it waits until there are others; and drains that never end.

use crate::machine::{Disk, DiskState, NodeState};
use crate::map::Map;
use crate::partition::{Configuration, Member};
use crate::refusal::Refusal;
use proto::{ConfigurationNumber, DiskId, Incarnation, PartitionId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Map {
    /// Whether a disk can be taken out for good, if those of which `is_away` says so do not count:
    /// in each partition that it holds, what is left must be sure of all that was written, and no
    /// fewer disks than its volumes ask for must be there to hold it. Which disks are away the
    /// agreed state cannot know; whoever sees it judges before it proposes.
    ///
    /// # Errors
    /// [`Refusal::LastCopy`] or [`Refusal::TooFewDisks`], of the first that does not hold.
    pub fn vet_removal(
        &self,
        disk: DiskId,
        is_away: impl Fn(DiskId) -> bool,
    ) -> Result<(), Refusal> {
        let is_left = |id: DiskId| {
            let is_known = self
                .disk(id)
                .is_some_and(|known| known.state != DiskState::Gone && !self.is_lost(known.node));
            id != disk && is_known && !is_away(id)
        };
        let takes = |known: &&Disk| is_left(known.id) && known.is_in() && can_hold(known);
        let takers: BTreeSet<DiskId> = self.disks().filter(takes).map(|known| known.id).collect();
        let floors: BTreeMap<u8, u8> =
            self.tables().map(|copies| (copies, self.floor(copies))).collect();
        let used: BTreeSet<u8> = self.tables().filter(|copies| self.is_used(*copies)).collect();
        let (mut needed, mut short) = (0, 0);
        let mut worst: Option<(usize, usize)> = None;
        for (copies, partition) in self.partitions_on(disk) {
            let held = self.configuration(copies, partition);
            if !held.current.iter().any(|member| member.disk == disk) {
                continue;
            }
            needed += usize::from(used.contains(&copies) && self.is_needed(held, is_left));
            let members = held.current.iter().filter(|member| is_left(member.disk));
            let others = members.filter(|member| !takers.contains(&member.disk)).count();
            let (left, floor) = (takers.len() + others, held.fewest(floors[&copies]));
            if left < floor {
                short += 1;
                worst = worst.max(Some((floor, left)));
            }
        }
        match (needed, worst) {
            (1.., _) => Err(Refusal::LastCopy { disk, count: needed }),
            (0, Some((floor, left))) => {
                Err(Refusal::TooFewDisks { disk, count: short, left, floor })
            }
            (0, None) => Ok(()),
        }
    }

    /// Whether anything lies by a table.
    pub(crate) fn is_used(&self, copies: u8) -> bool {
        self.lineages.values().any(|known| known.copies == copies || known.wanted == copies)
    }

    /// A disk is gone: tables by which nothing lies do without it at once. Nothing has to be copied
    /// or settled for that, and what will lie there must not wait for it.
    pub(crate) fn take_from_unused(&mut self, gone: DiskId) {
        let is_in =
            |disk: &&Disk| disk.is_in() && disk.incarnation.0 > 0 && !self.is_lost(disk.node);
        let member = |disk: &Disk| Member { disk: disk.id, incarnation: disk.incarnation };
        let others: Vec<Member> = self.disks().filter(is_in).map(member).collect();
        let held = |copies: &u8, partition: &PartitionId| {
            let held = self.configuration(*copies, *partition);
            held.current.iter().any(|member| member.disk == gone)
        };
        let places: Vec<(u8, PartitionId)> = self
            .partitions_on(gone)
            .filter(|(copies, partition)| !self.is_used(*copies) && held(copies, partition))
            .collect();
        self.end_attempts(true, |attempt, partition| {
            places.binary_search(&(attempt.copies, partition)).is_ok()
        });
        for (copies, partition) in places {
            let held = self.configuration(copies, partition);
            let mut current: Vec<Member> =
                held.current.iter().filter(|member| member.disk != gone).copied().collect();
            if current.is_empty() && !others.is_empty() {
                current.push(others[partition.0 as usize % others.len()]);
            }
            if !current.is_empty() {
                let number = ConfigurationNumber(held.number.0 + 1);
                let new = Configuration { number, current, ..Configuration::default() };
                Arc::make_mut(&mut self.partitions).set(copies, partition, Arc::new(new));
            }
        }
    }

    /// Whether what some disks hold can go to others: as many as volumes ask for must stay.
    ///
    /// # Errors
    /// [`Refusal::NowhereToGo`].
    pub(crate) fn vet_drain(&self, is_leaving: impl Fn(&Disk) -> bool) -> Result<(), Refusal> {
        let stays = |disk: &&Disk| {
            let node = self.node(disk.node).expect("a node of a disk");
            disk.is_in() && node.state == NodeState::In && can_hold(disk) && !is_leaving(disk)
        };
        let left = self.disks().filter(stays).count();
        for copies in self.tables() {
            let floor = self.floor(copies);
            for partition in (0..1u32 << self.partition_bits()).map(PartitionId) {
                let held = self.configuration(copies, partition);
                let leaves = |member: &Member| self.disk(member.disk).is_some_and(&is_leaving);
                let floor = held.fewest(floor);
                if left < floor && held.current.iter().any(leaves) {
                    return Err(Refusal::NowhereToGo { left, floor });
                }
            }
        }
        Ok(())
    }

    /// Whether what was acknowledged in a partition could be lost with a disk: what is left of its
    /// members must meet every majority of them, with those alone that are open as they are
    /// listed, or be a majority itself.
    fn is_needed(&self, held: &Configuration, is_left: impl Fn(DiskId) -> bool) -> bool {
        let left = || held.current.iter().filter(|member| is_left(member.disk));
        let present = left().filter(|member| self.is_present(**member)).count();
        let meets_all = present > held.current.len() - held.quorum();
        !meets_all && left().count() < held.quorum()
    }
}

/// Whether a disk could hold anything at all.
fn can_hold(disk: &Disk) -> bool {
    disk.state != DiskState::Gone && disk.bytes > 0 && disk.incarnation > Incarnation(0)
}
