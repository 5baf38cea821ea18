//! Groups: volumes whose snapshots can be taken at one moment.

use crate::command::Answer;
use crate::layer::{self, prune};
use crate::map::Map;
use crate::refusal::Refusal;
use crate::state::State;
use crate::volume::{check_tag, printable, problem_of};
use proto::limits::{GROUP_MEMBERSHIPS_MAX, GROUP_VOLUMES_MAX, GROUPS_MAX, VOLUME_NAME_BYTES_MAX};
use proto::{LayerId, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Volumes that belong together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Group {
    /// Unique among the groups; obeys [`check_group_name`].
    pub name: String,
    /// When it was created, in seconds since 1970; for people.
    pub created_unix_s: u64,
    /// Its members, by id. None of them is in the trash.
    pub volumes: Vec<VolumeId>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<GroupSnapshot>,
}

/// Snapshots of several volumes of one moment.
///
/// Invariant: each of `members` exists, and there is at least one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupSnapshot {
    /// Unique within the group. Its snapshots have it as their tag.
    pub tag: String,
    /// When it was taken, in seconds since 1970; for people.
    pub created_unix_s: u64,
    /// Of how many volumes it was taken.
    pub count: u32,
    /// Those of its snapshots that still exist: their volumes and what they name.
    pub members: Vec<(VolumeId, LayerId)>,
    /// Whether they are known to be of one moment.
    pub stage: GroupStage,
}

/// How far a group snapshot came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum GroupStage {
    /// Some of its parts are still being sealed.
    Taking,
    /// All of its parts were sealed by the sessions that took them: they are of one moment.
    Whole,
    /// A node ended while it was being taken. After a power cut what was not flushed may be lost in
    /// one volume and kept in another: it need not be of one moment, for ever.
    Torn,
}

impl Group {
    /// The group snapshot with this tag.
    pub fn snapshot(&self, tag: &str) -> Option<&GroupSnapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.tag == tag)
    }
}

/// Whether a group may have this name: the rules are those of [`crate::check_name`].
pub fn check_group_name(name: &str) -> Result<(), Refusal> {
    let bad =
        |problem| Refusal::BadGroupName { name: printable(name, VOLUME_NAME_BYTES_MAX), problem };
    problem_of(name).map_or(Ok(()), |problem| Err(bad(problem)))
}

impl Map {
    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.get(name).map(|group| &**group)
    }

    /// All groups, in order of name.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = &Group> {
        self.groups.values().map(|group| &**group)
    }

    /// How many snapshots all group snapshots have.
    pub(crate) fn memberships(&self) -> usize {
        let snapshots = self.groups().flat_map(|group| &group.snapshots);
        snapshots.map(|snapshot| snapshot.members.len()).sum()
    }
}

impl State {
    fn group(&self, name: &str) -> Result<&Group, Refusal> {
        self.map.group(name).ok_or_else(|| Refusal::UnknownGroup { name: name.to_owned() })
    }

    fn change_group(&mut self, name: &str) -> &mut Group {
        let groups = Arc::make_mut(&mut self.change().groups);
        Arc::make_mut(groups.get_mut(name).expect("looked up before"))
    }

    pub(crate) fn create_group(&mut self, name: &str, unix_s: u64) -> Result<Answer, Refusal> {
        check_group_name(name)?;
        if self.map.group(name).is_some() {
            return Err(Refusal::GroupExists { name: name.to_owned() });
        }
        if self.map.groups.len() >= GROUPS_MAX {
            return Err(Refusal::TooManyGroups);
        }
        let group = Group {
            name: name.to_owned(),
            created_unix_s: unix_s,
            volumes: Vec::new(),
            snapshots: Vec::new(),
        };
        Arc::make_mut(&mut self.change().groups).insert(name.to_owned(), Arc::new(group));
        Ok(Answer::Done)
    }

    pub(crate) fn delete_group(&mut self, name: &str) -> Result<Answer, Refusal> {
        self.group(name)?;
        Arc::make_mut(&mut self.change().groups).remove(name);
        Ok(Answer::Done)
    }

    pub(crate) fn change_members(
        &mut self,
        name: &str,
        volumes: &[VolumeId],
        member: bool,
    ) -> Result<Answer, Refusal> {
        let group = self.group(name)?;
        let mut members: BTreeSet<VolumeId> = group.volumes.iter().copied().collect();
        for &volume in volumes {
            if member {
                self.volume(volume)?;
                members.insert(volume);
            } else {
                members.remove(&volume);
            }
        }
        if members.len() > GROUP_VOLUMES_MAX {
            return Err(Refusal::TooManyInGroup { name: name.to_owned() });
        }
        if members.iter().eq(&group.volumes) {
            return Ok(Answer::Done);
        }
        self.change_group(name).volumes = members.into_iter().collect();
        Ok(Answer::Done)
    }

    pub(crate) fn snapshot_group(
        &mut self,
        name: &str,
        tag: &str,
        unix_s: u64,
    ) -> Result<Answer, Refusal> {
        check_tag(tag)?;
        let group = self.group(name)?;
        if group.volumes.is_empty() {
            return Err(Refusal::EmptyGroup { name: name.to_owned() });
        }
        if group.snapshot(tag).is_some() {
            let (name, tag) = (name.to_owned(), tag.to_owned());
            return Err(Refusal::GroupTagTaken { name, tag });
        }
        let volumes = group.volumes.clone();
        if self.map.memberships() + volumes.len() > GROUP_MEMBERSHIPS_MAX {
            return Err(Refusal::TooManySnapshots);
        }
        self.vet_snapshots(volumes.len())?;
        for &volume in &volumes {
            self.vet_snapshot(volume, tag)?;
        }
        self.change();
        let take = |&volume: &VolumeId| (volume, self.take_snapshot(volume, tag, unix_s, None));
        let members: Vec<(VolumeId, LayerId)> = volumes.iter().map(take).collect();
        let groups = Arc::make_mut(&mut Arc::make_mut(&mut self.map).groups);
        let group = Arc::make_mut(groups.get_mut(name).expect("looked up before"));
        group.snapshots.push(GroupSnapshot {
            tag: tag.to_owned(),
            created_unix_s: unix_s,
            count: members.len() as u32,
            members: members.clone(),
            stage: GroupStage::Taking,
        });
        Ok(Answer::GroupSnapshotCreated { layers: members })
    }

    /// The tags of a group snapshot's members, which may be dropped or rolled back to.
    fn group_snapshot(&self, name: &str, tag: &str) -> Result<&GroupSnapshot, Refusal> {
        check_tag(tag)?;
        let unknown = || Refusal::UnknownGroupSnapshot { name: name.into(), tag: tag.into() };
        self.group(name)?.snapshot(tag).ok_or_else(unknown)
    }

    pub(crate) fn drop_group_snapshot(
        &mut self,
        name: &str,
        tag: &str,
        unix_s: u64,
    ) -> Result<Answer, Refusal> {
        let members = self.group_snapshot(name, tag)?.members.clone();
        for &(id, _) in &members {
            // In the trash or not.
            let volume = self.map.volume(id).ok_or(Refusal::UnknownVolume { volume: id })?;
            self.vet_drop_snapshot(volume, tag, unix_s)?;
        }
        self.change();
        for &(volume, layer) in &members {
            self.unname(volume, layer);
        }
        // The newest first: a layer without children goes whole, without being merged.
        let mut layers: Vec<LayerId> = members.iter().map(|&(_, layer)| layer).collect();
        layers.sort_unstable();
        Ok(Answer::Dropped(prune(Arc::make_mut(&mut self.map), layers)))
    }

    pub(crate) fn rollback_group(&mut self, name: &str, tag: &str) -> Result<Answer, Refusal> {
        let snapshot = self.group_snapshot(name, tag)?;
        if snapshot.stage == GroupStage::Torn {
            let (name, tag) = (name.to_owned(), tag.to_owned());
            return Err(Refusal::GroupSnapshotTorn { name, tag });
        }
        if snapshot.members.len() < snapshot.count as usize {
            let (name, tag) = (name.to_owned(), tag.to_owned());
            return Err(Refusal::GroupSnapshotIncomplete { name, tag });
        }
        let volumes: Vec<VolumeId> = snapshot.members.iter().map(|&(volume, _)| volume).collect();
        for &volume in &volumes {
            self.vet_rollback(volume, tag)?;
        }
        self.vet_new_layers(volumes.len())?;
        self.change();
        let former: Vec<LayerId> =
            volumes.iter().map(|&volume| self.roll_back(volume, tag)).collect();
        Ok(Answer::Dropped(prune(Arc::make_mut(&mut self.map), former)))
    }
}

/// A layer was sealed by the session that took the snapshot: group snapshots of which it was the
/// last part are whole.
pub(crate) fn part_sealed(map: &mut Map, sealed: LayerId) {
    let is_taking = |map: &Map, snapshot: &GroupSnapshot| {
        let is_sealing = |&(volume, layer): &(VolumeId, LayerId)| {
            map.volume(volume).is_some_and(|volume| map.sealing(volume) == Some(layer))
        };
        snapshot.members.iter().any(is_sealing)
    };
    advance(map, GroupStage::Whole, |map, snapshot| {
        snapshot.members.iter().any(|held| held.1 == sealed) && !is_taking(map, snapshot)
    });
}

/// A node ended: what was being taken then is torn. Whether there was any.
pub(crate) fn tear(map: &mut Map) {
    advance(map, GroupStage::Torn, |_, _| true);
}

/// Whether any group snapshot is being taken.
pub(crate) fn is_taking_any(map: &Map) -> bool {
    let mut snapshots = map.groups().flat_map(|group| &group.snapshots);
    snapshots.any(|snapshot| snapshot.stage == GroupStage::Taking)
}

/// Those that are being taken and chosen have this stage now.
fn advance(map: &mut Map, stage: GroupStage, chosen: impl Fn(&Map, &GroupSnapshot) -> bool) {
    let is_due =
        |snapshot: &GroupSnapshot| snapshot.stage == GroupStage::Taking && chosen(map, snapshot);
    let mut due: Vec<(String, String)> = Vec::new();
    for group in map.groups() {
        let tags = group.snapshots.iter().filter(|snapshot| is_due(snapshot));
        due.extend(tags.map(|snapshot| (group.name.clone(), snapshot.tag.clone())));
    }
    for (name, tag) in due {
        let groups = Arc::make_mut(&mut map.groups);
        let group = Arc::make_mut(groups.get_mut(&name).expect("listed above"));
        let mut snapshots = group.snapshots.iter_mut();
        snapshots.find(|snapshot| snapshot.tag == tag).expect("listed above").stage = stage;
    }
}

/// A snapshot is gone: no group snapshot has it any more, and one that had only it is gone too.
pub(crate) fn forget_snapshot(map: &mut Map, layer: LayerId) {
    let has = |snapshot: &GroupSnapshot| snapshot.members.iter().any(|held| held.1 == layer);
    let concerned = map.groups().filter(|group| group.snapshots.iter().any(has));
    let names: Vec<String> = concerned.map(|group| group.name.clone()).collect();
    for name in names {
        let groups = Arc::make_mut(&mut map.groups);
        let group = Arc::make_mut(groups.get_mut(&name).expect("listed above"));
        for snapshot in &mut group.snapshots {
            snapshot.members.retain(|held| held.1 != layer);
        }
        group.snapshots.retain(|snapshot| !snapshot.members.is_empty());
    }
}

/// A volume is deleted or put into the trash: it is a member of no group any more.
pub(crate) fn forget_member(map: &mut Map, volume: VolumeId) {
    let concerned = map.groups().filter(|group| group.volumes.contains(&volume));
    let names: Vec<String> = concerned.map(|group| group.name.clone()).collect();
    for name in names {
        let groups = Arc::make_mut(&mut map.groups);
        let group = Arc::make_mut(groups.get_mut(&name).expect("listed above"));
        group.volumes.retain(|member| *member != volume);
    }
}

/// The first invariant that does not hold for the groups.
pub(crate) fn contradiction(map: &Map) -> Result<(), &'static str> {
    let hold = layer::hold;
    hold(map.groups.len() <= GROUPS_MAX, "too many groups")?;
    hold(map.memberships() <= GROUP_MEMBERSHIPS_MAX, "too many snapshots of groups")?;
    for (name, group) in &*map.groups {
        hold(*name == group.name && check_group_name(name).is_ok(), "a group's name")?;
        hold(group.volumes.len() <= GROUP_VOLUMES_MAX, "too many volumes in a group")?;
        hold(group.volumes.is_sorted_by(|a, b| a < b), "the order of a group's volumes")?;
        for volume in &group.volumes {
            let is_there = map.volume(*volume).is_some_and(|volume| volume.trash.is_none());
            hold(is_there, "a member that does not exist")?;
        }
        let mut tags = BTreeSet::new();
        for snapshot in &group.snapshots {
            hold(check_tag(&snapshot.tag).is_ok(), "a group snapshot's tag")?;
            hold(tags.insert(&snapshot.tag), "two group snapshots with one tag")?;
            hold(!snapshot.members.is_empty(), "a group snapshot without snapshots")?;
            hold(snapshot.members.len() <= snapshot.count as usize, "a group snapshot's count")?;
            hold(snapshot.count as usize <= GROUP_VOLUMES_MAX, "a group snapshot's count")?;
            let by_volume = |a: &(VolumeId, LayerId), b: &(VolumeId, LayerId)| a.0 < b.0;
            hold(snapshot.members.is_sorted_by(by_volume), "the order of a group snapshot")?;
            for &(volume, layer) in &snapshot.members {
                let known = map.volume(volume).and_then(|volume| volume.snapshot(&snapshot.tag));
                let is_it = known.is_some_and(|known| known.layer == layer);
                hold(is_it, "a group snapshot without its snapshot")?;
            }
        }
    }
    Ok(())
}
