//! The machine between one volume's session and the disks.

use crate::chain::{Chain, Object};
use crate::choice::Choices;
use crate::copier::CopyQuestion;
use crate::event::{Effect, Error, Event, Request, Source, View};
use crate::flush::FlushWait;
use crate::layers::{Rung, SwitchWait};
use crate::opening::Opening;
use crate::partitions::{Group, Partitions};
use crate::peer::{Peer, PeerIndex, PeerState};
use crate::read::{Read, Want};
use crate::sequence::Sequence;
use crate::slots::Slots;
use crate::verify::Checks;
use cluster::Map;
use proto::{
    Change, ConfigurationNumber, DiskId, Generation, Incarnation, LayerId, LineageId, MemberError,
    MemberReply, MemberRequest, MemberToken, ObjectKey, ObjectStamp, PartitionId, Stamp, Time,
    VolumeId,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Fans one volume's object requests out to the disks that hold the objects.
///
/// Invariants: a change is acknowledged once, after a quorum of the object's current members had
/// it, or all members of the next configuration; each member's object is a prefix of one history,
/// because every write names the one before it and is sent only after that; a flush ends well only
/// if everything acknowledged before it is stable on a quorum; what a read brings had a quorum when
/// the read came, or later.
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
    /// Openings of disks.
    pub(crate) peers: Vec<Peer>,
    /// Places among them that are free.
    pub(crate) free_peers: Vec<PeerIndex>,
    pub(crate) by_opening: BTreeMap<(DiskId, Incarnation), PeerIndex>,
    /// The partitions that hold the volume.
    pub(crate) partitions: Partitions,
    /// The different member sets of what shows through from other lineages.
    pub(crate) origin_groups: Vec<Vec<PeerIndex>>,
    /// Disks that are asked first.
    pub(crate) near: BTreeSet<DiskId>,
    /// Questions under way.
    pub(crate) tokens: Slots<Pending>,
    /// Objects whose stamp is known, or that have a chain.
    pub(crate) objects: BTreeMap<u32, Object>,
    /// Those of them that are looked at after their members have changed.
    pub(crate) checks: Checks,
    /// What a session that only reads shows of objects whose members may differ.
    pub(crate) choices: Choices,
    /// Objects with changes that are not on every member yet.
    pub(crate) chains: Slots<Chain>,
    /// Emptied chains, kept for their memory.
    pub(crate) spare_chains: Vec<Chain>,
    /// Reads that have not ended.
    pub(crate) reads: Slots<Read>,
    /// Those of `reads` that wait for a disk.
    pub(crate) parked: VecDeque<u64>,
    /// Those of `reads` whose answer waits to be confirmed.
    pub(crate) found: BTreeSet<u64>,
    /// When which read is asked of another disk, the oldest first.
    pub(crate) hedges: VecDeque<(Time, u64)>,
    /// Counts the reads that came: what was sent at one count confirms those that came by then.
    pub(crate) clock: u64,
    /// What the last answer about a partition was sent after that proves as much as a
    /// confirmation. Kept only while reads wait.
    pub(crate) proofs: BTreeMap<(PeerIndex, PartitionId), u64>,
    /// Flushes that have not ended, oldest first.
    pub(crate) flushes: VecDeque<FlushWait>,
    /// The number of the next flush, ..
    pub(crate) flush_number: u64,
    /// .. of the last one that has ended, ..
    pub(crate) flushed: u64,
    /// .. and of the first that covers all writes to objects that are not known any more.
    pub(crate) forgotten: u64,
    /// The next write when the session last flushed by itself.
    pub(crate) flushed_itself_at: u64,
    /// The settled point: below it everything is stable on every current member.
    pub(crate) settled: Stamp,
    pub(crate) sequence: Sequence,
    /// Acknowledged writes were lost since the last flush that ended: the next one reports it.
    pub(crate) lost: Option<String>,
    /// Peers for which more is kept in memory than may be.
    pub(crate) overdue: BTreeSet<PeerIndex>,
    /// Something has changed for reads that wait.
    pub(crate) is_changed: bool,
    /// What an opening asks when its copies are there.
    pub(crate) opening_settles: VecDeque<Pending>,
}

/// Where a coordinator is in its life.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Fencing and settling.
    Opening(Box<Opening>),
    /// Requests are served.
    Open,
    /// A newer attachment exists.
    Fenced,
}

/// A question under way.
#[derive(Debug)]
pub(crate) enum Pending {
    /// [`MemberRequest::Fence`].
    Fence { peer: PeerIndex, list: bool },
    /// [`MemberRequest::Stamp`] after the members have changed.
    Check { peer: PeerIndex, object: u32, layer: LayerId },
    /// [`MemberRequest::Stamp`] of a disk that did not list an object which another listed.
    Compare { peer: PeerIndex, key: ObjectKey },
    /// [`MemberRequest::OpenLayer`].
    Layer { peer: PeerIndex, layer: LayerId },
    /// [`MemberRequest::Settle`].
    Settle { peer: PeerIndex, key: ObjectKey, stamp: Stamp },
    /// [`MemberRequest::Mark`].
    Mark { peer: PeerIndex },
    /// Whatever a copier asks.
    Copy { peer: PeerIndex, copier: u64, question: CopyQuestion },
    /// [`MemberRequest::Stamp`] before the first write of a chain, or after a refused one.
    Learn { peer: PeerIndex, chain: u64 },
    /// [`MemberRequest::Write`]; sent at this count of reads.
    Write { peer: PeerIndex, chain: u64, sequence: u64, sent: u64 },
    /// [`MemberRequest::Read`], [`MemberRequest::Map`] or [`MemberRequest::Difference`]; sent at
    /// this count of reads.
    Read { peer: PeerIndex, read: u64, sent: u64 },
    /// [`MemberRequest::Confirm`]; sent at this count of reads.
    Confirm { peer: PeerIndex, sent: u64 },
    /// [`MemberRequest::Flush`]; makes everything up to this epoch stable.
    Flush { peer: PeerIndex, epoch: u64 },
    /// [`MemberRequest::Stamp`] before the first read of an object by who only reads.
    Choose { peer: PeerIndex, object: u32 },
    /// [`MemberRequest::OpenLayer`] while the session opens, of a disk that does not know a layer
    /// of which others have something.
    Rung { peer: PeerIndex, layer: LayerId, parent: LayerId },
}

impl Pending {
    pub(crate) fn peer(&self) -> PeerIndex {
        match *self {
            Pending::Fence { peer, .. }
            | Pending::Check { peer, .. }
            | Pending::Compare { peer, .. }
            | Pending::Layer { peer, .. }
            | Pending::Settle { peer, .. }
            | Pending::Mark { peer }
            | Pending::Copy { peer, .. }
            | Pending::Learn { peer, .. }
            | Pending::Write { peer, .. }
            | Pending::Read { peer, .. }
            | Pending::Confirm { peer, .. }
            | Pending::Flush { peer, .. }
            | Pending::Choose { peer, .. }
            | Pending::Rung { peer, .. } => peer,
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
            phase: Phase::Opening(Box::default()),
            peers: Vec::new(),
            free_peers: Vec::new(),
            by_opening: BTreeMap::new(),
            partitions: Partitions::default(),
            origin_groups: Vec::new(),
            near: BTreeSet::new(),
            tokens: Slots::default(),
            objects: BTreeMap::new(),
            checks: Checks::default(),
            choices: Choices::default(),
            chains: Slots::default(),
            spare_chains: Vec::new(),
            reads: Slots::default(),
            parked: VecDeque::new(),
            found: BTreeSet::new(),
            hedges: VecDeque::new(),
            clock: 0,
            proofs: BTreeMap::new(),
            flushes: VecDeque::new(),
            flush_number: 1,
            flushed: 0,
            forgotten: 0,
            flushed_itself_at: 1,
            settled: Stamp::default(),
            sequence: Sequence::new(),
            lost: None,
            overdue: BTreeSet::new(),
            is_changed: false,
            opening_settles: VecDeque::new(),
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
            Event::Ended => self.end(effects),
        }
        self.tidy(effects);
    }

    /// What an event has left to do.
    fn tidy(&mut self, effects: &mut Vec<Effect>) {
        while let Some(index) = self.overdue.pop_first() {
            let peer = &self.peers[usize::from(index)];
            if peer.lags_too_much() {
                let reason = match &peer.state {
                    PeerState::Away { reason, .. } => reason.clone(),
                    _ => "it takes writes too slowly, or not at all".to_string(),
                };
                self.fall_behind(index, reason, effects);
            }
        }
        if std::mem::take(&mut self.is_changed) {
            self.pump_checks(effects);
            self.retry_reads(effects);
        }
        if self.is_switching {
            self.pump_layers(effects);
        }
    }

    /// When [`Event::Tick`] wants to come at the latest.
    pub fn deadline(&self) -> Option<Time> {
        let opening = match &self.phase {
            Phase::Opening(opening) => opening.deadline(),
            _ => None,
        };
        let peers = self.peers.iter().filter_map(|peer| peer.retry_at);
        peers.chain(opening).chain(self.hedge_at()).min()
    }

    /// What keeps requests from going on, if anything but the disks' work does: continues the
    /// sentence "waiting for ..".
    pub fn obstacle(&self) -> Option<String> {
        if self.partitions.groups.is_empty() {
            return Some("a disk: the cluster has none that holds this volume".to_string());
        }
        if let Some(words) = self.partitions.groups.iter().find_map(|group| self.lacks(group)) {
            return Some(words);
        }
        if let Phase::Opening(opening) = &self.phase {
            let targets: Vec<String> =
                opening.copies_to().iter().map(|disk| format!("disk {disk}")).collect();
            if !targets.is_empty() {
                return Some(format!("{} to get what others have", targets.join(" and ")));
            }
        }
        if !self.checks.is_empty() {
            return Some("the disks to tell what they still have".to_string());
        }
        if let Some(words) = self.choice_obstacle() {
            return Some(words);
        }
        let origins = self.origin_groups.iter().flatten();
        let mut away = origins.map(|peer| &self.peers[usize::from(*peer)]);
        away.find_map(|peer| match &peer.state {
            PeerState::Away { reason, .. } => Some(format!("disk {}: {reason}", peer.disk)),
            _ => None,
        })
    }

    /// For which disks these members wait, if they are fewer than a quorum without them.
    fn lacks(&self, group: &Group) -> Option<String> {
        let words: Vec<String> =
            group.members.iter().filter_map(|peer| self.waits_for(group, peer)).collect();
        let serving = group.members.len() - words.len();
        (serving < group.quorum()).then(|| words.join(", and "))
    }

    /// Why this member does not serve, if it does not.
    pub(crate) fn waits_for(&self, group: &Group, index: PeerIndex) -> Option<String> {
        let peer = &self.peers[usize::from(index)];
        let disk = peer.disk;
        let is_awaited = match &self.phase {
            Phase::Opening(opening) => !self.read_only && opening.waits_for(index),
            _ => false,
        };
        match (&peer.state, peer.retry_at, &peer.behind) {
            (PeerState::Away { reason, .. }, ..) => Some(format!("disk {disk}: {reason}")),
            (_, _, Some(why)) if !group.whole.contains(index) => {
                Some(format!("disk {disk}, which is behind ({why}), to become whole"))
            }
            (_, Some(_), _) => Some(format!("disk {disk}, which is busy")),
            (PeerState::Fencing, ..) => Some(format!("disk {disk} to end the earlier attachment")),
            _ if is_awaited => Some(format!("disk {disk} to end the earlier attachment")),
            _ if self.has_refused_any(index) => {
                Some(format!("the members of a partition on disk {disk} to be changed"))
            }
            _ => None,
        }
    }

    /// Whether some objects, for lack of a quorum of disks that can be asked, cannot be changed
    /// however long one waits, until the map shows the disks again.
    pub fn is_stalled(&self) -> bool {
        let serves = |peer: &PeerIndex| !self.peers[usize::from(*peer)].is_away();
        self.partitions.groups.is_empty()
            || self.is_origin_away()
            || self.is_choice_away()
            || self
                .partitions
                .groups
                .iter()
                .any(|group| group.whole.iter().filter(serves).count() < group.quorum())
    }

    // -- the map --

    /// Brings partitions and peers in line with the map.
    fn take_map(&mut self, effects: &mut Vec<Effect>) {
        let changed = self.take_partitions();
        let origins = self.take_origins();
        if !changed.is_empty() {
            let is_changed = |coordinator: &Coordinator, index: u32| {
                changed.contains(&coordinator.partition_id(index))
            };
            if self.forgotten > self.flushed {
                self.report_forgotten(&changed, effects);
            }
            self.reset_objects(is_changed);
            self.reset_reads(is_changed);
            self.reset_choices(is_changed);
            self.opening_lost(effects);
        }
        self.drop_peers(&origins, effects);
        for index in 0..self.peers.len() as PeerIndex {
            self.peers[usize::from(index)].retry_at = None;
            self.resume(index, effects);
        }
        self.pump_opening(effects);
        self.pump_checks(effects);
        self.retry_reads(effects);
        self.end_flushes(effects);
        self.end_switches(effects);
    }

    /// With one member, a change means that its disk was interrupted; what it may have lost of
    /// objects that are not known any more cannot be found out.
    fn report_forgotten(&mut self, changed: &BTreeSet<PartitionId>, effects: &mut Vec<Effect>) {
        let member = {
            let mut sole = self
                .partitions
                .iter()
                .filter(|(id, partition)| changed.contains(id) && partition.members.len() == 1);
            sole.next().and_then(|(_, partition)| partition.members.iter().next())
        };
        let Some(index) = member else { return };
        let disk = self.peers[usize::from(index)].disk;
        let what = "was interrupted and may have lost writes that had not been flushed";
        self.writes_lost(format!("disk {disk} {what}"), effects);
        self.forgotten = 0;
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
        let member = self.opening_to_ask(pending.peer());
        let token = MemberToken(self.tokens.insert(pending));
        effects.push(Effect::Member { member, token, request });
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
                self.begin_flush(Some(token), reported, None, effects);
            }
            Request::Seal => {
                assert!(!self.read_only, "a seal in a session that only reads");
                let head = self.layer;
                self.begin_flush(Some(token), false, Some(head), effects);
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
            (
                Pending::Write { chain, sequence, sent, .. },
                MemberReply::Written { incarnation },
            ) => {
                self.link_answered(chain, peer);
                if self.is_listed(peer, incarnation, effects) {
                    if let Some(index) = self.chains.at(chain).map(|chain| chain.index) {
                        let state = &mut self.peers[usize::from(peer)];
                        state.proved = state.proved.max(sent);
                        self.note_proof(peer, index, sent, effects);
                    }
                    self.acknowledge(chain, sequence, peer, effects);
                    self.settle_chain(chain, effects);
                }
            }
            (
                Pending::Read { read, sent, .. },
                reply @ (MemberReply::Data { .. }
                | MemberReply::Map(_)
                | MemberReply::Difference(_)),
            ) => self.handle_content(peer, read, sent, reply, effects),
            (Pending::Layer { layer, .. }, MemberReply::Done) => {
                self.handle_layer(peer, layer, effects);
            }
            (Pending::Flush { epoch, .. }, MemberReply::Flushed { incarnation }) => {
                self.peers[usize::from(peer)].flushing = false;
                if self.is_listed(peer, incarnation, effects) {
                    self.handle_flushed(peer, epoch, effects);
                }
            }
            (Pending::Fence { list, .. }, reply @ MemberReply::Fenced { .. }) => {
                self.handle_fenced(peer, list, reply, effects);
            }
            (Pending::Learn { chain, .. }, MemberReply::Stamp(ObjectStamp { stamp, .. })) => {
                self.link_answered(chain, peer);
                self.handle_learned(chain, peer, stamp, effects);
            }
            (
                Pending::Check { object, layer, .. },
                MemberReply::Stamp(ObjectStamp { stamp, .. }),
            ) => {
                self.handle_checked(peer, object, layer, stamp, effects);
            }
            (Pending::Choose { object, .. }, MemberReply::Stamp(found)) => {
                self.handle_told(peer, object, found, effects);
            }
            (Pending::Compare { key, .. }, MemberReply::Stamp(found)) => {
                self.handle_compared(peer, ObjectStamp { key, ..found }, effects);
            }
            (
                Pending::Settle { .. } | Pending::Mark { .. } | Pending::Rung { .. },
                MemberReply::Done,
            ) => self.opening_answered(effects),
            (Pending::Copy { copier, question, .. }, reply) => {
                self.handle_copied(copier, question, Ok(reply), effects);
            }
            (
                Pending::Confirm { sent, .. },
                MemberReply::Confirmed { incarnation, refusals, refused, more },
            ) => {
                self.peers[usize::from(peer)].confirming = false;
                if !self.is_listed(peer, incarnation, effects) {
                    return;
                }
                let is_all = self.handle_confirmed(peer, sent, refusals, &refused, more);
                if !is_all {
                    self.ask_confirm(peer, effects);
                } else if self.is_opening() {
                    self.opening_answered(effects);
                } else {
                    self.choose();
                    self.end_reads(effects);
                    self.kick_confirm(peer, effects);
                }
            }
            (pending, _) => {
                self.unanswered(&pending);
                self.handle_nonsense(peer, effects);
            }
        }
    }

    /// A question is answered with nothing of use.
    fn unanswered(&mut self, pending: &Pending) {
        match *pending {
            Pending::Read { read, peer, .. } => self.read_unanswered(read, peer),
            Pending::Check { object, .. } => self.check_again(object),
            Pending::Choose { object, peer } => self.untold(peer, object),
            Pending::Write { chain, peer, .. } | Pending::Learn { chain, peer } => {
                self.link_answered(chain, peer);
            }
            _ => {}
        }
    }

    /// An answer to another question than the one asked: that disk's program cannot be trusted.
    pub(crate) fn handle_nonsense(&mut self, peer: PeerIndex, effects: &mut Vec<Effect>) {
        let reason = "it gave an answer that makes no sense; see its log".to_string();
        self.peer_lost(peer, reason, effects);
    }

    fn handle_error(
        &mut self,
        peer: PeerIndex,
        pending: Pending,
        error: MemberError,
        effects: &mut Vec<Effect>,
    ) {
        if let Pending::Copy { copier, question, .. } = pending {
            return self.handle_copied(copier, question, Err(error), effects);
        }
        match error {
            MemberError::Retired => {
                self.unanswered(&pending);
                let reason = "it is out of service or cannot be reached; start it, or replace it";
                return self.peer_away(peer, reason.to_string(), true, effects);
            }
            MemberError::Busy => self.back_off(peer),
            MemberError::WrongConfiguration { have } => self.note_refusal(&pending, have),
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
                self.handle_learn_error(chain, peer, &error, effects);
            }
            Pending::Fence { .. } => {
                self.peers[usize::from(peer)].asked = false;
                self.back_off(peer);
            }
            Pending::Check { object, layer, .. } => {
                self.handle_check_error(peer, object, layer, &error, effects);
            }
            Pending::Flush { .. } => {
                self.peers[usize::from(peer)].flushing = false;
                self.back_off(peer);
                if self.is_opening() {
                    self.opening_again(pending);
                }
            }
            Pending::Confirm { .. } => {
                self.peers[usize::from(peer)].confirming = false;
                self.back_off(peer);
                if self.is_opening() {
                    self.opening_again(pending);
                }
            }
            Pending::Choose { object, .. } => {
                self.untold(peer, object);
                self.back_off(peer);
            }
            Pending::Layer { layer, .. } => {
                self.handle_layer_error(peer, layer, &error, effects);
            }
            Pending::Compare { .. }
            | Pending::Rung { .. }
            | Pending::Settle { .. }
            | Pending::Mark { .. } => {
                self.opening_refused(pending, &error, effects);
            }
            Pending::Copy { .. } => unreachable!("handled above"),
        }
    }

    /// The disk has refused the configuration that was named: nothing more is asked of it under
    /// that.
    fn note_refusal(&mut self, pending: &Pending, have: ConfigurationNumber) {
        let index = match *pending {
            Pending::Write { chain, .. } => self.chains.at(chain).map(|chain| chain.index),
            Pending::Read { read, .. } => self.reads.at(read).map(|read| read.index()),
            _ => None,
        };
        let Some(index) = index else { return };
        let under = self.partition_at(index).under;
        let number = ConfigurationNumber(have.0.saturating_sub(1)).max(under.number);
        let key = (under.copies, under.bits, self.partition_id(index));
        let known = self.peers[usize::from(pending.peer())].refused.entry(key).or_default();
        *known = (*known).max(number);
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
        self.hedge_reads(effects);
        self.pump_opening(effects);
    }

    /// A newer attachment exists: everything ends.
    pub(crate) fn end(&mut self, effects: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Fenced) {
            return;
        }
        self.phase = Phase::Fenced;
        let mut fail = |token| effects.push(Effect::Done { token, result: Err(Error::Fenced) });
        for (_, chain) in self.chains.iter() {
            chain.unanswered().for_each(&mut fail);
        }
        self.reads.iter().for_each(|(_, read)| fail(read.token));
        self.flushes.iter().filter_map(|flush| flush.token).for_each(&mut fail);
        self.fail_switches(effects);
        self.tokens = Slots::default();
        self.chains = Slots::default();
        self.reads = Slots::default();
        self.objects.clear();
        self.checks.clear();
        self.choices.clear();
        self.overdue.clear();
        self.parked.clear();
        self.found.clear();
        self.hedges.clear();
        self.opening_settles.clear();
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
        self.check_partitions();
        self.check_chains();
        self.check_reads();
        self.check_choices();
        self.check_layers();
        self.check_objects();
        for peer in &self.peers {
            assert!(peer.stable_epoch < peer.epoch && peer.dirty_epoch <= peer.epoch);
        }
    }
}

/// Whether a change leaves blocks as they are where nothing was ever written.
pub(crate) fn is_only_absent(change: &Change) -> bool {
    matches!(change, Change::Absent { .. })
}
