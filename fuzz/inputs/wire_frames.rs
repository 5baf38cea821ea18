use proto::wire::reply::{self, Expected};
use proto::wire::{HEADER_BYTES, Header, Hello, Kind, Seal, note, request};
use proto::{
    BlockRange, Buffer, Crc32c, Duration, LayerId, LineageId, MemberError, MemberReply, ObjectKey,
    PartitionId, Payload,
};

/// A frame between nodes as anybody may send it. The first byte says whether its checksums are made
/// to fit. What is accepted must be within the limits, and the same when it is written again.
pub fn wire_frames(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if choice & 1 != 0 {
        fit(&mut bytes);
    }
    let Some(head) = bytes.first_chunk() else { return };
    let Ok(header) = Header::parse(head, Seal::HELLO) else { return };
    let rest = &bytes[HEADER_BYTES..];
    let Some((body, rest)) = rest.split_at_checked(header.body_bytes) else { return };
    let Some((payload, _)) = rest.split_at_checked(header.payload_bytes) else { return };
    if header.verify(body, payload).is_err() {
        return;
    }
    let frame = &bytes[..HEADER_BYTES + header.body_bytes];
    let payload = (!payload.is_empty())
        .then(|| Buffer::copy_of(payload).freeze().slice(0, header.payload_bytes));
    let mut again = Vec::new();
    if header.kind.is_request() {
        let Ok((disk, request)) = request::decode(&header, body, payload) else { return };
        assert_eq!(request::vet(&request), Ok(()));
        assert!((4096..=1 << 20).contains(&request::cost(&request)));
        request::put(&mut again, Seal::HELLO, header.id, disk, &request);
    } else if header.kind.is_reply() {
        if !answer(&header, body, payload, &mut again) {
            return;
        }
    } else if !put_note(&header, body, payload, &mut again) {
        return;
    }
    assert!(again == frame, "it is written as it was read");
}

/// Decodes an answer as one to the question that it would fit.
fn answer(header: &Header, body: &[u8], payload: Option<Payload>, again: &mut Vec<u8>) -> bool {
    let number = |at: usize, bytes: usize| -> u64 {
        body[at..at + bytes].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let covered = || body.chunks(4).map(|run| u32::from(run[0]) | u32::from(run[1]) << 8).sum();
    let expected = match header.kind {
        Kind::Fenced => Some(Expected::Fenced { list: true, after: ObjectKey::default() }),
        Kind::ObjectStamp => {
            let key = ObjectKey { layer: LayerId(number(0, 8)), index: number(8, 4) as u32 };
            Some(Expected::Stamp(key))
        }
        Kind::Written => Some(Expected::Written),
        Kind::Data => {
            let count = (header.payload_bytes / 4096) as u32;
            let first = if body.is_empty() { 0 } else { number(0, 2) as u32 };
            BlockRange::new(first, count).map(Expected::Data)
        }
        Kind::Blocks => BlockRange::new(0, covered()).map(Expected::Map),
        Kind::Differences => BlockRange::new(0, covered()).map(Expected::Difference),
        Kind::Reclaimed => Some(Expected::Reclaimable),
        Kind::Flushed => Some(Expected::Flushed),
        Kind::Confirmed => Some(Expected::Confirmed),
        Kind::LineageStamps => Some(Expected::Lineages { after: LineageId(0) }),
        Kind::Surveyed => {
            let (bits, partitions) = (0, vec![PartitionId(0)]);
            Some(Expected::Survey { bits, partitions, after: Default::default() })
        }
        Kind::BlockSums => BlockRange::new(0, body.len() as u32 / 9).map(Expected::Checksums),
        Kind::Refused => Some(Expected::Refused),
        Kind::Installed => Some(Expected::Installed),
        _ => Some(Expected::Done),
    };
    let Some(expected) = expected else { return false };
    let Ok(told) = reply::decode(header, body, payload, &expected) else { return false };
    if let Ok(MemberReply::Data { content, .. }) = &told.result {
        let is_aligned = |piece: &Payload| piece.as_slice().as_ptr().addr().is_multiple_of(4096);
        assert!(content.iter().all(is_aligned));
    }
    let promise: Duration = told.promise;
    reply::put(again, Seal::HELLO, header.id, promise, &told.result);
    let text = match &told.result {
        Err(MemberError::Invalid(text)) => text.as_bytes(),
        _ => body,
    };
    // What cannot be printed is not kept.
    text == body
}

/// Decodes and writes what is neither.
fn put_note(header: &Header, body: &[u8], payload: Option<Payload>, again: &mut Vec<u8>) -> bool {
    match header.kind {
        Kind::Hello => {
            let Ok(hello) = Hello::decode(header, body) else { return false };
            hello.put(again);
            // What a later version adds is not kept.
            body.len() == 128 && body[12..16] == [0; 4] && body[96..] == [0; 32]
        }
        Kind::Goodbye => {
            let Ok((why, text)) = note::goodbye(header, body) else { return false };
            note::put_goodbye(again, Seal::HELLO, why, &text);
            // What cannot be printed is not kept.
            text.as_bytes() == body
        }
        Kind::Beat => {
            let Ok(beat) = note::beat(header) else { return false };
            note::put_beat(again, Seal::HELLO, beat);
            true
        }
        Kind::Promise => {
            let Ok((beat, promises)) = note::promises(header, body) else { return false };
            note::put_promises(again, Seal::HELLO, beat, &promises);
            true
        }
        Kind::Credit => {
            let Ok((requests, bytes)) = note::credit(header) else { return false };
            note::put_credit(again, Seal::HELLO, requests, bytes);
            true
        }
        _ => {
            let Ok(channel) = note::control(header) else { return false };
            let message = payload.expect("no control message is empty");
            note::put_control(again, Seal::HELLO, channel, &message);
            true
        }
    }
}

/// Makes both checksums fit, and the version and number.
fn fit(bytes: &mut [u8]) {
    if bytes.len() < HEADER_BYTES {
        return;
    }
    bytes[2] = 1;
    bytes[16..20].fill(0);
    let body = usize::from(bytes[6]) | usize::from(bytes[7]) << 8;
    let payload = u32::from_le_bytes(bytes[20..24].try_into().expect("four bytes")) as usize;
    let end = (HEADER_BYTES + body).saturating_add(payload).min(bytes.len());
    let mut digest = Crc32c::default();
    digest.update(&bytes[HEADER_BYTES..end]);
    bytes[12..16].copy_from_slice(&digest.finish().to_le_bytes());
    bytes[8..12].fill(0);
    let checksum = proto::crc32c(&bytes[..HEADER_BYTES]);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
}
