//! The scrub: reads everything that is in use, at a given rate, and compares checksums. What can
//! be mended from memory or from a twin is written anew by a checkpoint; the rest is reported.
//!
//! A pass goes through four stages, one block or run at a time: superblocks, live batches of the
//! log, pages of the checkpoint with their twins, objects with their map pages and data.

use super::{Operation, Serving};
use crate::layout::{
    BLOCKS_PER_PAGE, CheckpointKind, Entry, Kind, MapPage, PAGES_PER_OBJECT, PageHeader, PageName,
    parse_batch, parse_checkpoint_page, parse_map_page, parse_superblock,
};
use crate::log::LiveBatch;
use crate::table::{NOT_CACHED, Slot};
use crate::{Damage, DamagedPart, Effect, Notice, ScrubCommand, ScrubRate, ScrubStatus};
use proto::{
    BLOCK_SIZE, BlockRange, Buffer, DiskError, Duration, LineageId, ObjectKey, Time,
    block_checksum, limits,
};
use std::collections::VecDeque;

/// Reads a second at least, so that even a low rate is held within a second.
const READS_PER_SECOND: u64 = 16;
/// Blocks read at once at most.
const BLOCKS_MAX: u64 = 256;
/// How far a late scrub may hurry to catch up.
const CATCH_UP: Duration = Duration::from_secs(1);
/// How long a read waits while members' requests are under way.
const YIELD: Duration = Duration::from_millis(50);
/// Slots looked at in one round at most.
const SLOTS_PER_ROUND: usize = 4096;

/// How far the scrub came; kept over restarts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ScrubPlace {
    pub(crate) pass: u64,
    /// 0: no pass is under way. See [`Stage`].
    pub(crate) position: u64,
    pub(crate) errors: u64,
    pub(crate) passes_done: u64,
}

/// The upper eight bits of a position; the others count within the stage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stage {
    Superblocks = 1,
    Log = 2,
    Checkpoint = 3,
    Objects = 4,
}

const STAGE_SHIFT: u32 = 56;

fn position(stage: Stage, index: u64) -> u64 {
    (stage as u64) << STAGE_SHIFT | index
}

fn stage_of(position: u64) -> (Stage, u64) {
    let index = position & ((1 << STAGE_SHIFT) - 1);
    match position >> STAGE_SHIFT {
        0 | 1 => (Stage::Superblocks, index),
        2 => (Stage::Log, index),
        3 => (Stage::Checkpoint, index),
        _ => (Stage::Objects, index),
    }
}

/// A run of data to be read.
struct DataRun {
    lineage: LineageId,
    key: ObjectKey,
    first: u32,
    address: u64,
    checksums: Vec<u64>,
}

/// What a read brings.
enum Reading {
    Superblock,
    Batch(LiveBatch),
    Checkpoint { header: PageHeader, checksum: u64 },
    MapPage { slot: Slot, name: PageName, checksum: u64 },
    Data(DataRun),
}

/// One read under way.
struct Piece {
    number: u64,
    address: u64,
    /// Keeps what is read from being used again.
    hold: u64,
    reading: Reading,
    /// Where the pass goes on after it.
    next: u64,
    /// Whether it is read once more, since the first time something was wrong.
    again: bool,
}

/// See the module's description.
pub(super) struct Scrub {
    place: ScrubPlace,
    rate: ScrubRate,
    stopped: bool,
    /// When the next read is due.
    due: Time,
    /// When the next pass begins, if none is under way.
    next_pass: Time,
    piece: Option<Piece>,
    pieces: u64,
    /// Data of the map page that was read last. Nothing holds it, because that could keep freed
    /// space from writers for long: each run is compared with the map again before it is read.
    runs: VecDeque<DataRun>,
    /// Whose data that is, and where the map page was when it was listed.
    runs_of: Option<(Slot, PageName, u64)>,
    bytes: u64,
    recorded: Time,
}

impl Scrub {
    /// Goes on at `place`.
    pub(super) fn new(now: Time, rate: ScrubRate, place: ScrubPlace) -> Scrub {
        let pause = if place.pass == 0 { Duration::ZERO } else { pause() };
        Scrub {
            place,
            rate,
            stopped: false,
            due: now,
            next_pass: now + pause,
            piece: None,
            pieces: 0,
            runs: VecDeque::new(),
            runs_of: None,
            bytes: 0,
            recorded: now,
        }
    }

    /// Where a restart goes on: a page whose data is not read to the end is read again. Its read
    /// under way, of the map page or of the last run, is not yet compared either.
    pub(super) fn place(&self) -> ScrubPlace {
        let in_objects = stage_of(self.place.position).0 == Stage::Objects;
        let unread = in_objects && (self.piece.is_some() || !self.runs.is_empty());
        ScrubPlace { position: self.place.position - u64::from(unread), ..self.place }
    }

    fn is_running(&self) -> bool {
        self.place.position != 0 && !self.stopped && self.rate.0 > 0
    }

    pub(super) fn status(&self, progress_permille: u32) -> ScrubStatus {
        ScrubStatus {
            running: self.is_running(),
            rate: self.rate,
            pass: self.place.pass,
            passes_done: self.place.passes_done,
            progress_permille,
            bytes: self.bytes,
            errors: self.place.errors,
        }
    }

    fn begin_pass(&mut self, now: Time) {
        self.place.pass += 1;
        self.place.errors = 0;
        self.place.position = position(Stage::Superblocks, 0);
        self.due = now;
        self.next_pass = now + pause();
    }

    /// Blocks read at once: few at a low rate.
    fn blocks_max(&self) -> usize {
        (self.rate.0 / READS_PER_SECOND / BLOCK_SIZE as u64).clamp(1, BLOCKS_MAX) as usize
    }
}

/// From the beginning of a pass to that of the next, if that is done by then.
fn pause() -> Duration {
    Duration::from_secs(limits::STORE_SCRUB_PAUSE_S)
}

impl Serving {
    /// Directs the scrub.
    pub(super) fn scrub_command(&mut self, now: Time, command: ScrubCommand) {
        match command {
            ScrubCommand::Start => {
                self.scrub.stopped = false;
                if self.scrub.place.position == 0 {
                    self.scrub.begin_pass(now);
                    self.damages_dropped = 0;
                }
                self.scrub.due = now;
            }
            ScrubCommand::Stop => self.scrub.stopped = true,
            ScrubCommand::Rate(rate) => {
                self.scrub.rate = rate;
                self.scrub.due = now;
            }
        }
    }

    /// How much of the pass is done, in thousandths: what a restart would not read again, so that
    /// a restart does not take it back.
    pub(super) fn scrub_progress_permille(&self) -> u32 {
        let (stage, index) = stage_of(self.scrub.place().position);
        let all = u64::from(self.table.pages()).max(1)
            * (crate::layout::ROWS_PER_PAGE * PAGES_PER_OBJECT) as u64;
        match stage {
            Stage::Objects => ((index * 1000 / all).min(1000)) as u32,
            _ => 0,
        }
    }

    /// When the next read is due.
    pub(super) fn scrub_deadline(&self) -> Option<Time> {
        let scrub = &self.scrub;
        if self.closing || scrub.stopped || scrub.rate.0 == 0 || scrub.piece.is_some() {
            return None;
        }
        if scrub.place.position == 0 {
            return Some(scrub.next_pass);
        }
        (!self.scrub_waits()).then(|| self.scrub_due())
    }

    /// Whether the pass goes on with the end of something else, not with the time.
    fn scrub_waits(&self) -> bool {
        match stage_of(self.scrub.place.position) {
            // These places are written by a checkpoint: they are read between two.
            (Stage::Superblocks | Stage::Log | Stage::Checkpoint, _) => !self.checkpoint.is_idle(),
            (Stage::Objects, index) => {
                let is_read = self.scrub.runs.is_empty() && index >= self.map_pages();
                is_read && self.doubts.is_of_scrub()
            }
        }
    }

    /// How many places of map pages there are.
    fn map_pages(&self) -> u64 {
        let slots = u64::from(self.table.pages()) * crate::layout::ROWS_PER_PAGE as u64;
        slots * PAGES_PER_OBJECT as u64
    }

    /// The next read waits a little while members' requests are under way.
    fn scrub_due(&self) -> Time {
        if self.requests > 0 { self.scrub.due + YIELD } else { self.scrub.due }
    }

    /// Begins a pass, or the next read of the one under way, when that is due.
    pub(super) fn step_scrub(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let scrub = &mut self.scrub;
        if scrub.stopped || scrub.rate.0 == 0 || scrub.piece.is_some() {
            return;
        }
        if scrub.place.position == 0 {
            // What found no room in the list is looked for again when all that did is mended.
            let is_forgotten = self.damages_dropped > 0 && self.damages.is_empty();
            if now < scrub.next_pass && !is_forgotten {
                return;
            }
            scrub.begin_pass(now);
            self.damages_dropped = 0;
        }
        if now < self.scrub_due() || self.scrub_waits() {
            return;
        }
        self.record_scrub(now);
        let (stage, index) = stage_of(self.scrub.place.position);
        match stage {
            Stage::Superblocks => self.scrub_superblock(now, index, effects),
            Stage::Log => self.scrub_log(now, index, effects),
            Stage::Checkpoint => self.scrub_checkpoint(now, index, effects),
            Stage::Objects if !self.scrub.runs.is_empty() => self.scrub_run(now, effects),
            Stage::Objects => self.scrub_object(now, index, effects),
        }
    }

    /// Notes in the log how far the pass is, now and then.
    fn record_scrub(&mut self, now: Time) {
        let interval = Duration::from_secs(limits::STORE_SCRUB_RECORD_S);
        if now.since(self.scrub.recorded) < interval || !self.log.has_room_for_background() {
            return;
        }
        self.scrub.recorded = now;
        self.append_scrub();
    }

    fn append_scrub(&mut self) {
        let ScrubPlace { pass, position, errors, passes_done } = self.scrub.place();
        let record = crate::layout::Record::Scrub { pass, position, errors, passes_done };
        let lsn = self.log.append(&record);
        self.in_flight.push(lsn, None, None, 0, 0, None);
    }

    /// Asks for some blocks.
    fn scrub_ask(
        &mut self,
        now: Time,
        address: u64,
        blocks: usize,
        reading: Reading,
        next: u64,
        effects: &mut Vec<Effect>,
    ) {
        let hold = self.reads.hold();
        let scrub = &mut self.scrub;
        scrub.pieces += 1;
        let number = scrub.pieces;
        scrub.piece = Some(Piece { number, address, hold, reading, next, again: false });
        let bytes = (blocks * BLOCK_SIZE) as u64;
        scrub.bytes += bytes;
        let earliest = Time(now.0.saturating_sub(CATCH_UP.as_nanos() as u64));
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(scrub.rate.0);
        scrub.due = scrub.due.max(earliest) + Duration::from_nanos(nanoseconds as u64);
        self.operations.read(Operation::Scrub { piece: number }, address, blocks, effects);
    }

    fn scrub_superblock(&mut self, now: Time, index: u64, effects: &mut Vec<Effect>) {
        if index < 2 {
            let next = position(Stage::Superblocks, index + 1);
            self.scrub_ask(now, index, 1, Reading::Superblock, next, effects);
        } else {
            self.scrub.place.position = position(Stage::Log, 0);
        }
    }

    /// `index` is the sequence of the next batch to look at.
    fn scrub_log(&mut self, now: Time, index: u64, effects: &mut Vec<Effect>) {
        match self.log.live_batch(index) {
            Some(batch) => {
                let next = position(Stage::Log, batch.sequence + 1);
                let (address, blocks) = (batch.address, batch.blocks as usize);
                self.scrub_ask(now, address, blocks, Reading::Batch(batch), next, effects);
            }
            None => self.scrub.place.position = position(Stage::Checkpoint, 0),
        }
    }

    /// `index` is kind, number and copy of the next page to look at.
    fn scrub_checkpoint(&mut self, now: Time, index: u64, effects: &mut Vec<Effect>) {
        let code = |header: PageHeader| (header.kind as u64) << 33 | u64::from(header.number) << 1;
        let (number, twin) = ((index >> 1) as u32, index & 1);
        let kind = CheckpointKind::from_code((index >> 33) as u16);
        // The pages of the last kind may all have been looked at: then there is none from here on.
        let is_over = kind.is_none() && index > 0;
        let from = PageHeader { kind: kind.unwrap_or(CheckpointKind::Table), number };
        let found = self.checkpoint.listing().range(from..).next().map(|(&h, &l)| (h, l));
        let Some((header, listed)) = found.filter(|_| !is_over) else {
            self.scrub.place.position = position(Stage::Objects, 0);
            return;
        };
        let twin = if header == from { twin } else { 0 };
        let address = if twin == 0 { listed.address } else { listed.twin };
        let next = position(Stage::Checkpoint, code(header) + twin + 1);
        let reading = Reading::Checkpoint { header, checksum: listed.checksum };
        self.scrub_ask(now, address, 1, reading, next, effects);
    }

    /// `index` is slot and page of the next map page to look at.
    fn scrub_object(&mut self, now: Time, index: u64, effects: &mut Vec<Effect>) {
        let pages = self.map_pages();
        let mut index = index;
        for _ in 0..SLOTS_PER_ROUND {
            if index >= pages {
                if self.doubts.is_of_scrub() {
                    return;
                }
                return self.end_pass(effects);
            }
            let per_object = PAGES_PER_OBJECT as u64;
            let (slot, page) = ((index / per_object) as Slot, (index % per_object) as usize);
            index += 1;
            self.scrub.place.position = position(Stage::Objects, index);
            let Some(row) = self.table.row_in(slot) else { continue };
            let name = PageName { lineage: row.lineage, key: row.key, page: page as u8 };
            let (address, checksum) = row.page(page);
            let cached = row.cached[page];
            let writing = cached != NOT_CACHED && self.cache.peek(cached).writing;
            if address != 0 && !writing {
                let next = position(Stage::Objects, index);
                let reading = Reading::MapPage { slot, name, checksum };
                return self.scrub_ask(now, address, 1, reading, next, effects);
            }
            if cached != NOT_CACHED {
                self.scrub_data_of(slot, &name, None, 0);
                if !self.scrub.runs.is_empty() {
                    return self.scrub_run(now, effects);
                }
            }
        }
    }

    /// Lists the data of a map page from a block on, as it is in the cache, else as it was read.
    fn scrub_data_of(&mut self, slot: Slot, name: &PageName, read: Option<&MapPage>, from: u32) {
        let row = self.table.row(slot);
        let index = row.cached[usize::from(name.page)];
        let cached = (index != NOT_CACHED).then(|| self.cache.peek(index));
        let map = match cached {
            Some(cached) if cached.damaged => return,
            Some(cached) => &cached.map,
            None => match read {
                Some(map) => map,
                None => return,
            },
        };
        let longest = self.scrub.blocks_max();
        let mut runs: VecDeque<DataRun> = VecDeque::new();
        for at in 0..BLOCKS_PER_PAGE {
            let entry = map.entry(at);
            let block = u32::from(name.page) * BLOCKS_PER_PAGE + at;
            // Borrowed blocks are read where they belong.
            if entry.kind != Kind::Data || !entry.owner || block < from {
                continue;
            }
            // What is just being written is not there yet.
            let range = BlockRange::new(block, 1).expect("a block of the object");
            if self.in_flight.writing(row.history(), &range).is_some() {
                continue;
            }
            match runs.back_mut() {
                Some(run)
                    if run.address + run.checksums.len() as u64 == entry.address
                        && run.first + run.checksums.len() as u32 == block
                        && run.checksums.len() < longest =>
                {
                    run.checksums.push(entry.checksum);
                }
                _ => runs.push_back(DataRun {
                    lineage: name.lineage,
                    key: name.key,
                    first: block,
                    address: entry.address,
                    checksums: vec![entry.checksum],
                }),
            }
        }
        let address = row.page(usize::from(name.page)).0;
        self.scrub.runs = runs;
        self.scrub.runs_of = Some((slot, *name, address));
    }

    /// Reads the next run of data.
    fn scrub_run(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Some(run) = self.scrub.runs.pop_front() else { return };
        if !self.is_current(&run) {
            return;
        }
        let (address, blocks) = (run.address, run.checksums.len());
        let next = self.scrub.place.position;
        self.scrub_ask(now, address, blocks, Reading::Data(run), next, effects);
    }

    /// Whether the map still says what it said when the run was listed. If not, the rest of the
    /// page is listed anew.
    fn is_current(&mut self, run: &DataRun) -> bool {
        let Some((slot, name, listed)) = self.scrub.runs_of else { return false };
        let place = usize::from(name.page);
        let history = (name.lineage, name.key.index);
        let Some(row) = self.table.row_in(slot).filter(|row| row.history() == history) else {
            self.scrub.runs.clear();
            return false;
        };
        let (address, index) = (row.page(place).0, row.cached[place]);
        if index == NOT_CACHED {
            // A page that is changed stays in the cache until a checkpoint has moved it.
            if address != listed {
                self.scrub.runs.clear();
                let again = u64::from(slot) * PAGES_PER_OBJECT as u64 + place as u64;
                self.scrub.place.position = position(Stage::Objects, again);
            }
            return address == listed;
        }
        let map = &self.cache.peek(index).map;
        let current = run.checksums.iter().enumerate().all(|(at, &checksum)| {
            let entry = map.entry((run.first + at as u32) % BLOCKS_PER_PAGE);
            entry == Entry::data(run.address + at as u64, checksum)
        });
        if !current {
            self.scrub_data_of(slot, &name, None, run.first);
        }
        current
    }

    fn end_pass(&mut self, effects: &mut Vec<Effect>) {
        let place = &mut self.scrub.place;
        place.position = 0;
        place.passes_done += 1;
        let (pass, errors) = (place.pass, place.errors);
        if self.log.has_room_for_background() {
            self.append_scrub();
        }
        effects.push(Effect::Notice(Notice::ScrubDone { pass, errors }));
    }

    /// A read has ended.
    pub(super) fn scrub_read(
        &mut self,
        now: Time,
        number: u64,
        result: Result<Buffer, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        let piece = self.scrub.piece.take().expect("a scrub read that ends was under way");
        assert_eq!(piece.number, number, "scrub reads one piece at a time");
        self.reads.release(piece.hold);
        if stage_of(self.scrub.place.position).0 != Stage::Objects {
            self.scrub.place.position = piece.next;
        }
        let unreadable = result.is_err();
        let bytes = result.as_ref().map_or(&[][..], Buffer::as_slice);
        let address = piece.address;
        let damage = |part| Damage { part, address, unreadable };
        match piece.reading {
            // A checkpoint that began since is about to write it, or has.
            Reading::Superblock | Reading::Checkpoint { .. } if !self.checkpoint.is_idle() => {}
            Reading::Superblock => {
                if !parse_superblock(bytes).is_ok_and(|found| found == self.superblock) {
                    self.scrub_found(damage(DamagedPart::Superblock), effects);
                    self.checkpoint.request();
                }
            }
            Reading::Batch(batch) => {
                let live = self.log.live_batch(batch.sequence) == Some(batch);
                let good = parse_batch(bytes).is_ok_and(|found| found.sequence == batch.sequence);
                if live && !good {
                    self.scrub_found(damage(DamagedPart::Log), effects);
                    self.checkpoint.request();
                }
            }
            Reading::Checkpoint { header, checksum } => {
                if !parse_checkpoint_page(bytes, header, checksum) {
                    self.scrub_found(damage(DamagedPart::Checkpoint), effects);
                    self.checkpoint.write_again(header);
                }
            }
            Reading::MapPage { slot, name, checksum } => {
                let map = parse_map_page(bytes, &name, checksum);
                if map.is_none() && !piece.again {
                    if !self.scrub.is_running() {
                        // It was switched off meanwhile, with no verdict.
                        return;
                    }
                    // What a page names is lost with it: one bad read is not enough for that.
                    let reading = Reading::MapPage { slot, name, checksum };
                    self.scrub_ask(now, address, 1, reading, piece.next, effects);
                    self.scrub.piece.iter_mut().for_each(|piece| piece.again = true);
                    return;
                }
                self.scrub_map_page(slot, &name, address, map, unreadable, effects);
            }
            Reading::Data(run) => self.scrub_data(&run, bytes, unreadable, effects),
        }
    }

    pub(super) fn scrub_found(&mut self, damage: Damage, effects: &mut Vec<Effect>) {
        self.scrub.place.errors += 1;
        self.damaged(damage, effects);
    }

    fn scrub_map_page(
        &mut self,
        slot: Slot,
        name: &PageName,
        address: u64,
        map: Option<MapPage>,
        unreadable: bool,
        effects: &mut Vec<Effect>,
    ) {
        let place = usize::from(name.page);
        let moved = self
            .table
            .row_in(slot)
            .is_none_or(|row| row.key != name.key || row.page(place).0 != address);
        if moved {
            return;
        }
        if map.as_ref().is_some_and(|map| !map.has_lost()) {
            self.page_is_good(slot, name, effects);
        } else {
            let PageName { lineage, key, page } = *name;
            let part = DamagedPart::MapPage { lineage, key, page };
            self.scrub_found(Damage { part, address, unreadable }, effects);
            let index = self.table.row(slot).cached[place];
            let is_whole = index != NOT_CACHED && !self.cache.peek(index).is_lost();
            if is_whole {
                // What is in memory is good: the next checkpoint writes it anew.
                self.cache.change(index, self.log.next_lsn());
                self.checkpoint.request();
            }
        }
        self.scrub_data_of(slot, name, map.as_ref(), 0);
    }

    fn scrub_data(
        &mut self,
        run: &DataRun,
        bytes: &[u8],
        unreadable: bool,
        effects: &mut Vec<Effect>,
    ) {
        let (lineage, key) = (run.lineage, run.key);
        if unreadable && run.checksums.len() > 1 {
            let (first, address) = (run.first, run.address);
            return self.doubt((lineage, key), first, address, &run.checksums, true, effects);
        }
        for (at, checksum) in run.checksums.iter().enumerate() {
            let block = run.first + at as u32;
            let data = bytes.get(at * BLOCK_SIZE..(at + 1) * BLOCK_SIZE);
            let good =
                data.is_some_and(|data| block_checksum(lineage, key, block, data) == *checksum);
            if good {
                continue;
            }
            let part = DamagedPart::Data { lineage, key, block };
            let address = run.address + at as u64;
            // It may have been overwritten meanwhile; then nobody misses it.
            if self.names(lineage, key, block, address) {
                self.scrub_found(Damage { part, address, unreadable }, effects);
            }
        }
    }

    /// Whether an object's map still names a block at an address, as far as memory can tell.
    pub(super) fn names(
        &self,
        lineage: LineageId,
        key: ObjectKey,
        block: u32,
        address: u64,
    ) -> bool {
        let Some(slot) = self.table.find(lineage, key) else { return false };
        let index = self.table.row(slot).cached[(block / BLOCKS_PER_PAGE) as usize];
        index == NOT_CACHED || {
            let entry = self.cache.peek(index).map.entry(block % BLOCKS_PER_PAGE);
            entry.kind == Kind::Lost || entry.kind == Kind::Data && entry.address == address
        }
    }
}
