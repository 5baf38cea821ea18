//! The obvious version of layers: every volume and snapshot keeps a whole copy of its content.
//! Under random commands it is compared with what a disk would show that keeps, for each layer,
//! only what was written to it, knows the trees only from the layers it was told to open, and drops
//! what it is told to drop.

use crate::model::Dice;
use crate::{Answer, Command, Layer, Map, Refusal, RefusalKind, State, Volume};
use proto::{BLOCK_SIZE, ClusterId, Generation, LayerId, NodeId, VolumeId};
use std::collections::BTreeMap;

const BLOCK: u64 = BLOCK_SIZE as u64;
const NODE: NodeId = NodeId(1);
/// What lies elsewhere: this, plus the number of the block.
const SOURCE: u64 = 1 << 50;
/// Content of a volume: what was written, by block.
type Content = BTreeMap<u64, u64>;

/// What a disk keeps: what was written to each layer, nothing for what was zeroed, and the layer
/// below it in its lineage.
#[derive(Default)]
struct Disk {
    layers: BTreeMap<LayerId, (LayerId, BTreeMap<u64, Option<u64>>)>,
}

impl Disk {
    fn open(&mut self, layer: LayerId, parent: LayerId) {
        assert!(parent == LayerId(0) || self.layers.contains_key(&parent), "{parent} is unknown");
        self.layers.entry(layer).or_insert((parent, BTreeMap::new()));
    }

    fn drop(&mut self, layer: LayerId) {
        let Some((parent, written)) = self.layers.remove(&layer) else { return };
        let mut children = self.layers.values_mut().filter(|(below, _)| *below == layer);
        let Some(child) = children.next() else { return };
        assert!(children.next().is_none(), "layer {layer} with two children is dropped");
        child.0 = parent;
        for (block, value) in written {
            child.1.entry(block).or_insert(value);
        }
    }

    /// What the lineage of a layer has of a block, seen from that layer.
    fn entry(&self, layer: LayerId, block: u64) -> Option<Option<u64>> {
        let mut at = layer;
        while let Some((parent, written)) = self.layers.get(&at) {
            if let Some(value) = written.get(&block) {
                return Some(*value);
            }
            at = *parent;
        }
        None
    }

    /// A block as a layer shows it: here, and where its lineage has nothing, in its origin.
    fn read(&self, map: &Map, layer: LayerId, block: u64) -> Option<u64> {
        if let Some(value) = self.entry(layer, block) {
            return value;
        }
        let origin = map.origin(layer).filter(|origin| block * BLOCK < origin.bytes)?;
        match map.source(origin.layer) {
            Some(source) => (block * BLOCK < source.bytes).then_some(SOURCE + block),
            None => self.read(map, origin.layer, block),
        }
    }
}

#[derive(Default)]
struct Model {
    disk: Disk,
    volumes: BTreeMap<VolumeId, (Content, BTreeMap<String, Content>)>,
}

impl Model {
    /// What an accepted command means.
    fn apply(&mut self, command: &Command, answer: &Answer, before: &Map, map: &Map) {
        match (command, answer) {
            (Command::CreateVolume { .. }, Answer::VolumeCreated { volume }) => {
                self.volumes.insert(*volume, Default::default());
            }
            (Command::CloneSnapshot { volume, tag, .. }, Answer::VolumeCreated { volume: new }) => {
                let content = self.volumes[volume].1[tag].clone();
                self.volumes.insert(*new, (content, BTreeMap::new()));
            }
            (Command::CreateVolumeFrom { source_bytes, bytes, .. }, answer) => {
                let Answer::VolumeCreated { volume } = answer else { panic!("{answer:?}") };
                let shown = 0..source_bytes.min(bytes).div_ceil(BLOCK);
                let content = shown.map(|block| (block, SOURCE + block)).collect();
                self.volumes.insert(*volume, (content, BTreeMap::new()));
            }
            (
                Command::DeleteVolume { volume, .. }
                | Command::DropVolume { volume, .. }
                | Command::Purge { volume },
                _,
            ) => {
                self.volumes.remove(volume);
            }
            (Command::SnapshotGroup { tag, .. }, Answer::GroupSnapshotCreated { layers }) => {
                for (volume, _) in layers {
                    let (content, snapshots) = self.volumes.get_mut(volume).expect("known");
                    snapshots.insert(tag.clone(), content.clone());
                }
            }
            (Command::DropGroupSnapshot { name, tag, .. }, _) => {
                for volume in members(before, name, tag) {
                    self.volumes.get_mut(&volume).expect("known").1.remove(tag);
                }
            }
            (Command::RollbackGroup { name, tag }, _) => {
                for volume in members(before, name, tag) {
                    let (content, snapshots) = self.volumes.get_mut(&volume).expect("known");
                    *content = snapshots[tag].clone();
                }
            }
            (Command::ResizeVolume { volume, bytes, .. }, _) => {
                let head = before.volume(*volume).expect("it was resized").head;
                let written = self.writable(before, head);
                for block in *bytes / BLOCK..64 {
                    written.insert(block, None);
                }
                self.volumes.get_mut(volume).expect("known").0.retain(|b, _| *b < *bytes / BLOCK);
            }
            (
                Command::CreateSnapshot { volume, tag, .. }
                | Command::ScheduledSnapshot { volume, tag, .. },
                _,
            ) => {
                let (content, snapshots) = self.volumes.get_mut(volume).expect("known");
                snapshots.insert(tag.clone(), content.clone());
            }
            (
                Command::DeleteSnapshot { volume, tag } | Command::DropSnapshot { volume, tag, .. },
                _,
            ) => {
                self.volumes.get_mut(volume).expect("known").1.remove(tag);
            }
            (Command::Rollback { volume, tag }, _) => {
                let (content, snapshots) = self.volumes.get_mut(volume).expect("known");
                *content = snapshots[tag].clone();
            }
            _ => {}
        }
        if let Answer::Dropped(layers) = answer {
            layers.iter().for_each(|&(_, layer)| self.disk.drop(layer));
        }
        for (_, layer) in map.layers() {
            let Layer { opened, .. } = *map.layer(layer).expect("listed");
            let is_source = map.source(layer).is_some();
            if opened && !is_source && !self.disk.layers.contains_key(&layer) {
                let parent = map.parent_in_lineage(layer).unwrap_or_default();
                self.disk.open(layer, parent);
            }
        }
    }

    /// What the writer of a volume does between two commands.
    fn write(&mut self, map: &Map, volume: &Volume, block: u64, value: u64) {
        let written = self.writable(map, volume.head);
        let is_zero = value.is_multiple_of(5);
        written.insert(block, (!is_zero).then_some(value));
        let content = &mut self.volumes.get_mut(&volume.id).expect("known").0;
        if is_zero {
            content.remove(&block);
        } else {
            content.insert(block, value);
        }
    }

    /// What was written to a head; the disk is told of it if it was not.
    fn writable(&mut self, map: &Map, head: LayerId) -> &mut BTreeMap<u64, Option<u64>> {
        self.disk.open(head, map.parent_in_lineage(head).unwrap_or_default());
        &mut self.disk.layers.get_mut(&head).expect("just opened").1
    }

    /// What the writer does before it reports that nothing shows through.
    fn flatten(&mut self, map: &Map, volume: &Volume) {
        for block in 0..volume.bytes / BLOCK {
            let value = self.disk.read(map, volume.head, block);
            self.writable(map, volume.head).insert(block, value);
        }
    }

    /// What the writer does before it reports that nothing is needed of what lies above a parent.
    fn shorten(&mut self, map: &Map, volume: &Volume, parent: LayerId) {
        let chain = map.chain(volume.head);
        for block in 0..volume.bytes / BLOCK {
            let mut entry = self.disk.entry(volume.head, block);
            for origin in chain.iter().take_while(|origin| origin.layer != parent) {
                if entry.is_none() && block * BLOCK < origin.bytes {
                    entry = self.disk.entry(origin.layer, block);
                } else {
                    break;
                }
            }
            // What is nowhere in between is not copied.
            if let Some(value) = entry {
                self.writable(map, volume.head).insert(block, value);
            }
        }
    }

    fn compare(&self, map: &Map) {
        let shown = |layer, bytes: u64| -> Content {
            let read = |block| Some((block, self.disk.read(map, layer, block)?));
            (0..bytes / BLOCK).filter_map(read).collect()
        };
        assert_eq!(map.volumes().len(), self.volumes.len());
        for volume in map.volumes() {
            let (content, snapshots) = &self.volumes[&volume.id];
            let below = map.parent_in_lineage(volume.head).unwrap_or_default();
            // If nobody has told the disk of the head yet, it has no content of its own.
            let is_known = self.disk.layers.contains_key(&volume.head);
            let seen = shown(if is_known { volume.head } else { below }, volume.bytes);
            assert_eq!(seen, *content, "volume {}", volume.name);
            assert_eq!(volume.snapshots.len(), snapshots.len());
            for snapshot in &volume.snapshots {
                let seen = shown(snapshot.layer, snapshot.bytes);
                assert_eq!(seen, snapshots[&snapshot.tag], "{}@{}", volume.name, snapshot.tag);
            }
        }
        for layer in self.disk.layers.keys() {
            assert!(map.layer(*layer).is_some(), "layer {layer} is kept and needed by nobody");
        }
    }
}

/// The volumes of a group snapshot.
fn members(map: &Map, name: &str, tag: &str) -> Vec<VolumeId> {
    let snapshot = map.group(name).and_then(|group| group.snapshot(tag)).expect("it was there");
    snapshot.members.iter().map(|&(volume, _)| volume).collect()
}

/// One that concerns the trash, locks, groups, schedules or sources.
fn rare_command(dice: &mut Dice, map: &Map, volume: &Volume, tag: String) -> Command {
    let (id, unix_s) = (volume.id, dice.below(1000));
    let name = format!("g{}", dice.below(3));
    let group = map.group(&name).and_then(|group| group.snapshots.first());
    let group_tag = group.map_or("t0".into(), |snapshot| snapshot.tag.clone());
    let (schedule, with_snapshots) = ("s".to_owned(), dice.below(2) == 0);
    match dice.below(16) {
        0 => Command::CreateGroup { name, unix_s },
        1 => match dice.below(8) {
            0 => Command::DeleteGroup { name },
            _ => Command::DropGroupSnapshot { name, tag: group_tag, unix_s },
        },
        2..5 => Command::ChangeGroup { name, volumes: vec![id], member: dice.below(4) > 0 },
        5..8 => Command::SnapshotGroup { name, tag: format!("t{}", dice.below(9)), unix_s },
        8 => Command::RollbackGroup { name, tag: group_tag },
        9 => Command::TrashVolume { volume: id, with_snapshots, unix_s, expires_unix_s: unix_s },
        10 => Command::DropVolume { volume: id, with_snapshots, unix_s },
        11 => match dice.below(2) {
            0 => Command::DropSnapshot { volume: id, tag, unix_s },
            _ => Command::LockSnapshot { volume: id, tag, until_unix_s: dice.below(500) },
        },
        12 => Command::SetSchedule { volume: id, schedule, every_s: 60, keep: 2, unix_s },
        13 => {
            let (slot, tag) = (unix_s / 60, format!("t{}", dice.below(9)));
            Command::ScheduledSnapshot { volume: id, schedule, slot, tag, unix_s }
        }
        _ => Command::CreateVolumeFrom {
            name: format!("vm{}", dice.below(12)),
            bytes: BLOCK * (1 + dice.below(16)),
            address: "nbd://elsewhere".into(),
            source_bytes: 1 + dice.below(16 * BLOCK),
            unix_s,
        },
    }
}

fn shorten(dice: &mut Dice, map: &Map, volume: &Volume) -> Command {
    let generation = volume.attachments.last().map_or(Generation(1), |held| held.generation);
    let chain = map.chain(volume.head);
    let place = dice.below(chain.len() as u64 + 1) as usize;
    let parent = chain.get(place).map_or(LayerId(1), |origin| origin.layer);
    Command::Shortened { volume: volume.id, generation, parent }
}

/// The next step towards a clone of the volume with the longest chain, or that is shortened.
fn deepen(dice: &mut Dice, map: &Map) -> Option<Command> {
    let live = map.volumes().filter(|volume| volume.trash.is_none());
    let volume = live.max_by_key(|volume| map.chain(volume.head).len())?;
    let (id, unix_s, tag) = (volume.id, 0, "deep".to_owned());
    let Some(writer) = volume.writer() else {
        let holder = "process 2".to_owned();
        return Some(Command::Attach { volume: id, node: NODE, holder, read_only: false, unix_s });
    };
    let generation = writer.generation;
    if map.sealing(volume).is_some() {
        return Some(Command::LayerOpened { volume: id, generation, layer: volume.head });
    }
    if let Some(snapshot) = volume.snapshots.first() {
        let (tag, name) = (snapshot.tag.clone(), format!("deep{}", dice.below(1 << 30)));
        return Some(Command::CloneSnapshot { volume: id, tag, name, unix_s });
    }
    Some(match dice.below(4) {
        0 if map.chain(volume.head).len() > 1 => shorten(dice, map, volume),
        _ => Command::CreateSnapshot { volume: id, tag, unix_s },
    })
}

/// A command that makes sense more often than not.
fn random_command(dice: &mut Dice, map: &Map) -> Command {
    let known: Vec<&Volume> = map.volumes().collect();
    let unix_s = dice.below(1000);
    let name = format!("vm{}", dice.below(12));
    let bytes = BLOCK * (1 + dice.below(16));
    if known.is_empty() || dice.below(16) == 0 {
        return Command::CreateVolume { name, bytes, unix_s };
    }
    let volume = known[dice.below(known.len() as u64) as usize];
    let tag = match &volume.snapshots[..] {
        [] => "t0".to_owned(),
        some if dice.below(8) > 0 => some[dice.below(some.len() as u64) as usize].tag.clone(),
        _ => format!("t{}", dice.below(9)),
    };
    let generation = volume.attachments.last().map_or(Generation(1), |held| held.generation);
    let (id, holder) = (volume.id, "process 1".to_owned());
    if volume.trash.is_some() {
        return match dice.below(3) {
            0 => Command::Purge { volume: id },
            _ => Command::Undelete { volume: id, name },
        };
    }
    if dice.below(6) == 0 {
        return rare_command(dice, map, volume, tag);
    }
    if dice.below(6) == 0
        && let Some(command) = deepen(dice, map)
    {
        return command;
    }
    match dice.below(32) {
        0..6 => Command::CreateSnapshot { volume: id, tag: format!("t{}", dice.below(9)), unix_s },
        6..10 => Command::DeleteSnapshot { volume: id, tag },
        10..13 => Command::CloneSnapshot { volume: id, tag, name, unix_s },
        13..16 => Command::Rollback { volume: id, tag },
        16..20 => Command::Attach { volume: id, node: NODE, holder, read_only: false, unix_s },
        20..23 => Command::LayerOpened { volume: id, generation, layer: volume.head },
        23..26 => Command::Detach { volume: id, generation },
        26 => match dice.below(8) {
            0 => Command::SetFlatten { volume: id, wanted: dice.below(3) > 0 },
            1..6 => Command::Flattened { volume: id, generation },
            _ => shorten(dice, map, volume),
        },
        27 => Command::AttachSnapshot { volume: id, tag, node: NODE, holder, unix_s },
        28 => Command::DeleteVolume { volume: id, with_snapshots: dice.below(2) == 0 },
        29 => Command::ReleaseNode { node: NODE },
        _ if volume.pending_discard.is_none() => {
            Command::ResizeVolume { volume: id, bytes, allow_shrink: true }
        }
        _ => {
            let discarded = volume.pending_discard.expect("just seen");
            Command::ShrinkDone { volume: id, generation, discarded }
        }
    }
}

/// Runs random commands; counts those accepted, and the volumes that were shortened.
fn run(seed: u64, steps: usize) -> (usize, usize) {
    let mut dice = Dice(seed);
    let (mut state, mut model) = (State::default(), Model::default());
    let create = Command::CreateCluster { cluster: ClusterId(9), partition_bits: 4, unix_s: 0 };
    state.apply(&create).expect("new");
    state.apply(&Command::AddNode { node: NODE, name: "alpha".into() }).expect("new");
    let (mut accepted, mut shortened) = (0, 0);
    for step in 0..steps {
        let before = state.map();
        let command = random_command(&mut dice, &before);
        let writer = |id, generation: Generation| {
            let volume = before.volume(id)?;
            volume.writer().filter(|held| held.generation == generation)?;
            Some(volume)
        };
        match command {
            Command::Flattened { volume, generation } => {
                if let Some(volume) = writer(volume, generation) {
                    model.flatten(&before, volume);
                }
            }
            Command::Shortened { volume, generation, parent } => {
                if let Some(volume) = writer(volume, generation) {
                    model.shorten(&before, volume, parent);
                }
            }
            Command::LayerOpened { volume, generation, .. } => {
                if let Some(volume) = writer(volume, generation) {
                    let parent = before.parent_in_lineage(volume.head);
                    model.disk.open(volume.head, parent.unwrap_or_default());
                }
            }
            _ => {}
        }
        let foretold = match &command {
            Command::DeleteSnapshot { volume, tag } | Command::DropSnapshot { volume, tag, .. } => {
                before
                    .volume(*volume)
                    .and_then(|volume| volume.snapshot(tag))
                    .map(|snapshot| before.going_with(snapshot.layer))
            }
            _ => None,
        };
        match state.apply(&command) {
            Ok(answer) => {
                accepted += 1;
                if let (Some(foretold), Answer::Dropped(gone)) = (foretold, &answer) {
                    let foretold = foretold.iter().map(|going| (going.lineage, going.layer));
                    assert_eq!(foretold.collect::<Vec<_>>(), *gone);
                }
                let changed = before.epoch() != state.map().epoch();
                shortened += usize::from(changed && matches!(command, Command::Shortened { .. }));
                model.apply(&command, &answer, &before, &state.map());
            }
            Err(_) => assert_eq!(before, state.map(), "a refused command changed something"),
        }
        state.check();
        let map = state.map();
        for volume in map.volumes().filter(|volume| volume.writer().is_some()) {
            let block = dice.below(volume.served_bytes() / BLOCK);
            model.write(&map, volume, block, dice.below(1 << 40));
        }
        model.compare(&map);
        assert_eq!(State::decode(&state.encode()).as_ref(), Ok(&state), "step {step}");
        assert_eq!(Command::decode(&command.encode()).as_ref(), Ok(&command));
    }
    let ids: Vec<_> = state.map().volumes().map(|volume| volume.id).collect();
    state.apply(&Command::ReleaseNode { node: NODE }).expect("known");
    for volume in ids {
        let before = state.map();
        let command = match before.volume(volume).expect("known").trash {
            Some(_) => Command::Purge { volume },
            None => Command::DropVolume { volume, with_snapshots: true, unix_s: 1000 },
        };
        let answer = state.apply(&command).expect("nobody has it");
        model.apply(&command, &answer, &before, &state.map());
        model.compare(&state.map());
    }
    assert_eq!(state.map().layers().count(), 0, "a layer is kept for nobody");
    assert!(model.disk.layers.is_empty(), "a disk keeps a layer for nobody");
    assert_eq!(state.map().sources().count(), 0, "a source is kept for nobody");
    assert!(state.map().groups().all(|group| group.snapshots.is_empty()));
    (accepted, shortened)
}

#[test]
fn every_volume_and_snapshot_shows_what_was_written_whatever_is_dropped() {
    let (seeds, steps) = (150, 300);
    let (mut accepted, mut shortened) = (0, 0);
    for seed in 0..seeds {
        let counts = run(seed, steps);
        accepted += counts.0;
        shortened += counts.1;
    }
    assert!(shortened > 100, "{shortened} volumes were shortened");
    assert!(accepted * 3 > seeds as usize * steps, "mostly nonsense: {accepted} accepted");
}

#[test]
fn flattening_is_wanted_until_nothing_shows_through() {
    let mut state = State::default();
    let create = Command::CreateCluster { cluster: ClusterId(9), partition_bits: 4, unix_s: 0 };
    state.apply(&create).expect("new");
    state.apply(&Command::AddNode { node: NODE, name: "alpha".into() }).expect("new");
    let create = Command::CreateVolume { name: "vm1".into(), bytes: 8192, unix_s: 0 };
    state.apply(&create).expect("new");
    let (base, copy) = (VolumeId(1), VolumeId(2));
    let flatten = |volume, wanted| Command::SetFlatten { volume, wanted };
    let attach = |volume| {
        let holder = "h".to_owned();
        Command::Attach { volume, node: NODE, holder, read_only: false, unix_s: 0 }
    };
    snapshot(&mut state, base, "a").expect("free");
    state.apply(&attach(base)).expect("free");
    let opened =
        Command::LayerOpened { volume: base, generation: Generation(1), layer: LayerId(2) };
    state.apply(&opened).expect("the writer");
    let (tag, name) = ("a".to_owned(), "copy".to_owned());
    state.apply(&Command::CloneSnapshot { volume: base, tag, name, unix_s: 0 }).expect("sealed");

    let refused = state.apply(&flatten(base, true)).expect_err("no clone");
    assert_eq!(refused.kind(), RefusalKind::Invalid);
    assert_eq!(
        refused.to_string(),
        "volume \"vm1\" shows nothing of another volume's snapshot, so there is nothing to \
         flatten; `dog volume info` names what a clone shows"
    );
    assert_eq!(state.apply(&flatten(base, false)), Ok(Answer::Done));
    let wanted = |state: &State| state.map().volume(copy).expect("known").flattening;
    for on in [true, true, false, true] {
        assert_eq!(state.apply(&flatten(copy, on)), Ok(Answer::Done));
        assert_eq!(wanted(&state), on);
    }
    // It goes on in a new head, and ends when that shows nothing of others.
    snapshot(&mut state, copy, "b").expect("free");
    assert!(wanted(&state));
    state.apply(&attach(copy)).expect("free");
    let done = Command::Flattened { volume: copy, generation: Generation(1) };
    state.apply(&done).expect("the writer");
    assert!(!wanted(&state));
    state.check();
}

fn snapshot(state: &mut State, volume: VolumeId, tag: &str) -> Result<Answer, Refusal> {
    state.apply(&Command::CreateSnapshot { volume, tag: tag.into(), unix_s: 7 })
}

#[test]
fn refusals_about_snapshots_say_what_to_do() {
    let mut state = State::default();
    let create = Command::CreateCluster { cluster: ClusterId(9), partition_bits: 4, unix_s: 0 };
    state.apply(&create).expect("new");
    state.apply(&Command::AddNode { node: NODE, name: "alpha".into() }).expect("new");
    state
        .apply(&Command::CreateVolume { name: "vm1".into(), bytes: 8192, unix_s: 0 })
        .expect("new");
    let volume = VolumeId(1);
    snapshot(&mut state, volume, "a").expect("free");
    let attach =
        Command::Attach { volume, node: NODE, holder: "h".into(), read_only: false, unix_s: 0 };
    let rollback = |tag: &str| Command::Rollback { volume, tag: tag.into() };
    let delete = |tag: &str| Command::DeleteSnapshot { volume, tag: tag.into() };
    let read = |tag: &str| {
        let (tag, holder) = (tag.to_owned(), "reader".to_owned());
        Command::AttachSnapshot { volume, tag, node: NODE, holder, unix_s: 0 }
    };
    let sealing = "the last snapshot of volume \"vm1\" is still being taken, or its last rollback \
                   being finished; try again a little later";
    let check = |state: &mut State, command: Command, kind, sentence: &str| {
        let before = state.clone();
        let refusal = state.apply(&command).expect_err("refused");
        assert_eq!((refusal.to_string(), refusal.kind()), (sentence.to_owned(), kind));
        assert_eq!(*state, before);
    };
    for command in [rollback("a"), delete("a"), read("a")] {
        check(&mut state, command, RefusalKind::Busy, sealing);
    }
    let second = Command::CreateSnapshot { volume, tag: "b".into(), unix_s: 0 };
    check(&mut state, second, RefusalKind::Busy, sealing);
    state.apply(&attach).expect("free");
    let opened = |layer| Command::LayerOpened { volume, generation: Generation(1), layer };
    assert_eq!(state.apply(&opened(LayerId(2))), Ok(Answer::Done));
    assert_eq!(state.apply(&opened(LayerId(2))), Ok(Answer::Done));
    check(
        &mut state,
        Command::CreateSnapshot { volume, tag: "a".into(), unix_s: 0 },
        RefusalKind::Exists,
        "volume \"vm1\" has a snapshot \"a\" already; choose another tag",
    );
    check(
        &mut state,
        Command::CreateSnapshot { volume, tag: "a@b".into(), unix_s: 0 },
        RefusalKind::Invalid,
        "\"a@b\" cannot be a snapshot's tag because it contains '/' or '@'; choose 1 to 255 \
         printable characters without white space, '/' or '@', not starting with '-'",
    );
    check(
        &mut state,
        delete("z"),
        RefusalKind::NotFound,
        "volume \"vm1\" has no snapshot \"z\"; see what it has with `dog volume snapshots`",
    );
    check(
        &mut state,
        rollback("a"),
        RefusalKind::Busy,
        "volume \"vm1\" is attached by h on node alpha; stop it or wait until it closes the volume",
    );
    state.apply(&Command::Detach { volume, generation: Generation(1) }).expect("held");
    state.apply(&read("a")).expect("sealed");
    let held = "snapshot \"vm1@a\" is read by reader on node alpha; stop it or wait until it \
                closes the snapshot";
    check(&mut state, delete("a"), RefusalKind::Busy, held);
    let whole = Command::DeleteVolume { volume, with_snapshots: true };
    let held = "volume \"vm1\" is attached read-only by reader on node alpha; stop it or wait \
                until it closes the volume";
    check(&mut state, whole, RefusalKind::Busy, held);
    state.apply(&Command::Detach { volume, generation: Generation(2) }).expect("held");
    check(
        &mut state,
        Command::DeleteVolume { volume, with_snapshots: false },
        RefusalKind::Busy,
        "volume \"vm1\" has 1 snapshots; delete them first, or the volume with them \
         (--with-snapshots)",
    );
}
