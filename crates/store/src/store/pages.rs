//! Loading map pages that are not cached.

use super::{Operation, Serving};
use crate::layout::{MapPage, PageName, parse_map_page};
use crate::table::{History, NOT_CACHED, Slot};
use crate::{Damage, DamagedPart, Effect, Notice};
use proto::{Buffer, DiskError, ObjectKey, Time};
use std::collections::BTreeMap;

/// Who waits for a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waiter {
    /// The first request in the queue of a history.
    Queue(History),
    /// A parked read.
    Read(u64),
}

/// One page under way.
struct Load {
    /// Whose page it was when the load began.
    key: ObjectKey,
    address: u64,
    checksum: u64,
    /// Keeps the page's block from being used again.
    hold: u64,
    /// Whether it is read once more, since the first time something was wrong.
    again: bool,
    waiters: Vec<Waiter>,
}

impl Load {
    /// A queue asks again whenever one of its pages has come; a read asks once.
    fn add(&mut self, waiter: Option<Waiter>) {
        let asks_again = |waiter: &Waiter| matches!(waiter, Waiter::Queue(_));
        let known = waiter.is_some_and(|w| asks_again(&w) && self.waiters.contains(&w));
        if !known {
            self.waiters.extend(waiter);
        }
    }
}

/// The pages under way.
#[derive(Default)]
pub(super) struct Loads {
    loads: BTreeMap<(Slot, u8), Load>,
}

#[cfg(test)]
impl Loads {
    /// How many wait for each page.
    pub(super) fn waiters(&self) -> Vec<usize> {
        self.loads.values().map(|load| load.waiters.len()).collect()
    }
}

impl Serving {
    /// Whether a page of a row is on the medium alone.
    pub(super) fn is_missing(&self, slot: Slot, page: usize) -> bool {
        let row = self.table.row(slot);
        row.page(page).0 != 0 && row.cached[page] == NOT_CACHED
    }

    /// Whether a page that a row owns is cached or does not exist. If not, its load is under way
    /// and will wake the waiter, if there is one: without, the caller looks again by itself.
    pub(super) fn load_page(
        &mut self,
        slot: Slot,
        page: usize,
        waiter: Option<Waiter>,
        effects: &mut Vec<Effect>,
    ) -> bool {
        if !self.is_missing(slot, page) {
            return true;
        }
        let row = self.table.row(slot);
        let (key, (address, checksum)) = (row.key, row.page(page));
        let page = page as u8;
        if let Some(load) = self.loads.loads.get_mut(&(slot, page)) {
            load.add(waiter);
            return false;
        }
        let hold = self.reads.hold();
        let load =
            Load { key, address, checksum, hold, again: false, waiters: Vec::from_iter(waiter) };
        self.loads.loads.insert((slot, page), load);
        self.counters.map_page_reads += 1;
        self.operations.read(Operation::LoadPage { slot, page }, address, 1, effects);
        false
    }

    /// A page has been read, or not.
    pub(super) fn page_loaded(
        &mut self,
        now: Time,
        slot: Slot,
        page: u8,
        result: Result<Buffer, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        let mut load =
            self.loads.loads.remove(&(slot, page)).expect("a load that ends was under way");
        let place = usize::from(page);
        let wanted = self.table.row_in(slot).is_some_and(|row| {
            row.key == load.key
                && row.page(place).0 == load.address
                && row.cached[place] == NOT_CACHED
        });
        if wanted {
            let name = PageName { lineage: self.table.row(slot).lineage, key: load.key, page };
            let map = result
                .as_ref()
                .ok()
                .and_then(|buffer| parse_map_page(buffer.as_slice(), &name, load.checksum))
                .filter(|map| map.data() == self.table.row(slot).counts[place]);
            let damaged = map.is_none();
            if damaged && !load.again {
                // What a page names is lost with it: one bad read is not enough for that.
                load.again = true;
                let address = load.address;
                self.loads.loads.insert((slot, page), load);
                self.counters.map_page_reads += 1;
                return self.operations.read(
                    Operation::LoadPage { slot, page },
                    address,
                    1,
                    effects,
                );
            }
            let map = map.unwrap_or_else(MapPage::lost);
            let in_part = !damaged && map.has_lost();
            self.cache.insert(&mut self.table, slot, page, map);
            if damaged {
                let index = self.table.row(slot).cached[place];
                self.cache.mark_damaged(index, true);
            }
            // A page that was lost while the log was replayed is known in part ever since.
            if damaged || in_part {
                let PageName { lineage, key, page } = name;
                let part = DamagedPart::MapPage { lineage, key, page };
                let unreadable = result.is_err();
                self.damaged(Damage { part, address: load.address, unreadable }, effects);
            } else {
                self.page_is_good(slot, &name, effects);
            }
        }
        self.reads.release(load.hold);
        for waiter in load.waiters {
            match waiter {
                Waiter::Queue(history) => self.run_queue(now, history, effects),
                Waiter::Read(parked) => self.retry_read(now, parked, effects),
            }
        }
    }

    /// A page was read and is whole: whatever was wrong with it is over, on the medium and, if it
    /// was not changed since, in memory.
    pub(super) fn page_is_good(&mut self, slot: Slot, name: &PageName, effects: &mut Vec<Effect>) {
        let index = self.table.row(slot).cached[usize::from(name.page)];
        if index != NOT_CACHED {
            let cached = self.cache.peek(index);
            let is_lost = cached.is_lost();
            if is_lost && (cached.dirty_since != 0 || cached.writing) {
                return;
            }
            if is_lost {
                self.cache.remove(&mut self.table, index);
            }
        }
        let &PageName { lineage, key, page } = name;
        let part = DamagedPart::MapPage { lineage, key, page };
        let over = |damage: &&Damage| damage.part == part;
        let mended = self.damages.iter().filter(over);
        effects.extend(mended.map(|damage| Effect::Notice(Notice::Mended(*damage))));
        self.forget_damages(|damage| damage.part == part);
    }
}
