//! The numbers of the NBD protocol that a client needs, from the protocol's own document. Kept
//! apart from the server's on purpose: two readings of the same text check each other.

/// "NBDMAGIC", the server's first word.
pub const MAGIC_HELLO: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT", before each option of the client, and the server's second word.
pub const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
/// Before each answer to an option.
pub const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Before each request.
pub const MAGIC_REQUEST: u32 = 0x2560_9513;
/// Before each request with an extended header.
pub const MAGIC_EXTENDED_REQUEST: u32 = 0x21e4_1c71;
/// Before each simple reply.
pub const MAGIC_SIMPLE_REPLY: u32 = 0x6744_6698;
/// Before each chunk of a structured reply.
pub const MAGIC_STRUCTURED_REPLY: u32 = 0x668e_33ef;
/// Before each chunk of a reply with extended headers.
pub const MAGIC_EXTENDED_REPLY: u32 = 0x6e8a_278c;

/// Handshake flags, the same bits both ways: fixed newstyle, and no zeroes after EXPORT_NAME.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// See [`FLAG_FIXED_NEWSTYLE`].
pub const FLAG_NO_ZEROES: u16 = 2;

/// Options: attach.
pub const OPTION_GO: u32 = 7;
/// Ask for structured replies.
pub const OPTION_STRUCTURED_REPLY: u32 = 8;
/// Ask for block status in a context.
pub const OPTION_SET_META_CONTEXT: u32 = 10;
/// Ask for extended headers, which are more than structured replies.
pub const OPTION_EXTENDED_HEADERS: u32 = 11;

/// Answers to options: done.
pub const REPLY_ACK: u32 = 1;
/// A fact about an export.
pub const REPLY_INFO: u32 = 3;
/// The number of a context.
pub const REPLY_META_CONTEXT: u32 = 4;
/// The bit of all errors.
pub const REPLY_ERROR_BIT: u32 = 1 << 31;
/// Refused by policy: somebody else holds the export.
pub const REPLY_ERROR_POLICY: u32 = REPLY_ERROR_BIT + 2;
/// No such export.
pub const REPLY_ERROR_UNKNOWN: u32 = REPLY_ERROR_BIT + 6;

/// Facts: size and flags.
pub const INFO_EXPORT: u16 = 0;
/// Block sizes.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Export flags: the export takes no writes.
pub const EXPORT_READ_ONLY: u16 = 1 << 1;

/// Commands.
pub const COMMAND_READ: u16 = 0;
/// Write.
pub const COMMAND_WRITE: u16 = 1;
/// Disconnect; it has no reply.
pub const COMMAND_DISCONNECT: u16 = 2;
/// Flush.
pub const COMMAND_FLUSH: u16 = 3;
/// Discard.
pub const COMMAND_TRIM: u16 = 4;
/// Write zeroes.
pub const COMMAND_WRITE_ZEROES: u16 = 6;
/// Block status.
pub const COMMAND_BLOCK_STATUS: u16 = 7;

/// Command flags: complete only when stable.
pub const COMMAND_FLAG_FUA: u16 = 1;
/// Write zeroes without giving space back.
pub const COMMAND_FLAG_NO_HOLE: u16 = 2;
/// Write zeroes only when fast.
pub const COMMAND_FLAG_FAST_ZERO: u16 = 16;
/// With extended headers: the length is that of the bytes behind the header.
pub const COMMAND_FLAG_PAYLOAD_LENGTH: u16 = 32;

/// Chunk flag: the last of its reply.
pub const CHUNK_FLAG_DONE: u16 = 1;
/// Chunks: nothing.
pub const CHUNK_NONE: u16 = 0;
/// Data at an offset.
pub const CHUNK_OFFSET_DATA: u16 = 1;
/// Zeros at an offset.
pub const CHUNK_OFFSET_HOLE: u16 = 2;
/// Runs of one status.
pub const CHUNK_BLOCK_STATUS: u16 = 5;
/// Runs of one status, with lengths of 64 bits.
pub const CHUNK_BLOCK_STATUS_EXTENDED: u16 = 6;
/// The bit of all errors.
pub const CHUNK_ERROR_BIT: u16 = 1 << 15;
/// An error with an offset behind its message.
pub const CHUNK_ERROR_OFFSET: u16 = CHUNK_ERROR_BIT + 2;

/// Status bits in `base:allocation`: no space is taken.
pub const STATUS_HOLE: u64 = 1;
/// It reads as zeros.
pub const STATUS_ZERO: u64 = 2;

/// The context every server of block status knows.
pub const CONTEXT_ALLOCATION: &str = "base:allocation";

/// Before a snapshot's tag: the context that says what differs from it.
pub const CONTEXT_DIRTY: &str = "sheepdog:dirty/";
/// Status bits in contexts that begin with [`CONTEXT_DIRTY`]: it may differ.
pub const STATUS_DIRTY: u64 = 1;
/// It may differ and reads as zeros.
pub const STATUS_DIRTY_ZERO: u64 = 2;

/// What an error number means, for replies without a message of their own.
pub fn error_sentence(code: u32) -> String {
    match code {
        1 => "the volume takes no writes".to_string(),
        5 => "the disks failed or the data is damaged; look at `dog status`".to_string(),
        12 => "the daemon has no memory for it now; try again later".to_string(),
        22 => "the daemon calls the request invalid; offset and length must be multiples of 512 \
               bytes inside the volume"
            .to_string(),
        28 => {
            "no space is left for new data; delete or discard something, or give the disk more room"
                .to_string()
        }
        75 => "the request is too long".to_string(),
        95 => "it cannot be done that fast; leave --fast away".to_string(),
        108 => "the daemon is stopping; try again when it runs".to_string(),
        _ => format!("the daemon answered with error {code}; look at its log"),
    }
}
