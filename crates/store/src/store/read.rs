//! Reading blocks and asking what they are.

use super::pages::Waiter;
use super::write::pages_of;
use super::{Operation, Serving};
use crate::layout::{BLOCKS_PER_PAGE, Entry, Kind};
use crate::table::{NOT_CACHED, Slot};
use crate::{Damage, DamagedPart, Effect};
use proto::{
    BLOCK_SIZE, BlockRange, BlockState, Buffer, DiskError, Generation, LineageId, MemberError,
    MemberReply, MemberToken, ObjectKey, Payload, Time, block_checksum, limits,
};
use std::collections::{BTreeMap, BTreeSet};

/// A read or map request that waits for a page or for data under way.
#[derive(Debug)]
struct Parked {
    token: MemberToken,
    lineage: LineageId,
    key: ObjectKey,
    blocks: BlockRange,
    generation: Generation,
    map_only: bool,
    /// How many wake-ups are still to come.
    wakes: u32,
}

/// A run of blocks of an answer.
#[derive(Debug)]
enum Piece {
    Zero(u32),
    /// Blocks from an address on: the first block, the first of their checksums, the bytes.
    Data {
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
    /// Takes a read, or with `map_only` a question what the blocks are.
    #[expect(clippy::too_many_arguments, reason = "the fields of one request")]
    pub(super) fn read(
        &mut self,
        now: Time,
        token: MemberToken,
        lineage: LineageId,
        key: ObjectKey,
        generation: Generation,
        blocks: BlockRange,
        map_only: bool,
        effects: &mut Vec<Effect>,
    ) {
        if !map_only && super::requests::is_too_long(&blocks) {
            let error = MemberError::Invalid("the read is too long");
            return self.answer(token, Err(error), effects);
        }
        let parked = Parked { token, lineage, key, blocks, generation, map_only, wakes: 0 };
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

    fn attempt_read(&mut self, _now: Time, mut parked: Parked, effects: &mut Vec<Effect>) {
        let refusal = self
            .fenced(parked.lineage, parked.generation)
            .or_else(|| self.foreign(parked.lineage, parked.key));
        if let Some(error) = refusal {
            return self.answer(parked.token, Err(error), effects);
        }
        let Some(slot) = self.table.find(parked.key) else {
            return self.answer_unwritten(&parked, effects);
        };
        self.reads.last += 1;
        let number = self.reads.last;
        let missing = self.missing_pages(slot, &parked.blocks);
        if missing > 0 {
            parked.wakes = missing;
            let blocks = parked.blocks;
            self.reads.parked.insert(number, parked);
            self.load_pages(slot, &blocks, Some(Waiter::Read(number)), effects);
            return;
        }
        if parked.map_only {
            return self.answer_map(slot, &parked, effects);
        }
        let lsn = self.table.row(slot).lsn;
        if self.retired.is_none()
            && let Some(lsn) = self.in_flight.writing(slot, lsn, &parked.blocks)
        {
            parked.wakes = 1;
            self.reads.parked.insert(number, parked);
            self.in_flight.wait_for_data(lsn, number);
            return;
        }
        self.begin_read(slot, &parked, effects);
    }

    fn missing_pages(&self, slot: Slot, blocks: &BlockRange) -> u32 {
        let row = self.table.row(slot);
        let missing = |page: usize| row.page(page).0 != 0 && row.cached[page] == NOT_CACHED;
        pages_of(blocks).filter(|&(page, ..)| missing(page)).count() as u32
    }

    fn answer_unwritten(&mut self, parked: &Parked, effects: &mut Vec<Effect>) {
        let count = parked.blocks.count();
        let reply = if parked.map_only {
            MemberReply::Map(vec![(count, BlockState::Absent)])
        } else {
            MemberReply::Data(vec![self.reads.zeros(count)])
        };
        self.answer(parked.token, Ok(reply), effects);
    }

    /// The entry of a block whose page is cached or does not exist.
    fn entry(&mut self, slot: Slot, block: u32) -> Entry {
        let index = self.table.row(slot).cached[(block / BLOCKS_PER_PAGE) as usize];
        if index == NOT_CACHED {
            return Entry::ABSENT;
        }
        self.cache.read(index).map.entry(block % BLOCKS_PER_PAGE)
    }

    fn answer_map(&mut self, slot: Slot, parked: &Parked, effects: &mut Vec<Effect>) {
        let mut runs: Vec<(u32, BlockState)> = Vec::new();
        for block in parked.blocks.iter() {
            let state = match self.entry(slot, block).kind {
                Kind::Absent => BlockState::Absent,
                Kind::Zero => BlockState::Zero,
                // Something was there: whoever reads it learns that it is lost.
                Kind::Data | Kind::Lost => BlockState::Data,
            };
            match runs.last_mut() {
                Some((count, last)) if *last == state => *count += 1,
                _ => runs.push((1, state)),
            }
        }
        self.answer(parked.token, Ok(MemberReply::Map(runs)), effects);
    }

    /// Finds the blocks and asks the medium for them, neighbours together.
    fn begin_read(&mut self, slot: Slot, parked: &Parked, effects: &mut Vec<Effect>) {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut checksums = Vec::new();
        for block in parked.blocks.iter() {
            let entry = self.entry(slot, block);
            match (entry.kind, pieces.last_mut()) {
                (Kind::Lost, _) => {
                    let error = MemberError::Corrupt { key: parked.key, block };
                    return self.answer(parked.token, Err(error), effects);
                }
                (Kind::Absent | Kind::Zero, Some(Piece::Zero(count))) => *count += 1,
                (Kind::Absent | Kind::Zero, _) => pieces.push(Piece::Zero(1)),
                (Kind::Data, Some(Piece::Data { address, count, .. }))
                    if *address + u64::from(*count) == entry.address =>
                {
                    *count += 1;
                    checksums.push(entry.checksum);
                }
                (Kind::Data, _) => {
                    let checksum_at = checksums.len();
                    checksums.push(entry.checksum);
                    pieces.push(Piece::Data {
                        address: entry.address,
                        first: block,
                        count: 1,
                        checksum_at,
                        bytes: None,
                    });
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
        let Parked { token, lineage, key, .. } = *parked;
        let read = Read { token, lineage, key, pieces, checksums, missing, damaged: None };
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
        let Piece::Data { address, first, count, checksum_at, bytes } = &mut pieces[at] else {
            unreachable!("only data is read")
        };
        let (lineage, key, address, first) = (*lineage, *key, *address, *first);
        let mut bad = Vec::new();
        match result {
            Err(_) => bad.push((first, true)),
            Ok(buffer) => {
                let sums = &checksums[*checksum_at..*checksum_at + *count as usize];
                let blocks = buffer.as_slice().chunks_exact(BLOCK_SIZE);
                for (block, (data, sum)) in (first..).zip(blocks.zip(sums)) {
                    if block_checksum(lineage, key, block, data) != *sum {
                        bad.push((block, false));
                    }
                }
                *bytes = Some(buffer.freeze());
            }
        }
        if let Some((block, _)) = bad.first() {
            read.damaged = Some(read.damaged.map_or(*block, |other| other.min(*block)));
        }
        let done = read.missing == 0;
        for (block, unreadable) in bad {
            let part = DamagedPart::Data { lineage, key, block };
            let address = address + u64::from(block - first);
            self.damaged(Damage { part, address, unreadable }, effects);
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
        self.answer(read.token, Ok(MemberReply::Data(payloads)), effects);
    }
}
