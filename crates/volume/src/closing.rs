//! The end of a session: what has begun ends, what has not is given up, one last flush.

use crate::event::Effect;
use crate::locks::Locks;
use crate::pieces::Range;
use crate::request::{Error, RequestId};
use crate::session::{Life, Session};
use crate::shelf::Arrival;
use crate::work::{Stage, Task, Work};
use proto::limits::CLOSE_STALLED_MS_MAX;
use proto::{Duration, Time};
use replica::Slots;

/// A session on its way out.
#[derive(Debug)]
pub(crate) struct Closing {
    /// When to look whether it is worth waiting any longer.
    pub(crate) look_at: Time,
    /// Whether the last flush has been asked for.
    pub(crate) flushing: bool,
}

impl Session {
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    pub(crate) fn begin_closing(&mut self, effects: &mut Vec<Effect>) {
        if self.closing.is_some() || self.life == Life::Closed {
            return;
        }
        let look_at = self.now + Duration::from_millis(CLOSE_STALLED_MS_MAX);
        self.closing = Some(Closing { look_at, flushing: false });
        if self.life == Life::Opening {
            // Nothing has been done for the guest yet, and the next session fences anew.
            self.give_up(effects);
            return;
        }
        // What a shrink left stays in the map: the next session goes on with it.
        self.abandon_shrink(effects);
        self.advance_flatten(effects);
        // Who asked is gone, and gigabytes of zeros would keep the next one waiting.
        for Arrival { request, .. } in std::mem::take(&mut self.inbox) {
            self.complete(request.id, Err(being_closed()), effects);
        }
        self.tend_shelf(effects);
        let unsent: Vec<u64> =
            self.works.iter().filter(|(_, work)| !work.is_sent()).map(|(at, _)| at).collect();
        // All first: the end of one must not begin the next.
        for &number in &unsent {
            self.works.at_mut(number).expect("listed just now").abandon(being_closed());
        }
        for number in unsent {
            self.abandon(number, effects);
        }
    }

    /// A work is given up: what is under way ends it.
    pub(crate) fn abandon(&mut self, number: u64, effects: &mut Vec<Effect>) {
        let Some(work) = self.works.at_mut(number) else { return };
        work.abandon(being_closed());
        if work.stage == Stage::Body {
            self.advance(number, effects);
        }
    }

    /// Flushes once all requests have ended, then closes.
    pub(crate) fn advance_closing(&mut self, effects: &mut Vec<Effect>) {
        // A seal that waits for a disk which does not serve is left to the next session.
        let is_held_up = self.is_closing() && self.coordinator.is_seal_held_up();
        let is_left = |work: &Work| is_held_up && matches!(work.task, Task::Seal { .. });
        let is_busy = self.works.iter().any(|(_, work)| !is_left(work));
        let Some(closing) = &mut self.closing else { return };
        if self.life == Life::Closed || is_busy || !self.inbox.is_empty() {
            return;
        }
        if self.life == Life::Open && !self.read_only && !closing.flushing {
            closing.flushing = true;
            let nothing = Range { offset: 0, length: 0 };
            let work = Work::new(None, Task::LastFlush, nothing, false, self.now, self.next);
            self.begin(work, effects);
            self.drive(effects);
            return;
        }
        self.works = Slots::default();
        self.pieces = Slots::default();
        self.life = Life::Closed;
        effects.push(Effect::Closed);
    }

    /// Closes without what is not done: the disks that it takes are out of service, and nobody is
    /// left to wait for them. What was not acknowledged may or may not have been done.
    pub(crate) fn give_up(&mut self, effects: &mut Vec<Effect>) {
        let obstacle = self.coordinator.obstacle().unwrap_or_default();
        let error = Error::Io(format!("the volume was closed while it waited for {obstacle}"));
        let mut ids: Vec<(u64, Option<RequestId>)> =
            self.works.iter().map(|(_, work)| (work.number, work.id)).collect();
        ids.sort_unstable_by_key(|(number, _)| *number);
        let waiting = self.inbox.drain(..).map(|arrival| arrival.request.id);
        let shelved = self.shelf.clear().into_iter().map(|request| request.id);
        let works = ids.into_iter().filter_map(|(_, id)| id);
        let ids: Vec<_> = works.chain(shelved).chain(waiting).collect();
        for id in ids {
            self.complete(id, Err(error.clone()), effects);
        }
        self.works = Slots::default();
        self.pieces = Slots::default();
        self.follows = Slots::default();
        self.sources.clear();
        self.switch.held.clear();
        self.locks = Locks::default();
        self.runnable.clear();
        self.scratch.clear();
        self.bytes = 0;
        self.life = Life::Closed;
        effects.push(Effect::Closed);
    }

    /// What ends requests that are given up with the session.
    pub(crate) fn error_of_the_end(&self) -> Error {
        match self.life {
            Life::Fenced => Error::Fenced,
            _ => being_closed(),
        }
    }
}

pub(crate) const BEING_CLOSED: &str = "the volume is being closed; attach it again";

pub(crate) fn being_closed() -> Error {
    Error::Io(BEING_CLOSED.into())
}
