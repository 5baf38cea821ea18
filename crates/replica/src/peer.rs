//! The disks a coordinator talks to: whether each is fenced and reachable, and what of its
//! acknowledgements is stable.

use crate::coordinator::{Coordinator, Pending, Phase};
use crate::event::Effect;
use crate::layers::Rung;
use cluster::Member;
use proto::limits::{
    MEMBER_RETRY_MS, MEMBERS_MAX, PEER_PROBE_MS, SESSION_BEHIND_BYTES_MAX,
    SESSION_BEHIND_WRITES_MAX,
};
use proto::{
    ConfigurationNumber, DiskId, Duration, Incarnation, LayerId, MemberReply, MemberRequest,
    Mistake, ObjectKey, PartitionId, Time, planted,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Number of a peer within its coordinator.
pub(crate) type PeerIndex = u16;

/// A few peers: those of one partition that did something.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct PeerSet {
    /// Beyond `count` zeros, so that equal sets compare as equal.
    peers: [PeerIndex; MEMBERS_MAX],
    count: u8,
}

impl PeerSet {
    pub(crate) const EMPTY: PeerSet = PeerSet { peers: [0; MEMBERS_MAX], count: 0 };

    pub(crate) fn insert(&mut self, peer: PeerIndex) {
        if !self.contains(peer) {
            self.peers[usize::from(self.count)] = peer;
            self.count += 1;
        }
    }

    pub(crate) fn remove(&mut self, peer: PeerIndex) {
        *self = self.iter().filter(|other| *other != peer).collect();
    }

    pub(crate) fn contains(&self, peer: PeerIndex) -> bool {
        self.peers[..usize::from(self.count)].contains(&peer)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = PeerIndex> + use<> {
        let PeerSet { peers, count } = *self;
        (0..usize::from(count)).map(move |place| peers[place])
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.count)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl FromIterator<PeerIndex> for PeerSet {
    fn from_iter<I: IntoIterator<Item = PeerIndex>>(peers: I) -> PeerSet {
        let mut set = PeerSet::EMPTY;
        peers.into_iter().for_each(|peer| set.insert(peer));
        set
    }
}

/// Where a disk is on its way to serving the session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum PeerState {
    /// The fence has been, or is to be, asked for.
    Fencing,
    /// It takes requests.
    Up,
    /// It takes none; the text says why.
    Away {
        reason: String,
        /// It may come back as it was: it is asked now and then.
        may_return: bool,
    },
    /// Nothing lists it any more; its place is free.
    Gone,
}

/// One opening of one disk.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) disk: DiskId,
    /// Which opening of it; answers of another do not count.
    pub(crate) incarnation: Incarnation,
    pub(crate) state: PeerState,
    /// Whether it is a member of the volume's own partitions, not only of what shows through.
    pub(crate) own: bool,
    /// The newest layer that this opening of it is known to know; 0: none is.
    pub(crate) layer: LayerId,
    /// A layer that it is to be asked for next, while it is not known which it knows.
    pub(crate) layer_tried: Option<LayerId>,
    /// What it has to open before the next layer, the lowest first: it knew less than it was taken
    /// to know.
    pub(crate) ladder: VecDeque<Rung>,
    /// That has been found out once.
    pub(crate) is_laddered: bool,
    /// Whether the question about the next layer is under way.
    pub(crate) layer_asked: bool,
    /// It has been told to come back later; nothing is repeated before this.
    pub(crate) retry_at: Option<Time>,
    /// Whether the question for the fence is under way.
    pub(crate) asked: bool,
    /// Acknowledgements are counted in epochs: each flush that is sent ends one.
    pub(crate) epoch: u64,
    /// The last epoch with an acknowledgement.
    pub(crate) dirty_epoch: u64,
    /// All epochs up to this one are stable.
    pub(crate) stable_epoch: u64,
    /// Whether a flush is under way.
    pub(crate) flushing: bool,
    /// The lowest write that was not everywhere when that was sent; all below were on this disk.
    pub(crate) flushing_below: u64,
    /// Below this every write of the session is stable here.
    pub(crate) stable_below: u64,
    /// Writes that were acknowledged to the guest and that this disk does not have yet, with the
    /// bytes that are kept in memory for it.
    pub(crate) lagging: BTreeMap<u64, usize>,
    pub(crate) lagging_bytes: usize,
    /// Why it is behind in some partition, if it is.
    pub(crate) behind: Option<String>,
    /// How many refusals of configurations by it are known, ..
    pub(crate) refusals: u64,
    /// .. and of each table, number of partitions and partition the last.
    pub(crate) refused: BTreeMap<(u8, u8, PartitionId), ConfigurationNumber>,
    /// Whether a confirmation is under way.
    pub(crate) confirming: bool,
    /// What the last confirmation was sent after: see `Coordinator::clock`.
    pub(crate) confirmed: u64,
    /// What a confirmation is wanted of.
    pub(crate) confirm_wanted: u64,
    /// What the last answer was sent after that proved which opening of the disk it is.
    pub(crate) proved: u64,
}

impl Peer {
    /// A disk that was just seen.
    pub(crate) fn new(disk: DiskId, incarnation: Incarnation) -> Peer {
        Peer {
            disk,
            incarnation,
            state: PeerState::Up,
            own: false,
            layer: LayerId(0),
            layer_tried: None,
            ladder: VecDeque::new(),
            is_laddered: false,
            layer_asked: false,
            retry_at: None,
            asked: false,
            epoch: 1,
            dirty_epoch: 0,
            stable_epoch: 0,
            flushing: false,
            flushing_below: 0,
            stable_below: 0,
            lagging: BTreeMap::new(),
            lagging_bytes: 0,
            behind: None,
            refusals: 0,
            refused: BTreeMap::new(),
            confirming: false,
            confirmed: 0,
            confirm_wanted: 0,
            proved: 0,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state == PeerState::Up
    }

    pub(crate) fn is_away(&self) -> bool {
        matches!(self.state, PeerState::Away { .. })
    }

    /// Whether it can be asked about the volume's objects at all.
    pub(crate) fn knows_a_layer(&self) -> bool {
        self.layer != LayerId(0)
    }

    pub(crate) fn mark_dirty(&mut self) {
        self.dirty_epoch = self.epoch;
    }

    /// A write was acknowledged without it.
    pub(crate) fn begin_lag(&mut self, sequence: u64, bytes: usize) {
        if self.lagging.insert(sequence, bytes).is_none() {
            self.lagging_bytes += bytes;
        }
    }

    /// It has the write, or need not have it any more. Gives back whether it was waited for.
    pub(crate) fn end_lag(&mut self, sequence: u64) -> bool {
        let Some(bytes) = self.lagging.remove(&sequence) else { return false };
        self.lagging_bytes -= bytes;
        true
    }

    /// Whether more is kept for it than may be.
    pub(crate) fn lags_too_much(&self) -> bool {
        self.lagging_bytes > SESSION_BEHIND_BYTES_MAX
            || self.lagging.len() > SESSION_BEHIND_WRITES_MAX
    }
}

impl Coordinator {
    /// The peer that is this opening of a disk of the volume.
    pub(crate) fn own_peer(&mut self, disk: DiskId, incarnation: Incarnation) -> PeerIndex {
        let index = self.peer_at(disk, incarnation);
        if !self.peers[usize::from(index)].own {
            let known = self.first_known();
            let read_only = self.read_only;
            let peer = &mut self.peers[usize::from(index)];
            peer.own = true;
            peer.layer = known;
            // What earlier sessions wrote may not be stable: every member starts dirty.
            peer.mark_dirty();
            if !read_only {
                peer.state = PeerState::Fencing;
            }
        }
        index
    }

    /// The peer that is this opening of a disk, an old one or a new.
    pub(crate) fn peer_at(&mut self, disk: DiskId, incarnation: Incarnation) -> PeerIndex {
        if let Some(&index) = self.by_opening.get(&(disk, incarnation)) {
            return index;
        }
        let peer = Peer::new(disk, incarnation);
        let index = match self.free_peers.pop() {
            Some(index) => {
                self.peers[usize::from(index)] = peer;
                index
            }
            None => {
                self.peers.push(peer);
                PeerIndex::try_from(self.peers.len() - 1).expect("disks are bounded")
            }
        };
        for flush in &mut self.flushes {
            flush.forget_peer(index);
        }
        self.by_opening.insert((disk, incarnation), index);
        index
    }

    /// Forgets openings of disks that nothing lists any more.
    pub(crate) fn drop_peers(&mut self, origins: &BTreeSet<PeerIndex>, effects: &mut Vec<Effect>) {
        for index in 0..self.peers.len() as PeerIndex {
            let listed = self.partitions.groups.iter().any(|group| group.members.contains(index));
            let peer = &mut self.peers[usize::from(index)];
            if peer.state == PeerState::Gone || listed {
                continue;
            }
            peer.own = false;
            peer.behind = None;
            if origins.contains(&index) {
                peer.layer = LayerId(0);
                peer.ladder.clear();
                peer.is_laddered = false;
                peer.lagging.clear();
                peer.lagging_bytes = 0;
                // Of what shows through any opening of it will do.
                let known = self.map.disk(peer.disk);
                let is_reopened = known.is_some_and(|it| it.incarnation > peer.incarnation);
                if peer.state == PeerState::Fencing || is_reopened && peer.is_away() {
                    peer.state = PeerState::Up;
                }
                continue;
            }
            let opening = (peer.disk, peer.incarnation);
            self.forget_questions(index, effects);
            let peer = &mut self.peers[usize::from(index)];
            *peer = Peer { state: PeerState::Gone, ..Peer::new(opening.0, opening.1) };
            self.by_opening.remove(&opening);
            self.free_peers.push(index);
        }
    }

    /// Which opening of its disk a peer is asked at. Members of the volume's own partitions are the
    /// openings that are listed. Of what shows through nothing changes any more, so that it is the
    /// same in the present opening.
    pub(crate) fn opening_to_ask(&self, index: PeerIndex) -> Member {
        let Peer { disk, incarnation, own, .. } = self.peers[usize::from(index)];
        match self.map.disk(disk) {
            Some(known) if !own => Member { disk, incarnation: incarnation.max(known.incarnation) },
            _ => Member { disk, incarnation },
        }
    }

    /// The disk wants to be left alone for a while.
    pub(crate) fn back_off(&mut self, peer: PeerIndex) {
        let retry_at = self.now + Duration::from_millis(MEMBER_RETRY_MS);
        let peer = &mut self.peers[usize::from(peer)];
        peer.retry_at.get_or_insert(retry_at);
    }

    /// Whether the disk may be asked again now.
    pub(crate) fn is_ready(&self, peer: PeerIndex) -> bool {
        let peer = &self.peers[usize::from(peer)];
        peer.is_up() && peer.retry_at.is_none()
    }

    /// The disk cannot be trusted any more, or is another than the one that is listed.
    pub(crate) fn peer_lost(
        &mut self,
        index: PeerIndex,
        reason: String,
        effects: &mut Vec<Effect>,
    ) {
        self.peer_away(index, reason.clone(), false, effects);
        if self.peers[usize::from(index)].own && matches!(self.phase, Phase::Open) {
            self.fall_behind(index, reason, effects);
        }
    }

    /// The disk does not serve. What it was asked is asked again when it comes back.
    pub(crate) fn peer_away(
        &mut self,
        index: PeerIndex,
        reason: String,
        may_return: bool,
        effects: &mut Vec<Effect>,
    ) {
        self.forget_questions(index, effects);
        self.is_changed = true;
        let probe_at = self.now + Duration::from_millis(PEER_PROBE_MS);
        let peer = &mut self.peers[usize::from(index)];
        peer.state = PeerState::Away { reason, may_return };
        peer.retry_at = may_return.then_some(probe_at);
        if peer.own {
            self.opening_lost(effects);
        }
    }

    /// Answers to what was asked so far do not count any more.
    pub(crate) fn forget_questions(&mut self, index: PeerIndex, effects: &mut Vec<Effect>) {
        let of_peer =
            |(token, pending): (u64, &Pending)| (pending.peer() == index).then_some(token);
        let gone: Vec<u64> = self.tokens.iter().filter_map(of_peer).collect();
        for token in gone {
            match self.tokens.remove(token) {
                Some(Pending::Read { read, .. }) => self.read_unanswered(read, index),
                Some(Pending::Check { object, .. }) => self.check_again(object),
                Some(Pending::Choose { object, .. }) => self.untold(index, object),
                _ => {}
            }
        }
        self.drop_unproved(index);
        self.halt_links(index, effects);
        self.forget_layer(index);
        let peer = &mut self.peers[usize::from(index)];
        peer.asked = false;
        peer.layer_asked = false;
        peer.flushing = false;
        peer.confirming = false;
    }

    /// Goes on with whatever the disk has to be asked, in the state it is in.
    pub(crate) fn resume(&mut self, index: PeerIndex, effects: &mut Vec<Effect>) {
        let may_fence = !self.read_only;
        let peer = &mut self.peers[usize::from(index)];
        if peer.retry_at.is_some() {
            return;
        }
        match peer.state {
            PeerState::Gone | PeerState::Away { may_return: false, .. } => {}
            PeerState::Away { .. } if !peer.own || !may_fence => {
                peer.state = PeerState::Up;
                self.resume(index, effects);
            }
            PeerState::Fencing | PeerState::Away { .. } => self.ask_fence(index, effects),
            PeerState::Up => {
                self.pump_opening(effects);
                self.pump_layer(index, effects);
                self.pump_checks(effects);
                self.restart_links(index, effects);
                self.retry_reads(effects);
                self.kick_flush(index, effects);
                self.kick_confirm(index, effects);
            }
        }
    }

    fn ask_fence(&mut self, index: PeerIndex, effects: &mut Vec<Effect>) {
        // With one member there is nothing to compare with; later than that it is too late.
        let list = self.is_opening() && !self.partitions.are_sole();
        let peer = &mut self.peers[usize::from(index)];
        if peer.asked {
            return;
        }
        peer.asked = true;
        let list = list && peer.state == PeerState::Fencing;
        self.ask_fence_after(index, list, ObjectKey::default(), effects);
    }

    fn ask_fence_after(
        &mut self,
        peer: PeerIndex,
        list: bool,
        after: ObjectKey,
        effects: &mut Vec<Effect>,
    ) {
        let (lineage, generation) = (self.lineage, self.generation);
        let request = MemberRequest::Fence { lineage, generation, list, after };
        self.ask(Pending::Fence { peer, list }, request, effects);
    }

    /// The fence holds.
    pub(crate) fn handle_fenced(
        &mut self,
        index: PeerIndex,
        list: bool,
        reply: MemberReply,
        effects: &mut Vec<Effect>,
    ) {
        let MemberReply::Fenced { incarnation, settled, unsettled, more } = reply else { return };
        if !self.is_listed(index, incarnation, effects) {
            return;
        }
        if list
            && more
            && let Some(last) = unsettled.last()
        {
            let after = last.key;
            self.opening_listed(index, unsettled, effects);
            return self.ask_fence_after(index, list, after, effects);
        }
        let peer = &mut self.peers[usize::from(index)];
        peer.asked = false;
        if !list && peer.is_away() && self.is_opening() {
            // It may be heard: now for what it has.
            let peer = &mut self.peers[usize::from(index)];
            peer.state = PeerState::Fencing;
            if !self.partitions.are_sole() {
                return self.resume(index, effects);
            }
        }
        self.peers[usize::from(index)].state = PeerState::Up;
        if self.is_opening() {
            self.opening_listed(index, unsettled, effects);
            self.opening_fenced(index, settled, effects);
        } else {
            self.resume(index, effects);
        }
    }

    /// Whether this opening of the disk is the one that counts; if not, it is of no use before the
    /// map shows the new one.
    pub(crate) fn is_listed(
        &mut self,
        index: PeerIndex,
        incarnation: Incarnation,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let peer = &self.peers[usize::from(index)];
        if peer.incarnation == incarnation || planted(Mistake::IncarnationIgnored) {
            return true;
        }
        let reason = format!(
            "it was opened as incarnation {incarnation} and the cluster still lists {listed}",
            listed = peer.incarnation
        );
        self.peer_lost(index, reason, effects);
        false
    }

    /// The disk has missed too much, or something else than its peers have: where it has peers, it
    /// is not written to any more and not read from until the members are changed.
    pub(crate) fn fall_behind(
        &mut self,
        index: PeerIndex,
        reason: String,
        effects: &mut Vec<Effect>,
    ) {
        if !self.partitions.leave_behind(index) {
            return;
        }
        self.peers[usize::from(index)].behind = Some(reason);
        self.drop_links(index, effects);
        let of_peer = |(token, pending): (u64, &Pending)| match pending {
            Pending::Read { peer, .. } | Pending::Check { peer, .. } if *peer == index => {
                Some(token)
            }
            _ => None,
        };
        let gone: Vec<u64> = self.tokens.iter().filter_map(of_peer).collect();
        for token in gone {
            match self.tokens.remove(token) {
                Some(Pending::Read { read, .. }) => self.read_unanswered(read, index),
                Some(Pending::Check { object, .. }) => self.check_again(object),
                _ => {}
            }
        }
        self.pump_checks(effects);
        self.retry_reads(effects);
        self.end_flushes(effects);
        self.end_switches(effects);
    }

    /// Current members that do not have everything: of which partition of which table, and on
    /// which disk.
    pub fn behind_in(&self) -> impl Iterator<Item = (u8, PartitionId, DiskId)> {
        let disk = |peer: PeerIndex| self.peers[usize::from(peer)].disk;
        self.partitions
            .behind()
            .map(move |(copies, partition, peer)| (copies, partition, disk(peer)))
    }

    /// Disks that some partition lists as current and that do not have everything, each with the
    /// reason: they become whole by a change of its members.
    pub fn behind(&self) -> Vec<(DiskId, String)> {
        let is_behind = |index: &usize| self.partitions.is_behind(*index as PeerIndex);
        let found = (0..self.peers.len()).filter(is_behind).map(|index| &self.peers[index]);
        found.map(|peer| (peer.disk, peer.behind.clone().unwrap_or_default())).collect()
    }
}
