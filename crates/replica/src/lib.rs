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
//! With several members per partition it goes by decisions 0008 and 0009: what members have is
//! compared and made equal while the session opens ([`Copier`] does the copying), a read is shown
//! when a write quorum has confirmed after it came, the settled point moves with flushes, and after
//! a change of the members it is looked what is still there. A disk that missed too much is
//! [`Coordinator::behind`] until the members are changed: [`Reconfigurer`] carries out one attempt
//! at that, which the agreed state has numbered.
//!
//! What lies below a head is sealed ([`Request::SwitchLayer`], then [`Request::Seal`]) when every
//! current member has it, stable: others then read it from any of them. A session that only reads a
//! head fences nobody and settles nothing: it asks a write quorum what each object stands at before
//! it reads that, and reads only from members that have what was chosen.
//!
//! Not here yet: a lineage whose number of copies changes is written by its present table only; and
//! what a dead writer left unsettled one reader may show and a later one not, nor the same after a
//! change of the members, until a writer attaches.
#![forbid(unsafe_code)]

mod chain;
mod choice;
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
