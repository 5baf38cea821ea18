//! When all copies will be there: told from how fast they came of late, by what is agreed, so that
//! every node can tell it.

use cluster::Map;
use proto::{Duration, PartitionId, Time};
use std::collections::VecDeque;

/// "Of late".
const SPAN: Duration = Duration::from_secs(60);
/// How often it is noted how many are missing.
const STEP: Duration = Duration::from_secs(1);
/// What was seen for a shorter time says nothing.
const SPAN_MIN: Duration = Duration::from_secs(5);

/// How many copies are missing of those that there could be with the disks there are. What is away
/// counts as there until it is left out.
pub(super) fn missing_copies(map: &Map) -> u64 {
    let mut missing = 0;
    for copies in map.tables() {
        let possible = map.sites(copies).len().min(usize::from(copies));
        for partition in (0..1u32 << map.partition_bits()).map(PartitionId) {
            let has = map.configuration(copies, partition).current.len();
            missing += possible.saturating_sub(has) as u64;
        }
    }
    missing
}

/// How many copies were missing when.
#[derive(Default)]
pub(super) struct Outlook {
    /// Oldest first; each has no more than the one before. Not longer than `SPAN` by `STEP`.
    samples: VecDeque<(Time, u64)>,
    /// The epoch and what was missing then: it is counted once for each.
    counted: Option<(u64, u64)>,
}

impl Outlook {
    /// Time has passed, or the map is another.
    pub(super) fn note(&mut self, now: Time, map: &Map) {
        if self.samples.back().is_some_and(|(last, _)| now < *last + STEP) {
            return;
        }
        let epoch = map.epoch().0;
        let missing = match self.counted {
            Some((counted, missing)) if counted == epoch => missing,
            _ => missing_copies(map),
        };
        self.counted = Some((epoch, missing));
        self.add(now, missing);
    }

    fn add(&mut self, now: Time, missing: u64) {
        let has_grown = self.samples.back().is_some_and(|(_, before)| *before < missing);
        if has_grown || missing == 0 {
            // A member was left out, a disk came, or all is done: it begins anew.
            self.samples.clear();
        }
        if missing > 0 {
            self.samples.push_back((now, missing));
        }
        while self.samples.front().is_some_and(|(first, _)| *first + SPAN < now) {
            self.samples.pop_front();
        }
    }

    /// How long it takes until none is missing, if it goes on so.
    pub(super) fn left(&self, now: Time, missing: u64) -> Option<Duration> {
        let &(since, before) = self.samples.front()?;
        let span = now.since(since);
        let came = before.checked_sub(missing).filter(|came| *came > 0)?;
        let span_ms = u64::try_from(span.as_millis()).ok()?;
        (span >= SPAN_MIN)
            .then(|| Duration::from_millis(span_ms.saturating_mul(missing).div_ceil(came)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time(0) + Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_left_is_told_by_the_last_minute() {
        let mut outlook = Outlook::default();
        assert_eq!(outlook.left(at(0), 9), None);
        (0..=100).for_each(|second| outlook.add(at(second), 1000 - second * 2));
        assert_eq!(outlook.left(at(100), 800), Some(Duration::from_secs(400)));
        // It went faster before: that is forgotten.
        let mut outlook = Outlook::default();
        (0..=100).for_each(|second| outlook.add(at(second), 9000 - second * 50));
        (101..=200).for_each(|second| outlook.add(at(second), 4000 - second));
        assert_eq!(outlook.left(at(200), 3800), Some(Duration::from_secs(3800)));
        assert_eq!(outlook.samples.len(), 61);
    }

    #[test]
    fn what_was_not_seen_to_go_on_is_not_told() {
        let mut outlook = Outlook::default();
        (0..=4).for_each(|second| outlook.add(at(second), 100 - second));
        assert_eq!(outlook.left(at(4), 96), None, "too short a time");
        outlook.add(at(5), 200);
        assert_eq!(outlook.left(at(30), 199), Some(Duration::from_secs(25 * 199)));
        assert_eq!(outlook.left(at(30), 200), None, "none has come");
        outlook.add(at(31), 0);
        assert_eq!(outlook.left(at(31), 0), None, "nothing is left");
    }
}
