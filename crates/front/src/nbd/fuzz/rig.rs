//! A driver, a socket and a volume in memory for tests and fuzzing: everything around a
//! [`Connection`] that a node would have, under the control of the test.

use crate::nbd::{CloseReason, Connection, Effect, Segment, Settings};
use proto::{BLOCK_SIZE, BlockState, Buffer, Duration, LayerId, Payload, Time, crc64, limits};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use volume::{
    Answer, Base, Changed, Completion, Error, Extent, Operation, Request, RequestId, Tags,
};

/// A volume that a [`Rig`] offers.
#[derive(Clone, Debug)]
pub struct Offer {
    pub name: &'static str,
    pub bytes: u64,
    pub read_only: bool,
    /// Why it cannot be had.
    pub refusal: Option<&'static str>,
}

/// What is offered unless a test says otherwise.
pub const OFFERS: [Offer; 4] = [
    Offer { name: "disk", bytes: 64 << 20, read_only: false, refusal: None },
    Offer { name: "fixed", bytes: 1 << 20, read_only: true, refusal: None },
    Offer { name: "huge", bytes: limits::VOLUME_BYTES_MAX, read_only: false, refusal: None },
    Offer {
        name: "taken",
        bytes: 1 << 20,
        read_only: false,
        refusal: Some("Process 4711 holds the volume."),
    },
];

/// What every volume that is offered can be compared with, newest first. The last one is deleted as
/// soon as a volume is opened.
pub const BASES: [(&str, LayerId); 10] = [
    ("tuesday", LayerId(12)),
    ("monday", LayerId(11)),
    ("b1", LayerId(10)),
    ("b2", LayerId(9)),
    ("b3", LayerId(8)),
    ("b4", LayerId(7)),
    ("b5", LayerId(6)),
    ("b6", LayerId(5)),
    ("b7", LayerId(4)),
    ("gone", LayerId(3)),
];

/// Blocks that are not zero.
type Blocks = BTreeMap<u64, Box<[u8; BLOCK_SIZE]>>;

/// The content of a volume.
#[derive(Debug, Default)]
pub struct Memory {
    pub bytes: u64,
    /// Whether it was ever larger: then requests that were on their way may leave it.
    pub shrank: bool,
    blocks: Blocks,
    /// What it can be compared with.
    bases: BTreeMap<LayerId, Blocks>,
}

impl Memory {
    /// Does what the request says.
    pub fn perform(&mut self, request: &Request) -> Result<Completion, Error> {
        let Request { offset, length, .. } = *request;
        if offset + length > self.bytes {
            assert!(self.shrank, "the front checks the range");
            return Err(Error::OutOfRange);
        }
        match &request.operation {
            Operation::Read => Ok(Completion::Data(self.read(offset, length as usize))),
            Operation::Write { buffer, .. } => {
                self.write(offset, length, buffer);
                Ok(Completion::Done)
            }
            Operation::Discard { .. } | Operation::WriteZeroes { .. } => {
                self.zero(offset, length);
                Ok(Completion::Done)
            }
            Operation::Flush | Operation::Prefetch => Ok(Completion::Done),
            Operation::Status => Ok(Completion::Status(self.status(offset, length))),
            Operation::Difference { base } => {
                let base = self.bases.get(base).ok_or(Error::UnknownBase)?;
                Ok(Completion::Difference(self.difference(base, offset, length)))
            }
        }
    }

    /// Some bytes of it, in two pieces where that is possible.
    fn read(&self, offset: u64, length: usize) -> Vec<Payload> {
        let start = (offset % BLOCK_SIZE as u64) as usize;
        let mut buffer = Buffer::zeroed(start + length);
        let first = offset / BLOCK_SIZE as u64;
        let count = (buffer.len() / BLOCK_SIZE) as u64;
        for (number, block) in self.blocks.range(first..first + count) {
            let at = (number - first) as usize * BLOCK_SIZE;
            buffer.as_mut_slice()[at..at + BLOCK_SIZE].copy_from_slice(&block[..]);
        }
        let whole = buffer.freeze().slice(start, length);
        let middle = length / 2 / 512 * 512;
        if middle == 0 {
            return vec![whole];
        }
        vec![whole.slice(0, middle), whole.slice(middle, length - middle)]
    }

    fn write(&mut self, offset: u64, length: u64, buffer: &Buffer) {
        let start = (offset % BLOCK_SIZE as u64) as usize;
        let end = start + length as usize;
        assert_eq!(
            buffer.len(),
            end.next_multiple_of(BLOCK_SIZE),
            "the buffer covers whole blocks"
        );
        for (number, piece) in buffer.as_slice().chunks(BLOCK_SIZE).enumerate() {
            let from = start.saturating_sub(number * BLOCK_SIZE);
            let to = (end - number * BLOCK_SIZE).min(BLOCK_SIZE);
            self.change(offset / BLOCK_SIZE as u64 + number as u64, |block| {
                block[from..to].copy_from_slice(&piece[from..to]);
            });
        }
    }

    fn zero(&mut self, offset: u64, length: u64) {
        let size = BLOCK_SIZE as u64;
        let end = offset + length;
        let touched: Vec<u64> = self
            .blocks
            .range(offset / size..end.div_ceil(size))
            .map(|(&number, _)| number)
            .collect();
        for number in touched {
            let from = offset.saturating_sub(number * size) as usize;
            let to = (end - number * size).min(size) as usize;
            self.change(number, |block| block[from..to].fill(0));
        }
    }

    fn change(&mut self, number: u64, change: impl FnOnce(&mut [u8; BLOCK_SIZE])) {
        let block = self.blocks.entry(number).or_insert_with(|| Box::new([0; BLOCK_SIZE]));
        change(block);
        if proto::is_zero(&block[..]) {
            self.blocks.remove(&number);
        }
    }

    /// The present content is what this base has from now on.
    pub fn keep(&mut self, base: LayerId) {
        self.bases.insert(base, self.blocks.clone());
    }

    /// What is not as in a base, in runs.
    fn difference(&self, base: &Blocks, offset: u64, length: u64) -> Vec<Changed> {
        let size = BLOCK_SIZE as u64;
        let end = offset + length;
        let range = offset / size..end.div_ceil(size);
        let numbers = |blocks: &Blocks| blocks.range(range.clone()).map(|(&n, _)| n).collect();
        let mut known: BTreeSet<u64> = numbers(&self.blocks);
        known.extend::<BTreeSet<u64>>(numbers(base));
        let mut at = offset;
        let mut runs = Vec::new();
        for number in known {
            let (from, to) = ((number * size).max(offset), ((number + 1) * size).min(end));
            if at < from {
                runs.push(Changed { length: from - at, state: None });
            }
            let (new, old) = (self.blocks.get(&number), base.get(&number));
            let kind = if new.is_some() { BlockState::Data } else { BlockState::Absent };
            runs.push(Changed { length: to - from, state: (new != old).then_some(kind) });
            at = to;
        }
        if at < end {
            runs.push(Changed { length: end - at, state: None });
        }
        runs
    }

    /// What is where, in runs.
    fn status(&self, offset: u64, length: u64) -> Vec<Extent> {
        let size = BLOCK_SIZE as u64;
        let end = offset + length;
        let mut at = offset;
        let mut extents = Vec::new();
        for &number in self.blocks.range(offset / size..end.div_ceil(size)).map(|(n, _)| n) {
            let (from, to) = ((number * size).max(offset), ((number + 1) * size).min(end));
            if at < from {
                extents.push(Extent { length: from - at, state: BlockState::Absent });
            }
            extents.push(Extent { length: to - from, state: BlockState::Data });
            at = to;
        }
        if at < end {
            extents.push(Extent { length: end - at, state: BlockState::Zero });
        }
        extents
    }
}

/// A connection with everything around it.
#[derive(Debug)]
pub struct Rig {
    pub now: Time,
    pub connection: Connection,
    pub offers: Vec<Offer>,
    /// What is listed besides.
    pub names: Vec<String>,
    pub memory: Memory,
    /// Whether questions are answered, requests completed and output read at once.
    pub at_once: bool,
    /// The longest piece of input that is handed over; never 0.
    pub piece_bytes: usize,
    /// Input the connection did not want yet.
    pub socket: VecDeque<u8>,
    /// Questions that wait for an answer.
    pub questions: VecDeque<Effect>,
    /// Requests that wait for their completion.
    pub requests: VecDeque<Request>,
    /// Output the client has not read, and how much of its first piece it has.
    pub sent: VecDeque<Segment>,
    sent_at: usize,
    /// Checksums of what the volume brought for reads, in order.
    pub brought: VecDeque<u64>,
    /// Why the connection was closed.
    pub closed: Option<CloseReason>,
}

impl Rig {
    /// A client has connected.
    pub fn new(settings: Settings) -> Rig {
        let now = Time(1_000_000_000);
        let mut effects = Vec::new();
        let connection = Connection::new(now, settings, &mut effects);
        let mut rig = Rig {
            now,
            connection,
            offers: OFFERS.to_vec(),
            names: Vec::new(),
            memory: Memory::default(),
            at_once: true,
            piece_bytes: limits::NBD_INPUT_BYTES_MAX,
            socket: VecDeque::new(),
            questions: VecDeque::new(),
            requests: VecDeque::new(),
            sent: VecDeque::new(),
            sent_at: 0,
            brought: VecDeque::new(),
            closed: None,
        };
        rig.carry_out(effects);
        rig
    }

    /// The client writes to its socket.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.socket.extend(bytes);
        self.pump();
    }

    /// The driver reads the socket as long as the connection wants it.
    pub fn pump(&mut self) {
        while !self.socket.is_empty() && self.connection.wants_input() {
            let length = self.socket.len().min(self.piece_bytes);
            let piece: Vec<u8> = match self.connection.payload_target() {
                Some(target) => {
                    let length = length.min(target.len());
                    target[..length].copy_from_slice(&self.socket.make_contiguous()[..length]);
                    self.socket.drain(..length);
                    self.act(|connection, now, effects| {
                        connection.handle_payload(now, length, effects);
                    });
                    continue;
                }
                None => {
                    let piece = self.socket.make_contiguous()[..length].to_vec();
                    self.socket.drain(..length);
                    piece
                }
            };
            self.act(|connection, now, effects| connection.handle_bytes(now, &piece, effects));
        }
        if self.closed.is_some() {
            self.socket.clear();
        }
    }

    /// Calls the connection and carries out what comes of it.
    pub fn act(&mut self, call: impl FnOnce(&mut Connection, Time, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        call(&mut self.connection, self.now, &mut effects);
        self.connection.check();
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            assert!(self.closed.is_none(), "{effect:?} came after the close");
            match effect {
                Effect::Send(segment) => {
                    assert!(!segment.as_slice().is_empty(), "an empty segment");
                    self.sent.push_back(segment);
                }
                Effect::Request(request) => self.requests.push_back(request),
                Effect::Close { reason } => self.closed = Some(reason),
                question => self.questions.push_back(question),
            }
        }
        if self.at_once && self.closed.is_none() {
            self.settle();
        }
    }

    /// Answers, completes and lets the client's socket take all output, until nothing is left;
    /// keeps the output.
    fn settle(&mut self) {
        self.at_once = false;
        while self.closed.is_none() {
            self.act(|connection, now, effects| connection.handle_unsent(now, 0, effects));
            if !self.questions.is_empty() {
                self.answer();
            } else if !self.requests.is_empty() {
                self.complete(0, None);
            } else {
                break;
            }
        }
        self.at_once = true;
    }

    /// Answers the oldest question.
    pub fn answer(&mut self) {
        let Some(question) = self.questions.pop_front() else { return };
        let answer = match &question {
            Effect::List => {
                let offered = self.offers.iter().map(|offer| offer.name.to_owned());
                Answer::Listed(offered.chain(self.names.iter().cloned()).collect())
            }
            Effect::Describe { name } => self.answer_about(name, false),
            Effect::Open { name } => self.answer_about(name, true),
            Effect::Bases { name, tags } => Answer::Bases(self.bases_of(name, tags)),
            other => unreachable!("{other:?} is no question"),
        };
        self.act(|connection, now, effects| connection.handle_answer(now, answer, effects));
    }

    fn bases_of(&self, name: &str, tags: &Tags) -> Vec<Base> {
        let exists = self.offers.iter().any(|offer| offer.name == name);
        let bases = BASES
            .iter()
            .filter(|(tag, _)| exists && (tags.all || tags.named.iter().any(|named| named == tag)));
        bases.map(|&(tag, layer)| Base { tag: tag.to_owned(), layer }).collect()
    }

    fn answer_about(&mut self, name: &str, open: bool) -> Answer {
        let Some(offer) = self.offers.iter().find(|offer| offer.name == name) else {
            return Answer::Unknown { sentence: "There is no such volume.".to_owned() };
        };
        let (bytes, read_only) = (offer.bytes, offer.read_only);
        if let Some(sentence) = offer.refusal {
            return Answer::Refused { sentence: sentence.to_owned() };
        }
        if !open {
            return Answer::Described { bytes, read_only };
        }
        self.memory.bytes = bytes;
        for (_, layer) in &BASES[..BASES.len() - 1] {
            self.memory.keep(*layer);
        }
        Answer::Opened { bytes, read_only }
    }

    /// Completes one of the requests, as the volume would or with an error.
    pub fn complete(&mut self, index: usize, error: Option<Error>) {
        let Some(request) = self.requests.remove(index) else { return };
        let result = match error {
            Some(error) => Err(error),
            None => self.memory.perform(&request),
        };
        if let Ok(Completion::Data(payloads)) = &result {
            let pieces: Vec<&[u8]> = payloads.iter().map(Payload::as_slice).collect();
            self.brought.push_back(crc64(&pieces.concat()));
        }
        self.finish(request.id, result);
    }

    /// Completes the request with this id.
    pub fn finish(&mut self, id: RequestId, result: Result<Completion, Error>) {
        self.act(|connection, now, effects| {
            connection.handle_completion(now, id, result, effects);
        });
    }

    /// Bytes of output the client has not read.
    pub fn unread(&self) -> usize {
        self.sent.iter().map(|segment| segment.as_slice().len()).sum::<usize>() - self.sent_at
    }

    /// The client reads up to so many bytes.
    pub fn read(&mut self, bytes: usize) -> Vec<u8> {
        let mut read = Vec::new();
        while read.len() < bytes {
            let Some(first) = self.sent.front() else { break };
            let rest = &first.as_slice()[self.sent_at..];
            let count = rest.len().min(bytes - read.len());
            read.extend_from_slice(&rest[..count]);
            self.sent_at += count;
            if self.sent_at == first.as_slice().len() {
                self.sent.pop_front();
                self.sent_at = 0;
            }
        }
        if !self.at_once && self.closed.is_none() {
            let unread = self.unread();
            self.act(|connection, now, effects| connection.handle_unsent(now, unread, effects));
        }
        read
    }

    /// The client reads all there is.
    pub fn read_all(&mut self) -> Vec<u8> {
        self.read(usize::MAX)
    }

    /// Time passes; deadlines on the way are kept.
    pub fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(deadline) = self.connection.deadline().filter(|&at| at <= end) {
            self.now = deadline.max(self.now);
            self.act(|connection, now, effects| connection.handle_deadline(now, effects));
            assert!(
                self.connection.deadline().is_none_or(|next| next > self.now),
                "a deadline that passed is still there"
            );
        }
        self.now = end;
    }

    /// The memory that the client makes the node hold, in bytes: what is on its way in, with the
    /// volume, and on its way out.
    pub fn held_bytes(&self) -> usize {
        let writes = self.requests.iter().map(|request| match &request.operation {
            Operation::Write { buffer, .. } => buffer.len(),
            Operation::Read => request.length as usize,
            _ => 0,
        });
        writes.sum::<usize>() + self.unread()
    }
}
