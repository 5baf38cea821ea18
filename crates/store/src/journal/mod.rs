//! The medium of the cluster's agreed log: one snapshot and the records since, every byte twice, as
//! drawn in `docs/formats/journal.md`.
//!
//! Like a store it does no I/O: it asks for [`DiskOp`]s and is told of their ends. It does not look
//! into snapshots and records, and takes one append or snapshot at a time. Life: [`Journal::open`],
//! and where that says [`OpenError::Blank`], [`Journal::create`]; then [`Journal::append`] and
//! [`Journal::snapshot`], each awaited; dropping it at any moment is a crash that the next opening
//! survives.

mod error;
mod io;
mod layout;
mod opening;
mod recovery;
#[cfg(test)]
mod tests;
mod verifying;
mod writing;

pub use error::{AppendError, OpenError};

use io::Io;
use layout::{BLOCK, Body, COPIES, FrameHeader, Header};
use proto::limits::{JOURNAL_LOG_BYTES_MAX, JOURNAL_SNAPSHOT_BYTES_MAX};
use proto::{BLOCK_SIZE, Buffer, ClusterId, DiskDone, DiskError, DiskOp, DiskRequest, NodeId};
use recovery::Recovery;
use std::collections::VecDeque;

/// The parsers of everything that is read from the medium, for fuzzing.
#[doc(hidden)]
pub mod fuzzing {
    use super::layout::{FrameHeader, Header};

    /// Judges the block of a header.
    pub fn header(block: &[u8]) {
        let _ = Header::decode(block);
    }

    /// Judges a frame. `resigned` puts checksums that fit into it first, so that what lies behind
    /// them is reached.
    pub fn frame(frame: &mut [u8], resigned: bool) {
        if resigned {
            super::layout::sign_frame(frame);
        }
        let _ = FrameHeader::decode(frame).and_then(|header| header.body(frame));
    }
}

/// Blocks prepared at once, ahead of need: 256 appends, so that preparing is rare and commands that
/// give space back still find room when the file system is full.
const STEP_BLOCKS: u32 = 256;
/// Blocks of a half: the longest snapshot and the log behind it.
const HALF_BLOCKS: u32 =
    ((JOURNAL_SNAPSHOT_BYTES_MAX + JOURNAL_LOG_BYTES_MAX) / BLOCK_SIZE) as u32 + 2 * STEP_BLOCKS;

/// Whose journal it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster whose state it keeps.
    pub cluster: ClusterId,
    /// The node that keeps it.
    pub node: NodeId,
}

/// Whose journal it should be; nothing accepts any.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Expected {
    /// The cluster whose state it should keep.
    pub cluster: Option<ClusterId>,
    /// The node that should keep it.
    pub node: Option<NodeId>,
}

/// Chosen by the caller; comes back with [`Effect::Done`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// What the journal wants done, or tells.
#[derive(Debug)]
pub enum Effect {
    /// Perform this and report its end to [`Journal::handle`].
    Disk(DiskOp),
    /// The end of [`Journal::open`] or [`Journal::create`].
    Opened(Result<Recovered, OpenError>),
    /// The end of an append or snapshot: durable in both copies, or not done.
    Done {
        /// Which one.
        token: Token,
        /// Whether it is durable.
        result: Result<(), AppendError>,
    },
    /// The end of [`Journal::verify`]: how many bad copies were written anew. Damage in both copies
    /// is made good by a snapshot, from the state in memory; after a failure of the medium nothing
    /// more is taken.
    Verified(Result<u32, OpenError>),
}

/// What a journal held when it was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// Whose it is.
    pub identity: Identity,
    /// When it was created, in seconds since 1970; for people.
    pub created_unix_s: u64,
    /// The last snapshot, if there ever was one.
    pub snapshot: Option<Vec<u8>>,
    /// The records since, in order.
    pub records: Vec<Vec<u8>>,
    /// How many records were damaged in one copy and were repaired from the other.
    pub repaired: u32,
}

/// A journal.
pub struct Journal {
    phase: Phase,
    io: Io,
    /// Where the medium ends at least.
    medium_bytes: u64,
    header: Header,
    /// The sequence of the last frame that is durable.
    sequence: u64,
    /// The block behind the last frame, in the half that rules.
    end: u32,
    /// How many blocks of that half are prepared, from its start.
    prepared: u32,
    /// How many blocks are prepared at once.
    step_blocks: u32,
    /// An append or snapshot that came while everything was being verified.
    waiting: Option<(Token, Body)>,
}

/// What the operations in flight are for.
enum Phase {
    /// Reading the headers, to create a journal.
    CheckBlank,
    /// Reading the headers, to open one.
    ReadHeaders(Expected),
    /// Reading frames.
    Recover(Box<Recovery>),
    /// Writing what ends an opening or creation; the steps still to come.
    MakeReady { steps: Steps, recovered: Recovered },
    /// Nothing: ready for an append or snapshot.
    Ready,
    /// Preparing blocks for the request, and flushing that.
    Prepare { request: Request, flushing: bool },
    /// Writing the frame, and what goes with it; the steps still to come.
    Write { request: Request, steps: Steps },
    /// Reading the headers, to verify everything.
    VerifyHeaders,
    /// Reading frames, to verify them.
    Verify(Box<Recovery>),
    /// Writing bad copies anew; the steps still to come, and how many copies that are.
    Repair { steps: Steps, repaired: u32 },
    /// Nothing any more.
    Failed(AppendError),
    /// Not opened.
    Refused,
}

/// Operations to be done one group after the other; those of a group in any order.
type Steps = VecDeque<Vec<DiskRequest>>;

/// One append or snapshot.
struct Request {
    token: Token,
    body: Body,
    /// The generation of its half.
    generation: u64,
    /// The block where its frame begins.
    block: u32,
    /// How many blocks of the half will be prepared when it is written.
    prepared: u32,
}

impl Request {
    fn frame_end(&self) -> u32 {
        self.block + FrameHeader::blocks_for(self.body.bytes())
    }
}

impl Journal {
    /// Makes a journal on a blank medium that is `medium_bytes` long at present. Ends with
    /// [`Effect::Opened`].
    pub fn create(
        identity: Identity,
        created_unix_s: u64,
        medium_bytes: u64,
        effects: &mut Vec<Effect>,
    ) -> Journal {
        let header = Header {
            half_blocks: HALF_BLOCKS,
            cluster: identity.cluster,
            node: identity.node,
            generation: 1,
            created_unix_s,
        };
        Journal::create_sized(header, STEP_BLOCKS, medium_bytes, effects)
    }

    fn create_sized(
        header: Header,
        step_blocks: u32,
        medium_bytes: u64,
        effects: &mut Vec<Effect>,
    ) -> Journal {
        Journal::start(Phase::CheckBlank, header, step_blocks, medium_bytes, effects)
    }

    /// Opens the journal on a medium that is `medium_bytes` long at present. Ends with
    /// [`Effect::Opened`].
    pub fn open(expected: Expected, medium_bytes: u64, effects: &mut Vec<Effect>) -> Journal {
        Journal::open_sized(expected, STEP_BLOCKS, medium_bytes, effects)
    }

    fn open_sized(
        expected: Expected,
        step_blocks: u32,
        medium_bytes: u64,
        effects: &mut Vec<Effect>,
    ) -> Journal {
        // Stands in until the real one is read.
        let header = Header {
            half_blocks: HALF_BLOCKS,
            cluster: ClusterId(0),
            node: NodeId(0),
            generation: 0,
            created_unix_s: 0,
        };
        let phase = Phase::ReadHeaders(expected);
        Journal::start(phase, header, step_blocks, medium_bytes, effects)
    }

    fn start(
        phase: Phase,
        header: Header,
        step_blocks: u32,
        medium_bytes: u64,
        effects: &mut Vec<Effect>,
    ) -> Journal {
        let mut journal = Journal {
            phase,
            io: Io::default(),
            medium_bytes: medium_bytes - medium_bytes % BLOCK,
            header,
            sequence: 0,
            end: 0,
            prepared: 0,
            step_blocks,
            waiting: None,
        };
        journal.read_headers(effects);
        journal
    }

    fn read_headers(&mut self, effects: &mut Vec<Effect>) {
        let readable = |copy: &usize| Header::offset(*copy) < self.medium_bytes;
        let reads: Vec<_> = COPIES
            .into_iter()
            .filter(readable)
            .map(|copy| DiskRequest::Read {
                offset: Header::offset(copy),
                buffer: Buffer::stale(BLOCK_SIZE),
            })
            .collect();
        if reads.is_empty() {
            self.proceed(Vec::new(), effects);
        } else {
            self.io.start(reads, effects);
        }
    }

    /// Whether an append or snapshot can be taken now.
    pub fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready)
    }

    /// Takes the end of an operation.
    ///
    /// # Panics
    /// If the journal has not asked for it: a bug of the caller.
    pub fn handle(&mut self, done: DiskDone, effects: &mut Vec<Effect>) {
        if let Some(results) = self.io.handle(done) {
            self.proceed(results, effects);
        }
    }

    /// All operations in flight have ended: goes on with what they were for.
    fn proceed(
        &mut self,
        results: Vec<Result<Option<Buffer>, DiskError>>,
        effects: &mut Vec<Effect>,
    ) {
        match std::mem::replace(&mut self.phase, Phase::Refused) {
            Phase::CheckBlank => self.headers_read_to_create(results, effects),
            Phase::ReadHeaders(expected) => self.headers_read(expected, results, effects),
            Phase::Recover(mut recovery) => {
                let step = recovery.handle(results);
                self.recover(recovery, step, effects);
            }
            Phase::MakeReady { steps, recovered } => match first_error(&results) {
                None => self.make_ready(steps, recovered, effects),
                Some(error) => effects.push(Effect::Opened(Err(OpenError::Medium(error)))),
            },
            Phase::Prepare { request, flushing } => {
                self.prepare_ended(request, flushing, first_error(&results), effects);
            }
            Phase::Write { request, steps } => match first_error(&results) {
                None => self.write_steps(request, steps, effects),
                Some(error) => self.fail(request.token, error, effects),
            },
            Phase::VerifyHeaders => self.headers_read_to_verify(results, effects),
            Phase::Verify(mut recovery) => {
                let step = recovery.handle(results);
                self.verify_frames(recovery, step, effects);
            }
            Phase::Repair { steps, repaired } => match first_error(&results) {
                None => self.repair(steps, repaired, effects),
                Some(error) => {
                    effects.push(Effect::Verified(Err(OpenError::Medium(error))));
                    self.phase = Phase::Failed(AppendError::Failed(error));
                    self.begin_waiting(effects);
                }
            },
            Phase::Ready | Phase::Failed(_) | Phase::Refused => {
                panic!("no operation is in flight in this phase")
            }
        }
    }
}

/// The first failure of a group of operations. Want of space counts only if it is the only one: it
/// leaves the medium in use.
fn first_error(results: &[Result<Option<Buffer>, DiskError>]) -> Option<DiskError> {
    let errors = || results.iter().filter_map(|result| result.as_ref().err().copied());
    errors().find(|error| *error != DiskError::NoSpace).or_else(|| errors().next())
}
