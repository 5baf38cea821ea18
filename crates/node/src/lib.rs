//! The daemon `sheep` and the command `dog`: everything that touches the world. It holds sockets,
//! threads, the clock, randomness and files, and performs what [`engine::Engine`] asks for.
//!
//! It must never decide anything about data: that is the engine's. It begins at
//! [`daemon::run`]: it opens a data directory, serves until it is told to stop, and closes it.
#![deny(unsafe_code)]
// This is the crate that may: it gives the core its time, and threads their work.
#![allow(clippy::disallowed_methods)]

pub mod api;
mod asker;
mod belonging;
pub mod client;
pub mod daemon;
mod data;
mod directory;
mod disk;
pub mod dog;
mod http;
pub mod identity;
pub mod join;
mod log;
mod nbd_client;
pub mod peers;
pub mod settings;
pub mod size;
mod sockets;
mod source;
pub mod span;
mod systemd;
