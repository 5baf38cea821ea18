//! Who takes part: joining, replacing the lost, resigning, and going on from one survivor.

use crate::world::{SECOND, World};

#[test]
fn a_cluster_grows_into_its_voters_by_itself() {
    for (machines, voters) in [(1, 1), (2, 1), (3, 3), (4, 3), (6, 3), (7, 5)] {
        let world = World::settled(5, machines);
        let status = world.voter(world.leader().expect("settled")).status();
        assert_eq!((status.voters.len(), status.learners.len()), (voters, machines - voters));
    }
}

#[test]
fn voters_are_spread_over_zones() {
    let mut world = World::new(8, 6);
    world.zones = 3;
    (0..6).for_each(|machine| world.start(machine));
    world.give_first_commands();
    world.run_until(120 * SECOND, |world| world.is_settled());
    let status = world.voter(world.leader().expect("it settles")).status();
    let mut zones: Vec<u128> = status.voters.iter().map(|node| node.0 % 3).collect();
    zones.sort_unstable();
    assert_eq!(zones, [0, 1, 2], "{:?}", status.voters);
}
