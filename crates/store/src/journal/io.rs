//! Operations in flight: a group of them is started together and ends together.

use super::Effect;
use proto::{Buffer, DiskDone, DiskError, DiskOp, DiskRequest, DiskToken};

/// The group in flight.
#[derive(Default)]
pub(super) struct Io {
    /// The token of the group's first operation; the others follow it.
    first: u64,
    /// The results so far.
    results: Vec<Option<Result<Option<Buffer>, DiskError>>>,
}

impl Io {
    /// Starts a group, which is not empty. The one before must have ended.
    pub(super) fn start(&mut self, requests: Vec<DiskRequest>, effects: &mut Vec<Effect>) {
        assert!(self.results.is_empty() && !requests.is_empty());
        self.results.resize_with(requests.len(), || None);
        for (token, request) in (self.first..).zip(requests) {
            effects.push(Effect::Disk(DiskOp { token: DiskToken(token), request }));
        }
    }

    /// Takes the end of one operation. Gives all results, in the order of the requests, once the
    /// last is there.
    pub(super) fn handle(
        &mut self,
        done: DiskDone,
    ) -> Option<Vec<Result<Option<Buffer>, DiskError>>> {
        let slot = done
            .token
            .0
            .checked_sub(self.first)
            .and_then(|place| self.results.get_mut(place as usize))
            .expect("an operation in flight");
        assert!(slot.replace(done.result).is_none(), "an operation ends once");
        if self.results.iter().any(Option::is_none) {
            return None;
        }
        self.first += self.results.len() as u64;
        Some(self.results.drain(..).flatten().collect())
    }
}
