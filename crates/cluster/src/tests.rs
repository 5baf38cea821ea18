//! Names, sizes, refusals in words, hashes and encodings: table by table.

use crate::*;
use proto::limits::{SNAPSHOT_BYTES_MAX, VOLUMES_MAX};
use proto::{
    ClusterId, ConfigurationNumber, DiskId, Epoch, Generation, Incarnation, LayerId, LineageId,
    NodeId, PartitionId, VolumeId,
};

const NODE: NodeId = NodeId(2);
const DISK: DiskId = DiskId(3);

fn state() -> State {
    let mut state = State::default();
    let create = Command::CreateCluster { cluster: ClusterId(1), partition_bits: 12, unix_s: 77 };
    state.apply(&create).expect("new");
    state.apply(&Command::AddNode { node: NODE, name: "alpha".into() }).expect("new");
    let open = Command::OpenDisk { disk: DISK, node: NODE, incarnation: Incarnation(4) };
    state.apply(&open).expect("new");
    state
}

fn create(state: &mut State, name: &str, bytes: u64) -> VolumeId {
    let create = Command::CreateVolume { name: name.into(), bytes, unix_s: 99 };
    match state.apply(&create) {
        Ok(Answer::VolumeCreated { volume }) => volume,
        other => panic!("{other:?}"),
    }
}

fn attach(volume: VolumeId, read_only: bool) -> Command {
    let holder = "process 4711 (qemu)".into();
    Command::Attach { volume, node: NODE, holder, read_only, unix_s: 5 }
}

#[track_caller]
fn refused(state: &mut State, command: Command, kind: RefusalKind, sentence: &str) {
    let before = state.clone();
    let refusal = state.apply(&command).expect_err("refused");
    assert_eq!(refusal.to_string(), sentence);
    assert_eq!(refusal.kind(), kind);
    assert_eq!(*state, before);
}

#[test]
fn names_that_would_confuse_are_refused() {
    let longest = "x".repeat(255);
    for name in ["vm1", "a", "\u{e9}t\u{e9}", "\u{540d}\u{524d}", "a.b_c-d:e", "~", &longest] {
        assert_eq!(check_name(name), Ok(()), "{name}");
    }
    let too_long = "x".repeat(256);
    let bad = [
        "",
        "-x",
        "a/b",
        "/",
        "a@b",
        " ",
        "a b",
        "a\u{a0}b",
        "a\tb",
        "a\nb",
        "a\0",
        "\u{7f}",
        "\u{85}",
        "a\u{200b}b",
        "a\u{202e}b",
        "\u{feff}a",
        "a\u{2028}b",
        "\u{3000}",
        &too_long,
    ];
    for name in bad {
        let refusal = check_name(name).expect_err(name);
        assert_eq!(refusal.kind(), RefusalKind::Invalid);
        assert!(!refusal.to_string().contains(char::is_control), "{refusal:?}");
    }
}

#[test]
fn sizes_are_whole_blocks_within_limits() {
    for (bytes, right) in [
        (0, false),
        (512, false),
        (4095, false),
        (4096, true),
        (4608, false),
        (8192, true),
        (20 << 30, true),
        (1 << 50, true),
        ((1 << 50) + 4096, false),
        (u64::MAX, false),
        (u64::MAX - 4095, false),
    ] {
        assert_eq!(check_size(bytes).is_ok(), right, "{bytes}");
    }
    let sentence = check_size(10_000).expect_err("no whole blocks").to_string();
    let expected = "a volume's size must be a multiple of 4096 bytes and 10000 is not; choose 8192 \
                    or 12288";
    assert_eq!(sentence, expected);
}

#[test]
fn refusals_say_who_is_in_the_way_and_what_to_do() {
    let mut state = state();
    let volume = create(&mut state, "vm1", 8192);
    state.apply(&attach(volume, false)).expect("free");
    let held = "volume \"vm1\" is attached by process 4711 (qemu) on node alpha; stop it or wait \
                until it closes the volume";
    refused(&mut state, attach(volume, false), RefusalKind::Busy, held);
    refused(&mut state, attach(volume, true), RefusalKind::Busy, held);
    refused(
        &mut state,
        Command::DeleteVolume { volume, with_snapshots: false },
        RefusalKind::Busy,
        held,
    );
    let resize = |bytes| Command::ResizeVolume { volume, bytes, allow_shrink: false };
    refused(
        &mut state,
        resize(4096),
        RefusalKind::Invalid,
        "volume \"vm1\" has 8192 bytes, and making it 4096 would destroy what lies beyond; shrink \
         the file system in it first and then allow shrinking (--allow-shrink)",
    );
    let taken = Command::CreateVolume { name: "vm1".into(), bytes: 4096, unix_s: 0 };
    let sentence = "a volume named \"vm1\" exists already; choose another name";
    refused(&mut state, taken, RefusalKind::Exists, sentence);
    let sentence = "there is no volume with the id 9; it may have been deleted, see the list";
    let unknown = Command::DeleteVolume { volume: VolumeId(9), with_snapshots: false };
    refused(&mut state, unknown, RefusalKind::NotFound, sentence);
    let open = |disk, node, incarnation| Command::OpenDisk { disk, node, incarnation };
    refused(
        &mut state,
        open(DISK, NODE, Incarnation(4)),
        RefusalKind::Invalid,
        "disk 00000000000000000000000000000003 was opened as incarnation 4, but the cluster has \
         seen 4: an old copy of the disk was put back, or two copies of it are in use; put the \
         newest one back",
    );
    state.apply(&Command::AddNode { node: NodeId(8), name: "beta".into() }).expect("new");
    refused(
        &mut state,
        open(DISK, NodeId(8), Incarnation(5)),
        RefusalKind::Invalid,
        "disk 00000000000000000000000000000003 belongs to node alpha, not beta; put it back there",
    );
    refused(
        &mut state,
        open(DiskId(5), NODE, Incarnation(1)),
        RefusalKind::Invalid,
        "the cluster's data lies on disk 00000000000000000000000000000003, and this version keeps \
         it on one disk; put that disk back, or start a new cluster for disk \
         00000000000000000000000000000005",
    );
}

#[test]
fn readers_share_a_volume_and_keep_writers_out() {
    let mut state = state();
    let volume = create(&mut state, "vm1", 8192);
    for generation in 1..4 {
        let generation = Generation(generation);
        assert_eq!(state.apply(&attach(volume, true)), Ok(Answer::Attached { generation }));
    }
    let sentence = "volume \"vm1\" is attached read-only by process 4711 (qemu) on node alpha; \
                    stop it or wait until it closes the volume";
    refused(&mut state, attach(volume, false), RefusalKind::Busy, sentence);
    state.apply(&Command::ReleaseNode { node: NODE }).expect("known");
    let generation = Generation(4);
    assert_eq!(state.apply(&attach(volume, false)), Ok(Answer::Attached { generation }));
    let epoch = state.map().epoch();
    let stale = Command::Detach { volume, generation: Generation(3) };
    assert_eq!(state.apply(&stale), Ok(Answer::Done));
    assert_eq!(state.map().epoch(), epoch, "a stale detach does nothing");
    assert_eq!(
        state.map().volume(volume).and_then(Volume::writer).map(|w| w.generation),
        Some(generation)
    );
}

#[test]
fn old_data_cannot_come_back_by_shrinking_and_growing() {
    let mut state = state();
    let volume = create(&mut state, "vm1", 10 << 20);
    let resize = |bytes| Command::ResizeVolume { volume, bytes, allow_shrink: true };
    state.apply(&resize(4 << 20)).expect("allowed");
    state.apply(&resize(20 << 20)).expect("nobody has it attached");
    let discard = PendingDiscard { above: 4 << 20, end: 10 << 20 };
    let found = state.map();
    let found = found.volume(volume).expect("exists");
    assert_eq!((found.bytes, found.pending_discard), (20 << 20, Some(discard)));
    assert_eq!(found.served_bytes(), 4 << 20);
    let sentence = "volume \"vm1\" was shrunk and grown again, and what lay beyond its former end \
                    is not discarded yet; attach it for writing once, then read-only";
    refused(&mut state, attach(volume, true), RefusalKind::Busy, sentence);
    state.apply(&attach(volume, false)).expect("free");
    let sentence = "volume \"vm1\" was shrunk and is still discarding what lay beyond its end; try \
                    again when that is done";
    refused(&mut state, resize(30 << 20), RefusalKind::Busy, sentence);
    let done = |generation, discarded| Command::ShrinkDone { volume, generation, discarded };
    let sentence = "generation 9 of volume \"vm1\" does not write any more; attach the volume anew";
    refused(&mut state, done(Generation(9), discard), RefusalKind::Busy, sentence);
    // A second shrink widens what is to be done: the report of the first does not end it.
    state.apply(&resize(2 << 20)).expect("allowed");
    let wider = PendingDiscard { above: 2 << 20, end: 20 << 20 };
    let left = Ok(Answer::Resized { pending_discard: Some(wider) });
    assert_eq!(state.apply(&done(Generation(1), discard)), left);
    let nothing = Ok(Answer::Resized { pending_discard: None });
    assert_eq!(state.apply(&done(Generation(1), wider)), nothing);
    assert_eq!(state.apply(&resize(30 << 20)), nothing);
    assert_eq!(state.map().volume(volume).expect("exists").served_bytes(), 30 << 20);
}

#[test]
fn a_disk_opened_anew_is_another_member_of_every_partition() {
    let mut state = state();
    let old = state.map();
    let open = Command::OpenDisk { disk: DISK, node: NODE, incarnation: Incarnation(9) };
    state.apply(&open).expect("newer");
    let new = state.map();
    for partition in 0..4096 {
        let partition = PartitionId(partition);
        let (old, new) = (old.configuration(3, partition), new.configuration(3, partition));
        assert_eq!((old.number.0, new.number.0), (1, 2));
        assert_eq!(old.current, [Member { disk: DISK, incarnation: Incarnation(4) }]);
        assert_eq!(new.current, [Member { disk: DISK, incarnation: Incarnation(9) }]);
        assert_eq!(new.quorum(), 1);
    }
    assert_eq!(new.configurations().count(), 1);
    assert_eq!((old.epoch(), new.epoch()), (Epoch(3), Epoch(4)));
}

#[test]
fn objects_stay_in_their_partitions_for_ever() {
    for (lineage, index, bits, partition) in [
        (1, 0, 12, 1306),
        (1, 1, 12, 3935),
        (2, 0, 12, 3498),
        (u64::MAX, u32::MAX, 12, 1453),
        (7, 9, 16, 56950),
        (7, 9, 1, 1),
        (7, 9, 0, 0),
    ] {
        let found = partition_of(LineageId(lineage), index, bits);
        assert_eq!(found, PartitionId(partition), "{lineage} {index} {bits}");
    }
}

#[test]
fn partitions_are_spread_well_and_double_in_place() {
    let mut counts = vec![0u32; 4096];
    for lineage in 1..65 {
        for index in 0..1024 {
            let partition = partition_of(LineageId(lineage), index, 12);
            counts[partition.0 as usize] += 1;
            let doubled = partition_of(LineageId(lineage), index, 13);
            assert_eq!(doubled.0 / 2, partition.0);
        }
    }
    // 16 each on the average; a Poisson distribution exceeds these bounds once in a million tries.
    assert!(counts.iter().all(|&count| (1..=42).contains(&count)), "{counts:?}");
}

#[test]
fn snapshots_and_commands_keep_their_bytes() {
    let mut state = state();
    let volume = create(&mut state, "vm1", 8192);
    state.apply(&attach(volume, false)).expect("free");
    let resize = Command::ResizeVolume { volume, bytes: 4096, allow_shrink: true };
    state.apply(&resize).expect("allowed");
    let bytes = state.encode();
    assert_eq!(hex(&bytes), SNAPSHOT);
    assert_eq!(State::decode(&bytes), Ok(state));
    let (node, holder) = (NODE, "h".into());
    let discarded = PendingDiscard { above: 4096, end: 8192 };
    let generation = Generation(300);
    for (command, expected) in [
        (
            Command::CreateCluster { cluster: ClusterId(1), partition_bits: 12, unix_s: 2 },
            "0100010c02",
        ),
        (Command::AddNode { node, name: "a".into() }, "0101020161"),
        (Command::OpenDisk { disk: DISK, node, incarnation: Incarnation(1) }, "0102030201"),
        (Command::CreateVolume { name: "v".into(), bytes: 4096, unix_s: 2 }, "01030176802002"),
        (Command::ResizeVolume { volume, bytes: 4096, allow_shrink: true }, "010401802001"),
        (Command::RenameVolume { volume, name: "w".into() }, "0105010177"),
        (Command::DeleteVolume { volume, with_snapshots: false }, "01060100"),
        (Command::Attach { volume, node, holder, read_only: true, unix_s: 2 }, "0107010201680102"),
        (Command::Detach { volume, generation }, "010801ac02"),
        (Command::ShrinkDone { volume, generation, discarded }, "010901ac0280208040"),
        (Command::ReleaseNode { node }, "010a02"),
        (Command::CreateSnapshot { volume, tag: "t".into(), unix_s: 2 }, "010b01017402"),
        (Command::LayerOpened { volume, generation, layer: LayerId(5) }, "010c01ac0205"),
        (Command::DeleteSnapshot { volume, tag: "t".into() }, "010d010174"),
        (
            Command::CloneSnapshot { volume, tag: "t".into(), name: "w".into(), unix_s: 2 },
            "010e010174017702",
        ),
        (Command::Rollback { volume, tag: "t".into() }, "010f010174"),
        (Command::Flattened { volume, generation }, "011001ac02"),
        (
            Command::AttachSnapshot {
                volume,
                tag: "t".into(),
                node,
                holder: "h".into(),
                unix_s: 2,
            },
            "011101017402016802",
        ),
        (Command::SetFlatten { volume, wanted: true }, "01120101"),
        (Command::DropVolume { volume, with_snapshots: true, unix_s: 2 }, "0113010102"),
        (Command::DropSnapshot { volume, tag: "t".into(), unix_s: 2 }, "011401017402"),
        (
            Command::TrashVolume { volume, with_snapshots: true, unix_s: 2, expires_unix_s: 3 },
            "011501010203",
        ),
        (Command::Undelete { volume, name: "w".into() }, "0116010177"),
        (Command::Purge { volume }, "011701"),
        (Command::LockSnapshot { volume, tag: "t".into(), until_unix_s: 2 }, "011801017402"),
        (Command::CreateGroup { name: "g".into(), unix_s: 2 }, "0119016702"),
        (Command::DeleteGroup { name: "g".into() }, "011a0167"),
        (
            Command::ChangeGroup { name: "g".into(), volumes: vec![volume], member: true },
            "011b0167010101",
        ),
        (Command::SnapshotGroup { name: "g".into(), tag: "t".into(), unix_s: 2 }, "011c0167017402"),
        (
            Command::DropGroupSnapshot { name: "g".into(), tag: "t".into(), unix_s: 2 },
            "011d0167017402",
        ),
        (Command::RollbackGroup { name: "g".into(), tag: "t".into() }, "011e01670174"),
        (
            Command::SetSchedule { volume, schedule: "s".into(), every_s: 60, keep: 2, unix_s: 3 },
            "011f0101733c0203",
        ),
        (Command::RemoveSchedule { volume, schedule: "s".into() }, "0120010173"),
        (
            Command::ScheduledSnapshot {
                volume,
                schedule: "s".into(),
                slot: 5,
                tag: "t".into(),
                unix_s: 6,
            },
            "012101017305017406",
        ),
        (
            Command::CreateVolumeFrom {
                name: "w".into(),
                bytes: 4096,
                address: "a".into(),
                source_bytes: 512,
                unix_s: 2,
            },
            "0122017780200161800402",
        ),
        (Command::Shortened { volume, generation, parent: LayerId(5) }, "012301ac0205"),
        (Command::AddDisk { disk: DISK, node, bytes: 512 }, "012403028004"),
        (Command::SetZone { node, zone: "z".into() }, "012502017a"),
        (Command::SetWeight { disk: DISK, bytes: 512 }, "0126038004"),
        (Command::DrainDisk { disk: DISK, wanted: true }, "01270301"),
        (Command::DrainNode { node, wanted: false }, "01280200"),
        (Command::RemoveDisk { disk: DISK }, "012903"),
        (Command::RemoveNode { node }, "012a02"),
        (Command::SetCopies { volume, copies: 3, min_copies: Some(2) }, "012b01030102"),
        (Command::CopiesMoved { volume, generation, copies: 2 }, "012c01ac0202"),
        (
            Command::BeginAttempt {
                copies: 3,
                bits: 9,
                owner: node,
                changes: vec![Change {
                    wanted: vec![DISK],
                    partitions: vec![(PartitionId(300), ConfigurationNumber(5))],
                }],
            },
            "012d03090201010301ac0205",
        ),
        (
            Command::Activate {
                attempt: 300,
                openings: vec![Member { disk: DISK, incarnation: Incarnation(4) }],
            },
            "012eac02010304",
        ),
        (Command::GiveUpAttempt { attempt: 300, may_be_refused: true }, "012fac0201"),
        (Command::SplitPartitions { bits: 13 }, "01300d"),
        (Command::SetAddresses { node, addresses: vec!["h:1".into()] }, "0131020103683a31"),
        (
            Command::AddToken {
                id: TokenId(5),
                secret: Digest([7; 32]),
                uses: 300,
                unix_s: 2,
                expires_unix_s: 3,
            },
            &*["013205", &"07".repeat(32), "ac020203"].concat(),
        ),
        (Command::RevokeToken { id: TokenId(5) }, "013305"),
        (
            Command::AdmitNode {
                token: TokenId(5),
                secret: Digest([7; 32]),
                node,
                key: Digest([8; 32]),
                name: "a".into(),
                unix_s: 2,
            },
            &*["013405", &"07".repeat(32), "02", &"08".repeat(32), "016102"].concat(),
        ),
        (
            Command::CreateVolumeKept {
                name: "v".into(),
                bytes: 4096,
                from: Some(("a".into(), 512)),
                copies: 2,
                min_copies: Some(1),
                unix_s: 2,
            },
            "01350176802001016180040201 0102".replace(' ', "").as_str(),
        ),
        (Command::KeepCopies { volume, copies: 2, min_copies: None }, "0136010200"),
    ] {
        let bytes = command.encode();
        assert_eq!(hex(&bytes), expected, "{command:?}");
        assert_eq!(Command::decode(&bytes), Ok(command));
    }
}

/// Version, checksum; epoch 6, cluster 1, created 77, next ids 2 and 2; the node, in no zone, in
/// use; the disk, of unknown size, in use; 2^12 partitions in one table, that for three copies, in
/// one run, without an attempt; the volume with its attachment and its pending discard, out of the
/// trash and without schedules; its layer; no sources and no groups; how its lineage is kept; no
/// attempts, of which the first is to be number 1; no addresses and no join tokens.
const SNAPSHOT: &str = "04ebe5f2c75158e74706014d0202010205616c70686100000103020400000c01030180\
    2001010000000000010103766d318020010100010102011370726f636573732034373131202871656d752900\
    05018020804063000000010101000001000001010303020101000000";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn spoiled_bytes_are_refused_and_never_a_panic() {
    let mut state = state();
    for number in 0..5 {
        let volume = create(&mut state, &format!("vm{number}"), 8192);
        state.apply(&attach(volume, number % 2 == 0)).expect("free");
    }
    let whole = state.encode();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(State::decode(&bytes).is_err(), "bit {bit}");
        // The same behind a checksum that fits.
        let checksum = snapshot::checksum(&bytes);
        bytes[1..9].copy_from_slice(&checksum.to_le_bytes());
        if let Ok(state) = State::decode(&bytes) {
            state.check();
        }
        assert!(State::decode(&whole[..bit / 8]).is_err());
    }
    for byte in 0..=255u8 {
        for length in [1, 2, 9, 40] {
            let mut bytes = vec![byte; length];
            assert!(State::decode(&bytes).is_err());
            bytes[0] = 1;
            let _ = Command::decode(&bytes);
        }
    }
    assert_eq!(State::decode(&vec![1; SNAPSHOT_BYTES_MAX + 1]), Err(DecodeError::TooLong));
    assert_eq!(Command::decode(&[1; 5000]), Err(DecodeError::TooLong));
    assert_eq!(Command::decode(&[2, 0]), Err(DecodeError::Version(2)));
}

#[test]
fn the_largest_state_fits_its_snapshot() {
    let mut state = state();
    for number in 0..VOLUMES_MAX {
        let volume = create(&mut state, &format!("{number:0>255}"), 1 << 50);
        let holder = "h".repeat(1000);
        let attach =
            Command::Attach { volume, node: NODE, holder, read_only: true, unix_s: 1 << 40 };
        state.apply(&attach).expect("free");
    }
    let more = Command::CreateVolume { name: "more".into(), bytes: 4096, unix_s: 0 };
    assert_eq!(state.apply(&more), Err(Refusal::TooManyVolumes));
    assert_eq!(state.apply(&attach(VolumeId(1), true)), Err(Refusal::TooManyAttachments));
    assert_eq!(state.map().provisioned_bytes(), u64::MAX);
    let bytes = state.encode();
    assert!(bytes.len() <= SNAPSHOT_BYTES_MAX);
    assert_eq!(State::decode(&bytes).as_ref(), Ok(&state));
}
