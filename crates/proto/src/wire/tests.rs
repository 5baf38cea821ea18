//! Every kind there and back, its bytes as they are for ever, and what is refused.

use super::header::Frame;
use super::note::{self, Channel, Farewell, Promise};
use super::reply::{self, Expected};
use super::{FrameError, HEADER_BYTES, Header, Hello, Identity, Kind, Seal, request};
use crate::limits::*;
use crate::*;
use proptest::prelude::*;

const SEAL: Seal = Seal { version: 1, key: 0x1234_5678, number: 9 };
const DISK: DiskId = DiskId(0xd15c);
const LINEAGE: LineageId = LineageId(3);
const GENERATION: Generation = Generation(7);
const KEY: ObjectKey = ObjectKey { layer: LayerId(5), index: 11 };

fn stamp(generation: u64, sequence: u64) -> Stamp {
    Stamp { generation: Generation(generation), sequence }
}

fn blocks(first: u32, count: u32) -> BlockRange {
    BlockRange::new(first, count).expect("inside")
}

fn content(count: usize, seed: u8) -> Payload {
    let bytes: Vec<u8> = (0..count * BLOCK_SIZE).map(|at| (at / 13) as u8 ^ seed).collect();
    Buffer::copy_of(&bytes).freeze()
}

fn write(change: Change) -> MemberRequest {
    MemberRequest::Write(Write {
        lineage: LINEAGE,
        key: KEY,
        configuration: ConfigurationNumber(4),
        previous: stamp(6, 20),
        stamp: Stamp { generation: GENERATION, sequence: 21 },
        settled: stamp(6, 19),
        change,
    })
}

fn requests() -> Vec<MemberRequest> {
    let (lineage, generation, key) = (LINEAGE, GENERATION, KEY);
    vec![
        MemberRequest::Fence { lineage, generation },
        MemberRequest::Settle { lineage, key, generation, stamp: stamp(6, 20) },
        MemberRequest::Stamp { lineage, key, generation },
        MemberRequest::OpenLayer { lineage, generation, layer: LayerId(6), parent: LayerId(5) },
        write(Change::Data { first: 2, payload: content(2, 1), detect_zeroes: true }),
        write(Change::Zero { blocks: blocks(0, 1024) }),
        write(Change::Absent { blocks: blocks(1023, 1) }),
        MemberRequest::Read { lineage, key, generation, blocks: blocks(3, 2) },
        MemberRequest::Map { lineage, key, generation, blocks: blocks(0, 1024) },
        MemberRequest::Difference {
            lineage,
            key,
            generation,
            base: LayerId(4),
            blocks: blocks(0, 9),
        },
        MemberRequest::Reclaimable { lineage, generation, layer: LayerId(5), index: 8 },
        MemberRequest::Flush { lineage, generation },
    ]
}

fn object(index: u32) -> ObjectStamp {
    let key = ObjectKey { index, ..KEY };
    ObjectStamp { key, stamp: stamp(6, 20), settled_generation: Generation(6) }
}

type Answer = Result<MemberReply, MemberError>;

/// Each answer with what it answers.
fn replies() -> Vec<(Expected, Answer)> {
    let incarnation = Incarnation(17);
    let data = MemberReply::Data {
        content: vec![content(1, 2), content(2, 3)],
        absent: vec![blocks(4, 1), blocks(6, 1)],
    };
    let map = vec![(1, BlockState::Absent), (2, BlockState::Zero), (6, BlockState::Data)];
    let difference = vec![(1, None), (8, Some(BlockState::Zero))];
    let refused = |error| (Expected::Written, Err(error));
    vec![
        (Expected::Fenced, {
            Ok(MemberReply::Fenced { incarnation, unsettled: vec![object(1), object(2)] })
        }),
        (Expected::Done, Ok(MemberReply::Done)),
        (Expected::Stamp(KEY), Ok(MemberReply::Stamp(object(11)))),
        (Expected::Written, Ok(MemberReply::Written { incarnation })),
        (Expected::Data(blocks(4, 3)), Ok(data)),
        (Expected::Map(blocks(0, 9)), Ok(MemberReply::Map(map))),
        (Expected::Difference(blocks(0, 9)), Ok(MemberReply::Difference(difference))),
        (Expected::Reclaimable, {
            Ok(MemberReply::Reclaimable { blocks: 99, next_index: Some(12) })
        }),
        (Expected::Reclaimable, Ok(MemberReply::Reclaimable { blocks: 1, next_index: None })),
        (Expected::Flushed, Ok(MemberReply::Flushed { incarnation })),
        refused(MemberError::Fenced { newer: Generation(8) }),
        refused(MemberError::WrongStamp { have: stamp(6, 22) }),
        refused(MemberError::WrongConfiguration { have: ConfigurationNumber(5) }),
        refused(MemberError::NoSpace),
        refused(MemberError::Corrupt { key: KEY, block: 1023 }),
        refused(MemberError::Busy),
        refused(MemberError::Retired),
        refused(MemberError::invalid("the layer is deleted")),
    ]
}

fn hello() -> Hello {
    Hello {
        identity: Identity { cluster: ClusterId(1), node: NodeId(2), instance: 4 },
        peer: NodeId(3),
        version_min: 1,
        version_max: 2,
        features: 0x80,
        nonce: 5,
        requests: 6,
        bytes: 7,
    }
}

fn promises() -> Vec<Promise> {
    let span = Duration::from_millis(1000);
    vec![
        Promise { disk: DISK, incarnation: Incarnation(17), span },
        Promise { disk: DiskId(u128::MAX), incarnation: Incarnation(1), span: Duration::ZERO },
    ]
}

/// One frame: how it is sealed, header and body, payload.
struct Made {
    name: String,
    seal: Seal,
    head: Vec<u8>,
    payload: Vec<u8>,
}

impl Made {
    fn header(&self) -> Result<Header, FrameError> {
        Header::parse(self.head.first_chunk().expect("a header"), self.seal)
    }

    fn body(&self) -> &[u8] {
        &self.head[HEADER_BYTES..]
    }

    /// Header, body and payload as a receiver checks them.
    fn check(&self) -> Result<Header, FrameError> {
        let header = self.header()?;
        let as_told = (header.body_bytes, header.payload_bytes);
        assert_eq!(as_told, (self.body().len(), self.payload.len()), "{}", self.name);
        header.verify(self.body(), &self.payload)?;
        Ok(header)
    }

    /// Makes the checksums fit what was changed.
    fn reseal(&mut self) {
        let mut digest = Crc32c::default();
        digest.update(&self.head[HEADER_BYTES..]);
        digest.update(&self.payload);
        self.head[12..16].copy_from_slice(&digest.finish().to_le_bytes());
        self.head[8..12].fill(0);
        let checksum = crc32c(&self.head[..HEADER_BYTES]) ^ self.seal.key;
        self.head[8..12].copy_from_slice(&checksum.to_le_bytes());
    }
}

fn made(name: String, seal: Seal, put: impl FnOnce(&mut Vec<u8>) -> Vec<u8>) -> Made {
    let mut head = Vec::new();
    let payload = put(&mut head);
    Made { name, seal, head, payload }
}

fn made_request(request: &MemberRequest) -> Made {
    made(String::new(), SEAL, |out| {
        let payload = request::put(out, SEAL, 33, DISK, request);
        payload.map_or(Vec::new(), |payload| payload.as_slice().to_vec())
    })
}

fn made_reply(answer: &Answer) -> Made {
    made(String::new(), SEAL, |out| {
        let after = reply::put(out, SEAL, 33, Duration::from_millis(900), answer);
        assert_eq!(after, SEAL.next());
        match answer {
            Ok(MemberReply::Data { content, .. }) => {
                content.iter().flat_map(|piece| piece.as_slice().to_vec()).collect()
            }
            _ => Vec::new(),
        }
    })
}

fn frames() -> Vec<Made> {
    let none = Vec::new;
    let mut frames = vec![
        made("hello".into(), Seal::HELLO, |out| {
            hello().put(out);
            none()
        }),
        made("goodbye".into(), SEAL, |out| {
            note::put_goodbye(out, SEAL, Farewell::Stopping, "this node stops");
            none()
        }),
        made("beat".into(), SEAL, |out| {
            note::put_beat(out, SEAL, 12);
            none()
        }),
        made("promise".into(), SEAL, |out| {
            note::put_promises(out, SEAL, 12, &promises());
            none()
        }),
        made("credit".into(), SEAL, |out| {
            note::put_credit(out, SEAL, 1024, 64 << 20);
            none()
        }),
        made("control".into(), SEAL, |out| {
            let message = Buffer::copy_of(b"\x01vote").freeze().slice(0, 5);
            note::put_control(out, SEAL, Channel::RAFT, &message);
            message.as_slice().to_vec()
        }),
    ];
    for request in requests() {
        let frame = made_request(&request);
        let kind = frame.header().expect("sound").kind;
        frames.push(Made { name: format!("{kind:?}"), ..frame });
    }
    for (_, answer) in replies() {
        let frame = made_reply(&answer);
        let header = frame.header().expect("sound");
        frames.push(Made { name: format!("{:?}-{}", header.kind, header.flags), ..frame });
    }
    frames
}

/// A change of the format breaks talk with nodes that run already: it needs a version of its own.
#[test]
fn golden_bytes_of_every_kind() {
    let mut found = String::new();
    let mut kinds = std::collections::BTreeSet::new();
    for frame in frames() {
        kinds.insert(frame.check().expect("what is made is sound").kind);
        let hex: String = frame.head.iter().map(|byte| format!("{byte:02x}")).collect();
        found += &format!("{} {hex}\n", frame.name);
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), Kind::ALL, "every kind is among them");
    assert!(found == include_str!("golden.txt"), "the bytes changed; now they are\n{found}");
}

/// By hand, from `docs/formats/wire.md`.
#[test]
fn a_write_and_a_hello_lie_as_drawn() {
    let frame = made_request(&requests()[4]);
    let head = &frame.head;
    assert_eq!(head.len(), 128);
    assert_eq!(&head[..8], b"Sd\x01\x14\x01\0\x40\0");
    assert_eq!(&head[16..24], &[9, 0, 0, 0, 0, 0x20, 0, 0]);
    assert_eq!(&head[24..32], &33u64.to_le_bytes());
    assert_eq!(&head[32..48], &0xd15c_u128.to_le_bytes());
    let numbers = |from: usize, to: usize| -> Vec<u64> {
        let words = head[from..to].chunks(8);
        words.map(|word| u64::from_le_bytes(word.try_into().expect("eight"))).collect()
    };
    assert_eq!(numbers(48, 64), [3, 7], "lineage, generation");
    assert_eq!(numbers(64, 72), [5], "layer");
    assert_eq!(&head[72..80], &[11, 0, 0, 0, 2, 0, 2, 0], "index, first, count");
    assert_eq!(numbers(80, 128), [4, 6, 20, 21, 6, 19]);
    let mut zeroed = head[..64].to_vec();
    zeroed[8..12].fill(0);
    let checksum = crc32c(&zeroed) ^ SEAL.key;
    assert_eq!(&head[8..12], &checksum.to_le_bytes());
    let rest = [&head[64..], &frame.payload].concat();
    assert_eq!(&head[12..16], &crc32c(&rest).to_le_bytes());

    let mut body = Vec::new();
    hello().put(&mut body);
    let body = body.split_off(64);
    assert_eq!(&body[..16], b"SHEEPDOG\x01\0\x02\0\0\0\0\0");
    assert_eq!(&body[16..24], &0x80u64.to_le_bytes());
    for (at, id) in [(24, 1u128), (40, 2), (56, 3)] {
        assert_eq!(&body[at..at + 16], &id.to_le_bytes());
    }
    assert_eq!((body[72], body[80], body[88], body[92], body.len()), (4, 5, 6, 7, 128));
    let nonces = [5u64.to_le_bytes(), 6u64.to_le_bytes()].concat();
    assert_eq!(super::connection_key(5, 6), crc32c(&nonces));
}

#[test]
fn every_flipped_bit_of_a_frame_is_noticed() {
    for mut frame in frames() {
        let whole = frame.head.len() + frame.payload.len();
        // Of the payload every 97th bit: it has one checksum with the body.
        let bits = (0..frame.head.len() * 8).chain((frame.head.len() * 8..whole * 8).step_by(97));
        for bit in bits {
            let flip = |frame: &mut Made| {
                let head = frame.head.len();
                let byte = match bit / 8 {
                    at if at < head => &mut frame.head[at],
                    at => &mut frame.payload[at - head],
                };
                *byte ^= 1 << (bit % 8);
            };
            flip(&mut frame);
            assert!(frame.check().is_err(), "{}: bit {bit}", frame.name);
            flip(&mut frame);
        }
        assert!(frame.check().is_ok());
    }
}

#[test]
fn frames_of_another_place_are_refused() {
    let frame = made_request(&requests()[0]);
    let bytes = frame.head.first_chunk().expect("a header");
    let parse = |seal| Header::parse(bytes, seal).map(drop);
    assert_eq!(parse(SEAL), Ok(()));
    assert_eq!(parse(SEAL.next()), Err(FrameError::Header), "lost or repeated");
    assert_eq!(parse(Seal { key: 0, ..SEAL }), Err(FrameError::Header), "of another connection");
    let newer = Seal { version: 2, ..SEAL };
    assert_eq!(parse(newer), Err(FrameError::Version { found: 1, expected: 2 }));
}

#[test]
fn lengths_beyond_those_of_the_kind_are_refused_before_anything_follows() {
    for mut frame in frames() {
        let header = frame.header().expect("sound");
        let original = frame.head.clone();
        let mut check = |at: usize, bytes: u64, width: usize| {
            frame.head.copy_from_slice(&original);
            frame.head[at..at + width].copy_from_slice(&bytes.to_le_bytes()[..width]);
            // Only the header's own checksum: the rest is not there to be checked.
            frame.head[8..12].fill(0);
            let checksum = crc32c(&frame.head[..HEADER_BYTES]) ^ frame.seal.key;
            frame.head[8..12].copy_from_slice(&checksum.to_le_bytes());
            frame.header()
        };
        for bytes in [0, 1, 4096, 4097, 1 << 20, (1 << 20) + 4096, 1 << 31, u32::MAX.into()] {
            if let Ok(header) = check(20, bytes, 4) {
                let longest = match header.kind {
                    Kind::WriteData | Kind::Data => 1 << 20,
                    Kind::Control => WIRE_CONTROL_BYTES_MAX,
                    _ => 0,
                };
                assert!(header.payload_bytes <= longest, "{header:?}");
            }
        }
        for bytes in [0, 1, 15, 16, 17, 39, 64, 65, 128, 513, 1025, 4100, 8224, 64_001, 65_535] {
            if let Ok(other) = check(6, bytes, 2) {
                let variable = [
                    Kind::Hello,
                    Kind::Goodbye,
                    Kind::Promise,
                    Kind::Fenced,
                    Kind::Data,
                    Kind::Blocks,
                    Kind::Differences,
                    Kind::Refused,
                ];
                let same = other.body_bytes == header.body_bytes;
                assert!(same || variable.contains(&other.kind), "{other:?}");
                assert!(other.body_bytes <= WIRE_BODY_BYTES_MAX);
            }
        }
    }
}

/// There and back: as it was, and the same bytes again.
fn check_request(request: &MemberRequest) {
    assert_eq!(request::vet(request), Ok(()));
    let frame = made_request(request);
    let header = frame.check().expect("sound");
    assert!(header.kind.is_request() && !header.kind.is_reply());
    let payload = (!frame.payload.is_empty()).then(|| Buffer::copy_of(&frame.payload).freeze());
    let (disk, again) = request::decode(&header, frame.body(), payload).expect("sound");
    assert_eq!((disk, format!("{again:?}")), (DISK, format!("{request:?}")));
    let frame_again = made_request(&again);
    assert!(frame_again.head == frame.head && frame_again.payload == frame.payload);
}

fn check_reply(expected: Expected, answer: &Answer) {
    let frame = made_reply(answer);
    let header = frame.check().expect("sound");
    assert!(header.kind.is_reply() && !header.kind.is_request());
    let payload = (!frame.payload.is_empty()).then(|| Buffer::copy_of(&frame.payload).freeze());
    let again = reply::decode(&header, frame.body(), payload, expected).expect("sound");
    assert_eq!((again.promise, again.more), (Duration::from_millis(900), false));
    let frame_again = made_reply(&again.result);
    assert!(frame_again.head == frame.head && frame_again.payload == frame.payload);
}

#[test]
fn every_request_and_answer_comes_back_as_it_was() {
    requests().iter().for_each(check_request);
    replies().iter().for_each(|(expected, answer)| check_reply(*expected, answer));
}

#[test]
fn hello_and_notes_come_back_as_they_were() {
    let frames = frames();
    let of = |kind| {
        let frame = frames.iter().find(|f| f.header().expect("sound").kind == kind).expect("it");
        (frame.check().expect("sound"), frame.body())
    };
    let (header, body) = of(Kind::Hello);
    assert_eq!(Hello::decode(&header, body), Ok(hello()));
    let (header, body) = of(Kind::Goodbye);
    let text = "this node stops".to_owned();
    assert_eq!(note::goodbye(&header, body), Ok((Farewell::Stopping, text)));
    let said = note::goodbye(&header, "\x1b[2J\nno\u{9b}ü".as_bytes());
    assert_eq!(said, Ok((Farewell::Stopping, "?[2J?no??ü".to_owned())), "for terminals");
    assert_eq!(note::beat(&of(Kind::Beat).0), Ok(12));
    let (header, body) = of(Kind::Promise);
    assert_eq!(note::promises(&header, body), Ok((12, promises())));
    assert_eq!(note::credit(&of(Kind::Credit).0), Ok((1024, 64 << 20)));
    assert_eq!(note::control(&of(Kind::Control).0), Ok(Channel::RAFT));
}

/// What later versions put behind it is not looked at.
#[test]
fn a_hello_of_a_later_version_is_understood() {
    let mut frame = made(String::new(), Seal::HELLO, |out| {
        hello().put(out);
        Vec::new()
    });
    frame.head.extend([9; 77]);
    frame.head[HEADER_BYTES + 100] = 1;
    frame.head[6..8].copy_from_slice(&205u16.to_le_bytes());
    frame.reseal();
    let header = frame.check().expect("sound");
    assert_eq!(Hello::decode(&header, frame.body()), Ok(hello()));
}

#[test]
fn a_long_list_of_a_fence_comes_in_parts() {
    let unsettled: Vec<ObjectStamp> =
        (0..2 * WIRE_FENCED_ROWS_MAX as u32 + 1).map(object).collect();
    let incarnation = Incarnation(1);
    let answer = Ok(MemberReply::Fenced { incarnation, unsettled: unsettled.clone() });
    let mut out = Vec::new();
    let after = reply::put(&mut out, SEAL, 1, Duration::ZERO, &answer);
    assert_eq!(after.number, SEAL.number + 3);
    let (mut rest, mut seal, mut rows) = (&out[..], SEAL, Vec::new());
    while seal != after {
        let header = Header::parse(rest.first_chunk().expect("a header"), seal).expect("sound");
        let (frame, behind) = rest.split_at(HEADER_BYTES + header.body_bytes);
        rest = behind;
        seal = seal.next();
        let body = &frame[HEADER_BYTES..];
        header.verify(body, &[]).expect("sound");
        let part = reply::decode(&header, body, None, Expected::Fenced).expect("sound");
        assert_eq!(part.more, seal != after);
        let Ok(MemberReply::Fenced { unsettled, .. }) = part.result else { panic!("{part:?}") };
        rows.extend(unsettled);
    }
    assert!(rest.is_empty());
    assert_eq!(rows, unsettled);
}

#[test]
fn texts_are_cut_at_a_letter() {
    let long = "ü".repeat(WIRE_TEXT_BYTES_MAX);
    let error = MemberError::Invalid(("x".to_owned() + &long).into());
    let frame = made_reply(&Err(error));
    let header = frame.check().expect("sound");
    assert_eq!(header.body_bytes, WIRE_TEXT_BYTES_MAX - 1);
    let again = reply::decode(&header, frame.body(), None, Expected::Done).expect("sound");
    assert!(matches!(again.result, Err(MemberError::Invalid(why)) if why.ends_with('ü')));
}

#[test]
fn requests_that_no_frame_can_carry_are_refused() {
    let read = |count| MemberRequest::Read {
        lineage: LINEAGE,
        key: KEY,
        generation: GENERATION,
        blocks: blocks(0, count),
    };
    let data = |first, payload| write(Change::Data { first, payload, detect_zeroes: false });
    let check = |request, why| assert_eq!(request::vet(&request), Err(MemberError::invalid(why)));
    check(read(257), "the read is too long");
    check(data(0, content(257, 0)), "the write is too long");
    check(data(1023, content(2, 0)), "the write leaves its object");
    check(data(0, content(0, 0)), "the write leaves its object");
    check(data(0, content(1, 0).slice(0, 4095)), "the payload is not whole blocks");
    assert_eq!(request::vet(&read(256)), Ok(()));
    assert_eq!(request::cost(&read(256)), 1 << 20);
    assert_eq!(request::cost(&data(0, content(2, 0))), 8192);
    assert_eq!(request::cost(&requests()[0]), 4096);
}

/// Fields that make no sense behind checksums that fit.
#[test]
fn nonsense_is_refused() {
    let request_of = |place: usize| (made_request(&requests()[place]), None);
    let reply_of = |place: usize| {
        let (expected, answer) = &replies()[place];
        (made_reply(answer), Some(*expected))
    };
    // The frame, where in header and body, and what is put there.
    type Row<'a> = ((Made, Option<Expected>), usize, &'a [u8]);
    let table: &[Row<'_>] = &[
        (request_of(0), 4, &[1]),          // a flag of a fence
        (request_of(1), 64 + 12, &[1]),    // reserved
        (request_of(4), 4, &[2]),          // a flag of a write
        (request_of(4), 64 + 14, &[3]),    // three blocks with content of two
        (request_of(4), 64 + 14, &[0]),    // no blocks
        (request_of(5), 64 + 12, &[1]),    // blocks beyond the object
        (request_of(7), 64 + 14, &[1, 1]), // a read of 257 blocks
        (request_of(7), 64 + 12, &[0xff, 0xff]),
        (request_of(8), 64 + 14, &[0, 0]),
        (request_of(10), 64 + 12, &[1]),
        (reply_of(0), 32 + 12, &[1]),     // reserved
        (reply_of(0), 32 + 16, &[1]),     // a word
        (reply_of(0), 4, &[2]),           // a flag
        (reply_of(0), 64 + 40 + 8, &[1]), // the same object twice
        (reply_of(0), 64 + 12, &[1]),     // reserved in a row
        (reply_of(1), 32, &[1]),          // an incarnation where none belongs
        (reply_of(2), 64 + 8, &[12]),     // another object
        (reply_of(4), 64, &[3]),          // absent before what was asked for
        (reply_of(4), 64 + 6, &[2]),      // absent beyond it
        (reply_of(4), 64 + 4, &[4]),      // absent twice
        (reply_of(4), 64 + 2, &[0]),      // an empty run
        (reply_of(5), 64, &[2]),          // more blocks than asked for
        (reply_of(5), 64 + 2, &[3]),      // a state only differences have
        (reply_of(5), 64 + 3, &[1]),      // reserved
        (reply_of(6), 64 + 2, &[4]),      // an unknown state
        (reply_of(6), 64, &[0]),          // an empty run
        (reply_of(7), 4, &[0]),           // an index without its flag
        (reply_of(7), 60, &[1]),          // an index beyond 32 bits
        (reply_of(10), 4, &[0]),          // an unknown refusal
        (reply_of(10), 4, &[9]),
        (reply_of(10), 63, &[1]),    // a second word where one belongs
        (reply_of(13), 48, &[1]),    // a word where none belongs
        (reply_of(17), 64, &[0xff]), // no UTF-8
        (reply_of(17), 4, &[6]),     // a text of "busy"
    ];
    for ((frame, expected), at, bytes) in table {
        let mut frame = Made {
            name: frame.name.clone(),
            seal: frame.seal,
            head: frame.head.clone(),
            payload: frame.payload.clone(),
        };
        frame.head[*at..*at + bytes.len()].copy_from_slice(bytes);
        frame.reseal();
        let header = frame.check().expect("the checksums fit");
        let payload = (!frame.payload.is_empty()).then(|| Buffer::copy_of(&frame.payload).freeze());
        let result = match expected {
            None => request::decode(&header, frame.body(), payload).map(drop),
            Some(expected) => reply::decode(&header, frame.body(), payload, *expected).map(drop),
        };
        let what = format!("{:?} with {bytes:?} at {at}", header.kind);
        assert!(matches!(result, Err(FrameError::Malformed(..))), "{what}: {result:?}");
    }
}

#[test]
fn an_answer_to_another_question_is_refused() {
    for (_, answer) in replies().iter().filter(|(_, answer)| answer.is_ok()) {
        let header = made_reply(answer).check().expect("sound");
        let fits = replies().iter().filter(|(other, _)| other.admit(&header).is_ok()).count();
        let same = replies()
            .iter()
            .filter(|(_, other)| made_reply(other).header().expect("sound").kind == header.kind)
            .count();
        // The refusals of the table all answer a write.
        let refusals = if header.kind == Kind::Written { 8 } else { 0 };
        assert_eq!(fits, same + refusals, "{header:?}");
        let longer = Expected::Data(blocks(4, 4));
        assert!(longer.admit(&header).is_err(), "other blocks than it brings");
    }
}

#[test]
#[should_panic(expected = "a frame of kind")]
fn no_frame_is_made_that_nobody_would_take() {
    let body = [0; 3];
    let frame =
        Frame { kind: Kind::Beat, flags: 0, id: 0, words: [0; 32], body: &body, payload: &[] };
    frame.put(&mut Vec::new(), SEAL);
}

fn any_blocks(longest: u32) -> impl Strategy<Value = BlockRange> {
    (0..BLOCKS_PER_OBJECT, 1..=longest).prop_map(|(first, count)| {
        let count = count.min(BLOCKS_PER_OBJECT - first);
        BlockRange::new(first, count).expect("inside")
    })
}

fn any_stamp() -> impl Strategy<Value = Stamp> {
    (any::<u64>(), any::<u64>()).prop_map(|(generation, sequence)| stamp(generation, sequence))
}

fn any_key() -> impl Strategy<Value = ObjectKey> {
    (any::<u64>(), any::<u32>())
        .prop_map(|(layer, index)| ObjectKey { layer: LayerId(layer), index })
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any_blocks(4), any::<bool>(), any::<u8>()).prop_map(|(blocks, detect_zeroes, seed)| {
            let payload = content(blocks.count() as usize, seed);
            Change::Data { first: blocks.first(), payload, detect_zeroes }
        }),
        any_blocks(1024).prop_map(|blocks| Change::Zero { blocks }),
        any_blocks(1024).prop_map(|blocks| Change::Absent { blocks }),
    ]
}

fn any_write() -> impl Strategy<Value = MemberRequest> {
    let stamps = (any_stamp(), any_stamp(), any_stamp());
    (any::<u64>(), any_key(), any::<u64>(), stamps, any_change()).prop_map(
        |(lineage, key, configuration, (previous, stamp, settled), change)| {
            let (lineage, configuration) = (LineageId(lineage), ConfigurationNumber(configuration));
            let write = Write { lineage, key, configuration, previous, stamp, settled, change };
            MemberRequest::Write(write)
        },
    )
}

fn any_request() -> impl Strategy<Value = MemberRequest> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let others = (0..9, numbers, any_key(), any_stamp(), any_blocks(256)).prop_map(
        |(kind, (lineage, generation, layer, parent), key, stamp, blocks)| {
            let (lineage, generation) = (LineageId(lineage), Generation(generation));
            let (layer, parent) = (LayerId(layer), LayerId(parent));
            match kind {
                0 => MemberRequest::Fence { lineage, generation },
                1 => MemberRequest::Settle { lineage, key, generation, stamp },
                2 => MemberRequest::Stamp { lineage, key, generation },
                3 => MemberRequest::OpenLayer { lineage, generation, layer, parent },
                4 => MemberRequest::Read { lineage, key, generation, blocks },
                5 => MemberRequest::Map { lineage, key, generation, blocks },
                6 => MemberRequest::Difference { lineage, key, generation, base: layer, blocks },
                7 => {
                    let index = key.index;
                    MemberRequest::Reclaimable { lineage, generation, layer, index }
                }
                _ => MemberRequest::Flush { lineage, generation },
            }
        },
    );
    prop_oneof![any_write(), others]
}

fn any_state() -> impl Strategy<Value = BlockState> {
    prop_oneof![Just(BlockState::Absent), Just(BlockState::Zero), Just(BlockState::Data)]
}

fn any_error() -> impl Strategy<Value = MemberError> {
    prop_oneof![
        any::<u64>().prop_map(|newer| MemberError::Fenced { newer: Generation(newer) }),
        any_stamp().prop_map(|have| MemberError::WrongStamp { have }),
        any::<u64>().prop_map(|have| {
            MemberError::WrongConfiguration { have: ConfigurationNumber(have) }
        }),
        Just(MemberError::NoSpace),
        (any_key(), any::<u32>()).prop_map(|(key, block)| MemberError::Corrupt { key, block }),
        Just(MemberError::Busy),
        Just(MemberError::Retired),
        "\\PC{0,80}".prop_map(|why| MemberError::Invalid(why.into())),
    ]
}

fn any_answer() -> impl Strategy<Value = (Expected, Answer)> {
    let incarnation = any::<u64>().prop_map(Incarnation);
    prop_oneof![
        any_error().prop_map(|error| (Expected::Done, Err(error))),
        (incarnation.clone(), 0..40u32).prop_map(|(incarnation, count)| {
            let unsettled = (0..count).map(|index| object(index * 3)).collect();
            (Expected::Fenced, Ok(MemberReply::Fenced { incarnation, unsettled }))
        }),
        incarnation.clone().prop_map(|incarnation| {
            (Expected::Written, Ok(MemberReply::Written { incarnation }))
        }),
        incarnation.prop_map(|incarnation| {
            (Expected::Flushed, Ok(MemberReply::Flushed { incarnation }))
        }),
        (any_key(), any_stamp(), any::<u64>()).prop_map(|(key, stamp, generation)| {
            let settled_generation = Generation(generation);
            let object = ObjectStamp { key, stamp, settled_generation };
            (Expected::Stamp(key), Ok(MemberReply::Stamp(object)))
        }),
        (any_blocks(8), any::<u8>()).prop_map(|(blocks, seed)| {
            let absent = blocks.iter().step_by(2).filter_map(|at| BlockRange::new(at, 1)).collect();
            let content = vec![content(blocks.count() as usize, seed)];
            (Expected::Data(blocks), Ok(MemberReply::Data { content, absent }))
        }),
        prop::collection::vec((1..=8u32, any_state()), 1..128).prop_map(|runs| {
            let count = runs.iter().map(|(count, _)| count).sum();
            (Expected::Map(blocks(0, count)), Ok(MemberReply::Map(runs)))
        }),
        prop::collection::vec((1..=8u32, prop::option::of(any_state())), 1..128).prop_map(|runs| {
            let count = runs.iter().map(|(count, _)| count).sum();
            (Expected::Difference(blocks(0, count)), Ok(MemberReply::Difference(runs)))
        }),
        (any::<u64>(), any::<Option<u32>>()).prop_map(|(blocks, next_index)| {
            (Expected::Reclaimable, Ok(MemberReply::Reclaimable { blocks, next_index }))
        }),
    ]
}

proptest! {
    #[test]
    fn any_request_comes_back_as_it_was(request in any_request()) {
        check_request(&request);
    }

    #[test]
    fn any_answer_comes_back_as_it_was((expected, answer) in any_answer()) {
        check_reply(expected, &answer);
    }

    /// Whatever a header says behind a checksum that fits, decoding ends with an error or a value.
    #[test]
    fn any_frame_behind_fitting_checksums_is_taken_or_refused(
        place in 0..30usize,
        patches in prop::collection::vec((0..200usize, any::<u8>()), 1..6),
    ) {
        let mut all = frames();
        let mut frame = all.swap_remove(place % all.len());
        for (at, byte) in patches {
            let at = at % frame.head.len();
            if !(6..8).contains(&at) && !(20..24).contains(&at) {
                frame.head[at] = byte;
            }
        }
        frame.reseal();
        frame.head[16..20].copy_from_slice(&frame.seal.number.to_le_bytes());
        frame.reseal();
        if let Ok(header) = frame.header() {
            let payload = || Some(Buffer::copy_of(&frame.payload).freeze());
            let payload = if header.payload_bytes > 0 { payload() } else { None };
            let body = frame.body();
            if header.kind.is_request() {
                if let Ok((_, request)) = request::decode(&header, body, payload) {
                    prop_assert_eq!(request::vet(&request), Ok(()));
                }
            } else if header.kind.is_reply() {
                for (expected, _) in replies() {
                    let _ = reply::decode(&header, body, payload.clone(), expected);
                }
            }
        }
    }
}
