//! A cluster in its world: machines with clocks of their own, a network that breaks, guests that
//! move between nodes, and one seed that decides all.
//!
//! A run has a phase in which everything may go wrong that the [`atlas`] allows, then everything
//! heals, and what was promised must come true within a bounded time. Every node has a disk, but
//! sometimes one that only votes.

pub mod atlas;
mod clock;
mod copies;
mod errands;
mod ledger;
mod life;
mod member;
mod mix;
mod net;
mod shrink;
mod world;

pub use life::End;
pub use mix::{ClusterMix, Fault, Troubles};
pub use shrink::{Shrunk, shrink};
pub use world::{ClusterSummary, ClusterWorld};
