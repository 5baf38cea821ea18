//! The first frame of each side: who it is, what it speaks, what it grants.

use super::header::{Frame, FrameError, Header, Kind, Seal};
use crate::{ClusterId, NodeId, crc32c};
use std::mem::size_of;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version of the wire that this code speaks.
pub const VERSION: u8 = 1;
/// Length of the body that every version has, in bytes.
pub(super) const BODY_BYTES: usize = 128;
const MAGIC: [u8; 8] = *b"SHEEPDOG";

/// As drawn.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Layout {
    magic: [u8; 8],
    version_min: U16,
    version_max: U16,
    zero: [u8; 4],
    features: U64,
    cluster: U128,
    node: U128,
    peer: U128,
    instance: U64,
    nonce: U64,
    requests: U32,
    bytes: U32,
    era: U64,
    era_index: U64,
    era_term: U64,
    rest: [u8; 8],
}

const _: () = assert!(size_of::<Layout>() == BODY_BYTES);

/// A life of the agreed log: each recovery from a lost majority begins another one, in which
/// members of earlier ones, or of another that began beside it, have no part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Era {
    /// Its name: the count of recoveries and, below it, 32 bits that tell it from others of the
    /// same count. 0: the cluster was never recovered, or the node does not know of eras.
    pub number: u64,
    /// The last entry of the era before that is in it.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
}

impl Era {
    /// That of a node that joins and knows nothing yet: it takes part in whichever it finds.
    pub const ANY: Era = Era { number: u64::MAX, index: 0, term: 0 };

    /// How many recoveries there were.
    pub fn count(&self) -> u64 {
        self.number >> 32
    }

    /// Whether members of the two may talk.
    pub fn agrees_with(&self, other: &Era) -> bool {
        self.number == other.number || [self.number, other.number].contains(&Era::ANY.number)
    }
}

/// Who a process is for others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Which node of it.
    pub node: NodeId,
    /// Drawn when the process started: another one, another process.
    pub instance: u64,
}

/// What each side says first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Who speaks.
    pub identity: Identity,
    /// Whom it believes to speak to.
    pub peer: NodeId,
    /// Lowest version of the wire it speaks.
    pub version_min: u16,
    /// Highest version of the wire it speaks.
    pub version_max: u16,
    /// What else it can, one bit each.
    pub features: u64,
    /// Drawn for this connection.
    pub nonce: u64,
    /// Requests it lets the other side have in flight.
    pub requests: u32,
    /// Bytes it lets the other side have in flight.
    pub bytes: u32,
    /// The life of the agreed log that it has a part in.
    pub era: Era,
}

impl Hello {
    /// Appends the frame.
    pub fn put(&self, out: &mut Vec<u8>) {
        let body = Layout {
            magic: MAGIC,
            version_min: self.version_min.into(),
            version_max: self.version_max.into(),
            zero: [0; 4],
            features: self.features.into(),
            cluster: self.identity.cluster.0.into(),
            node: self.identity.node.0.into(),
            peer: self.peer.0.into(),
            instance: self.identity.instance.into(),
            nonce: self.nonce.into(),
            requests: self.requests.into(),
            bytes: self.bytes.into(),
            era: self.era.number.into(),
            era_index: self.era.index.into(),
            era_term: self.era.term.into(),
            rest: [0; 8],
        };
        let body = body.as_bytes();
        let frame =
            Frame { kind: Kind::Hello, flags: 0, id: 0, words: [0; 32], body, payload: &[] };
        frame.put(out, Seal::HELLO);
    }

    /// Gives a verified frame its meaning. What later versions add is not looked at, so zeros that
    /// may mean something then are not insisted on.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Hello, FrameError> {
        header.only_flags(0)?;
        header.no_words()?;
        let (layout, _) = Layout::ref_from_prefix(body)
            .map_err(|_| header.malformed("it is shorter than any hello"))?;
        if layout.magic != MAGIC {
            return Err(FrameError::Magic);
        }
        let hello = Hello {
            identity: Identity {
                cluster: ClusterId(layout.cluster.get()),
                node: NodeId(layout.node.get()),
                instance: layout.instance.get(),
            },
            peer: NodeId(layout.peer.get()),
            version_min: layout.version_min.get(),
            version_max: layout.version_max.get(),
            features: layout.features.get(),
            nonce: layout.nonce.get(),
            requests: layout.requests.get(),
            bytes: layout.bytes.get(),
            era: Era {
                number: layout.era.get(),
                index: layout.era_index.get(),
                term: layout.era_term.get(),
            },
        };
        if hello.version_min > hello.version_max || hello.version_min == 0 {
            return Err(header.malformed("its versions are no range"));
        }
        Ok(hello)
    }
}

/// The key of a connection: what its frames are told from those of another by.
pub fn connection_key(dialler_nonce: u64, listener_nonce: u64) -> u32 {
    let mut nonces = [0; 16];
    nonces[..8].copy_from_slice(&dialler_nonce.to_le_bytes());
    nonces[8..].copy_from_slice(&listener_nonce.to_le_bytes());
    crc32c(&nonces)
}
