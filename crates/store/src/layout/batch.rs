//! A batch of the log: a header, then records.

use super::codec::{Cursor, Put, Reader, is_sealed, seal};
use proto::{DiskId, Incarnation, Mistake, planted};

const MAGIC: u32 = u32::from_le_bytes(*b"SLOG");
const VERSION: u16 = 1;
const CHECKSUM_AT: usize = 8;
/// Length of the header.
pub(crate) const BATCH_HEADER_BYTES: usize = 72;

/// What a batch says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BatchHeader {
    pub(crate) sequence: u64,
    /// The number of the first record; without records, of the next one.
    pub(crate) first_lsn: u64,
    /// All records up to here were durable, with their data, when the batch was built.
    pub(crate) durable_lsn: u64,
    pub(crate) incarnation: Incarnation,
    /// Bytes used, header included.
    pub(crate) length: u32,
    pub(crate) records: u32,
    pub(crate) disk: DiskId,
}

/// Fills in the header before the records, and the checksum over `header.length` bytes.
pub(crate) fn seal_batch(bytes: &mut [u8], header: &BatchHeader) {
    let bytes = &mut bytes[..header.length as usize];
    let mut out = Cursor::new(bytes);
    out.put_u32(MAGIC);
    out.put_u16(VERSION);
    out.put_u16(0);
    out.put_u64(0);
    out.put_u64(header.sequence);
    out.put_u64(header.first_lsn);
    out.put_u64(header.durable_lsn);
    out.put_u64(header.incarnation.0);
    out.put_u32(header.length);
    out.put_u32(header.records);
    out.put_u128(header.disk.0);
    seal(bytes, CHECKSUM_AT);
}

/// How far a batch could be parsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BatchError {
    /// No batch of ours.
    None,
    /// The header looks right but `length` bytes are needed to know.
    More(usize),
}

/// Parses the batch at the start of `bytes`, which may hold more. Its records are
/// `bytes[BATCH_HEADER_BYTES..length]`.
pub(crate) fn parse_batch(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = parse_header(bytes).ok_or(BatchError::None)?;
    let length = header.length as usize;
    let whole = bytes.get(..length).ok_or(BatchError::More(length))?;
    if !is_sealed(whole, CHECKSUM_AT) && !planted(Mistake::TornBatchAccepted) {
        return Err(BatchError::None);
    }
    Ok(header)
}

fn parse_header(bytes: &[u8]) -> Option<BatchHeader> {
    let mut fields = Reader::new(bytes);
    if fields.u32()? != MAGIC || fields.u16()? != VERSION || fields.u16()? != 0 {
        return None;
    }
    fields.u64()?;
    let header = BatchHeader {
        sequence: fields.u64()?,
        first_lsn: fields.u64()?,
        durable_lsn: fields.u64()?,
        incarnation: Incarnation(fields.u64()?),
        length: fields.u32()?,
        records: fields.u32()?,
        disk: DiskId(fields.u128()?),
    };
    let sound = header.length as usize >= BATCH_HEADER_BYTES
        && header.sequence > 0
        && header.first_lsn > 0
        && header.first_lsn.checked_add(u64::from(header.records)).is_some();
    sound.then_some(header)
}
