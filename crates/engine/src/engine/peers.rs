//! The other nodes: a link to each, what goes through it, and who is there since when.
//!
//! A link is made when the map shows its node, and stopped when it does not any more. A node that
//! joins has no map yet: it has links to those it was told of, and to whoever speaks to it, until
//! its first map comes.
//!
//! Five things go through a link: messages of the agreed log (those of others too, see `relay`),
//! questions to disks in both directions, which nodes each side misses, how much of the agreed log
//! each has while nobody leads (see `era`), and each side's *openings*: which disks it has open, as
//! which incarnation. A disk is asked only while the process at the other end has it open as the
//! incarnation that the map lists. Otherwise a disk that was opened anew after a power cut could be
//! read before the map, and with it the session, knows that it may have lost something.

use super::era::{STANDING, Standing};
use super::relay::{MISSES, RELAY};
use super::{Engine, MemberRoute, Phase, Work, gathering::REPORTS};
use crate::{
    NoticeLevel, Output, PeerInput,
    admin::{AgreementReport, PeerReport, RecoveredReport},
};
use cluster::{Founding, Place};
use link::{Beat, CloseReason, Link, Question};
use proto::wire::note::{Channel, Farewell};
use proto::wire::{Hello, Identity, VERSION};
use proto::{
    BLOCK_SIZE, Buffer, DiskId, Duration, Incarnation, MemberError, MemberReply, MemberRequest,
    MemberToken, NodeId, Payload, Time, limits,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the openings of a node's disks are told on.
const OPENINGS: Channel = Channel(2);
/// The version of that message, its first byte.
const OPENINGS_VERSION: u8 = 2;
const OPENING_BYTES: usize = 25;
const TICK: Duration = Duration::from_millis(limits::VOTER_TICK_MS);
/// How often a leader looks whether voters should change, in ticks.
const ARRANGE_TICKS: u64 = 10;
/// Nodes named in one sentence.
const NAMED_MAX: usize = 5;

// With the version before them.
const _: () = assert!(limits::DISKS_MAX * OPENING_BYTES < limits::WIRE_CONTROL_BYTES_MAX);

/// A disk that a process has open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Opening {
    incarnation: Incarnation,
    /// A write or flush has failed: it answers reads, and nothing else until it is opened anew.
    is_retired: bool,
}

/// Another node.
pub(super) struct Peer {
    link: Link,
    /// Counts the links of this engine: what belongs to a former one is not for the next.
    number: u64,
    /// The process at the other end, the last one that was there.
    instance: Option<u64>,
    /// Since when it is up, or not; the start of this process counts as a change.
    since: Time,
    /// Why the connection ended the last time, while there is none.
    trouble: Option<CloseReason>,
    /// How often the connection was lost since this process started.
    lost: u64,
    /// What that process has open; nothing before it has said so.
    openings: Option<BTreeMap<DiskId, Opening>>,
    /// Which nodes it has no connection to; nothing before it has said so on this connection.
    pub(super) misses: Option<BTreeSet<NodeId>>,
    /// How much of the agreed log it has; nothing before it has said so on this connection.
    pub(super) standing: Option<Standing>,
    /// Questions for disks that it does not have open as the map lists them, in order.
    parked: VecDeque<(MemberToken, MemberRequest)>,
}

/// A question to a disk of another node.
pub(super) struct Remote {
    disk: DiskId,
    /// What the map listed when it was asked.
    incarnation: Incarnation,
    route: MemberRoute,
}

/// The other nodes, and what is on its way to them.
pub(super) struct Peers {
    all: BTreeMap<NodeId, Peer>,
    /// Since when each node that there is no link for has been away.
    dropped: BTreeMap<NodeId, Time>,
    last_number: u64,
    /// Questions to their disks.
    asked: crate::routes::Routes<Remote>,
    /// When the voter is told next that time passes.
    tick_at: Option<Time>,
    pub(super) ticks: u64,
    /// Which nodes all peers were told are missed here.
    pub(super) told_misses: Option<BTreeSet<NodeId>>,
    /// When that was.
    pub(super) told_misses_at: Option<Time>,
}

impl Peers {
    pub(super) fn new() -> Peers {
        Peers {
            all: BTreeMap::new(),
            dropped: BTreeMap::new(),
            last_number: 0,
            asked: crate::routes::Routes::new(),
            tick_at: None,
            ticks: 0,
            told_misses: None,
            told_misses_at: None,
        }
    }

    /// When something is to be done by itself.
    pub(super) fn deadline(&self) -> Option<Time> {
        let links = self.all.values().filter_map(|peer| peer.link.deadline());
        links.chain(self.tick_at).min()
    }

    pub(super) fn of(&mut self, node: NodeId, number: u64) -> Option<&mut Peer> {
        self.all.get_mut(&node).filter(|peer| peer.number == number)
    }

    /// Whether there is a connection to a node.
    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.all.get(&node).is_some_and(|peer| peer.link.is_up())
    }

    /// Why the last connection to a node ended, or could not be had, while there is none.
    pub(super) fn trouble(&self, node: NodeId) -> Option<&CloseReason> {
        self.all.get(&node)?.trouble.as_ref()
    }

    /// How much of the agreed log a node has, as it said last.
    pub(super) fn standing(&self, node: NodeId) -> Option<Standing> {
        self.all.get(&node)?.standing
    }

    /// The nodes that there are connections to.
    pub(super) fn all_up(&self) -> impl Iterator<Item = NodeId> {
        self.all.iter().filter(|(_, peer)| peer.link.is_up()).map(|(node, _)| *node)
    }

    /// The nodes that there are connections to and that have one to this node, as they say.
    pub(super) fn seeing(&self, node: NodeId) -> impl Iterator<Item = NodeId> {
        let sees = move |peer: &Peer| peer.misses.as_ref().is_some_and(|it| !it.contains(&node));
        let all = self
            .all
            .iter()
            .filter(move |(id, peer)| **id != node && peer.link.is_up() && sees(peer));
        all.map(|(id, _)| *id)
    }
}

/// What drives the links: the driver's calls that are about bytes. All others are inputs.
impl Engine {
    /// Who this node is for others: what a [`link::Greeter`] is made with.
    pub fn identity(&self) -> Identity {
        let (cluster, node) = (self.settings.cluster, self.settings.node);
        Identity { cluster, node, instance: self.settings.instance }
    }

    /// Takes a connection over that somebody made to this node, whose hello a [`link::Greeter`] has
    /// read, and which is beyond doubt the node that the hello names. Gives back whose connection
    /// it is and its number; if its link refuses it, [`Output::Hangup`] for it is among the
    /// outputs. Or the reason why there is no link for it: then the driver closes it, with
    /// [`link::Greeter::farewell`].
    pub fn handle_accepted(
        &mut self,
        now: Time,
        hello: &Hello,
        nonce: u64,
        outputs: &mut Vec<Output>,
    ) -> Result<(NodeId, u64), CloseReason> {
        self.present = now;
        let node = hello.identity.node;
        if self.phase == Phase::Ended {
            return Err(CloseReason::Stopped);
        }
        if self.voter.is_none() {
            // Its journal is not read yet: who is a member will be known soon.
            return Err(CloseReason::Starting);
        }
        if self.map.is_lost(node) {
            return Err(CloseReason::GivenUp { node });
        }
        let is_known = self.peers.all.contains_key(&node);
        // Who waits for its first map takes it from whoever comes.
        let may_come = self.waits_for_map() && self.peers.all.len() < limits::NODES_MAX;
        if !is_known && may_come {
            self.add_peer(now, node);
        }
        let Some(peer) = self.peers.all.get_mut(&node) else {
            return Err(CloseReason::UnknownNode { node });
        };
        let (number, mut effects) = (peer.number, Vec::new());
        let connection = peer.link.handle_accepted(now, hello, nonce, &mut effects);
        self.queue_link(node, number, effects);
        self.run(now, outputs);
        Ok((node, connection))
    }

    /// Takes bytes that a connection brought, all of them.
    pub fn handle_peer_bytes(
        &mut self,
        now: Time,
        node: NodeId,
        connection: u64,
        bytes: &[u8],
        outputs: &mut Vec<Output>,
    ) {
        self.present = now;
        let Some(peer) = self.peers.all.get_mut(&node) else { return };
        let (number, mut effects) = (peer.number, Vec::new());
        peer.link.handle_bytes(now, connection, bytes, &mut effects);
        self.queue_link(node, number, effects);
        self.run(now, outputs);
    }

    /// Where the next bytes of a connection belong: read its socket straight into it, then
    /// [`Engine::handle_peer_payload`]. Nothing: read elsewhere, then
    /// [`Engine::handle_peer_bytes`].
    pub fn peer_payload_target(&mut self, node: NodeId, connection: u64) -> Option<&mut [u8]> {
        self.peers.all.get_mut(&node)?.link.payload_target(connection)
    }

    /// So many bytes of the target were filled.
    ///
    /// # Panics
    /// If there is no target, or it is shorter: a bug of the driver.
    pub fn handle_peer_payload(
        &mut self,
        now: Time,
        node: NodeId,
        connection: u64,
        filled: usize,
        outputs: &mut Vec<Output>,
    ) {
        self.present = now;
        let Some(peer) = self.peers.all.get_mut(&node) else { return };
        let (number, mut effects) = (peer.number, Vec::new());
        peer.link.handle_payload(now, connection, filled, &mut effects);
        self.queue_link(node, number, effects);
        self.run(now, outputs);
    }

    /// The connections that have something to write, to be asked once a round.
    pub fn peers_with_output(&self) -> impl Iterator<Item = (NodeId, u64)> {
        self.peers.all.iter().filter_map(|(node, peer)| {
            let connection = peer.link.connection()?;
            peer.link.output(connection).next().map(|_| (*node, connection))
        })
    }

    /// What is to be written to a connection, in order, with one `writev`.
    pub fn peer_output(&self, node: NodeId, connection: u64) -> impl Iterator<Item = &[u8]> {
        let peer = self.peers.all.get(&node);
        peer.into_iter().flat_map(move |peer| peer.link.output(connection))
    }

    /// The socket has taken so many bytes of that; to be told before any other input.
    ///
    /// # Panics
    /// If there were less: a bug of the driver.
    pub fn handle_peer_sent(&mut self, now: Time, node: NodeId, connection: u64, count: usize) {
        if let Some(peer) = self.peers.all.get_mut(&node) {
            peer.link.handle_sent(now, connection, count);
        }
    }
}

impl Engine {
    // -- who there is --

    /// Whether this node joins a cluster and knows nothing of it yet.
    pub(super) fn waits_for_map(&self) -> bool {
        let joins = self.settings.founding != Some(Founding::Here);
        joins && self.voter.is_some() && self.map.cluster().0 == 0
    }

    /// Whether there are other nodes, in the map or among those who agree.
    pub fn is_among_others(&self) -> bool {
        let is_alone = self.voter.as_ref().is_none_or(cluster::Voter::is_alone);
        !is_alone || self.map.nodes().len() > 1
    }

    /// Whether it is up to this node to do what one node has to do for all.
    pub(super) fn is_steward(&self) -> bool {
        !self.is_among_others() || self.voter.as_ref().is_some_and(cluster::Voter::leads)
    }

    /// Makes and stops links, so that there is one for each other node of the map.
    pub(super) fn learn_peers(&mut self, now: Time, outputs: &mut Vec<Output>) {
        let own = self.settings.node;
        if self.is_among_others() {
            self.peers.tick_at = self.peers.tick_at.or(Some(now + TICK));
        } else {
            self.peers.tick_at = None;
        }
        if self.waits_for_map() {
            let seeds: Vec<NodeId> = self.settings.seeds.iter().map(|(node, _)| *node).collect();
            for node in seeds {
                if node != own && !self.peers.all.contains_key(&node) {
                    self.add_peer(now, node);
                }
            }
            return;
        }
        let nodes = self.map.nodes().map(|node| node.id).filter(|node| !self.map.is_lost(*node));
        let new = nodes.filter(|node| *node != own && !self.peers.all.contains_key(node));
        for node in new.collect::<Vec<_>>() {
            self.add_peer(now, node);
        }
        let known = self.peers.all.keys().copied();
        let is_gone = |node: &NodeId| self.map.node(*node).is_none() || self.map.is_lost(*node);
        let gone: Vec<NodeId> = known.filter(is_gone).collect();
        for node in gone {
            self.drop_peer(now, node, outputs);
        }
        self.peers.dropped.retain(|node, _| self.map.is_lost(*node));
    }

    fn add_peer(&mut self, now: Time, node: NodeId) {
        self.peers.last_number += 1;
        let (number, mut effects) = (self.peers.last_number, Vec::new());
        let link = Link::new(now, self.link_settings(), node, &mut effects);
        let peer = Peer {
            link,
            number,
            instance: None,
            since: now,
            trouble: None,
            lost: 0,
            openings: None,
            misses: None,
            standing: None,
            parked: VecDeque::new(),
        };
        self.peers.all.insert(node, peer);
        self.queue_link(node, number, effects);
    }

    /// What this node grants each peer: with many of them, less to each.
    fn link_settings(&self) -> link::Settings {
        let others = self.map.nodes().len().max(2) as u64 - 1;
        let share = limits::LINKS_BYTES_MAX / 2 / others;
        let bytes = share.clamp(limits::LINK_BYTES_MIN, u64::from(limits::LINK_BYTES_MAX));
        link::Settings {
            identity: self.identity(),
            version_min: VERSION,
            version_max: VERSION,
            features: 0,
            era: self.era(),
            requests: limits::LINK_REQUESTS_MAX,
            bytes: bytes as u32,
        }
    }

    pub(super) fn drop_peer(&mut self, now: Time, node: NodeId, outputs: &mut Vec<Output>) {
        let Some(mut peer) = self.peers.all.remove(&node) else { return };
        let since = if peer.link.is_up() { now } else { peer.since };
        self.peers.dropped.insert(node, since);
        let mut effects = Vec::new();
        peer.link.handle(now, link::Event::Stop, &mut effects);
        for effect in effects {
            self.handle_link_effect(now, node, peer.number, effect, outputs);
        }
        for (token, _) in peer.parked {
            self.end_remote(now, token, Err(MemberError::Retired));
        }
    }

    /// The node has a part in another life of the agreed log: what was said on the links belongs to
    /// the one before, and each begins with a hello again.
    pub(super) fn renew_links(&mut self, now: Time, outputs: &mut Vec<Output>) {
        for node in self.peers.all.keys().copied().collect::<Vec<_>>() {
            self.drop_peer(now, node, outputs);
        }
        self.learn_peers(now, outputs);
    }

    /// This node has found which life of the agreed log it joins.
    pub(super) fn tell_links_era(&mut self) {
        let era = self.era();
        self.peers.all.values_mut().for_each(|peer| peer.link.set_era(era));
    }

    /// This process ends: says so to all.
    pub(super) fn drop_all_peers(&mut self, now: Time, outputs: &mut Vec<Output>) {
        for node in self.peers.all.keys().copied().collect::<Vec<_>>() {
            self.drop_peer(now, node, outputs);
        }
        self.peers.tick_at = None;
    }

    // -- what is told --

    fn queue_link(&mut self, node: NodeId, number: u64, effects: Vec<link::Effect>) {
        self.work.extend(effects.into_iter().map(|effect| Work::FromLink(node, number, effect)));
    }

    fn tell_link(&mut self, now: Time, node: NodeId, number: u64, event: link::Event) {
        let Some(peer) = self.peers.of(node, number) else { return };
        let mut effects = Vec::new();
        peer.link.handle(now, event, &mut effects);
        self.queue_link(node, number, effects);
    }

    /// Takes what the driver says of a connection.
    pub(super) fn handle_peer(&mut self, now: Time, node: NodeId, input: PeerInput) {
        let Some(number) = self.peers.all.get(&node).map(|peer| peer.number) else { return };
        let event = match input {
            PeerInput::Dialled { connection, nonce } => link::Event::Dialled { connection, nonce },
            PeerInput::DialFailed { connection } => link::Event::DialFailed { connection },
            PeerInput::Lost { connection } => link::Event::Lost { connection },
        };
        self.tell_link(now, node, number, event);
    }

    /// Time has come, perhaps.
    pub(super) fn tick_peers(&mut self, now: Time, outputs: &mut Vec<Output>) {
        let due = |peer: &Peer| peer.link.deadline().is_some_and(|at| at <= now);
        let due = self.peers.all.iter().filter(|(_, peer)| due(peer)).map(|(node, _)| *node);
        for node in due.collect::<Vec<_>>() {
            let peer = self.peers.all.get_mut(&node).expect("just listed");
            let (number, mut effects) = (peer.number, Vec::new());
            peer.link.handle_deadline(now, &mut effects);
            self.queue_link(node, number, effects);
        }
        if self.peers.tick_at.is_some_and(|at| at <= now) && self.voter.is_some() {
            // A process that was held up has not heard what came meanwhile: one tick, not many.
            self.peers.tick_at = Some(now + TICK);
            self.peers.ticks += 1;
            self.work.push_back(Work::Voter(cluster::Event::Tick));
            self.tell_new_misses(now);
            if self.peers.ticks.is_multiple_of(ARRANGE_TICKS) {
                self.arrange(now);
                self.look_after_era(now, outputs);
            }
        }
    }

    /// Lets the leader take a step towards the voters that the cluster should have.
    fn arrange(&mut self, now: Time) {
        let (map, mut effects) = (self.map.clone(), Vec::new());
        let place_of = |node: NodeId| Place {
            zone: map.node(node).map_or(String::new(), |node| node.zone.clone()),
            witness: map.disks_of(node).next().is_none(),
        };
        let voter = self.voter.as_mut().expect("it ticks");
        voter.arrange(now, place_of, &mut effects);
        self.work.extend(effects.into_iter().map(Work::FromVoter));
    }

    /// Sends a message that may be lost, and is where there is no connection.
    pub(super) fn send_control(&mut self, now: Time, to: NodeId, channel: Channel, bytes: &[u8]) {
        let Some(number) = self.peers.all.get(&to).map(|peer| peer.number) else { return };
        let message = message_of(bytes);
        self.tell_link(now, to, number, link::Event::Control { channel, message });
    }

    /// Tells one peer, or all of them, which disks are open here, and which of them are retired.
    pub(super) fn tell_openings(&mut self, now: Time, to: Option<NodeId>) {
        let mut bytes = vec![OPENINGS_VERSION];
        for (id, disk) in &self.disks {
            if disk.incarnation != Incarnation(0)
                && let Some(store) = disk.store()
            {
                bytes.extend(id.0.to_le_bytes());
                bytes.extend(disk.incarnation.0.to_le_bytes());
                bytes.push(u8::from(store.failure().is_some()));
            }
        }
        let message = message_of(&bytes);
        let peers = self.peers.all.iter().filter(|(node, _)| to.is_none_or(|to| to == **node));
        let peers: Vec<_> = peers.map(|(node, peer)| (*node, peer.number)).collect();
        for (node, number) in peers {
            let message = message.clone();
            self.tell_link(now, node, number, link::Event::Control { channel: OPENINGS, message });
        }
    }

    pub(super) fn handle_link_effect(
        &mut self,
        now: Time,
        node: NodeId,
        number: u64,
        effect: link::Effect,
        outputs: &mut Vec<Output>,
    ) {
        match effect {
            link::Effect::Dial { connection } => {
                let mut addresses = self.map.addresses_of(node).to_vec();
                if let Some((_, seeds)) = self.settings.seeds.iter().find(|(id, _)| *id == node) {
                    let more = seeds.iter().filter(|seed| !addresses.contains(seed));
                    addresses.extend(more.cloned().collect::<Vec<_>>());
                }
                outputs.push(Output::Dial { node, connection, addresses });
            }
            link::Effect::Close { connection, farewell, reason } => {
                // It may be one beside that which is up.
                if let Some(peer) = self.peers.of(node, number)
                    && !peer.link.is_up()
                {
                    peer.trouble = Some(reason.clone());
                }
                self.note_other_era(now, &reason, outputs);
                outputs.push(Output::Hangup { node, connection, farewell, reason });
            }
            link::Effect::Up { instance, .. } => self.peer_up(now, node, number, instance, outputs),
            link::Effect::Down { reason } => self.peer_down(now, node, number, &reason, outputs),
            link::Effect::Answered { token, result, .. } => self.end_remote(now, token, result),
            link::Effect::Forgotten { token } => self.remote_forgotten(now, token),
            link::Effect::Asked { question, disk, request } => {
                self.asked_by_peer(now, (node, number, question), disk, request);
            }
            link::Effect::Control { channel: Channel::RAFT, message } => {
                let bytes = message.as_slice().to_vec();
                self.work.push_back(Work::Voter(cluster::Event::Received { from: node, bytes }));
            }
            link::Effect::Control { channel: OPENINGS, message } => {
                self.learn_openings(now, node, number, &message);
            }
            link::Effect::Control { channel: RELAY, message } => {
                self.take_relayed(now, node, message.as_slice());
            }
            link::Effect::Control { channel: MISSES, message } => {
                self.learn_misses(node, number, message.as_slice());
            }
            link::Effect::Control { channel: STANDING, message } => {
                self.learn_standing(node, number, message.as_slice());
            }
            link::Effect::Control { channel: REPORTS, message } => {
                self.handle_report(now, node, &message, outputs);
            }
            // Of a later version, and for something that this one does not have.
            link::Effect::Control { .. } => {}
            link::Effect::Beat { beat } => self.answer_beat(now, node, number, beat),
            link::Effect::Promised { .. } => {}
        }
    }

    fn answer_beat(&mut self, now: Time, node: NodeId, number: u64, beat: Beat) {
        let promises = Vec::new();
        self.tell_link(now, node, number, link::Event::Promise { beat, promises });
    }

    fn peer_up(
        &mut self,
        now: Time,
        node: NodeId,
        number: u64,
        instance: u64,
        outputs: &mut Vec<Output>,
    ) {
        let Some(peer) = self.peers.of(node, number) else { return };
        if peer.instance.replace(instance) != Some(instance) {
            peer.openings = None;
        }
        (peer.since, peer.trouble) = (now, None);
        (peer.misses, peer.standing) = (None, None);
        self.tell_openings(now, Some(node));
        self.tell_misses(now, node);
        self.tell_standing(now, node);
        let sentence = format!("node {} is connected", self.node_words(node));
        outputs.push(Output::Notice { level: NoticeLevel::Info, sentence });
    }

    fn peer_down(
        &mut self,
        now: Time,
        node: NodeId,
        number: u64,
        reason: &CloseReason,
        outputs: &mut Vec<Output>,
    ) {
        let Some(peer) = self.peers.of(node, number) else { return };
        (peer.since, peer.trouble) = (now, Some(reason.clone()));
        (peer.misses, peer.standing) = (None, None);
        peer.lost += 1;
        if self.voter.is_some() {
            self.work.push_back(Work::Voter(cluster::Event::Unreachable { node }));
        }
        let sentence =
            format!("node {} is not connected any more: {reason}", self.node_words(node));
        outputs.push(Output::Notice { level: NoticeLevel::Warning, sentence });
    }

    /// What a node is called: its name if it has one, else its id.
    pub(super) fn node_words(&self, node: NodeId) -> String {
        match self.map.node(node) {
            Some(known) if !known.name.is_empty() => known.name.clone(),
            _ => node.to_string(),
        }
    }

    // -- disks of others --

    /// Whether a disk, of this node or another, serves as far as this node knows.
    pub(super) fn can_be_asked(&self, disk: DiskId) -> bool {
        if let Some(here) = self.disks.get(&disk) {
            return here.serves();
        }
        self.map.disk(disk).is_some_and(|known| {
            let peer = self.peers.all.get(&known.node);
            peer.is_some_and(|peer| peer.has_open(disk, known.incarnation))
        })
    }

    /// Asks a disk that another node has.
    pub(super) fn ask_remote(
        &mut self,
        now: Time,
        disk: DiskId,
        route: MemberRoute,
        request: MemberRequest,
    ) {
        let listed = self.map.disk(disk).map(|known| (known.node, known.incarnation));
        let target = listed.filter(|(node, _)| self.peers.all.contains_key(node));
        let Some((node, incarnation)) = target else {
            return self.answer_member(now, disk, route, Err(MemberError::Retired));
        };
        let remote = Remote { disk, incarnation, route };
        let token = MemberToken(self.peers.asked.insert(remote));
        let peer = self.peers.all.get_mut(&node).expect("looked up just now");
        if peer.has_open(disk, incarnation) {
            let number = peer.number;
            self.tell_link(now, node, number, link::Event::Ask { token, disk, request });
        } else if peer.parked.len() < limits::LINK_PENDING_MAX {
            peer.parked.push_back((token, request));
        } else {
            self.end_remote(now, token, Err(MemberError::Busy));
        }
    }

    /// The map, or what a peer has open, is another: goes on with what waited for that.
    pub(super) fn release_parked(&mut self, now: Time) {
        let parked = self.peers.all.iter().filter(|(_, peer)| !peer.parked.is_empty());
        for node in parked.map(|(node, _)| *node).collect::<Vec<_>>() {
            let peer = self.peers.all.get_mut(&node).expect("just listed");
            for (token, request) in std::mem::take(&mut peer.parked) {
                let Remote { disk, incarnation, .. } = *self.peers.asked.get(token.0);
                let listed = self.map.disk(disk).map(|known| (known.node, known.incarnation));
                let peer = self.peers.all.get_mut(&node).expect("just listed");
                if listed != Some((node, incarnation)) {
                    self.end_remote(now, token, Err(MemberError::Retired));
                } else if peer.has_open(disk, incarnation) {
                    let number = peer.number;
                    self.tell_link(now, node, number, link::Event::Ask { token, disk, request });
                } else {
                    peer.parked.push_back((token, request));
                }
            }
        }
    }

    /// The process that was asked is gone. Whether the disk did it is unknown, so it is asked
    /// again; unless it was opened anew since, which whoever asked learns from the map.
    fn remote_forgotten(&mut self, now: Time, token: MemberToken) {
        let Remote { disk, incarnation, .. } = *self.peers.asked.get(token.0);
        let is_same = self.map.disk(disk).is_some_and(|known| known.incarnation == incarnation);
        let error = if is_same { MemberError::Busy } else { MemberError::Retired };
        self.end_remote(now, token, Err(error));
    }

    fn end_remote(
        &mut self,
        now: Time,
        token: MemberToken,
        result: Result<MemberReply, MemberError>,
    ) {
        let Remote { disk, route, .. } = self.peers.asked.remove(token.0);
        self.answer_member(now, disk, route, result);
    }

    fn learn_openings(&mut self, now: Time, node: NodeId, number: u64, message: &Payload) {
        // What is not understood says nothing.
        let Some(openings) = openings_of(message.as_slice()) else { return };
        let Some(peer) = self.peers.of(node, number) else { return };
        peer.openings = Some(openings);
        self.release_parked(now);
    }

    // -- disks of this node, asked by others --

    fn asked_by_peer(
        &mut self,
        now: Time,
        (node, number, question): (NodeId, u64, Question),
        disk: DiskId,
        request: MemberRequest,
    ) {
        // Others may have learned before this node that its opening is agreed.
        let here = self.disks.get(&disk).filter(|disk| disk.incarnation != Incarnation(0));
        if here.is_some_and(|disk| !disk.is_agreed && disk.failure().is_none()) {
            return self.answer_peer(now, (node, number, question), Err(MemberError::Busy));
        }
        let route = MemberRoute::Peer { node, number, question };
        self.ask_local(now, disk, route, request);
    }

    pub(super) fn answer_peer(
        &mut self,
        now: Time,
        (node, number, question): (NodeId, u64, Question),
        result: Result<MemberReply, MemberError>,
    ) {
        let promise = Duration::ZERO;
        self.tell_link(now, node, number, link::Event::Answer { question, promise, result });
    }

    // -- what is seen of others --

    /// Since when a node does not answer; nothing while it does.
    pub(super) fn away_since(&self, node: NodeId) -> Option<Time> {
        if self.map.is_lost(node) {
            return Some(self.peers.dropped.get(&node).copied().unwrap_or(self.started));
        }
        let peer = self.peers.all.get(&node)?;
        (!peer.link.is_up()).then_some(peer.since)
    }

    /// Whether another node has said that it has a disk open, and that nothing failed.
    pub(super) fn serves_there(&self, node: NodeId, disk: DiskId) -> bool {
        let openings = self.peers.all.get(&node).and_then(|peer| peer.openings.as_ref());
        openings.and_then(|all| all.get(&disk)).is_some_and(|opening| !opening.is_retired)
    }

    // -- what people see --

    /// The other nodes.
    pub(super) fn peer_reports(&self, now: Time) -> Vec<PeerReport> {
        let report = |(node, peer): (&NodeId, &Peer)| PeerReport {
            node: *node,
            name: self.map.node(*node).map_or(String::new(), |known| known.name.clone()),
            addresses: self.map.addresses_of(*node).to_vec(),
            up: peer.link.is_up(),
            since_s: now.since(peer.since).as_secs(),
            reason: peer.trouble.as_ref().map(ToString::to_string),
            lost_connections: peer.lost,
            waiting_requests: (peer.link.pending() + peer.parked.len()) as u64,
        };
        self.peers.all.iter().map(report).collect()
    }

    /// Who agrees on the cluster's state.
    pub(super) fn agreement_report(&self) -> AgreementReport {
        let Some(voter) = &self.voter else { return AgreementReport::default() };
        let status = voter.status();
        AgreementReport {
            leader: status.leader,
            voters: status.voters,
            changing: status.changing,
            learners: status.learners,
            waiting: self.leaderless(),
            recovered: status.recovery.map(|recovery| RecoveredReport {
                count: recovery.count,
                unix_s: recovery.unix_s,
                node: recovery.node,
            }),
        }
    }

    /// Who does not want to hear this node, in its words, where all that can be reached refuse it.
    fn refused_by(&self) -> Option<(NodeId, &str)> {
        let mut said = None;
        for (node, peer) in &self.peers.all {
            match &peer.trouble {
                Some(CloseReason::Said { why: Farewell::Refused, text }) => {
                    said = said.or(Some((*node, text.as_str())));
                }
                Some(CloseReason::Unreachable | CloseReason::ConnectTooSlow) => {}
                _ => return None,
            }
        }
        said
    }

    /// Why nothing can be agreed on just now, if nothing can.
    pub(super) fn leaderless(&self) -> Option<String> {
        let voter = self.voter.as_ref()?;
        if !self.is_among_others() || voter.is_led() {
            return None;
        }
        if let Some(sentence) = self.given_up_words() {
            return Some(sentence);
        }
        let away = self.peers.all.iter().filter(|(_, peer)| !peer.link.is_up());
        let away: Vec<String> = away.map(|(node, _)| self.node_words(*node)).collect();
        let who = match away.len() {
            0 => "all nodes can be reached, and are about to agree who leads".to_owned(),
            count if count > NAMED_MAX => {
                format!("{} and {} more cannot be reached", away[..NAMED_MAX].join(", "), {
                    count - NAMED_MAX
                })
            }
            _ => format!("{} cannot be reached", away.join(", ")),
        };
        if let Some((node, said)) = self.refused_by() {
            return Some(format!(
                "the node is refused by {}, which says: {said}; if it was removed from the \
                 cluster, stop it, and let it join again with an empty data directory",
                self.node_words(node)
            ));
        }
        if self.waits_for_map() {
            return Some(format!(
                "the node waits for the state of the cluster that it joins ({who}); see that its \
                 nodes run and the network lets them through"
            ));
        }
        Some(format!(
            "the node waits for a majority of the nodes that vote ({who}); see that they run and \
             the network lets them through, and only if they are lost for ever look at `dog \
             cluster recover`"
        ))
    }

    /// Asserts what must hold between two inputs.
    pub(super) fn check_peers(&self) {
        let mut parked = 0;
        let mut pending = 0;
        for (node, peer) in &self.peers.all {
            peer.link.check();
            parked += peer.parked.len();
            pending += peer.link.pending();
            let is_listed = self.map.node(*node).is_some() || self.waits_for_map();
            assert!(is_listed || self.phase == Phase::Ended, "a link to a node that is none");
            assert!(peer.parked.len() <= limits::LINK_PENDING_MAX);
        }
        assert_eq!(self.peers.asked.len(), parked + pending, "a question to a peer is lost");
        if let Some(voter) = &self.voter {
            voter.check();
        }
    }
}

impl Peer {
    /// Whether a disk is open there as this incarnation, as far as it said.
    fn has_open(&self, disk: DiskId, incarnation: Incarnation) -> bool {
        let open = self.openings.as_ref().and_then(|openings| openings.get(&disk));
        open.is_some_and(|opening| opening.incarnation == incarnation)
    }
}

/// A payload of these bytes; a buffer by itself is longer.
pub(super) fn message_of(bytes: &[u8]) -> Payload {
    Buffer::copy_of(bytes).freeze().slice(0, bytes.len())
}

/// The disks and incarnations of a message; nothing if it is malformed.
fn openings_of(bytes: &[u8]) -> Option<BTreeMap<DiskId, Opening>> {
    let (&OPENINGS_VERSION, rows) = bytes.split_first()? else { return None };
    if rows.len() > limits::DISKS_MAX * OPENING_BYTES || !rows.len().is_multiple_of(OPENING_BYTES) {
        return None;
    }
    let row = |row: &[u8]| {
        let (disk, row) = row.split_first_chunk()?;
        let (incarnation, row) = row.split_first_chunk()?;
        let is_retired = match row {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        let incarnation = Incarnation(u64::from_le_bytes(*incarnation));
        Some((DiskId(u128::from_le_bytes(*disk)), Opening { incarnation, is_retired }))
    };
    rows.chunks(OPENING_BYTES).map(row).collect()
}

const _: () = assert!(OPENING_BYTES == size_of::<u128>() + size_of::<u64>() + 1);
const _: () = assert!(
    limits::LINK_BYTES_MIN
        >= limits::LINK_DISK_SHARE_DIVISOR
            * limits::MEMBER_REQUEST_BLOCKS_MAX as u64
            * BLOCK_SIZE as u64
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_are_read_whole_or_not_at_all() {
        let mut bytes = vec![OPENINGS_VERSION];
        bytes.extend(7_u128.to_le_bytes());
        bytes.extend(3_u64.to_le_bytes());
        for (state, is_retired) in [(0, false), (1, true)] {
            let bytes = [&bytes[..], &[state]].concat();
            let opening = Opening { incarnation: Incarnation(3), is_retired };
            assert_eq!(openings_of(&bytes), Some(BTreeMap::from([(DiskId(7), opening)])));
        }
        assert_eq!(openings_of(&[&bytes[..], &[2]].concat()), None);
        assert_eq!(openings_of(&[OPENINGS_VERSION]), Some(BTreeMap::new()));
        assert_eq!(openings_of(&bytes), None);
        assert_eq!(openings_of(&[OPENINGS_VERSION + 1]), None);
        assert_eq!(openings_of(&[]), None);
    }
}
