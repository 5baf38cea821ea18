//! A way out when a majority of the voters is lost: a new era of the log, which goes on from what
//! one node has; and how nodes of the era before follow (decision 0013).

use super::log::Log;
use super::record::{self, Saved};
use super::roster::Recovery;
use super::{BootError, Effect, Founding, Receiving, Voter, Watch, raft_of};
use crate::command::{Command, DecodeError};
use crate::refusal::Refusal;
use proto::limits::RECOVERIES_MAX;
use proto::wire::Era;
use proto::{ClusterId, NodeId, Time};
use raft::eraftpb::Entry;
use std::sync::Arc;

/// Why a node cannot begin a new era of the log.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecoveryRefusal {
    /// There is somebody who leads.
    #[error("the nodes that vote agree, so there is nothing to recover from")]
    Led,
    /// It has nothing to go on from.
    #[error(
        "this node has nothing of the cluster's state, or waits for it since the cluster was \
         recovered elsewhere; ask another one, or start sheep here anew and ask again"
    )]
    Nothing,
    /// The journal is at work.
    #[error("this node is still writing what it was told last; ask again in a moment")]
    Busy,
    /// The journal takes nothing any more.
    #[error("{0}")]
    Failed(super::PersistError),
    /// The number of recoveries is bounded.
    #[error("{0}", Refusal::TooManyRecoveries)]
    TooMany,
    /// What it has cannot be used.
    #[error("{0}")]
    Unusable(BootError),
}

/// Whether a node goes over to the next era of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Following {
    /// From now on it has a part in that one, and waits for a snapshot.
    Begun,
    /// Somebody leads here, or the journal is at work: it may, another time.
    Later,
    /// It may know what that one does not, or is of an era long past.
    Never,
}

impl Voter {
    /// The era that it has a part in.
    pub fn era(&self) -> Era {
        match self.follows {
            Some(era) => era,
            None if self.durable.members.voters.is_empty() => Era::ANY,
            None => self.roster.era(),
        }
    }

    /// Begins a new era of the log, of which this node is the only voter: all that its log has
    /// counts as agreed; what only `lost` nodes had is lost with them, what they had not agreed on
    /// may be carried out. Ends with [`Effect::Recovered`]; until then nothing has changed.
    ///
    /// Whoever asks has seen to it that no majority of the voters can be had again.
    ///
    /// # Errors
    /// Nothing is changed.
    pub fn begin_recovery(
        &mut self,
        now: Time,
        lost: &[NodeId],
        unix_s: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<(), RecoveryRefusal> {
        if let Some(error) = &self.writing.failed {
            return Err(RecoveryRefusal::Failed(error.clone()));
        }
        if self.is_led() {
            return Err(RecoveryRefusal::Led);
        }
        if self.follows.is_some() || self.durable.applied == 0 {
            return Err(RecoveryRefusal::Nothing);
        }
        if !self.writing.is_idle() {
            return Err(RecoveryRefusal::Busy);
        }
        let saved = Saved {
            log: self.durable.clone(),
            state: self.state.clone(),
            roster: self.roster.clone(),
            instance: self.courier.instance,
            log_bytes: 0,
        };
        let bytes = recovered(self.node, saved, lost, unix_s)?;
        effects.push(self.writing.begin_recovery(now, bytes));
        Ok(())
    }

    /// The new era is durable: goes on as if it had been started anew.
    pub(super) fn begin_era(&mut self, bytes: &[u8], effects: &mut Vec<Effect>) {
        let saved = record::load(self.node, Founding::Elsewhere, Some(bytes), &[]);
        let Saved { log, state, roster, instance, .. } = saved.expect("it was made here");
        self.raft = raft_of(self.member, log.clone()).expect("it has one member");
        self.writing.renew(&log.ballot, instance);
        (self.durable, self.state, self.roster) = (log, state, roster);
        self.forget_others();
        self.skip_applied(effects);
        effects.push(Effect::Recovered(Ok(())));
    }

    /// Follows into the next era, if it can: nobody leads here, and whatever this node knows to be
    /// agreed is in what survived. Its log is of no more use, and stays in the journal until it has
    /// a snapshot of the new era.
    pub fn follow(&mut self, era: Era) -> Following {
        let own = self.era();
        let log = &self.durable;
        let last = (log.term_of(log.last()).unwrap_or(0), log.last());
        let is_next = era != Era::ANY && era.count() == own.count() + 1;
        let has_less = last <= (era.term, era.index) && log.applied > 0;
        if self.is_led() || !self.writing.is_idle() {
            return Following::Later;
        }
        if !is_next || !has_less || self.follows.is_some() {
            return Following::Never;
        }
        self.follows = Some(era);
        self.durable = Log::default();
        self.raft = raft_of(self.member, Log::default()).expect("it has no members");
        self.writing.drop_ballots();
        self.forget_others();
        Following::Begun
    }

    /// What was said and heard belongs to another era.
    fn forget_others(&mut self) {
        self.watch = Watch::default();
        self.sending.stop();
        self.receiving = Receiving::default();
        (self.received, self.call, self.full_until) = (None, None, 0);
        self.courier.forget_leader();
    }

    /// Proposals that are applied by now without having been seen.
    fn skip_applied(&mut self, effects: &mut Vec<Effect>) {
        let session = self.roster.sessions.get(&self.member).copied().unwrap_or_default();
        for token in self.courier.skip(session) {
            effects.push(Effect::Applied { token, result: Err(Refusal::OutcomeUnknown) });
        }
        self.learned = true;
    }

    /// What [`Voter::begin_recovery`] writes, from the journal of a node that does not run.
    #[doc(hidden)]
    pub fn recover(
        node: NodeId,
        snapshot: Option<&[u8]>,
        records: &[Vec<u8>],
        lost: &[NodeId],
        unix_s: u64,
    ) -> Result<Vec<u8>, RecoveryRefusal> {
        let saved = record::load(node, Founding::Elsewhere, snapshot, records);
        recovered(node, saved.map_err(RecoveryRefusal::Unusable)?, lost, unix_s)
    }
}

/// A snapshot that takes the place of all that a journal has: the state after the whole log, the
/// node as the only member, and behind it the one entry that begins the era.
fn recovered(
    node: NodeId,
    mut saved: Saved,
    lost: &[NodeId],
    unix_s: u64,
) -> Result<Vec<u8>, RecoveryRefusal> {
    saved.log.ballot.commit = saved.log.last();
    let (instance, last) = (saved.instance, saved.log.last());
    let mut voter = Voter::start(node, 0, saved).map_err(RecoveryRefusal::Unusable)?;
    let map = voter.map();
    if voter.durable.applied == 0 || map.cluster() == ClusterId(0) {
        return Err(RecoveryRefusal::Nothing);
    }
    if map.gaps.len() >= RECOVERIES_MAX {
        return Err(RecoveryRefusal::TooMany);
    }
    if voter.durable.applied != last {
        let what = DecodeError::Contradiction("not all of it can be applied");
        return Err(RecoveryRefusal::Unusable(BootError::Snapshot(what)));
    }
    let log = &mut voter.durable;
    log.members = Log::default().members;
    log.members.voters = vec![voter.member];
    let index = log.applied;
    let term = log.term_of(index).expect("it is the last");
    let count = voter.roster.recovery.map_or(0, |before| before.count) + 1;
    voter.roster.rename(&[node], &log.members);
    voter.roster.recovery = Some(Recovery { count, index, term, node, unix_s });
    log.ballot.term += 1;
    log.ballot.vote = 0;
    let command = Command::Recover { lost: lost.to_vec(), unix_s };
    let mut entry = Entry::default();
    (entry.index, entry.term, entry.data) = (index + 1, log.ballot.term, command.encode());
    log.append(Arc::new(entry));
    log.ballot.commit = index + 1;
    let ballot = log.ballot.clone();
    let log = voter.durable.clone();
    Ok(voter.encode_snapshot(term, &ballot, instance, &log))
}
