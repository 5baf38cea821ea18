//! `dog volume explain` and `dog volume locate`: where the copies of a volume are, and how.

use super::{Context, Failure, print};
use crate::size::Size;
use engine::admin::{
    AdminReply, AdminRequest, ExplainReport, LocateReport, LocatedReport, PartMemberReport,
};
use proto::counted;
use std::collections::BTreeMap;

/// Disks shown of a volume; `--json` shows all.
const DISKS_SHOWN_MAX: usize = 20;

/// `dog volume explain`.
pub fn explain(context: &Context, name: String) -> Result<(), Failure> {
    let AdminReply::Explained(report) = context.ask(&AdminRequest::VolumeExplain { name })? else {
        return Err(Failure::mismatch());
    };
    if context.json { print::json(&report) } else { print::text(&describe(&report)) }
}

/// `dog volume locate`.
pub fn locate(context: &Context, name: String, index: Option<u64>) -> Result<(), Failure> {
    let request = AdminRequest::VolumeLocate { name, index };
    let AdminReply::Located(report) = context.ask(&request)? else {
        return Err(Failure::mismatch());
    };
    if context.json { print::json(&report) } else { print::text(&tabulate(&report)) }
}

fn describe(report: &ExplainReport) -> String {
    let copies = format!(
        "{} asked for, {} possible, {} enough to go on",
        report.copies, report.possible, report.min_copies
    );
    let mut page = print::fields(&[
        ("Name", report.name.clone()),
        ("Size", print::exact(report.bytes)),
        ("Copies", copies),
        ("State", if report.whole { "whole" } else { "not whole" }.to_string()),
    ]);
    page += "\n";
    page += &disks_table(report);
    for sentence in &report.summary {
        page += &format!("\n{sentence}");
    }
    if report.estimated {
        page += "\nit is so large that sizes are about right, not exact";
    }
    page + "\n"
}

/// What is on each disk, in each state: what is not whole first.
fn disks_table(report: &ExplainReport) -> String {
    let mut sums: BTreeMap<(bool, &PartMemberReport), u64> = BTreeMap::new();
    for group in &report.groups {
        for member in &group.members {
            *sums.entry((member.state == "whole", member)).or_default() += group.bytes;
        }
    }
    let columns = [("NODE", false), ("DISK", false), ("STATE", false), ("HOLDS", true)];
    let rows = sums.iter().take(DISKS_SHOWN_MAX).map(|((_, member), bytes)| {
        vec![
            member.node_name.clone(),
            member.disk.to_string(),
            state(member),
            Size(*bytes).to_string(),
        ]
    });
    let mut table = print::table(&columns, rows.collect());
    if sums.len() > DISKS_SHOWN_MAX {
        let more = (sums.len() - DISKS_SHOWN_MAX) as u64;
        table += &format!("and {}; --json shows all\n", counted(more, "more line", "more lines"));
    }
    table
}

fn state(member: &PartMemberReport) -> String {
    match member.since_s {
        Some(since_s) => format!("{} for {}", member.state, print::span(since_s)),
        None => member.state.clone(),
    }
}

fn tabulate(report: &LocateReport) -> String {
    let columns = [
        ("PART", false),
        ("NODE", false),
        ("DISK", false),
        ("STATE", false),
        ("OBJECTS", true),
        ("SIZE", true),
    ];
    let row = |located: &LocatedReport| {
        vec![
            located.part.clone(),
            located.member.node_name.clone(),
            located.member.disk.to_string(),
            state(&located.member),
            located.objects.to_string(),
            Size(located.bytes).to_string(),
        ]
    };
    let mut table = print::table(&columns, report.located.iter().map(row).collect());
    if report.estimated {
        table += "it is so large that objects and sizes are about right, not exact\n";
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::admin::PartGroupReport;
    use proto::{DiskId, NodeId, PartitionId};

    fn member(disk: u128, state: &str, since_s: Option<u64>) -> PartMemberReport {
        PartMemberReport {
            disk: DiskId(disk),
            node: NodeId(disk),
            node_name: format!("n{disk}"),
            state: state.to_string(),
            since_s,
        }
    }

    #[test]
    fn a_volume_of_thousands_of_parts_is_explained_in_few_lines() {
        let group = |number: u32| PartGroupReport {
            part: "v".to_string(),
            objects: 1,
            bytes: 4 << 20,
            partitions: vec![PartitionId(number)],
            quorum: 2,
            writable: true,
            members: vec![
                member(u128::from(number % 30), "whole", None),
                member(40, "away", Some(125)),
            ],
            doing: None,
        };
        let report = ExplainReport {
            name: "v".to_string(),
            bytes: 4000 << 22,
            copies: 3,
            min_copies: 2,
            possible: 2,
            whole: false,
            summary: vec!["losing node n3 now would lose 1.0 GiB".to_string()],
            groups: (0..4000).map(group).collect(),
            losses: Vec::new(),
            whole_in_s: None,
            estimated: false,
        };
        let page = describe(&report);
        assert!(page.lines().count() < 32, "{page}");
        for part in [
            "Copies: 3 asked for, 2 possible, 2 enough to go on\n",
            "State:  not whole\n",
            "n40   00000000000000000000000000000028  away for 2 min 5 s   15.6 GiB\n",
            "and 11 more lines; --json shows all\n",
            "\nlosing node n3 now would lose 1.0 GiB\n",
        ] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
    }

    #[test]
    fn an_object_is_shown_with_its_disks() {
        let located = LocatedReport {
            part: "golden@v1".to_string(),
            member: member(7, "building", Some(3)),
            objects: 1,
            bytes: 4096,
        };
        let report = LocateReport {
            name: "v".to_string(),
            index: Some(0),
            objects: 1,
            located: vec![located],
            estimated: false,
        };
        let table = tabulate(&report);
        let row = "golden@v1  n7    00000000000000000000000000000007  building for 3 s        1  \
                   4.0 KiB";
        assert_eq!(table.lines().nth(1), Some(row), "{table}");
        let json = serde_json::to_value(&report).expect("a report is JSON");
        assert_eq!(json["located"][0]["state"], "building");
    }
}
