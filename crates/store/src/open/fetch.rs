//! A list of reads to be done, several at a time.

use crate::Effect;
use crate::store::{Operation, Operations};

/// Reads under way at most.
const UNDER_WAY_MAX: usize = 32;
/// Blocks read with one operation at most.
pub(crate) const FETCH_BLOCKS_MAX: u32 = 256;

/// See the module's description.
#[derive(Default)]
pub(crate) struct Fetch {
    items: Vec<(u64, u32)>,
    next: usize,
    under_way: usize,
}

impl Fetch {
    /// Adds a read of `blocks` blocks; returns its item number.
    pub(crate) fn add(&mut self, address: u64, blocks: u32) -> usize {
        self.items.push((address, blocks));
        self.items.len() - 1
    }

    /// Adds a block to the last read if it follows it; else adds a read. Returns the item number
    /// and the block's place in it.
    pub(crate) fn add_block(&mut self, address: u64) -> (usize, u32) {
        let last = self.items.len().saturating_sub(1);
        if let Some((first, count)) = self.items.last_mut()
            && *first + u64::from(*count) == address
            && *count < FETCH_BLOCKS_MAX
        {
            *count += 1;
            return (last, *count - 1);
        }
        (self.add(address, 1), 0)
    }

    /// Where an item begins.
    pub(crate) fn address(&self, item: usize) -> u64 {
        self.items[item].0
    }

    /// How many blocks an item has.
    pub(crate) fn blocks(&self, item: usize) -> u32 {
        self.items[item].1
    }

    /// Asks for the next items.
    pub(crate) fn step(&mut self, operations: &mut Operations, effects: &mut Vec<Effect>) {
        while self.under_way < UNDER_WAY_MAX && self.next < self.items.len() {
            let (address, blocks) = self.items[self.next];
            operations.read(Operation::Open(self.next), address, blocks as usize, effects);
            self.next += 1;
            self.under_way += 1;
        }
    }

    /// An item is done; which one it was.
    pub(crate) fn done(&mut self, operation: &Operation) -> usize {
        let Operation::Open(item) = operation else { unreachable!("only reads are under way") };
        self.under_way -= 1;
        *item
    }

    /// Whether all items are done.
    pub(crate) fn is_over(&self) -> bool {
        self.under_way == 0 && self.next == self.items.len()
    }

    /// Begins a new list.
    pub(crate) fn clear(&mut self) {
        assert!(self.is_over(), "reads are still under way");
        self.items.clear();
        self.next = 0;
    }
}
