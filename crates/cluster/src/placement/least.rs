//! The least movement there can be, exactly: a flow of least cost. Too slow for anything but small
//! clusters, and obvious.

use super::layout::{Group, Layout};
use super::share;
use super::{DiskId, Site};
use std::collections::VecDeque;

/// Large enough that what must be filled is filled first.
const MUST: i64 = 1 << 20;

struct Arc {
    to: usize,
    room: u32,
    cost: i64,
}

#[derive(Default)]
struct Network {
    arcs: Vec<Arc>,
    of: Vec<Vec<usize>>,
}

impl Network {
    fn node(&mut self) -> usize {
        self.of.push(Vec::new());
        self.of.len() - 1
    }

    fn arc(&mut self, from: usize, to: usize, room: u32, cost: i64) {
        self.of[from].push(self.arcs.len());
        self.arcs.push(Arc { to, room, cost });
        self.of[to].push(self.arcs.len());
        self.arcs.push(Arc { to: from, room: 0, cost: -cost });
    }

    /// At least so much must flow, at most so much may.
    fn bounded(&mut self, from: usize, to: usize, (least, most): (u32, u32), cost: i64) {
        self.arc(from, to, least, cost - MUST);
        self.arc(from, to, most - least, cost);
    }

    /// Sends one more along the cheapest way; what it costs.
    fn send(&mut self, source: usize, sink: usize) -> Option<i64> {
        let mut cost = vec![i64::MAX; self.of.len()];
        let mut came = vec![usize::MAX; self.of.len()];
        let mut queued = vec![false; self.of.len()];
        let mut queue = VecDeque::from([source]);
        cost[source] = 0;
        while let Some(node) = queue.pop_front() {
            queued[node] = false;
            for &index in &self.of[node] {
                let arc = &self.arcs[index];
                let there = cost[node] + arc.cost;
                if arc.room > 0 && there < cost[arc.to] {
                    cost[arc.to] = there;
                    came[arc.to] = index;
                    if !std::mem::replace(&mut queued[arc.to], true) {
                        queue.push_back(arc.to);
                    }
                }
            }
        }
        let mut node = sink;
        while node != source {
            let index = *came.get(node).filter(|&&index| index != usize::MAX)?;
            self.arcs[index].room -= 1;
            self.arcs[index ^ 1].room += 1;
            node = self.arcs[index ^ 1].to;
        }
        Some(cost[sink])
    }
}

/// How many members must be new at least if every disk is to be less than one partition away from
/// its ideal and every partition spread as it must be.
pub(super) fn least(sites: &[Site], copies: u8, present: &[Vec<DiskId>]) -> u32 {
    let layout = Layout::new(sites, copies);
    let ideal = share::ideal(&layout, present.len() as u32);
    let mut net = Network::default();
    let (source, sink) = (net.node(), net.node());
    let disks: Vec<usize> = layout.disks.iter().map(|_| net.node()).collect();
    let mut must = 0;
    for (&disk, ideal) in disks.iter().zip(&ideal) {
        let (least, most) = ((ideal + 1e-6).floor() as u32, (ideal - 1e-6).ceil() as u32);
        must += i64::from(least);
        net.bounded(disk, sink, (least, most.max(least)), 0);
    }
    let bounds = |group: &Group| (group.least, group.most);
    for members in present {
        let partition = net.node();
        net.arc(source, partition, layout.copies, 0);
        for zone in &layout.zones {
            let in_zone = net.node();
            must += i64::from(zone.least);
            net.bounded(partition, in_zone, bounds(zone), 0);
            for node in &layout.nodes[zone.nodes.clone()] {
                let in_node = net.node();
                must += i64::from(node.least);
                net.bounded(in_zone, in_node, bounds(node), 0);
                for disk in node.disks.clone() {
                    let is_new = !members.contains(&layout.disks[disk].id);
                    net.arc(in_node, disks[disk], 1, i64::from(is_new));
                }
            }
        }
    }
    let cost: i64 = (0..layout.copies as usize * present.len())
        .map(|_| net.send(source, sink).expect("there is a way"))
        .sum();
    let new = cost + must * MUST;
    u32::try_from(new).expect("all that must be filled is filled")
}
