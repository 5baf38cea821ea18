//! Every crash point of workloads of up to three operations on a whole node: all workloads of the
//! operations of a guest, and of those with layers every one and every pair, and every three that
//! begin with a write. The workloads are shared out among tests, so that two cores are used.

use sim::{
    nodepoints::{ACTS, Act, Base, Explorer, LAYER_ACTS, workloads},
    onedisk::Setup,
};

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

/// Those with layers; of three operations, those that begin with a write.
fn explore_layered(chosen: impl Fn(&[Act]) -> bool) -> usize {
    let all: Vec<Act> = ACTS.into_iter().chain(LAYER_ACTS).collect();
    let mut workloads = workloads(&all, 3);
    workloads.retain(|workload| workload.iter().any(|act| LAYER_ACTS.contains(act)));
    workloads.retain(|workload| workload.len() < 3 || workload[0] == Act::AlignedWrite);
    workloads.retain(|workload| chosen(workload));
    explore(&Base::layered(Setup::default()), &workloads);
    workloads.len()
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
    assert_eq!(explore_layered(|workload| workload.len() < 3), 6 + 14 * 14 - 8 * 8);
}

#[test]
fn every_crash_point_of_a_write_and_two_operations_with_layers() {
    assert_eq!(explore_layered(|workload| workload.len() == 3), 14 * 14 - 8 * 8);
}
