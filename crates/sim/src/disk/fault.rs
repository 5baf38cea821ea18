//! What may go wrong with one operation of a medium.

use proto::{DiskError, Duration};
use std::ops::Range;

/// The five kinds of operation of the seam.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum OperationKind {
    /// `DiskRequest::Read`.
    Read,
    /// `DiskRequest::Write`.
    Write,
    /// `DiskRequest::Flush`.
    Flush,
    /// `DiskRequest::Discard`.
    Discard,
    /// `DiskRequest::Allocate`.
    Allocate,
}

/// A rule: operations of one kind that touch a range meet an effect.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which operations.
    pub on: OperationKind,
    /// Bytes of the medium that the operation must touch. A flush touches everything.
    pub range: Range<u64>,
    /// How many more operations it hits; nothing: all of them, for ever.
    pub times: Option<u32>,
    /// With what probability it hits an operation that fits, in millionths.
    pub per_million: u32,
    /// What happens.
    pub effect: Effect,
}

/// What happens to an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails. A failed write or flush leaves what it concerned unknown: parts may be there,
    /// and a later flush that succeeds says nothing about them.
    Error(DiskError),
    /// It takes this much longer.
    Delay(Duration),
    /// It does not end until [`super::SimDisk::release`] is called.
    Hang,
    /// A write lands, or a read is taken from, this many bytes further on. Reported as success.
    Misdirect(i64),
    /// A write is reported as done and lost. A flush is reported as done and makes nothing durable.
    Lose,
    /// A flush fails, and yet is reported as done: what a program sees that tries again.
    Swallow,
    /// A read brings one wrong bit; the medium itself is whole.
    FlipOnRead,
}

impl Fault {
    /// Every operation of this kind, everywhere, for ever.
    pub fn always(on: OperationKind, effect: Effect) -> Fault {
        Fault { on, range: 0..u64::MAX, times: None, per_million: 1_000_000, effect }
    }

    /// The next operation of this kind, wherever it goes.
    pub fn once(on: OperationKind, effect: Effect) -> Fault {
        Fault { times: Some(1), ..Fault::always(on, effect) }
    }

    /// The same, only where the range is touched.
    pub fn within(self, range: Range<u64>) -> Fault {
        Fault { range, ..self }
    }

    /// The same, only with this probability.
    pub fn per_million(self, per_million: u32) -> Fault {
        Fault { per_million, ..self }
    }
}
