//! What the fuzz targets and the replay of their corpora run: any bytes at all must leave the
//! server standing, within its limits, and in step with a client that is not confused itself.

pub mod client;
pub mod rig;

use super::{CloseReason, Settings};
use client::{Asked, Outcome, Replies, Style};
use proto::{Duration, crc64, limits};
use rig::Rig;
use volume::Error;

/// Bytes as a client may send them from its first one on. Whatever they are, it must not matter
/// in which pieces they come.
pub fn fuzz_handshake(data: &[u8]) {
    let whole = talk(data, limits::NBD_INPUT_BYTES_MAX, true);
    assert_eq!(whole, talk(data, 1, true), "cutting the input changed the output");
    let late = talk(data, 1 + data.len() % 61, false);
    assert_eq!(whole, late, "answering later changed the output");
}

/// What a client gets for `data`, and how it ends. Replies to requests may overtake each other, so
/// once a volume is served only the bytes are told, without their order.
fn talk(data: &[u8], piece_bytes: usize, at_once: bool) -> (Vec<u8>, Option<CloseReason>) {
    let mut rig = Rig::new(Settings { can_multi_conn: true, is_local: false });
    rig.piece_bytes = piece_bytes;
    rig.at_once = at_once;
    rig.feed(data);
    let mut read = Vec::new();
    loop {
        read.extend(rig.read_all());
        if !rig.questions.is_empty() {
            rig.answer();
        } else if !rig.requests.is_empty() {
            rig.complete(0, None);
        } else if rig.sent.is_empty() {
            break;
        }
        rig.pump();
    }
    if rig.closed.is_none() {
        assert!(rig.socket.is_empty(), "input is left although nothing is waited for");
    }
    let serves = rig.memory.bytes > 0;
    if serves {
        read.sort_unstable();
    }
    (read, rig.closed)
}

/// Steps of a client after the handshake: valid and invalid requests in any order and in any
/// pieces, completions in any order, errors, reading or not, time, and the end.
pub fn fuzz_transmission(data: &[u8]) {
    let mut steps = Steps { rest: data };
    let settings = steps.byte();
    let mut play = Play::new(settings);
    while let Some(step) = steps.next() {
        play.step(step, &mut steps);
        if play.rig.closed.is_some() {
            break;
        }
        play.check();
    }
    play.end();
}

/// Reads decisions out of the fuzzer's bytes; zeros where they end.
struct Steps<'a> {
    rest: &'a [u8],
}

impl Steps<'_> {
    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn number(&mut self) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    fn offset(&mut self, bytes: u64) -> u64 {
        let near = [0, 512, 4096, 3584, bytes - 512, bytes, bytes + 512, bytes / 2];
        let far = [1 << 63, u64::MAX, u64::MAX - 511, (1 << 32) - 512, 1 << 32, 511];
        match self.byte() {
            choice @ 0..=63 => near[usize::from(choice) % near.len()],
            choice @ 64..=95 => far[usize::from(choice) % far.len()],
            choice @ 96..=239 => u64::from(choice) * 512 * u64::from(self.byte()),
            _ => self.number(),
        }
    }

    /// What extended headers can say: now and then more than 32 bits.
    fn long_length(&mut self, bytes: u64) -> u64 {
        let long = [1 << 32, bytes, 1 << 50, 1 << 63, u64::MAX, u64::MAX - 511, (1 << 32) - 512];
        match self.byte() {
            choice @ 0..=127 => long[usize::from(choice) % long.len()],
            _ => self.length().into(),
        }
    }

    fn length(&mut self) -> u32 {
        let max = limits::NBD_PAYLOAD_BYTES_MAX as u32;
        let edges = [0, 1, 511, 512, 513, 4096, max - 512, max, max + 1, max + 512];
        let far = [1 << 31, u32::MAX, u32::MAX - 511, (1 << 31) - 512];
        match self.byte() {
            choice @ 0..=31 => edges[usize::from(choice) % edges.len()],
            choice @ 32..=47 => far[usize::from(choice) % far.len()],
            choice @ 48..=239 => (u32::from(choice) - 47) * 512,
            _ => self.number() as u32,
        }
    }
}

/// A client, its connection, and what it may expect.
struct Play {
    rig: Rig,
    style: Style,
    replies: Replies,
    /// The next request's cookie.
    cookie: u64,
    /// Payload the client still owes for a request.
    owed: u64,
    /// Long reads it may still ask for.
    long_reads: usize,
    /// Whether the client kept to the protocol so far, so that each request gets its reply.
    sane: bool,
}

impl Play {
    fn new(settings: u8) -> Play {
        let flag = |bit: u8| settings & 1 << bit != 0;
        let mut rig = Rig::new(Settings { can_multi_conn: flag(0), is_local: false });
        rig.offers[0].bytes = 2 << 20; // the longest requests are slow, and fit only the huge one
        rig.offers[2].bytes = 1 << 40; // likewise
        let name = ["disk", "fixed", "huge", "disk"][usize::from(settings >> 6)];
        let style = match (flag(1), flag(2)) {
            (false, false) => Style::Simple,
            (true, _) => Style::Structured,
            (false, true) => Style::Extended,
        };
        // Without several connections, three contexts; one of them is of a snapshot that is gone.
        let contexts: &[&str] = match (flag(2), flag(0)) {
            (false, _) => &[],
            (true, true) => &["base:allocation"],
            (true, false) => &["base:allocation", "sheepdog:dirty/monday", "sheepdog:dirty/gone"],
        };
        rig.feed(&client::handshake_with(name, style, contexts));
        rig.read_all();
        rig.piece_bytes =
            [limits::NBD_INPUT_BYTES_MAX, 4096, 29, 1][usize::from(settings >> 3) % 4];
        rig.at_once = flag(5);
        let mut replies = Replies::new(style);
        replies.contexts = contexts.len().max(1);
        Play { rig, style, replies, cookie: 0, owed: 0, long_reads: 1, sane: true }
    }

    fn step(&mut self, step: u8, steps: &mut Steps<'_>) {
        match step % 16 {
            0..=5 => self.ask(steps),
            6 | 7 => self.pay(steps),
            8 | 9 => self.complete(usize::from(steps.byte()), None),
            10 => self.fail(steps),
            11 => {
                let bytes = 1 << (steps.byte() % 27);
                self.read(bytes);
            }
            12 => {
                let span = 1 << (steps.byte() % 17);
                self.rig.pass(Duration::from_millis(span));
            }
            13 => {
                let bytes =
                    steps.offset(self.rig.memory.bytes) % limits::VOLUME_BYTES_MAX / 512 * 512;
                self.resize(bytes);
            }
            14 => self.babble(steps),
            _ => self.leave(steps.byte()),
        }
        self.rig.pump();
        if self.rig.at_once {
            self.read(usize::MAX); // the connection was told so already
        }
    }

    /// One request, without its payload.
    fn ask(&mut self, steps: &mut Steps<'_>) {
        if self.owed > 128 << 10 {
            return; // paying it here would be all the fuzzer's time
        }
        self.pay_bytes(self.owed as usize);
        let choice = steps.byte();
        let flags = match choice >> 3 {
            0..=15 => 0,
            16..=23 => 1,
            24..=27 => 1 << (steps.byte() % 6),
            _ => steps.number() as u16,
        };
        let command = match choice % 8 {
            2 => u16::from(steps.byte()), // seldom a goodbye, often something unknown
            known => u16::from(known),
        };
        let offset = steps.offset(self.rig.memory.bytes);
        let length = match self.style {
            Style::Simple | Style::Structured => steps.length().into(),
            Style::Extended => steps.long_length(self.rig.memory.bytes),
        };
        let mut asked = Asked { flags, command, offset, length };
        if self.style == Style::Extended && command == 1 && choice >> 3 < 28 {
            asked.flags |= 32; // seldom forgotten
        }
        if asked.length > 1 << 20 && command == 0 {
            if self.long_reads == 0 {
                return; // more of them are slow and nothing new
            }
            self.long_reads -= 1;
        }
        self.cookie += 1;
        if command == 2 {
            self.sane = false; // nothing after it is answered
        } else {
            self.replies.open.insert(self.cookie, asked);
        }
        let pays = match self.style {
            Style::Simple | Style::Structured => command == 1,
            Style::Extended => asked.flags & 32 != 0,
        };
        self.owed = if pays { asked.length } else { 0 };
        self.rig.feed(&match self.style {
            Style::Simple | Style::Structured => asked.bytes(self.cookie),
            Style::Extended => asked.extended_bytes(self.cookie),
        });
    }

    /// Some of the payload that is owed.
    fn pay(&mut self, steps: &mut Steps<'_>) {
        let bytes = match steps.byte() {
            choice @ 0..=127 => usize::from(choice) + 1,
            choice => (usize::from(choice) - 127) * 4096,
        };
        self.pay_bytes((bytes as u64).min(self.owed) as usize);
    }

    fn pay_bytes(&mut self, bytes: usize) {
        if bytes > 0 {
            self.owed -= bytes as u64;
            let piece_bytes = self.rig.piece_bytes;
            self.rig.piece_bytes = piece_bytes.max(bytes / 64);
            self.rig.feed(&vec![self.cookie as u8; bytes]);
            self.rig.piece_bytes = piece_bytes;
        }
    }

    fn complete(&mut self, index: usize, error: Option<Error>) {
        if !self.rig.requests.is_empty() {
            self.rig.complete(index % self.rig.requests.len(), error);
        }
    }

    fn fail(&mut self, steps: &mut Steps<'_>) {
        let error = match steps.byte() % 9 {
            0 => Error::OutOfRange,
            1 => Error::Misaligned,
            2 => Error::NoSpace,
            3 => Error::ReadOnly,
            4 => Error::Corrupt { offset: steps.offset(self.rig.memory.bytes) },
            5 => Error::Fenced,
            6 => Error::NotFast,
            7 => Error::TooLong,
            _ => Error::Io("the disk has failed".repeat(usize::from(steps.byte()) * 2)),
        };
        self.complete(usize::from(steps.byte()), Some(error));
    }

    /// The volume has another size; requests that are under way were for the old one.
    fn resize(&mut self, bytes: u64) {
        self.rig.memory.shrank = true;
        self.rig.memory.bytes = bytes.max(4096);
        self.rig.connection.handle_resized(bytes.max(4096));
    }

    /// Bytes that are no request, or nobody knows of which.
    fn babble(&mut self, steps: &mut Steps<'_>) {
        let count = usize::from(steps.byte());
        let bytes: Vec<u8> = (0..count).map(|_| steps.byte()).collect();
        if count > 0 {
            self.sane = false;
            self.rig.feed(&bytes);
        }
    }

    fn leave(&mut self, choice: u8) {
        match choice {
            0..=15 => self.rig.act(|connection, now, effects| connection.handle_eof(now, effects)),
            16..=31 => {
                self.sane = false;
                self.rig.act(|connection, now, effects| connection.handle_stop(now, effects));
            }
            _ => {}
        }
    }

    /// The client reads, and believes what it reads only if it makes sense.
    fn read(&mut self, bytes: usize) {
        let read = self.rig.read(bytes);
        if self.sane {
            for (_, outcome) in self.replies.take(&read) {
                if let Outcome::Data(data) = outcome
                    && !data.is_empty()
                {
                    let brought = self.rig.brought.pop_front();
                    assert_eq!(brought, Some(crc64(&data)), "not what the volume brought");
                }
            }
        }
    }

    fn check(&mut self) {
        let slack = 1 << 20; // words of replies, and edges of blocks
        assert!(self.rig.held_bytes() <= limits::NBD_BYTES_PER_CONNECTION_MAX + slack);
        assert!(self.rig.requests.len() <= limits::NBD_REQUESTS_PER_CONNECTION_MAX);
    }

    /// Everything is completed and read, everything owed is paid; then nothing may be missing.
    fn end(mut self) {
        if self.sane && self.owed <= 128 << 10 && self.rig.closed.is_none() {
            self.pay_bytes(self.owed as usize);
        }
        while self.rig.closed.is_none()
            && !(self.rig.requests.is_empty() && self.rig.sent.is_empty())
        {
            self.read(usize::MAX);
            self.complete(0, None);
            self.rig.pump();
        }
        if self.sane && self.owed == 0 && self.rig.closed.is_none() {
            assert!(self.replies.open.is_empty(), "without a reply: {:?}", self.replies.open);
            assert!(!self.replies.is_inside(), "half a reply");
        }
        if self.rig.closed.is_none() {
            self.rig.pass(Duration::from_millis(limits::NBD_REQUEST_MS_MAX));
        }
        if self.rig.closed.is_none() {
            self.rig.act(|connection, now, effects| connection.handle_eof(now, effects));
        }
        assert!(self.rig.closed.is_some() && self.rig.connection.is_closed());
        self.rig.now = self.rig.now + Duration::from_secs(3600);
        self.rig.act(|connection, now, effects| connection.handle_deadline(now, effects));
        self.rig.act(|connection, now, effects| connection.handle_bytes(now, &[0; 64], effects));
    }
}
