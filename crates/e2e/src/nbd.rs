//! An NBD client that may say anything, also what no decent client says. For everything decent
//! there are other people's clients; this one is for lengths that lie, bytes that trickle and
//! replies that nobody reads.

use anyhow::{Context, Result, bail, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// FIXED_NEWSTYLE and NO_ZEROES.
const CLIENT_FLAGS: u32 = 3;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
/// What any answer may take.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// No option reply that a test provokes is longer.
const REPLY_BYTES_MAX: u32 = 1 << 20;

/// Option numbers of the NBD protocol.
pub mod option {
    /// Choose an export the old way.
    pub const EXPORT_NAME: u32 = 1;
    /// Give up.
    pub const ABORT: u32 = 2;
    /// What exports are there?
    pub const LIST: u32 = 3;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Choose an export.
    pub const GO: u32 = 7;
    /// Replies in chunks, please.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// What may block status tell?
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Which contexts block status is to be answered in.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Long headers both ways, please.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Command numbers of the NBD protocol.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the payload follows.
    pub const WRITE: u16 = 1;
    /// Good bye.
    pub const DISCONNECT: u16 = 2;
    /// Make durable.
    pub const FLUSH: u16 = 3;
    /// Discard.
    pub const TRIM: u16 = 4;
    /// Zero.
    pub const WRITE_ZEROES: u16 = 6;
    /// What is where.
    pub const BLOCK_STATUS: u16 = 7;
}

trait Stream: Read + Write + Send {
    fn read_limit(&self, limit: Duration) -> std::io::Result<()>;
}

impl Stream for UnixStream {
    fn read_limit(&self, limit: Duration) -> std::io::Result<()> {
        self.set_write_timeout(Some(TIME_LIMIT))?;
        self.set_read_timeout(Some(limit))
    }
}

impl Stream for TcpStream {
    fn read_limit(&self, limit: Duration) -> std::io::Result<()> {
        self.set_write_timeout(Some(TIME_LIMIT))?;
        self.set_read_timeout(Some(limit))
    }
}

/// One connection to a server.
pub struct Peer {
    stream: Box<dyn Stream>,
}

/// A reply to an option.
#[derive(Debug)]
pub struct OptionReply {
    /// ACK, INFO or, with the highest bit, an error.
    pub kind: u32,
    /// What it carries; for an error a sentence.
    pub data: Vec<u8>,
}

impl OptionReply {
    /// Whether it refuses.
    pub fn is_error(&self) -> bool {
        self.kind & 0x8000_0000 != 0
    }
}

/// A chunk of a reply with extended headers.
#[derive(Debug)]
pub struct ExtendedReply {
    /// 0 for nothing to tell, 1 for data; the highest bit for an error.
    pub kind: u16,
    /// The request's.
    pub cookie: u64,
    /// The request's.
    pub offset: u64,
    /// What it carries.
    pub data: Vec<u8>,
}

impl ExtendedReply {
    /// The number of an error.
    pub fn error(&self) -> Option<u32> {
        self.data.first_chunk().map(|&number| u32::from_be_bytes(number))
    }
}

/// How an export was refused.
#[derive(Debug)]
pub struct Refusal(pub String);

impl Peer {
    /// Connects to a unix socket.
    pub fn unix(path: &Path) -> Result<Peer> {
        let stream = UnixStream::connect(path)
            .with_context(|| format!("cannot connect to {}", path.display()))?;
        stream.read_limit(TIME_LIMIT)?;
        Ok(Peer { stream: Box::new(stream) })
    }

    /// Connects to a port of this machine.
    pub fn tcp(port: u16) -> Result<Peer> {
        let stream = TcpStream::connect(("127.0.0.1", port))
            .with_context(|| format!("cannot connect to port {port}"))?;
        stream.read_limit(TIME_LIMIT)?;
        Ok(Peer { stream: Box::new(stream) })
    }

    /// Reads the server's greeting and answers it.
    pub fn greet(&mut self) -> Result<()> {
        let greeting: [u8; 18] = self.take()?;
        ensure!(greeting[..8] == INIT_MAGIC.to_be_bytes(), "no NBD server: {greeting:02x?}");
        ensure!(
            greeting[8..16] == OPTION_MAGIC.to_be_bytes(),
            "not fixed newstyle: {greeting:02x?}"
        );
        self.send(&CLIENT_FLAGS.to_be_bytes())
    }

    /// Sends an option whose length may lie.
    pub fn option_claiming(&mut self, option: u32, claimed: u32, data: &[u8]) -> Result<()> {
        let mut bytes = Vec::from(OPTION_MAGIC.to_be_bytes());
        bytes.extend(option.to_be_bytes());
        bytes.extend(claimed.to_be_bytes());
        bytes.extend(data);
        self.send(&bytes)
    }

    /// Sends an option.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Result<()> {
        self.option_claiming(option, u32::try_from(data.len())?, data)
    }

    /// Takes one reply to an option.
    pub fn option_reply(&mut self) -> Result<OptionReply> {
        let magic = u64::from_be_bytes(self.take()?);
        ensure!(magic == OPTION_REPLY_MAGIC, "no option reply but {magic:#x}");
        let _option = u32::from_be_bytes(self.take()?);
        let kind = u32::from_be_bytes(self.take()?);
        let length = u32::from_be_bytes(self.take()?);
        ensure!(length <= REPLY_BYTES_MAX, "an option reply of {length} bytes");
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data)?;
        Ok(OptionReply { kind, data })
    }

    /// Chooses an export with GO and gives its size, or the sentence that refuses it.
    pub fn go(&mut self, name: &str) -> Result<Result<u64, Refusal>> {
        self.option(option::GO, &go_body(u32::try_from(name.len())?, name.as_bytes(), &[]))?;
        let mut size = None;
        loop {
            let reply = self.option_reply()?;
            if reply.is_error() {
                return Ok(Err(Refusal(String::from_utf8_lossy(&reply.data).into_owned())));
            }
            match reply.kind {
                REPLY_ACK => return Ok(Ok(size.context("GO told no size")?)),
                REPLY_INFO => {
                    // Type, size, flags.
                    if reply.data.len() == 12 && reply.data[..2] == INFO_EXPORT.to_be_bytes() {
                        size = reply.data[2..].first_chunk().map(|&size| u64::from_be_bytes(size));
                    }
                }
                kind => bail!("GO was answered with {kind}"),
            }
        }
    }

    /// Sends a request's header, whose fields may lie.
    pub fn request(&mut self, command: u16, cookie: u64, offset: u64, length: u32) -> Result<()> {
        self.send(&request_header(command, cookie, offset, length))
    }

    /// Sends a request with an extended header.
    pub fn extended_request(
        &mut self,
        flags: u16,
        command: u16,
        cookie: u64,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        let mut bytes = Vec::from(EXTENDED_REQUEST_MAGIC.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        for field in [cookie, offset, length] {
            bytes.extend(field.to_be_bytes());
        }
        self.send(&bytes)
    }

    /// Takes a reply with an extended header, which must be its only chunk.
    pub fn extended_reply(&mut self) -> Result<ExtendedReply> {
        let (is_last, reply) = self.extended_chunk()?;
        ensure!(is_last, "not the only chunk");
        Ok(reply)
    }

    /// Takes a chunk of a reply with extended headers, and whether it is the last one.
    pub fn extended_chunk(&mut self) -> Result<(bool, ExtendedReply)> {
        let magic = u32::from_be_bytes(self.take()?);
        ensure!(magic == EXTENDED_REPLY_MAGIC, "no extended reply but {magic:#x}");
        let flags = u16::from_be_bytes(self.take()?);
        ensure!(flags <= 1, "flags that do not exist: {flags}");
        let kind = u16::from_be_bytes(self.take()?);
        let (cookie, offset) = (u64::from_be_bytes(self.take()?), u64::from_be_bytes(self.take()?));
        let length = u64::from_be_bytes(self.take()?);
        ensure!(length <= u64::from(REPLY_BYTES_MAX), "a chunk of {length} bytes");
        let data = self.payload(length as usize)?;
        Ok((flags == 1, ExtendedReply { kind, cookie, offset, data }))
    }

    /// Takes a simple reply: the error and the cookie.
    pub fn reply(&mut self) -> Result<(u32, u64)> {
        let magic = u32::from_be_bytes(self.take()?);
        ensure!(magic == SIMPLE_REPLY_MAGIC, "no simple reply but {magic:#x}");
        Ok((u32::from_be_bytes(self.take()?), u64::from_be_bytes(self.take()?)))
    }

    /// Reads one request's worth of zeros or data.
    pub fn payload(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; length];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("the server does not take more")
    }

    /// Waits until the server hangs up, and tells how long that took. What it still says is thrown
    /// away.
    pub fn wait_closed(&mut self, limit: Duration) -> Result<Duration> {
        let begin = Instant::now();
        let mut sink = [0; 65536];
        loop {
            let left = limit.saturating_sub(begin.elapsed());
            ensure!(!left.is_zero(), "the server has not hung up after {} s", limit.as_secs());
            self.stream.read_limit(left)?;
            match self.stream.read(&mut sink) {
                Ok(0) => return Ok(begin.elapsed()),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                        return Ok(begin.elapsed());
                    }
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    _ => return Err(error).context("while waiting for the server to hang up"),
                },
            }
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).context("the server says nothing")?;
        Ok(bytes)
    }
}

/// The body of GO and INFO: a name whose length may lie, and the information requests.
pub fn go_body(claimed: u32, name: &[u8], information: &[u16]) -> Vec<u8> {
    let mut body = Vec::from(claimed.to_be_bytes());
    body.extend(name);
    body.extend(u16::try_from(information.len()).unwrap_or(u16::MAX).to_be_bytes());
    body.extend(information.iter().flat_map(|kind| kind.to_be_bytes()));
    body
}

/// The header of a request.
pub fn request_header(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = Vec::from(REQUEST_MAGIC.to_be_bytes());
    bytes.extend(0u16.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}
