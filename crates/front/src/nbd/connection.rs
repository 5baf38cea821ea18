//! One client's connection: takes its bytes apart into messages, keeps it within its limits and
//! its deadlines. What the messages mean is in `handshake` and `transmission`.

use super::errors::Refusal;
use super::handshake::{Handshake, Question};
use super::incoming::Incoming;
use super::output::{Output, Segment};
use super::transmission::{Export, Pending};
use super::wire::{self, OptionHeader, RequestHeader};
use proto::{Duration, Time, limits};
use std::collections::BTreeMap;
use volume::{Answer, RequestId};

/// What a driver knows about a client before it says anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Whether further connections of this client share its attachment. Clients that are told so
    /// open several; where each counts as a client of its own they would be refused.
    pub can_multi_conn: bool,
    /// Whether it is a process of this machine that the socket's rights have let in: it may go on
    /// with the handshake as long as it makes progress.
    pub is_local: bool,
}

/// What the driver has to do.
#[derive(Debug)]
pub enum Effect {
    /// Write this to the socket, after all before it.
    Send(Segment),
    /// Answer with [`Answer::Listed`].
    List,
    /// Answer with [`Answer::Described`], [`Answer::Unknown`] or [`Answer::Refused`].
    Describe {
        /// The volume.
        name: String,
    },
    /// Attach the volume for this connection, until it closes. Answer with [`Answer::Opened`],
    /// [`Answer::Unknown`] or [`Answer::Refused`].
    Open {
        /// The volume.
        name: String,
    },
    /// Answer with [`Answer::Bases`].
    Bases {
        /// The volume or snapshot, which need not exist.
        name: String,
        /// Which of its bases.
        tags: volume::Tags,
    },
    /// Hand this to the attached volume and bring back its completion.
    Request(volume::Request),
    /// Close the socket now and forget the connection. What the socket has not taken is dropped;
    /// where a reply still matters, the connection waits for it before it says this. Requests in
    /// flight need not be completed any more.
    Close {
        /// Why, for the log.
        reason: CloseReason,
    },
}

/// Why a connection ended, in words for a log.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CloseReason {
    /// As the protocol wants it: the client said goodbye.
    #[error("the client disconnected")]
    Disconnected,
    /// The client closed its socket, or it failed.
    #[error("the client went away without disconnecting")]
    Vanished,
    /// This side wanted to: [`Connection::handle_stop`].
    #[error("the connection was stopped by this node")]
    Stopped,
    /// The handshake took more than `NBD_HANDSHAKE_MS_MAX`.
    #[error("the client took too long over the handshake")]
    HandshakeTooSlow,
    /// A request took more than `NBD_REQUEST_MS_MAX` to arrive.
    #[error("the client took too long over a request it had begun")]
    RequestTooSlow,
    /// Replies were not read for `NBD_WRITE_STALL_MS_MAX`.
    #[error("the client does not read its replies")]
    NotReading,
    /// The client asked for a volume it cannot have, in the old way that knows no refusal.
    #[error("the client asked for a volume it cannot have: {0}")]
    Refused(String),
    /// The client broke the protocol.
    #[error("the client broke the NBD protocol: {0}")]
    Protocol(&'static str),
}

/// What the connection waits for.
#[derive(Debug)]
pub(super) enum State {
    /// The client's flags.
    ClientFlags,
    /// The head of an option.
    OptionHeader,
    /// The data of an option.
    OptionData(OptionHeader),
    /// The driver's answer.
    Asking(Question),
    /// The head of a request.
    RequestHeader,
    /// Room for this request.
    Waiting(RequestHeader),
    /// The payload of a write.
    Payload(Incoming),
    /// The payload of a request that is refused.
    Skipping { left: usize, header: RequestHeader, refusal: Refusal },
    /// Requests in flight and replies to be read; then the end. Input is dropped.
    Draining(CloseReason),
    /// Nothing any more.
    Closed,
}

/// One client's connection; see the module for how a driver uses it.
///
/// Holds at most `NBD_BYTES_PER_CONNECTION_MAX` bytes of payload (arriving, in flight and unread by
/// the client together), `NBD_REQUESTS_PER_CONNECTION_MAX` requests in flight and twice
/// `NBD_INPUT_BYTES_MAX` bytes of input, whatever the client does.
#[derive(Debug)]
pub struct Connection {
    pub(super) settings: Settings,
    pub(super) state: State,
    /// Input that could not be taken yet: a part of a message, or what is behind one that waits.
    parked: Vec<u8>,
    /// How much of `parked` was taken since.
    parked_at: usize,
    /// What was negotiated so far.
    pub(super) handshake: Handshake,
    /// What is served.
    pub(super) export: Export,
    /// Requests the volume has not completed.
    pub(super) in_flight: BTreeMap<RequestId, Pending>,
    /// The next request's id.
    pub(super) next_id: u64,
    /// Payload bytes of the requests in flight and of the one arriving.
    pub(super) held_bytes: usize,
    pub(super) output: Output,
    /// When the handshake must be over; stands still while the driver is asked.
    pub(super) handshake_deadline: Option<Time>,
    /// When the request that was begun must be complete.
    pub(super) request_deadline: Option<Time>,
}

impl Connection {
    /// A client has connected. Greets it.
    pub fn new(now: Time, settings: Settings, effects: &mut Vec<Effect>) -> Connection {
        let mut output = Output::default();
        output.write(now, effects, wire::put_greeting);
        Connection {
            settings,
            state: State::ClientFlags,
            parked: Vec::new(),
            parked_at: 0,
            handshake: Handshake::new(&settings),
            export: Export::default(),
            in_flight: BTreeMap::new(),
            next_id: 0,
            held_bytes: 0,
            output,
            handshake_deadline: Some(now + Duration::from_millis(limits::NBD_HANDSHAKE_MS_MAX)),
            request_deadline: None,
        }
    }

    /// Whether the driver should read the socket. If not, the connection is at a limit, waits for
    /// an answer, or ends; any of the `handle_` calls may change it.
    pub fn wants_input(&self) -> bool {
        match self.state {
            State::Draining(_) | State::Closed | State::Waiting(_) => false,
            // Read on a little, to notice a client that goes away meanwhile.
            State::Asking(_) => self.parked_bytes() < limits::NBD_OPTION_BYTES_MAX,
            State::OptionHeader => !self.is_stopped(),
            _ => true,
        }
    }

    /// Whether [`Effect::Close`] was said: nothing happens any more.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// How many requests the volume has not completed.
    pub fn requests_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Takes bytes of the client, all of them.
    ///
    /// # Panics
    /// If a driver goes on although the connection does not want input.
    pub fn handle_bytes(&mut self, now: Time, bytes: &[u8], effects: &mut Vec<Effect>) {
        if self.is_ending() {
            return;
        }
        let mut rest = bytes;
        // A message that was cut is completed first, with no more than it needs: the bytes behind
        // it need not be copied.
        while self.parked_bytes() > 0 && !rest.is_empty() && !self.is_stopped() {
            let wanted = self.message_bytes() - self.parked_bytes();
            let (head, tail) = rest.split_at(wanted.min(rest.len()));
            self.park(head);
            rest = tail;
            self.unpark(now, effects);
        }
        if self.parked_bytes() == 0 {
            let taken = self.advance(now, rest, effects);
            rest = &rest[taken..];
        }
        self.park(rest);
        self.settle(now, effects);
    }

    /// Where the next bytes of a long payload belong: read the socket straight into it.
    pub fn payload_target(&mut self) -> Option<&mut [u8]> {
        match &mut self.state {
            State::Payload(incoming) => incoming.target(),
            _ => None,
        }
    }

    /// So many bytes of the target were filled.
    ///
    /// # Panics
    /// If there is no target, or it is shorter.
    pub fn handle_payload(&mut self, now: Time, filled: usize, effects: &mut Vec<Effect>) {
        let State::Payload(incoming) = &mut self.state else {
            panic!("a payload was filled that nobody asked for");
        };
        incoming.filled(filled);
        self.advance(now, &[], effects);
        self.settle(now, effects);
    }

    /// The client closed its side, or its socket failed.
    pub fn handle_eof(&mut self, _now: Time, effects: &mut Vec<Effect>) {
        let reason = match std::mem::replace(&mut self.state, State::Closed) {
            State::Closed => return,
            State::Draining(reason) => reason,
            _ => CloseReason::Vanished,
        };
        self.close(reason, effects);
    }

    /// The answer to the question asked last.
    ///
    /// # Panics
    /// If nothing was asked, or the answer is to another question.
    pub fn handle_answer(&mut self, now: Time, answer: Answer, effects: &mut Vec<Effect>) {
        if self.is_ending() {
            return;
        }
        let State::Asking(question) = std::mem::replace(&mut self.state, State::OptionHeader)
        else {
            panic!("an answer came that nobody asked for");
        };
        self.take_answer(now, question, answer, effects);
        self.resume(now, effects);
        self.settle(now, effects);
    }

    /// The end of a request.
    ///
    /// # Panics
    /// If the request is not in flight, or the completion is not of its kind.
    pub fn handle_completion(
        &mut self,
        now: Time,
        id: RequestId,
        result: Result<volume::Completion, volume::Error>,
        effects: &mut Vec<Effect>,
    ) {
        if self.is_closed() {
            return;
        }
        let pending = self.in_flight.remove(&id).expect("only requests in flight are completed");
        self.held_bytes -= pending.held_bytes;
        if pending.left_bytes > 0 && result.is_ok() {
            // A stop is not held up: without a reply the client asks again when it reconnects.
            if !matches!(self.state, State::Draining(CloseReason::Stopped)) {
                self.go_on(pending, effects);
            }
        } else {
            self.complete(now, &pending, result, effects);
        }
        self.resume(now, effects);
        self.settle(now, effects);
    }

    /// How many bytes of the output the socket has not taken yet.
    ///
    /// # Panics
    /// If that is more than there was.
    pub fn handle_unsent(&mut self, now: Time, bytes: usize, effects: &mut Vec<Effect>) {
        if self.is_closed() {
            return;
        }
        self.output.handle_unsent(now, bytes);
        self.resume(now, effects);
        self.settle(now, effects);
    }

    /// The attached volume has another size. The protocol has no word for it: the client keeps
    /// the size it was told, later requests are measured by the new one.
    pub fn handle_resized(&mut self, bytes: u64) {
        self.export.bytes = bytes;
    }

    /// This side wants to end: no further request is taken; the connection closes when those in
    /// flight are answered, except long ones of which a part was not begun.
    pub fn handle_stop(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.is_ending() {
            return;
        }
        self.drain(CloseReason::Stopped);
        self.settle(now, effects);
    }

    /// When [`Connection::handle_deadline`] wants to be called.
    pub fn deadline(&self) -> Option<Time> {
        [self.handshake_deadline, self.request_deadline, self.output.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Time has come: ends the connection if the client was too slow.
    pub fn handle_deadline(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.is_closed() {
            return;
        }
        let passed = |deadline: Option<Time>| deadline.is_some_and(|at| at <= now);
        if passed(self.handshake_deadline) {
            self.close(CloseReason::HandshakeTooSlow, effects);
        } else if passed(self.request_deadline) {
            self.close(CloseReason::RequestTooSlow, effects);
        } else if passed(self.output.deadline()) {
            self.close(CloseReason::NotReading, effects);
        }
    }

    /// Asserts what must hold between two events.
    ///
    /// # Panics
    /// If it does not.
    pub fn check(&self) {
        let arriving = match &self.state {
            State::Payload(incoming) => self.held_bytes_of(&incoming.header),
            _ => 0,
        };
        let in_flight: usize = self.in_flight.values().map(|pending| pending.held_bytes).sum();
        assert_eq!(self.held_bytes, in_flight + arriving);
        assert!(self.held_bytes <= limits::NBD_BYTES_PER_CONNECTION_MAX);
        assert!(self.in_flight.len() <= limits::NBD_REQUESTS_PER_CONNECTION_MAX);
        assert!(self.parked.len() <= 2 * limits::NBD_INPUT_BYTES_MAX);
        if !self.is_stopped() && !self.is_ending() {
            assert!(self.parked_bytes() == 0 || self.parked_bytes() < self.message_bytes());
        }
        if self.is_closed() {
            assert!(self.deadline().is_none() && !self.wants_input());
        }
    }

    // -- input ---------------------------------------------------------------------------------

    /// Works through `bytes` as far as possible; returns how many were taken.
    fn advance(&mut self, now: Time, bytes: &[u8], effects: &mut Vec<Effect>) -> usize {
        let mut rest = bytes;
        loop {
            if self.is_ending() {
                return bytes.len();
            }
            match &mut self.state {
                State::Payload(incoming) => {
                    rest = &rest[incoming.fill_from(rest)..];
                    if incoming.missing() > 0 {
                        break;
                    }
                    self.finish_payload(effects);
                }
                State::Skipping { left, .. } => {
                    let count = rest.len().min(*left);
                    rest = &rest[count..];
                    *left -= count;
                    if *left > 0 {
                        break;
                    }
                    self.finish_skipping(now, effects);
                }
                _ => {
                    if self.is_stopped() {
                        break;
                    }
                    let Some((message, after)) = rest.split_at_checked(self.message_bytes()) else {
                        break;
                    };
                    rest = after;
                    self.take_message(now, message, after.len(), effects);
                }
            }
        }
        bytes.len() - rest.len()
    }

    /// One whole message; `behind` bytes after it are already there.
    fn take_message(
        &mut self,
        now: Time,
        message: &[u8],
        behind: usize,
        effects: &mut Vec<Effect>,
    ) {
        match &self.state {
            State::ClientFlags => self.take_client_flags(message, effects),
            State::OptionHeader => self.take_option_header(now, message, effects),
            State::OptionData(header) => self.take_option(now, *header, message, effects),
            State::RequestHeader => self.take_request_header(now, message, behind, effects),
            other => unreachable!("no message is expected in {other:?}"),
        }
    }

    /// Length of the message that is expected, in bytes.
    fn message_bytes(&self) -> usize {
        match &self.state {
            State::ClientFlags => wire::CLIENT_FLAGS_BYTES,
            State::OptionHeader => wire::OPTION_HEADER_BYTES,
            State::OptionData(header) => header.length as usize,
            State::RequestHeader => self.export.headers.request_bytes(),
            other => unreachable!("no message is expected in {other:?}"),
        }
    }

    /// Whether input has to wait for something other than input.
    fn is_stopped(&self) -> bool {
        match self.state {
            State::Asking(_) | State::Waiting(_) => true,
            State::OptionHeader => self.output.unsent() > limits::NBD_OPTION_UNREAD_BYTES_MAX,
            _ => false,
        }
    }

    /// Whether input is dropped.
    fn is_ending(&self) -> bool {
        matches!(self.state, State::Draining(_) | State::Closed)
    }

    /// Goes on with what had to wait, if it need not any more.
    fn resume(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let parked = self.parked_bytes();
        if matches!(self.state, State::Waiting(_)) {
            self.admit(now, parked, effects);
        }
        if !self.is_stopped() && parked > 0 {
            self.unpark(now, effects);
        }
    }

    fn parked_bytes(&self) -> usize {
        self.parked.len() - self.parked_at
    }

    fn park(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || self.is_ending() {
            return;
        }
        self.parked.drain(..self.parked_at);
        self.parked_at = 0;
        assert!(
            self.parked.len() + bytes.len() <= 2 * limits::NBD_INPUT_BYTES_MAX,
            "input came although none was wanted"
        );
        self.parked.extend_from_slice(bytes);
    }

    /// Works through the parked input.
    fn unpark(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let mut parked = std::mem::take(&mut self.parked);
        let start = std::mem::take(&mut self.parked_at);
        let end = start + self.advance(now, &parked[start..], effects);
        if end < parked.len() {
            self.parked = parked;
            self.parked_at = end;
        } else if parked.capacity() <= limits::NBD_OPTION_BYTES_MAX {
            // The memory is needed again at the next message that is cut; more than that is not.
            parked.clear();
            self.parked = parked;
        }
    }

    // -- the end -------------------------------------------------------------------------------

    /// Keeps the clocks and the end up to date; the last step of each event.
    fn settle(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if let State::Draining(reason) = &self.state
            && self.in_flight.is_empty()
            && self.output.unsent() == 0
        {
            let reason = reason.clone();
            self.close(reason, effects);
        }
        let begun = match self.state {
            State::Payload(_) | State::Skipping { .. } => true,
            State::RequestHeader => self.parked_bytes() > 0,
            _ => false,
        };
        if !begun {
            self.request_deadline = None;
        } else if self.request_deadline.is_none() {
            let limit = Duration::from_millis(limits::NBD_REQUEST_MS_MAX);
            self.request_deadline = Some(now + limit);
        }
    }

    /// Takes no more input; the connection closes when everything is answered and read.
    pub(super) fn drain(&mut self, reason: CloseReason) {
        if let State::Payload(incoming) = &self.state {
            self.held_bytes -= self.held_bytes_of(&incoming.header);
        }
        self.state = State::Draining(reason);
        self.parked = Vec::new();
        self.parked_at = 0;
    }

    /// What a request counts for among the bytes the connection holds: its payload in whole blocks,
    /// or the longest replies of a block status.
    pub(super) fn held_bytes_of(&self, header: &RequestHeader) -> usize {
        match header.command {
            wire::command::READ | wire::command::WRITE => {
                let length = header.length.min(limits::NBD_PAYLOAD_BYTES_MAX as u64);
                Incoming::bytes(&RequestHeader { length, ..*header })
            }
            wire::command::BLOCK_STATUS => {
                self.export.contexts.len() * self.export.headers.status_bytes_max()
            }
            _ => 0,
        }
    }

    /// The end, at once.
    pub(super) fn close(&mut self, reason: CloseReason, effects: &mut Vec<Effect>) {
        self.state = State::Closed;
        self.parked = Vec::new();
        self.parked_at = 0;
        self.in_flight.clear();
        self.held_bytes = 0;
        self.output = Output::default();
        self.handshake_deadline = None;
        self.request_deadline = None;
        effects.push(Effect::Close { reason });
    }
}
