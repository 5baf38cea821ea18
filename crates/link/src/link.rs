//! One peer: connections to it come and go, what it was asked stays.

use crate::answerer::Answerer;
use crate::asker::Asker;
use crate::event::Counters;
use crate::greeter::{self, Greeter};
use crate::incoming::{Incoming, Progress};
use crate::output::{Mark, Output};
use crate::{Beat, CloseReason, Effect, Event, Settings};
use proto::limits::{self, LINK_BEATS_KEPT_MAX, LINK_INSTANCES_KEPT_MAX};
use proto::wire::{Era, HEADER_BYTES, Header, Hello, Kind, Seal, connection_key, note};
use proto::{BLOCK_SIZE, Duration, NodeId, Payload, Time};
use std::collections::VecDeque;

/// How long the side with the higher id waits for the other one before it dials itself.
const COME_FIRST: Duration = Duration::from_millis(limits::LINK_RETRY_MS_MAX);

/// For so long after another process has come nothing that arrives is taken for a sign that the
/// former one lives.
const RIVAL_DOUBT: Duration = Duration::from_millis(limits::LINK_SILENT_MS_MAX / 2);

/// What there is of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// None. It is dialled at this time, unless the peer comes before.
    Idle { retry_at: Time },
    /// The driver is connecting.
    Dialling { deadline: Time },
    /// Our hello was sent, with this nonce; the other side's is awaited.
    Greeting { nonce: u64, credit: (u32, u32), deadline: Time },
    /// Both may say anything.
    Open { since: Time },
    /// None, for ever.
    Stopped,
}

/// The link to one peer; see the crate for how a driver uses it.
///
/// Holds, whatever the peer does: one frame that arrives, requests of the peer up to twice the
/// credit of the settings, answers to them until the socket takes them, and of our own
/// `LINK_PENDING_MAX` requests and `LINK_CONTROL_QUEUE_MAX` control messages.
#[derive(Debug)]
pub struct Link {
    settings: Settings,
    peer: NodeId,
    state: State,
    /// The present connection, or the last one.
    connection: u64,
    /// The last number that a connection was given.
    last_number: u64,
    incoming: Incoming,
    output: Output,
    /// That of the next frame that comes.
    seal: Seal,
    asker: Asker,
    answerer: Answerer,
    /// The process that the peer was last.
    instance: Option<u64>,
    /// Those it was before.
    replaced: VecDeque<u64>,
    /// A process that says it is the peer, while the one that was there still has a connection,
    /// and when it was first there.
    rival: Option<(u64, Time)>,
    /// When the last byte came.
    heard_at: Time,
    /// When the frame that was begun must be complete.
    frame_deadline: Option<Time>,
    /// When the next beat is due.
    beat_at: Time,
    /// The last beat's number.
    beat: u64,
    /// Beats without promises, and when they were sent.
    beats: VecDeque<(u64, Time)>,
    /// Control messages that the socket has not taken, and their bytes.
    controls: usize,
    control_bytes: usize,
    /// Answers to beats that the socket has not taken.
    promises: usize,
    /// Control messages that were dropped in all.
    controls_dropped: u64,
    /// How long to wait before the next trial.
    retry: Duration,
}

impl Link {
    /// The peer is to be connected to, now and whenever the connection is lost.
    ///
    /// # Panics
    /// If the settings are beyond their limits, or the peer is this node.
    pub fn new(now: Time, settings: Settings, peer: NodeId, effects: &mut Vec<Effect>) -> Link {
        assert!(settings.identity.node != peer, "a node has no link to itself");
        assert!(0 < settings.version_min && settings.version_min <= settings.version_max);
        assert!((1..=limits::LINK_REQUESTS_MAX).contains(&settings.requests));
        let longest = limits::MEMBER_REQUEST_BLOCKS_MAX * BLOCK_SIZE as u32;
        assert!((longest..=limits::LINK_BYTES_MAX).contains(&settings.bytes));
        let mut link = Link {
            settings,
            peer,
            state: State::Idle { retry_at: now + COME_FIRST },
            connection: 0,
            last_number: 0,
            incoming: Incoming::new(),
            output: Output::new(),
            seal: Seal::HELLO,
            asker: Asker::new(),
            answerer: Answerer::new(settings.requests, settings.bytes),
            instance: None,
            replaced: VecDeque::new(),
            rival: None,
            heard_at: now,
            frame_deadline: None,
            beat_at: now,
            beat: 0,
            beats: VecDeque::new(),
            controls: 0,
            control_bytes: 0,
            promises: 0,
            controls_dropped: 0,
            retry: Duration::from_millis(limits::LINK_RETRY_MS),
        };
        if link.is_first() {
            link.dial(now, effects);
        }
        link
    }

    /// Which life of the agreed log this node has found: until now it had none, and took part in
    /// whichever it would find.
    pub fn set_era(&mut self, era: Era) {
        self.settings.era = era;
    }

    /// The peer of this link.
    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// The connection that is there, or is being made.
    pub fn connection(&self) -> Option<u64> {
        match self.state {
            State::Idle { .. } | State::Stopped => None,
            State::Dialling { .. } | State::Greeting { .. } | State::Open { .. } => {
                Some(self.connection)
            }
        }
    }

    /// Whether the peer can be asked now.
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Requests to the peer without an answer.
    pub fn pending(&self) -> usize {
        self.asker.pending()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        Counters {
            resent: self.asker.resent(),
            adopted: self.answerer.adopted(),
            controls_dropped: self.controls_dropped,
        }
    }

    /// Takes an event that is not about bytes.
    ///
    /// # Panics
    /// If it breaks what [`Event`] says of it.
    pub fn handle(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Dialled { connection, nonce } => {
                if self.is_dialling(connection) {
                    self.greet(now, nonce);
                }
            }
            Event::DialFailed { connection } => {
                if self.is_dialling(connection) {
                    self.close(now, CloseReason::Unreachable, effects);
                }
            }
            Event::Lost { connection } => {
                if self.connection() == Some(connection) {
                    self.close(now, CloseReason::Broken, effects);
                }
            }
            Event::Ask { token, .. } if self.state == State::Stopped => {
                effects.push(Effect::Forgotten { token });
            }
            Event::Ask { token, disk, request } => {
                self.asker.ask(now, token, disk, request, effects);
            }
            Event::Cancel { token } => self.asker.cancel(token),
            Event::Answer { question, promise, result } => {
                self.answerer.answer(now, question, promise, result, &mut self.output);
            }
            Event::Control { channel, message } => self.send_control(now, channel, message),
            Event::Promise { beat, promises } => self.send_promises(now, beat, &promises),
            Event::Stop => self.stop(now, effects),
        }
        self.settle(now);
    }

    /// Takes a connection over whose hello a [`Greeter`] has read, and gives it the number that is
    /// given back. If it is refused, the connection is closed by an effect, and an earlier one
    /// stays.
    pub fn handle_accepted(
        &mut self,
        now: Time,
        hello: &Hello,
        nonce: u64,
        effects: &mut Vec<Effect>,
    ) -> u64 {
        let is_stopped = self.state == State::Stopped;
        let judged = match self.judge(hello) {
            Ok(_) if is_stopped => Err(CloseReason::Stopped),
            Ok(_) if self.keeps_own(hello) => Err(CloseReason::Superseded),
            Ok(version) => self.judge_rival(now, hello).map_or(Ok(version), Err),
            Err(reason) => Err(reason),
        };
        match judged {
            Ok(version) => {
                if self.connection().is_some() {
                    self.close(now, CloseReason::Superseded, effects);
                }
                self.next_number();
                let credit = self.answerer.credit();
                self.put_hello(now, nonce, credit);
                let key = connection_key(hello.nonce, nonce);
                self.open(now, hello, version, key, credit, effects);
                self.settle(now);
                self.connection
            }
            Err(reason) => {
                self.last_number += 1;
                let (connection, farewell) = (self.last_number, Greeter::farewell(&reason));
                effects.push(Effect::Close { connection, farewell, reason });
                connection
            }
        }
    }

    /// Takes bytes of the peer, all of them.
    pub fn handle_bytes(
        &mut self,
        now: Time,
        connection: u64,
        bytes: &[u8],
        effects: &mut Vec<Effect>,
    ) {
        if self.reads(connection) && !bytes.is_empty() {
            self.heard_at = now;
            self.advance(now, bytes, effects);
            self.settle(now);
        }
    }

    /// Where the next bytes of a long payload belong: read the socket straight into it.
    pub fn payload_target(&mut self, connection: u64) -> Option<&mut [u8]> {
        if self.reads(connection) { self.incoming.target() } else { None }
    }

    /// So many bytes of the target were filled.
    ///
    /// # Panics
    /// If there is no target, or it is shorter.
    pub fn handle_payload(
        &mut self,
        now: Time,
        connection: u64,
        filled: usize,
        effects: &mut Vec<Effect>,
    ) {
        if self.reads(connection) && filled > 0 {
            self.heard_at = now;
            self.incoming.filled(filled);
            self.advance(now, &[], effects);
            self.settle(now);
        }
    }

    /// What is to be written to the connection, in order: nothing if it is not this one.
    pub fn output(&self, connection: u64) -> impl Iterator<Item = &[u8]> {
        let is_this = self.connection() == Some(connection);
        self.output.pieces().take(if is_this { usize::MAX } else { 0 })
    }

    /// The socket has taken so many bytes of the output.
    ///
    /// # Panics
    /// If there were less.
    pub fn handle_sent(&mut self, now: Time, connection: u64, count: usize) {
        if self.connection() != Some(connection) {
            return;
        }
        let Link { output, answerer, controls, control_bytes, promises, .. } = self;
        output.taken(now, count, |mark| match mark {
            Mark::Answer(cost) => answerer.answer_taken(cost),
            Mark::Control(bytes) => {
                *controls -= 1;
                *control_bytes -= bytes;
            }
            Mark::Promises => *promises -= 1,
        });
        self.settle(now);
    }

    /// When [`Link::handle_deadline`] wants to be called.
    pub fn deadline(&self) -> Option<Time> {
        match self.state {
            State::Idle { retry_at } => Some(retry_at),
            State::Dialling { deadline } => Some(deadline),
            State::Greeting { deadline, .. } => {
                [Some(deadline), self.frame_deadline, self.output.deadline()]
                    .into_iter()
                    .flatten()
                    .min()
            }
            State::Open { .. } => {
                let silent = self.heard_at + Duration::from_millis(limits::LINK_SILENT_MS_MAX);
                [Some(silent), Some(self.beat_at), self.frame_deadline, self.output.deadline()]
                    .into_iter()
                    .flatten()
                    .min()
            }
            State::Stopped => None,
        }
    }

    /// Time has come.
    pub fn handle_deadline(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let passed = |deadline: Option<Time>| deadline.is_some_and(|at| at <= now);
        let too_slow = match self.state {
            State::Idle { retry_at } => {
                if passed(Some(retry_at)) {
                    self.dial(now, effects);
                }
                None
            }
            State::Dialling { deadline } => {
                passed(Some(deadline)).then_some(CloseReason::ConnectTooSlow)
            }
            State::Greeting { deadline, .. } => {
                passed(Some(deadline)).then_some(CloseReason::HelloTooSlow)
            }
            State::Open { .. } => {
                let silent = self.heard_at + Duration::from_millis(limits::LINK_SILENT_MS_MAX);
                passed(Some(silent)).then_some(CloseReason::Silent)
            }
            State::Stopped => None,
        };
        let too_slow = too_slow
            .or_else(|| passed(self.frame_deadline).then_some(CloseReason::FrameTooSlow))
            .or_else(|| passed(self.output.deadline()).then_some(CloseReason::NotReading));
        if let Some(reason) = too_slow {
            self.close(now, reason, effects);
        } else if self.is_up() && self.beat_at <= now {
            self.send_beat(now);
        }
        self.settle(now);
    }

    /// Asserts what must hold between two events.
    ///
    /// # Panics
    /// If it does not.
    pub fn check(&self) {
        self.asker.check();
        self.answerer.check();
        assert!(self.controls <= limits::LINK_CONTROL_QUEUE_MAX);
        assert!(self.control_bytes <= limits::LINK_CONTROL_QUEUE_BYTES_MAX);
        assert!(self.promises <= LINK_BEATS_KEPT_MAX);
        assert!(self.beats.len() <= LINK_BEATS_KEPT_MAX);
        assert!(self.replaced.len() <= LINK_INSTANCES_KEPT_MAX);
        let longest = HEADER_BYTES + limits::WIRE_BODY_BYTES_MAX + limits::WIRE_CONTROL_BYTES_MAX;
        assert!(self.incoming.held_bytes() <= 2 * longest);
        if self.connection().is_none() {
            assert!(self.output.unsent() == 0 && !self.incoming.is_begun());
            assert!(self.frame_deadline.is_none() && self.controls == 0);
        }
    }

    // -- connecting ----------------------------------------------------------------------------

    /// Whether this side dials at once, and the other one only where nobody came for a while: then
    /// it may be at an address that this side does not know.
    fn is_first(&self) -> bool {
        self.settings.identity.node < self.peer
    }

    /// Where both have dialled: whether the connection that this side has made stays, and not the
    /// one that the peer makes. That of the lower id does, as soon as it has said its hello on it;
    /// but not if the peer is another process than the one that it was made to.
    fn keeps_own(&self, hello: &Hello) -> bool {
        let is_made = match self.state {
            State::Greeting { .. } => true,
            State::Open { .. } => self.instance == Some(hello.identity.instance),
            State::Idle { .. } | State::Dialling { .. } | State::Stopped => false,
        };
        self.is_first() && is_made
    }

    /// Another process says that it is the peer while there is a connection to the one of before.
    /// If that one is gone nothing comes from it any more, and its connection ends, by itself or
    /// for being silent. If something comes it lives, and the other one is a copy.
    fn judge_rival(&mut self, now: Time, hello: &Hello) -> Option<CloseReason> {
        let (instance, node) = (hello.identity.instance, hello.identity.node);
        if !self.is_up() || self.instance == Some(instance) {
            return None;
        }
        match self.rival {
            Some((rival, since)) if rival == instance => {
                // What was on its way when the former one died is no sign of it.
                if self.heard_at < since + RIVAL_DOUBT {
                    return Some(CloseReason::Undecided { node });
                }
                // Also not when the other one has ended.
                self.replace(instance);
                Some(CloseReason::Twin { node })
            }
            _ => {
                self.rival = Some((instance, now));
                Some(CloseReason::Undecided { node })
            }
        }
    }

    /// A process is not let in any more.
    fn replace(&mut self, instance: u64) {
        if self.replaced.len() == LINK_INSTANCES_KEPT_MAX {
            self.replaced.pop_front();
        }
        self.replaced.push_back(instance);
    }

    fn is_dialling(&self, connection: u64) -> bool {
        matches!(self.state, State::Dialling { .. }) && self.connection == connection
    }

    fn next_number(&mut self) {
        self.last_number += 1;
        self.connection = self.last_number;
    }

    fn dial(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.next_number();
        let deadline = now + Duration::from_millis(limits::LINK_CONNECT_MS_MAX);
        self.state = State::Dialling { deadline };
        effects.push(Effect::Dial { connection: self.connection });
    }

    /// Says hello on a connection that was dialled.
    fn greet(&mut self, now: Time, nonce: u64) {
        let credit = self.answerer.credit();
        self.put_hello(now, nonce, credit);
        self.seal = Seal::HELLO;
        let deadline = now + Duration::from_millis(limits::LINK_HELLO_MS_MAX);
        self.state = State::Greeting { nonce, credit, deadline };
    }

    fn put_hello(&mut self, now: Time, nonce: u64, (requests, bytes): (u32, u32)) {
        let hello = Hello {
            identity: self.settings.identity,
            peer: self.peer,
            version_min: self.settings.version_min.into(),
            version_max: self.settings.version_max.into(),
            features: self.settings.features,
            nonce,
            requests,
            bytes,
            era: self.settings.era,
        };
        self.output = Output::new();
        self.output.put(now, |out, _| {
            hello.put(out);
        });
    }

    /// Whether the other side is the peer, and which version is spoken.
    fn judge(&self, hello: &Hello) -> Result<u8, CloseReason> {
        greeter::judge(&self.settings.identity, hello)?;
        let node = hello.identity.node;
        if node != self.peer {
            return Err(CloseReason::OtherNode { wanted: self.peer, found: node });
        }
        if !self.settings.era.agrees_with(&hello.era) {
            let (theirs, ours) = (hello.era, self.settings.era);
            return Err(CloseReason::OtherEra { node, theirs, ours });
        }
        let ours = (u16::from(self.settings.version_min), u16::from(self.settings.version_max));
        let version = ours.1.min(hello.version_max);
        if version < ours.0.max(hello.version_min) {
            return Err(CloseReason::NoCommonVersion {
                theirs_min: hello.version_min,
                theirs_max: hello.version_max,
                ours_min: ours.0,
                ours_max: ours.1,
            });
        }
        if self.replaced.contains(&hello.identity.instance) {
            return Err(CloseReason::Twin { node });
        }
        Ok(version as u8)
    }

    /// Both hellos are there.
    fn open(
        &mut self,
        now: Time,
        hello: &Hello,
        version: u8,
        key: u32,
        credit: (u32, u32),
        effects: &mut Vec<Effect>,
    ) {
        let instance = hello.identity.instance;
        if let Some(before) = self.instance.replace(instance)
            && before != instance
        {
            self.replace(before);
            self.answerer.restarted();
            self.asker.forget(effects);
        }
        self.rival = None;
        let seal = Seal { version, key, number: 1 };
        self.seal = seal;
        self.output.set_seal(seal);
        self.asker.connected(hello.requests.into(), hello.bytes.into());
        self.answerer.connected(self.connection, credit);
        self.heard_at = now;
        self.beat_at = now;
        self.state = State::Open { since: now };
        let features = self.settings.features & hello.features;
        effects.push(Effect::Up { instance, version, features });
    }

    // -- input ---------------------------------------------------------------------------------

    /// Whether bytes of this connection mean anything.
    fn reads(&self, connection: u64) -> bool {
        let has_socket = matches!(self.state, State::Greeting { .. } | State::Open { .. });
        has_socket && self.connection == connection
    }

    fn advance(&mut self, now: Time, bytes: &[u8], effects: &mut Vec<Effect>) {
        let mut rest = bytes;
        loop {
            let result = match self.incoming.take(&mut rest, self.seal) {
                Ok(Progress::Incomplete) => break,
                Ok(Progress::Asks(header)) => self.admit(&header).map(|()| self.incoming.admit()),
                Ok(Progress::Complete) => {
                    self.seal = self.seal.next();
                    self.frame_deadline = None;
                    let (header, head, payload) = self.incoming.finish();
                    let body = &head[HEADER_BYTES..];
                    let result = self.take_frame(now, &header, body, payload, effects);
                    self.incoming.reuse(head);
                    result
                }
                Err(error) => Err(error.into()),
            };
            if let Err(reason) = result {
                return self.close(now, reason, effects);
            }
        }
        if self.incoming.is_begun() && self.frame_deadline.is_none() {
            self.frame_deadline = Some(now + Duration::from_millis(limits::LINK_FRAME_MS_MAX));
        }
    }

    /// Whether a frame may have its payload.
    fn admit(&self, header: &Header) -> Result<(), CloseReason> {
        match (self.is_up(), header.kind) {
            (false, _) => Err(CloseReason::BeforeHello),
            (true, Kind::Data) => self.asker.admit(header),
            (true, kind) if kind.brings_blocks() => {
                self.answerer.admit(header.payload_bytes as u64)
            }
            (true, _) => Ok(()),
        }
    }

    fn take_frame(
        &mut self,
        now: Time,
        header: &Header,
        body: &[u8],
        payload: Option<Payload>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), CloseReason> {
        if let State::Greeting { nonce, credit, .. } = self.state {
            return match header.kind {
                Kind::Hello => {
                    let hello = Hello::decode(header, body)?;
                    let key = connection_key(nonce, hello.nonce);
                    // A goodbye is read by one who has both hellos.
                    let spoken = self.settings.version_max.min(hello.version_max.min(255) as u8);
                    self.output.set_seal(Seal { version: spoken, key, number: 1 });
                    let version = self.judge(&hello)?;
                    self.open(now, &hello, version, key, credit, effects);
                    Ok(())
                }
                Kind::Goodbye => Err(said(header, body)?),
                _ => Err(CloseReason::BeforeHello),
            };
        }
        match header.kind {
            Kind::Hello => Err(CloseReason::Protocol("it said a second hello")),
            Kind::Goodbye => Err(said(header, body)?),
            Kind::Beat => {
                let beat = Beat { connection: self.connection, number: note::beat(header)? };
                effects.push(Effect::Beat { beat });
                Ok(())
            }
            Kind::Promise => self.take_promises(header, body, effects),
            Kind::Credit => {
                let (requests, bytes) = note::credit(header)?;
                self.asker.raise(requests, bytes)
            }
            Kind::Control => {
                let channel = note::control(header)?;
                let message = payload.expect("no control message is empty");
                effects.push(Effect::Control { channel, message });
                Ok(())
            }
            kind if kind.is_request() => self.answerer.take_request(header, body, payload, effects),
            _ => self.asker.take_reply(header, body, payload, effects),
        }
    }

    fn take_promises(
        &mut self,
        header: &Header,
        body: &[u8],
        effects: &mut Vec<Effect>,
    ) -> Result<(), CloseReason> {
        let (beat, promises) = note::promises(header, body)?;
        if beat > self.beat {
            return Err(CloseReason::Protocol("it answers a beat that was not sent"));
        }
        if let Some(place) = self.beats.iter().position(|(number, _)| *number == beat) {
            let (_, asked_at) = self.beats.remove(place).expect("just found");
            effects.push(Effect::Promised { asked_at, promises });
        }
        Ok(())
    }

    // -- output --------------------------------------------------------------------------------

    fn send_beat(&mut self, now: Time) {
        self.beat += 1;
        let beat = self.beat;
        if self.beats.len() == LINK_BEATS_KEPT_MAX {
            self.beats.pop_front();
        }
        self.beats.push_back((beat, now));
        self.beat_at = now + Duration::from_millis(limits::LINK_BEAT_MS);
        self.output.put(now, |out, seal| {
            note::put_beat(out, seal, beat);
        });
    }

    /// Answers a beat, unless who asked does not read the answers to earlier ones.
    fn send_promises(&mut self, now: Time, beat: Beat, promises: &[note::Promise]) {
        let is_there = self.is_up() && beat.connection == self.connection;
        if is_there && self.promises < LINK_BEATS_KEPT_MAX {
            self.output.put(now, |out, seal| {
                note::put_promises(out, seal, beat.number, promises);
            });
            self.output.mark(Mark::Promises);
            self.promises += 1;
        }
    }

    fn send_control(&mut self, now: Time, channel: note::Channel, message: Payload) {
        let bytes = message.len();
        let has_room = self.controls < limits::LINK_CONTROL_QUEUE_MAX
            && self.control_bytes + bytes <= limits::LINK_CONTROL_QUEUE_BYTES_MAX;
        if !self.is_up() || !has_room {
            self.controls_dropped += 1;
            return;
        }
        self.output.put(now, |out, seal| {
            note::put_control(out, seal, channel, &message);
        });
        self.output.put_payload(now, message);
        self.output.mark(Mark::Control(bytes));
        self.controls += 1;
        self.control_bytes += bytes;
    }

    /// Sends what may be sent; the last step of each event.
    fn settle(&mut self, now: Time) {
        if self.is_up() {
            self.answerer.raise(now, &mut self.output);
            self.asker.pump(now, &mut self.output);
        }
    }

    // -- the end -------------------------------------------------------------------------------

    fn stop(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.connection().is_some() {
            self.close(now, CloseReason::Stopped, effects);
        }
        self.asker.forget(effects);
        self.state = State::Stopped;
    }

    /// The connection ends, at once.
    fn close(&mut self, now: Time, reason: CloseReason, effects: &mut Vec<Effect>) {
        let farewell = self.farewell(&reason);
        effects.push(Effect::Close {
            connection: self.connection,
            farewell,
            reason: reason.clone(),
        });
        let lasted = match self.state {
            State::Open { since } => Some(now.since(since)),
            _ => None,
        };
        if lasted.is_some_and(|span| span >= Duration::from_millis(limits::LINK_STEADY_MS)) {
            self.retry = Duration::from_millis(limits::LINK_RETRY_MS);
        }
        let longest = Duration::from_millis(limits::LINK_RETRY_MS_MAX);
        let wait = if reason.is_lasting() { longest } else { self.retry };
        self.retry = longest.min(self.retry * 2);
        let wait = if self.is_first() { wait } else { COME_FIRST };
        self.state = State::Idle { retry_at: now + wait };
        self.incoming = Incoming::new();
        self.output = Output::new();
        self.frame_deadline = None;
        self.beats.clear();
        (self.controls, self.control_bytes, self.promises) = (0, 0, 0);
        self.asker.disconnected();
        self.answerer.disconnected();
        if lasted.is_some() {
            effects.push(Effect::Down { reason });
        }
    }

    /// What to tell the other side, if it can be told: not in the middle of a frame, and not behind
    /// what it does not read.
    fn farewell(&self, reason: &CloseReason) -> Vec<u8> {
        let mut bytes = Vec::new();
        let has_socket = matches!(self.state, State::Greeting { .. } | State::Open { .. });
        if let Some(why) = reason.farewell()
            && has_socket
            && self.output.unsent() == 0
        {
            note::put_goodbye(&mut bytes, self.output.seal(), why, &reason.to_string());
        }
        bytes
    }
}

/// The reason that a goodbye gives.
fn said(header: &Header, body: &[u8]) -> Result<CloseReason, CloseReason> {
    let (why, text) = note::goodbye(header, body)?;
    Ok(CloseReason::Said { why, text })
}
