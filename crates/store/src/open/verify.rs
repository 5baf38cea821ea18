//! Verifying what was perhaps not flushed: of each layer's object, the data that is live at the end
//! of the log and was written after the last known flush. The first bad block ends the records of
//! its history there, in all layers; what was live before them is live again and verified in turn.
//!
//! Only bytes that were read can prove a block bad. What the medium cannot read stays: the device
//! may have confirmed it, and cutting it off would silently undo a write that was acknowledged.

use super::replay::Replay;
use super::{Common, Fetched};
use crate::layout::{Content, LOG_FIRST, Record};
use crate::table::History;
use crate::{DAMAGES_MAX, DamagedPart, OpenError};
use proto::{BLOCK_SIZE, BLOCKS_PER_OBJECT, LineageId, ObjectKey, block_checksum};
use std::collections::{BTreeMap, BTreeSet};

/// A block to be verified.
#[derive(Clone, Copy)]
struct Wanted {
    address: u64,
    checksum: u64,
    lineage: LineageId,
    key: ObjectKey,
    block: u32,
    lsn: u64,
}

impl Wanted {
    fn history(&self) -> History {
        (self.lineage, self.key.index)
    }
}

/// See the module's description.
pub(super) struct Verifying {
    replay: Replay,
    /// The blocks that each read brings, in order.
    expected: BTreeMap<usize, Vec<Wanted>>,
    /// Verified already, by record and block.
    good: BTreeSet<(u64, u32)>,
    /// The first bad record of each history in this round.
    bad: BTreeMap<History, u64>,
    /// Of reads of several blocks that failed: each is to be read alone.
    again: Vec<Wanted>,
    /// Cannot be read even alone, by record and block.
    unreadable: BTreeMap<(u64, u32), Wanted>,
}

impl Verifying {
    /// Begins with all histories that have held records.
    pub(super) fn new(common: &mut Common, replay: Replay) -> Verifying {
        let mut verifying = Verifying {
            replay,
            expected: BTreeMap::new(),
            good: BTreeSet::new(),
            bad: BTreeMap::new(),
            again: Vec::new(),
            unreadable: BTreeMap::new(),
        };
        verifying.fetch(common, |_| true);
        verifying
    }

    /// Asks for the live blocks of some histories that were not verified yet. A merge concerns
    /// none: no change of the object that goes can be among the records that are replayed.
    fn fetch(&mut self, common: &mut Common, which: impl Fn(History) -> bool) {
        let mut live: BTreeMap<(ObjectKey, u32), Wanted> = BTreeMap::new();
        for (lsn, record) in &self.replay.held {
            match record {
                Record::Write(write) | Record::Adopt(write)
                    if which((write.lineage, write.key.index)) =>
                {
                    let mut checksums = write.checksums.iter();
                    for run in &write.runs {
                        for at in 0..run.count {
                            let block = u32::from(run.first + at);
                            live.remove(&(write.key, block));
                            let Content::Data(address) = run.content else { continue };
                            let wanted = Wanted {
                                address: address + u64::from(at),
                                checksum: checksums.next().copied().unwrap_or(0),
                                lineage: write.lineage,
                                key: write.key,
                                block,
                                lsn: *lsn,
                            };
                            live.insert((write.key, block), wanted);
                        }
                    }
                }
                Record::DropObject { key, .. } => {
                    for block in 0..BLOCKS_PER_OBJECT {
                        live.remove(&(*key, block));
                    }
                }
                _ => {}
            }
        }
        let mut wanted: Vec<Wanted> = live.into_values().collect();
        wanted.retain(|wanted| {
            let name = (wanted.lsn, wanted.block);
            !self.good.contains(&name) && !self.unreadable.contains_key(&name)
        });
        wanted.sort_by_key(|wanted| wanted.address);
        let end = common.options.medium_bytes / BLOCK_SIZE as u64;
        for block in wanted {
            if block.address < LOG_FIRST || block.address >= end {
                self.fail(&block);
                continue;
            }
            let (item, _) = common.fetch.add_block(block.address);
            self.expected.entry(item).or_default().push(block);
        }
    }

    fn fail(&mut self, block: &Wanted) {
        let first = self.bad.entry(block.history()).or_insert(block.lsn);
        *first = block.lsn.min(*first);
    }

    /// Takes one read.
    pub(super) fn fetched(&mut self, fetched: Fetched) {
        let expected = self.expected.remove(&fetched.item).unwrap_or_default();
        let Ok(buffer) = fetched.result else {
            match expected.as_slice() {
                [alone] => drop(self.unreadable.insert((alone.lsn, alone.block), *alone)),
                several => self.again.extend(several),
            }
            return;
        };
        let mut blocks = buffer.as_slice().chunks_exact(BLOCK_SIZE);
        for wanted in expected {
            let good = blocks.next().is_some_and(|bytes| {
                let sum = block_checksum(wanted.lineage, wanted.key, wanted.block, bytes);
                sum == wanted.checksum
            });
            if good {
                self.good.insert((wanted.lsn, wanted.block));
            } else {
                self.fail(&wanted);
            }
        }
    }

    /// All reads are done. Returns whether everything that is left was verified, or cannot be.
    pub(super) fn advance(&mut self, common: &mut Common) -> bool {
        let (bad, again) = (std::mem::take(&mut self.bad), std::mem::take(&mut self.again));
        if bad.is_empty() && again.is_empty() {
            self.tell_unreadable(common);
            return true;
        }
        if !bad.is_empty() {
            self.cut(common, &bad);
        }
        for block in again.into_iter().filter(|block| !bad.contains_key(&block.history())) {
            let item = common.fetch.add(block.address, 1);
            self.expected.insert(item, vec![block]);
        }
        false
    }

    /// Cuts each of some histories off before its first bad record, and asks for what is live then.
    fn cut(&mut self, common: &mut Common, bad: &BTreeMap<History, u64>) {
        let before = self.replay.held.len();
        for (&history, &from_lsn) in bad {
            self.replay.cut(history, from_lsn);
            self.replay.cuts.retain(|(cut, _)| *cut != history);
            self.replay.cuts.push((history, from_lsn));
        }
        self.replay.records_cut += (before - self.replay.held.len()) as u64;
        self.unreadable
            .retain(|_, block| bad.get(&block.history()).is_none_or(|&first| block.lsn < first));
        self.fetch(common, |history| bad.contains_key(&history));
    }

    /// Notes the blocks that stay although they cannot be read: reading them is an error until
    /// they are written again, or the medium reads them after all.
    fn tell_unreadable(&self, common: &mut Common) {
        for &Wanted { lineage, key, block, address, .. } in
            self.unreadable.values().take(DAMAGES_MAX)
        {
            common.damaged(DamagedPart::Data { lineage, key, block }, address, true);
        }
    }

    /// Lets the records that are left happen.
    pub(super) fn finish(mut self) -> Result<Replay, OpenError> {
        let held = std::mem::take(&mut self.replay.held);
        for (lsn, record) in held {
            let address = LOG_FIRST + self.replay.tail.block;
            self.replay.apply(lsn, record).ok_or(OpenError::LogDamaged { address })?;
        }
        Ok(self.replay)
    }
}
