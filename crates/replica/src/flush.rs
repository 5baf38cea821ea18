//! Flush: everything acknowledged before it is stable on a quorum when it ends.
//!
//! Each disk's acknowledgements are counted in epochs. A flush sent to a disk ends its epoch and,
//! once answered by the same incarnation, makes that epoch and all before it stable. One flush per
//! disk is under way at a time: those that come meanwhile share the next one.

use crate::coordinator::{Coordinator, Pending};
use crate::event::{Answer, Effect, Error};
use crate::peer::{Peer, PeerIndex};
use proto::{MemberRequest, Stamp};

/// A flush that has not ended.
#[derive(Debug)]
pub(crate) struct FlushWait {
    /// Of the request.
    pub(crate) token: u64,
    /// For each peer up to which epoch it must be stable.
    epochs: Vec<u64>,
    /// The last write issued when the flush came; what was acknowledged by then counts.
    mark: u64,
    /// Acknowledged writes were lost while it waited.
    lost: Option<String>,
}

impl FlushWait {
    /// Whether the peer has everything that was acknowledged before the flush, stable.
    fn is_met_by(&self, peer: &Peer, index: PeerIndex) -> bool {
        // A peer that came later held nothing of what was acknowledged before.
        let Some(epoch) = self.epochs.get(usize::from(index)) else { return false };
        peer.stable_epoch >= *epoch && !self.is_missed_by(peer)
    }

    /// Whether the peer does not even have all of it.
    fn is_missed_by(&self, peer: &Peer) -> bool {
        peer.lagging.first().is_some_and(|first| *first <= self.mark)
    }
}

impl Coordinator {
    pub(crate) fn begin_flush(&mut self, token: u64, reported: bool, effects: &mut Vec<Effect>) {
        let epochs = self.peers.iter().map(|peer| peer.dirty_epoch).collect();
        let mark = self.sequence.next() - 1;
        let lost = if reported { self.lost.take() } else { None };
        self.flushes.push_back(FlushWait { token, epochs, mark, lost });
        for peer in 0..self.peers.len() as PeerIndex {
            self.kick_flush(peer, effects);
        }
        self.end_flushes(effects);
    }

    /// A disk got a write that was acknowledged without it: flushes that came after that
    /// acknowledgement want it stable here, too, if they count this disk.
    pub(crate) fn lag_ended(&mut self, index: PeerIndex, sequence: u64, effects: &mut Vec<Effect>) {
        let epoch = self.peers[usize::from(index)].dirty_epoch;
        for flush in self.flushes.iter_mut().filter(|flush| sequence <= flush.mark) {
            if let Some(wanted) = flush.epochs.get_mut(usize::from(index)) {
                *wanted = epoch;
            }
        }
        self.kick_flush(index, effects);
    }

    /// Sends a flush if one is wanted and none is under way.
    pub(crate) fn kick_flush(&mut self, index: PeerIndex, effects: &mut Vec<Effect>) {
        let peer = &self.peers[usize::from(index)];
        if peer.flushing || !self.is_ready(index) {
            return;
        }
        // Only a flush that finds all of it on the disk makes all of it stable.
        let wanted = self
            .flushes
            .iter()
            .any(|flush| !flush.is_met_by(peer, index) && !flush.is_missed_by(peer));
        if !wanted || peer.dirty_epoch <= peer.stable_epoch {
            return;
        }
        let peer = &mut self.peers[usize::from(index)];
        let epoch = peer.epoch;
        peer.epoch += 1;
        peer.flushing = true;
        let (lineage, generation) = (self.lineage, self.generation);
        let request = MemberRequest::Flush { lineage, generation, settled: Stamp::default() };
        self.ask(Pending::Flush { peer: index, epoch }, request, effects);
    }

    /// A disk has flushed.
    pub(crate) fn handle_flushed(
        &mut self,
        index: PeerIndex,
        epoch: u64,
        effects: &mut Vec<Effect>,
    ) {
        self.peers[usize::from(index)].stable_epoch = epoch;
        self.end_flushes(effects);
        self.kick_flush(index, effects);
    }

    /// Ends the flushes that a quorum of every member set meets.
    fn end_flushes(&mut self, effects: &mut Vec<Effect>) {
        let (peers, groups) = (&self.peers, &self.groups);
        self.flushes.retain_mut(|flush| {
            let met = groups.iter().all(|group| {
                let met = |peer: &PeerIndex| flush.is_met_by(&peers[usize::from(*peer)], *peer);
                group.members.iter().filter(met).count() >= group.quorum
            });
            if met && !groups.is_empty() {
                let result = match flush.lost.take() {
                    None => Ok(Answer::Done),
                    Some(what) => Err(Error::Io(what)),
                };
                effects.push(Effect::Done { token: flush.token, result });
            }
            !met || groups.is_empty()
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
