//! Requests to disks as frames.

use super::copying;
use super::header::{Frame, FrameError, Header, Kind, Seal};
use super::records::{BlocksRecord, KeyRecord, StampRecord, UnderRecord, record, vet_table};
use crate::limits::{MEMBER_REQUEST_BLOCKS_MAX, MEMBER_ROWS_MAX};
use crate::{
    BLOCK_SIZE, BlockRange, Change, DiskId, Generation, LayerId, LineageId, MemberError,
    MemberRequest, ObjectKey, Payload, Stamp, Under, Write,
};
use std::mem::size_of;
use zerocopy::little_endian::{U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Flag of `write data` and `stage data`: zeros may be kept without space.
const DETECT_ZEROES: u16 = 1;
/// Flag of `fence`: what is not settled is to be listed.
const LIST: u16 = 1;
/// Flag of `read`, `map` and `difference`: under a configuration.
const UNDER: u16 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Words {
    disk: U128,
    lineage: U64,
    number: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct SettleBody {
    key: KeyRecord,
    under: UnderRecord,
    stamp: StampRecord,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct LayerBody {
    layer: U64,
    parent: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct LookBody {
    blocks: BlocksRecord,
    under: UnderRecord,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct DifferenceBody {
    blocks: BlocksRecord,
    under: UnderRecord,
    base: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct WriteBody {
    blocks: BlocksRecord,
    under: UnderRecord,
    previous: StampRecord,
    sequence: U64,
    settled: StampRecord,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct MarkBody {
    settled: StampRecord,
    refusals: U64,
}

const _: () = assert!(size_of::<Words>() == 32);
const _: () = assert!(size_of::<SettleBody>() == 48 && size_of::<LayerBody>() == 16);
const _: () = assert!(size_of::<LookBody>() == 32 && size_of::<DifferenceBody>() == 40);
const _: () = assert!(size_of::<WriteBody>() == 72 && size_of::<MarkBody>() == 24);

/// Refuses a request that no frame can carry, as a disk on the same node would: a bug of the asker.
pub fn vet(request: &MemberRequest) -> Result<(), MemberError> {
    fault(request).map_err(MemberError::invalid)
}

/// What is wrong with a request, wherever it comes from.
fn fault(request: &MemberRequest) -> Result<(), &'static str> {
    match request {
        MemberRequest::Write(Write { under, change, .. }) => {
            vet_under(under)?;
            vet_change(change)
        }
        MemberRequest::Read { under, blocks, .. } => {
            under.as_ref().map_or(Ok(()), vet_under)?;
            match blocks.count() > MEMBER_REQUEST_BLOCKS_MAX {
                true => Err("the read is too long"),
                false => Ok(()),
            }
        }
        MemberRequest::Map { under, .. } | MemberRequest::Difference { under, .. } => {
            under.as_ref().map_or(Ok(()), vet_under)
        }
        MemberRequest::Settle { under, .. } => vet_under(under),
        other => copying::vet(other),
    }
}

pub(super) fn vet_under(under: &Under) -> Result<(), &'static str> {
    vet_table(under.copies, under.bits)
}

pub(super) fn vet_change(change: &Change) -> Result<(), &'static str> {
    match change {
        Change::Data { first, payload, .. } => data_blocks(*first, payload).map(drop),
        Change::Zero { .. } | Change::Absent { .. } => Ok(()),
    }
}

/// The blocks that data is for.
fn data_blocks(first: u32, payload: &Payload) -> Result<BlockRange, &'static str> {
    if !payload.len().is_multiple_of(BLOCK_SIZE) {
        return Err("the payload is not whole blocks");
    }
    let count = u32::try_from(payload.len() / BLOCK_SIZE).unwrap_or(u32::MAX);
    if count > MEMBER_REQUEST_BLOCKS_MAX {
        return Err("the write is too long");
    }
    BlockRange::new(first, count).ok_or("the write leaves its object")
}

/// What a request counts for in a credit, in bytes: what it brings, or the longest answer to it,
/// but for what frames have around these; at least one block.
pub fn cost(request: &MemberRequest) -> u64 {
    let bytes = match request {
        MemberRequest::Write(Write { change: Change::Data { payload, .. }, .. })
        | MemberRequest::Stage { change: Change::Data { payload, .. }, .. } => payload.len(),
        MemberRequest::Read { blocks, .. } => blocks.bytes(),
        MemberRequest::Checksums { blocks, .. } => {
            blocks.count() as usize * super::reply::SUM_ROW_BYTES
        }
        MemberRequest::Fence { list: true, .. } => MEMBER_ROWS_MAX * super::reply::OBJECT_ROW_BYTES,
        MemberRequest::Confirm { .. } => MEMBER_ROWS_MAX * super::reply::REFUSED_ROW_BYTES,
        MemberRequest::Lineages { .. } => MEMBER_ROWS_MAX * super::reply::LINEAGE_ROW_BYTES,
        MemberRequest::Survey { .. } => MEMBER_ROWS_MAX * super::reply::SURVEY_ROW_BYTES,
        MemberRequest::Refuse(batch) => copying::batch_bytes(batch, 0),
        MemberRequest::Install { batch, fences, .. } => copying::batch_bytes(batch, fences.len()),
        _ => BLOCK_SIZE,
    };
    bytes.max(BLOCK_SIZE) as u64
}

/// Where a frame goes, and what it is about.
pub(super) struct Put<'a> {
    out: &'a mut Vec<u8>,
    seal: Seal,
    id: u64,
    disk: DiskId,
}

impl Put<'_> {
    pub fn frame(&mut self, kind: Kind, flags: u16, lineage: LineageId, number: u64, body: &[u8]) {
        self.blocks(kind, flags, lineage, number, body, None);
    }

    /// One with a payload, perhaps.
    pub fn blocks(
        &mut self,
        kind: Kind,
        flags: u16,
        lineage: LineageId,
        number: u64,
        body: &[u8],
        payload: Option<&Payload>,
    ) {
        let words =
            Words { disk: self.disk.0.into(), lineage: lineage.0.into(), number: number.into() };
        let words = words.as_bytes().try_into().expect("words are 32 bytes");
        let payload = payload.map_or(&[][..], std::slice::from_ref);
        Frame { kind, flags, id: self.id, words, body, payload }.put(self.out, self.seal);
    }
}

/// Appends header and body of a request; the payload is to follow.
///
/// # Panics
/// If [`vet`] refuses it.
pub fn put<'a>(
    out: &mut Vec<u8>,
    seal: Seal,
    id: u64,
    disk: DiskId,
    request: &'a MemberRequest,
) -> Option<&'a Payload> {
    let mut put = Put { out, seal, id, disk };
    match request {
        MemberRequest::Fence { lineage, generation, list, after } => {
            let flags = if *list { LIST } else { 0 };
            let body = KeyRecord::from(*after);
            put.frame(Kind::Fence, flags, *lineage, generation.0, body.as_bytes());
        }
        MemberRequest::Settle { lineage, key, generation, under, stamp } => {
            let (key, under, stamp) = ((*key).into(), (*under).into(), (*stamp).into());
            let body = SettleBody { key, under, stamp };
            put.frame(Kind::Settle, 0, *lineage, generation.0, body.as_bytes());
        }
        MemberRequest::Stamp { lineage, key, generation } => {
            let body = KeyRecord::from(*key);
            put.frame(Kind::Stamp, 0, *lineage, generation.0, body.as_bytes());
        }
        MemberRequest::OpenLayer { lineage, generation, layer, parent } => {
            let body = LayerBody { layer: layer.0.into(), parent: parent.0.into() };
            put.frame(Kind::OpenLayer, 0, *lineage, generation.0, body.as_bytes());
        }
        MemberRequest::Write(write) => return put_write(&mut put, write),
        MemberRequest::Read { lineage, key, generation, under, blocks } => {
            let (flags, body) = look(*key, *blocks, *under);
            put.frame(Kind::Read, flags, *lineage, generation.0, body.as_bytes());
        }
        MemberRequest::Map { lineage, key, generation, under, blocks } => {
            let (flags, body) = look(*key, *blocks, *under);
            put.frame(Kind::Map, flags, *lineage, generation.0, body.as_bytes());
        }
        MemberRequest::Difference { lineage, key, generation, under, base, blocks } => {
            let (flags, LookBody { blocks, under }) = look(*key, *blocks, *under);
            let body = DifferenceBody { blocks, under, base: base.0.into() };
            put.frame(Kind::Difference, flags, *lineage, generation.0, body.as_bytes());
        }
        MemberRequest::Reclaimable { lineage, generation, layer, index } => {
            let body = KeyRecord::from(ObjectKey { layer: *layer, index: *index });
            put.frame(Kind::Reclaimable, 0, *lineage, generation.0, body.as_bytes());
        }
        MemberRequest::Flush { lineage, generation, settled } => {
            let body = StampRecord::from(*settled);
            put.frame(Kind::Flush, 0, *lineage, generation.0, body.as_bytes());
        }
        MemberRequest::Mark { lineage, generation, settled, refusals } => {
            let body = MarkBody { settled: (*settled).into(), refusals: (*refusals).into() };
            put.frame(Kind::Mark, 0, *lineage, generation.0, body.as_bytes());
        }
        MemberRequest::Confirm { lineage, generation, refusals } => {
            put.frame(Kind::Confirm, 0, *lineage, generation.0, &refusals.to_le_bytes());
        }
        other => return copying::put(&mut put, other),
    }
    None
}

fn put_write<'a>(put: &mut Put<'_>, write: &'a Write) -> Option<&'a Payload> {
    let kinds = [Kind::WriteData, Kind::WriteZero, Kind::WriteAbsent];
    let (kind, flags, blocks, payload) = change_parts(&write.change, kinds);
    let body = WriteBody {
        blocks: BlocksRecord::of(write.key, blocks),
        under: write.under.into(),
        previous: write.previous.into(),
        sequence: write.stamp.sequence.into(),
        settled: write.settled.into(),
    };
    put.blocks(kind, flags, write.lineage, write.stamp.generation.0, body.as_bytes(), payload);
    payload
}

/// Of a change: which of the kinds (data, zero, absent), the flags, the blocks, the payload.
pub(super) fn change_parts(
    change: &Change,
    kinds: [Kind; 3],
) -> (Kind, u16, BlockRange, Option<&Payload>) {
    let [data, zero, absent] = kinds;
    match change {
        Change::Data { first, payload, detect_zeroes } => {
            let blocks = data_blocks(*first, payload).expect("the request was vetted");
            (data, if *detect_zeroes { DETECT_ZEROES } else { 0 }, blocks, Some(payload))
        }
        Change::Zero { blocks } => (zero, 0, *blocks, None),
        Change::Absent { blocks } => (absent, 0, *blocks, None),
    }
}

fn look(key: ObjectKey, blocks: BlockRange, under: Option<Under>) -> (u16, LookBody) {
    let flags = if under.is_some() { UNDER } else { 0 };
    let under = under.map_or(UnderRecord::default(), UnderRecord::from);
    (flags, LookBody { blocks: BlocksRecord::of(key, blocks), under })
}

/// The flags that a kind may have.
fn known_flags(kind: Kind) -> u16 {
    let of_change = match kind {
        Kind::WriteData | Kind::StageData => DETECT_ZEROES,
        _ => 0,
    };
    of_change
        | match kind {
            Kind::Fence => LIST,
            Kind::Read | Kind::Map | Kind::Difference => UNDER,
            other => copying::known_flags(other),
        }
}

/// Gives a verified frame its meaning: which disk is asked for what.
///
/// # Panics
/// If the frame is no request.
pub fn decode(
    header: &Header,
    body: &[u8],
    payload: Option<Payload>,
) -> Result<(DiskId, MemberRequest), FrameError> {
    header.only_flags(known_flags(header.kind))?;
    let words: Words = header.words();
    let (lineage, number) = (LineageId(words.lineage.get()), words.number.get());
    let generation = Generation(number);
    let has_flag = |flag: u16| header.flags & flag != 0;
    let request = match header.kind {
        Kind::Fence => {
            let after = record::<KeyRecord>(body).key(header)?;
            MemberRequest::Fence { lineage, generation, list: has_flag(LIST), after }
        }
        Kind::Settle => {
            let SettleBody { key, under, stamp } = record(body);
            let (key, under, stamp) = (key.key(header)?, under.under(header)?, stamp.stamp());
            MemberRequest::Settle { lineage, key, generation, under, stamp }
        }
        Kind::Stamp => {
            let key = record::<KeyRecord>(body).key(header)?;
            MemberRequest::Stamp { lineage, key, generation }
        }
        Kind::OpenLayer => {
            let LayerBody { layer, parent } = record(body);
            let (layer, parent) = (LayerId(layer.get()), LayerId(parent.get()));
            MemberRequest::OpenLayer { lineage, generation, layer, parent }
        }
        Kind::Reclaimable => {
            let ObjectKey { layer, index } = record::<KeyRecord>(body).key(header)?;
            MemberRequest::Reclaimable { lineage, generation, layer, index }
        }
        Kind::Read | Kind::Map => {
            let LookBody { blocks, under } = record(body);
            let (key, blocks) = (blocks.key(), blocks.blocks(header)?);
            let under = under.maybe_under(header, has_flag(UNDER))?;
            match header.kind {
                Kind::Read => MemberRequest::Read { lineage, key, generation, under, blocks },
                _ => MemberRequest::Map { lineage, key, generation, under, blocks },
            }
        }
        Kind::Difference => {
            let DifferenceBody { blocks, under, base } = record(body);
            let (key, blocks) = (blocks.key(), blocks.blocks(header)?);
            let under = under.maybe_under(header, has_flag(UNDER))?;
            let base = LayerId(base.get());
            MemberRequest::Difference { lineage, key, generation, under, base, blocks }
        }
        Kind::WriteData | Kind::WriteZero | Kind::WriteAbsent => {
            decode_write(header, lineage, generation, &record(body), payload)?
        }
        Kind::Flush => {
            let settled = record::<StampRecord>(body).stamp();
            MemberRequest::Flush { lineage, generation, settled }
        }
        Kind::Mark => {
            let MarkBody { settled, refusals } = record(body);
            let (settled, refusals) = (settled.stamp(), refusals.get());
            MemberRequest::Mark { lineage, generation, settled, refusals }
        }
        Kind::Confirm => {
            let refusals = record::<U64>(body).get();
            MemberRequest::Confirm { lineage, generation, refusals }
        }
        _ => copying::decode(header, lineage, number, body, payload)?,
    };
    fault(&request).map_err(|why| header.malformed(why))?;
    Ok((DiskId(words.disk.get()), request))
}

fn decode_write(
    header: &Header,
    lineage: LineageId,
    generation: Generation,
    body: &WriteBody,
    payload: Option<Payload>,
) -> Result<MemberRequest, FrameError> {
    let blocks = body.blocks.blocks(header)?;
    Ok(MemberRequest::Write(Write {
        lineage,
        key: body.blocks.key(),
        under: body.under.under(header)?,
        previous: body.previous.stamp(),
        stamp: Stamp { generation, sequence: body.sequence.get() },
        settled: body.settled.stamp(),
        change: decode_change(header, blocks, payload)?,
    }))
}

/// What is written to these blocks, or staged for them.
pub(super) fn decode_change(
    header: &Header,
    blocks: BlockRange,
    payload: Option<Payload>,
) -> Result<Change, FrameError> {
    Ok(match (header.kind, payload) {
        (Kind::WriteData | Kind::StageData, Some(payload)) => {
            if payload.len() != blocks.bytes() {
                return Err(header.malformed("its payload is not that of its blocks"));
            }
            let detect_zeroes = header.flags & DETECT_ZEROES != 0;
            Change::Data { first: blocks.first(), payload, detect_zeroes }
        }
        (Kind::WriteZero | Kind::StageZero, None) => Change::Zero { blocks },
        (Kind::WriteAbsent | Kind::StageAbsent, None) => Change::Absent { blocks },
        _ => return Err(header.malformed("a payload that is missing or too much")),
    })
}
