//! Members of partitions: what this node proposes so that every partition has those it should have,
//! and the attempts to change them that it carries out (decision 0009).
//!
//! The node that leads looks after all partitions; any other one only after those of which a
//! session here says that a member is behind. Whoever proposes an attempt owns it, and the agreed
//! state judges each by itself: so two nodes that see things differently are in each other's way
//! for a moment at most.

use super::{Engine, MemberRoute, Phase, Purpose, Work};
use crate::{NoticeLevel, Output, disks::Disk};
use cluster::steward::{Pace, Sight, plan};
use cluster::{Command, Map};
use proto::{DiskId, Duration, Incarnation, MemberError, MemberReply, NodeId, Time, limits};
use replica::{AttemptOutcome, AttemptQuestion, Reconfigurer};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How often it is looked whether members should change.
const LOOK: Duration = Duration::from_millis(limits::STEWARD_LOOK_MS);

/// An attempt that this node carries out.
struct Attempt {
    machine: Reconfigurer,
    /// Its end is proposed.
    has_ended: bool,
}

/// What this node does about members.
#[derive(Default)]
pub(super) struct Members {
    attempts: BTreeMap<u64, Attempt>,
    /// When it is looked again whether members should change.
    look_at: Option<Time>,
    /// Commands about members that are proposed and not applied or refused.
    proposed: usize,
    /// Since when each disk has not served that a node of it that answers has, or should have.
    failed: BTreeMap<DiskId, Time>,
}

impl Members {
    /// When something is to be done by itself.
    pub(super) fn deadline(&self) -> Option<Time> {
        let going = self.attempts.values().filter(|attempt| !attempt.has_ended);
        going.filter_map(|attempt| attempt.machine.deadline()).chain(self.look_at).min()
    }
}

impl Engine {
    /// The node serves from now on: what it had begun before it was started it goes on with.
    pub(super) fn begin_members(&mut self) {
        self.take_up_attempts();
        self.members_here.look_at = self.tends_members().then_some(self.present + LOOK);
        self.work.push_back(Work::Attempts);
    }

    fn take_up_attempts(&mut self) {
        let own = self.settings.node;
        let mine = self.map.attempts().filter(|attempt| attempt.owner == own);
        for number in mine.map(|attempt| attempt.number).collect::<Vec<_>>() {
            if self.members_here.attempts.contains_key(&number) {
                continue;
            }
            if let Some(machine) = Reconfigurer::begin(Arc::clone(&self.map), number) {
                let attempt = Attempt { machine, has_ended: false };
                self.members_here.attempts.insert(number, attempt);
            }
        }
    }

    /// Brings the attempts in line with the map, after it changed from `old`.
    pub(super) fn learn_attempts(&mut self, now: Time, old: &Map, outputs: &mut Vec<Output>) {
        if self.phase != Phase::Serving {
            return;
        }
        self.take_up_attempts();
        let reopened: Vec<DiskId> = self
            .map
            .disks()
            .filter(|disk| old.disk(disk.id).is_some_and(|it| it.incarnation != disk.incarnation))
            .map(|disk| disk.id)
            .collect();
        for (number, attempt) in &mut self.members_here.attempts {
            attempt.machine.learn(Arc::clone(&self.map));
            for disk in &reopened {
                attempt.machine.reopened(*disk);
            }
            // It is over, whoever ended it.
            attempt.has_ended |= self.map.attempt(*number).is_none();
        }
        self.members_here.attempts.retain(|_, attempt| {
            let is_over = attempt.has_ended && attempt.machine.outcome().is_some();
            !is_over
        });
        if self.tends_members() && self.members_here.look_at.is_none() {
            self.members_here.look_at = Some(now + LOOK);
        }
        self.pump_attempts(now, outputs);
    }

    /// Whether there is anything to look after: a disk alone is activated when it is opened.
    fn tends_members(&self) -> bool {
        self.phase == Phase::Serving && self.map.disks().len() > 1
    }

    /// Time has come, perhaps.
    pub(super) fn tick_members(&mut self, now: Time, outputs: &mut Vec<Output>) {
        if self.members_here.look_at.is_some_and(|at| at <= now) {
            self.members_here.look_at = self.tends_members().then_some(now + LOOK);
            self.look_after_members(now);
        }
        self.pump_attempts(now, outputs);
    }

    /// The node stops: others carry out what it had begun.
    pub(super) fn forget_attempts(&mut self) {
        self.members_here.attempts.clear();
        self.members_here.look_at = None;
    }

    /// Asks what attempts want to ask, and says how those ended that did.
    pub(super) fn pump_attempts(&mut self, now: Time, outputs: &mut Vec<Output>) {
        let numbers: Vec<u64> = self.members_here.attempts.keys().copied().collect();
        for number in numbers {
            while let Some(attempt) = self.members_here.attempts.get_mut(&number)
                && let Some((question, disk, request)) = attempt.machine.poll(now)
            {
                self.ask_member(now, disk, MemberRoute::Attempt { number, question }, request);
            }
            self.end_attempt(number, outputs);
        }
    }

    fn end_attempt(&mut self, number: u64, outputs: &mut Vec<Output>) {
        let Some(attempt) = self.members_here.attempts.get_mut(&number) else { return };
        let Some(outcome) = attempt.machine.outcome().filter(|_| !attempt.has_ended) else {
            return;
        };
        let command = match outcome.clone() {
            AttemptOutcome::Activate { openings } => {
                Command::Activate { attempt: number, openings }
            }
            AttemptOutcome::GiveUp { reason, may_be_refused } => {
                let sentence = format!(
                    "attempt {number} to change which disks hold some partitions was given up: \
                     {reason}; another one follows by itself"
                );
                outputs.push(Output::Notice { level: NoticeLevel::Info, sentence });
                Command::GiveUpAttempt { attempt: number, may_be_refused }
            }
        };
        attempt.has_ended = true;
        self.members_here.proposed += 1;
        self.work.push_back(Work::Propose(command, Purpose::Members));
    }

    /// A disk answers an attempt.
    pub(super) fn attempt_answered(
        &mut self,
        now: Time,
        number: u64,
        question: AttemptQuestion,
        result: Result<MemberReply, MemberError>,
    ) {
        if let Some(attempt) = self.members_here.attempts.get_mut(&number) {
            attempt.machine.handle(now, question, result);
            self.work.push_back(Work::Attempts);
        }
    }

    /// A command about members was applied or refused. What was refused is looked at anew.
    pub(super) fn members_proposed(&mut self) {
        self.members_here.proposed -= 1;
    }

    /// Proposes what should be done next.
    fn look_after_members(&mut self, now: Time) {
        if !self.tends_members() || self.members_here.proposed > 0 {
            return;
        }
        let sight = self.sight(now);
        let is_steward = self.is_steward();
        if !is_steward && sight.behind.is_empty() {
            return;
        }
        let own = self.settings.node;
        for command in plan(&self.map, &sight, &Pace::default(), own) {
            let concerns_behind = match &command {
                Command::BeginAttempt { copies, changes, .. } => {
                    let partitions = changes.iter().flat_map(|change| &change.partitions);
                    let is_behind =
                        |at| sight.behind.iter().any(|it| (it.0, it.1) == (*copies, at));
                    partitions.clone().any(|(partition, _)| is_behind(*partition))
                }
                _ => false,
            };
            if is_steward || concerns_behind {
                self.members_here.proposed += 1;
                self.work.push_back(Work::Propose(command, Purpose::Members));
            }
        }
    }

    /// What this node sees of disks and nodes.
    fn sight(&mut self, now: Time) -> Sight {
        let mut sight = Sight { now, ..Sight::default() };
        let mut down: BTreeMap<NodeId, Time> = BTreeMap::new();
        for node in self.map.nodes().map(|node| node.id).filter(|id| *id != self.settings.node) {
            if let Some(since) = self.away_since(node) {
                down.insert(node, since);
            }
        }
        let mut failed = BTreeMap::new();
        for disk in self.map.disks() {
            let serves = match disk.node == self.settings.node {
                true => self.disks.get(&disk.id).is_some_and(Disk::serves),
                false => self.serves_there(disk.node, disk.id),
            };
            if let Some(since) = down.get(&disk.node) {
                sight.away.insert(disk.id, *since);
            } else if !serves {
                let since = *self.members_here.failed.get(&disk.id).unwrap_or(&now);
                sight.away.insert(disk.id, since);
                failed.insert(disk.id, since);
            }
        }
        self.members_here.failed = failed;
        sight.away_nodes = down;
        for held in self.held.values() {
            if let Some(session) = &held.session {
                sight.behind.extend(session.behind());
            }
        }
        sight
    }

    /// Asserts what must hold between two inputs.
    pub(super) fn check_members(&self) {
        for attempt in self.members_here.attempts.values() {
            assert!(attempt.has_ended || attempt.machine.outcome().is_none(), "an end not said");
        }
        let is_open = |disk: &Disk| disk.incarnation != Incarnation(0);
        let several = self.map.disks().len() > 1 && self.disks.values().any(is_open);
        assert!(!several || !self.tends_members() || self.members_here.look_at.is_some());
    }
}
