//! Single cases of snapshots, clones, flattening and shortening.

use super::*;
use proto::OBJECT_SIZE;
use std::collections::BTreeSet;

const CALM: Faults = Faults { busy: 0, no_space: 0, corrupt: 0 };
const OBJECT_SECTORS: u64 = OBJECT_SIZE as u64 / SECTOR;

fn world(bytes: u64) -> World {
    let mut world = World::new(1, bytes, CALM);
    world.settle();
    world
}

/// Takes a snapshot of an idle volume and goes on with a clone of it.
pub(super) fn go_on_with_a_clone(world: &mut World) {
    world.settle();
    assert!(world.snapshot());
    world.seal();
    world.close();
    let number = world.last_sealed().expect("just sealed");
    world.clone_snapshot(number, true);
    world.settle();
}

#[test]
fn a_session_that_closes_does_not_wait_for_its_report_to_be_heard() {
    let mut world = world(4 << 20);
    world.deaf = true;
    world.write(0, 8, false);
    world.settle();
    assert!(world.snapshot());
    for _ in 0..200 {
        world.advance(); // the report gets lost
    }
    world.write(16, 8, false);
    world.settle();
    world.tell(Event::Close);
    for _ in 0..3_000 {
        world.pass(Duration::from_millis(1)); // the disk does not get to the last flush
    }
    assert!(!world.closed);
    for _ in 0..1_000 {
        world.advance();
    }
    assert!(world.closed);
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

/// Goes on with a clone of a clone of ... a base, as many as this, each with something of its own.
fn go_on_with_a_chain(world: &mut World, depth: u64) {
    world.write(0, 2048, false);
    world.write(OBJECT_SECTORS - 400, 800, false);
    for level in 1..=depth {
        go_on_with_a_clone(world);
        world.write(level * 40, 40, false);
        world.discard(level * 40 + 8, 16, false);
        world.zero(OBJECT_SECTORS + level * 8, 8, true, true, false);
        world.write(OBJECT_SECTORS - 20 + level, 5, false);
    }
    go_on_with_a_clone(world);
}

/// Shortens, as far as it goes.
fn shorten(world: &mut World, parent: LayerId) {
    world.tell(Event::Shorten { parent });
    for _ in 0..100_000 {
        if world.session.flattening().is_none_or(|state| state.error.is_some()) {
            return;
        }
        world.advance();
    }
    panic!("it is never short");
}

/// Everything that can be read: of all snapshots, and of the volume.
fn everything(world: &mut World) -> Vec<Vec<u32>> {
    world.settle();
    world.close();
    let mut all: Vec<_> = (0..world.snaps.len()).map(|n| world.read_snapshot(n)).collect();
    world.attach(false);
    world.settle();
    let sectors = world.sectors();
    all.push(world.content(sectors));
    all
}

#[test]
fn a_chain_that_is_shortened_has_a_copy_of_what_lies_between_and_of_nothing_else() {
    for seed in 0..4 {
        let mut world = World::new(seed, 12 << 20, CALM);
        world.settle();
        go_on_with_a_chain(&mut world, 6);
        world.write(48, 16, false);
        world.discard(80, 24, false);
        let before = everything(&mut world);
        let chain = world.chain();
        assert_eq!(chain.len(), 7);
        let map = world.state.map();
        let lineage = map.volume(world.volume).expect("it exists").lineage;
        // Onto any of them, mostly the base.
        let place = 6 - seed as usize % 4;
        let parent = chain[place].layer;
        let between = chain[..place].iter().flat_map(|origin| world.disk.places(origin.lineage));
        let mut wanted: BTreeSet<_> = between.collect();
        wanted.extend(world.disk.places(lineage));
        let zeros_and_all = world.disk.entries();
        let is_cut = seed % 3 == 0;
        if is_cut {
            // In the middle of it power fails.
            world.tell(Event::Shorten { parent });
            for _ in 0..world.random.below(60) {
                world.advance();
            }
            world.die(true);
        }
        shorten(&mut world, parent);
        assert_eq!(world.shortened, 1);
        if seed % 2 == 1 {
            // All that was copied is stable when it has been reported.
            world.die(true);
            world.read(0, 8);
            world.settle();
        }
        assert_eq!(world.chain()[0].layer, parent);
        assert_eq!(world.chain().len(), 7 - place);
        assert_eq!(world.disk.places(lineage), wanted);
        assert!(world.disk.entries() <= zeros_and_all + wanted.len());
        let base = world.disk.places(chain[6].lineage);
        assert!(base.difference(&wanted).count() > 200, "nearly all of the base is shared");
        // Whoever needed the lineages between for this volume needs them no more.
        while !world.snaps.is_empty() && seed % 2 == 0 {
            world.delete_snapshot(world.snaps.len() - 1);
        }
        let after = everything(&mut world);
        assert_eq!(after.last(), before.last(), "the volume");
        assert!(after.len() == 1 || after == before, "the snapshots");
        world.close();
        world.check_snapshots();
    }
}

#[test]
fn what_is_under_way_when_a_chain_gets_short_asks_for_nothing_that_is_gone() {
    for seed in 0..12 {
        let mut world = World::new(seed, 12 << 20, CALM);
        world.settle();
        go_on_with_a_chain(&mut world, 3);
        while let Some(number) = world.last_sealed() {
            world.delete_snapshot(number);
        }
        let chain = world.chain();
        world.tell(Event::Shorten { parent: chain[3].layer });
        let mut left = 200;
        while left > 0 {
            if world.open.len() < 6 {
                let first = 8 * world.random.below(60);
                match world.random.below(8) {
                    0 => world.write(first, 24, false),
                    1 => world.discard(first, 16, false),
                    2 => world.write(first + 3, 2, false),
                    _ => world.read(first, 400),
                }
            }
            world.advance();
            left -= usize::from(world.session.flattening().is_none());
        }
        assert_eq!(world.shortened, 1);
        world.settle();
        world.close();
        world.check_snapshots();
    }
}

#[test]
fn a_snapshot_ends_a_shortening_and_a_flatten_takes_its_place() {
    let mut world = world(12 << 20);
    go_on_with_a_chain(&mut world, 3);
    let parent = world.chain()[2].layer;
    let state = |world: &World| world.session.flattening();
    // Nothing but a deeper layer is lain on.
    for wrong in [world.chain()[0].layer, LayerId(0), LayerId(99)] {
        world.tell(Event::Shorten { parent: wrong });
        assert_eq!(state(&world), None);
    }
    world.tell(Event::Shorten { parent });
    assert_eq!(state(&world).expect("it has begun").onto, Some(parent));
    assert!(world.snapshot());
    world.tell_map();
    assert_eq!(state(&world), None);
    world.seal();
    world.tell_map();
    world.tell(Event::Shorten { parent });
    assert_eq!(state(&world), None);
    // What was being copied when it ended is over before the layers go.
    for _ in 0..2_000 {
        world.advance();
    }
    let number = world.last_sealed().expect("just sealed");
    world.delete_snapshot(number);
    world.tell_map();
    world.tell(Event::Shorten { parent });
    assert!(state(&world).is_some());
    world.tell(Event::Flatten { start: false });
    assert_eq!(state(&world), None);

    world.tell(Event::Shorten { parent });
    for _ in 0..10 {
        world.advance();
    }
    let volume = world.volume;
    world.state.apply(&Command::SetFlatten { volume, wanted: true }).expect("it is a clone");
    world.tell_map();
    assert_eq!(state(&world), None);
    world.tell(Event::Shorten { parent });
    assert_eq!(state(&world), None, "a flatten is wanted");
    flatten(&mut world);
    assert_eq!((world.shortened, world.flattened), (0, 1));
    assert!(world.chain().is_empty());
    world.close();
    world.check_snapshots();
}

#[test]
fn what_was_cut_off_while_a_chain_was_shortened_stays_cut_off() {
    for seed in 0..4 {
        let mut world = World::new(seed, 12 << 20, CALM);
        world.settle();
        go_on_with_a_chain(&mut world, 4);
        let parent = world.chain()[4].layer;
        world.tell(Event::Shorten { parent });
        for _ in 0..world.random.below(30) {
            world.advance();
        }
        resize(&mut world, (4 << 20) - 96 * 1024);
        for _ in 0..world.random.below(30) {
            world.advance();
        }
        resize(&mut world, 12 << 20);
        shorten(&mut world, parent);
        assert_eq!((world.shortened, world.chain()[0].bytes), (1, (4 << 20) - 96 * 1024));
        // Nothing shows there any more: a discard leaves nothing behind, and all is zeros.
        world.discard(OBJECT_SECTORS - 100, 200, false);
        world.read(0, 3 * OBJECT_SECTORS);
        world.settle();
        world.close();
        world.check_snapshots();
    }
}

/// What was zeroed beyond the new end became absent once the session knew of the shrink, and a read
/// that had begun before that went on along the chain that it began with, to the data below.
#[test]
fn what_is_zeroed_while_a_shrink_comes_reads_as_zeros() {
    let mut world = world(12 << 20);
    world.write(2 * OBJECT_SECTORS, 64, false);
    go_on_with_a_clone(&mut world);
    // Its edges are read first; then the map has changed.
    world.zero(2 * OBJECT_SECTORS + 3, 26, true, false, false);
    world.read(2 * OBJECT_SECTORS, 64);
    let volume = world.volume;
    let resize = Command::ResizeVolume { volume, bytes: 4 << 20, allow_shrink: true };
    world.state.apply(&resize).expect("no shrink is under way");
    world.tell_map();
    world.settle();
    world.close();
}

#[test]
fn shortening_looks_and_copies_no_faster_than_it_may() {
    let mut world = world(12 << 20);
    go_on_with_a_chain(&mut world, 3);
    let parent = world.chain()[3].layer;
    world.tell(Event::FillRate { bytes_per_s: 64 << 10 });
    let begun = world.now;
    shorten(&mut world, parent);
    assert_eq!(world.shortened, 1);
    // A sixteenth of the 12 MiB that are looked at, and what was copied of the 20 blocks or so.
    let took = world.now.since(begun).as_millis();
    assert!((9_000..16_000).contains(&took), "{took} ms");
    world.close();
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
