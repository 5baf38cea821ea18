//! The numbers of the NBD protocol and the shapes of its messages, as the protocol's own document
//! (`doc/proto.md` of the nbd project) gives them. Everything is big-endian.

use proto::limits::NBD_STATUS_EXTENTS_MAX;

/// First bytes of a server's greeting: `NBDMAGIC`.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second part of the greeting, and first bytes of every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First bytes of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First bytes of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First bytes of every request with an extended header.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// First bytes of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First bytes of each chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// First bytes of each chunk of a reply with extended headers.
pub const EXTENDED_CHUNK_MAGIC: u32 = 0x6e8a_278c;

/// Bytes of the flags a client answers the greeting with.
pub const CLIENT_FLAGS_BYTES: usize = 4;
/// Bytes of an option before its data.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Bytes of a request before its payload.
pub const REQUEST_HEADER_BYTES: usize = 28;
/// Bytes of a request with an extended header before its payload.
pub const EXTENDED_REQUEST_HEADER_BYTES: usize = 32;
/// Zeros after the reply to `EXPORT_NAME`, unless both sides waived them.
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;
/// Longest string the protocol allows, in bytes.
pub const STRING_BYTES_MAX: usize = 4096;

/// Flags of the handshake, the same bits from server and client.
pub mod handshake_flag {
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// What a client may ask during the handshake.
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// How options are answered. Errors have the highest bit set and carry a sentence.
pub mod option_reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    pub const ERR_POLICY: u32 = (1 << 31) + 2;
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
    pub const ERR_EXTENDED_HEADERS: u32 = (1 << 31) + 10;
}

/// What `INFO` and `GO` may tell.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub mod transmission_flag {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// What a request does.
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// How a request is to be done.
pub mod command_flag {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length is that of a payload behind the header. Of extended headers only.
    pub const PAYLOAD_LENGTH: u16 = 1 << 5;
}

/// Kinds of chunks of a structured reply.
pub mod chunk {
    /// The only flag: this is the reply's last chunk.
    pub const FLAG_DONE: u16 = 1 << 0;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const BLOCK_STATUS: u16 = 5;
    /// With lengths of 64 bits, for extended headers.
    pub const BLOCK_STATUS_EXTENDED: u16 = 6;
    pub const ERROR: u16 = (1 << 15) + 1;
    pub const ERROR_OFFSET: u16 = (1 << 15) + 2;
}

/// The metadata context that says where data is.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// The query for everything in the namespace of [`BASE_ALLOCATION`].
pub const BASE_WILDCARD: &str = "base:";
/// Before the tag of a snapshot: the metadata context that says what differs from it. Also the
/// query for all of these.
pub const DIRTY_PREFIX: &str = "sheepdog:dirty/";
/// The query for everything in the namespace of [`DIRTY_PREFIX`].
pub const SHEEPDOG_WILDCARD: &str = "sheepdog:";
/// What the first context of a connection is called in replies to `BLOCK_STATUS`; the others count
/// on.
pub const FIRST_CONTEXT_ID: u32 = 1;

/// Flags of an extent in [`BASE_ALLOCATION`].
pub mod extent_flag {
    pub const HOLE: u32 = 1 << 0;
    pub const ZERO: u32 = 1 << 1;
}

/// Flags of an extent in a context that begins with [`DIRTY_PREFIX`].
pub mod dirty_flag {
    /// It may differ.
    pub const DIRTY: u32 = 1 << 0;
    /// It reads as zeros; only where it is dirty.
    pub const ZERO: u32 = 1 << 1;
}

/// The errors a reply may carry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted: the export is read only.
    Permission = 1,
    /// The data cannot be had.
    Io = 5,
    /// The request makes no sense.
    Invalid = 22,
    /// No space, or past the end for what writes.
    NoSpace = 28,
    /// Too long to be answered unfragmented.
    Overflow = 75,
    /// Not as fast as was asked for.
    NotSupported = 95,
    /// The server does not serve this any more.
    Shutdown = 108,
}

/// Takes a message apart; nothing where it is too short.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// A string with its length before it.
    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(usize::try_from(length).ok()?)
    }
}

/// The head of an option.
#[derive(Clone, Copy, Debug)]
pub struct OptionHeader {
    pub option: u32,
    pub length: u32,
}

impl OptionHeader {
    /// Nothing if the magic is wrong.
    pub fn parse(bytes: &[u8; OPTION_HEADER_BYTES]) -> Option<OptionHeader> {
        let mut reader = Reader::new(bytes);
        if reader.u64()? != OPTION_MAGIC {
            return None;
        }
        Some(OptionHeader { option: reader.u32()?, length: reader.u32()? })
    }
}

/// The data of `INFO` and `GO`.
#[derive(Debug)]
pub struct InfoQuery<'a> {
    pub name: &'a [u8],
    pub wants_name: bool,
    pub wants_block_size: bool,
}

impl InfoQuery<'_> {
    pub fn parse(data: &[u8]) -> Option<InfoQuery<'_>> {
        let mut reader = Reader::new(data);
        let name = reader.string()?;
        let mut query = InfoQuery { name, wants_name: false, wants_block_size: false };
        for _ in 0..reader.u16()? {
            match reader.u16()? {
                info::NAME => query.wants_name = true,
                info::BLOCK_SIZE => query.wants_block_size = true,
                _ => {} // unknown ones must be ignored
            }
        }
        reader.is_empty().then_some(query)
    }
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Debug)]
pub struct MetaQuery<'a> {
    pub name: &'a [u8],
    pub queries: Vec<&'a [u8]>,
}

impl MetaQuery<'_> {
    pub fn parse(data: &[u8]) -> Option<MetaQuery<'_>> {
        let mut reader = Reader::new(data);
        let name = reader.string()?;
        // The count is only a claim: the vector grows with what is really there.
        let mut queries = Vec::new();
        for _ in 0..reader.u32()? {
            queries.push(reader.string()?);
        }
        reader.is_empty().then_some(MetaQuery { name, queries })
    }

    /// Whether any query is this one.
    pub fn asks(&self, query: &str) -> bool {
        self.queries.contains(&query.as_bytes())
    }
}

/// How requests and replies are headed, as negotiated; each is more than those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub enum Headers {
    /// Replies are an error's number, and a read's data.
    #[default]
    Simple,
    /// Reads are answered in chunks, errors carry sentences.
    Structured,
    /// Everything is answered in chunks, and lengths have 64 bits.
    Extended,
}

impl Headers {
    /// Bytes of a request before its payload.
    pub fn request_bytes(self) -> usize {
        match self {
            Headers::Simple | Headers::Structured => REQUEST_HEADER_BYTES,
            Headers::Extended => EXTENDED_REQUEST_HEADER_BYTES,
        }
    }

    /// Whether there are chunks, and so errors with sentences and answers of any length.
    pub fn has_chunks(self) -> bool {
        self >= Headers::Structured
    }

    /// Longest answer to a block status in one context, in bytes.
    pub fn status_bytes_max(self) -> usize {
        match self {
            Headers::Simple | Headers::Structured => 24 + 8 * NBD_STATUS_EXTENTS_MAX,
            Headers::Extended => 40 + 16 * NBD_STATUS_EXTENTS_MAX,
        }
    }
}

/// The head of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestHeader {
    pub flags: u16,
    pub command: u16,
    /// Chosen by the client; its reply carries it.
    pub cookie: u64,
    pub offset: u64,
    /// Of the payload where there is one, else of what it is about.
    pub length: u64,
}

impl RequestHeader {
    /// Nothing if the magic is wrong.
    pub fn parse(headers: Headers, bytes: &[u8]) -> Option<RequestHeader> {
        let mut reader = Reader::new(bytes);
        let magic = match headers {
            Headers::Simple | Headers::Structured => REQUEST_MAGIC,
            Headers::Extended => EXTENDED_REQUEST_MAGIC,
        };
        if reader.u32()? != magic {
            return None;
        }
        Some(RequestHeader {
            flags: reader.u16()?,
            command: reader.u16()?,
            cookie: reader.u64()?,
            offset: reader.u64()?,
            length: match headers {
                Headers::Simple | Headers::Structured => u64::from(reader.u32()?),
                Headers::Extended => reader.u64()?,
            },
        })
    }

    /// Whether bytes follow, as many as the length says.
    pub fn has_payload(&self, headers: Headers) -> bool {
        match headers {
            Headers::Simple | Headers::Structured => self.command == command::WRITE,
            Headers::Extended => self.flags & command_flag::PAYLOAD_LENGTH != 0,
        }
    }
}

/// As much of a text as the protocol allows a string to have.
pub fn shortened(text: &str) -> &str {
    let mut end = text.len().min(STRING_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Appends a server's greeting.
pub fn put_greeting(out: &mut Vec<u8>) {
    out.extend(GREETING_MAGIC.to_be_bytes());
    out.extend(OPTION_MAGIC.to_be_bytes());
    out.extend((handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).to_be_bytes());
}

/// Appends one reply to an option.
///
/// # Panics
/// If the data is longer than the protocol can say: replies are ours, and short.
pub fn put_option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[&[u8]]) {
    let length: usize = data.iter().map(|part| part.len()).sum();
    let length = u32::try_from(length).expect("option replies are short");
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(length.to_be_bytes());
    for part in data {
        out.extend_from_slice(part);
    }
}

/// Appends a simple reply; error 0 is success.
pub fn put_simple_reply(out: &mut Vec<u8>, error: u32, cookie: u64) {
    out.extend(SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend(error.to_be_bytes());
    out.extend(cookie.to_be_bytes());
}

/// Appends the head of a chunk that is the only one of the reply to `request`, with `length` bytes
/// to follow.
pub fn put_chunk_header(
    out: &mut Vec<u8>,
    headers: Headers,
    kind: u16,
    request: &RequestHeader,
    length: u32,
) {
    put_chunk(out, headers, chunk::FLAG_DONE, kind, request, length);
}

/// Appends the head of a chunk of the reply to `request`, with `length` bytes to follow.
fn put_chunk(
    out: &mut Vec<u8>,
    headers: Headers,
    flags: u16,
    kind: u16,
    request: &RequestHeader,
    length: u32,
) {
    let magic = match headers {
        Headers::Simple | Headers::Structured => CHUNK_MAGIC,
        Headers::Extended => EXTENDED_CHUNK_MAGIC,
    };
    out.extend(magic.to_be_bytes());
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(request.cookie.to_be_bytes());
    if headers == Headers::Extended {
        out.extend(request.offset.to_be_bytes());
        out.extend(u64::from(length).to_be_bytes());
    } else {
        out.extend(length.to_be_bytes());
    }
}

/// Appends an error chunk with a sentence, and where in the export the error is, if known.
pub fn put_error_chunk(
    out: &mut Vec<u8>,
    headers: Headers,
    request: &RequestHeader,
    error: Errno,
    sentence: &str,
    at: Option<u64>,
) {
    let sentence = shortened(sentence);
    let (kind, fixed) = if at.is_some() { (chunk::ERROR_OFFSET, 14) } else { (chunk::ERROR, 6) };
    put_chunk_header(out, headers, kind, request, fixed + sentence.len() as u32);
    out.extend((error as u32).to_be_bytes());
    out.extend((sentence.len() as u16).to_be_bytes());
    out.extend_from_slice(sentence.as_bytes());
    if let Some(offset) = at {
        out.extend(offset.to_be_bytes());
    }
}

/// Appends what a block status tells of one context: lengths and flags. Without extended headers
/// nobody can ask about more than 32 bits can say.
pub fn put_status_chunk(
    out: &mut Vec<u8>,
    headers: Headers,
    request: &RequestHeader,
    is_last: bool,
    context_id: u32,
    extents: &[(u64, u32)],
) {
    let count = u32::try_from(extents.len()).expect("extents are bounded");
    let flags = if is_last { chunk::FLAG_DONE } else { 0 };
    if headers == Headers::Extended {
        let length = 8 + 16 * count;
        put_chunk(out, headers, flags, chunk::BLOCK_STATUS_EXTENDED, request, length);
        out.extend(context_id.to_be_bytes());
        out.extend(count.to_be_bytes());
        for &(length, flags) in extents {
            out.extend(length.to_be_bytes());
            out.extend(u64::from(flags).to_be_bytes());
        }
    } else {
        put_chunk(out, headers, flags, chunk::BLOCK_STATUS, request, 4 + 8 * count);
        out.extend(context_id.to_be_bytes());
        for &(length, flags) in extents {
            let length = u32::try_from(length).expect("no longer than what was asked about");
            out.extend(length.to_be_bytes());
            out.extend(flags.to_be_bytes());
        }
    }
}
