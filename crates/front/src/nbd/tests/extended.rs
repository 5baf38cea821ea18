//! Extended headers: their bytes, the rules of order, and lengths of 64 bits.

use super::handshake::{Talk, hex, reply, reply_bytes};
use super::*;
use client::{info_data, meta_data, option};
use proto::limits::{NBD_PAYLOAD_BYTES_MAX, NBD_STEP_BYTES_MAX, VOLUME_BYTES_MAX};
use volume::Error;

const ACK: u32 = 1;
const INFO: u32 = 3;
const CONTEXT: u32 = 4;
const INVALID: u32 = 0x8000_0003;
const EXTENDED_REQUIRED: u32 = 0x8000_000a;

const READ: u16 = 0;
const WRITE: u16 = 1;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;

fn asked(command: u16, offset: u64, length: u64) -> Asked {
    Asked { flags: 0, command, offset, length }
}

/// What a client gets for a request that it may not send so.
fn raw(rig: &mut Rig, asked: Asked, payload: &[u8]) -> Outcome {
    let mut replies = Replies::new(Style::Extended);
    replies.open.insert(5, asked);
    rig.feed(&asked.extended_bytes(5));
    rig.feed(payload);
    let mut outcomes = replies.take(&rig.read_all());
    assert_eq!((outcomes.len(), replies.is_inside()), (1, false), "one reply to {asked:?}");
    outcomes.remove(0).1
}

#[test]
fn the_bytes_are_those_of_the_protocol() {
    let mut talk = Talk::new(3);
    let context = [
        reply_bytes(10, CONTEXT, &[&[0, 0, 0, 1][..], b"base:allocation"].concat()),
        reply(10, ACK, ""),
    ]
    .concat();
    let info = [reply(7, INFO, "0000 0004000000000000 0ded"), reply(7, ACK, "")].concat();
    talk.check(&option(11, &[]), &reply(11, ACK, ""))
        .check(&option(10, &meta_data("huge", &["base:allocation"])), &context)
        .check(&option(7, &info_data("huge", &[])), &info)
        // a write of 512 bytes, with its payload
        .check(
            &[
                hex("21e41c71 0020 0001 00000000000000a1 0000000000001000 0000000000000200"),
                vec![7; 512],
            ]
            .concat(),
            &hex("6e8a278c 0001 0000 00000000000000a1 0000000000001000 0000000000000000"),
        )
        // a read of 512 bytes
        .check(
            &hex("21e41c71 0000 0000 00000000000000a2 0000000000001000 0000000000000200"),
            &[
                hex("6e8a278c 0001 0001 00000000000000a2 0000000000001000 0000000000000208"),
                hex("0000000000001000"),
                vec![7; 512],
            ]
            .concat(),
        )
        // the status of 1 TiB: 4 KiB of zeros, 4 KiB of data, the rest zeros
        .check(
            &hex("21e41c71 0000 0007 00000000000000a3 0000000000000000 0000010000000000"),
            &hex("6e8a278c 0001 0006 00000000000000a3 0000000000000000 0000000000000038 \
                 00000001 00000003 \
                 0000000000001000 0000000000000003 \
                 0000000000001000 0000000000000000 \
                 000000ffffffe000 0000000000000003"),
        )
        // a flush
        .check(
            &hex("21e41c71 0000 0003 00000000000000a4 0000000000000000 0000000000000000"),
            &hex("6e8a278c 0001 0000 00000000000000a4 0000000000000000 0000000000000000"),
        );
    // an error has the request's offset in its head, and a read's also the place in its body
    talk.rig.at_once = false;
    talk.rig.feed(&hex("21e41c71 0000 0000 00000000000000a5 0000000000001200 0000000000004000"));
    talk.rig.complete(0, Some(Error::Corrupt { offset: 8192 }));
    let read = talk.rig.read_all();
    let length = read.len() - 32;
    assert_eq!(read[..24], hex("6e8a278c 0001 8002 00000000000000a5 0000000000001200"));
    assert_eq!(read[24..32], (length as u64).to_be_bytes());
    assert_eq!(read[32..36], [0, 0, 0, 5]);
    assert_eq!(read[36..38], (length as u16 - 14).to_be_bytes());
    assert_eq!(read[read.len() - 8..], 8192u64.to_be_bytes());
    // a goodbye has no reply
    talk.check(&hex("21e41c71 0000 0002 00000000000000a6 0000000000000000 0000000000000000"), b"");
    assert_eq!(*talk.closed(), CloseReason::Disconnected);
}

#[test]
fn extended_headers_replace_structured_replies_and_are_not_taken_back() {
    let mut talk = Talk::new(3);
    talk.refused(&option(11, b"x"), INVALID)
        .refused(&option(10, &meta_data("disk", &["base:allocation"])), INVALID) // no chunks yet
        .check(&option(8, &[]), &reply(8, ACK, ""))
        .check(&option(11, &[]), &reply(11, ACK, ""))
        .check(&option(11, &[]), &reply(11, ACK, ""))
        .refused(&option(8, &[]), EXTENDED_REQUIRED)
        .refused(&option(8, b"x"), INVALID);
    let info = [reply(7, INFO, "0000 0000000004000000 0ded"), reply(7, ACK, "")].concat();
    talk.check(&option(7, &info_data("disk", &[])), &info);
    let read = hex("6e8a278c 0001 0001 0000000000000001 0000000000000000 0000000000000208");
    talk.check(&asked(READ, 0, 512).extended_bytes(1), &[read, vec![0; 8], vec![0; 512]].concat())
        .open();
}

#[test]
fn a_context_that_was_chosen_before_stays_chosen() {
    let mut rig = Rig::new(Settings { can_multi_conn: true, is_local: false });
    rig.feed(&client::client_flags(3));
    rig.feed(&option(8, &[]));
    rig.feed(&option(10, &meta_data("disk", &["base:allocation"])));
    rig.feed(&option(11, &[]));
    rig.feed(&option(7, &info_data("disk", &[])));
    rig.read_all();
    let outcome = raw(&mut rig, asked(STATUS, 0, 4096), &[]);
    assert_eq!(outcome, Outcome::Extents(vec![(4096, 3)]));
}

/// A client that is served the huge volume in all these contexts.
fn comparing(contexts: &[&str]) -> Rig {
    let mut rig = Rig::new(Settings { can_multi_conn: true, is_local: false });
    rig.feed(&client::handshake_with("huge", Style::Extended, contexts));
    rig.read_all();
    rig
}

#[test]
fn each_context_has_a_chunk_of_its_own_and_the_last_one_ends_the_reply() {
    let mut rig = comparing(&["sheepdog:dirty/monday", "base:allocation", "sheepdog:dirty/b1"]);
    rig.feed(&Asked { flags: 32, ..asked(WRITE, 4096, 4096) }.extended_bytes(1));
    rig.feed(&[7; 4096]);
    rig.read_all();
    // 1 TiB: where data is, and that only that differs from either snapshot
    rig.feed(&hex("21e41c71 0000 0007 00000000000000a3 0000000000000000 0000010000000000"));
    let expected = hex("6e8a278c 0000 0006 00000000000000a3 0000000000000000 0000000000000038 \
         00000001 00000003 \
         0000000000001000 0000000000000003 \
         0000000000001000 0000000000000000 \
         000000ffffffe000 0000000000000003 \
         6e8a278c 0000 0006 00000000000000a3 0000000000000000 0000000000000038 \
         00000002 00000003 \
         0000000000001000 0000000000000000 \
         0000000000001000 0000000000000001 \
         000000ffffffe000 0000000000000000 \
         6e8a278c 0001 0006 00000000000000a3 0000000000000000 0000000000000038 \
         00000003 00000003 \
         0000000000001000 0000000000000000 \
         0000000000001000 0000000000000001 \
         000000ffffffe000 0000000000000000");
    assert_eq!(rig.read_all(), expected);
    // the whole volume, and one run of each context
    for (flags, runs) in [(0, 3), (8, 1)] {
        let whole = Asked { flags, ..asked(STATUS, 0, VOLUME_BYTES_MAX) };
        let outcome = ask_in(&mut rig, Style::Extended, 3, whole, &[]);
        let Outcome::Contexts(told) = outcome else { panic!("{outcome:?}") };
        assert!(told.iter().all(|extents| extents.len() == runs), "{told:?}");
        let bytes = if flags == 0 { VOLUME_BYTES_MAX } else { 4096 };
        let covered = |extents: &client::Extents| extents.iter().map(|extent| extent.0).sum();
        assert_eq!(told.iter().map(covered).collect::<Vec<u64>>(), [bytes; 3]);
    }
}

#[test]
fn a_snapshot_that_is_gone_ends_the_reply_with_an_error_after_the_parts_that_were_sent() {
    let mut rig = comparing(&["base:allocation", "sheepdog:dirty/gone"]);
    rig.feed(&asked(STATUS, 512, 1 << 40).extended_bytes(9));
    let read = rig.read_all();
    let head = "6e8a278c 0000 0006 0000000000000009 0000000000000200 0000000000000018";
    assert_eq!(read[..32], hex(head), "the first part is not the last one");
    let error = "6e8a278c 0001 8001 0000000000000009 0000000000000200";
    assert_eq!(read[56..80], hex(error), "a second one ends the reply");
    assert_eq!(read[88..92], EINVAL.to_be_bytes());
    assert_eq!(code(&raw(&mut rig, asked(READ, 0, 512), &[])), 0, "the connection goes on");
}

#[test]
fn contexts_that_were_chosen_before_stay_chosen() {
    let mut rig = Rig::new(Settings { can_multi_conn: true, is_local: false });
    rig.feed(&client::client_flags(3));
    rig.feed(&option(8, &[]));
    rig.feed(&option(10, &meta_data("disk", &["sheepdog:dirty/b1", "sheepdog:dirty/b2"])));
    rig.feed(&option(11, &[]));
    rig.feed(&option(7, &info_data("disk", &[])));
    rig.read_all();
    let outcome = ask_in(&mut rig, Style::Extended, 2, asked(STATUS, 0, 4096), &[]);
    assert_eq!(outcome, Outcome::Contexts(vec![vec![(4096, 0)], vec![(4096, 0)]]));
}

#[test]
fn a_stop_does_not_cut_the_reply_to_a_block_status() {
    let mut rig = comparing(&["base:allocation", "sheepdog:dirty/b1"]);
    rig.at_once = false;
    rig.feed(&asked(STATUS, 0, 1 << 40).extended_bytes(1));
    rig.complete(0, None);
    rig.act(|connection, now, effects| connection.handle_stop(now, effects));
    rig.complete(0, None);
    let mut replies = Replies::new(Style::Extended);
    replies.contexts = 2;
    replies.open.insert(1, asked(STATUS, 0, 1 << 40));
    let outcomes = replies.take(&rig.read_all());
    assert_eq!((outcomes.len(), replies.is_inside()), (1, false));
    assert_eq!(rig.closed, Some(CloseReason::Stopped));
}

#[test]
fn export_name_is_not_for_clients_with_extended_headers() {
    let mut talk = Talk::new(3);
    talk.check(&option(11, &[]), &reply(11, ACK, "")).check(&option(1, b"disk"), b"");
    assert!(protocol(&talk.rig.closed), "{:?}", talk.rig.closed);
    assert_eq!(talk.rig.memory.bytes, 0, "nothing is attached");
}

#[test]
fn the_other_kind_of_header_hangs_up() {
    for style in Style::ALL {
        let mut rig = served("disk", style, false);
        rig.feed(&match style {
            Style::Extended => [asked(READ, 0, 512).bytes(1), vec![0; 4]].concat(),
            _ => asked(READ, 0, 512).extended_bytes(1),
        });
        assert!(protocol(&rig.closed), "{style:?}");
        assert!(rig.read_all().is_empty());
    }
}

/// The parts of which a request is made, and that they are what was asked for, one after the other.
fn parts(rig: &mut Rig, asked: Asked) -> usize {
    rig.at_once = false;
    rig.feed(&asked.extended_bytes(1));
    let (mut count, mut at) = (0, asked.offset);
    while let Some(request) = rig.requests.front() {
        assert_eq!((rig.requests.len(), rig.unread()), (1, 0), "one part after the other");
        assert!(request.length > 0 && request.length <= NBD_STEP_BYTES_MAX);
        assert_eq!(request.offset, at);
        at += request.length;
        count += 1;
        rig.complete(0, None);
    }
    assert_eq!(at, asked.offset + asked.length);
    assert_eq!(rig.read_all().len(), 32, "one reply");
    rig.at_once = true;
    count
}

#[test]
fn what_has_no_payload_may_be_as_long_as_the_volume() {
    let mut rig = served("huge", Style::Extended, true);
    for command in [TRIM, CACHE, ZEROES] {
        assert_eq!(parts(&mut rig, asked(command, 512, NBD_STEP_BYTES_MAX)), 1);
        assert_eq!(parts(&mut rig, asked(command, 4096, NBD_STEP_BYTES_MAX + 512)), 2);
        assert_eq!(parts(&mut rig, asked(command, 0, 9 << 30)), 3);
        let length = 1 << 44;
        assert_eq!(parts(&mut rig, asked(command, VOLUME_BYTES_MAX - length, length)), 1 << 12);
        let fua = Asked { flags: 1, ..asked(command, VOLUME_BYTES_MAX - (5 << 30), 5 << 30) };
        assert_eq!(parts(&mut rig, fua), 2);
    }
    assert_eq!(parts(&mut rig, asked(TRIM, 0, VOLUME_BYTES_MAX)), 1 << 18);
    let whole = ask(&mut rig, Style::Extended, asked(STATUS, 0, VOLUME_BYTES_MAX), &[]);
    assert_eq!(whole, Outcome::Extents(vec![(VOLUME_BYTES_MAX, 3)]));
    let one = Asked { flags: 8, ..asked(STATUS, 1 << 40, 1 << 41) };
    let outcome = ask(&mut rig, Style::Extended, one, &[]);
    assert_eq!(outcome, Outcome::Extents(vec![(1 << 41, 3)]));
}

#[test]
fn an_error_ends_a_long_request() {
    let mut rig = served("huge", Style::Extended, true);
    rig.at_once = false;
    rig.feed(&asked(ZEROES, 0, 1 << 40).extended_bytes(1));
    rig.complete(0, None);
    rig.complete(0, Some(Error::NoSpace));
    assert!(rig.requests.is_empty());
    let mut replies = Replies::new(Style::Extended);
    replies.open.insert(1, asked(ZEROES, 0, 1 << 40));
    let outcomes = replies.take(&rig.read_all());
    assert_eq!(outcomes.len(), 1);
    assert_eq!(code(&outcomes[0].1), ENOSPC);
}

#[test]
fn a_goodbye_waits_for_a_long_request_and_a_stop_does_not() {
    for stops in [false, true] {
        let mut rig = served("huge", Style::Extended, true);
        rig.at_once = false;
        rig.feed(&asked(TRIM, 0, 3 * NBD_STEP_BYTES_MAX).extended_bytes(1));
        if stops {
            rig.act(|connection, now, effects| connection.handle_stop(now, effects));
        } else {
            rig.feed(&asked(2, 0, 0).extended_bytes(2));
        }
        rig.complete(0, None);
        assert_eq!(rig.closed.is_some(), stops, "{stops}");
        while !rig.requests.is_empty() {
            rig.complete(0, None);
        }
        // Without a reply it is asked for again when the client has reconnected.
        assert_eq!(rig.read_all().len(), if stops { 0 } else { 32 });
        assert!(rig.closed.is_some());
    }
}

#[test]
fn what_leaves_the_volume_is_refused_at_any_length() {
    let mut rig = served("huge", Style::Extended, true);
    let lengths = [
        VOLUME_BYTES_MAX + 512,
        1 << 62,
        (1 << 63) - 512,
        1 << 63,
        (1 << 63) + 512,
        u64::MAX - 1023,
        u64::MAX - 511,
    ];
    for length in lengths {
        for offset in [0, 512, VOLUME_BYTES_MAX, 1 << 63, u64::MAX - 511] {
            for (command, expected) in
                [(TRIM, EINVAL), (CACHE, EINVAL), (STATUS, EINVAL), (ZEROES, ENOSPC)]
            {
                let outcome = ask(&mut rig, Style::Extended, asked(command, offset, length), &[]);
                assert_eq!(code(&outcome), expected, "{command} at {offset}, {length} long");
            }
        }
    }
    // What is read is held in memory: it is short.
    for length in [NBD_PAYLOAD_BYTES_MAX as u64 + 512, 1 << 32, 1 << 40, u64::MAX - 511] {
        let read = asked(READ, 0, length);
        assert_eq!(code(&ask(&mut rig, Style::Extended, read, &[])), EINVAL);
        let unfragmented = Asked { flags: 4, ..read };
        assert_eq!(code(&ask(&mut rig, Style::Extended, unfragmented, &[])), EOVERFLOW);
    }
    assert_eq!(rig.closed, None);
}

#[test]
fn a_payload_is_what_the_flag_says_and_nothing_else() {
    let mut rig = served("disk", Style::Extended, true);
    // A write without the flag has none: the next bytes are the next request.
    assert_eq!(code(&raw(&mut rig, asked(WRITE, 0, 4096), &[])), EINVAL);
    // Anything else with it has one, which is skipped. It looks like requests.
    let payload = asked(2, 0, 0).extended_bytes(1).repeat(16);
    for command in [READ, 3, TRIM, CACHE, ZEROES, STATUS, 8, 77, u16::MAX] {
        let with = Asked { flags: 32, ..asked(command, 0, payload.len() as u64) };
        assert_eq!(code(&raw(&mut rig, with, &payload)), EINVAL, "command {command}");
        let empty = Asked { flags: 32, ..asked(command, 0, 0) };
        assert_eq!(code(&raw(&mut rig, empty, &[])), EINVAL, "command {command}");
    }
    // Without it an unknown request has none, whatever its length.
    for length in [1 << 20, 1 << 32, u64::MAX] {
        assert_eq!(code(&raw(&mut rig, asked(77, 0, length), &[])), EINVAL);
    }
    assert_eq!(rig.closed, None);
    // Nobody skips more than the longest payload.
    for command in [READ, WRITE, ZEROES, STATUS, 77] {
        for length in [NBD_PAYLOAD_BYTES_MAX as u64 + 1, 1 << 32, 1 << 63, u64::MAX] {
            let mut rig = served("disk", Style::Extended, true);
            let with = Asked { flags: 32, ..asked(command, 0, length) };
            assert_eq!(code(&raw(&mut rig, with, &[])), EINVAL);
            assert!(protocol(&rig.closed), "command {command}, {length} long");
        }
    }
}

#[test]
fn the_flag_of_payloads_means_nothing_without_extended_headers() {
    for style in [Style::Simple, Style::Structured] {
        let mut rig = served("disk", style, false);
        let read = Asked { flags: 32, ..asked(READ, 0, 512) };
        assert_eq!(code(&ask(&mut rig, style, read, &[])), EINVAL);
        let write = Asked { flags: 32, ..asked(WRITE, 0, 512) };
        assert_eq!(code(&ask(&mut rig, style, write, &[7; 512])), EINVAL);
        assert_eq!(code(&ask(&mut rig, style, asked(READ, 0, 512), &[])), 0);
    }
}
