//! `dog disk`: the node's disks and their scrubbing.

use super::{
    Context, Failure,
    arguments::{DiskChoice, DiskVerb, ScrubVerb},
    print,
};
use crate::size::Size;
use engine::admin::{AdminReply, AdminRequest, DiskReport, ScrubAction};

/// Runs one verb.
pub fn run(context: &Context, verb: DiskVerb) -> Result<(), Failure> {
    match verb {
        DiskVerb::List => list(context),
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
    }
}

fn list(context: &Context) -> Result<(), Failure> {
    let AdminReply::Disks(disks) = context.ask(&AdminRequest::DiskList)? else {
        return Err(Failure::mismatch());
    };
    if context.json {
        return print::json(&disks);
    }
    print::text(&tabulate(&disks))?;
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

/// Disks as a table.
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
