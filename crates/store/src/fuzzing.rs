//! The parsers of everything that is read from a disk's medium, for fuzzing and its corpus.

use crate::layout::{
    BATCH_HEADER_BYTES, PageName, encode_record, parse_batch, parse_bitmap, parse_drops,
    parse_layers, parse_lineages, parse_map_page, parse_marks, parse_partitions, parse_records,
    parse_root, parse_state, parse_superblock, parse_table,
};
use proto::{BLOCK_SIZE, LayerId, LineageId, ObjectKey};

/// Where the checksum of a superblock is, and that of everything else.
const SUPERBLOCK_CHECKSUM_AT: usize = 16;
const CHECKSUM_AT: usize = 8;
/// Where a batch says how long it is.
const BATCH_LENGTH_AT: usize = 48;

/// Some bytes as the medium may give them back. The first byte says what they are read as, and
/// whether their checksum is made to fit, so that what lies behind it is reached.
pub fn disk_record(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    let fitting = choice & 0x80 == 0;
    match choice & 15 {
        0 => superblock(&mut bytes, fitting),
        1 => batch(&mut bytes, fitting),
        2 => records(&bytes),
        3 => map_page(&mut bytes, fitting),
        kind => checkpoint_page(kind, &mut bytes, fitting),
    }
}

fn superblock(bytes: &mut Vec<u8>, fitting: bool) {
    bytes.resize(BLOCK_SIZE, 0);
    if fitting {
        seal(bytes, SUPERBLOCK_CHECKSUM_AT);
    }
    if let Ok(superblock) = parse_superblock(bytes) {
        let again = parse_superblock(superblock.encode().as_slice());
        assert_eq!(again, Ok(superblock), "what we write we can read");
    }
}

fn batch(bytes: &mut [u8], fitting: bool) {
    let length = bytes
        .get(BATCH_LENGTH_AT..BATCH_LENGTH_AT + 4)
        .map_or(0, |length| u32::from_le_bytes(length.try_into().expect("four bytes")) as usize);
    if fitting && let Some(whole) = bytes.get_mut(..length) {
        seal(whole, CHECKSUM_AT);
    }
    if let Ok(header) = parse_batch(bytes) {
        let body = &bytes[BATCH_HEADER_BYTES..header.length as usize];
        let _ = parse_records(body, header.records);
    }
}

/// The body of a batch: a number, then as many records.
fn records(bytes: &[u8]) {
    let Some((&count, body)) = bytes.split_first() else { return };
    let Some(records) = parse_records(body, u32::from(count)) else { return };
    assert_eq!(records.len(), usize::from(count));
    let mut again = Vec::new();
    records.iter().for_each(|record| encode_record(record, &mut again));
    assert_eq!(parse_records(&again, u32::from(count)), Some(records), "what we write we can read");
}

fn map_page(bytes: &mut Vec<u8>, fitting: bool) {
    bytes.resize(BLOCK_SIZE, 0);
    let sum = checksum(bytes, fitting);
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let index = u32::from_le_bytes(bytes[32..36].try_into().expect("four bytes"));
    let key = ObjectKey { layer: LayerId(u64_at(24)), index };
    let name = PageName { lineage: LineageId(u64_at(16)), key, page: bytes[36] };
    let _ = parse_map_page(bytes, &name, sum);
}

fn checkpoint_page(kind: u8, bytes: &mut Vec<u8>, fitting: bool) {
    bytes.resize(BLOCK_SIZE, 0);
    let sum = checksum(bytes, fitting);
    // The number that the page itself claims.
    let number = u32::from_le_bytes(bytes[16..20].try_into().expect("four bytes"));
    match kind {
        4 | 5 => drop(parse_table(bytes, number, sum)),
        6 | 7 => drop(parse_bitmap(bytes, number, sum)),
        8 | 9 => drop(parse_lineages(bytes, number, sum)),
        10 => drop(parse_drops(bytes, number, sum)),
        11 => drop(parse_layers(bytes, number, sum)),
        12 => drop(parse_state(bytes, sum).is_some()),
        13 => drop(parse_marks(bytes, number, sum)),
        15 => drop(parse_partitions(bytes, number, sum)),
        _ => drop(parse_root(bytes, number, sum)),
    }
}

/// The checksum in its place, made to fit first where that is wanted.
fn checksum(bytes: &mut [u8], fitting: bool) -> u64 {
    if fitting {
        seal(bytes, CHECKSUM_AT);
    }
    u64::from_le_bytes(bytes[CHECKSUM_AT..CHECKSUM_AT + 8].try_into().expect("eight bytes"))
}

fn seal(bytes: &mut [u8], at: usize) {
    if bytes.len() >= at + 8 {
        let sum = proto::crc64_around(bytes, at);
        bytes[at..at + 8].copy_from_slice(&sum.to_le_bytes());
    }
}
