//! Tests of the tests: faults planted below the store that make it break a promise through no
//! fault of its own. An explorer that does not notice them would not notice the same mistake in
//! the store.

use sim::{
    crashpoints::{Base, Explorer, Pace, workloads},
    disk::{Effect, Fault, OperationKind},
    onedisk::{Order, Setup},
};

/// The first complaint about workloads of two operations on a medium with this fault.
fn complaint(fault: Fault) -> Option<String> {
    let base = Base::used(Setup::default());
    let explorer = Explorer::new(&base, Order::FirstFirst, Pace::OneByOne);
    let mut explorer = explorer.sabotaged(fault);
    workloads(2).iter().find_map(|workload| explorer.explore(workload).err())
}

fn check_noticed(name: &str, fault: Fault) {
    match complaint(fault) {
        Some(complaint) => println!("{name}: {complaint}"),
        None => panic!("{name} goes unnoticed"),
    }
}

#[test]
fn flush_acknowledged_before_anything_is_durable_is_noticed() {
    check_noticed("an early flush", Fault::always(OperationKind::Flush, Effect::Lose));
}

#[test]
fn failed_flush_tried_again_and_believed_is_noticed() {
    check_noticed("a flush tried again", Fault::always(OperationKind::Flush, Effect::Swallow));
}

#[test]
fn write_acknowledged_before_it_is_there_is_noticed() {
    check_noticed("an early write", Fault::always(OperationKind::Write, Effect::Lose));
}

#[test]
fn write_to_a_wrong_place_is_noticed() {
    check_noticed("a stray write", Fault::always(OperationKind::Write, Effect::Misdirect(4096)));
}

#[test]
fn nothing_is_noticed_where_nothing_is_wrong() {
    let rare = Fault::always(OperationKind::Flush, Effect::Lose).per_million(0);
    assert_eq!(complaint(rare), None);
}
