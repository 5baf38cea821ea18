//! Volumes that are kept in other numbers of copies than most.

use crate::support::{MIB, Net};
use engine::admin::{AdminErrorKind, AdminReply, AdminRequest, VolumeReport};
use proto::{DiskId, PartitionId};

const THREE: &[(u128, &[u128])] = &[(20, &[200]), (10, &[100]), (30, &[300])];
const OBJECTS: u64 = 4;
const OBJECT: u64 = 4 * MIB;

/// Waits until each partition of each of these tables has as many whole copies, all of them on
/// disks that may have some, and no more; and until each of those has its share.
fn until_whole(net: &mut Net, at: usize, tables: &[u8], without: Option<u128>) {
    let is_whole = |net: &Net, copies: u8| {
        let Some(engine) = &net.nodes[at].engine else { return false };
        let map = engine.map();
        let mut shares = std::collections::BTreeMap::<DiskId, usize>::new();
        let is_whole = (0..1u32 << map.partition_bits()).map(PartitionId).all(|partition| {
            let held = map.configuration(copies, partition);
            let present = held.current.iter().filter(|member| map.is_present(**member)).count();
            let is_without = held.current.iter().all(|one| Some(one.disk) != without.map(DiskId));
            let most = usize::from(copies).min(3 - usize::from(without.is_some()));
            for member in &held.current {
                *shares.entry(member.disk).or_default() += 1;
            }
            let is_full = present == most && held.current.len() == most;
            is_full && held.recovering.is_empty() && is_without
        });
        let disks = 3 - usize::from(without.is_some());
        let least = (usize::from(copies) << map.partition_bits()) / 4;
        is_whole && shares.len() == disks && shares.values().all(|share| *share >= least)
    };
    let what = format!("tables {tables:?} are whole without {without:?}");
    net.until(&what, 600, |net| tables.iter().all(|table| is_whole(net, *table)));
}

fn create(net: &mut Net, at: usize, name: &str, copies: u8) -> VolumeReport {
    let (bytes, copies) = (Some(OBJECTS * OBJECT), Some(copies));
    let (name, from, min_copies) = (name.to_string(), None, None);
    let request =
        AdminRequest::VolumeCreateKept { name, bytes, from, copies, min_copies, durability: None };
    match net.ask(at, request) {
        Ok(AdminReply::Volume(report)) => report,
        other => panic!("{other:?}"),
    }
}

fn drain(net: &mut Net, disk: u128, wanted: bool) {
    let disk = DiskId(disk);
    let reply = net.ask(0, AdminRequest::DiskDrain { disk, wanted });
    assert!(matches!(reply, Ok(AdminReply::Done)), "{reply:?}");
}

fn write_all(net: &mut Net, name: &str, byte: u8) {
    let connection = net.open(0, name);
    for object in 0..OBJECTS {
        net.write(0, connection, object * OBJECT, byte + object as u8, MIB);
    }
    net.flush(0, connection);
    net.tell(0, engine::Input::Close { connection });
}

#[track_caller]
fn check_all(net: &mut Net, name: &str, byte: u8) {
    let connection = net.open(0, name);
    for object in 0..OBJECTS {
        let read = net.read(0, connection, object * OBJECT, MIB);
        let expected = byte + object as u8;
        assert!(
            read.iter().all(|found| *found == expected),
            "{name} {object}: {:?} {expected}",
            &read[..4]
        );
    }
    net.tell(0, engine::Input::Close { connection });
}

#[test]
fn volumes_of_one_two_and_three_copies_live_beside_one_another() {
    let mut net = Net::cluster(41, THREE);
    net.until("all three vote", 90, |net| {
        (0..3).map(|at| net.status(at).agreement).all(|all| all.voters.len() == 3 && !all.changing)
    });
    let two = create(&mut net, 0, "two", 2);
    assert_eq!((two.copies_wanted, two.min_copies), (2, 1));
    let one = create(&mut net, 1, "one", 1);
    assert_eq!((one.copies_wanted, one.min_copies), (1, 1));
    create(&mut net, 2, "three", 3);
    let names = [("one", 10), ("two", 20), ("three", 30)];
    // Also while the copies are being made.
    for (name, byte) in names {
        net.until("it is known there", 5, |net| {
            net.volumes(0).is_some_and(|all| all.iter().any(|known| known == name))
        });
        write_all(&mut net, name, byte);
    }
    until_whole(&mut net, 0, &[1, 2, 3], None);
    for (name, byte) in names {
        check_all(&mut net, name, byte);
        write_all(&mut net, name, byte + 5);
        check_all(&mut net, name, byte + 5);
    }
    // Everything leaves a disk before it goes, also what has no other copy.
    drain(&mut net, 300, true);
    until_whole(&mut net, 0, &[1, 2], Some(300));
    for (name, byte) in names {
        check_all(&mut net, name, byte + 5);
    }
    net.kill(2);
    for (name, byte) in names {
        check_all(&mut net, name, byte + 5);
    }
    net.start(2);
    net.until("it serves again", 60, |net| net.nodes[2].is_ready);
    drain(&mut net, 300, false);
    until_whole(&mut net, 0, &[1, 2, 3], None);
    // Of two copies one may die.
    net.kill(1);
    write_all(&mut net, "two", 60);
    check_all(&mut net, "two", 60);
    net.start(1);
    net.until("it serves again", 60, |net| net.nodes[1].is_ready);
    until_whole(&mut net, 0, &[1, 2, 3], None);
    for (name, byte) in [("one", 15), ("two", 60), ("three", 35)] {
        check_all(&mut net, name, byte);
    }
}

#[test]
fn another_number_of_copies_is_refused_where_data_would_have_to_move() {
    let mut net = Net::cluster(42, THREE);
    create(&mut net, 0, "v", 2);
    let keep = |copies, min_copies| {
        let name = "v".to_string();
        AdminRequest::VolumeKeep { name, copies, min_copies }
    };
    let kept = |reply| match reply {
        Ok(AdminReply::Volume(VolumeReport { copies_wanted, min_copies, .. })) => {
            (copies_wanted, min_copies)
        }
        other => panic!("{other:?}"),
    };
    until_whole(&mut net, 0, &[2, 3], None);
    write_all(&mut net, "v", 7);
    let refused = net.ask(0, keep(Some(3), None)).expect_err("data would have to move");
    assert_eq!(refused.kind, AdminErrorKind::Conflict);
    assert!(refused.sentence.contains("make a new volume with `--copies 3`"), "{refused:?}");
    assert_eq!(kept(net.ask(0, keep(None, Some(2)))), (2, 2));
    let refused = net.ask(0, keep(None, Some(3))).expect_err("there are only two");
    assert_eq!(refused.kind, AdminErrorKind::Invalid);
    check_all(&mut net, "v", 7);
}
