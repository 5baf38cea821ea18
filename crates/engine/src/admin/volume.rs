//! What administrators see of where a volume is, and of what shows through it.

use proto::{DiskId, LayerId, NodeId, PartitionId};
use serde::{Deserialize, Serialize};

/// How the copies of a volume are, what is waited for, and what a loss would do.
///
/// Bytes are those of the volume's size, written or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainReport {
    /// The volume's name.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// How many copies it asks for.
    pub copies: u8,
    /// No copy is left out so that fewer than these stay, unless it never had so many.
    pub min_copies: u8,
    /// How many it can have with the disks there are.
    pub possible: u8,
    /// All copies that are possible are there and whole.
    pub whole: bool,
    /// One sentence each: how it is, what is waited for, what would hurt, and until when.
    pub summary: Vec<String>,
    /// The parts of it that lie on the same disks and are in the same way, the worst first.
    pub groups: Vec<PartGroupReport>,
    /// What the loss of each node would do now, that of the worst first. Nodes whose loss would not
    /// be felt are not listed.
    pub losses: Vec<LossReport>,
    /// In how many seconds all copies of the cluster that are possible are there, at the pace of
    /// the last minute; nothing if that is not known, or none is missing.
    pub whole_in_s: Option<u64>,
    /// Where so many objects lie was not counted, as there are too many: bytes are about right.
    pub estimated: bool,
}

/// Parts of a volume that lie on the same disks and are in the same way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartGroupReport {
    /// Whose content it is: the volume itself, or what shows through where that was not written.
    pub part: String,
    /// How many objects of it lie here.
    pub objects: u64,
    /// How many bytes those are.
    pub bytes: u64,
    /// In which partitions.
    pub partitions: Vec<PartitionId>,
    /// Of so many copies how many must have a write.
    pub quorum: u32,
    /// Whether it can be written now.
    pub writable: bool,
    /// The copies.
    pub members: Vec<PartMemberReport>,
    /// What is done about them or waited for, if anything is.
    pub doing: Option<String>,
}

/// One copy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PartMemberReport {
    /// On which disk.
    pub disk: DiskId,
    /// Of which node.
    pub node: NodeId,
    /// What people call that; its id if nobody said.
    pub node_name: String,
    /// `whole`, `behind` (it has missed writes), `opened anew` (what it missed is not found out
    /// yet), `away`, `gone` (it was taken out), or `building` (it does not count yet).
    pub state: String,
    /// For how many seconds it has been away or building, if that is known.
    pub since_s: Option<u64>,
}

/// What the loss of a node would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossReport {
    /// Which node.
    pub node: NodeId,
    /// What people call it; its id if nobody said.
    pub node_name: String,
    /// No whole copy of so many bytes would be left.
    pub lost_bytes: u64,
    /// So many could not be read or written until it, or another copy that is away, is back.
    pub waiting_bytes: u64,
    /// So many would wait for a moment, until it is left out.
    pub paused_bytes: u64,
}

/// Where a volume is, or one of its objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocateReport {
    /// The volume's name.
    pub name: String,
    /// Which object was asked for.
    pub index: Option<u64>,
    /// How many the volume has.
    pub objects: u64,
    /// The copies, by part and disk.
    pub located: Vec<LocatedReport>,
    /// See [`ExplainReport::estimated`].
    pub estimated: bool,
}

/// What lies on one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocatedReport {
    /// See [`PartGroupReport::part`].
    pub part: String,
    /// On which disk, of which node, and how.
    #[serde(flatten)]
    pub member: PartMemberReport,
    /// How many objects have their place there, written or not.
    pub objects: u64,
    /// How many bytes of the volume those are.
    pub bytes: u64,
}

/// What shows through a clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginReport {
    /// "volume@tag"; nothing: the snapshot was deleted, and is kept, hidden, for its clones.
    pub name: Option<String>,
    /// Its layer.
    pub layer: LayerId,
    /// So many bytes from the start show through.
    pub bytes: u64,
    /// Where it is, if it lies elsewhere.
    #[serde(default)]
    pub source: Option<String>,
    /// Through how many other volumes' snapshots the volume reads, one after the other; this is the
    /// first of them.
    #[serde(default)]
    pub lineages: u32,
}

/// How far flattening or shortening is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlattenReport {
    /// Whether it goes on at this moment; else it waits for the volume's session.
    pub running: bool,
    /// So many bytes need no copying any more. 0 while it waits.
    pub done_bytes: u64,
    /// Of so many.
    pub total_bytes: u64,
    /// Why it came to a halt. It is tried again after a while.
    pub error: Option<String>,
    /// How fast it went of late, in bytes a second; 0 when that is not known.
    #[serde(default)]
    pub bytes_per_s: u64,
    /// Why it does not go on: the source that does not answer, and for how long.
    #[serde(default)]
    pub waiting: Option<String>,
}

/// One schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleReport {
    /// The volume's name.
    pub volume: String,
    /// Its own name.
    pub schedule: String,
    /// One snapshot in so many seconds, its *slot*: slots are counted from 1970.
    pub every_s: u32,
    /// How many snapshots are kept.
    pub keep: u32,
    /// When the next snapshot is due, in seconds since 1970, or was if it is still being tried;
    /// nothing: it rests, as its volume is in the trash.
    pub next_unix_s: Option<u64>,
    /// The last slot that has its snapshot, or had to do without one.
    pub last_slot: u64,
    /// How many snapshots of it there are now. More than `keep`, while some are locked, or read.
    pub snapshots: u32,
    /// When the latest of them was taken, in seconds since 1970.
    pub last_snapshot_unix_s: Option<u64>,
    /// Why the last one could not be taken, if it could not.
    pub problem: Option<String>,
    /// Whether that lasts: `status` warns of it.
    pub failing: bool,
}
