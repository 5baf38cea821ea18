//! Writes: one chain per object, in which each write names the one before it, sent to every
//! current member and acknowledged when a quorum has it.
//!
//! A link is one member's side of a chain. While it flows, writes are sent as they come. When a
//! write is refused for whatever reason, those sent after it name a stamp that the member never
//! had, so they come back too: the link halts, waits until all answers are in, asks for the stamp
//! that the member has, takes everything up to it as done and sends the rest again, in order.

use crate::coordinator::{Coordinator, Pending, is_only_absent};
use crate::event::{Answer, Effect, Error};
use crate::peer::{PeerIndex, PeerSet, PeerState};
use proto::limits::SESSION_STAMPS_MAX;
use proto::{Change, DiskId, LayerId, MemberError, MemberRequest, ObjectKey, Stamp, Write};
use std::collections::{BTreeMap, VecDeque};

/// What is known of one object.
#[derive(Debug)]
pub(crate) struct Object {
    /// The last write acknowledged, or what a member said it has.
    pub(crate) last: Stamp,
    /// The epoch of its member's acknowledgements that contains it; see `Peer::epoch`.
    pub(crate) dirty_epoch: u64,
    /// Its chain, if changes are under way.
    pub(crate) chain: Option<u64>,
}

/// The changes of one object that are not on every member yet, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    pub(crate) index: u32,
    /// The stamp before the first entry, which every member has.
    base: Stamp,
    entries: VecDeque<Entry>,
    /// One for each current member.
    links: Vec<Link>,
}

/// One change.
#[derive(Debug)]
struct Entry {
    stamp: Stamp,
    /// The head when it came.
    layer: LayerId,
    change: Change,
    /// Of the request.
    token: u64,
    acked: PeerSet,
    refused: PeerSet,
    /// A quorum has it and the request has ended.
    answered: bool,
    /// Every member has it.
    finished: bool,
}

/// One member's side of a chain.
#[derive(Debug)]
struct Link {
    peer: PeerIndex,
    state: LinkState,
    /// The stamp the member has once everything sent has been applied. Known while flowing.
    have: Stamp,
    /// Questions under way.
    in_flight: usize,
    /// How often it was halted by a wrong stamp since a write last got through.
    wrong_stamps: u32,
}

/// How often a link may find a wrong stamp before it slows down.
const WRONG_STAMPS_AT_ONCE: u32 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LinkState {
    /// All entries have been sent.
    Flowing,
    /// Nothing is sent until what is under way has been answered and the stamp is known.
    Halted,
    /// The stamp is being asked for.
    Learning,
}

impl Chain {
    /// The requests that have not ended.
    pub(crate) fn unanswered(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().filter(|entry| !entry.answered).map(|entry| entry.token)
    }

    fn link(&mut self, peer: PeerIndex) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.peer == peer)
    }

    /// The layer of the oldest change that the peer does not have.
    fn next_layer(&self, peer: PeerIndex) -> Option<LayerId> {
        let mut missing = self.entries.iter();
        missing
            .find(|entry| !entry.finished && !entry.acked.contains(peer))
            .map(|entry| entry.layer)
    }

    /// Whether the peer is a member and does not have some change of a layer below this one.
    pub(crate) fn misses_below(&self, layer: LayerId, peer: PeerIndex) -> bool {
        let is_member = self.links.iter().any(|link| link.peer == peer);
        is_member && self.next_layer(peer).is_some_and(|next| next < layer)
    }

    fn position(&self, sequence: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&sequence, |entry| entry.stamp.sequence).ok()
    }
}

impl Coordinator {
    /// Takes a change in and sends it, or lets it wait for what must come first.
    pub(crate) fn begin_change(
        &mut self,
        token: u64,
        index: u32,
        change: Change,
        effects: &mut Vec<Effect>,
    ) {
        let number = match self.objects.get(&index) {
            Some(Object { chain: Some(number), .. }) => *number,
            Some(Object { last, .. }) => self.open_chain(index, Some(*last)),
            None => self.open_chain(index, None),
        };
        let stamp = Stamp { generation: self.generation, sequence: self.sequence.issue() };
        let chain = self.chains.at_mut(number).expect("just found");
        chain.entries.push_back(Entry {
            stamp,
            layer: self.layer,
            change,
            token,
            acked: PeerSet::default(),
            refused: PeerSet::default(),
            answered: false,
            finished: false,
        });
        let entry = chain.entries.len() - 1;
        for link in 0..chain.links.len() {
            self.send_or_skip(number, link, entry, effects);
        }
        self.settle_chain(number, effects);
    }

    /// Starts an object's chain: flowing where the stamp is known and the member serves.
    fn open_chain(&mut self, index: u32, last: Option<Stamp>) -> u64 {
        if last.is_none() {
            self.make_room();
        }
        let mut chain = self.spare_chains.pop().unwrap_or_default();
        chain.index = index;
        chain.base = last.unwrap_or_default();
        for peer in self.members_of(index).iter() {
            let flows = last.is_some() && self.peers[usize::from(peer)].is_up();
            let state = if flows { LinkState::Flowing } else { LinkState::Halted };
            chain.links.push(Link {
                peer,
                state,
                have: last.unwrap_or_default(),
                in_flight: 0,
                wrong_stamps: 0,
            });
        }
        let number = self.chains.insert(chain);
        let unknown = Object { last: Stamp::default(), dirty_epoch: 0, chain: None };
        self.objects.entry(index).or_insert(unknown).chain = Some(number);
        number
    }

    /// Keeps the table of stamps under its limit.
    fn make_room(&mut self) {
        if self.objects.len() < SESSION_STAMPS_MAX {
            return;
        }
        let stable = self.peers.iter().map(|peer| peer.stable_epoch).min().unwrap_or(0);
        self.objects.retain(|_, object| object.chain.is_some() || object.dirty_epoch > stable);
        if self.objects.len() < SESSION_STAMPS_MAX / 4 * 3 {
            return;
        }
        // What was not flushed cannot be compared any more if a disk is opened anew before the
        // next flush: that counts as a loss then.
        self.objects.retain(|_, object| object.chain.is_some());
        self.peers.iter_mut().for_each(|peer| peer.forgotten_epoch = peer.epoch);
    }

    /// Sends one entry to one member, if its link flows. A discard of what was never written is
    /// done without a word, so that discarding an empty volume leaves no trace.
    fn send_or_skip(&mut self, number: u64, link: usize, entry: usize, effects: &mut Vec<Effect>) {
        let chain = self.chains.at_mut(number).expect("its chain is there");
        let alone = chain.links.len() == 1;
        let link = &mut chain.links[link];
        if link.state != LinkState::Flowing {
            return;
        }
        let entry = &mut chain.entries[entry];
        if entry.layer > self.peers[usize::from(link.peer)].layer {
            // It goes on when the disk has opened the layer.
            link.state = LinkState::Halted;
            return;
        }
        if alone && link.have == Stamp::default() && is_only_absent(&entry.change) {
            entry.answered = true;
            entry.finished = true;
            self.sequence.finish(entry.stamp.sequence);
            effects.push(Effect::Done { token: entry.token, result: Ok(Answer::Done) });
            return;
        }
        let write = Write {
            lineage: self.lineage,
            key: ObjectKey { layer: entry.layer, index: chain.index },
            under: self.map.under_of(self.lineage, chain.index),
            previous: link.have,
            stamp: entry.stamp,
            settled: Stamp { generation: self.generation, sequence: self.sequence.settled() },
            change: entry.change.clone(),
        };
        link.have = entry.stamp;
        link.in_flight += 1;
        let pending =
            Pending::Write { peer: link.peer, chain: number, sequence: entry.stamp.sequence };
        self.ask(pending, MemberRequest::Write(write), effects);
    }

    /// A question of the link has been answered.
    pub(crate) fn link_answered(&mut self, number: u64, peer: PeerIndex) {
        let chain = self.chains.at_mut(number).expect("a chain outlives its questions");
        chain.link(peer).expect("a link outlives its questions").in_flight -= 1;
    }

    /// A member has a write.
    pub(crate) fn acknowledge(
        &mut self,
        number: u64,
        sequence: u64,
        peer: PeerIndex,
        effects: &mut Vec<Effect>,
    ) {
        self.peers[usize::from(peer)].mark_dirty();
        let chain = self.chains.at_mut(number).expect("its chain is there");
        chain.link(peer).expect("its link is there").wrong_stamps = 0;
        let Some(position) = chain.position(sequence) else { return };
        chain.entries[position].acked.insert(peer);
        self.evaluate(number, position, effects);
        if self.peers[usize::from(peer)].lagging.remove(&sequence) {
            self.lag_ended(peer, sequence, effects);
        }
    }

    /// Ends an entry's request when a quorum has it, and the entry when every member has it.
    fn evaluate(&mut self, number: u64, position: usize, effects: &mut Vec<Effect>) {
        let chain = self.chains.at_mut(number).expect("its chain is there");
        let index = chain.index;
        let entry = &mut chain.entries[position];
        let sequence = entry.stamp.sequence;
        let have = chain.links.iter().filter(|link| entry.acked.contains(link.peer)).count();
        let members = chain.links.len();
        let quorum =
            if members == 1 { 1 } else { self.map.configuration_of(self.lineage, index).quorum() };
        if !entry.answered && have >= quorum {
            entry.answered = true;
            effects.push(Effect::Done { token: entry.token, result: Ok(Answer::Done) });
            let object = self.objects.get_mut(&index).expect("a chain has its object");
            object.last = object.last.max(entry.stamp);
            for link in &chain.links {
                let peer = &mut self.peers[usize::from(link.peer)];
                if entry.acked.contains(link.peer) {
                    object.dirty_epoch = peer.epoch;
                } else {
                    peer.lagging.insert(sequence);
                }
            }
        }
        if entry.answered && have == members && !entry.finished {
            entry.finished = true;
            self.sequence.finish(sequence);
        }
    }

    /// Brings a chain forward after an answer: drops what is finished, lets halted links learn
    /// where they stand, and ends the chain when nothing is left.
    pub(crate) fn settle_chain(&mut self, number: u64, effects: &mut Vec<Effect>) {
        // The answer may have ended the disk, or the whole session.
        let Some(chain) = self.chains.at_mut(number) else { return };
        while let Some(entry) = chain.entries.front()
            && entry.finished
        {
            if !entry.acked.is_empty() {
                chain.base = entry.stamp;
            }
            chain.entries.pop_front();
        }
        if chain.entries.is_empty() {
            if chain.links.iter().all(|link| link.in_flight == 0) {
                self.close_chain(number);
            }
            return;
        }
        if chain.links.iter().all(|link| link.state == LinkState::Flowing) {
            return;
        }
        for link in 0..chain.links.len() {
            self.try_learn(number, link, effects);
        }
    }

    fn close_chain(&mut self, number: u64) {
        let mut chain = self.chains.remove(number).expect("its chain is there");
        let object = self.objects.get_mut(&chain.index).expect("a chain has its object");
        object.chain = None;
        for link in &chain.links {
            let agrees = link.have == object.last;
            assert!(link.state != LinkState::Flowing || agrees, "a chain ends where it was acked");
        }
        if object.last == Stamp::default() {
            // Discarding an empty volume must not fill the table.
            self.objects.remove(&chain.index);
        }
        chain.links.clear();
        if self.spare_chains.len() < 64 {
            self.spare_chains.push(chain);
        }
    }

    /// Asks a halted link's member for its stamp, once nothing is under way.
    fn try_learn(&mut self, number: u64, link: usize, effects: &mut Vec<Effect>) {
        let Some(chain) = self.chains.at(number) else { return };
        let (index, link) = (chain.index, &chain.links[link]);
        let halted = link.state == LinkState::Halted && link.in_flight == 0;
        if !halted || !self.may_learn(chain, link.peer) {
            return;
        }
        let peer = link.peer;
        let link = self.chains.at_mut(number).and_then(|chain| chain.link(peer));
        let link = link.expect("just seen");
        link.state = LinkState::Learning;
        link.in_flight += 1;
        let request = MemberRequest::Stamp {
            lineage: self.lineage,
            key: self.key_at(peer, index),
            generation: self.generation,
        };
        self.ask(Pending::Learn { peer, chain: number }, request, effects);
    }

    /// Whether there is something that this member could be sent now.
    fn may_learn(&self, chain: &Chain, peer: PeerIndex) -> bool {
        let knows = self.peers[usize::from(peer)].layer;
        let next = chain.next_layer(peer).unwrap_or_default();
        !chain.entries.is_empty() && self.is_ready(peer) && knows != LayerId(0) && next <= knows
    }

    /// A member told where the object stands: the rest is sent again.
    pub(crate) fn handle_learned(
        &mut self,
        number: u64,
        peer: PeerIndex,
        have: Stamp,
        effects: &mut Vec<Effect>,
    ) {
        let index = self.chains.at(number).expect("its chain is there").index;
        let limit = Stamp { generation: self.generation, sequence: self.sequence.next() };
        if have >= limit {
            self.peer_lost(peer, format!("it has a write {have:?} that was never sent"));
            return;
        }
        if !self.compare_with_acknowledged(peer, index, have, effects) {
            return;
        }
        let chain = self.chains.at_mut(number).expect("its chain is there");
        let position = chain.links.iter().position(|link| link.peer == peer).expect("its link");
        let link = &mut chain.links[position];
        link.state = LinkState::Flowing;
        link.have = have;
        let has_it = |entry: &Entry| entry.stamp <= have && !entry.acked.contains(peer);
        let had: Vec<u64> = chain
            .entries
            .iter()
            .filter(|entry| has_it(entry))
            .map(|entry| entry.stamp.sequence)
            .collect();
        if chain.links.len() == 1 {
            let object = self.objects.get_mut(&index).expect("a chain has its object");
            object.last = object.last.max(have);
        }
        for sequence in had {
            self.acknowledge(number, sequence, peer, effects);
        }
        let count = self.chains.at(number).expect("its chain is there").entries.len();
        for entry in 0..count {
            let chain = self.chains.at(number).expect("its chain is there");
            let missing = &chain.entries[entry];
            if !missing.finished && !missing.acked.contains(peer) {
                self.send_or_skip(number, position, entry, effects);
            }
        }
        self.settle_chain(number, effects);
    }

    /// A member would not tell where the object stands.
    pub(crate) fn handle_learn_error(
        &mut self,
        number: u64,
        peer: PeerIndex,
        effects: &mut Vec<Effect>,
    ) {
        let chain = self.chains.at_mut(number).expect("its chain is there");
        chain.link(peer).expect("its link is there").state = LinkState::Halted;
        self.back_off(peer);
        self.settle_chain(number, effects);
    }

    /// A member did not take a write.
    pub(crate) fn handle_write_error(
        &mut self,
        number: u64,
        sequence: u64,
        peer: PeerIndex,
        error: MemberError,
        effects: &mut Vec<Effect>,
    ) {
        let chain = self.chains.at_mut(number).expect("its chain is there");
        let link = chain.link(peer).expect("its link is there");
        link.state = LinkState::Halted;
        if matches!(error, MemberError::WrongStamp { .. }) {
            link.wrong_stamps += 1;
            if link.wrong_stamps > WRONG_STAMPS_AT_ONCE {
                self.back_off(peer);
            }
        } else if let Some(refusal) = refusal(&error, self.peers[usize::from(peer)].disk) {
            self.refuse(number, sequence, peer, refusal, effects);
        }
        self.settle_chain(number, effects);
    }

    /// A member refused a write for good. If nobody has it and all refused, its request fails and
    /// it has never been; otherwise some member has it, and this one must take it sooner or later.
    fn refuse(
        &mut self,
        number: u64,
        sequence: u64,
        peer: PeerIndex,
        error: Error,
        effects: &mut Vec<Effect>,
    ) {
        let chain = self.chains.at_mut(number).expect("its chain is there");
        let Some(position) = chain.position(sequence) else { return };
        let entry = &mut chain.entries[position];
        entry.refused.insert(peer);
        let refused = chain.links.iter().all(|link| entry.refused.contains(link.peer));
        if !refused || !entry.acked.is_empty() {
            self.back_off(peer);
            return;
        }
        let entry = chain.entries.remove(position).expect("just seen");
        self.sequence.finish(sequence);
        effects.push(Effect::Done { token: entry.token, result: Err(error) });
    }

    /// Answers of this peer do not come any more.
    pub(crate) fn halt_links(&mut self, peer: PeerIndex) {
        for number in self.chain_numbers() {
            let chain = self.chains.at_mut(number).expect("listed just now");
            if let Some(link) = chain.link(peer) {
                link.in_flight = 0;
                link.state = LinkState::Halted;
            }
            if chain.entries.is_empty() {
                self.close_chain(number);
            }
        }
    }

    /// The peer serves (again): its halted links go on.
    pub(crate) fn restart_links(&mut self, peer: PeerIndex, effects: &mut Vec<Effect>) {
        for number in self.chain_numbers() {
            let chain = self.chains.at(number);
            let links = chain.map_or(0, |chain| chain.links.len());
            for link in 0..links {
                if self.chains.at(number).is_some_and(|chain| chain.links[link].peer == peer) {
                    self.try_learn(number, link, effects);
                }
            }
        }
    }

    /// Gives every chain the links of its partition's present members.
    pub(crate) fn relink_chains(&mut self, effects: &mut Vec<Effect>) {
        for number in self.chain_numbers() {
            let index = self.chains.at(number).expect("listed just now").index;
            let members = self.members_of(index);
            let chain = self.chains.at_mut(number).expect("listed just now");
            let before = chain.links.len();
            chain.links.retain(|link| members.contains(link.peer));
            let mut changed = chain.links.len() != before;
            for peer in members.iter() {
                if chain.link(peer).is_none() {
                    changed = true;
                    let state = LinkState::Halted;
                    let have = Stamp::default();
                    chain.links.push(Link { peer, state, have, in_flight: 0, wrong_stamps: 0 });
                }
            }
            if changed {
                for entry in 0..chain.entries.len() {
                    self.evaluate(number, entry, effects);
                }
                self.settle_chain(number, effects);
            }
        }
    }

    /// Drops what is known of idle objects of this peer that are stable: it is asked for again.
    pub(crate) fn forget_idle_objects(&mut self, peer: PeerIndex, stable: u64) {
        let mut objects = std::mem::take(&mut self.objects);
        objects.retain(|index, object| {
            object.chain.is_some()
                || object.dirty_epoch > stable
                || !self.members_of(*index).contains(peer)
        });
        self.objects = objects;
    }

    /// Below which stamp a member of this object must not be.
    pub(crate) fn floor_of(&self, index: u32, alone: bool) -> Option<Stamp> {
        let object = self.objects.get(&index)?;
        match object.chain.and_then(|number| self.chains.at(number)) {
            Some(chain) if !alone => Some(chain.base),
            _ => Some(object.last),
        }
    }

    fn chain_numbers(&self) -> Vec<u64> {
        self.chains.iter().map(|(number, _)| number).collect()
    }

    pub(crate) fn check_chains(&self) {
        let mut asked: BTreeMap<(u64, PeerIndex), usize> = BTreeMap::new();
        for (_, pending) in self.tokens.iter() {
            if let Pending::Write { chain, peer, .. } | Pending::Learn { chain, peer } = pending {
                *asked.entry((*chain, *peer)).or_default() += 1;
            }
        }
        let mut unfinished = 0;
        for (number, chain) in self.chains.iter() {
            assert!(!chain.entries.is_empty(), "a chain without changes");
            assert_eq!(self.objects.get(&chain.index).and_then(|o| o.chain), Some(number));
            let stamps = chain.entries.iter().map(|entry| entry.stamp);
            assert!(stamps.is_sorted(), "changes keep their order");
            unfinished += chain.entries.iter().filter(|entry| !entry.finished).count();
            for link in &chain.links {
                let asked = asked.get(&(number, link.peer)).copied().unwrap_or(0);
                assert_eq!(asked, link.in_flight, "questions of a link");
                let state = &self.peers[usize::from(link.peer)].state;
                assert!(link.state == LinkState::Halted || *state == PeerState::Up);
                let idle = link.state == LinkState::Halted && link.in_flight == 0;
                assert!(!idle || !self.may_learn(chain, link.peer), "a link was forgotten");
            }
        }
        assert_eq!(unfinished, self.sequence.outstanding(), "changes under way");
        let chained = self.objects.values().filter(|object| object.chain.is_some()).count();
        assert_eq!(chained, self.chains.len(), "objects with a chain");
    }
}

/// What a member's error means for the request, if the member will never take the write.
fn refusal(error: &MemberError, disk: DiskId) -> Option<Error> {
    match error {
        MemberError::NoSpace => Some(Error::NoSpace),
        MemberError::Corrupt { key, block } => Some(Error::Corrupt { key: *key, block: *block }),
        MemberError::Invalid(why) => Some(Error::Io(format!(
            "disk {disk} refused a write ({why}); this is a bug, report it"
        ))),
        MemberError::Fenced { .. }
        | MemberError::WrongStamp { .. }
        | MemberError::WrongConfiguration { .. }
        | MemberError::RefusedMore { .. }
        | MemberError::Superseded { .. }
        | MemberError::NotStaged { .. }
        | MemberError::Busy
        | MemberError::Retired => None,
    }
}
