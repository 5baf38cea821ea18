//! Clones of clones of clones: the node shortens what they read through by itself, and copies
//! little for that.

use crate::support::{MIB, World, opened};
use engine::{
    ConnectionId, Input, Output,
    admin::{AdminReply, AdminRequest, FlattenAction, VolumeReport},
};
use proto::limits::{CHAIN_LINEAGES_MAX, NODE_SHORTENS_MAX};
use volume::Answer;

const BLOCK: u64 = 4096;
const BYTES: u64 = 16 * MIB;
/// How much the golden image has.
const GOLDEN: u64 = 4 * MIB;

fn clone(name: &str, new_name: &str) -> AdminRequest {
    AdminRequest::VolumeClone { name: name.into(), tag: "s".into(), new_name: new_name.into() }
}

fn flatten(name: &str, action: FlattenAction) -> AdminRequest {
    AdminRequest::VolumeFlatten { name: name.into(), action }
}

fn delete(world: &mut World, name: &str) {
    let request =
        AdminRequest::VolumeDelete { name: name.into(), with_snapshots: true, keep_s: Some(0) };
    assert_eq!(world.admin(request), Ok(AdminReply::Done));
}

fn fill(world: &mut World, name: &str, offset: u64, byte: u8, length: u64) {
    let answer = world.open(99, "writer", name);
    assert!(matches!(answer, Answer::Opened { .. }), "{name}: {answer:?}");
    world.write(99, offset, byte, length);
    world.close(99);
}

fn name(depth: usize) -> String {
    if depth == 0 { "golden".into() } else { format!("c{depth}") }
}

/// `golden`, and clones `c1` to that of this depth, each made of the one before. Each but the last
/// has its own number in two blocks of its own, and got a snapshot before somebody had it: so only
/// the last can be shortened.
fn chain(depth: usize) -> World {
    let mut world = World::found();
    world.create("golden", BYTES);
    for offset in (0..GOLDEN).step_by(MIB as usize) {
        fill(&mut world, "golden", offset, 200, MIB);
    }
    world.snapshot("golden", "s");
    world.volume(clone("golden", "c1"));
    for at in 2..=depth {
        deepen(&mut world, at);
    }
    world
}

/// Writes the last clone, and makes one of it.
fn deepen(world: &mut World, at: usize) {
    let below = name(at - 1);
    world.snapshot(&below, "at-once");
    fill(world, &below, (at as u64 - 1) * 16 * BLOCK, at as u8 - 1, 2 * BLOCK);
    world.snapshot(&below, "s");
    world.volume(clone(&below, &name(at)));
}

/// Every volume of the chain that is there shows what it should.
fn compare(world: &mut World, depth: usize) {
    for volume in 0..=depth {
        let found = world.admin(AdminRequest::VolumeInfo { name: name(volume) });
        if found.is_err() {
            continue;
        }
        let answer = world.open(98, "reader", &name(volume));
        assert!(matches!(answer, Answer::Opened { .. }), "{answer:?}");
        for at in 0..=depth as u64 {
            let is_written = at > 0 && at <= volume as u64 && at < depth as u64;
            let wanted = if is_written { at as u8 } else { 200 };
            let (inside, behind) = (at * 16 * BLOCK + BLOCK, (at * 16 + 2) * BLOCK);
            assert_eq!(world.read(98, inside, 512)[0], wanted, "{} of c{volume}", at);
            assert_eq!(world.read(98, behind, 512)[0], 200, "behind {} of c{volume}", at);
        }
        assert_eq!(world.read(98, GOLDEN, 512)[0], 0);
        world.close(98);
    }
}

/// Lets the node do what it does by itself.
fn settle(world: &mut World, name: &str) -> VolumeReport {
    for _ in 0..100 {
        world.pass(1);
        let volume = world.info(name);
        if volume.attachment.is_none() && volume.shorten.is_none() && volume.flatten.is_none() {
            return volume;
        }
    }
    panic!("the node does not come to an end with {name}: {:?}", world.info(name));
}

fn lineages(volume: &VolumeReport) -> usize {
    volume.origin.as_ref().map_or(0, |origin| origin.lineages as usize)
}

#[test]
fn a_deep_clone_is_shortened_and_shares_the_golden_image_with_all_others() {
    let mut world = chain(10);
    let deepest = world.info("c10");
    let waits = deepest.shorten.expect("it reads through ten others");
    assert!(!waits.running && waits.error.is_none(), "{waits:?}");
    let volume = settle(&mut world, "c10");
    let origin = volume.origin.as_ref().expect("it is a clone");
    assert_eq!((origin.name.as_deref(), origin.lineages), (Some("golden@s"), 1));
    // Two blocks of each of the nine in between.
    assert_eq!(volume.used_bytes, 18 * BLOCK);
    let all = GOLDEN + (18 + 18) * BLOCK;
    assert_eq!(world.used_bytes(), all);
    // Those in between have snapshots, which show what they showed.
    assert_eq!(lineages(&world.info("c9")), 9);
    compare(&mut world, 10);
    assert_eq!((settle(&mut world, "c10").used_bytes, world.used_bytes()), (18 * BLOCK, all));
    for depth in 1..10 {
        delete(&mut world, &name(depth));
    }
    assert_eq!(world.used_bytes(), GOLDEN + 18 * BLOCK);
    compare(&mut world, 10);
    delete(&mut world, "golden");
    assert_eq!(world.used_bytes(), GOLDEN + 18 * BLOCK, "it is kept for the clone");
    let hidden = world.info("c10").origin.expect("it is a clone");
    assert_eq!((hidden.name, hidden.lineages), (None, 1));
}

#[test]
fn a_chain_that_is_short_enough_stays_as_it_is() {
    let mut world = chain(CHAIN_LINEAGES_MAX);
    let volume = settle(&mut world, &name(CHAIN_LINEAGES_MAX));
    assert_eq!((lineages(&volume), volume.used_bytes), (CHAIN_LINEAGES_MAX, 0));
}

#[test]
fn a_client_gets_a_volume_that_the_node_shortens_and_it_goes_on_in_its_session() {
    let mut world = chain(6);
    world.stalled = true;
    world.pass(2);
    let holder = world.info("c6").attachment.expect("the node has it").holder;
    assert!(holder.contains("this node, which shortens its chain of clones"), "{holder}");
    let open = Input::Open {
        connection: ConnectionId(1),
        client: engine::Client { identity: "a".into(), description: "process a".into() },
        name: "c6".into(),
    };
    world.tell(open);
    world.unstall();
    match world.hear() {
        Output::Answer { answer, .. } => assert_eq!(answer, opened(BYTES)),
        other => panic!("{other:?}"),
    }
    let volume = world.info("c6");
    assert_eq!(volume.attachment.expect("the client has it").holder, "process a");
    world.pass(1);
    let volume = world.info("c6");
    assert_eq!((lineages(&volume), volume.shorten), (1, None));
    world.close(1);
    compare(&mut world, 6);
}

#[test]
fn shortening_goes_on_after_a_kill_and_gives_way_to_a_flatten() {
    let mut world = chain(6);
    world.stalled = true;
    world.pass(2);
    assert!(world.info("c6").shorten.is_some());
    let (disk, journal) = world.kill();
    let mut world = World::start(disk, journal, false);
    assert_eq!(lineages(&settle(&mut world, "c6")), 1);
    compare(&mut world, 6);

    let mut world = chain(6);
    world.stalled = true;
    world.pass(2);
    let volume = world.volume(flatten("c6", FlattenAction::Start));
    assert!(volume.flatten.is_some() && volume.shorten.is_none(), "{volume:?}");
    world.unstall();
    let volume = settle(&mut world, "c6");
    assert_eq!((lineages(&volume), volume.used_bytes), (0, GOLDEN));
    compare(&mut world, 6);
    // Stopped at once, it is shortened after all.
    world.snapshot("c5", "again");
    let again = AdminRequest::VolumeClone {
        name: "c5".into(),
        tag: "again".into(),
        new_name: "other".into(),
    };
    world.volume(again);
    world.stalled = true;
    world.volume(flatten("other", FlattenAction::Start));
    let volume = world.volume(flatten("other", FlattenAction::Stop));
    assert!(volume.flatten.is_none() && volume.shorten.is_some(), "{volume:?}");
    world.unstall();
    assert_eq!(lineages(&settle(&mut world, "other")), 1);
}

#[test]
fn a_volume_with_snapshots_is_shortened_when_they_are_gone() {
    let mut world = chain(6);
    world.snapshot("c6", "mine");
    let volume = settle(&mut world, "c6");
    assert_eq!((lineages(&volume), volume.used_bytes), (6, 0));
    let delete = AdminRequest::SnapshotDelete { name: "c6".into(), tag: "mine".into() };
    assert_eq!(world.admin(delete), Ok(AdminReply::Done));
    assert_eq!(lineages(&settle(&mut world, "c6")), 1);
    compare(&mut world, 6);
}

#[test]
fn what_would_be_a_copy_of_it_all_is_left_to_who_wants_it() {
    // Somebody put a system of its own on the first clone: it stays shared, like an image.
    let mut world = chain(1);
    world.snapshot("c1", "mine");
    for offset in (8 * MIB..13 * MIB).step_by(MIB as usize) {
        fill(&mut world, "c1", offset, 201, MIB);
    }
    for at in 2..=6 {
        deepen(&mut world, at);
    }
    let volume = settle(&mut world, "c6");
    let origin = volume.origin.as_ref().expect("it is a clone");
    assert_eq!((origin.name.as_deref(), origin.lineages), (Some("c1@s"), 2));
    assert_eq!(volume.used_bytes, 8 * BLOCK);
    compare(&mut world, 6);

    // On the last one: everything that shows would have to be copied for one more clone.
    deepen(&mut world, 7);
    deepen(&mut world, 8);
    world.snapshot("c8", "mine");
    for offset in (4 * MIB..13 * MIB).step_by(MIB as usize) {
        fill(&mut world, "c8", offset, 202, MIB);
    }
    deepen(&mut world, 9);
    let volume = settle(&mut world, "c9");
    assert_eq!((lineages(&volume), volume.used_bytes), (5, 0));
    let used = world.used_bytes();
    world.pass(100);
    assert_eq!(world.used_bytes(), used, "nobody asked for a copy");
    world.volume(flatten("c9", FlattenAction::Start));
    assert_eq!(lineages(&settle(&mut world, "c9")), 0);
}

#[test]
fn a_chain_that_cannot_be_shortened_is_told_and_tried_again() {
    let mut world = chain(5);
    damage(&mut world);
    world.noisy = true;
    world.pass(2);
    let shorten = world.info("c5").shorten.expect("it is too long");
    let error = shorten.error.expect("it halted");
    assert!(error.contains("is damaged on every disk that has it"), "{error}");
    match world.admin(AdminRequest::Status) {
        Ok(AdminReply::Status(status)) => {
            let told = "the chain of clones that volume c5 reads through is not being shortened: \
                        the data at byte";
            let is_told = |warning: &String| warning.starts_with(told);
            assert!(status.warnings.iter().any(is_told), "{:?}", status.warnings);
        }
        other => panic!("{other:?}"),
    }
    // What a guest overwrites need not be copied.
    fill(&mut world, "c5", 3 * 16 * BLOCK, 3, 2 * BLOCK);
    world.pass(60);
    assert_eq!(lineages(&world.info("c5")), 1);
}

/// This many clones like `c6` that clients have, and that are to be shortened while the disk does
/// nothing.
fn held_clones(count: u64) -> World {
    let mut world = chain(6);
    for at in 0..count {
        let name = format!("o{at}");
        world.volume(clone("c5", &name));
        world.snapshot(&name, "mine");
        let answer = world.open(200 + at, &name, &name);
        assert!(matches!(answer, Answer::Opened { .. }), "{answer:?}");
    }
    assert_eq!(lineages(&settle(&mut world, "c6")), 1);
    world.stalled = true;
    for at in 0..count {
        let delete = AdminRequest::SnapshotDelete { name: format!("o{at}"), tag: "mine".into() };
        assert_eq!(world.admin(delete), Ok(AdminReply::Done));
    }
    world
}

fn shortening(world: &mut World, count: u64) -> usize {
    let is_running = |volume: VolumeReport| volume.shorten.is_some_and(|state| state.running);
    (0..count).filter(|at| is_running(world.info(&format!("o{at}")))).count()
}

/// Each takes a quarter of the room that is there when it begins: all clones together took more
/// than there was.
#[test]
fn only_a_few_are_shortened_at_once_and_the_others_afterwards() {
    let mut world = held_clones(5);
    for _ in 0..4 {
        assert_eq!(shortening(&mut world, 5), NODE_SHORTENS_MAX);
        world.pass(1);
    }
    for at in 0..5 {
        assert!(world.info(&format!("o{at}")).shorten.is_some());
    }
    world.unstall();
    world.pass(100);
    for at in 0..5 {
        assert_eq!(lineages(&world.info(&format!("o{at}"))), 1);
    }
    compare(&mut world, 6);
}

/// What was deleted went from the trash before its time for copies that nobody asked for.
#[test]
fn a_disk_that_gets_short_of_space_ends_shortening_until_there_is_room() {
    let mut world = chain(6);
    world.snapshot("c6", "mine");
    let (disk, journal) = world.kill();
    let mut world = World::start_slowly(disk, journal);
    let answer = world.open(1, "a", "c6");
    assert!(matches!(answer, Answer::Opened { .. }), "{answer:?}");
    let delete_snapshot = AdminRequest::SnapshotDelete { name: "c6".into(), tag: "mine".into() };
    assert_eq!(world.admin(delete_snapshot), Ok(AdminReply::Done));
    let is_running = |world: &mut World| world.info("c6").shorten.is_some_and(|it| it.running);
    world.pass(1);
    assert!(is_running(&mut world));
    fill_disk(&mut world);
    assert!(!is_running(&mut world), "it goes on on a full disk");
    world.pass(40);
    assert!(!is_running(&mut world), "it begins on a full disk");
    delete(&mut world, "big");
    world.pass(40);
    assert!(is_running(&mut world), "there is room again");
}

/// Writes a volume `big` until there is no space for more.
fn fill_disk(world: &mut World) {
    world.create("big", 512 * MIB);
    assert_eq!(world.open(97, "filler", "big"), opened(512 * MIB));
    for length in [MIB, BLOCK] {
        let is_full = (0..512).any(|at| {
            let offset = at * MIB + MIB - length;
            let mut buffer = proto::Buffer::zeroed(length as usize);
            buffer.as_mut_slice()[..length as usize].fill(9);
            let operation = volume::Operation::Write { buffer, fua: false };
            world.request(97, offset, length, operation).is_err()
        });
        assert!(is_full, "the disk takes everything");
    }
    world.close(97);
}

/// It kept the volume, and one of the turns of those that can be flattened.
#[test]
fn the_node_gives_back_what_it_cannot_shorten_for_want_of_room() {
    let mut world = chain(5);
    damage(&mut world);
    world.noisy = true;
    world.pass(2);
    assert!(world.info("c5").shorten.is_some_and(|shorten| shorten.error.is_some()));
    fill_disk(&mut world);
    world.pass(32);
    let volume = world.info("c5");
    assert_eq!((volume.attachment, volume.shorten), (None, None));
    // With room again it is tried again.
    delete(&mut world, "big");
    world.pass(2);
    fill(&mut world, "c5", 3 * 16 * BLOCK, 3, 2 * BLOCK);
    world.pass(60);
    assert_eq!(lineages(&world.info("c5")), 1);
}

/// A block of `c3` does not fit its checksum any more.
fn damage(world: &mut World) {
    let damaged = [3; BLOCK as usize];
    let block = world.disk.bytes.chunks_mut(BLOCK as usize).find(|block| **block == damaged[..]);
    block.expect("it was written")[7] ^= 1;
}
