//! Requests to disks as frames.

use super::header::{Frame, FrameError, Header, Kind, Seal};
use crate::limits::MEMBER_REQUEST_BLOCKS_MAX;
use crate::{
    BLOCK_SIZE, BlockRange, Change, ConfigurationNumber, DiskId, Generation, LayerId, LineageId,
    MemberError, MemberRequest, ObjectKey, Payload, Stamp, Under, Write,
};
use std::mem::size_of;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Flag of `write data`: zeros may be kept without space.
const DETECT_ZEROES: u16 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Words {
    disk: U128,
    lineage: U64,
    generation: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct KeyBody {
    layer: U64,
    index: U32,
    zero: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct SettleBody {
    key: KeyBody,
    stamp: StampBody,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct StampBody {
    generation: U64,
    sequence: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct LayerBody {
    layer: U64,
    parent: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct BlocksBody {
    layer: U64,
    index: U32,
    first: U16,
    count: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct DifferenceBody {
    blocks: BlocksBody,
    base: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct WriteBody {
    blocks: BlocksBody,
    configuration: U64,
    previous: StampBody,
    sequence: U64,
    settled: StampBody,
}

const _: () = assert!(size_of::<Words>() == 32);
const _: () = assert!(size_of::<WriteBody>() == 64);

impl From<Stamp> for StampBody {
    fn from(stamp: Stamp) -> StampBody {
        StampBody { generation: stamp.generation.0.into(), sequence: stamp.sequence.into() }
    }
}

impl StampBody {
    pub(super) fn stamp(self) -> Stamp {
        Stamp { generation: Generation(self.generation.get()), sequence: self.sequence.get() }
    }
}

impl KeyBody {
    fn of(key: ObjectKey) -> KeyBody {
        KeyBody { layer: key.layer.0.into(), index: key.index.into(), zero: 0.into() }
    }

    fn key(self, header: &Header) -> Result<ObjectKey, FrameError> {
        if self.zero.get() != 0 {
            return Err(header.malformed("something where nothing belongs"));
        }
        Ok(ObjectKey { layer: LayerId(self.layer.get()), index: self.index.get() })
    }
}

impl BlocksBody {
    fn of(key: ObjectKey, blocks: BlockRange) -> BlocksBody {
        BlocksBody {
            layer: key.layer.0.into(),
            index: key.index.into(),
            first: (blocks.first() as u16).into(),
            count: (blocks.count() as u16).into(),
        }
    }

    fn key(self) -> ObjectKey {
        ObjectKey { layer: LayerId(self.layer.get()), index: self.index.get() }
    }

    fn blocks(self, header: &Header) -> Result<BlockRange, FrameError> {
        BlockRange::new(self.first.get().into(), self.count.get().into())
            .ok_or(header.malformed("its blocks leave the object"))
    }
}

/// Refuses a request that no frame can carry, as a disk on the same node would: a bug of the asker.
pub fn vet(request: &MemberRequest) -> Result<(), MemberError> {
    match request {
        MemberRequest::Write(Write { change: Change::Data { first, payload, .. }, .. }) => {
            data_blocks(*first, payload).map(drop)
        }
        MemberRequest::Read { blocks, .. } if blocks.count() > MEMBER_REQUEST_BLOCKS_MAX => {
            Err(MemberError::invalid("the read is too long"))
        }
        _ => Ok(()),
    }
}

/// The blocks that data is for.
fn data_blocks(first: u32, payload: &Payload) -> Result<BlockRange, MemberError> {
    if !payload.len().is_multiple_of(BLOCK_SIZE) {
        return Err(MemberError::invalid("the payload is not whole blocks"));
    }
    let count = u32::try_from(payload.len() / BLOCK_SIZE).unwrap_or(u32::MAX);
    if count > MEMBER_REQUEST_BLOCKS_MAX {
        return Err(MemberError::invalid("the write is too long"));
    }
    BlockRange::new(first, count).ok_or(MemberError::invalid("the write leaves its object"))
}

/// What a request counts for in a credit, in bytes: the blocks it brings or asks for, at least one.
pub fn cost(request: &MemberRequest) -> u64 {
    let bytes = match request {
        MemberRequest::Write(Write { change: Change::Data { payload, .. }, .. }) => payload.len(),
        MemberRequest::Read { blocks, .. } => blocks.bytes(),
        _ => BLOCK_SIZE,
    };
    bytes as u64
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
    let put = |kind, flags, lineage: LineageId, generation: Generation, body: &[u8], payload| {
        let words = Words {
            disk: disk.0.into(),
            lineage: lineage.0.into(),
            generation: generation.0.into(),
        };
        let words = words.as_bytes().try_into().expect("words are 32 bytes");
        Frame { kind, flags, id, words, body, payload }.put(out, seal);
    };
    let mut put = put;
    match request {
        MemberRequest::Fence { lineage, generation, .. } => {
            put(Kind::Fence, 0, *lineage, *generation, &[], &[]);
        }
        MemberRequest::Settle { lineage, key, generation, stamp, .. } => {
            let body = SettleBody { key: KeyBody::of(*key), stamp: (*stamp).into() };
            put(Kind::Settle, 0, *lineage, *generation, body.as_bytes(), &[]);
        }
        MemberRequest::Stamp { lineage, key, generation } => {
            put(Kind::Stamp, 0, *lineage, *generation, KeyBody::of(*key).as_bytes(), &[]);
        }
        MemberRequest::OpenLayer { lineage, generation, layer, parent } => {
            let body = LayerBody { layer: layer.0.into(), parent: parent.0.into() };
            put(Kind::OpenLayer, 0, *lineage, *generation, body.as_bytes(), &[]);
        }
        MemberRequest::Write(write) => {
            let (kind, flags, blocks, payload) = match &write.change {
                Change::Data { first, payload, detect_zeroes } => {
                    let blocks = data_blocks(*first, payload).expect("the request was vetted");
                    let flags = if *detect_zeroes { DETECT_ZEROES } else { 0 };
                    (Kind::WriteData, flags, blocks, Some(payload))
                }
                Change::Zero { blocks } => (Kind::WriteZero, 0, *blocks, None),
                Change::Absent { blocks } => (Kind::WriteAbsent, 0, *blocks, None),
            };
            let body = WriteBody {
                blocks: BlocksBody::of(write.key, blocks),
                configuration: write.under.number.0.into(),
                previous: write.previous.into(),
                sequence: write.stamp.sequence.into(),
                settled: write.settled.into(),
            };
            let pieces = payload.map_or(&[][..], std::slice::from_ref);
            put(kind, flags, write.lineage, write.stamp.generation, body.as_bytes(), pieces);
            return payload;
        }
        MemberRequest::Read { lineage, key, generation, blocks, .. } => {
            let body = BlocksBody::of(*key, *blocks);
            put(Kind::Read, 0, *lineage, *generation, body.as_bytes(), &[]);
        }
        MemberRequest::Map { lineage, key, generation, blocks, .. } => {
            let body = BlocksBody::of(*key, *blocks);
            put(Kind::Map, 0, *lineage, *generation, body.as_bytes(), &[]);
        }
        MemberRequest::Difference { lineage, key, generation, base, blocks, .. } => {
            let blocks = BlocksBody::of(*key, *blocks);
            let body = DifferenceBody { blocks, base: base.0.into() };
            put(Kind::Difference, 0, *lineage, *generation, body.as_bytes(), &[]);
        }
        MemberRequest::Reclaimable { lineage, generation, layer, index } => {
            let body = KeyBody::of(ObjectKey { layer: *layer, index: *index });
            put(Kind::Reclaimable, 0, *lineage, *generation, body.as_bytes(), &[]);
        }
        MemberRequest::Flush { lineage, generation, .. } => {
            put(Kind::Flush, 0, *lineage, *generation, &[], &[]);
        }
        _ => todo!("the wire of decision 0009"),
    }
    None
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
    header.only_flags(if header.kind == Kind::WriteData { DETECT_ZEROES } else { 0 })?;
    let words: Words = header.words();
    let lineage = LineageId(words.lineage.get());
    let generation = Generation(words.generation.get());
    let request = match header.kind {
        Kind::Fence => {
            let after = ObjectKey::default();
            MemberRequest::Fence { lineage, generation, list: true, after }
        }
        Kind::Flush => MemberRequest::Flush { lineage, generation, settled: Stamp::default() },
        Kind::Settle => {
            let body: SettleBody = record(body);
            let (key, stamp) = (body.key.key(header)?, body.stamp.stamp());
            MemberRequest::Settle { lineage, key, generation, under: Under::default(), stamp }
        }
        Kind::Stamp => {
            let key = record::<KeyBody>(body).key(header)?;
            MemberRequest::Stamp { lineage, key, generation }
        }
        Kind::OpenLayer => {
            let LayerBody { layer, parent } = record(body);
            let (layer, parent) = (LayerId(layer.get()), LayerId(parent.get()));
            MemberRequest::OpenLayer { lineage, generation, layer, parent }
        }
        Kind::Reclaimable => {
            let ObjectKey { layer, index } = record::<KeyBody>(body).key(header)?;
            MemberRequest::Reclaimable { lineage, generation, layer, index }
        }
        Kind::Read => {
            let body: BlocksBody = record(body);
            let (key, blocks) = (body.key(), body.blocks(header)?);
            if blocks.count() > MEMBER_REQUEST_BLOCKS_MAX {
                return Err(header.malformed("the read is too long"));
            }
            MemberRequest::Read { lineage, key, generation, under: None, blocks }
        }
        Kind::Map => {
            let body: BlocksBody = record(body);
            let (key, blocks) = (body.key(), body.blocks(header)?);
            MemberRequest::Map { lineage, key, generation, under: None, blocks }
        }
        Kind::Difference => {
            let body: DifferenceBody = record(body);
            let (key, blocks) = (body.blocks.key(), body.blocks.blocks(header)?);
            let base = LayerId(body.base.get());
            MemberRequest::Difference { lineage, key, generation, under: None, base, blocks }
        }
        Kind::WriteData | Kind::WriteZero | Kind::WriteAbsent => {
            decode_write(header, lineage, generation, &record(body), payload)?
        }
        other => panic!("{other:?} is no request"),
    };
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
    let change = match (header.kind, payload) {
        (Kind::WriteData, Some(payload)) => {
            if payload.len() != blocks.bytes() {
                return Err(header.malformed("its payload is not that of its blocks"));
            }
            let detect_zeroes = header.flags & DETECT_ZEROES != 0;
            Change::Data { first: blocks.first(), payload, detect_zeroes }
        }
        (Kind::WriteZero, None) => Change::Zero { blocks },
        (Kind::WriteAbsent, None) => Change::Absent { blocks },
        _ => return Err(header.malformed("a payload that is missing or too much")),
    };
    Ok(MemberRequest::Write(Write {
        lineage,
        key: body.blocks.key(),
        under: Under { copies: 0, bits: 0, number: ConfigurationNumber(body.configuration.get()) },
        previous: body.previous.stamp(),
        stamp: Stamp { generation, sequence: body.sequence.get() },
        settled: body.settled.stamp(),
        change,
    }))
}

/// A body of fixed length.
fn record<T: FromBytes>(body: &[u8]) -> T {
    T::read_from_bytes(body).expect("the header bounds the body")
}
