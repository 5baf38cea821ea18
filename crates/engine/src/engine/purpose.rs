//! What is to be done when a command that was proposed has been applied, or refused.

use super::{errands::Sealed, groups::GroupStep};
use crate::{admin::AdminToken, attach::HeldId, timetable::ScheduleKey};
use cluster::{Command, Durability, TokenId};
use proto::{DiskId, NodeId, VolumeId};

/// Why a command was proposed: what to do when it has been applied or refused.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// A step of founding or starting the node.
    Boot(Box<Command>),
    /// Something about a disk that its opening does not depend on, or says itself.
    DiskKnown,
    /// A disk of this node was opened.
    DiskOpened(DiskId),
    /// A disk's size is another than is agreed.
    DiskWeight(DiskId),
    /// An administrator has made a token.
    AdminToken(AdminToken, TokenId),
    /// An administrator lets a node in; then it gets these addresses.
    AdminNode(AdminToken, NodeId, Vec<String>),
    /// Somebody wants to attach it.
    Attach(HeldId),
    /// Its last connection is gone.
    Detach(HeldId),
    /// An earlier detachment was refused and is asked for again, before something that needs it.
    DetachForgotten,
    /// A session reports a step of what its volume wants.
    Duty(VolumeId),
    /// An administrator asked: answer with the named volume.
    AdminVolume(AdminToken, String),
    /// An administrator asked for another size.
    AdminResize(AdminToken, VolumeId),
    /// An administrator asked for a snapshot, or a rollback.
    AdminSeal(AdminToken, VolumeId, Sealed),
    /// An administrator changed what acknowledgements of a volume promise.
    AdminDurability(AdminToken, VolumeId, Durability),
    /// An administrator asked: answer with the volume.
    AdminSame(AdminToken, VolumeId),
    /// An administrator asked: answer that it is done.
    AdminDone(AdminToken),
    /// An administrator set a schedule: answer with it.
    AdminSchedule(AdminToken, VolumeId, String),
    /// The snapshot of a slot of a schedule is due.
    Scheduled(ScheduleKey, u64),
    /// A schedule's snapshot is beyond what it keeps.
    Surplus(VolumeId),
    /// An administrator deleted a volume, for good or into the trash.
    AdminGone(AdminToken, VolumeId),
    /// An administrator asked: answer with the snapshot of this tag.
    AdminSnapshot(AdminToken, VolumeId, String),
    /// A volume is to go out of the trash for good.
    Purge(VolumeId),
    /// Members of partitions are to change.
    Members,
    /// An administrator asked for something about a group.
    AdminGroup(AdminToken, GroupStep),
    /// A group snapshot that was being taken when the node ended, by group and tag.
    TornGroup(String, String),
    /// An administrator asked for a volume with a source: answer with the named volume.
    AdminFrom(AdminToken, String),
    /// An attempt of this node has ended.
    AttemptEnd(u64),
    /// Somebody asked for a name that is not known here.
    LookedUp,
}

impl Purpose {
    /// That of the administrator who waits for it.
    pub(super) fn token(&self) -> Option<AdminToken> {
        match self {
            Purpose::AdminVolume(token, _)
            | Purpose::AdminResize(token, _)
            | Purpose::AdminSeal(token, ..)
            | Purpose::AdminDurability(token, ..)
            | Purpose::AdminSame(token, _)
            | Purpose::AdminDone(token)
            | Purpose::AdminSchedule(token, ..)
            | Purpose::AdminGone(token, _)
            | Purpose::AdminSnapshot(token, ..)
            | Purpose::AdminGroup(token, _)
            | Purpose::AdminNode(token, ..)
            | Purpose::AdminToken(token, _)
            | Purpose::AdminFrom(token, _) => Some(*token),
            Purpose::Boot(_)
            | Purpose::DiskKnown
            | Purpose::DiskOpened(_)
            | Purpose::DiskWeight(_)
            | Purpose::Attach(_)
            | Purpose::Detach(_)
            | Purpose::DetachForgotten
            | Purpose::Duty(_)
            | Purpose::Scheduled(..)
            | Purpose::Surplus(_)
            | Purpose::TornGroup(..)
            | Purpose::Purge(_)
            | Purpose::Members
            | Purpose::AttemptEnd(_)
            | Purpose::LookedUp => None,
        }
    }
}
