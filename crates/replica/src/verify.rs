//! After the members of a partition have changed: what of it is still there.
//!
//! The members of a new configuration begin with the same content, all of it stable. Of each object
//! with changes that no flush covers one member is asked for its stamp. What was in flight and is
//! there is done. What was acknowledged and is not there was lost with the power of too many
//! machines, or with the only disk: that is reported, and what was in flight behind it is sent
//! again as new writes: somebody may have the old ones with what was lost before them (decision
//! 0008, rule 11).

use crate::coordinator::{Coordinator, Pending};
use crate::event::Effect;
use crate::peer::PeerIndex;
use proto::limits::MEMBER_CHECKS_MAX;
use proto::{LayerId, MemberError, MemberRequest, ObjectKey, Stamp};
use std::collections::{BTreeSet, VecDeque};

/// Objects that are to be looked at.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// All of them: nothing is sent to their members before.
    objects: BTreeSet<u32>,
    /// Those of them that nobody was asked for.
    queue: VecDeque<u32>,
    asked: usize,
}

impl Checks {
    pub(crate) fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    pub(crate) fn contains(&self, object: u32) -> bool {
        self.objects.contains(&object)
    }

    pub(crate) fn clear(&mut self) {
        *self = Checks::default();
    }
}

impl Coordinator {
    /// The object is to be looked at.
    pub(crate) fn begin_check(&mut self, object: u32) {
        if self.checks.objects.insert(object) {
            self.checks.queue.push_back(object);
        }
    }

    /// Nobody answered for the object.
    pub(crate) fn check_again(&mut self, object: u32) {
        self.checks.asked -= 1;
        self.checks.queue.push_back(object);
    }

    /// An object that is being asked for is to be looked at anew.
    pub(crate) fn forget_checks(&mut self, is_gone: impl Fn(u32) -> bool) {
        let of = |(token, pending): (u64, &Pending)| match pending {
            Pending::Check { object, .. } if is_gone(*object) => Some(token),
            _ => None,
        };
        let gone: Vec<u64> = self.tokens.iter().filter_map(of).collect();
        for token in gone {
            if let Some(Pending::Check { object, .. }) = self.tokens.remove(token) {
                self.check_again(object);
            }
        }
    }

    /// Asks for objects that a member can be asked for.
    pub(crate) fn pump_checks(&mut self, effects: &mut Vec<Effect>) {
        for _ in 0..self.checks.queue.len() {
            if self.checks.asked >= MEMBER_CHECKS_MAX {
                return;
            }
            let Some(object) = self.checks.queue.pop_front() else { return };
            let may_tell = |peer: &PeerIndex| {
                self.is_ready(*peer) && !self.peers[usize::from(*peer)].layer_asked
            };
            let Some(peer) = self.partition_at(object).whole.iter().find(may_tell) else {
                self.checks.queue.push_back(object);
                continue;
            };
            self.checks.asked += 1;
            // Whether it knows the newest layer shows by that.
            let state = &self.peers[usize::from(peer)];
            let layer = match state.knows_a_layer() {
                true => state.layer,
                false => state.layer_tried.unwrap_or(self.layer),
            };
            let (lineage, generation) = (self.lineage, self.generation);
            let key = ObjectKey { layer, index: object };
            let request = MemberRequest::Stamp { lineage, key, generation };
            self.ask(Pending::Check { peer, object, layer }, request, effects);
        }
    }

    /// A member says where an object stands.
    pub(crate) fn handle_checked(
        &mut self,
        peer: PeerIndex,
        object: u32,
        layer: LayerId,
        have: Stamp,
        effects: &mut Vec<Effect>,
    ) {
        self.checks.asked -= 1;
        self.layer_known(peer, layer, effects);
        if self.accept(peer, object, have, effects) {
            self.checks.objects.remove(&object);
            self.go_on(object, have, effects);
        } else {
            self.checks.queue.push_back(object);
        }
        self.pump_checks(effects);
        if self.checks.is_empty() {
            self.end_flushes(effects);
            self.retry_reads(effects);
            (0..self.peers.len() as PeerIndex).for_each(|index| self.kick_flush(index, effects));
        }
    }

    /// A member would not tell where an object stands.
    pub(crate) fn handle_check_error(
        &mut self,
        peer: PeerIndex,
        object: u32,
        layer: LayerId,
        error: &MemberError,
        effects: &mut Vec<Effect>,
    ) {
        self.check_again(object);
        match error {
            MemberError::Invalid(_) if !self.peers[usize::from(peer)].knows_a_layer() => {
                self.layer_unknown(peer, layer);
                self.is_changed = true;
            }
            // Asked before it was found out which layer it knows.
            MemberError::Invalid(_) if layer > self.peers[usize::from(peer)].layer => {
                self.is_changed = true;
            }
            MemberError::Invalid(why) => {
                self.begin_ladder(peer, why, effects);
                self.is_changed = true;
            }
            _ => self.back_off(peer),
        }
    }

    /// Takes what a member has for what there is; or the member for no good.
    pub(crate) fn accept(
        &mut self,
        peer: PeerIndex,
        object: u32,
        have: Stamp,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let limit = Stamp { generation: self.generation, sequence: self.sequence.next() };
        if have >= limit {
            let reason = format!("it has a write {have:?} that was never sent");
            self.peer_lost(peer, reason, effects);
            return false;
        }
        let flushed = self.flushed;
        let Some(known) = self.objects.get_mut(&object) else { return true };
        if have >= known.last {
            known.last = have;
            return true;
        }
        if known.dirty <= flushed {
            let reason = "it lost writes that it had reported as stable, as if an old copy of it \
                          had been put back; restore it or delete the volume"
                .to_string();
            self.peer_lost(peer, reason, effects);
            return false;
        }
        known.last = have;
        self.renew_chain(object, have);
        let disk = self.peers[usize::from(peer)].disk;
        let what = if self.partition_at(object).members.len() == 1 {
            format!("disk {disk} was interrupted and lost writes that had not been flushed")
        } else {
            "too many machines lost power at once, and writes that had not been flushed are lost"
                .to_string()
        };
        self.writes_lost(what, effects);
        true
    }

    pub(crate) fn check_objects(&self) {
        let is_asked = |pending: &Pending| matches!(pending, Pending::Check { .. });
        let asked = self.tokens.iter().filter(|(_, pending)| is_asked(pending)).count();
        assert_eq!(asked, self.checks.asked, "questions for objects");
        assert_eq!(
            self.checks.queue.len() + asked,
            self.checks.objects.len(),
            "objects to look at"
        );
    }
}
