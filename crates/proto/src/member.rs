//! What a volume's session (through `replica`) and one disk (through `store`) say to each other.
//! Between nodes these travel in frames; on one node they are handed over as they are.

use crate::{
    BLOCKS_PER_OBJECT, BlockRange, ConfigurationNumber, Generation, Incarnation, LayerId,
    LineageId, ObjectKey, PartitionId, Payload, Stamp,
};
use std::borrow::Cow;

/// More blocks than can be staged for an object: who says so of an adoption wants what is staged
/// dropped.
pub const STAGED_NEVER: u32 = BLOCKS_PER_OBJECT + 1;

/// Chosen by the asker, unique among its requests in flight; comes back with the reply.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MemberToken(pub u64);

/// Under which configuration of an object's partition a request is made. The partition follows from
/// the object: see [`crate::partition_of`]. A disk that has refused it answers
/// [`MemberError::WrongConfiguration`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Under {
    /// The table by which the lineage lies: its number of copies.
    pub copies: u8,
    /// There are 2^this partitions.
    pub bits: u8,
    /// The configuration's number.
    pub number: ConfigurationNumber,
}

/// Some partitions of one table, each with a configuration, that are handled together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// The table: a number of copies.
    pub copies: u8,
    /// There are 2^this partitions.
    pub bits: u8,
    /// The partitions, ascending, and the number of the configuration that is left; at most
    /// `BATCH_PARTITIONS_MAX`.
    pub partitions: Vec<(PartitionId, ConfigurationNumber)>,
    /// The attempt to change their members, numbered by the agreed state. What an older one than
    /// the disk knows asks is refused with [`MemberError::Superseded`].
    pub attempt: u64,
}

/// By what right an object is made equal to a peer's copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permit {
    /// A session settles it while it opens: its fence must be the disk's newest.
    Session {
        /// The session.
        generation: Generation,
        /// The configuration it settles under.
        under: Under,
    },
    /// An attempt to change the members. It ends on a disk when the disk has been asked to
    /// [`MemberRequest::Install`] what it came to.
    Attempt {
        /// The table of the lineage, the number of partitions, and the configuration to be left.
        under: Under,
        /// Its number.
        attempt: u64,
    },
    /// A damaged page of a map is made anew. The content stays what it was, so that no stamp
    /// changes: what is adopted has the stamp that the object has, and replaces only whole pages
    /// that are damaged.
    Mend {
        /// The configuration, which must not be refused.
        under: Under,
    },
}

/// What a session asks of one disk. Every request of a session carries the generation of its
/// attachment; a disk that has promised a newer one answers [`MemberError::Fenced`].
#[derive(Clone, Debug)]
pub enum MemberRequest {
    /// Refuse all generations below this one for the lineage from now on. The fence is durable
    /// before it is answered, by [`MemberReply::Fenced`].
    Fence {
        /// Whose objects.
        lineage: LineageId,
        /// The new attachment.
        generation: Generation,
        /// Whether to list what is not settled: not wanted of a sole member.
        list: bool,
        /// List what comes after this key; the default begins.
        after: ObjectKey,
    },
    /// Mark the object as settled by this generation at the stamp it has, durably with the next
    /// flush. Answered by [`MemberReply::Done`].
    Settle {
        /// Whose object.
        lineage: LineageId,
        /// Which object.
        key: ObjectKey,
        /// The settling attachment.
        generation: Generation,
        /// The configuration it settles under.
        under: Under,
        /// What the object's stamp must be; another is [`MemberError::WrongStamp`].
        stamp: Stamp,
    },
    /// What stamp the object has. Answered by [`MemberReply::Stamp`].
    Stamp {
        /// Whose object.
        lineage: LineageId,
        /// Which object.
        key: ObjectKey,
        /// The asking attachment.
        generation: Generation,
    },
    /// From now on the lineage has this layer; where it has nothing of its own it shows what
    /// `parent` shows. Idempotent, durable with the next flush, and asked for before anything is
    /// written to the layer. Answered by [`MemberReply::Done`].
    OpenLayer {
        /// Whose layer.
        lineage: LineageId,
        /// The asking attachment.
        generation: Generation,
        /// The new layer. The first layer of a lineage need not be opened.
        layer: LayerId,
        /// The layer of the same lineage below it, which takes no new writes from now on.
        parent: LayerId,
    },
    /// Change some blocks. Answered by [`MemberReply::Written`] once it survives the death of the
    /// process.
    Write(Write),
    /// Content of some blocks as the key's layer shows them. Absent and zero blocks read as zeros.
    /// Answered by [`MemberReply::Data`].
    Read {
        /// Whose object.
        lineage: LineageId,
        /// Which object.
        key: ObjectKey,
        /// The asking attachment.
        generation: Generation,
        /// The configuration of the object's partition that the session knows; nothing for a sealed
        /// layer, whose content is the same under all.
        under: Option<Under>,
        /// Which blocks, at most `MEMBER_REQUEST_BLOCKS_MAX`.
        blocks: BlockRange,
    },
    /// What kind of content some blocks have as the key's layer shows them, without reading it.
    /// Answered by [`MemberReply::Map`].
    Map {
        /// Whose object.
        lineage: LineageId,
        /// Which object.
        key: ObjectKey,
        /// The asking attachment.
        generation: Generation,
        /// The configuration of the object's partition that the session knows; nothing for a sealed
        /// layer, whose content is the same under all.
        under: Option<Under>,
        /// Which blocks.
        blocks: BlockRange,
    },
    /// Which blocks the key's layer shows otherwise than a layer below it. Answered by
    /// [`MemberReply::Difference`].
    Difference {
        /// Whose object.
        lineage: LineageId,
        /// Which object, in the newer layer.
        key: ObjectKey,
        /// The asking attachment.
        generation: Generation,
        /// The configuration of the object's partition that the session knows; nothing for a sealed
        /// layer, whose content is the same under all.
        under: Option<Under>,
        /// The older layer: an ancestor of the newer one. Layer 0: nothing at all.
        base: LayerId,
        /// Which blocks.
        blocks: BlockRange,
    },
    /// How much of a layer's objects would become free if the layer were dropped: of `index` and
    /// the next objects after it. Answered by [`MemberReply::Reclaimable`].
    Reclaimable {
        /// Whose layer.
        lineage: LineageId,
        /// The asking attachment.
        generation: Generation,
        /// Which layer.
        layer: LayerId,
        /// From which object on.
        index: u32,
    },
    /// Make every write that was answered before durable. Answered by [`MemberReply::Flushed`].
    Flush {
        /// Whose writes matter to the asker (a disk flushes everything).
        lineage: LineageId,
        /// The asking attachment.
        generation: Generation,
        /// The settled point: below it everything is stable on every current member.
        settled: Stamp,
    },
    /// Mark every object of the lineage at or below the settled point as settled by this
    /// generation, durably with the next flush, if the disk has refused no configuration since it
    /// counted so many refusals; else [`MemberError::RefusedMore`]. Answered by
    /// [`MemberReply::Done`].
    Mark {
        /// Whose objects.
        lineage: LineageId,
        /// The settling attachment.
        generation: Generation,
        /// The settled point.
        settled: Stamp,
        /// [`MemberReply::Confirmed::refusals`] when the session last looked.
        refusals: u64,
    },
    /// Confirm that no newer attachment has fenced this one, and say which configurations the disk
    /// has refused. Answered by [`MemberReply::Confirmed`].
    Confirm {
        /// Whose.
        lineage: LineageId,
        /// The asking attachment.
        generation: Generation,
        /// How many refusals of this opening of the disk the asker knows; 0 begins.
        refusals: u64,
    },
    /// Which lineages the disk knows, with their fences. Answered by [`MemberReply::Lineages`].
    Lineages {
        /// Those after this one; 0 begins.
        after: LineageId,
    },
    /// Where the objects of some partitions stand, whatever their lineages. Answered by
    /// [`MemberReply::Survey`].
    Survey {
        /// There are 2^this partitions.
        bits: u8,
        /// Which of them, ascending; at most `BATCH_PARTITIONS_MAX`.
        partitions: Vec<PartitionId>,
        /// Whether only those not below their lineage's settled point are wanted.
        unsettled: bool,
        /// Those after this one, by lineage, layer and index; the default begins.
        after: (LineageId, ObjectKey),
    },
    /// The checksum of each block, as the key's layer shows it. Answered by
    /// [`MemberReply::Checksums`].
    Checksums {
        /// Whose object.
        lineage: LineageId,
        /// Which object.
        key: ObjectKey,
        /// Which blocks.
        blocks: BlockRange,
    },
    /// Take content that a later [`MemberRequest::Adopt`] puts into the object, all of it at once.
    /// Until then nothing of it is seen, and it is gone when the disk is opened anew. Answered by
    /// [`MemberReply::Done`].
    Stage {
        /// By what right.
        permit: Permit,
        /// Whose object.
        lineage: LineageId,
        /// Which object.
        key: ObjectKey,
        /// What to change. No two parts staged for one object may overlap, but one that comes once
        /// more: it is staged once.
        change: Change,
    },
    /// Put what was staged into the object and give it this stamp, in one. Answered by
    /// [`MemberReply::Done`]; so it is, without effect, if nothing is staged and the object has
    /// this stamp and this settled generation already. An object over which a
    /// layer above has one of its own is not changed: that is retracted first. Only who has
    /// settled it may change then, if nothing is staged and it has this stamp already.
    Adopt {
        /// By what right.
        permit: Permit,
        /// Whose object.
        lineage: LineageId,
        /// Which object.
        key: ObjectKey,
        /// How many blocks were staged; if it is another number, what was staged is dropped, and
        /// the answer is [`MemberError::NotStaged`]. [`STAGED_NEVER`]: for that alone.
        staged: u32,
        /// The stamp it has afterwards.
        stamp: Stamp,
        /// Who has settled it then, whatever the disk knew before.
        settled_generation: Generation,
        /// The stamp that the key's layer showed when it was looked at; if it shows another, what
        /// was staged is dropped, and the answer is [`MemberError::WrongStamp`].
        replaces: Stamp,
    },
    /// Forget what this layer has of the object, which then shows what lies below. Those of layers
    /// above go first. Answered by [`MemberReply::Done`]; so it is if the layer has nothing of it.
    Retract {
        /// By what right.
        permit: Permit,
        /// Whose object.
        lineage: LineageId,
        /// Which object.
        key: ObjectKey,
        /// The stamp that it had when it was looked at; if it has another, the answer is
        /// [`MemberError::WrongStamp`].
        replaces: Stamp,
    },
    /// Refuse these configurations from now on, and all before them. Durable before it is answered,
    /// by [`MemberReply::Refused`].
    Refuse(Batch),
    /// The attempt has made the objects of these partitions what the next configurations begin
    /// with: refuse the present ones and all that the attempt asks later, and make everything
    /// durable. Answered by [`MemberReply::Installed`].
    Install {
        /// Which, and by which attempt.
        batch: Batch,
        /// Fences to raise; at most `INSTALL_FENCES_MAX`. More go with earlier requests of an
        /// attempt, which is not over if `last` is not set.
        fences: Vec<(LineageId, Generation)>,
        /// Whether the attempt ends with this.
        last: bool,
    },
}

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Write {
    /// Whose object.
    pub lineage: LineageId,
    /// Which object.
    pub key: ObjectKey,
    /// The configuration of the object's partition that the session knows.
    pub under: Under,
    /// The stamp the object must have; another is [`MemberError::WrongStamp`].
    pub previous: Stamp,
    /// The stamp it has afterwards. Its generation is the writer's.
    pub stamp: Stamp,
    /// Below this stamp everything is stable on every current member: what need not be settled
    /// anew.
    pub settled: Stamp,
    /// What to change.
    pub change: Change,
}

/// What a write does to its blocks.
#[derive(Clone, Debug)]
pub enum Change {
    /// New content for whole blocks.
    Data {
        /// The first block.
        first: u32,
        /// Whole blocks, at most `MEMBER_REQUEST_BLOCKS_MAX`.
        payload: Payload,
        /// Whether blocks of zeros may be kept as entries without space (thin), or must have
        /// space of their own.
        detect_zeroes: bool,
    },
    /// The blocks read as zeros and give their space back.
    Zero {
        /// Which blocks.
        blocks: BlockRange,
    },
    /// The blocks are as if never written and give their space back, whatever lies below in the
    /// lineage. Where a parent in another lineage shows through, only [`Change::Zero`] is right.
    Absent {
        /// Which blocks.
        blocks: BlockRange,
    },
}

/// What a disk answers.
#[derive(Clone, Debug)]
pub enum MemberReply {
    /// The fence holds. Lists the objects of the lineage whose stamp is not below the settled point
    /// this disk knows: what the new session has to settle before it serves them.
    Fenced {
        /// Which opening of the disk answers.
        incarnation: Incarnation,
        /// The settled point it knows.
        settled: Stamp,
        /// Objects not below the settled point, in key order, if they are wanted.
        unsettled: Vec<ObjectStamp>,
        /// Whether there are more after the last of them.
        more: bool,
    },
    /// Done; nothing to tell.
    Done,
    /// The object's present stamp.
    Stamp(ObjectStamp),
    /// The write was applied.
    Written {
        /// Which opening of the disk answers.
        incarnation: Incarnation,
    },
    /// The content, in order.
    Data {
        /// Each a whole number of blocks, together all of them.
        content: Vec<Payload>,
        /// Which of the blocks are absent, in order: zeros in `content`, unless the lineage has a
        /// parent in another one.
        absent: Vec<BlockRange>,
    },
    /// Runs of equal state in block order, together all blocks asked for.
    Map(Vec<(u32, BlockState)>),
    /// Runs in block order, together all blocks asked for: nothing where both layers show the
    /// same, otherwise what the newer one shows.
    Difference(Vec<(u32, Option<BlockState>)>),
    /// What dropping the layer would give back of the objects looked at.
    Reclaimable {
        /// Blocks of data that only this layer shows.
        blocks: u64,
        /// Where to go on; nothing: the layer has no objects beyond.
        next_index: Option<u32>,
    },
    /// All writes answered before the flush was asked for are durable.
    Flushed {
        /// Which opening of the disk answers.
        incarnation: Incarnation,
    },
    /// The asker is not fenced.
    Confirmed {
        /// Which opening of the disk answers.
        incarnation: Incarnation,
        /// How many refusals the asker knows with these.
        refusals: u64,
        /// The configurations that were refused since, in the order in which they were; of one
        /// partition only the last.
        refused: Vec<Refused>,
        /// Whether there are more: ask again.
        more: bool,
    },
    /// Lineages, ascending.
    Lineages {
        /// How each stands.
        lineages: Vec<LineageStamp>,
        /// Whether there are more after the last of them.
        more: bool,
    },
    /// Objects by lineage, layer and index.
    Survey {
        /// Which opening of the disk answers.
        incarnation: Incarnation,
        /// Whose, and how each stands.
        objects: Vec<(LineageId, ObjectStamp)>,
        /// Whether there are more after the last of them.
        more: bool,
    },
    /// One for each block asked for.
    Checksums(Vec<BlockSum>),
    /// The configurations are refused.
    Refused {
        /// Which opening of the disk answers.
        incarnation: Incarnation,
        /// What openings from this one on acknowledged is all there: the disk's machine has not
        /// lost power since it.
        lossless_from: Incarnation,
    },
    /// Everything is durable.
    Installed {
        /// Which opening of the disk answers.
        incarnation: Incarnation,
    },
}

/// A configuration that a disk has refused, with all of the partition before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The table, the number of partitions, and the configuration.
    pub under: Under,
    /// Which partition.
    pub partition: PartitionId,
}

/// Where a lineage stands on one disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LineageStamp {
    /// Which lineage.
    pub lineage: LineageId,
    /// Generations below are refused.
    pub fence: Generation,
    /// The settled point that the disk knows.
    pub settled: Stamp,
    /// Who has settled everything at or below it.
    pub marked_by: Generation,
}

/// What a block has, for comparing copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockSum {
    /// See [`BlockState::Absent`].
    Absent,
    /// See [`BlockState::Zero`].
    Zero,
    /// Its checksum: see [`crate::block_checksum`].
    Data(u64),
}

/// Where one object stands on one disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectStamp {
    /// Which object.
    pub key: ObjectKey,
    /// The last write applied; the default if there was none.
    pub stamp: Stamp,
    /// The attachment that last settled it; 0 if none did. A write of a generation, and a mark at
    /// or above the stamp, count as settling.
    pub settled_generation: Generation,
}

/// What kind of content a block has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockState {
    /// Never written, or discarded where nothing lies below. Takes no space.
    Absent,
    /// Reads as zeros. Takes no space.
    Zero,
    /// Has data of its own.
    Data,
}

/// Why a disk did not do it, named by what the asker must do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemberError {
    /// Stop: a newer attachment exists.
    #[error("fenced by generation {newer}")]
    Fenced {
        /// The generation promised to.
        newer: Generation,
    },
    /// Resend from there: the object is not where the writer thought.
    #[error("the object is at {have:?}")]
    WrongStamp {
        /// The stamp it has.
        have: Stamp,
    },
    /// Learn the map: the partition's configuration is another.
    #[error("the partition is in configuration {have}")]
    WrongConfiguration {
        /// The number the disk knows.
        have: ConfigurationNumber,
    },
    /// Look what the disk has refused since.
    #[error("the disk has refused configurations {refusals} times")]
    RefusedMore {
        /// How often it has.
        refusals: u64,
    },
    /// Give up: a newer attempt to change the members exists, or this one is over.
    #[error("the partition's members are being changed by attempt {newer}")]
    Superseded {
        /// The newest attempt that the disk knows.
        newer: u64,
    },
    /// Stage everything again: what was staged is not what was sent, and was dropped.
    #[error("{have} blocks were staged")]
    NotStaged {
        /// How many were.
        have: u32,
    },
    /// Report: there is no space for new data. Overwrites, discards and deletes still work.
    #[error("no space left for new data")]
    NoSpace,
    /// Ask another copy: the content of this block is damaged here.
    #[error("block {block} of object {key} is damaged")]
    Corrupt {
        /// The object.
        key: ObjectKey,
        /// The first damaged block.
        block: u32,
    },
    /// Try again a little later: a bound is reached.
    #[error("too many requests at once")]
    Busy,
    /// Wait for the disk to be replaced or opened anew: it failed and takes no more requests.
    #[error("the disk is out of service")]
    Retired,
    /// A bug of the asker: the request makes no sense (too long, out of range). A reason that came
    /// from another node is a text of its own.
    #[error("refused: {0}")]
    Invalid(Cow<'static, str>),
}

impl MemberError {
    /// [`MemberError::Invalid`] for this reason.
    pub const fn invalid(why: &'static str) -> MemberError {
        MemberError::Invalid(Cow::Borrowed(why))
    }
}
