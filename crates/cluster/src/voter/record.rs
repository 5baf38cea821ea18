//! What a voter has in its journal, and how it finds itself again in it: `docs/formats/log.md`.

use super::log::Log;
use super::roster::{Members, ProposalId, Roster, member_of};
use super::{BootError, Founding};
use crate::command::{Command, DecodeError};
use crate::state::{COUNT_MAX, State};
use prost::Message as _;
use proto::limits::{COMMAND_BYTES_MAX, SNAPSHOT_BYTES_MAX, VOTER_HEAD_BYTES_MAX};
use proto::{BLOCK_SIZE, NodeId};
use raft::eraftpb::{
    ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, EntryType, HardState,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The version of records, their first byte. What knows only version 1 must not take the kinds that
/// came later for damage.
const VERSION: u8 = 2;
/// The version of records of before there were groups, of the first kind; still read and written.
const VERSION_ALONE: u8 = 1;
/// The version of snapshots, their first byte. Version 1 is still read.
const SNAPSHOT_VERSION: u8 = 2;
/// More than the version, index, term, identity and lengths around a command take.
pub(super) const WRAPPING_BYTES: usize = 64;
/// The longest change of members: every voter replaced, with the names of all.
const CHANGE_BYTES_MAX: usize = 1024;
/// What the journal puts around a record.
pub(super) const RECORD_FRAMING_BYTES: usize = 4;
/// The longest record, with what the journal puts around it.
pub(super) const RECORD_BYTES_MAX: usize =
    COMMAND_BYTES_MAX + WRAPPING_BYTES + RECORD_FRAMING_BYTES;

/// A record of the log. New kinds go to the end. An entry takes the place of one with the same
/// index, and of all behind that.
#[derive(Serialize, Deserialize, PartialEq, Eq, Debug)]
enum Record {
    /// A command at its place in the log, of a voter that was alone for good.
    Entry { index: u64, term: u64, command: Vec<u8> },
    /// A command with the name of its proposal.
    Proposal { index: u64, term: u64, id: ProposalId, command: Vec<u8> },
    /// Nothing: what a leader begins its term with.
    Blank { index: u64, term: u64 },
    /// A change of members, as `raft` writes it, and the nodes that are new.
    Reconfiguration { index: u64, term: u64, change: Vec<u8>, named: Vec<NodeId> },
    /// The term, whom this voter has voted for in it (0: nobody), and what it knows to be agreed.
    Ballot { term: u64, vote: u64, committed: u64 },
    /// From here on this node names its proposals by this instance.
    Instance { instance: u64 },
}

/// Version 1 of what a snapshot begins with; the encoded state follows.
#[derive(Deserialize)]
struct Head1 {
    index: u64,
    term: u64,
}

/// What a snapshot begins with; the encoded state after all entries up to `index` follows.
#[derive(Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) members: Members,
    pub(super) roster: Roster,
    /// Of the one voter in whose journal it is; empty on its way to another.
    pub(super) own: Own,
}

impl Head {
    /// The same with what one voter has beside it.
    pub(super) fn with(&self, own: Own) -> Head {
        let (members, roster) = (self.members.clone(), self.roster.clone());
        Head { index: self.index, term: self.term, members, roster, own }
    }
}

/// What a snapshot says of nobody else: it replaces all records, also those that go on to count.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Own {
    term: u64,
    vote: u64,
    committed: u64,
    instance: u64,
    /// The records of the entries behind the snapshot.
    tail: Vec<Vec<u8>>,
}

impl Own {
    pub(super) fn of(ballot: &HardState, instance: u64, log: &Log, applied: u64) -> Own {
        let tail = log.after(applied).map(|entry| entry_record(entry)).collect();
        let HardState { term, vote, commit, .. } = *ballot;
        Own { term, vote, committed: commit, instance, tail }
    }
}

/// A voter as its journal has it.
pub(super) struct Saved {
    pub(super) log: Log,
    pub(super) state: State,
    pub(super) roster: Roster,
    pub(super) instance: u64,
    /// What its records take.
    pub(super) log_bytes: usize,
}

/// What an entry of the log asks for.
pub(super) enum Payload {
    Nothing,
    Command { id: Option<ProposalId>, command: Command },
    Change { change: ConfChangeV2, named: Vec<NodeId> },
}

impl Payload {
    /// Of an entry. What is none of ours is refused before it gets into the log.
    pub(super) fn of(entry: &Entry) -> Result<Payload, DecodeError> {
        // `raft` panics on numbers that it does not know.
        match EntryType::from_i32(entry.entry_type).ok_or(DecodeError::Malformed)? {
            EntryType::EntryNormal if entry.data.is_empty() && entry.context.is_empty() => {
                Ok(Payload::Nothing)
            }
            EntryType::EntryNormal => {
                let id = if entry.context.is_empty() { None } else { Some(whole(&entry.context)?) };
                Ok(Payload::Command { id, command: Command::decode(&entry.data)? })
            }
            EntryType::EntryConfChangeV2 => {
                if entry.data.len() + entry.context.len() > CHANGE_BYTES_MAX {
                    return Err(DecodeError::TooLong);
                }
                let change = ConfChangeV2::decode(&*entry.data);
                let change = change.map_err(|_| DecodeError::Malformed)?;
                let is_known = ConfChangeTransition::from_i32(change.transition).is_some()
                    && change.changes.iter().all(|one| {
                        ConfChangeType::from_i32(one.change_type).is_some() && one.node_id != 0
                    });
                if !is_known {
                    return Err(DecodeError::Malformed);
                }
                let named =
                    if entry.context.is_empty() { Vec::new() } else { whole(&entry.context)? };
                Ok(Payload::Change { change, named })
            }
            EntryType::EntryConfChange => Err(DecodeError::Malformed),
        }
    }
}

/// The record of an entry that [`Payload::of`] takes.
pub(super) fn entry_record(entry: &Entry) -> Vec<u8> {
    let (index, term) = (entry.index, entry.term);
    let record = match entry.get_entry_type() {
        EntryType::EntryNormal if entry.context.is_empty() && entry.data.is_empty() => {
            Record::Blank { index, term }
        }
        EntryType::EntryNormal if entry.context.is_empty() => {
            Record::Entry { index, term, command: entry.data.to_vec() }
        }
        EntryType::EntryNormal => {
            let id = whole(&entry.context).expect("it was judged when it came");
            Record::Proposal { index, term, id, command: entry.data.to_vec() }
        }
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
            let named = if entry.context.is_empty() {
                Vec::new()
            } else {
                whole(&entry.context).expect("it was judged when it came")
            };
            Record::Reconfiguration { index, term, change: entry.data.to_vec(), named }
        }
    };
    let version = if matches!(record, Record::Entry { .. }) { VERSION_ALONE } else { VERSION };
    encode(version, &record)
}

pub(super) fn ballot_record(ballot: &HardState) -> Vec<u8> {
    let HardState { term, vote, commit: committed, .. } = *ballot;
    encode(VERSION, &Record::Ballot { term, vote, committed })
}

pub(super) fn instance_record(instance: u64) -> Vec<u8> {
    encode(VERSION, &Record::Instance { instance })
}

/// A snapshot: the head, then the state.
pub(super) fn encode_snapshot(head: &Head, state: &[u8]) -> Vec<u8> {
    let mut bytes = encode(SNAPSHOT_VERSION, head);
    bytes.extend_from_slice(state);
    bytes
}

/// The head of a snapshot of the present version, judged, and the state as bytes.
pub(super) fn decode_snapshot(bytes: &[u8]) -> Result<(Head, &[u8]), DecodeError> {
    let longest = SNAPSHOT_BYTES_MAX + VOTER_HEAD_BYTES_MAX;
    let (head, state): (Head, _) = decode(SNAPSHOT_VERSION, bytes, longest)?;
    if head.index == 0 || head.index > COUNT_MAX || head.term > COUNT_MAX {
        return Err(DecodeError::Contradiction("a count without end"));
    }
    Ok((head, state))
}

/// The voter of a node, from what its journal holds.
pub(super) fn load(
    node: NodeId,
    founding: Founding,
    snapshot: Option<&[u8]>,
    records: &[Vec<u8>],
) -> Result<Saved, BootError> {
    let mut saved = match snapshot {
        Some(bytes) => load_snapshot(node, bytes)?,
        None => Saved {
            log: Log::default(),
            state: State::default(),
            roster: Roster::default(),
            instance: 0,
            log_bytes: 0,
        },
    };
    for record in records {
        saved.read(record)?;
        // Each may have been an append of its own.
        saved.log_bytes += record.len().next_multiple_of(BLOCK_SIZE);
    }
    // Who joins a cluster may have a ballot and then gets a snapshot; who founded one has entries
    // at once.
    let has_entries = saved.log.last() > 0;
    let is_blank = !has_entries && saved.log.ballot.term == 0;
    if snapshot.is_none() && (has_entries || is_blank && founding == Founding::Here) {
        saved.log.members.voters = vec![member_of(node)];
        saved.roster = Roster::alone(node);
    }
    let last_term = saved.log.term_of(saved.log.last()).unwrap_or(0);
    let ballot = &mut saved.log.ballot;
    if ballot.term < last_term {
        // Journals of before there were ballots: whoever wrote them voted for nobody else.
        (ballot.term, ballot.vote) = (last_term, 0);
    }
    saved.agree_alone(member_of(node));
    Ok(saved)
}

fn load_snapshot(node: NodeId, bytes: &[u8]) -> Result<Saved, BootError> {
    let refused = BootError::Snapshot;
    let state_of = |bytes| State::decode(bytes).map_err(refused);
    let (mut log, mut tail) = (Log::default(), Vec::new());
    let (mut instance, mut committed) = (0, 0);
    let (state, roster) = if bytes.first() == Some(&1) {
        let longest = SNAPSHOT_BYTES_MAX + WRAPPING_BYTES;
        let (head, state): (Head1, _) = decode(1, bytes, longest).map_err(refused)?;
        if head.index > COUNT_MAX || head.term > COUNT_MAX {
            return Err(refused(DecodeError::Contradiction("a count without end")));
        }
        log.members.voters = vec![member_of(node)];
        log.base = (head.index, head.term);
        (state_of(state)?, Roster::alone(node))
    } else {
        let (head, state) = decode_snapshot(bytes).map_err(refused)?;
        let own = head.own;
        log.base = (head.index, head.term);
        log.members = head.members.judged(&head.roster).map_err(refused)?;
        log.ballot.term = own.term;
        log.ballot.vote = own.vote;
        committed = own.committed;
        (instance, tail) = (own.instance, own.tail);
        (state_of(state)?, head.roster)
    };
    log.applied = log.base.0;
    log.ballot.commit = log.ballot.commit.max(log.base.0);
    log.ballot.term = log.ballot.term.max(log.base.1);
    let mut saved = Saved { log, state, roster, instance, log_bytes: 0 };
    for record in &tail {
        saved.read(record)?;
    }
    if committed > saved.log.last() {
        return Err(refused(DecodeError::Contradiction("what is agreed is not there")));
    }
    saved.log.ballot.commit = saved.log.ballot.commit.max(committed);
    Ok(saved)
}

impl Saved {
    fn read(&mut self, record: &[u8]) -> Result<(), BootError> {
        let log = &mut self.log;
        let index = log.last() + 1;
        let refused = |error| BootError::Entry { index, error };
        let contradiction = |what| Err(refused(DecodeError::Contradiction(what)));
        let longest = COMMAND_BYTES_MAX + WRAPPING_BYTES;
        let is_old = record.first() == Some(&VERSION_ALONE);
        let version = if is_old { VERSION_ALONE } else { VERSION };
        let (record, rest) = decode(version, record, longest).map_err(refused)?;
        if !rest.is_empty() {
            return Err(refused(DecodeError::Malformed));
        }
        let mut entry = Entry::default();
        match record {
            Record::Ballot { term, vote, committed } => {
                if term < log.ballot.term || term > COUNT_MAX || committed > log.last() {
                    return contradiction("a ballot of another log");
                }
                (log.ballot.term, log.ballot.vote) = (term, vote);
                log.ballot.commit = log.ballot.commit.max(committed);
                return Ok(());
            }
            Record::Instance { instance } => {
                if instance <= self.instance || instance > COUNT_MAX {
                    return contradiction("an instance that was there before");
                }
                self.instance = instance;
                return Ok(());
            }
            Record::Entry { index, term, command } => {
                (entry.index, entry.term, entry.data) = (index, term, command);
            }
            Record::Proposal { index, term, id, command } => {
                (entry.index, entry.term, entry.data) = (index, term, command);
                entry.context = proposal_context(&id);
            }
            Record::Blank { index, term } => (entry.index, entry.term) = (index, term),
            Record::Reconfiguration { index, term, change, named } => {
                (entry.index, entry.term, entry.data) = (index, term, change);
                entry.context = named_context(&named);
                entry.set_entry_type(EntryType::EntryConfChangeV2);
            }
        }
        Payload::of(&entry).map_err(refused)?;
        if entry.index > index {
            return contradiction("an entry is missing before it");
        }
        if entry.index <= log.ballot.commit || entry.index <= log.base.0 {
            return contradiction("it takes the place of what is agreed");
        }
        let before = log.term_of(entry.index - 1).unwrap_or(0);
        if entry.term < before || entry.term > COUNT_MAX || entry.index > COUNT_MAX {
            return contradiction("its term");
        }
        log.append(Arc::new(entry));
        Ok(())
    }

    /// Whoever is the only voter has agreed on all that is in its log, up to a change of that.
    fn agree_alone(&mut self, member: u64) {
        let log = &mut self.log;
        if log.members.voters != [member] || !log.members.voters_outgoing.is_empty() {
            return;
        }
        let change = log
            .after(log.applied)
            .find(|entry| entry.get_entry_type() != EntryType::EntryNormal)
            .map(|entry| entry.index);
        log.ballot.commit = log.ballot.commit.max(change.unwrap_or(log.last()));
    }
}

/// How an entry carries the name of its proposal.
pub(super) fn proposal_context(id: &ProposalId) -> Vec<u8> {
    postcard::to_stdvec(id).expect("it only has serializable fields")
}

/// How a change of members carries the names of nodes.
pub(super) fn named_context(named: &[NodeId]) -> Vec<u8> {
    if named.is_empty() {
        return Vec::new();
    }
    postcard::to_stdvec(named).expect("it only has serializable fields")
}

/// A value that is all of the bytes.
fn whole<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(DecodeError::Malformed),
    }
}

pub(super) fn encode<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![version]).expect("it only has serializable fields")
}

/// The value that the bytes begin with, and the bytes after it.
pub(super) fn decode<'a, T: Deserialize<'a>>(
    version: u8,
    bytes: &'a [u8],
    bytes_max: usize,
) -> Result<(T, &'a [u8]), DecodeError> {
    if bytes.len() > bytes_max {
        return Err(DecodeError::TooLong);
    }
    let (&found, body) = bytes.split_first().ok_or(DecodeError::Malformed)?;
    if found != version {
        return Err(DecodeError::Version(found));
    }
    postcard::take_from_bytes(body).map_err(|_| DecodeError::Malformed)
}
