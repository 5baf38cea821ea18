//! Schedules: takes the snapshot of each slot when it begins, and deletes those beyond what a
//! schedule keeps.
//!
//! All that has to be known is in the agreed state: each schedule's last slot. So a node that was
//! killed anywhere finds out at its start what is due, and the state refuses a slot its second
//! snapshot whoever asks for it. What is kept here is when each schedule is looked at next, and why
//! its last trial failed.

use super::{Engine, Phase, Purpose, Work, administer::refused};
use crate::{
    NoticeLevel, Output,
    admin::{AdminError, AdminReply, AdminRequest, AdminToken, ScheduleReport},
    attach::HeldId,
    timetable::{ScheduleKey, Timetable},
};
use cluster::{Answer, Command, Map, Refusal, Schedule, Snapshot, Volume};
use proto::limits::{
    SCHEDULE_RETRY_MS, SCHEDULE_RETRY_MS_MAX, SCHEDULE_TRIALS_UNTOLD_MAX,
    SCHEDULED_DROPS_IN_FLIGHT_MAX, SCHEDULED_SNAPSHOTS_IN_FLIGHT_MAX, SCHEDULED_TAG_TRIALS_MAX,
};
use proto::{Duration, Time, VolumeId};
use std::collections::BTreeSet;

/// What the node does for schedules.
pub(super) struct Schedules {
    /// Those of all volumes out of the trash. One without a time has its snapshot proposed.
    table: Timetable<Entry>,
    /// How many snapshots are proposed.
    proposed: usize,
    /// Volumes that may have snapshots beyond what their schedules keep.
    surplus: BTreeSet<VolumeId>,
    /// Volumes of which one such snapshot is proposed to be deleted.
    dropping: BTreeSet<VolumeId>,
}

/// What the node knows of a schedule beyond what is agreed.
#[derive(Default)]
struct Entry {
    /// What is agreed of it, as far as that decides when it is due: `every_s` and `last_slot`.
    agreed: (u32, u64),
    /// Why it has no snapshot of some slot.
    trouble: Option<Trouble>,
}

/// Why a slot has no snapshot, or not yet.
struct Trouble {
    slot: u64,
    /// How often it was tried.
    trials: u32,
    /// Whether this slot will not be tried again.
    given_up: bool,
    /// Whether it was put into the log; then the slots after it need not say so again.
    told: bool,
    why: String,
}

impl Schedules {
    pub(super) fn new() -> Schedules {
        Schedules {
            table: Timetable::new(),
            proposed: 0,
            surplus: BTreeSet::new(),
            dropping: BTreeSet::new(),
        }
    }

    /// The node stops: nothing is begun any more.
    pub(super) fn clear(&mut self) {
        self.table.clear();
        self.surplus.clear();
    }
}

impl Engine {
    // -- administrators --

    /// Answers a request about schedules at once, or sees to it that the answer follows.
    pub(super) fn administer_schedules(
        &mut self,
        token: AdminToken,
        request: AdminRequest,
    ) -> Result<Option<AdminReply>, AdminError> {
        let (command, purpose) = match request {
            AdminRequest::ScheduleSet { name, schedule, every_s, keep } => {
                let (volume, unix_s) = (self.find(&name)?, self.unix_s());
                let purpose = Purpose::AdminSchedule(token, volume, schedule.clone());
                (Command::SetSchedule { volume, schedule, every_s, keep, unix_s }, purpose)
            }
            AdminRequest::ScheduleRemove { name, schedule } => {
                let volume = self.find(&name)?;
                (Command::RemoveSchedule { volume, schedule }, Purpose::AdminDone(token))
            }
            AdminRequest::ScheduleList { name: Some(name) } => {
                let volume = self.map.volume(self.find(&name)?).expect("found just now");
                return Ok(Some(AdminReply::Schedules(self.schedule_reports(volume))));
            }
            AdminRequest::ScheduleList { name: None } => {
                let all = self.map.volumes_by_name();
                let reports = all.flat_map(|volume| self.schedule_reports(volume)).collect();
                return Ok(Some(AdminReply::Schedules(reports)));
            }
            other => unreachable!("{other:?} is answered by the caller"),
        };
        self.work.push_back(Work::Propose(command, purpose));
        Ok(None)
    }

    /// A schedule was set: tells who asked.
    pub(super) fn answer_schedule(
        &self,
        token: AdminToken,
        volume: VolumeId,
        schedule: &str,
        outputs: &mut Vec<Output>,
    ) {
        let known = self.map.volume(volume);
        let reports = known.map(|volume| self.schedule_reports(volume)).unwrap_or_default();
        let result = match reports.into_iter().find(|report| report.schedule == schedule) {
            Some(report) => Ok(AdminReply::Schedule(report)),
            None => Err(refused(&Refusal::UnknownVolume { volume })),
        };
        outputs.push(Output::Admin { token, result: Box::new(result) });
    }

    /// What there is to tell of a volume's schedules, by name.
    pub(super) fn schedule_reports(&self, volume: &Volume) -> Vec<ScheduleReport> {
        let unix_s = self.unix_s();
        let report = |schedule: &Schedule| {
            let trouble = self.trouble(volume.id, schedule);
            let present = schedule.slot(unix_s);
            // A clock that was put back a little is nothing to speak of.
            let ahead = present + 1 < schedule.last_slot;
            // Once its slot is given up, or taken, the next one is waited for.
            let is_over = present <= schedule.last_slot
                || trouble.is_some_and(|trouble| trouble.given_up && trouble.slot == present);
            let next = if is_over { present.max(schedule.last_slot) + 1 } else { present };
            let taken = || snapshots_of(volume, schedule);
            let persists = |trouble: &Trouble| {
                trouble.given_up || trouble.told || trouble.trials > SCHEDULE_TRIALS_UNTOLD_MAX
            };
            ScheduleReport {
                volume: volume.name.clone(),
                schedule: schedule.name.clone(),
                every_s: schedule.every_s,
                keep: schedule.keep,
                next_unix_s: volume.trash.is_none().then_some(start_of(schedule, next)),
                last_slot: schedule.last_slot,
                snapshots: taken().count() as u32,
                last_snapshot_unix_s: taken().last().map(|snapshot| snapshot.created_unix_s),
                problem: match ahead {
                    true => Some(lies_ahead(schedule)),
                    false => trouble.map(|trouble| trouble.why.clone()),
                },
                failing: ahead || trouble.is_some_and(persists),
            }
        };
        volume.schedules.iter().map(report).collect()
    }

    fn trouble(&self, volume: VolumeId, schedule: &Schedule) -> Option<&Trouble> {
        let entry = self.schedules.table.entry(&(volume, schedule.name.clone()))?;
        entry.trouble.as_ref()
    }

    // -- time --

    /// When a slot begins, or a snapshot is tried again. While as many are proposed as may be,
    /// their end is waited for.
    pub(super) fn schedules_deadline(&self) -> Option<Time> {
        let has_room = self.schedules.proposed < SCHEDULED_SNAPSHOTS_IN_FLIGHT_MAX;
        self.schedules.table.next().filter(|_| has_room && self.is_steward())
    }

    /// The point in time at which it is so many seconds after 1970; the start, if that is before.
    fn time_of(&self, unix_s: u64) -> Time {
        self.started + Duration::from_secs(unix_s.saturating_sub(self.settings.unix_s))
    }

    /// After a start: learns all schedules. What is due is taken, the present slot of each.
    pub(super) fn begin_schedules(&mut self) {
        let has_any = |volume: &&Volume| !volume.schedules.is_empty();
        let ids: Vec<VolumeId> = self.map.volumes().filter(has_any).map(|v| v.id).collect();
        for volume in ids {
            self.learn_schedules_of(volume);
        }
        self.take_schedules(self.present);
        self.drop_surplus();
    }

    /// Learns what of the map is new.
    pub(super) fn learn_schedules(&mut self, before: &Map) {
        if self.phase != Phase::Serving {
            return;
        }
        for volume in self.map.changed_volumes(before) {
            self.learn_schedules_of(volume);
        }
        self.drop_surplus();
    }

    fn learn_schedules_of(&mut self, id: VolumeId) {
        let known = self.map.volume(id).filter(|volume| volume.trash.is_none());
        let schedules = known.map_or(&[][..], |volume| &volume.schedules).to_vec();
        let table = &mut self.schedules.table;
        let is_gone = |name: &&str| schedules.iter().all(|schedule| schedule.name != **name);
        let gone: Vec<String> = table.names(id).filter(is_gone).map(str::to_owned).collect();
        for name in gone {
            table.remove(&(id, name));
        }
        for schedule in &schedules {
            let key = (id, schedule.name.clone());
            let agreed = (schedule.every_s, schedule.last_slot);
            match self.schedules.table.entry_mut(&key) {
                Some(entry) if entry.agreed == agreed => continue,
                Some(entry) => {
                    if entry.agreed.0 != agreed.0 {
                        entry.trouble = None; // of slots that there are no more
                    }
                    entry.agreed = agreed;
                    // One that is proposed gets its time when that is over.
                    if !self.schedules.table.is_waiting(&key) {
                        continue;
                    }
                }
                None => {}
            }
            let at = self.time_of(schedule.due_unix_s());
            self.schedules.table.set(key.clone(), at);
            self.schedules.table.entry_mut(&key).expect("just set").agreed = agreed;
        }
        if schedules.is_empty() {
            self.schedules.surplus.remove(&id);
        } else {
            self.schedules.surplus.insert(id);
        }
    }

    /// A snapshot of a volume was sealed, or somebody gave it or one of its snapshots back: what
    /// had to wait for that is tried at once.
    pub(super) fn reconsider_schedules(&mut self, volume: VolumeId) {
        if self.phase != Phase::Serving {
            return;
        }
        let names: Vec<String> = self.schedules.table.names(volume).map(str::to_owned).collect();
        if names.is_empty() {
            return;
        }
        for name in names {
            let key = (volume, name);
            let entry = self.schedules.table.entry(&key).expect("just listed");
            let is_tried = entry.trouble.as_ref().is_some_and(|trouble| !trouble.given_up);
            if is_tried && self.schedules.table.is_waiting(&key) {
                self.schedules.table.set(key, self.present);
            }
        }
        self.schedules.surplus.insert(volume);
        self.take_schedules(self.present);
        self.drop_surplus();
    }

    /// Takes the snapshots that are due, as far as there is room.
    pub(super) fn take_schedules(&mut self, now: Time) {
        while self.phase == Phase::Serving
            && self.is_steward()
            && self.schedules.proposed < SCHEDULED_SNAPSHOTS_IN_FLIGHT_MAX
        {
            let Some(key) = self.schedules.table.take_due(now) else { return };
            self.take_slot(key);
        }
    }

    /// Takes the snapshot of the present slot. Those that were missed before it stay missed.
    fn take_slot(&mut self, key: ScheduleKey) {
        let unix_s = self.unix_s();
        let volume = self.map.volume(key.0).expect("its schedules are known");
        let schedule = volume.schedule(&key.1).expect("it is known");
        let slot = schedule.slot(unix_s);
        let entry = self.schedules.table.entry(&key).expect("it is due");
        let given_up = |trouble: &Trouble| trouble.given_up && trouble.slot == slot;
        if slot <= schedule.last_slot || entry.trouble.as_ref().is_some_and(given_up) {
            let next = start_of(schedule, slot.max(schedule.last_slot) + 1);
            let at = self.time_of(next);
            return self.schedules.table.set(key, at);
        }
        let tag = tag(volume, schedule, slot);
        // A lock may have ended, or a reader be gone whose end the journal did not take.
        self.schedules.surplus.insert(key.0);
        self.schedules.proposed += 1;
        let (volume, schedule) = key.clone();
        let command = Command::ScheduledSnapshot { volume, schedule, slot, tag, unix_s };
        self.work.push_back(Work::Propose(command, Purpose::Scheduled(key, slot)));
    }

    /// The snapshot of a slot was taken, or could not be.
    pub(super) fn slot_taken(
        &mut self,
        now: Time,
        key: ScheduleKey,
        slot: u64,
        result: Result<Answer, Refusal>,
        outputs: &mut Vec<Output>,
    ) {
        self.schedules.proposed -= 1;
        if result.is_ok() {
            self.attend(key.0);
        }
        self.book_slot(now, key, slot, result, outputs);
        self.take_schedules(now);
        self.drop_surplus();
    }

    /// Decides when a schedule is looked at next.
    fn book_slot(
        &mut self,
        now: Time,
        key: ScheduleKey,
        slot: u64,
        result: Result<Answer, Refusal>,
        outputs: &mut Vec<Output>,
    ) {
        // It may have been removed, or its volume been deleted.
        let Some(volume) = self.map.volume(key.0) else { return };
        let Some(schedule) = volume.schedule(&key.1) else { return };
        let full_name = format!("schedule {} of volume {}", key.1, volume.name);
        let (due, next) = (schedule.due_unix_s(), start_of(schedule, slot + 1));
        let (due, next) = (self.time_of(due), self.time_of(next));
        let Some(entry) = self.schedules.table.entry_mut(&key) else { return };
        let former = entry.trouble.take();
        let (at, tell) = match result {
            Ok(_) => (due, missed(former.as_ref(), slot)),
            // It has it from an earlier trial that the journal took without saying so.
            Err(Refusal::SlotTaken { .. }) => (due, None),
            Err(refusal) => {
                let (trouble, tell) = judge(former, slot, &refusal);
                let at = match trouble.given_up {
                    true => next,
                    false => next.min(now + retry_after(trouble.trials)),
                };
                entry.trouble = Some(trouble);
                (at, tell)
            }
        };
        self.schedules.table.set(key, at);
        if let Some(why) = tell {
            let sentence = format!(
                "{full_name} had to do without a snapshot: {why}; it goes on with the next slot"
            );
            outputs.push(Output::Notice { level: NoticeLevel::Warning, sentence });
        }
    }

    // -- what is kept --

    /// Deletes snapshots beyond what schedules keep, as far as there is room: of each volume one
    /// after the other.
    pub(super) fn drop_surplus(&mut self) {
        while self.phase == Phase::Serving
            && self.is_steward()
            && self.schedules.dropping.len() < SCHEDULED_DROPS_IN_FLIGHT_MAX
        {
            let dropping = &self.schedules.dropping;
            let mut waiting = self.schedules.surplus.iter();
            let Some(&volume) = waiting.find(|volume| !dropping.contains(volume)) else { return };
            self.schedules.surplus.remove(&volume);
            if let Some(tag) = self.surplus_of(volume) {
                self.detach_forgotten(volume);
                self.schedules.dropping.insert(volume);
                let command = Command::DropSnapshot { volume, tag, unix_s: self.unix_s() };
                self.work.push_back(Work::Propose(command, Purpose::Surplus(volume)));
            }
        }
    }

    /// The oldest snapshot beyond what a schedule of a volume keeps that can go now.
    fn surplus_of(&mut self, id: VolumeId) -> Option<String> {
        let volume = self.map.volume(id)?;
        let (unix_s, sealing) = (self.unix_s(), self.map.sealing(volume));
        let mut is_forgotten = false;
        let mut can_go = |snapshot: &&Snapshot| {
            let is_held = self.held.range(HeldId::readers(id, snapshot.layer)).next().is_some();
            is_forgotten |= !is_held && !snapshot.readers.is_empty();
            !is_held && snapshot.readers.is_empty() && !snapshot.is_locked(unix_s)
        };
        let mut found = None;
        for schedule in &volume.schedules {
            // One that cannot be read yet is no substitute for one that can.
            let kept: Vec<&Snapshot> = snapshots_of(volume, schedule)
                .filter(|snapshot| Some(snapshot.layer) != sealing)
                .collect();
            let beyond = kept.len().saturating_sub(schedule.keep as usize);
            found = found.or_else(|| kept[..beyond].iter().copied().find(&mut can_go));
        }
        let tag = found.map(|snapshot| snapshot.tag.clone());
        if is_forgotten {
            self.detach_forgotten(id);
        }
        tag
    }

    /// A snapshot beyond what is kept was deleted, or could not be: then it is tried again when
    /// something of its volume changes, and at the next slot.
    pub(super) fn surplus_dropped(&mut self, volume: VolumeId) {
        self.schedules.dropping.remove(&volume);
        self.drop_surplus();
    }

    /// Asserts that no schedule is forgotten, and that none is known that is no more.
    pub(super) fn check_schedules(&self) {
        let mut count = 0;
        for volume in self.map.volumes().filter(|volume| volume.trash.is_none()) {
            for schedule in &volume.schedules {
                let entry = self.schedules.table.entry(&(volume.id, schedule.name.clone()));
                let agreed = entry.map(|entry| entry.agreed);
                assert_eq!(agreed, Some((schedule.every_s, schedule.last_slot)), "{schedule:?}");
                count += 1;
            }
        }
        let (known, untimed) = self.schedules.table.counts();
        assert_eq!(known, count, "a schedule is known that is no more");
        assert!(untimed <= self.schedules.proposed, "a schedule waits for nothing");
        assert!(self.schedules.proposed <= SCHEDULED_SNAPSHOTS_IN_FLIGHT_MAX);
        assert!(self.schedules.dropping.len() <= SCHEDULED_DROPS_IN_FLIGHT_MAX);
    }
}

/// The snapshots that a schedule had taken, oldest first.
fn snapshots_of<'a>(
    volume: &'a Volume,
    schedule: &'a Schedule,
) -> impl Iterator<Item = &'a Snapshot> {
    let is_its = |snapshot: &&Snapshot| snapshot.schedule.as_ref() == Some(&schedule.name);
    volume.snapshots.iter().filter(is_its)
}

/// When a slot begins, in seconds since 1970.
fn start_of(schedule: &Schedule, slot: u64) -> u64 {
    slot.saturating_mul(u64::from(schedule.every_s))
}

/// A name for the snapshot of a slot. One that somebody gave to a snapshot of his own is evaded; if
/// all are taken, the agreed state says so.
fn tag(volume: &Volume, schedule: &Schedule, slot: u64) -> String {
    let stamp = proto::calendar::stamp(start_of(schedule, slot));
    let plain = format!("{}-{stamp}", schedule.name);
    let others = (2..=SCHEDULED_TAG_TRIALS_MAX).map(|number| format!("{plain}-{number}"));
    let mut all = std::iter::once(plain.clone()).chain(others);
    all.find(|tag| volume.snapshot(tag).is_none()).unwrap_or(plain)
}

/// Whether it may work a little later.
fn is_passing(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::Sealing { .. }
            | Refusal::ShrinkPending { .. }
            | Refusal::Attached { .. }
            | Refusal::TagTaken { .. }
            | Refusal::TooManyProposals
            | Refusal::NotLogged(_)
    )
}

/// What is known after a trial in vain, and what to tell: why a slot has to do without.
fn judge(former: Option<Trouble>, slot: u64, refusal: &Refusal) -> (Trouble, Option<String>) {
    let is_same = former.as_ref().is_some_and(|former| former.slot == slot);
    let trials = 1 + former.as_ref().filter(|_| is_same).map_or(0, |former| former.trials);
    let (given_up, why) = (!is_passing(refusal), refusal.to_string());
    let was_told = former.as_ref().is_some_and(|former| former.told);
    let now_told = given_up.then(|| why.clone()).filter(|_| !was_told);
    let tell = missed(former.as_ref(), slot).or(now_told);
    let told = was_told || tell.is_some();
    (Trouble { slot, trials, given_up, told, why }, tell)
}

/// What to tell of a slot before this one, if it ended while it was still being tried.
fn missed(former: Option<&Trouble>, slot: u64) -> Option<String> {
    let missed = former.filter(|former| former.slot < slot && !former.given_up && !former.told);
    missed.map(|former| former.why.clone())
}

/// After how long a snapshot is tried again.
fn retry_after(trials: u32) -> Duration {
    let factor = 1u64.checked_shl(trials.saturating_sub(1)).unwrap_or(u64::MAX);
    Duration::from_millis(SCHEDULE_RETRY_MS.saturating_mul(factor).min(SCHEDULE_RETRY_MS_MAX))
}

fn lies_ahead(schedule: &Schedule) -> String {
    format!(
        "its last snapshot is that of {}, which lies ahead: this machine's clock was wrong then, \
         or was when sheep started; set the clock and start sheep again, or remove the schedule \
         and set it again to go on from now",
        proto::calendar::date(start_of(schedule, schedule.last_slot))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_has_to_do_without_is_told_of_once_until_one_succeeds() {
        let full = || Refusal::TooManySnapshots;
        let passing = || Refusal::Sealing { name: "v".into() };
        // The slot and refusal of each trial, and whether something is told then.
        let check = |trials: &[(u64, Refusal, bool)]| {
            let mut former = None;
            for (slot, refusal, is_told) in trials {
                let (trouble, tell) = judge(former.take(), *slot, refusal);
                assert_eq!(tell.is_some(), *is_told, "{slot} {refusal}");
                assert_eq!(trouble.why, refusal.to_string());
                former = Some(trouble);
            }
            former.expect("something failed")
        };
        let last = check(&[(1, full(), true), (2, full(), false), (3, passing(), false)]);
        assert_eq!((last.slot, last.trials, last.given_up, last.told), (3, 1, false, true));
        let last = check(&[(1, passing(), false), (1, passing(), false), (1, full(), true)]);
        assert_eq!((last.trials, last.given_up), (3, true));
        let last = check(&[(1, passing(), false), (2, passing(), true), (3, full(), false)]);
        assert!(last.given_up && missed(Some(&last), 4).is_none());
        let last = check(&[(1, passing(), false)]);
        assert!(missed(Some(&last), 1).is_none() && missed(Some(&last), 2).is_some());
    }

    #[test]
    fn trials_grow_apart_and_never_beyond_the_shortest_slot() {
        let seconds: Vec<u64> = (1..10).map(|trials| retry_after(trials).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(retry_after(u32::MAX), Duration::from_secs(60));
    }
}
