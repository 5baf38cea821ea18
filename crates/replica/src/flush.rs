//! Flush: everything acknowledged before it is stable on a quorum when it ends; where it seals a
//! layer, on every current member.
//!
//! Each disk's acknowledgements are counted in epochs. A flush sent to a disk ends its epoch and,
//! once answered by the same opening of it, makes that epoch and all before it stable. One flush
//! per disk is under way at a time: those that come meanwhile share the next one.
//!
//! The settled point moves with flushes only: to the lowest write that some member did not have
//! when the last of them was sent a flush that it has answered (decision 0008, rule 8). While a
//! member is behind it stands still.

use crate::coordinator::{Coordinator, Pending, Phase};
use crate::event::{Answer, Effect, Error};
use crate::partitions::Group;
use crate::peer::{Peer, PeerIndex};
use proto::limits::SESSION_UNSETTLED_MAX;
use proto::{LayerId, MemberRequest, Mistake, Stamp, planted};

/// A flush that has not ended.
#[derive(Debug)]
pub(crate) struct FlushWait {
    /// Of the request; nothing if the session flushes by itself.
    pub(crate) token: Option<u64>,
    /// Its number: objects know which flush covers them.
    number: u64,
    /// For each peer up to which epoch it must be stable.
    epochs: Vec<u64>,
    /// The last write issued when the flush came; what was acknowledged by then counts.
    mark: u64,
    /// Acknowledged writes were lost while it waited.
    lost: Option<String>,
    /// It seals what lies below this head: every current member must know the head and have
    /// everything stable. Otherwise a quorum is enough.
    seals: Option<LayerId>,
}

impl FlushWait {
    /// Whether the peer has everything that was acknowledged before the flush, stable.
    pub(crate) fn is_met_by(&self, peer: &Peer, index: PeerIndex) -> bool {
        // A peer that came later has what was acknowledged before: its first epoch is that.
        let epoch = self.epochs.get(usize::from(index)).copied().unwrap_or(1);
        peer.stable_epoch >= epoch && !self.is_missed_by(peer)
    }

    /// Whether the peer does not even have all of it.
    fn is_missed_by(&self, peer: &Peer) -> bool {
        peer.lagging.first_key_value().is_some_and(|(first, _)| *first <= self.mark)
            || self.seals.is_some_and(|head| peer.layer < head)
    }

    /// Whether it ends only when every member meets it.
    pub(crate) fn is_seal(&self) -> bool {
        self.seals.is_some()
    }

    /// How many members of a group must meet it.
    fn needed(&self, group: &Group) -> usize {
        if self.is_seal() { group.members.len() } else { group.quorum() }
    }

    /// Another disk takes this peer's place.
    pub(crate) fn forget_peer(&mut self, index: PeerIndex) {
        if let Some(epoch) = self.epochs.get_mut(usize::from(index)) {
            *epoch = 1;
        }
    }
}

impl Coordinator {
    pub(crate) fn begin_flush(
        &mut self,
        token: Option<u64>,
        reported: bool,
        seals: Option<LayerId>,
        effects: &mut Vec<Effect>,
    ) {
        let epochs = self.peers.iter().map(|peer| peer.dirty_epoch).collect();
        let mark = self.sequence.next() - 1;
        let lost = if reported { self.lost.take() } else { None };
        let number = self.flush_number;
        self.flush_number += 1;
        self.flushes.push_back(FlushWait { token, number, epochs, mark, lost, seals });
        for peer in 0..self.peers.len() as PeerIndex {
            self.kick_flush(peer, effects);
        }
        self.end_flushes(effects);
    }

    /// Flushes if too much lies above the settled point: a new session would have to look at it.
    pub(crate) fn flush_by_itself(&mut self, effects: &mut Vec<Effect>) {
        let next = self.sequence.next();
        let is_own = self.settled.generation == self.generation;
        let settled = if is_own { self.settled.sequence } else { 1 };
        let begun = settled.max(self.flushed_itself_at);
        let is_due = next - begun > SESSION_UNSETTLED_MAX;
        if is_due && !self.partitions.is_any_behind() {
            self.flushed_itself_at = next;
            self.begin_flush(None, false, None, effects);
        }
    }

    /// A disk got a write that was acknowledged without it: flushes that came after that
    /// acknowledgement want it stable here, too, if they count this disk.
    pub(crate) fn lag_ended(&mut self, index: PeerIndex, sequence: u64, effects: &mut Vec<Effect>) {
        self.is_changed = true;
        self.flush_again(index, |flush| sequence <= flush.mark);
        self.kick_flush(index, effects);
    }

    /// What a disk has just got is to be stable there before these flushes count it.
    pub(crate) fn flush_again(&mut self, index: PeerIndex, wants: impl Fn(&FlushWait) -> bool) {
        let epoch = self.peers[usize::from(index)].dirty_epoch;
        for flush in self.flushes.iter_mut().filter(|flush| wants(flush)) {
            if flush.epochs.len() <= usize::from(index) {
                flush.epochs.resize(usize::from(index) + 1, 1);
            }
            flush.epochs[usize::from(index)] = epoch;
        }
    }

    /// Sends a flush if one is wanted and none is under way.
    pub(crate) fn kick_flush(&mut self, index: PeerIndex, effects: &mut Vec<Effect>) {
        let peer = &self.peers[usize::from(index)];
        // What the new members of a partition have is not known before they were asked.
        let may_flush = self.is_ready(index) && self.checks.is_empty() && !self.is_opening();
        if peer.flushing || !peer.own || !may_flush {
            return;
        }
        // Only a flush that finds all of it on the disk makes all of it stable.
        let is_wanted =
            |flush: &FlushWait| !flush.is_met_by(peer, index) && !flush.is_missed_by(peer);
        if peer.dirty_epoch <= peer.stable_epoch || !self.flushes.iter().any(is_wanted) {
            return;
        }
        self.ask_flush(index, effects);
    }

    pub(crate) fn ask_flush(&mut self, index: PeerIndex, effects: &mut Vec<Effect>) {
        let below = self.sequence.settled();
        let peer = &mut self.peers[usize::from(index)];
        let epoch = peer.epoch;
        peer.epoch += 1;
        peer.flushing = true;
        peer.flushing_below = below;
        let (lineage, generation, settled) = (self.lineage, self.generation, self.settled);
        let request = MemberRequest::Flush { lineage, generation, settled };
        self.ask(Pending::Flush { peer: index, epoch }, request, effects);
    }

    /// A disk has flushed.
    pub(crate) fn handle_flushed(
        &mut self,
        index: PeerIndex,
        epoch: u64,
        effects: &mut Vec<Effect>,
    ) {
        let peer = &mut self.peers[usize::from(index)];
        peer.stable_epoch = epoch;
        peer.stable_below = peer.flushing_below;
        if self.opening_flushed(effects) {
            return;
        }
        self.move_settled_point();
        self.end_flushes(effects);
        self.kick_flush(index, effects);
    }

    /// Moves the settled point as far as everything is stable on every member.
    fn move_settled_point(&mut self) {
        let is_open = matches!(self.phase, Phase::Open);
        if !is_open || self.partitions.is_any_behind() || !self.checks.is_empty() {
            return;
        }
        let everywhere = self.sequence.settled();
        let members = self.peers.iter().filter(|peer| peer.own);
        let stable = members.map(|peer| match peer.dirty_epoch <= peer.stable_epoch {
            // Nothing came since it flushed: whatever it has is stable.
            true => everywhere,
            false if planted(Mistake::SettledPointUnstable) => everywhere,
            false => peer.stable_below,
        });
        let Some(sequence) = stable.min().filter(|sequence| *sequence > 0) else { return };
        let point = Stamp { generation: self.generation, sequence };
        self.settled = self.settled.max(point);
    }

    /// Ends the flushes that a quorum of every member set meets, and those that seal if all do.
    pub(crate) fn end_flushes(&mut self, effects: &mut Vec<Effect>) {
        // What the new members of a partition have is not known before.
        if !self.checks.is_empty() || self.partitions.groups.is_empty() {
            return;
        }
        let (peers, groups, flushed) = (&self.peers, &self.partitions.groups, &mut self.flushed);
        self.flushes.retain_mut(|flush| {
            let met = groups.iter().all(|group| {
                let met = |peer: &PeerIndex| flush.is_met_by(&peers[usize::from(*peer)], *peer);
                group.whole.iter().filter(met).count() >= flush.needed(group)
            });
            if !met {
                return true;
            }
            *flushed = (*flushed).max(flush.number);
            if let Some(token) = flush.token {
                let result = match flush.lost.take() {
                    None => Ok(Answer::Done),
                    Some(what) => Err(Error::Io(what)),
                };
                effects.push(Effect::Done { token, result });
            }
            false
        });
    }

    /// Acknowledged writes that were not stable are gone. The flushes that wait for them fail; so
    /// does the next one, for writes may have ended since these were asked for.
    pub(crate) fn writes_lost(&mut self, what: String, effects: &mut Vec<Effect>) {
        for flush in &mut self.flushes {
            flush.lost.get_or_insert_with(|| what.clone());
        }
        self.lost = Some(what);
        effects.push(Effect::Lost);
    }
}
