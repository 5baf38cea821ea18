//! Why a journal cannot be opened, or did not take something: sentences with cause and remedy.

use proto::{ClusterId, DiskError, NodeId};

/// Why a journal cannot be opened or created. Nothing was written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing was ever created there, or its creation did not end. Create it; but not where disks
    /// of a cluster are already: then the journal was lost and must be put back.
    #[error(
        "the cluster's journal is blank; put it back from a copy, or start with an empty data \
         directory"
    )]
    Blank,
    /// There is a journal where one was to be created.
    #[error("there is a cluster's journal already; open it, or use another data directory")]
    Exists,
    /// There is something else where a journal was to be created or opened, or both copies of its
    /// header are damaged.
    #[error(
        "the cluster's journal has no valid header in either copy: it is damaged or another file; \
         put it back from a copy"
    )]
    NoHeader,
    /// Written by a later version.
    #[error(
        "the cluster's journal has format {0}, which this sheep does not know; run the sheep that \
         wrote it"
    )]
    Version(u32),
    /// The journal of another cluster.
    #[error(
        "the journal belongs to cluster {found}, not {expected}; use the data directory of the \
         right cluster"
    )]
    WrongCluster {
        /// Whose it is.
        found: ClusterId,
        /// Whose it should be.
        expected: ClusterId,
    },
    /// The journal of another node.
    #[error(
        "the journal belongs to node {found}, not {expected}; every node needs a data directory of \
         its own"
    )]
    WrongNode {
        /// Whose it is.
        found: NodeId,
        /// Whose it should be.
        expected: NodeId,
    },
    /// A record is bad in both copies and was durable once: without it the agreed state is unknown.
    #[error(
        "the cluster's journal is damaged in both copies at bytes {first} and {second} ({what}); \
         put it back from a copy"
    )]
    Damaged {
        /// Where the first copy of it lies, in bytes.
        first: u64,
        /// Where the second copy of it lies, in bytes.
        second: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// The medium failed while what was found was made durable or repaired.
    #[error("the cluster's journal cannot be made ready: {0}; see to its disk, then start again")]
    Medium(DiskError),
}

/// Why the journal did not make something durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendError {
    /// No space: nothing was done, and everything is as it was.
    #[error("no space for the cluster's journal; free some and try again")]
    NoSpace,
    /// The medium failed. Whether it is found at the next opening is unknown; until then the
    /// journal takes nothing.
    #[error("the cluster's journal failed: {0}; see to its disk, then start again")]
    Failed(DiskError),
}
