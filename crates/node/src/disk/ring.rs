//! io_uring: system calls asked for in a ring shared with the kernel, done while this thread goes
//! on. The only module that gives the kernel pointers which outlive a call.
#![allow(unsafe_code)]

use super::{
    medium::Medium,
    operation::{Operation, Pieces, Step},
};
use io_uring::{IoUring, opcode, squeue, types};
use proto::limits::DISK_OPERATIONS_IN_FLIGHT_MAX;
use rustix::fs::FallocateFlags;
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

/// Submissions that fit into the ring before it must be handed to the kernel.
const SUBMISSIONS: u32 = 256;
/// The completion of a wait for the sockets; all other numbers are those of slots.
const SOCKETS: u64 = u64::MAX;
/// What stands for no file.
const NO_FILE: RawFd = -1;
/// How often handing over is tried while the kernel is short of memory, before it is left to a
/// later round.
const TRIES_MAX: usize = 8;

/// One ring for all media of a node. The thread that made it uses it.
///
/// Invariant: as long as the kernel may touch memory of an operation, that operation lies in
/// `slots`, untouched. A slot is filled before its submission is pushed and emptied only by its
/// completion; dropping the ring waits for all of them.
pub struct Ring {
    ring: IoUring,
    slots: Vec<Option<Slot>>,
    /// Numbers of empty slots.
    free: Vec<usize>,
    /// Whether the kernel watches the sockets for us.
    watching: bool,
}

struct Slot {
    medium: usize,
    operation: Box<Operation>,
    /// What the pushed submission points to, for vectored writes.
    vectors: Vec<libc::iovec>,
}

/// A completed step: the medium's number, its operation, and the kernel's result.
pub type Completed = (usize, Box<Operation>, i32);

impl Ring {
    /// A ring for these media, with room for so many, or the error why this machine has none that
    /// works.
    pub fn new(media: &[Medium], media_max: usize) -> io::Result<Ring> {
        let ring = build()?;
        if !ring.params().is_feature_ext_arg() {
            return Err(io::Error::other("this kernel is older than 5.11"));
        }
        let mut files: Vec<_> = media.iter().map(|medium| medium.file().as_raw_fd()).collect();
        files.resize(media_max, NO_FILE);
        if let Err(error) = ring.submitter().register_files(&files) {
            if error.raw_os_error() != Some(libc::EMFILE) {
                return Err(error);
            }
            // More than the process may open: those that there are, and no room for others.
            ring.submitter().register_files(&files[..media.len()])?;
        }
        Ok(Ring {
            ring,
            slots: (0..DISK_OPERATIONS_IN_FLIGHT_MAX).map(|_| None).collect(),
            free: (0..DISK_OPERATIONS_IN_FLIGHT_MAX).rev().collect(),
            watching: false,
        })
    }

    /// Makes a file that of this number, or lets go of the one that has it. There must be nothing
    /// in flight on it.
    pub fn set_file(&mut self, number: usize, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let number = u32::try_from(number).expect("there are few");
        let file = file.map_or(NO_FILE, |file| file.as_raw_fd());
        // The kernel takes its own reference, or drops the one that it has.
        match self.ring.submitter().register_files_update(number, &[file])? {
            1 => Ok(()),
            _ => Err(io::Error::other("the kernel did not take the file")),
        }
    }

    /// Steps begun and not completed.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether one more step can be begun.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Begins the next step of the operation. The kernel learns of it with [`Ring::enter`] or
    /// [`Ring::wait`].
    ///
    /// # Panics
    /// If there is no room, or the step is one that io_uring has no form of.
    pub fn begin(&mut self, medium: usize, operation: Box<Operation>) {
        let number = self.free.pop().expect("the caller looked for room");
        let slot = self.slots[number].insert(Slot { medium, operation, vectors: Vec::new() });
        let entry = slot.entry().user_data(number as u64);
        // SAFETY: `entry` points into memory owned by the operation (its buffer or payloads, which
        // are on the heap and do not move when the slot does), into static zeros, or into
        // `slot.vectors` (on the heap likewise). By the invariant of `Ring` all of these stay where
        // they are, and unchanged, until the completion of this entry is seen.
        unsafe { self.push(&entry) };
    }

    /// Pushes a submission, after making room for it.
    ///
    /// # Safety
    /// What the entry points to must stay as it is until its completion is seen.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        while self.ring.submission().is_full() {
            self.enter();
        }
        // SAFETY: as promised by the caller.
        unsafe { self.ring.submission().push(entry) }.expect("there is room");
    }

    /// Hands everything begun to the kernel, and lets it post what has completed.
    pub fn enter(&mut self) {
        for _ in 0..TRIES_MAX {
            let submission = self.ring.submission();
            if submission.is_empty() && !submission.taskrun() {
                return;
            }
            drop(submission);
            match self.ring.submit() {
                // What has completed meanwhile is seen in the next round.
                Ok(_) if self.ring.submission().is_empty() => return,
                Ok(_) => {}
                Err(error) => handle_error(&error),
            }
        }
    }

    /// Hands everything begun to the kernel and waits until something completes, the file `poll`
    /// becomes readable, or the time is over.
    pub fn wait(&mut self, poll: BorrowedFd<'_>, timeout: Option<Duration>) {
        if !self.watching {
            // One shot each: arming looks at the present state, so no readiness is ever missed.
            let file = types::Fd(poll.as_raw_fd());
            let entry = opcode::PollAdd::new(file, libc::POLLIN as u32).build().user_data(SOCKETS);
            // SAFETY: the entry points to no memory.
            unsafe { self.push(&entry) };
            self.watching = true;
        }
        if !self.ring.completion().is_empty() {
            return self.enter();
        }
        let result = match timeout.map(types::Timespec::from) {
            None => self.ring.submit_and_wait(1),
            Some(timespec) => {
                let arguments = types::SubmitArgs::new().timespec(&timespec);
                self.ring.submitter().submit_with_args(1, &arguments)
            }
        };
        if let Err(error) = result {
            handle_error(&error);
        }
    }

    /// Takes the completions there are, and returns whether the file that was waited for is
    /// readable.
    pub fn take_completed(&mut self, completed: &mut Vec<Completed>) -> bool {
        if self.ring.submission().taskrun() {
            self.enter();
        }
        let mut readable = false;
        for entry in self.ring.completion() {
            if entry.user_data() == SOCKETS {
                // Errors too: whoever reads the sockets then sees them.
                readable = true;
                self.watching = false;
                continue;
            }
            let number = entry.user_data() as usize;
            let slot = self.slots[number].take().expect("a slot completes once");
            self.free.push(number);
            completed.push((slot.medium, slot.operation, entry.result()));
        }
        readable
    }
}

/// A ring, from the cheapest kind to the most portable. The taskrun flag shows pending completions
/// in shared memory, so that looking for them costs no system call.
fn build() -> io::Result<IoUring> {
    let completions = 2 * DISK_OPERATIONS_IN_FLIGHT_MAX as u32;
    let mut builder = IoUring::builder();
    builder.setup_cqsize(completions).dontfork();
    builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    builder
        .build(SUBMISSIONS)
        .or_else(|_| {
            let mut builder = IoUring::builder();
            builder.setup_cqsize(completions).dontfork();
            builder.setup_coop_taskrun().setup_taskrun_flag();
            builder.build(SUBMISSIONS)
        })
        .or_else(|_| {
            let mut builder = IoUring::builder();
            builder.setup_cqsize(completions).dontfork();
            builder.build(SUBMISSIONS)
        })
}

/// Sorts out what the kernel may answer to a ring that is used rightly.
fn handle_error(error: &io::Error) {
    match error.raw_os_error() {
        Some(libc::EINTR | libc::ETIME) => {}
        // The kernel is short of memory for the moment: what is pushed stays pushed and is handed
        // over in a later round.
        Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => std::thread::yield_now(),
        _ => panic!("io_uring fails: {error}"),
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut completed = Vec::new();
        while self.in_flight() > 0 {
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.raw_os_error() != Some(libc::EINTR)
            {
                // The kernel may still write to the memory: give it up rather than reuse it.
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            self.take_completed(&mut completed);
        }
    }
}

impl Slot {
    /// The submission of the operation's next step.
    fn entry(&mut self) -> squeue::Entry {
        let file = types::Fixed(self.medium as u32);
        match self.operation.step() {
            Step::Read { offset, into } => {
                opcode::Read::new(file, into.as_mut_ptr(), length_of(into.len()))
                    .offset(offset)
                    .build()
            }
            Step::Write { offset, from: Pieces::One(slice) } => {
                opcode::Write::new(file, slice.as_ptr(), length_of(slice.len()))
                    .offset(offset)
                    .build()
            }
            Step::Write { offset, from: Pieces::Many(slices) } => {
                self.vectors.extend(slices.iter().map(|slice| libc::iovec {
                    iov_base: slice.as_ptr().cast_mut().cast(),
                    iov_len: slice.len(),
                }));
                opcode::Writev::new(file, self.vectors.as_ptr(), length_of(self.vectors.len()))
                    .offset(offset)
                    .build()
            }
            Step::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            Step::Allocate { offset, length } => {
                opcode::Fallocate::new(file, length).offset(offset).build()
            }
            Step::Punch { offset, length } => {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                opcode::Fallocate::new(file, length).offset(offset).mode(mode.bits() as i32).build()
            }
            Step::DiscardDevice { .. } => panic!("io_uring has no discard of devices"),
        }
    }
}

fn length_of(length: usize) -> u32 {
    u32::try_from(length).expect("a step is bounded")
}
