//! How many partitions each disk should have: its ideal share, and that in whole numbers.
//!
//! The ideal is what water would do: every disk is filled to one level, partitions per weight, but
//! a disk, node or zone that has all it may have of every partition takes no more, one that has not
//! what it must have of every partition is filled until it has, and the others take the rest at one
//! level again.

use super::layout::{Group, Layout};
use std::ops::Range;

/// What is nearer than this to a whole number is that number: rounding of the arithmetic. Sums go
/// up to 2^16 partitions with five copies, and a double has 53 bits.
const ROUNDING: f64 = 1e-6;

/// The ideal share of each disk, in partitions.
pub(super) fn ideal(layout: &Layout, partitions: u32) -> Vec<f64> {
    let water = Water { layout, partitions: f64::from(partitions) };
    let all = f64::from(partitions * layout.copies);
    let zones = 0..layout.zones.len();
    let level = water.level(all, |level| zones.clone().map(|zone| water.zone(zone, level)).sum());
    let mut ideal = vec![0.0; layout.disks.len()];
    for zone in zones {
        let group = &layout.zones[zone];
        let amount = water.zone(zone, level);
        let inside = |level| group.nodes.clone().map(|node| water.node(node, level)).sum();
        let level = water.level_within(level, amount, inside);
        for node in group.nodes.clone() {
            let disks = layout.nodes[node].disks.clone();
            let amount = water.node(node, level);
            let inside = |level| water.disks(disks.clone(), level);
            let level = water.level_within(level, amount, inside);
            for disk in disks.clone() {
                ideal[disk] = water.disks(disk..disk + 1, level);
            }
        }
    }
    ideal
}

/// What is where at some level.
struct Water<'a> {
    layout: &'a Layout,
    partitions: f64,
}

impl Water<'_> {
    fn disks(&self, disks: Range<usize>, level: f64) -> f64 {
        let places = self.layout.disks[disks].iter();
        places.map(|disk| (disk.weight as f64 * level).min(self.partitions)).sum()
    }

    fn bounded(&self, group: &Group, amount: f64) -> f64 {
        let bound = |copies: u32| f64::from(copies) * self.partitions;
        amount.clamp(bound(group.least), bound(group.most))
    }

    fn node(&self, node: usize, level: f64) -> f64 {
        let group = &self.layout.nodes[node];
        self.bounded(group, self.disks(group.disks.clone(), level))
    }

    fn zone(&self, zone: usize, level: f64) -> f64 {
        let group = &self.layout.zones[zone];
        let inside = group.nodes.clone().map(|node| self.node(node, level));
        self.bounded(group, inside.sum())
    }

    /// The level inside a group that has `amount`: that outside, unless a bound of it is reached.
    fn level_within(&self, outside: f64, amount: f64, inside: impl Fn(f64) -> f64) -> f64 {
        let bound = (inside(outside) - amount).abs() > ROUNDING / 2.0;
        if bound { self.level(amount, inside) } else { outside }
    }

    /// The lowest level at which there is so much, by bisection.
    fn level(&self, amount: f64, at: impl Fn(f64) -> f64) -> f64 {
        let lightest = self.layout.disks.iter().map(|disk| disk.weight).min();
        // Every disk is full then.
        let mut high = self.partitions / lightest.expect("there are disks") as f64;
        let mut low = 0.0;
        loop {
            let middle = low + (high - low) / 2.0;
            if middle <= low || middle >= high {
                return high;
            }
            *if at(middle) < amount { &mut low } else { &mut high } = middle;
        }
    }
}

/// One of those that share a whole number of partitions.
struct Part {
    ideal: f64,
    /// Whether something that lies there now could stay if it got one more than the whole part.
    gains: bool,
}

impl Part {
    fn floor(&self) -> u32 {
        (self.ideal + ROUNDING).floor() as u32
    }

    /// How far above that the ideal is; 0 for a whole number.
    fn fraction(&self) -> f64 {
        (self.ideal - f64::from(self.floor())).max(0.0)
    }

    fn is_whole(&self) -> bool {
        self.fraction() <= ROUNDING
    }
}

/// Several that share, and what they make together.
struct Parts(Vec<Part>);

impl Parts {
    /// The whole as a part of what is above.
    fn sum(&self) -> Part {
        let whole = Part { ideal: self.0.iter().map(|part| part.ideal).sum(), gains: false };
        let floors: u32 = self.0.iter().map(Part::floor).sum();
        let over = whole.floor().saturating_sub(floors) as usize;
        let gains = self.0.iter().filter(|part| part.gains && !part.is_whole()).count();
        Part { gains: gains > over, ..whole }
    }

    /// Whole numbers that make `total`, each the next below or above the ideal. Those that gain go
    /// first, then the largest fractions.
    fn whole(&self, total: u32) -> Vec<u32> {
        let mut whole: Vec<u32> = self.0.iter().map(Part::floor).collect();
        let mut order: Vec<usize> = (0..whole.len()).collect();
        order.sort_by(|&a, &b| {
            let key = |index: usize| {
                let part = &self.0[index];
                (part.is_whole(), !part.gains)
            };
            let fractions = self.0[b].fraction().total_cmp(&self.0[a].fraction());
            key(a).cmp(&key(b)).then(fractions).then(a.cmp(&b))
        });
        let floors: u32 = whole.iter().sum();
        debug_assert!(floors <= total && (total - floors) as usize <= whole.len());
        for &index in order.iter().take(total.saturating_sub(floors) as usize) {
            whole[index] += 1;
        }
        whole
    }
}

/// The share of each disk in whole partitions, so that nodes and zones are less than one away from
/// their ideal as well, and as little as possible of what the disks hold now has to move.
pub(super) fn whole(layout: &Layout, ideal: &[f64], partitions: u32, held: &[u32]) -> Vec<u32> {
    let disk = |disk: usize| {
        let part = Part { ideal: ideal[disk], gains: false };
        Part { gains: held[disk] > part.floor(), ..part }
    };
    let disks = |node: usize| Parts(layout.nodes[node].disks.clone().map(disk).collect());
    let nodes = |zone: usize| {
        Parts(layout.zones[zone].nodes.clone().map(|node| disks(node).sum()).collect())
    };
    let zones = Parts((0..layout.zones.len()).map(|zone| nodes(zone).sum()).collect());
    let of_zones = zones.whole(partitions * layout.copies);
    let of_nodes = (0..layout.zones.len()).flat_map(|zone| nodes(zone).whole(of_zones[zone]));
    let of_nodes: Vec<u32> = of_nodes.collect();
    (0..layout.nodes.len()).flat_map(|node| disks(node).whole(of_nodes[node])).collect()
}
