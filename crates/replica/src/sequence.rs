//! Numbers for writes, and the lowest one that is not everywhere yet.

use std::collections::VecDeque;

/// Issues sequence numbers, from 1, and knows the settled point: below it every write is on every
/// current member, or never took effect.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// The lowest number that is not finished; all below are.
    first: u64,
    /// Whether `first`, `first + 1`, .. are finished; up to the last number issued.
    finished: VecDeque<bool>,
}

impl Sequence {
    pub(crate) fn new() -> Sequence {
        Sequence { first: 1, finished: VecDeque::new() }
    }

    /// The next number.
    pub(crate) fn issue(&mut self) -> u64 {
        self.finished.push_back(false);
        self.next() - 1
    }

    /// The number that would be issued next.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.finished.len() as u64
    }

    /// A write is on every current member, or on none for ever.
    pub(crate) fn finish(&mut self, number: u64) {
        let place = number.checked_sub(self.first).expect("a write is finished once");
        let place = &mut self.finished[place as usize];
        assert!(!*place, "write {number} is finished twice");
        *place = true;
        while self.finished.front() == Some(&true) {
            self.finished.pop_front();
            self.first += 1;
        }
    }

    /// Below this number all are finished.
    pub(crate) fn settled(&self) -> u64 {
        self.first
    }

    /// How many issued numbers are not finished.
    pub(crate) fn outstanding(&self) -> usize {
        self.finished.iter().filter(|finished| !**finished).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settled_point_waits_for_the_slowest_write() {
        let mut sequence = Sequence::new();
        assert_eq!((sequence.settled(), sequence.next()), (1, 1));
        let numbers: Vec<u64> = (0..4).map(|_| sequence.issue()).collect();
        assert_eq!(numbers, [1, 2, 3, 4]);
        for (finish, settled) in [(2, 1), (3, 1), (1, 4), (4, 5)] {
            sequence.finish(finish);
            assert_eq!(sequence.settled(), settled, "after {finish}");
        }
        assert_eq!((sequence.issue(), sequence.outstanding()), (5, 1));
    }

    #[test]
    #[should_panic(expected = "finished twice")]
    fn a_write_that_ends_twice_is_noticed() {
        let mut sequence = Sequence::new();
        sequence.issue();
        sequence.issue();
        sequence.finish(2);
        sequence.finish(2);
    }
}
