//! Snapshots on their way from a leader to others, piece by piece, one piece in flight for each.

use super::message::{Body, Chunk, OUTSIDE_COUNT_MAX};
use super::record::{Head, decode_snapshot};
use crate::state::State;
use proto::limits::{SNAPSHOT_BYTES_MAX, VOTER_CHUNK_BYTES_MAX, VOTER_HEAD_BYTES_MAX};
use raft::eraftpb::ConfState;
use std::{collections::BTreeMap, sync::Arc};

/// Ticks after which a piece that was not acknowledged is sent again.
const RETRY_TICKS: u64 = 5;
/// Ticks without progress after which a snapshot is given up; `raft` then begins a new one.
const PATIENCE_TICKS: u64 = 50;

/// A snapshot on its way to one member.
#[derive(Debug)]
struct Outgoing {
    term: u64,
    index: u64,
    bytes: Arc<Vec<u8>>,
    /// So much was acknowledged.
    taken: usize,
    sent_tick: u64,
    progress_tick: u64,
}

impl Outgoing {
    fn piece(&self) -> Body {
        let end = (self.taken + VOTER_CHUNK_BYTES_MAX).min(self.bytes.len());
        Body::Chunk(Chunk {
            term: self.term,
            index: self.index,
            offset: self.taken as u64,
            last: end == self.bytes.len(),
            bytes: self.bytes[self.taken..end].to_vec(),
        })
    }
}

/// All snapshots that a leader is sending.
#[derive(Debug, Default)]
pub(super) struct Sending {
    to: BTreeMap<u64, Outgoing>,
}

impl Sending {
    /// Begins with a snapshot; the one before it to this member is dropped.
    pub(super) fn begin(
        &mut self,
        to: u64,
        (term, index): (u64, u64),
        bytes: Arc<Vec<u8>>,
        tick: u64,
    ) -> Body {
        let outgoing =
            Outgoing { term, index, bytes, taken: 0, sent_tick: tick, progress_tick: tick };
        let piece = outgoing.piece();
        self.to.insert(to, outgoing);
        piece
    }

    /// A snapshot of this entry that is on its way already: nobody needs a second copy of it.
    pub(super) fn same(&self, index: u64) -> Option<Arc<Vec<u8>>> {
        self.to.values().find(|other| other.index == index).map(|other| other.bytes.clone())
    }

    /// The member has taken so much: the next piece, and whether it has all.
    pub(super) fn taken(
        &mut self,
        to: u64,
        (term, index): (u64, u64),
        bytes: u64,
        tick: u64,
    ) -> (Option<Body>, bool) {
        let Some(outgoing) = self.to.get_mut(&to) else { return (None, false) };
        let taken = usize::try_from(bytes).unwrap_or(usize::MAX);
        let is_other = (outgoing.term, outgoing.index) != (term, index);
        // A member that was started anew begins anew.
        let is_old = taken <= outgoing.taken && taken != 0 || taken > outgoing.bytes.len();
        if is_other || is_old {
            return (None, false);
        }
        if taken > outgoing.taken {
            outgoing.progress_tick = tick;
        }
        outgoing.taken = taken;
        if taken == outgoing.bytes.len() {
            self.to.remove(&to);
            return (None, true);
        }
        outgoing.sent_tick = tick;
        (Some(outgoing.piece()), false)
    }

    /// What is to be sent again, and who is given up.
    pub(super) fn tick(&mut self, tick: u64) -> (Vec<(u64, Body)>, Vec<u64>) {
        let late = |outgoing: &Outgoing| tick >= outgoing.progress_tick + PATIENCE_TICKS;
        let given_up: Vec<u64> =
            self.to.iter().filter(|(_, outgoing)| late(outgoing)).map(|(&to, _)| to).collect();
        self.to.retain(|_, outgoing| !late(outgoing));
        let mut again = Vec::new();
        for (&to, outgoing) in &mut self.to {
            if tick >= outgoing.sent_tick + RETRY_TICKS {
                outgoing.sent_tick = tick;
                again.push((to, outgoing.piece()));
            }
        }
        (again, given_up)
    }

    /// Drops those that are not waited for any more.
    pub(super) fn retain(&mut self, is_wanted: impl Fn(u64) -> bool) {
        self.to.retain(|&to, _| is_wanted(to));
    }

    /// The leader is none any more.
    pub(super) fn stop(&mut self) {
        self.to.clear();
    }
}

/// A snapshot that is coming.
#[derive(Debug, Default)]
pub(super) struct Receiving {
    from: u64,
    term: u64,
    index: u64,
    /// What is there of it. Memory follows what came, not what was announced.
    bytes: Vec<u8>,
}

/// A whole snapshot, decoded and judged.
pub(super) struct Received {
    pub(super) head: Head,
    pub(super) members: ConfState,
    pub(super) state: State,
    /// The state as it came.
    pub(super) state_bytes: Vec<u8>,
}

impl Receiving {
    /// Takes a piece: the acknowledgement, and the snapshot when it is whole.
    pub(super) fn take(&mut self, from: u64, chunk: Chunk) -> (Option<Body>, Option<Vec<u8>>) {
        let name = (from, chunk.term, chunk.index);
        if (self.from, self.term, self.index) != name {
            if chunk.term < self.term {
                return (None, None);
            }
            (self.from, self.term, self.index) = name;
            self.bytes = Vec::new();
        }
        let have = self.bytes.len();
        let end = have + chunk.bytes.len();
        if chunk.offset == have as u64 && end <= SNAPSHOT_BYTES_MAX + VOTER_HEAD_BYTES_MAX {
            self.bytes.extend_from_slice(&chunk.bytes);
            if chunk.last {
                let whole = std::mem::take(self);
                let (term, index, bytes) = (whole.term, whole.index, whole.bytes);
                let taken = Body::ChunkTaken { term, index, bytes: bytes.len() as u64 };
                return (Some(taken), Some(bytes));
            }
        }
        let bytes = self.bytes.len() as u64;
        (Some(Body::ChunkTaken { term: self.term, index: self.index, bytes }), None)
    }
}

impl Received {
    /// Nothing if the snapshot is not one.
    pub(super) fn of(bytes: &[u8]) -> Option<Received> {
        let (head, state_bytes) = decode_snapshot(bytes).ok()?;
        let sessions = head.roster.sessions.values();
        let counts = sessions.flat_map(|session| [session.instance, session.number, session.index]);
        let counts = counts.chain([
            head.index,
            head.term,
            head.roster.recovery.map_or(0, |recovery| recovery.count),
        ]);
        if counts.max() > Some(OUTSIDE_COUNT_MAX) {
            return None;
        }
        let members = head.members.clone().judged(&head.roster).ok()?;
        let state = State::decode(state_bytes).ok()?;
        Some(Received { head, members, state, state_bytes: state_bytes.to_vec() })
    }
}
