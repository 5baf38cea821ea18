//! Replication, seen from a volume's session: which disks hold an object, in which order its
//! writes take effect, who has acknowledged what, and what of it is stable.
//!
//! It must never touch a disk or a socket, read a clock or draw randomness, and never acknowledge
//! a write that fewer than a quorum of the object's current members have. It meets disks only as
//! `proto` messages.
//!
//! [`Coordinator`] is the machine, one per attached volume. Life: [`Coordinator::open`] fences the
//! disks and settles what an earlier session left in flight, until [`Effect::Opened`]; then
//! [`Event::Request`]s end with [`Effect::Done`] each, until the coordinator is dropped or a newer
//! attachment ends it with [`Effect::Fenced`].
//!
//! A new head ([`Request::SwitchLayer`]) is opened by each disk after the last change of the former
//! one has been answered by it, and before the first change of the new one is sent to it. What
//! shows through from another lineage ([`cluster::Map::chain`]) is read like the
//! volume's own, but without a fence: it is sealed.
//!
//! Built for one copy, shaped for several: fan-out, quorums, chains and flush accounting count
//! members. What several copies need beyond that is not here yet: pulling what a member missed
//! from its peers, changing members under a running session, and read promises.
//!
//! [`Copier`] makes one object equal to a peer's copy. [`Reconfigurer`] changes the members of
//! partitions: it carries out one attempt that the agreed state has numbered.
#![forbid(unsafe_code)]

mod chain;
mod confirm;
mod coordinator;
mod copier;
mod event;
mod flush;
mod layers;
mod opening;
mod partitions;
mod peer;
mod read;
mod reconfigurer;
mod sequence;
mod settle;
mod slots;
mod verify;

#[cfg(test)]
mod copier_tests;
#[cfg(test)]
mod disk_model;
#[cfg(test)]
mod model;
#[cfg(test)]
mod world_model;

pub use coordinator::Coordinator;
pub use copier::{Becomes, Copied, Copier, Copy, CopyError, CopyLayer, CopyQuestion};
pub use event::{Answer, Effect, Error, Event, Request, Source, View};
pub use reconfigurer::{
    AttemptOutcome, AttemptProgress, AttemptQuestion, AttemptStage, GiveUp, Reconfigurer,
};
pub use settle::settle;
pub use slots::Slots;
