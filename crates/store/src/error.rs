//! Why a disk cannot be made or opened, for people: cause and remedy in one sentence.

use proto::{ClusterId, DiskError, DiskId, NodeId};

/// Why a disk cannot be made or opened. Nothing on the medium was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing was ever written there.
    #[error(
        "the medium is blank, but this directory's node had a disk there: restore it from a \
         backup, or start with a new, empty data directory"
    )]
    Blank,
    /// There is something that is not ours.
    #[error(
        "the medium holds data that is not a Sheepdog disk: choose another one, or erase it first \
         if nothing on it is needed"
    )]
    Foreign,
    /// It was a disk, but neither superblock can be used.
    #[error(
        "both superblocks of the disk are damaged: this version keeps one copy, so restore the \
         disk and the `cluster` file from a backup, or start with a new data directory"
    )]
    SuperblocksDamaged,
    /// Format met something else than zeros.
    #[error(
        "the medium is not blank (data at byte {offset}): choose another one, or erase it first if \
         nothing on it is needed"
    )]
    NotBlank {
        /// Where the first byte that is not zero lies.
        offset: u64,
    },
    /// It is a disk, made by a newer release.
    #[error("the disk has format version {found}, newer than this release knows: upgrade first")]
    NewerVersion {
        /// The version in the superblock.
        found: u32,
    },
    /// A disk of another cluster.
    #[error("the disk belongs to cluster {found}, not to {expected}: attach it to its own cluster")]
    WrongCluster {
        /// What the superblock says.
        found: ClusterId,
        /// What it should say.
        expected: ClusterId,
    },
    /// A disk of another node.
    #[error("the disk belongs to node {found}, not to {expected}: attach it to its own node")]
    WrongNode {
        /// What the superblock says.
        found: NodeId,
        /// What it should say.
        expected: NodeId,
    },
    /// Another disk than the one expected here.
    #[error("this is disk {found}, not {expected}: check which medium is at this path")]
    WrongDisk {
        /// What the superblock says.
        found: DiskId,
        /// What it should say.
        expected: DiskId,
    },
    /// The disk was opened since this copy of it was made.
    #[error(
        "this is an old copy of the disk: it was opened {found} times, the cluster knows of \
         {known}; attach the present one"
    )]
    OldCopy {
        /// What the superblock says.
        found: u64,
        /// What the cluster knows.
        known: u64,
    },
    /// The agreed state has acknowledged a later opening of the disk than the one it knows of now.
    #[error(
        "an old copy of the journal was put back: it knows of {known} openings of the disk, and \
         the disk was told that {agreed} were agreed; put the newest one back"
    )]
    OldMap {
        /// What the cluster knows.
        known: u64,
        /// What the superblock says.
        agreed: u64,
    },
    /// The medium has no room for a disk of the size asked for.
    #[error(
        "there is no room for the disk: its log alone is to have {log_bytes} bytes; give a smaller \
         --disk-log, or free some space"
    )]
    NoRoom {
        /// The length of the log that was asked for, or chosen.
        log_bytes: u64,
    },
    /// Formatted as a file and opened as a device, or the other way round.
    #[error("the disk was made on another kind of medium: copy it to the kind it was made for")]
    WrongKind,
    /// The medium ends before something that is in use.
    #[error(
        "the medium has {found} bytes, but the disk uses {needed}: it was truncated; restore the \
         rest from a copy"
    )]
    Truncated {
        /// Length of the medium.
        found: u64,
        /// What it must have at least.
        needed: u64,
    },
    /// Both copies of a part of the checkpoint are damaged.
    #[error(
        "the object table is damaged at block {address} and so is its twin: this version \
         keeps one copy, so restore the disk and the `cluster` file from a backup"
    )]
    TableDamaged {
        /// The block address of the first copy.
        address: u64,
    },
    /// The log has a hole in what was flushed.
    #[error(
        "the log is damaged at block {address} before its end: this version keeps one copy, \
         so restore the disk and the `cluster` file from a backup"
    )]
    LogDamaged {
        /// The block address of the missing batch.
        address: u64,
    },
    /// What was cut off cannot be recorded.
    #[error(
        "the log has no room left to record what a crash cut off: this version keeps one copy, \
         so restore the disk and the `cluster` file from a backup"
    )]
    LogFull,
    /// The medium failed.
    #[error("the medium failed while it was opened: {0}; check the device, then start again")]
    Medium(#[from] DiskError),
    /// What was asked for cannot be.
    #[error("{0}")]
    Refused(String),
}
