//! How an attachment opens: its fence is put on a quorum of every member set, and the objects that
//! an earlier session may have left half written are settled, each at one stamp for ever.

use crate::chain::Object;
use crate::coordinator::{Coordinator, Pending, Phase};
use crate::event::Effect;
use crate::peer::{PeerIndex, PeerState};
use crate::settle::settle;
use proto::limits::{MEMBER_CHECKS_MAX, MEMBER_RETRY_MS};
use proto::{Duration, MemberRequest, ObjectKey, ObjectStamp, Stamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// An opening under way.
#[derive(Debug, Default)]
pub(crate) struct Opening {
    stage: Stage,
    /// Who has put up the fence.
    fenced: BTreeSet<PeerIndex>,
    /// Objects not below a settled point, and what each member asked has of them.
    answers: BTreeMap<ObjectKey, Vec<(PeerIndex, ObjectStamp)>>,
    /// What is still to be asked in this stage.
    queue: VecDeque<Pending>,
    /// How many questions of this stage are under way.
    asked: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    #[default]
    Fencing,
    /// Members that did not list an object which another listed are asked for its stamp.
    Comparing,
    /// The choice is marked on the members that have it.
    Settling,
    /// A head that is not known to all disks is opened.
    Layering,
}

impl Opening {
    pub(crate) fn opens_layers(&self) -> bool {
        self.stage == Stage::Layering
    }
}

impl Coordinator {
    pub(crate) fn is_opening(&self) -> bool {
        matches!(self.phase, Phase::Opening(_))
    }

    /// A disk was lost in the middle: what it said may be needed, so the opening begins anew.
    pub(crate) fn opening_lost(&mut self) {
        let Phase::Opening(opening) = &mut self.phase else { return };
        *opening = Opening::default();
        let retry_at = self.now + Duration::from_millis(MEMBER_RETRY_MS);
        for peer in &mut self.peers {
            if peer.state == PeerState::Up && peer.own && !self.read_only {
                peer.state = PeerState::Fencing;
                peer.asked = false;
                peer.retry_at = Some(retry_at);
            }
        }
        // Answers to the old questions are not waited for.
        let old: Vec<u64> = self
            .tokens
            .iter()
            .filter(|(_, p)| matches!(p, Pending::Compare { .. } | Pending::Settle { .. }))
            .map(|(token, _)| token)
            .collect();
        for token in old {
            self.tokens.remove(token);
        }
    }

    /// A disk has put up the fence and listed what is not below its settled point.
    pub(crate) fn opening_fenced(
        &mut self,
        peer: PeerIndex,
        unsettled: Vec<ObjectStamp>,
        effects: &mut Vec<Effect>,
    ) {
        let Phase::Opening(opening) = &mut self.phase else { return };
        if opening.stage == Stage::Fencing {
            opening.fenced.insert(peer);
            for found in unsettled {
                opening.answers.entry(found.key).or_default().push((peer, found));
            }
        } else {
            // Too late to be heard: it is written to, but not read from.
            self.peers[usize::from(peer)].complete = false;
        }
        self.pump_opening(effects);
    }

    /// A disk that had not listed an object tells its stamp.
    pub(crate) fn handle_compared(
        &mut self,
        peer: PeerIndex,
        found: ObjectStamp,
        effects: &mut Vec<Effect>,
    ) {
        let Phase::Opening(opening) = &mut self.phase else { return };
        opening.asked -= 1;
        opening.answers.entry(found.key).or_default().push((peer, found));
        self.pump_opening(effects);
    }

    /// A disk has marked an object as settled.
    pub(crate) fn handle_settled(
        &mut self,
        key: ObjectKey,
        stamp: Stamp,
        effects: &mut Vec<Effect>,
    ) {
        let Phase::Opening(opening) = &mut self.phase else { return };
        opening.asked -= 1;
        // Where the head has nothing of its own, what counts is the layer that shows through it.
        // That need not be the newest one listed, which may be of a branch that was rolled back:
        // the disk is asked again before the first change.
        if key.layer == self.layer {
            // Whether it is stable is not known.
            let object = Object { last: stamp, dirty_epoch: 1, chain: None };
            self.objects.insert(key.index, object);
        }
        self.pump_opening(effects);
    }

    /// A question was refused for now: it is asked again.
    pub(crate) fn opening_refused(&mut self, pending: Pending) {
        self.back_off(pending.peer());
        let Phase::Opening(opening) = &mut self.phase else { return };
        opening.asked -= 1;
        opening.queue.push_back(pending);
    }

    /// Goes through the stages as far as the answers allow.
    pub(crate) fn pump_opening(&mut self, effects: &mut Vec<Effect>) {
        let Phase::Opening(_) = &self.phase else { return };
        if self.groups.is_empty() {
            return;
        }
        if self.read_only
            && let Phase::Opening(opening) = &mut self.phase
        {
            opening.stage = Stage::Layering;
        }
        loop {
            self.pump_questions(effects);
            let Phase::Opening(opening) = &mut self.phase else { return };
            if opening.asked > 0 || !opening.queue.is_empty() {
                return;
            }
            match opening.stage {
                Stage::Fencing => {
                    let fenced = &opening.fenced;
                    let enough = self.groups.iter().all(|group| {
                        let held = group.members.iter().filter(|peer| fenced.contains(peer));
                        held.count() >= group.quorum
                    });
                    if !enough {
                        return;
                    }
                    self.begin_comparing();
                }
                Stage::Comparing => {
                    if !self.begin_settling() {
                        return;
                    }
                }
                Stage::Settling => {
                    opening.stage = Stage::Layering;
                    self.pump_layers(effects);
                }
                Stage::Layering => {
                    if self.is_layer_known(self.layer) {
                        self.opened(effects);
                    }
                    return;
                }
            }
        }
    }

    fn begin_comparing(&mut self) {
        let Phase::Opening(opening) = &self.phase else { return };
        let mut queue = VecDeque::new();
        for (key, answers) in &opening.answers {
            for peer in self.members_of(key.index).iter() {
                let answered = answers.iter().any(|(who, _)| *who == peer);
                if opening.fenced.contains(&peer) && !answered {
                    queue.push_back(Pending::Compare { peer, key: *key });
                }
            }
        }
        for (index, peer) in self.peers.iter_mut().enumerate() {
            peer.complete = opening.fenced.contains(&(index as PeerIndex));
        }
        let Phase::Opening(opening) = &mut self.phase else { return };
        opening.stage = Stage::Comparing;
        opening.queue = queue;
    }

    /// Chooses, for every object. Not yet possible where a quorum does not hold the choice: the
    /// others would have to pull it from their peers first.
    fn begin_settling(&mut self) -> bool {
        let Phase::Opening(opening) = &self.phase else { return false };
        let mut queue = VecDeque::new();
        for (key, answers) in &opening.answers {
            let stamp = settle(answers.iter().map(|(_, found)| *found)).expect("it was listed");
            let holders = answers.iter().filter(|(_, found)| found.stamp == stamp);
            let before = queue.len();
            queue.extend(holders.map(|(peer, _)| Pending::Settle {
                peer: *peer,
                key: *key,
                stamp,
            }));
            if queue.len() - before < self.quorum_of(key.index) {
                return false;
            }
        }
        let Phase::Opening(opening) = &mut self.phase else { return false };
        opening.stage = Stage::Settling;
        opening.queue = queue;
        true
    }

    fn pump_questions(&mut self, effects: &mut Vec<Effect>) {
        loop {
            let Phase::Opening(opening) = &mut self.phase else { return };
            if opening.asked >= MEMBER_CHECKS_MAX {
                return;
            }
            let Some(next) = opening.queue.front() else { return };
            let peer = next.peer();
            if !self.is_ready(peer) {
                return;
            }
            let Phase::Opening(opening) = &mut self.phase else { return };
            let pending = opening.queue.pop_front().expect("just seen");
            opening.asked += 1;
            let (lineage, generation) = (self.lineage, self.generation);
            let request = match pending {
                Pending::Settle { key, stamp, .. } => {
                    let under = self.map.under_of(lineage, key.index);
                    MemberRequest::Settle { lineage, key, generation, under, stamp }
                }
                Pending::Compare { key, .. } => MemberRequest::Stamp { lineage, key, generation },
                _ => unreachable!("only these two are queued"),
            };
            self.ask(pending, request, effects);
        }
    }

    fn opened(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Open;
        effects.push(Effect::Opened);
    }
}
