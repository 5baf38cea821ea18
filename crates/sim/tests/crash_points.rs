//! Every crash point of small workloads on one disk, then longer random ones.

use sim::{
    crashpoints::{Base, Explorer, Pace, Tally, random_bases, random_workload, workloads},
    entropy,
    onedisk::{Order, Setup},
};
use store::MediumKind;

/// Explores every workload of up to `longest` operations and says what that was.
fn explore(base: &Base, longest: usize, order: Order, pace: Pace) -> Tally {
    let mut explorer = Explorer::new(base, order, pace);
    for workload in workloads(longest) {
        if let Err(error) = explorer.explore(&workload) {
            panic!("{error}");
        }
    }
    println!("{order:?} {pace:?}, up to {longest} operations: {:?}", explorer.tally);
    explorer.tally
}

#[test]
fn every_crash_point_of_three_operations_on_a_used_disk() {
    let base = Base::used(Setup::default());
    let tally = explore(&base, 3, Order::FirstFirst, Pace::OneByOne);
    assert_eq!(tally.workloads, 8 + 64 + 512);
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
    for seed in replayed.into_iter().chain([1, 2, 3]) {
        random_workload(&bases, seed).unwrap_or_else(|error| panic!("{error}"));
    }
}
