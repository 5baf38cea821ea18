//! When each schedule is to be looked at next.

use proto::{Time, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// Names a schedule: its volume, and its name there.
pub(crate) type ScheduleKey = (VolumeId, String);

/// The schedules of all volumes out of the trash, by name and by time.
///
/// However many there are, what is due is found in steps that grow with the logarithm of their
/// number, and what is not due is not looked at.
pub(crate) struct Timetable<E> {
    entries: BTreeMap<ScheduleKey, (Option<Time>, E)>,
    /// Those of them that have a time, soonest first.
    times: BTreeSet<(Time, ScheduleKey)>,
}

impl<E: Default> Timetable<E> {
    /// An empty one.
    pub(crate) fn new() -> Timetable<E> {
        Timetable { entries: BTreeMap::new(), times: BTreeSet::new() }
    }

    /// What is known of a schedule.
    pub(crate) fn entry(&self, key: &ScheduleKey) -> Option<&E> {
        self.entries.get(key).map(|(_, entry)| entry)
    }

    /// The same, to be changed.
    pub(crate) fn entry_mut(&mut self, key: &ScheduleKey) -> Option<&mut E> {
        self.entries.get_mut(key).map(|(_, entry)| entry)
    }

    /// The names of a volume's schedules.
    pub(crate) fn names(&self, volume: VolumeId) -> impl Iterator<Item = &str> {
        let from = self.entries.range((volume, String::new())..);
        from.take_while(move |((of, _), _)| *of == volume).map(|((_, name), _)| name.as_str())
    }

    /// Has a schedule, new or not, looked at then.
    pub(crate) fn set(&mut self, key: ScheduleKey, at: Time) {
        let (present, _) = self.entries.entry(key.clone()).or_default();
        if let Some(former) = present.replace(at) {
            self.times.remove(&(former, key.clone()));
        }
        self.times.insert((at, key));
    }

    /// Forgets a schedule.
    pub(crate) fn remove(&mut self, key: &ScheduleKey) {
        if let Some((Some(at), _)) = self.entries.remove(key) {
            self.times.remove(&(at, key.clone()));
        }
    }

    /// Forgets them all.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.times.clear();
    }

    /// When the next one is to be looked at.
    pub(crate) fn next(&self) -> Option<Time> {
        self.times.first().map(|(at, _)| *at)
    }

    /// One that is to be looked at by now. It has no time then, until it is given one.
    pub(crate) fn take_due(&mut self, now: Time) -> Option<ScheduleKey> {
        self.next().filter(|at| *at <= now)?;
        let (_, key) = self.times.pop_first()?;
        let (at, _) = self.entries.get_mut(&key).expect("what has a time is known");
        *at = None;
        Some(key)
    }

    /// Whether it is given a time already.
    pub(crate) fn is_waiting(&self, key: &ScheduleKey) -> bool {
        self.entries.get(key).is_some_and(|(at, _)| at.is_some())
    }

    /// How many there are, and how many of them have no time.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.entries.len(), self.entries.len() - self.times.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::limits::SCHEDULES_MAX;

    fn key(volume: u64, name: &str) -> ScheduleKey {
        (VolumeId(volume), name.to_owned())
    }

    #[test]
    fn what_is_due_comes_in_order_of_time_and_once() {
        let mut table: Timetable<()> = Timetable::new();
        table.set(key(1, "daily"), Time(30));
        table.set(key(2, "hourly"), Time(10));
        table.set(key(1, "hourly"), Time(10));
        table.set(key(3, "hourly"), Time(20));
        table.set(key(3, "hourly"), Time(40));
        table.remove(&key(2, "hourly"));
        assert_eq!(table.names(VolumeId(1)).collect::<Vec<_>>(), ["daily", "hourly"]);
        assert_eq!((table.next(), table.take_due(Time(9))), (Some(Time(10)), None));
        assert_eq!(table.take_due(Time(35)), Some(key(1, "hourly")));
        assert!(!table.is_waiting(&key(1, "hourly")));
        assert_eq!(table.take_due(Time(35)), Some(key(1, "daily")));
        assert_eq!((table.take_due(Time(35)), table.counts()), (None, (3, 2)));
        table.set(key(1, "daily"), Time(60));
        assert_eq!((table.next(), table.counts()), (Some(Time(40)), (3, 1)));
        table.clear();
        assert_eq!((table.next(), table.counts()), (None, (0, 0)));
    }

    /// Every tick looks at what is due, and never at the rest.
    #[test]
    fn of_as_many_schedules_as_there_can_be_only_the_due_are_touched() {
        let mut table: Timetable<u64> = Timetable::new();
        for number in 0..SCHEDULES_MAX as u64 {
            table.set(key(number / 16, &format!("s{}", number % 16)), Time(1_000 + number));
        }
        let mut taken = 0;
        for tick in 0..3_000 {
            while let Some(key) = table.take_due(Time(tick)) {
                *table.entry_mut(&key).expect("just taken") += 1;
                table.set(key, Time(1 << 40));
                taken += 1;
            }
        }
        assert_eq!(taken, 2_000);
        assert_eq!(table.entry(&key(1, "s0")), Some(&1));
        assert_eq!(table.entry(&key(2_000, "s0")), Some(&0));
    }
}
