//! Layers of a whole node deleted in every order.

use sim::nodepoints::trees::{Tally, delete_in_every_order, trees};

#[test]
fn trees_of_up_to_five_layers_deleted_in_every_order_leave_the_others_as_they_were() {
    let mut sum = Tally::default();
    for tree in trees(5) {
        let tally = delete_in_every_order(&tree).unwrap_or_else(|error| panic!("{error}"));
        sum.trees += tally.trees;
        sum.orders += tally.orders;
        sum.verified += tally.verified;
    }
    println!("{sum:?}");
    assert!(sum.trees >= 78 && sum.orders >= 2_143, "not all trees were tried: {sum:?}");
}
