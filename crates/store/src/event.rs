//! What goes into a store and what comes out of it.

use crate::{Damage, Identity, OpenError, ScrubRate};
use proto::{
    DiskDone, DiskOp, Incarnation, LayerId, LineageId, MemberError, MemberReply, MemberRequest,
    MemberToken, Payload,
};

/// What a store is told.
#[derive(Debug)]
pub enum Event {
    /// A session asks for something.
    Member {
        /// Comes back with the answer.
        token: MemberToken,
        /// What it asks.
        request: MemberRequest,
    },
    /// The medium finished an operation.
    Disk(DiskDone),
    /// The cluster's map says that the layer does not exist any more. Idempotent; its objects go
    /// in the background, and again after a restart until all are gone.
    DropLayer {
        /// The lineage of the layer. When the layer is the lineage's first and nothing else of
        /// the lineage is left, its fence is forgotten too.
        lineage: LineageId,
        /// The layer.
        layer: LayerId,
    },
    /// The agreed state has acknowledged this opening: the disk remembers that, durably, and then
    /// says [`Effect::AgreedNoted`]. A map that has not seen it is refused from then on.
    Agreed,
    /// Directs the scrub.
    Scrub(ScrubCommand),
    /// What the file system under the medium still has free. How much is fetched of it beyond need
    /// depends on it.
    MediumSpace {
        /// Free for us, in bytes.
        free_bytes: u64,
    },
    /// Stop: finish what was asked, write a checkpoint, then [`Effect::Closed`]. Later requests
    /// are answered `Retired`.
    Close,
    /// Whether something would be deleted for want of space: while it would, and while what was
    /// deleted is being dropped, new data that finds no space waits for it, up to
    /// `STORE_SPACE_WAIT_MS` after the last step.
    GivesWay {
        /// Whether there is anything.
        more: bool,
    },
    /// A damaged block of data as a peer has it. It is written where it is, if it is what the map
    /// says, and read again; [`Effect::MendEnded`] follows, whatever came of it, unless the disk
    /// goes out of service.
    Mend {
        /// One of [`crate::Store::damages`], of data.
        damage: Damage,
        /// The block.
        payload: Payload,
    },
}

/// Directs the scrub.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScrubCommand {
    /// Begin a new pass now, or go on with the one that was stopped.
    Start,
    /// Stop until told to start.
    Stop,
    /// Read this fast from now on.
    Rate(ScrubRate),
}

/// What a store wants done.
#[derive(Debug)]
pub enum Effect {
    /// Do this on the medium and report with [`Event::Disk`].
    Disk(DiskOp),
    /// The answer to a member request.
    Member {
        /// That of the request.
        token: MemberToken,
        /// The answer.
        result: Result<MemberReply, MemberError>,
    },
    /// Opening has ended. After an error nothing on the medium was changed.
    Opened(Result<Opened, OpenError>),
    /// [`Event::Agreed`] is done, or cannot be because the disk is retired.
    AgreedNoted,
    /// [`Event::Close`] is done; the store may be dropped.
    Closed,
    /// Something for the log of the node.
    Notice(Notice),
    /// [`Event::Mend`] has ended.
    MendEnded {
        /// What was to be mended; it is if it is known no more.
        damage: Damage,
    },
}

/// What an opened disk says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// Whose disk it is.
    pub identity: Identity,
    /// The number of this opening.
    pub incarnation: Incarnation,
    /// Records replayed from the log.
    pub records_replayed: u64,
    /// Records that a crash cut off, none of them flushed.
    pub records_cut: u64,
    /// When the disk was made, in seconds since 1970.
    pub created_unix_s: u64,
}

/// Something that a person should learn of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// Something on the medium is not what was written.
    Damaged(Damage),
    /// Something damaged was written anew from a good copy.
    Mended(Damage),
    /// What was written anew is damaged again: the medium does not keep it.
    Relapsed(Damage),
    /// The disk is out of service from now on.
    Retired {
        /// Why, as one sentence.
        reason: String,
    },
    /// New data is refused from now on: neither the disk nor the file system has room.
    Full,
    /// New data is taken again.
    NoLongerFull,
    /// A scrub pass has ended.
    ScrubDone {
        /// Which pass, from 1.
        pass: u64,
        /// Damages it found.
        errors: u64,
    },
}
