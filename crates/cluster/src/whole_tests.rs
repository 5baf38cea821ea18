//! Trash, locks, groups, schedules, sources and shortening: table by table. What they do to
//! the content of volumes is compared in `layers_model`.

use crate::*;
use proto::{ClusterId, Generation, LayerId, NodeId, VolumeId};

const NODE: NodeId = NodeId(2);

/// A cluster with volumes `a`, `b` and `c` of two blocks, ids 1 to 3.
fn state() -> State {
    let mut state = State::default();
    let create = Command::CreateCluster { cluster: ClusterId(1), partition_bits: 4, unix_s: 0 };
    state.apply(&create).expect("new");
    state.apply(&Command::AddNode { node: NODE, name: "alpha".into() }).expect("new");
    for name in ["a", "b", "c"] {
        let create = Command::CreateVolume { name: name.into(), bytes: 8192, unix_s: 0 };
        state.apply(&create).expect("new");
    }
    state
}

const A: VolumeId = VolumeId(1);
const B: VolumeId = VolumeId(2);
const C: VolumeId = VolumeId(3);

#[track_caller]
fn done(state: &mut State, command: Command) -> Answer {
    let encoded = Command::decode(&command.encode());
    assert_eq!(encoded.as_ref(), Ok(&command));
    let before = state.map().epoch();
    let answer = state.apply(&command).expect("it can be done");
    state.check();
    assert_eq!(State::decode(&state.encode()).as_ref(), Ok(&*state));
    assert!(state.map().epoch() >= before);
    answer
}

#[track_caller]
fn refused(state: &mut State, command: Command, kind: RefusalKind, sentence: &str) {
    let before = state.clone();
    let refusal = state.apply(&command).expect_err("refused");
    assert_eq!((refusal.to_string().as_str(), refusal.kind()), (sentence, kind));
    assert_eq!(*state, before);
}

fn attach(volume: VolumeId) -> Command {
    Command::Attach { volume, node: NODE, holder: "guest".into(), read_only: false, unix_s: 5 }
}

fn snapshot(volume: VolumeId, tag: &str) -> Command {
    Command::CreateSnapshot { volume, tag: tag.into(), unix_s: 7 }
}

/// Attaches the volume, reports its head opened, and detaches it.
fn settle(state: &mut State, volume: VolumeId) {
    let Answer::Attached { generation } = done(state, attach(volume)) else { panic!() };
    let layer = state.map().volume(volume).expect("known").head;
    done(state, Command::LayerOpened { volume, generation, layer });
    done(state, Command::Detach { volume, generation });
}

fn trash(volume: VolumeId) -> Command {
    Command::TrashVolume { volume, with_snapshots: true, unix_s: 100, expires_unix_s: 200 }
}

#[test]
fn what_is_in_the_trash_is_there_and_nobody_can_use_it() {
    let mut state = state();
    done(&mut state, snapshot(A, "t"));
    settle(&mut state, A);
    let unasked =
        Command::TrashVolume { volume: A, with_snapshots: false, unix_s: 100, expires_unix_s: 200 };
    let has = "volume \"a\" has 1 snapshots; delete them first, or the volume with them \
               (--with-snapshots)";
    refused(&mut state, unasked, RefusalKind::Busy, has);
    let layers: Vec<_> = state.map().layers().collect();
    assert_eq!(done(&mut state, trash(A)), Answer::Done);
    let map = state.map();
    assert_eq!(map.layers().collect::<Vec<_>>(), layers, "nothing is dropped");
    assert!(map.volume_named("a").is_none());
    assert_eq!(map.provisioned_bytes(), 2 * 8192);
    let is_in_it = "volume \"a\" is in the trash; take it out first with `dog trash undelete 1`";
    for command in [
        attach(A),
        snapshot(A, "u"),
        trash(A),
        Command::DropVolume { volume: A, with_snapshots: true, unix_s: 999 },
        Command::RenameVolume { volume: A, name: "x".into() },
        Command::ResizeVolume { volume: A, bytes: 4096, allow_shrink: true },
        Command::Rollback { volume: A, tag: "t".into() },
        Command::CloneSnapshot { volume: A, tag: "t".into(), name: "x".into(), unix_s: 0 },
    ] {
        refused(&mut state, command, RefusalKind::Busy, is_in_it);
    }
    // Its name is free, and then not free any more to come back to.
    done(&mut state, Command::CreateVolume { name: "a".into(), bytes: 4096, unix_s: 0 });
    let back = |name: &str| Command::Undelete { volume: A, name: name.into() };
    let taken = "a volume named \"a\" exists already; choose another name";
    refused(&mut state, back("a"), RefusalKind::Exists, taken);
    done(&mut state, back("old"));
    let map = state.map();
    assert_eq!(map.volume_named("old").map(|volume| volume.id), Some(A));
    assert!(map.volume(A).expect("known").snapshot("t").is_some());
    let not_in_it = "volume \"old\" is not in the trash; `dog trash list` shows what is";
    refused(&mut state, back("older"), RefusalKind::Busy, not_in_it);
    refused(&mut state, Command::Purge { volume: A }, RefusalKind::Busy, not_in_it);
    done(&mut state, trash(A));
    let Answer::Dropped(gone) = done(&mut state, Command::Purge { volume: A }) else { panic!() };
    assert_eq!(gone.len(), 2);
    assert!(state.map().volume(A).is_none());
}

#[test]
fn a_volume_in_use_is_not_put_into_the_trash() {
    let mut state = state();
    done(&mut state, attach(A));
    let held = "volume \"a\" is attached by guest on node alpha; stop it or wait until it closes \
                the volume";
    refused(&mut state, trash(A), RefusalKind::Busy, held);
}

#[test]
fn a_locked_snapshot_outlives_all_attempts_until_its_date() {
    let mut state = state();
    done(&mut state, snapshot(A, "t"));
    settle(&mut state, A);
    let lock = |until_unix_s| Command::LockSnapshot { volume: A, tag: "t".into(), until_unix_s };
    done(&mut state, lock(1_700_000_000));
    let until = "2023-11-14 22:13:20 UTC";
    let locked = format!(
        "snapshot \"a@t\" is locked until {until}, and until then nobody can delete it, nor its \
         volume; wait until then"
    );
    let drop = |unix_s| Command::DropSnapshot { volume: A, tag: "t".into(), unix_s };
    let before = 1_699_999_999;
    for command in [
        drop(before),
        Command::DeleteSnapshot { volume: A, tag: "t".into() },
        Command::DeleteVolume { volume: A, with_snapshots: true },
        Command::DropVolume { volume: A, with_snapshots: true, unix_s: before },
        Command::TrashVolume {
            volume: A,
            with_snapshots: true,
            unix_s: before,
            expires_unix_s: before,
        },
    ] {
        refused(&mut state, command, RefusalKind::Busy, &locked);
    }
    let shorter = format!(
        "snapshot \"a@t\" is locked until {until} already, and a lock cannot be made shorter; \
         choose a later date"
    );
    refused(&mut state, lock(0), RefusalKind::Busy, &shorter);
    assert_eq!(done(&mut state, lock(1_700_000_000)), Answer::Done);
    done(&mut state, lock(1_700_000_001));
    refused(&mut state, drop(1_700_000_000), RefusalKind::Busy, &{
        locked.replace("22:13:20", "22:13:21")
    });
    done(&mut state, drop(1_700_000_001));
}

#[test]
fn a_group_snapshot_is_of_all_volumes_or_of_none() {
    let mut state = state();
    let group = |tag: &str| Command::SnapshotGroup { name: "g".into(), tag: tag.into(), unix_s: 9 };
    let none = "there is no group \"g\"; `dog group list` shows what groups there are";
    refused(&mut state, group("t"), RefusalKind::NotFound, none);
    done(&mut state, Command::CreateGroup { name: "g".into(), unix_s: 1 });
    let again = Command::CreateGroup { name: "g".into(), unix_s: 1 };
    let exists = "a group named \"g\" exists already; choose another name";
    refused(&mut state, again, RefusalKind::Exists, exists);
    let empty = "group \"g\" has no volumes; add some first with `dog group add g VOLUME`";
    refused(&mut state, group("t"), RefusalKind::Busy, empty);
    let change = |volumes: &[VolumeId], member| Command::ChangeGroup {
        name: "g".into(),
        volumes: volumes.into(),
        member,
    };
    done(&mut state, change(&[C, A, B, A], true));
    done(&mut state, change(&[C], false));
    assert_eq!(state.map().group("g").expect("known").volumes, [A, B]);

    // One that cannot: none is.
    done(&mut state, snapshot(B, "t"));
    let taken = "volume \"b\" has a snapshot \"t\" already; choose another tag";
    refused(&mut state, group("t"), RefusalKind::Exists, taken);
    settle(&mut state, B);
    let Answer::GroupSnapshotCreated { layers } = done(&mut state, group("u")) else { panic!() };
    assert_eq!(layers, [(A, LayerId(1)), (B, LayerId(4))]);
    let sealing = "the last snapshot of volume \"a\" is still being taken, or its last rollback \
                   being finished; try again a little later";
    refused(&mut state, group("v"), RefusalKind::Busy, sealing);
    settle(&mut state, A);
    settle(&mut state, B);
    let taken = "group \"g\" has a snapshot \"u\" already; choose another tag";
    refused(&mut state, group("u"), RefusalKind::Exists, taken);

    // Back to it: all of them, or none.
    let back = Command::RollbackGroup { name: "g".into(), tag: "u".into() };
    let Answer::Attached { generation } = done(&mut state, attach(B)) else { panic!() };
    let held = "volume \"b\" is attached by guest on node alpha; stop it or wait until it closes \
                the volume";
    refused(&mut state, back.clone(), RefusalKind::Busy, held);
    done(&mut state, Command::Detach { volume: B, generation });
    let Answer::Dropped(gone) = done(&mut state, back.clone()) else { panic!() };
    assert_eq!(gone.len(), 2, "the heads that were left");
    settle(&mut state, A);
    settle(&mut state, B);
    done(&mut state, Command::DropSnapshot { volume: A, tag: "u".into(), unix_s: 0 });
    let incomplete = "some of the snapshots of \"g@u\" were deleted, so the group cannot go back \
                      to that moment; roll back single volumes with `dog volume rollback VOLUME@u`";
    refused(&mut state, back, RefusalKind::Busy, incomplete);
    let drop = Command::DropGroupSnapshot { name: "g".into(), tag: "u".into(), unix_s: 0 };
    done(&mut state, drop.clone());
    let none = "group \"g\" has no snapshot \"u\"; see what it has with `dog group info g`";
    refused(&mut state, drop, RefusalKind::NotFound, none);
    assert!(state.map().volume(B).expect("known").snapshot("t").is_some());
}

#[test]
fn a_group_forgets_what_is_deleted() {
    let mut state = state();
    done(&mut state, Command::CreateGroup { name: "g".into(), unix_s: 1 });
    let (name, volumes, member) = ("g".into(), vec![A, B], true);
    done(&mut state, Command::ChangeGroup { name, volumes, member });
    let (name, tag) = ("g".into(), "t".into());
    done(&mut state, Command::SnapshotGroup { name, tag, unix_s: 9 });
    settle(&mut state, A);
    settle(&mut state, B);
    done(&mut state, trash(A));
    let members = |state: &State| {
        let map = state.map();
        let group = map.group("g").expect("known");
        let snapshots = group.snapshots.iter().map(|snapshot| snapshot.members.len());
        (group.volumes.len(), snapshots.collect::<Vec<_>>())
    };
    assert_eq!(members(&state), (1, vec![2]));
    done(&mut state, Command::Purge { volume: A });
    assert_eq!(members(&state), (1, vec![1]));
    done(&mut state, Command::DropVolume { volume: B, with_snapshots: true, unix_s: 0 });
    assert_eq!(members(&state), (0, vec![]));
    done(&mut state, Command::DeleteGroup { name: "g".into() });
    assert_eq!(state.map().groups().count(), 0);
}

/// Of volumes `a` and `b`, with snapshot `t` being taken.
fn taking() -> State {
    let mut state = state();
    done(&mut state, Command::CreateGroup { name: "g".into(), unix_s: 1 });
    let (name, volumes, member) = ("g".into(), vec![A, B], true);
    done(&mut state, Command::ChangeGroup { name, volumes, member });
    let (name, tag) = ("g".into(), "t".into());
    done(&mut state, Command::SnapshotGroup { name, tag, unix_s: 9 });
    state
}

fn stage(state: &State) -> GroupStage {
    let map = state.map();
    map.group("g").expect("known").snapshot("t").expect("taken").stage
}

#[test]
fn a_group_snapshot_that_an_end_of_the_node_interrupted_is_never_of_one_moment_again() {
    let rollback = Command::RollbackGroup { name: "g".into(), tag: "t".into() };
    let release = Command::ReleaseNode { node: NODE };
    let mut state = taking();
    assert_eq!(stage(&state), GroupStage::Taking);
    settle(&mut state, A);
    assert_eq!(stage(&state), GroupStage::Taking);
    done(&mut state, release.clone());
    assert_eq!(stage(&state), GroupStage::Torn);
    settle(&mut state, B);
    assert_eq!(stage(&state), GroupStage::Torn);
    let torn = "the node ended while \"g@t\" was being taken, so its volumes need not be of one \
                moment; delete it with `dog group delete g@t --yes`, or roll back single volumes \
                with `dog volume rollback VOLUME@t`";
    refused(&mut state, rollback.clone(), RefusalKind::Busy, torn);

    // One that is whole stays so, also while it is rolled back to.
    let mut state = taking();
    settle(&mut state, A);
    settle(&mut state, B);
    assert_eq!(stage(&state), GroupStage::Whole);
    done(&mut state, rollback);
    assert!(state.map().sealing(state.map().volume(A).expect("known")).is_some());
    done(&mut state, release);
    assert_eq!(stage(&state), GroupStage::Whole);
    settle(&mut state, A);
    settle(&mut state, B);
    // It can be deleted with one of its volumes in the trash.
    done(&mut state, trash(A));
    done(&mut state, Command::DropGroupSnapshot { name: "g".into(), tag: "t".into(), unix_s: 0 });
    assert!(state.map().volume(A).expect("in the trash").snapshots.is_empty());
}

#[test]
fn a_flattening_that_was_called_off_does_not_end_behind_the_sessions_back() {
    let mut state = state();
    let Answer::VolumeCreated { volume } = done(
        &mut state,
        Command::CreateVolumeFrom {
            name: "x".into(),
            bytes: 8192,
            address: "nbd://h/e".into(),
            source_bytes: 8192,
            unix_s: 1,
        },
    ) else {
        panic!()
    };
    let Answer::Attached { generation } = done(&mut state, attach(volume)) else { panic!() };
    done(&mut state, Command::SetFlatten { volume, wanted: false });
    let flattened = Command::Flattened { volume, generation };
    assert_eq!(done(&mut state, flattened), Answer::Dropped(Vec::new()));
    assert_eq!(state.map().sources().count(), 1);
}

#[test]
fn each_slot_of_a_schedule_has_one_snapshot() {
    let mut state = state();
    let set = |every_s, keep| Command::SetSchedule {
        volume: A,
        schedule: "hourly".into(),
        every_s,
        keep,
        unix_s: 7250,
    };
    for (every_s, keep, sentence) in [
        (59, 1, "snapshots cannot be taken every 59 s; choose one minute to 366 days"),
        (3600, 0, "a schedule cannot keep 0 snapshots; choose 1 to 10000"),
    ] {
        refused(&mut state, set(every_s, keep), RefusalKind::Invalid, sentence);
    }
    done(&mut state, set(3600, 2));
    let schedule = |state: &State| {
        let map = state.map();
        map.volume(A).expect("known").schedule("hourly").expect("set").clone()
    };
    assert_eq!((schedule(&state).last_slot, schedule(&state).due_unix_s()), (2, 10_800));
    let take = |slot, tag: &str| Command::ScheduledSnapshot {
        volume: A,
        schedule: "hourly".into(),
        slot,
        tag: tag.into(),
        unix_s: slot.saturating_mul(3600),
    };
    let taken = "schedule \"hourly\" of volume \"a\" has its snapshot of that time already; wait \
                 for the next one";
    refused(&mut state, take(2, "h2"), RefusalKind::Exists, taken);
    done(&mut state, take(3, "h3"));
    settle(&mut state, A);
    refused(&mut state, take(3, "h3b"), RefusalKind::Exists, taken);
    refused(&mut state, take(u64::MAX, "x"), RefusalKind::Exists, taken);
    done(&mut state, take(9, "h9"));
    let map = state.map();
    let snapshots = &map.volume(A).expect("known").snapshots;
    assert!(snapshots.iter().all(|snapshot| snapshot.schedule.as_deref() == Some("hourly")));
    // Another number to keep goes on with the slots; another interval begins anew.
    done(&mut state, set(3600, 5));
    assert_eq!((schedule(&state).last_slot, schedule(&state).keep), (9, 5));
    done(&mut state, set(60, 5));
    assert_eq!(schedule(&state).last_slot, 120);
    done(&mut state, Command::RemoveSchedule { volume: A, schedule: "hourly".into() });
    let unknown = "volume \"a\" has no schedule \"hourly\"; `dog schedule list a` shows those it \
                   has";
    refused(&mut state, take(999, "x"), RefusalKind::NotFound, unknown);
    assert_eq!(state.map().volume(A).expect("known").snapshots.len(), 2);
}

#[test]
fn a_source_is_there_as_long_as_something_shows_it() {
    let mut state = state();
    let from = |name: &str, address: &str| Command::CreateVolumeFrom {
        name: name.into(),
        bytes: 8192,
        address: address.into(),
        source_bytes: 5000,
        unix_s: 1,
    };
    let bad = "\"\" cannot be the address of a source; give an NBD URI or the path of a file, at \
               most 1024 printable characters";
    refused(&mut state, from("x", ""), RefusalKind::Invalid, bad);
    let Answer::VolumeCreated { volume } = done(&mut state, from("x", "nbd://h/e")) else {
        panic!()
    };
    let map = state.map();
    let known = map.volume(volume).expect("created");
    assert!(known.flattening);
    let origin = map.origin(known.head).expect("it shows the source");
    assert_eq!(origin.bytes, 5000);
    assert_eq!(map.source(origin.layer).expect("a source").address, "nbd://h/e");
    // A snapshot, and a clone of it, show it too: it stays until none does.
    done(&mut state, snapshot(volume, "t"));
    settle(&mut state, volume);
    let (tag, name) = ("t".into(), "y".into());
    done(&mut state, Command::CloneSnapshot { volume, tag, name, unix_s: 0 });
    done(&mut state, attach(volume));
    let generation = state.map().volume(volume).expect("known").generation;
    assert_eq!(
        done(&mut state, Command::Flattened { volume, generation }),
        Answer::Dropped(Vec::new())
    );
    assert_eq!(state.map().sources().count(), 1);
    done(&mut state, Command::Detach { volume, generation });
    done(&mut state, Command::DropVolume { volume, with_snapshots: true, unix_s: 0 });
    assert_eq!(state.map().sources().count(), 1, "the clone shows it");
    let clone = VolumeId(volume.0 + 1);
    done(&mut state, Command::DropVolume { volume: clone, with_snapshots: true, unix_s: 0 });
    assert_eq!(state.map().sources().count(), 0);
    assert_eq!(state.map().layers().count(), 3);
    // Flattened with nothing else that shows it, it goes at once.
    let Answer::VolumeCreated { volume } = done(&mut state, from("z", "/img")) else { panic!() };
    done(&mut state, attach(volume));
    let flattened = Command::Flattened { volume, generation: Generation(1) };
    let Answer::Dropped(gone) = done(&mut state, flattened) else { panic!() };
    assert_eq!(gone.len(), 1);
    assert_eq!(state.map().sources().count(), 0);
}

/// Bytes as a version before wrote them; see `snapshots_and_commands_keep_their_bytes` for what is
/// in them.
fn of_version(bytes: &str) -> State {
    let digits: Vec<u8> =
        bytes.bytes().map(|c| (c as char).to_digit(16).expect("hex") as u8).collect();
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    State::decode(&bytes).expect("it is read")
}

#[test]
fn snapshots_of_earlier_versions_are_read() {
    for bytes in [
        "0115f7dc54fddf8d8506014d0202010205616c706861010302040c0180200101030400010103766d31802001\
         0100010102011370726f636573732034373131202871656d7529000501802080406300010101000001",
        "02d92a915a35925aec06014d0202010205616c706861010302040c01802001010304\
         00010103766d318020010100010102011370726f636573732034373131202871656d75290005018020804063\
         0000000101010000010000",
        "0395b776f61911b03b06014d0202010205616c70686100000103020400000c01030180\
         200101000000010103766d318020010100010102011370726f636573732034373131202871656d7529000501\
         80208040630000000101010000010000010103030201",
    ] {
        let state = of_version(bytes);
        let map = state.map();
        let volume = map.volume_named("vm1").expect("it is in it");
        assert_eq!((volume.bytes, volume.trash, volume.schedules.len()), (4096, None, 0));
        assert_eq!(volume.attachments.len(), 1);
        let disk = map.disks().next().expect("it is in it");
        assert_eq!((disk.bytes, disk.state), (0, DiskState::In));
        let node = map.node(disk.node).expect("it is in it");
        assert_eq!((&*node.name, &*node.zone, node.state), ("alpha", "", NodeState::In));
        assert_eq!(map.tables().collect::<Vec<u8>>(), [3]);
        let member = Member { disk: disk.id, incarnation: disk.incarnation };
        assert_eq!(map.configuration_of(volume.lineage, 0).current, [member]);
        let kept = Redundancy { copies: 3, wanted: 3, min_copies: 2, had: 1 };
        assert_eq!(map.redundancy(volume.lineage), Some(&kept));
        let again = state.encode();
        assert_eq!(again[0], 4);
        assert_eq!(state.map().tokens().count(), 0);
        assert_eq!(State::decode(&again), Ok(state));
    }
}

#[test]
fn which_volumes_changed_is_told_without_looking_into_the_others() {
    let mut state = state();
    let changed = |state: &mut State, command: Command| {
        let before = state.map();
        done(state, command);
        (state.map().changed_volumes(&before), before.changed_volumes(&state.map()))
    };
    let both = |ids: &[VolumeId]| (ids.to_vec(), ids.to_vec());
    let create = Command::CreateVolume { name: "d".into(), bytes: 8192, unix_s: 0 };
    assert_eq!(changed(&mut state, create), both(&[VolumeId(4)]));
    assert_eq!(changed(&mut state, snapshot(B, "t")), both(&[B]));
    assert_eq!(changed(&mut state, trash(A)), both(&[A]));
    assert_eq!(changed(&mut state, Command::Purge { volume: A }), both(&[A]));
    let group = Command::CreateGroup { name: "g".into(), unix_s: 0 };
    assert_eq!(changed(&mut state, group), both(&[]));
    let before = state.map();
    let drop = Command::DropVolume { volume: C, with_snapshots: false, unix_s: 0 };
    done(&mut state, drop);
    settle(&mut state, B);
    assert_eq!(state.map().changed_volumes(&before), [B, C]);
    let all = [B, C, VolumeId(4)];
    assert_eq!(before.changed_volumes(&State::default().map()), all);
}

/// A clone of a clone of a clone of `a`, of which the first shows one block less; their snapshots
/// are `t`. The volumes, and the layers below the last one, nearest first.
fn chain(state: &mut State) -> ([VolumeId; 3], [LayerId; 3]) {
    let (mut below, mut volumes, mut layers) = (A, [VolumeId(0); 3], [LayerId(0); 3]);
    for (place, name) in ["x", "y", "z"].into_iter().enumerate() {
        if name == "y" {
            done(state, Command::ResizeVolume { volume: below, bytes: 4096, allow_shrink: true });
            done(state, Command::ResizeVolume { volume: below, bytes: 8192, allow_shrink: true });
            let Answer::Attached { generation } = done(state, attach(below)) else { panic!() };
            let discarded = state.map().volume(below).expect("known").pending_discard;
            let discarded = discarded.expect("it was made smaller");
            done(state, Command::ShrinkDone { volume: below, generation, discarded });
            done(state, Command::Detach { volume: below, generation });
        }
        layers[2 - place] = state.map().volume(below).expect("known").head;
        done(state, snapshot(below, "t"));
        settle(state, below);
        let (tag, name) = ("t".into(), name.into());
        let clone = Command::CloneSnapshot { volume: below, tag, name, unix_s: 0 };
        let Answer::VolumeCreated { volume } = done(state, clone) else { panic!() };
        (below, volumes[place]) = (volume, volume);
    }
    (volumes, layers)
}

#[test]
fn a_shortened_volume_shows_no_more_than_before_and_what_it_needs_no_more_goes() {
    let mut state = state();
    let ([x, y, z], layers) = chain(&mut state);
    let head = state.map().volume(z).expect("known").head;
    let shown = |state: &State| -> Vec<(LayerId, u64)> {
        state.map().chain(head).iter().map(|origin| (origin.layer, origin.bytes)).collect()
    };
    assert_eq!(shown(&state), [(layers[0], 8192), (layers[1], 8192), (layers[2], 4096)]);
    done(&mut state, Command::DropVolume { volume: x, with_snapshots: true, unix_s: 0 });
    done(&mut state, Command::DropVolume { volume: y, with_snapshots: true, unix_s: 0 });
    let Answer::Attached { generation } = done(&mut state, attach(z)) else { panic!() };
    let shortened = |parent| Command::Shortened { volume: z, generation, parent };
    let gone = |layer: LayerId| Answer::Dropped(vec![(proto::LineageId(layer.0), layer)]);
    assert_eq!(done(&mut state, shortened(layers[1])), gone(layers[0]));
    assert_eq!(shown(&state), [(layers[1], 8192), (layers[2], 4096)]);
    assert_eq!(done(&mut state, shortened(layers[2])), gone(layers[1]));
    assert_eq!(shown(&state), [(layers[2], 4096)]);
    let before = state.clone();
    assert_eq!(done(&mut state, shortened(layers[2])), Answer::Dropped(Vec::new()));
    assert_eq!(state, before, "it was done already");
    // What it lies on stays for it.
    done(&mut state, Command::DropVolume { volume: A, with_snapshots: true, unix_s: 0 });
    assert_eq!(shown(&state), [(layers[2], 4096)]);
}

#[test]
fn only_its_writer_shortens_a_volume_and_only_onto_what_shows_through() {
    let mut state = state();
    let ([x, y, z], layers) = chain(&mut state);
    let shortened = |volume, generation, parent| Command::Shortened { volume, generation, parent };
    let attached = |state: &mut State, volume| {
        let Answer::Attached { generation } = done(state, attach(volume)) else { panic!() };
        generation
    };
    let over = "generation 1 of volume \"z\" does not write any more; attach the volume anew";
    let command = shortened(z, Generation(1), layers[1]);
    refused(&mut state, command, RefusalKind::Busy, over);
    let generation = attached(&mut state, z);
    let not_below = |name: &str, layer: LayerId| {
        format!(
            "layer {layer} does not show through volume \"{name}\", so that cannot lie on it; \
             report this bug"
        )
    };
    let heads = [A, x, y, z].map(|volume| state.map().volume(volume).expect("known").head);
    for layer in heads.into_iter().chain([LayerId(0), LayerId(99)]) {
        let command = shortened(z, generation, layer);
        refused(&mut state, command, RefusalKind::Invalid, &not_below("z", layer));
    }
    // What is reported when something came in between changes nothing.
    let unchanged = |state: &mut State, command: Command| {
        let before = state.clone();
        assert_eq!(done(state, command), Answer::Dropped(Vec::new()));
        assert_eq!(*state, before);
    };
    done(&mut state, Command::SetFlatten { volume: z, wanted: true });
    unchanged(&mut state, shortened(z, generation, layers[2]));
    done(&mut state, Command::SetFlatten { volume: z, wanted: false });
    done(&mut state, snapshot(z, "u"));
    unchanged(&mut state, shortened(z, generation, layers[2]));
    // `y` has had a snapshot all along, and `a` is no clone.
    let generation = attached(&mut state, y);
    unchanged(&mut state, shortened(y, generation, layers[2]));
    let generation = attached(&mut state, B);
    let command = shortened(B, generation, layers[2]);
    refused(&mut state, command, RefusalKind::Invalid, &not_below("b", layers[2]));
    done(&mut state, trash(x));
    let command = shortened(x, Generation(1), layers[2]);
    let in_trash =
        format!("volume \"x\" is in the trash; take it out first with `dog trash undelete {x}`");
    refused(&mut state, command, RefusalKind::Busy, &in_trash);
}

#[test]
fn a_volume_is_shortened_onto_a_source_as_onto_any_other() {
    let mut state = state();
    let from = Command::CreateVolumeFrom {
        name: "from".into(),
        bytes: 8192,
        address: "nbd://h/e".into(),
        source_bytes: 5000,
        unix_s: 1,
    };
    let Answer::VolumeCreated { volume } = done(&mut state, from) else { panic!() };
    done(&mut state, Command::SetFlatten { volume, wanted: false });
    done(&mut state, snapshot(volume, "t"));
    settle(&mut state, volume);
    let clone = Command::CloneSnapshot { volume, tag: "t".into(), name: "n".into(), unix_s: 0 };
    let Answer::VolumeCreated { volume } = done(&mut state, clone) else { panic!() };
    let Answer::Attached { generation } = done(&mut state, attach(volume)) else { panic!() };
    let head = state.map().volume(volume).expect("known").head;
    let (parent, _) = state.map().sources().next().expect("one");
    done(&mut state, Command::Shortened { volume, generation, parent });
    let origin = state.map().origin(head).expect("it is a clone");
    assert_eq!((origin.layer, origin.bytes), (parent, 5000));
}
