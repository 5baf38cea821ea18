//! One operation of a store as a row of system calls, whoever performs them: short reads and
//! writes go on, zeroing goes in chunks, and error numbers become [`DiskError`]s here.

use super::medium::Medium;
use proto::{
    BLOCK_SIZE, Buffer, DiskDone, DiskError, DiskOp, DiskRequest, DiskToken, Payload,
    limits::DISK_STEP_BYTES_MAX,
};
use rustix::{
    fs::{FallocateFlags, fallocate, fdatasync},
    io::{pread, pwrite, pwritev},
};
use std::{io::IoSlice, sync::OnceLock};
use store::MediumKind;

/// How often a system call that was interrupted, or moved less than a block, is tried again.
const RETRIES_MAX: u32 = 64;
/// How much is zeroed with one system call.
const ZEROS_BYTES: usize = 1 << 20;
/// How many pieces one vectored system call takes: the kernel's own bound.
pub const PIECES_MAX: usize = 1024;

/// One operation on its way. It owns its memory until it is done.
#[derive(Debug)]
pub struct Operation {
    token: DiskToken,
    work: Work,
    retries: u32,
}

#[derive(Debug)]
enum Work {
    /// `done` bytes are there, a whole number of blocks.
    Read {
        offset: u64,
        buffer: Buffer,
        done: usize,
    },
    /// `done` bytes of the `length` are written, a whole number of blocks.
    Write {
        offset: u64,
        payloads: Vec<Payload>,
        length: usize,
        done: usize,
    },
    Flush,
    Discard {
        offset: u64,
        length: u64,
        kind: MediumKind,
    },
    /// First `next` is `None` until the space is there, then zeros are written from `next` on.
    Allocate {
        offset: u64,
        length: u64,
        zero: bool,
        next: Option<u64>,
    },
}

/// The next system call of an operation.
#[derive(Debug)]
pub enum Step<'a> {
    /// Read into the slice, which is aligned and whole blocks.
    Read { offset: u64, into: &'a mut [u8] },
    /// Write the slices one after the other; each is aligned and whole blocks.
    Write { offset: u64, from: Pieces<'a> },
    /// Make written data durable.
    Sync,
    /// Allocate space in a file.
    Allocate { offset: u64, length: u64 },
    /// Give space of a file back.
    Punch { offset: u64, length: u64 },
    /// Give space of a device back. There is no asynchronous form of it.
    DiscardDevice { offset: u64, length: u64 },
}

/// What a write takes from: usually one piece, which then costs no allocation.
#[derive(Debug)]
pub enum Pieces<'a> {
    /// One slice.
    One(&'a [u8]),
    /// At most [`PIECES_MAX`] slices.
    Many(Vec<IoSlice<'a>>),
}

/// How far a step brought its operation.
enum Advance {
    /// To its end.
    Done,
    /// Some way.
    More,
    /// Nowhere.
    Nothing,
}

impl Operation {
    /// The operation that performs `op` on `medium`, or its end where nothing is to be done.
    pub fn new(op: DiskOp, medium: &Medium) -> Result<Operation, DiskDone> {
        let DiskOp { token, request } = op;
        let work = match request {
            DiskRequest::Read { offset, buffer } => {
                assert_aligned(offset, buffer.as_slice());
                Work::Read { offset, buffer, done: 0 }
            }
            DiskRequest::Write { offset, payloads } => {
                for payload in &payloads {
                    assert_aligned(offset, payload.as_slice());
                }
                let length = payloads.iter().map(Payload::len).sum();
                Work::Write { offset, payloads, length, done: 0 }
            }
            DiskRequest::Flush => Work::Flush,
            DiskRequest::Discard { offset, length } => {
                Work::Discard { offset, length, kind: medium.kind() }
            }
            DiskRequest::Allocate { offset, length, zero } => match medium.kind() {
                MediumKind::File => Work::Allocate { offset, length, zero, next: None },
                MediumKind::Device => {
                    // A device has all its space, and none beyond its end.
                    let end = offset.checked_add(length);
                    if end.is_none_or(|end| end > medium.device_bytes()) {
                        return Err(DiskDone { token, result: Err(DiskError::NoSpace) });
                    }
                    Work::Allocate { offset, length, zero, next: Some(offset) }
                }
            },
        };
        let operation = Operation { token, work, retries: 0 };
        if operation.is_empty() { Err(operation.end(Ok(()))) } else { Ok(operation) }
    }

    /// The next system call. Only for operations that are not done.
    pub fn step(&mut self) -> Step<'_> {
        match &mut self.work {
            Work::Read { offset, buffer, done } => {
                let end = buffer.len().min(*done + DISK_STEP_BYTES_MAX);
                Step::Read {
                    offset: *offset + *done as u64,
                    into: &mut buffer.as_mut_slice()[*done..end],
                }
            }
            Work::Write { offset, payloads, done, .. } => {
                Step::Write { offset: *offset + *done as u64, from: pieces(payloads, *done) }
            }
            Work::Flush => Step::Sync,
            Work::Discard { offset, length, kind: MediumKind::File } => {
                Step::Punch { offset: *offset, length: *length }
            }
            Work::Discard { offset, length, kind: MediumKind::Device } => {
                Step::DiscardDevice { offset: *offset, length: *length }
            }
            Work::Allocate { offset, length, next: None, .. } => {
                Step::Allocate { offset: *offset, length: *length }
            }
            Work::Allocate { offset, length, next: Some(next), .. } => {
                let zeros = zeros();
                let left = (*offset + *length - *next).min(zeros.len() as u64) as usize;
                Step::Write { offset: *next, from: Pieces::One(&zeros[..left]) }
            }
        }
    }

    /// Takes the result of the last step: bytes moved, or a negative error number, as the kernel
    /// gives it. Returns the operation if there is more to do, or its end.
    pub fn handle_result(mut self: Box<Self>, result: i32) -> Result<Box<Self>, DiskDone> {
        if result < 0 {
            return self.handle_error(-result);
        }
        match self.advance(result as usize) {
            Advance::Done => Err(self.end(Ok(()))),
            Advance::More => Ok(self),
            Advance::Nothing if self.retry() => Ok(self),
            // Again and again no bytes: the medium ends before the operation does.
            Advance::Nothing => Err(self.end(Err(DiskError::Io(libc::EIO)))),
        }
    }

    fn handle_error(mut self: Box<Self>, errno: i32) -> Result<Box<Self>, DiskDone> {
        let interrupted = errno == libc::EINTR || errno == libc::EAGAIN;
        // A failed flush may have dropped what it was to write: it is never tried again.
        if interrupted && !matches!(self.work, Work::Flush) && self.retry() {
            return Ok(self);
        }
        let refused = errno == libc::EOPNOTSUPP || errno == libc::ENOTTY;
        if refused && matches!(self.work, Work::Discard { .. }) {
            // The medium cannot give space back: nothing is promised about the range then.
            return Err(self.end(Ok(())));
        }
        Err(self.end(Err(error_of(errno))))
    }

    /// Counts what a successful step did.
    fn advance(&mut self, bytes: usize) -> Advance {
        // Less than a block cannot be gone on from with aligned memory: it is done again.
        let whole = bytes - bytes % BLOCK_SIZE;
        let (moved, left) = match &mut self.work {
            Work::Flush | Work::Discard { .. } => return Advance::Done,
            Work::Read { buffer, done, .. } => {
                *done += whole;
                (whole, (buffer.len() - *done) as u64)
            }
            Work::Write { length, done, .. } => {
                *done += whole;
                (whole, (*length - *done) as u64)
            }
            Work::Allocate { offset, length, zero, next } => match next {
                None if !*zero => return Advance::Done,
                None => {
                    *next = Some(*offset);
                    return Advance::More;
                }
                Some(next) => {
                    *next += whole as u64;
                    (whole, *offset + *length - *next)
                }
            },
        };
        match (moved, left) {
            (_, 0) => Advance::Done,
            (0, _) => Advance::Nothing,
            _ => Advance::More,
        }
    }

    /// Whether there is nothing to do from the start.
    fn is_empty(&self) -> bool {
        match &self.work {
            Work::Flush => false,
            Work::Read { buffer, .. } => buffer.is_empty(),
            Work::Write { length, .. } => *length == 0,
            Work::Discard { length, .. } => *length == 0,
            Work::Allocate { length, zero, next, .. } => *length == 0 || (next.is_some() && !*zero),
        }
    }

    /// Whether it may be tried once more.
    fn retry(&mut self) -> bool {
        self.retries += 1;
        self.retries < RETRIES_MAX
    }

    fn end(self, result: Result<(), DiskError>) -> DiskDone {
        let buffer = match self.work {
            Work::Read { buffer, .. } => Some(buffer),
            _ => None,
        };
        DiskDone { token: self.token, result: result.map(|()| buffer) }
    }

    /// Performs the next step in this thread; the result is the kernel's.
    pub fn perform(&mut self, medium: &Medium) -> i32 {
        let file = medium.file();
        let moved = match self.step() {
            Step::Read { offset, into } => pread(file, into, offset),
            Step::Write { offset, from: Pieces::One(slice) } => pwrite(file, slice, offset),
            Step::Write { offset, from: Pieces::Many(slices) } => pwritev(file, &slices, offset),
            Step::Sync => fdatasync(file).map(|()| 0),
            Step::Allocate { offset, length } => {
                fallocate(file, FallocateFlags::empty(), offset, length).map(|()| 0)
            }
            Step::Punch { offset, length } => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(file, flags, offset, length).map(|()| 0)
            }
            Step::DiscardDevice { offset, length } => {
                super::device::discard(file, offset, length).map(|()| 0)
            }
        };
        match moved {
            Ok(bytes) => i32::try_from(bytes).expect("a step moves less than 2 GiB"),
            Err(errno) => -errno.raw_os_error(),
        }
    }
}

/// The pieces of a write that are left after `done` bytes, as many as one step takes.
fn pieces(payloads: &[Payload], done: usize) -> Pieces<'_> {
    if let [payload] = payloads {
        let end = payload.len().min(done + DISK_STEP_BYTES_MAX);
        return Pieces::One(&payload.as_slice()[done..end]);
    }
    let (mut skip, mut room) = (done, DISK_STEP_BYTES_MAX);
    let mut slices = Vec::with_capacity(payloads.len().min(PIECES_MAX));
    for payload in payloads {
        if skip >= payload.len() {
            skip -= payload.len();
            continue;
        }
        if slices.len() == PIECES_MAX || room == 0 {
            break;
        }
        let slice = &payload.as_slice()[skip..];
        let slice = &slice[..slice.len().min(room)];
        (skip, room) = (0, room - slice.len());
        slices.push(IoSlice::new(slice));
    }
    Pieces::Many(slices)
}

/// Memory full of zeros, to be written wherever zeros are wanted.
fn zeros() -> &'static [u8] {
    static ZEROS: OnceLock<Buffer> = OnceLock::new();
    ZEROS.get_or_init(|| Buffer::zeroed(ZEROS_BYTES)).as_slice()
}

/// Direct I/O refuses memory and places that are not aligned; a store never asks for such.
fn assert_aligned(offset: u64, memory: &[u8]) {
    assert!(offset.is_multiple_of(BLOCK_SIZE as u64), "an unaligned offset on the medium");
    assert!(memory.len().is_multiple_of(BLOCK_SIZE), "not a whole number of blocks");
    assert!(memory.as_ptr().addr().is_multiple_of(BLOCK_SIZE), "unaligned memory");
}

/// What an error number of the kernel means to a store.
fn error_of(errno: i32) -> DiskError {
    match errno {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => DiskError::NoSpace,
        errno => DiskError::Io(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    fn medium() -> Medium {
        let file = OpenOptions::new().write(true).open("/dev/null").expect("opens");
        Medium::for_test(file, MediumKind::File, 0)
    }

    fn operation(request: DiskRequest) -> Box<Operation> {
        Box::new(Operation::new(DiskOp { token: DiskToken(1), request }, &medium()).expect("work"))
    }

    fn write(pieces: usize) -> Box<Operation> {
        let mut payloads = Vec::new();
        for number in 0..pieces {
            let mut buffer = Buffer::zeroed(BLOCK_SIZE);
            buffer.as_mut_slice().fill(number as u8);
            payloads.push(buffer.freeze());
        }
        operation(DiskRequest::Write { offset: 8192, payloads })
    }

    /// Where the next step of a write begins, and its first byte and length.
    fn next(operation: &mut Operation) -> (u64, u8, usize) {
        match operation.step() {
            Step::Write { offset, from: Pieces::One(slice) } => (offset, slice[0], slice.len()),
            Step::Write { offset, from: Pieces::Many(slices) } => {
                (offset, slices[0][0], slices.iter().map(|slice| slice.len()).sum())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn short_writes_go_on_where_they_stopped() {
        let mut operation = write(4);
        assert_eq!(next(&mut operation), (8192, 0, 16384));
        let mut operation = operation.handle_result(4096).expect("goes on");
        assert_eq!(next(&mut operation), (12288, 1, 12288));
        // A part of a block is written again: the rest of it would not be aligned.
        let mut operation = operation.handle_result(4096 + 512).expect("goes on");
        assert_eq!(next(&mut operation), (16384, 2, 8192));
        let mut operation = operation.handle_result(-libc::EINTR).expect("goes on");
        assert_eq!(next(&mut operation), (16384, 2, 8192));
        let done = operation.handle_result(8192).expect_err("ends");
        assert!(matches!(done.result, Ok(None)));
    }

    #[test]
    fn short_reads_go_on_and_nothing_at_all_is_an_error() {
        let request = DiskRequest::Read { offset: 0, buffer: Buffer::zeroed(8192) };
        let operation = operation(request).handle_result(4096).expect("goes on");
        let mut operation = operation.handle_result(0).expect("is tried again");
        for _ in 0..RETRIES_MAX {
            assert!(matches!(operation.step(), Step::Read { offset: 4096, .. }));
            match operation.handle_result(0) {
                Ok(again) => operation = again,
                Err(done) => {
                    assert_eq!(done.result.expect_err("fails"), DiskError::Io(libc::EIO));
                    return;
                }
            }
        }
        panic!("tried for ever");
    }

    #[test]
    fn a_failed_flush_is_never_tried_again() {
        for errno in [libc::EIO, libc::EINTR, libc::EAGAIN, libc::ENOSPC] {
            let done = operation(DiskRequest::Flush).handle_result(-errno).expect_err("ends");
            assert!(done.result.is_err());
        }
    }

    #[test]
    fn space_is_allocated_first_and_zeroed_then_in_pieces() {
        let length = (ZEROS_BYTES + BLOCK_SIZE) as u64;
        let request = DiskRequest::Allocate { offset: 4096, length, zero: true };
        let mut operation = operation(request);
        assert!(
            matches!(operation.step(), Step::Allocate { offset: 4096, length: l } if l == length)
        );
        let mut operation = operation.handle_result(0).expect("goes on");
        assert_eq!(next(&mut operation), (4096, 0, ZEROS_BYTES));
        let mut operation = operation.handle_result(ZEROS_BYTES as i32).expect("goes on");
        assert_eq!(next(&mut operation), (4096 + ZEROS_BYTES as u64, 0, BLOCK_SIZE));
        operation.handle_result(BLOCK_SIZE as i32).expect_err("ends").result.expect("well");
    }

    #[test]
    fn error_numbers_become_what_a_store_can_act_on() {
        let check = |errno: i32, error: DiskError| {
            let done = write(1).handle_result(-errno).expect_err("ends");
            assert_eq!(done.result.expect_err("fails"), error);
        };
        check(libc::ENOSPC, DiskError::NoSpace);
        check(libc::EDQUOT, DiskError::NoSpace);
        check(libc::EFBIG, DiskError::NoSpace);
        check(libc::EIO, DiskError::Io(libc::EIO));
        check(libc::EINVAL, DiskError::Io(libc::EINVAL));
    }
}
