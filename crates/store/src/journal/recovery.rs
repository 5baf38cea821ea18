//! Reading a journal back: which frames count, what is damaged and how it is repaired.

use super::Steps;
use super::error::OpenError;
use super::layout::{BLOCK, Body, COPIES, FrameHeader, Header};
use proto::{BLOCK_SIZE, Buffer, DiskError, DiskRequest, Payload};

/// How many blocks are read at once, unless a frame is longer.
const WINDOW_BLOCKS: u32 = 64;

/// What to do next.
pub(super) enum Step {
    /// Perform these reads and hand the results to [`Recovery::handle`], in order.
    Read(Vec<DiskRequest>),
    /// All is read.
    Finished,
    /// The journal cannot be used.
    Refused(OpenError),
}

/// The frames that a journal holds, found one after the other in both copies of the ruling half.
pub(super) struct Recovery {
    header: Header,
    /// Copies of the header that are to be rewritten.
    wrong_headers: Vec<usize>,
    /// Where the medium ends: what lies behind reads as zeros.
    medium_bytes: u64,
    /// The block after the last frame found.
    pub(super) end: u32,
    /// The sequence of the last frame found; nothing before the first.
    pub(super) sequence: Option<u64>,
    /// What the last frame says is prepared.
    pub(super) prepared: u32,
    pub(super) snapshot: Option<Vec<u8>>,
    pub(super) records: Vec<Vec<u8>>,
    /// Frames that were lost in one copy, not counting what a crash explains.
    pub(super) damages: u32,
    /// Copy 1 of the last frame is not valid: damage, if another frame follows.
    suspect: bool,
    /// Bad copies of good frames: copy, block, content.
    repairs: Vec<(usize, u32, Payload)>,
    /// Blocks behind the end that are not zero: copy and block.
    dirty: Vec<(usize, u32)>,
    /// How far the blocks behind the end were looked at; nothing while frames are being found.
    tail: Option<u32>,
    window: Window,
    /// Whether only what is needed is read: after a read of more has failed.
    exact: bool,
}

/// The same blocks of both copies; nothing in place of a copy that cannot be read.
#[derive(Default)]
struct Window {
    first: u32,
    blocks: u32,
    content: [Option<Buffer>; 2],
    /// How many of its blocks were asked for; the rest is read ahead.
    needed: u32,
}

/// What one copy has at the place of the next frame.
enum View {
    Valid(FrameHeader, Body),
    Zero,
    /// Not zero and not valid, or unreadable.
    Bad,
    /// A frame of so many blocks begins here; more must be read to judge it.
    Longer(u32),
}

impl Recovery {
    pub(super) fn new(header: Header, wrong_headers: Vec<usize>, medium_bytes: u64) -> Recovery {
        Recovery {
            header,
            wrong_headers,
            medium_bytes,
            end: 0,
            sequence: None,
            prepared: 0,
            snapshot: None,
            records: Vec::new(),
            damages: 0,
            suspect: false,
            repairs: Vec::new(),
            dirty: Vec::new(),
            tail: None,
            window: Window::default(),
            exact: false,
        }
    }

    /// Goes on as far as the blocks that were read allow.
    pub(super) fn proceed(&mut self) -> Step {
        loop {
            let block = self.tail.unwrap_or(self.end);
            if self.tail.is_some_and(|tail| tail >= self.prepared) {
                return Step::Finished;
            }
            let outcome = if !self.window.holds(block, 1) {
                Ok(Some(1))
            } else if self.tail.is_some() {
                self.look_behind(block)
            } else {
                self.find_frame()
            };
            match outcome {
                Ok(None) => {}
                Ok(Some(blocks)) => {
                    let reads = self.read(block, blocks);
                    if !reads.is_empty() {
                        return Step::Read(reads);
                    }
                }
                Err(error) => return Step::Refused(error),
            }
        }
    }

    /// Takes the results of the reads asked for last.
    pub(super) fn handle(&mut self, results: Vec<Result<Option<Buffer>, DiskError>>) -> Step {
        let window = &mut self.window;
        if results.iter().any(Result::is_err) && window.blocks > window.needed {
            // One bad block must not take its neighbours along.
            self.exact = true;
            let (first, needed) = (window.first, window.needed);
            return Step::Read(self.read(first, needed));
        }
        let mut results = results.into_iter();
        for copy in COPIES {
            let offset = self.header.half_offset(copy, self.header.generation, window.first);
            let length = u64::from(window.blocks) * BLOCK;
            let readable = self.medium_bytes.saturating_sub(offset).min(length);
            window.content[copy] = if readable == 0 {
                Some(Buffer::zeroed(length as usize))
            } else {
                let found = results.next().expect("a result for each read");
                found.ok().flatten().map(|buffer| extended(buffer, length as usize))
            };
        }
        self.proceed()
    }

    /// The reads that bring `needed` blocks from `first` on, and some more, into the window.
    fn read(&mut self, first: u32, needed: u32) -> Vec<DiskRequest> {
        let ahead = if self.exact { needed } else { needed.max(WINDOW_BLOCKS) };
        let blocks = ahead.min(self.header.half_blocks - first);
        self.window = Window { first, blocks, content: [None, None], needed };
        let request = |copy: usize| {
            let offset = self.header.half_offset(copy, self.header.generation, first);
            let readable = self.medium_bytes.saturating_sub(offset).min(u64::from(blocks) * BLOCK);
            (readable > 0)
                .then(|| DiskRequest::Read { offset, buffer: Buffer::stale(readable as usize) })
        };
        let requests: Vec<_> = COPIES.into_iter().filter_map(request).collect();
        if requests.is_empty() {
            self.window.content =
                COPIES.map(|_| Some(Buffer::zeroed(blocks as usize * BLOCK_SIZE)));
        }
        requests
    }

    /// Judges the place behind the last frame. Nothing if that brought a frame or the end; a number
    /// of blocks if so many from there on are needed.
    fn find_frame(&mut self) -> Result<Option<u32>, OpenError> {
        let views = COPIES.map(|copy| self.view(copy));
        let longer = views.iter().filter_map(|view| match view {
            View::Longer(blocks) => Some(*blocks),
            _ => None,
        });
        if let Some(blocks) = longer.max() {
            return Ok(Some(blocks));
        }
        match views {
            [View::Valid(first, body), View::Valid(second, other)] => {
                if first != second || body != other {
                    return Err(self.damaged(self.end, "the copies differ"));
                }
                self.take_frame(&first, body, None);
            }
            [View::Valid(header, body), _] => self.take_frame(&header, body, Some(1)),
            [_, View::Valid(header, body)] => self.take_frame(&header, body, Some(0)),
            _ if self.sequence.is_none() => {
                return Err(self.damaged(self.end, "the snapshot is not valid"));
            }
            [View::Zero, _] | [_, View::Zero] => self.tail = Some(self.end),
            _ => return Err(self.damaged(self.end, "a record is not valid")),
        }
        Ok(None)
    }

    /// What one copy has behind the last frame.
    fn view(&self, copy: usize) -> View {
        let Some(block) = self.window.blocks_from(copy, self.end, 1) else { return View::Bad };
        if proto::is_zero(block) {
            return View::Zero;
        }
        let Some(header) = FrameHeader::decode(block).filter(|header| self.fits(header)) else {
            return View::Bad;
        };
        if !self.window.holds(self.end, header.blocks()) {
            return View::Longer(header.blocks());
        }
        let body = self
            .window
            .blocks_from(copy, self.end, header.blocks())
            .and_then(|frame| header.body(frame));
        match body {
            Some(body) if self.sequence.is_none() == matches!(body, Body::Snapshot(_)) => {
                View::Valid(header, body)
            }
            _ => View::Bad,
        }
    }

    /// Whether the frame is the next one of this half.
    fn fits(&self, header: &FrameHeader) -> bool {
        let room = header.prepared_blocks.saturating_sub(self.end);
        header.cluster == self.header.cluster
            && header.generation == self.header.generation
            && self.sequence.is_none_or(|last| last.checked_add(1) == Some(header.sequence))
            && header.prepared_blocks <= self.header.half_blocks
            && header.blocks() < room
    }

    fn take_frame(&mut self, header: &FrameHeader, body: Body, bad_copy: Option<usize>) {
        self.damages += u32::from(self.suspect) + u32::from(bad_copy == Some(0));
        self.suspect = bad_copy == Some(1);
        if let Some(bad) = bad_copy {
            let good = self
                .window
                .blocks_from(1 - bad, self.end, header.blocks())
                .expect("it was just judged");
            self.repairs.push((bad, self.end, Buffer::copy_of(good).freeze()));
        }
        match body {
            Body::Snapshot(snapshot) => self.snapshot = snapshot,
            Body::Records(records) => self.records.extend(records),
        }
        self.end += header.blocks();
        self.sequence = Some(header.sequence);
        self.prepared = header.prepared_blocks;
    }

    /// Looks at a block behind the end: it should be zero; a valid frame with a later sequence
    /// shows that what should lie before it was durable.
    fn look_behind(&mut self, block: u32) -> Result<Option<u32>, OpenError> {
        if self.window.content.iter().any(Option::is_none) && self.window.blocks > 1 {
            self.exact = true;
            return Ok(Some(1));
        }
        for copy in COPIES {
            let Some(content) = self.window.blocks_from(copy, block, 1) else {
                self.dirty.push((copy, block));
                continue;
            };
            if proto::is_zero(content) {
                continue;
            }
            let later = |header: &FrameHeader| {
                header.cluster == self.header.cluster
                    && header.generation == self.header.generation
                    && self.sequence.is_some_and(|last| header.sequence > last + 1)
            };
            if FrameHeader::decode(content).as_ref().is_some_and(later) {
                return Err(self.damaged(self.end, "a record is missing before later ones"));
            }
            self.dirty.push((copy, block));
        }
        self.tail = Some(block + 1);
        Ok(None)
    }

    pub(super) fn damaged(&self, block: u32, what: &'static str) -> OpenError {
        let offset = |copy| self.header.half_offset(copy, self.header.generation, block);
        OpenError::Damaged { first: offset(0), second: offset(1), what }
    }

    /// How many blocks and frames are to be written anew.
    pub(super) fn bad_copies(&self) -> u32 {
        (self.repairs.len() + self.dirty.len() + self.wrong_headers.len()) as u32
    }

    /// What makes both copies whole again and durable. What was read may be in a cache only, so a
    /// flush comes before anything that rests on it.
    pub(super) fn repair_steps(&mut self) -> Steps {
        let (allocations, writes) = self.repairs();
        let mut steps = Steps::from([vec![DiskRequest::Flush]]);
        if !writes.is_empty() || !allocations.is_empty() {
            steps.extend([allocations, writes, vec![DiskRequest::Flush]]);
        }
        steps
    }

    /// First space where the medium ends too early, then writes.
    fn repairs(&mut self) -> (Vec<DiskRequest>, Vec<DiskRequest>) {
        let header = self.header;
        let offset = |copy, block| header.half_offset(copy, header.generation, block);
        let short = |copy: &usize| offset(*copy, self.prepared) > self.medium_bytes;
        let allocations = COPIES.into_iter().filter(short).map(|copy| DiskRequest::Allocate {
            offset: offset(copy, 0),
            length: u64::from(self.prepared) * BLOCK,
            zero: false,
        });
        let allocations = allocations.collect();
        let repairs =
            std::mem::take(&mut self.repairs).into_iter().map(|(copy, block, payload)| {
                DiskRequest::Write { offset: offset(copy, block), payloads: vec![payload] }
            });
        let zeros = std::mem::take(&mut self.dirty).into_iter().map(|(copy, block)| {
            let payloads = vec![Payload::zeroed(BLOCK_SIZE)];
            DiskRequest::Write { offset: offset(copy, block), payloads }
        });
        let headers = std::mem::take(&mut self.wrong_headers).into_iter().map(|copy| {
            let payloads = vec![header.encode()];
            DiskRequest::Write { offset: Header::offset(copy), payloads }
        });
        (allocations, repairs.chain(zeros).chain(headers).collect())
    }
}

impl Window {
    fn holds(&self, first: u32, blocks: u32) -> bool {
        self.first <= first && first + blocks <= self.first + self.blocks
    }

    /// The content of some blocks; nothing if that copy cannot be read.
    fn blocks_from(&self, copy: usize, first: u32, blocks: u32) -> Option<&[u8]> {
        assert!(self.holds(first, blocks));
        let start = (first - self.first) as usize * BLOCK_SIZE;
        let content = self.content[copy].as_ref()?.as_slice();
        Some(&content[start..start + blocks as usize * BLOCK_SIZE])
    }
}

/// The buffer, with zeros behind it up to `length` bytes.
fn extended(buffer: Buffer, length: usize) -> Buffer {
    if buffer.len() >= length {
        return buffer;
    }
    let mut longer = Buffer::zeroed(length);
    longer.as_mut_slice()[..buffer.len()].copy_from_slice(buffer.as_slice());
    longer
}
