//! The object table: one row per layer's object, in slots that a checkpoint writes page by page.
//!
//! The rows of one index of a lineage, those of all its layers, form a list, the newest layer
//! first. What a layer shows is found there: the first row whose layer is it or lies below it. For
//! the newest layer that is the first of the list, however many layers there are; and where a row
//! does not own a page of the map, it remembers which row below does.

use crate::layout::{PAGES_PER_OBJECT, ROWS_PER_PAGE, TableRow};
use crate::tree::LayerTree;
use proto::{Generation, LayerId, LineageId, ObjectKey, Stamp};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

/// All layers' objects of one index of a lineage: they have one history.
pub(crate) type History = (LineageId, u32);

/// A slot of the table.
pub(crate) type Slot = u32;
/// No cached page.
pub(crate) const NOT_CACHED: u32 = u32::MAX;
/// Indexes whose slots are looked up together: neighbours in one lineage.
const LEAF_OBJECTS: u32 = 64;
const NO_SLOT: Slot = Slot::MAX;
/// In the place of the address of a page that a row does not own: that nobody below does either.
/// Otherwise there is the slot that does, plus 1, or 0 while that is not known.
const NOBODY: u64 = crate::layout::ADDRESS_MAX;

/// One object. There may be hundreds of thousands, so every byte counts.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) lineage: LineageId,
    pub(crate) key: ObjectKey,
    pub(crate) stamp: Stamp,
    pub(crate) settled_generation: Generation,
    pages: [PageReference; PAGES_PER_OBJECT],
    /// Bit n: page n of the map belongs to this row.
    owned: u8,
    /// The mark of the lineage does not count: the object was adopted after it.
    pub(crate) unmarked: bool,
    /// The row of the next older layer with this index.
    older: Slot,
    /// Data blocks that each page of the map owns.
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
            owned: 0,
            unmarked: false,
            older: NO_SLOT,
            counts: [0; PAGES_PER_OBJECT],
            cached: [NOT_CACHED; PAGES_PER_OBJECT],
            lsn: 0,
        }
    }

    /// The index in its lineage.
    pub(crate) fn history(&self) -> History {
        (self.lineage, self.key.index)
    }

    /// Whether a page of the map belongs to this row.
    pub(crate) fn owns(&self, page: usize) -> bool {
        self.owned & (1 << page) != 0
    }

    /// Makes a page of the map this row's, all of it absent, if it is not this row's yet.
    pub(crate) fn own(&mut self, page: usize) {
        if !self.owns(page) {
            self.owned |= 1 << page;
            self.pages[page] = PageReference::default();
        }
    }

    /// Address (0: none) and checksum of a page of the map, if it is this row's.
    pub(crate) fn page(&self, page: usize) -> (u64, u64) {
        if !self.owns(page) {
            return (0, 0);
        }
        let [a, b, c, d, e] = self.pages[page].address;
        let address = u64::from_le_bytes([a, b, c, d, e, 0, 0, 0]);
        (address, u64::from_le_bytes(self.pages[page].checksum))
    }

    /// Who has a page that is not this row's, as far as that is known.
    fn source(&self, page: usize) -> Option<Option<Slot>> {
        let [a, b, c, d, e] = self.pages[page].address;
        match u64::from_le_bytes([a, b, c, d, e, 0, 0, 0]) {
            0 => None,
            NOBODY => Some(None),
            slot => Some(Some((slot - 1) as Slot)),
        }
    }

    fn set_source(&mut self, page: usize, source: Option<Slot>) {
        let value = source.map_or(NOBODY, |slot| u64::from(slot) + 1);
        let [a, b, c, d, e, ..] = value.to_le_bytes();
        self.pages[page].address = [a, b, c, d, e];
    }

    /// Moves a page of the map that is this row's.
    pub(crate) fn set_page(&mut self, page: usize, address: u64, checksum: u64) {
        assert!(self.owns(page), "a row moves a page that it does not own");
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
            owned: self.owned,
            unmarked: self.unmarked,
        }
    }
}

impl From<TableRow> for Row {
    fn from(stored: TableRow) -> Row {
        let mut row = Row::new(stored.lineage, stored.key);
        row.stamp = stored.stamp;
        row.settled_generation = stored.settled_generation;
        for (page, (address, checksum)) in stored.pages.into_iter().enumerate() {
            if stored.owned & (1 << page) != 0 {
                row.own(page);
                row.set_page(page, address, checksum);
            }
        }
        row.counts = stored.counts;
        row.lsn = stored.lsn;
        row.unmarked = stored.unmarked;
        row
    }
}

/// The newest rows of neighbouring indexes of one lineage.
type Leaf = Box<[Slot; LEAF_OBJECTS as usize]>;

/// What looking for the next object of a layer came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    Found(Slot),
    /// Enough was looked at: it goes on from this index.
    Later(u32),
    /// There is none from the index on.
    None,
}

/// See the module's description. A slot is occupied exactly when a list has it.
#[derive(Default)]
pub(crate) struct Table {
    /// Slots, a checkpoint page's worth at a time, so that growing copies nothing.
    pages: Vec<Vec<Option<Row>>>,
    leaves: BTreeMap<(LineageId, u32), Leaf>,
    empty: BTreeSet<Slot>,
    rows: u64,
    dirty: BTreeSet<u32>,
    /// Rows looked at while lists were followed.
    steps: Cell<u64>,
}

fn leaf_of((lineage, index): History) -> ((LineageId, u32), usize) {
    ((lineage, index / LEAF_OBJECTS), (index % LEAF_OBJECTS) as usize)
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

    /// Rows looked at while lists were followed.
    pub(crate) fn steps(&self) -> u64 {
        self.steps.get()
    }

    /// The rows of an index, the newest layer first.
    pub(crate) fn history(&self, history: History) -> impl Iterator<Item = Slot> {
        let (leaf, at) = leaf_of(history);
        let first = self.leaves.get(&leaf).map_or(NO_SLOT, |leaf| leaf[at]);
        self.list(first)
    }

    fn list(&self, first: Slot) -> impl Iterator<Item = Slot> {
        let existing = |slot: Slot| (slot != NO_SLOT).then_some(slot);
        std::iter::successors(existing(first), move |&slot| existing(self.row(slot).older))
            .inspect(|_| self.steps.set(self.steps.get() + 1))
    }

    /// The slot of a layer's own object.
    pub(crate) fn find(&self, lineage: LineageId, key: ObjectKey) -> Option<Slot> {
        self.history((lineage, key.index))
            .find(|&slot| self.row(slot).key.layer <= key.layer)
            .filter(|&slot| self.row(slot).key.layer == key.layer)
    }

    /// The slot of the object that a layer shows: its own or that of the nearest layer below.
    pub(crate) fn resolve(
        &self,
        tree: &LayerTree,
        lineage: LineageId,
        key: ObjectKey,
    ) -> Option<Slot> {
        self.history((lineage, key.index))
            .find(|&slot| tree.is_below(self.row(slot).key.layer, key.layer))
    }

    /// The row that a row's layer would show without the row.
    pub(crate) fn below(&self, tree: &LayerTree, slot: Slot) -> Option<Slot> {
        let row = self.row(slot);
        self.list(row.older).find(|&older| tree.is_below(self.row(older).key.layer, row.key.layer))
    }

    /// Whether a layer above has an object of its own: then this one takes no more changes.
    pub(crate) fn is_covered(&self, tree: &LayerTree, lineage: LineageId, key: ObjectKey) -> bool {
        self.history((lineage, key.index))
            .map(|slot| self.row(slot).key.layer)
            .take_while(|&layer| layer > key.layer)
            .any(|layer| tree.is_below(key.layer, layer))
    }

    /// The row that has a page of the map as a row's layer shows it.
    pub(crate) fn source(&self, tree: &LayerTree, slot: Slot, page: usize) -> Option<Slot> {
        let mut at = slot;
        loop {
            let row = self.row(at);
            if row.owns(page) {
                return Some(at);
            }
            if let Some(known) = row.source(page) {
                return known;
            }
            at = self.below(tree, at)?;
        }
    }

    /// The same, remembered.
    pub(crate) fn learn_source(
        &mut self,
        tree: &LayerTree,
        slot: Slot,
        page: usize,
    ) -> Option<Slot> {
        let source = self.source(tree, slot, page);
        let row = self.quietly(slot);
        if !row.owns(page) {
            row.set_source(page, source);
        }
        source
    }

    /// A page has moved from a row to one above it: those further above learn of it.
    pub(crate) fn redirect(&mut self, page: usize, from: Slot, to: Slot) {
        let history = self.row(to).history();
        let above: Vec<Slot> = self.history(history).take_while(|&slot| slot != to).collect();
        for slot in above {
            let row = self.quietly(slot);
            if !row.owns(page) && row.source(page) == Some(Some(from)) {
                row.set_source(page, Some(to));
            }
        }
    }

    /// The next object of a layer from an index on, looking at about so many rows.
    pub(crate) fn next_of(
        &self,
        lineage: LineageId,
        layer: LayerId,
        index: u32,
        rows: u64,
    ) -> Next {
        let end = self.steps() + rows;
        let (from, _) = leaf_of((lineage, index));
        for (&(_, leaf), slots) in self.leaves.range(from..=(lineage, u32::MAX)) {
            for (index, &first) in
                (leaf * LEAF_OBJECTS..).zip(slots.iter()).filter(|&(i, _)| i >= index)
            {
                if first == NO_SLOT {
                    continue;
                }
                if self.steps() >= end {
                    return Next::Later(index);
                }
                if let Some(slot) = self.find(lineage, ObjectKey { layer, index }) {
                    return Next::Found(slot);
                }
            }
        }
        Next::None
    }

    /// The slots of the next neighbouring indexes of a lineage from a place on, index by index, and
    /// the place behind them. The first place is 0; without any slots there is none behind.
    pub(crate) fn walk(&self, lineage: LineageId, place: u32) -> (Vec<Slot>, Option<u32>) {
        let Some((&(_, leaf), slots)) =
            self.leaves.range((lineage, place)..=(lineage, u32::MAX)).next()
        else {
            return (Vec::new(), None);
        };
        let slots = slots.iter().flat_map(|&first| self.list(first)).collect();
        (slots, leaf.checked_add(1))
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
        let (page, at) = (slot as usize / ROWS_PER_PAGE, slot as usize % ROWS_PER_PAGE);
        assert!(self.pages[page][at].is_none(), "a slot is used twice");
        self.pages[page][at] = Some(row);
        self.link(slot);
        self.rows += 1;
    }

    /// Puts a row into its list.
    fn link(&mut self, slot: Slot) {
        let (history, layer) = (self.row(slot).history(), self.row(slot).key.layer);
        let newer = self.history(history).take_while(|&at| self.row(at).key.layer > layer).last();
        let older = match newer {
            Some(newer) => std::mem::replace(&mut self.quietly(newer).older, slot),
            None => {
                let (leaf, at) = leaf_of(history);
                let leaf = self.leaves.entry(leaf);
                let leaf = leaf.or_insert_with(|| Box::new([NO_SLOT; LEAF_OBJECTS as usize]));
                std::mem::replace(&mut leaf[at], slot)
            }
        };
        assert!(
            older == NO_SLOT || self.row(older).key.layer < layer,
            "a layer has two objects of one index"
        );
        self.quietly(slot).older = older;
    }

    /// Takes a row out of its list.
    fn unlink(&mut self, slot: Slot) {
        let history = self.row(slot).history();
        let older = std::mem::replace(&mut self.quietly(slot).older, NO_SLOT);
        let newer = self.history(history).take_while(|&at| at != slot).last();
        if let Some(newer) = newer {
            self.quietly(newer).older = older;
            return;
        }
        let (name, at) = leaf_of(history);
        let leaf = self.leaves.get_mut(&name).expect("a row has a leaf");
        assert_eq!(leaf[at], slot, "a row is in no list");
        leaf[at] = older;
        if leaf.iter().all(|&slot| slot == NO_SLOT) {
            self.leaves.remove(&name);
        }
    }

    /// An object changes its layer; it keeps its slot.
    pub(crate) fn change_layer(&mut self, slot: Slot, layer: LayerId) {
        self.unlink(slot);
        self.change(slot).key.layer = layer;
        self.link(slot);
    }

    /// Takes an object out.
    pub(crate) fn remove(&mut self, slot: Slot) -> Row {
        self.unlink(slot);
        let (page, at) = (slot as usize / ROWS_PER_PAGE, slot as usize % ROWS_PER_PAGE);
        let row = self.pages[page][at].take().expect("the slot is occupied");
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
            if let Some(other) = self.find(row.lineage, row.key) {
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

    /// Asserts what must hold between slots and lists.
    pub(crate) fn check(&self) {
        let mut rows = 0;
        for (slot, row) in self.slots() {
            let found = self.find(row.lineage, row.key);
            assert_eq!(found, Some(slot), "object {} is not found", row.key);
            for page in (0..PAGES_PER_OBJECT).filter(|&page| !row.owns(page)) {
                let nothing = row.counts[page] == 0 && row.cached[page] == NOT_CACHED;
                assert!(nothing, "object {} has something of a page it does not own", row.key);
            }
            rows += 1;
        }
        assert_eq!(rows, self.rows, "rows are miscounted");
        let slots = self.pages.len() * ROWS_PER_PAGE;
        assert_eq!(self.empty.len() as u64 + rows, slots as u64, "empty slots are miscounted");
    }

    /// Asserts that what a row remembers of its layers below is so.
    pub(crate) fn check_sources(&self, tree: &LayerTree, slot: Slot) {
        let row = self.row(slot);
        for page in (0..PAGES_PER_OBJECT).filter(|&page| !row.owns(page)) {
            let Some(known) = row.source(page) else { continue };
            let below = std::iter::successors(Some(slot), |&at| self.below(tree, at));
            let owner = below.skip(1).find(|&at| self.row(at).owns(page));
            assert_eq!(known, owner, "object {} takes page {page} from a wrong row", row.key);
        }
    }
}
