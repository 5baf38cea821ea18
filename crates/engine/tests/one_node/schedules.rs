//! Schedules: which slot has its snapshot, which does without, and what is kept of them.

use crate::offline::agree;
use crate::support::{MIB, Medium, UNIX_S, World, opened, reads};
use cluster::Command;
use engine::{
    Input, Output,
    admin::{AdminErrorKind, AdminReply, AdminRequest, ScheduleReport},
};
use proto::{Duration, VolumeId};

const MINUTE: u32 = 60;
/// When the first whole minute after the start of a node begins.
const NEXT: u64 = UNIX_S.next_multiple_of(60);
const VM: VolumeId = VolumeId(1);

fn set(name: &str, schedule: &str, every_s: u32, keep: u32) -> AdminRequest {
    AdminRequest::ScheduleSet { name: name.into(), schedule: schedule.into(), every_s, keep }
}

fn scheduled(world: &mut World, name: &str, schedule: &str, every_s: u32, keep: u32) {
    match world.admin(set(name, schedule, every_s, keep)) {
        Ok(AdminReply::Schedule(report)) => {
            assert_eq!((report.every_s, report.keep), (every_s, keep));
        }
        other => panic!("{other:?}"),
    }
}

fn list(world: &mut World, name: Option<&str>) -> Vec<ScheduleReport> {
    match world.admin(AdminRequest::ScheduleList { name: name.map(str::to_owned) }) {
        Ok(AdminReply::Schedules(schedules)) => schedules,
        other => panic!("{other:?}"),
    }
}

fn tags(world: &mut World, name: &str) -> Vec<String> {
    world.snapshots(name, false).into_iter().map(|snapshot| snapshot.tag).collect()
}

/// The tags of the snapshots of the minutes that begin then, seconds after 1970.
fn minutes(schedule: &str, starts: impl IntoIterator<Item = u64>) -> Vec<String> {
    let tag = |start| format!("{schedule}-{}", proto::calendar::stamp(start));
    starts.into_iter().map(tag).collect()
}

/// Lets time pass until it is so many seconds after 1970, for a node that was started then.
fn until(world: &mut World, started_unix_s: u64, unix_s: u64) {
    let end = proto::Time(1) + Duration::from_secs(unix_s - started_unix_s);
    while let Some(due) = world.engine.deadline().filter(|due| *due <= end) {
        world.now = world.now.max(due);
        world.tell(Input::Tick);
    }
    world.now = world.now.max(end);
    world.tell(Input::Tick);
}

/// A stopped node with a volume `vm1` that has a schedule `m` of minutes, set at its start.
fn stopped(keep: u32) -> (Medium, Medium) {
    let mut world = World::found();
    world.create("vm1", 16 * MIB);
    scheduled(&mut world, "vm1", "m", MINUTE, keep);
    world.stop()
}

#[test]
fn each_slot_has_one_snapshot_and_the_oldest_go() {
    let mut world = World::found();
    world.create("vm1", 16 * MIB);
    scheduled(&mut world, "vm1", "m", MINUTE, 3);
    assert!(tags(&mut world, "vm1").is_empty(), "the first one is that of the next slot");
    until(&mut world, UNIX_S, NEXT - 1);
    assert!(tags(&mut world, "vm1").is_empty());
    assert_eq!(world.open(1, "a", "vm1"), opened(16 * MIB));
    for minute in 0..5 {
        until(&mut world, UNIX_S, NEXT + minute * 60);
        world.write(1, 0, 1 + minute as u8, 4096);
        let from = minute.saturating_sub(2);
        let expected = minutes("m", (from..=minute).map(|minute| NEXT + minute * 60));
        assert_eq!(tags(&mut world, "vm1"), expected);
        until(&mut world, UNIX_S, NEXT + minute * 60 + 59);
        assert_eq!(tags(&mut world, "vm1"), expected, "no second one");
    }
    // What was written after its start is not in it.
    let oldest = format!("vm1@{}", tags(&mut world, "vm1")[0]);
    assert_eq!(world.open(2, "a", &oldest), reads(16 * MIB));
    assert_eq!(world.read(2, 0, 512)[0], 2);
    let report = list(&mut world, None).remove(0);
    assert_eq!((report.volume.as_str(), report.schedule.as_str()), ("vm1", "m"));
    assert_eq!((report.snapshots, report.next_unix_s), (3, Some(NEXT + 300)));
    assert_eq!((report.last_slot, report.last_snapshot_unix_s), (NEXT / 60 + 4, Some(NEXT + 240)));
    assert_eq!((&report.problem, report.failing), (&None, false));
    assert_eq!(world.info("vm1").schedules, [report]);
    let snapshots = world.snapshots("vm1", false);
    assert!(snapshots.iter().all(|snapshot| snapshot.schedule.as_deref() == Some("m")));
    assert!(snapshots.iter().all(|snapshot| !snapshot.sealing));

    let remove = AdminRequest::ScheduleRemove { name: "vm1".into(), schedule: "m".into() };
    assert_eq!(world.admin(remove.clone()), Ok(AdminReply::Done));
    until(&mut world, UNIX_S, NEXT + 900);
    assert_eq!(tags(&mut world, "vm1").len(), 3, "they stay, and no more are taken");
    assert!(list(&mut world, Some("vm1")).is_empty());
    let refused = world.refused(remove);
    assert_eq!(refused.kind, AdminErrorKind::NotFound);
    let refused = world.refused(set("vm1", "m", 59, 3));
    assert_eq!(refused.kind, AdminErrorKind::Invalid);
    let refused = world.refused(set("vm2", "m", 60, 3));
    assert_eq!(refused.kind, AdminErrorKind::NotFound);
}

#[test]
fn at_a_start_the_present_slot_is_taken_and_those_missed_are_not() {
    let (disk, journal) = stopped(10);
    // Ten slots later: one snapshot, at once, and none again in that slot however often it starts.
    let (mut disk, mut journal) = (disk, journal);
    for round in 0..3 {
        let mut world = World::start_at(NEXT + 600 + round, disk, journal, false);
        assert_eq!(tags(&mut world, "vm1"), minutes("m", [NEXT + 600]));
        (disk, journal) = if round == 1 { world.kill() } else { world.stop() };
    }
    // It goes on with the next one.
    let mut world = World::start_at(NEXT + 630, disk, journal, false);
    until(&mut world, NEXT + 630, NEXT + 659);
    assert_eq!(tags(&mut world, "vm1").len(), 1);
    until(&mut world, NEXT + 630, NEXT + 660);
    assert_eq!(tags(&mut world, "vm1"), minutes("m", [NEXT + 600, NEXT + 660]));
}

#[test]
fn a_clock_that_is_set_between_starts_never_makes_two_of_a_slot_nor_a_storm() {
    let (disk, journal) = stopped(10);
    let mut world = World::start_at(NEXT + 600, disk, journal, false);
    assert_eq!(tags(&mut world, "vm1"), minutes("m", [NEXT + 600]));
    // Back by five minutes: nothing until the time that was is there again.
    let (disk, journal) = world.kill();
    let back = NEXT + 300;
    let mut world = World::start_at(back, disk, journal, false);
    until(&mut world, back, NEXT + 659);
    assert_eq!(tags(&mut world, "vm1"), minutes("m", [NEXT + 600]));
    let report = list(&mut world, None).remove(0);
    assert_eq!(report.next_unix_s, Some(NEXT + 660));
    until(&mut world, back, NEXT + 661);
    assert_eq!(tags(&mut world, "vm1"), minutes("m", [NEXT + 600, NEXT + 660]));
    // Forth by a year: one.
    let (disk, journal) = world.kill();
    let far = NEXT + 366 * 86_400;
    let mut world = World::start_at(far, disk, journal, false);
    until(&mut world, far, far + 59);
    assert_eq!(tags(&mut world, "vm1"), minutes("m", [NEXT + 600, NEXT + 660, far]));
    // And back: people are told why nothing happens, and setting it again helps.
    let (disk, journal) = world.kill();
    let mut world = World::start_at(NEXT + 720, disk, journal, false);
    until(&mut world, NEXT + 720, NEXT + 1_000);
    assert_eq!(tags(&mut world, "vm1").len(), 3);
    let report = list(&mut world, None).remove(0);
    let problem = report.problem.expect("it lies ahead");
    assert!(report.failing && problem.contains("which lies ahead"), "{problem}");
    match world.admin(AdminRequest::Status) {
        Ok(AdminReply::Status(status)) => {
            let warns = |w: &String| w.starts_with("schedule m of volume vm1 takes no snapshots");
            assert!(status.warnings.iter().any(warns), "{:?}", status.warnings);
        }
        other => panic!("{other:?}"),
    }
    let remove = AdminRequest::ScheduleRemove { name: "vm1".into(), schedule: "m".into() };
    assert_eq!(world.admin(remove), Ok(AdminReply::Done));
    scheduled(&mut world, "vm1", "m", MINUTE, 10);
    until(&mut world, NEXT + 720, NEXT + 1_020);
    assert_eq!(tags(&mut world, "vm1").last(), minutes("m", [NEXT + 1_020]).last());
}

#[test]
fn a_tag_that_somebody_took_is_evaded() {
    let mut world = World::found();
    world.create("vm1", 16 * MIB);
    scheduled(&mut world, "vm1", "m", MINUTE, 2);
    let taken = minutes("m", [NEXT]).remove(0);
    world.snapshot("vm1", &taken);
    world.snapshot("vm1", &format!("{taken}-2"));
    until(&mut world, UNIX_S, NEXT);
    let expected = [taken.clone(), format!("{taken}-2"), format!("{taken}-3")];
    assert_eq!(tags(&mut world, "vm1"), expected);
    until(&mut world, UNIX_S, NEXT + 180);
    // Somebody's own snapshots never go by themselves, whatever they are called.
    let later = minutes("m", [NEXT + 120, NEXT + 180]);
    assert_eq!(tags(&mut world, "vm1"), [&expected[..2], &later].concat());
}

#[test]
fn what_is_read_or_locked_stays_until_it_can_go() {
    let (disk, journal) = stopped(1);
    let mut world = World::start_at(NEXT, disk, journal, false);
    let tag = |minute: u64| minutes("m", [NEXT + minute * 60]).remove(0);
    let (disk, mut journal) = world.stop();
    let locked = tag(0);
    let until_unix_s = NEXT + 290;
    let lock = Command::LockSnapshot { volume: VM, tag: locked.clone(), until_unix_s };
    assert!(agree(&mut journal, vec![lock]).iter().all(Result::is_ok));
    world = World::start_at(NEXT + 1, disk, journal, false);
    until(&mut world, NEXT + 1, NEXT + 60);
    assert_eq!(tags(&mut world, "vm1"), [locked.clone(), tag(1)]);
    assert_eq!(world.open(1, "a", &format!("vm1@{}", tag(1))), reads(16 * MIB));
    until(&mut world, NEXT + 1, NEXT + 181);
    assert_eq!(tags(&mut world, "vm1"), [locked.clone(), tag(1), tag(3)]);
    assert_eq!(world.read(1, 0, 512)[0], 0);
    // Its reader goes, and it goes at once; the locked one with the first slot after its lock.
    world.close(1);
    assert_eq!(tags(&mut world, "vm1"), [locked.clone(), tag(3)]);
    until(&mut world, NEXT + 1, NEXT + 299);
    assert_eq!(tags(&mut world, "vm1"), [locked, tag(4)]);
    until(&mut world, NEXT + 1, NEXT + 301);
    assert_eq!(tags(&mut world, "vm1"), [tag(5)]);
    // Fewer are kept from now on, or more.
    scheduled(&mut world, "vm1", "m", MINUTE, 4);
    until(&mut world, NEXT + 1, NEXT + 490);
    assert_eq!(tags(&mut world, "vm1").len(), 4);
    scheduled(&mut world, "vm1", "m", MINUTE, 2);
    assert_eq!(tags(&mut world, "vm1"), [tag(7), tag(8)]);
}

#[test]
fn a_volume_in_the_trash_has_its_schedules_at_rest() {
    let (disk, mut journal) = stopped(10);
    let trash = Command::TrashVolume {
        volume: VM,
        with_snapshots: true,
        unix_s: UNIX_S,
        expires_unix_s: u64::MAX,
    };
    assert!(agree(&mut journal, vec![trash]).iter().all(Result::is_ok));
    let mut world = World::start_at(NEXT + 60, disk, journal, false);
    until(&mut world, NEXT + 60, NEXT + 300);
    assert!(list(&mut world, None).is_empty());
    assert_eq!(world.engine.map().volume(VM).expect("in the trash").snapshots.len(), 0);
    let (disk, mut journal) = world.kill();
    let undelete = Command::Undelete { volume: VM, name: "vm1".into() };
    assert!(agree(&mut journal, vec![undelete]).iter().all(Result::is_ok));
    let mut world = World::start_at(NEXT + 360, disk, journal, false);
    assert_eq!(tags(&mut world, "vm1"), minutes("m", [NEXT + 360]));
}

#[test]
fn a_slot_is_tried_again_while_the_snapshot_before_is_being_taken() {
    let mut world = World::found();
    world.create("vm1", 16 * MIB);
    scheduled(&mut world, "vm1", "m", MINUTE, 10);
    until(&mut world, UNIX_S, NEXT - 1);
    assert_eq!(world.open(1, "a", "vm1"), opened(16 * MIB));
    // The disk stands still: the first snapshot is agreed and cannot be settled.
    world.stalled = true;
    world.noisy = true;
    until(&mut world, UNIX_S, NEXT + 61);
    assert_eq!(tags(&mut world, "vm1"), minutes("m", [NEXT]));
    let report = list(&mut world, None).remove(0);
    let problem = report.problem.expect("the second is being tried");
    assert!(problem.contains("is still being taken"), "{problem}");
    assert_eq!((report.failing, report.next_unix_s), (false, Some(NEXT + 60)));
    until(&mut world, UNIX_S, NEXT + 110);
    assert!(list(&mut world, None)[0].failing);
    world.unstall();
    until(&mut world, UNIX_S, NEXT + 119);
    assert_eq!(tags(&mut world, "vm1"), minutes("m", [NEXT, NEXT + 60]));
    assert_eq!(list(&mut world, None)[0].problem, None);
    // One whose time ends before it could be taken stays missed, and that is told.
    world.stalled = true;
    world.said.clear();
    until(&mut world, UNIX_S, NEXT + 121);
    until(&mut world, UNIX_S, NEXT + 241);
    world.unstall();
    until(&mut world, UNIX_S, NEXT + 299);
    let expected = minutes("m", [NEXT, NEXT + 60, NEXT + 120, NEXT + 240]);
    assert_eq!(tags(&mut world, "vm1"), expected);
}

#[test]
fn a_stop_at_the_very_moment_leaves_nothing_half_done() {
    let mut world = World::found();
    world.create("vm1", 16 * MIB);
    scheduled(&mut world, "vm1", "m", MINUTE, 10);
    until(&mut world, UNIX_S, NEXT - 1);
    world.now = proto::Time(1) + Duration::from_secs(NEXT - UNIX_S);
    world.tell_together(vec![Input::Tick, Input::Stop]);
    assert!(matches!(world.hear(), Output::Stopped));
    let (disk, journal) = world.kill();
    let mut world = World::start_at(NEXT + 1, disk, journal, false);
    let snapshots = world.snapshots("vm1", false);
    assert_eq!(tags(&mut world, "vm1"), minutes("m", [NEXT]));
    assert!(!snapshots[0].sealing);
    assert!(world.info("vm1").attachment.is_none());
}

#[test]
fn many_schedules_that_are_due_at_once_go_through_a_few_at_a_time() {
    let mut world = World::found();
    for number in 0..40 {
        let name = format!("v{number:02}");
        world.create(&name, MIB);
        for schedule in ["a", "b", "c"] {
            scheduled(&mut world, &name, schedule, MINUTE, 1);
        }
    }
    until(&mut world, UNIX_S, NEXT - 1);
    let before = world.engine.map().epoch().0;
    // Nothing is due, so nothing happens, however often it is looked.
    for _ in 0..100 {
        world.tell(Input::Tick);
    }
    assert_eq!(world.engine.map().epoch().0, before);
    until(&mut world, UNIX_S, NEXT + 59);
    for number in 0..40 {
        let mut found = tags(&mut world, &format!("v{number:02}"));
        found.sort();
        let expected = ["a", "b", "c"].map(|name| minutes(name, [NEXT]).remove(0));
        assert_eq!(found, expected);
    }
}
