//! What acknowledgements promise, case by case.

use super::*;

const CALM: Faults = Faults { busy: 0, no_space: 0, corrupt: 0 };
const BLOCK: u64 = BLOCK_SIZE as u64;

fn world(seed: u64) -> World {
    let mut world = World::new(seed, 8 << 20, CALM);
    world.settle();
    world.promise();
    world
}

/// Lets everything go on until the disk is asked to flush; nobody was told anything by then.
fn until_the_flush(world: &mut World) {
    for _ in 0..100 {
        let is_flush = |(_, request): &(MemberToken, MemberRequest)| {
            matches!(request, MemberRequest::Flush { .. })
        };
        if world.disk.questions.iter().any(is_flush) {
            return;
        }
        assert!(!world.open.is_empty(), "it was answered without a flush");
        world.disk.step(&mut world.random);
        world.deliver();
    }
    panic!("the disk is never asked to flush");
}

#[test]
fn every_change_is_flushed_before_it_is_acknowledged() {
    let changes: [fn(&mut World); 4] = [
        |world| world.write(8, 8, false),
        // Its edges are read first.
        |world| world.write(9, 3, false),
        |world| world.discard(8, 8, false),
        |world| world.zero(11, 2, true, false, false),
    ];
    for change in changes {
        let mut world = world(1);
        world.write(0, 64, false);
        world.settle();
        change(&mut world);
        until_the_flush(&mut world);
        world.settle();
        world.die(true);
        world.read(0, 64);
        world.settle();
    }
}

/// The error would have been the guest's, who had done nothing but wait.
#[test]
fn what_is_lost_in_the_middle_of_its_flush_is_done_again() {
    let mut lost = 0;
    for seed in 0..20 {
        let mut world = world(seed);
        world.write(0, 8, false);
        until_the_flush(&mut world);
        assert_eq!(world.disk.entries(), 8 / 8);
        // Who comes meanwhile waits for what is being done.
        world.write(4, 2, false);
        world.read(0, 8);
        world.die(true);
        lost += world.disk.losses;
        world.settle();
        world.die(true);
        world.read(0, 8);
        world.settle();
        // The loss was of nothing that anybody had been told, and is no matter of this flush.
        world.flush();
        world.settle();
        assert_eq!(world.disk.entries(), 1, "seed {seed}");
    }
    assert!(lost > 0, "no seed lost the write");
}

#[test]
fn a_loss_of_what_was_acknowledged_before_the_promise_is_reported() {
    let mut lost = 0;
    for seed in 0..20 {
        let mut world = World::new(seed, 8 << 20, CALM);
        world.settle();
        world.write(0, 8, false);
        world.settle();
        world.die(true);
        lost += world.disk.losses;
        world.settle();
        let (volume, durability) = (world.volume, Durability::Ack);
        world.state.apply(&Command::SetDurability { volume, durability }).expect("it exists");
        // It does not end well while the loss is unreported: the model sees to that.
        for _ in 0..2 {
            world.flush();
            world.settle();
        }
        assert!(!world.unreported, "seed {seed}");
    }
    assert!(lost > 0, "no seed lost the write");
}

#[test]
fn a_promise_that_was_taken_is_reported_until_it_is_known() {
    let mut world = World::new(1, 8 << 20, CALM);
    world.settle();
    let awaits =
        |world: &World| world.state.map().volume(world.volume).expect("it exists").awaits_stable();
    world.deaf = true;
    world.promise();
    assert!(awaits(&world));
    world.deaf = false;
    world.pass(Duration::from_millis(proto::limits::STABLE_RETRY_MS));
    assert!(!awaits(&world));
    // What is answered from then on is flushed, what is asked for before the next change too.
    world.ack = false;
    let (volume, durability) = (world.volume, Durability::Flush);
    world.write(0, 8, false);
    until_the_flush(&mut world);
    world.settle();
    world.state.apply(&Command::SetDurability { volume, durability }).expect("it exists");
    world.tell_map();
    assert!(world.session.deadline().is_none());
    let flushes = |world: &World| {
        let is_flush = |(_, request): &(MemberToken, MemberRequest)| {
            matches!(request, MemberRequest::Flush { .. })
        };
        world.disk.questions.iter().filter(|it| is_flush(it)).count()
    };
    world.write(0, 8, false);
    while !world.open.is_empty() {
        assert_eq!(flushes(&world), 0);
        world.disk.step(&mut world.random);
        world.deliver();
    }
}

/// Its blocks were given free twice, and the node ended; or it was done again without them.
#[test]
fn what_is_done_again_keeps_its_blocks_only_if_that_is_still_promised() {
    for seed in 0..20 {
        let mut world = world(seed);
        world.write(0, 8, true);
        until_the_flush(&mut world);
        world.die(true);
        // Nothing of it has been done again yet.
        world.ack = false;
        let (volume, durability) = (world.volume, Durability::Flush);
        world.state.apply(&Command::SetDurability { volume, durability }).expect("it exists");
        world.tell_map();
        world.write(4, 2, false);
        world.settle();
        world.read(0, 8);
        world.settle();
        world.die(true);
        world.read(0, 4);
        world.settle();
    }
}

#[test]
fn a_session_that_closes_or_only_reads_reports_nothing() {
    let mut world = World::new(1, BLOCK << 4, CALM);
    world.settle();
    world.deaf = true;
    world.promise();
    assert_eq!(world.unheard, 1, "one that serves reports");
    world.close();
    world.attach(true);
    world.settle();
    world.pass(Duration::from_millis(2 * proto::limits::STABLE_RETRY_MS));
    assert_eq!(world.unheard, 1);
    assert!(!world.state.map().volume(world.volume).expect("it exists").awaits_stable());
    assert!(world.session.deadline().is_none());
}
