//! One open disk. [`Store`] is the shell around the stages of its life; [`Serving`] the machine
//! that answers requests, with one file for each of its concerns.

mod checkpoint;
mod configurations;
mod doubts;
mod drops;
mod fence;
mod flush;
mod growth;
mod layers;
mod medium;
mod mend;
mod merge;
mod pages;
mod read;
mod requests;
mod retire;
mod root;
mod scrub;
mod serving;
mod staging;
mod sweep;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use checkpoint::{Listed, Listing};
pub(crate) use medium::{Operation, Operations};
pub(crate) use scrub::ScrubPlace;
pub(crate) use serving::{Layer, Lineage, Mark, Serving, ServingParts};

use crate::layout::LOG_FIRST;
use crate::open::{Opening, Step};
use crate::{
    Damage, Effect, Event, Identity, LayerHere, OpenError, Options, Room, State, Status, Usage,
};
use proto::{BLOCK_SIZE, LayerId, MemberError, Time};

/// Where in its life a store is.
enum Stage {
    Opening(Box<Opening>),
    Serving(Box<Serving>),
    /// Opening was refused, for this reason.
    Refused(String),
}

/// One open disk: a state machine between member requests and the operations of one medium.
pub struct Store {
    stage: Stage,
    options: Options,
}

impl Store {
    /// Begins to open the medium. The first reads are added to `effects`; [`Effect::Opened`] ends
    /// the opening. Requests before that are answered `Busy`.
    pub fn open(now: Time, options: Options, effects: &mut Vec<Effect>) -> Store {
        let needed = LOG_FIRST * BLOCK_SIZE as u64;
        if options.medium_bytes < needed {
            // Shorter than the superblocks: a file that was just made, or one that was truncated.
            let error = match options.medium_bytes {
                0 => OpenError::Blank,
                found => OpenError::Truncated { found, needed },
            };
            let stage = Stage::Refused(error.to_string());
            effects.push(Effect::Opened(Err(error)));
            return Store { stage, options };
        }
        let opening = Opening::new(now, options.clone(), effects);
        Store { stage: Stage::Opening(Box::new(opening)), options }
    }

    /// Takes one event.
    pub fn handle(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) {
        match (&mut self.stage, event) {
            (Stage::Serving(serving), event) => serving.handle(now, event, effects),
            (Stage::Opening(opening), Event::Disk(done)) => {
                match opening.handle(now, done, effects) {
                    Step::More => {}
                    Step::Opened(serving) => self.stage = Stage::Serving(serving),
                    Step::Refused(reason) => self.stage = Stage::Refused(reason),
                }
            }
            (Stage::Opening(_), Event::Member { token, .. }) => {
                effects.push(Effect::Member { token, result: Err(MemberError::Busy) });
            }
            (Stage::Refused(_), Event::Member { token, .. }) => {
                effects.push(Effect::Member { token, result: Err(MemberError::Retired) });
            }
            (_, Event::Close) => effects.push(Effect::Closed),
            (
                Stage::Opening(_),
                Event::Agreed
                | Event::DropLayer { .. }
                | Event::Scrub(_)
                | Event::MediumSpace { .. }
                | Event::GivesWay { .. }
                | Event::Mend { .. },
            )
            | (Stage::Refused(_), _) => {}
        }
    }

    /// Ends a round of events: the records since the last one become one batch of the log, and
    /// background work takes its next step. Nothing is acknowledged without it.
    pub fn poll(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if let Stage::Serving(serving) = &mut self.stage {
            serving.poll(now, effects);
        }
    }

    /// When `poll` wants to be called at the latest. `None`: only after the next event.
    pub fn deadline(&self) -> Option<Time> {
        match &self.stage {
            Stage::Serving(serving) => serving.deadline(),
            _ => None,
        }
    }

    /// Everything there is to tell, at this moment.
    pub fn status(&self) -> Status {
        match &self.stage {
            Stage::Serving(serving) => serving.status(),
            Stage::Opening(_) => self.empty_status(State::Opening),
            Stage::Refused(reason) => self.empty_status(State::Refused(reason.clone())),
        }
    }

    /// Why it is out of service, if a write or flush has failed, cheaply.
    pub fn failure(&self) -> Option<&str> {
        match &self.stage {
            Stage::Serving(serving) => serving.failure(),
            _ => None,
        }
    }

    /// The damages that are known and not mended, oldest first, cheaply.
    pub fn damages(&self) -> &[Damage] {
        match &self.stage {
            Stage::Serving(serving) => serving.damages(),
            _ => &[],
        }
    }

    /// How much room there is for new data, cheaply. Nothing: it takes no new data anyway.
    pub fn room(&self) -> Option<Room> {
        match &self.stage {
            Stage::Serving(serving) => serving.room(),
            _ => None,
        }
    }

    /// What is known of a disk that is not open.
    fn empty_status(&self, state: State) -> Status {
        let expected = self.options.identity;
        Status {
            state,
            identity: Identity {
                cluster: expected.cluster.unwrap_or_default(),
                node: expected.node.unwrap_or_default(),
                disk: expected.disk.unwrap_or_default(),
            },
            kind: self.options.kind,
            ..Status::default()
        }
    }

    /// What is kept of a layer. Exact at any moment.
    pub fn usage(&self, layer: LayerId) -> Usage {
        match &self.stage {
            Stage::Serving(serving) => serving.usage(layer),
            _ => Usage::default(),
        }
    }

    /// The layers that were opened or written here, and for a lineage that has only a fence its
    /// first layer.
    pub fn layers(&self) -> Vec<LayerHere> {
        match &self.stage {
            Stage::Serving(serving) => serving.layers_here(),
            _ => Vec::new(),
        }
    }

    /// Asserts what must always hold. For tests and simulation: it looks at everything in memory.
    pub fn check(&self) {
        if let Stage::Serving(serving) = &self.stage {
            serving.check();
        }
    }
}
