//! The stream's bytes as drawn, and everything that may be wrong with them.

use super::stream::{Damage, Decoder, Encoder, Header, Item, Totals};
use corpus::check;

#[path = "../../../../../fuzz/inputs/corpus.rs"]
mod corpus;
/// What the fuzzer runs, with the parser as it has it.
#[path = "../../../../../fuzz/inputs/diff_stream.rs"]
mod diff_stream;

fn header() -> Header {
    Header {
        cluster: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
        volume_id: 7,
        from_layer: 8,
        to_layer: 9,
        from_bytes: 1 << 20,
        to_bytes: 2 << 20,
        start: 0,
        sample: 0x1122_3344_5566_7788,
        volume: "web".into(),
        from: Some("monday".into()),
        to: Some("tuesday".into()),
    }
}

fn full() -> Header {
    let header = header();
    Header { from: None, from_layer: 0, from_bytes: 0, sample: 0, ..header }
}

/// A stream of these, whose data is bytes of 0xab.
fn stream(header: &Header, items: &[(u64, u64, bool)]) -> Vec<u8> {
    let (mut encoder, mut bytes) = Encoder::begin(header);
    for &(offset, length, zero) in items {
        if zero {
            bytes.extend(encoder.zero(offset, length));
        } else {
            let content = vec![0xab; length as usize];
            bytes.extend(encoder.data(offset, &content));
            bytes.extend(content);
        }
    }
    bytes.extend(encoder.end().0);
    bytes
}

fn small() -> Vec<u8> {
    stream(&header(), &[(4096, 4096, false), (16_384, 1 << 20, true), (2_093_056, 4096, false)])
}

/// All that a stream brings when it comes in pieces of this size.
fn decode(bytes: &[u8], piece: usize) -> Result<Vec<Item>, Damage> {
    let mut decoder = Decoder::default();
    let mut items = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        while let Some(item) = decoder.next()? {
            items.push(item);
        }
    }
    decoder.finish()?;
    Ok(items)
}

#[test]
fn streams_come_out_as_they_went_in_whatever_the_pieces() {
    for piece in [1, 7, 4096, 1 << 20] {
        let items = decode(&small(), piece).expect("a whole stream");
        let totals = Totals { records: 3, data_bytes: 8192, zero_bytes: 1 << 20 };
        let data = |offset| Item::Data { offset, content: vec![0xab; 4096] };
        let expected = [
            Item::Header(header()),
            data(4096),
            Item::Zero { offset: 16_384, length: 1 << 20 },
            data(2_093_056),
            Item::End(totals),
        ];
        assert_eq!(items, expected);
    }
    let live = Header { to: None, to_layer: 0, ..full() };
    let late = Header { start: 8192, ..header() };
    for header in [full(), live, late] {
        let items = decode(&stream(&header, &[(8192, 4096, false)]), 100).expect("whole");
        assert_eq!(items[0], Item::Header(header));
    }
}

#[test]
fn bytes_are_those_of_the_drawing() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let head = header().encode();
    let text = "5348454550444946 01000000 80000000 100f0e0d0c0b0a090807060504030201 \
        0700000000000000 0800000000000000 0900000000000000 0000100000000000 0000200000000000 \
        0000000000000000 8877665544332211 01000000 0300 0600 0700 000000000000 \
        776562 6d6f6e646179 74756573646179";
    let text: String = text.split_whitespace().collect();
    assert_eq!(hex(&head[..120]), text);
    assert_eq!(head[120..128], proto::crc64(&head[..120]).to_le_bytes());
    let (mut encoder, head) = Encoder::begin(&header());
    let zero = encoder.zero(4096, 8192);
    assert_eq!(hex(&zero[..24]), "020000000000000000100000000000000020000000000000");
    let place = (head.len() as u64).to_le_bytes();
    let key = &head[head.len() - 8..];
    let keyed = [key, &place[..], &zero[..24]].concat();
    assert_eq!(zero[24..], proto::crc64(&keyed).to_le_bytes());
    let (end, _) = encoder.end();
    assert_eq!(hex(&end[..24]), "030000002000000000002000000000000000000000000000");
    assert_eq!(hex(&end[32..56]), "010000000000000000000000000000000020000000000000");
    assert_eq!(end[56..], proto::crc64(&[&head[..], &zero].concat()).to_le_bytes());
}

#[test]
fn no_bit_can_change_unnoticed_and_its_place_is_told() {
    let whole = small();
    let head = header().encode().len() as u64;
    let records = [head, head + 32 + 4096, head + 64 + 4096, head + 96 + 8192];
    let reached = [0, 8192, 16_384 + (1 << 20), 2_097_152];
    for at in (0..whole.len()).filter(|at| *at < 300 || at % 97 == 0 || whole.len() - at < 70) {
        let mut spoiled = whole.clone();
        spoiled[at] ^= 1 << (at % 8);
        let damage = decode(&spoiled, 1 << 20).expect_err("it is damaged");
        if (at as u64) < head {
            assert_eq!((damage.at, damage.volume_at), (0, None), "byte {at}: {damage}");
        } else {
            let record = records.iter().rposition(|begin| *begin <= at as u64).expect("after it");
            let expected = (records[record], Some(reached[record]));
            assert_eq!((damage.at, damage.volume_at), expected, "byte {at}: {damage}");
        }
    }
}

#[test]
fn a_stream_that_ends_early_goes_on_or_is_mixed_is_refused() {
    let whole = small();
    for end in (0..whole.len()).filter(|end| *end < 200 || end % 89 == 0) {
        let damage = decode(&whole[..end], 4096).expect_err("it is cut");
        assert_eq!((damage.at, damage.what), (end as u64, "the stream ends too early"));
    }
    let check = |bytes: &[u8], at: usize, what: &str| {
        let damage = decode(bytes, 4096).expect_err(what);
        assert_eq!((damage.at as usize, damage.what.contains(what)), (at, true), "{damage}");
    };
    check(&[&whole[..], b"x"].concat(), whole.len(), "follow");
    check(b"QFI\xfb", 0, "no stream");
    check(b"S", 1, "early");
    let head = header().encode().len();
    let (first, second) = (&whole[head..head + 4128], &whole[head + 4128..head + 4160]);
    let rest = &whole[head + 4160..];
    // Left out, repeated, in another order, of another stream.
    check(&[&whole[..head], second, rest].concat(), head, "checksum");
    check(&[&whole[..head], first, first, rest].concat(), head + 4128, "place");
    check(&[&whole[..head], second, first, rest].concat(), head, "checksum");
    let other = stream(&Header { volume: "abc".into(), ..header() }, &[(4096, 4096, false)]);
    check(&[&whole[..head], &other[head..]].concat(), head, "checksum");
    let version = [&whole[..8], &[2], &whole[9..]].concat();
    check(&version, 0, "another version");
}

#[test]
fn headers_that_make_no_sense_are_refused_though_their_checksums_fit() {
    let good = header();
    let refused = |header: Header| {
        let bytes = header.encode();
        assert!(Header::decode(&bytes).is_err(), "{header:?}");
    };
    assert_eq!(Header::decode(&good.encode()), Ok(good.clone()));
    refused(Header { to_bytes: 0, ..good.clone() });
    refused(Header { to_bytes: 4095, ..good.clone() });
    refused(Header { to_bytes: 1 << 51, ..good.clone() });
    refused(Header { from_bytes: 0, ..good.clone() });
    refused(Header { start: 100, ..good.clone() });
    refused(Header { start: (2 << 20) + 4096, ..good.clone() });
    refused(Header { start: 4096, to: None, ..good.clone() });
    refused(Header { from: None, ..good.clone() });
    refused(Header { volume: String::new(), ..good.clone() });
    for name in ["a b", "a@b", "a/b", "a\u{1b}[2J"] {
        refused(Header { volume: name.into(), ..good.clone() });
        refused(Header { from: Some(name.into()), ..good.clone() });
        refused(Header { to: Some(name.into()), ..good.clone() });
    }
    refused(Header { to: good.from.clone(), ..good.clone() });
    let later = Header { start: 4096, ..good.clone() };
    assert!(good.is_same_stream(&later));
    assert!(!good.is_same_stream(&Header { to_layer: 10, ..good.clone() }));
}

#[test]
fn corpus_of_streams() {
    let whole = small();
    let cut = |end: usize| whole[..end].to_vec();
    let spoiled = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    let longest = Header {
        volume: "v".repeat(255),
        from: Some("f".repeat(255)),
        to: Some("t".repeat(255)),
        ..header()
    };
    // The first byte says in which pieces it comes, and whether checksums are made to fit.
    let seed = |choice: u8, bytes: Vec<u8>| [vec![choice], bytes].concat();
    let seeds = vec![
        ("empty", Vec::new()),
        ("whole", seed(0, whole.clone())),
        ("whole-bytewise", seed(1, whole.clone())),
        ("full", seed(0, stream(&full(), &[(0, 4096, false)]))),
        ("nothing-changed", seed(0, stream(&header(), &[]))),
        ("live", seed(0, stream(&Header { to: None, to_layer: 0, ..full() }, &[]))),
        ("late-start", seed(0, stream(&Header { start: 1 << 20, ..header() }, &[]))),
        ("longest-names", seed(0, stream(&longest, &[(0, 8192, true)]))),
        ("cut-in-header", seed(0, cut(50))),
        ("cut-in-record", seed(0, cut(150))),
        ("cut-in-payload", seed(0, cut(1000))),
        ("cut-in-end", seed(0, cut(whole.len() - 5))),
        ("spoiled-header", seed(0, spoiled(40))),
        ("spoiled-record", seed(0, spoiled(140))),
        ("spoiled-payload", seed(0, spoiled(2000))),
        ("spoiled-end", seed(0, spoiled(whole.len() - 20))),
        ("spoiled-header-that-fits", seed(2, spoiled(66))),
        ("spoiled-record-that-fits", seed(2, spoiled(137))),
        ("bytes-behind", seed(0, [&whole[..], b"more"].concat())),
        ("another-version", seed(2, [&whole[..8], &[9], &whole[9..]].concat())),
        ("no-stream", seed(0, b"QFI\xfb\0\0\0\x03".to_vec())),
    ];
    check("diff_stream", seeds, diff_stream::diff_stream);
}
