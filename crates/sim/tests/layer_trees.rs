//! Layers of a whole node deleted in every order.

use sim::nodepoints::trees::{Tally, delete_in_every_order, trees};

fn delete_all(layers: usize, chosen: impl Fn(usize) -> bool) {
    let mut sum = Tally::default();
    let all = trees(layers);
    for (_, tree) in all.iter().enumerate().filter(|(number, _)| chosen(*number)) {
        let tally = delete_in_every_order(tree).unwrap_or_else(|error| panic!("{error}"));
        sum.trees += tally.trees;
        sum.orders += tally.orders;
        sum.verified += tally.verified;
    }
    println!("{sum:?}");
}

#[test]
fn trees_of_up_to_five_layers_deleted_in_every_order_leave_the_others_as_they_were() {
    delete_all(5, |number| number % 2 == 0);
}

#[test]
fn the_other_half_of_trees_of_up_to_five_layers_deleted_in_every_order() {
    delete_all(5, |number| number % 2 == 1);
}
