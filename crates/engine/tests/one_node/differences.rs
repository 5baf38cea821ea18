//! What a volume and a snapshot can be compared with, and that a comparison with a snapshot that is
//! gone is an error.

use crate::support::{MIB, World};
use engine::{ConnectionId, Input, Output, admin::AdminRequest};
use proto::{BlockState, LayerId};
use volume::{Answer, Base, Changed, Completion, Error, Operation, Tags};

const BLOCK: u64 = 4096;

fn bases(world: &mut World, name: &str, tags: Tags) -> Vec<Base> {
    let connection = ConnectionId(77);
    world.tell(Input::Bases { connection, name: name.into(), tags });
    match world.hear() {
        Output::Answer { answer: Answer::Bases(bases), .. } => bases,
        other => panic!("{other:?}"),
    }
}

/// The tags of all bases of what is called so.
fn tags(world: &mut World, name: &str) -> Vec<String> {
    let all = Tags { all: true, named: Vec::new() };
    bases(world, name, all).into_iter().map(|base| base.tag).collect()
}

fn layer(world: &mut World, name: &str, tag: &str) -> LayerId {
    let found = bases(world, name, Tags { all: false, named: vec![tag.into(), "x".into()] });
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].layer
}

/// A client comes, writes a block and goes.
fn fill(world: &mut World, name: &str, block: u64, byte: u8) {
    assert!(matches!(world.open(99, "writer", name), Answer::Opened { .. }));
    world.write(99, block * BLOCK, byte, BLOCK);
    world.close(99);
}

fn delete(world: &mut World, name: &str, tag: &str) {
    let request = AdminRequest::SnapshotDelete { name: name.into(), tag: tag.into() };
    world.admin(request).expect("it is deleted");
}

#[test]
fn only_snapshots_below_are_offered_newest_first() {
    let mut world = World::found();
    world.create("vm1", MIB);
    for tag in ["a", "b", "c"] {
        fill(&mut world, "vm1", 0, 1);
        world.snapshot("vm1", tag);
    }
    assert_eq!(tags(&mut world, "vm1"), ["c", "b", "a"]);
    assert_eq!(tags(&mut world, "vm1@c"), ["b", "a"]);
    assert_eq!(tags(&mut world, "vm1@a"), [""; 0]);
    for unknown in ["vm2", "vm1@x", "", "vm1@"] {
        assert_eq!(tags(&mut world, unknown), [""; 0]);
    }
    // After a rollback the branch that was left is no ancestor.
    let request = AdminRequest::VolumeRollback { name: "vm1".into(), tag: "a".into() };
    world.volume(request);
    assert_eq!(tags(&mut world, "vm1"), ["a"]);
    assert_eq!(tags(&mut world, "vm1@c"), ["b", "a"]);
    // A clone has its own only.
    let (name, tag, new_name) = ("vm1".into(), "c".into(), "copy".into());
    world.volume(AdminRequest::VolumeClone { name, tag, new_name });
    assert_eq!(tags(&mut world, "copy"), [""; 0]);
    world.snapshot("copy", "mine");
    assert_eq!(tags(&mut world, "copy"), ["mine"]);
}

#[test]
fn no_more_than_the_limit_is_listed_and_the_rest_is_found_by_name() {
    let mut world = World::found();
    world.create("vm1", MIB);
    let limit = proto::limits::BASES_LISTED_MAX;
    for number in 0..limit + 3 {
        world.snapshot("vm1", &format!("s{number}"));
    }
    let listed = tags(&mut world, "vm1");
    assert_eq!((listed.len(), listed[0].as_str()), (limit, format!("s{}", limit + 2).as_str()));
    layer(&mut world, "vm1", "s0");
}

#[test]
fn a_difference_from_a_snapshot_that_is_gone_is_an_error_and_no_answer() {
    let mut world = World::found();
    world.create("vm1", MIB);
    fill(&mut world, "vm1", 0, 1);
    world.snapshot("vm1", "first");
    fill(&mut world, "vm1", 1, 1);
    world.snapshot("vm1", "second");
    fill(&mut world, "vm1", 2, 1);
    let (first, second) = (layer(&mut world, "vm1", "first"), layer(&mut world, "vm1", "second"));
    world.open(1, "a", "vm1");
    let ask = |world: &mut World, base| {
        let result = world.request(1, 0, 4 * BLOCK, Operation::Difference { base });
        result.map(|completion| match completion {
            Completion::Difference(runs) => runs,
            other => panic!("{other:?}"),
        })
    };
    let run = |blocks, state| Changed { length: blocks * BLOCK, state };
    let data = Some(BlockState::Data);
    let since_first = vec![run(1, None), run(2, data), run(1, None)];
    assert_eq!(ask(&mut world, first), Ok(since_first));
    let since_second = vec![run(2, None), run(1, data), run(1, None)];
    assert_eq!(ask(&mut world, second), Ok(since_second.clone()));
    // The first layer of a lineage is the one that disks take for empty when they do not know it.
    delete(&mut world, "vm1", "first");
    assert_eq!(ask(&mut world, first), Err(Error::UnknownBase));
    world.pass(10);
    assert_eq!(ask(&mut world, first), Err(Error::UnknownBase));
    assert_eq!(ask(&mut world, second), Ok(since_second));
    // A layer that a clone keeps alive has no name any more, and its tag may be used again.
    let (name, tag, new_name) = ("vm1".into(), "second".into(), "copy".into());
    world.volume(AdminRequest::VolumeClone { name, tag, new_name });
    delete(&mut world, "vm1", "second");
    assert_eq!(ask(&mut world, second), Err(Error::UnknownBase));
    world.snapshot("vm1", "second");
    assert_eq!(ask(&mut world, second), Err(Error::UnknownBase));
    let again = layer(&mut world, "vm1", "second");
    assert_eq!(ask(&mut world, again), Ok(vec![run(4, None)]));
}

#[test]
fn a_snapshot_that_goes_while_it_is_compared_with_spoils_the_answer() {
    let mut world = World::found();
    world.create("vm1", MIB);
    fill(&mut world, "vm1", 0, 1);
    world.snapshot("vm1", "first");
    fill(&mut world, "vm1", 1, 1);
    let base = layer(&mut world, "vm1", "first");
    world.open(1, "a", "vm1");
    // The question is under way when the snapshot's end is agreed.
    let request = volume::Request {
        id: volume::RequestId(9),
        offset: 0,
        length: MIB,
        operation: Operation::Difference { base },
    };
    let token = engine::admin::AdminToken(1 << 40);
    let (name, tag) = ("vm1".into(), "first".into());
    let delete = AdminRequest::SnapshotDelete { name, tag };
    world.tell_together(vec![
        Input::Admin { token, request: delete },
        Input::Request { connection: ConnectionId(1), request },
    ]);
    let mut results = Vec::new();
    for _ in 0..2 {
        match world.hear() {
            Output::Complete { result, .. } => results.push(result),
            Output::Admin { result, .. } => assert!(result.is_ok(), "{result:?}"),
            other => panic!("{other:?}"),
        }
    }
    // Which of the two comes first is not said; a wrong answer never comes.
    let run = |blocks, state| Changed { length: blocks * BLOCK, state };
    let right = [run(1, None), run(1, Some(BlockState::Data)), run(MIB / BLOCK - 2, None)];
    match &results[..] {
        [Ok(Completion::Difference(runs))] => assert_eq!(runs[..], right),
        other => assert!(matches!(other, [Err(Error::UnknownBase)]), "{other:?}"),
    }
}
