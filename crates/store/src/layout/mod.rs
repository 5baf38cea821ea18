//! The records of `docs/formats/disk.md`, one file each: writing them, and parsing bytes that may
//! be anything. Parsers are pure and total; what they return satisfies the bounds they state.

mod batch;
mod checkpoint;
mod codec;
#[cfg(test)]
mod golden;
mod map_page;
mod record;
mod root;
mod superblock;

pub(crate) use batch::{BATCH_HEADER_BYTES, BatchError, BatchHeader, parse_batch, seal_batch};
pub(crate) use checkpoint::{
    BITMAP_CHUNKS_PER_PAGE, CheckpointKind, DROPS_PER_PAGE, LAYERS_PER_PAGE, LINEAGES_PER_PAGE,
    LayerRow, LineageRow, MARKS_PER_PAGE, MarkRow, PARTITIONS_PER_PAGE, PageHeader, PartitionRow,
    ROWS_PER_PAGE, StatePage, TableRow, encode_bitmap, encode_drops, encode_layers,
    encode_lineages, encode_marks, encode_partitions, encode_state, encode_table, parse_bitmap,
    parse_checkpoint_page, parse_drops, parse_layers, parse_lineages, parse_marks,
    parse_partitions, parse_state, parse_table,
};
pub(crate) use map_page::{
    BLOCKS_PER_PAGE, Entry, Kind, MapPage, PAGES_PER_OBJECT, PageName, parse_map_page,
};
pub(crate) use record::{
    AttemptRecord, BlockRun, Content, LONG_RECORD_BYTES_MAX, MapRun, MergeRecord, MergedPage,
    PageCopy, RECORD_BYTES_MAX, Record, WriteRecord, encode_adopt, encode_record, encode_write,
    parse_records,
};
pub(crate) use root::{
    ROOT_ENTRIES_PER_PAGE, RootEntry, encode_root, may_follow, parse_root, root_pages,
};
pub(crate) use superblock::{LOG_FIRST, Superblock, SuperblockError, parse_superblock};

/// A run of blocks on the medium.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Run {
    /// Block address of the first.
    pub(crate) address: u64,
    /// How many.
    pub(crate) count: u32,
}

impl Run {
    /// One past the last block.
    pub(crate) fn end(&self) -> u64 {
        self.address + u64::from(self.count)
    }

    /// The block addresses, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + use<> {
        self.address..self.end()
    }
}

/// Adds a block to runs, growing the last one where it fits.
pub(crate) fn push_block(runs: &mut Vec<Run>, address: u64) {
    match runs.last_mut() {
        Some(last) if last.end() == address => last.count += 1,
        _ => runs.push(Run { address, count: 1 }),
    }
}

/// Addresses are 5 bytes in maps.
pub(crate) const ADDRESS_MAX: u64 = (1 << 40) - 1;
