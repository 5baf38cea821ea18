//! A frame on its way in.

use proto::wire::{FrameError, HEADER_BYTES, Header, Seal};
use proto::{Buffer, Payload};

/// From this many missing bytes on it pays to read the socket straight into the buffer. Below, one
/// read that brings several frames is better.
const DIRECT_BYTES_MIN: usize = 16 << 10;

/// How far the frame is.
pub enum Progress {
    /// It needs more bytes.
    Incomplete,
    /// Header and body are there; may its payload come? If so, [`Incoming::admit`].
    Asks(Header),
    /// It is complete, and its checksums fit: [`Incoming::finish`].
    Complete,
}

/// The frame that is arriving. Holds one header and body, and one payload that was admitted.
#[derive(Debug)]
pub struct Incoming {
    /// Header and body, as far as they arrived.
    head: Vec<u8>,
    /// The header, once it is whole.
    header: Option<Header>,
    /// Memory of the payload, once it was admitted.
    buffer: Option<Buffer>,
    /// Payload bytes that arrived.
    filled: usize,
}

impl Incoming {
    pub fn new() -> Incoming {
        Incoming { head: Vec::new(), header: None, buffer: None, filled: 0 }
    }

    /// Whether a part of a frame is there.
    pub fn is_begun(&self) -> bool {
        !self.head.is_empty()
    }

    /// Memory that is held, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.head.capacity() + self.buffer.as_ref().map_or(0, Buffer::len)
    }

    /// Takes what belongs to the frame from the start of `bytes`.
    pub fn take(&mut self, bytes: &mut &[u8], seal: Seal) -> Result<Progress, FrameError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                self.take_head(bytes, HEADER_BYTES);
                let Some(whole) = self.head.first_chunk() else { return Ok(Progress::Incomplete) };
                let header = Header::parse(whole, seal)?;
                self.header = Some(header);
                header
            }
        };
        let head_bytes = HEADER_BYTES + header.body_bytes;
        self.take_head(bytes, head_bytes);
        if self.head.len() < head_bytes {
            return Ok(Progress::Incomplete);
        }
        let body = &self.head[HEADER_BYTES..];
        if header.payload_bytes == 0 {
            header.verify(body, &[])?;
            return Ok(Progress::Complete);
        }
        let Some(buffer) = &mut self.buffer else { return Ok(Progress::Asks(header)) };
        let (piece, rest) = bytes.split_at(bytes.len().min(header.payload_bytes - self.filled));
        buffer.as_mut_slice()[self.filled..self.filled + piece.len()].copy_from_slice(piece);
        self.filled += piece.len();
        *bytes = rest;
        if self.filled < header.payload_bytes {
            return Ok(Progress::Incomplete);
        }
        header.verify(body, &buffer.as_slice()[..header.payload_bytes])?;
        Ok(Progress::Complete)
    }

    /// Gives memory to the payload.
    pub fn admit(&mut self) {
        let header = self.header.expect("a payload has a header");
        self.buffer = Some(Buffer::stale(header.payload_bytes));
    }

    /// Where the next payload bytes belong, if it pays to read them there.
    pub fn target(&mut self) -> Option<&mut [u8]> {
        let end = self.header?.payload_bytes;
        let buffer = self.buffer.as_mut()?;
        let missing = self.filled..end;
        (missing.len() >= DIRECT_BYTES_MIN).then(|| &mut buffer.as_mut_slice()[missing])
    }

    /// So many bytes of the target were filled.
    ///
    /// # Panics
    /// If there is no target, or it is shorter.
    pub fn filled(&mut self, count: usize) {
        let room = self.target().map_or(0, |target| target.len());
        assert!(count <= room, "more was filled than there was room");
        self.filled += count;
    }

    /// The complete frame: header, header and body as they came, payload. The memory of the head
    /// may be given back with [`Incoming::reuse`].
    pub fn finish(&mut self) -> (Header, Vec<u8>, Option<Payload>) {
        let header = self.header.take().expect("a complete frame has a header");
        let payload = self.buffer.take().map(|buffer| {
            let whole = buffer.freeze();
            whole.slice(0, header.payload_bytes)
        });
        self.filled = 0;
        (header, std::mem::take(&mut self.head), payload)
    }

    /// Takes the memory of a head for the next one, unless it is large.
    pub fn reuse(&mut self, mut head: Vec<u8>) {
        if self.head.capacity() == 0 && head.capacity() <= 1024 {
            head.clear();
            self.head = head;
        }
    }

    fn take_head(&mut self, bytes: &mut &[u8], wanted: usize) {
        let (piece, rest) = bytes.split_at(bytes.len().min(wanted.saturating_sub(self.head.len())));
        self.head.extend_from_slice(piece);
        *bytes = rest;
    }
}
