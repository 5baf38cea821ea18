//! `dog volume snapshot | snapshots | clone | rollback | flatten`, and what other verbs do with a
//! snapshot.

use super::{
    Context, Failure,
    arguments::FreezeOptions,
    failure::FailureKind,
    freeze,
    interrupt::Interrupt,
    moment::Moment,
    name::SnapshotName,
    print,
    progress::{Progress, Waiting},
};
use crate::{size::Size, span::Span};
use engine::admin::{AdminReply, AdminRequest, FlattenAction, SnapshotReport, VolumeReport};
use proto::limits::SNAPSHOT_LOCK_S_MAX;
use std::{
    thread,
    time::{Duration, Instant},
};

/// Longest lock that is not asked about: a wrong digit in the year cannot be undone.
const LOCK_ASKED_S: u64 = 3_653 * 24 * 3600;
/// How long going back waits for our own connection to be gone.
const ROLLBACK_PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks.
const ROLLBACK_INTERVAL: Duration = Duration::from_millis(50);
/// How often flattening is looked at by who waits for it.
const FLATTEN_INTERVAL: Duration = Duration::from_millis(200);

impl Context {
    /// All snapshots of a volume, oldest first.
    fn snapshots(&self, name: &str, reclaimable: bool) -> Result<Vec<SnapshotReport>, Failure> {
        let request = AdminRequest::SnapshotList { name: name.to_string(), reclaimable };
        match self.ask(&request)? {
            AdminReply::Snapshots(snapshots) => Ok(snapshots),
            _ => Err(Failure::mismatch()),
        }
    }

    /// The snapshot of this name.
    pub(super) fn snapshot(&self, name: &SnapshotName) -> Result<SnapshotReport, Failure> {
        let snapshots = self.snapshots(&name.volume, false)?;
        snapshots.into_iter().find(|snapshot| snapshot.tag == name.tag).ok_or_else(|| {
            Failure::not_found(format!(
                "volume {volume} has no snapshot {tag}; `dog volume snapshots {volume}` shows \
                 those it has",
                volume = name.volume,
                tag = name.tag
            ))
        })
    }
}

impl Context {
    /// Takes a volume back to a snapshot after our own import into it, which may be lost. The
    /// daemon may not have noticed yet that a connection of ours is gone.
    pub(super) fn rollback_when_free(&self, name: &SnapshotName) -> Result<VolumeReport, Failure> {
        let until = Instant::now() + ROLLBACK_PATIENCE;
        let SnapshotName { volume: name, tag } = name.clone();
        let request = AdminRequest::VolumeRollback { name, tag };
        loop {
            match self.ask_for_volume(&request) {
                Err(refused) if refused.kind == FailureKind::Conflict && Instant::now() < until => {
                    thread::sleep(ROLLBACK_INTERVAL);
                }
                result => return result,
            }
        }
    }
}

/// Takes a snapshot.
pub fn create(
    context: &Context,
    name: SnapshotName,
    options: &FreezeOptions,
) -> Result<(), Failure> {
    if !options.freeze.is_empty()
        && context.snapshots(&name.volume, false)?.iter().any(|known| known.tag == name.tag)
    {
        // Known before a guest stands still for it.
        return Err(Failure::conflict(format!(
            "volume {} has a snapshot {} already; choose another tag",
            name.volume, name.tag
        )));
    }
    let undo = format!("dog volume delete {name} --yes");
    let (snapshot, guests) = freeze::around(options, &name.to_string(), &undo, || {
        let SnapshotName { volume, tag } = name.clone();
        match context.ask(&AdminRequest::SnapshotCreate { name: volume, tag })? {
            AdminReply::Snapshot(snapshot) => Ok(snapshot),
            _ => Err(Failure::mismatch()),
        }
    })?;
    let words = freeze::words(&guests);
    let text = format!("{words}snapshot {name} of {} taken\n", Size(snapshot.bytes));
    freeze::show(context, &snapshot, &guests, &text)
}

/// Lists the snapshots of a volume.
pub fn list(context: &Context, name: &str, reclaimable: bool) -> Result<(), Failure> {
    let waiting =
        reclaimable.then(|| Waiting::new("computing what deleting each snapshot would free"));
    let snapshots = context.snapshots(name, reclaimable);
    drop(waiting);
    let snapshots = snapshots?;
    if context.json {
        return print::json(&snapshots);
    }
    print::text(&tabulate(&snapshots, reclaimable))
}

/// Shows one snapshot.
pub fn info(context: &Context, name: &SnapshotName) -> Result<(), Failure> {
    let snapshot = context.snapshot(name)?;
    if context.json { print::json(&snapshot) } else { print::text(&describe(&snapshot)) }
}

/// Makes a volume of a snapshot.
pub fn clone(context: &Context, name: SnapshotName, new_name: String) -> Result<(), Failure> {
    let SnapshotName { volume, tag } = name.clone();
    let request = AdminRequest::VolumeClone { name: volume, tag, new_name };
    let clone = context.ask_for_volume(&request)?;
    let sentence = format!("volume {} of {} cloned from {name}", clone.name, Size(clone.bytes));
    context.show_changed(&clone, &sentence)?;
    context.warn_of_overcommit()
}

/// Takes a volume back to a snapshot.
pub fn rollback(context: &Context, name: SnapshotName, yes: bool) -> Result<(), Failure> {
    if !yes {
        context.snapshot(&name)?;
        let volume = context.volume(&name.volume)?;
        return Err(Failure::conflict(format!(
            "going back to {name} destroys what was written to volume {} since its last snapshot \
             or rollback ({}); take another snapshot to keep that, and say --yes if you mean it",
            volume.name,
            Size(volume.head_bytes)
        )));
    }
    let SnapshotName { volume, tag } = name.clone();
    // Asked once: whoever has the volume may write it before giving it back.
    let volume = context.ask_for_volume(&AdminRequest::VolumeRollback { name: volume, tag })?;
    context.show_changed(&volume, &format!("volume {} is what it was at {name}", volume.name))
}

/// Deletes a snapshot.
pub fn delete(context: &Context, name: SnapshotName, yes: bool) -> Result<(), Failure> {
    if !yes {
        context.snapshot(&name)?;
        return Err(Failure::conflict(format!(
            "without snapshot {name} there is no way back to that moment; say --yes if you mean it"
        )));
    }
    let SnapshotName { volume, tag } = name.clone();
    context.tell(&AdminRequest::SnapshotDelete { name: volume, tag })?;
    context.done(&format!(
        "snapshot {name} deleted; the space of what only it showed comes back in the background"
    ))
}

/// Locks a snapshot against deletion.
pub fn lock(
    context: &Context,
    name: SnapshotName,
    until: Moment,
    yes: bool,
) -> Result<(), Failure> {
    let SnapshotName { volume, tag } = name.clone();
    let until_unix_s = until.unix_s();
    let seconds = until_unix_s.saturating_sub(Moment::After(Span::default()).unix_s());
    if !yes && (LOCK_ASKED_S..=SNAPSHOT_LOCK_S_MAX).contains(&seconds) {
        return Err(Failure::conflict(format!(
            "nobody can undo a lock, and this one holds for more than ten years, until {}; say \
             --yes if you mean it",
            proto::calendar::date(until_unix_s)
        )));
    }
    let request = AdminRequest::SnapshotLock { name: volume, tag, until_unix_s };
    let AdminReply::Snapshot(snapshot) = context.ask(&request)? else {
        return Err(Failure::mismatch());
    };
    if context.json {
        return print::json(&snapshot);
    }
    print::text(&format!(
        "snapshot {name} is locked until {}: until then nobody can delete it, nor volume {}\n",
        proto::calendar::date(until_unix_s),
        name.volume
    ))
}

/// Starts or stops copying what a clone shares, and shows how far that is.
pub fn flatten(context: &Context, name: &str, stop: bool, wait: bool) -> Result<(), Failure> {
    let interrupt = Interrupt::listen()?;
    let action = if stop { FlattenAction::Stop } else { FlattenAction::Start };
    let request = AdminRequest::VolumeFlatten { name: name.to_string(), action };
    let mut volume = match context.ask_for_volume(&request) {
        Ok(volume) => volume,
        // It may be done since somebody last looked, and then all is as wanted.
        Err(failure) => match context.volume(name) {
            Ok(volume) if volume.origin.is_none() => volume,
            _ => return Err(failure),
        },
    };
    if wait {
        volume = wait_for_flatten(context, volume, &interrupt)?;
    }
    let sentence = match (&volume.origin, stop) {
        (None, _) => format!("volume {name} needs nothing but itself"),
        (Some(origin), true) if origin.source.is_some() => {
            format!("volume {name} is not filled any further until `dog volume flatten {name}`")
        }
        (Some(_), true) => format!("flattening of volume {name} is stopped"),
        (Some(_), false) => format!(
            "volume {name} is being flattened in the background; `dog volume info {name}` shows \
             how far it is"
        ),
    };
    context.show_changed(&volume, &sentence)
}

/// Shows the progress until the volume needs nothing but itself.
pub(super) fn wait_for_flatten(
    context: &Context,
    mut volume: VolumeReport,
    interrupt: &Interrupt,
) -> Result<VolumeReport, Failure> {
    let mut progress: Option<Progress> = None;
    let mut told: Option<String> = None;
    let name = volume.name.clone();
    while volume.origin.is_some() {
        let Some(flatten) = &volume.flatten else {
            return Err(Failure::conflict(format!(
                "somebody stopped the flattening of volume {name}; say `dog volume flatten \
                 {name}` again to go on"
            )));
        };
        if flatten.running {
            // What an earlier run copied counts as done, but not for the rate.
            progress
                .get_or_insert_with(|| {
                    Progress::resumed("flattening", flatten.done_bytes, flatten.total_bytes)
                })
                .reach(flatten.done_bytes);
        }
        // How long it has waited changes, what for does not.
        let waits = flatten.waiting.as_ref().and_then(|waiting| waiting.rsplit_once(", "));
        let trouble = flatten.error.as_deref().or(waits.map(|(what, _)| what));
        if trouble != told.as_deref() {
            told = trouble.map(str::to_string);
            if let Some(trouble) = &told {
                context.note(&format!("{trouble}; it is tried again after a while"));
            }
        }
        if interrupt.requested() {
            return Err(Failure::interrupted(format!(
                "interrupted; flattening goes on in the background: `dog volume info {name}` \
                 shows how far it is, `dog volume flatten {name} --stop` stops it"
            )));
        }
        thread::sleep(FLATTEN_INTERVAL);
        volume = context.volume(&name)?;
    }
    Ok(volume)
}

/// Snapshots as a table.
fn tabulate(snapshots: &[SnapshotReport], reclaimable: bool) -> String {
    let mut columns = vec![("TAG", false), ("CREATED", false), ("SIZE", true), ("USED", true)];
    if reclaimable {
        columns.push(("WOULD FREE", true));
    }
    columns.extend([("READERS", true), ("CLONES", false)]);
    // Where there are none, as often, there is no need to say so.
    let any_scheduled = snapshots.iter().any(|snapshot| snapshot.schedule.is_some());
    if any_scheduled {
        columns.push(("SCHEDULE", false));
    }
    columns.push(("STATE", false));
    let rows = snapshots.iter().map(|snapshot| {
        let mut row = vec![
            snapshot.tag.clone(),
            proto::calendar::date(snapshot.created_unix_s),
            Size(snapshot.bytes).to_string(),
            print::at_least(snapshot.used_bytes, &snapshot.unknown_nodes),
        ];
        if reclaimable {
            let bytes = snapshot.reclaimable_bytes.map(|bytes| Size(bytes).to_string());
            row.push(bytes.unwrap_or_else(|| "unknown".to_string()));
        }
        row.extend([snapshot.readers.len().to_string(), clones(snapshot)]);
        if any_scheduled {
            row.push(snapshot.schedule.clone().unwrap_or_else(|| "-".to_string()));
        }
        row.push(state(snapshot));
        row
    });
    print::table(&columns, rows.collect())
}

fn clones(snapshot: &SnapshotReport) -> String {
    if snapshot.clones.is_empty() { "-".to_string() } else { snapshot.clones.join(", ") }
}

fn state(snapshot: &SnapshotReport) -> String {
    match (snapshot.sealing, snapshot.locked_until_unix_s) {
        (true, _) => "being taken".to_string(),
        (false, Some(until)) => format!("locked until {}", proto::calendar::date(until)),
        (false, None) => "ok".to_string(),
    }
}

/// One snapshot in full.
fn describe(snapshot: &SnapshotReport) -> String {
    let mut fields = vec![
        ("Name", format!("{}@{}", snapshot.volume, snapshot.tag)),
        ("Layer", snapshot.layer.to_string()),
        ("Size", print::exact(snapshot.bytes)),
        ("Used", print::exact(snapshot.used_bytes)),
        ("Used by maps", print::exact(snapshot.metadata_bytes)),
        ("Created", proto::calendar::date(snapshot.created_unix_s)),
        ("Clones", clones(snapshot)),
    ];
    for reader in &snapshot.readers {
        fields.push(("Read by", reader.holder.clone()));
    }
    if let Some(schedule) = &snapshot.schedule {
        fields.push(("Schedule", schedule.clone()));
    }
    fields.push(("State", state(snapshot)));
    print::fields(&fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::admin::AttachmentReport;
    use proto::{Generation, LayerId, NodeId};

    fn snapshot(tag: &str, reclaimable_bytes: Option<u64>) -> SnapshotReport {
        SnapshotReport {
            volume: "web".to_string(),
            tag: tag.to_string(),
            layer: LayerId(5),
            bytes: 20 << 30,
            created_unix_s: 1_700_000_000,
            used_bytes: 3 << 20,
            metadata_bytes: 4096,
            reclaimable_bytes,
            sealing: false,
            readers: Vec::new(),
            clones: Vec::new(),
            schedule: None,
            locked_until_unix_s: None,
            unknown_nodes: Vec::new(),
        }
    }

    #[test]
    fn what_schedules_took_is_told_apart() {
        let mut scheduled = snapshot("h-1", None);
        scheduled.schedule = Some("h".to_string());
        let printed = tabulate(&[snapshot("a", None), scheduled.clone()], false);
        let expected = "\
TAG  CREATED                      SIZE     USED  READERS  CLONES  SCHEDULE  STATE
a    2023-11-14 22:13:20 UTC  20.0 GiB  3.0 MiB        0  -       -         ok
h-1  2023-11-14 22:13:20 UTC  20.0 GiB  3.0 MiB        0  -       h         ok
";
        assert_eq!(printed, expected);
        assert!(describe(&scheduled).lines().any(|line| line == "Schedule:     h"));
    }

    #[test]
    fn snapshots_are_tabulated() {
        let mut used = snapshot("before-upgrade", None);
        used.sealing = true;
        used.clones = vec!["test".to_string(), "test2".to_string()];
        let printed = tabulate(&[snapshot("monday", None), used], false);
        let expected = "\
TAG             CREATED                      SIZE     USED  READERS  CLONES       STATE
monday          2023-11-14 22:13:20 UTC  20.0 GiB  3.0 MiB        0  -            ok
before-upgrade  2023-11-14 22:13:20 UTC  20.0 GiB  3.0 MiB        0  test, test2  being taken
";
        assert_eq!(printed, expected);
    }

    #[test]
    fn what_deleting_would_free_is_a_column_when_asked_for() {
        let mut locked = snapshot("a", Some(1 << 20));
        locked.locked_until_unix_s = Some(1_800_000_000);
        let printed = tabulate(&[locked, snapshot("b", None)], true);
        let expected = "\
TAG  CREATED                      SIZE     USED  WOULD FREE  READERS  CLONES  STATE
a    2023-11-14 22:13:20 UTC  20.0 GiB  3.0 MiB     1.0 MiB        0  -       \
locked until 2027-01-15 08:00:00 UTC
b    2023-11-14 22:13:20 UTC  20.0 GiB  3.0 MiB     unknown        0  -       ok
";
        assert_eq!(printed, expected);
    }

    #[test]
    fn one_snapshot_is_described_in_full() {
        let mut read = snapshot("monday", None);
        read.readers.push(AttachmentReport {
            node: NodeId(1),
            generation: Generation(3),
            holder: "process 4711 (qemu-img)".to_string(),
            connections: 1,
            read_only: true,
            unknown: false,
        });
        let printed = describe(&read);
        for line in [
            "Name:         web@monday",
            "Size:         20.0 GiB (21474836480 bytes)",
            "Read by:      process 4711 (qemu-img)",
            "Clones:       -",
            "State:        ok",
        ] {
            assert!(printed.lines().any(|printed| printed == line), "{line} is not in\n{printed}");
        }
    }
}
