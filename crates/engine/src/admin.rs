//! What people and programs ask of a node, and what it answers. The HTTP API of `node` carries
//! these types as JSON and `dog` prints them; every field name here is part of API version 1.

mod cluster;
mod disk;
mod group;
mod volume;

pub use cluster::{
    AgreementReport, AttemptProgressReport, AttemptReport, ClusterDiskReport, ClusterNodeReport,
    ClusterReport, CopiesReport, RecoveredReport, RecoveryNodeReport, RecoveryReport,
};
pub use disk::{DiskAddedReport, DiskCounters, DiskReport, ScrubReport};
pub use group::{GroupMemberReport, GroupReport, GroupSnapshotReport};
pub use volume::{
    ExplainReport, FlattenReport, LocateReport, LocatedReport, LossReport, OriginReport,
    PartGroupReport, PartMemberReport, ScheduleReport,
};

pub use ::cluster::Durability;

use proto::{ClusterId, DiskId, Generation, LayerId, NodeId, VolumeId};
use serde::{Deserialize, Serialize};

/// Chosen by the asker; comes back with the reply.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AdminToken(pub u64);

/// One request of an administrator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum AdminRequest {
    /// Is all well? Answered by [`AdminReply::Status`].
    Status,
    /// This node. Answered by [`AdminReply::Node`].
    NodeInfo,
    /// The disks of this node. Answered by [`AdminReply::Disks`].
    DiskList,
    /// All volumes. Answered by [`AdminReply::Volumes`].
    VolumeList,
    /// One volume. Answered by [`AdminReply::Volume`].
    VolumeInfo {
        /// Its name.
        name: String,
    },
    /// A new, empty volume. Answered by [`AdminReply::Volume`].
    VolumeCreate {
        /// Its name.
        name: String,
        /// Its size in bytes.
        bytes: u64,
    },
    /// Another size, while attached or not. Answered by [`AdminReply::Volume`] once what lay
    /// beyond a smaller size is gone.
    VolumeResize {
        /// Its name.
        name: String,
        /// The new size in bytes.
        bytes: u64,
        /// A smaller size is refused without this.
        allow_shrink: bool,
    },
    /// Another name. Answered by [`AdminReply::Volume`].
    VolumeRename {
        /// Its name.
        name: String,
        /// The name it gets.
        new_name: String,
        /// While somebody has it attached, it is refused without this.
        #[serde(default)]
        while_attached: bool,
    },
    /// No more volume of this name. It goes into the trash, with its snapshots, answered by
    /// [`AdminReply::Trashed`]; or for good, answered by [`AdminReply::Done`], and its space comes
    /// back in the background.
    VolumeDelete {
        /// Its name.
        name: String,
        /// Whether its snapshots go too; otherwise it may have none.
        #[serde(default)]
        with_snapshots: bool,
        /// How long it is kept in the trash, in seconds; 0: it goes for good. Without it, as long
        /// as the node's settings say ([`NodeReport::trash_expiry_s`]).
        #[serde(default)]
        keep_s: Option<u64>,
    },
    /// Drop the connections of a volume's client once no request is in flight, so that a client
    /// that reconnects by itself learns a new size. Answered by [`AdminReply::Done`].
    VolumeReconnect {
        /// Its name.
        name: String,
    },
    /// A snapshot of a volume, while attached or not. Answered by [`AdminReply::Snapshot`] once it
    /// can be read.
    SnapshotCreate {
        /// The volume's name.
        name: String,
        /// The snapshot's name, unique within the volume.
        tag: String,
    },
    /// No more snapshot; what only it shows comes back in the background. Answered by
    /// [`AdminReply::Done`].
    SnapshotDelete {
        /// The volume's name.
        name: String,
        /// Which one.
        tag: String,
    },
    /// The snapshots of a volume. Answered by [`AdminReply::Snapshots`].
    SnapshotList {
        /// The volume's name.
        name: String,
        /// Whether to find out for each what deleting it would free. That looks at every object,
        /// so it takes a while for large volumes.
        #[serde(default)]
        reclaimable: bool,
    },
    /// A new volume with the content of a snapshot. Answered by [`AdminReply::Volume`].
    VolumeClone {
        /// The snapshot's volume.
        name: String,
        /// Which snapshot.
        tag: String,
        /// The new volume's name.
        new_name: String,
    },
    /// A volume that nobody has attached gets the content and size of one of its snapshots; what
    /// was written since is lost. Answered by [`AdminReply::Volume`].
    VolumeRollback {
        /// The volume's name.
        name: String,
        /// To which of its snapshots.
        tag: String,
    },
    /// Copy, in the background, what a volume shows of the snapshot it was cloned from, so that it
    /// needs it no more; or stop that. Answered by [`AdminReply::Volume`] at once;
    /// [`VolumeReport::flatten`] says how far it is.
    VolumeFlatten {
        /// The volume's name.
        name: String,
        /// What to do.
        action: FlattenAction,
    },
    /// The layers and what each lies on. Answered by [`AdminReply::Layers`].
    LayerList {
        /// Only those of this volume, and those it lies on; nothing: all.
        #[serde(default)]
        name: Option<String>,
    },
    /// Start a scrub pass of a disk now, stop the running one, or set its rate. Answered by
    /// [`AdminReply::Done`].
    DiskScrub {
        /// Which disk; nothing: all of this node.
        disk: Option<DiskId>,
        /// What to do.
        action: ScrubAction,
    },
    /// Have snapshots taken of a volume again and again, or otherwise than until now. Answered by
    /// [`AdminReply::Schedule`].
    ScheduleSet {
        /// The volume's name.
        name: String,
        /// The schedule's name, unique within the volume.
        schedule: String,
        /// One snapshot in so many seconds.
        every_s: u32,
        /// How many of them are kept.
        keep: u32,
    },
    /// No more of them; those that were taken stay. Answered by [`AdminReply::Done`].
    ScheduleRemove {
        /// The volume's name.
        name: String,
        /// The schedule's name.
        schedule: String,
    },
    /// Schedules. Answered by [`AdminReply::Schedules`].
    ScheduleList {
        /// Only those of this volume; nothing: all.
        #[serde(default)]
        name: Option<String>,
    },
    /// The volumes in the trash. Answered by [`AdminReply::Trash`].
    TrashList,
    /// Take a volume out of the trash. Answered by [`AdminReply::Volume`].
    TrashUndelete {
        /// The name it had, if no other one in the trash had it too, or its id.
        which: String,
        /// The name it gets; nothing: the one it had.
        #[serde(default)]
        new_name: Option<String>,
    },
    /// Delete what is in the trash for good. Its space comes back in the background. Answered by
    /// [`AdminReply::Done`].
    TrashPurge {
        /// What of it.
        what: TrashChoice,
    },
    /// Let nobody delete a snapshot before a time, nor its volume. It cannot be undone. Answered by
    /// [`AdminReply::Snapshot`].
    SnapshotLock {
        /// The volume's name.
        name: String,
        /// Which snapshot.
        tag: String,
        /// Until when, in seconds since 1970; not before what is agreed already.
        until_unix_s: u64,
    },
    /// A new group. Answered by [`AdminReply::Group`].
    GroupCreate {
        /// Its name.
        name: String,
        /// Its first members, by name.
        #[serde(default)]
        volumes: Vec<String>,
    },
    /// No more group; its volumes and all snapshots stay. Answered by [`AdminReply::Done`].
    GroupDelete {
        /// Its name.
        name: String,
    },
    /// More volumes for a group. Answered by [`AdminReply::Group`].
    GroupAdd {
        /// The group's name.
        name: String,
        /// Which volumes, by name.
        volumes: Vec<String>,
    },
    /// Fewer volumes in a group; their snapshots stay. Answered by [`AdminReply::Group`].
    GroupRemove {
        /// The group's name.
        name: String,
        /// Which volumes, by name.
        volumes: Vec<String>,
    },
    /// All groups. Answered by [`AdminReply::Groups`].
    GroupList,
    /// One group. Answered by [`AdminReply::Group`].
    GroupInfo {
        /// Its name.
        name: String,
    },
    /// A snapshot of all volumes of a group at one moment. Answered by
    /// [`AdminReply::GroupSnapshot`] once all of it can be read.
    GroupSnapshot {
        /// The group's name.
        name: String,
        /// The name of each of its snapshots, and of them all together.
        tag: String,
    },
    /// Delete a group snapshot: those of its snapshots that still exist, or none of them. Answered
    /// by [`AdminReply::Done`].
    GroupSnapshotDelete {
        /// The group's name.
        name: String,
        /// Which one.
        tag: String,
    },
    /// All volumes of a group snapshot, or none of them, get the content and size they had then.
    /// Nobody may have one of them attached. Answered by [`AdminReply::GroupSnapshot`].
    GroupRollback {
        /// The group's name.
        name: String,
        /// To which of its snapshots.
        tag: String,
    },
    /// A new volume that has at once what lies elsewhere, and is filled with it in the background.
    /// Answered by [`AdminReply::Volume`]; [`VolumeReport::flatten`] says how far it is.
    VolumeCreateFrom {
        /// Its name.
        name: String,
        /// Its size in bytes; nothing: the source's, rounded up to whole blocks.
        #[serde(default)]
        bytes: Option<u64>,
        /// Where the source is: an NBD URI, or the absolute path of a file or device.
        from: String,
    },
    /// A node becomes part of the cluster, or has another name and other addresses. It is let in by
    /// the others from now on. Answered by [`AdminReply::Done`].
    NodeAdd {
        /// Its id.
        node: NodeId,
        /// What people call it.
        #[serde(default)]
        name: String,
        /// Under which addresses the others reach it, the best first.
        #[serde(default)]
        addresses: Vec<String>,
    },
    /// Machines that have this token may become nodes. Who asks has drawn it and keeps the secret:
    /// only its digest goes this way. Answered by [`AdminReply::Token`].
    TokenAdd {
        /// Its name, drawn at random.
        id: u64,
        /// The digest of its secret, in hexadecimal.
        secret_digest: String,
        /// How many nodes it lets in.
        uses: u32,
        /// How long it holds, in seconds.
        expires_s: u64,
    },
    /// A token lets nobody in any more; who came by it stays. Answered by [`AdminReply::Done`].
    TokenRevoke {
        /// Its name.
        id: u64,
    },
    /// The tokens that there are. Answered by [`AdminReply::Tokens`].
    TokenList,
    /// The cluster: nodes, disks, copies, and what is done about them. Answered by
    /// [`AdminReply::Cluster`], also while nothing can be agreed on: with what was known last.
    ClusterStatus,
    /// A majority of the nodes that vote is lost for ever: go on from what this node has of the
    /// agreed log (decision 0013). Answered by [`AdminReply::Recovery`]; refused while there is any
    /// other way.
    ClusterRecover {
        /// Whether to do it; otherwise it is only said what it would do.
        yes: bool,
        /// Other nodes that are lost too, by name or id.
        #[serde(default)]
        lost: Vec<String>,
    },
    /// What a node's disks hold is to go to others, or is to stay after all. Answered by
    /// [`AdminReply::Done`] once that is agreed; it is carried out in the background.
    NodeDrain {
        /// Its name or its id.
        node: String,
        /// Whether they are to be drained.
        wanted: bool,
    },
    /// A node that is stopped, and has neither disks nor attachments, is no part of the cluster any
    /// more. Answered by [`AdminReply::Done`].
    NodeRemove {
        /// Its name or its id.
        node: String,
    },
    /// One more disk of this node: a block device that is blank, or a directory that is empty or
    /// does not exist yet, for a file in it. Answered by [`AdminReply::DiskAdded`] once it is in
    /// use.
    DiskAdd {
        /// An absolute path.
        path: String,
        /// How much of it may be used at most, in bytes; nothing: as is set for the node.
        #[serde(default)]
        limit_bytes: Option<u64>,
    },
    /// What a disk holds is to go to others, or is to stay after all. Answered by
    /// [`AdminReply::Done`] once that is agreed; it is carried out in the background.
    DiskDrain {
        /// Which disk, of any node.
        disk: DiskId,
        /// Whether it is to be drained.
        wanted: bool,
    },
    /// A disk is not to come back; what it holds does not count any more. Refused while too few
    /// copies would be left. Answered by [`AdminReply::Done`].
    DiskRemove {
        /// Which disk, of any node.
        disk: DiskId,
    },
    /// End the attachments of a volume, or of one of its snapshots, on whichever node, also one
    /// that does not answer. Clients that are there lose it, and what was not acknowledged to them
    /// may or may not have been done. Answered by [`AdminReply::Done`].
    VolumeDetach {
        /// The volume's name.
        name: String,
        /// One of its snapshots; nothing: the volume itself.
        #[serde(default)]
        tag: Option<String>,
    },
    /// A new volume that is kept in so many copies from the start: empty, or with what lies
    /// elsewhere. Answered by [`AdminReply::Volume`].
    VolumeCreateKept {
        /// Its name.
        name: String,
        /// Its size in bytes; nothing: the source's, rounded up to whole blocks.
        #[serde(default)]
        bytes: Option<u64>,
        /// Where the source is, if it has one; see [`AdminRequest::VolumeCreateFrom`].
        #[serde(default)]
        from: Option<String>,
        /// How many copies: 1 to `COPIES_MAX`; nothing: as many as there are by default.
        #[serde(default)]
        copies: Option<u8>,
        /// No copy is left out so that fewer than these stay, unless it never had so many: 1 to
        /// `copies`; nothing: half of them, rounded up.
        #[serde(default)]
        min_copies: Option<u8>,
        /// When what is written is stable; nothing: after a flush.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        durability: Option<Durability>,
    },
    /// Acknowledgements of a volume promise something else from now on, also while it is attached,
    /// wherever that is. Answered by [`AdminReply::Volume`] once whoever has it attached does as
    /// is said. What was acknowledged before is stable after the next flush, or the next change
    /// that is acknowledged under `ack`.
    VolumeDurability {
        /// Its name.
        name: String,
        /// When what is written is stable.
        durability: Durability,
    },
    /// A volume is to be kept in another number of copies, which is refused where its data might
    /// have to be moved for it; or with fewer or more left. Answered by [`AdminReply::Volume`].
    VolumeKeep {
        /// Its name.
        name: String,
        /// How many copies: 1 to `COPIES_MAX`; nothing: as many as now.
        #[serde(default)]
        copies: Option<u8>,
        /// No copy is left out so that fewer than these stay, unless it never had so many: 1 to
        /// `copies`; nothing: half of them, rounded up.
        #[serde(default)]
        min_copies: Option<u8>,
    },
    /// Where the copies of a volume are, how they are, and what is waited for. Answered by
    /// [`AdminReply::Explained`], also while nothing can be agreed on: with what was known last.
    VolumeExplain {
        /// Its name.
        name: String,
    },
    /// Which disks hold a volume, or one of its objects. Answered by [`AdminReply::Located`], also
    /// while nothing can be agreed on: with what was known last.
    VolumeLocate {
        /// Its name.
        name: String,
        /// One object, counted from 0 in pieces of 4 MiB; nothing: all of them.
        #[serde(default)]
        index: Option<u64>,
    },
}

impl AdminRequest {
    /// Whether it changes the agreed state: its answer waits for the log, and perhaps for disks.
    pub fn changes(&self) -> bool {
        matches!(
            self,
            AdminRequest::VolumeCreate { .. }
                | AdminRequest::VolumeCreateKept { .. }
                | AdminRequest::VolumeKeep { .. }
                | AdminRequest::VolumeDurability { .. }
                | AdminRequest::VolumeResize { .. }
                | AdminRequest::VolumeRename { .. }
                | AdminRequest::VolumeDelete { .. }
                | AdminRequest::SnapshotCreate { .. }
                | AdminRequest::SnapshotDelete { .. }
                | AdminRequest::VolumeClone { .. }
                | AdminRequest::VolumeRollback { .. }
                | AdminRequest::VolumeFlatten { .. }
                | AdminRequest::ScheduleSet { .. }
                | AdminRequest::ScheduleRemove { .. }
                | AdminRequest::TrashUndelete { .. }
                | AdminRequest::TrashPurge { .. }
                | AdminRequest::SnapshotLock { .. }
                | AdminRequest::GroupCreate { .. }
                | AdminRequest::GroupDelete { .. }
                | AdminRequest::GroupAdd { .. }
                | AdminRequest::GroupRemove { .. }
                | AdminRequest::GroupSnapshot { .. }
                | AdminRequest::GroupSnapshotDelete { .. }
                | AdminRequest::GroupRollback { .. }
                | AdminRequest::VolumeCreateFrom { .. }
                | AdminRequest::NodeAdd { .. }
                | AdminRequest::TokenAdd { .. }
                | AdminRequest::TokenRevoke { .. }
                | AdminRequest::ClusterRecover { .. }
                | AdminRequest::NodeDrain { .. }
                | AdminRequest::NodeRemove { .. }
                | AdminRequest::DiskAdd { .. }
                | AdminRequest::DiskDrain { .. }
                | AdminRequest::DiskRemove { .. }
                | AdminRequest::VolumeDetach { .. }
        )
    }
}

impl AdminRequest {
    /// Whether its answer waits for nothing but the engine itself.
    pub fn is_answered_at_once(&self) -> bool {
        !self.changes() && !matches!(self, AdminRequest::SnapshotList { reclaimable: true, .. })
    }
}

/// What to delete for good of what is in the trash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrashChoice {
    /// One volume: the name it had, if no other one in the trash had it too, or its id.
    One(String),
    /// All that is in it now.
    All,
}

/// What to do about flattening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlattenAction {
    /// Begin, or go on; it survives a restart of the node.
    Start,
    /// Stop. What was copied stays copied.
    Stop,
}

/// What to do about scrubbing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScrubAction {
    /// Begin a pass now.
    Start,
    /// End the running pass.
    Stop,
    /// Read at most this many bytes a second; 0 switches scrubbing off.
    Rate(u64),
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", content = "content", rename_all = "snake_case")]
pub enum AdminReply {
    /// Done; nothing to tell.
    Done,
    /// The state of the whole.
    Status(StatusReport),
    /// One node.
    Node(NodeReport),
    /// Disks, by id.
    Disks(Vec<DiskReport>),
    /// Volumes, by name.
    Volumes(Vec<VolumeReport>),
    /// One volume.
    Volume(VolumeReport),
    /// One snapshot.
    Snapshot(SnapshotReport),
    /// Snapshots of one volume, oldest first.
    Snapshots(Vec<SnapshotReport>),
    /// Layers, by id: each after what it lies on.
    Layers(Vec<LayerReport>),
    /// One schedule.
    Schedule(ScheduleReport),
    /// Schedules, by volume and name.
    Schedules(Vec<ScheduleReport>),
    /// What is in the trash, soonest to expire first.
    Trash(Vec<TrashReport>),
    /// What was put into the trash.
    Trashed(TrashReport),
    /// One group.
    Group(GroupReport),
    /// Groups, by name.
    Groups(Vec<GroupReport>),
    /// One group snapshot.
    GroupSnapshot(GroupSnapshotReport),
    /// One token.
    Token(TokenReport),
    /// Tokens, by id.
    Tokens(Vec<TokenReport>),
    /// The cluster.
    Cluster(Box<ClusterReport>),
    /// How the copies of a volume are.
    Explained(Box<ExplainReport>),
    /// Where a volume is.
    Located(Box<LocateReport>),
    /// What a recovery would do, or has done.
    Recovery(Box<RecoveryReport>),
    /// A disk was added.
    DiskAdded(DiskAddedReport),
}

/// A join token, without its secret, which nobody keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenReport {
    /// Its name.
    pub id: u64,
    /// The cluster that it is for.
    pub cluster: ClusterId,
    /// How many nodes it lets in.
    pub uses: u32,
    /// Those that it has let in.
    pub admitted: Vec<NodeId>,
    /// When it was made, in seconds since 1970.
    pub created_unix_s: u64,
    /// When it expires.
    pub expires_unix_s: u64,
    /// That of the certificate of the cluster's authority, in hexadecimal; empty where many tokens
    /// are listed.
    pub authority_digest: String,
    /// Where nodes of the cluster may be found; empty where many tokens are listed.
    pub addresses: Vec<String>,
}

/// Why not: one sentence with cause and remedy, and a kind for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{sentence}")]
pub struct AdminError {
    /// For programs.
    pub kind: AdminErrorKind,
    /// For people.
    pub sentence: String,
}

/// What the asker must do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminErrorKind {
    /// Name something that exists.
    NotFound,
    /// Choose another name or wait: it exists, or is in use.
    Conflict,
    /// Ask something else: the request makes no sense.
    Invalid,
    /// Ask again later: the node is starting, stopping or out of a bound.
    Unavailable,
    /// Remove something first: there are as many of them as there may be.
    LimitReached,
}

/// Whether all is well, in words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Nothing is wrong.
    pub healthy: bool,
    /// One sentence each: what is wrong or deserves attention, and what to do.
    pub warnings: Vec<String>,
    /// The node asked.
    pub node: NodeReport,
    /// Its disks.
    pub disks: Vec<DiskReport>,
    /// How many volumes there are.
    pub volumes: u64,
    /// How many of them are attached.
    pub attached: u64,
    /// Sum of the volumes' sizes, in bytes.
    pub provisioned_bytes: u64,
    /// What the disks could hold, in bytes.
    pub capacity_bytes: u64,
    /// What guests' data takes, in bytes.
    pub used_bytes: u64,
    /// How many snapshots there are.
    pub snapshots: u64,
    /// How many layers are hidden: nothing names them, but others show what they have.
    pub hidden_layers: u64,
    /// Part of `used_bytes`: the data of hidden layers.
    pub hidden_bytes: u64,
    /// How many volumes are in the trash. They count nowhere else but in `used_bytes`.
    #[serde(default)]
    pub trash_volumes: u64,
    /// Part of `used_bytes`: their data, with that of their snapshots.
    #[serde(default)]
    pub trash_bytes: u64,
    /// How many were deleted for good before their time since the program started, for want of
    /// space.
    #[serde(default)]
    pub trash_gave_way: u64,
    /// What lies elsewhere and shows through volumes.
    #[serde(default)]
    pub sources: SourcesReport,
    /// The other nodes of the cluster.
    #[serde(default)]
    pub peers: Vec<PeerReport>,
    /// Who agrees on the cluster's state.
    #[serde(default)]
    pub agreement: AgreementReport,
}

/// Another node, as the one that was asked sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Its id.
    pub node: NodeId,
    /// What people call it; empty if nobody said.
    pub name: String,
    /// Under which addresses the others reach it.
    pub addresses: Vec<String>,
    /// Whether it is connected.
    pub up: bool,
    /// For how long that has been so, in seconds.
    pub since_s: u64,
    /// While it is not: why the last connection, or the last trial, ended.
    pub reason: Option<String>,
    /// How often a connection to it was lost since the program started.
    pub lost_connections: u64,
    /// Questions to its disks without an answer.
    pub waiting_requests: u64,
}

/// All sources together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcesReport {
    /// How many volumes show one, not counting their clones.
    pub volumes: u64,
    /// So many bytes of what these show of their sources need not be fetched any more.
    pub filled_bytes: u64,
    /// So many are still to be fetched, or lie behind one that is.
    pub to_fill_bytes: u64,
    /// Content that came since the program started, in bytes.
    pub read_bytes: u64,
    /// Questions that were answered by an error since then, or not answered in time.
    pub failures: u64,
    /// For how long something has been waiting for a source that does not answer, in seconds: the
    /// longest such time; 0 if nothing waits.
    pub waiting_s: u64,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its id.
    pub node: NodeId,
    /// The cluster it belongs to.
    pub cluster: proto::ClusterId,
    /// The agreed state's epoch.
    pub epoch: u64,
    /// The program's version.
    pub version: String,
    /// How long the program has been running, in seconds.
    pub uptime_s: u64,
    /// How long deleted volumes are kept in the trash unless told otherwise, in seconds; 0: not at
    /// all.
    #[serde(default)]
    pub trash_expiry_s: u64,
    /// Whether it has no disks: it votes and stores no data.
    #[serde(default)]
    pub witness: bool,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Its id.
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
    /// Its size in bytes: what a guest sees.
    pub bytes: u64,
    /// What its data takes with that of its snapshots, in bytes, on all disks of the cluster: with
    /// three copies three times as much as with one. A block that several of them show counts once,
    /// and what it shows of another volume's snapshot counts there.
    pub used_bytes: u64,
    /// Part of `used_bytes`: what was written since the last snapshot.
    pub head_bytes: u64,
    /// Part of `used_bytes`: what its snapshots keep.
    pub snapshots_bytes: u64,
    /// What its maps and those of its snapshots take, in bytes.
    pub metadata_bytes: u64,
    /// How many snapshots it has.
    pub snapshots: u32,
    /// Whether a snapshot of it is still being taken, or a rollback being finished.
    pub sealing: bool,
    /// What shows through where it was never written, for a clone that is not flattened.
    pub origin: Option<OriginReport>,
    /// How far flattening is, if it is wanted.
    pub flatten: Option<FlattenReport>,
    /// How far shortening is, if so many lineages show through that the node does that by itself.
    #[serde(default)]
    pub shorten: Option<Box<FlattenReport>>,
    /// Copies kept now, all of them whole: of the parts of the cluster that the volume may lie in,
    /// the one with the fewest counts. A disk that is away counts until it is left out.
    pub copies: u32,
    /// Copies wanted. As long as there are fewer disks there are fewer copies.
    #[serde(default)]
    pub copies_wanted: u8,
    /// No copy is left out so that fewer than these stay, unless it never had so many. Writes need
    /// a majority of those that are not left out.
    #[serde(default)]
    pub min_copies: u8,
    /// When what is written is stable: `flush` (after a flush) or `ack` (when it is acknowledged).
    #[serde(default)]
    pub durability: Durability,
    /// Whoever has it attached has not said yet that it does so.
    #[serde(default)]
    pub durability_awaited: bool,
    /// When it was created, seconds since 1970.
    pub created_unix_s: u64,
    /// Who has it, if anybody.
    pub attachment: Option<AttachmentReport>,
    /// Why its oldest request waits, and for how long, if one waits noticeably.
    pub waiting: Option<String>,
    /// The volume that is being imported: this one once it is filled, or the one beside which it
    /// remembers how far a stream of changes has come; nothing: no import needs this one.
    #[serde(default)]
    pub importing: Option<String>,
    /// Its schedules, by name.
    #[serde(default)]
    pub schedules: Vec<ScheduleReport>,
    /// Other nodes that did not say what lies on their disks: sizes are those of all others.
    #[serde(default)]
    pub unknown_nodes: Vec<String>,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// The volume's name.
    pub volume: String,
    /// Its own name.
    pub tag: String,
    /// Its layer.
    pub layer: LayerId,
    /// The volume's size when it was taken, in bytes.
    pub bytes: u64,
    /// When it was taken, seconds since 1970.
    pub created_unix_s: u64,
    /// What is kept for it, in bytes: the data written between the snapshot before it and it.
    /// Others may show it too.
    pub used_bytes: u64,
    /// What its maps take, in bytes.
    pub metadata_bytes: u64,
    /// What deleting it would give back of `used_bytes`: what nothing else shows. Nothing: not
    /// asked for, or not to be found out because a disk does not serve.
    pub reclaimable_bytes: Option<u64>,
    /// Whether it is still being taken: it cannot be read yet.
    pub sealing: bool,
    /// Who reads it.
    pub readers: Vec<AttachmentReport>,
    /// The volumes that show it, by name: its clones, and clones of clones that were deleted.
    /// Behind those in the trash stands " (in trash)".
    pub clones: Vec<String>,
    /// The schedule that had it taken, if one had.
    #[serde(default)]
    pub schedule: Option<String>,
    /// Until when nobody can delete it, in seconds since 1970, if that is not over.
    #[serde(default)]
    pub locked_until_unix_s: Option<u64>,
    /// Other nodes that did not say what lies on their disks: sizes are those of all others.
    #[serde(default)]
    pub unknown_nodes: Vec<String>,
}

/// One volume in the trash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashReport {
    /// Its id.
    pub volume: VolumeId,
    /// The name it had; others in the trash may have had it too.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// What its data takes with that of its snapshots, in bytes; see [`VolumeReport::used_bytes`].
    pub used_bytes: u64,
    /// How many snapshots it has.
    pub snapshots: u32,
    /// When it was deleted, seconds since 1970.
    pub deleted_unix_s: u64,
    /// From when on it may be deleted for good, seconds since 1970.
    pub expires_unix_s: u64,
    /// Other nodes that did not say what lies on their disks: sizes are those of all others.
    #[serde(default)]
    pub unknown_nodes: Vec<String>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Its id.
    pub layer: LayerId,
    /// What it lies on: what shows where it has nothing of its own.
    pub parent: Option<LayerId>,
    /// What it is.
    pub kind: LayerKind,
    /// "volume" for a head, "volume@tag" for a snapshot, the address of a source; nothing for a
    /// hidden one.
    pub name: Option<String>,
    /// The volume it belongs to, hidden or not; nothing: that was deleted.
    pub volume: Option<String>,
    /// Its size in bytes; nothing for a hidden one.
    pub bytes: Option<u64>,
    /// What is kept for it, in bytes.
    pub used_bytes: u64,
    /// Whether its last writes are still being settled.
    pub sealing: bool,
    /// Whether the volume it belongs to is in the trash.
    #[serde(default)]
    pub in_trash: bool,
    /// Other nodes that did not say what lies on their disks: sizes are those of all others.
    #[serde(default)]
    pub unknown_nodes: Vec<String>,
}

/// What a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// A volume writes it.
    Head,
    /// A snapshot names it.
    Snapshot,
    /// Nothing names it, others show it.
    Hidden,
    /// It lies elsewhere; its name is where.
    Source,
}

/// Who holds a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttachmentReport {
    /// The node.
    pub node: NodeId,
    /// The attachment's number.
    pub generation: Generation,
    /// The client in words: "process 4711 (qemu-system-x86)".
    pub holder: String,
    /// How many connections it has.
    pub connections: u32,
    /// Whether it may only read.
    pub read_only: bool,
    /// Its node does not say how many connections there are.
    #[serde(default)]
    pub unknown: bool,
}

impl AttachmentReport {
    /// Whether a client has it, or may have. Without connections it is the node itself, which
    /// finishes with it and gives it up to who wants it.
    pub fn is_client(&self) -> bool {
        self.unknown || self.connections > 0
    }
}
