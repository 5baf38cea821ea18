//! The bits and states of chunks, and the choice of where to allocate.

use std::collections::BTreeSet;

/// Blocks of a chunk: 1 MiB.
pub(crate) const CHUNK_BLOCKS: u32 = 256;
/// Chunks are sorted by how many blocks they have available, this many to a class.
const CLASS_BLOCKS: u16 = 32;
const CLASSES: usize = (CHUNK_BLOCKS as u16 / CLASS_BLOCKS) as usize + 2;

/// What a chunk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChunkState {
    /// Nothing of it is on the medium.
    Hole,
    /// The medium was asked to allocate it.
    Growing,
    /// It may be written.
    Allocated,
    /// It is recorded as a hole, and given back once that is durable.
    Leaving,
}

/// All chunks.
#[derive(Default)]
pub(crate) struct Chunks {
    /// Which blocks are taken.
    bits: Vec<[u64; 4]>,
    states: Vec<ChunkState>,
    /// How many blocks are not taken.
    counts: Vec<u16>,
    /// Allocated chunks with available blocks, by class.
    classes: [BTreeSet<u32>; CLASSES],
    /// Allocated chunks that were never written; they stand in no class. To write to them first
    /// costs the file system a change of its own metadata, and the next flush a commit of that.
    raw: BTreeSet<u32>,
    available: u64,
    allocated: u32,
    holes: u32,
}

/// 0: none available; then classes of [`CLASS_BLOCKS`]; the last: all available.
fn class_of(count: u16) -> usize {
    match count {
        0 => 0,
        count if u32::from(count) == CHUNK_BLOCKS => CLASSES - 1,
        count => 1 + usize::from(count / CLASS_BLOCKS),
    }
}

impl Chunks {
    pub(crate) fn len(&self) -> u32 {
        self.bits.len() as u32
    }

    pub(crate) fn state(&self, chunk: u32) -> ChunkState {
        self.states[chunk as usize]
    }

    pub(crate) fn available(&self) -> u64 {
        self.available
    }

    pub(crate) fn allocated(&self) -> u32 {
        self.allocated
    }

    pub(crate) fn available_in(&self, chunk: u32) -> u32 {
        u32::from(self.counts[chunk as usize])
    }

    pub(crate) fn set_state(&mut self, chunk: u32, state: ChunkState) {
        while self.len() <= chunk {
            self.bits.push([0; 4]);
            self.states.push(ChunkState::Hole);
            self.counts.push(CHUNK_BLOCKS as u16);
            self.holes += 1;
        }
        let at = chunk as usize;
        let count = self.counts[at];
        if self.states[at] == ChunkState::Allocated {
            if !self.raw.remove(&chunk) {
                self.classes[class_of(count)].remove(&chunk);
            }
            self.available -= u64::from(count);
            self.allocated -= 1;
        }
        self.holes -= u32::from(self.states[at] == ChunkState::Hole);
        self.holes += u32::from(state == ChunkState::Hole);
        self.states[at] = state;
        if state == ChunkState::Allocated {
            self.classes[class_of(count)].insert(chunk);
            self.available += u64::from(count);
            self.allocated += 1;
        }
    }

    /// Nothing was ever written to the chunk, which is allocated and has nothing in it.
    pub(crate) fn set_raw(&mut self, chunk: u32) {
        assert!(self.classes[CLASSES - 1].remove(&chunk), "a raw chunk was written");
        self.raw.insert(chunk);
    }

    pub(crate) fn is_taken(&self, chunk: u32, at: u32) -> bool {
        self.bits[chunk as usize][at as usize / 64] & (1 << (at % 64)) != 0
    }

    /// Sets the count of a chunk and what follows from it.
    fn set_count(&mut self, chunk: u32, count: u16) {
        let old = std::mem::replace(&mut self.counts[chunk as usize], count);
        if self.states[chunk as usize] != ChunkState::Allocated {
            return;
        }
        self.available = self.available - u64::from(old) + u64::from(count);
        let (from, to) = (class_of(old), class_of(count));
        if self.raw.remove(&chunk) {
            self.classes[to].insert(chunk);
        } else if from != to {
            self.classes[from].remove(&chunk);
            self.classes[to].insert(chunk);
        }
    }

    /// Sets all bits of a chunk.
    pub(crate) fn set_bits(&mut self, chunk: u32, bits: [u64; 4]) {
        self.bits[chunk as usize] = bits;
        let taken: u32 = bits.iter().map(|word| word.count_ones()).sum();
        self.set_count(chunk, (CHUNK_BLOCKS - taken) as u16);
    }

    /// Takes a block; returns whether it was available.
    pub(crate) fn take(&mut self, chunk: u32, at: u32) -> bool {
        if self.is_taken(chunk, at) {
            return false;
        }
        self.bits[chunk as usize][at as usize / 64] |= 1 << (at % 64);
        self.set_count(chunk, self.counts[chunk as usize] - 1);
        true
    }

    /// Gives back a block that is taken.
    pub(crate) fn give(&mut self, chunk: u32, at: u32) {
        assert!(self.is_taken(chunk, at), "a block is freed twice");
        self.bits[chunk as usize][at as usize / 64] &= !(1 << (at % 64));
        self.set_count(chunk, self.counts[chunk as usize] + 1);
    }

    /// The first run of available blocks of at least `count`, else the longest one.
    fn best_run(&self, chunk: u32, count: u32) -> (u32, u32) {
        let bits = &self.bits[chunk as usize];
        let mut best = (0, 0);
        let mut at = 0;
        while at < CHUNK_BLOCKS {
            let word = bits[at as usize / 64] >> (at % 64);
            let rest = 64 - at % 64;
            if word & 1 != 0 {
                at += (!word).trailing_zeros().min(rest);
                continue;
            }
            let start = at;
            while at < CHUNK_BLOCKS {
                let word = bits[at as usize / 64] >> (at % 64);
                let rest = 64 - at % 64;
                let free = word.trailing_zeros().min(rest);
                at += free;
                if free < rest {
                    break;
                }
            }
            if at - start > best.1 {
                best = (start, at - start);
            }
            if best.1 >= count {
                break;
            }
        }
        best
    }

    /// Whether the chunk has `count` neighbouring blocks available.
    pub(crate) fn has_run(&self, chunk: u32, count: u32) -> bool {
        self.states[chunk as usize] == ChunkState::Allocated
            && u32::from(self.counts[chunk as usize]) >= count
            && self.best_run(chunk, count).1 >= count
    }

    /// Takes a run of at most `count` blocks, as long as there is one; returns first and length.
    pub(crate) fn take_run(&mut self, chunk: u32, count: u32) -> (u32, u32) {
        let (first, found) = self.best_run(chunk, count);
        let taken = found.min(count);
        assert!(taken > 0, "the chunk has no block available");
        let bits = &mut self.bits[chunk as usize];
        for at in first..first + taken {
            bits[at as usize / 64] |= 1 << (at % 64);
        }
        self.set_count(chunk, self.counts[chunk as usize] - taken as u16);
        (first, taken)
    }

    /// How many allocated chunks have nothing in them.
    pub(crate) fn empty(&self) -> u32 {
        self.used_before() + self.raw.len() as u32
    }

    /// Of these, how many have been written before.
    pub(crate) fn used_before(&self) -> u32 {
        self.classes[CLASSES - 1].len() as u32
    }

    /// The lowest allocated chunk that has nothing in it, raw or not; `next` if it is one.
    pub(crate) fn first_empty(&self, raw: bool, next: Option<u32>, avoid: &[u32]) -> Option<u32> {
        let chunks = if raw { &self.raw } else { &self.classes[CLASSES - 1] };
        let next = next.filter(|chunk| chunks.contains(chunk) && !avoid.contains(chunk));
        next.or_else(|| chunks.iter().copied().find(|chunk| !avoid.contains(chunk)))
    }

    /// About the emptiest of the allocated chunks that have something in them and at least about
    /// `least` blocks available.
    pub(crate) fn emptiest_in_use(&self, least: u16, avoid: &[u32]) -> Option<u32> {
        let classes = self.classes[class_of(least.max(1))..CLASSES - 1].iter().rev();
        classes.flatten().copied().find(|chunk| !avoid.contains(chunk))
    }

    /// Whether it is allocated, and its bits.
    pub(crate) fn stored(&self, chunk: u32) -> (bool, [u64; 4]) {
        let allocated = self.states[chunk as usize] == ChunkState::Allocated;
        (allocated, self.bits[chunk as usize])
    }

    pub(crate) fn find(&self, state: ChunkState, limit: u32) -> Option<(u32, u32)> {
        if state == ChunkState::Hole && self.holes == 0 {
            return None;
        }
        let first = self.states.iter().position(|&s| s == state)?;
        let run = self.states[first..].iter().take(limit as usize).take_while(|&&s| s == state);
        Some((first as u32, run.count() as u32))
    }

    pub(crate) fn find_empty(&self, limit: u32, avoid: &[Option<u32>]) -> Option<(u32, u32)> {
        let others = &self.classes[CLASSES - 1];
        let empty = if self.raw.is_empty() { others } else { &self.raw };
        let mut found = empty.iter().rev().filter(|&&chunk| !avoid.contains(&Some(chunk)));
        let last = *found.next()?;
        let mut first = last;
        for &chunk in found.take(limit as usize - 1) {
            if chunk + 1 != first {
                break;
            }
            first = chunk;
        }
        Some((first, last - first + 1))
    }

    pub(crate) fn check(&self) {
        let (mut available, mut allocated) = (0, 0);
        let holes = self.states.iter().filter(|&&state| state == ChunkState::Hole).count();
        assert_eq!(holes, self.holes as usize, "holes miscounted");
        for chunk in 0..self.len() {
            let at = chunk as usize;
            let taken: u32 = self.bits[at].iter().map(|word| word.count_ones()).sum();
            assert_eq!(
                u32::from(self.counts[at]) + taken,
                CHUNK_BLOCKS,
                "chunk {chunk} miscounted"
            );
            let is_allocated = self.states[at] == ChunkState::Allocated;
            let is_raw = self.raw.contains(&chunk);
            let listed = self.classes[class_of(self.counts[at])].contains(&chunk);
            assert_eq!(is_allocated, listed != is_raw, "chunk {chunk} is in the wrong class");
            assert!(!is_raw || taken == 0, "chunk {chunk} was never written but has blocks");
            assert!(is_allocated || taken == 0, "chunk {chunk} is a hole with blocks in use");
            if is_allocated {
                available += u64::from(self.counts[at]);
                allocated += 1;
            }
        }
        assert_eq!((available, allocated), (self.available, self.allocated), "chunks miscounted");
    }
}
