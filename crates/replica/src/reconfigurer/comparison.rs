//! Where two disks differ in some partitions: both are surveyed, piece by piece, and their rows
//! met.

use proto::{DiskId, LineageId, ObjectKey, ObjectStamp, PartitionId, partition_of};
use std::collections::VecDeque;

/// What is compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Comparison {
    /// Disks that have what is wanted; one is compared with, the others have not failed yet.
    pub(super) sources: VecDeque<DiskId>,
    pub(super) target: DiskId,
    /// Ascending.
    pub(super) partitions: Vec<PartitionId>,
    /// The target is a member in a former opening, and evidence of what it has.
    pub(super) is_evidence: bool,
    bits: u8,
    source: Side,
    rows: Side,
}

/// What one disk has, as far as it was told and not compared yet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Side {
    rows: VecDeque<(LineageId, ObjectStamp)>,
    /// The last that was told.
    after: (LineageId, ObjectKey),
    is_told: bool,
    is_asked: bool,
}

/// An object in one layer that is not the same on both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Difference {
    pub(super) lineage: LineageId,
    pub(super) key: ObjectKey,
    /// What the source has of its own in the layer.
    pub(super) source: Option<ObjectStamp>,
    /// And the target.
    pub(super) target: Option<ObjectStamp>,
}

impl Side {
    fn head(&self) -> Option<(LineageId, ObjectKey)> {
        self.rows.front().map(|(lineage, found)| (*lineage, found.key))
    }

    fn is_stuck(&self) -> bool {
        self.rows.is_empty() && !self.is_told
    }
}

impl Comparison {
    pub(super) fn new(
        sources: VecDeque<DiskId>,
        target: DiskId,
        bits: u8,
        is_evidence: bool,
    ) -> Comparison {
        let (source, rows) = (Side::default(), Side::default());
        Comparison { sources, target, partitions: Vec::new(), is_evidence, bits, source, rows }
    }

    fn side(&mut self, is_source: bool) -> &mut Side {
        if is_source { &mut self.source } else { &mut self.rows }
    }

    pub(super) fn disk(&self, is_source: bool) -> DiskId {
        if is_source { self.sources[0] } else { self.target }
    }

    /// After which row a disk is to be asked for more, if it is; it counts as asked then.
    pub(super) fn ask(&mut self, is_source: bool) -> Option<(LineageId, ObjectKey)> {
        let side = self.side(is_source);
        if !side.is_stuck() || side.is_asked {
            return None;
        }
        side.is_asked = true;
        Some(side.after)
    }

    /// Whether an answer is waited for that was asked for so; not of a former source, for example.
    pub(super) fn is_asked(
        &self,
        disk: DiskId,
        is_source: bool,
        after: (LineageId, ObjectKey),
    ) -> bool {
        let side = if is_source { &self.source } else { &self.rows };
        self.disk(is_source) == disk && side.is_asked && side.after == after
    }

    /// Takes an answer. It must go forward and speak of the partitions; otherwise it makes no
    /// sense, and nothing is taken.
    #[must_use]
    pub(super) fn take(
        &mut self,
        is_source: bool,
        objects: Vec<(LineageId, ObjectStamp)>,
        more: bool,
    ) -> bool {
        let mut last = self.side(is_source).after;
        for (lineage, found) in &objects {
            let place = (*lineage, found.key);
            let partition = partition_of(*lineage, found.key.index, self.bits);
            if place <= last || self.partitions.binary_search(&partition).is_err() {
                return false;
            }
            last = place;
        }
        if more && objects.is_empty() {
            return false;
        }
        let side = self.side(is_source);
        side.after = last;
        side.is_asked = false;
        side.is_told = !more;
        side.rows.extend(objects);
        true
    }

    /// The next source is to be compared with, from the beginning. False if there is none.
    pub(super) fn change_source(&mut self) -> bool {
        self.sources.pop_front();
        (self.source, self.rows) = (Side::default(), Side::default());
        !self.sources.is_empty()
    }

    /// The next difference that can be told of what is known by now.
    pub(super) fn next(&mut self) -> Option<Difference> {
        loop {
            if self.source.is_stuck() || self.rows.is_stuck() {
                return None;
            }
            let (one, other) = (self.source.head(), self.rows.head());
            let place = match (one, other) {
                (Some(one), Some(other)) => one.min(other),
                (one, other) => one.or(other)?,
            };
            let at = |side: &mut Side, head: Option<(LineageId, ObjectKey)>| {
                if head == Some(place) { side.rows.pop_front().map(|row| row.1) } else { None }
            };
            let source = at(&mut self.source, one);
            let target = at(&mut self.rows, other);
            if source != target {
                let (lineage, key) = place;
                return Some(Difference { lineage, key, source, target });
            }
        }
    }

    /// Whether all is told and compared.
    pub(super) fn is_done(&self) -> bool {
        let is_done = |side: &Side| side.is_told && side.rows.is_empty();
        is_done(&self.source) && is_done(&self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{Generation, LayerId, Stamp};

    fn row(lineage: u64, index: u32, sequence: u64) -> (LineageId, ObjectStamp) {
        let key = ObjectKey { layer: LayerId(lineage), index };
        let stamp = Stamp { generation: Generation(1), sequence };
        (LineageId(lineage), ObjectStamp { key, stamp, settled_generation: Generation(1) })
    }

    fn comparison() -> Comparison {
        let sources = VecDeque::from([DiskId(1), DiskId(2)]);
        let mut comparison = Comparison::new(sources, DiskId(3), 0, false);
        comparison.partitions = vec![PartitionId(0)];
        comparison
    }

    #[test]
    fn rows_meet_whatever_the_pieces_in_which_they_come() {
        let source = [row(1, 0, 1), row(1, 1, 1), row(2, 0, 5), row(3, 0, 1)];
        let target = [row(1, 1, 1), row(1, 2, 7), row(2, 0, 4)];
        for pieces in 1..5 {
            let mut comparison = comparison();
            let mut found = Vec::new();
            for _ in 0..20 {
                for (is_source, all) in [(true, &source[..]), (false, &target[..])] {
                    let Some(after) = comparison.ask(is_source) else { continue };
                    assert_eq!(comparison.ask(is_source), None, "asked already");
                    let left: Vec<_> =
                        all.iter().filter(|(of, it)| (*of, it.key) > after).copied().collect();
                    let piece = left.iter().take(pieces).copied().collect();
                    assert!(comparison.take(is_source, piece, left.len() > pieces));
                }
                found.extend(std::iter::from_fn(|| comparison.next()));
            }
            assert!(comparison.is_done());
            let found: Vec<_> = found
                .iter()
                .map(|it| (it.lineage.0, it.key.index, it.source.is_some(), it.target.is_some()))
                .collect();
            let wanted =
                [(1, 0, true, false), (1, 2, false, true), (2, 0, true, true), (3, 0, true, false)];
            assert_eq!(found, wanted);
        }
    }

    #[test]
    fn an_answer_that_goes_back_or_speaks_of_others_is_not_taken() {
        let mut comparison = comparison();
        assert!(!comparison.take(true, vec![row(1, 1, 1), row(1, 0, 1)], false));
        assert!(!comparison.take(true, vec![], true), "more of nothing, for ever");
        assert!(comparison.take(true, vec![row(1, 1, 1)], true));
        assert!(!comparison.take(true, vec![row(1, 1, 1)], true));
        comparison.partitions = vec![PartitionId(7)];
        assert!(!comparison.take(true, vec![row(2, 1, 1)], true));
        assert!(comparison.change_source() && comparison.disk(true) == DiskId(2));
        assert!(!comparison.change_source());
    }
}
