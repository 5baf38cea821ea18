//! Random commands of the machine room, and what must hold whatever they are: no partition loses
//! its last member, numbers only grow, nothing acknowledged can be lost by what is accepted, and a
//! refusal changes nothing. Between them a conductor goes where placement wishes, as a cluster
//! does, so that disks and nodes really come and go.

use crate::model::Dice;
use crate::*;
use proto::{ClusterId, ConfigurationNumber, DiskId, Incarnation, NodeId, PartitionId, VolumeId};
use std::collections::BTreeMap;

const DISKS: u64 = 9;

fn disk(dice: &mut Dice) -> DiskId {
    DiskId(u128::from(1 + dice.below(DISKS)))
}

/// Where a disk is attached: two to a node.
fn node_of(disk: DiskId) -> NodeId {
    NodeId(100 + disk.0 / 2)
}

fn one_of<T: Copy>(dice: &mut Dice, all: &[T]) -> Option<T> {
    let index = dice.below(all.len().max(1) as u64) as usize;
    all.get(index).copied()
}

/// A command that makes sense more often than not.
fn random_command(dice: &mut Dice, map: &Map) -> Command {
    let node = node_of(disk(dice));
    let wanted = dice.below(3) == 0;
    let tables: Vec<u8> = map.tables().collect();
    let copies = one_of(dice, &tables).expect("there is one");
    let bits = map.partition_bits();
    let partition = PartitionId(dice.below(1 << bits) as u32);
    let held = map.configuration(copies, partition);
    let volumes: Vec<VolumeId> = map.volumes().map(|volume| volume.id).collect();
    let volume = one_of(dice, &volumes).unwrap_or(VolumeId(1));
    let disk = disk(dice);
    let incarnation = map.disk(disk).map_or(Incarnation(0), |disk| disk.incarnation);
    match dice.below(40) {
        0..3 => Command::AddNode { node, name: format!("{node}") },
        3..6 => Command::AddDisk { disk, node: node_of(disk), bytes: dice.below(100) },
        6..10 => {
            let incarnation = Incarnation(incarnation.0 + dice.below(3));
            Command::OpenDisk { disk, node: node_of(disk), incarnation }
        }
        10 => Command::SetZone { node, zone: format!("{}", dice.below(3)) },
        11 => Command::SetWeight { disk, bytes: 1 + dice.below(100) },
        12 | 13 => Command::DrainDisk { disk, wanted },
        14 => Command::DrainNode { node, wanted },
        15 => Command::RemoveDisk { disk },
        16 => Command::RemoveNode { node },
        17 => Command::CreateVolume { name: format!("{}", dice.below(6)), bytes: 4096, unix_s: 0 },
        18 => {
            let (holder, read_only) = ("guest".to_owned(), false);
            Command::Attach { volume, node, holder, read_only, unix_s: 0 }
        }
        19 => Command::ReleaseNode { node },
        20 => Command::DropVolume { volume, with_snapshots: true, unix_s: 0 },
        21 | 22 => {
            let min_copies = (dice.below(2) == 0).then(|| dice.below(4) as u8);
            let copies = dice.below(7) as u8;
            match dice.below(3) {
                0 => Command::SetCopies { volume, copies, min_copies },
                1 => Command::KeepCopies { volume, copies, min_copies },
                _ => {
                    let name = format!("{}", dice.below(6));
                    let (bytes, from, unix_s) = (4096, None, 0);
                    Command::CreateVolumeKept { name, bytes, from, copies, min_copies, unix_s }
                }
            }
        }
        23 => {
            let generation = map.volume(volume).map(|volume| volume.generation);
            let generation = generation.unwrap_or_default();
            Command::CopiesMoved { volume, generation, copies }
        }
        24..30 => {
            let mut wanted: Vec<DiskId> = held.members().map(|member| member.disk).collect();
            wanted.retain(|_| dice.below(4) > 0);
            if dice.below(3) == 0 {
                wanted.push(disk);
            }
            let from = ConfigurationNumber(held.number.0.saturating_sub(dice.below(8) / 7));
            let mut partitions = vec![(partition, from)];
            if dice.below(3) == 0 {
                let other = PartitionId(dice.below(1 << bits) as u32);
                partitions.push((other, map.configuration(copies, other).number));
            }
            let changes = vec![Change { wanted, partitions }];
            Command::BeginAttempt { copies, bits, owner: node, changes }
        }
        30..33 => {
            let numbers: Vec<u64> = map.attempts().map(|attempt| attempt.number).collect();
            let attempt = one_of(dice, &numbers).unwrap_or(1);
            activate(dice, map, attempt)
        }
        33..35 => {
            let attempt = 1 + dice.below(map.next_attempt);
            Command::GiveUpAttempt { attempt, may_be_refused: dice.below(2) == 0 }
        }
        35 if map.partition_bits() < 4 => {
            Command::SplitPartitions { bits: map.partition_bits() + dice.below(3) as u8 }
        }
        36 => {
            let generation = map.volume(volume).map(|volume| volume.generation);
            let generation = generation.unwrap_or_default();
            let durability = if wanted { Durability::Flush } else { Durability::Ack };
            match dice.below(3) {
                0 => Command::SetDurability { volume, durability },
                1 => {
                    let since = map.volume(volume).and_then(Volume::stable_since);
                    let since = since.filter(|_| dice.below(4) > 0).unwrap_or(map.epoch());
                    Command::StableFromNow { volume, generation, since }
                }
                _ => {
                    let name = format!("{}", dice.below(6));
                    let (bytes, from, unix_s, min_copies) = (4096, None, 0, None);
                    Command::CreateVolumeDurable {
                        name,
                        bytes,
                        from,
                        copies,
                        min_copies,
                        durability,
                        unix_s,
                    }
                }
            }
        }
        _ => towards_the_wish(dice, map, copies),
    }
}

/// The end of an attempt, with openings that more often than not are those of now.
fn activate(dice: &mut Dice, map: &Map, attempt: u64) -> Command {
    let disks = map.attempt(attempt).map(Attempt::disks).unwrap_or_default();
    let mut openings: Vec<Member> = disks
        .into_iter()
        .map(|disk| Member { disk, incarnation: map.disk(disk).expect("wanted").incarnation })
        .collect();
    if dice.below(8) == 0
        && let Some(opening) = openings.first_mut()
    {
        opening.incarnation = Incarnation(opening.incarnation.0 - 1);
    }
    if dice.below(8) == 0 {
        openings.pop();
    }
    Command::Activate { attempt, openings }
}

/// A step of a cluster that goes where placement wishes.
fn towards_the_wish(dice: &mut Dice, map: &Map, copies: u8) -> Command {
    if let Some(attempt) = map.attempts().next() {
        return activate(dice, map, attempt.number);
    }
    let (wish, bits) = (map.wanted_members(copies), map.partition_bits());
    let count = wish.len();
    let first = dice.below(count as u64) as usize;
    for index in (first..count).chain(0..first) {
        let partition = PartitionId(index as u32);
        let held = map.configuration(copies, partition);
        let current: Vec<Member> = wish[index]
            .iter()
            .filter_map(|&disk| map.disk(disk))
            .map(|disk| Member { disk: disk.id, incarnation: disk.incarnation })
            .collect();
        if current != held.current && !current.is_empty() && !held.current.is_empty() {
            let change =
                Change { wanted: wish[index].clone(), partitions: vec![(partition, held.number)] };
            let owner = map.nodes().next().expect("of the disks").id;
            return Command::BeginAttempt { copies, bits, owner, changes: vec![change] };
        }
    }
    Command::SplitPartitions { bits }
}

/// A disk that is taken out leaves as many for what it held as volumes ask for.
fn compare_removal(before: &Map, gone: DiskId) {
    for copies in before.tables() {
        for index in 0..1u32 << before.partition_bits() {
            let held = before.configuration(copies, PartitionId(index));
            let is_member = |disk: DiskId| held.current.iter().any(|member| member.disk == disk);
            let can_be = |disk: &&Disk| {
                let is_usable = disk.is_in() && disk.bytes > 0 && disk.incarnation.0 > 0;
                disk.id != gone
                    && disk.state != DiskState::Gone
                    && (is_member(disk.id) || is_usable)
            };
            let floor = held.current.len().min(usize::from(before.floor(copies)));
            let left = before.disks().filter(can_be).count();
            assert!(!is_member(gone) || left >= floor, "{gone}: {left} of {floor}");
        }
    }
}

/// Nobody is waited for who has not taken what a volume promises, or has, or is not there.
fn compare_promises(before: &Map, command: &Command, after: &Map) {
    for volume in after.volumes().filter(|volume| volume.awaits_stable()) {
        let writer = volume.writer().map(|writer| writer.generation);
        let former = before.volume(volume.id).expect("it was attached before");
        let is_new = matches!(command, Command::SetDurability { .. });
        assert!(former.awaits_stable() || is_new, "{command:?}");
        assert!(volume.durability == Durability::Ack && writer.is_some(), "{command:?}");
        assert_eq!(former.writer().map(|writer| writer.generation), writer, "{command:?}");
    }
}

/// What an accepted command may have done to the configurations.
fn compare(before: &Map, command: &Command, after: &Map) {
    if let &Command::RemoveDisk { disk } = command
        && before.disk(disk).is_some_and(|known| known.state != DiskState::Gone)
    {
        compare_removal(before, disk);
    }
    let doubled = after.partition_bits() - before.partition_bits();
    for copies in after.tables() {
        let is_new = !before.tables().any(|table| table == copies);
        for index in 0..1u32 << after.partition_bits() {
            let now = after.configuration(copies, PartitionId(index));
            let mut disks: Vec<DiskId> = now.members().map(|member| member.disk).collect();
            disks.sort();
            disks.dedup();
            assert_eq!(disks.len(), now.members().count(), "a disk twice");
            if is_new {
                let most = usize::from(copies).min(before.disks().len());
                assert!(now.current.len() <= most && now.recovering.is_empty());
                continue;
            }
            let then = before.configuration(copies, PartitionId(index >> doubled));
            assert!(then.current.is_empty() || !now.current.is_empty(), "{command:?}");
            assert!(now.number >= then.number && now.number.0 <= then.number.0 + 1);
            assert!(now.number > then.number || now.current == then.current, "{command:?}");
            let is_newer = now.number > then.number;
            if is_newer && matches!(command, Command::RemoveDisk { .. }) {
                assert!(!before.is_used(copies), "what lies there must be copied: {command:?}");
                continue;
            }
            if is_newer && after.disks().len() > 1 && !then.current.is_empty() {
                // Those come to count that an attempt wanted, as they are open now; and too few
                // never do.
                let &Command::Activate { attempt, .. } = command else { panic!("{command:?}") };
                assert_eq!(then.attempt, attempt, "the newest attempt at the partition");
                let wanted = &before.attempt(attempt).expect("under way").wanted;
                let wanted = &wanted[&PartitionId(index)];
                assert!(now.current.iter().map(|member| &member.disk).eq(wanted));
                assert!(now.current.iter().all(|member| before.is_present(*member)));
                assert!(!now.may_be_refused && now.attempt == 0);
                let fewest = then.current.len().min(usize::from(before.floor(copies)));
                assert!(now.current.len() >= fewest, "{command:?}");
            }
            // What may be refused stays so until the next members are there.
            assert!(is_newer || now.may_be_refused || !then.may_be_refused, "{command:?}");
            let is_over = then.attempt != 0 && now.attempt != then.attempt && !is_newer;
            let is_harmless =
                matches!(command, Command::GiveUpAttempt { may_be_refused: false, .. });
            assert!(!is_over || is_harmless || now.may_be_refused, "{command:?}");
            // Whatever a majority had acknowledged, one that is not gone has.
            let is_gone =
                |member: &&Member| after.disk(member.disk).expect("known").state == DiskState::Gone;
            let gone = now.current.iter().filter(is_gone).count();
            assert!(gone < now.quorum() && (gone == 0 || now.current == then.current));
        }
    }
}

#[test]
fn partitions_keep_members_whatever_comes_and_goes() {
    let mut accepted: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let mut state = State::default();
        let create = Command::CreateCluster { cluster: ClusterId(1), partition_bits: 1, unix_s: 0 };
        state.apply(&create).expect("new");
        let mut log = vec![create];
        for _ in 0..600 {
            let command = random_command(&mut dice, &state.map());
            assert_eq!(Command::decode(&command.encode()).as_ref(), Ok(&command));
            let before = state.clone();
            let result = state.apply(&command);
            if result.is_ok() {
                state.check();
                compare(&before.map(), &command, &state.map());
                compare_promises(&before.map(), &command, &state.map());
                let name = format!("{command:?}").split(' ').next().map(str::to_owned);
                *accepted.entry(name.expect("a name")).or_default() += 1;
            } else {
                assert_eq!(state, before, "{command:?} was refused and changed something");
            }
            let grown = state.map().epoch().0 - before.map().epoch().0;
            assert_eq!(grown, u64::from(state != before), "{command:?}");
            assert_eq!(State::decode(&state.encode()).as_ref(), Ok(&state));
            log.push(command);
        }
        let mut replayed = State::default();
        for command in &log {
            let _ = replayed.apply(command);
        }
        assert_eq!(replayed.encode(), state.encode());
    }
    let rare = [
        "CreateVolumeKept",
        "KeepCopies",
        "CreateVolumeDurable",
        "SetDurability",
        "StableFromNow",
        "AddDisk",
        "RemoveDisk",
        "RemoveNode",
        "SetCopies",
        "CopiesMoved",
        "GiveUpAttempt",
    ];
    for name in rare.into_iter().chain(["BeginAttempt", "Activate", "SplitPartitions"]) {
        assert!(accepted.get(name).is_some_and(|&count| count > 50), "{name}: {accepted:?}");
    }
}
