//! Flattening: what shows through the head from other lineages is copied into it, a little at a
//! time, under the locks of its blocks. Only what the volume's own lineage has nothing of is
//! copied, so that a guest's write wins and beginning anew costs only a look.

use crate::event::Effect;
use crate::pieces::{BLOCK, Range, piece};
use crate::request::{Completion, Error};
use crate::session::{Life, Session};
use crate::work::{Task, Work};
use proto::limits::{
    FLATTEN_PIECES_MAX, FLATTEN_RETRY_MS, MEMBER_REQUEST_BLOCKS_MAX, SESSION_BYTES_MAX,
    SESSION_REQUESTS_MAX,
};
use proto::{Duration, Time};
use std::collections::BTreeMap;

/// How far a flatten is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flattening {
    /// So many bytes from the start are done.
    pub done_bytes: u64,
    /// How many bytes show through.
    pub total_bytes: u64,
    /// Why it has ended before its end.
    pub error: Option<Error>,
}

#[derive(Debug, Default)]
pub(crate) struct Flatten {
    stage: Stage,
    /// The first block that has not been looked at.
    cursor: u64,
    /// The first block of each work under way.
    works: BTreeMap<u64, u64>,
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
            _ => None,
        }
    }

    /// Whether this work began when all had been copied: nothing shows through any more for it.
    pub(crate) fn precedes(&self, work: u64) -> bool {
        match self.stage {
            Stage::Waiting { before }
            | Stage::Flushing { before }
            | Stage::Reported { before, .. } => work >= before,
            Stage::Idle | Stage::Copying | Stage::Failed(_) => false,
        }
    }

    fn is_running(&self) -> bool {
        !matches!(self.stage, Stage::Idle | Stage::Failed(_))
    }
}

impl Session {
    /// How far the flatten is that was asked for, if one was and it was not stopped.
    pub fn flattening(&self) -> Option<Flattening> {
        let total_bytes = self.through.chain.first().map_or(0, |origin| origin.bytes);
        let error = match &self.flatten.stage {
            Stage::Idle => return None,
            Stage::Failed(error) => Some(error.clone()),
            _ => None,
        };
        let lowest = self.flatten.works.values().copied().min();
        let done = lowest.unwrap_or(self.flatten.cursor).min(self.flatten.cursor) * BLOCK;
        Some(Flattening { done_bytes: done.min(total_bytes), total_bytes, error })
    }

    pub(crate) fn handle_flatten(&mut self, start: bool, effects: &mut Vec<Effect>) {
        if !start {
            self.flatten.stage = Stage::Idle;
        } else if !self.flatten.is_running() && !self.read_only {
            self.flatten.cursor = 0;
            self.flatten.stage = Stage::Copying;
        }
        self.advance_flatten(effects);
    }

    /// Goes on with the flatten as far as the limits allow.
    pub(crate) fn advance_flatten(&mut self, effects: &mut Vec<Effect>) {
        if !self.flatten.is_running() || self.life == Life::Opening {
            return;
        }
        if self.life != Life::Open || self.is_closing() {
            self.flatten.stage = Stage::Idle;
            return;
        }
        match self.flatten.stage {
            Stage::Copying => self.copy(effects),
            Stage::Waiting { before } => self.wait_for_others(before, effects),
            Stage::Reported { before, again_at } => {
                if self.through.chain.is_empty() {
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
        loop {
            let at = self.flatten.cursor;
            if at >= end {
                break;
            }
            let (_, blocks) = piece(at, end, MEMBER_REQUEST_BLOCKS_MAX);
            let room = self.flatten.works.len() < FLATTEN_PIECES_MAX
                && self.works.len() < SESSION_REQUESTS_MAX
                && self.held_bytes() + blocks.bytes() <= SESSION_BYTES_MAX;
            if !room {
                return;
            }
            let range = Range { offset: at * BLOCK, length: blocks.bytes() as u64 };
            let (task, number) = (Task::Flatten { content: Vec::new() }, self.next_number());
            self.flatten.cursor = at + u64::from(blocks.count());
            let work = Work::new(None, task, range, false, self.now, number);
            let work = self.begin(work, effects);
            self.flatten.works.insert(work, at);
        }
        if self.flatten.works.is_empty() {
            let before = self.next_number();
            self.flatten.stage = Stage::Waiting { before };
            self.wait_for_others(before, effects);
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
        effects.push(Effect::Flattened);
    }

    /// Copies that were not stable may be gone with their disk: all is looked at once more.
    pub(crate) fn copies_lost(&mut self) {
        let stage = &mut self.flatten.stage;
        if matches!(stage, Stage::Copying | Stage::Waiting { .. } | Stage::Flushing { .. }) {
            *stage = Stage::Copying;
            self.flatten.cursor = 0;
        }
    }
}
