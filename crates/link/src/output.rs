//! What goes to the peer, and how long it may wait there.

use proto::limits::LINK_STALL_MS_MAX;
use proto::wire::Seal;
use proto::{Duration, Payload, Time};
use std::collections::VecDeque;

/// Longest segment that further heads are added to, in bytes.
const SEGMENT_BYTES: usize = 16 << 10;

#[derive(Debug)]
enum Segment {
    Bytes(Vec<u8>),
    Payload(Payload),
}

impl Segment {
    fn as_slice(&self) -> &[u8] {
        match self {
            Segment::Bytes(bytes) => bytes,
            Segment::Payload(payload) => payload.as_slice(),
        }
    }
}

/// What is to be known when the socket has taken the output up to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// An answer to a request of this cost, in bytes.
    Answer(u64),
    /// A control message of this length, in bytes.
    Control(usize),
    /// Promises that answer a beat.
    Promises,
}

/// Frames for the socket, in order: heads copied together, payloads by reference.
#[derive(Debug)]
pub struct Output {
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that the socket has taken.
    start: usize,
    /// Bytes put in, in all.
    given: u64,
    /// Bytes the socket has taken, in all.
    taken: u64,
    /// At which byte which mark stands.
    marks: VecDeque<(u64, Mark)>,
    /// Since when the peer owes us progress, and up to which byte it must have read.
    stall: Option<(Time, u64)>,
    /// That of the next frame.
    seal: Seal,
    /// Memory for the next segment of heads.
    spare: Vec<u8>,
}

impl Output {
    pub fn new() -> Output {
        Output {
            segments: VecDeque::new(),
            start: 0,
            given: 0,
            taken: 0,
            marks: VecDeque::new(),
            stall: None,
            seal: Seal::HELLO,
            spare: Vec::new(),
        }
    }

    /// From now on frames are sealed so, the next one with this number.
    pub fn set_seal(&mut self, seal: Seal) {
        self.seal = seal;
    }

    pub fn seal(&self) -> Seal {
        self.seal
    }

    /// Puts in a head: `put` appends it, with the seal it is given.
    pub fn put(&mut self, now: Time, put: impl FnOnce(&mut Vec<u8>, Seal)) {
        let has_room = |segment: &Segment| match segment {
            Segment::Bytes(bytes) => bytes.len() < SEGMENT_BYTES,
            Segment::Payload(_) => false,
        };
        if !self.segments.back().is_some_and(has_room) {
            let bytes = std::mem::take(&mut self.spare);
            self.segments.push_back(Segment::Bytes(bytes));
        }
        let Some(Segment::Bytes(bytes)) = self.segments.back_mut() else {
            unreachable!("the last segment was made one of bytes");
        };
        let before = bytes.len();
        put(bytes, self.seal);
        self.seal = self.seal.next();
        let count = bytes.len() - before;
        self.count(now, count);
    }

    /// Puts in a payload behind its head.
    pub fn put_payload(&mut self, now: Time, payload: Payload) {
        if !payload.is_empty() {
            self.count(now, payload.len());
            self.segments.push_back(Segment::Payload(payload));
        }
    }

    /// Wants to know when all that is there now was taken.
    pub fn mark(&mut self, mark: Mark) {
        self.marks.push_back((self.given, mark));
    }

    /// Bytes the socket has not taken.
    pub fn unsent(&self) -> usize {
        (self.given - self.taken) as usize
    }

    /// The bytes the socket has not taken, in pieces.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let first = self.segments.front().map(|segment| &segment.as_slice()[self.start..]);
        first.into_iter().chain(self.segments.iter().skip(1).map(Segment::as_slice))
    }

    /// The socket has taken so many bytes.
    ///
    /// # Panics
    /// If that is more than there were.
    pub fn taken(&mut self, now: Time, count: usize, mut reached: impl FnMut(Mark)) {
        assert!(count <= self.unsent(), "more was taken than there was");
        self.taken += count as u64;
        self.start += count;
        while let Some(segment) = self.segments.front() {
            let length = segment.as_slice().len();
            if self.start < length {
                break;
            }
            self.start -= length;
            if let Some(Segment::Bytes(mut bytes)) = self.segments.pop_front()
                && bytes.capacity() <= 2 * SEGMENT_BYTES
            {
                bytes.clear();
                self.spare = bytes;
            }
        }
        while let Some(&(at, mark)) = self.marks.front()
            && at <= self.taken
        {
            self.marks.pop_front();
            reached(mark);
        }
        if self.unsent() == 0 {
            self.stall = None;
        } else if self.stall.is_some_and(|(_, target)| self.taken >= target) {
            self.stall = Some((now, self.given));
        }
    }

    /// When the peer will have been too slow. Everything that is waiting when the clock starts
    /// must have been taken when it ends: a byte now and then does not stop it.
    pub fn deadline(&self) -> Option<Time> {
        let (since, _) = self.stall?;
        Some(since + Duration::from_millis(LINK_STALL_MS_MAX))
    }

    fn count(&mut self, now: Time, bytes: usize) {
        self.given += bytes as u64;
        let (since, target) = self.stall.get_or_insert((now, self.given));
        if *since == now {
            *target = self.given;
        }
    }
}
