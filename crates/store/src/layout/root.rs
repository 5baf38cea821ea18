//! The root of a checkpoint: a tree of pages that says where all pages of the checkpoint are. The
//! lowest level lists those, each level above the pages of the one below, and the superblock names
//! the one page of the highest level.

use super::checkpoint::{BODY_BYTES, HEADER_BYTES, finish, open};
use super::codec::{Cursor, Put, Reader};
use super::{CheckpointKind, PageHeader};

const ROOT_ENTRY_BYTES: usize = 23;
/// Pages listed by one page of the root.
pub(crate) const ROOT_ENTRIES_PER_PAGE: usize = BODY_BYTES / ROOT_ENTRY_BYTES;

/// Where the root says that a page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RootEntry {
    pub(crate) header: PageHeader,
    pub(crate) address: u64,
    pub(crate) twin: u64,
    pub(crate) checksum: u64,
}

/// Pages of a root, all levels together, that lists `entries` pages of a checkpoint.
pub(crate) fn root_pages(entries: usize) -> usize {
    let mut level = entries.div_ceil(ROOT_ENTRIES_PER_PAGE);
    let mut pages = level;
    while level > 1 {
        level = level.div_ceil(ROOT_ENTRIES_PER_PAGE);
        pages += level;
    }
    pages
}

/// Writes a page of the root.
pub(crate) fn encode_root(entries: &[RootEntry], number: u32, page: &mut [u8]) -> u64 {
    assert!(entries.len() <= ROOT_ENTRIES_PER_PAGE, "entries of one page");
    page.fill(0);
    let mut out = Cursor::new(&mut page[HEADER_BYTES..]);
    for entry in entries {
        out.put_u8(entry.header.kind as u8);
        out.put_u32(entry.header.number);
        out.put_u40(entry.address);
        out.put_u40(entry.twin);
        out.put_u64(entry.checksum);
    }
    finish(page, PageHeader { kind: CheckpointKind::Root, number }, entries.len())
}

/// Parses a page of the root. It lists at least one page, none twice, none at address 0, and
/// either pages of the checkpoint alone or neighbouring pages of the root before it alone.
pub(crate) fn parse_root(bytes: &[u8], number: u32, checksum: u64) -> Option<Vec<RootEntry>> {
    let header = PageHeader { kind: CheckpointKind::Root, number };
    let (count, body) = open(bytes, header, checksum)?;
    if count == 0 || count > ROOT_ENTRIES_PER_PAGE {
        return None;
    }
    let mut fields = Reader::new(body);
    let mut entries: Vec<RootEntry> = Vec::with_capacity(count);
    for _ in 0..count {
        let kind = CheckpointKind::from_code(u16::from(fields.u8()?))?;
        let entry = RootEntry {
            header: PageHeader { kind, number: fields.u32()? },
            address: fields.u40()?,
            twin: fields.u40()?,
            checksum: fields.u64()?,
        };
        let follows = entries.last().is_none_or(|last| may_follow(last.header, entry.header));
        let of_root = kind == CheckpointKind::Root;
        if entry.address == 0 || entry.twin == 0 || !follows {
            return None;
        }
        if of_root && entry.header.number >= number {
            return None;
        }
        entries.push(entry);
    }
    Some(entries)
}

/// Whether a page may be listed right behind another one.
pub(crate) fn may_follow(last: PageHeader, next: PageHeader) -> bool {
    match (last.kind, next.kind) {
        (CheckpointKind::Root, CheckpointKind::Root) => {
            last.number.checked_add(1) == Some(next.number)
        }
        (CheckpointKind::Root, _) | (_, CheckpointKind::Root) => false,
        _ => last < next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: CheckpointKind, number: u32) -> RootEntry {
        RootEntry { header: PageHeader { kind, number }, address: 20, twin: 21, checksum: 22 }
    }

    fn parsed(entries: &[RootEntry], number: u32) -> Option<Vec<RootEntry>> {
        let mut page = vec![0xaa; proto::BLOCK_SIZE];
        let checksum = encode_root(entries, number, &mut page);
        parse_root(&page, number, checksum)
    }

    #[test]
    fn a_page_takes_what_fits_and_a_root_has_levels_until_one_page_is_left() {
        assert_eq!(ROOT_ENTRIES_PER_PAGE, 175);
        let full: Vec<RootEntry> =
            (0..175).map(|number| entry(CheckpointKind::Table, number)).collect();
        assert_eq!(parsed(&full, 3), Some(full));
        let counts = [(1, 1), (175, 1), (176, 3), (175 * 175, 176), (175 * 175 + 1, 176 + 3)];
        for (entries, pages) in counts {
            assert_eq!(root_pages(entries), pages, "{entries}");
        }
    }

    #[test]
    fn a_page_that_lists_what_no_root_has_is_refused() {
        use CheckpointKind::{Drops, Root, Table};
        let good: [&[RootEntry]; 2] = [
            &[entry(Table, 0), entry(Table, 2), entry(Drops, 0)],
            &[entry(Root, 4), entry(Root, 5)],
        ];
        for entries in good {
            assert_eq!(parsed(entries, 6).as_deref(), Some(entries));
        }
        let bad: [&[RootEntry]; 8] = [
            &[],
            &[entry(Table, 1), entry(Table, 1)],
            &[entry(Drops, 0), entry(Table, 0)],
            &[entry(Root, 4), entry(Drops, 0)],
            &[entry(Root, 3), entry(Root, 5)],
            &[entry(Root, 5), entry(Root, 6)],
            &[RootEntry { address: 0, ..entry(Table, 0) }],
            &[RootEntry { twin: 0, ..entry(Table, 0) }],
        ];
        for entries in bad {
            assert_eq!(parsed(entries, 6), None, "{entries:?}");
        }
    }
}
