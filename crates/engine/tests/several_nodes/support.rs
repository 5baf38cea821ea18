//! Several whole nodes in one process, on media of memory that do everything at once, and a
//! network of memory: whole, cut, healed, with messages that take their time.

use engine::{
    Client, CloseReason, ConnectionId, DiskSettings, Engine, Founding, Input, Output, PeerInput,
    Settings,
    admin::{
        AdminError, AdminReply, AdminRequest, AdminToken, ClusterReport, DiskReport, StatusReport,
    },
};
use link::Greeter;
use proto::{
    Buffer, ClusterId, DiskDone, DiskError, DiskId, DiskOp, DiskRequest, Duration, NodeId, Time,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use volume::{Answer, Completion, Operation, Request, RequestId};

pub const MIB: u64 = 1 << 20;
const DISK_BYTES_MAX: u64 = 128 * MIB;
/// Events after which a test is given up.
const EVENTS_MAX: usize = 3_000_000;
/// How often it is looked whether what is waited for is so.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// After so many events the invariants of all engines are looked at.
const CHECK_EVERY: usize = 256;

/// A medium that does everything at once.
#[derive(Default, Clone)]
pub struct Medium {
    bytes: Vec<u8>,
    /// What a power cut leaves, if that is followed.
    stable: Option<Vec<u8>>,
}

impl Medium {
    fn perform(&mut self, op: DiskOp) -> DiskDone {
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
            DiskRequest::Flush if self.stable.is_some() => self.stable = Some(self.bytes.clone()),
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

/// A node, running or not, and what it said.
pub struct Node {
    pub id: NodeId,
    /// How often its address became another one.
    moves: u32,
    founds: bool,
    /// Whether it has served once.
    has_served: bool,
    seeds: Vec<(NodeId, Vec<String>)>,
    disks: BTreeMap<DiskId, Medium>,
    journal: Medium,
    pub engine: Option<Engine>,
    pub is_ready: bool,
    pub failed: Option<String>,
    pub is_stopped: bool,
    starts: u64,
    /// Media that do nothing; what they are asked waits.
    pub stalled: BTreeSet<DiskId>,
    /// Media on which writes and flushes fail.
    pub failing: BTreeSet<DiskId>,
    waiting: VecDeque<(DiskId, DiskOp)>,
    pub replies: BTreeMap<AdminToken, Result<AdminReply, AdminError>>,
    pub answers: BTreeMap<ConnectionId, Answer>,
    pub completions: BTreeMap<RequestId, Result<Completion, volume::Error>>,
    pub added: BTreeMap<DiskId, Result<(), String>>,
    /// Disks that are marked as being made, for the next start.
    pub making: BTreeSet<DiskId>,
    /// Disks whose medium cannot be used, for the next start.
    pub missing: BTreeSet<DiskId>,
    /// Media of disks that were let go.
    pub gone: BTreeMap<DiskId, Medium>,
    pub notices: Vec<String>,
}

impl Node {
    fn disk_settings(&self, disk: DiskId, medium: &Medium) -> DiskSettings {
        let made = Net::disk_settings(disk, medium);
        // A founder's disks are made as long as it has not served.
        let format = self.making.contains(&disk) || (!self.has_served && made.format);
        let refusal = self.missing.contains(&disk).then(|| "it is missing".to_string());
        DiskSettings { format, refusal, ..made }
    }
}

/// One connection: its dialler's end, and its listener's.
struct Wire {
    /// Which node has each end.
    nodes: [usize; 2],
    /// The number that its link has for it; a listener's comes with the hello.
    numbers: [Option<u64>; 2],
    greeter: Option<Greeter>,
    /// Whether each end still takes anything.
    open: [bool; 2],
    /// When the last thing on its way to each end arrives: nothing overtakes it.
    last: [Time; 2],
    /// What arrived at each end while the network was cut.
    held: [Vec<Arrival>; 2],
}

#[derive(Debug)]
enum Arrival {
    Bytes(Vec<u8>),
    End,
}

enum Happening {
    /// A dialler reaches its listener, or does not.
    Reach {
        from: usize,
        to: NodeId,
        connection: u64,
    },
    Arrive {
        wire: usize,
        end: usize,
        arrival: Arrival,
    },
}

/// The nodes and what is between them.
pub struct Net {
    pub now: Time,
    pub nodes: Vec<Node>,
    wires: Vec<Wire>,
    happenings: BTreeMap<(Time, u64), Happening>,
    /// Pairs of nodes that nothing passes between.
    cut: BTreeSet<(usize, usize)>,
    random: u64,
    next: u64,
    events: usize,
    /// How long a message may take, in milliseconds.
    pub delay_ms_max: u64,
}

fn address(id: NodeId) -> String {
    format!("node-{}:7000", id.0)
}

impl Net {
    pub fn new(seed: u64) -> Net {
        Net {
            now: Time(1_000_000_000),
            nodes: Vec::new(),
            wires: Vec::new(),
            happenings: BTreeMap::new(),
            cut: BTreeSet::new(),
            random: seed,
            next: 1,
            events: 0,
            delay_ms_max: 3,
        }
    }

    /// A number below a bound.
    pub fn draw(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % bound
    }

    /// A new machine with these disks: the first one founds the cluster, the others know it.
    pub fn add(&mut self, id: u128, disks: &[u128]) -> usize {
        let first = self.nodes.first().map(|node| node.id);
        self.nodes.push(Node {
            id: NodeId(id),
            moves: 0,
            founds: first.is_none(),
            has_served: false,
            seeds: first.map(|first| (first, vec![address(first)])).into_iter().collect(),
            disks: disks.iter().map(|disk| (DiskId(*disk), Medium::default())).collect(),
            journal: Medium::default(),
            engine: None,
            is_ready: false,
            failed: None,
            is_stopped: false,
            starts: 0,
            stalled: BTreeSet::new(),
            failing: BTreeSet::new(),
            waiting: VecDeque::new(),
            replies: BTreeMap::new(),
            answers: BTreeMap::new(),
            completions: BTreeMap::new(),
            added: BTreeMap::new(),
            making: BTreeSet::new(),
            missing: BTreeSet::new(),
            gone: BTreeMap::new(),
            notices: Vec::new(),
        });
        self.nodes.len() - 1
    }

    /// A copy of all that a node has, on another machine.
    pub fn copy(&mut self, at: usize) -> usize {
        let (id, disks) = (self.nodes[at].id, self.nodes[at].disks.clone());
        let journal = self.nodes[at].journal.clone();
        let copy = self.add(id.0, &[]);
        let node = &mut self.nodes[copy];
        (node.disks, node.journal, node.has_served) = (disks, journal, true);
        copy
    }

    /// Founds a cluster of nodes with these ids and disks and waits until all of them serve.
    pub fn cluster(seed: u64, nodes: &[(u128, &[u128])]) -> Net {
        let mut net = Net::new(seed);
        for (at, (id, disks)) in nodes.iter().enumerate() {
            net.add(*id, disks);
            if at > 0 {
                net.let_in(0, at);
            }
            net.start(at);
            net.until("a node serves", 20, |net| net.nodes[at].is_ready);
        }
        net
    }

    /// An administrator tells a node of a new one.
    pub fn let_in(&mut self, by: usize, at: usize) {
        let node = self.nodes[at].id;
        let name = format!("n{at}");
        let addresses = vec![address(node)];
        let reply = self.ask(by, AdminRequest::NodeAdd { node, name, addresses });
        assert!(matches!(reply, Ok(AdminReply::Done)), "{reply:?}");
    }

    fn disk_settings(disk: DiskId, medium: &Medium) -> DiskSettings {
        DiskSettings {
            disk,
            format: medium.bytes.is_empty(),
            kind: store::MediumKind::File,
            medium_bytes: medium.bytes.len() as u64,
            limit_bytes: Some(DISK_BYTES_MAX),
            map_cache_bytes: 1 << 20,
            scrub_bytes_per_s: 0,
            log_bytes: None,
            path: format!("disk-{}", disk.0),
            refusal: None,
        }
    }

    /// Starts a node's process.
    pub fn start(&mut self, at: usize) {
        let mut outputs = Vec::new();
        let engine = self.new_engine(at, &mut outputs);
        self.nodes[at].engine = Some(engine);
        self.perform(at, outputs);
    }

    /// That of a node's process which has asked for its journal and not got it.
    pub fn engine_that_opens(&mut self, at: usize) -> Engine {
        self.new_engine(at, &mut Vec::new())
    }

    fn new_engine(&mut self, at: usize, outputs: &mut Vec<Output>) -> Engine {
        let seed = self.draw(u64::MAX);
        let now = self.now;
        let node = &mut self.nodes[at];
        assert!(node.engine.is_none(), "it runs");
        node.starts += 1;
        let own_address = self.address_of(self.nodes[at].id);
        let node = &mut self.nodes[at];
        let founding = if node.founds { Founding::Here } else { Founding::Elsewhere };
        let settings = Settings {
            cluster: ClusterId(77),
            node: node.id,
            founding: (!node.has_served).then_some(founding),
            instance: (at as u64 + 1) * 1000 + node.starts,
            seed,
            addresses: vec![own_address],
            seeds: node.seeds.clone(),
            journal_bytes: node.journal.bytes.len() as u64,
            disks: node.disks.iter().map(|(id, medium)| node.disk_settings(*id, medium)).collect(),
            unix_s: 1_000_000 + now.0 / 1_000_000_000,
            trash_expiry_s: 0,
            trash_grace: Duration::ZERO,
            rebuild_after: Duration::from_millis(proto::limits::STEWARD_GRACE_MS),
            boot: [0; 16],
            version: "test".into(),
            fill_bytes_per_s: 0,
            partition_bits: 12,
        };
        (node.is_ready, node.is_stopped, node.failed) = (false, false, None);
        Engine::new(now, settings, outputs)
    }

    /// A node that does not run has another address when it is started again.
    pub fn move_away(&mut self, at: usize) {
        assert!(self.nodes[at].engine.is_none(), "it runs");
        self.nodes[at].moves += 1;
    }

    /// Where a node is.
    fn address_of(&self, node: NodeId) -> String {
        let found = self.nodes.iter().find(|known| known.id == node);
        let moves = found.map_or(0, |known| known.moves);
        address(node) + &"0".repeat(moves as usize)
    }

    /// The process dies: whoever it was connected to notices, unless the network is cut.
    pub fn kill(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.engine = None;
        node.is_ready = false;
        node.waiting.clear();
        for wire in 0..self.wires.len() {
            for end in 0..2 {
                if self.wires[wire].nodes[end] == at && self.wires[wire].open[end] {
                    self.close(wire, end, Vec::new());
                }
            }
        }
    }

    /// Does one thing of what waits for a node's stalled media. Whether there was one.
    pub fn do_one(&mut self, at: usize) -> bool {
        let Some((disk, op)) = self.nodes[at].waiting.pop_front() else { return false };
        let done = self.nodes[at].disks.get_mut(&disk).expect("a disk of it").perform(op);
        self.tell(at, Input::Disk { disk, done });
        true
    }

    /// What a disk of a node that does not run holds.
    pub fn medium(&mut self, at: usize, disk: u128) -> &mut Vec<u8> {
        &mut self.nodes[at].disks.get_mut(&DiskId(disk)).expect("it has it").bytes
    }

    /// A disk that has no content yet is listed by a node that does not run.
    pub fn list_blank(&mut self, at: usize, disk: u128) {
        self.nodes[at].disks.insert(DiskId(disk), Medium::default());
    }

    /// A disk that a node let go of is listed by it again, as if that had never been written down.
    pub fn list_again(&mut self, at: usize, disk: u128) {
        let medium = self.nodes[at].gone.remove(&DiskId(disk)).expect("it was let go");
        self.nodes[at].disks.insert(DiskId(disk), medium);
    }

    /// From now on it is remembered what of a disk is stable.
    pub fn follow(&mut self, at: usize, disk: u128) {
        let medium = self.nodes[at].disks.get_mut(&DiskId(disk)).expect("it has it");
        medium.stable = Some(medium.bytes.clone());
    }

    /// The machine loses its power: what was not flushed of the disks that are followed is lost.
    pub fn cut_power(&mut self, at: usize) {
        self.kill(at);
        for medium in self.nodes[at].disks.values_mut() {
            if let Some(stable) = &medium.stable {
                medium.bytes.clone_from(stable);
            }
        }
    }

    /// Adds a blank disk to a node that runs.
    pub fn add_disk(&mut self, at: usize, disk: u128) {
        let disk = DiskId(disk);
        let medium = Medium::default();
        let settings = Net::disk_settings(disk, &medium);
        self.nodes[at].disks.insert(disk, medium);
        self.tell(at, Input::AddDisk(Box::new(settings)));
    }

    /// Puts a medium without content in the place of a disk's, as one that lost it.
    pub fn spoil(&mut self, at: usize, disk: u128) {
        let medium = self.nodes[at].disks.get_mut(&DiskId(disk)).expect("it has it");
        medium.bytes.iter_mut().for_each(|byte| *byte = 0x55);
    }

    /// Turns a bit over in each block of a disk that holds nothing but this byte. How many.
    pub fn rot(&mut self, at: usize, disk: u128, byte: u8) -> usize {
        let medium = self.nodes[at].disks.get_mut(&DiskId(disk)).expect("it has it");
        let blocks = medium.bytes.chunks_exact_mut(proto::BLOCK_SIZE);
        let rotten = blocks.filter(|block| block.iter().all(|it| *it == byte));
        rotten.map(|block| block[1000] ^= 8).count()
    }

    /// Nothing passes between two nodes any more. Connections stay, silent.
    pub fn cut(&mut self, one: usize, other: usize) {
        self.cut.insert((one.min(other), one.max(other)));
    }

    /// Cuts one node off from all others.
    pub fn isolate(&mut self, at: usize) {
        (0..self.nodes.len()).filter(|other| *other != at).for_each(|other| self.cut(at, other));
    }

    /// Everything passes again, beginning with what waited.
    pub fn heal(&mut self) {
        self.cut.clear();
        for wire in 0..self.wires.len() {
            for end in 0..2 {
                for arrival in std::mem::take(&mut self.wires[wire].held[end]) {
                    self.send(wire, end, arrival);
                }
            }
        }
    }

    fn is_cut(&self, one: usize, other: usize) -> bool {
        self.cut.contains(&(one.min(other), one.max(other)))
    }

    // -- what happens --

    fn schedule(&mut self, at: Time, happening: Happening) {
        self.next += 1;
        self.happenings.insert((at, self.next), happening);
    }

    fn send(&mut self, wire: usize, end: usize, arrival: Arrival) {
        let delay = Duration::from_micros(50 + self.draw(1 + self.delay_ms_max * 1000));
        let at = (self.now + delay).max(self.wires[wire].last[end]);
        self.wires[wire].last[end] = at;
        self.schedule(at, Happening::Arrive { wire, end, arrival });
    }

    /// One end closes, after a farewell.
    fn close(&mut self, wire: usize, end: usize, farewell: Vec<u8>) {
        self.wires[wire].open[end] = false;
        if !farewell.is_empty() {
            self.send(wire, 1 - end, Arrival::Bytes(farewell));
        }
        self.send(wire, 1 - end, Arrival::End);
    }

    fn wire_of(&self, at: usize, peer: NodeId, connection: u64) -> Option<(usize, usize)> {
        self.wires.iter().enumerate().rev().find_map(|(number, wire)| {
            let end = (0..2).find(|&end| {
                wire.nodes[end] == at
                    && wire.open[end]
                    && wire.numbers[end] == Some(connection)
                    && self.nodes[wire.nodes[1 - end]].id == peer
            })?;
            Some((number, end))
        })
    }

    /// A node's media do again what they are asked, beginning with what waits.
    pub fn resume(&mut self, at: usize) {
        self.nodes[at].stalled.clear();
        let waiting = std::mem::take(&mut self.nodes[at].waiting);
        let outputs = waiting.into_iter().map(|(disk, op)| Output::Disk { disk, op });
        self.perform(at, outputs.collect());
    }

    pub fn tell(&mut self, at: usize, input: Input) {
        let now = self.now;
        let Some(engine) = self.nodes[at].engine.as_mut() else { return };
        let mut outputs = Vec::new();
        engine.handle(now, input, &mut outputs);
        self.perform(at, outputs);
    }

    /// Does what a node wants until it wants nothing more, then carries away what it wrote.
    fn perform(&mut self, at: usize, outputs: Vec<Output>) {
        let mut queue: VecDeque<Output> = outputs.into();
        loop {
            let Some(output) = queue.pop_front() else {
                let Some(engine) = self.nodes[at].engine.as_mut() else { return };
                let mut more = Vec::new();
                engine.poll(self.now, &mut more);
                if more.is_empty() {
                    break;
                }
                queue.extend(more);
                continue;
            };
            if let Some(input) = self.perform_one(at, output) {
                let mut more = Vec::new();
                let engine = self.nodes[at].engine.as_mut().expect("it runs");
                engine.handle(self.now, input, &mut more);
                queue.extend(more);
            }
        }
        self.carry_away(at);
    }

    fn perform_one(&mut self, at: usize, output: Output) -> Option<Input> {
        let node = &mut self.nodes[at];
        match output {
            Output::Disk { disk, op } if node.stalled.contains(&disk) => {
                node.waiting.push_back((disk, op));
            }
            Output::Disk { disk, op }
                if node.failing.contains(&disk)
                    && matches!(op.request, DiskRequest::Write { .. } | DiskRequest::Flush) =>
            {
                let done = DiskDone { token: op.token, result: Err(DiskError::Io(5)) };
                return Some(Input::Disk { disk, done });
            }
            Output::Disk { disk, op } => {
                let done = node.disks.get_mut(&disk).expect("a disk of it").perform(op);
                return Some(Input::Disk { disk, done });
            }
            Output::Journal(op) => return Some(Input::Journal(node.journal.perform(op))),
            Output::Ready => (node.is_ready, node.has_served) = (true, true),
            Output::Failed(sentence) => node.failed = Some(sentence),
            Output::Stopped => node.is_stopped = true,
            Output::Answer { connection, answer } => {
                node.answers.insert(connection, answer);
            }
            Output::Complete { id, result, .. } => {
                node.completions.insert(id, result);
            }
            Output::Admin { token, result } => {
                let before = node.replies.insert(token, *result);
                assert!(before.is_none(), "an administrator is answered once");
            }
            Output::Notice { sentence, .. } => node.notices.push(sentence),
            Output::DiskAdded { disk, result } => {
                node.added.insert(disk, result);
            }
            Output::DiskGone { disk } => {
                node.gone.insert(disk, node.disks.remove(&disk).expect("a disk of it"));
            }
            Output::Dial { node, connection, addresses } => {
                let is_known = addresses.contains(&self.address_of(node));
                if !is_known {
                    return Some(Input::Peer { node, input: PeerInput::DialFailed { connection } });
                }
                let delay = Duration::from_micros(100 + self.draw(2000));
                let reach = Happening::Reach { from: at, to: node, connection };
                self.schedule(self.now + delay, reach);
            }
            Output::Hangup { node, connection, farewell, .. } => {
                if let Some((wire, end)) = self.wire_of(at, node, connection) {
                    self.close(wire, end, farewell);
                }
            }
            Output::Disconnect { connection, .. } => return Some(Input::Close { connection }),
            Output::Resized { .. } | Output::Source { .. } => {}
        }
        None
    }

    fn carry_away(&mut self, at: usize) {
        let Some(engine) = self.nodes[at].engine.as_ref() else { return };
        let writers: Vec<(NodeId, u64)> = engine.peers_with_output().collect();
        for (peer, connection) in writers {
            let engine = self.nodes[at].engine.as_ref().expect("it runs");
            let pieces: Vec<&[u8]> = engine.peer_output(peer, connection).collect();
            let bytes = pieces.concat();
            let now = self.now;
            let count = bytes.len();
            // A connection that was refused, or is dialled and not there, has nothing to write to.
            let Some((wire, end)) = self.wire_of(at, peer, connection) else { continue };
            self.send(wire, 1 - end, Arrival::Bytes(bytes));
            let engine = self.nodes[at].engine.as_mut().expect("it runs");
            engine.handle_peer_sent(now, peer, connection, count);
        }
    }

    fn reach(&mut self, from: usize, to: NodeId, connection: u64) {
        let found = (0..self.nodes.len()).find(|&at| self.nodes[at].id == to);
        let to_runs = found.filter(|&at| self.nodes[at].engine.is_some());
        let input = match to_runs {
            Some(at) if !self.is_cut(from, at) => {
                let own = self.nodes[at].engine.as_ref().expect("it runs").identity();
                self.wires.push(Wire {
                    nodes: [from, at],
                    numbers: [Some(connection), None],
                    greeter: Some(Greeter::new(self.now, own)),
                    open: [true, true],
                    last: [self.now; 2],
                    held: [Vec::new(), Vec::new()],
                });
                PeerInput::Dialled { connection, nonce: self.draw(u64::MAX) }
            }
            _ => PeerInput::DialFailed { connection },
        };
        self.tell(from, Input::Peer { node: to, input });
    }

    fn arrive(&mut self, wire: usize, end: usize, arrival: Arrival) {
        let [one, other] = self.wires[wire].nodes;
        let at = self.wires[wire].nodes[end];
        if !self.wires[wire].open[end] || self.nodes[at].engine.is_none() {
            return;
        }
        if self.is_cut(one, other) {
            return self.wires[wire].held[end].push(arrival);
        }
        let peer = self.nodes[self.wires[wire].nodes[1 - end]].id;
        match (arrival, self.wires[wire].numbers[end]) {
            (Arrival::End, number) => {
                self.wires[wire].open[end] = false;
                if let Some(connection) = number {
                    let input = PeerInput::Lost { connection };
                    self.tell(at, Input::Peer { node: peer, input });
                }
            }
            (Arrival::Bytes(bytes), Some(connection)) => self.take_in(at, peer, connection, &bytes),
            (Arrival::Bytes(bytes), None) => self.greet(wire, at, &bytes),
        }
    }

    fn greet(&mut self, wire: usize, at: usize, bytes: &[u8]) {
        let greeter = self.wires[wire].greeter.as_mut().expect("not greeted yet");
        let hello = match greeter.handle_bytes(bytes) {
            Ok(Some(hello)) => hello,
            Ok(None) => return,
            Err(reason) => return self.refuse(wire, &reason),
        };
        let (nonce, now) = (self.draw(u64::MAX), self.now);
        let mut outputs = Vec::new();
        let engine = self.nodes[at].engine.as_mut().expect("it runs");
        match engine.handle_accepted(now, &hello, nonce, &mut outputs) {
            Ok((_, number)) => {
                self.wires[wire].numbers[1] = Some(number);
                self.perform(at, outputs);
            }
            Err(reason) => {
                self.perform(at, outputs);
                self.refuse(wire, &reason);
            }
        }
    }

    fn refuse(&mut self, wire: usize, reason: &CloseReason) {
        self.close(wire, 1, Greeter::farewell(reason));
    }

    fn take_in(&mut self, at: usize, peer: NodeId, connection: u64, mut bytes: &[u8]) {
        let mut outputs = Vec::new();
        while !bytes.is_empty() {
            let piece = 1 + self.draw(5000) as usize;
            let engine = self.nodes[at].engine.as_mut().expect("it runs");
            let taken = match engine.peer_payload_target(peer, connection) {
                Some(target) => {
                    let count = target.len().min(bytes.len()).min(piece);
                    target[..count].copy_from_slice(&bytes[..count]);
                    engine.handle_peer_payload(self.now, peer, connection, count, &mut outputs);
                    count
                }
                None => {
                    let count = bytes.len().min(piece);
                    let piece = &bytes[..count];
                    engine.handle_peer_bytes(self.now, peer, connection, piece, &mut outputs);
                    count
                }
            };
            bytes = &bytes[taken..];
        }
        self.perform(at, outputs);
    }

    /// Lets the next thing happen, if it is due by then.
    fn step(&mut self, end: Time) -> bool {
        let engines = self.nodes.iter().enumerate();
        let ticks = engines.filter_map(|(at, node)| Some((node.engine.as_ref()?.deadline()?, at)));
        let tick = ticks.min();
        let first = self.happenings.first_key_value().map(|((time, _), _)| *time);
        let (due, ticks) = match (first, tick) {
            (Some(first), Some((tick, at))) if tick < first => (tick, Some(at)),
            (Some(first), _) => (first, None),
            (None, Some((tick, at))) => (tick, Some(at)),
            (None, None) => return false,
        };
        if due > end {
            return false;
        }
        self.now = self.now.max(due);
        self.events += 1;
        assert!(self.events < EVENTS_MAX, "the nodes never come to rest");
        match ticks {
            Some(at) => self.tell(at, Input::Tick),
            None => match self.happenings.pop_first().expect("just seen").1 {
                Happening::Reach { from, to, connection } => self.reach(from, to, connection),
                Happening::Arrive { wire, end, arrival } => self.arrive(wire, end, arrival),
            },
        }
        if self.events.is_multiple_of(CHECK_EVERY) {
            self.check();
        }
        true
    }

    /// Asserts the invariants of all engines.
    pub fn check(&self) {
        self.nodes.iter().filter_map(|node| node.engine.as_ref()).for_each(Engine::check);
    }

    /// Lets time pass.
    pub fn pass(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while self.step(end) {}
        self.now = end;
        self.check();
    }

    /// Lets things happen until something is so.
    #[track_caller]
    pub fn until(&mut self, what: &str, seconds: u64, mut done: impl FnMut(&mut Net) -> bool) {
        let end = self.now + Duration::from_secs(seconds);
        while !done(self) {
            for node in &self.nodes {
                assert_eq!(node.failed, None, "node {} failed", node.id);
            }
            // To look costs more than a step.
            let look_at = self.now + LOOK_EVERY;
            while self.now < look_at {
                if !self.step(end) {
                    panic!("{what}: not within {seconds} s; {}", self.words());
                }
            }
        }
    }

    /// How all nodes are, for whoever looks why a test fails.
    fn words(&mut self) -> String {
        let mut words = String::new();
        for at in 0..self.nodes.len() {
            if self.nodes[at].engine.is_some() {
                let status = self.status(at);
                let notices = &self.nodes[at].notices;
                let last = &notices[notices.len().saturating_sub(5)..];
                words += &format!(
                    "\n{at}: {:?} {:?} {:?} {last:?}",
                    status.warnings, status.peers, status.agreement
                );
            }
        }
        words
    }

    // -- administrators and clients --

    pub fn begin(&mut self, at: usize, request: AdminRequest) -> AdminToken {
        self.next += 1;
        let token = AdminToken(self.next);
        self.tell(at, Input::Admin { token, request });
        token
    }

    /// A machine asks a node to be let in.
    #[track_caller]
    pub fn apply(
        &mut self,
        at: usize,
        applicant: cluster::Applicant,
        addresses: Vec<String>,
    ) -> Result<AdminReply, AdminError> {
        self.next += 1;
        let token = AdminToken(self.next);
        self.tell(at, Input::Admit { token, applicant, name: "new".into(), addresses });
        self.until("an answer", 30, |net| net.nodes[at].replies.contains_key(&token));
        self.nodes[at].replies.remove(&token).expect("just seen")
    }

    #[track_caller]
    pub fn ask(&mut self, at: usize, request: AdminRequest) -> Result<AdminReply, AdminError> {
        let token = self.begin(at, request);
        self.until("an answer", 30, |net| net.nodes[at].replies.contains_key(&token));
        self.nodes[at].replies.remove(&token).expect("just seen")
    }

    pub fn status(&mut self, at: usize) -> StatusReport {
        match self.ask(at, AdminRequest::Status) {
            Ok(AdminReply::Status(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    /// What a node says of the whole cluster.
    pub fn report(&mut self, at: usize) -> ClusterReport {
        match self.ask(at, AdminRequest::ClusterStatus) {
            Ok(AdminReply::Cluster(report)) => *report,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the first three nodes agree that they vote.
    pub fn until_all_vote(&mut self) {
        self.until("all three vote", 90, |net| {
            let mut agreements = (0..3).map(|at| net.status(at).agreement);
            agreements.all(|all| all.voters.len() == 3 && !all.changing)
        });
    }

    pub fn disks(&mut self, at: usize) -> Vec<DiskReport> {
        match self.ask(at, AdminRequest::DiskList) {
            Ok(AdminReply::Disks(disks)) => disks,
            other => panic!("{other:?}"),
        }
    }

    /// The names of the volumes that a node knows; nothing if it does not tell.
    pub fn volumes(&mut self, at: usize) -> Option<Vec<String>> {
        match self.ask(at, AdminRequest::VolumeList) {
            Ok(AdminReply::Volumes(volumes)) => {
                Some(volumes.into_iter().map(|volume| volume.name).collect())
            }
            _ => None,
        }
    }

    #[track_caller]
    pub fn create(&mut self, at: usize, name: &str) {
        let request = AdminRequest::VolumeCreate { name: name.into(), bytes: 16 * MIB };
        let reply = self.ask(at, request);
        assert!(matches!(reply, Ok(AdminReply::Volume(_))), "{reply:?}");
    }

    pub fn begin_open(&mut self, at: usize, name: &str) -> ConnectionId {
        self.next += 1;
        let connection = ConnectionId(self.next);
        let who = format!("client {}", self.next);
        let client = Client { identity: who.clone(), description: who };
        self.tell(at, Input::Open { connection, client, name: name.into() });
        connection
    }

    #[track_caller]
    pub fn open(&mut self, at: usize, name: &str) -> ConnectionId {
        let connection = self.begin_open(at, name);
        self.until("the volume opens", 30, |net| net.nodes[at].answers.contains_key(&connection));
        let answer = self.nodes[at].answers.remove(&connection);
        assert!(matches!(answer, Some(Answer::Opened { .. })), "{answer:?}");
        connection
    }

    pub fn request(
        &mut self,
        at: usize,
        connection: ConnectionId,
        (offset, length): (u64, u64),
        operation: Operation,
    ) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next);
        let request = Request { id, offset, length, operation };
        self.tell(at, Input::Request { connection, request });
        id
    }

    #[track_caller]
    pub fn completed(&mut self, at: usize, id: RequestId) -> Completion {
        self.until("a request ends", 30, |net| net.nodes[at].completions.contains_key(&id));
        self.nodes[at].completions.remove(&id).expect("just seen").expect("it is done")
    }

    pub fn begin_write(
        &mut self,
        at: usize,
        connection: ConnectionId,
        offset: u64,
        byte: u8,
        length: u64,
    ) -> RequestId {
        let mut buffer = Buffer::zeroed(length as usize);
        buffer.as_mut_slice().fill(byte);
        let operation = Operation::Write { buffer, fua: false };
        self.request(at, connection, (offset, length), operation)
    }

    #[track_caller]
    pub fn write(
        &mut self,
        at: usize,
        connection: ConnectionId,
        offset: u64,
        byte: u8,
        length: u64,
    ) {
        let id = self.begin_write(at, connection, offset, byte, length);
        assert!(matches!(self.completed(at, id), Completion::Done));
    }

    #[track_caller]
    pub fn flush(&mut self, at: usize, connection: ConnectionId) {
        let id = self.request(at, connection, (0, 0), Operation::Flush);
        assert!(matches!(self.completed(at, id), Completion::Done));
    }

    #[track_caller]
    pub fn read(
        &mut self,
        at: usize,
        connection: ConnectionId,
        offset: u64,
        length: u64,
    ) -> Vec<u8> {
        let id = self.request(at, connection, (offset, length), Operation::Read);
        match self.completed(at, id) {
            Completion::Data(parts) => {
                parts.iter().flat_map(|part| part.as_slice().to_vec()).collect()
            }
            other => panic!("{other:?}"),
        }
    }
}
