//! One voter of the cluster's agreed state: a command is proposed, logged, made durable by a
//! majority, applied; by all members in the same order, and once each.
//!
//! The protocol is that of the `raft` crate (decision 0006); this is what it needs around it. A
//! member touches nothing: its journal, the other members and the passing of time are events and
//! effects. What it says to others leaves only after what it rests on is durable here.
//!
//! One request to the journal is under way at a time; what comes meanwhile goes into the next one
//! together. When the journal refuses a request for want of space, the member goes back to what is
//! durable, as if it had been started anew.

mod chunks;
mod courier;
mod event;
mod exchange;
mod leading;
mod log;
mod message;
mod record;
mod recover;
mod roster;
mod seats;
mod writing;

use crate::command::{Command, DecodeError};
use crate::map::Map;
use crate::refusal::Refusal;
use crate::state::State;
use chunks::{Received, Receiving, Sending};
use courier::Courier;
use leading::Watch;
use log::Log;
use proto::limits::{
    COMMAND_BYTES_MAX, FORWARDED_PROPOSALS_MAX, JOURNAL_APPEND_BYTES_MAX, LEARNERS_MAX,
    PROPOSALS_MAX, VOTER_MESSAGE_BYTES_MAX, VOTER_TICK_MS, VOTERS_MAX,
};
use proto::wire::Era;
use proto::{Duration, Mistake, NodeId, Time, planted};
use raft::eraftpb::{Entry, HardState, Message};
use raft::{Config, RawNode, StateRole};
use record::{Head, Payload, Saved, WRAPPING_BYTES};
use roster::{Members, Roster, all_members, member_of};
use std::sync::Arc;
use writing::{Unit, Writing};

pub use event::{
    BootError, Effect, Event, PersistError, ProposalToken, RequestNumber, VoterStatus,
};
pub use leading::Place;
pub use recover::{Following, RecoveryRefusal};
pub use roster::Recovery;
pub use seats::{Seat, SeatChange, next_seat_change, wanted_voters};

/// Where a voter with an empty journal comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Founding {
    /// The cluster begins here: the node is the only voter.
    Here,
    /// The cluster exists: the node waits until its leader sends it a snapshot.
    Elsewhere,
}

/// Ticks without a sign of the leader after which a voter thinks of an election, at least.
const ELECTION_TICKS: u64 = 10;
/// Ticks without a sign of the leader after which who does not vote takes it for gone.
const LED_TICKS: u64 = 3 * ELECTION_TICKS;
/// Ticks between two signs of a leader.
const HEARTBEAT_TICKS: usize = 1;
/// Ticks for which a member whose journal is full leaves it alone, and is silent.
const FULL_TICKS: u64 = 10;
/// A leader whose journal takes longer than this lets another one lead.
const SLOW_JOURNAL: Duration = Duration::from_millis(ELECTION_TICKS * VOTER_TICK_MS);
/// The entries of one message, in bytes.
const APPEND_BYTES_MAX: u64 = 256 << 10;
/// Messages with entries that are on their way to one member at once.
const APPENDS_IN_FLIGHT_MAX: usize = 16;
/// Commands of a leader that are not yet agreed, in bytes; more wait until some are. Bounds what is
/// to be written at once, and the tail behind a snapshot.
const UNCOMMITTED_BYTES_MAX: u64 = 512 << 10;
/// How many these can be at most.
const UNCOMMITTED_MAX: usize =
    PROPOSALS_MAX + (VOTERS_MAX + LEARNERS_MAX) * FORWARDED_PROPOSALS_MAX;
const _: () = assert!(
    UNCOMMITTED_BYTES_MAX as usize + UNCOMMITTED_MAX * WRAPPING_BYTES + 2 * COMMAND_BYTES_MAX
        <= JOURNAL_APPEND_BYTES_MAX
);
const _: () = assert!(APPEND_BYTES_MAX as usize + 2 * COMMAND_BYTES_MAX < VOTER_MESSAGE_BYTES_MAX);

/// Numbers that look random, from a seed: splitmix64. They only keep two members from wanting to
/// lead at the same moment again and again.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % bound
    }

    /// A new one for every election: members with a fixed one could split votes for ever.
    fn election_timeout(&mut self) -> u64 {
        ELECTION_TICKS + self.below(ELECTION_TICKS)
    }
}

/// One member of the group that agrees on the cluster's state: a voter, a learner, or somebody who
/// waits to become one.
pub struct Voter {
    node: NodeId,
    member: u64,
    raft: RawNode<Log>,
    state: State,
    roster: Roster,
    /// What a start from the journal would find; what `raft` has may be ahead of it.
    durable: Log,
    writing: Writing,
    courier: Courier,
    watch: Watch,
    sending: Sending,
    receiving: Receiving,
    /// A snapshot that `raft` was told of and has yet to ask for.
    received: Option<Received>,
    dice: Dice,
    ticks: u64,
    /// After so many ticks without a sign of the leader there is an election.
    election_timeout: u64,
    /// A leader that is to go called this member to lead, at this tick, and it could not at once.
    call: Option<(Message, u64)>,
    /// The journal has no space, and is not asked before this tick.
    full_until: u64,
    /// The era that a node without members takes part in.
    heard_era: u64,
    /// The era whose snapshot a node of the one before waits for.
    follows: Option<Era>,
    /// Whether something was applied that others proposed.
    learned: bool,
}

impl std::fmt::Debug for Voter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Voter");
        shown.field("node", &self.node).field("status", &self.status());
        shown.field("courier", &self.courier).field("roster", &self.roster).finish()
    }
}

impl Voter {
    /// From what the journal holds: the last snapshot, if there is one, and the records since, in
    /// order. Both empty is a new voter, whose cluster is yet to be created or joined; only then
    /// does it matter which. The seed is drawn anew for each start.
    pub fn boot(
        node: NodeId,
        founding: Founding,
        seed: u64,
        snapshot: Option<&[u8]>,
        records: &[Vec<u8>],
    ) -> Result<Voter, BootError> {
        let saved = record::load(node, founding, snapshot, records)?;
        Voter::start(node, seed, saved)
    }

    fn start(node: NodeId, seed: u64, saved: Saved) -> Result<Voter, BootError> {
        let Saved { log, state, roster, instance, log_bytes } = saved;
        let member = member_of(node);
        let raft = raft_of(member, log.clone()).map_err(BootError::Snapshot)?;
        let mut dice = Dice(seed);
        let election_timeout = dice.election_timeout();
        let mut voter = Voter {
            node,
            member,
            raft,
            state,
            roster,
            writing: Writing::new(&log.ballot, instance, log_bytes),
            durable: log,
            courier: Courier::new(instance),
            watch: Watch::default(),
            sending: Sending::default(),
            receiving: Receiving::default(),
            received: None,
            dice,
            ticks: 0,
            election_timeout,
            call: None,
            full_until: 0,
            heard_era: 0,
            follows: None,
            learned: false,
        };
        let mut effects = Vec::new();
        voter.pump(&mut effects);
        voter.finish_what_needs_no_journal(&mut effects);
        assert!(effects.is_empty(), "nobody knows of it yet");
        voter.learned = false;
        Ok(voter)
    }

    /// The present map: all that is applied, nothing that is only proposed.
    pub fn map(&self) -> Arc<Map> {
        self.state.map()
    }

    /// A digest of all that is applied: equal for equal states, on every node. It looks at
    /// everything, so it is for tests and simulation.
    pub fn state_digest(&self) -> u64 {
        proto::crc64(&self.state.encode())
    }

    /// How many entries are applied.
    pub fn applied(&self) -> u64 {
        self.durable.applied
    }

    /// Whether nobody else takes part.
    pub fn is_alone(&self) -> bool {
        let members = &self.durable.members;
        all_members(members).eq([self.member])
    }

    /// Whether it leads.
    pub fn leads(&self) -> bool {
        self.raft.raft.state == StateRole::Leader
    }

    /// Whether it leads or knows who does: only then is anything agreed. Who does not vote never
    /// calls an election, and so goes on naming a leader that is gone.
    pub fn is_led(&self) -> bool {
        let raft = &self.raft.raft;
        let is_heard = (raft.election_elapsed as u64) < LED_TICKS;
        raft.leader_id != 0 && (is_heard || self.leads() || raft.promotable())
    }

    /// How it is.
    pub fn status(&self) -> VoterStatus {
        let raft = &self.raft.raft;
        let members = &self.durable.members;
        let named = |ids: &[u64]| {
            let mut nodes: Vec<NodeId> =
                ids.iter().filter_map(|id| self.roster.nodes.get(id)).copied().collect();
            nodes.sort_unstable();
            nodes
        };
        VoterStatus {
            leader: self.roster.nodes.get(&raft.leader_id).copied(),
            leads: self.leads(),
            term: raft.term,
            voters: named(&members.voters),
            outgoing: named(&members.voters_outgoing),
            learners: named(&[&members.learners[..], &members.learners_next[..]].concat()),
            changing: !members.voters_outgoing.is_empty(),
            last: raft.raft_log.last_index(),
            last_term: raft.raft_log.last_term(),
            committed: raft.raft_log.committed,
            applied: self.durable.applied,
            applied_term: self.durable.term_of(self.durable.applied).unwrap_or(0),
            recovery: self.roster.recovery,
            failed: self.writing.failed.clone(),
        }
    }

    /// How long the journal has been working on its request and how many proposals wait, if it has
    /// one or any does.
    pub fn waiting(&self, now: Time) -> Option<(Duration, usize)> {
        let waiting = self.courier.pending.len();
        match self.writing.since() {
            Some(since) => Some((now.since(since), waiting)),
            None if waiting > 0 => Some((now.since(self.courier.pending[0].since), waiting)),
            None => None,
        }
    }

    /// Asks for a command. It ends with [`Effect::Applied`], perhaps at once. Among members it may
    /// take as long as no majority can be reached; it is passed on to whoever leads, as often as
    /// that takes, and carried out once.
    pub fn propose(
        &mut self,
        now: Time,
        token: ProposalToken,
        command: Command,
        effects: &mut Vec<Effect>,
    ) {
        let refusal = if let Some(error) = &self.writing.failed {
            Refusal::NotLogged(error.clone())
        } else if self.courier.pending.len() >= PROPOSALS_MAX {
            Refusal::TooManyProposals
        } else {
            match command.bounded() {
                Ok(command) => {
                    self.courier.take(now, token, command.encode());
                    return self.advance(now, effects);
                }
                Err(refusal) => refusal,
            }
        };
        effects.push(Effect::Applied { token, result: Err(refusal) });
    }

    /// Asks for a snapshot, which writes all that the journal holds anew: what to do when it has
    /// found damage that it cannot repair.
    pub fn rewrite(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.writing.want_snapshot();
        self.start_writing(now, effects);
    }

    /// Takes what happened.
    ///
    /// # Panics
    /// If the journal reports the end of another request than the one under way: a bug of the
    /// caller.
    pub fn handle(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Persisted { request, result } => {
                self.persisted(request, result, effects);
            }
            Event::Tick => self.tick(now, effects),
            Event::Received { from, bytes } => self.receive(now, from, &bytes, effects),
            Event::Unreachable { node } if self.leads() => {
                self.raft.report_unreachable(member_of(node));
            }
            Event::Unreachable { .. } => {}
        }
        self.advance(now, effects);
    }

    // -- the passing of time --

    fn tick(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.ticks += 1;
        if self.writing.failed.is_some() {
            return;
        }
        if self.leads() {
            self.raft.tick();
            self.send_chunks(effects);
            if self.writing.since().is_some_and(|since| now.since(since) > SLOW_JOURNAL) {
                self.let_another_lead();
            }
            return;
        }
        self.sending.stop();
        let raft = &mut self.raft.raft;
        // Not `raft.tick`, which draws when to wake up from the operating system's randomness.
        raft.election_elapsed += 1;
        let is_due = raft.election_elapsed as u64 >= self.election_timeout;
        let is_promotable = raft.promotable();
        if is_promotable && (is_due || self.is_only_voter()) && self.may_campaign() {
            self.campaign();
        }
    }

    /// Whether what an election rests on is durable, and what would come of it can become so.
    fn may_campaign(&self) -> bool {
        self.writing.is_idle() && self.ticks >= self.full_until
    }

    fn campaign(&mut self) {
        self.raft.raft.election_elapsed = 0;
        self.election_timeout = self.dice.election_timeout();
        // It refuses where a change of members is agreed and not applied; there will be another.
        let _ = self.raft.campaign();
    }

    /// Whether it decides by itself: others only follow.
    fn is_only_voter(&self) -> bool {
        self.raft.raft.promotable() && self.raft.raft.prs().is_singleton()
    }

    /// The state as it is applied, with what a journal keeps beside it.
    fn encode_snapshot(&self, term: u64, ballot: &HardState, instance: u64, log: &Log) -> Vec<u8> {
        let index = self.durable.applied;
        let head = Head {
            index,
            term,
            members: Members::of(&self.durable.members),
            roster: self.roster.clone(),
            own: record::Own::of(ballot, instance, log, index),
        };
        record::encode_snapshot(&head, &self.state.encode())
    }

    // -- the core --

    /// Lets everything go on that can.
    fn advance(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.writing.failed.is_some() {
            return;
        }
        loop {
            self.answer_call();
            self.carry(effects);
            self.pump(effects);
            if !self.finish_what_needs_no_journal(effects) {
                break;
            }
        }
        self.start_writing(now, effects);
        if std::mem::take(&mut self.learned) {
            effects.push(Effect::Learned);
        }
    }

    /// Takes what `raft` has to say, applies what is agreed, and queues what is to be written.
    fn pump(&mut self, effects: &mut Vec<Effect>) {
        while self.raft.has_ready() {
            let mut ready = self.raft.ready();
            self.watch.note(&self.raft.raft);
            let number = ready.number();
            let mut messages = ready.take_persisted_messages();
            // A leader may speak of entries that are not durable here, but not in a term that is
            // not: the only voter, who asks nobody, would use it twice after a crash.
            if self.durable.ballot.term == self.raft.raft.term {
                self.send(ready.take_messages(), effects);
            } else {
                messages.extend(ready.take_messages());
            }
            let entries: Vec<Arc<Entry>> = ready.take_entries().into_iter().map(Arc::new).collect();
            let ballot = ready.hs().filter(|_| !planted(Mistake::VoteNotWritten)).cloned();
            let committed = ready.take_committed_entries();
            let snapshot = ready.snapshot();
            let install = (!snapshot.is_empty()).then(|| {
                let metadata = snapshot.get_metadata();
                let received = self.received.take().expect("it came from there");
                assert_eq!(received.head.index, metadata.index, "another snapshot");
                let members = metadata.get_conf_state().clone();
                self.raft.mut_store().restore(metadata.index, metadata.term, members);
                received
            });
            let store = self.raft.mut_store();
            entries.iter().for_each(|entry| store.append(entry.clone()));
            if let Some(ballot) = &ballot {
                store.ballot = ballot.clone();
            }
            self.raft.advance_append_async(ready);
            self.apply(&committed, effects);
            let is_alone = self.is_alone();
            let unit = Unit { number, entries, ballot, install, messages, ..Unit::default() };
            self.writing.queue(unit, &self.raft.store().ballot, is_alone);
        }
        // Whatever `raft` did not ask for it does not want.
        self.received = None;
    }

    fn apply(&mut self, committed: &[Entry], effects: &mut Vec<Effect>) {
        for entry in committed {
            match Payload::of(entry).expect("it was judged when it came") {
                Payload::Nothing => {}
                Payload::Command { id, command } => {
                    if id.is_none_or(|id| self.roster.admit(id, entry.index)) {
                        let result = self.state.apply(&command);
                        match id.and_then(|id| self.courier.end(self.member, id)) {
                            Some(token) => effects.push(Effect::Applied { token, result }),
                            None => self.learned = true,
                        }
                    }
                }
                Payload::Change { change, named } => {
                    // What does not fit is refused by all members alike.
                    if let Ok(members) = self.raft.apply_conf_change(&change) {
                        self.roster.rename(&named, &members);
                        self.raft.mut_store().members = members.clone();
                        self.durable.members = members;
                    }
                }
            }
            self.raft.mut_store().applied = entry.index;
            self.durable.applied = entry.index;
        }
        if let Some(last) = committed.last() {
            self.raft.advance_apply_to(last.index);
        }
    }

    /// A snapshot of another member is durable here: it is the state now.
    fn install(&mut self, received: Received, effects: &mut Vec<Effect>) {
        let index = received.head.index;
        self.state = received.state;
        self.roster = received.head.roster;
        self.follows = None;
        self.writing.keeps_ballots();
        self.raft.advance_apply_to(index);
        let session = self.roster.sessions.get(&self.member).copied().unwrap_or_default();
        for token in self.courier.skip(session) {
            effects.push(Effect::Applied { token, result: Err(Refusal::OutcomeUnknown) });
        }
        self.learned = true;
    }

    /// Asserts every invariant of the state and of the voter.
    ///
    /// # Panics
    /// If one does not hold: a bug.
    pub fn check(&self) {
        self.state.check();
        let raft = &self.raft.raft;
        assert!(self.courier.pending.len() <= PROPOSALS_MAX);
        assert!(self.durable.applied <= self.durable.last(), "applied before it is durable");
        assert!(self.writing.failed.is_none() || self.writing.since().is_none());
        if self.is_alone() && self.writing.failed.is_none() {
            let is_idle = self.writing.since().is_none();
            assert!(self.courier.pending.is_empty() || !is_idle, "nobody works on the proposals");
        }
        let mut store = self.raft.store().members.clone();
        let mut members = raft.prs().conf().to_conf_state();
        for members in [&mut store, &mut members] {
            for list in [&mut members.voters, &mut members.learners] {
                list.sort_unstable();
            }
            members.voters_outgoing.sort_unstable();
            members.learners_next.sort_unstable();
        }
        assert_eq!(store, members, "the members of the log are not those of raft");
    }
}

/// `raft` with this log; refused where its members make none.
fn raft_of(member: u64, log: Log) -> Result<RawNode<Log>, DecodeError> {
    if member == 0 {
        return Err(DecodeError::Contradiction("a node whose id ends in zeros"));
    }
    let config = Config {
        id: member,
        election_tick: ELECTION_TICKS as usize,
        heartbeat_tick: HEARTBEAT_TICKS,
        applied: log.applied,
        max_size_per_msg: APPEND_BYTES_MAX,
        max_inflight_msgs: APPENDS_IN_FLIGHT_MAX,
        check_quorum: true,
        pre_vote: true,
        max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
        ..Config::default()
    };
    let nowhere = slog::Logger::root(slog::Discard, slog::o!());
    let refused = |_| DecodeError::Contradiction("its members");
    RawNode::new(&config, log, &nowhere).map_err(refused)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
