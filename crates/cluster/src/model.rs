//! The obvious version of the cluster's state, and a comparison of the two under random commands.
//!
//! It keeps volumes in a list and looks through all of it every time. Beyond names, sizes and
//! attachments it keeps, per volume, which blocks hold data and which of that data lay beyond the
//! end at some time: such data must never be seen again, and no other data may be discarded.

use crate::{Answer, Command, PendingDiscard, Refusal, RefusalKind, State, Volume};
use proto::{
    ClusterId, ConfigurationNumber, DiskId, Generation, Incarnation, LayerId, LineageId, NodeId,
    VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};

const BLOCK: u64 = proto::BLOCK_SIZE as u64;

/// A small generator of numbers that look random: splitmix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % limit
    }
}

#[derive(Clone, Default)]
struct ModelVolume {
    id: u64,
    name: String,
    bytes: u64,
    generation: u64,
    /// Generation, node, read-only.
    attachments: Vec<(u64, NodeId, bool)>,
    /// Blocks with data, and whether the data lay beyond the end at some time.
    data: BTreeMap<u64, bool>,
}

#[derive(Default)]
struct Model {
    created: bool,
    nodes: BTreeSet<NodeId>,
    disk: Option<(DiskId, NodeId, Incarnation)>,
    opened: u64,
    volumes: Vec<ModelVolume>,
    volumes_ever: u64,
}

impl Model {
    fn volume(&mut self, id: VolumeId) -> Result<&mut ModelVolume, RefusalKind> {
        self.volumes.iter_mut().find(|v| v.id == id.0).ok_or(RefusalKind::NotFound)
    }

    fn name(&self, name: &str, but: Option<VolumeId>) -> Result<(), RefusalKind> {
        if name.is_empty() || name.starts_with('-') || name.contains([' ', '/', '@', '\n']) {
            return Err(RefusalKind::Invalid);
        }
        let taken = self.volumes.iter().any(|v| v.name == name && Some(VolumeId(v.id)) != but);
        if taken { Err(RefusalKind::Exists) } else { Ok(()) }
    }

    /// What the state should say, given the pending discard it had; and the same change here.
    fn apply(
        &mut self,
        command: &Command,
        pending: Option<PendingDiscard>,
    ) -> Result<(), RefusalKind> {
        use RefusalKind::*;
        let require = |condition: bool, kind| if condition { Ok(()) } else { Err(kind) };
        let size = |bytes: u64| {
            require((4096..=1 << 50).contains(&bytes) && bytes.is_multiple_of(4096), Invalid)
        };
        if !matches!(command, Command::CreateCluster { .. }) {
            require(self.created, NotFound)?;
        }
        match command {
            Command::CreateCluster { .. } => {
                require(!self.created, Exists)?;
                self.created = true;
            }
            Command::AddNode { node, .. } => {
                self.nodes.insert(*node);
            }
            &Command::OpenDisk { disk, node, incarnation } => {
                require(self.nodes.contains(&node), NotFound)?;
                if let Some((known, owner, last)) = self.disk {
                    require(disk == known && owner == node && incarnation > last, Invalid)?;
                }
                self.disk = Some((disk, node, incarnation));
                self.opened += 1;
            }
            Command::CreateVolume { name, bytes, .. } => {
                self.name(name, None).map_err(|kind| match size(*bytes) {
                    Err(_) => Invalid,
                    Ok(()) => kind,
                })?;
                size(*bytes)?;
                self.volumes_ever += 1;
                let (id, name, bytes) = (self.volumes_ever, name.clone(), *bytes);
                self.volumes.push(ModelVolume { id, name, bytes, ..Default::default() });
            }
            &Command::ResizeVolume { volume, bytes, allow_shrink } => {
                size(bytes)?;
                let volume = self.volume(volume)?;
                require(bytes >= volume.bytes || allow_shrink, Invalid)?;
                let held = !volume.attachments.is_empty();
                require(bytes <= volume.bytes || pending.is_none() || !held, Busy)?;
                volume.bytes = bytes;
                for (block, dead) in &mut volume.data {
                    *dead |= block * BLOCK >= bytes;
                }
            }
            Command::RenameVolume { volume, name } => {
                let named = self.name(name, Some(*volume));
                require(named != Err(Invalid), Invalid)?;
                let _ = self.volume(*volume)?;
                named?;
                self.volume(*volume)?.name = name.clone();
            }
            &Command::DeleteVolume { volume, .. } => {
                require(self.volume(volume)?.attachments.is_empty(), Busy)?;
                self.volumes.retain(|v| v.id != volume.0);
            }
            &Command::Attach { volume, node, read_only, .. } => {
                let known = self.nodes.contains(&node);
                let volume = self.volume(volume)?;
                require(known, NotFound)?;
                let alone = volume.attachments.is_empty();
                let readers = volume.attachments.iter().all(|held| held.2);
                require(if read_only { readers } else { alone }, Busy)?;
                let seen = pending.is_none_or(|discard| volume.bytes <= discard.above);
                require(!read_only || seen, Busy)?;
                volume.generation += 1;
                volume.attachments.push((volume.generation, node, read_only));
            }
            &Command::Detach { volume, generation } => {
                if let Ok(volume) = self.volume(volume) {
                    volume.attachments.retain(|held| held.0 != generation.0);
                }
            }
            &Command::ShrinkDone { volume, generation, .. } => {
                let volume = self.volume(volume)?;
                let writes = volume.attachments.iter().any(|h| h.0 == generation.0 && !h.2);
                require(writes, Busy)?;
            }
            Command::ReleaseNode { node } => {
                require(self.nodes.contains(node), NotFound)?;
                for volume in &mut self.volumes {
                    volume.attachments.retain(|held| held.1 != *node);
                }
            }
            other => unreachable!("{other:?} belongs to the model of layers"),
        }
        Ok(())
    }

    /// What a session does with a volume between two commands: a writer writes all it is served,
    /// anybody looks at all of it.
    fn use_volume(&mut self, volume: &Volume) {
        let ours = self.volume(volume.id).expect("same volumes");
        for block in 0..(volume.served_bytes() / BLOCK).min(64) {
            if volume.writer().is_some() {
                ours.data.insert(block, false);
            }
            assert_ne!(ours.data.get(&block), Some(&true), "old data is seen at {block}");
        }
    }

    /// What a session does before it reports a shrink done.
    fn discard(&mut self, volume: VolumeId, discard: PendingDiscard) {
        for block in discard.above / BLOCK..discard.end / BLOCK {
            let dead = self.volume(volume).expect("same volumes").data.remove(&block);
            assert_ne!(dead, Some(false), "live data is discarded at {block}");
        }
    }

    fn compare(&self, state: &State) {
        let map = state.map();
        assert_eq!(map.volumes().len(), self.volumes.len());
        for (theirs, ours) in map.volumes().zip(&self.volumes) {
            assert_eq!(theirs.id.0, ours.id);
            assert_eq!(theirs.name, ours.name);
            assert_eq!(theirs.bytes, ours.bytes);
            assert_eq!(theirs.generation.0, ours.generation);
            assert_eq!(map.volume_named(&ours.name).map(|volume| volume.id), Some(theirs.id));
            let held = theirs.attachments.iter();
            let held: Vec<_> = held.map(|h| (h.generation.0, h.node, h.read_only)).collect();
            assert_eq!(held, ours.attachments);
            let dead = ours.data.iter().filter(|(_, dead)| **dead);
            for (block, _) in dead {
                let discard = theirs.pending_discard.expect("old data waits to be discarded");
                assert!((discard.above..discard.end).contains(&(block * BLOCK)));
            }
        }
        let sum: u64 = self.volumes.iter().map(|volume| volume.bytes).sum();
        assert_eq!(map.provisioned_bytes(), sum);
        for configuration in map.configurations().filter(|_| self.created) {
            assert_eq!(configuration.number, ConfigurationNumber(self.opened));
            let members =
                configuration.current.iter().map(|member| (member.disk, member.incarnation));
            let expected = self.disk.map(|(disk, _, incarnation)| (disk, incarnation));
            assert_eq!(members.collect::<Vec<_>>(), expected.into_iter().collect::<Vec<_>>());
        }
    }
}

/// A command that makes sense more often than not.
fn random_command(dice: &mut Dice, state: &State) -> Command {
    let map = state.map();
    let known: Vec<&Volume> = map.volumes().collect();
    let volume = match dice.below(12) {
        0 => VolumeId(dice.below(60)),
        _ if known.is_empty() => VolumeId(1),
        _ => known[dice.below(known.len() as u64) as usize].id,
    };
    let node = NodeId(1 + u128::from(dice.below(4)));
    let name = match dice.below(12) {
        0 => "-x".into(),
        1 => "a/b".into(),
        _ => format!("vm{}", dice.below(8)),
    };
    let bytes = match dice.below(16) {
        0 => dice.below(3) * 512,
        _ => dice.below(40) * BLOCK,
    };
    let held = map.volume(volume).and_then(|volume| volume.attachments.last());
    let generation = match dice.below(6) {
        0 => Generation(dice.below(5)),
        _ => held.map_or(Generation(1), |held| held.generation),
    };
    let unix_s = dice.below(1000);
    match dice.below(64) {
        0 => Command::CreateCluster { cluster: ClusterId(9), partition_bits: 4, unix_s },
        1 => Command::AddNode { node, name: format!("node{node}") },
        2..4 => Command::OpenDisk {
            disk: DiskId(if dice.below(8) == 0 { 8 } else { 7 }),
            node: NodeId(if dice.below(8) == 0 { 2 } else { 1 }),
            incarnation: Incarnation(dice.below(100)),
        },
        4..10 => Command::CreateVolume { name, bytes, unix_s },
        10..26 => Command::ResizeVolume { volume, bytes, allow_shrink: dice.below(3) > 0 },
        26..29 => Command::RenameVolume { volume, name },
        29..31 => Command::DeleteVolume { volume, with_snapshots: false },
        31..45 => {
            let (holder, read_only) = (format!("process {}", dice.below(9)), dice.below(4) == 0);
            Command::Attach { volume, node, holder, read_only, unix_s }
        }
        45..52 => Command::Detach { volume, generation },
        52..63 => {
            let pending = map.volume(volume).and_then(|volume| volume.pending_discard);
            let any = PendingDiscard { above: BLOCK, end: 2 * BLOCK };
            let discarded = if dice.below(4) == 0 { any } else { pending.unwrap_or(any) };
            Command::ShrinkDone { volume, generation, discarded }
        }
        _ => Command::ReleaseNode { node },
    }
}

/// Compares answers that carry ids with what was there before.
fn check_answer(
    answer: &Answer,
    before: &State,
    after: &State,
    command: &Command,
    ids: &mut BTreeSet<u64>,
) {
    match (answer, command) {
        (Answer::VolumeCreated { volume }, _) => {
            let map = after.map();
            let volume = map.volume(*volume).expect("it was created");
            assert!(ids.insert(volume.head.0), "a layer's id is issued twice");
            assert_eq!(volume.lineage, LineageId(volume.head.0));
        }
        (Answer::Attached { generation }, Command::Attach { volume, .. }) => {
            let before = before.map().volume(*volume).expect("it exists").generation;
            assert!(*generation > before, "a generation is issued twice");
        }
        (Answer::Dropped(layers), Command::DeleteVolume { volume, .. }) => {
            let map = before.map();
            let volume = map.volume(*volume).expect("it existed");
            assert_eq!(layers[..], [(volume.lineage, volume.head)]);
            let found = [layers[0], (LineageId(1 << 40), LayerId(1 << 40))];
            let fates: Vec<_> = after.map().layer_fates(&found).iter().map(|f| f.2).collect();
            assert_eq!(fates, [crate::LayerFate::Deleted, crate::LayerFate::NeverIssued]);
        }
        _ => {}
    }
}

fn run(seed: u64, steps: usize) -> (State, Vec<Command>, usize) {
    let mut dice = Dice(seed);
    let (mut state, mut model) = (State::default(), Model::default());
    let (mut log, mut accepted, mut ids) = (Vec::new(), 0, BTreeSet::new());
    for _ in 0..steps {
        let command = random_command(&mut dice, &state);
        let before = state.clone();
        let volume = match command {
            Command::ResizeVolume { volume, .. }
            | Command::Attach { volume, .. }
            | Command::ShrinkDone { volume, .. } => before.map().volume(volume).cloned(),
            _ => None,
        };
        let pending = volume.as_ref().and_then(|volume| volume.pending_discard);
        // A session discards only what it was told to, and reports only that.
        if let (Command::ShrinkDone { volume, generation, discarded }, Some(theirs)) =
            (&command, &volume)
            && theirs.writer().is_some_and(|writer| writer.generation == *generation)
            && pending == Some(*discarded)
        {
            model.discard(*volume, *discarded);
        }
        let result = state.apply(&command);
        let expected = model.apply(&command, pending);
        assert_eq!(
            result.as_ref().map(|_| ()).map_err(Refusal::kind),
            expected,
            "seed {seed}: {command:?}"
        );
        match &result {
            Ok(answer) => check_answer(answer, &before, &state, &command, &mut ids),
            Err(_) => assert_eq!(state, before, "a refused command changed something"),
        }
        let grown = state.map().epoch().0 - before.map().epoch().0;
        assert_eq!(grown, u64::from(state != before), "seed {seed}: {command:?}");
        accepted += usize::from(result.is_ok());
        state.check();
        model.compare(&state);
        for volume in state.map().volumes() {
            model.use_volume(volume);
        }
        assert_eq!(State::decode(&state.encode()).as_ref(), Ok(&state));
        assert_eq!(Command::decode(&command.encode()).as_ref(), Ok(&command));
        log.push(command);
    }
    (state, log, accepted)
}

#[test]
fn the_state_is_what_the_model_says() {
    let (mut accepted, mut all) = (0, 0);
    for seed in 0..100 {
        let (state, log, accepted_here) = run(seed, 400);
        accepted += accepted_here;
        all += log.len();
        let mut replayed = State::default();
        for command in &log {
            let _ = replayed.apply(command);
        }
        assert_eq!(replayed.encode(), state.encode(), "seed {seed}: replay gives another state");
    }
    assert!(accepted * 3 > all, "the commands are mostly nonsense: {accepted} of {all} accepted");
}
