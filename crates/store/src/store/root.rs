//! Writing the root of a checkpoint: level by level from the lowest, whose pages list those of the
//! checkpoint, up to the one page that the superblock names.

use super::Serving;
use super::checkpoint::{Checkpoint, WRITES_MAX};
use crate::Effect;
use crate::layout::{CheckpointKind, PageHeader, ROOT_ENTRIES_PER_PAGE, RootEntry, encode_root};
use proto::{BLOCK_SIZE, Buffer};
use std::ops::Bound;

/// The level of the root that is being written.
#[derive(Default)]
pub(super) struct RootLevel {
    /// Number of its first page, and of the first page of the level below; without one below it
    /// lists the pages of the checkpoint.
    first: u32,
    below: Option<u32>,
    /// Number of the page that comes next, and how many pages of the level are left.
    next: u32,
    left: usize,
    /// The last page that is listed already.
    listed: Option<PageHeader>,
}

impl RootLevel {
    /// The level that lists `pages` pages of the checkpoint.
    pub(super) fn lowest(pages: usize) -> RootLevel {
        RootLevel { left: pages.div_ceil(ROOT_ENTRIES_PER_PAGE), ..RootLevel::default() }
    }

    /// The level above this one, which is written.
    fn above(&self) -> RootLevel {
        let pages = (self.next - self.first) as usize;
        RootLevel {
            first: self.next,
            below: Some(self.first),
            next: self.next,
            left: pages.div_ceil(ROOT_ENTRIES_PER_PAGE),
            listed: None,
        }
    }
}

impl Checkpoint {
    /// The entries of the next page of the root.
    fn next_root_entries(&mut self) -> Vec<RootEntry> {
        let RootLevel { first, below, listed, .. } = self.root;
        let root = |number| PageHeader { kind: CheckpointKind::Root, number };
        let (start, end) = match below {
            None => (Bound::Unbounded, Bound::Unbounded),
            Some(below) => (Bound::Included(root(below)), Bound::Excluded(root(first))),
        };
        let start = listed.map_or(start, Bound::Excluded);
        let pages = self.listing.range((start, end));
        let wanted =
            pages.filter(|(header, _)| below.is_some() || header.kind != CheckpointKind::Root);
        let entries = wanted.take(ROOT_ENTRIES_PER_PAGE).map(|(&header, listed)| RootEntry {
            header,
            address: listed.address,
            twin: listed.twin,
            checksum: listed.checksum,
        });
        let entries: Vec<RootEntry> = entries.collect();
        self.root.listed = entries.last().map(|entry| entry.header);
        entries
    }

    /// The only page of the highest level, which is written.
    fn top(&self) -> RootEntry {
        let header = PageHeader { kind: CheckpointKind::Root, number: self.root.first };
        let listed = self.listing.get(&header).expect("the top was written");
        let (address, twin, checksum) = (listed.address, listed.twin, listed.checksum);
        RootEntry { header, address, twin, checksum }
    }
}

impl Serving {
    /// Writes the next pages of the root, several at a time, each twice.
    pub(super) fn write_root(&mut self, effects: &mut Vec<Effect>) {
        while self.checkpoint.writes < WRITES_MAX {
            let level = &self.checkpoint.root;
            if level.left == 0 {
                if level.next == level.first + 1 {
                    return self.root_written(self.checkpoint.top());
                }
                self.checkpoint.root = level.above();
                continue;
            }
            let count = level.left.min(self.pages_with_room(2));
            if count == 0 {
                return self.want_metadata_space();
            }
            let mut buffer = Buffer::stale(count * BLOCK_SIZE);
            let mut written = Vec::with_capacity(count);
            for block in buffer.as_mut_slice().chunks_exact_mut(BLOCK_SIZE) {
                let number = self.checkpoint.root.next;
                let entries = self.checkpoint.next_root_entries();
                let checksum = encode_root(&entries, number, block);
                written.push((PageHeader { kind: CheckpointKind::Root, number }, checksum));
                self.checkpoint.root.next += 1;
                self.checkpoint.root.left -= 1;
            }
            self.write_twice(&written, buffer.freeze(), effects);
        }
    }
}
