//! One whole node on media of memory that do everything at once: what connections and
//! administrators are told, over starts and stops. Faults are the simulator's business.

use engine::{
    Answer, Client, ConnectionId, DiskSettings, Engine, Input, Output, Settings,
    admin::{AdminError, AdminErrorKind, AdminReply, AdminRequest, AdminToken, VolumeReport},
};
use proto::{Buffer, ClusterId, DiskDone, DiskError, DiskId, DiskRequest, Duration, NodeId, Time};
use std::collections::VecDeque;
use volume::{Completion, Operation, Request, RequestId};

const DISK: DiskId = DiskId(3);
const MIB: u64 = 1 << 20;

/// A medium that does everything at once and never fails.
#[derive(Default, Clone)]
struct Medium {
    bytes: Vec<u8>,
}

impl Medium {
    fn perform(&mut self, op: proto::DiskOp) -> DiskDone {
        let mut result = None;
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
struct World {
    engine: Engine,
    now: Time,
    disk: Medium,
    journal: Medium,
    said: VecDeque<Output>,
    next: u64,
}

impl World {
    fn found() -> World {
        World::start(Medium::default(), Medium::default(), true)
    }

    fn start(disk: Medium, journal: Medium, found: bool) -> World {
        let settings = Settings {
            cluster: ClusterId(1),
            node: NodeId(2),
            found,
            journal_bytes: journal.bytes.len() as u64,
            disks: vec![DiskSettings {
                disk: DISK,
                format: found,
                kind: store::MediumKind::File,
                medium_bytes: disk.bytes.len() as u64,
                limit_bytes: Some(256 * MIB),
                map_cache_bytes: 4 << 20,
                scrub_bytes_per_s: 0,
                log_bytes: None,
                path: "disk".into(),
            }],
            unix_s: 1_000_000,
            version: "test".into(),
        };
        let mut outputs = Vec::new();
        let now = Time(1);
        let engine = Engine::new(now, settings, &mut outputs);
        let said = VecDeque::new();
        let mut world = World { engine, now, disk, journal, said, next: 1 };
        world.run(outputs);
        match world.said.pop_front() {
            Some(Output::Ready) => world,
            other => panic!("the node did not start: {other:?}"),
        }
    }

    /// Performs what the engine wants until it wants nothing more.
    fn run(&mut self, outputs: Vec<Output>) {
        let mut queue: VecDeque<Output> = outputs.into();
        for _ in 0..1_000_000 {
            let input = match queue.pop_front() {
                Some(Output::Disk { disk, op }) => {
                    Input::Disk { disk, done: self.disk.perform(op) }
                }
                Some(Output::Journal(op)) => Input::Journal(self.journal.perform(op)),
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

    fn tell(&mut self, input: Input) {
        let mut outputs = Vec::new();
        self.engine.handle(self.now, input, &mut outputs);
        self.run(outputs);
    }

    fn hear(&mut self) -> Output {
        // What is due by time alone gets its time.
        for _ in 0..100 {
            if let Some(output) = self.said.pop_front() {
                return output;
            }
            self.now = self.now + Duration::from_millis(50);
            self.tell(Input::Tick);
        }
        panic!("nothing was said");
    }

    fn admin(&mut self, request: AdminRequest) -> Result<AdminReply, AdminError> {
        let token = AdminToken(self.next);
        self.next += 1;
        self.tell(Input::Admin { token, request });
        match self.hear() {
            Output::Admin { token: answered, result } if answered == token => result,
            other => panic!("{other:?}"),
        }
    }

    fn volume(&mut self, request: AdminRequest) -> VolumeReport {
        match self.admin(request) {
            Ok(AdminReply::Volume(volume)) => volume,
            other => panic!("{other:?}"),
        }
    }

    fn create(&mut self, name: &str, bytes: u64) -> VolumeReport {
        self.volume(AdminRequest::VolumeCreate { name: name.into(), bytes })
    }

    fn info(&mut self, name: &str) -> VolumeReport {
        self.volume(AdminRequest::VolumeInfo { name: name.into() })
    }

    fn open(&mut self, connection: u64, who: &str, name: &str) -> Answer {
        let client = Client { identity: who.into(), description: format!("process {who}") };
        let connection = ConnectionId(connection);
        self.tell(Input::Open { connection, client, name: name.into() });
        match self.hear() {
            Output::Answer { connection: answered, answer } if answered == connection => answer,
            other => panic!("{other:?}"),
        }
    }

    fn close(&mut self, connection: u64) {
        self.tell(Input::Close { connection: ConnectionId(connection) });
    }

    fn request(
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

    fn write(&mut self, connection: u64, offset: u64, byte: u8, length: u64) {
        assert!(offset.is_multiple_of(4096));
        let mut buffer = Buffer::zeroed(length as usize);
        buffer.as_mut_slice()[..length as usize].fill(byte);
        let operation = Operation::Write { buffer, fua: false };
        let result = self.request(connection, offset, length, operation);
        assert!(matches!(result, Ok(Completion::Done)), "{result:?}");
    }

    fn read(&mut self, connection: u64, offset: u64, length: u64) -> Vec<u8> {
        match self.request(connection, offset, length, Operation::Read) {
            Ok(Completion::Data(payloads)) => {
                payloads.iter().flat_map(|payload| payload.as_slice().to_vec()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn stop(mut self) -> (Medium, Medium) {
        self.tell(Input::Stop);
        match self.hear() {
            Output::Stopped => (self.disk, self.journal),
            other => panic!("{other:?}"),
        }
    }
}

fn opened(bytes: u64) -> Answer {
    Answer::Opened { bytes, read_only: false }
}

#[test]
fn what_is_written_is_read_again_after_a_stop_and_after_a_kill() {
    let mut world = World::found();
    world.create("vm1", 64 * MIB);
    assert_eq!(world.open(1, "a", "vm1"), opened(64 * MIB));
    world.write(1, 8 * MIB, 7, 12_288);
    assert!(matches!(world.request(1, 0, 0, Operation::Flush), Ok(Completion::Done)));
    world.close(1);
    let (disk, journal) = world.stop();

    let mut world = World::start(disk, journal, false);
    assert_eq!(world.open(1, "a", "vm1"), opened(64 * MIB));
    assert_eq!(world.read(1, 8 * MIB - 512, 1024), [vec![0; 512], vec![7; 512]].concat());
    world.write(1, 4096, 9, 4096);
    // Killed: the media are all that is left, and the attachment is still in the journal.
    let (disk, journal) = (world.disk.clone(), world.journal.clone());

    let mut world = World::start(disk, journal, false);
    assert!(world.info("vm1").attachment.is_none());
    assert_eq!(world.open(1, "b", "vm1"), opened(64 * MIB));
    assert_eq!(world.read(1, 4096, 4096), vec![9; 4096]);
    assert_eq!(world.info("vm1").used_bytes, 4 * 4096);
}

#[test]
fn a_volume_has_one_client_with_any_number_of_connections() {
    let mut world = World::found();
    world.create("vm1", MIB);
    assert_eq!(world.open(1, "a", "vm1"), opened(MIB));
    assert_eq!(world.open(2, "a", "vm1"), opened(MIB));
    match world.open(3, "b", "vm1") {
        Answer::Refused { sentence } => {
            assert!(sentence.contains("vm1 is attached by process a"), "{sentence}")
        }
        other => panic!("{other:?}"),
    }
    let attachment = world.info("vm1").attachment.expect("attached");
    assert_eq!((attachment.connections, attachment.holder.as_str()), (2, "process a"));
    world.close(1);
    world.write(2, 0, 1, 4096);
    world.close(2);
    assert!(world.info("vm1").attachment.is_none());
    assert_eq!(world.open(4, "b", "vm1"), opened(MIB));
    assert_eq!(world.read(4, 0, 4096), vec![1; 4096]);
    match world.open(5, "b", "nowhere") {
        Answer::Unknown { sentence } => assert!(sentence.contains("nowhere"), "{sentence}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_shrunk_volume_never_shows_its_old_end_again() {
    let mut world = World::found();
    world.create("vm1", 16 * MIB);
    world.open(1, "a", "vm1");
    world.write(1, 12 * MIB, 5, 8192);
    world.write(1, 0, 6, 4096);
    world.close(1);
    let resize = |bytes, allow_shrink| AdminRequest::VolumeResize {
        name: "vm1".into(),
        bytes,
        allow_shrink,
    };
    let refused = world.admin(resize(8 * MIB, false)).expect_err("not without being told");
    assert_eq!(refused.kind, AdminErrorKind::Conflict);
    assert_eq!(world.volume(resize(8 * MIB, true)).bytes, 8 * MIB);
    assert_eq!(world.volume(resize(16 * MIB, false)).bytes, 16 * MIB);
    assert_eq!(world.open(2, "a", "vm1"), opened(16 * MIB));
    assert_eq!(world.read(2, 12 * MIB, 8192), vec![0; 8192]);
    assert_eq!(world.read(2, 0, 4096), vec![6; 4096]);
    assert_eq!(world.info("vm1").used_bytes, 4096);

    // Online: the client is told, and requests beyond the end are refused.
    world.write(2, 12 * MIB, 5, 4096);
    let token = AdminToken(999);
    world.tell(Input::Admin { token, request: resize(8 * MIB, true) });
    let mut resized = None;
    loop {
        match world.hear() {
            Output::Resized { bytes, .. } => resized = Some(bytes),
            Output::Admin { result, .. } => break assert!(result.is_ok(), "{result:?}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(resized, Some(8 * MIB));
    let beyond = world.request(2, 12 * MIB, 4096, Operation::Read);
    assert_eq!(beyond.err(), Some(volume::Error::OutOfRange));
}

#[test]
fn deleting_gives_all_space_back_and_the_name_is_free() {
    let mut world = World::found();
    let first = world.create("vm1", 64 * MIB);
    world.open(1, "a", "vm1");
    for index in 0..8 {
        world.write(1, index * 4 * MIB, 3, 65_536);
    }
    let delete = || AdminRequest::VolumeDelete { name: "vm1".into() };
    let refused = world.admin(delete()).expect_err("it is attached");
    assert_eq!(refused.kind, AdminErrorKind::Conflict);
    world.close(1);
    assert_eq!(world.admin(delete()), Ok(AdminReply::Done));
    let second = world.create("vm1", MIB);
    assert_ne!(first.volume, second.volume);
    for _ in 0..20 {
        world.now = world.now + Duration::from_millis(100);
        world.tell(Input::Tick);
    }
    match world.admin(AdminRequest::Status) {
        Ok(AdminReply::Status(status)) => {
            assert_eq!(status.used_bytes, 0, "{status:?}");
            assert!(status.healthy, "{status:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn reconnecting_asks_every_connection_of_the_client() {
    let mut world = World::found();
    world.create("vm1", MIB);
    let reconnect = || AdminRequest::VolumeReconnect { name: "vm1".into() };
    let nobody = world.admin(reconnect()).expect_err("nobody has it");
    assert_eq!(nobody.kind, AdminErrorKind::Conflict);
    world.open(1, "a", "vm1");
    world.open(2, "a", "vm1");
    world.tell(Input::Admin { token: AdminToken(7), request: reconnect() });
    let mut asked = Vec::new();
    for _ in 0..3 {
        match world.hear() {
            Output::Disconnect { connection, .. } => asked.push(connection.0),
            Output::Admin { result, .. } => assert_eq!(result, Ok(AdminReply::Done)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(asked, [1, 2]);
}

#[test]
fn a_journal_older_than_the_disk_is_refused() {
    let mut world = World::found();
    let old = world.journal.clone();
    world.create("vm1", MIB);
    world.open(1, "a", "vm1");
    world.write(1, 0, 1, 4096);
    world.close(1);
    let (disk, _) = world.stop();
    let refused = std::panic::catch_unwind(|| World::start(disk, old, false).said.len());
    let message = *refused.expect_err("it must not start").downcast::<String>().unwrap();
    assert!(message.contains("an old copy of the journal was put back"), "{message}");
}

#[test]
fn rot_in_the_journal_is_found_and_mended_while_the_node_runs() {
    // The first frame of a new journal lies in the second half, in both copies.
    for (copies, expected) in [
        (vec![1], "1 parts of the cluster's journal were damaged"),
        (vec![0, 1], "the cluster's journal was damaged in both copies"),
    ] {
        let mut world = World::found();
        world.now = world.now + Duration::from_secs(3601);
        let half_blocks = world.journal.bytes[12..16].try_into().expect("4 bytes");
        let half_blocks = u32::from_le_bytes(half_blocks) as usize;
        for copy in copies {
            let at = (2 + (2 * copy + 1) * half_blocks) * 4096;
            assert_ne!(world.journal.bytes[at], 0, "nothing is damaged");
            world.journal.bytes[at] ^= 1;
        }
        let (mut outputs, mut notices) = (Vec::new(), Vec::new());
        world.engine.poll(world.now, &mut outputs);
        while let Some(output) = outputs.pop() {
            let input = match output {
                Output::Disk { disk, op } => Input::Disk { disk, done: world.disk.perform(op) },
                Output::Journal(op) => Input::Journal(world.journal.perform(op)),
                Output::Notice { sentence, .. } => {
                    notices.push(sentence);
                    continue;
                }
                other => panic!("{other:?}"),
            };
            world.engine.handle(world.now, input, &mut outputs);
        }
        assert!(notices.len() == 1 && notices[0].starts_with(expected), "{notices:?}");
        // Nothing is left to be found at the next start: a notice would end it.
        World::start(world.disk, world.journal, false);
    }
}
