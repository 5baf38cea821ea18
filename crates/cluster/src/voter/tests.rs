//! The voter against a journal that is slow, full or broken, and against restarts.

use super::*;
use crate::model::Dice;
use crate::{Answer, RefusalKind};
use proto::limits::{JOURNAL_APPEND_BYTES_MAX, LOG_BYTES_BEFORE_SNAPSHOT};
use proto::{BLOCK_SIZE, ClusterId, DiskId, Incarnation};

const NOW: Time = Time(0);
const NODE: NodeId = NodeId(2);

/// A voter that is alone, from what its journal holds.
fn boot(snapshot: Option<&[u8]>, records: &[Vec<u8>]) -> Result<Voter, BootError> {
    Voter::boot(NODE, Founding::Here, 1, snapshot, records)
}

/// What a journal holds, and which request it works on.
#[derive(Default)]
struct Journal {
    snapshot: Option<Vec<u8>>,
    records: Vec<Vec<u8>>,
    pending: Option<Effect>,
    snapshots: usize,
}

impl Journal {
    /// Takes effects; gives the ends of proposals among them.
    fn take(&mut self, effects: Vec<Effect>) -> Vec<(ProposalToken, Result<Answer, Refusal>)> {
        let mut applied = Vec::new();
        for effect in effects {
            match effect {
                Effect::Applied { token, result } => applied.push((token, result)),
                request => {
                    assert!(self.pending.replace(request).is_none(), "two requests at once");
                }
            }
        }
        applied
    }

    /// Ends the request; an error leaves everything as it was.
    fn end(&mut self, result: Result<(), PersistError>) -> Event {
        let (request, done) = match self.pending.take().expect("a request") {
            Effect::Append { request, records } => (request, Ok(records)),
            Effect::Snapshot { request, bytes } => (request, Err(bytes)),
            other => unreachable!("{other:?} is no request"),
        };
        match (&result, done) {
            (Ok(()), Ok(records)) => {
                let bytes: usize = records.iter().map(|record| record.len() + 4).sum();
                assert!(bytes <= JOURNAL_APPEND_BYTES_MAX);
                self.records.extend(records);
            }
            (Ok(()), Err(bytes)) => {
                self.snapshot = Some(bytes);
                self.records.clear();
                self.snapshots += 1;
            }
            (Err(_), _) => {}
        }
        Event::Persisted { request, result }
    }

    fn boot(&self) -> Voter {
        let voter = boot(self.snapshot.as_deref(), &self.records).expect("what it wrote");
        voter.check();
        voter
    }
}

fn first_commands() -> Vec<Command> {
    let (cluster, node, disk) = (ClusterId(1), NodeId(2), DiskId(3));
    vec![
        Command::CreateCluster { cluster, partition_bits: 2, unix_s: 0 },
        Command::AddNode { node, name: "alpha".into() },
        Command::OpenDisk { disk, node, incarnation: Incarnation(1) },
    ]
}

fn create(number: u64) -> Command {
    Command::CreateVolume { name: format!("vm{number}"), bytes: 1 << 20, unix_s: number }
}

/// Proposes and lets the journal do all it is asked; the result of the proposal.
fn carry_out(
    voter: &mut Voter,
    journal: &mut Journal,
    command: Command,
) -> Result<Answer, Refusal> {
    let mut effects = Vec::new();
    voter.propose(NOW, ProposalToken(1), command, &mut effects);
    let mut applied = journal.take(effects);
    while journal.pending.is_some() {
        let event = journal.end(Ok(()));
        let mut effects = Vec::new();
        voter.handle(NOW, event, &mut effects);
        applied.extend(journal.take(effects));
    }
    voter.check();
    let (token, result) = applied.pop().expect("it ends");
    assert_eq!((token, applied.len()), (ProposalToken(1), 0));
    result
}

fn started() -> (Voter, Journal) {
    let mut journal = Journal::default();
    let mut voter = journal.boot();
    for command in first_commands() {
        assert_eq!(carry_out(&mut voter, &mut journal, command), Ok(Answer::Done));
    }
    (voter, journal)
}

#[test]
fn nothing_is_applied_before_it_is_durable() {
    let (mut voter, mut journal) = started();
    let before = voter.map();
    let mut effects = Vec::new();
    voter.propose(Time(5), ProposalToken(1), create(1), &mut effects);
    voter.propose(Time(6), ProposalToken(2), create(1), &mut effects);
    voter.propose(Time(7), ProposalToken(3), create(2), &mut effects);
    assert!(journal.take(effects).is_empty());
    assert_eq!(voter.map(), before);
    assert_eq!(voter.waiting(Time(9)), Some((Duration::from_nanos(4), 3)));
    let mut ends = Vec::new();
    for _ in 0..2 {
        let mut effects = Vec::new();
        voter.handle(NOW, journal.end(Ok(())), &mut effects);
        ends.extend(journal.take(effects));
    }
    let outcomes: Vec<_> = ends.iter().map(|(token, result)| (token.0, result.is_ok())).collect();
    assert_eq!(outcomes, [(1, true), (2, false), (3, true)]);
    assert_eq!(voter.waiting(Time(9)), None);
    assert_eq!(journal.boot().map(), voter.map());
}

#[test]
fn a_restart_at_any_moment_finds_the_state_of_the_log() {
    let mut dice = Dice(1);
    let mut journal = Journal::default();
    let mut voter = journal.boot();
    let mut commands = first_commands().into_iter();
    for number in 0..2000 {
        let command = commands.next().unwrap_or_else(|| create(dice.below(900)));
        let mut effects = Vec::new();
        voter.propose(NOW, ProposalToken(number), command, &mut effects);
        journal.take(effects);
        while journal.pending.is_some() && dice.below(3) > 0 {
            let result = if dice.below(9) == 0 { Err(PersistError::NoSpace) } else { Ok(()) };
            let mut effects = Vec::new();
            voter.handle(NOW, journal.end(result), &mut effects);
            journal.take(effects);
            voter.check();
            assert_eq!(journal.boot().map(), voter.map());
        }
        if dice.below(50) == 0 {
            // The process dies; its request may still have been done.
            if journal.pending.is_some() && dice.below(2) == 0 {
                let _ = journal.end(Ok(()));
            }
            journal.pending = None;
            voter = journal.boot();
            commands = first_commands().into_iter();
        }
    }
    assert!(journal.snapshots > 0 && voter.applied() > 500);
}

#[test]
fn the_log_is_cut_by_a_snapshot_before_it_grows_long() {
    let (mut voter, mut journal) = started();
    for number in 0..3000 {
        let created = carry_out(&mut voter, &mut journal, create(number));
        assert!(matches!(created, Ok(Answer::VolumeCreated { .. })));
        // Each in a block of its own, but for what the first brings along.
        assert!(journal.records.len() <= LOG_BYTES_BEFORE_SNAPSHOT / BLOCK_SIZE + 3);
    }
    assert_eq!(journal.snapshots, 2);
    assert_eq!(journal.boot().map(), voter.map());
    assert_eq!(voter.applied(), 3004, "and one that a leader begins with");
}

/// Ends what the journal is asked for, and gives the ends of proposals that come of it.
fn end(
    voter: &mut Voter,
    journal: &mut Journal,
    result: Result<(), PersistError>,
) -> Vec<(ProposalToken, Result<Answer, Refusal>)> {
    let mut effects = Vec::new();
    voter.handle(NOW, journal.end(result), &mut effects);
    voter.check();
    journal.take(effects)
}

#[test]
fn without_space_a_snapshot_makes_room_and_what_waited_goes_in() {
    let (mut voter, mut journal) = started();
    let mut effects = Vec::new();
    voter.propose(NOW, ProposalToken(1), create(1), &mut effects);
    voter.propose(NOW, ProposalToken(2), create(2), &mut effects);
    journal.take(effects);
    assert!(end(&mut voter, &mut journal, Err(PersistError::NoSpace)).is_empty());
    assert!(matches!(journal.pending, Some(Effect::Snapshot { .. })));
    // The snapshot has all that is in the log, what waits with it.
    let applied = end(&mut voter, &mut journal, Ok(()));
    assert!(journal.pending.is_none());
    let tokens: Vec<_> = applied.iter().map(|(token, result)| (token.0, result.is_ok())).collect();
    assert_eq!(tokens, [(1, true), (2, true)], "in the order in which they were proposed");
    assert_eq!(journal.boot().map(), voter.map());
    // And once more: that a snapshot helped is no reason not to try it again.
    let mut effects = Vec::new();
    voter.propose(NOW, ProposalToken(3), create(3), &mut effects);
    journal.take(effects);
    assert!(end(&mut voter, &mut journal, Err(PersistError::NoSpace)).is_empty());
    assert!(matches!(journal.pending, Some(Effect::Snapshot { .. })));
    let applied = end(&mut voter, &mut journal, Ok(()));
    assert!(matches!(applied[..], [(ProposalToken(3), Ok(_))]), "{applied:?}");
}

#[test]
fn without_space_proposals_are_refused_after_a_snapshot_found_none_either() {
    let (mut voter, mut journal) = started();
    for round in 0..2 {
        let mut effects = Vec::new();
        voter.propose(NOW, ProposalToken(1), create(1), &mut effects);
        journal.take(effects);
        assert!(end(&mut voter, &mut journal, Err(PersistError::NoSpace)).is_empty());
        assert!(matches!(journal.pending, Some(Effect::Snapshot { .. })), "round {round}");
        assert!(end(&mut voter, &mut journal, Err(PersistError::NoSpace)).is_empty());
        let refused = end(&mut voter, &mut journal, Err(PersistError::NoSpace));
        let refusal = Err(Refusal::NotLogged(PersistError::NoSpace));
        assert_eq!(refused, [(ProposalToken(1), refusal)]);
        assert!(journal.pending.is_none(), "round {round}");
    }
    assert!(carry_out(&mut voter, &mut journal, create(2)).is_ok(), "there is space again");
    assert_eq!(journal.boot().map(), voter.map());
}

#[test]
fn a_rewrite_replaces_all_that_the_journal_holds() {
    let (mut voter, mut journal) = started();
    let mut effects = Vec::new();
    voter.rewrite(NOW, &mut effects);
    journal.take(effects);
    let mut effects = Vec::new();
    voter.handle(NOW, journal.end(Ok(())), &mut effects);
    assert_eq!((effects.len(), journal.snapshots, journal.records.len()), (0, 1, 0));
    assert_eq!(journal.boot().map(), voter.map());
}

#[test]
fn a_failed_journal_ends_every_proposal_and_takes_no_more() {
    let (mut voter, mut journal) = started();
    let mut effects = Vec::new();
    for token in 0..3 {
        voter.propose(NOW, ProposalToken(token), create(token), &mut effects);
    }
    journal.take(effects);
    let failed = PersistError::Failed("input/output error".into());
    let mut effects = Vec::new();
    voter.handle(NOW, journal.end(Err(failed.clone())), &mut effects);
    voter.propose(NOW, ProposalToken(3), create(3), &mut effects);
    let ended = journal.take(effects);
    assert_eq!(ended.len(), 4);
    for (_, result) in ended {
        let refusal = result.expect_err("it cannot be logged");
        assert_eq!(refusal, Refusal::NotLogged(failed.clone()));
        assert_eq!(refusal.kind(), RefusalKind::Unavailable);
    }
    assert!(journal.pending.is_none());
    voter.check();
}

#[test]
fn too_many_proposals_are_refused_at_once() {
    let (mut voter, mut journal) = started();
    let mut effects = Vec::new();
    for token in 0..=PROPOSALS_MAX as u64 {
        voter.propose(NOW, ProposalToken(token), create(token), &mut effects);
    }
    let refused = journal.take(effects);
    let last = ProposalToken(PROPOSALS_MAX as u64);
    assert_eq!(refused, [(last, Err(Refusal::TooManyProposals))]);
    let mut ended = 0;
    while journal.pending.is_some() {
        let mut effects = Vec::new();
        voter.handle(NOW, journal.end(Ok(())), &mut effects);
        ended += journal.take(effects).len();
        voter.check();
    }
    assert_eq!(ended, PROPOSALS_MAX);
}

#[test]
fn many_long_proposals_at_once_go_into_appends_of_bounded_length() {
    let (mut voter, mut journal) = started();
    let mut effects = Vec::new();
    for number in 0..PROPOSALS_MAX as u64 {
        let address = format!("nbd://{}/{number}", "x".repeat(900));
        let (name, bytes) = (format!("vm{number}"), 1 << 20);
        let (source_bytes, unix_s) = (bytes, 0);
        let command = Command::CreateVolumeFrom { name, bytes, address, source_bytes, unix_s };
        voter.propose(NOW, ProposalToken(number), command, &mut effects);
    }
    assert!(journal.take(effects).is_empty());
    let (mut ended, mut appends) = (0, 0);
    while journal.pending.is_some() {
        let mut effects = Vec::new();
        voter.handle(NOW, journal.end(Ok(())), &mut effects);
        ended += journal.take(effects).len();
        appends += 1;
    }
    assert_eq!(ended, PROPOSALS_MAX);
    assert!((5..50).contains(&appends), "{appends} appends");
}

#[test]
fn texts_without_end_are_bounded_before_the_log() {
    let (mut voter, mut journal) = started();
    let long = "x".repeat(1 << 20);
    let name = Command::CreateVolume { name: long.clone(), bytes: 4096, unix_s: 0 };
    let refused = carry_out(&mut voter, &mut journal, name);
    assert!(matches!(refused, Err(Refusal::BadName { .. })));
    let node = NodeId(2);
    let named = Command::AddNode { node, name: long };
    assert_eq!(carry_out(&mut voter, &mut journal, named), Ok(Answer::Done));
    assert_eq!(voter.map().node(node).expect("added").name.len(), 255);
    assert_eq!(journal.boot().map(), voter.map());
}

/// A member that waits for a snapshot is given this one, in one piece of a leader in this term; its
/// term then, and whether it has the state.
fn received(voter: &Voter, head_term: u64, chunk_term: u64, index: u64) -> (u64, bool) {
    let ballot = HardState::default();
    let bytes = voter.encode_snapshot(head_term, &ballot, 0, &Log::default());
    let chunk = message::Chunk { term: chunk_term, index, offset: 0, last: true, bytes };
    let bytes = message::Body::Chunk(chunk).encode(0);
    let mut other = Voter::boot(NODE, Founding::Elsewhere, 1, None, &[]).expect("nothing is there");
    let mut effects = Vec::new();
    other.handle(NOW, Event::Received { from: NodeId(7), bytes }, &mut effects);
    (other.status().term, effects.iter().any(|one| matches!(one, Effect::Snapshot { .. })))
}

#[test]
fn a_snapshot_from_far_beyond_all_counting_is_not_taken() {
    let (voter, _) = started();
    let (most, index) = (1 << 62, voter.applied());
    assert_eq!(received(&voter, 1, 9, index), (9, true));
    assert_eq!(received(&voter, most, most, index), (most, true));
    for (head_term, chunk_term, index) in
        [(1, most + 1, index), (1, u64::MAX, index), (most + 1, 9, index), (1, 9, most + 1)]
    {
        assert_eq!(received(&voter, head_term, chunk_term, index), (0, false));
    }
    let mut voter = voter;
    let session = voter.roster.sessions.get_mut(&member_of(NODE)).expect("it proposed");
    session.instance = most + 1;
    assert_eq!(received(&voter, 1, 9, index), (0, false), "its own next instance follows that");
}

/// What a voter of before it could have fellows wrote for the first three commands.
const OF_BEFORE: [&[u8]; 3] = [
    &[1, 0, 1, 1, 5, 1, 0, 1, 2, 0],
    &[1, 0, 2, 1, 9, 1, 1, 2, 5, b'a', b'l', b'p', b'h', b'a'],
    &[1, 0, 3, 1, 5, 1, 2, 3, 2, 1],
];

fn owned(records: &[&[u8]]) -> Vec<Vec<u8>> {
    records.iter().map(|record| record.to_vec()).collect()
}

#[test]
fn a_journal_of_before_there_were_groups_goes_on() {
    let mut journal = Journal { records: owned(&OF_BEFORE), ..Journal::default() };
    let mut voter = journal.boot();
    let (fresh, _) = started();
    assert_eq!(voter.map(), fresh.map());
    assert_eq!((voter.applied(), voter.status().term), (3, 1));
    assert!(carry_out(&mut voter, &mut journal, create(1)).is_ok());
    assert_eq!(journal.boot().map(), voter.map());
    assert_eq!(voter.status().term, 2);

    // And one that was cut, with the snapshot of before: version, index, term, state.
    let mut snapshot = vec![1, 3, 1];
    snapshot.extend_from_slice(&fresh.state.encode());
    let mut journal = Journal { snapshot: Some(snapshot), ..Journal::default() };
    let mut voter = journal.boot();
    assert_eq!((voter.map(), voter.applied()), (fresh.map(), 3));
    assert!(carry_out(&mut voter, &mut journal, create(1)).is_ok());
    assert_eq!(journal.boot().map(), voter.map());
}

#[test]
fn records_keep_their_bytes_and_foreign_ones_are_refused() {
    let (mut voter, mut journal) = started();
    let expected: [&[u8]; 6] = [
        &[2, 5, 1],
        &[2, 2, 1, 1],
        &[2, 1, 2, 1, 2, 1, 1, 5, 1, 0, 1, 2, 0],
        &[2, 4, 1, 2, 0],
        &[2, 1, 3, 1, 2, 1, 2, 9, 1, 1, 2, 5, b'a', b'l', b'p', b'h', b'a'],
        &[2, 1, 4, 1, 2, 1, 3, 5, 1, 2, 3, 2, 1],
    ];
    assert_eq!(journal.records, expected);
    // Before, all kinds had the version of the first one.
    let mut of_version_1 = owned(&expected);
    of_version_1.iter_mut().for_each(|record| record[0] = 1);
    assert_eq!(boot(None, &of_version_1).expect("still read").map(), voter.map());
    let mut effects = Vec::new();
    voter.rewrite(NOW, &mut effects);
    journal.take(effects);
    assert!(end(&mut voter, &mut journal, Ok(())).is_empty());
    let head = [
        2, 4, 1, // version, index, term
        1, 2, 0, 0, 0, 0, // the voters, no learners, none that come or go
        1, 2, 2, 1, 2, 1, 3, 4, 0, // members' names, sessions, no recovery
        1, 2, 4, 1, 0, // term, vote, agreed, instance, nothing behind
    ];
    let snapshot = journal.snapshot.expect("it was taken");
    assert_eq!(snapshot[..head.len()], head);
    assert_eq!(snapshot[head.len()..], voter.state.encode());

    let expected = OF_BEFORE;
    let check = |records: &[&[u8]], expected: &str| {
        let error = boot(None, &owned(records)).expect_err("refused");
        assert_eq!(error.to_string(), format!("entry {expected}"));
    };
    check(
        &[&[3, 0]],
        "1 of the cluster's log cannot be used: it has version 3, which this sheep \
        does not know; run the sheep that wrote it",
    );
    check(&[&[1, 7]], "1 of the cluster's log cannot be used: it is malformed");
    check(&[&[]], "1 of the cluster's log cannot be used: it is malformed");
    check(
        &[expected[0], expected[2]],
        "2 of the cluster's log cannot be used: it contradicts \
        itself: an entry is missing before it",
    );
    check(
        &[&[1, 0, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x7f]],
        "1 of the cluster's log cannot be used: \
        it is malformed",
    );
    check(&[&[9; 5000]], "1 of the cluster's log cannot be used: it is longer than its limit");
    let trailing = [expected[0], &[0]].concat();
    check(&[&trailing], "1 of the cluster's log cannot be used: it is malformed");
    let again = "2 of the cluster's log cannot be used: it contradicts itself: it takes the place \
        of what is agreed";
    check(&[expected[0], &[1, 4, 1, 2, 1], expected[0]], again);
    check(
        &[expected[0], &[1, 4, 1, 2, 2]],
        "2 of the cluster's log cannot be used: it contradicts itself: a ballot of another log",
    );
    check(
        &[&[1, 5, 1], &[1, 5, 1]],
        "1 of the cluster's log cannot be used: it contradicts itself: an instance that was there \
        before",
    );
}
