//! Members of a group with simulated journals, clocks and a network, from one seed; and what must
//! be so after every step.

use cluster::{
    Answer, Command, Effect, Event, Following, Founding, Map, PersistError, Place, ProposalToken,
    Refusal, RequestNumber, Voter,
};
use proto::limits::{JOURNAL_APPEND_BYTES_MAX, VOTER_MESSAGE_BYTES_MAX, VOTER_TICK_MS};
use proto::wire::Era;
use proto::{ClusterId, DiskId, Incarnation, NodeId, Time, VolumeId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1000 * MS;

/// Numbers that look random: splitmix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % bound
    }

    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What survives a crash of its node.
#[derive(Clone, Default)]
pub struct Disk {
    pub snapshot: Option<Vec<u8>>,
    pub records: Vec<Vec<u8>>,
}

impl Disk {
    fn write(&mut self, request: Request) {
        match request {
            Request::Append(records) => self.records.extend(records),
            Request::Snapshot(bytes) => {
                self.snapshot = Some(bytes);
                self.records.clear();
            }
        }
    }
}

#[derive(Clone)]
enum Request {
    Append(Vec<Vec<u8>>),
    Snapshot(Vec<u8>),
}

/// A machine.
pub struct Machine {
    pub node: NodeId,
    pub voter: Option<Voter>,
    pub disk: Disk,
    in_flight: Option<(RequestNumber, Request)>,
    /// Grows with each start: what belongs to an earlier one is dropped.
    life: u64,
    tick_ns: u64,
    /// Its journal has no space before this time.
    pub full_until: u64,
    /// Its journal is slow before this time.
    pub slow_until: u64,
    /// The next request to the journal fails for good.
    pub fails: bool,
    applied: u64,
    founding: Founding,
}

impl Machine {
    /// It has nothing, and the cluster exists.
    pub fn join(&mut self) {
        self.founding = Founding::Elsewhere;
    }
}

enum Happening {
    Tick { machine: usize, life: u64 },
    Arrange { machine: usize, life: u64 },
    Journal { machine: usize, life: u64 },
    Arrive { machine: usize, from: NodeId, bytes: Vec<u8> },
    Start { machine: usize },
}

/// What the network does.
#[derive(Clone, Default)]
pub struct Weather {
    /// In percent of messages.
    pub lost: u64,
    pub twice: u64,
    /// The longest way, beside which the shortest is 0: later messages overtake earlier ones.
    pub delay_ns: u64,
    /// From, to.
    pub cut: BTreeSet<(usize, usize)>,
}

pub struct World {
    pub now: u64,
    pub dice: Dice,
    pub machines: Vec<Machine>,
    pub weather: Weather,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    next_happening: u64,
    next_token: u64,
    /// Which command each proposal is that has not ended, and whom it was given to, in which life.
    pub asked: BTreeMap<u64, (usize, u64)>,
    /// Proposals that were answered as carried out.
    pub done: BTreeSet<u64>,
    pub refused: Vec<(u64, Refusal)>,
    /// Those whose doing can be counted.
    counted: BTreeSet<u64>,
    /// In each era, the term of each entry that somebody stopped at, and the map after it.
    maps: BTreeMap<(u64, u64), (u64, Arc<Map>)>,
    leaders: BTreeMap<(u64, u64), NodeId>,
    /// How recoveries from a lost majority ended, and of whom.
    pub recovered: Vec<(usize, bool)>,
    pub zones: u64,
    pub snapshots: usize,
    /// A digest of everything that happened.
    pub trace: u64,
}

impl World {
    pub fn new(seed: u64, machines: usize) -> World {
        let mut dice = Dice(seed);
        let machine = |number: usize, dice: &mut Dice| Machine {
            node: NodeId(1 + number as u128),
            voter: None,
            disk: Disk::default(),
            in_flight: None,
            life: 0,
            // A clock that is up to a fifth slower or faster than others.
            tick_ns: VOTER_TICK_MS * MS * (80 + dice.below(41)) / 100,
            full_until: 0,
            slow_until: 0,
            fails: false,
            applied: 0,
            founding: if number == 0 { Founding::Here } else { Founding::Elsewhere },
        };
        World {
            now: 0,
            machines: (0..machines).map(|number| machine(number, &mut dice)).collect(),
            dice,
            weather: Weather { delay_ns: 2 * MS, ..Weather::default() },
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            next_happening: 0,
            next_token: 0,
            asked: BTreeMap::new(),
            done: BTreeSet::new(),
            refused: Vec::new(),
            counted: BTreeSet::new(),
            maps: BTreeMap::new(),
            leaders: BTreeMap::new(),
            recovered: Vec::new(),
            zones: u64::MAX,
            snapshots: 0,
            trace: seed,
        }
    }

    /// A cluster of so many machines, all of which take part: as it is after a quiet minute or so.
    pub fn settled(seed: u64, machines: usize) -> World {
        let mut world = World::new(seed, machines);
        (0..machines).for_each(|machine| world.start(machine));
        world.give_first_commands();
        world.run_until(90 * SECOND, |world| world.is_settled());
        assert!(world.is_settled(), "{machines} machines do not become a group");
        world
    }

    /// The same machines with other dice, as if all had been started at once.
    pub fn from_disks(seed: u64, disks: &[Disk]) -> World {
        let mut world = World::new(seed, disks.len());
        for (machine, disk) in disks.iter().enumerate() {
            world.machines[machine].disk = disk.clone();
            world.start(machine);
        }
        world
    }

    pub fn disks(&self) -> Vec<Disk> {
        self.machines.iter().map(|machine| machine.disk.clone()).collect()
    }

    /// The first commands of a cluster.
    pub fn give_first_commands(&mut self) {
        let node = NodeId(1);
        let create = Command::CreateCluster { cluster: ClusterId(7), partition_bits: 2, unix_s: 0 };
        self.give(0, create);
        for number in 0..self.machines.len() {
            let node = self.machines[number].node;
            self.give(0, Command::AddNode { node, name: format!("n{number}") });
        }
        self.give(0, Command::OpenDisk { disk: DiskId(9), node, incarnation: Incarnation(1) });
        self.give(0, Command::CreateVolume { name: "v".into(), bytes: 1 << 20, unix_s: 0 });
    }

    /// Whether as many voters as there should be lead a quiet life, and everybody else learns.
    pub fn is_settled(&self) -> bool {
        let wanted = cluster::wanted_voters(self.machines.len());
        let Some(leader) = self.leader() else { return false };
        let status = self.voter(leader).status();
        let all = status.voters.len() + status.learners.len();
        !status.changing
            && status.voters.len() == wanted
            && all == self.machines.len()
            && self.running().all(|machine| self.voter(machine).applied() == status.last)
    }

    pub fn voter(&self, machine: usize) -> &Voter {
        self.machines[machine].voter.as_ref().expect("it runs")
    }

    pub fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.machines.len()).filter(|&machine| self.machines[machine].voter.is_some())
    }

    /// Who leads in the highest term.
    pub fn leader(&self) -> Option<usize> {
        let leads = |machine: &usize| self.voter(*machine).status().leads;
        self.running().filter(leads).max_by_key(|&machine| self.voter(machine).status().term)
    }

    // -- what can be done to it --

    pub fn start(&mut self, number: usize) {
        let seed = self.dice.below(u64::MAX);
        let machine = &mut self.machines[number];
        assert!(machine.voter.is_none());
        machine.life += 1;
        let (node, disk, life) = (machine.node, &machine.disk, machine.life);
        let founding = machine.founding;
        let voter = Voter::boot(node, founding, seed, disk.snapshot.as_deref(), &disk.records);
        machine.voter = Some(voter.expect("what it wrote itself"));
        machine.applied = 0;
        let first = self.dice.below(machine.tick_ns);
        self.later(first, Happening::Tick { machine: number, life });
        self.later(first, Happening::Arrange { machine: number, life });
        self.judge(number);
    }

    /// Kills a machine. What its journal was working on may have been done, as a whole.
    pub fn kill(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        machine.voter = None;
        machine.fails = false;
        if let Some((_, request)) = machine.in_flight.take()
            && self.dice.percent(50)
        {
            machine.disk.write(request);
        }
        self.asked.retain(|_, (asked, _)| *asked != number);
        self.note(1000 + number as u64);
    }

    pub fn start_later(&mut self, machine: usize, after_ns: u64) {
        self.later(after_ns, Happening::Start { machine });
    }

    /// Asks a machine for something whose doing can be counted: each time it is done there is one
    /// more reader of its name.
    pub fn ask(&mut self, machine: usize) -> u64 {
        let token = self.next_token;
        let (volume, node) = (VolumeId(1), NodeId(1));
        let holder = format!("asked {token}");
        self.counted.insert(token);
        self.give(machine, Command::Attach { volume, node, holder, read_only: true, unix_s: 0 })
    }

    pub fn give(&mut self, machine: usize, command: Command) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.asked.insert(token, (machine, self.machines[machine].life));
        self.with(machine, |voter, now, effects| {
            voter.propose(now, ProposalToken(token), command, effects);
        });
        token
    }

    pub fn with(&mut self, machine: usize, act: impl FnOnce(&mut Voter, Time, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        let now = Time(self.now);
        let voter = self.machines[machine].voter.as_mut().expect("it runs");
        act(voter, now, &mut effects);
        self.perform(machine, effects);
        self.judge(machine);
    }

    /// A machine hears of another era, and goes over to it.
    pub fn follow(&mut self, machine: usize, era: Era) {
        self.machines[machine].applied = 0;
        self.with(machine, |voter, _, _| assert_eq!(voter.follow(era), Following::Begun));
    }

    // -- how it goes on --

    pub fn run(&mut self, for_ns: u64) {
        self.run_until(for_ns, |_| false);
    }

    /// Lets things happen for so long, or until something is so, which is looked for every tenth of
    /// a second.
    pub fn run_until(&mut self, for_ns: u64, is_enough: impl Fn(&World) -> bool) {
        let end = self.now + for_ns;
        let mut look_at = self.now;
        while let Some(&Reverse((at, number))) = self.queue.peek()
            && at <= end
        {
            if at >= look_at {
                if is_enough(self) {
                    return;
                }
                look_at = at + 100 * MS;
            }
            self.queue.pop();
            self.now = at;
            let happening = self.happenings.remove(&number).expect("each happens once");
            self.happen(happening);
        }
        self.now = end;
    }

    fn later(&mut self, after_ns: u64, happening: Happening) {
        let number = self.next_happening;
        self.next_happening += 1;
        self.queue.push(Reverse((self.now + after_ns, number)));
        self.happenings.insert(number, happening);
    }

    fn happen(&mut self, happening: Happening) {
        let is_of = |world: &World, machine: usize, life: u64| {
            let machine = &world.machines[machine];
            machine.voter.is_some() && machine.life == life
        };
        match happening {
            Happening::Tick { machine, life } if is_of(self, machine, life) => {
                self.with(machine, |voter, now, effects| voter.handle(now, Event::Tick, effects));
                self.later(self.machines[machine].tick_ns, Happening::Tick { machine, life });
            }
            Happening::Arrange { machine, life } if is_of(self, machine, life) => {
                let zones = self.zones;
                let place_of = move |node: NodeId| Place {
                    zone: (node.0 as u64 % zones).to_string(),
                    witness: false,
                };
                self.with(machine, |voter, now, effects| voter.arrange(now, place_of, effects));
                self.later(SECOND, Happening::Arrange { machine, life });
            }
            Happening::Journal { machine, life } if is_of(self, machine, life) => {
                self.journal_ends(machine);
            }
            Happening::Arrive { machine, from, bytes }
                if self.machines[machine].voter.is_some() =>
            {
                self.note(bytes.len() as u64 ^ (machine as u64) << 32);
                self.with(machine, |voter, now, effects| {
                    voter.handle(now, Event::Received { from, bytes }, effects);
                });
            }
            Happening::Start { machine } if self.machines[machine].voter.is_none() => {
                self.start(machine);
            }
            _ => {}
        }
    }

    fn journal_ends(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let (request, what) = machine.in_flight.take().expect("it works on something");
        let result = if machine.fails {
            if self.dice.percent(50) {
                machine.disk.write(what);
            }
            Err(PersistError::Failed("input/output error".into()))
        } else if machine.full_until > self.now {
            Err(PersistError::NoSpace)
        } else {
            self.snapshots += usize::from(matches!(what, Request::Snapshot(_)));
            machine.disk.write(what);
            Ok(())
        };
        self.note(number as u64 + 100 * u64::from(result.is_ok()));
        self.with(number, |voter, now, effects| {
            voter.handle(now, Event::Persisted { request, result }, effects);
        });
    }

    fn perform(&mut self, number: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Append { request, records } => {
                    let bytes: usize = records.iter().map(|record| record.len() + 4).sum();
                    assert!(bytes <= JOURNAL_APPEND_BYTES_MAX);
                    self.begin(number, request, Request::Append(records));
                }
                Effect::Snapshot { request, bytes } => {
                    self.begin(number, request, Request::Snapshot(bytes));
                }
                Effect::Applied { token, result } => self.answered(number, token.0, result),
                Effect::Learned => {}
                Effect::Recovered(result) => self.recovered.push((number, result.is_ok())),
                Effect::Send { to, bytes } => self.send(number, to, bytes),
            }
        }
    }

    fn begin(&mut self, number: usize, request: RequestNumber, what: Request) {
        let machine = &mut self.machines[number];
        let slow = if machine.slow_until > self.now { 3 * SECOND } else { 0 };
        let was = machine.in_flight.replace((request, what));
        assert!(was.is_none(), "two requests at once");
        let (machine, life) = (number, machine.life);
        let after = 100_000 + self.dice.below(5 * MS) + slow;
        self.later(after, Happening::Journal { machine, life });
    }

    fn answered(&mut self, number: usize, token: u64, result: Result<Answer, Refusal>) {
        let (asked, life) = self.asked.remove(&token).expect("answered once");
        assert_eq!((asked, life), (number, self.machines[number].life), "answered by another");
        if result == Err(Refusal::OutcomeUnknown) && self.voter(number).status().failed.is_some() {
            // Done or not, both will do.
            self.counted.remove(&token);
        }
        self.note(token << 8 | u64::from(result.is_ok()));
        match result {
            Ok(_) => assert!(self.done.insert(token)),
            Err(refusal) => self.refused.push((token, refusal)),
        }
    }

    fn send(&mut self, from: usize, to: NodeId, bytes: Vec<u8>) {
        assert!(bytes.len() <= VOTER_MESSAGE_BYTES_MAX);
        let machine = (to.0 - 1) as usize;
        let copies = 1 + u64::from(self.dice.percent(self.weather.twice));
        for _ in 0..copies {
            let is_cut = self.weather.cut.contains(&(from, machine));
            if is_cut || self.dice.percent(self.weather.lost) {
                continue;
            }
            let after = 50_000 + self.dice.below(self.weather.delay_ns + 1);
            let (from, bytes) = (self.machines[from].node, bytes.clone());
            self.later(after, Happening::Arrive { machine, from, bytes });
        }
    }

    fn note(&mut self, what: u64) {
        self.trace = (self.trace ^ what ^ self.now).wrapping_mul(0x0000_0100_0000_01b3);
    }

    // -- what must be so --

    fn judge(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let voter = machine.voter.as_ref().expect("it runs");
        let (status, era) = (voter.status(), voter.era().number);
        if status.leads {
            let leader = self.leaders.entry((era, status.term)).or_insert(machine.node);
            assert_eq!(*leader, machine.node, "two leaders in term {}", status.term);
        }
        let applied = voter.applied();
        assert!(applied >= machine.applied, "what was applied is not any more");
        if applied > machine.applied {
            machine.applied = applied;
            voter.check();
            let term = status.applied_term;
            let (known, map) =
                self.maps.entry((era, applied)).or_insert_with(|| (term, voter.map()));
            assert_eq!(*known, term, "two entries {applied}");
            assert!(*map == voter.map(), "two states after entry {applied}");
        }
    }

    /// Everything that was answered is done, once; what was not answered at most once.
    pub fn check_answers(&self, map: &Map) {
        let volume = map.volume(VolumeId(1)).expect("it was created");
        let mut holders = BTreeSet::new();
        for held in &volume.attachments {
            assert!(holders.insert(held.holder.clone()), "done twice: {}", held.holder);
        }
        for token in self.done.intersection(&self.counted) {
            let holder = format!("asked {token}");
            assert!(holders.contains(&holder), "answered as done, and lost: {token}");
        }
        let counted = |(token, _): &&(u64, Refusal)| self.counted.contains(token);
        for (token, refusal) in self.refused.iter().filter(counted) {
            let holder = format!("asked {token}");
            match refusal {
                Refusal::OutcomeUnknown => assert!(holders.contains(&holder), "lost: {token}"),
                // What a journal has that failed it may have all the same; of voters that are
                // several, what only one has is not agreed.
                Refusal::NotLogged(PersistError::Failed(_)) if self.machines.len() < 3 => {}
                _ => assert!(!holders.contains(&holder), "refused, and done: {token}"),
            }
        }
    }

    /// Ends all faults and starts everything; then every member must come to the same state and
    /// every proposal to its end, in bounded time.
    pub fn heal_and_check(&mut self) {
        self.weather = Weather { delay_ns: 2 * MS, ..Weather::default() };
        for number in 0..self.machines.len() {
            let machine = &mut self.machines[number];
            (machine.full_until, machine.slow_until, machine.fails) = (0, 0, false);
            let voter = machine.voter.as_ref();
            if voter.is_some_and(|voter| voter.status().failed.is_some()) {
                self.kill(number);
            }
            if self.machines[number].voter.is_none() {
                self.start(number);
            }
        }
        let last: Vec<u64> = (0..self.machines.len()).map(|machine| self.ask(machine)).collect();
        let is_quiet = |world: &World| {
            let Some(leader) = world.leader() else { return false };
            let last = world.voter(leader).status().last;
            world.asked.is_empty()
                && world.running().all(|machine| world.voter(machine).applied() == last)
        };
        self.run_until(20 * SECOND, is_quiet);
        assert!(is_quiet(self), "it does not come to rest: {}", self.describe());
        for token in last {
            // Who was far behind may not learn what came of it, but it came.
            let unknown = self.refused.contains(&(token, Refusal::OutcomeUnknown));
            assert!(self.done.contains(&token) || unknown, "a quiet group refuses {token}");
        }
        let map = self.voter(0).map();
        for machine in self.running().collect::<Vec<_>>() {
            assert!(self.voter(machine).map() == map, "two states at the end");
            self.machines[machine].voter.as_ref().expect("it runs").check();
        }
        self.check_answers(&map);
    }

    pub fn describe(&self) -> String {
        let one = |machine: &Machine| match &machine.voter {
            Some(voter) => format!("\n{voter:?}"),
            None => format!("\n{:?} is down", machine.node),
        };
        let asked = format!("\nasked: {:?}", self.asked);
        self.machines.iter().map(one).collect::<String>() + &asked
    }
}
