//! One end of the connection between two nodes, without a socket: who may speak, what is in flight,
//! what is sent again after a break. The frames are drawn in `docs/formats/wire.md` and made by
//! `proto::wire`.
//!
//! It must never open a socket, read a clock, draw randomness, or hold more than the limits that
//! `proto::limits` names, whatever the peer does. Its main type is [`Link`]: one for each peer,
//! made when the map shows the peer and stopped when it does not any more; connections come and go
//! meanwhile. The node with the lower id dials at once, the other one where nobody came for a
//! while; a listener reads the first frame of a connection with a [`Greeter`] and gives it to the
//! link of the node that it names.
//!
//! A driver owns the sockets:
//!
//! * [`Effect::Dial`]: it connects, then [`Event::Dialled`] or [`Event::DialFailed`]. What a
//!   listener accepts goes through a [`Greeter`] to [`Link::handle_accepted`].
//! * While a connection lives it reads the socket: into [`Link::payload_target`] if there is one,
//!   then [`Link::handle_payload`]; else into memory of its own, then [`Link::handle_bytes`].
//! * Once a round it writes [`Link::output`] with one `writev` and tells how much the socket took:
//!   [`Link::handle_sent`], before it hands in further input.
//! * At [`Link::deadline`] it calls [`Link::handle_deadline`], after it has read what is there: a
//!   process that was held up must not take its peers for silent.
//! * [`Effect::Close`]: it writes the farewell if the socket takes it, and closes.
//!
//! Calls name the connection they are about; those about one that has ended are without effect.
#![forbid(unsafe_code)]

mod answerer;
mod asker;
mod event;
#[doc(hidden)]
pub mod fuzz;
mod greeter;
mod incoming;
mod link;
mod output;
mod reason;
#[cfg(test)]
mod tests;

pub use event::{Beat, Counters, Effect, Event, Question, Settings};
pub use greeter::Greeter;
pub use link::Link;
pub use reason::CloseReason;
