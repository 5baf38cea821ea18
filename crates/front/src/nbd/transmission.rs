//! The transmission: requests become [`volume::Request`]s, completions become replies.

use super::connection::{CloseReason, Connection, Effect, State};
use super::contexts::{self, Context};
use super::errors::Refusal;
use super::incoming::Incoming;
use super::wire::{self, RequestHeader, chunk, command, command_flag};
use proto::{Payload, SECTOR_SIZE, Time, limits};
use volume::{Completion, Error, Operation, Request, RequestId};

/// The volume that is served, and how.
#[derive(Debug, Default)]
pub struct Export {
    /// Its size now.
    pub bytes: u64,
    pub read_only: bool,
    /// Reads are answered in chunks, errors carry sentences.
    pub structured: bool,
    /// Block status is answered in these, which count from `FIRST_CONTEXT_ID` on.
    pub contexts: Vec<Context>,
}

/// A request the volume works on.
#[derive(Debug)]
pub struct Pending {
    pub header: RequestHeader,
    /// What it counts for among the bytes the connection holds.
    pub held_bytes: usize,
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
        let message = message.try_into().expect("the message has the header's length");
        let Some(header) = RequestHeader::parse(message) else {
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
        let payload = if header.command == command::WRITE { header.length as usize } else { 0 };
        match self.judge(&header) {
            Err(refusal) => self.refuse_header(now, header, refusal, effects),
            Ok(_) if header.length == 0 && header.command != command::FLUSH => {
                self.send_done(now, &header, effects);
            }
            Ok(Kind::Write) => {
                self.held_bytes += held_bytes;
                self.state = State::Payload(Incoming::new(header, behind.min(payload)));
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
        let length = header.length as usize;
        match header.command {
            command::WRITE if length > limits::NBD_PAYLOAD_BYTES_MAX => {
                // Skipping it would be work of the client's choice.
                self.refuse(now, &header, &refusal, effects);
                self.drain(CloseReason::Protocol("a write that is too long"));
            }
            command::WRITE if length > 0 => {
                self.state = State::Skipping { left: length, header, refusal };
            }
            // No known request has a payload; an unknown one with such a length might.
            unknown if !is_known(unknown) && length > limits::NBD_PAYLOAD_BYTES_MAX => {
                self.refuse(now, &header, &refusal, effects);
                self.drain(CloseReason::Protocol("an unknown request that is too long"));
            }
            _ => self.refuse(now, &header, &refusal, effects),
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

    /// Hands a request to the volume.
    fn request(
        &mut self,
        header: RequestHeader,
        context: usize,
        operation: Operation,
        effects: &mut Vec<Effect>,
    ) {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let held_bytes = self.held_bytes_of(&header);
        self.held_bytes += held_bytes;
        let pending = Pending { header, held_bytes, context };
        let before = self.in_flight.insert(id, pending);
        assert!(before.is_none(), "request ids are never reused");
        let (offset, length) = (header.offset, u64::from(header.length));
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
        let flag = |flag| header.flags & flag != 0;
        let fua = flag(command_flag::FUA);
        let kind = match header.command {
            command::READ => Kind::Other(Operation::Read),
            command::WRITE => Kind::Write,
            command::FLUSH => Kind::Other(Operation::Flush),
            command::TRIM => Kind::Other(Operation::Discard { fua }),
            command::CACHE => Kind::Other(Operation::Prefetch),
            command::WRITE_ZEROES => Kind::Other(Operation::WriteZeroes {
                may_unmap: !flag(command_flag::NO_HOLE),
                fast_only: flag(command_flag::FAST_ZERO),
                fua,
            }),
            command::BLOCK_STATUS => match self.export.contexts.first() {
                Some(context) => Kind::Other(context.operation()),
                None => {
                    let sentence = "Block status needs a context, such as base:allocation; \
                        negotiate it.";
                    return Err(Refusal::invalid(sentence));
                }
            },
            other => unreachable!("command {other} has flags but no meaning"),
        };
        self.judge_place(header)?;
        Ok(kind)
    }

    /// Whether offset and length fit the command and the export.
    fn judge_place(&self, header: &RequestHeader) -> Result<(), Refusal> {
        let (offset, length) = (header.offset, u64::from(header.length));
        if header.command == command::FLUSH {
            return match (offset, length) {
                (0, 0) => Ok(()),
                _ => Err(Refusal::invalid("A flush has neither offset nor length.")),
            };
        }
        if header.command == command::BLOCK_STATUS && length == 0 {
            return Err(Refusal::invalid("Block status of no bytes has no answer."));
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

    /// The flags a command may have, nothing for an unknown one. FUA means nothing to most, but the
    /// protocol wants it taken from all.
    fn flags_of(&self, command: u16) -> Option<u16> {
        use command_flag::*;
        Some(match command {
            command::READ if self.export.structured => FUA | DF,
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
        // Only reads (of no bytes, here) and block status must be answered in chunks.
        let chunked = self.export.structured && header.command == command::READ;
        self.output.write(now, effects, |out| match chunked {
            true => wire::put_chunk_header(out, chunk::NONE, header.cookie, 0),
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
        let structured = self.export.structured;
        self.output.write(now, effects, |out| {
            if structured {
                wire::put_chunk_header(out, chunk::OFFSET_DATA, header.cookie, 8 + header.length);
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
        let next = self.export.contexts.get(context + 1).copied();
        let flags = if next.is_some() { 0 } else { chunk::FLAG_DONE };
        self.output.write(now, effects, |out| {
            let length = 4 + 8 * extents.len() as u32;
            wire::put_chunk(out, flags, chunk::BLOCK_STATUS, header.cookie, length);
            out.extend((wire::FIRST_CONTEXT_ID + context as u32).to_be_bytes());
            for (length, flags) in extents {
                out.extend(length.to_be_bytes());
                out.extend(flags.to_be_bytes());
            }
        });
        if let Some(next) = next {
            self.request(header, context + 1, next.operation(), effects);
        }
    }

    fn refuse(
        &mut self,
        now: Time,
        header: &RequestHeader,
        refusal: &Refusal,
        effects: &mut Vec<Effect>,
    ) {
        let structured = self.export.structured;
        self.output.write(now, effects, |out| match structured {
            true => {
                let Refusal { errno, sentence, at } = refusal;
                wire::put_error_chunk(out, header.cookie, *errno, sentence, *at);
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
