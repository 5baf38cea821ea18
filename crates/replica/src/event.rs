//! What goes into a coordinator and what comes out of it.

use cluster::{Map, Member};
use proto::{
    BlockRange, BlockState, Change, DiskId, LayerId, LineageId, MemberError, MemberReply,
    MemberRequest, MemberToken, ObjectKey, Payload,
};
use std::sync::Arc;

/// What of a volume a session shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// The layer that changes go to.
    Head {
        /// Whether the session only reads it.
        read_only: bool,
    },
    /// A sealed layer, read only.
    Snapshot {
        /// Which one.
        layer: LayerId,
    },
}

/// Whose content is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// That of the layer which the session shows.
    Own,
    /// That of a sealed layer of another lineage, which shows through.
    Origin {
        /// Whose layer.
        lineage: LineageId,
        /// Which layer.
        layer: LayerId,
    },
}

/// What a coordinator is told.
#[derive(Debug)]
pub enum Event {
    /// The session asks for something, only after [`Effect::Opened`]. A change must not overlap a
    /// request of the same blocks that has not ended: the session's block locks see to that.
    Request {
        /// Chosen by the session, comes back with [`Effect::Done`].
        token: u64,
        /// What it asks.
        request: Request,
    },
    /// A disk answers.
    Member {
        /// Which disk.
        disk: DiskId,
        /// That of the question.
        token: MemberToken,
        /// The answer.
        result: Result<MemberReply, MemberError>,
    },
    /// The cluster's state is another.
    Map(Arc<Map>),
    /// Time has passed: [`crate::Coordinator::deadline`] is due.
    Tick,
    /// The attachment was ended, as if there were a newer one. Answered by [`Effect::Fenced`],
    /// unless that came before.
    Ended,
}

/// What a session asks about the volume's objects.
#[derive(Debug)]
pub enum Request {
    /// The content of some blocks, at most `MEMBER_REQUEST_BLOCKS_MAX`. Ends with [`Answer::Data`].
    Read {
        /// Whose.
        source: Source,
        /// Which object.
        index: u32,
        /// Which blocks of it.
        blocks: BlockRange,
    },
    /// What kind of content some blocks have. Ends with [`Answer::Map`].
    Map {
        /// Whose.
        source: Source,
        /// Which object.
        index: u32,
        /// Which blocks of it.
        blocks: BlockRange,
    },
    /// Which blocks the session's layer shows otherwise than a layer below it in its lineage. Ends
    /// with [`Answer::Difference`].
    Difference {
        /// The layer below.
        base: LayerId,
        /// Which object.
        index: u32,
        /// Which blocks of it.
        blocks: BlockRange,
    },
    /// The head is another from now on: changes that come later go to it. Ends with
    /// [`Answer::Done`] once every current member of every partition knows it, and so has every
    /// change of the former one; it is stable with [`Request::Seal`] after that. Other requests do
    /// not wait for it.
    SwitchLayer {
        /// The new head.
        layer: LayerId,
        /// The former one.
        parent: LayerId,
    },
    /// Changes some blocks. Ends with [`Answer::Done`] once a quorum has it.
    Change {
        /// Which object.
        index: u32,
        /// What to do to it.
        change: Change,
    },
    /// Make all changes that have ended stable. Ends with [`Answer::Done`].
    Flush {
        /// Whether it is a flush that the guest asked for. A loss from before is reported only
        /// then: of a flush that ends a change nobody learns what became of other changes.
        reported: bool,
    },
    /// Seals what lies below the present head. Ends with [`Answer::Done`] once every current member
    /// of every partition knows that head, and has everything that had ended before this request
    /// stable: then the layers below may be read from any of them. A member that is away or behind
    /// holds it up until it is whole, or no member any more; other requests do not wait for it.
    Seal,
}

/// What a request that succeeded brings.
#[derive(Debug)]
pub enum Answer {
    /// Nothing to tell.
    Done,
    /// The content.
    Data {
        /// In order: together all blocks asked for, whole blocks each.
        content: Vec<Payload>,
        /// Which of the blocks are absent, in order. What lies below the lineage shows there.
        absent: Vec<BlockRange>,
    },
    /// Runs of equal state in block order, together all blocks asked for.
    Map(Vec<(u32, BlockState)>),
    /// Runs in block order, together all blocks asked for: nothing where both layers show the
    /// same, otherwise what the newer one shows.
    Difference(Vec<(u32, Option<BlockState>)>),
}

/// Why a request failed. A change that failed has not taken effect and never will.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// There is no space for new data.
    #[error("no space left for new data")]
    NoSpace,
    /// A block is damaged on every member that has it.
    #[error("block {block} of object {key} is damaged on every disk that has it")]
    Corrupt {
        /// The object.
        key: ObjectKey,
        /// The first damaged block.
        block: u32,
    },
    /// A newer attachment exists; nothing will succeed any more.
    #[error("a newer attachment exists")]
    Fenced,
    /// Something that no repetition helps against; the text is a sentence.
    #[error("{0}")]
    Io(String),
}

/// What a coordinator wants done.
#[derive(Debug)]
pub enum Effect {
    /// Ask this opening of a disk, and no other: a later one may lack what this one had. The order
    /// of the questions to one disk must be kept.
    Member {
        /// Which disk, and which opening of it.
        member: Member,
        /// Comes back with the answer.
        token: MemberToken,
        /// The question.
        request: MemberRequest,
    },
    /// All disks needed are fenced and what was in flight is settled: requests may come.
    Opened,
    /// A request has ended.
    Done {
        /// That of the request.
        token: u64,
        /// How it ended.
        result: Result<Answer, Error>,
    },
    /// Changes that were acknowledged and not flushed are gone with their disk, or with the power
    /// of too many machines. The flushes under way fail, and so does the next one. A change of the
    /// session of which a part had been acknowledged must be done again before it is reported as
    /// done.
    Lost,
    /// A newer attachment exists: every request has ended with [`Error::Fenced`], and so will all
    /// later ones. Comes once.
    Fenced,
}
