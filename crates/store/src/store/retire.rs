//! Taking the disk out of service after a failed write or flush: what is on the medium is unknown
//! from then on, and a later success would mean nothing.

use super::Serving;
use crate::inflight::{Acknowledgement, Ready};
use crate::layout::Superblock;
use crate::store::Operation;
use crate::{Effect, Notice};
use proto::MemberError;

impl Serving {
    /// See [`crate::Store::failure`].
    pub(crate) fn failure(&self) -> Option<&str> {
        self.retired.as_deref()
    }

    /// Refuses all changes from now on. Reads go on: what they return is verified.
    pub(super) fn retire(&mut self, reason: &str, effects: &mut Vec<Effect>) {
        if self.retired.is_some() {
            return;
        }
        self.retired = Some(reason.to_owned());
        let mut ready = Ready::default();
        self.in_flight.abandon(&mut ready);
        for acknowledgement in ready.acknowledgements {
            let (Acknowledgement::Written(token)
            | Acknowledgement::Done(token)
            | Acknowledgement::Stamp(token, ..)) = acknowledgement;
            self.answer(token, Err(MemberError::Retired), effects);
        }
        for read in ready.readers {
            if let Some(token) = self.reads.take_parked(read) {
                self.answer(token, Err(MemberError::Retired), effects);
            }
        }
        for token in self.queues.take_all() {
            self.answer(token, Err(MemberError::Retired), effects);
        }
        for token in self.flusher.take_all() {
            self.answer(token, Err(MemberError::Retired), effects);
        }
        for token in self.staging.take_all().into_iter().chain(self.sweeps.take_all()) {
            self.answer(token, Err(MemberError::Retired), effects);
        }
        if !self.operations.is_writing_superblock() {
            self.tell_failure(effects);
        }
        if self.checkpoint.give_up_agreed() {
            effects.push(Effect::AgreedNoted);
        }
        let reason = reason.to_owned();
        effects.push(Effect::Notice(Notice::Retired { reason }));
    }

    /// The last that is written to a disk that failed, and nobody relies on it: that it did. Else
    /// the next opening in the same boot of the machine would take what this one acknowledged for
    /// all there. The superblock that rules stays, whatever becomes of this one.
    pub(super) fn tell_failure(&mut self, effects: &mut Vec<Effect>) {
        if self.failure_told || self.superblock.boot == [0; 16] {
            return;
        }
        self.failure_told = true;
        // Beyond any that may have been written since, and over the one that does not rule.
        let sequence = self.superblock.sequence + 3;
        let told = Superblock { sequence, boot: [0; 16], ..self.superblock.clone() };
        let (address, bytes) = (told.address(), told.encode().freeze());
        self.operations.write(Operation::Superblock, address, bytes, effects);
    }
}
