//! Snapshots, clones, rollback, flattening: what administrators and clients are told, and what
//! they see.

use crate::support::{MIB, World, opened, reads};
use engine::{
    ConnectionId, Input, Output,
    admin::{AdminErrorKind, AdminReply, AdminRequest, AdminToken, FlattenAction, LayerKind},
};
use proto::Duration;
use volume::{Answer, Completion, Operation};

const BLOCK: u64 = 4096;

fn delete(name: &str, with_snapshots: bool) -> AdminRequest {
    AdminRequest::VolumeDelete { name: name.into(), with_snapshots, keep_s: Some(0) }
}

fn take(name: &str, tag: &str) -> AdminRequest {
    AdminRequest::SnapshotCreate { name: name.into(), tag: tag.into() }
}

fn drop(name: &str, tag: &str) -> AdminRequest {
    AdminRequest::SnapshotDelete { name: name.into(), tag: tag.into() }
}

fn clone(name: &str, tag: &str, new_name: &str) -> AdminRequest {
    AdminRequest::VolumeClone { name: name.into(), tag: tag.into(), new_name: new_name.into() }
}

fn rollback(name: &str, tag: &str) -> AdminRequest {
    AdminRequest::VolumeRollback { name: name.into(), tag: tag.into() }
}

fn flatten(name: &str, action: FlattenAction) -> AdminRequest {
    AdminRequest::VolumeFlatten { name: name.into(), action }
}

/// A volume with a first block of this byte, that nobody has.
fn filled(world: &mut World, name: &str, byte: u8) {
    world.create(name, 16 * MIB);
    fill(world, name, 0, byte, BLOCK);
}

/// A client comes, writes and goes.
fn fill(world: &mut World, name: &str, offset: u64, byte: u8, length: u64) {
    assert!(matches!(world.open(99, "writer", name), Answer::Opened { .. }));
    world.write(99, offset, byte, length);
    world.close(99);
}

/// A client comes, reads a byte and goes.
fn look(world: &mut World, name: &str, offset: u64) -> u8 {
    let answer = world.open(98, "looker", name);
    assert!(matches!(answer, Answer::Opened { .. }), "{name}: {answer:?}");
    let byte = world.read(98, offset, 512)[0];
    world.close(98);
    byte
}

/// Lets the node do what it does by itself.
fn settle(world: &mut World, name: &str) {
    for _ in 0..1_000 {
        let volume = world.info(name);
        if volume.attachment.is_none() && volume.flatten.is_none() && !volume.sealing {
            return;
        }
        world.pass(1);
    }
    panic!("the node does not come to an end with {name}");
}

#[test]
fn a_snapshot_of_a_detached_volume_can_be_read_when_it_is_answered() {
    let mut world = World::found();
    filled(&mut world, "vm1", 1);
    let snapshot = world.snapshot("vm1", "a");
    assert_eq!((snapshot.tag.as_str(), snapshot.bytes, snapshot.sealing), ("a", 16 * MIB, false));
    assert_eq!(snapshot.used_bytes, BLOCK);
    fill(&mut world, "vm1", 0, 2, BLOCK);
    assert_eq!(look(&mut world, "vm1", 0), 2);
    assert_eq!(look(&mut world, "vm1@a", 0), 1);
    let volume = world.info("vm1");
    assert_eq!((volume.snapshots, volume.used_bytes), (1, 2 * BLOCK));
    assert_eq!((volume.head_bytes, volume.snapshots_bytes), (BLOCK, BLOCK));
    assert!(volume.origin.is_none() && volume.attachment.is_none(), "{volume:?}");
    let (disk, journal) = world.stop();
    let mut world = World::start(disk, journal, false);
    assert_eq!((look(&mut world, "vm1", 0), look(&mut world, "vm1@a", 0)), (2, 1));
}

#[test]
fn a_snapshot_under_a_client_does_not_disturb_it() {
    let mut world = World::found();
    world.create("vm1", 16 * MIB);
    assert_eq!(world.open(1, "a", "vm1"), opened(16 * MIB));
    for round in 1..=5 {
        world.write(1, 0, round, 2 * BLOCK);
        world.write(1, u64::from(round) * MIB, round, BLOCK);
        world.snapshot("vm1", &format!("t{round}"));
    }
    world.write(1, 0, 9, BLOCK);
    assert_eq!(world.read(1, BLOCK, 512)[0], 5);
    for round in 1..=5 {
        let name = format!("vm1@t{round}");
        assert_eq!(look(&mut world, &name, 0), round);
        assert_eq!(look(&mut world, &name, u64::from(round) * MIB), round);
        assert_eq!(look(&mut world, &name, (u64::from(round) + 1) * MIB), 0);
    }
    let tags: Vec<String> = world.snapshots("vm1", false).into_iter().map(|s| s.tag).collect();
    assert_eq!(tags, ["t1", "t2", "t3", "t4", "t5"]);
    world.close(1);
}

#[test]
fn any_number_of_clients_read_a_snapshot_and_keep_it() {
    let mut world = World::found();
    filled(&mut world, "vm1", 7);
    world.snapshot("vm1", "a");
    assert_eq!(world.open(1, "a", "vm1@a"), reads(16 * MIB));
    assert_eq!(world.open(2, "a", "vm1@a"), reads(16 * MIB));
    assert_eq!(world.open(3, "b", "vm1@a"), reads(16 * MIB));
    assert_eq!(world.open(4, "b", "vm1"), opened(16 * MIB));
    world.write(4, 0, 8, BLOCK);
    for connection in 1..=3 {
        assert_eq!(world.read(connection, 0, 512)[0], 7);
    }
    let readers = world.snapshots("vm1", false).remove(0).readers;
    let seen: Vec<_> = readers.iter().map(|r| (r.holder.as_str(), r.connections)).collect();
    assert_eq!(seen, [("process a", 2), ("process b", 1)]);
    assert!(readers.iter().all(|reader| reader.read_only));
    let discard = world.request(1, 0, BLOCK, Operation::Discard { fua: false });
    assert_eq!(discard.err(), Some(volume::Error::ReadOnly));

    let refused = world.refused(drop("vm1", "a"));
    assert_eq!(refused.kind, AdminErrorKind::Conflict);
    assert!(refused.sentence.contains("\"vm1@a\" is read by process a"), "{}", refused.sentence);
    world.close(4);
    let refused = world.refused(delete("vm1", true));
    assert_eq!(refused.kind, AdminErrorKind::Conflict, "{}", refused.sentence);
    world.close(1);
    assert_eq!(world.read(2, 0, 512)[0], 7);
    world.close(2);
    world.close(3);
    assert!(world.snapshots("vm1", false)[0].readers.is_empty());
    assert_eq!(world.admin(drop("vm1", "a")), Ok(AdminReply::Done));
    assert!(matches!(world.open(5, "a", "vm1@a"), Answer::Unknown { .. }));
    assert_eq!(look(&mut world, "vm1", 0), 8);
    assert_eq!(world.used_bytes(), BLOCK);
}

#[test]
fn clients_are_told_the_names_of_snapshots() {
    let mut world = World::found();
    filled(&mut world, "vm1", 1);
    world.create("another", MIB);
    world.snapshot("vm1", "z");
    world.snapshot("vm1", "b");
    let connection = ConnectionId(1);
    world.tell(Input::List { connection });
    let listed = Output::Answer {
        connection,
        answer: Answer::Listed(["another", "vm1", "vm1@z", "vm1@b"].map(String::from).to_vec()),
    };
    assert_eq!(format!("{:?}", world.hear()), format!("{listed:?}"));
    world.tell(Input::Describe { connection, name: "vm1@b".into() });
    let answer = Answer::Described { bytes: 16 * MIB, read_only: true };
    let described = Output::Answer { connection, answer };
    assert_eq!(format!("{:?}", world.hear()), format!("{described:?}"));
    for (name, missing) in [
        ("vm1@c", "volume \"vm1\" has no snapshot \"c\""),
        ("vm2@b", "there is no volume named \"vm2\""),
        ("vm1@", "volume \"vm1\" has no snapshot \"\""),
        ("@b", "there is no volume named \"\""),
        ("vm1@b@b", "volume \"vm1\" has no snapshot \"b@b\""),
    ] {
        match world.open(2, "a", name) {
            Answer::Unknown { sentence } => assert!(sentence.starts_with(missing), "{sentence}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_comes_in_a_wrong_order_ends_in_a_sentence() {
    use AdminErrorKind::*;
    let mut world = World::found();
    filled(&mut world, "vm1", 1);
    let start = FlattenAction::Start;
    let list = |name: &str| AdminRequest::SnapshotList { name: name.into(), reclaimable: true };
    let cases = [
        (take("none", "a"), NotFound, "there is no volume named \"none\""),
        (list("none"), NotFound, "there is no volume named \"none\""),
        (AdminRequest::LayerList { name: Some("none".into()) }, NotFound, "there is no volume"),
        (drop("vm1", "a"), NotFound, "volume \"vm1\" has no snapshot \"a\""),
        (clone("vm1", "a", "vm2"), NotFound, "volume \"vm1\" has no snapshot \"a\""),
        (rollback("vm1", "a"), NotFound, "volume \"vm1\" has no snapshot \"a\""),
        (take("vm1", "a/b"), Invalid, "\"a/b\" cannot be a snapshot's tag"),
        (take("vm1", ""), Invalid, "\"\" cannot be a snapshot's tag"),
        (flatten("vm1", start), Invalid, "volume \"vm1\" shows nothing of another volume's"),
        (flatten("none", start), NotFound, "there is no volume named \"none\""),
    ];
    for (request, kind, sentence) in cases {
        let refused = world.refused(request);
        assert_eq!(refused.kind, kind, "{}", refused.sentence);
        assert!(refused.sentence.starts_with(sentence), "{}", refused.sentence);
    }
    world.snapshot("vm1", "a");
    let cases = [
        (take("vm1", "a"), Conflict, "volume \"vm1\" has a snapshot \"a\" already"),
        (clone("vm1", "a", "vm1"), Conflict, "a volume named \"vm1\" exists already"),
        (clone("vm1", "a", "x y"), Invalid, "\"x y\" cannot be a volume's name"),
        (delete("vm1", false), Conflict, "volume \"vm1\" has 1 snapshots"),
    ];
    for (request, kind, sentence) in cases {
        let refused = world.refused(request);
        assert_eq!(refused.kind, kind, "{}", refused.sentence);
        assert!(refused.sentence.starts_with(sentence), "{}", refused.sentence);
    }
    world.open(1, "a", "vm1");
    let refused = world.refused(rollback("vm1", "a"));
    assert!(refused.sentence.contains("is attached by process a"), "{}", refused.sentence);
    let stop = world.volume(flatten("vm1", FlattenAction::Stop));
    assert!(stop.flatten.is_none());
}

#[test]
fn a_rollback_shows_the_snapshot_again_and_the_next_can_follow_at_once() {
    let mut world = World::found();
    filled(&mut world, "vm1", 1);
    world.snapshot("vm1", "a");
    fill(&mut world, "vm1", 0, 2, BLOCK);
    let resize =
        AdminRequest::VolumeResize { name: "vm1".into(), bytes: 32 * MIB, allow_shrink: false };
    world.volume(resize);
    world.snapshot("vm1", "b");
    fill(&mut world, "vm1", 0, 3, BLOCK);
    let volume = world.volume(rollback("vm1", "a"));
    assert_eq!((volume.bytes, volume.sealing, volume.head_bytes), (16 * MIB, false, 0));
    assert_eq!(look(&mut world, "vm1", 0), 1);
    world.volume(rollback("vm1", "b"));
    world.snapshot("vm1", "c");
    assert_eq!(world.info("vm1").bytes, 32 * MIB);
    assert_eq!((look(&mut world, "vm1", 0), look(&mut world, "vm1@c", 0)), (2, 2));
    assert_eq!(world.used_bytes(), 2 * BLOCK);
}

#[test]
fn a_clone_shows_its_snapshot_until_it_is_flattened() {
    let mut world = World::found();
    filled(&mut world, "vm1", 1);
    fill(&mut world, "vm1", 8 * MIB, 2, 3 * BLOCK);
    world.snapshot("vm1", "a");
    let copy = world.volume(clone("vm1", "a", "copy"));
    let origin = copy.origin.expect("it is a clone");
    assert_eq!((origin.name.as_deref(), origin.bytes), (Some("vm1@a"), 16 * MIB));
    assert_eq!(copy.used_bytes, 0);
    assert_eq!(world.snapshots("vm1", false)[0].clones, ["copy"]);
    fill(&mut world, "copy", 0, 7, BLOCK);
    assert_eq!((look(&mut world, "copy", 0), look(&mut world, "copy", 8 * MIB)), (7, 2));

    // Deleted for its owner at once; kept, hidden, for the clone.
    assert_eq!(world.admin(delete("vm1", true)), Ok(AdminReply::Done));
    let hidden = world.info("copy").origin.expect("still");
    assert_eq!(hidden.name, None);
    match world.admin(AdminRequest::Status) {
        Ok(AdminReply::Status(status)) => {
            assert_eq!((status.hidden_layers, status.hidden_bytes), (1, 4 * BLOCK));
        }
        other => panic!("{other:?}"),
    }
    match world.admin(AdminRequest::LayerList { name: Some("copy".into()) }) {
        Ok(AdminReply::Layers(layers)) => {
            let seen: Vec<_> = layers.iter().map(|l| (l.kind, l.name.as_deref())).collect();
            assert_eq!(seen, [(LayerKind::Hidden, None), (LayerKind::Head, Some("copy"))]);
            assert_eq!(layers[1].parent, Some(layers[0].layer));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(look(&mut world, "copy", 8 * MIB), 2);

    let flattening = world.volume(flatten("copy", FlattenAction::Start));
    assert!(flattening.flatten.is_some());
    settle(&mut world, "copy");
    assert!(world.info("copy").origin.is_none());
    assert_eq!((look(&mut world, "copy", 0), look(&mut world, "copy", 8 * MIB)), (7, 2));
    // One block was written and three were copied; nothing else is left of the volume deleted.
    assert_eq!((world.info("copy").used_bytes, world.used_bytes()), (4 * BLOCK, 4 * BLOCK));
    let refused = world.refused(flatten("copy", FlattenAction::Start));
    assert_eq!(refused.kind, AdminErrorKind::Invalid);
}

#[test]
fn a_client_gets_a_volume_that_the_node_flattens() {
    let mut world = World::found();
    world.create("vm1", 64 * MIB);
    for index in 0..16 {
        fill(&mut world, "vm1", index * 4 * MIB, 1 + index as u8, MIB);
    }
    world.snapshot("vm1", "a");
    world.volume(clone("vm1", "a", "copy"));
    // While the disk does nothing, the node has the volume for itself.
    world.stalled = true;
    world.volume(flatten("copy", FlattenAction::Start));
    let holder = world.info("copy").attachment.expect("the node has it").holder;
    assert!(holder.contains("this node, which flattens it"), "{holder}");
    let open = Input::Open {
        connection: ConnectionId(1),
        client: engine::Client { identity: "a".into(), description: "process a".into() },
        name: "copy".into(),
    };
    world.tell(open);
    world.unstall();
    match world.hear() {
        Output::Answer { answer, .. } => assert_eq!(answer, opened(64 * MIB)),
        other => panic!("{other:?}"),
    }
    let holder = world.info("copy").attachment.expect("the client has it").holder;
    assert_eq!(holder, "process a");
    // It goes on in the client's session.
    for index in 0..16 {
        assert_eq!(world.read(1, index * 4 * MIB, 512)[0], 1 + index as u8);
    }
    for _ in 0..1_000 {
        if world.info("copy").flatten.is_none() {
            break;
        }
        world.pass(1);
    }
    let copy = world.info("copy");
    assert!(copy.flatten.is_none() && copy.origin.is_none(), "{copy:?}");
    assert_eq!(copy.used_bytes, 16 * MIB);
    world.close(1);
}

#[test]
fn flattening_goes_on_after_a_restart_and_stops_when_it_is_told_to() {
    let mut world = World::found();
    filled(&mut world, "vm1", 1);
    world.snapshot("vm1", "a");
    world.volume(clone("vm1", "a", "copy"));
    world.stalled = true;
    world.volume(flatten("copy", FlattenAction::Start));
    let (disk, journal) = world.kill();

    let mut world = World::start(disk, journal, false);
    settle(&mut world, "copy");
    assert!(world.info("copy").origin.is_none());
    assert_eq!(look(&mut world, "copy", 0), 1);

    world.volume(clone("vm1", "a", "second"));
    world.stalled = true;
    world.volume(flatten("second", FlattenAction::Start));
    let stopped = world.volume(flatten("second", FlattenAction::Stop));
    assert!(stopped.flatten.is_none());
    world.unstall();
    settle(&mut world, "second");
    assert!(world.info("second").origin.is_some(), "it went on");
}

#[test]
fn a_node_flattens_a_few_volumes_at_once_and_all_in_turn() {
    let mut world = World::found();
    filled(&mut world, "vm1", 5);
    world.snapshot("vm1", "a");
    let names: Vec<String> = (0..12).map(|number| format!("copy{number}")).collect();
    for name in &names {
        world.volume(clone("vm1", "a", name));
    }
    world.stalled = true;
    for name in &names {
        world.volume(flatten(name, FlattenAction::Start));
    }
    let held = |world: &mut World| {
        names.iter().filter(|name| world.info(name).attachment.is_some()).count()
    };
    assert_eq!(held(&mut world), proto::limits::NODE_FLATTENS_MAX);
    // A snapshot need not wait for its turn among them.
    world.unstall();
    world.snapshot("copy11", "now");
    for name in &names {
        settle(&mut world, name);
        assert!(world.info(name).origin.is_none());
        assert_eq!(look(&mut world, name, 0), 5);
    }
}

#[test]
fn a_snapshot_that_a_crash_interrupted_is_finished_at_the_next_start() {
    let mut world = World::found();
    filled(&mut world, "vm1", 1);
    world.stalled = true;
    world.tell(Input::Admin { token: AdminToken(900), request: take("vm1", "a") });
    let (disk, journal) = world.kill();

    let mut world = World::start(disk, journal, false);
    settle(&mut world, "vm1");
    assert!(!world.snapshots("vm1", false)[0].sealing);
    assert_eq!(look(&mut world, "vm1@a", 0), 1);
    world.snapshot("vm1", "b");
}

#[test]
fn a_snapshot_whose_disks_do_not_answer_is_answered_with_a_sentence() {
    let mut world = World::found();
    filled(&mut world, "vm1", 1);
    filled(&mut world, "vm2", 1);
    world.snapshot("vm2", "old");
    world.stalled = true;
    let refused = world.refused(take("vm1", "a"));
    assert_eq!(refused.kind, AdminErrorKind::Unavailable);
    let begins = "snapshot vm1@a was taken, but for 30 s the disks have not settled it (waiting";
    assert!(refused.sentence.starts_with(begins), "{}", refused.sentence);
    let refused = world.refused(rollback("vm2", "old"));
    let begins = "volume vm2 was rolled back to old, but for 30 s the disks have not settled it";
    assert!(refused.sentence.starts_with(begins), "{}", refused.sentence);

    // Until then nobody can have it.
    assert!(world.snapshots("vm1", true)[0].sealing);
    assert_eq!(world.snapshots("vm1", true)[0].reclaimable_bytes, None);
    assert!(world.info("vm1").sealing);
    match world.open(1, "a", "vm1@a") {
        Answer::Refused { sentence } => assert!(sentence.contains("still being taken")),
        other => panic!("{other:?}"),
    }
    for request in [drop("vm1", "a"), clone("vm1", "a", "x"), take("vm1", "b")] {
        let refused = world.refused(request);
        assert_eq!(refused.kind, AdminErrorKind::Conflict, "{}", refused.sentence);
        assert!(refused.sentence.contains("is still being taken"), "{}", refused.sentence);
    }
    world.unstall();
    settle(&mut world, "vm1");
    settle(&mut world, "vm2");
    assert_eq!(look(&mut world, "vm1@a", 0), 1);
}

#[test]
fn what_waits_for_the_node_itself_is_done_when_it_gives_way() {
    let mut world = World::found();
    filled(&mut world, "vm1", 1);
    world.snapshot("vm1", "a");
    world.volume(clone("vm1", "a", "copy"));
    world.stalled = true;
    world.volume(flatten("copy", FlattenAction::Start));
    assert!(world.info("copy").attachment.is_some());
    world.tell(Input::Admin { token: AdminToken(900), request: delete("copy", false) });
    world.unstall();
    match world.hear() {
        Output::Admin { token, result } => {
            assert_eq!((token, *result), (AdminToken(900), Ok(AdminReply::Done)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(world.admin(drop("vm1", "a")), Ok(AdminReply::Done));
    assert_eq!(world.used_bytes(), BLOCK);
}

#[test]
fn a_stop_finds_everything_under_way_and_the_next_start_finishes_it() {
    let mut world = World::found();
    filled(&mut world, "vm1", 1);
    world.snapshot("vm1", "a");
    world.volume(clone("vm1", "a", "copy"));
    filled(&mut world, "vm2", 1);
    world.open(1, "a", "vm1@a");
    world.stalled = true;
    world.volume(flatten("copy", FlattenAction::Start));
    world.tell(Input::Admin { token: AdminToken(900), request: take("vm2", "b") });
    world.tell(Input::Admin { token: AdminToken(901), request: rollback("copy", "none") });
    world.tell(Input::Stop);
    let mut answered = Vec::new();
    world.unstall();
    loop {
        match world.hear() {
            Output::Admin { token, result } => {
                let error = result.expect_err("it was not done");
                answered.push((token.0, error.sentence));
            }
            Output::Disconnect { connection, .. } => world.close(connection.0),
            Output::Stopped => break,
            other => panic!("{other:?}"),
        }
    }
    answered.sort();
    let taken = "snapshot vm2@b was taken, but the node stops before the disks have settled it;";
    assert!(answered[0].0 == 900 && answered[0].1.starts_with(taken), "{answered:?}");
    // The rollback had its turn, and there was no such snapshot.
    let unknown = "volume \"copy\" has no snapshot \"none\"";
    assert!(answered[1].0 == 901 && answered[1].1.starts_with(unknown), "{answered:?}");
    let (disk, journal) = world.kill();
    let mut world = World::start(disk, journal, false);
    settle(&mut world, "copy");
    settle(&mut world, "vm2");
    assert_eq!((look(&mut world, "copy", 0), look(&mut world, "vm2@b", 0)), (1, 1));
}

/// The first layer of a volume may go long before the volume: what keeps old attachments from
/// writing belongs to all of its layers.
#[test]
fn a_volume_outlives_its_first_layer_and_every_start() {
    let mut world = World::found();
    filled(&mut world, "vm1", 1);
    world.snapshot("vm1", "a");
    fill(&mut world, "vm1", 0, 2, BLOCK);
    assert_eq!(world.admin(drop("vm1", "a")), Ok(AdminReply::Done));
    assert_eq!(world.used_bytes(), BLOCK);
    let discard = Operation::Discard { fua: true };
    world.open(1, "a", "vm1");
    assert!(matches!(world.request(1, 0, BLOCK, discard), Ok(Completion::Done)));
    world.close(1);
    for round in 0..3 {
        let (disk, journal) = world.stop();
        world = World::start(disk, journal, false);
        fill(&mut world, "vm1", round * MIB, 3, BLOCK);
        world.now = world.now + Duration::from_secs(10);
        assert_eq!(look(&mut world, "vm1", round * MIB), 3);
    }
    assert_eq!(world.admin(delete("vm1", true)), Ok(AdminReply::Done));
    assert_eq!(world.used_bytes(), 0);
}

/// A rollback makes a second branch of a snapshot. When that snapshot and then the other branch
/// are deleted, what they had below goes too, as far as it was overwritten since.
#[test]
fn deleting_the_end_of_a_branch_frees_what_only_it_showed_of_the_layers_below() {
    let mut world = World::found();
    world.create("vm1", 16 * MIB);
    fill(&mut world, "vm1", 0, 1, 3 * BLOCK);
    world.snapshot("vm1", "below");
    fill(&mut world, "vm1", 0, 2, BLOCK);
    world.snapshot("vm1", "branch");
    world.volume(rollback("vm1", "below"));
    fill(&mut world, "vm1", BLOCK, 3, BLOCK);

    let reclaimable = |world: &mut World| -> Vec<_> {
        world.snapshots("vm1", true).into_iter().map(|s| (s.tag, s.reclaimable_bytes)).collect()
    };
    let named = |tag: &str, bytes: u64| (tag.to_owned(), Some(bytes));
    // The one is needed by both branches, the other is the end of one.
    assert_eq!(reclaimable(&mut world), [named("below", 0), named("branch", BLOCK)]);
    assert_eq!(world.used_bytes(), 5 * BLOCK);
    assert_eq!(world.admin(drop("vm1", "below")), Ok(AdminReply::Done));
    assert_eq!(world.used_bytes(), 5 * BLOCK);
    assert_eq!(reclaimable(&mut world), [named("branch", 2 * BLOCK)]);
    assert_eq!(world.admin(drop("vm1", "branch")), Ok(AdminReply::Done));
    assert_eq!(world.used_bytes(), 3 * BLOCK);
    let shown = [0, BLOCK, 2 * BLOCK].map(|offset| look(&mut world, "vm1", offset));
    assert_eq!(shown, [1, 3, 1]);
}

/// Flattening cannot copy what is damaged. Those volumes must not keep the others from their turn,
/// and somebody must be told.
#[test]
fn volumes_that_cannot_be_flattened_do_not_keep_others_from_it() {
    let mut world = World::found();
    filled(&mut world, "bad", 0xb5);
    filled(&mut world, "good", 5);
    world.snapshot("bad", "a");
    world.snapshot("good", "a");
    let names: Vec<String> = (0..6).map(|number| format!("copy{number}")).collect();
    for name in &names {
        world.volume(clone("bad", "a", name));
    }
    world.volume(clone("good", "a", "last"));
    let damaged = [0xb5; 4096];
    let block = world.disk.bytes.chunks_mut(4096).find(|block| **block == damaged[..]);
    block.expect("it was written")[7] ^= 1;
    world.noisy = true;
    for name in &names {
        world.volume(flatten(name, FlattenAction::Start));
    }
    world.volume(flatten("last", FlattenAction::Start));
    world.pass(1);
    let error = world.info("copy0").flatten.expect("it is wanted").error.expect("it halted");
    assert!(error.contains("is damaged on every disk that has it"), "{error}");
    match world.admin(AdminRequest::Status) {
        Ok(AdminReply::Status(status)) => {
            let told = "volume copy0 is not being flattened: the data at byte 0 is damaged";
            let is_told = |warning: &String| warning.starts_with(told);
            assert!(status.warnings.iter().any(is_told), "{:?}", status.warnings);
        }
        other => panic!("{other:?}"),
    }
    world.pass(300);
    assert!(world.info("last").origin.is_none());
    assert_eq!(look(&mut world, "last", 0), 5);
    // What a guest overwrites need not be copied.
    fill(&mut world, "copy5", 0, 6, BLOCK);
    world.pass(300);
    assert!(world.info("copy5").origin.is_none());
    assert!(world.info("copy0").origin.is_some());
}

/// The journal may be full when the disks have sealed a layer: that is said again until it is not.
#[test]
fn a_snapshot_is_answered_when_the_journal_takes_it_at_last() {
    let mut world = World::found();
    filled(&mut world, "vm1", 1);
    world.create("vm2", MIB);
    world.stalled = true;
    world.tell(Input::Admin { token: AdminToken(900), request: take("vm1", "a") });
    (world.journal.full, world.noisy) = (true, true);
    let names = ["vm2", "vm3"];
    let refused = (0..1000).find_map(|number| {
        let (name, new_name) = (names[number % 2].into(), names[(number + 1) % 2].into());
        world.admin(AdminRequest::VolumeRename { name, new_name, while_attached: false }).err()
    });
    assert!(refused.expect("the journal has an end").sentence.contains("is full"));
    world.unstall();
    world.pass(5);
    assert!(world.info("vm1").sealing && world.said.is_empty(), "{:?}", world.said);
    world.journal.full = false;
    match world.hear() {
        Output::Admin { token, result } => {
            assert_eq!(token, AdminToken(900));
            assert!(matches!(*result, Ok(AdminReply::Snapshot(_))), "{result:?}");
        }
        other => panic!("{other:?}"),
    }
    settle(&mut world, "vm1");
    assert_eq!(look(&mut world, "vm1@a", 0), 1);
}
