//! What goes into a session and what comes out of it.

use crate::request::{Completion, Error, Request, RequestId};
use cluster::{Map, Member, PendingDiscard};
use proto::{
    BlockState, DiskId, Epoch, LayerId, MemberError, MemberReply, MemberRequest, MemberToken,
    Payload, Time,
};
use std::sync::Arc;

/// Names one question to a source; never used again by the same session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SourceToken(pub u64);

/// What a source has.
#[derive(Debug)]
pub enum SourceAnswer {
    /// The content of all blocks touched by what was asked for; zeros behind the end of that.
    Data(Payload),
    /// What these blocks are, in runs: zeros only where the source said so.
    Map(Vec<(u32, BlockState)>),
}

/// What a session is told.
#[derive(Debug)]
pub enum Event {
    /// A guest asks for something. Its id names it among those of this session in flight. It may
    /// come before [`Effect::Opened`]; then it waits.
    Request(Request),
    /// A disk answers.
    Member {
        /// Which disk.
        disk: DiskId,
        /// That of the question.
        token: MemberToken,
        /// The answer.
        result: Result<MemberReply, MemberError>,
    },
    /// The cluster's state is another: sizes and disks may have changed.
    Map(Arc<Map>),
    /// Copy what shows through from other lineages into the head, in the background, until
    /// [`Effect::Flattened`]; or stop that.
    Flatten {
        /// Whether to start.
        start: bool,
    },
    /// Copy what the lineages between the head and this layer have into the head, likewise, until
    /// [`Effect::Shortened`]. It ends by itself when it cannot be reported any more: the volume has
    /// a snapshot, or is to be flattened. [`Event::Flatten`] makes a flatten of it, or stops it.
    Shorten {
        /// A layer further along the chain of what shows through than the first.
        parent: LayerId,
    },
    /// Finish what has been begun, give up the rest, flush, then [`Effect::Closed`]. Only once
    /// nobody waits for requests any more.
    Close,
    /// Time has passed: [`crate::Session::deadline`] is due.
    Tick,
    /// A source answers, or there is a reason why not; then it is asked again after a while.
    Source {
        /// That of the question.
        token: SourceToken,
        /// The answer, or the reason in a few words.
        result: Result<SourceAnswer, String>,
    },
    /// How much a flatten or a shortening copies in a second at most, in bytes; 0: as much as it
    /// can. Until this is said it has no bound.
    FillRate {
        /// Bytes a second.
        bytes_per_s: u64,
    },
    /// The attachment was ended by others than the session, as if there were a newer one: every
    /// request fails from now on. Answered by [`Effect::Fenced`], or by [`Effect::Opened`] if it
    /// was not open yet; nothing if it had been fenced or closed before.
    Ended,
}

/// What a session wants done.
#[derive(Debug)]
pub enum Effect {
    /// Ask this opening of a disk and no other, keeping the order of the questions to one disk.
    Member {
        /// Which disk, and which opening of it.
        member: Member,
        /// Comes back with the answer.
        token: MemberToken,
        /// The question.
        request: MemberRequest,
    },
    /// The attachment is open, or was ended by a newer one before it was. Comes once, unless the
    /// session is closed before.
    Opened(Result<(), Error>),
    /// A request has ended.
    Complete {
        /// That of the request.
        id: RequestId,
        /// How it ended.
        result: Result<Completion, Error>,
    },
    /// What a shrink left is discarded, durably: to be reported to the cluster. Comes again after a
    /// while as long as the map still lists the same.
    ShrinkDone {
        /// What was discarded.
        discarded: PendingDiscard,
    },
    /// All disks know the volume's head, and every write to the layer below is stable on all: to be
    /// reported to the cluster. Comes again after a while as long as the map does not show it.
    LayerOpened {
        /// The head.
        layer: LayerId,
    },
    /// Nothing shows through the head from other lineages any more, and that is stable: to be
    /// reported to the cluster. Comes again after a while as long as the map does not show it.
    Flattened,
    /// The head has all that the lineages between it and this layer have, and that is stable: to be
    /// reported to the cluster. Comes again after a while as long as the map does not show it.
    Shortened {
        /// The head's parent from now on.
        parent: LayerId,
    },
    /// Whatever is acknowledged from now on is stable, as the map wants it: to be reported to the
    /// cluster. Comes again after a while as long as the map waits for it.
    Stable {
        /// The epoch in which that was asked for.
        since: Epoch,
    },
    /// A newer attachment ended this one after it was open; every request fails from now on.
    Fenced,
    /// [`Event::Close`] is done; the session may be dropped.
    Closed,
    /// Read a source, or find out what it has; answered by [`Event::Source`], in any order.
    Source {
        /// Comes back with the answer.
        token: SourceToken,
        /// The layer, whose source the map knows.
        layer: LayerId,
        /// Where, a multiple of the block size.
        offset: u64,
        /// How many bytes, at least one. It ends with a block or where the source does.
        length: u64,
        /// Whether only [`SourceAnswer::Map`] is wanted.
        kind_only: bool,
    },
}

/// Why a session's oldest unfinished request has not ended, or the session is not open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// When the request came, or the session began.
    pub since: Time,
    /// "waiting for disk ..".
    pub reason: String,
}
