//! Sessions, disks, a network and somebody who changes members, all of it random, and a register
//! for each block that knows what may be read.
//!
//! Disks are [`ModelDisk`]s. Questions to one disk keep their order, answers come in any. Disks
//! hang, are opened anew, lose power; sessions are replaced by newer ones and go on as if nothing
//! had happened. Members are changed by decision 0009, in steps between which anything may happen,
//! and only on evidence that rule 7 of decision 0008 lets count.

use crate::disk_model::{Cell, ModelDisk, Random, block_of};
use crate::{
    Answer, Becomes, Coordinator, Copier, Copy, CopyLayer, Effect, Event, Request, Source, View,
    settle,
};
use cluster::{Command, Configuration, Map, Member, State};
use proto::{
    Batch, BlockRange, Change, ClusterId, ConfigurationNumber, DiskId, Duration, Generation,
    Incarnation, LayerId, LineageId, MemberError, MemberReply, MemberRequest, MemberToken, Mistake,
    NodeId, ObjectKey, PartitionId, Permit, Stamp, Time, Under, VolumeId, planted,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

const DISKS: usize = 4;
const MEMBERS: usize = 3;
const OBJECTS: u32 = 6;
const BLOCKS: u32 = 2;
const PARTITIONS: u32 = 4;
const BITS: u8 = 2;
const COPIES: u8 = 3;
const LINEAGE: LineageId = LineageId(1);

/// How unkind a world is: times in a thousand steps.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    hang: u64,
    restart: u64,
    power: u64,
    /// All machines lose power at once.
    blackout: u64,
    attach: u64,
    change: u64,
    lost_answer: u64,
    busy: u64,
}

/// One block, as the guest may see it. Values are numbers of writes; 0: never written.
#[derive(Clone, Debug)]
struct Register {
    /// What it may be now.
    possible: BTreeSet<u64>,
    /// The last value acknowledged, and the last one covered by a flush.
    acked: u64,
    flushed: u64,
    /// Values that are gone for good.
    dead: BTreeSet<u64>,
    /// Some request of the newest session is under way.
    is_busy: bool,
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Write { place: (u32, u32), value: u64 },
    Read { place: (u32, u32) },
    Flush,
}

struct Session {
    coordinator: Coordinator,
    seen: u64,
    opened: bool,
    fenced: bool,
    /// Acknowledged writes were reported as lost.
    lost: bool,
    requests: BTreeMap<u64, Asked>,
    /// Reads that came when a newer session was open already.
    too_late: BTreeSet<u64>,
    /// What a flush under way covers.
    covers: BTreeMap<u64, BTreeMap<(u32, u32), u64>>,
    questions: Vec<VecDeque<(MemberToken, Incarnation, MemberRequest)>>,
}

/// A change of the members of one partition under way.
#[derive(Debug)]
struct Attempt {
    number: u64,
    partition: PartitionId,
    from: ConfigurationNumber,
    wanted: Vec<usize>,
    /// Who refused, in which opening, and whether it is unchanged evidence.
    refused: BTreeMap<usize, (Incarnation, bool)>,
    /// Who has installed, in which opening.
    installed: BTreeMap<usize, Incarnation>,
}

type Answered = (usize, usize, MemberToken, Result<MemberReply, MemberError>);

struct World {
    random: Random,
    now: Time,
    faults: Faults,
    disks: Vec<ModelDisk>,
    /// Until when each does nothing.
    hangs: Vec<Time>,
    volume: VolumeId,
    map: Arc<Map>,
    epoch: u64,
    sessions: Vec<Session>,
    answers: Vec<Answered>,
    registers: BTreeMap<(u32, u32), Register>,
    values: u64,
    tokens: u64,
    attempts: u64,
    attempt: Option<Attempt>,
    acknowledged: u64,
    reads: u64,
    losses: u64,
    changes: u64,
}

fn base() -> (Arc<Map>, VolumeId) {
    let mut state = State::default();
    let node = NodeId(1);
    let mut apply = |command| state.apply(&command).expect("a good command");
    apply(Command::CreateCluster { cluster: ClusterId(1), partition_bits: BITS, unix_s: 0 });
    apply(Command::AddNode { node, name: "alpha".into() });
    apply(Command::OpenDisk { disk: DiskId(100), node, incarnation: Incarnation(1) });
    apply(Command::CreateVolume { name: "vm".into(), bytes: 64 << 20, unix_s: 0 });
    let map = state.map();
    let volume = map.volume_named("vm").expect("just created").id;
    (map, volume)
}

impl World {
    fn new(seed: u64, faults: Faults) -> World {
        let (map, volume) = base();
        let mut map = Map::clone(&map);
        for partition in 0..PARTITIONS {
            let member = |at: u32| Member {
                disk: DiskId(u128::from((partition + at) % DISKS as u32)),
                incarnation: Incarnation(1),
            };
            let current = (0..MEMBERS as u32).map(member).collect();
            let number = ConfigurationNumber(1);
            let configuration = Configuration { number, current, ..Configuration::default() };
            map = map.with_configuration(PartitionId(partition), configuration);
        }
        let register = Register {
            possible: BTreeSet::from([0]),
            acked: 0,
            flushed: 0,
            dead: BTreeSet::new(),
            is_busy: false,
        };
        let places = (0..OBJECTS).flat_map(|index| (0..BLOCKS).map(move |block| (index, block)));
        let mut world = World {
            random: Random(seed),
            now: Time(1),
            faults,
            disks: vec![ModelDisk::new(); DISKS],
            hangs: vec![Time(0); DISKS],
            volume,
            map: Arc::new(map),
            epoch: 0,
            sessions: Vec::new(),
            answers: Vec::new(),
            registers: places.map(|place| (place, register.clone())).collect(),
            values: 0,
            tokens: 0,
            attempts: 0,
            attempt: None,
            acknowledged: 0,
            reads: 0,
            losses: 0,
            changes: 0,
        };
        world.attach();
        world
    }

    // -- sessions --

    fn attach(&mut self) {
        let generation = Generation(self.sessions.len() as u64 + 1);
        let mut effects = Vec::new();
        let (now, volume, map) = (self.now, self.volume, Arc::clone(&self.map));
        let view = View::Head { read_only: false };
        let mut coordinator = Coordinator::open(now, volume, generation, view, map, &mut effects);
        coordinator.set_near(BTreeSet::from([DiskId(u128::from(self.random.below(4)))]));
        self.sessions.push(Session {
            coordinator,
            seen: self.epoch,
            opened: false,
            fenced: false,
            lost: false,
            requests: BTreeMap::new(),
            too_late: BTreeSet::new(),
            covers: BTreeMap::new(),
            questions: vec![VecDeque::new(); DISKS],
        });
        let at = self.sessions.len() - 1;
        self.take(at, effects);
    }

    fn newest_open(&self) -> Option<usize> {
        self.sessions.iter().rposition(|session| session.opened)
    }

    fn tell(&mut self, at: usize, event: Event) {
        let mut effects = Vec::new();
        self.sessions[at].coordinator.handle(self.now, event, &mut effects);
        self.take(at, effects);
    }

    fn take(&mut self, at: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Member { member, token, request } => {
                    let asked = (token, member.incarnation, request);
                    self.sessions[at].questions[member.disk.0 as usize].push_back(asked);
                }
                Effect::Opened => self.opened(at),
                Effect::Done { token, result } => self.done(at, token, result),
                Effect::Lost => {
                    self.sessions[at].lost = true;
                    self.losses += 1;
                }
                Effect::Fenced => self.sessions[at].fenced = true,
            }
        }
        self.sessions[at].coordinator.check();
    }

    fn opened(&mut self, at: usize) {
        assert!(self.sessions[at].questions.len() == DISKS);
        self.sessions[at].opened = true;
        assert!(self.newest_open() == Some(at), "session {at} opened after a newer one had opened");
        // What earlier sessions have under way may have become so, or not.
        for session in &self.sessions[..at] {
            for asked in session.requests.values() {
                if let Asked::Write { place, value } = asked {
                    let register = self.registers.get_mut(place).expect("all are there");
                    if !register.dead.contains(value) {
                        register.possible.insert(*value);
                    }
                }
            }
        }
        self.registers.values_mut().for_each(|register| register.is_busy = false);
    }

    fn done(&mut self, at: usize, token: u64, result: Result<Answer, crate::Error>) {
        let asked = self.sessions[at].requests.remove(&token).expect("it was asked once");
        let is_newest = self.newest_open() == Some(at);
        let is_lost = self.sessions[at].lost;
        let is_ok = result.is_ok();
        if let Err(error) = &result {
            let is_fine = matches!(error, crate::Error::Fenced) || matches!(asked, Asked::Flush);
            assert!(is_fine, "{asked:?} failed: {error}");
        }
        match asked {
            Asked::Write { place, value } => {
                let register = self.registers.get_mut(&place).expect("all are there");
                if !is_ok {
                    // Fenced: it may have become so.
                    if !register.dead.contains(&value) {
                        register.possible.insert(value);
                    }
                } else if is_newest {
                    self.acknowledged += 1;
                    let gone = std::mem::replace(&mut register.possible, BTreeSet::from([value]));
                    register.dead.extend(gone);
                    register.acked = value;
                    register.is_busy = false;
                } else {
                    assert!(
                        !register.dead.contains(&value) || register.acked > value,
                        "write {value} to {place:?} is acknowledged that nobody will see"
                    );
                }
            }
            Asked::Read { place } => {
                let Ok(answer) = result else { return };
                let Answer::Data { content, absent } = answer else { panic!("{answer:?}") };
                let bytes = content[0].as_slice()[..8].try_into().expect("eight bytes");
                let value = u64::from_le_bytes(bytes);
                assert_eq!(value == 0, !absent.is_empty());
                self.reads += 1;
                let too_late = self.sessions[at].too_late.remove(&token);
                assert!(!too_late, "a fenced session read {place:?} after a newer one was open");
                if !is_newest {
                    return;
                }
                let register = self.registers.get_mut(&place).expect("all are there");
                assert!(
                    register.possible.contains(&value),
                    "{place:?} reads as {value}, not as {:?}",
                    register.possible
                );
                let is_older = value < register.acked;
                assert!(
                    !is_older || is_lost || register.possible.len() > 1,
                    "a loss that nobody was told of"
                );
                let gone = std::mem::replace(&mut register.possible, BTreeSet::from([value]));
                register.dead.extend(gone.into_iter().filter(|it| *it != value));
                register.acked = value;
                register.is_busy = false;
            }
            Asked::Flush => {
                let covers = self.sessions[at].covers.remove(&token).expect("it began");
                if is_ok && is_newest {
                    for (place, value) in covers {
                        let register = self.registers.get_mut(&place).expect("all are there");
                        register.flushed = register.flushed.max(value);
                    }
                }
            }
        }
    }

    fn request(&mut self) {
        let open: Vec<usize> = (0..self.sessions.len())
            .filter(|at| self.sessions[*at].opened && !self.sessions[*at].fenced)
            .collect();
        if open.is_empty() {
            return;
        }
        let at = open[self.random.below(open.len() as u64) as usize];
        let is_newest = self.newest_open() == Some(at);
        if self.sessions[at].requests.len() >= 8 {
            return;
        }
        self.tokens += 1;
        let token = self.tokens;
        let place = (self.random.below(u64::from(OBJECTS)) as u32, self.random.below(2) as u32);
        let kind = self.random.below(10);
        let uses_place = |asked: &Asked| match asked {
            Asked::Write { place: it, .. } | Asked::Read { place: it } => *it == place,
            _ => false,
        };
        if kind > 0 && self.sessions[at].requests.values().any(uses_place) {
            return;
        }
        let register = self.registers.get_mut(&place).expect("all are there");
        let (index, block) = place;
        match kind {
            0 => {
                let covers = self.registers.iter();
                let covers = covers.filter(|(_, it)| it.possible.len() == 1);
                let covers = covers.map(|(place, it)| (*place, it.acked)).collect();
                let session = &mut self.sessions[at];
                session.requests.insert(token, Asked::Flush);
                session.covers.insert(token, covers);
                let request = Request::Flush { reported: true };
                self.tell(at, Event::Request { token, request });
            }
            1..=5 => {
                self.values += 1;
                let value = self.values;
                register.is_busy |= is_newest;
                let asked = Asked::Write { place, value };
                self.sessions[at].requests.insert(token, asked);
                let payload = block_of(value);
                let change = Change::Data { first: block, payload, detect_zeroes: true };
                if is_newest {
                    // While it is under way nobody asks for it.
                    self.registers.get_mut(&place).expect("it is there").possible.insert(value);
                } else if !register_is_dead(&self.registers[&place], value) {
                    // A fenced session does not know it yet: this may not become so any more.
                    self.registers.get_mut(&place).expect("it is there").dead.insert(value);
                }
                let request = Request::Change { index, change };
                self.tell(at, Event::Request { token, request });
            }
            _ => {
                self.sessions[at].requests.insert(token, Asked::Read { place });
                if !is_newest {
                    self.sessions[at].too_late.insert(token);
                }
                let blocks = BlockRange::new(block, 1).expect("a block");
                let request = Request::Read { source: Source::Own, index, blocks };
                self.tell(at, Event::Request { token, request });
            }
        }
    }

    // -- the network and the disks --

    /// A disk does one thing that it was asked for.
    fn serve(&mut self) -> bool {
        let begin = self.random.below((DISKS * self.sessions.len()) as u64) as usize;
        let count = DISKS * self.sessions.len();
        for at in (0..count).map(|step| (begin + step) % count) {
            let (session, disk) = (at / DISKS, at % DISKS);
            if self.hangs[disk] > self.now {
                continue;
            }
            let Some((token, incarnation, request)) =
                self.sessions[session].questions[disk].pop_front()
            else {
                continue;
            };
            let is_asked = self.disks[disk].incarnation == incarnation;
            let result = if !is_asked && !planted(Mistake::AnyOpeningAsked) {
                Err(MemberError::Retired)
            } else if self.random.chance(self.faults.busy) {
                Err(MemberError::Busy)
            } else {
                self.disks[disk].handle(&request)
            };
            let result = match self.random.chance(self.faults.lost_answer) {
                true => Err(MemberError::Retired),
                false => result,
            };
            self.answers.push((session, disk, token, result));
            return true;
        }
        false
    }

    fn deliver(&mut self) -> bool {
        if self.answers.is_empty() {
            return false;
        }
        let place = self.random.below(self.answers.len() as u64) as usize;
        let (session, disk, token, result) = self.answers.swap_remove(place);
        let disk = DiskId(disk as u128);
        self.tell(session, Event::Member { disk, token, result });
        true
    }

    /// Its machine lost so much of what was not flushed, in thousandths; 0: it has not lost power.
    fn reopen(&mut self, disk: usize, lost: u64) {
        let mut random = self.random.clone();
        self.disks[disk].reopen(lost, &mut random);
        self.random = random;
        // What it was asked comes again over the next connection, or is given up.
        if self.random.chance(500) {
            for session in 0..self.sessions.len() {
                for (token, ..) in std::mem::take(&mut self.sessions[session].questions[disk]) {
                    self.answers.push((session, disk, token, Err(MemberError::Retired)));
                }
            }
        }
    }

    fn show_map(&mut self, at: usize) {
        if self.sessions[at].seen < self.epoch {
            self.sessions[at].seen = self.epoch;
            let map = Arc::clone(&self.map);
            self.tell(at, Event::Map(map));
        }
    }

    fn tick(&mut self, at: usize) -> bool {
        let due = self.sessions[at].coordinator.deadline();
        if due.is_some_and(|due| due <= self.now) {
            self.tell(at, Event::Tick);
            return true;
        }
        false
    }

    // -- changes of members --

    fn begin_attempt(&mut self) {
        let partition = PartitionId(self.random.below(u64::from(PARTITIONS)) as u32);
        let from = self.map.configuration(COPIES, partition).number;
        let mut disks: Vec<usize> = (0..DISKS).collect();
        let spare = self.random.below(DISKS as u64) as usize;
        disks.remove(spare);
        self.attempts += 1;
        self.attempt = Some(Attempt {
            number: self.attempts,
            partition,
            from,
            wanted: disks,
            refused: BTreeMap::new(),
            installed: BTreeMap::new(),
        });
    }

    fn batch(attempt: &Attempt) -> Batch {
        Batch {
            copies: COPIES,
            bits: BITS,
            partitions: vec![(attempt.partition, attempt.from)],
            attempt: attempt.number,
        }
    }

    /// One step of the attempt under way; gives back whether it goes on.
    fn advance_attempt(&mut self) -> bool {
        let Some(mut attempt) = self.attempt.take() else { return false };
        let present = self.map.configuration(COPIES, attempt.partition).clone();
        let reopened = attempt
            .refused
            .iter()
            .any(|(disk, (incarnation, _))| self.disks[*disk].incarnation != *incarnation)
            || attempt
                .installed
                .iter()
                .any(|(disk, incarnation)| self.disks[*disk].incarnation != *incarnation);
        if reopened {
            return false;
        }
        let is_up = |disk: &usize| self.hangs[*disk] <= self.now;
        let members: Vec<usize> =
            present.current.iter().map(|member| member.disk.0 as usize).collect();
        let next =
            members.iter().copied().find(|disk| is_up(disk) && !attempt.refused.contains_key(disk));
        if attempt.installed.is_empty()
            && let Some(disk) = next
        {
            let request = MemberRequest::Refuse(World::batch(&attempt));
            let reply = self.disks[disk].handle(&request);
            let Ok(MemberReply::Refused { incarnation, lossless_from }) = reply else {
                return false;
            };
            let listed = present.current.iter().find(|it| it.disk.0 as usize == disk);
            let listed = listed.expect("a member").incarnation;
            let unchanged = listed == incarnation || listed >= lossless_from;
            attempt.refused.insert(disk, (incarnation, unchanged));
            self.attempt = Some(attempt);
            return true;
        }
        let quorum = members.len() / 2 + 1;
        let meeting = members.len() + 1 - quorum;
        let unchanged = attempt.refused.values().filter(|(_, it)| *it).count();
        let lossy = attempt.refused.len() - unchanged;
        let is_evidence =
            unchanged >= meeting || (lossy >= quorum && attempt.refused.len() >= meeting);
        if !is_evidence {
            return false;
        }
        let next = attempt.wanted.iter().copied().find(|it| !attempt.installed.contains_key(it));
        if let Some(disk) = next {
            if !is_up(&disk) || !self.install(&attempt, disk) {
                return false;
            }
            attempt.installed.insert(disk, self.disks[disk].incarnation);
            self.attempt = Some(attempt);
            return true;
        }
        self.activate(&attempt, &members, quorum);
        false
    }

    /// Makes one disk what the next configuration begins with.
    fn install(&mut self, attempt: &Attempt, disk: usize) -> bool {
        let objects: Vec<u32> = (0..OBJECTS)
            .filter(|index| self.map.partition_of(LINEAGE, *index) == attempt.partition)
            .collect();
        let under = Under { copies: COPIES, bits: BITS, number: attempt.from };
        for index in objects {
            let key = ObjectKey { layer: LayerId(1), index };
            let stamps = attempt.refused.keys().map(|at| self.disks[*at].stamp(LINEAGE, key));
            let stamps: Vec<_> = stamps.collect();
            // Only what somebody names is settled; of the rest all have the same.
            let is_named = attempt.refused.keys().any(|at| self.disks[*at].names(LINEAGE, key));
            let chosen = match is_named {
                true => settle(stamps.iter().copied()),
                false => stamps.get(attempt.number as usize % stamps.len()).map(|it| it.stamp),
            };
            let Some(stamp) = chosen else { return false };
            let is_unchanged = attempt.refused.get(&disk).is_some_and(|(_, unchanged)| *unchanged);
            if !is_named && is_unchanged && !self.disks[disk].names(LINEAGE, key) {
                continue;
            }
            let settled = stamps.iter().map(|it| it.settled_generation.max(it.stamp.generation));
            let settled_generation = settled.max().expect("somebody refused");
            let holds = |at: &&usize| self.disks[**at].stamp(LINEAGE, key).stamp == stamp;
            let sources: Vec<DiskId> =
                attempt.refused.keys().filter(holds).map(|at| DiskId(*at as u128)).collect();
            if stamp == Stamp::default() && self.disks[disk].row(LINEAGE, key).is_none() {
                continue;
            }
            let mut copier = Copier::begin(Copy {
                lineage: LINEAGE,
                index,
                layers: vec![CopyLayer {
                    layer: LayerId(1),
                    parent: LayerId(0),
                    becomes: Becomes::Given { stamp, settled_generation },
                    is_above: false,
                }],
                sources,
                target: DiskId(disk as u128),
                permit: Permit::Attempt { under, attempt: attempt.number },
                generation: Generation(1),
            });
            for _ in 0..100 {
                if copier.outcome().is_some() {
                    break;
                }
                while let Some((question, at, request)) = copier.poll(self.now) {
                    let result = self.disks[at.0 as usize].handle(&request);
                    copier.handle(self.now, question, result);
                }
            }
            if !matches!(copier.outcome(), Some(Ok(_))) {
                return false;
            }
        }
        let fences = attempt.refused.keys().filter_map(|at| self.disks[*at].fences.get(&LINEAGE));
        let fences = fences.max().map(|fence| (LINEAGE, *fence)).into_iter().collect();
        let batch = World::batch(attempt);
        let request = MemberRequest::Install { batch, fences, last: true };
        self.disks[disk].handle(&request).is_ok()
    }

    fn activate(&mut self, attempt: &Attempt, members: &[usize], quorum: usize) {
        let present = self.map.configuration(COPIES, attempt.partition);
        let lossy = members.iter().filter(|disk| {
            let listed = present.current.iter().find(|it| it.disk.0 as usize == **disk);
            listed.is_some_and(|it| it.incarnation < self.disks[**disk].lossless_from)
        });
        let is_excused = lossy.count() >= quorum;
        let member = |(disk, incarnation): (&usize, &Incarnation)| Member {
            disk: DiskId(*disk as u128),
            incarnation: *incarnation,
        };
        let current = attempt.installed.iter().map(member).collect();
        let number = ConfigurationNumber(attempt.from.0 + 1);
        let configuration = Configuration { number, current, ..Configuration::default() };
        self.map = Arc::new(self.map.with_configuration(attempt.partition, configuration));
        self.epoch += 1;
        self.changes += 1;
        if is_excused {
            self.excuse(attempt.partition);
        }
    }

    /// Power took a write quorum: what was acknowledged and not flushed may be gone.
    fn excuse(&mut self, partition: PartitionId) {
        for (&(index, _), register) in &mut self.registers {
            if self.map.partition_of(LINEAGE, index) != partition {
                continue;
            }
            let last = register.possible.iter().next_back().copied().unwrap_or(0);
            let since = (register.flushed..=last).filter(|value| *value >= register.flushed);
            // Only values of this block are ever read from it.
            register.possible.extend(since);
            register.dead.retain(|value| *value < register.flushed);
        }
    }

    // -- all together --

    fn step(&mut self) {
        self.now = self.now + Duration::from_micros(self.random.below(2_000));
        let at = self.random.below(self.sessions.len() as u64) as usize;
        let disk = self.random.below(DISKS as u64) as usize;
        let Faults { hang, restart, power, blackout, attach, change, .. } = self.faults;
        match self.random.below(16) {
            0..=2 => self.request(),
            3..=7 => drop(self.serve()),
            8..=12 => drop(self.deliver()),
            13 => self.show_map(at),
            _ => drop(self.tick(at)),
        }
        if self.random.chance(hang) {
            let micros = self.random.below(400_000);
            self.hangs[disk] = self.now + Duration::from_micros(micros);
        }
        if self.random.chance(restart) {
            self.reopen(disk, 0);
        }
        if self.random.chance(power) {
            self.reopen(disk, 300);
        }
        if self.random.chance(blackout) {
            (0..DISKS).for_each(|disk| self.reopen(disk, 800));
        }
        if self.sessions.len() < 5 && self.random.chance(attach) {
            self.attach();
        }
        if self.attempt.is_some() {
            if self.random.chance(200) {
                self.advance_attempt();
            }
        } else if self.random.chance(change) {
            self.begin_attempt();
        }
    }

    /// Nothing goes wrong any more: everything that was asked ends, and disks agree.
    fn heal(&mut self) {
        self.faults = Faults::default();
        self.hangs = vec![Time(0); DISKS];
        self.attempt = None;
        // A session that nobody fences need not end.
        self.attach();
        let at = self.sessions.len() - 1;
        for round in 0..200 {
            for partition in 0..PARTITIONS {
                self.repair(PartitionId(partition), at);
            }
            for session in 0..self.sessions.len() {
                self.show_map(session);
            }
            for _ in 0..5_000 {
                let is_served = self.serve();
                if !self.deliver() && !is_served {
                    break;
                }
            }
            self.now = self.now + Duration::from_millis(50);
            for session in 0..self.sessions.len() {
                self.tick(session);
            }
            let newest = &self.sessions[at];
            if newest.opened && newest.requests.is_empty() && newest.coordinator.behind().is_empty()
            {
                break;
            }
            assert!(
                round < 199,
                "it does not heal: {:?}, {:?}, {:?}",
                newest.coordinator.obstacle(),
                newest.coordinator.behind(),
                newest.requests
            );
        }
    }

    /// Changes the members of a partition if that has to be.
    fn repair(&mut self, partition: PartitionId, at: usize) {
        let configuration = self.map.configuration(COPIES, partition);
        let is_current = |member: &Member| {
            let disk = &self.disks[member.disk.0 as usize];
            let refused = disk.refused.iter().any(|(_, it)| {
                it.partition == partition && it.under.number >= configuration.number
            });
            disk.incarnation == member.incarnation && !refused
        };
        let behind = self.sessions[at].coordinator.behind();
        let is_behind = |member: &Member| behind.iter().any(|(disk, _)| *disk == member.disk);
        let is_good = configuration.current.iter().all(|it| is_current(it) && !is_behind(it));
        if is_good {
            return;
        }
        self.attempts += 1;
        let (number, from) = (self.attempts, configuration.number);
        let wanted = (0..MEMBERS).map(|at| (partition.0 as usize + at) % DISKS).collect();
        let (refused, installed) = (BTreeMap::new(), BTreeMap::new());
        self.attempt = Some(Attempt { number, partition, from, wanted, refused, installed });
        while self.advance_attempt() {}
        self.attempt = None;
    }

    /// Reads everything once more; then all members have the same.
    fn look(&mut self) {
        let at = self.sessions.len() - 1;
        let places: Vec<(u32, u32)> = self.registers.keys().copied().collect();
        for place in places {
            self.tokens += 1;
            let (token, (index, block)) = (self.tokens, place);
            self.sessions[at].requests.insert(token, Asked::Read { place });
            let blocks = BlockRange::new(block, 1).expect("a block");
            let request = Request::Read { source: Source::Own, index, blocks };
            self.tell(at, Event::Request { token, request });
            for _ in 0..1_000 {
                let is_served = self.serve();
                if !self.deliver() && !is_served {
                    break;
                }
            }
            assert!(self.sessions[at].requests.is_empty(), "a read of {place:?} does not end");
        }
        for index in 0..OBJECTS {
            let partition = self.map.partition_of(LINEAGE, index);
            let key = ObjectKey { layer: LayerId(1), index };
            let members = &self.map.configuration(COPIES, partition).current;
            let of = |member: &Member| {
                let disk = &self.disks[member.disk.0 as usize];
                (disk.stamp(LINEAGE, key).stamp, disk.cells(LINEAGE, key))
            };
            let first: (Stamp, BTreeMap<u32, Cell>) = of(&members[0]);
            assert!(members.iter().all(|member| of(member) == first), "object {index} differs");
        }
    }
}

fn register_is_dead(register: &Register, value: u64) -> bool {
    register.dead.contains(&value)
}

/// Runs one world; gives back what happened in it.
fn run(seed: u64, faults: Faults) -> World {
    let mut world = World::new(seed, faults);
    let steps = 1_500 + world.random.below(2_500);
    for _ in 0..steps {
        world.step();
    }
    world.heal();
    world.look();
    world
}

fn faults(seed: u64) -> Faults {
    let mut random = Random(seed ^ 0x5eed);
    let mut some = |most: u64| if random.chance(500) { 1 + random.below(most) } else { 0 };
    Faults {
        hang: some(15),
        restart: some(8),
        power: some(6),
        blackout: some(2),
        attach: some(3),
        change: some(60),
        lost_answer: some(20),
        busy: some(40),
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_read_is_old() {
    let (mut acknowledged, mut reads, mut losses, mut changes) = (0, 0, 0, 0);
    for seed in 0..400 {
        let world = run(seed, faults(seed));
        acknowledged += world.acknowledged;
        reads += world.reads;
        losses += world.losses;
        changes += world.changes;
    }
    // All of it has happened, and often.
    assert!(acknowledged > 4_000 && reads > 4_000, "{acknowledged} writes, {reads} reads");
    assert!(losses > 5 && changes > 400, "{losses} losses, {changes} changes");
}
