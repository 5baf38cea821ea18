//! Flattening: what shows through the head from other lineages is copied into it, a little at a
//! time, under the locks of its blocks. Only what the volume's own lineage has nothing of is
//! copied, so that a guest's write wins and beginning anew costs only a look.
//!
//! Shortening is the same for the first of those lineages alone: what lies above a layer further
//! down is copied, and then the head lies on that layer.

use crate::event::Effect;
use crate::pieces::{BLOCK, Range, piece};
use crate::request::{Completion, Error};
use crate::session::{Life, Session};
use crate::work::{Task, Work};
use cluster::Origin;
use proto::limits::{
    FILL_BURST_MS, FILL_MEASURE_MS, FLATTEN_PIECES_MAX, FLATTEN_RETRY_MS,
    MEMBER_REQUEST_BLOCKS_MAX, SESSION_BYTES_MAX, SESSION_REQUESTS_MAX, SHORTEN_LOOK_SHARE,
};
use proto::{Duration, LayerId, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How far a flatten or a shortening is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flattening {
    /// The layer that the volume is to lie on; nothing: it is flattened.
    pub onto: Option<LayerId>,
    /// So many bytes from the start are done.
    pub done_bytes: u64,
    /// How many bytes show through, and are looked at.
    pub total_bytes: u64,
    /// Why it has ended before its end.
    pub error: Option<Error>,
    /// How fast it went of late, in bytes a second; 0 when that is not known yet.
    pub bytes_per_s: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Flatten {
    stage: Stage,
    /// The layer that is shortened onto; nothing: everything is copied.
    onto: Option<LayerId>,
    /// The first block that has not been looked at.
    cursor: u64,
    /// The first block of each work under way.
    works: BTreeMap<u64, u64>,
    /// The first block of each part that made way for guests, and is copied again from the start.
    /// All of them lie before the cursor: what lies behind comes anyway.
    again: BTreeSet<u64>,
    pace: Pace,
    /// When it was last looked how fast it goes, how far it was then, and how fast it had gone.
    measured: Option<(Time, u64, u64)>,
    /// How often copies may have been lost.
    losses: u64,
    /// All was copied when this work was the next: nothing shows through for it and later ones.
    flat_from: Option<u64>,
    /// All above this layer was copied, and stable, when this work was the next: it and later ones
    /// need nothing in between, whatever showed through when they began.
    short_from: Option<(u64, LayerId)>,
}

/// How much may be copied: a bucket that fills with time. What was copied on credit is waited for.
#[derive(Debug, Default)]
struct Pace {
    /// 0: there is no bound.
    bytes_per_s: u64,
    /// In billionths of a byte, as the time is in those of a second.
    credit: i128,
    filled_at: Time,
    /// When there is credit again, if there is none now and somebody wants some.
    again_at: Option<Time>,
}

const NANO: i128 = 1_000_000_000;

impl Pace {
    /// Whether something may be copied now.
    fn has_credit(&mut self, now: Time) -> bool {
        self.again_at = None;
        let rate = i128::from(self.bytes_per_s);
        if rate == 0 {
            return true;
        }
        let most = rate * i128::from(FILL_BURST_MS) * NANO / 1000;
        let span = i128::try_from(now.since(self.filled_at).as_nanos()).unwrap_or(i128::MAX >> 64);
        self.credit = self.credit.saturating_add(rate.saturating_mul(span)).min(most);
        self.filled_at = now;
        if self.credit > 0 {
            return true;
        }
        let span = -self.credit / rate + 1;
        self.again_at = Some(now + Duration::from_nanos(u64::try_from(span).unwrap_or(u64::MAX)));
        false
    }

    fn spend(&mut self, bytes: i128) {
        if self.bytes_per_s > 0 {
            self.credit -= bytes * NANO;
        }
    }
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    Copying,
    /// All is copied. Works from before this one may still be asking the origin, which goes once
    /// the end is reported; those that come later do not ask it.
    Waiting {
        before: u64,
    },
    Flushing {
        before: u64,
    },
    /// It was reported; reported again if the map does not change.
    Reported {
        before: u64,
        again_at: Time,
    },
    Failed(Error),
}

impl Flatten {
    pub(crate) fn deadline(&self) -> Option<Time> {
        match self.stage {
            Stage::Reported { again_at, .. } => Some(again_at),
            Stage::Copying => self.pace.again_at,
            _ => None,
        }
    }

    /// The work that was the next when all had been copied, if that is so and it is not over.
    fn copied_from(&self) -> Option<u64> {
        match self.stage {
            Stage::Waiting { before }
            | Stage::Flushing { before }
            | Stage::Reported { before, .. } => Some(before),
            Stage::Idle | Stage::Copying | Stage::Failed(_) => None,
        }
    }

    /// Whether this work began when all had been copied: nothing shows through any more for it.
    pub(crate) fn precedes(&self, work: u64) -> bool {
        let from = match self.stage {
            // Answers of the disks may still be on the way when the map is flat.
            Stage::Idle => self.flat_from,
            _ => self.copied_from().filter(|_| self.onto.is_none()),
        };
        from.is_some_and(|from| work >= from)
    }

    /// What shows through for a work, of what did when it began: without what was copied before.
    pub(crate) fn chain_for(&self, work: u64, chain: Arc<[Origin]>) -> Arc<[Origin]> {
        let copied = self.copied_from().zip(self.onto);
        let short = [copied, self.short_from].into_iter().flatten().find(|(from, _)| work >= *from);
        let Some((_, parent)) = short else { return chain };
        match chain.iter().position(|origin| origin.layer == parent) {
            None | Some(0) => chain,
            Some(place) => {
                let first = cluster::onto(&chain, parent).expect("it was found");
                std::iter::once(first).chain(chain[place + 1..].iter().copied()).collect()
            }
        }
    }

    /// Whether everything that shows through was copied, and nothing of that lost.
    pub(crate) fn has_copied_all(&self) -> bool {
        match self.stage {
            Stage::Idle => self.flat_from.is_some(),
            _ => self.onto.is_none() && self.copied_from().is_some(),
        }
    }

    /// Likewise, and already when so many losses were known.
    pub(crate) fn is_copied_since(&self, losses: u64) -> bool {
        self.has_copied_all() && self.losses == losses
    }

    pub(crate) fn losses(&self) -> u64 {
        self.losses
    }

    /// Asserts the invariant.
    pub(crate) fn check(&self) {
        let mut again = self.again.iter();
        assert!(again.all(|at| *at < self.cursor), "what lies between would be left out");
    }

    fn is_running(&self) -> bool {
        !matches!(self.stage, Stage::Idle | Stage::Failed(_))
    }

    /// Does no more. What was reported holds: it is stable.
    fn stop(&mut self) {
        if let (Stage::Reported { before, .. }, Some(parent)) = (&self.stage, self.onto) {
            self.short_from = Some((*before, parent));
        }
        self.stage = Stage::Idle;
    }

    /// So much was copied beyond what was counted before.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.pace.spend(bytes as i128);
    }
}

impl Session {
    /// How far the flatten or shortening is that was asked for, if one was and it is not over.
    pub fn flattening(&self) -> Option<Flattening> {
        let total_bytes = self.through.chain.first().map_or(0, |origin| origin.bytes);
        let error = match &self.flatten.stage {
            Stage::Idle => return None,
            Stage::Failed(error) => Some(error.clone()),
            _ => None,
        };
        let done_bytes = self.flattened_bytes().min(total_bytes);
        let bytes_per_s = self.flatten.measured.map_or(0, |(_, _, speed)| speed);
        let onto = self.flatten.onto;
        Some(Flattening { onto, done_bytes, total_bytes, error, bytes_per_s })
    }

    fn flattened_bytes(&self) -> u64 {
        let undone = self.flatten.works.values().chain(&self.flatten.again);
        undone.copied().min().map_or(self.flatten.cursor, |at| at.min(self.flatten.cursor)) * BLOCK
    }

    /// How much is copied in a second.
    pub(crate) fn set_fill_rate(&mut self, bytes_per_s: u64, effects: &mut Vec<Effect>) {
        self.flatten.pace = Pace { bytes_per_s, credit: 0, filled_at: self.now, again_at: None };
        self.advance_flatten(effects);
    }

    /// So much of what was to be copied need not be.
    pub(crate) fn give_back(&mut self, bytes: u64) {
        self.flatten.pace.spend(-i128::from(bytes));
    }

    /// Finds out, once in a while, how fast it goes.
    fn measure(&mut self) {
        let done = self.flattened_bytes();
        let Some((at, before, _)) = self.flatten.measured else {
            self.flatten.measured = Some((self.now, done, 0));
            return;
        };
        let span = self.now.since(at).as_millis() as u64;
        if span >= FILL_MEASURE_MS {
            let speed = done.saturating_sub(before).saturating_mul(1000) / span;
            self.flatten.measured = Some((self.now, done, speed));
        }
    }

    pub(crate) fn handle_flatten(&mut self, start: bool, effects: &mut Vec<Effect>) {
        if !start {
            self.flatten.stop();
            self.give_up_background(effects);
        } else if !self.flatten.is_running() || self.flatten.onto.is_some() {
            self.begin_copying(None);
        }
        self.advance_flatten(effects);
    }

    pub(crate) fn handle_shorten(&mut self, parent: LayerId, effects: &mut Vec<Effect>) {
        if !self.flatten.is_running() {
            self.begin_copying(Some(parent));
        }
        self.advance_flatten(effects);
    }

    /// Begins from the start.
    fn begin_copying(&mut self, onto: Option<LayerId>) {
        if self.read_only {
            return;
        }
        self.flatten.stop();
        self.flatten.onto = onto;
        self.flatten.cursor = 0;
        self.flatten.again.clear();
        self.flatten.measured = None;
        self.flatten.stage = Stage::Copying;
    }

    /// Whether the head could lie on this layer, and does not yet.
    fn may_lie_on(&self, parent: LayerId) -> bool {
        let volume = self.map.volume(self.volume).expect("maps without it are not taken");
        // Snapshots go on showing what they showed, and a flatten leaves nothing to lie on.
        let has_snapshots = self.map.parent_in_lineage(volume.head).is_some();
        let mut deeper = self.through.chain.iter().skip(1);
        !has_snapshots && !volume.flattening && deeper.any(|origin| origin.layer == parent)
    }

    /// Goes on with the flatten as far as the limits allow.
    pub(crate) fn advance_flatten(&mut self, effects: &mut Vec<Effect>) {
        if !self.flatten.is_running() || self.life == Life::Opening {
            return;
        }
        let is_open = self.life == Life::Open && !self.is_closing();
        if !is_open || self.flatten.onto.is_some_and(|parent| !self.may_lie_on(parent)) {
            self.flatten.stop();
            return;
        }
        match self.flatten.stage {
            Stage::Copying => self.copy(effects),
            Stage::Waiting { before } => self.wait_for_others(before, effects),
            Stage::Reported { before, again_at } => {
                if self.through.chain.is_empty() {
                    self.flatten.flat_from = Some(before);
                    self.flatten.stage = Stage::Idle;
                } else if again_at <= self.now {
                    self.report_flattened(before, effects);
                }
            }
            Stage::Idle | Stage::Flushing { .. } | Stage::Failed(_) => {}
        }
    }

    fn copy(&mut self, effects: &mut Vec<Effect>) {
        let end = self.through.chain.first().map_or(0, |origin| origin.bytes.div_ceil(BLOCK));
        // A shrink may have cut off what was to be copied again.
        self.flatten.again.split_off(&end);
        loop {
            let at = match self.flatten.again.first() {
                // It would have to make way once more.
                Some(at) if self.sources.in_trouble().is_empty() => *at,
                _ => self.flatten.cursor,
            };
            if at >= end {
                break;
            }
            let (_, blocks) = piece(at, end, MEMBER_REQUEST_BLOCKS_MAX);
            let room = self.flatten.works.len() < FLATTEN_PIECES_MAX
                && self.works.len() < SESSION_REQUESTS_MAX
                && self.held_bytes() + blocks.bytes() <= SESSION_BYTES_MAX;
            if !room || !self.flatten.pace.has_credit(self.now) {
                return;
            }
            let range = Range { offset: at * BLOCK, length: blocks.bytes() as u64 };
            let (onto, number) = (self.flatten.onto, self.next_number());
            let task = Task::Flatten { content: Vec::new(), fetched: false, onto };
            self.flatten.again.remove(&at);
            self.flatten.cursor = self.flatten.cursor.max(at + u64::from(blocks.count()));
            let share = if onto.is_some() { SHORTEN_LOOK_SHARE } else { 1 };
            self.flatten.spend(blocks.bytes() / share as usize);
            let work = Work::new(None, task, range, false, self.now, number);
            let work = self.begin(work, effects);
            self.flatten.works.insert(work, at);
        }
        if self.flatten.works.is_empty() && self.flatten.again.is_empty() {
            let before = self.next_number();
            self.flatten.stage = Stage::Waiting { before };
            self.wait_for_others(before, effects);
        }
    }

    /// Copying that stands in line behind a request that waits for a source that does not answer
    /// makes way: what a guest asks for later would stand behind it, and needs no source perhaps.
    pub(crate) fn make_way(&mut self, effects: &mut Vec<Effect>) {
        let away = self.sources.in_trouble();
        for number in self.flatten.works.keys().copied().collect::<Vec<_>>() {
            if !away.iter().any(|ahead| self.locks.is_behind(*ahead, number)) {
                continue;
            }
            let at = self.flatten.works.remove(&number).expect("listed just now");
            // It may be one from before the copying began anew.
            if at < self.flatten.cursor {
                self.flatten.again.insert(at);
            }
            let work = self.works.remove(number).expect("it is in work");
            self.release_bytes(work.bytes());
            let mut granted = Vec::new();
            self.locks.withdraw(number, &mut granted);
            for next in granted {
                self.start(next, effects);
            }
        }
    }

    fn wait_for_others(&mut self, before: u64, effects: &mut Vec<Effect>) {
        if self.works.iter().any(|(_, work)| work.number < before) {
            return;
        }
        self.flatten.stage = Stage::Flushing { before };
        let (nothing, number) = (Range { offset: 0, length: 0 }, self.next_number());
        let work = Work::new(None, Task::FlattenFlush, nothing, false, self.now, number);
        self.begin(work, effects);
    }

    /// A part is copied, or could not be.
    pub(crate) fn copy_ended(
        &mut self,
        work: u64,
        result: Result<Completion, Error>,
        effects: &mut Vec<Effect>,
    ) {
        self.flatten.works.remove(&work);
        self.measure();
        if let Err(error) = result
            && self.flatten.is_running()
            && self.life == Life::Open
        {
            self.flatten.stage = Stage::Failed(error);
        }
        self.advance_flatten(effects);
    }

    /// All that was copied is stable, or some of it is gone.
    pub(crate) fn flatten_flushed(
        &mut self,
        result: Result<Completion, Error>,
        effects: &mut Vec<Effect>,
    ) {
        let Stage::Flushing { before } = self.flatten.stage else { return };
        match result {
            Ok(_) => self.report_flattened(before, effects),
            Err(_) => self.copies_lost(),
        }
        self.advance_flatten(effects);
    }

    fn report_flattened(&mut self, before: u64, effects: &mut Vec<Effect>) {
        let again_at = self.now + Duration::from_millis(FLATTEN_RETRY_MS);
        self.flatten.stage = Stage::Reported { before, again_at };
        effects.push(match self.flatten.onto {
            None => Effect::Flattened,
            Some(parent) => Effect::Shortened { parent },
        });
    }

    /// Copies that were not stable may be gone with their disk: all is looked at once more.
    pub(crate) fn copies_lost(&mut self) {
        self.flatten.losses += 1;
        let stage = &mut self.flatten.stage;
        if matches!(stage, Stage::Copying | Stage::Waiting { .. } | Stage::Flushing { .. }) {
            *stage = Stage::Copying;
            self.flatten.cursor = 0;
            self.flatten.again.clear();
        }
    }
}
