//! The log in memory: what `raft` reads its entries from.

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::{collections::VecDeque, sync::Arc};

/// Entries, ballot and members of one voter. Cloned cheaply: entries are shared.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    /// Index and term of the entry before the first that is held.
    pub(super) base: (u64, u64),
    pub(super) entries: VecDeque<Arc<Entry>>,
    /// Term, vote, and what is known to be agreed.
    pub(super) ballot: HardState,
    /// The last entry whose outcome is in the state, and the members as of it.
    pub(super) applied: u64,
    pub(super) members: ConfState,
}

impl Log {
    /// The index of the last entry.
    pub(super) fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    pub(super) fn entry(&self, index: u64) -> Option<&Arc<Entry>> {
        let place = index.checked_sub(self.base.0 + 1)?;
        self.entries.get(usize::try_from(place).ok()?)
    }

    /// The term of an entry; nothing if the entry is not held.
    pub(super) fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        self.entry(index).map(|entry| entry.term)
    }

    /// The entries behind an index.
    pub(super) fn after(&self, index: u64) -> impl Iterator<Item = &Arc<Entry>> {
        let held = index.saturating_sub(self.base.0);
        self.entries.iter().skip(usize::try_from(held).unwrap_or(usize::MAX))
    }

    /// Appends an entry, in the place of what stood there and behind.
    ///
    /// # Panics
    /// If an entry is missing before it: a bug.
    pub(super) fn append(&mut self, entry: Arc<Entry>) {
        assert!(entry.index > self.base.0 && entry.index <= self.last() + 1, "a gap in the log");
        self.entries.truncate((entry.index - self.base.0 - 1) as usize);
        self.entries.push_back(entry);
    }

    /// Begins anew behind a snapshot.
    pub(super) fn restore(&mut self, index: u64, term: u64, members: ConfState) {
        self.base = (index, term);
        self.entries.clear();
        self.applied = index;
        self.members = members;
        self.ballot.commit = self.ballot.commit.max(index);
    }

    /// Forgets entries up to an index, but for the last `kept` of them: members that are a little
    /// behind need no snapshot.
    pub(super) fn compact(&mut self, index: u64, kept: usize) {
        let held = usize::try_from(index.saturating_sub(self.base.0)).unwrap_or(usize::MAX);
        for _ in 0..held.min(self.entries.len()).saturating_sub(kept) {
            let gone = self.entries.pop_front().expect("it is held");
            self.base = (gone.index, gone.term);
        }
    }
}

fn unavailable(error: StorageError) -> Error {
    Error::Store(error)
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.ballot.clone(), conf_state: self.members.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        bytes_max: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        // Only entries for another member may come later. Who has nothing yet needs the members
        // too, and those of before the first entry are only in a snapshot.
        if low <= self.base.0 || (low == 1 && context.can_async()) {
            return Err(unavailable(StorageError::Compacted));
        }
        let bytes_max = bytes_max.into().unwrap_or(u64::MAX);
        let (mut entries, mut bytes) = (Vec::new(), 0u64);
        for index in low..high {
            let entry = self.entry(index).ok_or_else(|| unavailable(StorageError::Unavailable))?;
            bytes += (entry.data.len() + entry.context.len() + 32) as u64;
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(Entry::clone(entry));
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let missing =
            if index < self.base.0 { StorageError::Compacted } else { StorageError::Unavailable };
        self.term_of(index).ok_or_else(|| unavailable(missing))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Only what a snapshot of the present state would be named; the state itself goes beside it.
    fn snapshot(&self, wanted: u64, _to: u64) -> raft::Result<Snapshot> {
        let Some(term) = self.term_of(self.applied).filter(|_| self.applied >= wanted.max(1))
        else {
            return Err(unavailable(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = self.applied;
        metadata.term = term;
        *metadata.mut_conf_state() = self.members.clone();
        Ok(snapshot)
    }
}
