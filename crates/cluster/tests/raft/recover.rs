//! A majority of the voters is lost for ever: a new era of the log, begun from one survivor's, with
//! a crash in the middle; who follows, and who is not listened to any more.

use crate::world::{Disk, MS, SECOND, World};
use cluster::{Command, Following, PersistError, RecoveryRefusal};
use proto::NodeId;
use proto::limits::RECOVERY_JUMP;

/// Three voters, of which the third has not heard what the others agreed on last; these are dead.
fn survivor(seed: u64) -> World {
    let mut world = World::settled(seed, 3);
    world.ask(0);
    world.run(5 * SECOND);
    let leader = world.leader().expect("settled");
    if leader == 2 {
        world.with(2, |voter, now, effects| voter.resign(now, effects));
        world.run_until(20 * SECOND, |world| world.leader().is_some_and(|one| one != 2));
    }
    for other in 0..2 {
        world.weather.cut.extend([(other, 2), (2, other)]);
    }
    let leader = world.leader().expect("settled");
    world.give(leader, Command::CreateVolume { name: "w".into(), bytes: 1 << 20, unix_s: 0 });
    world.run(300 * MS);
    assert!(world.voter(leader).map().volume_named("w").is_some(), "two of three agree");
    world.kill(0);
    world.kill(1);
    world.weather.cut.clear();
    world.run_until(10 * SECOND, |world| !world.voter(2).is_led());
    world.run(SECOND);
    world
}

fn recover(world: &mut World, machine: usize, lost: &[u128]) -> Result<(), RecoveryRefusal> {
    let lost: Vec<NodeId> = lost.iter().copied().map(NodeId).collect();
    let mut result = Ok(());
    world.with(machine, |voter, now, effects| {
        result = voter.begin_recovery(now, &lost, 9, effects);
    });
    result
}

/// As often as its journal has nothing else to do.
fn recover_and_wait(world: &mut World, machine: usize, lost: &[u128]) {
    recover(world, machine, lost).expect("nothing else helps");
    world.run_until(SECOND, |world| world.recovered.last() == Some(&(machine, true)));
    assert_eq!(world.recovered.last(), Some(&(machine, true)));
}

#[test]
fn a_crash_in_the_middle_leaves_all_of_it_or_nothing() {
    let (mut before, mut after) = (0, 0);
    for seed in 100..112 {
        let mut world = survivor(seed);
        let applied = world.voter(2).applied();
        recover(&mut world, 2, &[1, 2]).expect("nothing else helps");
        world.kill(2);
        world.start(2);
        let status = world.voter(2).status();
        match status.recovery {
            None => {
                assert_eq!(status.voters.len(), 3, "nothing has changed");
                assert!(!world.voter(2).map().is_lost(NodeId(1)));
                world.run(30 * SECOND);
                assert!(!world.voter(2).status().leads, "it cannot lead");
                world.run(SECOND);
                recover_and_wait(&mut world, 2, &[1, 2]);
                before += 1;
            }
            Some(_) => after += 1,
        }
        assert!(world.voter(2).applied() > applied);
        assert_eq!(world.voter(2).status().voters, [NodeId(3)]);
        assert!(world.voter(2).map().is_lost(NodeId(1)));
        let asked = world.ask(2);
        world.run(3 * SECOND);
        assert!(world.done.contains(&asked), "nobody else is asked");
        // What it says is what it has.
        world.kill(2);
        world.start(2);
        world.run(3 * SECOND);
        assert!(world.voter(2).status().leads);
        assert_eq!(world.voter(2).status().recovery.map(|one| one.count), Some(1));
    }
    assert!(before > 0 && after > 0, "{before} {after}");
}

#[test]
fn nothing_that_the_lost_may_have_issued_is_issued_again() {
    let mut world = survivor(120);
    let before = world.voter(2).map();
    recover_and_wait(&mut world, 2, &[1, 2]);
    let map = world.voter(2).map();
    assert!(map.volume_named("w").is_none(), "only the lost knew it");
    assert!(map.epoch().0 >= before.epoch().0 + RECOVERY_JUMP);
    world.give(2, Command::CreateVolume { name: "w".into(), bytes: 1 << 20, unix_s: 0 });
    world.run(3 * SECOND);
    let volume = world.voter(2).map().volume_named("w").expect("it leads").id;
    assert!(volume.0 > RECOVERY_JUMP, "{volume}");
}

#[test]
fn the_lost_are_not_listened_to_when_they_come_back_after_all() {
    let mut world = survivor(130);
    recover_and_wait(&mut world, 2, &[1, 2]);
    world.run(3 * SECOND);
    let era = world.voter(2).era();
    // One alone does nothing; it knows what is lost, so it cannot follow.
    world.start(0);
    let last = world.voter(0).status().last;
    world.run(20 * SECOND);
    assert_eq!(world.voter(2).status().voters, [NodeId(3)]);
    assert!(world.voter(2).status().leads);
    assert_eq!(world.voter(0).status().last, last);
    let mut following = Following::Begun;
    world.with(0, |voter, _, _| following = voter.follow(era));
    assert_eq!(following, Following::Never);
    // Both agree on their own history, which is another.
    world.start(1);
    world.run(20 * SECOND);
    assert_eq!(world.voter(2).status().voters, [NodeId(3)]);
    assert!(world.voter(2).map().volume_named("w").is_none());
    assert!(world.voter(0).map().volume_named("w").is_some());
    // Also if it is recovered there too: as many recoveries, and not the same.
    world.kill(1);
    world.run_until(20 * SECOND, |world| !world.voter(0).is_led());
    world.run(2 * SECOND);
    recover_and_wait(&mut world, 0, &[2, 3]);
    world.run(20 * SECOND);
    assert_eq!(world.voter(0).era().count(), era.count());
    assert!(!world.voter(0).era().agrees_with(&era));
    world.with(0, |voter, _, _| following = voter.follow(era));
    assert_ne!(following, Following::Begun);
    assert_eq!(world.voter(0).status().voters, [NodeId(1)]);
    assert_eq!(world.voter(2).status().voters, [NodeId(3)]);
    // Wiped, it joins.
    world.kill(0);
    let map = world.voter(2).map();
    assert!(map.is_lost(NodeId(1)), "and is nobody's any more");
}

#[test]
fn who_knows_no_more_follows_also_after_a_crash_in_the_middle() {
    for seed in 140..146 {
        let mut world = World::settled(seed, 5);
        let leader = world.leader().expect("settled");
        let voters = world.voter(leader).status().voters;
        let place = |node: &NodeId| (node.0 - 1) as usize;
        let lost: Vec<usize> = voters.iter().take(2).map(place).collect();
        let best = place(&voters[2]);
        let others: Vec<usize> = (0..5).filter(|one| *one != best && !lost.contains(one)).collect();
        lost.iter().for_each(|one| world.kill(*one));
        world.run_until(30 * SECOND, |world| world.running().all(|one| !world.voter(one).is_led()));
        world.run(2 * SECOND);
        // One was switched off, and may have less than all.
        world.kill(others[1]);
        let names: Vec<u128> = lost.iter().map(|one| *one as u128 + 1).collect();
        recover_and_wait(&mut world, best, &names);
        let era = world.voter(best).era();
        world.start(others[1]);
        for &other in &others {
            let map = world.voter(other).map();
            world.run_until(20 * SECOND, |world| !world.voter(other).is_led());
            world.follow(other, era);
            assert!(world.voter(other).map() == map, "it goes on with what it has");
            // Before it has a snapshot of the new era it is as it was.
            world.kill(other);
            world.start(other);
            assert!(world.voter(other).map() == map);
            assert_eq!(world.voter(other).era().count(), 0);
            world.run(2 * SECOND);
            world.follow(other, era);
        }
        world.run_until(120 * SECOND, |world| {
            let status = world.voter(best).status();
            let is_same = |one: usize| world.voter(one).map() == world.voter(best).map();
            status.voters.len() == 3 && !status.changing && world.running().all(is_same)
        });
        let status = world.voter(best).status();
        assert_eq!(status.voters.len(), 3, "{}", world.describe());
        assert!(lost.iter().all(|one| !status.voters.contains(&NodeId(*one as u128 + 1))));
        for other in others {
            assert!(world.voter(other).era().agrees_with(&era));
            // What they have is durable.
            world.kill(other);
            world.start(other);
            assert!(world.voter(other).era().agrees_with(&era));
            let asked = world.ask(other);
            world.run(20 * SECOND);
            assert!(world.done.contains(&asked));
        }
    }
}

#[test]
fn a_journal_that_is_full_leaves_everything_as_it_was() {
    let mut world = survivor(150);
    world.machines[2].full_until = u64::MAX;
    recover(&mut world, 2, &[1, 2]).expect("it is not known yet");
    assert_eq!(recover(&mut world, 2, &[1, 2]), Err(RecoveryRefusal::Busy), "one at a time");
    world.run(SECOND);
    assert_eq!(world.recovered.last(), Some(&(2, false)));
    assert_eq!(world.voter(2).status().voters.len(), 3);
    world.machines[2].full_until = 0;
    recover_and_wait(&mut world, 2, &[1, 2]);
}

#[test]
fn it_is_refused_while_it_makes_no_sense() {
    let mut world = World::settled(160, 3);
    for machine in 0..3 {
        assert_eq!(recover(&mut world, machine, &[]), Err(RecoveryRefusal::Led));
    }
    let mut world = survivor(161);
    world.machines[2].fails = true;
    world.with(2, |voter, now, effects| voter.rewrite(now, effects));
    world.run(SECOND);
    let failed = PersistError::Failed("input/output error".into());
    assert_eq!(recover(&mut world, 2, &[]), Err(RecoveryRefusal::Failed(failed)));
    // Who has nothing has nothing to go on from.
    let mut world = World::settled(162, 3);
    world.kill(1);
    world.machines[1].disk = Disk::default();
    world.machines[1].join();
    world.weather.cut.extend([(0, 1), (2, 1)]);
    world.start(1);
    world.run(20 * SECOND);
    assert_eq!(recover(&mut world, 1, &[]), Err(RecoveryRefusal::Nothing));
}
