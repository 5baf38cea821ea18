//! Replays the fuzz corpus of the agreed state, and keeps its seeds: each is written here, named
//! for what it is. After a change of the seeds,
//! `UPDATE_CORPUS=1 cargo test -p cluster --test corpus` writes them anew.

#[path = "../../../fuzz/inputs/cluster_snapshot.rs"]
mod cluster_snapshot;
#[path = "../../../fuzz/inputs/corpus.rs"]
mod corpus;

use cluster::{Command, State};
use proto::{ClusterId, DiskId, Generation, Incarnation, LayerId, NodeId, VolumeId};

#[test]
fn corpus_of_snapshots_and_commands() {
    corpus::check("cluster_snapshot", seeds(), cluster_snapshot::cluster_snapshot);
}

/// Judged with the checksum it has, with one that fits, as a command.
const AS_IT_IS: u8 = 0;
const FITTING: u8 = 1;
const COMMAND: u8 = 2;

/// What happens to a small cluster, in order.
fn story() -> Vec<(&'static str, Command)> {
    let (cluster, node, disk) = (ClusterId(7), NodeId(8), DiskId(9));
    let volume = VolumeId(1);
    let name = |name: &str| name.to_owned();
    vec![
        ("create-cluster", Command::CreateCluster { cluster, partition_bits: 4, unix_s: 1 }),
        ("add-node", Command::AddNode { node, name: name("one") }),
        ("open-disk", Command::OpenDisk { disk, node, incarnation: Incarnation(1) }),
        ("create-volume", {
            Command::CreateVolume { name: name("disk"), bytes: 1 << 30, unix_s: 2 }
        }),
        ("attach", {
            let holder = name("process 4711");
            Command::Attach { volume, node, holder, read_only: false, unix_s: 3 }
        }),
        ("snapshot", Command::CreateSnapshot { volume, tag: name("monday"), unix_s: 4 }),
        ("layer-opened", {
            Command::LayerOpened { volume, generation: Generation(1), layer: LayerId(2) }
        }),
        ("read-snapshot", {
            let (tag, holder) = (name("monday"), name("process 4712"));
            Command::AttachSnapshot { volume, tag, node, holder, unix_s: 5 }
        }),
        ("clone", {
            let (tag, name) = (name("monday"), name("copy"));
            Command::CloneSnapshot { volume, tag, name, unix_s: 6 }
        }),
        ("resize", Command::ResizeVolume { volume, bytes: 1 << 29, allow_shrink: true }),
        ("rename", Command::RenameVolume { volume, name: name("other") }),
        ("release-node", Command::ReleaseNode { node }),
        ("rollback", Command::Rollback { volume, tag: name("monday") }),
        ("attach-clone", {
            let (volume, holder) = (VolumeId(2), name("process 4713"));
            Command::Attach { volume, node, holder, read_only: false, unix_s: 7 }
        }),
        ("flatten", Command::SetFlatten { volume: VolumeId(2), wanted: true }),
        ("flattened", Command::Flattened { volume: VolumeId(2), generation: Generation(1) }),
        ("create-group", Command::CreateGroup { name: name("group"), unix_s: 8 }),
        ("change-group", {
            let (name, volumes) = (name("group"), vec![volume, VolumeId(2)]);
            Command::ChangeGroup { name, volumes, member: true }
        }),
        ("set-schedule", {
            let schedule = name("hourly");
            Command::SetSchedule { volume, schedule, every_s: 3600, keep: 24, unix_s: 9 }
        }),
        ("lock", {
            let tag = name("monday");
            Command::LockSnapshot { volume, tag, until_unix_s: 1000 }
        }),
        ("create-from", {
            let (name, address) = (name("import"), name("nbd://elsewhere/export"));
            let (bytes, source_bytes) = (1 << 30, 1 << 29);
            Command::CreateVolumeFrom { name, bytes, address, source_bytes, unix_s: 10 }
        }),
        ("detach", Command::Detach { volume: VolumeId(2), generation: Generation(1) }),
        ("attach-again", {
            let holder = name("process 4714");
            Command::Attach { volume, node, holder, read_only: false, unix_s: 11 }
        }),
        ("rolled-back", {
            Command::LayerOpened { volume, generation: Generation(3), layer: LayerId(4) }
        }),
        ("snapshot-group", {
            let (name, tag) = (name("group"), name("tuesday"));
            Command::SnapshotGroup { name, tag, unix_s: 12 }
        }),
        ("group-settled", {
            Command::LayerOpened { volume, generation: Generation(3), layer: LayerId(7) }
        }),
        ("scheduled", {
            let (schedule, tag) = (name("hourly"), name("hourly-1"));
            Command::ScheduledSnapshot { volume, schedule, slot: 1, tag, unix_s: 3600 }
        }),
        ("scheduled-settled", {
            Command::LayerOpened { volume, generation: Generation(3), layer: LayerId(9) }
        }),
        ("end-schedule", Command::RemoveSchedule { volume, schedule: name("hourly") }),
        ("release-all", Command::ReleaseNode { node }),
        ("drop-snapshot", {
            Command::DropSnapshot { volume, tag: name("hourly-1"), unix_s: 1000 }
        }),
        ("trash", {
            let (unix_s, expires_unix_s) = (1000, 2000);
            Command::TrashVolume { volume, with_snapshots: true, unix_s, expires_unix_s }
        }),
        ("undelete", Command::Undelete { volume, name: name("back") }),
        ("trash-again", {
            let (unix_s, expires_unix_s) = (1000, 2000);
            Command::TrashVolume { volume, with_snapshots: true, unix_s, expires_unix_s }
        }),
        ("purge", Command::Purge { volume }),
        ("delete-group", Command::DeleteGroup { name: name("group") }),
        ("drop", Command::DropVolume { volume: VolumeId(3), with_snapshots: true, unix_s: 0 }),
    ]
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let with = |choice: u8, bytes: &[u8]| [&[choice], bytes].concat();
    let mut seeds = vec![("empty".to_owned(), Vec::new())];
    let mut state = State::default();
    for (name, command) in story() {
        state.apply(&command).expect("the story can happen");
        seeds.push((format!("command-{name}"), with(COMMAND, &command.encode())));
        seeds.push((format!("snapshot-after-{name}"), with(FITTING, &state.encode())));
    }
    let (volume, generation) = (VolumeId(2), Generation(2));
    let shortened = Command::Shortened { volume, generation, parent: LayerId(1) };
    seeds.push(("command-shortened".to_owned(), with(COMMAND, &shortened.encode())));
    let whole = state.encode();
    let mut later = whole.clone();
    later[0] = 3;
    let mut spoiled = whole.clone();
    spoiled[20] ^= 1;
    seeds.extend([
        ("snapshot-cut".to_owned(), with(FITTING, &whole[..whole.len() / 2])),
        ("snapshot-of-a-later-version".to_owned(), with(FITTING, &later)),
        ("snapshot-spoiled".to_owned(), with(AS_IT_IS, &spoiled)),
        ("snapshot-spoiled-but-sealed".to_owned(), with(FITTING, &spoiled)),
    ]);
    seeds
}
