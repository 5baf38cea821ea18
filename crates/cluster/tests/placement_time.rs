//! The largest clusters are placed in a moment. On an idle machine a release build takes well under
//! a second for each of these. The bound is one of the clock on the wall, and this may be a test
//! build that runs beside others and after them: hence two minutes.
#![allow(clippy::disallowed_methods)] // it measures

use cluster::placement::{Site, place};
use proto::{DiskId, NodeId};
use std::time::{Duration, Instant};

/// A thousand disks, so many to a node and so many nodes to a zone.
fn sites(disks_per_node: u128, nodes_per_zone: u128, heaviest: u128) -> Vec<Site> {
    let site = |disk: u128| {
        let node = disk / disks_per_node;
        Site {
            disk: DiskId(disk + 1),
            node: NodeId(node + 1),
            zone: format!("{}", node / nodes_per_zone),
            weight: 1 + (disk * 7 % heaviest) as u64,
        }
    };
    (0..1000).map(site).collect()
}

#[test]
fn a_thousand_disks_and_65536_partitions_are_placed_in_a_moment() {
    let empty = vec![Vec::new(); 1 << 16];
    for (disks_per_node, nodes_per_zone, heaviest, copies) in [
        (4, 25, 100, 3),
        // Two nodes with all disks, and two zones for five copies.
        (500, 1, 3, 3),
        (10, 50, 1, 5),
    ] {
        let all = sites(disks_per_node, nodes_per_zone, heaviest);
        let what = format!("{disks_per_node} {nodes_per_zone} {heaviest} {copies}");
        let timed = |sites: &[Site], present: &[Vec<DiskId>], step: &str| {
            let begin = Instant::now();
            let next = place(sites, copies, present);
            let took = begin.elapsed();
            println!("{what}: {step}: {} ms", took.as_millis());
            assert!(took < Duration::from_secs(120), "{what}: {step} took {took:?}");
            next
        };
        let table = timed(&all, &empty, "from nothing");
        let fewer = timed(&all[300..], &table, "many disks go");
        timed(&all, &fewer, "they come back");
    }
}
