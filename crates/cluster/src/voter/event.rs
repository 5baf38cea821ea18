//! What a voter learns and wants, and how it looks from outside.

use super::roster::Recovery;
use crate::command::{Answer, DecodeError};
use crate::refusal::Refusal;
use proto::NodeId;

/// Chosen by the proposer; comes back with the result.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProposalToken(pub u64);

/// Names one request to the journal; comes back when it is done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestNumber(pub u64);

/// What a voter learns.
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
    /// `VOTER_TICK_MS` have passed. A voter that is alone needs none.
    Tick,
    /// Another member sent this with [`Effect::Send`]. It may be late, twice, or never come.
    Received {
        /// Who; its identity is beyond doubt.
        from: NodeId,
        /// What it sent.
        bytes: Vec<u8>,
    },
    /// Nothing reaches that member now, as far as its connection knows.
    Unreachable {
        /// Who.
        node: NodeId,
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
    /// Send this to another member, if it can be reached; it may be lost, but not changed.
    Send {
        /// To whom.
        to: NodeId,
        /// At most `VOTER_MESSAGE_BYTES_MAX`; handed to [`Event::Received`] there.
        bytes: Vec<u8>,
    },
    /// [`Voter::map`] shows what others proposed.
    Learned,
    /// The end of what [`Voter::begin_recovery`] began. After an error everything is as it was
    /// before, unless the journal failed.
    Recovered(Result<(), PersistError>),
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

/// A voter as seen from outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VoterStatus {
    /// Who leads, as far as this member knows.
    pub leader: Option<NodeId>,
    /// Whether it leads itself.
    pub leads: bool,
    /// Raft's term: grows with each election.
    pub term: u64,
    /// Who votes; while a change is under way, who will.
    pub voters: Vec<NodeId>,
    /// While a change of voters is under way, who voted before: a majority of them is needed too.
    pub outgoing: Vec<NodeId>,
    /// Who follows without a vote.
    pub learners: Vec<NodeId>,
    /// Whether a change of voters is under way.
    pub changing: bool,
    /// The last entry in its log, durable or not.
    pub last: u64,
    /// Its term.
    pub last_term: u64,
    /// The last entry that it knows to be agreed.
    pub committed: u64,
    /// The last entry that is applied.
    pub applied: u64,
    /// Its term.
    pub applied_term: u64,
    /// The last forced change of members, if there ever was one.
    pub recovery: Option<Recovery>,
    /// Why it takes no more part, if it does not.
    pub failed: Option<PersistError>,
}
