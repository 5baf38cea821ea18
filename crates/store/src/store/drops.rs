//! Dropping layers: their objects leave the table one after the other in the background.

use super::Serving;
use crate::cache::data_of;
use crate::layout::{PAGES_PER_OBJECT, Record, Run};
use crate::table::{NOT_CACHED, Slot};
use crate::{DamagedPart, Effect};
use proto::{BlockRange, LayerId, LineageId, Time};
use std::collections::BTreeMap;

/// Objects dropped in one round at most.
const OBJECTS_PER_ROUND: usize = 64;
/// Objects whose pages are loaded at the same time.
const LOADING_MAX: usize = 32;

/// The layers that are being dropped.
pub(super) struct Drops {
    /// Layer, lineage, and whether that is in the log.
    layers: BTreeMap<LayerId, (LineageId, bool)>,
}

impl Drops {
    /// `layers` were being dropped when the disk was opened.
    pub(super) fn new(layers: Vec<(LineageId, LayerId)>) -> Drops {
        let logged = |(lineage, layer)| (layer, (lineage, true));
        Drops { layers: layers.into_iter().map(logged).collect() }
    }

    pub(super) fn contains(&self, layer: LayerId) -> bool {
        !self.layers.is_empty() && self.layers.contains_key(&layer)
    }

    pub(super) fn count(&self) -> usize {
        self.layers.len()
    }

    /// For a checkpoint, in layer order.
    pub(super) fn list(&self) -> Vec<(LineageId, LayerId)> {
        self.layers.iter().map(|(&layer, &(lineage, _))| (lineage, layer)).collect()
    }
}

impl Serving {
    /// Begins to drop a layer, if there is anything of it.
    pub(super) fn drop_layer(&mut self, lineage: LineageId, layer: LayerId) {
        let objects = self.layers.get(&layer).is_some_and(|known| known.lineage == lineage);
        let first = layer.0 == lineage.0 && self.lineages.contains_key(&lineage);
        if objects || first {
            self.drops.layers.entry(layer).or_insert((lineage, false));
        }
    }

    /// Drops the next objects.
    pub(super) fn step_drops(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Some((&layer, &(lineage, logged))) = self.drops.layers.first_key_value() else {
            return;
        };
        if !self.log.has_room_for_background() {
            self.checkpoint.request();
            return;
        }
        if !logged {
            let lsn = self.log.append(&Record::DropLayer { lineage, layer });
            self.in_flight.push(lsn, None, None, 0, 0, None);
            self.drops.layers.insert(layer, (lineage, true));
        }
        let slots: Vec<Slot> = self.table.slots_of(layer).take(OBJECTS_PER_ROUND).collect();
        let mut loading = 0;
        for slot in &slots {
            if !self.log.has_room_for_background() || loading >= LOADING_MAX {
                break;
            }
            if self.is_being_written(*slot) {
                // Its pages may not be freed under a write. The checkpoint's end comes back here.
                loading += 1;
            } else if self.load_pages(*slot, &BlockRange::whole(), None, effects) {
                self.drop_object(now, *slot, effects);
            } else {
                loading += 1;
            }
        }
        if slots.is_empty() {
            self.drops.layers.remove(&layer);
            // A fence outlives the objects, for later layers, until the first layer is dropped.
            let is_over = self.lineages.get(&lineage).is_some_and(|known| {
                known.objects == 0 && (known.fence.0 == 0 || layer.0 == lineage.0)
            });
            if is_over {
                self.lineages.remove(&lineage);
            }
        }
    }

    /// Whether a checkpoint is writing a page of the object's map.
    fn is_being_written(&self, slot: Slot) -> bool {
        let cached = self.table.row(slot).cached;
        cached.iter().any(|&index| index != NOT_CACHED && self.cache.peek(index).writing)
    }

    /// Takes an object out. All its pages are cached.
    fn drop_object(&mut self, now: Time, slot: Slot, effects: &mut Vec<Effect>) {
        let mut data: Vec<Run> = Vec::new();
        let mut freed: Vec<Run> = Vec::new();
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
        let layer = self.layers.get_mut(&row.key.layer).expect("an object's layer is known");
        layer.usage.objects -= 1;
        layer.usage.map_blocks -=
            (0..PAGES_PER_OBJECT).filter(|&p| row.page(p).0 != 0).count() as u64;
        layer.usage.data_blocks -= row.counts.iter().map(|&count| u64::from(count)).sum::<u64>();
        if layer.usage.objects == 0 {
            self.layers.remove(&row.key.layer);
        }
        if let Some(lineage) = self.lineages.get_mut(&row.lineage) {
            lineage.objects -= 1;
        }
        let (lineage, key) = (row.lineage, row.key);
        let lsn = self.log.next_lsn();
        for run in &freed {
            self.space.free_after_record(*run, lsn, self.reads.next());
        }
        self.log.append(&Record::DropObject { lineage, key, freed });
        self.in_flight.push(lsn, Some((slot, row.lsn)), None, 0, 0, None);
        self.forget_damages(|damage| match damage.part {
            DamagedPart::Data { key: at, .. } | DamagedPart::MapPage { key: at, .. } => at == key,
            _ => false,
        });
        self.seal_full_batch(effects);
        self.run_queue(now, key, effects);
    }
}
