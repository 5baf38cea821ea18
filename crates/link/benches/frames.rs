//! What a 4 KiB request and its answer cost at both ends together, without any socket or disk:
//! `cargo bench -p link`. 32 in flight, all bytes of a round handed over at once.
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]
#![allow(missing_docs)]

use link::{Effect, Event, Greeter, Link, Settings};
use proto::wire::{HEADER_BYTES, Header, Identity, Seal, request};
use proto::{
    BlockRange, Buffer, Change, ClusterId, ConfigurationNumber, DiskId, Duration, Generation,
    Incarnation, LayerId, LineageId, MemberReply, MemberRequest, MemberToken, NodeId, ObjectKey,
    Payload, Stamp, Time, Under, Write,
};
use std::time::Instant;

const DEPTH: u64 = 32;
const ROUNDS: u64 = 500_000;
const KEY: ObjectKey = ObjectKey { layer: LayerId(1), index: 2 };
const UNDER: Under = Under { copies: 3, bits: 12, number: ConfigurationNumber(1) };

fn main() {
    let best = |measure: &dyn Fn() -> u128| (0..5).map(|_| measure()).min().unwrap_or(0);
    println!("a frame of 4 KiB, made: {} ns", best(&make));
    println!("a frame of 4 KiB, checked and taken apart: {} ns", best(&take_apart));
    for (name, is_write) in [("write", true), ("read", false)] {
        let nanoseconds = best(&|| both_ends(is_write));
        println!("4 KiB {name}, {DEPTH} in flight, both ends: {nanoseconds} ns per request");
    }
}

fn write(sequence: u64, payload: &Payload) -> MemberRequest {
    let generation = Generation(1);
    MemberRequest::Write(Write {
        lineage: LineageId(1),
        key: KEY,
        under: UNDER,
        previous: Stamp { generation, sequence: sequence - 1 },
        stamp: Stamp { generation, sequence },
        settled: Stamp::default(),
        change: Change::Data { first: 0, payload: payload.clone(), detect_zeroes: false },
    })
}

fn make() -> u128 {
    let request = write(1, &Payload::zeroed(4096));
    let mut out = Vec::new();
    let started = Instant::now();
    for id in 0..ROUNDS {
        out.clear();
        request::put(&mut out, Seal::HELLO, id, DiskId(1), std::hint::black_box(&request));
    }
    started.elapsed().as_nanos() / u128::from(ROUNDS)
}

fn take_apart() -> u128 {
    let payload = Payload::zeroed(4096);
    let mut out = Vec::new();
    request::put(&mut out, Seal::HELLO, 1, DiskId(1), &write(1, &payload));
    let started = Instant::now();
    for _ in 0..ROUNDS {
        let bytes = std::hint::black_box(&out);
        let head = bytes.first_chunk().expect("a header");
        let header = Header::parse(head, Seal::HELLO).expect("sound");
        let body = &bytes[HEADER_BYTES..];
        header.verify(body, payload.as_slice()).expect("sound");
        let decoded = request::decode(&header, body, Some(payload.clone())).expect("sound");
        std::hint::black_box(&decoded);
    }
    started.elapsed().as_nanos() / u128::from(ROUNDS)
}

fn end(node: u128, peer: u128, effects: &mut Vec<Effect>) -> Link {
    let identity = Identity { cluster: ClusterId(1), node: NodeId(node), instance: node as u64 };
    let (requests, bytes) = (1024, 64 << 20);
    let settings = Settings {
        identity,
        version_min: 1,
        version_max: 1,
        features: 0,
        era: proto::wire::Era::default(),
        requests,
        bytes,
    };
    Link::new(Time(0), settings, NodeId(peer), effects)
}

/// Moves what one end has for the socket to the other end.
fn carry(
    now: Time,
    from: &mut Link,
    to: &mut Link,
    stream: &mut Vec<u8>,
    effects: &mut Vec<Effect>,
) {
    let (Some(source), Some(target)) = (from.connection(), to.connection()) else { return };
    stream.clear();
    from.output(source).for_each(|piece| stream.extend_from_slice(piece));
    from.handle_sent(now, source, stream.len());
    for piece in stream.chunks(proto::limits::LINK_INPUT_BYTES_MAX) {
        to.handle_bytes(now, target, piece, effects);
    }
}

fn both_ends(is_write: bool) -> u128 {
    let (mut effects, mut answers, mut stream) = (Vec::new(), Vec::new(), Vec::new());
    let mut now = Time(1);
    let (mut asker, mut disk) = (end(1, 2, &mut effects), end(2, 1, &mut answers));
    asker.handle(now, Event::Dialled { connection: 1, nonce: 1 }, &mut effects);
    let hello: Vec<u8> = asker.output(1).flatten().copied().collect();
    asker.handle_sent(now, 1, hello.len());
    let identity = Identity { cluster: ClusterId(1), node: NodeId(2), instance: 2 };
    let hello = Greeter::new(now, identity).handle_bytes(&hello).expect("sound").expect("whole");
    disk.handle_accepted(now, &hello, 2, &mut answers);
    carry(now, &mut disk, &mut asker, &mut stream, &mut effects);
    let payload = Buffer::zeroed(4096).freeze();
    let blocks = BlockRange::new(0, 1).expect("inside");
    let started = Instant::now();
    let (mut asked, mut answered) = (0, 0);
    while answered < ROUNDS {
        now = now + Duration::from_nanos(1);
        effects.clear();
        while asked < answered + DEPTH {
            asked += 1;
            let request = if is_write {
                write(asked, &payload)
            } else {
                let (lineage, generation) = (LineageId(1), Generation(1));
                let under = Some(UNDER);
                MemberRequest::Read { lineage, key: KEY, generation, under, blocks }
            };
            let (token, disk) = (MemberToken(asked), DiskId(1));
            asker.handle(now, Event::Ask { token, disk, request }, &mut effects);
        }
        carry(now, &mut asker, &mut disk, &mut stream, &mut answers);
        for effect in std::mem::take(&mut answers) {
            let Effect::Asked { question, .. } = effect else { continue };
            let result = Ok(if is_write {
                MemberReply::Written { incarnation: Incarnation(1) }
            } else {
                MemberReply::Data { content: vec![payload.clone()], absent: Vec::new() }
            });
            let promise = Duration::from_millis(1000);
            disk.handle(now, Event::Answer { question, promise, result }, &mut answers);
        }
        carry(now, &mut disk, &mut asker, &mut stream, &mut effects);
        let ends = effects.iter().filter(|effect| matches!(effect, Effect::Answered { .. }));
        answered += ends.count() as u64;
    }
    started.elapsed().as_nanos() / u128::from(answered)
}
