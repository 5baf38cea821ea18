//! Makes a blank medium a disk.

use crate::layout::{LOG_FIRST, Superblock};
use crate::{FormatOptions, LOG_BYTES_MIN, MediumKind, OpenError};
use proto::{
    BLOCK_SIZE, Buffer, DiskDone, DiskError, DiskOp, DiskRequest, DiskToken, Incarnation, Payload,
};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// How much is looked at, at the start and at the end, to tell a blank medium: partition tables
/// and file systems show there.
const BLANK_BYTES: u64 = 1 << 20;
/// The log is this part of the disk unless its length is given, within bounds.
const LOG_DIVISOR: u64 = 64;
const LOG_BYTES_LEAST: u64 = 8 << 20;
const LOG_BYTES_MOST: u64 = 128 << 20;
/// The log of a disk that may take all its file system has.
const LOG_BYTES_UNLIMITED: u64 = 64 << 20;
/// Least space for data, maps and checkpoint, in bytes.
const SPACE_BYTES_MIN: u64 = 3 << 20;

/// How far format is.
enum Step {
    /// Reading what must be blank: how many reads are to come, and where each began.
    Looking(usize),
    /// Allocating and zeroing superblocks and log.
    Allocating,
    /// Flushing that.
    FlushingLog,
    /// Writing the superblock to this block, the first of the two that get it.
    Writing(u64),
    Flushing(u64),
    Done,
}

/// Makes a blank medium a disk: looks whether it is blank, allocates and zeroes the log, writes
/// the superblocks last, so that a crash on the way leaves a medium that is still blank.
pub struct Format {
    options: FormatOptions,
    log_bytes: u64,
    step: Step,
    /// Where the read with each token began; token n is entry n.
    reads: Vec<u64>,
}

impl Format {
    /// Begins. The operations to do are added to `operations`. Options that cannot be are refused
    /// at once.
    pub fn new(options: FormatOptions, operations: &mut Vec<DiskOp>) -> Result<Format, OpenError> {
        let log_bytes = log_bytes(&options)?;
        let length = options.medium_bytes / BLOCK * BLOCK;
        let head = length.min(BLANK_BYTES);
        let tail = length.saturating_sub(BLANK_BYTES).max(head);
        let mut format = Format { options, log_bytes, step: Step::Done, reads: vec![] };
        if length == 0 {
            format.allocate(operations);
            return Ok(format);
        }
        for (start, end) in [(0, head), (tail, length)] {
            if start < end {
                let buffer = Buffer::stale((end - start) as usize);
                format.reads.push(start);
                let token = DiskToken(format.reads.len() as u64 - 1);
                let request = DiskRequest::Read { offset: start, buffer };
                operations.push(DiskOp { token, request });
            }
        }
        format.step = Step::Looking(format.reads.len());
        Ok(format)
    }

    /// Takes the end of an operation. Returns the outcome once there is one.
    pub fn handle(
        &mut self,
        done: DiskDone,
        operations: &mut Vec<DiskOp>,
    ) -> Option<Result<(), OpenError>> {
        let buffer = match done.result {
            Ok(buffer) => buffer,
            Err(error) => {
                let full = error == DiskError::NoSpace;
                self.step = Step::Done;
                return Some(Err(match full {
                    true => OpenError::NoRoom { log_bytes: self.log_bytes },
                    false => OpenError::Medium(error),
                }));
            }
        };
        match self.step {
            Step::Looking(left) => {
                let start = self.reads.get(done.token.0 as usize).copied().unwrap_or(0);
                let bytes = buffer.as_ref().map_or(&[][..], Buffer::as_slice);
                if let Some(at) = bytes.iter().position(|&byte| byte != 0) {
                    self.step = Step::Done;
                    return Some(Err(OpenError::NotBlank { offset: start + at as u64 }));
                }
                self.step = Step::Looking(left - 1);
                if left == 1 {
                    self.allocate(operations);
                }
                None
            }
            Step::Allocating => {
                self.submit(Step::FlushingLog, DiskRequest::Flush, operations);
                None
            }
            Step::FlushingLog => {
                self.write_superblock(0, operations);
                None
            }
            Step::Writing(address) => {
                self.submit(Step::Flushing(address), DiskRequest::Flush, operations);
                None
            }
            Step::Flushing(0) => {
                self.write_superblock(1, operations);
                None
            }
            Step::Flushing(_) => {
                self.step = Step::Done;
                Some(Ok(()))
            }
            Step::Done => None,
        }
    }

    fn submit(&mut self, step: Step, request: DiskRequest, operations: &mut Vec<DiskOp>) {
        self.step = step;
        operations.push(DiskOp { token: DiskToken(u64::MAX), request });
    }

    fn allocate(&mut self, operations: &mut Vec<DiskOp>) {
        let length = LOG_FIRST * BLOCK + self.log_bytes;
        let request = DiskRequest::Allocate { offset: 0, length, zero: true };
        self.submit(Step::Allocating, request, operations);
    }

    fn write_superblock(&mut self, address: u64, operations: &mut Vec<DiskOp>) {
        let payloads: Vec<Payload> = vec![self.superblock().encode().freeze()];
        let request = DiskRequest::Write { offset: address * BLOCK, payloads };
        self.submit(Step::Writing(address), request, operations);
    }

    fn superblock(&self) -> Superblock {
        let log_blocks = self.log_bytes / BLOCK;
        Superblock {
            sequence: 1,
            identity: self.options.identity,
            incarnation: Incarnation(0),
            kind: self.options.kind,
            created_unix_s: self.options.created_unix_s,
            log_blocks,
            space_first: LOG_FIRST + log_blocks,
            limit_blocks: self.options.limit_bytes.map_or(0, |limit| limit / BLOCK),
            replay_position: 0,
            replay_sequence: 1,
            replay_lsn: 1,
            replay_incarnation: Incarnation(0),
            durable_lsn: 0,
            root: None,
            agreed_incarnation: Incarnation(0),
            boot: [0; 16],
            lossless_from: Incarnation(0),
        }
    }
}

/// The length of the log, or why the disk cannot be made.
fn log_bytes(options: &FormatOptions) -> Result<u64, OpenError> {
    let bytes = match (options.kind, options.limit_bytes) {
        (MediumKind::File, limit) => limit,
        (MediumKind::Device, limit) => Some(limit.unwrap_or(u64::MAX).min(options.medium_bytes)),
    };
    let log_bytes = options.log_bytes.unwrap_or_else(|| {
        bytes.map_or(LOG_BYTES_UNLIMITED, |bytes| {
            (bytes / LOG_DIVISOR).clamp(LOG_BYTES_LEAST, LOG_BYTES_MOST)
        })
    });
    let log_bytes = log_bytes / BLOCK * BLOCK;
    if log_bytes < LOG_BYTES_MIN {
        let least = LOG_BYTES_MIN >> 10;
        return Err(OpenError::Refused(format!(
            "the log needs at least {least} KiB: make it larger"
        )));
    }
    let needed = LOG_FIRST * BLOCK + log_bytes + SPACE_BYTES_MIN;
    match bytes.filter(|&bytes| bytes < needed) {
        None => Ok(log_bytes),
        Some(bytes) => Err(OpenError::Refused(format!(
            "the disk would have {bytes} bytes but needs at least {needed}: give it more room"
        ))),
    }
}
