//! Words that every part of Sheepdog shares: ids, units, limits, checksums, aligned buffers, and
//! the messages between a volume's session and the disks that hold its objects, and the frames in
//! which they travel between nodes.
//!
//! It must never do I/O, read a clock, draw randomness or hold state. Its main types are
//! [`MemberRequest`] and [`Payload`]; nothing here has a life cycle.
#![forbid(unsafe_code)]

mod buffer;
pub mod calendar;
mod checksum;
mod disk;
mod ids;
pub mod limits;
mod member;
mod partition;
mod planted;
mod time;
mod units;
pub mod wire;
mod words;

pub use buffer::{Block, Buffer, Payload};
pub use checksum::{Crc32c, Crc64, block_checksum, crc32c, crc64, crc64_around, is_zero};
pub use disk::{DiskDone, DiskError, DiskOp, DiskRequest, DiskToken};
pub use ids::{
    ClusterId, ConfigurationNumber, DiskId, Epoch, Generation, Incarnation, LayerId, LineageId,
    NodeId, ObjectKey, PartitionId, Stamp, VolumeId,
};
pub use member::{
    Batch, BlockState, BlockSum, Change, LineageStamp, MemberError, MemberReply, MemberRequest,
    MemberToken, ObjectStamp, Permit, Refused, STAGED_NEVER, Under, Write,
};
pub use partition::{mix, partition_of};
#[cfg(debug_assertions)]
pub use planted::plant;
pub use planted::{Mistake, planted};
pub use time::{Duration, Time};
pub use units::{BLOCK_SIZE, BLOCKS_PER_OBJECT, BlockRange, OBJECT_SIZE, SECTOR_SIZE};
pub use words::{SIZE_UNITS, counted, size_in_words};
