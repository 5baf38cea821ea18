//! Administrators who change what acknowledgements of a volume promise, and wait until whoever has
//! it attached has taken that, on whichever node: the agreed state says whether it has.

use super::{Engine, Phase};
use crate::{
    Output,
    admin::{AdminError, AdminErrorKind, AdminReply, AdminToken},
};
use cluster::{Durability, Refusal, Volume};
use proto::{Duration, Time, VolumeId, limits::STABLE_ANSWER_MS_MAX};

/// An administrator who waits until a session has said that what it acknowledges is stable.
#[derive(Debug)]
pub(super) struct Settling {
    token: AdminToken,
    volume: VolumeId,
    wanted: Durability,
    until: Time,
}

impl Engine {
    /// It is agreed what acknowledgements of a volume promise: the answer follows.
    pub(super) fn await_stable(
        &mut self,
        now: Time,
        token: AdminToken,
        (volume, wanted): (VolumeId, Durability),
        outputs: &mut Vec<Output>,
    ) {
        let until = now + Duration::from_millis(STABLE_ANSWER_MS_MAX);
        self.settling.push(Settling { token, volume, wanted, until });
        if self.phase == Phase::Serving {
            self.answer_stable(now, outputs);
        } else {
            self.abandon_stable(outputs);
        }
    }

    /// Answers those whose volume is as it promises, and those who waited too long for it.
    pub(super) fn answer_stable(&mut self, now: Time, outputs: &mut Vec<Output>) {
        for waiting in std::mem::take(&mut self.settling) {
            let known = self.map.volume(waiting.volume);
            let result = match known {
                // It was deleted for good meanwhile.
                None => {
                    let unknown = Refusal::UnknownVolume { volume: waiting.volume };
                    Err(super::administer::refused(&unknown))
                }
                Some(known) if known.durability != waiting.wanted => {
                    let sentence = format!(
                        "volume {} was given another durability meanwhile; see `dog volume info`, \
                         and set it again if that is wrong",
                        known.name
                    );
                    Err(AdminError { kind: AdminErrorKind::Conflict, sentence })
                }
                Some(known) if !known.awaits_stable() => {
                    let name = known.name.clone();
                    self.volume_named(now, &name).map(AdminReply::Volume)
                }
                Some(known) if waiting.until <= now => {
                    let seconds = STABLE_ANSWER_MS_MAX / 1000;
                    Err(self.not_stable(known, &format!("has not said so for {seconds} s")))
                }
                Some(_) => {
                    self.settling.push(waiting);
                    continue;
                }
            };
            outputs.push(Output::Admin { token: waiting.token, result: Box::new(result) });
        }
    }

    fn not_stable(&self, volume: &Volume, why: &str) -> AdminError {
        let name = &volume.name;
        let node = volume.writer().map_or_else(String::new, |writer| self.node_words(writer.node));
        let sentence = format!(
            "volume {name} has durability ack from now on, but node {node}, which has it \
             attached, {why}: until it has, what it acknowledges is stable only after a flush; \
             `dog volume info {name}` shows when it has, and `dog cluster status` what is wrong"
        );
        AdminError { kind: AdminErrorKind::Unavailable, sentence }
    }

    /// When an administrator has waited long enough.
    pub(super) fn stable_deadline(&self) -> Option<Time> {
        self.settling.iter().map(|waiting| waiting.until).min()
    }

    /// The node stops: it is agreed, but nobody is told when it holds.
    pub(super) fn abandon_stable(&mut self, outputs: &mut Vec<Output>) {
        for waiting in std::mem::take(&mut self.settling) {
            let result = match self.map.volume(waiting.volume) {
                Some(known) => {
                    Err(self.not_stable(known, "had not said so when this node stopped"))
                }
                None => {
                    let unknown = Refusal::UnknownVolume { volume: waiting.volume };
                    Err(super::administer::refused(&unknown))
                }
            };
            outputs.push(Output::Admin { token: waiting.token, result: Box::new(result) });
        }
    }

    /// Asserts that nobody waits for nothing.
    pub(super) fn check_stable(&self) {
        for waiting in &self.settling {
            let awaits = self.map.volume(waiting.volume).is_some_and(Volume::awaits_stable);
            assert!(awaits, "somebody waits for what is stable");
        }
    }
}
