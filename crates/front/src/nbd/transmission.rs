//! The transmission: requests become [`volume::Request`]s, completions become replies.

use super::connection::{CloseReason, Connection, Effect, State, held_bytes_of};
use super::errors::Refusal;
use super::incoming::Incoming;
use super::wire::{self, Headers, RequestHeader, chunk, command, command_flag, extent_flag};
use proto::{BlockState, Payload, SECTOR_SIZE, Time, limits};
use volume::{Completion, Error, Extent, Operation, Request, RequestId};

/// The volume that is served, and how.
#[derive(Debug, Default)]
pub struct Export {
    /// Its size now.
    pub bytes: u64,
    pub read_only: bool,
    /// How requests and replies are headed.
    pub headers: Headers,
    /// Block status is answered with `base:allocation`.
    pub allocation: bool,
}

/// A request the volume works on.
#[derive(Debug)]
pub struct Pending {
    pub header: RequestHeader,
    /// What it counts for among the bytes the connection holds.
    pub held_bytes: usize,
    /// What of it the volume was not asked for yet, at its end.
    pub left_bytes: u64,
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
        let held_bytes = held_bytes_of(&header);
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
                self.held_bytes += held_bytes;
                self.request(header, operation, effects);
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
        self.request(header, Operation::Write { buffer: incoming.finish(), fua }, effects);
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

    /// Hands a request to the volume, a long one only in part. Its bytes are already counted.
    fn request(&mut self, header: RequestHeader, operation: Operation, effects: &mut Vec<Effect>) {
        let length = match operation {
            // The volume answers for as much of it as is little work.
            Operation::Status => header.length,
            _ => header.length.min(limits::NBD_STEP_BYTES_MAX),
        };
        let left_bytes = header.length - length;
        let pending = Pending { header, held_bytes: held_bytes_of(&header), left_bytes };
        self.begin(pending, header.offset, length, operation, effects);
    }

    /// Hands the next part of a request to the volume.
    pub(super) fn go_on(&mut self, mut pending: Pending, effects: &mut Vec<Effect>) {
        let header = &pending.header;
        let offset = header.offset + (header.length - pending.left_bytes);
        let length = pending.left_bytes.min(limits::NBD_STEP_BYTES_MAX);
        let operation = operation_of(header);
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
            _ => Kind::Other(operation_of(header)),
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
            if !self.export.allocation {
                let sentence = "Block status needs the context base:allocation; negotiate it.";
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

    /// Sends the reply to a request the volume has completed.
    pub(super) fn complete(
        &mut self,
        now: Time,
        header: &RequestHeader,
        result: Result<Completion, Error>,
        effects: &mut Vec<Effect>,
    ) {
        match (header.command, result) {
            (_, Err(error)) => {
                self.refuse(now, header, &Refusal::of(&error, header), effects);
            }
            (command::READ, Ok(Completion::Data(payloads))) => {
                self.send_data(now, header, payloads, effects);
            }
            (command::BLOCK_STATUS, Ok(Completion::Status(extents))) => {
                self.send_status(now, header, &extents, effects);
            }
            (command::READ | command::BLOCK_STATUS, Ok(other)) => {
                unreachable!("{other:?} does not complete command {}", header.command);
            }
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

    fn send_status(
        &mut self,
        now: Time,
        header: &RequestHeader,
        extents: &[Extent],
        effects: &mut Vec<Effect>,
    ) {
        let one = header.flags & command_flag::REQ_ONE != 0;
        let count_max = if one { 1 } else { limits::NBD_STATUS_EXTENTS_MAX };
        let extents = descriptors(extents, header.length, count_max);
        assert!(!extents.is_empty(), "a block status tells of one extent at least");
        let headers = self.export.headers;
        self.output.write(now, effects, |out| {
            wire::put_status_chunk(out, headers, header, &extents);
        });
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

/// What a request without payload asks of the volume.
fn operation_of(header: &RequestHeader) -> Operation {
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
        command::BLOCK_STATUS => Operation::Status,
        other => unreachable!("command {other} is not known, or has a payload"),
    }
}

fn is_known(command: u16) -> bool {
    command <= command::BLOCK_STATUS && command != command::DISC
}

/// The extents as lengths and flags, neighbours of equal flags joined, at most `count_max` of them
/// and not past `length_max`.
fn descriptors(extents: &[Extent], length_max: u64, count_max: usize) -> Vec<(u64, u32)> {
    let mut descriptors: Vec<(u64, u32)> = Vec::new();
    let mut left = length_max;
    for extent in extents {
        let flags = match extent.state {
            BlockState::Absent | BlockState::Zero => extent_flag::HOLE | extent_flag::ZERO,
            BlockState::Data => 0,
        };
        let length = extent.length.min(left);
        if length == 0 {
            break;
        }
        left -= length;
        let count = descriptors.len();
        match descriptors.last_mut() {
            Some((joined, last)) if *last == flags => *joined += length,
            _ if count == count_max => break,
            _ => descriptors.push((length, flags)),
        }
    }
    descriptors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(extents: &[(u64, BlockState)], length: u64, count: usize, expected: &[(u64, u32)]) {
        let extents: Vec<Extent> =
            extents.iter().map(|&(length, state)| Extent { length, state }).collect();
        assert_eq!(descriptors(&extents, length, count), expected);
    }

    #[test]
    fn extents_are_joined_cut_and_counted() {
        use BlockState::{Absent, Data, Zero};
        check(&[(4096, Absent), (4096, Zero), (4096, Data)], 12288, 9, &[(8192, 3), (4096, 0)]);
        check(&[(4096, Data), (1 << 40, Absent)], 8192, 9, &[(4096, 0), (4096, 3)]);
        check(&[(1 << 40, Data)], 1 << 33, 9, &[(1 << 33, 0)]);
        check(&[(512, Data), (512, Zero), (512, Data)], 1536, 1, &[(512, 0)]);
        check(&[(512, Zero), (512, Absent), (512, Data)], 1536, 1, &[(1024, 3)]);
        check(&[(4096, Data), (4096, Zero)], 4096, 9, &[(4096, 0)]);
    }
}
