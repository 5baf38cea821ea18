//! Proposals on their way to whoever leads, and of the leader into the log.
//!
//! A proposal is named by member, instance and number. It is sent again until it is seen in the
//! member's own log, and the roster lets it be applied once, after the one before it.

use super::message::{Body, OUTSIDE_COUNT_MAX};
use super::record::proposal_context;
use super::roster::{ProposalId, Session};
use super::{Effect, ProposalToken, Voter};
use crate::command::Command;
use proto::Time;
use proto::limits::{FORWARDED_BYTES_MAX, FORWARDED_PROPOSALS_MAX};
use std::collections::{BTreeMap, VecDeque};

/// Ticks after which a proposal that did not appear in the log is sent again.
const RETRY_TICKS: u64 = 10;

/// A proposal of this node that has not come to its end.
#[derive(Debug)]
pub(super) struct Pending {
    number: u64,
    pub(super) token: ProposalToken,
    command: Vec<u8>,
    pub(super) since: Time,
}

/// What was last given to a leader.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Given {
    term: u64,
    leader: u64,
    number: u64,
    tick: u64,
}

#[derive(Debug)]
pub(super) struct Courier {
    /// In the order in which they are to be applied.
    pub(super) pending: VecDeque<Pending>,
    next_number: u64,
    /// The instance of this start, or the last one before it.
    pub(super) instance: u64,
    /// Whether the instance is that of this start.
    is_named: bool,
    /// All of this instance up to this number are applied.
    applied: u64,
    given: Given,
    /// Up to this number others may have them in their logs.
    handed_out: u64,
    /// As leader: what each member has in the log, in this term.
    logged: BTreeMap<u64, Session>,
    logged_term: u64,
}

impl Courier {
    pub(super) fn new(instance: u64) -> Courier {
        Courier {
            pending: VecDeque::new(),
            next_number: 1,
            instance,
            is_named: false,
            applied: 0,
            given: Given::default(),
            handed_out: 0,
            logged: BTreeMap::new(),
            logged_term: 0,
        }
    }

    pub(super) fn take(&mut self, since: Time, token: ProposalToken, command: Vec<u8>) {
        let number = self.next_number;
        self.next_number += 1;
        self.pending.push_back(Pending { number, token, command, since });
    }

    /// A proposal was applied: whose it was, if it was one of this start.
    pub(super) fn end(&mut self, member: u64, id: ProposalId) -> Option<ProposalToken> {
        if id.member != member || id.instance != self.instance || !self.is_named {
            return None;
        }
        self.applied = id.number;
        let is_first = self.pending.front().is_some_and(|first| first.number == id.number);
        is_first.then(|| self.pending.pop_front().expect("it is there").token)
    }

    /// Proposals that were applied unseen.
    pub(super) fn skip(&mut self, session: Session) -> Vec<ProposalToken> {
        let mut skipped = Vec::new();
        if self.is_named && session.instance == self.instance {
            self.applied = self.applied.max(session.number);
            while self.pending.front().is_some_and(|first| first.number <= session.number) {
                skipped.extend(self.pending.pop_front().map(|gone| gone.token));
            }
        }
        skipped
    }

    /// The log has only what is durable now. The only voter knows that the rest will never be
    /// carried out: what of it was given to the log is handed back.
    pub(super) fn go_back(
        &mut self,
        instance: u64,
        session: Session,
        decides_alone: bool,
    ) -> Vec<Pending> {
        if self.instance != instance {
            (self.instance, self.is_named) = (instance, false);
        }
        let given = std::mem::take(&mut self.given);
        self.logged_term = 0;
        if !decides_alone {
            return Vec::new();
        }
        let is_known = self.is_named && session.instance == self.instance;
        self.applied = if is_known { session.number } else { 0 };
        let logged = self.pending.iter().take_while(|one| one.number <= given.number).count();
        let refused = self.pending.drain(..logged).collect();
        self.handed_out = 0;
        self.next_number = self.applied + 1;
        for pending in &mut self.pending {
            pending.number = self.next_number;
            self.next_number += 1;
        }
        refused
    }
}

impl Courier {
    /// Whoever leads next is given everything anew.
    pub(super) fn forget_leader(&mut self) {
        self.given = Given::default();
        self.logged_term = 0;
        self.logged.clear();
    }

    /// Nothing comes to its end here any more: what others may carry out, and what they cannot.
    pub(super) fn give_up(&mut self) -> (Vec<Pending>, Vec<Pending>) {
        let handed_out = self.handed_out;
        std::mem::take(&mut self.pending).into_iter().partition(|one| one.number <= handed_out)
    }
}

impl Voter {
    /// Brings proposals to whoever leads.
    pub(super) fn carry(&mut self, effects: &mut Vec<Effect>) {
        if self.courier.pending.is_empty() || self.durable.members.voters.is_empty() {
            return;
        }
        let is_only_voter = self.is_only_voter();
        if is_only_voter && !self.leads() && self.may_campaign() {
            self.campaign();
        }
        if !self.courier.is_named {
            self.courier.is_named = true;
            // The log may know more of this node than its journal, which was lost and is new.
            let known = self.roster.sessions.get(&self.member).map_or(0, |one| one.instance);
            self.courier.instance = self.courier.instance.max(known) + 1;
            self.queue_instance(self.courier.instance);
        }
        // Others must not have it before it is durable: its name would be given again. The journal
        // of the only voter keeps it before the proposals anyway.
        let is_safe = is_only_voter || self.writing.instance == self.courier.instance;
        let raft = &self.raft.raft;
        let (term, leader) = (raft.term, raft.leader_id);
        if leader == 0 || !is_safe {
            return;
        }
        let given = &mut self.courier.given;
        let is_other = (given.term, given.leader) != (term, leader);
        if is_other {
            *given = Given { term, leader, number: 0, tick: self.ticks };
        }
        given.number = given.number.max(self.courier.applied);
        if leader == self.member {
            self.log_own();
        } else {
            self.forward(is_other, effects);
        }
    }

    fn log_own(&mut self) {
        let (member, instance) = (self.member, self.courier.instance);
        let is_only_voter = self.is_only_voter();
        let courier = &mut self.courier;
        let first = courier.pending.partition_point(|one| one.number <= courier.given.number);
        for pending in courier.pending.range(first..) {
            let id = ProposalId { member, instance, number: pending.number };
            let context = proposal_context(&id);
            // Too much is on its way already, or another is to lead: later.
            if self.raft.propose(context, pending.command.clone()).is_err() {
                break;
            }
            courier.given.number = pending.number;
            if !is_only_voter {
                courier.handed_out = courier.handed_out.max(pending.number);
            }
        }
    }

    fn forward(&mut self, is_other: bool, effects: &mut Vec<Effect>) {
        let courier = &mut self.courier;
        let given = &mut courier.given;
        let window = courier.applied + FORWARDED_PROPOSALS_MAX as u64;
        let is_late = self.ticks >= given.tick + RETRY_TICKS;
        let after = if is_other || is_late { courier.applied } else { given.number };
        let first = courier.pending.partition_point(|one| one.number <= after);
        let (mut commands, mut bytes) = (Vec::new(), 0);
        for pending in courier.pending.range(first..) {
            bytes += pending.command.len();
            if pending.number > window || bytes > FORWARDED_BYTES_MAX {
                break;
            }
            commands.push(pending.command.clone());
            given.number = given.number.max(pending.number);
        }
        if commands.is_empty() {
            return;
        }
        given.tick = self.ticks;
        courier.handed_out = courier.handed_out.max(given.number);
        let (leader, instance) = (given.leader, courier.instance);
        let body = Body::Proposals { instance, first: after + 1, commands };
        self.tell(leader, body, effects);
    }

    /// A member's proposals, for this one to log as the leader. What it has logged already it does
    /// not log again; what was lost comes again.
    pub(super) fn take_proposals(
        &mut self,
        from: u64,
        instance: u64,
        first: u64,
        commands: &[Vec<u8>],
    ) {
        if !self.leads() || !self.roster.nodes.contains_key(&from) {
            return;
        }
        if self.courier.logged_term != self.raft.raft.term {
            self.courier.logged_term = self.raft.raft.term;
            self.courier.logged.clear();
        }
        // Entries of former leaders are applied without this one having logged them.
        let of = |sessions: &BTreeMap<u64, Session>| sessions.get(&from).copied();
        let (logged, applied) = (of(&self.courier.logged), of(&self.roster.sessions));
        let furthest = |session: &Session| (session.instance, session.number);
        let known = logged.into_iter().chain(applied).max_by_key(furthest);
        let mut logged = known.unwrap_or_default();
        if instance > logged.instance {
            logged = Session { instance, ..Session::default() };
        }
        if instance.max(first) > OUTSIDE_COUNT_MAX {
            return;
        }
        if instance < logged.instance || commands.len() > FORWARDED_PROPOSALS_MAX {
            return;
        }
        for (number, command) in (first..u64::MAX).zip(commands) {
            if number <= logged.number {
                continue;
            }
            let is_next = number == logged.number + 1;
            let context = proposal_context(&ProposalId { member: from, instance, number });
            let is_logged = is_next
                && Command::decode(command).is_ok()
                && self.raft.propose(context, command.clone()).is_ok();
            if !is_logged {
                break;
            }
            logged.number = number;
        }
        self.courier.logged.insert(from, logged);
    }
}
