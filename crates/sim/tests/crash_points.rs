//! Every crash point of small workloads on one disk, then longer random ones.

use sim::{
    crashpoints::{
        Base, Explorer, LAYER_STEPS, Pace, Tally, random_bases, random_workload, workloads,
        workloads_of,
    },
    entropy,
    ledger::Step,
    onedisk::{Order, Setup},
};
use store::MediumKind;

/// Explores every workload of up to `longest` operations and says what that was.
fn explore(base: &Base, longest: usize, order: Order, pace: Pace) -> Tally {
    explore_all(base, workloads(longest), order, pace)
}

fn explore_all(base: &Base, workloads: Vec<Vec<Step>>, order: Order, pace: Pace) -> Tally {
    let mut explorer = Explorer::new(base, order, pace);
    for workload in workloads {
        if let Err(error) = explorer.explore(&workload) {
            panic!("{error}");
        }
    }
    println!("{order:?} {pace:?}: {:?}", explorer.tally);
    explorer.tally
}

#[test]
fn every_crash_point_of_three_operations_on_a_used_disk() {
    let base = Base::used(Setup::default());
    let tally = explore(&base, 3, Order::FirstFirst, Pace::OneByOne);
    assert_eq!(tally.workloads, 8 + 64 + 512);
}

#[test]
fn every_crash_point_of_three_operations_on_layers() {
    let base = Base::layered(Setup::default());
    let workloads = workloads_of(&LAYER_STEPS, 3);
    let tally = explore_all(&base, workloads, Order::FirstFirst, Pace::OneByOne);
    assert_eq!(tally.workloads, 5 + 25 + 125);
    explore_all(&base, workloads_of(&LAYER_STEPS, 2), Order::LastFirst, Pace::AllAtOnce);
}

#[test]
fn every_crash_point_of_two_operations_on_a_fresh_disk() {
    let base = Base::fresh(Setup::default());
    explore(&base, 2, Order::FirstFirst, Pace::OneByOne);
    explore(&base, 2, Order::LastFirst, Pace::AllAtOnce);
}

#[test]
fn every_crash_point_of_operations_asked_for_at_once() {
    let base =
        Base::used(Setup { kind: MediumKind::Device, limit_bytes: None, ..Setup::default() });
    explore(&base, 2, Order::FirstFirst, Pace::AllAtOnce);
    explore(&base, 2, Order::Seeded(1), Pace::AllAtOnce);
}

/// The checkpoint that closes a disk, on one with a root of a single page and on one whose root is
/// a page above two others.
#[test]
fn every_crash_point_of_a_checkpoint_with_a_root_of_one_level_and_of_two() {
    for setup in [Setup::default(), large()] {
        let base = Base::used(setup);
        let mut explorer = Explorer::new(&base, Order::FirstFirst, Pace::OneByOne).closing();
        let workload = [Step::Write(0, 1, 2), Step::Absent(1, 4, 1)];
        explorer.explore(&workload).unwrap_or_else(|error| panic!("{error}"));
        println!("closing: {:?}", explorer.tally);
    }
}

#[test]
fn random_workloads_with_crashes_on_a_disk_whose_root_has_two_levels() {
    let bases = [Base::fresh(large()), Base::used(large())];
    let mut tally = Tally::default();
    for _ in 0..20 {
        match random_workload(&bases, entropy()) {
            Ok(run) => tally.add(run),
            Err(error) => panic!("{error}"),
        }
    }
    println!("random workloads: {tally:?}");
}

/// A device of 22 GiB: its space bitmap alone has more pages than one page of the root lists.
fn large() -> Setup {
    let kind = MediumKind::Device;
    let log_bytes = store::LOG_BYTES_MIN;
    Setup { kind, capacity: 22 << 30, limit_bytes: None, log_bytes, ..Setup::default() }
}

#[test]
fn a_thousand_random_workloads_with_crashes() {
    let bases = random_bases();
    let mut tally = Tally::default();
    for _ in 0..1_000 {
        match random_workload(&bases, entropy()) {
            Ok(run) => tally.add(run),
            Err(error) => panic!("{error}"),
        }
    }
    println!("random workloads: {tally:?}");
}

/// Seeds that found something once.
#[test]
fn seeds_that_failed_before_pass() {
    let bases = random_bases();
    let replayed = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in replayed.into_iter().chain([1, 2, 3, 14424129642580347468, 15561470509566119128]) {
        random_workload(&bases, seed).unwrap_or_else(|error| panic!("{error}"));
    }
}
