//! Answers of disks as frames, and what an asker may believe of them.

use super::header::{Frame, FrameError, Header, Kind, Seal};
use super::note::{cut, milliseconds, text_of};
use super::request::StampBody;
use crate::limits::WIRE_FENCED_ROWS_MAX;
use crate::{
    BlockRange, BlockState, ConfigurationNumber, Duration, Generation, Incarnation, LayerId,
    MemberError, MemberReply, MemberRequest, ObjectKey, ObjectStamp, Payload, Stamp,
};
use std::mem::size_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Flag of `fenced`: more rows follow.
const MORE: u16 = 1;
/// Flag of `reclaimed`: there is somewhere to go on.
const GOES_ON: u16 = 1;
/// State of a run in `differences`: the same in both layers.
const SAME: u8 = 3;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default)]
#[repr(C)]
struct Words {
    incarnation: U64,
    promise_ms: U32,
    zero: U32,
    first: U64,
    second: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct ObjectRow {
    layer: U64,
    index: U32,
    zero: U32,
    stamp: StampBody,
    settled_generation: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RangeRow {
    first: U16,
    count: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RunRow {
    count: U16,
    state: u8,
    zero: u8,
}

const _: () = assert!(size_of::<Words>() == 32);
const _: () = assert!(size_of::<ObjectRow>() == 40);

/// What an answer must be like to be one to the question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// [`MemberReply::Fenced`]
    Fenced,
    /// [`MemberReply::Done`]
    Done,
    /// [`MemberReply::Stamp`] of this object.
    Stamp(ObjectKey),
    /// [`MemberReply::Written`]
    Written,
    /// [`MemberReply::Data`] of these blocks.
    Data(BlockRange),
    /// [`MemberReply::Map`] of these blocks.
    Map(BlockRange),
    /// [`MemberReply::Difference`] of these blocks.
    Difference(BlockRange),
    /// [`MemberReply::Reclaimable`]
    Reclaimable,
    /// [`MemberReply::Flushed`]
    Flushed,
}

impl Expected {
    /// What a request wants to hear.
    pub fn of(request: &MemberRequest) -> Expected {
        match request {
            MemberRequest::Fence { .. } => Expected::Fenced,
            MemberRequest::Settle { .. } | MemberRequest::OpenLayer { .. } => Expected::Done,
            MemberRequest::Stamp { key, .. } => Expected::Stamp(*key),
            MemberRequest::Write(_) => Expected::Written,
            MemberRequest::Read { blocks, .. } => Expected::Data(*blocks),
            MemberRequest::Map { blocks, .. } => Expected::Map(*blocks),
            MemberRequest::Difference { blocks, .. } => Expected::Difference(*blocks),
            MemberRequest::Reclaimable { .. } => Expected::Reclaimable,
            MemberRequest::Flush { .. } => Expected::Flushed,
            _ => todo!("the wire of decision 0009"),
        }
    }

    fn kind(self) -> Kind {
        match self {
            Expected::Fenced => Kind::Fenced,
            Expected::Done => Kind::Done,
            Expected::Stamp(_) => Kind::ObjectStamp,
            Expected::Written => Kind::Written,
            Expected::Data(_) => Kind::Data,
            Expected::Map(_) => Kind::Blocks,
            Expected::Difference(_) => Kind::Differences,
            Expected::Reclaimable => Kind::Reclaimed,
            Expected::Flushed => Kind::Flushed,
        }
    }

    /// Refuses a header that cannot be that of the answer, before memory is given for its payload.
    pub fn admit(self, header: &Header) -> Result<(), FrameError> {
        let kind = header.kind;
        if kind != Kind::Refused && kind != self.kind() {
            return Err(header.malformed("it answers another question"));
        }
        if let (Kind::Data, Expected::Data(blocks)) = (kind, self)
            && header.payload_bytes != blocks.bytes()
        {
            return Err(header.malformed("its content is not that of the blocks asked for"));
        }
        Ok(())
    }
}

/// One frame of an answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// How long the disk will honour no newer fence; zero: it did not promise.
    pub promise: Duration,
    /// What it says. Of `Fenced` perhaps only a part.
    pub result: Result<MemberReply, MemberError>,
    /// Whether another part follows.
    pub more: bool,
}

/// Appends an answer, in several frames if it needs them, each sealed anew. Content of blocks
/// is to follow. Gives back the seal of the frame after the last.
///
/// # Panics
/// If it is longer than any answer to a vetted request.
pub fn put(
    out: &mut Vec<u8>,
    seal: Seal,
    id: u64,
    promise: Duration,
    result: &Result<MemberReply, MemberError>,
) -> Seal {
    let mut words = Words { promise_ms: milliseconds(promise).into(), ..Words::default() };
    let mut seal = seal;
    let mut put = |words: &Words, kind, flags, body: &[u8], payload: &[Payload]| {
        let words = words.as_bytes().try_into().expect("words are 32 bytes");
        Frame { kind, flags, id, words, body, payload }.put(out, seal);
        seal = seal.next();
    };
    match result {
        Ok(MemberReply::Fenced { incarnation, unsettled, .. }) => {
            words.incarnation = incarnation.0.into();
            let mut rest = unsettled.as_slice();
            loop {
                let (part, tail) = rest.split_at(rest.len().min(WIRE_FENCED_ROWS_MAX));
                rest = tail;
                let rows: Vec<ObjectRow> = part.iter().map(object_row).collect();
                let flags = if rest.is_empty() { 0 } else { MORE };
                put(&words, Kind::Fenced, flags, rows.as_bytes(), &[]);
                if rest.is_empty() {
                    break;
                }
            }
        }
        Ok(MemberReply::Done) => put(&words, Kind::Done, 0, &[], &[]),
        Ok(MemberReply::Stamp(object)) => {
            put(&words, Kind::ObjectStamp, 0, object_row(object).as_bytes(), &[]);
        }
        Ok(MemberReply::Written { incarnation }) => {
            words.incarnation = incarnation.0.into();
            put(&words, Kind::Written, 0, &[], &[]);
        }
        Ok(MemberReply::Data { content, absent }) => {
            let rows: Vec<RangeRow> = absent
                .iter()
                .map(|blocks| RangeRow {
                    first: (blocks.first() as u16).into(),
                    count: (blocks.count() as u16).into(),
                })
                .collect();
            put(&words, Kind::Data, 0, rows.as_bytes(), content);
        }
        Ok(MemberReply::Map(runs)) => {
            let rows: Vec<RunRow> =
                runs.iter().map(|(count, state)| run_row(*count, state_number(*state))).collect();
            put(&words, Kind::Blocks, 0, rows.as_bytes(), &[]);
        }
        Ok(MemberReply::Difference(runs)) => {
            let number = |state: &Option<BlockState>| state.map_or(SAME, state_number);
            let rows: Vec<RunRow> =
                runs.iter().map(|(count, state)| run_row(*count, number(state))).collect();
            put(&words, Kind::Differences, 0, rows.as_bytes(), &[]);
        }
        Ok(MemberReply::Reclaimable { blocks, next_index }) => {
            words.first = (*blocks).into();
            words.second = u64::from(next_index.unwrap_or(0)).into();
            let flags = if next_index.is_some() { GOES_ON } else { 0 };
            put(&words, Kind::Reclaimed, flags, &[], &[]);
        }
        Ok(MemberReply::Flushed { incarnation }) => {
            words.incarnation = incarnation.0.into();
            put(&words, Kind::Flushed, 0, &[], &[]);
        }
        Ok(_) => todo!("the wire of decision 0009"),
        Err(error) => {
            let (flags, first, second, text) = error_words(error);
            words.first = first.into();
            words.second = second.into();
            put(&words, Kind::Refused, flags, cut(text).as_bytes(), &[]);
        }
    }
    seal
}

/// Gives a verified frame its meaning, as the answer to what was asked.
pub fn decode(
    header: &Header,
    body: &[u8],
    payload: Option<Payload>,
    expected: Expected,
) -> Result<Reply, FrameError> {
    expected.admit(header)?;
    let flags = match header.kind {
        Kind::Fenced => MORE,
        Kind::Reclaimed => GOES_ON,
        Kind::Refused => u16::MAX,
        _ => 0,
    };
    header.only_flags(flags)?;
    let words: Words = header.words();
    let incarnation = Incarnation(words.incarnation.get());
    let names = matches!(header.kind, Kind::Fenced | Kind::Written | Kind::Flushed);
    let counts = matches!(header.kind, Kind::Reclaimed | Kind::Refused);
    let is_wrong = words.zero.get() != 0
        || (!names && incarnation != Incarnation(0))
        || (!counts && (words.first.get(), words.second.get()) != (0, 0));
    if is_wrong {
        return Err(header.malformed("something where nothing belongs"));
    }
    let result = match (header.kind, expected) {
        (Kind::Refused, _) => Err(decode_error(header, &words, body)?),
        (Kind::Fenced, _) => Ok(MemberReply::Fenced {
            incarnation,
            settled: Stamp::default(),
            unsettled: objects(header, body)?,
            more: false,
        }),
        (Kind::ObjectStamp, Expected::Stamp(key)) => {
            let object = objects(header, body)?[0];
            if object.key != key {
                return Err(header.malformed("it is about another object"));
            }
            Ok(MemberReply::Stamp(object))
        }
        (Kind::Written, _) => Ok(MemberReply::Written { incarnation }),
        (Kind::Flushed, _) => Ok(MemberReply::Flushed { incarnation }),
        (Kind::Data, Expected::Data(blocks)) => {
            let absent = absent_blocks(header, body, blocks)?;
            Ok(MemberReply::Data { content: payload.into_iter().collect(), absent })
        }
        (Kind::Blocks, Expected::Map(blocks)) => {
            let runs = runs(header, body, blocks)?.map(|run| {
                let (count, state) = run?;
                Ok((count, state.ok_or(header.malformed("a state it cannot have"))?))
            });
            Ok(MemberReply::Map(runs.collect::<Result<_, _>>()?))
        }
        (Kind::Differences, Expected::Difference(blocks)) => {
            Ok(MemberReply::Difference(runs(header, body, blocks)?.collect::<Result<_, _>>()?))
        }
        (Kind::Reclaimed, _) => Ok(reclaimed(header, &words)?),
        _ => Ok(MemberReply::Done),
    };
    let promise = Duration::from_millis(words.promise_ms.get().into());
    Ok(Reply { promise, result, more: header.kind == Kind::Fenced && header.flags & MORE != 0 })
}

fn object_row(object: &ObjectStamp) -> ObjectRow {
    ObjectRow {
        layer: object.key.layer.0.into(),
        index: object.key.index.into(),
        zero: 0.into(),
        stamp: object.stamp.into(),
        settled_generation: object.settled_generation.0.into(),
    }
}

/// Objects in key order.
fn objects(header: &Header, body: &[u8]) -> Result<Vec<ObjectStamp>, FrameError> {
    let rows = <[ObjectRow]>::ref_from_bytes(body).expect("a whole number of rows");
    if rows.iter().any(|row| row.zero.get() != 0) {
        return Err(header.malformed("something where nothing belongs"));
    }
    let objects: Vec<ObjectStamp> = rows
        .iter()
        .map(|row| ObjectStamp {
            key: ObjectKey { layer: LayerId(row.layer.get()), index: row.index.get() },
            stamp: row.stamp.stamp(),
            settled_generation: Generation(row.settled_generation.get()),
        })
        .collect();
    if !objects.is_sorted_by(|before, after| before.key < after.key) {
        return Err(header.malformed("its objects are not in order"));
    }
    Ok(objects)
}

/// Runs of absent blocks, in order, all of them among those asked for.
fn absent_blocks(
    header: &Header,
    body: &[u8],
    blocks: BlockRange,
) -> Result<Vec<BlockRange>, FrameError> {
    let rows = <[RangeRow]>::ref_from_bytes(body).expect("a whole number of rows");
    let mut reached = blocks.first();
    let mut absent = Vec::with_capacity(rows.len());
    for row in rows {
        let run = BlockRange::new(row.first.get().into(), row.count.get().into())
            .filter(|run| run.first() >= reached && run.end() <= blocks.end())
            .ok_or(header.malformed("blocks that were not asked for"))?;
        reached = run.end();
        absent.push(run);
    }
    Ok(absent)
}

fn state_number(state: BlockState) -> u8 {
    match state {
        BlockState::Absent => 0,
        BlockState::Zero => 1,
        BlockState::Data => 2,
    }
}

fn run_row(count: u32, state: u8) -> RunRow {
    RunRow { count: (count as u16).into(), state, zero: 0 }
}

type Run = Result<(u32, Option<BlockState>), FrameError>;

/// Runs that cover exactly the blocks asked for.
fn runs(
    header: &Header,
    body: &[u8],
    blocks: BlockRange,
) -> Result<impl Iterator<Item = Run>, FrameError> {
    let rows = <[RunRow]>::ref_from_bytes(body).expect("a whole number of rows");
    let covered: u32 = rows.iter().map(|row| u32::from(row.count.get())).sum();
    if covered != blocks.count() || rows.iter().any(|row| row.count.get() == 0) {
        return Err(header.malformed("its runs are not the blocks asked for"));
    }
    let header = *header;
    Ok(rows.iter().map(move |row| {
        let state = match (row.state, row.zero) {
            (0, 0) => Some(BlockState::Absent),
            (1, 0) => Some(BlockState::Zero),
            (2, 0) => Some(BlockState::Data),
            (SAME, 0) => None,
            _ => return Err(header.malformed("an unknown state of blocks")),
        };
        Ok((u32::from(row.count.get()), state))
    }))
}

fn reclaimed(header: &Header, words: &Words) -> Result<MemberReply, FrameError> {
    let next = u32::try_from(words.second.get()).map_err(|_| header.malformed("no such index"))?;
    let next_index = (header.flags & GOES_ON != 0).then_some(next);
    if next_index.is_none() && next != 0 {
        return Err(header.malformed("something where nothing belongs"));
    }
    Ok(MemberReply::Reclaimable { blocks: words.first.get(), next_index })
}

/// Number, first and second word, and text of an error.
fn error_words(error: &MemberError) -> (u16, u64, u64, &str) {
    match error {
        MemberError::Fenced { newer } => (1, newer.0, 0, ""),
        MemberError::WrongStamp { have } => (2, have.generation.0, have.sequence, ""),
        MemberError::WrongConfiguration { have } => (3, have.0, 0, ""),
        MemberError::NoSpace => (4, 0, 0, ""),
        MemberError::Corrupt { key, block } => {
            (5, key.layer.0, u64::from(key.index) | u64::from(*block) << 32, "")
        }
        MemberError::Busy => (6, 0, 0, ""),
        MemberError::Retired => (7, 0, 0, ""),
        MemberError::Invalid(why) => (8, 0, 0, why),
        MemberError::RefusedMore { .. }
        | MemberError::Superseded { .. }
        | MemberError::NotStaged { .. } => todo!("the wire of decision 0009"),
    }
}

fn decode_error(header: &Header, words: &Words, body: &[u8]) -> Result<MemberError, FrameError> {
    let (first, second) = (words.first.get(), words.second.get());
    let error = match header.flags {
        1 => MemberError::Fenced { newer: Generation(first) },
        2 => {
            let have = Stamp { generation: Generation(first), sequence: second };
            MemberError::WrongStamp { have }
        }
        3 => MemberError::WrongConfiguration { have: ConfigurationNumber(first) },
        4 => MemberError::NoSpace,
        5 => {
            let key = ObjectKey { layer: LayerId(first), index: second as u32 };
            MemberError::Corrupt { key, block: (second >> 32) as u32 }
        }
        6 => MemberError::Busy,
        7 => MemberError::Retired,
        8 => MemberError::Invalid(text_of(header, body)?.into()),
        _ => return Err(header.malformed("an unknown refusal")),
    };
    // What is written again is what came: nothing else hides in the words.
    let (_, first_again, second_again, text) = error_words(&error);
    if (first_again, second_again, text.len()) != (first, second, body.len()) {
        return Err(header.malformed("something where nothing belongs"));
    }
    Ok(error)
}
