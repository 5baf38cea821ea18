//! Every request, every flag, every error, every length.

use super::*;
use proto::limits::NBD_PAYLOAD_BYTES_MAX;
use volume::Error;

const MAX: u64 = NBD_PAYLOAD_BYTES_MAX as u64;
const BYTES: u64 = 64 << 20;
/// The longest request without extended headers.
const MOST: u64 = u32::MAX as u64 - 511;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;
const ESHUTDOWN: u32 = 108;

fn asked(command: u16, offset: u64, length: u64) -> Asked {
    Asked { flags: 0, command, offset, length }
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at / 512) as u8 ^ (at % 251) as u8 ^ seed).collect()
}

#[test]
fn what_is_written_is_read_back_at_any_sector() {
    for style in Style::ALL {
        let mut rig = served("disk", style, false);
        let mut model = vec![0u8; 65_536];
        let spans =
            [(0, 4096), (512, 512), (3584, 1024), (4096, 8192), (7680, 20_480), (512, 33_280)];
        for (number, (offset, length)) in spans.into_iter().enumerate() {
            let data = pattern(length as usize, number as u8);
            let outcome = ask(&mut rig, style, asked(WRITE, offset, length), &data);
            assert_eq!(outcome, Outcome::Done);
            model[offset as usize..offset as usize + length as usize].copy_from_slice(&data);
            let all = ask(&mut rig, style, asked(READ, 0, 65_536), &[]);
            assert_eq!(all, Outcome::Data(model.clone()));
            let part = ask(&mut rig, style, asked(READ, 1536, 5120), &[]);
            assert_eq!(part, Outcome::Data(model[1536..1536 + 5120].to_vec()));
        }
    }
}

#[test]
fn the_longest_write_and_read_pass_and_one_more_does_not() {
    for style in Style::ALL {
        let mut rig = served("disk", style, false);
        let data = pattern(MAX as usize, 9);
        assert_eq!(ask(&mut rig, style, asked(WRITE, 512, MAX), &data), Outcome::Done);
        let read = ask(&mut rig, style, asked(READ, 512, MAX), &[]);
        assert!(read == Outcome::Data(data), "the content differs");
        let outcome = ask(&mut rig, style, asked(READ, 0, MAX + 512), &[]);
        assert_eq!(code(&outcome), EINVAL);
        if style.has_chunks() {
            let unfragmented = Asked { flags: 4, ..asked(READ, 0, MAX + 512) };
            assert_eq!(code(&ask(&mut rig, style, unfragmented, &[])), EOVERFLOW);
        }
        assert_eq!(rig.closed, None);
        // Such a write is not waited for.
        assert_eq!(code(&ask(&mut rig, style, asked(WRITE, 0, MAX + 512), &[])), EINVAL);
        assert!(protocol(&rig.closed));
    }
}

/// The reply's code for each command with this offset and length.
fn check_place(offset: u64, length: u64, codes: [(u16, u32); 6]) {
    for (command, expected) in codes {
        for style in Style::ALL {
            if command == STATUS && !style.has_chunks() {
                continue;
            }
            let mut rig = served("disk", style, style.has_chunks());
            let too_long = command == WRITE && length > MAX;
            let payload = vec![1; if too_long || command != WRITE { 0 } else { length as usize }];
            let outcome = ask(&mut rig, style, asked(command, offset, length), &payload);
            let about = format!("command {command} at {offset}, {length} long: {outcome:?}");
            assert_eq!(code(&outcome), expected, "{about}");
            assert_eq!(rig.closed.is_some(), too_long, "{about}");
            if let (true, Outcome::Error(_, sentence)) = (style.has_chunks(), &outcome) {
                assert!(sentence.contains(' '), "{about}");
            }
        }
    }
}

/// The same code for all commands but those that write.
fn codes(others: u32, write: u32, zeroes: u32) -> [(u16, u32); 6] {
    [
        (READ, others),
        (TRIM, others),
        (CACHE, others),
        (STATUS, others),
        (WRITE, write),
        (ZEROES, zeroes),
    ]
}

#[test]
fn every_length_at_every_edge() {
    let beyond = || codes(EINVAL, ENOSPC, ENOSPC);
    let misaligned = || codes(EINVAL, EINVAL, EINVAL);
    check_place(0, 512, codes(0, 0, 0));
    check_place(BYTES - 512, 512, codes(0, 0, 0));
    check_place(BYTES - MAX, MAX, codes(0, 0, 0));
    check_place(BYTES - 512, 1024, beyond());
    check_place(BYTES, 512, beyond());
    check_place(BYTES + 512, 512, beyond());
    check_place(1 << 63, 512, beyond());
    check_place(u64::MAX - 511, 512, beyond()); // the sum is 2^64
    check_place(u64::MAX - 511, 1024, beyond());
    check_place(u64::MAX - 511, MAX, beyond());
    check_place(0, 1, misaligned());
    check_place(0, 511, misaligned());
    check_place(0, 513, misaligned());
    check_place(1, 512, misaligned());
    check_place(511, 512, misaligned());
    check_place(u64::MAX, 1, misaligned());
    check_place(u64::MAX, 512, misaligned());
    check_place(0, MAX + 1, misaligned());
    check_place(0, MOST + 511, misaligned());
    // Without payload these may be as long as the volume.
    let long =
        |code| [(READ, EINVAL), (TRIM, code), (CACHE, code), (STATUS, code), (WRITE, EINVAL)];
    for (length, code, zeroes) in
        [(MAX + 512, 0, 0), (1 << 31, EINVAL, ENOSPC), (MOST, EINVAL, ENOSPC)]
    {
        let [read, trim, cache, status, write] = long(code);
        check_place(0, length, [read, trim, cache, status, write, (ZEROES, zeroes)]);
    }
}

#[test]
fn nothing_long_is_done_at_once() {
    for style in Style::ALL {
        let mut rig = served("huge", style, style.has_chunks());
        for command in [TRIM, CACHE, ZEROES] {
            let long = asked(command, 0, MOST);
            assert_eq!(ask(&mut rig, style, long, &[]), Outcome::Done);
        }
    }
    let mut rig = served("huge", Style::Structured, true);
    let outcome = ask(&mut rig, Style::Structured, asked(STATUS, 0, MOST), &[]);
    assert_eq!(outcome, Outcome::Extents(vec![(MOST, 3)]));
}

#[test]
fn requests_of_no_bytes_do_nothing_and_succeed() {
    for style in Style::ALL {
        let mut rig = served("disk", style, style.has_chunks());
        rig.at_once = false; // the volume must not be asked
        for command in [READ, WRITE, TRIM, CACHE, ZEROES] {
            for offset in [0, 512, BYTES] {
                rig.feed(&asked(command, offset, 0).bytes_in(style, 1));
            }
        }
        assert!(rig.requests.is_empty());
        rig.at_once = true;
        let mut rig = served("disk", style, style.has_chunks());
        for command in [READ, WRITE, TRIM, CACHE, ZEROES] {
            let outcome = ask(&mut rig, style, asked(command, BYTES, 0), &[]);
            assert_eq!(code(&outcome), 0, "{command}");
        }
        assert_eq!(code(&ask(&mut rig, style, asked(READ, BYTES + 512, 0), &[])), EINVAL);
        assert_eq!(code(&ask(&mut rig, style, asked(WRITE, BYTES + 512, 0), &[])), ENOSPC);
    }
    let mut rig = served("disk", Style::Structured, true);
    assert_eq!(code(&ask(&mut rig, Style::Structured, asked(STATUS, 0, 0), &[])), EINVAL);
}

#[test]
fn only_flags_of_the_command_are_taken() {
    let fua = 1;
    let allowed = [
        (READ, fua | 4),
        (WRITE, fua),
        (FLUSH, fua),
        (TRIM, fua),
        (CACHE, fua),
        (ZEROES, fua | 2 | 16),
        (STATUS, fua | 8),
    ];
    for style in Style::ALL {
        let mut rig = served("disk", style, style.has_chunks());
        for (command, allowed) in allowed {
            if command == STATUS && !style.has_chunks() {
                continue;
            }
            let allowed = match style {
                Style::Simple => allowed & !4,
                Style::Extended if command == WRITE => allowed | 32,
                _ => allowed,
            };
            let length = if command == FLUSH { 0 } else { 4096 };
            for flags in (0..16).map(|bit| 1 << bit).chain([0, fua, allowed, u16::MAX]) {
                let request = Asked { flags, ..asked(command, 0, length) };
                let payload = vec![7; request.payload_bytes(style) as usize];
                let outcome = ask(&mut rig, style, request, &payload);
                let expected = if flags & !allowed == 0 { 0 } else { EINVAL };
                assert_eq!(code(&outcome), expected, "command {command}, flags {flags:#x}");
            }
        }
        assert_eq!(rig.closed, None);
    }
}

#[test]
fn the_volume_is_told_what_the_flags_say() {
    let mut rig = served("disk", Style::Structured, true);
    rig.at_once = false;
    let mut told = |flags: u16, command: u16, length: u64| {
        rig.feed(&Asked { flags, ..asked(command, 4096, length) }.bytes(1));
        let request = rig.requests.pop_back().expect("a request");
        assert_eq!((request.offset, request.length), (4096, length));
        format!("{:?}", request.operation)
    };
    assert_eq!(told(4, READ, 512), "Read");
    assert_eq!(told(0, TRIM, 512), "Discard { fua: false }");
    assert_eq!(told(1, TRIM, 512), "Discard { fua: true }");
    assert_eq!(told(1, CACHE, 512), "Prefetch");
    assert_eq!(told(8, STATUS, 512), "Status");
    let zeroes = |may_unmap: bool, fast_only: bool, fua: bool| {
        format!("{:?}", volume::Operation::WriteZeroes { may_unmap, fast_only, fua })
    };
    assert_eq!(told(0, ZEROES, 512), zeroes(true, false, false));
    assert_eq!(told(1, ZEROES, 512), zeroes(true, false, true));
    assert_eq!(told(2, ZEROES, 512), zeroes(false, false, false));
    assert_eq!(told(16, ZEROES, 512), zeroes(true, true, false));
    assert_eq!(told(19, ZEROES, 512), zeroes(false, true, true));
    rig.feed(&asked(FLUSH, 0, 0).bytes(1));
    assert!(matches!(rig.requests[0].operation, volume::Operation::Flush));
    for (flags, expected) in [(0, false), (1, true)] {
        rig.feed(&Asked { flags, ..asked(WRITE, 512, 512) }.bytes(1));
        rig.feed(&[1; 512]);
        let Some(volume::Operation::Write { buffer, fua }) =
            rig.requests.pop_back().map(|request| request.operation)
        else {
            panic!("no write");
        };
        assert_eq!((buffer.len(), fua), (4096, expected));
        assert_eq!(buffer.as_slice()[512..1024], [1; 512]);
    }
}

#[test]
fn a_flush_has_no_place() {
    let mut rig = served("disk", Style::Structured, false);
    assert_eq!(code(&ask(&mut rig, Style::Structured, asked(FLUSH, 0, 0), &[])), 0);
    assert_eq!(code(&ask(&mut rig, Style::Structured, asked(FLUSH, 512, 0), &[])), EINVAL);
    assert_eq!(code(&ask(&mut rig, Style::Structured, asked(FLUSH, 0, 512), &[])), EINVAL);
}

#[test]
fn a_read_only_volume_is_not_written() {
    for style in Style::ALL {
        let mut rig = served("fixed", style, style.has_chunks());
        for command in [WRITE, TRIM, ZEROES] {
            for length in [0, 4096] {
                let payload = vec![7; if command == WRITE { length } else { 0 }];
                let request = asked(command, 0, length as u64);
                assert_eq!(code(&ask(&mut rig, style, request, &payload)), EPERM);
            }
        }
        let read = ask(&mut rig, style, asked(READ, 0, 4096), &[]);
        assert_eq!(read, Outcome::Data(vec![0; 4096]));
        assert_eq!(code(&ask(&mut rig, style, asked(FLUSH, 0, 0), &[])), 0);
    }
}

#[test]
fn unknown_requests_are_refused_and_long_ones_hang_up() {
    for command in [8, 9, 100, u16::MAX] {
        let mut rig = served("disk", Style::Structured, false);
        for length in [0, 1, 512, MAX] {
            assert_eq!(
                code(&ask(&mut rig, Style::Structured, asked(command, 0, length), &[])),
                EINVAL
            );
        }
        assert_eq!(rig.closed, None);
        assert_eq!(
            code(&ask(&mut rig, Style::Structured, asked(command, 0, MAX + 1), &[])),
            EINVAL
        );
        assert!(protocol(&rig.closed));
    }
}

#[test]
fn a_request_without_its_magic_hangs_up() {
    let mut rig = served("disk", Style::Structured, false);
    let mut bytes = asked(READ, 0, 512).bytes(1);
    bytes[0] ^= 1;
    rig.feed(&bytes);
    assert!(protocol(&rig.closed));
    assert!(rig.read_all().is_empty());
}

#[test]
fn block_status_tells_runs_or_one() {
    let mut rig = served("disk", Style::Structured, true);
    ask(&mut rig, Style::Structured, asked(WRITE, 8192, 4096), &[7; 4096]);
    ask(&mut rig, Style::Structured, asked(WRITE, 20_480, 4096), &[7; 4096]);
    let runs = ask(&mut rig, Style::Structured, asked(STATUS, 0, 1 << 20), &[]);
    let expected = vec![(8192, 3), (4096, 0), (8192, 3), (4096, 0), ((1 << 20) - 24_576, 3)];
    assert_eq!(runs, Outcome::Extents(expected));
    let one = Asked { flags: 8, ..asked(STATUS, 4096, 1 << 20) };
    assert_eq!(ask(&mut rig, Style::Structured, one, &[]), Outcome::Extents(vec![(4096, 3)]));
    let inside = ask(&mut rig, Style::Structured, asked(STATUS, 8704, 512), &[]);
    assert_eq!(inside, Outcome::Extents(vec![(512, 0)]));
    let mut without = served("disk", Style::Structured, false);
    assert_eq!(code(&ask(&mut without, Style::Structured, asked(STATUS, 0, 512), &[])), EINVAL);
}

#[test]
fn a_status_of_more_extents_than_the_limit_is_cut() {
    let mut rig = served("disk", Style::Structured, true);
    rig.at_once = false;
    let request = asked(STATUS, 0, 32 << 20);
    let mut replies = Replies::new(Style::Structured);
    replies.open.insert(5, request);
    rig.feed(&request.bytes(5));
    let id = rig.requests.pop_front().unwrap().id;
    let extents = (0..20_000).map(|number| volume::Extent {
        length: 512,
        state: if number % 2 == 0 { proto::BlockState::Data } else { proto::BlockState::Zero },
    });
    rig.finish(id, Ok(volume::Completion::Status(extents.collect())));
    let outcomes = replies.take(&rig.read_all());
    let [(5, Outcome::Extents(extents))] = &outcomes[..] else { panic!("{outcomes:?}") };
    assert_eq!(extents.len(), proto::limits::NBD_STATUS_EXTENTS_MAX);
}

#[test]
fn errors_of_the_volume_reach_the_client_with_their_sentence() {
    let table = [
        (Error::OutOfRange, READ, EINVAL),
        (Error::OutOfRange, WRITE, ENOSPC),
        (Error::NoSpace, WRITE, ENOSPC),
        (Error::NoSpace, ZEROES, ENOSPC),
        (Error::ReadOnly, WRITE, EPERM),
        (Error::Corrupt { offset: 4096 }, READ, EIO),
        (Error::Corrupt { offset: 4096 }, WRITE, EIO),
        (Error::Fenced, FLUSH, ESHUTDOWN),
        (Error::NotFast, ZEROES, ENOTSUP),
        (Error::TooLong, STATUS, EINVAL),
        (Error::Io("disk 7: \u{e4}".repeat(2000)), READ, EIO),
    ];
    for (error, command, expected) in table {
        for style in Style::ALL {
            if command == STATUS && !style.has_chunks() {
                continue;
            }
            let mut rig = served("disk", style, style.has_chunks());
            rig.at_once = false;
            let length = if command == FLUSH { 0 } else { 8192 };
            let request = asked(command, 0, length);
            let mut replies = Replies::new(style);
            replies.open.insert(9, request);
            rig.feed(&request.bytes_in(style, 9));
            rig.feed(&vec![1; if command == WRITE { 8192 } else { 0 }]);
            rig.complete(0, Some(error.clone()));
            let outcomes = replies.take(&rig.read_all());
            let [(9, Outcome::Error(number, sentence))] = &outcomes[..] else {
                panic!("{outcomes:?}");
            };
            assert_eq!(*number, expected, "{error:?} of {command}");
            if style.has_chunks() {
                assert!(error.to_string().starts_with(sentence) && sentence.len() > 10);
            }
            assert_eq!(rig.closed, None);
        }
    }
}

#[test]
fn a_damaged_read_says_where() {
    let mut rig = served("disk", Style::Structured, false);
    rig.at_once = false;
    let request = asked(READ, 4608, 8192);
    rig.feed(&request.bytes(9));
    rig.complete(0, Some(Error::Corrupt { offset: 8192 }));
    let read = rig.read_all();
    assert_eq!(read[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 2]);
    assert_eq!(read[read.len() - 8..], 8192u64.to_be_bytes());
}

#[test]
fn refused_writes_are_skipped_and_the_next_request_is_understood() {
    // what is refused: read only, out of range, misaligned, wrong flag
    for (name, flags, offset, length, expected) in [
        ("fixed", 0, 0, 4096, EPERM),
        ("disk", 0, BYTES, 4096, ENOSPC),
        ("disk", 0, BYTES - 512, MAX, ENOSPC),
        ("disk", 0, 1, 4096, EINVAL),
        ("disk", 0, 0, 777, EINVAL),
        ("disk", 2, 0, 4096, EINVAL),
    ] {
        let mut rig = served(name, Style::Structured, false);
        // The payload looks like requests: none of it may be taken for one.
        let payload: Vec<u8> =
            asked(DISC, 0, 0).bytes(3).into_iter().cycle().take(length as usize).collect();
        let request = Asked { flags, ..asked(WRITE, offset, length) };
        assert_eq!(code(&ask(&mut rig, Style::Structured, request, &payload)), expected);
        let read = ask(&mut rig, Style::Structured, asked(READ, 0, 512), &[]);
        assert_eq!(read, Outcome::Data(vec![0; 512]), "{name} {offset} {length}");
    }
}

#[test]
fn goodbye_waits_for_what_is_in_flight() {
    let mut rig = served("disk", Style::Structured, false);
    rig.at_once = false;
    rig.feed(&asked(WRITE, 0, 512).bytes(1));
    rig.feed(&[7; 512]);
    rig.feed(&asked(READ, 0, 512).bytes(2));
    rig.feed(&asked(DISC, 0, 0).bytes(3));
    rig.socket.extend(asked(READ, 0, 512).bytes(4)); // a client must not, and is not heard
    assert!(!rig.connection.wants_input());
    rig.complete(1, None);
    rig.complete(0, None);
    assert_eq!(rig.closed, None, "the replies are not read yet");
    let mut replies = Replies::new(Style::Structured);
    replies.open.insert(1, asked(WRITE, 0, 512));
    replies.open.insert(2, asked(READ, 0, 512));
    assert_eq!(replies.take(&rig.read_all()).len(), 2);
    assert_eq!(rig.closed, Some(CloseReason::Disconnected));
}

#[test]
fn a_stop_answers_what_is_in_flight_and_takes_no_more() {
    for payload_bytes in [0, 100] {
        let mut rig = served("disk", Style::Simple, false);
        rig.at_once = false;
        rig.feed(&asked(READ, 0, 512).bytes(1));
        // a write is under way; with it the client gets no reply and must send it again
        rig.feed(&asked(WRITE, 0, 512).bytes(2));
        rig.feed(&vec![1; payload_bytes]);
        rig.act(|connection, now, effects| connection.handle_stop(now, effects));
        assert_eq!(rig.closed, None);
        rig.complete(0, None);
        assert_eq!(rig.read_all().len(), 16 + 512);
        assert_eq!(rig.closed, Some(CloseReason::Stopped));
    }
    let mut idle = served("disk", Style::Simple, false);
    idle.act(|connection, now, effects| connection.handle_stop(now, effects));
    assert_eq!(idle.closed, Some(CloseReason::Stopped));
}

#[test]
fn a_client_that_vanishes_closes_at_once() {
    for fed in [0, 10, 28, 100] {
        let mut rig = served("disk", Style::Simple, false);
        rig.at_once = false;
        rig.feed(&asked(READ, 0, 512).bytes(1));
        let write = [asked(WRITE, 0, 512).bytes(2), vec![7; 512]].concat();
        rig.feed(&write[..fed]);
        rig.act(|connection, now, effects| connection.handle_eof(now, effects));
        assert_eq!(rig.closed, Some(CloseReason::Vanished));
        assert_eq!(rig.requests.len(), 1, "half a write is no write");
        rig.complete(0, None); // the volume does not know yet
    }
}

#[test]
fn requests_are_measured_by_the_new_size() {
    let mut rig = served("disk", Style::Structured, true);
    let at_end = asked(READ, BYTES, 512);
    assert_eq!(code(&ask(&mut rig, Style::Structured, at_end, &[])), EINVAL);
    rig.memory.bytes = BYTES + 4096;
    rig.connection.handle_resized(BYTES + 4096);
    assert_eq!(code(&ask(&mut rig, Style::Structured, at_end, &[])), 0);
    rig.memory.bytes = 4096;
    rig.connection.handle_resized(4096);
    for (command, expected) in [(READ, EINVAL), (TRIM, EINVAL), (STATUS, EINVAL), (ZEROES, ENOSPC)]
    {
        assert_eq!(
            code(&ask(&mut rig, Style::Structured, asked(command, 4096, 512), &[])),
            expected
        );
    }
    assert_eq!(code(&ask(&mut rig, Style::Structured, asked(WRITE, 4096, 512), &[1; 512])), ENOSPC);
}
