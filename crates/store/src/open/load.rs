//! Loading the checkpoint: the root, then the pages it lists, each from its twin if need be.

use super::replay::Replay;
use super::{Common, Fetched};
use crate::layout::{
    CheckpointKind, LayerRow, LineageRow, RootEntry, StatePage, Superblock, TableRow, parse_bitmap,
    parse_drops, parse_layers, parse_lineages, parse_root, parse_state, parse_table,
};
use crate::space::Space;
use crate::store::{Lineage, Listed, Listing, ScrubPlace};
use crate::table::Table;
use crate::{DamagedPart, OpenError};
use proto::{BLOCK_SIZE, LayerId, LineageId};
use std::collections::BTreeMap;

/// Which part is being read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A copy of the root.
    Root(usize),
    Pages,
    Twins,
}

/// See the module's description.
pub(super) struct Loading {
    superblock: Superblock,
    part: Part,
    root: Vec<u8>,
    root_failed: bool,
    entries: Vec<RootEntry>,
    /// Entries by item and place of the read that brings them.
    expected: BTreeMap<usize, Vec<usize>>,
    bad: Vec<(usize, bool)>,
    loaded: Loaded,
}

/// What the pages said.
#[derive(Default)]
struct Loaded {
    table: BTreeMap<u32, Vec<Option<TableRow>>>,
    bitmap: BTreeMap<u32, Vec<(bool, [u64; 4])>>,
    lineages: Vec<LineageRow>,
    layers: Vec<LayerRow>,
    drops: Vec<(LineageId, LayerId)>,
    state: StatePage,
}

impl Loaded {
    /// Takes in one page, if it is what the entry says.
    fn take(&mut self, entry: &RootEntry, bytes: &[u8]) -> Option<()> {
        let number = entry.header.number;
        match entry.header.kind {
            CheckpointKind::Table => {
                self.table.insert(number, parse_table(bytes, number, entry.checksum)?);
            }
            CheckpointKind::Bitmap => {
                self.bitmap.insert(number, parse_bitmap(bytes, number, entry.checksum)?);
            }
            CheckpointKind::Lineages => {
                self.lineages.extend(parse_lineages(bytes, number, entry.checksum)?);
            }
            CheckpointKind::Drops => {
                self.drops.extend(parse_drops(bytes, number, entry.checksum)?);
            }
            CheckpointKind::Layers => {
                self.layers.extend(parse_layers(bytes, number, entry.checksum)?);
            }
            CheckpointKind::State => self.state = parse_state(bytes, entry.checksum)?,
            CheckpointKind::Root => return None,
        }
        Some(())
    }
}

/// Why both copies of a page are gone.
fn lost(common: &Common, address: u64, twin: u64) -> OpenError {
    let found = common.options.medium_bytes;
    let needed = (address.max(twin) + 1) * BLOCK_SIZE as u64;
    if needed > found {
        return OpenError::Truncated { found, needed };
    }
    OpenError::TableDamaged { address }
}

impl Loading {
    /// Begins with the first copy of the root.
    pub(super) fn new(common: &mut Common, superblock: Superblock) -> Loading {
        let loading = Loading {
            superblock,
            part: Part::Root(0),
            root: Vec::new(),
            root_failed: false,
            entries: Vec::new(),
            expected: BTreeMap::new(),
            bad: Vec::new(),
            loaded: Loaded::default(),
        };
        common.fetch.clear();
        loading.fetch_root(common, 0);
        loading
    }

    fn fetch_root(&self, common: &mut Common, copy: usize) {
        for run in &self.superblock.root[copy] {
            common.fetch.add(run.address, run.count);
        }
    }

    /// Takes one read.
    pub(super) fn fetched(
        &mut self,
        common: &mut Common,
        fetched: Fetched,
    ) -> Result<(), OpenError> {
        let Fetched { item, result } = fetched;
        if let Part::Root(copy) = self.part {
            let runs = &self.superblock.root[copy];
            let before: u64 = runs[..item].iter().map(|run| u64::from(run.count)).sum();
            let start = before as usize * BLOCK_SIZE;
            match result {
                Ok(buffer) => {
                    let end = start + buffer.len();
                    if self.root.len() < end {
                        self.root.resize(end, 0);
                    }
                    self.root[start..end].copy_from_slice(buffer.as_slice());
                }
                Err(_) => self.root_failed = true,
            }
            return Ok(());
        }
        let expected = self.expected.remove(&item).unwrap_or_default();
        for (place, entry) in expected.into_iter().enumerate() {
            let found = match &result {
                Ok(buffer) => {
                    let start = place * BLOCK_SIZE;
                    let bytes = buffer.as_slice().get(start..start + BLOCK_SIZE);
                    bytes.and_then(|bytes| self.loaded.take(&self.entries[entry], bytes))
                }
                Err(_) => None,
            };
            if found.is_none() {
                let address = common.fetch.address(item) + place as u64;
                common.damaged(DamagedPart::Checkpoint, address, result.is_err());
                if self.part == Part::Twins {
                    let address = self.entries[entry].address;
                    return Err(lost(common, address, self.entries[entry].twin));
                }
                self.bad.push((entry, result.is_err()));
            }
        }
        Ok(())
    }

    /// All reads of the part are done. Returns whether that was the last part.
    pub(super) fn advance(&mut self, common: &mut Common) -> Result<bool, OpenError> {
        match self.part {
            Part::Root(_) if self.superblock.root_bytes == 0 => Ok(true),
            Part::Root(copy) => {
                let root = std::mem::take(&mut self.root);
                let failed = std::mem::take(&mut self.root_failed);
                let parsed = parse_root(&root, self.superblock.root_checksum);
                match parsed.filter(|_| !failed) {
                    Some(entries) => {
                        self.entries = entries;
                        self.part = Part::Pages;
                        let all: Vec<usize> = (0..self.entries.len()).collect();
                        self.fetch_pages(common, all, |entry| entry.address);
                        Ok(common.fetch.is_over())
                    }
                    None => {
                        let address = self.superblock.root[copy].first().map_or(0, |r| r.address);
                        common.damaged(DamagedPart::Checkpoint, address, failed);
                        if copy == 1 {
                            return Err(lost(common, address, address));
                        }
                        self.part = Part::Root(1);
                        self.fetch_root(common, 1);
                        Ok(false)
                    }
                }
            }
            Part::Pages if self.bad.is_empty() => Ok(true),
            Part::Pages => {
                let bad = std::mem::take(&mut self.bad);
                self.part = Part::Twins;
                let bad = bad.into_iter().map(|(entry, _)| entry).collect();
                self.fetch_pages(common, bad, |entry| entry.twin);
                Ok(false)
            }
            Part::Twins => Ok(true),
        }
    }

    fn fetch_pages(
        &mut self,
        common: &mut Common,
        mut wanted: Vec<usize>,
        address: impl Fn(&RootEntry) -> u64,
    ) {
        wanted.sort_by_key(|&entry| address(&self.entries[entry]));
        for entry in wanted {
            let (item, _) = common.fetch.add_block(address(&self.entries[entry]));
            self.expected.entry(item).or_default().push(entry);
        }
    }

    /// Brings up what replay begins with.
    pub(super) fn finish(self, common: &mut Common) -> Result<Replay, OpenError> {
        let first = self.superblock.root[0].first().map_or(0, |run| run.address);
        let damaged = OpenError::TableDamaged { address: first };
        let mut table = Table::default();
        for ((number, rows), wanted) in self.loaded.table.into_iter().zip(0..) {
            if number != wanted {
                return Err(damaged);
            }
            table.load(rows);
        }
        let mut space = Space::new(self.superblock.space_first);
        for ((number, chunks), wanted) in self.loaded.bitmap.into_iter().zip(0..) {
            if number != wanted || !space.load(number, &chunks) {
                return Err(damaged);
            }
        }
        let mut listing = Listing::new();
        for entry in &self.entries {
            let RootEntry { header, address, twin, checksum } = *entry;
            listing.insert(header, Listed { address, twin, checksum });
        }
        let lineage = |row: LineageRow| {
            let (fence, settled) = (row.fence, row.settled);
            let known = Lineage { fence, settled, ..Lineage::default() };
            (row.lineage, known)
        };
        let state = self.loaded.state;
        space.clean();
        let mut replay = Replay::new(self.superblock, space, table, listing);
        replay.lineages = self.loaded.lineages.into_iter().map(lineage).collect();
        for LayerRow { lineage, layer, parent } in self.loaded.layers {
            replay.add_layer(lineage, layer, parent);
        }
        replay.dropping = self.loaded.drops.into_iter().map(|(l, layer)| (layer, l)).collect();
        replay.scrub = ScrubPlace {
            pass: state.scrub_pass,
            position: state.scrub_position,
            errors: state.scrub_errors,
            passes_done: state.scrub_passes_done,
        };
        replay.lost_blocks = state.lost_blocks;
        replay.allocate_device(&common.options);
        Ok(replay)
    }
}
