//! Aligned memory for payloads, without `unsafe`: a vector of page-aligned blocks.
//!
//! A [`Buffer`] has one owner and can be written; a [`Payload`] is a shared, read-only window on
//! one, cheap to clone: the same bytes go to the disk, to peers and to the resend queue.

use crate::units::BLOCK_SIZE;
use std::{cell::RefCell, fmt, sync::Arc};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One page-aligned block: direct I/O wants memory aligned to the device's logical block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub struct Block([u8; BLOCK_SIZE]);

const ZERO: Block = Block([0; BLOCK_SIZE]);

/// Bytes of freed buffers a thread keeps for the next request: a fresh megabyte costs 256 page
/// faults, more than its disk write.
const POOL_BYTES_MAX: usize = 32 << 20;
/// Size classes of the pool: buffers of up to 2^n blocks.
const POOL_CLASSES: usize = 14;

#[derive(Default)]
struct Pool {
    free: [Vec<Vec<Block>>; POOL_CLASSES],
    bytes: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::new(Pool::default());
}

/// The class whose buffers hold `blocks`, if it is pooled.
fn class_of(blocks: usize) -> Option<usize> {
    let class = blocks.next_power_of_two().trailing_zeros() as usize;
    (class < POOL_CLASSES).then_some(class)
}

/// Page-aligned memory with one owner. Its length is a whole number of blocks.
pub struct Buffer {
    blocks: Vec<Block>,
}

impl Buffer {
    /// Zeroed memory for `bytes`, rounded up to whole blocks.
    pub fn zeroed(bytes: usize) -> Buffer {
        let mut buffer = Buffer::stale(bytes);
        buffer.as_mut_slice().fill(0);
        buffer
    }

    /// Memory for `bytes`, rounded up to whole blocks, with arbitrary old content of this process:
    /// only for callers that overwrite all of it before anybody reads it.
    pub fn stale(bytes: usize) -> Buffer {
        let count = bytes.div_ceil(BLOCK_SIZE);
        let pooled = class_of(count).and_then(|class| {
            POOL.with_borrow_mut(|pool| {
                let blocks = pool.free[class].pop()?;
                pool.bytes -= blocks.capacity() * BLOCK_SIZE;
                Some(blocks)
            })
        });
        let mut blocks = pooled.unwrap_or_else(|| {
            Vec::with_capacity(class_of(count).map_or(count, |class| 1 << class))
        });
        blocks.resize(count, ZERO);
        Buffer { blocks }
    }

    /// A copy of `bytes`, padded with zeros to whole blocks.
    pub fn copy_of(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::stale(bytes.len());
        let slice = buffer.as_mut_slice();
        slice[..bytes.len()].copy_from_slice(bytes);
        slice[bytes.len()..].fill(0);
        buffer
    }

    /// The length in bytes, a multiple of the block size.
    pub fn len(&self) -> usize {
        self.blocks.len() * BLOCK_SIZE
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.blocks.as_slice().as_bytes()
    }

    /// All bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.blocks.as_mut_slice().as_mut_bytes()
    }

    /// Ends writing: the whole buffer as a shared window.
    pub fn freeze(self) -> Payload {
        let length = self.len();
        Payload { buffer: Arc::new(self), start: 0, length }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let blocks = std::mem::take(&mut self.blocks);
        let bytes = blocks.capacity() * BLOCK_SIZE;
        if bytes == 0 || !blocks.capacity().is_power_of_two() {
            return;
        }
        let Some(class) = class_of(blocks.capacity()) else { return };
        // A thread that ends has no pool any more; then the memory is simply freed.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.bytes + bytes <= POOL_BYTES_MAX {
                pool.bytes += bytes;
                pool.free[class].push(blocks);
            }
        });
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len())
    }
}

/// A shared, read-only window on a buffer, of any alignment and length.
#[derive(Clone)]
pub struct Payload {
    buffer: Arc<Buffer>,
    start: usize,
    length: usize,
}

impl Payload {
    /// Zeros, rounded up to whole blocks.
    pub fn zeroed(bytes: usize) -> Payload {
        Buffer::zeroed(bytes).freeze()
    }

    /// The bytes of several, one after the other.
    pub fn joined(parts: &[Payload]) -> Vec<u8> {
        parts.iter().map(Payload::as_slice).collect::<Vec<_>>().concat()
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.buffer.as_slice()[self.start..self.start + self.length]
    }

    /// The window `start .. start + length` of this one.
    ///
    /// # Panics
    /// If that leaves this window: a bug of the caller.
    pub fn slice(&self, start: usize, length: usize) -> Payload {
        assert!(start + length <= self.length, "window leaves its payload");
        Payload { buffer: Arc::clone(&self.buffer), start: self.start + start, length }
    }

    /// The buffer back for writing, if nobody else holds it and the window is all of it.
    pub fn try_thaw(self) -> Result<Buffer, Payload> {
        let Payload { buffer, start, length } = self;
        if start != 0 || length != buffer.len() {
            return Err(Payload { buffer, start, length });
        }
        Arc::try_unwrap(buffer).map_err(|buffer| Payload { buffer, start, length })
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_page_aligned_and_reused() {
        let first = Buffer::zeroed(5000);
        assert_eq!(first.len(), 2 * BLOCK_SIZE);
        assert_eq!(first.as_slice().as_ptr() as usize % BLOCK_SIZE, 0);
        let at = first.as_slice().as_ptr();
        drop(first);
        let second = Buffer::stale(8192);
        assert_eq!(second.as_slice().as_ptr(), at);
    }

    #[test]
    fn windows_share_and_thaw() {
        let mut buffer = Buffer::zeroed(8192);
        buffer.as_mut_slice()[4096] = 9;
        let whole = buffer.freeze();
        let window = whole.slice(4096, 10);
        assert_eq!(window.as_slice()[0], 9);
        let whole = whole.try_thaw().expect_err("a window is still held");
        drop(window);
        assert!(whole.try_thaw().is_ok());
    }
}
