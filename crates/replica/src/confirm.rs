//! Confirmations: that no newer session was open, and no newer configuration active, when a read
//! came (decision 0009).
//!
//! A count goes up with every read; each question notes the count at which it was sent. An answer
//! confirms the reads that had come by then.

use crate::coordinator::{Coordinator, Pending};
use crate::event::Effect;
use crate::partitions::Partition;
use crate::peer::PeerIndex;
use proto::{ConfigurationNumber, MemberRequest, Refused, partition_of};

impl Coordinator {
    /// Whether the disk is known to have refused the configuration of an object's partition.
    pub(crate) fn has_refused(&self, peer: PeerIndex, object: u32) -> bool {
        let peer = &self.peers[usize::from(peer)];
        if peer.refused.is_empty() {
            return false;
        }
        let under = self.partition_at(object).under;
        // What was refused before partitions doubled is refused of both halves.
        let mut bits: Vec<u8> = peer.refused.keys().map(|(_, bits, _)| *bits).collect();
        bits.dedup();
        bits.sort_unstable();
        bits.dedup();
        bits.into_iter().any(|bits| {
            let partition = partition_of(self.lineage, object, bits);
            let refused = peer.refused.get(&(under.copies, bits, partition));
            refused.is_some_and(|number| *number >= under.number)
        })
    }

    /// Whether the disk has refused any configuration by which the volume lies.
    pub(crate) fn has_refused_any(&self, peer: PeerIndex) -> bool {
        let refused = &self.peers[usize::from(peer)].refused;
        let covers = |under: proto::Under, id: proto::PartitionId| {
            refused.iter().any(|(&(copies, bits, partition), number): (_, &ConfigurationNumber)| {
                let same = match bits <= under.bits {
                    true => id.0 >> (under.bits - bits) == partition.0,
                    false => partition.0 >> (bits - under.bits) == id.0,
                };
                copies == under.copies && same && *number >= under.number
            })
        };
        !refused.is_empty()
            && self.partitions.iter().any(|(id, partition): (_, &Partition)| {
                partition.members.contains(peer) && covers(partition.under, id)
            })
    }

    /// Wants a confirmation of everything that has come so far.
    pub(crate) fn want_confirmation(&mut self, index: PeerIndex, effects: &mut Vec<Effect>) {
        let clock = self.clock;
        let peer = &mut self.peers[usize::from(index)];
        peer.confirm_wanted = peer.confirm_wanted.max(clock);
        self.kick_confirm(index, effects);
    }

    /// Asks for a confirmation if one is wanted and none is under way.
    pub(crate) fn kick_confirm(&mut self, index: PeerIndex, effects: &mut Vec<Effect>) {
        let peer = &self.peers[usize::from(index)];
        let is_wanted = peer.confirm_wanted > peer.confirmed && !peer.confirming;
        if is_wanted && self.is_ready(index) && !self.is_opening() {
            self.ask_confirm(index, effects);
        }
    }

    pub(crate) fn ask_confirm(&mut self, index: PeerIndex, effects: &mut Vec<Effect>) {
        let (lineage, generation, sent) = (self.lineage, self.generation, self.clock);
        let peer = &mut self.peers[usize::from(index)];
        peer.confirming = true;
        let request = MemberRequest::Confirm { lineage, generation, refusals: peer.refusals };
        self.ask(Pending::Confirm { peer: index, sent }, request, effects);
    }

    /// A disk has confirmed, and told what it has refused. Gives back whether that was all.
    pub(crate) fn handle_confirmed(
        &mut self,
        index: PeerIndex,
        sent: u64,
        refusals: u64,
        refused: &[Refused],
        more: bool,
    ) -> bool {
        let peer = &mut self.peers[usize::from(index)];
        peer.confirming = false;
        peer.refusals = refusals;
        for Refused { under, partition } in refused {
            let key = (under.copies, under.bits, *partition);
            let known = peer.refused.entry(key).or_default();
            *known = (*known).max(under.number);
        }
        if more {
            return false;
        }
        peer.confirmed = peer.confirmed.max(sent);
        peer.proved = peer.proved.max(sent);
        true
    }
}
