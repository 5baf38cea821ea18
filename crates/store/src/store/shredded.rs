//! A disk of more than three terabytes whose free space is cut into single blocks. Its checkpoint
//! lists so many pages that the root takes more blocks than a superblock could name: a root of
//! neighbouring blocks would find no room, and a list of its blocks no end.

use super::{Listing, Serving, Stage, Store};
use crate::layout::{BITMAP_CHUNKS_PER_PAGE, CheckpointKind, ROOT_ENTRIES_PER_PAGE, root_pages};
use crate::space::{CHUNK_BLOCKS, ChunkState, Space};
use crate::{
    DamagedPart, Effect, Event, Format, FormatOptions, Identity, LOG_BYTES_MIN, MediumKind, Notice,
    OpenError, Options,
};
use proto::{
    BLOCK_SIZE, Buffer, ClusterId, DiskDone, DiskError, DiskId, DiskOp, DiskRequest, NodeId, Time,
};
use std::collections::{BTreeMap, VecDeque};

/// As many bitmap pages as make a root of three levels: with the other pages, 177 on the lowest.
const BITMAP_PAGES: u32 = 176 * ROOT_ENTRIES_PER_PAGE as u32;
const CHUNKS: u32 = BITMAP_PAGES * BITMAP_CHUNKS_PER_PAGE as u32;
/// Every second block of a chunk is used.
const SHREDDED: [u64; 4] = [0xaaaa_aaaa_aaaa_aaaa; 4];
const NOW: Time = Time(1_000_000_000);

/// Blocks by address; all others are zero.
#[derive(Clone, Default)]
struct Medium(BTreeMap<u64, Vec<u8>>);

impl Medium {
    fn bytes() -> u64 {
        let space = u64::from(CHUNKS) * u64::from(CHUNK_BLOCKS) * BLOCK_SIZE as u64;
        3 * BLOCK_SIZE as u64 + LOG_BYTES_MIN + space
    }

    fn perform(&mut self, request: DiskRequest) -> Result<Option<Buffer>, DiskError> {
        match request {
            DiskRequest::Read { offset, mut buffer } => {
                let first = offset / BLOCK_SIZE as u64;
                for (at, block) in (first..).zip(buffer.as_mut_slice().chunks_mut(BLOCK_SIZE)) {
                    match self.0.get(&at) {
                        Some(content) => block.copy_from_slice(content),
                        None => block.fill(0),
                    }
                }
                Ok(Some(buffer))
            }
            DiskRequest::Write { offset, payloads } => {
                let mut at = offset / BLOCK_SIZE as u64;
                for payload in payloads {
                    for block in payload.as_slice().chunks(BLOCK_SIZE) {
                        self.0.insert(at, block.to_vec());
                        at += 1;
                    }
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    fn flip(&mut self, address: u64) {
        self.0.get_mut(&address).expect("something is there")[1000] ^= 2;
    }
}

/// A store on its medium, and what it said.
struct Host {
    store: Store,
    medium: Medium,
    opened: Option<Result<(), OpenError>>,
    notices: Vec<Notice>,
}

impl Host {
    fn open(medium: Medium) -> Host {
        let mut effects = Vec::new();
        let options = Options::new(MediumKind::Device, Medium::bytes());
        let store = Store::open(NOW, options, &mut effects);
        let mut host = Host { store, medium, opened: None, notices: Vec::new() };
        host.run(effects);
        host
    }

    /// Does all there is to do, without passing time.
    fn run(&mut self, effects: Vec<Effect>) {
        let mut todo = VecDeque::from(effects);
        loop {
            let mut effects = Vec::new();
            match todo.pop_front() {
                Some(Effect::Disk(DiskOp { token, request })) => {
                    let result = self.medium.perform(request);
                    let done = Event::Disk(DiskDone { token, result });
                    self.store.handle(NOW, done, &mut effects);
                }
                Some(Effect::Opened(result)) => self.opened = Some(result.map(|_| ())),
                Some(Effect::Notice(notice)) => self.notices.push(notice),
                Some(_) => {}
                None => {
                    self.store.poll(NOW, &mut effects);
                    if effects.is_empty() {
                        return;
                    }
                }
            }
            todo.extend(effects);
        }
    }

    fn serving(&mut self) -> &mut Serving {
        match &mut self.store.stage {
            Stage::Serving(serving) => serving,
            _ => panic!("the disk does not serve: {:?}", self.opened),
        }
    }

    fn listing(&mut self) -> Listing {
        self.serving().checkpoint.listing().clone()
    }

    fn damages_of_checkpoint(&self) -> usize {
        let of_checkpoint = |notice: &&Notice| matches!(notice, Notice::Damaged(damage) if damage.part == DamagedPart::Checkpoint);
        self.notices.iter().filter(of_checkpoint).count()
    }
}

fn formatted() -> Medium {
    let options = FormatOptions {
        identity: Identity { cluster: ClusterId(1), node: NodeId(2), disk: DiskId(3) },
        kind: MediumKind::Device,
        medium_bytes: Medium::bytes(),
        limit_bytes: None,
        log_bytes: Some(LOG_BYTES_MIN),
        created_unix_s: 1,
    };
    let mut medium = Medium::default();
    let mut operations = Vec::new();
    let mut format = Format::new(options, &mut operations).expect("it is large enough");
    while let Some(DiskOp { token, request }) = operations.pop() {
        let result = medium.perform(request);
        if let Some(outcome) = format.handle(DiskDone { token, result }, &mut operations) {
            outcome.expect("it is blank");
        }
    }
    medium
}

/// Leaves single free blocks, and takes a checkpoint into these.
fn shredded() -> Host {
    let mut host = Host::open(formatted());
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

#[test]
fn a_root_in_hundreds_of_single_blocks_is_written_read_and_survives_one_bad_copy_of_each() {
    let mut host = shredded();
    let listing = host.listing();
    let is_root = |header: CheckpointKind| header == CheckpointKind::Root;
    let root: Vec<_> = listing.iter().filter(|(h, _)| is_root(h.kind)).map(|(_, l)| *l).collect();
    assert_eq!(root.len(), root_pages(listing.len() - root.len()));
    assert_eq!(root.len(), 177 + 2 + 1, "pages on three levels");
    let mut blocks: Vec<u64> = root.iter().flat_map(|page| [page.address, page.twin]).collect();
    blocks.sort_unstable();
    assert!(blocks.windows(2).all(|pair| pair[0] + 1 < pair[1]), "no two of them are neighbours");
    let medium = host.medium.clone();

    let mut host = Host::open(medium.clone());
    assert_eq!(host.opened, Some(Ok(())));
    assert_eq!((host.notices.len(), host.listing() == listing), (0, true));

    // One copy of every page of the root rots, of some the first, of some the twin.
    let mut rotten = medium.clone();
    for (at, page) in root.iter().enumerate() {
        rotten.flip(if at % 2 == 0 { page.address } else { page.twin });
    }
    let mut host = Host::open(rotten);
    assert_eq!(host.opened, Some(Ok(())));
    assert_eq!(host.damages_of_checkpoint(), root.len().div_ceil(2), "the first copies that rot");
    // Mended at once, by a checkpoint that writes the whole root anew.
    assert!(host.serving().checkpoint.is_idle());
    let after = host.listing();
    assert!(after.iter().all(|(h, l)| !is_root(h.kind) || listing[h] != *l));
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
