//! Writes: one chain per object, in which each write names the one before it, sent to every member
//! that is not behind and acknowledged when a quorum has it.
//!
//! A link is one member's side of a chain. While it flows, writes are sent as they come. When a
//! write is refused for whatever reason, those sent after it name a stamp that the member never
//! had, so they come back too: the link halts, waits until all answers are in, asks for the stamp
//! that the member has, takes everything up to it as done and sends the rest again, in order.
//!
//! When the members of the partition change, all links begin anew, after one of the new members
//! was asked what is there: see `verify`.

use crate::coordinator::{Coordinator, Pending, is_only_absent};
use crate::event::{Answer, Effect, Error};
use crate::peer::{PeerIndex, PeerSet, PeerState};
use proto::limits::SESSION_STAMPS_MAX;
use proto::{
    BlockRange, Change, DiskId, LayerId, MemberError, MemberRequest, Mistake, ObjectKey, Stamp,
    Write, planted,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What is known of one object.
#[derive(Debug)]
pub(crate) struct Object {
    /// The last write acknowledged, or what a member said it has.
    pub(crate) last: Stamp,
    /// The number of the first flush that covers it; see `Coordinator::flushed`.
    pub(crate) dirty: u64,
    /// Its chain, if changes are under way.
    pub(crate) chain: Option<u64>,
}

/// The changes of one object that are not on every member yet, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    pub(crate) index: u32,
    /// The stamp before the first entry, which every member has, once that is known.
    base: Option<Stamp>,
    entries: VecDeque<Entry>,
    /// One for each current member that is not behind.
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
    /// Some member was sent it.
    is_sent: bool,
    /// Members that were sent it and have not said that they do not have it, also such as fell
    /// behind since.
    may_have: PeerSet,
    acked: PeerSet,
    /// Members that refused it for good when they were sent it last.
    refused: PeerSet,
    /// A quorum has it and the request has ended.
    answered: bool,
    /// Every link's member has it.
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

impl Link {
    fn halted(peer: PeerIndex) -> Link {
        let (state, have) = (LinkState::Halted, Stamp::default());
        Link { peer, state, have, in_flight: 0, wrong_stamps: 0 }
    }
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

    /// The layer below this one of which the peer, a member, does not have some change.
    pub(crate) fn missing_below(&self, layer: LayerId, peer: PeerIndex) -> Option<LayerId> {
        let is_member = self.links.iter().any(|link| link.peer == peer);
        self.next_layer(peer).filter(|next| is_member && *next < layer)
    }

    /// Whether the peer has everything that was acknowledged.
    pub(crate) fn has_answered(&self, peer: PeerIndex) -> bool {
        let mut answered = self.entries.iter().filter(|entry| entry.answered && !entry.finished);
        answered.all(|entry| entry.acked.contains(peer))
    }

    fn position(&self, sequence: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&sequence, |entry| entry.stamp.sequence).ok()
    }

    /// Whether this stamp is one that a member may have.
    fn is_in_history(&self, stamp: Stamp) -> bool {
        self.base == Some(stamp) || self.entries.iter().any(|entry| entry.stamp == stamp)
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
            is_sent: false,
            may_have: PeerSet::default(),
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
        self.flush_by_itself(effects);
    }

    /// Starts an object's chain: flowing where the stamp is known and the member serves.
    fn open_chain(&mut self, index: u32, last: Option<Stamp>) -> u64 {
        if last.is_none() {
            self.make_room();
        }
        let last = last.filter(|_| !self.checks.contains(index));
        let mut chain = self.spare_chains.pop().unwrap_or_default();
        chain.index = index;
        chain.base = last;
        for peer in self.partition_at(index).whole.iter() {
            let mut link = Link::halted(peer);
            if let Some(last) = last {
                link.have = last;
                if self.peers[usize::from(peer)].is_up() {
                    link.state = LinkState::Flowing;
                }
            }
            chain.links.push(link);
        }
        let number = self.chains.insert(chain);
        let unknown = Object { last: Stamp::default(), dirty: 0, chain: None };
        self.objects.entry(index).or_insert(unknown).chain = Some(number);
        number
    }

    /// Keeps the table of stamps under its limit.
    fn make_room(&mut self) {
        if self.objects.len() < SESSION_STAMPS_MAX {
            return;
        }
        let (flushed, checks) = (self.flushed, &self.checks);
        let is_needed = |index: u32, object: &Object| {
            object.chain.is_some() || object.dirty > flushed || checks.contains(index)
        };
        self.objects.retain(|index, object| is_needed(*index, object));
        if self.objects.len() < SESSION_STAMPS_MAX / 4 * 3 {
            return;
        }
        // What was not flushed cannot be compared any more if the members change before the next
        // flush: with one member that counts as a loss then.
        let checks = &self.checks;
        self.objects.retain(|index, object| object.chain.is_some() || checks.contains(*index));
        self.forgotten = self.flush_number;
    }

    /// Sends one entry to one member, if its link flows. A discard of what was never written is
    /// done without a word, so that discarding an empty volume leaves no trace.
    fn send_or_skip(&mut self, number: u64, link: usize, entry: usize, effects: &mut Vec<Effect>) {
        let chain = self.chains.at_mut(number).expect("its chain is there");
        let index = chain.index;
        let is_first_link = link == 0;
        let link = &mut chain.links[link];
        if link.state != LinkState::Flowing || chain.entries[entry].finished {
            return;
        }
        if chain.entries[entry].layer > self.peers[usize::from(link.peer)].layer {
            // It goes on when the disk has opened the layer.
            link.state = LinkState::Halted;
            return;
        }
        let is_empty = link.have == Stamp::default() && !chain.entries[entry].is_sent;
        let is_first = chain.entries.iter().take(entry).all(|earlier| earlier.finished);
        let entry = &mut chain.entries[entry];
        if is_empty && is_first && is_only_absent(&entry.change) {
            entry.answered = true;
            entry.finished = true;
            self.sequence.finish(entry.stamp.sequence);
            effects.push(Effect::Done { token: entry.token, result: Ok(Answer::Done) });
            return;
        }
        let (previous, peer) = (link.have, link.peer);
        link.have = entry.stamp;
        link.in_flight += 1;
        entry.is_sent = true;
        entry.may_have.insert(peer);
        entry.refused.remove(peer);
        let (stamp, layer, mut change) = (entry.stamp, entry.layer, entry.change.clone());
        if let Change::Absent { blocks } = &mut change
            && !is_first_link
            && planted(Mistake::DiscardNotReplicated)
        {
            *blocks = BlockRange::new(blocks.first(), 1).expect("a block of an object");
        }
        let write = Write {
            lineage: self.lineage,
            key: ObjectKey { layer, index },
            under: self.partition_at(index).under,
            previous,
            stamp,
            settled: self.settled,
            change,
        };
        let (sequence, sent) = (stamp.sequence, self.clock);
        let pending = Pending::Write { peer, chain: number, sequence, sent };
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
        if self.peers[usize::from(peer)].end_lag(sequence) {
            self.lag_ended(peer, sequence, effects);
        }
    }

    /// Ends an entry's request when a quorum has it, and the entry when every link's member has it.
    fn evaluate(&mut self, number: u64, position: usize, effects: &mut Vec<Effect>) {
        let chain = self.chains.at(number).expect("its chain is there");
        let index = chain.index;
        let mut quorum = self.partition_at(index).quorum();
        if quorum > 1 && planted(Mistake::AckBelowQuorum) {
            quorum -= 1;
        }
        let chain = self.chains.at_mut(number).expect("its chain is there");
        let entry = &mut chain.entries[position];
        let sequence = entry.stamp.sequence;
        let have = chain.links.iter().filter(|link| entry.acked.contains(link.peer)).count();
        if !entry.answered && have >= quorum {
            entry.answered = true;
            effects.push(Effect::Done { token: entry.token, result: Ok(Answer::Done) });
            let object = self.objects.get_mut(&index).expect("a chain has its object");
            object.last = object.last.max(entry.stamp);
            object.dirty = self.flush_number;
            let bytes = match &entry.change {
                Change::Data { payload, .. } => payload.len(),
                Change::Zero { .. } | Change::Absent { .. } => 0,
            };
            for link in &chain.links {
                if !entry.acked.contains(link.peer) {
                    let peer = &mut self.peers[usize::from(link.peer)];
                    peer.begin_lag(sequence, bytes);
                    if peer.lags_too_much() {
                        self.overdue.insert(link.peer);
                    }
                }
            }
        }
        if entry.answered && have == chain.links.len() && !entry.finished {
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
            if entry.is_sent {
                chain.base = Some(entry.stamp);
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
        if object.last == Stamp::default() && !self.checks.contains(chain.index) {
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
        let Some(next) = chain.next_layer(peer) else { return false };
        self.is_ready(peer)
            && knows != LayerId(0)
            && next <= knows
            && !self.checks.contains(chain.index)
            && !self.has_refused(peer, chain.index)
    }

    /// A member told where the object stands: the rest is sent again.
    pub(crate) fn handle_learned(
        &mut self,
        number: u64,
        peer: PeerIndex,
        have: Stamp,
        effects: &mut Vec<Effect>,
    ) {
        let chain = self.chains.at_mut(number).expect("its chain is there");
        let index = chain.index;
        chain.link(peer).expect("its link is there").state = LinkState::Halted;
        let is_known = chain.base.is_some();
        let fits = chain.is_in_history(have);
        let is_lost = |entry: &Entry| entry.stamp > have && entry.acked.contains(peer);
        let has_lost = chain.entries.iter().any(is_lost);
        let is_sole = self.partition_at(index).members.len() == 1;
        if is_sole && (!is_known || !fits) {
            // What the only member has is what there is.
            if self.accept(peer, index, have, effects) {
                self.go_on(index, have, effects);
            }
            return;
        }
        let limit = Stamp { generation: self.generation, sequence: self.sequence.next() };
        if have >= limit {
            let reason = format!("it has a write {have:?} that was never sent");
            return self.peer_lost(peer, reason, effects);
        }
        if has_lost && !is_sole {
            // It was opened anew meanwhile. What it had acknowledged is not sent to it again, so
            // that a later write would go over what it lacks.
            let reason = "it has lost writes that it had acknowledged".to_string();
            return self.fall_behind(peer, reason, effects);
        }
        if is_known && !fits {
            let reason = "it misses writes that only its peers have".to_string();
            return self.fall_behind(peer, reason, effects);
        }
        if !is_known {
            let chain = self.chains.at_mut(number).expect("its chain is there");
            chain.base = Some(have);
            let object = self.objects.get_mut(&index).expect("a chain has its object");
            object.last = object.last.max(have);
        }
        self.flow_from(number, peer, have, effects);
        self.settle_chain(number, effects);
    }

    /// The member has everything up to a stamp: it gets the rest.
    fn flow_from(&mut self, number: u64, peer: PeerIndex, have: Stamp, effects: &mut Vec<Effect>) {
        let Some(chain) = self.chains.at_mut(number) else { return };
        let Some(position) = chain.links.iter().position(|link| link.peer == peer) else { return };
        let link = &mut chain.links[position];
        link.state = LinkState::Flowing;
        link.have = have;
        let has_it = |entry: &&Entry| entry.stamp <= have && !entry.acked.contains(peer);
        let had: Vec<u64> =
            chain.entries.iter().filter(has_it).map(|entry| entry.stamp.sequence).collect();
        for sequence in had {
            self.acknowledge(number, sequence, peer, effects);
        }
        let count = self.chains.at(number).expect("its chain is there").entries.len();
        for entry in 0..count {
            let chain = self.chains.at(number).expect("its chain is there");
            if !chain.entries[entry].acked.contains(peer) {
                self.send_or_skip(number, position, entry, effects);
            }
        }
    }

    /// What there is of the object is known: all its members have this.
    pub(crate) fn go_on(&mut self, index: u32, have: Stamp, effects: &mut Vec<Effect>) {
        let Some(number) = self.objects.get(&index).and_then(|object| object.chain) else { return };
        let chain = self.chains.at_mut(number).expect("its chain is there");
        chain.base = Some(have);
        // Whoever does not serve just now learns for itself later, but has it.
        let members: Vec<PeerIndex> = chain.links.iter().map(|link| link.peer).collect();
        let had = chain.entries.iter().filter(|entry| entry.stamp <= have);
        let had: Vec<u64> = had.map(|entry| entry.stamp.sequence).collect();
        for entry in chain.entries.iter_mut().filter(|entry| entry.stamp <= have) {
            entry.is_sent = true;
        }
        for sequence in had {
            for &peer in &members {
                self.acknowledge(number, sequence, peer, effects);
            }
        }
        for &peer in &members {
            if self.is_ready(peer) {
                self.flow_from(number, peer, have, effects);
            }
        }
        self.settle_chain(number, effects);
    }

    /// Acknowledged writes of the object are lost: those that are in memory are forgotten, what was
    /// in flight comes again as new writes.
    pub(crate) fn renew_chain(&mut self, index: u32, have: Stamp) {
        let Some(number) = self.objects.get(&index).and_then(|object| object.chain) else { return };
        let chain = self.chains.at_mut(number).expect("its chain is there");
        let links: Vec<PeerIndex> = chain.links.iter().map(|link| link.peer).collect();
        for entry in std::mem::take(&mut chain.entries) {
            if entry.stamp <= have {
                chain.entries.push_back(entry);
                continue;
            }
            for peer in &links {
                self.peers[usize::from(*peer)].end_lag(entry.stamp.sequence);
            }
            if !entry.finished {
                self.sequence.finish(entry.stamp.sequence);
            }
            if entry.answered {
                continue;
            }
            let stamp = match planted(Mistake::StampKeptAfterLoss) {
                false => Stamp { generation: self.generation, sequence: self.sequence.issue() },
                true => entry.stamp,
            };
            chain.entries.push_back(Entry {
                stamp,
                is_sent: false,
                may_have: PeerSet::default(),
                acked: PeerSet::default(),
                refused: PeerSet::default(),
                ..entry
            });
        }
        let is_empty = chain.entries.is_empty();
        if is_empty {
            chain.links.iter_mut().for_each(|link| link.state = LinkState::Halted);
        }
    }

    /// A member would not tell where the object stands.
    pub(crate) fn handle_learn_error(
        &mut self,
        number: u64,
        peer: PeerIndex,
        error: &MemberError,
        effects: &mut Vec<Effect>,
    ) {
        let chain = self.chains.at_mut(number).expect("its chain is there");
        chain.link(peer).expect("its link is there").state = LinkState::Halted;
        match error {
            MemberError::Invalid(why) => self.begin_ladder(peer, why, effects),
            _ => self.back_off(peer),
        }
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
        if let Some(position) = chain.position(sequence) {
            let entry = &mut chain.entries[position];
            let has_it = matches!(error, MemberError::WrongStamp { have } if have >= entry.stamp);
            if !has_it {
                entry.may_have.remove(peer);
            }
        }
        let link = chain.link(peer).expect("its link is there");
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

    /// A member refused a write for good. If all that are written to refused it when they were
    /// sent it last, and no other was sent it, its request fails and it has never been; otherwise
    /// some member may have it, or may be taking it just now, and this one must take it sooner or
    /// later.
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
        // Members that are behind have no link.
        let is_refused = chain.links.iter().all(|link| entry.refused.contains(link.peer));
        if !is_refused || !entry.acked.is_empty() || !entry.may_have.is_empty() {
            let is_damaged = matches!(error, Error::Corrupt { .. });
            if is_damaged && !entry.acked.is_empty() {
                // It cannot take it before its map is mended, and that cannot be mended before it
                // has what its peers have: a change of members does both.
                let reason = "a page of a map on it is damaged".to_string();
                return self.fall_behind(peer, reason, effects);
            }
            self.back_off(peer);
            return;
        }
        let entry = chain.entries.remove(position).expect("just seen");
        self.sequence.finish(sequence);
        effects.push(Effect::Done { token: entry.token, result: Err(error) });
    }

    /// Answers of this peer do not come any more: its questions are forgotten already.
    pub(crate) fn halt_links(&mut self, peer: PeerIndex, effects: &mut Vec<Effect>) {
        for number in self.chain_numbers() {
            let chain = self.chains.at_mut(number).expect("listed just now");
            if let Some(link) = chain.link(peer) {
                link.in_flight = 0;
                link.state = LinkState::Halted;
            }
            if chain.entries.is_empty() {
                self.settle_chain(number, effects);
            }
        }
    }

    /// The peer is behind: chains go on without it, where it is not the only member.
    pub(crate) fn drop_links(&mut self, peer: PeerIndex, effects: &mut Vec<Effect>) {
        let mut dropped = BTreeSet::new();
        for number in self.chain_numbers() {
            let index = self.chains.at(number).expect("listed just now").index;
            if self.partition_at(index).whole.contains(peer) {
                continue;
            }
            let chain = self.chains.at_mut(number).expect("listed just now");
            let before = chain.links.len();
            chain.links.retain(|link| link.peer != peer);
            if chain.links.len() < before {
                dropped.insert(number);
                for entry in &chain.entries {
                    self.peers[usize::from(peer)].end_lag(entry.stamp.sequence);
                }
            }
        }
        let is_gone = |pending: &Pending| pending.peer() == peer;
        self.forget_link_questions(|pending, chain| is_gone(pending) && dropped.contains(&chain));
        for number in dropped {
            let count = self.chains.at(number).map_or(0, |chain| chain.entries.len());
            for entry in 0..count {
                self.evaluate(number, entry, effects);
            }
            self.settle_chain(number, effects);
        }
    }

    fn forget_link_questions(&mut self, is_gone: impl Fn(&Pending, u64) -> bool) {
        let of = |(token, pending): (u64, &Pending)| match pending {
            Pending::Write { chain, .. } | Pending::Learn { chain, .. }
                if is_gone(pending, *chain) =>
            {
                Some(token)
            }
            _ => None,
        };
        let gone: Vec<u64> = self.tokens.iter().filter_map(of).collect();
        for token in gone {
            self.tokens.remove(token);
        }
    }

    /// The peer serves (again): its halted links go on.
    pub(crate) fn restart_links(&mut self, peer: PeerIndex, effects: &mut Vec<Effect>) {
        for number in self.chain_numbers() {
            let chain = self.chains.at(number);
            let links = chain.map_or(0, |chain| chain.links.len());
            for link in 0..links {
                let is_there =
                    |chain: &Chain| chain.links.get(link).is_some_and(|l| l.peer == peer);
                if self.chains.at(number).is_some_and(is_there) {
                    self.try_learn(number, link, effects);
                }
            }
        }
    }

    /// The members of some partitions are others: what is under way there begins anew, once it is
    /// known what is there.
    pub(crate) fn reset_objects(&mut self, is_changed: impl Fn(&Coordinator, u32) -> bool) {
        let flushed = self.flushed;
        let mut reset = BTreeSet::new();
        let mut checked = Vec::new();
        for (&index, object) in &self.objects {
            if is_changed(self, index) {
                reset.extend(object.chain);
                if object.chain.is_some() || object.dirty > flushed || self.checks.contains(index) {
                    checked.push(index);
                }
            }
        }
        // What is idle and flushed is asked for again before it is changed.
        let idle = |index: &u32, object: &Object| {
            object.chain.is_none() && checked.binary_search(index).is_err()
        };
        let forgotten = self.objects.iter().filter(|(index, object)| idle(index, object));
        let forgotten: Vec<u32> = forgotten.map(|(index, _)| *index).collect();
        for index in forgotten {
            if is_changed(self, index) {
                self.objects.remove(&index);
            }
        }
        self.forget_link_questions(|_, chain| reset.contains(&chain));
        for &number in &reset {
            let index = self.chains.at(number).expect("an object has its chain").index;
            let whole = self.partition_at(index).whole;
            let chain = self.chains.at_mut(number).expect("an object has its chain");
            chain.base = None;
            for entry in &mut chain.entries {
                for link in &chain.links {
                    self.peers[usize::from(link.peer)].end_lag(entry.stamp.sequence);
                }
                // Who has it tells what is there now; the former configuration is refused.
                entry.may_have = PeerSet::default();
                entry.acked = PeerSet::default();
                entry.refused = PeerSet::default();
            }
            chain.links = whole.iter().map(Link::halted).collect();
        }
        let again: BTreeSet<u32> = checked.iter().copied().collect();
        self.forget_checks(|index| again.contains(&index));
        checked.into_iter().for_each(|index| self.begin_check(index));
        for number in reset {
            let chain = self.chains.at(number).expect("an object has its chain");
            if chain.entries.is_empty() {
                self.close_chain(number);
            }
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
        let mut lagging: BTreeMap<PeerIndex, BTreeSet<u64>> = BTreeMap::new();
        for (number, chain) in self.chains.iter() {
            // After the last one was refused, a link may still wait for an answer.
            let is_asked = chain.links.iter().any(|link| link.in_flight > 0);
            assert!(!chain.entries.is_empty() || is_asked, "a chain without changes");
            assert_eq!(self.objects.get(&chain.index).and_then(|o| o.chain), Some(number));
            let stamps = chain.entries.iter().map(|entry| entry.stamp);
            assert!(stamps.is_sorted(), "changes keep their order");
            unfinished += chain.entries.iter().filter(|entry| !entry.finished).count();
            let whole = self.partition_at(chain.index).whole;
            let linked: PeerSet = chain.links.iter().map(|link| link.peer).collect();
            assert!(linked.len() == whole.len() && linked.iter().all(|peer| whole.contains(peer)));
            for link in &chain.links {
                let asked = asked.remove(&(number, link.peer)).unwrap_or(0);
                assert_eq!(asked, link.in_flight, "questions of a link");
                let state = &self.peers[usize::from(link.peer)].state;
                assert!(link.state == LinkState::Halted || *state == PeerState::Up);
                let idle = link.state == LinkState::Halted && link.in_flight == 0;
                assert!(!idle || !self.may_learn(chain, link.peer), "a link was forgotten");
                let lags = |entry: &&Entry| entry.answered && !entry.acked.contains(link.peer);
                if !self.checks.contains(chain.index) {
                    let lags = chain.entries.iter().filter(|entry| !entry.finished).filter(lags);
                    let lags = lags.map(|entry| entry.stamp.sequence);
                    lagging.entry(link.peer).or_default().extend(lags);
                }
            }
        }
        assert!(asked.is_empty(), "questions of no link");
        for (index, peer) in self.peers.iter().enumerate() {
            let lags = lagging.remove(&(index as PeerIndex)).unwrap_or_default();
            assert!(peer.lagging.keys().copied().eq(lags), "what disk {} lacks", peer.disk);
            assert_eq!(peer.lagging.values().sum::<usize>(), peer.lagging_bytes);
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
