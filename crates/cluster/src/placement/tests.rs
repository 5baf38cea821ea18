//! Placement compared with what can be said of it without it: the ideal by pouring grain after
//! grain, the spread of each partition by counting, the least movement by a flow of least cost.

use super::layout::Layout;
use super::least::least;
use super::*;
use crate::model::Dice;
use std::collections::{BTreeMap, BTreeSet};

fn site(disk: u128, node: u128, zone: &str, weight: u64) -> Site {
    Site { disk: DiskId(disk), node: NodeId(node), zone: zone.to_owned(), weight }
}

/// How many partitions each site has.
fn loads(sites: &[Site], table: &[Vec<DiskId>]) -> BTreeMap<DiskId, u32> {
    let mut loads: BTreeMap<DiskId, u32> = sites.iter().map(|site| (site.disk, 0)).collect();
    for disk in table.iter().flatten() {
        *loads.get_mut(disk).expect("only sites hold something") += 1;
    }
    loads
}

/// The ideal, by its definition: of each partition `GRAINS` grains per copy are poured, each into
/// the disk that is emptiest for its weight among those that may still take one.
fn poured(sites: &[Site], copies: u8, partitions: u32) -> BTreeMap<DiskId, f64> {
    const GRAINS: u32 = 8;
    let layout = Layout::new(sites, copies);
    let unit = partitions * GRAINS;
    let mut left = unit * layout.copies;
    let mut disks = vec![0u32; layout.disks.len()];
    let mut nodes = vec![0u32; layout.nodes.len()];
    let mut zones = vec![0u32; layout.zones.len()];
    // Whether the others can still get what they must have.
    let is_right = |nodes: &[u32], zones: &[u32]| -> bool {
        let claim = |(index, zone): (usize, &super::layout::Group)| {
            let lacks = |node: usize| (layout.nodes[node].least * unit).saturating_sub(nodes[node]);
            let of_nodes = zones[index] + zone.nodes.clone().map(lacks).sum::<u32>();
            (of_nodes <= zone.most * unit).then_some(of_nodes.max(zone.least * unit))
        };
        let claims = layout.zones.iter().enumerate().map(claim).sum::<Option<u32>>();
        claims.is_some_and(|claims| claims <= layout.copies * unit)
    };
    while left > 0 {
        let mut order: Vec<usize> = (0..disks.len()).collect();
        let level = |disk: usize| (f64::from(disks[disk]) + 0.5) / layout.disks[disk].weight as f64;
        order.sort_by(|&a, &b| level(a).total_cmp(&level(b)).then(a.cmp(&b)));
        let takes = |&disk: &usize| {
            let (node, zone) = (layout.disks[disk].node as usize, layout.disks[disk].zone as usize);
            let has_room = disks[disk] < unit
                && nodes[node] < layout.nodes[node].most * unit
                && zones[zone] < layout.zones[zone].most * unit;
            let (mut nodes, mut zones) = (nodes.clone(), zones.clone());
            nodes[node] += 1;
            zones[zone] += 1;
            has_room && is_right(&nodes, &zones)
        };
        let disk = order.into_iter().find(takes).expect("there is room");
        disks[disk] += 1;
        nodes[layout.disks[disk].node as usize] += 1;
        zones[layout.disks[disk].zone as usize] += 1;
        left -= 1;
    }
    let share = |(disk, &grains): (usize, &u32)| {
        (layout.disks[disk].id, f64::from(grains) / f64::from(GRAINS))
    };
    disks.iter().enumerate().map(share).collect()
}

/// How many members are new.
fn moved(present: &[Vec<DiskId>], next: &[Vec<DiskId>]) -> u32 {
    let new = |(before, after): (&Vec<DiskId>, &Vec<DiskId>)| {
        after.iter().filter(|disk| !before.contains(disk)).count() as u32
    };
    present.iter().zip(next).map(new).sum()
}

/// Places, and judges everything but balance and movement. Gives the next table.
fn placed(sites: &[Site], copies: u8, present: &[Vec<DiskId>]) -> Vec<Vec<DiskId>> {
    let next = place(sites, copies, present);
    assert_eq!(next.len(), present.len());
    let by_disk: BTreeMap<DiskId, &Site> = sites.iter().map(|site| (site.disk, site)).collect();
    let zones: BTreeSet<&str> = sites.iter().map(|site| &*site.zone).collect();
    let nodes: BTreeSet<NodeId> = sites.iter().map(|site| site.node).collect();
    let copies_here = usize::from(copies).min(sites.len());
    for members in &next {
        let found: Vec<&Site> = members.iter().map(|disk| by_disk[disk]).collect();
        let of_disks: BTreeSet<DiskId> = found.iter().map(|site| site.disk).collect();
        let of_nodes: BTreeSet<NodeId> = found.iter().map(|site| site.node).collect();
        let of_zones: BTreeSet<&str> = found.iter().map(|site| &*site.zone).collect();
        assert_eq!((members.len(), of_disks.len()), (copies_here, copies_here));
        assert_eq!(of_zones.len(), copies_here.min(zones.len()), "a zone is doubled needlessly");
        assert_eq!(of_nodes.len(), copies_here.min(nodes.len()), "a node is doubled needlessly");
    }
    for (before, after) in present.iter().zip(&next) {
        let stay = before.iter().filter(|disk| after.contains(disk));
        assert!(after.iter().zip(stay).all(|(a, b)| a == b), "those that stay come first");
    }
    assert_eq!(place(sites, copies, present), next, "equal input gives equal output");
    assert_eq!(place(sites, copies, &next), next, "what is well placed stays");
    next
}

fn judge(sites: &[Site], copies: u8, present: &[Vec<DiskId>], what: &str) -> Vec<Vec<DiskId>> {
    let next = placed(sites, copies, present);
    let ideal = poured(sites, copies, present.len() as u32);
    for (disk, load) in loads(sites, &next) {
        // A grain is an eighth of a partition.
        let off = (f64::from(load) - ideal[&disk]).abs();
        assert!(off < 1.2, "{what}: {disk} has {load} instead of {}", ideal[&disk]);
    }
    next
}

#[test]
fn bounds_leave_no_zone_or_node_doubled_that_need_not_be() {
    // All clusters of up to three zones with up to three nodes of one to three disks.
    let mut kinds: Vec<Vec<usize>> = Vec::new();
    for a in 1..4 {
        kinds.push(vec![a]);
        for b in a..4 {
            kinds.push(vec![a, b]);
            kinds.extend((b..4).map(|c| vec![a, b, c]));
        }
    }
    let mut clusters: Vec<Vec<&Vec<usize>>> = Vec::new();
    for (i, a) in kinds.iter().enumerate() {
        clusters.push(vec![a]);
        for (j, b) in kinds.iter().enumerate().skip(i) {
            clusters.push(vec![a, b]);
            clusters.extend(kinds.iter().skip(j).map(|c| vec![a, b, c]));
        }
    }
    assert_eq!(clusters.len(), 1539);
    for cluster in &clusters {
        let mut sites = Vec::new();
        for (zone, nodes) in cluster.iter().enumerate() {
            for (node, &disks) in nodes.iter().enumerate() {
                for _ in 0..disks {
                    let (disk, node) = (sites.len() as u128 + 1, (zone * 10 + node) as u128);
                    sites.push(site(disk, node, &zone.to_string(), 1));
                }
            }
        }
        for copies in 1..=COPIES_MAX {
            let layout = Layout::new(&sites, copies);
            let zones = layout.zones.len().min(layout.copies as usize);
            let nodes = layout.nodes.len().min(layout.copies as usize);
            let mut found = 0;
            let mut counts = vec![0u32; layout.nodes.len()];
            patterns(&layout, 0, layout.copies, &mut counts, &mut |counts| {
                found += 1;
                let used = counts.iter().filter(|&&count| count > 0).count();
                let has = |zone: &&super::layout::Group| {
                    counts[zone.nodes.clone()].iter().sum::<u32>() > 0
                };
                let used_zones = layout.zones.iter().filter(has).count();
                assert_eq!((used_zones, used), (zones, nodes), "{cluster:?} {copies} {counts:?}");
            });
            assert!(found > 0, "{cluster:?} {copies}: no pattern is right");
        }
    }
}

/// All ways in which the copies of one partition may lie on nodes, within all bounds.
fn patterns(
    layout: &Layout,
    node: usize,
    left: u32,
    counts: &mut Vec<u32>,
    see: &mut impl FnMut(&[u32]),
) {
    if node == layout.nodes.len() {
        let within = |zone: &super::layout::Group| {
            let sum: u32 = counts[zone.nodes.clone()].iter().sum();
            (zone.least..=zone.most).contains(&sum)
        };
        if left == 0 && layout.zones.iter().all(within) {
            see(counts);
        }
        return;
    }
    let group = &layout.nodes[node];
    for count in group.least..=group.most.min(left).min(group.disks.len() as u32) {
        counts[node] = count;
        patterns(layout, node + 1, left - count, counts, see);
    }
    counts[node] = 0;
}

#[test]
fn every_cluster_is_balanced_and_spread_and_little_moves() {
    let (mut all_moved, mut all_least) = (0, 0);
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let zones = 1 + dice.below(10);
        let partitions = 32 << dice.below(4);
        let heaviest = [1, 3, 100][dice.below(3) as usize];
        let mut copies = 1 + dice.below(5) as u8;
        let mut next_disk = 1;
        let mut sites: Vec<Site> = Vec::new();
        let mut table = vec![Vec::new(); partitions];
        let zone_of = |node: u64, moved: &BTreeMap<u64, u64>| {
            format!("zone {}", moved.get(&node).copied().unwrap_or(node % zones))
        };
        let mut rezoned = BTreeMap::new();
        let add = |dice: &mut Dice, sites: &mut Vec<Site>, next: &mut u128, zones: &_| {
            let node = dice.below(14);
            let weight = 1 + dice.below(heaviest);
            sites.push(site(*next, u128::from(node) + 1, &zone_of(node, zones), weight));
            *next += 1;
        };
        for _ in 0..1 + dice.below(12) {
            add(&mut dice, &mut sites, &mut next_disk, &rezoned);
        }
        for step in 0..10 {
            let what = format!("seed {seed} step {step}: {copies} copies, {partitions} partitions");
            let next = judge(&sites, copies, &table, &what);
            if partitions == 32 {
                let (moved, least) = (moved(&table, &next), least(&sites, copies, &table));
                assert!(moved <= least + least / 20 + 2, "{what}: {moved} instead of {least}");
                all_moved += moved;
                all_least += least;
            }
            table = next;
            let before = table.clone();
            let index = dice.below(sites.len() as u64) as usize;
            match dice.below(10) {
                0..4 => add(&mut dice, &mut sites, &mut next_disk, &rezoned),
                4 | 5 if sites.len() > 1 => drop(sites.remove(index)),
                6 => sites[index].weight = 1 + dice.below(heaviest),
                7 => {
                    // A node that dies with all its disks.
                    let node = sites[index].node;
                    if sites.iter().any(|site| site.node != node) {
                        sites.retain(|site| site.node != node);
                    }
                }
                8 => {
                    let node = sites[index].node;
                    rezoned.insert(node.0 as u64 - 1, dice.below(zones));
                    for site in sites.iter_mut().filter(|site| site.node == node) {
                        site.zone = zone_of(node.0 as u64 - 1, &rezoned);
                    }
                }
                _ => copies = 1 + dice.below(5) as u8,
            }
            // What moves is done only in part when the next change comes.
            for (members, next) in table.iter_mut().zip(place(&sites, copies, &before)) {
                if dice.below(4) == 0 {
                    members.extend(next.into_iter().filter(|disk| !before[0].contains(disk)));
                    let mut seen = BTreeSet::new();
                    members.retain(|disk| seen.insert(*disk));
                }
            }
        }
    }
    assert!(all_moved * 100 <= all_least * 105, "{all_moved} moved instead of {all_least}");
}

#[test]
fn without_bounds_in_the_way_shares_are_in_proportion_to_weights() {
    let mut dice = Dice(5);
    for copies in 1..=COPIES_MAX {
        // Zones and nodes of about equal weight, disks of 1 to 100.
        let mut sites = Vec::new();
        for disk in 0..240 {
            let node = disk % 60;
            let weight = 1 + dice.below(100);
            sites.push(site(disk + 1, node + 1, &format!("{}", node % 10), weight));
        }
        let next = placed(&sites, copies, &vec![Vec::new(); 4096]);
        let sum: u64 = sites.iter().map(|site| site.weight).sum();
        let loads = loads(&sites, &next);
        for site in &sites {
            let ideal = f64::from(copies) * 4096.0 * site.weight as f64 / sum as f64;
            let load = f64::from(loads[&site.disk]);
            assert!((load - ideal).abs() < 1.0, "{copies}: {load} instead of {ideal}");
        }
    }
}

#[test]
fn who_cannot_take_its_share_takes_all_it_may_and_the_others_the_rest() {
    // Node 1 is larger than all others together: it has one copy of everything, not more.
    let sites = [site(1, 1, "", 1000), site(2, 2, "", 10), site(3, 3, "", 20), site(4, 4, "", 30)];
    let next = placed(&sites, 3, &vec![Vec::new(); 1024]);
    let loads = loads(&sites, &next);
    let loads: Vec<u32> = loads.into_values().collect();
    // 2 * 1024 in proportion 1 : 2 : 3, where the last is full at 1024.
    assert_eq!(loads, [1024, 341, 683, 1024]);
    // Two zones, three copies: each has one or two of everything, whatever it weighs.
    let sites =
        [site(1, 1, "a", 1000), site(2, 2, "a", 1000), site(3, 3, "b", 1), site(4, 4, "b", 1)];
    let next = placed(&sites, 3, &vec![Vec::new(); 1024]);
    let loads = self::loads(&sites, &next);
    assert_eq!(loads.into_values().collect::<Vec<u32>>(), [1024, 1024, 512, 512]);
}

#[test]
fn fewer_nodes_than_copies_are_doubled_evenly_and_no_disk_ever() {
    let alone = [site(1, 1, "", 5)];
    let next = placed(&alone, 3, &vec![Vec::new(); 16]);
    assert!(next.iter().all(|members| members == &[DiskId(1)]));
    // One node with four disks: three of them each time.
    let node: Vec<Site> = (1..5).map(|disk| site(disk, 1, "", 7)).collect();
    judge(&node, 3, &next, "one node");
    // A second node with one disk has one copy of everything.
    let mut two = node.clone();
    two.push(site(9, 2, "", 1));
    let next = judge(&two, 3, &next, "two nodes");
    assert!(next.iter().all(|members| members.contains(&DiskId(9))));
    // No site at all: everything stays where it is.
    assert_eq!(place(&[], 3, &next), next);
    // No partition at all, and one.
    assert!(place(&two, 3, &[]).is_empty());
    placed(&two, 3, &[Vec::new()]);
}

#[test]
fn a_disk_shares_its_partitions_with_all_others_not_with_a_few() {
    let sites: Vec<Site> =
        (0..30).map(|disk| site(disk + 1, disk + 1, &format!("{}", disk % 5), 10)).collect();
    let mut table = placed(&sites[..10], 3, &vec![Vec::new(); 2048]);
    table = placed(&sites, 3, &table);
    for with in &sites {
        let mut others = BTreeSet::new();
        for members in table.iter().filter(|members| members.contains(&with.disk)) {
            others.extend(members.iter().copied());
        }
        // All 24 of other zones, and itself.
        assert!(others.len() >= 23, "{}: only {others:?}", with.disk);
    }
}

#[test]
fn what_is_on_its_way_goes_on_and_doubling_moves_almost_nothing() {
    let mut sites: Vec<Site> =
        (0..12).map(|disk| site(disk + 1, disk / 2 + 1, &format!("{}", disk / 4), 10)).collect();
    let before = placed(&sites, 3, &vec![Vec::new(); 1024]);
    sites.push(site(99, 9, "1", 10));
    let next = placed(&sites, 3, &before);
    // Half of the members that are to come are there beside those they replace.
    let halfway = |(index, (old, new)): (usize, (&Vec<DiskId>, &Vec<DiskId>))| {
        let coming = new.iter().filter(|disk| index % 2 == 0 && !old.contains(disk));
        old.iter().chain(coming).copied().collect::<Vec<DiskId>>()
    };
    let union: Vec<Vec<DiskId>> = before.iter().zip(&next).enumerate().map(halfway).collect();
    let later = placed(&sites, 3, &union);
    assert!(moved(&before, &later) <= moved(&before, &next) + 4);
    // p becomes 2p and 2p + 1: no disk is two away from its share, so each loses one at most.
    let doubled: Vec<Vec<DiskId>> =
        next.iter().flat_map(|members| [members.clone(), members.clone()]).collect();
    let after = placed(&sites, 3, &doubled);
    assert!(moved(&doubled, &after) <= 13);
}

#[test]
fn the_largest_cluster_is_placed_and_changed() {
    let sites: Vec<Site> = (0..1000)
        .map(|disk| site(disk + 1, disk / 4 + 1, &format!("{}", disk / 100), 1 + disk as u64 % 100))
        .collect();
    let first = place(&sites[..999], 3, &vec![Vec::new(); 1 << 16]);
    let next = place(&sites, 3, &first);
    let load = loads(&sites, &next)[&DiskId(1000)];
    let sum: u64 = sites.iter().map(|site| site.weight).sum();
    let ideal = 3.0 * 65536.0 * 100.0 / sum as f64;
    assert!((f64::from(load) - ideal).abs() < 1.0);
    assert!(f64::from(moved(&first, &next)) <= ideal * 1.05 + 1.0);
}

#[test]
fn a_small_change_moves_little_although_all_shares_change_a_little() {
    let mut dice = Dice(11);
    let mut sites: Vec<Site> = (0..120)
        .map(|disk| site(disk + 1, disk + 1, &format!("{}", disk % 8), 100 + dice.below(900)))
        .collect();
    let mut table = placed(&sites, 3, &vec![Vec::new(); 2048]);
    for _ in 0..20 {
        let index = dice.below(120) as usize;
        let before = share(&sites, index);
        sites[index].weight = sites[index].weight * 11 / 10;
        let grows = share(&sites, index) - before;
        let next = placed(&sites, 3, &table);
        // What the others give up altogether is what this one gets; each of them a whole one, now
        // or another time.
        let moved = moved(&table, &next);
        assert!(f64::from(moved) <= grows + 3.0, "{moved} moved for {grows}");
        table = next;
    }
}

/// The ideal of one of many sites of which none is at a bound.
fn share(sites: &[Site], index: usize) -> f64 {
    let sum: u64 = sites.iter().map(|site| site.weight).sum();
    3.0 * 2048.0 * sites[index].weight as f64 / sum as f64
}

#[test]
fn whoever_is_less_than_one_partition_away_from_its_share_keeps_what_it_has() {
    let on = |disks: &[u128]| -> Vec<Vec<DiskId>> {
        disks.iter().map(|&disk| vec![DiskId(disk)]).collect()
    };
    // One and a half each: the last two have two.
    let apart: Vec<Site> = (1..5).map(|disk| site(disk, disk, "", 7)).collect();
    let table = on(&[1, 2, 3, 3, 4, 4]);
    assert_eq!(place(&apart, 1, &table), table);
    // One and a quarter each, two and a half for each node and zone: the last of all has two.
    let zones = |disk: u128| if disk < 3 { "a" } else { "b" };
    for zone in [|_| "", zones] {
        let two: Vec<Site> =
            (1..5).map(|disk| site(disk, disk.div_ceil(2), zone(disk), 7)).collect();
        let table = on(&[1, 2, 3, 4, 4]);
        assert_eq!(place(&two, 1, &table), table);
    }
}
