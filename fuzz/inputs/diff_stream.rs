#[path = "../../crates/node/src/dog/diff/stream.rs"]
#[allow(dead_code, clippy::duplicate_mod, reason = "the parser itself, without its crate")]
mod stream;

use proto::limits::{DIFF_HEADER_BYTES_MAX, DIFF_RECORD_BYTES_MAX};
use stream::{Decoder, Encoder, Header, Item};

/// A stream of changes as anybody may send it. The first byte says in which pieces it comes, and
/// whether the checksums of its header and first record are made to fit. What is accepted must be
/// in order, within the limits, and the same when it is written again.
pub fn diff_stream(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if choice & 2 != 0 {
        fit(&mut bytes);
    }
    let piece = if choice & 1 != 0 { 1 } else { 4096 };
    let mut decoder = Decoder::default();
    let mut items = Vec::new();
    let mut damaged = false;
    'stream: for piece in bytes.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(damage) => {
                    assert!(damage.at <= bytes.len() as u64);
                    assert_eq!(decoder.next(), Err(damage), "damage is for ever");
                    damaged = true;
                    break 'stream;
                }
            }
        }
        let held_max = DIFF_HEADER_BYTES_MAX.max(32 + DIFF_RECORD_BYTES_MAX) + piece.len();
        assert!(decoder.held_bytes() <= held_max, "too much is held");
    }
    let whole = decoder.finish();
    assert!(whole.is_err() || !damaged);
    match items.split_first() {
        Some((Item::Header(header), rest)) => again(header, rest, whole.is_ok().then_some(&bytes)),
        Some(_) => panic!("a stream begins with its header"),
        None => assert!(whole.is_err()),
    }
}

/// Makes the header's checksum fit, and that of the record behind it.
fn fit(bytes: &mut [u8]) {
    let Some(length) = bytes.get(12..16) else { return };
    let head = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    if !(112..=DIFF_HEADER_BYTES_MAX).contains(&head) || bytes.len() < head + 32 {
        return;
    }
    let key = proto::crc64(&bytes[..head - 8]).to_le_bytes();
    bytes[head - 8..head].copy_from_slice(&key);
    let length = u32::from_le_bytes(bytes[head + 4..head + 8].try_into().expect("four bytes"));
    let Some(payload) = bytes.get(head + 32..).and_then(|rest| rest.get(..length as usize)) else {
        return;
    };
    let keyed = [&key[..], &(head as u64).to_le_bytes(), &bytes[head..head + 24], payload].concat();
    let checksum = proto::crc64(&keyed).to_le_bytes();
    bytes[head + 24..head + 32].copy_from_slice(&checksum);
}

/// What was accepted is in order, and is written as it was read.
fn again(header: &Header, items: &[Item], whole: Option<&Vec<u8>>) {
    let (mut encoder, mut written) = Encoder::begin(header);
    let mut reached = header.start;
    for item in items {
        let (offset, length) = match item {
            Item::Header(_) => panic!("a second header"),
            Item::Data { offset, content } => {
                assert!(content.len() <= DIFF_RECORD_BYTES_MAX);
                written.extend(encoder.data(*offset, content));
                written.extend(content);
                (*offset, content.len() as u64)
            }
            Item::Zero { offset, length } => {
                written.extend(encoder.zero(*offset, *length));
                (*offset, *length)
            }
            Item::End(_) => continue,
        };
        assert!(offset >= reached && length > 0 && offset % 4096 == 0 && length % 4096 == 0);
        reached = offset + length;
        assert!(reached <= header.to_bytes);
    }
    if let Some(whole) = whole {
        assert!(matches!(items.last(), Some(Item::End(_))), "a whole stream has an end");
        written.extend(encoder.end().0);
        assert!(written == *whole, "it is written as it was read");
    }
}
