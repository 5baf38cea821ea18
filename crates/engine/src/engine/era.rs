//! A way out when a majority of the nodes that vote is lost for ever (decision 0013): who knows how
//! much of the agreed log, what recovering would cost, and how a node finds that the cluster has
//! gone on without it.
//!
//! While nobody leads, each node tells its peers every second which is the last entry that it has:
//! the cluster goes on from the one that has most.

use super::overview::span_words;
use super::{Engine, Phase, Work};
use crate::admin::{
    AdminError, AdminErrorKind, AdminReply, AdminToken, ClusterReport, RecoveryNodeReport,
    RecoveryReport,
};
use crate::{NoticeLevel, Output};
use cluster::{Following, PersistError, RecoveryRefusal, VoterStatus};
use link::CloseReason;
use proto::wire::Era;
use proto::wire::note::{Channel, Farewell};
use proto::{DiskId, Duration, NodeId, Time, counted, limits};
use std::collections::{BTreeMap, BTreeSet};

/// How much of the agreed log the sender has.
pub(super) const STANDING: Channel = Channel(6);
/// The version of that message, its first byte.
const STANDING_VERSION: u8 = 1;

/// The last entry of the agreed log that a node has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Standing {
    term: u64,
    index: u64,
}

impl Standing {
    fn put(self) -> Vec<u8> {
        let words = [self.term.to_le_bytes(), self.index.to_le_bytes()];
        [STANDING_VERSION].into_iter().chain(words.into_iter().flatten()).collect()
    }

    /// Nothing if it is malformed.
    fn of(bytes: &[u8]) -> Option<Standing> {
        let (&STANDING_VERSION, words) = bytes.split_first()? else { return None };
        let ([term, index], []) = words.as_chunks::<8>() else { return None };
        Some(Standing { term: u64::from_le_bytes(*term), index: u64::from_le_bytes(*index) })
    }

    fn words(self) -> String {
        format!("entry {} of term {}", self.index, self.term)
    }
}

/// What a node knows of recoveries.
#[derive(Default)]
pub(super) struct Recoveries {
    /// Who waits for one that is under way, and what it will have done.
    pending: Option<(AdminToken, Box<RecoveryReport>)>,
    /// Since when others say that this process has no part in the cluster any more, and why.
    given_up: Option<(Time, &'static str)>,
    /// The era that new connections are told.
    told: Option<Era>,
    /// Disks of this node, by path, with so many layers that only lost nodes knew.
    pub(super) unknown_layers: BTreeMap<DiskId, (String, usize)>,
}

impl Engine {
    /// The life of the agreed log that this node has a part in.
    pub(super) fn era(&self) -> Era {
        self.voter.as_ref().map_or(Era::ANY, cluster::Voter::era)
    }

    /// Once a second: tells how much this node has, and sees whether it was left behind.
    pub(super) fn look_after_era(&mut self, now: Time, outputs: &mut Vec<Output>) {
        let Some(voter) = &self.voter else { return };
        let (is_led, era) = (voter.is_led(), voter.era());
        if self.era.told.replace(era) == Some(Era::ANY) && era != Era::ANY {
            self.tell_links_era();
        }
        if is_led {
            self.era.given_up = None;
            return;
        }
        for node in self.peers.all_up().collect::<Vec<_>>() {
            self.tell_standing(now, node);
        }
        let wait = Duration::from_millis(limits::GIVEN_UP_WAIT_MS);
        // One that serves goes on: what was wrong may be the recovery.
        if let Some((since, why)) = self.era.given_up
            && since + wait <= now
            && self.phase == Phase::Joining
        {
            self.fail(why.to_string(), outputs);
        }
    }

    /// Tells a peer how much of the agreed log this node has, while nobody leads.
    pub(super) fn tell_standing(&mut self, now: Time, to: NodeId) {
        // One that joins has nothing.
        let nothing = self.waits_for_map().then_some(Standing { term: 0, index: 0 });
        if let Some(standing) = nothing.or_else(|| self.standing()) {
            self.send_control(now, to, STANDING, &standing.put());
        }
    }

    /// The last entry that this node has; nothing where somebody leads.
    fn standing(&self) -> Option<Standing> {
        let voter = self.voter.as_ref().filter(|voter| !voter.is_led())?;
        let VoterStatus { last, last_term, .. } = voter.status();
        Some(Standing { term: last_term, index: last })
    }

    pub(super) fn learn_standing(&mut self, node: NodeId, number: u64, message: &[u8]) {
        if let Some(peer) = self.peers.of(node, number) {
            peer.standing = Standing::of(message);
        }
    }

    /// A connection was refused, perhaps since the cluster was recovered without one of the two.
    pub(super) fn note_other_era(
        &mut self,
        now: Time,
        reason: &CloseReason,
        outputs: &mut Vec<Output>,
    ) {
        let own = self.era();
        let Some(voter) = &mut self.voter else { return };
        match *reason {
            CloseReason::OtherEra { theirs, .. } if theirs.count() > own.count() => {
                match voter.follow(theirs) {
                    Following::Begun => {
                        let sentence = "the cluster was recovered from the loss of a majority of \
                                        its voters, and this node follows: it knows of nothing \
                                        that is lost by that";
                        let sentence = sentence.to_string();
                        outputs.push(Output::Notice { level: NoticeLevel::Warning, sentence });
                        self.renew_links(now, outputs);
                    }
                    Following::Later => {}
                    Following::Never => self.note_given_up(now, GIVEN_UP),
                }
            }
            CloseReason::Said { why: Farewell::GivenUp, .. } => self.note_given_up(now, GIVEN_UP),
            CloseReason::Said { why: Farewell::Twin, .. } => self.note_given_up(now, TWIN),
            _ => {}
        }
    }

    /// Whether a node has part in another life of the agreed log, which it cannot leave.
    pub(super) fn is_left_behind(&self, node: NodeId) -> bool {
        let is_other = |reason: &CloseReason| matches!(reason, CloseReason::OtherEra { .. });
        self.era().count() > 0 && self.peers.trouble(node).is_some_and(is_other)
    }

    fn note_given_up(&mut self, now: Time, why: &'static str) {
        self.era.given_up.get_or_insert((now, why));
    }

    /// Why this node waits, if others have gone on without it.
    pub(super) fn given_up_words(&self) -> Option<String> {
        self.era.given_up.map(|(_, why)| why.to_string())
    }

    // -- what administrators ask --

    /// Says what a recovery would do, or begins it; the answer follows.
    pub(super) fn administer_recovery(
        &mut self,
        now: Time,
        token: AdminToken,
        yes: bool,
        lost: &[String],
    ) -> Result<Option<AdminReply>, AdminError> {
        if self.era.pending.is_some() {
            return Err(conflict("the cluster is being recovered just now"));
        }
        let lost = self.vet_recovery(lost)?;
        let mut report = Box::new(self.recovery_report(now, &lost));
        if !yes {
            return Ok(Some(AdminReply::Recovery(report)));
        }
        let (unix_s, mut effects) = (self.unix_s(), Vec::new());
        let nodes: Vec<NodeId> = lost.into_iter().collect();
        let voter = self.voter.as_mut().expect("vetted");
        voter.begin_recovery(now, &nodes, unix_s, &mut effects).map_err(|refusal| {
            let kind = match refusal {
                RecoveryRefusal::Busy | RecoveryRefusal::Failed(_) => AdminErrorKind::Unavailable,
                _ => AdminErrorKind::Conflict,
            };
            AdminError { kind, sentence: refusal.to_string() }
        })?;
        self.work.extend(effects.into_iter().map(Work::FromVoter));
        report.done = true;
        self.era.pending = Some((token, report));
        Ok(None)
    }

    /// Who is lost, if nothing but a recovery helps, and this is the node to ask for it.
    fn vet_recovery(&self, named: &[String]) -> Result<BTreeSet<NodeId>, AdminError> {
        let unavailable = |sentence| AdminError { kind: AdminErrorKind::Unavailable, sentence };
        let starts = matches!(self.phase, Phase::Joining | Phase::Disks | Phase::Serving);
        let Some(voter) = self.voter.as_ref().filter(|_| starts) else {
            return Err(unavailable(self.not_serving()));
        };
        if self.waits_for_map() || voter.applied() == 0 {
            return Err(conflict(&RecoveryRefusal::Nothing.to_string()));
        }
        if let Some(sentence) = self.given_up_words() {
            return Err(conflict(&sentence));
        }
        let Some(own) = self.standing() else {
            return Err(conflict(&RecoveryRefusal::Led.to_string()));
        };
        let status = voter.status();
        let up = |voters: &[NodeId]| voters.iter().filter(|node| self.is_there(**node)).count();
        let is_majority = |voters: &[NodeId]| voters.is_empty() || up(voters) * 2 > voters.len();
        if is_majority(&status.voters) && is_majority(&status.outgoing) {
            return Err(conflict(&format!(
                "{} of the {} nodes that vote can be reached, and will agree by themselves; wait \
                 a moment, and see `dog cluster status`",
                up(&status.voters),
                status.voters.len()
            )));
        }
        for node in self.peers.all_up() {
            let Some(standing) = self.peers.standing(node) else {
                return Err(unavailable(format!(
                    "node {} has not said how much of the agreed log it has; wait until it has, \
                     or upgrade sheep there if it is older than this one",
                    self.node_words(node)
                )));
            };
            if standing > own {
                return Err(conflict(&format!(
                    "node {} knows more of the agreed log ({}) than this one ({}); recover there",
                    self.node_words(node),
                    standing.words(),
                    own.words()
                )));
            }
        }
        let voters = status.voters.iter().chain(&status.outgoing);
        let mut lost: BTreeSet<NodeId> =
            voters.copied().filter(|node| !self.is_there(*node)).collect();
        for name in named {
            let node = self.find_node(name)?;
            if self.is_there(node) {
                let name = self.node_words(node);
                return Err(conflict(&format!("node {name} answers, so it is not lost")));
            }
            lost.insert(node);
        }
        lost.retain(|node| self.map.node(*node).is_some());
        Ok(lost)
    }

    /// Whether a node is this one, or there is a connection to it.
    fn is_there(&self, node: NodeId) -> bool {
        node == self.settings.node || self.peers.is_up(node)
    }

    fn recovery_report(&self, now: Time, lost: &BTreeSet<NodeId>) -> RecoveryReport {
        let cluster = self.cluster_report(now);
        let own = self.standing();
        let node = |node: &crate::admin::ClusterNodeReport| {
            let is_here = node.node == self.settings.node;
            let standing = if is_here { own } else { self.peers.standing(node.node) };
            let disks = cluster.disks.iter().filter(|disk| disk.node == node.node);
            RecoveryNodeReport {
                node: node.node,
                name: self.node_words(node.node),
                votes: node.votes,
                up: node.up,
                since_s: node.since_s,
                lost: lost.contains(&node.node),
                term: standing.map(|it| it.term),
                index: standing.map(|it| it.index),
                partitions: disks.map(|disk| disk.partitions).sum(),
            }
        };
        let nodes: Vec<RecoveryNodeReport> = cluster.nodes.iter().map(node).collect();
        let mut warnings = recovery_words(&nodes, own, self.settings.node);
        warnings.extend(self.lost_copies_words(lost));
        RecoveryReport { done: false, asked: self.settings.node, nodes, warnings }
    }

    /// How many partitions in use have no copy but on lost nodes.
    fn lost_copies_words(&self, lost: &BTreeSet<NodeId>) -> Option<String> {
        let is_lost =
            |disk: DiskId| self.map.disk(disk).is_none_or(|known| lost.contains(&known.node));
        let mut count = 0;
        for copies in self.map.tables().filter(|copies| self.map.is_in_use(*copies)) {
            for partition in (0..1u32 << self.map.partition_bits()).map(proto::PartitionId) {
                let held = &self.map.configuration(copies, partition).current;
                let is_gone = held.iter().all(|member| is_lost(member.disk));
                count += u64::from(!held.is_empty() && is_gone);
            }
        }
        (count > 0).then(|| {
            format!(
                "of {} in use all copies lie on lost nodes: what is there is lost, and the volumes \
                 concerned wait until they are deleted",
                counted(count, "partition", "partitions")
            )
        })
    }

    /// The new era has begun, or could not.
    pub(super) fn recovered(
        &mut self,
        now: Time,
        result: Result<(), PersistError>,
        outputs: &mut Vec<Output>,
    ) {
        let pending = self.era.pending.take();
        if result.is_ok() {
            self.learn_map(now, outputs);
            self.renew_links(now, outputs);
            let sentence = "the cluster was recovered from the loss of a majority of its voters: \
                            it goes on from what this node has, and the lost nodes must never be \
                            started again with what they have"
                .to_string();
            outputs.push(Output::Notice { level: NoticeLevel::Warning, sentence });
        }
        let Some((token, report)) = pending else { return };
        let result = result.map(|()| AdminReply::Recovery(report)).map_err(|error| {
            let sentence = format!("the cluster was not recovered: {error}");
            AdminError { kind: AdminErrorKind::Unavailable, sentence }
        });
        outputs.push(Output::Admin { token, result: Box::new(result) });
    }

    /// What a recovery has left to do.
    pub(super) fn era_warnings(&self, report: &ClusterReport) -> Vec<String> {
        let mut warnings = Vec::new();
        for node in report.nodes.iter().filter(|node| node.lost) {
            let disks = report.disks.iter().filter(|disk| disk.node == node.node);
            let copies: u64 = disks.map(|disk| disk.partitions).sum();
            let name = self.node_words(node.node);
            warnings.push(format!(
                "node {name} was given up when the cluster was recovered, with {}; take it out \
                 with `dog node remove {name} --yes` once all others are back, so that what is \
                 left goes on without it, and never start it again with what it has",
                counted(copies, "copy of a partition", "copies of partitions")
            ));
        }
        for (path, count) in self.era.unknown_layers.values() {
            warnings.push(format!(
                "disk {path} holds {} that only nodes knew which were lost: nobody can read what \
                 is in them, and they take space until the disk is drained and made anew",
                counted(*count as u64, "layer", "layers")
            ));
        }
        warnings
    }
}

/// What a node says that the cluster has gone on without.
const GIVEN_UP: &str = "the cluster was recovered without this node, and what it has is of the \
                        time before; keep it as it is until the volumes were looked at on the \
                        others, then take it out there with `dog node remove`, wipe its data \
                        directory and disks, and let it join anew";

/// What a copy of a node says that runs.
const TWIN: &str = "another process runs as this node, from a copy of its data directory, and \
                    others are connected to it; stop this one, and never start a copy";

fn conflict(sentence: &str) -> AdminError {
    AdminError { kind: AdminErrorKind::Conflict, sentence: sentence.to_string() }
}

/// What it is about, what it costs, and what to do instead.
fn recovery_words(
    nodes: &[RecoveryNodeReport],
    own: Option<Standing>,
    asked: NodeId,
) -> Vec<String> {
    let away = |node: &RecoveryNodeReport| {
        format!("{} (away for {})", node.name, span_words(node.since_s))
    };
    let list = |nodes: Vec<String>| nodes.join(", ");
    let voters = nodes.iter().filter(|node| node.votes).count();
    let lost: Vec<&RecoveryNodeReport> = nodes.iter().filter(|node| node.lost).collect();
    let silent = lost.iter().filter(|node| node.votes).count();
    let known = own.map_or("nothing".to_string(), Standing::words);
    let mut words = vec![
        format!(
            "{silent} of the {voters} nodes that vote do not answer, so nothing can be agreed on: \
             if any of them can be brought back with what it has, in whatever way, do that \
             instead, and nothing is lost"
        ),
        format!(
            "these nodes are given up: {}; they must NEVER be started again with what they have, \
             for they could agree among themselves on another history and serve it",
            list(lost.iter().map(|node| away(node)).collect())
        ),
        format!(
            "the cluster goes on from what this node has, up to {known}; what only the others had \
             agreed on since is lost: volumes, snapshots and sizes are as if never made, deletions \
             come undone, attachments end, and where the disks that hold a partition were \
             exchanged, what was written since may not be found any more"
        ),
    ];
    let waiting: Vec<String> = nodes
        .iter()
        .filter(|node| !node.up && !node.lost && node.node != asked)
        .map(away)
        .collect();
    if !waiting.is_empty() {
        words.push(format!(
            "these nodes do not answer and do not vote; they follow when they come back, if they \
             know no more than this one, and if they are lost for ever too name them with --lost: \
             {}",
            list(waiting)
        ));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_is_read_whole_or_not_at_all() {
        let standing = Standing { term: 3, index: 9 };
        let bytes = standing.put();
        assert_eq!(Standing::of(&bytes), Some(standing));
        assert!((0..bytes.len()).all(|length| Standing::of(&bytes[..length]).is_none()));
        assert_eq!(Standing::of(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(Standing::of(&[&[STANDING_VERSION + 1], &bytes[1..]].concat()), None);
        // Who has entries of a later term has more, however few.
        assert!(Standing { term: 4, index: 1 } > standing);
    }
}
