//! One source that is open: read, and asked what it has, for as long as it stays what it was.

use super::address::Address;
use crate::nbd_client::{
    CONTEXT_ALLOCATION, Command, Export, Extent, NbdClient, NbdError, Outcome, Peer, Stream,
};
use engine::SourceWanted;
use proto::{BLOCK_SIZE, BlockState, Buffer};
use rustix::fs::OFlags;
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::{
        fs::{FileExt, FileTypeExt, OpenOptionsExt},
        net::UnixStream,
    },
    path::Path,
    sync::mpsc,
    thread,
};
use volume::SourceAnswer;

/// How many addresses of one host are tried.
const ADDRESSES_MAX: usize = 4;

/// A source that is open.
pub enum Open {
    /// An NBD server.
    Nbd(Box<Nbd>),
    /// A file or a block device.
    File(File),
}

/// A connection and what is asked over it.
pub struct Nbd {
    client: NbdClient,
    /// If it is this very process that serves it: the export's name.
    own_export: Option<String>,
    /// What each request of the connection is a part of.
    parts: BTreeMap<u64, Part>,
    /// Questions, by number.
    questions: BTreeMap<u64, Question>,
}

struct Part {
    question: u64,
    /// Where in the connection's request the wanted bytes begin, and where in the answer they go.
    skip: usize,
    at: usize,
    length: usize,
}

struct Question {
    answer: Partial,
    left: usize,
    error: Option<String>,
}

enum Partial {
    Data(Buffer),
    /// Which bytes are zeros for sure, from the start of what was asked for.
    Map {
        length: u64,
        zeros: Vec<(u64, u64)>,
    },
}

/// The end of a question: its number and its answer.
pub type Answered = (u64, Result<SourceAnswer, String>);

impl Open {
    /// Opens a source: its size, and what it is called if this very process serves it.
    pub fn reach(address: &Address, own: Option<SocketAddr>) -> Result<Open, String> {
        let (stream, export) = match address {
            Address::File(path) => return open_file(path).map(Open::File),
            Address::Unix { socket, export } => (connect_unix(socket)?, export),
            Address::Tcp { host, port, export } => (connect_tcp(host, *port)?, export),
        };
        let is_own = match &stream {
            Stream::Unix(_) => stream.peer_process() == Some(std::process::id()),
            Stream::Tcp(stream) => is_own(stream, own),
        };
        let context = CONTEXT_ALLOCATION;
        let client = NbdClient::over(stream, Peer::Source, export, context, Box::new(|| false))
            .map_err(|error| error.to_string())?;
        let own_export = is_own.then(|| export.clone());
        let (parts, questions) = (BTreeMap::new(), BTreeMap::new());
        Ok(Open::Nbd(Box::new(Nbd { client, own_export, parts, questions })))
    }

    /// How large it is now.
    pub fn bytes(&mut self) -> Result<u64, String> {
        match self {
            Open::Nbd(nbd) => Ok(nbd.client.export().bytes),
            Open::File(file) => file_bytes(file).map_err(|error| error.to_string()),
        }
    }

    /// Its export's name if this very process serves it.
    pub fn own_export(&self) -> Option<String> {
        match self {
            Open::Nbd(nbd) => nbd.own_export.clone(),
            Open::File(_) => None,
        }
    }

    /// Asks; the answers that are there at once are returned. `bytes` are in what is wanted.
    pub fn ask(&mut self, number: u64, wanted: SourceWanted) -> Result<Option<Answered>, NbdError> {
        let (SourceWanted::Read { bytes, offset, length }
        | SourceWanted::Map { bytes, offset, length }) = wanted
        else {
            unreachable!("opening is not asked of what is open");
        };
        let now = match self.bytes() {
            Ok(now) => now,
            Err(error) => return Ok(Some((number, Err(error)))),
        };
        if now != bytes {
            return Ok(Some((number, Err(changed(bytes, now)))));
        }
        if length == 0 || offset.checked_add(length).is_none_or(|end| end > bytes) {
            return Ok(Some((number, Err("it does not reach so far".into()))));
        }
        match (self, wanted) {
            (Open::Nbd(nbd), SourceWanted::Map { .. }) => nbd.ask_map(number, offset, length),
            (Open::Nbd(nbd), _) => nbd.ask_data(number, offset, length).map(|()| None),
            (Open::File(_), SourceWanted::Map { .. }) => {
                Ok(Some((number, Ok(unknown_map(length)))))
            }
            (Open::File(file), _) => Ok(Some((number, read_file(file, offset, length)))),
        }
    }

    /// Waits for the next answer; nothing if nothing is asked.
    pub fn wait(&mut self) -> Result<Option<Answered>, NbdError> {
        match self {
            Open::Nbd(nbd) => nbd.wait(),
            Open::File(_) => Ok(None),
        }
    }
}

/// It is not what it was.
fn changed(agreed: u64, now: u64) -> String {
    format!(
        "it has {now} bytes now and had {agreed} when the volume was made; nothing is taken from \
         it until it has that size again"
    )
}

/// Nothing is known to be zeros.
fn unknown_map(length: u64) -> SourceAnswer {
    let blocks = length.div_ceil(BLOCK_SIZE as u64) as u32;
    SourceAnswer::Map(vec![(blocks, BlockState::Data)])
}

fn buffer_for(length: u64) -> Buffer {
    Buffer::zeroed(length.div_ceil(BLOCK_SIZE as u64) as usize * BLOCK_SIZE)
}

impl Nbd {
    fn ask_data(&mut self, number: u64, offset: u64, length: u64) -> Result<(), NbdError> {
        let ranges = ranges(self.client.export(), offset, length);
        let left = ranges.len();
        for Range { start, length, skip, at, wanted } in ranges {
            let cookie = self.client.submit(Command::Read { offset: start, length })?;
            self.parts.insert(cookie, Part { question: number, skip, at, length: wanted });
        }
        let answer = Partial::Data(buffer_for(length));
        self.questions.insert(number, Question { answer, left, error: None });
        Ok(())
    }

    fn ask_map(
        &mut self,
        number: u64,
        offset: u64,
        length: u64,
    ) -> Result<Option<Answered>, NbdError> {
        let export = self.client.export();
        let step = u64::from(export.block_min);
        let end = (offset + length).next_multiple_of(step).min(export.bytes);
        let asked = u32::try_from(end - offset).ok();
        let is_aligned = offset.is_multiple_of(step);
        let Some(asked) = asked.filter(|_| export.context.is_some() && is_aligned) else {
            return Ok(Some((number, Ok(unknown_map(length)))));
        };
        let cookie = self.client.submit(Command::Status { offset, length: u64::from(asked) })?;
        let part = Part { question: number, skip: 0, at: 0, length: 0 };
        self.parts.insert(cookie, part);
        let answer = Partial::Map { length, zeros: Vec::new() };
        self.questions.insert(number, Question { answer, left: 1, error: None });
        Ok(None)
    }

    fn wait(&mut self) -> Result<Option<Answered>, NbdError> {
        loop {
            let Some(reply) = self.client.wait()? else { return Ok(None) };
            let part = self.parts.remove(&reply.cookie).expect("each request has its part");
            let question = self.questions.get_mut(&part.question).expect("it has parts left");
            question.left -= 1;
            match (&mut question.answer, reply.result) {
                (Partial::Data(buffer), Ok(Outcome::Data(data))) => {
                    let target = &mut buffer.as_mut_slice()[part.at..part.at + part.length];
                    target.copy_from_slice(&data[part.skip..part.skip + part.length]);
                }
                (Partial::Map { zeros, .. }, Ok(Outcome::Status(extents))) => {
                    *zeros = zero_ranges(&extents);
                }
                // What it cannot tell counts as data.
                (Partial::Map { .. }, Err(NbdError::Request { .. })) => {}
                (_, Err(error)) => question.error = Some(error.to_string()),
                (_, Ok(_)) => question.error = Some("it answered something else".into()),
            }
            if question.left > 0 {
                continue;
            }
            let question = self.questions.remove(&part.question).expect("just seen");
            let result = match question.error {
                Some(error) => Err(error),
                None => Ok(match question.answer {
                    Partial::Data(buffer) => SourceAnswer::Data(buffer.freeze()),
                    Partial::Map { length, zeros } => SourceAnswer::Map(runs(length, &zeros)),
                }),
            };
            return Ok(Some((part.question, result)));
        }
    }
}

/// One request of a connection, and what of it is wanted where.
#[derive(PartialEq, Eq, Debug)]
struct Range {
    start: u64,
    length: u32,
    skip: usize,
    at: usize,
    wanted: usize,
}

/// The requests that bring these bytes, as the server wants them.
fn ranges(export: Export, offset: u64, length: u64) -> Vec<Range> {
    let step = u64::from(export.block_min);
    let most = u64::from(export.payload_max) / step * step;
    let end = offset + length;
    let (mut start, mut ranges) = (offset / step * step, Vec::new());
    let last = end.next_multiple_of(step).min(export.bytes);
    while start < end {
        let stop = (start + most).min(last);
        let (from, to) = (start.max(offset), stop.min(end));
        ranges.push(Range {
            start,
            length: (stop - start) as u32,
            skip: (from - start) as usize,
            at: (from - offset) as usize,
            wanted: (to - from) as usize,
        });
        start = stop;
    }
    ranges
}

/// What of the extents is zeros.
fn zero_ranges(extents: &[Extent]) -> Vec<(u64, u64)> {
    let mut at = 0;
    let mut zeros: Vec<(u64, u64)> = Vec::new();
    for extent in extents {
        let next = at + extent.length;
        match zeros.last_mut() {
            Some((_, end)) if extent.zero && *end == at => *end = next,
            _ if extent.zero => zeros.push((at, next)),
            _ => {}
        }
        at = next;
    }
    zeros
}

/// The blocks as runs: zeros where all of a block is, as far as the source reaches in it.
fn runs(length: u64, zeros: &[(u64, u64)]) -> Vec<(u32, BlockState)> {
    let block = BLOCK_SIZE as u64;
    let mut runs: Vec<(u32, BlockState)> = Vec::new();
    for number in 0..length.div_ceil(block) {
        let (first, end) = (number * block, ((number + 1) * block).min(length));
        let is_zero = zeros.iter().any(|&(from, to)| from <= first && end <= to);
        let state = if is_zero { BlockState::Zero } else { BlockState::Data };
        match runs.last_mut() {
            Some((count, last)) if *last == state => *count += 1,
            _ => runs.push((1, state)),
        }
    }
    runs
}

// -- connecting --

fn connect_unix(socket: &Path) -> Result<Stream, String> {
    let (sender, connected) = mpsc::sync_channel(1);
    let path = socket.to_path_buf();
    // A server that hangs accepts nobody, and then connecting blocks without a deadline.
    thread::Builder::new()
        .name("source-connect".into())
        .spawn(move || sender.send(UnixStream::connect(path)))
        .map_err(|error| error.to_string())?;
    let stream = connected.recv_timeout(Peer::Source.patience());
    let stream = stream.map_err(|_| "it does not answer".to_string())?;
    stream.map(Stream::Unix).map_err(|error| words(&error))
}

fn connect_tcp(host: &str, port: u16) -> Result<Stream, String> {
    let addresses = (host, port)
        .to_socket_addrs()
        .map_err(|error| format!("the host's address cannot be found: {}", words(&error)))?;
    let mut last = "the host has no address".to_string();
    for address in addresses.take(ADDRESSES_MAX) {
        match TcpStream::connect_timeout(&address, Peer::Source.patience()) {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(|error| words(&error))?;
                return Ok(Stream::Tcp(stream));
            }
            Err(error) => last = words(&error),
        }
    }
    Err(last)
}

/// Whether a connection ends where this process listens.
fn is_own(stream: &TcpStream, own: Option<SocketAddr>) -> bool {
    let (Ok(here), Ok(there), Some(own)) = (stream.local_addr(), stream.peer_addr(), own) else {
        return false;
    };
    here.ip() == there.ip() && there.port() == own.port()
}

// -- files --

fn open_file(path: &Path) -> Result<File, String> {
    // A pipe would wait for somebody to write to it.
    let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags as i32).open(path);
    let file = file.map_err(|error| words(&error))?;
    let kind = file.metadata().map_err(|error| words(&error))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err("it is neither a regular file nor a block device".into());
    }
    Ok(file)
}

fn file_bytes(file: &mut File) -> io::Result<u64> {
    // A device has no length of its own in its metadata.
    file.seek(SeekFrom::End(0))
}

fn read_file(file: &File, offset: u64, length: u64) -> Result<SourceAnswer, String> {
    let mut buffer = buffer_for(length);
    let target = &mut buffer.as_mut_slice()[..length as usize];
    match file.read_exact_at(target, offset) {
        Ok(()) => Ok(SourceAnswer::Data(buffer.freeze())),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err("it ends before what was asked for".into())
        }
        Err(error) => Err(words(&error)),
    }
}

/// An error in a few words, without the number.
fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::NotFound => "no such file or socket".into(),
        io::ErrorKind::PermissionDenied => "permission denied to the daemon's user".into(),
        io::ErrorKind::TimedOut => "it does not answer".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
