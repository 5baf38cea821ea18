//! The layers of lineages: opening one, what one shows, and what is asserted of them.

use super::{Layer, Serving};
use crate::inflight::Acknowledgement;
use crate::layout::{BLOCKS_PER_PAGE, Kind, LayerRow, PAGES_PER_OBJECT, Record};
use crate::table::{NOT_CACHED, Slot};
use crate::tree::LayerTree;
use crate::{Effect, Usage};
use proto::{Generation, LayerId, LineageId, MemberError, MemberToken, ObjectKey};
use std::collections::BTreeMap;

static NO_LAYERS: LayerTree = LayerTree::new();

impl Serving {
    /// The layers of a lineage.
    pub(super) fn tree(&self, lineage: LineageId) -> &LayerTree {
        self.lineages.get(&lineage).map_or(&NO_LAYERS, |known| &known.tree)
    }

    /// The row that a layer shows.
    pub(super) fn shown(&self, lineage: LineageId, key: ObjectKey) -> Option<Slot> {
        self.table.resolve(self.tree(lineage), lineage, key)
    }

    /// The row that has a page of the map as a row's layer shows it.
    pub(super) fn source(&mut self, slot: Slot, page: usize) -> Option<Slot> {
        let lineage = self.table.row(slot).lineage;
        let tree = self.lineages.get(&lineage).map_or(&NO_LAYERS, |known| &known.tree);
        self.table.learn_source(tree, slot, page)
    }

    /// Takes a request to open a layer.
    pub(super) fn open_layer(
        &mut self,
        token: MemberToken,
        lineage: LineageId,
        generation: Generation,
        layer: LayerId,
        parent: LayerId,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(error) = self.vet_layer(lineage, generation, layer, parent) {
            return self.answer(token, Err(error), effects);
        }
        let acknowledgement = Acknowledgement::Done(token);
        if self.tree(lineage).contains(layer) {
            let lsn = self.lineages.get(&lineage).map_or(0, |known| known.opened_lsn);
            return self.acknowledge_after(lsn, acknowledgement, effects);
        }
        if !self.log.has_room_for_background() {
            self.checkpoint.request();
            return self.answer(token, Err(MemberError::Busy), effects);
        }
        if parent.0 == lineage.0 {
            self.add_layer(lineage, parent, LayerId(0));
        }
        self.add_layer(lineage, layer, parent);
        let lsn = self.log.append(&Record::Layer { lineage, layer, parent });
        self.lineages.entry(lineage).or_default().opened_lsn = lsn;
        self.in_flight.push(lsn, None, None, 0, 0, Some(acknowledgement));
        self.seal_full_batch(effects);
    }

    /// What is wrong with a request to open a layer.
    fn vet_layer(
        &self,
        lineage: LineageId,
        generation: Generation,
        layer: LayerId,
        parent: LayerId,
    ) -> Option<MemberError> {
        if let Some(error) = self.fenced(lineage, generation) {
            return Some(error);
        }
        let invalid = |why| Some(MemberError::invalid(why));
        if generation == Generation::SEALED {
            return invalid("no attachment has this generation");
        }
        if parent >= layer || layer.0 <= lineage.0 {
            return invalid("a layer's number is higher than its parent's");
        }
        if self.drops.contains(layer) {
            return invalid("the layer is deleted");
        }
        let foreign = |at: LayerId| self.layers.get(&at).is_some_and(|l| l.lineage != lineage);
        if foreign(layer) || foreign(parent) {
            return invalid("the layer belongs to another lineage");
        }
        let tree = self.tree(lineage);
        if !tree.contains(layer) {
            // What lies above it has been shown without it.
            return tree.is_named(layer).then_some(MemberError::invalid("a layer above is open"));
        }
        // Layers between the two that were dropped may be gone here already, or not yet.
        let known = parent.0 == 0 || !tree.contains(parent) || tree.is_below(parent, layer);
        (!known).then_some(MemberError::invalid("the layer has another parent"))
    }

    /// Notes that a lineage has a layer, if that is new.
    pub(super) fn add_layer(&mut self, lineage: LineageId, layer: LayerId, parent: LayerId) {
        let known = self.lineages.entry(lineage).or_default();
        if !known.tree.contains(layer) {
            known.tree.insert(layer, parent);
            self.layers.insert(layer, Layer { lineage, usage: Usage::default() });
        }
    }

    /// The layers for a checkpoint. First layers are there when anything else says so.
    pub(super) fn layer_rows(&self) -> Vec<LayerRow> {
        let rows = self.lineages.iter().flat_map(|(&lineage, known)| {
            known.tree.iter().map(move |(layer, parent)| LayerRow { lineage, layer, parent })
        });
        rows.filter(|row| row.layer.0 != row.lineage.0).collect()
    }

    /// Asserts what must hold of layers and of what their rows take from those below.
    pub(super) fn check_layers(&self) {
        let trees: BTreeMap<LayerId, LineageId> = self
            .lineages
            .iter()
            .flat_map(|(&lineage, known)| known.tree.iter().map(move |(layer, _)| (layer, lineage)))
            .collect();
        let known = self.layers.iter().map(|(&layer, known)| (layer, known.lineage));
        assert!(trees.into_iter().eq(known), "layers and their trees differ");
        for (slot, row) in self.table.slots() {
            self.table.check_sources(self.tree(row.lineage), slot);
        }
        for (_, cached) in self.cache.iter().filter(|(_, cached)| !cached.damaged) {
            for at in 0..BLOCKS_PER_PAGE {
                let entry = cached.map.entry(at);
                if entry.kind == Kind::Data && !entry.owner {
                    self.check_borrowed(cached.slot, usize::from(cached.page), at, entry.address);
                }
            }
        }
    }

    /// A borrowed block belongs to a row below, as far as memory can tell.
    fn check_borrowed(&self, slot: Slot, page: usize, at: u32, address: u64) {
        // Of a page that was damaged nobody knows the owners.
        let is_known = self.lost_blocks == 0;
        let owner = self.owner_below(slot, page, at, address);
        assert!(
            !(is_known && matches!(owner, Owner::Unknown)),
            "a borrowed block at {address} belongs to nobody below"
        );
    }

    /// Which layer below a row owns a block that the row borrows.
    pub(super) fn owner_below(&self, slot: Slot, page: usize, at: u32, address: u64) -> Owner {
        let tree = self.tree(self.table.row(slot).lineage);
        let mut lower = slot;
        while let Some(below) = self.table.below(tree, lower) {
            lower = below;
            let row = self.table.row(lower);
            if !row.owns(page) {
                continue;
            }
            let index = row.cached[page];
            if index == NOT_CACHED {
                return Owner::NotLoaded(lower);
            }
            if self.cache.peek(index).damaged {
                return Owner::Damaged;
            }
            let entry = self.cache.peek(index).map.entry(at);
            if entry.kind == Kind::Data && entry.owner && entry.address == address {
                return Owner::Layer;
            }
        }
        Owner::Unknown
    }
}

/// Who owns a block that is borrowed.
pub(super) enum Owner {
    /// A layer below.
    Layer,
    /// It depends on a page of this row, which is not cached.
    NotLoaded(Slot),
    /// The page that would tell is damaged.
    Damaged,
    /// Nobody: the block may be used again.
    Unknown,
}

/// What a row has.
pub(super) fn usage_of(row: &crate::table::Row) -> Usage {
    Usage {
        objects: 1,
        data_blocks: row.counts.iter().map(|&count| u64::from(count)).sum(),
        map_blocks: (0..PAGES_PER_OBJECT).filter(|&page| row.page(page).0 != 0).count() as u64,
    }
}
