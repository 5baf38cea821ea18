//! Administrators' requests about groups of volumes.

use super::{Engine, Phase, Purpose, Work, administer::refused, errands::Needs};
use crate::{
    NoticeLevel, Output,
    admin::{
        AdminError, AdminErrorKind, AdminReply, AdminRequest, AdminToken, GroupMemberReport,
        GroupReport, GroupSnapshotReport,
    },
    report,
};
use cluster::{Answer, Command, Group, GroupSnapshot, GroupStage, Refusal, Volume};
use proto::{
    BLOCK_SIZE, Duration, LayerId, Time, VolumeId,
    limits::{GROUP_VOLUMES_MAX, SEAL_ANSWER_MS_MAX},
};

/// What of a group is being changed.
#[derive(Clone, Debug)]
pub(super) enum GroupStep {
    /// It is created, to have these members.
    Create { name: String, volumes: Vec<VolumeId> },
    /// It gets its first members.
    Fill { name: String },
    /// It could not get them, for this reason, and goes again.
    Undo { error: AdminError },
    /// Other members: the answer is the group.
    Change { name: String },
    /// A snapshot of all.
    Snapshot { name: String, tag: String },
    /// A rollback of all.
    Rollback { name: String, tag: String },
}

/// An administrator who waits until layers of several volumes are sealed.
#[derive(Debug)]
pub(super) struct GroupSealing {
    token: AdminToken,
    group: String,
    tag: String,
    is_rollback: bool,
    /// Those that were not sealed yet when somebody last looked.
    waits: Vec<(VolumeId, LayerId)>,
    pub(super) until: Time,
}

impl Engine {
    /// Begins a change; the answer follows.
    pub(super) fn administer_groups(
        &mut self,
        token: AdminToken,
        request: AdminRequest,
    ) -> Result<(), AdminError> {
        let (unix_s, cautious) = (self.unix_s(), self.cautious_unix_s());
        let (command, step) = match request {
            AdminRequest::GroupCreate { name, volumes } => {
                let volumes = self.find_all(&name, &volumes)?;
                let command = Command::CreateGroup { name: name.clone(), unix_s };
                (command, GroupStep::Create { name, volumes })
            }
            AdminRequest::GroupDelete { name } => {
                let command = Command::DeleteGroup { name };
                self.work.push_back(Work::Propose(command, Purpose::AdminDone(token)));
                return Ok(());
            }
            AdminRequest::GroupAdd { name, volumes } => self.change(name, &volumes, true)?,
            AdminRequest::GroupRemove { name, volumes } => self.change(name, &volumes, false)?,
            AdminRequest::GroupSnapshot { name, tag } => {
                let command =
                    Command::SnapshotGroup { name: name.clone(), tag: tag.clone(), unix_s };
                (command, GroupStep::Snapshot { name, tag })
            }
            AdminRequest::GroupSnapshotDelete { name, tag } => {
                let members = self.members(&name, &tag)?;
                let needs = members.iter().map(|&(v, layer)| (v, Needs::Snapshot(layer))).collect();
                let command = Command::DropGroupSnapshot { name, tag, unix_s: cautious };
                self.propose_when_all_free(needs, command, Purpose::AdminDone(token));
                return Ok(());
            }
            AdminRequest::GroupRollback { name, tag } => {
                let members = self.members(&name, &tag)?;
                let needs = members.iter().map(|&(volume, _)| (volume, Needs::Head)).collect();
                let command = Command::RollbackGroup { name: name.clone(), tag: tag.clone() };
                let step = GroupStep::Rollback { name, tag };
                self.propose_when_all_free(needs, command, Purpose::AdminGroup(token, step));
                return Ok(());
            }
            other => unreachable!("{other:?} is about no group"),
        };
        self.work.push_back(Work::Propose(command, Purpose::AdminGroup(token, step)));
        Ok(())
    }

    fn change(
        &self,
        name: String,
        volumes: &[String],
        member: bool,
    ) -> Result<(Command, GroupStep), AdminError> {
        self.group(&name)?;
        let volumes = self.find_all(&name, volumes)?;
        let command = Command::ChangeGroup { name: name.clone(), volumes, member };
        Ok((command, GroupStep::Change { name }))
    }

    /// The volumes of these names, each once.
    fn find_all(&self, group: &str, names: &[String]) -> Result<Vec<VolumeId>, AdminError> {
        if names.len() > GROUP_VOLUMES_MAX {
            return Err(refused(&Refusal::TooManyInGroup { name: group.to_owned() }));
        }
        let found: Result<Vec<VolumeId>, _> = names.iter().map(|name| self.find(name)).collect();
        let mut volumes = found?;
        volumes.sort_unstable();
        volumes.dedup();
        Ok(volumes)
    }

    fn group(&self, name: &str) -> Result<&Group, AdminError> {
        let unknown = || refused(&Refusal::UnknownGroup { name: name.to_owned() });
        self.map.group(name).ok_or_else(unknown)
    }

    fn group_snapshot(&self, name: &str, tag: &str) -> Result<&GroupSnapshot, AdminError> {
        let refusal = || Refusal::UnknownGroupSnapshot { name: name.into(), tag: tag.into() };
        self.group(name)?.snapshot(tag).ok_or_else(|| refused(&refusal()))
    }

    fn members(&self, name: &str, tag: &str) -> Result<Vec<(VolumeId, LayerId)>, AdminError> {
        Ok(self.group_snapshot(name, tag)?.members.clone())
    }

    // -- what follows --

    /// A step was carried out.
    pub(super) fn group_step_done(
        &mut self,
        now: Time,
        token: AdminToken,
        step: GroupStep,
        answer: &Answer,
        outputs: &mut Vec<Output>,
    ) {
        let result = match step {
            GroupStep::Create { name, volumes } if !volumes.is_empty() => {
                let (step, member) = (GroupStep::Fill { name: name.clone() }, true);
                let command = Command::ChangeGroup { name, volumes, member };
                self.work.push_back(Work::Propose(command, Purpose::AdminGroup(token, step)));
                return;
            }
            GroupStep::Create { name, .. }
            | GroupStep::Fill { name }
            | GroupStep::Change { name } => self.group_named(&name).map(AdminReply::Group),
            GroupStep::Undo { error } => Err(error),
            GroupStep::Snapshot { name, tag } => {
                let Answer::GroupSnapshotCreated { layers } = answer else {
                    panic!("a snapshot of a group was answered {answer:?}");
                };
                let volumes = layers.iter().map(|(volume, _)| *volume).collect();
                self.await_group_seal(now, token, (name, tag), false, volumes, outputs);
                return;
            }
            GroupStep::Rollback { name, tag } => {
                let members = self.members(&name, &tag).unwrap_or_default();
                let volumes = members.into_iter().map(|(volume, _)| volume).collect();
                self.await_group_seal(now, token, (name, tag), true, volumes, outputs);
                return;
            }
        };
        outputs.push(Output::Admin { token, result: Box::new(result) });
    }

    /// A step was refused.
    pub(super) fn group_step_refused(
        &mut self,
        token: AdminToken,
        step: GroupStep,
        error: AdminError,
        outputs: &mut Vec<Output>,
    ) {
        let error = match step {
            GroupStep::Fill { name } => {
                let step = GroupStep::Undo { error };
                let command = Command::DeleteGroup { name };
                self.work.push_back(Work::Propose(command, Purpose::AdminGroup(token, step)));
                return;
            }
            GroupStep::Undo { error } => error,
            _ => error,
        };
        outputs.push(Output::Admin { token, result: Box::new(Err(error)) });
    }

    /// The heads of these volumes are to be opened before the administrator has the answer.
    fn await_group_seal(
        &mut self,
        now: Time,
        token: AdminToken,
        (group, tag): (String, String),
        is_rollback: bool,
        volumes: Vec<VolumeId>,
        outputs: &mut Vec<Output>,
    ) {
        let sealing = |volume: &VolumeId| {
            let known = self.map.volume(*volume)?;
            Some((*volume, self.map.sealing(known)?))
        };
        let waits = volumes.iter().filter_map(sealing).collect();
        let until = now + Duration::from_millis(SEAL_ANSWER_MS_MAX);
        self.group_sealing.push(GroupSealing { token, group, tag, is_rollback, waits, until });
        if self.phase != Phase::Serving {
            self.abandon_errands(outputs);
            return;
        }
        for volume in volumes {
            self.attend(volume);
        }
    }

    /// Answers those whose layers are all sealed, and those who waited too long for them.
    pub(super) fn answer_sealed_groups(&mut self, now: Time, outputs: &mut Vec<Output>) {
        for mut waiting in std::mem::take(&mut self.group_sealing) {
            waiting.waits.retain(|(volume, layer)| self.is_sealing(*volume, *layer));
            let result = if waiting.waits.is_empty() {
                self.group_snapshot_named(&waiting.group, &waiting.tag)
                    .map(AdminReply::GroupSnapshot)
            } else if waiting.until <= now {
                let why = self.why_not_sealed(now, waiting.waits[0].0);
                Err(self.group_not_sealed(&waiting, &why))
            } else {
                self.group_sealing.push(waiting);
                continue;
            };
            outputs.push(Output::Admin { token: waiting.token, result: Box::new(result) });
        }
    }

    fn is_sealing(&self, volume: VolumeId, layer: LayerId) -> bool {
        let known = self.map.volume(volume);
        known.and_then(|volume| self.map.sealing(volume)) == Some(layer)
    }

    fn group_not_sealed(&self, waiting: &GroupSealing, why: &str) -> AdminError {
        let GroupSealing { group, tag, is_rollback, waits, .. } = waiting;
        let names = waits.iter().filter_map(|(volume, _)| self.map.volume(*volume));
        let names: Vec<&str> = names.map(|volume| volume.name.as_str()).collect();
        let (done, later) = match is_rollback {
            false => (
                format!("snapshot {group}@{tag} was taken"),
                "it can be read, cloned and deleted as soon as they have, and should the node end \
                 before that, it is deleted at its next start",
            ),
            true => (
                format!("group {group} was rolled back to {tag}"),
                "it can be snapshotted and rolled back again as soon as they have",
            ),
        };
        let sentence = format!("{done}, but for {}: {why}; {later}", names.join(", "));
        AdminError { kind: AdminErrorKind::Unavailable, sentence }
    }

    /// The node stops: what these asked for is so, but not finished.
    pub(super) fn abandon_sealing_groups(&mut self, outputs: &mut Vec<Output>) {
        for waiting in std::mem::take(&mut self.group_sealing) {
            let why = "the node stops before the disks have settled it";
            let result = Box::new(Err(self.group_not_sealed(&waiting, why)));
            outputs.push(Output::Admin { token: waiting.token, result });
        }
    }

    /// Asserts that nobody waits for nothing.
    pub(super) fn check_sealing_groups(&self) {
        for waiting in &self.group_sealing {
            let waits =
                waiting.waits.iter().any(|(volume, layer)| self.is_sealing(*volume, *layer));
            assert!(waits, "{waiting:?} waits for what is sealed");
        }
    }

    // -- snapshots that a crash interrupted --

    /// After a start: finds the group snapshots that were being taken when a node ended, which the
    /// agreed state knows. Of what was not flushed then a power cut may have left something in one
    /// volume and lost what came before it in another, so they need not be one moment of all
    /// volumes: they go, as soon as they are sealed. Nobody was told that they can be read.
    pub(super) fn begin_groups(&mut self) {
        for group in self.map.groups() {
            let torn = group.snapshots.iter().filter(|known| known.stage == GroupStage::Torn);
            let names = torn.map(|snapshot| (group.name.clone(), snapshot.tag.clone()));
            self.torn_groups.extend(names);
        }
        self.drop_torn_groups();
    }

    /// Deletes those of them that are sealed by now.
    pub(super) fn drop_torn_groups(&mut self) {
        let unix_s = self.cautious_unix_s();
        for (name, tag) in std::mem::take(&mut self.torn_groups) {
            // Deleted by somebody else meanwhile, perhaps with another one in its place.
            let Ok(snapshot) = self.group_snapshot(&name, &tag) else { continue };
            if snapshot.stage != GroupStage::Torn {
                continue;
            }
            let members = snapshot.members.clone();
            if members.iter().any(|&(volume, layer)| self.is_sealing(volume, layer)) {
                self.torn_groups.insert((name, tag));
                continue;
            }
            let needs = members.iter().map(|&(v, layer)| (v, Needs::Snapshot(layer))).collect();
            let purpose = Purpose::TornGroup(name.clone(), tag.clone());
            let command = Command::DropGroupSnapshot { name, tag, unix_s };
            self.propose_when_all_free(needs, command, purpose);
        }
    }

    /// One of them was deleted, or could not be.
    pub(super) fn torn_group_dropped(
        &self,
        (name, tag): (&str, &str),
        result: Result<Answer, Refusal>,
        outputs: &mut Vec<Output>,
    ) {
        let what = format!("group snapshot {name}@{tag} was being taken when the node ended");
        let sentence = match result {
            Ok(_) => format!("{what} and was deleted; take another one"),
            Err(refusal) => format!(
                "{what}, need not be one moment of all volumes, and could not be deleted \
                 ({refusal}): do it with `dog group delete {name}@{tag} --yes`"
            ),
        };
        outputs.push(Output::Notice { level: NoticeLevel::Warning, sentence });
    }

    // -- reports --

    pub(super) fn group_reports(&self) -> Vec<GroupReport> {
        self.map.groups().map(|group| self.group_report(group)).collect()
    }

    pub(super) fn group_named(&self, name: &str) -> Result<GroupReport, AdminError> {
        Ok(self.group_report(self.group(name)?))
    }

    fn group_snapshot_named(
        &self,
        name: &str,
        tag: &str,
    ) -> Result<GroupSnapshotReport, AdminError> {
        Ok(self.group_snapshot_report(name, self.group_snapshot(name, tag)?))
    }

    fn group_report(&self, group: &Group) -> GroupReport {
        let volumes = group.volumes.iter().filter_map(|volume| self.map.volume(*volume));
        let mut volumes: Vec<String> = volumes.map(|volume| volume.name.clone()).collect();
        volumes.sort_unstable();
        let snapshots = group.snapshots.iter();
        GroupReport {
            name: group.name.clone(),
            created_unix_s: group.created_unix_s,
            volumes,
            snapshots: snapshots.map(|s| self.group_snapshot_report(&group.name, s)).collect(),
        }
    }

    fn group_snapshot_report(&self, group: &str, snapshot: &GroupSnapshot) -> GroupSnapshotReport {
        let member = |&(volume, layer): &(VolumeId, LayerId)| {
            let volume: &Volume = self.map.volume(volume)?;
            let snapshot = volume.snapshots.iter().find(|known| known.layer == layer)?;
            Some(GroupMemberReport {
                volume: volume.name.clone(),
                layer,
                bytes: snapshot.bytes,
                used_bytes: report::usage(&self.disks, layer).data_blocks * BLOCK_SIZE as u64,
                sealing: self.map.sealing(volume) == Some(layer),
                in_trash: volume.trash.is_some(),
            })
        };
        let mut members: Vec<GroupMemberReport> =
            snapshot.members.iter().filter_map(member).collect();
        members.sort_by(|one, other| one.volume.cmp(&other.volume));
        GroupSnapshotReport {
            group: group.to_owned(),
            tag: snapshot.tag.clone(),
            created_unix_s: snapshot.created_unix_s,
            count: snapshot.count,
            complete: members.len() == snapshot.count as usize
                && snapshot.stage != GroupStage::Torn,
            sealing: members.iter().any(|member| member.sealing),
            members,
        }
    }
}
