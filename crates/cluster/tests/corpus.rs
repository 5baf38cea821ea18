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
        ("delete", Command::DeleteVolume { volume, with_snapshots: true }),
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
    let whole = state.encode();
    let mut later = whole.clone();
    later[0] = 2;
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
