//! What one disk owes: every state each object went through, by stamp.
//!
//! Stricter than the oracle, because it sees the disk's own words: after a crash an object's stamp
//! names the state it must be in to the last block, and that state may not lie before what was
//! flushed (or, when only the process died, before what was acknowledged). It is the invariant
//! "each member's object is a prefix of one history" put to the test.

use crate::{
    onedisk::{Answer, OneDisk},
    random::mix,
    stamp,
};
use proto::{
    BLOCK_SIZE, BlockRange, BlockState, Buffer, Change, ConfigurationNumber, Generation, LayerId,
    LineageId, MemberError, MemberReply, MemberRequest, ObjectKey, Payload, SECTOR_SIZE, Stamp,
    Under, Write,
};
use std::collections::{BTreeMap, BTreeSet};
use store::{Event, Usage};

/// What a block of an object is; absent ones are not listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kept {
    /// Data of the write with this serial.
    Data(u64),
    /// An entry that reads as zeros.
    Zero,
}

type Blocks = BTreeMap<u32, Kept>;

/// One object's history since it was last verified.
#[derive(Clone, Debug)]
struct History {
    states: Vec<(Stamp, Blocks)>,
    acknowledged: usize,
    flushed: usize,
}

/// One step of a workload on one disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Step {
    /// Data for some blocks of an object.
    Write(u32, u32, u32),
    /// A write whose bytes are all zero.
    WriteZeros(u32, u32, u32),
    /// Zero entries for some blocks of an object.
    Zero(u32, u32, u32),
    /// No entries any more for some blocks of an object.
    Absent(u32, u32, u32),
    /// The lineage goes with all its layers; the next write begins another one.
    Drop,
    /// A snapshot: the layer is sealed, a new one is opened above it.
    Open,
    /// The layer written goes, another one is opened above the snapshot below it.
    DropUpper,
    /// The oldest snapshot goes: it is merged into the layer above.
    DropLower,
    /// What is acknowledged shall be durable.
    Flush,
}

/// What a crash did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// The power went: what was flushed must be there.
    Power,
    /// The process died: what was acknowledged must be there.
    Kill,
}

/// The books of one disk. See the module.
#[derive(Clone, Debug)]
pub struct Ledger {
    objects: BTreeMap<ObjectKey, History>,
    /// Layers that the map says are gone.
    dropped: BTreeSet<LayerId>,
    /// The layer that is written, and whether the disk was told of it.
    layer: LayerId,
    opened: bool,
    /// Its lineage, and the snapshots below it, the oldest first.
    lineage: LineageId,
    below: Vec<LayerId>,
    lineages: BTreeMap<LayerId, LineageId>,
    /// Layers that the map has just dropped.
    dropping: Vec<LayerId>,
    generation: Generation,
    fenced: bool,
    sequence: u64,
    serial: u64,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger {
            objects: BTreeMap::new(),
            dropped: BTreeSet::new(),
            layer: LayerId(1),
            opened: true,
            lineage: LineageId(1),
            below: Vec::new(),
            lineages: BTreeMap::from([(LayerId(1), LineageId(1))]),
            dropping: Vec::new(),
            generation: Generation(1),
            fenced: false,
            sequence: 0,
            serial: 0,
        }
    }
}

/// A step that was asked for and not answered yet.
#[derive(Clone, Debug)]
pub enum Asked {
    /// A write: its object, and as which state it counts.
    Write(ObjectKey, usize),
    /// A flush: what it covers.
    Flush(Vec<(ObjectKey, usize)>),
    /// A new layer.
    Open,
    /// A dropped layer: never answered.
    Drop,
}

impl Ledger {
    /// Makes sure that the present layer is fenced for the present attachment.
    pub fn prepare(&mut self, disk: &mut OneDisk) -> Result<(), String> {
        let (lineage, generation) = (self.lineage, self.generation);
        if !self.fenced {
            match disk.call(MemberRequest::Fence {
                lineage,
                generation,
                list: true,
                after: ObjectKey::default(),
            }) {
                Ok(MemberReply::Fenced { .. }) => self.fenced = true,
                other => return Err(format!("the fence was answered {other:?}")),
            }
        }
        if !self.opened {
            self.opened = true;
            self.open_layer(disk, self.below.len())?;
        }
        Ok(())
    }

    /// Tells the disk of a layer above the first so many snapshots.
    fn open_layer(&self, disk: &mut OneDisk, at: usize) -> Result<(), String> {
        let layer = self.below.get(at).copied().unwrap_or(self.layer);
        if layer.0 == self.lineage.0 {
            return Ok(());
        }
        let parent = at.checked_sub(1).map_or(LayerId(0), |at| self.below[at]);
        let (lineage, generation) = (self.lineage, self.generation);
        match disk.call(MemberRequest::OpenLayer { lineage, generation, layer, parent }) {
            Ok(MemberReply::Done) => Ok(()),
            other => Err(format!("opening layer {layer} was answered {other:?}")),
        }
    }

    /// A layer leaves the map once the disks know for good what lies above it.
    pub fn seal(&self, disk: &mut OneDisk) -> Result<(), String> {
        let (lineage, generation) = (self.lineage, self.generation);
        match disk.call(MemberRequest::Flush { lineage, generation, settled: Stamp::default() }) {
            Ok(MemberReply::Flushed { .. }) => Ok(()),
            other => Err(format!("the flush was answered {other:?}")),
        }
    }

    /// A new layer is written from now on: it shows what the newest snapshot does.
    fn begin_layer(&mut self) {
        let last = self.lineages.keys().next_back().expect("there is one");
        self.layer = LayerId(last.0 + 1);
        self.lineages.insert(self.layer, self.lineage);
        let below = self.below.last().copied();
        let shown = self.objects.iter().filter(|(key, _)| Some(key.layer) == below);
        let shown: Vec<(ObjectKey, History)> =
            shown.map(|(key, h)| (ObjectKey { layer: self.layer, ..*key }, h.clone())).collect();
        self.objects.extend(shown);
    }

    /// Notes that the map has dropped a layer.
    fn drop_layer(&mut self, layer: LayerId) {
        self.dropped.insert(layer);
        self.dropping.push(layer);
    }

    fn lineage_of(&self, layer: LayerId) -> LineageId {
        self.lineages[&layer]
    }

    /// Books a step and returns what to send to the disk; nothing for a dropped layer, whose event
    /// is no request.
    pub fn begin(&mut self, step: Step) -> (Asked, Option<MemberRequest>) {
        let (lineage, generation) = (self.lineage, self.generation);
        let (index, change) = match step {
            Step::Flush => {
                let covers = self.objects.iter().map(|(key, h)| (*key, h.acknowledged)).collect();
                let request =
                    MemberRequest::Flush { lineage, generation, settled: Stamp::default() };
                return (Asked::Flush(covers), Some(request));
            }
            Step::Open => {
                let parent = self.layer;
                self.below.push(parent);
                self.begin_layer();
                let layer = self.layer;
                let request = MemberRequest::OpenLayer { lineage, generation, layer, parent };
                return (Asked::Open, Some(request));
            }
            Step::DropUpper if !self.below.is_empty() => {
                self.drop_layer(self.layer);
                self.begin_layer();
                self.opened = false;
                return (Asked::Drop, None);
            }
            Step::DropLower => {
                if !self.below.is_empty() {
                    let oldest = self.below.remove(0);
                    self.drop_layer(oldest);
                }
                return (Asked::Drop, None);
            }
            Step::Drop | Step::DropUpper => {
                for layer in std::mem::take(&mut self.below) {
                    self.drop_layer(layer);
                }
                self.drop_layer(self.layer);
                let last = self.lineages.keys().next_back().expect("there is one");
                self.layer = LayerId(last.0 + 1);
                self.lineage = LineageId(self.layer.0);
                self.lineages.insert(self.layer, self.lineage);
                (self.fenced, self.opened) = (false, true);
                return (Asked::Drop, None);
            }
            Step::Write(index, first, count) => {
                self.serial += 1;
                let key = ObjectKey { layer: self.layer, index };
                let payload = content(lineage, key, first, count, self.serial);
                (index, Change::Data { first, payload, detect_zeroes: true })
            }
            Step::WriteZeros(index, first, count) => {
                let payload = Payload::zeroed(count as usize * BLOCK_SIZE);
                (index, Change::Data { first, payload, detect_zeroes: true })
            }
            Step::Zero(index, first, count) => {
                (index, Change::Zero { blocks: range(first, count) })
            }
            Step::Absent(index, first, count) => {
                (index, Change::Absent { blocks: range(first, count) })
            }
        };
        let key = ObjectKey { layer: self.layer, index };
        let history = self.objects.entry(key).or_insert_with(History::new);
        let (previous, mut blocks) = history.states.last().expect("never empty").clone();
        self.sequence += 1;
        let stamp = Stamp { generation, sequence: self.sequence };
        change_blocks(&mut blocks, step, self.serial);
        history.states.push((stamp, blocks));
        let write = Write {
            lineage,
            key,
            under: Under { copies: 1, bits: 12, number: ConfigurationNumber(1) },
            previous,
            stamp,
            settled: Stamp::default(),
            change,
        };
        let asked = Asked::Write(key, history.states.len() - 1);
        (asked, Some(MemberRequest::Write(write)))
    }

    /// The layers that a step has dropped, with their lineages.
    pub fn take_drops(&mut self) -> Vec<(LineageId, LayerId)> {
        let layers = std::mem::take(&mut self.dropping);
        layers.into_iter().map(|layer| (self.lineage_of(layer), layer)).collect()
    }

    /// Books an answer.
    pub fn answered(&mut self, asked: Asked, answer: Answer) -> Result<(), String> {
        match (asked, answer) {
            (Asked::Write(key, state), Ok(MemberReply::Written { .. })) => {
                let history = self.objects.get_mut(&key).expect("it was booked");
                if state < history.acknowledged {
                    return Err(format!("a write of {key} was answered after a later one"));
                }
                history.acknowledged = state;
            }
            (Asked::Flush(covers), Ok(MemberReply::Flushed { .. })) => {
                for (key, state) in covers {
                    let history = self.objects.get_mut(&key).expect("it was booked");
                    history.flushed = history.flushed.max(state);
                }
            }
            (Asked::Open, Ok(MemberReply::Done)) => {}
            // What is on its way to a layer that goes may be refused.
            (Asked::Open, Err(_)) if !self.dropped.is_empty() => {}
            (Asked::Write(key, _), Err(_)) if self.dropped.contains(&key.layer) => {}
            (asked, answer) => return Err(format!("{asked:?} was answered {answer:?}")),
        }
        Ok(())
    }

    /// A number that is equal for books that allow the same states after a crash.
    pub fn key(&self, crash: Crash) -> u64 {
        let mut key = mix(self.layer.0) ^ mix(self.generation.0 << 32);
        key ^= self.below.iter().fold(0, |key, layer| mix(key ^ layer.0));
        for (at, history) in &self.objects {
            let floor = history.floor(crash) as u64;
            let last = history.states.len() as u64;
            let place = mix(at.layer.0 ^ (u64::from(at.index) << 32));
            key ^= mix(place ^ (floor << 16) ^ last);
        }
        self.dropped.iter().fold(key, |key, layer| key ^ mix(layer.0 ^ (1 << 60)))
    }

    /// Attaches anew after a crash and compares all that the disk has with what it may have. From
    /// then on what was found is what is owed.
    pub fn verify(&mut self, disk: &mut OneDisk, crash: Crash) -> Result<(), String> {
        self.generation = Generation(self.generation.0 + 1);
        // What the map has is told before what it has no more.
        for at in 0..=self.below.len() {
            self.open_layer(disk, at)?;
        }
        self.opened = true;
        self.finish_drops(disk)?;
        let lineages: BTreeSet<LineageId> =
            self.objects.keys().map(|key| self.lineage_of(key.layer)).collect();
        let generation = self.generation;
        let mut unsettled = Vec::new();
        for lineage in lineages {
            match disk.call(MemberRequest::Fence {
                lineage,
                generation,
                list: true,
                after: ObjectKey::default(),
            }) {
                Ok(MemberReply::Fenced { unsettled: more, .. }) => unsettled.extend(more),
                other => return Err(format!("the fence was answered {other:?}")),
            }
        }
        for key in self.objects.keys().copied().collect::<Vec<_>>() {
            self.verify_object(disk, key, crash)?;
        }
        // Nothing was ever said to be settled: all that was written is to be settled now.
        let listed = unsettled.iter().map(|object| (object.key, object.stamp));
        // A layer that was not written has no object of its own.
        let own = self.objects.iter().filter(|(key, history)| {
            let below = self.shown_below(key);
            below.is_none_or(|below| below.states[0].0 != history.states[0].0)
        });
        let owed = own.map(|(key, history)| (*key, history.states[0].0));
        if listed.ne(owed.filter(|(_, stamp)| *stamp != Stamp::default())) {
            return Err(format!("the fence lists {unsettled:?} as unsettled"));
        }
        self.sequence = 0;
        self.fenced = self.objects.keys().any(|key| self.lineage_of(key.layer) == self.lineage);
        self.verify_usage(disk)
    }

    /// Says again which layers are gone, as the map does after each start, and waits until they
    /// are.
    fn finish_drops(&mut self, disk: &mut OneDisk) -> Result<(), String> {
        for layer in self.dropped.iter().copied() {
            disk.event(Event::DropLayer { lineage: self.lineage_of(layer), layer });
        }
        disk.round();
        let dropped = &self.dropped;
        while dropped.iter().any(|layer| disk.store().usage(*layer) != Usage::default()) {
            if !disk.step() && !disk.pass_time() {
                let status = disk.store().status();
                return Err(format!("a layer of {dropped:?} is never gone: {status:?}"));
            }
        }
        self.objects.retain(|key, _| !dropped.contains(&key.layer));
        Ok(())
    }

    /// What the snapshot below an object's layer shows.
    fn shown_below(&self, key: &ObjectKey) -> Option<&History> {
        let at = self.below.iter().position(|layer| *layer == key.layer);
        let at = at.or((key.layer == self.layer).then_some(self.below.len()))?;
        let layer = *self.below.get(at.checked_sub(1)?)?;
        self.objects.get(&ObjectKey { layer, ..*key })
    }

    /// Blocks of data that a layer's object has and the snapshot below does not show.
    fn own_blocks(&self, key: &ObjectKey, history: &History) -> u64 {
        let nothing = Blocks::new();
        let below = self.shown_below(key).map_or(&nothing, History::last);
        let data = history.last().iter().filter(|(_, kept)| matches!(kept, Kept::Data(_)));
        data.filter(|(block, kept)| below.get(block) != Some(kept)).count() as u64
    }

    /// Compares one object.
    fn verify_object(
        &mut self,
        disk: &mut OneDisk,
        key: ObjectKey,
        crash: Crash,
    ) -> Result<(), String> {
        let (lineage, generation) = (self.lineage_of(key.layer), self.generation);
        let stamp = match disk.call(MemberRequest::Stamp { lineage, key, generation }) {
            Ok(MemberReply::Stamp(stamp)) => stamp.stamp,
            other => return Err(format!("the question for a stamp was answered {other:?}")),
        };
        let history = &self.objects[&key];
        let Some(at) = history.states.iter().position(|(known, _)| *known == stamp) else {
            return Err(format!("object {key} has stamp {stamp:?}, which nobody gave it"));
        };
        let floor = history.floor(crash);
        if at < floor {
            let owed = history.states[floor].0;
            return Err(format!("object {key} is at {stamp:?}, but {owed:?} was promised"));
        }
        let blocks = history.states[at].1.clone();
        self.compare(disk, key, &blocks)?;
        self.objects
            .insert(key, History { states: vec![(stamp, blocks)], acknowledged: 0, flushed: 0 });
        Ok(())
    }

    /// Compares one object's entries and content with what they must be.
    fn compare(&self, disk: &mut OneDisk, key: ObjectKey, blocks: &Blocks) -> Result<(), String> {
        let (lineage, generation) = (self.lineage_of(key.layer), self.generation);
        let whole = range(0, BLOCKS_SEEN);
        let map = MemberRequest::Map {
            lineage,
            key,
            generation,
            under: None,
            blocks: BlockRange::whole(),
        };
        let runs = match disk.call(map) {
            Ok(MemberReply::Map(runs)) => runs,
            other => return Err(format!("the question for a map was answered {other:?}")),
        };
        let mut block = 0;
        for (count, state) in runs {
            for _ in 0..count {
                let wanted = match blocks.get(&block) {
                    None => BlockState::Absent,
                    Some(Kept::Zero) => BlockState::Zero,
                    Some(Kept::Data(_)) => BlockState::Data,
                };
                if state != wanted {
                    return Err(format!("block {block} of {key} is {state:?}, not {wanted:?}"));
                }
                block += 1;
            }
        }
        let read = MemberRequest::Read { lineage, key, generation, under: None, blocks: whole };
        let data = match disk.call(read) {
            Ok(MemberReply::Data { content, .. }) => content,
            other => return Err(format!("the read of {key} was answered {other:?}")),
        };
        let bytes = Payload::joined(&data);
        if bytes.len() != whole.bytes() {
            return Err(format!(
                "{} bytes of {key} came instead of {}",
                bytes.len(),
                whole.bytes()
            ));
        }
        for (block, found) in (0u32..).zip(bytes.chunks(BLOCK_SIZE)) {
            let right = match blocks.get(&block) {
                Some(Kept::Data(serial)) => {
                    content(lineage, key, block, 1, *serial).as_slice() == found
                }
                _ => proto::is_zero(found),
            };
            if !right {
                let wanted = blocks.get(&block);
                return Err(format!("block {block} of {key} does not read as {wanted:?}"));
            }
        }
        Ok(())
    }

    /// Compares what each layer uses with what it must use.
    fn verify_usage(&self, disk: &OneDisk) -> Result<(), String> {
        let layers: BTreeSet<LayerId> = self.objects.keys().map(|key| key.layer).collect();
        let mut total = 0;
        for layer in layers {
            let owed: u64 = self
                .objects
                .iter()
                .filter(|(key, _)| key.layer == layer)
                .map(|(key, history)| self.own_blocks(key, history))
                .sum();
            let found = disk.store().usage(layer).data_blocks;
            if found != owed {
                return Err(format!("layer {layer} is said to use {found} blocks, not {owed}"));
            }
            total += owed;
        }
        let found = disk.store().status().space.data_bytes;
        if found != total * BLOCK_SIZE as u64 {
            return Err(format!("{found} bytes are said to be used, not {total} blocks"));
        }
        Ok(())
    }

    /// Reads everything, block by block, from a disk that may be damaged: what is served must be
    /// right; what is not served is counted.
    pub fn survey(&mut self, disk: &mut OneDisk) -> Result<Survey, String> {
        self.generation = Generation(self.generation.0 + 1);
        let generation = self.generation;
        let mut survey = Survey::default();
        for (key, history) in &self.objects {
            let (key, lineage) = (*key, self.lineage_of(key.layer));
            match disk.call(MemberRequest::Fence {
                lineage,
                generation,
                list: true,
                after: ObjectKey::default(),
            }) {
                Ok(MemberReply::Fenced { .. }) => {}
                other => return Err(format!("the fence was answered {other:?}")),
            }
            let (_, blocks) = history.states.last().expect("never empty");
            for block in 0..BLOCKS_SEEN {
                let read = MemberRequest::Read {
                    lineage,
                    key,
                    generation,
                    under: None,
                    blocks: range(block, 1),
                };
                let data = match disk.call(read) {
                    Ok(MemberReply::Data { content, .. }) => content,
                    Err(MemberError::Corrupt { .. }) => {
                        survey.refused.push((key.index, block));
                        continue;
                    }
                    other => return Err(format!("the read of {key} was answered {other:?}")),
                };
                let bytes: Vec<u8> = data.iter().flat_map(|p| p.as_slice().to_vec()).collect();
                let right = match blocks.get(&block) {
                    Some(Kept::Data(serial)) => {
                        content(lineage, key, block, 1, *serial).as_slice() == bytes
                    }
                    _ => proto::is_zero(&bytes),
                };
                if !right {
                    return Err(format!("block {block} of {key} was served wrong"));
                }
                survey.right += 1;
            }
        }
        Ok(survey)
    }

    /// What a block of an object of the present layer holds now, if it is data.
    pub fn content_of(&self, index: u32, block: u32) -> Option<Vec<u8>> {
        let key = ObjectKey { layer: self.layer, index };
        let (_, blocks) = self.objects.get(&key)?.states.last()?;
        match blocks.get(&block) {
            Some(Kept::Data(serial)) => {
                Some(content(self.lineage, key, block, 1, *serial).as_slice().to_vec())
            }
            _ => None,
        }
    }

    /// Every layer with an object, for dropping all of them.
    pub fn layers(&self) -> Vec<(LineageId, LayerId)> {
        let layers: BTreeSet<LayerId> = self.objects.keys().map(|key| key.layer).collect();
        let alive = self.below.iter().copied().chain([self.layer]);
        let layers: BTreeSet<LayerId> = layers.into_iter().chain(alive).collect();
        layers.into_iter().map(|layer| (self.lineage_of(layer), layer)).collect()
    }
}

/// What a damaged disk still serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Blocks that were served, all of them right.
    pub right: u64,
    /// Blocks that were refused as damaged: object index and block.
    pub refused: Vec<(u32, u32)>,
}

impl History {
    fn new() -> History {
        History { states: vec![(Stamp::default(), Blocks::new())], acknowledged: 0, flushed: 0 }
    }

    fn floor(&self, crash: Crash) -> usize {
        match crash {
            Crash::Power => self.flushed,
            Crash::Kill => self.acknowledged,
        }
    }

    fn last(&self) -> &Blocks {
        let (_, blocks) = self.states.last().expect("never empty");
        blocks
    }
}

/// How many blocks of an object are read and compared; steps stay below.
const BLOCKS_SEEN: u32 = 16;

fn range(first: u32, count: u32) -> BlockRange {
    BlockRange::new(first, count).expect("steps stay inside an object")
}

fn change_blocks(blocks: &mut Blocks, step: Step, serial: u64) {
    let (first, count, kept) = match step {
        Step::Write(_, first, count) => (first, count, Some(Kept::Data(serial))),
        Step::WriteZeros(_, first, count) | Step::Zero(_, first, count) => {
            (first, count, Some(Kept::Zero))
        }
        Step::Absent(_, first, count) => (first, count, None),
        Step::Drop | Step::Flush | Step::Open | Step::DropUpper | Step::DropLower => {
            unreachable!("changes no block")
        }
    };
    for block in first..first + count {
        match kept {
            Some(kept) => blocks.insert(block, kept),
            None => blocks.remove(&block),
        };
    }
}

/// What the write with this serial puts into these blocks.
fn content(lineage: LineageId, key: ObjectKey, first: u32, count: u32, serial: u64) -> Payload {
    let mut buffer = Buffer::stale(count as usize * BLOCK_SIZE);
    let sectors_per_block = (BLOCK_SIZE / SECTOR_SIZE) as u64;
    let start = (u64::from(key.index) * u64::from(proto::BLOCKS_PER_OBJECT) + u64::from(first))
        * sectors_per_block;
    for (sector, place) in (start..).zip(buffer.as_mut_slice().chunks_exact_mut(SECTOR_SIZE)) {
        let volume = lineage.0;
        stamp::Stamp { volume, sector, writer: 0, serial, epoch: 0, generation: 0 }.fill(place);
    }
    buffer.freeze()
}
