//! Disks that come to a node while it runs, and go again, and what is left of that after a crash.

use crate::support::{MIB, Net};
use engine::Input;
use engine::admin::{AdminReply, AdminRequest};
use proto::DiskId;

const FIRST: u128 = 200;
const SECOND: u128 = 201;

/// One node with one disk, and a volume on it that is attached.
fn one(seed: u64) -> (Net, engine::ConnectionId) {
    let mut net = Net::cluster(seed, &[(20, &[FIRST])]);
    net.create(0, "v");
    let connection = net.open(0, "v");
    net.write(0, connection, 0, 7, MIB);
    net.flush(0, connection);
    (net, connection)
}

fn until_whole(net: &mut Net) {
    net.until("every partition has two copies", 240, |net| {
        let report = net.report(0);
        let is_whole = |disk: &engine::admin::ClusterDiskReport| disk.partitions == 4096;
        report.disks.len() == 2 && report.disks.iter().all(is_whole) && report.attempts.is_empty()
    });
}

fn until_added(net: &mut Net) {
    let disk = DiskId(SECOND);
    net.until("the disk is added", 20, |net| net.nodes[0].added.contains_key(&disk));
    assert_eq!(net.nodes[0].added[&disk], Ok(()));
}

fn states(net: &mut Net) -> Vec<(u128, String)> {
    net.disks(0).into_iter().map(|disk| (disk.disk.0, disk.state)).collect()
}

#[track_caller]
fn done(net: &mut Net, request: AdminRequest) {
    let reply = net.ask(0, request);
    assert!(matches!(reply, Ok(AdminReply::Done | AdminReply::Volume(_))), "{reply:?}");
}

fn keep_one(net: &mut Net) {
    let (name, copies, min_copies) = ("v".to_string(), None, Some(1));
    done(net, AdminRequest::VolumeKeep { name, copies, min_copies });
}

fn restart(net: &mut Net) {
    net.start(0);
    net.until("it serves again", 20, |net| net.nodes[0].is_ready);
}

fn check_content(net: &mut Net) {
    let connection = net.open(0, "v");
    assert!(net.read(0, connection, 0, MIB).iter().all(|byte| *byte == 7));
}

#[test]
fn a_disk_that_was_taken_out_is_closed_and_forgotten() {
    let (mut net, connection) = one(60);
    net.add_disk(0, SECOND);
    until_added(&mut net);
    until_whole(&mut net);
    // Both are on one machine, and that is said.
    let report = net.report(0);
    assert!(report.copies.iter().all(|kept| kept.copies == 1 || kept.doubled == 4096));
    let note =
        report.notes.iter().find(|note| note.contains("more than one copy on the same node"));
    assert!(note.is_some(), "{:?}", report.notes);
    let explained = net.ask(0, AdminRequest::VolumeExplain { name: "v".into() });
    let Ok(AdminReply::Explained(explained)) = explained else { panic!("{explained:?}") };
    assert_eq!(explained.losses.len(), 1);
    assert!(explained.losses[0].lost_bytes > 0, "the node takes both copies with it");
    keep_one(&mut net);
    done(&mut net, AdminRequest::DiskRemove { disk: DiskId(SECOND) });
    let disk = DiskId(SECOND);
    net.until("it is let go", 60, |net| net.nodes[0].gone.contains_key(&disk));
    assert_eq!(states(&mut net), [(FIRST, "serving".to_string())]);
    net.write(0, connection, MIB, 7, MIB);
    net.flush(0, connection);

    // The record may say that it is there still: it is let go again, and nothing of it is used.
    net.kill(0);
    net.list_again(0, SECOND);
    let before = net.medium(0, SECOND).clone();
    restart(&mut net);
    net.until("it is let go again", 10, |net| net.nodes[0].gone.contains_key(&disk));
    assert_eq!(states(&mut net), [(FIRST, "serving".to_string())]);
    assert_eq!(net.report(0).disks.len(), 1);
    // Not as one of which the map knows too little: nothing is wrong.
    let mut about_it = net.nodes[0].notices.iter().filter(|notice| notice.contains("disk-201"));
    assert!(about_it.all(|notice| notice.contains("was taken out of the cluster")));
    check_content(&mut net);
    net.kill(0);
    net.list_again(0, SECOND);
    assert!(*net.medium(0, SECOND) == before, "it was written to although it is none any more");
}

#[test]
fn the_first_disk_of_a_node_may_go_but_not_its_last() {
    let (mut net, _) = one(61);
    net.add_disk(0, SECOND);
    until_added(&mut net);
    until_whole(&mut net);
    keep_one(&mut net);
    done(&mut net, AdminRequest::DiskRemove { disk: DiskId(FIRST) });
    net.until("it is let go", 60, |net| net.nodes[0].gone.contains_key(&DiskId(FIRST)));
    let refused = net.ask(0, AdminRequest::DiskRemove { disk: DiskId(SECOND) });
    assert!(refused.is_err(), "the last copy: {refused:?}");
    net.kill(0);
    restart(&mut net);
    assert_eq!(states(&mut net), [(SECOND, "serving".to_string())]);
    check_content(&mut net);
    net.tell(0, Input::Stop);
    net.until("it stops", 20, |net| net.nodes[0].is_stopped);
}

/// A process that is killed after each step of making a disk: it is completed at the next start.
#[test]
fn a_disk_that_was_half_made_is_made_at_the_next_start() {
    for steps in 0.. {
        let (mut net, _) = one(62);
        net.nodes[0].stalled.insert(DiskId(SECOND));
        net.add_disk(0, SECOND);
        let all = (0..steps).all(|_| net.do_one(0));
        let was_there = net.nodes[0].added.remove(&DiskId(SECOND)).is_some();
        net.kill(0);
        net.nodes[0].stalled.clear();
        net.nodes[0].making.insert(DiskId(SECOND));
        restart(&mut net);
        until_added(&mut net);
        assert_eq!(states(&mut net).len(), 2, "after {steps} steps");
        assert!(states(&mut net).iter().all(|(_, state)| state == "serving"));
        check_content(&mut net);
        if was_there || !all {
            net.nodes[0].making.clear();
            until_whole(&mut net);
            assert!(steps > 5, "making a disk takes more steps than {steps}");
            return;
        }
    }
}

/// The mark that a disk is being made is still there when it has served: its medium, which lost
/// all it held, was made anew, and the copies on it counted.
#[test]
fn a_disk_that_has_served_is_never_made_anew() {
    let (mut net, _) = one(63);
    net.add_disk(0, SECOND);
    until_added(&mut net);
    until_whole(&mut net);
    net.kill(0);
    net.nodes[0].making.insert(DiskId(SECOND));
    net.nodes[0].added.clear();
    net.medium(0, SECOND).clear();
    restart(&mut net);
    // It is one of the cluster's: the mark goes.
    until_added(&mut net);
    let expected = [(FIRST, "serving".to_string()), (SECOND, "refused".to_string())];
    assert_eq!(states(&mut net), expected);
    assert!(net.medium(0, SECOND).is_empty(), "it was made anew");
}

#[test]
fn a_disk_that_is_missing_is_told_and_does_not_keep_the_node_from_serving() {
    let (mut net, _) = one(64);
    net.add_disk(0, SECOND);
    until_added(&mut net);
    until_whole(&mut net);
    keep_one(&mut net);
    net.kill(0);
    net.nodes[0].missing.insert(DiskId(SECOND));
    restart(&mut net);
    let listed = net.disks(0);
    assert_eq!(listed[1].state, "refused");
    assert!(listed[1].reason.as_ref().expect("told").contains("is missing"), "{listed:?}");
    assert!(!net.status(0).healthy);
    net.until("it is left out", 60, |net| {
        net.report(0).disks.iter().any(|disk| disk.disk.0 == FIRST && disk.partitions == 4096)
    });
    // It is plugged in again.
    net.kill(0);
    net.nodes[0].missing.clear();
    restart(&mut net);
    assert!(states(&mut net).iter().all(|(_, state)| state == "serving"));
    check_content(&mut net);
    until_whole(&mut net);
}

#[test]
fn one_that_was_being_made_and_is_missing_is_given_up() {
    let (mut net, _) = one(65);
    net.kill(0);
    net.list_blank(0, SECOND);
    net.nodes[0].making.insert(DiskId(SECOND));
    net.nodes[0].missing.insert(DiskId(SECOND));
    restart(&mut net);
    let added = net.nodes[0].added[&DiskId(SECOND)].clone();
    assert!(added.expect_err("it is not there").contains("is missing"));
    assert_eq!(states(&mut net), [(FIRST, "serving".to_string())]);
    assert!(net.status(0).healthy, "a disk that never was one is not missed");
    check_content(&mut net);
}
