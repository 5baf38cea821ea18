//! What goes to the client, and how long it may wait there.

use super::Effect;
use proto::{Duration, Payload, Time, limits};

/// Longest segment that further small replies are added to, in bytes.
const SEGMENT_BYTES: usize = 16 << 10;

/// A piece of output. Pieces go to the socket in order, one after the other.
#[derive(Debug)]
pub enum Segment {
    /// Protocol words.
    Bytes(Vec<u8>),
    /// Content of the volume.
    Payload(Payload),
}

impl Segment {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Segment::Bytes(bytes) => bytes,
            Segment::Payload(payload) => payload.as_slice(),
        }
    }
}

/// Counts what was given to the driver, and what of it the socket has taken.
#[derive(Debug, Default)]
pub struct Output {
    /// Bytes given to the driver in all.
    given: u64,
    /// The last of them that the socket has not taken, in bytes.
    unsent: usize,
    /// Since when the client owes us progress, and up to which byte it must have read.
    stall: Option<(Time, u64)>,
}

impl Output {
    /// Sends what `write` appends.
    pub fn write(
        &mut self,
        now: Time,
        effects: &mut Vec<Effect>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        // Many small replies in a row become one segment: one piece for the socket.
        if let Some(Effect::Send(Segment::Bytes(bytes))) = effects.last_mut()
            && bytes.len() < SEGMENT_BYTES
        {
            let before = bytes.len();
            write(bytes);
            let count = bytes.len() - before;
            self.count(now, count);
            return;
        }
        let mut bytes = Vec::with_capacity(64);
        write(&mut bytes);
        self.count(now, bytes.len());
        effects.push(Effect::Send(Segment::Bytes(bytes)));
    }

    /// Sends content without copying it.
    pub fn write_payload(&mut self, now: Time, effects: &mut Vec<Effect>, payload: Payload) {
        self.count(now, payload.len());
        effects.push(Effect::Send(Segment::Payload(payload)));
    }

    /// Bytes the socket has not taken.
    pub fn unsent(&self) -> usize {
        self.unsent
    }

    /// Notes how many bytes the socket has not taken.
    ///
    /// # Panics
    /// If that is more than it was given.
    pub fn handle_unsent(&mut self, now: Time, unsent: usize) {
        assert!(unsent <= self.unsent, "more is unsent than was sent");
        self.unsent = unsent;
        let taken = self.given - unsent as u64;
        if unsent == 0 {
            self.stall = None;
        } else if self.stall.is_some_and(|(_, target)| taken >= target) {
            self.stall = Some((now, self.given));
        }
    }

    /// When the client will have been too slow. Everything that is waiting when the clock starts
    /// must have been read when it ends: a byte now and then does not stop it.
    pub fn deadline(&self) -> Option<Time> {
        let (since, _) = self.stall?;
        Some(since + Duration::from_millis(limits::NBD_WRITE_STALL_MS_MAX))
    }

    fn count(&mut self, now: Time, bytes: usize) {
        self.given += bytes as u64;
        self.unsent += bytes;
        let (since, target) = self.stall.get_or_insert((now, self.given));
        if *since == now {
            *target = self.given;
        }
    }
}
