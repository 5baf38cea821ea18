//! The sites in an order in which each node's disks and each zone's nodes lie together, and how
//! many copies of one partition each of them may have.

use super::Site;
use proto::{DiskId, NodeId};
use std::collections::BTreeMap;
use std::ops::Range;

/// One disk.
pub(super) struct Place {
    pub(super) id: DiskId,
    pub(super) node: u16,
    pub(super) zone: u16,
    pub(super) weight: u64,
}

/// A node, or a zone.
pub(super) struct Group {
    /// Its disks.
    pub(super) disks: Range<usize>,
    /// Its nodes, if it is a zone.
    pub(super) nodes: Range<usize>,
    /// How many copies of one partition it has at least ...
    pub(super) least: u32,
    /// ... and at most.
    pub(super) most: u32,
}

pub(super) struct Layout {
    /// How many copies each partition is to have: no more than there are disks.
    pub(super) copies: u32,
    pub(super) disks: Vec<Place>,
    pub(super) nodes: Vec<Group>,
    pub(super) zones: Vec<Group>,
    index: BTreeMap<DiskId, u16>,
}

impl Layout {
    pub(super) fn new(sites: &[Site], copies: u8) -> Layout {
        let mut sorted: Vec<&Site> = sites.iter().collect();
        sorted.sort_by_key(|site| (&site.zone, site.node, site.disk));
        let copies = u32::from(copies).min(sites.len() as u32);
        let mut this = Layout {
            copies,
            disks: Vec::with_capacity(sites.len()),
            nodes: Vec::new(),
            zones: Vec::new(),
            index: BTreeMap::new(),
        };
        let mut last: Option<(&str, NodeId)> = None;
        for (index, site) in sorted.into_iter().enumerate() {
            assert!(site.weight > 0, "a site that can hold nothing");
            if last.is_none_or(|(zone, _)| zone != site.zone) {
                this.zones.push(Group::at(index, this.nodes.len()));
            }
            if last != Some((&site.zone, site.node)) {
                this.nodes.push(Group::at(index, this.nodes.len()));
                this.zones.last_mut().expect("pushed above").nodes.end += 1;
            }
            last = Some((&site.zone, site.node));
            this.zones.last_mut().expect("pushed above").disks.end += 1;
            this.nodes.last_mut().expect("pushed above").disks.end += 1;
            let (node, zone) = (this.nodes.len() as u16 - 1, this.zones.len() as u16 - 1);
            this.disks.push(Place { id: site.disk, node, zone, weight: site.weight });
            let former = this.index.insert(site.disk, index as u16);
            assert!(former.is_none(), "two sites for one disk");
        }
        this.bound();
        this
    }

    /// Sets how many copies of one partition each node and zone has.
    ///
    /// A node has at most s, the smallest number with which all copies find room, and at least
    /// s - 1, or all of its disks. So s is 1 where there are as many nodes as copies. The same for
    /// zones, that have the room which their nodes allow. With up to five copies the two never
    /// contradict one another, which a test tries with all small clusters.
    fn bound(&mut self) {
        let room: Vec<u32> = self.nodes.iter().map(|node| node.disks.len() as u32).collect();
        for (node, (least, most)) in self.nodes.iter_mut().zip(evenly(&room, self.copies)) {
            (node.least, node.most) = (least, most);
        }
        let nodes = &self.nodes;
        let of_nodes = |zone: &Group, bound: fn(&Group) -> u32| {
            nodes[zone.nodes.clone()].iter().map(bound).sum::<u32>()
        };
        let room: Vec<u32> =
            self.zones.iter().map(|zone| of_nodes(zone, |node| node.most)).collect();
        let bounds = evenly(&room, self.copies);
        for (zone, (least, most)) in self.zones.iter_mut().zip(bounds) {
            let needed = of_nodes(zone, |node| node.least);
            debug_assert!(needed <= most);
            (zone.least, zone.most) = (least.max(needed).min(most), most);
        }
    }

    /// Narrows the bounds to the multiples of all partitions between which the targets lie: a node
    /// that is to have as much as all partitions has one copy of each. There is always such a table
    /// (decision 0007), and without this the others would take its places.
    pub(super) fn tighten(&mut self, targets: &[u32], partitions: u32) {
        for group in self.nodes.iter_mut().chain(&mut self.zones) {
            let target: u32 = targets[group.disks.clone()].iter().sum();
            group.least = group.least.max(target / partitions.max(1));
            group.most = group.most.min(target.div_ceil(partitions.max(1)));
        }
    }

    /// Where a disk is in the order.
    pub(super) fn index_of(&self, disk: DiskId) -> Option<u16> {
        self.index.get(&disk).copied()
    }
}

impl Group {
    fn at(disk: usize, node: usize) -> Group {
        Group { disks: disk..disk, nodes: node..node, least: 0, most: 0 }
    }
}

/// How many of `wanted` each gets at least and at most if they are handed out as evenly as the room
/// of each allows. There is room for all.
fn evenly(room: &[u32], wanted: u32) -> Vec<(u32, u32)> {
    let mut level = 1;
    while room.iter().map(|&room| room.min(level)).sum::<u32>() < wanted {
        level += 1;
    }
    room.iter().map(|&room| (room.min(level - 1), room.min(level))).collect()
}
