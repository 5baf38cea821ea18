//! `dog trash`, and what puts volumes there: `dog volume delete`.

use super::{Context, Failure, arguments::TrashVerb, print};
use crate::size::Size;
use engine::admin::{AdminReply, AdminRequest, NodeReport, TrashChoice, TrashReport};
use proto::calendar;

/// How a volume is to be deleted.
pub struct Deletion {
    /// Whether it was said that what cannot be undone is meant.
    pub yes: bool,
    /// Whether its snapshots go too.
    pub with_snapshots: bool,
    /// Whether it is to go for good.
    pub now: bool,
    /// How long it is to be kept in the trash, in seconds.
    pub keep_s: Option<u64>,
}

/// Runs one verb.
pub fn run(context: &Context, verb: TrashVerb) -> Result<(), Failure> {
    match verb {
        TrashVerb::List => {
            let trash = in_trash(context)?;
            if context.json { print::json(&trash) } else { print::text(&tabulate(&trash)) }
        }
        TrashVerb::Undelete { which, name } => {
            let request = AdminRequest::TrashUndelete { which, new_name: name };
            let volume = context.ask_for_volume(&request)?;
            let sentence = format!("volume {} is back, with all it had", volume.name);
            context.show_changed(&volume, &sentence)
        }
        TrashVerb::Purge { which, all: _, yes } => purge(context, which, yes),
    }
}

fn in_trash(context: &Context) -> Result<Vec<TrashReport>, Failure> {
    match context.ask(&AdminRequest::TrashList)? {
        AdminReply::Trash(trash) => Ok(trash),
        _ => Err(Failure::mismatch()),
    }
}

/// Purges one volume, or without a name all.
fn purge(context: &Context, which: Option<String>, yes: bool) -> Result<(), Failure> {
    if !yes {
        let mut trash = in_trash(context)?;
        let what = match &which {
            Some(which) => {
                trash.retain(|volume| volume.name == *which || volume.volume.to_string() == *which);
                if trash.is_empty() {
                    return Err(Failure::not_found(format!(
                        "no volume {which} is in the trash; `dog trash list` shows what is"
                    )));
                }
                format!("volume {which}")
            }
            None => format!("the trash with its {}", volumes(trash.len() as u64)),
        };
        let bytes = trash.iter().map(|volume| volume.used_bytes).sum();
        return Err(Failure::conflict(format!(
            "purging {what} destroys {} of data for good; say --yes if you mean it",
            Size(bytes)
        )));
    }
    let what = which.clone().map_or(TrashChoice::All, TrashChoice::One);
    context.tell(&AdminRequest::TrashPurge { what })?;
    let what = which.map_or("the trash is empty".to_string(), |which| {
        format!("volume {which} is gone from the trash for good")
    });
    context.done(&format!("{what}; the space comes back in the background"))
}

/// A number of volumes, in words.
pub fn volumes(count: u64) -> String {
    match count {
        1 => "1 volume".to_string(),
        _ => format!("{count} volumes"),
    }
}

/// Deletes a volume, into the trash unless told otherwise.
pub fn delete(context: &Context, name: String, deletion: &Deletion) -> Result<(), Failure> {
    let Deletion { yes, with_snapshots, now, keep_s } = *deletion;
    let (keep_s, is_off) = match (now, keep_s) {
        (true, _) => (0, false),
        (false, Some(keep_s)) => (keep_s, false),
        (false, None) => {
            let AdminReply::Node(NodeReport { trash_expiry_s, .. }) =
                context.ask(&AdminRequest::NodeInfo)?
            else {
                return Err(Failure::mismatch());
            };
            (trash_expiry_s, trash_expiry_s == 0)
        }
    };
    if keep_s == 0 && !yes {
        let volume = context.volume(&name)?;
        let (with, say) = match (volume.snapshots, with_snapshots) {
            (0, _) => ("", "--yes"),
            (_, true) => (" and its snapshots", "--yes"),
            (_, false) => (" and its snapshots", "--with-snapshots --yes"),
        };
        let why = if is_off { "this node keeps no trash: " } else { "" };
        return Err(Failure::conflict(format!(
            "{why}deleting volume {name}{with} destroys {} of data for good; say {say} if you \
             mean it",
            Size(volume.used_bytes)
        )));
    }
    let request =
        AdminRequest::VolumeDelete { name: name.clone(), with_snapshots, keep_s: Some(keep_s) };
    match context.ask(&request)? {
        AdminReply::Done => {
            context.done(&format!("volume {name} deleted; its space comes back in the background"))
        }
        AdminReply::Trashed(report) if context.json => print::json(&report),
        AdminReply::Trashed(report) => {
            let trash = in_trash(context)?;
            let is_only_one = trash.iter().filter(|other| other.name == report.name).count() < 2;
            let which = if is_only_one { report.name } else { report.volume.to_string() };
            print::text(&format!(
                "volume {name} is in the trash until {}; `dog trash undelete {which}` brings it \
                 back\n",
                calendar::date(report.expires_unix_s)
            ))
        }
        _ => Err(Failure::mismatch()),
    }
}

fn tabulate(trash: &[TrashReport]) -> String {
    let columns = [
        ("ID", true),
        ("NAME", false),
        ("SIZE", true),
        ("USED", true),
        ("SNAPSHOTS", true),
        ("DELETED", false),
        ("KEPT UNTIL", false),
    ];
    let rows = trash.iter().map(|volume| {
        vec![
            volume.volume.to_string(),
            volume.name.clone(),
            Size(volume.bytes).to_string(),
            print::at_least(volume.used_bytes, &volume.unknown_nodes),
            volume.snapshots.to_string(),
            calendar::date(volume.deleted_unix_s),
            calendar::date(volume.expires_unix_s),
        ]
    });
    print::table(&columns, rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::VolumeId;

    #[test]
    fn what_is_in_the_trash_is_tabulated() {
        let trash = [TrashReport {
            volume: VolumeId(17),
            name: "web".to_string(),
            bytes: 20 << 30,
            used_bytes: 3 << 20,
            snapshots: 2,
            deleted_unix_s: 1_700_000_000,
            expires_unix_s: 1_700_086_400,
            unknown_nodes: Vec::new(),
        }];
        let expected = "\
ID  NAME      SIZE     USED  SNAPSHOTS  DELETED                  KEPT UNTIL
17  web   20.0 GiB  3.0 MiB          2  2023-11-14 22:13:20 UTC  2023-11-15 22:13:20 UTC
";
        assert_eq!(tabulate(&trash), expected);
    }
}
