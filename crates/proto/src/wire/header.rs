//! The fixed header of every frame, and the bounds of each kind.

use super::{copying, reply};
use crate::limits::{
    MEMBER_REQUEST_BLOCKS_MAX, MEMBER_ROWS_MAX, WIRE_BODY_BYTES_MAX, WIRE_CONTROL_BYTES_MAX,
    WIRE_HELLO_BYTES_MAX, WIRE_PROMISES_MAX, WIRE_TEXT_BYTES_MAX,
};
use crate::{BLOCK_SIZE, BLOCKS_PER_OBJECT, Crc32c, Payload, crc32c};
use std::mem::size_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of the header, in bytes.
pub const HEADER_BYTES: usize = 64;
/// First bytes of every frame.
const MAGIC: [u8; 2] = *b"Sd";
/// Longest payload of blocks, in bytes.
const BLOCKS_BYTES_MAX: usize = MEMBER_REQUEST_BLOCKS_MAX as usize * BLOCK_SIZE;

/// As drawn.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct Layout {
    magic: [u8; 2],
    version: u8,
    kind: u8,
    flags: U16,
    body_bytes: U16,
    header_checksum: U32,
    rest_checksum: U32,
    number: U32,
    payload_bytes: U32,
    id: U64,
    words: [u8; 32],
}

const _: () = assert!(size_of::<Layout>() == HEADER_BYTES);

/// Why a frame is refused. The stream cannot be trusted after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// It does not begin like a frame.
    #[error("what came is no frame of Sheepdog; see which program speaks at that address")]
    Magic,
    /// Another version than was agreed on.
    #[error("a frame has version {found} where {expected} was agreed on; report this bug")]
    Version {
        /// That of the frame.
        found: u8,
        /// That of the connection.
        expected: u8,
    },
    /// The header's checksum, or its number, does not fit.
    #[error("the header of a frame is damaged, or not the one that should follow; see the network")]
    Header,
    /// A kind that this version does not have.
    #[error("a frame has the unknown kind {0}; report this bug")]
    Kind(u8),
    /// A length beyond the bounds of its kind.
    #[error("a frame of kind {kind:?} has {bytes} bytes, as no such frame may; report this bug")]
    Length {
        /// Its kind.
        kind: Kind,
        /// The length that does not fit.
        bytes: usize,
    },
    /// The checksum of body and payload does not fit.
    #[error("the content of a frame is damaged; see the network")]
    Rest,
    /// A field has a value that makes no sense.
    #[error("a frame of kind {0:?} makes no sense ({1}); report this bug")]
    Malformed(Kind, &'static str),
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            /// Every kind, by number.
            pub const ALL: &[Kind] = &[$(Kind::$name,)*];

            fn from_number(number: u8) -> Option<Kind> {
                match number {
                    $($number => Some(Kind::$name),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// Who speaks, and what it can.
    Hello = 1,
    /// The connection ends; a sentence why.
    Goodbye = 2,
    /// The sender lives, and asks for promises.
    Beat = 3,
    /// How long disks will honour no newer fence.
    Promise = 4,
    /// How much may be in flight, in all.
    Credit = 5,
    /// A message whose content frames do not know.
    Control = 6,
    /// [`crate::MemberRequest::Fence`]
    Fence = 16,
    /// [`crate::MemberRequest::Settle`]
    Settle = 17,
    /// [`crate::MemberRequest::Stamp`]
    Stamp = 18,
    /// [`crate::MemberRequest::OpenLayer`]
    OpenLayer = 19,
    /// [`crate::MemberRequest::Write`] of [`crate::Change::Data`]
    WriteData = 20,
    /// [`crate::MemberRequest::Write`] of [`crate::Change::Zero`]
    WriteZero = 21,
    /// [`crate::MemberRequest::Write`] of [`crate::Change::Absent`]
    WriteAbsent = 22,
    /// [`crate::MemberRequest::Read`]
    Read = 23,
    /// [`crate::MemberRequest::Map`]
    Map = 24,
    /// [`crate::MemberRequest::Difference`]
    Difference = 25,
    /// [`crate::MemberRequest::Reclaimable`]
    Reclaimable = 26,
    /// [`crate::MemberRequest::Flush`]
    Flush = 27,
    /// [`crate::MemberRequest::Mark`]
    Mark = 28,
    /// [`crate::MemberRequest::Confirm`]
    Confirm = 29,
    /// [`crate::MemberRequest::Lineages`]
    Lineages = 30,
    /// [`crate::MemberRequest::Survey`]
    Survey = 31,
    /// [`crate::MemberRequest::Checksums`]
    Checksums = 32,
    /// [`crate::MemberRequest::Stage`] of [`crate::Change::Data`]
    StageData = 33,
    /// [`crate::MemberRequest::Stage`] of [`crate::Change::Zero`]
    StageZero = 34,
    /// [`crate::MemberRequest::Stage`] of [`crate::Change::Absent`]
    StageAbsent = 35,
    /// [`crate::MemberRequest::Adopt`]
    Adopt = 36,
    /// [`crate::MemberRequest::Retract`]
    Retract = 37,
    /// [`crate::MemberRequest::Refuse`]
    Refuse = 38,
    /// [`crate::MemberRequest::Install`]
    Install = 39,
    /// [`crate::MemberReply::Fenced`]
    Fenced = 64,
    /// [`crate::MemberReply::Done`]
    Done = 65,
    /// [`crate::MemberReply::Stamp`]
    ObjectStamp = 66,
    /// [`crate::MemberReply::Written`]
    Written = 67,
    /// [`crate::MemberReply::Data`]
    Data = 68,
    /// [`crate::MemberReply::Map`]
    Blocks = 69,
    /// [`crate::MemberReply::Difference`]
    Differences = 70,
    /// [`crate::MemberReply::Reclaimable`]
    Reclaimed = 71,
    /// [`crate::MemberReply::Flushed`]
    Flushed = 72,
    /// [`crate::MemberReply::Confirmed`]
    Confirmed = 73,
    /// [`crate::MemberReply::Lineages`]
    LineageStamps = 74,
    /// [`crate::MemberReply::Survey`]
    Surveyed = 75,
    /// [`crate::MemberReply::Checksums`]
    BlockSums = 76,
    /// [`crate::MemberReply::Refused`]
    Refused = 77,
    /// [`crate::MemberReply::Installed`]
    Installed = 78,
    /// [`crate::MemberError`]
    Error = 79,
}

impl Kind {
    /// Whether it is a request to a disk.
    pub fn is_request(self) -> bool {
        (Kind::Fence..=Kind::Install).contains(&self)
    }

    /// Whether it is the answer of a disk.
    pub fn is_reply(self) -> bool {
        (Kind::Fenced..=Kind::Error).contains(&self)
    }

    /// Whether it is a request that brings content of blocks.
    pub fn brings_blocks(self) -> bool {
        matches!(self, Kind::WriteData | Kind::StageData)
    }

    /// Shortest and longest body, and of how many bytes it is a multiple.
    fn body_bounds(self) -> (usize, usize, usize) {
        let exactly = |bytes: usize| (bytes, bytes, 1);
        let rows = |bytes: usize| (0, MEMBER_ROWS_MAX * bytes, bytes);
        match self {
            Kind::Hello => (super::hello::BODY_BYTES, WIRE_HELLO_BYTES_MAX, 1),
            Kind::Goodbye | Kind::Error => (0, WIRE_TEXT_BYTES_MAX, 1),
            Kind::Promise => (0, WIRE_PROMISES_MAX * 32, 32),
            Kind::Confirm => exactly(8),
            Kind::Fence | Kind::Stamp | Kind::OpenLayer | Kind::Reclaimable => exactly(16),
            Kind::Flush | Kind::Checksums => exactly(16),
            Kind::Mark => exactly(24),
            Kind::Read | Kind::Map | Kind::Retract => exactly(32),
            Kind::StageData | Kind::StageZero | Kind::StageAbsent => exactly(32),
            Kind::Difference => exactly(40),
            Kind::Settle => exactly(48),
            Kind::Adopt => exactly(56),
            Kind::WriteData | Kind::WriteZero | Kind::WriteAbsent => exactly(72),
            Kind::Survey => (copying::SURVEY_BYTES.0, copying::SURVEY_BYTES.1, 4),
            Kind::Refuse => (copying::REFUSE_BYTES.0, copying::REFUSE_BYTES.1, 4),
            Kind::Install => (copying::INSTALL_BYTES.0, copying::INSTALL_BYTES.1, 4),
            Kind::ObjectStamp => exactly(reply::OBJECT_ROW_BYTES),
            Kind::Fenced => rows(reply::OBJECT_ROW_BYTES),
            Kind::Confirmed => rows(reply::REFUSED_ROW_BYTES),
            Kind::LineageStamps => rows(reply::LINEAGE_ROW_BYTES),
            Kind::Surveyed => rows(reply::SURVEY_ROW_BYTES),
            Kind::Data => (0, MEMBER_REQUEST_BLOCKS_MAX as usize * 4, 4),
            Kind::Blocks | Kind::Differences => (4, BLOCKS_PER_OBJECT as usize * 4, 4),
            Kind::BlockSums => {
                let row = reply::SUM_ROW_BYTES;
                (row, BLOCKS_PER_OBJECT as usize * row, row)
            }
            Kind::Beat | Kind::Credit | Kind::Control | Kind::Lineages => exactly(0),
            Kind::Done | Kind::Written | Kind::Reclaimed | Kind::Flushed => exactly(0),
            Kind::Refused | Kind::Installed => exactly(0),
        }
    }

    /// Shortest and longest payload, and of how many bytes it is a multiple.
    fn payload_bounds(self) -> (usize, usize, usize) {
        match self {
            Kind::WriteData | Kind::StageData | Kind::Data => {
                (BLOCK_SIZE, BLOCKS_BYTES_MAX, BLOCK_SIZE)
            }
            Kind::Control => (1, WIRE_CONTROL_BYTES_MAX, 1),
            _ => (0, 0, 1),
        }
    }
}

/// What a frame carries of its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seal {
    /// The version agreed on; 1 in a hello.
    pub version: u8,
    /// That of the connection ([`super::connection_key`]); 0 in a hello.
    pub key: u32,
    /// Of this frame on this connection in this direction, from 0.
    pub number: u32,
}

impl Seal {
    /// That of a hello, and of a goodbye in its place.
    pub const HELLO: Seal = Seal { version: 1, key: 0, number: 0 };

    /// That of the next frame.
    pub fn next(self) -> Seal {
        Seal { number: self.number.wrapping_add(1), ..self }
    }
}

/// A header whose checksum, version, number and lengths were found right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// By kind.
    pub flags: u16,
    /// Length of the body, in bytes, within the bounds of the kind.
    pub body_bytes: usize,
    /// Length of the payload, in bytes, within the bounds of the kind.
    pub payload_bytes: usize,
    /// CRC-32C of body and payload.
    pub rest_checksum: u32,
    /// Of the request or beat.
    pub id: u64,
    /// By kind.
    pub(super) words: [u8; 32],
}

impl Header {
    /// Takes a header apart. Nothing of it is to be used before.
    pub fn parse(bytes: &[u8; HEADER_BYTES], seal: Seal) -> Result<Header, FrameError> {
        let Layout { magic, version, kind, .. } = *layout(bytes);
        if magic != MAGIC {
            return Err(FrameError::Magic);
        }
        if version != seal.version {
            return Err(FrameError::Version { found: version, expected: seal.version });
        }
        let layout = layout(bytes);
        let number = layout.number.get();
        if header_checksum(bytes) ^ seal.key != layout.header_checksum.get()
            || number != seal.number
        {
            return Err(FrameError::Header);
        }
        let kind = Kind::from_number(kind).ok_or(FrameError::Kind(kind))?;
        let bounded = |bytes: usize, (min, max, step): (usize, usize, usize)| {
            let fits = (min..=max).contains(&bytes) && bytes.is_multiple_of(step);
            if fits { Ok(bytes) } else { Err(FrameError::Length { kind, bytes }) }
        };
        Ok(Header {
            kind,
            flags: layout.flags.get(),
            body_bytes: bounded(usize::from(layout.body_bytes.get()), kind.body_bounds())?,
            payload_bytes: bounded(layout.payload_bytes.get() as usize, kind.payload_bounds())?,
            rest_checksum: layout.rest_checksum.get(),
            id: layout.id.get(),
            words: layout.words,
        })
    }

    /// Checks body and payload, which have the lengths that the header says.
    pub fn verify(&self, body: &[u8], payload: &[u8]) -> Result<(), FrameError> {
        assert_eq!((body.len(), payload.len()), (self.body_bytes, self.payload_bytes));
        if rest_checksum(body, [payload]) != self.rest_checksum {
            return Err(FrameError::Rest);
        }
        Ok(())
    }

    /// The words as a record.
    pub(super) fn words<T: FromBytes>(&self) -> T {
        T::read_from_bytes(&self.words).expect("words are 32 bytes")
    }

    /// Refuses the frame for this reason.
    pub(super) fn malformed(&self, why: &'static str) -> FrameError {
        FrameError::Malformed(self.kind, why)
    }

    /// Refuses flags that the kind does not have.
    pub(super) fn only_flags(&self, known: u16) -> Result<(), FrameError> {
        if self.flags & !known == 0 { Ok(()) } else { Err(self.malformed("unknown flags")) }
    }

    /// Refuses a number where there is to be none.
    pub(super) fn nothing(&self, number: u64) -> Result<(), FrameError> {
        match number {
            0 => Ok(()),
            _ => Err(self.malformed("something where nothing belongs")),
        }
    }

    /// Refuses words and an id where there are none.
    pub(super) fn no_words(&self) -> Result<(), FrameError> {
        let empty = self.words == [0; 32] && self.id == 0;
        if empty { Ok(()) } else { Err(self.malformed("something where nothing belongs")) }
    }
}

fn layout(bytes: &[u8; HEADER_BYTES]) -> &Layout {
    Layout::ref_from_bytes(bytes).expect("it has the length of one")
}

/// CRC-32C of a header with its checksum taken as zero.
fn header_checksum(bytes: &[u8; HEADER_BYTES]) -> u32 {
    let mut copy = *bytes;
    copy[8..12].fill(0);
    crc32c(&copy)
}

/// CRC-32C of body and payload.
fn rest_checksum<'a>(body: &[u8], pieces: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut digest = Crc32c::default();
    digest.update(body);
    pieces.into_iter().for_each(|piece| digest.update(piece));
    digest.finish()
}

/// A frame before it is sealed.
pub(super) struct Frame<'a> {
    pub kind: Kind,
    pub flags: u16,
    pub id: u64,
    pub words: [u8; 32],
    pub body: &'a [u8],
    pub payload: &'a [Payload],
}

impl Frame<'_> {
    /// Appends header and body; the payload is to follow them.
    ///
    /// # Panics
    /// If a length is beyond the bounds of the kind: a bug of this process.
    pub fn put(&self, out: &mut Vec<u8>, seal: Seal) {
        let payload_bytes: usize = self.payload.iter().map(Payload::len).sum();
        for (bytes, (min, max, step)) in [
            (self.body.len(), self.kind.body_bounds()),
            (payload_bytes, self.kind.payload_bounds()),
        ] {
            let fits = (min..=max).contains(&bytes) && bytes.is_multiple_of(step);
            assert!(fits, "a frame of kind {:?} has {bytes} bytes", self.kind);
        }
        let pieces = self.payload.iter().map(Payload::as_slice);
        let mut layout = Layout {
            magic: MAGIC,
            version: seal.version,
            kind: self.kind as u8,
            flags: self.flags.into(),
            body_bytes: (self.body.len() as u16).into(),
            header_checksum: 0.into(),
            rest_checksum: rest_checksum(self.body, pieces).into(),
            number: seal.number.into(),
            payload_bytes: (payload_bytes as u32).into(),
            id: self.id.into(),
            words: self.words,
        };
        layout.header_checksum = (crc32c(layout.as_bytes()) ^ seal.key).into();
        out.extend_from_slice(layout.as_bytes());
        out.extend_from_slice(self.body);
    }
}

const _: () = assert!(BLOCKS_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(WIRE_BODY_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(BLOCKS_PER_OBJECT as usize * 4 <= WIRE_BODY_BYTES_MAX);
