//! Requests and answers of any content that a frame can have.

use super::super::reply::Expected;
use super::samples::{Answer, UNDER_MAX, blocks, content, lineage_stamp, object, stamp};
use crate::limits::{COPIES_MAX, PARTITION_BITS_MAX};
use crate::*;
use proptest::prelude::*;

pub(super) fn any_blocks(longest: u32) -> impl Strategy<Value = BlockRange> {
    (0..BLOCKS_PER_OBJECT, 1..=longest).prop_map(|(first, count)| {
        let count = count.min(BLOCKS_PER_OBJECT - first);
        BlockRange::new(first, count).expect("inside")
    })
}

pub(super) fn any_stamp() -> impl Strategy<Value = Stamp> {
    (any::<u64>(), any::<u64>()).prop_map(|(generation, sequence)| stamp(generation, sequence))
}

pub(super) fn any_key() -> impl Strategy<Value = ObjectKey> {
    (any::<u64>(), any::<u32>())
        .prop_map(|(layer, index)| ObjectKey { layer: LayerId(layer), index })
}

pub(super) fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any_blocks(4), any::<bool>(), any::<u8>()).prop_map(|(blocks, detect_zeroes, seed)| {
            let payload = content(blocks.count() as usize, seed);
            Change::Data { first: blocks.first(), payload, detect_zeroes }
        }),
        any_blocks(1024).prop_map(|blocks| Change::Zero { blocks }),
        any_blocks(1024).prop_map(|blocks| Change::Absent { blocks }),
    ]
}

pub(super) fn any_write() -> impl Strategy<Value = MemberRequest> {
    let stamps = (any_stamp(), any_stamp(), any_stamp());
    (any::<u64>(), any_key(), any_under(), stamps, any_change()).prop_map(
        |(lineage, key, under, (previous, stamp, settled), change)| {
            let lineage = LineageId(lineage);
            MemberRequest::Write(Write { lineage, key, under, previous, stamp, settled, change })
        },
    )
}

pub(super) fn any_under() -> impl Strategy<Value = Under> {
    (1..=COPIES_MAX, 0..=PARTITION_BITS_MAX, any::<u64>()).prop_map(|(copies, bits, number)| {
        Under { copies, bits, number: ConfigurationNumber(number) }
    })
}

pub(super) fn any_permit() -> impl Strategy<Value = Permit> {
    (any::<bool>(), any::<u64>(), any_under()).prop_map(|(by_session, number, under)| {
        match by_session {
            true => Permit::Session { generation: Generation(number), under },
            false => Permit::Attempt { under, attempt: number },
        }
    })
}

/// Some of 2^16 partitions.
pub(super) fn any_partitions() -> impl Strategy<Value = Vec<PartitionId>> {
    let partitions = prop::collection::btree_set(0..1u32 << PARTITION_BITS_MAX, 0..40);
    partitions.prop_map(|partitions| partitions.into_iter().map(PartitionId).collect())
}

pub(super) fn any_batch() -> impl Strategy<Value = Batch> {
    (any_partitions(), 1..=COPIES_MAX, any::<u64>()).prop_map(|(partitions, copies, attempt)| {
        let partitions = partitions
            .into_iter()
            .map(|partition| (partition, ConfigurationNumber(attempt ^ u64::from(partition.0))))
            .collect();
        Batch { copies, bits: PARTITION_BITS_MAX, partitions, attempt }
    })
}

pub(super) fn any_request_for_copying() -> impl Strategy<Value = MemberRequest> {
    let lineage = any::<u64>().prop_map(LineageId);
    let object = || (any_permit(), any::<u64>().prop_map(LineageId), any_key());
    prop_oneof![
        lineage.clone().prop_map(|after| MemberRequest::Lineages { after }),
        (any_partitions(), any::<bool>(), lineage.clone(), any_key()).prop_map(
            |(partitions, unsettled, lineage, key)| {
                let (bits, after) = (PARTITION_BITS_MAX, (lineage, key));
                MemberRequest::Survey { bits, partitions, unsettled, after }
            }
        ),
        (lineage, any_key(), any_blocks(1024)).prop_map(|(lineage, key, blocks)| {
            MemberRequest::Checksums { lineage, key, blocks }
        }),
        (object(), any_change()).prop_map(|((permit, lineage, key), change)| {
            MemberRequest::Stage { permit, lineage, key, change }
        }),
        (object(), 0..=BLOCKS_PER_OBJECT, any_stamp(), any::<u64>()).prop_map(
            |((permit, lineage, key), staged, stamp, generation)| {
                let settled_generation = Generation(generation);
                MemberRequest::Adopt { permit, lineage, key, staged, stamp, settled_generation }
            }
        ),
        object().prop_map(|(permit, lineage, key)| MemberRequest::Retract { permit, lineage, key }),
        any_batch().prop_map(MemberRequest::Refuse),
        (any_batch(), prop::collection::vec(any::<(u64, u64)>(), 0..40), any::<bool>()).prop_map(
            |(batch, fences, last)| {
                let fence = |(lineage, generation)| (LineageId(lineage), Generation(generation));
                let fences = fences.into_iter().map(fence).collect();
                MemberRequest::Install { batch, fences, last }
            }
        ),
    ]
}

pub(super) fn any_request() -> impl Strategy<Value = MemberRequest> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let under = prop::option::of(any_under());
    let others = (0..11, numbers, any_key(), any_stamp(), any_blocks(256), under).prop_map(
        |(kind, (lineage, generation, layer, parent), key, stamp, blocks, under)| {
            let (lineage, generation) = (LineageId(lineage), Generation(generation));
            let (refusals, list) = (layer, layer % 2 == 0);
            let (layer, parent) = (LayerId(layer), LayerId(parent));
            match kind {
                0 => MemberRequest::Fence { lineage, generation, list, after: key },
                1 => {
                    let under = under.unwrap_or(UNDER_MAX);
                    MemberRequest::Settle { lineage, key, generation, under, stamp }
                }
                2 => MemberRequest::Stamp { lineage, key, generation },
                3 => MemberRequest::OpenLayer { lineage, generation, layer, parent },
                4 => MemberRequest::Read { lineage, key, generation, under, blocks },
                5 => MemberRequest::Map { lineage, key, generation, under, blocks },
                6 => {
                    let base = layer;
                    MemberRequest::Difference { lineage, key, generation, under, base, blocks }
                }
                7 => {
                    let index = key.index;
                    MemberRequest::Reclaimable { lineage, generation, layer, index }
                }
                8 => MemberRequest::Mark { lineage, generation, settled: stamp, refusals },
                9 => MemberRequest::Confirm { lineage, generation, refusals },
                _ => MemberRequest::Flush { lineage, generation, settled: stamp },
            }
        },
    );
    prop_oneof![any_write(), others, any_request_for_copying()]
}

pub(super) fn any_state() -> impl Strategy<Value = BlockState> {
    prop_oneof![Just(BlockState::Absent), Just(BlockState::Zero), Just(BlockState::Data)]
}

pub(super) fn any_error() -> impl Strategy<Value = MemberError> {
    prop_oneof![
        any::<u64>().prop_map(|newer| MemberError::Fenced { newer: Generation(newer) }),
        any_stamp().prop_map(|have| MemberError::WrongStamp { have }),
        any::<u64>().prop_map(|have| {
            MemberError::WrongConfiguration { have: ConfigurationNumber(have) }
        }),
        Just(MemberError::NoSpace),
        (any_key(), any::<u32>()).prop_map(|(key, block)| MemberError::Corrupt { key, block }),
        Just(MemberError::Busy),
        Just(MemberError::Retired),
        "\\PC{0,80}".prop_map(|why| MemberError::Invalid(why.into())),
        any::<u64>().prop_map(|refusals| MemberError::RefusedMore { refusals }),
        any::<u64>().prop_map(|newer| MemberError::Superseded { newer }),
        any::<u32>().prop_map(|have| MemberError::NotStaged { have }),
    ]
}

/// Confirmations, lineages, surveys and checksums.
pub(super) fn any_list() -> impl Strategy<Value = (Expected, Answer)> {
    let incarnation = any::<u64>().prop_map(Incarnation);
    let refused = (any_under(), any::<u32>()).prop_map(|(under, partition)| Refused {
        under,
        partition: PartitionId(partition % (1 << under.bits)),
    });
    let confirmed = (incarnation.clone(), any::<u64>(), prop::collection::vec(refused, 1..40));
    let after = || prop::collection::btree_set(1..=u64::MAX, 1..40);
    prop_oneof![
        confirmed.prop_map(|(incarnation, refusals, refused)| {
            let more = refusals % 2 == 0;
            let answer = MemberReply::Confirmed { incarnation, refusals, refused, more };
            (Expected::Confirmed, Ok(answer))
        }),
        (after(), any::<bool>()).prop_map(|(lineages, more)| {
            let lineages = lineages.into_iter().map(lineage_stamp).collect();
            let expected = Expected::Lineages { after: LineageId(0) };
            (expected, Ok(MemberReply::Lineages { lineages, more }))
        }),
        (incarnation, after(), any::<bool>()).prop_map(|(incarnation, lineages, more)| {
            let (bits, partitions) = (4, (0..16).map(PartitionId).collect());
            let after = Default::default();
            let row = |lineage| (LineageId(lineage), object(lineage as u32));
            let objects = lineages.into_iter().map(row).collect();
            let expected = Expected::Survey { bits, partitions, after };
            (expected, Ok(MemberReply::Survey { incarnation, objects, more }))
        }),
        (any_blocks(1024), any::<u64>()).prop_map(|(blocks, seed)| {
            let sum = |at: u32| match (seed >> (at % 60)) & 3 {
                0 => BlockSum::Absent,
                1 => BlockSum::Zero,
                _ => BlockSum::Data(seed.rotate_left(at)),
            };
            let sums = blocks.iter().map(sum).collect();
            (Expected::Checksums(blocks), Ok(MemberReply::Checksums(sums)))
        }),
    ]
}

pub(super) fn any_answer() -> impl Strategy<Value = (Expected, Answer)> {
    let incarnation = any::<u64>().prop_map(Incarnation);
    prop_oneof![
        any_error().prop_map(|error| (Expected::Done, Err(error))),
        (incarnation.clone(), 0..40u32, any_stamp()).prop_map(|(incarnation, count, settled)| {
            let (unsettled, more) = ((0..count).map(|n| object(n * 3)).collect(), count > 9);
            let expected = Expected::Fenced { list: true, after: ObjectKey::default() };
            (expected, Ok(MemberReply::Fenced { incarnation, settled, unsettled, more }))
        }),
        any_list(),
        (incarnation.clone(), any::<u64>()).prop_map(|(incarnation, lossless_from)| {
            let lossless_from = Incarnation(lossless_from);
            (Expected::Refused, Ok(MemberReply::Refused { incarnation, lossless_from }))
        }),
        incarnation.clone().prop_map(|incarnation| {
            (Expected::Installed, Ok(MemberReply::Installed { incarnation }))
        }),
        incarnation.clone().prop_map(|incarnation| {
            (Expected::Written, Ok(MemberReply::Written { incarnation }))
        }),
        incarnation.prop_map(|incarnation| {
            (Expected::Flushed, Ok(MemberReply::Flushed { incarnation }))
        }),
        (any_key(), any_stamp(), any::<u64>()).prop_map(|(key, stamp, generation)| {
            let settled_generation = Generation(generation);
            let object = ObjectStamp { key, stamp, settled_generation };
            (Expected::Stamp(key), Ok(MemberReply::Stamp(object)))
        }),
        (any_blocks(8), any::<u8>()).prop_map(|(blocks, seed)| {
            let absent = blocks.iter().step_by(2).filter_map(|at| BlockRange::new(at, 1)).collect();
            let content = vec![content(blocks.count() as usize, seed)];
            (Expected::Data(blocks), Ok(MemberReply::Data { content, absent }))
        }),
        prop::collection::vec((1..=8u32, any_state()), 1..128).prop_map(|runs| {
            let count = runs.iter().map(|(count, _)| count).sum();
            (Expected::Map(blocks(0, count)), Ok(MemberReply::Map(runs)))
        }),
        prop::collection::vec((1..=8u32, prop::option::of(any_state())), 1..128).prop_map(|runs| {
            let count = runs.iter().map(|(count, _)| count).sum();
            (Expected::Difference(blocks(0, count)), Ok(MemberReply::Difference(runs)))
        }),
        (any::<u64>(), any::<Option<u32>>()).prop_map(|(blocks, next_index)| {
            (Expected::Reclaimable, Ok(MemberReply::Reclaimable { blocks, next_index }))
        }),
    ]
}
