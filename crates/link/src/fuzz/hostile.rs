//! One link against a peer that says what it likes: whole frames of any kind and with any fields,
//! sealed as they should be or not, halves of them, bytes of any kind, nothing; that reads or does
//! not read; that connects again and again. The link may end the connection, and must stand, with
//! no more in its hands than its limits allow.

use super::disk::{Disk, KEY, content};
use super::requests::{KINDS, LINEAGE, UNDER, request as other_request};
use super::{Steps, settings};
use crate::{Beat, CloseReason, Effect, Event, Greeter, Link, Question};
use proto::limits::{self, LINK_OUTPUT_BYTES_MAX};
use proto::wire::note::{self, Channel, Farewell, Promise};
use proto::wire::{Hello, Identity, Seal, connection_key, reply, request};
use proto::{
    BLOCK_SIZE, BlockRange, BlockState, BlockSum, Buffer, Change, DiskId, Duration, Generation,
    Incarnation, MemberError, MemberReply, MemberRequest, MemberToken, NodeId, Payload, Stamp,
    Time, Write,
};
use std::collections::BTreeMap;

/// This node; the peer is node 1 or 3, so that it dials or is dialled.
const OWN: u128 = 2;
const CREDIT: (u32, u32) = (16, 2 << 20);

/// What the peer knows of its connection.
#[derive(Debug)]
struct Talk {
    /// The number that the link gave it; none while a greeter has it.
    connection: Option<u64>,
    greeter: Option<Greeter>,
    nonce: u64,
    /// That of the next frame.
    seal: Seal,
}

/// The link, what is above it, and the peer.
#[derive(Debug)]
pub struct Hostile {
    now: Time,
    link: Link,
    peer: u128,
    instance: u64,
    dialling: Option<u64>,
    talk: Option<Talk>,
    disk: Disk,
    questions: Vec<Question>,
    beats: Vec<Beat>,
    /// What the link was asked and has not ended.
    asked: BTreeMap<MemberToken, MemberRequest>,
    next_token: u64,
    nonce: u64,
    is_up: bool,
    /// Why connections ended.
    pub reasons: Vec<CloseReason>,
    /// Requests, control messages and answers of the peer that were believed.
    pub believed: u64,
}

/// Plays these decisions.
pub fn fuzz_hostile(data: &[u8]) -> Hostile {
    let mut steps = Steps::new(data);
    let mut play = Hostile::new(steps.byte());
    while let Some(step) = steps.next_step() {
        play.step(step, &mut steps);
        play.check();
    }
    play.end();
    play
}

impl Hostile {
    fn new(choice: u8) -> Hostile {
        let peer = if choice.is_multiple_of(2) { 1 } else { 3 };
        let now = Time(1_000_000_000);
        let mut effects = Vec::new();
        let own = settings(OWN, 77, CREDIT.0, CREDIT.1);
        let link = Link::new(now, own, NodeId(peer), &mut effects);
        let mut play = Hostile {
            now,
            link,
            peer,
            instance: 5,
            dialling: None,
            talk: None,
            disk: Disk::default(),
            questions: Vec::new(),
            beats: Vec::new(),
            asked: BTreeMap::new(),
            next_token: 0,
            nonce: 1,
            is_up: false,
            reasons: Vec::new(),
            believed: 0,
        };
        play.perform(effects);
        play.connect();
        if choice & 2 == 0 {
            play.hello(0, &mut Steps::new(&[]));
        }
        play
    }

    fn step(&mut self, step: u8, steps: &mut Steps<'_>) {
        if self.talk.is_none() && step < 192 {
            self.connect();
            self.hello(steps.byte(), steps);
        }
        match step % 32 {
            0 => self.connect(),
            1 if steps.below(16) == 0 => self.hello(steps.byte(), steps),
            2..=11 => self.say_request(steps),
            12..=16 => self.say_reply(steps),
            17 | 18 => self.say_note(steps),
            19 => self.say_bytes(steps),
            20 | 21 => self.take(1 << steps.below(22)),
            22 | 23 => self.answer(usize::from(steps.byte())),
            24..=26 => self.ask(steps),
            27 => self.tell(steps),
            28 => self.pass(Duration::from_millis(1 << steps.below(14))),
            29 if steps.below(16) == 0 => {
                self.talk.iter_mut().for_each(|talk| talk.seal.number += 1); // one is left out
            }
            30 if steps.below(4) == 0 => self.instance += 1,
            _ => self.take(usize::MAX),
        }
    }

    fn act(&mut self, event: impl FnOnce(&mut Link, Time, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        event(&mut self.link, self.now, &mut effects);
        self.link.check();
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Dial { connection } => self.dialling = Some(connection),
                Effect::Close { connection, reason, farewell } => {
                    assert!(farewell.len() <= 64 + limits::WIRE_TEXT_BYTES_MAX);
                    if self.dialling == Some(connection) {
                        self.dialling = None;
                    }
                    if self.talk.as_ref().is_some_and(|talk| talk.connection == Some(connection)) {
                        self.talk = None;
                    }
                    self.reasons.push(reason);
                }
                Effect::Up { .. } => assert!(!std::mem::replace(&mut self.is_up, true)),
                Effect::Down { .. } => assert!(std::mem::take(&mut self.is_up)),
                Effect::Answered { token, .. } => {
                    assert!(self.asked.remove(&token).is_some(), "a request ends once");
                    self.believed += 1;
                }
                Effect::Forgotten { token } => {
                    assert!(self.asked.remove(&token).is_some(), "a request ends once");
                }
                Effect::Asked { question, request, .. } => {
                    assert_eq!(request::vet(&request), Ok(()));
                    self.questions.push(question);
                    self.believed += 1;
                }
                Effect::Control { message, .. } => {
                    assert!((1..=limits::WIRE_CONTROL_BYTES_MAX).contains(&message.len()));
                    self.believed += 1;
                }
                Effect::Beat { beat } => {
                    self.beats.push(beat);
                    self.beats.truncate(16);
                }
                Effect::Promised { promises, .. } => {
                    assert!(promises.len() <= limits::WIRE_PROMISES_MAX);
                }
            }
        }
    }

    fn check(&self) {
        assert!(self.questions.len() <= 2 * CREDIT.0 as usize, "more is asked than was granted");
        let Some(connection) = self.link.connection() else { return };
        let unsent: usize = self.link.output(connection).map(<[u8]>::len).sum();
        // Requests of ours, control messages, what the peer may ask for, and words around it.
        let most = LINK_OUTPUT_BYTES_MAX
            + (1 << 20)
            + limits::LINK_CONTROL_QUEUE_BYTES_MAX
            + CREDIT.1 as usize
            + CREDIT.0 as usize * limits::WIRE_BODY_BYTES_MAX
            + (1 << 20);
        assert!(unsent <= most, "{unsent} bytes wait for a peer that does not read");
    }

    // -- the peer ------------------------------------------------------------------------------

    fn connect(&mut self) {
        self.nonce += 1;
        let nonce = self.nonce;
        if self.peer == 1 {
            let own = settings(OWN, 77, 1, 1).identity;
            if let Some(Talk { connection: Some(connection), .. }) = self.talk.take() {
                // Half of the time the link learns of the new one before the end of the old.
                if nonce.is_multiple_of(2) {
                    self.act(|link, now, fx| link.handle(now, Event::Lost { connection }, fx));
                }
            }
            let greeter = Some(Greeter::new(self.now, own));
            self.talk = Some(Talk { connection: None, greeter, nonce, seal: Seal::HELLO });
        } else if let Some(connection) = self.dialling.take() {
            let talk =
                Talk { connection: Some(connection), greeter: None, nonce, seal: Seal::HELLO };
            self.talk = Some(talk);
            let event = Event::Dialled { connection, nonce: nonce * 3 };
            self.act(|link, now, effects| link.handle(now, event, effects));
        } else if let Some(Talk { connection: Some(connection), .. }) = self.talk.take() {
            self.act(|link, now, effects| link.handle(now, Event::Lost { connection }, effects));
        }
    }

    fn hello(&mut self, choice: u8, steps: &mut Steps<'_>) {
        let Some(talk) = &mut self.talk else { return };
        let mut identity =
            Identity { node: NodeId(self.peer), ..settings(1, self.instance, 1, 1).identity };
        let (mut peer, mut versions) = (NodeId(OWN), (1, 1));
        match choice {
            240 => identity.cluster.0 ^= 1,
            241 => identity.node = NodeId(OWN),
            242 => identity.node = NodeId(9),
            243 => peer = NodeId(9),
            244 => versions = (2, 3),
            245 => versions = (1, 900),
            246 => identity.instance = 5,
            _ => {}
        }
        let hello = Hello {
            era: proto::wire::Era::default(),
            identity,
            peer,
            version_min: versions.0,
            version_max: versions.1,
            features: steps.number(),
            nonce: talk.nonce,
            requests: [64, 0, 1, u32::MAX][steps.below(4)],
            bytes: [4 << 20, 0, 4096, u32::MAX][steps.below(4)],
        };
        let mut bytes = Vec::new();
        hello.put(&mut bytes);
        // The other side's nonce is known to who reads its hello; here by its rule.
        let key = match self.peer {
            1 => connection_key(talk.nonce, talk.nonce * 3),
            _ => connection_key(talk.nonce * 3, talk.nonce),
        };
        talk.seal = Seal { version: 1, key, number: 1 };
        self.say(&bytes);
    }

    /// Bytes reach the link, or the greeter before it.
    fn say(&mut self, bytes: &[u8]) {
        let Some(talk) = &mut self.talk else { return };
        if let Some(connection) = talk.connection {
            for piece in bytes.chunks(limits::LINK_INPUT_BYTES_MAX) {
                self.act(|link, now, fx| link.handle_bytes(now, connection, piece, fx));
            }
            return;
        }
        let greeter = talk.greeter.as_mut().expect("nobody else has it");
        match greeter.handle_bytes(bytes) {
            Ok(None) => {}
            Ok(Some(hello)) if hello.identity.node != self.link.peer() => {
                let reason = CloseReason::UnknownNode { node: hello.identity.node };
                assert!(!Greeter::farewell(&reason).is_empty());
                self.reasons.push(reason);
                self.talk = None;
            }
            Ok(Some(hello)) => {
                let (nonce, now) = (talk.nonce * 3, self.now);
                let mut effects = Vec::new();
                let number = self.link.handle_accepted(now, &hello, nonce, &mut effects);
                talk.connection = Some(number);
                talk.greeter = None;
                self.link.check();
                self.perform(effects);
            }
            Err(reason) => {
                assert!(!Greeter::farewell(&reason).is_empty());
                self.reasons.push(reason);
                self.talk = None;
            }
        }
    }

    /// One frame, mostly whole and well sealed.
    fn say_frame(&mut self, put: impl FnOnce(&mut Vec<u8>, Seal) -> Vec<Payload>, spoil: u8) {
        let Some(talk) = &mut self.talk else { return };
        let mut bytes = Vec::new();
        let payload = put(&mut bytes, talk.seal);
        talk.seal = talk.seal.next();
        payload.iter().for_each(|piece| bytes.extend(piece.as_slice()));
        match spoil {
            250 => bytes.truncate(bytes.len() / 2),
            251 => bytes.truncate(63),
            252 => bytes[7] ^= 1,
            253 => *bytes.last_mut().expect("no frame is empty") ^= 1,
            254 => bytes[20] ^= 16,
            _ => {}
        }
        self.say(&bytes);
    }

    fn say_request(&mut self, steps: &mut Steps<'_>) {
        let (kind, id, size, spoil) =
            (steps.below(8 + KINDS), steps.number() & 0xfff, steps.byte(), steps.byte());
        let generation = Generation(size.into());
        let count = if size > 200 { 256 } else { 1 + u32::from(size % 8) };
        let blocks = BlockRange::new(u32::from(size), count).expect("inside");
        let request = match kind {
            0..=3 => {
                let payload = content(id, count);
                write(id, Change::Data { first: size.into(), payload, detect_zeroes: false })
            }
            4 => write(id, Change::Zero { blocks }),
            5..=7 => read(blocks),
            _ => other_request(kind - 8, generation, size),
        };
        let put = |out: &mut Vec<u8>, seal: Seal| {
            let payload = request::put(out, seal, id, DiskId(1), &request).cloned();
            payload.into_iter().collect()
        };
        self.say_frame(put, spoil);
    }

    /// Answers to what was asked, or not; of the right kind, or not.
    fn say_reply(&mut self, steps: &mut Steps<'_>) {
        let (kind, id, size, spoil) =
            (steps.below(15), u64::from(steps.byte() % 64), steps.byte(), steps.byte());
        // Requests are numbered as they are asked. Not every one was sent.
        let right = self.asked.iter().nth(usize::from(size) % 4);
        if let Some((token, request)) = right.filter(|_| spoil >= 16) {
            let (id, result) = (token.0, self.disk.answer(request));
            return self.say_answer(id, size, &result, spoil);
        }
        let incarnation = Incarnation(size.into());
        let result = match kind {
            0 | 1 => Ok(MemberReply::Written { incarnation }),
            2 | 3 => {
                let content = vec![content(1, 1 + u32::from(size % 8))];
                Ok(MemberReply::Data { content, absent: Vec::new() })
            }
            4 => {
                let count = if size > 200 { limits::MEMBER_ROWS_MAX as u32 } else { size.into() };
                let stamps = (0..count).map(|index| proto::ObjectStamp {
                    key: proto::ObjectKey { index, ..KEY },
                    stamp: Stamp::default(),
                    settled_generation: generation_of(size),
                });
                let (settled, unsettled, more) =
                    (Stamp::default(), stamps.collect(), size.is_multiple_of(2));
                Ok(MemberReply::Fenced { incarnation, settled, unsettled, more })
            }
            5 => Ok(MemberReply::Map(vec![(u32::from(size) + 1, BlockState::Data)])),
            6 => Ok(MemberReply::Done),
            7 => Ok(MemberReply::Flushed { incarnation }),
            8 => Ok(MemberReply::Confirmed {
                incarnation,
                refusals: size.into(),
                refused: Vec::new(),
                more: size % 8 == 0,
            }),
            9 => Ok(MemberReply::Lineages { lineages: Vec::new(), more: size % 8 == 0 }),
            10 => {
                let (objects, more) = (Vec::new(), size % 8 == 0);
                Ok(MemberReply::Survey { incarnation, objects, more })
            }
            11 => Ok(MemberReply::Checksums(vec![BlockSum::Zero; usize::from(size) + 1])),
            12 => Ok(MemberReply::Refused { incarnation, lossless_from: incarnation }),
            13 => Err(MemberError::Busy),
            _ => Err(MemberError::Fenced { newer: generation_of(size) }),
        };
        self.say_answer(id, size, &result, spoil);
    }

    fn say_answer(
        &mut self,
        id: u64,
        promise: u8,
        result: &Result<MemberReply, MemberError>,
        spoil: u8,
    ) {
        let put = |out: &mut Vec<u8>, seal: Seal| {
            reply::put(out, seal, id, Duration::from_millis(promise.into()), result);
            match result {
                Ok(MemberReply::Data { content, .. }) => content.clone(),
                _ => Vec::new(),
            }
        };
        self.say_frame(put, spoil);
    }

    fn say_note(&mut self, steps: &mut Steps<'_>) {
        let (kind, number, spoil) = (steps.below(7), steps.byte(), steps.byte());
        let promise = Promise {
            disk: DiskId(1),
            incarnation: Incarnation(1),
            span: Duration::from_millis(number.into()),
        };
        let long = Buffer::stale(1 << (number % 21)).freeze();
        let put = |out: &mut Vec<u8>, seal: Seal| {
            let mut payload = Vec::new();
            match kind {
                0 | 1 => note::put_beat(out, seal, number.into()),
                2 => note::put_promises(out, seal, (number % 8).into(), &[promise]),
                3 => note::put_credit(out, seal, 8 << (number / 6), 1 << (20 + number / 6)),
                4 if number > 200 => note::put_goodbye(out, seal, Farewell::Refused, "no"),
                _ => {
                    let long = long.slice(0, long.len().min(limits::WIRE_CONTROL_BYTES_MAX));
                    note::put_control(out, seal, Channel(number.into()), &long);
                    payload.push(long);
                }
            }
            payload
        };
        self.say_frame(put, spoil);
    }

    fn say_bytes(&mut self, steps: &mut Steps<'_>) {
        let count = usize::from(steps.byte());
        let bytes: Vec<u8> = (0..count).map(|_| steps.byte()).collect();
        self.say(&bytes);
    }

    /// The peer reads so much.
    fn take(&mut self, bytes: usize) {
        let Some(connection) = self.link.connection() else { return };
        let unsent: usize = self.link.output(connection).map(<[u8]>::len).sum();
        let count = unsent.min(bytes);
        self.act(|link, now, _| link.handle_sent(now, connection, count));
    }

    // -- above the link ------------------------------------------------------------------------

    fn answer(&mut self, place: usize) {
        if self.questions.is_empty() {
            return;
        }
        let place = place % self.questions.len();
        let question = self.questions.swap_remove(place);
        // What was asked is of no matter to the link: a survey has the longest answer.
        self.disk.have.sequence = 5;
        let result = match place % 3 {
            0 => self.disk.answer(&other_request(11, Generation(1), 254)),
            1 => Ok(MemberReply::Written { incarnation: Incarnation(1) }),
            _ => Err(MemberError::Busy),
        };
        let event = Event::Answer { question, promise: Duration::ZERO, result };
        self.act(|link, now, effects| link.handle(now, event, effects));
    }

    fn ask(&mut self, steps: &mut Steps<'_>) {
        if self.asked.len() >= 64 {
            let token = *self.asked.first_key_value().expect("there are some").0;
            self.asked.remove(&token);
            return self
                .act(|link, now, effects| link.handle(now, Event::Cancel { token }, effects));
        }
        self.next_token += 1;
        let token = MemberToken(self.next_token);
        let size = steps.byte();
        let count = u32::from(size % 8) + 1;
        let blocks = BlockRange::new(0, count).expect("inside");
        let request = match steps.below(2 + KINDS) {
            0 => read(blocks),
            1 => {
                let payload = content(1, count);
                write(1, Change::Data { first: 0, payload, detect_zeroes: true })
            }
            kind => other_request(kind - 2, Generation(1), size),
        };
        let disk = DiskId(1 + u128::from(steps.byte() % 2));
        self.asked.insert(token, request.clone());
        let event = Event::Ask { token, disk, request };
        self.act(|link, now, effects| link.handle(now, event, effects));
    }

    fn tell(&mut self, steps: &mut Steps<'_>) {
        let event = match self.beats.pop() {
            Some(beat) => Event::Promise { beat, promises: Vec::new() },
            None => {
                let message = Buffer::stale(BLOCK_SIZE << (steps.byte() % 8)).freeze();
                Event::Control { channel: Channel::RAFT, message }
            }
        };
        self.act(|link, now, effects| link.handle(now, event, effects));
    }

    fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(at) = self.link.deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.act(|link, now, effects| link.handle_deadline(now, effects));
        }
        self.now = until;
    }

    fn end(&mut self) {
        self.pass(Duration::from_millis(limits::LINK_HELLO_MS_MAX));
        if self.peer == 1 {
            assert!(!self.is_up, "a peer that says nothing more is gone in the end");
        }
        self.act(|link, now, effects| link.handle(now, Event::Stop, effects));
        assert!(self.asked.is_empty(), "requests without an end: {:?}", self.asked);
        assert!(self.link.connection().is_none() && self.link.deadline().is_none());
        while !self.questions.is_empty() {
            self.answer(0);
        }
    }
}

fn generation_of(size: u8) -> Generation {
    Generation(size.into())
}

fn read(blocks: BlockRange) -> MemberRequest {
    let (lineage, key, generation, under) = (LINEAGE, KEY, Generation(1), Some(UNDER));
    MemberRequest::Read { lineage, key, generation, under, blocks }
}

fn write(sequence: u64, change: Change) -> MemberRequest {
    MemberRequest::Write(Write {
        lineage: LINEAGE,
        key: KEY,
        under: UNDER,
        previous: Stamp::default(),
        stamp: Stamp { generation: Generation(1), sequence },
        settled: Stamp::default(),
        change,
    })
}
