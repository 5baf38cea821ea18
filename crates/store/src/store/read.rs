//! Reading blocks and asking what they are, as a layer shows them.

use super::pages::Waiter;
use super::write::pages_of;
use super::{Operation, Serving};
use crate::layout::{BLOCKS_PER_PAGE, Entry, Kind, PAGES_PER_OBJECT};
use crate::table::{NOT_CACHED, Next, Slot};
use crate::{Damage, DamagedPart, Effect};
use proto::{
    BLOCK_SIZE, BlockRange, BlockState, BlockSum, Buffer, DiskError, Generation, LayerId,
    LineageId, MemberError, MemberReply, MemberToken, ObjectKey, Payload, Time, Under,
    block_checksum, limits,
};
use std::collections::{BTreeMap, BTreeSet};

/// Objects that one question for what is reclaimable looks at.
const RECLAIMABLE_OBJECTS: usize = 64;
/// Rows it looks at to find them.
const RECLAIMABLE_ROWS: u64 = 4096;

/// What is asked of some blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Question {
    /// Their content.
    Content,
    /// What they are.
    Map,
    /// What they are where a layer below shows something else.
    Difference(LayerId),
    /// The checksum of each.
    Checksums,
    /// How much would be free without the layer, from the object on.
    Reclaimable,
}

/// The rows that have the pages of an object as a layer shows it.
type Sources = [Option<Slot>; PAGES_PER_OBJECT];

/// A question that waits for pages or for data under way.
#[derive(Clone, Copy, Debug)]
struct Parked {
    token: MemberToken,
    lineage: LineageId,
    key: ObjectKey,
    blocks: BlockRange,
    generation: Generation,
    under: Option<Under>,
    question: Question,
    /// How many wake-ups are still to come.
    wakes: u32,
}

/// A run of blocks of an answer.
#[derive(Debug)]
enum Piece {
    Zero(u32),
    /// Blocks from an address on: the layer that has the map, the first block, the first of their
    /// checksums, the bytes.
    Data {
        layer: LayerId,
        address: u64,
        first: u32,
        count: u32,
        checksum_at: usize,
        bytes: Option<Payload>,
    },
}

/// A read whose addresses are known.
#[derive(Debug)]
struct Read {
    token: MemberToken,
    lineage: LineageId,
    key: ObjectKey,
    pieces: Vec<Piece>,
    absent: Vec<BlockRange>,
    checksums: Vec<u64>,
    missing: usize,
    /// The first damaged block.
    damaged: Option<u32>,
}

/// The reads under way. Each read of the medium holds a number; blocks freed later wait for it.
#[derive(Default)]
pub(super) struct Reads {
    last: u64,
    holds: BTreeSet<u64>,
    parked: BTreeMap<u64, Parked>,
    reads: BTreeMap<u64, Read>,
    /// Zeros, shared by all answers.
    zeros: Option<Payload>,
}

impl Reads {
    /// The number that the next read will have.
    pub(super) fn next(&self) -> u64 {
        self.last + 1
    }

    /// Begins a read of the medium.
    pub(super) fn hold(&mut self) -> u64 {
        self.last += 1;
        self.holds.insert(self.last);
        self.last
    }

    /// Ends a read of the medium.
    pub(super) fn release(&mut self, hold: u64) {
        assert!(self.holds.remove(&hold), "a read ends twice");
    }

    /// The lowest number of a read under way; without any, that of the next.
    pub(super) fn oldest(&self) -> u64 {
        self.holds.first().copied().unwrap_or(self.last + 1)
    }

    /// Takes out a read that waits.
    pub(super) fn take_parked(&mut self, parked: u64) -> Option<MemberToken> {
        self.parked.remove(&parked).map(|parked| parked.token)
    }

    fn zeros(&mut self, blocks: u32) -> Payload {
        let longest = limits::MEMBER_REQUEST_BLOCKS_MAX as usize * BLOCK_SIZE;
        let zeros = self.zeros.get_or_insert_with(|| Payload::zeroed(longest));
        zeros.slice(0, blocks as usize * BLOCK_SIZE)
    }
}

impl Serving {
    /// Takes a question about some blocks.
    #[expect(clippy::too_many_arguments, reason = "the fields of one request")]
    pub(super) fn read(
        &mut self,
        now: Time,
        token: MemberToken,
        lineage: LineageId,
        key: ObjectKey,
        generation: Generation,
        under: Option<Under>,
        blocks: BlockRange,
        question: Question,
        effects: &mut Vec<Effect>,
    ) {
        if question == Question::Content && super::requests::is_too_long(&blocks) {
            let error = MemberError::invalid("the read is too long");
            return self.answer(token, Err(error), effects);
        }
        let parked = Parked { token, lineage, key, blocks, generation, under, question, wakes: 0 };
        self.attempt_read(now, parked, effects);
    }

    /// One of the things that a parked read waits for has come.
    pub(super) fn retry_read(&mut self, now: Time, parked: u64, effects: &mut Vec<Effect>) {
        let Some(waiting) = self.reads.parked.get_mut(&parked) else { return };
        waiting.wakes -= 1;
        if waiting.wakes == 0
            && let Some(parked) = self.reads.parked.remove(&parked)
        {
            self.attempt_read(now, parked, effects);
        }
    }

    fn attempt_read(&mut self, _now: Time, parked: Parked, effects: &mut Vec<Effect>) {
        let Parked { lineage, key, .. } = parked;
        let refusal = self
            .fenced(lineage, parked.generation)
            .or_else(|| self.refused(parked.under?, lineage, key.index))
            .or_else(|| self.foreign(lineage, key))
            .or_else(|| self.vet_base(&parked))
            // What is not dropped yet of a layer is no content of it.
            .or_else(|| self.deleted(key.layer));
        if let Some(error) = refusal {
            return self.answer(parked.token, Err(error), effects);
        }
        if parked.question == Question::Reclaimable {
            return self.reclaimable(parked, effects);
        }
        let Some(slot) = self.shown(lineage, key) else {
            return self.answer_unwritten(&parked, effects);
        };
        let sources = self.sources(slot, &parked.blocks);
        let base = match parked.question {
            Question::Difference(base) => {
                let base = self.shown(lineage, ObjectKey { layer: base, ..key });
                base.map(|slot| self.sources(slot, &parked.blocks)).unwrap_or_default()
            }
            _ => Sources::default(),
        };
        let mut wanted = Vec::new();
        for (page, ..) in pages_of(&parked.blocks).filter(|&(page, ..)| sources[page] != base[page])
        {
            wanted.extend([sources[page], base[page]].into_iter().flatten().map(|s| (s, page)));
        }
        if self.park_for_pages(&wanted, parked, effects) {
            return;
        }
        match parked.question {
            Question::Content => self.begin_read(&sources, parked, effects),
            Question::Difference(_) => self.answer_difference(&sources, &base, &parked, effects),
            Question::Checksums => self.answer_checksums(&sources, &parked, effects),
            _ => self.answer_map(&sources, &parked, effects),
        }
    }

    /// The error for a question about a layer that is being dropped.
    fn deleted(&self, layer: LayerId) -> Option<MemberError> {
        let deleted = self.drops.contains(layer);
        deleted.then_some(MemberError::invalid("the layer is deleted"))
    }

    /// The error for a difference from a layer that does not lie below.
    fn vet_base(&self, parked: &Parked) -> Option<MemberError> {
        let Question::Difference(base) = parked.question else { return None };
        let tree = self.tree(parked.lineage);
        // Of a first layer that is not here nothing was written.
        let nothing = base.0 == 0 || (base.0 == parked.lineage.0 && !tree.contains(base));
        let below = nothing || tree.is_below(base, parked.key.layer);
        if !below {
            return Some(MemberError::invalid("the base is not below the layer"));
        }
        self.deleted(base)
    }

    /// The rows that have the pages of some blocks as a row's layer shows them.
    fn sources(&mut self, slot: Slot, blocks: &BlockRange) -> Sources {
        let mut sources = Sources::default();
        for (page, ..) in pages_of(blocks) {
            sources[page] = self.source(slot, page);
        }
        sources
    }

    /// Loads the pages that are not cached; the question comes back when all are. Returns whether
    /// there were any.
    fn park_for_pages(
        &mut self,
        wanted: &[(Slot, usize)],
        mut parked: Parked,
        effects: &mut Vec<Effect>,
    ) -> bool {
        parked.wakes =
            wanted.iter().filter(|&&(slot, page)| self.is_missing(slot, page)).count() as u32;
        if parked.wakes == 0 {
            return false;
        }
        self.reads.last += 1;
        let number = self.reads.last;
        self.reads.parked.insert(number, parked);
        for &(slot, page) in wanted {
            self.load_page(slot, page, Some(Waiter::Read(number)), effects);
        }
        true
    }

    fn answer_unwritten(&mut self, parked: &Parked, effects: &mut Vec<Effect>) {
        let count = parked.blocks.count();
        let reply = match parked.question {
            Question::Content => MemberReply::Data {
                content: vec![self.reads.zeros(count)],
                absent: vec![parked.blocks],
            },
            // A layer below has nothing either.
            Question::Difference(_) => MemberReply::Difference(vec![(count, None)]),
            Question::Checksums => MemberReply::Checksums(vec![BlockSum::Absent; count as usize]),
            _ => MemberReply::Map(vec![(count, BlockState::Absent)]),
        };
        self.answer(parked.token, Ok(reply), effects);
    }

    /// The entry of a block whose page is cached or does not exist.
    fn entry(&mut self, sources: &Sources, block: u32) -> Entry {
        let page = (block / BLOCKS_PER_PAGE) as usize;
        let index = sources[page].map_or(NOT_CACHED, |slot| self.table.row(slot).cached[page]);
        if index == NOT_CACHED {
            return Entry::ABSENT;
        }
        self.cache.read(index).map.entry(block % BLOCKS_PER_PAGE)
    }

    fn answer_map(&mut self, sources: &Sources, parked: &Parked, effects: &mut Vec<Effect>) {
        let mut runs: Vec<(u32, BlockState)> = Vec::new();
        for block in parked.blocks.iter() {
            push_state(&mut runs, state_of(&self.entry(sources, block)));
        }
        self.answer(parked.token, Ok(MemberReply::Map(runs)), effects);
    }

    fn answer_checksums(&mut self, sources: &Sources, parked: &Parked, effects: &mut Vec<Effect>) {
        let mut sums = Vec::with_capacity(parked.blocks.count() as usize);
        for block in parked.blocks.iter() {
            let entry = self.entry(sources, block);
            sums.push(match entry.kind {
                Kind::Absent => BlockSum::Absent,
                Kind::Zero => BlockSum::Zero,
                Kind::Data => BlockSum::Data(entry.checksum),
                Kind::Lost => {
                    let error = MemberError::Corrupt { key: parked.key, block };
                    return self.answer(parked.token, Err(error), effects);
                }
            });
        }
        self.answer(parked.token, Ok(MemberReply::Checksums(sums)), effects);
    }

    fn answer_difference(
        &mut self,
        sources: &Sources,
        base: &Sources,
        parked: &Parked,
        effects: &mut Vec<Effect>,
    ) {
        let mut runs: Vec<(u32, Option<BlockState>)> = Vec::new();
        for block in parked.blocks.iter() {
            let page = (block / BLOCKS_PER_PAGE) as usize;
            // The same page shows the same, also where it is damaged.
            let state = if sources[page] == base[page] {
                None
            } else {
                let (new, old) = (self.entry(sources, block), self.entry(base, block));
                let same = new.kind != Kind::Lost && new.shows_same(&old);
                (!same).then(|| state_of(&new))
            };
            push_state(&mut runs, state);
        }
        self.answer(parked.token, Ok(MemberReply::Difference(runs)), effects);
    }

    /// Counts what only the layer shows of its next objects.
    fn reclaimable(&mut self, parked: Parked, effects: &mut Vec<Effect>) {
        let Parked { token, lineage, key, .. } = parked;
        let (children, child) = self.tree(lineage).children(key.layer);
        let (mut blocks, mut index, mut next_index) = (0, Some(key.index), None);
        let end = self.table.steps() + RECLAIMABLE_ROWS;
        let mut objects = 0;
        while let Some(from) = index.filter(|_| children < 2) {
            let rows = end.saturating_sub(self.table.steps());
            let slot = match self.table.next_of(lineage, key.layer, from, rows) {
                Next::Found(slot) if objects < RECLAIMABLE_OBJECTS => slot,
                Next::Found(slot) => {
                    next_index = Some(self.table.row(slot).key.index);
                    break;
                }
                Next::Later(later) => {
                    next_index = Some(later);
                    break;
                }
                Next::None => break,
            };
            objects += 1;
            let at = self.table.row(slot).key.index;
            let upper = match children {
                0 => None,
                _ => match self.table.find(lineage, ObjectKey { layer: child, index: at }) {
                    Some(upper) => Some(upper),
                    None => {
                        // The layer above would have the object as it is.
                        index = at.checked_add(1);
                        continue;
                    }
                },
            };
            let wanted = self.pages_of_both(slot, upper);
            if objects == 1 && self.park_for_pages(&wanted, parked, effects) {
                return;
            }
            if wanted.iter().any(|&(slot, page)| self.is_missing(slot, page)) {
                next_index = Some(at);
                break;
            }
            blocks += self.freed_by_dropping(slot, upper);
            index = at.checked_add(1);
        }
        self.answer(token, Ok(MemberReply::Reclaimable { blocks, next_index }), effects);
    }

    /// The pages that must be known to say what dropping an object would free.
    fn pages_of_both(&self, slot: Slot, upper: Option<Slot>) -> Vec<(Slot, usize)> {
        let Some(upper) = upper else { return Vec::new() };
        let both =
            |&page: &usize| self.table.row(slot).owns(page) && self.table.row(upper).owns(page);
        let pages = (0..PAGES_PER_OBJECT).filter(both);
        pages.flat_map(|page| [(slot, page), (upper, page)]).collect()
    }

    /// How many blocks of an object nothing above shows. Its pages are cached.
    fn freed_by_dropping(&mut self, slot: Slot, upper: Option<Slot>) -> u64 {
        let counts = self.table.row(slot).counts;
        let Some(upper) = upper else { return counts.iter().map(|&count| u64::from(count)).sum() };
        let mut blocks = 0;
        for page in 0..PAGES_PER_OBJECT {
            let (below, above) = (self.table.row(slot), self.table.row(upper));
            if !below.owns(page) || !above.owns(page) {
                continue;
            }
            let damaged = |index| index != NOT_CACHED && self.cache.peek(index).damaged;
            if damaged(below.cached[page]) || damaged(above.cached[page]) {
                continue;
            }
            let (lower, upper) = (Some(slot), Some(upper));
            for at in 0..BLOCKS_PER_PAGE {
                let block = page as u32 * BLOCKS_PER_PAGE + at;
                let entry = self.entry(&[lower; PAGES_PER_OBJECT], block);
                let shown = self.entry(&[upper; PAGES_PER_OBJECT], block);
                let owned = entry.kind == Kind::Data && entry.owner;
                blocks += u64::from(owned && !shown.shows_same(&entry));
            }
        }
        blocks
    }

    /// Finds the blocks and asks the medium for them, neighbours together, once all that is being
    /// written there is.
    fn begin_read(&mut self, sources: &Sources, mut parked: Parked, effects: &mut Vec<Effect>) {
        let history = (parked.lineage, parked.key.index);
        if self.retired.is_none()
            && let Some(lsn) = self.in_flight.writing(history, &parked.blocks)
        {
            self.reads.last += 1;
            parked.wakes = 1;
            self.reads.parked.insert(self.reads.last, parked);
            self.in_flight.wait_for_data(lsn, self.reads.last);
            return;
        }
        let mut pieces: Vec<Piece> = Vec::new();
        let mut checksums = Vec::new();
        let mut absent: Vec<BlockRange> = Vec::new();
        for block in parked.blocks.iter() {
            let entry = self.entry(sources, block);
            match entry.kind {
                Kind::Lost => {
                    let error = MemberError::Corrupt { key: parked.key, block };
                    return self.answer(parked.token, Err(error), effects);
                }
                Kind::Absent | Kind::Zero => {
                    if entry.kind == Kind::Absent {
                        push_range(&mut absent, block);
                    }
                    match pieces.last_mut() {
                        Some(Piece::Zero(count)) => *count += 1,
                        _ => pieces.push(Piece::Zero(1)),
                    }
                }
                Kind::Data => {
                    let source = sources[(block / BLOCKS_PER_PAGE) as usize];
                    let layer = source.map_or(parked.key.layer, |at| self.table.row(at).key.layer);
                    push_data(&mut pieces, layer, entry.address, block, checksums.len());
                    checksums.push(entry.checksum);
                }
            }
        }
        let id = self.reads.hold();
        let mut missing = 0;
        for (at, piece) in pieces.iter().enumerate() {
            if let Piece::Data { address, count, .. } = piece {
                missing += 1;
                let operation = Operation::Read { read: id, piece: at };
                self.operations.read(operation, *address, *count as usize, effects);
            }
        }
        let Parked { token, lineage, key, .. } = parked;
        let read = Read { token, lineage, key, pieces, absent, checksums, missing, damaged: None };
        self.reads.reads.insert(id, read);
        if missing == 0 {
            self.finish_read(id, effects);
        }
    }

    /// The medium has read a piece, or not.
    pub(super) fn piece_read(
        &mut self,
        id: u64,
        at: usize,
        result: Result<Buffer, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        let read = self.reads.reads.get_mut(&id).expect("a read that ends was under way");
        read.missing -= 1;
        let Read { lineage, key, pieces, checksums, .. } = read;
        let Piece::Data { layer, address, first, count, checksum_at, bytes } = &mut pieces[at]
        else {
            unreachable!("only data is read")
        };
        let key = ObjectKey { layer: *layer, ..*key };
        let (lineage, address, first) = (*lineage, *address, *first);
        let mut bad = Vec::new();
        let mut doubted = Vec::new();
        let sums = &checksums[*checksum_at..*checksum_at + *count as usize];
        match result {
            Err(_) => {
                doubted.extend_from_slice(sums);
                read.damaged = Some(read.damaged.map_or(first, |other| other.min(first)));
            }
            Ok(buffer) => {
                let blocks = buffer.as_slice().chunks_exact(BLOCK_SIZE);
                for (block, (data, sum)) in (first..).zip(blocks.zip(sums)) {
                    if block_checksum(lineage, key, block, data) != *sum {
                        bad.push(block);
                    }
                }
                *bytes = Some(buffer.freeze());
            }
        }
        if let Some(block) = bad.first() {
            read.damaged = Some(read.damaged.map_or(*block, |other| other.min(*block)));
        }
        let done = read.missing == 0;
        if !doubted.is_empty() {
            self.doubt((lineage, key), first, address, &doubted, false, effects);
        }
        for block in bad {
            let part = DamagedPart::Data { lineage, key, block };
            let address = address + u64::from(block - first);
            self.damaged(Damage { part, address, unreadable: false }, effects);
        }
        if done {
            self.finish_read(id, effects);
        }
    }

    fn finish_read(&mut self, id: u64, effects: &mut Vec<Effect>) {
        let read = self.reads.reads.remove(&id).expect("a read that ends was under way");
        self.reads.release(id);
        if let Some(block) = read.damaged {
            let error = MemberError::Corrupt { key: read.key, block };
            return self.answer(read.token, Err(error), effects);
        }
        let mut bytes = 0;
        let mut payloads = Vec::with_capacity(read.pieces.len());
        for piece in read.pieces {
            let payload = match piece {
                Piece::Zero(count) => self.reads.zeros(count),
                Piece::Data { bytes, .. } => bytes.expect("every piece was read"),
            };
            bytes += payload.len() as u64;
            payloads.push(payload);
        }
        self.counters.reads += 1;
        self.counters.read_bytes += bytes;
        let reply = MemberReply::Data { content: payloads, absent: read.absent };
        self.answer(read.token, Ok(reply), effects);
    }
}

/// What a block is for those who ask.
fn state_of(entry: &Entry) -> BlockState {
    match entry.kind {
        Kind::Absent => BlockState::Absent,
        Kind::Zero => BlockState::Zero,
        // Something was there: whoever reads it learns that it is lost.
        Kind::Data | Kind::Lost => BlockState::Data,
    }
}

/// Adds a block to runs of equal state.
fn push_state<S: PartialEq>(runs: &mut Vec<(u32, S)>, state: S) {
    match runs.last_mut() {
        Some((count, last)) if *last == state => *count += 1,
        _ => runs.push((1, state)),
    }
}

/// Adds a block to ranges in block order.
fn push_range(ranges: &mut Vec<BlockRange>, block: u32) {
    let longer = ranges
        .last()
        .filter(|last| last.end() == block)
        .and_then(|last| BlockRange::new(last.first(), last.count() + 1));
    match (longer, ranges.last_mut()) {
        (Some(longer), Some(last)) => *last = longer,
        _ => ranges.extend(BlockRange::new(block, 1)),
    }
}

/// Adds a block of data to the pieces of an answer.
fn push_data(pieces: &mut Vec<Piece>, layer: LayerId, at: u64, block: u32, checksum_at: usize) {
    match pieces.last_mut() {
        Some(Piece::Data { layer: same, address, count, .. })
            if *same == layer && *address + u64::from(*count) == at =>
        {
            *count += 1;
        }
        _ => pieces.push(Piece::Data {
            layer,
            address: at,
            first: block,
            count: 1,
            checksum_at,
            bytes: None,
        }),
    }
}
