//! The bytes of every record, so that the format cannot change unseen. From the first release on a
//! test that fails here means a new format version, not a new number.

use super::*;
use crate::{Identity, MediumKind};
use proto::{
    ClusterId, ConfigurationNumber, DiskId, Generation, Incarnation, LayerId, LineageId, NodeId,
    ObjectKey, PartitionId, Stamp, crc64,
};

const KEY: ObjectKey = ObjectKey { layer: LayerId(3), index: 4 };

fn stamp(sequence: u64) -> Stamp {
    Stamp { generation: Generation(7), sequence }
}

fn records() -> Vec<Record> {
    let lineage = LineageId(2);
    vec![
        Record::Write(WriteRecord {
            lineage,
            key: KEY,
            previous: stamp(1),
            stamp: stamp(2),
            settled: stamp(0),
            runs: vec![
                MapRun { first: 1, count: 2, content: Content::Data(0x01_0203_0405) },
                MapRun { first: 3, count: 1, content: Content::Zero },
                MapRun { first: 9, count: 1015, content: Content::Absent },
            ],
            checksums: vec![0x1111, 0x2222],
            freed: vec![Run { address: 77, count: 3 }],
            copies: vec![PageCopy { page: 2, source: LayerId(2) }],
            settled_generation: Some(Generation(6)),
        }),
        Record::Fence { lineage, generation: Generation(9) },
        Record::Settle { lineage, key: KEY, generation: Generation(9), stamp: stamp(2) },
        Record::DropObject { lineage, key: KEY, freed: vec![Run { address: 5, count: 1 }] },
        Record::DropLayer { lineage, layer: LayerId(3) },
        Record::Chunks { first: 6, count: 2, allocated: true },
        Record::Scrub { pass: 1, position: 2, errors: 3, passes_done: 4 },
        Record::Cut { lineage, index: 4, from_lsn: 12 },
        Record::Layer { lineage, layer: LayerId(3), parent: LayerId(2) },
        Record::LayerGone { lineage, layer: LayerId(3), parent: LayerId(2) },
        Record::Merge(MergeRecord {
            lineage,
            source: LayerId(3),
            target: LayerId(5),
            index: 4,
            new_row: Some((stamp(8), Generation(7))),
            pages: [
                MergedPage::Nothing,
                MergedPage::Moved { address: 0x02_0304_0506, checksum: 0x3333, data: 200 },
                MergedPage::Merged,
                MergedPage::Nothing,
            ],
            owned: vec![BlockRun { first: 512, count: 3 }],
            freed: vec![Run { address: 78, count: 2 }],
        }),
        Record::Settled { lineage, settled: stamp(5) },
        Record::Mark { lineage, generation: Generation(9), settled: stamp(5) },
        Record::Attempt(AttemptRecord {
            copies: 3,
            bits: 12,
            attempt: 21,
            ended: true,
            partitions: vec![
                (PartitionId(7), Some(ConfigurationNumber(4))),
                (PartitionId(4095), None),
            ],
            fences: vec![(lineage, Generation(10))],
        }),
        Record::Adopt(WriteRecord {
            lineage,
            key: KEY,
            previous: stamp(2),
            stamp: Stamp::INCOMPLETE,
            settled: stamp(1),
            runs: vec![MapRun { first: 5, count: 1, content: Content::Data(0x07) }],
            checksums: vec![0x4444],
            freed: vec![Run { address: 90, count: 1 }],
            copies: vec![PageCopy { page: 1, source: LayerId(2) }],
            settled_generation: Some(Generation(8)),
        }),
    ]
}

fn superblock() -> Superblock {
    Superblock {
        sequence: 5,
        identity: Identity { cluster: ClusterId(1), node: NodeId(2), disk: DiskId(3) },
        incarnation: Incarnation(4),
        kind: MediumKind::File,
        created_unix_s: 1_700_000_000,
        log_blocks: 16,
        space_first: 19,
        limit_blocks: 0,
        replay_position: 2,
        replay_sequence: 3,
        replay_lsn: 4,
        replay_incarnation: Incarnation(3),
        durable_lsn: 3,
        root: Some(RootEntry {
            header: PageHeader { kind: CheckpointKind::Root, number: 2 },
            address: 20,
            twin: 21,
            checksum: 99,
        }),
        agreed_incarnation: Incarnation(4),
        boot: [7; 16],
        lossless_from: Incarnation(2),
    }
}

/// Prints all sums when one differs.
fn check(found: &[(&str, u64)], golden: &[(&str, u64)]) {
    assert_eq!(found, golden, "{found:#x?}");
}

#[test]
fn every_record_has_the_bytes_it_always_had_and_comes_back() {
    let mut bytes = Vec::new();
    let mut sums = Vec::new();
    for record in records() {
        let start = bytes.len();
        encode_record(&record, &mut bytes);
        sums.push(crc64(&bytes[start..]));
    }
    assert_eq!(parse_records(&bytes, 15), Some(records()));
    assert_eq!(parse_records(&bytes, 14), None);
    for cut in 0..bytes.len() {
        assert_eq!(parse_records(&bytes[..cut], 15), None);
    }
    let names = [
        "write",
        "fence",
        "settle",
        "drop object",
        "drop layer",
        "chunks",
        "scrub",
        "cut",
        "layer",
        "layer gone",
        "merge",
        "settled",
        "mark",
        "attempt",
        "adopt",
    ];
    let found: Vec<(&str, u64)> = names.into_iter().zip(sums).collect();
    check(&found, &RECORDS);
}

#[test]
fn every_page_has_the_bytes_it_always_had_and_comes_back() {
    let block = || vec![0xaa; proto::BLOCK_SIZE];
    let mut found = Vec::new();
    let mut bytes = superblock().encode();
    assert_eq!(parse_superblock(bytes.as_slice()), Ok(superblock()));
    // The one before said nothing of the machine's boots.
    let old = Superblock { boot: [0; 16], lossless_from: Incarnation(0), ..superblock() };
    let mut first = old.encode();
    first.as_mut_slice()[8..12].copy_from_slice(&1u32.to_le_bytes());
    codec::seal(first.as_mut_slice(), 16);
    assert_eq!(parse_superblock(first.as_slice()), Ok(old));
    found.push(("superblock of version 1", crc64(first.as_slice())));
    bytes.as_mut_slice()[8..12].copy_from_slice(&3u32.to_le_bytes());
    codec::seal(bytes.as_mut_slice(), 16);
    assert_eq!(parse_superblock(bytes.as_slice()), Err(SuperblockError::Newer(3)));
    let bytes = superblock().encode();
    found.push(("superblock", crc64(bytes.as_slice())));

    let header = BatchHeader {
        sequence: 5,
        first_lsn: 6,
        durable_lsn: 4,
        incarnation: Incarnation(2),
        length: 200,
        records: 3,
        disk: DiskId(3),
    };
    let mut bytes = vec![0; 512];
    seal_batch(&mut bytes, &header);
    assert_eq!(parse_batch(&bytes), Ok(header));
    assert_eq!(parse_batch(&bytes[..100]), Err(BatchError::More(200)));
    found.push(("batch", crc64(&bytes)));

    let name = PageName { lineage: LineageId(2), key: KEY, page: 1 };
    let mut map = MapPage::new();
    let borrowed = Entry::data(0x98, 0x4321).borrowed();
    let entries = [Entry::data(0x99, 0x1234), Entry::ZERO, Entry::LOST, borrowed];
    for (at, entry) in entries.into_iter().enumerate() {
        map.replace(at as u32 * 80, entry);
    }
    let mut bytes = block();
    let sum = map.encode(&name, 17, &mut bytes);
    let parsed = parse_map_page(&bytes, &name, sum).expect("it comes back");
    assert!((0..BLOCKS_PER_PAGE).all(|at| parsed.entry(at) == map.entry(at)));
    assert_eq!((map.data(), parsed.data()), (1, 1));
    assert!(parse_map_page(&bytes, &PageName { page: 2, ..name }, sum).is_none());
    // The layer is the one that wrote it, not the name.
    let moved = PageName { key: ObjectKey { layer: LayerId(9), ..KEY }, ..name };
    assert!(parse_map_page(&bytes, &moved, sum).is_some());
    found.push(("map page", sum));

    let row = TableRow {
        lineage: LineageId(2),
        key: KEY,
        stamp: stamp(3),
        settled_generation: Generation(1),
        pages: [(1, 2), (0, 0), (3, 4), (5, 6)],
        counts: [1, 0, 256, 3],
        lsn: 8,
        owned: 0b1101,
        unmarked: false,
    };
    let mut bytes = block();
    let mut rows = vec![None; ROWS_PER_PAGE];
    rows[1] = Some(row);
    let sum = encode_table(rows.clone().into_iter(), 7, &mut bytes);
    assert_eq!(parse_table(&bytes, 7, sum).as_ref(), Some(&rows));
    found.push(("table", sum));
    rows[1].as_mut().expect("it was put there").unmarked = true;
    let sum = encode_table(rows.clone().into_iter(), 7, &mut bytes);
    assert_eq!(parse_table(&bytes, 7, sum), Some(rows));
    found.push(("table with what was adopted", sum));

    let chunks = vec![(true, [1, 2, 3, u64::MAX]), (false, [0; 4])];
    let sum = encode_bitmap(&chunks, 1, &mut bytes);
    assert_eq!(parse_bitmap(&bytes, 1, sum), Some(chunks));
    found.push(("bitmap", sum));

    let rows = [LineageRow { lineage: LineageId(1), fence: Generation(2), settled: stamp(3) }];
    let sum = encode_lineages(&rows, 0, &mut bytes);
    assert_eq!(parse_lineages(&bytes, 0, sum), Some(rows.to_vec()));
    found.push(("lineages", sum));

    let drops = [(LineageId(1), LayerId(2))];
    let sum = encode_drops(&drops, 0, &mut bytes);
    assert_eq!(parse_drops(&bytes, 0, sum), Some(drops.to_vec()));
    found.push(("drops", sum));

    let layers = [LayerRow { lineage: LineageId(1), layer: LayerId(3), parent: LayerId(2) }];
    let sum = encode_layers(&layers, 0, &mut bytes);
    assert_eq!(parse_layers(&bytes, 0, sum), Some(layers.to_vec()));
    found.push(("layers", sum));

    let row = |ended, refused| PartitionRow {
        copies: 3,
        bits: 12,
        partition: PartitionId(4095),
        attempt: 21,
        ended,
        refused,
    };
    let partitions = [row(true, Some(ConfigurationNumber(4))), row(false, None)];
    let sum = encode_partitions(&partitions, 0, &mut bytes);
    assert_eq!(parse_partitions(&bytes, 0, sum), Some(partitions.to_vec()));
    found.push(("partitions", sum));

    let marks = [MarkRow { lineage: LineageId(1), generation: Generation(2), settled: stamp(3) }];
    let sum = encode_marks(&marks, 0, &mut bytes);
    assert_eq!(parse_marks(&bytes, 0, sum), Some(marks.to_vec()));
    found.push(("marks", sum));

    let state = StatePage { scrub_pass: 1, lost_blocks: 5, ..StatePage::default() };
    let sum = encode_state(&state, &mut bytes);
    assert_eq!(parse_state(&bytes, sum), Some(state));
    found.push(("state", sum));

    let header = PageHeader { kind: CheckpointKind::Table, number: 0 };
    let entries = [RootEntry { header, address: 9, twin: 10, checksum: 11 }];
    let sum = encode_root(&entries, 0, &mut bytes);
    assert_eq!(parse_root(&bytes, 0, sum), Some(entries.to_vec()));
    found.push(("root", sum));
    check(&found, &PAGES);
}

const RECORDS: [(&str, u64); 15] = [
    ("write", 0x1b07_c120_6bfa_c55a),
    ("fence", 0xf449_cc17_0aa0_46a6),
    ("settle", 0xc4ea_924e_da42_3ccc),
    ("drop object", 0x41f6_32a6_31a7_8466),
    ("drop layer", 0x9867_f543_b815_94c4),
    ("chunks", 0x3ef9_3891_4f6d_b2cc),
    ("scrub", 0x0ec4_6470_ea3f_fd34),
    ("cut", 0x68b1_a049_1bad_0484),
    ("layer", 0xb53e_dad7_7bb1_00ab),
    ("layer gone", 0x418a_485c_3218_2022),
    ("merge", 0x034f_9885_e11e_2f86),
    ("settled", 0x8fbe_6442_4518_f322),
    ("mark", 0x15d4_3cdc_d639_e76c),
    ("attempt", 0x60ed_127e_8691_fc13),
    ("adopt", 0x94a9_da43_62a9_42a8),
];
const PAGES: [(&str, u64); 14] = [
    ("superblock of version 1", 0x7eab_34e7_a978_802c),
    ("superblock", 0x3ca0_12cd_e9b8_00b5),
    ("batch", 0x1d6d_3a79_f0ec_867a),
    ("map page", 0xfd01_0242_b35f_3259),
    ("table", 0x45ff_bdc9_5a1e_f053),
    ("table with what was adopted", 0x2a2e_fc8a_7626_3f10),
    ("bitmap", 0xa8b9_c322_f999_1e44),
    ("lineages", 0x0463_e8f0_b3f1_8ff7),
    ("drops", 0x8018_0cec_0a64_4527),
    ("layers", 0xe9fc_aed5_a633_19d8),
    ("partitions", 0x26dd_ad8f_dc15_c6c2),
    ("marks", 0x0965_8a96_84c7_2036),
    ("state", 0xd45b_80ae_d3de_6849),
    ("root", 0x8536_cce9_50f1_28aa),
];
