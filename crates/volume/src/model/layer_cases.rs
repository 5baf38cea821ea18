//! Single cases of snapshots, clones and flattening.

use super::*;
use proto::OBJECT_SIZE;

const CALM: Faults = Faults { busy: 0, no_space: 0, corrupt: 0 };
const OBJECT_SECTORS: u64 = OBJECT_SIZE as u64 / SECTOR;

fn world(bytes: u64) -> World {
    let mut world = World::new(1, bytes, CALM);
    world.settle();
    world
}

/// Takes a snapshot of an idle volume and goes on with a clone of it.
fn go_on_with_a_clone(world: &mut World) {
    world.settle();
    assert!(world.snapshot());
    world.seal();
    world.close();
    let number = world.last_sealed().expect("just sealed");
    world.clone_snapshot(number, true);
    world.settle();
}

fn resize(world: &mut World, bytes: u64) {
    let volume = world.volume;
    let resize = Command::ResizeVolume { volume, bytes, allow_shrink: true };
    world.state.apply(&resize).expect("no shrink is under way");
    while world.state.map().volume(volume).expect("it exists").pending_discard.is_some() {
        world.advance();
    }
    world.tell_map();
}

/// Flattens, as far as it goes.
fn flatten(world: &mut World) {
    world.tell(Event::Flatten { start: true });
    for _ in 0..100_000 {
        if world.session.flattening().is_none_or(|state| state.error.is_some()) {
            return;
        }
        world.advance();
    }
    panic!("it is never flat");
}

#[test]
fn a_write_of_which_a_part_was_sent_goes_to_the_former_head_as_a_whole() {
    // One piece more than a request may have under way.
    let mut world = world(80 << 20);
    let objects = world.disk.objects();
    world.write(1024, 131_072, false);
    assert!(world.snapshot());
    world.tell_map();
    world.write(1024, 8, false);
    world.write(0, 8, false);
    world.settle();
    assert_eq!(world.disk.objects() - objects, 17);
    world.seal();
    world.close();
    world.check_snapshots();
}

#[test]
fn guests_do_not_wait_for_the_flush_that_seals() {
    let mut world = world(8 << 20);
    world.write(0, 8, false);
    world.settle();
    assert!(world.snapshot());
    world.tell_map();
    world.write(0, 8, false);
    for _ in 0..20 {
        // The flush is not answered.
        let is_flush =
            |(_, request): &(_, MemberRequest)| matches!(request, MemberRequest::Flush { .. });
        if !world.disk.questions.front().is_some_and(is_flush) {
            world.disk.step(&mut world.random);
            world.deliver();
        }
        if let Some(place) = world.disk.questions.iter().position(is_flush) {
            let flush = world.disk.questions.remove(place).expect("just seen");
            world.disk.questions.push_back(flush);
        }
    }
    assert!(world.open.is_empty(), "the write has ended");
    let map = world.state.map();
    assert!(map.sealing(map.volume(world.volume).expect("it exists")).is_some());
    world.seal();
}

#[test]
fn what_a_clone_cut_off_does_not_show_again_when_it_grows() {
    for has_snapshot in [false, true] {
        let mut world = world(12 << 20);
        for place in [0, OBJECT_SECTORS, 2 * OBJECT_SECTORS] {
            world.write(place, 64, false);
        }
        go_on_with_a_clone(&mut world);
        if has_snapshot {
            // The difference to it must show what was cut off.
            assert!(world.snapshot());
            world.seal();
        }
        resize(&mut world, 4 << 20);
        resize(&mut world, 12 << 20);
        world.read(0, 64);
        world.read(OBJECT_SECTORS, 64);
        world.write(2 * OBJECT_SECTORS + 3, 2, false);
        world.read(2 * OBJECT_SECTORS, 64);
        world.settle();
        world.discard(2 * OBJECT_SECTORS, 8, false);
        world.settle();
        world.close();
        world.check_snapshots();
    }
}

#[test]
fn a_clone_of_a_clone_of_a_clone_reads_through_all_of_them() {
    let mut world = world(12 << 20);
    for level in 0..4 {
        world.write(level * 40, 40, false);
        world.discard(level * 40 + 8, 8, false);
        world.zero(OBJECT_SECTORS + level * 8, 8, true, true, false);
        world.write(OBJECT_SECTORS - 20 + level, 40, false);
        go_on_with_a_clone(&mut world);
        world.read(0, 3 * OBJECT_SECTORS);
        // Its edges lie in what shows through.
        world.write(level * 40 + 21, 1, false);
        world.read(0, 3 * OBJECT_SECTORS);
        world.settle();
    }
    world.close();
    world.check_snapshots();
}

#[test]
fn a_flattened_clone_needs_its_origin_no_more() {
    let mut world = world(12 << 20);
    world.write(0, 200, false);
    world.write(OBJECT_SECTORS - 20, 40, false);
    go_on_with_a_clone(&mut world);
    world.write(16, 16, false);
    world.discard(64, 16, false);
    flatten(&mut world);
    assert_eq!(world.flattened, 1);
    // What is nowhere is not copied: 25 blocks and 6 of the writes.
    assert!(world.disk.entries() < 100, "{} entries", world.disk.entries());
    world.delete_snapshot(0);
    assert!(world.snaps.is_empty());
    world.read(0, 3 * OBJECT_SECTORS);
    world.settle();
    world.close();
    world.check_snapshots();
}

/// A read that began when all was copied, and whose answer came when the map had changed, asked for
/// the rest at the origin, which was gone: the guest got an error for blocks that nobody wrote.
#[test]
fn a_read_under_way_when_a_flatten_ends_asks_for_nothing_that_is_gone() {
    for seed in 0..60 {
        let mut world = World::new(seed, 12 << 20, CALM);
        world.settle();
        world.write(0, 8, false);
        go_on_with_a_clone(&mut world);
        world.delete_snapshot(0);
        world.tell(Event::Flatten { start: true });
        let mut left = 200;
        while left > 0 {
            // A block that is copied, and some that are nowhere.
            if world.open.len() < 4 {
                world.read(0, 32);
            }
            world.advance();
            left -= usize::from(world.session.flattening().is_none());
        }
        assert_eq!(world.flattened, 1);
        world.settle();
        world.close();
    }
}

#[test]
fn a_flatten_whose_origin_is_damaged_says_so_and_invents_nothing() {
    let mut world = world(12 << 20);
    world.write(0, 200, false);
    go_on_with_a_clone(&mut world);
    world.disk.faults = Faults { corrupt: 1000, ..CALM };
    flatten(&mut world);
    let state = world.session.flattening().expect("it was not stopped");
    assert!(matches!(state.error, Some(Error::Corrupt { offset: 0 })), "{state:?}");
    assert_eq!((world.flattened, state.total_bytes), (0, 12 << 20));
    world.disk.faults = CALM;
    world.read(0, 400);
    world.settle();
    flatten(&mut world);
    assert_eq!(world.flattened, 1);
    world.tell(Event::Flatten { start: false });
    assert_eq!(world.session.flattening(), None);
    world.close();
    world.check_snapshots();
}

#[test]
fn only_a_sealed_layer_below_is_a_base() {
    let mut world = world(8 << 20);
    let ask = |world: &mut World, base, error: Option<Error>| {
        let operation = Operation::Difference { base: LayerId(base) };
        let open = Open { place: 0, error, what: What::Other };
        world.submit(0, 8 << 20, operation, open);
        world.settle();
    };
    ask(&mut world, 7, Some(Error::UnknownBase));
    let head = world.map.volume(world.volume).expect("it exists").head.0;
    ask(&mut world, head, Some(Error::UnknownBase));
    assert!(world.snapshot());
    world.tell_map();
    ask(&mut world, head, Some(Error::UnknownBase));
    world.seal();
    world.tell_map();
    ask(&mut world, head, None);
    ask(&mut world, 0, None);
}

#[test]
fn a_base_that_is_deleted_while_it_is_compared_with_is_an_error() {
    let mut world = world(8 << 20);
    world.write(0, 200, false);
    let head = world.map.volume(world.volume).expect("it exists").head;
    assert!(world.snapshot());
    world.tell_map();
    world.seal();
    world.tell_map();
    let operation = Operation::Difference { base: head };
    let open = Open { place: 0, error: Some(Error::UnknownBase), what: What::Other };
    world.submit(0, 8 << 20, operation, open);
    world.delete_snapshot(0);
    world.tell_map();
    world.settle();
}
