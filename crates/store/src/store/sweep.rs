//! Lists of objects in pieces, in an order that the table does not have. A lineage is walked once
//! for all pieces, some rows in each round: what is wanted of it is noted, layer by layer, and the
//! pieces are taken from there.

use super::Serving;
use crate::Effect;
use crate::table::{Row, Slot};
use proto::{
    LayerId, LineageId, LineageStamp, MemberReply, MemberToken, ObjectKey, ObjectStamp,
    PartitionId, Stamp, Time, limits, partition_of,
};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

/// Rows looked at in one round.
const ROWS_PER_ROUND: usize = 8192;
/// Lists of which the next piece can be taken without walking again.
const NOTES_MAX: usize = 8;

/// Which objects are wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    /// Those of a lineage that are not below its settled point.
    Fence(LineageId),
    /// Those of some partitions, all or those alone.
    Survey { bits: u8, partitions: Vec<PartitionId>, unsettled: bool },
}

/// What is wanted of one lineage, as it was when that was walked.
struct Notes {
    wanted: Wanted,
    lineage: LineageId,
    layers: BTreeMap<LayerId, Vec<(u32, Slot)>>,
    /// From where on the walk goes on. Nothing: it has ended.
    place: Option<u32>,
}

/// A request for a piece.
struct Asked {
    token: MemberToken,
    wanted: Wanted,
    /// What was found is all up to here.
    after: (LineageId, ObjectKey),
    found: Vec<(LineageId, ObjectStamp)>,
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Sweeps {
    asked: VecDeque<Asked>,
    /// Those used last at the end.
    notes: VecDeque<Notes>,
}

impl Sweeps {
    /// When the next round is wanted at the latest.
    pub(super) fn deadline(&self) -> Option<Time> {
        (!self.asked.is_empty()).then(Time::default)
    }

    /// Takes out all that wait.
    pub(super) fn take_all(&mut self) -> Vec<MemberToken> {
        self.notes.clear();
        self.asked.drain(..).map(|asked| asked.token).collect()
    }

    /// The notes of a lineage, made if there are none.
    fn notes_of(&mut self, wanted: &Wanted, lineage: LineageId) -> Notes {
        let at = self.notes.iter().position(|n| n.lineage == lineage && n.wanted == *wanted);
        at.and_then(|at| self.notes.remove(at)).unwrap_or_else(|| Notes {
            wanted: wanted.clone(),
            lineage,
            layers: BTreeMap::new(),
            place: Some(0),
        })
    }

    fn keep(&mut self, notes: Notes) {
        if self.notes.len() == NOTES_MAX {
            self.notes.pop_front();
        }
        self.notes.push_back(notes);
    }
}

impl Serving {
    /// Takes a request for the objects after one. It is answered when that many rows were looked
    /// at.
    pub(super) fn sweep(
        &mut self,
        token: MemberToken,
        wanted: Wanted,
        after: (LineageId, ObjectKey),
    ) {
        let begins = match wanted {
            Wanted::Fence(_) => after.1 == ObjectKey::default(),
            Wanted::Survey { .. } => after == Default::default(),
        };
        if begins {
            // What was noted for an earlier one may miss what came since.
            self.sweeps.notes.retain(|notes| notes.wanted != wanted);
        }
        self.sweeps.asked.push_back(Asked { token, wanted, after, found: Vec::new() });
    }

    /// Looks at the next rows.
    pub(super) fn step_sweeps(&mut self, effects: &mut Vec<Effect>) {
        let mut rows = ROWS_PER_ROUND;
        while let Some(mut asked) = self.sweeps.asked.pop_front() {
            match self.go_on_with(&mut asked, &mut rows) {
                Some(more) => self.answer_sweep(asked, more, effects),
                None => return self.sweeps.asked.push_front(asked),
            }
        }
    }

    /// Goes on until a piece is found or enough was looked at. Returns whether there is more behind
    /// the piece.
    fn go_on_with(&mut self, asked: &mut Asked, rows: &mut usize) -> Option<bool> {
        loop {
            let (from, _) = asked.after;
            let lineage = match asked.wanted {
                Wanted::Fence(lineage) if from == lineage => Some(lineage),
                Wanted::Fence(_) => None,
                Wanted::Survey { .. } => self.lineages.range(from..).next().map(|(&l, _)| l),
            };
            let Some(lineage) = lineage else { return Some(false) };
            if asked.found.len() == limits::MEMBER_ROWS_MAX {
                return Some(true);
            }
            if *rows == 0 {
                return None;
            }
            if lineage > from {
                asked.after = (lineage, ObjectKey::default());
            }
            let mut notes = self.sweeps.notes_of(&asked.wanted, lineage);
            self.walk(&mut notes, rows);
            let more = notes.place.is_some() || self.take_from(&notes, asked);
            *rows = rows.saturating_sub(1);
            if !more {
                let Some(next) = lineage.0.checked_add(1) else { return Some(false) };
                asked.after = (LineageId(next), ObjectKey::default());
                continue;
            }
            self.sweeps.keep(notes);
        }
    }

    /// Notes what is wanted of the next rows of a lineage.
    fn walk(&self, notes: &mut Notes, rows: &mut usize) {
        while let Some(place) = notes.place.filter(|_| *rows > 0) {
            let (slots, next) = self.table.walk(notes.lineage, place);
            *rows = rows.saturating_sub(slots.len() + 1);
            notes.place = next.filter(|_| !slots.is_empty());
            for slot in slots {
                let row = self.table.row(slot);
                if self.is_wanted(&notes.wanted, row) {
                    notes.layers.entry(row.key.layer).or_default().push((row.key.index, slot));
                }
            }
        }
    }

    fn is_wanted(&self, wanted: &Wanted, row: &Row) -> bool {
        let unsettled = || {
            let known = self.lineages.get(&row.lineage);
            // What is incomplete counts for nothing: there is nothing of it to be settled.
            row.stamp != Stamp::INCOMPLETE && known.is_none_or(|l| row.stamp >= l.settled)
        };
        match wanted {
            Wanted::Fence(_) => unsettled(),
            Wanted::Survey { bits, partitions, unsettled: only } => {
                let partition = partition_of(row.lineage, row.key.index, *bits);
                partitions.binary_search(&partition).is_ok() && (!only || unsettled())
            }
        }
    }

    /// Takes objects from what was noted, up to a piece. Returns whether there may be more.
    fn take_from(&self, notes: &Notes, asked: &mut Asked) -> bool {
        let (lineage, after) = asked.after;
        for (&layer, objects) in notes.layers.range(after.layer..) {
            let first = match layer == after.layer {
                true => objects.partition_point(|&(index, _)| index <= after.index),
                false => 0,
            };
            for &(index, slot) in &objects[first..] {
                if asked.found.len() == limits::MEMBER_ROWS_MAX {
                    return true;
                }
                let key = ObjectKey { layer, index };
                asked.after = (lineage, key);
                // It may have gone, or be another layer's by now, and its slot another object's.
                let there = self.table.row_in(slot);
                let there = there.filter(|row| row.lineage == lineage && row.key == key);
                let here = || self.table.find(lineage, key).map(|slot| self.table.row(slot));
                if let Some(row) = there.or_else(here) {
                    asked.found.push((lineage, self.stamp_of_row(row)));
                }
            }
        }
        false
    }

    fn answer_sweep(&mut self, asked: Asked, more: bool, effects: &mut Vec<Effect>) {
        let Asked { token, wanted, found, .. } = asked;
        match wanted {
            Wanted::Fence(lineage) => {
                let unsettled = found.into_iter().map(|(_, object)| object).collect();
                self.answer_fence(token, lineage, unsettled, more, effects);
            }
            Wanted::Survey { .. } => {
                let incarnation = self.superblock.incarnation;
                let reply = MemberReply::Survey { incarnation, objects: found, more };
                self.answer(token, Ok(reply), effects);
            }
        }
    }

    /// Lists lineages.
    pub(super) fn list_lineages(
        &mut self,
        token: MemberToken,
        after: LineageId,
        effects: &mut Vec<Effect>,
    ) {
        let mut later = self.lineages.range((Bound::Excluded(after), Bound::Unbounded));
        let stamp = |(&lineage, known): (&LineageId, &super::Lineage)| LineageStamp {
            lineage,
            fence: known.fence,
            settled: known.settled,
            marked_by: known.settled_nothing(),
        };
        let lineages = later.by_ref().take(limits::MEMBER_ROWS_MAX).map(stamp).collect();
        let more = later.next().is_some();
        self.answer(token, Ok(MemberReply::Lineages { lineages, more }), effects);
    }
}
