//! Ranges of bytes and blocks, and how they are cut into pieces of objects.

use proto::{BLOCK_SIZE, BLOCKS_PER_OBJECT, BlockRange, SECTOR_SIZE};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// A range of bytes of a volume, whole sectors, not empty, seen as blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Range {
    /// In bytes.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) length: u64,
}

impl Range {
    /// Nothing unless both are whole sectors and the end can be counted.
    pub(crate) fn new(offset: u64, length: u64) -> Option<Range> {
        let sector = SECTOR_SIZE as u64;
        let aligned = offset.is_multiple_of(sector) && length.is_multiple_of(sector);
        offset.checked_add(length)?.checked_add(BLOCK)?;
        aligned.then_some(Range { offset, length })
    }

    /// One past the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// The blocks that it touches: first, and one past the last.
    pub(crate) fn touched(&self) -> (u64, u64) {
        (self.offset / BLOCK, self.end().div_ceil(BLOCK))
    }

    /// The length of the blocks that it touches, in bytes.
    pub(crate) fn touched_bytes(&self) -> usize {
        let (first, end) = self.touched();
        (end - first) as usize * BLOCK_SIZE
    }

    /// The blocks that lie wholly in it; first and one past the last, equal if there are none.
    pub(crate) fn whole(&self) -> (u64, u64) {
        let first = self.offset.div_ceil(BLOCK);
        (first, (self.end() / BLOCK).max(first))
    }

    /// The block of which it covers only a part at its start.
    pub(crate) fn head(&self) -> Option<u64> {
        let (first, end) = self.touched();
        let partial = !self.offset.is_multiple_of(BLOCK)
            || (end == first + 1 && !self.end().is_multiple_of(BLOCK));
        partial.then_some(first)
    }

    /// The block of which it covers only a part at its end, if that is not the head.
    pub(crate) fn tail(&self) -> Option<u64> {
        let (first, end) = self.touched();
        (!self.end().is_multiple_of(BLOCK) && end > first + 1).then(|| end - 1)
    }

    /// The bytes of a block that it covers, counted from the block's start: from, and one past.
    pub(crate) fn within(&self, block: u64) -> (usize, usize) {
        let start = block * BLOCK;
        let from = self.offset.clamp(start, start + BLOCK) - start;
        let to = self.end().clamp(start, start + BLOCK) - start;
        (from as usize, to as usize)
    }
}

/// The first piece of the blocks `first .. end`: object, and blocks of it, at most `most`.
pub(crate) fn piece(first: u64, end: u64, most: u32) -> (u32, BlockRange) {
    let per_object = u64::from(BLOCKS_PER_OBJECT);
    let start = (first % per_object) as u32;
    let left = u64::from(BLOCKS_PER_OBJECT - start).min(u64::from(most));
    let count = (end - first).min(left) as u32;
    let index = u32::try_from(first / per_object).expect("a volume has fewer than 2^32 objects");
    (index, BlockRange::new(start, count).expect("it stays in its object"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_know_their_edges() {
        // (offset, length) -> touched, whole, head, tail; in sectors and blocks.
        type Row = ((u64, u64), (u64, u64), (u64, u64), Option<u64>, Option<u64>);
        let table: [Row; 9] = [
            ((0, 8), (0, 1), (0, 1), None, None),
            ((8, 16), (1, 3), (1, 3), None, None),
            ((1, 2), (0, 1), (1, 1), Some(0), None),
            ((0, 1), (0, 1), (0, 0), Some(0), None),
            ((7, 1), (0, 1), (1, 1), Some(0), None),
            ((7, 2), (0, 2), (1, 1), Some(0), Some(1)),
            ((4, 12), (0, 2), (1, 2), Some(0), None),
            ((8, 9), (1, 3), (1, 2), None, Some(2)),
            ((4, 24), (0, 4), (1, 3), Some(0), Some(3)),
        ];
        for ((offset, length), touched, whole, head, tail) in table {
            let range = Range::new(offset * 512, length * 512).expect("whole sectors");
            assert_eq!(range.touched(), touched, "{offset}+{length}");
            assert_eq!(range.whole(), whole, "{offset}+{length}");
            assert_eq!((range.head(), range.tail()), (head, tail), "{offset}+{length}");
        }
        assert_eq!(Range::new(512, 100), None);
        assert_eq!(Range::new(100, 512), None);
        assert_eq!(Range::new(u64::MAX - 511, 512), None);
    }

    #[test]
    fn the_part_of_a_block_is_exact() {
        let range = Range::new(7 * 512, 10 * 512).expect("whole sectors");
        assert_eq!(range.within(0), (3584, 4096));
        assert_eq!(range.within(1), (0, 4096));
        assert_eq!(range.within(2), (0, 512));
    }

    #[test]
    fn pieces_stay_inside_objects() {
        let cut = |first: u64, end: u64, most: u32| {
            let (mut at, mut pieces) = (first, Vec::new());
            while at < end {
                let (index, blocks) = piece(at, end, most);
                pieces.push((index, blocks.first(), blocks.count()));
                at += u64::from(blocks.count());
            }
            pieces
        };
        assert_eq!(cut(0, 1, 256), [(0, 0, 1)]);
        assert_eq!(cut(1000, 1100, 256), [(0, 1000, 24), (1, 0, 76)]);
        assert_eq!(cut(0, 600, 256), [(0, 0, 256), (0, 256, 256), (0, 512, 88)]);
        assert_eq!(cut(1023, 3073, 1024), [(0, 1023, 1), (1, 0, 1024), (2, 0, 1024), (3, 0, 1)]);
    }
}
