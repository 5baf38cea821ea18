//! Reads: from one member that has everything acknowledged, another one if its copy is damaged.

use crate::coordinator::{Coordinator, Pending};
use crate::event::{Answer, Effect, Error};
use crate::peer::{PeerIndex, PeerSet};
use proto::{BLOCK_SIZE, BlockRange, MemberError, MemberReply, MemberRequest};
use std::collections::BTreeMap;

/// A read, of content or of its kind.
#[derive(Debug)]
pub(crate) struct Read {
    /// Of the request.
    pub(crate) token: u64,
    index: u32,
    blocks: BlockRange,
    /// Whether only the kind of content is wanted.
    kind_only: bool,
    /// Members that could not bring it, and why the last of them could not.
    tried: PeerSet,
    error: Option<Error>,
}

impl Coordinator {
    pub(crate) fn begin_read(
        &mut self,
        token: u64,
        index: u32,
        blocks: BlockRange,
        kind_only: bool,
        effects: &mut Vec<Effect>,
    ) {
        let tried = PeerSet::default();
        let read = Read { token, index, blocks, kind_only, tried, error: None };
        let number = self.reads.insert(read);
        self.try_read(number, effects);
    }

    /// Asks the next member, or lets the read wait for one, or fails it when all were asked.
    fn try_read(&mut self, number: u64, effects: &mut Vec<Effect>) {
        let read = self.reads.at(number).expect("a read is there until it ends");
        let (index, blocks, tried) = (read.index, read.blocks, read.tried);
        let members = self.members_of(index);
        let chosen = members.iter().find(|member| {
            let peer = &self.peers[usize::from(*member)];
            let whole = members.len() == 1 || (peer.complete && peer.lagging.is_empty());
            self.is_ready(*member) && whole && !tried.contains(*member)
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
        let (lineage, generation, key) = (self.lineage, self.generation, self.key(index));
        let request = if read.kind_only {
            MemberRequest::Map { lineage, key, generation, blocks }
        } else {
            MemberRequest::Read { lineage, key, generation, blocks }
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
        let answer = match reply {
            MemberReply::Data { content: payloads, .. } if !read.kind_only => {
                let whole = payloads
                    .iter()
                    .all(|payload| !payload.is_empty() && payload.len().is_multiple_of(BLOCK_SIZE));
                let bytes: usize = payloads.iter().map(|payload| payload.len()).sum();
                (whole && bytes == read.blocks.bytes()).then_some(Answer::Data(payloads))
            }
            MemberReply::Map(runs) if read.kind_only => {
                let blocks: u64 = runs.iter().map(|(count, _)| u64::from(*count)).sum();
                (blocks == u64::from(read.blocks.count())).then_some(Answer::Map(runs))
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
