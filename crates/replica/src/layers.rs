//! Which layer each disk knows, and what shows through from other lineages.
//!
//! A disk opens a new head when it has answered every change of the layers below it: a change that
//! it refused for now and that is sent again must not come after the layer that it belongs to was
//! closed. Until then it is read at the layer that it knows, which shows the same, for nothing was
//! written to the new one yet.
//!
//! A quorum is enough for writes to go on in the new head. The layers below it are *sealed* when
//! every current member has all of them, and stable: others read them from any member, and ask
//! nobody whether it is right. A member that is away or behind holds that up until it comes back
//! or the map does not list it any more; who becomes a member later gets all of it by a copy.

use crate::coordinator::{Coordinator, Pending, Phase};
use crate::event::{Answer, Effect, Error, View};
use crate::flush::FlushWait;
use crate::partitions::Group;
use crate::peer::{Peer, PeerIndex};
use cluster::{Configuration, Map, Origin};
use proto::{LayerId, LineageId, MemberError, MemberRequest, OBJECT_SIZE};
use std::collections::BTreeSet;

/// A layer that this session opens on the disks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rung {
    pub(crate) layer: LayerId,
    pub(crate) parent: LayerId,
}

/// A switch of the head that not every member knows of.
#[derive(Debug)]
pub(crate) struct SwitchWait {
    pub(crate) token: u64,
    layer: LayerId,
}

/// The configurations of the partitions that hold the first `bytes` of a lineage, each at least
/// once.
pub(crate) fn configurations(
    map: &Map,
    lineage: LineageId,
    bytes: u64,
) -> Box<dyn Iterator<Item = &Configuration> + '_> {
    let objects = bytes.div_ceil(OBJECT_SIZE as u64);
    if objects < 1 << map.partition_bits() {
        return Box::new((0..objects as u32).map(move |i| map.configuration_of(lineage, i)));
    }
    // Nearly every partition holds something.
    Box::new(map.configurations())
}

impl Coordinator {
    /// The layer a session of this view begins with, and what it must open before it serves.
    pub(crate) fn first_layer(map: &Map, head: LayerId, view: View) -> (LayerId, Option<Rung>) {
        if let View::Snapshot { layer } = view {
            return (layer, None);
        }
        let is_new = map.layer(head).is_some_and(|layer| !layer.opened);
        let parent = map.parent_in_lineage(head).filter(|_| is_new);
        (head, parent.map(|parent| Rung { layer: head, parent }))
    }

    /// What a disk has to open, one after the other, to know a layer of the volume if it knows
    /// none but the first: a disk takes no layer below one that it knows.
    pub(crate) fn ladder(&self, layer: LayerId) -> Vec<Rung> {
        let mut rungs = Vec::new();
        let mut at = layer;
        loop {
            let parent = match self.map.layer(at) {
                Some(_) => self.map.parent_in_lineage(at),
                None => self.rungs.iter().find(|rung| rung.layer == at).map(|rung| rung.parent),
            };
            let Some(parent) = parent else { break };
            rungs.push(Rung { layer: at, parent });
            at = parent;
        }
        // The first layer may have been dropped since.
        if at.0 != self.lineage.0 && self.map.layer(at).is_some() {
            rungs.push(Rung { layer: at, parent: LayerId(0) });
        }
        rungs.reverse();
        rungs
    }

    /// A disk was asked for a layer that it does not know, though it was taken to: it became a
    /// member after the layer was opened, and nobody told it. Now it is, from the lowest layer up.
    /// Once: if that was of no use, it cannot be trusted.
    pub(crate) fn begin_ladder(&mut self, index: PeerIndex, why: &str, effects: &mut Vec<Effect>) {
        let peer = &self.peers[usize::from(index)];
        if !peer.knows_a_layer() {
            // It was asked before that was known.
            return;
        }
        let mut ladder = self.ladder(peer.layer);
        let is_laddered = peer.is_laddered;
        let Some(top) = ladder.pop().filter(|_| !is_laddered) else {
            return self.peer_lost(
                index,
                format!("it knows no layer of the volume ({why})"),
                effects,
            );
        };
        // The newest are opened as every disk opens them.
        if self.rungs.iter().all(|rung| rung.layer != top.layer) {
            self.rungs.insert(0, top);
            self.rungs.sort_by_key(|rung| rung.layer);
        }
        let peer = &mut self.peers[usize::from(index)];
        peer.layer = LayerId(0);
        peer.layer_tried = None;
        peer.ladder = ladder.into();
        peer.is_laddered = true;
        self.is_switching = true;
        self.pump_layer(index, effects);
    }

    /// What a disk that was just seen is known to know.
    pub(crate) fn first_known(&mut self) -> LayerId {
        if self.rungs.is_empty() {
            return self.layer;
        }
        self.is_switching = true;
        LayerId(0)
    }

    /// The members of what shows through: they need no fence.
    pub(crate) fn take_origins(&mut self) -> BTreeSet<PeerIndex> {
        let map = self.map.clone();
        let mut groups = BTreeSet::new();
        // A source is no disk's.
        let of_disks = |origin: &Origin| map.source(origin.layer).is_none();
        for origin in map.chain(self.layer).into_iter().filter(of_disks) {
            for configuration in configurations(&map, origin.lineage, origin.bytes) {
                let members = configuration.current.iter();
                let members = members.map(|member| (member.disk, member.incarnation));
                groups.insert(members.collect::<Vec<_>>());
            }
        }
        groups.retain(|members| !members.is_empty());
        let peers = groups.into_iter().map(|members| {
            let peer = |(disk, incarnation)| self.peer_at(disk, incarnation);
            members.into_iter().map(peer).collect()
        });
        let peers: Vec<Vec<PeerIndex>> = peers.collect();
        self.origin_groups = peers;
        self.origin_groups.iter().flatten().copied().collect()
    }

    /// Changes that come from now on belong to another layer.
    pub(crate) fn begin_switch(
        &mut self,
        token: u64,
        layer: LayerId,
        parent: LayerId,
        effects: &mut Vec<Effect>,
    ) {
        assert!(layer > self.layer, "a head is newer than the one before");
        self.layer = layer;
        self.rungs.push(Rung { layer, parent });
        self.switches.push_back(SwitchWait { token, layer });
        self.is_switching = true;
        self.pump_layers(effects);
        self.end_switches(effects);
    }

    /// Asks every disk that may now be asked to open the next layer.
    pub(crate) fn pump_layers(&mut self, effects: &mut Vec<Effect>) {
        for index in 0..self.peers.len() as PeerIndex {
            self.pump_layer(index, effects);
        }
    }

    /// Asks one disk to open the next layer, if it has everything of the layers below.
    pub(crate) fn pump_layer(&mut self, index: PeerIndex, effects: &mut Vec<Effect>) {
        if !self.is_switching || !self.may_open_layers() {
            return;
        }
        let peer = &self.peers[usize::from(index)];
        if !peer.own || !peer.is_up() || peer.layer_asked || peer.retry_at.is_some() {
            return;
        }
        let (is_laddered, on_ladder) = (peer.is_laddered, peer.ladder.front());
        let next = on_ladder.or_else(|| self.rungs.iter().find(|rung| rung.layer > peer.layer));
        let Some(&Rung { layer, parent }) = next else { return };
        let is_on_ladder = on_ladder.is_some();
        let missing = self.chains.iter().filter_map(|(_, chain)| chain.missing_below(layer, index));
        if let Some(missing) = missing.min() {
            // Just seen, or opened anew. It cannot know the layer, and is taken to know what lies
            // below, as every disk is: if it does not, it says so when it is asked. A disk without
            // peers is asked first which it knows.
            let is_member = |group: &Group| group.members.contains(index);
            let mut groups = self.partitions.groups.iter().filter(|group| is_member(group));
            let has_peers = groups.all(|group| !group.is_sole());
            if has_peers && !is_on_ladder && !self.peers[usize::from(index)].knows_a_layer() {
                self.layer_known(index, missing, effects);
            }
            return;
        }
        // It may have been flattened or its parent deleted since.
        let parent = match self.map.layer(layer) {
            Some(known) if known.opened => self.map.parent_in_lineage(layer),
            _ => Some(parent),
        };
        // Such a one may lack also what is stable elsewhere.
        let parent = parent.or(is_laddered.then_some(LayerId(0)));
        let Some(parent) = parent else {
            // Only what is stable can have lost its parent.
            self.layer_known(index, layer, effects);
            return;
        };
        self.peers[usize::from(index)].layer_asked = true;
        let (lineage, generation) = (self.lineage, self.generation);
        let request = MemberRequest::OpenLayer { lineage, generation, layer, parent };
        self.ask(Pending::Layer { peer: index, layer }, request, effects);
    }

    fn may_open_layers(&self) -> bool {
        match &self.phase {
            Phase::Opening(opening) => opening.opens_layers(),
            Phase::Open => true,
            Phase::Fenced => false,
        }
    }

    /// A disk has opened a layer.
    pub(crate) fn handle_layer(
        &mut self,
        index: PeerIndex,
        layer: LayerId,
        effects: &mut Vec<Effect>,
    ) {
        let is_writer = !self.read_only;
        self.peers[usize::from(index)].layer_asked = false;
        if self.leave_rung(index, layer) {
            if is_writer {
                // It is stable with the next flush.
                self.peers[usize::from(index)].mark_dirty();
            }
            return self.pump_layer(index, effects);
        }
        self.layer_known(index, layer, effects);
    }

    /// A disk has opened this layer of its ladder, or never will.
    fn leave_rung(&mut self, index: PeerIndex, layer: LayerId) -> bool {
        let ladder = &mut self.peers[usize::from(index)].ladder;
        let is_on_it = ladder.front().is_some_and(|rung| rung.layer == layer);
        if is_on_it {
            ladder.pop_front();
        }
        is_on_it
    }

    /// A disk does not know this layer: it knows the next one below that it does not have to open.
    pub(crate) fn layer_unknown(&mut self, index: PeerIndex, layer: LayerId) {
        let Some(rung) = self.rungs.iter().find(|rung| rung.layer == layer) else { return };
        if !self.peers[usize::from(index)].ladder.is_empty() {
            // It is being told.
            return;
        }
        let parent = rung.parent;
        let is_rung = self.rungs.iter().any(|rung| rung.layer == parent);
        let peer = &mut self.peers[usize::from(index)];
        if is_rung {
            peer.layer_tried = Some(parent);
        } else {
            peer.layer = parent;
        }
    }

    /// A disk knows a layer.
    pub(crate) fn layer_known(
        &mut self,
        index: PeerIndex,
        layer: LayerId,
        effects: &mut Vec<Effect>,
    ) {
        let is_writer = !self.read_only;
        let peer = &mut self.peers[usize::from(index)];
        if layer <= peer.layer {
            return;
        }
        peer.layer = layer;
        if is_writer {
            // It is stable with the next flush, as far as anybody knows.
            peer.mark_dirty();
            self.flush_again(index, |flush| flush.is_seal());
        }
        let own = || self.peers.iter().filter(|peer| peer.own);
        let lowest = own().map(|peer| peer.layer).min().unwrap_or_default();
        let last = self.rungs.last().map(|rung| rung.layer).unwrap_or_default();
        self.is_switching = lowest < last;
        // The last one is asked for again of disks that are opened anew.
        self.rungs.retain(|rung| rung.layer > lowest || rung.layer == last);
        self.end_switches(effects);
        self.resume(index, effects);
    }

    /// A disk would not open a layer.
    pub(crate) fn handle_layer_error(
        &mut self,
        index: PeerIndex,
        layer: LayerId,
        error: &MemberError,
        effects: &mut Vec<Effect>,
    ) {
        self.peers[usize::from(index)].layer_asked = false;
        match error {
            // It is known with another layer below, or never will be, and nothing is written to it.
            MemberError::Invalid(_) if self.leave_rung(index, layer) => {
                self.pump_layer(index, effects);
            }
            MemberError::Invalid(why) => {
                let reason = format!("it refused to open a layer ({why}); report this bug");
                self.peer_lost(index, reason, effects);
            }
            _ => self.back_off(index),
        }
    }

    /// What this opening of the disk was asked to open may be gone with it.
    pub(crate) fn forget_layer(&mut self, index: PeerIndex) {
        let Some(first) = self.rungs.first() else { return };
        let peer = &mut self.peers[usize::from(index)];
        if peer.own && (peer.layer >= first.layer || peer.layer_asked) {
            peer.layer = LayerId(0);
            peer.layer_tried = None;
            self.is_switching = true;
        }
    }

    /// Whether a quorum of every member set knows the layer.
    pub(crate) fn is_layer_known(&self, layer: LayerId) -> bool {
        let knows = |peer: &PeerIndex| self.peers[usize::from(*peer)].layer >= layer;
        let has_quorum = |group: &Group| group.whole.iter().filter(knows).count() >= group.quorum();
        !self.partitions.groups.is_empty() && self.partitions.groups.iter().all(has_quorum)
    }

    /// Whether every current member of every partition gets everything and knows the layer: then it
    /// has every change of the layers below. One that is behind may know it and lack some.
    fn is_layer_everywhere(&self, layer: LayerId) -> bool {
        let knows = |peer: PeerIndex| self.peers[usize::from(peer)].layer >= layer;
        let all_know =
            |group: &Group| group.whole == group.members && group.members.iter().all(knows);
        !self.partitions.groups.is_empty() && self.partitions.groups.iter().all(all_know)
    }

    /// What keeps the layers below a new head from being sealed, if it is a disk: continues the
    /// sentence "waiting for ..". Nothing if nothing is being sealed, or each partition has one
    /// member. Requests of guests do not wait for this.
    pub fn seal_obstacle(&self) -> Option<String> {
        let mut words = self.seal_awaits();
        if words.is_empty() {
            let last = self.flushes.iter().rfind(|flush| flush.is_seal());
            let lacks = |index: &PeerIndex| {
                let peer = &self.peers[usize::from(*index)];
                match last {
                    Some(flush) => !flush.is_met_by(peer, *index),
                    None => peer.layer < self.layer,
                }
            };
            let late = self.shared_members().filter(lacks);
            let disk = |index: PeerIndex| self.peers[usize::from(index)].disk;
            words = late.map(|index| format!("disk {} to have it stable", disk(index))).collect();
        }
        let words: Vec<String> = words.into_iter().collect();
        let is_sealing = self.is_sealing() && !words.is_empty();
        is_sealing.then(|| format!("{}, before a snapshot is complete", words.join(" and ")))
    }

    /// Whether a layer is being sealed and a member that does not serve, or is behind, keeps that
    /// from ending.
    pub fn is_seal_held_up(&self) -> bool {
        self.is_sealing() && !self.seal_awaits().is_empty()
    }

    fn is_sealing(&self) -> bool {
        !self.switches.is_empty() || self.flushes.iter().any(FlushWait::is_seal)
    }

    /// Why members that have peers do not serve, or what makes them wait.
    fn seal_awaits(&self) -> BTreeSet<String> {
        let groups = self.partitions.groups.iter().filter(|group| !group.is_sole());
        let words = groups
            .flat_map(|group| group.members.iter().filter_map(|peer| self.waits_for(group, peer)));
        words.collect()
    }

    /// The members that have peers.
    fn shared_members(&self) -> impl Iterator<Item = PeerIndex> {
        let groups = self.partitions.groups.iter().filter(|group| !group.is_sole());
        let members: BTreeSet<PeerIndex> = groups.flat_map(|group| group.members.iter()).collect();
        members.into_iter()
    }

    /// Ends the switches whose layer all members know.
    pub(crate) fn end_switches(&mut self, effects: &mut Vec<Effect>) {
        while let Some(&SwitchWait { token, layer }) = self.switches.front()
            && self.is_layer_everywhere(layer)
        {
            self.switches.pop_front();
            effects.push(Effect::Done { token, result: Ok(Answer::Done) });
        }
    }

    /// A newer attachment exists.
    pub(crate) fn fail_switches(&mut self, effects: &mut Vec<Effect>) {
        for switch in std::mem::take(&mut self.switches) {
            effects.push(Effect::Done { token: switch.token, result: Err(Error::Fenced) });
        }
        self.is_switching = false;
    }

    /// Whether no disk can be asked that has some part of what shows through.
    pub(crate) fn is_origin_away(&self) -> bool {
        let is_away = |peer: &PeerIndex| self.peers[usize::from(*peer)].is_away();
        self.origin_groups.iter().any(|peers| peers.iter().all(is_away))
    }

    /// Asserts what is known of layers.
    pub(crate) fn check_layers(&self) {
        let is_sorted = |pair: &[Rung]| pair[0].layer < pair[1].layer;
        assert!(self.rungs.windows(2).all(is_sorted));
        let asked = |index: usize| {
            let is_asked = |pending: &Pending| match pending {
                Pending::Layer { peer, .. } => usize::from(*peer) == index,
                _ => false,
            };
            self.tokens.iter().filter(|(_, pending)| is_asked(pending)).count()
        };
        for (index, peer) in self.peers.iter().enumerate() {
            let Peer { disk, layer, own, .. } = *peer;
            assert!(layer <= self.layer && (own || layer == LayerId(0)), "layer of disk {disk}");
            assert_eq!(usize::from(peer.layer_asked), asked(index), "layers of disk {disk}");
            assert!(layer == self.layer || !own || self.is_switching, "disk {disk} was forgotten");
        }
    }
}
