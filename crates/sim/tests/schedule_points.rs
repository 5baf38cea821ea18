//! Every crash point around the slot of a schedule, with every clock after it.

use sim::{
    onedisk::Setup,
    schedulepoints::{Holder, explore},
};

fn check(holder: Holder) {
    match explore(&Setup::default(), holder) {
        Ok(tally) => {
            println!("{holder:?}: {tally:?}");
            assert!(tally.points > 20, "{tally:?}: the slot is hardly seen");
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_slot_has_one_snapshot_whatever_happens_while_a_guest_writes() {
    check(Holder::Guest);
}

#[test]
fn a_slot_has_one_snapshot_whatever_happens_while_nobody_has_the_volume() {
    check(Holder::Nobody);
}
