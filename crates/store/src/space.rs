//! The space of a disk: which blocks are taken, which chunks are allocated on the medium, and
//! which freed blocks may not be used again yet.
//!
//! In memory a block is *available* or not. Not available are used blocks, blocks in quarantine
//! and blocks of a checkpoint; what a checkpoint stores as used are the used ones alone.

mod chunks;
#[cfg(test)]
mod tests;

use crate::layout::{BITMAP_CHUNKS_PER_PAGE, Run};
use chunks::Chunks;
use std::collections::{BTreeSet, VecDeque};

pub(crate) use chunks::{CHUNK_BLOCKS, ChunkState};

/// What space is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    Data,
    Metadata,
}

/// Who fills a chunk: each fills its own, so that none cuts the runs of the others.
#[derive(Clone, Copy)]
enum Filler {
    /// Data in pieces of less than [`LONG_BLOCKS`].
    Short,
    /// Longer data.
    Long,
    Metadata,
}
const FILLERS: usize = 3;

/// A write from here on is long: it gets long runs, out of chunks that nothing else is in. 64 KiB.
const LONG_BLOCKS: u32 = 16;
/// A long write begins a new chunk rather than take a shorter run than this, in blocks.
const RUN_BLOCKS_MIN: u32 = 32;
/// Short writes and metadata fill a chunk in use if about this much of it is available, in blocks;
/// else they begin a new one, so that what is written together lies together.
const REFILL_BLOCKS: u16 = 128;
/// They begin no new chunk while more than this part of the space in use lies scattered in chunks
/// in use (and a little more), or when only these chunks are left that have nothing in them.
const SCATTERED_DIVISOR: u64 = 4;
const SCATTERED_BLOCKS_MIN: u64 = 1024;
const EMPTY_CHUNKS_KEPT: u32 = 16;
/// Long writes leave so many empty chunks that were written before to the others, if there are
/// chunks that were not.
const USED_CHUNKS_KEPT: u32 = 16;

/// A freed run that waits until nothing can need its old content.
#[derive(Clone, Copy, Debug)]
struct Quarantined {
    run: Run,
    /// The record that freed it must be durable.
    lsn: u64,
    /// Reads with a lower number may still read it.
    read: u64,
}

/// See the module's description.
pub(crate) struct Space {
    /// Block address of chunk 0.
    first: u64,
    chunks: Chunks,
    /// Freed by log records, in their order.
    quarantine: VecDeque<Quarantined>,
    quarantined: u64,
    /// Freed by the checkpoint under way, which must be durable first.
    freed_by_checkpoint: Vec<Run>,
    freed_by_checkpoint_blocks: u64,
    /// Blocks of the checkpoint's pages, present and under way.
    checkpoint: BTreeSet<u64>,
    /// Blocks of content that is staged: no map names them.
    staged: BTreeSet<u64>,
    /// The chunk that each filler fills.
    cursors: [Option<u32>; FILLERS],
    /// Pages of the bitmap that differ from the last checkpoint.
    dirty: BTreeSet<u32>,
}

impl Space {
    /// Space without any chunk.
    pub(crate) fn new(first: u64) -> Space {
        Space {
            first,
            chunks: Chunks::default(),
            quarantine: VecDeque::new(),
            quarantined: 0,
            freed_by_checkpoint: Vec::new(),
            freed_by_checkpoint_blocks: 0,
            checkpoint: BTreeSet::new(),
            staged: BTreeSet::new(),
            cursors: [None; FILLERS],
            dirty: BTreeSet::new(),
        }
    }

    /// The first block of a chunk.
    pub(crate) fn address_of(&self, chunk: u32) -> u64 {
        self.first + u64::from(chunk) * u64::from(CHUNK_BLOCKS)
    }

    /// The chunk of a block of space, and its place there.
    fn place_of(&self, address: u64) -> Option<(u32, u32)> {
        let offset = address.checked_sub(self.first)?;
        let chunk = u32::try_from(offset / u64::from(CHUNK_BLOCKS)).ok()?;
        Some((chunk, (offset % u64::from(CHUNK_BLOCKS)) as u32))
    }

    /// How many chunks there are, holes included.
    pub(crate) fn chunk_count(&self) -> u32 {
        self.chunks.len()
    }

    /// What a chunk is.
    pub(crate) fn chunk_state(&self, chunk: u32) -> ChunkState {
        self.chunks.state(chunk)
    }

    /// Blocks that can be had at once.
    pub(crate) fn available(&self) -> u64 {
        self.chunks.available()
    }

    /// Blocks in allocated chunks.
    pub(crate) fn allocated(&self) -> u64 {
        u64::from(self.chunks.allocated()) * u64::from(CHUNK_BLOCKS)
    }

    /// Blocks that will be available once all is flushed and read.
    pub(crate) fn quarantined(&self) -> u64 {
        self.quarantined
    }

    /// Whether a flush would let go of any: otherwise they wait for reads to end.
    pub(crate) fn waits_for_flush(&self, durable_lsn: u64) -> bool {
        self.quarantine.back().is_some_and(|last| last.lsn > durable_lsn)
    }

    /// Blocks that will be available once the checkpoint under way is done.
    pub(crate) fn freed_by_checkpoint(&self) -> u64 {
        self.freed_by_checkpoint_blocks
    }

    /// Of these, blocks of map pages.
    pub(crate) fn freed_map_pages(&self) -> u64 {
        let runs = self.freed_by_checkpoint.iter();
        runs.flat_map(Run::iter).filter(|address| !self.checkpoint.contains(address)).count() as u64
    }

    /// Blocks of checkpoint pages.
    pub(crate) fn checkpoint_blocks(&self) -> u64 {
        self.checkpoint.len() as u64
    }

    /// Changes what chunks are, adding them if they are new.
    pub(crate) fn set_chunks(&mut self, first: u32, count: u32, state: ChunkState) {
        for chunk in first..first + count {
            self.chunks.set_state(chunk, state);
            self.dirty.insert(chunk / BITMAP_CHUNKS_PER_PAGE as u32);
            if state != ChunkState::Allocated {
                for cursor in &mut self.cursors {
                    cursor.take_if(|at| *at == chunk);
                }
            }
        }
    }

    /// The medium has allocated chunks, and wrote zeros to them or left them as they are.
    pub(crate) fn grow(&mut self, first: u32, count: u32, zeroed: bool) {
        self.set_chunks(first, count, ChunkState::Allocated);
        if !zeroed {
            (first..first + count).for_each(|chunk| self.chunks.set_raw(chunk));
        }
    }

    /// How many allocated chunks have nothing in them but were written before.
    pub(crate) fn used_before(&self) -> u32 {
        self.chunks.used_before()
    }

    /// Blocks of allocated chunks that have nothing in them.
    pub(crate) fn empty(&self) -> u64 {
        u64::from(self.chunks.empty()) * u64::from(CHUNK_BLOCKS)
    }

    /// Takes `count` available blocks and adds them to `runs`, in as few runs as can be found
    /// quickly. The caller has made sure that there are enough.
    pub(crate) fn allocate(&mut self, purpose: Purpose, count: u32, runs: &mut Vec<Run>) {
        let filler = match purpose {
            Purpose::Metadata => Filler::Metadata,
            Purpose::Data if count < LONG_BLOCKS => Filler::Short,
            Purpose::Data => Filler::Long,
        };
        let from = runs.len();
        let mut left = count;
        while left > 0 {
            let chunk = self.chunk_for(filler, left);
            self.cursors[filler as usize] = Some(chunk);
            let (first, taken) = self.chunks.take_run(chunk, left);
            self.dirty.insert(chunk / BITMAP_CHUNKS_PER_PAGE as u32);
            left -= taken;
            let address = self.address_of(chunk) + u64::from(first);
            match runs[from..].last_mut() {
                // It goes on in the next chunk.
                Some(last) if last.end() == address => last.count += taken,
                _ => runs.push(Run { address, count: taken }),
            }
        }
    }

    /// The chunk where `left` blocks are looked for.
    fn chunk_for(&self, filler: Filler, left: u32) -> u32 {
        let chunks = &self.chunks;
        let cursor = self.cursors[filler as usize];
        let wanted = if matches!(filler, Filler::Long) { left.min(RUN_BLOCKS_MIN) } else { 1 };
        if let Some(chunk) = cursor.filter(|&chunk| chunks.has_run(chunk, wanted)) {
            return chunk;
        }
        let others: Vec<u32> = self.cursors.iter().flatten().copied().collect();
        let next = cursor.map(|chunk| chunk + 1);
        let empty = |raw| chunks.first_empty(raw, next, &others);
        let in_use = |least| chunks.emptiest_in_use(least, &others);
        // What was written before is left to those whom it helps most, if it is little.
        let raw_first = chunks.used_before() <= USED_CHUNKS_KEPT;
        let fresh = |raw: bool| empty(raw).or_else(|| empty(!raw));
        let chosen = match filler {
            Filler::Long => fresh(raw_first).or_else(|| in_use(1)),
            Filler::Short | Filler::Metadata if self.may_scatter() => {
                in_use(REFILL_BLOCKS).or_else(|| fresh(false)).or_else(|| in_use(1))
            }
            Filler::Short | Filler::Metadata => in_use(1).or_else(|| fresh(false)),
        };
        // All that is left may be in the chunks of others.
        let any = || {
            let empty = |raw| chunks.first_empty(raw, None, &[]);
            chunks.emptiest_in_use(1, &[]).or_else(|| empty(false)).or_else(|| empty(true))
        };
        chosen.or_else(any).expect("enough blocks are available")
    }

    /// Whether short pieces may begin a chunk, and leave what is available elsewhere alone.
    fn may_scatter(&self) -> bool {
        let used = self.allocated() - self.available();
        self.chunks.empty() > EMPTY_CHUNKS_KEPT
            && self.available() - self.empty() <= used / SCATTERED_DIVISOR + SCATTERED_BLOCKS_MIN
    }

    /// A record freed the run: it becomes available once that is durable and all reads up to
    /// `next_read` are done.
    pub(crate) fn free_after_record(&mut self, run: Run, lsn: u64, next_read: u64) {
        self.mark_dirty(run);
        self.quarantined += u64::from(run.count);
        self.quarantine.push_back(Quarantined { run, lsn, read: next_read });
    }

    /// The checkpoint under way freed the run.
    pub(crate) fn free_after_checkpoint(&mut self, run: Run) {
        self.mark_dirty(run);
        self.freed_by_checkpoint_blocks += u64::from(run.count);
        self.freed_by_checkpoint.push(run);
    }

    /// The checkpoint under way is durable: only reads may still need what it freed.
    pub(crate) fn checkpoint_done(&mut self, next_read: u64) {
        for run in std::mem::take(&mut self.freed_by_checkpoint) {
            for address in run.iter() {
                self.checkpoint.remove(&address);
            }
            self.quarantined += u64::from(run.count);
            self.quarantine.push_front(Quarantined { run, lsn: 0, read: next_read });
        }
        self.freed_by_checkpoint_blocks = 0;
    }

    /// Makes available what was freed by durable records and is read by nobody: `oldest_read` is
    /// the lowest number of a read under way. Returns whether there was any.
    pub(crate) fn release(&mut self, durable_lsn: u64, oldest_read: u64) -> bool {
        let before = self.quarantined;
        while let Some(front) = self.quarantine.front() {
            if front.lsn > durable_lsn || front.read > oldest_read {
                break;
            }
            let run = front.run;
            self.quarantine.pop_front();
            self.quarantined -= u64::from(run.count);
            self.give(run);
        }
        self.quarantined != before
    }

    /// Makes a run available at once.
    pub(crate) fn give(&mut self, run: Run) {
        for address in run.iter() {
            let (chunk, at) = self.place_of(address).expect("a freed block lies in space");
            self.chunks.give(chunk, at);
        }
        self.mark_dirty(run);
    }

    /// Takes in a page of the stored bitmap, the next in order; returns whether it makes sense.
    pub(crate) fn load(&mut self, page: u32, chunks: &[(bool, [u64; 4])]) -> bool {
        let first = page * BITMAP_CHUNKS_PER_PAGE as u32;
        for (chunk, (allocated, bits)) in (first..).zip(chunks) {
            if chunk != self.chunks.len() || (!allocated && *bits != [0; 4]) {
                return false;
            }
            let state = if *allocated { ChunkState::Allocated } else { ChunkState::Hole };
            self.chunks.set_state(chunk, state);
            self.chunks.set_bits(chunk, *bits);
        }
        true
    }

    /// What is in memory is what the checkpoint has.
    pub(crate) fn clean(&mut self) {
        self.dirty.clear();
    }

    /// Whether no block of a chunk is taken.
    pub(crate) fn is_chunk_empty(&self, chunk: u32) -> bool {
        self.chunks.available_in(chunk) == CHUNK_BLOCKS
    }

    /// Marks a run used while a disk is opened; idempotent. `None` if it lies outside.
    pub(crate) fn replay_used(&mut self, run: Run) -> Option<()> {
        self.replay(run, true)
    }

    /// Marks a run free while a disk is opened; idempotent. `None` if it lies outside.
    pub(crate) fn replay_free(&mut self, run: Run) -> Option<()> {
        self.replay(run, false)
    }

    fn replay(&mut self, run: Run, used: bool) -> Option<()> {
        for address in run.iter() {
            let (chunk, at) = self.place_of(address)?;
            if chunk >= self.chunks.len() {
                return None;
            }
            if used == self.chunks.is_taken(chunk, at) {
                continue;
            }
            if used {
                self.chunks.take(chunk, at);
            } else {
                self.chunks.give(chunk, at);
            }
            self.dirty.insert(chunk / BITMAP_CHUNKS_PER_PAGE as u32);
        }
        Some(())
    }

    /// Marks a block as one of the checkpoint's.
    pub(crate) fn checkpoint_owns(&mut self, run: Run) -> Option<()> {
        for address in run.iter() {
            let (chunk, at) = self.place_of(address)?;
            if chunk >= self.chunks.len() || !self.chunks.take(chunk, at) {
                return None;
            }
            self.checkpoint.insert(address);
        }
        Some(())
    }

    /// Takes blocks for pages of a checkpoint.
    pub(crate) fn allocate_checkpoint(&mut self, count: u32, runs: &mut Vec<Run>) {
        let from = runs.len();
        let dirty = std::mem::take(&mut self.dirty);
        self.allocate(Purpose::Metadata, count, runs);
        // They are not part of the stored bitmap.
        self.dirty = dirty;
        for run in &runs[from..] {
            self.checkpoint.extend(run.iter());
        }
    }

    /// Takes blocks for content that is staged. A checkpoint stores them as free.
    pub(crate) fn allocate_staged(&mut self, count: u32, runs: &mut Vec<Run>) {
        let from = runs.len();
        self.allocate(Purpose::Data, count, runs);
        for run in &runs[from..] {
            self.staged.extend(run.iter());
        }
    }

    /// A map names what was staged, from now on.
    pub(crate) fn adopt_staged(&mut self, run: Run) {
        for address in run.iter() {
            assert!(self.staged.remove(&address), "only what is staged is adopted");
        }
        self.mark_dirty(run);
    }

    /// What was staged is not wanted any more, and no write of it is under way.
    pub(crate) fn give_staged(&mut self, run: Run) {
        for address in run.iter() {
            assert!(self.staged.remove(&address), "only what is staged is given up");
        }
        self.give(run);
    }

    /// Blocks of content that is staged.
    pub(crate) fn staged_blocks(&self) -> u64 {
        self.staged.len() as u64
    }

    /// A page of the present checkpoint is superseded by the one under way.
    pub(crate) fn supersede_checkpoint(&mut self, run: Run) {
        self.freed_by_checkpoint_blocks += u64::from(run.count);
        self.freed_by_checkpoint.push(run);
    }

    /// Whether a block is taken, for whatever reason.
    pub(crate) fn is_taken(&self, address: u64) -> bool {
        self.place_of(address)
            .is_some_and(|(chunk, at)| chunk < self.chunks.len() && self.chunks.is_taken(chunk, at))
    }

    /// Whether a run lies in chunks that are allocated.
    pub(crate) fn is_allocated(&self, run: Run) -> bool {
        let allocated = |address| {
            self.place_of(address).is_some_and(|(chunk, _)| {
                chunk < self.chunks.len() && self.chunks.state(chunk) == ChunkState::Allocated
            })
        };
        allocated(run.address) && allocated(run.end() - 1)
    }

    fn mark_dirty(&mut self, run: Run) {
        for address in [run.address, run.end() - 1] {
            if let Some((chunk, _)) = self.place_of(address) {
                self.dirty.insert(chunk / BITMAP_CHUNKS_PER_PAGE as u32);
            }
        }
    }

    /// Pages of the bitmap that differ from the last checkpoint.
    pub(crate) fn dirty_pages(&self) -> usize {
        self.dirty.len()
    }

    /// Takes the list of bitmap pages to write, and all runs that are not available but must be
    /// stored as free, in address order.
    pub(crate) fn take_dirty(&mut self) -> (Vec<u32>, Vec<Run>) {
        let mut hidden: Vec<Run> = self.quarantine.iter().map(|entry| entry.run).collect();
        hidden.extend(self.freed_by_checkpoint.iter().copied());
        hidden.sort_unstable();
        (std::mem::take(&mut self.dirty).into_iter().collect(), hidden)
    }

    /// One page of the bitmap as it is to be stored. `hidden` comes from [`Space::take_dirty`].
    pub(crate) fn bitmap_page(&self, page: u32, hidden: &[Run]) -> Vec<(bool, [u64; 4])> {
        let first = page * BITMAP_CHUNKS_PER_PAGE as u32;
        let end = (first + BITMAP_CHUNKS_PER_PAGE as u32).min(self.chunks.len());
        let mut chunks: Vec<(bool, [u64; 4])> =
            (first..end).map(|chunk| self.chunks.stored(chunk)).collect();
        let (start, stop) = (self.address_of(first), self.address_of(end));
        let mut clear = |address: u64| {
            let offset = address - start;
            let (chunk, at) = (offset / u64::from(CHUNK_BLOCKS), offset % u64::from(CHUNK_BLOCKS));
            chunks[chunk as usize].1[at as usize / 64] &= !(1 << (at % 64));
        };
        self.checkpoint.range(start..stop).for_each(|&address| clear(address));
        self.staged.range(start..stop).for_each(|&address| clear(address));
        let from = hidden.partition_point(|run| run.end() <= start);
        for run in hidden[from..].iter().take_while(|run| run.address < stop) {
            run.iter().filter(|address| (start..stop).contains(address)).for_each(&mut clear);
        }
        chunks
    }

    /// Up to `limit` neighbouring chunks of a state, the lowest ones.
    pub(crate) fn find_chunks(&self, state: ChunkState, limit: u32) -> Option<(u32, u32)> {
        self.chunks.find(state, limit)
    }

    /// Up to `limit` neighbouring chunks, the highest ones, that have nothing in them.
    pub(crate) fn find_empty_chunks(&self, limit: u32) -> Option<(u32, u32)> {
        self.chunks.find_empty(limit, &self.cursors)
    }

    /// Asserts what must hold of the counts.
    pub(crate) fn check(&self) {
        self.chunks.check();
        let quarantined: u64 = self.quarantine.iter().map(|q| u64::from(q.run.count)).sum();
        assert_eq!(quarantined, self.quarantined, "quarantined blocks are miscounted");
        for entry in &self.quarantine {
            assert!(entry.run.iter().all(|a| self.is_taken(a)), "a quarantined block is available");
        }
        assert!(self.checkpoint.iter().all(|&a| self.is_taken(a)), "a checkpoint block is free");
        assert!(self.staged.iter().all(|&a| self.is_taken(a)), "a staged block is available");
    }
}
