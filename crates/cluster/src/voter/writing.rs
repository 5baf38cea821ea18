//! What is on its way to the journal, in order, and what follows once it is there, or is not.

use super::chunks::Received;
use super::log::Log;
use super::record::{
    Own, RECORD_BYTES_MAX, RECORD_FRAMING_BYTES, ballot_record, encode_snapshot, entry_record,
    instance_record,
};
use super::{Effect, FULL_TICKS, PersistError, RequestNumber, Voter, courier::Pending, raft_of};
use crate::refusal::Refusal;
use proto::limits::{
    JOURNAL_APPEND_BYTES_MAX, LOG_BYTES_BEFORE_SNAPSHOT, LOG_ENTRIES_KEPT, VOTER_TAIL_BYTES_MAX,
};
use proto::{BLOCK_SIZE, Time};
use raft::eraftpb::{Entry, HardState, Message};
use std::{collections::VecDeque, sync::Arc};

/// What becomes durable together, and what is said when it is.
#[derive(Default)]
pub(super) struct Unit {
    /// What `raft` calls it; 0 where it did not ask for it.
    pub(super) number: u64,
    pub(super) entries: Vec<Arc<Entry>>,
    pub(super) ballot: Option<HardState>,
    pub(super) instance: Option<u64>,
    /// A snapshot that takes the place of everything before.
    pub(super) install: Option<Received>,
    /// To be sent when it is durable, and not before.
    pub(super) messages: Vec<Message>,
    pub(super) records: Vec<Vec<u8>>,
}

impl Unit {
    fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.len() + RECORD_FRAMING_BYTES).sum()
    }

    fn needs_no_journal(&self) -> bool {
        self.records.is_empty() && self.install.is_none()
    }
}

/// What the journal is working on.
#[derive(Debug)]
enum InFlight {
    /// The first units.
    Append { units: usize, bytes: usize },
    /// The state, and with it the first units.
    Snapshot { units: usize, applied: u64 },
    /// The first unit.
    Install,
    /// What begins a new era of the log, with this node alone.
    Recovery { bytes: Vec<u8> },
}

pub(super) struct Writing {
    units: VecDeque<Unit>,
    in_flight: Option<(RequestNumber, Time, InFlight)>,
    next_request: RequestNumber,
    /// Bytes that the log takes since the last snapshot, or the last attempt at one.
    log_bytes: usize,
    /// Whether a snapshot was tried to make room for what waits, since it last fitted.
    squeezed: bool,
    /// The ballot as it was last queued to be written.
    ballot: HardState,
    /// Ballots are not written: they are those of an era of which nothing is in the journal yet.
    drops_ballots: bool,
    /// The last instance that is durable.
    pub(super) instance: u64,
    /// Set once the journal has failed: nothing is taken any more.
    pub(super) failed: Option<PersistError>,
}

impl Writing {
    pub(super) fn new(ballot: &HardState, instance: u64, log_bytes: usize) -> Writing {
        Writing {
            units: VecDeque::new(),
            in_flight: None,
            next_request: RequestNumber(1),
            log_bytes,
            squeezed: false,
            ballot: ballot.clone(),
            drops_ballots: false,
            instance,
            failed: None,
        }
    }

    /// Since when the journal has been working on its request.
    pub(super) fn since(&self) -> Option<Time> {
        self.in_flight.as_ref().map(|(_, since, _)| *since)
    }

    /// Whether everything is durable.
    pub(super) fn is_idle(&self) -> bool {
        self.units.is_empty() && self.in_flight.is_none() && self.failed.is_none()
    }

    /// Whether a new era of the log is being written.
    pub(super) fn is_recovering(&self) -> bool {
        matches!(self.in_flight, Some((.., InFlight::Recovery { .. })))
    }

    /// Gives the journal what begins a new era. Everything is durable.
    pub(super) fn begin_recovery(&mut self, now: Time, bytes: Vec<u8>) -> Effect {
        assert!(self.is_idle(), "something waits for the journal");
        let request = self.next_request;
        self.next_request = RequestNumber(request.0 + 1);
        self.in_flight = Some((request, now, InFlight::Recovery { bytes: bytes.clone() }));
        Effect::Snapshot { request, bytes }
    }

    /// The same journal with this content, of which this voter had no part in writing.
    pub(super) fn renew(&mut self, ballot: &HardState, instance: u64) {
        let next_request = self.next_request;
        *self = Writing { next_request, ..Writing::new(ballot, instance, 0) };
    }

    /// From now on the journal gets no ballot, until a snapshot has taken the place of all it has.
    pub(super) fn drop_ballots(&mut self) {
        self.drops_ballots = true;
        self.ballot = HardState::default();
    }

    /// A snapshot has.
    pub(super) fn keeps_ballots(&mut self) {
        self.drops_ballots = false;
    }

    pub(super) fn want_snapshot(&mut self) {
        self.log_bytes = LOG_BYTES_BEFORE_SNAPSHOT;
    }

    /// Puts a unit behind the others; the ballot is the present one.
    ///
    /// With entries goes what is known to be agreed, always: the members change when a change of
    /// them is applied. Who has the entry that ends a change must never start with the members of
    /// before it, which could choose a second leader; and what it knew when the entry came is that
    /// the beginning of the change is agreed. Who is alone finds out by itself what is agreed.
    pub(super) fn queue(&mut self, mut unit: Unit, ballot: &HardState, is_alone: bool) {
        unit.records = unit.entries.iter().map(|entry| entry_record(entry)).collect();
        unit.records.extend(unit.instance.map(instance_record));
        let is_due = (self.ballot.term, self.ballot.vote) != (ballot.term, ballot.vote)
            || !is_alone && !unit.entries.is_empty() && self.ballot.commit != ballot.commit;
        if is_due {
            self.ballot = ballot.clone();
            let is_kept = !self.drops_ballots;
            unit.records.extend(is_kept.then(|| ballot_record(ballot)));
        }
        if unit.install.is_some() {
            unit.records.clear();
            // What comes behind it is written behind the snapshot.
            self.drops_ballots = false;
        }
        assert!(unit.bytes() <= JOURNAL_APPEND_BYTES_MAX, "a message's worth of entries");
        self.units.push_back(unit);
    }
}

impl Voter {
    /// Names this start of the node, for its proposals.
    pub(super) fn queue_instance(&mut self, instance: u64) {
        let unit = Unit { instance: Some(instance), ..Unit::default() };
        let ballot = self.writing.ballot.clone();
        self.writing.queue(unit, &ballot, true);
    }

    /// Ends units at the front that have nothing to write; whether there was one.
    pub(super) fn finish_what_needs_no_journal(&mut self, effects: &mut Vec<Effect>) -> bool {
        let mut was_any = false;
        while self.writing.in_flight.is_none()
            && self.writing.units.front().is_some_and(Unit::needs_no_journal)
        {
            let unit = self.writing.units.pop_front().expect("it is there");
            self.finish(unit, effects);
            was_any = true;
        }
        was_any
    }

    /// A unit is durable.
    fn finish(&mut self, unit: Unit, effects: &mut Vec<Effect>) {
        let durable = &mut self.durable;
        if let Some(received) = &unit.install {
            let Received { head, members, .. } = received;
            durable.restore(head.index, head.term, members.clone());
        }
        unit.entries.into_iter().for_each(|entry| durable.append(entry));
        if let Some(ballot) = unit.ballot {
            durable.ballot = ballot;
        }
        self.writing.instance = unit.instance.unwrap_or(self.writing.instance);
        if unit.number > 0 {
            self.raft.on_persist_ready(unit.number);
        }
        if let Some(received) = unit.install {
            self.install(received, effects);
        }
        self.send(unit.messages, effects);
    }

    /// Gives the journal its next request, if it has none and there is something to do.
    pub(super) fn start_writing(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let writing = &self.writing;
        let is_paused = self.ticks < self.full_until;
        if writing.in_flight.is_some() || writing.failed.is_some() || is_paused {
            return;
        }
        let request = writing.next_request;
        let in_flight = if writing.log_bytes >= LOG_BYTES_BEFORE_SNAPSHOT && self.can_snapshot() {
            // Where it fails for want of space the log goes on, and the next attempt is due after
            // as many bytes again.
            self.writing.log_bytes = 0;
            effects.push(Effect::Snapshot { request, bytes: self.own_snapshot() });
            let units = self.writing.units.len();
            InFlight::Snapshot { units, applied: self.durable.applied }
        } else if let Some(unit) = writing.units.front() {
            match &unit.install {
                Some(received) => {
                    let bytes = self.installed_snapshot(unit, received);
                    effects.push(Effect::Snapshot { request, bytes });
                    InFlight::Install
                }
                None => {
                    let (units, records, bytes) = self.writing.next_append();
                    effects.push(Effect::Append { request, records });
                    // The journal writes whole blocks.
                    InFlight::Append { units, bytes: bytes.next_multiple_of(BLOCK_SIZE) }
                }
            }
        } else {
            return;
        };
        self.writing.next_request = RequestNumber(request.0 + 1);
        self.writing.in_flight = Some((request, now, in_flight));
    }

    /// Whether there is a state to write, and what goes on to count behind it fits.
    fn can_snapshot(&self) -> bool {
        let applied = self.durable.applied;
        let tail = self.raft.store().after(applied);
        let bytes: usize = tail.map(|entry| entry.data.len() + RECORD_BYTES_MAX / 8).sum();
        applied > 0
            && bytes <= VOTER_TAIL_BYTES_MAX
            && self.writing.units.iter().all(|unit| unit.install.is_none())
    }

    /// The state, and all that this voter has beside it, written or still to be written.
    fn own_snapshot(&self) -> Vec<u8> {
        let log = self.raft.store();
        let term = log.term_of(self.durable.applied).expect("what is applied is held");
        self.encode_snapshot(term, &log.ballot, self.courier.instance, log)
    }

    /// The snapshot of another member, made this voter's own.
    fn installed_snapshot(&self, unit: &Unit, received: &Received) -> Vec<u8> {
        let mut log = Log::default();
        let members = Default::default();
        log.restore(received.head.index, received.head.term, members);
        unit.entries.iter().for_each(|entry| log.append(entry.clone()));
        let ballot = unit.ballot.as_ref().unwrap_or(&self.durable.ballot);
        let own = Own::of(ballot, self.writing.instance, &log, received.head.index);
        encode_snapshot(&received.head.with(own), &received.state_bytes)
    }

    /// Takes a report of the journal.
    pub(super) fn persisted(
        &mut self,
        request: RequestNumber,
        result: Result<(), PersistError>,
        effects: &mut Vec<Effect>,
    ) {
        let in_flight = self.writing.in_flight.take();
        let (expected, _, in_flight) = in_flight.expect("no request is under way");
        assert_eq!(request, expected, "another request is under way");
        match (result, in_flight) {
            (Ok(()), InFlight::Recovery { bytes }) => self.begin_era(&bytes, effects),
            (Err(error), InFlight::Recovery { .. }) => {
                if error != PersistError::NoSpace {
                    self.fail(error.clone(), effects);
                }
                effects.push(Effect::Recovered(Err(error)));
            }
            (Ok(()), in_flight) => self.is_durable(in_flight, effects),
            // A snapshot cuts the log, which may be all the space that is needed: who has a volume
            // to give back, or space, is not refused before that was tried.
            (Err(PersistError::NoSpace), InFlight::Append { .. }) if !self.writing.squeezed => {
                self.writing.squeezed = true;
                self.writing.want_snapshot();
            }
            (Err(PersistError::NoSpace), InFlight::Snapshot { .. }) => {}
            (Err(error @ PersistError::NoSpace), _) => self.go_back(error, effects),
            (Err(error), _) => self.fail(error, effects),
        }
    }

    fn is_durable(&mut self, in_flight: InFlight, effects: &mut Vec<Effect>) {
        let units = match in_flight {
            InFlight::Append { units, bytes } => {
                self.writing.log_bytes += bytes;
                self.writing.squeezed = false;
                units
            }
            InFlight::Snapshot { units, applied } => {
                // What waited went in with it: the next time it may help again.
                self.writing.squeezed &= units == 0;
                // Others may be a little behind and need no snapshot then.
                let kept = if self.is_alone() { 0 } else { LOG_ENTRIES_KEPT };
                self.durable.compact(applied, kept);
                self.raft.mut_store().compact(applied, kept);
                units
            }
            InFlight::Install => {
                self.writing.log_bytes = 0;
                1
            }
            InFlight::Recovery { .. } => unreachable!("the caller takes it"),
        };
        for _ in 0..units {
            let unit = self.writing.units.pop_front().expect("it was there");
            self.finish(unit, effects);
        }
    }

    /// There is no space: nothing that waits for the journal will get there. Goes back to what is
    /// durable, so that nobody counts on the rest.
    fn go_back(&mut self, error: PersistError, effects: &mut Vec<Effect>) {
        self.writing.squeezed = false;
        // What is in nobody's log that counts will never be carried out.
        let decides_alone = self.is_only_voter();
        self.let_another_lead_at_once(effects);
        let mut log = self.durable.clone();
        log.ballot.commit = log.ballot.commit.clamp(log.applied, log.last());
        self.writing.units.clear();
        self.writing.ballot = log.ballot.clone();
        self.raft = raft_of(self.member, log).expect("it was the same before");
        self.sending.stop();
        self.received = None;
        let session = self.roster.sessions.get(&self.member).copied().unwrap_or_default();
        let refused = self.courier.go_back(self.writing.instance, session, decides_alone);
        refuse(refused, &error, effects);
        if !self.is_alone() {
            self.full_until = self.ticks + FULL_TICKS;
        }
    }

    /// Latches a failure that is final: a voter that cannot write does not vote, and agrees to
    /// nothing.
    fn fail(&mut self, error: PersistError, effects: &mut Vec<Effect>) {
        self.let_another_lead_at_once(effects);
        self.writing.units.clear();
        self.sending.stop();
        let (unknown, refused) = self.courier.give_up();
        effects.extend(unknown.into_iter().map(|Pending { token, .. }| Effect::Applied {
            token,
            result: Err(Refusal::OutcomeUnknown),
        }));
        refuse(refused, &error, effects);
        self.writing.failed = Some(error);
    }

    /// A leader that cannot write calls another to lead; nothing else that it had to say counts.
    fn let_another_lead_at_once(&mut self, effects: &mut Vec<Effect>) {
        if self.leads() {
            self.raft.raft.msgs.clear();
            if let Some(voter) = self.best_of_the_others() {
                self.raft.raft.send_timeout_now(voter);
            }
            let messages = std::mem::take(&mut self.raft.raft.msgs);
            self.send(messages, effects);
        }
    }
}

impl Writing {
    /// How many units go into the next append, their records and the bytes of these.
    fn next_append(&mut self) -> (usize, Vec<Vec<u8>>, usize) {
        let (mut units, mut records, mut bytes) = (0, Vec::new(), 0);
        for unit in &self.units {
            if unit.install.is_some() || bytes + unit.bytes() > JOURNAL_APPEND_BYTES_MAX {
                break;
            }
            bytes += unit.bytes();
            units += 1;
            records.extend(unit.records.iter().cloned());
        }
        (units, records, bytes)
    }
}

/// Ends proposals that are not in the log.
fn refuse(
    proposals: impl IntoIterator<Item = Pending>,
    error: &PersistError,
    effects: &mut Vec<Effect>,
) {
    effects.extend(proposals.into_iter().map(|Pending { token, .. }| Effect::Applied {
        token,
        result: Err(Refusal::NotLogged(error.clone())),
    }));
}
