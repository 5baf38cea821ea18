//! The object table: one row per object, in slots that a checkpoint writes page by page.

use crate::layout::{PAGES_PER_OBJECT, ROWS_PER_PAGE, TableRow};
use proto::{Generation, LayerId, LineageId, ObjectKey, Stamp};
use std::collections::{BTreeMap, BTreeSet};

/// A slot of the table.
pub(crate) type Slot = u32;
/// No cached page.
pub(crate) const NOT_CACHED: u32 = u32::MAX;
/// Objects whose slots are looked up together: neighbours in one layer.
const LEAF_OBJECTS: u32 = 64;
const NO_SLOT: Slot = Slot::MAX;

/// One object. There may be hundreds of thousands, so every byte counts.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) lineage: LineageId,
    pub(crate) key: ObjectKey,
    pub(crate) stamp: Stamp,
    pub(crate) settled_generation: Generation,
    pages: [PageReference; PAGES_PER_OBJECT],
    /// Data blocks in each page of the map.
    pub(crate) counts: [u16; PAGES_PER_OBJECT],
    /// Where each page of the map is cached.
    pub(crate) cached: [u32; PAGES_PER_OBJECT],
    /// The last record that changed the object.
    pub(crate) lsn: u64,
}

/// Where a map page is and what its checksum must be, in 13 bytes.
#[derive(Clone, Copy, Debug, Default)]
struct PageReference {
    address: [u8; 5],
    checksum: [u8; 8],
}

impl Row {
    /// An object that was never written.
    pub(crate) fn new(lineage: LineageId, key: ObjectKey) -> Row {
        Row {
            lineage,
            key,
            stamp: Stamp::default(),
            settled_generation: Generation(0),
            pages: [PageReference::default(); PAGES_PER_OBJECT],
            counts: [0; PAGES_PER_OBJECT],
            cached: [NOT_CACHED; PAGES_PER_OBJECT],
            lsn: 0,
        }
    }

    /// Address (0: none) and checksum of a page of the map.
    pub(crate) fn page(&self, page: usize) -> (u64, u64) {
        let [a, b, c, d, e] = self.pages[page].address;
        let address = u64::from_le_bytes([a, b, c, d, e, 0, 0, 0]);
        (address, u64::from_le_bytes(self.pages[page].checksum))
    }

    /// Moves a page of the map.
    pub(crate) fn set_page(&mut self, page: usize, address: u64, checksum: u64) {
        let [a, b, c, d, e, ..] = address.to_le_bytes();
        self.pages[page] =
            PageReference { address: [a, b, c, d, e], checksum: checksum.to_le_bytes() };
    }

    fn stored(&self) -> TableRow {
        TableRow {
            lineage: self.lineage,
            key: self.key,
            stamp: self.stamp,
            settled_generation: self.settled_generation,
            pages: std::array::from_fn(|page| self.page(page)),
            counts: self.counts,
            lsn: self.lsn,
        }
    }
}

impl From<TableRow> for Row {
    fn from(stored: TableRow) -> Row {
        let mut row = Row::new(stored.lineage, stored.key);
        row.stamp = stored.stamp;
        row.settled_generation = stored.settled_generation;
        for (page, (address, checksum)) in stored.pages.into_iter().enumerate() {
            row.set_page(page, address, checksum);
        }
        row.counts = stored.counts;
        row.lsn = stored.lsn;
        row
    }
}

/// Neighbouring objects of one layer.
type Leaf = Box<[Slot; LEAF_OBJECTS as usize]>;

/// See the module's description. A slot is occupied exactly when a leaf names it.
#[derive(Default)]
pub(crate) struct Table {
    /// Slots, a checkpoint page's worth at a time, so that growing copies nothing.
    pages: Vec<Vec<Option<Row>>>,
    leaves: BTreeMap<(LayerId, u32), Leaf>,
    empty: BTreeSet<Slot>,
    rows: u64,
    dirty: BTreeSet<u32>,
}

fn leaf_of(key: ObjectKey) -> ((LayerId, u32), usize) {
    ((key.layer, key.index / LEAF_OBJECTS), (key.index % LEAF_OBJECTS) as usize)
}

impl Table {
    /// How many objects there are.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// How many pages a checkpoint has of it.
    pub(crate) fn pages(&self) -> u32 {
        self.pages.len() as u32
    }

    /// The slot of an object.
    pub(crate) fn find(&self, key: ObjectKey) -> Option<Slot> {
        let (leaf, at) = leaf_of(key);
        self.leaves.get(&leaf).map(|leaf| leaf[at]).filter(|&slot| slot != NO_SLOT)
    }

    /// The row in a slot that must be occupied.
    pub(crate) fn row(&self, slot: Slot) -> &Row {
        self.row_in(slot).expect("the slot is occupied")
    }

    /// The row in a slot, if it is occupied.
    pub(crate) fn row_in(&self, slot: Slot) -> Option<&Row> {
        let (page, at) = (slot as usize / ROWS_PER_PAGE, slot as usize % ROWS_PER_PAGE);
        self.pages.get(page)?.get(at)?.as_ref()
    }

    /// The row in a slot that must be occupied, to be changed in what a checkpoint keeps.
    pub(crate) fn change(&mut self, slot: Slot) -> &mut Row {
        self.dirty.insert(slot / ROWS_PER_PAGE as u32);
        self.quietly(slot)
    }

    /// The row in a slot that must be occupied, to be changed only in what is in memory.
    pub(crate) fn quietly(&mut self, slot: Slot) -> &mut Row {
        let (page, at) = (slot as usize / ROWS_PER_PAGE, slot as usize % ROWS_PER_PAGE);
        self.pages[page][at].as_mut().expect("the slot is occupied")
    }

    /// Adds an object that is not there.
    pub(crate) fn insert(&mut self, row: Row) -> Slot {
        let slot = self.empty.pop_first().unwrap_or_else(|| {
            let first = (self.pages.len() * ROWS_PER_PAGE) as Slot;
            self.pages.push(vec![None; ROWS_PER_PAGE]);
            self.empty.extend(first + 1..first + ROWS_PER_PAGE as Slot);
            first
        });
        self.put(slot, row);
        self.dirty.insert(slot / ROWS_PER_PAGE as u32);
        slot
    }

    fn put(&mut self, slot: Slot, row: Row) {
        let (leaf, at) = leaf_of(row.key);
        let leaf = self.leaves.entry(leaf).or_insert_with(|| Box::new([NO_SLOT; 64]));
        assert_eq!(leaf[at], NO_SLOT, "an object has two rows");
        leaf[at] = slot;
        let (page, at) = (slot as usize / ROWS_PER_PAGE, slot as usize % ROWS_PER_PAGE);
        assert!(self.pages[page][at].is_none(), "a slot is used twice");
        self.pages[page][at] = Some(row);
        self.rows += 1;
    }

    /// Takes an object out.
    pub(crate) fn remove(&mut self, slot: Slot) -> Row {
        let (page, at) = (slot as usize / ROWS_PER_PAGE, slot as usize % ROWS_PER_PAGE);
        let row = self.pages[page][at].take().expect("the slot is occupied");
        let (name, at) = leaf_of(row.key);
        let leaf = self.leaves.get_mut(&name).expect("a row has a leaf");
        leaf[at] = NO_SLOT;
        if leaf.iter().all(|&slot| slot == NO_SLOT) {
            self.leaves.remove(&name);
        }
        self.empty.insert(slot);
        self.dirty.insert(slot / ROWS_PER_PAGE as u32);
        self.rows -= 1;
        row
    }

    /// Takes in a page of a checkpoint, the next in order. Of two rows of one object the one with
    /// the later record is right: the page of the other was written before.
    pub(crate) fn load(&mut self, rows: Vec<Option<TableRow>>) {
        let first = (self.pages.len() * ROWS_PER_PAGE) as Slot;
        self.pages.push(vec![None; ROWS_PER_PAGE]);
        for (at, row) in rows.into_iter().enumerate() {
            let slot = first + at as Slot;
            let Some(row) = row else {
                self.empty.insert(slot);
                continue;
            };
            if let Some(other) = self.find(row.key) {
                if self.row(other).lsn > row.lsn {
                    self.empty.insert(slot);
                    self.dirty.insert(slot / ROWS_PER_PAGE as u32);
                    continue;
                }
                self.remove(other);
            }
            self.put(slot, Row::from(row));
        }
    }

    /// All slots of objects, in slot order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (Slot, &Row)> {
        let rows = self.pages.iter().flatten().enumerate();
        rows.filter_map(|(slot, row)| Some((slot as Slot, row.as_ref()?)))
    }

    /// The slots of a layer's objects, in index order, from an index on.
    pub(crate) fn slots_of(&self, layer: LayerId) -> impl Iterator<Item = Slot> {
        let leaves = self.leaves.range((layer, 0)..=(layer, u32::MAX));
        leaves.flat_map(|(_, leaf)| leaf.iter().copied()).filter(|&slot| slot != NO_SLOT)
    }

    /// Pages that differ from the last checkpoint.
    pub(crate) fn dirty_pages(&self) -> usize {
        self.dirty.len()
    }

    /// Takes the list of pages to write.
    pub(crate) fn take_dirty(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.dirty).into_iter().collect()
    }

    /// The slots of one page as they are to be stored.
    pub(crate) fn stored_page(&self, page: u32) -> impl Iterator<Item = Option<TableRow>> {
        self.pages[page as usize].iter().map(|row| row.as_ref().map(Row::stored))
    }

    /// Asserts what must hold between slots and leaves.
    pub(crate) fn check(&self) {
        let mut rows = 0;
        for (slot, row) in self.slots() {
            assert_eq!(self.find(row.key), Some(slot), "object {} is not found", row.key);
            rows += 1;
        }
        assert_eq!(rows, self.rows, "rows are miscounted");
        let slots = self.pages.len() * ROWS_PER_PAGE;
        assert_eq!(self.empty.len() as u64 + rows, slots as u64, "empty slots are miscounted");
    }
}
