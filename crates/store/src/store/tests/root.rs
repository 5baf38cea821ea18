//! Roots of several levels, and what becomes of them.

use super::{Host, Medium};
use crate::layout::{
    BITMAP_CHUNKS_PER_PAGE, CheckpointKind, LINEAGES_PER_PAGE, ROOT_ENTRIES_PER_PAGE, root_pages,
};
use crate::space::{ChunkState, Space};
use crate::store::{Lineage, Listing};
use crate::{DamagedPart, Notice, OpenError};
use proto::{Generation, LineageId};

/// As many bitmap pages as make a root of three levels: with the other pages, 177 on the lowest.
const BITMAP_PAGES: u32 = 176 * ROOT_ENTRIES_PER_PAGE as u32;
const CHUNKS: u32 = BITMAP_PAGES * BITMAP_CHUNKS_PER_PAGE as u32;
/// Every second block of a chunk is used.
const SHREDDED: [u64; 4] = [0xaaaa_aaaa_aaaa_aaaa; 4];

fn listing(host: &mut Host) -> Listing {
    host.serving().checkpoint.listing().clone()
}

fn damages_of_checkpoint(host: &Host) -> usize {
    let is_of_checkpoint = |notice: &&Notice| match notice {
        Notice::Damaged(damage) => damage.part == DamagedPart::Checkpoint,
        _ => false,
    };
    host.notices.iter().filter(is_of_checkpoint).count()
}

/// Leaves single free blocks, and takes a checkpoint into these.
fn shredded() -> Host {
    let mut host = Host::open(Medium::formatted(CHUNKS));
    let serving = host.serving();
    let mut space = Space::new(serving.superblock.space_first);
    for page in 0..BITMAP_PAGES {
        assert!(space.load(page, &[(true, SHREDDED); BITMAP_CHUNKS_PER_PAGE]));
    }
    space.set_chunks(0, CHUNKS, ChunkState::Allocated);
    // Nobody owns what is used, as after the loss of map pages.
    serving.lost_blocks = space.allocated() - space.available();
    serving.space = space;
    serving.checkpoint.request();
    host.run(Vec::new());
    assert!(host.serving().checkpoint.is_idle());
    host
}

/// A disk of more than three terabytes whose free space is cut into single blocks. Its checkpoint
/// lists so many pages that the root takes more blocks than a superblock could name: a root of
/// neighbouring blocks would find no room, and a list of its blocks no end.
#[test]
fn a_root_in_hundreds_of_single_blocks_is_written_read_and_survives_one_bad_copy_of_each() {
    let mut host = shredded();
    let listed = listing(&mut host);
    let is_root = |kind: CheckpointKind| kind == CheckpointKind::Root;
    let root: Vec<_> = listed.iter().filter(|(h, _)| is_root(h.kind)).map(|(_, l)| *l).collect();
    assert_eq!(root.len(), root_pages(listed.len() - root.len()));
    assert_eq!(root.len(), 177 + 2 + 1, "pages on three levels");
    let mut blocks: Vec<u64> = root.iter().flat_map(|page| [page.address, page.twin]).collect();
    blocks.sort_unstable();
    assert!(blocks.windows(2).all(|pair| pair[0] + 1 < pair[1]), "no two of them are neighbours");
    let medium = host.medium.clone();

    let mut host = Host::open(medium.clone());
    assert_eq!(host.opened, Some(Ok(())));
    assert_eq!((host.notices.len(), listing(&mut host) == listed), (0, true));

    // One copy of every page of the root rots, of some the first, of some the twin.
    let mut rotten = medium.clone();
    for (at, page) in root.iter().enumerate() {
        rotten.flip(if at % 2 == 0 { page.address } else { page.twin });
    }
    let mut host = Host::open(rotten);
    assert_eq!(host.opened, Some(Ok(())));
    assert_eq!(damages_of_checkpoint(&host), root.len().div_ceil(2), "the first copies that rot");
    // Mended at once, by a checkpoint that writes the whole root anew.
    assert!(host.serving().checkpoint.is_idle());
    let after = listing(&mut host);
    assert!(after.iter().all(|(h, l)| !is_root(h.kind) || listed[h] != *l));
    let mended = host.notices.iter().filter(|notice| matches!(notice, Notice::Mended(_))).count();
    assert_eq!(mended, root.len().div_ceil(2));
    drop(host);

    // Both copies of a page of the lowest level.
    let mut lost = medium;
    lost.flip(root[17].address);
    lost.flip(root[17].twin);
    let refused = OpenError::TableDamaged { address: root[17].address };
    assert_eq!(Host::open(lost).opened, Some(Err(refused)));
}

/// A root that grows a level and loses it again owns no block that it has not.
#[test]
fn a_root_gains_and_loses_a_level_with_the_pages_that_it_lists() {
    let mut host = Host::open(Medium::formatted(16));
    let many = ROOT_ENTRIES_PER_PAGE * LINEAGES_PER_PAGE;
    for (lineages, root) in [(1, 1), (many, 3), (1, 1), (many, 3)] {
        let fenced = |id| (LineageId(id), Lineage { fence: Generation(1), ..Lineage::default() });
        host.serving().lineages = (1..=lineages as u64).map(fenced).collect();
        host.serving().checkpoint.request();
        host.run(Vec::new());
        let listed = listing(&mut host);
        let pages = listed.keys().filter(|header| header.kind == CheckpointKind::Root).count();
        assert_eq!(pages, root, "{lineages} lineages");
        assert_eq!(host.serving().space.checkpoint_blocks(), 2 * listed.len() as u64);
        host.serving().check();
        host = Host::open(host.medium.clone());
        assert_eq!((host.opened.clone(), listing(&mut host) == listed), (Some(Ok(())), true));
        assert_eq!(host.serving().lineages.len(), lineages);
        host.serving().check();
    }
}
