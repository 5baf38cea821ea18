//! Administrators' requests that take more than one step: those that wait until nobody has a
//! volume any more who is on the way out, and those that wait for the disks to seal a layer.

use super::{Engine, Phase, Purpose, Work, administer::refused};
use crate::{
    Output,
    admin::{AdminError, AdminErrorKind, AdminReply, AdminToken, SnapshotReport},
    attach::{Held, HeldId},
};
use cluster::{Command, Refusal};
use proto::{Duration, LayerId, Time, VolumeId, limits::SEAL_ANSWER_MS_MAX};

/// What must not be held for a command to be carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Needs {
    /// The volume's head.
    Head,
    /// A snapshot.
    Snapshot(LayerId),
    /// The volume's head and all of its snapshots.
    Everything,
}

impl Needs {
    fn covers(self, id: HeldId) -> bool {
        match (self, id) {
            (Needs::Everything, _) | (Needs::Head, HeldId::Head(_)) => true,
            (Needs::Snapshot(wanted), HeldId::Snapshot { layer, .. }) => layer == wanted,
            _ => false,
        }
    }
}

/// A command that waits until its volumes are given back.
#[derive(Debug)]
pub(super) struct Errand {
    /// Of which volumes what must be free.
    needs: Vec<(VolumeId, Needs)>,
    command: Command,
    purpose: Purpose,
}

/// An administrator who waits until a layer is sealed.
#[derive(Debug)]
pub(super) struct Sealing {
    token: AdminToken,
    volume: VolumeId,
    layer: LayerId,
    what: Sealed,
    until: Time,
}

/// What the layer is being sealed for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Sealed {
    /// A snapshot with this tag.
    Snapshot(String),
    /// A rollback to the snapshot with this tag.
    Rollback(String),
}

impl Engine {
    /// Proposes a command that is refused while somebody has its volume; at once, unless all who
    /// have it are on the way out, or the node itself, which gives way.
    pub(super) fn propose_when_free(
        &mut self,
        volume: VolumeId,
        needs: Needs,
        command: Command,
        purpose: Purpose,
    ) {
        self.propose_when_all_free(vec![(volume, needs)], command, purpose);
    }

    /// As [`Engine::propose_when_free`], for a command that concerns several volumes.
    pub(super) fn propose_when_all_free(
        &mut self,
        needs: Vec<(VolumeId, Needs)>,
        command: Command,
        purpose: Purpose,
    ) {
        if self.are_about_to_be_free(&needs) {
            for (volume, needs) in &needs {
                if needs.covers(HeldId::Head(*volume)) {
                    self.release(HeldId::Head(*volume));
                }
            }
            self.errands.push(Errand { needs, command, purpose });
        } else {
            for (volume, _) in needs {
                self.detach_forgotten(volume);
            }
            self.work.push_back(Work::Propose(command, purpose));
        }
    }

    fn are_about_to_be_free(&self, needs: &[(VolumeId, Needs)]) -> bool {
        let mut in_the_way = needs.iter().flat_map(|(volume, needs)| self.holders(*volume, *needs));
        let mut any = false;
        in_the_way.all(|held| {
            any = true;
            held.is_ending()
        }) && any
    }

    /// Those who have what is needed of a volume.
    fn holders(&self, volume: VolumeId, needs: Needs) -> impl Iterator<Item = &Held> {
        let first = HeldId::Snapshot { volume, layer: LayerId(0), reader: 0 };
        let last = HeldId::Snapshot { volume, layer: LayerId(u64::MAX), reader: u64::MAX };
        let head = self.held.get_key_value(&HeldId::Head(volume));
        let all = head.into_iter().chain(self.held.range(first..=last));
        all.filter(move |(id, _)| needs.covers(**id)).map(|(_, held)| held)
    }

    /// Somebody is gone: goes on with those errands that waited for it.
    pub(super) fn retry_errands(&mut self) {
        for errand in std::mem::take(&mut self.errands) {
            let Errand { needs, command, purpose } = errand;
            self.propose_when_all_free(needs, command, purpose);
        }
    }

    /// A layer is to be sealed before the administrator has the answer.
    pub(super) fn await_seal(
        &mut self,
        now: Time,
        token: AdminToken,
        volume: VolumeId,
        what: Sealed,
        outputs: &mut Vec<Output>,
    ) {
        let known = self.map.volume(volume);
        let layer = known.and_then(|volume| self.map.sealing(volume)).unwrap_or_default();
        let until = now + Duration::from_millis(SEAL_ANSWER_MS_MAX);
        self.sealing.push(Sealing { token, volume, layer, what, until });
        if self.phase == Phase::Serving {
            self.attend(volume);
        } else {
            self.abandon_errands(outputs);
        }
    }

    /// Answers those whose layer is sealed, and those who waited too long for it.
    pub(super) fn answer_sealed(&mut self, now: Time, outputs: &mut Vec<Output>) {
        for waiting in std::mem::take(&mut self.sealing) {
            let sealing = self.sealing_layer(waiting.volume);
            let result = if sealing.is_none_or(|layer| layer != waiting.layer) {
                self.sealed(now, waiting.volume, &waiting.what)
            } else if waiting.until <= now {
                Err(self.not_sealed(&waiting, &self.why_not_sealed(now, waiting.volume)))
            } else {
                self.sealing.push(waiting);
                continue;
            };
            outputs.push(Output::Admin { token: waiting.token, result: Box::new(result) });
        }
    }

    /// What of a volume is being sealed. In the trash, nothing is.
    fn sealing_layer(&self, volume: VolumeId) -> Option<LayerId> {
        let volume = self.map.volume(volume).filter(|volume| volume.trash.is_none());
        volume.and_then(|volume| self.map.sealing(volume))
    }

    fn sealed(&self, now: Time, id: VolumeId, what: &Sealed) -> Result<AdminReply, AdminError> {
        // It may have been deleted, or renamed, since it was asked for.
        let Some(volume) = self.map.volume(id) else {
            return Err(refused(&Refusal::UnknownVolume { volume: id }));
        };
        if volume.trash.is_some() {
            let name = volume.name.clone();
            return Err(refused(&Refusal::InTrash { name, volume: id }));
        }
        match what {
            Sealed::Rollback(_) => Ok(AdminReply::Volume(self.volume_named(now, &volume.name)?)),
            Sealed::Snapshot(tag) => self.snapshot_tagged(id, tag).map(AdminReply::Snapshot),
        }
    }

    /// The snapshot of a volume with this tag.
    pub(super) fn snapshot_tagged(
        &self,
        id: VolumeId,
        tag: &str,
    ) -> Result<SnapshotReport, AdminError> {
        let Some(volume) = self.map.volume(id) else {
            return Err(refused(&Refusal::UnknownVolume { volume: id }));
        };
        match volume.snapshot(tag) {
            Some(snapshot) => Ok(self.snapshot_report(volume, snapshot)),
            None => {
                let (name, tag) = (volume.name.clone(), tag.to_owned());
                Err(refused(&Refusal::UnknownSnapshot { name, tag }))
            }
        }
    }

    /// For how long, and for what, a layer has waited in vain.
    pub(super) fn why_not_sealed(&self, now: Time, volume: VolumeId) -> String {
        let held = self.held.get(&HeldId::Head(volume));
        let session = held.and_then(|held| held.session.as_ref());
        let why = match session.and_then(|session| session.waiting(now)) {
            Some(waiting) => waiting.reason,
            None => "waiting for the disks to answer".into(),
        };
        let seconds = SEAL_ANSWER_MS_MAX / 1000;
        format!(
            "for {seconds} s the disks have not settled it ({why}), and `dog status` says what is \
             wrong"
        )
    }

    fn not_sealed(&self, waiting: &Sealing, why: &str) -> AdminError {
        let name = self.map.volume(waiting.volume).map_or("", |volume| &volume.name);
        let (done, later) = match &waiting.what {
            Sealed::Snapshot(tag) => (
                format!("snapshot {name}@{tag} was taken"),
                "it can be read, cloned and deleted as soon as they have",
            ),
            Sealed::Rollback(tag) => (
                format!("volume {name} was rolled back to {tag}"),
                "it can be snapshotted and rolled back again as soon as they have",
            ),
        };
        let sentence = format!("{done}, but {why}; {later}");
        AdminError { kind: AdminErrorKind::Unavailable, sentence }
    }

    /// When an administrator has waited long enough.
    pub(super) fn errands_deadline(&self) -> Option<Time> {
        let single = self.sealing.iter().map(|waiting| waiting.until);
        single.chain(self.group_sealing.iter().map(|waiting| waiting.until)).min()
    }

    /// The node stops: what was not begun is not, and what goes on is finished at the next start.
    pub(super) fn abandon_errands(&mut self, outputs: &mut Vec<Output>) {
        let errands = std::mem::take(&mut self.errands).into_iter();
        let tokens = errands.filter_map(|errand| errand.purpose.token());
        let surveys = std::mem::take(&mut self.surveys).into_values().map(|survey| survey.token);
        let emptying = self.trash.abandon();
        for token in tokens.chain(surveys).chain(emptying).collect::<Vec<_>>() {
            let (kind, sentence) = (AdminErrorKind::Unavailable, self.not_serving());
            outputs.push(Output::Admin {
                token,
                result: Box::new(Err(AdminError { kind, sentence })),
            });
        }
        self.expire_creations(None, outputs);
        // What these asked for is so, but not finished.
        for waiting in std::mem::take(&mut self.sealing) {
            let error =
                self.not_sealed(&waiting, "the node stops before the disks have settled it");
            outputs.push(Output::Admin { token: waiting.token, result: Box::new(Err(error)) });
        }
        self.abandon_sealing_groups(outputs);
        self.abandon_stable(outputs);
        while let Some((_, volume)) = self.shrinking.first() {
            self.refuse_shrunk(*volume, "the node stops", outputs);
        }
    }

    /// Asserts that nobody waits for nothing.
    pub(super) fn check_errands(&self) {
        for waiting in &self.sealing {
            let sealing = self.sealing_layer(waiting.volume);
            assert_eq!(sealing, Some(waiting.layer), "somebody waits for what is sealed");
        }
        self.check_sealing_groups();
        for errand in &self.errands {
            let waits = self.are_about_to_be_free(&errand.needs);
            assert!(waits, "{errand:?} waits for nobody");
        }
    }
}
