//! What a store does while space comes a block at a time, or the medium takes its time.

use super::{Host, Medium};
use crate::layout::{BITMAP_CHUNKS_PER_PAGE, BLOCKS_PER_PAGE, ROWS_PER_PAGE};
use crate::space::ChunkState;
use crate::{Effect, Event};
use proto::{
    BLOCK_SIZE, BlockRange, Buffer, Change, ConfigurationNumber, Generation, LayerId, LineageId,
    MemberRequest, MemberToken, ObjectKey, Stamp, Under, Write,
};

const LINEAGE: LineageId = LineageId(1);
const LAYER: LayerId = LayerId(1);

/// The write number `sequence` of an object.
fn write(index: u32, sequence: u64, change: Change) -> Event {
    let stamp = |sequence| match sequence {
        0 => Stamp::default(),
        _ => Stamp { generation: Generation(1), sequence },
    };
    let request = MemberRequest::Write(Write {
        lineage: LINEAGE,
        key: ObjectKey { layer: LAYER, index },
        under: Under { copies: 1, bits: 12, number: ConfigurationNumber(1) },
        previous: stamp(sequence - 1),
        stamp: stamp(sequence),
        settled: Stamp::default(),
        change,
    });
    Event::Member { token: MemberToken(0), request }
}

fn block(first: u32) -> Change {
    let mut buffer = Buffer::zeroed(BLOCK_SIZE);
    buffer.as_mut_slice().fill(1);
    Change::Data { first, payload: buffer.freeze(), detect_zeroes: true }
}

/// Writes one block each to some new objects, all at once: their records are one batch, and the log
/// wants no checkpoint by itself.
fn write_objects(host: &mut Host, count: u32) {
    host.events((0..count).map(|index| write(index, 1, block(0))));
    assert!(host.replies.drain(..).all(|reply| reply.is_ok()), "all are written");
}

/// Takes a checkpoint to its end.
fn checkpoint(host: &mut Host) {
    host.serving().checkpoint.request();
    host.run(Vec::new());
    assert!(host.serving().checkpoint.is_idle());
}

/// What is freed while a checkpoint runs comes back in small pieces: one that waits for room for
/// all that it writes at once may wait for good.
#[test]
fn a_checkpoint_goes_on_with_every_block_that_there_is() {
    let mut host = Host::open(Medium::formatted(16));
    checkpoint(&mut host);
    write_objects(&mut host, 40);
    let mut taken = host.leave(1);
    host.serving().checkpoint.request();
    for written in 1..=40 {
        host.run(Vec::new());
        let serving = host.serving();
        assert_eq!((serving.cache.dirty(), serving.space.available()), (40 - written, 0));
        host.give(&mut taken);
    }
    // Each of the others takes two blocks: table, bitmap, lineages, state, and then the root.
    let tables = 40_usize.div_ceil(ROWS_PER_PAGE) + 3;
    for written in 1..=tables {
        host.give(&mut taken);
        host.run(Vec::new());
        assert_eq!(host.serving().checkpoint.pages_left(), tables - written);
        assert_eq!(host.serving().space.available(), 0);
        host.give(&mut taken);
    }
    host.run(Vec::new());
    assert!(!host.serving().checkpoint.is_idle(), "the root is missing");
    host.give(&mut taken);
    host.run(Vec::new());
    assert!(host.serving().checkpoint.is_idle());
    host.serving().check();
    // No record says what was given back here; the bitmap of the next checkpoint does.
    while !taken.is_empty() {
        host.give(&mut taken);
    }
    checkpoint(&mut host);
    let mut host = Host::open(host.medium.clone());
    assert_eq!((host.opened.clone(), host.store.status().objects), (Some(Ok(())), 40));
    assert_eq!(host.notices.len(), 0);
    host.serving().check();
}

/// Pages that are as the checkpoint before has them are not written, and so need no room.
#[test]
fn a_checkpoint_without_changes_needs_room_for_its_root_alone() {
    let pages = 40;
    let chunks = pages * BITMAP_CHUNKS_PER_PAGE as u32;
    let mut host = Host::open(Medium::formatted(chunks));
    // Bitmap, state and root.
    let mut taken = host.leave(2 * u64::from(pages + 1 + 1));
    checkpoint(&mut host);
    let serving = host.serving();
    assert_eq!(serving.space.available(), 0);
    serving.space.set_chunks(0, chunks, ChunkState::Allocated);
    assert_eq!(serving.space.dirty_pages(), pages as usize);
    serving.checkpoint.request();
    host.run(Vec::new());
    assert_eq!(host.serving().checkpoint.pages_left(), 0);
    assert!(!host.serving().checkpoint.is_idle(), "the root is missing");
    host.give(&mut taken);
    host.give(&mut taken);
    host.run(Vec::new());
    assert!(host.serving().checkpoint.is_idle());
    host.serving().check();
}

/// The store looks at what is being dropped in every round, however long the medium takes.
#[test]
fn dropping_objects_leaves_nothing_behind_while_their_pages_are_read() {
    let mut host = Host::open(Medium::formatted(16));
    write_objects(&mut host, 20);
    checkpoint(&mut host);
    let mut host = Host::open(host.medium.clone());
    host.holding = true;
    host.events([Event::DropLayer { lineage: LINEAGE, layer: LAYER }]);
    for _ in 0..1_000 {
        host.run(Vec::new());
    }
    assert_eq!(host.held.len(), 20, "each page is read once");
    assert_eq!(host.serving().loads.waiters(), [0; 20]);
    host.release_reads();
    assert_eq!((host.store.status().objects, host.serving().loads.waiters().len()), (0, 0));
    host.serving().check();
}

/// A write that needs several pages is tried again when one of them has come.
#[test]
fn a_write_waits_once_for_each_page_that_it_needs() {
    let mut host = Host::open(Medium::formatted(16));
    let pages = (0..4).map(|page| page * BLOCKS_PER_PAGE);
    host.events((1..).zip(pages).map(|(sequence, first)| write(0, sequence, block(first))));
    checkpoint(&mut host);
    let mut host = Host::open(host.medium.clone());
    host.holding = true;
    let blocks = BlockRange::new(1, 900).expect("inside");
    host.events([write(0, 5, Change::Zero { blocks })]);
    assert_eq!(host.serving().loads.waiters(), [1; 4]);
    while let Some(read) = host.held.pop() {
        assert!(host.replies.is_empty(), "it needs all pages");
        host.holding = false;
        host.run(vec![Effect::Disk(read)]);
        host.holding = true;
        assert!(host.serving().loads.waiters().iter().all(|&waiters| waiters == 1));
    }
    assert!(host.replies.iter().all(|reply| reply.is_ok()) && host.replies.len() == 1);
}
