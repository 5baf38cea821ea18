//! Requests and answers of every kind, and those with the least and the greatest of everything.

use super::super::reply::Expected;
use crate::limits::*;
use crate::*;

pub(super) const LINEAGE: LineageId = LineageId(3);
pub(super) const GENERATION: Generation = Generation(7);
pub(super) const KEY: ObjectKey = ObjectKey { layer: LayerId(5), index: 11 };
pub(super) const UNDER: Under = Under { copies: 3, bits: 12, number: ConfigurationNumber(4) };
/// The greatest of everything.
pub(super) const UNDER_MAX: Under =
    Under { copies: COPIES_MAX, bits: PARTITION_BITS_MAX, number: ConfigurationNumber(u64::MAX) };
pub(super) const KEY_MAX: ObjectKey = ObjectKey { layer: LayerId(u64::MAX), index: u32::MAX };
pub(super) const STAMP_MAX: Stamp = Stamp { generation: Generation(u64::MAX), sequence: u64::MAX };

pub(super) fn stamp(generation: u64, sequence: u64) -> Stamp {
    Stamp { generation: Generation(generation), sequence }
}

pub(super) fn blocks(first: u32, count: u32) -> BlockRange {
    BlockRange::new(first, count).expect("inside")
}

pub(super) fn content(count: usize, seed: u8) -> Payload {
    let bytes: Vec<u8> = (0..count * BLOCK_SIZE).map(|at| (at / 13) as u8 ^ seed).collect();
    Buffer::copy_of(&bytes).freeze()
}

pub(super) fn write(change: Change) -> MemberRequest {
    MemberRequest::Write(Write {
        lineage: LINEAGE,
        key: KEY,
        under: UNDER,
        previous: stamp(6, 20),
        stamp: Stamp { generation: GENERATION, sequence: 21 },
        settled: stamp(6, 19),
        change,
    })
}

pub(super) fn requests() -> Vec<MemberRequest> {
    let (lineage, generation, key, under) = (LINEAGE, GENERATION, KEY, Some(UNDER));
    let mut requests = vec![
        MemberRequest::Fence { lineage, generation, list: true, after: KEY },
        MemberRequest::Settle { lineage, key, generation, under: UNDER, stamp: stamp(6, 20) },
        MemberRequest::Stamp { lineage, key, generation },
        MemberRequest::OpenLayer { lineage, generation, layer: LayerId(6), parent: LayerId(5) },
        write(Change::Data { first: 2, payload: content(2, 1), detect_zeroes: true }),
        write(Change::Zero { blocks: blocks(0, 1024) }),
        write(Change::Absent { blocks: blocks(1023, 1) }),
        MemberRequest::Read { lineage, key, generation, under, blocks: blocks(3, 2) },
        MemberRequest::Map { lineage, key, generation, under, blocks: blocks(0, 1024) },
        MemberRequest::Difference {
            lineage,
            key,
            generation,
            under,
            base: LayerId(4),
            blocks: blocks(0, 9),
        },
        MemberRequest::Reclaimable { lineage, generation, layer: LayerId(5), index: 8 },
        MemberRequest::Flush { lineage, generation, settled: stamp(6, 18) },
        MemberRequest::Mark { lineage, generation, settled: stamp(6, 18), refusals: 2 },
        MemberRequest::Confirm { lineage, generation, refusals: 2 },
    ];
    requests.extend(requests_for_copying());
    requests
}

pub(super) fn permits() -> [Permit; 2] {
    [
        Permit::Session { generation: GENERATION, under: UNDER },
        Permit::Attempt { under: UNDER, attempt: 31 },
    ]
}

pub(super) fn batch(partitions: &[(u32, u64)]) -> Batch {
    let row =
        |(partition, number): &(u32, u64)| (PartitionId(*partition), ConfigurationNumber(*number));
    let partitions = partitions.iter().map(row).collect();
    Batch { copies: 3, bits: 12, partitions, attempt: 31 }
}

pub(super) fn requests_for_copying() -> Vec<MemberRequest> {
    let (lineage, key) = (LINEAGE, KEY);
    let [session, attempt] = permits();
    let stage = |permit, change| MemberRequest::Stage { permit, lineage, key, change };
    vec![
        MemberRequest::Lineages { after: LINEAGE },
        MemberRequest::Survey {
            bits: 12,
            partitions: vec![PartitionId(3), PartitionId(4095)],
            unsettled: true,
            after: (LINEAGE, KEY),
        },
        MemberRequest::Checksums { lineage, key, blocks: blocks(3, 4) },
        stage(session, Change::Data { first: 5, payload: content(1, 4), detect_zeroes: false }),
        stage(attempt, Change::Data { first: 5, payload: content(2, 4), detect_zeroes: true }),
        stage(session, Change::Zero { blocks: blocks(0, 1024) }),
        stage(attempt, Change::Absent { blocks: blocks(1023, 1) }),
        MemberRequest::Adopt {
            permit: session,
            lineage,
            key,
            staged: 4,
            stamp: stamp(6, 20),
            settled_generation: GENERATION,
        },
        MemberRequest::Retract { permit: attempt, lineage, key },
        MemberRequest::Refuse(batch(&[(3, 8), (4095, 9)])),
        MemberRequest::Install {
            batch: batch(&[(3, 8)]),
            fences: vec![(LINEAGE, GENERATION), (LineageId(1), Generation(2))],
            last: true,
        },
    ]
}

/// Each kind with the least and the greatest that it can have.
pub(super) fn edge_requests() -> Vec<MemberRequest> {
    let (lineage, generation, key) = (LineageId(u64::MAX), Generation(u64::MAX), KEY_MAX);
    let (under, layer, index) = (UNDER_MAX, LayerId(u64::MAX), u32::MAX);
    let (stamp, settled, refusals) = (STAMP_MAX, STAMP_MAX, u64::MAX);
    let (no_lineage, no_generation) = (LineageId(0), Generation(0));
    let no_key = ObjectKey::default();
    let most = batch(&std::array::from_fn::<_, BATCH_PARTITIONS_MAX, _>(|n| (n as u32, u64::MAX)));
    let none = Batch { copies: 1, ..Batch::default() };
    let permit = Permit::Attempt { under, attempt: u64::MAX };
    let long = |first| {
        let payload = content(MEMBER_REQUEST_BLOCKS_MAX as usize, 3);
        Change::Data { first, payload, detect_zeroes: false }
    };
    vec![
        MemberRequest::Fence { lineage, generation, list: true, after: key },
        MemberRequest::Fence {
            lineage: no_lineage,
            generation: no_generation,
            list: false,
            after: no_key,
        },
        MemberRequest::Settle { lineage, key, generation, under, stamp },
        MemberRequest::Write(Write {
            lineage,
            key,
            under,
            previous: stamp,
            stamp,
            settled,
            change: long(BLOCKS_PER_OBJECT - MEMBER_REQUEST_BLOCKS_MAX),
        }),
        MemberRequest::Read { lineage, key, generation, under: None, blocks: blocks(768, 256) },
        MemberRequest::Read {
            lineage,
            key,
            generation,
            under: Some(under),
            blocks: blocks(1023, 1),
        },
        MemberRequest::Map { lineage, key, generation, under: None, blocks: BlockRange::whole() },
        MemberRequest::Difference {
            lineage,
            key,
            generation,
            under: None,
            base: layer,
            blocks: BlockRange::whole(),
        },
        MemberRequest::Reclaimable { lineage, generation, layer, index },
        MemberRequest::Flush { lineage, generation, settled },
        MemberRequest::Mark { lineage, generation, settled, refusals },
        MemberRequest::Confirm { lineage, generation, refusals },
        MemberRequest::Confirm { lineage: no_lineage, generation: no_generation, refusals: 0 },
        MemberRequest::Lineages { after: lineage },
        MemberRequest::Lineages { after: no_lineage },
        MemberRequest::Survey {
            bits: 0,
            partitions: Vec::new(),
            unsettled: false,
            after: (no_lineage, no_key),
        },
        MemberRequest::Survey {
            bits: PARTITION_BITS_MAX,
            partitions: (0xff00..=0xffff).map(PartitionId).collect(),
            unsettled: true,
            after: (lineage, key),
        },
        MemberRequest::Checksums { lineage, key, blocks: BlockRange::whole() },
        MemberRequest::Stage { permit, lineage, key, change: long(0) },
        MemberRequest::Adopt {
            permit,
            lineage,
            key,
            staged: BLOCKS_PER_OBJECT,
            stamp,
            settled_generation: generation,
        },
        MemberRequest::Adopt {
            permit,
            lineage,
            key,
            staged: 0,
            stamp: Stamp::INCOMPLETE,
            settled_generation: no_generation,
        },
        MemberRequest::Retract { permit, lineage, key },
        MemberRequest::Refuse(most.clone()),
        MemberRequest::Refuse(none.clone()),
        MemberRequest::Install {
            batch: most,
            fences: vec![(lineage, generation); INSTALL_FENCES_MAX],
            last: true,
        },
        MemberRequest::Install { batch: none, fences: Vec::new(), last: false },
    ]
}

pub(super) fn object(index: u32) -> ObjectStamp {
    let key = ObjectKey { index, ..KEY };
    ObjectStamp { key, stamp: stamp(6, 20), settled_generation: Generation(6) }
}

pub(super) type Answer = Result<MemberReply, MemberError>;

/// Each answer with what it answers.
pub(super) fn replies() -> Vec<(Expected, Answer)> {
    let incarnation = Incarnation(17);
    let data = MemberReply::Data {
        content: vec![content(1, 2), content(2, 3)],
        absent: vec![blocks(4, 1), blocks(6, 1)],
    };
    let map = vec![(1, BlockState::Absent), (2, BlockState::Zero), (6, BlockState::Data)];
    let difference = vec![(1, None), (8, Some(BlockState::Zero))];
    let refused = |error| (Expected::Written, Err(error));
    vec![
        (Expected::Fenced { list: true, after: ObjectKey { index: 0, ..KEY } }, {
            let (settled, unsettled, more) = (stamp(6, 18), vec![object(1), object(2)], true);
            Ok(MemberReply::Fenced { incarnation, settled, unsettled, more })
        }),
        (Expected::Done, Ok(MemberReply::Done)),
        (Expected::Stamp(KEY), Ok(MemberReply::Stamp(object(11)))),
        (Expected::Written, Ok(MemberReply::Written { incarnation })),
        (Expected::Data(blocks(4, 3)), Ok(data)),
        (Expected::Map(blocks(0, 9)), Ok(MemberReply::Map(map))),
        (Expected::Difference(blocks(0, 9)), Ok(MemberReply::Difference(difference))),
        (Expected::Reclaimable, {
            Ok(MemberReply::Reclaimable { blocks: 99, next_index: Some(12) })
        }),
        (Expected::Reclaimable, Ok(MemberReply::Reclaimable { blocks: 1, next_index: None })),
        (Expected::Flushed, Ok(MemberReply::Flushed { incarnation })),
        refused(MemberError::Fenced { newer: Generation(8) }),
        refused(MemberError::WrongStamp { have: stamp(6, 22) }),
        refused(MemberError::WrongConfiguration { have: ConfigurationNumber(5) }),
        refused(MemberError::NoSpace),
        refused(MemberError::Corrupt { key: KEY, block: 1023 }),
        refused(MemberError::Busy),
        refused(MemberError::Retired),
        refused(MemberError::invalid("the layer is deleted")),
        refused(MemberError::RefusedMore { refusals: 3 }),
        refused(MemberError::Superseded { newer: 32 }),
        refused(MemberError::NotStaged { have: 3 }),
        (Expected::Confirmed, {
            let refused = vec![
                Refused { under: UNDER, partition: PartitionId(4095) },
                Refused { under: UNDER, partition: PartitionId(3) },
            ];
            Ok(MemberReply::Confirmed { incarnation, refusals: 4, refused, more: true })
        }),
        (Expected::Lineages { after: LINEAGE }, {
            let lineages = vec![lineage_stamp(4), lineage_stamp(9)];
            Ok(MemberReply::Lineages { lineages, more: false })
        }),
        (
            Expected::Survey {
                bits: 1,
                partitions: vec![PartitionId(0), PartitionId(1)],
                after: (LINEAGE, KEY),
            },
            {
                let objects = vec![(LINEAGE, object(12)), (LineageId(4), object(1))];
                Ok(MemberReply::Survey { incarnation, objects, more: true })
            },
        ),
        (Expected::Checksums(blocks(3, 3)), {
            let sums = vec![BlockSum::Absent, BlockSum::Zero, BlockSum::Data(0x1234_5678)];
            Ok(MemberReply::Checksums(sums))
        }),
        (Expected::Refused, {
            Ok(MemberReply::Refused { incarnation, lossless_from: Incarnation(15) })
        }),
        (Expected::Installed, Ok(MemberReply::Installed { incarnation })),
    ]
}

pub(super) fn lineage_stamp(lineage: u64) -> LineageStamp {
    LineageStamp {
        lineage: LineageId(lineage),
        fence: Generation(7),
        settled: stamp(6, 18),
        marked_by: Generation(6),
    }
}

/// The longest answers, and those with the least and the greatest that they can have. Each to a
/// request.
pub(super) fn edge_replies() -> Vec<(MemberRequest, Answer)> {
    let (lineage, generation, key) = (LINEAGE, GENERATION, KEY_MAX);
    let incarnation = Incarnation(u64::MAX);
    let object = |index| ObjectStamp {
        key: ObjectKey { index, ..KEY_MAX },
        stamp: STAMP_MAX,
        settled_generation: Generation(u64::MAX),
    };
    let lineage_stamp = |number| LineageStamp {
        lineage: LineageId(number),
        fence: Generation(u64::MAX),
        settled: STAMP_MAX,
        marked_by: Generation(u64::MAX),
    };
    let most = MEMBER_ROWS_MAX as u32;
    let last = u32::MAX - most..u32::MAX;
    let fence = |list| MemberRequest::Fence { lineage, generation, list, after: KEY };
    let survey = || MemberRequest::Survey {
        bits: 0,
        partitions: vec![PartitionId(0)],
        unsettled: false,
        after: (LINEAGE, KEY_MAX),
    };
    let confirm = || MemberRequest::Confirm { lineage, generation, refusals: 0 };
    let refused = Refused { under: UNDER_MAX, partition: PartitionId(0xffff) };
    let lineages = |after| MemberRequest::Lineages { after: LineageId(after) };
    let checksums = |blocks| MemberRequest::Checksums { lineage, key, blocks };
    let (whole, under) = (BlockRange::whole(), None);
    let read = MemberRequest::Read { lineage, key, generation, under, blocks: blocks(0, 256) };
    vec![
        (fence(true), {
            let (settled, unsettled) = (STAMP_MAX, last.clone().map(object).collect());
            Ok(MemberReply::Fenced { incarnation, settled, unsettled, more: true })
        }),
        (fence(false), {
            let (settled, unsettled) = (Stamp::default(), Vec::new());
            Ok(MemberReply::Fenced { incarnation, settled, unsettled, more: false })
        }),
        (confirm(), {
            let refused = vec![refused; MEMBER_ROWS_MAX];
            Ok(MemberReply::Confirmed { incarnation, refusals: u64::MAX, refused, more: true })
        }),
        (confirm(), {
            let (incarnation, refused) = (Incarnation(0), Vec::new());
            Ok(MemberReply::Confirmed { incarnation, refusals: 0, refused, more: false })
        }),
        (lineages(0), {
            let first = u64::MAX - u64::from(most) + 1;
            let lineages = (first..=u64::MAX).map(lineage_stamp).collect();
            Ok(MemberReply::Lineages { lineages, more: true })
        }),
        (lineages(u64::MAX), Ok(MemberReply::Lineages { lineages: Vec::new(), more: false })),
        (survey(), {
            let objects = last.map(|index| (LineageId(u64::MAX), object(index))).collect();
            Ok(MemberReply::Survey { incarnation, objects, more: true })
        }),
        (survey(), Ok(MemberReply::Survey { incarnation, objects: Vec::new(), more: false })),
        (checksums(whole), {
            Ok(MemberReply::Checksums(vec![BlockSum::Data(u64::MAX); BLOCKS_PER_OBJECT as usize]))
        }),
        (checksums(blocks(1023, 1)), Ok(MemberReply::Checksums(vec![BlockSum::Data(0)]))),
        (MemberRequest::Map { lineage, key, generation, under, blocks: whole }, {
            Ok(MemberReply::Map(vec![(1, BlockState::Zero); BLOCKS_PER_OBJECT as usize]))
        }),
        (read, {
            let content = vec![content(256, 1)];
            let absent = (0..256).step_by(2).map(|first| blocks(first, 1)).collect();
            Ok(MemberReply::Data { content, absent })
        }),
        (MemberRequest::Refuse(batch(&[])), {
            Ok(MemberReply::Refused { incarnation, lossless_from: incarnation })
        }),
        (confirm(), Err(MemberError::RefusedMore { refusals: u64::MAX })),
        (confirm(), Err(MemberError::Superseded { newer: u64::MAX })),
        (confirm(), Err(MemberError::NotStaged { have: u32::MAX })),
    ]
}
