//! Reads: from one member that has everything acknowledged, another one if its copy is damaged.

use crate::coordinator::{Coordinator, Pending};
use crate::event::{Answer, Effect, Error, Source};
use crate::peer::{PeerIndex, PeerSet};
use proto::{
    BLOCK_SIZE, BlockRange, Generation, LayerId, MemberError, MemberReply, MemberRequest, ObjectKey,
};
use std::collections::BTreeMap;

/// What is wanted of the blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Want {
    Content,
    /// Only the kind of content.
    Kind,
    /// What is otherwise than in this layer.
    Difference(LayerId),
}

/// A read, of content or of its kind.
#[derive(Debug)]
pub(crate) struct Read {
    /// Of the request.
    pub(crate) token: u64,
    source: Source,
    index: u32,
    blocks: BlockRange,
    want: Want,
    /// Members that could not bring it, and why the last of them could not.
    tried: PeerSet,
    error: Option<Error>,
}

impl Coordinator {
    pub(crate) fn begin_read(
        &mut self,
        token: u64,
        source: Source,
        index: u32,
        blocks: BlockRange,
        want: Want,
        effects: &mut Vec<Effect>,
    ) {
        let tried = PeerSet::default();
        let read = Read { token, source, index, blocks, want, tried, error: None };
        let number = self.reads.insert(read);
        self.try_read(number, effects);
    }

    /// Asks the next member, or lets the read wait for one, or fails it when all were asked.
    fn try_read(&mut self, number: u64, effects: &mut Vec<Effect>) {
        let read = self.reads.at(number).expect("a read is there until it ends");
        let &Read { source, index, blocks, want, tried, .. } = read;
        let lineage = match source {
            Source::Own => self.lineage,
            Source::Origin { lineage, .. } => lineage,
        };
        let members = self.members_in(lineage, index);
        let chosen = members.iter().find(|member| {
            let peer = &self.peers[usize::from(*member)];
            let alone = members.len() == 1;
            let serves = match source {
                Source::Own => {
                    let whole = alone || (peer.complete && peer.lagging.is_empty());
                    whole && peer.knows_a_layer()
                }
                // Sealed and stable: what any of them has of it is all of it.
                Source::Origin { .. } => true,
            };
            self.is_ready(*member) && serves && !tried.contains(*member)
        });
        let Some(peer) = chosen else {
            if members.iter().all(|member| tried.contains(member)) && !tried.is_empty() {
                let read = self.reads.remove(number).expect("just seen");
                let error = read.error.expect("whoever was tried gave an error");
                effects.push(Effect::Done { token: read.token, result: Err(error) });
            } else {
                self.park_read(number);
            }
            return;
        };
        let (key, generation) = match source {
            Source::Own => (self.key_at(peer, index), self.generation),
            Source::Origin { layer, .. } => (ObjectKey { layer, index }, Generation::SEALED),
        };
        let under = match generation {
            Generation::SEALED => None,
            _ => Some(self.map.under_of(lineage, index)),
        };
        let request = match want {
            Want::Content => MemberRequest::Read { lineage, key, generation, under, blocks },
            Want::Kind => MemberRequest::Map { lineage, key, generation, under, blocks },
            Want::Difference(base) => {
                MemberRequest::Difference { lineage, key, generation, under, base, blocks }
            }
        };
        self.ask(Pending::Read { peer, read: number }, request, effects);
    }

    /// The read waits for a disk that serves.
    pub(crate) fn park_read(&mut self, number: u64) {
        self.parked.push_back(number);
    }

    /// Reads that wait are tried again.
    pub(crate) fn retry_reads(&mut self, effects: &mut Vec<Effect>) {
        for number in std::mem::take(&mut self.parked) {
            self.try_read(number, effects);
        }
    }

    /// A member brings something: it is checked before it is believed.
    pub(crate) fn handle_content(
        &mut self,
        peer: PeerIndex,
        number: u64,
        reply: MemberReply,
        effects: &mut Vec<Effect>,
    ) {
        let read = self.reads.at(number).expect("a read is there until it ends");
        let blocks = read.blocks;
        let answer = match (reply, read.want) {
            (MemberReply::Data { content, absent }, Want::Content) => {
                let whole = content
                    .iter()
                    .all(|payload| !payload.is_empty() && payload.len().is_multiple_of(BLOCK_SIZE));
                let bytes: usize = content.iter().map(|payload| payload.len()).sum();
                let makes_sense = whole && bytes == blocks.bytes() && lie_in(&absent, blocks);
                makes_sense.then_some(Answer::Data { content, absent })
            }
            (MemberReply::Map(runs), Want::Kind) => {
                covers(&runs, blocks).then_some(Answer::Map(runs))
            }
            (MemberReply::Difference(runs), Want::Difference(_)) => {
                covers(&runs, blocks).then_some(Answer::Difference(runs))
            }
            _ => None,
        };
        let Some(answer) = answer else {
            self.handle_nonsense(peer, Pending::Read { peer, read: number });
            return;
        };
        let read = self.reads.remove(number).expect("just seen");
        effects.push(Effect::Done { token: read.token, result: Ok(answer) });
    }

    pub(crate) fn handle_read_error(
        &mut self,
        peer: PeerIndex,
        number: u64,
        error: MemberError,
        effects: &mut Vec<Effect>,
    ) {
        let disk = self.peers[usize::from(peer)].disk;
        let read = self.reads.at_mut(number).expect("a read is there until it ends");
        let error = match error {
            MemberError::Busy | MemberError::WrongConfiguration { .. } => {
                self.park_read(number);
                return;
            }
            MemberError::Corrupt { key, block } => Error::Corrupt { key, block },
            error => Error::Io(format!("disk {disk} refused a read ({error}); report this bug")),
        };
        read.tried.insert(peer);
        read.error = Some(error);
        self.try_read(number, effects);
    }

    pub(crate) fn check_reads(&self) {
        let mut waits: BTreeMap<u64, usize> = BTreeMap::new();
        for (_, pending) in self.tokens.iter() {
            if let Pending::Read { read, .. } = pending {
                *waits.entry(*read).or_default() += 1;
            }
        }
        for number in &self.parked {
            *waits.entry(*number).or_default() += 1;
        }
        assert_eq!(waits.len(), self.reads.len(), "reads and what they wait for");
        for (number, read) in self.reads.iter() {
            assert_eq!(waits.get(&number), Some(&1), "a read waits for one thing: {read:?}");
        }
    }
}

/// Whether the runs are all of the blocks asked for.
fn covers<T>(runs: &[(u32, T)], blocks: BlockRange) -> bool {
    let count: u64 = runs.iter().map(|(count, _)| u64::from(*count)).sum();
    count == u64::from(blocks.count())
}

/// Whether the ranges lie in the blocks asked for, in order and apart from one another.
fn lie_in(ranges: &[BlockRange], blocks: BlockRange) -> bool {
    let mut at = blocks.first();
    ranges.iter().all(|range| {
        let follows = range.first() >= at;
        at = range.end();
        follows && range.end() <= blocks.end()
    })
}
