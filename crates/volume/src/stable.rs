//! What acknowledgements promise (`cluster::Durability`).
//!
//! Where they promise that what was changed is stable, each change ends with a flush, as one with
//! FUA does: the coordinator lets all that come meanwhile share the next one. It keeps its blocks
//! until then. So whoever reads them finds what is stable, and if the disks lose it in the middle
//! of that flush (several machines lost their power), it is simply done once more: nobody was told
//! yet that it was done, and nothing can have come over it.
//!
//! A loss says so with the guest's next flush. Where everything that was acknowledged was stable,
//! it has lost nothing that the guest counts on: then that flush is repeated instead.
//!
//! When the promise changes while the session is open, it holds for whatever is answered from then
//! on, which the session reports.

use crate::event::Effect;
use crate::request::Error;
use crate::session::{Life, Session};
use crate::work::{Stage, Task};
use cluster::{Durability, Volume};
use proto::limits::STABLE_RETRY_MS;
use proto::{Duration, Mistake, Time, planted};

/// What the session knows of what it has promised.
#[derive(Debug, Default)]
pub(crate) struct Stable {
    /// Changes that were acknowledged before they were known to be stable, ..
    answered: u64,
    /// .. and how many of them the last flush of the guest that ended well covers.
    covered: u64,
    /// When it is reported again that a new promise was taken, if the map goes on waiting for it.
    report_at: Option<Time>,
}

impl Stable {
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.report_at
    }

    /// A change is answered that no flush has followed.
    pub(crate) fn answered(&mut self) {
        self.answered += 1;
    }

    /// How many a flush that begins now covers.
    pub(crate) fn so_far(&self) -> u64 {
        self.answered
    }

    /// A flush of the guest that covers so many has ended well.
    pub(crate) fn flushed(&mut self, covered: u64) {
        self.covered = self.covered.max(covered);
    }

    /// Whether everything that was acknowledged was stable then, or has been flushed since.
    fn is_all(&self) -> bool {
        self.covered == self.answered
    }
}

impl Session {
    /// Whether what is acknowledged now must be stable.
    pub(crate) fn promises_stable(&self) -> bool {
        let volume = self.map.volume(self.volume);
        let promises = |volume: &Volume| volume.durability == Durability::Ack;
        volume.is_some_and(promises) && !planted(Mistake::AckBeforeFlush)
    }

    /// What the disks lost while this work waited for its flush is done again, if the work has
    /// kept its blocks for that, or lost nothing that anybody counts on. True: it goes on.
    pub(crate) fn is_repeated(&mut self, number: u64) -> bool {
        let is_all = self.promises_stable() && self.stable.is_all();
        let work = self.works.at_mut(number).expect("it is in work");
        if self.life != Life::Open || !matches!(work.error, Some(Error::Io(_))) {
            return false;
        }
        if work.keeps {
            (work.error, work.stage) = (None, Stage::Body);
            work.rewind();
            work.queued = true;
            self.runnable.push_back(number);
            self.pump();
            return true;
        }
        // Else the guest is to learn of it.
        if !matches!(work.task, Task::Flush) || !is_all {
            return false;
        }
        work.error = None;
        self.flush(number);
        true
    }

    /// Reports, or reports again, that it has taken what the map wants promised.
    pub(crate) fn advance_stable(&mut self, effects: &mut Vec<Effect>) {
        let serves = self.life == Life::Open && !self.is_closing() && !self.read_only;
        let wanted = self.map.volume(self.volume).and_then(Volume::stable_since);
        let Some(since) = wanted.filter(|_| serves) else {
            // Whoever has it next goes by it from the start.
            self.stable.report_at = None;
            return;
        };
        if self.stable.report_at.is_none_or(|at| at <= self.now) {
            let again_at = self.now + Duration::from_millis(STABLE_RETRY_MS);
            self.stable.report_at = Some(again_at);
            effects.push(Effect::Stable { since });
        }
    }
}
