//! The end of opening: the new superblock, the first batch of the new incarnation, and the parts
//! that serve from then on.

use super::Common;
use super::pages::PageLoading;
use super::replay::Replay;
use crate::cache::Cache;
use crate::layout::{PAGES_PER_OBJECT, Record, Superblock};
use crate::log::Log;
use crate::store::{Layer, Operation, ServingParts};
use crate::{Effect, OpenError, Opened, Usage};
use proto::{BLOCK_SIZE, DiskRequest, Incarnation, LayerId, Payload};
use std::collections::BTreeMap;

/// What was asked of the medium last.
enum Asked {
    Superblock,
    /// Makes durable all that was replayed, and the superblock.
    Flush,
    /// The first batch and the other superblock: how many are under way.
    Batch(usize),
    LastFlush,
}

/// See the module's description.
pub(super) struct Finishing {
    asked: Asked,
    replay: Replay,
    cache: Cache,
    log: Log,
    superblock: Superblock,
    layers: BTreeMap<LayerId, Layer>,
    lost_blocks: u64,
}

impl Finishing {
    /// Writes the new superblock over the one that does not rule.
    pub(super) fn new(
        common: &mut Common,
        loaded: PageLoading,
        effects: &mut Vec<Effect>,
    ) -> Result<Finishing, OpenError> {
        let PageLoading { mut replay, cache, .. } = loaded;
        let layers = count_layers(&mut replay)?;
        let owned: u64 = layers.values().map(|l| l.usage.data_blocks + l.usage.map_blocks).sum();
        let taken = replay.space.allocated() - replay.space.available();
        let owned = owned + replay.space.checkpoint_blocks();
        // A block that is used and that no map names belongs to a page that is lost.
        let lost_blocks = taken.checked_sub(owned).ok_or(OpenError::TableDamaged { address: 0 })?;
        let superblock = Superblock {
            sequence: replay.superblock.next_sequence(&common.damages),
            incarnation: Incarnation(replay.superblock.incarnation.0 + 1),
            // The limit is that of this opening: without one, all is allowed again.
            limit_blocks: common.options.limit_bytes.map_or(0, |limit| limit / BLOCK_SIZE as u64),
            ..replay.superblock.clone()
        };
        let superblock = since_boot(superblock, common.options.boot, !replay.cuts.is_empty());
        let disk = superblock.identity.disk;
        let live = std::mem::take(&mut replay.live);
        let (blocks, incarnation) = (superblock.log_blocks, superblock.incarnation);
        let log = Log::new(blocks, disk, incarnation, replay.tail, replay.head, live);
        let bytes: Payload = superblock.encode().freeze();
        let address = superblock.address();
        common.operations.write(Operation::Superblock, address, bytes, effects);
        let asked = Asked::Superblock;
        Ok(Finishing { asked, replay, cache, log, superblock, layers, lost_blocks })
    }

    /// What was found, for the offline check.
    pub(super) fn into_found(self) -> (Replay, Cache) {
        (self.replay, self.cache)
    }

    /// One operation has completed. Returns whether it was the last.
    pub(super) fn next(
        &mut self,
        common: &mut Common,
        effects: &mut Vec<Effect>,
    ) -> Result<bool, OpenError> {
        self.asked = match self.asked {
            Asked::Superblock => {
                common.operations.submit(Operation::Flush, DiskRequest::Flush, effects);
                Asked::Flush
            }
            Asked::Flush => self.write_batch(common, effects)?,
            Asked::Batch(1) => {
                common.operations.submit(Operation::Flush, DiskRequest::Flush, effects);
                Asked::LastFlush
            }
            Asked::Batch(left) => Asked::Batch(left - 1),
            Asked::LastFlush => return Ok(true),
        };
        Ok(false)
    }

    /// Writes the first batch of this incarnation: it says which records were cut off, so that the
    /// next replay does not take them for durable ones; and it is written in the place of a batch
    /// that could not be read, which so cannot come back.
    fn write_batch(
        &mut self,
        common: &mut Common,
        effects: &mut Vec<Effect>,
    ) -> Result<Asked, OpenError> {
        let durable_lsn = if self.replay.cuts.is_empty() {
            self.log.next_lsn() - 1
        } else {
            self.replay.durable_lsn
        };
        let mut batches = Vec::new();
        for ((lineage, index), from_lsn) in std::mem::take(&mut self.replay.cuts) {
            if self.log.is_batch_full() {
                batches.push(self.log.seal(durable_lsn));
            }
            self.log.append(&Record::Cut { lineage, index, from_lsn });
        }
        // Opening again and again must not fill the log with batches that say little.
        if self.log.has_pending() || self.log.has_room_for_background() {
            batches.push(self.log.seal(durable_lsn));
        }
        let mut under_way = 1;
        for batch in batches {
            match batch {
                Some(batch) => {
                    let operation = Operation::Batch { sequence: batch.sequence };
                    common.operations.write(operation, batch.address, batch.payload, effects);
                    under_way += 1;
                }
                // Room for it is always kept: what is cut was written with room to spare.
                None => return Err(OpenError::LogFull),
            }
        }
        let address = (self.superblock.address() + 1) % 2;
        let bytes: Payload = self.superblock.encode().freeze();
        common.operations.write(Operation::Superblock, address, bytes, effects);
        Ok(Asked::Batch(under_way))
    }

    /// Everything is durable: what serves from now on.
    pub(super) fn finish(mut self, common: &mut Common) -> (Opened, ServingParts) {
        self.replay.refusals.begin_count();
        let log = &mut self.log;
        log.complete_all();
        let opened = Opened {
            identity: self.superblock.identity,
            incarnation: self.superblock.incarnation,
            records_replayed: self.replay.records - self.replay.records_cut,
            records_cut: self.replay.records_cut,
            created_unix_s: self.superblock.created_unix_s,
        };
        let limit_chunks = self.replay.limit_chunks(&common.options);
        let left_chunks = self.replay.take_left_chunks();
        let dropping = self.replay.dropping.iter().map(|(&layer, &l)| (l, layer)).collect();
        let parts = ServingParts {
            options: common.options.clone(),
            superblock: self.superblock,
            operations: std::mem::take(&mut common.operations),
            space: self.replay.space,
            limit_chunks,
            table: self.replay.table,
            cache: self.cache,
            durable_lsn: self.log.next_lsn() - 1,
            log: self.log,
            lineages: self.replay.lineages,
            refusals: self.replay.refusals,
            layers: self.layers,
            dropping,
            copied: self.replay.copied,
            left_chunks,
            listing: self.replay.listing,
            scrub: self.replay.scrub,
            lost_blocks: self.lost_blocks,
            damages: std::mem::take(&mut common.damages),
        };
        (opened, parts)
    }
}

/// Says of a superblock of a new opening from which one on nothing is lost: the machine has kept
/// its power since, and nothing was cut off in this one. What was may have been acknowledged.
fn since_boot(superblock: Superblock, boot: [u8; 16], is_cut: bool) -> Superblock {
    let known = boot != [0; 16] && boot == superblock.boot;
    let lossless_from =
        if known && !is_cut { superblock.lossless_from } else { superblock.incarnation };
    Superblock { boot, lossless_from, ..superblock }
}

/// Counts what each layer and each lineage has. Every object's layer must be known.
fn count_layers(replay: &mut Replay) -> Result<BTreeMap<LayerId, Layer>, OpenError> {
    let mut layers: BTreeMap<LayerId, Layer> = BTreeMap::new();
    let damaged = OpenError::TableDamaged { address: 0 };
    for (_, row) in replay.table.slots() {
        // First layers are there when they have an object; others were opened.
        let tree = &mut replay.lineages.entry(row.lineage).or_default().tree;
        if row.key.layer.0 == row.lineage.0 && !tree.contains(row.key.layer) {
            tree.insert(row.key.layer, LayerId(0));
        }
    }
    for (&lineage, known) in &replay.lineages {
        for (layer, _) in known.tree.iter() {
            let before = layers.insert(layer, Layer { lineage, usage: Usage::default() });
            if before.is_some() {
                return Err(damaged);
            }
        }
    }
    for (_, row) in replay.table.slots() {
        let layer = layers.get_mut(&row.key.layer).filter(|l| l.lineage == row.lineage);
        let layer = layer.ok_or_else(|| damaged.clone())?;
        layer.usage.objects += 1;
        for page in 0..PAGES_PER_OBJECT {
            layer.usage.data_blocks += u64::from(row.counts[page]);
            layer.usage.map_blocks += u64::from(row.page(page).0 != 0);
        }
        replay.lineages.entry(row.lineage).or_default().objects += 1;
    }
    Ok(layers)
}
