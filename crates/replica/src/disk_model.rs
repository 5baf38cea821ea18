//! A disk as replication sees it, for tests: obvious, in memory, every request done at once.

use proto::limits::MEMBER_ROWS_MAX;
use proto::{
    BLOCK_SIZE, BLOCKS_PER_OBJECT, BlockRange, BlockState, BlockSum, Buffer, Change,
    ConfigurationNumber, Generation, Incarnation, LayerId, LineageId, LineageStamp, MemberError,
    MemberReply, MemberRequest, ObjectKey, ObjectStamp, PartitionId, Payload, Permit, Refused,
    Stamp, Under, Write, block_checksum, partition_of,
};
use std::collections::{BTreeMap, BTreeSet};

/// Seeded chance: splitmix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        proto::mix(self.0)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True `times` in a thousand.
    pub(crate) fn chance(&mut self, times: u64) -> bool {
        self.below(1000) < times
    }
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Cell {
    Absent,
    Zero,
    /// The first bytes of its content.
    Data(u64),
}

/// What a layer has of an object.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Row {
    pub(crate) stamp: Stamp,
    pub(crate) settled_by: Generation,
    pub(crate) cells: BTreeMap<u32, Cell>,
}

pub(crate) type Place = (LineageId, u32, LayerId);

#[derive(Clone, Default, Debug)]
struct Content {
    rows: BTreeMap<Place, Row>,
    /// The settled point of each lineage.
    settled: BTreeMap<LineageId, Stamp>,
    /// Who has marked everything up to which point.
    marks: BTreeMap<LineageId, (Generation, Stamp)>,
}

#[derive(Clone, Debug)]
enum Op {
    Put(Place, Option<Row>),
    Settled(LineageId, Stamp),
    Mark(LineageId, Generation, Stamp),
}

impl Content {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Put(place, Some(row)) => drop(self.rows.insert(*place, row.clone())),
            Op::Put(place, None) => drop(self.rows.remove(place)),
            Op::Settled(lineage, point) => {
                let known = self.settled.entry(*lineage).or_default();
                *known = (*known).max(*point);
            }
            Op::Mark(lineage, generation, point) => {
                let rows = self.rows.iter_mut().filter(|((of, ..), _)| of == lineage);
                for (_, row) in rows.filter(|(_, row)| row.stamp <= *point) {
                    row.settled_by = row.settled_by.max(*generation);
                }
                self.marks.insert(*lineage, (*generation, *point));
            }
        }
    }
}

/// The disk.
#[derive(Clone, Debug)]
pub(crate) struct ModelDisk {
    pub(crate) incarnation: Incarnation,
    pub(crate) lossless_from: Incarnation,
    now: Content,
    stable: Content,
    log: Vec<Op>,
    /// Layers of all lineages that are known, with what lies below.
    parents: BTreeMap<LayerId, LayerId>,
    pub(crate) fences: BTreeMap<LineageId, Generation>,
    /// In the order in which they were refused, each partition once.
    pub(crate) refused: Vec<(u64, Refused)>,
    refusals: u64,
    /// The newest attempt of each partition, and whether it has ended here.
    attempts: BTreeMap<PartitionId, (u64, bool)>,
    staged: BTreeMap<(LineageId, ObjectKey), BTreeMap<u32, Cell>>,
    /// Blocks whose content is damaged.
    pub(crate) damaged: BTreeSet<(ObjectKey, u32)>,
    pub(crate) is_full: bool,
}

const BITS: u8 = 2;

impl ModelDisk {
    pub(crate) fn new() -> ModelDisk {
        ModelDisk {
            incarnation: Incarnation(1),
            lossless_from: Incarnation(1),
            now: Content::default(),
            stable: Content::default(),
            log: Vec::new(),
            parents: BTreeMap::new(),
            fences: BTreeMap::new(),
            refused: Vec::new(),
            refusals: 0,
            attempts: BTreeMap::new(),
            staged: BTreeMap::new(),
            damaged: BTreeSet::new(),
            is_full: false,
        }
    }

    /// Its `sheep` dies and starts again; if power failed, each object keeps only a beginning of
    /// what was not flushed: it ends with each change in so many of a thousand cases.
    pub(crate) fn reopen(&mut self, lost_of_thousand: u64, random: &mut Random) {
        self.incarnation = Incarnation(self.incarnation.0 + 1);
        self.staged.clear();
        self.refusals = self.refused.len() as u64;
        for (at, (count, _)) in self.refused.iter_mut().enumerate() {
            *count = at as u64 + 1;
        }
        if lost_of_thousand > 0 {
            self.lossless_from = self.incarnation;
            let mut content = self.stable.clone();
            let mut lost: BTreeMap<(LineageId, u32), bool> = BTreeMap::new();
            for op in std::mem::take(&mut self.log) {
                let is_lost = match op {
                    Op::Put((lineage, index, _), _) => {
                        let lost = lost.entry((lineage, index)).or_default();
                        *lost |= random.chance(lost_of_thousand);
                        *lost
                    }
                    _ => random.chance(500),
                };
                if !is_lost {
                    content.apply(&op);
                }
            }
            self.now = content;
        }
        // Opening flushes what it found.
        self.flush();
    }

    fn flush(&mut self) {
        self.stable = self.now.clone();
        self.log.clear();
    }

    fn apply(&mut self, op: Op) {
        self.now.apply(&op);
        self.log.push(op);
    }

    /// The layers from this one down.
    fn down(&self, layer: LayerId) -> impl Iterator<Item = LayerId> + '_ {
        std::iter::successors(Some(layer), |at| self.parents.get(at).copied())
    }

    pub(crate) fn row(&self, lineage: LineageId, key: ObjectKey) -> Option<&Row> {
        self.now.rows.get(&(lineage, key.index, key.layer))
    }

    pub(crate) fn rows(&self) -> &BTreeMap<Place, Row> {
        &self.now.rows
    }

    /// What is on the medium.
    pub(crate) fn stable_rows(&self) -> &BTreeMap<Place, Row> {
        &self.stable.rows
    }

    /// What a layer shows of a block.
    pub(crate) fn cell(&self, lineage: LineageId, key: ObjectKey, block: u32) -> Cell {
        let rows = &self.now.rows;
        let shown = self.down(key.layer).filter_map(|at| rows.get(&(lineage, key.index, at)));
        shown.filter_map(|row| row.cells.get(&block)).next().cloned().unwrap_or(Cell::Absent)
    }

    pub(crate) fn stamp(&self, lineage: LineageId, key: ObjectKey) -> ObjectStamp {
        let rows = &self.now.rows;
        let shown = self.down(key.layer).find_map(|at| rows.get(&(lineage, key.index, at)));
        let row = shown.cloned().unwrap_or_default();
        let mark = self.now.marks.get(&lineage).copied().unwrap_or_default();
        let settled_generation = match shown {
            None => mark.0,
            Some(row) => row.settled_by.max(row.stamp.generation),
        };
        ObjectStamp { key, stamp: row.stamp, settled_generation }
    }

    /// Whether it lists the object as not settled.
    pub(crate) fn names(&self, lineage: LineageId, key: ObjectKey) -> bool {
        let settled = self.now.settled.get(&lineage).copied().unwrap_or_default();
        self.row(lineage, key).is_some_and(|row| row.stamp >= settled)
    }

    fn knows(&self, lineage: LineageId, layer: LayerId) -> bool {
        layer.0 == lineage.0 || self.parents.contains_key(&layer)
    }

    fn partition(&self, lineage: LineageId, key: ObjectKey) -> PartitionId {
        partition_of(lineage, key.index, BITS)
    }

    fn vet(&self, lineage: LineageId, generation: Generation) -> Result<(), MemberError> {
        let fence = self.fences.get(&lineage).copied().unwrap_or_default();
        if generation < fence { Err(MemberError::Fenced { newer: fence }) } else { Ok(()) }
    }

    fn vet_under(
        &self,
        lineage: LineageId,
        key: ObjectKey,
        under: Under,
    ) -> Result<(), MemberError> {
        let partition = self.partition(lineage, key);
        let later = |refused: &&(u64, Refused)| {
            let refused = refused.1;
            refused.partition == partition
                && refused.under.copies == under.copies
                && refused.under.number >= under.number
        };
        match self.refused.iter().find(later) {
            None => Ok(()),
            Some((_, refused)) => {
                let have = ConfigurationNumber(refused.under.number.0 + 1);
                Err(MemberError::WrongConfiguration { have })
            }
        }
    }

    fn vet_permit(
        &mut self,
        permit: Permit,
        lineage: LineageId,
        key: ObjectKey,
    ) -> Result<(), MemberError> {
        match permit {
            Permit::Session { generation, under } => {
                self.vet(lineage, generation)?;
                self.vet_under(lineage, key, under)
            }
            Permit::Attempt { attempt, .. } => {
                let partition = self.partition(lineage, key);
                self.vet_attempt(partition, attempt)
            }
            Permit::Mend { under } => self.vet_under(lineage, key, under),
        }
    }

    /// Whether a layer above has the object: then this layer's content does not change.
    fn is_covered(&self, lineage: LineageId, key: ObjectKey) -> bool {
        self.now.rows.keys().any(|&(of, index, layer)| {
            (of, index) == (lineage, key.index)
                && layer != key.layer
                && self.down(layer).any(|at| at == key.layer)
        })
    }

    fn vet_covered(&self, lineage: LineageId, key: ObjectKey) -> Result<(), MemberError> {
        match self.is_covered(lineage, key) {
            true => Err(MemberError::invalid("a layer above has the object")),
            false => Ok(()),
        }
    }

    fn vet_attempt(&mut self, partition: PartitionId, attempt: u64) -> Result<(), MemberError> {
        let known = self.attempts.entry(partition).or_default();
        if known.0 > attempt || (known.0 == attempt && known.1) {
            return Err(MemberError::Superseded { newer: known.0 });
        }
        *known = (attempt, false);
        Ok(())
    }

    fn refuse(&mut self, copies: u8, bits: u8, partition: PartitionId, number: u64) {
        let number = ConfigurationNumber(number);
        let under = Under { copies, bits, number };
        let is_same =
            |other: &Refused| other.partition == partition && other.under.copies == copies;
        let known = self.refused.iter().find(|(_, other)| is_same(other));
        if known.is_some_and(|(_, known)| known.under.number >= number) {
            return;
        }
        self.refused.retain(|(_, other)| !is_same(other));
        self.refusals += 1;
        self.refused.push((self.refusals, Refused { under, partition }));
    }

    pub(crate) fn write_cells(cells: &mut BTreeMap<u32, Cell>, change: &Change) {
        match change {
            Change::Data { first, payload, .. } => {
                for (at, data) in payload.as_slice().chunks(BLOCK_SIZE).enumerate() {
                    let bytes = data[..8].try_into().expect("eight bytes");
                    cells.insert(first + at as u32, Cell::Data(u64::from_le_bytes(bytes)));
                }
            }
            Change::Zero { blocks } => cells.extend(blocks.iter().map(|at| (at, Cell::Zero))),
            Change::Absent { blocks } => cells.extend(blocks.iter().map(|at| (at, Cell::Absent))),
        }
    }

    fn write(&mut self, write: &Write) -> Result<MemberReply, MemberError> {
        let Write { lineage, key, .. } = *write;
        self.vet(lineage, write.stamp.generation)?;
        self.vet_under(lineage, key, write.under)?;
        let have = self.stamp(lineage, key).stamp;
        if have != write.previous {
            return Err(MemberError::WrongStamp { have });
        }
        if self.is_full && matches!(write.change, Change::Data { .. }) {
            return Err(MemberError::NoSpace);
        }
        let mut row = self.row(lineage, key).cloned().unwrap_or_default();
        row.stamp = write.stamp;
        row.settled_by = row.settled_by.max(write.stamp.generation);
        ModelDisk::write_cells(&mut row.cells, &write.change);
        self.apply(Op::Put((lineage, key.index, key.layer), Some(row)));
        self.apply(Op::Settled(lineage, write.settled));
        Ok(MemberReply::Written { incarnation: self.incarnation })
    }

    fn change_row(
        &mut self,
        lineage: LineageId,
        key: ObjectKey,
        change: impl FnOnce(&mut Row),
    ) -> Result<MemberReply, MemberError> {
        let mut row = self.row(lineage, key).cloned().unwrap_or_default();
        change(&mut row);
        self.apply(Op::Put((lineage, key.index, key.layer), Some(row)));
        Ok(MemberReply::Done)
    }

    fn read(&self, lineage: LineageId, key: ObjectKey, blocks: BlockRange) -> MemberReply {
        let mut content = Buffer::zeroed(blocks.bytes());
        let mut absent = Vec::new();
        for (at, block) in blocks.iter().enumerate() {
            match self.cell(lineage, key, block) {
                Cell::Data(word) => {
                    let place = at * BLOCK_SIZE;
                    content.as_mut_slice()[place..place + 8].copy_from_slice(&word.to_le_bytes());
                }
                Cell::Zero => {}
                Cell::Absent => absent.extend(BlockRange::new(block, 1)),
            }
        }
        MemberReply::Data { content: vec![content.freeze()], absent }
    }

    /// Does what it is asked.
    pub(crate) fn handle(&mut self, request: &MemberRequest) -> Result<MemberReply, MemberError> {
        // The disk may be another node's.
        assert_eq!(proto::wire::request::vet(request), Ok(()), "no link takes {request:?}");
        let incarnation = self.incarnation;
        match *request {
            MemberRequest::Write(ref write) => self.write(write),
            MemberRequest::Fence { lineage, generation, list, after } => {
                self.vet(lineage, generation)?;
                self.fences.insert(lineage, generation);
                let settled = self.now.settled.get(&lineage).copied().unwrap_or_default();
                let rows = self.now.rows.iter().filter(|((of, ..), _)| list && *of == lineage);
                let rows = rows.filter(|(_, row)| row.stamp >= settled);
                let key = |&(_, index, layer): &Place| ObjectKey { layer, index };
                let mut unsettled: Vec<ObjectStamp> = rows
                    .map(|(place, _)| self.stamp(lineage, key(place)))
                    .filter(|found| found.key > after)
                    .collect();
                unsettled.sort_by_key(|found| found.key);
                // Small pieces, so that tests see several.
                let more = unsettled.len() > MEMBER_ROWS_MAX.min(3);
                unsettled.truncate(3);
                Ok(MemberReply::Fenced { incarnation, settled, unsettled, more })
            }
            MemberRequest::Settle { lineage, key, generation, under, stamp } => {
                self.vet(lineage, generation)?;
                self.vet_under(lineage, key, under)?;
                let have = self.stamp(lineage, key).stamp;
                if have != stamp {
                    return Err(MemberError::WrongStamp { have });
                }
                if self.row(lineage, key).is_none() {
                    return Ok(MemberReply::Done);
                }
                self.change_row(lineage, key, |row| row.settled_by = row.settled_by.max(generation))
            }
            MemberRequest::Stamp { lineage, key, generation } => {
                self.vet(lineage, generation)?;
                if !self.knows(lineage, key.layer) {
                    return Err(MemberError::invalid("the layer was not opened"));
                }
                Ok(MemberReply::Stamp(self.stamp(lineage, key)))
            }
            MemberRequest::OpenLayer { lineage, generation, layer, parent } => {
                self.vet(lineage, generation)?;
                assert!(generation < Generation::SEALED);
                // Below the lowest layer that is left there is none.
                if parent != LayerId(0) && !self.knows(lineage, parent) {
                    return Err(MemberError::invalid("the layer below is not known"));
                }
                self.parents.insert(layer, parent);
                Ok(MemberReply::Done)
            }
            MemberRequest::Read { lineage, key, generation, under, blocks } => {
                self.vet(lineage, generation)?;
                if let Some(under) = under {
                    self.vet_under(lineage, key, under)?;
                }
                if let Some(block) = blocks.iter().find(|at| self.damaged.contains(&(key, *at))) {
                    return Err(MemberError::Corrupt { key, block });
                }
                Ok(self.read(lineage, key, blocks))
            }
            MemberRequest::Map { lineage, key, generation, under, blocks } => {
                self.vet(lineage, generation)?;
                if let Some(under) = under {
                    self.vet_under(lineage, key, under)?;
                }
                let state = |at| match self.cell(lineage, key, at) {
                    Cell::Absent => BlockState::Absent,
                    Cell::Zero => BlockState::Zero,
                    Cell::Data(_) => BlockState::Data,
                };
                Ok(MemberReply::Map(blocks.iter().map(|at| (1, state(at))).collect()))
            }
            MemberRequest::Flush { lineage, generation, settled } => {
                self.vet(lineage, generation)?;
                self.apply(Op::Settled(lineage, settled));
                self.flush();
                Ok(MemberReply::Flushed { incarnation })
            }
            MemberRequest::Mark { lineage, generation, settled, refusals } => {
                self.vet(lineage, generation)?;
                if refusals != self.refusals {
                    return Err(MemberError::RefusedMore { refusals: self.refusals });
                }
                self.apply(Op::Mark(lineage, generation, settled));
                Ok(MemberReply::Done)
            }
            MemberRequest::Confirm { lineage, generation, refusals } => {
                self.vet(lineage, generation)?;
                let newer = self.refused.iter().filter(|(count, _)| *count > refusals);
                let mut newer: Vec<(u64, Refused)> = newer.copied().collect();
                let more = newer.len() > 2;
                newer.truncate(2);
                let refusals = match newer.last() {
                    Some((count, _)) if more => *count,
                    _ => self.refusals,
                };
                let refused = newer.into_iter().map(|(_, refused)| refused).collect();
                Ok(MemberReply::Confirmed { incarnation, refusals, refused, more })
            }
            MemberRequest::Checksums { lineage, key, blocks } => {
                let sum = |at| match self.cell(lineage, key, at) {
                    Cell::Absent => BlockSum::Absent,
                    Cell::Zero => BlockSum::Zero,
                    Cell::Data(word) => {
                        let data = block_of(word);
                        BlockSum::Data(block_checksum(lineage, key, at, data.as_slice()))
                    }
                };
                Ok(MemberReply::Checksums(blocks.iter().map(sum).collect()))
            }
            MemberRequest::Stage { permit, lineage, key, ref change } => {
                self.vet_permit(permit, lineage, key)?;
                self.vet_covered(lineage, key)?;
                if self.is_full && matches!(change, Change::Data { .. }) {
                    return Err(MemberError::NoSpace);
                }
                let staged = self.staged.entry((lineage, key)).or_default();
                let mut cells = BTreeMap::new();
                ModelDisk::write_cells(&mut cells, change);
                if cells.keys().any(|at| staged.contains_key(at)) {
                    return Err(MemberError::invalid("parts of what is staged overlap"));
                }
                staged.append(&mut cells);
                Ok(MemberReply::Done)
            }
            MemberRequest::Adopt {
                permit,
                lineage,
                key,
                staged,
                stamp,
                settled_generation,
                replaces,
            } => {
                self.vet_permit(permit, lineage, key)?;
                let mut cells = self.staged.remove(&(lineage, key)).unwrap_or_default();
                let have = cells.len() as u32;
                let is = self.row(lineage, key).map(|row| (row.stamp, row.settled_by));
                if have == 0 && is == Some((stamp, settled_generation)) {
                    return Ok(MemberReply::Done);
                }
                let shown = self.stamp(lineage, key).stamp;
                if shown != replaces {
                    return Err(MemberError::WrongStamp { have: shown });
                }
                let is_equal = have == 0 && is.is_some_and(|is| is.0 == stamp);
                if !(is_equal && staged == 0) {
                    self.vet_covered(lineage, key)?;
                }
                if have != staged {
                    return Err(MemberError::NotStaged { have });
                }
                self.change_row(lineage, key, |row| {
                    row.stamp = stamp;
                    row.settled_by = settled_generation;
                    row.cells.append(&mut cells);
                })
            }
            MemberRequest::Retract { permit, lineage, key, replaces } => {
                self.vet_permit(permit, lineage, key)?;
                self.vet_covered(lineage, key)?;
                let Some(have) = self.row(lineage, key).map(|row| row.stamp) else {
                    return Ok(MemberReply::Done);
                };
                if have != replaces {
                    return Err(MemberError::WrongStamp { have });
                }
                self.apply(Op::Put((lineage, key.index, key.layer), None));
                Ok(MemberReply::Done)
            }
            MemberRequest::Refuse(ref batch) => {
                for &(partition, number) in &batch.partitions {
                    self.vet_attempt(partition, batch.attempt)?;
                    self.refuse(batch.copies, batch.bits, partition, number.0);
                }
                let lossless_from = self.lossless_from;
                Ok(MemberReply::Refused { incarnation, lossless_from })
            }
            MemberRequest::Install { ref batch, ref fences, last } => {
                for &(partition, number) in &batch.partitions {
                    self.vet_attempt(partition, batch.attempt)?;
                    self.refuse(batch.copies, batch.bits, partition, number.0);
                    self.attempts.insert(partition, (batch.attempt, last));
                }
                for &(lineage, generation) in fences {
                    let fence = self.fences.entry(lineage).or_default();
                    *fence = (*fence).max(generation);
                }
                self.flush();
                Ok(MemberReply::Installed { incarnation })
            }
            MemberRequest::Lineages { after } => {
                let known = self.fences.iter().filter(|(lineage, _)| **lineage > after);
                let mut lineages: Vec<LineageStamp> = known
                    .map(|(&lineage, &fence)| {
                        let settled = self.now.settled.get(&lineage).copied().unwrap_or_default();
                        let marked_by = self.now.marks.get(&lineage).map_or(Generation(0), |m| m.0);
                        LineageStamp { lineage, fence, settled, marked_by }
                    })
                    .collect();
                let more = lineages.len() > 2;
                lineages.truncate(2);
                Ok(MemberReply::Lineages { lineages, more })
            }
            MemberRequest::Survey { bits, ref partitions, unsettled, after } => {
                assert!(partitions.is_sorted_by(|one, other| one < other));
                let is_asked = |&(lineage, index, layer): &Place| {
                    let row = &self.now.rows[&(lineage, index, layer)];
                    let settled = self.now.settled.get(&lineage).copied().unwrap_or_default();
                    partitions.binary_search(&partition_of(lineage, index, bits)).is_ok()
                        && (!unsettled || row.stamp >= settled)
                };
                let places = self.now.rows.keys().filter(|place| is_asked(place));
                let mut objects: Vec<(LineageId, ObjectStamp)> = places
                    .map(|&(lineage, index, layer)| {
                        (lineage, self.stamp(lineage, ObjectKey { layer, index }))
                    })
                    .filter(|(lineage, found)| (*lineage, found.key) > after)
                    .collect();
                objects.sort_by_key(|(lineage, found)| (*lineage, found.key));
                let more = objects.len() > 5;
                objects.truncate(5);
                Ok(MemberReply::Survey { incarnation, objects, more })
            }
            MemberRequest::Difference { .. } | MemberRequest::Reclaimable { .. } => {
                panic!("no test asks this of a model")
            }
        }
    }

    /// All blocks of an object as a layer shows them.
    pub(crate) fn cells(&self, lineage: LineageId, key: ObjectKey) -> BTreeMap<u32, Cell> {
        let cells = (0..BLOCKS_PER_OBJECT).map(|at| (at, self.cell(lineage, key, at)));
        cells.filter(|(_, cell)| *cell != Cell::Absent).collect()
    }
}

/// A block that begins with this word.
pub(crate) fn block_of(word: u64) -> Payload {
    Buffer::copy_of(&word.to_le_bytes()).freeze()
}
