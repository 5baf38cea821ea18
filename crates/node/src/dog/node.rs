//! `dog node`: the nodes of the cluster.

use super::{
    Context, Failure,
    arguments::NodeVerb,
    cluster::{self, node_words},
    print, replace, status,
};
use engine::admin::{AdminRequest, ClusterNodeReport, ClusterReport};
use proto::counted;

/// Runs one verb.
pub fn run(context: &Context, verb: NodeVerb) -> Result<(), Failure> {
    match verb {
        NodeVerb::Info => status::node(context),
        NodeVerb::List => {
            let report = cluster::report(context)?;
            if context.json {
                return print::json(&report.nodes);
            }
            print::text(&tabulate(&report))?;
            if let Some(waiting) = &report.agreement.waiting {
                context.note(&format!("warning: {waiting}"));
            }
            Ok(())
        }
        NodeVerb::Drain { node } => {
            context.tell(&AdminRequest::NodeDrain { node: node.0.clone(), wanted: true })?;
            context.done(&format!(
                "what the disks of node {} hold goes to other nodes; `dog disk list` shows how \
                 much is left",
                node.0
            ))
        }
        NodeVerb::Undrain { node } => {
            context.tell(&AdminRequest::NodeDrain { node: node.0.clone(), wanted: false })?;
            context.done(&format!("the disks of node {} are used again", node.0))
        }
        NodeVerb::Replace { old, new, lost } => replace::run(context, &old.0, &new.0, lost),
        NodeVerb::Remove { node, yes } => {
            let report = cluster::report(context)?;
            vet_lost(&report, &node.0, yes)?;
            context.tell(&AdminRequest::NodeRemove { node: node.0.clone() })?;
            context.done(&format!("node {} is no part of the cluster any more", node.0))
        }
    }
}

/// Whether a node may go that was given up and has copies; everything else the daemon judges.
fn vet_lost(report: &ClusterReport, name: &str, yes: bool) -> Result<(), Failure> {
    let is_it = |node: &&ClusterNodeReport| node.name == name || node.node.to_string() == name;
    let Some(node) = report.nodes.iter().find(is_it).filter(|node| node.lost && !yes) else {
        return Ok(());
    };
    let disks = report.disks.iter().filter(|disk| disk.node == node.node);
    match disks.map(|disk| disk.partitions).sum() {
        0 => Ok(()),
        held => Err(Failure::conflict(format!(
            "{} lie on node {name}, which was given up, and would not count any more: what was \
             acknowledged there and on no node that is left is lost then, so see first that all \
             others are there; say --yes if it will never come back",
            counted(held, "copy of a partition", "copies of partitions")
        ))),
    }
}

/// Nodes as a table.
fn tabulate(report: &ClusterReport) -> String {
    let columns = [
        ("NODE", false),
        ("ID", false),
        ("STATE", false),
        ("VOTES", false),
        ("DISKS", true),
        ("ATTACHED", true),
        ("ZONE", false),
        ("ADDRESSES", false),
    ];
    let dash = |text: String| if text.is_empty() { "-".to_string() } else { text };
    let rows = report.nodes.iter().map(|node| {
        vec![
            node_words(node),
            node.node.to_string(),
            state(node),
            match (node.leads, node.votes) {
                (true, _) => "leads".to_string(),
                (false, true) => "yes".to_string(),
                (false, false) => "no".to_string(),
            },
            match node.disks.len() {
                0 => "witness".to_string(),
                disks => disks.to_string(),
            },
            node.attachments.to_string(),
            dash(node.zone.clone()),
            dash(node.addresses.join(", ")),
        ]
    });
    print::table(&columns, rows.collect())
}

/// Whether it is there, and since when.
fn state(node: &ClusterNodeReport) -> String {
    if node.lost {
        return "given up".to_string();
    }
    let draining = if node.draining { ", draining" } else { "" };
    let here = if node.up { "up for" } else { "away for" };
    format!("{here} {}{draining}", print::span(node.since_s))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dog::cluster::tests::report;

    #[test]
    fn nodes_are_shown_with_what_they_do() {
        let table = tabulate(&report());
        let lines: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 3, "{table}");
        assert_eq!(lines[1][0], "n0");
        assert!(lines[1].join(" ").contains("up for 1 min 40 s leads 1 2"), "{table}");
        assert!(lines[2].join(" ").contains("away for 7 s, draining yes 1 0"), "{table}");
        let mut witness = report();
        witness.nodes[1].disks.clear();
        let words: Vec<String> = tabulate(&witness).split_whitespace().map(str::to_owned).collect();
        assert!(words.join(" ").contains("yes witness 0"), "{words:?}");
    }
}
