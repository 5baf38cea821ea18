//! A disk as a session sees it: obvious, in memory, and as unkind as a real one may be.

use proto::{
    BLOCK_SIZE, BLOCKS_PER_OBJECT, BlockRange, BlockState, Buffer, Change, Generation, Incarnation,
    LayerId, LineageId, MemberError, MemberReply, MemberRequest, MemberToken, ObjectKey,
    ObjectStamp, Payload, Stamp, Write,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Seeded chance: splitmix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True `times` in a thousand.
    pub(super) fn chance(&mut self, times: u64) -> bool {
        self.below(1000) < times
    }
}

/// How unkind it is: times in a thousand requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    pub(super) busy: u64,
    pub(super) no_space: u64,
    pub(super) corrupt: u64,
}

/// One block of one layer: nothing is what the layer below has.
#[derive(Clone)]
enum Content {
    Absent,
    Zero,
    Data(Payload),
}

/// All layers of an object of one lineage: one history.
#[derive(Clone, Default)]
struct Object {
    stamp: Stamp,
    layers: BTreeMap<LayerId, BTreeMap<u32, Content>>,
    /// Changes since the last flush, oldest first.
    volatile: Vec<(Stamp, LayerId, Change)>,
    /// What is stable.
    stable: Option<Box<Object>>,
}

type Answer = (MemberToken, Result<MemberReply, MemberError>);

/// The disk: questions wait in order, answers lie about until they are delivered in any order.
pub(super) struct FakeDisk {
    pub(super) incarnation: Incarnation,
    pub(super) faults: Faults,
    pub(super) questions: VecDeque<(MemberToken, MemberRequest)>,
    pub(super) answers: Vec<Answer>,
    /// Out of service.
    pub(super) dead: bool,
    fences: BTreeMap<LineageId, Generation>,
    settled: BTreeMap<LineageId, Stamp>,
    objects: BTreeMap<Place, Object>,
    /// What lies below each layer; the first one of a lineage is not listed.
    parents: BTreeMap<LayerId, LayerId>,
    stable_parents: BTreeMap<LayerId, LayerId>,
    dropped: BTreeSet<LayerId>,
    /// Whether a death ever took away something that had been answered.
    pub(super) losses: u64,
    answered: BTreeMap<Place, Stamp>,
}

/// An object in all layers of its lineage.
type Place = (LineageId, u32);

impl FakeDisk {
    pub(super) fn new(faults: Faults) -> FakeDisk {
        FakeDisk {
            incarnation: Incarnation(1),
            faults,
            questions: VecDeque::new(),
            answers: Vec::new(),
            dead: false,
            fences: BTreeMap::new(),
            settled: BTreeMap::new(),
            objects: BTreeMap::new(),
            parents: BTreeMap::new(),
            stable_parents: BTreeMap::new(),
            dropped: BTreeSet::new(),
            losses: 0,
            answered: BTreeMap::new(),
        }
    }

    /// Handles the oldest question.
    pub(super) fn step(&mut self, random: &mut Random) {
        let Some((token, request)) = self.questions.pop_front() else { return };
        let result = if self.dead {
            Err(MemberError::Retired)
        } else if random.chance(self.faults.busy) {
            Err(MemberError::Busy)
        } else {
            self.handle(request, random)
        };
        self.answers.push((token, result));
    }

    /// An answer in no particular order; what it acknowledges counts from now on.
    pub(super) fn deliver(&mut self, random: &mut Random) -> Option<Answer> {
        if self.answers.is_empty() {
            return None;
        }
        let place = random.below(self.answers.len() as u64) as usize;
        Some(self.answers.swap_remove(place))
    }

    /// It dies and is out of service until [`FakeDisk::reopen`]. If power failed, each object
    /// keeps only a beginning of what was not flushed.
    pub(super) fn die(&mut self, power: bool, random: &mut Random) {
        self.dead = true;
        self.questions.clear();
        self.answers.clear();
        if !power {
            return;
        }
        let forgotten = if random.chance(500) {
            std::mem::replace(&mut self.parents, self.stable_parents.clone())
        } else {
            BTreeMap::new()
        };
        for (key, object) in &mut self.objects {
            let keep = random.below(object.volatile.len() as u64 + 1) as usize;
            // What was written to a layer does not outlive it.
            let is_lost =
                |layer| forgotten.contains_key(layer) && !self.parents.contains_key(layer);
            let lost = object.volatile.iter().position(|(_, layer, _)| is_lost(layer));
            let keep = keep.min(lost.unwrap_or(keep));
            if keep == object.volatile.len() {
                continue;
            }
            let mut volatile = std::mem::take(&mut object.volatile);
            let stable = object.stable.take().map(|stable| *stable).unwrap_or_default();
            *object = Object { stable: Some(Box::new(stable.clone())), ..stable };
            volatile.truncate(keep);
            for (stamp, layer, change) in volatile {
                object.apply(stamp, layer, &change);
            }
            let acknowledged = self.answered.get(key).copied().unwrap_or_default();
            self.losses += u64::from(object.stamp < acknowledged);
            self.answered.insert(*key, object.stamp.min(acknowledged));
        }
    }

    pub(super) fn reopen(&mut self) {
        self.dead = false;
        self.incarnation = Incarnation(self.incarnation.0 + 1);
        // Opening flushes what it found.
        self.flush();
    }

    /// The session has been told that this write is done.
    pub(super) fn acknowledged(&mut self, place: Place, stamp: Stamp) {
        let known = self.answered.entry(place).or_default();
        *known = (*known).max(stamp);
    }

    /// The map says that this layer is needless.
    pub(super) fn drop_layer(&mut self, lineage: LineageId, layer: LayerId) {
        self.flush();
        self.dropped.insert(layer);
        let children = self.parents.iter().filter(|(_, parent)| **parent == layer);
        let children: Vec<LayerId> = children.map(|(child, _)| *child).collect();
        assert!(children.len() < 2, "a layer of two others is dropped");
        for (_, object) in self.objects.iter_mut().filter(|((of, _), _)| *of == lineage) {
            let mut content = object.layers.remove(&layer).unwrap_or_default();
            if let [child] = children[..] {
                content.append(&mut object.layers.remove(&child).unwrap_or_default());
                object.layers.insert(child, content);
            }
        }
        let below = self.parents.remove(&layer);
        if let [child] = children[..] {
            match below {
                Some(below) => self.parents.insert(child, below),
                None => self.parents.remove(&child),
            };
        }
        self.flush();
    }

    /// Whether a layer is the first of its lineage, or was opened.
    fn knows(&self, layer: LayerId, lineage: LineageId) -> bool {
        let has = |object: &Object| object.layers.contains_key(&layer);
        let is_known = self.parents.contains_key(&layer)
            || layer.0 == lineage.0
            // The ones below it may have gone.
            || self.objects.iter().any(|((of, _), object)| *of == lineage && has(object))
            || self.parents.values().any(|parent| *parent == layer);
        is_known && !self.dropped.contains(&layer)
    }

    /// What a layer shows of a block.
    fn block(&self, lineage: LineageId, key: ObjectKey, block: u32) -> Content {
        let Some(object) = self.objects.get(&(lineage, key.index)) else { return Content::Absent };
        let mut at = Some(key.layer);
        while let Some(layer) = at {
            let found = object.layers.get(&layer).and_then(|blocks| blocks.get(&block));
            if let Some(found) = found {
                return found.clone();
            }
            at = self.parents.get(&layer).copied();
        }
        Content::Absent
    }

    fn flush(&mut self) {
        self.stable_parents = self.parents.clone();
        for object in self.objects.values_mut() {
            object.volatile.clear();
            object.stable = None;
            object.stable = Some(Box::new(object.clone()));
        }
    }

    fn handle(
        &mut self,
        request: MemberRequest,
        random: &mut Random,
    ) -> Result<MemberReply, MemberError> {
        let (lineage, generation) = match &request {
            MemberRequest::Fence { lineage, generation, .. }
            | MemberRequest::Settle { lineage, generation, .. }
            | MemberRequest::Stamp { lineage, generation, .. }
            | MemberRequest::OpenLayer { lineage, generation, .. }
            | MemberRequest::Read { lineage, generation, .. }
            | MemberRequest::Map { lineage, generation, .. }
            | MemberRequest::Difference { lineage, generation, .. }
            | MemberRequest::Reclaimable { lineage, generation, .. }
            | MemberRequest::Flush { lineage, generation, .. } => (*lineage, *generation),
            MemberRequest::Write(write) => (write.lineage, write.stamp.generation),
            other => panic!("the session of a sole member does not ask {other:?}"),
        };
        let fence = self.fences.get(&lineage).copied().unwrap_or_default();
        if generation < fence {
            return Err(MemberError::Fenced { newer: fence });
        }
        let incarnation = self.incarnation;
        match request {
            MemberRequest::Fence { generation, list, .. } => {
                assert!(generation < Generation::SEALED, "nobody is fenced for ever");
                assert!(!list, "a sole member has nothing to compare with");
                self.fences.insert(lineage, generation);
                let settled = self.settled.get(&lineage).copied().unwrap_or_default();
                let (unsettled, more) = (Vec::new(), false);
                Ok(MemberReply::Fenced { incarnation, settled, unsettled, more })
            }
            MemberRequest::OpenLayer { layer, parent, .. } => {
                if !self.knows(layer, lineage) {
                    assert!(self.knows(parent, lineage), "the layer below is not known");
                    self.parents.insert(layer, parent);
                }
                Ok(MemberReply::Done)
            }
            MemberRequest::Settle { key, stamp, .. } => {
                let object = self.objects.get(&(lineage, key.index));
                let have = object.map(|object| object.stamp).unwrap_or_default();
                if have == stamp {
                    Ok(MemberReply::Done)
                } else {
                    Err(MemberError::WrongStamp { have })
                }
            }
            MemberRequest::Stamp { key, .. } => {
                if !self.knows(key.layer, lineage) {
                    return Err(MemberError::invalid("the layer was not opened"));
                }
                let unknown = Object::default();
                let object = self.objects.get(&(lineage, key.index)).unwrap_or(&unknown);
                Ok(MemberReply::Stamp(stamp(key, object)))
            }
            MemberRequest::Write(write) => self.write(write, random),
            MemberRequest::Read { key, blocks, .. } => {
                if random.chance(self.faults.corrupt) {
                    return Err(MemberError::Corrupt { key, block: blocks.first() });
                }
                assert!(self.knows(key.layer, lineage), "layer {} is not there", key.layer);
                let is_absent =
                    |block: &u32| matches!(self.block(lineage, key, *block), Content::Absent);
                let absent = blocks.iter().filter(is_absent);
                let absent = absent.map(|block| BlockRange::new(block, 1).expect("a block"));
                let absent = absent.collect();
                Ok(MemberReply::Data { content: self.read(lineage, key, blocks, random), absent })
            }
            MemberRequest::Map { key, blocks, .. } => {
                assert!(self.knows(key.layer, lineage), "layer {} is not there", key.layer);
                let state = |block| state_of(&self.block(lineage, key, block));
                Ok(MemberReply::Map(blocks.iter().map(|block| (1, state(block))).collect()))
            }
            MemberRequest::Difference { key, base, blocks, .. } => {
                assert!(self.knows(key.layer, lineage));
                // A base that was dropped is taken for one that never had anything.
                let is_there = self.knows(base, lineage);
                let below = ObjectKey { layer: base, ..key };
                let runs = blocks.iter().map(|block| {
                    let new = self.block(lineage, key, block);
                    let old = match is_there {
                        true => self.block(lineage, below, block),
                        false => Content::Absent,
                    };
                    let same = match (&new, old) {
                        (Content::Data(a), Content::Data(b)) => a.as_slice() == b.as_slice(),
                        (a, b) => state_of(a) == state_of(&b),
                    };
                    (1, if same { None } else { Some(state_of(&new)) })
                });
                Ok(MemberReply::Difference(runs.collect()))
            }
            MemberRequest::Reclaimable { .. } => panic!("a session does not ask this"),
            MemberRequest::Flush { settled, .. } => {
                let known = self.settled.entry(lineage).or_default();
                *known = (*known).max(settled);
                self.flush();
                Ok(MemberReply::Flushed { incarnation })
            }
            other => panic!("the session of a sole member does not ask {other:?}"),
        }
    }

    fn write(&mut self, write: Write, random: &mut Random) -> Result<MemberReply, MemberError> {
        let incarnation = self.incarnation;
        let new = matches!(write.change, Change::Data { .. });
        assert!(write.settled <= write.stamp, "a write is not settled before it is done");
        let place = (write.lineage, write.key.index);
        let have = self.objects.get(&place).map(|object| object.stamp).unwrap_or_default();
        if have == write.stamp {
            return Ok(MemberReply::Written { incarnation });
        }
        if have != write.previous {
            return Err(MemberError::WrongStamp { have });
        }
        if new && random.chance(self.faults.no_space) {
            return Err(MemberError::NoSpace);
        }
        let layer = write.key.layer;
        assert!(self.knows(layer, write.lineage), "layer {layer} is not there");
        let is_closed = self.parents.values().any(|parent| *parent == layer);
        assert!(!is_closed, "layer {layer} takes no writes any more");
        let object = self.objects.entry(place).or_default();
        object.apply(write.stamp, layer, &write.change);
        let settled = self.settled.entry(write.lineage).or_default();
        *settled = (*settled).max(write.settled);
        Ok(MemberReply::Written { incarnation })
    }

    /// The content, in one payload or in many.
    fn read(
        &self,
        lineage: LineageId,
        key: ObjectKey,
        blocks: BlockRange,
        random: &mut Random,
    ) -> Vec<Payload> {
        let content = |block: u32| match self.block(lineage, key, block) {
            Content::Data(data) => data,
            _ => Payload::zeroed(BLOCK_SIZE),
        };
        if random.chance(500) {
            return blocks.iter().map(content).collect();
        }
        let mut buffer = Buffer::zeroed(blocks.bytes());
        for (place, block) in blocks.iter().enumerate() {
            let target = &mut buffer.as_mut_slice()[place * BLOCK_SIZE..][..BLOCK_SIZE];
            target.copy_from_slice(content(block).as_slice());
        }
        vec![buffer.freeze()]
    }

    /// Number of blocks with data or zeros.
    pub(super) fn entries(&self) -> usize {
        let is_there = |content: &&Content| !matches!(content, Content::Absent);
        let layers = self.objects.values().flat_map(|object| object.layers.values());
        layers.map(|blocks| blocks.values().filter(is_there).count()).sum()
    }

    /// The blocks with data or zeros in some layer of a lineage.
    pub(super) fn places(&self, lineage: LineageId) -> BTreeSet<(u32, u32)> {
        let of_lineage = self.objects.iter().filter(|((of, _), _)| *of == lineage);
        let blocks = of_lineage.flat_map(|((_, index), object)| {
            let layers = object.layers.values().flatten();
            let is_there = |content: &Content| !matches!(content, Content::Absent);
            layers.filter(move |(_, c)| is_there(c)).map(|(block, _)| (*index, *block))
        });
        blocks.collect()
    }

    /// Number of objects that were ever changed.
    pub(super) fn objects(&self) -> usize {
        self.objects.len()
    }
}

impl Object {
    fn apply(&mut self, stamp: Stamp, layer: LayerId, change: &Change) {
        assert!(stamp > self.stamp, "stamps grow");
        if self.stable.is_none() {
            self.stable = Some(Box::new(self.clone()));
        }
        self.stamp = stamp;
        let of_layer = self.layers.entry(layer).or_default();
        match change {
            Change::Data { first, payload, detect_zeroes } => {
                let count = payload.len() / BLOCK_SIZE;
                assert!(count > 0 && payload.len().is_multiple_of(BLOCK_SIZE));
                assert!(count <= 256 && first + count as u32 <= BLOCKS_PER_OBJECT);
                for place in 0..count {
                    let data = payload.slice(place * BLOCK_SIZE, BLOCK_SIZE);
                    let zero = *detect_zeroes && proto::is_zero(data.as_slice());
                    let content = if zero { Content::Zero } else { Content::Data(data) };
                    of_layer.insert(first + place as u32, content);
                }
            }
            Change::Zero { blocks } => {
                blocks.iter().for_each(|block| drop(of_layer.insert(block, Content::Zero)));
            }
            Change::Absent { blocks } => {
                blocks.iter().for_each(|block| drop(of_layer.insert(block, Content::Absent)));
            }
        }
        self.volatile.push((stamp, layer, change.clone()));
    }
}

fn state_of(content: &Content) -> BlockState {
    match content {
        Content::Absent => BlockState::Absent,
        Content::Zero => BlockState::Zero,
        Content::Data(_) => BlockState::Data,
    }
}

fn stamp(key: ObjectKey, object: &Object) -> ObjectStamp {
    ObjectStamp { key, stamp: object.stamp, settled_generation: Generation(0) }
}
