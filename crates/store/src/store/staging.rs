//! Making an object equal to a peer's copy: its new content is staged block by block, in space that
//! no map names, and then adopted by one record of the log. Until then nothing of it is seen, and
//! nothing of it is left when the disk is opened anew, or when the permit is over.

use super::configurations::Promise;
use super::growth::{Admission, Class};
use super::pages::Waiter;
use super::requests::Outcome;
use super::write::{blocks_of, data_blocks, describe, pages_of};
use super::{Operation, Serving};
use crate::inflight::{Acknowledgement, Ready};
use crate::layout::{BLOCKS_PER_PAGE, MapRun, PAGES_PER_OBJECT, Run, WriteRecord};
use crate::table::{NOT_CACHED, Slot};
use crate::{DamagedPart, Effect, Notice, Waiting};
use proto::{
    BLOCK_SIZE, BlockRange, Change, Generation, LayerId, LineageId, MemberError, MemberToken,
    ObjectKey, Permit, Stamp, Time, limits,
};
use std::collections::BTreeMap;

/// Bytes of the fields of an adopted object that are there once; of a run; of a block: its
/// checksum and what it replaces.
const FIELDS_BYTES: usize = 256;
const RUN_BYTES: usize = 10;
const BLOCK_BYTES: usize = 8 + 7;

type Object = (LineageId, ObjectKey);

/// See [`proto::MemberRequest::Adopt`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Adopt {
    pub(super) permit: Permit,
    pub(super) key: ObjectKey,
    pub(super) staged: u32,
    pub(super) stamp: Stamp,
    pub(super) settled_generation: Generation,
    pub(super) replaces: Stamp,
}

/// Neighbouring blocks that were staged together.
#[derive(Debug)]
struct Part {
    blocks: BlockRange,
    runs: Vec<MapRun>,
    checksums: Vec<u64>,
    space: Vec<Run>,
    /// The write of its data.
    write: u64,
}

/// What is staged for one object.
#[derive(Debug)]
struct Staged {
    permit: Permit,
    /// By their first blocks.
    parts: BTreeMap<u32, Part>,
}

impl Staged {
    fn blocks(&self) -> u32 {
        self.parts.values().map(|part| part.blocks.count()).sum()
    }

    fn overlaps(&self, blocks: &BlockRange) -> bool {
        let before = self.parts.range(..blocks.end()).next_back();
        before.is_some_and(|(_, part)| part.blocks.overlaps(blocks))
    }
}

/// Data of one part on its way.
#[derive(Debug)]
struct Writing {
    /// Who is answered when it is there, and the record that must be durable by then.
    token: Option<(MemberToken, u64)>,
    left: u32,
    then: Then,
}

/// What becomes of data when it is there.
#[derive(Debug)]
enum Then {
    /// It is staged.
    Stays,
    /// This record has adopted it.
    Adopted(u64),
    /// It is not wanted any more: its space is free.
    Goes(Vec<Run>),
}

/// What is staged, and the data of it that is on its way.
#[derive(Default)]
pub(super) struct Staging {
    objects: BTreeMap<Object, Staged>,
    writes: BTreeMap<u64, Writing>,
    last_write: u64,
}

impl Staging {
    /// Takes out all that wait.
    pub(super) fn take_all(&mut self) -> Vec<MemberToken> {
        let writes = self.writes.values_mut();
        writes.filter_map(|writing| writing.token.take().map(|(token, _)| token)).collect()
    }
}

impl Serving {
    /// The error for a permit that does not hold, or not any more.
    fn vet_permit(&self, permit: &Permit, lineage: LineageId, index: u32) -> Option<MemberError> {
        match *permit {
            Permit::Session { generation, under } => {
                let fence = self.lineages.get(&lineage).map_or(Generation(0), |l| l.fence);
                let ahead = || {
                    (generation > fence)
                        .then_some(MemberError::invalid("the session has no fence here"))
                };
                self.fenced(lineage, generation)
                    .or_else(|| self.refused(under, lineage, index))
                    .or_else(ahead)
            }
            Permit::Attempt { under, attempt } => self.vet_attempt(attempt, under, lineage, index),
            Permit::Mend { under } => self.refused(under, lineage, index),
        }
    }

    /// What is wrong with a change of an object by a permit, whatever the change is.
    fn vet_change(
        &self,
        permit: &Permit,
        lineage: LineageId,
        key: ObjectKey,
    ) -> Option<MemberError> {
        let invalid = |is: bool, why| is.then_some(MemberError::invalid(why));
        self.vet_permit(permit, lineage, key.index)
            .or_else(|| self.foreign(lineage, key))
            .or_else(|| invalid(self.drops.contains(key.layer), "the layer is deleted"))
    }

    /// The error for a change of content of an object over which a layer above has one of its own:
    /// that one's pages borrow blocks of this one, which would be freed.
    fn vet_covered(&self, lineage: LineageId, key: ObjectKey) -> Option<MemberError> {
        let covered = self.table.is_covered(self.tree(lineage), lineage, key);
        covered.then_some(MemberError::invalid("a layer above has the object: retract that first"))
    }

    /// Makes the attempt known that a permit names; the record that must be durable before what it
    /// permits is answered. `None`: there is no room for that yet.
    fn learn_permit(
        &mut self,
        permit: &Permit,
        lineage: LineageId,
        index: u32,
        effects: &mut Vec<Effect>,
    ) -> Option<u64> {
        let Permit::Attempt { under, attempt } = *permit else { return Some(0) };
        self.learn_of(attempt, under, lineage, index, effects)?;
        Some(self.configurations.lsn())
    }

    /// Takes content for an object, refuses it, or says what it waits for.
    pub(super) fn stage(
        &mut self,
        now: Time,
        token: MemberToken,
        (lineage, key): Object,
        permit: &Permit,
        change: &Change,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        let vetted = self.vet_change(permit, lineage, key);
        let vetted = vetted.or_else(|| self.vet_mend(permit, lineage, key));
        // What a mend replaces is damaged: nothing of it is freed, whoever borrows it.
        let covered = || self.vet_covered(lineage, key).filter(|_| !is_mend(permit));
        let vetted = match vetted.or_else(covered) {
            Some(error) => Err(error),
            None => blocks_of(change),
        };
        let blocks = match vetted {
            Ok(blocks) => blocks,
            Err(error) => return self.refuse_change(token, error, effects),
        };
        let Some(lsn) = self.learn_permit(permit, lineage, key.index, effects) else {
            return self.refuse_change(token, MemberError::Busy, effects);
        };
        self.drop_staged_unless((lineage, key), permit, effects);
        if is_mend(permit) {
            self.drop_other_mends((lineage, key), effects);
        }
        let staged = self.staging.objects.get(&(lineage, key));
        if staged.is_some_and(|staged| staged.overlaps(&blocks)) {
            let error = MemberError::invalid("parts that are staged overlap");
            return self.refuse_change(token, error, effects);
        }
        if staged.is_none() && self.staging.objects.len() >= limits::STAGED_OBJECTS_MAX {
            return self.refuse_change(token, MemberError::Busy, effects);
        }
        let count = data_blocks(change, &blocks);
        if count > 0 {
            match self.admit(now, Class::Data, count, PAGES_PER_OBJECT as u32, effects) {
                Admission::Granted => {}
                Admission::Wait(reason) => return Outcome::Resource(reason),
                Admission::Refused => {
                    // Nor is anything left of what was staged before: it takes space that others
                    // may need, and without this part it is nothing.
                    self.drop_staged((lineage, key), &MemberError::NoSpace, effects);
                    return self.refuse_change(token, MemberError::NoSpace, effects);
                }
            }
        }
        let mut space = Vec::new();
        self.space.allocate_staged(count, &mut space);
        let mut described = WriteRecord::default();
        describe(lineage, key, change, &blocks, &space, &mut described);
        let WriteRecord { runs, checksums, .. } = described;
        self.staging.last_write += 1;
        let write = self.staging.last_write;
        let left = self.write_data(change, &runs, || Operation::Staged { write }, effects);
        self.counters.staged_bytes += u64::from(count) * BLOCK_SIZE as u64;
        let part = Part { blocks, runs, checksums, space, write };
        let new = || Staged { permit: *permit, parts: BTreeMap::new() };
        let staged = self.staging.objects.entry((lineage, key)).or_insert_with(new);
        staged.parts.insert(blocks.first(), part);
        if left == 0 {
            self.promise(lsn, token, Promise::Done, effects);
        } else {
            let writing = Writing { token: Some((token, lsn)), left, then: Then::Stays };
            self.staging.writes.insert(write, writing);
        }
        Outcome::Done
    }

    fn refuse_change(
        &mut self,
        token: MemberToken,
        error: MemberError,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        self.answer(token, Err(error), effects);
        Outcome::Done
    }

    /// A write of staged data has completed.
    pub(super) fn staged_written(
        &mut self,
        write: u64,
        ready: &mut Ready,
        effects: &mut Vec<Effect>,
    ) {
        let writing = self.staging.writes.get_mut(&write).expect("a write that ends was under way");
        writing.left -= 1;
        if let Then::Adopted(lsn) = writing.then {
            self.in_flight.data_done(lsn, ready);
        }
        if writing.left > 0 {
            return;
        }
        let writing = self.staging.writes.remove(&write).expect("it is there");
        if let Then::Goes(runs) = writing.then {
            runs.into_iter().for_each(|run| self.space.give_staged(run));
        }
        if let Some((token, lsn)) = writing.token {
            self.promise(lsn, token, Promise::Done, effects);
        }
    }

    /// What is staged for an object goes, and gives its space back once no write of it is on its
    /// way.
    fn drop_staged(&mut self, object: Object, why: &MemberError, effects: &mut Vec<Effect>) {
        let Some(staged) = self.staging.objects.remove(&object) else { return };
        for part in staged.parts.into_values() {
            match self.staging.writes.get_mut(&part.write) {
                Some(writing) => {
                    writing.then = Then::Goes(part.space);
                    if let Some((token, _)) = writing.token.take() {
                        self.answer(token, Err(why.clone()), effects);
                    }
                }
                None => part.space.into_iter().for_each(|run| self.space.give_staged(run)),
            }
        }
    }

    /// What is staged for an object by another permit than this goes.
    fn drop_staged_unless(&mut self, object: Object, permit: &Permit, effects: &mut Vec<Effect>) {
        if self.staging.objects.get(&object).is_some_and(|staged| staged.permit != *permit) {
            self.drop_staged(object, &MemberError::NotStaged { have: 0 }, effects);
        }
    }

    /// What is staged for mends of other objects goes: one at a time is mended, so those failed.
    fn drop_other_mends(&mut self, object: Object, effects: &mut Vec<Effect>) {
        let objects = self.staging.objects.iter();
        let failed = objects.filter(|(of, staged)| **of != object && is_mend(&staged.permit));
        for of in failed.map(|(of, _)| *of).collect::<Vec<_>>() {
            self.drop_staged(of, &MemberError::NotStaged { have: 0 }, effects);
        }
    }

    /// What is staged by permits that do not hold any more goes.
    pub(super) fn drop_overdue_staged(&mut self, effects: &mut Vec<Effect>) {
        let overdue = |(&(lineage, key), staged): (&Object, &Staged)| {
            let why = self.vet_permit(&staged.permit, lineage, key.index)?;
            Some(((lineage, key), why))
        };
        let overdue: Vec<_> = self.staging.objects.iter().filter_map(overdue).collect();
        for (object, why) in overdue {
            self.drop_staged(object, &why, effects);
        }
    }

    /// What is staged for a layer that is deleted goes.
    pub(super) fn drop_staged_of(&mut self, layer: LayerId, effects: &mut Vec<Effect>) {
        let of_layer = |&&(_, key): &&Object| key.layer == layer;
        let objects: Vec<_> = self.staging.objects.keys().filter(of_layer).copied().collect();
        for object in objects {
            let why = MemberError::invalid("the layer is deleted");
            self.drop_staged(object, &why, effects);
        }
    }

    /// Puts what is staged into its object, refuses to, or says what that waits for.
    pub(super) fn adopt(
        &mut self,
        now: Time,
        token: MemberToken,
        lineage: LineageId,
        adopt: &Adopt,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        let Adopt { permit, key, stamp, .. } = *adopt;
        let object = (lineage, key);
        let adopt = &self.as_mend(*adopt, lineage);
        let sealed = super::fence::sealed(adopt.settled_generation)
            .or_else(|| super::fence::sealed(stamp.generation));
        let vetted = sealed.or_else(|| self.vet_change(&permit, lineage, key));
        if let Some(error) = vetted.or_else(|| self.vet_mend(&permit, lineage, key)) {
            return self.refuse_change(token, error, effects);
        }
        let Some(lsn) = self.learn_permit(&permit, lineage, key.index, effects) else {
            return self.refuse_change(token, MemberError::Busy, effects);
        };
        self.drop_staged_unless(object, &permit, effects);
        let staged = self.staging.objects.get(&object);
        let shown = self.shown(lineage, key);
        if let (None, Some(slot)) = (staged, shown) {
            let row = self.table.row(slot);
            let settled = self.stamp_of_row(row).settled_generation;
            if row.key == key && row.stamp == stamp && settled == adopt.settled_generation {
                // Sent again: it was adopted, or nothing would change.
                let lsn = lsn.max(row.lsn);
                self.answer_adopted(token, row.lsn, lsn, effects);
                return Outcome::Done;
            }
        }
        // It is not what whoever copies has looked at: what is staged may not fit it.
        let have = shown.map_or(Stamp::default(), |slot| self.table.row(slot).stamp);
        if have != adopt.replaces {
            let error = MemberError::WrongStamp { have };
            self.drop_staged(object, &error, effects);
            return self.refuse_change(token, error, effects);
        }
        // Who has settled it may change whatever lies above: no content does.
        let own = shown.map(|slot| self.table.row(slot)).filter(|row| row.key == key);
        let is_equal = staged.is_none() && own.is_some_and(|row| row.stamp == stamp);
        if !(is_mend(&permit) || is_equal && adopt.staged == 0)
            && let Some(error) = self.vet_covered(lineage, key)
        {
            self.drop_staged(object, &error, effects);
            return self.refuse_change(token, error, effects);
        }
        let have = staged.map_or(0, Staged::blocks);
        if have != adopt.staged {
            // All of it is sent again.
            self.drop_staged(object, &MemberError::NotStaged { have }, effects);
            return self.refuse_change(token, MemberError::NotStaged { have }, effects);
        }
        let pages = Covered::of(staged);
        let own = shown.filter(|&slot| self.table.row(slot).key == key);
        if is_mend(&permit) && own.is_some_and(|slot| self.is_writing_pages(slot)) {
            return self.refuse_change(token, MemberError::Busy, effects);
        }
        if is_mend(&permit) && !self.may_mend(own, stamp, &pages) {
            let error = MemberError::invalid("what is mended is not damaged, or another by now");
            self.drop_staged(object, &error, effects);
            return self.refuse_change(token, error, effects);
        }
        let runs = staged.iter().flat_map(|s| s.parts.values()).map(|part| part.runs.len()).sum();
        match self.prepare_adopt(now, object, shown, &pages, (have, runs), effects) {
            Err(Refusal::Wait(outcome)) => outcome,
            Err(Refusal::Error(error)) => {
                self.drop_staged(object, &error, effects);
                self.refuse_change(token, error, effects)
            }
            Ok(bytes) => {
                self.begin_record(bytes, effects);
                self.apply_adopt(token, lineage, adopt, shown, &pages, lsn, effects);
                Outcome::Done
            }
        }
    }

    /// The error for a mend of an object that something else is staged for: that goes first. And
    /// for one between layers: those above may show blocks of those below through the damaged page,
    /// which nobody would know any more when those below go.
    fn vet_mend(&self, permit: &Permit, lineage: LineageId, key: ObjectKey) -> Option<MemberError> {
        if !is_mend(permit) {
            return None;
        }
        let staged = self.staging.objects.get(&(lineage, key));
        if staged.is_some_and(|staged| !is_mend(&staged.permit)) {
            return Some(MemberError::Busy);
        }
        let slot = self.table.find(lineage, key)?;
        let tree = self.tree(lineage);
        let is_between =
            self.table.is_covered(tree, lineage, key) && self.table.below(tree, slot).is_some();
        let between = "the object lies between layers, and is mended when the lower ones are gone";
        is_between.then(|| MemberError::invalid(between))
    }

    /// A mend leaves it as it is who has settled an object.
    fn as_mend(&self, mut adopt: Adopt, lineage: LineageId) -> Adopt {
        if is_mend(&adopt.permit) {
            let found = self.stamp_of(lineage, adopt.key);
            adopt.settled_generation = found.settled_generation;
        }
        adopt
    }

    /// Whether a checkpoint is writing pages of a row just now.
    fn is_writing_pages(&self, slot: Slot) -> bool {
        let cached = self.table.row(slot).cached;
        cached.into_iter().any(|index| index != NOT_CACHED && self.cache.peek(index).writing)
    }

    /// Whether a mend replaces damaged pages and nothing else, of an object at that stamp.
    fn may_mend(&self, own: Option<Slot>, stamp: Stamp, covered: &Covered) -> bool {
        let Some(slot) = own else { return false };
        let row = self.table.row(slot);
        let is_lost = |page: usize| {
            let index = row.cached[page];
            index != NOT_CACHED && self.cache.peek(index).is_lost()
        };
        let mut pages = covered.pages();
        let is_it = row.stamp == stamp && stamp != Stamp::INCOMPLETE;
        is_it
            && pages
                .all(|(page, is_whole)| is_whole && (self.is_missing(slot, page) || is_lost(page)))
    }

    /// The damaged pages that a mend replaces are given up as a whole, also where something of
    /// one is known: layers above may borrow what it names.
    fn give_up_damaged(&mut self, slot: Slot, covered: &Covered, effects: &mut Vec<Effect>) {
        let row = self.table.row(slot);
        let (lineage, key, cached) = (row.lineage, row.key, row.cached);
        for (page, _) in covered.pages() {
            self.cache.mark_damaged(cached[page], true);
            let part = DamagedPart::MapPage { lineage, key, page: page as u8 };
            let mended = self.damages.iter().filter(|damage| damage.part == part);
            effects.extend(mended.map(|damage| Effect::Notice(Notice::Mended(*damage))));
        }
    }

    /// Answers an adoption that is in the log: once it is complete, or durable where that must be.
    fn answer_adopted(
        &mut self,
        token: MemberToken,
        complete: u64,
        durable: u64,
        effects: &mut Vec<Effect>,
    ) {
        if self.configurations.lsn() > self.flusher.durable_lsn() {
            self.promise(durable, token, Promise::Done, effects);
        } else {
            self.acknowledge_after(complete, Acknowledgement::Done(token), effects);
        }
    }

    /// Makes sure that an adoption finds all that it needs; returns how long its record may be.
    fn prepare_adopt(
        &mut self,
        now: Time,
        (lineage, key): Object,
        shown: Option<Slot>,
        covered: &Covered,
        (blocks, runs): (u32, usize),
        effects: &mut Vec<Effect>,
    ) -> Result<usize, Refusal> {
        let own = shown.filter(|&slot| self.table.row(slot).key == key);
        let waiter = Some(Waiter::Queue((lineage, key.index)));
        let (mut loaded, mut pages, mut fresh) = (true, 0, false);
        for (page, is_whole) in covered.pages() {
            let source = shown.and_then(|slot| self.source(slot, page));
            let inherited = source.is_some() && source != own;
            if let Some(source) = source.filter(|_| !(inherited && is_whole)) {
                loaded &= self.load_page(source, page, waiter, effects);
                let index = self.table.row(source).cached[page];
                let cached = (index != NOT_CACHED).then(|| self.cache.peek(index));
                if cached.is_some_and(|cached| cached.damaged) && !is_whole {
                    let block = page as u32 * BLOCKS_PER_PAGE;
                    return Err(Refusal::Error(MemberError::Corrupt { key, block }));
                }
            }
            let index = own.map_or(NOT_CACHED, |slot| self.table.row(slot).cached[page]);
            let clean = index == NOT_CACHED || self.cache.peek(index).dirty_since == 0;
            pages += u32::from(clean);
            fresh |= source.is_none() || inherited;
        }
        if !loaded {
            return Err(Refusal::Wait(Outcome::Page));
        }
        let bytes = FIELDS_BYTES + runs * RUN_BYTES + blocks as usize * BLOCK_BYTES;
        if !self.has_room_for(bytes) {
            self.checkpoint.request();
            return Err(Refusal::Wait(Outcome::Resource(Waiting::Log)));
        }
        if pages > 0 && self.cache.is_full_of_changes(pages as usize) {
            return Err(Refusal::Wait(Outcome::Resource(Waiting::MapCache)));
        }
        // The blocks were admitted when they were staged: what is left are pages of the map.
        let class = if fresh { Class::Overwrite } else { Class::Metadata };
        match self.admit(now, class, 0, pages, effects) {
            Admission::Granted => Ok(bytes),
            Admission::Wait(reason) => Err(Refusal::Wait(Outcome::Resource(reason))),
            Admission::Refused => Err(Refusal::Error(MemberError::NoSpace)),
        }
    }

    /// Makes the change: in memory and, all of it in one record, to the log.
    #[expect(clippy::too_many_arguments, reason = "what was found out before")]
    fn apply_adopt(
        &mut self,
        token: MemberToken,
        lineage: LineageId,
        adopt: &Adopt,
        shown: Option<Slot>,
        covered: &Covered,
        permit_lsn: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Adopt { key, stamp, settled_generation, .. } = *adopt;
        let lsn = self.log.next_lsn();
        let staged = self.staging.objects.remove(&(lineage, key));
        let parts = staged.into_iter().flat_map(|staged| staged.parts.into_values());
        let mut record = WriteRecord { lineage, key, stamp, ..WriteRecord::default() };
        let (mut writes, mut data_blocks) = (0, 0);
        let mut changed = Vec::new();
        for part in parts {
            record.runs.extend(part.runs);
            record.checksums.extend(part.checksums);
            for run in part.space {
                self.space.adopt_staged(run);
                data_blocks += u64::from(run.count);
            }
            if let Some(writing) = self.staging.writes.get_mut(&part.write) {
                writing.then = Then::Adopted(lsn);
                writes += writing.left;
            }
            changed.push(part.blocks);
        }
        record.settled = self.lineages.entry(lineage).or_default().settled;
        let own = shown.filter(|&slot| self.table.row(slot).key == key);
        record.previous = shown.map_or(Stamp::default(), |slot| self.table.row(slot).stamp);
        let slot = own.unwrap_or_else(|| self.new_object(lineage, key, shown, &mut record));
        record.settled_generation = Some(settled_generation);
        if is_mend(&adopt.permit) {
            self.give_up_damaged(slot, covered, effects);
        }
        self.take_pages(slot, covered.pages(), lsn, &mut record);
        self.change_map(slot, lsn, &mut record);
        let row = self.table.change(slot);
        row.lsn = lsn;
        row.stamp = stamp;
        row.settled_generation = settled_generation;
        self.lineages.entry(lineage).or_default().unmark(slot, &mut self.table);
        for run in &record.freed {
            self.space.free_after_record(*run, lsn, self.reads.next());
        }
        let appended = self.log.append_adopt(&record);
        assert_eq!(appended, lsn, "records are numbered in order");
        let whole = (writes > 0).then(BlockRange::whole);
        let bytes = data_blocks * BLOCK_SIZE as u64;
        let history = Some((lineage, key.index));
        self.in_flight.push(lsn, history, whole, writes, bytes, None);
        self.counters.adopted += 1;
        for blocks in changed {
            self.heal(key, &blocks);
        }
        self.seal_full_batch(effects);
        self.answer_adopted(token, lsn, permit_lsn.max(lsn), effects);
    }

    /// Takes a layer's object back, refuses to, or says what that waits for.
    pub(super) fn retract(
        &mut self,
        token: MemberToken,
        (lineage, key): Object,
        permit: &Permit,
        replaces: Stamp,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        let vetted = self.vet_change(permit, lineage, key);
        if let Some(error) = vetted.or_else(|| self.vet_covered(lineage, key)) {
            return self.refuse_change(token, error, effects);
        }
        let Some(lsn) = self.learn_permit(permit, lineage, key.index, effects) else {
            return self.refuse_change(token, MemberError::Busy, effects);
        };
        let Some(slot) = self.table.find(lineage, key) else {
            // Nothing is there, or not any more: what took it away is among what is in the log.
            let last = self.log.next_lsn() - 1;
            self.answer_adopted(token, last, last.max(lsn), effects);
            return Outcome::Done;
        };
        let have = self.table.row(slot).stamp;
        if have != replaces {
            return self.refuse_change(token, MemberError::WrongStamp { have }, effects);
        }
        // What replay would copy again must be there then; and pages may not be freed under a
        // write. Neither lasts.
        let copied = self.copied.get(&key).copied();
        let copied = copied.filter(|&lsn| lsn >= self.superblock.replay_lsn);
        if let Some(lsn) = copied {
            self.checkpoint.request_past(lsn);
        }
        let room = self.log.has_room_for_background();
        if !room {
            self.checkpoint.request();
        }
        if copied.is_some() || !room || self.is_being_written(slot) {
            return self.refuse_change(token, MemberError::Busy, effects);
        }
        let waiter = Some(Waiter::Queue((lineage, key.index)));
        let mut loaded = true;
        for page in 0..PAGES_PER_OBJECT {
            loaded &= self.load_page(slot, page, waiter, effects);
        }
        if !loaded {
            return Outcome::Page;
        }
        let dropped = self.drop_object(slot, effects);
        self.answer_adopted(token, dropped, lsn.max(dropped), effects);
        Outcome::Done
    }

    /// Asserts what must hold of what is staged.
    pub(super) fn check_staging(&self) {
        let staged = self.staging.objects.values().flat_map(|staged| staged.parts.values());
        let staged: u64 = staged.flat_map(|p| &p.space).map(|run| u64::from(run.count)).sum();
        let going = self.staging.writes.values().filter_map(|writing| match &writing.then {
            Then::Goes(runs) => Some(runs),
            Then::Stays | Then::Adopted(_) => None,
        });
        let going: u64 = going.flatten().map(|run| u64::from(run.count)).sum();
        assert_eq!(staged + going, self.space.staged_blocks(), "staged blocks are miscounted");
    }
}

fn is_mend(permit: &Permit) -> bool {
    matches!(permit, Permit::Mend { .. })
}

/// Why an adoption cannot be made.
enum Refusal {
    Wait(Outcome),
    Error(MemberError),
}

/// How many blocks of each page of a map are replaced.
struct Covered([u32; PAGES_PER_OBJECT]);

impl Covered {
    fn of(staged: Option<&Staged>) -> Covered {
        let mut pages = [0; PAGES_PER_OBJECT];
        for part in staged.iter().flat_map(|staged| staged.parts.values()) {
            for (page, first, end) in pages_of(&part.blocks) {
                pages[page] += end - first;
            }
        }
        Covered(pages)
    }

    /// The pages, and whether all of each is replaced.
    fn pages(&self) -> impl Iterator<Item = (usize, bool)> + use<> {
        let pages = self.0.into_iter().enumerate().filter(|&(_, blocks)| blocks > 0);
        pages.map(|(page, blocks)| (page, blocks == BLOCKS_PER_PAGE))
    }
}
