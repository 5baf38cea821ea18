//! Who votes: a pure choice among the nodes of a cluster.
//!
//! Wanted are 1 voter where there are fewer than three nodes, 3 from three on, 5 from seven on; a
//! witness counts as a node. They lie in as many zones as can be; where that is equal, those with
//! disks come before witnesses, and then who votes goes on voting. A witness that leads lets a
//! voter with disks lead once one is ready. A lost voter (unreachable for minutes) is replaced at
//! once by somebody who is ready (has all of the log, for half a minute); nobody is removed
//! without that as long as fewer than the wanted number would be left. A change never leads to an
//! even number, which survives no more than the odd one below it, except where it began with one.

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
    /// Whether it has the whole log at this moment, so that it could lead in the next.
    pub whole: bool,
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
    // Nothing is heard of a node before it is a member: that it was not says nothing about it.
    let joins = |seat: &&Seat| seat.listed && !seat.learns && !seat.votes;
    if learners < LEARNERS_MAX
        && let Some(new) = seats.iter().filter(joins).min_by_key(|seat| seat.lost)
    {
        return Some(SeatChange::Learn(new.node));
    }
    let voters: BTreeSet<NodeId> =
        seats.iter().filter(|seat| seat.votes).map(|seat| seat.node).collect();
    let target = target(leader, seats, &voters);
    if target == voters {
        return lead_by_disks(leader, seats);
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

/// A witness that leads gives way: what a leader does for all is about disks, and it has none.
fn lead_by_disks(leader: NodeId, seats: &[Seat]) -> Option<SeatChange> {
    if !seats.iter().any(|seat| seat.node == leader && seat.witness) {
        return None;
    }
    // One that has yet to catch up would keep everything waiting, and perhaps not lead then.
    let can_lead =
        |seat: &&Seat| seat.votes && seat.ready && seat.whole && !seat.lost && !seat.witness;
    seats.iter().find(can_lead).map(|seat| SeatChange::Lead(seat.node))
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
/// whoever has disks, then whoever votes already.
fn spread(leader: NodeId, seats: &[Seat], size: usize) -> BTreeSet<NodeId> {
    let can_vote = |seat: &&Seat| {
        seat.listed && (seat.node == leader || !seat.lost && (seat.votes || seat.ready))
    };
    let mut left: Vec<&Seat> = seats.iter().filter(can_vote).collect();
    let (mut chosen, mut zones) = (BTreeSet::new(), BTreeSet::new());
    while chosen.len() < size {
        let rank = |seat: &&&Seat| {
            let known_zone = zones.contains(&seat.zone);
            (seat.node != leader, known_zone, seat.witness, !seat.votes, seat.node)
        };
        let Some(&best) = left.iter().min_by_key(rank) else { break };
        zones.insert(best.zone.clone());
        chosen.insert(best.node);
        left.retain(|seat| seat.node != best.node);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Dice;

    /// One seat per letter: V votes, v is a voter that is lost, R is ready, l learns, L learns and
    /// is lost, n is no member yet, N is none and was not heard of for long, W is a ready witness,
    /// w one that votes, B votes and has not all of the log just now; - after it: no node of the
    /// cluster any more. Then its zone.
    fn seats(text: &str) -> Vec<Seat> {
        let one = |(number, word): (usize, &str)| {
            let kind = word.as_bytes()[0];
            Seat {
                node: NodeId(number as u128 + 1),
                zone: word.trim_start_matches(|c: char| !c.is_ascii_digit()).into(),
                witness: b"Ww".contains(&kind),
                listed: !word.contains('-'),
                votes: b"VvwB".contains(&kind),
                learns: b"RlLW".contains(&kind),
                ready: b"VRWwB".contains(&kind),
                whole: b"VRWw".contains(&kind),
                lost: b"vLN".contains(&kind),
            }
        };
        text.split_whitespace().enumerate().map(one).collect()
    }

    #[track_caller]
    fn check(text: &str, expected: Option<SeatChange>) {
        assert_eq!(next_seat_change(NodeId(1), &seats(text)), expected, "{text}");
    }

    fn vote(add: &[u128], demote: &[u128], remove: &[u128]) -> Option<SeatChange> {
        let nodes = |ids: &[u128]| ids.iter().map(|&id| NodeId(id)).collect();
        let (add, demote, remove) = (nodes(add), nodes(demote), nodes(remove));
        Some(SeatChange::Vote { add, demote, remove })
    }

    #[test]
    fn the_next_step() {
        check("V1", None);
        check("V1 n1", Some(SeatChange::Learn(NodeId(2))));
        check("V1 N1", Some(SeatChange::Learn(NodeId(2))));
        check("V1 N1 n1", Some(SeatChange::Learn(NodeId(3))));
        check("V1 R1", None);
        check("V1 R1 l1", None);
        check("V1 R1 R1", vote(&[2, 3], &[], &[]));
        check("V1 R1 W1", vote(&[2, 3], &[], &[]));
        check("V1 V1 V1 R1", None);
        // More zones are better.
        check("V1 V1 V2 R3", vote(&[4], &[2], &[]));
        check("V1 V1 V2 l3", None);
        // Those with disks before witnesses.
        check("V1 R1 R1 W1", vote(&[2, 3], &[], &[]));
        check("V1 w1 V1", None);
        // Also where it was there first; but not where it adds a zone.
        check("V1 w1 V1 R1", vote(&[4], &[2], &[]));
        check("V1 w2 V1 R1", None);
        check("V1 w1 V1 l1", None);
        check("V1 w1 v1", None);
        // One that leads gives way to those with disks, and to nobody else.
        check("w1 V1 V1", Some(SeatChange::Lead(NodeId(2))));
        check("w1 v1 V1", Some(SeatChange::Lead(NodeId(3))));
        check("w1 v1 v1", None);
        check("w1 B1 V1", Some(SeatChange::Lead(NodeId(3))));
        check("w1 B1 B1", None);
        check("w1 R1 R1", vote(&[2, 3], &[], &[]));
        // The lost give way to those who are ready, and to nobody else.
        check("V1 V1 v1 R1", vote(&[4], &[3], &[]));
        check("V1 V1 v1 l1", None);
        check("V1 v1 v1 R1", vote(&[4], &[3], &[]));
        // Those that were removed from the cluster.
        check("V1 V1 V1- R1", vote(&[4], &[], &[3]));
        check("V1 V1 V1 R1-", Some(SeatChange::Leave(NodeId(4))));
        check("V1 V1 V1-", vote(&[], &[2], &[3]));
        check("V1- V1 V1 R1", Some(SeatChange::Lead(NodeId(3))));
        // Never an even number.
        check("V1 V1 V1 R1 l1 l1 l1", None);
        check("V1 V1 V1 R1 R1 l1 l1", vote(&[4, 5], &[], &[]));
    }

    /// Random clusters, to which random things happen between steps: no step takes a vote from
    /// more than it gives it to below the wanted number, nobody votes who is not ready, and once
    /// all are well it ends, with the wanted number in as many zones as can be.
    #[test]
    fn every_cluster_comes_to_its_voters_and_stays() {
        for seed in 0..2000 {
            let mut dice = Dice(seed);
            let nodes = 1 + dice.below(12) as usize;
            let zones = 1 + dice.below(6);
            let mut seats = seats(&"n0 ".repeat(nodes));
            for seat in &mut seats[1..] {
                seat.witness = dice.below(4) == 0;
            }
            seats.iter_mut().for_each(|seat| seat.zone = dice.below(zones).to_string());
            let first = &mut seats[0];
            (first.votes, first.ready) = (true, true);
            let mut leader = NodeId(1);
            for step in 0..120 {
                let well = step >= 60;
                for seat in &mut seats {
                    let is_member = seat.votes || seat.learns;
                    seat.lost = !well && seat.node != leader && dice.below(4) == 0;
                    seat.ready = is_member && !seat.lost && (well || dice.below(3) > 0);
                }
                let voters = seats.iter().filter(|seat| seat.votes).count();
                let Some(change) = next_seat_change(leader, &seats) else { continue };
                assert!(step < 60 + 3 * nodes, "seed {seed}: it does not end");
                let find = |node: NodeId| node.0 as usize - 1;
                match change {
                    SeatChange::Learn(node) => {
                        let place = find(node);
                        seats[place].learns = true;
                    }
                    SeatChange::Vote { add, demote, remove } => {
                        assert!(remove.is_empty() && !demote.contains(&leader));
                        assert!(add.iter().all(|&node| seats[find(node)].ready), "seed {seed}");
                        let after = voters + add.len() - demote.len();
                        assert!(after >= voters.min(wanted_voters(nodes)) && after <= VOTERS);
                        assert!(after <= voters || after % 2 == 1, "seed {seed}: {after}");
                        for (node, votes) in add
                            .into_iter()
                            .map(|node| (node, true))
                            .chain(demote.into_iter().map(|node| (node, false)))
                        {
                            let place = find(node);
                            (seats[place].votes, seats[place].learns) = (votes, !votes);
                        }
                    }
                    SeatChange::Lead(node) => {
                        let (from, to) = (&seats[find(leader)], &seats[find(node)]);
                        assert!(from.witness && !to.witness && to.votes && to.ready && !to.lost);
                        leader = node;
                        continue;
                    }
                    other => panic!("seed {seed}: {other:?}"),
                }
                // Whoever it is: another one leads.
                if !well && let Some(next) = seats.iter().find(|seat| seat.votes && !seat.lost) {
                    leader = next.node;
                }
            }
            let zones_of = |votes: bool| {
                let some = seats.iter().filter(|seat| seat.votes || !votes);
                some.map(|seat| &seat.zone).collect::<BTreeSet<_>>().len()
            };
            let wanted = wanted_voters(nodes);
            let storing = seats.iter().any(|seat| seat.votes && !seat.witness);
            let leads = seats.iter().find(|seat| seat.node == leader).expect("it is one of them");
            assert!(!storing || !leads.witness, "seed {seed}");
            assert_eq!(seats.iter().filter(|seat| seat.votes).count(), wanted, "seed {seed}");
            assert_eq!(zones_of(true), zones_of(false).min(wanted), "seed {seed}");
        }
    }

    const VOTERS: usize = proto::limits::VOTERS_MAX;
}
