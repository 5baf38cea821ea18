//! The sockets between nodes: listening, dialling, TLS, and carrying bytes between them and the
//! links; and the connections of machines that want to join.
//!
//! [`Peers`] owns the sockets and nothing else. The links are with whoever calls it, behind
//! [`Links`]; what a round of the loop does is said at [`Peers::turn`]. Nothing here waits.

mod slots;
mod stream;
#[cfg(test)]
mod tests;

use crate::{
    identity::{Authority, Credentials},
    join::{Application, Host, HostError, Verdict},
    settings::Plain,
};
use link::{CloseReason, Greeter};
use mio::{
    Interest, Registry, Token,
    event::Event,
    net::{TcpListener, TcpStream},
};
use proto::{
    Duration, NodeId, Time,
    limits::{
        JOINS_MAX, LINK_CONNECT_MS_MAX, PEER_CLOSING_MS_MAX, PEER_GREETING_MS_MAX,
        PEER_STRANGER_MS_MAX,
    },
    wire::{Hello, Identity},
};
use slots::{Greetings, Slot, Standing, State};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind, IoSlice},
    net::{IpAddr, SocketAddr},
};
use stream::{Purpose, Stream};

/// The port that nodes listen at unless told otherwise.
pub const PORT_DEFAULT: u16 = 7117;
/// What our tokens begin at: no other user of the poll comes so far.
const TOKENS: usize = 1 << 62;
/// Tokens of listeners; connections follow.
const LISTENERS_MAX: usize = 16;
/// Connections accepted in one round.
const ACCEPTS_MAX: usize = 64;
/// How long accepting rests after it failed, as when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Bytes read from one connection in one round, so that all have their turn.
const READ_BYTES_MAX: usize = 4 << 20;
/// Bytes read at once where no link has memory for them.
const SCRATCH_BYTES: usize = 256 << 10;
/// Pieces written at once.
const PIECES_MAX: usize = 64;

/// The links of a node, as the sockets see them. Each call names the peer and the connection;
/// those about a connection that has ended are without effect.
pub trait Links {
    /// Takes a connection over whose hello names a node that has proved to be it. The number that
    /// it has from now on, or why there is no link for it.
    fn accepted(&mut self, now: Time, hello: &Hello, nonce: u64) -> Result<u64, CloseReason>;
    /// A connection that was to be made is there, and it is the peer that is at its other end.
    fn dialled(&mut self, now: Time, peer: NodeId, connection: u64, nonce: u64);
    /// It cannot be had now.
    fn dial_failed(&mut self, now: Time, peer: NodeId, connection: u64);
    /// The connection has ended.
    fn lost(&mut self, now: Time, peer: NodeId, connection: u64);
    /// Bytes have come.
    fn bytes(&mut self, now: Time, peer: NodeId, connection: u64, bytes: &[u8]);
    /// Where the next bytes belong, if not into memory of the caller.
    fn payload_target(&mut self, peer: NodeId, connection: u64) -> Option<&mut [u8]>;
    /// So many bytes of that were filled.
    fn payload(&mut self, now: Time, peer: NodeId, connection: u64, filled: usize);
    /// The connections that have something to write.
    fn with_output(&self) -> Vec<(NodeId, u64)>;
    /// What is to be written.
    fn output(&self, peer: NodeId, connection: u64) -> impl Iterator<Item = &[u8]>;
    /// The socket has taken so many bytes of it.
    fn sent(&mut self, now: Time, peer: NodeId, connection: u64, count: usize);
}

/// Names a connection of a machine that wants to join.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ApplicationId(usize);

/// A machine wants to join, and waits for [`Peers::decide`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// Names it.
    pub id: ApplicationId,
    /// What it says.
    pub application: Application,
    /// Where it asks from.
    pub from: SocketAddr,
}

/// What [`Peers`] is made of.
pub struct Parts {
    /// Who this node is, for hellos.
    pub identity: Identity,
    /// What it shows.
    pub credentials: Credentials,
    /// What certifies those that join.
    pub authority: Authority,
    /// Which links are made without TLS, and accepted so too. Joining is always by TLS.
    pub plain: Plain,
    /// Where others come in; bound, and not blocking.
    pub listeners: Vec<std::net::TcpListener>,
}

/// The sockets between this node and others.
pub struct Peers {
    identity: Identity,
    credentials: Credentials,
    authority: Authority,
    plain: Plain,
    registry: Registry,
    listeners: Vec<TcpListener>,
    /// Listeners that may have connections waiting.
    knocked: Vec<bool>,
    accept_again: Option<Time>,
    slots: BTreeMap<usize, Slot>,
    next_slot: usize,
    /// Which slot has which connection of which peer.
    linked: BTreeMap<(NodeId, u64), usize>,
    greetings: Greetings,
    /// Slots that may have something to do without another event.
    ready: BTreeSet<usize>,
    /// How often each peer was dialled: its addresses take turns.
    dials: BTreeMap<NodeId, usize>,
    arrivals: Vec<Arrival>,
    scratch: Vec<u8>,
}

impl Peers {
    /// Registers the listeners with the poll of the loop that will call [`Peers::turn`].
    pub fn new(parts: Parts, registry: &Registry) -> io::Result<Peers> {
        let Parts { identity, credentials, authority, plain, listeners } = parts;
        assert!(listeners.len() <= LISTENERS_MAX, "a token for each listener");
        let mut listeners: Vec<_> = listeners.into_iter().map(TcpListener::from_std).collect();
        for (at, listener) in listeners.iter_mut().enumerate() {
            registry.register(listener, Token(TOKENS + at), Interest::READABLE)?;
        }
        Ok(Peers {
            identity,
            credentials,
            authority,
            plain,
            registry: registry.try_clone()?,
            knocked: vec![true; listeners.len()],
            listeners,
            accept_again: None,
            slots: BTreeMap::new(),
            next_slot: 0,
            linked: BTreeMap::new(),
            greetings: Greetings::default(),
            ready: BTreeSet::new(),
            dials: BTreeMap::new(),
            arrivals: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES],
        })
    }

    /// Whether a token of the poll is one of ours.
    pub fn owns(token: Token) -> bool {
        token.0 >= TOKENS
    }

    /// Takes an event of the poll that is ours.
    pub fn handle_event(&mut self, event: &Event) {
        let number = event.token().0 - TOKENS;
        if let Some(knocked) = self.knocked.get_mut(number) {
            *knocked = true;
            return;
        }
        // It may have been on its way when the connection was closed.
        let number = number.wrapping_sub(LISTENERS_MAX);
        if let Some(slot) = self.slots.get_mut(&number) {
            slot.stream.handle_event(event);
            self.ready.insert(number);
        }
    }

    /// Where nodes of the cluster are, as is agreed: connections from there have places that no
    /// stranger takes.
    pub fn expect(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        self.greetings.agree(addresses.map(|address| address.to_canonical()).collect());
    }

    /// Connects to a peer at one of its addresses; they take turns. Ends with
    /// [`Links::dialled`] or [`Links::dial_failed`], unless it is closed before.
    pub fn dial(
        &mut self,
        now: Time,
        peer: NodeId,
        connection: u64,
        addresses: &[SocketAddr],
        links: &mut impl Links,
    ) {
        let turn = self.dials.entry(peer).or_default();
        *turn = turn.wrapping_add(1);
        let address = (!addresses.is_empty()).then(|| addresses[*turn % addresses.len()]);
        let dialled = match address {
            None => Err(io::Error::new(ErrorKind::NotFound, "the cluster knows no address of it")),
            Some(address) => self.begin_dial(now, peer, connection, address),
        };
        if let Err(error) = dialled {
            let address = address.map_or("no address".to_string(), |known| known.to_string());
            tracing::debug!(%peer, %address, %error, "a node cannot be connected to");
            links.dial_failed(now, peer, connection);
        }
    }

    fn begin_dial(
        &mut self,
        now: Time,
        peer: NodeId,
        connection: u64,
        address: SocketAddr,
    ) -> io::Result<()> {
        let socket = TcpStream::connect(address)?;
        let tls = (!self.plain.is_for(address.ip())).then_some(&self.credentials.dial);
        let stream = Stream::dialled(socket, tls)?;
        let deadline = now + Duration::from_millis(LINK_CONNECT_MS_MAX + PEER_GREETING_MS_MAX);
        let state = State::Dialling { peer, connection };
        let number = self.add(stream, address, state, deadline)?;
        self.linked.insert((peer, connection), number);
        Ok(())
    }

    /// A link wants its connection closed, and this written before, if the socket takes it.
    pub fn hang_up(&mut self, now: Time, peer: NodeId, connection: u64, farewell: &[u8]) {
        if let Some(number) = self.linked.remove(&(peer, connection)) {
            self.finish(now, number, farewell);
        }
    }

    /// Machines that want to join and were not told of yet. Each is to be answered with
    /// [`Peers::decide`].
    pub fn arrivals(&mut self) -> Vec<Arrival> {
        std::mem::take(&mut self.arrivals)
    }

    /// The cluster has decided on a machine.
    pub fn decide(&mut self, now: Time, id: ApplicationId, verdict: Verdict) {
        let Some(slot) = self.slots.get_mut(&id.0) else { return };
        if let State::Joining(host) = &mut slot.state {
            host.answer(now, verdict, &self.authority);
            slot.deadline = host.deadline();
            self.ready.insert(id.0);
        }
    }

    /// When [`Peers::turn`] wants to be called, if no event comes before; links have deadlines of
    /// their own.
    pub fn deadline(&self, now: Time) -> Option<Time> {
        let knocks = self.knocked.iter().any(|&knocked| knocked);
        if !self.ready.is_empty() || (knocks && self.accept_again.is_none()) {
            return Some(now);
        }
        self.slots.values().map(|slot| slot.deadline).chain(self.accept_again).min()
    }

    /// Whether others can come in.
    pub fn is_listening(&self) -> bool {
        !self.listeners.is_empty()
    }

    /// The digest of the certificate of the cluster's authority.
    pub fn authority_digest(&self) -> cluster::Digest {
        self.authority.digest()
    }

    /// Whether [`Peers::turn`] has anything to do now, but for what links have to be written.
    pub fn wants_turn(&self, now: Time) -> bool {
        self.deadline(now).is_some_and(|at| at <= now)
    }

    /// One round: accepts, goes on with greetings, reads what has come, writes what is to be
    /// written, and closes what has taken too long.
    pub fn turn(&mut self, now: Time, links: &mut impl Links) {
        self.accept(now);
        for number in std::mem::take(&mut self.ready) {
            self.advance(now, number, links);
        }
        self.write(now, links);
        self.expire(now, links);
    }

    /// Accepts nothing any more; connections stay.
    pub fn stop_listening(&mut self) {
        for mut listener in self.listeners.drain(..) {
            let _ = self.registry.deregister(&mut listener);
        }
        self.knocked.clear();
        self.accept_again = None;
    }

    // -- slots --

    fn add(
        &mut self,
        mut stream: Stream,
        remote: SocketAddr,
        state: State,
        deadline: Time,
    ) -> io::Result<usize> {
        let number = self.next_slot;
        stream.register(&self.registry, Token(TOKENS + LISTENERS_MAX + number))?;
        self.next_slot += 1;
        self.slots.insert(number, Slot { stream, remote, state, deadline, greeting: None });
        self.ready.insert(number);
        Ok(number)
    }

    fn remove(&mut self, number: usize) -> Option<Slot> {
        let mut slot = self.slots.remove(&number)?;
        self.ready.remove(&number);
        self.end_greeting(&mut slot);
        slot.stream.deregister(&self.registry);
        Some(slot)
    }

    fn end_greeting(&mut self, slot: &mut Slot) {
        if let Some(standing) = slot.greeting.take() {
            self.greetings.release(slot.remote.ip(), standing);
        }
    }

    /// Says something last, and keeps the socket for a moment: one that is closed with something
    /// unread would take back what was said.
    fn finish(&mut self, now: Time, number: usize, farewell: &[u8]) {
        let Some(mut slot) = self.remove(number) else { return };
        if !farewell.is_empty() {
            // Who does not take it at once does without it.
            let _ = slot.stream.write_vectored(&[IoSlice::new(farewell)]);
        }
        slot.stream.finish();
        let deadline = now + Duration::from_millis(PEER_CLOSING_MS_MAX);
        // If that fails the socket is closed at once.
        let _ = self.add(slot.stream, slot.remote, State::Closing, deadline);
    }

    // -- accepting --

    fn accept(&mut self, now: Time) {
        if self.accept_again.is_some_and(|again| again > now) {
            return;
        }
        self.accept_again = None;
        let mut accepts = 0;
        for at in 0..self.listeners.len() {
            while self.knocked[at] && accepts < ACCEPTS_MAX {
                accepts += 1;
                match self.listeners[at].accept() {
                    Ok((socket, remote)) => self.greet(now, socket, remote),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        self.knocked[at] = false;
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        tracing::warn!("cannot accept nodes for the moment: {error}");
                        self.accept_again = Some(now + ACCEPT_PAUSE);
                        return;
                    }
                }
            }
        }
    }

    fn greet(&mut self, now: Time, socket: TcpStream, remote: SocketAddr) {
        let standing = match self.greetings.admit(now, remote.ip()) {
            Ok(standing) => standing,
            Err(why) => {
                tracing::debug!(%remote, "a connection was closed at once: {why}");
                return;
            }
        };
        let stream = Stream::accepted(socket, self.plain.is_for(remote.ip()));
        let span = match standing {
            Standing::Known => PEER_GREETING_MS_MAX,
            Standing::Stranger => PEER_STRANGER_MS_MAX,
        };
        let deadline = now + Duration::from_millis(span);
        match self.add(stream, remote, State::Unknown, deadline) {
            Ok(number) => {
                self.slots.get_mut(&number).expect("just added").greeting = Some(standing);
            }
            Err(error) => {
                self.greetings.release(remote.ip(), standing);
                tracing::debug!(%remote, %error, "a connection was closed at once");
            }
        }
    }

    // -- reading --

    /// Goes on with a connection as far as it can without waiting.
    fn advance(&mut self, now: Time, number: usize, links: &mut impl Links) {
        let Some(slot) = self.slots.get_mut(&number) else { return };
        let result = match slot.state {
            State::Dialling { .. } => self.advance_dial(now, number, links),
            State::Unknown => self.advance_unknown(now, number, links),
            State::Greeting(_) => self.advance_greeting(now, number, links),
            State::Joining(_) => self.advance_join(now, number),
            State::Open { peer, connection } => self.read(now, number, peer, connection, links),
            State::Closing => self.advance_closing(number),
        };
        match result {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => self.fail(now, number, &error, links),
        }
    }

    /// A connection has ended, or is ended because of what came.
    fn fail(&mut self, now: Time, number: usize, error: &io::Error, links: &mut impl Links) {
        let Some(slot) = self.remove(number) else { return };
        let remote = slot.remote;
        match slot.state {
            State::Dialling { peer, connection } => {
                self.linked.remove(&(peer, connection));
                tracing::debug!(%peer, %remote, %error, "a node cannot be connected to");
                links.dial_failed(now, peer, connection);
            }
            State::Open { peer, connection } => {
                self.linked.remove(&(peer, connection));
                tracing::debug!(%peer, %remote, %error, "the connection to a node has ended");
                links.lost(now, peer, connection);
            }
            State::Unknown | State::Greeting(_) | State::Joining(_) => {
                // Whoever reaches the port can cause it, as often as it likes.
                tracing::debug!(%remote, %error, "a connection was not taken for that of a node");
            }
            State::Closing => {}
        }
    }

    fn advance_dial(&mut self, now: Time, number: usize, links: &mut impl Links) -> io::Result<()> {
        let slot = self.slots.get_mut(&number).expect("the caller looked");
        let State::Dialling { peer, connection } = slot.state else { unreachable!("as above") };
        if !slot.stream.is_connected()? || !slot.stream.advance(&self.credentials)? {
            return Ok(());
        }
        if slot.stream.is_tls() {
            let shown = slot.stream.certificates();
            let found = self.credentials.peer_node(shown).map_err(io::Error::other)?;
            if found != peer {
                let reason = CloseReason::OtherNode { wanted: peer, found };
                return Err(io::Error::other(reason));
            }
            slot.stream.purpose()?;
        }
        slot.state = State::Open { peer, connection };
        slot.deadline = Time(u64::MAX);
        let nonce = u64::from_le_bytes(crate::identity::random());
        links.dialled(now, peer, connection, nonce);
        self.ready.insert(number);
        Ok(())
    }

    fn advance_unknown(
        &mut self,
        now: Time,
        number: usize,
        links: &mut impl Links,
    ) -> io::Result<()> {
        let slot = self.slots.get_mut(&number).expect("the caller looked");
        if !slot.stream.advance(&self.credentials)? {
            return Ok(());
        }
        let purpose = slot.stream.purpose()?;
        slot.deadline = now + Duration::from_millis(PEER_GREETING_MS_MAX);
        match purpose {
            Purpose::Peer => {
                slot.state = State::Greeting(Box::new(Greeter::new(now, self.identity)));
                self.advance_greeting(now, number, links)
            }
            Purpose::Join => {
                let host = Host::new(now, self.identity.cluster, slot.stream.join_binding()?);
                slot.state = State::Joining(Box::new(host));
                self.advance_join(now, number)
            }
        }
    }

    fn advance_greeting(
        &mut self,
        now: Time,
        number: usize,
        links: &mut impl Links,
    ) -> io::Result<()> {
        let slot = self.slots.get_mut(&number).expect("the caller looked");
        let State::Greeting(greeter) = &mut slot.state else { unreachable!("as above") };
        let judged = loop {
            let count = slot.stream.read(&mut self.scratch[..1024])?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            match greeter.handle_bytes(&self.scratch[..count]) {
                Ok(None) => {}
                Ok(Some(hello)) => break Ok(hello),
                Err(reason) => break Err(reason),
            }
        };
        let judged = judged.and_then(|hello| {
            let said = hello.identity.node;
            if slot.stream.is_tls() {
                // It was believed in the handshake; without it there is no connection at all.
                let shown = self.credentials.peer_node(slot.stream.certificates());
                let shown = shown.map_err(|_| CloseReason::BeforeHello)?;
                if shown != said {
                    return Err(CloseReason::OtherCertificate { shown, said });
                }
            }
            let nonce = u64::from_le_bytes(crate::identity::random());
            Ok((said, links.accepted(now, &hello, nonce)?))
        });
        match judged {
            Ok((peer, connection)) => {
                slot.state = State::Open { peer, connection };
                slot.deadline = Time(u64::MAX);
                self.linked.insert((peer, connection), number);
                let remote = slot.remote.ip();
                if let Some(standing) = slot.greeting.take() {
                    self.greetings.release(remote, standing);
                }
                self.greetings.meet(remote);
                self.ready.insert(number);
            }
            Err(reason) => {
                tracing::info!(remote = %slot.remote, %reason, "a node was refused");
                self.finish(now, number, &Greeter::farewell(&reason));
            }
        }
        Ok(())
    }

    /// How many machines the cluster decides on: who was refused and waits to hear it is none.
    fn deciding(&self) -> usize {
        let is_so = |slot: &&Slot| matches!(&slot.state, State::Joining(host) if host.is_waiting());
        self.slots.values().filter(is_so).count()
    }

    fn advance_join(&mut self, now: Time, number: usize) -> io::Result<()> {
        let deciding = self.deciding();
        let slot = self.slots.get_mut(&number).expect("the caller looked");
        let State::Joining(host) = &mut slot.state else { unreachable!("as above") };
        let refused = |error: HostError| io::Error::new(ErrorKind::InvalidData, error);
        loop {
            let count = match slot.stream.read(&mut self.scratch) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            let application = host.handle_bytes(now, &self.scratch[..count]).map_err(refused)?;
            if let Some(application) = application {
                if deciding >= JOINS_MAX {
                    let sentence = "too many machines want to join at once; try again later";
                    let sentence = sentence.to_string();
                    let verdict = Verdict::Refused { try_again: true, sentence };
                    host.answer(now, verdict, &self.authority);
                } else {
                    let (id, from) = (ApplicationId(number), slot.remote);
                    self.arrivals.push(Arrival { id, application, from });
                }
            }
            if host.has_asked() {
                slot.deadline = host.deadline();
            }
        }
        if let Some(answer) = host.output(now) {
            self.finish(now, number, &answer);
        }
        Ok(())
    }

    fn read(
        &mut self,
        now: Time,
        number: usize,
        peer: NodeId,
        connection: u64,
        links: &mut impl Links,
    ) -> io::Result<()> {
        let slot = self.slots.get_mut(&number).expect("the caller looked");
        let mut total = 0;
        while total < READ_BYTES_MAX {
            let count = if let Some(target) = links.payload_target(peer, connection) {
                let count = slot.stream.read(target)?;
                links.payload(now, peer, connection, count);
                count
            } else {
                let count = slot.stream.read(&mut self.scratch)?;
                links.bytes(now, peer, connection, &self.scratch[..count]);
                count
            };
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            total += count;
        }
        self.ready.insert(number);
        Ok(())
    }

    fn advance_closing(&mut self, number: usize) -> io::Result<()> {
        let slot = self.slots.get_mut(&number).expect("the caller looked");
        if slot.stream.wants_flush() {
            slot.stream.flush()?;
            slot.stream.finish();
        }
        // A bounded look at what the other side still says: it is not waited for long.
        for _ in 0..READ_BYTES_MAX / SCRATCH_BYTES {
            if slot.stream.read(&mut self.scratch)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        self.ready.insert(number);
        Ok(())
    }

    // -- writing, and the end --

    /// Writes what links have, as far as the sockets take it.
    pub fn write(&mut self, now: Time, links: &mut impl Links) {
        for (peer, connection) in links.with_output() {
            let Some(&number) = self.linked.get(&(peer, connection)) else { continue };
            let slot = self.slots.get_mut(&number).expect("a linked one");
            if !matches!(slot.state, State::Open { .. }) {
                continue;
            }
            if let Err(error) = write_to(&mut slot.stream, now, peer, connection, links)
                && error.kind() != ErrorKind::WouldBlock
            {
                self.fail(now, number, &error, links);
            }
        }
        let flushing = self.slots.values_mut().filter(|slot| slot.stream.wants_flush());
        for slot in flushing {
            // How it ended shows when it is read.
            let _ = slot.stream.flush();
        }
    }

    fn expire(&mut self, now: Time, links: &mut impl Links) {
        let due = self.slots.iter().filter(|(_, slot)| slot.deadline <= now);
        for number in due.map(|(number, _)| *number).collect::<Vec<_>>() {
            let slot = self.slots.get_mut(&number).expect("just listed");
            if let State::Joining(host) = &mut slot.state
                && host.has_asked()
            {
                // It was told of the cluster's answer, or that there is none.
                if host.handle_deadline(now).is_ok()
                    && let Some(answer) = host.output(now)
                {
                    self.finish(now, number, &answer);
                    continue;
                }
                slot.deadline = host.deadline();
                if slot.deadline > now {
                    continue;
                }
            }
            let late = io::Error::new(ErrorKind::TimedOut, "it took too long");
            self.fail(now, number, &late, links);
        }
    }
}

/// Writes what the link has until the stream takes no more.
fn write_to(
    stream: &mut Stream,
    now: Time,
    peer: NodeId,
    connection: u64,
    links: &mut impl Links,
) -> io::Result<()> {
    loop {
        let mut slices = [IoSlice::new(&[]); PIECES_MAX];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(links.output(peer, connection)) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        if count == 0 {
            return Ok(());
        }
        let written = stream.write_vectored(&slices[..count])?;
        if written == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        links.sent(now, peer, connection, written);
    }
}
