//! The machine between one volume's session and the disks.

use crate::chain::{Chain, Object};
use crate::event::{Effect, Error, Event, Request, Source, View};
use crate::flush::FlushWait;
use crate::layers::{Rung, SwitchWait, configurations};
use crate::opening::Opening;
use crate::peer::{Peer, PeerIndex, PeerSet, PeerState};
use crate::read::{Read, Want};
use crate::sequence::Sequence;
use crate::slots::Slots;
use cluster::{Configuration, Map};
use proto::limits::MEMBERS_MAX;
use proto::{
    Change, DiskId, Generation, LayerId, LineageId, MemberError, MemberReply, MemberRequest,
    MemberToken, ObjectKey, ObjectStamp, Stamp, Time, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Fans one volume's object requests out to the disks that hold the objects.
///
/// Invariants: a change is acknowledged once, after a quorum of the object's current members had
/// it; each member's object is a prefix of one history, because every write names the one before
/// it and is sent only after that; a flush ends well only if everything acknowledged before it is
/// stable on a quorum.
#[derive(Debug)]
pub struct Coordinator {
    /// The time of the event being handled.
    pub(crate) now: Time,
    pub(crate) volume: VolumeId,
    pub(crate) lineage: LineageId,
    /// What changes go to, or the snapshot that is read.
    pub(crate) layer: LayerId,
    /// The layers that disks still have to open, or have to open again if they are opened anew,
    /// in order.
    pub(crate) rungs: Vec<Rung>,
    /// Some disk does not know the newest layer yet.
    pub(crate) is_switching: bool,
    pub(crate) switches: VecDeque<SwitchWait>,
    pub(crate) generation: Generation,
    /// A session that only reads fences nobody: its generation is newer than any earlier writer's
    /// fence, so its reads are served, until a later writer fences it.
    pub(crate) read_only: bool,
    pub(crate) map: Arc<Map>,
    pub(crate) phase: Phase,
    pub(crate) peers: Vec<Peer>,
    /// The peers by disk.
    by_disk: BTreeMap<DiskId, PeerIndex>,
    /// The different member sets of the volume's partitions.
    pub(crate) groups: Vec<Group>,
    /// The different member sets of what shows through from other lineages.
    pub(crate) origin_groups: Vec<Vec<DiskId>>,
    /// Questions under way.
    pub(crate) tokens: Slots<Pending>,
    /// Objects whose stamp is known, or that have a chain.
    pub(crate) objects: BTreeMap<u32, Object>,
    /// Objects with changes that are not on every member yet.
    pub(crate) chains: Slots<Chain>,
    /// Emptied chains, kept for their memory.
    pub(crate) spare_chains: Vec<Chain>,
    /// Reads that have not ended.
    pub(crate) reads: Slots<Read>,
    /// Those of `reads` that wait for a disk.
    pub(crate) parked: VecDeque<u64>,
    /// Flushes that have not ended, oldest first.
    pub(crate) flushes: VecDeque<FlushWait>,
    pub(crate) sequence: Sequence,
    /// Acknowledged writes were lost since the last flush that ended: the next one reports it.
    pub(crate) lost: Option<String>,
}

/// Where a coordinator is in its life.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Fencing and settling.
    Opening(Opening),
    /// Requests are served.
    Open,
    /// A newer attachment exists.
    Fenced,
}

/// A set of members that some partitions share.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) members: PeerSet,
    pub(crate) quorum: usize,
}

/// A question under way.
#[derive(Debug)]
pub(crate) enum Pending {
    /// [`MemberRequest::Fence`].
    Fence { peer: PeerIndex },
    /// [`MemberRequest::Stamp`] of a disk that was opened anew.
    Check { peer: PeerIndex, object: u32 },
    /// [`MemberRequest::Stamp`] of a disk that did not list an object which another listed.
    Compare { peer: PeerIndex, key: ObjectKey },
    /// [`MemberRequest::OpenLayer`].
    Layer { peer: PeerIndex, layer: LayerId },
    /// [`MemberRequest::Settle`].
    Settle { peer: PeerIndex, key: ObjectKey, stamp: Stamp },
    /// [`MemberRequest::Stamp`] before the first write of a chain, or after a refused one.
    Learn { peer: PeerIndex, chain: u64 },
    /// [`MemberRequest::Write`].
    Write { peer: PeerIndex, chain: u64, sequence: u64 },
    /// [`MemberRequest::Read`], [`MemberRequest::Map`] or [`MemberRequest::Difference`].
    Read { peer: PeerIndex, read: u64 },
    /// [`MemberRequest::Flush`]; makes everything up to this epoch stable.
    Flush { peer: PeerIndex, epoch: u64 },
}

impl Pending {
    pub(crate) fn peer(&self) -> PeerIndex {
        match *self {
            Pending::Fence { peer }
            | Pending::Check { peer, .. }
            | Pending::Compare { peer, .. }
            | Pending::Layer { peer, .. }
            | Pending::Settle { peer, .. }
            | Pending::Learn { peer, .. }
            | Pending::Write { peer, .. }
            | Pending::Read { peer, .. }
            | Pending::Flush { peer, .. } => peer,
        }
    }
}

impl Coordinator {
    /// Starts an attachment's coordinator: it fences the disks of the volume and settles what was
    /// in flight, opens a head that is not known to be open, then [`Effect::Opened`]. A read-only
    /// one fences and settles nothing; that of a snapshot is open at once, if any disk is listed,
    /// and reads with [`Generation::SEALED`].
    ///
    /// # Panics
    /// If the map does not know the volume: a bug of the caller.
    pub fn open(
        now: Time,
        volume: VolumeId,
        generation: Generation,
        view: View,
        map: Arc<Map>,
        effects: &mut Vec<Effect>,
    ) -> Coordinator {
        let known = map.volume(volume).expect("the volume is in the map");
        let (layer, rung) = Coordinator::first_layer(&map, known.head, view);
        let (read_only, generation) = match view {
            View::Head { read_only } => (read_only, generation),
            View::Snapshot { .. } => (true, Generation::SEALED),
        };
        let mut coordinator = Coordinator {
            now,
            volume,
            lineage: known.lineage,
            layer,
            is_switching: rung.is_some(),
            rungs: rung.into_iter().collect(),
            switches: VecDeque::new(),
            generation,
            read_only,
            map,
            phase: Phase::Opening(Opening::default()),
            peers: Vec::new(),
            by_disk: BTreeMap::new(),
            groups: Vec::new(),
            origin_groups: Vec::new(),
            tokens: Slots::default(),
            objects: BTreeMap::new(),
            chains: Slots::default(),
            spare_chains: Vec::new(),
            reads: Slots::default(),
            parked: VecDeque::new(),
            flushes: VecDeque::new(),
            sequence: Sequence::new(),
            lost: None,
        };
        coordinator.take_map(effects);
        coordinator
    }

    /// Takes in what has happened. Total: whatever a disk answers, nothing panics.
    pub fn handle(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) {
        self.now = now;
        match event {
            Event::Request { token, request } => self.handle_request(token, request, effects),
            Event::Member { disk, token, result } => {
                self.handle_member(disk, token, result, effects);
            }
            Event::Map(map) => {
                self.map = map;
                if !matches!(self.phase, Phase::Fenced) {
                    self.take_map(effects);
                }
            }
            Event::Tick => self.handle_tick(effects),
        }
        if self.is_switching {
            self.pump_layers(effects);
        }
    }

    /// When [`Event::Tick`] wants to come at the latest.
    pub fn deadline(&self) -> Option<Time> {
        self.peers.iter().filter_map(|peer| peer.retry_at).min()
    }

    /// What keeps requests from going on, if anything but the disks' work does: continues the
    /// sentence "waiting for ..".
    pub fn obstacle(&self) -> Option<String> {
        if self.groups.is_empty() {
            return Some("a disk: the cluster has none that holds this volume".to_string());
        }
        self.peers.iter().find_map(|peer| {
            let disk = peer.disk;
            match (&peer.state, peer.retry_at) {
                (PeerState::Away(reason), _) => Some(format!("disk {disk}: {reason}")),
                (_, Some(_)) => Some(format!("disk {disk}, which is busy")),
                (PeerState::Fencing, _) => {
                    Some(format!("disk {disk} to end the earlier attachment"))
                }
                (PeerState::Checking, _) => Some(format!("disk {disk} to tell what it still has")),
                (PeerState::Up, None) => None,
            }
        })
    }

    /// Whether some objects, for lack of a quorum of disks that can be asked, cannot be changed
    /// however long one waits, until the map shows the disks again.
    pub fn is_stalled(&self) -> bool {
        let away =
            |peer: PeerIndex| matches!(self.peers[usize::from(peer)].state, PeerState::Away(_));
        self.groups.is_empty()
            || self.is_origin_away()
            || self.groups.iter().any(|group| {
                group.members.iter().filter(|peer| !away(*peer)).count() < group.quorum
            })
    }

    // -- the map --

    /// Brings the peers in line with the map.
    fn take_map(&mut self, effects: &mut Vec<Effect>) {
        let map = Arc::clone(&self.map);
        let mut groups: BTreeMap<Vec<DiskId>, usize> = BTreeMap::new();
        let mut listed = BTreeSet::new();
        for configuration in self.own_configurations(&map) {
            assert!(
                configuration.current.len() <= MEMBERS_MAX,
                "more members than a partition has"
            );
            if configuration.current.is_empty() {
                continue;
            }
            listed.extend(configuration.current.iter().map(|m| (m.disk, m.incarnation)));
            let disks = configuration.current.iter().map(|member| member.disk).collect();
            groups.insert(disks, configuration.quorum());
        }
        let mut reopened = Vec::new();
        let origins = self.take_origins();
        for &(disk, incarnation) in listed.union(&origins) {
            let is_own = listed.contains(&(disk, incarnation));
            match self.by_disk.get(&disk) {
                None => {
                    let known = self.first_known();
                    let state = if self.read_only { PeerState::Up } else { PeerState::Fencing };
                    let index = PeerIndex::try_from(self.peers.len()).expect("disks are bounded");
                    self.peers.push(match is_own {
                        true => Peer::new(disk, incarnation, state, known),
                        false => Peer::of_origin(disk, incarnation),
                    });
                    self.by_disk.insert(disk, index);
                    self.resume(index, effects);
                }
                Some(&index) => {
                    let peer = &self.peers[usize::from(index)];
                    let joins = is_own && !peer.own;
                    if peer.incarnation != incarnation || joins {
                        reopened.push((index, incarnation));
                    }
                    if joins {
                        self.join(index);
                    }
                }
            }
        }
        self.groups = groups
            .into_iter()
            .map(|(disks, quorum)| Group {
                members: disks.iter().filter_map(|disk| self.by_disk.get(disk)).copied().collect(),
                quorum,
            })
            .collect();
        for (index, incarnation) in reopened {
            self.peer_reopened(index, incarnation, effects);
        }
        self.relink_chains(effects);
        self.pump_opening(effects);
        for index in 0..self.peers.len() as PeerIndex {
            // A disk that was told "wrong configuration" may agree now.
            self.peers[usize::from(index)].retry_at = None;
            self.resume(index, effects);
        }
    }

    /// A disk that held only what shows through holds objects of the volume from now on.
    fn join(&mut self, index: PeerIndex) {
        let known = self.first_known();
        let peer = &mut self.peers[usize::from(index)];
        peer.own = true;
        peer.layer = known;
        peer.mark_dirty();
    }

    /// The configurations of the partitions that hold the volume, each at least once.
    fn own_configurations<'a>(
        &self,
        map: &'a Map,
    ) -> Box<dyn Iterator<Item = &'a Configuration> + 'a> {
        let Some(volume) = map.volume(self.volume) else { return Box::new(std::iter::empty()) };
        let discard = volume.pending_discard.map_or(0, |discard| discard.end);
        // A snapshot may be longer than the volume is now.
        let of_layer = |snapshot: &&cluster::Snapshot| snapshot.layer == self.layer;
        let sealed = volume.snapshots.iter().find(of_layer).map_or(0, |snapshot| snapshot.bytes);
        configurations(map, volume.lineage, volume.bytes.max(discard).max(sealed))
    }

    /// The current members of an object's partition.
    pub(crate) fn members_of(&self, object: u32) -> PeerSet {
        self.members_in(self.lineage, object)
    }

    /// The current members of the partition of an object of any lineage.
    pub(crate) fn members_in(&self, lineage: LineageId, object: u32) -> PeerSet {
        let configuration = self.map.configuration_of(lineage, object);
        let peers = configuration.current.iter().filter_map(|m| self.peer_of(m.disk));
        peers.collect()
    }

    /// How many members make a quorum of an object's partition.
    pub(crate) fn quorum_of(&self, object: u32) -> usize {
        self.map.configuration_of(self.lineage, object).quorum()
    }

    pub(crate) fn peer_of(&self, disk: DiskId) -> Option<PeerIndex> {
        match self.peers.first() {
            Some(first) if first.disk == disk => Some(0),
            _ => self.by_disk.get(&disk).copied(),
        }
    }

    /// An object as this disk is to be asked for it: in the newest layer that the disk knows.
    pub(crate) fn key_at(&self, peer: PeerIndex, index: u32) -> ObjectKey {
        ObjectKey { layer: self.peers[usize::from(peer)].layer, index }
    }

    // -- questions and answers --

    pub(crate) fn ask(
        &mut self,
        pending: Pending,
        request: MemberRequest,
        effects: &mut Vec<Effect>,
    ) {
        let disk = self.peers[usize::from(pending.peer())].disk;
        let token = MemberToken(self.tokens.insert(pending));
        effects.push(Effect::Member { disk, token, request });
    }

    fn handle_request(&mut self, token: u64, request: Request, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Open => {}
            Phase::Fenced => {
                effects.push(Effect::Done { token, result: Err(Error::Fenced) });
                return;
            }
            Phase::Opening(_) => panic!("a request before the coordinator was open"),
        }
        match request {
            Request::Read { source, index, blocks } => {
                self.begin_read(token, source, index, blocks, Want::Content, effects);
            }
            Request::Map { source, index, blocks } => {
                self.begin_read(token, source, index, blocks, Want::Kind, effects);
            }
            Request::Difference { base, index, blocks } => {
                let want = Want::Difference(base);
                self.begin_read(token, Source::Own, index, blocks, want, effects);
            }
            Request::SwitchLayer { layer, parent } => {
                assert!(!self.read_only, "a switch in a session that only reads");
                self.begin_switch(token, layer, parent, effects);
            }
            Request::Change { index, change } => {
                assert!(!self.read_only, "a change in a session that only reads");
                self.begin_change(token, index, change, effects);
            }
            Request::Flush { reported } => {
                assert!(!self.read_only, "a flush in a session that only reads");
                self.begin_flush(token, reported, effects);
            }
        }
    }

    fn handle_member(
        &mut self,
        disk: DiskId,
        token: MemberToken,
        result: Result<MemberReply, MemberError>,
        effects: &mut Vec<Effect>,
    ) {
        // Late answers find nothing, and nobody answers for another.
        let asked = self.tokens.at(token.0).map(Pending::peer);
        let Some(peer) = asked.filter(|peer| self.peers[usize::from(*peer)].disk == disk) else {
            return;
        };
        let pending = self.tokens.remove(token.0).expect("it is there");
        match result {
            Ok(reply) => self.handle_reply(peer, pending, reply, effects),
            Err(MemberError::Fenced { .. }) => self.end(effects),
            Err(error) => self.handle_error(peer, pending, error, effects),
        }
    }

    fn handle_reply(
        &mut self,
        peer: PeerIndex,
        pending: Pending,
        reply: MemberReply,
        effects: &mut Vec<Effect>,
    ) {
        match (pending, reply) {
            (Pending::Write { chain, sequence, .. }, MemberReply::Written { incarnation }) => {
                self.link_answered(chain, peer);
                if self.is_listed(peer, incarnation) {
                    self.acknowledge(chain, sequence, peer, effects);
                    self.settle_chain(chain, effects);
                }
            }
            (
                Pending::Read { read, .. },
                reply @ (MemberReply::Data { .. }
                | MemberReply::Map(_)
                | MemberReply::Difference(_)),
            ) => self.handle_content(peer, read, reply, effects),
            (Pending::Layer { layer, .. }, MemberReply::Done) => {
                self.handle_layer(peer, layer, effects);
            }
            (Pending::Flush { epoch, .. }, MemberReply::Flushed { incarnation }) => {
                self.peers[usize::from(peer)].flushing = false;
                if self.is_listed(peer, incarnation) {
                    self.handle_flushed(peer, epoch, effects);
                }
            }
            (Pending::Fence { .. }, MemberReply::Fenced { incarnation, unsettled, .. }) => {
                self.handle_fenced(peer, incarnation, unsettled, effects);
            }
            (Pending::Learn { chain, .. }, MemberReply::Stamp(ObjectStamp { stamp, .. })) => {
                self.link_answered(chain, peer);
                self.handle_learned(chain, peer, stamp, effects);
            }
            (Pending::Check { object, .. }, MemberReply::Stamp(ObjectStamp { stamp, .. })) => {
                self.handle_checked(peer, object, stamp, effects);
            }
            (Pending::Compare { key, .. }, MemberReply::Stamp(found)) => {
                self.handle_compared(peer, ObjectStamp { key, ..found }, effects);
            }
            (Pending::Settle { key, stamp, .. }, MemberReply::Done) => {
                self.handle_settled(key, stamp, effects);
            }
            (pending, _) => self.handle_nonsense(peer, pending),
        }
    }

    /// An answer to another question than the one asked: that disk's program cannot be trusted.
    pub(crate) fn handle_nonsense(&mut self, peer: PeerIndex, pending: Pending) {
        if let Pending::Read { read, .. } = pending {
            self.park_read(read);
        }
        self.peer_lost(peer, "it gave an answer that makes no sense; see its log".to_string());
    }

    fn handle_error(
        &mut self,
        peer: PeerIndex,
        pending: Pending,
        error: MemberError,
        effects: &mut Vec<Effect>,
    ) {
        match error {
            MemberError::Retired => {
                if let Pending::Read { read, .. } = pending {
                    self.park_read(read);
                }
                self.peer_lost(peer, "it is out of service; replace it or start it anew".into());
                self.retry_reads(effects);
                return;
            }
            MemberError::Busy | MemberError::WrongConfiguration { .. } => self.back_off(peer),
            _ => {}
        }
        match pending {
            Pending::Write { chain, sequence, .. } => {
                self.link_answered(chain, peer);
                self.handle_write_error(chain, sequence, peer, error, effects);
            }
            Pending::Read { read, .. } => self.handle_read_error(peer, read, error, effects),
            Pending::Learn { chain, .. } => {
                self.link_answered(chain, peer);
                self.handle_learn_error(chain, peer, effects);
            }
            Pending::Fence { .. } => {
                self.peers[usize::from(peer)].asked = false;
                self.back_off(peer);
            }
            Pending::Check { object, .. } => {
                self.check_again(peer, object);
                self.back_off(peer);
            }
            Pending::Flush { .. } => {
                self.peers[usize::from(peer)].flushing = false;
                self.back_off(peer);
            }
            Pending::Layer { .. } => self.handle_layer_error(peer, &error),
            Pending::Compare { .. } | Pending::Settle { .. } => self.opening_refused(pending),
        }
    }

    /// Time has passed: what was put off is tried again.
    fn handle_tick(&mut self, effects: &mut Vec<Effect>) {
        for index in 0..self.peers.len() as PeerIndex {
            let peer = &mut self.peers[usize::from(index)];
            if peer.retry_at.is_some_and(|at| at <= self.now) {
                peer.retry_at = None;
                self.resume(index, effects);
            }
        }
    }

    /// A newer attachment exists: everything ends.
    fn end(&mut self, effects: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Fenced) {
            return;
        }
        self.phase = Phase::Fenced;
        let mut fail = |token| effects.push(Effect::Done { token, result: Err(Error::Fenced) });
        for (_, chain) in self.chains.iter() {
            chain.unanswered().for_each(&mut fail);
        }
        self.reads.iter().for_each(|(_, read)| fail(read.token));
        self.flushes.iter().for_each(|flush| fail(flush.token));
        self.fail_switches(effects);
        self.tokens = Slots::default();
        self.chains = Slots::default();
        self.reads = Slots::default();
        self.objects.clear();
        self.parked.clear();
        self.flushes.clear();
        self.peers.iter_mut().for_each(|peer| peer.retry_at = None);
        effects.push(Effect::Fenced);
    }

    /// Asserts the invariants; for tests and simulation, it looks at everything.
    pub fn check(&self) {
        if matches!(self.phase, Phase::Fenced) {
            assert!(self.tokens.is_empty() && self.chains.is_empty() && self.reads.is_empty());
            return;
        }
        self.check_chains();
        self.check_reads();
        self.check_layers();
        let mut asked = vec![0; self.peers.len()];
        for (_, pending) in self.tokens.iter() {
            if let Pending::Check { peer, .. } = pending {
                asked[usize::from(*peer)] += 1;
            }
        }
        for (peer, asked) in self.peers.iter().zip(asked) {
            assert_eq!(peer.checks_asked, asked, "checks of disk {}", peer.disk);
            assert!(peer.stable_epoch < peer.epoch && peer.dirty_epoch <= peer.epoch);
        }
    }
}

/// Whether a change leaves blocks as they are where nothing was ever written.
pub(crate) fn is_only_absent(change: &Change) -> bool {
    matches!(change, Change::Absent { .. })
}
