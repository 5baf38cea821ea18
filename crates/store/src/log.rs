//! The log in memory: its circular region, the records that wait to become a batch, and the
//! batches under way.

use crate::layout::{
    BATCH_HEADER_BYTES, BatchHeader, LOG_FIRST, LONG_RECORD_BYTES_MAX, RECORD_BYTES_MAX, Record,
    WriteRecord, encode_adopt, encode_record, encode_write, seal_batch,
};
use proto::{BLOCK_SIZE, Buffer, DiskId, Incarnation, Payload};
use std::collections::VecDeque;

/// Largest batch of a large log, in blocks: what one write of the medium carries well.
const BATCH_BLOCKS_MAX: u64 = 64;
/// Smallest bound: the longest record must fit.
const BATCH_BLOCKS_MIN: u64 = 3;
/// Room kept for short records that are added without asking: at most one growth is under way.
const UNASKED_BLOCKS: u64 = 2;

/// More than the record of a growth takes, in bytes.
const SHORT_RECORD_BYTES: usize = 64;

const _: () =
    assert!(RECORD_BYTES_MAX + BATCH_HEADER_BYTES <= BATCH_BLOCKS_MIN as usize * BLOCK_SIZE);
/// Blocks of the longest record in a batch of its own.
const LONG_BLOCKS: u64 =
    ((LONG_RECORD_BYTES_MAX + BATCH_HEADER_BYTES) as u64).div_ceil(BLOCK_SIZE as u64);
// It finds room in the shortest log once that is empty, wherever its head is.
const _: () =
    assert!(2 * LONG_BLOCKS - 1 + UNASKED_BLOCKS < crate::LOG_BYTES_MIN / BLOCK_SIZE as u64);

/// A place in the log. `position` counts blocks since the disk was opened and never wraps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogPlace {
    pub(crate) position: u64,
    pub(crate) block: u64,
    pub(crate) sequence: u64,
    pub(crate) lsn: u64,
}

/// A batch to be written.
pub(crate) struct Batch {
    pub(crate) sequence: u64,
    /// Block address on the medium.
    pub(crate) address: u64,
    pub(crate) payload: Payload,
}

/// A batch that replay would read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LiveBatch {
    pub(crate) sequence: u64,
    /// Block address on the medium.
    pub(crate) address: u64,
    pub(crate) blocks: u32,
}

struct InFlight {
    sequence: u64,
    last_lsn: u64,
    done: bool,
}

/// See the module's description.
pub(crate) struct Log {
    blocks: u64,
    batch_blocks_max: u64,
    disk: DiskId,
    incarnation: Incarnation,
    /// Where the next batch goes.
    head: LogPlace,
    /// Where replay would start.
    tail: LogPlace,
    /// Encoded records that are in no batch yet, and how many.
    pending: Vec<u8>,
    pending_records: u32,
    in_flight: VecDeque<InFlight>,
    /// The batches between tail and head, in order.
    live: VecDeque<LiveBatch>,
    /// All records up to here are in completed batches without a gap.
    complete_lsn: u64,
}

impl Log {
    /// A log that goes on at `head`, with replay starting at `tail`.
    pub(crate) fn new(
        blocks: u64,
        disk: DiskId,
        incarnation: Incarnation,
        tail: LogPlace,
        head: LogPlace,
        live: VecDeque<LiveBatch>,
    ) -> Log {
        Log {
            blocks,
            batch_blocks_max: (blocks / 16).clamp(BATCH_BLOCKS_MIN, BATCH_BLOCKS_MAX),
            disk,
            incarnation,
            head,
            tail,
            pending: Vec::new(),
            pending_records: 0,
            in_flight: VecDeque::new(),
            live,
            complete_lsn: head.lsn - 1,
        }
    }

    /// The number that the next record gets.
    pub(crate) fn next_lsn(&self) -> u64 {
        self.head.lsn + u64::from(self.pending_records)
    }

    /// All records up to here are in completed batches without a gap.
    pub(crate) fn complete_lsn(&self) -> u64 {
        self.complete_lsn
    }

    /// Where replay would start if all before were in a checkpoint.
    pub(crate) fn head(&self) -> LogPlace {
        self.head
    }

    /// Where replay starts.
    pub(crate) fn tail(&self) -> LogPlace {
        self.tail
    }

    /// Blocks that replay would go through, pending records not counted.
    pub(crate) fn used_blocks(&self) -> u64 {
        self.head.position - self.tail.position
    }

    /// Length of the region in blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether a checkpoint should begin to make room.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.used_blocks() * 2 > self.blocks || !self.has_room_for_background()
    }

    /// Whether one more record of any length surely finds room, with what waits already and with
    /// what a batch may waste at the region's end, leaving room for the few that never wait.
    pub(crate) fn has_room(&self) -> bool {
        self.used_blocks() + 2 * self.batch_blocks_max + UNASKED_BLOCKS < self.blocks
    }

    /// The same for a record of background work, which leaves the last room to others.
    pub(crate) fn has_room_for_background(&self) -> bool {
        self.used_blocks() + 3 * self.batch_blocks_max + UNASKED_BLOCKS < self.blocks
    }

    /// Whether a long record of so many bytes finds room in a batch of its own, behind what waits,
    /// leaving room for the few that never wait.
    pub(crate) fn has_room_for_long(&self, bytes: usize) -> bool {
        let pending = if self.has_pending() { self.pending.len() } else { 0 };
        let (mut block, mut used) = (self.head.block, self.used_blocks());
        for bytes in [pending, BATCH_HEADER_BYTES + bytes] {
            let blocks = bytes.div_ceil(BLOCK_SIZE) as u64;
            if block + blocks > self.blocks {
                used += self.blocks - block;
                block = 0;
            }
            block = (block + blocks) % self.blocks;
            used += blocks;
        }
        used + UNASKED_BLOCKS < self.blocks
    }

    /// Whether one short record surely finds room. Growth asks this: without it there may be no
    /// space for the checkpoint that makes room for all others.
    pub(crate) fn has_room_for_growth(&self) -> bool {
        let bytes = BATCH_HEADER_BYTES + self.pending.len() + SHORT_RECORD_BYTES;
        let blocks = bytes.div_ceil(BLOCK_SIZE) as u64;
        let wraps = self.head.block + blocks > self.blocks;
        let waste = if wraps { self.blocks - self.head.block } else { 0 };
        self.used_blocks() + waste + blocks < self.blocks
    }

    /// Whether records wait to be written.
    pub(crate) fn has_pending(&self) -> bool {
        self.pending_records > 0
    }

    /// Whether the pending records should be written before more are added.
    pub(crate) fn is_batch_full(&self) -> bool {
        let bytes = BATCH_HEADER_BYTES + self.pending.len() + RECORD_BYTES_MAX;
        bytes > self.batch_blocks_max as usize * BLOCK_SIZE
    }

    /// Adds a record; returns its number.
    pub(crate) fn append(&mut self, record: &Record) -> u64 {
        self.append_with(|out| encode_record(record, out))
    }

    /// Adds a write; returns its number.
    pub(crate) fn append_write(&mut self, write: &WriteRecord) -> u64 {
        self.append_with(|out| encode_write(write, out))
    }

    /// Adds an adopted object; returns its number.
    pub(crate) fn append_adopt(&mut self, adopted: &WriteRecord) -> u64 {
        self.append_with(|out| encode_adopt(adopted, out))
    }

    fn append_with(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> u64 {
        let lsn = self.next_lsn();
        if self.pending.is_empty() {
            self.pending.resize(BATCH_HEADER_BYTES, 0);
        }
        encode(&mut self.pending);
        self.pending_records += 1;
        lsn
    }

    /// Makes the pending records a batch (without any: an empty one). `None`: the log is full,
    /// which callers that asked for room before never meet.
    pub(crate) fn seal(&mut self, durable_lsn: u64) -> Option<Batch> {
        let length = self.pending.len().max(BATCH_HEADER_BYTES);
        let blocks = length.div_ceil(BLOCK_SIZE) as u64;
        let wraps = self.head.block + blocks > self.blocks;
        let waste = if wraps { self.blocks - self.head.block } else { 0 };
        if self.used_blocks() + waste + blocks >= self.blocks {
            return None;
        }
        let block = if wraps { 0 } else { self.head.block };
        let mut buffer = Buffer::stale(length);
        let bytes = buffer.as_mut_slice();
        bytes[..self.pending.len()].copy_from_slice(&self.pending);
        bytes[length..].fill(0);
        let header = BatchHeader {
            sequence: self.head.sequence,
            first_lsn: self.head.lsn,
            durable_lsn,
            incarnation: self.incarnation,
            length: length as u32,
            records: self.pending_records,
            disk: self.disk,
        };
        seal_batch(bytes, &header);
        let last_lsn = self.next_lsn() - 1;
        self.in_flight.push_back(InFlight { sequence: header.sequence, last_lsn, done: false });
        self.head = LogPlace {
            position: self.head.position + waste + blocks,
            block: (block + blocks) % self.blocks,
            sequence: header.sequence + 1,
            lsn: last_lsn + 1,
        };
        self.pending.clear();
        self.pending_records = 0;
        let address = LOG_FIRST + block;
        let sequence = header.sequence;
        self.live.push_back(LiveBatch { sequence, address, blocks: blocks as u32 });
        Some(Batch { sequence: header.sequence, address, payload: buffer.freeze() })
    }

    /// The first batch from a sequence on that replay would read and that is written.
    pub(crate) fn live_batch(&self, sequence: u64) -> Option<LiveBatch> {
        let first = self.live.front()?.sequence;
        let batch = *self.live.get(sequence.saturating_sub(first) as usize)?;
        let written = self.in_flight.front().is_none_or(|next| batch.sequence < next.sequence);
        written.then_some(batch)
    }

    /// A batch is written. Returns whether [`Log::complete_lsn`] moved.
    pub(crate) fn complete(&mut self, sequence: u64) -> bool {
        let first = self.in_flight.front().expect("a batch is under way").sequence;
        self.in_flight[(sequence - first) as usize].done = true;
        let before = self.complete_lsn;
        while self.in_flight.front().is_some_and(|batch| batch.done) {
            let batch = self.in_flight.pop_front().expect("there is one");
            self.complete_lsn = batch.last_lsn;
        }
        self.complete_lsn != before
    }

    /// All batches are written.
    pub(crate) fn complete_all(&mut self) {
        assert_eq!(self.pending_records, 0, "records wait for a batch");
        self.in_flight.clear();
        self.complete_lsn = self.next_lsn() - 1;
    }

    /// Everything before `place` is in a durable checkpoint.
    pub(crate) fn trim(&mut self, place: LogPlace) {
        assert!(place.position >= self.tail.position, "the log's tail only moves on");
        self.tail = place;
        while self.live.front().is_some_and(|batch| batch.sequence < place.sequence) {
            self.live.pop_front();
        }
    }
}
