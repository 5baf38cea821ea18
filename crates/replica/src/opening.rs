//! How an attachment opens: its fence is put on a quorum of every member set, and the objects that
//! an earlier session may have left half written are settled, each at one stamp for ever.
//!
//! Who has a single member has nothing to compare with: the fence is all. Otherwise those that
//! answered in time are compared, made equal by copiers, told so, and flushed, before anything is
//! served (decision 0008, rules 1, 4, 5 and 9). Whoever did not answer is behind.

use crate::chain::Object;
use crate::coordinator::{Coordinator, Pending, Phase};
use crate::copier::{Becomes, Copier, Copy, CopyError, CopyLayer, CopyQuestion};
use crate::event::Effect;
use crate::layers::Rung;
use crate::peer::{PeerIndex, PeerState};
use crate::settle::settle_among;
use crate::slots::Slots;
use proto::limits::{MEMBER_CHECKS_MAX, MEMBER_RETRY_MS, OPENING_COPIERS_MAX, OPENING_WAIT_MS};
use proto::{
    DiskId, Duration, Generation, LayerId, MemberError, MemberReply, MemberRequest, Mistake,
    ObjectKey, ObjectStamp, Permit, Stamp, Time, planted,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// An opening under way.
#[derive(Debug, Default)]
pub(crate) struct Opening {
    stage: Stage,
    /// Who has put up the fence.
    fenced: BTreeSet<PeerIndex>,
    /// Until when more are waited for than have to.
    wait_until: Option<Time>,
    /// Objects not below a settled point, and what each member asked has of them.
    answers: BTreeMap<ObjectKey, Vec<(PeerIndex, ObjectStamp)>>,
    /// The highest settled point that anybody knows.
    settled: Stamp,
    /// Which layers were opened on members that did not know a layer of which others list objects.
    laddered: BTreeSet<(PeerIndex, LayerId)>,
    /// What is still to be asked in this stage.
    queue: VecDeque<Pending>,
    /// How many questions of this stage are under way.
    asked: usize,
    /// Copies that have not begun.
    copies: VecDeque<(PeerIndex, Copy)>,
    copiers: Slots<(PeerIndex, Copier)>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
enum Stage {
    #[default]
    Fencing,
    /// Members that did not list an object which another listed are asked for its stamp, and all
    /// for the configurations that they have refused.
    Comparing,
    /// Those that have something else than what was chosen get that.
    Copying,
    /// The others are told that they have it.
    Settling,
    /// All of that is made stable.
    Flushing,
    /// A head that is not known to all disks is opened.
    Layering,
}

impl Opening {
    pub(crate) fn opens_layers(&self) -> bool {
        self.stage == Stage::Layering
    }

    /// When something has to happen though nobody answers.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let copiers = self.copiers.iter().filter_map(|(_, (_, copier))| copier.deadline());
        copiers.chain(self.wait_until).min()
    }

    /// Whether the peer is still waited for.
    pub(crate) fn waits_for(&self, peer: PeerIndex) -> bool {
        self.stage == Stage::Fencing && !self.fenced.contains(&peer)
    }

    /// Whether this disk keeps a copy from going on.
    pub(crate) fn copies_to(&self) -> BTreeSet<DiskId> {
        let begun = self.copiers.iter().map(|(_, (_, copier))| copier.copy().target);
        begun.chain(self.copies.iter().map(|(_, copy)| copy.target)).collect()
    }
}

impl Coordinator {
    pub(crate) fn is_opening(&self) -> bool {
        matches!(self.phase, Phase::Opening(_))
    }

    fn opening(&mut self) -> Option<&mut Opening> {
        match &mut self.phase {
            Phase::Opening(opening) => Some(opening),
            _ => None,
        }
    }

    /// A disk was lost in the middle, or the members are others: what was heard may be needed or
    /// wrong, so the opening begins anew.
    pub(crate) fn opening_lost(&mut self, _effects: &mut Vec<Effect>) {
        if !self.is_opening() {
            return;
        }
        self.phase = Phase::Opening(Box::default());
        self.partitions.forgive_all();
        let retry_at = self.now + Duration::from_millis(MEMBER_RETRY_MS);
        for peer in &mut self.peers {
            peer.behind = None;
            if peer.own
                && !self.read_only
                && matches!(peer.state, PeerState::Up | PeerState::Fencing)
            {
                peer.state = PeerState::Fencing;
                peer.asked = false;
                peer.flushing = false;
                peer.confirming = false;
                peer.retry_at = Some(retry_at);
            }
        }
        // Answers to the old questions are not waited for.
        let is_old = |pending: &Pending| {
            matches!(
                pending,
                Pending::Fence { .. }
                    | Pending::Compare { .. }
                    | Pending::Rung { .. }
                    | Pending::Settle { .. }
                    | Pending::Mark { .. }
                    | Pending::Confirm { .. }
                    | Pending::Copy { .. }
                    | Pending::Flush { .. }
            )
        };
        let old = self.tokens.iter().filter(|(_, pending)| is_old(pending));
        let old: Vec<u64> = old.map(|(token, _)| token).collect();
        for token in old {
            if let Some(pending) = self.tokens.remove(token) {
                self.peers[usize::from(pending.peer())].asked &=
                    !matches!(pending, Pending::Fence { .. });
            }
        }
    }

    /// A disk lists some of what is not below its settled point. It may have more than it is a
    /// member for: what is left of partitions that it was excluded from is no evidence.
    pub(crate) fn opening_listed(
        &mut self,
        peer: PeerIndex,
        unsettled: Vec<ObjectStamp>,
        _effects: &mut Vec<Effect>,
    ) {
        // What was deleted is dropped by whoever has it.
        let counts = |found: &ObjectStamp| {
            self.map.layer(found.key.layer).is_some()
                && self.partition_at(found.key.index).members.contains(peer)
        };
        let listed: Vec<ObjectStamp> = unsettled.into_iter().filter(counts).collect();
        let Some(opening) = self.opening() else { return };
        if opening.stage != Stage::Fencing {
            return;
        }
        for found in listed {
            let answers = opening.answers.entry(found.key).or_default();
            if answers.iter().all(|(other, _)| *other != peer) {
                answers.push((peer, found));
            }
        }
    }

    /// A disk has put up the fence and listed everything.
    pub(crate) fn opening_fenced(
        &mut self,
        peer: PeerIndex,
        settled: Stamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(opening) = self.opening() else { return };
        if opening.stage == Stage::Fencing {
            opening.fenced.insert(peer);
            opening.settled = opening.settled.max(settled);
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
        let Some(opening) = self.opening() else { return };
        opening.asked -= 1;
        opening.answers.entry(found.key).or_default().push((peer, found));
        self.pump_opening(effects);
    }

    /// A disk does not know the layer of an object that another listed: it has nothing of it, and
    /// is told of the layer, so that it can be given what it lacks.
    fn handle_unknown_layer(&mut self, peer: PeerIndex, key: ObjectKey, effects: &mut Vec<Effect>) {
        let ladder = self.ladder(key.layer);
        let Some(opening) = self.opening() else { return };
        for Rung { layer, parent } in ladder {
            if opening.laddered.insert((peer, layer)) {
                opening.queue.push_back(Pending::Rung { peer, layer, parent });
            }
        }
        let (stamp, settled_generation) = (Stamp::default(), Generation(0));
        self.handle_compared(peer, ObjectStamp { key, stamp, settled_generation }, effects);
    }

    /// A question of the opening was answered with what was hoped for.
    pub(crate) fn opening_answered(&mut self, effects: &mut Vec<Effect>) {
        let Some(opening) = self.opening() else { return };
        opening.asked -= 1;
        self.pump_opening(effects);
    }

    /// A question of the opening is to be asked again.
    pub(crate) fn opening_again(&mut self, pending: Pending) {
        let Some(opening) = self.opening() else { return };
        opening.asked -= 1;
        opening.queue.push_front(pending);
    }

    /// A question was refused.
    pub(crate) fn opening_refused(
        &mut self,
        pending: Pending,
        error: &MemberError,
        effects: &mut Vec<Effect>,
    ) {
        let peer = pending.peer();
        match (&pending, error) {
            (Pending::Mark { .. }, MemberError::RefusedMore { .. }) => {
                self.opening_again(pending);
                let confirm = Pending::Confirm { peer, sent: 0 };
                if let Some(opening) = self.opening() {
                    opening.queue.push_front(confirm);
                }
                self.pump_opening(effects);
            }
            (&Pending::Compare { key, .. }, MemberError::Invalid(_)) => {
                self.handle_unknown_layer(peer, key, effects);
            }
            // It is known with another layer below, or never will be; the copiers will find out.
            (Pending::Rung { .. }, MemberError::Invalid(_)) => self.opening_answered(effects),
            // Somebody changes the members, or the object is not what it was: from the beginning.
            (_, MemberError::WrongStamp { .. } | MemberError::WrongConfiguration { .. }) => {
                self.opening_lost(effects);
            }
            _ => {
                self.back_off(peer);
                self.opening_again(pending);
            }
        }
    }

    /// A disk has flushed; gives back whether that was for the opening.
    pub(crate) fn opening_flushed(&mut self, effects: &mut Vec<Effect>) -> bool {
        if !self.is_opening() {
            return false;
        }
        self.opening_answered(effects);
        true
    }

    /// Goes through the stages as far as the answers allow.
    pub(crate) fn pump_opening(&mut self, effects: &mut Vec<Effect>) {
        if !self.is_opening() || self.partitions.groups.is_empty() {
            return;
        }
        if self.read_only
            && let Some(opening) = self.opening()
        {
            opening.stage = Stage::Layering;
        }
        loop {
            self.pump_questions(effects);
            self.pump_copiers(effects);
            let Phase::Opening(opening) = &self.phase else { return };
            if opening.asked > 0 || !opening.queue.is_empty() {
                return;
            }
            match opening.stage {
                Stage::Fencing => {
                    if !self.is_heard() {
                        return;
                    }
                    self.begin_comparing(effects);
                }
                Stage::Comparing => {
                    if !self.begin_copying() {
                        return;
                    }
                }
                Stage::Copying => {
                    if !opening.copiers.is_empty() || !opening.copies.is_empty() {
                        return;
                    }
                    self.begin_settling();
                }
                Stage::Settling => self.begin_flushing(),
                Stage::Flushing => {
                    self.settled = opening.settled;
                    if !self.partitions.are_sole() && !self.partitions.is_any_behind() {
                        // All that was before this session is everywhere, and stable.
                        self.settled = Stamp { generation: self.generation, sequence: 1 };
                    }
                    self.begin_layering(effects);
                }
                Stage::Layering => {
                    if self.is_layer_known(self.layer) {
                        self.phase = Phase::Open;
                        effects.push(Effect::Opened);
                    }
                    return;
                }
            }
        }
    }

    /// Whether enough have put up the fence, and the others had their time.
    fn is_heard(&mut self) -> bool {
        let Phase::Opening(opening) = &self.phase else { return false };
        let fenced = &opening.fenced;
        let enough = self.partitions.groups.iter().all(|group| {
            let held = group.members.iter().filter(|peer| fenced.contains(peer));
            held.count() >= group.quorum()
        });
        let mut peers = self.peers.iter().enumerate();
        let is_late = |(index, peer): (usize, &crate::peer::Peer)| {
            peer.own && peer.state == PeerState::Fencing && !fenced.contains(&(index as PeerIndex))
        };
        let is_waited_for = peers.any(is_late);
        let now = self.now;
        let Phase::Opening(opening) = &mut self.phase else { return false };
        if !enough {
            return false;
        }
        if !is_waited_for {
            return true;
        }
        let until = now + Duration::from_millis(OPENING_WAIT_MS);
        *opening.wait_until.get_or_insert(until) <= now
    }

    fn begin_comparing(&mut self, effects: &mut Vec<Effect>) {
        let Some(opening) = self.opening() else { return };
        opening.wait_until = None;
        opening.stage = Stage::Comparing;
        let fenced = opening.fenced.clone();
        if self.partitions.are_sole() {
            return;
        }
        for index in 0..self.peers.len() as PeerIndex {
            if self.peers[usize::from(index)].own && !fenced.contains(&index) {
                let reason = match &self.peers[usize::from(index)].state {
                    PeerState::Away { reason, .. } => reason.clone(),
                    _ => "it did not answer in time when the volume was attached".to_string(),
                };
                self.fall_behind(index, reason, effects);
            }
        }
        let Phase::Opening(opening) = &self.phase else { return };
        let mut queue = VecDeque::new();
        for &peer in fenced.iter().filter(|peer| self.partitions.has_peers_of(**peer)) {
            queue.push_back(Pending::Confirm { peer, sent: 0 });
        }
        for (key, answers) in &opening.answers {
            for peer in self.partition_at(key.index).whole.iter() {
                if answers.iter().all(|(who, _)| *who != peer) {
                    queue.push_back(Pending::Compare { peer, key: *key });
                }
            }
        }
        let Some(opening) = self.opening() else { return };
        opening.queue = queue;
    }

    /// Chooses, for every object, and begins to copy the choice to whom it lacks. Not possible
    /// where nobody has anything whole.
    fn begin_copying(&mut self) -> bool {
        let Phase::Opening(opening) = &self.phase else { return false };
        let mut copies: BTreeMap<(PeerIndex, u32), Copy> = BTreeMap::new();
        let mut settles = VecDeque::new();
        let mut chosen = Vec::new();
        for (key, answers) in &opening.answers {
            let Some(best) = settle_among(answers.iter().map(|(_, found)| *found)) else {
                return false;
            };
            chosen.push((*key, best.stamp));
            let partition = self.partition_at(key.index);
            let is_best = |found: &ObjectStamp| {
                found.stamp == best.stamp && settled_by(found) == settled_by(&best)
            };
            let (same, other): (Vec<_>, Vec<_>) = answers
                .iter()
                .filter(|(peer, _)| partition.whole.contains(*peer))
                .partition(|(_, found)| is_best(found));
            for (peer, _) in &same {
                settles.push_back(Pending::Settle { peer: *peer, key: *key, stamp: best.stamp });
            }
            for (target, _) in other {
                let disk = |peer: PeerIndex| self.peers[usize::from(peer)].disk;
                let copy = copies.entry((target, key.index)).or_insert_with(|| Copy {
                    lineage: self.lineage,
                    index: key.index,
                    layers: Vec::new(),
                    sources: Vec::new(),
                    target: disk(target),
                    permit: Permit::Session { generation: self.generation, under: partition.under },
                    generation: self.generation,
                });
                copy.layers.push(CopyLayer {
                    layer: key.layer,
                    parent: self.map.parent_in_lineage(key.layer).unwrap_or(LayerId(0)),
                    becomes: Becomes::Given {
                        stamp: best.stamp,
                        settled_generation: self.generation,
                    },
                    is_above: false,
                });
                // The newest layer's are asked first.
                for (peer, _) in same.iter().rev() {
                    copy.sources.retain(|source| *source != disk(*peer));
                    copy.sources.insert(0, disk(*peer));
                }
            }
        }
        let lacks_source = copies.values().any(|copy| copy.sources.is_empty());
        if lacks_source {
            return false;
        }
        if !copies.is_empty() {
            let layers = self.map.layers().filter(|(lineage, _)| *lineage == self.lineage);
            let parent = |layer| Some((layer, self.map.parent_in_lineage(layer)?));
            let layers: Vec<_> = layers.filter_map(|(_, layer)| parent(layer)).collect();
            copies.values_mut().for_each(|copy| copy.add_above(&layers, |_| Becomes::AsBefore));
        }
        for (key, stamp) in chosen {
            // Where the head has nothing of its own, what counts is the layer that shows through
            // it. That need not be the newest one listed, which may be of a branch that was rolled
            // back: the disk is asked again before the first change.
            if key.layer == self.layer {
                let object = Object { last: stamp, dirty: 0, chain: None };
                self.objects.insert(key.index, object);
            }
        }
        let Some(opening) = self.opening() else { return false };
        opening.stage = Stage::Copying;
        opening.copies = copies.into_iter().map(|((target, _), copy)| (target, copy)).collect();
        // They are asked when the copies are there.
        opening.answers.clear();
        self.opening_settles = settles;
        true
    }

    fn begin_settling(&mut self) {
        let mut queue = std::mem::take(&mut self.opening_settles);
        // Only those that are still members without fault.
        queue.retain(|pending| match pending {
            Pending::Settle { peer, key, .. } => self.partition_at(key.index).whole.contains(*peer),
            _ => false,
        });
        for peer in self.settlers() {
            queue.push_back(Pending::Mark { peer });
        }
        let is_sole = self.partitions.are_sole();
        let Some(opening) = self.opening() else { return };
        opening.stage = Stage::Settling;
        opening.queue = if is_sole { VecDeque::new() } else { queue };
    }

    /// Members that have peers and everything that was settled.
    fn settlers(&self) -> Vec<PeerIndex> {
        let mut peers = BTreeSet::new();
        for group in self.partitions.groups.iter().filter(|group| !group.is_sole()) {
            peers.extend(group.whole.iter());
        }
        peers.into_iter().collect()
    }

    fn begin_flushing(&mut self) {
        let mut settlers = self.settlers();
        if planted(Mistake::OpeningUnflushed) {
            settlers.clear();
        }
        let Some(opening) = self.opening() else { return };
        opening.stage = Stage::Flushing;
        opening.queue =
            settlers.into_iter().map(|peer| Pending::Flush { peer, epoch: 0 }).collect();
    }

    fn begin_layering(&mut self, effects: &mut Vec<Effect>) {
        let Some(opening) = self.opening() else { return };
        opening.stage = Stage::Layering;
        self.pump_layers(effects);
    }

    fn pump_questions(&mut self, effects: &mut Vec<Effect>) {
        loop {
            let Phase::Opening(opening) = &self.phase else { return };
            if opening.asked >= MEMBER_CHECKS_MAX {
                return;
            }
            let Some(next) = opening.queue.front() else { return };
            let peer = next.peer();
            if !self.is_ready(peer) {
                return;
            }
            if matches!(next, Pending::Mark { .. }) && self.has_refused_any(peer) {
                // The members are being changed: the map will show it.
                self.back_off(peer);
                return;
            }
            if matches!(next, Pending::Rung { .. }) && opening.asked > 0 {
                // One after the other: a layer is not taken below one that is known.
                return;
            }
            let settled = opening.settled;
            let Some(opening) = self.opening() else { return };
            let pending = opening.queue.pop_front().expect("just seen");
            opening.asked += 1;
            let (lineage, generation) = (self.lineage, self.generation);
            let request = match pending {
                Pending::Settle { key, stamp, .. } => {
                    let under = self.partition_at(key.index).under;
                    MemberRequest::Settle { lineage, key, generation, under, stamp }
                }
                Pending::Compare { key, .. } => MemberRequest::Stamp { lineage, key, generation },
                Pending::Rung { layer, parent, .. } => {
                    MemberRequest::OpenLayer { lineage, generation, layer, parent }
                }
                Pending::Mark { .. } => {
                    let refusals = self.peers[usize::from(peer)].refusals;
                    MemberRequest::Mark { lineage, generation, settled, refusals }
                }
                Pending::Confirm { .. } => {
                    self.ask_confirm(peer, effects);
                    continue;
                }
                Pending::Flush { .. } => {
                    self.settled = settled;
                    self.ask_flush(peer, effects);
                    continue;
                }
                _ => unreachable!("only these are queued"),
            };
            self.ask(pending, request, effects);
        }
    }

    // -- copiers --

    fn pump_copiers(&mut self, effects: &mut Vec<Effect>) {
        let now = self.now;
        let Some(opening) = self.opening() else { return };
        while opening.copiers.len() < OPENING_COPIERS_MAX
            && let Some((target, copy)) = opening.copies.pop_front()
        {
            opening.copiers.insert((target, Copier::begin(copy)));
        }
        let mut asked = Vec::new();
        let numbers: Vec<u64> = opening.copiers.iter().map(|(number, _)| number).collect();
        for number in numbers {
            let (_, copier) = opening.copiers.at_mut(number).expect("listed just now");
            while let Some((question, disk, request)) = copier.poll(now) {
                asked.push((number, question, disk, request));
            }
        }
        for (copier, question, disk, request) in asked {
            let found =
                self.peers.iter().position(|peer| peer.own && peer.disk == disk && peer.is_up());
            let Some(peer) = found else {
                self.handle_copied(copier, question, Err(MemberError::Retired), effects);
                continue;
            };
            let peer = peer as PeerIndex;
            self.ask(Pending::Copy { peer, copier, question }, request, effects);
        }
    }

    /// A disk answers a copier.
    pub(crate) fn handle_copied(
        &mut self,
        number: u64,
        question: CopyQuestion,
        result: Result<MemberReply, MemberError>,
        effects: &mut Vec<Effect>,
    ) {
        let now = self.now;
        let Some(opening) = self.opening() else { return };
        let Some((target, copier)) = opening.copiers.at_mut(number) else { return };
        let target = *target;
        copier.handle(now, question, result);
        let Some(outcome) = copier.outcome().cloned() else {
            return self.pump_opening(effects);
        };
        opening.copiers.remove(number);
        match outcome {
            Ok(_) => {}
            Err(CopyError::Fenced { .. }) => return self.end(effects),
            Err(CopyError::WrongConfiguration { .. } | CopyError::NoSource { .. }) => {
                return self.opening_lost(effects);
            }
            Err(error) => {
                self.fall_behind(target, error.to_string(), effects);
                let Some(opening) = self.opening() else { return };
                opening.copies.retain(|(other, _)| *other != target);
                let groups = &self.partitions.groups;
                if groups.iter().any(|group| group.whole.len() < group.quorum()) {
                    return self.opening_lost(effects);
                }
            }
        }
        self.pump_opening(effects);
    }
}

fn settled_by(found: &ObjectStamp) -> Generation {
    if planted(Mistake::WriteDoesNotSettle) {
        return found.settled_generation;
    }
    found.settled_generation.max(found.stamp.generation)
}
