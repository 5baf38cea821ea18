//! What connections and administrators of one node are told, over starts and stops. Faults are the
//! simulator's business.

mod chains;
mod differences;
mod groups;
mod offline;
mod orders;
mod schedules;
mod snapshots;
mod sources;
mod support;
mod trash;
mod trees;

use engine::{
    Input, Output,
    admin::{AdminErrorKind, AdminReply, AdminRequest, AdminToken},
};
use proto::Duration;
use support::{MIB, UNIX_S, World, opened};
use volume::{Answer, Completion, Operation};

#[test]
fn what_is_written_is_read_again_after_a_stop_and_after_a_kill() {
    let mut world = World::found();
    world.create("vm1", 64 * MIB);
    assert_eq!(world.open(1, "a", "vm1"), opened(64 * MIB));
    world.write(1, 8 * MIB, 7, 12_288);
    assert!(matches!(world.request(1, 0, 0, Operation::Flush), Ok(Completion::Done)));
    world.close(1);
    let (disk, journal) = world.stop();

    let mut world = World::start(disk, journal, false);
    assert_eq!(world.open(1, "a", "vm1"), opened(64 * MIB));
    assert_eq!(world.read(1, 8 * MIB - 512, 1024), [vec![0; 512], vec![7; 512]].concat());
    world.write(1, 4096, 9, 4096);
    // Killed: the media are all that is left, and the attachment is still in the journal.
    let (disk, journal) = (world.disk.clone(), world.journal.clone());

    let mut world = World::start(disk, journal, false);
    assert!(world.info("vm1").attachment.is_none());
    assert_eq!(world.open(1, "b", "vm1"), opened(64 * MIB));
    assert_eq!(world.read(1, 4096, 4096), vec![9; 4096]);
    assert_eq!(world.info("vm1").used_bytes, 4 * 4096);
}

#[test]
fn a_volume_has_one_client_with_any_number_of_connections() {
    let mut world = World::found();
    world.create("vm1", MIB);
    assert_eq!(world.open(1, "a", "vm1"), opened(MIB));
    assert_eq!(world.open(2, "a", "vm1"), opened(MIB));
    match world.open(3, "b", "vm1") {
        Answer::Refused { sentence } => {
            assert!(sentence.contains("vm1 is attached by process a"), "{sentence}")
        }
        other => panic!("{other:?}"),
    }
    let since = |world: &World| {
        world.engine.map().volume_named("vm1").expect("it exists").attachments[0].since_unix_s
    };
    assert_eq!(since(&world), UNIX_S);
    let attachment = world.info("vm1").attachment.expect("attached");
    assert_eq!((attachment.connections, attachment.holder.as_str()), (2, "process a"));
    world.close(1);
    world.write(2, 0, 1, 4096);
    world.close(2);
    assert!(world.info("vm1").attachment.is_none());
    world.now = world.now + Duration::from_secs(100);
    assert_eq!(world.open(4, "b", "vm1"), opened(MIB));
    assert!((UNIX_S + 100..UNIX_S + 110).contains(&since(&world)), "since when it is attached");
    assert_eq!(world.read(4, 0, 4096), vec![1; 4096]);
    match world.open(5, "b", "nowhere") {
        Answer::Unknown { sentence } => assert!(sentence.contains("nowhere"), "{sentence}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_shrunk_volume_never_shows_its_old_end_again() {
    let mut world = World::found();
    world.create("vm1", 16 * MIB);
    world.open(1, "a", "vm1");
    world.write(1, 12 * MIB, 5, 8192);
    world.write(1, 0, 6, 4096);
    world.close(1);
    let resize = |bytes, allow_shrink| AdminRequest::VolumeResize {
        name: "vm1".into(),
        bytes,
        allow_shrink,
    };
    let refused = world.admin(resize(8 * MIB, false)).expect_err("not without being told");
    assert_eq!(refused.kind, AdminErrorKind::Conflict);
    assert_eq!(world.volume(resize(8 * MIB, true)).bytes, 8 * MIB);
    assert_eq!(world.volume(resize(16 * MIB, false)).bytes, 16 * MIB);
    assert_eq!(world.open(2, "a", "vm1"), opened(16 * MIB));
    assert_eq!(world.read(2, 12 * MIB, 8192), vec![0; 8192]);
    assert_eq!(world.read(2, 0, 4096), vec![6; 4096]);
    assert_eq!(world.info("vm1").used_bytes, 4096);

    // Online: the client is told, and requests beyond the end are refused.
    world.write(2, 12 * MIB, 5, 4096);
    let token = AdminToken(999);
    world.tell(Input::Admin { token, request: resize(8 * MIB, true) });
    let mut resized = None;
    loop {
        match world.hear() {
            Output::Resized { bytes, .. } => resized = Some(bytes),
            Output::Admin { result, .. } => break assert!(result.is_ok(), "{result:?}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(resized, Some(8 * MIB));
    let beyond = world.request(2, 12 * MIB, 4096, Operation::Read);
    assert_eq!(beyond.err(), Some(volume::Error::OutOfRange));
}

#[test]
fn deleting_gives_all_space_back_and_the_name_is_free() {
    let mut world = World::found();
    let first = world.create("vm1", 64 * MIB);
    world.open(1, "a", "vm1");
    for index in 0..8 {
        world.write(1, index * 4 * MIB, 3, 65_536);
    }
    let delete = || AdminRequest::VolumeDelete {
        name: "vm1".into(),
        with_snapshots: false,
        keep_s: Some(0),
    };
    let refused = world.admin(delete()).expect_err("it is attached");
    assert_eq!(refused.kind, AdminErrorKind::Conflict);
    world.close(1);
    assert_eq!(world.admin(delete()), Ok(AdminReply::Done));
    let second = world.create("vm1", MIB);
    assert_ne!(first.volume, second.volume);
    for _ in 0..20 {
        world.now = world.now + Duration::from_millis(100);
        world.tell(Input::Tick);
    }
    match world.admin(AdminRequest::Status) {
        Ok(AdminReply::Status(status)) => {
            assert_eq!(status.used_bytes, 0, "{status:?}");
            assert!(status.healthy, "{status:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn reconnecting_asks_every_connection_of_the_client() {
    let mut world = World::found();
    world.create("vm1", MIB);
    let reconnect = || AdminRequest::VolumeReconnect { name: "vm1".into() };
    let nobody = world.admin(reconnect()).expect_err("nobody has it");
    assert_eq!(nobody.kind, AdminErrorKind::Conflict);
    world.open(1, "a", "vm1");
    world.open(2, "a", "vm1");
    world.tell(Input::Admin { token: AdminToken(7), request: reconnect() });
    let mut asked = Vec::new();
    for _ in 0..3 {
        match world.hear() {
            Output::Disconnect { connection, .. } => asked.push(connection.0),
            Output::Admin { result, .. } => assert_eq!(*result, Ok(AdminReply::Done)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(asked, [1, 2]);
}

#[test]
fn a_journal_older_than_the_disk_is_refused() {
    let mut world = World::found();
    let old = world.journal.clone();
    world.create("vm1", MIB);
    world.open(1, "a", "vm1");
    world.write(1, 0, 1, 4096);
    world.close(1);
    let (disk, _) = world.stop();
    let refused = std::panic::catch_unwind(|| World::start(disk, old, false).said.len());
    let message = *refused.expect_err("it must not start").downcast::<String>().unwrap();
    assert!(message.contains("an old copy of the journal was put back"), "{message}");
}

/// Volumes that were deleted came back as zeros, and those that were never written were forgotten:
/// an old copy of the journal was noticed only by a layer that it had never issued.
#[test]
fn a_journal_from_before_the_last_start_is_refused_though_no_layer_tells() {
    let mut world = World::found();
    world.create("gone", MIB);
    let (disk, old) = world.stop();
    let mut world = World::start(disk, old.clone(), false);
    world.create("new", MIB);
    assert_eq!(
        world.admin(AdminRequest::VolumeDelete {
            name: "gone".into(),
            with_snapshots: false,
            keep_s: Some(0)
        }),
        Ok(AdminReply::Done)
    );
    let (disk, newest) = world.stop();
    let copy = disk.clone();
    let refused = std::panic::catch_unwind(|| World::start(copy, old, false).said.len());
    let message = *refused.expect_err("it must not start").downcast::<String>().unwrap();
    assert!(message.contains("an old copy of the journal was put back"), "{message}");
    // The refusal took nothing away.
    let mut world = World::start(disk, newest, false);
    world.info("new");
}

/// The guest of a renamed volume lost its disk when it reconnected under the old name.
#[test]
fn a_volume_is_not_renamed_under_its_client() {
    let mut world = World::found();
    world.create("vm1", MIB);
    assert_eq!(world.open(1, "a", "vm1"), opened(MIB));
    let rename = |while_attached| AdminRequest::VolumeRename {
        name: "vm1".into(),
        new_name: "vm2".into(),
        while_attached,
    };
    let refused = world.admin(rename(false)).expect_err("it is attached");
    assert_eq!(refused.kind, AdminErrorKind::Conflict);
    for word in ["process a", "reconnects", "--while-attached"] {
        assert!(refused.sentence.contains(word), "{}", refused.sentence);
    }
    assert_eq!(world.info("vm1").name, "vm1");
    assert_eq!(world.volume(rename(true)).name, "vm2");
    world.close(1);
    let back = AdminRequest::VolumeRename {
        name: "vm2".into(),
        new_name: "vm1".into(),
        while_attached: false,
    };
    assert_eq!(world.volume(back).name, "vm1");
}

/// A full disk was not worth a word of `dog status`, and what was left was that of a while ago.
#[test]
fn a_full_disk_is_told() {
    let mut world = World::found();
    world.create("vm1", 512 * MIB);
    world.open(1, "a", "vm1");
    world.noisy = true;
    world.tell(Input::MediumSpace { disk: support::DISK, free_bytes: 1 << 30 });
    world.disk.full = true;
    let refused = (0..512).find(|mib| {
        let mut buffer = proto::Buffer::zeroed(MIB as usize);
        buffer.as_mut_slice().fill(7);
        let operation = Operation::Write { buffer, fua: false };
        world.request(1, mib * MIB, MIB, operation).is_err()
    });
    assert!(refused.is_some());
    let Ok(AdminReply::Status(status)) = world.admin(AdminRequest::Status) else { panic!() };
    assert!(!status.healthy);
    let warning = status.warnings.iter().find(|warning| warning.contains("is full"));
    assert!(warning.is_some_and(|w| w.contains("fstrim")), "{:?}", status.warnings);
    let disk = &status.disks[0];
    assert!(disk.full && disk.available_bytes < MIB, "{disk:?}");
    assert!(disk.capacity_bytes <= disk.allocated_bytes, "{disk:?}");
    assert_eq!(disk.limit_bytes, Some(256 * MIB));
}

#[test]
fn rot_in_the_journal_is_found_and_mended_while_the_node_runs() {
    // The first frame of a new journal lies in the second half, in both copies.
    for (copies, expected) in [
        (vec![1], "1 parts of the cluster's journal were damaged"),
        (vec![0, 1], "the cluster's journal was damaged in both copies"),
    ] {
        let mut world = World::found();
        world.now = world.now + Duration::from_secs(3601);
        let half_blocks = world.journal.bytes[12..16].try_into().expect("4 bytes");
        let half_blocks = u32::from_le_bytes(half_blocks) as usize;
        for copy in copies {
            let at = (2 + (2 * copy + 1) * half_blocks) * 4096;
            assert_ne!(world.journal.bytes[at], 0, "nothing is damaged");
            world.journal.bytes[at] ^= 1;
        }
        let (mut outputs, mut notices) = (Vec::new(), Vec::new());
        world.engine.poll(world.now, &mut outputs);
        while let Some(output) = outputs.pop() {
            let input = match output {
                Output::Disk { disk, op } => Input::Disk { disk, done: world.disk.perform(op) },
                Output::Journal(op) => Input::Journal(world.journal.perform(op)),
                Output::Notice { sentence, .. } => {
                    notices.push(sentence);
                    continue;
                }
                other => panic!("{other:?}"),
            };
            world.engine.handle(world.now, input, &mut outputs);
        }
        assert!(notices.len() == 1 && notices[0].starts_with(expected), "{notices:?}");
        // Nothing is left to be found at the next start: a notice would end it.
        World::start(world.disk, world.journal, false);
    }
}
