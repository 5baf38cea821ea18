//! Messages of the agreed log to a node that this one has no connection to: over a third one that
//! has connections to both (decision 0012).
//!
//! Each node tells its peers which nodes of the map it *misses*. Who has no link to a node gives
//! its message to a peer that does not miss it, which passes it on, once: what was passed on is
//! never passed on again. Nothing is kept on the way. What is lost, late or overtaken the agreed
//! log stands, as on any way.

use super::{Engine, Work};
use proto::wire::note::Channel;
use proto::{Duration, NodeId, Time, limits};
use std::collections::BTreeSet;

/// What goes over a third node.
pub(super) const RELAY: Channel = Channel(3);
/// Which nodes the sender misses.
pub(super) const MISSES: Channel = Channel(4);
/// The version of a relayed message, its first byte.
const RELAY_VERSION: u8 = 1;
/// The version of what is missed, its first byte.
const MISSES_VERSION: u8 = 1;
const NODE_BYTES: usize = size_of::<NodeId>();
/// How often it is said again which nodes are missed.
const TELL_AGAIN: Duration = Duration::from_secs(5);
/// Version, stage and node.
const RELAY_HEAD_BYTES: usize = 2 + NODE_BYTES;

const _: () = assert!(
    RELAY_HEAD_BYTES + limits::VOTER_MESSAGE_BYTES_MAX <= limits::WIRE_CONTROL_BYTES_MAX
        && limits::NODES_MAX * NODE_BYTES < limits::WIRE_CONTROL_BYTES_MAX
);

/// How far a message has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// From its sender to whoever is to pass it on to this node.
    To(NodeId),
    /// On its last way: this node sent it.
    From(NodeId),
}

impl Stage {
    fn put(self, message: &[u8]) -> Vec<u8> {
        let (stage, NodeId(node)) = match self {
            Stage::To(node) => (0, node),
            Stage::From(node) => (1, node),
        };
        [&[RELAY_VERSION, stage], &node.to_le_bytes()[..], message].concat()
    }

    /// The stage and the message; nothing if it is malformed.
    fn of(bytes: &[u8]) -> Option<(Stage, &[u8])> {
        let (&[RELAY_VERSION, stage], rest) = bytes.split_first_chunk()? else { return None };
        let (node, message) = rest.split_first_chunk()?;
        let node = NodeId(u128::from_le_bytes(*node));
        if message.is_empty() || message.len() > limits::VOTER_MESSAGE_BYTES_MAX {
            return None;
        }
        match stage {
            0 => Some((Stage::To(node), message)),
            1 => Some((Stage::From(node), message)),
            _ => None,
        }
    }
}

fn put_misses(nodes: &BTreeSet<NodeId>) -> Vec<u8> {
    let nodes = nodes.iter().flat_map(|node| node.0.to_le_bytes());
    [MISSES_VERSION].into_iter().chain(nodes).collect()
}

/// The nodes of a message; nothing if it is malformed.
fn misses_of(bytes: &[u8]) -> Option<BTreeSet<NodeId>> {
    let (&MISSES_VERSION, rows) = bytes.split_first()? else { return None };
    let (rows, []) = rows.as_chunks::<NODE_BYTES>() else { return None };
    let is_ascending = rows.is_sorted_by_key(|row| u128::from_le_bytes(*row));
    let nodes: BTreeSet<NodeId> =
        rows.iter().map(|row| NodeId(u128::from_le_bytes(*row))).collect();
    (is_ascending && nodes.len() == rows.len() && nodes.len() <= limits::NODES_MAX).then_some(nodes)
}

impl Engine {
    /// A message of the agreed log. It is lost where there is neither a connection nor somebody who
    /// passes it on.
    pub(super) fn send_to_voter(&mut self, now: Time, to: NodeId, bytes: &[u8]) {
        if self.peers.is_up(to) {
            return self.send_control(now, to, Channel::RAFT, bytes);
        }
        let ways: Vec<NodeId> = self.peers.seeing(to).collect();
        // One after the other: somebody may not be able to pass anything on and not know it yet.
        let turn = self.peers.ticks as usize % ways.len().max(1);
        if let Some(&way) = ways.get(turn) {
            self.send_control(now, way, RELAY, &Stage::To(to).put(bytes));
        }
    }

    /// A peer wants something passed on, or has passed something on.
    pub(super) fn take_relayed(&mut self, now: Time, peer: NodeId, message: &[u8]) {
        // What is not understood is as good as lost.
        let Some((stage, message)) = Stage::of(message) else { return };
        let own = self.settings.node;
        match stage {
            Stage::To(to) if to != own && to != peer => {
                self.send_control(now, to, RELAY, &Stage::From(peer).put(message));
            }
            Stage::From(from) if from != own && self.may_hear(from) => {
                let bytes = message.to_vec();
                self.work.push_back(Work::Voter(cluster::Event::Received { from, bytes }));
            }
            Stage::To(_) | Stage::From(_) => {}
        }
    }

    /// Whether a node takes part, as far as is known here.
    fn may_hear(&self, node: NodeId) -> bool {
        !self.map.is_lost(node) && (self.map.node(node).is_some() || self.waits_for_map())
    }

    /// Which nodes of the map this one has no connection to; nothing while it has no map.
    fn missing(&self) -> Option<BTreeSet<NodeId>> {
        if self.voter.is_none() || self.waits_for_map() {
            return None;
        }
        let others = self.map.nodes().map(|node| node.id).filter(|id| *id != self.settings.node);
        Some(others.filter(|node| !self.peers.is_up(*node)).collect())
    }

    /// Tells one peer which nodes are missed here.
    pub(super) fn tell_misses(&mut self, now: Time, to: NodeId) {
        if let Some(missing) = self.missing() {
            self.send_control(now, to, MISSES, &put_misses(&missing));
        }
    }

    /// Tells all peers which nodes are missed here, if others are than they were told; and as long
    /// as any are, again every few seconds, for a message may be lost. Once a tick, so that many
    /// who come and go together are one message.
    pub(super) fn tell_new_misses(&mut self, now: Time) {
        let missing = self.missing();
        let is_due = self.peers.told_misses_at.is_none_or(|at| at + TELL_AGAIN <= now);
        let is_news = missing != self.peers.told_misses;
        let is_any = missing.as_ref().is_some_and(|all| !all.is_empty());
        if !is_news && (!is_due || !is_any) {
            return;
        }
        self.peers.told_misses_at = Some(now);
        if let Some(missing) = &missing {
            let bytes = put_misses(missing);
            for node in self.peers.all_up().collect::<Vec<_>>() {
                self.send_control(now, node, MISSES, &bytes);
            }
        }
        self.peers.told_misses = missing;
    }

    /// A peer says which nodes it misses.
    pub(super) fn learn_misses(&mut self, node: NodeId, number: u64, message: &[u8]) {
        if let Some(peer) = self.peers.of(node, number) {
            peer.misses = misses_of(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_relayed_is_read_whole_or_not_at_all() {
        for stage in [Stage::To(NodeId(7)), Stage::From(NodeId(7))] {
            let bytes = stage.put(b"log");
            assert_eq!(Stage::of(&bytes), Some((stage, &b"log"[..])));
            assert_eq!(Stage::of(&bytes[..RELAY_HEAD_BYTES]), None, "nothing to relay");
            assert_eq!(Stage::of(&[&[RELAY_VERSION + 1], &bytes[1..]].concat()), None);
            assert_eq!(Stage::of(&[&[RELAY_VERSION, 2], &bytes[2..]].concat()), None);
            let longest = vec![1; limits::VOTER_MESSAGE_BYTES_MAX + 1];
            assert!(Stage::of(&stage.put(&longest[1..])).is_some());
            assert_eq!(Stage::of(&stage.put(&longest)), None);
        }
        assert_eq!(Stage::of(&[]), None);
    }

    #[test]
    fn what_is_missed_is_read_whole_or_not_at_all() {
        for nodes in [&[][..], &[3], &[3, 9]] {
            let nodes: BTreeSet<NodeId> = nodes.iter().map(|id| NodeId(*id)).collect();
            let bytes = put_misses(&nodes);
            assert_eq!(misses_of(&bytes), Some(nodes));
            assert_eq!(misses_of(&[&bytes[..], &[0]].concat()), None);
            assert_eq!(misses_of(&[&[MISSES_VERSION + 1], &bytes[1..]].concat()), None);
        }
        let rows = |ids: &[u128]| -> Vec<u8> {
            let rows = ids.iter().flat_map(|id| id.to_le_bytes());
            [MISSES_VERSION].into_iter().chain(rows).collect()
        };
        assert_eq!(misses_of(&rows(&[9, 3])), None);
        assert_eq!(misses_of(&rows(&[3, 3])), None);
        let all: Vec<u128> = (0..=limits::NODES_MAX as u128).collect();
        assert!(misses_of(&rows(&all[1..])).is_some());
        assert_eq!(misses_of(&rows(&all)), None);
        assert_eq!(misses_of(&[]), None);
    }
}
