//! Snapshots of groups are cuts: guests write to one volume, wait for the answer, write to another
//! one, and so on, many such chains at once, while the disk answers in any order, snapshots of all
//! volumes are taken at any moment, and the process or the power goes. Whenever a write is in a
//! snapshot of the group, so is every write whose answer its guest had waited for before.

use engine::{
    ConnectionId,
    admin::{AdminError, AdminErrorKind, AdminReply, AdminRequest, AdminToken},
};
use proto::{BLOCK_SIZE, Buffer, Duration, OBJECT_SIZE, SECTOR_SIZE, Time};
use sim::{
    disk::{CrashState, Latency, Mixture},
    driver::{Driver, Pace},
    entropy,
    node::{Media, SimNode},
    onedisk::Setup,
    random::Random,
};
use std::collections::{BTreeMap, BTreeSet};
use volume::{Answer, Operation, RequestId};

/// Writes of one chain: each has a place of its own.
const CHAIN_LENGTH: u64 = 40;
const SECTOR: u64 = SECTOR_SIZE as u64;

/// One write of a chain.
#[derive(Clone, Copy)]
struct Write {
    volume: usize,
    offset: u64,
    length: u64,
}

/// A guest's program: each write after the answer to the one before it.
#[derive(Default)]
struct Chain {
    /// All that were begun.
    writes: Vec<Write>,
    /// How many of them were answered.
    answered: usize,
    /// Whether the last one is under way.
    in_flight: bool,
    /// Those whose connection or process ended before their answer: they may be there in part.
    doubtful: BTreeSet<usize>,
}

impl Chain {
    fn interrupt(&mut self) {
        if std::mem::take(&mut self.in_flight) {
            self.doubtful.insert(self.answered);
        }
    }
}

/// A snapshot of the group that was asked for.
struct Taken {
    tag: String,
    /// How many writes of each chain had been answered when it was asked for.
    answered: Vec<usize>,
    /// How many of each had been begun when it was answered, if it was.
    begun: Option<Vec<usize>>,
}

struct Run {
    random: Random,
    setup: Setup,
    driver: Driver,
    /// Whether each write is answered only once it is stable.
    fua: bool,
    volumes: usize,
    chains: Vec<Chain>,
    /// The connection to each volume, and whether it is open.
    links: Vec<Option<(ConnectionId, bool)>>,
    /// Whose write each request is.
    asked: BTreeMap<(ConnectionId, RequestId), usize>,
    taken: Vec<Taken>,
    /// The snapshot of the group that is under way.
    taking: Option<AdminToken>,
    /// How many guests and snapshots of single volumes there were.
    guests: u64,
    singles: u64,
    /// How many snapshots were answered, and how many had a chain in the middle.
    proven: (u64, u64),
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut random = Random::new(seed);
        let capacity = 256 << 20;
        let setup = Setup { capacity, limit_bytes: Some(248 << 20), ..Setup::default() };
        let now = Time(1_000_000_000);
        let mut node = SimNode::start(now, &setup, Media::blank(&setup, &mut random));
        let high = Duration::from_micros(*random.pick(&[30, 300, 3_000, 30_000]));
        node.media_mut().disk.set_latency(Latency { low: Duration::from_micros(10), high });
        node.media_mut().journal.set_latency(Latency { low: Duration::from_micros(10), high });
        let volumes = random.between(3, 5) as usize;
        let chains = (0..random.between(4, 16)).map(|_| Chain::default()).collect();
        Run {
            fua: random.coin(),
            random,
            setup,
            driver: Driver::of(node, now, Pace::InTime),
            volumes,
            chains,
            links: vec![None; volumes],
            asked: BTreeMap::new(),
            taken: Vec::new(),
            taking: None,
            guests: 0,
            singles: 0,
            proven: (0, 0),
        }
    }

    fn run(mut self) -> (u64, u64) {
        self.driver.await_ready().expect("a node can be founded");
        let objects = CHAIN_LENGTH * self.chains.len() as u64 + 2;
        let bytes = objects * OBJECT_SIZE as u64;
        for volume in 0..self.volumes {
            let name = format!("v{volume}");
            self.driver.consult(AdminRequest::VolumeCreate { name, bytes }).expect("a volume");
        }
        let volumes = (0..self.volumes).map(|volume| format!("v{volume}")).collect();
        let request = AdminRequest::GroupCreate { name: "g".into(), volumes };
        self.driver.consult(request).expect("a group");
        for _ in 0..self.random.between(200, 1500) {
            if self.random.chance(2_000) {
                let power = self.random.coin();
                self.crash(power);
                if power && !self.fua {
                    // What was not flushed is lost, so the chains have no present any more.
                    return self.proven;
                }
            }
            self.act();
            self.step();
        }
        if let Some(token) = self.taking {
            let is_taken = |driver: &mut Driver| driver.replies.contains_key(&token);
            self.driver.run_until("the last snapshot", is_taken).expect("it is taken");
            self.listen();
        }
        let power = self.random.coin();
        self.crash(power);
        self.proven
    }

    /// Guests and administrators do something, or not.
    fn act(&mut self) {
        for volume in 0..self.volumes {
            match self.links[volume] {
                None if self.random.coin() => self.connect(volume),
                Some((connection, true)) if self.random.chance(1_000) => {
                    // What it has in flight is in doubt, and done again.
                    self.forget(connection);
                    self.links[volume] = None;
                    self.begin();
                    self.driver.hang_up(connection);
                }
                _ => {}
            }
        }
        for chain in 0..self.chains.len() {
            if !self.chains[chain].in_flight && self.random.chance(300_000) {
                self.write(chain);
            }
        }
        if self.taking.is_none() && self.random.chance(30_000) {
            let tag = format!("s{}", self.taken.len());
            let answered = self.chains.iter().map(|chain| chain.answered).collect();
            self.taken.push(Taken { tag: tag.clone(), answered, begun: None });
            let request = AdminRequest::GroupSnapshot { name: "g".into(), tag };
            self.begin();
            self.taking = Some(self.driver.administer(request));
        }
        // Now and then one volume is busy with a snapshot of its own.
        if self.random.chance(5_000) {
            self.singles += 1;
            let (volume, tag) = (self.random.below(self.volumes as u64), self.singles);
            let name = format!("v{volume}");
            self.begin();
            self.driver.administer(AdminRequest::SnapshotCreate { name, tag: format!("own{tag}") });
        }
    }

    /// The next write of a chain, or the last one once more.
    fn write(&mut self, chain: usize) {
        let number = self.chains[chain].answered;
        if number as u64 == CHAIN_LENGTH {
            return;
        }
        if number == self.chains[chain].writes.len() {
            // Each lies around a border of two objects of its own, on either side or on both.
            let border = (1 + chain as u64 * CHAIN_LENGTH + number as u64) * OBJECT_SIZE as u64;
            let length = self.random.between(1, 40) * SECTOR;
            let offset = border - self.random.below(41) * SECTOR;
            let volume = self.random.below(self.volumes as u64) as usize;
            self.chains[chain].writes.push(Write { volume, offset, length });
        }
        let Write { volume, offset, length } = self.chains[chain].writes[number];
        let Some((connection, true)) = self.links[volume] else { return };
        self.chains[chain].in_flight = true;
        let block = BLOCK_SIZE as u64;
        let (first, end) = (offset / block * block, (offset + length).next_multiple_of(block));
        let mut buffer = Buffer::zeroed((end - first) as usize);
        let inside = (offset - first) as usize;
        buffer.as_mut_slice()[inside..inside + length as usize].fill(stamp(number));
        let operation = Operation::Write { buffer, fua: self.fua };
        self.begin();
        let id = self.driver.request(connection, offset, length, operation);
        self.asked.insert((connection, id), chain);
    }

    fn connect(&mut self, volume: usize) {
        self.begin();
        let connection = self.open(&format!("v{volume}"));
        self.links[volume] = Some((connection, false));
    }

    fn open(&mut self, name: &str) -> ConnectionId {
        self.guests += 1;
        self.driver.ask_open(&format!("guest {}", self.guests), name)
    }

    /// What is asked next comes alone or together with others.
    fn begin(&mut self) {
        self.driver.gathers = self.random.coin();
    }

    /// Nobody waits for the answers of this connection any more.
    fn forget(&mut self, connection: ConnectionId) {
        for ((at, _), chain) in &self.asked {
            if *at == connection {
                self.chains[*chain].interrupt();
            }
        }
        self.asked.retain(|(at, _), _| *at != connection);
    }

    fn step(&mut self) {
        let driver = &mut self.driver;
        let Some(due) = driver.node.next_due() else { return };
        // Inputs come in bursts and in quiet times alike.
        if due > driver.now && self.random.chance(300_000) {
            return;
        }
        driver.now = driver.now.max(due);
        driver.node.advance(driver.now);
        if self.random.coin() || driver.node.next_due().is_none_or(|due| due > driver.now) {
            driver.node.poll(driver.now);
        }
        self.listen();
    }

    fn listen(&mut self) {
        self.driver.listen();
        for link in &mut self.links {
            if let Some((connection, false)) = *link
                && let Some(answer) = self.driver.answers.remove(&connection)
            {
                let is_open = matches!(answer, Answer::Opened { .. });
                *link = is_open.then_some((connection, true));
            }
        }
        let ended: Vec<_> = self.driver.completions.keys().copied().collect();
        for key in ended {
            let result = self.driver.completions.remove(&key).expect("listed just now");
            result.expect("nothing fails here");
            // Nobody waits for those of connections that are gone.
            if let Some(chain) = self.asked.remove(&key) {
                self.chains[chain].in_flight = false;
                self.chains[chain].answered += 1;
            }
        }
        if let Some(result) = self.taking.and_then(|token| self.driver.replies.remove(&token)) {
            self.taking = None;
            self.snapshot_answered(result);
        }
        for (_, sentence) in self.driver.notices.drain(..) {
            // One that a crash interrupted goes.
            assert!(sentence.contains("and was deleted"), "{sentence}");
        }
    }

    fn snapshot_answered(&mut self, result: Result<AdminReply, AdminError>) {
        let taken = self.taken.last_mut().expect("it was asked for");
        match result {
            Ok(AdminReply::GroupSnapshot(report)) => {
                assert!(report.complete && !report.sealing, "{report:?}");
                assert_eq!(report.members.len(), self.volumes);
                taken.begun = Some(self.chains.iter().map(|chain| chain.writes.len()).collect());
            }
            Err(AdminError { kind: AdminErrorKind::Conflict, .. }) => {
                // A member was busy: then no volume has anything of it.
                let tag = self.taken.pop().expect("just seen").tag;
                for volume in self.driver.node.engine().map().volumes() {
                    assert!(volume.snapshot(&tag).is_none(), "half of a snapshot was taken");
                }
                // Its number is used all the same.
                let answered = Vec::new();
                self.taken.push(Taken { tag: String::new(), answered, begun: None });
            }
            other => panic!("{other:?}"),
        }
    }

    /// The process goes, perhaps with the power; then all snapshots are looked at.
    fn crash(&mut self, power: bool) {
        let (now, setup) = (self.driver.now + Duration::from_millis(10), self.setup.clone());
        let states = [(); 2].map(|()| match self.random.below(4) {
            0 => CrashState::Old,
            1 => CrashState::New,
            _ => CrashState::Mixture(Mixture { seed: self.random.next() }),
        });
        self.driver.now = now;
        self.driver.gathers = false;
        self.driver.replace(|mut media| {
            if power {
                media.disk.power_cut(&states[0]);
                media.journal.power_cut(&states[1]);
            } else {
                media.disk.kill();
                media.journal.kill();
            }
            SimNode::start(now, &setup, media)
        });
        self.asked.clear();
        self.taking = None;
        self.links.fill(None);
        self.chains.iter_mut().for_each(Chain::interrupt);
        self.driver.await_ready().expect("it starts again");
        // What was being taken is finished by the node itself, and then goes.
        let is_over = |driver: &mut Driver| {
            let engine = driver.node.engine();
            let map = engine.map();
            map.volumes().all(|volume| map.sealing(volume).is_none()) && engine.torn_groups() == 0
        };
        self.driver.run_until("the end of what was begun", is_over).expect("it ends");
        self.listen();
        self.driver.node.engine().check();
        for taken in std::mem::take(&mut self.taken) {
            self.verify(&taken);
            self.taken.push(taken);
        }
    }

    /// Whether the snapshot is a cut, whatever was lost; one that was never answered may be gone.
    fn verify(&mut self, taken: &Taken) {
        let reply = self.driver.consult(AdminRequest::GroupInfo { name: "g".into() });
        let Ok(AdminReply::Group(group)) = reply else { panic!("{reply:?}") };
        let found = group.snapshots.iter().find(|found| found.tag == taken.tag);
        let Some(found) = found else {
            assert!(taken.begun.is_none(), "snapshot {} is gone", taken.tag);
            return;
        };
        assert!(found.complete && !found.sealing, "{found:?}");
        self.proven.0 += u64::from(taken.begun.is_some());
        let names: Vec<String> =
            (0..self.volumes).map(|volume| format!("v{volume}@{}", taken.tag)).collect();
        let readers: Vec<ConnectionId> = names.iter().map(|name| self.open(name)).collect();
        for reader in &readers {
            let is_answered = |driver: &mut Driver| driver.answers.contains_key(reader);
            self.driver.run_until("a reader", is_answered).expect("it is answered");
            let answer = &self.driver.answers[reader];
            assert!(matches!(answer, Answer::Opened { read_only: true, .. }), "{answer:?}");
        }
        for chain in 0..self.chains.len() {
            self.verify_chain(taken, chain, &readers);
        }
        for connection in readers {
            self.driver.hang_up(connection);
        }
    }

    fn verify_chain(&mut self, taken: &Taken, chain: usize, readers: &[ConnectionId]) {
        let mut missing = None;
        for number in 0..self.chains[chain].writes.len() {
            let Write { volume, offset, length } = self.chains[chain].writes[number];
            let read = self.driver.read(readers[volume], offset, length);
            let bytes = read.expect("a snapshot can be read");
            let all = bytes.iter().all(|byte| *byte == stamp(number));
            let any = bytes.iter().any(|byte| *byte != 0);
            let what = format!("write {number} of chain {chain} in {}", taken.tag);
            if let (Some(missing), true) = (missing, any) {
                panic!("{what} is there, and {missing} before it is not");
            }
            let in_doubt = self.chains[chain].doubtful.contains(&number);
            assert!(all || !any || in_doubt, "{what} is there in part");
            if !all {
                missing.get_or_insert(number);
            }
            assert!(all || number >= taken.answered[chain], "{what} had been answered before");
            if let Some(begun) = &taken.begun {
                assert!(!any || number < begun[chain], "{what} had not been begun");
                self.proven.1 += u64::from(number > 0 && missing == Some(number));
            }
        }
    }
}

/// What the bytes of a write are.
fn stamp(number: usize) -> u8 {
    1 + number as u8
}

/// Says which seed it was when something panics.
struct Loud(u64);

impl Drop for Loud {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

#[test]
fn no_write_is_in_a_group_snapshot_without_those_before_it() {
    let (mut answered, mut cut) = (0, 0);
    for round in 0..160 {
        let seed = if round < 20 { round } else { entropy() };
        let _loud = Loud(seed);
        let proven = Run::new(seed).run();
        answered += proven.0;
        cut += proven.1;
    }
    // The histories are not trivial.
    assert!(answered > 200 && cut > 1_000, "{answered} snapshots cut {cut} chains");
}
