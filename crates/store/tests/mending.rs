//! What is mended where it lies, from content that a peer has, and what is not touched.

mod support;

use proto::{
    BLOCK_SIZE, BlockRange, Change, ConfigurationNumber, Duration, Generation, LayerId,
    MemberError, MemberRequest, ObjectKey, Payload, Permit, Stamp, Under,
};
use store::{Damage, DamagedPart, Event, Notice};
use support::{GENERATION, Host, KEY, LINEAGE, data, stamp, values, write};

/// An object in the layer above that of [`KEY`].
const ABOVE: ObjectKey = ObjectKey { layer: LayerId(2), index: 0 };
/// One above that.
const TOP: ObjectKey = ObjectKey { layer: LayerId(3), index: 0 };

fn read(key: ObjectKey, first: u32, count: u32) -> MemberRequest {
    let blocks = BlockRange::new(first, count).expect("inside");
    MemberRequest::Read { lineage: LINEAGE, key, generation: GENERATION, under: None, blocks }
}

fn flush() -> MemberRequest {
    MemberRequest::Flush { lineage: LINEAGE, generation: GENERATION, settled: Stamp::default() }
}

fn open_layer(layer: LayerId, parent: LayerId) -> MemberRequest {
    MemberRequest::OpenLayer { lineage: LINEAGE, generation: GENERATION, layer, parent }
}

fn new_host() -> Host {
    let mut host = Host::formatted(256 << 20, None, 128 << 10);
    host.open().expect("a new disk opens");
    host
}

/// So that nothing is in the cache and everything is in a checkpoint.
fn reopen(host: &mut Host) {
    host.ask(flush()).expect("flushed");
    host.close();
    host.open().expect("it opens");
}

/// Where a block of this value lies.
fn address_of(host: &Host, value: u64) -> u64 {
    let is_it = |block: &[u8]| {
        block.chunks_exact(8).enumerate().all(|(at, word)| {
            u64::from_le_bytes(word.try_into().expect("8")) == value.wrapping_mul(at as u64 + 1)
        })
    };
    host.medium.written.chunks_exact(BLOCK_SIZE).position(is_it).expect("it was written") as u64
}

fn block(value: u64) -> Payload {
    let Change::Data { payload, .. } = data(0, &[value]) else { panic!("data") };
    payload
}

fn part(damage: &Damage) -> Option<u32> {
    match damage.part {
        DamagedPart::Data { block, .. } => Some(block),
        _ => None,
    }
}

fn mends(host: &Host) -> usize {
    host.notices.iter().filter(|notice| matches!(notice, Notice::Mended(_))).count()
}

/// The first of a run was taken for the one that was lost, and written anew in its place.
#[test]
fn a_block_that_cannot_be_read_among_others_is_known_and_mended() {
    for by_scrub in [false, true] {
        let mut host = new_host();
        host.ask(write(KEY, 1, data(0, &[11, 12, 13, 14, 15]))).expect("written");
        reopen(&mut host);
        let bad = address_of(&host, 14);
        host.medium.unreadable = vec![bad];
        if by_scrub {
            host.event(Event::Scrub(store::ScrubCommand::Rate(store::ScrubRate(1 << 30))));
            host.event(Event::Scrub(store::ScrubCommand::Start));
            // Each read takes a moment: a pass that waited for the last of them spun meanwhile.
            for _ in 0..200 {
                host.poll_what_is_due();
                host.now = host.now + Duration::from_millis(10);
                host.poll_what_is_due();
                host.complete(0);
            }
            host.settle();
        } else {
            let error = host.ask(read(KEY, 0, 5)).expect_err("one of them cannot be read");
            assert!(matches!(error, MemberError::Corrupt { .. }), "{error:?}");
            host.settle();
        }
        let damages = host.store().damages().to_vec();
        assert_eq!(damages.iter().filter_map(part).collect::<Vec<_>>(), [3], "{damages:?}");
        assert_eq!(damages[0].address, bad);
        // Writing makes a sector good again.
        host.medium.unreadable.clear();
        host.event(Event::Mend { damage: damages[0], payload: block(14) });
        host.settle();
        assert!(host.store().damages().is_empty());
        assert_eq!(mends(&host), 1);
        assert_eq!(values(&host.ask(read(KEY, 0, 5)).expect("whole")), [11, 12, 13, 14, 15]);
    }
}

#[test]
fn reads_that_fail_once_leave_nothing_damaged() {
    let mut host = new_host();
    host.ask(write(KEY, 1, data(0, &[11, 12, 13]))).expect("written");
    reopen(&mut host);
    // Of all but this block only the page of the map is read.
    let (all, this) = (host.medium.written.len() / BLOCK_SIZE, address_of(&host, 11));
    host.medium.unreadable_once = (0..all as u64).filter(|at| *at != this).collect();
    assert_eq!(values(&host.ask(read(KEY, 0, 1)).expect("read again")), [11]);
    assert_eq!(host.medium.unreadable_once.len(), all - 2, "the page was read well at once");
    assert!(host.store().damages().is_empty());
    host.medium.unreadable_once = vec![address_of(&host, 12)];
    host.ask(read(KEY, 0, 3)).expect_err("it failed");
    host.settle();
    assert!(host.store().damages().is_empty());
    assert_eq!(values(&host.ask(read(KEY, 0, 3)).expect("it is there")), [11, 12, 13]);
}

/// What a block that is borrowed was is known, but not whose it is by now: its layer may be gone
/// without its owner being known, and the block be another's.
#[test]
fn a_page_between_layers_is_not_made_anew_while_layers_below_may_be_shown_through_it() {
    let mut host = new_host();
    host.ask(write(KEY, 1, data(0, &[11, 12]))).expect("written");
    host.ask(open_layer(ABOVE.layer, KEY.layer)).expect("opened");
    host.ask(write(ABOVE, 2, data(1, &[22]))).expect("written");
    host.ask(open_layer(TOP.layer, ABOVE.layer)).expect("opened");
    host.ask(write(TOP, 3, data(2, &[33]))).expect("written");
    reopen(&mut host);
    let under = Under { copies: 1, bits: 12, number: ConfigurationNumber(1) };
    let permit = Permit::Mend { under };
    let change = data(0, &[11, 22]);
    let stage = MemberRequest::Stage { permit, lineage: LINEAGE, key: ABOVE, change };
    let error = host.ask(stage).expect_err("it lies between layers");
    assert!(error.to_string().contains("between layers"), "{error}");
    assert_eq!(values(&host.ask(read(TOP, 0, 3)).expect("whole")), [11, 22, 33]);
    // Nothing of this is damaged, so nothing may be replaced at the top either.
    let change = data(0, &[99]);
    let stage = MemberRequest::Stage { permit, lineage: LINEAGE, key: TOP, change };
    host.ask(stage).expect("it may be damaged");
    let adopt = MemberRequest::Adopt {
        permit,
        lineage: LINEAGE,
        key: TOP,
        staged: 1,
        stamp: stamp(3),
        settled_generation: Generation(0),
        replaces: stamp(3),
    };
    host.ask(adopt).expect_err("it is not");
    assert_eq!(values(&host.ask(read(TOP, 0, 3)).expect("whole")), [11, 22, 33]);
}

/// Only content that has the checksum in the map is written, and only where the map names it.
#[test]
fn what_is_not_what_the_map_says_is_not_written() {
    let mut host = new_host();
    host.ask(write(KEY, 1, data(0, &[11, 12]))).expect("written");
    reopen(&mut host);
    let address = address_of(&host, 12);
    host.medium.written[address as usize * BLOCK_SIZE] ^= 1;
    host.ask(read(KEY, 0, 2)).expect_err("it is rotten");
    let damage = host.store().damages()[0];
    assert_eq!((part(&damage), damage.address), (Some(1), address));
    let before = host.medium.written.clone();
    host.event(Event::Mend { damage, payload: block(13) });
    host.settle();
    assert!(before == host.medium.written, "other content was written");
    assert_eq!(host.store().damages(), [damage]);
    // It was overwritten meanwhile: nobody misses it.
    host.ask(write(KEY, 2, data(1, &[13]))).expect("written");
    host.ask(flush()).expect("flushed");
    let before = host.medium.written.clone();
    host.event(Event::Mend { damage, payload: block(12) });
    host.settle();
    assert!(before == host.medium.written, "what nobody names any more was written");
    assert_eq!(values(&host.ask(read(KEY, 0, 2)).expect("whole")), [11, 13]);
}
