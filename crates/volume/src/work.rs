//! One request in work: what it still has to ask for, and what has come of it so far.

use crate::pieces::{BLOCK, Range, piece};
use crate::request::{Changed, Completion, Error, Extent, RequestId};
use cluster::Origin;
use proto::limits::{MEMBER_REQUEST_BLOCKS_MAX, REQUEST_PIECES_MAX, STATUS_EXTENTS_MAX};
use proto::{BLOCK_SIZE, BLOCKS_PER_OBJECT, BlockState, Buffer, Change, LayerId, Payload, Time};
use replica::{Request, Source};
use std::sync::Arc;

/// A request in work.
#[derive(Debug)]
pub(crate) struct Work {
    /// Of the guest's request; nothing for the session's own.
    pub(crate) id: Option<RequestId>,
    pub(crate) task: Task,
    pub(crate) range: Range,
    /// Whether it ends only when it is on stable media.
    pub(crate) fua: bool,
    /// Whether it keeps its blocks until then, so that it can be done again.
    pub(crate) keeps: bool,
    /// Of a flush: how many changes that were not known to be stable it covers.
    pub(crate) covers: u64,
    /// When it came, and its place in the order in which works began.
    pub(crate) since: Time,
    pub(crate) number: u64,
    /// Of a guest's: its place in the order of arrival.
    pub(crate) order: u64,
    /// How many pieces of it had to wait for a source when it was put off the last time; 0: it was
    /// not yet.
    pub(crate) pieces: usize,
    /// Whether it is put off again when what is under way has ended, and for which source.
    pub(crate) put_off: bool,
    pub(crate) source: LayerId,
    pub(crate) stage: Stage,
    /// Whether it is in the list of those that have pieces to send.
    pub(crate) queued: bool,
    /// Pieces under way.
    pub(crate) in_flight: usize,
    /// The blocks that no piece has been sent for: first, and one past the last.
    cursor: u64,
    end: u64,
    /// The first of all its blocks.
    first: u64,
    /// Pieces of the body sent so far.
    parts: u32,
    /// What showed through when it began, if anything did: a shrink that comes meanwhile must not
    /// cut off what its discard waits for.
    pub(crate) chain: Option<Arc<[Origin]>>,
    /// Below this block what it discards becomes zeros instead of absent. As when it began, too:
    /// those that wait for it may still read along the chain of then.
    pub(crate) zero_below: u64,
    /// The first error of a piece; no more are sent then.
    pub(crate) error: Option<Error>,
}

/// What it does.
#[derive(Debug)]
pub(crate) enum Task {
    /// The pieces' content: the first one, and the others in order.
    Read {
        first: Vec<Payload>,
        more: Vec<Vec<Payload>>,
    },
    /// The buffer until its edges are filled, then the same as a payload.
    Write {
        buffer: Option<Buffer>,
        payload: Option<Payload>,
    },
    Discard,
    /// The edges are whole blocks, with the zeros already in them.
    WriteZeroes {
        may_unmap: bool,
        head: Option<Payload>,
        tail: Option<Payload>,
    },
    Flush,
    /// The runs of each piece, and how many they are.
    Status {
        runs: Vec<Vec<(u32, BlockState)>>,
        count: usize,
    },
    /// Likewise.
    Difference {
        base: LayerId,
        runs: Vec<Vec<(u32, Option<BlockState>)>>,
        count: usize,
    },
    Prefetch,
    /// The session's own: copies what shows through; where each part begins in its object. It
    /// fetches that without a lock, as what it comes from may keep it waiting, and guests with it.
    Flatten {
        content: Vec<(u32, Payload)>,
        /// Whether it has what is to be copied, and takes the blocks' lock.
        fetched: bool,
        /// Copies only what lies above this layer; nothing: all of it.
        onto: Option<LayerId>,
    },
    /// The session's own: the flush after all was copied.
    FlattenFlush,
    /// The session's own: tells the disks of a new head and the one below it, and flushes.
    Seal {
        layers: Option<(LayerId, LayerId)>,
    },
    /// The session's own: discards what a shrink left.
    Shrink,
    /// The session's own: the flush before it closes.
    LastFlush,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// Waits for its blocks to be free.
    Locking,
    /// Reads the blocks of which it changes only a part.
    Edges,
    /// Sends its pieces.
    Body,
    /// Waits for a flush.
    Flushing,
}

impl Work {
    pub(crate) fn new(
        id: Option<RequestId>,
        task: Task,
        range: Range,
        fua: bool,
        since: Time,
        number: u64,
    ) -> Work {
        let (cursor, end) = match task {
            Task::Discard | Task::Shrink => range.whole(),
            Task::Flush
            | Task::LastFlush
            | Task::FlattenFlush
            | Task::Seal { .. }
            | Task::Flatten { .. } => (0, 0),
            _ => range.touched(),
        };
        Work {
            id,
            task,
            range,
            fua,
            keeps: false,
            covers: 0,
            since,
            number,
            order: 0,
            pieces: 0,
            put_off: false,
            source: LayerId(0),
            stage: Stage::Locking,
            queued: false,
            in_flight: 0,
            cursor,
            end,
            first: cursor,
            parts: 0,
            chain: None,
            zero_below: 0,
            error: None,
        }
    }

    /// The blocks it must have for itself, or share with readers: first, one past the last,
    /// exclusive. What only asks for hints needs none.
    pub(crate) fn lock(&self) -> Option<(u64, u64, bool)> {
        match self.task {
            Task::Read { .. } => Some((self.first, self.end, false)),
            Task::Write { .. } | Task::Discard | Task::WriteZeroes { .. } | Task::Shrink => {
                Some((self.first, self.end, true))
            }
            Task::Flatten { fetched: true, .. } => {
                let (first, end) = self.range.touched();
                Some((first, end, true))
            }
            Task::Flatten { fetched: false, .. }
            | Task::Flush
            | Task::LastFlush
            | Task::FlattenFlush
            | Task::Seal { .. }
            | Task::Status { .. }
            | Task::Difference { .. }
            | Task::Prefetch => None,
        }
    }

    /// Whether it changes blocks.
    pub(crate) fn is_change(&self) -> bool {
        self.lock().is_some_and(|(_, _, exclusive)| exclusive)
    }

    /// Whether it is a write of which pieces were sent: all of it belongs into one layer.
    pub(crate) fn must_go_on(&self) -> bool {
        let is_write = matches!(self.task, Task::Write { .. });
        is_write && self.stage == Stage::Body && self.parts > 0
    }

    /// Whether it is a copy of nothing.
    pub(crate) fn has_nothing(&self) -> bool {
        matches!(&self.task, Task::Flatten { content, .. } if content.is_empty())
    }

    /// What is to be copied has come.
    pub(crate) fn take_copy(&mut self, parts: Vec<(u32, Payload)>) {
        if let Task::Flatten { content, .. } = &mut self.task {
            (self.first, self.cursor, self.end) = (0, 0, parts.len() as u64);
            *content = parts;
        }
    }

    /// Whether it copies only what lies above some layer.
    pub(crate) fn shortens(&self) -> bool {
        matches!(self.task, Task::Flatten { onto: Some(_), .. })
    }

    /// Whether it has just fetched something to copy: from now on it wants its blocks for itself.
    pub(crate) fn is_fetched_now(&mut self) -> bool {
        match &mut self.task {
            Task::Flatten { content, fetched, .. } if !content.is_empty() => {
                !std::mem::replace(fetched, true)
            }
            _ => false,
        }
    }

    /// Takes out what it fetched.
    pub(crate) fn take_fetched(&mut self) -> Vec<(u32, Payload)> {
        match &mut self.task {
            Task::Flatten { content, .. } => std::mem::take(content),
            _ => Vec::new(),
        }
    }

    /// Bytes that it holds at most.
    pub(crate) fn bytes(&self) -> usize {
        match self.task {
            Task::Read { .. } | Task::Write { .. } | Task::Flatten { .. } => {
                self.range.touched_bytes()
            }
            Task::Prefetch => prefetched_bytes(self.range),
            Task::Status { .. } | Task::Difference { .. } => status_bytes(self.range),
            Task::WriteZeroes { .. } => 2 * BLOCK_SIZE,
            _ => 0,
        }
    }

    /// The blocks that must be read before they can be written.
    pub(crate) fn edges(&self) -> impl Iterator<Item = u64> + use<> {
        let changes = matches!(self.task, Task::Write { .. } | Task::WriteZeroes { .. });
        let edges = if changes { [self.range.head(), self.range.tail()] } else { [None, None] };
        edges.into_iter().flatten()
    }

    /// The present content of an edge has come.
    pub(crate) fn fill(&mut self, block: u64, content: &[Payload]) {
        let (from, to) = self.range.within(block);
        match &mut self.task {
            Task::Write { buffer, .. } => {
                let start = (block - self.range.touched().0) as usize * BLOCK_SIZE;
                let buffer = buffer.as_mut().expect("edges come before the body");
                let target = &mut buffer.as_mut_slice()[start..start + BLOCK_SIZE];
                copy(content, 0, &mut target[..from]);
                copy(content, to, &mut target[to..]);
            }
            Task::WriteZeroes { head, tail, .. } => {
                let mut edge = Buffer::stale(BLOCK_SIZE);
                copy(content, 0, edge.as_mut_slice());
                edge.as_mut_slice()[from..to].fill(0);
                let place = if self.range.head() == Some(block) { head } else { tail };
                *place = Some(edge.freeze());
            }
            _ => unreachable!("only these have edges"),
        }
    }

    /// The edges are there: pieces can be sent.
    pub(crate) fn begin_body(&mut self) {
        self.stage = Stage::Body;
        if let Task::Write { buffer, payload } = &mut self.task {
            *payload = buffer.take().map(Buffer::freeze);
        }
    }

    /// Whether there are pieces to be sent.
    pub(crate) fn has_more(&self) -> bool {
        self.cursor < self.end && self.error.is_none()
    }

    /// Whether nothing of it is left to be begun.
    pub(crate) fn is_sent(&self) -> bool {
        match self.stage {
            Stage::Locking | Stage::Edges => false,
            Stage::Body => !self.has_more(),
            Stage::Flushing => true,
        }
    }

    /// Sends all pieces of a change once more; gives back whether there are any.
    pub(crate) fn rewind(&mut self) -> bool {
        if self.stage != Stage::Body || !self.is_change() {
            return false;
        }
        self.cursor = self.first;
        self.has_more()
    }

    /// Sends no more pieces; those under way end the work.
    pub(crate) fn abandon(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    /// The next piece and its number. `zeros` has as many blocks as a piece of data may have.
    pub(crate) fn next_piece(&mut self, zeros: impl FnOnce() -> Payload) -> (u32, Request) {
        let zero_below = self.zero_below;
        let (first, end) = (self.range.touched().0, self.end);
        let (at, source) = (self.cursor, Source::Own);
        let request = match &self.task {
            Task::Read { .. } | Task::Prefetch => {
                let (index, blocks) = piece(at, end, MEMBER_REQUEST_BLOCKS_MAX);
                self.cursor += u64::from(blocks.count());
                Request::Read { source, index, blocks }
            }
            Task::Status { .. } | Task::Difference { base: LayerId(0), .. } => {
                let (index, blocks) = piece(at, end, BLOCKS_PER_OBJECT);
                self.cursor += u64::from(blocks.count());
                Request::Map { source, index, blocks }
            }
            &Task::Difference { base, .. } => {
                let (index, blocks) = piece(at, end, BLOCKS_PER_OBJECT);
                self.cursor += u64::from(blocks.count());
                Request::Difference { base, index, blocks }
            }
            Task::Flatten { content, .. } => {
                let (index, _) = piece(first, first + 1, 1);
                let (first, payload) = content[at as usize].clone();
                self.cursor += 1;
                let change = Change::Data { first, payload, detect_zeroes: true };
                Request::Change { index, change }
            }
            Task::Discard | Task::Shrink => {
                let (request, count) = discard(at, end, zero_below);
                self.cursor += u64::from(count);
                request
            }
            Task::Write { payload, .. } => {
                let (index, blocks) = piece(at, end, MEMBER_REQUEST_BLOCKS_MAX);
                let payload = payload.as_ref().expect("the body has begun");
                let payload = payload.slice((at - first) as usize * BLOCK_SIZE, blocks.bytes());
                self.cursor += u64::from(blocks.count());
                let change = Change::Data { first: blocks.first(), payload, detect_zeroes: true };
                Request::Change { index, change }
            }
            Task::WriteZeroes { may_unmap, head, tail } => {
                let edge = if self.range.head() == Some(at) {
                    head.clone()
                } else if self.range.tail() == Some(at) {
                    tail.clone()
                } else {
                    None
                };
                let (request, count) = match edge {
                    Some(edge) => data(at, at + 1, *may_unmap, || edge),
                    None => {
                        let middle = self.range.tail().unwrap_or(end);
                        match may_unmap {
                            true => discard(at, middle, zero_below),
                            false => data(at, middle, false, zeros),
                        }
                    }
                };
                self.cursor += u64::from(count);
                request
            }
            Task::Flush | Task::LastFlush | Task::FlattenFlush | Task::Seal { .. } => {
                unreachable!("a flush has no pieces")
            }
        };
        let part = self.parts;
        self.parts += 1;
        (part, request)
    }

    /// Takes in what a piece brought.
    pub(crate) fn take_part(&mut self, part: u32, answer: replica::Answer) {
        match (&mut self.task, answer) {
            (Task::Read { first, .. }, replica::Answer::Data { content, .. }) if part == 0 => {
                *first = content;
            }
            (Task::Read { more, .. }, replica::Answer::Data { content, .. }) => {
                put(more, part as usize - 1, content);
            }
            (Task::Status { runs, count }, replica::Answer::Map(found)) => {
                *count += found.len();
                if *count >= STATUS_EXTENTS_MAX {
                    // The answer takes no more. It goes as far as what has been asked for.
                    self.end = self.cursor;
                }
                put(runs, part as usize, found);
            }
            (Task::Difference { runs, count, .. }, answer) => {
                let there = |state| Some(state).filter(|state| *state != BlockState::Absent);
                let found = match answer {
                    replica::Answer::Difference(found) => found,
                    replica::Answer::Map(found) => {
                        found.into_iter().map(|(count, state)| (count, there(state))).collect()
                    }
                    _ => Vec::new(),
                };
                *count += found.len();
                if *count >= STATUS_EXTENTS_MAX {
                    self.end = self.cursor;
                }
                put(runs, part as usize, found);
            }
            // Content that was only fetched, and changes, leave nothing.
            _ => {}
        }
    }

    /// What the request that succeeded brings.
    pub(crate) fn completion(&mut self) -> Completion {
        let range = self.range;
        match &mut self.task {
            Task::Read { first, more } => {
                let mut content = std::mem::take(first);
                more.drain(..).for_each(|part| content.extend(part));
                trim(&mut content, range);
                Completion::Data(content)
            }
            Task::Status { runs, .. } => {
                let extents = extents(runs, range).into_iter();
                Completion::Status(
                    extents.map(|(length, state)| Extent { length, state }).collect(),
                )
            }
            Task::Difference { runs, .. } => {
                let extents = extents(runs, range).into_iter();
                Completion::Difference(
                    extents.map(|(length, state)| Changed { length, state }).collect(),
                )
            }
            _ => Completion::Done,
        }
    }
}

/// What a prefetch brings at once, in bytes: it keeps nothing of what has come.
pub(crate) fn prefetched_bytes(range: Range) -> usize {
    const AT_ONCE: usize = REQUEST_PIECES_MAX * MEMBER_REQUEST_BLOCKS_MAX as usize * BLOCK_SIZE;
    range.touched_bytes().min(AT_ONCE)
}

/// What the runs of a status take, in bytes: those of its answer, and those of all pieces that were
/// under way when these were complete.
pub(crate) fn status_bytes(range: Range) -> usize {
    const RUNS_MAX: usize = STATUS_EXTENTS_MAX + REQUEST_PIECES_MAX * BLOCKS_PER_OBJECT as usize;
    (range.touched_bytes() / BLOCK_SIZE).min(RUNS_MAX) * size_of::<(u32, BlockState)>()
}

/// A piece that discards blocks of `first .. end`, and how many. They become absent, or zeros where
/// something else would show then.
fn discard(first: u64, end: u64, zero_below: u64) -> (Request, u32) {
    let zeroes = first < zero_below;
    let end = if zeroes { end.min(zero_below) } else { end };
    let (index, blocks) = piece(first, end, BLOCKS_PER_OBJECT);
    let change = if zeroes { Change::Zero { blocks } } else { Change::Absent { blocks } };
    (Request::Change { index, change }, blocks.count())
}

/// A piece that writes blocks of `first .. end` with the start of `content`, and how many.
fn data(
    first: u64,
    end: u64,
    detect_zeroes: bool,
    content: impl FnOnce() -> Payload,
) -> (Request, u32) {
    let (index, blocks) = piece(first, end, MEMBER_REQUEST_BLOCKS_MAX);
    let payload = content().slice(0, blocks.bytes());
    let change = Change::Data { first: blocks.first(), payload, detect_zeroes };
    (Request::Change { index, change }, blocks.count())
}

fn put<T>(parts: &mut Vec<Vec<T>>, place: usize, part: Vec<T>) {
    if parts.len() <= place {
        parts.resize_with(place + 1, Vec::new);
    }
    parts[place] = part;
}

/// Copies the bytes from `skip` on.
fn copy(content: &[Payload], mut skip: usize, target: &mut [u8]) {
    let mut filled = 0;
    for payload in content {
        let bytes = payload.as_slice();
        let start = skip.min(bytes.len());
        skip -= start;
        let count = (bytes.len() - start).min(target.len() - filled);
        target[filled..filled + count].copy_from_slice(&bytes[start..start + count]);
        filled += count;
    }
    assert_eq!(filled, target.len(), "a block was brought whole");
}

/// Cuts the content of the touched blocks to the bytes asked for.
fn trim(content: &mut [Payload], range: Range) {
    let (first, end) = range.touched();
    let before = (range.offset - first * BLOCK) as usize;
    let after = (end * BLOCK - range.end()) as usize;
    if before > 0 {
        cut(content, before, true);
    }
    if after > 0 {
        cut(content, after, false);
    }
}

/// Takes `bytes`, fewer than a block, off the first or the last payload. Each has at least a
/// block, or is what is left of the only one.
fn cut(content: &mut [Payload], bytes: usize, front: bool) {
    let payload = if front { content.first_mut() } else { content.last_mut() };
    let payload = payload.expect("a range is not empty");
    let start = if front { bytes } else { 0 };
    *payload = payload.slice(start, payload.len() - bytes);
}

/// Joins the runs of all pieces, cut to the bytes asked for and to the longest answer.
fn extents<T: Copy + PartialEq>(runs: &[Vec<(u32, T)>], range: Range) -> Vec<(u64, T)> {
    let mut extents: Vec<(u64, T)> = Vec::new();
    let (first, _) = range.touched();
    let mut at = first * BLOCK;
    for (count, state) in runs.iter().flatten() {
        let next = at + u64::from(*count) * BLOCK;
        let length = next.min(range.end()).saturating_sub(at.max(range.offset));
        at = next;
        if length == 0 {
            continue;
        }
        let full = extents.len() == STATUS_EXTENTS_MAX;
        match extents.last_mut() {
            Some((last, same)) if *same == *state => *last += length,
            _ if full => break,
            _ => extents.push((length, *state)),
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset: u64, length: u64) -> Range {
        Range::new(offset, length).expect("whole sectors")
    }

    #[test]
    fn content_is_cut_to_the_sectors_asked_for() {
        let mut buffer = Buffer::zeroed(3 * BLOCK_SIZE);
        for (at, byte) in buffer.as_mut_slice().iter_mut().enumerate() {
            *byte = (at / 512) as u8;
        }
        let whole = buffer.freeze();
        for (from, sectors) in [(0, 24), (1, 1), (7, 2), (3, 20), (16, 8), (23, 1)] {
            let range = range(from * 512, sectors * 512);
            let (first, end) = range.touched();
            let mut content: Vec<Payload> = (first..end)
                .map(|block| whole.slice(block as usize * BLOCK_SIZE, BLOCK_SIZE))
                .collect();
            trim(&mut content, range);
            let bytes: Vec<u8> = content.iter().flat_map(|p| p.as_slice().to_vec()).collect();
            let wanted: Vec<u8> = (from..from + sectors).flat_map(|s| [s as u8; 512]).collect();
            assert!(bytes == wanted, "{from}+{sectors}");
        }
    }

    #[test]
    fn runs_are_joined_and_cut() {
        use BlockState::{Absent, Data, Zero};
        let runs = vec![vec![(2, Data), (1022, Absent)], vec![(1024, Absent)], vec![(1, Zero)]];
        let check = |offset, length, wanted: &[(u64, BlockState)]| {
            let found = extents(&runs, range(offset, length));
            assert_eq!(found, wanted, "{offset}+{length}");
        };
        check(0, 2049 * BLOCK, &[(2 * BLOCK, Data), (2046 * BLOCK, Absent), (BLOCK, Zero)]);
        check(512, BLOCK, &[(BLOCK, Data)]);
        check(512, 2 * BLOCK, &[(2 * BLOCK - 512, Data), (512, Absent)]);
    }

    #[test]
    fn a_status_has_a_longest_answer() {
        let states = [BlockState::Data, BlockState::Zero];
        let runs: Vec<_> =
            (0..8).map(|_| (0..1024).map(|i| (1, states[i % 2])).collect()).collect();
        let found = extents(&runs, range(0, 8192 * BLOCK));
        assert_eq!(found.len(), STATUS_EXTENTS_MAX);
    }
}
