//! Records that several frames have, as drawn.

use super::header::{FrameError, Header};
use crate::limits::{COPIES_MAX, PARTITION_BITS_MAX};
use crate::{
    BlockRange, ConfigurationNumber, Generation, LayerId, ObjectKey, PartitionId, Stamp, Under,
};
use std::mem::size_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Where an object stands in its history.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct StampRecord {
    generation: U64,
    sequence: U64,
}

/// Which object.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct KeyRecord {
    layer: U64,
    index: U32,
    zero: U32,
}

/// Which blocks of which object.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct BlocksRecord {
    layer: U64,
    index: U32,
    first: U16,
    count: U16,
}

/// Under which configuration of its partition.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct UnderRecord {
    configuration: U64,
    copies: u8,
    bits: u8,
    zero: [u8; 6],
}

const _: () = assert!(size_of::<StampRecord>() == 16 && size_of::<KeyRecord>() == 16);
const _: () = assert!(size_of::<BlocksRecord>() == 16 && size_of::<UnderRecord>() == 16);

impl From<Stamp> for StampRecord {
    fn from(stamp: Stamp) -> StampRecord {
        StampRecord { generation: stamp.generation.0.into(), sequence: stamp.sequence.into() }
    }
}

impl StampRecord {
    pub fn stamp(self) -> Stamp {
        Stamp { generation: Generation(self.generation.get()), sequence: self.sequence.get() }
    }
}

impl From<ObjectKey> for KeyRecord {
    fn from(key: ObjectKey) -> KeyRecord {
        KeyRecord { layer: key.layer.0.into(), index: key.index.into(), zero: 0.into() }
    }
}

impl KeyRecord {
    pub fn key(self, header: &Header) -> Result<ObjectKey, FrameError> {
        header.nothing(self.zero.get().into())?;
        Ok(ObjectKey { layer: LayerId(self.layer.get()), index: self.index.get() })
    }
}

impl BlocksRecord {
    pub fn of(key: ObjectKey, blocks: BlockRange) -> BlocksRecord {
        BlocksRecord {
            layer: key.layer.0.into(),
            index: key.index.into(),
            first: (blocks.first() as u16).into(),
            count: (blocks.count() as u16).into(),
        }
    }

    pub fn key(self) -> ObjectKey {
        ObjectKey { layer: LayerId(self.layer.get()), index: self.index.get() }
    }

    pub fn blocks(self, header: &Header) -> Result<BlockRange, FrameError> {
        BlockRange::new(self.first.get().into(), self.count.get().into())
            .ok_or(header.malformed("its blocks leave the object"))
    }
}

impl From<Under> for UnderRecord {
    fn from(under: Under) -> UnderRecord {
        let Under { copies, bits, number } = under;
        UnderRecord { configuration: number.0.into(), copies, bits, zero: [0; 6] }
    }
}

impl UnderRecord {
    pub fn under(self, header: &Header) -> Result<Under, FrameError> {
        let UnderRecord { configuration, copies, bits, zero } = self;
        if zero != [0; 6] {
            return Err(header.malformed("something where nothing belongs"));
        }
        let number = ConfigurationNumber(configuration.get());
        Ok(Under { copies, bits, number })
    }

    /// What there is only if a flag says so; else all of it is zero.
    pub fn maybe_under(self, header: &Header, is_there: bool) -> Result<Option<Under>, FrameError> {
        let under = self.under(header)?;
        if !is_there && under != Under::default() {
            return Err(header.malformed("something where nothing belongs"));
        }
        Ok(is_there.then_some(under))
    }
}

/// A body of fixed length.
pub(super) fn record<T: FromBytes>(body: &[u8]) -> T {
    T::read_from_bytes(body).expect("the header bounds the body")
}

/// Refuses a table that no cluster has: partitions are computed by it.
pub(super) fn vet_table(copies: u8, bits: u8) -> Result<(), &'static str> {
    match (1..=COPIES_MAX).contains(&copies) && bits <= PARTITION_BITS_MAX {
        true => Ok(()),
        false => Err("no table is like that"),
    }
}

/// Refuses partitions that 2^`bits` of them do not have.
pub(super) fn vet_partition(partition: PartitionId, bits: u8) -> Result<(), &'static str> {
    let is_there = u64::from(partition.0) < 1 << bits.min(63);
    if is_there { Ok(()) } else { Err("there are not so many partitions") }
}
