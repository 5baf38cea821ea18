//! New heads, snapshots, and what shows through from other lineages.

use super::*;
use proto::{BlockState, LineageId};

fn created() -> (State, VolumeId) {
    let mut state = State::default();
    let node = NodeId(1);
    let mut apply = |command| state.apply(&command).expect("a good command");
    apply(Command::CreateCluster { cluster: ClusterId(1), partition_bits: 2, unix_s: 0 });
    apply(Command::AddNode { node, name: "alpha".into() });
    apply(Command::OpenDisk { disk: DiskId(100), node, incarnation: Incarnation(1) });
    apply(Command::CreateVolume { name: "vm".into(), bytes: 64 << 20, unix_s: 0 });
    let volume = state.map().volume_named("vm").expect("just created").id;
    (state, volume)
}

fn snapshot(state: &mut State, volume: VolumeId, tag: &str) {
    let create = Command::CreateSnapshot { volume, tag: tag.into(), unix_s: 0 };
    state.apply(&create).expect("a new tag");
}

/// As a session of the volume says it.
fn layer_opened(state: &mut State, volume: VolumeId) {
    let (node, holder) = (NodeId(1), String::new());
    let attach = Command::Attach { volume, node, holder, read_only: false, unix_s: 0 };
    state.apply(&attach).expect("it is free");
    let map = state.map();
    let known = map.volume(volume).expect("it exists");
    let (generation, layer) = (known.generation, known.head);
    for command in
        [Command::LayerOpened { volume, generation, layer }, Command::Detach { volume, generation }]
    {
        state.apply(&command).expect("the writer");
    }
}

impl Stage {
    fn switch(&mut self, token: u64, layer: u64, parent: u64) {
        let (layer, parent) = (LayerId(layer), LayerId(parent));
        self.request(token, Request::SwitchLayer { layer, parent });
    }

    /// The layers of the writes a disk is being asked for.
    fn layers_written(&self, disk: usize) -> Vec<u64> {
        let of_disk = self.asked.iter().filter(|(asked, ..)| *asked == disk);
        let layer = |request: &MemberRequest| match request {
            MemberRequest::Write(write) => Some(write.key.layer.0),
            _ => None,
        };
        of_disk.filter_map(|(_, _, request)| layer(request)).collect()
    }
}

#[test]
fn a_new_head_is_opened_between_the_writes_of_both() {
    let mut stage = Stage::open(1);
    stage.write(1);
    stage.switch(2, 2, 1);
    stage.write(3);
    stage.read(4);
    assert_eq!(stage.questions(0), ["write 1>2", "read"], "the first one may have to come again");
    stage.answer(0, Err(MemberError::Busy));
    stage.answer(0, Ok(data()));
    stage.tick();
    stage.answer(0, Ok(MemberReply::Stamp(at(7, 1))));
    assert_eq!(stage.layers_written(0), [1]);
    stage.answer(0, Ok(written(1)));
    assert_eq!(stage.questions(0), ["open 1>2"]);
    stage.answer(0, Err(MemberError::Busy));
    stage.tick();
    assert_eq!(stage.ended(), [4, 1]);
    stage.answer(0, Ok(MemberReply::Done));
    stage.answer(0, Ok(MemberReply::Stamp(at(7, 2))));
    assert_eq!((stage.questions(0), stage.layers_written(0)), (vec!["write 2>3".into()], vec![2]));
    stage.answer(0, Ok(written(1)));
    assert_eq!(stage.ended(), [4, 1, 2, 3]);
    stage.write(5);
    assert_eq!(stage.layers_written(0), [2]);
}

#[test]
fn a_switch_ends_when_every_member_has_opened_the_layer_and_writes_go_on_before() {
    for (members, quorum) in [(1, 1), (2, 2), (3, 2), (5, 3)] {
        let mut stage = Stage::open(members);
        stage.switch(1, 2, 1);
        stage.write(2);
        for disk in 0..members {
            let ended = usize::from(disk >= quorum);
            assert_eq!(stage.ended(), vec![2; ended], "{disk} of {members}");
            assert_eq!(stage.questions(disk), ["open 1>2"]);
            stage.answer(disk, Ok(MemberReply::Done));
            if disk < quorum {
                while let Some(question) = stage.questions(disk).first() {
                    let reply = match question.as_str() {
                        "stamp" => MemberReply::Stamp(at(7, 1)),
                        _ => written(1),
                    };
                    // The last of all ends the switch, which comes before this.
                    stage.answer(disk, Ok(reply));
                }
            }
        }
        let mut ended = stage.ended();
        ended.sort_unstable();
        assert_eq!(ended, [1, 2]);
    }
}

#[test]
fn a_layer_is_sealed_when_all_members_have_it_stable_and_a_flush_needs_a_quorum() {
    let mut stage = Stage::open(3);
    stage.write(1);
    (0..2).for_each(|disk| drop(stage.answer(disk, Ok(written(1)))));
    stage.switch(2, 2, 1);
    (0..2).for_each(|disk| drop(stage.answer(disk, Ok(MemberReply::Done))));
    assert_eq!(stage.ended(), [1], "the last disk does not even have the write");
    assert_eq!(stage.questions(2), ["write 1>2"]);
    stage.answer(2, Ok(written(1)));
    stage.answer(2, Ok(MemberReply::Done));
    assert_eq!(stage.ended(), [1, 2]);
    stage.request(3, Request::Seal);
    stage.flush(4);
    (0..2).for_each(|disk| drop(stage.answer(disk, Ok(flushed(1)))));
    assert_eq!(stage.ended(), [1, 2, 4]);
    let obstacle = stage.coordinator.seal_obstacle().expect("it waits");
    assert!(obstacle.starts_with("disk 00000000000000000000000000000002"), "{obstacle}");
    assert!(stage.coordinator.obstacle().is_none(), "no guest waits for that");
    assert!(!stage.coordinator.is_seal_held_up(), "it is at work");
    stage.answer(2, Ok(flushed(1)));
    assert_eq!(stage.ended(), [1, 2, 4, 3]);
    assert!(stage.coordinator.seal_obstacle().is_none());
}

#[test]
fn a_member_that_is_away_holds_a_seal_up_until_it_is_no_member_any_more() {
    let mut stage = Stage::open(3);
    stage.switch(1, 2, 1);
    (0..2).for_each(|disk| drop(stage.answer(disk, Ok(MemberReply::Done))));
    stage.answer(2, Err(MemberError::Retired));
    stage.write(2);
    (0..2).for_each(|disk| drop(stage.answer(disk, Ok(written(1)))));
    assert_eq!(stage.ended(), [2], "guests go on");
    let obstacle = stage.coordinator.seal_obstacle().expect("it waits");
    assert!(obstacle.contains("disk 00000000000000000000000000000002: it is"), "{obstacle}");
    assert!(stage.coordinator.is_seal_held_up());
    let map = with(&stage.base, &[1, 1]);
    stage.tell(Event::Map(map));
    stage.asked.retain(|(disk, ..)| *disk < 2);
    stage.answer_all(|_| Ok(MemberReply::Stamp(at(7, 2))));
    assert_eq!(stage.ended(), [2, 1]);
    assert!(!stage.coordinator.is_seal_held_up());
}

#[test]
fn a_member_that_comes_while_a_layer_is_sealed_must_have_it_stable_too() {
    let mut stage = Stage::open(2);
    stage.switch(1, 2, 1);
    (0..2).for_each(|disk| drop(stage.answer(disk, Ok(MemberReply::Done))));
    stage.request(2, Request::Seal);
    (0..2).for_each(|disk| assert_eq!(stage.questions(disk), ["flush"]));
    let map = with(&stage.base, &[1, 1, 1]);
    stage.tell(Event::Map(map));
    (0..2).for_each(|disk| drop(stage.answer(disk, Ok(flushed(1)))));
    assert_eq!(stage.ended(), [1], "the third one does not even know the head");
    stage.answer(2, Ok(fenced(1, &[])));
    assert_eq!(stage.questions(2), ["open 1>2"], "a flush before would mean nothing");
    stage.answer(2, Ok(MemberReply::Done));
    assert_eq!(stage.questions(2), ["flush"]);
    assert_eq!(stage.ended(), [1]);
    stage.answer(2, Ok(flushed(1)));
    assert_eq!(stage.ended(), [1, 2]);
}

/// It opens with a quorum; the seal that the dead session began needs all of them.
#[test]
fn a_new_session_finishes_a_seal_when_no_member_is_behind() {
    let (mut state, volume) = created();
    snapshot(&mut state, volume, "one");
    let mut stage = Stage::begin_with(3, state.map(), volume, HEAD);
    (0..2).for_each(|disk| drop(stage.answer(disk, Ok(fenced(1, &[])))));
    stage.tick();
    for _ in 0..10 {
        let late: Vec<_> = stage.asked.extract_if(.., |(disk, ..)| *disk == 2).collect();
        stage.answer_all(|request| Ok(usual(request)));
        stage.asked.extend(late);
    }
    assert!(stage.opened);
    stage.request(1, Request::Seal);
    for _ in 0..10 {
        // The third knows the head by now, and yet it may lack writes.
        stage.answer_all(|request| Ok(usual(request)));
    }
    assert!(stage.ended().is_empty());
    let obstacle = stage.coordinator.seal_obstacle().expect("it waits");
    assert!(obstacle.contains("which is behind"), "{obstacle}");
    stage.incarnations.truncate(2);
    let map = with(&stage.base, &stage.incarnations);
    stage.tell(Event::Map(map));
    for _ in 0..10 {
        stage.answer_all(|request| Ok(usual(request)));
    }
    assert_eq!(stage.ended(), [1]);
}

#[test]
fn a_disk_opened_anew_opens_the_layer_again_before_it_is_asked_for_anything() {
    let mut stage = Stage::open(1);
    stage.switch(1, 2, 1);
    stage.answer(0, Ok(MemberReply::Done));
    stage.write(2);
    stage.answer(0, Ok(written(1)));
    stage.flush(3);
    stage.reopen(0);
    stage.read(4);
    stage.answer(0, Ok(fenced(2, &[])));
    assert_eq!(stage.questions(0), ["open 1>2"]);
    stage.answer(0, Ok(MemberReply::Done));
    assert_eq!(stage.questions(0), ["stamp"]);
    stage.answer(0, Ok(MemberReply::Stamp(at(7, 2))));
    assert_eq!(stage.questions(0), ["read", "flush"]);
    stage.answer(0, Ok(data()));
    stage.answer(0, Ok(flushed(2)));
    assert_eq!(stage.ended(), [1, 2, 4, 3]);
}

#[test]
fn a_flush_after_a_new_head_reaches_the_disk() {
    let mut stage = Stage::open(1);
    stage.switch(1, 2, 1);
    stage.answer(0, Ok(MemberReply::Done));
    stage.flush(2);
    assert_eq!(stage.questions(0), ["flush"]);
}

#[test]
fn a_write_of_the_former_head_that_was_never_answered_goes_to_it_before_the_new_one_is_opened() {
    let mut stage = Stage::open(1);
    stage.write(1);
    stage.switch(2, 2, 1);
    stage.write(3);
    stage.reopen(0);
    stage.answer(0, Ok(fenced(2, &[])));
    // Whether it knows the new one it is asked.
    assert_eq!(stage.questions(0), ["stamp"]);
    stage.answer(0, Err(MemberError::invalid("the layer was not opened")));
    assert_eq!(stage.questions(0), ["stamp"]);
    stage.answer(0, Ok(MemberReply::Stamp(at(7, 1))));
    assert_eq!(stage.layers_written(0), [1]);
    stage.answer(0, Ok(written(2)));
    assert_eq!(stage.questions(0), ["open 1>2"]);
}

#[test]
fn a_session_opens_a_head_that_nobody_reported_before_it_serves() {
    for read_only in [false, true] {
        let (mut state, volume) = created();
        snapshot(&mut state, volume, "a");
        let view = View::Head { read_only };
        let mut stage = Stage::begin_with(2, state.map(), volume, view);
        if !read_only {
            // What the former session left in the layer below is settled first, and stable.
            stage.answer_all(|_| Ok(fenced(1, &[at(6, 5)])));
            let mut asked = Vec::new();
            while stage.questions(0) != ["open 1>2"] && asked.len() < 10 {
                asked.extend(stage.questions(0));
                stage.answer_all(|request| Ok(usual(request)));
            }
            assert_eq!(asked, ["confirm", "settle 5", "mark", "flush"]);
        }
        assert!(!stage.opened);
        assert_eq!(stage.questions(0), ["open 1>2"]);
        stage.answer_all(|_| Ok(MemberReply::Done));
        assert!(stage.opened);
        if !read_only {
            stage.write(1);
            // The head has nothing yet: which stamp shows through it is asked.
            assert_eq!(stage.questions(0), ["stamp"]);
            stage.answer(0, Ok(MemberReply::Stamp(at(6, 5))));
            assert_eq!(stage.questions(0), ["write 5>1"]);
            assert_eq!(stage.layers_written(0), [2]);
        }
    }
}

/// A volume with layers 1, 2 and 3, all of which are open.
fn with_three_layers() -> (Arc<Map>, VolumeId) {
    let (mut state, volume) = created();
    for tag in ["a", "b"] {
        snapshot(&mut state, volume, tag);
        layer_opened(&mut state, volume);
    }
    let map = state.map();
    assert_eq!(map.volume(volume).expect("it exists").head, LayerId(3));
    (map, volume)
}

/// It was asked for the stamp again and again, and the attachment never opened.
#[test]
fn a_member_that_does_not_know_a_layer_has_nothing_of_it_and_opens_it_from_the_lowest_up() {
    let (map, volume) = with_three_layers();
    let mut stage = Stage::begin_with(2, map, volume, HEAD);
    let found = ObjectStamp { key: ObjectKey { layer: LayerId(3), index: 0 }, ..at(6, 5) };
    stage.answer(0, Ok(fenced(1, &[found])));
    stage.answer(1, Ok(fenced(1, &[])));
    for disk in 0..2 {
        stage.answer(disk, Ok(confirmed()));
    }
    assert_eq!(stage.questions(1), ["stamp"]);
    stage.answer(1, Err(MemberError::invalid("the layer was not opened")));
    // Even if it is busy in between.
    assert_eq!(stage.questions(1), ["open 1>2"]);
    stage.answer(1, Err(MemberError::Busy));
    assert!(stage.questions(1).is_empty());
    stage.tick();
    assert_eq!(stage.questions(1), ["open 1>2"]);
    stage.answer(1, Ok(MemberReply::Done));
    assert_eq!(stage.questions(1), ["open 2>3"]);
    stage.answer(1, Ok(MemberReply::Done));
    // The copier asks both what they have.
    assert_eq!(stage.questions(1), ["stamp"]);
    let stamps = |request: &MemberRequest| match request {
        MemberRequest::Stamp { key: ObjectKey { layer: LayerId(3), .. }, .. } => found,
        _ => at(0, 0),
    };
    for (disk, token, request) in std::mem::take(&mut stage.asked) {
        let reply = if disk == 0 { stamps(&request) } else { at(0, 0) };
        let (disk, result) = (DiskId(disk as u128), Ok(MemberReply::Stamp(reply)));
        stage.tell(Event::Member { disk, token, result });
    }
    let mut asked = Vec::new();
    for _ in 0..10 {
        asked.extend(stage.questions(1));
        stage.answer_all(|request| {
            Ok(match request {
                MemberRequest::Checksums { .. } => {
                    let absent = vec![proto::BlockSum::Absent; proto::BLOCKS_PER_OBJECT as usize];
                    MemberReply::Checksums(absent)
                }
                MemberRequest::Stamp { .. } => MemberReply::Stamp(found),
                other => usual(other),
            })
        });
    }
    assert!(stage.opened && stage.coordinator.behind().is_empty(), "{asked:?}");
    assert!(asked.iter().any(|question| question.starts_with("Adopt")), "{asked:?}");
}

/// It was asked for the stamp every few milliseconds for ever, and with two copies each write hung.
#[test]
fn a_new_member_that_was_never_told_of_the_head_is_told_from_the_lowest_layer_up() {
    let unknown = || Err(MemberError::invalid("the layer was not opened"));
    for is_checked in [false, true] {
        let (map, volume) = with_three_layers();
        let mut stage = Stage::begin_with(2, map, volume, HEAD);
        stage.answer_usually();
        assert!(stage.opened);
        stage.write(1);
        stage.answer_usually();
        if !is_checked {
            stage.flush(2);
            stage.answer_usually();
        }
        stage.done.clear();
        let number = ConfigurationNumber(stage.coordinator.partition_at(0).under.number.0 + 1);
        let member = |disk| Member { disk: DiskId(disk), incarnation: Incarnation(1) };
        let map = stage.base.with_members(number, vec![member(2), member(3)]);
        stage.tell(Event::Map(Arc::new(map)));
        stage.answer_all(|_| Ok(fenced(1, &[])));
        let have = if is_checked { at(7, 1) } else { at(6, 5) };
        stage.write(3);
        for disk in [2, 3] {
            // What is asked for before the head is known is asked of the other too.
            while stage.questions(disk) != ["open 1>2"] {
                assert_eq!(stage.questions(disk), ["stamp"], "disk {disk}");
                stage.answer(disk, unknown());
            }
            for question in ["open 1>2", "open 2>3"] {
                assert_eq!(stage.questions(disk), [question], "disk {disk}");
                stage.answer(disk, Ok(MemberReply::Done));
            }
            if is_checked {
                break;
            }
        }
        let mut asked = Vec::new();
        for _ in 0..10 {
            asked.extend(stage.questions(3));
            stage.answer_all(|request| {
                Ok(match request {
                    MemberRequest::Stamp { .. } => MemberReply::Stamp(have),
                    other => usual(other),
                })
            });
        }
        assert!(matches!(stage.done[..], [(3, Ok(Answer::Done))]), "{asked:?}");
        assert!(stage.coordinator.behind().is_empty());
        assert_eq!(asked.iter().filter(|question| question.starts_with("write")).count(), 1);
    }
}

/// A disk that opens layers and does not know them then cannot be helped.
#[test]
fn a_member_is_told_of_the_layers_only_once() {
    let (map, volume) = with_three_layers();
    let mut stage = Stage::begin_with(3, map, volume, HEAD);
    stage.answer_usually();
    stage.write(1);
    for _ in 0..10 {
        let of_last: Vec<_> = stage.asked.extract_if(.., |(disk, ..)| *disk == 2).collect();
        stage.answer_all(|request| Ok(usual(request)));
        for (_, token, request) in of_last {
            let result = match request {
                MemberRequest::Stamp { .. } => {
                    Err(MemberError::invalid("the layer was not opened"))
                }
                other => Ok(usual(&other)),
            };
            stage.tell(Event::Member { disk: DiskId(2), token, result });
        }
    }
    assert!(matches!(stage.done[..], [(1, Ok(Answer::Done))]));
    let behind = stage.coordinator.behind();
    assert!(matches!(&behind[..], [(DiskId(2), why)] if why.contains("no layer")), "{behind:?}");
}

#[test]
fn the_last_stamp_of_an_object_is_that_of_its_newest_layer() {
    let (mut state, volume) = created();
    snapshot(&mut state, volume, "a");
    layer_opened(&mut state, volume);
    let mut stage = Stage::begin_with(1, state.map(), volume, HEAD);
    let mut newer = at(6, 9);
    newer.key.layer = LayerId(2);
    stage.answer(0, Ok(fenced(1, &[newer, at(6, 5)])));
    stage.answer_all(|_| Ok(MemberReply::Done));
    assert!(stage.opened);
    stage.write(1);
    assert_eq!(stage.questions(0), ["write 9>1"]);
}

/// The newest layer listed was taken for what the head shows, though it was of a branch that had
/// been rolled back: the first write then did not fit, and counted as lost with its disk.
#[test]
fn a_branch_that_was_rolled_back_says_nothing_of_the_head() {
    let (mut state, volume) = created();
    snapshot(&mut state, volume, "a");
    layer_opened(&mut state, volume);
    let mut stage = Stage::begin_with(1, state.map(), volume, HEAD);
    let mut branch = at(6, 9);
    branch.key.layer = LayerId(9);
    stage.answer(0, Ok(fenced(1, &[branch, at(6, 5)])));
    stage.answer_all(|_| Ok(MemberReply::Done));
    assert!(stage.opened);
    stage.write(1);
    assert_eq!(stage.questions(0), ["stamp"]);
    stage.answer(0, Ok(MemberReply::Stamp(at(6, 5))));
    assert_eq!(stage.questions(0), ["write 5>1"]);
}

#[test]
fn a_snapshot_is_read_without_a_fence() {
    let (mut state, volume) = created();
    snapshot(&mut state, volume, "a");
    layer_opened(&mut state, volume);
    let view = View::Snapshot { layer: LayerId(1) };
    let mut stage = Stage::begin_with(1, state.map(), volume, view);
    assert!(stage.opened && stage.asked.is_empty());
    stage.read(1);
    let request = stage.answer(0, Ok(data()));
    assert!(matches!(
        request,
        MemberRequest::Read {
            generation: Generation::SEALED,
            key: ObjectKey { layer: LayerId(1), .. },
            ..
        }
    ));
}

#[test]
fn a_difference_is_asked_of_the_head() {
    let mut stage = Stage::open(1);
    let (base, blocks) = (LayerId(0), BlockRange::new(0, 3).expect("blocks"));
    stage.request(1, Request::Difference { base, index: 0, blocks });
    assert_eq!(stage.questions(0), ["difference"]);
    let runs = vec![(1, None), (2, Some(BlockState::Zero))];
    stage.answer(0, Ok(MemberReply::Difference(runs.clone())));
    assert!(matches!(&stage.done[..], [(1, Ok(Answer::Difference(found)))] if *found == runs));
}

#[test]
fn what_shows_through_is_read_where_it_lies() {
    let (mut state, volume) = created();
    snapshot(&mut state, volume, "a");
    layer_opened(&mut state, volume);
    for (from, tag, name) in [("vm", "a", "one"), ("one", "b", "two")] {
        let volume = state.map().volume_named(from).expect("it exists").id;
        if from == "one" {
            snapshot(&mut state, volume, tag);
            layer_opened(&mut state, volume);
        }
        let (tag, name) = (tag.into(), name.into());
        state.apply(&Command::CloneSnapshot { volume, tag, name, unix_s: 0 }).expect("sealed");
    }
    let map = state.map();
    let two = map.volume_named("two").expect("it exists");
    let found = map.chain(two.head);
    let found: Vec<_> = found.iter().map(|o| (o.lineage.0, o.layer.0, o.bytes)).collect();
    assert_eq!(found, [(3, 3, 64 << 20), (1, 1, 64 << 20)]);

    let mut stage = Stage::begin_with(1, map.clone(), two.id, HEAD);
    stage.answer(0, Ok(fenced(1, &[])));
    let source = Source::Origin { lineage: LineageId(1), layer: LayerId(1) };
    let blocks = BlockRange::new(0, 1).expect("a block");
    stage.request(1, Request::Read { source, index: 7, blocks });
    let MemberRequest::Read { lineage, key, generation, .. } = stage.answer(0, Ok(data())) else {
        panic!("a read")
    };
    assert_eq!((lineage, generation), (LineageId(1), Generation::SEALED));
    assert_eq!(key, ObjectKey { layer: LayerId(1), index: 7 });
}
