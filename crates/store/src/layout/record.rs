//! The records of the log.

use super::codec::{Put, Reader};
use super::map_page::{BLOCKS_PER_PAGE, PAGES_PER_OBJECT};
use super::{ADDRESS_MAX, Run};
use proto::{
    BLOCKS_PER_OBJECT, ConfigurationNumber, Generation, LayerId, LineageId, ObjectKey, PartitionId,
    Stamp, limits,
};

const VERSION: u8 = 1;
const TYPE_WRITE: u8 = 1;
const TYPE_FENCE: u8 = 2;
const TYPE_SETTLE: u8 = 3;
const TYPE_DROP_OBJECT: u8 = 4;
const TYPE_DROP_LAYER: u8 = 5;
const TYPE_CHUNKS: u8 = 6;
const TYPE_SCRUB: u8 = 7;
const TYPE_CUT: u8 = 8;
const TYPE_LAYER: u8 = 9;
const TYPE_LAYER_GONE: u8 = 10;
const TYPE_MERGE: u8 = 11;
const TYPE_SETTLED: u8 = 12;
const TYPE_MARK: u8 = 13;
const TYPE_ATTEMPT: u8 = 14;
const TYPE_ADOPT: u8 = 15;

/// Longest record that is not a long one: a write of single blocks that replaces single blocks, or
/// a dropped or merged object.
pub(crate) const RECORD_BYTES_MAX: usize = 8192;
/// Longest record: an adopted object, or the end of an attempt. Each has a batch of its own.
pub(crate) const LONG_RECORD_BYTES_MAX: usize = 27 << 10;

/// More than the fields of an adopted object that are there once.
const ADOPT_FIELDS_BYTES: usize = 256;
/// A run of one block of data, and a freed one.
const ADOPT_BLOCK_BYTES: usize = 2 + 2 + 1 + 5 + 8 + 7;
const _: () = assert!(
    BLOCKS_PER_OBJECT as usize * ADOPT_BLOCK_BYTES + ADOPT_FIELDS_BYTES <= LONG_RECORD_BYTES_MAX
);
const _: () = assert!(
    limits::BATCH_PARTITIONS_MAX * 13 + limits::INSTALL_FENCES_MAX * 16 + 64
        <= LONG_RECORD_BYTES_MAX
);
// The length of a body has two bytes.
const _: () = assert!(LONG_RECORD_BYTES_MAX <= u16::MAX as usize);

/// One change of what the disk holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    /// Entries of an object change, its stamp moves.
    Write(WriteRecord),
    /// A fence moves.
    Fence { lineage: LineageId, generation: Generation },
    /// The settled generation of an object moves.
    Settle { lineage: LineageId, key: ObjectKey, generation: Generation, stamp: Stamp },
    /// An object leaves the table; all its blocks are freed.
    DropObject { lineage: LineageId, key: ObjectKey, freed: Vec<Run> },
    /// The objects of a layer are being dropped.
    DropLayer { lineage: LineageId, layer: LayerId },
    /// Chunks become allocated or holes.
    Chunks { first: u32, count: u32, allocated: bool },
    /// How far scrub came.
    Scrub { pass: u64, position: u64, errors: u64, passes_done: u64 },
    /// The records of the index in all layers, from `from_lsn` up to this one, never happened.
    Cut { lineage: LineageId, index: u32, from_lsn: u64 },
    /// The lineage has a layer, above its parent (0: none).
    Layer { lineage: LineageId, layer: LayerId, parent: LayerId },
    /// Nothing is left of a layer; those above it have this parent (0: none).
    LayerGone { lineage: LineageId, layer: LayerId, parent: LayerId },
    /// An object of a layer becomes part of the one of the layer above.
    Merge(MergeRecord),
    /// The settled point of a lineage moves.
    Settled { lineage: LineageId, settled: Stamp },
    /// All objects of a lineage at or below a stamp are settled by a generation.
    Mark { lineage: LineageId, generation: Generation, settled: Stamp },
    /// An attempt to change members is known, and what it has the disk refuse.
    Attempt(AttemptRecord),
    /// An object becomes what was staged: like a write, but its settled generation, which is
    /// always there, is the object's whatever it was before.
    Adopt(WriteRecord),
}

/// What is known of some partitions whose members are being changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct AttemptRecord {
    /// The table, and that there are 2^`bits` partitions.
    pub(crate) copies: u8,
    pub(crate) bits: u8,
    pub(crate) attempt: u64,
    /// Nothing of the attempt is taken any more.
    pub(crate) ended: bool,
    /// With the configuration that is refused, if one is.
    pub(crate) partitions: Vec<(PartitionId, Option<ConfigurationNumber>)>,
    /// Fences that move with it.
    pub(crate) fences: Vec<(LineageId, Generation)>,
}

/// A change of some blocks of one object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct WriteRecord {
    pub(crate) lineage: LineageId,
    pub(crate) key: ObjectKey,
    pub(crate) previous: Stamp,
    pub(crate) stamp: Stamp,
    pub(crate) settled: Stamp,
    /// In block order, without overlap.
    pub(crate) runs: Vec<MapRun>,
    /// Of the data blocks, in the order of `runs`.
    pub(crate) checksums: Vec<u64>,
    /// What the entries named before and owned.
    pub(crate) freed: Vec<Run>,
    /// Pages that are copied from a layer below before anything else.
    pub(crate) copies: Vec<PageCopy>,
    /// The row is new and goes on with an object of a layer below, settled by this generation; of
    /// an adopted object: what settled it.
    pub(crate) settled_generation: Option<Generation>,
}

/// A map page that a layer copies from one below.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageCopy {
    pub(crate) page: u8,
    pub(crate) source: LayerId,
}

/// An object of a layer that becomes part of the one of the layer above.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MergeRecord {
    pub(crate) lineage: LineageId,
    pub(crate) source: LayerId,
    pub(crate) target: LayerId,
    pub(crate) index: u32,
    /// Stamp and settled generation, where the target had no object.
    pub(crate) new_row: Option<(Stamp, Generation)>,
    pub(crate) pages: [MergedPage; PAGES_PER_OBJECT],
    /// Blocks that the target shows already and owns from now on, in block order.
    pub(crate) owned: Vec<BlockRun>,
    /// Pages and blocks that nothing shows any more.
    pub(crate) freed: Vec<Run>,
}

/// What becomes of a page of a merged object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum MergedPage {
    /// The source does not own it.
    #[default]
    Nothing,
    /// The target has it from now on: address, checksum, owned blocks of data.
    Moved { address: u64, checksum: u64, data: u16 },
    /// Both own it: the target's stays.
    Merged,
}

/// Some blocks of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlockRun {
    pub(crate) first: u16,
    pub(crate) count: u16,
}

/// Some blocks that get entries of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MapRun {
    pub(crate) first: u16,
    pub(crate) count: u16,
    pub(crate) content: Content,
}

/// What blocks are from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Content {
    Absent,
    Zero,
    /// Data, in consecutive blocks from this address on.
    Data(u64),
}

impl WriteRecord {
    /// Takes everything out, keeping the memory.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        self.checksums.clear();
        self.freed.clear();
        self.copies.clear();
        self.settled_generation = None;
    }
}

/// Puts a record behind `out`.
pub(crate) fn encode_record(record: &Record, out: &mut Vec<u8>) {
    let kind = match record {
        Record::Write(write) => return encode_write(write, out),
        Record::Adopt(write) => return encode_adopt(write, out),
        Record::Attempt(attempt) => return encode_attempt(attempt, out),
        Record::Merge(merge) => return encode_merge(merge, out),
        Record::Fence { .. } => TYPE_FENCE,
        Record::Settle { .. } => TYPE_SETTLE,
        Record::DropObject { .. } => TYPE_DROP_OBJECT,
        Record::DropLayer { .. } => TYPE_DROP_LAYER,
        Record::Chunks { .. } => TYPE_CHUNKS,
        Record::Scrub { .. } => TYPE_SCRUB,
        Record::Cut { .. } => TYPE_CUT,
        Record::Layer { .. } => TYPE_LAYER,
        Record::LayerGone { .. } => TYPE_LAYER_GONE,
        Record::Settled { .. } => TYPE_SETTLED,
        Record::Mark { .. } => TYPE_MARK,
    };
    framed(kind, out, |out| match record {
        Record::Write(_) | Record::Merge(_) | Record::Adopt(_) | Record::Attempt(_) => {}
        Record::Settled { lineage, settled } => {
            out.put_u64(lineage.0);
            put_stamp(*settled, out);
        }
        Record::Mark { lineage, generation, settled } => {
            out.put_u64(lineage.0);
            out.put_u64(generation.0);
            put_stamp(*settled, out);
        }
        Record::Fence { lineage, generation } => {
            out.put_u64(lineage.0);
            out.put_u64(generation.0);
        }
        Record::Settle { lineage, key, generation, stamp } => {
            put_object(*lineage, *key, out);
            out.put_u64(generation.0);
            put_stamp(*stamp, out);
        }
        Record::DropObject { lineage, key, freed } => {
            put_object(*lineage, *key, out);
            put_runs(freed, out);
        }
        Record::DropLayer { lineage, layer } => {
            out.put_u64(lineage.0);
            out.put_u64(layer.0);
        }
        Record::Chunks { first, count, allocated } => {
            out.put_u32(*first);
            out.put_u32(*count);
            out.put_u8(u8::from(*allocated));
        }
        Record::Scrub { pass, position, errors, passes_done } => {
            out.put_u64(*pass);
            out.put_u64(*position);
            out.put_u64(*errors);
            out.put_u64(*passes_done);
        }
        Record::Cut { lineage, index, from_lsn } => {
            out.put_u64(lineage.0);
            out.put_u32(*index);
            out.put_u64(*from_lsn);
        }
        Record::Layer { lineage, layer, parent } | Record::LayerGone { lineage, layer, parent } => {
            out.put_u64(lineage.0);
            out.put_u64(layer.0);
            out.put_u64(parent.0);
        }
    });
}

/// Puts a write record behind `out`, from memory that is used again for the next.
pub(crate) fn encode_write(write: &WriteRecord, out: &mut Vec<u8>) {
    framed(TYPE_WRITE, out, |out| put_write(write, out));
}

/// Puts the record of an adopted object behind `out`.
pub(crate) fn encode_adopt(write: &WriteRecord, out: &mut Vec<u8>) {
    assert!(write.settled_generation.is_some(), "an adopted object says who settled it");
    framed(TYPE_ADOPT, out, |out| put_write(write, out));
}

fn put_write(write: &WriteRecord, out: &mut Vec<u8>) {
    put_object(write.lineage, write.key, out);
    put_stamp(write.previous, out);
    put_stamp(write.stamp, out);
    put_stamp(write.settled, out);
    out.put_u16(write.runs.len() as u16);
    let mut checksums = write.checksums.iter();
    for run in &write.runs {
        out.put_u16(run.first);
        out.put_u16(run.count);
        match run.content {
            Content::Absent => out.put_u8(0),
            Content::Zero => out.put_u8(1),
            Content::Data(address) => {
                out.put_u8(2);
                out.put_u40(address);
                for sum in checksums.by_ref().take(usize::from(run.count)) {
                    out.put_u64(*sum);
                }
            }
        }
    }
    put_runs(&write.freed, out);
    out.put_u8(write.copies.len() as u8);
    for copy in &write.copies {
        out.put_u8(copy.page);
        out.put_u64(copy.source.0);
    }
    out.put_u8(u8::from(write.settled_generation.is_some()));
    if let Some(generation) = write.settled_generation {
        out.put_u64(generation.0);
    }
}

fn encode_attempt(attempt: &AttemptRecord, out: &mut Vec<u8>) {
    framed(TYPE_ATTEMPT, out, |out| {
        out.put_u8(attempt.copies);
        out.put_u8(attempt.bits);
        out.put_u64(attempt.attempt);
        out.put_u8(u8::from(attempt.ended));
        out.put_u16(attempt.partitions.len() as u16);
        for (partition, refused) in &attempt.partitions {
            out.put_u32(partition.0);
            out.put_u8(u8::from(refused.is_some()));
            out.put_u64(refused.unwrap_or_default().0);
        }
        out.put_u16(attempt.fences.len() as u16);
        for (lineage, generation) in &attempt.fences {
            out.put_u64(lineage.0);
            out.put_u64(generation.0);
        }
    });
}

/// Puts a merge record behind `out`.
fn encode_merge(merge: &MergeRecord, out: &mut Vec<u8>) {
    framed(TYPE_MERGE, out, |out| {
        out.put_u64(merge.lineage.0);
        out.put_u64(merge.source.0);
        out.put_u64(merge.target.0);
        out.put_u32(merge.index);
        out.put_u8(u8::from(merge.new_row.is_some()));
        if let Some((stamp, settled_generation)) = merge.new_row {
            put_stamp(stamp, out);
            out.put_u64(settled_generation.0);
        }
        for page in merge.pages {
            match page {
                MergedPage::Nothing => out.put_u8(0),
                MergedPage::Moved { address, checksum, data } => {
                    out.put_u8(1);
                    out.put_u40(address);
                    out.put_u64(checksum);
                    out.put_u16(data);
                }
                MergedPage::Merged => out.put_u8(2),
            }
        }
        out.put_u16(merge.owned.len() as u16);
        for run in &merge.owned {
            out.put_u16(run.first);
            out.put_u16(run.count);
        }
        put_runs(&merge.freed, out);
    });
}

/// Puts type, version, length and body.
fn framed(kind: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.put_u8(kind);
    out.put_u8(VERSION);
    out.put_u16(0);
    body(out);
    let is_long = matches!(kind, TYPE_ADOPT | TYPE_ATTEMPT);
    let most = if is_long { LONG_RECORD_BYTES_MAX } else { RECORD_BYTES_MAX };
    assert!(out.len() - start <= most, "a record is longer than it may be");
    let length = (out.len() - start - 4) as u16;
    out[start + 2..start + 4].copy_from_slice(&length.to_le_bytes());
}

fn put_object(lineage: LineageId, key: ObjectKey, out: &mut Vec<u8>) {
    out.put_u64(lineage.0);
    out.put_u64(key.layer.0);
    out.put_u32(key.index);
}

fn put_stamp(stamp: Stamp, out: &mut Vec<u8>) {
    out.put_u64(stamp.generation.0);
    out.put_u64(stamp.sequence);
}

fn put_runs(runs: &[Run], out: &mut Vec<u8>) {
    out.put_u16(runs.len() as u16);
    for run in runs {
        out.put_u40(run.address);
        out.put_u16(run.count as u16);
    }
}

/// Parses exactly `count` records that fill `bytes`. All runs returned lie inside an object and
/// inside the address range, and there is one checksum for each data block.
pub(crate) fn parse_records(bytes: &[u8], count: u32) -> Option<Vec<Record>> {
    let mut fields = Reader::new(bytes);
    let mut records = Vec::with_capacity((count as usize).min(bytes.len() / 4));
    for _ in 0..count {
        let kind = fields.u8()?;
        if fields.u8()? != VERSION {
            return None;
        }
        let length = usize::from(fields.u16()?);
        let mut body = Reader::new(fields.take(length)?);
        records.push(parse_body(kind, &mut body)?);
        if body.remaining() != 0 {
            return None;
        }
    }
    (fields.remaining() == 0).then_some(records)
}

fn parse_body(kind: u8, body: &mut Reader) -> Option<Record> {
    Some(match kind {
        TYPE_WRITE => Record::Write(parse_write(body)?),
        TYPE_FENCE => {
            Record::Fence { lineage: LineageId(body.u64()?), generation: Generation(body.u64()?) }
        }
        TYPE_SETTLE => {
            let (lineage, key) = parse_object(body)?;
            let generation = Generation(body.u64()?);
            Record::Settle { lineage, key, generation, stamp: parse_stamp(body)? }
        }
        TYPE_DROP_OBJECT => {
            let (lineage, key) = parse_object(body)?;
            Record::DropObject { lineage, key, freed: parse_runs(body)? }
        }
        TYPE_DROP_LAYER => {
            Record::DropLayer { lineage: LineageId(body.u64()?), layer: parse_layer(body)? }
        }
        TYPE_CHUNKS => {
            let (first, count) = (body.u32()?, body.u32()?);
            first.checked_add(count)?;
            let allocated = match body.u8()? {
                0 => false,
                1 => true,
                _ => return None,
            };
            Record::Chunks { first, count, allocated }
        }
        TYPE_SCRUB => Record::Scrub {
            pass: body.u64()?,
            position: body.u64()?,
            errors: body.u64()?,
            passes_done: body.u64()?,
        },
        TYPE_CUT => {
            let (lineage, index) = (LineageId(body.u64()?), body.u32()?);
            Record::Cut { lineage, index, from_lsn: body.u64()? }
        }
        TYPE_LAYER | TYPE_LAYER_GONE => {
            let (lineage, layer) = (LineageId(body.u64()?), parse_layer(body)?);
            let parent = LayerId(body.u64()?);
            if parent >= layer {
                return None;
            }
            match kind {
                TYPE_LAYER => Record::Layer { lineage, layer, parent },
                _ => Record::LayerGone { lineage, layer, parent },
            }
        }
        TYPE_MERGE => Record::Merge(parse_merge(body)?),
        TYPE_SETTLED => {
            Record::Settled { lineage: LineageId(body.u64()?), settled: parse_stamp(body)? }
        }
        TYPE_MARK => {
            let (lineage, generation) = (LineageId(body.u64()?), Generation(body.u64()?));
            Record::Mark { lineage, generation, settled: parse_stamp(body)? }
        }
        TYPE_ATTEMPT => Record::Attempt(parse_attempt(body)?),
        TYPE_ADOPT => {
            let write = parse_write(body)?;
            write.settled_generation?;
            Record::Adopt(write)
        }
        _ => return None,
    })
}

fn parse_write(body: &mut Reader) -> Option<WriteRecord> {
    let (lineage, key) = parse_object(body)?;
    let mut write = WriteRecord {
        lineage,
        key,
        previous: parse_stamp(body)?,
        stamp: parse_stamp(body)?,
        settled: parse_stamp(body)?,
        ..WriteRecord::default()
    };
    let count = body.u16()?;
    let mut end = 0;
    for _ in 0..count {
        let (first, count, kind) = (body.u16()?, body.u16()?, body.u8()?);
        let run_end = u32::from(first) + u32::from(count);
        if u32::from(first) < end || count == 0 || run_end > BLOCKS_PER_OBJECT {
            return None;
        }
        end = run_end;
        let content = match kind {
            0 => Content::Absent,
            1 => Content::Zero,
            2 => {
                let address = body.u40()?;
                if address == 0 || address + u64::from(count) > ADDRESS_MAX {
                    return None;
                }
                for _ in 0..count {
                    write.checksums.push(body.u64()?);
                }
                Content::Data(address)
            }
            _ => return None,
        };
        write.runs.push(MapRun { first, count, content });
    }
    write.freed = parse_runs(body)?;
    for _ in 0..body.u8()? {
        let copy = PageCopy { page: body.u8()?, source: parse_layer(body)? };
        if usize::from(copy.page) >= PAGES_PER_OBJECT || copy.source >= key.layer {
            return None;
        }
        write.copies.push(copy);
    }
    if parse_flag(body)? {
        write.settled_generation = Some(Generation(body.u64()?));
    }
    Some(write)
}

fn parse_attempt(body: &mut Reader) -> Option<AttemptRecord> {
    let mut attempt = AttemptRecord {
        copies: body.u8()?,
        bits: body.u8().filter(|&bits| bits <= limits::PARTITION_BITS_MAX)?,
        attempt: body.u64()?,
        ended: parse_flag(body)?,
        ..AttemptRecord::default()
    };
    for _ in 0..body.u16()? {
        let partition = body.u32().filter(|&partition| partition < 1 << attempt.bits)?;
        let (is_refused, number) = (parse_flag(body)?, body.u64()?);
        if !is_refused && number != 0 {
            return None;
        }
        let refused = is_refused.then_some(ConfigurationNumber(number));
        attempt.partitions.push((PartitionId(partition), refused));
    }
    for _ in 0..body.u16()? {
        attempt.fences.push((LineageId(body.u64()?), Generation(body.u64()?)));
    }
    Some(attempt)
}

fn parse_merge(body: &mut Reader) -> Option<MergeRecord> {
    let mut merge = MergeRecord {
        lineage: LineageId(body.u64()?),
        source: parse_layer(body)?,
        target: parse_layer(body)?,
        index: body.u32()?,
        new_row: None,
        pages: [MergedPage::Nothing; PAGES_PER_OBJECT],
        owned: Vec::new(),
        freed: Vec::new(),
    };
    if merge.source >= merge.target {
        return None;
    }
    if parse_flag(body)? {
        merge.new_row = Some((parse_stamp(body)?, Generation(body.u64()?)));
    }
    for page in &mut merge.pages {
        *page = match body.u8()? {
            0 => MergedPage::Nothing,
            1 => {
                let (address, checksum, data) = (body.u40()?, body.u64()?, body.u16()?);
                if address >= ADDRESS_MAX || u32::from(data) > BLOCKS_PER_PAGE {
                    return None;
                }
                MergedPage::Moved { address, checksum, data }
            }
            2 => MergedPage::Merged,
            _ => return None,
        };
    }
    let mut end = 0;
    for _ in 0..body.u16()? {
        let run = BlockRun { first: body.u16()?, count: body.u16()? };
        let run_end = u32::from(run.first) + u32::from(run.count);
        if u32::from(run.first) < end || run.count == 0 || run_end > BLOCKS_PER_OBJECT {
            return None;
        }
        end = run_end;
        merge.owned.push(run);
    }
    merge.freed = parse_runs(body)?;
    Some(merge)
}

fn parse_flag(body: &mut Reader) -> Option<bool> {
    match body.u8()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn parse_object(body: &mut Reader) -> Option<(LineageId, ObjectKey)> {
    let lineage = LineageId(body.u64()?);
    Some((lineage, ObjectKey { layer: parse_layer(body)?, index: body.u32()? }))
}

/// Layer 0 is none, also in the table.
fn parse_layer(body: &mut Reader) -> Option<LayerId> {
    body.u64().filter(|&layer| layer != 0).map(LayerId)
}

fn parse_stamp(body: &mut Reader) -> Option<Stamp> {
    Some(Stamp { generation: Generation(body.u64()?), sequence: body.u64()? })
}

fn parse_runs(body: &mut Reader) -> Option<Vec<Run>> {
    let count = body.u16()?;
    (0..count)
        .map(|_| {
            let run = Run { address: body.u40()?, count: u32::from(body.u16()?) };
            (run.address != 0 && run.count != 0 && run.end() <= ADDRESS_MAX).then_some(run)
        })
        .collect()
}
