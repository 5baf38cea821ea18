//! The pages of a checkpoint. The root that lists them is in `root`.

use super::ADDRESS_MAX;
use super::codec::{Cursor, Put, Reader, is_sealed, seal};
use super::map_page::PAGES_PER_OBJECT;
use super::parse_root;
use proto::{
    BLOCK_SIZE, ConfigurationNumber, Generation, LayerId, LineageId, ObjectKey, PartitionId, Stamp,
    limits,
};

const MAGIC: u32 = u32::from_le_bytes(*b"SCKP");
const VERSION: u16 = 1;
const CHECKSUM_AT: usize = 8;
pub(super) const HEADER_BYTES: usize = 64;
const ROW_BYTES: usize = 115;
const CHUNK_BYTES: usize = 33;
const LINEAGE_BYTES: usize = 32;
const DROP_BYTES: usize = 16;
const LAYER_BYTES: usize = 24;
const PARTITION_BYTES: usize = 24;
const MARK_BYTES: usize = 32;
pub(super) const BODY_BYTES: usize = BLOCK_SIZE - HEADER_BYTES;

/// Rows of the object table in one page.
pub(crate) const ROWS_PER_PAGE: usize = BODY_BYTES / ROW_BYTES;
/// Chunks whose bits are in one page of the space bitmap.
pub(crate) const BITMAP_CHUNKS_PER_PAGE: usize = 120;
/// Lineages in one page.
pub(crate) const LINEAGES_PER_PAGE: usize = BODY_BYTES / LINEAGE_BYTES;
/// Layers being dropped in one page.
pub(crate) const DROPS_PER_PAGE: usize = BODY_BYTES / DROP_BYTES;
/// Layers in one page.
pub(crate) const LAYERS_PER_PAGE: usize = BODY_BYTES / LAYER_BYTES;
/// Partitions in one page.
pub(crate) const PARTITIONS_PER_PAGE: usize = BODY_BYTES / PARTITION_BYTES;
/// Marks of lineages in one page.
pub(crate) const MARKS_PER_PAGE: usize = BODY_BYTES / MARK_BYTES;

const _: () = assert!(BITMAP_CHUNKS_PER_PAGE * CHUNK_BYTES <= BODY_BYTES);

/// What a page of the checkpoint holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum CheckpointKind {
    Table = 1,
    Bitmap = 2,
    Lineages = 3,
    State = 4,
    Root = 5,
    Drops = 6,
    Layers = 7,
    Partitions = 8,
    Marks = 9,
}

impl CheckpointKind {
    /// The kind with a number, as in a page's header.
    pub(crate) fn from_code(kind: u16) -> Option<CheckpointKind> {
        Some(match kind {
            1 => CheckpointKind::Table,
            2 => CheckpointKind::Bitmap,
            3 => CheckpointKind::Lineages,
            4 => CheckpointKind::State,
            5 => CheckpointKind::Root,
            6 => CheckpointKind::Drops,
            7 => CheckpointKind::Layers,
            8 => CheckpointKind::Partitions,
            9 => CheckpointKind::Marks,
            _ => return None,
        })
    }
}

/// Which page it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct PageHeader {
    pub(crate) kind: CheckpointKind,
    pub(crate) number: u32,
}

/// One object, as a checkpoint has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TableRow {
    pub(crate) lineage: LineageId,
    pub(crate) key: ObjectKey,
    pub(crate) stamp: Stamp,
    pub(crate) settled_generation: Generation,
    /// Address (0: no page) and checksum of each map page.
    pub(crate) pages: [(u64, u64); PAGES_PER_OBJECT],
    /// Data blocks that each map page owns.
    pub(crate) counts: [u16; PAGES_PER_OBJECT],
    /// The last record contained in the row.
    pub(crate) lsn: u64,
    /// Bit n: page n belongs to the row. Others have neither address nor data.
    pub(crate) owned: u8,
    /// The mark of the lineage does not count: the object was adopted after it.
    pub(crate) unmarked: bool,
}

/// One layer above the first of its lineage, as a checkpoint has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LayerRow {
    pub(crate) lineage: LineageId,
    pub(crate) layer: LayerId,
    /// 0: none.
    pub(crate) parent: LayerId,
}

/// One lineage, as a checkpoint has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LineageRow {
    pub(crate) lineage: LineageId,
    pub(crate) fence: Generation,
    pub(crate) settled: Stamp,
}

/// What is known of the members of one partition, as a checkpoint has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PartitionRow {
    /// The table, and that it has 2^`bits` partitions.
    pub(crate) copies: u8,
    pub(crate) bits: u8,
    pub(crate) partition: PartitionId,
    /// The newest attempt to change the members, and whether it has ended here.
    pub(crate) attempt: u64,
    pub(crate) ended: bool,
    /// The last configuration that is refused.
    pub(crate) refused: Option<ConfigurationNumber>,
}

/// By whom all objects of a lineage at or below a stamp are settled, as a checkpoint has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MarkRow {
    pub(crate) lineage: LineageId,
    pub(crate) generation: Generation,
    pub(crate) settled: Stamp,
}

/// Single values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct StatePage {
    pub(crate) scrub_pass: u64,
    pub(crate) scrub_position: u64,
    pub(crate) scrub_errors: u64,
    pub(crate) scrub_passes_done: u64,
    pub(crate) lost_blocks: u64,
}

/// Fills in the header and seals the page; returns its checksum.
pub(super) fn finish(bytes: &mut [u8], header: PageHeader, count: usize) -> u64 {
    let mut out = Cursor::new(bytes);
    out.put_u32(MAGIC);
    out.put_u16(VERSION);
    out.put_u16(header.kind as u16);
    out.put_u64(0);
    out.put_u64(u64::from(header.number));
    out.put_u32(count as u32);
    seal(bytes, CHECKSUM_AT)
}

/// Checks header and checksum; returns the count and the body.
pub(super) fn open(bytes: &[u8], header: PageHeader, checksum: u64) -> Option<(usize, &[u8])> {
    let mut fields = Reader::new(bytes);
    if fields.u32()? != MAGIC || fields.u16()? != VERSION {
        return None;
    }
    let kind = CheckpointKind::from_code(fields.u16()?)?;
    if fields.u64()? != checksum || !is_sealed(bytes, CHECKSUM_AT) {
        return None;
    }
    let number = u32::try_from(fields.u64()?).ok()?;
    if (PageHeader { kind, number }) != header {
        return None;
    }
    let count = fields.u32()? as usize;
    Some((count, bytes.get(HEADER_BYTES..)?))
}

/// Writes a page of the object table. Empty slots are `None`.
pub(crate) fn encode_table<'a>(
    rows: impl Iterator<Item = Option<TableRow>> + 'a,
    number: u32,
    page: &mut [u8],
) -> u64 {
    page.fill(0);
    for (at, row) in rows.enumerate() {
        let Some(row) = row else { continue };
        let start = HEADER_BYTES + at * ROW_BYTES;
        let mut out = Cursor::new(&mut page[start..start + ROW_BYTES]);
        out.put_u64(row.lineage.0);
        out.put_u64(row.key.layer.0);
        out.put_u32(row.key.index);
        out.put_u8(1);
        out.put_u64(row.stamp.generation.0);
        out.put_u64(row.stamp.sequence);
        out.put_u64(row.settled_generation.0);
        for (address, checksum) in row.pages {
            out.put_u40(address);
            out.put_u64(checksum);
        }
        for count in row.counts {
            out.put_u16(count);
        }
        out.put_u64(row.lsn);
        out.put_u8(row.owned);
        out.put_u8(u8::from(row.unmarked));
    }
    let header = PageHeader { kind: CheckpointKind::Table, number };
    finish(page, header, ROWS_PER_PAGE)
}

/// Parses a page of the object table into its slots.
pub(crate) fn parse_table(
    bytes: &[u8],
    number: u32,
    checksum: u64,
) -> Option<Vec<Option<TableRow>>> {
    let header = PageHeader { kind: CheckpointKind::Table, number };
    let (count, body) = open(bytes, header, checksum)?;
    if count != ROWS_PER_PAGE {
        return None;
    }
    let rows = body.chunks_exact(ROW_BYTES).take(count);
    rows.map(|row| parse_row(&mut Reader::new(row))).collect()
}

fn parse_row(fields: &mut Reader) -> Option<Option<TableRow>> {
    let lineage = LineageId(fields.u64()?);
    let key = ObjectKey { layer: LayerId(fields.u64()?), index: fields.u32()? };
    let format = fields.u8()?;
    if key.layer == LayerId(0) {
        return Some(None);
    }
    if format != 1 {
        return None;
    }
    let mut row = TableRow {
        lineage,
        key,
        stamp: Stamp { generation: Generation(fields.u64()?), sequence: fields.u64()? },
        settled_generation: Generation(fields.u64()?),
        pages: [(0, 0); PAGES_PER_OBJECT],
        counts: [0; PAGES_PER_OBJECT],
        lsn: 0,
        owned: 0,
        unmarked: false,
    };
    for page in &mut row.pages {
        *page = (fields.u40()?, fields.u64()?);
        if page.0 >= ADDRESS_MAX {
            return None;
        }
    }
    for count in &mut row.counts {
        *count = fields.u16()?;
        if u32::from(*count) > super::BLOCKS_PER_PAGE {
            return None;
        }
    }
    row.lsn = fields.u64()?;
    row.owned = fields.u8()?;
    row.unmarked = match fields.u8()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let sound = (0..PAGES_PER_OBJECT).all(|page| {
        row.owned & (1 << page) != 0 || (row.pages[page] == (0, 0) && row.counts[page] == 0)
    });
    (sound && row.owned >> PAGES_PER_OBJECT == 0).then_some(Some(row))
}

/// Writes a page of the space bitmap: for each chunk whether it is allocated, and its used bits.
pub(crate) fn encode_bitmap(chunks: &[(bool, [u64; 4])], number: u32, page: &mut [u8]) -> u64 {
    assert!(chunks.len() <= BITMAP_CHUNKS_PER_PAGE, "chunks of one page");
    page.fill(0);
    let mut out = Cursor::new(&mut page[HEADER_BYTES..]);
    for (allocated, bits) in chunks {
        out.put_u8(u8::from(*allocated));
        bits.iter().for_each(|word| out.put_u64(*word));
    }
    let header = PageHeader { kind: CheckpointKind::Bitmap, number };
    finish(page, header, chunks.len())
}

/// Parses a page of the space bitmap.
pub(crate) fn parse_bitmap(
    bytes: &[u8],
    number: u32,
    checksum: u64,
) -> Option<Vec<(bool, [u64; 4])>> {
    let header = PageHeader { kind: CheckpointKind::Bitmap, number };
    let (count, body) = open(bytes, header, checksum)?;
    if count > BITMAP_CHUNKS_PER_PAGE {
        return None;
    }
    let mut fields = Reader::new(body);
    (0..count)
        .map(|_| {
            let allocated = fields.u8()? != 0;
            Some((allocated, [fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?]))
        })
        .collect()
}

/// Writes a page of lineages.
pub(crate) fn encode_lineages(rows: &[LineageRow], number: u32, page: &mut [u8]) -> u64 {
    assert!(rows.len() <= LINEAGES_PER_PAGE, "lineages of one page");
    page.fill(0);
    let mut out = Cursor::new(&mut page[HEADER_BYTES..]);
    for row in rows {
        out.put_u64(row.lineage.0);
        out.put_u64(row.fence.0);
        out.put_u64(row.settled.generation.0);
        out.put_u64(row.settled.sequence);
    }
    let header = PageHeader { kind: CheckpointKind::Lineages, number };
    finish(page, header, rows.len())
}

/// Parses a page of lineages.
pub(crate) fn parse_lineages(bytes: &[u8], number: u32, checksum: u64) -> Option<Vec<LineageRow>> {
    let header = PageHeader { kind: CheckpointKind::Lineages, number };
    let (count, body) = open(bytes, header, checksum)?;
    let mut fields = Reader::new(body);
    (0..count.min(LINEAGES_PER_PAGE))
        .map(|_| {
            Some(LineageRow {
                lineage: LineageId(fields.u64()?),
                fence: Generation(fields.u64()?),
                settled: Stamp { generation: Generation(fields.u64()?), sequence: fields.u64()? },
            })
        })
        .collect()
}

/// Writes a page of layers being dropped.
pub(crate) fn encode_drops(rows: &[(LineageId, LayerId)], number: u32, page: &mut [u8]) -> u64 {
    assert!(rows.len() <= DROPS_PER_PAGE, "layers of one page");
    page.fill(0);
    let mut out = Cursor::new(&mut page[HEADER_BYTES..]);
    for (lineage, layer) in rows {
        out.put_u64(lineage.0);
        out.put_u64(layer.0);
    }
    let header = PageHeader { kind: CheckpointKind::Drops, number };
    finish(page, header, rows.len())
}

/// Parses a page of layers being dropped.
pub(crate) fn parse_drops(
    bytes: &[u8],
    number: u32,
    checksum: u64,
) -> Option<Vec<(LineageId, LayerId)>> {
    let header = PageHeader { kind: CheckpointKind::Drops, number };
    let (count, body) = open(bytes, header, checksum)?;
    let mut fields = Reader::new(body);
    (0..count.min(DROPS_PER_PAGE))
        .map(|_| Some((LineageId(fields.u64()?), LayerId(fields.u64()?))))
        .collect()
}

/// Writes a page of layers.
pub(crate) fn encode_layers(rows: &[LayerRow], number: u32, page: &mut [u8]) -> u64 {
    assert!(rows.len() <= LAYERS_PER_PAGE, "layers of one page");
    page.fill(0);
    let mut out = Cursor::new(&mut page[HEADER_BYTES..]);
    for row in rows {
        out.put_u64(row.lineage.0);
        out.put_u64(row.layer.0);
        out.put_u64(row.parent.0);
    }
    let header = PageHeader { kind: CheckpointKind::Layers, number };
    finish(page, header, rows.len())
}

/// Parses a page of layers: each above its parent.
pub(crate) fn parse_layers(bytes: &[u8], number: u32, checksum: u64) -> Option<Vec<LayerRow>> {
    let header = PageHeader { kind: CheckpointKind::Layers, number };
    let (count, body) = open(bytes, header, checksum)?;
    let mut fields = Reader::new(body);
    (0..count.min(LAYERS_PER_PAGE))
        .map(|_| {
            let row = LayerRow {
                lineage: LineageId(fields.u64()?),
                layer: LayerId(fields.u64()?),
                parent: LayerId(fields.u64()?),
            };
            (row.parent < row.layer).then_some(row)
        })
        .collect()
}

/// Writes a page of partitions.
pub(crate) fn encode_partitions(rows: &[PartitionRow], number: u32, page: &mut [u8]) -> u64 {
    assert!(rows.len() <= PARTITIONS_PER_PAGE, "partitions of one page");
    page.fill(0);
    let mut out = Cursor::new(&mut page[HEADER_BYTES..]);
    for row in rows {
        out.put_u8(row.copies);
        out.put_u8(row.bits);
        out.put_u8(u8::from(row.ended));
        out.put_u8(u8::from(row.refused.is_some()));
        out.put_u32(row.partition.0);
        out.put_u64(row.attempt);
        out.put_u64(row.refused.unwrap_or_default().0);
    }
    let header = PageHeader { kind: CheckpointKind::Partitions, number };
    finish(page, header, rows.len())
}

/// Parses a page of partitions, each of which its table can have.
pub(crate) fn parse_partitions(
    bytes: &[u8],
    number: u32,
    checksum: u64,
) -> Option<Vec<PartitionRow>> {
    let header = PageHeader { kind: CheckpointKind::Partitions, number };
    let (count, body) = open(bytes, header, checksum)?;
    let mut fields = Reader::new(body);
    (0..count.min(PARTITIONS_PER_PAGE))
        .map(|_| {
            let (copies, bits) = (fields.u8()?, fields.u8()?);
            let (ended, is_refused) = (fields.u8()? != 0, fields.u8()? != 0);
            let partition = fields.u32()?;
            let (attempt, number) = (fields.u64()?, ConfigurationNumber(fields.u64()?));
            let sound = bits <= limits::PARTITION_BITS_MAX && partition < 1 << bits;
            sound.then_some(PartitionRow {
                copies,
                bits,
                partition: PartitionId(partition),
                attempt,
                ended,
                refused: is_refused.then_some(number),
            })
        })
        .collect()
}

/// Writes a page of marks.
pub(crate) fn encode_marks(rows: &[MarkRow], number: u32, page: &mut [u8]) -> u64 {
    assert!(rows.len() <= MARKS_PER_PAGE, "marks of one page");
    page.fill(0);
    let mut out = Cursor::new(&mut page[HEADER_BYTES..]);
    for row in rows {
        out.put_u64(row.lineage.0);
        out.put_u64(row.generation.0);
        out.put_u64(row.settled.generation.0);
        out.put_u64(row.settled.sequence);
    }
    let header = PageHeader { kind: CheckpointKind::Marks, number };
    finish(page, header, rows.len())
}

/// Parses a page of marks.
pub(crate) fn parse_marks(bytes: &[u8], number: u32, checksum: u64) -> Option<Vec<MarkRow>> {
    let header = PageHeader { kind: CheckpointKind::Marks, number };
    let (count, body) = open(bytes, header, checksum)?;
    let mut fields = Reader::new(body);
    (0..count.min(MARKS_PER_PAGE))
        .map(|_| {
            Some(MarkRow {
                lineage: LineageId(fields.u64()?),
                generation: Generation(fields.u64()?),
                settled: Stamp { generation: Generation(fields.u64()?), sequence: fields.u64()? },
            })
        })
        .collect()
}

/// Writes the page of single values.
pub(crate) fn encode_state(state: &StatePage, page: &mut [u8]) -> u64 {
    page.fill(0);
    let mut out = Cursor::new(&mut page[HEADER_BYTES..]);
    out.put_u64(state.scrub_pass);
    out.put_u64(state.scrub_position);
    out.put_u64(state.scrub_errors);
    out.put_u64(state.scrub_passes_done);
    out.put_u64(state.lost_blocks);
    finish(page, PageHeader { kind: CheckpointKind::State, number: 0 }, 1)
}

/// Parses the page of single values.
pub(crate) fn parse_state(bytes: &[u8], checksum: u64) -> Option<StatePage> {
    let header = PageHeader { kind: CheckpointKind::State, number: 0 };
    let (_, body) = open(bytes, header, checksum)?;
    let mut fields = Reader::new(body);
    Some(StatePage {
        scrub_pass: fields.u64()?,
        scrub_position: fields.u64()?,
        scrub_errors: fields.u64()?,
        scrub_passes_done: fields.u64()?,
        lost_blocks: fields.u64()?,
    })
}

/// Whether some bytes are the page that a root lists.
pub(crate) fn parse_checkpoint_page(bytes: &[u8], header: PageHeader, checksum: u64) -> bool {
    let number = header.number;
    match header.kind {
        CheckpointKind::Table => parse_table(bytes, number, checksum).is_some(),
        CheckpointKind::Bitmap => parse_bitmap(bytes, number, checksum).is_some(),
        CheckpointKind::Lineages => parse_lineages(bytes, number, checksum).is_some(),
        CheckpointKind::Drops => parse_drops(bytes, number, checksum).is_some(),
        CheckpointKind::Layers => parse_layers(bytes, number, checksum).is_some(),
        CheckpointKind::Partitions => parse_partitions(bytes, number, checksum).is_some(),
        CheckpointKind::Marks => parse_marks(bytes, number, checksum).is_some(),
        CheckpointKind::State => parse_state(bytes, checksum).is_some(),
        CheckpointKind::Root => parse_root(bytes, number, checksum).is_some(),
    }
}
