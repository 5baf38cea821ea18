//! Member requests: their entry, and the queues of those that change an object and must wait. All
//! layers' objects of one index share a queue, because their stamps are one history.

use super::fence::Fence;
use super::read::Question;
use super::staging::Adopt;
use super::sweep::Wanted;
use super::{Mark, Serving};
use crate::inflight::Acknowledgement;
use crate::table::{History, Row};
use crate::{Effect, Waiting};
use proto::{
    BlockRange, Change, Generation, LineageId, MemberError, MemberReply, MemberRequest,
    MemberToken, ObjectKey, ObjectStamp, PartitionId, Permit, Stamp, Time, Under, Write, limits,
};
use std::collections::{BTreeMap, VecDeque};

/// A request on one object that is handled in its order there.
#[derive(Debug)]
pub(super) enum Queued {
    Write(MemberToken, Write),
    Settle(MemberToken, Settle),
    Stamp(MemberToken, ObjectKey, Generation),
    Stage(MemberToken, ObjectKey, Permit, Change),
    Adopt(MemberToken, Adopt),
    Retract(MemberToken, ObjectKey, Permit),
}

/// See [`MemberRequest::Settle`].
#[derive(Debug)]
pub(super) struct Settle {
    pub(super) key: ObjectKey,
    pub(super) generation: Generation,
    pub(super) under: Under,
    pub(super) stamp: Stamp,
}

impl Queued {
    fn token(&self) -> MemberToken {
        match self {
            Queued::Write(token, _)
            | Queued::Settle(token, _)
            | Queued::Stamp(token, ..)
            | Queued::Stage(token, ..)
            | Queued::Adopt(token, _)
            | Queued::Retract(token, ..) => *token,
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
                | MemberRequest::Checksums { .. }
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
            MemberRequest::Settle { lineage, key, generation, under, stamp } => {
                let settle = Settle { key, generation, under, stamp };
                self.enqueue(now, (lineage, key.index), Queued::Settle(token, settle), effects);
            }
            MemberRequest::Stamp { lineage, key, generation } => {
                let queued = Queued::Stamp(token, key, generation);
                self.enqueue(now, (lineage, key.index), queued, effects);
            }
            MemberRequest::Read { lineage, key, generation, under, blocks } => {
                let question = Question::Content;
                self.read(now, token, lineage, key, generation, under, blocks, question, effects);
            }
            MemberRequest::Map { lineage, key, generation, under, blocks } => {
                let question = Question::Map;
                self.read(now, token, lineage, key, generation, under, blocks, question, effects);
            }
            MemberRequest::Difference { lineage, key, generation, under, base, blocks } => {
                let question = Question::Difference(base);
                self.read(now, token, lineage, key, generation, under, blocks, question, effects);
            }
            MemberRequest::Checksums { lineage, key, blocks } => {
                // No fence concerns it: it is what copiers look at.
                let (generation, question) = (Generation::SEALED, Question::Checksums);
                self.read(now, token, lineage, key, generation, None, blocks, question, effects);
            }
            MemberRequest::Reclaimable { lineage, generation, layer, index } => {
                let (key, blocks) = (ObjectKey { layer, index }, BlockRange::whole());
                let question = Question::Reclaimable;
                self.read(now, token, lineage, key, generation, None, blocks, question, effects);
            }
            MemberRequest::OpenLayer { lineage, generation, layer, parent } => {
                self.open_layer(token, lineage, generation, layer, parent, effects);
            }
            MemberRequest::Fence { lineage, generation, list, after } => {
                self.fence(token, Fence { lineage, generation, list, after }, effects);
            }
            MemberRequest::Flush { lineage, generation, settled } => {
                self.flush(token, lineage, generation, settled, effects);
            }
            MemberRequest::Mark { lineage, generation, settled, refusals } => {
                self.mark(token, lineage, Mark { generation, settled }, refusals, effects);
            }
            MemberRequest::Confirm { lineage, generation, refusals } => {
                self.confirm(token, lineage, generation, refusals, effects);
            }
            MemberRequest::Lineages { after } => self.list_lineages(token, after, effects),
            MemberRequest::Survey { bits, partitions, unsettled, after } => {
                if let Some(error) = vet_survey(bits, &partitions) {
                    return self.answer(token, Err(error), effects);
                }
                self.sweep(token, Wanted::Survey { bits, partitions, unsettled }, after);
            }
            MemberRequest::Stage { permit, lineage, key, change } => {
                let queued = Queued::Stage(token, key, permit, change);
                self.enqueue(now, (lineage, key.index), queued, effects);
            }
            MemberRequest::Adopt { permit, lineage, key, staged, stamp, settled_generation } => {
                let adopt = Adopt { permit, key, staged, stamp, settled_generation };
                self.enqueue(now, (lineage, key.index), Queued::Adopt(token, adopt), effects);
            }
            MemberRequest::Retract { permit, lineage, key } => {
                let queued = Queued::Retract(token, key, permit);
                self.enqueue(now, (lineage, key.index), queued, effects);
            }
            MemberRequest::Refuse(batch) => self.refuse(token, &batch, effects),
            MemberRequest::Install { batch, fences, last } => {
                self.install(token, &batch, &fences, last, effects);
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
            Queued::Stage(token, key, permit, change) => {
                self.stage(now, *token, (history.0, *key), permit, change, effects)
            }
            Queued::Adopt(token, adopt) => self.adopt(now, *token, history.0, adopt, effects),
            Queued::Retract(token, key, permit) => {
                self.retract(*token, (history.0, *key), permit, effects)
            }
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
        if let Some(slot) = self.shown(lineage, key) {
            return ObjectStamp { key, ..self.stamp_of_row(self.table.row(slot)) };
        }
        // That nothing was written is settled by a mark like anything else.
        let known = self.lineages.get(&lineage);
        let settled_generation = known.map_or(Generation(0), |known| known.settled_nothing());
        ObjectStamp { key, stamp: Stamp::default(), settled_generation }
    }

    /// Where an object stands.
    pub(super) fn stamp_of_row(&self, row: &Row) -> ObjectStamp {
        let known = self.lineages.get(&row.lineage);
        let settled_generation = known.map_or(row.settled_generation, |l| l.settled_by(row));
        ObjectStamp { key: row.key, stamp: row.stamp, settled_generation }
    }
}

/// What is wrong with the partitions of a survey.
fn vet_survey(bits: u8, partitions: &[PartitionId]) -> Option<MemberError> {
    let in_order = partitions.windows(2).all(|pair| pair[0] < pair[1]);
    let invalid = |why| Some(MemberError::invalid(why));
    if bits > limits::PARTITION_BITS_MAX {
        return invalid("there is no such table");
    }
    if partitions.len() > limits::BATCH_PARTITIONS_MAX || !in_order {
        return invalid("the partitions are too many, or not in order");
    }
    None
}

/// Whether a range may be asked for at once.
pub(super) fn is_too_long(blocks: &BlockRange) -> bool {
    blocks.count() > limits::MEMBER_REQUEST_BLOCKS_MAX
}
