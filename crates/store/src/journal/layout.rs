//! The records of the journal, byte by byte as in `docs/formats/journal.md`.

use proto::{BLOCK_SIZE, Buffer, ClusterId, NodeId, Payload, crc64};
use zerocopy::byteorder::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Length of a block, in bytes.
pub(super) const BLOCK: u64 = BLOCK_SIZE as u64;
/// Where the halves begin: the blocks before are the two headers.
const FIRST_HALF_BLOCK: u64 = 2;
/// Fewest and most blocks a half may have. Less cannot hold a frame and the zero block behind it;
/// more is nothing we write, so no length read from a header leads to a larger read.
const HALF_BLOCKS_MIN: u32 = 2;
const HALF_BLOCKS_MAX: u32 = 1 << 20;

/// Generations and sequences that we count up to: what is read can always be counted on.
const COUNT_MAX: u64 = u64::MAX / 2;

const HEADER_MAGIC: [u8; 8] = *b"SHEEPJNL";
const HEADER_VERSION: u32 = 1;
const FRAME_MAGIC: [u8; 4] = *b"SJNL";
const FRAME_VERSION: u16 = 1;
const KIND_SNAPSHOT: u16 = 1;
const KIND_RECORDS: u16 = 2;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    half_blocks: U32,
    checksum: U64,
    cluster: U128,
    node: U128,
    generation: U64,
    created_unix_s: U64,
    reserved: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawFrame {
    magic: [u8; 4],
    version: U16,
    kind: U16,
    header_checksum: U64,
    body_checksum: U64,
    cluster: U128,
    generation: U64,
    sequence: U64,
    prepared_blocks: U32,
    body_bytes: U32,
    records: U32,
    reserved: U32,
}

const HEADER_BYTES: usize = size_of::<RawHeader>();
pub(super) const FRAME_HEADER_BYTES: usize = size_of::<RawFrame>();
const _: () = assert!(HEADER_BYTES == 80 && FRAME_HEADER_BYTES == 72);

/// One of the two copies of everything.
pub(super) const COPIES: [usize; 2] = [0, 1];

/// What a journal is: the same in both headers, but for a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) half_blocks: u32,
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    pub(super) generation: u64,
    pub(super) created_unix_s: u64,
}

/// What the block of a header holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HeaderBlock {
    Valid(Header),
    /// Nothing but zeros.
    Zero,
    /// A journal of a version that we do not know.
    Version(u32),
    /// Anything else.
    Bad,
}

impl Header {
    /// Where the header's copy lies, in bytes.
    pub(super) fn offset(copy: usize) -> u64 {
        copy as u64 * BLOCK
    }

    /// Where block `block` of the half of `generation` lies, in bytes.
    pub(super) fn half_offset(&self, copy: usize, generation: u64, block: u32) -> u64 {
        assert!(block <= self.half_blocks);
        let half = copy as u64 * 2 + generation % 2;
        (FIRST_HALF_BLOCK + half * u64::from(self.half_blocks) + u64::from(block)) * BLOCK
    }

    pub(super) fn encode(&self) -> Payload {
        let mut raw = RawHeader {
            magic: HEADER_MAGIC,
            version: U32::new(HEADER_VERSION),
            half_blocks: U32::new(self.half_blocks),
            checksum: U64::ZERO,
            cluster: U128::new(self.cluster.0),
            node: U128::new(self.node.0),
            generation: U64::new(self.generation),
            created_unix_s: U64::new(self.created_unix_s),
            reserved: U64::ZERO,
        };
        raw.checksum = U64::new(crc64(raw.as_bytes()));
        Buffer::copy_of(raw.as_bytes()).freeze()
    }

    /// Judges the first bytes of a header's block.
    pub(super) fn decode(block: &[u8]) -> HeaderBlock {
        if proto::is_zero(block) {
            return HeaderBlock::Zero;
        }
        let Ok((raw, _)) = RawHeader::read_from_prefix(block) else { return HeaderBlock::Bad };
        let mut unsigned = RawHeader { checksum: U64::ZERO, ..raw };
        let checksum = crc64(unsigned.as_mut_bytes());
        if raw.magic != HEADER_MAGIC || raw.checksum.get() != checksum {
            return HeaderBlock::Bad;
        }
        if raw.version.get() != HEADER_VERSION {
            return HeaderBlock::Version(raw.version.get());
        }
        if !(HALF_BLOCKS_MIN..=HALF_BLOCKS_MAX).contains(&raw.half_blocks.get())
            || raw.generation.get() > COUNT_MAX
        {
            return HeaderBlock::Bad;
        }
        HeaderBlock::Valid(Header {
            half_blocks: raw.half_blocks.get(),
            cluster: ClusterId(raw.cluster.get()),
            node: NodeId(raw.node.get()),
            generation: raw.generation.get(),
            created_unix_s: raw.created_unix_s.get(),
        })
    }
}

/// What a frame carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Body {
    /// The state so far; nothing if there never was a snapshot.
    Snapshot(Option<Vec<u8>>),
    /// What one append brought.
    Records(Vec<Vec<u8>>),
}

/// What the first bytes of a frame say. Only a header whose checksum fits becomes one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FrameHeader {
    pub(super) cluster: ClusterId,
    pub(super) generation: u64,
    pub(super) sequence: u64,
    pub(super) prepared_blocks: u32,
    snapshot: bool,
    body_bytes: u32,
    records: u32,
    body_checksum: u64,
}

impl FrameHeader {
    /// How many blocks a frame takes whose body has so many bytes.
    pub(super) fn blocks_for(body_bytes: usize) -> u32 {
        (FRAME_HEADER_BYTES + body_bytes).div_ceil(BLOCK_SIZE) as u32
    }

    /// How many blocks the frame takes.
    pub(super) fn blocks(&self) -> u32 {
        FrameHeader::blocks_for(self.body_bytes as usize)
    }

    /// Reads and checks a header, from its block or less of it.
    pub(super) fn decode(block: &[u8]) -> Option<FrameHeader> {
        let (raw, _) = RawFrame::read_from_prefix(block).ok()?;
        let mut unsigned = RawFrame { header_checksum: U64::ZERO, ..raw };
        let checksum = crc64(unsigned.as_mut_bytes());
        let known = raw.magic == FRAME_MAGIC
            && raw.version.get() == FRAME_VERSION
            && matches!(raw.kind.get(), KIND_SNAPSHOT | KIND_RECORDS);
        if !known || raw.header_checksum.get() != checksum || raw.sequence.get() > COUNT_MAX {
            return None;
        }
        Some(FrameHeader {
            cluster: ClusterId(raw.cluster.get()),
            generation: raw.generation.get(),
            sequence: raw.sequence.get(),
            prepared_blocks: raw.prepared_blocks.get(),
            snapshot: raw.kind.get() == KIND_SNAPSHOT,
            body_bytes: raw.body_bytes.get(),
            records: raw.records.get(),
            body_checksum: raw.body_checksum.get(),
        })
    }

    /// The body, if `frame` (all its blocks, beginning with this header) has it whole.
    pub(super) fn body(&self, frame: &[u8]) -> Option<Body> {
        let end = FRAME_HEADER_BYTES.checked_add(self.body_bytes as usize)?;
        let body = frame.get(FRAME_HEADER_BYTES..end)?;
        if crc64(body) != self.body_checksum {
            return None;
        }
        if self.snapshot {
            return match self.records {
                0 if body.is_empty() => Some(Body::Snapshot(None)),
                1 => Some(Body::Snapshot(Some(body.to_vec()))),
                _ => None,
            };
        }
        decode_records(body, self.records).map(Body::Records)
    }
}

/// Puts checksums that fit into bytes that are meant as a frame; for fuzzing.
pub(super) fn sign_frame(frame: &mut [u8]) {
    let Ok((mut raw, _)) = RawFrame::read_from_prefix(frame) else { return };
    let end = FRAME_HEADER_BYTES.saturating_add(raw.body_bytes.get() as usize);
    if let Some(body) = frame.get(FRAME_HEADER_BYTES..end) {
        raw.body_checksum = U64::new(crc64(body));
    }
    raw.header_checksum = U64::ZERO;
    raw.header_checksum = U64::new(crc64(raw.as_bytes()));
    frame[..FRAME_HEADER_BYTES].copy_from_slice(raw.as_bytes());
}

/// The records of a body; nothing unless they fill it exactly.
fn decode_records(mut body: &[u8], count: u32) -> Option<Vec<Vec<u8>>> {
    let mut records = Vec::new();
    for _ in 0..count {
        let (length, rest) = U32::read_from_prefix(body).ok()?;
        let (record, rest) = rest.split_at_checked(length.get() as usize)?;
        records.push(record.to_vec());
        body = rest;
    }
    body.is_empty().then_some(records)
}

/// A frame to be written.
pub(super) struct Frame<'a> {
    pub(super) cluster: ClusterId,
    pub(super) generation: u64,
    pub(super) sequence: u64,
    pub(super) prepared_blocks: u32,
    pub(super) body: &'a Body,
}

impl Body {
    /// Its length in a frame, in bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Body::Snapshot(snapshot) => snapshot.as_ref().map_or(0, Vec::len),
            Body::Records(records) => records.iter().map(|record| 4 + record.len()).sum(),
        }
    }

    fn encode_into(&self, mut target: &mut [u8]) {
        let mut put = |bytes: &[u8]| {
            let (here, rest) = std::mem::take(&mut target).split_at_mut(bytes.len());
            here.copy_from_slice(bytes);
            target = rest;
        };
        match self {
            Body::Snapshot(None) => {}
            Body::Snapshot(Some(snapshot)) => put(snapshot),
            Body::Records(records) => {
                for record in records {
                    put(&(record.len() as u32).to_le_bytes());
                    put(record);
                }
            }
        }
    }
}

impl Frame<'_> {
    /// As whole blocks.
    pub(super) fn encode(&self) -> Payload {
        let body_bytes = self.body.bytes();
        let end = FRAME_HEADER_BYTES + body_bytes;
        let mut buffer = Buffer::zeroed(end);
        self.body.encode_into(&mut buffer.as_mut_slice()[FRAME_HEADER_BYTES..end]);
        let (kind, records) = match self.body {
            Body::Snapshot(snapshot) => (KIND_SNAPSHOT, usize::from(snapshot.is_some())),
            Body::Records(records) => (KIND_RECORDS, records.len()),
        };
        let mut raw = RawFrame {
            magic: FRAME_MAGIC,
            version: U16::new(FRAME_VERSION),
            kind: U16::new(kind),
            header_checksum: U64::ZERO,
            body_checksum: U64::new(crc64(&buffer.as_slice()[FRAME_HEADER_BYTES..end])),
            cluster: U128::new(self.cluster.0),
            generation: U64::new(self.generation),
            sequence: U64::new(self.sequence),
            prepared_blocks: U32::new(self.prepared_blocks),
            body_bytes: U32::new(u32::try_from(body_bytes).expect("bounded by the limits")),
            records: U32::new(records as u32),
            reserved: U32::ZERO,
        };
        raw.header_checksum = U64::new(crc64(raw.as_bytes()));
        buffer.as_mut_slice()[..FRAME_HEADER_BYTES].copy_from_slice(raw.as_bytes());
        buffer.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            half_blocks: 20,
            cluster: ClusterId(0x0102),
            node: NodeId(0x0304),
            generation: 5,
            created_unix_s: 6,
        }
    }

    #[test]
    fn a_header_keeps_its_bytes() {
        let encoded = header().encode();
        let mut expected = b"SHEEPJNL\x01\0\0\0\x14\0\0\0".to_vec();
        expected.extend_from_slice(&0x7161_9caa_9d9c_58e4_u64.to_le_bytes());
        for number in [0x0102u128, 0x0304] {
            expected.extend_from_slice(&number.to_le_bytes());
        }
        for number in [5u64, 6, 0] {
            expected.extend_from_slice(&number.to_le_bytes());
        }
        assert_eq!(encoded.as_slice()[..HEADER_BYTES], expected[..]);
        assert_eq!(Header::decode(encoded.as_slice()), HeaderBlock::Valid(header()));
    }

    #[test]
    fn a_frame_keeps_its_bytes() {
        let body = Body::Records(vec![b"one".to_vec(), Vec::new()]);
        let cluster = ClusterId(7);
        let frame = Frame { cluster, generation: 1, sequence: 2, prepared_blocks: 9, body: &body };
        let encoded = frame.encode();
        let mut expected = b"SJNL\x01\0\x02\0".to_vec();
        expected.extend_from_slice(&0x42c0_22f2_6842_361f_u64.to_le_bytes());
        expected.extend_from_slice(&0x2b45_6ba2_bb46_1a7b_u64.to_le_bytes());
        expected.extend_from_slice(&7u128.to_le_bytes());
        expected.extend_from_slice(&1u64.to_le_bytes());
        expected.extend_from_slice(&2u64.to_le_bytes());
        for number in [9u32, 11, 2, 0] {
            expected.extend_from_slice(&number.to_le_bytes());
        }
        expected.extend_from_slice(b"\x03\0\0\0one\0\0\0\0");
        assert_eq!(encoded.as_slice()[..expected.len()], expected[..]);
        let header = FrameHeader::decode(encoded.as_slice()).expect("just written");
        assert_eq!(header.body(encoded.as_slice()), Some(body));
    }

    #[test]
    fn records_that_do_not_fill_their_body_are_no_frame() {
        let body = Body::Records(vec![b"one".to_vec(), b"two".to_vec()]);
        let cluster = ClusterId(7);
        let frame = Frame { cluster, generation: 1, sequence: 2, prepared_blocks: 9, body: &body };
        let frame = frame.encode();
        let check = |change: fn(&mut [u8]), expected: bool| {
            let mut bytes = frame.as_slice().to_vec();
            change(&mut bytes);
            sign_frame(&mut bytes);
            let found = FrameHeader::decode(&bytes).and_then(|header| header.body(&bytes));
            assert_eq!(found.is_some(), expected);
        };
        check(|_| {}, true);
        check(|bytes| bytes[FRAME_HEADER_BYTES] = 4, false);
        check(|bytes| bytes[FRAME_HEADER_BYTES + 3] = 0xff, false);
        check(|bytes| bytes[64] = 1, false);
        check(|bytes| bytes[64..68].fill(0xff), false);
        check(|bytes| bytes[60..64].fill(0xff), false);
        check(|bytes| bytes[6] = 1, false);
        check(|bytes| bytes[6] = 3, false);
        check(|bytes| bytes[4] = 2, false);
    }

    #[test]
    fn no_flipped_bit_is_taken_for_a_frame_or_header() {
        let body = Body::Snapshot(Some(vec![0x5a; 100]));
        let cluster = ClusterId(7);
        let frame = Frame { cluster, generation: 1, sequence: 2, prepared_blocks: 9, body: &body };
        let (frame, header) = (frame.encode(), header().encode());
        for bit in 0..(FRAME_HEADER_BYTES + 100) * 8 {
            let mut bytes = frame.as_slice().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = FrameHeader::decode(&bytes).and_then(|header| header.body(&bytes));
            assert_eq!(found, None, "bit {bit}");
        }
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = header.as_slice().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bytes), HeaderBlock::Bad, "bit {bit}");
        }
    }
}
