//! Records on their way: from the moment one is applied in memory until it, and the data it names,
//! are on the medium, and everything that must come before it too.

use crate::table::History;
use proto::{BlockRange, LineageId, MemberToken, ObjectKey};
use std::collections::{BTreeMap, VecDeque};

/// What is answered when a record is complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Acknowledgement {
    Written(MemberToken),
    Done(MemberToken),
    /// The stamp of the object, as it then is.
    Stamp(MemberToken, LineageId, ObjectKey),
}

/// One record under way.
pub(crate) struct Entry {
    /// Whose object it changes, if any.
    history: Option<History>,
    /// The blocks whose data is being written.
    blocks: Option<BlockRange>,
    /// The record of the same history before it; 0: none under way.
    previous: u64,
    /// The record of the same history after it; 0: none.
    next: u64,
    /// Data writes not completed.
    data_pending: u32,
    /// Its data, and that of all earlier records of the history, has completed.
    chain_done: bool,
    /// Bytes of data of all records up to this one.
    data_bytes_until: u64,
    acknowledgements: Vec<Acknowledgement>,
    /// Reads that wait for its data.
    readers: Vec<u64>,
}

/// What the completion of something lets go on.
#[derive(Default)]
pub(crate) struct Ready {
    pub(crate) acknowledgements: Vec<Acknowledgement>,
    pub(crate) readers: Vec<u64>,
}

/// The records under way, in order.
pub(crate) struct InFlight {
    entries: VecDeque<Entry>,
    /// The last record under way of each history.
    last: BTreeMap<History, u64>,
    /// Number of the first entry; all records before it are complete, with their data.
    first_lsn: u64,
    /// Records up to here are in completed batches.
    logged_lsn: u64,
    data_bytes: u64,
    /// `data_bytes_until` of the last complete record.
    complete_bytes: u64,
}

impl InFlight {
    /// Nothing under way; the next record is `next_lsn`.
    pub(crate) fn new(next_lsn: u64) -> InFlight {
        InFlight {
            entries: VecDeque::new(),
            last: BTreeMap::new(),
            first_lsn: next_lsn,
            logged_lsn: next_lsn - 1,
            data_bytes: 0,
            complete_bytes: 0,
        }
    }

    /// All records up to here are complete, with their data.
    pub(crate) fn complete_lsn(&self) -> u64 {
        self.first_lsn - 1
    }

    /// Bytes of data of all records up to [`InFlight::complete_lsn`].
    pub(crate) fn complete_bytes(&self) -> u64 {
        self.complete_bytes
    }

    /// Bytes of data of all records.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Whether nothing is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn index(&self, lsn: u64) -> Option<usize> {
        let index = usize::try_from(lsn.checked_sub(self.first_lsn)?).ok()?;
        (index < self.entries.len()).then_some(index)
    }

    fn entry(&mut self, lsn: u64) -> &mut Entry {
        let index = self.index(lsn).expect("the record is under way");
        &mut self.entries[index]
    }

    /// Adds a record: of an object, or of none.
    pub(crate) fn push(
        &mut self,
        lsn: u64,
        history: Option<History>,
        blocks: Option<BlockRange>,
        data_writes: u32,
        data_bytes: u64,
        acknowledgement: Option<Acknowledgement>,
    ) {
        assert_eq!(lsn, self.first_lsn + self.entries.len() as u64, "records come in order");
        let previous = history
            .and_then(|history| self.last.insert(history, lsn))
            .and_then(|previous| self.index(previous))
            .inspect(|&index| self.entries[index].next = lsn);
        let earlier_done = previous.is_none_or(|index| self.entries[index].chain_done);
        self.data_bytes += data_bytes;
        self.entries.push_back(Entry {
            history,
            blocks,
            previous: previous.map_or(0, |index| self.first_lsn + index as u64),
            next: 0,
            data_pending: data_writes,
            chain_done: earlier_done && data_writes == 0,
            data_bytes_until: self.data_bytes,
            acknowledgements: acknowledgement.into_iter().collect(),
            readers: Vec::new(),
        });
    }

    /// Answers when the record is complete; at once (`false`) if it is, or is not known any more.
    pub(crate) fn acknowledge_with(&mut self, lsn: u64, acknowledgement: Acknowledgement) -> bool {
        let logged = lsn <= self.logged_lsn;
        let Some(index) = self.index(lsn) else { return false };
        let entry = &mut self.entries[index];
        if entry.chain_done && logged {
            return false;
        }
        entry.acknowledgements.push(acknowledgement);
        true
    }

    /// The last record of any layer's object whose data is being written to any of the blocks.
    pub(crate) fn writing(&self, history: History, blocks: &BlockRange) -> Option<u64> {
        let mut lsn = *self.last.get(&history)?;
        while let Some(index) = self.index(lsn) {
            let entry = &self.entries[index];
            if entry.chain_done {
                return None;
            }
            if entry.data_pending > 0 && entry.blocks.is_some_and(|other| other.overlaps(blocks)) {
                return Some(lsn);
            }
            lsn = entry.previous;
        }
        None
    }

    /// A read waits for the data of a record under way.
    pub(crate) fn wait_for_data(&mut self, lsn: u64, read: u64) {
        self.entry(lsn).readers.push(read);
    }

    /// One data write of the record has completed.
    pub(crate) fn data_done(&mut self, lsn: u64, ready: &mut Ready) {
        let entry = self.entry(lsn);
        entry.data_pending -= 1;
        if entry.data_pending > 0 {
            return;
        }
        ready.readers.append(&mut entry.readers);
        let previous = entry.previous;
        if self.index(previous).is_some_and(|index| !self.entries[index].chain_done) {
            return;
        }
        let mut lsn = lsn;
        while let Some(index) = self.index(lsn) {
            let entry = &mut self.entries[index];
            if entry.data_pending > 0 {
                break;
            }
            entry.chain_done = true;
            if lsn <= self.logged_lsn {
                ready.acknowledgements.append(&mut entry.acknowledgements);
            }
            lsn = entry.next;
        }
        self.pop_complete();
    }

    /// All records up to here are in completed batches now.
    pub(crate) fn logged(&mut self, logged_lsn: u64, ready: &mut Ready) {
        for lsn in self.logged_lsn + 1..=logged_lsn {
            let entry = self.entry(lsn);
            if entry.chain_done {
                ready.acknowledgements.append(&mut entry.acknowledgements);
            }
        }
        self.logged_lsn = logged_lsn;
        self.pop_complete();
    }

    fn pop_complete(&mut self) {
        while self.first_lsn <= self.logged_lsn {
            let Some(entry) = self.entries.front().filter(|entry| entry.chain_done) else { break };
            assert!(entry.acknowledgements.is_empty(), "a complete record was not acknowledged");
            self.complete_bytes = entry.data_bytes_until;
            if let Some(history) = entry.history
                && self.last.get(&history) == Some(&self.first_lsn)
            {
                self.last.remove(&history);
            }
            self.entries.pop_front();
            self.first_lsn += 1;
        }
    }

    /// Takes out all that wait: the disk failed, nothing will complete any more.
    pub(crate) fn abandon(&mut self, ready: &mut Ready) {
        for entry in &mut self.entries {
            ready.acknowledgements.append(&mut entry.acknowledgements);
            ready.readers.append(&mut entry.readers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledged(ready: &mut Ready) -> Vec<u64> {
        let taken = std::mem::take(&mut ready.acknowledgements);
        let tokens = taken.into_iter().map(|acknowledgement| match acknowledgement {
            Acknowledgement::Written(token) => token.0,
            other => panic!("{other:?}"),
        });
        tokens.collect()
    }

    /// A process that dies after an acknowledgement must not lose the write because replay stops
    /// at an earlier record of the object, or at an earlier batch.
    #[test]
    fn a_write_waits_for_the_earlier_ones_of_its_object_and_of_the_log() {
        let mut in_flight = InFlight::new(1);
        let mut ready = Ready::default();
        let written = |n| Some(Acknowledgement::Written(MemberToken(n)));
        let history = |index| Some((LineageId(1), index));
        in_flight.push(1, history(7), BlockRange::new(0, 1), 1, 4096, written(1));
        in_flight.push(2, history(8), BlockRange::new(0, 1), 1, 4096, written(2));
        in_flight.push(3, history(7), BlockRange::new(5, 1), 1, 4096, written(3));
        in_flight.data_done(3, &mut ready);
        in_flight.logged(3, &mut ready);
        assert!(acknowledged(&mut ready).is_empty());
        assert_eq!(in_flight.writing((LineageId(1), 7), &BlockRange::whole()), Some(1));
        in_flight.data_done(2, &mut ready);
        assert_eq!(acknowledged(&mut ready), [2]);
        assert_eq!(in_flight.complete_lsn(), 0);
        in_flight.data_done(1, &mut ready);
        assert_eq!(acknowledged(&mut ready), [1, 3]);
        assert_eq!(in_flight.complete_lsn(), 3);
        in_flight.push(4, history(7), None, 0, 0, written(4));
        assert!(acknowledged(&mut ready).is_empty());
        in_flight.logged(4, &mut ready);
        assert_eq!(acknowledged(&mut ready), [4]);
    }
}
