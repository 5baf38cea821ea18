//! Which disks each partition gets, so that every disk has its target and every partition is spread
//! as it must be, and as few members as possible are new.
//!
//! In four steps: *keep* what may stay; *trim* disks that have too many; *fill* the gaps at random,
//! weighted by what each disk still has to get, but with former members where that is possible;
//! *mend* the few gaps that no disk with room fits, by the shortest chain of exchanges to a disk
//! with room. Seen as a flow from partitions through
//! their zones and nodes to disks, such a chain is an augmenting path. As targets that obey the
//! bounds of all groups can always be met in full, one is always found.

use super::layout::{Group, Layout};
use std::collections::VecDeque;

/// No disk: a gap.
const GAP: u16 = u16::MAX;

pub(super) fn assign(layout: &Layout, targets: &[u32], present: &[Vec<u16>]) -> Vec<Vec<u16>> {
    let mut table = Table::keep(layout, targets, present);
    table.trim();
    table.restore();
    table.fill();
    table.mend();
    table.into_members()
}

/// A number that looks random: the same for the same place.
fn dice(a: u64, b: u64) -> u64 {
    proto::mix(proto::mix(a ^ 0x706c_6163_6500).wrapping_add(b))
}

struct Table<'a> {
    layout: &'a Layout,
    targets: &'a [u32],
    /// Where the partitions lie now, those of their members that are in the layout.
    present: &'a [Vec<u16>],
    /// The members of each partition, `copies` of them, gaps included.
    members: Vec<u16>,
    /// How many partitions each disk has.
    load: Vec<u32>,
    /// Zones and nodes that must have some of each partition; few, as there are fewer than copies.
    demanding: Vec<(usize, Vec<usize>)>,
}

impl<'a> Table<'a> {
    fn copies(&self) -> usize {
        self.layout.copies as usize
    }

    fn partitions(&self) -> usize {
        self.present.len()
    }

    fn members(&self, partition: usize) -> &[u16] {
        &self.members[partition * self.copies()..(partition + 1) * self.copies()]
    }

    /// Puts `entering` where `leaving` is, in one partition; either may be a gap.
    fn replace(&mut self, partition: usize, leaving: u16, entering: u16) {
        let copies = self.copies();
        let members = &mut self.members[partition * copies..(partition + 1) * copies];
        *members.iter_mut().find(|member| **member == leaving).expect("it is there") = entering;
        if leaving != GAP {
            self.load[leaving as usize] -= 1;
        }
        if entering != GAP {
            self.load[entering as usize] += 1;
        }
    }

    fn node_of(&self, disk: u16) -> usize {
        self.layout.disks[disk as usize].node as usize
    }

    fn zone_of(&self, disk: u16) -> usize {
        self.layout.disks[disk as usize].zone as usize
    }

    /// How many of `members` are in a group.
    fn count(group: &Group, members: &[u16]) -> u32 {
        let inside = |&&member: &&u16| group.disks.contains(&usize::from(member));
        members.iter().filter(inside).count() as u32
    }

    /// How many places of a partition are taken by these members and by what zones and nodes must
    /// have besides. Nothing if a zone would get more than it may.
    fn claim(&self, members: &[u16]) -> Option<u32> {
        let mut claim = members.len() as u32;
        for (zone, nodes) in &self.demanding {
            let zone = &self.layout.zones[*zone];
            let has = Self::count(zone, members);
            let lacks = |&node: &usize| {
                let node = &self.layout.nodes[node];
                node.least.saturating_sub(Self::count(node, members))
            };
            let of_nodes = has + nodes.iter().map(lacks).sum::<u32>();
            if of_nodes > zone.most {
                return None;
            }
            claim += of_nodes.max(zone.least) - has;
        }
        Some(claim)
    }

    /// Whether a partition is spread as it must be with these members, or can come to be with as
    /// many more as are missing.
    fn is_spread(&self, members: &[u16]) -> bool {
        let fits = |&member: &u16| {
            let node = &self.layout.nodes[self.node_of(member)];
            let zone = &self.layout.zones[self.zone_of(member)];
            Self::count(node, members) <= node.most && Self::count(zone, members) <= zone.most
        };
        members.iter().all(fits)
            && self.claim(members).is_some_and(|claim| claim <= self.layout.copies)
    }

    /// Whether `entering` may come to a partition in the place of `leaving`, which may be a gap.
    fn fits(&self, partition: usize, leaving: u16, entering: u16) -> bool {
        let mut rest = [GAP; proto::limits::COPIES_MAX as usize];
        let mut count = 0;
        let mut passed = false;
        for &member in self.members(partition) {
            if member == entering {
                return false;
            }
            if member == leaving && !passed {
                passed = true;
            } else if member != GAP {
                rest[count] = member;
                count += 1;
            }
        }
        let node = &self.layout.nodes[self.node_of(entering)];
        let zone = &self.layout.zones[self.zone_of(entering)];
        if Self::count(zone, &rest[..count]) >= zone.most
            || Self::count(node, &rest[..count]) >= node.most
        {
            return false;
        }
        if self.demanding.is_empty() {
            return true;
        }
        rest[count] = entering;
        self.claim(&rest[..count + 1]).is_some_and(|claim| claim <= self.layout.copies)
    }

    /// Everything stays that may.
    fn keep(layout: &'a Layout, targets: &'a [u32], present: &'a [Vec<u16>]) -> Table<'a> {
        let demanding = layout.zones.iter().enumerate().filter_map(|(index, zone)| {
            let nodes = zone.nodes.clone().filter(|&node| layout.nodes[node].least > 0);
            let nodes: Vec<usize> = nodes.collect();
            (zone.least > 0 || !nodes.is_empty()).then_some((index, nodes))
        });
        let mut this = Table {
            layout,
            targets,
            present,
            members: Vec::with_capacity(present.len() * layout.copies as usize),
            load: vec![0; targets.len()],
            demanding: demanding.collect(),
        };
        for &disk in present.iter().flatten() {
            this.load[disk as usize] += 1;
        }
        for members in present {
            let mut kept = members.clone();
            while !this.is_spread(&kept) {
                let leaves = this.least_wanted(&kept);
                this.load[kept.remove(leaves) as usize] -= 1;
            }
            kept.resize(layout.copies as usize, GAP);
            this.members.extend(kept);
        }
        this
    }

    /// Which of the members of a partition that is not spread as it must be is to leave: one
    /// without which it is nearer to that, and of these one of the disk that has the most to spare.
    fn least_wanted(&self, members: &[u16]) -> usize {
        let key = |&index: &usize| {
            let mut rest = members.to_vec();
            let member = rest.remove(index);
            let over = |group: &Group| Self::count(group, &rest).saturating_sub(group.most);
            let zones: u32 = self.layout.zones.iter().map(over).sum();
            let nodes: u32 = rest
                .iter()
                .map(|&other| u32::from(over(&self.layout.nodes[self.node_of(other)]) > 0))
                .sum();
            let claim = self.claim(&rest).unwrap_or(u32::MAX / 2);
            let spare =
                i64::from(self.load[member as usize]) - i64::from(self.targets[member as usize]);
            (zones + nodes + claim.saturating_sub(self.layout.copies), -spare)
        };
        (0..members.len()).min_by_key(key).expect("no members are spread as they must be")
    }

    /// The partitions of each disk.
    fn held(&self) -> Vec<Vec<u32>> {
        let mut held = vec![Vec::new(); self.targets.len()];
        for partition in 0..self.partitions() {
            for &member in self.members(partition).iter().filter(|&&member| member != GAP) {
                held[member as usize].push(partition as u32);
            }
        }
        held
    }

    /// No disk has more than its target.
    fn trim(&mut self) {
        if self.load.iter().zip(self.targets).all(|(load, target)| load <= target) {
            return;
        }
        let held = self.held();
        for (disk, mut partitions) in held.into_iter().enumerate() {
            let excess = self.load[disk].saturating_sub(self.targets[disk]) as usize;
            if excess == 0 {
                continue;
            }
            let disk = disk as u16;
            let (node, zone) = (self.node_of(disk), self.zone_of(disk));
            // Where most of its zone and node are, somebody from elsewhere can follow.
            partitions.sort_by_cached_key(|&partition| {
                let members = self.members(partition as usize);
                let in_zone = Self::count(&self.layout.zones[zone], members);
                let in_node = Self::count(&self.layout.nodes[node], members);
                let rank = (u32::MAX - in_zone, u32::MAX - in_node);
                (rank, dice(u64::from(partition), u64::from(disk)))
            });
            for &partition in &partitions[..excess] {
                self.replace(partition as usize, disk, GAP);
            }
        }
    }

    /// Fills gaps with members that were there before, on their way in or out, and have room.
    fn restore(&mut self) {
        for partition in 0..self.partitions() {
            for &disk in &self.present[partition] {
                let has_room = self.load[disk as usize] < self.targets[disk as usize];
                if has_room && gaps(self, partition) > 0 && self.fits(partition, GAP, disk) {
                    self.replace(partition, GAP, disk);
                }
            }
        }
    }

    /// Fills the gaps, in a random order, with disks that have room.
    fn fill(&mut self) {
        let mut order: Vec<usize> =
            (0..self.partitions()).filter(|&partition| gaps(self, partition) > 0).collect();
        order.sort_by_cached_key(|&partition| dice(partition as u64, u64::MAX));
        let mut room = Room::new(self, &order);
        for (step, &partition) in order.iter().enumerate() {
            if step.is_multiple_of(Room::LOOK_STEPS) {
                room.look_for_urgent();
            }
            room.pass(self, partition);
            let urgent = std::mem::take(&mut room.urgent);
            for &group in &urgent {
                while room.is_urgent(group)
                    && let Some(disk) = room.choose(self, partition, room.groups[group].disks)
                {
                    self.replace(partition, GAP, disk);
                    room.take(self, disk);
                }
            }
            room.urgent = urgent;
            while let Some(disk) = room.choose(self, partition, (0, self.targets.len())) {
                self.replace(partition, GAP, disk);
                room.take(self, disk);
            }
        }
    }

    /// Fills the gaps that are left, each by a chain: a disk comes in, another takes a partition
    /// from it, and so on to a disk that has room.
    fn mend(&mut self) {
        if !self.members.contains(&GAP) {
            return;
        }
        let mut held = self.held();
        for partition in 0..self.partitions() {
            // A chain may turn out not to fit as a whole; what of it fitted is nearer to the end.
            let mut tries = 0;
            while self.members(partition).contains(&GAP) && tries < 64 {
                tries += 1;
                let Some(chain) = self.chain(partition, &held) else { break };
                for (partition, leaving, entering) in chain.into_iter().rev() {
                    if !self.fits(partition, leaving, entering) {
                        break;
                    }
                    self.replace(partition, leaving, entering);
                    if leaving != GAP {
                        held[leaving as usize].retain(|&other| other as usize != partition);
                    }
                    held[entering as usize].push(partition as u32);
                }
            }
            debug_assert!(!self.members(partition).contains(&GAP), "targets can be met");
        }
    }

    /// The way from a gap to a disk with room that makes the fewest members new.
    fn chain(&self, gap: usize, held: &[Vec<u32>]) -> Option<Vec<(usize, u16, u16)>> {
        const UNSEEN: (usize, u16) = (usize::MAX, GAP);
        let mut came: Vec<(usize, u16)> = vec![UNSEEN; self.targets.len()];
        let mut unseen: Vec<usize> =
            self.layout.zones.iter().map(|zone| zone.disks.len()).collect();
        let mut queue = VecDeque::from([GAP]);
        while let Some(leaving) = queue.pop_front() {
            let mut partitions = match leaving {
                GAP => vec![gap as u32],
                disk => held[disk as usize].clone(),
            };
            let is_new = |partition: u32| !self.present[partition as usize].contains(&leaving);
            partitions.sort_by_key(|&partition| !is_new(partition));
            for partition in partitions {
                let index = partition as usize;
                for (number, zone) in self.layout.zones.iter().enumerate() {
                    if unseen[number] == 0 {
                        continue;
                    }
                    let in_zone = Self::count(zone, self.members(index));
                    let leaves_it = zone.disks.contains(&usize::from(leaving));
                    if in_zone - u32::from(leaves_it) >= zone.most {
                        continue;
                    }
                    for entering in zone.disks.clone() {
                        let known = came[entering] != UNSEEN;
                        if known || !self.fits(index, leaving, entering as u16) {
                            continue;
                        }
                        came[entering] = (index, leaving);
                        unseen[number] -= 1;
                        let entering = entering as u16;
                        if self.load[entering as usize] < self.targets[entering as usize] {
                            return Some(self.way(&came, entering));
                        }
                        // The new member replaces another new one, or is none.
                        let is_free = (leaving != GAP && is_new(partition))
                            || self.present[index].contains(&entering);
                        if is_free {
                            queue.push_front(entering);
                        } else {
                            queue.push_back(entering);
                        }
                    }
                }
            }
        }
        None
    }

    /// The steps that led to `last`, from the gap on.
    fn way(&self, came: &[(usize, u16)], last: u16) -> Vec<(usize, u16, u16)> {
        let (mut way, mut entering) = (Vec::new(), last);
        while entering != GAP {
            let (partition, leaving) = came[entering as usize];
            way.push((partition, leaving, entering));
            entering = leaving;
        }
        way.reverse();
        way
    }

    /// The members of each partition: those that stay as they were, then the new ones.
    fn into_members(self) -> Vec<Vec<u16>> {
        let of = |partition: usize| {
            let now = self.members(partition);
            let former = &self.present[partition];
            let stay = former.iter().copied().filter(|member| now.contains(member));
            let new = now.iter().copied().filter(|m| *m != GAP && !former.contains(m));
            stay.chain(new).collect()
        };
        (0..self.partitions()).map(of).collect()
    }
}

/// A disk, a node or a zone, while gaps are being filled.
struct Taker {
    /// Its disks, from and up to.
    disks: (usize, usize),
    /// How many copies of one partition it may have.
    most: u32,
    /// How many it still has to get.
    need: u32,
    /// How much less it can get from the partitions that are still to come than a group that has
    /// nothing of any of them.
    less: u32,
}

/// What disks, nodes and zones have still to get.
struct Room {
    /// All disks, then all nodes, then all zones.
    groups: Vec<Taker>,
    /// Those that may have to take every chance soon.
    urgent: Vec<usize>,
    /// Sums of what disks have still to get, as a Fenwick tree.
    sums: Vec<u32>,
    /// What the partitions that are still to come offer to a group that has nothing of any of them,
    /// by how many copies of one partition it may have.
    offers: [u32; proto::limits::COPIES_MAX as usize + 1],
    draws: u64,
}

impl Room {
    /// So many partitions are filled between two looks at who is short of chances.
    const LOOK_STEPS: usize = 64;

    fn new(table: &Table, order: &[usize]) -> Room {
        let need = |disk: usize| table.targets[disk].saturating_sub(table.load[disk]);
        let disks = (0..table.targets.len()).map(|disk| Taker {
            disks: (disk, disk + 1),
            most: 1,
            need: need(disk),
            less: 0,
        });
        let groups = table.layout.nodes.iter().chain(&table.layout.zones).map(|group| Taker {
            disks: (group.disks.start, group.disks.end),
            most: group.most,
            need: group.disks.clone().map(need).sum(),
            less: 0,
        });
        let mut this = Room {
            groups: disks.chain(groups).collect(),
            urgent: Vec::new(),
            sums: vec![0; table.targets.len() + 1],
            offers: Default::default(),
            draws: 0,
        };
        for disk in 0..table.targets.len() {
            this.add(disk, need(disk));
        }
        for &partition in order {
            for (most, offer) in this.offers.iter_mut().enumerate() {
                *offer += gaps(table, partition).min(most as u32);
            }
            this.correct(table, partition, |less, change| *less += change);
        }
        this
    }

    /// Applies to each group that has something of a partition what that takes from
    /// its chances.
    fn correct(&mut self, table: &Table, partition: usize, apply: fn(&mut u32, u32)) {
        let gaps = gaps(table, partition);
        let members: Vec<u16> =
            table.members(partition).iter().copied().filter(|&member| member != GAP).collect();
        for (index, &member) in members.iter().enumerate() {
            for group in groups_of(table, member) {
                let taker = &mut self.groups[group];
                let inside =
                    |&other: &u16| (taker.disks.0..taker.disks.1).contains(&usize::from(other));
                // Each group once, at its first member.
                if members[..index].iter().any(inside) {
                    continue;
                }
                let has = members.iter().filter(|&other| inside(other)).count() as u32;
                let left = taker.most.saturating_sub(has);
                apply(&mut taker.less, gaps.min(taker.most) - gaps.min(left));
            }
        }
    }

    /// A partition is being filled now: it is no chance any more.
    fn pass(&mut self, table: &Table, partition: usize) {
        self.correct(table, partition, |less, change| *less -= change);
        for (most, offer) in self.offers.iter_mut().enumerate() {
            *offer -= gaps(table, partition).min(most as u32);
        }
    }

    /// How many a group can still get from the partitions that are still to come.
    fn chances(&self, group: &Taker) -> u32 {
        self.offers[group.most as usize] - group.less
    }

    fn is_urgent(&self, group: usize) -> bool {
        let group = &self.groups[group];
        group.need > self.chances(group)
    }

    fn look_for_urgent(&mut self) {
        let soon = |group: &Taker| {
            group.need > 0
                && group.need + Self::LOOK_STEPS as u32 * group.most > self.chances(group)
        };
        let urgent = self.groups.iter().enumerate().filter(|(_, group)| soon(group));
        self.urgent = urgent.map(|(index, _)| index).collect();
    }

    fn add(&mut self, disk: usize, amount: u32) {
        let mut index = disk + 1;
        while index < self.sums.len() {
            self.sums[index] = self.sums[index].wrapping_add(amount);
            index += index & index.wrapping_neg();
        }
    }

    /// What the disks below this one have to get together.
    fn below(&self, disk: usize) -> u32 {
        let (mut index, mut sum) = (disk, 0u32);
        while index > 0 {
            sum = sum.wrapping_add(self.sums[index]);
            index &= index - 1;
        }
        sum
    }

    /// The disk up to which the sum first exceeds `sum`.
    fn at(&self, mut sum: u32) -> usize {
        let mut index = 0;
        let mut step = self.sums.len().next_power_of_two();
        while step > 0 {
            let next = index + step;
            if next < self.sums.len() && self.sums[next] <= sum {
                sum -= self.sums[next];
                index = next;
            }
            step /= 2;
        }
        index
    }

    /// A disk among these that has to get something and fits into a gap of a partition: a random
    /// one, in proportion to what each has to get.
    fn choose(&mut self, table: &Table, partition: usize, disks: (usize, usize)) -> Option<u16> {
        if gaps(table, partition) == 0 {
            return None;
        }
        let below = self.below(disks.0);
        let sum = self.below(disks.1) - below;
        if sum == 0 {
            return None;
        }
        for _ in 0..16 {
            self.draws += 1;
            let draw = dice(partition as u64, self.draws) % u64::from(sum);
            let disk = self.at(below + draw as u32) as u16;
            if table.fits(partition, GAP, disk) {
                return Some(disk);
            }
        }
        let fitting = (disks.0..disks.1)
            .filter(|&disk| self.groups[disk].need > 0 && table.fits(partition, GAP, disk as u16));
        fitting.max_by_key(|&disk| self.groups[disk].need).map(|disk| disk as u16)
    }

    /// A disk got something.
    fn take(&mut self, table: &Table, disk: u16) {
        self.add(disk as usize, 1u32.wrapping_neg());
        for group in groups_of(table, disk) {
            self.groups[group].need -= 1;
        }
    }
}

/// How many gaps a partition has.
fn gaps(table: &Table, partition: usize) -> u32 {
    table.members(partition).iter().filter(|&&member| member == GAP).count() as u32
}

/// Where a disk, its node and its zone are among the groups.
fn groups_of(table: &Table, disk: u16) -> [usize; 3] {
    let disks = table.targets.len();
    let nodes = disks + table.node_of(disk);
    [disk as usize, nodes, disks + table.layout.nodes.len() + table.zone_of(disk)]
}
