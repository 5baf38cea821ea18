//! The cache of map pages, under a limit. A page with changes that no checkpoint has stays; clean
//! pages leave when room is needed, those not used lately first.

use crate::layout::{MapPage, Run};
use crate::table::{NOT_CACHED, Slot, Table};

/// What is accounted for one cached page, in bytes.
const PAGE_BYTES: usize = 4096 + 64;

/// Where a page is in the cache.
pub(crate) type CacheIndex = u32;

/// A cached page.
pub(crate) struct Cached {
    pub(crate) slot: Slot,
    pub(crate) page: u8,
    pub(crate) map: MapPage,
    /// The first record in it that no checkpoint page has; 0: none.
    pub(crate) dirty_since: u64,
    /// A checkpoint is writing it: it cannot leave before that is done.
    pub(crate) writing: bool,
    /// The page on the medium is damaged: all of it reads as lost and it may not be changed,
    /// because what its entries name is not known.
    pub(crate) damaged: bool,
    used_lately: bool,
}

impl Cached {
    /// Whether it is not known what some of its blocks are.
    pub(crate) fn is_lost(&self) -> bool {
        self.damaged || self.map.has_lost()
    }
}

/// See the module's description.
pub(crate) struct Cache {
    pages: Vec<Option<Cached>>,
    empty: Vec<CacheIndex>,
    hand: usize,
    count: usize,
    dirty: usize,
    limit: usize,
}

impl Cache {
    /// A cache of so many bytes.
    pub(crate) fn new(bytes: usize) -> Cache {
        Cache {
            pages: Vec::new(),
            empty: Vec::new(),
            hand: 0,
            count: 0,
            dirty: 0,
            limit: (bytes / PAGE_BYTES).max(16),
        }
    }

    /// Pages in it.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Pages with changes that no checkpoint has.
    pub(crate) fn dirty(&self) -> usize {
        self.dirty
    }

    /// Pages it holds at most.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether a checkpoint should begin to make pages clean.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.dirty * 2 > self.limit
    }

    /// Whether no page more may get dirty.
    pub(crate) fn is_full_of_changes(&self, more: usize) -> bool {
        self.dirty + more > self.limit - self.limit / 8 && self.dirty > 0
    }

    /// Puts in a page that is not there.
    pub(crate) fn insert(&mut self, table: &mut Table, slot: Slot, page: u8, map: MapPage) {
        let cached = Cached {
            slot,
            page,
            map,
            dirty_since: 0,
            writing: false,
            damaged: false,
            used_lately: true,
        };
        let index = self.empty.pop().unwrap_or_else(|| {
            self.pages.push(None);
            (self.pages.len() - 1) as CacheIndex
        });
        self.pages[index as usize] = Some(cached);
        self.count += 1;
        let place = &mut table.quietly(slot).cached[usize::from(page)];
        assert_eq!(*place, NOT_CACHED, "a page is cached twice");
        *place = index;
    }

    /// A page that is there, to be read.
    pub(crate) fn read(&mut self, index: CacheIndex) -> &Cached {
        let cached = self.pages[index as usize].as_mut().expect("the page is cached");
        cached.used_lately = true;
        cached
    }

    /// A page that is there, without using it.
    pub(crate) fn peek(&self, index: CacheIndex) -> &Cached {
        self.pages[index as usize].as_ref().expect("the page is cached")
    }

    /// A page that is there, to be changed by a record.
    pub(crate) fn change(&mut self, index: CacheIndex, lsn: u64) -> &mut Cached {
        let cached = self.pages[index as usize].as_mut().expect("the page is cached");
        cached.used_lately = true;
        if cached.dirty_since == 0 {
            cached.dirty_since = lsn;
            self.dirty += 1;
        }
        cached
    }

    /// A checkpoint writes the page as it is now; without a place to write it is merely clean.
    pub(crate) fn begin_write(&mut self, index: CacheIndex, writing: bool) {
        let cached = self.pages[index as usize].as_mut().expect("the page is cached");
        assert!(cached.dirty_since != 0, "only changed pages are written");
        cached.dirty_since = 0;
        cached.writing = writing;
        self.dirty -= 1;
    }

    /// The write of a page is done.
    pub(crate) fn end_write(&mut self, index: CacheIndex) {
        let cached = self.pages[index as usize].as_mut().expect("a page being written stays");
        cached.writing = false;
    }

    /// The page on the medium turned out to be damaged.
    pub(crate) fn mark_damaged(&mut self, index: CacheIndex, damaged: bool) {
        let cached = self.pages[index as usize].as_mut().expect("the page is cached");
        cached.damaged = damaged;
    }

    /// Takes a page out, whatever its state.
    pub(crate) fn remove(&mut self, table: &mut Table, index: CacheIndex) -> Cached {
        let cached = self.pages[index as usize].take().expect("the page is cached");
        self.dirty -= usize::from(cached.dirty_since != 0);
        self.count -= 1;
        self.empty.push(index);
        table.quietly(cached.slot).cached[usize::from(cached.page)] = NOT_CACHED;
        cached
    }

    /// A clean page belongs to another row of the same index from now on.
    pub(crate) fn adopt(&mut self, table: &mut Table, index: CacheIndex, slot: Slot) {
        let cached = self.pages[index as usize].as_mut().expect("the page is cached");
        assert!(cached.dirty_since == 0 && !cached.writing, "only clean pages change hands");
        let (page, old) = (usize::from(cached.page), cached.slot);
        cached.slot = slot;
        table.quietly(old).cached[page] = NOT_CACHED;
        let place = &mut table.quietly(slot).cached[page];
        assert_eq!(*place, NOT_CACHED, "a page is cached twice");
        *place = index;
    }

    /// The changed pages: index, slot and page, in slot order.
    pub(crate) fn dirty_list(&self) -> Vec<(CacheIndex, Slot, u8)> {
        let pages = self.pages.iter().enumerate();
        let mut list: Vec<_> = pages
            .filter_map(|(index, cached)| Some((index, cached.as_ref()?)))
            .filter(|(_, cached)| cached.dirty_since != 0)
            .map(|(index, cached)| (index as CacheIndex, cached.slot, cached.page))
            .collect();
        list.sort_unstable_by_key(|&(_, slot, page)| (slot, page));
        list
    }

    /// Makes clean pages leave until the limit holds, or nothing more can leave.
    pub(crate) fn shrink(&mut self, table: &mut Table) {
        let mut steps = 0;
        while self.count > self.limit && steps < 2 * self.pages.len() {
            steps += 1;
            let index = self.hand;
            self.hand = (self.hand + 1) % self.pages.len();
            let Some(cached) = self.pages[index].as_mut() else { continue };
            if cached.dirty_since != 0 || cached.writing {
                continue;
            }
            if std::mem::take(&mut cached.used_lately) {
                continue;
            }
            self.remove(table, index as CacheIndex);
        }
    }

    /// All pages in it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (CacheIndex, &Cached)> {
        let pages = self.pages.iter().enumerate();
        pages.filter_map(|(index, cached)| Some((index as CacheIndex, cached.as_ref()?)))
    }

    /// Asserts what must hold of the counts, and between rows and pages.
    pub(crate) fn check(&self, table: &Table) {
        let (mut count, mut dirty) = (0, 0);
        for (index, cached) in self.iter() {
            let row = table.row(cached.slot);
            let page = usize::from(cached.page);
            assert_eq!(row.cached[page], index, "a cached page is not found");
            if !cached.damaged {
                assert_eq!(row.counts[page], cached.map.data(), "data blocks are miscounted");
            }
            count += 1;
            dirty += usize::from(cached.dirty_since != 0);
        }
        assert_eq!((count, dirty), (self.count, self.dirty), "cached pages are miscounted");
    }
}

/// What a page names as data of its own, as runs in block order.
pub(crate) fn data_of(map: &MapPage, runs: &mut Vec<Run>) {
    for at in 0..crate::layout::BLOCKS_PER_PAGE {
        let entry = map.entry(at);
        if entry.kind == crate::layout::Kind::Data && entry.owner {
            crate::layout::push_block(runs, entry.address);
        }
    }
}
