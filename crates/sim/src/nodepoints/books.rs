//! The model beside a node: which volumes and snapshots there must be, by name. What each shows,
//! the oracle knows, under the number that stands here.

use std::collections::{BTreeMap, BTreeSet};

/// A volume that exists.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Volume {
    /// Its id; the oracle calls it so too.
    pub(super) id: u64,
    /// The layer that is written.
    pub(super) head: u64,
    /// Its snapshots with their layers, oldest first.
    pub(super) snapshots: Vec<(String, u64)>,
    /// The volume and tag of the snapshot it was cloned from, until it is flattened; without names
    /// if that was deleted, and is kept for it.
    pub(super) origin: Option<(String, String)>,
    /// Whether it is in the trash.
    pub(super) trashed: bool,
}

/// One change of what there is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Change {
    Create {
        name: String,
    },
    Delete {
        name: String,
    },
    Resize {
        name: String,
        bytes: u64,
    },
    Snapshot {
        name: String,
        tag: String,
    },
    Clone {
        name: String,
        tag: String,
        new_name: String,
    },
    Rollback {
        name: String,
        tag: String,
    },
    Flatten {
        name: String,
    },
    DeleteSnapshot {
        name: String,
        tag: String,
    },
    Trash {
        name: String,
    },
    Undelete {
        name: String,
    },
    /// The volume becomes a member of the group, if it is none.
    Join {
        name: String,
    },
    /// A snapshot of all members of the group.
    SnapshotGroup {
        tag: String,
    },
    /// All volumes go back to where a snapshot of the group has them.
    RollbackGroup {
        tag: String,
    },
    /// What is left of a snapshot of the group goes.
    DropGroupSnapshot {
        tag: String,
    },
}

/// The one group.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Group {
    /// The member that stays one: other volumes come and go beside it.
    pub(super) partner: String,
    /// Its members, by name.
    pub(super) members: BTreeSet<String>,
    /// Its snapshots, oldest first.
    pub(super) snapshots: Vec<GroupSnapshot>,
}

/// A snapshot of the group that is whole.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct GroupSnapshot {
    pub(super) tag: String,
    /// Of how many volumes it was taken.
    pub(super) count: usize,
    /// The layers of those of its parts that exist.
    pub(super) parts: BTreeSet<u64>,
}

/// Names of volumes, and of each its snapshots' tags.
pub(super) type Shape = BTreeMap<String, BTreeSet<String>>;

/// All that exists. See the module.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub(super) struct Books {
    pub(super) volumes: BTreeMap<String, Volume>,
    /// Layers of snapshots that ever were: some are kept, hidden, for others.
    pub(super) sealed: BTreeSet<u64>,
    pub(super) group: Option<Group>,
    /// Number of the last name that was given.
    pub(super) next_name: u64,
}

/// What the oracle calls the content of a snapshot's layer: as no volume is called.
pub(super) fn entry(layer: u64) -> u64 {
    (1 << 32) | layer
}

impl Books {
    /// What exists, by name.
    pub(super) fn shape(&self) -> Shape {
        let tags = |volume: &Volume| volume.snapshots.iter().map(|(tag, _)| tag.clone()).collect();
        let seen = self.volumes.iter().filter(|(_, volume)| !volume.trashed);
        seen.map(|(name, volume)| (name.clone(), tags(volume))).collect()
    }

    /// The names of what is in the trash.
    pub(super) fn in_trash(&self) -> Vec<String> {
        let trashed = self.volumes.iter().filter(|(_, volume)| volume.trashed);
        trashed.map(|(name, _)| name.clone()).collect()
    }

    /// What exists by name after one change more.
    pub(super) fn shape_after(&self, change: &Change) -> Shape {
        let mut shape = self.shape();
        match change {
            Change::Create { name } | Change::Clone { new_name: name, .. } => {
                shape.insert(name.clone(), BTreeSet::new());
            }
            Change::Delete { name } | Change::Trash { name } => {
                shape.remove(name);
            }
            Change::Undelete { name } => {
                let snapshots = &self.volume(name).snapshots;
                let tags = snapshots.iter().map(|(tag, _)| tag.clone());
                shape.insert(name.clone(), tags.collect());
            }
            Change::Snapshot { name, tag } => {
                shape.entry(name.clone()).or_default().insert(tag.clone());
            }
            Change::DeleteSnapshot { name, tag } => {
                shape.entry(name.clone()).or_default().remove(tag);
            }
            Change::SnapshotGroup { tag } => {
                for name in &self.group().members {
                    shape.entry(name.clone()).or_default().insert(tag.clone());
                }
            }
            Change::DropGroupSnapshot { tag } => {
                for name in self.parts(tag).into_keys() {
                    shape.entry(name).or_default().remove(tag);
                }
            }
            Change::Resize { .. }
            | Change::Rollback { .. }
            | Change::Flatten { .. }
            | Change::Join { .. }
            | Change::RollbackGroup { .. } => {}
        }
        shape
    }

    pub(super) fn group(&self) -> &Group {
        self.group.as_ref().expect("there is a group")
    }

    pub(super) fn group_mut(&mut self) -> &mut Group {
        self.group.as_mut().expect("there is a group")
    }

    /// What is left of a snapshot of the group: volumes, by name, and layers.
    pub(super) fn parts(&self, tag: &str) -> BTreeMap<String, u64> {
        let mut snapshots = self.group().snapshots.iter();
        let snapshot = snapshots.find(|snapshot| snapshot.tag == tag);
        let parts = &snapshot.expect("only what exists is used").parts;
        let part = |(name, volume): (&String, &Volume)| {
            let mut snapshots = volume.snapshots.iter();
            let (_, layer) = snapshots.find(|(_, layer)| parts.contains(layer))?;
            Some((name.clone(), *layer))
        };
        self.volumes.iter().filter_map(part).collect()
    }

    /// Snapshots of volumes are gone, and with them parts of snapshots of the group.
    pub(super) fn forget_parts(&mut self, gone: &[u64]) {
        let Some(group) = &mut self.group else { return };
        for snapshot in &mut group.snapshots {
            snapshot.parts.retain(|part| !gone.contains(part));
        }
        group.snapshots.retain(|snapshot| !snapshot.parts.is_empty());
    }

    /// A volume is no member of the group any more.
    pub(super) fn forget_member(&mut self, name: &str) {
        if let Some(group) = &mut self.group {
            group.members.remove(name);
        }
    }

    pub(super) fn volume(&self, name: &str) -> &Volume {
        self.volumes.get(name).expect("only what exists is changed")
    }

    pub(super) fn volume_mut(&mut self, name: &str) -> &mut Volume {
        self.volumes.get_mut(name).expect("only what exists is changed")
    }

    /// Clones of what was deleted show something without a name.
    pub(super) fn orphan(&mut self, is_gone: impl Fn(&(String, String)) -> bool) {
        for volume in self.volumes.values_mut() {
            if let Some(origin) = volume.origin.as_mut().filter(|origin| is_gone(origin)) {
                *origin = Default::default();
            }
        }
    }

    /// The layer of a snapshot that exists.
    pub(super) fn layer(&self, name: &str, tag: &str) -> u64 {
        let mut snapshots = self.volume(name).snapshots.iter();
        snapshots.find(|(known, _)| known == tag).expect("only what exists is used").1
    }
}
