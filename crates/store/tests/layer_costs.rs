//! What many layers cost, counted and not timed; what a layer refuses; and what damage does to
//! pages that several layers share.

mod support;

use proto::{
    BLOCK_SIZE, BlockRange, Change, ConfigurationNumber, Duration, Generation, LayerId,
    MemberError, MemberRequest, ObjectKey, Stamp, Under, Write,
};
use store::{Event, check};
use support::{GENERATION, Host, LINEAGE, Random, data, stamp, values};

fn new_host() -> Host {
    let mut host = Host::formatted(256 << 20, Some(128 << 20), 1 << 20);
    host.open().expect("a new disk opens");
    host
}

fn key(layer: u64) -> ObjectKey {
    ObjectKey { layer: LayerId(layer), index: 0 }
}

fn write(layer: u64, sequence: u64, change: Change) -> MemberRequest {
    MemberRequest::Write(Write {
        lineage: LINEAGE,
        key: key(layer),
        under: Under { copies: 1, bits: 12, number: ConfigurationNumber(1) },
        previous: stamp(sequence - 1),
        stamp: stamp(sequence),
        settled: Stamp::default(),
        change,
    })
}

fn read(layer: u64, first: u32, count: u32) -> MemberRequest {
    let blocks = BlockRange::new(first, count).expect("inside");
    let (lineage, generation) = (LINEAGE, Generation::SEALED);
    MemberRequest::Read { lineage, key: key(layer), generation, under: None, blocks }
}

fn open(layer: u64, parent: u64) -> MemberRequest {
    let (layer, parent) = (LayerId(layer), LayerId(parent));
    MemberRequest::OpenLayer { lineage: LINEAGE, generation: GENERATION, layer, parent }
}

fn flush() -> MemberRequest {
    MemberRequest::Flush { lineage: LINEAGE, generation: GENERATION, settled: Stamp::default() }
}

fn drop_layer(layer: u64) -> Event {
    Event::DropLayer { lineage: LINEAGE, layer: LayerId(layer) }
}

/// Rows looked at for one read of the head.
fn steps(host: &mut Host, layer: u64, first: u32) -> u64 {
    let before = host.store().status().counters.rows_visited;
    host.ask(read(layer, first, 1)).expect("read");
    host.store().status().counters.rows_visited - before
}

/// Each of 1,000 snapshots has written page 0 of the object; pages 1 and 2 are as they were before
/// the first of them, page 3 was never written.
#[test]
fn a_thousand_snapshots_cost_a_read_of_the_head_nothing() {
    let mut host = new_host();
    let new: Vec<u64> = (1..=256).collect();
    host.ask(write(1, 1, data(0, &new))).expect("written");
    host.ask(write(1, 2, data(256, &new))).expect("written");
    let alone = steps(&mut host, 1, 300);
    for layer in 2..=1001 {
        host.ask(open(layer, layer - 1)).expect("opened");
        host.ask(write(layer, layer + 1, data(7, &[10_000 + layer]))).expect("written");
    }
    for first in [7, 8, 300, 600, 900] {
        // The first time the row asks the one below it.
        assert!(steps(&mut host, 1001, first) <= alone + 1, "block {first}");
        assert!(steps(&mut host, 1001, first) <= alone, "block {first} again");
    }
    assert_eq!(values(&host.ask(read(1001, 300, 1)).expect("read")), [45]);
    // After a restart the first read of a page finds out; the next ones know.
    host.close();
    host.open().expect("it opens");
    for first in [7, 300, 900] {
        steps(&mut host, 1001, first);
        assert!(steps(&mut host, 1001, first) <= alone, "block {first} after a restart");
    }
    // The oldest goes: what it had is found at once where it is now.
    host.ask(flush()).expect("flushed");
    host.event(drop_layer(1));
    host.pass(Duration::from_secs(20));
    assert_eq!(host.store().status().layers_dropping, 0);
    assert!(steps(&mut host, 1001, 300) <= alone, "after a merge");
    assert_eq!(values(&host.ask(read(1001, 300, 1)).expect("read")), [45]);
    assert_eq!(values(&host.ask(read(500, 7, 1)).expect("read")), [10_500]);
    host.store().check();
    host.close();
    let report = check::check(&mut &host.medium.written[..]).expect("it opens");
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
}

#[test]
fn a_layer_is_opened_once_above_one_parent_by_who_holds_the_attachment() {
    let mut host = new_host();
    let invalid = |host: &mut Host, request: MemberRequest, why: &'static str| {
        assert_eq!(host.ask(request).map(drop), Err(MemberError::invalid(why)));
    };
    host.ask(write(1, 1, data(0, &[1, 2]))).expect("written");
    invalid(&mut host, read(4, 0, 1), "the layer was not opened");
    invalid(&mut host, write(4, 2, data(0, &[3])), "the layer was not opened");
    host.ask(open(4, 1)).expect("opened");
    host.ask(open(4, 1)).expect("once more is the same");
    host.ask(open(6, 4)).expect("opened");
    host.ask(open(6, 1)).expect("layers between may be gone elsewhere");
    host.ask(open(5, 1)).expect("opened");
    invalid(&mut host, open(6, 5), "the layer has another parent");
    invalid(&mut host, open(3, 5), "a layer's number is higher than its parent's");
    // Both layers below are empty or covered: the write goes on with the stamp that is shown.
    host.ask(write(6, 2, data(1, &[3]))).expect("written");
    assert_eq!(values(&host.ask(read(6, 0, 2)).expect("read")), [1, 3]);
    assert_eq!(values(&host.ask(read(4, 0, 2)).expect("read")), [1, 2]);
    host.ask(write(1, 1, data(0, &[1, 2]))).expect("sent again is the same");
    invalid(&mut host, write(4, 2, data(0, &[9])), "a layer above has the object");
    let fence = MemberRequest::Fence {
        lineage: LINEAGE,
        generation: Generation(9),
        list: true,
        after: ObjectKey::default(),
    };
    host.ask(fence).expect("fenced");
    let fenced = Err(MemberError::Fenced { newer: Generation(9) });
    assert_eq!(host.ask(open(8, 6)).map(drop), fenced);
    assert_eq!(values(&host.ask(read(6, 0, 2)).expect("sealed reads pass")), [1, 3]);
    let mut random = Random::new(1);
    host.crash(&mut random, true);
    host.open().expect("it opens");
    assert_eq!(values(&host.ask(read(6, 0, 2)).expect("a fence is durable")), [1, 3]);
}

/// Layer 1 has blocks 0 to 3, layer 2 another block 1; all of it in a checkpoint.
fn two_layers() -> Host {
    let mut host = new_host();
    host.ask(write(1, 1, data(0, &[1, 2, 3, 4]))).expect("written");
    host.ask(open(2, 1)).expect("opened");
    host.ask(write(2, 2, data(1, &[9]))).expect("written");
    host.close();
    host
}

/// Flips a bit in the map page that a layer wrote.
fn damage_map_page(host: &mut Host, layer: u64) {
    let blocks = host.medium.written.chunks_mut(BLOCK_SIZE);
    let page = blocks
        .filter(|block| block.starts_with(b"SMAP") && block[24..32] == layer.to_le_bytes())
        .last()
        .expect("the layer has a page");
    page[2000] ^= 1;
}

#[test]
fn a_damaged_page_below_is_an_error_above_and_never_zeros() {
    let mut host = new_host();
    host.ask(write(1, 1, data(0, &[1, 2, 3, 4]))).expect("written");
    host.ask(open(2, 1)).expect("opened");
    host.close();
    damage_map_page(&mut host, 1);
    host.open().expect("it opens");
    let corrupt = Err(MemberError::Corrupt { key: key(2), block: 0 });
    assert_eq!(host.ask(read(2, 0, 1)).map(drop), corrupt);
    let corrupt = Err(MemberError::Corrupt { key: key(2), block: 1 });
    assert_eq!(host.ask(write(2, 2, data(1, &[9]))).map(drop), corrupt);
    // All of the page needs nothing of what lies below.
    let new: Vec<u64> = (1..=256).collect();
    host.ask(write(2, 2, data(0, &new))).expect("written");
    assert_eq!(values(&host.ask(read(2, 0, 256)).expect("read")), new);
    host.store().check();
    host.event(drop_layer(1));
    host.pass(Duration::from_secs(20));
    assert_eq!(values(&host.ask(read(2, 0, 256)).expect("read")), new);
    assert_eq!(host.store().status().lost_blocks, 4);
    host.store().check();
}

#[test]
fn a_merge_with_a_damaged_page_gives_no_block_away_that_may_be_shown() {
    for damaged in [1, 2] {
        let mut host = two_layers();
        damage_map_page(&mut host, damaged);
        host.open().expect("it opens");
        host.event(drop_layer(1));
        host.pass(Duration::from_secs(20));
        assert_eq!(host.store().status().layers_dropping, 0);
        let reply = host.ask(read(2, 0, 4)).map(|reply| values(&reply));
        match damaged {
            1 => assert_eq!(reply, Ok(vec![1, 9, 3, 4]), "the upper page says all there is"),
            _ => assert_eq!(reply, Err(MemberError::Corrupt { key: key(2), block: 0 })),
        }
        assert_eq!(host.store().status().lost_blocks, 4);
        host.store().check();
        host.close();
        host.open().expect("it opens");
        assert_eq!(host.store().status().lost_blocks, 4);
        host.event(drop_layer(2));
        host.pass(Duration::from_secs(20));
        host.store().check();
        assert_eq!(host.store().status().space.data_bytes, 0);
    }
}

/// A page that is copied while its source cannot be read when the log is replayed.
#[test]
fn a_copy_of_a_page_that_rotted_before_replay_is_lost_and_not_empty() {
    let mut host = new_host();
    host.ask(write(1, 1, data(0, &[1, 2, 3, 4]))).expect("written");
    host.close();
    host.open().expect("it opens");
    host.ask(open(2, 1)).expect("opened");
    host.ask(write(2, 2, data(1, &[9]))).expect("written");
    host.ask(flush()).expect("flushed");
    let mut random = Random::new(1);
    host.crash(&mut random, false);
    damage_map_page(&mut host, 1);
    host.open().expect("it opens");
    assert_eq!(values(&host.ask(read(2, 1, 1)).expect("read")), [9]);
    for block in [0, 2, 200] {
        let corrupt = Err(MemberError::Corrupt { key: key(2), block });
        assert_eq!(host.ask(read(2, block, 1)).map(drop), corrupt);
    }
}
