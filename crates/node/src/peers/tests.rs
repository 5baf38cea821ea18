//! Sockets on loopback: two links that talk, and everybody who must not get so far.

use super::*;
use crate::{
    identity::{Identity as Keys, Membership, NodeKey, Seed, TokenText, random},
    join,
};
use cluster::{Command, Digest, State as Agreed, TokenId};
use link::{Effect, Link};
use mio::{Events, Poll};
use proto::{
    BLOCK_SIZE, BlockRange, Buffer, ClusterId, DiskId, Generation, LayerId, LineageId, MemberReply,
    MemberRequest, MemberToken, ObjectKey, limits,
};
use rustls::{ClientConfig, ClientConnection, pki_types::ServerName};
use std::{
    io::{Read, Write},
    sync::Arc,
    time::Instant,
};

const CLUSTER: ClusterId = ClusterId(1);
const LOW: NodeId = NodeId(10);
const HIGH: NodeId = NodeId(20);
/// How long anything may take here, at most.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// The links of one side.
#[derive(Default)]
struct TestLinks {
    links: BTreeMap<NodeId, Link>,
    effects: Vec<(NodeId, Effect)>,
}

impl TestLinks {
    fn with(&mut self, peer: NodeId, act: impl FnOnce(&mut Link, &mut Vec<Effect>)) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        let mut effects = Vec::new();
        act(link, &mut effects);
        link.check();
        self.effects.extend(effects.into_iter().map(|effect| (peer, effect)));
    }
}

impl Links for TestLinks {
    fn accepted(&mut self, now: Time, hello: &Hello, nonce: u64) -> Result<u64, CloseReason> {
        let node = hello.identity.node;
        if !self.links.contains_key(&node) {
            return Err(CloseReason::UnknownNode { node });
        }
        let mut connection = 0;
        self.with(node, |link, effects| {
            connection = link.handle_accepted(now, hello, nonce, effects);
        });
        Ok(connection)
    }

    fn dialled(&mut self, now: Time, peer: NodeId, connection: u64, nonce: u64) {
        let event = link::Event::Dialled { connection, nonce };
        self.with(peer, |link, effects| link.handle(now, event, effects));
    }

    fn dial_failed(&mut self, now: Time, peer: NodeId, connection: u64) {
        let event = link::Event::DialFailed { connection };
        self.with(peer, |link, effects| link.handle(now, event, effects));
    }

    fn lost(&mut self, now: Time, peer: NodeId, connection: u64) {
        let event = link::Event::Lost { connection };
        self.with(peer, |link, effects| link.handle(now, event, effects));
    }

    fn bytes(&mut self, now: Time, peer: NodeId, connection: u64, bytes: &[u8]) {
        self.with(peer, |link, effects| link.handle_bytes(now, connection, bytes, effects));
    }

    fn payload_target(&mut self, peer: NodeId, connection: u64) -> Option<&mut [u8]> {
        self.links.get_mut(&peer)?.payload_target(connection)
    }

    fn payload(&mut self, now: Time, peer: NodeId, connection: u64, filled: usize) {
        self.with(peer, |link, effects| link.handle_payload(now, connection, filled, effects));
    }

    fn with_output(&self) -> Vec<(NodeId, u64)> {
        let connected = |(peer, link): (&NodeId, &Link)| Some((*peer, link.connection()?));
        self.links.iter().filter_map(connected).collect()
    }

    fn output(&self, peer: NodeId, connection: u64) -> impl Iterator<Item = &[u8]> {
        self.links.get(&peer).into_iter().flat_map(move |link| link.output(connection))
    }

    fn sent(&mut self, now: Time, peer: NodeId, connection: u64, count: usize) {
        self.with(peer, |link, _| link.handle_sent(now, connection, count));
    }
}

/// One node: its sockets, its links, and what came of them.
struct Side {
    poll: Poll,
    events: Events,
    peers: Peers,
    links: TestLinks,
    address: SocketAddr,
    /// Where the peer is dialled.
    dials_to: Vec<SocketAddr>,
    answers: Vec<(MemberToken, MemberReply)>,
    reasons: Vec<CloseReason>,
}

/// Keys of a node of the cluster of this authority, which says that it is another one in hellos.
fn side(keys: &Keys, says: NodeId, peer: Option<NodeId>, plain: bool) -> Side {
    let poll = Poll::new().expect("a poll");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    listener.set_nonblocking(true).expect("set");
    let address = listener.local_addr().expect("bound");
    let identity = Identity { cluster: keys.cluster, node: says, instance: 1 };
    let member = keys.membership.as_ref().expect("it is a member");
    let authority = {
        let Membership { authority, .. } = member;
        let (certificate, key) = (authority.certificate(), authority.key().bytes());
        Authority::from_parts(keys.cluster, certificate, &key).expect("they fit")
    };
    let credentials = keys.credentials().expect("it is a member");
    let plain = if plain { Plain::Loopback } else { Plain::No };
    let parts = Parts { identity, credentials, authority, plain, listeners: vec![listener] };
    let peers = Peers::new(parts, poll.registry()).expect("registered");
    let mut links = TestLinks::default();
    if let Some(peer) = peer {
        let settings = link::Settings {
            era: proto::wire::Era::default(),
            identity,
            version_min: 1,
            version_max: 1,
            features: 0,
            requests: limits::LINK_REQUESTS_MAX,
            bytes: limits::LINK_BYTES_MAX,
        };
        let mut effects = Vec::new();
        let link = Link::new(Time(0), settings, peer, &mut effects);
        links.links.insert(peer, link);
        links.effects = effects.into_iter().map(|effect| (peer, effect)).collect();
    }
    let events = Events::with_capacity(64);
    let (answers, reasons) = (Vec::new(), Vec::new());
    Side { poll, events, peers, links, address, dials_to: Vec::new(), answers, reasons }
}

/// Two nodes of one cluster, by certificates of the same authority.
fn keys_of(cluster: ClusterId, nodes: [NodeId; 2]) -> [Keys; 2] {
    let first = Keys::found(cluster, nodes[0]);
    let second = member_of(&first, nodes[1]);
    [first, second]
}

fn member_of(first: &Keys, node: NodeId) -> Keys {
    let authority = &first.membership.as_ref().expect("a member").authority;
    let (certificate, key) = (authority.certificate().clone(), authority.key().bytes());
    let authority = Authority::from_parts(first.cluster, &certificate, &key).expect("they fit");
    let mut keys = Keys::applying(first.cluster, node);
    let certificate = authority.certify(node, &keys.key.public());
    keys.admit(Membership { authority, certificate }, Vec::new()).expect("they fit");
    keys
}

impl Side {
    /// One round of its loop.
    fn turn(&mut self, now: Time) {
        let pause = Some(std::time::Duration::from_millis(1));
        self.poll.poll(&mut self.events, pause).expect("polled");
        for event in &self.events {
            self.peers.handle_event(event);
        }
        self.peers.turn(now, &mut self.links);
        let due =
            self.links.links.iter().filter(|(_, link)| link.deadline().is_some_and(|at| at <= now));
        for peer in due.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.links.with(peer, |link, effects| link.handle_deadline(now, effects));
        }
        while let Some((peer, effect)) =
            (!self.links.effects.is_empty()).then(|| self.links.effects.remove(0))
        {
            match effect {
                Effect::Dial { connection } => {
                    let (to, links) = (self.dials_to.clone(), &mut self.links);
                    self.peers.dial(now, peer, connection, &to, links);
                }
                Effect::Close { connection, farewell, reason } => {
                    self.reasons.push(reason);
                    self.peers.hang_up(now, peer, connection, &farewell);
                }
                Effect::Answered { token, result, .. } => {
                    self.answers.push((token, result.expect("answered")));
                }
                Effect::Asked { question, request, .. } => {
                    let result = Ok(answer_to(&request));
                    let promise = Duration::ZERO;
                    let event = link::Event::Answer { question, promise, result };
                    self.links.with(peer, |link, effects| link.handle(now, event, effects));
                }
                _ => {}
            }
        }
    }

    fn is_up(&self) -> bool {
        self.links.links.values().any(Link::is_up)
    }

    /// How many connections it has that nobody knows, and in all.
    fn held(&self) -> (usize, usize) {
        (self.peers.greetings.count(), self.peers.slots.len())
    }
}

/// What a disk has: blocks that show which they are.
fn content(index: u32, blocks: BlockRange) -> Vec<u8> {
    let mut bytes = vec![0; blocks.count() as usize * BLOCK_SIZE];
    for (at, block) in bytes.chunks_mut(BLOCK_SIZE).enumerate() {
        block.fill((index as usize + at) as u8 | 1);
        block[0] = blocks.first() as u8;
    }
    bytes
}

fn answer_to(request: &MemberRequest) -> MemberReply {
    let MemberRequest::Read { key, blocks, .. } = request else { panic!("{request:?}") };
    let payload = Buffer::copy_of(&content(key.index, *blocks)).freeze();
    MemberReply::Data { content: vec![payload], absent: Vec::new() }
}

/// Turns all sides until it is so.
fn until(sides: &mut [&mut Side], mut so: impl FnMut(&mut [&mut Side]) -> bool) {
    let started = Instant::now();
    while !so(sides) {
        assert!(started.elapsed() < PATIENCE, "it takes too long");
        let now = Time(started.elapsed().as_nanos() as u64);
        for side in sides.iter_mut() {
            side.turn(now);
        }
    }
}

/// Both ask each other for much at once, and get all of it.
fn talk(plain: [bool; 2]) {
    let [low, high] = keys_of(CLUSTER, [LOW, HIGH]);
    let mut low = side(&low, LOW, Some(HIGH), plain[0]);
    let mut high = side(&high, HIGH, Some(LOW), plain[1]);
    low.dials_to = vec![high.address];
    until(&mut [&mut low, &mut high], |sides| sides.iter().all(|side| side.is_up()));
    let range = |index: u32| BlockRange::new(3, 1 + index * 6).expect("within an object");
    let read = |index: u32| MemberRequest::Read {
        lineage: LineageId(1),
        key: ObjectKey { layer: LayerId(1), index },
        generation: Generation(1),
        under: None,
        blocks: range(index),
    };
    for index in 0..40 {
        let request = || read(index);
        for (side, peer) in [(&mut low, HIGH), (&mut high, LOW)] {
            let (token, disk) = (MemberToken(u64::from(index)), DiskId(1));
            let event = link::Event::Ask { token, disk, request: request() };
            side.links.with(peer, |link, effects| link.handle(Time(0), event, effects));
        }
    }
    until(&mut [&mut low, &mut high], |sides| sides.iter().all(|side| side.answers.len() == 40));
    for side in [&low, &high] {
        for (token, reply) in &side.answers {
            let MemberReply::Data { content: found, .. } = reply else { panic!("{reply:?}") };
            let index = token.0 as u32;
            let expected = content(index, range(index));
            assert!(found.iter().flat_map(|p| p.as_slice()).eq(&expected), "{index}");
        }
        assert_eq!(side.held(), (0, 1));
    }
    // A goodbye arrives as such where nothing else was to be written, and the sockets go.
    until(&mut [&mut low, &mut high], |sides| {
        let link = &sides[0].links.links[&HIGH];
        link.connection().is_some_and(|connection| link.output(connection).next().is_none())
    });
    low.links.with(HIGH, |link, effects| link.handle(Time(0), link::Event::Stop, effects));
    until(&mut [&mut low, &mut high], |sides| {
        sides.iter().all(|side| side.held() == (0, 0)) && !sides[1].is_up()
    });
    let said = high.reasons.iter().any(|reason| matches!(reason, CloseReason::Said { .. }));
    assert!(said, "{:?}", high.reasons);
}

#[test]
fn two_nodes_talk_over_tls() {
    talk([false, false]);
}

#[test]
fn two_nodes_talk_plainly_where_both_were_told_to() {
    talk([true, true]);
}

/// So that a cluster can be changed from the one to the other, node by node.
#[test]
fn a_node_that_was_told_to_be_plain_still_takes_those_that_are_not() {
    talk([false, true]);
}

/// Turns until the listening side has refused somebody, and both are rid of the connection.
fn refused(low: &mut Side, high: &mut Side) {
    low.dials_to = vec![high.address];
    let mut came = false;
    until(&mut [low, high], |sides| {
        came |= sides[1].held().1 > 0;
        assert!(!sides.iter().any(|side| side.is_up()), "it got in");
        came && sides[1].held() == (0, 0)
    });
    assert!(high.links.effects.is_empty());
}

#[test]
fn a_node_of_another_cluster_is_no_node() {
    // The same ids and names, another authority.
    let mut low = side(&Keys::found(CLUSTER, LOW), LOW, Some(HIGH), false);
    let mut high = side(&Keys::found(CLUSTER, HIGH), HIGH, Some(LOW), false);
    refused(&mut low, &mut high);
    let mut low = side(&Keys::found(ClusterId(2), LOW), LOW, Some(HIGH), false);
    refused(&mut low, &mut high);
}

#[test]
fn a_certificate_is_worth_nothing_for_another_node() {
    let [other, high] = keys_of(CLUSTER, [NodeId(11), HIGH]);
    let mut low = side(&other, LOW, Some(HIGH), false);
    let mut high = side(&high, HIGH, Some(LOW), false);
    refused(&mut low, &mut high);
    // It is told why.
    let told = "certificate of node 0000000000000000000000000000000b";
    until(&mut [&mut low, &mut high], |sides| {
        sides[0].reasons.iter().any(|reason| reason.to_string().contains(told))
    });
}

#[test]
fn another_node_than_the_one_that_was_dialled_is_told_nothing() {
    let [low, other] = keys_of(CLUSTER, [LOW, NodeId(21)]);
    let mut low = side(&low, LOW, Some(HIGH), false);
    let mut other = side(&other, HIGH, Some(LOW), false);
    low.dials_to = vec![other.address];
    until(&mut [&mut low, &mut other], |sides| {
        sides[0].reasons.contains(&CloseReason::Unreachable)
    });
    assert!(!other.is_up() && !low.is_up());
}

#[test]
fn a_node_that_is_not_in_the_map_is_refused() {
    let [low, high] = keys_of(CLUSTER, [LOW, HIGH]);
    let mut low = side(&low, LOW, Some(HIGH), false);
    let mut high = side(&high, HIGH, None, false);
    low.dials_to = vec![high.address];
    until(&mut [&mut low, &mut high], |sides| {
        let told = |reason: &CloseReason| reason.to_string().contains("not a member");
        sides[0].reasons.iter().any(told)
    });
}

#[test]
fn plain_bytes_are_refused_where_nobody_allowed_them() {
    let [low, high] = keys_of(CLUSTER, [LOW, HIGH]);
    let mut low = side(&low, LOW, Some(HIGH), true);
    let mut high = side(&high, HIGH, Some(LOW), false);
    refused(&mut low, &mut high);
}

/// What comes back on a connection on which these bytes were said, until its end.
fn said_to(high: &mut Side, bytes: &[u8]) -> Vec<u8> {
    let mut client = std::net::TcpStream::connect(high.address).expect("connected");
    client.set_nonblocking(true).expect("set");
    client.write_all(bytes).expect("written");
    let mut came = Vec::new();
    until(&mut [high], |_| {
        let mut piece = [0; 4096];
        match client.read(&mut piece) {
            Ok(0) => true,
            Ok(count) => {
                came.extend_from_slice(&piece[..count]);
                false
            }
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        }
    });
    came
}

#[test]
fn older_tls_and_other_protocols_get_nowhere() {
    let [_, high] = keys_of(CLUSTER, [LOW, HIGH]);
    let mut high = side(&high, HIGH, Some(LOW), false);
    // A ClientHello of TLS 1.2: no supported_versions, two suites, one group, ALPN of a peer.
    let alpn = [&[0, 16, 0, 18, 0, 16, 15][..], ALPN].concat();
    let groups = [0, 10, 0, 4, 0, 2, 0, 29];
    let signatures = [0, 13, 0, 4, 0, 2, 8, 7];
    let extensions = [&alpn[..], &groups, &signatures].concat();
    let mut hello = [&[3, 3][..], &[7; 32], &[0, 0, 4, 0xc0, 0x2b, 0xcc, 0xa9, 1, 0]].concat();
    hello.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
    hello.extend_from_slice(&extensions);
    let mut record = vec![22, 3, 1];
    record.extend_from_slice(&(hello.len() as u16 + 4).to_be_bytes());
    record.extend_from_slice(&[1, 0]);
    record.extend_from_slice(&(hello.len() as u16).to_be_bytes());
    record.extend_from_slice(&hello);
    // A fatal alert: protocol_version.
    assert_eq!(said_to(&mut high, &record), [21, 3, 3, 0, 2, 2, 70]);
    let http = said_to(&mut high, b"GET / HTTP/1.1\r\n\r\n");
    assert!(http.len() <= 7, "{http:?}");
    assert_eq!(high.held(), (0, 0));
}

const ALPN: &[u8] = crate::identity::ALPN_PEER;

/// A TLS client with this configuration, after its handshake as far as it gets.
fn tls_client(
    high: &mut Side,
    config: Arc<ClientConfig>,
) -> (ClientConnection, std::net::TcpStream, Option<String>) {
    let name = ServerName::try_from("x.invalid").expect("a name");
    let mut connection = ClientConnection::new(config, name).expect("made");
    let mut socket = std::net::TcpStream::connect(high.address).expect("connected");
    socket.set_nonblocking(true).expect("set");
    let mut end = None;
    let mut rounds_after = 0;
    until(&mut [high], |_| {
        // The server judges the client after the client thinks that all is well.
        rounds_after += usize::from(!connection.is_handshaking());
        while connection.wants_write() {
            match connection.write_tls(&mut socket) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => end = Some(error.to_string()),
            }
        }
        match connection.read_tls(&mut socket) {
            Ok(0) => end = end.take().or(Some("closed".to_string())),
            Ok(_) => {
                if let Err(error) = connection.process_new_packets() {
                    end = Some(error.to_string());
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => end = Some(error.to_string()),
        }
        end.is_some() || rounds_after > 50
    });
    (connection, socket, end)
}

#[test]
fn a_peer_without_a_certificate_and_one_without_a_purpose_are_refused() {
    let [_, high_keys] = keys_of(CLUSTER, [LOW, HIGH]);
    let mut high = side(&high_keys, HIGH, Some(LOW), false);
    let digest = high_keys.membership.as_ref().expect("a member").authority.digest();
    let with = |protocols: &[&[u8]]| {
        let config = crate::identity::joining_config(CLUSTER, digest).expect("made");
        let mut config = ClientConfig::clone(&config);
        config.alpn_protocols = protocols.iter().map(|one| one.to_vec()).collect();
        Arc::new(config)
    };
    // Nothing to show for who says it is a peer: this side does not even bring its authority.
    for protocols in [&[ALPN][..], &[], &[b"http/1.1"], &[ALPN, crate::identity::ALPN_JOIN]] {
        let (_, _, end) = tls_client(&mut high, with(protocols));
        assert!(end.is_some(), "{protocols:?}");
        until(&mut [&mut high], |sides| sides[0].held() == (0, 0));
    }
    // As a machine that wants to join it is listened to.
    let (_, socket, end) = tls_client(&mut high, with(&[crate::identity::ALPN_JOIN]));
    assert_eq!(end, None);
    assert_eq!(high.held(), (1, 1));
    drop(socket);
    until(&mut [&mut high], |sides| sides[0].held() == (0, 0));
}

#[test]
fn connections_that_do_not_show_who_they_are_are_few_and_soon_gone() {
    let [_, high] = keys_of(CLUSTER, [LOW, HIGH]);
    let mut high = side(&high, HIGH, Some(LOW), false);
    let cap = limits::PEER_GREETINGS_PER_ADDRESS_MAX;
    let connect = |_| std::net::TcpStream::connect(high.address).expect("connected");
    let clients: Vec<_> = (0..cap + 4).map(connect).collect();
    let mut now = Time(1);
    for _ in 0..20 {
        high.turn(now);
    }
    assert_eq!(high.held(), (cap, cap));
    now = now + Duration::from_millis(limits::PEER_STRANGER_MS_MAX - 1);
    high.turn(now);
    assert_eq!(high.held(), (cap, cap));
    assert!(high.peers.deadline(now).is_some_and(|at| at.since(now) <= Duration::from_millis(1)));
    now = now + Duration::from_millis(1);
    high.turn(now);
    assert_eq!(high.held(), (0, 0));
    drop(clients);
}

/// Silent strangers from many addresses, who come again as soon as one was closed, took all places,
/// and nodes could not reach one another.
#[test]
fn a_flood_of_strangers_does_not_keep_a_node_out() {
    const ADDRESSES: u8 = 24;
    const CONNECTIONS_MAX: usize = 20_000;
    let [low, high] = keys_of(CLUSTER, [LOW, HIGH]);
    let mut low = side(&low, LOW, Some(HIGH), false);
    let mut high = side(&high, HIGH, Some(LOW), false);
    high.peers.expect([low.address.ip()].into_iter());
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (target, stopped) = (high.address, Arc::clone(&stop));
    let flood = std::thread::spawn(move || {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
        let mut held = std::collections::VecDeque::new();
        for at in 0..CONNECTIONS_MAX {
            if stopped.load(std::sync::atomic::Ordering::Relaxed) {
                break;
            }
            let stranger = socket(AddressFamily::INET, SocketType::STREAM, None).expect("made");
            let own = SocketAddr::from(([127, 0, 1, at as u8 % ADDRESSES], 0));
            bind(&stranger, &own).expect("bound");
            if connect(&stranger, &target).is_ok() {
                held.push_back(stranger);
            }
            if held.len() > 200 {
                held.pop_front();
            }
        }
    });
    let is_full = |side: &Side| side.held().0 >= limits::PEER_GREETINGS_MAX;
    until(&mut [&mut high], |sides| is_full(sides[0]));
    low.dials_to = vec![high.address];
    let started = Instant::now();
    until(&mut [&mut low, &mut high], |sides| sides.iter().all(|side| side.is_up()));
    // And stays: what the flood costs leaves room for beats.
    let span = std::time::Duration::from_secs(2);
    until(&mut [&mut low, &mut high], |sides| {
        assert!(sides.iter().all(|side| side.is_up()));
        assert!(sides[1].held().0 <= 2 * limits::PEER_GREETINGS_MAX);
        started.elapsed() > span
    });
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    until(&mut [&mut low, &mut high], |_| flood.is_finished());
    flood.join().expect("it ended");
}

/// The agreed state of a cluster with this one node, and a token.
fn cluster_with_token(keys: &Keys, uses: u32, address: SocketAddr) -> (Agreed, TokenText) {
    let mut state = Agreed::default();
    let token = TokenText {
        cluster: keys.cluster,
        id: TokenId(5),
        secret: random(),
        authority: keys.membership.as_ref().expect("a member").authority.digest(),
        expires_unix_s: 4_000_000_000,
        uses,
        seeds: vec![address.to_string().parse().expect("an address")],
    };
    let secret = TokenText::secret_digest(token.cluster, token.id, &token.secret);
    for command in [
        Command::CreateCluster { cluster: keys.cluster, partition_bits: 1, unix_s: 0 },
        Command::AddNode { node: keys.node, name: "first".to_string() },
        Command::AddToken {
            id: token.id,
            secret,
            uses,
            unix_s: 3_999_999_000,
            expires_unix_s: token.expires_unix_s,
        },
    ] {
        state.apply(&command).expect("it can be");
    }
    (state, token)
}

/// Lets a machine ask while the node answers by the agreed state.
fn apply(
    high: &mut Side,
    state: &mut Agreed,
    unix_s: u64,
    keys: Keys,
    token: TokenText,
) -> (Keys, Result<(), String>) {
    let client = std::thread::spawn(move || {
        let mut keys = keys;
        let patience = std::time::Duration::ZERO;
        let own: Vec<Seed> = vec!["192.0.2.9:7117".parse().expect("an address")];
        let result = join::join(&mut keys, &token, "new", &own, &[], patience);
        (keys, result)
    });
    let started = Instant::now();
    until(&mut [high], |sides| {
        let now = Time(started.elapsed().as_nanos() as u64);
        for arrival in sides[0].peers.arrivals() {
            let Application { applicant, name, addresses } = arrival.application;
            assert_eq!(addresses.len(), 1);
            let (token, secret) = (applicant.token, applicant.secret);
            let (node, key) = (applicant.node, applicant.key);
            let admit = Command::AdmitNode { token, secret, node, key, name, unix_s };
            let verdict = match state.apply(&admit) {
                Ok(_) => {
                    let neighbours = vec![crate::identity::Neighbour {
                        node: HIGH,
                        addresses: vec!["192.0.2.1:7117".parse().expect("an address")],
                    }];
                    Verdict::Admitted { neighbours }
                }
                Err(refusal) => {
                    Verdict::Refused { try_again: false, sentence: refusal.to_string() }
                }
            };
            sides[0].peers.decide(now, arrival.id, verdict);
        }
        client.is_finished() && sides[0].held() == (0, 0)
    });
    client.join().expect("it ended")
}

#[test]
fn a_machine_with_a_token_becomes_a_node_and_talks_as_one() {
    let high_keys = Keys::found(CLUSTER, HIGH);
    let mut high = side(&high_keys, HIGH, Some(LOW), false);
    let (mut state, token) = cluster_with_token(&high_keys, 1, high.address);
    let keys = Keys::applying(CLUSTER, LOW);
    let (keys, result) = apply(&mut high, &mut state, 3_999_999_001, keys, token.clone());
    assert_eq!(result, Ok(()));
    assert_eq!(keys.neighbours[0].node, HIGH);
    assert_eq!(state.map().node(LOW).expect("a node").name, "new");
    // Whose answer was lost asks again, and uses nothing.
    let (keys, result) = apply(&mut high, &mut state, 3_999_999_002, keys, token);
    assert_eq!(result, Ok(()));
    let mut low = side(&keys, LOW, Some(HIGH), false);
    low.dials_to = vec![high.address];
    until(&mut [&mut low, &mut high], |sides| sides.iter().all(|side| side.is_up()));
}

#[test]
fn no_other_token_lets_a_machine_in() {
    let high_keys = Keys::found(CLUSTER, HIGH);
    let mut high = side(&high_keys, HIGH, None, false);
    let (mut state, token) = cluster_with_token(&high_keys, 1, high.address);
    let before = state.clone();
    let mut refused = |state: &mut Agreed, unix_s, node, token: TokenText, part: &str| {
        let keys = Keys::applying(token.cluster, node);
        let nodes = state.map().nodes().len();
        let (keys, result) = apply(&mut high, state, unix_s, keys, token);
        let sentence = result.expect_err(part);
        assert!(sentence.contains(part), "{sentence}");
        assert!(keys.membership.is_none());
        assert_eq!(state.map().nodes().len(), nodes);
    };
    let now = 3_999_999_001;
    let unknown = "does not know this token";
    let wrong = TokenText { secret: random(), ..token.clone() };
    refused(&mut state, now, LOW, wrong, unknown);
    refused(&mut state, now, LOW, TokenText { id: TokenId(6), ..token.clone() }, unknown);
    refused(&mut state, token.expires_unix_s, LOW, token.clone(), "the token expired at");
    refused(&mut state, now, HIGH, token.clone(), "there is a node");
    // The newcomer looks first: of another cluster's node it asks nothing.
    let foreign = "it belongs to another cluster than the token, or is no node";
    let other = TokenText { authority: Digest([1; 32]), ..token.clone() };
    refused(&mut state, now, LOW, other, foreign);
    let other = TokenText { cluster: ClusterId(9), ..token.clone() };
    refused(&mut state, now, LOW, other, "it does not speak as a node does");
    assert_eq!(state, before);

    let keys = Keys::applying(CLUSTER, LOW);
    let (_, result) = apply(&mut high, &mut state, now, keys, token.clone());
    assert_eq!(result, Ok(()));
    let mut refused = |state: &mut Agreed, node, part: &str| {
        let keys = Keys::applying(CLUSTER, node);
        let (_, result) = apply(&mut high, state, now, keys, token.clone());
        let sentence = result.expect_err(part);
        assert!(sentence.contains(part), "{sentence}");
    };
    refused(&mut state, NodeId(11), "all of the 1 nodes");
    // The same id with another key: a twin.
    refused(&mut state, LOW, "there is a node");
    state.apply(&Command::RevokeToken { id: token.id }).expect("it is there");
    refused(&mut state, NodeId(11), unknown);
}

/// Each wrong token is answered a second later; they must not keep out who has a right one.
#[test]
fn wrong_tokens_do_not_keep_out_who_has_a_right_one() {
    let high_keys = Keys::found(CLUSTER, HIGH);
    let mut high = side(&high_keys, HIGH, None, false);
    let (_, token) = cluster_with_token(&high_keys, 1, high.address);
    // Time stands still: each has asked and waits to hear that it was refused.
    let mut clients = Vec::new();
    for (first, after) in [(0, limits::JOINS_MAX), (limits::JOINS_MAX, limits::JOINS_MAX + 1)] {
        clients.extend((first..after).map(|at| {
            let token = token.clone();
            std::thread::spawn(move || {
                let mut keys = Keys::applying(CLUSTER, NodeId(100 + at as u128));
                let patience = std::time::Duration::ZERO;
                join::join(&mut keys, &token, "new", &[], &[], patience)
            })
        }));
        let (started, mut asked) = (Instant::now(), first);
        while asked < after {
            assert!(started.elapsed() < PATIENCE, "only {asked} were decided on");
            high.turn(Time(1));
            for arrival in high.peers.arrivals() {
                let verdict = Verdict::Refused { try_again: false, sentence: "no".to_string() };
                high.peers.decide(Time(1), arrival.id, verdict);
                asked += 1;
            }
        }
    }
    until(&mut [&mut high], |_| clients.iter().all(std::thread::JoinHandle::is_finished));
    for client in clients {
        let sentence = client.join().expect("it ended").expect_err("refused");
        assert!(sentence.contains("does not let this machine in: no"), "{sentence}");
    }
}

#[test]
fn keys_are_used_only_with_their_certificate() {
    // What `credentials` says cannot fail, does fail where it should.
    let [low, high] = keys_of(CLUSTER, [LOW, HIGH]);
    let member = high.membership.as_ref().expect("a member");
    let authority = member.authority.certificate();
    let mixed = Credentials::new(CLUSTER, authority, &member.certificate, &low.key);
    assert!(mixed.is_err());
    let drawn = Credentials::new(CLUSTER, authority, &member.certificate, &NodeKey::draw());
    assert!(drawn.is_err());
}
