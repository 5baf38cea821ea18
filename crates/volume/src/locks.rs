//! Locks on ranges of blocks, granted in the order of arrival: who writes excludes all others,
//! those who read share.

use std::collections::BTreeMap;

/// The ranges that are held or waited for.
///
/// Invariant: a lock is granted exactly if it conflicts with no lock that was asked for earlier.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    /// In no order; few enough that looking at all of them is faster than any tree.
    locks: Vec<Lock>,
    /// How many are not granted yet.
    waiting: usize,
    /// Number of the next lock.
    next: u64,
}

#[derive(Debug)]
struct Lock {
    /// Order of arrival.
    number: u64,
    owner: u64,
    first: u64,
    end: u64,
    exclusive: bool,
    /// How many earlier locks it conflicts with.
    blockers: u32,
}

impl Lock {
    fn conflicts(&self, first: u64, end: u64, exclusive: bool) -> bool {
        (self.exclusive || exclusive) && self.first < end && first < self.end
    }
}

impl Locks {
    /// Asks for the blocks `first .. end`; gives back whether they are granted at once.
    pub(crate) fn take(&mut self, owner: u64, first: u64, end: u64, exclusive: bool) -> bool {
        let conflicts = self.locks.iter().filter(|lock| lock.conflicts(first, end, exclusive));
        let blockers = conflicts.count() as u32;
        self.locks.push(Lock { number: self.next, owner, first, end, exclusive, blockers });
        self.next += 1;
        self.waiting += usize::from(blockers > 0);
        blockers == 0
    }

    /// Gives up a granted lock. The owners of the locks that are granted thereby are appended, in
    /// the order of their arrival.
    pub(crate) fn release(&mut self, owner: u64, granted: &mut Vec<u64>) {
        let place = self.locks.iter().position(|lock| lock.owner == owner);
        let place = place.expect("who releases holds");
        assert!(self.locks[place].blockers == 0, "who releases was granted");
        self.remove(place, granted);
    }

    /// Gives up a lock that is waited for. Likewise.
    pub(crate) fn withdraw(&mut self, owner: u64, granted: &mut Vec<u64>) {
        let place = self.locks.iter().position(|lock| lock.owner == owner);
        let place = place.expect("who withdraws waits");
        assert!(self.locks[place].blockers > 0, "who withdraws was not granted");
        self.waiting -= 1;
        self.remove(place, granted);
    }

    /// Who of the chosen waits for this owner's lock, or for one of those that do, in the order of
    /// their arrival.
    pub(crate) fn behind(&self, owner: u64, chosen: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut later: Vec<&Lock> = self.locks.iter().filter(|lock| lock.blockers > 0).collect();
        later.sort_unstable_by_key(|lock| lock.number);
        let mut ahead: Vec<&Lock> = self.locks.iter().filter(|lock| lock.owner == owner).collect();
        let mut behind = Vec::new();
        for lock in later.into_iter().filter(|lock| chosen(lock.owner)) {
            let waits = ahead.iter().any(|earlier| {
                let conflicts = earlier.conflicts(lock.first, lock.end, lock.exclusive);
                earlier.number < lock.number && conflicts
            });
            if waits {
                ahead.push(lock);
                behind.push(lock.owner);
            }
        }
        behind
    }

    /// Whether one waits for the lock of another, or for one that waits for that.
    pub(crate) fn is_behind(&self, ahead: u64, owner: u64) -> bool {
        self.behind(ahead, |_| true).contains(&owner)
    }

    fn remove(&mut self, place: usize, granted: &mut Vec<u64>) {
        let lock = self.locks.swap_remove(place);
        if self.waiting == 0 {
            return;
        }
        let mut free: Vec<(u64, u64)> = Vec::new();
        for other in &mut self.locks {
            let later = other.number > lock.number;
            if later && other.conflicts(lock.first, lock.end, lock.exclusive) {
                other.blockers -= 1;
                if other.blockers == 0 {
                    free.push((other.number, other.owner));
                }
            }
        }
        free.sort_unstable();
        self.waiting -= free.len();
        granted.extend(free.into_iter().map(|(_, owner)| owner));
    }

    /// Whose lock is granted, and whose is not.
    pub(crate) fn granted(&self) -> BTreeMap<u64, bool> {
        self.locks.iter().map(|lock| (lock.owner, lock.blockers == 0)).collect()
    }

    /// How many there are, granted or not.
    pub(crate) fn len(&self) -> usize {
        self.locks.len()
    }

    /// Asserts the invariant.
    pub(crate) fn check(&self) {
        for lock in &self.locks {
            let earlier = self.locks.iter().filter(|other| {
                other.number < lock.number && other.conflicts(lock.first, lock.end, lock.exclusive)
            });
            assert_eq!(earlier.count(), lock.blockers as usize, "{lock:?}");
        }
        let waiting = self.locks.iter().filter(|lock| lock.blockers > 0).count();
        assert_eq!(waiting, self.waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes the locks in order (first, end, exclusive), then releases them in the order given;
    /// compares who is granted at once and by each release.
    fn check(takes: &[(u64, u64, bool)], at_once: &[bool], releases: &[(u64, &[u64])]) {
        let mut locks = Locks::default();
        for (owner, (take, wanted)) in takes.iter().zip(at_once).enumerate() {
            let granted = locks.take(owner as u64, take.0, take.1, take.2);
            assert_eq!(granted, *wanted, "lock {owner} of {takes:?}");
            locks.check();
        }
        for (owner, wanted) in releases {
            let mut granted = Vec::new();
            locks.release(*owner, &mut granted);
            assert_eq!(&granted, wanted, "after release of {owner} of {takes:?}");
            locks.check();
        }
    }

    #[test]
    fn overlapping_requests_are_served_in_order() {
        const READ: bool = false;
        const WRITE: bool = true;
        // Readers share.
        check(&[(0, 4, READ), (2, 6, READ)], &[true, true], &[(0, &[]), (1, &[])]);
        // A writer waits for readers, and later readers for the writer.
        check(
            &[(0, 4, READ), (3, 5, WRITE), (4, 8, READ), (0, 2, READ)],
            &[true, false, false, true],
            &[(3, &[]), (0, &[1]), (1, &[2]), (2, &[])],
        );
        // Neighbours do not meet.
        check(&[(0, 4, WRITE), (4, 8, WRITE)], &[true, true], &[(0, &[]), (1, &[])]);
        // A wide writer waits for all, and all later ones wait for it, also where it waits.
        check(
            &[(0, 1, WRITE), (9, 10, READ), (0, 10, WRITE), (5, 6, READ), (9, 10, READ)],
            &[true, true, false, false, false],
            &[(0, &[]), (1, &[2]), (2, &[3, 4]), (4, &[]), (3, &[])],
        );
    }

    #[test]
    fn who_waits_can_withdraw_and_lets_nobody_in_who_waits_for_others_too() {
        let mut locks = Locks::default();
        // (first, end, exclusive): a reader, a writer behind it, one behind that, one of its own.
        let takes = [(0, 4, false), (2, 6, true), (5, 8, true), (3, 4, true), (9, 10, true)];
        let granted: Vec<bool> =
            (0..).zip(takes).map(|(at, (a, b, c))| locks.take(at, a, b, c)).collect();
        assert_eq!(granted, [true, false, false, false, true]);
        assert_eq!(locks.behind(0, |_| true), [1, 2, 3]);
        assert_eq!(locks.behind(0, |owner| owner != 1), [3]);
        assert_eq!(locks.behind(4, |_| true), []);
        let mut granted = Vec::new();
        locks.withdraw(1, &mut granted);
        locks.check();
        assert_eq!(granted, [2], "the last one waits for the reader");
        granted.clear();
        locks.withdraw(3, &mut granted);
        locks.release(0, &mut granted);
        locks.check();
        assert_eq!((granted.len(), locks.len()), (0, 2));
    }

    #[test]
    #[should_panic(expected = "was granted")]
    fn a_lock_that_waits_cannot_be_released() {
        let mut locks = Locks::default();
        locks.take(1, 0, 1, true);
        locks.take(2, 0, 1, true);
        locks.release(2, &mut Vec::new());
    }
}
