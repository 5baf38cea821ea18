//! One attached volume: from a guest's requests in bytes to changes of whole blocks in objects.
//!
//! It must never touch a disk or a socket, read a clock or draw randomness; it must answer every
//! request exactly once, and serve requests that overlap, if one of them writes, in the order of
//! their arrival.
//!
//! [`Session`] is the machine. Life: [`Session::open`] (fences and settles, until
//! [`Effect::Opened`]), then [`Event::Request`]s, each answered by [`Effect::Complete`], until
//! [`Event::Close`] has drained and flushed it ([`Effect::Closed`]) or a newer attachment ends it
//! ([`Effect::Fenced`]).
#![forbid(unsafe_code)]

mod closing;
mod event;
mod flatten;
mod locks;
mod origin;
mod pieces;
mod request;
mod session;
mod shelf;
mod shrink;
mod source;
mod stable;
mod switch;
mod work;

#[cfg(test)]
mod model;

pub use event::{Effect, Event, SourceAnswer, SourceToken, Waiting};
pub use flatten::Flattening;
pub use replica::View;
pub use request::{
    Answer, Base, Changed, Completion, Error, Extent, Operation, Request, RequestId, Tags,
};
pub use session::Session;
pub use source::SourceTrouble;
