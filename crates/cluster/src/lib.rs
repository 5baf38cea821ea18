//! The cluster's agreed state: which nodes, disks and volumes exist, where partitions lie, and who
//! may write which volume.
//!
//! It must never do I/O, read a clock or draw randomness: every voter that applies the same
//! commands in the same order has the same state, byte for byte. No guest I/O passes through here.
//!
//! [`State`] is the machine: [`State::apply`] takes one [`Command`] and gives an [`Answer`] or a
//! [`Refusal`]; [`State::map`] hands out the present [`Map`], immutable, which is all that the rest
//! of the system ever reads. [`Voter`] is the way a command takes to the state: proposed, written
//! to the log of a majority, and applied only once they have it durably; it is one member of a Raft
//! group, or all of it. Life: [`Voter::boot`] with what the journal holds (nothing, for a new
//! cluster), then [`Voter::propose`] and [`Voter::handle`] for ever. [`steward::plan`] says what to
//! propose so that every partition gets the members that it should have.
#![forbid(unsafe_code)]

mod attempt;
mod command;
mod departure;
mod durability;
mod group;
mod layer;
mod layering;
mod machine;
mod map;
mod membership;
mod migrate;
mod partition;
pub mod placement;
mod recovery;
mod redundancy;
mod refusal;
mod schedule;
mod snapshot;
mod source;
mod state;
pub mod steward;
mod token;
mod trash;
mod volume;
mod voter;

#[cfg(test)]
mod layers_model;
#[cfg(test)]
mod machine_model;
#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod model;
#[cfg(test)]
mod steward_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod whole_tests;

pub use attempt::{Attempt, Change};
pub use command::{Answer, Command, DecodeError};
pub use durability::Durability;
pub use group::{Group, GroupSnapshot, GroupStage, check_group_name};
pub use layer::{Going, Layer, Origin, Snapshot, onto};
pub use machine::{Disk, DiskState, Node, NodeState, check_node_address};
pub use map::{LayerFate, Map};
pub use partition::{Configuration, Member};
pub use proto::partition_of;
pub use redundancy::{Redundancy, min_copies_default};
pub use refusal::{Refusal, RefusalKind};
pub use schedule::{Schedule, check_schedule_name};
pub use source::{Source, check_address};
pub use state::State;
pub use token::{Admission, Applicant, Digest, Token, TokenId};
pub use volume::{
    Attachment, PendingDiscard, SIZE_UNIT, Trash, Volume, check_name, check_size, check_tag,
};
pub use voter::{
    BootError, Effect, Event, Following, Founding, PersistError, Place, ProposalToken, Recovery,
    RecoveryRefusal, RequestNumber, Seat, SeatChange, Voter, VoterStatus, next_seat_change,
    wanted_voters,
};
