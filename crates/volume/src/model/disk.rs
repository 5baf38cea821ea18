//! A disk as a session sees it: obvious, in memory, and as unkind as a real one may be.

use proto::{
    BLOCK_SIZE, BLOCKS_PER_OBJECT, BlockRange, BlockState, Buffer, Change, Generation, Incarnation,
    MemberError, MemberReply, MemberRequest, MemberToken, ObjectKey, ObjectStamp, Payload, Stamp,
    Write,
};
use std::collections::{BTreeMap, VecDeque};

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

/// One block: nothing is absent.
#[derive(Clone)]
enum Content {
    Zero,
    Data(Payload),
}

#[derive(Clone, Default)]
struct Object {
    stamp: Stamp,
    blocks: BTreeMap<u32, Content>,
    /// Changes since the last flush, oldest first.
    volatile: Vec<(Stamp, Change)>,
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
    fence: Generation,
    settled: Stamp,
    objects: BTreeMap<ObjectKey, Object>,
    /// Whether a death ever took away something that had been answered.
    pub(super) losses: u64,
    answered: BTreeMap<ObjectKey, Stamp>,
}

impl FakeDisk {
    pub(super) fn new(faults: Faults) -> FakeDisk {
        FakeDisk {
            incarnation: Incarnation(1),
            faults,
            questions: VecDeque::new(),
            answers: Vec::new(),
            dead: false,
            fence: Generation(0),
            settled: Stamp::default(),
            objects: BTreeMap::new(),
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
        for (key, object) in &mut self.objects {
            let keep = random.below(object.volatile.len() as u64 + 1) as usize;
            if keep == object.volatile.len() {
                continue;
            }
            let mut volatile = std::mem::take(&mut object.volatile);
            let stable = object.stable.take().map(|stable| *stable).unwrap_or_default();
            *object = Object { stable: Some(Box::new(stable.clone())), ..stable };
            volatile.truncate(keep);
            for (stamp, change) in volatile {
                object.apply(stamp, &change);
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
    pub(super) fn acknowledged(&mut self, key: ObjectKey, stamp: Stamp) {
        let known = self.answered.entry(key).or_default();
        *known = (*known).max(stamp);
    }

    fn flush(&mut self) {
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
        let generation = match &request {
            MemberRequest::Fence { generation, .. }
            | MemberRequest::Settle { generation, .. }
            | MemberRequest::Stamp { generation, .. }
            | MemberRequest::Read { generation, .. }
            | MemberRequest::Map { generation, .. }
            | MemberRequest::Flush { generation, .. } => *generation,
            MemberRequest::Write(write) => write.stamp.generation,
        };
        if generation < self.fence {
            return Err(MemberError::Fenced { newer: self.fence });
        }
        let incarnation = self.incarnation;
        match request {
            MemberRequest::Fence { generation, .. } => {
                self.fence = generation;
                let above = |(_, object): &(&ObjectKey, &Object)| object.stamp >= self.settled;
                let unsettled = self.objects.iter().filter(above);
                let unsettled = unsettled.map(|(key, object)| stamp(*key, object)).collect();
                Ok(MemberReply::Fenced { incarnation, unsettled })
            }
            MemberRequest::Settle { key, stamp, .. } => {
                let have = self.objects.get(&key).map(|object| object.stamp).unwrap_or_default();
                if have == stamp {
                    Ok(MemberReply::Done)
                } else {
                    Err(MemberError::WrongStamp { have })
                }
            }
            MemberRequest::Stamp { key, .. } => {
                let unknown = Object::default();
                let object = self.objects.get(&key).unwrap_or(&unknown);
                Ok(MemberReply::Stamp(stamp(key, object)))
            }
            MemberRequest::Write(write) => self.write(write, random),
            MemberRequest::Read { key, blocks, .. } => {
                if random.chance(self.faults.corrupt) {
                    return Err(MemberError::Corrupt { key, block: blocks.first() });
                }
                Ok(MemberReply::Data(self.read(key, blocks, random)))
            }
            MemberRequest::Map { key, blocks, .. } => {
                let object = self.objects.get(&key);
                let runs = blocks.iter().map(|block| {
                    let state = match object.and_then(|object| object.blocks.get(&block)) {
                        None => BlockState::Absent,
                        Some(Content::Zero) => BlockState::Zero,
                        Some(Content::Data(_)) => BlockState::Data,
                    };
                    (1, state)
                });
                Ok(MemberReply::Map(runs.collect()))
            }
            MemberRequest::Flush { .. } => {
                self.flush();
                Ok(MemberReply::Flushed { incarnation })
            }
        }
    }

    fn write(&mut self, write: Write, random: &mut Random) -> Result<MemberReply, MemberError> {
        let incarnation = self.incarnation;
        let new = matches!(write.change, Change::Data { .. });
        assert!(write.settled <= write.stamp, "a write is not settled before it is done");
        let have = self.objects.get(&write.key).map(|object| object.stamp).unwrap_or_default();
        if have == write.stamp {
            return Ok(MemberReply::Written { incarnation });
        }
        if have != write.previous {
            return Err(MemberError::WrongStamp { have });
        }
        if new && random.chance(self.faults.no_space) {
            return Err(MemberError::NoSpace);
        }
        let object = self.objects.entry(write.key).or_default();
        object.apply(write.stamp, &write.change);
        self.settled = self.settled.max(write.settled);
        Ok(MemberReply::Written { incarnation })
    }

    /// The content, in one payload or in many.
    fn read(&self, key: ObjectKey, blocks: BlockRange, random: &mut Random) -> Vec<Payload> {
        let object = self.objects.get(&key);
        let content = |block: u32| match object.and_then(|object| object.blocks.get(&block)) {
            Some(Content::Data(data)) => data.clone(),
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
        self.objects.values().map(|object| object.blocks.len()).sum()
    }

    /// Number of objects that were ever changed.
    pub(super) fn objects(&self) -> usize {
        self.objects.len()
    }
}

impl Object {
    fn apply(&mut self, stamp: Stamp, change: &Change) {
        assert!(stamp > self.stamp, "stamps grow");
        if self.stable.is_none() {
            self.stable = Some(Box::new(self.clone()));
        }
        self.stamp = stamp;
        match change {
            Change::Data { first, payload, detect_zeroes } => {
                let count = payload.len() / BLOCK_SIZE;
                assert!(count > 0 && payload.len().is_multiple_of(BLOCK_SIZE));
                assert!(count <= 256 && first + count as u32 <= BLOCKS_PER_OBJECT);
                for place in 0..count {
                    let data = payload.slice(place * BLOCK_SIZE, BLOCK_SIZE);
                    let zero = *detect_zeroes && proto::is_zero(data.as_slice());
                    let content = if zero { Content::Zero } else { Content::Data(data) };
                    self.blocks.insert(first + place as u32, content);
                }
            }
            Change::Zero { blocks } => {
                blocks.iter().for_each(|block| drop(self.blocks.insert(block, Content::Zero)));
            }
            Change::Absent { blocks } => {
                blocks.iter().for_each(|block| drop(self.blocks.remove(&block)));
            }
        }
        self.volatile.push((stamp, change.clone()));
    }
}

fn stamp(key: ObjectKey, object: &Object) -> ObjectStamp {
    ObjectStamp { key, stamp: object.stamp, settled_generation: Generation(0) }
}
