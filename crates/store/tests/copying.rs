//! Random writes, adoptions, retractions, marks and attempts, with completions in any order and
//! crashes, compared with an obvious model: each object is as after one of the changes that were
//! made of it, none that was flushed (or, without a loss of power, answered) is missing, no
//! adoption is there in part, and who has settled it follows from the order of adoptions and marks.

mod support;

use proto::{
    BLOCKS_PER_OBJECT, Batch, BlockRange, Change, ConfigurationNumber, Duration, Generation,
    LayerId, LineageId, MemberError, MemberReply, MemberRequest, ObjectKey, PartitionId, Permit,
    Stamp, Under, Write,
};
use std::collections::BTreeMap;
use store::{Event, check};
use support::{Host, LINEAGE, Random, data, values};

const INDEXES: [u32; 4] = [0, 1, 64, 500];
const BLOCKS: usize = BLOCKS_PER_OBJECT as usize;

/// An object of one layer.
#[derive(Clone, PartialEq, Debug)]
struct Row {
    content: Vec<u64>,
    stamp: Stamp,
    settled: Generation,
    /// The step that adopted it.
    adopted: u64,
}

/// The objects of one index in both layers.
#[derive(Clone, PartialEq, Debug, Default)]
struct State {
    rows: [Option<Row>; 2],
}

impl State {
    fn shown(&self, layer: usize) -> Option<&Row> {
        self.rows[..=layer].iter().rev().flatten().next()
    }

    fn top(&self) -> Option<usize> {
        (0..2).rev().find(|&layer| self.rows[layer].is_some())
    }

    fn content(&self, layer: usize) -> Vec<u64> {
        self.shown(layer).map_or(vec![0; BLOCKS], |row| row.content.clone())
    }
}

/// What was done, and how much of it is promised.
#[derive(Clone, Debug)]
struct Promised<T> {
    /// By step; the first is from before.
    steps: Vec<(u64, T)>,
    answered: usize,
    flushed: usize,
}

impl<T: Clone> Promised<T> {
    fn new(first: T) -> Promised<T> {
        Promised { steps: vec![(0, first)], answered: 0, flushed: 0 }
    }

    fn now(&self) -> &T {
        &self.steps[self.answered].1
    }

    fn is_pending(&self) -> bool {
        self.answered + 1 < self.steps.len()
    }

    /// After a crash this is what is there.
    fn restart(&mut self, at: usize) {
        self.steps.truncate(at + 1);
        (self.answered, self.flushed) = (at, at);
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Mark {
    generation: Generation,
    settled: Stamp,
}

#[derive(Debug)]
enum Asked {
    Change(u32),
    Stage,
    Mark,
    Flush { histories: Vec<usize>, marks: usize },
}

struct Model {
    host: Host,
    random: Random,
    histories: BTreeMap<u32, Promised<State>>,
    marks: Promised<Option<Mark>>,
    asked: BTreeMap<u64, Asked>,
    step: u64,
    generation: u64,
    attempt: u64,
    refused: u64,
    adopted: u64,
    full: u64,
}

fn layer_id(layer: usize) -> LayerId {
    LayerId(layer as u64 + 1)
}

impl Model {
    fn new(seed: u64) -> Model {
        let mut random = Random::new(seed);
        let limit = [14, 40][random.below(2) as usize] << 20;
        let log = [64 << 10, 256 << 10, 1 << 20][random.below(3) as usize];
        let mut host = Host::formatted(64 << 20, Some(limit), log);
        host.open().expect("a new disk opens");
        let (generation, layer, parent) = (Generation(1), LayerId(2), LayerId(1));
        let open = MemberRequest::OpenLayer { lineage: LINEAGE, generation, layer, parent };
        host.ask(open).expect("it is opened");
        let (lineage, settled) = (LINEAGE, Stamp::default());
        host.ask(MemberRequest::Flush { lineage, generation, settled }).expect("it is flushed");
        Model {
            host,
            random,
            histories: INDEXES.map(|index| (index, Promised::new(State::default()))).into(),
            marks: Promised::new(None),
            asked: BTreeMap::new(),
            step: 0,
            generation: 1,
            attempt: 1,
            refused: 0,
            adopted: 0,
            full: 0,
        }
    }

    fn under(&self) -> Under {
        Under { copies: 1, bits: 0, number: ConfigurationNumber(self.refused + 1) }
    }

    fn permit(&self) -> Permit {
        Permit::Attempt { under: self.under(), attempt: self.attempt }
    }

    /// An index of which nothing is on its way.
    fn idle(&mut self) -> Option<u32> {
        let index = INDEXES[self.random.below(INDEXES.len() as u64) as usize];
        let is_idle = !self.histories[&index].is_pending() && !self.marks.is_pending();
        is_idle.then_some(index)
    }

    fn blocks(&mut self, end: u32) -> BlockRange {
        let count = if self.random.chance(4) { 200 } else { 1 + self.random.below(20) as u32 };
        let first = self.random.below(u64::from(end - count + 1)) as u32;
        BlockRange::new(first, count).expect("inside")
    }

    /// New content for some blocks, and as what change it is asked for.
    fn change(&mut self, blocks: BlockRange) -> (Vec<u64>, Change) {
        let count = blocks.count() as usize;
        match self.random.below(8) {
            0 => (vec![0; count], Change::Zero { blocks }),
            1 => (vec![0; count], Change::Absent { blocks }),
            _ => {
                let base = self.step * 4096;
                let new: Vec<u64> = (0..count as u64).map(|at| base + at + 1).collect();
                (new.clone(), data(blocks.first(), &new))
            }
        }
    }

    fn send(&mut self, request: MemberRequest, asked: Asked) {
        let number = self.host.request(request);
        self.asked.insert(number, asked);
    }

    fn push(&mut self, index: u32, state: State) {
        let history = self.histories.get_mut(&index).expect("it is known");
        history.steps.push((self.step, state));
    }

    fn write(&mut self) {
        let Some(index) = self.idle() else { return };
        self.step += 1;
        let mut state = self.histories[&index].now().clone();
        let layer = state.top().unwrap_or(0).max(self.random.below(2) as usize);
        let blocks = self.blocks(BLOCKS_PER_OBJECT);
        let (new, change) = self.change(blocks);
        let stamp = Stamp { generation: Generation(self.generation), sequence: self.step };
        let shown = state.shown(layer);
        let previous = shown.map_or(Stamp::default(), |row| row.stamp);
        if stamp <= previous || previous == Stamp::INCOMPLETE {
            return;
        }
        let mut row = state.rows[layer].clone().unwrap_or_else(|| Row {
            content: state.content(layer),
            stamp,
            settled: shown.map_or(Generation(0), |row| row.settled),
            adopted: 0,
        });
        row.stamp = stamp;
        row.content[blocks.first() as usize..blocks.end() as usize].copy_from_slice(&new);
        state.rows[layer] = Some(row);
        let (key, under) = (ObjectKey { layer: layer_id(layer), index }, self.under());
        let (lineage, settled) = (LINEAGE, Stamp::default());
        let write = Write { lineage, key, under, previous, stamp, settled, change };
        self.push(index, state);
        self.send(MemberRequest::Write(write), Asked::Change(index));
    }

    /// Content is staged in some parts and adopted, without waiting in between.
    fn adopt(&mut self) {
        let Some(index) = self.idle() else { return };
        self.step += 1;
        let mut state = self.histories[&index].now().clone();
        let layer = state.top().unwrap_or(0).max(self.random.below(2) as usize);
        let (permit, lineage) = (self.permit(), LINEAGE);
        let key = ObjectKey { layer: layer_id(layer), index };
        let mut content = state.content(layer);
        let mut staged = 0;
        let parts = self.random.below(4);
        let whole = self.random.chance(6);
        for part in 0..4u32 {
            if !whole && u64::from(part) >= parts {
                continue;
            }
            // Each part in a page of its own, if not all of it.
            let inside = match whole {
                true => BlockRange::new(0, 256).expect("inside"),
                false => self.blocks(256),
            };
            let first = part * 256 + inside.first();
            let blocks = BlockRange::new(first, inside.count()).expect("inside");
            let (new, change) = self.change(blocks);
            content[blocks.first() as usize..blocks.end() as usize].copy_from_slice(&new);
            staged += blocks.count();
            self.send(MemberRequest::Stage { permit, lineage, key, change }, Asked::Stage);
            if self.random.chance(3) {
                self.host.poll();
                self.complete();
            }
            self.take_replies();
        }
        let generation = 1 + self.random.below(self.generation);
        let stamp = match self.random.below(10) {
            0 => Stamp::INCOMPLETE,
            _ => Stamp { generation: Generation(generation), sequence: self.step },
        };
        let settled = Generation(generation + self.random.below(self.generation - generation + 1));
        state.rows[layer] = Some(Row { content, stamp, settled, adopted: self.step });
        self.push(index, state);
        let settled_generation = settled;
        let adopt =
            MemberRequest::Adopt { permit, lineage, key, staged, stamp, settled_generation };
        self.send(adopt, Asked::Change(index));
    }

    fn retract(&mut self) {
        let Some(index) = self.idle() else { return };
        self.step += 1;
        let mut state = self.histories[&index].now().clone();
        let Some(layer) = state.top() else { return };
        state.rows[layer] = None;
        let (permit, lineage) = (self.permit(), LINEAGE);
        let key = ObjectKey { layer: layer_id(layer), index };
        self.push(index, state);
        self.send(MemberRequest::Retract { permit, lineage, key }, Asked::Change(index));
    }

    fn mark(&mut self) {
        if self.marks.is_pending() || self.histories.values().any(Promised::is_pending) {
            return;
        }
        self.step += 1;
        self.generation += 1;
        let generation = Generation(self.generation);
        let sequence = self.random.below(self.step);
        let of = Generation(1 + self.random.below(self.generation - 1));
        let settled = Stamp { generation: of, sequence };
        self.marks.steps.push((self.step, Some(Mark { generation, settled })));
        let (lineage, refusals) = (LINEAGE, 0);
        let confirm = MemberRequest::Confirm { lineage, generation, refusals };
        let number = self.host.request(confirm);
        let Some(Ok(MemberReply::Confirmed { refusals, .. })) = self.host.replies.remove(&number)
        else {
            panic!("it is answered from memory")
        };
        let mark = MemberRequest::Mark { lineage, generation, settled, refusals };
        self.send(mark, Asked::Mark);
    }

    fn flush(&mut self) {
        let histories = self.histories.values().map(|history| history.answered).collect();
        let marks = self.marks.answered;
        let (lineage, generation) = (LINEAGE, Generation(self.generation));
        let settled = Stamp::default();
        let flush = MemberRequest::Flush { lineage, generation, settled };
        self.send(flush, Asked::Flush { histories, marks });
    }

    /// A newer attempt: what the one before has staged is gone, also if it is adopted just now.
    fn refuse(&mut self) {
        let request = |attempt, number| {
            let partitions = vec![(PartitionId(0), ConfigurationNumber(number))];
            MemberRequest::Refuse(Batch { copies: 1, bits: 0, partitions, attempt })
        };
        if self.asked.values().any(|asked| !matches!(asked, Asked::Flush { .. })) {
            return;
        }
        let number = self.host.request(request(self.attempt + 1, self.refused + 1));
        for _ in 0..10_000 {
            self.host.poll();
            if let Some(reply) = self.host.replies.remove(&number) {
                match reply {
                    Ok(_) => (self.attempt, self.refused) = (self.attempt + 1, self.refused + 1),
                    Err(error) => assert_eq!(error, MemberError::Busy),
                }
                return self.take_replies();
            }
            self.complete();
        }
        panic!("it is never answered");
    }

    fn take_replies(&mut self) {
        for (number, reply) in std::mem::take(&mut self.host.replies) {
            match (self.asked.remove(&number).expect("it was asked"), reply) {
                (Asked::Change(index), reply) => {
                    let history = self.histories.get_mut(&index).expect("it is known");
                    assert!(history.is_pending());
                    match reply {
                        Ok(_) => {
                            history.answered += 1;
                            self.adopted += 1;
                        }
                        Err(MemberError::Busy | MemberError::NotStaged { .. }) => {
                            history.steps.pop();
                        }
                        Err(MemberError::NoSpace) => {
                            self.full += 1;
                            history.steps.pop();
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                (Asked::Stage, Ok(MemberReply::Done)) => {}
                (Asked::Stage, Err(MemberError::NoSpace)) => self.full += 1,
                // Only what was left of an adoption that failed is in the way.
                (
                    Asked::Stage,
                    Err(
                        MemberError::Busy | MemberError::Invalid(_) | MemberError::NotStaged { .. },
                    ),
                ) => {}
                (Asked::Mark, Ok(MemberReply::Done)) => self.marks.answered += 1,
                (Asked::Mark, Err(MemberError::Busy)) => drop(self.marks.steps.pop()),
                (Asked::Flush { histories, marks }, Ok(MemberReply::Flushed { .. })) => {
                    for (history, flushed) in self.histories.values_mut().zip(histories) {
                        history.flushed = history.flushed.max(flushed);
                    }
                    self.marks.flushed = self.marks.flushed.max(marks);
                }
                (asked, reply) => panic!("{asked:?}: {reply:?}"),
            }
        }
    }

    fn complete(&mut self) {
        let under_way = self.host.in_flight() as u64;
        if under_way > 0 {
            let at = self.random.below(under_way) as usize;
            self.host.complete(at);
        }
    }

    fn one(&mut self) {
        match self.random.below(24) {
            0..4 => self.write(),
            4..7 => self.adopt(),
            7 => self.retract(),
            8 => self.mark(),
            9 => self.flush(),
            10 if self.random.chance(6) => self.refuse(),
            11 => self.host.now = self.host.now + Duration::from_millis(self.random.below(300)),
            12..17 => self.host.poll(),
            _ => self.complete(),
        }
        self.take_replies();
    }

    fn crash(&mut self, power: bool) {
        self.host.crash(&mut self.random, power);
        self.asked.clear();
        let report = check::check(&mut &self.host.medium.written[..]).expect("it opens");
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
        assert_eq!(report.leaked_blocks, 0, "what was staged is still there");
        self.host.open().expect("it opens");
        self.host.store().check();
        let mark = self.found_mark(power);
        for index in INDEXES {
            self.found_state(index, mark, power);
        }
        // What was refused stays refused, and older attempts are over.
        let partitions = vec![(PartitionId(0), ConfigurationNumber(1))];
        let attempt = self.attempt - 1;
        let old = Batch { copies: 1, bits: 0, partitions, attempt };
        if self.refused > 0 {
            let reply = self.host.ask(MemberRequest::Refuse(old));
            assert!(matches!(reply, Err(MemberError::Superseded { .. })), "{reply:?}");
            let (lineage, generation) = (LINEAGE, Generation::SEALED);
            let confirm = MemberRequest::Confirm { lineage, generation, refusals: 0 };
            let Ok(MemberReply::Confirmed { refused, .. }) = self.host.ask(confirm) else {
                panic!("it is confirmed")
            };
            // One that was not answered may be there, too.
            let number = refused[0].under.number.0;
            assert!(number >= self.refused, "a refusal is lost");
            self.refused = number;
        }
    }

    /// Which mark is there.
    fn found_mark(&mut self, power: bool) -> (u64, Option<Mark>) {
        let Ok(MemberReply::Lineages { lineages, .. }) =
            self.host.ask(MemberRequest::Lineages { after: LineageId(0) })
        else {
            panic!("they are listed")
        };
        let by = lineages.first().map_or(Generation(0), |lineage| lineage.marked_by);
        let at = self
            .marks
            .steps
            .iter()
            .rposition(|(_, mark)| mark.map_or(Generation(0), |mark| mark.generation) == by);
        let at = at.expect("the mark was set");
        assert!(at >= self.marks.flushed, "a flushed mark is lost");
        assert!(power || at >= self.marks.answered, "an answered mark is lost");
        self.marks.restart(at);
        self.marks.steps[at]
    }

    /// Which state of an index is there: all of it must be.
    fn found_state(&mut self, index: u32, (marked, mark): (u64, Option<Mark>), power: bool) {
        let mut found = Vec::new();
        for layer in 0..2 {
            let key = ObjectKey { layer: layer_id(layer), index };
            let (lineage, generation) = (LINEAGE, Generation::SEALED);
            let stamp = match self.host.ask(MemberRequest::Stamp { lineage, key, generation }) {
                Ok(MemberReply::Stamp(found)) => found,
                other => panic!("{other:?}"),
            };
            let mut content = Vec::new();
            for first in (0..BLOCKS_PER_OBJECT).step_by(256) {
                let blocks = BlockRange::new(first, 256).expect("inside");
                let (under, lineage) = (None, LINEAGE);
                let read = MemberRequest::Read { lineage, key, generation, under, blocks };
                content.extend(values(&self.host.ask(read).expect("it is read")));
            }
            found.push((stamp.stamp, stamp.settled_generation, content));
        }
        let history = self.histories.get_mut(&index).expect("it is known");
        let settled_by = |row: Option<&Row>| match row {
            Some(row) if row.stamp == Stamp::INCOMPLETE => Generation(0),
            Some(row) => {
                let counts = |mark: &Mark| marked > row.adopted && row.stamp <= mark.settled;
                let marked = mark.filter(counts).map_or(Generation(0), |mark| mark.generation);
                row.settled.max(row.stamp.generation).max(marked)
            }
            None => mark.map_or(Generation(0), |mark| mark.generation),
        };
        let is_it = |(_, state): &(u64, State)| {
            (0..2).all(|layer| {
                let row = state.shown(layer);
                let stamp = row.map_or(Stamp::default(), |row| row.stamp);
                (stamp, settled_by(row), state.content(layer)) == found[layer]
            })
        };
        let at = history.steps.iter().rposition(is_it);
        let at = at.unwrap_or_else(|| {
            let short = found.iter().map(|(stamp, settled, _)| (stamp, settled));
            panic!("{index}: as it never was: {:?}, mark {mark:?}", short.collect::<Vec<_>>())
        });
        assert!(at >= history.flushed, "{index}: a flushed change is lost");
        assert!(power || at >= history.answered, "{index}: an answered change is lost");
        let before = history.steps.iter().filter(|(step, _)| *step < marked).count();
        assert!(at + 1 >= before, "{index}: a mark is there before what it is about");
        history.restart(at);
    }

    fn finish(mut self) -> (u64, u64) {
        self.host.settle();
        self.take_replies();
        assert!(self.asked.is_empty(), "requests hang: {:?}", self.host.store().status());
        self.flush();
        self.host.settle();
        self.take_replies();
        self.crash(true);
        self.host.close();
        self.host.open().expect("it opens");
        self.crash(false);
        for layer in [LayerId(2), LayerId(1)] {
            self.host.event(Event::DropLayer { lineage: LINEAGE, layer });
        }
        self.host.pass(Duration::from_secs(60));
        self.host.store().check();
        let status = self.host.store().status();
        assert_eq!((status.space.data_bytes, status.space.map_bytes), (0, 0), "{status:?}");
        assert_eq!((status.objects, status.space.staged_bytes), (0, 0));
        (self.adopted, self.full)
    }
}

fn run(seed: u64) -> (u64, u64) {
    let mut model = Model::new(seed);
    let crash_every = 150 + model.random.below(700);
    for _ in 0..1500 {
        model.one();
        if model.random.chance(crash_every) {
            let power = model.random.chance(2);
            model.crash(power);
        }
        if model.random.chance(300) {
            model.host.store().check();
        }
    }
    model.finish()
}

#[test]
fn copies_survive_random_requests_and_crashes() {
    let one = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = one.map_or(1..11, |seed| seed..seed + 1);
    let many = seeds.end - seeds.start > 1;
    let (mut adopted, mut full) = (0, 0);
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| run(seed));
        let outcome = outcome.unwrap_or_else(|_| panic!("failed with SEED={seed}"));
        (adopted, full) = (adopted + outcome.0, full + outcome.1);
    }
    assert!(!many || (adopted > 500 && full > 0), "{adopted} changes, {full} without space");
}
