//! How a machine becomes a node: what it says to a node of the cluster, and what that answers.
//!
//! Both sides are plain machines that see bytes of a TLS connection and nothing else; sockets and
//! TLS are with [`crate::peers`] for the one who is asked, with [`join`] for the one who asks.
//! What they say is drawn in `docs/formats/join.md`.

mod client;
mod host;
mod message;

pub use client::join;
pub use host::{Application, Host, HostError, Verdict};
pub use message::{MESSAGE_BYTES_MAX, Refusal, Request, Welcome};

/// The label of what both sides of a TLS connection derive from it (RFC 8446, section 7.5) and a
/// request is signed for: what was said on one connection is worth nothing on another.
pub const BINDING: &[u8] = b"EXPORTER-sheepdog-join-1";
