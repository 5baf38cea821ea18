//! A client's side of the protocol, written from the protocol's document and not from the server:
//! the numbers here are meant to disagree with `wire` where one of the two is wrong.

use std::collections::BTreeMap;

/// The client's flags: 1 fixed newstyle, 2 no zeroes.
pub fn client_flags(bits: u32) -> Vec<u8> {
    bits.to_be_bytes().to_vec()
}

/// An option with its data.
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Data of `INFO` (6) and `GO` (7).
pub fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|number| data.extend(number.to_be_bytes()));
    data
}

/// Data of `LIST_META_CONTEXT` (9) and `SET_META_CONTEXT` (10).
pub fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

/// How requests and replies are headed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// Simple replies.
    Simple,
    /// Structured replies.
    Structured,
    /// Extended headers.
    Extended,
}

impl Style {
    /// All of them.
    pub const ALL: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

    /// Whether there are chunks.
    pub fn has_chunks(self) -> bool {
        self != Style::Simple
    }
}

/// All a client says until it is served `name`.
pub fn handshake(name: &str, style: Style, allocation: bool) -> Vec<u8> {
    let contexts: &[&str] = if allocation { &["base:allocation"] } else { &[] };
    handshake_with(name, style, contexts)
}

/// All a client says until it is served `name`, with these contexts.
pub fn handshake_with(name: &str, style: Style, contexts: &[&str]) -> Vec<u8> {
    let mut bytes = client_flags(3);
    match style {
        Style::Simple => {}
        Style::Structured => bytes.extend(option(8, &[])),
        Style::Extended => bytes.extend(option(11, &[])),
    }
    if !contexts.is_empty() {
        bytes.extend(option(10, &meta_data(name, contexts)));
    }
    bytes.extend(option(7, &info_data(name, &[1, 3])));
    bytes
}

/// What a client asks; its payload is separate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    pub flags: u16,
    pub command: u16,
    pub offset: u64,
    pub length: u64,
}

impl Asked {
    /// The head of the request, as a client says it that does not know of extended headers.
    ///
    /// # Panics
    /// If such a client cannot say it.
    pub fn bytes(&self, cookie: u64) -> Vec<u8> {
        let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
        self.put_middle(cookie, &mut bytes);
        bytes.extend(u32::try_from(self.length).expect("at most 32 bits").to_be_bytes());
        bytes
    }

    /// The head of the request with an extended header.
    pub fn extended_bytes(&self, cookie: u64) -> Vec<u8> {
        let mut bytes = vec![0x21, 0xe4, 0x1c, 0x71];
        self.put_middle(cookie, &mut bytes);
        bytes.extend(self.length.to_be_bytes());
        bytes
    }

    /// The head of the request in this style, of a client that keeps to it.
    pub fn bytes_in(&self, style: Style, cookie: u64) -> Vec<u8> {
        match style {
            Style::Simple | Style::Structured => self.bytes(cookie),
            Style::Extended if self.command == 1 => {
                Asked { flags: self.flags | 32, ..*self }.extended_bytes(cookie)
            }
            Style::Extended => self.extended_bytes(cookie),
        }
    }

    /// How many bytes follow.
    pub fn payload_bytes(&self, style: Style) -> u64 {
        let follows = match style {
            Style::Simple | Style::Structured => self.command == 1,
            Style::Extended => self.command == 1 || self.flags & 32 != 0,
        };
        if follows { self.length } else { 0 }
    }

    fn put_middle(&self, cookie: u64, bytes: &mut Vec<u8>) {
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
    }
}

/// Lengths and flags.
pub type Extents = Vec<(u64, u32)>;

/// How a request ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Done,
    Data(Vec<u8>),
    /// Lengths and flags, for a client with one context.
    Extents(Extents),
    /// Those of each context, for a client with several.
    Contexts(Vec<Extents>),
    /// The number, and the sentence where there is one.
    Error(u32, String),
}

/// Takes replies apart, and panics at anything a client would choke on.
#[derive(Debug)]
pub struct Replies {
    style: Style,
    /// How many contexts were negotiated; they count from 1 on.
    pub contexts: usize,
    /// The parts of block statuses that have come, by cookie.
    parts: BTreeMap<u64, Vec<Extents>>,
    /// Requests without a reply, by cookie.
    pub open: BTreeMap<u64, Asked>,
    unread: Vec<u8>,
}

impl Replies {
    /// Expects replies of a server with which this was negotiated.
    pub fn new(style: Style) -> Replies {
        let (parts, open) = (BTreeMap::new(), BTreeMap::new());
        Replies { style, contexts: 1, parts, open, unread: Vec::new() }
    }

    /// All replies that `bytes` complete.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<(u64, Outcome)> {
        self.unread.extend_from_slice(bytes);
        let unread = std::mem::take(&mut self.unread);
        let mut rest = &unread[..];
        let mut outcomes = Vec::new();
        while let Some((cookie, outcome, after)) = self.one(rest) {
            if let Some(outcome) = outcome {
                self.open.remove(&cookie);
                self.parts.remove(&cookie);
                outcomes.push((cookie, outcome));
            }
            rest = after;
        }
        self.unread = rest.to_vec();
        outcomes
    }

    /// Whether a reply was begun and not ended.
    pub fn is_inside(&self) -> bool {
        !self.unread.is_empty() || !self.parts.is_empty()
    }

    /// One message: whose, the outcome if it is the last one of its reply, and what follows it.
    fn one<'a>(&mut self, bytes: &'a [u8]) -> Option<(u64, Option<Outcome>, &'a [u8])> {
        match bytes.get(..4)? {
            [0x67, 0x44, 0x66, 0x98] => {
                self.simple(bytes).map(|(cookie, outcome, rest)| (cookie, Some(outcome), rest))
            }
            [0x66, 0x8e, 0x33, 0xef] => self.chunk(bytes),
            [0x6e, 0x8a, 0x27, 0x8c] => self.extended_chunk(bytes),
            other => panic!("a reply with the magic {other:x?}"),
        }
    }

    fn simple<'a>(&self, bytes: &'a [u8]) -> Option<(u64, Outcome, &'a [u8])> {
        let (head, rest) = bytes.split_at_checked(16)?;
        let (error, cookie) = (u32_at(head, 4), u64_at(head, 8));
        let asked = self.asked(cookie);
        assert!(self.style != Style::Extended, "a simple reply beside extended headers");
        let chunked = self.style == Style::Structured;
        assert!(!chunked || !matches!(asked.command, 0 | 7), "must be structured");
        if error != 0 {
            return Some((cookie, Outcome::Error(error, String::new()), rest));
        }
        if asked.command != 0 {
            return Some((cookie, Outcome::Done, rest));
        }
        let (data, rest) = rest.split_at_checked(asked.length as usize)?;
        Some((cookie, Outcome::Data(data.to_vec()), rest))
    }

    fn chunk<'a>(&mut self, bytes: &'a [u8]) -> Option<(u64, Option<Outcome>, &'a [u8])> {
        let (head, rest) = bytes.split_at_checked(20)?;
        assert_eq!(self.style, Style::Structured, "a chunk although none were negotiated");
        let (flags, kind) = (u16_at(head, 4), u16_at(head, 6));
        let (cookie, length) = (u64_at(head, 8), u32_at(head, 16) as usize);
        let asked = self.asked(cookie);
        let (body, rest) = rest.split_at_checked(length)?;
        assert_ne!(kind, 6, "block status of 64 bits");
        Some((cookie, self.content(cookie, &asked, flags, kind, body), rest))
    }

    fn extended_chunk<'a>(&mut self, bytes: &'a [u8]) -> Option<(u64, Option<Outcome>, &'a [u8])> {
        let (head, rest) = bytes.split_at_checked(32)?;
        assert_eq!(self.style, Style::Extended, "extended headers that were not negotiated");
        let (flags, kind) = (u16_at(head, 4), u16_at(head, 6));
        let (cookie, offset, length) = (u64_at(head, 8), u64_at(head, 16), u64_at(head, 24));
        let asked = self.asked(cookie);
        assert_eq!(offset, asked.offset, "a reply has the offset of its request");
        let (body, rest) = rest.split_at_checked(length as usize)?;
        assert_ne!(kind, 5, "block status of 32 bits");
        Some((cookie, self.content(cookie, &asked, flags, kind, body), rest))
    }

    /// What a chunk says; the outcome with the last one of its reply.
    fn content(
        &mut self,
        cookie: u64,
        asked: &Asked,
        flags: u16,
        kind: u16,
        body: &[u8],
    ) -> Option<Outcome> {
        if matches!(kind, 5 | 6) {
            return self.part(cookie, asked, flags, kind, body);
        }
        assert_eq!(flags, 1, "what is no block status has one chunk");
        let length = body.len();
        Some(match kind {
            0 => {
                assert_eq!(length, 0);
                assert!(asked.command != 0 || asked.length == 0, "a read without data");
                assert_ne!(asked.command, 7, "a block status without extents");
                Outcome::Done
            }
            1 => {
                assert_eq!((asked.command, u64_at(body, 0)), (0, asked.offset));
                assert_eq!(length - 8, asked.length as usize);
                Outcome::Data(body[8..].to_vec())
            }
            0x8001 => error(body, 0),
            0x8002 => {
                let at = u64_at(body, length - 8);
                assert!(at >= asked.offset && at - asked.offset < asked.length);
                error(body, 8)
            }
            other => panic!("a chunk of kind {other}"),
        })
    }

    /// One context's part of a block status.
    fn part(
        &mut self,
        cookie: u64,
        asked: &Asked,
        flags: u16,
        kind: u16,
        body: &[u8],
    ) -> Option<Outcome> {
        let parts = self.parts.entry(cookie).or_default();
        assert_eq!((asked.command, u32_at(body, 0)), (7, parts.len() as u32 + 1));
        parts.push(extents(asked, kind, body));
        let is_last = parts.len() == self.contexts;
        assert_eq!(flags, u16::from(is_last), "a part for each context, the last one says so");
        is_last.then(|| match &parts[..] {
            [only] => Outcome::Extents(only.clone()),
            several => Outcome::Contexts(several.to_vec()),
        })
    }

    fn asked(&self, cookie: u64) -> Asked {
        *self.open.get(&cookie).unwrap_or_else(|| panic!("a reply to nothing: {cookie}"))
    }
}

/// What one context's part of a block status says.
fn extents(asked: &Asked, kind: u16, body: &[u8]) -> Extents {
    let length = body.len();
    let extents: Extents = if kind == 5 {
        assert!(length > 4 && length % 8 == 4);
        let pairs = body[4..].chunks(8);
        pairs.map(|pair| (u32_at(pair, 0).into(), u32_at(pair, 4))).collect()
    } else {
        assert!(length > 8 && length % 16 == 8);
        assert_eq!(u32_at(body, 4) as usize, length / 16, "the count of descriptors");
        let words = body[8..].chunks(16);
        let told = words.map(|words| {
            assert_eq!(u32_at(words, 8), 0, "the flags have 32 bits here");
            (u64_at(words, 0), u32_at(words, 12))
        });
        told.collect()
    };
    assert!(extents.iter().all(|&(length, flags)| length > 0 && length % 512 == 0 && flags < 4));
    assert!(extents.iter().map(|&(length, _)| length).sum::<u64>() <= asked.length);
    assert!(asked.flags & 8 == 0 || extents.len() == 1, "only one was asked for");
    extents
}

fn error(body: &[u8], behind: usize) -> Outcome {
    let (number, length) = (u32_at(body, 0), usize::from(u16_at(body, 4)));
    assert!(number != 0 && length == body.len() - 6 - behind && length <= 4096);
    let sentence = String::from_utf8(body[6..6 + length].to_vec()).expect("sentences are UTF-8");
    Outcome::Error(number, sentence)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
