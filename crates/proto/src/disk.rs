//! The seam between a store and its medium: five operations, asked for as values and answered as
//! values, so that the simulator can stand in for the kernel and tear, lose or spoil any of them.
//!
//! A store may have many operations in flight; they complete in any order. Nothing is ordered but
//! by waiting for a completion. Only a completed [`DiskRequest::Flush`] makes writes durable, and
//! only those that had completed when it was asked for.

use crate::{Buffer, Payload};

/// Chosen by the store, unique among its operations in flight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DiskToken(pub u64);

/// One operation on the medium. Offsets and lengths are multiples of the block size.
#[derive(Debug)]
pub enum DiskRequest {
    /// Fill the buffer from `offset`. Completes with the buffer.
    Read {
        /// Where to read from, in bytes.
        offset: u64,
        /// What to fill; its length is the length of the read.
        buffer: Buffer,
    },
    /// Write the payloads one after the other from `offset` on.
    Write {
        /// Where to write to, in bytes.
        offset: u64,
        /// What to write; each is a whole number of blocks.
        payloads: Vec<Payload>,
    },
    /// Make all writes that completed before durable.
    Flush,
    /// Give space back to the medium. The range reads as zeros or as before afterwards, and must
    /// be allocated again before it is written.
    Discard {
        /// Start of the range in bytes.
        offset: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// Make sure the range can be written without running out of space, growing the medium if it
    /// ends before. Content already there is kept; new space reads as zeros.
    Allocate {
        /// Start of the range in bytes.
        offset: u64,
        /// Its length in bytes.
        length: u64,
        /// Also write zeros over the range, so that later writes need no file-system journal
        /// commit. Only for ranges whose content is of no use.
        zero: bool,
    },
}

/// An operation with its token.
#[derive(Debug)]
pub struct DiskOp {
    /// Comes back in [`DiskDone`].
    pub token: DiskToken,
    /// What to do.
    pub request: DiskRequest,
}

/// The end of an operation.
#[derive(Debug)]
pub struct DiskDone {
    /// That of the [`DiskOp`].
    pub token: DiskToken,
    /// The filled buffer for a read, nothing for all others. A short read or write is an error.
    pub result: Result<Option<Buffer>, DiskError>,
}

/// Why the medium did not do it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiskError {
    /// The medium failed (EIO and all that is not named below); the number is the OS error code.
    #[error("input/output error (os error {0})")]
    Io(i32),
    /// The file system has no space left, or the limit of the file is reached. Nothing was done
    /// that matters.
    #[error("no space left on the medium")]
    NoSpace,
}
