//! What a front asks of a volume, and what it gets back.

use proto::{BlockState, Buffer, LayerId, Payload};

/// Names a request among those of one front's connection that are in flight. The front chooses
/// it; it comes back with the completion.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RequestId(pub u64);

/// One request of a guest. Offset and length are bytes and multiples of the sector size; the
/// session checks both, and that they lie inside the volume.
#[derive(Debug)]
pub struct Request {
    /// Comes back with the completion.
    pub id: RequestId,
    /// Where it starts, in bytes from the start of the volume. 0 for [`Operation::Flush`].
    pub offset: u64,
    /// How many bytes it covers. 0 for [`Operation::Flush`].
    pub length: u64,
    /// What to do there.
    pub operation: Operation,
}

/// What a request does.
#[derive(Debug)]
pub enum Operation {
    /// Bring the content. Completed by [`Completion::Data`].
    Read,
    /// Replace the content. Completed by [`Completion::Done`].
    Write {
        /// Covers the request's offset rounded down to a block up to its end rounded up to a
        /// block. The guest's bytes sit at their place in it; what lies before and after them is
        /// arbitrary, and the session fills it in without copying the middle.
        buffer: Buffer,
        /// Complete only when the write is on stable media.
        fua: bool,
    },
    /// The content is not needed any more: it may read as zeros or as before. Completed by
    /// [`Completion::Done`].
    Discard {
        /// Complete only when the change is on stable media.
        fua: bool,
    },
    /// The content reads as zeros from now on. Completed by [`Completion::Done`].
    WriteZeroes {
        /// Whether the space may be given back; otherwise it is kept allocated.
        may_unmap: bool,
        /// Fail with [`Error::NotFast`] where it would take as long as writing the zeros.
        fast_only: bool,
        /// Complete only when the change is on stable media.
        fua: bool,
    },
    /// Make every write completed before stable. Completed by [`Completion::Done`].
    Flush,
    /// What kind of content there is. Completed by [`Completion::Status`].
    Status,
    /// What differs from a snapshot below in the volume's lineage. Completed by
    /// [`Completion::Difference`], or by [`Error::UnknownBase`] if that snapshot does not exist
    /// when the answer is complete.
    Difference {
        /// The snapshot's layer; layer 0: nothing at all.
        base: LayerId,
    },
    /// The content will be read soon. Completed by [`Completion::Done`].
    Prefetch,
}

/// What a front learns about the volumes, when it asks which there are or wants one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The volumes' names, in order.
    Listed(Vec<String>),
    /// The volume could be attached.
    Described {
        /// Its size in bytes, a multiple of 512.
        bytes: u64,
        /// Whether only reads are possible.
        read_only: bool,
    },
    /// The volume is attached: requests may come.
    Opened {
        /// Its size in bytes, a multiple of 512.
        bytes: u64,
        /// Whether only reads are possible.
        read_only: bool,
    },
    /// No such volume.
    Unknown {
        /// One sentence for people.
        sentence: String,
    },
    /// It exists but cannot be had: somebody else holds it, or the node is not ready.
    Refused {
        /// One sentence for people.
        sentence: String,
    },
    /// What its content can be compared with, newest first; nothing where there is no such volume.
    Bases(Vec<Base>),
}

/// A snapshot that a volume, or a later snapshot, can be compared with by
/// [`Operation::Difference`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base {
    /// What it is called among the snapshots of its volume.
    pub tag: String,
    /// Its layer, which is never used for anything else.
    pub layer: LayerId,
}

/// Which bases a front wants to know.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tags {
    /// All, from the newest on, at most `BASES_LISTED_MAX`.
    pub all: bool,
    /// And those of these that are any.
    pub named: Vec<String>,
}

/// What a request that succeeded brings.
#[derive(Debug)]
pub enum Completion {
    /// Nothing to tell.
    Done,
    /// The content, in order; together exactly the length asked for.
    Data(Vec<Payload>),
    /// Runs of equal state, in order. Together they cover at least a part from the start of what
    /// was asked for, and nothing past its end.
    Status(Vec<Extent>),
    /// Runs in order; they cover as much as those of a status.
    Difference(Vec<Changed>),
}

/// A run of bytes that is the same as in the base, or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Changed {
    /// How many bytes, never 0.
    pub length: u64,
    /// Nothing if it is the same, else what it is now. Against nothing at all: nothing where
    /// there is nothing.
    pub state: Option<BlockState>,
}

/// A run of bytes with one kind of content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// How many bytes, never 0.
    pub length: u64,
    /// What they are.
    pub state: BlockState,
}

/// Why a request was not done. Each text is a sentence a front may show to the guest's owner.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// It leaves the volume.
    #[error("the request leaves the volume; look at the size with `dog volume info`")]
    OutOfRange,
    /// Offset or length is not a multiple of the sector size.
    #[error("offset and length must be multiples of 512 bytes; use a sector size of 512 or 4096")]
    Misaligned,
    /// There is no space for new data; overwriting, discarding and deleting still work.
    #[error("no space left for new data; delete or discard something, or give the disk more room")]
    NoSpace,
    /// The volume is attached read only.
    #[error("the volume is attached read only; attach it for writing first")]
    ReadOnly,
    /// Every copy of a block is damaged.
    #[error(
        "the data at byte {offset} is damaged on every disk that has it; restore it from a backup"
    )]
    Corrupt {
        /// The start of the first damaged block, in bytes from the start of the volume.
        offset: u64,
    },
    /// A newer attachment exists: this one ends.
    #[error("the volume was attached elsewhere, which ended this attachment; attach it again")]
    Fenced,
    /// Zeroing would be as slow as writing, and the guest wanted it only when fast.
    #[error("zeroing fast is not possible here; write the zeros instead")]
    NotFast,
    /// It covers more than one request may.
    #[error("the request is too long; split it")]
    TooLong,
    /// The layer to compare with is not one below this one that is sealed.
    #[error("there is no such snapshot below, or not any more; compare with one that exists")]
    UnknownBase,
    /// The disks failed. The text says which and how.
    #[error("the disks failed: {0}")]
    Io(String),
}
