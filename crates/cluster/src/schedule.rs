//! Schedules: snapshots of a volume that are taken again and again.

use crate::command::Answer;
use crate::layer;
use crate::map::Map;
use crate::refusal::Refusal;
use crate::state::State;
use crate::volume::{Volume, printable, problem_of};
use proto::VolumeId;
use proto::limits::{
    SCHEDULE_EVERY_S_MAX, SCHEDULE_EVERY_S_MIN, SCHEDULE_KEEP_MAX, SCHEDULE_NAME_BYTES_MAX,
    SCHEDULES_MAX, SCHEDULES_PER_VOLUME_MAX,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// When snapshots of a volume are to be taken, and how many are kept.
///
/// Time is divided into slots of `every_s` seconds since 1970, and there is at most one snapshot in
/// each.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Schedule {
    /// Unique within the volume; obeys [`check_schedule_name`].
    pub name: String,
    /// How long a slot is, in seconds.
    pub every_s: u32,
    /// How many snapshots are kept: older ones are dropped.
    pub keep: u32,
    /// The last slot that has its snapshot, or had to do without one: later ones are to come.
    pub last_slot: u64,
}

impl Schedule {
    /// The slot of a time in seconds since 1970.
    pub fn slot(&self, unix_s: u64) -> u64 {
        unix_s / u64::from(self.every_s.max(1))
    }

    /// When the next snapshot is due, in seconds since 1970.
    pub fn due_unix_s(&self) -> u64 {
        (self.last_slot + 1).saturating_mul(u64::from(self.every_s))
    }
}

/// Whether a schedule may have this name: the rules are those of [`crate::check_name`], and it is
/// shorter.
pub fn check_schedule_name(name: &str) -> Result<(), Refusal> {
    let too_long = name.len() > SCHEDULE_NAME_BYTES_MAX;
    let problem = problem_of(name).or(too_long.then_some("it is longer than 64 bytes"));
    let name = || printable(name, SCHEDULE_NAME_BYTES_MAX);
    problem.map_or(Ok(()), |problem| Err(Refusal::BadScheduleName { name: name(), problem }))
}

const _: () = assert!(SCHEDULE_NAME_BYTES_MAX == 64, "the sentence above says so");

impl State {
    fn schedule(&self, id: VolumeId, name: &str) -> Result<(&Volume, &Schedule), Refusal> {
        let volume = self.volume(id)?;
        match volume.schedule(name) {
            Some(schedule) => Ok((volume, schedule)),
            None => Err(Refusal::UnknownSchedule {
                name: volume.name.clone(),
                schedule: name.to_owned(),
            }),
        }
    }

    pub(crate) fn set_schedule(
        &mut self,
        id: VolumeId,
        name: &str,
        every_s: u32,
        keep: u32,
        unix_s: u64,
    ) -> Result<Answer, Refusal> {
        check_schedule_name(name)?;
        if !(SCHEDULE_EVERY_S_MIN..=SCHEDULE_EVERY_S_MAX).contains(&every_s) {
            return Err(Refusal::BadInterval { every_s });
        }
        if !(1..=SCHEDULE_KEEP_MAX).contains(&keep) {
            return Err(Refusal::BadKeep { keep });
        }
        let volume = self.volume(id)?;
        let present = volume.schedule(name);
        if present.is_some_and(|present| (present.every_s, present.keep) == (every_s, keep)) {
            return Ok(Answer::Done);
        }
        if present.is_none() {
            if volume.schedules.len() >= SCHEDULES_PER_VOLUME_MAX {
                return Err(Refusal::TooManySchedules { max: SCHEDULES_PER_VOLUME_MAX });
            }
            if self.map.schedules >= SCHEDULES_MAX {
                return Err(Refusal::TooManySchedules { max: SCHEDULES_MAX });
            }
        }
        let is_new = present.is_none();
        let same_slots = present.filter(|present| present.every_s == every_s);
        let last_slot = same_slots.map_or(unix_s / u64::from(every_s), |same| same.last_slot);
        let schedule = Schedule { name: name.to_owned(), every_s, keep, last_slot };
        let schedules = &mut self.change_volume(id).schedules;
        schedules.retain(|present| present.name != name);
        schedules.push(schedule);
        schedules.sort_by(|a, b| a.name.cmp(&b.name));
        Arc::make_mut(&mut self.map).schedules += usize::from(is_new);
        Ok(Answer::Done)
    }

    pub(crate) fn remove_schedule(&mut self, id: VolumeId, name: &str) -> Result<Answer, Refusal> {
        self.schedule(id, name)?;
        self.change_volume(id).schedules.retain(|schedule| schedule.name != name);
        Arc::make_mut(&mut self.map).schedules -= 1;
        Ok(Answer::Done)
    }

    pub(crate) fn scheduled_snapshot(
        &mut self,
        id: VolumeId,
        name: &str,
        slot: u64,
        tag: &str,
        unix_s: u64,
    ) -> Result<Answer, Refusal> {
        let (volume, schedule) = self.schedule(id, name)?;
        if slot <= schedule.last_slot {
            let (name, schedule) = (volume.name.clone(), name.to_owned());
            return Err(Refusal::SlotTaken { name, schedule });
        }
        // A slot beyond all time would be the last one.
        if slot > u64::MAX / 2 / u64::from(schedule.every_s) {
            return Err(Refusal::SlotTaken {
                name: volume.name.clone(),
                schedule: name.to_owned(),
            });
        }
        self.vet_snapshots(1)?;
        self.vet_snapshot(id, tag)?;
        self.change();
        let layer = self.take_snapshot(id, tag, unix_s, Some(name));
        let mut schedules = self.volume_again(id).schedules.iter_mut();
        schedules.find(|schedule| schedule.name == name).expect("found above").last_slot = slot;
        Ok(Answer::SnapshotCreated { layer })
    }
}

/// The first invariant that does not hold for the schedules of a volume.
pub(crate) fn contradiction(volume: &Volume) -> Result<(), &'static str> {
    let hold = layer::hold;
    hold(volume.schedules.len() <= SCHEDULES_PER_VOLUME_MAX, "too many schedules of a volume")?;
    let mut names = BTreeSet::new();
    for schedule in &volume.schedules {
        hold(check_schedule_name(&schedule.name).is_ok(), "a schedule's name")?;
        hold(names.insert(&schedule.name), "two schedules with one name")?;
        let limits = SCHEDULE_EVERY_S_MIN..=SCHEDULE_EVERY_S_MAX;
        hold(limits.contains(&schedule.every_s), "a schedule's interval")?;
        hold((1..=SCHEDULE_KEEP_MAX).contains(&schedule.keep), "what a schedule keeps")?;
        let end = u64::MAX / u64::from(SCHEDULE_EVERY_S_MIN);
        hold(schedule.last_slot <= end, "a schedule's last slot")?;
    }
    let names = volume.snapshots.iter().filter_map(|snapshot| snapshot.schedule.as_ref());
    for name in names {
        hold(check_schedule_name(name).is_ok(), "the schedule of a snapshot")?;
    }
    Ok(())
}

/// How many schedules all volumes have.
pub(crate) fn count(map: &Map) -> usize {
    map.volumes().map(|volume| volume.schedules.len()).sum()
}
