//! `dog disk`: the disks of all nodes, and the scrubbing of those of the node that is asked.

use super::{
    Context, Failure,
    arguments::{DiskChoice, DiskVerb, ScrubVerb},
    cluster, print,
};
use crate::size::Size;
use engine::admin::{
    AdminReply, AdminRequest, ClusterDiskReport, ClusterReport, DiskReport, ScrubAction,
};
use proto::{DiskId, counted};
use serde_json::Value;
use std::path::Path;

/// Runs one verb.
pub fn run(context: &Context, verb: DiskVerb) -> Result<(), Failure> {
    match verb {
        DiskVerb::List => list(context),
        DiskVerb::Add { path, limit } => add(context, &path, limit),
        DiskVerb::Scrub(ScrubVerb::Start { disk }) => {
            check_scrub_rate(context, &disk)?;
            scrub(context, &disk, ScrubAction::Start, "scrubbing started".to_string())
        }
        DiskVerb::Scrub(ScrubVerb::Stop { disk }) => {
            scrub(context, &disk, ScrubAction::Stop, "scrubbing stopped".to_string())
        }
        DiskVerb::Scrub(ScrubVerb::Rate { rate, disk }) => {
            let sentence = match rate.0 {
                0 => "scrubbing is off".to_string(),
                _ => format!("scrubbing reads at most {rate}/s"),
            };
            scrub(context, &disk, ScrubAction::Rate(rate.0), sentence)
        }
        DiskVerb::Drain { disk } => {
            context.tell(&AdminRequest::DiskDrain { disk: disk.0, wanted: true })?;
            context.done(&format!(
                "what lies on disk {} goes to other disks; `dog disk list` shows how much is left",
                disk.0
            ))
        }
        DiskVerb::Undrain { disk } => {
            context.tell(&AdminRequest::DiskDrain { disk: disk.0, wanted: false })?;
            context.done(&format!("disk {} is used again", disk.0))
        }
        DiskVerb::Remove { disk, yes } => remove(context, disk.0, yes),
    }
}

fn add(context: &Context, path: &Path, limit: Option<Size>) -> Result<(), Failure> {
    // The node runs in another directory than we do.
    let path = std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("{} is no path: {error}", path.display())))?;
    let Some(path) = path.to_str() else {
        let sentence = format!("{} is no plain text; use another name", path.display());
        return Err(Failure::usage(sentence));
    };
    if limit == Some(Size(0)) {
        return Err(Failure::usage("a limit of 0 leaves no room for data; give a larger one"));
    }
    let limit_bytes = limit.map(|limit| limit.0);
    let request = AdminRequest::DiskAdd { path: path.to_string(), limit_bytes };
    let AdminReply::DiskAdded(report) = context.ask(&request)? else {
        return Err(Failure::mismatch());
    };
    if context.json {
        return print::json(&report);
    }
    if let Some(warning) = &report.warning {
        context.note(&format!("warning: {warning}"));
    }
    context.done(&format!(
        "disk {} at {} is in use, and data begins to move to it",
        report.disk, report.path
    ))
}

fn remove(context: &Context, disk: DiskId, yes: bool) -> Result<(), Failure> {
    let report = cluster::report(context)?;
    // One that does not exist is the daemon's to tell.
    let known = report.disks.iter().find(|known| known.disk == disk);
    let held = known.map_or(0, |known| known.partitions);
    if held > 0 && !yes {
        return Err(Failure::conflict(format!(
            "{} lie on disk {disk} and would not count any more; drain it first with `dog disk \
             drain {disk}`, or say --yes if it will not come back",
            counted(held, "copy of a partition", "copies of partitions")
        )));
    }
    context.tell(&AdminRequest::DiskRemove { disk })?;
    context.done(&format!("disk {disk} is no part of the cluster any more"))
}

fn list(context: &Context) -> Result<(), Failure> {
    let AdminReply::Disks(disks) = context.ask(&AdminRequest::DiskList)? else {
        return Err(Failure::mismatch());
    };
    let report = cluster::report(context)?;
    if context.json {
        return print::json(&merge(&disks, &report));
    }
    print::text(&format!("{}\n{}", tabulate_all(&report), tabulate(&disks)))?;
    for disk in &disks {
        if let Some(reason) = &disk.reason {
            context.note(&format!("warning: disk {}: {reason}", disk.path));
        }
        for damage in &disk.damages {
            context.note(&format!("damage on {}: {damage}", disk.path));
        }
    }
    Ok(())
}

/// Refuses to start what would not run: the rate 0 is how scrubbing is switched off.
fn check_scrub_rate(context: &Context, choice: &DiskChoice) -> Result<(), Failure> {
    let chosen = choice.disk.as_ref().map(|name| name.0);
    let AdminReply::Disks(disks) = context.ask(&AdminRequest::DiskList)? else {
        return Err(Failure::mismatch());
    };
    let mut chosen = disks.iter().filter(|disk| chosen.is_none_or(|id| id == disk.disk)).peekable();
    // A disk that does not exist is the daemon's to tell.
    if chosen.peek().is_some() && chosen.all(|disk| disk.scrub.rate_bytes_per_s == 0) {
        return Err(Failure::conflict(
            "scrubbing is off, its rate is 0: set a rate first, for example with `dog disk scrub \
             rate 64M`, then start it",
        ));
    }
    Ok(())
}

fn scrub(
    context: &Context,
    choice: &DiskChoice,
    action: ScrubAction,
    sentence: String,
) -> Result<(), Failure> {
    let disk = choice.disk.as_ref().map(|name| name.0);
    context.tell(&AdminRequest::DiskScrub { disk, action })?;
    context.done(&sentence)
}

/// First the disks of this node, each with all that is known of it; then those of the others.
fn merge(here: &[DiskReport], report: &ClusterReport) -> Vec<Value> {
    let value = |agreed: &ClusterDiskReport| serde_json::to_value(agreed).expect("always JSON");
    let of_others = |agreed: &&ClusterDiskReport| here.iter().all(|it| it.disk != agreed.disk);
    let own = here.iter().map(|disk| {
        let mut known = serde_json::to_value(disk).expect("always JSON");
        let agreed = report.disks.iter().find(|agreed| agreed.disk == disk.disk).map(value);
        if let (Value::Object(known), Some(Value::Object(agreed))) = (&mut known, agreed) {
            known.extend(agreed);
        }
        known
    });
    own.chain(report.disks.iter().filter(of_others).map(value)).collect()
}

/// The disks of all nodes as a table.
fn tabulate_all(report: &ClusterReport) -> String {
    let columns = [
        ("DISK", false),
        ("NODE", false),
        ("STATE", false),
        ("SIZE", true),
        ("PARTITIONS", true),
        ("COMING", true),
        ("SHARE", true),
    ];
    let rows = report.disks.iter().map(|disk| {
        let there = match disk.away_s {
            Some(away_s) => format!("away for {}", print::span(away_s)),
            None => "present".to_string(),
        };
        let standing = match disk.standing.as_str() {
            "in" => String::new(),
            other => format!(", {other}"),
        };
        vec![
            disk.disk.to_string(),
            disk.node_name.clone(),
            format!("{there}{standing}"),
            Size(disk.size_bytes).to_string(),
            disk.partitions.to_string(),
            disk.recovering.to_string(),
            format!("{:.1} %", f64::from(disk.share_permille) / 10.0),
        ]
    });
    print::table(&columns, rows.collect())
}

/// The disks of one node as a table.
pub fn tabulate(disks: &[DiskReport]) -> String {
    let columns = [
        ("DISK", false),
        ("STATE", false),
        ("CAPACITY", true),
        ("LIMIT", true),
        ("DATA", true),
        ("MAPS+LOG", true),
        ("FREED", true),
        ("TAKEN", true),
        ("AVAILABLE", true),
        ("DAMAGED", true),
        ("MENDED", true),
        ("SCRUB", false),
        ("PATH", false),
    ];
    let rows = disks.iter().map(|disk| {
        vec![
            disk.disk.to_string(),
            disk.state.clone(),
            Size(disk.capacity_bytes).to_string(),
            disk.limit_bytes.map_or("-".to_string(), |limit| Size(limit).to_string()),
            Size(disk.data_bytes).to_string(),
            Size(disk.metadata_bytes).to_string(),
            Size(disk.quarantined_bytes).to_string(),
            Size(disk.allocated_bytes).to_string(),
            Size(disk.available_bytes).to_string(),
            disk.damaged_blocks.to_string(),
            disk.damage_mended.to_string(),
            describe_scrub(disk),
            disk.path.clone(),
        ]
    });
    print::table(&columns, rows.collect())
}

fn describe_scrub(disk: &DiskReport) -> String {
    let scrub = &disk.scrub;
    match (scrub.running, scrub.rate_bytes_per_s) {
        (_, 0) => "off".to_string(),
        (true, rate) => format!("{:.0} % at {}/s", scrub.progress * 100.0, Size(rate)),
        (false, _) if scrub.passes == 0 => "never yet".to_string(),
        (false, _) if scrub.passes == 1 => "1 pass".to_string(),
        (false, _) => format!("{} passes", scrub.passes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dog::cluster::tests::report;

    #[test]
    fn disks_of_other_nodes_are_shown_with_what_is_known_of_them() {
        let table = tabulate_all(&report());
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3, "{table}");
        assert!(lines[1].contains("present  ") && lines[1].contains("50.0 %"), "{table}");
        assert!(lines[2].contains("n1    away for 7 s, draining"), "{table}");
        let merged = merge(&[], &report());
        assert_eq!(merged.len(), 2);
        assert_eq!(merged[1]["away_s"], 7);
        assert_eq!(merged[1]["standing"], "draining");
    }
}
