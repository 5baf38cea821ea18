//! Who votes: a pure choice among the nodes of a cluster.
//!
//! Wanted are 1 voter where there are fewer than three nodes, 3 from three on, 5 from seven on; a
//! witness counts as a node. They lie in as many zones as can be, and where that is equal, who
//! votes goes on voting. A lost voter (unreachable for minutes) is replaced at once by somebody who
//! is ready (has all of the log, for half a minute); nobody is removed without that as long as
//! fewer than the wanted number would be left. A change never leads to an even number, which
//! survives no more than the odd one below it, except where it began with one.

use proto::NodeId;
use proto::limits::LEARNERS_MAX;
use std::collections::BTreeSet;

/// One node, as the leader sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seat {
    /// Which node.
    pub node: NodeId,
    /// Its failure domain.
    pub zone: String,
    /// Whether it has no disks.
    pub witness: bool,
    /// Whether it is a node of the cluster (still).
    pub listed: bool,
    /// Whether it votes.
    pub votes: bool,
    /// Whether it follows the log without a vote.
    pub learns: bool,
    /// Whether it has what is agreed, and had it all the time for half a minute.
    pub ready: bool,
    /// Whether nothing was heard of it for minutes.
    pub lost: bool,
}

/// A step towards the wanted voters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SeatChange {
    /// Let a node follow the log.
    Learn(NodeId),
    /// Let a node that does not vote follow no more.
    Leave(NodeId),
    /// Change voters, all at once.
    Vote {
        /// Who votes from now on.
        add: Vec<NodeId>,
        /// Who does not any more, but follows.
        demote: Vec<NodeId>,
        /// Who is no node of the cluster any more.
        remove: Vec<NodeId>,
    },
    /// Let another voter lead first: the leader itself is to go.
    Lead(NodeId),
}

/// How many voters a cluster of so many nodes wants.
pub fn wanted_voters(nodes: usize) -> usize {
    match nodes {
        0..=2 => 1,
        3..=6 => 3,
        _ => 5,
    }
}

/// The next step, if there is one. No change may be under way.
pub fn next_seat_change(leader: NodeId, seats: &[Seat]) -> Option<SeatChange> {
    let leaves = |seat: &&Seat| !seat.listed && seat.learns && !seat.votes;
    if let Some(gone) = seats.iter().find(leaves) {
        return Some(SeatChange::Leave(gone.node));
    }
    let learners = seats.iter().filter(|seat| seat.learns && !seat.votes).count();
    let joins = |seat: &&Seat| seat.listed && !seat.learns && !seat.votes && !seat.lost;
    if learners < LEARNERS_MAX
        && let Some(new) = seats.iter().find(joins)
    {
        return Some(SeatChange::Learn(new.node));
    }
    let voters: BTreeSet<NodeId> =
        seats.iter().filter(|seat| seat.votes).map(|seat| seat.node).collect();
    let target = target(leader, seats, &voters);
    if target == voters {
        return None;
    }
    if !target.contains(&leader) {
        let healthy = |seat: &&Seat| seat.votes && !seat.lost && seat.node != leader;
        let best = |seat: &&Seat| (target.contains(&seat.node), seat.ready);
        let next = seats.iter().filter(healthy).max_by_key(best)?;
        return Some(SeatChange::Lead(next.node));
    }
    let is_listed = |node: &NodeId| seats.iter().any(|seat| seat.node == *node && seat.listed);
    let (demote, remove) = voters.difference(&target).partition(|node| is_listed(node));
    Some(SeatChange::Vote { add: target.difference(&voters).copied().collect(), demote, remove })
}

/// Who should vote.
fn target(leader: NodeId, seats: &[Seat], voters: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let wanted = wanted_voters(seats.iter().filter(|seat| seat.listed).count());
    let mut size = wanted;
    loop {
        let mut target = spread(leader, seats, size);
        // Better a lost voter than one less: it may come back.
        let mut lost: Vec<&Seat> =
            seats.iter().filter(|seat| seat.votes && !target.contains(&seat.node)).collect();
        lost.sort_by_key(|seat| (!seat.listed, seat.lost, seat.node));
        for seat in lost {
            if target.len() < wanted.min(voters.len()) {
                target.insert(seat.node);
            }
        }
        let is_even_growth = target.len() > voters.len() && target.len().is_multiple_of(2);
        if !is_even_growth || size <= 1 {
            return target;
        }
        size = target.len() - 1;
    }
}

/// Up to so many of the nodes that can vote, one by one: the leader, then whoever adds a zone, then
/// whoever votes already, then whoever has disks.
fn spread(leader: NodeId, seats: &[Seat], size: usize) -> BTreeSet<NodeId> {
    let can_vote = |seat: &&Seat| {
        seat.listed && (seat.node == leader || !seat.lost && (seat.votes || seat.ready))
    };
    let mut left: Vec<&Seat> = seats.iter().filter(can_vote).collect();
    let (mut chosen, mut zones) = (BTreeSet::new(), BTreeSet::new());
    while chosen.len() < size {
        let rank = |seat: &&&Seat| {
            let known_zone = zones.contains(&seat.zone);
            (seat.node != leader, known_zone, !seat.votes, seat.witness, seat.node)
        };
        let Some(&best) = left.iter().min_by_key(rank) else { break };
        zones.insert(best.zone.clone());
        chosen.insert(best.node);
        left.retain(|seat| seat.node != best.node);
    }
    chosen
}
