//! What a volume's session (through `replica`) and one disk (through `store`) say to each other.
//! Between nodes these travel in frames; on one node they are handed over as they are.

use crate::{
    BlockRange, ConfigurationNumber, Generation, Incarnation, LayerId, LineageId, ObjectKey,
    Payload, Stamp,
};
use std::borrow::Cow;

/// Chosen by the asker, unique among its requests in flight; comes back with the reply.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MemberToken(pub u64);

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
    pub configuration: ConfigurationNumber,
    /// The stamp the object must have; another is [`MemberError::WrongStamp`].
    pub previous: Stamp,
    /// The stamp it has afterwards. Its generation is the writer's.
    pub stamp: Stamp,
    /// Below this stamp every current member has everything: what need not be settled anew.
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
        /// The objects not below the settled point, in key order.
        unsettled: Vec<ObjectStamp>,
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
}

/// Where one object stands on one disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectStamp {
    /// Which object.
    pub key: ObjectKey,
    /// The last write applied; the default if there was none.
    pub stamp: Stamp,
    /// The attachment that last settled it; 0 if none did.
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
