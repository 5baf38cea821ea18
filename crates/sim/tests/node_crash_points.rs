//! Every crash point of every workload of up to three operations on a whole node. The workloads
//! are shared out among two tests, so that two cores are used.

use sim::{
    nodepoints::{ACTS, Act, Base, Explorer, workloads},
    onedisk::Setup,
};

fn explore(first: &[Act]) {
    let base = Base::new(Setup::default());
    let mut explorer = Explorer::new(&base);
    for workload in workloads(3).iter().filter(|workload| first.contains(&workload[0])) {
        if let Err(error) = explorer.explore(workload) {
            panic!("{error}");
        }
    }
    assert_eq!(explorer.tally.workloads, first.len() as u64 * (1 + 8 + 64));
    println!("workloads that begin with {first:?}: {:?}", explorer.tally);
}

#[test]
fn every_crash_point_of_workloads_that_begin_with_a_write_or_discard() {
    explore(&ACTS[..4]);
}

#[test]
fn every_crash_point_of_workloads_that_begin_otherwise() {
    explore(&ACTS[4..]);
}

/// Into the trash and out of it, after each operation, and with each one after it.
#[test]
fn every_crash_point_of_workloads_with_the_trash() {
    let base = Base::new(Setup::default());
    let mut explorer = Explorer::new(&base);
    let mut workloads = vec![vec![Act::Trash], vec![Act::Trash, Act::Trash]];
    for act in ACTS {
        workloads.push(vec![act, Act::Trash]);
        workloads.push(vec![Act::Trash, act]);
        workloads.extend(ACTS.map(|last| vec![act, Act::Trash, last]));
    }
    for workload in &workloads {
        if let Err(error) = explorer.explore(workload) {
            panic!("{error}");
        }
    }
    println!("workloads with the trash: {:?}", explorer.tally);
}
