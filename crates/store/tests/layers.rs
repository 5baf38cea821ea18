//! Random trees of layers, compared with an obvious model: every layer shows what was written to it
//! and to those it descends from, whatever is dropped around it and whenever it crashes; every
//! block has one owner; and when all layers are gone so is everything they used.

mod support;

use proto::{
    BLOCKS_PER_OBJECT, BlockRange, BlockState, Change, ConfigurationNumber, Duration, Generation,
    LayerId, MemberError, MemberReply, MemberRequest, ObjectKey, Stamp, Under, Write,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use store::{Event, ScrubRate, check};
use support::{GENERATION, Host, LINEAGE, Random, data, stamp, values};

/// What a layer shows of an object: absent blocks are not in it, 0 is a zero entry.
type View = BTreeMap<u32, u64>;

/// One write.
#[derive(Clone, Debug)]
struct Step {
    layer: LayerId,
    first: u32,
    /// `None`: absent.
    values: Vec<Option<u64>>,
}

/// One index: all writes to it in any layer, in order; the stamp is the number, from 1.
#[derive(Clone, Default, Debug)]
struct History {
    steps: Vec<Step>,
    acknowledged: usize,
    flushed: usize,
}

#[derive(Debug)]
enum Asked {
    Write { index: u32, step: usize },
    Read { key: ObjectKey, blocks: BlockRange, expected: View },
    Flush { acknowledged: BTreeMap<u32, usize> },
}

struct Model {
    host: Host,
    random: Random,
    /// The layer each layer was opened above, for all there ever were.
    origins: BTreeMap<LayerId, LayerId>,
    /// Those that were not dropped, and what lies below them among these.
    parents: BTreeMap<LayerId, LayerId>,
    dropped: BTreeSet<LayerId>,
    head: LayerId,
    histories: BTreeMap<u32, History>,
    asked: BTreeMap<u64, Asked>,
    next_value: u64,
    reclaimed: u64,
    /// After so many steps it crashes: crashes while layers go matter most.
    crash_after: Option<u64>,
}

const LAYERS_MAX: usize = 5;
const INDEXES: u64 = 3;

impl Model {
    fn new(seed: u64) -> Model {
        let mut random = Random::new(seed);
        let limit = Some(if random.chance(3) { 12 << 20 } else { 48 << 20 });
        let log = [64 << 10, 128 << 10, 1 << 20][random.below(3) as usize];
        let mut host = Host::formatted(64 << 20, limit, log);
        host.scrub = ScrubRate([0, 1 << 30][random.below(2) as usize]);
        host.open().expect("a new disk opens");
        Model {
            host,
            random,
            origins: BTreeMap::from([(LayerId(1), LayerId(0))]),
            parents: BTreeMap::from([(LayerId(1), LayerId(0))]),
            dropped: BTreeSet::new(),
            head: LayerId(1),
            histories: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_value: 0,
            reclaimed: 0,
            crash_after: None,
        }
    }

    /// A layer and all it descends from.
    fn line(&self, layer: LayerId) -> Vec<LayerId> {
        let next = |at: &LayerId| self.origins.get(at).copied().filter(|parent| parent.0 != 0);
        std::iter::successors(Some(layer), next).collect()
    }

    /// The last step up to `until` that a layer shows, and what it shows then.
    fn view(&self, key: ObjectKey, until: usize) -> (usize, View) {
        let line = self.line(key.layer);
        let (mut last, mut view) = (0, View::new());
        let Some(history) = self.histories.get(&key.index) else { return (0, view) };
        for (number, step) in (1..=until).zip(&history.steps) {
            if !line.contains(&step.layer) {
                continue;
            }
            last = number;
            for (block, value) in (step.first..).zip(&step.values) {
                match value {
                    Some(value) => view.insert(block, *value),
                    None => view.remove(&block),
                };
            }
        }
        (last, view)
    }

    fn now(&self, key: ObjectKey) -> (usize, View) {
        self.view(key, usize::MAX)
    }

    fn index(&mut self) -> u32 {
        self.random.below(INDEXES) as u32 * 40
    }

    fn blocks(&mut self) -> BlockRange {
        let (first, count) = match self.random.below(8) {
            0 => (self.random.below(4) * 256, 256),
            1 => (self.random.below(700), 1 + self.random.below(300)),
            _ => (self.random.below(4) * 256 + self.random.below(12), 1 + self.random.below(6)),
        };
        BlockRange::new(first as u32, count.min(256) as u32).expect("inside")
    }

    fn write(&mut self) {
        let (index, blocks) = (self.index(), self.blocks());
        let count = blocks.count() as usize;
        let (change, values) = match self.random.below(6) {
            0 => (Change::Zero { blocks }, vec![Some(0); count]),
            1 => (Change::Absent { blocks }, vec![None; count]),
            _ => {
                let base = self.next_value;
                self.next_value += count as u64;
                let new: Vec<u64> = (1..=count as u64).map(|at| base + at).collect();
                (data(blocks.first(), &new), new.into_iter().map(Some).collect())
            }
        };
        let key = ObjectKey { layer: self.head, index };
        let (previous, _) = self.now(key);
        let history = self.histories.entry(index).or_default();
        history.steps.push(Step { layer: key.layer, first: blocks.first(), values });
        let step = history.steps.len();
        let number = self.host.request(MemberRequest::Write(Write {
            lineage: LINEAGE,
            key,
            under: Under { copies: 1, bits: 12, number: ConfigurationNumber(1) },
            previous: stamp(previous as u64),
            stamp: stamp(step as u64),
            settled: Stamp::default(),
            change,
        }));
        self.asked.insert(number, Asked::Write { index, step });
    }

    fn any_layer(&mut self) -> LayerId {
        let at = self.random.below(self.parents.len() as u64) as usize;
        *self.parents.keys().nth(at).expect("there is one")
    }

    fn read(&mut self) {
        let (layer, index, blocks) = (self.any_layer(), self.index(), self.blocks());
        let key = ObjectKey { layer, index };
        let quiet = self.histories.get(&index).is_none_or(|h| h.acknowledged == h.steps.len());
        if !quiet {
            return;
        }
        let (_, expected) = self.now(key);
        let generation = if layer == self.head { GENERATION } else { Generation::SEALED };
        let request =
            MemberRequest::Read { lineage: LINEAGE, key, generation, under: None, blocks };
        let number = self.host.request(request);
        self.asked.insert(number, Asked::Read { key, blocks, expected });
    }

    fn flush(&mut self) {
        let acknowledged = self.histories.iter().map(|(&i, h)| (i, h.acknowledged)).collect();
        let request = MemberRequest::Flush {
            lineage: LINEAGE,
            generation: GENERATION,
            settled: Stamp::default(),
        };
        let number = self.host.request(request);
        self.asked.insert(number, Asked::Flush { acknowledged });
    }

    fn ask(&mut self, request: MemberRequest) -> MemberReply {
        for _ in 0..1000 {
            match self.host.ask(request.clone()) {
                Err(MemberError::Busy) => drop(self.host.complete(0)),
                reply => return reply.expect("it is not refused"),
            }
        }
        panic!("busy for ever");
    }

    fn open(&mut self, layer: LayerId, parent: LayerId) {
        let (lineage, generation) = (LINEAGE, GENERATION);
        self.ask(MemberRequest::OpenLayer { lineage, generation, layer, parent });
    }

    /// A snapshot of the head, or with a layer below a rollback to it. Writes may be under way.
    fn begin_layer(&mut self, parent: LayerId) {
        let last = self.origins.keys().next_back().expect("there is one");
        let layer = LayerId(last.0 + 1 + self.random.below(3));
        self.open(layer, parent);
        self.origins.insert(layer, parent);
        self.parents.insert(layer, parent);
        self.head = layer;
    }

    fn change_tree(&mut self) {
        if self.parents.len() >= LAYERS_MAX || self.random.chance(3) {
            return self.drop_some_layer();
        }
        if self.random.chance(3) {
            let parent = self.any_layer();
            // What is under way in the layer that is left would be lost to no view.
            if self.asked.is_empty() {
                self.begin_layer(parent);
            }
        } else {
            self.begin_layer(self.head);
        }
    }

    /// A layer that the map would drop now: not written, with at most one above it.
    fn drop_some_layer(&mut self) {
        let layer = self.any_layer();
        let above = self.parents.values().filter(|&&parent| parent == layer).count();
        if layer != self.head && above <= 1 && self.asked.is_empty() {
            // The map lets a layer go when the disks know for good what lies above it.
            let (lineage, generation) = (LINEAGE, GENERATION);
            self.ask(MemberRequest::Flush { lineage, generation, settled: Stamp::default() });
            self.drop_layer(layer);
            if self.random.chance(3) {
                self.crash_after = Some(self.random.below(80));
            }
        }
    }

    fn drop_layer(&mut self, layer: LayerId) {
        let below = self.parents.remove(&layer).expect("it is there");
        for parent in self.parents.values_mut().filter(|parent| **parent == layer) {
            *parent = below;
        }
        self.dropped.insert(layer);
        self.host.event(Event::DropLayer { lineage: LINEAGE, layer });
    }

    fn take_replies(&mut self) {
        for (number, reply) in std::mem::take(&mut self.host.replies) {
            match (self.asked.remove(&number).expect("it was asked"), reply) {
                (Asked::Write { index, step }, Ok(MemberReply::Written { .. })) => {
                    let history = self.histories.get_mut(&index).expect("it was written");
                    assert_eq!(history.acknowledged, step - 1, "acknowledged out of order");
                    history.acknowledged = step;
                }
                (Asked::Write { index, step }, Err(MemberError::NoSpace)) => {
                    let history = self.histories.get_mut(&index).expect("it was written");
                    history.steps.truncate(step - 1);
                }
                (Asked::Write { index, step }, Err(MemberError::WrongStamp { .. })) => {
                    assert!(step > self.histories[&index].steps.len(), "refused without cause");
                }
                (Asked::Read { key, blocks, expected }, reply) => {
                    let reply = reply.expect("a read does not fail");
                    let now = self.now(key).1;
                    let found = shown(&reply, &blocks);
                    for block in blocks.iter() {
                        let (found, wanted) = (found.get(&block), expected.get(&block));
                        // Writes sent after the read may have overtaken it.
                        let overtaken = now.get(&block) != wanted;
                        assert!(
                            found == wanted || overtaken,
                            "{key} {block}: {found:?} {wanted:?}"
                        );
                    }
                }
                (Asked::Flush { acknowledged }, Ok(MemberReply::Flushed { .. })) => {
                    for (index, steps) in acknowledged {
                        let history = self.histories.get_mut(&index).expect("it was written");
                        history.flushed = history.flushed.max(steps);
                    }
                }
                (asked, reply) => panic!("{asked:?} was answered {reply:?}"),
            }
        }
    }

    fn step(&mut self) {
        let refusals = self.asked.values().any(|asked| {
            matches!(asked, Asked::Write { index, step }
                if *step > self.histories[index].steps.len())
        });
        match self.random.below(28) {
            0..8 if !refusals && self.asked.len() < 30 => self.write(),
            8..10 if !refusals => self.read(),
            10 => self.flush(),
            11 if !refusals && self.random.chance(2) => self.change_tree(),
            12 => self.host.now = self.host.now + Duration::from_millis(self.random.below(300)),
            13..17 => self.host.poll(),
            17 if self.random.chance(8) => {
                self.host.settle();
                self.take_replies();
                self.compare_all();
            }
            _ => {
                let under_way = self.host.in_flight() as u64;
                if under_way > 0 {
                    let at = self.random.below(under_way) as usize;
                    self.host.complete(at);
                }
            }
        }
        self.take_replies();
    }

    fn crash(&mut self, power: bool) {
        self.host.crash(&mut self.random, power);
        self.asked.clear();
        let report = check::check(&mut &self.host.medium.written[..]).expect("it opens");
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
        self.host.open().expect("it opens");
        self.host.store().check();
        // What the map says, in the order in which a node learns it.
        for &layer in &self.dropped.clone() {
            self.host.event(Event::DropLayer { lineage: LINEAGE, layer });
        }
        for (layer, parent) in self.parents.clone() {
            if layer.0 != LINEAGE.0 {
                self.open(layer, parent);
            }
        }
        for index in self.histories.keys().copied().collect::<Vec<_>>() {
            self.truncate(index, power);
        }
        self.compare_all();
    }

    /// Finds how much of a history is there: as much in every layer.
    fn truncate(&mut self, index: u32, power: bool) {
        let layers: Vec<LayerId> = self.parents.keys().copied().collect();
        let mut found = BTreeMap::new();
        for layer in layers {
            let key = ObjectKey { layer, index };
            let request = MemberRequest::Stamp { lineage: LINEAGE, key, generation: GENERATION };
            let MemberReply::Stamp(at) = self.ask(request) else { panic!("no stamp") };
            found.insert(key, at.stamp.sequence as usize);
        }
        let last = found.values().copied().max().unwrap_or(0);
        let history = &self.histories[&index];
        let floor = if power { history.flushed } else { history.acknowledged };
        assert!(last <= history.steps.len(), "{index}: invented");
        for (key, at) in found {
            assert_eq!(at, self.view(key, last).0, "{key} is no part of one history");
            let promised = self.view(key, floor).0;
            assert!(at >= promised, "{key} is at {at}, but {promised} was promised");
        }
        // Those of layers that are gone are not missed.
        let history = self.histories.get_mut(&index).expect("it is there");
        history.steps.truncate(last);
        (history.acknowledged, history.flushed) = (last, last);
    }

    /// Compares what every layer shows, and once nothing is being dropped what it uses.
    fn compare_all(&mut self) {
        let indexes: Vec<u32> = self.histories.keys().copied().collect();
        for layer in self.parents.keys().copied().collect::<Vec<_>>() {
            for &index in &indexes {
                self.compare(ObjectKey { layer, index });
            }
        }
        self.host.store().check();
        if self.host.store().status().layers_dropping == 0 && self.asked.is_empty() {
            for layer in self.parents.keys().copied().collect::<Vec<_>>() {
                self.compare_usage(layer);
            }
        }
        self.take_replies();
    }

    fn compare(&mut self, key: ObjectKey) {
        let (lineage, generation) = (LINEAGE, Generation::SEALED);
        if self.histories[&key.index].acknowledged != self.histories[&key.index].steps.len() {
            return;
        }
        let (_, wanted) = self.now(key);
        let mut found = View::new();
        for first in (0..BLOCKS_PER_OBJECT).step_by(256) {
            let blocks = BlockRange::new(first, 256).expect("inside");
            let reply =
                self.ask(MemberRequest::Read { lineage, key, generation, under: None, blocks });
            found.append(&mut shown(&reply, &blocks));
        }
        assert_eq!(found, wanted, "{key}");
        let blocks = BlockRange::whole();
        let map = self.ask(MemberRequest::Map { lineage, key, generation, under: None, blocks });
        let MemberReply::Map(map) = map else { panic!("{map:?}") };
        let state = |block: u32| match wanted.get(&block) {
            None => BlockState::Absent,
            Some(0) => BlockState::Zero,
            Some(_) => BlockState::Data,
        };
        assert!(expand(&map).into_iter().eq(blocks.iter().map(state)), "the map of {key}");
        let bases: Vec<LayerId> =
            self.line(key.layer).into_iter().filter(|l| self.parents.contains_key(l)).collect();
        for base in bases.into_iter().chain([LayerId(0)]) {
            let old = if base.0 == 0 {
                View::new()
            } else {
                self.now(ObjectKey { layer: base, ..key }).1
            };
            let reply = self.ask(MemberRequest::Difference {
                lineage,
                key,
                generation,
                under: None,
                base,
                blocks,
            });
            let MemberReply::Difference(runs) = reply else { panic!("{reply:?}") };
            let wanted =
                blocks.iter().map(|at| (wanted.get(&at) != old.get(&at)).then(|| state(at)));
            assert!(expand(&runs).into_iter().eq(wanted), "{key} from {base}");
        }
    }

    /// The data that a layer shows, of all its objects.
    fn data_of(&self, layer: LayerId) -> BTreeSet<u64> {
        let views = self.histories.keys().map(|&index| self.now(ObjectKey { layer, index }).1);
        views.flat_map(View::into_values).filter(|&value| value != 0).collect()
    }

    fn compare_usage(&mut self, layer: LayerId) {
        let below = self.data_of(self.parents[&layer]);
        let owned: BTreeSet<u64> = self.data_of(layer).difference(&below).copied().collect();
        let usage = self.host.store().usage(layer);
        assert_eq!(usage.data_blocks, owned.len() as u64, "what layer {layer} owns");
        let children: Vec<LayerId> =
            self.parents.iter().filter(|(_, p)| **p == layer).map(|(l, _)| *l).collect();
        let wanted = match children.as_slice() {
            [] => owned.len(),
            [child] => owned.difference(&self.data_of(*child)).count(),
            _ => 0,
        };
        let (mut found, mut next) = (0, Some(0));
        while let Some(index) = next {
            let (lineage, generation) = (LINEAGE, Generation::SEALED);
            if !self.origins.contains_key(&layer) || self.host.store().usage(layer).objects == 0 {
                break;
            }
            let request = MemberRequest::Reclaimable { lineage, generation, layer, index };
            let reply = self.ask(request);
            let MemberReply::Reclaimable { blocks, next_index } = reply else {
                panic!("{reply:?}")
            };
            found += blocks;
            next = next_index;
        }
        assert_eq!(found, wanted as u64, "what dropping layer {layer} would free");
        self.reclaimed += found;
    }

    /// Drops everything in any order: no block may be left.
    fn finish(mut self) -> u64 {
        self.host.settle();
        self.take_replies();
        assert!(self.asked.is_empty(), "requests hang: {:?}", self.host.store().status());
        for history in self.histories.values_mut() {
            (history.acknowledged, history.flushed) = (history.steps.len(), history.steps.len());
        }
        self.host.close();
        self.host.medium.cut_power(&mut self.random);
        self.host.open().expect("it opens");
        self.crash(true);
        while !self.parents.is_empty() {
            let layer = self.any_layer();
            self.drop_layer(layer);
            if self.random.chance(2) {
                self.host.pass(Duration::from_secs(10));
                self.compare_all();
            }
        }
        self.host.pass(Duration::from_secs(60));
        self.host.store().check();
        let status = self.host.store().status();
        assert_eq!((status.space.data_bytes, status.space.map_bytes), (0, 0), "{status:?}");
        assert_eq!((status.objects, status.layers_dropping, status.lost_blocks), (0, 0, 0));
        assert!(self.host.store().layers().is_empty(), "{:?}", self.host.store().layers());
        self.reclaimed
    }
}

/// What a read brought: zeros that are not absent are zero entries.
fn shown(reply: &MemberReply, blocks: &BlockRange) -> View {
    let MemberReply::Data { absent, .. } = reply else { panic!("{reply:?}") };
    let view = blocks.iter().zip(values(reply));
    view.filter(|(block, _)| !absent.iter().any(|range| range.iter().any(|at| at == *block)))
        .collect()
}

fn expand<S: Clone>(runs: &[(u32, S)]) -> Vec<S> {
    let mut all = Vec::new();
    for (count, state) in runs {
        all.extend(std::iter::repeat_n(state.clone(), *count as usize));
    }
    all
}

fn run(seed: u64, steps: u64) -> u64 {
    let mut model = Model::new(seed);
    let crash_every = 100 + model.random.below(1500);
    for _ in 0..steps {
        model.step();
        let due = model.crash_after == Some(0);
        model.crash_after = model.crash_after.and_then(|steps| steps.checked_sub(1));
        if due || model.random.chance(crash_every) {
            let power = model.random.chance(2);
            model.crash(power);
        }
        if model.random.chance(200) {
            model.host.store().check();
        }
    }
    model.finish()
}

#[test]
fn every_layer_keeps_its_content_whatever_happens_around_it() {
    let one = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    check_seeds(one.map_or(1..21, |seed| seed..seed + 1));
}

/// The other half of the seeds, for the other core.
#[test]
fn every_layer_keeps_its_content_with_other_seeds() {
    check_seeds(21..41);
}

fn check_seeds(seeds: Range<u64>) {
    let mut reclaimed = 0;
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| run(seed, 2500));
        reclaimed += outcome.unwrap_or_else(|_| panic!("failed with SEED={seed}"));
    }
    assert!(reclaimed > 0, "no layer had anything of its own");
}
