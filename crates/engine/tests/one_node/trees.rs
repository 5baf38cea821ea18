//! Random snapshots, clones, rollbacks, flattenings and deletions, over stops and kills, beside the
//! obvious version: every volume and snapshot has a whole copy of its content. What is deleted must
//! free what was foretold, nothing else may change, and in the end all space must be back.

use crate::support::{MIB, World};
use engine::admin::{AdminReply, AdminRequest, FlattenAction, SnapshotReport};
use std::collections::BTreeMap;
use volume::{Answer, Completion, Operation};

const BLOCK: u64 = 4096;
const BYTES: u64 = 16 * MIB;
/// The blocks that are used: around the ends of map pages and objects.
const BLOCKS: [u64; 10] = [0, 1, 254, 255, 256, 257, 1023, 1024, 1500, 4095];

/// A small generator of numbers that look random: splitmix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % limit as u64) as usize
    }

    fn pick<T: Clone>(&mut self, some: impl IntoIterator<Item = T>) -> Option<T> {
        let all: Vec<T> = some.into_iter().collect();
        (!all.is_empty()).then(|| all[self.below(all.len())].clone())
    }
}

/// What each used block shows.
type Content = BTreeMap<u64, u8>;

#[derive(Clone, Default)]
struct Model {
    content: Content,
    snapshots: BTreeMap<String, Content>,
}

struct Tree {
    world: World,
    dice: Dice,
    volumes: BTreeMap<String, Model>,
    names: u64,
    byte: u8,
}

impl Tree {
    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}{}", self.names)
    }

    fn any(&mut self) -> String {
        self.dice.pick(self.volumes.keys().cloned()).expect("there is always one")
    }

    fn any_snapshot(&mut self) -> Option<(String, String)> {
        let all: Vec<_> = self
            .volumes
            .iter()
            .flat_map(|(name, model)| model.snapshots.keys().map(|tag| (name.clone(), tag.clone())))
            .collect();
        self.dice.pick(all)
    }

    /// A client comes, changes some blocks and goes.
    fn change(&mut self) {
        let name = self.any();
        let answer = self.world.open(1, "writer", &name);
        assert!(matches!(answer, Answer::Opened { .. }), "{answer:?}");
        for _ in 0..=self.dice.below(6) {
            let block = self.dice.pick(BLOCKS).expect("some");
            let content = &mut self.volumes.get_mut(&name).expect("picked").content;
            let operation = match self.dice.below(8) {
                0 => Operation::Discard { fua: false },
                1 => Operation::WriteZeroes { may_unmap: true, fast_only: false, fua: false },
                _ => {
                    self.byte = self.byte % 250 + 1;
                    content.insert(block, self.byte);
                    self.world.write(1, block * BLOCK, self.byte, BLOCK);
                    continue;
                }
            };
            content.remove(&block);
            let result = self.world.request(1, block * BLOCK, BLOCK, operation);
            assert!(matches!(result, Ok(Completion::Done)), "{result:?}");
        }
        self.world.close(1);
    }

    fn step(&mut self) {
        let choice = self.dice.below(24);
        match choice {
            0..8 => self.change(),
            8..12
                if self.volumes.values().map(|model| model.snapshots.len()).sum::<usize>() < 8 =>
            {
                let (name, tag) = (self.any(), self.name("t"));
                self.world.snapshot(&name, &tag);
                let model = self.volumes.get_mut(&name).expect("picked");
                model.snapshots.insert(tag, model.content.clone());
            }
            12..15 => self.delete_snapshot(),
            15..17 if self.volumes.len() < 5 => {
                let Some((name, tag)) = self.any_snapshot() else { return };
                let new_name = self.name("vm");
                let content = self.volumes[&name].snapshots[&tag].clone();
                self.volumes
                    .insert(new_name.clone(), Model { content, snapshots: BTreeMap::new() });
                self.world.volume(AdminRequest::VolumeClone { name, tag, new_name });
            }
            17..20 => {
                let Some((name, tag)) = self.any_snapshot() else { return };
                let model = self.volumes.get_mut(&name).expect("picked");
                model.content = model.snapshots[&tag].clone();
                self.world.volume(AdminRequest::VolumeRollback { name, tag });
            }
            20 => {
                let name = self.any();
                let action = FlattenAction::Start;
                let _ = self.world.admin(AdminRequest::VolumeFlatten { name, action });
            }
            21 if self.volumes.len() > 1 => {
                let name = self.any();
                self.volumes.remove(&name);
                self.delete_volume(name);
            }
            22 => {
                let world = std::mem::replace(&mut self.world, World::found());
                let (disk, journal) =
                    if self.dice.below(2) == 0 { world.stop() } else { world.kill() };
                self.world = World::start(disk, journal, false);
            }
            _ => self.compare(),
        }
    }

    fn delete_volume(&mut self, name: String) {
        let request = AdminRequest::VolumeDelete { name, with_snapshots: true, keep_s: Some(0) };
        assert_eq!(self.world.admin(request), Ok(AdminReply::Done));
    }

    /// Waits until the node flattens nothing: only a deletion may change what is used then.
    fn calm(&mut self) {
        for name in self.volumes.keys().cloned().collect::<Vec<_>>() {
            for _ in 0..100 {
                if self.world.info(&name).flatten.is_none() {
                    break;
                }
                self.world.pass(1);
            }
            assert_eq!(self.world.info(&name).flatten, None);
        }
    }

    /// Deletes a snapshot, and looks whether as much is free as was foretold.
    fn delete_snapshot(&mut self) {
        let Some((name, tag)) = self.any_snapshot() else { return };
        self.calm();
        let before = self.world.used_bytes();
        let snapshots = self.world.snapshots(&name, true);
        let named = |snapshot: &&SnapshotReport| snapshot.tag == tag;
        let foretold = snapshots.iter().find(named).expect("it is there").reclaimable_bytes;
        let request = AdminRequest::SnapshotDelete { name: name.clone(), tag: tag.clone() };
        assert_eq!(self.world.admin(request), Ok(AdminReply::Done));
        self.volumes.get_mut(&name).expect("picked").snapshots.remove(&tag);
        let after = self.world.used_bytes();
        assert_eq!(Some(before - after), foretold, "{name}@{tag}");
    }

    fn compare_one(&mut self, name: &str, content: &Content) {
        let answer = self.world.open(2, "reader", name);
        assert!(matches!(answer, Answer::Opened { .. }), "{name}: {answer:?}");
        for block in BLOCKS {
            let read = self.world.read(2, block * BLOCK, BLOCK);
            let expected = content.get(&block).copied().unwrap_or(0);
            assert_eq!((read[0], read[4095]), (expected, expected), "{name}, block {block}");
        }
        self.world.close(2);
    }

    fn compare(&mut self) {
        for (name, model) in self.volumes.clone() {
            self.compare_one(&name, &model.content);
            for (tag, content) in &model.snapshots {
                self.compare_one(&format!("{name}@{tag}"), content);
            }
            let report = self.world.info(&name);
            assert_eq!(report.bytes, BYTES);
            assert_eq!(report.snapshots as usize, model.snapshots.len());
            assert_eq!(report.used_bytes, report.head_bytes + report.snapshots_bytes);
        }
        // Everything used belongs to a volume or is hidden.
        self.calm();
        let used = self.world.used_bytes();
        let sum: u64 = self.volumes.keys().map(|name| self.world.info(name).used_bytes).sum();
        match self.world.admin(AdminRequest::Status) {
            Ok(AdminReply::Status(status)) => {
                assert_eq!(used, sum + status.hidden_bytes, "{status:?}")
            }
            other => panic!("{other:?}"),
        }
    }
}

fn run(seed: u64, steps: usize) {
    let mut world = World::found();
    world.create("vm0", BYTES);
    let volumes = BTreeMap::from([("vm0".to_owned(), Model::default())]);
    let mut tree = Tree { world, dice: Dice(seed), volumes, names: 0, byte: 0 };
    for _ in 0..steps {
        tree.step();
    }
    tree.compare();
    while let Some((name, _)) = tree.volumes.pop_first() {
        tree.delete_volume(name);
        for (name, model) in tree.volumes.clone() {
            tree.compare_one(&name, &model.content);
        }
    }
    assert_eq!(tree.world.used_bytes(), 0, "seed {seed}: space is used by nobody");
}

#[test]
fn every_volume_and_snapshot_shows_what_was_written_and_deleting_frees_what_was_foretold() {
    for seed in 0..12 {
        run(seed, 60);
    }
}
