//! Member requests: their entry, and the queues of those that change an object and must wait. All
//! layers' objects of one index share a queue, because their stamps are one history.

use super::Serving;
use super::read::Question;
use crate::inflight::Acknowledgement;
use crate::table::History;
use crate::{Effect, Waiting};
use proto::{
    BlockRange, Generation, LineageId, MemberError, MemberReply, MemberRequest, MemberToken,
    ObjectKey, ObjectStamp, Stamp, Time, Write, limits,
};
use std::collections::{BTreeMap, VecDeque};

/// A request on one object that is handled in its order there.
#[derive(Debug)]
pub(super) enum Queued {
    Write(MemberToken, Write),
    Settle(MemberToken, Settle),
    Stamp(MemberToken, ObjectKey, Generation),
}

/// See [`MemberRequest::Settle`].
#[derive(Debug)]
pub(super) struct Settle {
    pub(super) key: ObjectKey,
    pub(super) generation: Generation,
    pub(super) stamp: Stamp,
}

impl Queued {
    fn token(&self) -> MemberToken {
        match self {
            Queued::Write(token, _) | Queued::Settle(token, _) | Queued::Stamp(token, ..) => *token,
        }
    }
}

/// How far handling a request came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// It was applied or refused.
    Done,
    /// It waits for a map page, whose load wakes the queue.
    Page,
    /// It waits for something that all objects share.
    Resource(Waiting),
}

/// Requests of one history that wait, in order.
#[derive(Default)]
struct Queue {
    requests: VecDeque<Queued>,
    stalled: bool,
}

/// The requests that wait, by history.
#[derive(Default)]
pub(super) struct Queues {
    queues: BTreeMap<History, Queue>,
    /// Histories whose first request waits for a shared resource, in order.
    stalled: VecDeque<History>,
    waiting: Option<Waiting>,
}

impl Queues {
    /// Why the queues wait, if any does.
    pub(super) fn waiting(&self) -> Option<Waiting> {
        self.waiting.filter(|_| !self.stalled.is_empty())
    }

    /// Whether anything waits for a shared resource.
    pub(super) fn is_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    fn stall(&mut self, history: History, reason: Waiting) {
        self.waiting = Some(reason);
        if let Some(queue) = self.queues.get_mut(&history)
            && !queue.stalled
        {
            queue.stalled = true;
            self.stalled.push_back(history);
        }
    }

    /// Takes out everything that waits.
    pub(super) fn take_all(&mut self) -> Vec<MemberToken> {
        self.stalled.clear();
        let queues = std::mem::take(&mut self.queues);
        queues.into_values().flat_map(|queue| queue.requests).map(|q| q.token()).collect()
    }
}

impl Serving {
    /// Takes one member request.
    pub(super) fn handle_member(
        &mut self,
        now: Time,
        token: MemberToken,
        request: MemberRequest,
        effects: &mut Vec<Effect>,
    ) {
        let only_reads = matches!(
            request,
            MemberRequest::Read { .. }
                | MemberRequest::Map { .. }
                | MemberRequest::Difference { .. }
                | MemberRequest::Reclaimable { .. }
        );
        let refusal = if self.closing || (self.retired.is_some() && !only_reads) {
            Some(MemberError::Retired)
        } else if self.requests >= limits::STORE_REQUESTS_MAX {
            Some(MemberError::Busy)
        } else {
            None
        };
        self.requests += 1;
        if let Some(error) = refusal {
            return self.answer(token, Err(error), effects);
        }
        match request {
            MemberRequest::Write(write) => {
                let history = (write.lineage, write.key.index);
                self.enqueue(now, history, Queued::Write(token, write), effects);
            }
            MemberRequest::Settle { lineage, key, generation, stamp, .. } => {
                let settle = Settle { key, generation, stamp };
                self.enqueue(now, (lineage, key.index), Queued::Settle(token, settle), effects);
            }
            MemberRequest::Stamp { lineage, key, generation } => {
                let queued = Queued::Stamp(token, key, generation);
                self.enqueue(now, (lineage, key.index), queued, effects);
            }
            MemberRequest::Read { lineage, key, generation, blocks, .. } => {
                self.read(now, token, lineage, key, generation, blocks, Question::Content, effects);
            }
            MemberRequest::Map { lineage, key, generation, blocks, .. } => {
                self.read(now, token, lineage, key, generation, blocks, Question::Map, effects);
            }
            MemberRequest::Difference { lineage, key, generation, base, blocks, .. } => {
                let question = Question::Difference(base);
                self.read(now, token, lineage, key, generation, blocks, question, effects);
            }
            MemberRequest::Reclaimable { lineage, generation, layer, index } => {
                let (key, blocks) = (ObjectKey { layer, index }, BlockRange::whole());
                let question = Question::Reclaimable;
                self.read(now, token, lineage, key, generation, blocks, question, effects);
            }
            MemberRequest::OpenLayer { lineage, generation, layer, parent } => {
                self.open_layer(token, lineage, generation, layer, parent, effects);
            }
            MemberRequest::Fence { lineage, generation, .. } => {
                self.fence(token, lineage, generation, effects);
            }
            MemberRequest::Flush { lineage, generation, .. } => {
                self.flush(token, lineage, generation, effects);
            }
            _ => {
                let error = MemberError::invalid("this disk does not replicate");
                self.answer(token, Err(error), effects);
            }
        }
    }

    /// The error for a request of a generation that is fenced off.
    pub(super) fn fenced(&self, lineage: LineageId, generation: Generation) -> Option<MemberError> {
        let fence = self.lineages.get(&lineage)?.fence;
        (generation < fence).then_some(MemberError::Fenced { newer: fence })
    }

    /// The error for a request on a layer that is not there, or is another lineage's.
    pub(super) fn foreign(&self, lineage: LineageId, key: ObjectKey) -> Option<MemberError> {
        if key.layer.0 == 0 {
            return Some(MemberError::invalid("layer 0 does not exist"));
        }
        match self.layers.get(&key.layer) {
            Some(known) if known.lineage == lineage => None,
            Some(_) => Some(MemberError::invalid("the layer belongs to another lineage")),
            None if key.layer.0 == lineage.0 => None,
            // What it shows of the layers below it is not known.
            None => Some(MemberError::invalid("the layer was not opened")),
        }
    }

    fn enqueue(&mut self, now: Time, history: History, request: Queued, effects: &mut Vec<Effect>) {
        if let Some(queue) = self.queues.queues.get_mut(&history) {
            queue.requests.push_back(request);
            return;
        }
        let outcome = self.attempt(now, history, &request, effects);
        if outcome == Outcome::Done {
            return;
        }
        self.queues
            .queues
            .insert(history, Queue { requests: VecDeque::from([request]), stalled: false });
        if let Outcome::Resource(reason) = outcome {
            self.queues.stall(history, reason);
        }
    }

    /// Handles the waiting requests of a history as far as they can be.
    pub(super) fn run_queue(&mut self, now: Time, history: History, effects: &mut Vec<Effect>) {
        loop {
            let Some(queue) = self.queues.queues.get_mut(&history) else { return };
            if queue.stalled {
                return;
            }
            let Some(request) = queue.requests.pop_front() else {
                self.queues.queues.remove(&history);
                return;
            };
            let outcome = self.attempt(now, history, &request, effects);
            if outcome == Outcome::Done {
                continue;
            }
            if let Some(queue) = self.queues.queues.get_mut(&history) {
                queue.requests.push_front(request);
            }
            if let Outcome::Resource(reason) = outcome {
                self.queues.stall(history, reason);
            }
            return;
        }
    }

    /// Something shared became available: what waits for it goes on, in order, until it meets the
    /// next lack.
    pub(super) fn run_stalled(&mut self, now: Time, effects: &mut Vec<Effect>) {
        for _ in 0..self.queues.stalled.len() {
            let Some(history) = self.queues.stalled.pop_front() else { return };
            if let Some(queue) = self.queues.queues.get_mut(&history) {
                queue.stalled = false;
            }
            self.run_queue(now, history, effects);
            if self.queues.stalled.back() == Some(&history) {
                // It waits again: it keeps its place, and so do those behind it.
                self.queues.stalled.rotate_right(1);
                return;
            }
        }
    }

    fn attempt(
        &mut self,
        now: Time,
        history: History,
        request: &Queued,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        match request {
            Queued::Write(token, write) => self.write(now, *token, write, effects),
            Queued::Settle(token, settle) => self.settle(*token, history.0, settle, effects),
            Queued::Stamp(token, key, generation) => {
                let (lineage, key) = (history.0, *key);
                let refusal =
                    self.fenced(lineage, *generation).or_else(|| self.foreign(lineage, key));
                match refusal {
                    Some(error) => self.answer(*token, Err(error), effects),
                    None => {
                        let shown = self.shown(lineage, key);
                        let lsn = shown.map_or(0, |slot| self.table.row(slot).lsn);
                        let acknowledgement = Acknowledgement::Stamp(*token, lineage, key);
                        self.acknowledge_after(lsn, acknowledgement, effects);
                    }
                }
                Outcome::Done
            }
        }
    }

    /// Answers once a record is complete, at once if it is.
    pub(super) fn acknowledge_after(
        &mut self,
        lsn: u64,
        acknowledgement: Acknowledgement,
        effects: &mut Vec<Effect>,
    ) {
        if !self.in_flight.acknowledge_with(lsn, acknowledgement) {
            self.acknowledge(acknowledgement, effects);
        }
    }

    /// Answers what is complete.
    pub(super) fn acknowledge(
        &mut self,
        acknowledgement: Acknowledgement,
        effects: &mut Vec<Effect>,
    ) {
        let incarnation = self.superblock.incarnation;
        let (token, reply) = match acknowledgement {
            Acknowledgement::Written(token) => (token, MemberReply::Written { incarnation }),
            Acknowledgement::Done(token) => (token, MemberReply::Done),
            Acknowledgement::Stamp(token, lineage, key) => {
                (token, MemberReply::Stamp(self.stamp_of(lineage, key)))
            }
        };
        if !matches!(acknowledgement, Acknowledgement::Stamp(..)) {
            self.flusher.acknowledged();
        }
        self.answer(token, Ok(reply), effects);
    }

    /// Where the object stands that a layer shows.
    pub(super) fn stamp_of(&self, lineage: LineageId, key: ObjectKey) -> ObjectStamp {
        match self.shown(lineage, key).map(|slot| self.table.row(slot)) {
            None => ObjectStamp { key, stamp: Stamp::default(), settled_generation: Generation(0) },
            Some(row) => {
                ObjectStamp { key, stamp: row.stamp, settled_generation: row.settled_generation }
            }
        }
    }
}

/// Whether a range may be asked for at once.
pub(super) fn is_too_long(blocks: &BlockRange) -> bool {
    blocks.count() > limits::MEMBER_REQUEST_BLOCKS_MAX
}
