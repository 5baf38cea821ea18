//! The transmission: requests become [`volume::Request`]s, completions become replies.

use super::connection::{CloseReason, Connection, Effect, State};
use super::contexts::{self, Context};
use super::errors::Refusal;
use super::incoming::Incoming;
use super::wire::{self, Headers, RequestHeader, chunk, command, command_flag};
use proto::{Payload, SECTOR_SIZE, Time, limits};
use volume::{Completion, Error, Operation, Request, RequestId};

/// The volume that is served, and how.
#[derive(Debug, Default)]
pub struct Export {
    /// Its size now.
    pub bytes: u64,
    pub read_only: bool,
    /// How requests and replies are headed.
    pub headers: Headers,
    /// Block status is answered in these, which count from `FIRST_CONTEXT_ID` on.
    pub contexts: Vec<Context>,
}

/// A request the volume works on.
#[derive(Debug)]
pub struct Pending {
    pub header: RequestHeader,
    /// What it counts for among the bytes the connection holds.
    pub held_bytes: usize,
    /// What of it the volume was not asked for yet, at its end.
    pub left_bytes: u64,
    /// In which of the export's contexts a block status is being looked up.
    pub context: usize,
}

impl Connection {
    pub(super) fn take_request_header(
        &mut self,
        now: Time,
        message: &[u8],
        behind: usize,
        effects: &mut Vec<Effect>,
    ) {
        let Some(header) = RequestHeader::parse(self.export.headers, message) else {
            // Where the next request begins is unknown now.
            self.drain(CloseReason::Protocol("a request without its magic"));
            return;
        };
        if header.command == command::DISC {
            self.drain(CloseReason::Disconnected);
            return;
        }
        self.state = State::Waiting(header);
        self.admit(now, behind, effects);
        if !matches!(self.state, State::Payload(_) | State::Skipping { .. }) {
            // All of it is there; if it waits, then for us.
            self.request_deadline = None;
        }
    }

    /// Starts the request that waits, if there is room for it and its reply; `behind` bytes of its
    /// payload are already there.
    pub(super) fn admit(&mut self, now: Time, behind: usize, effects: &mut Vec<Effect>) {
        let State::Waiting(header) = self.state else { return };
        let held_bytes = self.held_bytes_of(&header);
        let bytes = self.held_bytes + self.output.unsent() + held_bytes;
        if self.in_flight.len() >= limits::NBD_REQUESTS_PER_CONNECTION_MAX
            || bytes > limits::NBD_BYTES_PER_CONNECTION_MAX
        {
            return;
        }
        self.state = State::RequestHeader;
        match self.judge(&header) {
            Err(refusal) => self.refuse_header(now, header, refusal, effects),
            Ok(_) if header.length == 0 && header.command != command::FLUSH => {
                self.send_done(now, &header, effects);
            }
            Ok(Kind::Write) => {
                self.held_bytes += held_bytes;
                let waiting = behind.min(header.length as usize);
                self.state = State::Payload(Incoming::new(header, waiting));
            }
            Ok(Kind::Other(operation)) => {
                self.request(header, 0, operation, effects);
            }
        }
    }

    /// Refuses a request whose payload, if it has one, is still to come.
    fn refuse_header(
        &mut self,
        now: Time,
        header: RequestHeader,
        refusal: Refusal,
        effects: &mut Vec<Effect>,
    ) {
        // Skipping more than the longest payload would be work of the client's choice.
        let too_long = header.length > limits::NBD_PAYLOAD_BYTES_MAX as u64;
        if header.has_payload(self.export.headers) {
            if too_long {
                self.refuse(now, &header, &refusal, effects);
                self.drain(CloseReason::Protocol("a payload that is too long"));
            } else if header.length == 0 {
                self.refuse(now, &header, &refusal, effects);
            } else {
                let left = header.length as usize;
                self.state = State::Skipping { left, header, refusal };
            }
            return;
        }
        self.refuse(now, &header, &refusal, effects);
        // Extended headers tell of payloads. Otherwise no known request but a write has one, but
        // an unknown one with such a length might.
        let extended = self.export.headers == Headers::Extended;
        if !is_known(header.command) && too_long && !extended {
            self.drain(CloseReason::Protocol("an unknown request that is too long"));
        }
    }

    /// The payload of a write is there.
    pub(super) fn finish_payload(&mut self, effects: &mut Vec<Effect>) {
        let State::Payload(incoming) = std::mem::replace(&mut self.state, State::RequestHeader)
        else {
            unreachable!("only a payload is finished");
        };
        let header = incoming.header;
        let fua = header.flags & command_flag::FUA != 0;
        self.held_bytes -= self.held_bytes_of(&header);
        self.request(header, 0, Operation::Write { buffer: incoming.finish(), fua }, effects);
        self.request_deadline = None;
    }

    /// The payload of a refused write went by.
    pub(super) fn finish_skipping(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let state = std::mem::replace(&mut self.state, State::RequestHeader);
        let State::Skipping { header, refusal, .. } = state else {
            unreachable!("only what is skipped is finished so");
        };
        self.refuse(now, &header, &refusal, effects);
        self.request_deadline = None;
    }

    /// Hands a request to the volume, a long one only in part.
    fn request(
        &mut self,
        header: RequestHeader,
        context: usize,
        operation: Operation,
        effects: &mut Vec<Effect>,
    ) {
        let length = match operation {
            // The volume answers for as much of it as is little work.
            Operation::Status | Operation::Difference { .. } => header.length,
            _ => header.length.min(limits::NBD_STEP_BYTES_MAX),
        };
        let left_bytes = header.length - length;
        let held_bytes = self.held_bytes_of(&header);
        let pending = Pending { header, held_bytes, left_bytes, context };
        self.begin(pending, header.offset, length, operation, effects);
    }

    /// Hands the next part of a request to the volume.
    pub(super) fn go_on(&mut self, mut pending: Pending, effects: &mut Vec<Effect>) {
        let header = &pending.header;
        let offset = header.offset + (header.length - pending.left_bytes);
        let length = pending.left_bytes.min(limits::NBD_STEP_BYTES_MAX);
        let operation = self.operation_of(header, pending.context);
        pending.left_bytes -= length;
        self.begin(pending, offset, length, operation, effects);
    }

    fn begin(
        &mut self,
        pending: Pending,
        offset: u64,
        length: u64,
        operation: Operation,
        effects: &mut Vec<Effect>,
    ) {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.held_bytes += pending.held_bytes;
        let before = self.in_flight.insert(id, pending);
        assert!(before.is_none(), "request ids are never reused");
        effects.push(Effect::Request(Request { id, offset, length, operation }));
    }

    /// Whether the request makes sense for this export, and what it does then.
    fn judge(&self, header: &RequestHeader) -> Result<Kind, Refusal> {
        let Some(flags) = self.flags_of(header.command) else {
            return Err(Refusal::invalid("This server does not know the request."));
        };
        if header.flags & !flags != 0 {
            return Err(Refusal::invalid("The request has a flag it cannot have here."));
        }
        if header.command == command::WRITE && !header.has_payload(self.export.headers) {
            let sentence = "With extended headers a write must have the flag PAYLOAD_LEN.";
            return Err(Refusal::invalid(sentence));
        }
        self.judge_place(header)?;
        Ok(match header.command {
            command::WRITE => Kind::Write,
            _ => Kind::Other(self.operation_of(header, 0)),
        })
    }

    /// Whether offset and length fit the command and the export.
    fn judge_place(&self, header: &RequestHeader) -> Result<(), Refusal> {
        let (offset, length) = (header.offset, header.length);
        if header.command == command::FLUSH {
            return match (offset, length) {
                (0, 0) => Ok(()),
                _ => Err(Refusal::invalid("A flush has neither offset nor length.")),
            };
        }
        if header.command == command::BLOCK_STATUS {
            if self.export.contexts.is_empty() {
                let sentence =
                    "Block status needs a context, such as base:allocation; negotiate it.";
                return Err(Refusal::invalid(sentence));
            }
            if length == 0 {
                return Err(Refusal::invalid("Block status of no bytes has no answer."));
            }
        }
        let refuse = |error: Error| Err(Refusal::of(&error, header));
        let changes =
            matches!(header.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if changes && self.export.read_only {
            return refuse(Error::ReadOnly);
        }
        let sector = SECTOR_SIZE as u64;
        if !offset.is_multiple_of(sector) || !length.is_multiple_of(sector) {
            return refuse(Error::Misaligned);
        }
        // Before the end of the volume is looked at: such a write cannot even be skipped.
        let carries = matches!(header.command, command::READ | command::WRITE);
        if carries && length > limits::NBD_PAYLOAD_BYTES_MAX as u64 {
            return refuse(Error::TooLong);
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.export.bytes => Ok(()),
            _ => refuse(Error::OutOfRange),
        }
    }

    /// What a request without payload asks of the volume; a block status in this context.
    fn operation_of(&self, header: &RequestHeader, context: usize) -> Operation {
        let flag = |flag| header.flags & flag != 0;
        let fua = flag(command_flag::FUA);
        match header.command {
            command::READ => Operation::Read,
            command::FLUSH => Operation::Flush,
            command::TRIM => Operation::Discard { fua },
            command::CACHE => Operation::Prefetch,
            command::WRITE_ZEROES => Operation::WriteZeroes {
                may_unmap: !flag(command_flag::NO_HOLE),
                fast_only: flag(command_flag::FAST_ZERO),
                fua,
            },
            command::BLOCK_STATUS => self.export.contexts[context].operation(),
            other => unreachable!("command {other} is not known, or has a payload"),
        }
    }

    /// The flags a command may have, nothing for an unknown one. FUA means nothing to most, but the
    /// protocol wants it taken from all.
    fn flags_of(&self, command: u16) -> Option<u16> {
        use command_flag::*;
        Some(match command {
            command::READ if self.export.headers.has_chunks() => FUA | DF,
            command::WRITE if self.export.headers == Headers::Extended => FUA | PAYLOAD_LENGTH,
            command::BLOCK_STATUS => FUA | REQ_ONE,
            command::WRITE_ZEROES => FUA | NO_HOLE | FAST_ZERO,
            known if is_known(known) => FUA,
            _ => return None,
        })
    }

    // -- replies -------------------------------------------------------------------------------

    /// Sends the reply to a request the volume has completed, or the part of it that it brought.
    pub(super) fn complete(
        &mut self,
        now: Time,
        pending: &Pending,
        result: Result<Completion, Error>,
        effects: &mut Vec<Effect>,
    ) {
        let header = &pending.header;
        match (header.command, result) {
            (_, Err(error)) => {
                self.refuse(now, header, &Refusal::of(&error, header), effects);
            }
            (command::READ, Ok(Completion::Data(payloads))) => {
                self.send_data(now, header, payloads, effects);
            }
            (command::BLOCK_STATUS, Ok(found)) => self.send_status(now, pending, &found, effects),
            (command::READ, Ok(other)) => unreachable!("{other:?} does not complete a read"),
            (_, Ok(Completion::Done)) => self.send_done(now, header, effects),
            (command, Ok(other)) => unreachable!("{other:?} does not complete command {command}"),
        }
    }

    /// Success without anything to tell.
    fn send_done(&mut self, now: Time, header: &RequestHeader, effects: &mut Vec<Effect>) {
        let headers = self.export.headers;
        let chunked = match headers {
            Headers::Simple => false,
            // Only reads (of no bytes, here) and block status must be answered in chunks.
            Headers::Structured => header.command == command::READ,
            Headers::Extended => true,
        };
        self.output.write(now, effects, |out| match chunked {
            true => wire::put_chunk_header(out, headers, chunk::NONE, header, 0),
            false => wire::put_simple_reply(out, 0, header.cookie),
        });
    }

    /// The content goes out as one chunk, in the pieces it came in.
    fn send_data(
        &mut self,
        now: Time,
        header: &RequestHeader,
        payloads: Vec<Payload>,
        effects: &mut Vec<Effect>,
    ) {
        let length: usize = payloads.iter().map(Payload::len).sum();
        assert_eq!(length, header.length as usize, "a read brings what was asked for");
        let headers = self.export.headers;
        self.output.write(now, effects, |out| {
            if headers.has_chunks() {
                let length = 8 + length as u32;
                wire::put_chunk_header(out, headers, chunk::OFFSET_DATA, header, length);
                out.extend(header.offset.to_be_bytes());
            } else {
                wire::put_simple_reply(out, 0, header.cookie);
            }
        });
        for payload in payloads {
            self.output.write_payload(now, effects, payload);
        }
    }

    /// One context's part of a block status; then the next one is looked up.
    fn send_status(
        &mut self,
        now: Time,
        pending: &Pending,
        found: &Completion,
        effects: &mut Vec<Effect>,
    ) {
        let Pending { header, context, .. } = *pending;
        let one = header.flags & command_flag::REQ_ONE != 0;
        let count_max = if one { 1 } else { limits::NBD_STATUS_EXTENTS_MAX };
        let extents = match (self.export.contexts[context], found) {
            (Context::Allocation, Completion::Status(extents)) => {
                contexts::allocation(extents, header.length, count_max)
            }
            (Context::Dirty(_), Completion::Difference(runs)) => {
                contexts::dirty(runs, header.length, count_max)
            }
            (context, other) => unreachable!("{other:?} does not complete {context:?}"),
        };
        assert!(!extents.is_empty(), "a block status tells of one extent at least");
        let next = context + 1;
        let is_last = next == self.export.contexts.len();
        let headers = self.export.headers;
        self.output.write(now, effects, |out| {
            let id = wire::FIRST_CONTEXT_ID + context as u32;
            wire::put_status_chunk(out, headers, &header, is_last, id, &extents);
        });
        if !is_last {
            self.request(header, next, self.operation_of(&header, next), effects);
        }
    }

    fn refuse(
        &mut self,
        now: Time,
        header: &RequestHeader,
        refusal: &Refusal,
        effects: &mut Vec<Effect>,
    ) {
        let headers = self.export.headers;
        self.output.write(now, effects, |out| match headers.has_chunks() {
            true => {
                let Refusal { errno, sentence, at } = refusal;
                wire::put_error_chunk(out, headers, header, *errno, sentence, *at);
            }
            false => wire::put_simple_reply(out, refusal.errno as u32, header.cookie),
        });
    }
}

/// What a request does: a write's payload has yet to come.
enum Kind {
    Write,
    Other(Operation),
}

fn is_known(command: u16) -> bool {
    command <= command::BLOCK_STATUS && command != command::DISC
}
