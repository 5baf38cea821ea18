//! `dog node replace`: another node for one that goes, or is lost already, in one step.
//!
//! Nothing is remembered of it but what the cluster itself knows: whoever is interrupted, or loses
//! the connection, says the same again and goes on from there.

use super::{
    Context, Failure, FailureKind,
    cluster::{self, node_words},
    interrupt::Interrupt,
};
use engine::admin::{AdminRequest, ClusterDiskReport, ClusterNodeReport, ClusterReport};
use proto::{DiskId, counted};
use std::{
    thread,
    time::{Duration, Instant},
};

/// How often it is looked how far it has come.
const LOOK: Duration = Duration::from_millis(500);
/// How often that is told.
const TOLD: Duration = Duration::from_secs(5);
/// How long the cluster may be without one that leads, or the daemon too busy, before it is given
/// up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is to be done next.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    /// Have what it holds go to others.
    Drain,
    /// So many of its copies are still to go, or to be left out.
    Await { copies: u64 },
    /// It holds nothing any more: somebody has to stop it, and end what is attached there.
    AwaitStop { attachments: u64 },
    /// One of its disks is to be taken out.
    RemoveDisk(DiskId),
    /// The node itself.
    RemoveNode,
    /// It is no node any more.
    Done,
}

/// Replaces one node by another.
pub fn run(context: &Context, old: &str, new: &str, is_lost: bool) -> Result<(), Failure> {
    let interrupt = Interrupt::listen()?;
    let report = cluster::report(context)?;
    vet(&report, old, new)?;
    if !is_lost {
        vet_room(&report, old)?;
    }
    let mut told: Option<(Instant, String)> = None;
    let mut failing: Option<Instant> = None;
    loop {
        if interrupt.requested() {
            return Err(Failure::interrupted(format!(
                "interrupted; what has begun goes on by itself: say the same again to go on \
                 looking after it, or `dog node undrain {old}` to keep the node"
            )));
        }
        let step = cluster::report(context).and_then(|report| {
            let step = next(&report, old, is_lost)?;
            carry_out(context, old, &step)?;
            Ok(step)
        });
        let step = match step {
            Ok(step) => step,
            // Nobody leads for a moment.
            Err(failure) if failure.kind == FailureKind::Failed => {
                let since = *failing.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    return Err(failure);
                }
                thread::sleep(LOOK);
                continue;
            }
            Err(failure) => return Err(failure),
        };
        failing = None;
        if step == Step::Done {
            break;
        }
        let words = words(&step, old);
        let is_due = match &told {
            Some((at, before)) => {
                *before != words && (at.elapsed() >= TOLD || matches!(step, Step::AwaitStop { .. }))
            }
            None => true,
        };
        if is_due {
            context.note(&words);
            told = Some((Instant::now(), words));
        }
        if matches!(step, Step::Await { .. } | Step::AwaitStop { .. }) {
            thread::sleep(LOOK);
        }
    }
    context.done(&format!("node {old} is no part of the cluster any more; {new} is in its place"))
}

/// The node that is called so.
fn find<'a>(report: &'a ClusterReport, name: &str) -> Option<&'a ClusterNodeReport> {
    let is_it = |node: &&ClusterNodeReport| node.name == name || node.node.to_string() == name;
    report.nodes.iter().find(is_it)
}

/// Whether a node can take the place of the other one.
fn vet(report: &ClusterReport, old: &str, new: &str) -> Result<(), Failure> {
    let unknown = |name: &str| {
        Failure::not_found(format!(
            "there is no node {name} in this cluster; `dog node list` shows those there are"
        ))
    };
    let gone = find(report, old).ok_or_else(|| unknown(old))?;
    let taker = find(report, new).ok_or_else(|| {
        let Failure { kind, sentence } = unknown(new);
        let sentence = format!("{sentence}, and a new one joins with `sheep --join TOKEN`");
        Failure { kind, sentence }
    })?;
    let trouble = if gone.node == taker.node {
        "is the one that is to be replaced; name another one"
    } else if !taker.up {
        "does not answer; start it first"
    } else if taker.draining {
        "is being drained; say `dog node undrain` of it first, or name another one"
    } else if taker.disks.is_empty() {
        "has no disks; name another one"
    } else {
        return Ok(());
    };
    Err(Failure::conflict(format!("node {} {trouble}", node_words(taker))))
}

/// Whether as many machines are left as there are copies now: else some would stay where they are,
/// and be waited for, for ever.
fn vet_room(report: &ClusterReport, old: &str) -> Result<(), Failure> {
    let Some(gone) = find(report, old) else { return Ok(()) };
    let holds = |node: &&ClusterNodeReport| {
        let is_in = |disk: &ClusterDiskReport| disk.node == node.node && disk.standing == "in";
        node.node != gone.node && !node.draining && report.disks.iter().any(is_in)
    };
    let left = report.nodes.iter().filter(holds).count();
    let most = report.copies.iter().map(|copies| usize::from(copies.possible)).max();
    match most {
        Some(most) if most > left => Err(Failure::conflict(format!(
            "there are {most} copies on machines of their own, and without node {old} {} for them; \
             let another machine join first, with `sheep --join TOKEN`",
            counted(left as u64, "machine is left", "machines are left")
        ))),
        _ => Ok(()),
    }
}

/// What is to be done next for a node to go. `is_lost`: it does not come back, says who asks.
fn next(report: &ClusterReport, old: &str, is_lost: bool) -> Result<Step, Failure> {
    let Some(node) = find(report, old) else { return Ok(Step::Done) };
    let disks = || report.disks.iter().filter(|disk| disk.node == node.node);
    let held = |disk: &ClusterDiskReport| disk.partitions + disk.recovering;
    let copies = disks().map(held).sum();
    let is_there = node.up && disks().all(|disk| disk.away_s.is_none() || disk.standing == "gone");
    let mut present = disks().filter(|disk| disk.standing != "gone");
    if is_there && copies > 0 {
        return Ok(if node.draining { Step::Await { copies } } else { Step::Drain });
    }
    if is_there {
        return Ok(Step::AwaitStop { attachments: node.attachments });
    }
    if let Some(disk) = present.find(|disk| held(disk) > 0)
        && !is_lost
    {
        return Err(Failure::conflict(format!(
            "{} on node {old} cannot be reached ({} of disk {}); start it, so that they can be \
             moved, or say --lost if it will not come back: then they are made anew from others",
            counted(copies, "copy of a partition", "copies of partitions"),
            held(disk),
            disk.disk
        )));
    }
    let present = disks().find(|disk| disk.standing != "gone");
    Ok(match (present, copies) {
        (Some(disk), _) => Step::RemoveDisk(disk.disk),
        (None, 1..) => Step::Await { copies },
        (None, 0) if node.up => Step::AwaitStop { attachments: node.attachments },
        (None, 0) => Step::RemoveNode,
    })
}

fn carry_out(context: &Context, old: &str, step: &Step) -> Result<(), Failure> {
    match step {
        Step::Drain => {
            context.tell(&AdminRequest::NodeDrain { node: old.to_string(), wanted: true })
        }
        Step::RemoveDisk(disk) => context.tell(&AdminRequest::DiskRemove { disk: *disk }),
        Step::RemoveNode => context.tell(&AdminRequest::NodeRemove { node: old.to_string() }),
        Step::Await { .. } | Step::AwaitStop { .. } | Step::Done => Ok(()),
    }
}

/// What is going on, for people.
fn words(step: &Step, old: &str) -> String {
    match step {
        Step::Drain => format!("what the disks of node {old} hold goes to other nodes"),
        Step::Await { copies } => {
            let copies = counted(*copies, "copy of a partition", "copies of partitions");
            format!("{copies} still to go from node {old}")
        }
        Step::AwaitStop { attachments: 0 } => {
            format!("node {old} holds nothing any more: stop sheep there")
        }
        Step::AwaitStop { attachments } => format!(
            "node {old} holds nothing any more, but {} there: move what uses them, then stop sheep \
             there",
            counted(*attachments, "volume is attached", "volumes are attached")
        ),
        Step::RemoveDisk(disk) => format!("disk {disk} is taken out"),
        Step::RemoveNode | Step::Done => format!("node {old} is taken out"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dog::cluster::tests::report;

    /// A cluster of the two nodes of the report, both there and nothing being done.
    fn two() -> ClusterReport {
        let mut report = report();
        for node in &mut report.nodes {
            (node.up, node.draining, node.attachments) = (true, false, 0);
        }
        for disk in &mut report.disks {
            disk.standing = "in".to_string();
            (disk.away_s, disk.partitions, disk.recovering) = (None, 7, 0);
        }
        report
    }

    fn stop(report: &mut ClusterReport) {
        report.nodes[1].up = false;
        for disk in report.disks.iter_mut().filter(|disk| disk.node == report.nodes[1].node) {
            disk.away_s = Some(3);
        }
    }

    fn of_old(report: &mut ClusterReport) -> &mut ClusterDiskReport {
        let old = report.nodes[1].node;
        report.disks.iter_mut().find(|disk| disk.node == old).expect("it has one")
    }

    #[test]
    fn a_node_that_is_there_is_emptied_then_stopped_then_taken_out() {
        let mut report = two();
        assert_eq!(next(&report, "n1", false), Ok(Step::Drain));
        report.nodes[1].draining = true;
        of_old(&mut report).standing = "draining".to_string();
        assert_eq!(next(&report, "n1", false), Ok(Step::Await { copies: 7 }));
        of_old(&mut report).partitions = 0;
        report.nodes[1].attachments = 1;
        assert_eq!(next(&report, "n1", false), Ok(Step::AwaitStop { attachments: 1 }));
        report.nodes[1].attachments = 0;
        stop(&mut report);
        // Nothing is lost with it.
        let disk = of_old(&mut report).disk;
        assert_eq!(next(&report, "n1", false), Ok(Step::RemoveDisk(disk)));
        report.disks.retain(|known| known.disk != disk);
        assert_eq!(next(&report, "n1", false), Ok(Step::RemoveNode));
        report.nodes.truncate(1);
        assert_eq!(next(&report, "n1", false), Ok(Step::Done));
    }

    #[test]
    fn a_node_that_is_lost_is_taken_out_at_once_and_only_if_that_is_said() {
        let mut report = two();
        stop(&mut report);
        let refused = next(&report, "n1", false).expect_err("it may come back");
        assert!(refused.sentence.contains("7 copies") && refused.sentence.contains("--lost"));
        let disk = of_old(&mut report).disk;
        assert_eq!(next(&report, "n1", true), Ok(Step::RemoveDisk(disk)));
        of_old(&mut report).standing = "gone".to_string();
        assert_eq!(next(&report, "n1", true), Ok(Step::Await { copies: 7 }));
        report.disks.retain(|known| known.disk != disk);
        assert_eq!(next(&report, "n1", true), Ok(Step::RemoveNode));
    }

    /// It would have waited for ever.
    #[test]
    fn with_too_few_machines_left_nothing_is_begun() {
        let mut report = two();
        let copies = &mut report.copies;
        copies.truncate(1);
        copies[0].possible = 1;
        assert_eq!(vet_room(&report, "n1"), Ok(()));
        report.copies[0].possible = 2;
        let failure = vet_room(&report, "n1").expect_err("there is one machine for two copies");
        assert!(failure.sentence.contains("1 machine is left"), "{}", failure.sentence);
    }

    #[test]
    fn only_a_node_that_can_take_its_place_is_let() {
        let check = |change: &dyn Fn(&mut ClusterReport), new: &str, part: &str| {
            let mut report = two();
            change(&mut report);
            let failure = vet(&report, "n1", new).expect_err(part);
            assert!(failure.sentence.contains(part), "{}", failure.sentence);
        };
        assert_eq!(vet(&two(), "n1", "n0"), Ok(()));
        assert!(vet(&two(), "nobody", "n0").is_err());
        check(&|_| (), "nobody", "sheep --join TOKEN");
        check(&|_| (), "n1", "is the one that is to be replaced");
        check(&|report| report.nodes[0].up = false, "n0", "does not answer");
        check(&|report| report.nodes[0].draining = true, "n0", "being drained");
        check(&|report| report.nodes[0].disks.clear(), "n0", "has no disks");
    }
}
