//! Loading the checkpoint: the root from its top down, then the pages it lists, each from its twin
//! if need be.

use super::replay::Replay;
use super::{Common, Fetched};
use crate::layout::{
    CheckpointKind, LayerRow, LineageRow, MarkRow, PartitionRow, RootEntry, StatePage, Superblock,
    TableRow, may_follow, parse_bitmap, parse_drops, parse_layers, parse_lineages, parse_marks,
    parse_partitions, parse_root, parse_state, parse_table,
};
use crate::refusals::Refusals;
use crate::space::Space;
use crate::store::{Lineage, Listed, Listing, Mark, ScrubPlace};
use crate::table::Table;
use crate::{DamagedPart, OpenError};
use proto::{BLOCK_SIZE, LayerId, LineageId};
use std::collections::BTreeMap;

/// See the module's description.
pub(super) struct Loading {
    superblock: Superblock,
    /// What is being read: pages of one level of the root, or all pages that its lowest one lists.
    entries: Vec<RootEntry>,
    /// Whether it is the second copies that are being read.
    twins: bool,
    /// Entries by item and place of the read that brings them.
    expected: BTreeMap<usize, Vec<usize>>,
    /// Entries whose first copy is bad.
    bad: Vec<usize>,
    /// Entries whose read failed together with others: each is to be read alone.
    again: Vec<usize>,
    listing: Listing,
    loaded: Loaded,
}

/// What the pages said.
#[derive(Default)]
struct Loaded {
    /// Of one level of the root, by number.
    root: BTreeMap<u32, Vec<RootEntry>>,
    table: BTreeMap<u32, Vec<Option<TableRow>>>,
    bitmap: BTreeMap<u32, Vec<(bool, [u64; 4])>>,
    lineages: Vec<LineageRow>,
    layers: Vec<LayerRow>,
    partitions: Vec<PartitionRow>,
    marks: Vec<MarkRow>,
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
            CheckpointKind::Partitions => {
                self.partitions.extend(parse_partitions(bytes, number, entry.checksum)?);
            }
            CheckpointKind::Marks => {
                self.marks.extend(parse_marks(bytes, number, entry.checksum)?);
            }
            CheckpointKind::State => self.state = parse_state(bytes, entry.checksum)?,
            CheckpointKind::Root => {
                self.root.insert(number, parse_root(bytes, number, entry.checksum)?);
            }
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
    /// Begins with the top of the root.
    pub(super) fn new(common: &mut Common, superblock: Superblock) -> Loading {
        let mut loading = Loading {
            entries: superblock.root.into_iter().collect(),
            superblock,
            twins: false,
            expected: BTreeMap::new(),
            bad: Vec::new(),
            again: Vec::new(),
            listing: Listing::new(),
            loaded: Loaded::default(),
        };
        common.fetch.clear();
        loading.fetch_all(common);
        loading
    }

    /// Takes one read.
    pub(super) fn fetched(
        &mut self,
        common: &mut Common,
        fetched: Fetched,
    ) -> Result<(), OpenError> {
        let Fetched { item, result } = fetched;
        let expected = self.expected.remove(&item).unwrap_or_default();
        if result.is_err() && expected.len() > 1 {
            self.again.extend(expected);
            return Ok(());
        }
        for (place, entry) in expected.into_iter().enumerate() {
            let found = result.as_ref().ok().and_then(|buffer| {
                let start = place * BLOCK_SIZE;
                let bytes = buffer.as_slice().get(start..start + BLOCK_SIZE)?;
                self.loaded.take(&self.entries[entry], bytes)
            });
            if found.is_none() {
                let address = common.fetch.address(item) + place as u64;
                common.damaged(DamagedPart::Checkpoint, address, result.is_err());
                if self.twins {
                    let RootEntry { address, twin, .. } = self.entries[entry];
                    return Err(lost(common, address, twin));
                }
                self.bad.push(entry);
            }
        }
        Ok(())
    }

    /// All reads asked for are done. Returns whether everything is loaded.
    pub(super) fn advance(&mut self, common: &mut Common) -> Result<bool, OpenError> {
        if !self.again.is_empty() {
            for entry in std::mem::take(&mut self.again) {
                let item = common.fetch.add(self.address_of(entry), 1);
                self.expected.insert(item, vec![entry]);
            }
            return Ok(false);
        }
        if !self.bad.is_empty() {
            self.twins = true;
            let bad = std::mem::take(&mut self.bad);
            self.fetch(common, bad);
            return Ok(false);
        }
        self.twins = false;
        for entry in &self.entries {
            let RootEntry { header, address, twin, checksum } = *entry;
            self.listing.insert(header, Listed { address, twin, checksum });
        }
        if self.entries.first().is_none_or(|entry| entry.header.kind != CheckpointKind::Root) {
            return Ok(true);
        }
        self.entries = self.descend()?;
        self.fetch_all(common);
        Ok(false)
    }

    /// What a level of the root lists: the whole level below it, or all pages of the checkpoint.
    fn descend(&mut self) -> Result<Vec<RootEntry>, OpenError> {
        let above = self.entries[0];
        let lists = std::mem::take(&mut self.loaded.root);
        let below: Vec<RootEntry> = lists.into_values().flatten().collect();
        let in_order = below.windows(2).all(|pair| may_follow(pair[0].header, pair[1].header));
        let whole = below.last().is_some_and(|last| match last.header.kind {
            CheckpointKind::Root => last.header.number + 1 == above.header.number,
            _ => above.header.number == 0,
        });
        if !(in_order && whole) {
            return Err(OpenError::TableDamaged { address: above.address });
        }
        Ok(below)
    }

    fn address_of(&self, entry: usize) -> u64 {
        let RootEntry { address, twin, .. } = self.entries[entry];
        if self.twins { twin } else { address }
    }

    fn fetch_all(&mut self, common: &mut Common) {
        self.fetch(common, (0..self.entries.len()).collect());
    }

    fn fetch(&mut self, common: &mut Common, mut wanted: Vec<usize>) {
        wanted.sort_by_key(|&entry| self.address_of(entry));
        for entry in wanted {
            let (item, _) = common.fetch.add_block(self.address_of(entry));
            self.expected.entry(item).or_default().push(entry);
        }
    }

    /// Brings up what replay begins with.
    pub(super) fn finish(self, common: &mut Common) -> Result<Replay, OpenError> {
        let first = self.superblock.root.map_or(0, |top| top.address);
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
        let lineage = |row: LineageRow| {
            let (fence, settled) = (row.fence, row.settled);
            let known = Lineage { fence, settled, ..Lineage::default() };
            (row.lineage, known)
        };
        let state = self.loaded.state;
        space.clean();
        let mut replay = Replay::new(self.superblock, space, table, self.listing);
        replay.lineages = self.loaded.lineages.into_iter().map(lineage).collect();
        replay.refusals = Refusals::load(self.loaded.partitions.into_iter());
        for MarkRow { lineage, generation, settled } in self.loaded.marks {
            replay.lineages.entry(lineage).or_default().mark = Some(Mark { generation, settled });
        }
        for (slot, row) in replay.table.slots().filter(|(_, row)| row.unmarked) {
            replay.lineages.entry(row.lineage).or_default().unmarked.insert(slot);
        }
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
