//! One whole node on media of memory that do everything at once, and what it says.

use engine::{
    Client, ConnectionId, DiskSettings, Engine, Founding, Input, Output, Settings,
    admin::{AdminError, AdminReply, AdminRequest, AdminToken, SnapshotReport, VolumeReport},
};
use proto::{
    Buffer, ClusterId, DiskDone, DiskError, DiskId, DiskRequest, Duration, NodeId, Time, limits,
};
use std::collections::VecDeque;
use volume::{Answer, Completion, Operation, Request, RequestId};

pub const DISK: DiskId = DiskId(3);
/// When the node starts.
pub const UNIX_S: u64 = 1_000_000;
/// How long the trash keeps what nobody says more about.
pub const TRASH_EXPIRY_S: u64 = 24 * 3600;
pub const MIB: u64 = 1 << 20;
/// Where a disk ends, unless it has no limit.
const LIMIT_BYTES: u64 = 256 * MIB;

/// A medium that does everything at once, and fails only when told to.
#[derive(Default, Clone)]
pub struct Medium {
    pub bytes: Vec<u8>,
    /// Whether there is no space to allocate.
    pub full: bool,
    /// Whether every write fails.
    pub broken: bool,
}

impl Medium {
    pub fn perform(&mut self, op: proto::DiskOp) -> DiskDone {
        let mut result = None;
        let refusal = match op.request {
            DiskRequest::Allocate { .. } if self.full => Some(DiskError::NoSpace),
            DiskRequest::Write { .. } if self.broken => Some(DiskError::Io(5)),
            _ => None,
        };
        if let Some(error) = refusal {
            return DiskDone { token: op.token, result: Err(error) };
        }
        match op.request {
            DiskRequest::Read { offset, mut buffer } => {
                let (offset, length) = (offset as usize, buffer.len());
                let Some(bytes) = self.bytes.get(offset..offset + length) else {
                    return DiskDone { token: op.token, result: Err(DiskError::Io(5)) };
                };
                buffer.as_mut_slice().copy_from_slice(bytes);
                result = Some(buffer);
            }
            DiskRequest::Write { offset, payloads } => {
                let mut at = offset as usize;
                for payload in payloads {
                    self.bytes[at..at + payload.len()].copy_from_slice(payload.as_slice());
                    at += payload.len();
                }
            }
            DiskRequest::Flush => {}
            DiskRequest::Discard { offset, length } => {
                self.bytes[offset as usize..(offset + length) as usize].fill(0);
            }
            DiskRequest::Allocate { offset, length, .. } => {
                let end = (offset + length) as usize;
                self.bytes.resize(self.bytes.len().max(end), 0);
            }
        }
        DiskDone { token: op.token, result: Ok(result) }
    }
}

/// One node, its media, and what it said.
pub struct World {
    pub engine: Engine,
    pub now: Time,
    pub disk: Medium,
    pub journal: Medium,
    pub said: VecDeque<Output>,
    pub next: u64,
    /// Whether notices are expected; otherwise one ends the test.
    pub noisy: bool,
    /// Those that were expected.
    pub notices: Vec<String>,
    /// The disk does nothing; what it was asked waits.
    pub stalled: bool,
    waiting: Vec<Output>,
}

impl World {
    pub fn found() -> World {
        World::start(Medium::default(), Medium::default(), true)
    }

    pub fn start(disk: Medium, journal: Medium, found: bool) -> World {
        World::start_at(UNIX_S, disk, journal, found)
    }

    /// A node that has something to say at its start.
    pub fn start_noisily(disk: Medium, journal: Medium) -> World {
        World::begin(UNIX_S, disk, journal, (false, Some(LIMIT_BYTES)), true, 0)
    }

    /// A node whose disk is a file that may grow as far as its file system has room.
    pub fn start_without_limit(disk: Medium, journal: Medium, found: bool) -> World {
        World::begin(UNIX_S, disk, journal, (found, None), true, 0)
    }

    /// A node that takes this for the present, in seconds since 1970.
    pub fn start_at(unix_s: u64, disk: Medium, journal: Medium, found: bool) -> World {
        World::begin(unix_s, disk, journal, (found, Some(LIMIT_BYTES)), false, 0)
    }

    /// A node that copies next to nothing by itself.
    pub fn start_slowly(disk: Medium, journal: Medium) -> World {
        World::begin(UNIX_S, disk, journal, (false, Some(LIMIT_BYTES)), true, 1)
    }

    fn begin(
        unix_s: u64,
        disk: Medium,
        journal: Medium,
        (found, limit_bytes): (bool, Option<u64>),
        noisy: bool,
        fill_bytes_per_s: u64,
    ) -> World {
        let settings = Settings {
            cluster: ClusterId(1),
            node: NodeId(2),
            founding: found.then_some(Founding::Here),
            instance: 1,
            seed: 1,
            addresses: Vec::new(),
            seeds: Vec::new(),
            journal_bytes: journal.bytes.len() as u64,
            disks: vec![DiskSettings {
                disk: DISK,
                format: found,
                kind: store::MediumKind::File,
                medium_bytes: disk.bytes.len() as u64,
                limit_bytes,
                map_cache_bytes: 4 << 20,
                scrub_bytes_per_s: 0,
                log_bytes: None,
                path: "disk".into(),
                refusal: None,
            }],
            unix_s,
            trash_expiry_s: TRASH_EXPIRY_S,
            trash_grace: Duration::from_secs(limits::TRASH_START_GRACE_S),
            rebuild_after: Duration::from_millis(limits::STEWARD_GRACE_MS),
            boot: [0; 16],
            version: "test".into(),
            fill_bytes_per_s,
            partition_bits: 12,
        };
        let mut outputs = Vec::new();
        let now = Time(1);
        let engine = Engine::new(now, settings, &mut outputs);
        let said = VecDeque::new();
        let (stalled, waiting, notices) = (false, Vec::new(), Vec::new());
        let mut world =
            World { engine, now, disk, journal, said, next: 1, noisy, notices, stalled, waiting };
        world.run(outputs);
        match world.said.pop_front() {
            Some(Output::Ready) => world,
            other => panic!("the node did not start: {other:?}"),
        }
    }

    /// Performs what the engine wants until it wants nothing more.
    pub fn run(&mut self, outputs: Vec<Output>) {
        let mut queue: VecDeque<Output> = outputs.into();
        for _ in 0..1_000_000 {
            let input = match queue.pop_front() {
                Some(output @ Output::Disk { .. }) if self.stalled => {
                    self.waiting.push(output);
                    continue;
                }
                Some(Output::Disk { disk, op }) => {
                    Input::Disk { disk, done: self.disk.perform(op) }
                }
                Some(Output::Journal(op)) => Input::Journal(self.journal.perform(op)),
                Some(Output::Notice { sentence, .. }) if self.noisy => {
                    self.notices.push(sentence);
                    continue;
                }
                Some(Output::Notice { level, sentence }) => panic!("{level:?}: {sentence}"),
                Some(other) => {
                    self.said.push_back(other);
                    continue;
                }
                None => {
                    let mut more = Vec::new();
                    self.engine.poll(self.now, &mut more);
                    if more.is_empty() {
                        self.engine.check();
                        return;
                    }
                    queue.extend(more);
                    continue;
                }
            };
            let mut more = Vec::new();
            self.engine.handle(self.now, input, &mut more);
            queue.extend(more);
        }
        panic!("the node never comes to rest");
    }

    pub fn tell(&mut self, input: Input) {
        let mut outputs = Vec::new();
        self.engine.handle(self.now, input, &mut outputs);
        self.run(outputs);
    }

    /// All inputs come before anything that the first of them wants is done.
    pub fn tell_together(&mut self, inputs: Vec<Input>) {
        let mut outputs = Vec::new();
        for input in inputs {
            self.engine.handle(self.now, input, &mut outputs);
        }
        self.run(outputs);
    }

    pub fn hear(&mut self) -> Output {
        // What is due by time alone gets its time.
        for _ in 0..2_000 {
            if let Some(output) = self.said.pop_front() {
                return output;
            }
            self.now = self.now + Duration::from_millis(50);
            self.tell(Input::Tick);
        }
        panic!("nothing was said");
    }

    /// The disk goes on, beginning with what it was asked meanwhile.
    pub fn unstall(&mut self) {
        self.stalled = false;
        let waiting = std::mem::take(&mut self.waiting);
        self.run(waiting);
    }

    /// Lets time pass in steps.
    pub fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds * 10 {
            self.now = self.now + Duration::from_millis(100);
            self.tell(Input::Tick);
        }
    }

    /// The media of a process that was killed just now.
    pub fn kill(self) -> (Medium, Medium) {
        (self.disk, self.journal)
    }

    /// The present bytes of data on the disk, when everything is freed that is to be.
    pub fn used_bytes(&mut self) -> u64 {
        self.pass(2);
        match self.admin(AdminRequest::Status) {
            Ok(AdminReply::Status(status)) => status.used_bytes,
            other => panic!("{other:?}"),
        }
    }

    pub fn refused(&mut self, request: AdminRequest) -> AdminError {
        match self.admin(request) {
            Err(error) => error,
            Ok(reply) => panic!("{reply:?}"),
        }
    }

    pub fn snapshot(&mut self, name: &str, tag: &str) -> SnapshotReport {
        match self.admin(AdminRequest::SnapshotCreate { name: name.into(), tag: tag.into() }) {
            Ok(AdminReply::Snapshot(snapshot)) => snapshot,
            other => panic!("{other:?}"),
        }
    }

    pub fn snapshots(&mut self, name: &str, reclaimable: bool) -> Vec<SnapshotReport> {
        match self.admin(AdminRequest::SnapshotList { name: name.into(), reclaimable }) {
            Ok(AdminReply::Snapshots(snapshots)) => snapshots,
            other => panic!("{other:?}"),
        }
    }

    pub fn admin(&mut self, request: AdminRequest) -> Result<AdminReply, AdminError> {
        let token = AdminToken(self.next);
        self.next += 1;
        self.tell(Input::Admin { token, request });
        match self.hear() {
            Output::Admin { token: answered, result } if answered == token => *result,
            other => panic!("{other:?}"),
        }
    }

    pub fn volume(&mut self, request: AdminRequest) -> VolumeReport {
        match self.admin(request) {
            Ok(AdminReply::Volume(volume)) => volume,
            other => panic!("{other:?}"),
        }
    }

    pub fn create(&mut self, name: &str, bytes: u64) -> VolumeReport {
        self.volume(AdminRequest::VolumeCreate { name: name.into(), bytes })
    }

    pub fn info(&mut self, name: &str) -> VolumeReport {
        self.volume(AdminRequest::VolumeInfo { name: name.into() })
    }

    pub fn open(&mut self, connection: u64, who: &str, name: &str) -> Answer {
        let client = Client { identity: who.into(), description: format!("process {who}") };
        let connection = ConnectionId(connection);
        self.tell(Input::Open { connection, client, name: name.into() });
        match self.hear() {
            Output::Answer { connection: answered, answer } if answered == connection => answer,
            other => panic!("{other:?}"),
        }
    }

    pub fn close(&mut self, connection: u64) {
        self.tell(Input::Close { connection: ConnectionId(connection) });
    }

    pub fn request(
        &mut self,
        connection: u64,
        offset: u64,
        length: u64,
        operation: Operation,
    ) -> Result<Completion, volume::Error> {
        let (connection, id) = (ConnectionId(connection), RequestId(self.next));
        self.next += 1;
        let request = Request { id, offset, length, operation };
        self.tell(Input::Request { connection, request });
        match self.hear() {
            Output::Complete { connection: at, id: answered, result } => {
                assert_eq!((at, answered), (connection, id));
                result
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn write(&mut self, connection: u64, offset: u64, byte: u8, length: u64) {
        assert!(offset.is_multiple_of(4096));
        let mut buffer = Buffer::zeroed(length as usize);
        buffer.as_mut_slice()[..length as usize].fill(byte);
        let operation = Operation::Write { buffer, fua: false };
        let result = self.request(connection, offset, length, operation);
        assert!(matches!(result, Ok(Completion::Done)), "{result:?}");
    }

    pub fn read(&mut self, connection: u64, offset: u64, length: u64) -> Vec<u8> {
        match self.request(connection, offset, length, Operation::Read) {
            Ok(Completion::Data(payloads)) => {
                payloads.iter().flat_map(|payload| payload.as_slice().to_vec()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn stop(mut self) -> (Medium, Medium) {
        self.tell(Input::Stop);
        match self.hear() {
            Output::Stopped => (self.disk, self.journal),
            other => panic!("{other:?}"),
        }
    }
}

/// The answer to a client that has a snapshot now.
pub fn reads(bytes: u64) -> Answer {
    Answer::Opened { bytes, read_only: true }
}

pub fn opened(bytes: u64) -> Answer {
    Answer::Opened { bytes, read_only: false }
}
