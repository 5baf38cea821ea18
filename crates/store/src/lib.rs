//! One disk: a log, an allocator, object maps, recovery and scrub on one medium, as drawn in
//! `docs/formats/disk.md`.
//!
//! It must never do I/O, read a clock, draw randomness or block: everything it wants of the medium
//! is an [`Effect::Disk`], everything it learns an [`Event`]. Its main type is [`Store`].
//! Life cycle: [`Format`] makes a blank medium a disk; [`Store::open`] replays it; then requests
//! are handled, with [`Store::poll`] at the end of every round; [`Event::Close`] ends it in
//! order, and dropping it at any moment is a crash that the next open survives.
#![forbid(unsafe_code)]

mod cache;
pub mod check;
mod error;
mod event;
mod format;
#[doc(hidden)]
pub mod fuzzing;
mod inflight;
pub mod journal;
mod layout;
mod log;
mod open;
mod options;
mod refusals;
mod space;
mod status;
mod store;
mod table;
mod tree;

pub use error::OpenError;
pub use event::{Effect, Event, Notice, Opened, ScrubCommand};
pub use format::Format;
pub use journal::Journal;
pub use options::{Expected, FormatOptions, Identity, MediumKind, Options, ScrubRate};
pub use status::{
    Counters, Damage, DamagedPart, LayerHere, Room, ScrubStatus, SpaceStatus, State, Status, Usage,
    Waiting,
};
pub use store::Store;

/// Least length of the log, in bytes.
pub const LOG_BYTES_MIN: u64 = 64 << 10;
/// Damages a store remembers for its status.
pub const DAMAGES_MAX: usize = 1024;
