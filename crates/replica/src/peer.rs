//! The disks a coordinator talks to: whether each is fenced and reachable, and what of its
//! acknowledgements is stable.

use crate::coordinator::{Coordinator, Pending};
use crate::event::Effect;
use proto::limits::{MEMBER_CHECKS_MAX, MEMBER_RETRY_MS, MEMBERS_MAX};
use proto::{
    DiskId, Duration, Incarnation, LayerId, MemberRequest, ObjectKey, ObjectStamp, Stamp, Time,
};
use std::collections::{BTreeSet, VecDeque};

/// Number of a peer within its coordinator.
pub(crate) type PeerIndex = u16;

/// A few peers: those of one partition that did something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PeerSet {
    peers: [PeerIndex; MEMBERS_MAX],
    count: u8,
}

impl PeerSet {
    pub(crate) fn insert(&mut self, peer: PeerIndex) {
        if !self.contains(peer) {
            self.peers[usize::from(self.count)] = peer;
            self.count += 1;
        }
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
        let mut set = PeerSet::default();
        peers.into_iter().for_each(|peer| set.insert(peer));
        set
    }
}

/// Where a disk is on its way to serving the session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum PeerState {
    /// The fence has been, or is to be, asked for.
    Fencing,
    /// It was opened anew: it is being asked which acknowledged writes it still has.
    Checking,
    /// It takes requests.
    Up,
    /// It takes none until the map shows a new incarnation; the text says why.
    Away(String),
}

/// One disk.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) disk: DiskId,
    /// Which opening of it the map lists as current; answers of another do not count.
    pub(crate) incarnation: Incarnation,
    pub(crate) state: PeerState,
    /// Whether it holds objects of the volume itself, not only of what shows through.
    pub(crate) own: bool,
    /// The newest layer that this opening of it is known to know; 0: none is.
    pub(crate) layer: LayerId,
    /// Whether the question about the next layer is under way.
    pub(crate) layer_asked: bool,
    /// It has had everything since the session opened: it may be read from.
    pub(crate) complete: bool,
    /// It has been told to come back later; nothing is repeated before this.
    pub(crate) retry_at: Option<Time>,
    /// Whether the question of the state (fence) is under way.
    pub(crate) asked: bool,
    /// Objects still to be checked, and how many questions about that are under way.
    pub(crate) checks: VecDeque<u32>,
    pub(crate) checks_asked: usize,
    /// Acknowledgements are counted in epochs: each flush that is sent ends one.
    pub(crate) epoch: u64,
    /// The last epoch with an acknowledgement.
    pub(crate) dirty_epoch: u64,
    /// All epochs up to this one are stable.
    pub(crate) stable_epoch: u64,
    /// Whether a flush is under way.
    pub(crate) flushing: bool,
    /// The last epoch with acknowledgements of objects that are not known any more.
    pub(crate) forgotten_epoch: u64,
    /// Writes that were acknowledged to the guest and that this disk does not have yet.
    pub(crate) lagging: BTreeSet<u64>,
}

impl Peer {
    /// A disk of the volume.
    pub(crate) fn new(
        disk: DiskId,
        incarnation: Incarnation,
        state: PeerState,
        layer: LayerId,
    ) -> Peer {
        Peer {
            disk,
            incarnation,
            state,
            own: true,
            layer,
            layer_asked: false,
            complete: true,
            retry_at: None,
            asked: false,
            checks: VecDeque::new(),
            checks_asked: 0,
            // What earlier sessions wrote may not be stable: every member starts dirty.
            epoch: 1,
            dirty_epoch: 1,
            stable_epoch: 0,
            flushing: false,
            forgotten_epoch: 0,
            lagging: BTreeSet::new(),
        }
    }

    /// A disk that holds only what shows through: nothing of it is changed, so it needs no fence
    /// and no flush.
    pub(crate) fn of_origin(disk: DiskId, incarnation: Incarnation) -> Peer {
        let peer = Peer::new(disk, incarnation, PeerState::Up, LayerId(0));
        Peer { own: false, dirty_epoch: 0, ..peer }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state == PeerState::Up
    }

    /// Whether it can be asked about the volume's objects at all.
    pub(crate) fn knows_a_layer(&self) -> bool {
        self.layer != LayerId(0)
    }

    pub(crate) fn mark_dirty(&mut self) {
        self.dirty_epoch = self.epoch;
    }
}

impl Coordinator {
    /// The disk wants to be left alone for a while.
    pub(crate) fn back_off(&mut self, peer: PeerIndex) {
        let peer = &mut self.peers[usize::from(peer)];
        if peer.retry_at.is_none() {
            peer.retry_at = Some(self.now + Duration::from_millis(MEMBER_RETRY_MS));
        }
    }

    /// Whether the disk may be asked again now.
    pub(crate) fn is_ready(&self, peer: PeerIndex) -> bool {
        let peer = &self.peers[usize::from(peer)];
        peer.is_up() && peer.retry_at.is_none()
    }

    /// The disk does not serve any more. What it was asked is asked again when it comes back.
    pub(crate) fn peer_lost(&mut self, index: PeerIndex, reason: String) {
        self.forget_questions(index);
        let peer = &mut self.peers[usize::from(index)];
        peer.state = PeerState::Away(reason);
        peer.retry_at = None;
        if peer.own {
            self.opening_lost();
        }
    }

    /// The map lists a new opening of the disk.
    pub(crate) fn peer_reopened(
        &mut self,
        index: PeerIndex,
        incarnation: Incarnation,
        effects: &mut Vec<Effect>,
    ) {
        self.forget_questions(index);
        let peer = &mut self.peers[usize::from(index)];
        peer.incarnation = incarnation;
        peer.retry_at = None;
        // Writes that this disk acknowledged may be gone; with other copies around it is read
        // again only by a later session.
        peer.complete = false;
        let is_fenced = peer.own && !self.read_only;
        peer.state = if is_fenced { PeerState::Fencing } else { PeerState::Up };
        if peer.own {
            self.opening_lost();
        }
        self.resume(index, effects);
    }

    /// Answers to what was asked so far do not count any more.
    fn forget_questions(&mut self, index: PeerIndex) {
        let gone: Vec<u64> = self
            .tokens
            .iter()
            .filter(|(_, pending)| pending.peer() == index)
            .map(|(token, _)| token)
            .collect();
        for token in gone {
            if let Some(Pending::Read { read, .. }) = self.tokens.remove(token) {
                self.park_read(read);
            }
        }
        self.halt_links(index);
        self.forget_layer(index);
        let peer = &mut self.peers[usize::from(index)];
        peer.asked = false;
        peer.layer_asked = false;
        peer.checks.clear();
        peer.checks_asked = 0;
        peer.flushing = false;
    }

    /// Goes on with whatever the disk has to be asked, in the state it is in.
    pub(crate) fn resume(&mut self, index: PeerIndex, effects: &mut Vec<Effect>) {
        let peer = &mut self.peers[usize::from(index)];
        if peer.retry_at.is_some() {
            return;
        }
        match peer.state {
            PeerState::Away(_) => {}
            PeerState::Fencing if peer.asked => {}
            PeerState::Fencing => {
                peer.asked = true;
                let (lineage, generation) = (self.lineage, self.generation);
                let after = ObjectKey::default();
                let request = MemberRequest::Fence { lineage, generation, list: true, after };
                self.ask(Pending::Fence { peer: index }, request, effects);
            }
            PeerState::Checking => {
                self.pump_layer(index, effects);
                self.pump_checks(index, effects);
            }
            PeerState::Up => {
                self.pump_opening(effects);
                self.pump_layer(index, effects);
                self.restart_links(index, effects);
                self.retry_reads(effects);
                self.kick_flush(index, effects);
            }
        }
    }

    /// The fence holds.
    pub(crate) fn handle_fenced(
        &mut self,
        index: PeerIndex,
        incarnation: Incarnation,
        unsettled: Vec<ObjectStamp>,
        effects: &mut Vec<Effect>,
    ) {
        self.peers[usize::from(index)].asked = false;
        if !self.is_listed(index, incarnation) {
            return;
        }
        if self.is_opening() {
            self.peers[usize::from(index)].state = PeerState::Up;
            self.opening_fenced(index, unsettled, effects);
            return;
        }
        // Whatever was written since the last flush may be gone: look at each such object.
        let Peer { disk, stable_epoch: stable, forgotten_epoch, .. } =
            self.peers[usize::from(index)];
        if forgotten_epoch > stable {
            let what = "was interrupted and may have lost writes that had not been flushed";
            self.writes_lost(format!("disk {disk} {what}"), effects);
        }
        let checks: VecDeque<u32> = self
            .objects
            .iter()
            .filter(|(object, entry)| {
                entry.dirty_epoch > stable && self.members_of(**object).contains(index)
            })
            .map(|(object, _)| *object)
            .collect();
        self.forget_idle_objects(index, stable);
        let peer = &mut self.peers[usize::from(index)];
        peer.state = PeerState::Checking;
        peer.checks = checks;
        self.resume(index, effects);
    }

    /// Whether this opening of the disk is the one that counts; if not, the disk waits for the map.
    pub(crate) fn is_listed(&mut self, index: PeerIndex, incarnation: Incarnation) -> bool {
        let peer = &self.peers[usize::from(index)];
        if peer.incarnation == incarnation {
            return true;
        }
        let reason = format!(
            "it was opened as incarnation {incarnation} and the cluster still lists {listed}",
            listed = peer.incarnation
        );
        self.peer_lost(index, reason);
        false
    }

    fn pump_checks(&mut self, index: PeerIndex, effects: &mut Vec<Effect>) {
        loop {
            let peer = &mut self.peers[usize::from(index)];
            let is_busy = peer.retry_at.is_some() || peer.checks_asked >= MEMBER_CHECKS_MAX;
            if is_busy || !peer.knows_a_layer() {
                return;
            }
            let Some(object) = peer.checks.pop_front() else { break };
            peer.checks_asked += 1;
            let request = MemberRequest::Stamp {
                lineage: self.lineage,
                key: self.key_at(index, object),
                generation: self.generation,
            };
            self.ask(Pending::Check { peer: index, object }, request, effects);
        }
        let peer = &mut self.peers[usize::from(index)];
        if peer.checks_asked == 0 {
            peer.state = PeerState::Up;
            peer.mark_dirty();
            self.resume(index, effects);
        }
    }

    /// A reopened disk says where an object stands.
    pub(crate) fn handle_checked(
        &mut self,
        index: PeerIndex,
        object: u32,
        have: Stamp,
        effects: &mut Vec<Effect>,
    ) {
        self.peers[usize::from(index)].checks_asked -= 1;
        self.compare_with_acknowledged(index, object, have, effects);
        if self.peers[usize::from(index)].state == PeerState::Checking {
            self.pump_checks(index, effects);
        }
    }

    /// A check was not answered for the moment: once more later.
    pub(crate) fn check_again(&mut self, index: PeerIndex, object: u32) {
        let peer = &mut self.peers[usize::from(index)];
        peer.checks_asked -= 1;
        peer.checks.push_front(object);
    }

    /// Notices when a disk has less of an object than was acknowledged. With one copy what it has
    /// is all there is: the loss is legal for what was never flushed, and the next flush reports
    /// it. Gives back whether the disk still serves.
    pub(crate) fn compare_with_acknowledged(
        &mut self,
        index: PeerIndex,
        object: u32,
        have: Stamp,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let alone = self.members_of(object).len() == 1;
        let floor = self.floor_of(object, alone);
        let peer = &self.peers[usize::from(index)];
        let Some(entry) = self.objects.get_mut(&object) else { return true };
        if floor.is_none_or(|floor| have >= floor) {
            return true;
        }
        let disk = peer.disk;
        if !alone {
            let reason = "it misses writes that only its peers have".to_string();
            self.peer_lost(index, reason);
            return false;
        }
        if entry.dirty_epoch <= peer.stable_epoch {
            let reason = "it lost writes that it had reported as stable, as if an old copy of it \
                          had been put back; restore it or delete the volume"
                .to_string();
            self.peer_lost(index, reason);
            return false;
        }
        entry.last = have;
        let what = "was interrupted and lost writes that had not been flushed";
        self.writes_lost(format!("disk {disk} {what}"), effects);
        true
    }
}
