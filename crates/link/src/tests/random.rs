//! Random histories; what must hold in them stands in `fuzz::pair` and `fuzz::hostile`.

use crate::fuzz::hostile::fuzz_hostile;
use crate::fuzz::pair::{Marks, fuzz_pair};
use crate::fuzz::random_steps;

#[test]
fn whatever_a_network_does_each_request_ends_once_and_in_order() {
    let mut sum = Marks::default();
    for seed in 0..60 {
        println!("seed {seed}"); // shown when it fails
        let pair = fuzz_pair(&random_steps(seed, 3000));
        let Marks { answered, forgotten, seen_twice, adopted_twice, not_staged, .. } = pair.marks;
        sum.answered += answered;
        sum.forgotten += forgotten;
        sum.seen_twice += seen_twice;
        sum.adopted_twice += adopted_twice;
        sum.not_staged += not_staged;
        let Marks { resent, adopted, controls, promises, .. } = pair.marks;
        sum.resent += resent;
        sum.adopted += adopted;
        sum.controls += controls;
        sum.promises += promises;
    }
    println!("{sum:?}");
    let Marks { answered, forgotten, seen_twice, resent, adopted, controls, promises, .. } = sum;
    let Marks { adopted_twice, not_staged, .. } = sum;
    assert!(adopted_twice > 5 && not_staged > 5, "too little was copied: {sum:?}");
    let rarest = [forgotten, seen_twice, resent, adopted, controls, promises].into_iter().min();
    assert!(answered > 5_000 && rarest > Some(100), "too little happened: {sum:?}");
}

#[test]
fn whatever_a_peer_says_the_link_stands_within_its_limits() {
    let mut believed = 0;
    let mut kinds = std::collections::BTreeSet::new();
    for seed in 0..300 {
        println!("seed {seed}"); // shown when it fails
        let play = fuzz_hostile(&random_steps(seed, 2000));
        believed += play.believed;
        kinds.extend(play.reasons.iter().map(|reason| {
            let words = format!("{reason:?}");
            words.split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
        }));
    }
    println!("{believed} messages were believed; connections ended by {kinds:?}");
    assert!(believed > 1_000 && kinds.len() > 12, "too little happened: {believed}, {kinds:?}");
}
