//! What a leader does beyond the protocol: it sees who is there, chooses who votes, and lets
//! another lead.

use super::record::named_context;
use super::roster::member_of;
use super::seats::{Seat, SeatChange, next_seat_change};
use super::{Effect, Log, Voter};
use proto::limits::{LEARNERS_MAX, VOTERS_MAX};
use proto::{Duration, NodeId, Time};
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};
use raft::{Raft, StateRole};
use std::collections::BTreeMap;

/// A learner that had the log for so long may vote.
const STEADY: Duration = Duration::from_secs(30);
/// A voter of which nothing was heard for so long is replaced.
const LOST: Duration = Duration::from_secs(300);
/// A member of which nothing was heard for so long is not steady.
const QUIET: Duration = Duration::from_secs(2);
/// A member that is so many entries behind what is agreed still has it.
const BEHIND_ENTRIES_MAX: u64 = 64;

/// Where a node is, and what it is for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// Its failure domain.
    pub zone: String,
    /// Whether it has no disks and is there to vote.
    pub witness: bool,
}

/// When a leader heard of whom.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Who leads in which term, and since when it counts: a new leader knows of nobody.
    term: u64,
    leads: bool,
    since: Option<Time>,
    heard: BTreeMap<u64, Time>,
    /// Since when a member has had the log.
    steady: BTreeMap<u64, Time>,
    /// Who spoke last: all that a node without members knows of others.
    pub(super) speaker: Option<NodeId>,
}

impl Watch {
    pub(super) fn hear(&mut self, node: NodeId, now: Time) {
        let member = member_of(node);
        if self.heard.len() < VOTERS_MAX + LEARNERS_MAX || self.heard.contains_key(&member) {
            self.heard.insert(member, now);
        }
        self.speaker = Some(node);
    }

    /// Forgets everything when somebody else leads, or anew.
    pub(super) fn note(&mut self, raft: &Raft<Log>) {
        let leads = raft.state == StateRole::Leader;
        if (self.term, self.leads) != (raft.term, leads) {
            (self.term, self.leads, self.since) = (raft.term, leads, None);
            self.heard.clear();
            self.steady.clear();
        }
    }
}

impl Voter {
    /// As leader, takes the next step towards the voters that the cluster should have, where the
    /// one before has ended. To be asked every second or so; `place_of` says where each node of the
    /// map is.
    pub fn arrange(
        &mut self,
        now: Time,
        place_of: impl Fn(NodeId) -> Place,
        effects: &mut Vec<Effect>,
    ) {
        let failed = self.writing.failed.is_some();
        if failed || !self.leads() || self.raft.raft.lead_transferee.is_some() {
            return;
        }
        let seats = self.seats(now, place_of);
        let raft = &self.raft.raft;
        // Nothing is agreed in this term yet, or a change is still to be applied.
        if raft.has_pending_conf() || !raft.apply_to_current_term() {
            return;
        }
        if !raft.prs().conf().to_conf_state().voters_outgoing.is_empty() {
            // Whoever began it could not end it.
            self.propose_change(ConfChangeV2::default(), &[]);
        } else if let Some(change) = next_seat_change(self.node, &seats) {
            self.take_seat_change(&change);
        }
        self.advance(now, effects);
    }

    /// Lets another voter lead, before this node is stopped. Whether it does is seen in
    /// [`Voter::status`]; it may not, where nobody can be reached.
    pub fn resign(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.leads() && self.writing.failed.is_none() {
            self.let_another_lead();
            self.advance(now, effects);
        }
    }

    /// Asks the voter that has most of the log to lead as soon as it has all of it.
    pub(super) fn let_another_lead(&mut self) {
        if let Some(voter) = self.best_of_the_others()
            && self.raft.raft.lead_transferee.is_none()
        {
            self.raft.transfer_leader(voter);
        }
    }

    /// The voter that has most of the log and is there.
    pub(super) fn best_of_the_others(&self) -> Option<u64> {
        let tracker = self.raft.raft.prs();
        let voters = tracker.conf().to_conf_state().voters;
        voters
            .into_iter()
            .filter(|&voter| voter != self.member)
            .filter_map(|voter| Some((tracker.get(voter)?, voter)))
            .filter(|(one, _)| one.recent_active)
            .max_by_key(|(one, voter)| (one.matched, *voter))
            .map(|(_, voter)| voter)
    }

    /// How each node looks to the leader.
    /// How long it takes at most until every node that this leader hears of may vote; nothing if
    /// it does not lead, or one has not got the log yet.
    pub fn ready_in(&self, now: Time) -> Option<Duration> {
        if !self.leads() {
            return None;
        }
        let map = self.state.map();
        let nodes = map.nodes().filter(|node| !map.is_lost(node.id));
        let members = nodes.map(|node| member_of(node.id)).filter(|it| *it != self.member);
        let left = |member: u64| {
            let since = self.watch.steady.get(&member)?;
            Some(STEADY.saturating_sub(now.since(*since)))
        };
        members.map(left).try_fold(Duration::ZERO, |most, left| Some(most.max(left?)))
    }

    fn seats(&mut self, now: Time, place_of: impl Fn(NodeId) -> Place) -> Vec<Seat> {
        let raft = &self.raft.raft;
        let since = *self.watch.since.get_or_insert(now);
        let committed = raft.raft_log.committed;
        let members = raft.prs().conf().to_conf_state();
        let mut nodes: BTreeMap<NodeId, bool> =
            self.roster.nodes.values().map(|&node| (node, false)).collect();
        let map = self.state.map();
        let listed = map.nodes().filter(|node| !map.is_lost(node.id));
        nodes.extend(listed.map(|node| (node.id, true)));
        let mut seats = Vec::new();
        for (node, listed) in nodes {
            let member = member_of(node);
            let other = self.roster.nodes.get(&member).is_some_and(|&known| known != node);
            if member == 0 || other {
                // Two nodes with one name for Raft, which random ids do not have.
                continue;
            }
            let heard = self.watch.heard.get(&member).copied();
            let quiet = now.since(heard.unwrap_or(since));
            let has_the_log = raft
                .prs()
                .get(member)
                .is_some_and(|one| one.matched + BEHIND_ENTRIES_MAX >= committed);
            let last = raft.raft_log.last_index();
            let has_all = raft.prs().get(member).is_some_and(|one| one.matched >= last);
            let is_self = member == self.member;
            if has_the_log && heard.is_some() && quiet <= QUIET {
                self.watch.steady.entry(member).or_insert(now);
            } else {
                self.watch.steady.remove(&member);
            }
            let steady = self.watch.steady.get(&member);
            let ready = is_self || steady.is_some_and(|&since| now.since(since) >= STEADY);
            let Place { zone, witness } = place_of(node);
            seats.push(Seat {
                node,
                zone,
                witness,
                listed,
                votes: members.voters.contains(&member),
                learns: members.learners.contains(&member),
                ready,
                whole: has_all,
                lost: !is_self && quiet >= LOST,
            });
        }
        seats
    }

    fn take_seat_change(&mut self, change: &SeatChange) {
        let one = |node: &NodeId, kind: ConfChangeType| ConfChangeSingle {
            node_id: member_of(*node),
            change_type: kind as i32,
        };
        let (changes, named): (Vec<ConfChangeSingle>, &[NodeId]) = match change {
            SeatChange::Learn(node) => {
                (vec![one(node, ConfChangeType::AddLearnerNode)], std::slice::from_ref(node))
            }
            SeatChange::Leave(node) => (vec![one(node, ConfChangeType::RemoveNode)], &[]),
            SeatChange::Vote { add, demote, remove } => {
                let add = add.iter().map(|node| one(node, ConfChangeType::AddNode));
                let demote = demote.iter().map(|node| one(node, ConfChangeType::AddLearnerNode));
                let remove = remove.iter().map(|node| one(node, ConfChangeType::RemoveNode));
                (add.chain(demote).chain(remove).collect(), &[])
            }
            SeatChange::Lead(node) => return self.raft.transfer_leader(member_of(*node)),
        };
        self.propose_change(ConfChangeV2 { changes, ..ConfChangeV2::default() }, named);
    }

    fn propose_change(&mut self, change: ConfChangeV2, named: &[NodeId]) {
        // Where too much is on its way already the next asking does it.
        let _ = self.raft.propose_conf_change(named_context(named), change);
    }
}
