//! The trash, locks, and what they have to do with time and space.

use crate::support::{DISK, MIB, Medium, TRASH_EXPIRY_S, UNIX_S, World, opened, reads};
use engine::{
    Input, Output,
    admin::{
        AdminError, AdminErrorKind, AdminReply, AdminRequest, AdminToken, FlattenAction,
        StatusReport, TrashChoice, TrashReport,
    },
};
use proto::{Buffer, Duration, limits::TRASH_START_GRACE_S};
use volume::{Answer, Completion, Operation};

const HOUR_S: u64 = 3600;

fn delete(name: &str, keep_s: Option<u64>) -> AdminRequest {
    AdminRequest::VolumeDelete { name: name.into(), with_snapshots: true, keep_s }
}

fn undelete(which: &str, new_name: Option<&str>) -> AdminRequest {
    AdminRequest::TrashUndelete { which: which.into(), new_name: new_name.map(str::to_owned) }
}

fn purge(which: &str) -> AdminRequest {
    AdminRequest::TrashPurge { what: TrashChoice::One(which.into()) }
}

fn lock(name: &str, tag: &str, until_unix_s: u64) -> AdminRequest {
    AdminRequest::SnapshotLock { name: name.into(), tag: tag.into(), until_unix_s }
}

fn delete_snapshot(name: &str, tag: &str) -> AdminRequest {
    AdminRequest::SnapshotDelete { name: name.into(), tag: tag.into() }
}

impl World {
    fn trash(&mut self, name: &str, keep_s: Option<u64>) -> TrashReport {
        match self.admin(delete(name, keep_s)) {
            Ok(AdminReply::Trashed(report)) => report,
            other => panic!("{other:?}"),
        }
    }

    fn in_trash(&mut self) -> Vec<TrashReport> {
        match self.admin(AdminRequest::TrashList) {
            Ok(AdminReply::Trash(reports)) => reports,
            other => panic!("{other:?}"),
        }
    }

    fn names_in_trash(&mut self) -> Vec<String> {
        self.in_trash().into_iter().map(|report| report.name).collect()
    }

    fn status(&mut self) -> StatusReport {
        match self.admin(AdminRequest::Status) {
            Ok(AdminReply::Status(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    /// A volume with this byte in its first `mib` MiB.
    fn filled(&mut self, name: &str, byte: u8, mib: u64) {
        self.create(name, 256 * MIB);
        self.open(90, "filler", name);
        for at in 0..mib {
            self.write(90, at * MIB, byte, MIB);
        }
        self.close(90);
    }

    /// Lets a long time pass at once, and a little more in steps.
    fn leap(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
        self.tell(Input::Tick);
        self.pass(1);
    }

    /// The same media with the program started anew, its clock showing this.
    fn again(self, unix_s: u64) -> World {
        let (disk, journal): (Medium, Medium) = self.kill();
        let mut world = World::start_at(unix_s, disk, journal, false);
        world.noisy = true;
        world
    }
}

#[test]
fn what_was_deleted_by_mistake_comes_back_with_all_it_had() {
    let mut world = World::found();
    world.filled("web", 7, 1);
    world.snapshot("web", "monday");
    world.open(1, "a", "web");
    world.write(1, 0, 8, 4096);
    let held = world.refused(delete("web", None));
    assert_eq!(held.kind, AdminErrorKind::Conflict);
    world.close(1);
    let with_snapshots = false;
    let bare = AdminRequest::VolumeDelete { name: "web".into(), with_snapshots, keep_s: None };
    assert!(world.refused(bare).sentence.contains("has 1 snapshots"));

    let used = world.info("web").used_bytes;
    let report = world.trash("web", None);
    assert_eq!((report.name.as_str(), report.bytes, report.snapshots), ("web", 256 * MIB, 1));
    assert_eq!((report.used_bytes, used), (MIB + 4096, MIB + 4096));
    assert_eq!(report.expires_unix_s - report.deleted_unix_s, TRASH_EXPIRY_S);
    assert_eq!(world.in_trash(), std::slice::from_ref(&report));
    let status = world.status();
    assert_eq!((status.volumes, status.provisioned_bytes, status.snapshots), (0, 0, 0));
    assert_eq!((status.trash_volumes, status.trash_bytes), (1, used));
    assert_eq!((status.used_bytes, status.hidden_layers), (used, 0));

    // The name is free, and two of one name are told apart.
    world.create("web", 8 * MIB);
    let second = world.trash("web", Some(HOUR_S));
    let ambiguous = world.refused(undelete("web", None));
    assert_eq!(ambiguous.kind, AdminErrorKind::Conflict);
    for id in [report.volume, second.volume] {
        assert!(ambiguous.sentence.contains(&format!("{id} (deleted ")), "{ambiguous}");
    }
    assert_eq!(world.refused(purge("web")), ambiguous);
    let first_id = report.volume.to_string();
    assert_eq!(world.refused(undelete("other", None)).kind, AdminErrorKind::NotFound);
    assert_eq!(world.refused(undelete("999", None)).kind, AdminErrorKind::NotFound);

    // Over a kill, under another name, and then under its own.
    let mut world = world.again(UNIX_S + 60);
    assert_eq!(world.volume(undelete(&first_id, Some("old"))).name, "old");
    assert_eq!(world.names_in_trash(), ["web"]);
    assert_eq!(world.open(1, "a", "old"), opened(256 * MIB));
    assert_eq!(world.read(1, 0, 8192), [vec![8; 4096], vec![7; 4096]].concat());
    assert_eq!(world.open(2, "b", "old@monday"), reads(256 * MIB));
    assert_eq!(world.read(2, 0, 8192), vec![7; 8192]);
    assert_eq!(world.volume(undelete("web", None)).bytes, 8 * MIB);
    assert_eq!(world.refused(undelete(&first_id, None)).kind, AdminErrorKind::NotFound);
    world.create("third", MIB);
    world.trash("third", None);
    world.create("third", MIB);
    let taken = world.refused(undelete("third", None));
    assert_eq!(taken.kind, AdminErrorKind::Conflict);
}

/// Clients see nothing of what is in the trash, whatever they ask.
#[test]
fn clients_see_nothing_of_what_is_in_the_trash() {
    let mut world = World::found();
    world.create("web", MIB);
    world.create("other", MIB);
    world.snapshot("web", "monday");
    let unknown = |answer: Answer, name: &str| match answer {
        Answer::Unknown { sentence } => assert!(sentence.contains(name), "{sentence}"),
        other => panic!("{other:?}"),
    };
    let never = match world.open(1, "a", "never") {
        Answer::Unknown { sentence } => sentence,
        other => panic!("{other:?}"),
    };
    world.trash("web", None);
    world.tell(Input::List { connection: engine::ConnectionId(2) });
    let Output::Answer { answer: Answer::Listed(names), .. } = world.hear() else { panic!() };
    assert_eq!(names, ["other"]);
    for name in ["web", "web@monday", "1"] {
        unknown(world.open(3, "a", name), name.split('@').next().unwrap_or(name));
        let connection = engine::ConnectionId(4);
        world.tell(Input::Describe { connection, name: name.into() });
        let Output::Answer { answer, .. } = world.hear() else { panic!() };
        match answer {
            Answer::Unknown { sentence } if !name.contains('@') => {
                assert_eq!(sentence.replace(name, "never"), never);
            }
            answer => unknown(answer, "web"),
        }
    }
    for request in [
        AdminRequest::VolumeInfo { name: "web".into() },
        AdminRequest::SnapshotList { name: "web".into(), reclaimable: true },
        AdminRequest::LayerList { name: Some("web".into()) },
        delete_snapshot("web", "monday"),
        lock("web", "monday", UNIX_S + HOUR_S),
    ] {
        assert_eq!(world.refused(request).kind, AdminErrorKind::NotFound);
    }
}

/// A client that asked at the same moment is told that the volume is gone, and no more.
#[test]
fn a_client_that_comes_while_a_volume_is_deleted_learns_only_that() {
    let mut world = World::found();
    world.create("web", MIB);
    let client = engine::Client { identity: "a".into(), description: "process a".into() };
    let connection = engine::ConnectionId(1);
    world.tell_together(vec![
        Input::Admin { token: AdminToken(70), request: delete("web", None) },
        Input::Open { connection, client, name: "web".into() },
    ]);
    let mut answered = 0;
    while answered < 2 {
        answered += 1;
        match world.hear() {
            Output::Answer { answer: Answer::Refused { sentence }, .. } => {
                assert!(sentence.contains("deleted meanwhile"), "{sentence}");
                assert!(!sentence.contains("trash"), "{sentence}");
            }
            Output::Admin { result, .. } => assert!(result.is_ok(), "{result:?}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn reports_of_others_tell_what_is_in_the_trash() {
    let mut world = World::found();
    world.filled("golden", 3, 1);
    world.snapshot("golden", "v1");
    let clone = |new_name: &str| AdminRequest::VolumeClone {
        name: "golden".into(),
        tag: "v1".into(),
        new_name: new_name.into(),
    };
    world.volume(clone("a"));
    world.volume(clone("b"));
    world.trash("b", None);
    assert_eq!(world.snapshots("golden", false)[0].clones, ["a", "b (in trash)"]);
    // What the trash shows as well is not freed by deleting the snapshot.
    assert_eq!(world.snapshots("golden", true)[0].reclaimable_bytes, Some(0));
    world.trash("golden", None);
    let origin = world.info("a").origin.expect("it is a clone");
    assert_eq!(origin.name.as_deref(), Some("golden@v1 (in trash)"));
    let Ok(AdminReply::Layers(layers)) = world.admin(AdminRequest::LayerList { name: None }) else {
        panic!()
    };
    let told: Vec<(Option<&str>, bool)> =
        layers.iter().map(|layer| (layer.name.as_deref(), layer.in_trash)).collect();
    assert_eq!(
        told,
        [(Some("golden@v1"), true), (Some("golden"), true), (Some("a"), false), (Some("b"), true)]
    );
    // Deleting for good what others show takes nothing from them.
    assert_eq!(
        world.admin(AdminRequest::TrashPurge { what: TrashChoice::All }),
        Ok(AdminReply::Done)
    );
    assert_eq!(world.open(1, "c", "a"), opened(256 * MIB));
    assert_eq!(world.read(1, 0, 4096), vec![3; 4096]);
    assert_eq!(world.status().hidden_layers, 1);
}

/// The cut-off end of a volume, a snapshot being taken, flattening: in the trash the node leaves
/// them alone, and goes on afterwards.
#[test]
fn what_a_volume_wanted_waits_in_the_trash_and_goes_on_after_it() {
    let mut world = World::found();
    world.noisy = true;
    world.filled("web", 5, 16);
    world.snapshot("web", "v1");
    let clone = AdminRequest::VolumeClone {
        name: "web".into(),
        tag: "v1".into(),
        new_name: "clone".into(),
    };
    world.volume(clone);
    let resize =
        AdminRequest::VolumeResize { name: "web".into(), bytes: 4 * MIB, allow_shrink: true };
    let flatten =
        AdminRequest::VolumeFlatten { name: "clone".into(), action: FlattenAction::Start };
    // Nothing of it can be done while the disk says nothing, and then it is too late.
    world.stalled = true;
    let asked = [resize, flatten, delete("web", None), delete("clone", None)];
    for (number, request) in asked.into_iter().enumerate() {
        world.tell(Input::Admin { token: AdminToken(500 + number as u64), request });
    }
    world.unstall();
    let mut answers = std::collections::BTreeMap::new();
    while answers.len() < 4 {
        if let Output::Admin { token, result } = world.hear() {
            answers.insert(token.0, *result);
        }
    }
    for number in [502, 503] {
        let answer = &answers[&number];
        assert!(matches!(answer, Ok(AdminReply::Trashed(_))), "{number}: {answer:?}");
    }
    let mut world = world.again(UNIX_S + 60);
    assert_eq!(world.names_in_trash(), ["web", "clone"]);
    world.pass(60);
    let map = world.engine.map();
    assert!(map.volumes().all(|volume| volume.attachments.is_empty() && volume.trash.is_some()));
    let flattens = map.volumes().filter(|volume| volume.flattening).count();
    assert_eq!(flattens, 1, "it was not left alone");
    world.volume(undelete("clone", None));
    world.pass(60);
    assert!(world.info("clone").origin.is_none(), "flattening goes on");
    assert_eq!(world.volume(undelete("web", None)).bytes, 4 * MIB);
    let grow =
        AdminRequest::VolumeResize { name: "web".into(), bytes: 256 * MIB, allow_shrink: false };
    world.volume(grow);
    assert_eq!(world.open(1, "a", "web"), opened(256 * MIB));
    assert_eq!(world.read(1, 4 * MIB, 4096), vec![0; 4096]);
    assert_eq!(world.read(1, 0, 4096), vec![5; 4096]);
}

#[test]
fn what_has_expired_goes_and_not_a_moment_before() {
    let mut world = World::found();
    world.noisy = true;
    world.filled("a", 1, 1);
    world.filled("b", 2, 1);
    world.create("c", MIB);
    world.trash("a", Some(2 * HOUR_S));
    world.trash("b", Some(HOUR_S));
    assert_eq!(world.names_in_trash(), ["b", "a"]);
    world.leap(HOUR_S - 60);
    assert_eq!(world.names_in_trash(), ["b", "a"]);
    world.leap(60);
    assert_eq!(world.names_in_trash(), ["a"]);
    world.pass(10);
    assert_eq!(world.used_bytes(), MIB);
    world.volume(undelete("a", None));
    world.leap(2 * HOUR_S);
    assert_eq!(world.info("a").used_bytes, MIB);
    // Without a trash, at once.
    assert_eq!(world.admin(delete("a", Some(0))), Ok(AdminReply::Done));
    assert_eq!((world.names_in_trash().len(), world.used_bytes()), (0, 0));
    let too_long = world.refused(delete("c", Some(u64::MAX)));
    assert_eq!(too_long.kind, AdminErrorKind::Invalid);
    world.info("c");
}

/// A machine that came up with a wrong clock emptied the trash before anybody could see.
#[test]
fn nothing_expires_in_the_first_minutes_after_a_start() {
    let mut world = World::found();
    for name in ["a", "b", "c"] {
        world.create(name, MIB);
        world.trash(name, Some(HOUR_S));
    }
    let mut world = world.again(UNIX_S + 100 * TRASH_EXPIRY_S);
    world.leap(TRASH_START_GRACE_S - 60);
    assert_eq!(world.names_in_trash().len(), 3);
    // Whoever notices in time takes out what is to stay.
    world.volume(undelete("b", None));
    world.leap(120);
    assert_eq!(world.names_in_trash().len(), 0);
    world.info("b");
}

/// A clock that was set back kept things in the trash for as many years.
#[test]
fn a_clock_that_was_set_back_keeps_nothing_for_ever() {
    let mut world = World::found();
    world.create("a", MIB);
    world.create("b", MIB);
    world.trash("a", Some(2 * HOUR_S));
    world.trash("b", Some(100));
    let mut world = world.again(10);
    world.create("d", MIB);
    world.trash("d", Some(3 * HOUR_S));
    assert_eq!(world.names_in_trash().len(), 3);
    world.leap(TRASH_START_GRACE_S);
    assert_eq!(world.names_in_trash(), ["d", "a"]);
    world.leap(2 * HOUR_S);
    assert_eq!(world.names_in_trash(), ["d"]);
    world.leap(HOUR_S);
    assert_eq!(world.names_in_trash().len(), 0);
}

/// A clock that was ahead at the start and was corrected since let things go before their time.
#[test]
fn a_clock_that_was_ahead_and_is_corrected_lets_nothing_go_before_its_time() {
    let mut world = World::found();
    world.create("a", MIB);
    world.create("b", MIB);
    world.snapshot("b", "keep");
    let until = UNIX_S + 10 * HOUR_S;
    world.admin(lock("b", "keep", until)).expect("locked");
    world.trash("a", Some(5 * HOUR_S));
    // One that is set ahead while the node runs changes nothing.
    let ahead = 24 * HOUR_S;
    world.tell(Input::WallClock { unix_s: UNIX_S + ahead });
    world.leap(TRASH_START_GRACE_S + 60);
    assert_eq!(world.names_in_trash(), ["a"]);
    // A day ahead at the start; somebody sees it within the first minutes, and sets it right.
    let mut world = world.again(UNIX_S + ahead);
    world.leap(120);
    world.tell(Input::WallClock { unix_s: UNIX_S + 120 });
    world.leap(HOUR_S);
    world.tell(Input::WallClock { unix_s: UNIX_S + 120 + HOUR_S });
    assert_eq!(world.names_in_trash(), ["a"], "it goes by a clock that was wrong");
    let early = world.refused(delete_snapshot("b", "keep"));
    assert!(early.sentence.contains("locked"), "{early}");
    world.leap(3 * HOUR_S);
    assert_eq!(world.names_in_trash(), ["a"]);
    world.leap(HOUR_S);
    assert_eq!(world.names_in_trash().len(), 0, "its time is over");
    world.leap(5 * HOUR_S);
    assert_eq!(world.admin(delete_snapshot("b", "keep")), Ok(AdminReply::Done));
}

/// A number could be the id of one volume in the trash and the name of another.
#[test]
fn a_number_that_names_one_volume_in_the_trash_and_is_the_id_of_another_is_refused() {
    let mut world = World::found();
    let id = world.create("first", MIB).volume;
    world.create(&id.to_string(), 2 * MIB);
    // In the trash alone, a number is a name, or an id.
    world.trash(&id.to_string(), None);
    assert_eq!(world.volume(undelete(&id.to_string(), None)).bytes, 2 * MIB);
    world.trash("first", None);
    assert_eq!(world.volume(undelete(&id.to_string(), None)).name, "first");
    world.trash("first", None);
    let named = world.trash(&id.to_string(), None);
    for request in [undelete(&id.to_string(), Some("x")), purge(&id.to_string())] {
        let error = world.refused(request);
        assert_eq!(error.kind, AdminErrorKind::Conflict);
        let told = "the id of another (named first); name the first by its id";
        assert!(error.sentence.contains(told), "{error}");
    }
    assert_eq!(world.names_in_trash().len(), 2);
    assert_eq!(world.volume(undelete(&named.volume.to_string(), Some("x"))).bytes, 2 * MIB);
    assert_eq!(world.admin(purge(&id.to_string())), Ok(AdminReply::Done));
    assert_eq!(world.names_in_trash().len(), 0);
}

#[test]
fn all_that_has_expired_goes_though_only_a_few_at_a_time() {
    let mut world = World::found();
    world.noisy = true;
    for number in 0..50 {
        let name = format!("v{number}");
        world.create(&name, MIB);
        world.trash(&name, Some(HOUR_S));
    }
    world.create("kept", MIB);
    world.leap(2 * HOUR_S);
    assert_eq!(world.names_in_trash().len(), 0);
    for number in 0..50 {
        let name = format!("v{number}");
        world.create(&name, MIB);
        world.trash(&name, None);
    }
    let all = AdminRequest::TrashPurge { what: TrashChoice::All };
    assert_eq!(world.admin(all.clone()), Ok(AdminReply::Done));
    assert_eq!(world.names_in_trash().len(), 0);
    assert_eq!(world.admin(all), Ok(AdminReply::Done));
    assert_eq!(world.status().volumes, 1);
}

/// Writes new data to a volume until there is no more of it; every write must find space.
fn fill_on(world: &mut World, connection: u64, from_mib: u64, count: u64) -> Option<u64> {
    (from_mib..from_mib + count).find(|mib| {
        let mut buffer = Buffer::zeroed(MIB as usize);
        buffer.as_mut_slice().fill(9);
        let operation = Operation::Write { buffer, fua: false };
        !matches!(world.request(connection, mib * MIB, MIB, operation), Ok(Completion::Done))
    })
}

/// Writes got "no space" while the trash kept what nobody wanted.
#[test]
fn what_is_in_the_trash_gives_way_to_new_data_in_order() {
    let mut world = World::found();
    world.noisy = true;
    world.tell(Input::MediumSpace { disk: DISK, free_bytes: 1 << 40 });
    world.filled("late", 1, 40);
    world.filled("soon", 2, 40);
    world.create("empty", MIB);
    world.filled("kept", 3, 40);
    let keeps = [("late", 3), ("soon", 2), ("empty", 1)];
    for (name, hours) in keeps {
        world.trash(name, Some(hours * HOUR_S));
    }
    world.create("new", 512 * MIB);
    world.open(1, "a", "new");
    // 256 MiB are the limit; 120 are taken.
    assert_eq!(fill_on(&mut world, 1, 0, 100), None);
    assert_eq!(world.names_in_trash(), ["empty", "soon", "late"]);
    assert_eq!(fill_on(&mut world, 1, 100, 50), None);
    // What has nothing to give stays.
    assert_eq!(world.names_in_trash(), ["empty", "late"]);
    assert_eq!(fill_on(&mut world, 1, 150, 35), None);
    assert_eq!(world.names_in_trash(), ["empty"]);
    let status = world.status();
    assert_eq!(status.trash_gave_way, 2);
    let warning = status.warnings.iter().find(|warning| warning.contains("late (id 1)"));
    assert!(warning.is_some(), "{:?}", status.warnings);
    // Then it is full, as ever, and says so at once.
    let full = fill_on(&mut world, 1, 185, 200);
    assert!(full.is_some_and(|at| at < 230), "{full:?}");
    assert!(world.status().disks[0].full);
    world.open(2, "b", "kept");
    assert_eq!(world.read(2, 39 * MIB, 4096), vec![3; 4096]);
    assert_eq!(world.read(1, 184 * MIB, 4096), vec![9; 4096]);
}

/// A file that may grow seems to be full at a start, until it is known what its file system has
/// free: what was in the trash went then.
#[test]
fn nothing_gives_way_before_it_is_known_how_far_the_disk_can_grow() {
    let mut world = World::start_without_limit(Medium::default(), Medium::default(), true);
    world.filled("old", 1, 4);
    world.create("kept", 512 * MIB);
    world.open(1, "a", "kept");
    assert_eq!(fill_on(&mut world, 1, 0, 30), None);
    world.disk.full = true;
    assert!(fill_on(&mut world, 1, 30, 200).is_some(), "nothing is left");
    world.close(1);
    world.trash("old", Some(24 * HOUR_S));
    world.pass(2);
    let (mut disk, journal) = world.kill();
    disk.full = false;
    let mut world = World::start_without_limit(disk, journal, false);
    world.pass(2);
    assert_eq!(world.names_in_trash(), ["old"], "it went before anything was known");
    world.tell(Input::MediumSpace { disk: DISK, free_bytes: 1 << 40 });
    world.pass(2);
    assert_eq!(world.names_in_trash(), ["old"], "there is room");
    world.disk.full = true;
    world.tell(Input::MediumSpace { disk: DISK, free_bytes: 0 });
    world.open(1, "a", "kept");
    assert!(fill_on(&mut world, 1, 300, 200).is_some(), "nothing is left");
    assert_eq!(world.names_in_trash().len(), 0, "now it is short of space");
}

/// Many writes at once find the last of the space; all of them wait for what gives way.
#[test]
fn writes_that_find_no_space_wait_for_the_trash() {
    let mut world = World::found();
    world.noisy = true;
    world.filled("old", 1, 100);
    world.create("new", 512 * MIB);
    world.open(1, "a", "new");
    world.trash("old", None);
    let inputs = (0..200).map(|mib| {
        let mut buffer = Buffer::zeroed(MIB as usize);
        buffer.as_mut_slice().fill(9);
        let operation = Operation::Write { buffer, fua: false };
        let (id, offset) = (volume::RequestId(10_000 + mib), mib * MIB);
        let request = volume::Request { id, offset, length: MIB, operation };
        Input::Request { connection: engine::ConnectionId(1), request }
    });
    world.tell_together(inputs.collect());
    for number in 0..200 {
        match world.hear() {
            Output::Complete { result: Ok(Completion::Done), .. } => {}
            other => panic!("{number}: {other:?}"),
        }
    }
    assert_eq!(world.status().trash_gave_way, 1);
    assert_eq!(world.read(1, 199 * MIB, 4096), vec![9; 4096]);
}

/// The journal takes no command: then nothing can give way, and nobody is kept waiting for it.
#[test]
fn writes_do_not_wait_for_a_trash_that_cannot_be_emptied() {
    let mut world = World::found();
    world.noisy = true;
    world.filled("old", 1, 100);
    world.create("new", 512 * MIB);
    world.open(1, "a", "new");
    world.trash("old", None);
    world.journal.broken = true;
    assert!(fill_on(&mut world, 1, 0, 200).is_some());
    assert_eq!(world.names_in_trash(), ["old"]);
    assert!(world.status().disks[0].full);
}

/// The next owner of freed blocks never reads old data: what was deleted, purged, gave way or was
/// discarded reads as zero.
#[test]
fn row_49_freed_space_reads_as_zero_for_its_next_owner() {
    let mut world = World::found();
    world.noisy = true;
    for round in 0..4u8 {
        let name = format!("secret{round}");
        world.filled(&name, 0xee, 60);
        match round {
            0 => assert_eq!(world.admin(delete(&name, Some(0))), Ok(AdminReply::Done)),
            1 => {
                world.trash(&name, None);
                assert_eq!(world.admin(purge(&name)), Ok(AdminReply::Done));
            }
            2 => {
                world.trash(&name, Some(60));
                world.leap(TRASH_START_GRACE_S);
            }
            _ => {
                world.open(1, "a", &name);
                let length = 256 * MIB;
                let gone = world.request(1, 0, length, Operation::Discard { fua: false });
                assert!(gone.is_ok(), "{gone:?}");
                world.close(1);
            }
        }
        world.pass(10);
        let next = format!("next{round}");
        world.create(&next, 256 * MIB);
        world.open(2, "b", &next);
        // Its own blocks lie where the old ones were; around them nothing may show.
        for mib in 0..60 {
            world.write(2, mib * MIB + 4096, 1, 4096);
        }
        for mib in 0..60 {
            let read = world.read(2, mib * MIB, MIB);
            let own = 4096..8192;
            let is_right = |(at, byte): (usize, &u8)| *byte == u8::from(own.contains(&at));
            assert!(read.iter().enumerate().all(is_right), "{next} shows old data at {mib} MiB");
        }
        world.close(2);
        assert_eq!(world.admin(delete(&next, Some(0))), Ok(AdminReply::Done));
        world.pass(10);
    }
}

fn is_locked(error: &AdminError, until: &str) -> bool {
    error.kind == AdminErrorKind::Conflict && error.sentence.contains(until)
}

/// Whatever is asked, and whatever the clock shows after a restart, as long as it shows less than
/// the end of the lock.
#[test]
fn a_locked_snapshot_survives_every_command_and_a_clock_set_back_and_forth() {
    let until = UNIX_S + 10 * TRASH_EXPIRY_S;
    let words = proto::calendar::date(until);
    let mut world = World::found();
    world.filled("web", 6, 1);
    world.snapshot("web", "keep");
    world.snapshot("web", "other");
    match world.admin(lock("web", "keep", until)) {
        Ok(AdminReply::Snapshot(report)) => assert_eq!(report.locked_until_unix_s, Some(until)),
        other => panic!("{other:?}"),
    }
    let check = |world: &mut World| {
        for request in [
            delete_snapshot("web", "keep"),
            delete("web", None),
            delete("web", Some(0)),
            delete("web", Some(1)),
        ] {
            let error = world.refused(request.clone());
            assert!(is_locked(&error, &words), "{request:?}: {error}");
        }
        let shorter = world.refused(lock("web", "keep", until - 1));
        assert!(shorter.sentence.contains("cannot be made shorter"), "{shorter}");
        assert_eq!(world.refused(lock("web", "keep", 5)).kind, AdminErrorKind::Invalid);
        assert_eq!(world.refused(lock("web", "keep", u64::MAX)).kind, AdminErrorKind::Invalid);
        assert_eq!(world.refused(lock("web", "nothing", until)).kind, AdminErrorKind::NotFound);
        world.volume(AdminRequest::VolumeRollback { name: "web".into(), tag: "keep".into() });
        let rename = |name: &str, new_name: &str| AdminRequest::VolumeRename {
            name: name.into(),
            new_name: new_name.into(),
            while_attached: false,
        };
        world.volume(rename("web", "www"));
        assert!(is_locked(&world.refused(delete_snapshot("www", "keep")), &words));
        world.volume(rename("www", "web"));
        assert_eq!(world.open(1, "a", "web@keep"), reads(256 * MIB));
        assert_eq!(world.read(1, 0, 4096), vec![6; 4096]);
        world.close(1);
    };
    check(&mut world);
    let mut world = world.again(5);
    world.tell(Input::Tick);
    let error = world.refused(delete("web", Some(0)));
    assert!(is_locked(&error, &words), "{error}");
    let mut world = world.again(until - 100);
    check(&mut world);
    // A full disk changes nothing about it.
    world.create("new", 512 * MIB);
    world.open(3, "a", "new");
    assert!(fill_on(&mut world, 3, 0, 300).is_some());
    world.close(3);
    assert_eq!(world.admin(delete("new", Some(0))), Ok(AdminReply::Done));
    world.pass(10);
    check(&mut world);
    // Its time is over: it goes like any other.
    world.leap(200);
    let tags: Vec<_> = world.snapshots("web", false);
    assert!(tags.iter().all(|snapshot| snapshot.locked_until_unix_s.is_none()));
    assert_eq!(world.admin(delete_snapshot("web", "keep")), Ok(AdminReply::Done));
    world.trash("web", None);
}
