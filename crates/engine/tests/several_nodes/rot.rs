//! What rots on a disk of one of three nodes, each with a copy.

use crate::copies::three;
use crate::support::Net;
use engine::admin::{AdminRequest, ScrubAction};

/// The disks of the three.
const DISKS: [u128; 3] = [200, 100, 300];

/// Three copies of a volume whose blocks 0 and 1 hold nothing but these bytes.
fn with_volume(seed: u64) -> Net {
    let mut net = three(seed);
    net.create(0, "v");
    let connection = net.open(0, "v");
    net.write(0, connection, 0, 0x51, 4096);
    net.write(0, connection, 4096, 0x52, 4096);
    net.flush(0, connection);
    net.pass(5);
    for at in 0..3 {
        net.ask(at, AdminRequest::DiskScrub { disk: None, action: ScrubAction::Rate(1 << 30) })
            .expect("set");
    }
    net
}

fn scrub(net: &mut Net, at: usize) {
    net.ask(at, AdminRequest::DiskScrub { disk: None, action: ScrubAction::Start }).expect("begun");
}

fn told(net: &Net, at: usize, words: &str) -> usize {
    net.nodes[at].notices.iter().filter(|sentence| sentence.contains(words)).count()
}

#[test]
fn rot_is_told_mended_and_counted_and_all_is_well_again() {
    let mut net = with_volume(81);
    assert_eq!(net.rot(1, DISKS[1], 0x51), 1);
    scrub(&mut net, 1);
    net.until("it is mended", 20, |net| net.disks(1)[0].damage_mended == 1);
    let disk = &net.disks(1)[0];
    assert_eq!((disk.damage_found, disk.damaged_blocks, disk.damage_mending), (1, 0, 0));
    let status = net.status(1);
    assert!(status.healthy, "{:?}", status.warnings);
    assert_eq!(told(&net, 1, "was written anew"), 1, "{:?}", net.nodes[1].notices);
    // It holds what it held.
    assert_eq!(net.rot(1, DISKS[1], 0x51), 1);
}

/// That peers are away was taken for their having lost it too, and people were sent to backups.
#[test]
fn who_is_away_is_waited_for_and_nobody_is_sent_to_a_backup() {
    let mut net = with_volume(82);
    net.rot(1, DISKS[1], 0x51);
    scrub(&mut net, 1);
    net.isolate(1);
    net.pass(200);
    assert_eq!(told(&net, 1, "has a wrong checksum"), 1, "{:?}", net.nodes[1].notices);
    assert_eq!(told(&net, 1, "was written anew"), 0, "{:?}", net.nodes[1].notices);
    assert_eq!(told(&net, 1, "backup"), 0, "{:?}", net.nodes[1].notices);
    net.heal();
    net.until("it is mended", 90, |net| net.disks(1)[0].damaged_blocks == 0);
    assert_eq!(told(&net, 1, "backup"), 0, "{:?}", net.nodes[1].notices);
}

#[test]
fn what_every_copy_has_lost_is_told_once_and_the_rest_is_mended() {
    let mut net = with_volume(83);
    for (at, disk) in DISKS.into_iter().enumerate() {
        net.rot(at, disk, 0x51);
    }
    net.rot(2, DISKS[2], 0x52);
    scrub(&mut net, 2);
    net.pass(200);
    assert_eq!(told(&net, 2, "no other copy is good"), 1, "{:?}", net.nodes[2].notices);
    let disk = &net.disks(2)[0];
    assert_eq!((disk.damage_found, disk.damage_mended, disk.damaged_blocks), (2, 1, 1));
    assert!(!net.status(2).healthy);
}
