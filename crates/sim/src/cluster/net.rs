//! The network between the nodes: connections that keep the order of their bytes while they live,
//! and everything that can happen to them.
//!
//! As with TCP, bytes of a living connection are never lost, doubled or reordered: a cut or a stall
//! holds them back, and only a reset loses what is in flight, from some point on. The two ends of a
//! broken connection learn of it at different times, or never.

use crate::random::Random;
use link::Greeter;
use proto::{Duration, NodeId, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bytes that a socket takes and the other side has not got yet, at most.
const SOCKET_BYTES_MAX: usize = 256 << 10;
/// Bytes that arrive at once, at most.
const SEGMENT_BYTES_MAX: u64 = 16 << 10;

/// The place of a node in the cluster's list.
pub type Place = usize;

/// One end of a connection: the dialler's is 0, the other one's 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct End {
    /// Which connection.
    pub connection: u64,
    /// Which of its sides.
    pub side: usize,
}

/// What arrives somewhere.
#[derive(Debug)]
pub enum Arrival {
    /// A dialler has reached the machine that it wants.
    Dialled(Dial),
    /// Bytes, at this end.
    Bytes(End, Vec<u8>),
    /// The connection has ended, and this end learns of it.
    Ended(End),
}

/// Somebody who wants to connect.
#[derive(Clone, Copy, Debug)]
pub struct Dial {
    /// From where.
    pub from: Place,
    /// Where to.
    pub to: Place,
    /// What the dialler's link calls it.
    pub key: (NodeId, u64),
    due: Time,
}

/// How a process knows its end of a connection.
#[derive(Debug)]
pub enum Owner {
    /// Nobody there reads it any more.
    Nobody,
    /// It is accepted and has not said who it is.
    Greeter(Box<Greeter>),
    /// The link to this node calls it so.
    Link(NodeId, u64),
}

/// What goes one way.
#[derive(Debug, Default)]
struct Flow {
    segments: VecDeque<(Time, Vec<u8>)>,
    bytes: usize,
    /// When the other side learns that nothing more comes.
    ends_at: Option<Time>,
    /// Nothing that is sent arrives any more.
    is_broken: bool,
    last: Time,
}

#[derive(Debug)]
struct Connection {
    places: [Place; 2],
    owners: [Owner; 2],
    /// What each side sends.
    flows: [Flow; 2],
}

/// The network. See the module.
#[derive(Debug)]
pub struct Net {
    random: Random,
    latency: (Duration, Duration),
    connections: BTreeMap<u64, Connection>,
    dials: Vec<Dial>,
    /// Ways, from and to, on which nothing passes.
    cuts: BTreeSet<(Place, Place)>,
    /// Ways on which nothing passes before a time.
    stalls: BTreeMap<(Place, Place), Time>,
    /// Ways that are slower than the others, by so much.
    slow: BTreeMap<(Place, Place), Duration>,
    /// Machines without power.
    dark: BTreeSet<Place>,
    /// Connections that end at only one side and stay open at the other, in millionths of dials.
    ghosts: u32,
    last: u64,
}

impl Net {
    /// A whole network, with this latency of a way.
    pub fn new(random: Random, latency: (Duration, Duration), ghosts: u32) -> Net {
        Net {
            random,
            latency,
            connections: BTreeMap::new(),
            dials: Vec::new(),
            cuts: BTreeSet::new(),
            stalls: BTreeMap::new(),
            slow: BTreeMap::new(),
            dark: BTreeSet::new(),
            ghosts,
            last: 0,
        }
    }

    // -- faults --

    /// Nothing passes from one node to another any more.
    pub fn cut(&mut self, from: Place, to: Place) {
        self.cuts.insert((from, to));
    }

    /// Nothing passes before a time.
    pub fn stall(&mut self, from: Place, to: Place, until: Time) {
        self.stalls.insert((from, to), until);
    }

    /// Everything takes longer by so much.
    pub fn slow(&mut self, from: Place, to: Place, by: Duration) {
        self.slow.insert((from, to), by);
    }

    /// Everything passes again.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.stalls.clear();
        self.slow.clear();
        self.ghosts = 0;
    }

    /// A way is as it was in the beginning.
    pub fn mend(&mut self, from: Place, to: Place) {
        self.cuts.remove(&(from, to));
        self.stalls.remove(&(from, to));
        self.slow.remove(&(from, to));
    }

    /// Whether nothing is held up or slow; it may be cut.
    pub fn is_calm(&self) -> bool {
        self.stalls.is_empty() && self.slow.is_empty()
    }

    /// Whether bytes pass from one node to another.
    pub fn passes(&self, from: Place, to: Place) -> bool {
        !self.cuts.contains(&(from, to))
    }

    /// The connections that exist.
    pub fn connections(&self) -> Vec<u64> {
        self.connections.keys().copied().collect()
    }

    /// A connection breaks: of what is in flight each way, some beginning arrives. One side learns
    /// of it soon, the other within `late`.
    pub fn reset(&mut self, now: Time, connection: u64, late: Duration) {
        let first = self.random.below(2) as usize;
        for side in [0, 1] {
            let wait = if side == first { Duration::from_millis(1) } else { late };
            let wait = Duration::from_nanos(self.random.below(wait.as_nanos() as u64 + 1));
            let flow = &mut self.connections.get_mut(&connection).expect("listed").flows[side];
            let kept = self.random.below(flow.bytes as u64 + 1) as usize;
            flow.truncate(if self.random.coin() { kept } else { 0 });
            flow.is_broken = true;
            let end = flow.last.max(now) + wait;
            flow.ends_at = Some(flow.ends_at.map_or(end, |known| known.min(end)));
        }
    }

    /// A process is gone and its machine lives: what its sockets took arrives, then the ends.
    pub fn process_gone(&mut self, now: Time, place: Place) {
        self.dials.retain(|dial| dial.from != place);
        for end in self.ends_at(place) {
            self.close(now, end, Vec::new());
        }
    }

    /// A machine is without power: nobody learns of it.
    pub fn machine_dark(&mut self, place: Place) {
        self.dials.retain(|dial| dial.from != place);
        self.dark.insert(place);
        for End { connection, side } in self.ends_at(place) {
            let known = self.connections.get_mut(&connection).expect("listed");
            known.owners[side] = Owner::Nobody;
            known.flows[side].is_broken = true;
        }
    }

    /// A machine has power again: it answers what is sent on connections that it does not know.
    pub fn machine_back(&mut self, now: Time, place: Place) {
        if !self.dark.remove(&place) {
            return;
        }
        for known in self.connections.values_mut() {
            for side in [0, 1] {
                if known.places[side] == place && known.flows[side].ends_at.is_none() {
                    known.flows[side].ends_at = Some(now + Duration::from_millis(300));
                }
            }
        }
    }

    fn ends_at(&self, place: Place) -> Vec<End> {
        let all = self.connections.iter().flat_map(|(connection, known)| {
            let own = [0, 1].into_iter().filter(|&side| known.places[side] == place);
            own.map(|side| End { connection: *connection, side })
        });
        all.collect()
    }

    // -- what processes do --

    /// A process wants to connect.
    pub fn dial(&mut self, now: Time, from: Place, to: Place, key: (NodeId, u64)) {
        let due = now + self.delay(from, to) + self.delay(to, from);
        self.dials.push(Dial { from, to, key, due });
    }

    /// A process does not want to any more. False: the dial has come through before.
    pub fn give_up(&mut self, from: Place, key: (NodeId, u64)) -> bool {
        let before = self.dials.len();
        self.dials.retain(|dial| (dial.from, dial.key) != (from, key));
        self.dials.len() < before
    }

    /// A dial has come through: the connection is there. Gives back the ends that the other side
    /// sees: sometimes another one of which the dialler does not know.
    pub fn connect(&mut self, dial: &Dial, greeter: impl Fn() -> Greeter) {
        if self.random.chance(self.ghosts) {
            self.establish(dial, Owner::Nobody, greeter());
        }
        self.establish(dial, Owner::Link(dial.key.0, dial.key.1), greeter());
    }

    fn establish(&mut self, dial: &Dial, owner: Owner, greeter: Greeter) {
        self.last += 1;
        let owners = [owner, Owner::Greeter(Box::new(greeter))];
        let flows = [Flow::default(), Flow::default()];
        let places = [dial.from, dial.to];
        self.connections.insert(self.last, Connection { places, owners, flows });
    }

    /// Whose end it is.
    pub fn owner_mut(&mut self, end: End) -> Option<&mut Owner> {
        Some(&mut self.connections.get_mut(&end.connection)?.owners[end.side])
    }

    /// At which node an end is.
    pub fn place(&self, end: End) -> Place {
        self.connections[&end.connection].places[end.side]
    }

    /// The end that a link calls so.
    pub fn end_of(&self, place: Place, key: (NodeId, u64)) -> Option<End> {
        self.connections.iter().find_map(|(connection, known)| {
            let is_it = |side: &usize| {
                let owner = &known.owners[*side];
                known.places[*side] == place
                    && matches!(owner, Owner::Link(node, number) if (*node, *number) == key)
            };
            let side = [0, 1].into_iter().find(is_it)?;
            Some(End { connection: *connection, side })
        })
    }

    /// How many bytes the socket of an end takes now.
    pub fn room(&self, end: End) -> usize {
        let flow = &self.connections[&end.connection].flows[end.side];
        SOCKET_BYTES_MAX - flow.bytes.min(SOCKET_BYTES_MAX)
    }

    /// Sends bytes from an end.
    pub fn send(&mut self, now: Time, end: End, bytes: &[u8]) {
        let Some(known) = self.connections.get(&end.connection) else { return };
        let (from, to) = (known.places[end.side], known.places[1 - end.side]);
        if known.flows[end.side].is_broken {
            return;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let length = self.random.between(1, SEGMENT_BYTES_MAX).min(rest.len() as u64) as usize;
            let due = now + self.delay(from, to);
            let known = self.connections.get_mut(&end.connection).expect("seen above");
            known.flows[end.side].push(due, rest[..length].to_vec());
            rest = &rest[length..];
        }
    }

    /// A process closes its end, after these bytes.
    pub fn close(&mut self, now: Time, end: End, farewell: Vec<u8>) {
        self.send(now, end, &farewell);
        let Some(known) = self.connections.get_mut(&end.connection) else { return };
        known.owners[end.side] = Owner::Nobody;
        let flow = &mut known.flows[end.side];
        let due = flow.last.max(now) + Duration::from_micros(50);
        flow.ends_at = flow.ends_at.or(Some(due));
        flow.is_broken = true;
        let other = &mut known.flows[1 - end.side];
        (other.segments, other.bytes, other.is_broken) = (VecDeque::new(), 0, true);
    }

    fn delay(&mut self, from: Place, to: Place) -> Duration {
        let (low, high) = self.latency;
        let spread = high.saturating_sub(low).as_nanos() as u64;
        let extra = self.slow.get(&(from, to)).copied().unwrap_or(Duration::ZERO);
        low + Duration::from_nanos(self.random.below(spread + 1)) + extra
    }

    // -- the passing of time --

    /// When the next thing arrives at a node that listens.
    pub fn next_due(&self, listens: impl Fn(Place) -> bool) -> Option<Time> {
        let dials = self.dials.iter().filter(|dial| listens(dial.from));
        let dials = dials.filter_map(|dial| self.dial_due(dial));
        let flows = self.flows().filter(|(end, ..)| {
            matches!(self.connections[&end.connection].owners[end.side], Owner::Nobody)
                || listens(self.place(*end))
        });
        dials.chain(flows.map(|(_, due, _)| due)).min()
    }

    fn dial_due(&self, dial: &Dial) -> Option<Time> {
        let Dial { from, to, due, .. } = *dial;
        let is_open = self.passes(from, to) && self.passes(to, from) && !self.dark.contains(&to);
        is_open.then(|| due.max(self.held(from, to)).max(self.held(to, from)))
    }

    fn held(&self, from: Place, to: Place) -> Time {
        self.stalls.get(&(from, to)).copied().unwrap_or(Time(0))
    }

    /// What is on its way to each end, when it is there, and whether it is the end.
    fn flows(&self) -> impl Iterator<Item = (End, Time, bool)> {
        self.connections.iter().flat_map(move |(connection, known)| {
            [0, 1].into_iter().filter_map(move |side| {
                let (from, to) = (known.places[side], known.places[1 - side]);
                if !self.passes(from, to) {
                    return None;
                }
                let flow = &known.flows[side];
                let (due, is_end) = match flow.segments.front() {
                    Some((due, _)) => (*due, false),
                    None => (flow.ends_at?, true),
                };
                let end = End { connection: *connection, side: 1 - side };
                Some((end, due.max(self.held(from, to)), is_end))
            })
        })
    }

    /// What has arrived by now, at a node that listens: one thing at a time.
    pub fn arrive(&mut self, now: Time, listens: impl Fn(Place) -> bool) -> Option<Arrival> {
        let dials = self.dials.iter().enumerate().filter(|(_, dial)| listens(dial.from));
        let dial = dials.filter_map(|(at, dial)| Some((self.dial_due(dial)?, at))).min();
        if let Some((due, at)) = dial
            && due <= now
        {
            return Some(Arrival::Dialled(self.dials.remove(at)));
        }
        let flows = self.flows().filter(|(end, due, _)| {
            let owner = &self.connections[&end.connection].owners[end.side];
            *due <= now && (matches!(owner, Owner::Nobody) || listens(self.place(*end)))
        });
        let (end, _, is_end) = flows.min_by_key(|(end, due, _)| (*due, *end))?;
        let known = self.connections.get_mut(&end.connection).expect("just listed");
        let flow = &mut known.flows[1 - end.side];
        if !is_end {
            let (_, bytes) = flow.segments.pop_front().expect("just seen");
            flow.bytes -= bytes.len();
            return Some(Arrival::Bytes(end, bytes));
        }
        flow.ends_at = None;
        flow.is_broken = true;
        Some(Arrival::Ended(end))
    }

    /// Forgets connections that nobody has an end of.
    pub fn sweep(&mut self) {
        self.connections
            .retain(|_, known| known.owners.iter().any(|owner| !matches!(owner, Owner::Nobody)));
    }

    /// Accepted connections that have not said who they are by now.
    pub fn slow_greeters(&self, now: impl Fn(Place) -> Option<Time>) -> Vec<End> {
        let all = self.connections.iter().flat_map(|(connection, known)| {
            [0, 1].map(|side| (End { connection: *connection, side }, known))
        });
        let slow = all.filter(|(end, known)| match &known.owners[end.side] {
            Owner::Greeter(greeter) => {
                now(known.places[end.side]).is_some_and(|now| greeter.deadline() <= now)
            }
            _ => false,
        });
        slow.map(|(end, _)| end).collect()
    }
}

impl Flow {
    fn push(&mut self, due: Time, bytes: Vec<u8>) {
        self.last = self.last.max(due);
        self.bytes += bytes.len();
        self.segments.push_back((self.last, bytes));
    }

    /// Keeps so many bytes of what is in flight.
    fn truncate(&mut self, mut kept: usize) {
        self.bytes = kept;
        for (_, bytes) in &mut self.segments {
            bytes.truncate(kept);
            kept -= bytes.len();
        }
        self.segments.retain(|(_, bytes)| !bytes.is_empty());
    }
}
