//! A page of an object's map: what each of 256 blocks is. Kept in memory as it is on disk.

use super::ADDRESS_MAX;
use super::codec::{Cursor, Put, Reader, is_sealed, seal};
use proto::{BLOCK_SIZE, BLOCKS_PER_OBJECT, LayerId, LineageId, ObjectKey};

const MAGIC: u32 = u32::from_le_bytes(*b"SMAP");
const VERSION: u16 = 1;
/// Entries of 14 bytes. Format 2 is kept for entries with nonce and tag.
const FORMAT: u16 = 1;
const CHECKSUM_AT: usize = 8;
const ENTRIES_AT: usize = 512;
const ENTRY_BYTES: usize = 14;
/// Blocks that one page of format 1 maps.
pub(crate) const BLOCKS_PER_PAGE: u32 = 256;
/// Pages of one object.
pub(crate) const PAGES_PER_OBJECT: usize = (BLOCKS_PER_OBJECT / BLOCKS_PER_PAGE) as usize;

const _: () = assert!(ENTRIES_AT + ENTRY_BYTES * BLOCKS_PER_PAGE as usize <= BLOCK_SIZE);

/// What a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Absent,
    Zero,
    Data,
    /// It was data, but the page that named it is lost: reading it is an error.
    Lost,
}

/// What a map says of one block. Address and checksum are 0 unless it is data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// Whether the block belongs to this map. Data of a layer below is borrowed.
    pub(crate) owner: bool,
    pub(crate) address: u64,
    pub(crate) checksum: u64,
}

impl Entry {
    pub(crate) const ABSENT: Entry =
        Entry { kind: Kind::Absent, owner: false, address: 0, checksum: 0 };
    pub(crate) const ZERO: Entry =
        Entry { kind: Kind::Zero, owner: false, address: 0, checksum: 0 };
    pub(crate) const LOST: Entry =
        Entry { kind: Kind::Lost, owner: false, address: 0, checksum: 0 };

    /// Data that belongs to the map.
    pub(crate) fn data(address: u64, checksum: u64) -> Entry {
        Entry { kind: Kind::Data, owner: true, address, checksum }
    }

    fn is_owned(&self) -> bool {
        self.kind == Kind::Data && self.owner
    }

    /// The same content, as a layer above has it.
    pub(crate) fn borrowed(self) -> Entry {
        Entry { owner: false, ..self }
    }

    /// Whether it is this data at this address, whoever owns it.
    pub(crate) fn is_data_at(&self, address: u64, checksum: u64) -> bool {
        self.kind == Kind::Data && (self.address, self.checksum) == (address, checksum)
    }

    /// Whether both show the same content, whoever owns it.
    pub(crate) fn shows_same(&self, other: &Entry) -> bool {
        self.borrowed() == other.borrowed()
    }
}

/// Whose page it is. Pages move between layers, so a page may say another layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageName {
    pub(crate) lineage: LineageId,
    pub(crate) key: ObjectKey,
    pub(crate) page: u8,
}

/// The entries of a page, all of them valid, with their counts.
pub(crate) struct MapPage {
    bytes: Box<[u8; BLOCK_SIZE]>,
    data: u16,
    present: u16,
}

impl MapPage {
    /// A page of absent blocks.
    pub(crate) fn new() -> MapPage {
        MapPage { bytes: Box::new([0; BLOCK_SIZE]), data: 0, present: 0 }
    }

    /// A page of lost blocks, standing in for one that is damaged.
    pub(crate) fn lost() -> MapPage {
        let mut page = MapPage::new();
        for at in 0..BLOCKS_PER_PAGE {
            page.replace(at, Entry::LOST);
        }
        page
    }

    /// The same content as a layer above has it: nothing of it owned.
    pub(crate) fn borrowed(&self) -> MapPage {
        let mut page = MapPage { bytes: self.bytes.clone(), data: 0, present: self.present };
        for at in 0..BLOCKS_PER_PAGE as usize {
            page.bytes[ENTRIES_AT + at * ENTRY_BYTES + 5] &= !OWNER;
        }
        page
    }

    /// How many blocks are data that belongs to the page.
    pub(crate) fn data(&self) -> u16 {
        self.data
    }

    /// Whether it is not known what some of its blocks are.
    pub(crate) fn has_lost(&self) -> bool {
        (0..BLOCKS_PER_PAGE).any(|at| self.entry(at).kind == Kind::Lost)
    }

    /// Whether nothing in it needs keeping.
    pub(crate) fn is_empty(&self) -> bool {
        self.present == 0
    }

    /// The entry of a block of the page.
    pub(crate) fn entry(&self, at: u32) -> Entry {
        let start = ENTRIES_AT + at as usize * ENTRY_BYTES;
        let bytes = &self.bytes[start..start + ENTRY_BYTES];
        match bytes[5] & 3 {
            0 => Entry::ABSENT,
            1 => Entry::ZERO,
            2 => {
                let mut fields = Reader::new(bytes);
                let address = fields.u40().unwrap_or(0);
                let checksum = u64::from_le_bytes(bytes[6..14].try_into().unwrap_or([0; 8]));
                Entry { kind: Kind::Data, owner: bytes[5] & OWNER != 0, address, checksum }
            }
            _ => Entry::LOST,
        }
    }

    /// Changes the entry of a block of the page; returns what it was.
    pub(crate) fn replace(&mut self, at: u32, entry: Entry) -> Entry {
        let old = self.entry(at);
        self.data -= u16::from(old.is_owned());
        self.present -= u16::from(old.kind != Kind::Absent);
        self.data += u16::from(entry.is_owned());
        self.present += u16::from(entry.kind != Kind::Absent);
        let flags = match entry.kind {
            Kind::Absent => 0,
            Kind::Zero => 1,
            Kind::Data => 2 | if entry.owner { OWNER } else { 0 },
            Kind::Lost => 3,
        };
        let start = ENTRIES_AT + at as usize * ENTRY_BYTES;
        let mut out = Cursor::new(&mut self.bytes[start..start + ENTRY_BYTES]);
        out.put_u40(entry.address);
        out.put_u8(flags);
        out.put_u64(entry.checksum);
        old
    }

    /// Writes the page as it goes to the medium; returns its checksum.
    pub(crate) fn encode(&self, name: &PageName, covers_lsn: u64, block: &mut [u8]) -> u64 {
        block.copy_from_slice(&self.bytes[..]);
        let mut out = Cursor::new(block);
        out.put_u32(MAGIC);
        out.put_u16(VERSION);
        out.put_u16(FORMAT);
        out.put_u64(0);
        out.put_u64(name.lineage.0);
        out.put_u64(name.key.layer.0);
        out.put_u32(name.key.index);
        out.put_u32(u32::from(name.page));
        out.put_u64(covers_lsn);
        seal(block, CHECKSUM_AT)
    }
}

/// Entry flag: the block belongs to this object; without it, to one of a layer below.
const OWNER: u8 = 4;

/// Parses a map page that must be the named one and have the checksum its parent holds.
pub(crate) fn parse_map_page(bytes: &[u8], name: &PageName, checksum: u64) -> Option<MapPage> {
    let bytes: &[u8; BLOCK_SIZE] = bytes.get(..BLOCK_SIZE)?.try_into().ok()?;
    let mut fields = Reader::new(&bytes[..]);
    if fields.u32()? != MAGIC || fields.u16()? != VERSION || fields.u16()? != FORMAT {
        return None;
    }
    if fields.u64()? != checksum || !is_sealed(bytes, CHECKSUM_AT) {
        return None;
    }
    let lineage = LineageId(fields.u64()?);
    let _written_by = LayerId(fields.u64()?);
    let (index, page) = (fields.u32()?, fields.u32()?);
    if (lineage, index, page) != (name.lineage, name.key.index, u32::from(name.page)) {
        return None;
    }
    let mut page = MapPage { bytes: Box::new([0; BLOCK_SIZE]), data: 0, present: 0 };
    page.bytes.copy_from_slice(bytes);
    for at in 0..BLOCKS_PER_PAGE {
        let start = ENTRIES_AT + at as usize * ENTRY_BYTES;
        let flags = bytes[start + 5];
        let entry = page.entry(at);
        let sound = match entry.kind {
            Kind::Data => flags & !OWNER == 2 && entry.address != 0 && entry.address < ADDRESS_MAX,
            _ => flags & !3 == 0,
        };
        if !sound {
            return None;
        }
        page.data += u16::from(entry.is_owned());
        page.present += u16::from(entry.kind != Kind::Absent);
    }
    Some(page)
}
