//! What all nodes together must never contradict: one agreed history, one leader in a term.

use cluster::{Map, Voter};
use proto::NodeId;
use std::collections::BTreeMap;

/// The agreed history as it was seen by anybody.
#[derive(Debug, Default)]
pub struct Ledger {
    /// By how many entries were applied: the term of the last, the epoch and the digest.
    states: BTreeMap<u64, (u64, u64, u64)>,
    /// Who led in which term.
    leaders: BTreeMap<u64, NodeId>,
}

impl Ledger {
    /// Looks at what a node has applied. The error says what it contradicts.
    pub fn look(&mut self, node: NodeId, voter: &Voter, map: &Map) -> Result<(), String> {
        let status = voter.status();
        if status.leads {
            let known = *self.leaders.entry(status.term).or_insert(node);
            if known != node {
                return Err(format!("{known} and {node} lead in term {}", status.term));
            }
        }
        let found = (status.applied_term, map.epoch().0, voter.state_digest());
        let known = *self.states.entry(status.applied).or_insert(found);
        if known != found {
            let at = status.applied;
            return Err(format!("entry {at} left {known:?} somewhere and {found:?} at {node}"));
        }
        Ok(())
    }
}
