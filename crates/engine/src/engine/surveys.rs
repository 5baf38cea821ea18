//! What deleting each snapshot of a volume would free: asked of the disks in small steps, one
//! question at a time, so that guests' requests go in between.

use super::{Engine, MemberRoute, administer::refused};
use crate::{
    Output,
    admin::{AdminReply, AdminToken},
    disks::Disk,
};
use cluster::{Going, Map, Refusal, Volume};
use proto::{
    BLOCK_SIZE, BlockRange, BlockState, DiskId, Duration, Generation, LayerId, LineageId,
    MemberError, MemberReply, MemberRequest, OBJECT_SIZE, ObjectKey, Time, VolumeId,
    limits::MEMBER_RETRY_MS,
};
use std::{collections::BTreeMap, ops::Range};

/// An administrator's question about all snapshots of a volume.
pub(super) struct Survey {
    pub(super) token: AdminToken,
    volume: VolumeId,
    /// Snapshots' layers still to be looked at, the next one last.
    left: Vec<LayerId>,
    /// The questions about the present snapshot still to be asked, the next one last.
    questions: Vec<Question>,
    /// The snapshot that is looked at.
    layer: LayerId,
    /// What deleting each would free, in blocks; nothing: a disk cannot tell.
    found: BTreeMap<LayerId, Option<u64>>,
    /// When the next question is to be asked; nothing while one is being answered.
    due: Option<Time>,
}

/// What is asked of one disk about one layer that would go.
#[derive(Debug)]
struct Question {
    disk: DiskId,
    lineage: LineageId,
    layer: LayerId,
    index: u32,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// What nobody else shows.
    Reclaimable,
    /// Another child of the layer goes too, and this one inherits: what the layer keeps in an
    /// object, ...
    Kept { heir: LayerId, kept_blocks: u64 },
    /// ... and which of these blocks, in order, the heir shows otherwise.
    Replaced { heir: LayerId, kept_blocks: u64, kept: Vec<Range<u32>> },
}

impl Engine {
    /// Begins to find out what deleting each snapshot of a volume would free.
    pub(super) fn begin_survey(&mut self, now: Time, token: AdminToken, volume: VolumeId) {
        let known = self.map.volume(volume).expect("found just now");
        let left = known.snapshots.iter().rev().map(|snapshot| snapshot.layer).collect();
        let survey = Survey {
            token,
            volume,
            left,
            questions: Vec::new(),
            layer: LayerId(0),
            found: BTreeMap::new(),
            due: Some(now),
        };
        self.next_survey += 1;
        self.surveys.insert(self.next_survey, survey);
    }

    /// When the next question of a survey is to be asked.
    pub(super) fn surveys_deadline(&self) -> Option<Time> {
        self.surveys.values().filter_map(|survey| survey.due).min()
    }

    /// Asks the next question of each survey that is not being answered.
    pub(super) fn advance_surveys(&mut self, now: Time, outputs: &mut Vec<Output>) {
        let due = |survey: &Survey| survey.due.is_some_and(|due| due <= now);
        let ready = self.surveys.iter().filter(|(_, survey)| due(survey)).map(|(id, _)| *id);
        for id in ready.collect::<Vec<_>>() {
            self.advance_survey(now, id, outputs);
        }
    }

    fn advance_survey(&mut self, now: Time, id: u64, outputs: &mut Vec<Output>) {
        let survey = self.surveys.get_mut(&id).expect("listed just now");
        if let Some(question) = survey.questions.last() {
            survey.due = None;
            let (disk, request) = (question.disk, question.request(&self.map));
            self.ask_member(now, disk, MemberRoute::Survey(id), request);
            return;
        }
        let Some(layer) = survey.left.pop() else {
            let survey = self.surveys.remove(&id).expect("just seen");
            return self.end_survey(survey, outputs);
        };
        survey.layer = layer;
        survey.questions = questions(&self.map, self.disks.keys(), layer);
        let is_gone = self.map.layer(layer).is_none();
        let sealing = self.map.volume(survey.volume).and_then(|volume| self.map.sealing(volume));
        // What disks of other nodes have of it is not asked.
        let is_elsewhere = self.map.disks().any(|disk| !self.disks.contains_key(&disk.id));
        let is_silent = self.disks.values().any(is_silent) || is_elsewhere;
        let unknown = is_gone || sealing == Some(layer) || is_silent;
        survey.found.insert(layer, (!unknown).then_some(0));
        if unknown {
            survey.questions.clear();
        }
    }

    /// A disk has answered a survey's question.
    pub(super) fn survey_answered(
        &mut self,
        now: Time,
        id: u64,
        result: Result<MemberReply, MemberError>,
    ) {
        let Some(survey) = self.surveys.get_mut(&id) else { return };
        survey.due = Some(now);
        let question = survey.questions.last_mut().expect("it was asked");
        let found = survey.found.get_mut(&survey.layer).expect("it is looked at");
        let reply = match result {
            Ok(reply) => reply,
            Err(MemberError::Busy) => {
                survey.due = Some(now + Duration::from_millis(MEMBER_RETRY_MS));
                return;
            }
            Err(_) => {
                *found = None;
                survey.questions.clear();
                return;
            }
        };
        let kept = self.disks.get(&question.disk).and_then(Disk::store);
        let kept = kept.map_or(0, |store| store.usage(question.layer).data_blocks);
        let largest = || largest_bytes(&self.map).div_ceil(OBJECT_SIZE as u64) as u32;
        let Some((blocks, is_over)) = question.take(reply, kept, largest) else {
            *found = None;
            survey.questions.clear();
            return;
        };
        *found = found.map(|sum| sum + blocks);
        if is_over {
            survey.questions.pop();
        }
    }

    fn end_survey(&self, survey: Survey, outputs: &mut Vec<Output>) {
        let volume = self.map.volume(survey.volume).filter(|volume| volume.trash.is_none());
        let result = match volume {
            Some(volume) => {
                let mut reports = self.snapshot_reports(volume);
                for report in &mut reports {
                    let blocks = survey.found.get(&report.layer).copied().flatten();
                    report.reclaimable_bytes = blocks.map(|blocks| blocks * BLOCK_SIZE as u64);
                }
                Ok(AdminReply::Snapshots(reports))
            }
            None => Err(refused(&Refusal::UnknownVolume { volume: survey.volume })),
        };
        outputs.push(Output::Admin { token: survey.token, result: Box::new(result) });
    }
}

/// Whether a disk cannot tell.
fn is_silent(disk: &Disk) -> bool {
    disk.store().is_none_or(|store| store.status().state != store::State::Serving)
}

/// What to ask about a snapshot.
fn questions<'a>(
    map: &Map,
    disks: impl Iterator<Item = &'a DiskId>,
    snapshot: LayerId,
) -> Vec<Question> {
    let mut going = map.going_with(snapshot);
    // No disk has anything of a source.
    going.retain(|going| map.source(going.layer).is_none());
    let mut questions = Vec::new();
    for disk in disks {
        questions.extend(going.iter().map(|&Going { lineage, layer, heir }| {
            let step = match heir {
                Some(heir) => Step::Kept { heir, kept_blocks: 0 },
                None => Step::Reclaimable,
            };
            Question { disk: *disk, lineage, layer, index: 0, step }
        }));
    }
    questions
}

/// No object lies beyond the largest volume there is.
fn largest_bytes(map: &Map) -> u64 {
    let sizes = |volume: &Volume| {
        let snapshots = volume.snapshots.iter().map(|snapshot| snapshot.bytes);
        let discard = volume.pending_discard.map_or(0, |discard| discard.end);
        snapshots.max().unwrap_or(0).max(volume.bytes).max(discard)
    };
    map.volumes().map(sizes).max().unwrap_or(0)
}

impl Question {
    fn request(&self, map: &Map) -> MemberRequest {
        let Question { lineage, layer, index, .. } = *self;
        let generation = Generation::SEALED;
        let (layer, base) = match &self.step {
            Step::Reclaimable => {
                return MemberRequest::Reclaimable { lineage, generation, layer, index };
            }
            Step::Kept { .. } => (layer, map.parent_in_lineage(layer).unwrap_or_default()),
            Step::Replaced { heir, .. } => (*heir, layer),
        };
        let (key, blocks) = (ObjectKey { layer, index }, BlockRange::whole());
        let under = None;
        MemberRequest::Difference { lineage, key, generation, under, base, blocks }
    }

    /// Takes in the answer: how many more blocks would be free, and whether that was the last one.
    /// `kept` is how many blocks the layer keeps on the disk; objects end before `end`. Nothing if
    /// the answer makes no sense.
    fn take(
        &mut self,
        reply: MemberReply,
        kept: u64,
        end: impl Fn() -> u32,
    ) -> Option<(u64, bool)> {
        match (&mut self.step, reply) {
            (Step::Reclaimable, MemberReply::Reclaimable { blocks, next_index }) => {
                // Anything else would never end.
                let next = next_index.filter(|next| *next > self.index);
                self.index = next.unwrap_or(self.index);
                Some((blocks, next.is_none()))
            }
            (Step::Kept { heir, kept_blocks }, MemberReply::Difference(runs)) => {
                let mut at = 0;
                let mut data = Vec::new();
                for (count, state) in runs {
                    if state == Some(BlockState::Data) {
                        data.push(at..at + count);
                        *kept_blocks += u64::from(count);
                    }
                    at += count;
                }
                let (heir, kept_blocks) = (*heir, *kept_blocks);
                if data.is_empty() {
                    return Some((0, self.is_past(kept_blocks, kept, end)));
                }
                self.step = Step::Replaced { heir, kept_blocks, kept: data };
                Some((0, false))
            }
            (Step::Replaced { heir, kept_blocks, kept: data }, MemberReply::Difference(runs)) => {
                let mut at = 0;
                let mut replaced = 0;
                for (count, state) in runs {
                    let run = at..at + count;
                    let common = |kept: &Range<u32>| {
                        kept.end.min(run.end).saturating_sub(kept.start.max(run.start))
                    };
                    if state.is_some() {
                        replaced += data.iter().map(|kept| u64::from(common(kept))).sum::<u64>();
                    }
                    at = run.end;
                }
                let (heir, kept_blocks) = (*heir, *kept_blocks);
                self.step = Step::Kept { heir, kept_blocks };
                Some((replaced, self.is_past(kept_blocks, kept, end)))
            }
            _ => None,
        }
    }

    /// Goes on to the next object, if there is any.
    fn is_past(&mut self, found: u64, kept: u64, end: impl Fn() -> u32) -> bool {
        self.index += 1;
        found >= kept || self.index >= end()
    }
}
