//! Who takes part: joining, replacing the lost, giving way, and going on from one survivor.

use crate::world::{Disk, MS, SECOND, Weather, World};
use cluster::{Command, Refusal, Voter};
use std::collections::BTreeSet;

fn voters(world: &World) -> BTreeSet<u128> {
    let status = world.voter(world.leader().expect("somebody leads")).status();
    status.voters.iter().map(|node| node.0 - 1).collect()
}

fn a_follower(world: &World) -> usize {
    let leader = world.leader();
    let votes = voters(world);
    world
        .running()
        .find(|&one| Some(one) != leader && votes.contains(&(one as u128)))
        .expect("another voter")
}

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
    let zones: BTreeSet<u128> = voters(&world).into_iter().map(|voter| voter % 3).collect();
    assert_eq!(zones.len(), 3);
}

#[test]
fn a_journal_of_a_node_alone_becomes_that_of_a_voter_among_others() {
    let mut world = World::new(4, 3);
    let records: [&[u8]; 3] = [
        &[1, 0, 1, 1, 5, 1, 0, 7, 2, 0],
        &[1, 0, 2, 1, 6, 1, 1, 1, 2, b'n', b'0'],
        &[1, 0, 3, 1, 5, 1, 2, 9, 1, 1],
    ];
    world.machines[0].disk.records = records.iter().map(|record| record.to_vec()).collect();
    (0..3).for_each(|machine| world.start(machine));
    assert_eq!(world.voter(0).map().nodes().len(), 1, "it is read at once");
    world.give_first_commands();
    world.run_until(60 * SECOND, |world| world.is_settled());
    assert_eq!(voters(&world).len(), 3);
    // The cluster and its disk existed; everything else was done.
    use Refusal::{ClusterExists, OldIncarnation};
    let refused = &world.refused[..];
    assert!(matches!(refused, [(0, ClusterExists), (_, OldIncarnation { .. })]), "{refused:?}");
    world.heal_and_check();
}

#[test]
fn a_lost_voter_is_replaced_after_minutes_and_not_before() {
    let mut world = World::settled(6, 4);
    let before = voters(&world);
    let lost = a_follower(&world);
    world.kill(lost);
    world.run(290 * SECOND);
    assert_eq!(voters(&world), before);
    world.run(30 * SECOND);
    let after = voters(&world);
    assert_eq!(after.len(), 3);
    assert!(!after.contains(&(lost as u128)));
    world.start(lost);
    world.heal_and_check();
    assert_eq!(voters(&world), after, "it comes back without a vote");
}

#[test]
fn nobody_is_removed_where_nobody_can_take_over() {
    let mut world = World::settled(6, 3);
    let lost = a_follower(&world);
    world.kill(lost);
    world.run(400 * SECOND);
    assert_eq!(voters(&world).len(), 3);
    world.heal_and_check();
}

#[test]
fn a_node_that_joins_gets_a_large_state_in_pieces_over_a_bad_network() {
    let mut world = World::new(9, 3);
    world.start(0);
    world.start(1);
    world.give_first_commands();
    for number in 0..2500 {
        let name = format!("{number:0>250}");
        world.give(0, Command::CreateVolume { name, bytes: 1 << 20, unix_s: 0 });
    }
    world.run(20 * SECOND);
    world.weather = Weather { lost: 20, twice: 20, delay_ns: 50 * MS, ..Weather::default() };
    world.start(2);
    // What is lost is sent again at once, not only with the next snapshot.
    world.run_until(10 * SECOND, |world| world.voter(2).map().volumes().len() == 2501);
    assert_eq!(world.voter(2).map(), world.voter(0).map());
    world.heal_and_check();
}

#[test]
fn who_is_far_behind_gets_the_state_as_a_whole_and_knows_what_it_does_not_know() {
    let mut world = World::settled(10, 3);
    let behind = a_follower(&world);
    let leader = world.leader().expect("settled");
    // What it says arrives; it hears nothing.
    let deaf = (0..3).map(|one| (one, behind)).collect();
    world.weather = Weather { cut: deaf, ..world.weather.clone() };
    let token = world.ask(behind);
    world.run(SECOND);
    for _ in 0..1200 {
        world.ask(leader);
    }
    world.run(2 * SECOND);
    let leader = world.leader().expect("two are left");
    world.with(leader, |voter, now, effects| voter.rewrite(now, effects));
    world.run(SECOND);
    world.weather.cut.clear();
    world.run(5 * SECOND);
    assert_eq!(world.refused, [(token, Refusal::OutcomeUnknown)]);
    world.heal_and_check();
}

#[test]
fn who_resigns_is_followed_at_once() {
    let mut world = World::settled(11, 3);
    let leader = world.leader().expect("settled");
    world.with(leader, |voter, now, effects| voter.resign(now, effects));
    world.run(100 * MS);
    assert!(world.leader().is_some_and(|next| next != leader));
    let asked = world.ask(leader);
    world.run(SECOND);
    assert!(world.done.contains(&asked), "it is passed on");
}

#[test]
fn a_leader_without_space_gives_way_and_what_it_was_asked_is_done_when_there_is_some() {
    let mut world = World::settled(12, 3);
    let leader = world.leader().expect("settled");
    world.machines[leader].full_until = world.now + 10 * SECOND;
    let asked = world.ask(leader);
    world.run(300 * MS);
    let next = world.leader().expect("another leads");
    assert_ne!(next, leader);
    let other = world.ask(next);
    world.run(SECOND);
    assert!(world.done.contains(&other) && !world.done.contains(&asked));
    world.run(15 * SECOND);
    assert!(world.done.contains(&asked));
    world.heal_and_check();
}

#[test]
fn a_leader_whose_journal_fails_gives_way_at_once_and_is_silent() {
    let mut world = World::settled(13, 3);
    let leader = world.leader().expect("settled");
    world.machines[leader].fails = true;
    world.ask(leader);
    world.run(300 * MS);
    assert!(world.voter(leader).status().failed.is_some());
    let next = world.running().find(|&one| one != leader && world.voter(one).status().leads);
    let asked = world.ask(next.expect("another leads"));
    world.run(SECOND);
    assert!(world.done.contains(&asked));
    world.heal_and_check();
}

#[test]
fn a_leader_whose_journal_hangs_gives_way() {
    let mut world = World::settled(14, 3);
    let leader = world.leader().expect("settled");
    world.machines[leader].slow_until = world.now + 60 * SECOND;
    world.ask(leader);
    world.run(3 * SECOND);
    assert!(world.leader().is_some_and(|next| next != leader));
    world.heal_and_check();
}

#[test]
fn from_one_survivor_the_cluster_goes_on_and_the_lost_are_not_listened_to() {
    let mut world = World::settled(15, 3);
    for machine in 0..3 {
        world.ask(machine);
    }
    world.run(5 * SECOND);
    (0..3).for_each(|machine| world.kill(machine));
    let Disk { snapshot, records } = world.machines[1].disk.clone();
    let node = world.machines[1].node;
    let bytes = Voter::recover(node, snapshot.as_deref(), &records, &[], 0);
    let bytes = bytes.expect("it has the state");
    world.machines[1].disk = Disk { snapshot: Some(bytes), records: Vec::new() };
    world.start(1);
    let status = world.voter(1).status();
    assert_eq!((status.voters, status.recovery.map(|one| one.count)), (vec![node], Some(1)));
    let asked = world.ask(1);
    world.run(100 * MS);
    assert!(world.done.contains(&asked), "nobody else is asked");

    // One of the lost is started after all: it is of another group, and stays what it was.
    world.start(0);
    let before = world.voter(0).applied();
    world.run(20 * SECOND);
    assert_eq!(voters(&world), [1].into());
    assert_eq!(world.voter(0).applied(), before);
    assert!(world.voter(1).status().leads);

    // With empty directories they join.
    world.kill(0);
    for machine in [0, 2] {
        world.machines[machine].disk = Disk::default();
        world.machines[machine].join();
        world.start(machine);
    }
    world.run_until(90 * SECOND, |world| world.is_settled());
    assert_eq!(voters(&world).len(), 3);
    world.heal_and_check();
}
