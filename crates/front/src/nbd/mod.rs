//! The server's side of the Network Block Device protocol, fixed newstyle, as a machine without a
//! socket. What is spoken and what is refused is drawn in `docs/formats/nbd.md`.
//!
//! A driver owns the socket and one [`Connection`] for it:
//!
//! * While [`Connection::wants_input`], it reads the socket: into [`Connection::payload_target`]
//!   if there is one, then [`Connection::handle_payload`]; else into memory of its own, at most
//!   `NBD_INPUT_BYTES_MAX` bytes, then [`Connection::handle_bytes`].
//! * It carries out the [`Effect`]s in order. The questions among them are answered by
//!   [`Connection::handle_answer`], the requests by [`Connection::handle_completion`].
//! * After it tried to write, it tells what the socket has not taken yet:
//!   [`Connection::handle_unsent`], also when that is nothing. Replies wait for it.
//! * At [`Connection::deadline`] it calls [`Connection::handle_deadline`].
//! * [`Effect::Close`] is the last effect.

mod connection;
mod contexts;
mod errors;
#[doc(hidden)]
pub mod fuzz;
mod handshake;
mod incoming;
mod output;
#[cfg(test)]
mod tests;
mod transmission;
mod wire;

pub use connection::{CloseReason, Connection, Effect, Settings};
pub use output::Segment;
