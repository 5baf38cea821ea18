//! Whole nodes, by fresh seeds and by fixed ones.

use sim::{entropy, world::World};

#[test]
fn fresh_seeds_pass() {
    for _ in 0..300 {
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
