//! The real engine of one node on simulated media, driven by hand.

use crate::{
    disk::{Image, SimDisk},
    onedisk::{IDENTITY, Setup},
    random::Random,
};
use engine::{CloseReason, DiskSettings, Engine, Founding, Input, Output, Settings};
use proto::wire::Hello;
use proto::{DiskId, DiskToken, Duration, NodeId, Time, limits};
use std::collections::VecDeque;

/// The partitions of a cluster of one node, as a power of two. All of them have the same member, so
/// that the number that people's clusters have would only take longer.
const PARTITION_BITS: u8 = 5;

/// What of a node outlives its process: its media, and whether it was founded.
pub struct Media {
    /// The disk.
    pub disk: SimDisk,
    /// The agreed log.
    pub journal: SimDisk,
    /// Whether the founding was completed, as the node's own record says.
    pub founded: bool,
}

/// One of a node's media.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Medium {
    /// The disk.
    Disk,
    /// The agreed log.
    Journal,
}

/// Where the process is in its life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Life {
    /// Not ready yet.
    Starting,
    /// Serving.
    Ready,
    /// It gave up, with this sentence.
    Failed(String),
    /// It stopped in order.
    Stopped,
}

/// Something the node says to the world outside its media.
pub type Said = Output;

/// Space the journal may have: no limit that it could meet.
const JOURNAL_BYTES: u64 = 1 << 40;

/// What a node takes for the present when it starts, unless told otherwise.
const UNIX_S: u64 = 1_700_000_000;

/// How often time may have come for a node at one and the same moment: more is a machine that
/// spins.
const TICKS_AT_ONCE_MAX: u32 = 100_000;

/// A running node. See the module.
pub struct SimNode {
    engine: Engine,
    /// Whose medium the disk is; nothing: the node has none.
    disk: Option<DiskId>,
    media: Media,
    life: Life,
    outputs: Vec<Output>,
    said: VecDeque<Said>,
    /// When time came last, and how often it did at that moment.
    ticked: (Time, u32),
}

impl Media {
    /// Blank media for a node that is to be founded.
    pub fn blank(setup: &Setup, random: &mut Random) -> Media {
        Media {
            disk: SimDisk::new(setup.blank(), setup.capacity, random.fork()),
            journal: SimDisk::new(Image::empty(), JOURNAL_BYTES, random.fork()),
            founded: false,
        }
    }

    /// Media that hold these images, of a node that was founded.
    pub fn of(setup: &Setup, disk: Image, journal: Image) -> Media {
        Media {
            disk: SimDisk::new(disk, setup.capacity, Random::new(7)),
            journal: SimDisk::new(journal, JOURNAL_BYTES, Random::new(8)),
            founded: true,
        }
    }

    /// One of them.
    pub fn get(&self, medium: Medium) -> &SimDisk {
        match medium {
            Medium::Disk => &self.disk,
            Medium::Journal => &self.journal,
        }
    }

    /// One of them, to be changed.
    pub fn get_mut(&mut self, medium: Medium) -> &mut SimDisk {
        match medium {
            Medium::Disk => &mut self.disk,
            Medium::Journal => &mut self.journal,
        }
    }
}

impl SimNode {
    /// Starts the process. A founding that did not end goes on, as the daemon has it.
    pub fn start(now: Time, setup: &Setup, media: Media) -> SimNode {
        SimNode::start_at(now, UNIX_S, setup, media)
    }

    /// The same with another idea of the present, in seconds since 1970.
    pub fn start_at(now: Time, unix_s: u64, setup: &Setup, media: Media) -> SimNode {
        let settings = Settings {
            cluster: IDENTITY.cluster,
            node: IDENTITY.node,
            founding: (!media.founded).then_some(Founding::Here),
            instance: 1,
            seed: 1,
            addresses: Vec::new(),
            seeds: Vec::new(),
            journal_bytes: media.journal.length(),
            disks: vec![DiskSettings {
                disk: IDENTITY.disk,
                format: !media.founded,
                kind: setup.kind,
                medium_bytes: media.disk.length(),
                limit_bytes: setup.limit_bytes,
                map_cache_bytes: setup.map_cache_bytes,
                scrub_bytes_per_s: setup.scrub_bytes_per_s,
                log_bytes: Some(setup.log_bytes),
                path: "disk".into(),
                refusal: None,
            }],
            unix_s,
            trash_expiry_s: 24 * 3600,
            trash_grace: Duration::from_secs(limits::TRASH_START_GRACE_S),
            rebuild_after: Duration::from_millis(limits::STEWARD_GRACE_MS),
            boot: [0; 16],
            version: "simulated".into(),
            fill_bytes_per_s: 0,
            partition_bits: PARTITION_BITS,
        };
        SimNode::start_with(now, settings, media)
    }

    /// Starts the process with these settings. It has at most one disk.
    pub fn start_with(now: Time, settings: Settings, media: Media) -> SimNode {
        assert!(settings.disks.len() <= 1, "there is one medium for disks");
        let disk = settings.disks.first().map(|known| known.disk);
        let mut outputs = Vec::new();
        let engine = Engine::new(now, settings, &mut outputs);
        let said = VecDeque::new();
        let (life, ticked) = (Life::Starting, (now, 0));
        let mut node = SimNode { engine, disk, media, life, outputs, said, ticked };
        node.perform(now);
        node.poll(now);
        node
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Where it is in its life.
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// Its media.
    pub fn media(&self) -> &Media {
        &self.media
    }

    /// Its media, to be given faults.
    pub fn media_mut(&mut self) -> &mut Media {
        &mut self.media
    }

    /// Its media alone: the process is dead.
    pub fn into_media(self) -> Media {
        self.media
    }

    /// Puts another process on what this one leaves.
    pub fn replace(&mut self, start: impl FnOnce(Media) -> SimNode) {
        let nothing = Media {
            disk: SimDisk::new(Image::empty(), 0, Random::new(0)),
            journal: SimDisk::new(Image::empty(), 0, Random::new(0)),
            founded: false,
        };
        let media = std::mem::replace(&mut self.media, nothing);
        *self = start(media);
    }

    /// Hands an input to the engine. Needs [`SimNode::poll`] at the end of the round.
    pub fn input(&mut self, now: Time, input: Input) {
        self.engine.handle(now, input, &mut self.outputs);
        self.perform(now);
    }

    /// Ends a round of inputs.
    pub fn poll(&mut self, now: Time) {
        self.engine.poll(now, &mut self.outputs);
        self.perform(now);
    }

    /// Another node has connected, and this is its hello. Needs [`SimNode::poll`] like an input.
    pub fn accept(
        &mut self,
        now: Time,
        hello: &Hello,
        nonce: u64,
    ) -> Result<(NodeId, u64), CloseReason> {
        let accepted = self.engine.handle_accepted(now, hello, nonce, &mut self.outputs);
        self.perform(now);
        accepted
    }

    /// Bytes of a connection to another node have come. Needs [`SimNode::poll`] like an input.
    pub fn receive(&mut self, now: Time, node: NodeId, connection: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if let Some(target) = self.engine.peer_payload_target(node, connection) {
                let filled = target.len().min(bytes.len());
                target[..filled].copy_from_slice(&bytes[..filled]);
                bytes = &bytes[filled..];
                let outputs = &mut self.outputs;
                self.engine.handle_peer_payload(now, node, connection, filled, outputs);
            } else {
                self.engine.handle_peer_bytes(now, node, connection, bytes, &mut self.outputs);
                bytes = &[];
            }
            self.perform(now);
        }
    }

    /// Takes what is to be written to a connection, as much as there is room for.
    pub fn send(&mut self, now: Time, node: NodeId, connection: u64, room: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in self.engine.peer_output(node, connection) {
            let taken = piece.len().min(room - bytes.len());
            bytes.extend_from_slice(&piece[..taken]);
            if bytes.len() == room {
                break;
            }
        }
        self.engine.handle_peer_sent(now, node, connection, bytes.len());
        bytes
    }

    /// What it said since the last call.
    pub fn take_said(&mut self) -> Vec<Said> {
        self.said.drain(..).collect()
    }

    /// When the next thing happens by itself.
    pub fn next_due(&self) -> Option<Time> {
        let due =
            [self.media.disk.next_due(), self.media.journal.next_due(), self.engine.deadline()];
        due.into_iter().flatten().min()
    }

    /// Lets one thing happen that is due: the end of an operation, or time that has come. Returns
    /// what ended, or nothing if nothing was due.
    ///
    /// # Panics
    /// If time has come over and over without passing.
    pub fn advance(&mut self, now: Time) -> Option<Happened> {
        for medium in [Medium::Disk, Medium::Journal] {
            if let Some(done) = self.media.get_mut(medium).complete_due(now) {
                let happened = Happened::Ended(medium, done.token, done.result.is_ok());
                self.ended(now, medium, done);
                return Some(happened);
            }
        }
        if self.engine.deadline().is_some_and(|deadline| deadline <= now) {
            let (since, ticks) = self.ticked;
            self.ticked = (now, if since == now { ticks + 1 } else { 0 });
            assert!(self.ticked.1 < TICKS_AT_ONCE_MAX, "the node spins at {now:?}");
            self.input(now, Input::Tick);
            self.poll(now);
            return Some(Happened::Tick);
        }
        None
    }

    /// Lets the operation of a medium end that was asked for first. False: none is in flight.
    pub fn step(&mut self, now: Time) -> bool {
        for medium in [Medium::Disk, Medium::Journal] {
            let token = self.media.get(medium).in_flight().next();
            if let Some(token) = token {
                let done = self.media.get_mut(medium).complete(token);
                self.ended(now, medium, done);
                self.poll(now);
                return true;
            }
        }
        false
    }

    fn ended(&mut self, now: Time, medium: Medium, done: proto::DiskDone) {
        let input = match medium {
            Medium::Disk => {
                let disk = self.disk.expect("only a disk that is there is asked");
                Input::Disk { disk, done }
            }
            Medium::Journal => Input::Journal(done),
        };
        self.input(now, input);
    }

    fn perform(&mut self, now: Time) {
        for output in std::mem::take(&mut self.outputs) {
            match output {
                Output::Disk { disk, op } => {
                    assert_eq!(Some(disk), self.disk, "there is one disk");
                    self.media.disk.submit(now, op);
                }
                Output::Journal(op) => self.media.journal.submit(now, op),
                Output::Ready => {
                    assert_eq!(self.life, Life::Starting);
                    self.life = Life::Ready;
                    self.media.founded = true;
                }
                Output::Failed(ref sentence) => self.life = Life::Failed(sentence.clone()),
                Output::Stopped => self.life = Life::Stopped,
                other => self.said.push_back(other),
            }
        }
    }
}

/// What happened by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Happened {
    /// An operation of a medium ended, well or not.
    Ended(Medium, DiskToken, bool),
    /// A time came.
    Tick,
}
