//! What the state makes of a recovery, and of lost nodes that are taken out.

use crate::*;
use proto::limits::{RECOVERIES_MAX, RECOVERY_JUMP};
use proto::{
    ClusterId, ConfigurationNumber, DiskId, Incarnation, LayerId, LineageId, NodeId, PartitionId,
    VolumeId,
};

const P0: PartitionId = PartitionId(0);

/// Disk n is attached to node n + 10.
fn node(disk: u128) -> NodeId {
    NodeId(disk + 10)
}

#[track_caller]
fn done(state: &mut State, command: Command) -> Answer {
    assert_eq!(Command::decode(&command.encode()).as_ref(), Ok(&command));
    let answer = state.apply(&command).unwrap_or_else(|refusal| panic!("{refusal}"));
    state.check();
    assert_eq!(State::decode(&state.encode()).as_ref(), Ok(&*state));
    answer
}

/// Four partitions on three disks; a volume attached on node 12, another one that is to be deleted.
fn state() -> State {
    let mut state = State::default();
    let cluster = ClusterId(1);
    done(&mut state, Command::CreateCluster { cluster, partition_bits: 2, unix_s: 0 });
    for disk in 1..4 {
        let id = DiskId(disk);
        done(&mut state, Command::AddNode { node: node(disk), name: format!("n{disk}") });
        done(&mut state, Command::AddDisk { disk: id, node: node(disk), bytes: 1 << 30 });
        let incarnation = Incarnation(1);
        done(&mut state, Command::OpenDisk { disk: id, node: node(disk), incarnation });
    }
    for name in ["v", "w"] {
        done(&mut state, Command::CreateVolume { name: name.into(), bytes: 4096, unix_s: 0 });
    }
    let members = |disks: &[u128]| -> Vec<DiskId> { disks.iter().copied().map(DiskId).collect() };
    for (partition, disks) in [(0, &[1, 2, 3][..]), (1, &[1, 2]), (2, &[3, 1])] {
        change(&mut state, partition, &members(disks), true);
    }
    let (volume, holder) = (VolumeId(1), "client".to_string());
    let attach = Command::Attach { volume, node: node(2), holder, read_only: false, unix_s: 0 };
    done(&mut state, attach);
    state
}

/// Begins an attempt at a partition, and ends it.
fn change(state: &mut State, partition: u32, wanted: &[DiskId], ends: bool) {
    let partition = PartitionId(partition);
    let number = state.map().configuration(3, partition).number;
    let changes = vec![Change { wanted: wanted.to_vec(), partitions: vec![(partition, number)] }];
    let begin = Command::BeginAttempt { copies: 3, bits: 2, owner: node(1), changes };
    let Answer::AttemptBegun { attempt } = done(state, begin) else { panic!("it is begun") };
    let opening = |disk: &DiskId| Member { disk: *disk, incarnation: Incarnation(1) };
    if ends {
        let openings = wanted.iter().map(opening).collect();
        done(state, Command::Activate { attempt, openings });
    }
}

fn recover(state: &mut State, lost: &[u128]) {
    let lost = lost.iter().map(|disk| node(*disk)).collect();
    done(state, Command::Recover { lost, unix_s: 7 });
}

#[test]
fn every_number_is_beyond_what_was_lost() {
    let mut state = state();
    change(&mut state, 3, &[DiskId(1), DiskId(2)], false);
    let before = state.map();
    recover(&mut state, &[1, 2]);
    let map = state.map();
    assert!(map.epoch().0 > before.epoch().0 + RECOVERY_JUMP);
    assert_eq!(map.attempts().len(), 0);
    for partition in (0..4).map(PartitionId) {
        let (old, new) = (before.configuration(3, partition), map.configuration(3, partition));
        assert_eq!(new.number, ConfigurationNumber(old.number.0 + RECOVERY_JUMP));
        assert_eq!((&new.current, new.recovering.len()), (&old.current, 0));
        assert!(new.may_be_refused, "it is to be agreed anew");
    }
    assert!(map.is_lost(node(1)) && map.is_lost(node(2)) && !map.is_lost(node(3)));
    let volume = map.volume(VolumeId(1)).expect("it is there");
    assert!(volume.attachments.is_empty(), "its node is lost");
    let (volume, holder) = (VolumeId(1), "other".to_string());
    let attach = Command::Attach { volume, node: node(3), holder, read_only: false, unix_s: 0 };
    let Answer::Attached { generation } = done(&mut state, attach) else { panic!("attached") };
    assert!(generation.0 > RECOVERY_JUMP);
    let create = Command::CreateVolume { name: "x".into(), bytes: 4096, unix_s: 0 };
    let Answer::VolumeCreated { volume } = done(&mut state, create) else { panic!("created") };
    assert!(volume.0 > RECOVERY_JUMP);
    assert!(state.map().volume(volume).expect("created").head.0 > RECOVERY_JUMP);
    change(&mut state, 0, &[DiskId(3)], false);
    assert!(state.map().attempts().all(|attempt| attempt.number > RECOVERY_JUMP));
}

#[test]
fn layers_of_what_was_lost_are_neither_dropped_nor_a_sign_of_an_old_map() {
    let mut state = state();
    done(&mut state, Command::DeleteVolume { volume: VolumeId(2), with_snapshots: false });
    let fate = |state: &State, layer: u64| {
        let found = [(LineageId(layer), LayerId(layer))];
        state.map().layer_fates(&found)[0].2
    };
    let last = 2;
    assert_eq!(fate(&state, last + 1), LayerFate::NeverIssued);
    recover(&mut state, &[1, 2]);
    assert_eq!(fate(&state, 1), LayerFate::Live);
    assert_eq!(fate(&state, last), LayerFate::Deleted, "that was known");
    assert_eq!(fate(&state, last + 1), LayerFate::Unknown);
    assert_eq!(fate(&state, last + RECOVERY_JUMP), LayerFate::Unknown);
    assert_eq!(fate(&state, last + RECOVERY_JUMP + 1), LayerFate::NeverIssued);
    // What is deleted afterwards is deleted.
    let create = Command::CreateVolume { name: "x".into(), bytes: 4096, unix_s: 0 };
    let Answer::VolumeCreated { volume } = done(&mut state, create) else { panic!("created") };
    done(&mut state, Command::DeleteVolume { volume, with_snapshots: false });
    assert_eq!(fate(&state, last + RECOVERY_JUMP + 1), LayerFate::Deleted);
    recover(&mut state, &[]);
    assert_eq!(fate(&state, last + 1), LayerFate::Unknown);
    assert_eq!(fate(&state, last + RECOVERY_JUMP + 1), LayerFate::Deleted);
    assert_eq!(fate(&state, last + RECOVERY_JUMP + 2), LayerFate::Unknown);
    for _ in 2..RECOVERIES_MAX {
        recover(&mut state, &[]);
    }
    let again = Command::Recover { lost: Vec::new(), unix_s: 0 };
    assert_eq!(state.apply(&again), Err(Refusal::TooManyRecoveries));
}

#[test]
fn partitions_go_on_without_lost_disks_where_another_is_left() {
    let mut state = state();
    let remove = |node: NodeId| Command::RemoveLostNode { node };
    let refusal = state.apply(&remove(node(2))).unwrap_err();
    assert_eq!(refusal, Refusal::NodeNotLost { name: "n2".into() });
    recover(&mut state, &[1, 2]);
    let refusal = state.apply(&Command::DrainNode { node: node(2), wanted: false }).unwrap_err();
    assert_eq!(refusal, Refusal::NodeIsLost { name: "n2".into() }, "it stays lost");
    assert!(state.map().sites(3).iter().all(|site| site.disk == DiskId(3)));

    // Partitions 1 and 3 lie on the two alone.
    let before = state.map().configuration(3, P0).number.0;
    done(&mut state, remove(node(2)));
    let map = state.map();
    assert!(map.disk(DiskId(2)).is_none() && map.node(node(2)).is_none());
    let held = map.configuration(3, P0);
    assert_eq!((held.number.0, held.may_be_refused), (before + 1, true));
    let disks: Vec<DiskId> = held.current.iter().map(|member| member.disk).collect();
    assert_eq!(disks, [DiskId(1), DiskId(3)]);
    let refusal = state.apply(&remove(node(1))).unwrap_err();
    assert_eq!(refusal, Refusal::OnlyOnLostNode { name: "n1".into(), count: 2 });

    // Once nothing lies there any more nothing is lost with it.
    for volume in [1, 2].map(VolumeId) {
        done(&mut state, Command::DeleteVolume { volume, with_snapshots: false });
    }
    done(&mut state, remove(node(1)));
    let map = state.map();
    assert_eq!((map.disks().len(), map.nodes().len()), (1, 1));
    let alone = Member { disk: DiskId(3), incarnation: Incarnation(1) };
    assert!(map.configurations().all(|held| held.current == [alone]));
}

/// Else nobody could ever take it out: it runs, and is refused for its era.
#[test]
fn a_node_that_was_left_behind_is_given_up_later_and_only_after_a_recovery() {
    let mut state = state();
    let give_up = Command::GiveUpNode { node: node(2) };
    let refusal = state.apply(&give_up).unwrap_err();
    assert_eq!(refusal, Refusal::NodeNotLost { name: "n2".into() });
    recover(&mut state, &[1]);
    assert!(!state.map().is_lost(node(2)));
    assert_eq!(state.map().volume(VolumeId(1)).expect("there").attachments.len(), 1);
    done(&mut state, give_up.clone());
    assert!(state.map().is_lost(node(2)));
    assert!(state.map().volume(VolumeId(1)).expect("there").attachments.is_empty());
    let epoch = state.map().epoch();
    done(&mut state, give_up);
    assert_eq!(state.map().epoch(), epoch, "done already is done");
    done(&mut state, Command::RemoveLostNode { node: node(2) });
    assert!(state.map().node(node(2)).is_none());
    let refusal = state.apply(&Command::GiveUpNode { node: node(2) }).unwrap_err();
    assert!(matches!(refusal, Refusal::UnknownNode { .. }), "{refusal}");
}
