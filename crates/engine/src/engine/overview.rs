//! The cluster in words, for people: whether anything is at risk, what is done about it, and what
//! is waited for. It is what the map shows and what this node sees of the others; what attempts of
//! other nodes have done is known to those alone.

use super::{Engine, Phase};
use crate::admin::{
    AttemptProgressReport, AttemptReport, ClusterDiskReport, ClusterNodeReport, ClusterReport,
    CopiesReport,
};
use cluster::steward::{self, Sight, Situation};
use cluster::{Attachment, Configuration, DiskState, NodeState, wanted_voters};
use proto::{DiskId, Duration, NodeId, PartitionId, Time, counted, limits};
use replica::{AttemptProgress, AttemptStage};
use std::collections::{BTreeMap, BTreeSet};

/// Disks and nodes named in one sentence.
const NAMED_MAX: usize = 5;

/// What the partitions say of one disk.
#[derive(Clone, Copy, Default)]
struct Load {
    current: u64,
    recovering: u64,
}

/// All tables, looked through once.
#[derive(Default)]
struct Survey {
    copies: Vec<CopiesReport>,
    loads: BTreeMap<DiskId, Load>,
    /// Disks that are away and without which partitions wait.
    awaited: BTreeSet<DiskId>,
}

impl Engine {
    /// The cluster as this node knows it.
    pub(super) fn cluster_report(&self, now: Time) -> ClusterReport {
        let sight = self.sight(now);
        // Also those that others see: this node cannot say how they are.
        let away = &self.disks_away(now);
        let survey = self.survey_copies(away);
        let agreement = self.agreement_report();
        let nodes = self.node_reports(now);
        let disks = self.disk_reports(now, away, &survey.loads);
        let attempts = self.attempt_reports();
        let (missing_copies, whole_in) = self.outlook(now);
        let mut report = ClusterReport {
            healthy: true,
            warnings: Vec::new(),
            notes: Vec::new(),
            doing: Vec::new(),
            missing_copies,
            whole_in_s: whole_in.map(|span| span.as_secs()),
            cluster: self.settings.cluster,
            epoch: self.map.epoch().0,
            asked: self.settings.node,
            agreement,
            nodes,
            disks,
            copies: survey.copies,
            attempts,
        };
        report.warnings = self.cluster_warnings(&report, &survey.awaited);
        report.notes = cluster_notes(&report);
        let (warning, note) = voters_words(&report, self.votes_in(now));
        report.warnings.extend(warning);
        report.notes.extend(note);
        report.doing = self.doing_words(&sight, &report);
        report.healthy = report.warnings.is_empty();
        report
    }

    fn survey_copies(&self, away: &BTreeMap<DiskId, Time>) -> Survey {
        let mut survey = Survey::default();
        let has_disks = self.map.disks().len() > 0;
        for copies in self.map.tables().filter(|_| has_disks) {
            let possible = self.map.sites(copies).len().clamp(1, usize::from(copies)) as u8;
            let mut sum = CopiesReport {
                copies,
                possible,
                partitions: 0,
                fewer: 0,
                single: 0,
                doubled: 0,
                waiting: 0,
            };
            for partition in (0..1u32 << self.map.partition_bits()).map(PartitionId) {
                let held = self.map.configuration(copies, partition);
                self.survey_partition(held, away, &mut sum, &mut survey);
            }
            survey.copies.push(sum);
        }
        survey
    }

    fn survey_partition(
        &self,
        held: &Configuration,
        away: &BTreeMap<DiskId, Time>,
        sum: &mut CopiesReport,
        survey: &mut Survey,
    ) {
        let is_there = |member: &&cluster::Member| {
            self.map.is_present(**member) && !away.contains_key(&member.disk)
        };
        let present = held.current.iter().filter(is_there).count();
        for member in &held.current {
            survey.loads.entry(member.disk).or_default().current += 1;
        }
        for member in &held.recovering {
            survey.loads.entry(member.disk).or_default().recovering += 1;
        }
        sum.partitions += 1;
        let node = |member: &cluster::Member| self.map.disk(member.disk).map(|disk| disk.node);
        let nodes: BTreeSet<Option<NodeId>> = held.current.iter().map(node).collect();
        sum.doubled += u64::from(nodes.len() < held.current.len());
        if present < usize::from(sum.possible) {
            sum.fewer += 1;
            sum.single += u64::from(present == 1);
        }
        if present < held.quorum() || held.may_be_refused {
            sum.waiting += 1;
            let absent = held.current.iter().filter(|member| !is_there(member));
            survey.awaited.extend(absent.map(|member| member.disk));
        }
    }

    /// What is being done about the members of partitions, and until when.
    fn doing_words(&self, sight: &Sight, report: &ClusterReport) -> Vec<String> {
        let mut doing = Vec::new();
        for table in &report.copies {
            let found = steward::situations(&self.map, sight, &self.pace(), table.copies);
            let words = found.into_iter().filter_map(|(situation, count)| {
                let what = counted(count, "partition", "partitions");
                let what = format!("{what} of what is kept in {} copies", table.copies);
                situation_words(situation, &what, self.settings.rebuild_after)
            });
            doing.extend(words);
        }
        if report.missing_copies > 0 {
            let copies = counted(report.missing_copies, "copy", "copies");
            doing.push(format!(
                "{copies} of partitions are still to be made: {}",
                outlook_words(report.whole_in_s)
            ));
        }
        doing
    }

    /// How long it takes at most until all nodes may vote, if this one leads and knows.
    fn votes_in(&self, now: Time) -> Option<u64> {
        let left = self.voter.as_ref()?.ready_in(now)?;
        Some(left.as_secs() + 1)
    }

    fn node_reports(&self, now: Time) -> Vec<ClusterNodeReport> {
        let agreement = self.agreement_report();
        let peers = self.peer_reports(now);
        let mut attachments: BTreeMap<NodeId, u64> = BTreeMap::new();
        for held in self.map.volumes().flat_map(all_attachments) {
            *attachments.entry(held.node).or_default() += 1;
        }
        let report = |node: &cluster::Node| {
            let peer = peers.iter().find(|peer| peer.node == node.id);
            let is_here = node.id == self.settings.node;
            let running_s = now.since(self.started).as_secs();
            ClusterNodeReport {
                node: node.id,
                name: node.name.clone(),
                addresses: self.map.addresses_of(node.id).to_vec(),
                zone: node.zone.clone(),
                draining: node.state == NodeState::Draining,
                lost: node.state == NodeState::Lost,
                up: is_here || peer.is_some_and(|peer| peer.up),
                since_s: match peer {
                    _ if is_here => running_s,
                    Some(peer) => peer.since_s,
                    None => self.away_since(node.id).map_or(0, |at| now.since(at).as_secs()),
                },
                reason: peer.filter(|peer| !peer.up).and_then(|peer| peer.reason.clone()),
                votes: agreement.voters.contains(&node.id),
                leads: agreement.leader == Some(node.id),
                disks: self.map.disks_of(node.id).map(|disk| disk.id).collect(),
                attachments: attachments.get(&node.id).copied().unwrap_or(0),
            }
        };
        self.map.nodes().map(report).collect()
    }

    fn disk_reports(
        &self,
        now: Time,
        away: &BTreeMap<DiskId, Time>,
        loads: &BTreeMap<DiskId, Load>,
    ) -> Vec<ClusterDiskReport> {
        let all: u64 = loads.values().map(|load| load.current).sum();
        let report = |disk: &cluster::Disk| {
            let load = loads.get(&disk.id).copied().unwrap_or_default();
            let node = self.map.node(disk.node);
            let is_draining = node.is_some_and(|node| node.state == NodeState::Draining);
            let standing = match disk.state {
                DiskState::Gone => "gone",
                DiskState::Draining => "draining",
                DiskState::In if is_draining => "draining",
                DiskState::In => "in",
            };
            ClusterDiskReport {
                disk: disk.id,
                node: disk.node,
                node_name: self.node_words(disk.node),
                standing: standing.to_string(),
                away_s: away.get(&disk.id).map(|since| now.since(*since).as_secs()),
                size_bytes: disk.bytes,
                partitions: load.current,
                recovering: load.recovering,
                share_permille: (load.current * 1000).checked_div(all).unwrap_or(0) as u32,
            }
        };
        self.map.disks().map(report).collect()
    }

    fn attempt_reports(&self) -> Vec<AttemptReport> {
        let report = |attempt: &cluster::Attempt| AttemptReport {
            number: attempt.number,
            owner: attempt.owner,
            owner_name: self.node_words(attempt.owner),
            copies: attempt.copies,
            partitions: attempt.wanted.len() as u64,
            disks: attempt.disks().into_iter().collect(),
            progress: self.attempt_progress(attempt.number).map(progress_report),
        };
        self.map.attempts().map(report).collect()
    }

    fn cluster_warnings(&self, report: &ClusterReport, awaited: &BTreeSet<DiskId>) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.phase != Phase::Serving {
            warnings.push(self.not_serving());
        } else {
            warnings.extend(report.agreement.waiting.clone());
        }
        warnings.extend(self.era_warnings(report));
        for node in report.nodes.iter().filter(|node| !node.up && !node.lost) {
            warnings.push(away_words(node, &self.node_words(node.node), &report.disks));
        }
        let is_up = |id: NodeId| report.nodes.iter().any(|node| node.node == id && node.up);
        for disk in report.disks.iter().filter(|disk| disk.standing != "gone") {
            let Some(away_s) = disk.away_s.filter(|_| is_up(disk.node)) else { continue };
            warnings.push(format!(
                "disk {} of node {} has not been open for {}; `dog status` on that node says why",
                disk.disk,
                disk.node_name,
                span_words(away_s)
            ));
        }
        let waiting: u64 = report.copies.iter().map(|copies| copies.waiting).sum();
        if waiting > 0 {
            let disks: Vec<&ClusterDiskReport> =
                report.disks.iter().filter(|disk| awaited.contains(&disk.disk)).collect();
            warnings.push(waiting_words(waiting, &disks));
        }
        for copies in report.copies.iter().filter(|copies| copies.fewer > 0) {
            warnings.push(fewer_words(copies, report, self.settings.rebuild_after.as_secs()));
        }
        warnings
    }
}

/// The attachments of a volume and of its snapshots.
pub(super) fn all_attachments(volume: &cluster::Volume) -> impl Iterator<Item = &Attachment> {
    let readers = volume.snapshots.iter().flat_map(|snapshot| &snapshot.readers);
    volume.attachments.iter().chain(readers)
}

/// A node that is away, with what it takes with it.
fn away_words(node: &ClusterNodeReport, name: &str, disks: &[ClusterDiskReport]) -> String {
    let held: u64 =
        disks.iter().filter(|disk| disk.node == node.node).map(|disk| disk.partitions).sum();
    let why = node.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    let attached = match node.attachments {
        0 => String::new(),
        1 => "; it has 1 volume attached, which `dog volume detach` ends if it does not come back"
            .to_string(),
        count => format!(
            "; it has {count} volumes attached, which `dog volume detach` ends if it does not come \
             back"
        ),
    };
    format!(
        "node {name} has been away for {}{why}, and with it {}; see that sheep runs there and that \
         the network lets it through{attached}",
        span_words(node.since_s),
        counted(held, "copy of a partition", "copies of partitions")
    )
}

/// What waits, and for what.
fn waiting_words(count: u64, disks: &[&ClusterDiskReport]) -> String {
    let what = format!(
        "{} cannot be written: what lies there waits",
        counted(count, "partition", "partitions")
    );
    if disks.is_empty() {
        return format!(
            "{what} for its members to be agreed anew, which happens by itself once enough of them \
             can be reached"
        );
    }
    let name = |disk: &&&ClusterDiskReport| match disk.away_s {
        Some(away_s) => format!(
            "disk {} of node {} (away for {})",
            disk.disk,
            disk.node_name,
            span_words(away_s)
        ),
        None => format!("disk {} of node {}", disk.disk, disk.node_name),
    };
    let mut named: Vec<String> = disks.iter().take(NAMED_MAX).map(|disk| name(&disk)).collect();
    if disks.len() > NAMED_MAX {
        named.push(format!("{} more disks", disks.len() - NAMED_MAX));
    }
    format!("{what} for {}; bring enough of them back", named.join(", "))
}

/// What has fewer copies than it could have, and what follows.
fn fewer_words(copies: &CopiesReport, report: &ClusterReport, rebuild_after_s: u64) -> String {
    let changing: u64 = report
        .attempts
        .iter()
        .filter(|attempt| attempt.copies == copies.copies)
        .map(|attempt| attempt.partitions)
        .sum();
    let what_follows = match changing {
        0 if copies.copies == 1 => "there is no other copy to make it anew from".to_string(),
        0 if report.disks.iter().any(|disk| disk.away_s.is_some()) => format!(
            "what is away is waited for, and after {} its copies are made anew on other disks, \
             where there are such",
            span_words(rebuild_after_s)
        ),
        0 => "copies are made by themselves, as disks have room for them".to_string(),
        1 => "1 partition is being changed just now".to_string(),
        _ => format!("{changing} partitions are being changed just now"),
    };
    let single = match copies.single {
        0 => String::new(),
        1 => ", 1 of them a single one".to_string(),
        count => format!(", {count} of them a single one"),
    };
    format!(
        "of what is kept in {} copies, {} of {} partitions have fewer than {} copies \
         present{single}: {what_follows}",
        copies.copies, copies.fewer, copies.partitions, copies.possible
    )
}

/// What is done about partitions whose members are so, and until when; nothing where nothing is.
pub(super) fn situation_words(
    situation: Situation,
    what: &str,
    rebuild_after: Duration,
) -> Option<String> {
    let moment = span_words(limits::STEWARD_MOMENT_MS / 1000);
    let grace = span_words(rebuild_after.as_secs());
    Some(match situation {
        Situation::Whole => return None,
        Situation::Changing => format!("the disks that hold {what} are being changed just now"),
        Situation::Paused => format!(
            "a change of the disks that hold {what} came to nothing; another one follows within \
             10 s"
        ),
        Situation::Hesitant => format!(
            "{what} have a copy on a disk that does not answer; it is left out if it is away for \
             {moment}"
        ),
        Situation::Unseen => format!(
            "{what} have a copy on a node that only others see; until the connection to it is \
             back, nothing changes there"
        ),
        Situation::Weak => format!(
            "{what} have a copy that is away or misses something; it is left out or made whole \
             next"
        ),
        Situation::Short => format!(
            "{what} have a copy that is away or misses something, and no fewer copies than are \
             left there are enough: that one is waited for, or for another disk, which gets a \
             copy in its place after {grace}"
        ),
        Situation::Stuck => format!(
            "{what} cannot be written; which disks hold them is agreed anew next, which ends that"
        ),
        Situation::Unsettled => format!(
            "{what} wait for disks that are away: without them nobody knows all that was written"
        ),
    })
}

/// When all copies will be there, from the seconds that are left.
pub(super) fn outlook_words(left_s: Option<u64>) -> String {
    match left_s {
        Some(left_s) => {
            format!("about {} more, at the pace of the last minute", span_words(left_s))
        }
        None => "how long that takes is not known, as none came in the last minute".to_string(),
    }
}

/// Whether the cluster's state could be agreed on after one more loss: what is wrong, and what is
/// worth knowing.
fn voters_words(report: &ClusterReport, votes_in: Option<u64>) -> (Option<String>, Option<String>) {
    let voters: Vec<&ClusterNodeReport> = report.nodes.iter().filter(|node| node.votes).collect();
    let names = voters.iter().map(|node| match node.name.is_empty() {
        true => node.node.to_string(),
        false => node.name.clone(),
    });
    let names = names.collect::<Vec<_>>().join(", ");
    let up = voters.iter().filter(|node| node.up).count();
    let nodes = report.nodes.iter().filter(|node| !node.lost).count();
    let (count, wanted) = (voters.len(), wanted_voters(nodes));
    let stops = "nothing can be attached, created or left out until it is back";
    if report.agreement.waiting.is_some() || count == 0 {
        return (None, None);
    }
    if count < wanted {
        let when = match votes_in {
            Some(left_s) => format!("in {} at most", span_words(left_s)),
            None => "once they have been there for half a minute, with all that is agreed".into(),
        };
        let who = match count {
            1 => format!("only node {names} votes"),
            _ => format!("only {count} nodes vote ({names})"),
        };
        let warning = format!(
            "{who} on the state of the cluster, and {wanted} should: if one of them is lost, \
             {stops}; others will vote {when}"
        );
        return (Some(warning), None);
    }
    if count > 1 && up == count / 2 + 1 && up < count {
        let warning = format!(
            "{up} of the {count} nodes that vote can be reached, and no fewer are enough: if one \
             more is lost, {stops}; bring those that are away back, or let other machines join"
        );
        return (Some(warning), None);
    }
    let note = (count == 1 && nodes > 1).then(|| {
        format!(
            "of two nodes one votes, {names}: if it is lost, {stops}; with a third machine the \
             loss of any one is borne"
        )
    });
    (None, note)
}

/// What is worth knowing.
fn cluster_notes(report: &ClusterReport) -> Vec<String> {
    let mut notes = Vec::new();
    for copies in report.copies.iter().filter(|copies| copies.possible < copies.copies) {
        notes.push(format!(
            "volumes that ask for {} copies have {}, as there are no disks for more: add disks, \
             best on other nodes, and the copies follow by themselves",
            copies.copies, copies.possible,
        ));
    }
    for copies in report.copies.iter().filter(|copies| copies.doubled > 0) {
        notes.push(format!(
            "of what is kept in {} copies, {} of {} partitions have more than one copy on the same \
             node, which are lost together with it: add disks on other nodes, and the copies are \
             spread by themselves",
            copies.copies, copies.doubled, copies.partitions
        ));
    }
    for disk in report.disks.iter().filter(|disk| disk.standing == "draining") {
        let left = disk.partitions + disk.recovering;
        notes.push(match left {
            0 => format!(
                "disk {} of node {} is drained: nothing lies on it, and `dog disk remove` takes it \
                 out",
                disk.disk, disk.node_name
            ),
            _ => format!(
                "disk {} of node {} is being drained: {} still {} on it",
                disk.disk,
                disk.node_name,
                counted(left, "partition", "partitions"),
                if left == 1 { "lies" } else { "lie" }
            ),
        });
    }
    notes
}

fn progress_report(progress: AttemptProgress) -> AttemptProgressReport {
    let stage = match progress.stage {
        AttemptStage::Copying { .. } => "copying",
        AttemptStage::Refusing => "refusing",
        AttemptStage::Settling => "settling",
        AttemptStage::Installing => "installing",
        AttemptStage::Ended => "ended",
    };
    AttemptProgressReport {
        stage: stage.to_string(),
        to_do: progress.to_do,
        done: progress.done,
        bytes: progress.bytes,
        waiting_for: progress.waiting_for,
    }
}

/// A span of time, in its largest unit.
pub(super) fn span_words(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_situation_but_that_of_rest_has_a_sentence_of_its_own() {
        let all = [
            Situation::Changing,
            Situation::Paused,
            Situation::Hesitant,
            Situation::Unseen,
            Situation::Weak,
            Situation::Short,
            Situation::Stuck,
            Situation::Unsettled,
        ];
        let words: BTreeSet<String> = all
            .iter()
            .filter_map(|it| situation_words(*it, "7 partitions", Duration::from_secs(60)))
            .collect();
        assert_eq!(words.len(), all.len(), "{words:?}");
        assert!(words.iter().all(|sentence| sentence.contains("7 partitions")), "{words:?}");
        assert_eq!(
            situation_words(Situation::Whole, "7 partitions", Duration::from_secs(60)),
            None
        );
    }
}
