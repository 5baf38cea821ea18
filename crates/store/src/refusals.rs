//! Which configurations of partitions the disk refuses, and which attempts to change their members
//! it knows: one entry for each partition that it was ever asked about, in memory, in the log and
//! in each checkpoint.
//!
//! Partitions double, so what is known of one may have been said of a half of it, or of what it is
//! a half of: an object is looked up once for each number of partitions that was ever named.

use crate::layout::{AttemptRecord, PartitionRow};
use proto::{
    Batch, ConfigurationNumber, LineageId, PartitionId, Refused, Under, limits, partition_of,
};
use std::collections::BTreeMap;
use std::ops::Bound;

/// A partition of one table, of 2^`bits`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    copies: u8,
    bits: u8,
    partition: PartitionId,
}

/// What is known of one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Known {
    /// The newest attempt, and whether it has ended here.
    attempt: Attempt,
    /// The last configuration that is refused, with all before it.
    refused: Option<ConfigurationNumber>,
    /// Which refusal that was, from 1.
    order: u64,
}

/// An attempt that is known, the newest there is. 0: none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Attempt {
    pub(crate) number: u64,
    /// Nothing of it is taken any more.
    pub(crate) ended: bool,
}

impl Attempt {
    /// Whether requests of attempt `number` come too late.
    pub(crate) fn supersedes(&self, number: u64) -> bool {
        number < self.number || (number == self.number && self.ended)
    }
}

/// See the module's description.
#[derive(Default)]
pub(crate) struct Refusals {
    partitions: BTreeMap<Place, Known>,
    /// How many partitions of each table and number of partitions are known.
    tables: BTreeMap<(u8, u8), usize>,
    /// The partitions that refuse anything, in the order of their last refusals.
    refused: BTreeMap<u64, Place>,
    /// Refusals since the disk was opened, with those that were known then.
    count: u64,
}

impl Refusals {
    /// What a checkpoint has.
    pub(crate) fn load(rows: impl Iterator<Item = PartitionRow>) -> Refusals {
        let mut refusals = Refusals::default();
        for row in rows {
            let PartitionRow { copies, bits, partition, .. } = row;
            let attempt = Attempt { number: row.attempt, ended: row.ended };
            refusals.learn(Place { copies, bits, partition }, attempt, row.refused);
        }
        refusals
    }

    /// For a checkpoint.
    pub(crate) fn rows(&self) -> Vec<PartitionRow> {
        let row = |(place, known): (&Place, &Known)| PartitionRow {
            copies: place.copies,
            bits: place.bits,
            partition: place.partition,
            attempt: known.attempt.number,
            ended: known.attempt.ended,
            refused: known.refused,
        };
        self.partitions.iter().map(row).collect()
    }

    /// How many partitions are known.
    pub(crate) fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// Partitions that refuse anything.
    pub(crate) fn refusing(&self) -> usize {
        self.refused.len()
    }

    /// The disk is open now: what it refuses was refused first.
    pub(crate) fn begin_count(&mut self) {
        self.refused.clear();
        self.count = 0;
        for (&place, known) in self.partitions.iter_mut().filter(|(_, k)| k.refused.is_some()) {
            self.count += 1;
            known.order = self.count;
            self.refused.insert(self.count, place);
        }
    }

    /// Refusals since the disk was opened.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    fn learn(&mut self, place: Place, attempt: Attempt, refused: Option<ConfigurationNumber>) {
        if !self.partitions.contains_key(&place) {
            *self.tables.entry((place.copies, place.bits)).or_default() += 1;
        }
        let known = self.partitions.entry(place).or_default();
        known.attempt = known.attempt.max(attempt);
        if refused > known.refused {
            known.refused = refused;
            self.count += 1;
            self.refused.remove(&std::mem::replace(&mut known.order, self.count));
            self.refused.insert(self.count, place);
        }
    }

    /// Takes in a record. Nothing that is known is ever taken back.
    pub(crate) fn apply(&mut self, record: &AttemptRecord) {
        let AttemptRecord { copies, bits, attempt, ended, .. } = *record;
        for &(partition, refused) in &record.partitions {
            let attempt = Attempt { number: attempt, ended };
            self.learn(Place { copies, bits, partition }, attempt, refused);
        }
    }

    /// What is known of the partitions of a table that an object belongs to.
    fn of_object(
        &self,
        copies: u8,
        lineage: LineageId,
        index: u32,
    ) -> impl Iterator<Item = &Known> {
        let tables = self.tables.range((copies, 0)..=(copies, u8::MAX));
        tables.filter_map(move |(&(copies, bits), _)| {
            let partition = partition_of(lineage, index, bits);
            self.partitions.get(&Place { copies, bits, partition })
        })
    }

    /// The configuration that must be known for an object, if the one that a request is made under
    /// is refused.
    pub(crate) fn refuses(
        &self,
        under: Under,
        lineage: LineageId,
        index: u32,
    ) -> Option<ConfigurationNumber> {
        if self.refused.is_empty() {
            return None;
        }
        let known = self.of_object(under.copies, lineage, index);
        let last = known.filter_map(|known| known.refused).max()?;
        (last >= under.number).then(|| ConfigurationNumber(last.0.saturating_add(1)))
    }

    /// The newest attempt for an object of a table.
    pub(crate) fn attempt_for(&self, copies: u8, lineage: LineageId, index: u32) -> Attempt {
        let known = self.of_object(copies, lineage, index);
        known.map(|known| known.attempt).max().unwrap_or_default()
    }

    /// The newest attempt that is known of any part of a partition, or of more than it.
    fn attempt_of(&self, at: Place) -> Attempt {
        let Place { copies, bits, partition } = at;
        let mut newest = Attempt::default();
        for (&(_, other), _) in self.tables.range((copies, 0)..=(copies, u8::MAX)) {
            let place =
                |partition| Place { copies, bits: other, partition: PartitionId(partition) };
            let (first, last) = match other.checked_sub(bits) {
                Some(more) => {
                    let first = u64::from(partition.0) << more;
                    (first as u32, (first + (1 << more) - 1) as u32)
                }
                None => (partition.0 >> (bits - other), partition.0 >> (bits - other)),
            };
            let known = self.partitions.range(place(first)..=place(last));
            newest = known.map(|(_, known)| known.attempt).fold(newest, Attempt::max);
        }
        newest
    }

    /// What is wrong with a batch, whatever is known.
    pub(crate) fn vet(batch: &Batch) -> Option<&'static str> {
        let in_order = batch.partitions.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if !are_bounded(batch.copies, batch.bits) {
            Some("there is no such table")
        } else if batch.partitions.len() > limits::BATCH_PARTITIONS_MAX || !in_order {
            Some("the partitions are too many, or not in order")
        } else if batch.partitions.last().is_some_and(|(last, _)| last.0 >= 1 << batch.bits) {
            Some("there is no such partition")
        } else {
            None
        }
    }

    /// The newest attempt that is known of any partition of a batch.
    pub(crate) fn newest(&self, batch: &Batch) -> Attempt {
        let Batch { copies, bits, .. } = *batch;
        let attempts = batch
            .partitions
            .iter()
            .map(|&(partition, _)| self.attempt_of(Place { copies, bits, partition }));
        attempts.max().unwrap_or_default()
    }

    /// The partitions of a batch of which it says anything that is not known.
    pub(crate) fn news(
        &self,
        batch: &Batch,
        ended: bool,
    ) -> Vec<(PartitionId, Option<ConfigurationNumber>)> {
        let Batch { copies, bits, attempt, .. } = *batch;
        let is_new = |&&(partition, number): &&(PartitionId, ConfigurationNumber)| {
            let known = self.partitions.get(&Place { copies, bits, partition });
            known.is_none_or(|known| {
                known.attempt < Attempt { number: attempt, ended } || known.refused < Some(number)
            })
        };
        let news = batch.partitions.iter().filter(is_new);
        news.map(|&(partition, number)| (partition, Some(number))).collect()
    }

    /// The first partitions that were refused after a number of refusals, with how many refusals
    /// are known with them, and whether there are more.
    pub(crate) fn after(&self, refusals: u64, limit: usize) -> (Vec<Refused>, u64, bool) {
        // Who knows of more than there were asks another opening of the disk.
        let refusals = if refusals > self.count { 0 } else { refusals };
        let mut later = self.refused.range((Bound::Excluded(refusals), Bound::Unbounded));
        let mut listed = Vec::new();
        let mut known = refusals;
        for (&order, place) in later.by_ref().take(limit) {
            let Place { copies, bits, partition } = *place;
            let number = self.partitions[place].refused.expect("it refuses something");
            listed.push(Refused { under: Under { copies, bits, number }, partition });
            known = order;
        }
        match later.next() {
            Some(_) => (listed, known, true),
            None => (listed, self.count, false),
        }
    }
}

/// Whether a table can be: bytes from elsewhere may say anything.
pub(crate) fn are_bounded(copies: u8, bits: u8) -> bool {
    copies <= limits::COPIES_MAX && bits <= limits::PARTITION_BITS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINEAGE: LineageId = LineageId(7);

    fn record(bits: u8, attempt: u64, partition: u32, number: Option<u64>) -> AttemptRecord {
        AttemptRecord {
            copies: 3,
            bits,
            attempt,
            partitions: vec![(PartitionId(partition), number.map(ConfigurationNumber))],
            ..AttemptRecord::default()
        }
    }

    fn under(bits: u8, number: u64) -> Under {
        Under { copies: 3, bits, number: ConfigurationNumber(number) }
    }

    #[test]
    fn a_refusal_holds_whatever_the_number_of_partitions_that_a_request_knows() {
        for recorded in [0, 4, 5, 12] {
            let mut refusals = Refusals::default();
            let partition = partition_of(LINEAGE, 9, recorded);
            refusals.apply(&record(recorded, 1, partition.0, Some(4)));
            for asked in [0, 4, 5, 12] {
                let refuses = |number| refusals.refuses(under(asked, number), LINEAGE, 9);
                assert_eq!(refuses(3), Some(ConfigurationNumber(5)), "{recorded} {asked}");
                assert_eq!(refuses(4), Some(ConfigurationNumber(5)), "{recorded} {asked}");
                assert_eq!(refuses(5), None, "{recorded} {asked}");
                let other = Under { copies: 2, ..under(asked, 3) };
                assert_eq!(refusals.refuses(other, LINEAGE, 9), None, "another table");
            }
            // An object of another partition is not concerned.
            let other = (0..1000).find(|&i| partition_of(LINEAGE, i, recorded) != partition);
            if let Some(index) = other {
                assert_eq!(refusals.refuses(under(recorded, 3), LINEAGE, index), None);
            }
        }
    }

    #[test]
    fn a_newer_attempt_is_known_of_parts_and_of_the_whole() {
        let mut refusals = Refusals::default();
        refusals.apply(&record(4, 8, 5, Some(1)));
        let newest = |bits, partition: u32| {
            let batch = Batch {
                copies: 3,
                bits,
                partitions: vec![(PartitionId(partition), ConfigurationNumber(1))],
                attempt: 0,
            };
            refusals.newest(&batch).number
        };
        assert_eq!([newest(4, 5), newest(5, 10), newest(5, 11), newest(3, 2)], [8; 4]);
        assert_eq!([newest(4, 4), newest(5, 9), newest(5, 12), newest(3, 3)], [0; 4]);
        assert_eq!([newest(0, 0), newest(16, 5 << 12), newest(16, 6 << 12)], [8, 8, 0]);
    }

    #[test]
    fn each_partition_is_listed_once_at_its_last_refusal() {
        let mut refusals = Refusals::default();
        for (partition, number) in [(1, 1), (2, 1), (3, 1)] {
            refusals.apply(&record(4, 1, partition, Some(number)));
        }
        refusals.begin_count();
        let list = |refusals: &Refusals, after, limit| {
            let (listed, known, more) = refusals.after(after, limit);
            let listed = listed.iter().map(|r| (r.partition.0, r.under.number.0)).collect();
            let listed: Vec<(u32, u64)> = listed;
            (listed, known, more)
        };
        assert_eq!(list(&refusals, 0, 9), (vec![(1, 1), (2, 1), (3, 1)], 3, false));
        // Said again, or of an earlier one: nothing is refused that was not.
        refusals.apply(&record(4, 1, 2, Some(1)));
        refusals.apply(&record(4, 2, 2, Some(0)));
        assert_eq!(list(&refusals, 3, 9), (vec![], 3, false));
        refusals.apply(&record(4, 3, 1, Some(2)));
        assert_eq!(list(&refusals, 3, 9), (vec![(1, 2)], 4, false));
        assert_eq!(list(&refusals, 0, 2), (vec![(2, 1), (3, 1)], 3, true));
        assert_eq!(list(&refusals, 9, 9).0.len(), 3, "another opening: all of it");
        let again = Refusals::load(refusals.rows().into_iter());
        assert_eq!(again.rows(), refusals.rows());
    }
}
