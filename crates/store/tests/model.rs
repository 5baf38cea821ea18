//! Random requests, completions and crashes, compared with an obvious model of the promises:
//! what was flushed is there; what was acknowledged is there after a kill, and there or legally
//! lost after a power cut; each object is a prefix of its history; the disk is whole.

mod support;

use proto::{
    BLOCKS_PER_OBJECT, BlockRange, Change, Duration, LayerId, MemberError, MemberReply,
    MemberRequest, ObjectKey, Stamp,
};
use std::collections::BTreeMap;
use std::ops::Range;
use store::{DamagedPart, Event, Notice, ScrubCommand, ScrubRate, check};
use support::{GENERATION, Host, LINEAGE, Random, data, stamp, values, write};

/// What one write does to the values of blocks.
#[derive(Clone, Debug)]
struct Step {
    first: u32,
    values: Vec<u64>,
}

/// One object: its history, and how much of it is promised.
#[derive(Clone, Default, Debug)]
struct Object {
    history: Vec<Step>,
    acknowledged: usize,
    flushed: usize,
}

impl Object {
    fn content(&self, steps: usize) -> Vec<u64> {
        let mut content = vec![0; BLOCKS_PER_OBJECT as usize];
        for step in &self.history[..steps] {
            let first = step.first as usize;
            content[first..first + step.values.len()].copy_from_slice(&step.values);
        }
        content
    }
}

enum Asked {
    Write { key: ObjectKey, step: usize },
    Read { key: ObjectKey, blocks: BlockRange, expected: Vec<u64> },
    Flush { acknowledged: BTreeMap<ObjectKey, usize> },
}

struct Model {
    host: Host,
    random: Random,
    objects: BTreeMap<ObjectKey, Object>,
    asked: BTreeMap<u64, Asked>,
    next_value: u64,
    layer: u64,
    full: u64,
}

impl Model {
    fn new(seed: u64) -> Model {
        let mut random = Random::new(seed);
        let capacity = if random.chance(3) { 7 << 20 } else { 64 << 20 };
        let limit = if random.chance(3) { Some(12 << 20) } else { None };
        let log = [64 << 10, 128 << 10, 1 << 20][random.below(3) as usize];
        let mut host = Host::formatted(capacity, limit, log);
        host.scrub = ScrubRate([0, 1 << 20, 1 << 30][random.below(3) as usize]);
        host.open().expect("a new disk opens");
        Model {
            host,
            random,
            objects: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_value: 0,
            layer: 1,
            full: 0,
        }
    }

    fn key(&mut self) -> ObjectKey {
        let index = self.random.below(6) as u32 * 50;
        ObjectKey { layer: LayerId(self.layer), index }
    }

    fn blocks(&mut self) -> BlockRange {
        let count = if self.random.chance(8) {
            1 + self.random.below(256)
        } else {
            1 + self.random.below(8)
        };
        let place = if self.random.chance(2) { 16 } else { u64::from(BLOCKS_PER_OBJECT) };
        let first = self.random.below(place).min(u64::from(BLOCKS_PER_OBJECT) - count);
        BlockRange::new(first as u32, count as u32).expect("inside")
    }

    fn write(&mut self) {
        let (key, blocks) = (self.key(), self.blocks());
        let count = blocks.count() as usize;
        let change = match self.random.below(8) {
            0 => Change::Zero { blocks },
            1 => Change::Absent { blocks },
            _ => {
                let base = self.next_value;
                self.next_value += count as u64;
                let zeros = self.random.chance(4);
                let new: Vec<u64> = (0..count as u64)
                    .map(|at| if zeros && self.random.chance(2) { 0 } else { base + at + 1 })
                    .collect();
                data(blocks.first(), &new)
            }
        };
        let new = match &change {
            Change::Data { payload, .. } => {
                let content = vec![payload.clone()];
                values(&MemberReply::Data { content, absent: Vec::new() })
            }
            _ => vec![0; count],
        };
        let object = self.objects.entry(key).or_default();
        object.history.push(Step { first: blocks.first(), values: new });
        let step = object.history.len();
        let number = self.host.request(write(key, step as u64, change));
        self.asked.insert(number, Asked::Write { key, step });
    }

    fn is_quiet(&self, key: ObjectKey) -> bool {
        self.objects.get(&key).is_none_or(|object| object.acknowledged == object.history.len())
    }

    fn read(&mut self) {
        let (key, blocks) = (self.key(), self.blocks());
        if !self.is_quiet(key) {
            return;
        }
        let object = self.objects.entry(key).or_default();
        let content = object.content(object.history.len());
        let expected = content[blocks.first() as usize..blocks.end() as usize].to_vec();
        let request = MemberRequest::Read {
            lineage: LINEAGE,
            key,
            generation: GENERATION,
            under: None,
            blocks,
        };
        let number = self.host.request(request);
        self.asked.insert(number, Asked::Read { key, blocks, expected });
    }

    fn flush(&mut self) {
        let acknowledged = self.objects.iter().map(|(&key, o)| (key, o.acknowledged)).collect();
        let request = MemberRequest::Flush {
            lineage: LINEAGE,
            generation: GENERATION,
            settled: Stamp::default(),
        };
        let number = self.host.request(request);
        self.asked.insert(number, Asked::Flush { acknowledged });
    }

    /// The layer is deleted; a new one is used from now on.
    fn drop_layer(&mut self) {
        if !self.asked.is_empty() {
            return;
        }
        self.host.event(Event::DropLayer { lineage: LINEAGE, layer: LayerId(self.layer) });
        self.layer += 1;
        self.objects.clear();
        self.open_layer();
    }

    /// Without a parent: what was below is gone.
    fn open_layer(&mut self) {
        if self.layer == 1 {
            return;
        }
        let request = MemberRequest::OpenLayer {
            lineage: LINEAGE,
            generation: GENERATION,
            layer: LayerId(self.layer),
            parent: LayerId(0),
        };
        while let Err(error) = self.host.ask(request.clone()) {
            assert_eq!(error, MemberError::Busy);
            self.host.complete(0);
        }
    }

    /// Looks at the answers that have come.
    fn take_replies(&mut self) {
        for (number, reply) in std::mem::take(&mut self.host.replies) {
            match (self.asked.remove(&number).expect("it was asked"), reply) {
                (Asked::Write { key, step }, Ok(MemberReply::Written { .. })) => {
                    let object = self.objects.get_mut(&key).expect("it was written");
                    assert_eq!(object.acknowledged, step - 1, "acknowledged out of order");
                    object.acknowledged = step;
                }
                (Asked::Write { key, step }, Err(MemberError::NoSpace)) => {
                    self.full += 1;
                    let object = self.objects.get_mut(&key).expect("it was written");
                    // Whatever was sent after it is refused too.
                    object.history.truncate(step - 1);
                }
                (Asked::Write { key, step }, Err(MemberError::WrongStamp { .. })) => {
                    let object = self.objects.get_mut(&key).expect("it was written");
                    assert!(step > object.history.len(), "refused without cause");
                }
                (Asked::Read { key, blocks, expected }, reply) => {
                    let found = values(&reply.expect("a read does not fail"));
                    // Writes sent after the read may have overtaken it.
                    let object = &self.objects[&key];
                    let now = object.content(object.history.len());
                    for (at, block) in blocks.iter().enumerate() {
                        let later = now[block as usize];
                        assert!(found[at] == expected[at] || later != expected[at]);
                    }
                }
                (Asked::Flush { acknowledged }, Ok(MemberReply::Flushed { .. })) => {
                    for (key, steps) in acknowledged {
                        if let Some(object) = self.objects.get_mut(&key) {
                            object.flushed = object.flushed.max(steps);
                        }
                    }
                }
                (_, reply) => panic!("unexpected answer {reply:?}"),
            }
        }
    }

    fn has_refusals_to_come(&self) -> bool {
        self.asked.values().any(|asked| {
            matches!(asked, Asked::Write { key, step } if *step > self.objects[key].history.len())
        })
    }

    fn step(&mut self) {
        // After a refusal the later writes of the object are refused too: wait until they are.
        let wait = self.has_refusals_to_come();
        match self.random.below(24) {
            0..8 if !wait && self.asked.len() < 40 => self.write(),
            8..10 if !wait => self.read(),
            10 => self.flush(),
            11 if self.random.chance(40) => self.drop_layer(),
            11 if self.random.chance(20) => self.host.event(Event::Scrub(ScrubCommand::Start)),
            12 => self.host.now = self.host.now + Duration::from_millis(self.random.below(300)),
            13..17 => self.host.poll(),
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

    /// Everything dies and comes back.
    fn crash(&mut self, power: bool) {
        self.host.crash(&mut self.random, power);
        self.asked.clear();
        let report = check::check(&mut &self.host.medium.written[..]).expect("it opens");
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
        self.host.open().expect("it opens");
        self.host.store().check();
        for layer in 1..self.layer {
            self.host.event(Event::DropLayer { lineage: LINEAGE, layer: LayerId(layer) });
        }
        self.open_layer();
        let keys: Vec<ObjectKey> = self.objects.keys().copied().collect();
        for key in keys {
            let steps = self.stamp_of(key).sequence as usize;
            let object = self.objects.get_mut(&key).expect("it is there");
            assert!(steps >= object.flushed, "{key}: a flushed write is lost");
            assert!(power || steps >= object.acknowledged, "{key}: an acknowledged write is lost");
            assert!(steps <= object.history.len(), "{key}: invented");
            object.history.truncate(steps);
            (object.acknowledged, object.flushed) = (steps, steps);
            let content = object.content(steps);
            assert_eq!(self.content_of(key), content, "{key} after {steps} writes");
        }
    }

    fn stamp_of(&mut self, key: ObjectKey) -> Stamp {
        let request = MemberRequest::Stamp { lineage: LINEAGE, key, generation: GENERATION };
        match self.host.ask(request) {
            Ok(MemberReply::Stamp(found)) => found.stamp,
            other => panic!("{other:?}"),
        }
    }

    fn content_of(&mut self, key: ObjectKey) -> Vec<u64> {
        let mut content = Vec::new();
        for first in (0..BLOCKS_PER_OBJECT).step_by(256) {
            let blocks = BlockRange::new(first, 256).expect("inside");
            let request = MemberRequest::Read {
                lineage: LINEAGE,
                key,
                generation: GENERATION,
                under: None,
                blocks,
            };
            content.extend(values(&self.host.ask(request).expect("a read does not fail")));
        }
        content
    }

    /// Closes in order, checks, deletes everything: no block may be left.
    fn finish(mut self) {
        self.host.settle();
        self.take_replies();
        assert!(self.asked.is_empty(), "requests hang: {:?}", self.host.store().status());
        self.host.store().check();
        // Only a superblock may be torn by a crash; whatever else is called damaged is not.
        for notice in &self.host.notices {
            if let Notice::Damaged(damage) = notice {
                assert_eq!(damage.part, DamagedPart::Superblock, "{damage}");
            }
        }
        self.host.close();
        self.host.medium.cut_power(&mut self.random);
        let report = check::check(&mut &self.host.medium.written[..]).expect("it opens");
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
        assert_eq!(report.leaked_blocks, 0);
        let opened = self.host.open().expect("it opens");
        assert!(opened.records_replayed <= 1, "a closed disk has nothing to replay");
        for object in self.objects.values_mut() {
            object.flushed = object.history.len();
        }
        self.crash(true);
        self.host.event(Event::DropLayer { lineage: LINEAGE, layer: LayerId(self.layer) });
        self.host.pass(Duration::from_secs(60));
        self.host.store().check();
        let status = self.host.store().status();
        assert_eq!((status.space.data_bytes, status.space.map_bytes), (0, 0), "{status:?}");
        assert_eq!(status.objects, 0);
        assert!(self.host.store().layers().is_empty());
    }
}

fn run(seed: u64, steps: u64) -> u64 {
    let mut model = Model::new(seed);
    let crash_every = 200 + model.random.below(2000);
    for _ in 0..steps {
        model.step();
        if model.random.chance(crash_every) {
            let power = model.random.chance(2);
            model.crash(power);
        }
        if model.random.chance(500) {
            model.host.store().check();
        }
    }
    let full = model.full;
    model.finish();
    full
}

#[test]
fn survives_random_requests_and_crashes() {
    let one = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    check_seeds(one.map_or(1..31, |seed| seed..seed + 1));
}

/// The other half of the seeds, for the other core.
#[test]
fn survives_random_requests_and_crashes_with_other_seeds() {
    check_seeds(31..61);
}

fn check_seeds(seeds: Range<u64>) {
    let many = seeds.end - seeds.start > 1;
    let mut full = 0;
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| run(seed, 4000));
        full += outcome.unwrap_or_else(|_| panic!("failed with SEED={seed}"));
    }
    assert!(!many || full > 0, "no run met a full disk");
    let _ = stamp(0);
}
