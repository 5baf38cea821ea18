//! Reads: from one member that has everything acknowledged of the object, a near one if there is
//! one, another one if its copy is damaged or it does not answer.
//!
//! The answer is shown when a write quorum of the partition's members has confirmed after the read
//! came: see `confirm`. Sealed content needs no confirmation.

use crate::coordinator::{Coordinator, Pending};
use crate::event::{Answer, Effect, Error, Source};
use crate::peer::{PeerIndex, PeerSet};
use proto::limits::READ_HEDGE_MS;
use proto::{
    BLOCK_SIZE, BlockRange, DiskId, Duration, Generation, LayerId, MemberError, MemberReply,
    MemberRequest, Mistake, ObjectKey, PartitionId, Stamp, Time, planted,
};
use std::collections::{BTreeMap, BTreeSet};

/// What is wanted of the blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Want {
    Content,
    /// Only the kind of content.
    Kind,
    /// What is otherwise than in this layer.
    Difference(LayerId),
}

/// A read, of content or of its kind.
#[derive(Debug)]
pub(crate) struct Read {
    /// Of the request.
    pub(crate) token: u64,
    source: Source,
    index: u32,
    blocks: BlockRange,
    want: Want,
    /// The count when it came; see `Coordinator::clock`.
    came: u64,
    /// Members that were asked and have not answered.
    asked: PeerSet,
    /// Members that could not bring it, and why the last of them could not.
    tried: PeerSet,
    error: Option<Error>,
    /// It waits for a disk that can be asked.
    is_parked: bool,
    found: Option<Found>,
}

/// What a member brought, until it is confirmed.
#[derive(Debug)]
struct Found {
    answer: Answer,
    peer: PeerIndex,
    /// What the question was sent after.
    sent: u64,
    /// The member must prove, by the answer to a question of later than this, that it is the
    /// opening of the disk that is listed: what it has of the object is not sure to be stable.
    proof: Option<u64>,
}

impl Read {
    pub(crate) fn index(&self) -> u32 {
        self.index
    }
}

impl Coordinator {
    pub(crate) fn begin_read(
        &mut self,
        token: u64,
        source: Source,
        index: u32,
        blocks: BlockRange,
        want: Want,
        effects: &mut Vec<Effect>,
    ) {
        self.clock += 1;
        let read = Read {
            token,
            source,
            index,
            blocks,
            want,
            came: self.clock,
            asked: PeerSet::default(),
            tried: PeerSet::default(),
            error: None,
            is_parked: false,
            found: None,
        };
        let number = self.reads.insert(read);
        self.try_read(number, effects);
    }

    /// Whether the answer must be confirmed, and its configuration named.
    fn is_guarded(&self, source: Source) -> bool {
        matches!(source, Source::Own) && self.generation != Generation::SEALED
    }

    /// Who could be asked, the preferred first.
    fn readers(&self, source: Source, index: u32) -> Vec<PeerIndex> {
        let members: Vec<PeerIndex> = match source {
            Source::Own if self.is_guarded(source) => {
                let whole = self.partition_at(index).whole.iter();
                whole.filter(|peer| !self.choices.differs(*peer, index)).collect()
            }
            // Sealed, as an origin is.
            Source::Own => self.partition_at(index).members.iter().collect(),
            // A layer is sealed when all of it is stable on every current member, and who becomes
            // one later gets it by a copy. So any member has it, one that is behind in the head
            // too, and one that lost power and was opened anew keeps it: nobody asks which opening
            // of the disk answers.
            Source::Origin { lineage, .. } => {
                let configuration = self.map.configuration_of(lineage, index);
                let members = configuration.current.iter();
                let opening = |m: &cluster::Member| (m.disk, m.incarnation);
                members.filter_map(|m| self.by_opening.get(&opening(m))).copied().collect()
            }
        };
        let is_near = |peer: &PeerIndex| self.near.contains(&self.peers[usize::from(*peer)].disk);
        let (mut first, mut others): (Vec<PeerIndex>, Vec<PeerIndex>) =
            members.into_iter().partition(is_near);
        // All disks have their share of what nobody is near to.
        if !others.is_empty() {
            let share = index as usize % others.len();
            others.rotate_left(share);
        }
        first.append(&mut others);
        first
    }

    /// Whether a peer may be asked for what it has of an object now.
    fn may_read(&self, source: Source, index: u32, peer: PeerIndex) -> bool {
        let state = &self.peers[usize::from(peer)];
        match source {
            Source::Own if self.is_guarded(source) => {
                let chain = self.objects.get(&index).and_then(|object| object.chain);
                let chain = chain.and_then(|number| self.chains.at(number));
                self.is_ready(peer)
                    && state.knows_a_layer()
                    && !self.checks.contains(index)
                    && chain.is_none_or(|chain| chain.has_answered(peer))
                    && (!self.chooses(index) || self.choices.holds(peer, index))
                    && !self.has_refused(peer, index)
            }
            Source::Own => self.is_ready(peer) && state.knows_a_layer(),
            // Sealed and stable: what any of them has of it is all of it.
            Source::Origin { .. } => self.is_ready(peer),
        }
    }

    /// Asks the next member, or lets the read wait for one, or fails it when all were asked.
    fn try_read(&mut self, number: u64, effects: &mut Vec<Effect>) {
        let Some(read) = self.reads.at(number) else { return };
        let (source, index, tried, asked) = (read.source, read.index, read.tried, read.asked);
        if self.is_guarded(source) && self.chooses(index) {
            self.pump_choice(index, effects);
        }
        let readers = self.readers(source, index);
        let is_free = |peer: &&PeerIndex| !tried.contains(**peer) && !asked.contains(**peer);
        let mut free = readers.iter().filter(is_free);
        let Some(&peer) = free.find(|peer| self.may_read(source, index, **peer)) else {
            let is_hopeless = !tried.is_empty() && readers.iter().all(|peer| tried.contains(*peer));
            let read = self.reads.at_mut(number).expect("just seen");
            if is_hopeless {
                let read = self.reads.remove(number).expect("just seen");
                let error = read.error.expect("whoever was tried gave an error");
                effects.push(Effect::Done { token: read.token, result: Err(error) });
            } else if asked.is_empty() && !read.is_parked {
                read.is_parked = true;
                self.parked.push_back(number);
            }
            return;
        };
        self.ask_read(number, peer, effects);
        if readers.len() > 1 {
            let hedge_at = self.now + Duration::from_millis(READ_HEDGE_MS);
            self.hedges.push_back((hedge_at, number));
        }
        if self.is_guarded(source) {
            let members = self.partition_at(index).members;
            for other in members.iter().filter(|other| members.len() > 1 && *other != peer) {
                self.want_confirmation(other, effects);
            }
        }
    }

    fn ask_read(&mut self, number: u64, peer: PeerIndex, effects: &mut Vec<Effect>) {
        let read = self.reads.at_mut(number).expect("a read is there until it ends");
        read.asked.insert(peer);
        let &mut Read { source, index, blocks, want, .. } = read;
        let (lineage, key, generation) = match source {
            Source::Own => (self.lineage, self.key_at(peer, index), self.generation),
            Source::Origin { lineage, layer } => {
                (lineage, ObjectKey { layer, index }, Generation::SEALED)
            }
        };
        let under = self.is_guarded(source).then(|| self.partition_at(index).under);
        let request = match want {
            Want::Content => MemberRequest::Read { lineage, key, generation, under, blocks },
            Want::Kind => MemberRequest::Map { lineage, key, generation, under, blocks },
            Want::Difference(base) => {
                MemberRequest::Difference { lineage, key, generation, under, base, blocks }
            }
        };
        let sent = self.clock;
        self.ask(Pending::Read { peer, read: number, sent }, request, effects);
    }

    /// Reads that wait are tried again.
    pub(crate) fn retry_reads(&mut self, effects: &mut Vec<Effect>) {
        for number in std::mem::take(&mut self.parked) {
            if let Some(read) = self.reads.at_mut(number) {
                read.is_parked = false;
                self.try_read(number, effects);
            }
        }
    }

    /// The answer of this member does not come: the read is parked if it waits for nobody else.
    pub(crate) fn read_unanswered(&mut self, number: u64, peer: PeerIndex) {
        let Some(read) = self.reads.at_mut(number) else { return };
        read.asked.remove(peer);
        if read.asked.is_empty() && !read.is_parked && read.found.is_none() {
            read.is_parked = true;
            self.parked.push_back(number);
        }
    }

    /// Nobody knows any more which opening of this disk has answered: what it brought and has not
    /// proved is asked for again, perhaps of another.
    pub(crate) fn drop_unproved(&mut self, index: PeerIndex) {
        let proved = self.peers[usize::from(index)].proved;
        for number in self.found.iter().copied().collect::<Vec<u64>>() {
            let read = self.reads.at_mut(number).expect("what was found waits for its proof");
            let is_of = |found: &Found| found.peer == index;
            let is_unproved = |found: &Found| found.proof.is_some_and(|after| proved < after);
            if read.found.as_ref().is_none_or(|found| !is_of(found) || !is_unproved(found)) {
                continue;
            }
            read.found = None;
            self.found.remove(&number);
            if read.asked.is_empty() && !read.is_parked {
                read.is_parked = true;
                self.parked.push_back(number);
            }
        }
    }

    /// The objects of reads that wait for somebody to have what this session shows.
    pub(crate) fn waiting_objects(&self) -> impl Iterator<Item = u32> {
        let parked = self.parked.iter().filter_map(|number| self.reads.at(*number));
        let guarded = parked.filter(|read| self.is_guarded(read.source));
        guarded.map(|read| read.index).filter(|index| self.chooses(*index))
    }

    /// When the oldest read that waits long enough is asked of another disk.
    pub(crate) fn hedge_at(&self) -> Option<Time> {
        self.hedges.front().map(|(at, _)| *at)
    }

    /// Asks other disks for what was not answered for long.
    pub(crate) fn hedge_reads(&mut self, effects: &mut Vec<Effect>) {
        while let Some(&(at, number)) = self.hedges.front()
            && at <= self.now
        {
            self.hedges.pop_front();
            let waits = |read: &Read| !read.is_parked && read.found.is_none();
            if self.reads.at(number).is_some_and(waits) {
                self.try_read(number, effects);
            }
        }
        // What has ended need not wake anybody.
        while let Some((_, number)) = self.hedges.front()
            && self.reads.at(*number).is_none()
        {
            self.hedges.pop_front();
        }
    }

    /// A member brings something: it is checked before it is believed.
    pub(crate) fn handle_content(
        &mut self,
        peer: PeerIndex,
        number: u64,
        sent: u64,
        reply: MemberReply,
        effects: &mut Vec<Effect>,
    ) {
        let Some(read) = self.reads.at_mut(number) else { return };
        read.asked.remove(peer);
        let blocks = read.blocks;
        let answer = match (reply, read.want) {
            (MemberReply::Data { content, absent }, Want::Content) => {
                let whole = content
                    .iter()
                    .all(|payload| !payload.is_empty() && payload.len().is_multiple_of(BLOCK_SIZE));
                let bytes: usize = content.iter().map(|payload| payload.len()).sum();
                let makes_sense = whole && bytes == blocks.bytes() && lie_in(&absent, blocks);
                makes_sense.then_some(Answer::Data { content, absent })
            }
            (MemberReply::Map(runs), Want::Kind) => {
                covers(&runs, blocks).then_some(Answer::Map(runs))
            }
            (MemberReply::Difference(runs), Want::Difference(_)) => {
                covers(&runs, blocks).then_some(Answer::Difference(runs))
            }
            _ => None,
        };
        let Some(answer) = answer else {
            if read.asked.is_empty() && !read.is_parked && read.found.is_none() {
                read.is_parked = true;
                self.parked.push_back(number);
            }
            return self.handle_nonsense(peer, effects);
        };
        if read.found.is_some() {
            return;
        }
        let (source, index) = (read.source, read.index);
        let is_guarded = self.is_guarded(source);
        if is_guarded {
            self.note_proof(peer, index, sent, effects);
        }
        let proof = is_guarded && !self.is_stable_on(peer, index);
        let proof = proof.then_some(self.clock + 1);
        let read = self.reads.at_mut(number).expect("just seen");
        read.found = Some(Found { answer, peer, sent, proof });
        if proof.is_some() {
            self.clock += 1;
            self.want_confirmation(peer, effects);
        }
        self.found.insert(number);
        self.end_read(number, effects);
    }

    /// Whether a reopened disk would have the same of the object, whatever its machine lost.
    fn is_stable_on(&self, peer: PeerIndex, index: u32) -> bool {
        if self.partition_at(index).members.len() == 1 {
            // What the only member has is what there is.
            return true;
        }
        if self.read_only {
            // Nobody has flushed what an earlier session left.
            return false;
        }
        let Some(object) = self.objects.get(&index) else { return self.forgotten <= self.flushed };
        let sequence = self.peers[usize::from(peer)].stable_below;
        object.last < Stamp { generation: self.generation, sequence }
    }

    /// Ends a read whose answer is confirmed.
    fn end_read(&mut self, number: u64, effects: &mut Vec<Effect>) {
        let Some(read) = self.reads.at(number) else { return };
        let Some(found) = &read.found else { return };
        if self.is_guarded(read.source) && !self.is_confirmed(read, found) {
            return;
        }
        self.found.remove(&number);
        let read = self.reads.remove(number).expect("just seen");
        let answer = read.found.expect("just seen").answer;
        effects.push(Effect::Done { token: read.token, result: Ok(answer) });
    }

    fn is_confirmed(&self, read: &Read, found: &Found) -> bool {
        let partition = self.partition_at(read.index);
        let id = self.partition_id(read.index);
        if found.proof.is_some_and(|after| self.peers[usize::from(found.peer)].proved < after) {
            return false;
        }
        let needed = match planted(Mistake::ConfirmedByFew) {
            false => partition.quorum(),
            true => partition.members.len() + 1 - partition.quorum(),
        };
        if planted(Mistake::ConfirmedBefore) {
            return true;
        }
        let confirms = |peer: &PeerIndex| {
            let proved = self.proofs.get(&(*peer, id)).copied().unwrap_or(0);
            let is_own = *peer == found.peer && found.sent >= read.came;
            let confirmed = self.peers[usize::from(*peer)].confirmed >= read.came;
            is_own || proved >= read.came || (confirmed && !self.has_refused(*peer, read.index))
        };
        partition.members.iter().filter(confirms).count() >= needed
    }

    /// Some disk has confirmed something: reads that wait for it may end.
    pub(crate) fn end_reads(&mut self, effects: &mut Vec<Effect>) {
        for number in self.found.iter().copied().collect::<Vec<u64>>() {
            self.end_read(number, effects);
        }
        if self.found.is_empty() {
            self.proofs.clear();
        }
    }

    /// A disk did something under the present configuration of this object's partition, and was
    /// asked for it after this count.
    pub(crate) fn note_proof(
        &mut self,
        peer: PeerIndex,
        index: u32,
        sent: u64,
        effects: &mut Vec<Effect>,
    ) {
        if self.reads.is_empty() || self.partition_at(index).members.len() == 1 {
            return;
        }
        let key: (PeerIndex, PartitionId) = (peer, self.partition_id(index));
        let known = self.proofs.entry(key).or_default();
        *known = (*known).max(sent);
        if !self.found.is_empty() {
            self.end_reads(effects);
        }
    }

    pub(crate) fn handle_read_error(
        &mut self,
        peer: PeerIndex,
        number: u64,
        error: MemberError,
        effects: &mut Vec<Effect>,
    ) {
        let disk = self.peers[usize::from(peer)].disk;
        let error = match error {
            MemberError::Busy | MemberError::WrongConfiguration { .. } => {
                return self.read_unanswered(number, peer);
            }
            MemberError::Corrupt { key, block } => Error::Corrupt { key, block },
            error => Error::Io(format!("disk {disk} refused a read ({error}); report this bug")),
        };
        let Some(read) = self.reads.at_mut(number) else { return };
        read.asked.remove(peer);
        read.tried.insert(peer);
        read.error = Some(error);
        if read.found.is_none() {
            self.try_read(number, effects);
        }
    }

    /// The members of some partitions are others: what was asked of the former ones is asked again.
    pub(crate) fn reset_reads(&mut self, is_changed: impl Fn(&Coordinator, u32) -> bool) {
        let is_reset =
            |read: &Read| matches!(read.source, Source::Own) && is_changed(self, read.index);
        let reset = self.reads.iter().filter(|(_, read)| is_reset(read));
        let reset: BTreeSet<u64> = reset.map(|(number, _)| number).collect();
        let of = |(token, pending): (u64, &Pending)| match pending {
            Pending::Read { read, .. } if reset.contains(read) => Some(token),
            _ => None,
        };
        let gone: Vec<u64> = self.tokens.iter().filter_map(of).collect();
        for token in gone {
            self.tokens.remove(token);
        }
        self.proofs.clear();
        for number in reset {
            self.found.remove(&number);
            let read = self.reads.at_mut(number).expect("listed just now");
            read.asked = PeerSet::default();
            read.tried = PeerSet::default();
            read.error = None;
            read.found = None;
            if !read.is_parked {
                read.is_parked = true;
                self.parked.push_back(number);
            }
        }
    }

    /// Which disks are asked first for what they have, those of the session's own node for one.
    pub fn set_near(&mut self, disks: BTreeSet<DiskId>) {
        self.near = disks;
    }

    pub(crate) fn check_reads(&self) {
        let mut asked: BTreeMap<u64, PeerSet> = BTreeMap::new();
        for (_, pending) in self.tokens.iter() {
            if let Pending::Read { read, peer, .. } = pending
                && self.reads.at(*read).is_some()
            {
                asked.entry(*read).or_default().insert(*peer);
            }
        }
        let parked: BTreeSet<u64> = self.parked.iter().copied().collect();
        for (number, read) in self.reads.iter() {
            let asked = asked.remove(&number).unwrap_or_default();
            let is_same = asked.len() == read.asked.len();
            assert!(is_same && asked.iter().all(|peer| read.asked.contains(peer)), "{read:?}");
            assert_eq!(read.is_parked, parked.contains(&number), "{read:?}");
            assert_eq!(read.found.is_some(), self.found.contains(&number), "{read:?}");
            let waits = read.is_parked || read.found.is_some() || !asked.is_empty();
            assert!(waits, "a read waits for nothing: {read:?}");
        }
    }
}

/// Whether the runs are all of the blocks asked for.
fn covers<T>(runs: &[(u32, T)], blocks: BlockRange) -> bool {
    let count: u64 = runs.iter().map(|(count, _)| u64::from(*count)).sum();
    count == u64::from(blocks.count())
}

/// Whether the ranges lie in the blocks asked for, in order and apart from one another.
fn lie_in(ranges: &[BlockRange], blocks: BlockRange) -> bool {
    let mut at = blocks.first();
    ranges.iter().all(|range| {
        let follows = range.first() >= at;
        at = range.end();
        follows && range.end() <= blocks.end()
    })
}
