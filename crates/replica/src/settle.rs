//! The rule by which a new session decides what became of the writes in flight before it.

use proto::{Generation, Mistake, ObjectStamp, Stamp, planted};

/// What an object settles at, from the answers of at least a quorum of its members: of those with
/// the highest settled generation the highest stamp. An older settled generation means that the
/// member missed a settling, and what it holds beyond was discarded by that. A member that took a
/// write of a generation has the object settled by it, whether or not it was told so: the write
/// named what was settled as the one before it. What is incomplete counts for nothing.
///
/// Nothing if there is no answer that counts.
pub fn settle(answers: impl IntoIterator<Item = ObjectStamp>) -> Option<Stamp> {
    settle_among(answers).map(|answer| answer.stamp)
}

/// The answer that an object settles at.
pub(crate) fn settle_among(answers: impl IntoIterator<Item = ObjectStamp>) -> Option<ObjectStamp> {
    let counts = |answer: &ObjectStamp| answer.stamp != Stamp::INCOMPLETE;
    answers.into_iter().filter(counts).max_by_key(|answer| {
        let settled = answer.settled_generation.max(answer.stamp.generation);
        let settled = match () {
            () if planted(Mistake::SettledGenerationIgnored) => Generation(0),
            () if planted(Mistake::WriteDoesNotSettle) => answer.settled_generation,
            () => settled,
        };
        (settled, answer.stamp)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{Generation, ObjectKey};

    #[test]
    fn an_object_settles_at_the_newest_history() {
        // Answers as (settled generation, generation and sequence of the stamp).
        type Answers = &'static [(u64, u64, u64)];
        let table: [(Answers, Option<(u64, u64)>); 9] = [
            (&[], None),
            (&[(0, 0, 0)], Some((0, 0))),
            (&[(1, 1, 5)], Some((1, 5))),
            // Equal settled generations: the longest prefix.
            (&[(2, 2, 5), (2, 2, 7), (2, 2, 6)], Some((2, 7))),
            // A longer history that missed the settling of generation 3 loses.
            (&[(2, 2, 9), (3, 2, 7)], Some((2, 7))),
            // Who missed the settling and took the first write after it is not behind.
            (&[(3, 2, 7), (2, 3, 1)], Some((3, 1))),
            // A later generation beats a higher sequence.
            (&[(3, 2, 9), (3, 3, 1)], Some((3, 1))),
            // A copy that was not finished says nothing, whoever marked it.
            (&[(9, 0, 1), (2, 2, 5)], Some((2, 5))),
            (&[(9, 0, 1)], None),
        ];
        for (answers, wanted) in table {
            let chosen =
                settle(answers.iter().map(|&(settled, generation, sequence)| ObjectStamp {
                    key: ObjectKey::default(),
                    stamp: Stamp { generation: Generation(generation), sequence },
                    settled_generation: Generation(settled),
                }));
            let wanted = wanted.map(|(generation, sequence)| Stamp {
                generation: Generation(generation),
                sequence,
            });
            assert_eq!(chosen, wanted, "{answers:?}");
        }
    }
}
