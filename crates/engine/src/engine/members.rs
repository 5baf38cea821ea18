//! Members of partitions: what this node proposes so that every partition has those it should have,
//! and the attempts to change them that it carries out (decision 0009).
//!
//! The node that leads looks after all partitions; any other one only after those of which a
//! session here says that a member is behind. A node that only this one does not see is not away:
//! it is left out by nobody. Whoever proposes an attempt owns it, and the agreed
//! state judges each by itself: so two nodes that see things differently are in each other's way
//! for a moment at most.

use super::outlook::{Outlook, missing_copies};
use super::{Engine, MemberRoute, Phase, Purpose, Work};
use crate::{NoticeLevel, Output, disks::Disk};
use cluster::steward::{Pace, Sight, plan};
use cluster::{Answer, Command, Map, Refusal};
use proto::{DiskId, Duration, MemberError, MemberReply, NodeId, PartitionId, Time, limits};
use replica::{AttemptOutcome, AttemptProgress, AttemptQuestion, Reconfigurer};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How often it is looked whether members should change.
const LOOK: Duration = Duration::from_millis(limits::STEWARD_LOOK_MS);

/// After how long an end that could not be agreed on is proposed again.
const AGAIN: Duration = Duration::from_millis(limits::STEWARD_LOOK_MS);

/// The longest time that a partition is left after an attempt at it came to nothing: less after the
/// first ones in a row.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Attempts at a partition that came to nothing, one after the other.
struct Setbacks {
    count: u32,
    /// Nothing is begun before.
    until: Time,
}

/// An attempt that this node carries out.
struct Attempt {
    machine: Reconfigurer,
    /// It did not begin in this process: a former one may have asked disks to refuse.
    is_taken_up: bool,
    end: End,
}

/// What was said of the end of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// Nothing yet.
    Open,
    /// It is proposed.
    Proposed,
    /// It could not be agreed on: the attempt is given up, from then on.
    Refused { again_at: Time },
}

/// What this node does about members.
#[derive(Default)]
pub(super) struct Members {
    attempts: BTreeMap<u64, Attempt>,
    /// When it is looked again whether members should change.
    look_at: Option<Time>,
    /// Commands about members that are proposed and not applied or refused.
    proposed: usize,
    /// Partitions, by table, whose last attempt came to nothing.
    setbacks: BTreeMap<(u8, PartitionId), Setbacks>,
    /// Since when each disk has not served that a node of it that answers has, or should have.
    failed: BTreeMap<DiskId, Time>,
    /// The nodes that this one has no connection to, and since when nobody else that it sees has
    /// one either; nothing: somebody has.
    dark: BTreeMap<NodeId, Option<Time>>,
    /// Since when each attempt has been under way, as this node saw it.
    begun: BTreeMap<u64, Time>,
    /// How fast copies come to be there.
    outlook: Outlook,
}

impl Members {
    /// When something is to be done by itself.
    pub(super) fn deadline(&self) -> Option<Time> {
        let due = |attempt: &Attempt| match attempt.end {
            End::Open => attempt.machine.deadline(),
            End::Proposed => None,
            End::Refused { again_at } => Some(again_at),
        };
        self.attempts.values().filter_map(due).chain(self.look_at).min()
    }

    /// Takes up what a node has to carry out by this map.
    fn take_up(&mut self, map: &Arc<Map>, own: NodeId) {
        let mine = map.attempts().filter(|attempt| attempt.owner == own);
        for number in mine.map(|attempt| attempt.number) {
            if self.attempts.contains_key(&number) {
                continue;
            }
            if let Some(machine) = Reconfigurer::begin(Arc::clone(map), number) {
                // Also of one that the map has just begun to show: after a start the map may be
                // older than what a former process has seen.
                let attempt = Attempt { machine, is_taken_up: true, end: End::Open };
                self.attempts.insert(number, attempt);
            }
        }
    }

    /// This process has proposed an attempt, and it is begun: nobody else has carried it out.
    fn begun(&mut self, number: u64) {
        if let Some(attempt) = self.attempts.get_mut(&number) {
            attempt.is_taken_up = false;
        }
    }

    /// Brings the attempts in line with a newer map. One that has ended stays until the map has it
    /// no more: else it would be taken up again.
    fn learn(&mut self, map: &Arc<Map>, reopened: &[DiskId]) {
        self.attempts.retain(|number, _| map.attempt(*number).is_some());
        for attempt in self.attempts.values_mut() {
            attempt.machine.learn(Arc::clone(map));
            for disk in reopened {
                attempt.machine.reopened(*disk);
            }
        }
    }

    /// Notes since when attempts are under way.
    fn note_begun(&mut self, now: Time, map: &Map) {
        self.begun.retain(|number, _| map.attempt(*number).is_some());
        for attempt in map.attempts() {
            self.begun.entry(attempt.number).or_insert(now);
        }
    }

    /// Notes which attempts came to nothing, whoever carried them out, and which to something.
    fn note_setbacks(&mut self, now: Time, old: &Map, map: &Map) {
        self.setbacks.retain(|&(copies, _), _| map.tables().any(|table| table == copies));
        for attempt in old.attempts() {
            let copies = attempt.copies;
            // An attempt only ever comes to have fewer partitions.
            let left = map.attempt(attempt.number).map_or(0, |attempt| attempt.wanted.len());
            if left == attempt.wanted.len() || map.tables().all(|table| table != copies) {
                continue;
            }
            for &partition in attempt.wanted.keys() {
                let held = map.configuration(copies, partition);
                if held.number != old.configuration(copies, partition).number {
                    self.setbacks.remove(&(copies, partition));
                } else if held.attempt == 0 {
                    let first = Setbacks { count: 0, until: now };
                    let known = self.setbacks.entry((copies, partition)).or_insert(first);
                    let pause = (LOOK * (1 << known.count.min(8))).min(PAUSE_MAX);
                    *known = Setbacks { count: known.count + 1, until: now + pause };
                }
            }
        }
    }

    /// What is to be proposed about the end of an attempt now, and why it is given up if it is.
    fn end(&mut self, now: Time, number: u64) -> Option<(Command, Option<String>)> {
        let attempt = self.attempts.get_mut(&number)?;
        let said = match (attempt.end, attempt.machine.outcome()) {
            (End::Refused { again_at }, _) if again_at <= now => {
                (Command::GiveUpAttempt { attempt: number, may_be_refused: true }, None)
            }
            (End::Open, Some(AttemptOutcome::Activate { openings })) => {
                let openings = openings.clone();
                (Command::Activate { attempt: number, openings }, None)
            }
            (End::Open, Some(AttemptOutcome::GiveUp { reason, may_be_refused })) => {
                let may_be_refused = *may_be_refused || attempt.is_taken_up;
                let command = Command::GiveUpAttempt { attempt: number, may_be_refused };
                (command, Some(reason.to_string()))
            }
            _ => return None,
        };
        attempt.end = End::Proposed;
        Some(said)
    }

    /// The end of an attempt could not be agreed on, or it is not known whether it was. Disks may
    /// refuse by now, so it is said again until the map has the attempt no more.
    fn end_refused(&mut self, now: Time, number: u64) {
        if let Some(attempt) = self.attempts.get_mut(&number) {
            attempt.end = End::Refused { again_at: now + AGAIN };
        }
    }
}

impl Engine {
    /// The node serves from now on: what it had begun before it was started it goes on with.
    pub(super) fn begin_members(&mut self) {
        self.members_here.take_up(&self.map, self.settings.node);
        self.members_here.look_at = self.tends_members().then_some(self.present + LOOK);
        self.work.push_back(Work::Attempts);
    }

    /// Brings the attempts in line with the map, after it changed from `old`.
    pub(super) fn learn_attempts(&mut self, now: Time, old: &Map, outputs: &mut Vec<Output>) {
        if self.phase != Phase::Serving {
            return;
        }
        let reopened: Vec<DiskId> = self
            .map
            .disks()
            .filter(|disk| old.disk(disk.id).is_some_and(|it| it.incarnation != disk.incarnation))
            .map(|disk| disk.id)
            .collect();
        self.members_here.learn(&self.map, &reopened);
        self.members_here.note_begun(now, &self.map);
        self.members_here.note_setbacks(now, old, &self.map);
        self.members_here.take_up(&self.map, self.settings.node);
        if self.tends_members() && self.members_here.look_at.is_none() {
            self.members_here.look_at = Some(now + LOOK);
        }
        self.pump_attempts(now, outputs);
    }

    fn tends_members(&self) -> bool {
        self.phase == Phase::Serving && cluster::steward::is_wanted(&self.map)
    }

    /// Time has come, perhaps.
    pub(super) fn tick_members(&mut self, now: Time, outputs: &mut Vec<Output>) {
        if self.members_here.look_at.is_some_and(|at| at <= now) {
            // Where guests wait for an attempt, each moment counts.
            let mut attempts = self.members_here.attempts.values();
            let is_felt = attempts.any(|attempt| attempt.machine.may_be_refused());
            let pause = if is_felt { Duration::from_millis(limits::ATTEMPT_LOOK_MS) } else { LOOK };
            self.members_here.look_at = self.tends_members().then_some(now + pause);
            self.note_dark(now);
            self.miss_disks(now);
            self.members_here.outlook.note(now, &self.map);
            self.look_after_members(now);
        }
        self.pump_attempts(now, outputs);
    }

    /// Attempts do without disks that do not answer, as far as they can.
    fn miss_disks(&mut self, now: Time) {
        if self.members_here.attempts.is_empty() {
            return;
        }
        // Nobody is left out for being seen by others alone, but this node cannot ask it either.
        let Sight { mut away, unseen, .. } = self.sight(now);
        away.extend(unseen);
        for attempt in self.members_here.attempts.values_mut() {
            attempt.machine.miss(now, &away);
        }
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
            self.end_attempt(now, number, outputs);
        }
    }

    fn end_attempt(&mut self, now: Time, number: u64, outputs: &mut Vec<Output>) {
        let Some((command, reason)) = self.members_here.end(now, number) else { return };
        if let Some(reason) = reason {
            let sentence = format!(
                "attempt {number} to change which disks hold some partitions was given up: \
                 {reason}; another one follows by itself"
            );
            outputs.push(Output::Notice { level: NoticeLevel::Info, sentence });
        }
        self.members_here.proposed += 1;
        self.work.push_back(Work::Propose(command, Purpose::AttemptEnd(number)));
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
    pub(super) fn members_proposed(&mut self, result: &Result<Answer, Refusal>) {
        self.members_here.proposed -= 1;
        if let Ok(Answer::AttemptBegun { attempt }) = result {
            self.members_here.begun(*attempt);
        }
    }

    /// The end of an attempt was applied or refused.
    pub(super) fn attempt_end_proposed(
        &mut self,
        now: Time,
        number: u64,
        result: &Result<Answer, Refusal>,
    ) {
        self.members_here.proposed -= 1;
        if result.is_err() {
            self.members_here.end_refused(now, number);
        }
    }

    /// Proposes what should be done next.
    fn look_after_members(&mut self, now: Time) {
        if !self.tends_members() || self.members_here.proposed > 0 {
            return;
        }
        let sight = self.sight(now);
        let is_failed = |disk: &DiskId| {
            self.map.disk(*disk).is_some_and(|known| !sight.away_nodes.contains_key(&known.node))
        };
        let failed = sight.away.iter().filter(|(disk, _)| is_failed(disk));
        self.members_here.failed = failed.map(|(disk, since)| (*disk, *since)).collect();
        let (is_steward, own) = (self.is_steward(), self.settings.node);
        let is_own = |attempt: &cluster::Attempt| attempt.owner == own;
        if !is_steward && sight.behind.is_empty() && !self.map.attempts().any(is_own) {
            return;
        }
        let pace = self.pace();
        for command in plan(&self.map, &sight, &pace, own) {
            let concerns_this = match &command {
                Command::BeginAttempt { copies, changes, .. } => {
                    let partitions = changes.iter().flat_map(|change| &change.partitions);
                    let is_behind =
                        |at| sight.behind.iter().any(|it| (it.0, it.1) == (*copies, at));
                    partitions.clone().any(|(partition, _)| is_behind(*partition))
                }
                Command::GiveUpAttempt { attempt, .. } => {
                    self.map.attempt(*attempt).is_some_and(is_own)
                }
                _ => false,
            };
            if is_steward || concerns_this {
                self.members_here.proposed += 1;
                self.work.push_back(Work::Propose(command, Purpose::Members));
            }
        }
    }

    /// Since when a disk has not served, as far as this node sees; nothing while it does.
    pub(super) fn disk_away_since(&self, now: Time, disk: &cluster::Disk) -> Option<Time> {
        if let Some(since) = self.away_since(disk.node).filter(|_| disk.node != self.settings.node)
        {
            return Some(since);
        }
        let serves = match disk.node == self.settings.node {
            true => self.disks.get(&disk.id).is_some_and(Disk::serves),
            false => self.serves_there(disk.node, disk.id),
        };
        let known = self.members_here.failed.get(&disk.id);
        (!serves).then(|| known.copied().unwrap_or(now))
    }

    /// How far an attempt has come, if this node carries it out.
    pub(super) fn attempt_progress(&self, number: u64) -> Option<AttemptProgress> {
        let attempt = self.members_here.attempts.get(&number)?;
        Some(attempt.machine.progress())
    }

    /// Since when disks have not served, as far as this node sees; those that do are not listed.
    pub(super) fn disks_away(&self, now: Time) -> BTreeMap<DiskId, Time> {
        let away = |disk: &cluster::Disk| Some((disk.id, self.disk_away_since(now, disk)?));
        self.map.disks().filter_map(away).collect()
    }

    /// Since when an attempt has been under way, as this node saw it.
    pub(super) fn attempt_begun(&self, number: u64) -> Option<Time> {
        self.members_here.begun.get(&number).copied()
    }

    /// How many copies are still to be made, and how long that takes if it goes on as of late;
    /// nothing if that cannot be told.
    pub(super) fn outlook(&self, now: Time) -> (u64, Option<Duration>) {
        let missing = missing_copies(&self.map);
        (missing, self.members_here.outlook.left(now, missing))
    }

    /// How long is waited before anything is done about members.
    pub(super) fn pace(&self) -> Pace {
        Pace { grace: self.settings.rebuild_after, ..Pace::default() }
    }

    /// Notes which nodes nobody sees. One that others saw until now has only now gone dark, however
    /// long ago the connection from here was lost.
    fn note_dark(&mut self, now: Time) {
        let own = self.settings.node;
        let mut dark = BTreeMap::new();
        for node in self.map.nodes().map(|node| node.id).filter(|id| *id != own) {
            let Some(since) = self.away_since(node) else { continue };
            let is_seen = self.peers.seeing(node).next().is_some();
            let before = self.members_here.dark.get(&node);
            dark.insert(node, (!is_seen).then(|| before.map_or(since, |it| it.unwrap_or(now))));
        }
        self.members_here.dark = dark;
    }

    /// What this node sees of disks and nodes.
    pub(super) fn sight(&self, now: Time) -> Sight {
        let (mut away_nodes, mut unseen) = (BTreeMap::new(), BTreeMap::new());
        for node in self.map.nodes().map(|node| node.id).filter(|id| *id != self.settings.node) {
            let Some(since) = self.away_since(node) else { continue };
            if self.peers.seeing(node).next().is_some() {
                unseen.extend(self.map.disks_of(node).map(|disk| (disk.id, since)));
            } else {
                let dark = self.members_here.dark.get(&node);
                away_nodes.insert(node, dark.map_or(since, |it| it.unwrap_or(now)));
            }
        }
        let mut away = self.disks_away(now);
        away.retain(|disk, _| !unseen.contains_key(disk));
        for disk in self.map.disks() {
            if let (Some(known), Some(node)) = (away.get_mut(&disk.id), away_nodes.get(&disk.node))
            {
                *known = (*known).max(*node);
            }
        }
        let paused = self.members_here.setbacks.iter().filter(|(_, it)| now < it.until);
        let sessions = self.held.values().filter_map(|held| held.session.as_ref());
        Sight {
            now,
            away,
            unseen,
            away_nodes,
            behind: sessions.flat_map(|session| session.behind()).collect(),
            paused: paused.map(|(at, _)| *at).collect(),
        }
    }

    /// Asserts what must hold between two inputs.
    pub(super) fn check_members(&self) {
        for attempt in self.members_here.attempts.values() {
            let is_said = attempt.end != End::Open;
            assert!(is_said || attempt.machine.outcome().is_none(), "an end not said");
        }
        assert!(!self.tends_members() || self.members_here.look_at.is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::{Change, State};
    use proto::{ClusterId, Incarnation};

    const NODE: NodeId = NodeId(1);

    /// A disk that has everything, and another.
    fn two_disks() -> State {
        let mut state = State::default();
        let cluster = ClusterId(1);
        apply(&mut state, Command::CreateCluster { cluster, partition_bits: 1, unix_s: 0 });
        apply(&mut state, Command::AddNode { node: NODE, name: "one".into() });
        for disk in [1, 2].map(DiskId) {
            apply(&mut state, Command::AddDisk { disk, node: NODE, bytes: 1 << 40 });
            let incarnation = Incarnation(1);
            apply(&mut state, Command::OpenDisk { disk, node: NODE, incarnation });
        }
        state
    }

    fn apply(state: &mut State, command: Command) -> Answer {
        state.apply(&command).unwrap_or_else(|refusal| panic!("{command:?}: {refusal}"))
    }

    fn begin(state: &mut State) -> u64 {
        let map = state.map();
        let partition = PartitionId(0);
        let partitions = vec![(partition, map.configuration(3, partition).number)];
        let changes = vec![Change { wanted: vec![DiskId(1), DiskId(2)], partitions }];
        let begin = Command::BeginAttempt { copies: 3, bits: 1, owner: NODE, changes };
        let Answer::AttemptBegun { attempt } = apply(state, begin) else { panic!("it is begun") };
        attempt
    }

    /// A disk answers that it knows of a newer attempt: there is nothing left but to give it up.
    fn supersede(members: &mut Members, number: u64) {
        let attempt = members.attempts.get_mut(&number).expect("it is carried out");
        let (question, ..) = attempt.machine.poll(Time(1)).expect("it asks something");
        attempt.machine.handle(Time(1), question, Err(MemberError::Superseded { newer: 9 }));
        assert!(!attempt.machine.may_be_refused());
    }

    #[test]
    fn an_attempt_that_was_taken_up_may_have_been_refused_before() {
        for is_begun_here in [false, true] {
            let (mut state, mut members) = (two_disks(), Members::default());
            let number = begin(&mut state);
            members.take_up(&state.map(), NodeId(2));
            assert!(members.attempts.is_empty(), "it is another node's");
            members.take_up(&state.map(), NODE);
            if is_begun_here {
                members.begun(number);
            }
            assert_eq!(members.end(Time(1), number), None);
            supersede(&mut members, number);
            let (command, reason) = members.end(Time(1), number).expect("it has ended");
            let may_be_refused = !is_begun_here;
            assert_eq!(command, Command::GiveUpAttempt { attempt: number, may_be_refused });
            assert!(reason.is_some());
            // Whatever else changes, it is not taken up a second time.
            apply(&mut state, Command::SetWeight { disk: DiskId(1), bytes: 5 });
            members.learn(&state.map(), &[]);
            members.take_up(&state.map(), NODE);
            assert_eq!(members.attempts[&number].end, End::Proposed);
            apply(&mut state, command);
            members.learn(&state.map(), &[]);
            assert!(members.attempts.is_empty());
        }
    }

    #[test]
    fn the_more_attempts_come_to_nothing_the_longer_the_next_one_is_waited_for() {
        let (mut state, mut members) = (two_disks(), Members::default());
        let at = (3, PartitionId(0));
        let mut pauses = Vec::new();
        for round in 0..9 {
            let number = begin(&mut state);
            let before = state.map();
            // Something else changes meanwhile.
            apply(&mut state, Command::SetWeight { disk: DiskId(1), bytes: 5 + round });
            members.note_setbacks(Time(7), &before, &state.map());
            let ended = match round {
                7 => {
                    let incarnation = Incarnation(1);
                    let opening = |disk| cluster::Member { disk, incarnation };
                    let openings = [1, 2].map(DiskId).map(opening).to_vec();
                    Command::Activate { attempt: number, openings }
                }
                _ => Command::GiveUpAttempt { attempt: number, may_be_refused: false },
            };
            apply(&mut state, ended);
            members.note_setbacks(Time(7), &before, &state.map());
            let pause = members.setbacks.get(&at).map(|it| it.until.since(Time(7)));
            pauses.push(pause.map(|it| it.as_millis()));
        }
        let expected = [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000].map(Some);
        assert_eq!(pauses[..7], expected);
        assert_eq!(pauses[7..], [None, Some(500)]);
    }

    #[test]
    fn an_end_that_is_refused_is_said_again_until_the_map_has_it() {
        let (mut state, mut members) = (two_disks(), Members::default());
        let number = begin(&mut state);
        members.take_up(&state.map(), NODE);
        members.begun(number);
        supersede(&mut members, number);
        members.end(Time(1), number).expect("it has ended");
        let give_up = Command::GiveUpAttempt { attempt: number, may_be_refused: true };
        let mut now = Time(1);
        for _ in 0..3 {
            assert_eq!(members.deadline(), None);
            members.end_refused(now, number);
            assert_eq!(members.end(now, number), None, "not at once");
            now = members.deadline().expect("it is said again");
            assert_eq!(members.end(now, number), Some((give_up.clone(), None)));
            assert_eq!(members.end(now, number), None, "it is proposed");
        }
        apply(&mut state, give_up);
        members.learn(&state.map(), &[]);
        members.end_refused(now, number);
        assert_eq!((members.end(now + AGAIN, number), members.deadline()), (None, None));
        assert!(state.map().configuration(3, PartitionId(0)).may_be_refused);
    }
}
