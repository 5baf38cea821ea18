//! Answers of disks as frames, and what an asker may believe of them.

use super::header::{Frame, FrameError, Header, Kind, Seal};
use super::note::{cut, milliseconds, text_of};
use super::records::{StampRecord, record, vet_partition, vet_table};
use crate::limits::{MEMBER_ROWS_MAX, WIRE_BODY_BYTES_MAX};
use crate::{
    BLOCKS_PER_OBJECT, BlockRange, BlockState, BlockSum, ConfigurationNumber, Duration, Generation,
    Incarnation, LayerId, LineageId, LineageStamp, MemberError, MemberReply, MemberRequest,
    ObjectKey, ObjectStamp, PartitionId, Payload, Refused, Stamp, Under, partition_of,
};
use std::mem::size_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Flag of a list: it goes on after its last row.
const MORE: u16 = 1;
/// Flag of `reclaimed`: there is somewhere to go on.
const GOES_ON: u16 = 1;
/// State of a run in `differences`: the same in both layers.
const SAME: u8 = 3;
/// State of a block in `block sums` that has data, and a checksum.
const DATA: u8 = 2;

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
    stamp: StampRecord,
    settled_generation: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct SurveyRow {
    lineage: U64,
    object: ObjectRow,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct LineageRow {
    lineage: U64,
    fence: U64,
    settled: StampRecord,
    marked_by: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RefusedRow {
    configuration: U64,
    partition: U32,
    copies: u8,
    bits: u8,
    zero: [u8; 2],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct SumRow {
    state: u8,
    checksum: U64,
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

/// A row of `fenced`, in bytes.
pub(super) const OBJECT_ROW_BYTES: usize = size_of::<ObjectRow>();
/// A row of `surveyed`, in bytes.
pub(super) const SURVEY_ROW_BYTES: usize = size_of::<SurveyRow>();
/// A row of `lineage stamps`, in bytes.
pub(super) const LINEAGE_ROW_BYTES: usize = size_of::<LineageRow>();
/// A row of `confirmed`, in bytes.
pub(super) const REFUSED_ROW_BYTES: usize = size_of::<RefusedRow>();
/// A row of `block sums`, in bytes.
pub(super) const SUM_ROW_BYTES: usize = size_of::<SumRow>();

const _: () = assert!(size_of::<Words>() == 32);
const _: () = assert!(OBJECT_ROW_BYTES == 40 && SURVEY_ROW_BYTES == 48 && LINEAGE_ROW_BYTES == 40);
const _: () = assert!(REFUSED_ROW_BYTES == 16 && SUM_ROW_BYTES == 9);
const _: () = assert!(MEMBER_ROWS_MAX * SURVEY_ROW_BYTES <= WIRE_BODY_BYTES_MAX);
const _: () = assert!(BLOCKS_PER_OBJECT as usize * SUM_ROW_BYTES <= WIRE_BODY_BYTES_MAX);

/// What an answer must be like to be one to the question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expected {
    /// [`MemberReply::Fenced`]
    Fenced {
        /// Whether objects are wanted.
        list: bool,
        /// Those after this one.
        after: ObjectKey,
    },
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
    /// [`MemberReply::Confirmed`]
    Confirmed,
    /// [`MemberReply::Lineages`]
    Lineages {
        /// Those after this one.
        after: LineageId,
    },
    /// [`MemberReply::Survey`]
    Survey {
        /// There are 2^this partitions.
        bits: u8,
        /// Objects of which of them, ascending.
        partitions: Vec<PartitionId>,
        /// Those after this one.
        after: (LineageId, ObjectKey),
    },
    /// [`MemberReply::Checksums`] of these blocks.
    Checksums(BlockRange),
    /// [`MemberReply::Refused`]
    Refused,
    /// [`MemberReply::Installed`]
    Installed,
}

impl Expected {
    /// What a request wants to hear.
    pub fn of(request: &MemberRequest) -> Expected {
        match request {
            MemberRequest::Fence { list, after, .. } => {
                Expected::Fenced { list: *list, after: *after }
            }
            MemberRequest::Settle { .. }
            | MemberRequest::OpenLayer { .. }
            | MemberRequest::Mark { .. }
            | MemberRequest::Stage { .. }
            | MemberRequest::Adopt { .. }
            | MemberRequest::Retract { .. } => Expected::Done,
            MemberRequest::Stamp { key, .. } => Expected::Stamp(*key),
            MemberRequest::Write(_) => Expected::Written,
            MemberRequest::Read { blocks, .. } => Expected::Data(*blocks),
            MemberRequest::Map { blocks, .. } => Expected::Map(*blocks),
            MemberRequest::Difference { blocks, .. } => Expected::Difference(*blocks),
            MemberRequest::Reclaimable { .. } => Expected::Reclaimable,
            MemberRequest::Flush { .. } => Expected::Flushed,
            MemberRequest::Confirm { .. } => Expected::Confirmed,
            MemberRequest::Lineages { after } => Expected::Lineages { after: *after },
            MemberRequest::Survey { bits, partitions, after, .. } => {
                Expected::Survey { bits: *bits, partitions: partitions.clone(), after: *after }
            }
            MemberRequest::Checksums { blocks, .. } => Expected::Checksums(*blocks),
            MemberRequest::Refuse(_) => Expected::Refused,
            MemberRequest::Install { .. } => Expected::Installed,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Expected::Fenced { .. } => Kind::Fenced,
            Expected::Done => Kind::Done,
            Expected::Stamp(_) => Kind::ObjectStamp,
            Expected::Written => Kind::Written,
            Expected::Data(_) => Kind::Data,
            Expected::Map(_) => Kind::Blocks,
            Expected::Difference(_) => Kind::Differences,
            Expected::Reclaimable => Kind::Reclaimed,
            Expected::Flushed => Kind::Flushed,
            Expected::Confirmed => Kind::Confirmed,
            Expected::Lineages { .. } => Kind::LineageStamps,
            Expected::Survey { .. } => Kind::Surveyed,
            Expected::Checksums(_) => Kind::BlockSums,
            Expected::Refused => Kind::Refused,
            Expected::Installed => Kind::Installed,
        }
    }

    /// Refuses a header that cannot be that of the answer, before memory is given for its payload.
    pub fn admit(&self, header: &Header) -> Result<(), FrameError> {
        let kind = header.kind;
        if kind != Kind::Error && kind != self.kind() {
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

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// How long the disk will honour no newer fence; zero: it did not promise.
    pub promise: Duration,
    /// What it says.
    pub result: Result<MemberReply, MemberError>,
}

/// Appends header and body of an answer. Content of blocks is to follow.
///
/// # Panics
/// If it is longer than any answer to a vetted request.
pub fn put(
    out: &mut Vec<u8>,
    seal: Seal,
    id: u64,
    promise: Duration,
    result: &Result<MemberReply, MemberError>,
) {
    let Parts { kind, flags, words: (incarnation, first, second), body } = match result {
        Ok(reply) => parts(reply),
        Err(error) => {
            let (flags, first, second, text) = error_words(error);
            let (words, body) = ((Incarnation(0), first, second), cut(text).as_bytes().to_vec());
            Parts { kind: Kind::Error, flags, words, body }
        }
    };
    let words = Words {
        incarnation: incarnation.0.into(),
        promise_ms: milliseconds(promise).into(),
        zero: 0.into(),
        first: first.into(),
        second: second.into(),
    };
    let payload = match result {
        Ok(MemberReply::Data { content, .. }) => content.as_slice(),
        _ => &[],
    };
    let words = words.as_bytes().try_into().expect("words are 32 bytes");
    Frame { kind, flags, id, words, body: &body, payload }.put(out, seal);
}

/// What the frame of an answer has of its own: incarnation, first and second are its words.
struct Parts {
    kind: Kind,
    flags: u16,
    words: (Incarnation, u64, u64),
    body: Vec<u8>,
}

fn parts(reply: &MemberReply) -> Parts {
    let no_words = (Incarnation(0), 0, 0);
    let (kind, flags, words, body) = match reply {
        MemberReply::Fenced { incarnation, settled, unsettled, more } => {
            let words = (*incarnation, settled.generation.0, settled.sequence);
            (Kind::Fenced, more_flag(*more), words, bytes_of(unsettled, object_row))
        }
        MemberReply::Done => (Kind::Done, 0, no_words, Vec::new()),
        MemberReply::Stamp(object) => {
            (Kind::ObjectStamp, 0, no_words, object_row(object).as_bytes().to_vec())
        }
        MemberReply::Written { incarnation } => {
            (Kind::Written, 0, (*incarnation, 0, 0), Vec::new())
        }
        MemberReply::Data { absent, .. } => (Kind::Data, 0, no_words, bytes_of(absent, range_row)),
        MemberReply::Map(runs) => {
            let row = |(count, state): &(u32, BlockState)| run_row(*count, state_number(*state));
            (Kind::Blocks, 0, no_words, bytes_of(runs, row))
        }
        MemberReply::Difference(runs) => {
            let row = |(count, state): &(u32, Option<BlockState>)| {
                run_row(*count, state.map_or(SAME, state_number))
            };
            (Kind::Differences, 0, no_words, bytes_of(runs, row))
        }
        MemberReply::Reclaimable { blocks, next_index } => {
            let flags = if next_index.is_some() { GOES_ON } else { 0 };
            let words = (Incarnation(0), *blocks, u64::from(next_index.unwrap_or(0)));
            (Kind::Reclaimed, flags, words, Vec::new())
        }
        MemberReply::Flushed { incarnation } => {
            (Kind::Flushed, 0, (*incarnation, 0, 0), Vec::new())
        }
        MemberReply::Confirmed { incarnation, refusals, refused, more } => {
            let words = (*incarnation, *refusals, 0);
            (Kind::Confirmed, more_flag(*more), words, bytes_of(refused, refused_row))
        }
        MemberReply::Lineages { lineages, more } => {
            (Kind::LineageStamps, more_flag(*more), no_words, bytes_of(lineages, lineage_row))
        }
        MemberReply::Survey { incarnation, objects, more } => {
            let words = (*incarnation, 0, 0);
            (Kind::Surveyed, more_flag(*more), words, bytes_of(objects, survey_row))
        }
        MemberReply::Checksums(sums) => (Kind::BlockSums, 0, no_words, bytes_of(sums, sum_row)),
        MemberReply::Refused { incarnation, lossless_from } => {
            (Kind::Refused, 0, (*incarnation, lossless_from.0, 0), Vec::new())
        }
        MemberReply::Installed { incarnation } => {
            (Kind::Installed, 0, (*incarnation, 0, 0), Vec::new())
        }
    };
    Parts { kind, flags, words, body }
}

/// Gives a verified frame its meaning, as the answer to what was asked.
pub fn decode(
    header: &Header,
    body: &[u8],
    payload: Option<Payload>,
    expected: &Expected,
) -> Result<Reply, FrameError> {
    expected.admit(header)?;
    let words = words(header)?;
    let incarnation = Incarnation(words.incarnation.get());
    let (first, second) = (words.first.get(), words.second.get());
    let result = match (header.kind, expected) {
        (Kind::Error, _) => Err(decode_error(header, &words, body)?),
        (Kind::Fenced, Expected::Fenced { list, after }) => {
            let unsettled = objects(header, body, *after)?;
            let more = more(header, unsettled.is_empty())?;
            if !list && !unsettled.is_empty() {
                return Err(header.malformed("it lists what was not wanted"));
            }
            let settled = Stamp { generation: Generation(first), sequence: second };
            Ok(MemberReply::Fenced { incarnation, settled, unsettled, more })
        }
        (Kind::ObjectStamp, Expected::Stamp(key)) => {
            let object = object(header, &record(body))?;
            if object.key != *key {
                return Err(header.malformed("it is about another object"));
            }
            Ok(MemberReply::Stamp(object))
        }
        (Kind::Written, _) => Ok(MemberReply::Written { incarnation }),
        (Kind::Flushed, _) => Ok(MemberReply::Flushed { incarnation }),
        (Kind::Data, Expected::Data(blocks)) => {
            let absent = absent_blocks(header, body, *blocks)?;
            Ok(MemberReply::Data { content: payload.into_iter().collect(), absent })
        }
        (Kind::Blocks, Expected::Map(blocks)) => {
            let runs = runs(header, body, *blocks)?.map(|run| {
                let (count, state) = run?;
                Ok((count, state.ok_or(header.malformed("a state it cannot have"))?))
            });
            Ok(MemberReply::Map(runs.collect::<Result<_, _>>()?))
        }
        (Kind::Differences, Expected::Difference(blocks)) => {
            Ok(MemberReply::Difference(runs(header, body, *blocks)?.collect::<Result<_, _>>()?))
        }
        (Kind::Reclaimed, _) => Ok(reclaimed(header, &words)?),
        (Kind::Confirmed, _) => {
            let refused = refused(header, body)?;
            let more = more(header, refused.is_empty())?;
            Ok(MemberReply::Confirmed { incarnation, refusals: first, refused, more })
        }
        (Kind::LineageStamps, Expected::Lineages { after }) => {
            let lineages = lineages(header, body, *after)?;
            let more = more(header, lineages.is_empty())?;
            Ok(MemberReply::Lineages { lineages, more })
        }
        (Kind::Surveyed, Expected::Survey { bits, partitions, after }) => {
            let objects = surveyed(header, body, *bits, partitions, *after)?;
            let more = more(header, objects.is_empty())?;
            Ok(MemberReply::Survey { incarnation, objects, more })
        }
        (Kind::BlockSums, Expected::Checksums(blocks)) => {
            Ok(MemberReply::Checksums(sums(header, body, *blocks)?))
        }
        (Kind::Refused, _) => {
            Ok(MemberReply::Refused { incarnation, lossless_from: Incarnation(first) })
        }
        (Kind::Installed, _) => Ok(MemberReply::Installed { incarnation }),
        _ => Ok(MemberReply::Done),
    };
    Ok(Reply { promise: Duration::from_millis(words.promise_ms.get().into()), result })
}

/// Flags and words, with nothing where the kind has none.
fn words(header: &Header) -> Result<Words, FrameError> {
    header.only_flags(match header.kind {
        Kind::Fenced | Kind::Confirmed | Kind::LineageStamps | Kind::Surveyed => MORE,
        Kind::Reclaimed => GOES_ON,
        Kind::Error => u16::MAX,
        _ => 0,
    })?;
    let words: Words = header.words();
    header.nothing(words.zero.get().into())?;
    let names_incarnation = matches!(
        header.kind,
        Kind::Fenced
            | Kind::Written
            | Kind::Flushed
            | Kind::Confirmed
            | Kind::Surveyed
            | Kind::Refused
            | Kind::Installed
    );
    if !names_incarnation {
        header.nothing(words.incarnation.get())?;
    }
    let used = match header.kind {
        Kind::Fenced | Kind::Reclaimed | Kind::Error => 2,
        Kind::Confirmed | Kind::Refused => 1,
        _ => 0,
    };
    if used < 1 {
        header.nothing(words.first.get())?;
    }
    if used < 2 {
        header.nothing(words.second.get())?;
    }
    Ok(words)
}

/// The rows of some items, one after the other.
fn bytes_of<T, R: IntoBytes + Immutable>(items: &[T], row: impl Fn(&T) -> R) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(std::mem::size_of_val(items));
    items.iter().for_each(|item| bytes.extend_from_slice(row(item).as_bytes()));
    bytes
}

/// The rows of a body whose length the header bounds.
fn rows<T: FromBytes + Immutable + KnownLayout + Unaligned>(body: &[u8]) -> &[T] {
    <[T]>::ref_from_bytes(body).expect("a whole number of rows")
}

fn more_flag(more: bool) -> u16 {
    if more { MORE } else { 0 }
}

/// Whether a list goes on. An asker goes on after its last row, so it must have one.
fn more(header: &Header, is_empty: bool) -> Result<bool, FrameError> {
    let more = header.flags & MORE != 0;
    if more && is_empty {
        return Err(header.malformed("a list that goes on is empty"));
    }
    Ok(more)
}

/// Refuses a list that is not ascending, or does not begin behind `after`.
fn vet_order<T, K: Ord>(
    header: &Header,
    after: K,
    items: &[T],
    key: impl Fn(&T) -> K,
) -> Result<(), FrameError> {
    let mut before = after;
    for item in items {
        let key = key(item);
        if key <= before {
            return Err(header.malformed("its rows are not in order"));
        }
        before = key;
    }
    Ok(())
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

fn object(header: &Header, row: &ObjectRow) -> Result<ObjectStamp, FrameError> {
    header.nothing(row.zero.get().into())?;
    Ok(ObjectStamp {
        key: ObjectKey { layer: LayerId(row.layer.get()), index: row.index.get() },
        stamp: row.stamp.stamp(),
        settled_generation: Generation(row.settled_generation.get()),
    })
}

/// Objects in key order, behind that one.
fn objects(header: &Header, body: &[u8], after: ObjectKey) -> Result<Vec<ObjectStamp>, FrameError> {
    let objects: Vec<ObjectStamp> =
        rows(body).iter().map(|row| object(header, row)).collect::<Result<_, _>>()?;
    vet_order(header, after, &objects, |object| object.key)?;
    Ok(objects)
}

fn survey_row((lineage, object): &(LineageId, ObjectStamp)) -> SurveyRow {
    SurveyRow { lineage: lineage.0.into(), object: object_row(object) }
}

/// Objects of these partitions by lineage and key, behind that one.
fn surveyed(
    header: &Header,
    body: &[u8],
    bits: u8,
    partitions: &[PartitionId],
    after: (LineageId, ObjectKey),
) -> Result<Vec<(LineageId, ObjectStamp)>, FrameError> {
    let objects = rows(body)
        .iter()
        .map(|row: &SurveyRow| {
            let (lineage, object) = (LineageId(row.lineage.get()), object(header, &row.object)?);
            let partition = partition_of(lineage, object.key.index, bits);
            if partitions.binary_search(&partition).is_err() {
                return Err(header.malformed("an object of another partition"));
            }
            Ok((lineage, object))
        })
        .collect::<Result<Vec<_>, _>>()?;
    vet_order(header, after, &objects, |(lineage, object)| (*lineage, object.key))?;
    Ok(objects)
}

fn lineage_row(lineage: &LineageStamp) -> LineageRow {
    LineageRow {
        lineage: lineage.lineage.0.into(),
        fence: lineage.fence.0.into(),
        settled: lineage.settled.into(),
        marked_by: lineage.marked_by.0.into(),
    }
}

/// Lineages, ascending, behind that one.
fn lineages(
    header: &Header,
    body: &[u8],
    after: LineageId,
) -> Result<Vec<LineageStamp>, FrameError> {
    let lineage = |row: &LineageRow| LineageStamp {
        lineage: LineageId(row.lineage.get()),
        fence: Generation(row.fence.get()),
        settled: row.settled.stamp(),
        marked_by: Generation(row.marked_by.get()),
    };
    let lineages: Vec<LineageStamp> = rows(body).iter().map(lineage).collect();
    vet_order(header, after, &lineages, |lineage| lineage.lineage)?;
    Ok(lineages)
}

fn refused_row(refused: &Refused) -> RefusedRow {
    let Refused { under: Under { copies, bits, number }, partition } = *refused;
    let (configuration, partition) = (number.0.into(), partition.0.into());
    RefusedRow { configuration, partition, copies, bits, zero: [0; 2] }
}

/// Configurations that were refused.
fn refused(header: &Header, body: &[u8]) -> Result<Vec<Refused>, FrameError> {
    let refused = |row: &RefusedRow| {
        let RefusedRow { configuration, partition, copies, bits, zero } = *row;
        let (number, partition) =
            (ConfigurationNumber(configuration.get()), PartitionId(partition.get()));
        header.nothing(u16::from_le_bytes(zero).into())?;
        vet_table(copies, bits)
            .and_then(|()| vet_partition(partition, bits))
            .map_err(|why| header.malformed(why))?;
        Ok(Refused { under: Under { copies, bits, number }, partition })
    };
    rows(body).iter().map(refused).collect()
}

fn sum_row(sum: &BlockSum) -> SumRow {
    let (state, checksum) = match sum {
        BlockSum::Absent => (0, 0),
        BlockSum::Zero => (1, 0),
        BlockSum::Data(checksum) => (DATA, *checksum),
    };
    SumRow { state, checksum: checksum.into() }
}

/// What each of the blocks asked for has.
fn sums(header: &Header, body: &[u8], blocks: BlockRange) -> Result<Vec<BlockSum>, FrameError> {
    let rows = rows(body);
    if rows.len() != blocks.count() as usize {
        return Err(header.malformed("its rows are not the blocks asked for"));
    }
    let sum = |row: &SumRow| match (row.state, row.checksum.get()) {
        (0, 0) => Ok(BlockSum::Absent),
        (1, 0) => Ok(BlockSum::Zero),
        (DATA, checksum) => Ok(BlockSum::Data(checksum)),
        _ => Err(header.malformed("an unknown state of blocks")),
    };
    rows.iter().map(sum).collect()
}

fn range_row(blocks: &BlockRange) -> RangeRow {
    RangeRow { first: (blocks.first() as u16).into(), count: (blocks.count() as u16).into() }
}

/// Runs of absent blocks, in order, all of them among those asked for.
fn absent_blocks(
    header: &Header,
    body: &[u8],
    blocks: BlockRange,
) -> Result<Vec<BlockRange>, FrameError> {
    let rows: &[RangeRow] = rows(body);
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
    let rows: &[RunRow] = rows(body);
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
        MemberError::RefusedMore { refusals } => (9, *refusals, 0, ""),
        MemberError::Superseded { newer } => (10, *newer, 0, ""),
        MemberError::NotStaged { have } => (11, (*have).into(), 0, ""),
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
        9 => MemberError::RefusedMore { refusals: first },
        10 => MemberError::Superseded { newer: first },
        11 => MemberError::NotStaged { have: first as u32 },
        _ => return Err(header.malformed("an unknown refusal")),
    };
    // What is written again is what came: nothing else hides in the words.
    let (_, first_again, second_again, text) = error_words(&error);
    if (first_again, second_again, text.len()) != (first, second, body.len()) {
        return Err(header.malformed("something where nothing belongs"));
    }
    Ok(error)
}
