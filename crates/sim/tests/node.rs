//! Whole nodes, by fresh seeds and by fixed ones.

use sim::{entropy, world::World};

#[test]
fn fresh_seeds_pass() {
    pass_fresh_seeds(150);
}

/// As many again, for the other core.
#[test]
fn more_fresh_seeds_pass() {
    pass_fresh_seeds(150);
}

fn pass_fresh_seeds(count: u32) {
    for _ in 0..count {
        if let Err(error) = World::new(entropy(), false).run() {
            panic!("{error}");
        }
    }
}

#[test]
fn equal_seeds_give_equal_traces() {
    for seed in 1..=5 {
        let [first, second] = [(); 2].map(|()| World::new(seed, false).run());
        let (first, second) = (first.expect("passes"), second.expect("passes"));
        assert_eq!(first, second, "seed {seed}");
        assert!(first.lines > 100, "seed {seed}");
    }
}
