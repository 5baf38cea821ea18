//! What goes into a link and what comes out of it.

use crate::CloseReason;
use proto::wire::note::{Channel, Promise};
use proto::wire::{Era, Identity};
use proto::{
    DiskId, Duration, MemberError, MemberReply, MemberRequest, MemberToken, Payload, Time,
};

/// What this node is and offers, the same for all its links. What is granted may be held for each
/// peer, twice while connections break: who has many peers grants each of them less.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Who this process is.
    pub identity: Identity,
    /// Lowest version of the wire it speaks, from 1.
    pub version_min: u8,
    /// Highest version of the wire it speaks.
    pub version_max: u8,
    /// What else it can, one bit each.
    pub features: u64,
    /// The life of the agreed log that it has a part in.
    pub era: Era,
    /// Requests it lets each peer have in flight, at most `LINK_REQUESTS_MAX`.
    pub requests: u32,
    /// Bytes it lets each peer have in flight, at most `LINK_BYTES_MAX` and at least the longest
    /// request.
    pub bytes: u32,
}

/// A request of the peer that waits for its answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Question {
    /// Counts the peer's processes.
    pub(crate) life: u64,
    /// Among the requests of that process.
    pub(crate) id: u64,
}

/// A beat of the peer that waits for promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Beat {
    pub(crate) connection: u64,
    pub(crate) number: u64,
}

/// What a link is told, besides bytes.
#[derive(Debug)]
pub enum Event {
    /// The connection that [`Effect::Dial`] asked for is there.
    Dialled {
        /// That of the effect.
        connection: u64,
        /// A random number, drawn for it.
        nonce: u64,
    },
    /// It cannot be had now.
    DialFailed {
        /// That of the effect.
        connection: u64,
    },
    /// The socket was closed by the peer, or failed.
    Lost {
        /// Which one.
        connection: u64,
    },
    /// Ask a disk of the peer. Ends with [`Effect::Answered`] or [`Effect::Forgotten`], whatever
    /// happens, unless it is cancelled. Beyond `LINK_PENDING_MAX` the answer is "busy", at once.
    Ask {
        /// Comes back; unique among those in flight.
        token: MemberToken,
        /// Whom.
        disk: DiskId,
        /// What.
        request: MemberRequest,
    },
    /// The answer is not wanted any more. The disk may be asked all the same.
    Cancel {
        /// That of the request; one that is not in flight is none.
        token: MemberToken,
    },
    /// The answer to [`Effect::Asked`], once for each.
    Answer {
        /// That of the effect.
        question: Question,
        /// How long the disk will honour no newer fence against the peer; zero: it does not say.
        promise: Duration,
        /// What the disk says.
        result: Result<MemberReply, MemberError>,
    },
    /// Send a control message. It may be lost, and is when there is no connection.
    Control {
        /// Who it is for.
        channel: Channel,
        /// It, beginning with a version of its own; at most `WIRE_CONTROL_BYTES_MAX` bytes.
        message: Payload,
    },
    /// The answer to [`Effect::Beat`], at most once for each; too late it is dropped.
    Promise {
        /// That of the effect.
        beat: Beat,
        /// For each disk of this node that promises something, at most `WIRE_PROMISES_MAX`.
        promises: Vec<Promise>,
    },
    /// The peer is not needed any more, or this node stops. For ever.
    Stop,
}

/// What a link wants done, or tells.
#[derive(Debug)]
pub enum Effect {
    /// Connect to the peer. Answer with [`Event::Dialled`] or [`Event::DialFailed`].
    Dial {
        /// Names the connection from now on.
        connection: u64,
    },
    /// Close the socket, or stop connecting.
    Close {
        /// Which one.
        connection: u64,
        /// To be written before, if the socket takes it at once.
        farewell: Vec<u8>,
        /// Why, for the log.
        reason: CloseReason,
    },
    /// The peer can be asked. Comes in turns with [`Effect::Down`].
    Up {
        /// Which process of it: another one, and its disks were opened anew. What the former one
        /// had been asked was given back by [`Effect::Forgotten`].
        instance: u64,
        /// The version of the wire that is spoken.
        version: u8,
        /// What both sides can.
        features: u64,
    },
    /// The peer cannot be reached for now. What it was asked waits.
    Down {
        /// Why.
        reason: CloseReason,
    },
    /// The answer to [`Event::Ask`].
    Answered {
        /// That of the event.
        token: MemberToken,
        /// When the disk was asked on the connection that brought the answer: promises count from
        /// here.
        asked_at: Time,
        /// How long the disk will honour no newer fence; zero: it did not say.
        promise: Duration,
        /// What the disk says.
        result: Result<MemberReply, MemberError>,
    },
    /// The end of [`Event::Ask`] without an answer: the process that was asked, or was to be asked,
    /// is gone, or this link was stopped. What became of the request is unknown.
    Forgotten {
        /// That of the event.
        token: MemberToken,
    },
    /// The peer asks a disk of this node. Answer with [`Event::Answer`].
    Asked {
        /// Names the question.
        question: Question,
        /// Whom.
        disk: DiskId,
        /// What.
        request: MemberRequest,
    },
    /// A control message of the peer.
    Control {
        /// Who it is for.
        channel: Channel,
        /// It, never empty.
        message: Payload,
    },
    /// The peer lives and would like promises. Answer with [`Event::Promise`], or not at all.
    Beat {
        /// Names the beat.
        beat: Beat,
    },
    /// Disks of the peer promise something.
    Promised {
        /// When they were asked: promises count from here.
        asked_at: Time,
        /// Each disk's.
        promises: Vec<Promise>,
    },
}

/// What happened on a link, in all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests that were sent once more on another connection.
    pub resent: u64,
    /// Requests of the peer that came once more while a disk still worked on them.
    pub adopted: u64,
    /// Control messages that were dropped, because there was no connection or too many waited.
    pub controls_dropped: u64,
}
