//! Ends of connections one by one, and random histories of two links and of hostile peers.

mod credit;
mod deadlines;
mod hello;
mod random;
mod resend;

use crate::fuzz::settings;
use crate::{CloseReason, Effect, Event, Greeter, Link, Settings};
use proto::wire::{HEADER_BYTES, Header, Hello, Kind, Seal, connection_key};
use proto::{
    BLOCK_SIZE, BlockRange, Buffer, Change, ConfigurationNumber, DiskId, Duration, Generation,
    Incarnation, LayerId, LineageId, MemberReply, MemberRequest, MemberToken, NodeId, ObjectKey,
    Permit, Stamp, Time, Under, Write,
};

const START: Time = Time(5_000_000_000);
const KEY: ObjectKey = ObjectKey { layer: LayerId(1), index: 2 };
const UNDER: Under = Under { copies: 3, bits: 12, number: ConfigurationNumber(1) };

/// A link, the clock, and what it wanted.
struct End {
    now: Time,
    link: Link,
    effects: Vec<Effect>,
}

impl End {
    fn new(settings: Settings, peer: u128) -> End {
        let mut effects = Vec::new();
        let link = Link::new(START, settings, NodeId(peer), &mut effects);
        End { now: START, link, effects }
    }

    fn handle(&mut self, event: Event) {
        self.link.handle(self.now, event, &mut self.effects);
        self.link.check();
    }

    fn bytes(&mut self, bytes: &[u8]) {
        if let Some(connection) = self.link.connection() {
            self.link.handle_bytes(self.now, connection, bytes, &mut self.effects);
            self.link.check();
        }
    }

    /// All that it has for the socket, taken.
    fn take(&mut self) -> Vec<u8> {
        let Some(connection) = self.link.connection() else { return Vec::new() };
        let bytes: Vec<u8> = self.link.output(connection).flatten().copied().collect();
        self.link.handle_sent(self.now, connection, bytes.len());
        self.link.check();
        bytes
    }

    /// Time goes on to there, with every deadline on the way.
    fn pass(&mut self, milliseconds: u64) {
        let until = self.now + Duration::from_millis(milliseconds);
        while let Some(at) = self.link.deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.link.handle_deadline(self.now, &mut self.effects);
            self.link.check();
        }
        self.now = until;
    }

    fn ask(&mut self, token: u64, disk: u128, request: MemberRequest) {
        let token = MemberToken(token);
        self.handle(Event::Ask { token, disk: DiskId(disk), request });
    }

    /// What it wanted since the last time.
    fn wanted(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The reason for which the connection was closed since the last time.
    fn closed(&mut self) -> Option<CloseReason> {
        self.wanted().into_iter().find_map(|effect| match effect {
            Effect::Close { reason, .. } => Some(reason),
            _ => None,
        })
    }

    /// The questions since the last time.
    fn questions(&mut self) -> Vec<(crate::Question, MemberRequest)> {
        let wanted = self.wanted().into_iter();
        wanted
            .filter_map(|effect| match effect {
                Effect::Asked { question, request, .. } => Some((question, request)),
                _ => None,
            })
            .collect()
    }

    fn written(&mut self, question: crate::Question) {
        let result = Ok(MemberReply::Written { incarnation: Incarnation(1) });
        let promise = Duration::from_millis(800);
        self.handle(Event::Answer { question, promise, result });
    }

    /// The tokens that ended since the last time: answered or not.
    fn ended(&mut self) -> Vec<(u64, bool)> {
        let wanted = self.wanted().into_iter();
        wanted
            .filter_map(|effect| match effect {
                Effect::Answered { token, .. } => Some((token.0, true)),
                Effect::Forgotten { token } => Some((token.0, false)),
                _ => None,
            })
            .collect()
    }
}

fn dialler() -> End {
    End::new(settings(1, 11, 8, 2 << 20), 2)
}

fn listener() -> End {
    End::new(settings(2, 22, 8, 2 << 20), 1)
}

const DIALLER_NONCE: u64 = 100;
const LISTENER_NONCE: u64 = 200;

/// Connects them, up to both hellos.
fn connect(dialler: &mut End, listener: &mut End) {
    let connection = dialler.link.connection().expect("it dials");
    dialler.handle(Event::Dialled { connection, nonce: DIALLER_NONCE });
    let hello = dialler.take();
    accept(listener, &hello);
    let hello = listener.take();
    dialler.bytes(&hello[..HEADER_BYTES + 128]);
    dialler.bytes(&hello[HEADER_BYTES + 128..]);
    assert!(dialler.link.is_up() && listener.link.is_up());
}

/// Hands the hello of a dialler to a listener.
fn accept(listener: &mut End, hello: &[u8]) {
    let identity = settings(2, 22, 1, 1).identity;
    let mut greeter = Greeter::new(listener.now, identity);
    let hello = greeter.handle_bytes(hello).expect("sound").expect("whole");
    let End { now, link, effects } = listener;
    link.handle_accepted(*now, &hello, LISTENER_NONCE, effects);
    link.check();
}

/// A connected pair, its first effects forgotten.
fn pair() -> (End, End) {
    let (mut dialler, mut listener) = (dialler(), listener());
    connect(&mut dialler, &mut listener);
    dialler.wanted();
    listener.wanted();
    (dialler, listener)
}

/// Carries everything both have to say, and its answers.
fn talk(one: &mut End, other: &mut End) {
    loop {
        let (there, back) = (one.take(), other.take());
        if there.is_empty() && back.is_empty() {
            return;
        }
        other.bytes(&there);
        one.bytes(&back);
    }
}

/// The seal of the next frame of the dialler of a pair that has sent only its hello.
fn seal() -> Seal {
    Seal { version: 1, key: connection_key(DIALLER_NONCE, LISTENER_NONCE), number: 1 }
}

fn content(blocks: u32, seed: u8) -> proto::Payload {
    Buffer::copy_of(&vec![seed; blocks as usize * BLOCK_SIZE]).freeze()
}

fn write(sequence: u64, blocks: u32) -> MemberRequest {
    let generation = Generation(1);
    MemberRequest::Write(Write {
        lineage: LineageId(1),
        key: KEY,
        under: UNDER,
        previous: Stamp { generation, sequence: sequence - 1 },
        stamp: Stamp { generation, sequence },
        settled: Stamp::default(),
        change: Change::Data {
            first: 0,
            payload: content(blocks, sequence as u8),
            detect_zeroes: false,
        },
    })
}

fn sequence_of(request: &MemberRequest) -> u64 {
    let MemberRequest::Write(write) = request else { panic!("no write: {request:?}") };
    write.stamp.sequence
}

fn read(count: u32) -> MemberRequest {
    let blocks = BlockRange::new(0, count).expect("inside");
    let (lineage, generation, under) = (LineageId(1), Generation(1), Some(UNDER));
    MemberRequest::Read { lineage, key: KEY, generation, under, blocks }
}

/// Content for an object that is to be made equal to a peer's copy.
fn stage(blocks: u32) -> MemberRequest {
    MemberRequest::Stage {
        permit: Permit::Attempt { under: UNDER, attempt: 4 },
        lineage: LineageId(1),
        key: KEY,
        change: Change::Data { first: 0, payload: content(blocks, 7), detect_zeroes: true },
    }
}

fn flush() -> MemberRequest {
    let (lineage, generation, settled) = (LineageId(1), Generation(1), Stamp::default());
    MemberRequest::Flush { lineage, generation, settled }
}

fn fence() -> MemberRequest {
    let (lineage, generation, after) = (LineageId(1), Generation(1), ObjectKey::default());
    MemberRequest::Fence { lineage, generation, list: true, after }
}

/// The kinds of frames in what one end said, from this seal on.
fn kinds(bytes: &[u8], mut seal: Seal) -> Vec<Kind> {
    let mut rest = bytes;
    let mut kinds = Vec::new();
    while let Some(head) = rest.first_chunk() {
        let header = Header::parse(head, seal).expect("sound");
        kinds.push(header.kind);
        rest = &rest[HEADER_BYTES + header.body_bytes + header.payload_bytes..];
        seal = seal.next();
    }
    assert!(rest.is_empty());
    kinds
}

fn hello_of(settings: &Settings, peer: u128, nonce: u64) -> Hello {
    Hello {
        era: settings.era,
        identity: settings.identity,
        peer: NodeId(peer),
        version_min: settings.version_min.into(),
        version_max: settings.version_max.into(),
        features: settings.features,
        nonce,
        requests: settings.requests,
        bytes: settings.bytes,
    }
}
