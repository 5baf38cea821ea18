//! The client against our own server's machine, over a pair of sockets, with a volume in memory
//! that completes requests in random order.

use super::*;
use crate::dog::transfer;
use front::nbd::{Connection, Effect, Settings};
use proto::{BLOCK_SIZE, BlockState, Buffer, Payload, Time};
use std::thread::{self, JoinHandle};
use volume::{Answer, Completion, Error, Operation, Request, RequestId};

const BYTES: usize = 8 << 20;

/// Marsaglia's xorshift.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// The simplest volume there is.
struct Memory {
    content: Vec<u8>,
    states: Vec<BlockState>,
}

impl Memory {
    fn perform(&mut self, request: Request) -> Result<Completion, Error> {
        let (start, end) = (request.offset as usize, (request.offset + request.length) as usize);
        let blocks = start / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE);
        match request.operation {
            Operation::Read => {
                let buffer = Buffer::copy_of(&self.content[start..end]);
                let payload: Payload = buffer.freeze();
                Ok(Completion::Data(vec![payload.slice(0, end - start)]))
            }
            Operation::Write { buffer, .. } => {
                let skip = start % BLOCK_SIZE;
                let bytes = &buffer.as_slice()[skip..skip + end - start];
                if bytes.first() == Some(&0xee) {
                    return Err(Error::NoSpace);
                }
                self.content[start..end].copy_from_slice(bytes);
                self.states[blocks].fill(BlockState::Data);
                Ok(Completion::Done)
            }
            Operation::Discard { .. } | Operation::WriteZeroes { .. } => {
                self.content[start..end].fill(0);
                // Only whole blocks lose their data.
                let whole = start.div_ceil(BLOCK_SIZE)..end / BLOCK_SIZE;
                if whole.start < whole.end {
                    self.states[whole].fill(BlockState::Zero);
                }
                Ok(Completion::Done)
            }
            Operation::Flush | Operation::Prefetch => Ok(Completion::Done),
            Operation::Status => {
                let extents = self.states[blocks]
                    .iter()
                    .map(|state| volume::Extent { length: BLOCK_SIZE as u64, state: *state });
                Ok(Completion::Status(extents.collect()))
            }
            // The base is a volume of zeros.
            Operation::Difference { .. } => {
                let runs = self.states[blocks].iter().map(|state| volume::Changed {
                    length: BLOCK_SIZE as u64,
                    state: (*state == BlockState::Data).then_some(*state),
                });
                Ok(Completion::Difference(runs.collect()))
            }
        }
    }
}

/// Drives one connection until it closes.
fn serve(mut stream: UnixStream, mut random: Random) {
    let mut memory =
        Memory { content: vec![0; BYTES], states: vec![BlockState::Absent; BYTES / BLOCK_SIZE] };
    let now = Time(0);
    let mut effects = Vec::new();
    let mut requests: Vec<(RequestId, Request)> = Vec::new();
    let mut connection =
        Connection::new(now, Settings { can_multi_conn: true, is_local: false }, &mut effects);
    let mut input = vec![0; proto::limits::NBD_INPUT_BYTES_MAX];
    loop {
        for effect in std::mem::take(&mut effects) {
            match effect {
                Effect::Send(segment) => {
                    stream.write_all(segment.as_slice()).expect("a client that reads");
                }
                Effect::List => {
                    let answer = Answer::Listed(vec!["vol".to_string()]);
                    connection.handle_answer(now, answer, &mut effects);
                }
                Effect::Describe { name } | Effect::Open { name } => {
                    let answer = match name.as_str() {
                        "vol" => Answer::Opened { bytes: BYTES as u64, read_only: false },
                        "held" => Answer::Refused { sentence: "held by me".to_string() },
                        _ => Answer::Unknown { sentence: "no such volume".to_string() },
                    };
                    connection.handle_answer(now, answer, &mut effects);
                }
                Effect::Bases { tags, .. } => {
                    let bases = tags.named.into_iter().filter(|tag| tag == "monday");
                    let base = |tag| volume::Base { tag, layer: proto::LayerId(1) };
                    let answer = Answer::Bases(bases.map(base).collect());
                    connection.handle_answer(now, answer, &mut effects);
                }
                Effect::Request(request) => requests.push((request.id, request)),
                Effect::Close { .. } => return,
            }
        }
        connection.handle_unsent(now, 0, &mut effects);
        if !effects.is_empty() {
            continue;
        }
        stream.set_nonblocking(!requests.is_empty()).expect("a socket");
        let wanted = connection.wants_input().then(|| match connection.payload_target() {
            Some(target) => (true, stream.read(target)),
            None => (false, stream.read(&mut input)),
        });
        match wanted {
            Some((_, Ok(0))) => connection.handle_eof(now, &mut effects),
            Some((true, Ok(length))) => connection.handle_payload(now, length, &mut effects),
            Some((false, Ok(length))) => {
                connection.handle_bytes(now, &input[..length], &mut effects);
            }
            _ => {
                let place = random.below(requests.len());
                let (id, request) = requests.swap_remove(place);
                let result = memory.perform(request);
                stream.set_nonblocking(false).expect("a socket");
                connection.handle_completion(now, id, result, &mut effects);
            }
        }
        stream.set_nonblocking(false).expect("a socket");
    }
}

fn attached(name: &str, seed: u64) -> (Result<NbdClient, NbdError>, JoinHandle<()>) {
    attached_in(name, CONTEXT_ALLOCATION, seed)
}

fn attached_in(
    name: &str,
    context: &str,
    seed: u64,
) -> (Result<NbdClient, NbdError>, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let server = thread::spawn(move || serve(theirs, Random(seed)));
    (NbdClient::over(ours.into(), Peer::Daemon, name, context, Box::new(|| false)), server)
}

#[test]
fn what_differs_is_asked_for_and_understood() {
    let (client, server) = attached_in("vol", "sheepdog:dirty/monday", 1);
    let mut client = client.expect("attached");
    assert_eq!(client.export().headers, Headers::Extended);
    assert!(client.export().context.is_some());
    let data = vec![7; 8192];
    client.call(Command::Write { offset: 4096, data, fua: false }).expect("written");
    let run = |length, dirty| Changed { length, dirty, zero: false };
    let wanted = vec![run(4096, false), run(8192, true), run(4096, false)];
    let outcome = client.call(Command::Difference { offset: 0, length: 16_384 });
    assert_eq!(outcome, Ok(Outcome::Difference(wanted)));
    client.disconnect().expect("goodbye");
    server.join().expect("the server ends");
    let (client, server) = attached_in("vol", "sheepdog:dirty/tuesday", 1);
    let client = client.expect("attached");
    assert_eq!(client.export().context, None);
    client.disconnect().expect("goodbye");
    server.join().expect("the server ends");
}

#[test]
fn our_server_is_understood() {
    let (client, server) = attached("vol", 1);
    let client = client.expect("attached");
    let export = client.export();
    let expected = (BYTES as u64, false, Headers::Extended);
    assert_eq!((export.bytes, export.read_only, export.headers), expected);
    assert!(export.context.is_some() && export.payload_max == 32 << 20);
    client.disconnect().expect("goodbye");
    server.join().expect("the server ends");
}

#[test]
fn our_servers_refusals_arrive_in_words() {
    let (client, server) = attached("held", 1);
    let error = client.err().expect("refused");
    assert!(
        matches!(&error, NbdError::Refused(words) if words.contains("held by me")),
        "{error:?}"
    );
    server.join().expect("the server ends");
    let (client, server) = attached("other", 1);
    let error = client.err().expect("refused");
    assert!(matches!(&error, NbdError::Unknown(words) if words.contains("such")), "{error:?}");
    server.join().expect("the server ends");
}

#[test]
fn failing_write_brings_the_servers_sentence() {
    let (client, server) = attached("vol", 1);
    let mut client = client.expect("attached");
    let data = vec![0xee; 4096];
    let result = client.call(Command::Write { offset: 0, data, fua: false });
    let words = Error::NoSpace.to_string();
    assert!(matches!(result, Err(NbdError::Request { code: 28, sentence }) if sentence == words));
    let result = client.call(Command::Read { offset: BYTES as u64, length: 512 });
    assert!(matches!(result, Err(NbdError::Request { code: 22, .. })), "{result:?}");
    assert_eq!(client.call(Command::Flush), Ok(Outcome::Done));
    client.disconnect().expect("goodbye");
    server.join().expect("the server ends");
}

/// Many requests at once, none overlapping, compared with a plain vector.
#[test]
fn content_and_status_are_as_in_a_model() {
    const SLOT: usize = 256 << 10;
    for seed in 1..=8u64 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ seed);
        let (client, server) = attached("vol", seed);
        let mut client = client.expect("attached");
        let mut model = vec![0u8; BYTES];
        for _ in 0..30 {
            let mut reads = BTreeMap::new();
            for slot in 0..BYTES / SLOT {
                let start = slot * SLOT + 512 * random.below(200);
                let end = (start + 512 * (1 + random.below(200))).min((slot + 1) * SLOT);
                let (offset, length) = (start as u64, (end - start) as u64);
                let command = match random.below(4) {
                    0 => {
                        let data: Vec<u8> = (start..end).map(|_| random.below(200) as u8).collect();
                        model[start..end].copy_from_slice(&data);
                        Command::Write { offset, data, fua: random.below(2) == 0 }
                    }
                    1 => {
                        model[start..end].fill(0);
                        Command::Zero { offset, length, no_hole: false, fast: false }
                    }
                    2 => {
                        model[start..end].fill(0);
                        Command::Trim { offset, length }
                    }
                    _ => {
                        reads.insert(offset, model[start..end].to_vec());
                        Command::Read { offset, length: length as u32 }
                    }
                };
                client.submit(command).expect("sent");
            }
            while let Some(reply) = client.wait().expect("a reply") {
                match reply.result.expect("a success") {
                    Outcome::Data(data) => assert!(reads.remove(&reply.offset) == Some(data)),
                    outcome => assert_eq!(outcome, Outcome::Done),
                }
            }
            assert!(reads.is_empty());
        }
        check_whole(&mut client, &model);
        client.disconnect().expect("goodbye");
        server.join().expect("the server ends");
    }
}

/// The whole volume in order, and every block that is said to be zero is.
fn check_whole(client: &mut NbdClient, model: &[u8]) {
    let whole = transfer::Span { start: 0, end: BYTES as u64 };
    let mut seen = Vec::new();
    transfer::read_in_order(client, &[whole], |offset, data| {
        assert_eq!(offset, seen.len() as u64);
        seen.extend_from_slice(data);
        Ok(())
    })
    .expect("a readable volume");
    assert!(seen == model);
    let mut at = 0;
    for extent in transfer::status(client, whole).expect("a status") {
        let end = at + extent.length as usize;
        if extent.zero {
            assert!(model[at..end].iter().all(|byte| *byte == 0), "{at}..{end} is not zero");
        }
        at = end;
    }
    assert_eq!(at, BYTES);
}
