//! What members say to one another, as bytes: version, the era's number, then one of a few kinds.
//! The frame around it has the checksum.

use super::log::Log;
use super::record::{Payload, decode, encode};
use crate::command::DecodeError;
use crate::state::COUNT_MAX;
use prost::Message as _;
use proto::limits::VOTER_MESSAGE_BYTES_MAX;
use raft::eraftpb::{Message, MessageType};
use serde::{Deserialize, Serialize};

/// The version of messages, their first byte.
const VERSION: u8 = 1;
/// Terms, and numbers of entries and proposals, are taken from others up to here: far below
/// `COUNT_MAX`, up to which they are read from the journal, so that what is counted on from them
/// can be read again.
pub(super) const OUTSIDE_COUNT_MAX: u64 = 1 << 62;
const _: () = assert!(OUTSIDE_COUNT_MAX < COUNT_MAX);

#[derive(Serialize, Deserialize)]
struct Envelope {
    /// The life of the log that it belongs to; members of others are another group.
    era: u64,
    body: Body,
}

/// The kinds of messages. New ones go to the end.
#[derive(Serialize, Deserialize)]
pub(super) enum Body {
    /// A message of `raft`, in its own encoding.
    Raft(Vec<u8>),
    /// To the leader: encoded commands, named by the instance and a number from `first` on.
    Proposals { instance: u64, first: u64, commands: Vec<Vec<u8>> },
    /// A piece of a snapshot.
    Chunk(Chunk),
    /// So much of a snapshot was taken.
    ChunkTaken { term: u64, index: u64, bytes: u64 },
}

/// A piece of a snapshot.
#[derive(Serialize, Deserialize)]
pub(super) struct Chunk {
    /// The leader's term.
    pub(super) term: u64,
    /// The last entry that is in the snapshot.
    pub(super) index: u64,
    /// Where the piece begins.
    pub(super) offset: u64,
    /// Whether it is the last.
    pub(super) last: bool,
    pub(super) bytes: Vec<u8>,
}

impl Body {
    pub(super) fn of(message: &Message) -> Body {
        Body::Raft(message.encode_to_vec())
    }

    pub(super) fn encode(self, era: u64) -> Vec<u8> {
        let bytes = encode(VERSION, &Envelope { era, body: self });
        assert!(bytes.len() <= VOTER_MESSAGE_BYTES_MAX, "its parts are bounded");
        bytes
    }

    /// The number of the era and the body.
    pub(super) fn decode(bytes: &[u8]) -> Result<(u64, Body), DecodeError> {
        let (envelope, rest): (Envelope, _) = decode(VERSION, bytes, VOTER_MESSAGE_BYTES_MAX)?;
        if !rest.is_empty() {
            return Err(DecodeError::Malformed);
        }
        Ok((envelope.era, envelope.body))
    }
}

/// A message of `raft` that may be handed to it. It takes much for granted and panics where that is
/// not so; whatever comes from outside is judged here first, against the log it will meet.
pub(super) fn judged(
    bytes: &[u8],
    from: u64,
    to: u64,
    committed: u64,
    log: &Log,
) -> Result<Message, DecodeError> {
    let message = Message::decode(bytes).map_err(|_| DecodeError::Malformed)?;
    let contradiction = |what| Err(DecodeError::Contradiction(what));
    if message.from != from || message.to != to || message.term == 0 {
        return contradiction("it is from or for another");
    }
    if message.request_snapshot != 0 {
        return contradiction("nobody asks for snapshots");
    }
    let counts = [message.term, message.log_term, message.index, message.commit];
    if counts.into_iter().any(|count| count > OUTSIDE_COUNT_MAX) {
        return contradiction("a count without end");
    }
    let Some(kind) = MessageType::from_i32(message.msg_type) else {
        return contradiction("a kind that nobody knows");
    };
    match kind {
        // Who has nothing gets a snapshot; and `raft` takes term 0 for that of what is not there.
        MessageType::MsgAppend if message.index == 0 || message.log_term == 0 => {
            return contradiction("entries from nowhere");
        }
        MessageType::MsgAppend => {
            let (mut index, mut term) = (message.index, message.log_term);
            for entry in &message.entries {
                if let Payload::Command { id: Some(id), .. } = Payload::of(entry)?
                    && id.instance.max(id.number) > OUTSIDE_COUNT_MAX
                {
                    return contradiction("a count without end");
                }
                if entry.index != index + 1 || entry.term < term || entry.term > message.term {
                    return contradiction("entries that do not follow one another");
                }
                (index, term) = (entry.index, entry.term);
                let known = log.term_of(index).filter(|_| index <= committed);
                if known.is_some_and(|known| known != term) {
                    return contradiction("an entry in the place of what is agreed");
                }
            }
        }
        MessageType::MsgAppendResponse if !message.reject && message.index > log.last() => {
            return contradiction("more than was sent");
        }
        MessageType::MsgHeartbeat if message.commit > log.last() => {
            return contradiction("what is agreed was lost here");
        }
        MessageType::MsgHeartbeat
        | MessageType::MsgAppendResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgTimeoutNow
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse => {}
        _ => return contradiction("a kind that nobody sends"),
    }
    Ok(message)
}
