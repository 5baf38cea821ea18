//! What goes into a session and what comes out of it.

use crate::request::{Completion, Error, Request, RequestId};
use cluster::{Map, PendingDiscard};
use proto::{DiskId, LayerId, MemberError, MemberReply, MemberRequest, MemberToken, Time};
use std::sync::Arc;

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
    /// Finish what has been begun, give up the rest, flush, then [`Effect::Closed`]. Only once
    /// nobody waits for requests any more.
    Close,
    /// Time has passed: [`crate::Session::deadline`] is due.
    Tick,
}

/// What a session wants done.
#[derive(Debug)]
pub enum Effect {
    /// Ask this disk, keeping the order of the questions to one disk.
    Member {
        /// Which disk.
        disk: DiskId,
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
    /// All disks know the volume's head, and every write to the layer below is stable: to be
    /// reported to the cluster. Comes again after a while as long as the map does not show it.
    LayerOpened {
        /// The head.
        layer: LayerId,
    },
    /// Nothing shows through the head from other lineages any more, and that is stable: to be
    /// reported to the cluster. Comes again after a while as long as the map does not show it.
    Flattened,
    /// A newer attachment ended this one after it was open; every request fails from now on.
    Fenced,
    /// [`Event::Close`] is done; the session may be dropped.
    Closed,
}

/// Why a session's oldest unfinished request has not ended, or the session is not open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// When the request came, or the session began.
    pub since: Time,
    /// "waiting for disk ..".
    pub reason: String,
}
