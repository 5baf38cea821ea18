//! Tests that reach into an open store: a sparse device in memory and a host that drives one store
//! on it, doing all there is to do at once.

mod root;
mod scarce;

use super::{Serving, Stage, Store};
use crate::layout::Run;
use crate::space::{CHUNK_BLOCKS, Purpose};
use crate::{
    Effect, Event, Format, FormatOptions, Identity, LOG_BYTES_MIN, MediumKind, Notice, OpenError,
    Options,
};
use proto::{
    BLOCK_SIZE, Buffer, ClusterId, DiskDone, DiskError, DiskId, DiskOp, DiskRequest, MemberError,
    MemberReply, NodeId, Time,
};
use std::collections::{BTreeMap, VecDeque};

const NOW: Time = Time(1_000_000_000);

/// A device: blocks by address; all others are zero.
#[derive(Clone)]
struct Medium {
    bytes: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Medium {
    /// A disk with this many chunks of space.
    fn formatted(chunks: u32) -> Medium {
        let space = u64::from(chunks) * u64::from(CHUNK_BLOCKS) * BLOCK_SIZE as u64;
        let bytes = 3 * BLOCK_SIZE as u64 + LOG_BYTES_MIN + space;
        let options = FormatOptions {
            identity: Identity { cluster: ClusterId(1), node: NodeId(2), disk: DiskId(3) },
            kind: MediumKind::Device,
            medium_bytes: bytes,
            limit_bytes: None,
            log_bytes: Some(LOG_BYTES_MIN),
            created_unix_s: 1,
        };
        let mut medium = Medium { bytes, blocks: BTreeMap::new() };
        let mut operations = Vec::new();
        let mut format = Format::new(options, &mut operations).expect("it is large enough");
        while let Some(DiskOp { token, request }) = operations.pop() {
            let result = medium.perform(request);
            if let Some(outcome) = format.handle(DiskDone { token, result }, &mut operations) {
                outcome.expect("it is blank");
            }
        }
        medium
    }

    fn perform(&mut self, request: DiskRequest) -> Result<Option<Buffer>, DiskError> {
        match request {
            DiskRequest::Read { offset, mut buffer } => {
                let first = offset / BLOCK_SIZE as u64;
                for (at, block) in (first..).zip(buffer.as_mut_slice().chunks_mut(BLOCK_SIZE)) {
                    match self.blocks.get(&at) {
                        Some(content) => block.copy_from_slice(content),
                        None => block.fill(0),
                    }
                }
                Ok(Some(buffer))
            }
            DiskRequest::Write { offset, payloads } => {
                let mut at = offset / BLOCK_SIZE as u64;
                for payload in payloads {
                    for block in payload.as_slice().chunks(BLOCK_SIZE) {
                        self.blocks.insert(at, block.to_vec());
                        at += 1;
                    }
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    fn flip(&mut self, address: u64) {
        self.blocks.get_mut(&address).expect("something is there")[1000] ^= 2;
    }
}

/// A store on its medium, and what it said.
struct Host {
    store: Store,
    medium: Medium,
    opened: Option<Result<(), OpenError>>,
    notices: Vec<Notice>,
    replies: Vec<Result<MemberReply, MemberError>>,
    /// Whether reads of the medium are kept, and those that are.
    holding: bool,
    held: Vec<DiskOp>,
}

impl Host {
    fn open(medium: Medium) -> Host {
        let mut effects = Vec::new();
        let options = Options::new(MediumKind::Device, medium.bytes);
        let store = Store::open(NOW, options, &mut effects);
        let mut host = Host {
            store,
            medium,
            opened: None,
            notices: Vec::new(),
            replies: Vec::new(),
            holding: false,
            held: Vec::new(),
        };
        host.run(effects);
        host
    }

    /// Does all there is to do, without passing time.
    fn run(&mut self, effects: Vec<Effect>) {
        let mut todo = VecDeque::from(effects);
        loop {
            let mut effects = Vec::new();
            match todo.pop_front() {
                Some(Effect::Disk(operation))
                    if self.holding && matches!(operation.request, DiskRequest::Read { .. }) =>
                {
                    self.held.push(operation);
                }
                Some(Effect::Disk(DiskOp { token, request })) => {
                    let result = self.medium.perform(request);
                    let done = Event::Disk(DiskDone { token, result });
                    self.store.handle(NOW, done, &mut effects);
                }
                Some(Effect::Opened(result)) => self.opened = Some(result.map(|_| ())),
                Some(Effect::Notice(notice)) => self.notices.push(notice),
                Some(Effect::MendEnded { .. }) => {}
                Some(Effect::Member { result, .. }) => self.replies.push(result),
                Some(Effect::Closed | Effect::AgreedNoted) => {}
                None => {
                    self.store.poll(NOW, &mut effects);
                    if effects.is_empty() {
                        return;
                    }
                }
            }
            todo.extend(effects);
        }
    }

    /// Hands over some events in one round.
    fn events(&mut self, events: impl IntoIterator<Item = Event>) {
        let mut effects = Vec::new();
        events.into_iter().for_each(|event| self.store.handle(NOW, event, &mut effects));
        self.run(effects);
    }

    fn serving(&mut self) -> &mut Serving {
        match &mut self.store.stage {
            Stage::Serving(serving) => serving,
            _ => panic!("the disk does not serve: {:?}", self.opened),
        }
    }

    /// Takes all available blocks but some out of the store's hands; returns which. To the store
    /// they are as lost as those of a damaged map page.
    fn leave(&mut self, blocks: u64) -> Vec<u64> {
        let serving = self.serving();
        let mut taken = Vec::new();
        let count = serving.space.available() - blocks;
        serving.space.allocate(Purpose::Metadata, count as u32, &mut taken);
        serving.lost_blocks += count;
        taken.iter().flat_map(Run::iter).collect()
    }

    /// Gives such a block back.
    fn give(&mut self, taken: &mut Vec<u64>) {
        let address = taken.pop().expect("there are some left");
        let serving = self.serving();
        serving.space.give(Run { address, count: 1 });
        serving.lost_blocks -= 1;
    }

    /// Lets the reads that were kept end.
    fn release_reads(&mut self) {
        self.holding = false;
        let held = std::mem::take(&mut self.held);
        self.run(held.into_iter().map(Effect::Disk).collect());
    }
}
