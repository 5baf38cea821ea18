//! Groups of volumes: what administrators are told, and that a group's snapshots, rollbacks and
//! deletions are of all its volumes or of none.

use crate::support::{MIB, World, opened};
use engine::{
    Input, Output,
    admin::{
        AdminErrorKind, AdminReply, AdminRequest, AdminToken, GroupReport, GroupSnapshotReport,
    },
};
use volume::Answer;

const BLOCK: u64 = 4096;

fn create(name: &str, volumes: &[&str]) -> AdminRequest {
    AdminRequest::GroupCreate { name: name.into(), volumes: owned(volumes) }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn take(tag: &str) -> AdminRequest {
    AdminRequest::GroupSnapshot { name: "g".into(), tag: tag.into() }
}

fn drop(tag: &str) -> AdminRequest {
    AdminRequest::GroupSnapshotDelete { name: "g".into(), tag: tag.into() }
}

fn rollback(tag: &str) -> AdminRequest {
    AdminRequest::GroupRollback { name: "g".into(), tag: tag.into() }
}

fn group(world: &mut World, request: AdminRequest) -> GroupReport {
    match world.admin(request) {
        Ok(AdminReply::Group(group)) => group,
        other => panic!("{other:?}"),
    }
}

fn info(world: &mut World) -> GroupReport {
    group(world, AdminRequest::GroupInfo { name: "g".into() })
}

fn snapshot(world: &mut World, request: AdminRequest) -> GroupSnapshotReport {
    match world.admin(request) {
        Ok(AdminReply::GroupSnapshot(snapshot)) => snapshot,
        other => panic!("{other:?}"),
    }
}

fn fill(world: &mut World, name: &str, byte: u8) {
    assert!(matches!(world.open(99, "writer", name), Answer::Opened { .. }));
    world.write(99, 0, byte, BLOCK);
    world.close(99);
}

fn look(world: &mut World, name: &str) -> u8 {
    let answer = world.open(98, "looker", name);
    assert!(matches!(answer, Answer::Opened { .. }), "{name}: {answer:?}");
    let byte = world.read(98, 0, 512)[0];
    world.close(98);
    byte
}

/// Volumes `a`, `b` and `c` that have a block of these bytes, in group `g`.
fn found(bytes: [u8; 3]) -> World {
    let mut world = World::found();
    for (name, byte) in ["a", "b", "c"].into_iter().zip(bytes) {
        world.create(name, 16 * MIB);
        fill(&mut world, name, byte);
    }
    group(&mut world, create("g", &["c", "a", "b"]));
    world
}

fn tags(world: &mut World) -> Vec<String> {
    info(world).snapshots.into_iter().map(|snapshot| snapshot.tag).collect()
}

#[test]
fn groups_are_made_changed_and_shown() {
    let mut world = World::found();
    for name in ["a", "b", "c"] {
        world.create(name, MIB);
    }
    // A volume that does not exist leaves no group behind.
    let refused = world.refused(create("g", &["a", "nowhere"]));
    assert_eq!(refused.kind, AdminErrorKind::NotFound);
    assert_eq!(world.admin(AdminRequest::GroupList), Ok(AdminReply::Groups(Vec::new())));
    let made = group(&mut world, create("g", &["b", "a", "b"]));
    assert_eq!((made.volumes, made.created_unix_s > 0), (owned(&["a", "b"]), true));
    assert_eq!(world.refused(create("g", &["c"])).kind, AdminErrorKind::Conflict);
    assert_eq!(info(&mut world).volumes, ["a", "b"], "the other group is as it was");
    assert_eq!(group(&mut world, create("empty", &[])).volumes, owned(&[]));

    let add = AdminRequest::GroupAdd { name: "g".into(), volumes: owned(&["c", "a"]) };
    assert_eq!(group(&mut world, add).volumes, ["a", "b", "c"]);
    let volumes = owned(&["a", "nowhere"]);
    let refused = world.refused(AdminRequest::GroupRemove { name: "g".into(), volumes });
    assert_eq!(refused.kind, AdminErrorKind::NotFound);
    assert_eq!(info(&mut world).volumes, ["a", "b", "c"], "none of them was taken out");
    let remove = AdminRequest::GroupRemove { name: "g".into(), volumes: owned(&["b"]) };
    assert_eq!(group(&mut world, remove).volumes, ["a", "c"]);
    let delete =
        AdminRequest::VolumeDelete { name: "c".into(), with_snapshots: false, keep_s: Some(0) };
    assert_eq!(world.admin(delete), Ok(AdminReply::Done));
    assert_eq!(info(&mut world).volumes, ["a"], "a volume that is deleted leaves its groups");

    let refused = world.refused(AdminRequest::GroupInfo { name: "nobody".into() });
    assert_eq!(refused.kind, AdminErrorKind::NotFound);
    let name = "empty".to_string();
    let refused = world.refused(AdminRequest::GroupSnapshot { name, tag: "t".into() });
    assert!(refused.sentence.contains("dog group add"), "{}", refused.sentence);
    let (disk, journal) = world.stop();
    let mut world = World::start(disk, journal, false);
    assert_eq!(info(&mut world).volumes, ["a"]);
    assert_eq!(world.admin(AdminRequest::GroupDelete { name: "g".into() }), Ok(AdminReply::Done));
    world.info("a");
}

#[test]
fn a_group_snapshot_can_be_read_in_all_volumes_when_it_is_answered() {
    let mut world = found([1, 2, 3]);
    assert_eq!(world.open(1, "a", "a"), opened(16 * MIB));
    let taken = snapshot(&mut world, take("t"));
    assert!(taken.complete && !taken.sealing && taken.count == 3, "{taken:?}");
    let members: Vec<_> = taken.members.iter().map(|m| (m.volume.as_str(), m.used_bytes)).collect();
    assert_eq!(members, [("a", BLOCK), ("b", BLOCK), ("c", BLOCK)]);
    world.write(1, 0, 9, BLOCK);
    world.close(1);
    fill(&mut world, "b", 8);
    for (name, byte) in [("a@t", 1), ("b@t", 2), ("c@t", 3), ("a", 9), ("b", 8), ("c", 3)] {
        assert_eq!(look(&mut world, name), byte, "{name}");
    }
    // They are ordinary snapshots: one of them can go, and the group knows.
    let one = AdminRequest::SnapshotDelete { name: "b".into(), tag: "t".into() };
    assert_eq!(world.admin(one), Ok(AdminReply::Done));
    let left = info(&mut world).snapshots.remove(0);
    assert_eq!((left.complete, left.count, left.members.len()), (false, 3, 2));
    assert_eq!(world.admin(drop("t")), Ok(AdminReply::Done));
    assert!(tags(&mut world).is_empty());
    assert!(world.snapshots("a", false).is_empty() && world.snapshots("c", false).is_empty());
    assert_eq!(world.used_bytes(), 3 * BLOCK);
}

/// The answer waits for the disks in all volumes, whether somebody has them or not; and as long as
/// one volume is busy, there is no other snapshot of any.
#[test]
fn a_group_with_a_busy_volume_gets_no_snapshot_at_all() {
    let mut world = found([1, 2, 3]);
    assert_eq!(world.open(1, "a", "a"), opened(16 * MIB));
    world.stalled = true;
    let request = AdminRequest::SnapshotCreate { name: "a".into(), tag: "own".into() };
    world.tell(Input::Admin { token: AdminToken(71), request });
    world.tell(Input::Admin { token: AdminToken(72), request: take("t") });
    match world.said.pop_front() {
        Some(Output::Admin { token: AdminToken(72), result }) => {
            let error = result.expect_err("a is busy");
            assert_eq!(error.kind, AdminErrorKind::Conflict, "{}", error.sentence);
        }
        other => panic!("{other:?}"),
    }
    assert!(tags(&mut world).is_empty());
    for name in ["b", "c"] {
        assert!(world.snapshots(name, false).is_empty(), "{name}");
    }
    world.unstall();
    assert!(matches!(world.hear(), Output::Admin { token: AdminToken(71), .. }));

    world.stalled = true;
    world.tell(Input::Admin { token: AdminToken(73), request: take("t") });
    assert!(world.said.is_empty(), "{:?}", world.said);
    let taken = info(&mut world).snapshots.remove(0);
    assert!(taken.sealing && taken.members.iter().all(|member| member.sealing), "{taken:?}");
    assert_eq!(world.refused(take("u")).kind, AdminErrorKind::Conflict);
    assert_eq!(world.refused(rollback("t")).kind, AdminErrorKind::Conflict);
    world.unstall();
    match world.hear() {
        Output::Admin { token: AdminToken(73), result } => match *result {
            Ok(AdminReply::GroupSnapshot(taken)) => assert!(!taken.sealing, "{taken:?}"),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
    world.close(1);
}

/// Whoever asked is told after a while that disks do not answer, or that the node stops. What was
/// lost of it in one volume need not be lost in another, so the next start deletes it.
#[test]
fn a_group_snapshot_that_a_crash_interrupted_is_deleted_by_the_next_start() {
    for stop in [false, true] {
        let mut world = found([1, 2, 3]);
        world.stalled = true;
        world.tell(Input::Admin { token: AdminToken(71), request: take("t") });
        if stop {
            world.tell(Input::Stop);
        } else {
            world.pass(31);
        }
        let told = world.said.iter().find_map(|said| match said {
            Output::Admin { token: AdminToken(71), result } => Some(result.as_ref().clone()),
            _ => None,
        });
        let error = told.expect("an answer").expect_err("it is not settled");
        assert_eq!(error.kind, AdminErrorKind::Unavailable);
        for part in ["snapshot g@t was taken, but for a, b, c:", "as soon as they have"] {
            assert!(error.sentence.contains(part), "{}", error.sentence);
        }
        let (disk, journal) = world.kill();
        let mut world = World::start_noisily(disk, journal);
        world.pass(1);
        let expected = "group snapshot g@t was being taken when the node ended and was deleted; \
                        take another one";
        assert_eq!(world.notices, [expected]);
        assert!(tags(&mut world).is_empty());
        for (name, byte) in [("a", 1), ("b", 2), ("c", 3)] {
            assert!(world.snapshots(name, false).is_empty(), "{name}");
            assert_eq!(look(&mut world, name), byte);
        }
        // One that was answered stays, whatever ends.
        snapshot(&mut world, take("u"));
        let (disk, journal) = world.kill();
        let mut world = World::start(disk, journal, false);
        world.pass(1);
        assert_eq!(tags(&mut world), ["u"]);
    }
}

/// Going back to it makes new heads, which are opened as after a snapshot; it is no less whole for
/// that.
#[test]
fn a_rollback_that_a_crash_interrupted_keeps_the_snapshot() {
    let mut world = found([1, 2, 3]);
    snapshot(&mut world, take("t"));
    for name in ["a", "b", "c"] {
        fill(&mut world, name, 9);
    }
    world.stalled = true;
    world.tell(Input::Admin { token: AdminToken(71), request: rollback("t") });
    let (disk, journal) = world.kill();
    let mut world = World::start(disk, journal, false);
    world.pass(1);
    assert_eq!(tags(&mut world), ["t"]);
    assert!(info(&mut world).snapshots[0].complete);
    for (name, byte) in [("a", 1), ("b", 2), ("c", 3)] {
        assert_eq!(look(&mut world, name), byte, "{name}");
    }
}

#[test]
fn a_group_goes_back_with_all_volumes_or_with_none() {
    let mut world = found([1, 2, 3]);
    snapshot(&mut world, take("t"));
    for name in ["a", "b", "c"] {
        fill(&mut world, name, 9);
    }
    assert_eq!(world.open(1, "x", "b"), opened(16 * MIB));
    let refused = world.refused(rollback("t"));
    assert_eq!(refused.kind, AdminErrorKind::Conflict);
    assert!(refused.sentence.contains("process x"), "{}", refused.sentence);
    world.close(1);
    for name in ["a", "b", "c"] {
        assert_eq!(look(&mut world, name), 9, "{name} stayed");
    }
    let back = snapshot(&mut world, rollback("t"));
    assert_eq!((back.tag.as_str(), back.members.len()), ("t", 3));
    for (name, byte) in [("a", 1), ("b", 2), ("c", 3)] {
        assert_eq!(look(&mut world, name), byte, "{name}");
    }
    // Clients on their way out are waited for, as for one volume.
    assert_eq!(world.open(1, "x", "a"), opened(16 * MIB));
    assert_eq!(world.open(2, "y", "c"), opened(16 * MIB));
    world.write(1, 0, 7, BLOCK);
    let close = |connection| Input::Close { connection: engine::ConnectionId(connection) };
    let token = AdminToken(71);
    world.tell_together(vec![close(1), close(2), Input::Admin { token, request: rollback("t") }]);
    match world.hear() {
        Output::Admin { token: AdminToken(71), result } => assert!(result.is_ok(), "{result:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(look(&mut world, "a"), 1);

    // Without one of its snapshots there is no way back for any.
    let one = AdminRequest::SnapshotDelete { name: "c".into(), tag: "t".into() };
    fill(&mut world, "a", 6);
    assert_eq!(world.admin(one), Ok(AdminReply::Done));
    let refused = world.refused(rollback("t"));
    assert!(refused.sentence.contains("were deleted"), "{}", refused.sentence);
    assert_eq!(look(&mut world, "a"), 6);
}

#[test]
fn a_group_snapshot_that_is_read_stays_whole() {
    let mut world = found([1, 2, 3]);
    snapshot(&mut world, take("t"));
    assert!(matches!(world.open(1, "x", "b@t"), Answer::Opened { .. }));
    let refused = world.refused(drop("t"));
    assert_eq!(refused.kind, AdminErrorKind::Conflict);
    assert!(info(&mut world).snapshots[0].complete);
    world.close(1);
    // A reader on its way out is waited for.
    assert!(matches!(world.open(2, "x", "a@t"), Answer::Opened { .. }));
    let close = Input::Close { connection: engine::ConnectionId(2) };
    let token = AdminToken(71);
    world.tell_together(vec![close, Input::Admin { token, request: drop("t") }]);
    match world.hear() {
        Output::Admin { token: AdminToken(71), result } => {
            assert_eq!(*result, Ok(AdminReply::Done));
        }
        other => panic!("{other:?}"),
    }
    assert!(tags(&mut world).is_empty());
    assert_eq!(world.refused(drop("t")).kind, AdminErrorKind::NotFound);
}
