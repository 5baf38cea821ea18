//! What administrators see of groups of volumes.

use proto::LayerId;
use serde::{Deserialize, Serialize};

/// One group of volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupReport {
    /// Its name.
    pub name: String,
    /// When it was created, seconds since 1970.
    pub created_unix_s: u64,
    /// Its volumes, by name.
    pub volumes: Vec<String>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<GroupSnapshotReport>,
}

/// Snapshots of several volumes of one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSnapshotReport {
    /// The group's name.
    pub group: String,
    /// Its own name, which each of its snapshots has too.
    pub tag: String,
    /// When it was taken, seconds since 1970.
    pub created_unix_s: u64,
    /// Of how many volumes it was taken.
    pub count: u32,
    /// Whether all of its snapshots still exist: only then can the group go back to it.
    pub complete: bool,
    /// Whether some of it is still being taken: that cannot be read yet.
    pub sealing: bool,
    /// Those of its snapshots that still exist.
    pub members: Vec<GroupMemberReport>,
}

/// One snapshot of a group snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMemberReport {
    /// The volume's name.
    pub volume: String,
    /// The snapshot's layer.
    pub layer: LayerId,
    /// The volume's size when it was taken, in bytes.
    pub bytes: u64,
    /// What is kept for it, in bytes: the data written between the snapshot before it and it.
    pub used_bytes: u64,
    /// Whether it is still being taken: it cannot be read yet.
    pub sealing: bool,
    /// Whether its volume is in the trash.
    pub in_trash: bool,
}
