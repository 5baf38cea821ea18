//! Orders of commands and failures that nobody would choose, and that must not leave anybody
//! waiting, or a volume that cannot be had.

use crate::support::{MIB, World, opened};
use engine::{
    Input, Output,
    admin::{AdminErrorKind, AdminReply, AdminRequest, AdminToken},
};
use proto::Duration;

fn shrink(token: u64, bytes: u64) -> Input {
    let name = "vm1".into();
    let request = AdminRequest::VolumeResize { name, bytes, allow_shrink: true };
    Input::Admin { token: AdminToken(token), request }
}

fn delete(token: u64) -> Input {
    let request =
        AdminRequest::VolumeDelete { name: "vm1".into(), with_snapshots: false, keep_s: Some(0) };
    Input::Admin { token: AdminToken(token), request }
}

/// The node attaches a volume to discard what lies beyond its smaller end. Where that attachment
/// was refused, whoever had asked for the size was never answered, and held one of the few places
/// for administrators' requests for ever.
#[test]
fn a_shrink_whose_volume_is_deleted_meanwhile_is_answered() {
    let mut world = World::found();
    world.create("vm1", 16 * MIB);
    world.tell_together(vec![shrink(71, 8 * MIB), delete(72)]);
    let mut answers = Vec::new();
    for _ in 0..2 {
        match world.hear() {
            Output::Admin { token, result } => answers.push((token.0, *result)),
            other => panic!("{other:?}"),
        }
    }
    answers.sort_by_key(|(token, _)| *token);
    let refused = answers[0].1.as_ref().expect_err("there is no volume to be shown");
    assert_eq!((answers[0].0, refused.kind), (71, AdminErrorKind::Unavailable));
    assert!(refused.sentence.contains("no volume with"), "{}", refused.sentence);
    assert_eq!(answers[1], (72, Ok(AdminReply::Done)));
    assert!(world.said.is_empty(), "{:?}", world.said);
}

/// A detachment that the full journal refused left the volume attached to a client that was gone,
/// until the node was started anew; it could be neither attached nor deleted, whatever space there
/// was.
#[test]
fn a_detachment_that_found_no_space_does_not_keep_the_volume() {
    for delete in [false, true] {
        let mut world = World::found();
        world.create("vm1", MIB);
        world.create("vm2", MIB);
        assert_eq!(world.open(1, "a", "vm1"), opened(MIB));
        (world.journal.full, world.noisy) = (true, true);
        let names = ["vm2", "vm3"];
        let refused = (0..1000).find_map(|number| {
            let (name, new_name) = (names[number % 2].into(), names[(number + 1) % 2].into());
            world.admin(AdminRequest::VolumeRename { name, new_name, while_attached: false }).err()
        });
        let refused = refused.expect("the journal has an end");
        assert!(refused.sentence.contains("is full"), "{}", refused.sentence);
        world.close(1);
        world.journal.full = false;
        if delete {
            let request = AdminRequest::VolumeDelete {
                name: "vm1".into(),
                with_snapshots: false,
                keep_s: Some(0),
            };
            assert_eq!(world.admin(request), Ok(AdminReply::Done));
        } else {
            assert_eq!(world.open(2, "b", "vm1"), opened(MIB));
        }
    }
}

/// A stop that came while the node was attaching a volume for itself waited for what it wanted to
/// do there, though that needed a disk that was out of service.
#[test]
fn a_stop_does_not_wait_for_what_only_the_node_itself_wants() {
    let mut world = World::found();
    world.create("vm1", 16 * MIB);
    world.create("vm2", MIB);
    assert_eq!(world.open(1, "a", "vm2"), opened(MIB));
    (world.disk.broken, world.noisy) = (true, true);
    world.tell_together(vec![shrink(71, 8 * MIB), Input::Stop]);
    world.close(1);
    // As long as a session waits for a disk before it gives up, and some more.
    for _ in 0..30 {
        world.now = world.now + Duration::from_secs(1);
        world.tell(Input::Tick);
    }
    assert!(world.said.iter().any(|said| matches!(said, Output::Stopped)), "{:?}", world.said);
    // And whoever asked is told how far it came.
    let told = world.said.iter().find_map(|said| match said {
        Output::Admin { token: AdminToken(71), result } => Some(result.as_ref().clone()),
        _ => None,
    });
    let sentence = told.expect("an answer").expect_err("it is not done").sentence;
    assert!(sentence.starts_with("the volume has its new size, but"), "{sentence}");
}
