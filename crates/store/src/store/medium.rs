//! Operations on the medium: what each was for, until it is done.

use crate::Effect;
use crate::table::Slot;
use proto::{BLOCK_SIZE, Buffer, DiskOp, DiskRequest, DiskToken, Payload};
use std::collections::BTreeMap;

/// What an operation was for.
#[derive(Debug)]
pub(crate) enum Operation {
    /// Data of a record.
    Data { lsn: u64 },
    /// Content that is staged.
    Staged { write: u64 },
    /// A batch of the log.
    Batch { sequence: u64 },
    /// A flush.
    Flush,
    /// A piece of a member's read.
    Read { read: u64, piece: usize },
    /// A map page that is needed.
    LoadPage { slot: Slot, page: u8 },
    /// Map pages of the checkpoint under way: where they are cached, and whose they are.
    MapPages { pages: Vec<(u32, Slot, u8)> },
    /// Pages or the root of the checkpoint under way.
    CheckpointPages,
    /// The superblock that makes a checkpoint valid.
    Superblock,
    /// Chunks that become allocated, with zeros written to them or not.
    Grow { first: u32, count: u32, zeroed: bool },
    /// Chunks that become holes.
    GiveBack { first: u32, count: u32 },
    /// A piece of the scrub; its number.
    Scrub { piece: u64 },
    /// A block that could not be read together with others.
    Doubt,
    /// A damaged block that is written anew.
    Mend { address: u64 },
    /// The same, read again.
    MendRead { address: u64 },
    /// While the disk is opened: the meaning is in a list there.
    Open(usize),
}

/// The operations under way.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    next: u64,
    under_way: BTreeMap<u64, Operation>,
}

impl Operations {
    /// Asks the medium for something.
    pub(crate) fn submit(
        &mut self,
        operation: Operation,
        request: DiskRequest,
        effects: &mut Vec<Effect>,
    ) {
        self.next += 1;
        self.under_way.insert(self.next, operation);
        effects.push(Effect::Disk(DiskOp { token: DiskToken(self.next), request }));
    }

    /// Asks for `blocks` blocks from an address on.
    pub(crate) fn read(
        &mut self,
        operation: Operation,
        address: u64,
        blocks: usize,
        effects: &mut Vec<Effect>,
    ) {
        let buffer = Buffer::stale(blocks * BLOCK_SIZE);
        let request = DiskRequest::Read { offset: address * BLOCK_SIZE as u64, buffer };
        self.submit(operation, request, effects);
    }

    /// Writes whole blocks from an address on.
    pub(crate) fn write(
        &mut self,
        operation: Operation,
        address: u64,
        payload: Payload,
        effects: &mut Vec<Effect>,
    ) {
        let offset = address * BLOCK_SIZE as u64;
        let request = DiskRequest::Write { offset, payloads: vec![payload] };
        self.submit(operation, request, effects);
    }

    /// What the finished operation was for.
    ///
    /// # Panics
    /// If it was not under way: the driver answered twice, or something else's.
    pub(crate) fn finish(&mut self, token: DiskToken) -> Operation {
        self.under_way.remove(&token.0).expect("the medium finished what was never asked")
    }

    /// Whether a superblock is being written.
    pub(crate) fn is_writing_superblock(&self) -> bool {
        self.under_way.values().any(|operation| matches!(operation, Operation::Superblock))
    }

    /// How many are under way.
    pub(crate) fn count(&self) -> usize {
        self.under_way.len()
    }
}
