//! The NBD handshake, the client's side: extended headers or structured replies, and one context of
//! block status, where the server has them, then `GO`. Blocking, with a deadline.

use super::{Export, Headers, NbdError, Peer, Stream, be16, be32, be64, printable, wire::*};
use std::io::{self, Read, Write};

/// Longest answer to an option that makes sense: a name of 4 KiB with room to spare.
const ANSWER_BYTES_MAX: u32 = 64 << 10;
/// Answers to one option before the last one.
const ANSWERS_MAX: usize = 100_000;
/// What a server that does not say may be sent at most, by the protocol's document.
const PAYLOAD_MAX_DEFAULT: u32 = 32 << 20;

/// One answer to an option.
struct Answer {
    kind: u32,
    body: Vec<u8>,
}

/// Attaches the volume of this name, with block status in this context.
pub fn attach(
    stream: &mut Stream,
    peer: Peer,
    name: &str,
    context: &str,
) -> Result<Export, NbdError> {
    let mut talk = Talk { stream, peer };
    let stream = &mut talk;
    greet(stream)?;
    let headers = ask_for_headers(stream)?;
    let context = match headers {
        Headers::Simple => None,
        Headers::Structured | Headers::Extended => ask_for_context(stream, name, context)?,
    };
    let mut body = Vec::new();
    body.extend(length_of(name.as_bytes())?.to_be_bytes());
    body.extend(name.as_bytes());
    body.extend(1u16.to_be_bytes());
    body.extend(INFO_BLOCK_SIZE.to_be_bytes());
    send_option(stream, OPTION_GO, &body)?;
    stream.be_patient(peer.settle_patience())?;
    let mut export = Export {
        bytes: 0,
        read_only: false,
        block_min: 1,
        payload_max: PAYLOAD_MAX_DEFAULT,
        context,
        headers,
    };
    let mut described = false;
    for _ in 0..ANSWERS_MAX {
        let answer = read_answer(stream, OPTION_GO)?;
        match answer.kind {
            REPLY_ACK if described => return Ok(export),
            REPLY_INFO => described |= take_info(stream, &mut export, &answer.body)?,
            kind if kind & REPLY_ERROR_BIT != 0 => {
                return Err(stream.refusal(kind, &answer.body, name));
            }
            _ => return Err(stream.nonsense("an answer to GO of an unknown kind")),
        }
    }
    Err(stream.nonsense("endless answers"))
}

/// The greeting and the flags.
fn greet(stream: &mut Talk) -> Result<(), NbdError> {
    stream.be_patient(stream.peer.patience())?;
    let mut hello = [0; 18];
    stream.read_exact(&mut hello)?;
    let magics = (be64(&hello, 0), be64(&hello, 8));
    if magics != (Some(MAGIC_HELLO), Some(MAGIC_OPTION)) {
        return Err(stream.nonsense("no NBD greeting"));
    }
    let flags = be16(&hello, 16).unwrap_or(0);
    if flags & FLAG_FIXED_NEWSTYLE == 0 {
        return Err(stream.nonsense("no fixed newstyle negotiation"));
    }
    let ours = flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
    stream.write_all(&u32::from(ours).to_be_bytes())
}

/// The best headers that the server has.
fn ask_for_headers(stream: &mut Talk) -> Result<Headers, NbdError> {
    let better = [
        (OPTION_EXTENDED_HEADERS, Headers::Extended),
        (OPTION_STRUCTURED_REPLY, Headers::Structured),
    ];
    for (option, headers) in better {
        send_option(stream, option, &[])?;
        if read_answer(stream, option)?.kind == REPLY_ACK {
            return Ok(headers);
        }
    }
    Ok(Headers::Simple)
}

/// Block status in a context; its number, if the server has it.
fn ask_for_context(stream: &mut Talk, name: &str, wanted: &str) -> Result<Option<u32>, NbdError> {
    let mut body = Vec::new();
    body.extend(length_of(name.as_bytes())?.to_be_bytes());
    body.extend(name.as_bytes());
    body.extend(1u32.to_be_bytes());
    body.extend(length_of(wanted.as_bytes())?.to_be_bytes());
    body.extend(wanted.as_bytes());
    send_option(stream, OPTION_SET_META_CONTEXT, &body)?;
    let mut context = None;
    for _ in 0..ANSWERS_MAX {
        let answer = read_answer(stream, OPTION_SET_META_CONTEXT)?;
        match answer.kind {
            REPLY_ACK => return Ok(context),
            REPLY_META_CONTEXT if answer.body.get(4..) == Some(wanted.as_bytes()) => {
                context = be32(&answer.body, 0);
            }
            // GO will say in words what is wrong with the name.
            kind if kind & REPLY_ERROR_BIT != 0 => return Ok(None),
            _ => return Err(stream.nonsense("an answer about contexts of an unknown kind")),
        }
    }
    Err(stream.nonsense("endless answers"))
}

/// One fact about the export; whether it was the one that every server must tell.
fn take_info(stream: &Talk, export: &mut Export, body: &[u8]) -> Result<bool, NbdError> {
    match (be16(body, 0), body.len()) {
        (Some(INFO_EXPORT), 12) => {
            export.bytes = be64(body, 2).unwrap_or(0);
            export.read_only = be16(body, 10).unwrap_or(0) & EXPORT_READ_ONLY != 0;
            Ok(true)
        }
        (Some(INFO_BLOCK_SIZE), 14) => {
            let (least, most) = (be32(body, 2).unwrap_or(0), be32(body, 10).unwrap_or(0));
            if !least.is_power_of_two() || least > 64 << 10 || most < 1 << 12 {
                return Err(stream.nonsense("impossible block sizes"));
            }
            export.block_min = least;
            export.payload_max = most.min(PAYLOAD_MAX_DEFAULT);
            Ok(false)
        }
        (Some(INFO_EXPORT | INFO_BLOCK_SIZE) | None, _) => Err(stream.nonsense("half a fact")),
        _ => Ok(false),
    }
}

fn send_option(stream: &mut Talk, option: u32, body: &[u8]) -> Result<(), NbdError> {
    let mut bytes = Vec::with_capacity(16 + body.len());
    bytes.extend(MAGIC_OPTION.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(length_of(body)?.to_be_bytes());
    bytes.extend(body);
    stream.write_all(&bytes)
}

fn read_answer(stream: &mut Talk, option: u32) -> Result<Answer, NbdError> {
    let mut head = [0; 20];
    stream.read_exact(&mut head)?;
    if be64(&head, 0) != Some(MAGIC_OPTION_REPLY) || be32(&head, 8) != Some(option) {
        return Err(stream.nonsense("an answer to another option"));
    }
    let (kind, length) = (be32(&head, 12).unwrap_or(0), be32(&head, 16).unwrap_or(0));
    if length > ANSWER_BYTES_MAX {
        return Err(stream.nonsense("an answer that is too long"));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body)?;
    Ok(Answer { kind, body })
}

fn length_of(bytes: &[u8]) -> Result<u32, NbdError> {
    u32::try_from(bytes.len())
        .map_err(|_| NbdError::Unknown("no volume has a name that long".to_string()))
}

/// The other end while it is being talked to.
struct Talk<'a> {
    stream: &'a mut Stream,
    peer: Peer,
}

impl Talk<'_> {
    fn be_patient(&mut self, patience: std::time::Duration) -> Result<(), NbdError> {
        self.stream.set_timeouts(patience).map_err(|error| self.lost(&error))
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), NbdError> {
        self.stream.read_exact(bytes).map_err(|error| self.lost(&error))
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), NbdError> {
        self.stream.write_all(bytes).map_err(|error| self.lost(&error))
    }

    /// Why GO was refused; the server's own words where it has some.
    fn refusal(&self, kind: u32, body: &[u8], name: &str) -> NbdError {
        let words = printable(body);
        let or = |other: String| if words.is_empty() { other } else { words.clone() };
        match kind {
            REPLY_ERROR_UNKNOWN => NbdError::Unknown(self.peer.unknown(name, &words)),
            REPLY_ERROR_POLICY => NbdError::Refused(or(self.peer.in_use(name))),
            _ => NbdError::Lost(or(self.peer.refused(name, kind & !REPLY_ERROR_BIT))),
        }
    }

    fn nonsense(&self, what: &str) -> NbdError {
        NbdError::Lost(self.peer.speaks_nonsense(what))
    }

    fn lost(&self, error: &io::Error) -> NbdError {
        NbdError::Lost(match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.peer.hanging(),
            io::ErrorKind::UnexpectedEof => self.peer.closed_early(),
            _ => self.peer.broken(error),
        })
    }
}
