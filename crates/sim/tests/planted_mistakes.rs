//! Tests of the tests: mistakes planted in the product (decision 0011). A simulator that does not
//! notice them would not notice the same mistakes if somebody made them.

use sim::plants::{CAUGHT, name, run};

/// The seeds that were found, in two halves, for two threads.
fn replay(half: usize) {
    let mut wrong = Vec::new();
    for (mistake, kind, seed) in CAUGHT.iter().skip(half).step_by(2) {
        let name = name(*mistake);
        match run(*kind, *seed, Some(*mistake)) {
            Err(complaint) => println!("{name}: {complaint}"),
            Ok(_) => wrong.push(format!("{name} goes unnoticed by {kind:?} {seed}")),
        }
        if let Err(complaint) = run(*kind, *seed, None) {
            wrong.push(format!("{kind:?} {seed} fails without {name}: {complaint}"));
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
