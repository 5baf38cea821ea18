//! What a shrink leaves to the session of a writer: to discard, durably, all content beyond the
//! new end, and to report it. Until that is in the map nothing beyond is served.

use crate::event::Effect;
use crate::pieces::Range;
use crate::request::{Completion, Error};
use crate::session::{Life, Session};
use crate::work::{Task, Work};
use cluster::PendingDiscard;
use proto::limits::SHRINK_RETRY_MS;
use proto::{Duration, Time};

/// How far the pending discard is.
#[derive(Debug, Default)]
pub(crate) enum Shrink {
    /// There is none, or it has not been begun.
    #[default]
    Idle,
    /// It is being done by this work.
    Running { discard: PendingDiscard, work: u64 },
    /// It was done and reported; reported again if the map does not change.
    Reported { discard: PendingDiscard, again_at: Time },
    /// It failed, and is tried again.
    Failed { again_at: Time },
}

impl Shrink {
    pub(crate) fn deadline(&self) -> Option<Time> {
        match self {
            Shrink::Idle | Shrink::Running { .. } => None,
            Shrink::Reported { again_at, .. } | Shrink::Failed { again_at } => Some(*again_at),
        }
    }
}

impl Session {
    /// Begins, repeats or forgets the discard, as the map and the time want it.
    pub(crate) fn advance_shrink(&mut self, effects: &mut Vec<Effect>) {
        let pending = self.map.volume(self.volume).and_then(|volume| volume.pending_discard);
        let serves = self.life == Life::Open && !self.is_closing() && !self.read_only;
        let Some(pending) = pending.filter(|_| serves) else {
            if !matches!(self.shrink, Shrink::Running { .. }) {
                self.shrink = Shrink::Idle;
            }
            return;
        };
        match &self.shrink {
            // One at a time. If the map has widened it meanwhile, its report will not fit, and
            // the wider one is begun after it.
            Shrink::Running { .. } => {}
            Shrink::Failed { again_at } if *again_at > self.now => {}
            Shrink::Reported { discard, again_at } if *discard == pending => {
                if *again_at <= self.now {
                    self.report(pending, effects);
                }
            }
            Shrink::Idle | Shrink::Failed { .. } | Shrink::Reported { .. } => {
                let length = pending.end - pending.above;
                let range = Range { offset: pending.above, length };
                let number = self.next_number();
                let work = Work::new(None, Task::Shrink, range, true, self.now, number);
                let work = self.begin(work, effects);
                self.shrink = Shrink::Running { discard: pending, work };
            }
        }
    }

    /// The discard has ended, one way or the other.
    pub(crate) fn shrink_ended(
        &mut self,
        result: Result<Completion, Error>,
        effects: &mut Vec<Effect>,
    ) {
        let Shrink::Running { discard, .. } = self.shrink else { return };
        match result {
            Ok(_) => {
                self.report(discard, effects);
                self.advance_shrink(effects);
            }
            Err(_) => {
                let again_at = self.now + Duration::from_millis(SHRINK_RETRY_MS);
                self.shrink = Shrink::Failed { again_at };
            }
        }
    }

    fn report(&mut self, discarded: PendingDiscard, effects: &mut Vec<Effect>) {
        let again_at = self.now + Duration::from_millis(SHRINK_RETRY_MS);
        self.shrink = Shrink::Reported { discard: discarded, again_at };
        effects.push(Effect::ShrinkDone { discarded });
    }

    /// The session closes: the next one goes on.
    pub(crate) fn abandon_shrink(&mut self, effects: &mut Vec<Effect>) {
        if let Shrink::Running { work, .. } = std::mem::take(&mut self.shrink) {
            self.abandon(work, effects);
        }
    }
}
