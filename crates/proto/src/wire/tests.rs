//! Every kind there and back, its bytes as they are for ever, and what is refused.

mod random;
mod samples;

use super::header::Frame;
use super::note::{self, Channel, Farewell, Promise};
use super::reply::{self, Expected};
use super::{Era, FrameError, HEADER_BYTES, Header, Hello, Identity, Kind, Seal, request};
use crate::limits::*;
use crate::*;
use proptest::prelude::*;
use random::{any_answer, any_request};
use samples::*;

const SEAL: Seal = Seal { version: 1, key: 0x1234_5678, number: 9 };
const DISK: DiskId = DiskId(0xd15c);

fn hello() -> Hello {
    Hello {
        era: Era::default(),
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
        reply::put(out, SEAL, 33, Duration::from_millis(900), answer);
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
        let header = frame.header().expect("sound");
        frames.push(Made { name: format!("{:?}-{}", header.kind, header.flags), ..frame });
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
    assert_eq!(head.len(), 136);
    assert_eq!(&head[..8], b"Sd\x01\x14\x01\0\x48\0");
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
    assert_eq!(numbers(80, 88), [4], "configuration");
    assert_eq!(&head[88..96], &[3, 12, 0, 0, 0, 0, 0, 0], "copies, bits");
    assert_eq!(numbers(96, 136), [6, 20, 21, 6, 19]);
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
    let era = Era { number: 0x1_0000_0002, index: 8, term: 9 };
    let mut told = Vec::new();
    Hello { era, ..hello() }.put(&mut told);
    let told = told.split_off(64);
    assert_eq!(told[..96], body[..96]);
    let words = [0x1_0000_0002_u64, 8, 9, 0].map(u64::to_le_bytes);
    assert_eq!(told[96..], words.concat());
    let nonces = [5u64.to_le_bytes(), 6u64.to_le_bytes()].concat();
    assert_eq!(super::connection_key(5, 6), crc32c(&nonces));
}

/// By hand, too.
#[test]
fn an_install_an_adoption_and_a_survey_lie_as_drawn() {
    let body_of = |kind: Kind, frames: Vec<Made>| {
        let is_it = |frame: &Made| frame.header().expect("sound").kind == kind;
        let frame = frames.into_iter().find(is_it).expect("every kind is there");
        (frame.head[4..6].to_vec(), frame.head[32..64].to_vec(), frame.body().to_vec())
    };
    let request = |kind| body_of(kind, requests().iter().map(made_request).collect());
    let reply = |kind| body_of(kind, replies().iter().map(|(_, a)| made_reply(a)).collect());
    let bytes = |numbers: &[u64]| -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    };

    let (flags, words, body) = request(Kind::Install);
    assert_eq!(flags, [1, 0], "the last");
    assert_eq!(words, bytes(&[0xd15c, 0, 0, 31]), "disk, no lineage, attempt");
    assert_eq!(body[..8], [3, 12, 1, 0, 0, 0, 0, 0], "copies, bits, how many partitions");
    assert_eq!(body[8..20], [&bytes(&[8])[..], &[3, 0, 0, 0]].concat(), "number, partition");
    assert_eq!(body[20..], bytes(&[3, 7, 1, 2]), "fences");

    let (flags, words, body) = request(Kind::Adopt);
    assert_eq!((flags, words), (vec![0, 0], bytes(&[0xd15c, 0, 3, 7])), "by a session");
    let under = bytes(&[4, 0x0c03]);
    let key = [&bytes(&[5])[..], &[11, 0, 0, 0, 4, 0, 0, 0]].concat();
    assert_eq!(body, [key, under, bytes(&[6, 20, 7, 6, 19])].concat());

    let (flags, words, body) = reply(Kind::Surveyed);
    assert_eq!((flags, &words[16..]), (vec![1, 0], &bytes(&[0, 0])[..]), "it goes on");
    assert_eq!(body.len(), 2 * 48);
    assert_eq!(body[..48], bytes(&[3, 5, 12, 6, 20, 6]), "lineage, key, stamp, settled by");

    let (_, words, body) = reply(Kind::Confirmed);
    assert_eq!(words[16..], bytes(&[4, 0]), "refusals");
    assert_eq!(body[..16], [&bytes(&[4])[..], &[0xff, 0x0f, 0, 0, 3, 12, 0, 0]].concat());
    let (_, _, body) = reply(Kind::BlockSums);
    assert_eq!(body[9..], [&[1][..], &bytes(&[0]), &[2], &bytes(&[0x1234_5678])].concat());
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
                    Kind::WriteData | Kind::StageData | Kind::Data => 1 << 20,
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
                    Kind::Survey,
                    Kind::Refuse,
                    Kind::Install,
                    Kind::Fenced,
                    Kind::Data,
                    Kind::Blocks,
                    Kind::Differences,
                    Kind::Confirmed,
                    Kind::LineageStamps,
                    Kind::Surveyed,
                    Kind::BlockSums,
                    Kind::Error,
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

fn check_reply(expected: &Expected, answer: &Answer) {
    let frame = made_reply(answer);
    let header = frame.check().expect("sound");
    assert!(header.kind.is_reply() && !header.kind.is_request());
    let payload = (!frame.payload.is_empty()).then(|| Buffer::copy_of(&frame.payload).freeze());
    let again = reply::decode(&header, frame.body(), payload, expected).expect("sound");
    assert_eq!(again.promise, Duration::from_millis(900));
    // Content comes in one piece.
    if !matches!(answer, Ok(MemberReply::Data { .. }) | Err(MemberError::Invalid(_))) {
        assert_eq!(format!("{:?}", again.result), format!("{answer:?}"));
    }
    let frame_again = made_reply(&again.result);
    assert!(frame_again.head == frame.head && frame_again.payload == frame.payload);
}

#[test]
fn every_request_and_answer_comes_back_as_it_was() {
    requests().iter().chain(&edge_requests()).for_each(check_request);
    replies().iter().for_each(|(expected, answer)| check_reply(expected, answer));
    for (request, answer) in edge_replies() {
        check_reply(&Expected::of(&request), &answer);
    }
}

/// What is granted to a peer bounds what is held for it.
#[test]
fn a_request_counts_for_what_it_brings_and_for_the_longest_answer() {
    for request in requests().iter().chain(&edge_requests()) {
        let (frame, cost) = (made_request(request), request::cost(request) as usize);
        assert!((BLOCK_SIZE..=1 << 20).contains(&cost));
        assert!(frame.body().len().max(frame.payload.len()) <= cost, "{request:?}");
    }
    for (request, answer) in edge_replies() {
        let (frame, cost) = (made_reply(&answer), request::cost(&request) as usize);
        assert!(frame.body().len().max(frame.payload.len()) <= cost, "{request:?}");
    }
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
    let era = Era { number: 0x1_0000_0002, index: 8, term: 9 };
    let with_era = made("era".into(), Seal::HELLO, |out| {
        Hello { era, ..hello() }.put(out);
        Vec::new()
    });
    let decoded = Hello::decode(&with_era.check().expect("sound"), with_era.body());
    assert_eq!(decoded, Ok(Hello { era, ..hello() }));
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
    frame.head[HEADER_BYTES + 125] = 1;
    frame.head[6..8].copy_from_slice(&205u16.to_le_bytes());
    frame.reseal();
    let header = frame.check().expect("sound");
    assert_eq!(Hello::decode(&header, frame.body()), Ok(hello()));
}

#[test]
fn texts_are_cut_at_a_letter() {
    let long = "ü".repeat(WIRE_TEXT_BYTES_MAX);
    let error = MemberError::Invalid(("x".to_owned() + &long).into());
    let frame = made_reply(&Err(error));
    let header = frame.check().expect("sound");
    assert_eq!(header.body_bytes, WIRE_TEXT_BYTES_MAX - 1);
    let again = reply::decode(&header, frame.body(), None, &Expected::Done).expect("sound");
    assert!(matches!(again.result, Err(MemberError::Invalid(why)) if why.ends_with('ü')));
}

#[test]
fn requests_that_no_frame_can_carry_are_refused() {
    let (lineage, key, generation) = (LINEAGE, KEY, GENERATION);
    let read = |count, under| {
        let blocks = blocks(0, count);
        MemberRequest::Read { lineage, key, generation, under, blocks }
    };
    let data = |first, payload| write(Change::Data { first, payload, detect_zeroes: false });
    let stage = |permit, first, payload| MemberRequest::Stage {
        permit,
        lineage,
        key,
        change: Change::Data { first, payload, detect_zeroes: false },
    };
    let survey = |bits, partitions: &[u32]| MemberRequest::Survey {
        bits,
        partitions: partitions.iter().copied().map(PartitionId).collect(),
        unsettled: false,
        after: Default::default(),
    };
    let check = |request, why| assert_eq!(request::vet(&request), Err(MemberError::invalid(why)));
    check(read(257, None), "the read is too long");
    check(data(0, content(257, 0)), "the write is too long");
    check(data(1023, content(2, 0)), "the write leaves its object");
    check(data(0, content(0, 0)), "the write leaves its object");
    check(data(0, content(1, 0).slice(0, 4095)), "the payload is not whole blocks");
    let [session, _] = permits();
    check(stage(session, 0, content(257, 0)), "the write is too long");
    check(stage(session, 1023, content(2, 0)), "the write leaves its object");
    // Tables that no cluster has, wherever one is named.
    for under in [
        Under { copies: 0, ..UNDER },
        Under { copies: COPIES_MAX + 1, ..UNDER },
        Under { bits: PARTITION_BITS_MAX + 1, ..UNDER },
        Under { bits: 255, ..UNDER },
    ] {
        let why = "no table is like that";
        let stamp = stamp(1, 1);
        let permit = Permit::Attempt { under, attempt: 1 };
        check(read(1, Some(under)), why);
        check(MemberRequest::Settle { lineage, key, generation, under, stamp }, why);
        check(stage(permit, 0, content(1, 0)), why);
        check(MemberRequest::Retract { permit, lineage, key, replaces: stamp }, why);
        let batch = Batch { copies: under.copies, bits: under.bits, ..Batch::default() };
        check(MemberRequest::Refuse(batch.clone()), why);
        check(MemberRequest::Install { batch, fences: Vec::new(), last: true }, why);
    }
    check(survey(17, &[]), "no table is like that");
    check(survey(1, &[0, 2]), "there are not so many partitions");
    check(survey(16, &[0x1_0000]), "there are not so many partitions");
    check(survey(2, &[1, 1]), "its partitions are not in order");
    check(survey(2, &[2, 1]), "its partitions are not in order");
    let many: Vec<u32> = (0..=BATCH_PARTITIONS_MAX as u32).collect();
    check(survey(16, &many), "too many partitions at once");
    check(MemberRequest::Refuse(batch(&[(4096, 1)])), "there are not so many partitions");
    check(MemberRequest::Refuse(batch(&[(7, 1), (7, 2)])), "its partitions are not in order");
    let fences = vec![(LINEAGE, GENERATION); INSTALL_FENCES_MAX + 1];
    let install = MemberRequest::Install { batch: batch(&[]), fences, last: false };
    check(install, "too many fences at once");
    let adopt = MemberRequest::Adopt {
        permit: session,
        lineage,
        key,
        staged: STAGED_NEVER + 1,
        stamp: stamp(1, 1),
        settled_generation: GENERATION,
        replaces: stamp(1, 1),
    };
    check(adopt.clone(), "no object has so many blocks");
    let mut clear = adopt;
    let MemberRequest::Adopt { staged, .. } = &mut clear else { unreachable!() };
    *staged = STAGED_NEVER;
    assert_eq!(request::vet(&clear), Ok(()));
    assert_eq!(request::vet(&read(256, Some(UNDER))), Ok(()));
    assert_eq!(request::cost(&read(256, None)), 1 << 20);
    assert_eq!(request::cost(&data(0, content(2, 0))), 8192);
    assert_eq!(request::cost(&stage(session, 0, content(2, 0))), 8192);
    assert_eq!(request::cost(&requests()[1]), 4096);
}

/// Fields that make no sense behind checksums that fit.
#[test]
fn nonsense_is_refused() {
    let request_of = |kind: Kind| {
        let made = requests().into_iter().map(|request| made_request(&request));
        let mut of_kind = made.filter(|frame| frame.header().expect("sound").kind == kind);
        (of_kind.next().expect("every kind is there"), None)
    };
    let reply_of = |kind: Kind, flags: u16| {
        let mut made =
            replies().into_iter().map(|(expected, answer)| (made_reply(&answer), expected));
        let (frame, expected) = made
            .find(|(frame, _)| {
                let header = frame.header().expect("sound");
                header.kind == kind && header.flags == flags
            })
            .expect("every kind is there");
        (frame, Some(expected))
    };
    use Kind::*;
    // The frame, where in header and body, and what is put there.
    type Row<'a> = ((Made, Option<Expected>), usize, &'a [u8]);
    let table: &[Row<'_>] = &[
        (request_of(Fence), 4, &[2]),           // an unknown flag
        (request_of(Fence), 64 + 12, &[1]),     // reserved
        (request_of(Settle), 64 + 12, &[1]),    // reserved
        (request_of(Settle), 64 + 24, &[0]),    // no copies
        (request_of(Settle), 64 + 24, &[6]),    // too many
        (request_of(Settle), 64 + 25, &[17]),   // too many partitions
        (request_of(Settle), 64 + 25, &[0xff]), // more than anybody can count
        (request_of(Settle), 64 + 26, &[1]),    // reserved behind them
        (request_of(Settle), 64 + 31, &[1]),
        (request_of(WriteData), 4, &[2]),        // a flag of a stage
        (request_of(WriteData), 64 + 14, &[3]),  // three blocks with content of two
        (request_of(WriteData), 64 + 14, &[0]),  // no blocks
        (request_of(WriteData), 64 + 25, &[17]), // too many partitions
        (request_of(WriteData), 64 + 31, &[1]),  // reserved
        (request_of(WriteZero), 64 + 12, &[1]),  // blocks beyond the object
        (request_of(WriteZero), 4, &[1]),        // a flag of data
        (request_of(Read), 4, &[2]),             // an unknown flag
        (request_of(Read), 4, &[0]),             // a configuration without its flag
        (request_of(Read), 64 + 14, &[1, 1]),    // a read of 257 blocks
        (request_of(Read), 64 + 12, &[0xff, 0xff]),
        (request_of(Read), 64 + 24, &[0]), // no copies
        (request_of(Map), 64 + 14, &[0, 0]),
        (request_of(Map), 64 + 26, &[1]),
        (request_of(Difference), 4, &[0]),
        (request_of(Reclaimable), 64 + 12, &[1]),
        (request_of(Flush), 4, &[1]),
        (request_of(Mark), 4, &[1]),
        (request_of(Confirm), 4, &[1]),
        (request_of(Lineages), 56, &[1]), // a generation
        (request_of(Lineages), 4, &[1]),
        (request_of(Survey), 56, &[1]),
        (request_of(Survey), 4, &[2]),
        (request_of(Survey), 64 + 12, &[17]), // too many partitions
        (request_of(Survey), 64 + 12, &[11]), // fewer than the last one's number
        (request_of(Survey), 64 + 13, &[1]),  // reserved
        (request_of(Survey), 64 + 15, &[1]),
        (request_of(Survey), 64 + 16, &[0xff, 0x0f]), // the same partition twice
        (request_of(Survey), 64 + 23, &[1]),          // a partition that is not
        (request_of(Checksums), 56, &[1]),
        (request_of(Checksums), 64 + 14, &[0]),   // no blocks
        (request_of(StageData), 4, &[4]),         // an unknown flag
        (request_of(StageData), 64 + 14, &[2]),   // two blocks with content of one
        (request_of(StageData), 64 + 24, &[0]),   // no copies
        (request_of(StageZero), 4, &[1]),         // a flag of data
        (request_of(StageZero), 64 + 12, &[1]),   // blocks beyond the object
        (request_of(StageAbsent), 64 + 26, &[1]), // reserved
        (request_of(Adopt), 4, &[1]),             // a flag of a stage
        (request_of(Adopt), 64 + 12, &[2, 4]),    // 1026 blocks
        (request_of(Adopt), 64 + 25, &[17]),
        (request_of(Retract), 64 + 12, &[1]), // reserved
        (request_of(Retract), 64 + 31, &[1]),
        (request_of(Refuse), 48, &[1]),      // a lineage
        (request_of(Refuse), 4, &[1]),       // a flag of an install
        (request_of(Refuse), 64, &[0]),      // no copies
        (request_of(Refuse), 64 + 1, &[17]), // too many partitions
        (request_of(Refuse), 64 + 2, &[1]),  // fewer rows than there are
        (request_of(Refuse), 64 + 2, &[3]),  // more
        (request_of(Refuse), 64 + 2, &[0xff, 0xff]),
        (request_of(Refuse), 64 + 4, &[1]),           // reserved
        (request_of(Refuse), 64 + 16, &[0xff, 0x0f]), // the same partition twice
        (request_of(Refuse), 64 + 19, &[1]),          // a partition that is not
        (request_of(Install), 48, &[1]),
        (request_of(Install), 4, &[2]),
        (request_of(Install), 64 + 2, &[0]), // rows of fences that are not whole
        (request_of(Install), 64 + 2, &[2]),
        (request_of(Install), 64 + 7, &[1]),
        (reply_of(Fenced, 1), 32 + 12, &[1]),     // reserved
        (reply_of(Fenced, 1), 4, &[2]),           // a flag
        (reply_of(Fenced, 1), 64 + 40 + 8, &[1]), // the same object twice
        (reply_of(Fenced, 1), 64 + 8, &[0]),      // one that was told before
        (reply_of(Fenced, 1), 64 + 12, &[1]),     // reserved in a row
        (reply_of(Done, 0), 32, &[1]),            // an incarnation where none belongs
        (reply_of(Done, 0), 4, &[1]),
        (reply_of(Done, 0), 48, &[1]), // a word where none belongs
        (reply_of(Done, 0), 56, &[1]),
        (reply_of(ObjectStamp, 0), 64 + 8, &[12]), // another object
        (reply_of(Data, 0), 64, &[3]),             // absent before what was asked for
        (reply_of(Data, 0), 64 + 6, &[2]),         // absent beyond it
        (reply_of(Data, 0), 64 + 4, &[4]),         // absent twice
        (reply_of(Data, 0), 64 + 2, &[0]),         // an empty run
        (reply_of(Blocks, 0), 64, &[2]),           // more blocks than asked for
        (reply_of(Blocks, 0), 64 + 2, &[3]),       // a state only differences have
        (reply_of(Blocks, 0), 64 + 3, &[1]),       // reserved
        (reply_of(Differences, 0), 64 + 2, &[4]),  // an unknown state
        (reply_of(Differences, 0), 64, &[0]),      // an empty run
        (reply_of(Reclaimed, 1), 4, &[0]),         // an index without its flag
        (reply_of(Reclaimed, 1), 60, &[1]),        // an index beyond 32 bits
        (reply_of(Confirmed, 1), 56, &[1]),        // a second word
        (reply_of(Confirmed, 1), 4, &[2]),
        (reply_of(Confirmed, 1), 64 + 11, &[1]), // a partition that is not
        (reply_of(Confirmed, 1), 64 + 12, &[0]), // no copies
        (reply_of(Confirmed, 1), 64 + 13, &[17]), // too many partitions
        (reply_of(Confirmed, 1), 64 + 13, &[11]), // fewer than the partition's number
        (reply_of(Confirmed, 1), 64 + 14, &[1]), // reserved
        (reply_of(Confirmed, 1), 64 + 15, &[1]),
        (reply_of(LineageStamps, 0), 32, &[1]), // an incarnation
        (reply_of(LineageStamps, 0), 64, &[3]), // one that was told before
        (reply_of(LineageStamps, 0), 64 + 40, &[4]), // the same twice
        (reply_of(Surveyed, 1), 48, &[1]),      // a word
        (reply_of(Surveyed, 1), 64 + 16, &[11]), // an object that was told before
        (reply_of(Surveyed, 1), 64 + 48, &[2]), // out of order
        (reply_of(Surveyed, 1), 64 + 20, &[1]), // reserved in a row
        (reply_of(BlockSums, 0), 64, &[3]),     // an unknown state
        (reply_of(BlockSums, 0), 64 + 1, &[1]), // a checksum of what is absent
        (reply_of(BlockSums, 0), 64 + 9, &[0, 1]),
        (reply_of(BlockSums, 0), 64 + 18, &[1]), // a checksum of zeros
        (reply_of(Refused, 0), 56, &[1]),        // a second word
        (reply_of(Installed, 0), 48, &[1]),
        (reply_of(Error, 1), 4, &[0]), // an unknown error
        (reply_of(Error, 1), 4, &[12]),
        (reply_of(Error, 1), 63, &[1]), // a second word where one belongs
        (reply_of(Error, 4), 48, &[1]), // a word where none belongs
        (reply_of(Error, 8), 64, &[0xff]), // no UTF-8
        (reply_of(Error, 8), 4, &[6]),  // a text of "busy"
        (reply_of(Error, 11), 52, &[1]), // more blocks than 32 bits
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
            Some(expected) => reply::decode(&header, frame.body(), payload, expected).map(drop),
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
        // The errors of the table all answer a write.
        let errors = replies().iter().filter(|(_, answer)| answer.is_err()).count();
        let errors = if header.kind == Kind::Written { errors } else { 0 };
        assert_eq!(fits, same + errors, "{header:?}");
        let longer = Expected::Data(blocks(4, 4));
        assert!(longer.admit(&header).is_err(), "other blocks than it brings");
    }
}

/// Of the right kind, and yet not what was asked for.
#[test]
fn a_list_of_something_else_is_refused() {
    let check = |place: Kind, expected: Expected, why: &str| {
        let frames = replies().into_iter().map(|(_, answer)| made_reply(&answer));
        let frame = frames.into_iter().find(|f| f.header().expect("sound").kind == place);
        let frame = frame.expect("every kind is there");
        let header = frame.check().expect("sound");
        let result = reply::decode(&header, frame.body(), None, &expected);
        let Err(FrameError::Malformed(_, told)) = result else { panic!("{result:?}") };
        assert_eq!(told, why);
    };
    let order = "its rows are not in order";
    check(Kind::Fenced, Expected::Fenced { list: true, after: KEY }, order);
    let not_wanted = Expected::Fenced { list: false, after: ObjectKey::default() };
    check(Kind::Fenced, not_wanted, "it lists what was not wanted");
    check(Kind::LineageStamps, Expected::Lineages { after: LineageId(4) }, order);
    let survey = |partitions: &[u32], after| {
        let partitions = partitions.iter().copied().map(PartitionId).collect();
        Expected::Survey { bits: 1, partitions, after }
    };
    check(Kind::Surveyed, survey(&[0, 1], (LineageId(4), ObjectKey::default())), order);
    for partitions in [&[][..], &[0], &[1]] {
        let expected = survey(partitions, Default::default());
        let rows = [(LINEAGE, 12), (LineageId(4), 1)];
        let there = rows.map(|(lineage, index)| partition_of(lineage, index, 1).0);
        if there.iter().any(|partition| !partitions.contains(partition)) {
            check(Kind::Surveyed, expected, "an object of another partition");
        }
    }
    let other_blocks = Expected::Checksums(blocks(3, 4));
    check(Kind::BlockSums, other_blocks, "its rows are not the blocks asked for");
}

/// Else its asker would ask for ever.
#[test]
fn a_list_that_goes_on_brings_something() {
    let incarnation = Incarnation(1);
    let (settled, more) = (Stamp::default(), true);
    let lists = [
        MemberReply::Fenced { incarnation, settled, unsettled: Vec::new(), more },
        MemberReply::Confirmed { incarnation, refusals: 1, refused: Vec::new(), more },
        MemberReply::Lineages { lineages: Vec::new(), more },
        MemberReply::Survey { incarnation, objects: Vec::new(), more },
    ];
    for list in lists {
        let frame = made_reply(&Ok(list));
        let header = frame.check().expect("sound");
        let fits = |(expected, _): &(Expected, Answer)| expected.admit(&header).is_ok();
        let (expected, _) = replies().into_iter().find(fits).expect("every kind is there");
        let result = reply::decode(&header, frame.body(), None, &expected).map(drop);
        let why = "a list that goes on is empty";
        assert_eq!(result, Err(FrameError::Malformed(header.kind, why)));
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

proptest! {
    #[test]
    fn any_request_comes_back_as_it_was(request in any_request()) {
        check_request(&request);
    }

    #[test]
    fn any_answer_comes_back_as_it_was((expected, answer) in any_answer()) {
        check_reply(&expected, &answer);
    }

    /// Whatever a header says behind a checksum that fits, decoding ends with an error or a value.
    #[test]
    fn any_frame_behind_fitting_checksums_is_taken_or_refused(
        place in 0..80usize,
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
                    let _ = reply::decode(&header, body, payload.clone(), &expected);
                }
            }
        }
    }
}
