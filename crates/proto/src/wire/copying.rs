//! Requests by which copies are compared and made equal, and members of partitions changed.

use super::header::{FrameError, Header, Kind};
use super::records::{
    BlocksRecord, KeyRecord, StampRecord, UnderRecord, record, vet_partition, vet_table,
};
use super::request::{self, Put, vet_change, vet_under};
use crate::limits::{BATCH_PARTITIONS_MAX, INSTALL_FENCES_MAX, WIRE_BODY_BYTES_MAX};
use crate::{
    Batch, ConfigurationNumber, Generation, LayerId, LineageId, MemberRequest, ObjectKey,
    PartitionId, Payload, Permit, STAGED_NEVER, Under,
};
use std::mem::size_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Flag of `survey`: only what is not settled.
const UNSETTLED: u16 = 1;
/// Flag of `install`: the attempt ends.
const LAST: u16 = 1;
/// Flag of what needs a permit: an attempt's, not a session's.
const BY_ATTEMPT: u16 = 2;

/// Behind it the partitions.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct SurveyHead {
    layer: U64,
    index: U32,
    bits: u8,
    zero: [u8; 3],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct StageBody {
    blocks: BlocksRecord,
    under: UnderRecord,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct AdoptBody {
    layer: U64,
    index: U32,
    staged: U32,
    under: UnderRecord,
    stamp: StampRecord,
    settled_generation: U64,
    replaces: StampRecord,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RetractBody {
    key: KeyRecord,
    under: UnderRecord,
    replaces: StampRecord,
}

/// Behind it so many partitions, and then the fences.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct BatchHead {
    copies: u8,
    bits: u8,
    partitions: U16,
    zero: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct PartitionRow {
    configuration: U64,
    partition: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct FenceRow {
    lineage: U64,
    generation: U64,
}

/// Shortest and longest body of `survey`, in bytes.
pub(super) const SURVEY_BYTES: (usize, usize) = {
    let head = size_of::<SurveyHead>();
    (head, head + BATCH_PARTITIONS_MAX * size_of::<U32>())
};
/// The same of `refuse`.
pub(super) const REFUSE_BYTES: (usize, usize) = {
    let head = size_of::<BatchHead>();
    (head, head + BATCH_PARTITIONS_MAX * size_of::<PartitionRow>())
};
/// The same of `install`.
pub(super) const INSTALL_BYTES: (usize, usize) =
    (REFUSE_BYTES.0, REFUSE_BYTES.1 + INSTALL_FENCES_MAX * size_of::<FenceRow>());

const _: () = assert!(size_of::<SurveyHead>() == 16 && size_of::<StageBody>() == 32);
const _: () = assert!(size_of::<AdoptBody>() == 72 && size_of::<RetractBody>() == 48);
const _: () = assert!(size_of::<BatchHead>() == 8 && size_of::<PartitionRow>() == 12);
const _: () = assert!(size_of::<FenceRow>() == 16);
const _: () = assert!(INSTALL_BYTES.1 <= WIRE_BODY_BYTES_MAX);

/// Length of the body of `refuse` and `install`, in bytes.
pub(super) fn batch_bytes(batch: &Batch, fences: usize) -> usize {
    size_of::<BatchHead>()
        + batch.partitions.len() * size_of::<PartitionRow>()
        + fences * size_of::<FenceRow>()
}

/// Refuses what no frame can carry, and what makes no sense.
pub(super) fn vet(request: &MemberRequest) -> Result<(), &'static str> {
    match request {
        MemberRequest::Survey { bits, partitions, .. } => {
            vet_table(1, *bits)?;
            vet_partitions(partitions.iter().copied(), *bits)
        }
        MemberRequest::Stage { permit, change, .. } => {
            vet_permit(permit)?;
            vet_change(change)
        }
        MemberRequest::Adopt { permit, staged, .. } => {
            vet_permit(permit)?;
            match *staged <= STAGED_NEVER {
                true => Ok(()),
                false => Err("no object has so many blocks"),
            }
        }
        MemberRequest::Retract { permit, .. } => vet_permit(permit),
        MemberRequest::Refuse(batch) => vet_batch(batch),
        MemberRequest::Install { batch, fences, .. } => {
            vet_batch(batch)?;
            let fits = fences.len() <= INSTALL_FENCES_MAX;
            if fits { Ok(()) } else { Err("too many fences at once") }
        }
        _ => Ok(()),
    }
}

fn vet_permit(permit: &Permit) -> Result<(), &'static str> {
    vet_under(match permit {
        Permit::Session { under, .. } | Permit::Attempt { under, .. } => under,
        Permit::Mend { under } => under,
    })
}

fn vet_batch(batch: &Batch) -> Result<(), &'static str> {
    vet_table(batch.copies, batch.bits)?;
    vet_partitions(batch.partitions.iter().map(|(partition, _)| *partition), batch.bits)
}

fn vet_partitions(
    partitions: impl ExactSizeIterator<Item = PartitionId>,
    bits: u8,
) -> Result<(), &'static str> {
    if partitions.len() > BATCH_PARTITIONS_MAX {
        return Err("too many partitions at once");
    }
    let mut before = None;
    for partition in partitions {
        vet_partition(partition, bits)?;
        if before.replace(partition) >= Some(partition) {
            return Err("its partitions are not in order");
        }
    }
    Ok(())
}

/// Appends the frame of a request that is none of a session's own; the payload is to follow.
pub(super) fn put<'a>(put: &mut Put<'_>, request: &'a MemberRequest) -> Option<&'a Payload> {
    match request {
        MemberRequest::Lineages { after } => put.frame(Kind::Lineages, 0, *after, 0, &[]),
        MemberRequest::Survey { bits, partitions, unsettled, after: (lineage, key) } => {
            let (layer, index) = (key.layer.0.into(), key.index.into());
            let head = SurveyHead { layer, index, bits: *bits, zero: [0; 3] };
            let rows: Vec<U32> = partitions.iter().map(|partition| partition.0.into()).collect();
            let body = [head.as_bytes(), rows.as_bytes()].concat();
            let flags = if *unsettled { UNSETTLED } else { 0 };
            put.frame(Kind::Survey, flags, *lineage, 0, &body);
        }
        MemberRequest::Checksums { lineage, key, blocks } => {
            let body = BlocksRecord::of(*key, *blocks);
            put.frame(Kind::Checksums, 0, *lineage, 0, body.as_bytes());
        }
        MemberRequest::Stage { permit, lineage, key, change } => {
            let kinds = [Kind::StageData, Kind::StageZero, Kind::StageAbsent];
            let (by, number, under) = permit_parts(permit);
            let (kind, flags, blocks, payload) = request::change_parts(change, kinds);
            let body = StageBody { blocks: BlocksRecord::of(*key, blocks), under };
            put.blocks(kind, flags | by, *lineage, number, body.as_bytes(), payload);
            return payload;
        }
        MemberRequest::Adopt {
            permit,
            lineage,
            key,
            staged,
            stamp,
            settled_generation,
            replaces,
        } => {
            let (flags, number, under) = permit_parts(permit);
            let body = AdoptBody {
                layer: key.layer.0.into(),
                index: key.index.into(),
                staged: (*staged).into(),
                under,
                stamp: (*stamp).into(),
                settled_generation: settled_generation.0.into(),
                replaces: (*replaces).into(),
            };
            put.frame(Kind::Adopt, flags, *lineage, number, body.as_bytes());
        }
        MemberRequest::Retract { permit, lineage, key, replaces } => {
            let (flags, number, under) = permit_parts(permit);
            let body = RetractBody { key: (*key).into(), under, replaces: (*replaces).into() };
            put.frame(Kind::Retract, flags, *lineage, number, body.as_bytes());
        }
        MemberRequest::Refuse(batch) => {
            let body = batch_body(batch, &[]);
            put.frame(Kind::Refuse, 0, LineageId(0), batch.attempt, &body);
        }
        MemberRequest::Install { batch, fences, last } => {
            let body = batch_body(batch, fences);
            let flags = if *last { LAST } else { 0 };
            put.frame(Kind::Install, flags, LineageId(0), batch.attempt, &body);
        }
        other => panic!("{other:?} is a session's own"),
    }
    None
}

/// The flag of a permit, its number, and the configuration.
fn permit_parts(permit: &Permit) -> (u16, u64, UnderRecord) {
    match permit {
        Permit::Session { generation, under } => (0, generation.0, (*under).into()),
        Permit::Attempt { under, attempt } => (BY_ATTEMPT, *attempt, (*under).into()),
        // It is never sent: a mend is asked of a disk of the own node.
        Permit::Mend { under } => (BY_ATTEMPT, 0, (*under).into()),
    }
}

fn batch_body(batch: &Batch, fences: &[(LineageId, Generation)]) -> Vec<u8> {
    let head = BatchHead {
        copies: batch.copies,
        bits: batch.bits,
        partitions: (batch.partitions.len() as u16).into(),
        zero: 0.into(),
    };
    let partition_row = |(partition, number): &(PartitionId, ConfigurationNumber)| PartitionRow {
        configuration: number.0.into(),
        partition: partition.0.into(),
    };
    let fence_row = |(lineage, generation): &(LineageId, Generation)| FenceRow {
        lineage: lineage.0.into(),
        generation: generation.0.into(),
    };
    let partitions: Vec<PartitionRow> = batch.partitions.iter().map(partition_row).collect();
    let fences: Vec<FenceRow> = fences.iter().map(fence_row).collect();
    [head.as_bytes(), partitions.as_bytes(), fences.as_bytes()].concat()
}

/// The flags that these kinds may have, but for that of a change.
pub(super) fn known_flags(kind: Kind) -> u16 {
    match kind {
        Kind::Survey => UNSETTLED,
        Kind::Install => LAST,
        Kind::StageData | Kind::StageZero | Kind::StageAbsent => BY_ATTEMPT,
        Kind::Adopt | Kind::Retract => BY_ATTEMPT,
        _ => 0,
    }
}

/// Gives a verified frame its meaning. `number` is the last of its words.
pub(super) fn decode(
    header: &Header,
    lineage: LineageId,
    number: u64,
    body: &[u8],
    payload: Option<Payload>,
) -> Result<MemberRequest, FrameError> {
    let permit = |under: UnderRecord| -> Result<Permit, FrameError> {
        let under: Under = under.under(header)?;
        Ok(match header.flags & BY_ATTEMPT {
            0 => Permit::Session { generation: Generation(number), under },
            _ => Permit::Attempt { under, attempt: number },
        })
    };
    Ok(match header.kind {
        Kind::Lineages => {
            header.nothing(number)?;
            MemberRequest::Lineages { after: lineage }
        }
        Kind::Survey => {
            header.nothing(number)?;
            decode_survey(header, lineage, body)?
        }
        Kind::Checksums => {
            header.nothing(number)?;
            let body: BlocksRecord = record(body);
            let (key, blocks) = (body.key(), body.blocks(header)?);
            MemberRequest::Checksums { lineage, key, blocks }
        }
        Kind::StageData | Kind::StageZero | Kind::StageAbsent => {
            let StageBody { blocks, under } = record(body);
            let (key, permit) = (blocks.key(), permit(under)?);
            let change = request::decode_change(header, blocks.blocks(header)?, payload)?;
            MemberRequest::Stage { permit, lineage, key, change }
        }
        Kind::Adopt => {
            let body: AdoptBody = record(body);
            MemberRequest::Adopt {
                permit: permit(body.under)?,
                lineage,
                key: ObjectKey { layer: LayerId(body.layer.get()), index: body.index.get() },
                staged: body.staged.get(),
                stamp: body.stamp.stamp(),
                settled_generation: Generation(body.settled_generation.get()),
                replaces: body.replaces.stamp(),
            }
        }
        Kind::Retract => {
            let RetractBody { key, under, replaces } = record(body);
            let (permit, key, replaces) = (permit(under)?, key.key(header)?, replaces.stamp());
            MemberRequest::Retract { permit, lineage, key, replaces }
        }
        Kind::Refuse => {
            header.nothing(lineage.0)?;
            let (batch, fences) = decode_batch(header, number, body)?;
            header.nothing(fences.len() as u64)?;
            MemberRequest::Refuse(batch)
        }
        Kind::Install => {
            header.nothing(lineage.0)?;
            let (batch, fences) = decode_batch(header, number, body)?;
            MemberRequest::Install { batch, fences, last: header.flags & LAST != 0 }
        }
        other => panic!("{other:?} is no request of these"),
    })
}

fn decode_survey(
    header: &Header,
    lineage: LineageId,
    body: &[u8],
) -> Result<MemberRequest, FrameError> {
    let (head, rows) = SurveyHead::ref_from_prefix(body).expect("the header bounds the body");
    let rows = <[U32]>::ref_from_bytes(rows).expect("a whole number of rows");
    if head.zero != [0; 3] {
        return Err(header.malformed("something where nothing belongs"));
    }
    let key = ObjectKey { layer: LayerId(head.layer.get()), index: head.index.get() };
    Ok(MemberRequest::Survey {
        bits: head.bits,
        partitions: rows.iter().map(|row| PartitionId(row.get())).collect(),
        unsettled: header.flags & UNSETTLED != 0,
        after: (lineage, key),
    })
}

/// Some partitions, and the fences behind them.
fn decode_batch(
    header: &Header,
    attempt: u64,
    body: &[u8],
) -> Result<(Batch, Vec<(LineageId, Generation)>), FrameError> {
    let (head, rest) = BatchHead::ref_from_prefix(body).expect("the header bounds the body");
    header.nothing(head.zero.get().into())?;
    let count = usize::from(head.partitions.get());
    let split = <[PartitionRow]>::ref_from_prefix_with_elems(rest, count).ok();
    let rows = split.and_then(|(partitions, rest)| {
        let fences = <[FenceRow]>::ref_from_bytes(rest).ok()?;
        Some((partitions, fences))
    });
    let (partitions, fences) = rows.ok_or(header.malformed("its rows are not whole"))?;
    let partition = |row: &PartitionRow| {
        (PartitionId(row.partition.get()), ConfigurationNumber(row.configuration.get()))
    };
    let fence = |row: &FenceRow| (LineageId(row.lineage.get()), Generation(row.generation.get()));
    let batch = Batch {
        copies: head.copies,
        bits: head.bits,
        partitions: partitions.iter().map(partition).collect(),
        attempt,
    };
    Ok((batch, fences.iter().map(fence).collect()))
}
