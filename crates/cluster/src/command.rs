//! Commands: what can be asked of the cluster's state, and how they are written in its log.

use crate::Refusal;
use crate::attempt::Change;
use crate::durability::Durability;
use crate::group::check_group_name;
use crate::machine::check_node_address;
use crate::partition::Member;
use crate::schedule::check_schedule_name;
use crate::source::check_address;
use crate::token::{Digest, TokenId};
use crate::volume::{PendingDiscard, check_name, check_tag, printable};
use proto::limits::{
    ATTEMPT_DISKS_MAX, COMMAND_BYTES_MAX, GROUP_VOLUMES_MAX, HOLDER_BYTES_MAX, MEMBERS_MAX,
    NODE_ADDRESSES_MAX, NODE_NAME_BYTES_MAX, NODES_MAX, PARTITIONS_PER_COMMAND_MAX,
    ZONE_NAME_BYTES_MAX,
};
use proto::{
    ClusterId, DiskId, Epoch, Generation, Incarnation, LayerId, LineageId, NodeId, VolumeId,
};
use serde::{Deserialize, Serialize};

/// One change of the cluster's state. Times are the proposer's wall clock, in seconds since 1970,
/// for people only: no decision rests on them.
///
/// The log keeps commands by the number of their variant and the order of their fields: new
/// variants go to the end, and a changed variant is a new one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Create the cluster; the first command of all. Answered by [`Answer::Done`].
    CreateCluster {
        /// Its identity, drawn at random.
        cluster: ClusterId,
        /// It gets 2^this partitions.
        partition_bits: u8,
        /// Now.
        unix_s: u64,
    },
    /// A node becomes part of the cluster, or has a new name. Answered by [`Answer::Done`].
    AddNode {
        /// Its identity.
        node: NodeId,
        /// What people call it; made printable and cut to its limit.
        name: String,
    },
    /// A disk was opened: it counts under this incarnation from now on, and the partitions that it
    /// holds get a new configuration with it. Answered by [`Answer::Done`].
    OpenDisk {
        /// Its identity.
        disk: DiskId,
        /// Where it is attached.
        node: NodeId,
        /// The opening's number, larger than any before.
        incarnation: Incarnation,
    },
    /// Create an empty volume. Answered by [`Answer::VolumeCreated`].
    CreateVolume {
        /// Its name.
        name: String,
        /// Its size.
        bytes: u64,
        /// Now.
        unix_s: u64,
    },
    /// Change a volume's size; attached or not. Answered by [`Answer::Resized`].
    ResizeVolume {
        /// Which one.
        volume: VolumeId,
        /// The new size.
        bytes: u64,
        /// Whether it may lose what lies beyond the new end.
        allow_shrink: bool,
    },
    /// Change a volume's name; attached or not. Answered by [`Answer::Done`].
    RenameVolume {
        /// Which one.
        volume: VolumeId,
        /// The new name.
        name: String,
    },
    /// Delete a volume that nobody has attached. Answered by [`Answer::Dropped`]. Only logs of
    /// before there were locks have it; see [`Command::DropVolume`].
    DeleteVolume {
        /// Which one.
        volume: VolumeId,
        /// Whether its snapshots go too; otherwise it may have none.
        with_snapshots: bool,
    },
    /// Attach a volume: for writing if nobody has it attached, or read-only if nobody writes it.
    /// Answered by [`Answer::Attached`].
    Attach {
        /// Which one.
        volume: VolumeId,
        /// Where the session will run.
        node: NodeId,
        /// For whom, for people; made printable and cut to its limit.
        holder: String,
        /// Whether it will only read.
        read_only: bool,
        /// Now.
        unix_s: u64,
    },
    /// End an attachment of a volume or of one of its snapshots. Done already is done. Answered by
    /// [`Answer::Done`].
    Detach {
        /// Of which volume.
        volume: VolumeId,
        /// Which attachment.
        generation: Generation,
    },
    /// The writer's session has discarded, durably, what a shrink left. Answered by
    /// [`Answer::Resized`], with what is left if another shrink has come meanwhile.
    ShrinkDone {
        /// Of which volume.
        volume: VolumeId,
        /// The writer.
        generation: Generation,
        /// What was discarded.
        discarded: PendingDiscard,
    },
    /// End all attachments of a node, whose `sheep` was started anew and so holds none. Group
    /// snapshots that were being taken are torn. Answered by [`Answer::Done`].
    ReleaseNode {
        /// Which node.
        node: NodeId,
    },
    /// Take a snapshot of a volume, attached for writing or not at all: its head gets a new layer
    /// above it, which its session opens. Answered by [`Answer::SnapshotCreated`].
    CreateSnapshot {
        /// Of which volume.
        volume: VolumeId,
        /// The snapshot's name, unique within the volume.
        tag: String,
        /// Now.
        unix_s: u64,
    },
    /// The writer's session reports that all disks know the volume's head, and that every write to
    /// the layer below is stable. Done already is done. Answered by [`Answer::Done`].
    LayerOpened {
        /// Of which volume.
        volume: VolumeId,
        /// The writer.
        generation: Generation,
        /// The head that was opened.
        layer: LayerId,
    },
    /// Delete a snapshot that nobody reads. Answered by [`Answer::Dropped`]. Only logs of before
    /// there were locks have it; see [`Command::DropSnapshot`].
    DeleteSnapshot {
        /// Of which volume.
        volume: VolumeId,
        /// Which one.
        tag: String,
    },
    /// Create a volume with the content of a snapshot. Answered by [`Answer::VolumeCreated`].
    CloneSnapshot {
        /// Of which volume.
        volume: VolumeId,
        /// Which one.
        tag: String,
        /// The new volume's name.
        name: String,
        /// Now.
        unix_s: u64,
    },
    /// Give a volume that nobody has attached the content and size of one of its snapshots. What
    /// was written since is lost, unless another snapshot has it. Answered by [`Answer::Dropped`].
    Rollback {
        /// Which volume.
        volume: VolumeId,
        /// To which of its snapshots.
        tag: String,
    },
    /// The writer's session reports that nothing shows through the head from other lineages any
    /// more: all of it was copied, and is stable. Snapshots of the volume go on showing their
    /// parent. Answered by [`Answer::Dropped`].
    Flattened {
        /// Which volume.
        volume: VolumeId,
        /// The writer.
        generation: Generation,
    },
    /// Read a snapshot. Answered by [`Answer::Attached`].
    AttachSnapshot {
        /// Of which volume.
        volume: VolumeId,
        /// Which one.
        tag: String,
        /// Where the session will run.
        node: NodeId,
        /// For whom, for people; made printable and cut to its limit.
        holder: String,
        /// Now.
        unix_s: u64,
    },
    /// What shows through a volume from other lineages is to be copied, or is not any more. Done
    /// already is done. Answered by [`Answer::Done`].
    SetFlatten {
        /// Which volume.
        volume: VolumeId,
        /// Whether its writer's session is to copy.
        wanted: bool,
    },
    /// Delete a volume that nobody has attached, for good. Answered by [`Answer::Dropped`].
    DropVolume {
        /// Which one.
        volume: VolumeId,
        /// Whether its snapshots go too; otherwise it may have none.
        with_snapshots: bool,
        /// Now: no snapshot may be locked.
        unix_s: u64,
    },
    /// Delete a snapshot that nobody reads, for good. Answered by [`Answer::Dropped`].
    DropSnapshot {
        /// Of which volume.
        volume: VolumeId,
        /// Which one.
        tag: String,
        /// Now: it may not be locked.
        unix_s: u64,
    },
    /// Put a volume that nobody has attached into the trash, with its snapshots. Answered by
    /// [`Answer::Done`].
    TrashVolume {
        /// Which one.
        volume: VolumeId,
        /// Whether its snapshots go too; otherwise it may have none.
        with_snapshots: bool,
        /// Now: no snapshot may be locked.
        unix_s: u64,
        /// From when on it may be purged.
        expires_unix_s: u64,
    },
    /// Take a volume out of the trash. Answered by [`Answer::Done`].
    Undelete {
        /// Which one.
        volume: VolumeId,
        /// The name it gets, its former one or another.
        name: String,
    },
    /// Delete a volume in the trash for good. Answered by [`Answer::Dropped`].
    Purge {
        /// Which one.
        volume: VolumeId,
    },
    /// Let nobody delete a snapshot before a time; never a shorter one than is agreed. Done already
    /// is done. Answered by [`Answer::Done`].
    LockSnapshot {
        /// Of which volume.
        volume: VolumeId,
        /// Which one.
        tag: String,
        /// Until when.
        until_unix_s: u64,
    },
    /// Create a group without members. Answered by [`Answer::Done`].
    CreateGroup {
        /// Its name.
        name: String,
        /// Now.
        unix_s: u64,
    },
    /// Delete a group. Its volumes and all snapshots stay. Answered by [`Answer::Done`].
    DeleteGroup {
        /// Its name.
        name: String,
    },
    /// Add volumes to a group, or take them out of it. Done already is done. Answered by
    /// [`Answer::Done`].
    ChangeGroup {
        /// Its name.
        name: String,
        /// Which volumes, at most `GROUP_VOLUMES_MAX`.
        volumes: Vec<VolumeId>,
        /// Whether they are to be members.
        member: bool,
    },
    /// Take a snapshot of all volumes of a group at one moment. Answered by
    /// [`Answer::GroupSnapshotCreated`].
    SnapshotGroup {
        /// Its name.
        name: String,
        /// The name of each of the snapshots, and of them all together.
        tag: String,
        /// Now.
        unix_s: u64,
    },
    /// Delete a group snapshot: those of its snapshots that still exist. Answered by
    /// [`Answer::Dropped`].
    DropGroupSnapshot {
        /// The group's name.
        name: String,
        /// Which one.
        tag: String,
        /// Now: none of them may be locked.
        unix_s: u64,
    },
    /// Roll all volumes of a group snapshot back to it. Answered by [`Answer::Dropped`].
    RollbackGroup {
        /// The group's name.
        name: String,
        /// To which group snapshot.
        tag: String,
    },
    /// Have snapshots taken of a volume again and again: a new schedule, or another one in the
    /// place of that of this name. Done already is done. Answered by [`Answer::Done`].
    SetSchedule {
        /// Of which volume.
        volume: VolumeId,
        /// Its name, unique within the volume.
        schedule: String,
        /// One snapshot in so many seconds.
        every_s: u32,
        /// How many of them are kept.
        keep: u32,
        /// Now: the first snapshot is that of the next slot.
        unix_s: u64,
    },
    /// No more of them; the snapshots stay. Answered by [`Answer::Done`].
    RemoveSchedule {
        /// Of which volume.
        volume: VolumeId,
        /// Its name.
        schedule: String,
    },
    /// Take the snapshot of a slot of a schedule. Answered by [`Answer::SnapshotCreated`].
    ScheduledSnapshot {
        /// Of which volume.
        volume: VolumeId,
        /// The schedule's name.
        schedule: String,
        /// Which slot: the time since 1970 divided by that between two snapshots.
        slot: u64,
        /// The snapshot's name.
        tag: String,
        /// Now.
        unix_s: u64,
    },
    /// Create a volume that shows what lies elsewhere. Answered by [`Answer::VolumeCreated`].
    CreateVolumeFrom {
        /// Its name.
        name: String,
        /// Its size.
        bytes: u64,
        /// Where that is.
        address: String,
        /// So many bytes of it show.
        source_bytes: u64,
        /// Now.
        unix_s: u64,
    },
    /// The writer's session reports that the head has all that the lineages between it and a deeper
    /// one had, and that it is stable: the head lies on that one from now on. Nothing changes if
    /// the volume is to be flattened by now, or has got snapshots. Answered by [`Answer::Dropped`].
    Shortened {
        /// Which volume.
        volume: VolumeId,
        /// The writer.
        generation: Generation,
        /// The head's new parent: a layer of another lineage that shows through it.
        parent: LayerId,
    },
    /// A node has a disk that may come to hold something once it is opened, or one that is known is
    /// of another size now. Answered by [`Answer::Done`].
    AddDisk {
        /// Its identity.
        disk: DiskId,
        /// Where it is attached.
        node: NodeId,
        /// How much it can hold, in bytes: its weight among the disks.
        bytes: u64,
    },
    /// A node is in another zone. Answered by [`Answer::Done`].
    SetZone {
        /// Which node.
        node: NodeId,
        /// What people call the zone; made printable and cut to its limit.
        zone: String,
    },
    /// A disk can hold more or less, or is to hold more or less. Answered by [`Answer::Done`].
    SetWeight {
        /// Which disk.
        disk: DiskId,
        /// How much, in bytes.
        bytes: u64,
    },
    /// What a disk has is to go to others, or is to stay after all. Answered by [`Answer::Done`].
    DrainDisk {
        /// Which disk.
        disk: DiskId,
        /// Whether it is to be drained.
        wanted: bool,
    },
    /// The same for all disks of a node, those that it gets later too. Answered by
    /// [`Answer::Done`].
    DrainNode {
        /// Which node.
        node: NodeId,
        /// Whether they are to be drained.
        wanted: bool,
    },
    /// A disk will not come back, or is not wanted back; what it has does not count any more. Done
    /// already is done. Answered by [`Answer::Done`].
    RemoveDisk {
        /// Which disk.
        disk: DiskId,
    },
    /// A node without disks is no part of the cluster any more. Answered by [`Answer::Done`].
    RemoveNode {
        /// Which node.
        node: NodeId,
    },
    /// Another number of copies of a volume is wanted, or of those that must be left. Answered by
    /// [`Answer::Done`].
    SetCopies {
        /// Of which volume.
        volume: VolumeId,
        /// How many copies are wanted: 1 to `COPIES_MAX`.
        copies: u8,
        /// How many must be left at least: 1 to `copies`; nothing for half of them, rounded up.
        min_copies: Option<u8>,
    },
    /// The writer's session reports that all that the volume has lies by the table for so many
    /// copies, and is stable there. Answered by [`Answer::Done`].
    CopiesMoved {
        /// Of which volume.
        volume: VolumeId,
        /// The writer.
        generation: Generation,
        /// By which table.
        copies: u8,
    },
    /// Begin an attempt to change the members of some partitions of one table. It takes the place
    /// of earlier ones at these partitions. Answered by [`Answer::AttemptBegun`].
    BeginAttempt {
        /// In the table for how many copies.
        copies: u8,
        /// There are 2^this partitions, which says what their numbers mean.
        bits: u8,
        /// The node that carries it out.
        owner: NodeId,
        /// Which partitions, together at most `PARTITIONS_PER_COMMAND_MAX`, and the members wanted;
        /// at most `ATTEMPT_DISKS_MAX` different disks.
        changes: Vec<Change>,
    },
    /// The disks that an attempt wants are the members of its partitions, and it is over. Of a
    /// partition that a newer attempt has taken over nothing changes. Answered by [`Answer::Done`].
    Activate {
        /// Which one.
        attempt: u64,
        /// Every disk that it wants, in the opening that did its part; at most
        /// `ATTEMPT_DISKS_MAX`. Others are passed over.
        openings: Vec<Member>,
    },
    /// An attempt came to nothing. Done already is done. Answered by [`Answer::Done`].
    GiveUpAttempt {
        /// Which one.
        attempt: u64,
        /// Whether any disk was asked to refuse a configuration: then another attempt must follow.
        may_be_refused: bool,
    },
    /// There are twice as many partitions: p becomes 2p and 2p + 1 on the same disks. Done already
    /// is done. Answered by [`Answer::Done`].
    SplitPartitions {
        /// There are 2^this then.
        bits: u8,
    },
    /// A node can be reached at these addresses, and no others, by the other nodes. Answered by
    /// [`Answer::Done`].
    SetAddresses {
        /// Which node.
        node: NodeId,
        /// As a person would write them (`host:port`), the best first, at most
        /// `NODE_ADDRESSES_MAX`. None: not known.
        addresses: Vec<String>,
    },
    /// Machines that show this secret may become nodes. Done already is done. Answered by
    /// [`Answer::Done`].
    AddToken {
        /// Drawn at random.
        id: TokenId,
        /// The digest of its secret.
        secret: Digest,
        /// How many nodes it lets in.
        uses: u32,
        /// Now.
        unix_s: u64,
        /// From when on it lets nobody in.
        expires_unix_s: u64,
    },
    /// A token lets nobody in any more. Those that it let in stay. Answered by [`Answer::Done`].
    RevokeToken {
        /// Which one.
        id: TokenId,
    },
    /// A machine that has a token becomes a node, and one use of the token is gone. Done already is
    /// done. Answered by [`Answer::Done`].
    AdmitNode {
        /// The token's name.
        token: TokenId,
        /// The digest of the secret that was shown.
        secret: Digest,
        /// The identity that the machine has chosen.
        node: NodeId,
        /// The digest of its public key.
        key: Digest,
        /// What people call it; made printable and cut to its limit.
        name: String,
        /// Now: the token may not have expired.
        unix_s: u64,
    },
    /// A new volume, empty or with a parent elsewhere, that is kept in so many copies from the
    /// start. Answered by [`Answer::VolumeCreated`].
    CreateVolumeKept {
        /// Its name.
        name: String,
        /// Its size.
        bytes: u64,
        /// Where its parent lies, and that one's size in bytes, if it has one.
        from: Option<(String, u64)>,
        /// How many copies: 1 to `COPIES_MAX`.
        copies: u8,
        /// How many must be left at least: 1 to `copies`; nothing for half of them, rounded up.
        min_copies: Option<u8>,
        /// Now.
        unix_s: u64,
    },
    /// As [`Command::SetCopies`], but refused where anything might have to be copied before it is
    /// so. Answered by [`Answer::Done`].
    KeepCopies {
        /// Of which volume.
        volume: VolumeId,
        /// How many copies: 1 to `COPIES_MAX`.
        copies: u8,
        /// How many must be left at least: 1 to `copies`; nothing for half of them, rounded up.
        min_copies: Option<u8>,
    },
    /// As [`Command::CreateVolumeKept`], of a volume whose acknowledgements promise this. Answered
    /// by [`Answer::VolumeCreated`].
    CreateVolumeDurable {
        /// Its name.
        name: String,
        /// Its size.
        bytes: u64,
        /// Where its parent lies, and that one's size in bytes, if it has one.
        from: Option<(String, u64)>,
        /// How many copies: 1 to `COPIES_MAX`.
        copies: u8,
        /// How many must be left at least: 1 to `copies`; nothing for half of them, rounded up.
        min_copies: Option<u8>,
        /// When what is written is stable.
        durability: Durability,
        /// Now.
        unix_s: u64,
    },
    /// Acknowledgements of a volume promise something else from now on. Done already is done.
    /// Answered by [`Answer::Done`].
    SetDurability {
        /// Of which volume.
        volume: VolumeId,
        /// When what is written is stable.
        durability: Durability,
    },
    /// The writer's session reports that all that it acknowledges from now on is stable. Done
    /// already is done. Answered by [`Answer::Done`].
    StableFromNow {
        /// Of which volume.
        volume: VolumeId,
        /// The writer.
        generation: Generation,
        /// The epoch in which it was asked for.
        since: Epoch,
    },
    /// A majority of the voters is lost: the log goes on from what one node has (decision 0013).
    /// Never proposed, but written by `Voter::begin_recovery`. Answered by [`Answer::Done`].
    Recover {
        /// The nodes that are given up.
        lost: Vec<NodeId>,
        /// Now.
        unix_s: u64,
    },
    /// A node that the recovered cluster was found to have left behind is given up as the others
    /// were. Done already is done. Answered by [`Answer::Done`].
    GiveUpNode {
        /// Which node.
        node: NodeId,
    },
    /// A node that was given up is no part of the cluster any more; partitions do without its disks
    /// where another member is left. Answered by [`Answer::Done`].
    RemoveLostNode {
        /// Which node.
        node: NodeId,
    },
}

/// What came of a command that was carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It is so now; nothing to tell.
    Done,
    /// The volume exists.
    VolumeCreated {
        /// Its id.
        volume: VolumeId,
    },
    /// The volume has its new size.
    Resized {
        /// What is still to be discarded by the session of its writer, now or when next attached.
        pending_discard: Option<PendingDiscard>,
    },
    /// It is so now, and these layers, each with its lineage, are to be dropped by all disks in
    /// this order.
    Dropped(Vec<(LineageId, LayerId)>),
    /// The snapshot exists and is sealing.
    SnapshotCreated {
        /// What it names.
        layer: LayerId,
    },
    /// The group snapshot exists; its parts are sealing.
    GroupSnapshotCreated {
        /// Its volumes, and what each of its snapshots names.
        layers: Vec<(VolumeId, LayerId)>,
    },
    /// The attachment is held.
    Attached {
        /// Its number.
        generation: Generation,
    },
    /// The attempt is under way.
    AttemptBegun {
        /// Its number.
        attempt: u64,
    },
}

/// Why bytes of the log or a snapshot are not what they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a later version.
    #[error("it has version {0}, which this sheep does not know; run the sheep that wrote it")]
    Version(u8),
    /// Longer than anything we write.
    #[error("it is longer than its limit")]
    TooLong,
    /// The checksum does not fit.
    #[error("its checksum does not fit")]
    Checksum,
    /// Not a well-formed record.
    #[error("it is malformed")]
    Malformed,
    /// Well-formed, but no state that commands lead to.
    #[error("it contradicts itself: {0}")]
    Contradiction(&'static str),
}

/// The version of the encoding of commands, the first byte.
const VERSION: u8 = 1;

impl Command {
    /// One that changes nothing, in any version, and is refused with
    /// [`crate::Refusal::NoSuchToken`]: whoever has that answer knows all that was agreed before it
    /// was proposed.
    pub fn nothing() -> Command {
        // Tokens are named at random, and none is 0.
        Command::RevokeToken { id: TokenId(0) }
    }

    /// The same command with its texts inside their limits: those for people are cut, a volume's
    /// name that is none is refused. Every command goes through here before it is logged.
    pub fn bounded(mut self) -> Result<Command, Refusal> {
        match &mut self {
            Command::AddNode { name, .. } | Command::AdmitNode { name, .. } => {
                *name = printable(name, NODE_NAME_BYTES_MAX);
            }
            Command::Attach { holder, .. } => *holder = printable(holder, HOLDER_BYTES_MAX),
            Command::CreateVolume { name, .. } | Command::RenameVolume { name, .. } => {
                check_name(name)?;
            }
            Command::Undelete { name, .. } => check_name(name)?,
            Command::CreateVolumeFrom { name, address, .. } => {
                check_name(name)?;
                check_address(address)?;
            }
            Command::CreateVolumeKept { name, from, .. }
            | Command::CreateVolumeDurable { name, from, .. } => {
                check_name(name)?;
                from.iter().try_for_each(|(address, _)| check_address(address))?;
            }
            Command::CreateSnapshot { tag, .. }
            | Command::DeleteSnapshot { tag, .. }
            | Command::DropSnapshot { tag, .. }
            | Command::LockSnapshot { tag, .. }
            | Command::Rollback { tag, .. } => check_tag(tag)?,
            Command::CreateGroup { name, .. } | Command::DeleteGroup { name } => {
                check_group_name(name)?;
            }
            Command::ChangeGroup { name, volumes, .. } => {
                check_group_name(name)?;
                if volumes.len() > GROUP_VOLUMES_MAX {
                    return Err(Refusal::TooManyInGroup { name: name.clone() });
                }
            }
            Command::SnapshotGroup { name, tag, .. }
            | Command::DropGroupSnapshot { name, tag, .. }
            | Command::RollbackGroup { name, tag } => {
                check_group_name(name)?;
                check_tag(tag)?;
            }
            Command::SetSchedule { schedule, .. } | Command::RemoveSchedule { schedule, .. } => {
                check_schedule_name(schedule)?;
            }
            Command::ScheduledSnapshot { schedule, tag, .. } => {
                check_schedule_name(schedule)?;
                check_tag(tag)?;
            }
            Command::CloneSnapshot { tag, name, .. } => {
                check_tag(tag)?;
                check_name(name)?;
            }
            Command::AttachSnapshot { tag, holder, .. } => {
                check_tag(tag)?;
                *holder = printable(holder, HOLDER_BYTES_MAX);
            }
            Command::SetZone { zone, .. } => *zone = printable(zone, ZONE_NAME_BYTES_MAX),
            Command::SetAddresses { addresses, .. } => {
                vet_batch(addresses, NODE_ADDRESSES_MAX)?;
                addresses.iter().try_for_each(|address| check_node_address(address))?;
            }
            Command::Recover { lost, .. } => vet_batch(lost, NODES_MAX)?,
            Command::BeginAttempt { changes, .. } => {
                for change in &*changes {
                    vet_batch(&change.wanted, MEMBERS_MAX)?;
                }
                let named = changes.iter().map(|change| change.partitions.len().max(1));
                let named = named.fold(0usize, |sum, count| sum.saturating_add(count));
                vet_count(named, PARTITIONS_PER_COMMAND_MAX)?;
                // With the longest numbers not all of them fit.
                if self.to_bytes().len() > COMMAND_BYTES_MAX {
                    return Err(Refusal::AttemptTooLarge);
                }
            }
            Command::Activate { openings, .. } => vet_batch(openings, ATTEMPT_DISKS_MAX)?,
            _ => {}
        }
        Ok(self)
    }

    /// As bytes for the log: version, then the fields in postcard.
    ///
    /// # Panics
    /// If it is longer than `COMMAND_BYTES_MAX`: it has not gone through [`Command::bounded`].
    pub fn encode(&self) -> Vec<u8> {
        let bytes = self.to_bytes();
        assert!(bytes.len() <= COMMAND_BYTES_MAX, "command that was not bounded");
        bytes
    }

    fn to_bytes(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("it only has serializable fields")
    }

    /// From bytes of the log.
    pub fn decode(bytes: &[u8]) -> Result<Command, DecodeError> {
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(DecodeError::TooLong);
        }
        let (&version, body) = bytes.split_first().ok_or(DecodeError::Malformed)?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        match postcard::take_from_bytes(body) {
            Ok((command, [])) => Ok(command),
            _ => Err(DecodeError::Malformed),
        }
    }
}

/// Whether a command has so few of something that it can be logged.
fn vet_batch<T>(batch: &[T], max: usize) -> Result<(), Refusal> {
    vet_count(batch.len(), max)
}

fn vet_count(count: usize, max: usize) -> Result<(), Refusal> {
    if count > max { Err(Refusal::TooManyInCommand { max }) } else { Ok(()) }
}
