//! Fences: a lineage's promise to refuse older generations, durable before it is answered; and what
//! is said of all its objects at once, by marks.

use super::configurations::Promise;
use super::sweep::Wanted;
use super::{Mark, Serving};
use crate::Effect;
use crate::inflight::Acknowledgement;
use crate::layout::Record;
use proto::{
    Generation, LineageId, MemberError, MemberReply, MemberToken, ObjectKey, ObjectStamp, Stamp,
};

/// See [`proto::MemberRequest::Fence`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Fence {
    pub(super) lineage: LineageId,
    pub(super) generation: Generation,
    pub(super) list: bool,
    pub(super) after: ObjectKey,
}

impl Serving {
    /// Takes a fence: it holds at once and is answered when durable.
    pub(super) fn fence(&mut self, token: MemberToken, fence: Fence, effects: &mut Vec<Effect>) {
        let Fence { lineage, generation, .. } = fence;
        let refusal = self.fenced(lineage, generation).or_else(|| sealed(generation));
        if let Some(error) = refusal {
            return self.answer(token, Err(error), effects);
        }
        let known = self.lineages.get(&lineage);
        // The next piece of a list asks for the same fence again.
        let lsn = match known.filter(|known| known.fence == generation) {
            Some(known) => known.fence_lsn,
            None => {
                if !self.log.has_room_for_background() {
                    self.checkpoint.request();
                    return self.answer(token, Err(MemberError::Busy), effects);
                }
                let lsn = self.log.append(&Record::Fence { lineage, generation });
                self.in_flight.push(lsn, None, None, 0, 0, None);
                let known = self.lineages.entry(lineage).or_default();
                (known.fence, known.fence_lsn) = (generation, lsn);
                self.drop_overdue_staged(effects);
                self.seal_full_batch(effects);
                lsn
            }
        };
        self.promise(lsn, token, Promise::Fence(fence), effects);
    }

    /// A fence is durable.
    pub(super) fn fence_holds(
        &mut self,
        token: MemberToken,
        fence: Fence,
        effects: &mut Vec<Effect>,
    ) {
        if fence.list {
            return self.sweep(token, Wanted::Fence(fence.lineage), (fence.lineage, fence.after));
        }
        self.answer_fence(token, fence.lineage, Vec::new(), false, effects);
    }

    pub(super) fn answer_fence(
        &mut self,
        token: MemberToken,
        lineage: LineageId,
        unsettled: Vec<ObjectStamp>,
        more: bool,
        effects: &mut Vec<Effect>,
    ) {
        let settled = self.lineages.get(&lineage).map_or(Stamp::default(), |known| known.settled);
        let incarnation = self.superblock.incarnation;
        let reply = MemberReply::Fenced { incarnation, settled, unsettled, more };
        self.answer(token, Ok(reply), effects);
    }

    /// Takes a mark.
    pub(super) fn mark(
        &mut self,
        token: MemberToken,
        lineage: LineageId,
        mark: Mark,
        refusals: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Mark { generation, settled } = mark;
        let known = self.configurations.refusals.count();
        let refusal =
            sealed(generation).or_else(|| self.fenced(lineage, generation)).or_else(|| {
                (known != refusals).then_some(MemberError::RefusedMore { refusals: known })
            });
        if let Some(error) = refusal {
            return self.answer(token, Err(error), effects);
        }
        if !self.log.has_room_for_background() {
            self.checkpoint.request();
            return self.answer(token, Err(MemberError::Busy), effects);
        }
        let known = self.lineages.entry(lineage).or_default();
        known.settled = known.settled.max(settled);
        known.set_mark(lineage, mark, &mut self.table);
        let lsn = self.log.append(&Record::Mark { lineage, generation, settled });
        self.in_flight.push(lsn, None, None, 0, 0, Some(Acknowledgement::Done(token)));
        self.point_logged(lineage);
        self.seal_full_batch(effects);
    }
}

/// The error for the generation that no attachment has.
pub(super) fn sealed(generation: Generation) -> Option<MemberError> {
    (generation == Generation::SEALED)
        .then_some(MemberError::invalid("no attachment has this generation"))
}
