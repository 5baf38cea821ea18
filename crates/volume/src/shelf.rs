//! Requests that must wait for a source that is slow or away, beyond the share of a session's
//! limits that such requests have: they are put off, hold nothing but what their front holds of
//! them, and come back in the order of their arrival when there is room in that share. The first of
//! them has a claim to that before all that came after it. So what the source has nothing to do
//! with goes on, however much waits for it, and what waits does not do so for ever.
//!
//! What overlaps a request that waits, if one of both changes something, waits behind it, as
//! everywhere: when that is put off it is put off too, and what comes later likewise.

use crate::event::Effect;
use crate::pieces::Range;
use crate::request::{Error, Operation, Request};
use crate::session::{Life, Session};
use crate::work::{Task, Work};
use proto::limits::{
    REQUEST_BYTES_MAX, SESSION_BYTES_MAX, SESSION_PIECES_MAX, SESSION_REQUESTS_MAX,
    SOURCE_WAITING_BYTES_MAX, SOURCE_WAITING_PIECES_MAX, SOURCE_WAITING_REQUESTS_MAX,
};
use proto::{LayerId, Time};
use std::collections::{BTreeMap, BTreeSet};

// The longest request fits; and others have most of everything.
const _: () = assert!(REQUEST_BYTES_MAX <= SOURCE_WAITING_BYTES_MAX);
const _: () = assert!(SOURCE_WAITING_BYTES_MAX <= SESSION_BYTES_MAX / 2);
const _: () = assert!(SOURCE_WAITING_REQUESTS_MAX <= SESSION_REQUESTS_MAX / 2);
const _: () = assert!(SOURCE_WAITING_PIECES_MAX <= SESSION_PIECES_MAX / 2);

/// A request that is not in work.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// When it came.
    pub(crate) since: Time,
    /// Its place in the order of arrival.
    pub(crate) order: u64,
    /// How many pieces of it had to wait for a source when it was put off; 0: it was not yet.
    pub(crate) pieces: usize,
    pub(crate) request: Request,
}

/// What was put off, by the order of arrival.
///
/// Invariant: whatever comes before one of these and overlaps it, if one of both changes something,
/// is one of these too, or in work, or the first in the inbox, as it comes back.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    entries: BTreeMap<u64, Entry>,
    /// How many works are being put off.
    leaving: usize,
    /// What may wait for sources and hold a place.
    pub(crate) most: Most,
}

/// The share of a session's limits that those have who wait for sources. One alone may always.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    pub(crate) requests: usize,
    pub(crate) bytes: usize,
    pub(crate) pieces: usize,
}

impl Default for Most {
    fn default() -> Most {
        Most {
            requests: SOURCE_WAITING_REQUESTS_MAX,
            bytes: SOURCE_WAITING_BYTES_MAX,
            pieces: SOURCE_WAITING_PIECES_MAX,
        }
    }
}

#[derive(Debug)]
struct Entry {
    since: Time,
    request: Request,
    /// What it waits for, or what it waits behind waits for.
    source: LayerId,
    /// The blocks that it must have: first, one past the last, exclusive.
    lock: Option<(u64, u64, bool)>,
    bytes: usize,
    /// How many pieces of it had to wait, at least one.
    pieces: usize,
}

impl Shelf {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Since when the oldest one waits, and for which source.
    pub(crate) fn oldest(&self) -> Option<(Time, LayerId)> {
        self.entries.values().next().map(|entry| (entry.since, entry.source))
    }

    /// Takes out everything, in order.
    pub(crate) fn clear(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.entries).into_values().map(|entry| entry.request).collect()
    }

    /// A work has ended, or left: it is not being put off any more.
    pub(crate) fn ended(&mut self, work: &Work) {
        self.leaving -= usize::from(work.put_off);
    }

    pub(crate) fn put(&mut self, work: Work, source: LayerId) {
        let (since, order, lock, bytes) = (work.since, work.order, work.lock(), work.bytes());
        let pieces = work.pieces.max(1);
        let request = work.into_request();
        let entry = Entry { since, request, source, lock, bytes, pieces };
        let before = self.entries.insert(order, entry);
        assert!(before.is_none(), "a request arrives once");
    }
}

/// What waits for sources takes of a session's limits.
#[derive(Default)]
struct Share {
    requests: usize,
    bytes: usize,
    pieces: usize,
}

impl Share {
    /// Whether this may be added.
    fn has_room(&self, most: Most, bytes: usize, pieces: usize) -> bool {
        self.requests == 0
            || (self.requests < most.requests
                && self.bytes + bytes <= most.bytes
                && self.pieces + pieces <= most.pieces)
    }

    fn add(&mut self, bytes: usize, pieces: usize) {
        self.requests += 1;
        self.bytes += bytes;
        self.pieces += pieces;
    }
}

impl Session {
    /// Puts off what is beyond the share, and takes back what there is room for. Returns whether
    /// anything changed.
    pub(crate) fn tend_shelf(&mut self, effects: &mut Vec<Effect>) -> bool {
        if self.life != Life::Open || self.is_closing() {
            return self.clear_shelf(effects);
        }
        let put_off = self.sources.has_grown() && self.put_off_excess(effects);
        self.take_back(effects) || put_off
    }

    /// Nothing waits for sources any more: what was put off fails like what is in work.
    fn clear_shelf(&mut self, effects: &mut Vec<Effect>) -> bool {
        let error = self.error_of_the_end();
        let requests = self.shelf.clear();
        let any = !requests.is_empty();
        for request in requests {
            self.complete(request.id, Err(error.clone()), effects);
        }
        any
    }

    /// The oldest of those that wait keep their place, and one at least does: it finds out when the
    /// source is well again.
    fn put_off_excess(&mut self, effects: &mut Vec<Effect>) -> bool {
        let mut waiting: Vec<(u64, u64, usize)> = Vec::new();
        for (number, pieces) in self.sources.asked_by_guests() {
            let order = self.works.at(number).expect("a work outlives its pieces").order;
            waiting.push((order, number, pieces));
        }
        waiting.sort_unstable();
        let mut share = Share::default();
        let mut excess = Vec::new();
        let shelved = self.shelf.entries.first_key_value();
        let mut shelved = shelved.map(|(order, entry)| (*order, entry.bytes, entry.pieces));
        for (order, number, pieces) in waiting {
            // The oldest one without a place has a claim: else those that came later, and need
            // less, would take what becomes free, for ever.
            if let Some((_, bytes, pieces)) = shelved.take_if(|(earlier, ..)| *earlier < order) {
                share.add(bytes, pieces);
            }
            let work = self.works.at(number).expect("listed just now");
            if !work.put_off && share.has_room(self.shelf.most, work.bytes(), pieces) {
                share.add(work.bytes(), pieces);
            } else {
                excess.push((number, pieces));
            }
        }
        let any = !excess.is_empty();
        // The youngest first: none of them is let in by the end of one before it.
        for (number, pieces) in excess.into_iter().rev() {
            self.put_off(number, pieces, effects);
        }
        any
    }

    /// Takes a work apart that waits for a source, after what waits behind it.
    fn put_off(&mut self, number: u64, pieces: usize, effects: &mut Vec<Effect>) {
        // It may have ended with one before it.
        let Some(source) = self.sources.awaited_by(number) else { return };
        let work = self.works.at_mut(number).expect("its questions belong to it");
        // One that has failed already is not begun again.
        if work.error.is_none() && !work.put_off {
            work.put_off = true;
            self.shelf.leaving += 1;
        }
        work.source = source;
        self.put_off_behind(number, source, effects);
        let work = self.works.at_mut(number).expect("its questions belong to it");
        work.pieces = work.pieces.max(pieces);
        work.abandon(Error::Io("it was put off".into()));
        self.give_up_questions(number, effects);
    }

    /// What waits for the blocks of a work is put off before it.
    pub(crate) fn put_off_behind(
        &mut self,
        number: u64,
        source: LayerId,
        effects: &mut Vec<Effect>,
    ) {
        let is_guests = |number: u64| self.works.at(number).is_some_and(|work| work.id.is_some());
        for number in self.locks.behind(number, is_guests).into_iter().rev() {
            let mut granted = Vec::new();
            self.locks.withdraw(number, &mut granted);
            self.shelve(number, source);
            for next in granted {
                self.start(next, effects);
            }
        }
    }

    /// A guest's work holds nothing any more, and comes back later.
    pub(crate) fn shelve(&mut self, number: u64, source: LayerId) {
        let work = self.works.remove(number).expect("it is in work");
        self.shelf.ended(&work);
        self.release_bytes(work.bytes());
        self.shelf.put(work, source);
    }

    /// The source that a work has to wait for before it begins, as something does that came before
    /// it and that it must not overtake.
    pub(crate) fn waits_behind(&self, work: &Work) -> Option<LayerId> {
        let (first, end, exclusive) = work.lock()?;
        let shelf = &self.shelf;
        if shelf.entries.is_empty() && shelf.leaving == 0 && self.sources.len() == 0 {
            return None;
        }
        let conflicts = |other: Option<(u64, u64, bool)>| {
            other.is_some_and(|(from, to, other)| (exclusive || other) && from < end && first < to)
        };
        let mut shelved = shelf.entries.range(..work.order).map(|(_, entry)| entry);
        if let Some(entry) = shelved.find(|entry| conflicts(entry.lock)) {
            return Some(entry.source);
        }
        // Those in work that are being put off, or wait for a source that does not answer. What
        // comes back was the first of those that wait and has a place behind the latter.
        let away = match work.pieces {
            0 => self.sources.in_trouble(),
            _ => BTreeSet::new(),
        };
        let earlier = |other: &Work| other.id.is_some() && other.order < work.order;
        let mut works = self.works.iter().filter(|(_, other)| earlier(other));
        let (number, other) = works.find(|(number, other)| {
            (other.put_off || away.contains(number)) && conflicts(other.lock())
        })?;
        self.sources.awaited_by(number).or(Some(other.source))
    }

    /// Takes back what there is room for.
    fn take_back(&mut self, effects: &mut Vec<Effect>) -> bool {
        let mut any = false;
        while let Some((order, entry)) = self.shelf.entries.first_key_value() {
            // What is being put off just now may come before it. It does not wait for what comes
            // after it: of that there may always be more.
            let is_before = |work: &Work| work.put_off && work.order < *order;
            if self.works.iter().any(|(_, work)| is_before(work)) || self.has_returned() {
                break;
            }
            let mut share = Share::default();
            let waiting: BTreeMap<u64, usize> = self.sources.asked_by_guests().collect();
            for (number, work) in self.works.iter().filter(|(_, work)| !work.put_off) {
                let pieces = waiting.get(&number).copied().unwrap_or(0).max(work.pieces);
                if pieces > 0 {
                    share.add(work.bytes(), pieces);
                }
            }
            if !share.has_room(self.shelf.most, entry.bytes, entry.pieces) {
                break;
            }
            let (order, entry) = self.shelf.entries.pop_first().expect("just seen");
            let Entry { since, request, pieces, .. } = entry;
            self.admit_again(Arrival { since, order, pieces, request }, effects);
            any = true;
        }
        any
    }

    /// Asserts the invariant.
    pub(crate) fn check_shelf(&self) {
        let conflicts = |one: &Entry, work: &Work| match (one.lock, work.lock()) {
            (Some((first, end, exclusive)), Some((from, to, other))) => {
                (exclusive || other) && from < end && first < to
            }
            _ => false,
        };
        for (order, entry) in &self.shelf.entries {
            let mut works = self.works.iter().map(|(_, work)| work);
            let overtakes =
                |work: &Work| work.id.is_some() && work.order > *order && conflicts(entry, work);
            assert!(!works.any(overtakes), "something overtakes {entry:?}");
        }
        let leaving = self.works.iter().filter(|(_, work)| work.put_off).count();
        assert_eq!(leaving, self.shelf.leaving, "works that are being put off");
        let is_open = self.life == Life::Open && !self.is_closing();
        let waiting: BTreeSet<u64> =
            self.sources.asked_by_guests().map(|(number, _)| number).collect();
        let works = waiting.iter().filter_map(|number| self.works.at(*number));
        let (count, bytes) = works.fold((0, 0), |(n, sum), work| (n + 1, sum + work.bytes()));
        let most = self.shelf.most;
        let is_little = count <= most.requests && bytes <= most.bytes;
        assert!(count <= 1 || is_little || !is_open, "too much waits for sources");
    }
}

impl Work {
    /// The guest's request that it was, of which nothing has been done that leaves a trace.
    fn into_request(self) -> Request {
        assert!(!self.must_go_on(), "a write that has begun goes on");
        let Range { offset, length } = self.range;
        let fua = self.fua;
        let operation = match self.task {
            Task::Read { .. } => Operation::Read,
            Task::Write { buffer, .. } => {
                let buffer = buffer.expect("the body has not begun");
                Operation::Write { buffer, fua }
            }
            Task::Discard => Operation::Discard { fua },
            Task::WriteZeroes { may_unmap, .. } => {
                Operation::WriteZeroes { may_unmap, fast_only: false, fua }
            }
            Task::Status { .. } => Operation::Status,
            Task::Difference { base, .. } => Operation::Difference { base },
            Task::Prefetch => Operation::Prefetch,
            other => unreachable!("{other:?} waits for no source"),
        };
        let id = self.id.expect("only guests' works are put off");
        Request { id, offset, length, operation }
    }
}
