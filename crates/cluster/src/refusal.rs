//! Why a command was not carried out: each variant one sentence with its cause and remedy.

use crate::{PersistError, TokenId};
use proto::limits::{
    ATTACHMENTS_MAX, ATTEMPTS_MAX, COPIES_MAX, DISKS_MAX, GROUP_VOLUMES_MAX, GROUPS_MAX,
    LAYERS_MAX, NODE_ADDRESS_BYTES_MAX, NODES_MAX, PARTITION_BITS_MAX, PROPOSALS_MAX,
    RECOVERIES_MAX, SCHEDULE_KEEP_MAX, SNAPSHOTS_MAX, SOURCES_MAX, TOKEN_USES_MAX, TOKENS_MAX,
    VOLUMES_MAX,
};
use proto::{
    ConfigurationNumber, DiskId, Generation, Incarnation, LayerId, NodeId, PartitionId, VolumeId,
};

/// What the asker can do about a [`Refusal`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalKind {
    /// Ask for something else: the request itself is wrong.
    Invalid,
    /// Name something that exists.
    NotFound,
    /// Choose another name, or do without: it exists already.
    Exists,
    /// Wait for, or stop, whoever is in the way; then ask again.
    Busy,
    /// Remove something first: a limit of the cluster is reached.
    Full,
    /// See to the machine: the cluster's log cannot take commands now.
    Unavailable,
}

/// Why a command was not carried out. It changed nothing. Shown to people as it is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// No command but `CreateCluster` works on an empty state.
    #[error("there is no cluster yet; start sheep to create one")]
    NoCluster,
    /// A cluster is created once.
    #[error("the cluster exists already; use another data directory for a new one")]
    ClusterExists,
    /// Partitions are a power of two up to a limit.
    #[error(
        "2^{bits} partitions are too many; choose at most 2^{max} (65536)",
        max = PARTITION_BITS_MAX
    )]
    TooManyPartitions {
        /// What was asked for.
        bits: u8,
    },
    /// The id 0 means "none".
    #[error("a {what} with the id 0 cannot exist; use the id in its data directory")]
    ZeroId {
        /// "cluster", "node" or "disk".
        what: &'static str,
    },
    /// No such node.
    #[error("node {node} is not part of this cluster; let it join first")]
    UnknownNode {
        /// Who.
        node: NodeId,
    },
    /// A limit.
    #[error("the cluster has {max} nodes, the most it can have; remove one first", max = NODES_MAX)]
    TooManyNodes,
    /// A limit.
    #[error("the cluster has {max} disks, the most it can have; remove one first", max = DISKS_MAX)]
    TooManyDisks,
    /// A disk is opened again with a number that is not new.
    #[error(
        "disk {disk} was opened as incarnation {given}, but the cluster has seen {known}: an old \
         copy of the disk was put back, or two copies of it are in use; put the newest one back"
    )]
    OldIncarnation {
        /// Which disk.
        disk: DiskId,
        /// What it says.
        given: Incarnation,
        /// What the cluster knows.
        known: Incarnation,
    },
    /// A disk turns up at another node.
    #[error("disk {disk} belongs to node {owner}, not {node}; put it back there")]
    DiskOfAnotherNode {
        /// Which disk.
        disk: DiskId,
        /// Where it is listed.
        owner: String,
        /// Where it turned up.
        node: String,
    },
    /// The data lies on another disk, and moving it is not built yet.
    #[error(
        "the cluster's data lies on disk {known}, and this version keeps it on one disk; put that \
         disk back, or start a new cluster for disk {disk}"
    )]
    SecondDisk {
        /// Which disk was opened.
        disk: DiskId,
        /// Which one has the data.
        known: DiskId,
    },
    /// A name that a volume may not have.
    #[error(
        "\"{name}\" cannot be a volume's name because {problem}; choose 1 to 255 printable \
         characters without white space, '/' or '@', not starting with '-'"
    )]
    BadName {
        /// The name, made printable.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A tag that a snapshot may not have.
    #[error(
        "\"{tag}\" cannot be a snapshot's tag because {problem}; choose 1 to 255 printable \
         characters without white space, '/' or '@', not starting with '-'"
    )]
    BadTag {
        /// The tag, made printable.
        tag: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Two snapshots of one volume with one tag.
    #[error("volume \"{name}\" has a snapshot \"{tag}\" already; choose another tag")]
    TagTaken {
        /// Which volume.
        name: String,
        /// The tag.
        tag: String,
    },
    /// No such snapshot (any more).
    #[error(
        "volume \"{name}\" has no snapshot \"{tag}\"; see what it has with `dog volume snapshots`"
    )]
    UnknownSnapshot {
        /// Which volume.
        name: String,
        /// The tag.
        tag: String,
    },
    /// The disks are still to learn of the newest layer.
    #[error(
        "the last snapshot of volume \"{name}\" is still being taken, or its last rollback being \
         finished; try again a little later"
    )]
    Sealing {
        /// Which volume.
        name: String,
    },
    /// It is no clone, or was flattened.
    #[error(
        "volume \"{name}\" shows nothing of another volume's snapshot, so there is nothing to \
         flatten; `dog volume info` names what a clone shows"
    )]
    NothingToFlatten {
        /// Which volume.
        name: String,
    },
    /// A volume can only be shortened onto what shows through it.
    #[error(
        "layer {layer} does not show through volume \"{name}\", so that cannot lie on it; report \
         this bug"
    )]
    NotBelow {
        /// Which volume.
        name: String,
        /// The layer that was given.
        layer: LayerId,
    },
    /// Deleting a volume does not take its snapshots along unasked.
    #[error(
        "volume \"{name}\" has {count} snapshots; delete them first, or the volume with them \
         (--with-snapshots)"
    )]
    HasSnapshots {
        /// Which volume.
        name: String,
        /// How many.
        count: usize,
    },
    /// A limit.
    #[error(
        "the cluster has {max} snapshots, the most it can have; delete one first",
        max = SNAPSHOTS_MAX
    )]
    TooManySnapshots,
    /// A limit.
    #[error(
        "the cluster has {max} layers of volumes and snapshots, the most it can have; delete \
         snapshots, or flatten clones of what was deleted",
        max = LAYERS_MAX
    )]
    TooManyLayers,
    /// Two volumes of one name.
    #[error("a volume named \"{name}\" exists already; choose another name")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Too small or too large.
    #[error("a volume cannot have {bytes} bytes; choose a size from 4 KiB to 1 PiB")]
    SizeOutOfRange {
        /// The size.
        bytes: u64,
    },
    /// Not whole blocks.
    #[error(
        "a volume's size must be a multiple of 4096 bytes and {bytes} is not; choose {below} or \
         {above}"
    )]
    SizeNotAligned {
        /// The size.
        bytes: u64,
        /// The next smaller right one.
        below: u64,
        /// The next larger right one.
        above: u64,
    },
    /// Shrinking loses data, so it must be said.
    #[error(
        "volume \"{name}\" has {present} bytes, and making it {bytes} would destroy what lies \
         beyond; shrink the file system in it first and then allow shrinking (--allow-shrink)"
    )]
    WouldShrink {
        /// Which volume.
        name: String,
        /// Its size.
        present: u64,
        /// The wanted size.
        bytes: u64,
    },
    /// Old data beyond a former end must be gone first.
    #[error(
        "volume \"{name}\" was shrunk and is still discarding what lay beyond its end; try again \
         when that is done"
    )]
    ShrinkPending {
        /// Which volume.
        name: String,
    },
    /// A reader cannot discard.
    #[error(
        "volume \"{name}\" was shrunk and grown again, and what lay beyond its former end is not \
         discarded yet; attach it for writing once, then read-only"
    )]
    ShrinkNeedsWriter {
        /// Which volume.
        name: String,
    },
    /// A limit.
    #[error(
        "the cluster has {max} volumes, the most it can have; delete one first",
        max = VOLUMES_MAX
    )]
    TooManyVolumes,
    /// No such volume (any more).
    #[error("there is no volume with the id {volume}; it may have been deleted, see the list")]
    UnknownVolume {
        /// Its id.
        volume: VolumeId,
    },
    /// Somebody has the volume open, and what was asked for cannot go along with that.
    #[error(
        "volume \"{name}\" is attached{how} by {holder} on node {node}; stop it or wait until it \
         closes the volume",
        how = if *.read_only { " read-only" } else { "" }
    )]
    Attached {
        /// Which volume.
        name: String,
        /// Who holds it.
        holder: String,
        /// Where.
        node: String,
        /// Whether that one only reads.
        read_only: bool,
    },
    /// A limit.
    #[error(
        "{max} attachments are held, the most the cluster can have; close one first",
        max = ATTACHMENTS_MAX
    )]
    TooManyAttachments,
    /// Somebody reports for an attachment that is over.
    #[error(
        "generation {generation} of volume \"{name}\" does not write any more; attach the volume \
         anew"
    )]
    NotTheWriter {
        /// Which volume.
        name: String,
        /// Who reported.
        generation: Generation,
    },
    /// It was deleted, but not for good.
    #[error(
        "volume \"{name}\" is in the trash; take it out first with `dog trash undelete {volume}`"
    )]
    InTrash {
        /// Which volume.
        name: String,
        /// Its id.
        volume: VolumeId,
    },
    /// Only what is in the trash can be purged or taken out.
    #[error("volume \"{name}\" is not in the trash; `dog trash list` shows what is")]
    NotInTrash {
        /// Which volume.
        name: String,
    },
    /// Nobody deletes a locked snapshot.
    #[error(
        "snapshot \"{name}@{tag}\" is locked until {until}, and until then nobody can delete it, \
         nor its volume; wait until then",
        until = proto::calendar::date(*.until_unix_s)
    )]
    Locked {
        /// Which volume.
        name: String,
        /// Which of its snapshots.
        tag: String,
        /// Until when, in seconds since 1970.
        until_unix_s: u64,
    },
    /// A lock only gets longer.
    #[error(
        "snapshot \"{name}@{tag}\" is locked until {until} already, and a lock cannot be made \
         shorter; choose a later date",
        until = proto::calendar::date(*.until_unix_s)
    )]
    LockedLonger {
        /// Which volume.
        name: String,
        /// Which of its snapshots.
        tag: String,
        /// Until when, in seconds since 1970.
        until_unix_s: u64,
    },
    /// A name that a group may not have.
    #[error(
        "\"{name}\" cannot be a group's name because {problem}; choose 1 to 255 printable \
         characters without white space, '/' or '@', not starting with '-'"
    )]
    BadGroupName {
        /// The name, made printable.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Two groups of one name.
    #[error("a group named \"{name}\" exists already; choose another name")]
    GroupExists {
        /// The name.
        name: String,
    },
    /// No such group (any more).
    #[error("there is no group \"{name}\"; `dog group list` shows what groups there are")]
    UnknownGroup {
        /// Its name.
        name: String,
    },
    /// A snapshot of no volumes.
    #[error("group \"{name}\" has no volumes; add some first with `dog group add {name} VOLUME`")]
    EmptyGroup {
        /// Which group.
        name: String,
    },
    /// A limit.
    #[error(
        "group \"{name}\" would have more than {max} volumes, the most it can have; make several \
         groups",
        max = GROUP_VOLUMES_MAX
    )]
    TooManyInGroup {
        /// Which group.
        name: String,
    },
    /// A limit.
    #[error(
        "the cluster has {max} groups, the most it can have; delete one first",
        max = GROUPS_MAX
    )]
    TooManyGroups,
    /// Two group snapshots of one group with one tag.
    #[error("group \"{name}\" has a snapshot \"{tag}\" already; choose another tag")]
    GroupTagTaken {
        /// Which group.
        name: String,
        /// The tag.
        tag: String,
    },
    /// No such group snapshot (any more).
    #[error(
        "group \"{name}\" has no snapshot \"{tag}\"; see what it has with `dog group info {name}`"
    )]
    UnknownGroupSnapshot {
        /// Which group.
        name: String,
        /// The tag.
        tag: String,
    },
    /// Some of it was deleted.
    #[error(
        "some of the snapshots of \"{name}@{tag}\" were deleted, so the group cannot go back to \
         that moment; roll back single volumes with `dog volume rollback VOLUME@{tag}`"
    )]
    GroupSnapshotIncomplete {
        /// Which group.
        name: String,
        /// The tag.
        tag: String,
    },
    /// It need not be of one moment.
    #[error(
        "the node ended while \"{name}@{tag}\" was being taken, so its volumes need not be of one \
         moment; delete it with `dog group delete {name}@{tag} --yes`, or roll back single volumes \
         with `dog volume rollback VOLUME@{tag}`"
    )]
    GroupSnapshotTorn {
        /// Which group.
        name: String,
        /// The tag.
        tag: String,
    },
    /// A name that a schedule may not have.
    #[error(
        "\"{name}\" cannot be a schedule's name because {problem}; choose 1 to 64 printable \
         characters without white space, '/' or '@', not starting with '-'"
    )]
    BadScheduleName {
        /// The name, made printable.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Too often, or too seldom.
    #[error("snapshots cannot be taken every {every_s} s; choose one minute to 366 days")]
    BadInterval {
        /// What was asked for.
        every_s: u32,
    },
    /// None, or too many.
    #[error(
        "a schedule cannot keep {keep} snapshots; choose 1 to {max}",
        max = SCHEDULE_KEEP_MAX
    )]
    BadKeep {
        /// What was asked for.
        keep: u32,
    },
    /// No such schedule (any more).
    #[error(
        "volume \"{name}\" has no schedule \"{schedule}\"; `dog schedule list {name}` shows those \
         it has"
    )]
    UnknownSchedule {
        /// Which volume.
        name: String,
        /// The schedule's name.
        schedule: String,
    },
    /// A limit.
    #[error("there are {max} schedules, the most there can be; remove one first")]
    TooManySchedules {
        /// Of the volume, or of the cluster.
        max: usize,
    },
    /// Each slot has its snapshot once.
    #[error(
        "schedule \"{schedule}\" of volume \"{name}\" has its snapshot of that time already; wait \
         for the next one"
    )]
    SlotTaken {
        /// Which volume.
        name: String,
        /// The schedule's name.
        schedule: String,
    },
    /// No address, or one that cannot be shown.
    #[error(
        "\"{address}\" cannot be the address of a source; give an NBD URI or the path of a file, \
         at most 1024 printable characters"
    )]
    BadAddress {
        /// The address, made printable and cut.
        address: String,
    },
    /// A limit.
    #[error(
        "{max} volumes show something that lies elsewhere, the most that can; wait until one is \
         filled",
        max = SOURCES_MAX
    )]
    TooManySources,
    /// Somebody reads the snapshot, and what was asked for cannot go along with that.
    #[error(
        "snapshot \"{name}@{tag}\" is read by {holder} on node {node}; stop it or wait until it \
         closes the snapshot"
    )]
    SnapshotRead {
        /// Of which volume.
        name: String,
        /// Which snapshot.
        tag: String,
        /// Who reads it.
        holder: String,
        /// Where.
        node: String,
    },
    /// Proposals come faster than the log takes them.
    #[error(
        "{max} commands wait for the cluster's log already; try again a little later",
        max = PROPOSALS_MAX
    )]
    TooManyProposals,
    /// The log did not take the command.
    #[error("{0}")]
    NotLogged(PersistError),
    /// No such disk.
    #[error("disk {disk} is not part of this cluster; add it first, or see the list of its disks")]
    UnknownDisk {
        /// Which disk.
        disk: DiskId,
    },
    /// It was taken out.
    #[error(
        "disk {disk} was removed from this cluster, and what it has does not count any more; wait \
         until the cluster has forgotten it, and add it as a new disk"
    )]
    DiskGone {
        /// Which disk.
        disk: DiskId,
    },
    /// A size that says nothing.
    #[error("disk {disk} cannot have 0 bytes; give its size, or drain it to have it hold nothing")]
    EmptyDisk {
        /// Which disk.
        disk: DiskId,
    },
    /// What is on it would be missed.
    #[error(
        "without disk {disk} too few copies of {count} partitions are left to be sure of all that \
         was written; drain it with `dog disk drain {disk}` and wait until nothing lies on it, or \
         bring other disks back first"
    )]
    LastCopy {
        /// Which disk.
        disk: DiskId,
        /// Of how many partitions.
        count: usize,
    },
    /// Its disks first.
    #[error(
        "node {name} has {count} of the cluster's disks; drain it with `dog node drain {name}`, \
         wait until nothing lies on them, and take each out with `dog disk remove`"
    )]
    NodeHasDisks {
        /// Which node.
        name: String,
        /// How many.
        count: usize,
    },
    /// It was given up.
    #[error(
        "node {name} was given up when the cluster was recovered; take it out with `dog node \
         remove {name} --yes`, and let the machine join anew with an empty data directory"
    )]
    NodeIsLost {
        /// Which node.
        name: String,
    },
    /// Nothing says that it is lost.
    #[error(
        "node {name} was not given up by a recovery; drain it, or take its disks out with `dog \
         disk remove`"
    )]
    NodeNotLost {
        /// Which node.
        name: String,
    },
    /// What lies there would be gone.
    #[error(
        "{count} partitions in use have no copy but on node {name}, which is lost, and reading \
         them would give zeros; delete the volumes that are kept in so few copies first (`dog \
         volume explain` shows them)"
    )]
    OnlyOnLostNode {
        /// Which node.
        name: String,
        /// Of how many partitions.
        count: usize,
    },
    /// The number of recoveries is bounded.
    #[error(
        "the cluster was recovered {max} times already; make a new one and copy the volumes",
        max = RECOVERIES_MAX
    )]
    TooManyRecoveries,
    /// Somebody uses volumes there.
    #[error(
        "node {name} has {count} volumes or snapshots attached; stop their clients there, or end \
         that with `dog volume detach` if the node does not come back"
    )]
    NodeHasAttachments {
        /// Which node.
        name: String,
        /// How many attachments.
        count: usize,
    },
    /// None, or too many.
    #[error("a volume cannot be kept in {copies} copies; choose 1 to {max}", max = COPIES_MAX)]
    BadCopies {
        /// What was asked for.
        copies: u8,
    },
    /// It lies by another table.
    #[error(
        "volume \"{name}\" is kept in {from} copies, and moving it to {copies} is not possible yet \
         in a cluster of several disks; make a new volume with `--copies {copies}` and copy its \
         data there with `dog volume export` and `dog volume import`"
    )]
    CopiesAreFixed {
        /// Its name.
        name: String,
        /// What was asked for.
        copies: u8,
        /// What it has.
        from: u8,
    },
    /// None, or more than there are.
    #[error(
        "of {copies} copies {min_copies} cannot be the fewest that must be left; choose 1 to \
         {copies}"
    )]
    BadMinCopies {
        /// How many copies are wanted.
        copies: u8,
        /// What was asked for.
        min_copies: u8,
    },
    /// No such partition, or no such table.
    #[error(
        "there is no partition {partition} of volumes with {copies} copies; learn the present map \
         and try again"
    )]
    UnknownPartition {
        /// In the table for how many copies.
        copies: u8,
        /// Which partition.
        partition: PartitionId,
    },
    /// Somebody else was faster.
    #[error(
        "partition {partition} has configuration {present} and not {given} any more; learn the \
         present map and try again"
    )]
    OldConfiguration {
        /// Which partition.
        partition: PartitionId,
        /// The number that was named.
        given: ConfigurationNumber,
        /// The number it has.
        present: ConfigurationNumber,
    },
    /// A batch is carried out at once, so it says one thing of each partition.
    #[error("partition {partition} is twice in one command; make two of it")]
    PartitionTwice {
        /// Which partition.
        partition: PartitionId,
    },
    /// It cannot be a member, or be one no more.
    #[error(
        "disk {disk} cannot change its part in partition {partition} because {problem}; learn the \
         present map and try again"
    )]
    Membership {
        /// Which disk.
        disk: DiskId,
        /// Which partition.
        partition: PartitionId,
        /// Why not.
        problem: &'static str,
    },
    /// It is over, or another took its place.
    #[error(
        "attempt {attempt} to change who holds some partitions is over, or newer ones have taken \
         its place; learn the present map and begin another if it is still needed"
    )]
    AttemptOver {
        /// Which one.
        attempt: u64,
    },
    /// It would change nothing.
    #[error("an attempt to change who holds partitions must name some; name one or more")]
    EmptyAttempt,
    /// Longer than the log takes, or with more disks than one node asks at a time.
    #[error("one attempt cannot change so many partitions of so many disks; make several attempts")]
    AttemptTooLarge,
    /// A limit.
    #[error(
        "{max} attempts to change who holds partitions are under way, the most there can be; wait \
         until one is over",
        max = ATTEMPTS_MAX
    )]
    TooManyAttempts,
    /// The numbers of partitions mean something to them.
    #[error(
        "{count} attempts to change who holds partitions are under way; wait until they are over"
    )]
    AttemptsUnderWay {
        /// How many.
        count: usize,
    },
    /// There is nothing that it could be asked for.
    #[error("disk {disk} was never opened; start sheep on its node first")]
    NeverOpened {
        /// Which disk.
        disk: DiskId,
    },
    /// It is to lose what it has.
    #[error("disk {disk} is being drained and gets nothing new; end that first")]
    DiskDraining {
        /// Which disk.
        disk: DiskId,
    },
    /// Volumes want more copies left.
    #[error(
        "that would leave {left} copies, and the volumes there need at least {floor}; bring disks \
         back or add some, or allow fewer copies (min_copies)"
    )]
    TooFewCopies {
        /// How many would be left.
        left: usize,
        /// How many must be.
        floor: usize,
    },
    /// Partitions can only be cut in two.
    #[error(
        "there are {present} partitions, and they can only double; choose {twice}",
        twice = 2 * *.present
    )]
    NotDoubled {
        /// How many there are.
        present: u32,
    },
    /// Longer than the log takes.
    #[error("one command changes at most {max} of them; make several")]
    TooManyInCommand {
        /// How many it may have.
        max: usize,
    },
    /// The node that asked was so far behind that it got the state as a whole, or has lost its
    /// journal while the command was on its way.
    #[error(
        "this node will not learn whether the command was or will be carried out; look whether it \
         was before asking again"
    )]
    OutcomeUnknown,
    /// Partitions were doubled meanwhile, and their numbers are those of others.
    #[error(
        "the command is for 2^{given} partitions, and there are 2^{present}; learn the present map \
         and try again"
    )]
    OtherPartitions {
        /// For how many, as a power of two.
        given: u8,
        /// How many there are, as a power of two.
        present: u8,
    },
    /// An address that a node may not have.
    #[error(
        "\"{address}\" cannot be a node's address; give a host and a port, at most {max} printable \
         characters",
        max = NODE_ADDRESS_BYTES_MAX
    )]
    BadNodeAddress {
        /// The address, made printable and cut.
        address: String,
    },
    /// There is none, its secret is another one, or it was revoked: which of them, only who has the
    /// secret may know.
    #[error(
        "the cluster does not know this token: it was altered, revoked, or is long over; make a \
         new one with `dog cluster token`"
    )]
    TokenUnknown,
    /// By the clock of the node that was asked.
    #[error(
        "the token expired at {expired}, and it is {asked} by the clock of the node that was \
         asked; make a new one with `dog cluster token`",
        expired = proto::calendar::date(*.expired_unix_s),
        asked = proto::calendar::date(*.asked_unix_s)
    )]
    TokenExpired {
        /// When, in seconds since 1970.
        expired_unix_s: u64,
        /// Now, in seconds since 1970.
        asked_unix_s: u64,
    },
    /// It has let in as many as it was made for.
    #[error(
        "the token has let in all of the {uses} nodes that it was made for; make a new one with \
         `dog cluster token --uses N`"
    )]
    TokenUsedUp {
        /// How many those are.
        uses: u32,
    },
    /// A machine wants to be a node that there is, and is not the one that was let in as it.
    #[error(
        "there is a node {node} in this cluster already; if this machine has a copy of its data \
         directory, delete the copy, or remove the old node first"
    )]
    NodeTaken {
        /// Which node.
        node: NodeId,
    },
    /// Who was taken out does not come back by the token that once let it in.
    #[error(
        "node {node} was removed from this cluster; let the machine join as a new node, with \
         another data directory"
    )]
    NodeWasRemoved {
        /// Which node.
        node: NodeId,
    },
    /// None, or too many.
    #[error("a token cannot let in {uses} nodes; choose 1 to {max}", max = TOKEN_USES_MAX)]
    BadTokenUses {
        /// What was asked for.
        uses: u32,
    },
    /// Over at once, or hardly ever.
    #[error("a token cannot hold so long; choose one second to 31 days")]
    BadTokenSpan,
    /// Two tokens of one name.
    #[error("there is a token {id} already; draw another one")]
    TokenTaken {
        /// Its name.
        id: TokenId,
    },
    /// Nothing to revoke.
    #[error("there is no token {id}; `dog cluster token list` shows those there are")]
    NoSuchToken {
        /// Its name.
        id: TokenId,
    },
    /// A limit.
    #[error(
        "the cluster has {max} tokens that could still let nodes in, the most it can have; revoke \
         one first",
        max = TOKENS_MAX
    )]
    TooManyTokens,
    /// Others are too few to hold what it holds.
    #[error(
        "without disk {disk}, {left} {are} left that could hold {count} of the partitions on it, \
         whose volumes ask for {floor} copies at least: what lies there would wait until there are \
         more; let another machine with a disk join first (`dog cluster token`), or bring back \
         what is away",
        are = if *.left == 1 { "disk is" } else { "disks are" }
    )]
    TooFewDisks {
        /// Which disk.
        disk: DiskId,
        /// Of how many partitions.
        count: usize,
        /// How many disks could hold them.
        left: usize,
        /// How many must be there.
        floor: usize,
    },
    /// A drain would never end.
    #[error(
        "what lies there has nowhere to go: {left} {are} left beside those that are drained, and \
         volumes ask for {floor} copies at least; let another machine with a disk join first (`dog \
         cluster token`), or end another drain",
        are = if *.left == 1 { "disk is" } else { "disks are" }
    )]
    NowhereToGo {
        /// How many disks would stay.
        left: usize,
        /// How many are needed.
        floor: usize,
    },
}

impl Refusal {
    /// What the asker can do about it.
    pub fn kind(&self) -> RefusalKind {
        use Refusal::*;
        match self {
            TooManyPartitions { .. }
            | ZeroId { .. }
            | OldIncarnation { .. }
            | DiskOfAnotherNode { .. }
            | SecondDisk { .. }
            | BadName { .. }
            | BadTag { .. }
            | SizeOutOfRange { .. }
            | SizeNotAligned { .. }
            | NothingToFlatten { .. }
            | NotBelow { .. }
            | BadGroupName { .. }
            | BadScheduleName { .. }
            | BadInterval { .. }
            | BadKeep { .. }
            | BadAddress { .. }
            | EmptyDisk { .. }
            | BadCopies { .. }
            | BadMinCopies { .. }
            | PartitionTwice { .. }
            | NotDoubled { .. }
            | TooManyInCommand { .. }
            | EmptyAttempt
            | AttemptTooLarge
            | BadNodeAddress { .. }
            | TokenUnknown
            | TokenExpired { .. }
            | BadTokenUses { .. }
            | BadTokenSpan
            | WouldShrink { .. } => RefusalKind::Invalid,
            NoCluster
            | UnknownNode { .. }
            | UnknownVolume { .. }
            | UnknownSnapshot { .. }
            | UnknownGroup { .. }
            | UnknownGroupSnapshot { .. }
            | UnknownSchedule { .. }
            | UnknownDisk { .. }
            | NoSuchToken { .. }
            | UnknownPartition { .. } => RefusalKind::NotFound,
            ClusterExists
            | NameTaken { .. }
            | TagTaken { .. }
            | GroupExists { .. }
            | GroupTagTaken { .. }
            | NodeTaken { .. }
            | NodeWasRemoved { .. }
            | TokenTaken { .. }
            | SlotTaken { .. } => RefusalKind::Exists,
            Sealing { .. }
            | HasSnapshots { .. }
            | ShrinkPending { .. }
            | ShrinkNeedsWriter { .. }
            | Attached { .. }
            | NotTheWriter { .. }
            | InTrash { .. }
            | NotInTrash { .. }
            | Locked { .. }
            | LockedLonger { .. }
            | EmptyGroup { .. }
            | GroupSnapshotIncomplete { .. }
            | GroupSnapshotTorn { .. }
            | SnapshotRead { .. }
            | DiskGone { .. }
            | LastCopy { .. }
            | NodeHasDisks { .. }
            | NodeIsLost { .. }
            | NodeNotLost { .. }
            | OnlyOnLostNode { .. }
            | NodeHasAttachments { .. }
            | CopiesAreFixed { .. }
            | OldConfiguration { .. }
            | OtherPartitions { .. }
            | Membership { .. }
            | NeverOpened { .. }
            | DiskDraining { .. }
            | TooFewCopies { .. }
            | TooFewDisks { .. }
            | NowhereToGo { .. }
            | AttemptOver { .. }
            | AttemptsUnderWay { .. }
            | TooManyProposals => RefusalKind::Busy,
            TooManyNodes
            | TooManyDisks
            | TooManyVolumes
            | TooManySnapshots
            | TooManyLayers
            | TooManyAttachments
            | TooManyInGroup { .. }
            | TooManyGroups
            | TooManySchedules { .. }
            | TooManyAttempts
            | TokenUsedUp { .. }
            | TooManyTokens
            | TooManyRecoveries
            | TooManySources => RefusalKind::Full,
            NotLogged(_) | OutcomeUnknown => RefusalKind::Unavailable,
        }
    }
}
