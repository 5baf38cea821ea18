//! `dog group`: volumes whose snapshots are taken at one moment.

use super::{
    Context, Failure,
    arguments::{FreezeOptions, GroupVerb},
    freeze,
    name::{GroupName, GroupOrSnapshotName, GroupSnapshotName, Name, SnapshotName, VolumeName},
    print,
};
use crate::size::Size;
use engine::admin::{
    AdminReply, AdminRequest, GroupMemberReport, GroupReport, GroupSnapshotReport,
};

/// Runs one verb.
pub fn run(context: &Context, verb: GroupVerb) -> Result<(), Failure> {
    match verb {
        GroupVerb::Create { name, volumes } => {
            let request = AdminRequest::GroupCreate { name, volumes: names(volumes) };
            let group = context.ask_for_group(&request)?;
            context.show_group(&group, &made(&group))
        }
        GroupVerb::Delete { name: GroupOrSnapshotName(Name::Volume(name)), .. } => {
            context.tell(&AdminRequest::GroupDelete { name: name.clone() })?;
            context.done(&format!("group {name} deleted; its volumes and all snapshots stay"))
        }
        GroupVerb::Delete { name: GroupOrSnapshotName(Name::Snapshot(name)), yes } => {
            delete(context, name, yes)
        }
        GroupVerb::List => list(context),
        GroupVerb::Info { name: GroupOrSnapshotName(Name::Volume(name)) } => {
            let group = context.group(&name)?;
            if context.json { print::json(&group) } else { print::text(&describe(&group)) }
        }
        GroupVerb::Info { name: GroupOrSnapshotName(Name::Snapshot(name)) } => {
            let snapshot = context.group_snapshot(&name)?;
            let text = || describe_snapshot(&snapshot);
            if context.json { print::json(&snapshot) } else { print::text(&text()) }
        }
        GroupVerb::Add { name: GroupName(name), volumes } => {
            let request = AdminRequest::GroupAdd { name, volumes: names(volumes) };
            let group = context.ask_for_group(&request)?;
            context.show_group(&group, &format!("group {} has {} now", group.name, count(&group)))
        }
        GroupVerb::Remove { name: GroupName(name), volumes } => {
            let request = AdminRequest::GroupRemove { name, volumes: names(volumes) };
            let group = context.ask_for_group(&request)?;
            context.show_group(&group, &format!("group {} has {} now", group.name, count(&group)))
        }
        GroupVerb::Snapshot { name: GroupSnapshotName(name), freeze } => {
            take(context, name, &freeze)
        }
        GroupVerb::Rollback { name: GroupSnapshotName(name), yes } => rollback(context, name, yes),
    }
}

impl Context {
    fn ask_for_group(&self, request: &AdminRequest) -> Result<GroupReport, Failure> {
        match self.ask(request)? {
            AdminReply::Group(group) => Ok(group),
            _ => Err(Failure::mismatch()),
        }
    }

    fn group(&self, name: &str) -> Result<GroupReport, Failure> {
        self.ask_for_group(&AdminRequest::GroupInfo { name: name.to_string() })
    }

    fn ask_for_group_snapshot(
        &self,
        request: &AdminRequest,
    ) -> Result<GroupSnapshotReport, Failure> {
        match self.ask(request)? {
            AdminReply::GroupSnapshot(snapshot) => Ok(snapshot),
            _ => Err(Failure::mismatch()),
        }
    }

    fn group_snapshot(&self, name: &SnapshotName) -> Result<GroupSnapshotReport, Failure> {
        let SnapshotName { volume: group, tag } = name;
        let snapshots = self.group(group)?.snapshots;
        snapshots.into_iter().find(|snapshot| snapshot.tag == *tag).ok_or_else(|| {
            Failure::not_found(format!(
                "group {group} has no snapshot {tag}; `dog group info {group}` shows those it has"
            ))
        })
    }

    fn show_group(&self, group: &GroupReport, sentence: &str) -> Result<(), Failure> {
        if self.json { print::json(group) } else { print::text(&format!("{sentence}\n")) }
    }
}

fn names(volumes: Vec<VolumeName>) -> Vec<String> {
    volumes.into_iter().map(|volume| volume.0).collect()
}

fn made(group: &GroupReport) -> String {
    let name = &group.name;
    match group.volumes.is_empty() {
        false => format!("group {name} of {} made", count(group)),
        true => format!(
            "group {name} without volumes made: it can have a snapshot once `dog group add {name} \
             VOLUME` has added some"
        ),
    }
}

/// "1 volume", "3 volumes".
fn volumes(count: usize) -> String {
    if count == 1 { "1 volume".to_string() } else { format!("{count} volumes") }
}

fn count(group: &GroupReport) -> String {
    volumes(group.volumes.len())
}

/// Takes a snapshot of all volumes.
fn take(context: &Context, name: SnapshotName, options: &FreezeOptions) -> Result<(), Failure> {
    if !options.freeze.is_empty() {
        // What is wrong is told before a guest stands still for it.
        let group = context.group(&name.volume)?;
        if group.snapshots.iter().any(|snapshot| snapshot.tag == name.tag) {
            return Err(Failure::conflict(format!(
                "group {} has a snapshot {} already; choose another tag",
                name.volume, name.tag
            )));
        }
    }
    let undo = format!("dog group delete {name} --yes");
    let (snapshot, guests) = freeze::around(options, &name.to_string(), &undo, || {
        let SnapshotName { volume: group, tag } = name.clone();
        context.ask_for_group_snapshot(&AdminRequest::GroupSnapshot { name: group, tag })
    })?;
    let (words, count) = (freeze::words(&guests), volumes(snapshot.members.len()));
    let text = format!("{words}snapshot {name} of {count} taken\n");
    freeze::show(context, &snapshot, &guests, &text)
}

/// Deletes a snapshot of all volumes.
fn delete(context: &Context, name: SnapshotName, yes: bool) -> Result<(), Failure> {
    if !yes {
        let snapshot = context.group_snapshot(&name)?;
        return Err(Failure::conflict(format!(
            "without snapshot {name} ({}) there is no way back to that moment; say --yes if you \
             mean it",
            volumes(snapshot.members.len())
        )));
    }
    let SnapshotName { volume: group, tag } = name.clone();
    context.tell(&AdminRequest::GroupSnapshotDelete { name: group, tag })?;
    context.done(&format!(
        "snapshot {name} deleted; the space of what only it showed comes back in the background"
    ))
}

/// Takes all volumes of a snapshot back to it.
fn rollback(context: &Context, name: SnapshotName, yes: bool) -> Result<(), Failure> {
    if !yes {
        let snapshot = context.group_snapshot(&name)?;
        let members: Vec<&str> =
            snapshot.members.iter().map(|member| member.volume.as_str()).collect();
        return Err(Failure::conflict(format!(
            "going back to {name} destroys what was written to {} since their last snapshots or \
             rollbacks; take another snapshot to keep that, and say --yes if you mean it",
            members.join(", ")
        )));
    }
    let SnapshotName { volume: group, tag } = name.clone();
    let request = AdminRequest::GroupRollback { name: group, tag };
    let snapshot = context.ask_for_group_snapshot(&request)?;
    if context.json {
        return print::json(&snapshot);
    }
    let count = volumes(snapshot.members.len());
    print::text(&format!("{count} of group {} are what they were at {name}\n", name.volume))
}

fn list(context: &Context) -> Result<(), Failure> {
    let groups = match context.ask(&AdminRequest::GroupList)? {
        AdminReply::Groups(groups) => groups,
        _ => return Err(Failure::mismatch()),
    };
    if context.json { print::json(&groups) } else { print::text(&tabulate(&groups)) }
}

/// Groups as a table.
fn tabulate(groups: &[GroupReport]) -> String {
    let columns = [("NAME", false), ("CREATED", false), ("SNAPSHOTS", true), ("VOLUMES", false)];
    let row = |group: &GroupReport| {
        vec![
            group.name.clone(),
            proto::calendar::date(group.created_unix_s),
            group.snapshots.len().to_string(),
            joined(&group.volumes),
        ]
    };
    print::table(&columns, groups.iter().map(row).collect())
}

fn joined(volumes: &[String]) -> String {
    match volumes.is_empty() {
        true => "none, and so no snapshots; `dog group add` adds some".to_string(),
        false => volumes.join(", "),
    }
}

/// One group in full: fields, and a table of its snapshots.
fn describe(group: &GroupReport) -> String {
    let fields = [
        ("Name", group.name.clone()),
        ("Created", proto::calendar::date(group.created_unix_s)),
        ("Volumes", joined(&group.volumes)),
        ("Snapshots", group.snapshots.len().to_string()),
    ];
    let mut text = print::fields(&fields);
    if group.snapshots.is_empty() {
        return text;
    }
    let columns = [("TAG", false), ("TAKEN", false), ("VOLUMES", true), ("STATE", false)];
    let row = |snapshot: &GroupSnapshotReport| {
        vec![
            snapshot.tag.clone(),
            proto::calendar::date(snapshot.created_unix_s),
            snapshot.members.len().to_string(),
            state(snapshot),
        ]
    };
    text += "\n";
    text += &print::table(&columns, group.snapshots.iter().map(row).collect());
    text
}

/// What is the matter with a group snapshot.
fn state(snapshot: &GroupSnapshotReport) -> String {
    if snapshot.sealing {
        "being taken".to_string()
    } else if !snapshot.complete {
        let gone = snapshot.count as usize - snapshot.members.len();
        format!("{gone} of {} deleted", snapshot.count)
    } else {
        "ok".to_string()
    }
}

/// One group snapshot in full: fields, and a table of its parts.
fn describe_snapshot(snapshot: &GroupSnapshotReport) -> String {
    let fields = [
        ("Name", format!("{}@{}", snapshot.group, snapshot.tag)),
        ("Taken", proto::calendar::date(snapshot.created_unix_s)),
        ("Taken of", volumes(snapshot.count as usize)),
        ("State", state(snapshot)),
    ];
    let columns = [("SNAPSHOT", false), ("SIZE", true), ("USED", true), ("STATE", false)];
    let row = |member: &GroupMemberReport| {
        vec![
            format!("{}@{}", member.volume, snapshot.tag),
            Size(member.bytes).to_string(),
            Size(member.used_bytes).to_string(),
            match (member.sealing, member.in_trash) {
                (true, _) => "being taken".to_string(),
                (false, true) => "in the trash".to_string(),
                (false, false) => "ok".to_string(),
            },
        ]
    };
    let table = print::table(&columns, snapshot.members.iter().map(row).collect());
    format!("{}\n{table}", print::fields(&fields))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::LayerId;

    fn member(volume: &str) -> GroupMemberReport {
        GroupMemberReport {
            volume: volume.to_string(),
            layer: LayerId(7),
            bytes: 20 << 30,
            used_bytes: 3 << 20,
            sealing: false,
            in_trash: false,
        }
    }

    fn snapshot(tag: &str, members: &[&str]) -> GroupSnapshotReport {
        GroupSnapshotReport {
            group: "db".to_string(),
            tag: tag.to_string(),
            created_unix_s: 1_700_000_000,
            count: 2,
            complete: members.len() == 2,
            sealing: false,
            members: members.iter().map(|volume| member(volume)).collect(),
        }
    }

    fn group(snapshots: Vec<GroupSnapshotReport>) -> GroupReport {
        GroupReport {
            name: "db".to_string(),
            created_unix_s: 1_700_000_000,
            volumes: vec!["data".to_string(), "log".to_string()],
            snapshots,
        }
    }

    #[test]
    fn groups_are_tabulated() {
        let mut empty = group(Vec::new());
        (empty.name, empty.volumes) = ("empty".to_string(), Vec::new());
        let printed = tabulate(&[group(vec![snapshot("monday", &["data", "log"])]), empty]);
        let expected = "\
NAME   CREATED                  SNAPSHOTS  VOLUMES
db     2023-11-14 22:13:20 UTC          1  data, log
empty  2023-11-14 22:13:20 UTC          0  none, and so no snapshots; `dog group add` adds some
";
        assert_eq!(printed, expected);
    }

    #[test]
    fn a_group_without_volumes_is_told_when_it_is_made() {
        let mut empty = group(Vec::new());
        assert_eq!(made(&empty), "group db of 2 volumes made");
        empty.volumes.clear();
        assert!(made(&empty).contains("without volumes made: it can have a snapshot once"));
    }

    #[test]
    fn a_group_is_described_with_its_snapshots() {
        let mut third = snapshot("wednesday", &["data", "log"]);
        third.sealing = true;
        let snapshots =
            vec![snapshot("monday", &["data", "log"]), snapshot("tuesday", &["log"]), third];
        let expected = "\
Name:      db
Created:   2023-11-14 22:13:20 UTC
Volumes:   data, log
Snapshots: 3

TAG        TAKEN                    VOLUMES  STATE
monday     2023-11-14 22:13:20 UTC        2  ok
tuesday    2023-11-14 22:13:20 UTC        1  1 of 2 deleted
wednesday  2023-11-14 22:13:20 UTC        2  being taken
";
        assert_eq!(describe(&group(snapshots)), expected);
    }

    #[test]
    fn a_group_snapshot_is_described_with_its_parts() {
        let mut monday = snapshot("monday", &["data", "log"]);
        monday.members[1].in_trash = true;
        let expected = "\
Name:     db@monday
Taken:    2023-11-14 22:13:20 UTC
Taken of: 2 volumes
State:    ok

SNAPSHOT         SIZE     USED  STATE
data@monday  20.0 GiB  3.0 MiB  ok
log@monday   20.0 GiB  3.0 MiB  in the trash
";
        assert_eq!(describe_snapshot(&monday), expected);
    }
}
