//! Dropping layers: their objects leave the table one after the other in the background. Those of a
//! layer with nothing above it go; those of a layer with one above it become part of that one's.

use super::Serving;
use super::layers::usage_of;
use crate::cache::data_of;
use crate::layout::{PAGES_PER_OBJECT, Record, Run};
use crate::table::{NOT_CACHED, Next, Slot};
use crate::{DamagedPart, Effect};
use proto::{LayerId, LineageId, ObjectKey, Time};
use std::collections::BTreeMap;

/// Objects dropped in one round at most.
const OBJECTS_PER_ROUND: usize = 64;
/// Rows looked at in one round to find them.
const ROWS_PER_ROUND: u64 = 4096;
/// Objects whose pages are loaded at the same time.
const LOADING_MAX: usize = 32;
/// Pages of the cache for each of them: twice what a merge needs, so that what is loaded is still
/// there when the last page comes.
const CACHE_PAGES_PER_OBJECT: usize = 4 * PAGES_PER_OBJECT;
/// Layers that may wait for a checkpoint or a flush while another one is worked on.
const LAYERS_WAITING_MAX: usize = 8;

/// A layer that is being dropped.
#[derive(Clone, Copy, Debug)]
struct Dropping {
    lineage: LineageId,
    /// Whether that is in the log.
    logged: bool,
    /// No object is left below this index.
    index: u32,
    /// The last record that took an object out.
    lsn: u64,
}

/// The layers that are being dropped.
pub(super) struct Drops {
    layers: BTreeMap<LayerId, Dropping>,
    /// Looking for objects goes on in the next round, whatever else happens.
    goes_on: bool,
}

/// How far an object could be taken out.
enum Object {
    /// By this record.
    Gone(u64),
    /// Its pages are being loaded or written.
    Loading,
    /// A checkpoint must come first, or room.
    Waits,
}

impl Drops {
    /// `layers` were being dropped when the disk was opened.
    pub(super) fn new(layers: Vec<(LineageId, LayerId)>) -> Drops {
        let dropping = |lineage| Dropping { lineage, logged: true, index: 0, lsn: 0 };
        let layers = layers.into_iter().map(|(l, layer)| (layer, dropping(l))).collect();
        Drops { layers, goes_on: false }
    }

    pub(super) fn contains(&self, layer: LayerId) -> bool {
        !self.layers.is_empty() && self.layers.contains_key(&layer)
    }

    /// When the next round is wanted at the latest.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.goes_on.then(Time::default)
    }

    pub(super) fn count(&self) -> usize {
        self.layers.len()
    }

    /// For a checkpoint, in layer order.
    pub(super) fn list(&self) -> Vec<(LineageId, LayerId)> {
        self.layers.iter().map(|(&layer, dropping)| (dropping.lineage, layer)).collect()
    }
}

impl Serving {
    /// Begins to drop a layer, if there is anything of it.
    pub(super) fn drop_layer(
        &mut self,
        now: Time,
        lineage: LineageId,
        layer: LayerId,
        effects: &mut Vec<Effect>,
    ) {
        let here = self.layers.get(&layer).is_some_and(|known| known.lineage == lineage);
        let first = layer.0 == lineage.0 && self.lineages.contains_key(&lineage);
        if here || first {
            self.growth.deleting_goes_on(now);
            self.drop_staged_of(layer, effects);
            let dropping = Dropping { lineage, logged: false, index: 0, lsn: 0 };
            self.drops.layers.entry(layer).or_insert(dropping);
        }
    }

    /// Takes out the next objects: of the newest layer whose turn it is.
    pub(super) fn step_drops(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let mut below = LayerId(u64::MAX);
        let mut waiting = 0;
        self.drops.goes_on = false;
        while waiting < LAYERS_WAITING_MAX {
            let newest = self.drops.layers.range(..below).rev();
            let next = newest.map(|(&layer, _)| layer).find(|&layer| self.is_due(layer));
            let Some(layer) = next else { return };
            below = layer;
            if !self.log.has_room_for_background() {
                self.checkpoint.request();
                return;
            }
            let dropping = self.drops.layers.get_mut(&layer).expect("it was just found");
            if !std::mem::replace(&mut dropping.logged, true) {
                let lineage = dropping.lineage;
                let lsn = self.log.append(&Record::DropLayer { lineage, layer });
                self.in_flight.push(lsn, None, None, 0, 0, None);
            }
            let has_objects = self.layers.get(&layer).is_some_and(|l| l.usage.objects > 0);
            let moved = if has_objects {
                self.drop_objects(now, layer, effects)
            } else {
                self.finish_layer(layer)
            };
            if moved {
                self.growth.deleting_goes_on(now);
            }
            // What is in the log comes back here when it is written.
            if moved && self.log.has_pending() {
                return;
            }
            waiting += usize::from(!moved);
        }
    }

    /// Whether objects of a layer can go: those above it went before, and at most one layer is
    /// above it that stays.
    fn is_due(&self, layer: LayerId) -> bool {
        let Some(known) = self.layers.get(&layer).filter(|known| known.usage.objects > 0) else {
            return true;
        };
        let (children, child) = self.tree(known.lineage).children(layer);
        children == 0 || (children == 1 && !self.drops.contains(child))
    }

    /// Takes out some objects of a layer. Returns whether any went.
    fn drop_objects(&mut self, now: Time, layer: LayerId, effects: &mut Vec<Effect>) -> bool {
        let Dropping { lineage, mut index, .. } = self.drops.layers[&layer];
        let mut left = None;
        let (mut gone, mut loading) = (0, 0);
        let end = self.table.steps() + ROWS_PER_ROUND;
        let loading_max = (self.cache.limit() / CACHE_PAGES_PER_OBJECT).clamp(1, LOADING_MAX);
        while gone < OBJECTS_PER_ROUND && loading < loading_max {
            let rows = end.saturating_sub(self.table.steps());
            let slot = match self.table.next_of(lineage, layer, index, rows) {
                Next::Found(slot) => slot,
                Next::Later(later) => {
                    index = later;
                    self.drops.goes_on = true;
                    break;
                }
                Next::None => {
                    self.drops.goes_on = index > 0 && left.is_none();
                    index = 0;
                    break;
                }
            };
            if !self.log.has_room_for_background() {
                break;
            }
            index = self.table.row(slot).key.index;
            match self.take_out(now, slot, effects) {
                Object::Gone(lsn) => {
                    gone += 1;
                    self.drops.layers.get_mut(&layer).expect("it is being dropped").lsn = lsn;
                }
                Object::Loading => {
                    loading += 1;
                    left.get_or_insert(index);
                }
                Object::Waits => break,
            }
            index = index.saturating_add(1);
        }
        let dropping = self.drops.layers.get_mut(&layer).expect("it is being dropped");
        dropping.index = left.unwrap_or(index);
        gone > 0
    }

    /// Takes an object out, or begins what must come first.
    fn take_out(&mut self, now: Time, slot: Slot, effects: &mut Vec<Effect>) -> Object {
        if self.is_being_written(slot) {
            // Its pages may not be freed under a write. The checkpoint's end comes back here.
            return Object::Loading;
        }
        let row = self.table.row(slot);
        let (lineage, key) = (row.lineage, row.key);
        let replay_lsn = self.superblock.replay_lsn;
        // What replay would copy again must be there then.
        if let Some(&lsn) = self.copied.get(&key).filter(|&&lsn| lsn >= replay_lsn) {
            self.checkpoint.request_past(lsn);
            return Object::Waits;
        }
        if self.cache.wants_checkpoint() {
            // It begins by itself. Pages loaded now might leave before they are used.
            return Object::Waits;
        }
        let (children, child) = self.tree(lineage).children(key.layer);
        if children == 0 {
            let mut all = true;
            for page in 0..PAGES_PER_OBJECT {
                all &= self.load_page(slot, page, None, effects);
            }
            return if all {
                let history = self.table.row(slot).history();
                let lsn = self.drop_object(slot, effects);
                self.run_queue(now, history, effects);
                Object::Gone(lsn)
            } else {
                Object::Loading
            };
        }
        if let Some(lsn) = self.unsaved(slot) {
            self.checkpoint.request_past(lsn);
            return Object::Waits;
        }
        if self.cache.is_full_of_changes(PAGES_PER_OBJECT) {
            self.checkpoint.request();
            return Object::Waits;
        }
        if self.space.available() < self.promised_to_metadata() + PAGES_PER_OBJECT as u64 {
            self.want_metadata_space();
            return Object::Waits;
        }
        let upper = self.table.find(lineage, ObjectKey { layer: child, ..key });
        let mut all = true;
        for (page, upper) in (0..PAGES_PER_OBJECT).filter_map(|page| Some((page, upper?))) {
            if self.table.row(slot).owns(page) && self.table.row(upper).owns(page) {
                all &= self.load_page(slot, page, None, effects);
                all &= self.load_page(upper, page, None, effects);
            }
        }
        if all {
            Object::Gone(self.merge_object(slot, upper, child, effects))
        } else {
            Object::Loading
        }
    }

    /// A record that replay would do again and that is about the object or its pages.
    fn unsaved(&self, slot: Slot) -> Option<u64> {
        let row = self.table.row(slot);
        let cached = row.cached.iter().filter(|&&index| index != NOT_CACHED);
        let changes = cached.map(|&index| self.cache.peek(index).dirty_since);
        changes
            .filter(|&lsn| lsn > 0)
            .chain(Some(row.lsn).filter(|&lsn| lsn >= self.superblock.replay_lsn))
            .max()
    }

    /// Whether a checkpoint is writing a page of the object's map.
    pub(super) fn is_being_written(&self, slot: Slot) -> bool {
        let cached = self.table.row(slot).cached;
        cached.iter().any(|&index| index != NOT_CACHED && self.cache.peek(index).writing)
    }

    /// Takes an object out that no layer above shows. All its pages are cached.
    pub(super) fn drop_object(&mut self, slot: Slot, effects: &mut Vec<Effect>) -> u64 {
        let mut data: Vec<Run> = Vec::new();
        let mut freed: Vec<Run> = Vec::new();
        let has = usage_of(self.table.row(slot));
        for page in 0..PAGES_PER_OBJECT {
            let row = self.table.row(slot);
            let (address, _) = row.page(page);
            let (index, count) = (row.cached[page], row.counts[page]);
            if address != 0 {
                freed.push(Run { address, count: 1 });
            }
            if index == NOT_CACHED {
                continue;
            }
            if self.cache.peek(index).damaged {
                self.lost_blocks += u64::from(count);
            } else {
                data_of(&self.cache.peek(index).map, &mut data);
            }
            self.cache.remove(&mut self.table, index);
        }
        freed.append(&mut data);
        let row = self.table.remove(slot);
        let (lineage, key) = (row.lineage, row.key);
        let usage = &mut self.layers.get_mut(&key.layer).expect("its layer is known").usage;
        usage.objects -= has.objects;
        usage.map_blocks -= has.map_blocks;
        usage.data_blocks -= has.data_blocks;
        if let Some(lineage) = self.lineages.get_mut(&lineage) {
            lineage.objects -= 1;
        }
        let lsn = self.log.next_lsn();
        for run in &freed {
            self.space.free_after_record(*run, lsn, self.reads.next());
        }
        self.log.append(&Record::DropObject { lineage, key, freed });
        self.in_flight.push(lsn, Some((lineage, key.index)), None, 0, 0, None);
        self.forget_damages(|damage| match damage.part {
            DamagedPart::Data { key: at, .. } | DamagedPart::MapPage { key: at, .. } => at == key,
            _ => false,
        });
        self.seal_full_batch(effects);
        lsn
    }

    /// All objects of a layer are out: it leaves its lineage once no crash can bring one back.
    /// Returns whether it did.
    fn finish_layer(&mut self, layer: LayerId) -> bool {
        let Dropping { lineage, lsn, .. } = self.drops.layers[&layer];
        let tree = self.tree(lineage);
        if tree.contains(layer) || tree.is_named(layer) {
            if lsn > self.flusher.durable_lsn() {
                if lsn <= self.in_flight.complete_lsn() {
                    self.flusher.want();
                }
                return false;
            }
            let parent = tree.parent(layer).unwrap_or_default();
            let lsn = self.log.append(&Record::LayerGone { lineage, layer, parent });
            self.in_flight.push(lsn, None, None, 0, 0, None);
            let known = self.lineages.entry(lineage).or_default();
            known.tree.remove(layer);
            known.tree.raise(layer, parent);
            self.layers.remove(&layer);
        }
        self.drops.layers.remove(&layer);
        // A fence outlives the objects, for later layers, until the first layer is dropped.
        let Some(known) = self.lineages.get_mut(&lineage) else { return true };
        known.first_is_gone |= layer.0 == lineage.0;
        if known.tree.is_empty() && (known.fence.0 == 0 || known.first_is_gone) {
            self.lineages.remove(&lineage);
        }
        true
    }
}
