//! Every crash point of workloads of up to three operations on a whole node: all workloads of the
//! operations of a guest; of those with layers every one and every pair, and every three that
//! begin with a write; of those of a group and a write every one and every pair. Of the others each
//! run draws some: what a failure prints names its operations. The workloads are shared out among
//! tests, so that two cores are used.

use sim::{
    entropy,
    nodepoints::{ACTS, Act, Base, Explorer, GROUP_ACTS, LAYER_ACTS, workloads},
    onedisk::Setup,
    random::Random,
};

/// How many of those that are too many for each run it draws.
const DRAWN: usize = 8;

fn explore(base: &Base, workloads: &[Vec<Act>]) {
    let mut explorer = Explorer::new(base);
    for workload in workloads {
        if let Err(error) = explorer.explore(workload) {
            panic!("{error}");
        }
    }
    assert_eq!(explorer.tally.workloads, workloads.len() as u64);
    println!("{:?}", explorer.tally);
}

fn explore_plain(first: &[Act]) {
    let mut workloads = workloads(&ACTS, 3);
    workloads.retain(|workload| first.contains(&workload[0]));
    assert_eq!(workloads.len(), first.len() * (1 + 8 + 64));
    explore(&Base::new(Setup::default()), &workloads);
}

/// All up to three with layers.
fn layered() -> Vec<Vec<Act>> {
    let all: Vec<Act> = ACTS.into_iter().chain(LAYER_ACTS).collect();
    let mut workloads = workloads(&all, 3);
    workloads.retain(|workload| workload.iter().any(|act| LAYER_ACTS.contains(act)));
    workloads
}

/// All up to so many of these and of a group, with more of the group than a write.
fn grouped(others: &[Act], longest: usize) -> Vec<Vec<Act>> {
    let all: Vec<Act> = others.iter().copied().chain(GROUP_ACTS).collect();
    let mut workloads = workloads(&all, longest);
    let is_grouped = |act: &Act| GROUP_ACTS.contains(act) && *act != Act::PartnerWrite;
    workloads.retain(|workload| workload.iter().any(is_grouped));
    workloads
}

/// Leaves some of them.
fn draw(mut workloads: Vec<Vec<Act>>) -> Vec<Vec<Act>> {
    let mut random = Random::new(entropy());
    let draw = |_| {
        let place = random.below(workloads.len() as u64) as usize;
        workloads.swap_remove(place)
    };
    (0..DRAWN).map(draw).collect()
}

#[test]
fn every_crash_point_of_workloads_that_begin_with_a_write_or_discard() {
    explore_plain(&ACTS[..4]);
}

#[test]
fn every_crash_point_of_workloads_that_begin_otherwise() {
    explore_plain(&ACTS[4..]);
}

#[test]
fn every_crash_point_of_one_or_two_operations_with_layers() {
    let mut workloads = layered();
    workloads.retain(|workload| workload.len() < 3);
    assert_eq!(workloads.len(), 6 + 14 * 14 - 8 * 8);
    explore(&Base::layered(Setup::default()), &workloads);
}

#[test]
fn every_crash_point_of_a_write_and_two_operations_with_layers() {
    let mut workloads = layered();
    workloads.retain(|workload| workload.len() == 3 && workload[0] == Act::AlignedWrite);
    assert_eq!(workloads.len(), 14 * 14 - 8 * 8);
    explore(&Base::layered(Setup::default()), &workloads);
}

#[test]
fn every_crash_point_of_some_three_operations_with_layers_that_begin_otherwise() {
    let mut workloads = layered();
    workloads.retain(|workload| workload.len() == 3 && workload[0] != Act::AlignedWrite);
    explore(&Base::layered(Setup::default()), &draw(workloads));
}

#[test]
fn every_crash_point_of_one_or_two_operations_with_a_group() {
    let workloads = grouped(&[], 2);
    assert_eq!(workloads.len(), 4 + 5 * 5 - 1);
    explore(&Base::grouped(Setup::default()), &workloads);
}

#[test]
fn every_crash_point_of_some_operations_with_others_and_a_group() {
    let others: Vec<Act> = ACTS.into_iter().chain(LAYER_ACTS).collect();
    let tried = grouped(&[], 2);
    let mut workloads = grouped(&others, 3);
    workloads.retain(|workload| !tried.contains(workload));
    explore(&Base::grouped(Setup::default()), &draw(workloads));
}
