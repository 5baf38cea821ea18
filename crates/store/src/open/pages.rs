//! Bringing up the map pages that the log changed: the page as the checkpoint has it, with the
//! entries of the log on top.

use super::replay::{Patch, Replay};
use super::{Common, Fetched};
use crate::cache::Cache;
use crate::layout::{BLOCKS_PER_PAGE, MapPage, PageName, parse_map_page};
use crate::table::{NOT_CACHED, Slot};
use crate::{DamagedPart, OpenError};
use proto::BLOCK_SIZE;
use std::collections::BTreeMap;

/// See the module's description.
pub(super) struct PageLoading {
    pub(super) replay: Replay,
    pub(super) cache: Cache,
    expected: BTreeMap<usize, Vec<(Slot, u8)>>,
    /// Pages whose read failed together with others: each is to be read alone.
    again: Vec<(Slot, u8)>,
}

impl PageLoading {
    /// Begins with all pages that the log changed and the checkpoint has.
    pub(super) fn new(common: &mut Common, mut replay: Replay) -> Result<PageLoading, OpenError> {
        replay.own_pages()?;
        replay.vet_length(&common.options)?;
        let mut wanted: Vec<(u64, Slot, u8)> = Vec::new();
        for (&(slot, page), patch) in &replay.patches {
            let (address, _) = replay.table.row(slot).page(usize::from(page));
            if address != 0 && patch.len() < BLOCKS_PER_PAGE as usize {
                wanted.push((address, slot, page));
            }
        }
        wanted.sort_unstable();
        let mut expected: BTreeMap<usize, Vec<(Slot, u8)>> = BTreeMap::new();
        for (address, slot, page) in wanted {
            let (item, _) = common.fetch.add_block(address);
            expected.entry(item).or_default().push((slot, page));
        }
        let cache = Cache::new(common.options.map_cache_bytes);
        Ok(PageLoading { replay, cache, expected, again: Vec::new() })
    }

    /// Takes one read.
    pub(super) fn fetched(&mut self, common: &mut Common, fetched: Fetched) {
        let Fetched { item, result } = fetched;
        let expected = self.expected.remove(&item).unwrap_or_default();
        if result.is_err() && expected.len() > 1 {
            return self.again.extend(expected);
        }
        for (place, (slot, page)) in expected.into_iter().enumerate() {
            let row = self.replay.table.row(slot);
            let (address, checksum) = row.page(usize::from(page));
            let name = PageName { lineage: row.lineage, key: row.key, page };
            let start = place * BLOCK_SIZE;
            let map = result.as_ref().ok().and_then(|buffer| {
                let bytes = buffer.as_slice().get(start..start + BLOCK_SIZE)?;
                parse_map_page(bytes, &name, checksum)
            });
            let map = map.unwrap_or_else(|| {
                let PageName { lineage, key, page } = name;
                let part = DamagedPart::MapPage { lineage, key, page };
                common.damaged(part, address, result.is_err());
                // What the log says of it is known; the rest is lost for good.
                MapPage::lost()
            });
            let patch = self.replay.patches.remove(&(slot, page)).unwrap_or_default();
            self.merge(slot, page, map, &patch);
        }
    }

    /// All reads asked for are done. Returns whether all pages are read.
    pub(super) fn advance(&mut self, common: &mut Common) -> bool {
        for (slot, page) in std::mem::take(&mut self.again) {
            let (address, _) = self.replay.table.row(slot).page(usize::from(page));
            let item = common.fetch.add(address, 1);
            self.expected.insert(item, vec![(slot, page)]);
        }
        self.expected.is_empty()
    }

    /// Puts the entries of the log on a page and the page into the cache.
    fn merge(&mut self, slot: Slot, page: u8, mut map: MapPage, patch: &Patch) {
        for (&at, &entry) in patch {
            map.replace(u32::from(at), entry);
        }
        let data = map.data();
        let known = self.replay.table.row(slot).page(usize::from(page)).0 != 0;
        if known || !map.is_empty() {
            let table = &mut self.replay.table;
            self.cache.insert(table, slot, page, map);
            let index = table.row(slot).cached[usize::from(page)];
            assert_ne!(index, NOT_CACHED, "it was just put in");
            self.cache.change(index, self.replay.tail.lsn);
        }
        self.replay.table.change(slot).counts[usize::from(page)] = data;
    }

    /// All pages are read: those that exist in the log alone are added.
    pub(super) fn finish(mut self) -> PageLoading {
        for ((slot, page), patch) in std::mem::take(&mut self.replay.patches) {
            self.merge(slot, page, MapPage::new(), &patch);
        }
        self
    }
}
