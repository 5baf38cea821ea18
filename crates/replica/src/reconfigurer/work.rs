//! What is still to be made equal, and the copiers that do it: a bounded number at a time.

use super::comparison::Difference;
use super::{Ask, AttemptStage, GiveUp, Known, Reconfigurer};
use crate::copier::{Becomes, Copier, Copy, CopyError, CopyLayer, CopyQuestion};
use crate::settle::settle;
use cluster::Member;
use proto::limits::ATTEMPT_COPIERS_MAX;
use proto::{
    BLOCK_SIZE, DiskId, Generation, LayerId, LineageId, MemberError, MemberReply, MemberRequest,
    Mistake, ObjectKey, ObjectStamp, Stamp, Time, planted,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

/// For opening layers: an attempt has no generation, and no fence is above this one.
pub(super) const ANY_GENERATION: Generation = Generation(Generation::SEALED.0 - 1);

/// An object in one layer on the disk that is to have it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    pub(super) target: DiskId,
    pub(super) lineage: LineageId,
    pub(super) index: u32,
    pub(super) layer: LayerId,
}

impl Place {
    pub(super) fn key(&self) -> ObjectKey {
        ObjectKey { layer: self.layer, index: self.index }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Task {
    /// Whatever a source has; what was written meanwhile is marked as incomplete.
    AsSource { sources: Vec<DiskId> },
    /// What these have at this stamp.
    Given { stamp: Stamp, settled: Generation, sources: Vec<DiskId> },
    /// The same, if it would win over what the target has.
    IfWins { stamp: ObjectStamp, sources: Vec<DiskId> },
    /// It is equal but for who settled it.
    Adopt { stamp: Stamp, settled: Generation },
}

#[derive(Debug, Default)]
pub(super) struct Work {
    todo: BTreeMap<Place, Task>,
    running: BTreeMap<Place, Task>,
    copiers: BTreeMap<u64, (Place, Copier)>,
    next_copier: u64,
    /// Disks that know all layers of a lineage.
    opened: BTreeSet<(DiskId, LineageId)>,
    /// Disks that are being told of layers, and those still to be told.
    opening: BTreeMap<(DiskId, LineageId), VecDeque<(LayerId, LayerId)>>,
    /// Found when the next members were looked through after the others had refused.
    pub(super) differences: BTreeMap<Place, (Difference, Vec<DiskId>)>,
    /// Pieces that were worked on in this pass.
    pub(super) taken_in_pass: usize,
    /// Next members that were none in this opening were told of layers.
    pub(super) has_opened: bool,
    /// All disks were asked to make it durable.
    pub(super) is_installing: bool,
    pub(super) done: u64,
    pub(super) bytes: u64,
}

impl Work {
    pub(super) fn clear(&mut self) {
        let (done, bytes, next_copier) = (self.done, self.bytes, self.next_copier);
        *self = Work { done, bytes, next_copier, ..Work::default() };
    }

    pub(super) fn to_do(&self) -> usize {
        self.todo.len() + self.running.len()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.todo.is_empty() && self.running.is_empty() && self.opening.is_empty()
    }

    pub(super) fn copiers(&self) -> impl Iterator<Item = &Copier> {
        self.copiers.values().map(|(_, copier)| copier)
    }

    pub(super) fn poll(&mut self, now: Time) -> Option<(u64, CopyQuestion, DiskId, MemberRequest)> {
        self.copiers.iter_mut().find_map(|(&number, (_, copier))| {
            let (question, disk, request) = copier.poll(now)?;
            Some((number, question, disk, request))
        })
    }

    pub(super) fn handle(
        &mut self,
        now: Time,
        copier: u64,
        question: CopyQuestion,
        result: Result<MemberReply, MemberError>,
    ) {
        if let Some((_, copier)) = self.copiers.get_mut(&copier) {
            copier.handle(now, question, result);
        }
    }

    /// A piece is done.
    pub(super) fn end_place(&mut self, place: Place) {
        if self.running.remove(&place).is_some() {
            self.taken_in_pass += 1;
            self.done += 1;
        }
    }

    /// The next piece that can be begun; or a disk that must be told of layers first.
    fn next(&mut self) -> Option<Result<Place, (DiskId, LineageId)>> {
        let mut from = Bound::Unbounded;
        loop {
            let (&place, _) = self.todo.range((from, Bound::Unbounded)).next()?;
            let to = (place.target, place.lineage);
            if !self.opened.contains(&to) {
                if !self.opening.contains_key(&to) {
                    return Some(Err(to));
                }
                let (index, layer) = (u32::MAX, LayerId(u64::MAX));
                from = Bound::Excluded(Place { index, layer, ..place });
                continue;
            }
            // One copier at a time for an object: layers go from the lowest up.
            let (first, last) =
                (Place { layer: LayerId(0), ..place }, Place { layer: LayerId(u64::MAX), ..place });
            if self.running.range(first..=last).next().is_some() {
                from = Bound::Excluded(last);
                continue;
            }
            return Some(Ok(place));
        }
    }
}

impl Reconfigurer {
    /// Begins what can be begun.
    pub(super) fn start_work(&mut self) {
        if !matches!(self.stage, AttemptStage::Copying { .. } | AttemptStage::Installing) {
            return;
        }
        while self.work.running.len() < ATTEMPT_COPIERS_MAX {
            match self.work.next() {
                None => return,
                Some(Err((disk, lineage))) => {
                    let layers = self.layers.get(&lineage).cloned().unwrap_or_default();
                    self.work.opening.insert((disk, lineage), layers.into());
                    self.open_next(disk, lineage);
                }
                Some(Ok(place)) => {
                    let task = self.work.todo.remove(&place).expect("it was found there");
                    self.work.running.insert(place, task.clone());
                    self.start(place, task);
                }
            }
        }
    }

    /// A disk knows one layer more of a lineage.
    pub(super) fn open_next(&mut self, disk: DiskId, lineage: LineageId) {
        let Some(left) = self.work.opening.get_mut(&(disk, lineage)) else { return };
        match left.pop_front() {
            Some((layer, parent)) => self.ask(disk, Ask::OpenLayer { lineage, layer, parent }),
            None => {
                self.work.opening.remove(&(disk, lineage));
                self.work.opened.insert((disk, lineage));
            }
        }
    }

    /// Tells the next members that were none, or were opened anew, of the layers of what has
    /// objects in these partitions, and of volumes that are attached, whose sessions write new
    /// ones: also of those in which nothing was copied.
    pub(super) fn open_layers(&mut self) {
        self.work.has_opened = true;
        let attached = self.map.volumes().filter(|volume| !volume.attachments.is_empty());
        let heads = attached.filter_map(|volume| Some(self.map.layer(volume.head)?.lineage));
        let lineages = self.found.iter().copied().chain(heads);
        let lineages: BTreeSet<LineageId> = lineages.filter(|it| self.is_mine(*it)).collect();
        let mut disks: BTreeSet<DiskId> = BTreeSet::new();
        for part in self.parts.values() {
            let was_member = |disk: &&DiskId| {
                let is_it = |member: &Member| {
                    member.disk == **disk && self.openings.get(*disk) == Some(&member.incarnation)
                };
                part.members.iter().any(is_it)
            };
            disks.extend(part.wanted.iter().filter(|disk| !was_member(disk)));
        }
        for disk in disks {
            for &lineage in &lineages {
                let layers = self.layers.get(&lineage).cloned().unwrap_or_default();
                if !layers.is_empty() && !self.work.opened.contains(&(disk, lineage)) {
                    self.work.opening.insert((disk, lineage), layers.into());
                    self.open_next(disk, lineage);
                }
            }
        }
    }

    fn start(&mut self, place: Place, task: Task) {
        match task {
            Task::AsSource { sources } => self.start_copier(place, sources, Becomes::AsSource),
            Task::Given { stamp, settled, sources } => {
                let becomes = Becomes::Given { stamp, settled_generation: settled };
                self.start_copier(place, sources, becomes);
            }
            Task::IfWins { stamp, .. } => self.ask(place.target, Ask::Weigh { place, stamp }),
            Task::Adopt { stamp, settled } => {
                self.ask(place.target, Ask::Adopt { place, stamp, settled, again: false });
            }
        }
    }

    fn start_copier(&mut self, place: Place, sources: Vec<DiskId>, becomes: Becomes) {
        let layer = place.layer;
        let parent = self.map.parent_in_lineage(layer).unwrap_or(LayerId(0));
        let mut copy = Copy {
            lineage: place.lineage,
            index: place.index,
            layers: vec![CopyLayer { layer, parent, becomes, is_above: false }],
            sources,
            target: place.target,
            permit: self.permit(place.lineage, place.index),
            generation: ANY_GENERATION,
        };
        let is_early = matches!(self.stage, AttemptStage::Copying { .. });
        let layers = self.layers.get(&place.lineage).map_or(&[][..], Vec::as_slice);
        copy.add_above(layers, |layer| match self.work.todo.get(&Place { layer, ..place }) {
            // A newcomer's own is evidence of nothing.
            _ if is_early && becomes == Becomes::AsSource => Becomes::AsSource,
            Some(Task::AsSource { .. } | Task::Given { .. }) => Becomes::Retracted,
            Some(Task::IfWins { .. } | Task::Adopt { .. }) | None => Becomes::AsBefore,
        });
        self.work.copiers.insert(self.work.next_copier, (place, Copier::begin(copy)));
        self.work.next_copier += 1;
    }

    /// What a disk has that is evidence is known: it gets something else only if that wins.
    pub(super) fn weigh(&mut self, place: Place, source: ObjectStamp, target: ObjectStamp) {
        let Some(Task::IfWins { sources, .. }) = self.work.running.get(&place).cloned() else {
            return;
        };
        let is_same = source.stamp == target.stamp;
        let loses = settle([source, target]) != Some(source.stamp);
        if is_same || (loses && !planted(Mistake::EvidenceShrinks)) {
            self.work.running.remove(&place);
            return;
        }
        let (stamp, settled_generation) = (source.stamp, source.settled_generation);
        let becomes = match planted(Mistake::EvidenceTorn) {
            false => Becomes::Given { stamp, settled_generation },
            true => Becomes::AsSource,
        };
        self.start_copier(place, sources, becomes);
    }

    /// Takes away the copiers that have ended.
    pub(super) fn end_copies(&mut self) {
        let has_ended = |(_, held): &(&u64, &(Place, Copier))| held.1.outcome().is_some();
        let ended = self.work.copiers.iter().filter(has_ended).map(|(&number, _)| number);
        let ended: Vec<u64> = ended.collect();
        let ended: Vec<(Place, Copier)> =
            ended.iter().filter_map(|number| self.work.copiers.remove(number)).collect();
        let is_early = matches!(self.stage, AttemptStage::Copying { .. });
        for (place, copier) in ended {
            let Place { target: disk, lineage, .. } = place;
            let object = |reason| GiveUp::Object { disk, lineage, key: place.key(), reason };
            match copier.outcome().expect("it has one") {
                Ok(copied) => {
                    self.work.bytes += copied.blocks * BLOCK_SIZE as u64;
                    self.work.end_place(place);
                    if !copied.is_complete && !is_early {
                        self.give_up(object("it was written meanwhile".to_string()));
                    }
                }
                // It was written since: the next pass finds it again.
                Err(CopyError::NoSource { .. }) if is_early => self.work.end_place(place),
                Err(CopyError::NoSource { disk, reason }) => {
                    self.give_up(object(format!("disk {disk} does not bring it: {reason}")));
                }
                &Err(CopyError::Superseded { newer }) => {
                    self.give_up(GiveUp::Superseded { disk, newer });
                }
                Err(error) => self.fail_disk(disk, error.to_string()),
            }
        }
    }

    /// Two disks differ in something.
    pub(super) fn add_difference(&mut self, at: usize, difference: Difference) {
        let comparison = &self.comparisons[at];
        let sources: Vec<DiskId> = comparison.sources.iter().copied().collect();
        let Difference { lineage, key, source, target } = difference;
        let place =
            Place { target: comparison.target, lineage, index: key.index, layer: key.layer };
        if self.stage == AttemptStage::Settling {
            self.work.differences.insert(place, (difference, sources));
            return;
        }
        let whole = source.filter(|found| found.stamp != Stamp::INCOMPLETE);
        let task = match (whole, target) {
            (Some(stamp), target) if comparison.is_evidence => {
                if target.is_some_and(|found| found.stamp == stamp.stamp) {
                    return;
                }
                Task::IfWins { stamp, sources }
            }
            (None, _) if comparison.is_evidence => return,
            (Some(found), Some(target)) if found.stamp == target.stamp => {
                Task::Adopt { stamp: found.stamp, settled: found.settled_generation }
            }
            _ => Task::AsSource { sources },
        };
        self.work.todo.insert(place, task);
    }

    /// Plans what is to be done before the next members are installed: what was not settled, on
    /// each of them, and whatever else is not equal on those that do not have all.
    pub(super) fn plan_settled(&mut self) {
        let mut todo: BTreeMap<Place, Task> = BTreeMap::new();
        let differences = std::mem::take(&mut self.work.differences);
        let known = std::mem::take(&mut self.known);
        for (&(lineage, key), known) in &known {
            if self.is_live(lineage, key)
                && let Err(reason) = self.plan_object(lineage, key, known, &mut todo)
            {
                return self.give_up(reason);
            }
        }
        for (place, (difference, sources)) in differences {
            let Difference { lineage, key, source, target } = difference;
            if known.contains_key(&(lineage, key)) || !self.is_live(lineage, key) {
                continue;
            }
            let task = match (source, target) {
                (Some(found), _) if found.stamp == Stamp::INCOMPLETE => {
                    let (disk, reason) = (place.target, NOT_WHOLE.to_string());
                    return self.give_up(GiveUp::Object { disk, lineage, key, reason });
                }
                (Some(found), Some(target)) if found.stamp == target.stamp => {
                    Task::Adopt { stamp: found.stamp, settled: found.settled_generation }
                }
                (Some(found), _) => {
                    let (stamp, settled) = (found.stamp, found.settled_generation);
                    Task::Given { stamp, settled, sources }
                }
                (None, _) => Task::AsSource { sources },
            };
            todo.insert(place, task);
        }
        self.work.clear();
        self.work.todo = todo;
    }

    /// What becomes of an object that somebody named as not settled: the same on every next member,
    /// where it is equal too, for the mark of a settling that came to nothing must go.
    fn plan_object(
        &self,
        lineage: LineageId,
        key: ObjectKey,
        known: &Known,
        todo: &mut BTreeMap<Place, Task>,
    ) -> Result<(), GiveUp> {
        let Some(part) = self.part(lineage, key.index) else { return Ok(()) };
        let evidence = self.evidence(part);
        let answer = |disk: &DiskId| {
            known.stamps.get(disk).copied().filter(|found| found.stamp != Stamp::INCOMPLETE)
        };
        let answers = || evidence.iter().filter_map(answer);
        let settled = answers().map(|it| it.settled_generation.max(it.stamp.generation)).max();
        let Some((stamp, settled)) = settle(answers()).zip(settled) else {
            let (disk, reason) = (part.wanted[0], NOT_WHOLE.to_string());
            return Err(GiveUp::Object { disk, lineage, key, reason });
        };
        let has_it = |disk: &DiskId| answer(disk).is_some_and(|found| found.stamp == stamp);
        // If nobody who has it named it, it is what lies below that shows.
        let is_own = known.named.iter().any(has_it);
        for &target in &part.wanted {
            let place = Place { target, lineage, index: key.index, layer: key.layer };
            if evidence.contains(&target) && has_it(&target) {
                if is_own {
                    todo.insert(place, Task::Adopt { stamp, settled });
                }
                continue;
            }
            let sources = evidence.iter().copied().filter(|it| *it != target && has_it(it));
            todo.insert(place, Task::Given { stamp, settled, sources: sources.collect() });
        }
        Ok(())
    }
}

const NOT_WHOLE: &str = "no member has it whole";
