//! Real processes: `sheep`, `dog`, QEMU, fio and other people's NBD clients on one machine.
//!
//! The library is the harness; the tests are in `tests/`, one file a subject, and `make demo` is
//! `src/bin/demo.rs`. A [`Node`] is a `sheep` on a scratch directory that can be killed and started
//! again, a [`Guest`] a virtual machine that does what a script says, a [`Tool`] any other program
//! with a time limit. All of them clean up when dropped.
//!
//! It must never hide a fault: a program that is missing fails the test with the name of what
//! installs it, a line with WARN or ERROR in a node's log fails the test unless it was announced
//! ([`Node::expect_log`]), and nothing is skipped. It must never touch a process that it did not
//! start, nor an address off this machine.

#![allow(clippy::disallowed_methods, reason = "real processes are started, timed and awaited")]

mod cluster;
mod fault_disk;
mod guest;
mod load;
mod look;
pub mod nbd;
mod netns;
mod node;
mod programs;
mod qmp;
mod scratch;
mod tool;

pub use cluster::Cluster;
pub use fault_disk::{FaultDisk, Unflushed};
pub use guest::{DiskSetup, Guest, GuestOutput, Machine, VerifiedLoad};
pub use load::{History, Load, Moment, NEVER};
pub use look::{below, content, wait_empty, wait_free, wait_until};
pub use netns::Network;
pub use node::{LogLine, Node};
pub use programs::{dog, guest_file, repository, sheep};
pub use qmp::Qmp;
pub use scratch::{LoopMount, Scratch, digest, direct_io_alignment, patchy_file};
pub use tool::{Tool, ToolOutput};
