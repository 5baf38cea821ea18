//! What is agreed beside the state: who the members are, and which proposals were applied.

use crate::command::DecodeError;
use proto::limits::{LEARNERS_MAX, SESSIONS_MAX, VOTERS_MAX};
use proto::wire::Era;
use proto::{NodeId, crc64};
use raft::eraftpb::ConfState;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Names a proposal for ever: it is applied once, however often it gets into the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct ProposalId {
    /// The member that proposes.
    pub(super) member: u64,
    /// Grows with each start of it that proposes anything.
    pub(super) instance: u64,
    /// From 1, by one.
    pub(super) number: u64,
}

/// How far the proposals of one member are applied: all of an instance up to a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) instance: u64,
    pub(super) number: u64,
    /// Where the last of them stands in the log.
    pub(super) index: u64,
}

/// A forced change of members, after which the members of before are another group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Recovery {
    /// Counts them.
    pub count: u64,
    /// The last entry that the node had, and with it the last that survived.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// From whose log the cluster went on.
    pub node: NodeId,
    /// When, in seconds since 1970.
    pub unix_s: u64,
}

impl Recovery {
    /// The life of the log that it began. Two of the same count have other numbers, unless they are
    /// the same: what is said in one is not heard in the other.
    pub fn era(&self) -> Era {
        let bytes = postcard::to_stdvec(self).expect("it only has serializable fields");
        let number = self.count << 32 | crc64(&bytes) & u64::from(u32::MAX);
        Era { number, index: self.index, term: self.term }
    }
}

/// Agreed as the state is, by the same entries.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Roster {
    pub(super) nodes: BTreeMap<u64, NodeId>,
    pub(super) sessions: BTreeMap<u64, Session>,
    pub(super) recovery: Option<Recovery>,
}

/// What Raft calls a node: the lower half of its id, which is drawn at random. 0 is nobody.
pub(super) fn member_of(node: NodeId) -> u64 {
    node.0 as u64
}

impl Roster {
    /// That of a node which is alone.
    pub(super) fn alone(node: NodeId) -> Roster {
        Roster { nodes: [(member_of(node), node)].into(), ..Roster::default() }
    }

    /// Whether a proposal is the next of its member; it counts as applied from now on. Others are
    /// duplicates, or came before one that is still missing.
    pub(super) fn admit(&mut self, id: ProposalId, index: u64) -> bool {
        let session = self.sessions.get(&id.member).copied().unwrap_or_default();
        let is_next = id.instance == session.instance && id.number == session.number + 1
            || id.instance > session.instance && id.number == 1;
        if is_next {
            let session = Session { instance: id.instance, number: id.number, index };
            self.sessions.insert(id.member, session);
            self.forget_the_oldest();
        }
        is_next
    }

    /// Members that left long ago need no session any more.
    fn forget_the_oldest(&mut self) {
        if self.sessions.len() > SESSIONS_MAX {
            let gone = self.sessions.iter().filter(|(member, _)| !self.nodes.contains_key(member));
            if let Some((&oldest, _)) = gone.min_by_key(|(_, session)| session.index) {
                self.sessions.remove(&oldest);
            }
        }
    }

    /// Learns the names that came with a change of members, and forgets who is none any more.
    pub(super) fn rename(&mut self, named: &[NodeId], members: &ConfState) {
        self.nodes.extend(named.iter().map(|&node| (member_of(node), node)));
        let present: BTreeSet<u64> = all_members(members).collect();
        self.nodes.retain(|member, _| present.contains(member));
    }

    /// The present life of the log.
    pub(super) fn era(&self) -> Era {
        self.recovery.map_or(Era::default(), |recovery| recovery.era())
    }
}

/// Every member, some perhaps twice.
pub(super) fn all_members(members: &ConfState) -> impl Iterator<Item = u64> + '_ {
    let learners = members.learners.iter().chain(&members.learners_next);
    members.voters.iter().chain(&members.voters_outgoing).chain(learners).copied()
}

/// The members, as they are written.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Members {
    voters: Vec<u64>,
    learners: Vec<u64>,
    voters_outgoing: Vec<u64>,
    learners_next: Vec<u64>,
    auto_leave: bool,
}

impl Members {
    pub(super) fn of(members: &ConfState) -> Members {
        let sorted = |ids: &[u64]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        };
        Members {
            voters: sorted(&members.voters),
            learners: sorted(&members.learners),
            voters_outgoing: sorted(&members.voters_outgoing),
            learners_next: sorted(&members.learners_next),
            auto_leave: members.auto_leave,
        }
    }

    /// As `raft` wants them, once they are judged: anything else makes it panic.
    pub(super) fn judged(self, roster: &Roster) -> Result<ConfState, DecodeError> {
        let contradiction = |what| Err(DecodeError::Contradiction(what));
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        let (voters, learners) = (set(&self.voters), set(&self.learners));
        let (outgoing, next) = (set(&self.voters_outgoing), set(&self.learners_next));
        let lists = [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next];
        let unique = voters.len() + learners.len() + outgoing.len() + next.len();
        if lists.iter().map(|list| list.len()).sum::<usize>() != unique {
            return contradiction("a member that is listed twice");
        }
        if voters.is_empty() || voters.len() > VOTERS_MAX || outgoing.len() > VOTERS_MAX {
            return contradiction("the number of voters");
        }
        if learners.len() + next.len() > LEARNERS_MAX {
            return contradiction("the number of learners");
        }
        let roles_are_disjoint = learners.is_disjoint(&voters)
            && learners.is_disjoint(&outgoing)
            && next.is_disjoint(&voters)
            && next.is_subset(&outgoing);
        if !roles_are_disjoint || (self.auto_leave && outgoing.is_empty()) {
            return contradiction("members with two roles");
        }
        let present: BTreeSet<u64> =
            [&voters, &learners, &outgoing].into_iter().flatten().copied().collect();
        let named: BTreeSet<u64> = roster.nodes.keys().copied().collect();
        if present != named || present.contains(&0) {
            return contradiction("a member without a name");
        }
        if roster.nodes.iter().any(|(&member, &node)| member_of(node) != member) {
            return contradiction("a member with another node's name");
        }
        Ok(ConfState {
            voters: self.voters,
            learners: self.learners,
            voters_outgoing: self.voters_outgoing,
            learners_next: self.learners_next,
            auto_leave: self.auto_leave,
        })
    }
}
