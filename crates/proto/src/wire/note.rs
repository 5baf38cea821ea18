//! Frames that are neither a request to a disk nor its answer.

use super::header::{Frame, FrameError, Header, Kind, Seal};
use crate::limits::{WIRE_PROMISES_MAX, WIRE_TEXT_BYTES_MAX};
use crate::{DiskId, Duration, Incarnation, Payload};
use std::mem::size_of;
use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Why the other side ends the connection, as far as it matters for what to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Farewell {
    /// It does not want this connection, and will not want the next either.
    Refused = 1,
    /// It is being stopped.
    Stopping = 2,
    /// We broke the protocol, it says.
    Broken = 3,
    /// We were too slow, it says.
    Slow = 4,
    /// It has a newer connection to us.
    Superseded = 5,
    /// We were given up when the cluster was recovered, it says.
    GivenUp = 6,
    /// Another process is the node that we say we are, it says.
    Twin = 7,
}

/// Appends a goodbye; a text beyond `WIRE_TEXT_BYTES_MAX` is cut.
pub fn put_goodbye(out: &mut Vec<u8>, seal: Seal, why: Farewell, text: &str) {
    let body = cut(text).as_bytes();
    let flags = why as u16;
    let frame = Frame { kind: Kind::Goodbye, flags, id: 0, words: [0; 32], body, payload: &[] };
    frame.put(out, seal);
}

/// The meaning of a verified goodbye. The text is for people, and may be anything that can be
/// printed.
pub fn goodbye(header: &Header, body: &[u8]) -> Result<(Farewell, String), FrameError> {
    header.no_words()?;
    let why = match header.flags {
        1 => Farewell::Refused,
        2 => Farewell::Stopping,
        3 => Farewell::Broken,
        4 => Farewell::Slow,
        5 => Farewell::Superseded,
        6 => Farewell::GivenUp,
        7 => Farewell::Twin,
        _ => return Err(header.malformed("unknown flags")),
    };
    Ok((why, text_of(header, body)?))
}

/// Appends a beat.
pub fn put_beat(out: &mut Vec<u8>, seal: Seal, beat: u64) {
    let words = [0; 32];
    Frame { kind: Kind::Beat, flags: 0, id: beat, words, body: &[], payload: &[] }.put(out, seal);
}

/// The number of a verified beat.
pub fn beat(header: &Header) -> Result<u64, FrameError> {
    header.only_flags(0)?;
    if header.words != [0; 32] {
        return Err(header.malformed("something where nothing belongs"));
    }
    Ok(header.id)
}

/// How long one disk will honour no newer fence against the asker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Promise {
    /// Which disk.
    pub disk: DiskId,
    /// Which opening of it.
    pub incarnation: Incarnation,
    /// How long, counted by the asker from when it asked. Whole milliseconds travel.
    pub span: Duration,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct PromiseRow {
    disk: U128,
    incarnation: U64,
    milliseconds: U32,
    zero: U32,
}

const _: () = assert!(size_of::<PromiseRow>() == 32);

/// Appends the promises that answer a beat.
///
/// # Panics
/// If there are more than `WIRE_PROMISES_MAX`.
pub fn put_promises(out: &mut Vec<u8>, seal: Seal, beat: u64, promises: &[Promise]) {
    assert!(promises.len() <= WIRE_PROMISES_MAX, "more disks promise than a node may have");
    let rows: Vec<PromiseRow> = promises
        .iter()
        .map(|promise| PromiseRow {
            disk: promise.disk.0.into(),
            incarnation: promise.incarnation.0.into(),
            milliseconds: milliseconds(promise.span).into(),
            zero: 0.into(),
        })
        .collect();
    let body = rows.as_bytes();
    let frame =
        Frame { kind: Kind::Promise, flags: 0, id: beat, words: [0; 32], body, payload: &[] };
    frame.put(out, seal);
}

/// The meaning of verified promises: the beat they answer, and the disks.
pub fn promises(header: &Header, body: &[u8]) -> Result<(u64, Vec<Promise>), FrameError> {
    let beat = beat(header)?;
    let rows = <[PromiseRow]>::ref_from_bytes(body).expect("a whole number of rows");
    let promises = rows
        .iter()
        .map(|row| {
            if row.zero.get() != 0 {
                return Err(header.malformed("something where nothing belongs"));
            }
            Ok(Promise {
                disk: DiskId(row.disk.get()),
                incarnation: Incarnation(row.incarnation.get()),
                span: Duration::from_millis(row.milliseconds.get().into()),
            })
        })
        .collect::<Result<_, _>>()?;
    Ok((beat, promises))
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct CreditWords {
    requests: U64,
    bytes: U64,
    zero: [u8; 16],
}

/// Appends a credit: the totals that may be in flight from now on.
pub fn put_credit(out: &mut Vec<u8>, seal: Seal, requests: u64, bytes: u64) {
    let words = CreditWords { requests: requests.into(), bytes: bytes.into(), zero: [0; 16] };
    let words = words.as_bytes().try_into().expect("words are 32 bytes");
    Frame { kind: Kind::Credit, flags: 0, id: 0, words, body: &[], payload: &[] }.put(out, seal);
}

/// The meaning of a verified credit: requests and bytes.
pub fn credit(header: &Header) -> Result<(u64, u64), FrameError> {
    header.only_flags(0)?;
    let words: CreditWords = header.words();
    if words.zero != [0; 16] || header.id != 0 {
        return Err(header.malformed("something where nothing belongs"));
    }
    Ok((words.requests.get(), words.bytes.get()))
}

/// Who a control message is for: a number that frames do not look into.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Channel(pub u16);

impl Channel {
    /// The members of the agreed log among each other.
    pub const RAFT: Channel = Channel(1);
}

/// Appends the head of a control message, which is to follow it. It begins with a version of its
/// own.
///
/// # Panics
/// If it is empty or longer than `WIRE_CONTROL_BYTES_MAX`.
pub fn put_control(out: &mut Vec<u8>, seal: Seal, channel: Channel, message: &Payload) {
    let payload = std::slice::from_ref(message);
    let (flags, words) = (channel.0, [0; 32]);
    Frame { kind: Kind::Control, flags, id: 0, words, body: &[], payload }.put(out, seal);
}

/// Who a verified control message is for.
pub fn control(header: &Header) -> Result<Channel, FrameError> {
    header.no_words()?;
    Ok(Channel(header.flags))
}

/// A span as it travels: whole milliseconds, rounded down.
pub(super) fn milliseconds(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

/// As much of a text as travels.
pub(super) fn cut(text: &str) -> &str {
    let mut end = text.len().min(WIRE_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A text that came: for people, and shown in logs and on terminals. So it is as long as it came,
/// with question marks in the place of control characters.
pub(super) fn text_of(header: &Header, body: &[u8]) -> Result<String, FrameError> {
    let text = str::from_utf8(body).map_err(|_| header.malformed("its text is not UTF-8"))?;
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => shown.extend(std::iter::repeat_n('?', c.len_utf8())),
            false => shown.push(c),
        }
    }
    Ok(shown)
}
