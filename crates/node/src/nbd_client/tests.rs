//! The client against servers that are scripted here: honest, failing and nonsensical ones.

use super::*;
use crate::dog::transfer;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::thread::{self, JoinHandle};

const BYTES: u64 = 1 << 30;

/// What the scripted server agrees to.
#[derive(Clone, Copy)]
struct Offer {
    headers: Headers,
    context: Option<u32>,
}

const EXTENDED: Offer = Offer { headers: Headers::Extended, context: Some(7) };
const STRUCTURED: Offer = Offer { headers: Headers::Structured, context: Some(7) };
const SIMPLE: Offer = Offer { headers: Headers::Simple, context: None };

/// The server's end of a connection.
struct Server {
    stream: UnixStream,
    headers: Headers,
}

/// A request as the server sees it.
#[derive(PartialEq, Eq, Debug)]
struct Seen {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u64,
}

impl Server {
    fn read<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).expect("bytes of the client");
        bytes
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("a client that reads");
    }

    fn greet(&mut self) {
        self.write(b"NBDMAGICIHAVEOPT\x00\x03");
        assert_eq!(self.read::<4>(), [0, 0, 0, 3]);
    }

    /// The next option: its number and body.
    fn option(&mut self) -> (u32, Vec<u8>) {
        let head = self.read::<16>();
        assert_eq!(&head[..8], b"IHAVEOPT");
        let mut body = vec![0; be32(&head, 12).unwrap() as usize];
        self.stream.read_exact(&mut body).expect("the option's body");
        (be32(&head, 8).unwrap(), body)
    }

    fn answer(&mut self, option: u32, kind: u32, body: &[u8]) {
        self.write(&MAGIC_OPTION_REPLY.to_be_bytes());
        self.write(&option.to_be_bytes());
        self.write(&kind.to_be_bytes());
        self.write(&(body.len() as u32).to_be_bytes());
        self.write(body);
    }

    fn negotiate(&mut self, offer: Offer) {
        self.greet();
        loop {
            let (option, body) = self.option();
            match option {
                OPTION_EXTENDED_HEADERS if offer.headers == Headers::Extended => {
                    self.answer(option, REPLY_ACK, &[]);
                    self.headers = Headers::Extended;
                }
                OPTION_STRUCTURED_REPLY if offer.headers == Headers::Structured => {
                    self.answer(option, REPLY_ACK, &[]);
                }
                OPTION_SET_META_CONTEXT => {
                    if let Some(number) = offer.context {
                        let mut context = number.to_be_bytes().to_vec();
                        context.extend(b"base:allocation");
                        self.answer(option, REPLY_META_CONTEXT, &context);
                    }
                    self.answer(option, REPLY_ACK, &[]);
                }
                OPTION_GO => {
                    assert_eq!(body, b"\0\0\0\x03vol\0\x01\0\x03");
                    let mut export = INFO_EXPORT.to_be_bytes().to_vec();
                    export.extend(BYTES.to_be_bytes());
                    export.extend(0x01ed_u16.to_be_bytes());
                    self.answer(option, REPLY_INFO, &export);
                    let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
                    for size in [512u32, 4096, 32 << 20] {
                        sizes.extend(size.to_be_bytes());
                    }
                    self.answer(option, REPLY_INFO, &sizes);
                    self.answer(option, REPLY_ACK, &[]);
                    return;
                }
                _ => self.answer(option, REPLY_ERROR_BIT + 1, &[]),
            }
        }
    }

    fn request(&mut self) -> Seen {
        let magic = match self.headers {
            Headers::Extended => MAGIC_EXTENDED_REQUEST,
            _ => MAGIC_REQUEST,
        };
        let head = self.read::<24>();
        assert_eq!(be32(&head, 0), Some(magic));
        let length = match self.headers {
            Headers::Extended => u64::from_be_bytes(self.read::<8>()),
            _ => u32::from_be_bytes(self.read::<4>()).into(),
        };
        Seen {
            flags: be16(&head, 4).unwrap(),
            command: be16(&head, 6).unwrap(),
            cookie: be64(&head, 8).unwrap(),
            offset: be64(&head, 16).unwrap(),
            length,
        }
    }

    fn simple(&mut self, cookie: u64, code: u32) {
        self.write(&MAGIC_SIMPLE_REPLY.to_be_bytes());
        self.write(&code.to_be_bytes());
        self.write(&cookie.to_be_bytes());
    }

    fn chunk(&mut self, cookie: u64, kind: u16, done: bool, body: &[&[u8]]) {
        self.write(&MAGIC_STRUCTURED_REPLY.to_be_bytes());
        self.write(&u16::from(done).to_be_bytes());
        self.write(&kind.to_be_bytes());
        self.write(&cookie.to_be_bytes());
        let length: usize = body.iter().map(|part| part.len()).sum();
        self.write(&(length as u32).to_be_bytes());
        for part in body {
            self.write(part);
        }
    }
}

impl Server {
    /// A chunk with an extended header.
    fn long_chunk(&mut self, seen: (u64, u64), kind: u16, done: bool, body: &[&[u8]]) {
        self.write(&MAGIC_EXTENDED_REPLY.to_be_bytes());
        self.write(&u16::from(done).to_be_bytes());
        self.write(&kind.to_be_bytes());
        self.write(&seen.0.to_be_bytes());
        self.write(&seen.1.to_be_bytes());
        let length: usize = body.iter().map(|part| part.len()).sum();
        self.write(&(length as u64).to_be_bytes());
        for part in body {
            self.write(part);
        }
    }
}

/// A client attached to a server that then follows the script.
fn attached(
    offer: Offer,
    script: impl FnOnce(&mut Server) + Send + 'static,
) -> (NbdClient, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let server = thread::spawn(move || {
        let mut server = Server { stream: theirs, headers: Headers::Simple };
        server.negotiate(offer);
        script(&mut server);
    });
    let client =
        NbdClient::over(ours.into(), Peer::Daemon, "vol", CONTEXT_ALLOCATION, Box::new(|| false))
            .expect("attached");
    (client, server)
}

/// How an attempt to attach ends with a server that follows the script.
fn refused(script: impl FnOnce(&mut Server) + Send + 'static) -> NbdError {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let server =
        thread::spawn(move || script(&mut Server { stream: theirs, headers: Headers::Simple }));
    let result =
        NbdClient::over(ours.into(), Peer::Daemon, "vol", CONTEXT_ALLOCATION, Box::new(|| false));
    server.join().expect("the server ends");
    result.err().expect("not attached")
}

#[test]
fn what_was_negotiated_is_known() {
    let (client, server) = attached(STRUCTURED, |_| {});
    let expected = Export {
        bytes: BYTES,
        read_only: false,
        block_min: 512,
        payload_max: 32 << 20,
        context: Some(7),
        headers: Headers::Structured,
    };
    assert_eq!(client.export(), expected);
    server.join().expect("the server ends");
    let (client, server) = attached(SIMPLE, |_| {});
    let simple = Export { context: None, headers: Headers::Simple, ..expected };
    assert_eq!(client.export(), simple);
    assert_eq!(client.export().range_max(), 1 << 30);
    server.join().expect("the server ends");
}

#[test]
fn refusals_keep_the_servers_sentence() {
    let go = |kind: u32, words: &'static [u8]| {
        refused(move |server| {
            server.greet();
            loop {
                let (option, _) = server.option();
                server.answer(option, REPLY_ERROR_BIT + 1, &[]);
                if option == OPTION_STRUCTURED_REPLY {
                    break;
                }
            }
            let (option, _) = server.option();
            assert_eq!(option, OPTION_GO);
            server.answer(option, kind, words);
        })
    };
    let unknown = go(REPLY_ERROR_UNKNOWN, b"no volume `vol`\x1b[31m");
    assert_eq!(unknown, NbdError::Unknown("no volume `vol` [31m".to_string()));
    let held = go(REPLY_ERROR_POLICY, b"process 12 holds it");
    assert_eq!(held, NbdError::Refused("process 12 holds it".to_string()));
    let wordless = go(REPLY_ERROR_UNKNOWN, b"");
    assert!(matches!(&wordless, NbdError::Unknown(words) if words.contains("volume list")));
    assert!(matches!(go(REPLY_ERROR_BIT + 7, b""), NbdError::Lost(_)));
}

#[test]
fn what_is_no_nbd_server_is_told() {
    let checks: [&'static [u8]; 6] = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0",
        b"NBDMAGICIHAVEOPT\0\0",
        b"NBDMAGIC",
        b"",
        b"NBDMAGICIHAVEOPT\0\x03\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x08\0\0\0\x01\xff\xff\xff\xff",
    ];
    for bytes in checks {
        let error = refused(move |server| server.write(bytes));
        assert!(matches!(error, NbdError::Lost(_)), "{error:?}");
    }
}

#[test]
fn requests_are_sent_as_the_protocol_draws_them() {
    let (mut client, server) = attached(STRUCTURED, |server| {
        let check = |server: &mut Server, flags, command, offset, length| {
            let seen = server.request();
            let cookie = seen.cookie;
            assert_eq!(seen, Seen { flags, command, cookie, offset, length });
            if command == COMMAND_WRITE {
                assert_eq!(server.read::<512>(), [9; 512]);
            }
            server.chunk(cookie, CHUNK_NONE, true, &[]);
        };
        check(server, 1, 1, 512, 512);
        check(server, 18, 6, 0, 4096);
        check(server, 0, 4, 4096, 8192);
        check(server, 0, 3, 0, 0);
        let goodbye = server.request();
        assert_eq!((goodbye.command, goodbye.length), (COMMAND_DISCONNECT, 0));
    });
    let data = vec![9; 512];
    for command in [
        Command::Write { offset: 512, data, fua: true },
        Command::Zero { offset: 0, length: 4096, no_hole: true, fast: true },
        Command::Trim { offset: 4096, length: 8192 },
        Command::Flush,
    ] {
        assert_eq!(client.call(command), Ok(Outcome::Done));
    }
    client.disconnect().expect("goodbye");
    server.join().expect("the server ends");
}

#[test]
fn structured_read_is_put_together() {
    let (mut client, server) = attached(STRUCTURED, |server| {
        let seen = server.request();
        assert_eq!((seen.command, seen.offset, seen.length), (COMMAND_READ, 8192, 65536));
        let at = |offset: u64| offset.to_be_bytes();
        let tail = vec![5; 40_000];
        server.chunk(seen.cookie, CHUNK_OFFSET_DATA, false, &[&at(8192 + 25_536), &tail]);
        let hole = 25_436u32.to_be_bytes();
        server.chunk(seen.cookie, CHUNK_OFFSET_HOLE, false, &[&at(8192 + 100), &hole]);
        server.chunk(seen.cookie, CHUNK_OFFSET_DATA, false, &[&at(8192), &[3; 100]]);
        server.chunk(seen.cookie, CHUNK_NONE, true, &[]);
    });
    let result = client.call(Command::Read { offset: 8192, length: 65536 });
    let Ok(Outcome::Data(data)) = result else { panic!("{result:?}") };
    assert!(data[..100] == [3; 100]);
    assert!(data[100..25_536].iter().all(|byte| *byte == 0));
    assert!(data[25_536..].iter().all(|byte| *byte == 5) && data.len() == 65536);
    server.join().expect("the server ends");
}

#[test]
fn simple_replies_in_any_order() {
    let (mut client, server) = attached(SIMPLE, |server| {
        let (first, second) = (server.request(), server.request());
        server.simple(second.cookie, 0);
        server.write(&[2; 1024]);
        server.simple(first.cookie, 28);
    });
    let first = client.submit(Command::Read { offset: 0, length: 512 }).expect("sent");
    let second = client.submit(Command::Read { offset: 512, length: 1024 }).expect("sent");
    let reply = client.wait().expect("a reply").expect("in flight");
    assert_eq!((reply.cookie, reply.offset), (second, 512));
    assert_eq!(reply.result, Ok(Outcome::Data(vec![2; 1024])));
    let reply = client.wait().expect("a reply").expect("in flight");
    assert_eq!(reply.cookie, first);
    assert!(matches!(reply.result, Err(NbdError::Request { code: 28, .. })), "{reply:?}");
    assert!(client.wait().expect("nothing is in flight").is_none());
    server.join().expect("the server ends");
}

#[test]
fn errors_of_one_request_leave_the_connection_alive() {
    let (mut client, server) = attached(STRUCTURED, |server| {
        let seen = server.request();
        let words = b"\0\0\0\x1c\0\x06disk 1";
        server.chunk(seen.cookie, CHUNK_ERROR_BIT + 1, true, &[words]);
        let seen = server.request();
        let words = b"\0\0\0\x05\0\0\0\0\0\0\0\0\x10\0";
        server.chunk(seen.cookie, CHUNK_ERROR_OFFSET, false, &[words]);
        server.chunk(seen.cookie, CHUNK_NONE, true, &[]);
        let seen = server.request();
        server.chunk(seen.cookie, CHUNK_NONE, true, &[]);
    });
    let error = client.call(Command::Flush).expect_err("an error");
    assert_eq!(error, NbdError::Request { code: 28, sentence: "disk 1".to_string() });
    let error = client.call(Command::Read { offset: 0, length: 8192 }).expect_err("an error");
    assert_eq!(error, NbdError::Request { code: 5, sentence: error_sentence(5) });
    assert_eq!(client.call(Command::Flush), Ok(Outcome::Done));
    server.join().expect("the server ends");
}

#[test]
fn block_status_is_cut_to_the_question() {
    let (mut client, server) = attached(STRUCTURED, |server| {
        let seen = server.request();
        assert_eq!((seen.command, seen.length), (COMMAND_BLOCK_STATUS, 10_000));
        let runs: Vec<u8> =
            [7u32, 4096, 0, 4096, 3, 65536, 2].iter().flat_map(|word| word.to_be_bytes()).collect();
        server.chunk(seen.cookie, CHUNK_BLOCK_STATUS, true, &[&runs]);
    });
    let result = client.call(Command::Status { offset: 0, length: 10_000 });
    let extent = |length, hole, zero| Extent { length, hole, zero };
    let expected =
        vec![extent(4096, false, false), extent(4096, true, true), extent(1808, false, true)];
    assert_eq!(result, Ok(Outcome::Status(expected)));
    server.join().expect("the server ends");
}

/// What the server sends for the read of 4096 bytes at 0 that is in flight.
type Nonsense = fn(&mut Server, u64);

#[test]
fn nonsense_is_never_taken_for_content() {
    let cases: [(&str, Nonsense); 14] = [
        ("a gap", |server, cookie| {
            server.chunk(cookie, CHUNK_OFFSET_DATA, true, &[&[0; 8], &[1; 100]]);
        }),
        ("nothing at all", |server, cookie| server.chunk(cookie, CHUNK_NONE, true, &[])),
        ("an overlap", |server, cookie| {
            server.chunk(cookie, CHUNK_OFFSET_DATA, false, &[&[0; 8], &[1; 4000]]);
            server.chunk(cookie, CHUNK_OFFSET_DATA, true, &[&100u64.to_be_bytes(), &[1; 96]]);
        }),
        ("too much", |server, cookie| {
            server.chunk(cookie, CHUNK_OFFSET_DATA, true, &[&[0; 8], &[1; 4097]]);
        }),
        ("past the end", |server, cookie| {
            let hole = [&u64::MAX.to_be_bytes()[..], &8u32.to_be_bytes()[..]];
            server.chunk(cookie, CHUNK_OFFSET_HOLE, true, &hole);
        }),
        ("an endless hole", |server, cookie| {
            server.chunk(cookie, CHUNK_OFFSET_HOLE, true, &[&[0; 8], &[0xff; 4]]);
        }),
        ("data without an offset", |server, cookie| {
            server.chunk(cookie, CHUNK_OFFSET_DATA, true, &[&[0; 7], &[0; 1]]);
        }),
        ("another request", |server, cookie| server.chunk(cookie + 1, CHUNK_NONE, true, &[])),
        ("an unknown chunk", |server, cookie| server.chunk(cookie, 9, true, &[])),
        ("a status", |server, cookie| {
            server.chunk(cookie, CHUNK_BLOCK_STATUS, true, &[&7u32.to_be_bytes()]);
        }),
        ("half an error", |server, cookie| {
            server.chunk(cookie, CHUNK_ERROR_BIT + 1, true, &[b"\0\0\0\x05\0\xff"]);
        }),
        ("a simple reply", |server, cookie| server.simple(cookie, 0)),
        ("a wrong magic", |server, _| server.write(b"HTTP/1.1 200 OK\r\n")),
        ("silence", |_, _| {}),
    ];
    for (what, nonsense) in cases {
        let (mut client, server) = attached(STRUCTURED, move |server| {
            let seen = server.request();
            nonsense(server, seen.cookie);
        });
        let result = client.call(Command::Read { offset: 0, length: 4096 });
        assert!(matches!(result, Err(NbdError::Lost(_))), "{what}: {result:?}");
        server.join().expect("the server ends");
    }
}

#[test]
fn lost_connection_stays_lost() {
    let (mut client, server) = attached(STRUCTURED, |server| {
        server.request();
    });
    client.submit(Command::Flush).expect("sent");
    let error = client.wait().expect_err("the server is gone");
    server.join().expect("the server ends");
    assert_eq!(client.wait().expect_err("still gone"), error);
    assert_eq!(client.submit(Command::Flush).expect_err("still gone"), error);
}

#[test]
fn interrupted_client_stops_waiting() {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let server = thread::spawn(move || {
        let mut server = Server { stream: theirs, headers: Headers::Simple };
        server.negotiate(STRUCTURED);
        server
    });
    let stop = Arc::new(AtomicBool::new(false));
    let watched = Arc::clone(&stop);
    let interrupted = Box::new(move || watched.load(Ordering::Relaxed));
    let client = NbdClient::over(ours.into(), Peer::Daemon, "vol", CONTEXT_ALLOCATION, interrupted);
    let mut client = client.expect("attached");
    let _server = server.join().expect("negotiated");
    client.submit(Command::Flush).expect("sent");
    stop.store(true, Ordering::Relaxed);
    assert_eq!(client.wait().expect_err("interrupted"), NbdError::Interrupted);
}

/// A server that answers each request before it reads the next, and a client that has a megabyte
/// to send and one to receive for each of 32: who waits for the other to read first hangs.
#[test]
fn long_requests_both_ways_do_not_lock_up() {
    const LENGTH: u32 = 1 << 20;
    let (mut client, server) = attached(SIMPLE, |server| {
        for _ in 0..32 {
            let seen = server.request();
            if seen.command == COMMAND_WRITE {
                let mut data = vec![0; LENGTH as usize];
                server.stream.read_exact(&mut data).expect("the payload");
                assert!(data.iter().all(|byte| *byte == seen.offset as u8));
                server.simple(seen.cookie, 0);
            } else {
                server.simple(seen.cookie, 0);
                server.write(&vec![seen.offset as u8; LENGTH as usize]);
            }
        }
    });
    for number in 0..32u64 {
        let command = if number % 2 == 0 {
            let data = vec![number as u8; LENGTH as usize];
            Command::Write { offset: number, data, fua: false }
        } else {
            Command::Read { offset: number, length: LENGTH }
        };
        client.submit(command).expect("sent");
    }
    while let Some(reply) = client.wait().expect("a reply") {
        match reply.result.expect("a success") {
            Outcome::Data(data) => assert!(data.iter().all(|byte| *byte == reply.offset as u8)),
            outcome => assert_eq!((outcome, reply.offset % 2), (Outcome::Done, 0)),
        }
    }
    server.join().expect("the server ends");
}

/// An import from a pipe that brought nothing for half a minute was cut off: a part of the last
/// write had not fit into the socket, and the daemon does not wait that long for the rest.
#[test]
fn who_submits_and_then_waits_for_something_else_has_sent_all() {
    const LENGTH: usize = 4 << 20;
    let (mut client, server) = attached(SIMPLE, |server| {
        let patience = Some(Duration::from_secs(10));
        server.stream.set_read_timeout(patience).expect("a timeout");
        let seen = server.request();
        let mut data = vec![0; LENGTH];
        server.stream.read_exact(&mut data).expect("all of the write, while the client is away");
        server.simple(seen.cookie, 0);
    });
    let write = Command::Write { offset: 0, data: vec![7; LENGTH], fua: false };
    transfer::submit(&mut client, write).expect("sent");
    server.join().expect("the server has the write before anybody asks for its reply");
    transfer::settle(&mut client).expect("written");
}

/// Streams of half-sensible replies: whatever comes, the client ends with an error or a result.
#[test]
fn random_replies_never_panic() {
    let mut random = 0x1234_5678_9abc_def1_u64;
    let mut draw = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for round in 0..600 {
        let offer = if round % 2 == 0 { STRUCTURED } else { EXTENDED };
        let mut bytes = Vec::new();
        for _ in 0..1 + draw(6) {
            let magics = [MAGIC_SIMPLE_REPLY, MAGIC_STRUCTURED_REPLY, MAGIC_EXTENDED_REPLY];
            // Mostly what was agreed on.
            let magic = if draw(4) == 0 { magics[draw(3) as usize] } else { offer_magic(offer) };
            bytes.extend(magic.to_be_bytes());
            bytes.extend([0, draw(2) as u8]);
            let kinds = [0, 1, 2, 5 + draw(2) as u16, CHUNK_ERROR_BIT + 1, CHUNK_ERROR_OFFSET, 77];
            bytes.extend(kinds[draw(7) as usize].to_be_bytes());
            bytes.extend((1 + draw(3)).to_be_bytes());
            let length = [0u32, 8, 12, 20, 100, 4104, u32::MAX][draw(7) as usize];
            if magic == MAGIC_EXTENDED_REPLY {
                bytes.extend((draw(8) / 7).to_be_bytes()); // the offset, mostly right
                bytes.extend([0; 4]);
            }
            bytes.extend(length.to_be_bytes());
            for _ in 0..length.min(draw(4200) as u32) {
                bytes.push(if draw(4) == 0 { draw(256) as u8 } else { 0 });
            }
        }
        let (mut client, server) = attached(offer, move |server| {
            // The client may hang up on the first nonsense.
            let _ = server.stream.write_all(&bytes);
        });
        for command in [
            Command::Read { offset: 0, length: 4096 },
            Command::Status { offset: 0, length: 4096 },
            Command::Flush,
        ] {
            let _ = client.submit(command);
        }
        while matches!(client.wait(), Ok(Some(_))) {}
        server.join().expect("the server ends");
    }
}

fn offer_magic(offer: Offer) -> u32 {
    match offer.headers {
        Headers::Simple => MAGIC_SIMPLE_REPLY,
        Headers::Structured => MAGIC_STRUCTURED_REPLY,
        Headers::Extended => MAGIC_EXTENDED_REPLY,
    }
}

#[test]
fn extended_requests_are_sent_as_the_protocol_draws_them() {
    let (mut client, server) = attached(EXTENDED, |server| {
        let check = |server: &mut Server, flags, command, offset, length| {
            let seen = server.request();
            let cookie = seen.cookie;
            assert_eq!(seen, Seen { flags, command, cookie, offset, length });
            if command == COMMAND_WRITE {
                assert_eq!(server.read::<512>(), [9; 512]);
            }
            server.long_chunk((cookie, offset), CHUNK_NONE, true, &[]);
        };
        check(server, 33, 1, 512, 512);
        check(server, 18, 6, 4096, 5 << 40);
        check(server, 0, 4, 4096, 1 << 33);
        check(server, 0, 3, 0, 0);
        let goodbye = server.request();
        assert_eq!((goodbye.flags, goodbye.command, goodbye.length), (0, COMMAND_DISCONNECT, 0));
    });
    assert_eq!(client.export().range_max(), u64::MAX);
    let data = vec![9; 512];
    for command in [
        Command::Write { offset: 512, data, fua: true },
        Command::Zero { offset: 4096, length: 5 << 40, no_hole: true, fast: true },
        Command::Trim { offset: 4096, length: 1 << 33 },
        Command::Flush,
    ] {
        assert_eq!(client.call(command), Ok(Outcome::Done));
    }
    client.disconnect().expect("goodbye");
    server.join().expect("the server ends");
}

#[test]
fn extended_replies_are_understood() {
    let (mut client, server) = attached(EXTENDED, |server| {
        let seen = server.request();
        let of = (seen.cookie, seen.offset);
        server.long_chunk(of, CHUNK_OFFSET_DATA, false, &[&8192u64.to_be_bytes(), &[3; 100]]);
        let hole = 412u32.to_be_bytes();
        server.long_chunk(of, CHUNK_OFFSET_HOLE, true, &[&8292u64.to_be_bytes(), &hole]);
        let seen = server.request();
        assert_eq!((seen.command, seen.length), (COMMAND_BLOCK_STATUS, 1 << 40));
        let words = [5u64 << 32, 3, 1 << 50, 0].map(u64::to_be_bytes).concat();
        let head = [7u32, 2].map(u32::to_be_bytes).concat();
        server.long_chunk((seen.cookie, 0), CHUNK_BLOCK_STATUS_EXTENDED, true, &[&head, &words]);
        let seen = server.request();
        let words = b"\0\0\0\x1c\0\x06disk 1";
        server.long_chunk((seen.cookie, 512), CHUNK_ERROR_BIT + 1, true, &[words]);
        let seen = server.request();
        let words = b"\0\0\0\x05\0\0\0\0\0\0\0\0\x10\0";
        server.long_chunk((seen.cookie, 0), CHUNK_ERROR_OFFSET, true, &[words]);
    });
    let data = [vec![3; 100], vec![0; 412]].concat();
    let result = client.call(Command::Read { offset: 8192, length: 512 });
    assert_eq!(result, Ok(Outcome::Data(data)));
    let extent = |length, hole, zero| Extent { length, hole, zero };
    let expected = vec![extent(5 << 32, true, true), extent((1 << 40) - (5 << 32), false, false)];
    let result = client.call(Command::Status { offset: 0, length: 1 << 40 });
    assert_eq!(result, Ok(Outcome::Status(expected)));
    let result = client.call(Command::Trim { offset: 512, length: 1 << 40 });
    assert_eq!(result, Err(NbdError::Request { code: 28, sentence: "disk 1".to_string() }));
    let result = client.call(Command::Read { offset: 0, length: 8192 });
    assert_eq!(result, Err(NbdError::Request { code: 5, sentence: error_sentence(5) }));
    server.join().expect("the server ends");
}

#[test]
fn extended_nonsense_is_never_taken_for_content() {
    type Script = fn(&mut Server, u64);
    let cases: [(&str, Command, Script); 7] = [
        ("the offset of another request", Command::Flush, |server, cookie| {
            server.long_chunk((cookie, 512), CHUNK_NONE, true, &[]);
        }),
        ("a structured reply", Command::Flush, |server, cookie| {
            server.chunk(cookie, CHUNK_NONE, true, &[]);
        }),
        ("a simple reply", Command::Flush, |server, cookie| server.simple(cookie, 0)),
        ("an endless chunk", Command::Flush, |server, cookie| {
            server.write(&MAGIC_EXTENDED_REPLY.to_be_bytes());
            server.write(&[0, 1, 0x80, 1]);
            server.write(&cookie.to_be_bytes());
            server.write(&[0; 8]);
            server.write(&[0xff; 8]);
        }),
        ("too few runs", Command::Status { offset: 0, length: 4096 }, |server, cookie| {
            let words = [7u32, 2, 0, 4096, 0, 0].map(u32::to_be_bytes).concat();
            server.long_chunk((cookie, 0), CHUNK_BLOCK_STATUS_EXTENDED, true, &[&words]);
        }),
        ("half a run", Command::Status { offset: 0, length: 4096 }, |server, cookie| {
            let words = [7u32, 0, 0, 4096, 0].map(u32::to_be_bytes).concat();
            server.long_chunk((cookie, 0), CHUNK_BLOCK_STATUS_EXTENDED, true, &[&words]);
        }),
        ("an empty run", Command::Status { offset: 0, length: 4096 }, |server, cookie| {
            let words = [7u32, 1, 0, 0, 0, 0].map(u32::to_be_bytes).concat();
            server.long_chunk((cookie, 0), CHUNK_BLOCK_STATUS_EXTENDED, true, &[&words]);
        }),
    ];
    for (what, command, nonsense) in cases {
        let (mut client, server) = attached(EXTENDED, move |server| {
            let seen = server.request();
            nonsense(server, seen.cookie);
        });
        let result = client.call(command);
        assert!(matches!(result, Err(NbdError::Lost(_))), "{what}: {result:?}");
        server.join().expect("the server ends");
    }
}
