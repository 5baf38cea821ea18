//! Two links over a network that cuts, delays and splits, and whose ends notice late; processes
//! that restart; requests, answers and messages in between. What must hold:
//!
//! * Every request ends exactly once, and only with the answer to it.
//! * Each disk sees the requests of one process in the order in which they were asked; a write is
//!   applied once, and what is adopted is what was staged.
//! * Up and down come in turns; what is held stays within its limits.

use super::copying::{COPIED, Copier};
use super::disk::{Disk, KEY, content};
use super::requests::{KINDS, LINEAGE, UNDER, request as other_request};
use super::{Steps, settings};
use crate::{Beat, CloseReason, Effect, Event, Greeter, Link, Question};
use proto::limits::{LINK_INPUT_BYTES_MAX, LINK_SILENT_MS_MAX};
use proto::wire::note::{Channel, Promise};
use proto::{
    BLOCK_SIZE, BlockRange, Buffer, Change, DiskId, Duration, Generation, Incarnation, MemberError,
    MemberReply, MemberRequest, MemberToken, NodeId, Stamp, Time, Write,
};
use std::collections::{BTreeMap, VecDeque};

const DISKS: usize = 3;
/// Requests that one node asks without an answer.
const ASKED_MAX: usize = 300;
/// Bytes on their way in one direction.
const PIPE_BYTES_MAX: usize = 96 << 10;

/// One attempt to connect, and what became of it.
#[derive(Debug, Default)]
struct Wire {
    /// Who has dialled.
    dialler: usize,
    /// The number that each side gave it; the listener later.
    numbers: [Option<u64>; 2],
    greeter: Option<Greeter>,
    /// Bytes on their way from each side.
    pipes: [VecDeque<u8>; 2],
    /// Which side has closed it, or noticed that it is cut.
    closed: [bool; 2],
    /// Nothing is carried any more.
    cut: bool,
}

/// A chain of writes to one disk of the other node.
#[derive(Clone, Copy, Debug, Default)]
struct Chain {
    last: Stamp,
    /// What was asked last was forgotten: where the disk stands must be looked up.
    broken: bool,
}

#[derive(Debug)]
struct Side {
    link: Link,
    instance: u64,
    disks: [Disk; DISKS],
    chains: [Chain; DISKS],
    copiers: [Copier; DISKS],
    /// What was asked and has not ended.
    asked: BTreeMap<MemberToken, (DiskId, MemberRequest)>,
    cancelled: Vec<MemberToken>,
    next_token: u64,
    /// Questions of the other node, with their answers.
    questions: Vec<(Question, Result<MemberReply, MemberError>)>,
    beats: Vec<Beat>,
    is_up: bool,
    /// The process of the other node as it was told.
    peer_instance: Option<u64>,
    /// Control messages that came and were sent.
    control_seen: u64,
    control_sent: u64,
}

/// What there is in all.
#[derive(Debug)]
pub struct Pair {
    now: Time,
    sides: [Side; 2],
    dialling: [Option<u64>; 2],
    wires: Vec<Wire>,
    /// Most bytes that are handed over at once.
    piece_bytes: usize,
    next_nonce: u64,
    next_instance: u64,
    /// The credit that each grants.
    credit: (u32, u32),
    /// Events in all.
    events: u64,
    /// Reasons for which connections ended.
    pub reasons: Vec<CloseReason>,
    /// What happened how often.
    pub marks: Marks,
}

/// What a history must have come by to be worth something.
#[derive(Debug, Default)]
pub struct Marks {
    /// Requests that ended with an answer.
    pub answered: u64,
    /// Requests that ended without.
    pub forgotten: u64,
    /// Writes that a disk had already when they came.
    pub seen_twice: u64,
    /// Adoptions that a disk had already made when they came.
    pub adopted_twice: u64,
    /// Adoptions of something else than was staged.
    pub not_staged: u64,
    /// Of links that are gone: what they counted.
    pub resent: u64,
    /// Likewise.
    pub adopted: u64,
    /// Control messages that came.
    pub controls: u64,
    /// Promises that came.
    pub promises: u64,
}

/// Plays these decisions, then heals everything and looks whether all has ended well. Gives back
/// what there was.
pub fn fuzz_pair(data: &[u8]) -> Pair {
    let mut steps = Steps::new(data);
    let mut pair = Pair::new(steps.byte());
    while let Some(step) = steps.next_step() {
        pair.step(step, &mut steps);
    }
    pair.heal();
    pair
}

impl Pair {
    fn new(choice: u8) -> Pair {
        let piece_bytes = [LINK_INPUT_BYTES_MAX, 4096, 61, 1][usize::from(choice) % 4];
        let credit = [(8, 1 << 20), (64, 4 << 20)][usize::from(choice >> 2) % 2];
        let now = Time(1_000_000_000);
        let mut effects = [Vec::new(), Vec::new()];
        let mut side = |place: usize| {
            let own = settings(place as u128 + 1, place as u64 + 1, credit.0, credit.1);
            let link = Link::new(now, own, NodeId(2 - place as u128), &mut effects[place]);
            Side::new(link, place as u64 + 1)
        };
        let sides = [side(0), side(1)];
        let mut pair = Pair {
            now,
            sides,
            dialling: [None; 2],
            wires: Vec::new(),
            piece_bytes,
            next_nonce: 1,
            next_instance: 3,
            credit,
            events: 0,
            reasons: Vec::new(),
            marks: Marks::default(),
        };
        let [first, second] = effects;
        pair.perform(0, first);
        pair.perform(1, second);
        pair
    }

    fn step(&mut self, step: u8, steps: &mut Steps<'_>) {
        let side = usize::from(step >> 7);
        match step % 32 {
            0..=7 => self.ask(side, steps),
            8..=12 => self.write_out(side, 1 << (steps.byte() % 18)),
            13..=17 => self.carry(side, 1 << (steps.byte() % 18)),
            18..=20 => self.answer(side, usize::from(steps.byte())),
            21 => self.pass(Duration::from_millis(1 << (steps.byte() % 12))),
            22 | 23 => self.connect(!steps.byte().is_multiple_of(8)),
            24 => self.cut(steps.byte(), usize::from(steps.byte())),
            25 => self.notice(side, usize::from(steps.byte())),
            26 => self.cancel(side, steps),
            27 => self.control(side, steps),
            28 => self.beat(side),
            29 if steps.byte() < 6 => self.restart(side),
            _ => {
                for side in [0, 1] {
                    self.write_out(side, PIPE_BYTES_MAX);
                    self.carry(side, PIPE_BYTES_MAX);
                }
            }
        }
    }

    // -- the two nodes -------------------------------------------------------------------------

    /// One event at one side, with everything that follows from it.
    fn act(&mut self, side: usize, event: impl FnOnce(&mut Link, Time, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        event(&mut self.sides[side].link, self.now, &mut effects);
        self.events += 1;
        // In small pieces that would be all the time there is.
        if self.piece_bytes > 1000 || self.events.is_multiple_of(61) {
            self.sides[side].link.check();
        }
        self.perform(side, effects);
    }

    fn handle(&mut self, side: usize, event: Event) {
        self.act(side, |link, now, effects| link.handle(now, event, effects));
    }

    fn perform(&mut self, side: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Dial { connection } => {
                    let before = self.dialling[side].replace(connection);
                    assert_eq!(before, None, "one at a time");
                }
                Effect::Close { connection, farewell, reason } => {
                    self.dialling[side].take_if(|dialled| *dialled == connection);
                    self.reasons.push(reason);
                    let wire = self.wires.iter_mut().find(|w| w.numbers[side] == Some(connection));
                    if let Some(wire) = wire {
                        wire.pipes[side].extend(farewell);
                        wire.closed[side] = true;
                    }
                }
                Effect::Up { instance, version, features } => {
                    self.up(side, instance, version, features)
                }
                Effect::Down { .. } => {
                    assert!(std::mem::take(&mut self.sides[side].is_up), "down twice");
                }
                Effect::Answered { token, asked_at, promise, result } => {
                    assert!(asked_at <= self.now && promise <= Duration::from_millis(700));
                    self.answered(side, token, result);
                }
                Effect::Forgotten { token } => self.forgotten(side, token),
                Effect::Asked { question, disk, request } => {
                    let disk = disk.0 as usize - 1;
                    if let MemberRequest::Write(write) = &request
                        && write.stamp <= self.sides[side].disks[disk].have
                    {
                        self.marks.seen_twice += 1;
                    }
                    let answer = self.sides[side].disks[disk].answer(&request);
                    self.sides[side].questions.push((question, answer));
                    let open = self.sides[side].questions.len();
                    assert!(open <= 2 * self.credit.0 as usize, "{open} questions are open");
                }
                Effect::Control { channel, message } => {
                    assert_eq!((channel, message.as_slice()[0]), (Channel::RAFT, 1));
                    let number =
                        u64::from_le_bytes(message.as_slice()[1..9].try_into().expect("8"));
                    assert!(number > self.sides[side].control_seen, "control messages turn back");
                    self.sides[side].control_seen = number;
                    self.marks.controls += 1;
                }
                Effect::Beat { beat } => {
                    self.sides[side].beats.push(beat);
                }
                Effect::Promised { asked_at, promises } => {
                    assert!(asked_at <= self.now && promises.len() == DISKS);
                    self.marks.promises += 1;
                }
            }
        }
    }

    fn up(&mut self, side: usize, instance: u64, version: u8, features: u64) {
        let other = 1 - side;
        assert_eq!((version, features), (1, 0b11));
        let disks: Vec<Stamp> = self.sides[other].disks.iter().map(|disk| disk.have).collect();
        let this = &mut self.sides[side];
        assert!(!std::mem::replace(&mut this.is_up, true), "up twice");
        if this.peer_instance.replace(instance).is_some_and(|before| before != instance) {
            assert!(this.asked.is_empty(), "a new process is asked what its predecessor was");
        }
        for (chain, have) in this.chains.iter_mut().zip(disks) {
            if std::mem::take(&mut chain.broken) {
                chain.last = have;
            }
        }
    }

    fn answered(
        &mut self,
        side: usize,
        token: MemberToken,
        result: Result<MemberReply, MemberError>,
    ) {
        self.marks.answered += 1;
        let [first, second] = &mut self.sides;
        let (side, other) = if side == 0 { (first, second) } else { (second, first) };
        assert!(!side.cancelled.contains(&token), "a cancelled request is answered");
        let (disk, request) = side.asked.remove(&token).expect("a request ends once");
        if is_of_copier(&request) {
            let place = disk.0 as usize - 1;
            return side.copiers[place].answered(&result, &other.disks[place].copied);
        }
        match (&request, &result) {
            (MemberRequest::Write(write), Err(MemberError::WrongStamp { have })) => {
                // It was seen twice, and later ones in between.
                assert!(*have > write.stamp, "{have:?} where {:?} was to follow", write.previous);
            }
            (MemberRequest::Read { blocks, .. }, Ok(MemberReply::Data { content: got, .. })) => {
                let told = content(blocks.first().into(), blocks.count());
                let got: Vec<u8> = got.iter().flat_map(|piece| piece.as_slice().to_vec()).collect();
                assert!(got == told.as_slice(), "the content of an answer changed");
            }
            (_, Ok(_)) => {}
            (_, Err(error)) => panic!("{request:?} is answered {error}"),
        }
    }

    fn forgotten(&mut self, side: usize, token: MemberToken) {
        self.marks.forgotten += 1;
        let side = &mut self.sides[side];
        let (disk, request) = side.asked.remove(&token).expect("a request ends once");
        if matches!(request, MemberRequest::Write(_)) {
            side.chains[disk.0 as usize - 1].broken = true;
        }
        if is_of_copier(&request) {
            side.copiers[disk.0 as usize - 1].forgotten();
        }
    }

    fn ask(&mut self, side: usize, steps: &mut Steps<'_>) {
        let (place, kind, size) = (steps.below(DISKS), steps.byte() % 20, steps.byte());
        let this = &mut self.sides[side];
        // In small pieces many long requests would be all the time there is.
        let is_slow = self.piece_bytes < 1000;
        if this.asked.len() >= if is_slow { ASKED_MAX / 8 } else { ASKED_MAX } {
            return;
        }
        let chain = &mut this.chains[place];
        let count = match size {
            251.. if !is_slow => 249 + u32::from(size % 8),
            _ => 1 + u32::from(size % if is_slow { 2 } else { 8 }),
        };
        let (lineage, generation, key) = (LINEAGE, Generation(2), KEY);
        let blocks = BlockRange::new(u32::from(size), count).expect("inside");
        let request = match kind {
            0..=7 if chain.broken => return,
            0..=7 => {
                let stamp = Stamp { generation, sequence: chain.last.sequence + 1 };
                let change = match kind {
                    0..=5 => Change::Data {
                        first: u32::from(size),
                        payload: content(stamp.sequence, count),
                        detect_zeroes: size % 2 == 0,
                    },
                    6 => Change::Zero { blocks },
                    _ => Change::Absent { blocks },
                };
                let previous = std::mem::replace(&mut chain.last, stamp);
                let (under, settled) = (UNDER, Stamp::default());
                MemberRequest::Write(Write {
                    lineage,
                    key,
                    under,
                    previous,
                    stamp,
                    settled,
                    change,
                })
            }
            8 | 9 => MemberRequest::Read { lineage, key, generation, under: Some(UNDER), blocks },
            16.. => return (0..DISKS).for_each(|place| self.copy(side, place)),
            // Long ones would be all the time there is.
            _ => {
                other_request(steps.below(KINDS), generation, if is_slow { size % 4 } else { size })
            }
        };
        this.next_token += 1;
        let (token, disk) = (MemberToken(this.next_token), DiskId(place as u128 + 1));
        this.asked.insert(token, (disk, request.clone()));
        self.handle(side, Event::Ask { token, disk, request });
    }

    /// Whatever the copier of this disk wants to ask now.
    fn copy(&mut self, side: usize, place: usize) {
        for request in self.sides[side].copiers[place].next_requests() {
            let this = &mut self.sides[side];
            this.next_token += 1;
            let (token, disk) = (MemberToken(this.next_token), DiskId(place as u128 + 1));
            this.asked.insert(token, (disk, request.clone()));
            self.handle(side, Event::Ask { token, disk, request });
        }
    }

    fn cancel(&mut self, side: usize, steps: &mut Steps<'_>) {
        let this = &mut self.sides[side];
        // A write that is not asked would break its chain, and a copier waits for its answers.
        let may = |(_, (_, request)): &(&MemberToken, &(DiskId, MemberRequest))| {
            !matches!(request, MemberRequest::Write(_)) && !is_of_copier(request)
        };
        let place = usize::from(steps.byte());
        let Some((&token, _)) = this.asked.iter().filter(may).nth(place % 4) else { return };
        this.asked.remove(&token);
        this.cancelled.push(token);
        self.handle(side, Event::Cancel { token });
    }

    fn answer(&mut self, side: usize, place: usize) {
        let questions = &mut self.sides[side].questions;
        if !questions.is_empty() {
            let (question, result) = questions.swap_remove(place % questions.len());
            let promise = Duration::from_millis(700);
            self.handle(side, Event::Answer { question, promise, result });
        }
    }

    fn control(&mut self, side: usize, steps: &mut Steps<'_>) {
        let this = &mut self.sides[side];
        this.control_sent += 1;
        let length = 9 + (1usize << steps.below(16));
        let mut buffer = Buffer::zeroed(length);
        buffer.as_mut_slice()[0] = 1;
        buffer.as_mut_slice()[1..9].copy_from_slice(&this.control_sent.to_le_bytes());
        let message = buffer.freeze().slice(0, length);
        self.handle(side, Event::Control { channel: Channel::RAFT, message });
    }

    fn beat(&mut self, side: usize) {
        if let Some(beat) = self.sides[side].beats.pop() {
            let (incarnation, span) = (Incarnation(1), Duration::from_millis(900));
            let promises = (1..=DISKS as u128).map(|disk| {
                let disk = DiskId(disk);
                Promise { disk, incarnation, span }
            });
            self.handle(side, Event::Promise { beat, promises: promises.collect() });
        }
    }

    fn count_link(&mut self, side: usize) {
        let counters = self.sides[side].link.counters();
        self.marks.resent += counters.resent;
        self.marks.adopted += counters.adopted;
    }

    /// One process ends and another begins. What it was asked dies with it.
    fn restart(&mut self, side: usize) {
        for wire in &mut self.wires {
            wire.closed[side] = true;
        }
        let (instance, now) = (self.next_instance, self.now);
        self.next_instance += 1;
        let own = settings(side as u128 + 1, instance, self.credit.0, self.credit.1);
        let mut effects = Vec::new();
        self.dialling[side] = None;
        let link = Link::new(now, own, NodeId(2 - side as u128), &mut effects);
        self.count_link(side);
        let before = std::mem::replace(&mut self.sides[side], Side::new(link, instance));
        let this = &mut self.sides[side];
        this.disks = before.disks;
        this.disks.iter_mut().for_each(|disk| disk.copied.reopen());
        this.copiers = before.copiers.map(Copier::restarted);
        this.next_token = before.next_token;
        this.control_seen = before.control_seen;
        this.control_sent = before.control_sent;
        this.chains = before.chains.map(|chain| Chain { broken: true, ..chain });
        self.perform(side, effects);
    }

    // -- the network ---------------------------------------------------------------------------

    /// The dialled connection is there, or cannot be had.
    fn connect(&mut self, works: bool) {
        // Where both dial, in turns.
        let first = usize::from(self.events.is_multiple_of(2));
        let side = [first, 1 - first].into_iter().find(|&side| self.dialling[side].is_some());
        let Some(dialler) = side else { return };
        let connection = self.dialling[dialler].take().expect("just seen");
        if !works {
            return self.handle(dialler, Event::DialFailed { connection });
        }
        let other = 1 - dialler;
        let identity = settings(other as u128 + 1, self.sides[other].instance, 1, 1).identity;
        let greeter = Some(Greeter::new(self.now, identity));
        let mut numbers = [None; 2];
        numbers[dialler] = Some(connection);
        self.wires.push(Wire { dialler, numbers, greeter, ..Wire::default() });
        let nonce = self.nonce();
        self.handle(dialler, Event::Dialled { connection, nonce });
    }

    fn nonce(&mut self) -> u64 {
        self.next_nonce += 1;
        self.next_nonce.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// A socket takes what a link has, up to so many bytes.
    fn write_out(&mut self, side: usize, bytes: usize) {
        for place in 0..self.wires.len() {
            let wire = &mut self.wires[place];
            let Some(connection) = wire.numbers[side].filter(|_| !wire.closed[side]) else {
                continue;
            };
            let room = PIPE_BYTES_MAX - wire.pipes[side].len().min(PIPE_BYTES_MAX);
            let mut left = bytes.min(room);
            let mut count = 0;
            for piece in self.sides[side].link.output(connection) {
                let piece = &piece[..piece.len().min(left)];
                if !wire.cut {
                    wire.pipes[side].extend(piece);
                }
                left -= piece.len();
                count += piece.len();
            }
            self.act(side, |link, now, _| link.handle_sent(now, connection, count));
        }
    }

    /// The network carries what `side` sent, up to so many bytes, to the other one.
    fn carry(&mut self, side: usize, bytes: usize) {
        let target = 1 - side;
        for place in 0..self.wires.len() {
            let mut left = bytes.min(self.piece_bytes.saturating_mul(2048));
            loop {
                let wire = &mut self.wires[place];
                if wire.closed[target] || wire.cut {
                    break;
                }
                let count = wire.pipes[side].len().min(left).min(self.piece_bytes);
                if count == 0 {
                    if wire.closed[side] && wire.pipes[side].is_empty() {
                        self.lost(target, place);
                    }
                    break;
                }
                left -= count;
                self.hand_over(target, place, count);
            }
        }
        self.wires.retain(|wire| wire.closed != [true; 2]);
    }

    fn hand_over(&mut self, target: usize, place: usize, count: usize) {
        let wire = &mut self.wires[place];
        let Some(connection) = wire.numbers[target] else {
            let bytes: Vec<u8> = wire.pipes[1 - target].drain(..count).collect();
            return self.greet(place, &bytes);
        };
        // Every other time straight into a payload.
        let direct = self.now.0.is_multiple_of(2);
        let pipe = &mut wire.pipes[1 - target];
        match self.sides[target].link.payload_target(connection) {
            Some(memory) if direct => {
                let count = count.min(memory.len());
                for (byte, came) in memory.iter_mut().zip(pipe.drain(..count)) {
                    *byte = came;
                }
                self.act(target, |l, now, effects| {
                    l.handle_payload(now, connection, count, effects)
                });
            }
            _ => {
                let bytes: Vec<u8> = pipe.drain(..count).collect();
                self.act(target, |l, now, effects| {
                    l.handle_bytes(now, connection, &bytes, effects)
                });
            }
        }
        self.now = self.now + Duration::from_nanos(1);
    }

    fn greet(&mut self, place: usize, bytes: &[u8]) {
        let wire = &mut self.wires[place];
        let side = 1 - wire.dialler;
        let greeter = wire.greeter.as_mut().expect("a listener greets");
        match greeter.handle_bytes(bytes) {
            Ok(None) => {}
            Ok(Some(hello)) => {
                wire.greeter = None;
                let nonce = self.nonce();
                let mut effects = Vec::new();
                let link = &mut self.sides[side].link;
                let number = link.handle_accepted(self.now, &hello, nonce, &mut effects);
                link.check();
                self.wires[place].numbers[side] = Some(number);
                self.perform(side, effects);
            }
            Err(reason) => {
                wire.pipes[side].extend(Greeter::farewell(&reason));
                wire.closed[side] = true;
                self.reasons.push(reason);
            }
        }
    }

    /// A connection carries nothing any more; what is on its way is lost. Whether anybody notices
    /// is another matter.
    fn cut(&mut self, who: u8, place: usize) {
        if self.wires.is_empty() {
            return;
        }
        let place = place % self.wires.len();
        let wire = &mut self.wires[place];
        if who >= 64 {
            return; // not so often
        }
        wire.cut = true;
        for side in [0, 1] {
            if who & 1 << side != 0 {
                self.lost(side, place);
            }
        }
    }

    /// One side notices that a connection is cut.
    fn notice(&mut self, side: usize, place: usize) {
        if !self.wires.is_empty() {
            let place = place % self.wires.len();
            if self.wires[place].cut {
                self.lost(side, place);
            }
        }
    }

    fn lost(&mut self, side: usize, place: usize) {
        let wire = &mut self.wires[place];
        if !std::mem::replace(&mut wire.closed[side], true)
            && let Some(connection) = wire.numbers[side]
        {
            self.handle(side, Event::Lost { connection });
        }
    }

    /// Time passes, from deadline to deadline.
    fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        loop {
            let next = |side: usize| self.sides[side].link.deadline().map(|at| (at, side));
            let Some((at, side)) = next(0).into_iter().chain(next(1)).min() else { break };
            if at > until {
                break;
            }
            self.now = self.now.max(at);
            self.act(side, |link, now, effects| link.handle_deadline(now, effects));
        }
        self.now = self.now.max(until);
        for wire in &mut self.wires {
            if wire.greeter.as_ref().is_some_and(|greeter| greeter.deadline() <= self.now) {
                wire.closed[1 - wire.dialler] = true;
            }
        }
    }

    // -- the end -------------------------------------------------------------------------------

    /// The network is well again and everybody answers: then everything must end, soon.
    fn heal(&mut self) {
        for place in 0..self.wires.len() {
            if self.wires[place].cut {
                self.lost(0, place);
                self.lost(1, place);
            }
        }
        let limit = Duration::from_secs(60) + Duration::from_millis(LINK_SILENT_MS_MAX);
        let until = self.now + limit;
        while self.sides.iter().any(|side| !side.asked.is_empty() || !side.is_up) {
            assert!(self.now < until, "it does not come to an end: {self:#?}");
            self.connect(true);
            for side in [0, 1] {
                self.write_out(side, PIPE_BYTES_MAX);
                self.carry(side, PIPE_BYTES_MAX);
                while !self.sides[side].questions.is_empty() {
                    self.answer(side, 0);
                }
            }
            self.pass(Duration::from_millis(5));
        }
        for (side, other) in [(0, 1), (1, 0)] {
            for (disk, chain) in self.sides[other].disks.iter().zip(&self.sides[side].chains) {
                assert!(chain.broken || chain.last == disk.have, "writes were lost");
                assert!(disk.applied <= disk.have.sequence);
                self.marks.adopted_twice += disk.copied.adopted_before;
                self.marks.not_staged += disk.copied.not_staged;
            }
            self.count_link(side);
            let this = &self.sides[side];
            assert!(this.link.pending() <= this.cancelled.len());
        }
    }
}

impl Side {
    fn new(link: Link, instance: u64) -> Side {
        Side {
            link,
            instance,
            disks: Default::default(),
            chains: Default::default(),
            copiers: Default::default(),
            asked: BTreeMap::new(),
            cancelled: Vec::new(),
            next_token: 0,
            questions: Vec::new(),
            beats: Vec::new(),
            is_up: false,
            peer_instance: None,
            control_seen: 0,
            control_sent: 0,
        }
    }
}

fn is_of_copier(request: &MemberRequest) -> bool {
    matches!(
        request,
        MemberRequest::Stage { key: COPIED, .. } | MemberRequest::Adopt { key: COPIED, .. }
    )
}

const _: () = assert!(PIPE_BYTES_MAX > 16 * BLOCK_SIZE);
