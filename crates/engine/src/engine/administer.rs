//! Administrators' requests.

use super::{
    Engine, Phase, Purpose, Work,
    errands::{Needs, Sealed},
    lookups::Question,
    sources::Kept,
};
use crate::{
    Output,
    admin::{
        AdminError, AdminErrorKind, AdminReply, AdminRequest, AdminToken, FlattenAction,
        NodeReport, ScrubAction, SnapshotReport, VolumeReport,
    },
    attach::HeldId,
    layers, names, report,
};
use cluster::{Command, Refusal, RefusalKind, TokenId};
use proto::{DiskId, LayerId, Time, VolumeId, limits::COPIES_DEFAULT};

impl Engine {
    pub(super) fn handle_admin(
        &mut self,
        now: Time,
        token: AdminToken,
        request: AdminRequest,
        outputs: &mut Vec<Output>,
    ) {
        self.answer_admin(now, token, request, false, outputs);
    }

    /// `is_agreed`: all that had been agreed when it was asked is known here.
    pub(super) fn answer_admin(
        &mut self,
        now: Time,
        token: AdminToken,
        request: AdminRequest,
        is_agreed: bool,
        outputs: &mut Vec<Output>,
    ) {
        if self.gather(now, token, &request, is_agreed) {
            return;
        }
        if let Some(result) = self.administer_known(now, token, request, is_agreed, outputs) {
            outputs.push(Output::Admin { token, result: Box::new(result) });
        }
    }

    /// As [`Engine::administer`]; but that something does not exist is said only once it is sure.
    pub(super) fn administer_known(
        &mut self,
        now: Time,
        token: AdminToken,
        request: AdminRequest,
        is_agreed: bool,
        outputs: &mut Vec<Output>,
    ) -> Option<Result<AdminReply, AdminError>> {
        // Where nobody agrees there is nothing to wait for.
        let is_known = is_agreed || matches!(request, AdminRequest::ClusterRecover { .. });
        let again = (!is_known && self.is_among_others()).then(|| request.clone());
        let result = self.administer(now, token, request, outputs).transpose()?;
        if let (Err(AdminError { kind: AdminErrorKind::NotFound, .. }), Some(request)) =
            (&result, again)
        {
            self.look_up(now, Question::Admin(token, request))?;
        }
        Some(result)
    }

    /// Answers at once, or sees to it that the answer follows.
    pub(super) fn administer(
        &mut self,
        now: Time,
        token: AdminToken,
        request: AdminRequest,
        outputs: &mut Vec<Output>,
    ) -> Result<Option<AdminReply>, AdminError> {
        // What is known here may be long past.
        let leaderless = self.leaderless();
        let reply = match request {
            AdminRequest::Status => AdminReply::Status(self.status(now)),
            AdminRequest::NodeInfo => AdminReply::Node(self.node_report(now)),
            AdminRequest::DiskList => AdminReply::Disks(
                self.disks.values().map(|disk| report::disk(&self.map, disk)).collect(),
            ),
            AdminRequest::ClusterStatus => AdminReply::Cluster(Box::new(self.cluster_report(now))),
            AdminRequest::ClusterRecover { yes, lost } => {
                return self.administer_recovery(now, token, yes, &lost);
            }
            _ if self.phase != Phase::Serving => {
                let sentence = self.not_serving();
                return Err(AdminError { kind: AdminErrorKind::Unavailable, sentence });
            }
            // Wanted most while nothing can be agreed on.
            AdminRequest::VolumeExplain { name } => {
                AdminReply::Explained(Box::new(self.explain(now, &name)?))
            }
            AdminRequest::VolumeLocate { name, index } => {
                AdminReply::Located(Box::new(self.locate(now, &name, index)?))
            }
            _ if leaderless.is_some() => {
                let sentence = leaderless.expect("just seen");
                return Err(AdminError { kind: AdminErrorKind::Unavailable, sentence });
            }
            AdminRequest::NodeAdd { node, name, addresses } => {
                let purpose = Purpose::AdminNode(token, node, addresses);
                self.work.push_back(Work::Propose(Command::AddNode { node, name }, purpose));
                return Ok(None);
            }
            AdminRequest::TokenAdd { id, secret_digest, uses, expires_s } => {
                self.add_token(token, id, &secret_digest, uses, expires_s)?;
                return Ok(None);
            }
            AdminRequest::TokenRevoke { id } => {
                let command = Command::RevokeToken { id: TokenId(id) };
                self.work.push_back(Work::Propose(command, Purpose::AdminDone(token)));
                return Ok(None);
            }
            AdminRequest::NodeDrain { node, wanted } => {
                let command = Command::DrainNode { node: self.find_node(&node)?, wanted };
                self.work.push_back(Work::Propose(command, Purpose::AdminDone(token)));
                return Ok(None);
            }
            AdminRequest::NodeRemove { node } => {
                self.remove_node(token, &node)?;
                return Ok(None);
            }
            AdminRequest::DiskDrain { disk, wanted } => {
                let command = Command::DrainDisk { disk, wanted };
                self.work.push_back(Work::Propose(command, Purpose::AdminDone(token)));
                return Ok(None);
            }
            AdminRequest::DiskAdd { .. } => {
                let sentence = "this program has no part that could open a disk while it runs; \
                                restart it with that disk"
                    .to_string();
                return Err(AdminError { kind: AdminErrorKind::Conflict, sentence });
            }
            AdminRequest::DiskRemove { disk } => {
                self.remove_disk(token, disk)?;
                return Ok(None);
            }
            AdminRequest::VolumeDetach { name, tag } => {
                self.detach_by_force(token, &name, tag.as_deref())?;
                return Ok(None);
            }
            AdminRequest::TokenList => AdminReply::Tokens(self.token_reports()),
            AdminRequest::VolumeList => AdminReply::Volumes(self.volume_reports(now)),
            AdminRequest::VolumeInfo { name } => AdminReply::Volume(self.volume_named(now, &name)?),
            AdminRequest::VolumeReconnect { name } => {
                self.reconnect(&name, outputs)?;
                AdminReply::Done
            }
            AdminRequest::DiskScrub { disk, action } => {
                self.scrub(disk, action)?;
                AdminReply::Done
            }
            AdminRequest::VolumeCreate { name, bytes } => {
                let unix_s = self.unix_s();
                let command = Command::CreateVolume { name: name.clone(), bytes, unix_s };
                self.work.push_back(Work::Propose(command, Purpose::AdminVolume(token, name)));
                return Ok(None);
            }
            AdminRequest::VolumeCreateKept {
                name,
                bytes,
                from,
                copies,
                min_copies,
                durability,
            } => {
                let copies = copies.unwrap_or(COPIES_DEFAULT);
                let durability = durability.unwrap_or_default();
                let kept = Kept { copies, min_copies, durability };
                let Some(from) = from else {
                    let Some(bytes) = bytes else {
                        let sentence = format!("volume {name:?} is to be empty: say its size");
                        return Err(AdminError { kind: AdminErrorKind::Invalid, sentence });
                    };
                    let command = self.kept_creation(name.clone(), bytes, None, kept);
                    self.work.push_back(Work::Propose(command, Purpose::AdminVolume(token, name)));
                    return Ok(None);
                };
                self.begin_creation(now, token, (name, bytes, from), Some(kept), outputs)?;
                return Ok(None);
            }
            AdminRequest::VolumeKeep { name, copies, min_copies } => {
                let volume = self.find(&name)?;
                let lineage = self.map.volume(volume).expect("just found").lineage;
                let present = self.map.redundancy(lineage).map_or(COPIES_DEFAULT, |now| now.wanted);
                let copies = copies.unwrap_or(present);
                let command = Command::KeepCopies { volume, copies, min_copies };
                self.work.push_back(Work::Propose(command, Purpose::AdminVolume(token, name)));
                return Ok(None);
            }
            AdminRequest::VolumeDurability { name, durability } => {
                let volume = self.find(&name)?;
                let command = Command::SetDurability { volume, durability };
                let purpose = Purpose::AdminDurability(token, volume, durability);
                self.work.push_back(Work::Propose(command, purpose));
                return Ok(None);
            }
            AdminRequest::VolumeResize { name, bytes, allow_shrink } => {
                let volume = self.find(&name)?;
                let command = Command::ResizeVolume { volume, bytes, allow_shrink };
                self.work.push_back(Work::Propose(command, Purpose::AdminResize(token, volume)));
                return Ok(None);
            }
            AdminRequest::VolumeRename { name, new_name, while_attached } => {
                let volume = self.find(&name)?;
                if !while_attached && name != new_name {
                    self.vet_rename(volume, &name)?;
                }
                let command = Command::RenameVolume { volume, name: new_name.clone() };
                self.work.push_back(Work::Propose(command, Purpose::AdminVolume(token, new_name)));
                return Ok(None);
            }
            AdminRequest::VolumeDelete { name, with_snapshots, keep_s } => {
                self.delete_volume(token, &name, with_snapshots, keep_s)?;
                return Ok(None);
            }
            AdminRequest::TrashList => AdminReply::Trash(self.trash_reports()),
            AdminRequest::TrashUndelete { .. }
            | AdminRequest::TrashPurge { .. }
            | AdminRequest::SnapshotLock { .. } => return self.administer_trash(token, request),
            AdminRequest::LayerList { name } => {
                let volume = name.map(|name| self.find(&name)).transpose()?;
                let volume = volume.and_then(|volume| self.map.volume(volume));
                let mut layers = layers::list(&self.map, &self.disks, volume);
                let unknown = self.unknown_here();
                layers.iter_mut().for_each(|layer| layer.unknown_nodes.clone_from(&unknown));
                AdminReply::Layers(layers)
            }
            AdminRequest::SnapshotList { name, reclaimable } => {
                let volume = self.find(&name)?;
                if reclaimable {
                    self.begin_survey(now, token, volume);
                    return Ok(None);
                }
                let volume = self.map.volume(volume).expect("found just now");
                AdminReply::Snapshots(self.snapshot_reports(volume))
            }
            request @ (AdminRequest::ScheduleSet { .. }
            | AdminRequest::ScheduleRemove { .. }
            | AdminRequest::ScheduleList { .. }) => {
                return self.administer_schedules(token, request);
            }
            AdminRequest::GroupList => AdminReply::Groups(self.group_reports()),
            AdminRequest::GroupInfo { name } => AdminReply::Group(self.group_named(&name)?),
            AdminRequest::GroupCreate { .. }
            | AdminRequest::GroupDelete { .. }
            | AdminRequest::GroupAdd { .. }
            | AdminRequest::GroupRemove { .. }
            | AdminRequest::GroupSnapshot { .. }
            | AdminRequest::GroupSnapshotDelete { .. }
            | AdminRequest::GroupRollback { .. } => {
                self.administer_groups(token, request)?;
                return Ok(None);
            }
            AdminRequest::VolumeCreateFrom { name, bytes, from } => {
                self.begin_creation(now, token, (name, bytes, from), None, outputs)?;
                return Ok(None);
            }
            request => {
                self.administer_layers(token, request)?;
                return Ok(None);
            }
        };
        Ok(Some(reply))
    }

    /// Begins what makes, drops or copies layers; the answer follows.
    fn administer_layers(
        &mut self,
        token: AdminToken,
        request: AdminRequest,
    ) -> Result<(), AdminError> {
        let unix_s = self.unix_s();
        match request {
            AdminRequest::SnapshotCreate { name, tag } => {
                let volume = self.find(&name)?;
                let purpose = Purpose::AdminSeal(token, volume, Sealed::Snapshot(tag.clone()));
                let command = Command::CreateSnapshot { volume, tag, unix_s };
                self.work.push_back(Work::Propose(command, purpose));
            }
            AdminRequest::SnapshotDelete { name, tag } => {
                let volume = self.find(&name)?;
                let known = self.map.volume(volume).expect("found just now");
                let layer = known.snapshot(&tag).map_or(LayerId(0), |snapshot| snapshot.layer);
                let unix_s = self.cautious_unix_s();
                let command = Command::DropSnapshot { volume, tag, unix_s };
                let purpose = Purpose::AdminDone(token);
                self.propose_when_free(volume, Needs::Snapshot(layer), command, purpose);
            }
            AdminRequest::VolumeClone { name, tag, new_name } => {
                let volume = self.find(&name)?;
                let purpose = Purpose::AdminVolume(token, new_name.clone());
                let command = Command::CloneSnapshot { volume, tag, name: new_name, unix_s };
                self.work.push_back(Work::Propose(command, purpose));
            }
            AdminRequest::VolumeRollback { name, tag } => {
                let volume = self.find(&name)?;
                let purpose = Purpose::AdminSeal(token, volume, Sealed::Rollback(tag.clone()));
                let command = Command::Rollback { volume, tag };
                self.propose_when_free(volume, Needs::Head, command, purpose);
            }
            AdminRequest::VolumeFlatten { name, action } => {
                let volume = self.find(&name)?;
                let wanted = action == FlattenAction::Start;
                let command = Command::SetFlatten { volume, wanted };
                let purpose = Purpose::AdminSame(token, volume);
                self.work.push_back(Work::Propose(command, purpose));
            }
            other => unreachable!("{other:?} is answered by the caller"),
        }
        Ok(())
    }

    pub(super) fn snapshot_reports(&self, volume: &cluster::Volume) -> Vec<SnapshotReport> {
        let reports =
            layers::snapshots((&self.map, self.unix_s()), &self.disks, &self.held, volume);
        let unknown = self.unknown_here();
        let complete = |report| self.with_unknown_snapshot(&unknown, report);
        reports.into_iter().map(complete).collect()
    }

    pub(super) fn snapshot_report(
        &self,
        volume: &cluster::Volume,
        snapshot: &cluster::Snapshot,
    ) -> SnapshotReport {
        let present = (&*self.map, self.unix_s());
        let report = layers::snapshot(present, &self.disks, &self.held, volume, snapshot);
        self.with_unknown_snapshot(&self.unknown_here(), report)
    }

    pub(super) fn find(&self, name: &str) -> Result<VolumeId, AdminError> {
        match self.map.volume_named(name) {
            Some(volume) => Ok(volume.id),
            None => Err(AdminError {
                kind: AdminErrorKind::NotFound,
                sentence: names::no_such_volume(name),
            }),
        }
    }

    /// A client asks for its volume by name each time it connects, so another name takes the volume
    /// from the one that has it.
    fn vet_rename(&self, volume: VolumeId, name: &str) -> Result<(), AdminError> {
        let Some(held) = self.held.get(&HeldId::Head(volume)).filter(|held| held.duty.is_none())
        else {
            return Ok(());
        };
        let holder = &held.client.description;
        let sentence = format!(
            "volume {name} is attached by {holder}, which asks for {name} again when it \
             reconnects, as after a restart of sheep, and would not get it: its guest would be \
             left without its disk; detach it first, or give --while-attached to rename it all \
             the same"
        );
        Err(AdminError { kind: AdminErrorKind::Conflict, sentence })
    }

    /// The present as [`Engine::unix_s`] has it, or what the wall clock shows if that is behind:
    /// what may be deleted for its date is judged by it.
    pub(super) fn cautious_unix_s(&self) -> u64 {
        self.unix_s().saturating_sub(self.ahead_s)
    }

    /// Seconds since 1970: the wall clock at the start, and from there on a monotonic one.
    pub(super) fn unix_s(&self) -> u64 {
        self.settings.unix_s + self.present.since(self.started).as_secs()
    }

    pub(super) fn not_serving(&self) -> String {
        match self.phase {
            Phase::Journal | Phase::Joining | Phase::Disks => match self.leaderless() {
                Some(sentence) => sentence,
                None => "the node is starting; try again in a moment".into(),
            },
            _ => "the node is stopping; start it again first".into(),
        }
    }

    pub(super) fn volume_named(&self, now: Time, name: &str) -> Result<VolumeReport, AdminError> {
        let id = self.find(name)?;
        let volume = self.map.volume(id).expect("found just now");
        let held = self.held.get(&HeldId::Head(id));
        let named = |layer| {
            let (volume, snapshot) = self.map.owner(layer)?;
            Some(names::shown_name(volume, snapshot))
        };
        let copies = report::copies(&self.map);
        let report = report::volume(now, &self.map, &self.disks, volume, held, &copies, &named);
        let report = VolumeReport { schedules: self.schedule_reports(volume), ..report };
        Ok(self.with_unknown(&self.unknown_here(), report))
    }

    fn volume_reports(&self, now: Time) -> Vec<VolumeReport> {
        let mut all = None;
        let unknown = self.unknown_here();
        let copies = report::copies(&self.map);
        let mut report = |volume: &cluster::Volume| {
            let held = self.held.get(&HeldId::Head(volume.id));
            let has_origin = self.map.origin(volume.head).is_some();
            let all: &mut _ = &mut all;
            if has_origin && all.is_none() {
                *all = Some(names::of_layers(&self.map));
            }
            let named = |layer: LayerId| all.as_ref()?.get(&layer).cloned();
            let (map, disks) = (&self.map, &self.disks);
            let report = report::volume(now, map, disks, volume, held, &copies, &named);
            let report = VolumeReport { schedules: self.schedule_reports(volume), ..report };
            self.with_unknown(&unknown, report)
        };
        self.map.volumes_by_name().map(&mut report).collect()
    }

    fn node_report(&self, now: Time) -> NodeReport {
        NodeReport {
            node: self.settings.node,
            cluster: self.settings.cluster,
            epoch: self.map.epoch().0,
            version: self.settings.version.clone(),
            uptime_s: now.since(self.started).as_secs(),
            trash_expiry_s: self.settings.trash_expiry_s,
            witness: self.disks.is_empty() && self.settings.disks.is_empty(),
        }
    }

    fn status(&self, now: Time) -> crate::admin::StatusReport {
        let disks = self.disks.values().map(|disk| report::disk(&self.map, disk)).collect();
        let mut trouble = self.journal_failure.as_ref().map(|reason| {
            format!(
                "the cluster's journal cannot be written ({reason}): volumes go on, but nothing \
                 can be created, attached or changed; see to the disk under the data directory \
                 and start the node again"
            )
        });
        if self.phase != Phase::Serving {
            trouble = Some(self.not_serving());
        } else if let Some(sentence) = self.leaderless()
            && trouble.is_none()
        {
            trouble = Some(sentence);
        }
        let hidden = layers::hidden(&self.map, &self.disks);
        let volumes = self.volume_reports(now);
        let has_all = self.map.disks().all(|disk| self.disks.contains_key(&disk.id));
        let node = self.node_report(now);
        let mut report = report::status(node, disks, &volumes, hidden, trouble, has_all);
        self.report_trash(&mut report);
        report.sources = self.sources_report(now);
        report.peers = self.peer_reports(now);
        report.agreement = self.agreement_report();
        report
    }

    fn reconnect(&self, name: &str, outputs: &mut Vec<Output>) -> Result<(), AdminError> {
        let volume = self.find(name)?;
        let Some(held) = self.held.get(&HeldId::Head(volume)).filter(|held| held.duty.is_none())
        else {
            return Err(AdminError {
                kind: AdminErrorKind::Conflict,
                sentence: format!("volume {name} is not attached; there is nobody to reconnect"),
            });
        };
        for connection in held.connections.iter().copied() {
            let reason = "an administrator asked the client to reconnect";
            outputs.push(Output::Disconnect { connection, reason });
        }
        Ok(())
    }

    fn scrub(&mut self, disk: Option<DiskId>, action: ScrubAction) -> Result<(), AdminError> {
        if let Some(disk) = disk
            && !self.disks.contains_key(&disk)
        {
            return Err(AdminError {
                kind: AdminErrorKind::NotFound,
                sentence: format!("this node has no disk {disk}; `dog disk list` shows its disks"),
            });
        }
        let command = match action {
            ScrubAction::Start => store::ScrubCommand::Start,
            ScrubAction::Stop => store::ScrubCommand::Stop,
            ScrubAction::Rate(rate) => store::ScrubCommand::Rate(store::ScrubRate(rate)),
        };
        for id in self.disks.keys().filter(|id| disk.is_none_or(|disk| disk == **id)) {
            self.work.push_back(Work::Store(*id, store::Event::Scrub(command)));
        }
        Ok(())
    }

    /// What lay beyond a smaller size is gone: tells those who waited for it.
    pub(super) fn answer_shrunk(&mut self, now: Time, volume: VolumeId, outputs: &mut Vec<Output>) {
        let waiting = std::mem::take(&mut self.shrinking);
        for (token, shrunk) in waiting {
            if shrunk == volume {
                self.answer_volume(now, token, volume, outputs);
            } else {
                self.shrinking.push((token, shrunk));
            }
        }
    }

    /// What lay beyond a smaller size cannot be discarded now: tells those who wait for it.
    pub(super) fn refuse_shrunk(&mut self, volume: VolumeId, why: &str, outputs: &mut Vec<Output>) {
        let (refused, waiting) =
            std::mem::take(&mut self.shrinking).into_iter().partition(|(_, at)| *at == volume);
        self.shrinking = waiting;
        for (token, _) in refused {
            let sentence = format!(
                "the volume has its new size, but what lay beyond is not discarded yet ({why}); \
                 that is done when it is attached, or when the node can have it"
            );
            let result = Err(AdminError { kind: AdminErrorKind::Unavailable, sentence });
            outputs.push(Output::Admin { token, result: Box::new(result) });
        }
    }

    pub(super) fn answer_volume(
        &mut self,
        now: Time,
        token: AdminToken,
        volume: VolumeId,
        outputs: &mut Vec<Output>,
    ) {
        let name = self.map.volume(volume).map(|volume| volume.name.clone()).unwrap_or_default();
        let result = self.volume_named(now, &name).map(AdminReply::Volume);
        outputs.push(Output::Admin { token, result: Box::new(result) });
    }
}

/// A refusal as administrators see it.
pub(super) fn refused(refusal: &Refusal) -> AdminError {
    let kind = match refusal.kind() {
        // It makes sense, but destroys something without having been told to.
        _ if matches!(refusal, Refusal::WouldShrink { .. }) => AdminErrorKind::Conflict,
        RefusalKind::Invalid => AdminErrorKind::Invalid,
        RefusalKind::NotFound => AdminErrorKind::NotFound,
        RefusalKind::Exists | RefusalKind::Busy => AdminErrorKind::Conflict,
        RefusalKind::Full => AdminErrorKind::LimitReached,
        RefusalKind::Unavailable => AdminErrorKind::Unavailable,
    };
    AdminError { kind, sentence: refusal.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They were "unavailable", which is asked again for ten seconds and says nothing.
    #[test]
    fn a_limit_that_is_reached_is_told_as_such() {
        for refusal in [
            Refusal::TooManyVolumes,
            Refusal::TooManySnapshots,
            Refusal::TooManyLayers,
            Refusal::TooManyAttachments,
        ] {
            assert_eq!(refused(&refusal).kind, AdminErrorKind::LimitReached, "{refusal}");
        }
        assert_eq!(refused(&Refusal::TooManyProposals).kind, AdminErrorKind::Conflict);
    }
}
