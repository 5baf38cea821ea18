//! Several nodes with disks: copies appear as disks do, and volumes go on whatever dies.

use crate::support::{MIB, Net};
use engine::admin::{AdminReply, AdminRequest};
use proto::{DiskId, PartitionId};

const THREE: &[(u128, &[u128])] = &[(20, &[200]), (10, &[100]), (30, &[300])];

/// Three nodes with a disk each, and three copies of everything.
pub fn three(seed: u64) -> Net {
    let mut net = Net::cluster(seed, THREE);
    until_whole(&mut net, 0, 3, 240);
    net.until_all_vote();
    net
}

/// How many partitions have so many whole copies that can be asked, as a node knows it.
fn whole(net: &Net, at: usize, copies: usize) -> usize {
    let Some(engine) = &net.nodes[at].engine else { return 0 };
    let map = engine.map();
    let partitions = (0..1u32 << map.partition_bits()).map(PartitionId);
    let held = partitions.map(|partition| map.configuration(3, partition));
    held.filter(|held| {
        let present = held.current.iter().filter(|member| map.is_present(**member)).count();
        present == copies && held.current.len() == copies && held.recovering.is_empty()
    })
    .count()
}

/// How many copies people are told that the volume has.
fn told(net: &mut Net, at: usize) -> u32 {
    match net.ask(at, AdminRequest::VolumeInfo { name: "v".into() }) {
        Ok(AdminReply::Volume(report)) => report.copies,
        other => panic!("{other:?}"),
    }
}

fn until_whole(net: &mut Net, at: usize, copies: usize, seconds: u64) {
    net.until("every partition is whole", seconds, |net| whole(net, at, copies) == 4096);
}

#[test]
fn a_disk_that_comes_gets_copies_of_everything_while_a_volume_is_written() {
    let mut net = Net::cluster(21, &[(20, &[200])]);
    net.create(0, "v");
    assert_eq!(told(&mut net, 0), 1);
    let connection = net.open(0, "v");
    net.write(0, connection, 0, 1, MIB);
    net.write(0, connection, 9 * MIB, 2, MIB);
    net.flush(0, connection);
    for (id, disk) in [(10, 100), (30, 300)] {
        let at = net.add(id, &[disk]);
        net.let_in(0, at);
        net.start(at);
        net.until("it serves", 30, |net| net.nodes[at].is_ready);
    }
    for round in 0..8 {
        net.write(0, connection, round * MIB, round as u8 + 3, 64 << 10);
        net.pass(1);
    }
    until_whole(&mut net, 0, 3, 240);
    net.flush(0, connection);
    net.until_all_vote();
    assert!(net.nodes.iter().enumerate().all(|(at, _)| whole(&net, at, 3) == 4096));
    assert!((0..3).all(|at| told(&mut net, at) == 3));
    // Any one of them has it all: each of the others may go.
    net.tell(0, engine::Input::Close { connection });
    for gone in 0..3 {
        net.kill(gone);
        let at = (gone + 1) % 3;
        net.until("another one leads", 30, |net| net.volumes(at).is_some());
        let connection = net.open(at, "v");
        for round in 0..8_u64 {
            let read = net.read(at, connection, round * MIB, 64 << 10);
            assert!(read.iter().all(|byte| *byte == round as u8 + 3), "{gone} {round}");
        }
        assert!(net.read(at, connection, 9 * MIB + (64 << 10), 4096).iter().all(|byte| *byte == 2));
        net.write(at, connection, 14 * MIB, gone as u8 + 1, 4096);
        net.tell(at, engine::Input::Close { connection });
        net.start(gone);
        net.until("it serves again", 60, |net| net.nodes[gone].is_ready);
        assert!(told(&mut net, gone) < 3, "what it missed it does not have yet");
        until_whole(&mut net, at, 3, 240);
    }
}

#[test]
fn all_nodes_lose_their_power_and_go_on_with_what_was_flushed() {
    let mut net = three(22);
    net.create(1, "v");
    let connection = net.open(1, "v");
    net.write(1, connection, 0, 7, MIB);
    net.flush(1, connection);
    for at in 0..3 {
        net.cut_power(at);
    }
    for at in [2, 0, 1] {
        net.start(at);
        net.pass(2);
    }
    net.until("all serve", 60, |net| net.nodes.iter().all(|node| node.is_ready));
    let connection = net.open(2, "v");
    assert!(net.read(2, connection, 0, MIB).iter().all(|byte| *byte == 7));
    until_whole(&mut net, 2, 3, 240);
}

#[test]
fn a_node_that_is_cut_off_is_left_out_and_comes_back_whole() {
    let mut net = three(23);
    net.create(0, "v");
    let connection = net.open(0, "v");
    net.write(0, connection, 0, 1, MIB);
    net.isolate(2);
    net.write(0, connection, 0, 2, MIB); // a quorum is enough
    net.flush(0, connection);
    until_whole(&mut net, 0, 2, 120);
    assert_eq!(told(&mut net, 0), 2);
    net.write(0, connection, MIB, 3, MIB);
    net.heal();
    until_whole(&mut net, 0, 3, 240);
    net.tell(0, engine::Input::Close { connection });
    net.pass(5);
    // What it missed it has: it and one other are enough.
    net.kill(0);
    net.until("others lead", 30, |net| net.volumes(2).is_some());
    let connection = net.open(2, "v");
    assert!(net.read(2, connection, 0, MIB).iter().all(|byte| *byte == 2));
    assert!(net.read(2, connection, MIB, MIB).iter().all(|byte| *byte == 3));
}

/// A disk on which a write failed answers, and takes nothing: it is left out like one that is away,
/// whether it is the leader's own or another node's, and comes back when it was opened anew.
#[test]
fn a_disk_that_fails_is_left_out() {
    let mut net = three(24);
    net.create(0, "v");
    let leader = net.status(0).agreement.leader.expect("there is one");
    let leader = (0..3).find(|&at| net.nodes[at].id == leader).expect("it is one of them");
    for at in [leader, (leader + 1) % 3] {
        let reader = (leader + 2) % 3;
        let connection = net.open(reader, "v");
        let disk = DiskId([200, 100, 300][at]);
        net.nodes[at].failing.insert(disk);
        net.write(reader, connection, 0, at as u8 + 1, MIB);
        until_whole(&mut net, reader, 2, 60);
        net.write(reader, connection, MIB, 9, 4096);
        net.flush(reader, connection);
        net.tell(reader, engine::Input::Close { connection });
        net.nodes[at].failing.clear();
        net.kill(at);
        net.start(at);
        net.until("it serves again", 60, |net| net.nodes[at].is_ready);
        until_whole(&mut net, reader, 3, 240);
    }
}

/// A majority is enough at once: nobody waits until the dead one is left out.
#[test]
fn a_node_that_dies_after_another_came_back_holds_nobody_up() {
    let mut net = three(24);
    net.create(0, "v");
    let connection = net.open(0, "v");
    for round in 0..8_u64 {
        net.write(0, connection, round * 2 * MIB, 1, MIB);
    }
    net.flush(0, connection);
    net.kill(1);
    net.pass(1);
    net.start(1);
    net.until("it serves again", 60, |net| net.nodes[1].is_ready);
    until_whole(&mut net, 0, 3, 240);
    for round in 0..8_u64 {
        net.write(0, connection, round * 2 * MIB, 2, MIB);
    }
    net.flush(0, connection);
    net.kill(2);
    for round in 0..8_u64 {
        let offset = round * 2 * MIB;
        let begun = net.now;
        net.write(0, connection, offset, 3, MIB);
        let written = net.now;
        net.flush(0, connection);
        let flushed = net.now;
        assert!(net.read(0, connection, offset, MIB).iter().all(|byte| *byte == 3));
        let spans = [written.since(begun), flushed.since(written), net.now.since(flushed)];
        let slow = spans.iter().any(|span| *span > proto::Duration::from_millis(1_000));
        assert!(!slow, "round {round}: {spans:?}");
    }
}
