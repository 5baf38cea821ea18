//! An NBD client: one connection, many requests in flight, one thread. `dog` speaks to the daemon
//! with it, and the daemon to the sources of its volumes.
//!
//! [`NbdClient::submit`] sends a request and [`NbdClient::wait`] brings the next reply, in
//! whatever order they come; both only ever block in `poll`, so that a peer that wants to be read
//! before it reads on cannot lock the two up. The peer's bytes are checked before they are used:
//! lengths against what was asked for, and every byte of a read must have been sent.

mod handshake;
mod peer;
mod stream;
mod wire;

pub use peer::Peer;
pub use stream::Stream;
pub use wire::CONTEXT_ALLOCATION;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, IoSlice, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};
use wire::*;

/// Whether somebody wants the work to end.
pub type Interrupted = Box<dyn Fn() -> bool + Send>;

/// How often a waiting client looks whether it was interrupted.
const INTERRUPT_CHECK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// What one read of the socket takes at most when no payload is expected.
const INPUT_BYTES: usize = 64 << 10;
/// Payload shorter than this is copied out of the input buffer instead of read in place.
const DIRECT_READ_MIN: usize = 16 << 10;
/// How many pieces one system call sends at most.
const SEND_PIECES_MAX: usize = 64;
/// What a request of 32 bits zeroes, discards or asks about at most, in bytes.
const RANGE_BYTES_MAX: u64 = 1 << 30;
/// Longest chunk that is no data: an error's message, or runs of block status.
const SMALL_CHUNK_BYTES_MAX: usize = 1 << 20;

/// What the server said about the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Export {
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Offsets and lengths must be multiples of this many bytes.
    pub block_min: u32,
    /// Longest read or write in bytes.
    pub payload_max: u32,
    /// Whether block status is known, and the number of its context.
    pub context: Option<u32>,
    /// How requests and replies are headed.
    pub headers: Headers,
}

impl Export {
    /// How much one request may zero, discard or ask the status of, in bytes.
    pub fn range_max(&self) -> u64 {
        match self.headers {
            Headers::Simple | Headers::Structured => RANGE_BYTES_MAX,
            Headers::Extended => u64::MAX,
        }
    }
}

/// How requests and replies are headed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Headers {
    /// Replies have no shape of their own.
    Simple,
    /// Structured replies.
    Structured,
    /// Extended headers, with lengths of 64 bits.
    Extended,
}

/// One request. Offsets and lengths are bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Bring the content.
    Read {
        /// Where.
        offset: u64,
        /// How much.
        length: u32,
    },
    /// Replace the content.
    Write {
        /// Where.
        offset: u64,
        /// With what.
        data: Vec<u8>,
        /// Done only when stable.
        fua: bool,
    },
    /// Make it read as zeros.
    Zero {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// Keep the space.
        no_hole: bool,
        /// Fail instead of being slow.
        fast: bool,
    },
    /// The content is not needed any more.
    Trim {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// Make everything completed stable.
    Flush,
    /// What is data and what is not.
    Status {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// What differs from a snapshot; only after [`NbdClient::connect_to_compare`].
    Difference {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
    },
}

/// What a request brought.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing to tell.
    Done,
    /// The content, as long as asked for.
    Data(Vec<u8>),
    /// Runs, in order; at least one, covering a part from the start of what was asked for.
    Status(Vec<Extent>),
    /// Likewise.
    Difference(Vec<Changed>),
}

/// A run of bytes of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Extent {
    /// How many, never 0.
    pub length: u64,
    /// Whether they take space.
    pub hole: bool,
    /// Whether they read as zeros.
    pub zero: bool,
}

/// A run of bytes that all may differ from a snapshot, or do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Changed {
    /// How many, never 0.
    pub length: u64,
    /// Whether they may differ.
    pub dirty: bool,
    /// Whether they do, and read as zeros now.
    pub zero: bool,
}

/// The end of a request.
#[derive(Debug)]
pub struct Reply {
    /// What [`NbdClient::submit`] returned.
    pub cookie: u64,
    /// The request's offset, 0 for a flush.
    pub offset: u64,
    /// How long it took since it was submitted.
    pub elapsed: Duration,
    /// How it ended.
    pub result: Result<Outcome, NbdError>,
}

/// Why something did not happen. Each prints as one sentence.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NbdError {
    /// Nobody listens, or we may not connect.
    #[error("{0}")]
    Connect(String),
    /// No volume has this name.
    #[error("{0}")]
    Unknown(String),
    /// The server will not give us the volume.
    #[error("{0}")]
    Refused(String),
    /// One request failed; the connection goes on.
    #[error("{sentence}")]
    Request {
        /// NBD's number for the error: 5 for EIO, 28 for ENOSPC, ...
        code: u32,
        /// In words.
        sentence: String,
    },
    /// The connection ended or is of no use any more. What was in flight may have happened.
    #[error("{0}")]
    Lost(String),
    /// Somebody pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// A request that waits for its reply.
#[derive(Debug)]
struct Pending {
    command: u16,
    offset: u64,
    length: u64,
    submitted: Instant,
    /// A read's content as it arrives.
    data: Vec<u8>,
    /// Which parts of it have arrived.
    arrived: Vec<(usize, usize)>,
    /// Runs of block status, with their flags.
    extents: Vec<(u64, u64)>,
    /// Whether the flags are about what differs.
    compares: bool,
    error: Option<NbdError>,
}

/// What the next bytes of the socket are.
#[derive(Debug)]
enum Expected {
    /// The head of a reply or chunk.
    Head,
    /// Content of a read: `left` bytes for `at .. at + left` of its data.
    Payload { cookie: u64, at: usize, left: usize, last: bool },
}

/// One attached connection.
pub struct NbdClient {
    stream: Stream,
    peer: Peer,
    export: Export,
    interrupted: Interrupted,
    /// How long the server may send nothing while something is asked of it.
    patience: Option<Duration>,
    /// When it last sent something, or began to owe something.
    heard_at: Instant,
    next_cookie: u64,
    pending: BTreeMap<u64, Pending>,
    replies: VecDeque<Reply>,
    /// What the socket has not taken yet; of the first piece, `sent` bytes are gone.
    output: VecDeque<Vec<u8>>,
    sent: usize,
    /// What was read but not understood yet: `input[used..filled]`.
    input: Vec<u8>,
    used: usize,
    filled: usize,
    expected: Expected,
    /// Set by the first failure of the connection itself; every later call repeats it.
    lost: Option<NbdError>,
}

impl NbdClient {
    /// Connects to the daemon's NBD socket and attaches the volume.
    pub fn connect(
        socket: &Path,
        name: &str,
        interrupted: Interrupted,
    ) -> Result<NbdClient, NbdError> {
        NbdClient::connect_in(socket, name, CONTEXT_ALLOCATION, interrupted)
    }

    /// The same, to compare with a snapshot. [`Export::context`] tells whether that is possible.
    pub fn connect_to_compare(
        socket: &Path,
        name: &str,
        tag: &str,
        interrupted: Interrupted,
    ) -> Result<NbdClient, NbdError> {
        NbdClient::connect_in(socket, name, &format!("{CONTEXT_DIRTY}{tag}"), interrupted)
    }

    fn connect_in(
        socket: &Path,
        name: &str,
        context: &str,
        interrupted: Interrupted,
    ) -> Result<NbdClient, NbdError> {
        let (sender, connected) = mpsc::channel();
        let path = socket.to_path_buf();
        // A daemon that hangs accepts nobody, and then connecting blocks without a deadline.
        thread::spawn(move || sender.send(UnixStream::connect(path)));
        let stream = connected
            .recv_timeout(Peer::Daemon.patience())
            .map_err(|_| NbdError::Connect(Peer::Daemon.hanging()))?
            .map_err(|error| connect_error(socket, &error))?;
        NbdClient::over(stream.into(), Peer::Daemon, name, context, interrupted)
    }

    /// Attaches the volume over a connected socket, with block status in this context.
    pub fn over(
        mut stream: Stream,
        peer: Peer,
        name: &str,
        context: &str,
        interrupted: Interrupted,
    ) -> Result<NbdClient, NbdError> {
        let export = handshake::attach(&mut stream, peer, name, context)?;
        stream.set_nonblocking(true).map_err(|error| NbdError::Lost(peer.broken(&error)))?;
        Ok(NbdClient {
            stream,
            peer,
            export,
            interrupted,
            patience: peer.silence(),
            heard_at: Instant::now(),
            next_cookie: 1,
            pending: BTreeMap::new(),
            replies: VecDeque::new(),
            output: VecDeque::new(),
            sent: 0,
            input: Vec::new(),
            used: 0,
            filled: 0,
            expected: Expected::Head,
            lost: None,
        })
    }

    /// The volume.
    pub fn export(&self) -> Export {
        self.export
    }

    /// How many requests have no reply yet, or one that was not waited for.
    pub fn in_flight(&self) -> usize {
        self.pending.len() + self.replies.len()
    }

    /// The process at the other end, where the system tells.
    pub fn peer_process(&self) -> Option<u32> {
        self.stream.peer_process()
    }

    /// Sends as much of a request as the socket takes, and the rest when [`NbdClient::wait`] or
    /// [`NbdClient::push`] is called; its reply comes out of the former.
    pub fn submit(&mut self, command: Command) -> Result<u64, NbdError> {
        if let Some(error) = &self.lost {
            return Err(error.clone());
        }
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let compares = matches!(command, Command::Difference { .. });
        let (number, flags, offset, length, data) = parts(command);
        let head = self.head(number, flags, cookie, offset, length);
        self.output.push_back(head);
        if !data.is_empty() {
            self.output.push_back(data);
        }
        if self.pending.is_empty() {
            self.heard_at = Instant::now();
        }
        let room = if number == COMMAND_READ { length as usize } else { 0 };
        let pending = Pending {
            command: number,
            offset,
            length,
            submitted: Instant::now(),
            data: vec![0; room],
            arrived: Vec::new(),
            extents: Vec::new(),
            compares,
            error: None,
        };
        self.pending.insert(cookie, pending);
        self.send()?;
        Ok(cookie)
    }

    /// The next reply; nothing when no request is in flight.
    pub fn wait(&mut self) -> Result<Option<Reply>, NbdError> {
        loop {
            if let Some(reply) = self.replies.pop_front() {
                return Ok(Some(reply));
            }
            if let Some(error) = &self.lost {
                return Err(error.clone());
            }
            if self.pending.is_empty() {
                return Ok(None);
            }
            if (self.interrupted)() {
                return Err(NbdError::Interrupted);
            }
            self.advance()?;
        }
    }

    /// Waits until all that was submitted has been sent. The server waits for the rest of a request
    /// only so long, so who may not come back for a while says this first.
    pub fn push(&mut self) -> Result<(), NbdError> {
        while !self.output.is_empty() {
            if let Some(error) = &self.lost {
                return Err(error.clone());
            }
            if (self.interrupted)() {
                return Err(NbdError::Interrupted);
            }
            self.advance()?;
        }
        Ok(())
    }

    /// Sends and receives what can be at once; if that is nothing, waits until something can be.
    fn advance(&mut self) -> Result<(), NbdError> {
        let sent = self.send()?;
        if self.receive()? {
            self.heard_at = Instant::now();
        } else if !sent {
            if self.patience.is_some_and(|patience| self.heard_at.elapsed() > patience) {
                let error = NbdError::Lost(self.peer.hanging());
                self.lost = Some(error.clone());
                return Err(error);
            }
            self.sleep()?;
        }
        Ok(())
    }

    /// One request and its reply. Only while none else is in flight.
    pub fn call(&mut self, command: Command) -> Result<Outcome, NbdError> {
        assert_eq!(self.in_flight(), 0, "call needs the connection for itself");
        self.submit(command)?;
        let reply = self.wait()?.expect("one request is in flight");
        reply.result
    }

    /// Says goodbye and waits until the server has closed the connection, so that the volume is
    /// free when this returns. Replies still in flight are dropped. A connection that is lost is
    /// gone already.
    pub fn disconnect(mut self) -> Result<(), NbdError> {
        if self.lost.is_some() {
            // There is nobody to say it to, and who lost it was told why.
            return Ok(());
        }
        let (number, cookie) = (COMMAND_DISCONNECT, self.next_cookie);
        let head = self.head(number, 0, cookie, 0, 0);
        self.output.push_back(head);
        let peer = self.peer;
        let lost = |error| NbdError::Lost(peer.broken(&error));
        self.stream.set_nonblocking(false).map_err(lost)?;
        self.stream.set_timeouts(peer.settle_patience()).map_err(lost)?;
        self.send()?;
        let mut rest = [0; 4096];
        while self.stream.read(&mut rest).is_ok_and(|length| length > 0) {}
        Ok(())
    }

    /// The head of a request.
    ///
    /// # Panics
    /// If it is longer than [`Export::range_max`] or the payload may be.
    fn head(&self, command: u16, flags: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
        let extended = self.export.headers == Headers::Extended;
        let mut head = Vec::with_capacity(32);
        let carries = if command == COMMAND_WRITE { COMMAND_FLAG_PAYLOAD_LENGTH } else { 0 };
        let (magic, flags) = match extended {
            true => (MAGIC_EXTENDED_REQUEST, flags | carries),
            false => (MAGIC_REQUEST, flags),
        };
        head.extend(magic.to_be_bytes());
        head.extend(flags.to_be_bytes());
        head.extend(command.to_be_bytes());
        head.extend(cookie.to_be_bytes());
        head.extend(offset.to_be_bytes());
        if extended {
            head.extend(length.to_be_bytes());
        } else {
            let length = u32::try_from(length).expect("callers keep to the range's limit");
            head.extend(length.to_be_bytes());
        }
        head
    }

    /// Sends what the socket takes; whether it took anything.
    fn send(&mut self) -> Result<bool, NbdError> {
        let mut progress = false;
        while !self.output.is_empty() {
            let mut pieces = Vec::with_capacity(self.output.len().min(SEND_PIECES_MAX));
            for (place, piece) in self.output.iter().take(SEND_PIECES_MAX).enumerate() {
                let skip = if place == 0 { self.sent } else { 0 };
                pieces.push(IoSlice::new(&piece[skip..]));
            }
            match self.stream.write_vectored(&pieces) {
                Ok(0) => return Err(self.lose(&format!("{} closed the connection", self.peer))),
                Ok(taken) => {
                    progress = true;
                    self.sent += taken;
                    while self.output.front().is_some_and(|piece| piece.len() <= self.sent) {
                        self.sent -= self.output.pop_front().map_or(0, |piece| piece.len());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.lose_io(&error)),
            }
        }
        Ok(progress)
    }

    /// Reads once and takes apart what came; whether anything came.
    fn receive(&mut self) -> Result<bool, NbdError> {
        let buffered = self.filled - self.used;
        let direct = match &self.expected {
            Expected::Payload { cookie, at, left, .. }
                if buffered == 0 && *left >= DIRECT_READ_MIN =>
            {
                let (cookie, at, left) = (*cookie, *at, *left);
                let pending = self.pending.get_mut(&cookie).expect("checked with the chunk's head");
                Some(self.stream.read(&mut pending.data[at..at + left]))
            }
            _ => None,
        };
        let in_place = direct.is_some();
        let result = direct.unwrap_or_else(|| {
            self.input.copy_within(self.used..self.filled, 0);
            self.filled -= self.used;
            self.used = 0;
            if self.input.len() < self.filled + INPUT_BYTES {
                self.input.resize(self.filled + INPUT_BYTES, 0);
            }
            let result = self.stream.read(&mut self.input[self.filled..]);
            self.filled += *result.as_ref().unwrap_or(&0);
            result
        });
        match result {
            Ok(0) => Err(self.lose(&format!("{} closed the connection", self.peer))),
            Ok(length) if in_place => {
                self.payload_arrived(length);
                Ok(true)
            }
            Ok(_) => {
                let parsed = self.parse();
                parsed
                    .map_err(|what| self.lose(&format!("{} sent nonsense ({what})", self.peer)))?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(self.lose_io(&error)),
        }
    }

    /// Waits until the socket can be used or an interrupt is to be looked for.
    fn sleep(&mut self) -> Result<(), NbdError> {
        let mut flags = PollFlags::IN;
        if !self.output.is_empty() {
            flags |= PollFlags::OUT;
        }
        match poll(
            &mut [PollFd::from_borrowed_fd(self.stream.as_fd(), flags)],
            Some(&INTERRUPT_CHECK),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(self.lose_io(&error.into())),
        }
    }

    /// Takes apart the input, as far as it is complete.
    fn parse(&mut self) -> Result<(), &'static str> {
        loop {
            match self.expected {
                Expected::Payload { cookie, at, left, .. } => {
                    let take = left.min(self.filled - self.used);
                    if take == 0 {
                        return Ok(());
                    }
                    let pending = self.pending.get_mut(&cookie).ok_or("a chunk of no request")?;
                    pending.data[at..at + take]
                        .copy_from_slice(&self.input[self.used..self.used + take]);
                    self.used += take;
                    self.payload_arrived(take);
                }
                Expected::Head => {
                    if !self.parse_head()? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// `length` more bytes of the expected payload are in place.
    fn payload_arrived(&mut self, length: usize) {
        let Expected::Payload { cookie, at, left, last } = &mut self.expected else {
            unreachable!("only called while payload is expected")
        };
        *at += length;
        *left -= length;
        if *left == 0 {
            let (cookie, last) = (*cookie, *last);
            self.expected = Expected::Head;
            if last {
                self.complete(cookie);
            }
        }
    }

    /// One reply's or chunk's head, with its body unless that is data; whether it was complete.
    fn parse_head(&mut self) -> Result<bool, &'static str> {
        let input = &self.input[self.used..self.filled];
        let Some(magic) = be32(input, 0) else { return Ok(false) };
        match magic {
            MAGIC_SIMPLE_REPLY if self.export.headers != Headers::Extended => {
                let (Some(code), Some(cookie)) = (be32(input, 4), be64(input, 8)) else {
                    return Ok(false);
                };
                self.used += 16;
                self.simple_reply(cookie, code)?;
                Ok(true)
            }
            MAGIC_STRUCTURED_REPLY if self.export.headers == Headers::Structured => {
                let Some(length) = be32(input, 16) else { return Ok(false) };
                self.parse_chunk(20, None, u64::from(length))
            }
            MAGIC_EXTENDED_REPLY if self.export.headers == Headers::Extended => {
                let Some(length) = be64(input, 24) else { return Ok(false) };
                self.parse_chunk(32, be64(input, 16), length)
            }
            _ => Err("a reply with a wrong magic"),
        }
    }

    fn simple_reply(&mut self, cookie: u64, code: u32) -> Result<(), &'static str> {
        let pending = self.pending.get_mut(&cookie).ok_or("a reply to no request")?;
        if code != 0 {
            pending.error =
                Some(NbdError::Request { code, sentence: self.peer.request_failed(code) });
        } else if pending.command == COMMAND_READ {
            if self.export.headers == Headers::Structured {
                return Err("a simple reply to a read");
            }
            let left = pending.data.len();
            pending.arrived.push((0, left));
            self.expected = Expected::Payload { cookie, at: 0, left, last: true };
            return Ok(());
        } else if pending.command == COMMAND_BLOCK_STATUS {
            return Err("a simple reply to a question of block status");
        }
        self.complete(cookie);
        Ok(())
    }

    /// A chunk with a head of so many bytes, of which the offset, where there is one, and the
    /// length are known.
    fn parse_chunk(
        &mut self,
        head: usize,
        offset: Option<u64>,
        length: u64,
    ) -> Result<bool, &'static str> {
        let input = &self.input[self.used..self.filled];
        let (flags, kind) = (be16(input, 4).unwrap_or(0), be16(input, 6).unwrap_or(0));
        let cookie = be64(input, 8).unwrap_or(0);
        let length = usize::try_from(length).map_err(|_| "a chunk that is too long")?;
        let last = flags & CHUNK_FLAG_DONE != 0;
        let pending = self.pending.get_mut(&cookie).ok_or("a chunk of no request")?;
        if offset.is_some_and(|offset| offset != pending.offset) {
            return Err("a chunk with the offset of another request");
        }
        if kind == CHUNK_OFFSET_DATA {
            let Some(offset) = be64(input, head) else { return Ok(false) };
            let left = length.checked_sub(8).ok_or("data without an offset")?;
            let at = pending.arrives(offset, left)?;
            self.used += head + 8;
            self.expected = Expected::Payload { cookie, at, left, last };
            return Ok(true);
        }
        if length > SMALL_CHUNK_BYTES_MAX {
            return Err("a chunk that is too long");
        }
        let Some(body) = input.get(head..head + length) else { return Ok(false) };
        match kind {
            CHUNK_NONE if length == 0 && last => {}
            CHUNK_OFFSET_HOLE if length == 12 => {
                let hole = be32(body, 8).unwrap_or(0) as usize;
                pending.arrives(be64(body, 0).unwrap_or(0), hole)?;
            }
            CHUNK_BLOCK_STATUS if pending.command == COMMAND_BLOCK_STATUS => {
                if be32(body, 0) != self.export.context {
                    return Err("a block status of another context");
                }
                pending.extents = parse_extents(&body[4..], pending.length)?;
            }
            CHUNK_BLOCK_STATUS_EXTENDED
                if pending.command == COMMAND_BLOCK_STATUS && offset.is_some() =>
            {
                if be32(body, 0) != self.export.context {
                    return Err("a block status of another context");
                }
                pending.extents = parse_extended_extents(body, pending.length)?;
            }
            kind if kind & CHUNK_ERROR_BIT != 0 => {
                pending.error = Some(parse_error(self.peer, kind, body)?);
            }
            _ => return Err("a chunk of an unknown kind"),
        }
        self.used += head + length;
        if last {
            self.complete(cookie);
        }
        Ok(true)
    }

    /// Moves a request that is through to the replies.
    fn complete(&mut self, cookie: u64) {
        let Some(mut pending) = self.pending.remove(&cookie) else { return };
        let peer = self.peer;
        let nonsense = |what: &str| Err(NbdError::Lost(peer.sent_nonsense(what)));
        let result = match (pending.error.take(), pending.command) {
            (Some(error), _) => Err(error),
            (None, COMMAND_READ) if !pending.is_whole() => nonsense("a read with gaps"),
            (None, COMMAND_READ) => Ok(Outcome::Data(pending.data)),
            (None, COMMAND_BLOCK_STATUS) if pending.extents.is_empty() => {
                nonsense("block status of nothing")
            }
            (None, COMMAND_BLOCK_STATUS) => Ok(pending.status()),
            (None, _) => Ok(Outcome::Done),
        };
        self.replies.push_back(Reply {
            cookie,
            offset: pending.offset,
            elapsed: pending.submitted.elapsed(),
            result,
        });
    }

    fn lose(&mut self, what: &str) -> NbdError {
        let error = NbdError::Lost(self.peer.ended(what));
        self.lost = Some(error.clone());
        error
    }

    fn lose_io(&mut self, error: &io::Error) -> NbdError {
        self.lose(&error.to_string())
    }
}

impl Pending {
    /// Content of a read is coming: where in its data it belongs.
    fn arrives(&mut self, offset: u64, length: usize) -> Result<usize, &'static str> {
        if self.command != COMMAND_READ {
            return Err("content for a request that is no read");
        }
        let at = offset.checked_sub(self.offset).ok_or("content before what was asked for")?;
        let at = usize::try_from(at).map_err(|_| "content past what was asked for")?;
        match at.checked_add(length) {
            Some(end) if length > 0 && end <= self.data.len() => {
                self.arrived.push((at, end));
                Ok(at)
            }
            _ => Err("content past what was asked for"),
        }
    }

    /// What the flags of a block status mean.
    fn status(&self) -> Outcome {
        if self.compares {
            let changed = |&(length, flags): &(u64, u64)| {
                let dirty = flags & STATUS_DIRTY != 0;
                Changed { length, dirty, zero: dirty && flags & STATUS_DIRTY_ZERO != 0 }
            };
            return Outcome::Difference(self.extents.iter().map(changed).collect());
        }
        let extent = |&(length, flags): &(u64, u64)| {
            let hole = flags & STATUS_HOLE != 0;
            Extent { length, hole, zero: flags & STATUS_ZERO != 0 }
        };
        Outcome::Status(self.extents.iter().map(extent).collect())
    }

    /// Whether each byte of a read arrived exactly once.
    fn is_whole(&mut self) -> bool {
        self.arrived.sort_unstable();
        let mut reached = 0;
        for (start, end) in &self.arrived {
            if *start != reached {
                return false;
            }
            reached = *end;
        }
        reached == self.data.len()
    }
}

/// Command number, flags, offset, length and payload of a command.
fn parts(command: Command) -> (u16, u16, u64, u64, Vec<u8>) {
    match command {
        Command::Read { offset, length } => (COMMAND_READ, 0, offset, length.into(), Vec::new()),
        Command::Write { offset, data, fua } => {
            let flags = if fua { COMMAND_FLAG_FUA } else { 0 };
            (COMMAND_WRITE, flags, offset, data.len() as u64, data)
        }
        Command::Zero { offset, length, no_hole, fast } => {
            let no_hole = if no_hole { COMMAND_FLAG_NO_HOLE } else { 0 };
            let fast = if fast { COMMAND_FLAG_FAST_ZERO } else { 0 };
            (COMMAND_WRITE_ZEROES, no_hole | fast, offset, length, Vec::new())
        }
        Command::Trim { offset, length } => (COMMAND_TRIM, 0, offset, length, Vec::new()),
        Command::Flush => (COMMAND_FLUSH, 0, 0, 0, Vec::new()),
        Command::Status { offset, length } | Command::Difference { offset, length } => {
            (COMMAND_BLOCK_STATUS, 0, offset, length, Vec::new())
        }
    }
}

/// Runs of block status, with their flags.
fn parse_extents(body: &[u8], asked: u64) -> Result<Vec<(u64, u64)>, &'static str> {
    if !body.len().is_multiple_of(8) {
        return Err("a block status with half a run");
    }
    let runs = body.chunks_exact(8).map(|run| {
        let (length, flags) = (be32(run, 0).unwrap_or(0), be32(run, 4).unwrap_or(0));
        (u64::from(length), u64::from(flags))
    });
    cut_extents(runs, asked)
}

/// Runs of block status with extended headers, behind their context and how many they are, which
/// need not be told.
fn parse_extended_extents(body: &[u8], asked: u64) -> Result<Vec<(u64, u64)>, &'static str> {
    let (Some(count), Some(runs)) = (be32(body, 4), body.get(8..)) else {
        return Err("a block status that is too short");
    };
    if !runs.len().is_multiple_of(16) {
        return Err("a block status with half a run");
    }
    if count != 0 && count as usize != runs.len() / 16 {
        return Err("a block status with another number of runs than it says");
    }
    let runs =
        runs.chunks_exact(16).map(|run| (be64(run, 0).unwrap_or(0), be64(run, 8).unwrap_or(0)));
    cut_extents(runs, asked)
}

/// What the runs say of what was asked about; what goes past it is cut off.
fn cut_extents(
    runs: impl Iterator<Item = (u64, u64)>,
    asked: u64,
) -> Result<Vec<(u64, u64)>, &'static str> {
    let mut left = asked;
    let mut extents = Vec::new();
    for (length, flags) in runs {
        if length == 0 {
            return Err("a block status of an empty run");
        }
        let length = length.min(left);
        left -= length;
        if length > 0 {
            extents.push((length, flags));
        }
    }
    Ok(extents)
}

/// The body of an error chunk.
fn parse_error(peer: Peer, kind: u16, body: &[u8]) -> Result<NbdError, &'static str> {
    let (Some(code), Some(length)) = (be32(body, 0), be16(body, 4)) else {
        return Err("an error that is too short");
    };
    let length = usize::from(length);
    let tail = if kind == CHUNK_ERROR_OFFSET { 8 } else { 0 };
    if body.len() != 6 + length + tail {
        return Err("an error of a wrong length");
    }
    let message = printable(&body[6..6 + length]);
    let sentence = if message.is_empty() { peer.request_failed(code) } else { message };
    Ok(NbdError::Request { code, sentence })
}

/// A peer's text without anything that could disturb a terminal.
pub(crate) fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().into()
}

/// Why the daemon's socket cannot be connected to.
fn connect_error(socket: &Path, error: &io::Error) -> NbdError {
    let socket = socket.display();
    NbdError::Connect(match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "permission denied on {socket}; run dog as the daemon's user, as root, or as a member \
             of the group that owns the socket"
        ),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("no sheep listens on {socket}; start it, or name its socket with --nbd-socket")
        }
        _ => format!("cannot connect to {socket}: {error}; check the path"),
    })
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod front_tests;
#[cfg(test)]
mod tests;
