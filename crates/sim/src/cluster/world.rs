//! The run: who acts next, what they say to one another, and what the judges make of it.

use super::{
    ClusterMix, Fault,
    atlas::{Sight, quorum},
    copies::{Books, Losses},
    errands::Ghost,
    ledger::Ledger,
    member::{Member, address},
    net::{Arrival, Dial, End, Net, Owner, Place},
};
use crate::{
    node::Life,
    oracle::{Action, Oracle},
    random::Random,
    trace::Trace,
    world::{Guest, InFlight, Link, Outcome},
};
use engine::{
    Client, ConnectionId, Input, NoticeLevel, Output, PeerInput,
    admin::{AdminRequest, AdminToken, Durability},
};
use link::Greeter;
use proto::{BLOCK_SIZE, DiskId, Duration, NodeId, Time};
use std::collections::{BTreeMap, BTreeSet};
use volume::{Answer, RequestId};

/// What came of a run.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct ClusterSummary {
    /// Hash of the trace.
    pub hash: u64,
    /// Lines of the trace.
    pub lines: u64,
    /// Nodes.
    pub nodes: usize,
    /// Requests that guests made.
    pub requests: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Volumes that were attached, and how often to another node than before.
    pub attached: [u64; 2],
    /// Bits that turned over, blocks of data that were mended, and pages of maps.
    pub rot: [u64; 3],
    /// Kills, power cuts, pauses, cuts of the network, resets, failures of disks.
    pub faults: [u64; 6],
    /// The longest time that a request took, in milliseconds.
    pub slowest_ms: u64,
    /// How long it took after everything healed until all nodes agreed, in milliseconds.
    pub healed_ms: u64,
    /// Objects whose copies were compared.
    pub compared: u64,
    /// How long it took until every partition had all its copies, in milliseconds: in the start,
    /// and after everything healed.
    pub whole_ms: [u64; 2],
    /// Simulated time.
    pub simulated: Duration,
}

/// Something that is to happen at a time.
#[derive(Clone, Debug)]
pub(super) enum Due {
    /// Something goes wrong, or not; and it is looked whether anybody waits too long.
    Misfortune,
    /// A machine gets power, and its process is started.
    Start(Place),
    /// A process whose disk has failed is ended, and started anew.
    Renew(Place),
    /// Ways of the network are whole again.
    Mend(Vec<(Place, Place)>),
    /// The administrator does something.
    Admin,
    /// A fault that was put off for a moment.
    Strike(Fault, Place, Random),
}

/// A guest, and where it is.
pub(super) struct Tenant {
    pub(super) guest: Guest,
    /// At which node.
    pub(super) at: Place,
    /// Since when it waits for what.
    pub(super) asked: BTreeMap<RequestId, Time>,
    pub(super) opening_since: Time,
    /// At which node it had its volume the last time.
    pub(super) was_at: Option<Place>,
    /// A flush may tell that the disk was opened anew.
    pub(super) may_fail: bool,
    /// How often it took its volume from itself elsewhere.
    pub(super) takeovers: u64,
    /// Its volume has always promised that what is acknowledged is stable: nothing that the guest
    /// counts on is ever lost, so nothing that it asks may fail for that.
    pub(super) is_strict: bool,
    /// What was asked last about what its volume promises.
    pub(super) promise: Option<AdminToken>,
}

/// A run. See the module.
pub struct ClusterWorld {
    pub(super) seed: u64,
    pub(super) mix: ClusterMix,
    pub(super) random: Random,
    /// Draws what goes wrong, and nothing else.
    pub(super) fate: Random,
    /// Draws what rots.
    pub(super) rot: Random,
    /// Draws what volumes promise.
    pub(super) promises: Random,
    /// The machine whose disk rots, in a run in which one does by chance.
    pub(super) rots: Place,
    /// Machines whose disk has rotted.
    pub(super) rotten: BTreeSet<Place>,
    /// When anything did last.
    pub(super) rotted_at: Time,
    /// Faults so far, and those that are left out.
    pub(super) strikes: u64,
    pub(super) spared: BTreeSet<u64>,
    /// Things may go wrong.
    pub(super) is_dangerous: bool,
    /// The newest map that any node has had.
    newest_epoch: u64,
    pub(super) trace: Trace,
    pub(super) now: Time,
    pub(super) net: Net,
    pub(super) members: Vec<Member>,
    pub(super) oracle: Oracle,
    pub(super) ledger: Ledger,
    pub(super) books: Books,
    pub(super) losses: Losses,
    /// Machines whose process has ended at once, maybe in the middle of a write.
    pub(super) interrupted: BTreeSet<Place>,
    pub(super) tenants: BTreeMap<u64, Tenant>,
    /// Clients that want what a guest has: which volume, and where.
    pub(super) rivals: BTreeMap<ConnectionId, (u64, Place)>,
    /// Clients that had a volume when somebody else was let have it.
    pub(super) ghosts: BTreeMap<ConnectionId, Ghost>,
    /// Names and sizes of volumes that were asked for.
    pub(super) wanted: BTreeMap<String, u64>,
    pub(super) agenda: BTreeMap<(Time, u64), Due>,
    /// When each node was last excused from serving.
    pub(super) excused_at: Vec<Time>,
    /// How far each node's state was looked at.
    looked: Vec<(u64, bool)>,
    pub(super) next_connection: u64,
    pub(super) next_token: u64,
    pub(super) next_due: u64,
    /// The phase in which things go wrong is over.
    pub(super) is_healed: bool,
    pub(super) steps: u64,
    pub(super) summary: ClusterSummary,
}

/// Simulated time within which what nothing excuses must have happened.
pub(super) const PATIENCE: Duration = Duration::from_secs(40);
/// Things that happen in one run at most.
const STEPS_MAX: u64 = 3_000_000;
/// When runs begin.
pub(super) const BEGIN: Time = Time(1_000_000_000);
/// Sizes of volumes, in blocks: within one object and just across two.
const SIZES: [u64; 3] = [24, 1024, 1030];

impl ClusterWorld {
    /// A run by this seed, with the mix that the seed draws.
    pub fn new(seed: u64, print: bool) -> ClusterWorld {
        ClusterWorld::with_mix(seed, ClusterMix::draw(&mut Random::new(seed)), print)
    }

    /// The same, in a quarter of the runs with three disks or more on media of which one rots.
    pub fn rotting(seed: u64, print: bool) -> ClusterWorld {
        let mut mix = ClusterMix::draw(&mut Random::new(seed));
        let mut rot = rot_of(seed);
        if rot.chance(250_000) && mix.nodes - usize::from(mix.witness) >= 3 && mix.whole {
            mix.rot = *rot.pick(&[20_000, 100_000]);
            mix.setup.scrub_bytes_per_s = *rot.pick(&[0, 1 << 20, 64 << 20]);
        }
        ClusterWorld::with_mix(seed, mix, print)
    }

    /// The same, with volumes some of which promise that what is acknowledged is stable.
    pub fn acknowledging(seed: u64, print: bool) -> ClusterWorld {
        let mut mix = ClusterMix::draw(&mut Random::new(seed));
        mix.ack = true;
        // Nothing tells better what is stable than what is lost.
        mix.troubles.all = mix.troubles.all.max(4_000);
        mix.troubles.ambush = mix.troubles.ambush.max(15_000);
        ClusterWorld::with_mix(seed, mix, print)
    }

    /// A run by this seed with a given mix. The first node founds the cluster.
    pub fn with_mix(seed: u64, mix: ClusterMix, print: bool) -> ClusterWorld {
        let mut random = Random::new(seed ^ 0x666c_6f63_6b21);
        let mut trace = Trace::new(print);
        trace.line(BEGIN, format_args!("seed {seed}: {mix:?}"));
        // Who dials whom depends on the ids: drawn, so that the founder is any of them.
        let mut ids: Vec<u128> = (0..mix.nodes as u128).map(|n| 0x10 + n).collect();
        for at in (1..ids.len()).rev() {
            ids.swap(at, random.below(at as u64 + 1) as usize);
        }
        let mut members = Vec::new();
        for (place, id) in ids.into_iter().enumerate() {
            let is_witness = mix.witness && place > 0 && place + 1 == mix.nodes;
            let disk = (!is_witness).then_some(DiskId(0xd1 + place as u128));
            members.push(Member::new(NodeId(id), disk, place == 0, &mix.setup, &mut random));
        }
        let net = Net::new(random.fork(), mix.network, mix.troubles.ghosts);
        let nodes = mix.nodes;
        ClusterWorld {
            seed,
            mix,
            random,
            fate: Random::new(seed ^ 0x6661_7465),
            rot: rot_of(seed ^ 1),
            promises: Random::new(seed ^ 0x6163_6b21),
            rots: rot_of(seed).below(nodes as u64) as usize,
            rotten: BTreeSet::new(),
            rotted_at: BEGIN,
            strikes: 0,
            spared: BTreeSet::new(),
            is_dangerous: false,
            newest_epoch: 0,
            trace,
            now: BEGIN,
            net,
            members,
            oracle: Oracle::new(),
            ledger: Ledger::default(),
            books: Books::default(),
            losses: Losses::default(),
            interrupted: BTreeSet::new(),
            tenants: BTreeMap::new(),
            rivals: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            wanted: BTreeMap::new(),
            agenda: BTreeMap::new(),
            excused_at: vec![BEGIN; nodes],
            looked: vec![(0, false); nodes],
            next_connection: 0,
            next_token: 0,
            next_due: 0,
            is_healed: false,
            steps: 0,
            summary: ClusterSummary { nodes, ..ClusterSummary::default() },
        }
    }

    /// Leaves out the faults of these numbers.
    pub fn sparing(mut self, spared: BTreeSet<u64>) -> ClusterWorld {
        self.spared = spared;
        self
    }

    /// Runs it to its end. The error says what went wrong.
    pub fn run(self) -> Result<ClusterSummary, String> {
        self.run_with(|_| Ok(()))
    }

    /// Runs it with something directed after the phase in which things go wrong by chance.
    pub fn run_with(
        mut self,
        directed: impl FnOnce(&mut ClusterWorld) -> Result<(), String>,
    ) -> Result<ClusterSummary, String> {
        let _loud = Loud(self.seed);
        let outcome = self.safety().and_then(|()| directed(&mut self)).and_then(|()| self.finish());
        self.summary.hash = self.trace.hash();
        self.summary.lines = self.trace.lines();
        self.summary.simulated = self.now.since(BEGIN);
        outcome.map(|()| self.summary).map_err(|error| {
            format!("seed {} at {:.3} s: {error}", self.seed, self.now.0 as f64 / 1e9)
        })
    }

    // -- time --

    pub(super) fn at(&mut self, at: Time, due: Due) {
        self.next_due += 1;
        self.agenda.insert((at, self.next_due), due);
    }

    /// Lets the next thing happen, if it is due by then. False: it is not, and it is that time.
    pub(super) fn step(&mut self, end: Time) -> Result<bool, String> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(format!("the run does not end: {STEPS_MAX} things have happened"));
        }
        let now = self.now;
        let members = &self.members;
        let listens = |place: Place| members[place].sim().is_some();
        let awake = |place: Place| listens(place) && members[place].paused_until <= now;
        // What waits at a node that is held up comes before anything that it does itself.
        let woken = members.iter().map(|member| member.paused_until).filter(|at| *at > now).min();
        let net = self.net.next_due(awake);
        let node = (0..members.len()).filter_map(|at| Some((members[at].next_due()?, at))).min();
        let guest = self.tenants.values().map(|t| (t.guest.next_at, t.guest.volume)).min();
        let agenda = self.agenda.keys().next().map(|(at, _)| *at);
        let all = [woken, net, node.map(|(at, _)| at), guest.map(|(at, _)| at), agenda];
        let next = all.into_iter().flatten().min().unwrap_or(Time(u64::MAX)).max(now);
        if next > end {
            self.now = end.max(now);
            return Ok(false);
        }
        self.now = next;
        let is_due = |at: Option<Time>| at.is_some_and(|at| at <= next);
        if is_due(agenda) {
            let (_, due) = self.agenda.pop_first().expect("just seen");
            self.happen(due)?;
        } else if is_due(net) {
            let members = &self.members;
            let awake = |place: Place| {
                members[place].sim().is_some() && members[place].paused_until <= next
            };
            if let Some(arrival) = self.net.arrive(next, awake) {
                self.arrived(arrival)?;
            }
        } else if let Some((at, place)) = node
            && at <= next
        {
            self.node_acts(place)?;
        } else if let Some((at, volume)) = guest
            && at <= next
        {
            self.guest_acts(volume)?;
        }
        Ok(true)
    }

    /// Lets everything happen until a time.
    pub fn pass(&mut self, span: Duration) -> Result<(), String> {
        let end = self.now + span;
        while self.step(end)? {}
        Ok(())
    }

    /// Lets everything happen until something is so, or it is too late.
    pub(super) fn await_that(
        &mut self,
        what: &str,
        span: Duration,
        done: impl Fn(&ClusterWorld) -> bool,
    ) -> Result<(), String> {
        let end = self.now + span;
        while !done(self) {
            if !self.step(end)? {
                let nodes: Vec<String> = self.members.iter().map(describe).collect();
                return Err(format!("{what} takes more than {span:?}: {}", nodes.join("; ")));
            }
        }
        Ok(())
    }

    // -- nodes --

    fn node_acts(&mut self, place: Place) -> Result<(), String> {
        let local = self.members[place].local(self.now);
        for end in self.net.slow_greeters(|at| (at == place).then_some(local)) {
            self.net.close(self.now, end, Vec::new());
        }
        let member = &mut self.members[place];
        let sim = member.sim_mut().expect("it acts");
        let happened = sim.advance(local);
        let more = sim.next_due().is_some_and(|due| due <= local);
        if let Some(happened) = happened {
            self.trace.line(self.now, format_args!("{place}: {happened:?}"));
        }
        if !more || self.random.coin() {
            self.members[place].sim_mut().expect("it acts").poll(local);
        }
        self.heed(place)
    }

    /// Hands an input to a process that acts.
    pub(super) fn input(&mut self, place: Place, input: Input) -> Result<(), String> {
        let local = self.members[place].local(self.now);
        let sim = self.members[place].sim_mut().expect("a process is there");
        sim.input(local, input);
        sim.poll(local);
        self.heed(place)
    }

    fn arrived(&mut self, arrival: Arrival) -> Result<(), String> {
        let now = self.now;
        match arrival {
            Arrival::Dialled(dial) => self.dialled(dial),
            Arrival::Ended(end) => {
                let place = self.net.place(end);
                let owner = self.net.owner_mut(end).expect("it has ended just now");
                let owner = std::mem::replace(owner, Owner::Nobody);
                self.net.sweep();
                let Owner::Link(node, connection) = owner else { return Ok(()) };
                self.trace.line(now, format_args!("{place}: lost {connection} to {node}"));
                self.input(place, Input::Peer { node, input: PeerInput::Lost { connection } })
            }
            Arrival::Bytes(end, bytes) => {
                let place = self.net.place(end);
                let local = self.members[place].local(now);
                let nonce = self.random.next();
                match self.net.owner_mut(end).expect("they have come just now") {
                    Owner::Nobody => Ok(()),
                    Owner::Greeter(greeter) => {
                        let read = greeter.handle_bytes(&bytes);
                        self.greeted(place, end, read, nonce)
                    }
                    &mut Owner::Link(node, connection) => {
                        let length = bytes.len();
                        let line = format_args!("{place}: {length} bytes of {node}.{connection}");
                        self.trace.line(now, line);
                        let sim = self.members[place].sim_mut().expect("it listens");
                        sim.receive(local, node, connection, &bytes);
                        sim.poll(local);
                        self.heed(place)
                    }
                }
            }
        }
    }

    fn dialled(&mut self, dial: Dial) -> Result<(), String> {
        let (node, connection) = dial.key;
        let nonce = self.random.next();
        let input = match self.members[dial.to].sim() {
            Some(sim) => {
                let identity = sim.engine().identity();
                let local = self.members[dial.to].local(self.now);
                self.net.connect(&dial, || Greeter::new(local, identity));
                PeerInput::Dialled { connection, nonce }
            }
            None => PeerInput::DialFailed { connection },
        };
        self.trace.line(self.now, format_args!("{}: to {node}: {input:?}", dial.from));
        self.input(dial.from, Input::Peer { node, input })
    }

    /// The first frame of an accepted connection is there, or part of it, or no frame.
    fn greeted(
        &mut self,
        place: Place,
        end: End,
        read: Result<Option<proto::wire::Hello>, link::CloseReason>,
        nonce: u64,
    ) -> Result<(), String> {
        let local = self.members[place].local(self.now);
        let refused = match read {
            Ok(None) => return Ok(()),
            Ok(Some(hello)) => {
                let sim = self.members[place].sim_mut().expect("it listens");
                match sim.accept(local, &hello, nonce) {
                    Ok((node, number)) => {
                        *self.net.owner_mut(end).expect("it is there") = Owner::Link(node, number);
                        let line = format_args!("{place}: accepted {node}.{number}");
                        self.trace.line(self.now, line);
                        let sim = self.members[place].sim_mut().expect("it listens");
                        sim.poll(local);
                        return self.heed(place);
                    }
                    Err(reason) => reason,
                }
            }
            Err(reason) => reason,
        };
        self.trace.line(self.now, format_args!("{place}: refused: {refused}"));
        self.net.close(self.now, end, Greeter::farewell(&refused));
        self.net.sweep();
        Ok(())
    }

    /// Takes in all that a node said, and writes what it has for the others.
    pub(super) fn heed(&mut self, place: Place) -> Result<(), String> {
        let Some(sim) = self.members[place].sim_mut() else { return Ok(()) };
        for said in sim.take_said() {
            self.heard(place, said)?;
        }
        let sim = self.members[place].sim().expect("nothing has ended it");
        if let Life::Failed(sentence) = sim.life() {
            // It opened its disk when that failed: whoever ran it starts it anew.
            if self.losses.failed.contains(&place) {
                self.trace.line(self.now, format_args!("{place}: failed: {sentence}"));
                self.end(place, super::life::End::Kill);
                return Ok(());
            }
            return Err(format!("node {place} failed: {sentence}"));
        }
        let ready: Vec<(NodeId, u64)> = sim.engine().peers_with_output().collect();
        let local = self.members[place].local(self.now);
        for key in ready {
            let Some(end) = self.net.end_of(place, key) else { continue };
            let room = self.net.room(end);
            if room > 0 {
                let sim = self.members[place].sim_mut().expect("nothing has ended it");
                let bytes = sim.send(local, key.0, key.1, room);
                self.net.send(self.now, end, &bytes);
            }
        }
        if self.steps.is_multiple_of(101) {
            self.members[place].sim().expect("nothing has ended it").engine().check();
        }
        self.look(place)
    }

    /// Compares what a node knows with what others knew.
    fn look(&mut self, place: Place) -> Result<(), String> {
        let member = &self.members[place];
        let engine = member.sim().expect("it was just heard").engine();
        let Some(voter) = engine.voter() else { return Ok(()) };
        let seen = (voter.applied(), voter.leads());
        if self.looked[place] == seen {
            return Ok(());
        }
        self.looked[place] = seen;
        let map = voter.map();
        let epoch = map.epoch().0;
        self.ledger.look(member.node, voter, &map)?;
        for volume in map.volumes() {
            let id = volume.id.0;
            if self.tenants.contains_key(&id) {
                continue;
            }
            if self.wanted.get(&volume.name) != Some(&volume.bytes) {
                return Err(format!("volume {} came from nowhere", volume.name));
            }
            self.oracle.create(id, volume.bytes);
            let mut guest = Guest::new(id, volume.name.clone(), volume.bytes);
            guest.is_stable = volume.durability == Durability::Ack;
            guest.next_at = self.now;
            let tenant = Tenant {
                guest,
                at: place,
                was_at: None,
                asked: BTreeMap::new(),
                opening_since: self.now,
                may_fail: false,
                takeovers: 0,
                is_strict: volume.durability == Durability::Ack,
                promise: None,
            };
            self.tenants.insert(id, tenant);
        }
        if epoch > self.newest_epoch {
            self.newest_epoch = epoch;
            return self.ambush(place);
        }
        Ok(())
    }

    fn heard(&mut self, place: Place, said: Output) -> Result<(), String> {
        let now = self.now;
        match said {
            Output::Answer { connection, answer } => self.answered(place, connection, answer),
            Output::Complete { connection, id, result } => self.completed(connection, id, result),
            Output::Disconnect { connection, reason } => {
                self.trace.line(now, format_args!("{place}: {} out: {reason}", connection.0));
                if let Some(tenant) = self.tenant_of(connection) {
                    tenant.guest.link = Link::Closing(connection);
                }
                if self.ghosts.remove(&connection).is_some() {
                    return self.input(place, Input::Close { connection });
                }
                Ok(())
            }
            Output::Admin { token, result } => {
                self.trace.line(now, format_args!("{place}: admin {} told {result:?}", token.0));
                self.promised(token, &result);
                Ok(())
            }
            Output::Notice { level, sentence } => {
                self.trace.line(now, format_args!("{place}: {level:?}: {sentence}"));
                if sentence.ends_with("was written anew") {
                    let is_page = sentence.contains(" map page ");
                    let is_data = !is_page && sentence.contains(" of object ");
                    self.summary.rot[1] += u64::from(is_data);
                    self.summary.rot[2] += u64::from(is_page);
                }
                // An end while one of the two superblocks was written leaves it torn.
                let is_torn = sentence.contains("the superblock at block ")
                    && sentence.ends_with(" has a wrong checksum")
                    && self.interrupted.contains(&place);
                let is_rot =
                    self.rotten.contains(&place) && sentence.contains(" has a wrong checksum");
                let may_fail = self.losses.failed.contains(&place) || is_torn || is_rot;
                match level {
                    NoticeLevel::Error if !may_fail => {
                        Err(format!("node {place} says: {sentence}"))
                    }
                    _ => Ok(()),
                }
            }
            Output::Dial { node, connection, addresses } => {
                let to = self.members.iter().position(|member| member.node == node);
                let to = to.filter(|to| addresses.contains(&address(*to)));
                self.trace.line(now, format_args!("{place}: dials {node}.{connection} at {to:?}"));
                match to {
                    Some(to) => {
                        self.net.dial(now, place, to, (node, connection));
                        Ok(())
                    }
                    None => {
                        let input = PeerInput::DialFailed { connection };
                        self.input(place, Input::Peer { node, input })
                    }
                }
            }
            Output::Hangup { node, connection, farewell, reason } => {
                let line = format_args!("{place}: hangs up {node}.{connection}: {reason}");
                self.trace.line(now, line);
                if !self.net.give_up(place, (node, connection))
                    && let Some(end) = self.net.end_of(place, (node, connection))
                {
                    self.net.close(now, end, farewell);
                    self.net.sweep();
                }
                Ok(())
            }
            other => Err(format!("nobody expected {other:?}")),
        }
    }

    // -- guests --

    fn tenant_of(&mut self, connection: ConnectionId) -> Option<&mut Tenant> {
        self.tenants.values_mut().find(|tenant| tenant.guest.connection() == Some(connection))
    }

    fn guest_acts(&mut self, volume: u64) -> Result<(), String> {
        let think = self.random.below(self.mix.think.as_nanos() as u64 + 1);
        let tenant = self.tenants.get_mut(&volume).expect("only guests that exist act");
        tenant.guest.next_at = self.now + Duration::from_nanos(think);
        let at = tenant.at;
        if !self.members[at].serves(self.now) {
            tenant.guest.next_at = self.now + Duration::from_millis(50);
            // Its node is held up, and it with its node; or is down, and another one may do.
            if tenant.guest.link == Link::None && self.random.chance(100_000) {
                tenant.at = self.random.below(self.mix.nodes as u64) as usize;
            }
            return Ok(());
        }
        match tenant.guest.link {
            Link::None => self.connect(volume),
            Link::Opening(_) => Ok(()),
            Link::Closing(connection) if tenant.guest.in_flight.is_empty() => {
                self.hang_up(volume, connection)
            }
            Link::Closing(_) => Ok(()),
            Link::Open(connection) => {
                if !self.is_healed && self.random.chance(self.mix.moves) {
                    self.hang_up(volume, connection)?;
                    let to = self.random.below(self.mix.nodes as u64) as usize;
                    self.tenants.get_mut(&volume).expect("it acts").at = to;
                    return Ok(());
                }
                self.ghost_acts(volume)?;
                let tenant = &self.tenants[&volume];
                if tenant.guest.link != Link::Open(connection) {
                    return Ok(());
                }
                if !self.is_healed && self.random.chance(self.mix.rivals) {
                    self.rival(volume)?;
                }
                let tenant = self.tenants.get_mut(&volume).expect("it acts");
                if tenant.guest.in_flight.len() >= self.mix.depth {
                    return Ok(());
                }
                let (mix, random) = (&self.mix.guest, &mut self.random);
                match tenant.guest.next(mix, random, &mut self.oracle) {
                    Some(request) => self.ask(volume, connection, request),
                    None => Ok(()),
                }
            }
        }
    }

    pub(super) fn ask(
        &mut self,
        volume: u64,
        connection: ConnectionId,
        request: volume::Request,
    ) -> Result<(), String> {
        self.summary.requests += 1;
        let tenant = self.tenants.get_mut(&volume).expect("it asks");
        tenant.asked.insert(request.id, self.now);
        let at = tenant.at;
        let volume::Request { id, offset, length, operation } = &request;
        let line = format_args!(
            "{at}: guest {} asks {}: {operation:?} {offset}+{length}",
            connection.0, id.0
        );
        self.trace.line(self.now, line);
        self.input(at, Input::Request { connection, request })
    }

    /// A guest asks for its volume at the node where it is.
    pub(super) fn connect(&mut self, volume: u64) -> Result<(), String> {
        self.next_connection += 1;
        let connection = ConnectionId(self.next_connection);
        let tenant = self.tenants.get_mut(&volume).expect("it acts");
        tenant.guest.link = Link::Opening(connection);
        tenant.opening_since = self.now;
        let (at, name) = (tenant.at, tenant.guest.name.clone());
        // Who takes a volume over is somebody else, and does not join whom it takes it from.
        let identity = format!("guest {} of volume {volume}", tenant.takeovers);
        let client = Client { description: identity.clone(), identity };
        self.trace.line(self.now, format_args!("{at}: guest {} opens {name}", connection.0));
        self.input(at, Input::Open { connection, client, name })
    }

    /// Somebody else wants a guest's volume, at any node that serves.
    fn rival(&mut self, volume: u64) -> Result<(), String> {
        let at = self.random.below(self.mix.nodes as u64) as usize;
        if !self.members[at].serves(self.now) {
            return Ok(());
        }
        self.next_connection += 1;
        let connection = ConnectionId(self.next_connection);
        self.rivals.insert(connection, (volume, at));
        let identity = format!("rival {}", connection.0);
        let client = Client { description: identity.clone(), identity };
        let name = self.tenants[&volume].guest.name.clone();
        self.trace.line(self.now, format_args!("{at}: rival {} opens {name}", connection.0));
        self.input(at, Input::Open { connection, client, name })
    }

    /// A guest goes away, whatever it has in flight.
    pub(super) fn hang_up(&mut self, volume: u64, connection: ConnectionId) -> Result<(), String> {
        let tenant = self.tenants.get_mut(&volume).expect("it acts");
        tenant.guest.forget();
        tenant.asked.clear();
        let at = tenant.at;
        self.trace.line(self.now, format_args!("{at}: guest {} goes", connection.0));
        self.input(at, Input::Close { connection })
    }

    fn answered(
        &mut self,
        place: Place,
        connection: ConnectionId,
        answer: Answer,
    ) -> Result<(), String> {
        self.trace.line(self.now, format_args!("{place}: guest {} told {answer:?}", connection.0));
        if let Some((volume, at)) = self.rivals.remove(&connection) {
            if !matches!(answer, Answer::Opened { .. }) {
                return Ok(());
            }
            if matches!(self.tenants[&volume].guest.link, Link::Open(_)) {
                return Err(format!("volume {volume} has two writers, one of them at {at}"));
            }
            self.vouch(place, volume)?;
            // Whatever its guest asked before has an end, heard or not.
            self.tenants.get_mut(&volume).expect("it has a guest").guest.disown();
            self.oracle.attached(volume);
            return self.input(at, Input::Close { connection });
        }
        let (now, pause) = (self.now, Duration::from_millis(100));
        let Some(tenant) = self.tenant_of(connection) else { return Ok(()) };
        match answer {
            Answer::Opened { bytes, read_only } => {
                if bytes != tenant.guest.bytes || read_only {
                    return Err(format!("a guest got {bytes} bytes, read only: {read_only}"));
                }
                tenant.guest.link = Link::Open(connection);
                tenant.guest.next_at = now;
                tenant.may_fail = false;
                let volume = tenant.guest.volume;
                let moved = tenant.was_at.replace(place).is_some_and(|before| before != place);
                self.vouch(place, volume)?;
                self.ghosts.values_mut().filter(|it| it.volume == volume).for_each(|it| {
                    it.since.get_or_insert(now);
                });
                self.summary.attached[0] += 1;
                self.summary.attached[1] += u64::from(moved);
                self.oracle.attached(volume);
                return self.ambush(place);
            }
            Answer::Refused { .. } => {
                (tenant.guest.link, tenant.guest.next_at) = (Link::None, now + pause);
            }
            // A node that is behind does not know it yet.
            Answer::Unknown { sentence } => {
                (tenant.guest.link, tenant.guest.next_at) = (Link::None, now + pause);
                if self.is_healed {
                    return Err(format!("a volume is gone: {sentence}"));
                }
            }
            other => return Err(format!("a guest was told {other:?}")),
        }
        Ok(())
    }

    /// Whoever was told that it has a volume has it by what is agreed.
    fn vouch(&self, place: Place, volume: u64) -> Result<(), String> {
        let member = &self.members[place];
        let map = member.sim().expect("it spoke").engine().map();
        let known = map.volume(proto::VolumeId(volume));
        let has = known.and_then(|known| known.writer()).is_some_and(|by| by.node == member.node);
        match has {
            true => Ok(()),
            false => Err(format!("node {place} gave volume {volume} away without an agreement")),
        }
    }

    fn completed(
        &mut self,
        connection: ConnectionId,
        id: RequestId,
        result: Result<volume::Completion, volume::Error>,
    ) -> Result<(), String> {
        let error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        self.trace.line(self.now, format_args!("guest {} has {}: {error}", connection.0, id.0));
        let now = self.now;
        let found = self.tenants.values_mut().find(|t| t.guest.connection() == Some(connection));
        let Some(tenant) = found else { return self.ghost_told(connection, id, &result) };
        let asked = tenant.asked.remove(&id).expect("it was asked once");
        let promises = |request: &InFlight| request.fua || request.action != Action::Read;
        let is_promise = tenant.guest.in_flight.get(&id).is_some_and(promises);
        let at = tenant.at;
        let took = now.since(asked).as_millis() as u64;
        self.summary.slowest_ms = self.summary.slowest_ms.max(took);
        let outcome = tenant.guest.ended(id, result, &mut self.oracle);
        match outcome.map_err(|wrong| wrong.to_string())? {
            Outcome::Done if is_promise => self.ambush(at),
            Outcome::Done => Ok(()),
            Outcome::Failed(volume::Error::Io(_)) if tenant.may_fail && !tenant.is_strict => {
                self.summary.failures += 1;
                Ok(())
            }
            // Somebody has said that it is not to have the volume any more.
            Outcome::Failed(volume::Error::Fenced) if self.mix.takeovers > 0 => {
                self.summary.failures += 1;
                Ok(())
            }
            Outcome::Failed(error) => Err(format!("a request failed without a reason: {error}")),
        }
    }

    // -- the administrator --

    pub(super) fn administer(&mut self) -> Result<(), String> {
        let serving: Vec<Place> =
            (0..self.mix.nodes).filter(|at| self.members[*at].serves(self.now)).collect();
        if serving.is_empty() {
            return Ok(());
        }
        let at = *self.random.pick(&serving);
        let map = self.members[at].sim().expect("it serves").engine().map().clone();
        let missing = (1..self.mix.nodes).find(|at| map.node(self.members[*at].node).is_none());
        if let Some(place) = missing {
            let (node, name) = (self.members[place].node, format!("n{place}"));
            let addresses = vec![address(place)];
            return self.send_admin(at, AdminRequest::NodeAdd { node, name, addresses });
        }
        if self.tenants.len() < self.mix.volumes && !self.is_healed {
            let name = format!("v{}", self.next_token);
            let bytes = *self.random.pick(&SIZES) * BLOCK_SIZE as u64;
            self.wanted.insert(name.clone(), bytes);
            let request = match self.mix.ack && self.promises.chance(600_000) {
                true => creation_of_a_stable_volume(name, bytes),
                false => AdminRequest::VolumeCreate { name, bytes },
            };
            return self.send_admin(at, request);
        }
        self.run_errand(at, &map)
    }

    pub(super) fn send_admin(&mut self, at: Place, request: AdminRequest) -> Result<(), String> {
        self.next_token += 1;
        self.trace.line(self.now, format_args!("{at}: admin {} {request:?}", self.next_token));
        let token = AdminToken(self.next_token);
        self.input(at, Input::Admin { token, request })
    }

    // -- who may wait --

    /// The voters, as the node knows them that is the furthest.
    pub(super) fn voters(&self) -> Vec<Place> {
        let known = self.members.iter().filter_map(|member| member.sim()?.engine().voter());
        let furthest = known.max_by_key(|voter| voter.applied());
        let voters: BTreeSet<NodeId> =
            furthest.map(|voter| voter.status().voters).unwrap_or_default().into_iter().collect();
        let is_one = |at: &Place| voters.contains(&self.members[*at].node);
        (0..self.mix.nodes).filter(is_one).collect()
    }

    /// Whether anybody waits for what nothing excuses any more.
    pub(super) fn look_for_waiting(&mut self) -> Result<(), String> {
        self.learn_members();
        let (now, voters) = (self.now, self.voters());
        let serves: Vec<bool> = self.members.iter().map(|member| member.serves(now)).collect();
        let passes = |from: Place, to: Place| self.net.passes(from, to);
        let sight = Sight { acts: &serves, passes: &passes, voters: &voters };
        let calm = self.net.is_calm() && self.losses.failed.is_empty();
        let place_of = |disk: &DiskId| self.members.iter().position(|it| it.disk == Some(*disk));
        let sets: Vec<(Vec<Place>, usize)> = self
            .books
            .sets
            .iter()
            .map(|(disks, all)| (disks.iter().filter_map(place_of).collect(), quorum(*all)))
            .collect();
        for place in 0..self.mix.nodes {
            if !calm || !sight.must_serve(place, &sets) {
                self.excused_at[place] = now;
            }
        }
        for tenant in self.tenants.values() {
            let excused = self.excused_at[tenant.at];
            let opening = matches!(tenant.guest.link, Link::Opening(_));
            let since = tenant.asked.values().min().copied();
            let since = since.or(opening.then_some(tenant.opening_since));
            if let Some(since) = since
                && now.since(since.max(excused)) > PATIENCE
            {
                let (at, volume) = (tenant.at, tenant.guest.volume);
                let link = tenant.guest.link;
                return Err(format!("the guest of volume {volume} waits at {at}: {link:?}"));
            }
        }
        Ok(())
    }
}

/// A node in few words.
fn describe(member: &Member) -> String {
    let Some(sim) = member.sim() else { return format!("{} is down", member.node) };
    let voter = sim.engine().voter().map(|voter| voter.status());
    format!("{} is {:?}, {voter:?}", member.node, sim.life())
}

/// What asks for a new volume whose acknowledgements promise that what was written is stable.
fn creation_of_a_stable_volume(name: String, bytes: u64) -> AdminRequest {
    AdminRequest::VolumeCreateKept {
        name,
        bytes: Some(bytes),
        from: None,
        copies: None,
        min_copies: None,
        durability: Some(Durability::Ack),
    }
}

/// Draws what concerns rot in the run of a seed.
fn rot_of(seed: u64) -> Random {
    Random::new(seed ^ 0x726f_7400)
}

/// Says which seed it was when something panics.
struct Loud(u64);

impl Drop for Loud {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}: replay with `sim --cluster --seed {0} --trace`", self.0);
        }
    }
}
