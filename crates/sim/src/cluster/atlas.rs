//! The fault atlas: what may be down, lost or cut at once so that a run stays survivable by
//! promise, and what excuses that somebody waits.

/// How many of so many voters, or copies, are a quorum.
pub fn quorum(count: usize) -> usize {
    count / 2 + 1
}

/// How many machines may lose, for good, what was durable on them, if every partition has so many
/// copies: one less than acknowledge a write. With one copy: none.
pub fn machines_losable(copies: usize) -> usize {
    quorum(copies) - 1
}

/// How many voters a cluster of so many nodes chooses.
pub fn voters_wanted(nodes: usize) -> usize {
    match nodes {
        0..=2 => 1,
        3..=6 => 3,
        _ => 5,
    }
}

/// How the cluster is, as whoever knows everything sees it.
pub struct Sight<'a> {
    /// Which nodes run and are not held up, by place.
    pub acts: &'a [bool],
    /// Whether bytes pass from one place to another.
    pub passes: &'a dyn Fn(usize, usize) -> bool,
    /// Where the voters are.
    pub voters: &'a [usize],
}

impl Sight<'_> {
    fn linked(&self, one: usize, other: usize) -> bool {
        let both = self.acts[one] && self.acts[other];
        both && (one == other || ((self.passes)(one, other) && (self.passes)(other, one)))
    }

    /// Whether some voter has a quorum of the voters in reach, all of whom reach one another, and
    /// this node has all of them in reach: then what it asks to be agreed must be, in time.
    pub fn must_agree(&self, place: usize) -> bool {
        let seen = |from: usize| self.voters.iter().filter(move |to| self.linked(from, **to));
        let together: Vec<usize> = seen(place).copied().collect();
        let all_linked =
            together.iter().all(|one| together.iter().all(|other| self.linked(*one, *other)));
        // A voter that sees some of them and not all could disturb them again and again.
        let whole = together.len() == self.voters.len();
        whole && all_linked && together.len() >= quorum(self.voters.len())
    }

    /// Whether requests of this node's guests must be answered, in time: of each set of copies,
    /// given by where they are that are present, it reaches as many as are needed.
    pub fn must_serve(&self, place: usize, sets: &[(Vec<usize>, usize)]) -> bool {
        let reaches = |(copies, needed): &(Vec<usize>, usize)| {
            copies.iter().filter(|copy| self.linked(place, **copy)).count() >= *needed
        };
        sets.iter().all(reaches) && self.must_agree(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_grow_with_the_copies() {
        let losable = [1, 2, 3, 4, 5].map(machines_losable);
        assert_eq!(losable, [0, 1, 1, 2, 2]);
    }

    #[test]
    fn a_node_that_sees_a_minority_owes_nothing() {
        let whole = |_: usize, _: usize| true;
        let lonely = |from: usize, to: usize| from != 0 && to != 0;
        let acts = [true; 3];
        let sight = Sight { acts: &acts, passes: &whole, voters: &[0, 1, 2] };
        let sets = [(vec![0, 1, 2], 2), (vec![0, 1], 1)];
        assert!(sight.must_agree(0) && sight.must_serve(1, &sets));
        let sight = Sight { passes: &lonely, ..sight };
        assert!(!sight.must_agree(0) && !sight.must_serve(1, &sets));
    }
}
