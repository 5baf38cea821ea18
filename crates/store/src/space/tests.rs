//! Where blocks are found, against a list of what is taken.

use super::*;
use std::collections::BTreeSet;

/// Numbers that depend on a seed alone.
fn draw(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
}

/// A volume kept in space: the address of each of its blocks.
struct Volume {
    space: Space,
    blocks: Vec<u64>,
}

impl Volume {
    /// Written once in order.
    fn written(chunks: u32, blocks: u32) -> Volume {
        let mut space = Space::new(100);
        space.set_chunks(0, chunks, ChunkState::Allocated);
        let mut volume = Volume { space, blocks: vec![0; blocks as usize] };
        (0..blocks).step_by(256).for_each(|at| drop(volume.overwrite(at, 256)));
        volume
    }

    /// Writes blocks anew, as one write; what they had is available at once. Returns the runs.
    fn overwrite(&mut self, first: u32, count: u32) -> Vec<Run> {
        let mut runs = Vec::new();
        self.space.allocate(Purpose::Data, count, &mut runs);
        let addresses: Vec<u64> = runs.iter().flat_map(Run::iter).collect();
        assert_eq!(addresses.len(), count as usize);
        for (at, address) in (first as usize..).zip(addresses) {
            let old = std::mem::replace(&mut self.blocks[at], address);
            if old != 0 {
                self.space.give(Run { address: old, count: 1 });
            }
        }
        runs
    }

    fn shred(&mut self, times: u32, state: &mut u64) {
        for _ in 0..times {
            self.overwrite((draw(state) % self.blocks.len() as u64) as u32, 1);
        }
    }

    /// Overwrites all of it in order; returns into how many runs each MiB went.
    fn overwrite_all(&mut self) -> Vec<usize> {
        let blocks = self.blocks.len() as u32;
        (0..blocks).step_by(256).map(|at| self.overwrite(at, 256).len()).collect()
    }
}

/// A volume that random writes had cut up was read at half its speed after it was written again in
/// order: long writes had been given the single blocks that the short ones had freed.
#[test]
fn long_writes_get_long_runs_after_short_ones_cut_all_up() {
    let mut state = 7;
    let mut volume = Volume::written(512, 128 * 256);
    volume.shred(4 * 128 * 256, &mut state);
    let runs = volume.overwrite_all();
    // But for the first, which may find the end of what the last long write began.
    assert!(runs[1..].iter().all(|&runs| runs <= 2), "{runs:?}");
    volume.space.check();
    // Once all is written in order, what it lay in before is whole again.
    let whole = volume.space.empty() / u64::from(CHUNK_BLOCKS);
    assert!(whole >= 512 - 128 - 4, "{whole} chunks are empty");
}

#[test]
fn short_writes_made_together_lie_together() {
    let mut state = 7;
    let mut volume = Volume::written(512, 128 * 256);
    volume.shred(2 * 128 * 256, &mut state);
    let mut addresses = Vec::new();
    for _ in 0..320 {
        let at = draw(&mut state) % volume.blocks.len() as u64;
        addresses.push(volume.overwrite(at as u32, 1)[0].address);
    }
    let breaks = addresses.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count();
    // A chunk in use that is taken up again is half empty, in pieces of two blocks or so.
    assert!(breaks < 320 * 2 / 3, "{breaks}");
}

#[test]
fn short_writes_leave_chunks_whole_when_much_lies_scattered() {
    let mut state = 7;
    let mut volume = Volume::written(1024, 128 * 256);
    volume.shred(20 * 128 * 256, &mut state);
    let scattered = volume.space.available() - volume.space.empty();
    let bound = 128 * 256 / SCATTERED_DIVISOR + SCATTERED_BLOCKS_MIN + 3 * 256;
    assert!(scattered <= bound, "{scattered} of {bound}");
}

#[test]
fn everything_available_can_be_had() {
    let mut state = 7;
    let mut volume = Volume::written(160, 128 * 256);
    for _ in 0..100 {
        volume.shred(1000, &mut state);
        let mut runs = Vec::new();
        let all = volume.space.available() as u32;
        volume.space.allocate(Purpose::Metadata, 1, &mut runs);
        volume.space.allocate(Purpose::Data, all - 2, &mut runs);
        volume.space.allocate(Purpose::Data, 1, &mut runs);
        assert_eq!(volume.space.available(), 0);
        let taken: BTreeSet<u64> = runs.iter().flat_map(Run::iter).collect();
        assert_eq!(taken.len(), all as usize, "a block was given twice");
        assert!(volume.blocks.iter().all(|block| !taken.contains(block)));
        runs.into_iter().for_each(|run| volume.space.give(run));
        volume.space.check();
    }
}

#[test]
fn short_writes_go_to_chunks_written_before_and_long_ones_leave_them_these() {
    let mut space = Space::new(0);
    space.grow(0, 32, false);
    space.grow(32, 8, true);
    let mut take = |count| {
        let mut runs = Vec::new();
        space.allocate(Purpose::Data, count, &mut runs);
        space.check();
        runs[0].address / u64::from(CHUNK_BLOCKS)
    };
    assert_eq!((take(1), take(2), take(256), take(256)), (32, 32, 0, 1));
    assert_eq!(space.used_before(), 7);
    // What is given back has been written since.
    space.give(Run { address: 0, count: 256 });
    assert_eq!(space.used_before(), 8);
    space.check();
    // Chunks that were never written are the first to go.
    assert_eq!(space.find_empty_chunks(4), Some((28, 4)));
}
