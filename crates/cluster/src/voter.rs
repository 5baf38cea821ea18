//! The way of a command: proposed, logged, made durable, applied.
//!
//! This is a Raft group of one: it has what a group will have (proposals with tokens, a log of
//! indexed entries, durability reported from outside, snapshots that cut the log), and nobody to
//! ask. A command is applied only once its entry is durable, and in the order of the log; at boot
//! the log is replayed onto the last snapshot.
//!
//! One request to the journal is under way at a time; what is proposed meanwhile goes into the next
//! one together. So when the journal refuses a request, nothing later rests on it.

use crate::command::{Answer, Command, DecodeError};
use crate::map::Map;
use crate::refusal::Refusal;
use crate::state::{COUNT_MAX, State};
use proto::limits::{
    COMMAND_BYTES_MAX, JOURNAL_APPEND_BYTES_MAX, LOG_BYTES_BEFORE_SNAPSHOT, PROPOSALS_MAX,
    SNAPSHOT_BYTES_MAX,
};
use proto::{BLOCK_SIZE, Duration, Time};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, sync::Arc};

/// Chosen by the proposer; comes back with the result.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProposalToken(pub u64);

/// Names one request to the journal; comes back when it is done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestNumber(pub u64);

/// What the journal reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The end of an [`Effect::Append`] or [`Effect::Snapshot`]: all of it is durable, or nothing
    /// of it was done.
    Persisted {
        /// Which request.
        request: RequestNumber,
        /// Whether it is durable.
        result: Result<(), PersistError>,
    },
}

/// Why the journal did not make a request durable.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PersistError {
    /// It has no space left; everything is as it was before.
    #[error(
        "the file system that holds the cluster's log is full; free some space there and try again"
    )]
    NoSpace,
    /// It failed and takes nothing more. What was in flight may or may not be found at the next
    /// start.
    #[error("the cluster's log failed ({0}); see to its disk, then start sheep again")]
    Failed(String),
}

/// What the voter wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Append these records to the log, in order, durably; all or nothing.
    Append {
        /// To be reported with [`Event::Persisted`].
        request: RequestNumber,
        /// Opaque bytes, handed back to [`Voter::boot`].
        records: Vec<Vec<u8>>,
    },
    /// Replace the snapshot and all records of the log by this, durably; all or nothing.
    Snapshot {
        /// To be reported with [`Event::Persisted`].
        request: RequestNumber,
        /// Opaque bytes, handed back to [`Voter::boot`].
        bytes: Vec<u8>,
    },
    /// A proposal came to its end; [`Voter::map`] shows its outcome. After
    /// [`Refusal::NotLogged`] with [`PersistError::Failed`] it may yet be found carried out at the
    /// next start.
    Applied {
        /// Whose.
        token: ProposalToken,
        /// What the state said.
        result: Result<Answer, Refusal>,
    },
}

/// Why a voter cannot start from what its journal holds.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BootError {
    /// The snapshot is whole (its journal checked that) but not understood.
    #[error("the snapshot of the cluster's state cannot be used: {0}")]
    Snapshot(DecodeError),
    /// An entry is whole but not understood.
    #[error("entry {index} of the cluster's log cannot be used: {error}")]
    Entry {
        /// The index it should have.
        index: u64,
        /// What is wrong.
        error: DecodeError,
    },
}

/// The version of records and snapshots, their first byte.
const VERSION: u8 = 1;
/// More than the version, index, term and lengths around a command or a state take.
const WRAPPING_BYTES: usize = 64;
/// What the journal puts around a record.
const RECORD_FRAMING_BYTES: usize = 4;
/// The longest record, with what the journal puts around it.
const RECORD_BYTES_MAX: usize = COMMAND_BYTES_MAX + WRAPPING_BYTES + RECORD_FRAMING_BYTES;
/// The term of a group of one: it elects itself once and for all.
const TERM: u64 = 1;

/// A record of the log. New kinds go to the end: a group will add votes and members.
#[derive(Serialize, Deserialize, PartialEq, Eq, Debug)]
enum Record {
    /// A command at its place in the log.
    Entry { index: u64, term: u64, command: Vec<u8> },
}

/// What a snapshot begins with; the encoded state after all entries up to `index` follows.
#[derive(Serialize, Deserialize)]
struct SnapshotHead {
    index: u64,
    term: u64,
}

/// What the journal is working on.
#[derive(Debug)]
enum InFlight {
    Append { proposals: Vec<(ProposalToken, Command)>, bytes: usize },
    Snapshot,
}

/// The only voter of a cluster of one.
#[derive(Debug)]
pub struct Voter {
    state: State,
    /// The last entry that is durable and applied.
    applied: u64,
    /// Proposals that wait for the next request to the journal.
    queue: VecDeque<(ProposalToken, Command)>,
    in_flight: Option<(RequestNumber, Time, InFlight)>,
    next_request: RequestNumber,
    /// Bytes that the log takes since the last snapshot, or the last attempt at one.
    log_bytes: usize,
    /// Whether a snapshot was tried to make room for what waits, since it last fitted.
    squeezed: bool,
    /// Set once the journal has failed: nothing is taken any more.
    failed: Option<PersistError>,
}

impl Voter {
    /// From what the journal holds: the last snapshot, if there is one, and the records since, in
    /// order. Both empty is a new voter, whose cluster is yet to be created.
    pub fn boot(snapshot: Option<&[u8]>, records: &[Vec<u8>]) -> Result<Voter, BootError> {
        let (mut state, mut applied) = (State::default(), 0);
        if let Some(bytes) = snapshot {
            let (head, rest): (SnapshotHead, _) =
                decode(bytes, SNAPSHOT_BYTES_MAX + WRAPPING_BYTES).map_err(BootError::Snapshot)?;
            state = State::decode(rest).map_err(BootError::Snapshot)?;
            applied = head.index;
            if applied > COUNT_MAX {
                let what = "a count without end";
                return Err(BootError::Snapshot(DecodeError::Contradiction(what)));
            }
        }
        let mut log_bytes = 0usize;
        for record in records {
            let index = applied.saturating_add(1);
            let entry = |error| BootError::Entry { index, error };
            let (Record::Entry { index: found, command, .. }, rest) =
                decode(record, COMMAND_BYTES_MAX + WRAPPING_BYTES).map_err(entry)?;
            if !rest.is_empty() {
                return Err(entry(DecodeError::Malformed));
            }
            if found != index {
                return Err(entry(DecodeError::Contradiction("an entry is missing before it")));
            }
            let command = Command::decode(&command).map_err(entry)?;
            // What was refused then is refused now: the state decides, not the log.
            let _ = state.apply(&command);
            applied = index;
            // Each may have been an append of its own.
            log_bytes = log_bytes.saturating_add(record.len().next_multiple_of(BLOCK_SIZE));
        }
        Ok(Voter {
            state,
            applied,
            queue: VecDeque::new(),
            in_flight: None,
            next_request: RequestNumber(1),
            log_bytes,
            squeezed: false,
            failed: None,
        })
    }

    /// The present map: all that is applied, nothing that is only proposed.
    pub fn map(&self) -> Arc<Map> {
        self.state.map()
    }

    /// How many entries are applied.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// How long the journal has been working on its request and how many proposals wait for it, if
    /// it has one.
    pub fn waiting(&self, now: Time) -> Option<(Duration, usize)> {
        let (_, since, request) = self.in_flight.as_ref()?;
        let with_it = match request {
            InFlight::Append { proposals, .. } => proposals.len(),
            InFlight::Snapshot => 0,
        };
        Some((now.since(*since), with_it + self.queue.len()))
    }

    /// Asks for a command. It ends with [`Effect::Applied`], perhaps at once.
    pub fn propose(
        &mut self,
        now: Time,
        token: ProposalToken,
        command: Command,
        effects: &mut Vec<Effect>,
    ) {
        let refusal = if let Some(error) = &self.failed {
            Refusal::NotLogged(error.clone())
        } else if self.queue.len() >= PROPOSALS_MAX {
            Refusal::TooManyProposals
        } else {
            match command.bounded() {
                Ok(command) => {
                    self.queue.push_back((token, command));
                    return self.start(now, effects);
                }
                Err(refusal) => refusal,
            }
        };
        effects.push(Effect::Applied { token, result: Err(refusal) });
    }

    /// Asks for a snapshot, which writes all that the journal holds anew: what to do when it has
    /// found damage that it cannot repair.
    pub fn rewrite(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.log_bytes = LOG_BYTES_BEFORE_SNAPSHOT;
        self.start(now, effects);
    }

    /// Takes a report of the journal.
    ///
    /// # Panics
    /// If it is about another request than the one under way: a bug of the caller.
    pub fn handle(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) {
        let Event::Persisted { request, result } = event;
        let (expected, _, in_flight) = self.in_flight.take().expect("no request is under way");
        assert_eq!(request, expected, "another request is under way");
        match (in_flight, result) {
            (InFlight::Append { proposals, bytes }, Ok(())) => {
                self.log_bytes += bytes;
                self.squeezed = false;
                for (token, command) in proposals {
                    self.applied += 1;
                    let result = self.state.apply(&command);
                    effects.push(Effect::Applied { token, result });
                }
            }
            // A snapshot cuts the log, which may be all the space that is needed: who has a volume
            // to give back, or space, is not refused before that was tried.
            (InFlight::Append { proposals, .. }, Err(PersistError::NoSpace))
                if !self.squeezed && self.queue.len() + proposals.len() <= PROPOSALS_MAX =>
            {
                self.squeezed = true;
                self.log_bytes = LOG_BYTES_BEFORE_SNAPSHOT;
                proposals.into_iter().rev().for_each(|waits| self.queue.push_front(waits));
            }
            (InFlight::Append { proposals, .. }, Err(error)) => {
                refuse(proposals, &error, effects);
                self.squeezed = false;
                self.persist_failed(error, effects);
            }
            (InFlight::Snapshot, Ok(())) => {}
            (InFlight::Snapshot, Err(error)) => self.persist_failed(error, effects),
        }
        self.start(now, effects);
    }

    /// Latches a failure that is final.
    fn persist_failed(&mut self, error: PersistError, effects: &mut Vec<Effect>) {
        if matches!(error, PersistError::Failed(_)) {
            refuse(std::mem::take(&mut self.queue), &error, effects);
            self.failed = Some(error);
        }
    }

    /// Gives the journal its next request, if it has none and there is something to do.
    fn start(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.in_flight.is_some() || self.failed.is_some() {
            return;
        }
        let request = self.next_request;
        let in_flight = if self.log_bytes >= LOG_BYTES_BEFORE_SNAPSHOT {
            // Where it fails for want of space the log goes on, and the next attempt is due after
            // as many bytes again.
            self.log_bytes = 0;
            effects.push(Effect::Snapshot { request, bytes: self.snapshot() });
            InFlight::Snapshot
        } else if !self.queue.is_empty() {
            let (proposals, records, bytes) = self.next_append();
            effects.push(Effect::Append { request, records });
            // The journal writes whole blocks.
            InFlight::Append { proposals, bytes: bytes.next_multiple_of(BLOCK_SIZE) }
        } else {
            return;
        };
        self.next_request = RequestNumber(request.0 + 1);
        self.in_flight = Some((request, now, in_flight));
    }

    /// Takes as many proposals from the queue as fit into one append: themselves, their records and
    /// the bytes of these.
    fn next_append(&mut self) -> (Vec<(ProposalToken, Command)>, Vec<Vec<u8>>, usize) {
        let (mut proposals, mut records, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes + RECORD_BYTES_MAX <= JOURNAL_APPEND_BYTES_MAX
            && let Some((token, command)) = self.queue.pop_front()
        {
            let index = self.applied + 1 + proposals.len() as u64;
            let record = encode(&Record::Entry { index, term: TERM, command: command.encode() });
            bytes += record.len() + RECORD_FRAMING_BYTES;
            records.push(record);
            proposals.push((token, command));
        }
        (proposals, records, bytes)
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = encode(&SnapshotHead { index: self.applied, term: TERM });
        bytes.extend_from_slice(&self.state.encode());
        bytes
    }

    /// Asserts every invariant of the state and of the voter.
    ///
    /// # Panics
    /// If one does not hold: a bug.
    pub fn check(&self) {
        self.state.check();
        assert!(self.queue.len() <= PROPOSALS_MAX);
        assert!(self.queue.is_empty() || self.in_flight.is_some(), "nobody works on the queue");
        assert!(self.failed.is_none() || self.in_flight.is_none());
    }
}

/// Ends proposals that are not in the log.
fn refuse(
    proposals: impl IntoIterator<Item = (ProposalToken, Command)>,
    error: &PersistError,
    effects: &mut Vec<Effect>,
) {
    effects.extend(proposals.into_iter().map(|(token, _)| Effect::Applied {
        token,
        result: Err(Refusal::NotLogged(error.clone())),
    }));
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![VERSION]).expect("it only has serializable fields")
}

/// The value that the bytes begin with, and the bytes after it.
fn decode<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    bytes_max: usize,
) -> Result<(T, &'a [u8]), DecodeError> {
    if bytes.len() > bytes_max {
        return Err(DecodeError::TooLong);
    }
    let (&version, body) = bytes.split_first().ok_or(DecodeError::Malformed)?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    postcard::take_from_bytes(body).map_err(|_| DecodeError::Malformed)
}

#[cfg(test)]
#[path = "voter_tests.rs"]
mod tests;
