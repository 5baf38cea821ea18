//! What follows when a command has been applied to the agreed state, or refused.

use super::{Engine, Phase, Purpose, Work, administer::refused};
use crate::{
    NoticeLevel, Output,
    admin::AdminReply,
    attach::{Duty, HeldId},
    names,
};
use cluster::{Answer, Command, LayerFate, Map, Refusal, RefusalKind, Volume};
use proto::{LayerId, LineageId, Time, VolumeId};

impl Engine {
    /// Hands the present map to all sessions, and new sizes to the clients.
    ///
    /// All sessions learn of it in one step: no request enters any of them between the first and
    /// the last, and what they have to say is heard only when all know. So a snapshot of a group is
    /// a cut through its volumes: a request that a guest makes after an answer enters after the
    /// step if the answered one did, whichever volumes they are for, and is in no snapshot then.
    pub(super) fn learn_map(&mut self, now: Time, outputs: &mut Vec<Output>) {
        let map = self.voter.as_ref().expect("it just applied").map();
        if map.epoch() == self.map.epoch() {
            return;
        }
        let old = std::mem::replace(&mut self.map, map);
        let (mut flattens, mut said) = (Vec::new(), Vec::new());
        for (id, held) in &mut self.held {
            let (Some(generation), Some(session)) = (held.generation, held.session.as_mut()) else {
                continue;
            };
            let mut effects = Vec::new();
            session.handle(now, volume::Event::Map(self.map.clone()), &mut effects);
            assert!(session.is_past_the_cut(), "{id:?} goes on writing to a former head");
            said.push((*id, generation, effects));
            // Nothing of a snapshot ever changes.
            let HeldId::Head(volume) = *id else { continue };
            let bytes = |map: &Map| map.volume(volume).map(Volume::served_bytes);
            if let (Some(before), Some(after)) = (bytes(&old), bytes(&self.map))
                && before != after
            {
                for connection in held.connections.iter().copied() {
                    outputs.push(Output::Resized { connection, bytes: after });
                }
            }
            let flattening = |map: &Map| map.volume(volume).is_some_and(|known| known.flattening);
            let (before, after) = (flattening(&old), flattening(&self.map));
            if before != after && held.duty != Some(Duty::Finish) {
                flattens.push((*id, after));
            }
        }
        for (id, generation, effects) in said {
            for effect in effects {
                self.handle_session_effect(now, id, generation, effect, outputs);
            }
        }
        for (id, start) in flattens {
            self.tell_flatten(now, id, start);
        }
        self.end_detached();
        self.take_own_turns();
        self.learn_peers(now, outputs);
        if self.phase == Phase::Joining && self.map.cluster().0 != 0 && !self.has_released {
            self.begin(now, outputs);
        }
        self.release_parked(now);
        self.learn_attempts(now, &old, outputs);
        if self.is_among_others() {
            self.learn_from_others(now, &old, outputs);
        }
        self.learn_chains(now, &old);
        self.learn_schedules(&old);
        self.let_go_of_removed(outputs);
    }

    /// What this node has to do about what others may have proposed.
    fn learn_from_others(&mut self, now: Time, old: &Map, outputs: &mut Vec<Output>) {
        if self.phase != Phase::Serving {
            return;
        }
        let gone = old.layers().filter(|(_, layer)| self.map.layer(*layer).is_none());
        let gone: Vec<(LineageId, LayerId)> = gone.collect();
        // Not those that a recovery may have forgotten: nothing says that they were deleted.
        let deleted = self.map.layer_fates(&gone).into_iter();
        let deleted = deleted.filter(|(_, _, fate)| *fate == LayerFate::Deleted);
        let deleted: Vec<_> = deleted.map(|(lineage, layer, _)| (lineage, layer)).collect();
        self.drop_layers(&deleted);
        let changed = self.map.changed_volumes(old);
        self.trash.is_stale |= !changed.is_empty();
        for volume in changed {
            self.attend(volume);
            let waits = self.shrinking.iter().any(|(_, shrunk)| *shrunk == volume);
            let discards = |known: &Volume| known.pending_discard.is_some();
            if waits && !self.map.volume(volume).is_some_and(discards) {
                self.answer_shrunk(now, volume, outputs);
            }
        }
    }

    /// It may have become, or ceased to be, up to this node to do what one node does for all.
    pub(super) fn note_stewardship(&mut self) {
        let is_steward = self.phase == Phase::Serving && self.is_steward();
        if is_steward == std::mem::replace(&mut self.was_steward, is_steward) {
            return;
        }
        if !is_steward {
            self.turns.clear();
            return;
        }
        self.trash.is_stale = true;
        self.attend_all();
        self.begin_schedules();
    }

    /// The end of a proposal.
    pub(super) fn applied(
        &mut self,
        now: Time,
        purpose: Purpose,
        result: Result<Answer, Refusal>,
        outputs: &mut Vec<Output>,
    ) {
        if let Ok(Answer::Dropped(layers)) = &result {
            self.drop_layers(layers);
        }
        match (purpose, result) {
            (Purpose::Boot(_), Ok(_)) => {
                self.boot_commands -= 1;
                self.advance_boot(outputs);
            }
            // All steps of starting can be taken twice.
            (Purpose::Boot(command), Err(Refusal::OutcomeUnknown)) => {
                self.boot_commands -= 1;
                self.boot(*command);
            }
            (Purpose::Boot(_), Err(refusal)) => self.fail(refusal.to_string(), outputs),
            (Purpose::DiskKnown, _) => {}
            (Purpose::DiskOpened(disk), result) => self.opening_agreed(disk, result, outputs),
            (Purpose::DiskWeight(disk), _) => {
                self.weighing.remove(&disk);
            }
            // Given up by a node that stops.
            (Purpose::Attach(id) | Purpose::Detach(id), _) if !self.held.contains_key(&id) => {}
            (Purpose::AdminToken(token, id), Ok(_)) => {
                let result = Box::new(self.token_report(id));
                outputs.push(Output::Admin { token, result });
            }
            (Purpose::AdminNode(token, node, addresses), Ok(_)) => {
                let command = Command::SetAddresses { node, addresses };
                self.work.push_back(Work::Propose(command, Purpose::AdminDone(token)));
            }
            (Purpose::Attach(id), Ok(Answer::Attached { generation })) => {
                self.attached(now, id, generation, outputs);
            }
            // Clients do not learn that it is in the trash.
            (Purpose::Attach(id), Err(Refusal::InTrash { .. })) => {
                self.attach_refused(now, id, names::DELETED_MEANWHILE, outputs);
            }
            (Purpose::Attach(id), Err(refusal @ Refusal::Attached { .. })) if self.may_wait(id) => {
                self.await_turn(now, id, refusal.to_string());
            }
            (Purpose::Attach(id), Err(refusal)) => {
                self.attach_refused(now, id, &refusal.to_string(), outputs);
            }
            (Purpose::Detach(id), Ok(_)) => self.detached(now, id, outputs),
            (Purpose::Detach(id), Err(refusal)) => {
                let sentence = format!("a volume could not be detached: {refusal}");
                outputs.push(Output::Notice { level: NoticeLevel::Error, sentence });
                self.detached(now, id, outputs);
            }
            // Whatever needs it is refused if it was.
            (Purpose::DetachForgotten, _) => {}
            (Purpose::Duty(volume), result) => self.duty_reported(now, volume, result, outputs),
            (Purpose::Scheduled(key, slot), result) => {
                self.slot_taken(now, key, slot, result, outputs);
            }
            (Purpose::Surplus(volume), _) => self.surplus_dropped(volume),
            (Purpose::TornGroup(name, tag), result) => {
                self.torn_group_dropped((&name, &tag), result, outputs);
            }
            (Purpose::Purge(volume), result) => self.purged(now, volume, result, outputs),
            (Purpose::LookedUp, result) => self.looked_up(now, &result, outputs),
            // What was refused is looked at anew.
            (Purpose::Members, result) => self.members_proposed(&result),
            (Purpose::AttemptEnd(number), result) => {
                self.attempt_end_proposed(now, number, &result);
            }
            (purpose, Ok(answer)) => self.carried_out(now, purpose, answer, outputs),
            (Purpose::AdminGroup(token, step), Err(refusal)) => {
                self.group_step_refused(token, step, refused(&refusal), outputs);
            }
            (purpose, Err(refusal)) => {
                let token = purpose.token().expect("the others are matched above");
                outputs.push(Output::Admin { token, result: Box::new(Err(refused(&refusal))) });
            }
        }
        self.answer_sealed(now, outputs);
        self.answer_stable(now, outputs);
        self.answer_sealed_groups(now, outputs);
    }

    /// What an administrator asked for was carried out.
    fn carried_out(
        &mut self,
        now: Time,
        purpose: Purpose,
        answer: Answer,
        outputs: &mut Vec<Output>,
    ) {
        match (purpose, answer) {
            (Purpose::AdminResize(token, volume), Answer::Resized { pending_discard }) => {
                if pending_discard.is_some() {
                    self.shrinking.push((token, volume));
                    self.attend(volume);
                    if self.phase != Phase::Serving {
                        self.abandon_errands(outputs);
                    }
                } else {
                    self.answer_volume(now, token, volume, outputs);
                }
            }
            (Purpose::AdminSeal(token, volume, what), _) => {
                self.await_seal(now, token, volume, what, outputs);
            }
            (Purpose::AdminDurability(token, volume, wanted), _) => {
                self.await_stable(now, token, (volume, wanted), outputs);
            }
            (Purpose::AdminSame(token, volume), _) => {
                self.trash.is_stale = true; // it may come out of it
                self.attend(volume);
                self.duty_done(volume);
                self.answer_volume(now, token, volume, outputs);
            }
            (Purpose::AdminVolume(token, name), _) => {
                let result = self.volume_named(now, &name).map(AdminReply::Volume);
                outputs.push(Output::Admin { token, result: Box::new(result) });
            }
            (Purpose::AdminFrom(token, name), _) => {
                if let Some(volume) = self.map.volume_named(&name).map(|volume| volume.id) {
                    self.attend(volume);
                }
                let result = self.volume_named(now, &name).map(AdminReply::Volume);
                outputs.push(Output::Admin { token, result: Box::new(result) });
            }
            (Purpose::AdminDone(token), _) => {
                outputs.push(Output::Admin { token, result: Box::new(Ok(AdminReply::Done)) });
            }
            (Purpose::AdminSchedule(token, volume, schedule), _) => {
                self.answer_schedule(token, volume, &schedule, outputs);
            }
            (Purpose::AdminGone(token, volume), _) => self.gone(token, volume, outputs),
            (Purpose::AdminSnapshot(token, volume, tag), _) => {
                let result = self.snapshot_tagged(volume, &tag).map(AdminReply::Snapshot);
                outputs.push(Output::Admin { token, result: Box::new(result) });
            }
            (Purpose::AdminGroup(token, step), answer) => {
                self.group_step_done(now, token, step, &answer, outputs);
            }
            (purpose, answer) => panic!("{purpose:?} was answered {answer:?}"),
        }
    }

    /// A session's report of a step of what its volume wants has arrived, or could not.
    fn duty_reported(
        &mut self,
        now: Time,
        volume: VolumeId,
        result: Result<Answer, Refusal>,
        outputs: &mut Vec<Output>,
    ) {
        match result {
            Ok(_) => {}
            // The session reports again, and `status` says what is wrong with the journal.
            Err(refusal) if refusal.kind() == RefusalKind::Unavailable => {}
            // The volume was attached anew meanwhile: whoever has it now goes on with it.
            Err(Refusal::NotTheWriter { .. }) => {}
            Err(refusal) => {
                let sentence = format!(
                    "a snapshot, rollback, resize, flattening, shortening or change of \
                     durability could not be completed: {refusal}"
                );
                outputs.push(Output::Notice { level: NoticeLevel::Error, sentence });
            }
        }
        // Made smaller again meanwhile: the session has the new map and goes on.
        let discards = |volume: &Volume| volume.pending_discard.is_some();
        if !self.map.volume(volume).is_some_and(discards) {
            self.answer_shrunk(now, volume, outputs);
        }
        self.duty_done(volume);
        self.reconsider_schedules(volume);
        self.drop_torn_groups();
    }

    fn drop_layers(&mut self, layers: &[(LineageId, LayerId)]) {
        // The others are told when they are agreed.
        let agreed = self.disks.iter().filter(|(_, disk)| disk.is_agreed);
        for disk in agreed.map(|(id, _)| id) {
            for &(lineage, layer) in layers {
                self.work.push_back(Work::Store(*disk, store::Event::DropLayer { lineage, layer }));
            }
        }
    }
}
