//! What administrators see of the whole cluster.

use proto::{ClusterId, DiskId, NodeId};
use serde::{Deserialize, Serialize};

/// The cluster as the node that was asked knows it: what is at risk, what is done about it, and
/// what is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterReport {
    /// Nothing is at risk and nothing is waited for: there are no warnings.
    pub healthy: bool,
    /// One sentence each: what is wrong, and what follows or is to be done.
    pub warnings: Vec<String>,
    /// One sentence each: what is worth knowing and not wrong.
    pub notes: Vec<String>,
    /// One sentence each: what is being done, or waited for, about the copies, and until when.
    #[serde(default)]
    pub doing: Vec<String>,
    /// How many copies of partitions are still to be made with the disks there are. What is away
    /// counts as there until it is left out.
    #[serde(default)]
    pub missing_copies: u64,
    /// In how many seconds they will be made, at the pace of the last minute; nothing if that is
    /// not known, or none is missing.
    #[serde(default)]
    pub whole_in_s: Option<u64>,
    /// The cluster.
    pub cluster: ClusterId,
    /// How often the agreed state has changed.
    pub epoch: u64,
    /// The node that was asked.
    pub asked: NodeId,
    /// Who agrees on the cluster's state.
    pub agreement: AgreementReport,
    /// All nodes, by id.
    pub nodes: Vec<ClusterNodeReport>,
    /// All disks, by id.
    pub disks: Vec<ClusterDiskReport>,
    /// How many copies there are, for each number of copies that volumes can ask for by now.
    pub copies: Vec<CopiesReport>,
    /// What is being changed about which disks hold what, oldest first.
    pub attempts: Vec<AttemptReport>,
}

/// Who agrees on the cluster's state, as the node that was asked knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgreementReport {
    /// Who leads, if that is known.
    pub leader: Option<NodeId>,
    /// Who votes; while that changes, who will, and until then those of before are needed too.
    pub voters: Vec<NodeId>,
    /// Whether it changes just now.
    pub changing: bool,
    /// Who follows without a vote.
    pub learners: Vec<NodeId>,
    /// Why nothing can be agreed on just now, if nothing can.
    pub waiting: Option<String>,
    /// The last recovery from a lost majority, if there ever was one.
    #[serde(default)]
    pub recovered: Option<RecoveredReport>,
}

/// A recovery from a lost majority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveredReport {
    /// How many there were, with it.
    pub count: u64,
    /// When, in seconds since 1970.
    pub unix_s: u64,
    /// From what this node had the cluster went on.
    pub node: NodeId,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNodeReport {
    /// Its id.
    pub node: NodeId,
    /// What people call it; empty if nobody said.
    pub name: String,
    /// Under which addresses the others reach it.
    pub addresses: Vec<String>,
    /// What may fail together with it; empty if nobody said.
    pub zone: String,
    /// Whether its disks are being drained.
    pub draining: bool,
    /// Whether it was given up when the cluster was recovered.
    #[serde(default)]
    pub lost: bool,
    /// Whether the node that was asked is connected to it, or is it.
    pub up: bool,
    /// For how long that has been so, in seconds.
    pub since_s: u64,
    /// While it is not up: why the last connection, or the last trial, ended.
    pub reason: Option<String>,
    /// Whether it votes.
    pub votes: bool,
    /// Whether it leads.
    pub leads: bool,
    /// Its disks; none: it is a witness, which votes and stores no data.
    pub disks: Vec<DiskId>,
    /// How many attachments of volumes and snapshots it has.
    pub attachments: u64,
}

/// A disk of the cluster, on whichever node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterDiskReport {
    /// Its id.
    pub disk: DiskId,
    /// The node that it is attached to.
    pub node: NodeId,
    /// What people call that; its id if nobody said.
    pub node_name: String,
    /// Whether it is to be used: `in`, `draining` (also because its node is), or `gone`.
    pub standing: String,
    /// For how long it has been away, in seconds; nothing while it is present.
    pub away_s: Option<u64>,
    /// Its size as it is agreed, in bytes: its weight among the disks. 0 until it was opened.
    pub size_bytes: u64,
    /// Of how many partitions it holds a copy that counts.
    pub partitions: u64,
    /// Of how many it is being given a copy.
    pub recovering: u64,
    /// Its part of all copies, in thousandths.
    pub share_permille: u32,
}

/// The copies of what is kept in so many copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiesReport {
    /// How many copies volumes of this kind ask for.
    pub copies: u8,
    /// How many they can have with the disks there are.
    pub possible: u8,
    /// How many partitions there are.
    pub partitions: u64,
    /// How many of them have fewer copies present than are possible.
    pub fewer: u64,
    /// How many of those have one copy present, though more are possible.
    pub single: u64,
    /// How many have more than one copy on the same node, which are lost together with it.
    #[serde(default)]
    pub doubled: u64,
    /// How many have fewer than a majority present, or have to be made to serve again: what lies
    /// there waits.
    pub waiting: u64,
}

/// A change of the members of some partitions that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptReport {
    /// Its number.
    pub number: u64,
    /// The node that carries it out.
    pub owner: NodeId,
    /// What people call that; its id if nobody said.
    pub owner_name: String,
    /// Of what is kept in so many copies.
    pub copies: u8,
    /// Of how many partitions.
    pub partitions: u64,
    /// The disks that are to hold them.
    pub disks: Vec<DiskId>,
    /// How far it has come; known only to the node that carries it out.
    pub progress: Option<AttemptProgressReport>,
}

/// How far a change of members has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptProgressReport {
    /// `copying`, `refusing`, `settling`, `installing` or `ended`. From `refusing` on, writes to
    /// these partitions wait for the end.
    pub stage: String,
    /// Pieces of objects that are known to be still to be made equal.
    pub to_do: u64,
    /// Pieces that were made equal; those that were written meanwhile count again.
    pub done: u64,
    /// Bytes of data that were sent.
    pub bytes: u64,
    /// The disks whose answer is awaited.
    pub waiting_for: Vec<DiskId>,
}

/// What a recovery from a lost majority would do, or has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryReport {
    /// Whether it was done.
    pub done: bool,
    /// The node that was asked, from whose log the cluster goes on.
    pub asked: NodeId,
    /// All nodes, by id.
    pub nodes: Vec<RecoveryNodeReport>,
    /// One sentence each: what it costs, what must not happen afterwards, and what to do instead.
    pub warnings: Vec<String>,
}

/// A node, where the cluster is recovered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryNodeReport {
    /// Its id.
    pub node: NodeId,
    /// What people call it; its id if nobody said.
    pub name: String,
    /// Whether it votes.
    pub votes: bool,
    /// Whether it can be reached, or is the one that was asked.
    pub up: bool,
    /// For how long that has been so, in seconds.
    pub since_s: u64,
    /// Whether it is given up by the recovery.
    pub lost: bool,
    /// The term of the last entry of the agreed log that it has, if it can say.
    pub term: Option<u64>,
    /// The number of that entry.
    pub index: Option<u64>,
    /// Of how many partitions copies lie there.
    pub partitions: u64,
}
