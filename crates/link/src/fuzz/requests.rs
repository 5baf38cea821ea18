//! A request of every kind but for writes and reads, whose content the plays look at themselves.

use super::disk::{KEY, content};
use proto::{
    Batch, BlockRange, Change, ConfigurationNumber, Generation, LayerId, LineageId, MemberRequest,
    ObjectKey, PartitionId, Permit, Stamp, Under,
};

/// How many kinds there are.
pub const KINDS: usize = 20;
/// The lineage that all requests are about.
pub const LINEAGE: LineageId = LineageId(1);
/// The configuration that all requests are made under.
pub const UNDER: Under = Under { copies: 3, bits: 12, number: ConfigurationNumber(1) };

/// The request of this kind, below [`KINDS`]; the size makes it long or short.
pub fn request(kind: usize, generation: Generation, size: u8) -> MemberRequest {
    let (lineage, key, under) = (LINEAGE, KEY, UNDER);
    let stamp = Stamp { generation, sequence: size.into() };
    let is_even = size.is_multiple_of(2);
    let after = if is_even { ObjectKey::default() } else { KEY };
    let blocks = BlockRange::new(0, u32::from(size) + 1).expect("inside");
    let permit = match is_even {
        true => Permit::Session { generation, under },
        false => Permit::Attempt { under, attempt: size.into() },
    };
    let partitions = 0..=u32::from(size);
    let batch = || {
        let number = ConfigurationNumber(size.into());
        let partitions = partitions.clone().map(|place| (PartitionId(place), number)).collect();
        Batch { copies: 2, bits: 8, partitions, attempt: size.into() }
    };
    let stage = |change| MemberRequest::Stage { permit, lineage, key, change };
    match kind {
        0 => MemberRequest::Fence { lineage, generation, list: !size.is_multiple_of(8), after },
        1 => MemberRequest::Settle { lineage, key, generation, under, stamp },
        2 => MemberRequest::Stamp { lineage, key, generation },
        3 => {
            let (layer, parent) = (LayerId(2), LayerId(1));
            MemberRequest::OpenLayer { lineage, generation, layer, parent }
        }
        4 => MemberRequest::Map { lineage, key, generation, under: Some(under), blocks },
        5 => {
            let (under, base) = (None, LayerId(1));
            MemberRequest::Difference { lineage, key, generation, under, base, blocks }
        }
        6 => MemberRequest::Reclaimable { lineage, generation, layer: LayerId(2), index: 3 },
        7 => MemberRequest::Flush { lineage, generation, settled: stamp },
        8 => MemberRequest::Mark { lineage, generation, settled: stamp, refusals: size.into() },
        9 => MemberRequest::Confirm { lineage, generation, refusals: size.into() },
        10 => MemberRequest::Lineages { after: LineageId(size.into()) },
        11 => MemberRequest::Survey {
            bits: 8,
            partitions: partitions.map(PartitionId).collect(),
            unsettled: is_even,
            after: (LineageId(1), after),
        },
        12 => MemberRequest::Checksums { lineage, key, blocks },
        13 => {
            let payload = content(size.into(), 1 + u32::from(size) / 32);
            stage(Change::Data { first: size.into(), payload, detect_zeroes: is_even })
        }
        14 => stage(Change::Zero { blocks }),
        15 => stage(Change::Absent { blocks }),
        16 => MemberRequest::Adopt {
            permit,
            lineage,
            key,
            staged: size.into(),
            stamp,
            settled_generation: generation,
        },
        17 => MemberRequest::Retract { permit, lineage, key },
        18 => MemberRequest::Refuse(batch()),
        _ => MemberRequest::Install {
            batch: batch(),
            fences: (0..u64::from(size)).map(|place| (LineageId(place), generation)).collect(),
            last: is_even,
        },
    }
}
