//! Replays the fuzz corpora of links, and keeps their seeds. After a change of the seeds,
//! `UPDATE_CORPUS=1 cargo test -p link --test corpus` writes them anew.

#[path = "../../../fuzz/inputs/corpus.rs"]
mod corpus;

use link::fuzz::{hostile, pair, random_steps};

#[test]
fn corpus_of_pairs() {
    corpus::check("link_pair", seeds(1200), |data| drop(pair::fuzz_pair(data)));
}

#[test]
fn corpus_of_hostile_peers() {
    corpus::check("link_hostile", seeds(900), |data| drop(hostile::fuzz_hostile(data)));
}

/// A short history for each of the settings, and nothing at all.
fn seeds(count: usize) -> Vec<(String, Vec<u8>)> {
    let mut seeds = vec![("empty".to_owned(), Vec::new())];
    for settings in 0..8u8 {
        let mut steps = random_steps(u64::from(settings) + 1, count);
        steps[0] = settings;
        seeds.push((format!("settings-{settings}"), steps));
    }
    seeds
}
