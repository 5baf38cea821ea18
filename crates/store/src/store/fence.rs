//! Fences: a lineage's promise to refuse older generations, durable before it is answered.

use super::Serving;
use crate::Effect;
use crate::layout::Record;
use proto::{
    Generation, LineageId, MemberError, MemberReply, MemberToken, ObjectStamp, Stamp, Time,
};

/// A fence that is not durable yet.
pub(super) struct PendingFence {
    pub(super) token: MemberToken,
    lineage: LineageId,
    /// The record that must be durable, with all before it.
    pub(super) lsn: u64,
}

impl Serving {
    /// Takes a fence: it holds at once and is answered when durable.
    pub(super) fn fence(
        &mut self,
        token: MemberToken,
        lineage: LineageId,
        generation: Generation,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(error) = self.fenced(lineage, generation) {
            return self.answer(token, Err(error), effects);
        }
        if generation == Generation::SEALED {
            let error = MemberError::invalid("no attachment has this generation");
            return self.answer(token, Err(error), effects);
        }
        if !self.log.has_room_for_background() {
            self.checkpoint.request();
            return self.answer(token, Err(MemberError::Busy), effects);
        }
        self.lineages.entry(lineage).or_default().fence = generation;
        let lsn = self.log.append(&Record::Fence { lineage, generation });
        self.in_flight.push(lsn, None, None, 0, 0, None);
        self.flusher.fences.push(PendingFence { token, lineage, lsn });
        self.seal_full_batch(effects);
    }

    /// Answers the fences that are durable.
    pub(super) fn answer_fences(&mut self, _now: Time, effects: &mut Vec<Effect>) {
        let durable = self.flusher.durable_lsn();
        while let Some(fence) = self.flusher.fences.first().filter(|fence| fence.lsn <= durable) {
            let (token, lineage) = (fence.token, fence.lineage);
            self.flusher.fences.remove(0);
            let reply = MemberReply::Fenced {
                incarnation: self.superblock.incarnation,
                settled: self
                    .lineages
                    .get(&lineage)
                    .map_or(Stamp::default(), |known| known.settled),
                unsettled: self.unsettled(lineage),
                more: false,
            };
            self.answer(token, Ok(reply), effects);
        }
    }

    /// The objects of a lineage not below its settled point, in key order.
    fn unsettled(&self, lineage: LineageId) -> Vec<ObjectStamp> {
        let settled = self.lineages.get(&lineage).map_or(Stamp::default(), |known| known.settled);
        let mut unsettled: Vec<ObjectStamp> = self
            .table
            .rows_of(lineage)
            .filter(|row| row.stamp >= settled)
            .map(|row| ObjectStamp {
                key: row.key,
                stamp: row.stamp,
                settled_generation: row.settled_generation,
            })
            .collect();
        unsettled.sort_unstable_by_key(|object| object.key);
        unsettled
    }
}
