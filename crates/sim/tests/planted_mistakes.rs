//! Tests of the tests: mistakes planted in the product (decision 0011). A simulator that does not
//! notice them would not notice the same mistakes if somebody made them.

use sim::plants::{CAUGHT, name, run};

/// So many seeds are tried, from the one that was found on: a change of the product moves what
/// happens in a run, and with it the seed that notices.
const SEEDS_MAX: u64 = 40;

/// The mistakes that were caught, in two halves, for two threads.
fn replay(half: usize) {
    let mut wrong = Vec::new();
    for (mistake, kind, found) in CAUGHT.iter().skip(half).step_by(2) {
        let name = name(*mistake);
        let notices = |seed: &u64| match run(*kind, *seed, Some(*mistake)) {
            Err(complaint) => {
                println!("{name} from {found}: {complaint}");
                true
            }
            Ok(_) => false,
        };
        match (*found..found + SEEDS_MAX).find(notices) {
            None => wrong.push(format!("{name} goes unnoticed by {kind:?} from {found} on")),
            Some(seed) => {
                if let Err(complaint) = run(*kind, seed, None) {
                    wrong.push(format!("{kind:?} {seed} fails without {name}: {complaint}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}; find other seeds with `sim hunt`", wrong.join("; "));
}

#[test]
fn planted_mistakes_are_noticed_by_the_seeds_that_were_found() {
    replay(0);
}

#[test]
fn planted_mistakes_are_noticed_by_the_other_seeds_that_were_found() {
    replay(1);
}
