//! A medium in memory that keeps written and durable apart, and a host that drives one store on it.
#![allow(dead_code, reason = "every test uses its own part")]

use proto::{
    BLOCK_SIZE, Buffer, Change, ClusterId, ConfigurationNumber, DiskDone, DiskError, DiskId,
    DiskOp, DiskRequest, DiskToken, Duration, Generation, LayerId, LineageId, MemberError,
    MemberReply, MemberRequest, MemberToken, NodeId, ObjectKey, Payload, Stamp, Time, Under, Write,
};
use std::collections::BTreeMap;
use store::{
    Effect, Event, Format, FormatOptions, Identity, MediumKind, Notice, OpenError, Opened, Options,
    ScrubRate, Store,
};

const SECTOR: usize = 512;

/// Numbers that depend on a seed alone.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// A medium. Unsynced sectors may be lost in a power cut.
#[derive(Clone, Default)]
pub struct Medium {
    /// What reads return.
    pub written: Vec<u8>,
    /// Sectors whose durable content differs, with that content.
    pub unsynced: BTreeMap<usize, [u8; SECTOR]>,
    /// Most bytes the file system gives.
    pub capacity: usize,
    /// Every write from now on fails.
    pub fails_writes: bool,
    /// Every flush from now on fails.
    pub fails_flushes: bool,
    /// Reads that touch these blocks fail.
    pub unreadable: Vec<u64>,
    /// The first read that touches one of these blocks fails, and takes it off the list.
    pub unreadable_once: Vec<u64>,
}

impl Medium {
    pub fn new(capacity: usize) -> Medium {
        Medium { capacity, ..Medium::default() }
    }

    fn write_sector(&mut self, sector: usize, bytes: &[u8]) {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        let mut old = [0; SECTOR];
        old.copy_from_slice(&self.written[range.clone()]);
        self.unsynced.entry(sector).or_insert(old);
        self.written[range].copy_from_slice(bytes);
    }

    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        for (at, sector) in bytes.chunks_exact(SECTOR).enumerate() {
            self.write_sector(offset / SECTOR + at, sector);
        }
    }

    /// Writes some sectors of what was under way when the process or the machine died.
    fn write_torn(&mut self, offset: usize, bytes: &[u8], random: &mut Random) {
        let mode = random.below(3);
        for (at, sector) in bytes.chunks_exact(SECTOR).enumerate() {
            if mode == 0 || (mode == 1 && random.chance(2)) {
                self.write_sector(offset / SECTOR + at, sector);
            }
        }
    }

    fn flush_begins(&self) -> BTreeMap<usize, [u8; SECTOR]> {
        let content = |&sector: &usize| {
            let mut bytes = [0; SECTOR];
            bytes.copy_from_slice(&self.written[sector * SECTOR..(sector + 1) * SECTOR]);
            (sector, bytes)
        };
        self.unsynced.keys().map(content).collect()
    }

    fn flush_ends(&mut self, synced: &BTreeMap<usize, [u8; SECTOR]>) {
        for (sector, bytes) in synced {
            let now = &self.written[sector * SECTOR..(sector + 1) * SECTOR];
            if now == bytes {
                self.unsynced.remove(sector);
            } else {
                self.unsynced.insert(*sector, *bytes);
            }
        }
    }

    /// Power is cut: each unsynced sector is old or new.
    pub fn cut_power(&mut self, random: &mut Random) {
        let mode = random.below(4);
        for (sector, old) in std::mem::take(&mut self.unsynced) {
            if mode == 0 || (mode != 1 && random.chance(2)) {
                self.written[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(&old);
            }
        }
    }

    pub fn sync_all(&mut self) {
        self.unsynced.clear();
    }

    fn perform(&mut self, request: &mut DiskRequest) -> Result<Option<Buffer>, DiskError> {
        match request {
            DiskRequest::Read { offset, buffer } => {
                let block = *offset / BLOCK_SIZE as u64;
                let count = (buffer.len() / BLOCK_SIZE) as u64;
                if self.unreadable.iter().any(|bad| (block..block + count).contains(bad)) {
                    return Err(DiskError::Io(5));
                }
                let once = self.unreadable_once.iter();
                if let Some(at) = once.clone().position(|bad| (block..block + count).contains(bad))
                {
                    self.unreadable_once.remove(at);
                    return Err(DiskError::Io(5));
                }
                let start = *offset as usize;
                if start + buffer.len() > self.written.len() {
                    return Err(DiskError::Io(5));
                }
                let end = start + buffer.len();
                buffer.as_mut_slice().copy_from_slice(&self.written[start..end]);
                Ok(Some(std::mem::replace(buffer, Buffer::zeroed(0))))
            }
            DiskRequest::Write { .. } if self.fails_writes => Err(DiskError::Io(5)),
            DiskRequest::Write { offset, payloads } => {
                let mut at = *offset as usize;
                for payload in payloads {
                    assert!(at + payload.len() <= self.written.len(), "a write behind the end");
                    self.write(at, payload.as_slice());
                    at += payload.len();
                }
                Ok(None)
            }
            DiskRequest::Flush if self.fails_flushes => Err(DiskError::Io(5)),
            DiskRequest::Flush => Ok(None),
            DiskRequest::Discard { offset, length } => {
                self.write(*offset as usize, &vec![0; *length as usize]);
                Ok(None)
            }
            DiskRequest::Allocate { offset, length, zero } => {
                let end = (*offset + *length) as usize;
                if end > self.capacity {
                    return Err(DiskError::NoSpace);
                }
                if self.written.len() < end {
                    self.written.resize(end, 0);
                }
                if *zero {
                    self.write(*offset as usize, &vec![0; *length as usize]);
                }
                Ok(None)
            }
        }
    }
}

/// An operation under way.
struct UnderWay {
    token: DiskToken,
    request: DiskRequest,
    /// For a flush: what it will make durable.
    synced: BTreeMap<usize, [u8; SECTOR]>,
}

/// One store on one medium, with everything it answered.
pub struct Host {
    pub store: Option<Store>,
    pub medium: Medium,
    pub now: Time,
    under_way: Vec<UnderWay>,
    pub opened: Option<Result<Opened, OpenError>>,
    pub closed: bool,
    /// The disk remembers that its opening was agreed.
    pub agreed_noted: bool,
    /// Where the disk may end at most, told at each opening.
    pub limit_bytes: Option<u64>,
    pub replies: BTreeMap<u64, Result<MemberReply, MemberError>>,
    pub notices: Vec<Notice>,
    next_token: u64,
    /// How fast the next opening scrubs.
    pub scrub: ScrubRate,
}

pub const IDENTITY: Identity = Identity { cluster: ClusterId(7), node: NodeId(8), disk: DiskId(9) };

/// Formats a medium.
pub fn format(medium: &mut Medium, options: FormatOptions) -> Result<(), OpenError> {
    let mut operations = Vec::new();
    let mut format = Format::new(options, &mut operations)?;
    while let Some(DiskOp { token, mut request }) = operations.pop() {
        let result = medium.perform(&mut request);
        if matches!(request, DiskRequest::Flush) {
            medium.sync_all();
        }
        if let Some(result) = format.handle(DiskDone { token, result }, &mut operations) {
            return result;
        }
    }
    panic!("format stopped without an outcome");
}

pub fn format_options(limit_bytes: Option<u64>, log_bytes: u64) -> FormatOptions {
    FormatOptions {
        identity: IDENTITY,
        kind: MediumKind::File,
        medium_bytes: 0,
        limit_bytes,
        log_bytes: Some(log_bytes),
        created_unix_s: 1,
    }
}

impl Host {
    /// A formatted medium that is not open.
    pub fn formatted(capacity: usize, limit_bytes: Option<u64>, log_bytes: u64) -> Host {
        let mut medium = Medium::new(capacity);
        format(&mut medium, format_options(limit_bytes, log_bytes)).expect("it is blank");
        Host { limit_bytes, ..Host::on(medium) }
    }

    pub fn on(medium: Medium) -> Host {
        Host {
            store: None,
            medium,
            now: Time(1_000_000_000),
            under_way: Vec::new(),
            opened: None,
            closed: false,
            agreed_noted: false,
            limit_bytes: None,
            replies: BTreeMap::new(),
            notices: Vec::new(),
            next_token: 0,
            scrub: ScrubRate(0),
        }
    }

    pub fn options(&self) -> Options {
        let mut options = Options::new(MediumKind::File, self.medium.written.len() as u64);
        options.identity = IDENTITY.into();
        options.map_cache_bytes = 24 * 4160;
        options.limit_bytes = self.limit_bytes;
        options.scrub = self.scrub;
        options
    }

    /// Opens the store and runs until it serves or refuses.
    pub fn open(&mut self) -> Result<Opened, OpenError> {
        self.open_with(self.options())
    }

    pub fn open_with(&mut self, options: Options) -> Result<Opened, OpenError> {
        self.begin_open(options);
        while self.opened.is_none() {
            assert!(self.complete(0), "opening stopped without an outcome");
        }
        self.opened.clone().expect("it ended")
    }

    pub fn begin_open(&mut self, options: Options) {
        self.opened = None;
        self.closed = false;
        let mut effects = Vec::new();
        self.store = Some(Store::open(self.now, options, &mut effects));
        self.take(effects);
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Disk(DiskOp { token, request }) => {
                    let synced = match request {
                        DiskRequest::Flush => self.medium.flush_begins(),
                        _ => BTreeMap::new(),
                    };
                    self.under_way.push(UnderWay { token, request, synced });
                }
                Effect::Member { token, result } => {
                    let before = self.replies.insert(token.0, result);
                    assert!(before.is_none(), "answered twice");
                }
                Effect::Opened(result) => self.opened = Some(result),
                Effect::AgreedNoted => self.agreed_noted = true,
                Effect::Closed => self.closed = true,
                Effect::Notice(notice) => self.notices.push(notice),
                Effect::MendEnded { .. } => {}
            }
        }
    }

    pub fn event(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.store.as_mut().expect("it is open").handle(self.now, event, &mut effects);
        self.take(effects);
    }

    pub fn poll(&mut self) {
        let mut effects = Vec::new();
        self.store.as_mut().expect("it is open").poll(self.now, &mut effects);
        self.take(effects);
    }

    /// Sends a request; its answer will be in `replies` under the returned number.
    pub fn request(&mut self, request: MemberRequest) -> u64 {
        self.next_token += 1;
        let token = MemberToken(self.next_token);
        self.event(Event::Member { token, request });
        self.next_token
    }

    pub fn in_flight(&self) -> usize {
        self.under_way.len()
    }

    /// Completes one operation. Returns whether there was one.
    pub fn complete(&mut self, at: usize) -> bool {
        if at >= self.under_way.len() {
            return false;
        }
        let UnderWay { token, mut request, synced } = self.under_way.remove(at);
        let result = self.medium.perform(&mut request);
        if result.is_ok() && matches!(request, DiskRequest::Flush) {
            self.medium.flush_ends(&synced);
        }
        self.event(Event::Disk(DiskDone { token, result }));
        true
    }

    /// Polls for as long as the store says that something is due at this moment.
    pub fn poll_what_is_due(&mut self) {
        for _ in 0..1000 {
            let before = self.in_flight();
            self.poll();
            let is_due = self.store().deadline().is_some_and(|at| at <= self.now);
            if !is_due || self.in_flight() != before {
                return;
            }
        }
        panic!("the store spins: something is due and nothing is done");
    }

    /// Runs until nothing is under way and no deadline is near.
    pub fn settle(&mut self) {
        for _ in 0..1_000_000 {
            self.poll_what_is_due();
            if !self.complete(0) {
                return;
            }
        }
        panic!("the store never comes to rest");
    }

    /// Lets time pass.
    pub fn pass(&mut self, span: Duration) {
        self.now = self.now + span;
        self.settle();
    }

    /// Sends a request and runs until it is answered.
    pub fn ask(&mut self, request: MemberRequest) -> Result<MemberReply, MemberError> {
        let number = self.request(request);
        for _ in 0..100_000 {
            self.poll();
            if let Some(reply) = self.replies.remove(&number) {
                return reply;
            }
            assert!(self.complete(0), "the request hangs: {:?}", self.store().status().waiting);
        }
        panic!("the request is never answered");
    }

    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("it is open")
    }

    /// The process dies; of what was under way, parts are done. With `power`, so does the machine.
    pub fn crash(&mut self, random: &mut Random, power: bool) {
        self.store = None;
        for under_way in std::mem::take(&mut self.under_way) {
            if let DiskRequest::Write { offset, payloads } = under_way.request {
                let bytes = Payload::joined(&payloads);
                self.medium.write_torn(offset as usize, &bytes, random);
            }
        }
        if power {
            self.medium.cut_power(random);
        }
        self.replies.clear();
    }

    pub fn close(&mut self) {
        self.event(Event::Close);
        self.settle();
        assert!(self.closed, "closing hangs");
        self.store = None;
    }
}

pub const LINEAGE: LineageId = LineageId(1);
pub const KEY: ObjectKey = ObjectKey { layer: LayerId(1), index: 0 };
pub const GENERATION: Generation = Generation(1);

pub fn stamp(sequence: u64) -> Stamp {
    match sequence {
        0 => Stamp::default(),
        _ => Stamp { generation: GENERATION, sequence },
    }
}

/// The write number `sequence` of an object, each following the one before.
pub fn write(key: ObjectKey, sequence: u64, change: Change) -> MemberRequest {
    MemberRequest::Write(Write {
        lineage: LINEAGE,
        key,
        under: Under { copies: 1, bits: 12, number: ConfigurationNumber(1) },
        previous: stamp(sequence - 1),
        stamp: stamp(sequence),
        settled: Stamp::default(),
        change,
    })
}

/// Blocks with a content of their own, given by a number that is not 0 (0: zeros).
pub fn data(first: u32, values: &[u64]) -> Change {
    let mut buffer = Buffer::zeroed(values.len() * BLOCK_SIZE);
    for (block, value) in buffer.as_mut_slice().chunks_exact_mut(BLOCK_SIZE).zip(values) {
        for (at, word) in block.chunks_exact_mut(8).enumerate() {
            let word_value = if *value == 0 { 0 } else { value.wrapping_mul(at as u64 + 1) };
            word.copy_from_slice(&word_value.to_le_bytes());
        }
    }
    Change::Data { first, payload: buffer.freeze(), detect_zeroes: true }
}

/// The numbers behind blocks that were read.
pub fn values(reply: &MemberReply) -> Vec<u64> {
    let MemberReply::Data { content, .. } = reply else { panic!("{reply:?}") };
    let bytes = Payload::joined(content);
    let value = |block: &[u8]| {
        let word = |at: usize| u64::from_le_bytes(block[at * 8..at * 8 + 8].try_into().unwrap());
        let first = word(0);
        for at in 0..BLOCK_SIZE / 8 {
            assert_eq!(word(at), first.wrapping_mul(at as u64 + 1), "a block of mixed content");
        }
        first
    };
    bytes.chunks_exact(BLOCK_SIZE).map(value).collect()
}
