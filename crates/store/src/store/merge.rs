//! Merging an object of a dropped layer into the one layer above it: what that still shows becomes
//! its own, the rest is freed.

use super::Serving;
use super::layers::usage_of;
use crate::layout::{
    BLOCKS_PER_PAGE, BlockRun, Entry, Kind, MergeRecord, MergedPage, PAGES_PER_OBJECT, Record, Run,
    push_block,
};
use crate::table::{NOT_CACHED, Slot};
use crate::{Damage, DamagedPart, Effect};
use proto::{LayerId, ObjectKey};

impl Serving {
    /// Makes an object part of the layer above, which has an object at `upper` or none. Nothing
    /// that replay would do again concerns the object, its pages are clean, and the pages that both
    /// own are cached.
    pub(super) fn merge_object(
        &mut self,
        lower: Slot,
        upper: Option<Slot>,
        target: LayerId,
        effects: &mut Vec<Effect>,
    ) -> u64 {
        let row = self.table.row(lower);
        let (lineage, key) = (row.lineage, row.key);
        let mut merge = MergeRecord {
            lineage,
            source: key.layer,
            target,
            index: key.index,
            new_row: None,
            pages: [MergedPage::Nothing; PAGES_PER_OBJECT],
            owned: Vec::new(),
            freed: Vec::new(),
        };
        let lsn = self.log.next_lsn();
        self.count(lower, false);
        let result = match upper {
            None => {
                self.hand_over_object(lower, &mut merge);
                lower
            }
            Some(upper) => {
                self.count(upper, false);
                self.merge_pages(lower, upper, lsn, &mut merge);
                self.table.remove(lower);
                if let Some(lineage) = self.lineages.get_mut(&lineage) {
                    lineage.objects -= 1;
                }
                upper
            }
        };
        self.table.change(result).lsn = lsn;
        self.count(result, true);
        for run in &merge.freed {
            self.space.free_after_record(*run, lsn, self.reads.next());
        }
        self.move_damages(key, &merge);
        self.log.append(&Record::Merge(merge));
        self.in_flight.push(lsn, Some((lineage, key.index)), None, 0, 0, None);
        self.seal_full_batch(effects);
        lsn
    }

    /// Adds what a row has to its layer's usage, or takes it off.
    fn count(&mut self, slot: Slot, adds: bool) {
        let row = self.table.row(slot);
        let (layer, has) = (row.key.layer, usage_of(row));
        let usage = &mut self.layers.get_mut(&layer).expect("an object's layer is known").usage;
        if adds {
            usage.objects += has.objects;
            usage.data_blocks += has.data_blocks;
            usage.map_blocks += has.map_blocks;
        } else {
            usage.objects -= has.objects;
            usage.data_blocks -= has.data_blocks;
            usage.map_blocks -= has.map_blocks;
        }
    }

    /// The layer above has no object: this one becomes its object.
    fn hand_over_object(&mut self, slot: Slot, merge: &mut MergeRecord) {
        let row = self.table.row(slot);
        merge.new_row = Some((row.stamp, row.settled_generation));
        for page in (0..PAGES_PER_OBJECT).filter(|&page| row.owns(page)) {
            let (address, checksum) = row.page(page);
            merge.pages[page] = MergedPage::Moved { address, checksum, data: row.counts[page] };
        }
        self.table.change_layer(slot, merge.target);
    }

    fn merge_pages(&mut self, lower: Slot, upper: Slot, lsn: u64, merge: &mut MergeRecord) {
        for page in 0..PAGES_PER_OBJECT {
            if !self.table.row(lower).owns(page) {
                continue;
            }
            if self.table.row(upper).owns(page) {
                merge.pages[page] = MergedPage::Merged;
                self.merge_page(lower, upper, page, lsn, merge);
            } else {
                merge.pages[page] = self.hand_over_page(lower, upper, page);
            }
        }
    }

    /// The object above does not have the page: it takes this one.
    fn hand_over_page(&mut self, lower: Slot, upper: Slot, page: usize) -> MergedPage {
        let row = self.table.row(lower);
        let (address, checksum) = row.page(page);
        let (data, index) = (row.counts[page], row.cached[page]);
        let row = self.table.change(upper);
        row.own(page);
        row.set_page(page, address, checksum);
        row.counts[page] = data;
        if index != NOT_CACHED {
            self.cache.adopt(&mut self.table, index, upper);
        }
        self.table.redirect(page, lower, upper);
        MergedPage::Moved { address, checksum, data }
    }

    /// Both have the page. Blocks that the upper one shows become its own, the others are freed.
    fn merge_page(
        &mut self,
        lower: Slot,
        upper: Slot,
        page: usize,
        lsn: u64,
        merge: &mut MergeRecord,
    ) {
        let row = self.table.row(lower);
        let (address, _) = row.page(page);
        let (lost, below) = (row.counts[page], row.cached[page]);
        let above = self.table.row(upper).cached[page];
        if address != 0 {
            merge.freed.push(Run { address, count: 1 });
        }
        if below == NOT_CACHED {
            return;
        }
        let is_damaged = |index| index != NOT_CACHED && self.cache.peek(index).damaged;
        if is_damaged(below) || is_damaged(above) {
            // What the upper page shows of these blocks is not known: they may not be used again.
            self.lost_blocks += u64::from(lost);
            self.cache.remove(&mut self.table, below);
            return;
        }
        let cached = self.cache.remove(&mut self.table, below);
        let mut shown: Vec<(u32, Entry)> = Vec::new();
        for at in 0..BLOCKS_PER_PAGE {
            let entry = cached.map.entry(at);
            if entry.kind != Kind::Data || !entry.owner {
                continue;
            }
            let covering = (above != NOT_CACHED).then(|| self.cache.peek(above).map.entry(at));
            if covering.is_some_and(|over| over.kind == Kind::Lost) {
                // What it was is not known: layers above may show the block.
                self.lost_blocks += 1;
            } else if covering.is_some_and(|over| over.shows_same(&entry)) {
                shown.push((at, entry));
            } else {
                push_block(&mut merge.freed, entry.address);
            }
        }
        if shown.is_empty() {
            return;
        }
        let map = &mut self.cache.change(above, lsn).map;
        for (at, entry) in shown {
            map.replace(at, entry);
            push_owned(&mut merge.owned, page as u32 * BLOCKS_PER_PAGE + at);
        }
        let data = map.data();
        self.table.change(upper).counts[page] = data;
    }

    /// Known damages of what the layer above has now are that one's.
    fn move_damages(&mut self, gone: ObjectKey, merge: &MergeRecord) {
        let target = ObjectKey { layer: merge.target, ..gone };
        let is_moved = |page: u32| !matches!(merge.pages[page as usize], MergedPage::Merged);
        let is_kept = |damage: &mut Damage| match &mut damage.part {
            DamagedPart::MapPage { key, page, .. } if *key == gone => {
                *key = target;
                is_moved(u32::from(*page))
            }
            DamagedPart::Data { key, block, .. } if *key == gone => {
                *key = target;
                let owned = merge.owned.iter().any(|run| {
                    let first = u32::from(run.first);
                    (first..first + u32::from(run.count)).contains(block)
                });
                owned || is_moved(*block / BLOCKS_PER_PAGE)
            }
            _ => true,
        };
        self.damages.retain_mut(is_kept);
    }
}

fn push_owned(runs: &mut Vec<BlockRun>, block: u32) {
    match runs.last_mut() {
        Some(run) if u32::from(run.first + run.count) == block => run.count += 1,
        _ => runs.push(BlockRun { first: block as u16, count: 1 }),
    }
}
