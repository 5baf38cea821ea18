//! The trash: what administrators ask of it, and how the node empties it. What has expired goes, by
//! the node's notion of the present; and where a disk is short of space, what is in it gives way,
//! the soonest to expire first, one volume at a time, until there is room again.
//!
//! A store is told while there is something that would give way: new data that finds no space then
//! waits for it instead of being refused.

use super::{Engine, Needs, Phase, Purpose, Work, administer::refused};
use crate::{
    NoticeLevel, Output,
    admin::{
        AdminError, AdminErrorKind, AdminReply, AdminRequest, AdminToken, StatusReport,
        TrashChoice, TrashReport,
    },
    disks::Disk,
    report,
};
use cluster::{Answer, Command, Refusal, RefusalKind, Volume};
use proto::{
    BLOCK_SIZE, DiskId, Duration, Time, VolumeId, calendar,
    limits::{
        SNAPSHOT_LOCK_S_MAX, TRASH_GAVE_WAY_SHOWN_S, TRASH_IDS_SHOWN_MAX, TRASH_KEEP_S_MAX,
        TRASH_LOOK_S_MAX, TRASH_PURGES_MAX, TRASH_RETRY_MS, TRASH_ROOM_BYTES_MAX,
        TRASH_ROOM_BYTES_MIN, TRASH_ROOM_DIVISOR,
    },
};
use std::collections::{BTreeMap, BTreeSet};

/// What is in the trash, and how it is emptied.
#[derive(Default)]
pub(super) struct Trash {
    /// Whether what is in it may have changed since `entries` was made.
    pub(super) is_stale: bool,
    /// When it is looked at again whether something has expired.
    pub(super) look_at: Option<Time>,
    /// From when on each volume in it may go for good, in seconds since 1970 as this node counts
    /// them; soonest first.
    entries: BTreeSet<(u64, VolumeId)>,
    /// Those whose end is proposed.
    purging: BTreeMap<VolumeId, Purging>,
    /// Administrators who wait until some of it is gone for good.
    emptying: Vec<Emptying>,
    /// The agreed state takes no commands; it is asked again then.
    blocked_until: Option<Time>,
    /// Disks that nothing in it has any data on.
    exhausted: BTreeSet<DiskId>,
    /// What each disk was told last: whether something gives way.
    told: BTreeMap<DiskId, bool>,
    /// How many volumes gave way since the start.
    gave_way: u64,
    /// The last of them, in words, and when.
    last_gave_way: Option<(String, Time)>,
}

/// A volume that is on its way out of the trash for good.
struct Purging {
    /// Name and id, for people.
    words: String,
    why: Why,
}

/// Why a volume goes for good.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Asked,
    Expired,
    /// This disk is short of space.
    Space(DiskId),
}

/// An administrator who wants volumes gone for good.
struct Emptying {
    token: AdminToken,
    /// Those that are still there.
    left: BTreeSet<VolumeId>,
}

impl Trash {
    /// The node stops: gives back those who waited.
    pub(super) fn abandon(&mut self) -> Vec<AdminToken> {
        std::mem::take(&mut self.emptying).into_iter().map(|emptying| emptying.token).collect()
    }
}

impl Engine {
    // -- what administrators ask --

    /// Deletes a volume, into the trash or for good; the answer follows.
    pub(super) fn delete_volume(
        &mut self,
        token: AdminToken,
        name: &str,
        with_snapshots: bool,
        keep_s: Option<u64>,
    ) -> Result<(), AdminError> {
        let (volume, unix_s) = (self.find(name)?, self.cautious_unix_s());
        let keep_s = keep_s.unwrap_or(self.settings.trash_expiry_s);
        if keep_s > TRASH_KEEP_S_MAX {
            let days = TRASH_KEEP_S_MAX / (24 * 3600);
            return Err(invalid(format!(
                "the trash keeps a volume for {days} days at most; name a shorter time"
            )));
        }
        let command = match keep_s {
            0 => Command::DropVolume { volume, with_snapshots, unix_s },
            _ => {
                let expires_unix_s = unix_s.saturating_add(keep_s);
                Command::TrashVolume { volume, with_snapshots, unix_s, expires_unix_s }
            }
        };
        let purpose = Purpose::AdminGone(token, volume);
        self.propose_when_free(volume, Needs::Everything, command, purpose);
        Ok(())
    }

    /// Begins what an administrator asks of the trash, or of locks.
    pub(super) fn administer_trash(
        &mut self,
        token: AdminToken,
        request: AdminRequest,
    ) -> Result<Option<AdminReply>, AdminError> {
        match request {
            AdminRequest::TrashUndelete { which, new_name } => {
                let volume = self.find_in_trash(&which)?;
                let known = self.map.volume(volume).expect("found just now");
                let name = new_name.unwrap_or_else(|| known.name.clone());
                let command = Command::Undelete { volume, name };
                self.work.push_back(Work::Propose(command, Purpose::AdminSame(token, volume)));
            }
            AdminRequest::TrashPurge { what } => {
                let left: BTreeSet<VolumeId> = match what {
                    TrashChoice::One(which) => BTreeSet::from([self.find_in_trash(&which)?]),
                    TrashChoice::All => self.in_trash().map(|volume| volume.id).collect(),
                };
                if left.is_empty() {
                    return Ok(Some(AdminReply::Done));
                }
                self.trash.emptying.push(Emptying { token, left });
            }
            AdminRequest::SnapshotLock { name, tag, until_unix_s } => {
                let (volume, unix_s) = (self.find(&name)?, self.unix_s());
                if until_unix_s <= unix_s {
                    return Err(invalid(format!(
                        "{} is over; lock a snapshot until a time to come",
                        calendar::date(until_unix_s)
                    )));
                }
                if until_unix_s - unix_s > SNAPSHOT_LOCK_S_MAX {
                    let last = calendar::date(unix_s + SNAPSHOT_LOCK_S_MAX);
                    return Err(invalid(format!("a lock ends by {last}; name an earlier time")));
                }
                let command = Command::LockSnapshot { volume, tag: tag.clone(), until_unix_s };
                let purpose = Purpose::AdminSnapshot(token, volume, tag);
                self.work.push_back(Work::Propose(command, purpose));
            }
            other => unreachable!("{other:?} is answered by the caller"),
        }
        Ok(None)
    }

    /// The volume in the trash that had this name, or has this id.
    fn find_in_trash(&self, which: &str) -> Result<VolumeId, AdminError> {
        let named: Vec<&Volume> = self.in_trash().filter(|volume| volume.name == which).collect();
        let id = which.parse().ok().map(VolumeId);
        let with_id = id.and_then(|id| self.map.volume(id)).filter(|found| found.trash.is_some());
        match named[..] {
            [only] if with_id.is_none_or(|other| other.id == only.id) => return Ok(only.id),
            [only] => {
                let sentence = format!(
                    "{which} is the name of one volume in the trash (id {}) and the id of another \
                     (named {}); name the first by its id, or the second by its name",
                    only.id,
                    with_id.map_or("", |other| &other.name)
                );
                return Err(AdminError { kind: AdminErrorKind::Conflict, sentence });
            }
            [] => {}
            [..] => {
                let words = |volume: &&Volume| {
                    let since = volume.trash.map_or(0, |trash| trash.since_unix_s);
                    format!("{} (deleted {})", volume.id, calendar::date(since))
                };
                let shown: Vec<String> =
                    named.iter().take(TRASH_IDS_SHOWN_MAX).map(words).collect();
                let more = match named.len() - shown.len() {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                let sentence = format!(
                    "{} volumes named {which} are in the trash, with these ids: {}{more}; give \
                     the id of the one you mean",
                    named.len(),
                    shown.join(", ")
                );
                return Err(AdminError { kind: AdminErrorKind::Conflict, sentence });
            }
        }
        with_id.map(|volume| volume.id).ok_or_else(|| AdminError {
            kind: AdminErrorKind::NotFound,
            sentence: format!(
                "no volume {which:?} is in the trash; `dog trash list` shows what is"
            ),
        })
    }

    /// A volume was deleted, for good or into the trash.
    pub(super) fn gone(&mut self, token: AdminToken, volume: VolumeId, outputs: &mut Vec<Output>) {
        self.trash.is_stale = true;
        self.turns.remove(&volume);
        let refusal = match self.map.volume(volume) {
            Some(known) => Refusal::InTrash { name: known.name.clone(), volume },
            None => Refusal::UnknownVolume { volume },
        };
        self.refuse_shrunk(volume, &refusal.to_string(), outputs);
        let report = self.map.volume(volume).map(|volume| TrashReport {
            unknown_nodes: self.unknown_here(),
            ..self.trash_report(volume)
        });
        let reply = report.map_or(AdminReply::Done, AdminReply::Trashed);
        outputs.push(Output::Admin { token, result: Box::new(Ok(reply)) });
    }

    // -- what administrators are told --

    fn in_trash(&self) -> impl Iterator<Item = &Volume> {
        let is_empty = self.map.trashed() == 0;
        let volumes = (!is_empty).then(|| self.map.volumes()).into_iter().flatten();
        volumes.filter(|volume| volume.trash.is_some())
    }

    fn trash_report(&self, volume: &Volume) -> TrashReport {
        let usage = volume.layers().map(|layer| report::usage(&self.disks, layer).data_blocks);
        let trash = volume.trash.unwrap_or(cluster::Trash { since_unix_s: 0, expires_unix_s: 0 });
        TrashReport {
            volume: volume.id,
            name: volume.name.clone(),
            bytes: volume.bytes,
            used_bytes: usage.sum::<u64>() * BLOCK_SIZE as u64,
            snapshots: volume.snapshots.len() as u32,
            deleted_unix_s: trash.since_unix_s,
            expires_unix_s: trash.expires_unix_s,
            unknown_nodes: Vec::new(),
        }
    }

    /// What is in the trash, soonest to expire first.
    pub(super) fn trash_reports(&self) -> Vec<TrashReport> {
        let mut reports: Vec<TrashReport> =
            self.in_trash().map(|volume| self.trash_report(volume)).collect();
        let unknown = self.unknown_here();
        reports.iter_mut().for_each(|report| report.unknown_nodes.clone_from(&unknown));
        reports.sort_by_key(|report| (report.expires_unix_s, report.volume));
        reports
    }

    /// Adds to a status what there is to tell of the trash.
    pub(super) fn report_trash(&self, status: &mut StatusReport) {
        for volume in self.in_trash() {
            status.trash_volumes += 1;
            status.trash_bytes += self.trash_report(volume).used_bytes;
        }
        status.trash_gave_way = self.trash.gave_way;
        let shown = Duration::from_secs(TRASH_GAVE_WAY_SHOWN_S);
        let last = self.trash.last_gave_way.as_ref();
        if let Some((words, _)) = last.filter(|(_, at)| self.present.since(*at) < shown) {
            let count = self.trash.gave_way;
            let plural = if count == 1 { "" } else { "s" };
            status.warnings.push(format!(
                "for want of space {count} volume{plural} went from the trash before the time, \
                 the last of them {words}; give the disk more room, or what is deleted by mistake \
                 cannot be brought back"
            ));
        }
    }

    // -- emptying it --

    /// Empties the trash as far as it is time for that. Returns whether it wants anything.
    pub(super) fn tend_trash(&mut self, now: Time) -> bool {
        self.trash.look_at = None;
        let serving = self.phase == Phase::Serving;
        if serving {
            self.stop_shortening_for_space(now);
            if std::mem::take(&mut self.trash.is_stale) {
                self.look_into_trash();
            }
            self.trash.blocked_until = self.trash.blocked_until.filter(|until| now < *until);
            match self.trash.blocked_until {
                Some(until) => self.trash.look_at = Some(until),
                None => {
                    self.purge_for_administrators();
                    self.purge_expired(now);
                    self.purge_for_space();
                }
            }
        }
        self.tell_what_gives_way(serving);
        !self.work.is_empty()
    }

    /// Makes the list of what is in the trash anew.
    fn look_into_trash(&mut self) {
        let (start, unix_s) = (self.settings.unix_s, self.unix_s());
        let due = |volume: &Volume| {
            let trash = volume.trash?;
            let keep_s = trash.expires_unix_s.saturating_sub(trash.since_unix_s);
            // Deleted in what is the future here: the clock was set back. Then it is kept no longer
            // than it was to be, counted from the start of the node.
            let is_future = trash.since_unix_s > unix_s;
            let latest = if is_future { start.saturating_add(keep_s) } else { u64::MAX };
            Some((trash.expires_unix_s.min(latest), volume.id))
        };
        let entries = self.in_trash().filter_map(due).collect();
        self.trash.entries = entries;
        self.trash.exhausted.clear();
    }

    fn may_purge(&self) -> bool {
        self.trash.purging.len() < TRASH_PURGES_MAX
    }

    fn purge(&mut self, volume: VolumeId, why: Why) {
        let name = self.map.volume(volume).map_or("", |volume| &volume.name);
        let words = format!("{name} (id {volume})");
        self.trash.purging.insert(volume, Purging { words, why });
        let command = Command::Purge { volume };
        self.work.push_back(Work::Propose(command, Purpose::Purge(volume)));
    }

    fn purge_for_administrators(&mut self) {
        let wanted = self.trash.emptying.iter().flat_map(|emptying| &emptying.left);
        let wanted: BTreeSet<VolumeId> = wanted
            .filter(|volume| !self.trash.purging.contains_key(volume))
            .take(TRASH_PURGES_MAX)
            .copied()
            .collect();
        for volume in wanted {
            if self.may_purge() {
                self.purge(volume, Why::Asked);
            }
        }
    }

    fn purge_expired(&mut self, now: Time) {
        if !self.is_steward() {
            return;
        }
        let unix_s = self.cautious_unix_s();
        let begin = self.started + self.settings.trash_grace;
        while self.may_purge() {
            let purging = &self.trash.purging;
            let mut entries = self.trash.entries.iter();
            let Some(&(expires, volume)) = entries.find(|(_, at)| !purging.contains_key(at)) else {
                return;
            };
            let wait_s = expires.saturating_sub(unix_s).min(TRASH_LOOK_S_MAX);
            let due = (now + Duration::from_secs(wait_s)).max(begin);
            if now < due {
                self.trash.look_at = Some(due);
                return;
            }
            self.purge(volume, Why::Expired);
        }
    }

    /// Where a disk is short of space, what is in the trash gives way, one at a time: the next goes
    /// when the space of the one before has come back and is not enough.
    fn purge_for_space(&mut self) {
        if self.trash.entries.is_empty() || !self.trash.purging.is_empty() {
            return;
        }
        let short: Vec<DiskId> =
            self.disks.iter().filter(|(_, disk)| is_short(disk)).map(|(id, _)| *id).collect();
        for disk in short {
            if self.trash.exhausted.contains(&disk) {
                continue;
            }
            let store = self.disks.get(&disk).and_then(Disk::store);
            let has_data = |volume: VolumeId| {
                let volume = self.map.volume(volume);
                let mut layers = volume.into_iter().flat_map(Volume::layers);
                layers.any(|layer| store.is_some_and(|store| store.usage(layer).objects > 0))
            };
            let next = self.trash.entries.iter().find(|(_, volume)| has_data(*volume));
            match next.copied() {
                Some((_, volume)) => return self.purge(volume, Why::Space(disk)),
                None => {
                    self.trash.exhausted.insert(disk);
                }
            }
        }
    }

    /// Tells each disk whether something would give way to new data.
    fn tell_what_gives_way(&mut self, serving: bool) {
        let trash = &mut self.trash;
        for (id, disk) in &self.disks {
            let is_open = disk.store().is_some_and(|store| store.room().is_some());
            let would = trash.blocked_until.is_none()
                && !trash.entries.is_empty()
                && !trash.exhausted.contains(id);
            let more = serving && is_open && (would || !trash.purging.is_empty());
            if trash.told.insert(*id, more).unwrap_or(false) != more {
                let event = store::Event::GivesWay { more };
                self.work.push_back(Work::Store(*id, event));
            }
        }
    }

    /// The end of a proposal to delete something in the trash for good.
    pub(super) fn purged(
        &mut self,
        now: Time,
        volume: VolumeId,
        result: Result<Answer, Refusal>,
        outputs: &mut Vec<Output>,
    ) {
        let Purging { words, why } = self.trash.purging.remove(&volume).expect("it was proposed");
        self.trash.is_stale = true;
        let mut refusal = None;
        match result {
            Ok(_) => self.tell_purged(now, words, why, outputs),
            Err(error) if error.kind() == RefusalKind::Unavailable => {
                self.trash.blocked_until = Some(now + Duration::from_millis(TRASH_RETRY_MS));
                refusal = Some(error);
            }
            // Somebody took it out, or purged it, just before.
            Err(_) => {}
        }
        for mut emptying in std::mem::take(&mut self.trash.emptying) {
            let was_asked = emptying.left.remove(&volume);
            let result = match &refusal {
                Some(refusal) if was_asked => Err(refused(refusal)),
                _ if emptying.left.is_empty() => Ok(AdminReply::Done),
                _ => {
                    self.trash.emptying.push(emptying);
                    continue;
                }
            };
            outputs.push(Output::Admin { token: emptying.token, result: Box::new(result) });
        }
    }

    fn tell_purged(&mut self, now: Time, words: String, why: Why, outputs: &mut Vec<Output>) {
        let (level, sentence) = match why {
            Why::Asked => return,
            Why::Expired => {
                (NoticeLevel::Info, format!("the time of volume {words} in the trash is over"))
            }
            Why::Space(disk) => {
                let path = super::entry_path(&self.disks, disk);
                let sentence = format!(
                    "volume {words} went from the trash before its time, because disk {path} is \
                     short of space"
                );
                self.trash.gave_way += 1;
                self.trash.last_gave_way = Some((words, now));
                (NoticeLevel::Warning, sentence)
            }
        };
        outputs.push(Output::Notice { level, sentence });
    }

    /// Asserts that nothing in the trash is forgotten, nor waited for in vain.
    pub(super) fn check_trash(&self) {
        let trash = &self.trash;
        if !trash.is_stale {
            let listed: BTreeSet<VolumeId> = trash.entries.iter().map(|(_, id)| *id).collect();
            let there: BTreeSet<VolumeId> = self.in_trash().map(|volume| volume.id).collect();
            assert_eq!(listed, there, "the list of what is in the trash is wrong");
        }
        assert!(trash.purging.len() <= TRASH_PURGES_MAX, "too much is purged at once");
        for emptying in &trash.emptying {
            assert!(!emptying.left.is_empty(), "somebody waits for nothing");
        }
    }
}

/// Whether a disk has too little room for new data, or is about to, and no more is on its way.
pub(super) fn is_short(disk: &Disk) -> bool {
    let Some(room) = disk.store().and_then(store::Store::room) else { return false };
    // What a file without a limit can still grow is not known before the driver has told.
    let is_file = disk.settings.kind == store::MediumKind::File;
    if is_file && room.limit_bytes.is_none() && disk.free_bytes().is_none() {
        return false;
    }
    // A store that found no room knows better than what was last heard of the file system.
    let growth = match room.is_wanted {
        true => 0,
        false => report::growth_bytes(disk, room.allocated_bytes, room.limit_bytes),
    };
    let limit_bytes = room.limit_bytes.unwrap_or(u64::MAX);
    let capacity = room.allocated_bytes.saturating_add(growth).min(limit_bytes);
    let kept = (capacity / TRASH_ROOM_DIVISOR).clamp(TRASH_ROOM_BYTES_MIN, TRASH_ROOM_BYTES_MAX);
    !room.is_growing && room.bytes.saturating_add(growth) < kept
}

fn invalid(sentence: String) -> AdminError {
    AdminError { kind: AdminErrorKind::Invalid, sentence }
}
