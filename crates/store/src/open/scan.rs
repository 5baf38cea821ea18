//! Reading the log: the chain of batches from the replay position on, and behind its end a search
//! for batches that prove that the end is not where it was.
//!
//! A block that cannot be read, even alone, counts as one without a batch: most of the region is
//! not in use, the next block to be written never is. Where a durable batch was, the search tells,
//! as it does of a batch that is bad.

use super::replay::Replay;
use super::{Common, Fetched};
use crate::layout::{
    BATCH_HEADER_BYTES, BatchError, BatchHeader, LOG_FIRST, parse_batch, parse_records,
};
use crate::log::{LiveBatch, LogPlace};
use crate::{DAMAGES_MAX, DamagedPart, OpenError};
use proto::{BLOCK_SIZE, Incarnation, Mistake, planted};
use std::collections::BTreeSet;

/// Blocks of the log read at once; more than any batch has.
const WINDOW_BLOCKS: u64 = 1024;

/// What is being looked for.
enum Part {
    /// The next batch of the chain.
    Chain,
    /// The same at the region's start: a batch that did not fit at its end.
    Wrapped,
    /// Batches behind the end of the chain: the block to look at, and how many are left.
    Search { block: u64, left: u64 },
}

/// See the module's description.
pub(super) struct Scan {
    replay: Replay,
    part: Part,
    /// The incarnation of the last batch, at first of the checkpoint: it never goes down along the
    /// chain, so what a crash cut off is not taken for its continuation later.
    incarnation: Incarnation,
    window_first: u64,
    /// What cannot be read is zero in it.
    window: Vec<u8>,
    /// Blocks of the medium that could not be read together: each is to be read alone.
    again: Vec<u64>,
    /// Blocks of the medium that cannot be read alone either.
    unreadable: BTreeSet<u64>,
}

/// What a look into the window came to.
enum Look {
    Found(BatchHeader),
    Nothing,
    /// The window must be read from there first.
    Outside,
}

impl Scan {
    /// Begins where replay begins.
    pub(super) fn new(common: &mut Common, replay: Replay) -> Scan {
        let mut scan = Scan {
            part: Part::Chain,
            incarnation: replay.superblock.replay_incarnation,
            window_first: 0,
            window: Vec::new(),
            again: Vec::new(),
            unreadable: BTreeSet::new(),
            replay,
        };
        scan.read_window(common, scan.replay.head.block);
        scan
    }

    fn read_window(&mut self, common: &mut Common, block: u64) {
        self.window_first = block;
        self.window.clear();
        let mut at = block;
        let end = (block + WINDOW_BLOCKS).min(self.replay.superblock.log_blocks);
        self.window.resize((end - block) as usize * BLOCK_SIZE, 0);
        while at < end {
            let count = (end - at).min(u64::from(super::fetch::FETCH_BLOCKS_MAX));
            common.fetch.add(LOG_FIRST + at, count as u32);
            at += count;
        }
    }

    /// Takes a part of the window.
    pub(super) fn fetched(&mut self, common: &mut Common, fetched: Fetched) {
        let address = common.fetch.address(fetched.item);
        let start = (address - LOG_FIRST - self.window_first) as usize * BLOCK_SIZE;
        match (fetched.result, common.fetch.blocks(fetched.item)) {
            (Ok(buffer), _) => {
                self.window[start..start + buffer.len()].copy_from_slice(buffer.as_slice());
            }
            (Err(_), 1) => {
                if self.unreadable.len() < DAMAGES_MAX && self.unreadable.insert(address) {
                    common.damaged(DamagedPart::Log, address, true);
                }
            }
            (Err(_), blocks) => self.again.extend(address..address + u64::from(blocks)),
        }
    }

    /// Looks at one block of the log.
    fn look(&self, block: u64) -> Look {
        let blocks = (self.window.len() / BLOCK_SIZE) as u64;
        if block < self.window_first || block >= self.window_first + blocks {
            return Look::Outside;
        }
        let start = (block - self.window_first) as usize * BLOCK_SIZE;
        match parse_batch(&self.window[start..]) {
            Ok(header) if header.disk == self.replay.superblock.identity.disk => {
                Look::Found(header)
            }
            Ok(_) | Err(BatchError::None) => Look::Nothing,
            Err(BatchError::More(length)) => {
                let rest = (self.replay.superblock.log_blocks - block) as usize * BLOCK_SIZE;
                let could_fit = length <= rest.min(WINDOW_BLOCKS as usize * BLOCK_SIZE);
                if could_fit && block != self.window_first { Look::Outside } else { Look::Nothing }
            }
        }
    }

    /// Goes on with the window that was read. Returns whether the log is read.
    pub(super) fn advance(&mut self, common: &mut Common) -> Result<bool, OpenError> {
        if !self.again.is_empty() {
            for address in std::mem::take(&mut self.again) {
                common.fetch.add(address, 1);
            }
            return Ok(false);
        }
        loop {
            let block = match self.part {
                Part::Chain => self.replay.head.block,
                Part::Wrapped => 0,
                Part::Search { left: 0, .. } => return Ok(true),
                Part::Search { block, .. } => block,
            };
            let look = self.look(block);
            if matches!(look, Look::Outside) {
                self.read_window(common, block);
                return Ok(false);
            }
            let found = match look {
                Look::Found(header) => Some(header),
                _ => None,
            };
            match (&self.part, found) {
                (Part::Search { .. }, found) => self.search(block, found)?,
                (_, Some(header)) if self.continues(&header) => self.take(block, &header)?,
                (Part::Chain, _) if block != 0 => self.part = Part::Wrapped,
                _ => self.end_chain(),
            }
        }
    }

    fn continues(&self, header: &BatchHeader) -> bool {
        let expected = self.replay.head;
        header.sequence == expected.sequence
            && header.first_lsn == expected.lsn
            && header.incarnation >= self.incarnation
            && header.incarnation <= self.replay.superblock.incarnation
            && header.durable_lsn < header.first_lsn + u64::from(header.records)
    }

    /// Takes the next batch of the chain.
    fn take(&mut self, block: u64, header: &BatchHeader) -> Result<(), OpenError> {
        let damaged = OpenError::LogDamaged { address: LOG_FIRST + block };
        let start = (block - self.window_first) as usize * BLOCK_SIZE;
        let bytes = &self.window[start + BATCH_HEADER_BYTES..start + header.length as usize];
        let records = parse_records(bytes, header.records).ok_or(damaged.clone())?;
        self.replay.batch(header.first_lsn, header.durable_lsn, records).ok_or(damaged)?;
        self.incarnation = header.incarnation;
        let log_blocks = self.replay.superblock.log_blocks;
        let blocks = (header.length as usize).div_ceil(BLOCK_SIZE) as u64;
        let batch = LiveBatch {
            sequence: header.sequence,
            address: LOG_FIRST + block,
            blocks: blocks as u32,
        };
        self.replay.live.push_back(batch);
        let head = self.replay.head;
        let skipped = if block == head.block { 0 } else { log_blocks - head.block };
        self.replay.head = LogPlace {
            position: head.position + skipped + blocks,
            block: (block + blocks) % log_blocks,
            sequence: head.sequence + 1,
            lsn: head.lsn + u64::from(header.records),
        };
        if self.replay.head.position > log_blocks {
            return Err(OpenError::LogDamaged { address: LOG_FIRST + block });
        }
        self.part = Part::Chain;
        Ok(())
    }

    /// No batch continues the chain: all of the region that is not part of it is searched.
    fn end_chain(&mut self) {
        let used = self.replay.head.position;
        let left = self.replay.superblock.log_blocks - used;
        self.part = Part::Search { block: self.replay.head.block, left };
    }

    /// A batch behind the end that was built when the missing one was durable proves rot.
    fn search(&mut self, block: u64, found: Option<BatchHeader>) -> Result<(), OpenError> {
        let missing = self.replay.head;
        if let Some(header) = found
            && header.sequence > missing.sequence
            && header.durable_lsn >= missing.lsn
            && !planted(Mistake::LogCutAtRot)
        {
            return Err(OpenError::LogDamaged { address: LOG_FIRST + missing.block });
        }
        if let Part::Search { block, left } = &mut self.part {
            *left -= 1;
            *block = (*block + 1) % self.replay.superblock.log_blocks;
        }
        let _ = block;
        Ok(())
    }

    /// What replay has come to.
    pub(super) fn finish(self) -> Result<Replay, OpenError> {
        let missing = self.replay.head;
        if self.replay.durable_lsn >= missing.lsn && !planted(Mistake::LogCutAtRot) {
            return Err(OpenError::LogDamaged { address: LOG_FIRST + missing.block });
        }
        Ok(self.replay)
    }
}
