//! Replays the fuzz corpus of the agreed state, and keeps its seeds: each is written here, named
//! for what it is. After a change of the seeds,
//! `UPDATE_CORPUS=1 cargo test -p cluster --test corpus` writes them anew.

#[path = "../../../fuzz/inputs/cluster_snapshot.rs"]
mod cluster_snapshot;
#[path = "../../../fuzz/inputs/corpus.rs"]
mod corpus;

use cluster::{Change, Command, Digest, Durability, Member, State, TokenId};
use proto::{
    ClusterId, ConfigurationNumber, DiskId, Epoch, Generation, Incarnation, LayerId, NodeId,
    PartitionId, VolumeId,
};

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
    .into_iter()
    .chain(machines())
    .collect()
}

/// A second disk comes, takes a partition over, and the first one goes.
fn machines() -> Vec<(&'static str, Command)> {
    let (first, second) = (NodeId(8), NodeId(18));
    let (old, new) = (DiskId(9), DiskId(19));
    let member = |disk, incarnation| Member { disk, incarnation: Incarnation(incarnation) };
    let begin = |wanted: &[DiskId], partitions: &[(u32, u64)]| {
        let numbered = |&(partition, from)| (PartitionId(partition), ConfigurationNumber(from));
        let partitions = partitions.iter().map(numbered).collect();
        let changes = vec![Change { wanted: wanted.to_vec(), partitions }];
        Command::BeginAttempt { copies: 3, bits: 4, owner: first, changes }
    };
    let activate = |attempt, openings| Command::Activate { attempt, openings };
    vec![
        ("second-node", Command::AddNode { node: second, name: "two".to_owned() }),
        ("zone", Command::SetZone { node: second, zone: "cellar".to_owned() }),
        ("addresses", {
            let addresses = vec!["host-b:7000".to_owned(), "[fd00::2]:7000".to_owned()];
            Command::SetAddresses { node: second, addresses }
        }),
        ("add-disk", Command::AddDisk { disk: new, node: second, bytes: 1 << 40 }),
        ("open-second-disk", {
            Command::OpenDisk { disk: new, node: second, incarnation: Incarnation(3) }
        }),
        ("weight", Command::SetWeight { disk: old, bytes: 1 << 39 }),
        ("attempt", begin(&[old, new], &[(5, 1), (6, 1)])),
        ("newer-attempt", begin(&[old, new], &[(5, 1)])),
        ("activate", activate(2, vec![member(old, 1), member(new, 3)])),
        ("give-up", Command::GiveUpAttempt { attempt: 1, may_be_refused: true }),
        ("open-anew", {
            Command::OpenDisk { disk: old, node: first, incarnation: Incarnation(2) }
        }),
        ("attempt-anew", begin(&[old, new], &[(5, 2)])),
        ("activate-anew", activate(3, vec![member(old, 2), member(new, 3)])),
        ("copies", { Command::SetCopies { volume: VolumeId(2), copies: 2, min_copies: Some(1) } }),
        ("attach-to-move", {
            let (volume, holder) = (VolumeId(2), "process 4715".to_owned());
            Command::Attach { volume, node: first, holder, read_only: false, unix_s: 2000 }
        }),
        ("copies-moved", {
            let (volume, generation) = (VolumeId(2), Generation(2));
            Command::CopiesMoved { volume, generation, copies: 2 }
        }),
        ("exclude", begin(&[new], &[(5, 3)])),
        ("excluded", activate(4, vec![member(new, 3)])),
        ("split", Command::SplitPartitions { bits: 5 }),
        ("drain-node", Command::DrainNode { node: first, wanted: true }),
        ("drain-disk", Command::DrainDisk { disk: old, wanted: true }),
        ("third-disk", Command::AddDisk { disk: DiskId(29), node: second, bytes: 4096 }),
        ("remove-disk", Command::RemoveDisk { disk: DiskId(29) }),
        ("third-node", Command::AddNode { node: NodeId(28), name: "three".to_owned() }),
        ("remove-node", Command::RemoveNode { node: NodeId(28) }),
        ("token", {
            let (id, secret) = (TokenId(5), Digest([7; 32]));
            Command::AddToken { id, secret, uses: 2, unix_s: 2000, expires_unix_s: 3000 }
        }),
        ("admit", {
            let (token, secret, key) = (TokenId(5), Digest([7; 32]), Digest([8; 32]));
            let (node, name) = (NodeId(38), "four".to_owned());
            Command::AdmitNode { token, secret, node, key, name, unix_s: 2001 }
        }),
        ("revoke", Command::RevokeToken { id: TokenId(5) }),
        ("durable", Command::SetDurability { volume: VolumeId(2), durability: Durability::Ack }),
        ("stable", {
            let (volume, generation) = (VolumeId(2), Generation(2));
            Command::StableFromNow { volume, generation, since: Epoch(30) }
        }),
        ("recover", Command::Recover { lost: vec![NodeId(38)], unix_s: 2002 }),
        ("give-up-node", Command::GiveUpNode { node: NodeId(38) }),
        ("remove-lost-node", Command::RemoveLostNode { node: NodeId(38) }),
    ]
}

/// A snapshot as version 2 wrote it: a volume that was shrunk, attached, on one disk.
const VERSION_2: &str = "02d92a915a35925aec06014d0202010205616c706861010302040c01802001010304\
    00010103766d318020010100010102011370726f636573732034373131202871656d75290005018020804063\
    0000000101010000010000";

/// A snapshot as version 3 wrote it: the same.
const VERSION_3: &str = "0395b776f61911b03b06014d0202010205616c70686100000103020400000c01030180\
    200101000000010103766d318020010100010102011370726f636573732034373131202871656d7529000501\
    80208040630000000101010000010000010103030201";

/// A snapshot as version 4 wrote it: a node and a disk that was opened once.
const VERSION_4: &str = "047b8b5bfbc565ed2d03070101010108036f6e650000010908010000040103011001010\
    000000000000000000001000000";

fn digits(text: &str) -> Vec<u8> {
    let digits: Vec<u32> =
        text.chars().map(|digit| digit.to_digit(16).expect("hexadecimal")).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
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
    later[0] = 6;
    let mut spoiled = whole.clone();
    spoiled[20] ^= 1;
    seeds.extend([
        ("snapshot-of-version-2".to_owned(), with(AS_IT_IS, &digits(VERSION_2))),
        ("snapshot-of-version-3".to_owned(), with(AS_IT_IS, &digits(VERSION_3))),
        ("snapshot-of-version-4".to_owned(), with(AS_IT_IS, &digits(VERSION_4))),
        ("snapshot-cut".to_owned(), with(FITTING, &whole[..whole.len() / 2])),
        ("snapshot-of-a-later-version".to_owned(), with(FITTING, &later)),
        ("snapshot-spoiled".to_owned(), with(AS_IT_IS, &spoiled)),
        ("snapshot-spoiled-but-sealed".to_owned(), with(FITTING, &spoiled)),
    ]);
    seeds
}
