//! What the node itself has a volume's session for though no client has it: to discard what lay
//! beyond a smaller size, to open the head after a snapshot or a rollback, to flatten. A client's
//! session does the same, so the node gives way to anybody who wants the volume.

use super::{Engine, Phase};
use crate::{
    Client,
    attach::{Duty, Held, HeldId},
};
use proto::{
    Duration, Time, VolumeId,
    limits::{NODE_FINISHES_MAX, NODE_FLATTENS_MAX, NODE_HOLD_RETRY_MS},
};

impl Engine {
    /// What a volume wants of its session, whoever has it.
    pub(super) fn duty(&self, volume: VolumeId) -> Option<Duty> {
        let volume = self.map.volume(volume)?;
        if volume.pending_discard.is_some() || self.map.sealing(volume).is_some() {
            Some(Duty::Finish)
        } else {
            volume.flattening.then_some(Duty::Flatten)
        }
    }

    /// Attaches a volume for the node itself if it wants something and nobody has it, now or when
    /// it is its turn.
    pub(super) fn attend(&mut self, volume: VolumeId) {
        self.turns.remove(&volume);
        let id = HeldId::Head(volume);
        if self.phase != Phase::Serving || self.held.contains_key(&id) {
            return; // its session does it
        }
        let Some(duty) = self.duty(volume) else { return };
        if !self.has_room_for(duty) {
            self.turns.insert(volume);
            return;
        }
        let what = match duty {
            Duty::Finish => "this node, which finishes its last snapshot, rollback or resize",
            Duty::Flatten => "this node, which flattens it",
        };
        let client = Client { identity: "sheep".into(), description: what.into() };
        self.begin_attach(id, Held::new(client, Some(duty)));
    }

    /// Whether the node may hold one more volume for this.
    fn has_room_for(&self, duty: Duty) -> bool {
        let limit = match duty {
            Duty::Finish => NODE_FINISHES_MAX,
            Duty::Flatten => NODE_FLATTENS_MAX,
        };
        self.held.values().filter(|held| held.duty == Some(duty)).count() < limit
    }

    /// Attends to a volume after a while: just now it could not be had.
    pub(super) fn attend_later(&mut self, now: Time, volume: VolumeId) {
        let id = HeldId::Head(volume);
        if self.duty(volume).is_some() && !self.held.contains_key(&id) {
            self.turns.insert(volume);
            self.turns_at = Some(now + Duration::from_millis(NODE_HOLD_RETRY_MS));
        }
    }

    /// Attends to those that wait for their turn, as far as there is room.
    pub(super) fn take_turns(&mut self) {
        for duty in [Duty::Finish, Duty::Flatten] {
            let wants_it = |volume: &&VolumeId| self.duty(**volume) == Some(duty);
            let mut next: Vec<VolumeId> = self.turns.iter().filter(wants_it).copied().collect();
            next.truncate(NODE_FINISHES_MAX.max(NODE_FLATTENS_MAX));
            for volume in next {
                self.attend(volume);
            }
        }
    }

    /// After a step of what a volume wanted: the node gives it back if that was all.
    pub(super) fn duty_done(&mut self, volume: VolumeId) {
        let id = HeldId::Head(volume);
        let Some(held) = self.held.get(&id) else { return };
        let is_over = match (held.duty, self.duty(volume)) {
            (None, _) => false,
            (Some(_), None) => true,
            // Flattening takes long and has turns of its own.
            (Some(held_for), Some(wanted)) => held_for == Duty::Finish && wanted == Duty::Flatten,
        };
        if is_over {
            self.release(id);
        }
    }

    /// After a start: attends to all volumes that want something.
    pub(super) fn attend_all(&mut self) {
        let ids: Vec<VolumeId> = self.map.volumes().map(|volume| volume.id).collect();
        for volume in ids {
            self.attend(volume);
        }
    }

    /// Asserts that no volume is forgotten.
    pub(super) fn check_duties(&self) {
        for volume in self.map.volumes().map(|volume| volume.id) {
            let is_held = self.held.contains_key(&HeldId::Head(volume));
            let is_cared_for = is_held || self.turns.contains(&volume);
            assert!(is_cared_for || self.duty(volume).is_none(), "volume {volume} is forgotten");
        }
        for duty in [Duty::Finish, Duty::Flatten] {
            let count = self.held.values().filter(|held| held.duty == Some(duty)).count();
            let limit = NODE_FINISHES_MAX.max(NODE_FLATTENS_MAX);
            assert!(count <= limit, "the node holds too many volumes");
        }
    }
}
