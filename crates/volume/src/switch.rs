//! A new head: when the map has one, the session turns its changes to it.
//!
//! A write of which some pieces have gone to the former head sends the others there too, and no
//! other change is begun until it has, so that no write is split between a snapshot and what comes
//! after it. Zeroing and discarding of long ranges may be split: the guest's write is a write, but
//! nobody expects gigabytes to change at once. Then the disks are told, which ends when everything
//! of the former head is on all of them; what is stable on all of them after that is sealed.

use crate::event::Effect;
use crate::pieces::Range;
use crate::request::{Completion, Error};
use crate::session::{Life, Session};
use crate::work::{Task, Work};
use proto::limits::SEAL_RETRY_MS;
use proto::{Duration, LayerId, Mistake, Time, planted};
use std::collections::VecDeque;

/// How far the session is with the head that the map shows.
#[derive(Debug)]
pub(crate) struct Switch {
    /// What changes go to.
    head: LayerId,
    stage: Stage,
    /// Works that have pieces to send and must not send them yet.
    pub(crate) held: VecDeque<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Nothing is to be done.
    Idle,
    /// Waits for the writes that have begun.
    Draining { layer: LayerId },
    /// A work tells the disks, and flushes.
    Sealing,
    /// It was reported; reported again if the map does not change.
    Reported { layer: LayerId, again_at: Time },
}

impl Switch {
    pub(crate) fn new(head: LayerId) -> Switch {
        Switch { head, stage: Stage::Idle, held: VecDeque::new() }
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        match self.stage {
            Stage::Reported { again_at, .. } => Some(again_at),
            _ => None,
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        matches!(self.stage, Stage::Draining { .. })
    }

    /// Whether changes that have not begun go to this layer, now or when what has begun is over.
    pub(crate) fn leads_to(&self, head: LayerId) -> bool {
        match self.stage {
            Stage::Draining { layer } => layer == head,
            _ => self.head == head,
        }
    }

    /// Whether the work must wait for the switch before it sends more.
    pub(crate) fn holds(&self, work: &Work) -> bool {
        self.is_draining() && work.is_change() && !work.must_go_on()
    }
}

impl Session {
    /// Begins, goes on with, repeats or forgets the switch, as the map and the time want it.
    pub(crate) fn advance_switch(&mut self, effects: &mut Vec<Effect>) {
        if self.life != Life::Open || self.read_only {
            return;
        }
        let head = self.map.volume(self.volume).expect("maps without it are not taken").head;
        let is_opened = self.map.layer(head).is_none_or(|layer| layer.opened);
        match self.switch.stage {
            Stage::Sealing => {}
            Stage::Draining { layer } => self.try_switch(layer, effects),
            // The next session opens it.
            _ if self.is_closing() => self.switch.stage = Stage::Idle,
            _ if head != self.switch.head => {
                self.switch.stage = Stage::Draining { layer: head };
                self.try_switch(head, effects);
            }
            _ if is_opened => self.switch.stage = Stage::Idle,
            Stage::Reported { layer, again_at } if layer == head => {
                if again_at <= self.now {
                    self.report_layer(effects);
                }
            }
            // The coordinator has opened it, before anything was served.
            Stage::Idle | Stage::Reported { .. } => self.seal(None, effects),
        }
    }

    /// Turns to the new head, unless a write has to go on first.
    fn try_switch(&mut self, layer: LayerId, effects: &mut Vec<Effect>) {
        let must_wait = self.works.iter().any(|(_, work)| work.must_go_on() && work.has_more());
        if must_wait && !planted(Mistake::SnapshotSplitsWrite) {
            return;
        }
        let parent = std::mem::replace(&mut self.switch.head, layer);
        self.seal(Some((layer, parent)), effects);
        self.release_held();
    }

    /// Tells the disks, if they are to be told, and flushes.
    fn seal(&mut self, layers: Option<(LayerId, LayerId)>, effects: &mut Vec<Effect>) {
        self.switch.stage = Stage::Sealing;
        let (nothing, number) = (Range { offset: 0, length: 0 }, self.next_number());
        let work = Work::new(None, Task::Seal { layers }, nothing, true, self.now, number);
        self.begin(work, effects);
    }

    /// The changes that waited go on.
    pub(crate) fn release_held(&mut self) {
        let mut held = std::mem::take(&mut self.switch.held);
        self.runnable.append(&mut held);
        self.pump();
    }

    /// Everything of the former head is stable, or something of it was lost and is being repeated
    /// in the new one.
    pub(crate) fn seal_ended(
        &mut self,
        result: Result<Completion, Error>,
        effects: &mut Vec<Effect>,
    ) {
        self.switch.stage = Stage::Idle;
        if result.is_ok() {
            self.report_layer(effects);
        }
        self.advance_switch(effects);
    }

    fn report_layer(&mut self, effects: &mut Vec<Effect>) {
        let layer = self.switch.head;
        let again_at = self.now + Duration::from_millis(SEAL_RETRY_MS);
        self.switch.stage = Stage::Reported { layer, again_at };
        effects.push(Effect::LayerOpened { layer });
    }

    /// Nothing will be written any more.
    pub(crate) fn abandon_switch(&mut self) {
        self.switch.stage = Stage::Idle;
        self.release_held();
    }
}
