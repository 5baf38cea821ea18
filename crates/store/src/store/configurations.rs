//! Configurations that are refused, and the attempts to change the members of partitions: what is
//! promised of them is durable before it is answered.

use super::Serving;
use super::fence::Fence;
use crate::Effect;
use crate::layout::{AttemptRecord, Record};
use crate::refusals::{Attempt, Refusals, are_bounded};
use proto::{
    Batch, Generation, LineageId, MemberError, MemberReply, MemberToken, Mistake, Under, limits,
    partition_of, planted,
};

/// What is answered when it is durable.
#[derive(Clone, Copy, Debug)]
pub(super) enum Promise {
    Fence(Fence),
    Refused,
    Installed,
    Done,
}

/// See the module's description.
pub(super) struct Configurations {
    pub(super) refusals: Refusals,
    /// The last record about them; 0: none since the disk was opened.
    lsn: u64,
}

impl Configurations {
    /// What the disk knew when it was opened.
    pub(super) fn new(refusals: Refusals) -> Configurations {
        Configurations { refusals, lsn: 0 }
    }

    /// The record that must be durable, with all before it, for all that is known to be.
    pub(super) fn lsn(&self) -> u64 {
        self.lsn
    }
}

impl Serving {
    /// The error for a request under a configuration that is refused.
    pub(super) fn refused(
        &self,
        under: Under,
        lineage: LineageId,
        index: u32,
    ) -> Option<MemberError> {
        let have = self.configurations.refusals.refuses(under, lineage, index)?;
        Some(MemberError::WrongConfiguration { have })
    }

    /// Answers when a record is durable, with all before it: at once if it is.
    pub(super) fn promise(
        &mut self,
        lsn: u64,
        token: MemberToken,
        promise: Promise,
        effects: &mut Vec<Effect>,
    ) {
        let is_early = match promise {
            Promise::Fence(_) => planted(Mistake::FenceNotDurable),
            Promise::Installed => planted(Mistake::ActivationUnflushed),
            _ => false,
        };
        if lsn > self.flusher.durable_lsn() && !is_early {
            self.flusher.promises.insert((lsn, token), promise);
        } else {
            self.keep(token, promise, effects);
        }
    }

    /// Answers what is durable.
    pub(super) fn keep_promises(&mut self, effects: &mut Vec<Effect>) {
        let durable = self.flusher.durable_lsn();
        while let Some(first) = self.flusher.promises.first_entry()
            && first.key().0 <= durable
        {
            let ((_, token), promise) = first.remove_entry();
            self.keep(token, promise, effects);
        }
    }

    fn keep(&mut self, token: MemberToken, promise: Promise, effects: &mut Vec<Effect>) {
        let incarnation = self.superblock.incarnation;
        let reply = match promise {
            Promise::Fence(fence) => return self.fence_holds(token, fence, effects),
            Promise::Refused => {
                let lossless_from = self.superblock.lossless_from;
                MemberReply::Refused { incarnation, lossless_from }
            }
            Promise::Installed => MemberReply::Installed { incarnation },
            Promise::Done => MemberReply::Done,
        };
        self.answer(token, Ok(reply), effects);
    }

    /// Refuses the configurations of a batch.
    pub(super) fn refuse(&mut self, token: MemberToken, batch: &Batch, effects: &mut Vec<Effect>) {
        if let Some(error) = self.vet_batch(batch, false) {
            return self.answer(token, Err(error), effects);
        }
        if planted(Mistake::NotRefused) {
            return self.keep(token, Promise::Refused, effects);
        }
        match self.learn_batch(batch, Vec::new(), false, effects) {
            Some(()) => self.promise(self.configurations.lsn, token, Promise::Refused, effects),
            None => self.answer(token, Err(MemberError::Busy), effects),
        }
    }

    /// Ends an attempt, or raises fences for its end.
    pub(super) fn install(
        &mut self,
        token: MemberToken,
        batch: &Batch,
        fences: &[(LineageId, Generation)],
        last: bool,
        effects: &mut Vec<Effect>,
    ) {
        let too_many = (fences.len() > limits::INSTALL_FENCES_MAX)
            .then_some(MemberError::invalid("too many fences"));
        let sealed = fences.iter().find_map(|&(_, fence)| super::fence::sealed(fence));
        if let Some(error) = self.vet_batch(batch, true).or(too_many).or(sealed) {
            return self.answer(token, Err(error), effects);
        }
        let is_news = |&&(lineage, fence): &&(LineageId, Generation)| {
            self.lineages.get(&lineage).is_none_or(|known| known.fence < fence)
        };
        let fences = fences.iter().filter(is_news).copied().collect();
        match self.learn_batch(batch, fences, last, effects) {
            // All that the attempt has changed lies before.
            Some(()) => {
                self.promise(self.log.next_lsn() - 1, token, Promise::Installed, effects);
            }
            None => self.answer(token, Err(MemberError::Busy), effects),
        }
    }

    /// The error for a batch that makes no sense, or comes too late.
    fn vet_batch(&self, batch: &Batch, installs: bool) -> Option<MemberError> {
        if let Some(why) = Refusals::vet(batch) {
            return Some(MemberError::invalid(why));
        }
        let newest = self.configurations.refusals.newest(batch);
        // Who has not heard that it ended may ask again.
        let newest = Attempt { ended: newest.ended && !installs, ..newest };
        let newer = newest.number;
        let is_late = newest.supersedes(batch.attempt) && !planted(Mistake::AttemptUnnumbered);
        is_late.then_some(MemberError::Superseded { newer })
    }

    /// Puts what is new in a batch into the log, all of it at once. `None`: there is no room yet.
    fn learn_batch(
        &mut self,
        batch: &Batch,
        fences: Vec<(LineageId, Generation)>,
        ended: bool,
        effects: &mut Vec<Effect>,
    ) -> Option<()> {
        let partitions = self.configurations.refusals.news(batch, ended);
        if partitions.is_empty() && fences.is_empty() {
            return Some(());
        }
        let Batch { copies, bits, attempt, .. } = *batch;
        let record = AttemptRecord { copies, bits, attempt, ended, partitions, fences };
        self.learn_attempt(record, effects)
    }

    fn learn_attempt(&mut self, record: AttemptRecord, effects: &mut Vec<Effect>) -> Option<()> {
        let bytes = 64 + 13 * record.partitions.len() + 16 * record.fences.len();
        if !self.log.has_room_for_background() || !self.has_room_for(bytes) {
            self.checkpoint.request();
            return None;
        }
        self.begin_record(bytes, effects);
        self.configurations.refusals.apply(&record);
        let lsn = self.log.next_lsn();
        for &(lineage, generation) in &record.fences {
            let known = self.lineages.entry(lineage).or_default();
            // One lineage may be named twice.
            (known.fence, known.fence_lsn) = (known.fence.max(generation), lsn);
        }
        self.log.append(&Record::Attempt(record));
        self.in_flight.push(lsn, None, None, 0, 0, None);
        self.seal_full_batch(effects);
        self.configurations.lsn = lsn;
        self.drop_overdue_staged(effects);
        Some(())
    }

    /// What an attempt asks of an object makes it known. `None`: there is no room for that yet.
    pub(super) fn learn_of(
        &mut self,
        attempt: u64,
        under: Under,
        lineage: LineageId,
        index: u32,
        effects: &mut Vec<Effect>,
    ) -> Option<()> {
        let Under { copies, bits, .. } = under;
        if self.configurations.refusals.attempt_for(copies, lineage, index).number >= attempt {
            return Some(());
        }
        let partitions = vec![(partition_of(lineage, index, bits), None)];
        let record =
            AttemptRecord { copies, bits, attempt, partitions, ..AttemptRecord::default() };
        self.learn_attempt(record, effects)
    }

    /// The error for what an attempt asks of an object, if it comes too late.
    pub(super) fn vet_attempt(
        &self,
        attempt: u64,
        under: Under,
        lineage: LineageId,
        index: u32,
    ) -> Option<MemberError> {
        if !are_bounded(under.copies, under.bits) {
            return Some(MemberError::invalid("there is no such table"));
        }
        let newest = self.configurations.refusals.attempt_for(under.copies, lineage, index);
        let newer = newest.number;
        let is_late = newest.supersedes(attempt) && !planted(Mistake::AttemptUnnumbered);
        is_late.then_some(MemberError::Superseded { newer })
    }

    /// Says that an attachment is not fenced, and what was refused since it asked last.
    pub(super) fn confirm(
        &mut self,
        token: MemberToken,
        lineage: LineageId,
        generation: Generation,
        refusals: u64,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(error) = self.fenced(lineage, generation) {
            return self.answer(token, Err(error), effects);
        }
        let known = &self.configurations.refusals;
        let (refused, refusals, more) = known.after(refusals, limits::MEMBER_ROWS_MAX);
        let refused = if planted(Mistake::RefusalUnnoticed) { Vec::new() } else { refused };
        let incarnation = self.superblock.incarnation;
        let reply = MemberReply::Confirmed { incarnation, refusals, refused, more };
        self.answer(token, Ok(reply), effects);
    }
}
