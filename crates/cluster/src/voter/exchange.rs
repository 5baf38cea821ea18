//! What members say to one another, from bytes and to bytes.

use super::chunks::Received;
use super::message::{self, Body, Chunk, OUTSIDE_COUNT_MAX};
use super::roster::member_of;
use super::{ELECTION_TICKS, Effect, Log, Voter};
use proto::{NodeId, Time};
use raft::eraftpb::{HardState, Message, MessageType, Snapshot};
use raft::{ProgressState, SnapshotStatus};
use std::sync::Arc;

impl Voter {
    /// The number of the era that it speaks in.
    fn era_number(&self) -> u64 {
        match self.follows {
            Some(era) => era.number,
            None if self.durable.members.voters.is_empty() => self.heard_era,
            None => self.roster.era().number,
        }
    }

    pub(super) fn receive(
        &mut self,
        now: Time,
        from: NodeId,
        bytes: &[u8],
        effects: &mut Vec<Effect>,
    ) {
        let is_silent = self.writing.failed.is_some() || self.writing.is_recovering();
        if is_silent || self.ticks < self.full_until {
            return;
        }
        // What is not understood, and what belongs to another era, is as good as lost.
        let Ok((era, body)) = Body::decode(bytes) else { return };
        if self.durable.members.voters.is_empty() && self.follows.is_none() {
            self.heard_era = era;
        } else if era != self.era_number() {
            return;
        }
        self.watch.hear(from, now);
        let from = member_of(from);
        match body {
            Body::Raft(bytes) => self.receive_raft(from, &bytes),
            Body::Proposals { instance, first, commands } => {
                self.take_proposals(from, instance, first, &commands);
            }
            Body::Chunk(chunk) => self.receive_chunk(from, chunk, effects),
            Body::ChunkTaken { term, index, bytes } => {
                let (next, is_whole) = self.sending.taken(from, (term, index), bytes, self.ticks);
                if let Some(body) = next {
                    self.tell(from, body, effects);
                }
                if is_whole {
                    self.raft.report_snapshot(from, SnapshotStatus::Finish);
                }
            }
        }
    }

    fn receive_raft(&mut self, from: u64, bytes: &[u8]) {
        let (committed, log) = (self.raft.raft.raft_log.committed, self.raft.store());
        let Ok(message) = message::judged(bytes, from, self.member, committed, log) else { return };
        if message.get_msg_type() == MessageType::MsgTimeoutNow {
            self.call = Some((message, self.ticks));
            return;
        }
        // An error says that it was of no use.
        let _ = self.raft.step(message);
    }

    /// Does as the leader wished, once everything is durable; `raft` drops it where the term is
    /// over.
    pub(super) fn answer_call(&mut self) {
        if self.may_campaign()
            && let Some((message, tick)) = self.call.take()
            && self.ticks < tick + ELECTION_TICKS
        {
            let _ = self.raft.step(message);
        }
    }

    fn receive_chunk(&mut self, from: u64, chunk: Chunk, effects: &mut Vec<Effect>) {
        if chunk.term < self.raft.raft.term || chunk.term.max(chunk.index) > OUTSIDE_COUNT_MAX {
            return;
        }
        let term = chunk.term;
        let (taken, whole) = self.receiving.take(from, chunk);
        if let Some(body) = taken {
            self.tell(from, body, effects);
        }
        let Some(received) = whole.and_then(|bytes| Received::of(&bytes)) else { return };
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (received.head.index, received.head.term);
        *metadata.mut_conf_state() = received.members.clone();
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        (message.from, message.to, message.term) = (from, self.member, term);
        message.set_snapshot(snapshot);
        self.received = Some(received);
        let _ = self.raft.step(message);
    }

    pub(super) fn tell(&self, to: u64, body: Body, effects: &mut Vec<Effect>) {
        // A node that has no members yet answers who spoke to it.
        let speaker = self.watch.speaker.filter(|&node| member_of(node) == to);
        if let Some(to) = self.roster.nodes.get(&to).copied().or(speaker) {
            effects.push(Effect::Send { to, bytes: body.encode(self.era_number()) });
        }
    }

    pub(super) fn send(&mut self, messages: Vec<Message>, effects: &mut Vec<Effect>) {
        for message in messages {
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.send_snapshot(&message, effects);
            } else {
                self.tell(message.to, Body::of(&message), effects);
            }
        }
    }

    /// The snapshot that `raft` wants sent is that of the state now, or comes too late.
    fn send_snapshot(&mut self, message: &Message, effects: &mut Vec<Effect>) {
        let (to, metadata) = (message.to, message.get_snapshot().get_metadata());
        if metadata.index != self.durable.applied || !self.leads() {
            return self.raft.report_snapshot(to, SnapshotStatus::Failure);
        }
        let bytes = self.sending.same(metadata.index).unwrap_or_else(|| {
            let own = Log::default();
            Arc::new(self.encode_snapshot(metadata.term, &HardState::default(), 0, &own))
        });
        let name = (message.term, metadata.index);
        let body = self.sending.begin(to, name, bytes, self.ticks);
        self.tell(to, body, effects);
    }

    /// The pieces of snapshots that were lost, perhaps.
    pub(super) fn send_chunks(&mut self, effects: &mut Vec<Effect>) {
        let raft = &self.raft.raft;
        self.sending.retain(|to| {
            raft.prs().get(to).is_some_and(|one| one.state == ProgressState::Snapshot)
        });
        let (again, given_up) = self.sending.tick(self.ticks);
        for (to, body) in again {
            self.tell(to, body, effects);
        }
        for to in given_up {
            self.raft.report_snapshot(to, SnapshotStatus::Failure);
        }
    }
}
