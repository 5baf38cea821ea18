//! The three grains of storage, and ranges of blocks.

/// 4 KiB: the unit of checksum, presence and atomicity, in bytes.
pub const BLOCK_SIZE: usize = 4096;
/// 512 B: the finest alignment a guest may use, in bytes.
pub const SECTOR_SIZE: usize = 512;
/// 4 MiB: the unit of placement and repair, in bytes.
pub const OBJECT_SIZE: usize = 4 << 20;
/// How many blocks an object has.
pub const BLOCKS_PER_OBJECT: u32 = (OBJECT_SIZE / BLOCK_SIZE) as u32;

const _: () = assert!(OBJECT_SIZE.is_multiple_of(BLOCK_SIZE));
const _: () = assert!(BLOCK_SIZE.is_multiple_of(SECTOR_SIZE));

/// A run of blocks inside one object: `first .. first + count`, never empty, never past the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct BlockRange {
    first: u16,
    count: u16,
}

impl BlockRange {
    /// The blocks `first .. first + count` of an object, or nothing if that is empty or leaves it.
    pub fn new(first: u32, count: u32) -> Option<BlockRange> {
        let end = first.checked_add(count)?;
        if count == 0 || end > BLOCKS_PER_OBJECT {
            return None;
        }
        Some(BlockRange { first: first as u16, count: count as u16 })
    }

    /// All blocks of an object.
    pub fn whole() -> BlockRange {
        BlockRange { first: 0, count: BLOCKS_PER_OBJECT as u16 }
    }

    /// The first block.
    pub fn first(&self) -> u32 {
        u32::from(self.first)
    }

    /// The number of blocks, at least 1.
    pub fn count(&self) -> u32 {
        u32::from(self.count)
    }

    /// One past the last block.
    pub fn end(&self) -> u32 {
        self.first() + self.count()
    }

    /// The length in bytes.
    pub fn bytes(&self) -> usize {
        self.count() as usize * BLOCK_SIZE
    }

    /// Whether any block is in both.
    pub fn overlaps(&self, other: &BlockRange) -> bool {
        self.first() < other.end() && other.first() < self.end()
    }

    /// The blocks, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<> {
        self.first()..self.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_range_stays_inside_the_object() {
        assert!(BlockRange::new(0, 0).is_none());
        assert!(BlockRange::new(1024, 1).is_none());
        assert!(BlockRange::new(1023, 2).is_none());
        assert!(BlockRange::new(u32::MAX, 2).is_none());
        assert_eq!(BlockRange::new(0, 1024), Some(BlockRange::whole()));
        assert_eq!(BlockRange::new(1023, 1).map(|r| r.end()), Some(1024));
    }
}
