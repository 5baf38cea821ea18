//! One block as a linearizable register with a volatile cache.
//!
//! The checker follows every order in which the operations so far can have taken effect. Such an
//! order is a [`History`]: the values the block had one after the other, back to the last one that
//! is surely on stable media. Writes are placed only when an answer demands it, so few histories
//! live at once: one, unless writes to the same block overlap in time or their outcome is unknown.

use super::OperationId;
use proto::{BLOCK_SIZE, SECTOR_SIZE};
use std::collections::{BTreeMap, BTreeSet};

/// Sectors in a block.
pub const SECTORS: usize = BLOCK_SIZE / SECTOR_SIZE;

/// What a block holds: the serial of the write each sector came from; 0 is zeros.
pub type Value = [u64; SECTORS];

/// Histories one block may have at once; a workload that exceeds it overlaps too many writes.
const HISTORIES_MAX: usize = 50_000;

/// Pending changes and histories beyond which a workload leaves a block alone for a while.
const PENDING_WANTED: usize = 4;
const HISTORIES_WANTED: usize = 48;

/// What a pending operation does to the block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Change {
    /// Which sectors, as bits.
    pub sectors: u8,
    /// What they become.
    pub serial: u64,
    /// Whether doing nothing is right too (a discard of part of a block).
    pub optional: bool,
}

/// One possible order of what took effect.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct History {
    /// The values in order; the last is the present one, the first is surely durable.
    versions: Vec<Value>,
    /// The present or a later version is what a read that begins now may return.
    seen: usize,
    /// The last version whose write is acknowledged.
    acknowledged: usize,
    /// Pending operations that have taken effect, and as which version.
    applied: BTreeMap<OperationId, usize>,
    /// Pending reads: the oldest version each may return.
    reads: BTreeMap<OperationId, usize>,
    /// Pending flushes: the version each makes durable.
    flushes: BTreeMap<OperationId, usize>,
    /// Pending cuts: the oldest version each may show.
    cuts: BTreeMap<OperationId, usize>,
}

/// One block. See the module.
#[derive(Clone, Hash, Debug)]
pub struct Register {
    histories: Vec<History>,
    pending: BTreeMap<OperationId, Change>,
    /// Values that pending cuts may show and that no history tells of any more.
    cuts: BTreeMap<OperationId, BTreeSet<Value>>,
}

impl Default for Register {
    fn default() -> Register {
        Register::of([[0; SECTORS]])
    }
}

impl Register {
    /// A block that durably has one of these values.
    fn of(values: impl IntoIterator<Item = Value>) -> Register {
        let values: BTreeSet<Value> = values.into_iter().collect();
        let histories = values.into_iter().map(History::of).collect();
        Register { histories, pending: BTreeMap::new(), cuts: BTreeMap::new() }
    }

    /// A change was asked for.
    pub fn invoke(&mut self, id: OperationId, change: Change) {
        self.pending.insert(id, change);
    }

    /// How many changes are pending.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether one more pending change would be too much to follow.
    pub fn is_crowded(&self) -> bool {
        self.pending.len() >= PENDING_WANTED || self.histories.len() >= HISTORIES_WANTED
    }

    /// The change was acknowledged; with `durable`, as being on stable media.
    pub fn acknowledge(&mut self, id: OperationId, durable: bool) {
        let optional = self.pending[&id].optional;
        let mut next = BTreeSet::new();
        for history in std::mem::take(&mut self.histories) {
            for mut history in self.with_applied(history, id) {
                let at = history.applied.remove(&id).expect("it has just been applied");
                history.seen = history.seen.max(at);
                history.acknowledged = history.acknowledged.max(at);
                // A discard that may do nothing, and did nothing, has nothing to make durable.
                let nothing =
                    optional && at > 0 && history.versions[at] == history.versions[at - 1];
                if durable && !nothing {
                    history.forget_before(at, &mut self.cuts);
                }
                next.insert(history);
            }
        }
        self.pending.remove(&id);
        self.adopt(next);
    }

    /// The change failed: it has taken effect by now, or never will.
    pub fn fail(&mut self, id: OperationId) {
        let mut next = BTreeSet::new();
        for history in std::mem::take(&mut self.histories) {
            let mut ways = self.with_applied(history.clone(), id);
            ways.push(history);
            for mut history in ways {
                if let Some(at) = history.applied.remove(&id) {
                    history.seen = history.seen.max(at);
                }
                next.insert(history);
            }
        }
        self.pending.remove(&id);
        self.adopt(next);
    }

    /// A read was asked for.
    pub fn invoke_read(&mut self, id: OperationId) {
        for history in &mut self.histories {
            history.reads.insert(id, history.seen);
        }
    }

    /// A read returned this for the sectors of the mask. False: nothing can explain it; then the
    /// register stays as it was.
    pub fn read(&mut self, id: OperationId, mask: u8, value: &Value) -> bool {
        let mut next = BTreeSet::new();
        for history in &self.histories {
            let Some(&start) = history.reads.get(&id) else { continue };
            let found = (start..history.versions.len())
                .find(|&at| agrees(&history.versions[at], value, mask));
            if let Some(at) = found {
                next.insert(history.clone().with_read(id, at));
                continue;
            }
            for longer in self.extensions(history.clone()) {
                let at = longer.versions.len() - 1;
                if at >= history.versions.len() && agrees(&longer.versions[at], value, mask) {
                    next.insert(longer.with_read(id, at));
                }
            }
        }
        if next.is_empty() {
            return false;
        }
        self.adopt(next);
        true
    }

    /// A read ended without an answer.
    pub fn forget_read(&mut self, id: OperationId) {
        for history in &mut self.histories {
            history.reads.remove(&id);
        }
    }

    /// A flush was asked for: it will cover what is acknowledged now.
    pub fn invoke_flush(&mut self, id: OperationId) {
        for history in &mut self.histories {
            history.flushes.insert(id, history.acknowledged);
        }
    }

    /// The flush was acknowledged.
    pub fn flushed(&mut self, id: OperationId) {
        let mut next = BTreeSet::new();
        for mut history in std::mem::take(&mut self.histories) {
            if let Some(at) = history.flushes.remove(&id) {
                history.forget_before(at, &mut self.cuts);
            }
            next.insert(history);
        }
        self.adopt(next);
    }

    /// The flush ended without saying anything.
    pub fn forget_flush(&mut self, id: OperationId) {
        for history in &mut self.histories {
            history.flushes.remove(&id);
        }
    }

    /// A cut through the volume was asked for: a snapshot. It shows what the block has at some
    /// moment from now on.
    pub fn invoke_cut(&mut self, id: OperationId) {
        self.cuts.insert(id, BTreeSet::new());
        for history in &mut self.histories {
            history.cuts.insert(id, history.seen);
        }
    }

    /// The cut was made before now: what it shows of the block.
    pub fn cut(&mut self, id: OperationId) -> Register {
        self.end_cut(id, |history| history.cuts[&id])
    }

    /// The power went while the cut was being made: what of the block may be in it.
    pub fn cut_by_power(&mut self, id: OperationId) -> Register {
        self.end_cut(id, |_| 0)
    }

    /// The cut is not made.
    pub fn forget_cut(&mut self, id: OperationId) {
        self.cuts.remove(&id);
        for history in &mut self.histories {
            history.cuts.remove(&id);
        }
    }

    fn end_cut(&mut self, id: OperationId, oldest: impl Fn(&History) -> usize) -> Register {
        let mut values = self.cuts.get(&id).cloned().unwrap_or_default();
        for history in &self.histories {
            let start = oldest(history);
            for longer in self.extensions(history.clone()) {
                values.extend(&longer.versions[start..]);
            }
        }
        self.forget_cut(id);
        Register::of(values)
    }

    /// Whoever asked for the pending changes is cut off: each has taken effect or never will.
    pub fn settle(&mut self) {
        let mut next = BTreeSet::new();
        for history in std::mem::take(&mut self.histories) {
            for mut history in self.extensions(history) {
                history.seen = history.versions.len() - 1;
                history.acknowledged = history.seen;
                history.applied.clear();
                history.reads.clear();
                history.flushes.clear();
                next.insert(history);
            }
        }
        self.pending.clear();
        self.adopt(next);
    }

    /// The power went: the block has its last durable value or any later one.
    pub fn power_cut(&mut self) {
        self.settle();
        let values: BTreeSet<Value> =
            self.histories.iter().flat_map(|history| history.versions.iter().copied()).collect();
        *self = Register::of(values);
    }

    /// A machine that may have the block lost its power, whoever uses it lives: the block has its
    /// last durable value or any later one, and what is pending may still take effect. What is left
    /// is no more durable than it was: another machine may have it, and lose it later. Reads,
    /// flushes and cuts in flight are to be forgotten before: what they answer is of before or
    /// after.
    pub fn lose(&mut self) {
        let longer = self.histories.iter().flat_map(|history| self.extensions(history.clone()));
        let values: BTreeSet<Value> = longer.flat_map(|history| history.versions).collect();
        // Whichever it is, the next loss may leave any of the others.
        let left = |present: &Value| {
            let others = values.iter().filter(|value| *value != present);
            let last = values.len() - 1;
            let versions = others.chain([present]).copied().collect();
            History { versions, seen: last, acknowledged: last, ..History::of(*present) }
        };
        let histories = values.iter().map(left).collect();
        let pending = std::mem::take(&mut self.pending);
        *self = Register { histories, pending, cuts: BTreeMap::new() };
    }

    /// Whether nothing but zeros can be here, durably, with nothing pending.
    pub fn is_plain_zero(&self) -> bool {
        self.pending.is_empty() && self.histories == [History::of([0; SECTORS])]
    }

    /// The values the block may have now, if nothing pending took effect.
    pub fn values(&self) -> BTreeSet<Value> {
        self.histories.iter().map(|history| *history.present()).collect()
    }

    /// The values a read that begins now may return, in words.
    pub fn describe(&self) -> String {
        let values: Vec<String> = self.values().iter().map(describe).collect();
        let pending: Vec<String> =
            self.pending.values().map(|change| change.serial.to_string()).collect();
        format!("{} (pending: {})", values.join(" or "), pending.join(", "))
    }

    /// The history with the operation applied, in every order with the other pending ones.
    fn with_applied(&self, history: History, id: OperationId) -> Vec<History> {
        if history.applied.contains_key(&id) {
            return vec![history];
        }
        let change = self.pending[&id];
        let mut ways = Vec::new();
        for longer in self.extensions(history) {
            if !longer.applied.contains_key(&id) {
                longer.apply(id, change, &mut ways);
            }
        }
        ways
    }

    /// The history with every sequence of pending operations applied after it, itself included.
    fn extensions(&self, history: History) -> Vec<History> {
        let mut all = vec![history];
        let mut done = 0;
        while done < all.len() {
            let history = all[done].clone();
            done += 1;
            for (id, change) in &self.pending {
                if !history.applied.contains_key(id) {
                    history.apply(*id, *change, &mut all);
                }
            }
            assert!(all.len() <= HISTORIES_MAX, "too many writes to one block overlap in time");
        }
        all
    }

    fn adopt(&mut self, histories: BTreeSet<History>) {
        let tidied: BTreeSet<History> = histories.into_iter().map(History::tidied).collect();
        assert!(tidied.len() <= HISTORIES_MAX, "too many writes to one block overlap in time");
        assert!(!tidied.is_empty(), "an answered operation has an order with all others");
        self.histories = tidied.into_iter().collect();
    }
}

impl History {
    fn of(value: Value) -> History {
        History {
            versions: vec![value],
            seen: 0,
            acknowledged: 0,
            applied: BTreeMap::new(),
            reads: BTreeMap::new(),
            flushes: BTreeMap::new(),
            cuts: BTreeMap::new(),
        }
    }

    fn present(&self) -> &Value {
        self.versions.last().expect("a block always has a value")
    }

    /// Adds to `ways` this history with the change applied at its end.
    fn apply(&self, id: OperationId, change: Change, ways: &mut Vec<History>) {
        let before = *self.present();
        let mut after = before;
        for (sector, serial) in after.iter_mut().enumerate() {
            if change.sectors & (1 << sector) != 0 {
                *serial = change.serial;
            }
        }
        let outcomes = [Some(after), (change.optional && after != before).then_some(before)];
        for value in outcomes.into_iter().flatten() {
            let mut history = self.clone();
            history.versions.push(value);
            history.applied.insert(id, history.versions.len() - 1);
            ways.push(history);
        }
    }

    fn with_read(mut self, id: OperationId, at: usize) -> History {
        self.reads.remove(&id);
        self.seen = self.seen.max(at);
        self
    }

    /// Version `at` is durable: those before it cannot come back. What pending cuts may show of
    /// them is noted.
    fn forget_before(&mut self, at: usize, cuts: &mut BTreeMap<OperationId, BTreeSet<Value>>) {
        for (id, &start) in self.cuts.iter().filter(|(_, start)| **start < at) {
            cuts.entry(*id).or_default().extend(&self.versions[start..at]);
        }
        self.versions.drain(..at);
        self.renumber(|index| index.saturating_sub(at));
    }

    fn renumber(&mut self, number: impl Fn(usize) -> usize) {
        self.seen = number(self.seen);
        self.acknowledged = number(self.acknowledged);
        for index in self.applied.values_mut() {
            *index = number(*index);
        }
        let waiting = self.reads.values_mut().chain(self.flushes.values_mut());
        for index in waiting.chain(self.cuts.values_mut()) {
            *index = number(*index);
        }
    }

    /// The order among versions that no read can return any more tells nothing, except at the
    /// points where a pending flush, or a pending write that is to be durable when it is answered,
    /// will cut: sorted between those, equal prospects are equal histories.
    fn tidied(mut self) -> History {
        let oldest_read =
            self.reads.values().chain(self.cuts.values()).copied().min().unwrap_or(usize::MAX);
        let pivot = self.acknowledged.min(oldest_read).min(self.seen);
        if pivot < 1 {
            return self;
        }
        let pending = self.flushes.values().chain(self.applied.values());
        let mut cuts: BTreeSet<usize> = pending.copied().collect();
        cuts.retain(|&cut| cut < pivot);
        cuts.insert(pivot);
        let (mut versions, mut numbers) = (Vec::new(), vec![0; self.versions.len()]);
        let mut start = 0;
        for cut in cuts {
            let values: BTreeSet<Value> = self.versions[start..cut].iter().copied().collect();
            versions.extend(values);
            numbers[start..=cut].fill(versions.len());
            versions.push(self.versions[cut]);
            start = cut + 1;
        }
        for (number, version) in numbers.iter_mut().zip(&self.versions).skip(start) {
            *number = versions.len();
            versions.push(*version);
        }
        self.versions = versions;
        self.renumber(|index| numbers[index]);
        self
    }
}

fn agrees(have: &Value, read: &Value, mask: u8) -> bool {
    (0..SECTORS).all(|sector| mask & (1 << sector) == 0 || have[sector] == read[sector])
}

/// A value in words: one serial if all sectors have the same.
pub fn describe(value: &Value) -> String {
    if value.iter().all(|serial| *serial == value[0]) {
        return format!("{}", value[0]);
    }
    format!("{value:?}")
}
