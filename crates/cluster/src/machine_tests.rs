//! Nodes, zones, disks, copies and members of partitions: table by table.

use crate::*;
use proto::limits::{
    ATTEMPT_DISKS_MAX, ATTEMPTS_MAX, COMMAND_BYTES_MAX, PARTITIONS_PER_COMMAND_MAX,
};
use proto::{
    ClusterId, ConfigurationNumber, DiskId, Generation, Incarnation, NodeId, PartitionId, VolumeId,
};

const VOLUME: VolumeId = VolumeId(1);
const P0: PartitionId = PartitionId(0);

/// Disk n is attached to node n + 10.
fn node(disk: u128) -> NodeId {
    NodeId(disk + 10)
}

#[track_caller]
fn done(state: &mut State, command: Command) -> Answer {
    assert_eq!(Command::decode(&command.encode()).as_ref(), Ok(&command));
    let before = state.clone();
    let answer = state.apply(&command).unwrap_or_else(|refusal| panic!("{refusal}"));
    state.check();
    assert_eq!(State::decode(&state.encode()).as_ref(), Ok(&*state));
    let grown = state.map().epoch().0 - before.map().epoch().0;
    assert_eq!(grown, u64::from(*state != before));
    answer
}

#[track_caller]
fn refused(state: &mut State, command: Command, kind: RefusalKind, sentence: &str) {
    let before = state.clone();
    let refusal = state.apply(&command).expect_err("refused");
    assert_eq!((refusal.to_string().as_str(), refusal.kind()), (sentence, kind));
    assert_eq!(*state, before);
}

fn open(disk: u128, incarnation: u64) -> Command {
    let incarnation = Incarnation(incarnation);
    Command::OpenDisk { disk: DiskId(disk), node: node(disk), incarnation }
}

/// Four partitions on disk 1, opened as 1; nodes for disks 1 to 4; a volume, never attached.
fn state() -> State {
    let mut state = State::default();
    let create = Command::CreateCluster { cluster: ClusterId(1), partition_bits: 2, unix_s: 0 };
    done(&mut state, create);
    for disk in 1..5 {
        done(&mut state, Command::AddNode { node: node(disk), name: format!("n{disk}") });
    }
    done(&mut state, open(1, 1));
    done(&mut state, Command::CreateVolume { name: "v".into(), bytes: 4096, unix_s: 0 });
    state
}

/// The same with disks 2 to 4 added and opened as 1, which hold nothing yet.
fn four() -> State {
    let mut state = state();
    for disk in 1..5 {
        add(&mut state, disk);
        if disk > 1 {
            done(&mut state, open(disk, 1));
        }
    }
    state
}

fn add(state: &mut State, disk: u128) {
    done(state, Command::AddDisk { disk: DiskId(disk), node: node(disk), bytes: 1 << 40 });
}

fn member(disk: u128, incarnation: u64) -> Member {
    Member { disk: DiskId(disk), incarnation: Incarnation(incarnation) }
}

fn begin(wanted: &[u128], partitions: &[(u32, u64)]) -> Command {
    let wanted = wanted.iter().map(|&disk| DiskId(disk)).collect();
    let numbered = |&(partition, from)| (PartitionId(partition), ConfigurationNumber(from));
    let partitions = partitions.iter().map(numbered).collect();
    let changes = vec![Change { wanted, partitions }];
    Command::BeginAttempt { copies: 3, bits: 2, owner: node(1), changes }
}

fn activate(attempt: u64, openings: &[Member]) -> Command {
    Command::Activate { attempt, openings: openings.to_vec() }
}

fn give_up(attempt: u64, may_be_refused: bool) -> Command {
    Command::GiveUpAttempt { attempt, may_be_refused }
}

#[track_caller]
fn begun(state: &mut State, command: Command) -> u64 {
    let answer = done(state, command);
    let Answer::AttemptBegun { attempt } = answer else { panic!("{answer:?}") };
    attempt
}

/// Begins an attempt and activates it at once.
#[track_caller]
fn change(state: &mut State, partitions: &[(u32, u64)], openings: &[Member]) {
    let wanted: Vec<u128> = openings.iter().map(|member| member.disk.0).collect();
    let attempt = begun(state, begin(&wanted, partitions));
    done(state, activate(attempt, openings));
}

/// All partitions on disks 1 to 3, in configuration 2.
fn three_copies() -> State {
    let mut state = four();
    let all = [(0, 1), (1, 1), (2, 1), (3, 1)];
    change(&mut state, &all, &[member(1, 1), member(2, 1), member(3, 1)]);
    state
}

fn redundancy(state: &State) -> Redundancy {
    let map = state.map();
    let lineage = map.volume(VOLUME).expect("created").lineage;
    *map.redundancy(lineage).expect("kept")
}

fn part(disk: u128, partition: u32, problem: &str) -> String {
    format!(
        "disk {disk:032x} cannot change its part in partition {partition} because {problem}; learn \
         the present map and try again"
    )
}

fn over(attempt: u64) -> String {
    format!(
        "attempt {attempt} to change who holds some partitions is over, or newer ones have taken \
         its place; learn the present map and begin another if it is still needed"
    )
}

#[test]
fn a_disk_joins_recovers_and_is_activated() {
    let mut state = state();
    let unknown = "disk 00000000000000000000000000000002 is not part of this cluster; add it \
                   first, or see the list of its disks";
    let grow = |number| begin(&[1, 2], &[(0, number), (3, 1)]);
    refused(&mut state, grow(1), RefusalKind::NotFound, unknown);
    add(&mut state, 2);
    let never = "disk 00000000000000000000000000000002 was never opened; start sheep on its node \
                 first";
    refused(&mut state, grow(1), RefusalKind::Busy, never);
    let epoch = state.map().epoch();
    add(&mut state, 2);
    assert_eq!(state.map().epoch(), epoch, "added already");
    done(&mut state, open(2, 7));
    assert_eq!(state.map().configuration(3, P0).current, [member(1, 1)], "it holds nothing yet");
    let first = begun(&mut state, grow(1));
    let held = state.map().configuration(3, P0).clone();
    assert_eq!((held.number.0, held.quorum(), held.attempt), (1, 1, first));
    assert_eq!((&held.recovering[..], held.may_be_refused), (&[member(2, 7)][..], false));
    let attempt = state.map().attempt(first).expect("under way").clone();
    assert_eq!((attempt.number, attempt.copies, attempt.owner), (first, 3, node(1)));
    assert_eq!(attempt.wanted[&P0], [DiskId(1), DiskId(2)]);
    // Opened anew while it recovers: only what it said in this opening counts.
    done(&mut state, open(2, 8));
    let both = [member(1, 1), member(2, 7)];
    let anew = part(2, 0, "it was opened anew meanwhile");
    refused(&mut state, activate(first, &both), RefusalKind::Busy, &anew);
    let silent = part(2, 0, "the attempt wants it and it did not answer");
    refused(&mut state, activate(first, &both[..1]), RefusalKind::Busy, &silent);
    let twice = [member(1, 1), member(2, 8), member(1, 1)];
    let named = part(1, 0, "it is named in two openings");
    refused(&mut state, activate(first, &twice), RefusalKind::Busy, &named);
    let old = "partition 0 has configuration 1 and not 2 any more; learn the present map and try \
               again";
    refused(&mut state, grow(2), RefusalKind::Busy, old);
    let once = part(1, 0, "a partition has a disk once");
    refused(&mut state, begin(&[1, 2, 1], &[(0, 1)]), RefusalKind::Busy, &once);
    // A newer attempt at one of the two: the older one is left with the other.
    let second = begun(&mut state, begin(&[1, 2], &[(0, 1)]));
    assert!(second > first);
    assert_eq!(state.map().configuration(3, P0).recovering, [member(2, 8)]);
    assert!(state.map().configuration(3, P0).may_be_refused, "by whom the first had asked");
    let both = [member(1, 1), member(2, 8)];
    done(&mut state, activate(first, &both));
    assert_eq!(state.map().configuration(3, P0).number.0, 1, "it was the second's");
    assert_eq!(state.map().configuration(3, PartitionId(3)).number.0, 2);
    refused(&mut state, activate(first, &both), RefusalKind::Busy, &over(first));
    let more = [both[0], both[1], member(3, 4)];
    done(&mut state, activate(second, &more));
    let held = state.map().configuration(3, P0).clone();
    assert_eq!((held.number.0, held.quorum(), held.recovering.len()), (2, 2, 0));
    assert_eq!((&held.current[..], held.attempt, held.may_be_refused), (&both[..], 0, false));
    assert_eq!(redundancy(&state).had, 1, "other partitions have one copy");
    let nobody = "there is no partition 4 of volumes with 3 copies; learn the present map and try \
                  again";
    refused(&mut state, begin(&[1, 2], &[(4, 1)]), RefusalKind::NotFound, nobody);
    let on: Vec<(u8, PartitionId)> = state.map().partitions_on(DiskId(2)).collect();
    assert_eq!(on, [(3, P0), (3, PartitionId(3))]);
    // Numbers are never given again.
    assert!(begun(&mut state, begin(&[1, 2], &[(1, 1)])) > second);
}

#[test]
fn an_attempt_that_is_given_up_leaves_a_trace_only_if_somebody_may_refuse() {
    let mut state = three_copies();
    let first = begun(&mut state, begin(&[1, 2, 4], &[(0, 2)]));
    let before = state.map().configuration(3, P0).clone();
    assert_eq!(before.recovering, [member(4, 1)]);
    done(&mut state, give_up(first, false));
    let held = state.map().configuration(3, P0).clone();
    assert_eq!((held.attempt, held.recovering.len(), held.may_be_refused), (0, 0, false));
    refused(&mut state, activate(first, &[]), RefusalKind::Busy, &over(first));
    let epoch = state.map().epoch();
    done(&mut state, give_up(first, true));
    assert_eq!(state.map().epoch(), epoch, "given up already");
    let second = begun(&mut state, begin(&[1, 2, 4], &[(0, 2)]));
    done(&mut state, give_up(second, true));
    assert!(state.map().configuration(3, P0).may_be_refused);
    // And it stays, until something is activated.
    let third = begun(&mut state, begin(&[1, 2, 4], &[(0, 2)]));
    done(&mut state, give_up(third, false));
    assert!(state.map().configuration(3, P0).may_be_refused);
    change(&mut state, &[(0, 2)], &[member(1, 1), member(2, 1), member(3, 1)]);
    assert!(!state.map().configuration(3, P0).may_be_refused);
    assert_eq!(
        state.map().configuration(3, P0).number.0,
        3,
        "the same members, under a new number"
    );
    // Who was to carry it out is gone.
    let fourth = begun(&mut state, begin(&[1, 2, 3], &[(1, 2)]));
    assert_eq!(state.map().attempt(fourth).expect("under way").owner, node(1));
    done(&mut state, Command::AddNode { node: NodeId(99), name: "n99".into() });
    let changes = vec![Change {
        wanted: vec![DiskId(1), DiskId(2)],
        partitions: vec![(PartitionId(2), ConfigurationNumber(2))],
    }];
    let owner = NodeId(99);
    let fifth = begun(&mut state, Command::BeginAttempt { copies: 3, bits: 2, owner, changes });
    done(&mut state, Command::RemoveNode { node: owner });
    assert!(state.map().attempt(fifth).is_none() && state.map().attempt(fourth).is_some());
    assert!(state.map().configuration(3, PartitionId(2)).may_be_refused);
    let nobody = "node 00000000000000000000000000000063 is not part of this cluster; let it join \
                  first";
    let changes = vec![];
    let by_nobody = Command::BeginAttempt { copies: 3, bits: 2, owner, changes };
    refused(&mut state, by_nobody, RefusalKind::NotFound, nobody);
    let nothing = "an attempt to change who holds partitions must name some; name one or more";
    refused(&mut state, begin(&[1, 2], &[]), RefusalKind::Invalid, nothing);
}

#[test]
fn there_are_only_so_many_attempts_at_once() {
    let mut state = State::default();
    let create = Command::CreateCluster { cluster: ClusterId(1), partition_bits: 9, unix_s: 0 };
    done(&mut state, create);
    done(&mut state, Command::AddNode { node: node(1), name: "n1".into() });
    for disk in [1, 2] {
        let (disk, node, bytes) = (DiskId(disk), node(1), 4096);
        done(&mut state, Command::AddDisk { disk, node, bytes });
        done(&mut state, Command::OpenDisk { disk, node, incarnation: Incarnation(1) });
    }
    let begin = |partition: u32| Command::BeginAttempt {
        copies: 3,
        bits: 9,
        owner: node(1),
        changes: vec![Change {
            wanted: vec![DiskId(1), DiskId(2)],
            partitions: vec![(PartitionId(partition), ConfigurationNumber(1))],
        }],
    };
    for partition in 0..ATTEMPTS_MAX as u32 {
        state.apply(&begin(partition)).expect("there is room");
    }
    let many = "256 attempts to change who holds partitions are under way, the most there can be; \
                wait until one is over";
    refused(&mut state, begin(500), RefusalKind::Full, many);
    done(&mut state, begin(0));
    assert_eq!(state.map().attempts().len(), ATTEMPTS_MAX, "one took another's place");
}

#[test]
fn a_disk_opened_anew_among_several_is_current_only_when_that_is_activated() {
    let mut state = three_copies();
    done(&mut state, open(2, 5));
    let held = state.map().configuration(3, P0).clone();
    assert_eq!((held.number.0, &held.current[1]), (2, &member(2, 1)));
    assert!(!state.map().is_present(held.current[1]) && state.map().is_present(member(2, 5)));
    // A step that does without it does not have to wait for it; one that wants it needs its present
    // opening. It is no newcomer: nothing but its opening is listed anew.
    let attempt = begun(&mut state, begin(&[1, 2, 3], &[(0, 2)]));
    assert!(state.map().configuration(3, P0).recovering.is_empty());
    let anew = part(2, 0, "it was opened anew meanwhile");
    let former = [member(1, 1), member(2, 1), member(3, 1)];
    refused(&mut state, activate(attempt, &former), RefusalKind::Busy, &anew);
    change(&mut state, &[(1, 2)], &[member(1, 1), member(3, 1)]);
    // And everything may be opened anew at once.
    done(&mut state, open(1, 6));
    done(&mut state, open(3, 6));
    done(&mut state, activate(attempt, &[member(1, 6), member(2, 5), member(3, 6)]));
    let held = state.map().configuration(3, P0).clone();
    assert_eq!(held.current, [member(1, 6), member(2, 5), member(3, 6)]);
}

#[test]
fn nobody_is_excluded_below_what_volumes_need() {
    let mut state = three_copies();
    assert_eq!(redundancy(&state), Redundancy { copies: 3, wanted: 3, min_copies: 2, had: 3 });
    change(&mut state, &[(0, 2)], &[member(1, 1), member(2, 1)]);
    let few = "that would leave 1 copies, and the volumes there need at least 2; bring disks back \
               or add some, or allow fewer copies (min_copies)";
    refused(&mut state, begin(&[1], &[(0, 3)]), RefusalKind::Busy, few);
    let none = "that would leave 0 copies, and the volumes there need at least 2; bring disks \
                back or add some, or allow fewer copies (min_copies)";
    refused(&mut state, begin(&[], &[(0, 3)]), RefusalKind::Busy, none);
    let many = part(4, 0, "the partition would have more members than copies");
    refused(&mut state, begin(&[1, 2, 3, 4], &[(0, 3)]), RefusalKind::Busy, &many);
    // One copy is enough if that is said, and nothing is not.
    done(&mut state, Command::SetCopies { volume: VOLUME, copies: 3, min_copies: Some(1) });
    let attempt = begun(&mut state, begin(&[1], &[(0, 3)]));
    // It is judged again when it is activated.
    done(&mut state, Command::SetCopies { volume: VOLUME, copies: 3, min_copies: Some(2) });
    refused(&mut state, activate(attempt, &[member(1, 1)]), RefusalKind::Busy, few);
    done(&mut state, Command::SetCopies { volume: VOLUME, copies: 3, min_copies: Some(1) });
    done(&mut state, activate(attempt, &[member(1, 1)]));
    let one = "that would leave 0 copies, and the volumes there need at least 1; bring disks back \
               or add some, or allow fewer copies (min_copies)";
    refused(&mut state, begin(&[], &[(0, 4)]), RefusalKind::Busy, one);
    // The strictest of the volumes counts, and only what it ever had.
    done(&mut state, Command::CreateVolume { name: "w".into(), bytes: 4096, unix_s: 0 });
    assert_eq!(state.map().floor(3), 1, "the new one never had more than one");
    change(&mut state, &[(1, 2)], &[member(1, 1), member(3, 1)]);
    assert_eq!(state.map().configuration(3, PartitionId(1)).current.len(), 2);
}

#[test]
fn a_disk_that_is_needed_is_not_removed_and_one_that_is_gone_is_forgotten_when_nothing_lists_it() {
    let mut state = three_copies();
    let attempt = begun(&mut state, begin(&[1, 2, 4], &[(0, 2), (1, 2)]));
    let remove = |disk| Command::RemoveDisk { disk: DiskId(disk) };
    done(&mut state, remove(4));
    assert!(state.map().disk(DiskId(4)).is_none(), "it was only recovering");
    assert!(state.map().configurations().all(|held| held.recovering.is_empty()));
    assert!(state.map().attempt(attempt).is_none(), "it can come to nothing any more");
    assert!(state.map().configuration(3, P0).may_be_refused);
    done(&mut state, remove(3));
    assert_eq!(state.map().disk(DiskId(3)).expect("listed").state, DiskState::Gone);
    assert_eq!(done(&mut state, remove(3)), Answer::Done);
    let gone = "disk 00000000000000000000000000000003 was removed from this cluster, and what it \
                has does not count any more; wait until the cluster has forgotten it, and add it \
                as a new disk";
    for command in [
        open(3, 9),
        begin(&[1, 2, 3], &[(0, 2)]),
        Command::SetWeight { disk: DiskId(3), bytes: 1 },
        Command::DrainDisk { disk: DiskId(3), wanted: true },
        Command::AddDisk { disk: DiskId(3), node: node(3), bytes: 1 },
    ] {
        refused(&mut state, command, RefusalKind::Busy, gone);
    }
    // Of three that made majorities of two, two are left; with one, a write that the other and the
    // removed one acknowledged would be lost.
    let needed = "without disk 00000000000000000000000000000002 too few copies of 4 partitions are \
                  left to be sure of all that was written; drain it with `dog disk drain \
                  00000000000000000000000000000002` and wait until nothing lies on it, or bring \
                  other disks back first";
    refused(&mut state, remove(2), RefusalKind::Busy, needed);
    for partition in 0..4 {
        assert!(state.map().disk(DiskId(3)).is_some());
        change(&mut state, &[(partition, 2)], &[member(1, 1), member(2, 1)]);
    }
    assert!(state.map().disk(DiskId(3)).is_none());
    // Now all writes are on both, and there is another for the second copy.
    add(&mut state, 4);
    done(&mut state, open(4, 1));
    done(&mut state, remove(2));
    let sole =
        needed.replace("00000000000000000000000000000002", "00000000000000000000000000000001");
    refused(&mut state, remove(1), RefusalKind::Busy, &sole);
    let has = "node n2 has 1 of the cluster's disks; drain it with `dog node drain n2`, wait until \
               nothing lies on them, and take each out with `dog disk remove`";
    let remove_node = |disk| Command::RemoveNode { node: node(disk) };
    refused(&mut state, remove_node(2), RefusalKind::Busy, has);
    done(&mut state, remove_node(3));
    assert!(state.map().node(node(3)).is_none());
    let unknown = "node 0000000000000000000000000000000d is not part of this cluster; let it join \
                   first";
    refused(&mut state, remove_node(3), RefusalKind::NotFound, unknown);
    done(&mut state, remove(4));
    let (holder, read_only) = ("guest".into(), false);
    let attach = Command::Attach { volume: VOLUME, node: node(4), holder, read_only, unix_s: 0 };
    done(&mut state, attach);
    let uses = "node n4 has 1 volumes or snapshots attached; stop their clients there, or end that \
                with `dog volume detach` if the node does not come back";
    refused(&mut state, remove_node(4), RefusalKind::Busy, uses);
}

/// What both of two disks held waited for ever when one was taken out: two copies are asked for.
#[test]
fn a_disk_stays_while_volumes_ask_for_as_many_as_there_are() {
    let mut state = three_copies();
    let remove = |disk| Command::RemoveDisk { disk: DiskId(disk) };
    let drain = |disk, wanted| Command::DrainDisk { disk: DiskId(disk), wanted };
    let all = [(0, 2), (1, 2), (2, 2), (3, 2)];
    change(&mut state, &all, &[member(1, 1), member(2, 1)]);
    done(&mut state, drain(4, true));
    done(&mut state, remove(3));
    // The fourth is there, but gets nothing new.
    let short = "without disk 00000000000000000000000000000002, 1 disk is left that could hold 4 \
                 of the partitions on it, whose volumes ask for 2 copies at least: what lies there \
                 would wait until there are more; let another machine with a disk join first (`dog \
                 cluster token`), or bring back what is away";
    let before = state.clone();
    refused(&mut state, remove(2), RefusalKind::Busy, short);
    let nowhere = "what lies there has nowhere to go: 1 disk is left beside those that are \
                   drained, and volumes ask for 2 copies at least; let another machine with a disk \
                   join first (`dog cluster token`), or end another drain";
    let drain_node = |disk, wanted| Command::DrainNode { node: node(disk), wanted };
    for command in [drain(2, true), drain_node(2, true)] {
        refused(&mut state, command, RefusalKind::Busy, nowhere);
    }
    assert_eq!(state, before, "nothing changed");
    // Whoever sees that one is away judges by the others alone.
    done(&mut state, drain(4, false));
    let map = state.map();
    assert_eq!(map.vet_removal(DiskId(2), |_| false), Ok(()));
    let (disk, count) = (DiskId(2), 4);
    let short = Refusal::TooFewDisks { disk, count, left: 1, floor: 2 };
    assert_eq!(map.vet_removal(disk, |away| away == DiskId(4)), Err(short));
    let last = Refusal::LastCopy { disk, count };
    assert_eq!(map.vet_removal(disk, |away| away == DiskId(1)), Err(last));
    done(&mut state, drain(2, true));
    done(&mut state, drain(2, true));
    done(&mut state, remove(2));
    // Where nothing is, one may go that is one too many.
    let mut empty = four();
    done(&mut empty, drain(4, true));
    done(&mut empty, remove(4));
}

#[test]
fn a_member_that_was_opened_anew_does_not_vouch_for_what_a_removed_disk_had() {
    let mut state = three_copies();
    let remove = |disk| Command::RemoveDisk { disk: DiskId(disk) };
    // Of two, one alone meets all majorities; but it must be open as it is listed.
    let all = [(0, 2), (1, 2), (2, 2), (3, 2)];
    change(&mut state, &all, &[member(1, 1), member(2, 1)]);
    done(&mut state, open(1, 2));
    let needed = "without disk 00000000000000000000000000000002 too few copies of 4 partitions are \
                  left to be sure of all that was written; drain it with `dog disk drain \
                  00000000000000000000000000000002` and wait until nothing lies on it, or bring \
                  other disks back first";
    refused(&mut state, remove(2), RefusalKind::Busy, needed);
    let all = [(0, 3), (1, 3), (2, 3), (3, 3)];
    change(&mut state, &all, &[member(1, 2), member(2, 1)]);
    done(&mut state, remove(2));
    // Two of three are a majority whatever was opened anew.
    let mut state = three_copies();
    done(&mut state, open(1, 2));
    done(&mut state, remove(2));
}

#[test]
fn a_drained_disk_gets_nothing_and_what_it_has_is_to_go() {
    let mut state = three_copies();
    done(&mut state, Command::SetZone { node: node(1), zone: "a\n".into() });
    assert_eq!(state.map().node(node(1)).expect("known").zone, "a?");
    done(&mut state, Command::AddNode { node: node(1), name: "other".into() });
    assert_eq!(state.map().node(node(1)).expect("known").zone, "a?", "a new name, no more");
    let wish = |state: &State| state.map().wanted_members(3);
    let lists = |wish: &[Vec<DiskId>], disk| wish.iter().any(|m| m.contains(&DiskId(disk)));
    assert!(lists(&wish(&state), 4));
    done(&mut state, Command::DrainDisk { disk: DiskId(2), wanted: true });
    let draining = "disk 00000000000000000000000000000002 is being drained and gets nothing new; \
                    end that first";
    change(&mut state, &[(0, 2)], &[member(1, 1), member(2, 1)]);
    change(&mut state, &[(0, 3)], &[member(1, 1), member(3, 1)]);
    refused(&mut state, begin(&[1, 2, 3], &[(0, 4)]), RefusalKind::Busy, draining);
    let drained = wish(&state);
    assert!(!lists(&drained, 2) && drained.iter().all(|members| members.len() == 3));
    // Two at once would take copies away: they wait.
    done(&mut state, Command::DrainNode { node: node(4), wanted: true });
    assert_eq!(state.map().sites(3).len(), 4);
    assert!(wish(&state).iter().all(|members| members.len() == 3));
    done(&mut state, Command::DrainDisk { disk: DiskId(2), wanted: false });
    assert!(!lists(&wish(&state), 4));
    done(&mut state, Command::SetWeight { disk: DiskId(2), bytes: 5 });
    assert_eq!(state.map().disk(DiskId(2)).expect("known").bytes, 5);
    let empty = "disk 00000000000000000000000000000002 cannot have 0 bytes; give its size, or \
                 drain it to have it hold nothing";
    let weight = Command::SetWeight { disk: DiskId(2), bytes: 0 };
    refused(&mut state, weight, RefusalKind::Invalid, empty);
}

#[test]
fn each_number_of_copies_has_its_table_and_a_volume_goes_from_one_to_the_other() {
    let mut state = three_copies();
    let copies = |copies, min_copies| Command::SetCopies { volume: VOLUME, copies, min_copies };
    let many = "a volume cannot be kept in 6 copies; choose 1 to 5";
    refused(&mut state, copies(6, None), RefusalKind::Invalid, many);
    let few = "of 2 copies 3 cannot be the fewest that must be left; choose 1 to 2";
    refused(&mut state, copies(2, Some(3)), RefusalKind::Invalid, few);
    // Nothing was ever written: there is nothing to copy.
    done(&mut state, copies(2, None));
    assert_eq!(redundancy(&state), Redundancy { copies: 2, wanted: 2, min_copies: 1, had: 2 });
    assert_eq!(state.map().tables().collect::<Vec<u8>>(), [2, 3]);
    let lineage = state.map().volume(VOLUME).expect("created").lineage;
    let map = state.map();
    assert_eq!(map.configuration_of(lineage, 0).current, [member(1, 1), member(2, 1)]);
    // It has been written: the session has to copy first, and says when it has.
    let (holder, read_only) = ("guest".into(), false);
    let attach = Command::Attach { volume: VOLUME, node: node(1), holder, read_only, unix_s: 0 };
    done(&mut state, attach);
    done(&mut state, copies(3, None));
    let moving = Redundancy { copies: 2, wanted: 3, min_copies: 2, had: 2 };
    assert_eq!(redundancy(&state), moving);
    assert_eq!(state.map().configuration_of(lineage, 0).current.len(), 2);
    assert_eq!((state.map().floor(2), state.map().floor(3)), (2, 2));
    let moved = |generation, copies| {
        let generation = Generation(generation);
        Command::CopiesMoved { volume: VOLUME, generation, copies }
    };
    let stale = "generation 9 of volume \"v\" does not write any more; attach the volume anew";
    refused(&mut state, moved(9, 3), RefusalKind::Busy, stale);
    done(&mut state, moved(1, 4));
    assert_eq!(redundancy(&state), moving, "nobody wants four");
    done(&mut state, moved(1, 3));
    assert_eq!(redundancy(&state), Redundancy { copies: 3, wanted: 3, min_copies: 2, had: 3 });
    // A clone is kept as what it shows; and what it shows is kept when the volume is gone.
    done(&mut state, Command::Detach { volume: VOLUME, generation: Generation(1) });
    // There is no more room for five copies than for three: nothing to copy.
    done(&mut state, copies(5, Some(4)));
    assert_eq!(state.map().configuration(5, P0), state.map().configuration(3, P0));
    done(&mut state, Command::CreateSnapshot { volume: VOLUME, tag: "t".into(), unix_s: 0 });
    let (holder, read_only) = ("guest".into(), false);
    let attach = Command::Attach { volume: VOLUME, node: node(1), holder, read_only, unix_s: 0 };
    done(&mut state, attach);
    let layer = state.map().volume(VOLUME).expect("created").head;
    let generation = Generation(2);
    done(&mut state, Command::LayerOpened { volume: VOLUME, generation, layer });
    done(&mut state, Command::Detach { volume: VOLUME, generation });
    let (tag, name) = ("t".into(), "clone".into());
    done(&mut state, Command::CloneSnapshot { volume: VOLUME, tag, name, unix_s: 0 });
    let drop = Command::DropVolume { volume: VOLUME, with_snapshots: true, unix_s: 0 };
    done(&mut state, drop);
    let map = state.map();
    let clone = map.volume_named("clone").expect("created").lineage;
    let kept = Redundancy { copies: 5, wanted: 5, min_copies: 4, had: 3 };
    assert_eq!(map.redundancy(clone), Some(&kept));
    assert_eq!(map.redundancy(lineage), Some(&kept), "still shown");
    let volume = map.volume_named("clone").expect("created").id;
    done(&mut state, Command::DropVolume { volume, with_snapshots: true, unix_s: 0 });
    assert_eq!(state.map().redundancy(lineage), None);
}

#[test]
fn copies_are_chosen_when_a_volume_is_made_or_while_there_is_one_disk() {
    let mut state = three_copies();
    let keep = |copies, min_copies| Command::KeepCopies { volume: VOLUME, copies, min_copies };
    let create = |name: &str, copies, min_copies| Command::CreateVolumeKept {
        name: name.into(),
        bytes: 4096,
        from: None,
        copies,
        min_copies,
        unix_s: 0,
    };
    let many = "a volume cannot be kept in 6 copies; choose 1 to 5";
    refused(&mut state, create("six", 6, None), RefusalKind::Invalid, many);
    refused(&mut state, keep(6, None), RefusalKind::Invalid, many);
    assert!(state.map().volume_named("six").is_none());
    let kept = |state: &State, name: &str| {
        let lineage = state.map().volume_named(name).expect("created").lineage;
        *state.map().redundancy(lineage).expect("it is there")
    };
    state.apply(&create("two", 2, None)).expect("made");
    assert_eq!(kept(&state, "two"), Redundancy { copies: 2, wanted: 2, min_copies: 1, had: 2 });
    let from = Some(("nbd://h/e".to_string(), 512));
    let create = Command::CreateVolumeKept {
        name: "far".into(),
        bytes: 4096,
        from,
        copies: 1,
        min_copies: None,
        unix_s: 0,
    };
    state.apply(&create).expect("made");
    assert_eq!(kept(&state, "far"), Redundancy { copies: 1, wanted: 1, min_copies: 1, had: 1 });
    done(&mut state, keep(3, Some(1)));
    done(&mut state, keep(3, Some(3)));
    assert_eq!(redundancy(&state), Redundancy { copies: 3, wanted: 3, min_copies: 3, had: 3 });
    let before = state.clone();
    // Nothing was written, and still: who holds an old map must not take it for its own.
    let moves = "volume \"v\" is kept in 3 copies, and moving it to 4 is not possible yet in a \
                 cluster of several disks; make a new volume with `--copies 4` and copy its data \
                 there with `dog volume export` and `dog volume import`";
    for copies in [1, 2, 4] {
        let moves = moves.replace('4', &copies.to_string());
        refused(&mut state, keep(copies, None), RefusalKind::Busy, &moves);
    }
    assert!(state == before, "a refusal changes nothing");
}

/// A table once there stays, and a disk that was the only member of a part of it could not be taken
/// out any more, though nothing lay there.
#[test]
fn a_table_that_nothing_lies_by_keeps_no_disk() {
    let mut state = three_copies();
    let create = Command::CreateVolumeKept {
        name: "one".into(),
        bytes: 4096,
        from: None,
        copies: 1,
        min_copies: None,
        unix_s: 0,
    };
    let Ok(Answer::VolumeCreated { volume }) = state.apply(&create) else { panic!("not made") };
    let only = state.map().configuration(1, P0).current[0].disk;
    let remove = Command::RemoveDisk { disk: only };
    assert!(matches!(state.apply(&remove), Err(Refusal::LastCopy { .. })));
    done(&mut state, Command::DropVolume { volume, with_snapshots: true, unix_s: 0 });
    done(&mut state, remove);
    let map = state.map();
    let held = map.configuration(1, P0);
    assert!(held.current.len() == 1 && held.current[0].disk != only, "{held:?}");
    // Where something lies its members are changed by an attempt.
    assert!(map.configuration(3, P0).current.iter().any(|member| member.disk == only));
}

#[test]
fn on_one_disk_another_number_of_copies_is_there_at_once() {
    let mut state = state();
    let (holder, read_only) = ("guest".into(), false);
    let attach = Command::Attach { volume: VOLUME, node: node(1), holder, read_only, unix_s: 0 };
    done(&mut state, attach);
    let lineage = state.map().volume(VOLUME).expect("created").lineage;
    let before = state.map().configuration_of(lineage, 0).clone();
    done(&mut state, Command::KeepCopies { volume: VOLUME, copies: 5, min_copies: None });
    let kept = Redundancy { copies: 5, wanted: 5, min_copies: 3, had: 1 };
    assert_eq!((redundancy(&state), redundancy(&state).floor()), (kept, 1));
    assert_eq!(*state.map().configuration_of(lineage, 0), before);
    done(&mut state, open(1, 2));
    let map = state.map();
    assert_eq!(map.configuration(3, P0), map.configuration(5, P0));
    assert_eq!(map.configuration(5, P0).current, [member(1, 2)]);
}

#[test]
fn partitions_double_where_they_are() {
    let mut state = three_copies();
    change(&mut state, &[(1, 2)], &[member(1, 1), member(2, 1)]);
    let attempt = begun(&mut state, begin(&[1, 2, 4], &[(0, 2)]));
    let under_way = "1 attempts to change who holds partitions are under way; wait until they are \
                     over";
    refused(&mut state, Command::SplitPartitions { bits: 3 }, RefusalKind::Busy, under_way);
    done(&mut state, give_up(attempt, true));
    let before = state.map();
    let split = |bits| Command::SplitPartitions { bits };
    let double = "there are 4 partitions, and they can only double; choose 8";
    refused(&mut state, split(4), RefusalKind::Invalid, double);
    let most = "2^17 partitions are too many; choose at most 2^16 (65536)";
    refused(&mut state, split(17), RefusalKind::Invalid, most);
    assert_eq!(done(&mut state, split(2)), Answer::Done);
    done(&mut state, split(3));
    let map = state.map();
    for partition in 0..8 {
        let (now, then) = (PartitionId(partition), PartitionId(partition / 2));
        assert_eq!(map.configuration(3, now), before.configuration(3, then));
    }
    // Numbers that were given before mean other partitions now.
    let doubled = "the command is for 2^2 partitions, and there are 2^3; learn the present map and \
                   try again";
    refused(&mut state, begin(&[1, 2], &[(2, 3)]), RefusalKind::Busy, doubled);
    let Command::BeginAttempt { copies, owner, changes, .. } = begin(&[1, 2], &[(2, 3)]) else {
        panic!("what was begun");
    };
    let again = Command::BeginAttempt { copies, bits: 3, owner, changes };
    let attempt = begun(&mut state, again);
    done(&mut state, activate(attempt, &[member(1, 1), member(2, 1)]));
    assert_eq!(state.map().configuration(3, PartitionId(2)).number.0, 4);
    assert_eq!(state.map().configuration(3, PartitionId(3)).number.0, 3, "each by itself");
}

#[test]
fn the_longest_batches_fit_into_a_command_and_longer_ones_are_refused() {
    let longest = |disk: u128| DiskId(u128::MAX - disk);
    let partitions =
        |count: usize| vec![(PartitionId(65_535), ConfigurationNumber(u64::MAX)); count];
    let attempt = |changes| {
        let owner = NodeId(u128::MAX);
        Command::BeginAttempt { copies: 3, bits: u8::MAX, owner, changes }
    };
    let same = |members: u128, count: usize| {
        let wanted = (0..members).map(longest).collect();
        attempt(vec![Change { wanted, partitions: partitions(count) }])
    };
    let activate = |count: usize| {
        let incarnation = Incarnation(u64::MAX);
        let opening = |disk| Member { disk: longest(disk), incarnation };
        Command::Activate { attempt: u64::MAX, openings: (0..count as u128).map(opening).collect() }
    };
    for command in [same(8, PARTITIONS_PER_COMMAND_MAX), activate(ATTEMPT_DISKS_MAX)] {
        let bounded = command.clone().bounded().expect("short enough");
        assert!(bounded.encode().len() <= COMMAND_BYTES_MAX);
    }
    let (many, some) = (PARTITIONS_PER_COMMAND_MAX, ATTEMPT_DISKS_MAX);
    let empty = vec![Change { wanted: vec![], partitions: vec![] }; many + 1];
    for (command, max) in [
        (same(8, many + 1), many),
        (same(9, 1), 8),
        (attempt(empty), many),
        (activate(some + 1), some),
    ] {
        let refusal = command.bounded().expect_err("too long");
        let sentence = format!("one command changes at most {max} of them; make several");
        assert_eq!(refusal.to_string(), sentence);
    }
    // Few enough, and yet too long: each of them wants other disks.
    let other = |at: usize| Change {
        wanted: (0..3).map(|disk| longest((3 * at + disk) as u128)).collect(),
        partitions: partitions(1),
    };
    let large = "one attempt cannot change so many partitions of so many disks; make several \
                 attempts";
    let refusal = attempt((0..80).map(other).collect()).bounded().expect_err("too long");
    assert_eq!(refusal.to_string(), large);
    let mut state = four();
    let twice = "partition 0 is twice in one command; make two of it";
    refused(&mut state, begin(&[1, 2], &[(0, 1), (0, 1)]), RefusalKind::Invalid, twice);
}

#[test]
fn the_first_disk_that_is_opened_holds_everything() {
    let mut state = State::default();
    let create = Command::CreateCluster { cluster: ClusterId(1), partition_bits: 2, unix_s: 0 };
    done(&mut state, create);
    for disk in 1..3 {
        done(&mut state, Command::AddNode { node: node(disk), name: format!("n{disk}") });
        add(&mut state, disk);
    }
    let never = "disk 00000000000000000000000000000001 was never opened; start sheep on its node \
                 first";
    refused(&mut state, begin(&[1], &[(0, 0)]), RefusalKind::Busy, never);
    done(&mut state, open(2, 1));
    done(&mut state, open(1, 1));
    assert_eq!(state.map().configuration(3, P0).current, [member(2, 1)]);
    assert_eq!(state.map().configuration(3, P0).number.0, 1);
}

#[test]
fn addresses_are_kept_with_their_node() {
    let mut state = state();
    let set = |node, addresses: &[&str]| Command::SetAddresses {
        node,
        addresses: addresses.iter().map(|&address| address.to_owned()).collect(),
    };
    let known = |state: &State, at| state.map().addresses_of(node(at)).to_vec();
    done(&mut state, set(node(1), &["a:1", "b:2"]));
    assert_eq!(known(&state, 1), ["a:1", "b:2"]);
    let epoch = state.map().epoch();
    done(&mut state, set(node(1), &["a:1", "b:2"]));
    assert_eq!(state.map().epoch(), epoch, "done already is done");
    let unknown = Refusal::UnknownNode { node: node(9) };
    assert_eq!(state.apply(&set(node(9), &["a:1"])), Err(unknown));
    for address in ["", "a\n:1", &"a".repeat(129)] {
        let refused = state.apply(&set(node(1), &[address]));
        assert!(matches!(refused, Err(Refusal::BadNodeAddress { .. })), "{refused:?}");
        assert!(set(node(1), &[address]).bounded().is_err());
    }
    let many = set(node(1), &["a:1"; 5]);
    assert_eq!(many.clone().bounded(), Err(Refusal::TooManyInCommand { max: 4 }));
    assert_eq!(state.apply(&many), Err(Refusal::TooManyInCommand { max: 4 }));
    let bytes = state.encode();
    assert_eq!(State::decode(&bytes).as_ref(), Ok(&state));
    // They go with the node, or when there are none any more.
    done(&mut state, set(node(3), &["c:3"]));
    done(&mut state, Command::RemoveNode { node: node(3) });
    assert_eq!(known(&state, 3), Vec::<String>::new());
    done(&mut state, set(node(1), &[]));
    assert_eq!(known(&state, 1), Vec::<String>::new());
    state.check();
}
