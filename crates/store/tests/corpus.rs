//! Replays the fuzz corpora of what is read from a medium, and keeps their seeds: each is written
//! here, named for what it is. After a change of the seeds,
//! `UPDATE_CORPUS=1 cargo test -p store --test corpus` writes them anew.

#[path = "../../../fuzz/inputs/corpus.rs"]
mod corpus;
#[path = "../../../fuzz/inputs/journal_records.rs"]
mod journal_records;

type Seeds = Vec<(&'static str, Vec<u8>)>;

#[test]
fn corpus_of_journal_records() {
    corpus::check("journal_records", journal_seeds(), journal_records::journal_records);
}

#[test]
fn corpus_of_disk_records() {
    corpus::check("disk_records", disk_seeds(), store::fuzzing::disk_record);
}

/// Judged as this kind of record, with the checksum it has.
const UNSEALED: u8 = 0x80;

/// A record's head: magic, version 1, kind or flags, room for the checksum, then the rest.
fn head(magic: &[u8; 4], kind: u16, rest: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend(1u16.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(rest);
    bytes
}

/// One record of the log.
fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 1][..], &(body.len() as u16).to_le_bytes(), body].concat()
}

/// A write of two blocks of data, one of zeros, that frees one.
fn write_body() -> Vec<u8> {
    let mut body = Vec::new();
    body.extend([7u64, 1].map(u64::to_le_bytes).concat()); // lineage, layer
    body.extend(3u32.to_le_bytes()); // index
    body.extend([1u64, 4, 1, 5, 1, 2].map(u64::to_le_bytes).concat()); // stamps
    body.extend(2u16.to_le_bytes());
    body.extend([0, 0, 2, 0, 2, 9, 0, 0, 0, 0]); // blocks 0 and 1 at address 9
    body.extend([0xaa; 16]); // their checksums
    body.extend([5, 0, 1, 0, 1]); // block 5 is zero
    body.extend([1, 0, 8, 0, 0, 0, 0, 1, 0]); // address 8 is free
    body.extend([0, 0]); // nothing copied, no new row
    body
}

/// The same in a layer above, whose page 1 is copied from the one below.
fn copying_write_body() -> Vec<u8> {
    let mut body = write_body();
    body[8] = 9; // layer
    body.truncate(body.len() - 2);
    body.extend([1, 1, 7, 0, 0, 0, 0, 0, 0, 0]); // page 1 of layer 7
    body.push(1);
    body.extend(4u64.to_le_bytes()); // settled by
    body
}

/// A merge that moves one page, keeps one and frees a block.
fn merge_body() -> Vec<u8> {
    let mut body = [7u64, 7, 9].map(u64::to_le_bytes).concat(); // lineage, layer, target
    body.extend(3u32.to_le_bytes()); // index
    body.push(1);
    body.extend([1u64, 5, 4].map(u64::to_le_bytes).concat()); // stamp, settled by
    body.extend([0, 1, 9, 0, 0, 0, 0]); // page 0 stays, page 1 is at address 9
    body.extend([0xbb; 8]); // its checksum
    body.extend([3, 0, 2, 0]); // three blocks; page 2 is in both, page 3 in neither
    body.extend([1, 0, 0, 2, 4, 0]); // blocks 512 to 515 are owned now
    body.extend([1, 0, 8, 0, 0, 0, 0, 1, 0]); // address 8 is free
    body
}

/// An attempt with a partition that is refused, one that is not, and a fence.
fn attempt_body() -> Vec<u8> {
    let mut body = vec![3, 12]; // copies, bits
    body.extend(9u64.to_le_bytes());
    body.extend([1, 2, 0]); // it has ended; two partitions
    body.extend([7, 0, 0, 0, 1, 4, 0, 0, 0, 0, 0, 0, 0]);
    body.extend([8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    body.extend([1, 0]);
    body.extend([7u64, 5].map(u64::to_le_bytes).concat());
    body
}

fn disk_seeds() -> Seeds {
    let with = |choice: u8, bytes: Vec<u8>| [vec![choice], bytes].concat();
    let ids = [7u64, 1].map(u64::to_le_bytes).concat();
    let mut superblock = b"SHEEPDSK".to_vec();
    superblock.extend([1u32, 4096].map(u32::to_le_bytes).concat());
    superblock.extend([0; 8]);
    superblock.extend(1u64.to_le_bytes()); // sequence
    superblock.extend([1; 48]); // identity
    superblock.extend([1u64, 2, 0].map(u64::to_le_bytes).concat()); // incarnation, time, kind
    let numbers = [3u64, 16, 19, 0, 0, 1, 1, 0, 0].map(u64::to_le_bytes).concat();
    superblock.extend(numbers);
    let write = record(1, &write_body());
    let batch = |length: u32, records: u32| {
        let mut rest = [1u64, 1, 0, 1].map(u64::to_le_bytes).concat();
        rest.extend([length, records].map(u32::to_le_bytes).concat());
        rest.extend([9; 16]); // disk
        with(1, [head(b"SLOG", 0, &rest), write.clone()].concat())
    };
    let length = 72 + write.len() as u32;
    let records = |count: u8, bytes: Vec<u8>| [vec![2, count], bytes].concat();
    let page = |choice: u8, kind: u16, count: u32| {
        let rest = [&0u64.to_le_bytes()[..], &count.to_le_bytes(), &[1; 100]].concat();
        with(choice, head(b"SCKP", kind, &rest))
    };
    let map = head(b"SMAP", 1, &[ids.clone(), vec![3, 0, 0, 0, 0, 0, 0, 0]].concat());
    vec![
        ("empty", Vec::new()),
        ("superblock", with(0, superblock.clone())),
        ("superblock-unsealed", with(UNSEALED, superblock)),
        ("superblock-zero", with(UNSEALED, vec![0; 64])),
        ("batch-with-a-write", batch(length, 1)),
        ("batch-with-too-many-records", batch(length, u32::MAX)),
        ("batch-longer-than-the-medium", batch(u32::MAX, 1)),
        ("batch-shorter-than-its-header", batch(71, 0)),
        ("batch-of-nothing", batch(72, 0)),
        ("records-write", records(1, write.clone())),
        ("records-write-that-copies", records(1, record(1, &copying_write_body()))),
        ("records-write-cut", records(1, write[..write.len() - 1].to_vec())),
        ("records-fence-and-layer", { records(2, [record(2, &ids), record(5, &ids)].concat()) }),
        ("records-chunks", records(1, record(6, &[1, 0, 0, 0, 2, 0, 0, 0, 1]))),
        ("records-chunks-overflow", records(1, record(6, &[0xff; 9]))),
        ("records-scrub", records(1, record(7, &[1; 32]))),
        ("records-cut", records(1, record(8, &[1; 20]))),
        ("records-layer-and-gone", {
            let layer = [7u64, 9, 7].map(u64::to_le_bytes).concat();
            records(2, [record(9, &layer), record(10, &layer)].concat())
        }),
        ("records-layer-below-itself", {
            records(1, record(9, &[7u64, 9, 9].map(u64::to_le_bytes).concat()))
        }),
        ("records-merge", records(1, record(11, &merge_body()))),
        ("records-merge-downwards", {
            let mut body = merge_body();
            body[8] = 10;
            records(1, record(11, &body))
        }),
        ("records-settled-and-mark", {
            let settled = record(12, &[7u64, 1, 5].map(u64::to_le_bytes).concat());
            let mark = record(13, &[7u64, 2, 1, 5].map(u64::to_le_bytes).concat());
            records(2, [settled, mark].concat())
        }),
        ("records-attempt", records(1, record(14, &attempt_body()))),
        ("records-attempt-of-no-table", {
            let mut body = attempt_body();
            body[1] = 200;
            records(1, record(14, &body))
        }),
        ("records-adopt", records(1, record(15, &copying_write_body()))),
        ("records-adopt-settled-by-nobody", records(1, record(15, &write_body()))),
        ("records-of-no-type", records(1, record(99, &ids))),
        ("records-all-ones", records(255, vec![0xff; 300])),
        ("map-page-empty", with(3, map.clone())),
        ("map-page-unsealed", with(3 | UNSEALED, map)),
        ("table-page", page(4, 1, 30)),
        ("bitmap-page", page(6, 2, 2)),
        ("lineages-page", page(8, 3, 3)),
        ("drops-page", page(10, 6, 3)),
        ("layers-page", page(11, 7, 3)),
        ("marks-page", page(13, 9, 3)),
        ("partitions-page", page(15, 8, 3)),
        ("state-page", page(12, 4, 1)),
        ("root", page(14, 5, 2)),
        ("root-count-too-large", page(14, 5, u32::MAX)),
    ]
}

/// Judged as a header, as a frame with fitting checksums, as a frame with those it has.
const HEADER: u8 = 0;
const FITTING: u8 = 1;
const AS_IT_IS: u8 = 2;

/// A frame as `docs/formats/journal.md` draws it, its checksums yet to be made.
fn frame(kind: u16, body_bytes: u32, records: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"SJNL".to_vec();
    bytes.extend(1u16.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend([0; 16]); // the checksums
    bytes.extend(7u128.to_le_bytes()); // cluster
    bytes.extend(1u64.to_le_bytes()); // generation
    bytes.extend(2u64.to_le_bytes()); // sequence
    bytes.extend(256u32.to_le_bytes()); // prepared blocks
    bytes.extend(body_bytes.to_le_bytes());
    bytes.extend(records.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn journal_seeds() -> Seeds {
    let records =
        [&3u32.to_le_bytes()[..], b"one", &0u32.to_le_bytes(), &2u32.to_le_bytes(), b"no"];
    let records = records.concat();
    let length = records.len() as u32;
    let with = |choice: u8, bytes: Vec<u8>| [vec![choice], bytes].concat();
    let mut header = b"SHEEPJNL".to_vec();
    header.extend(1u32.to_le_bytes());
    header.extend(4096u32.to_le_bytes());
    header.resize(80, 1);
    vec![
        ("empty", Vec::new()),
        ("header-empty", vec![HEADER]),
        ("header-zero", with(HEADER, vec![0; 512])),
        ("header-unsealed", with(HEADER, header)),
        ("header-cut", with(HEADER, b"SHEEPJNL\x01".to_vec())),
        ("frame-records", with(FITTING, frame(2, length, 3, &records))),
        ("frame-records-unsealed", with(AS_IT_IS, frame(2, length, 3, &records))),
        ("frame-records-too-few", with(FITTING, frame(2, length, 2, &records))),
        ("frame-records-too-many", with(FITTING, frame(2, length, 4, &records))),
        ("frame-records-4-billion", with(FITTING, frame(2, length, u32::MAX, &records))),
        ("frame-record-of-4-gib", with(FITTING, frame(2, 4, 1, &[0xff; 4]))),
        ("frame-body-of-4-gib", with(FITTING, frame(2, u32::MAX, 1, &records))),
        ("frame-body-to-the-end", with(FITTING, frame(2, 440, 1, &records))),
        ("frame-body-past-the-end", with(FITTING, frame(2, 441, 1, &records))),
        ("frame-snapshot", with(FITTING, frame(1, 5, 1, b"state"))),
        ("frame-snapshot-none", with(FITTING, frame(1, 0, 0, b""))),
        ("frame-snapshot-two", with(FITTING, frame(1, 5, 2, b"state"))),
        ("frame-of-no-kind", with(FITTING, frame(3, 5, 1, b"state"))),
        ("frame-cut", with(FITTING, frame(2, length, 3, &records)[..71].to_vec())),
    ]
}
