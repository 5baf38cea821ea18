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

/// All a client says until it is served `name`.
pub fn handshake(name: &str, structured: bool, allocation: bool) -> Vec<u8> {
    let contexts: &[&str] = if allocation { &["base:allocation"] } else { &[] };
    handshake_with(name, structured, contexts)
}

/// All a client says until it is served `name`, with these contexts.
pub fn handshake_with(name: &str, structured: bool, contexts: &[&str]) -> Vec<u8> {
    let mut bytes = client_flags(3);
    if structured {
        bytes.extend(option(8, &[]));
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
    pub length: u32,
}

impl Asked {
    /// The head of the request.
    pub fn bytes(&self, cookie: u64) -> Vec<u8> {
        let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        bytes.extend(self.length.to_be_bytes());
        bytes
    }
}

/// How a request ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Done,
    Data(Vec<u8>),
    /// Lengths and flags, for a client with one context.
    Extents(Vec<(u32, u32)>),
    /// Those of each context, for a client with several.
    Contexts(Vec<Vec<(u32, u32)>>),
    /// The number, and the sentence where there is one.
    Error(u32, String),
}

/// Takes replies apart, and panics at anything a client would choke on.
#[derive(Debug)]
pub struct Replies {
    structured: bool,
    /// How many contexts were negotiated; they count from 1 on.
    pub contexts: usize,
    /// The parts of block statuses that have come, by cookie.
    parts: BTreeMap<u64, Vec<Vec<(u32, u32)>>>,
    /// Requests without a reply, by cookie.
    pub open: BTreeMap<u64, Asked>,
    unread: Vec<u8>,
}

impl Replies {
    /// Expects replies of a server with which structured replies were negotiated or not.
    pub fn new(structured: bool) -> Replies {
        let (parts, open) = (BTreeMap::new(), BTreeMap::new());
        Replies { structured, contexts: 1, parts, open, unread: Vec::new() }
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
            other => panic!("a reply with the magic {other:x?}"),
        }
    }

    fn simple<'a>(&self, bytes: &'a [u8]) -> Option<(u64, Outcome, &'a [u8])> {
        let (head, rest) = bytes.split_at_checked(16)?;
        let (error, cookie) = (u32_at(head, 4), u64_at(head, 8));
        let asked = self.asked(cookie);
        assert!(!self.structured || !matches!(asked.command, 0 | 7), "must be structured");
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
        assert!(self.structured, "a chunk although none were negotiated");
        let (flags, kind) = (u16_at(head, 4), u16_at(head, 6));
        let (cookie, length) = (u64_at(head, 8), u32_at(head, 16) as usize);
        let asked = self.asked(cookie);
        let (body, rest) = rest.split_at_checked(length)?;
        if kind == 5 {
            return Some((cookie, self.part(cookie, flags, &asked, body), rest));
        }
        assert_eq!(flags, 1, "what is no block status has one chunk");
        let outcome = match kind {
            0 => {
                assert_eq!(length, 0);
                assert!(asked.command != 0 || asked.length == 0, "a read without data");
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
                assert!(at >= asked.offset && at - asked.offset < u64::from(asked.length));
                error(body, 8)
            }
            other => panic!("a chunk of kind {other}"),
        };
        Some((cookie, Some(outcome), rest))
    }

    /// One context's part of a block status; the outcome with the last one.
    fn part(&mut self, cookie: u64, flags: u16, asked: &Asked, body: &[u8]) -> Option<Outcome> {
        let parts = self.parts.entry(cookie).or_default();
        parts.push(extents(asked, parts.len() as u32 + 1, body));
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

fn extents(asked: &Asked, context: u32, body: &[u8]) -> Vec<(u32, u32)> {
    assert_eq!((asked.command, u32_at(body, 0)), (7, context));
    assert!(body.len() > 4 && body.len() % 8 == 4);
    let extents: Vec<(u32, u32)> =
        body[4..].chunks(8).map(|pair| (u32_at(pair, 0), u32_at(pair, 4))).collect();
    assert!(extents.iter().all(|&(length, flags)| length > 0 && length % 512 == 0 && flags < 4));
    assert!(
        extents.iter().map(|&(length, _)| u64::from(length)).sum::<u64>() <= asked.length.into()
    );
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
