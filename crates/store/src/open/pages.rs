//! Bringing up the map pages that the log changed: the page as the checkpoint has it, or a copy of
//! one that a layer below has, with what the log says on top.

use super::replay::Replay;
use super::{Common, Fetched};
use crate::cache::Cache;
use crate::layout::{MapPage, PageName, parse_map_page};
use crate::table::{NOT_CACHED, Slot};
use crate::{DamagedPart, OpenError};
use proto::BLOCK_SIZE;
use std::collections::{BTreeMap, BTreeSet};

/// See the module's description.
pub(super) struct PageLoading {
    pub(super) replay: Replay,
    pub(super) cache: Cache,
    expected: BTreeMap<usize, Vec<(Slot, u8)>>,
    /// Pages as the checkpoint has them.
    bases: BTreeMap<(Slot, u8), MapPage>,
    /// Pages of which something was wrong: each is to be read once more, alone.
    again: Vec<(Slot, u8)>,
    /// Those that were.
    read_again: BTreeSet<(Slot, u8)>,
}

impl PageLoading {
    /// Begins with all pages that the log changed or copied and the checkpoint has.
    pub(super) fn new(common: &mut Common, mut replay: Replay) -> Result<PageLoading, OpenError> {
        replay.own_pages()?;
        replay.vet_length(&common.options)?;
        // Where the checkpoint has the copy, it has it with what it was copied from.
        let table = &replay.table;
        let address = |slot: Slot, page: u8| table.row(slot).page(usize::from(page)).0;
        let patches = &replay.patches;
        let is_whole = |at: &(Slot, u8)| patches.get(at).is_some_and(|patch| patch.is_whole());
        replay.copies.retain(|&(slot, page), _| address(slot, page) == 0);
        let copied = replay.copies.iter().filter(|(at, _)| !is_whole(at));
        let sources = copied.map(|(&(_, page), &source)| (source, page));
        let mut wanted: BTreeSet<(u64, Slot, u8)> = BTreeSet::new();
        for (slot, page) in patches.keys().copied().chain(sources) {
            let address = address(slot, page);
            if address != 0 && !is_whole(&(slot, page)) {
                wanted.insert((address, slot, page));
            }
        }
        let mut expected: BTreeMap<usize, Vec<(Slot, u8)>> = BTreeMap::new();
        for (address, slot, page) in wanted {
            let (item, _) = common.fetch.add_block(address);
            expected.entry(item).or_default().push((slot, page));
        }
        let cache = Cache::new(common.options.map_cache_bytes);
        let (bases, again) = (BTreeMap::new(), Vec::new());
        Ok(PageLoading { replay, cache, expected, bases, again, read_again: BTreeSet::new() })
    }

    /// Takes one read.
    pub(super) fn fetched(&mut self, common: &mut Common, fetched: Fetched) {
        let Fetched { item, result } = fetched;
        let expected = self.expected.remove(&item).unwrap_or_default();
        for (place, (slot, page)) in expected.into_iter().enumerate() {
            let row = self.replay.table.row(slot);
            let (address, checksum) = row.page(usize::from(page));
            let name = PageName { lineage: row.lineage, key: row.key, page };
            let start = place * BLOCK_SIZE;
            let map = result.as_ref().ok().and_then(|buffer| {
                let bytes = buffer.as_slice().get(start..start + BLOCK_SIZE)?;
                parse_map_page(bytes, &name, checksum)
            });
            if map.is_none() && self.read_again.insert((slot, page)) {
                // What a page names is lost with it: one bad read is not enough for that.
                self.again.push((slot, page));
                continue;
            }
            let map = map.unwrap_or_else(|| {
                let PageName { lineage, key, page } = name;
                let part = DamagedPart::MapPage { lineage, key, page };
                common.damaged(part, address, result.is_err());
                // What the log says of it is known; the rest is lost for good.
                MapPage::lost()
            });
            self.bases.insert((slot, page), map);
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

    /// The page that a copy is made of, as it is at the end of the log: nothing was written to it
    /// after it was copied, and it was brought up before.
    fn source(&self, slot: Slot, page: u8) -> MapPage {
        let index = self.replay.table.row(slot).cached[usize::from(page)];
        match self.bases.get(&(slot, page)) {
            _ if index != NOT_CACHED => self.cache.peek(index).map.borrowed(),
            Some(base) => base.borrowed(),
            None => MapPage::new(),
        }
    }

    /// Brings one page up and puts it into the cache.
    fn bring_up(&mut self, slot: Slot, page: u8) {
        let mut map = match self.replay.copies.get(&(slot, page)) {
            Some(&source) => self.source(source, page),
            None => self.bases.remove(&(slot, page)).unwrap_or_else(MapPage::new),
        };
        if let Some(patch) = self.replay.patches.get(&(slot, page)) {
            patch.apply(&mut map);
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

    /// All pages are read: they are brought up, those of lower layers before their copies.
    pub(super) fn finish(mut self) -> PageLoading {
        let table = &self.replay.table;
        let pages = self.replay.patches.keys().chain(self.replay.copies.keys());
        let pages: BTreeSet<_> =
            pages.map(|&(slot, page)| (table.row(slot).key.layer, slot, page)).collect();
        for (_, slot, page) in pages {
            self.bring_up(slot, page);
        }
        self.replay.patches.clear();
        self.replay.copies.clear();
        self.bases.clear();
        self
    }
}
