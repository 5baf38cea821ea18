//! What rots on a disk of this node is mended from another current member, by itself (decision
//! 0014): one damage of a disk at a time, as fast as peers and the disk answer.
//!
//! A block of data is read from a peer and handed to the store, which knows by its map whether it
//! is the right one. A page of a map is made anew by a [`Copier`] from a peer that has the object
//! at the same stamp.

use super::{Engine, MemberRoute, Phase, Work, peers::message_of};
use crate::{NoticeLevel, Output, disks::Disk, report};
use proto::{
    BlockRange, DiskId, Duration, Generation, LayerId, MemberError, MemberReply, MemberRequest,
    Payload, Permit, Time, limits,
};
use replica::{Becomes, Copier, Copy, CopyLayer, CopyQuestion};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use store::{Damage, DamagedPart};

/// How often it is looked whether anything is damaged.
const LOOK: Duration = Duration::from_millis(limits::MEND_LOOK_MS);
/// How long the mend of a page may take before another damage is looked at.
const JOB_MAX: Duration = Duration::from_millis(limits::MEND_MS_MAX);
/// How long one member may take to answer for a block before the next one is asked.
const BLOCK_MAX: Duration = Duration::from_millis(limits::MEND_MS_MAX / 6);
/// The longest time until a damage that could not be mended is tried again.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// After so many tries in a row in which every member answered and none had it, that is told.
const TRIES_TOLD: u32 = 4;

/// What a peer is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MendQuestion {
    /// A block.
    Block,
    /// What the copier of a page of a map asks.
    Copy(CopyQuestion),
}

/// What a member answers.
pub(super) struct MendAnswer {
    /// The disk that is mended.
    pub(super) disk: DiskId,
    /// Which of its mends.
    pub(super) number: u64,
    pub(super) question: MendQuestion,
    pub(super) result: Result<MemberReply, MemberError>,
}

/// One damage that is being mended.
struct Job {
    number: u64,
    damage: Damage,
    by: Time,
    what: What,
}

enum What {
    /// A block: members still to be asked, and what the others said.
    Block { sources: VecDeque<DiskId>, told: Told },
    /// A page.
    Page(Box<Copier>),
}

/// What members have said of a block in one try.
#[derive(Clone, Copy, Default)]
struct Told {
    /// One could not be asked, did not answer, or could not tell.
    is_missing: bool,
    /// The disk did not keep what it was given.
    is_relapse: bool,
}

/// A damage that could not be mended.
struct Setback {
    tries: u32,
    /// In how many of the last tries every member answered, and none had it.
    in_vain: u32,
    until: Time,
}

/// What this node mends.
#[derive(Default)]
pub(super) struct Mending {
    jobs: BTreeMap<DiskId, Job>,
    last_job: u64,
    setbacks: BTreeMap<(DiskId, u64), Setback>,
    look_at: Option<Time>,
}

impl Mending {
    /// When something is to be done by itself.
    pub(super) fn deadline(&self) -> Option<Time> {
        let copiers = self.jobs.values().filter_map(|job| match &job.what {
            What::Page(copier) => copier.deadline(),
            What::Block { .. } => None,
        });
        let late = self.jobs.values().map(|job| job.by);
        copiers.chain(late).chain(self.look_at).min()
    }
}

impl Engine {
    /// Something is damaged on a disk, or may be.
    pub(super) fn note_damage(&mut self, now: Time) {
        let at = now + LOOK;
        let look_at = &mut self.mending.look_at;
        *look_at = Some(look_at.map_or(at, |known| known.min(at)));
    }

    /// Time has come, perhaps.
    pub(super) fn tick_mending(&mut self, now: Time, outputs: &mut Vec<Output>) {
        let late: Vec<DiskId> = self
            .mending
            .jobs
            .iter()
            .filter(|(_, job)| job.by <= now)
            .map(|(disk, _)| *disk)
            .collect();
        for disk in late {
            match self.mending.jobs.get_mut(&disk) {
                Some(Job { what: What::Block { told, .. }, .. }) => {
                    told.is_missing = true;
                    self.ask_for_block(now, disk, outputs);
                }
                _ => self.end_mend(now, disk, false, outputs),
            }
        }
        if self.mending.look_at.is_none() && self.has_damages() {
            // Known since before it served, or not to be mended then: members come and go.
            self.mending.look_at = Some(now + LOOK * 5);
        }
        if self.mending.look_at.is_some_and(|at| at <= now) {
            self.mending.look_at = None;
            for disk in self.disks.keys().copied().collect::<Vec<_>>() {
                self.mend_next(now, disk, outputs);
            }
        }
        self.pump_mends(now, outputs);
    }

    fn has_damages(&self) -> bool {
        let mut stores = self.disks.values().filter_map(Disk::store);
        self.phase == Phase::Serving && stores.any(|store| !store.damages().is_empty())
    }

    /// The node stops.
    pub(super) fn forget_mends(&mut self) {
        self.mending = Mending { last_job: self.mending.last_job, ..Mending::default() };
    }

    /// Members that may have an object: all that are current, but this disk.
    fn mend_sources(&self, disk: DiskId, part: DamagedPart) -> Vec<DiskId> {
        let (DamagedPart::Data { lineage, key, .. } | DamagedPart::MapPage { lineage, key, .. }) =
            part
        else {
            return Vec::new();
        };
        // What is left of partitions that are kept elsewhere is made equal if it is wanted again.
        if !report::is_missed(&self.map, disk, part) {
            return Vec::new();
        }
        let held = self.map.configuration_of(lineage, key.index);
        held.current.iter().map(|member| member.disk).filter(|it| *it != disk).collect()
    }

    /// Begins with the next damage of a disk that can be mended now.
    fn mend_next(&mut self, now: Time, disk: DiskId, outputs: &mut Vec<Output>) {
        if self.phase != Phase::Serving || self.mending.jobs.contains_key(&disk) {
            return;
        }
        let Some(here) = self.disks.get_mut(&disk).filter(|here| here.serves()) else { return };
        let damages = here.store().map(|store| store.damages()).unwrap_or_default().to_vec();
        let listed: BTreeSet<u64> = damages.iter().map(|damage| damage.address).collect();
        here.relapsed.retain(|address| listed.contains(address));
        let is_listed = |(of, address): &(DiskId, u64)| *of != disk || listed.contains(address);
        self.mending.setbacks.retain(|place, _| is_listed(place));
        let mut next = None;
        for damage in damages {
            let setback = self.mending.setbacks.get(&(disk, damage.address));
            let due = setback.map_or(now, |it| it.until);
            if due > now {
                let look_at = &mut self.mending.look_at;
                *look_at = Some(look_at.map_or(due, |known| known.min(due)));
                continue;
            }
            let members = self.mend_sources(disk, damage.part);
            let sources: VecDeque<DiskId> =
                members.iter().copied().filter(|source| self.can_be_asked(*source)).collect();
            if !sources.is_empty() {
                next = Some((damage, sources, members.len()));
                break;
            }
        }
        let Some((damage, sources, members)) = next else { return };
        self.mending.last_job += 1;
        let (number, by) = (self.mending.last_job, now + JOB_MAX);
        let what = match damage.part {
            DamagedPart::MapPage { lineage, key, .. } => {
                let becomes = Becomes::AsTarget;
                let parent = LayerId(0);
                What::Page(Box::new(Copier::begin(Copy {
                    lineage,
                    index: key.index,
                    layers: vec![CopyLayer { layer: key.layer, parent, becomes, is_above: false }],
                    sources: sources.into(),
                    target: disk,
                    permit: Permit::Mend { under: self.map.under_of(lineage, key.index) },
                    generation: Generation(0),
                })))
            }
            _ => {
                let told = Told { is_missing: sources.len() < members, is_relapse: false };
                What::Block { sources, told }
            }
        };
        let is_block = matches!(what, What::Block { .. });
        self.mending.jobs.insert(disk, Job { number, damage, by, what });
        self.note_damage(now);
        match is_block {
            true => self.ask_for_block(now, disk, outputs),
            false => self.work.push_back(Work::Mends),
        }
    }

    /// Asks the next member for a block, or ends the mend.
    fn ask_for_block(&mut self, now: Time, disk: DiskId, outputs: &mut Vec<Output>) {
        let Some(Job { number, damage, by, what: What::Block { sources, .. } }) =
            self.mending.jobs.get_mut(&disk)
        else {
            return;
        };
        let DamagedPart::Data { lineage, key, block } = damage.part else { return };
        *by = now + BLOCK_MAX;
        let (number, blocks) = (*number, BlockRange::new(block, 1).expect("a block of an object"));
        let Some(source) = sources.pop_front() else {
            return self.end_mend(now, disk, false, outputs);
        };
        let generation = Generation::SEALED;
        let request = MemberRequest::Read { lineage, key, generation, under: None, blocks };
        let route = MemberRoute::Mend { disk, number, question: MendQuestion::Block };
        self.ask_member(now, source, route, request);
    }

    /// Asks what copiers want to ask.
    pub(super) fn pump_mends(&mut self, now: Time, outputs: &mut Vec<Output>) {
        for disk in self.mending.jobs.keys().copied().collect::<Vec<_>>() {
            while let Some(Job { number, what: What::Page(copier), .. }) =
                self.mending.jobs.get_mut(&disk)
                && let Some((question, to, request)) = copier.poll(now)
            {
                let number = *number;
                let question = MendQuestion::Copy(question);
                self.ask_member(now, to, MemberRoute::Mend { disk, number, question }, request);
            }
            let job = self.mending.jobs.get(&disk);
            let outcome = job.and_then(|job| match &job.what {
                What::Page(copier) => copier.outcome().map(Result::is_ok),
                What::Block { .. } => None,
            });
            if let Some(is_mended) = outcome {
                self.end_mend(now, disk, is_mended, outputs);
            }
        }
    }

    /// A disk answers a mend.
    pub(super) fn mend_answered(
        &mut self,
        now: Time,
        answer: MendAnswer,
        outputs: &mut Vec<Output>,
    ) {
        let MendAnswer { disk, number, question, result } = answer;
        let Some(job) = self.mending.jobs.get_mut(&disk).filter(|job| job.number == number) else {
            return;
        };
        match (&mut job.what, question) {
            (What::Page(copier), MendQuestion::Copy(question)) => {
                copier.handle(now, question, result);
                self.work.push_back(Work::Mends);
            }
            (What::Block { told, .. }, MendQuestion::Block) => match result {
                Ok(MemberReply::Data { content, .. }) => {
                    let (damage, payload) = (job.damage, joined(&content));
                    self.work.push_back(Work::Store(disk, store::Event::Mend { damage, payload }));
                }
                Ok(_) => self.ask_for_block(now, disk, outputs),
                Err(error) => {
                    // One that does not say that it is lost there too may have it.
                    told.is_missing |= !matches!(error, MemberError::Corrupt { .. });
                    self.ask_for_block(now, disk, outputs);
                }
            },
            _ => {}
        }
    }

    /// A disk has not kept what was written anew.
    pub(super) fn mend_relapsed(&mut self, disk: DiskId, damage: &Damage) {
        if let Some(job) = self.mending.jobs.get_mut(&disk).filter(|job| job.damage == *damage)
            && let What::Block { told, .. } = &mut job.what
        {
            told.is_relapse = true;
        }
    }

    /// The store has done with a block that it was given.
    pub(super) fn block_mended(
        &mut self,
        now: Time,
        disk: DiskId,
        damage: &Damage,
        outputs: &mut Vec<Output>,
    ) {
        let is_it = |job: &&Job| job.damage == *damage;
        let is_damaged = self.is_damaged(disk, damage);
        let Some(job) = self.mending.jobs.get_mut(&disk).filter(|job| is_it(&&**job)) else {
            return;
        };
        if let What::Block { told, .. } = &mut job.what
            && is_damaged
            && !told.is_relapse
        {
            // That member's block is another one, and good: it was written since.
            told.is_missing = true;
            return self.ask_for_block(now, disk, outputs);
        }
        self.end_mend(now, disk, true, outputs);
    }

    fn is_damaged(&self, disk: DiskId, damage: &Damage) -> bool {
        let store = self.disks.get(&disk).and_then(Disk::store);
        store.is_some_and(|store| store.damages().contains(damage))
    }

    /// A mend has ended; the next damage follows.
    fn end_mend(&mut self, now: Time, disk: DiskId, is_mended: bool, outputs: &mut Vec<Output>) {
        let Some(Job { damage, what, .. }) = self.mending.jobs.remove(&disk) else { return };
        let place = (disk, damage.address);
        // Whatever was said: what is listed still is not mended.
        if !self.is_damaged(disk, &damage) {
            self.mending.setbacks.remove(&place);
            self.mending.look_at = Some(now);
            return;
        }
        let told = match what {
            What::Block { told, .. } => told,
            // That a page could not be copied says nothing about what others have.
            What::Page(_) => Told { is_missing: true, is_relapse: false },
        };
        let first = Setback { tries: 0, in_vain: 0, until: now };
        let setback = self.mending.setbacks.entry(place).or_insert(first);
        setback.tries += 1;
        let is_in_vain = !told.is_missing && !told.is_relapse && !is_mended;
        setback.in_vain = if is_in_vain { setback.in_vain + 1 } else { 0 };
        let pause = match told.is_relapse {
            true => PAUSE_MAX,
            false => (LOOK * (1 << setback.tries.min(8))).min(PAUSE_MAX),
        };
        setback.until = now + pause;
        if setback.in_vain == TRIES_TOLD {
            let path = super::entry_path(&self.disks, disk);
            let sentence = report::not_mended(&self.map, &path, &damage);
            outputs.push(Output::Notice { level: NoticeLevel::Error, sentence });
        }
        self.mending.look_at = Some(now);
    }
}

/// Pieces of content as one.
fn joined(content: &[Payload]) -> Payload {
    if let [one] = content {
        return one.clone();
    }
    message_of(&Payload::joined(content))
}
