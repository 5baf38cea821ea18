//! Verifying: an open journal reads itself again, in both copies, and repairs what has rotted.

use super::error::OpenError;
use super::layout::{COPIES, HeaderBlock};
use super::opening::{Results, header_blocks};
use super::recovery::{Recovery, Step};
use super::{Effect, Journal, Phase, Steps};

impl Journal {
    /// Reads everything in both copies and writes bad copies anew from the good ones, so that rot
    /// does not wait for its second chance until the next start. Ends with [`Effect::Verified`]. An
    /// append or snapshot that comes meanwhile is begun after it.
    ///
    /// # Panics
    /// Unless the journal is ready ([`Journal::is_ready`]): a bug of the caller.
    pub fn verify(&mut self, effects: &mut Vec<Effect>) {
        assert!(self.is_ready(), "one request at a time, and only once opened");
        self.phase = Phase::VerifyHeaders;
        self.read_headers(effects);
    }

    pub(super) fn headers_read_to_verify(&mut self, results: Results, effects: &mut Vec<Effect>) {
        let blocks = header_blocks(results);
        // We wrote both: whatever else is there is wrong.
        let wrong = |copy: &usize| blocks[*copy] != HeaderBlock::Valid(self.header);
        let wrong_headers = COPIES.into_iter().filter(wrong).collect();
        let mut recovery = Recovery::new(self.header, wrong_headers, self.medium_bytes);
        let step = recovery.proceed();
        self.verify_frames(Box::new(recovery), step, effects);
    }

    pub(super) fn verify_frames(
        &mut self,
        mut recovery: Box<Recovery>,
        step: Step,
        effects: &mut Vec<Effect>,
    ) {
        match step {
            Step::Read(requests) => {
                self.phase = Phase::Verify(recovery);
                self.io.start(requests, effects);
            }
            Step::Refused(error) => {
                self.verified(Err(error), effects);
            }
            Step::Finished
                if (recovery.sequence, recovery.end) != (Some(self.sequence), self.end) =>
            {
                let error = recovery.damaged(recovery.end, "records are missing at the end");
                self.verified(Err(error), effects);
            }
            Step::Finished => {
                let repaired = recovery.bad_copies();
                self.repair(recovery.repair_steps(), repaired, effects);
            }
        }
    }

    /// Goes on to the next step; after the last one everything is whole.
    pub(super) fn repair(&mut self, mut steps: Steps, repaired: u32, effects: &mut Vec<Effect>) {
        while let Some(step) = steps.pop_front() {
            if !step.is_empty() {
                self.phase = Phase::Repair { steps, repaired };
                return self.io.start(step, effects);
            }
        }
        self.verified(Ok(repaired), effects);
    }

    fn verified(&mut self, result: Result<u32, OpenError>, effects: &mut Vec<Effect>) {
        self.become_ready();
        effects.push(Effect::Verified(result));
        self.begin_waiting(effects);
    }
}
