//! Carries out one attempt to change the members of some partitions, from the first copy to the
//! word that it can be activated: decision 0009, "Changing members".
//!
//! What it asks and what it is told are `proto` messages; it knows the partitions and the layers by
//! the agreed map. It vouches for what `cluster` cannot know: that members who meet every write
//! quorum refuse what is left, that all is settled by what they hold, and that every next member
//! has it on stable media.

mod comparison;
mod evidence;
mod settling;
mod work;

use crate::copier::{Copier, CopyQuestion};
use crate::slots::Slots;
use cluster::{Map, Member};
use comparison::Comparison;
use evidence::Said;
use proto::limits::{
    ATTEMPT_PASSES_MAX, ATTEMPT_QUESTIONS_MAX, ATTEMPT_RETRY_MS, ATTEMPT_SHORT_PASS,
    ATTEMPT_STALL_MS, INSTALL_FENCES_MAX, MEMBER_RETRY_MS, STEWARD_MOMENT_MS,
};
use proto::{
    Batch, ConfigurationNumber, DiskId, Duration, Generation, Incarnation, LayerId, LineageId,
    MemberError, MemberReply, MemberRequest, ObjectKey, ObjectStamp, PartitionId, Stamp, Time,
    Under, partition_of,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use work::{Place, Work};

/// Names a question of a reconfigurer until it is answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AttemptQuestion(u64);

/// How an attempt ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AttemptOutcome {
    /// Everything is ready: `cluster::Command::Activate` with these.
    Activate {
        /// Every disk that is to be a member of any of its partitions, as it was open.
        openings: Vec<Member>,
    },
    /// It cannot come to an end: `cluster::Command::GiveUpAttempt`.
    GiveUp {
        /// Why.
        reason: GiveUp,
        /// Whether any disk was asked to refuse a configuration.
        may_be_refused: bool,
    },
}

/// Why an attempt is given up.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GiveUp {
    /// The agreed state does not have it any more, or not for all of its partitions.
    #[error("the attempt is over, or a newer one has taken over some of its partitions")]
    Over,
    /// A disk knows of another.
    #[error("disk {disk} knows of attempt {newer} already")]
    Superseded {
        /// Which disk.
        disk: DiskId,
        /// Of which attempt.
        newer: u64,
    },
    /// What it had said, or taken, may not hold any more.
    #[error("disk {disk} was opened anew in the middle of the attempt")]
    Reopened {
        /// Which disk.
        disk: DiskId,
    },
    /// A disk that has a part in it does not do it.
    #[error("disk {disk} does not do its part: {reason}")]
    Disk {
        /// Which disk.
        disk: DiskId,
        /// Why not.
        reason: String,
    },
    /// An object is not to be had.
    #[error("object {key} of lineage {lineage} cannot be copied to disk {disk}: {reason}")]
    Object {
        /// To which disk.
        disk: DiskId,
        /// Whose object.
        lineage: LineageId,
        /// Which object.
        key: ObjectKey,
        /// Why not.
        reason: String,
    },
}

/// How far an attempt has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttemptStage {
    /// Newcomers are made nearly equal, while everything goes on.
    Copying {
        /// For the how manyth time, from 1.
        pass: u32,
    },
    /// Members are asked to refuse the configuration. From here on sessions wait.
    Refusing,
    /// What the next configuration begins with is found out.
    Settling,
    /// And put onto every next member.
    Installing,
    /// It has its outcome.
    Ended,
}

/// How far an attempt has come, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttemptProgress {
    /// The stage.
    pub stage: AttemptStage,
    /// Pieces of objects (what one layer has of one) that are still to be made equal, as far as
    /// that is known: differences are found as the disks are looked through.
    pub to_do: u64,
    /// Pieces that were made equal since the attempt began; those that were written meanwhile count
    /// again.
    pub done: u64,
    /// Bytes of data that were sent to newcomers since the attempt began.
    pub bytes: u64,
    /// Disks without which it does not go on: those that were asked and have not answered.
    pub waiting_for: Vec<DiskId>,
}

/// One partition of the attempt.
#[derive(Debug)]
struct Part {
    /// The configuration that is left.
    number: ConfigurationNumber,
    members: Vec<Member>,
    wanted: Vec<DiskId>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Ask {
    Survey {
        comparison: usize,
        is_source: bool,
        after: (LineageId, ObjectKey),
    },
    OpenLayer {
        lineage: LineageId,
        layer: LayerId,
        parent: LayerId,
    },
    Copy {
        copier: u64,
        question: CopyQuestion,
    },
    Refuse,
    Unsettled {
        after: (LineageId, ObjectKey),
    },
    Lineages {
        after: LineageId,
    },
    Stamp {
        lineage: LineageId,
        key: ObjectKey,
    },
    /// Before an object on evidence is replaced: what it is now.
    Weigh {
        place: Place,
        stamp: ObjectStamp,
    },
    /// Whether an earlier copier had left something staged there, which is dropped by now.
    Adopt {
        place: Place,
        stamp: Stamp,
        settled: Generation,
        again: bool,
    },
    Install {
        from: usize,
    },
}

#[derive(Debug)]
struct Asked {
    disk: DiskId,
    ask: Ask,
    /// In which step; answers to those of earlier ones are of no interest.
    step: u32,
}

/// Everything that the members who refused know of one object in one layer.
#[derive(Debug, Default)]
struct Known {
    stamps: BTreeMap<DiskId, ObjectStamp>,
    /// Disks that named it as not settled, with something of its own.
    named: BTreeSet<DiskId>,
}

/// The machine that carries out one attempt.
///
/// Its owner asks the disks what [`Reconfigurer::poll`] gives, hands every answer to
/// [`Reconfigurer::handle`] (for a question that will get none, [`MemberError::Retired`]), and
/// polls again, until [`Reconfigurer::outcome`]. The order of the questions to one disk must be
/// kept. It tells of newer maps ([`Reconfigurer::learn`]) and of disks that were opened anew
/// ([`Reconfigurer::reopened`]). It may drop it at any time; the attempt must then be given up, and
/// may be refused once [`Reconfigurer::may_be_refused`].
#[derive(Debug)]
pub struct Reconfigurer {
    map: Arc<Map>,
    attempt: u64,
    copies: u8,
    bits: u8,
    parts: BTreeMap<PartitionId, Part>,
    stage: AttemptStage,
    /// Grows with everything that makes questions asked before of no interest.
    step: u32,
    /// Questions of this step without an answer, asked or still to be asked.
    open: usize,
    queue: VecDeque<(DiskId, Ask)>,
    later: Vec<(Time, DiskId, Ask)>,
    asked: Slots<Asked>,
    comparisons: Vec<Comparison>,
    work: Work,
    /// What is to be known before the objects of a lineage can be copied to a disk: its layers.
    layers: BTreeMap<LineageId, Vec<(LayerId, LayerId)>>,
    said: BTreeMap<DiskId, Said>,
    /// Next members that do not refuse since they are out of service, and since when.
    retired: BTreeMap<DiskId, Time>,
    fences: BTreeMap<LineageId, Generation>,
    known: BTreeMap<(LineageId, ObjectKey), Known>,
    /// Lineages of which any disk that was looked through has an object in these partitions.
    found: BTreeSet<LineageId>,
    /// Whether those who refused were asked again whether they are still the same.
    is_verified: bool,
    /// In which opening a disk takes part, once that matters.
    openings: BTreeMap<DiskId, Incarnation>,
    /// Disks that do not answer: others are compared with and copied from, where there are such.
    away: BTreeSet<DiskId>,
    may_be_refused: bool,
    outcome: Option<AttemptOutcome>,
}

impl Reconfigurer {
    /// Begins to carry out an attempt that is under way in this map; nothing if it is not.
    pub fn begin(map: Arc<Map>, attempt: u64) -> Option<Reconfigurer> {
        let known = map.attempt(attempt)?;
        let part = |(&partition, wanted): (&PartitionId, &Vec<DiskId>)| {
            let held = map.configuration(known.copies, partition);
            let members = held.current.clone();
            (partition, Part { number: held.number, members, wanted: wanted.clone() })
        };
        let mut this = Reconfigurer {
            attempt,
            copies: known.copies,
            bits: map.partition_bits(),
            parts: known.wanted.iter().map(part).collect(),
            stage: AttemptStage::Copying { pass: 0 },
            step: 0,
            open: 0,
            queue: VecDeque::new(),
            later: Vec::new(),
            asked: Slots::default(),
            comparisons: Vec::new(),
            work: Work::default(),
            layers: layers_of(&map),
            said: BTreeMap::new(),
            retired: BTreeMap::new(),
            fences: BTreeMap::new(),
            known: BTreeMap::new(),
            found: BTreeSet::new(),
            is_verified: false,
            openings: BTreeMap::new(),
            away: BTreeSet::new(),
            may_be_refused: false,
            outcome: None,
            map,
        };
        this.begin_pass(1);
        this.advance();
        Some(this)
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&AttemptOutcome> {
        self.outcome.as_ref()
    }

    /// Whether any disk was asked to refuse a configuration.
    pub fn may_be_refused(&self) -> bool {
        self.may_be_refused
    }

    /// How far it has come.
    pub fn progress(&self) -> AttemptProgress {
        let mut waiting_for: BTreeSet<DiskId> = self.later.iter().map(|it| it.1).collect();
        waiting_for
            .extend(self.asked.iter().filter(|it| it.1.step == self.step).map(|it| it.1.disk));
        AttemptProgress {
            stage: self.stage,
            to_do: self.work.to_do() as u64,
            done: self.work.done,
            bytes: self.work.bytes,
            waiting_for: waiting_for.into_iter().collect(),
        }
    }

    /// When to poll again though nothing was answered.
    pub fn deadline(&self) -> Option<Time> {
        if self.outcome.is_some() {
            return None;
        }
        let later = self.later.iter().map(|it| it.0);
        later.chain(self.work.copiers().filter_map(Copier::deadline)).min()
    }

    /// The next question to ask, if there is one now: of which disk, and what.
    pub fn poll(&mut self, now: Time) -> Option<(AttemptQuestion, DiskId, MemberRequest)> {
        if self.outcome.is_some() {
            return None;
        }
        let due = |it: &(Time, DiskId, Ask)| it.0 <= now;
        while let Some(at) = self.later.iter().position(due) {
            let (_, disk, ask) = self.later.remove(at);
            self.queue.push_back((disk, ask));
        }
        if self.asked.len() < ATTEMPT_QUESTIONS_MAX
            && let Some((disk, ask)) = self.queue.pop_front()
        {
            let request = self.request(disk, &ask);
            return Some((self.note(disk, ask), disk, request));
        }
        let (copier, question, disk, request) = self.work.poll(now)?;
        Some((self.note(disk, Ask::Copy { copier, question }), disk, request))
    }

    /// Takes an answer. Total: whatever a disk answers, nothing panics. What was not asked, or was
    /// answered before, is passed over.
    pub fn handle(
        &mut self,
        now: Time,
        question: AttemptQuestion,
        result: Result<MemberReply, MemberError>,
    ) {
        let Some(Asked { disk, ask, step }) = self.asked.remove(question.0) else { return };
        if self.outcome.is_some() {
            return;
        }
        if let Ask::Copy { copier, question } = ask {
            self.work.handle(now, copier, question, result);
            self.end_copies();
            return self.advance();
        }
        if step != self.step {
            return;
        }
        self.open -= 1;
        match result {
            Err(MemberError::Busy) => self.ask_later(now, MEMBER_RETRY_MS, disk, ask),
            Err(MemberError::Superseded { newer }) => {
                self.give_up(GiveUp::Superseded { disk, newer });
            }
            // Of whoever does not refuse, the others may be enough; and it may come back.
            Err(error) if ask == Ask::Refuse && self.stage == AttemptStage::Refusing => {
                self.not_refused(now, disk, error);
            }
            Ok(reply) => self.handle_reply(disk, ask, reply),
            Err(error) => self.handle_error(disk, ask, error),
        }
        self.advance();
    }

    /// A disk does not refuse now. Without a next member the attempt comes to nothing, and sessions
    /// wait: one that is out of service for longer than a moment is not waited for.
    fn not_refused(&mut self, now: Time, disk: DiskId, error: MemberError) {
        let is_wanted = self.parts.values().any(|part| part.wanted.contains(&disk));
        if is_wanted && error == MemberError::Retired {
            let since = *self.retired.entry(disk).or_insert(now);
            if since + Duration::from_millis(STEWARD_MOMENT_MS) <= now {
                return self.fail_disk(disk, error.to_string());
            }
        } else {
            self.retired.remove(&disk);
        }
        self.ask_later(now, ATTEMPT_RETRY_MS, disk, Ask::Refuse);
    }

    /// There is a newer map: layers may have come or gone, and the attempt may be over.
    pub fn learn(&mut self, map: Arc<Map>) {
        let is_mine = |known: &cluster::Attempt| known.wanted.keys().eq(self.parts.keys());
        if self.outcome.is_none() && !map.attempt(self.attempt).is_some_and(is_mine) {
            self.give_up(GiveUp::Over);
        }
        self.layers = layers_of(&map);
        self.map = map;
        self.advance();
    }

    /// A disk was opened anew: what was staged there is gone, and what it answered before may not
    /// hold any more.
    pub fn reopened(&mut self, disk: DiskId) {
        if self.outcome.is_some() {
            return;
        }
        self.retired.remove(&disk);
        match self.stage {
            AttemptStage::Copying { pass } if self.has_part(disk) => self.begin_pass(pass),
            AttemptStage::Refusing if self.said.remove(&disk).is_some() => {
                self.ask(disk, Ask::Refuse);
            }
            AttemptStage::Settling | AttemptStage::Installing
                if self.openings.contains_key(&disk) =>
            {
                self.give_up(GiveUp::Reopened { disk });
            }
            _ => {}
        }
        self.advance();
    }

    /// Tells which disks do not answer, and since when. What one of them was to give while
    /// newcomers are made equal another one gives. Of what those know who have refused nothing can
    /// be left out, and guests wait: where one of them is away, the attempt soon comes to nothing,
    /// and the next does without it.
    pub fn miss(&mut self, now: Time, away: &BTreeMap<DiskId, Time>) {
        if self.outcome.is_some() {
            return;
        }
        let before = std::mem::replace(&mut self.away, away.keys().copied().collect());
        let asked = self.asked.iter().filter(|(_, it)| it.step == self.step);
        let asked: BTreeSet<DiskId> = asked.map(|(_, it)| it.disk).collect();
        match self.stage {
            AttemptStage::Copying { pass }
                if asked.iter().any(|it| self.away.contains(it) && !before.contains(it)) =>
            {
                // They would be kept until it answers, and there is room for so many.
                let waiting = self.asked.iter().filter(|(_, it)| self.away.contains(&it.disk));
                for number in waiting.map(|(number, _)| number).collect::<Vec<u64>>() {
                    self.asked.remove(number);
                }
                self.begin_pass(pass);
            }
            AttemptStage::Refusing | AttemptStage::Settling | AttemptStage::Installing => {
                let long = Duration::from_millis(ATTEMPT_STALL_MS);
                let is_gone = |disk: &&DiskId| away.get(disk).is_some_and(|it| *it + long <= now);
                // Enough of those refuse that are not to be members.
                let is_refusing = self.stage == AttemptStage::Refusing;
                let wanted = |disk: &DiskId| self.parts.values().any(|it| it.wanted.contains(disk));
                let mut needed = asked.iter().filter(|disk| !is_refusing || wanted(disk));
                if let Some(&disk) = needed.find(is_gone) {
                    return self.fail_disk(disk, "it does not answer".to_string());
                }
            }
            _ => {}
        }
        self.advance();
    }

    fn has_part(&self, disk: DiskId) -> bool {
        self.parts.values().any(|part| part.wanted.contains(&disk) || lists(part, disk))
    }

    fn give_up(&mut self, reason: GiveUp) {
        let may_be_refused = self.may_be_refused;
        self.end(AttemptOutcome::GiveUp { reason, may_be_refused });
    }

    fn end(&mut self, outcome: AttemptOutcome) {
        self.begin_step();
        self.work.clear();
        self.stage = AttemptStage::Ended;
        self.outcome.get_or_insert(outcome);
    }

    fn begin_step(&mut self) {
        self.step += 1;
        self.open = 0;
        self.queue.clear();
        self.later.clear();
    }

    fn ask(&mut self, disk: DiskId, ask: Ask) {
        self.open += 1;
        self.queue.push_back((disk, ask));
    }

    fn ask_later(&mut self, now: Time, ms: u64, disk: DiskId, ask: Ask) {
        self.open += 1;
        self.later.push((now + Duration::from_millis(ms), disk, ask));
    }

    fn note(&mut self, disk: DiskId, ask: Ask) -> AttemptQuestion {
        AttemptQuestion(self.asked.insert(Asked { disk, ask, step: self.step }))
    }

    /// The partitions of the attempt that a disk is asked about, as a batch.
    fn batch(&self, concerns: impl Fn(&Part) -> bool) -> Batch {
        let parts = self.parts.iter().filter(|(_, part)| concerns(part));
        Batch {
            copies: self.copies,
            bits: self.bits,
            partitions: parts.map(|(&partition, part)| (partition, part.number)).collect(),
            attempt: self.attempt,
        }
    }

    fn request(&self, disk: DiskId, ask: &Ask) -> MemberRequest {
        match ask {
            Ask::Survey { comparison, after, .. } => {
                let comparison = &self.comparisons[*comparison];
                MemberRequest::Survey {
                    bits: self.bits,
                    partitions: comparison.partitions.clone(),
                    unsettled: false,
                    after: *after,
                }
            }
            &Ask::OpenLayer { lineage, layer, parent } => {
                let generation = work::ANY_GENERATION;
                MemberRequest::OpenLayer { lineage, generation, layer, parent }
            }
            Ask::Refuse => MemberRequest::Refuse(
                self.batch(|part| lists(part, disk) || part.wanted.contains(&disk)),
            ),
            &Ask::Unsettled { after } => {
                let numbered = self.batch(|part| lists(part, disk)).partitions;
                MemberRequest::Survey {
                    bits: self.bits,
                    partitions: numbered.into_iter().map(|(partition, _)| partition).collect(),
                    unsettled: true,
                    after,
                }
            }
            &Ask::Lineages { after } => MemberRequest::Lineages { after },
            &Ask::Stamp { lineage, key } => {
                MemberRequest::Stamp { lineage, key, generation: Generation::SEALED }
            }
            Ask::Weigh { place, .. } => MemberRequest::Stamp {
                lineage: place.lineage,
                key: place.key(),
                generation: Generation::SEALED,
            },
            &Ask::Adopt { place, stamp, settled, .. } => MemberRequest::Adopt {
                permit: self.permit(place.lineage, place.index),
                lineage: place.lineage,
                key: place.key(),
                staged: 0,
                stamp,
                settled_generation: settled,
                // It is equal, so it has the stamp already.
                replaces: stamp,
            },
            &Ask::Install { from } => {
                let fences = self.fences.iter().skip(from).take(INSTALL_FENCES_MAX);
                MemberRequest::Install {
                    batch: self.batch(|part| part.wanted.contains(&disk)),
                    fences: fences.map(|(&lineage, &fence)| (lineage, fence)).collect(),
                    last: from + INSTALL_FENCES_MAX >= self.fences.len(),
                }
            }
            Ask::Copy { .. } => unreachable!("copiers make their own requests"),
        }
    }

    fn permit(&self, lineage: LineageId, index: u32) -> proto::Permit {
        let partition = partition_of(lineage, index, self.bits);
        let number = self.parts.get(&partition).map(|part| part.number).unwrap_or_default();
        let under = Under { copies: self.copies, bits: self.bits, number };
        proto::Permit::Attempt { under, attempt: self.attempt }
    }

    fn part(&self, lineage: LineageId, index: u32) -> Option<&Part> {
        self.parts.get(&partition_of(lineage, index, self.bits))
    }

    /// Whether a layer is what the map says it is, and lies by the table of this attempt: one that
    /// was deleted is of no interest, and one that is not known yet is not missed before the
    /// members have refused. What lies by another table is on the same disks, in partitions of the
    /// same numbers, and must not be touched: others have it.
    fn is_live(&self, lineage: LineageId, key: ObjectKey) -> bool {
        let is_known = self.map.layer(key.layer).is_some_and(|known| known.lineage == lineage);
        is_known && self.is_mine(lineage)
    }

    /// Whether a lineage lies by the table of this attempt.
    fn is_mine(&self, lineage: LineageId) -> bool {
        let known = self.map.redundancy(lineage);
        known.is_some_and(|it| it.copies == self.copies || it.wanted == self.copies)
    }

    /// A disk has said in which opening it takes part. False if it is another by now.
    fn is_same(&mut self, disk: DiskId, incarnation: Incarnation) -> bool {
        *self.openings.entry(disk).or_insert(incarnation) == incarnation
    }

    fn handle_reply(&mut self, disk: DiskId, ask: Ask, reply: MemberReply) {
        match (ask, reply) {
            (
                Ask::Survey { comparison, is_source, after },
                MemberReply::Survey { incarnation, objects, more },
            ) => {
                if !self.comparisons[comparison].is_asked(disk, is_source, after) {
                    return;
                }
                let is_final = self.stage == AttemptStage::Settling;
                if is_final && !self.is_same(disk, incarnation) {
                    return self.give_up(GiveUp::Reopened { disk });
                }
                self.found.extend(objects.iter().map(|(lineage, _)| *lineage));
                if !self.comparisons[comparison].take(is_source, objects, more) {
                    return self.survey_failed(comparison, is_source, NONSENSE.to_string());
                }
                self.compare(comparison);
            }
            (Ask::OpenLayer { lineage, .. }, MemberReply::Done) => self.open_next(disk, lineage),
            (Ask::Refuse, MemberReply::Refused { incarnation, lossless_from }) => {
                let is_first = self.stage == AttemptStage::Refusing;
                if !is_first && !self.is_same(disk, incarnation) {
                    return self.give_up(GiveUp::Reopened { disk });
                }
                self.said.insert(disk, Said { incarnation, lossless_from });
            }
            (Ask::Unsettled { after }, MemberReply::Survey { incarnation, objects, more }) => {
                if !self.is_same(disk, incarnation) {
                    return self.give_up(GiveUp::Reopened { disk });
                }
                self.note_unsettled(disk, after, objects, more);
            }
            (Ask::Lineages { after }, MemberReply::Lineages { lineages, more }) => {
                let mut last = after;
                for found in lineages {
                    if found.lineage <= last {
                        return self.fail_disk(disk, NONSENSE.to_string());
                    }
                    last = found.lineage;
                    if found.fence > Generation(0) {
                        let known = self.fences.entry(found.lineage).or_default();
                        *known = (*known).max(found.fence);
                    }
                }
                if more && last == after {
                    return self.fail_disk(disk, NONSENSE.to_string());
                }
                if more {
                    self.ask(disk, Ask::Lineages { after: last });
                }
            }
            (Ask::Stamp { lineage, key }, MemberReply::Stamp(found)) => {
                let known = self.known.entry((lineage, key)).or_default();
                known.stamps.insert(disk, ObjectStamp { key, ..found });
            }
            (Ask::Weigh { place, stamp }, MemberReply::Stamp(found)) => {
                self.weigh(place, stamp, ObjectStamp { key: place.key(), ..found });
            }
            (Ask::Adopt { place, .. }, MemberReply::Done) => self.work.end_place(place),
            (Ask::Install { from }, MemberReply::Installed { incarnation }) => {
                if !self.is_same(disk, incarnation) {
                    return self.give_up(GiveUp::Reopened { disk });
                }
                let next = from + INSTALL_FENCES_MAX;
                if next < self.fences.len() {
                    self.ask(disk, Ask::Install { from: next });
                }
            }
            (Ask::Survey { comparison, is_source, .. }, _) => {
                self.survey_failed(comparison, is_source, NONSENSE.to_string());
            }
            _ => self.fail_disk(disk, NONSENSE.to_string()),
        }
    }

    fn handle_error(&mut self, disk: DiskId, ask: Ask, error: MemberError) {
        match (ask, error) {
            (Ask::Survey { comparison, is_source, .. }, error) => {
                if self.comparisons[comparison].disk(is_source) == disk {
                    self.survey_failed(comparison, is_source, error.to_string());
                }
            }
            // It is known with another layer below, or never will be; the copiers will find out.
            (Ask::OpenLayer { lineage, .. }, MemberError::Invalid(_)) => {
                self.open_next(disk, lineage);
            }
            // It does not know the layer: it has nothing of it.
            (Ask::Stamp { lineage, key }, MemberError::Invalid(_)) => {
                let (stamp, settled_generation) = (Stamp::default(), Generation(0));
                let known = self.known.entry((lineage, key)).or_default();
                known.stamps.insert(disk, ObjectStamp { key, stamp, settled_generation });
            }
            (Ask::Adopt { place, stamp, settled, again: false }, MemberError::NotStaged { .. }) => {
                self.ask(disk, Ask::Adopt { place, stamp, settled, again: true })
            }
            // It was written since: the next pass finds it again.
            (Ask::Adopt { place, .. }, MemberError::WrongStamp { .. })
                if matches!(self.stage, AttemptStage::Copying { .. }) =>
            {
                self.work.end_place(place);
            }
            (_, error) => self.fail_disk(disk, error.to_string()),
        }
    }

    fn fail_disk(&mut self, disk: DiskId, reason: String) {
        self.give_up(GiveUp::Disk { disk, reason });
    }

    fn survey_failed(&mut self, comparison: usize, is_source: bool, reason: String) {
        let failed = &mut self.comparisons[comparison];
        let disk = failed.disk(is_source);
        // After the members have refused, all those who said so are needed.
        let is_early = matches!(self.stage, AttemptStage::Copying { .. });
        if !is_source || !is_early || !failed.change_source() {
            return self.fail_disk(disk, reason);
        }
        self.compare(comparison);
    }

    /// Goes on with a comparison: takes the differences that are known, and asks for more.
    fn compare(&mut self, at: usize) {
        while let Some(difference) = self.comparisons[at].next() {
            // After the members have refused, a layer that is not known yet is missed.
            let is_late = self.stage == AttemptStage::Settling;
            if is_late || self.is_live(difference.lineage, difference.key) {
                self.add_difference(at, difference);
            }
        }
        for is_source in [true, false] {
            if let Some(after) = self.comparisons[at].ask(is_source) {
                let disk = self.comparisons[at].disk(is_source);
                self.ask(disk, Ask::Survey { comparison: at, is_source, after });
            }
        }
    }

    /// Looks through the newcomers, and the members that are listed in a former opening.
    fn begin_pass(&mut self, pass: u32) {
        self.begin_step();
        self.work.clear();
        self.stage = AttemptStage::Copying { pass };
        let mut comparisons: Vec<Comparison> = Vec::new();
        for (&partition, part) in &self.parts {
            let present = |member: &&Member| self.map.is_present(**member);
            for &target in &part.wanted {
                let listed = part.members.iter().find(|member| member.disk == target);
                if listed.is_some_and(|member| self.map.is_present(*member)) {
                    continue;
                }
                let sources = part.members.iter().filter(present).map(|member| member.disk);
                let (away, sources): (VecDeque<DiskId>, VecDeque<DiskId>) =
                    sources.partition(|disk| self.away.contains(disk));
                // A copier whose source has moved on would go to the next, and wait for it.
                let sources = if sources.is_empty() { away } else { sources };
                // If nobody is left that runs, all is found out when they have refused.
                if !sources.is_empty() {
                    add(&mut comparisons, self.bits, partition, sources, target, listed.is_some());
                }
            }
        }
        self.begin_comparing(comparisons);
    }

    fn begin_comparing(&mut self, comparisons: Vec<Comparison>) {
        self.comparisons = comparisons;
        for at in 0..self.comparisons.len() {
            self.compare(at);
        }
    }

    /// Goes on where everything is answered that was asked.
    fn advance(&mut self) {
        // Bounded: each turn begins another step, and all but the last ask something or end.
        while self.outcome.is_none() {
            self.start_work();
            let is_compared = self.comparisons.iter().all(Comparison::is_done);
            let is_idle = self.open == 0 && is_compared && self.work.is_idle();
            match self.stage {
                AttemptStage::Copying { pass } if is_idle => {
                    let is_short = self.work.taken_in_pass <= ATTEMPT_SHORT_PASS;
                    if is_short || pass >= ATTEMPT_PASSES_MAX {
                        self.begin_refusing();
                    } else {
                        self.begin_pass(pass + 1);
                    }
                }
                AttemptStage::Refusing if self.is_refused() => self.begin_settling(),
                AttemptStage::Settling if is_idle => {
                    if !self.settle() {
                        return;
                    }
                }
                AttemptStage::Installing if is_idle => self.install(),
                _ => return,
            }
        }
    }

    fn begin_refusing(&mut self) {
        self.begin_step();
        self.work.clear();
        self.comparisons.clear();
        self.stage = AttemptStage::Refusing;
        self.may_be_refused = true;
        let listed = self.parts.values().flat_map(|part| &part.members);
        let listed = listed.map(|member| member.disk);
        // The next members too: a session that has missed much may still write to one of them by a
        // configuration of long ago, and what was compared must stay as it was.
        let wanted = self.parts.values().flat_map(|part| &part.wanted).copied();
        for disk in listed.chain(wanted).collect::<BTreeSet<DiskId>>() {
            self.ask(disk, Ask::Refuse);
        }
    }

    /// Everything is equal: has layers opened where they may not be known, then has everything made
    /// durable, and then is done.
    fn install(&mut self) {
        let wanted = self.parts.values().flat_map(|part| &part.wanted);
        let wanted: BTreeSet<DiskId> = wanted.copied().collect();
        if !self.work.has_opened {
            return self.open_layers();
        }
        if !self.work.is_installing {
            self.work.is_installing = true;
            for disk in wanted {
                self.ask(disk, Ask::Install { from: 0 });
            }
            return;
        }
        let opening = |disk: DiskId| {
            let incarnation = self.openings.get(&disk).copied()?;
            Some(Member { disk, incarnation })
        };
        let openings: Option<Vec<Member>> = wanted.iter().copied().map(opening).collect();
        let openings = openings.expect("each has answered that it installed");
        self.end(AttemptOutcome::Activate { openings });
    }
}

/// Whether a partition lists a disk, in whatever opening.
fn lists(part: &Part, disk: DiskId) -> bool {
    part.members.iter().any(|member| member.disk == disk)
}

const NONSENSE: &str = "it gave an answer that makes no sense; see its log";

/// The layers of each lineage but the first, each after the one below it, with that. 0: all that
/// was below it has been dropped.
fn layers_of(map: &Map) -> BTreeMap<LineageId, Vec<(LayerId, LayerId)>> {
    let mut layers: BTreeMap<LineageId, Vec<(LayerId, LayerId)>> = BTreeMap::new();
    for (lineage, layer) in map.layers() {
        // Every disk knows the first layer of a lineage. Of one that became the lowest, when those
        // below were dropped, a newcomer has to be told like of any other.
        let parent = map.parent_in_lineage(layer);
        if parent.is_some() || layer.0 != lineage.0 {
            let parent = parent.unwrap_or(LayerId(0));
            layers.entry(lineage).or_default().push((layer, parent));
        }
    }
    layers
}

/// Adds a partition to the comparison of these disks.
fn add(
    comparisons: &mut Vec<Comparison>,
    bits: u8,
    partition: PartitionId,
    sources: VecDeque<DiskId>,
    target: DiskId,
    is_evidence: bool,
) {
    let is_it = |it: &&mut Comparison| {
        it.target == target && it.is_evidence == is_evidence && it.sources == sources
    };
    if let Some(known) = comparisons.iter_mut().find(is_it) {
        return known.partitions.push(partition);
    }
    let mut new = Comparison::new(sources, target, bits, is_evidence);
    new.partitions.push(partition);
    comparisons.push(new);
}

#[cfg(test)]
mod tests;
