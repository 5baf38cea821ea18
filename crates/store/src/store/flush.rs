//! The log's batches and the flushes of the medium: what is durable, and who waits for it.

use super::configurations::Promise;
use super::{Operation, Serving};
use crate::Effect;
use crate::layout::{RECORD_BYTES_MAX, Record};
use proto::{
    DiskRequest, Duration, Generation, LineageId, MemberReply, MemberToken, Mistake, Stamp, Time,
    limits, planted,
};
use std::collections::{BTreeMap, BTreeSet};

/// What a flush under way will have made durable.
struct Covers {
    lsn: u64,
    data_bytes: u64,
    acknowledged: u64,
    checkpoint: bool,
    members: Vec<MemberToken>,
}

/// See the module's description.
pub(super) struct Flusher {
    under_way: Option<Covers>,
    /// Who waits for the flush after that.
    next: Vec<MemberToken>,
    checkpoint_waits: bool,
    wanted: bool,
    /// All records up to here are durable, with their data.
    durable_lsn: u64,
    durable_bytes: u64,
    /// Changes answered, and how many of them are durable.
    acknowledged: u64,
    acknowledged_durable: u64,
    /// What is answered when a record is durable, with all before it: by record.
    pub(super) promises: BTreeMap<(u64, MemberToken), Promise>,
    /// Lineages whose settled points are to be in the log. That costs no batch of its own: the next
    /// one takes them along.
    points: BTreeSet<LineageId>,
    /// When the store flushes by itself.
    due: Option<Time>,
    /// What the last batch says of `durable_lsn`, and when an empty one is to say more.
    told_lsn: u64,
    telling_due: Option<Time>,
}

impl Flusher {
    /// All records up to `durable_lsn` are durable.
    pub(super) fn new(durable_lsn: u64, now: Time) -> Flusher {
        Flusher {
            under_way: None,
            next: Vec::new(),
            checkpoint_waits: false,
            wanted: false,
            durable_lsn,
            durable_bytes: 0,
            acknowledged: 0,
            acknowledged_durable: 0,
            promises: BTreeMap::new(),
            points: BTreeSet::new(),
            due: None,
            told_lsn: 0,
            telling_due: Some(now + telling_delay()),
        }
    }

    /// All records up to here are durable, with their data.
    pub(super) fn durable_lsn(&self) -> u64 {
        self.durable_lsn
    }

    /// A change was answered.
    pub(super) fn acknowledged(&mut self) {
        self.acknowledged += 1;
    }

    /// Flushes as soon as none is under way.
    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// The checkpoint goes on after a flush that begins after this.
    pub(super) fn want_for_checkpoint(&mut self) {
        self.wanted = true;
        self.checkpoint_waits = true;
    }

    /// Takes out everything that waits.
    pub(super) fn take_all(&mut self) -> Vec<MemberToken> {
        let mut tokens = std::mem::take(&mut self.next);
        tokens.extend(self.under_way.take().into_iter().flat_map(|covers| covers.members));
        tokens.extend(std::mem::take(&mut self.promises).into_keys().map(|(_, token)| token));
        tokens
    }
}

fn telling_delay() -> Duration {
    Duration::from_millis(limits::STORE_TELL_DURABLE_MS)
}

impl Serving {
    /// Takes a member's flush.
    pub(super) fn flush(
        &mut self,
        token: MemberToken,
        lineage: LineageId,
        generation: Generation,
        settled: Stamp,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(error) = self.fenced(lineage, generation) {
            return self.answer(token, Err(error), effects);
        }
        self.settle_point(lineage, settled);
        let flusher = &mut self.flusher;
        if flusher.acknowledged == flusher.acknowledged_durable
            || planted(Mistake::FlushBeforeItIsMade)
        {
            return self.answer_flush(token, effects);
        }
        match &mut flusher.under_way {
            Some(covers) if covers.acknowledged == flusher.acknowledged => {
                covers.members.push(token);
            }
            _ => {
                flusher.next.push(token);
                flusher.wanted = true;
            }
        }
    }

    /// A lineage's settled point is this one, or beyond it.
    fn settle_point(&mut self, lineage: LineageId, settled: Stamp) {
        if let Some(known) = self.lineages.get_mut(&lineage)
            && known.settled < settled
        {
            known.settled = settled;
            self.flusher.points.insert(lineage);
        }
    }

    /// A record has said a lineage's settled point.
    pub(super) fn point_logged(&mut self, lineage: LineageId) {
        if !self.flusher.points.is_empty() {
            self.flusher.points.remove(&lineage);
        }
    }

    /// Puts settled points into the batch that is about to be written, as many as it has room for.
    fn log_points(&mut self) {
        while !self.log.is_batch_full() && self.log.has_room_for_background() {
            let Some(lineage) = self.flusher.points.pop_first() else { return };
            let Some(known) = self.lineages.get(&lineage) else { continue };
            let lsn = self.log.append(&Record::Settled { lineage, settled: known.settled });
            self.in_flight.push(lsn, None, None, 0, 0, None);
        }
    }

    fn answer_flush(&mut self, token: MemberToken, effects: &mut Vec<Effect>) {
        let incarnation = self.superblock.incarnation;
        self.answer(token, Ok(MemberReply::Flushed { incarnation }), effects);
    }

    /// Writes the pending records as a batch.
    pub(super) fn seal_batch(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let tell = self.flusher.telling_due.is_some_and(|due| due <= now)
            && self.flusher.told_lsn < self.flusher.durable_lsn
            && !self.closing
            && self.log.has_room_for_background();
        if self.log.has_pending() && !self.flusher.points.is_empty() {
            self.log_points();
        }
        if self.log.has_pending() || tell {
            self.write_batch(effects);
        }
        if self.flusher.telling_due.is_some_and(|due| due <= now) {
            self.flusher.telling_due = None;
        }
    }

    /// Whether a record of so many bytes at most, which may be a long one, finds room.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        match bytes > RECORD_BYTES_MAX {
            true => self.log.has_room_for_long(bytes),
            false => self.log.has_room(),
        }
    }

    /// Makes way for such a record: a long one does not go behind others into their batch.
    pub(super) fn begin_record(&mut self, bytes: usize, effects: &mut Vec<Effect>) {
        if bytes > RECORD_BYTES_MAX && self.log.has_pending() {
            self.write_batch(effects);
        }
    }

    /// Writes the pending records if another one might not fit among them.
    pub(super) fn seal_full_batch(&mut self, effects: &mut Vec<Effect>) {
        if self.log.is_batch_full() {
            self.write_batch(effects);
        }
    }

    fn write_batch(&mut self, effects: &mut Vec<Effect>) {
        let durable_lsn = self.flusher.durable_lsn;
        let batch = self.log.seal(durable_lsn).expect("room in the log was asked for before");
        self.flusher.told_lsn = durable_lsn;
        self.counters.log_batches += 1;
        self.counters.log_bytes += batch.payload.len() as u64;
        let operation = Operation::Batch { sequence: batch.sequence };
        self.operations.write(operation, batch.address, batch.payload, effects);
    }

    /// Begins a flush if anybody wants one and none is under way.
    pub(super) fn step_flush(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let complete = self.in_flight.complete_lsn();
        let flusher = &mut self.flusher;
        let behind = self.log.next_lsn() - 1 > flusher.durable_lsn;
        if !behind {
            flusher.due = None;
        } else if flusher.due.is_none() {
            flusher.due = Some(now + Duration::from_millis(limits::STORE_FLUSH_INTERVAL_MS));
        }
        let promised = flusher.promises.first_key_value();
        let promise_waits = promised.is_some_and(|(&(lsn, _), _)| lsn <= complete);
        let unflushed = self.in_flight.data_bytes() - flusher.durable_bytes;
        let overdue = flusher.due.is_some_and(|due| due <= now);
        let useful = complete > flusher.durable_lsn;
        let by_itself = overdue || unflushed > limits::STORE_UNFLUSHED_BYTES_MAX;
        if flusher.under_way.is_some() || !(flusher.wanted || promise_waits || by_itself && useful)
        {
            return;
        }
        flusher.wanted = false;
        flusher.due = None;
        flusher.under_way = Some(Covers {
            lsn: complete,
            data_bytes: self.in_flight.complete_bytes(),
            acknowledged: flusher.acknowledged,
            checkpoint: std::mem::take(&mut flusher.checkpoint_waits),
            members: std::mem::take(&mut flusher.next),
        });
        self.counters.flushes += 1;
        self.operations.submit(Operation::Flush, DiskRequest::Flush, effects);
    }

    /// A flush has completed.
    pub(super) fn flushed(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let covers = self.flusher.under_way.take().expect("a flush was under way");
        self.flusher.durable_lsn = covers.lsn;
        self.flusher.durable_bytes = covers.data_bytes;
        self.flusher.acknowledged_durable = covers.acknowledged;
        if self.flusher.told_lsn < covers.lsn {
            self.flusher.telling_due = Some(now + telling_delay());
        }
        for token in covers.members {
            self.answer_flush(token, effects);
        }
        self.keep_promises(effects);
        if covers.checkpoint {
            self.checkpoint_flushed(now, effects);
        }
    }

    /// When flushing or telling is due.
    pub(super) fn flush_deadline(&self) -> Option<Time> {
        // An overdue flush that cannot cover more yet waits for a completion, not for the clock.
        let useful = self.flusher.under_way.is_none()
            && self.in_flight.complete_lsn() > self.flusher.durable_lsn;
        let due = self.flusher.due.filter(|_| useful);
        [due, self.flusher.telling_due].into_iter().flatten().min()
    }

    /// Makes available what flushes and ended reads have freed, and lets go on what waits.
    pub(super) fn release_space(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let durable = match planted(Mistake::FreedReusedEarly) {
            false => self.flusher.durable_lsn,
            true => self.log.next_lsn() - 1,
        };
        self.space.release(durable, self.reads.oldest());
        if self.queues.is_stalled() {
            self.run_stalled(now, effects);
        }
    }
}
