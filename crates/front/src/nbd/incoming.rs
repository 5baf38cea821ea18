//! The payload of a write on its way in.

use super::wire::RequestHeader;
use proto::{BLOCK_SIZE, Buffer};

/// How much more than what arrived is allocated for a payload. A client gets memory for what it
/// sent, not for what it claims it will send.
const GROWTH: usize = 16;
/// Memory that is allocated for any payload, in bytes.
const FIRST_BYTES: usize = 64 << 10;
/// From this many missing bytes on it pays to read the socket straight into the buffer. Below,
/// one read that brings several requests is better.
const DIRECT_BYTES_MIN: usize = 32 << 10;

/// A write whose payload is arriving. The bytes go to their place in a buffer that covers whole
/// blocks, so nobody has to move them later.
///
/// Never holds more than sixteen times of what arrived, or 64 KiB.
#[derive(Debug)]
pub struct Incoming {
    pub header: RequestHeader,
    buffer: Buffer,
    /// Where the payload starts in the buffer.
    start: usize,
    /// Payload bytes that arrived.
    filled: usize,
}

impl Incoming {
    /// Memory of the buffer when all arrived, in bytes.
    pub fn bytes(header: &RequestHeader) -> usize {
        (start_of(header) + header.length as usize).next_multiple_of(BLOCK_SIZE)
    }

    /// Starts to receive the payload of `header`; `waiting` bytes of it are already there.
    pub fn new(header: RequestHeader, waiting: usize) -> Incoming {
        let mut incoming =
            Incoming { header, buffer: Buffer::stale(0), start: start_of(&header), filled: 0 };
        incoming.grow(waiting);
        incoming
    }

    /// Payload bytes that did not arrive yet.
    pub fn missing(&self) -> usize {
        self.header.length as usize - self.filled
    }

    /// Takes from the start of `bytes` what belongs to the payload; returns how much that was.
    pub fn fill_from(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.missing());
        if count > self.room() {
            self.grow(count);
        }
        let at = self.start + self.filled;
        self.buffer.as_mut_slice()[at..at + count].copy_from_slice(&bytes[..count]);
        self.filled += count;
        count
    }

    /// Where the next payload bytes belong, if it pays to read them there.
    pub fn target(&mut self) -> Option<&mut [u8]> {
        let missing = self.missing();
        if missing < DIRECT_BYTES_MIN {
            return None;
        }
        if self.room() < DIRECT_BYTES_MIN {
            self.grow(0);
        }
        let at = self.start + self.filled;
        let count = self.room().min(missing);
        Some(&mut self.buffer.as_mut_slice()[at..at + count])
    }

    /// Notes that so many bytes of the target were filled.
    ///
    /// # Panics
    /// If the target was shorter.
    pub fn filled(&mut self, count: usize) {
        assert!(count <= self.room().min(self.missing()), "more was filled than there was room");
        self.filled += count;
    }

    /// The whole payload in its place.
    ///
    /// # Panics
    /// If not all arrived.
    pub fn finish(self) -> Buffer {
        assert_eq!(self.missing(), 0, "a payload was finished before it arrived");
        assert_eq!(self.buffer.len(), Incoming::bytes(&self.header));
        self.buffer
    }

    /// Payload bytes the buffer can take before it has to grow.
    fn room(&self) -> usize {
        self.buffer.len() - (self.start + self.filled).min(self.buffer.len())
    }

    /// Makes the buffer as large as what arrived, and is about to be `added`, entitles it to.
    fn grow(&mut self, added: usize) {
        let entitled = ((self.filled + added) * GROWTH).max(FIRST_BYTES);
        let whole = Incoming::bytes(&self.header);
        let size = (self.start + entitled).next_multiple_of(BLOCK_SIZE).min(whole);
        if size <= self.buffer.len() {
            return;
        }
        let mut buffer = Buffer::stale(size);
        let arrived = self.start..self.start + self.filled;
        if !arrived.is_empty() {
            buffer.as_mut_slice()[arrived.clone()]
                .copy_from_slice(&self.buffer.as_slice()[arrived]);
        }
        self.buffer = buffer;
    }
}

/// Where the payload starts in its buffer.
fn start_of(header: &RequestHeader) -> usize {
    (header.offset % BLOCK_SIZE as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::wire::command;

    fn header(offset: u64, length: u32) -> RequestHeader {
        let length = u64::from(length);
        RequestHeader { flags: 0, command: command::WRITE, cookie: 1, offset, length }
    }

    /// Receives `length` bytes in steps of `step`, every other one through the target.
    fn check(offset: u64, length: u32, step: usize) {
        let payload: Vec<u8> = (0..length).map(|at| (at / 7 + at) as u8).collect();
        let mut incoming = Incoming::new(header(offset, length), 0);
        let mut sent = 0;
        let mut direct = false;
        while incoming.missing() > 0 {
            let next = &payload[sent..(sent + step).min(payload.len())];
            direct = !direct;
            sent += match incoming.target() {
                Some(target) if direct => {
                    let count = target.len().min(next.len());
                    target[..count].copy_from_slice(&next[..count]);
                    incoming.filled(count);
                    count
                }
                _ => incoming.fill_from(next),
            };
            let bound = (sent.max(step) * GROWTH).max(FIRST_BYTES) + 2 * BLOCK_SIZE;
            assert!(incoming.buffer.len() <= bound, "{} for {sent}", incoming.buffer.len());
        }
        let start = (offset % BLOCK_SIZE as u64) as usize;
        let buffer = incoming.finish();
        assert_eq!(buffer.len(), (start + payload.len()).next_multiple_of(BLOCK_SIZE));
        assert_eq!(&buffer.as_slice()[start..start + payload.len()], payload);
    }

    #[test]
    fn payload_arrives_at_its_place_in_any_pieces() {
        for offset in [0, 512, 4096, 7 * 512] {
            for length in [512, 4096, 4608, 65_536, 70_144, 1 << 20] {
                for step in [511, 4096, 100_000, 1 << 20] {
                    check(offset, length, step);
                }
            }
        }
    }

    #[test]
    fn a_claim_of_32_mib_gets_64_kib_until_bytes_arrive() {
        let mut incoming = Incoming::new(header(512, 32 << 20), 0);
        assert!(incoming.buffer.len() <= FIRST_BYTES + BLOCK_SIZE);
        incoming.fill_from(&[1; 1000]);
        assert!(incoming.buffer.len() <= FIRST_BYTES + BLOCK_SIZE);
        incoming.fill_from(&[1; 100_000]);
        assert!(incoming.buffer.len() <= 101_000 * GROWTH + BLOCK_SIZE);
    }
}
