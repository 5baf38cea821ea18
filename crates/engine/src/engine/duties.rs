//! What the node itself has a volume's session for though no client has it: to discard what lay
//! beyond a smaller size, to open the head after a snapshot or a rollback, to flatten it or to
//! shorten its chain. A client's session does the same. Flattening and shortening take long, so
//! there the node gives way to anybody who wants the volume; the rest is short, and whoever wants
//! the volume then finds it finished.

use super::{Engine, Phase, Work, trash};
use crate::{
    Client,
    attach::{Duty, Held, HeldId, Stage},
    shortening,
};
use cluster::{Map, Volume};
use proto::{
    Duration, LayerId, Time, VolumeId,
    limits::{
        FLATTEN_LOOK_MS, NODE_FINISHES_MAX, NODE_FLATTENS_MAX, NODE_HOLD_RETRY_MS,
        NODE_SHORTENS_MAX,
    },
};
use std::{
    collections::BTreeSet,
    ops::Bound::{Excluded, Unbounded},
};
use volume::Session;

const _: () = assert!(NODE_FLATTENS_MAX <= NODE_FINISHES_MAX, "so many turns are given at once");

impl Engine {
    /// What a volume wants of its session, whoever has it. In the trash it wants nothing: it goes
    /// on when it comes out.
    pub(super) fn duty(&self, volume: VolumeId) -> Option<Duty> {
        let volume = self.map.volume(volume).filter(|volume| volume.trash.is_none())?;
        if self.is_unfinished(volume) {
            return Some(Duty::Finish);
        }
        (volume.flattening || self.shortening(volume).is_some()).then_some(Duty::Flatten)
    }

    fn is_unfinished(&self, volume: &Volume) -> bool {
        volume.pending_discard.is_some() || self.map.sealing(volume).is_some()
    }

    /// The layer that a volume is to be shortened onto, if it is.
    pub(super) fn shortening(&self, volume: &Volume) -> Option<LayerId> {
        shortening::target(&self.map, &self.disks, volume)
    }

    /// Looks whether volumes that changed are to be shortened now. A clone that was just made is
    /// left for a moment to whoever it was made for.
    pub(super) fn learn_chains(&mut self, now: Time, before: &Map) {
        if self.phase != Phase::Serving {
            return;
        }
        for id in self.map.changed_volumes(before) {
            let volume = self.map.volume(id);
            if volume.is_none_or(|volume| self.shortening(volume).is_none()) {
                continue;
            }
            match self.held.get(&HeldId::Head(id)).map(|held| held.duty) {
                None => self.attend_later(now, id),
                Some(Some(Duty::Finish)) => {}
                Some(_) => self.tell_flatten(now, HeldId::Head(id), true),
            }
        }
    }

    /// The driver has told for the first time how much a disk can grow.
    pub(super) fn learn_first_space(&mut self, now: Time) {
        if self.phase == Phase::Serving {
            self.attend_all();
            self.flattens_at = Some(now);
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
        if !self.is_for_this_node(volume) {
            return;
        }
        let Some(duty) = self.duty(volume) else { return };
        if !self.has_room_for(duty) {
            self.turns.insert(volume);
            return;
        }
        let flattens = self.map.volume(volume).is_some_and(|volume| volume.flattening);
        let what = match duty {
            Duty::Finish => "this node, which finishes its last snapshot, rollback or resize",
            Duty::Flatten if flattens => "this node, which flattens it",
            Duty::Flatten => "this node, which shortens its chain of clones",
        };
        let client = Client { identity: "sheep".into(), description: what.into() };
        self.begin_attach(id, Held::new(client, Some(duty)));
    }

    /// Whether it is up to this node to see to what a volume wants: one node does, unless another
    /// one has it attached, whose session does it.
    fn is_for_this_node(&self, volume: VolumeId) -> bool {
        let writer = self.map.volume(volume).and_then(Volume::writer);
        let is_elsewhere = writer.is_some_and(|writer| writer.node != self.settings.node);
        self.is_steward() && !is_elsewhere
    }

    /// Whether the node may hold one more volume for this.
    fn has_room_for(&self, duty: Duty) -> bool {
        self.held.values().filter(|held| held.duty == Some(duty)).count() < limit(duty)
    }

    /// Attends to a volume after a while: just now it could not be had.
    pub(super) fn attend_later(&mut self, now: Time, volume: VolumeId) {
        let id = HeldId::Head(volume);
        let is_free = !self.held.contains_key(&id) && self.is_for_this_node(volume);
        if is_free && self.duty(volume).is_some() {
            self.turns.insert(volume);
            let at = now + Duration::from_millis(NODE_HOLD_RETRY_MS);
            self.turns_at = Some(self.turns_at.map_or(at, |sooner| sooner.min(at)));
        }
    }

    /// Attends to those that wait for their turn, as far as there is room.
    pub(super) fn take_turns(&mut self) {
        for duty in [Duty::Finish, Duty::Flatten] {
            // Round and round, so that one that comes back does not come first.
            let (done, next) = (..=self.last_turn, (Excluded(self.last_turn), Unbounded));
            let in_turn = self.turns.range(next).chain(self.turns.range(done));
            let wants_it = |id: &&VolumeId| match duty {
                Duty::Finish => self.map.volume(**id).is_some_and(|v| self.is_unfinished(v)),
                Duty::Flatten => self.duty(**id) == Some(duty),
            };
            let next: Vec<VolumeId> =
                in_turn.filter(wants_it).take(NODE_FINISHES_MAX).copied().collect();
            for volume in next {
                if self.has_room_for(duty) {
                    self.last_turn = volume;
                    self.attend(volume);
                }
            }
        }
    }

    /// Looks after the flattenings and shortenings that came to a halt: each is begun again,
    /// those that the node itself has a volume for after the others that wait for their turn.
    pub(super) fn look_after_flattens(&mut self, now: Time) {
        self.flattens_at = None;
        let (mut halted, mut unwanted) = (Vec::new(), Vec::new());
        for (id, held) in &self.held {
            let HeldId::Head(volume) = *id else { continue };
            if held.duty == Some(Duty::Finish) {
                continue;
            }
            let wants = |v: &Volume| v.flattening || self.shortening(v).is_some();
            let wanted = self.map.volume(volume).is_some_and(wants);
            let state = held.session.as_ref().and_then(Session::flattening);
            // There may be room for it later.
            let is_long = |v: &Volume| shortening::is_too_long(&self.map, v);
            let may_come = self.map.volume(volume).is_some_and(is_long);
            if !wanted && !may_come && state.is_none() && held.duty.is_none() {
                continue;
            }
            self.flattens_at = Some(now + Duration::from_millis(FLATTEN_LOOK_MS));
            let Some(session) = held.session.as_ref().filter(|_| held.stage == Stage::Open) else {
                continue;
            };
            let has_failed = state.as_ref().is_some_and(|state| state.error.is_some());
            let is_over = has_failed || state.is_none();
            if !wanted {
                if is_over && held.duty.is_some() {
                    unwanted.push(*id);
                }
            } else if is_over || session.source_trouble().is_some() {
                // A source that is away for long must not keep others from being filled.
                halted.push((has_failed, *id, held.duty));
            }
        }
        // There may be no room for it any more; others have their turns.
        for id in unwanted {
            self.release(id);
        }
        // What fails again and again must not keep others from being shortened.
        halted.sort_by_key(|(has_failed, ..)| *has_failed);
        for (_, id, duty) in halted {
            if duty.is_some() && !self.turns.is_empty() {
                self.release(id);
            } else {
                self.tell_flatten(now, id, true);
            }
        }
    }

    /// The sessions that shorten at the moment, or are told to.
    fn shortens(&self) -> BTreeSet<HeldId> {
        let copies = |held: &Held| {
            let state = held.session.as_ref().and_then(Session::flattening);
            state.is_some_and(|state| state.onto.is_some() && state.error.is_none())
        };
        let copying = self.held.iter().filter(|(_, held)| copies(held)).map(|(id, _)| *id);
        let told = self.work.iter().filter_map(|work| match work {
            Work::Session(id, _, volume::Event::Shorten { .. }) => Some(*id),
            _ => None,
        });
        copying.chain(told).collect()
    }

    /// Whether one more session may shorten: each takes no more than a share of the present room,
    /// and does not know what the others will still take.
    pub(super) fn may_shorten(&self, id: HeldId) -> bool {
        let others = self.shortens().into_iter().filter(|other| *other != id).count();
        others < NODE_SHORTENS_MAX && !self.is_any_short()
    }

    fn is_any_short(&self) -> bool {
        self.disks.values().any(trash::is_short)
    }

    /// Where a disk is short of space, nobody copies what can be read where it is. Flattening was
    /// asked for and goes on.
    pub(super) fn stop_shortening_for_space(&mut self, now: Time) {
        if !self.is_any_short() {
            return;
        }
        for id in self.shortens() {
            let Some(generation) = self.held.get(&id).and_then(|held| held.generation) else {
                continue;
            };
            let stop = volume::Event::Flatten { start: false };
            self.work.push_back(Work::Session(id, generation, stop));
            let again_at = now + Duration::from_millis(FLATTEN_LOOK_MS);
            self.flattens_at = self.flattens_at.or(Some(again_at));
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
            // What room there is says whether it is shortened, and changes at any time.
            let is_owed = |known: &Volume| {
                self.is_for_this_node(volume)
                    && known.trash.is_none()
                    && (known.flattening || self.is_unfinished(known))
            };
            let is_owed = self.map.volume(volume).is_some_and(is_owed);
            assert!(is_cared_for || !is_owed, "volume {volume} is forgotten");
        }
        for duty in [Duty::Finish, Duty::Flatten] {
            let count = self.held.values().filter(|held| held.duty == Some(duty)).count();
            assert!(count <= limit(duty), "the node holds too many volumes");
        }
    }
}

/// How many volumes the node may hold at once for this.
fn limit(duty: Duty) -> usize {
    match duty {
        Duty::Finish => NODE_FINISHES_MAX,
        Duty::Flatten => NODE_FLATTENS_MAX,
    }
}
