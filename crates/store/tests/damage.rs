//! What rots, fails or fills up: found, told, mended where it can be, and never served.

mod support;

use proto::{
    BLOCK_SIZE, BlockRange, Change, Duration, Generation, LayerId, MemberError, MemberReply,
    MemberRequest, ObjectKey, Stamp,
};
use std::collections::BTreeSet;
use store::{DamagedPart, Event, Notice, OpenError, ScrubRate, State, check};
use support::{GENERATION, Host, KEY, LINEAGE, Medium, Random, data, stamp, values, write};

fn read(key: ObjectKey, first: u32, count: u32) -> MemberRequest {
    let blocks = BlockRange::new(first, count).expect("inside");
    MemberRequest::Read { lineage: LINEAGE, key, generation: GENERATION, under: None, blocks }
}

fn flush() -> MemberRequest {
    MemberRequest::Flush { lineage: LINEAGE, generation: GENERATION, settled: Stamp::default() }
}

fn new_host() -> Host {
    let mut host = Host::formatted(256 << 20, None, 128 << 10);
    host.open().expect("a new disk opens");
    host
}

/// A disk with data in a checkpoint and a few records after it.
fn with_data() -> Host {
    let mut host = new_host();
    host.ask(write(KEY, 1, data(0, &[1, 2, 3, 4]))).expect("written");
    host.close();
    host.open().expect("it opens");
    host.ask(write(KEY, 2, data(300, &[5, 6]))).expect("written");
    host.ask(flush()).expect("flushed");
    host
}

fn flip(medium: &mut Medium, address: u64) {
    medium.written[address as usize * BLOCK_SIZE + 77] ^= 4;
}

fn part_name(part: DamagedPart) -> &'static str {
    match part {
        DamagedPart::Superblock => "superblock",
        DamagedPart::Log => "log",
        DamagedPart::Checkpoint => "checkpoint",
        DamagedPart::MapPage { .. } => "map page",
        DamagedPart::Data { .. } => "data",
    }
}

/// Every block of the medium that differs from zero is flipped once, each on a copy of the disk;
/// whatever is in use must be found by one pass.
#[test]
fn one_scrub_pass_finds_a_flipped_bit_wherever_it_is() {
    let mut found_parts = BTreeSet::new();
    let host = with_data();
    let good = host.medium.written.clone();
    drop(host);
    for address in 0..(good.len() / BLOCK_SIZE) as u64 {
        let block = &good[address as usize * BLOCK_SIZE..(address as usize + 1) * BLOCK_SIZE];
        if proto::is_zero(block) {
            continue;
        }
        let mut medium = Medium::new(256 << 20);
        medium.written = good.clone();
        let mut host = Host::on(medium);
        host.open().expect("it opens");
        // The opening wrote a batch and the superblocks: what is flipped is what is there now.
        flip(&mut host.medium, address);
        host.event(Event::Scrub(store::ScrubCommand::Rate(ScrubRate(1 << 30))));
        host.event(Event::Scrub(store::ScrubCommand::Start));
        for _ in 0..20 {
            host.pass(Duration::from_millis(100));
        }
        let status = host.store().status();
        assert_eq!(status.scrub.passes_done, 1, "block {address}: {:?}", status.scrub);
        let found = host.notices.iter().filter_map(|notice| match notice {
            Notice::Damaged(damage) => Some(*damage),
            _ => None,
        });
        let found = found.collect::<Vec<_>>();
        host.close();
        let report = check::check(&mut &host.medium.written[..]).expect("it opens");
        match found.as_slice() {
            [] => assert!(report.problems.is_empty(), "block {address}: {:?}", report.problems),
            [damage, ..] => {
                found_parts.insert(part_name(damage.part));
                let mendable = !matches!(damage.part, DamagedPart::Data { .. });
                let in_cache = !matches!(damage.part, DamagedPart::MapPage { .. });
                if mendable && in_cache {
                    assert!(report.problems.is_empty(), "{damage}: {:?}", report.problems);
                }
            }
        }
    }
    let all = ["checkpoint", "data", "log", "map page", "superblock"];
    assert_eq!(found_parts, BTreeSet::from(all));
}

#[test]
fn scrub_holds_its_rate_and_resumes_after_a_restart() {
    let mut host = new_host();
    let mut sequence = 0;
    for first in (0..1024).step_by(256) {
        sequence += 1;
        let new: Vec<u64> = (1..=256).map(|at| u64::from(first) + at).collect();
        host.ask(write(KEY, sequence, data(first, &new))).expect("written");
    }
    let key = ObjectKey { index: 1, ..KEY };
    for (at, first) in (0..1024).step_by(256).enumerate() {
        let new: Vec<u64> = (1..=256).map(|at| 5000 + u64::from(first) + at).collect();
        host.ask(write(key, at as u64 + 1, data(first, &new))).expect("written");
    }
    host.close();
    let rate = 1 << 20;
    host.scrub = ScrubRate(rate);
    host.open().expect("it opens");
    host.event(Event::Scrub(store::ScrubCommand::Start));
    let mut before = 0;
    for second in 0..6 {
        for _ in 0..100 {
            host.pass(Duration::from_millis(10));
        }
        let read = host.store().status().scrub.bytes - before;
        before += read;
        let error = read.abs_diff(rate);
        assert!(error <= rate / 10, "second {second}: {read} bytes at {rate} a second");
    }
    let pass = host.store().status().scrub;
    assert_eq!((pass.pass, pass.passes_done), (1, 0), "8 MiB take 8 s");
    let progress = pass.progress_permille;
    assert!(progress > 0);
    host.close();
    host.open().expect("it opens");
    let resumed = host.store().status().scrub;
    assert_eq!(resumed.pass, 1);
    assert!(resumed.progress_permille >= progress, "it began anew: {resumed:?}");
    for _ in 0..400 {
        host.pass(Duration::from_millis(10));
    }
    let done = host.store().status().scrub;
    assert_eq!((done.passes_done, done.errors), (1, 0), "{done:?}");
    assert!(host.store().status().scrub.bytes < 5 << 20, "the first part was read twice");
}

/// The process dies after each read of a pass in turn, with the next one asked for but not
/// answered, and with a checkpoint that has noted how far the pass was.
#[test]
fn what_was_being_read_when_the_process_died_is_read_again() {
    let mut host = new_host();
    host.ask(write(KEY, 1, data(0, &[1, 2, 3, 4, 5, 6]))).expect("written");
    host.close();
    let Change::Data { payload, .. } = data(5, &[6]) else { unreachable!() };
    let last = host
        .medium
        .written
        .chunks(BLOCK_SIZE)
        .position(|block| block == payload.as_slice())
        .expect("the block is on the medium");
    flip(&mut host.medium, last as u64);
    let damaged = host.medium.clone();
    // The first reads four blocks of data at once, so that a page has more than one run.
    for rate in [256 << 10, 1 << 30] {
        let mut held_reads = 0;
        for reads in 0.. {
            let mut host = Host::on(damaged.clone());
            host.scrub = ScrubRate(rate);
            host.open().expect("it opens");
            // Nothing but the scrub is under way from here on.
            host.event(Event::Scrub(store::ScrubCommand::Stop));
            host.settle();
            host.event(Event::Scrub(store::ScrubCommand::Start));
            let mut wanted = reads + 1;
            for _ in 0..100_000 {
                host.now = host.now + Duration::from_millis(10);
                host.poll();
                if host.in_flight() > 0 {
                    wanted -= 1;
                    if wanted == 0 {
                        break;
                    }
                    host.complete(0);
                }
                if host.store().status().scrub.passes_done > 0 {
                    break;
                }
            }
            if wanted > 0 {
                break;
            }
            held_reads += 1;
            host.event(Event::Close);
            host.poll();
            while host.complete(1) {
                host.poll();
            }
            host.crash(&mut Random::new(1), false);
            host.open().expect("it opens");
            for _ in 0..200 {
                host.pass(Duration::from_millis(10));
            }
            let done = host.store().status().scrub;
            assert_eq!(done.passes_done, 1, "{rate} a second, {reads} reads: {done:?}");
            assert!(done.errors > 0, "{rate} a second, {reads} reads: not found in {done:?}");
        }
        assert!(held_reads > 5, "only {held_reads} reads were held");
    }
}

#[test]
fn damaged_data_is_an_error_and_an_overwrite_heals_it() {
    let mut host = with_data();
    let report = check::check(&mut &host.medium.written[..]).expect("it opens");
    assert!(report.problems.is_empty());
    let before = host.medium.written.clone();
    let wanted = Change::Data {
        first: 1,
        payload: match data(1, &[2]) {
            Change::Data { payload, .. } => payload,
            _ => unreachable!(),
        },
        detect_zeroes: false,
    };
    let Change::Data { payload, .. } = &wanted else { unreachable!() };
    let at = before
        .chunks(BLOCK_SIZE)
        .position(|block| block == payload.as_slice())
        .expect("the block is on the medium");
    flip(&mut host.medium, at as u64);
    assert_eq!(host.ask(read(KEY, 0, 1)).map(|reply| values(&reply)), Ok(vec![1]));
    let error = host.ask(read(KEY, 0, 4)).expect_err("it is damaged");
    assert_eq!(error, MemberError::Corrupt { key: KEY, block: 1 });
    assert_eq!(host.store().status().damages.len(), 1);
    host.ask(write(KEY, 3, data(1, &[9]))).expect("written");
    assert_eq!(host.ask(read(KEY, 0, 4)).map(|reply| values(&reply)), Ok(vec![1, 9, 3, 4]));
    assert!(host.store().status().damages.is_empty());
}

#[test]
fn a_block_that_cannot_be_read_is_damaged_and_the_disk_goes_on() {
    let mut host = with_data();
    host.medium.unreadable = (0..(host.medium.written.len() / BLOCK_SIZE) as u64).collect();
    let error = host.ask(read(KEY, 300, 1)).expect_err("it cannot be read");
    assert_eq!(error, MemberError::Corrupt { key: KEY, block: 300 });
    host.medium.unreadable.clear();
    assert_eq!(host.store().status().state, State::Serving);
    assert_eq!(host.ask(read(KEY, 300, 1)).map(|reply| values(&reply)), Ok(vec![5]));
}

#[test]
fn a_damaged_map_page_costs_its_blocks_and_no_others() {
    let mut host = with_data();
    host.close();
    let medium = &mut host.medium;
    let pages: Vec<u64> = (0..(medium.written.len() / BLOCK_SIZE) as u64)
        .filter(|&at| medium.written[at as usize * BLOCK_SIZE..].starts_with(b"SMAP"))
        .collect();
    for &page in &pages {
        // Page 0 of the object alone.
        let number = medium.written[page as usize * BLOCK_SIZE + 36];
        if number == 0 {
            flip(medium, page);
        }
    }
    host.open().expect("it opens");
    let corrupt = Err(MemberError::Corrupt { key: KEY, block: 0 });
    assert_eq!(host.ask(read(KEY, 0, 1)).map(|reply| values(&reply)), corrupt);
    assert_eq!(host.ask(read(KEY, 300, 2)).map(|reply| values(&reply)), Ok(vec![5, 6]));
    let error = host.ask(write(KEY, 3, data(7, &[8]))).expect_err("its old owner is unknown");
    assert_eq!(error, MemberError::Corrupt { key: KEY, block: 7 });
    let blocks = BlockRange::new(0, 256).expect("inside");
    host.ask(write(KEY, 3, Change::Absent { blocks })).expect("all of the page goes");
    host.ask(write(KEY, 4, data(7, &[8]))).expect("written");
    assert_eq!(host.ask(read(KEY, 6, 2)).map(|reply| values(&reply)), Ok(vec![0, 8]));
    assert_eq!(host.store().status().lost_blocks, 4);
    host.store().check();
    host.close();
    host.open().expect("it opens");
    assert_eq!(host.store().status().lost_blocks, 4);
    host.event(Event::DropLayer { lineage: LINEAGE, layer: LayerId(1) });
    host.pass(Duration::from_secs(20));
    host.store().check();
    assert_eq!(host.store().status().space.data_bytes, 0);
}

#[test]
fn a_failed_write_or_flush_retires_the_disk_for_good() {
    for flushes in [false, true] {
        let mut host = with_data();
        if flushes {
            host.medium.fails_flushes = true;
            host.ask(write(KEY, 3, data(9, &[1]))).expect("a write alone is fine");
            assert_eq!(host.ask(flush()).map(drop), Err(MemberError::Retired));
        } else {
            host.medium.fails_writes = true;
            let error = host.ask(write(KEY, 3, data(9, &[1]))).map(drop);
            assert_eq!(error, Err(MemberError::Retired));
        }
        host.medium.fails_writes = false;
        host.medium.fails_flushes = false;
        host.settle();
        assert_eq!(host.ask(flush()).map(drop), Err(MemberError::Retired));
        assert_eq!(host.ask(write(KEY, 4, data(9, &[1]))).map(drop), Err(MemberError::Retired));
        assert!(matches!(host.store().status().state, State::Retired(_)));
        assert!(host.notices.iter().any(|notice| matches!(notice, Notice::Retired { .. })));
        assert_eq!(host.ask(read(KEY, 300, 1)).map(|reply| values(&reply)), Ok(vec![5]));
        host.close();
    }
}

#[test]
fn rot_in_the_flushed_log_refuses_the_disk_instead_of_cutting_it_short() {
    let mut host = with_data();
    for sequence in 3..9 {
        host.ask(write(KEY, sequence, data(500, &[sequence]))).expect("written");
        host.ask(flush()).expect("flushed");
    }
    let mut random = support::Random::new(1);
    host.crash(&mut random, false);
    let batches: Vec<u64> = (3..35)
        .filter(|&at| host.medium.written[at as usize * BLOCK_SIZE..].starts_with(b"SLOG"))
        .collect();
    let middle = batches[batches.len() / 2];
    flip(&mut host.medium, middle);
    let error = host.open().expect_err("a flushed batch is gone");
    assert!(matches!(error, OpenError::LogDamaged { .. }), "{error}");
}

#[test]
fn a_foreign_blank_short_or_old_medium_is_refused_by_name() {
    let check = |medium: Medium, wanted: &str| {
        let before = medium.written.clone();
        let mut host = Host::on(medium);
        let error = host.open().expect_err(wanted);
        assert!(error.to_string().contains(wanted), "{error} does not say {wanted}");
        assert!(host.medium.written == before, "{wanted}: something was written");
    };
    let host = with_data();
    let good = host.medium.clone();
    check(Medium { written: vec![0; 1 << 20], ..Medium::default() }, "blank");
    check(Medium { written: vec![7; 1 << 20], ..Medium::default() }, "not a Sheepdog disk");
    let mut truncated = good.clone();
    truncated.written.truncate(600 << 10);
    check(truncated, "truncated");
    let mut damaged = good.clone();
    flip(&mut damaged, 0);
    flip(&mut damaged, 1);
    check(damaged, "both superblocks");
    let mut host = Host::on(good);
    let mut options = host.options();
    options.identity.incarnation = Some(proto::Incarnation(99));
    assert!(matches!(host.open_with(options), Err(OpenError::OldCopy { .. })));
    let mut options = host.options();
    options.identity.node = Some(proto::NodeId(1));
    assert!(matches!(host.open_with(options), Err(OpenError::WrongNode { .. })));
}

/// An old copy of the cluster's journal was taken for the present one.
#[test]
fn a_map_older_than_what_was_agreed_is_refused() {
    let known = |host: &Host, known| {
        let mut options = host.options();
        options.identity.incarnation = Some(proto::Incarnation(known));
        options
    };
    let mut host = with_data();
    let mut random = support::Random::new(1);
    let opened = host.open().expect("it opens").incarnation.0;
    // It died before the agreed state said anything: that one is not behind.
    host.crash(&mut random, false);
    let options = known(&host, opened - 1);
    host.open_with(options).expect("nothing was agreed yet");
    host.event(Event::Agreed);
    host.settle();
    assert!(host.agreed_noted);
    host.crash(&mut random, true);
    let before = host.medium.written.clone();
    for old in [0, opened] {
        let options = known(&host, old);
        let error = host.open_with(options).expect_err("the map is older than the disk");
        assert!(matches!(error, OpenError::OldMap { .. }), "{error}");
        assert!(host.medium.written == before, "something was written");
    }
    // Neither a checkpoint nor another opening forgets it.
    let options = known(&host, opened + 1);
    host.open_with(options).expect("the present map");
    host.close();
    let options = known(&host, opened);
    assert!(matches!(host.open_with(options), Err(OpenError::OldMap { .. })));
    let options = known(&host, opened + 1);
    host.open_with(options).expect("the present map");
}

/// The device dies while that is noted: whoever waits for it is not left waiting.
#[test]
fn a_disk_that_fails_while_it_notes_what_was_agreed_says_so() {
    let mut host = with_data();
    host.medium.fails_writes = true;
    host.event(Event::Agreed);
    host.settle();
    assert!(host.agreed_noted);
    host.agreed_noted = false;
    host.event(Event::Agreed);
    assert!(host.agreed_noted);
}

#[test]
fn one_rotten_superblock_changes_nothing() {
    for rotten in [0, 1] {
        let mut host = with_data();
        let mut random = support::Random::new(1);
        host.crash(&mut random, false);
        flip(&mut host.medium, rotten);
        host.open().expect("the other one is as good");
        assert_eq!(host.ask(read(KEY, 0, 2)).map(|reply| values(&reply)), Ok(vec![1, 2]));
        assert_eq!(host.ask(read(KEY, 300, 2)).map(|reply| values(&reply)), Ok(vec![5, 6]));
        host.close();
        let report = check::check(&mut &host.medium.written[..]).expect("it opens");
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }
}

/// Full refuses new data alone, and lets go as soon as something was deleted.
#[test]
fn full_is_an_error_and_not_an_end() {
    let mut host = Host::formatted(20 << 20, None, 128 << 10);
    host.medium.capacity = 90 << 20;
    host.open().expect("it opens");
    let mut sequence = 0;
    let mut written = 0;
    let mut index = 0;
    let error = loop {
        let key = ObjectKey { index, ..KEY };
        sequence += 1;
        let first = (sequence as u32 - 1) * 256;
        let new: Vec<u64> = (1..=256).map(|at| u64::from(first + 1) * 1000 + at).collect();
        match host.ask(write(key, sequence, data(first, &new))) {
            Ok(_) => written += 256,
            Err(error) => break error,
        }
        if sequence == 4 {
            (sequence, index) = (0, index + 1);
        }
    };
    assert_eq!(error, MemberError::NoSpace);
    assert!(written > 1024, "only {written} blocks fitted");
    assert!(host.store().status().space.full);
    assert!(host.notices.contains(&Notice::Full));
    // Overwrites go on for ever.
    let mut overwrites = 4;
    for _ in 0..300 {
        overwrites += 1;
        let new: Vec<u64> = (1..=256).map(|at| overwrites * 7000 + at).collect();
        host.ask(write(KEY, overwrites, data(0, &new))).expect("an overwrite needs no new space");
    }
    let blocks = BlockRange::new(256, 512).expect("inside");
    host.ask(write(KEY, overwrites + 1, Change::Absent { blocks })).expect("discarded");
    let new: Vec<u64> = (1..=256).collect();
    host.ask(write(KEY, overwrites + 2, data(256, &new))).expect("there is room again");
    assert!(!host.store().status().space.full);
    host.store().check();
}

#[test]
fn a_fence_is_durable_and_refuses_the_older_generation() {
    let mut host = with_data();
    let fence = |generation| MemberRequest::Fence {
        lineage: LINEAGE,
        generation,
        list: true,
        after: ObjectKey::default(),
    };
    let Ok(MemberReply::Fenced { unsettled, .. }) = host.ask(fence(Generation(5))) else {
        panic!("it is fenced")
    };
    assert_eq!(unsettled.len(), 1);
    assert_eq!((unsettled[0].key, unsettled[0].stamp), (KEY, stamp(2)));
    let mut random = support::Random::new(3);
    host.crash(&mut random, true);
    host.open().expect("it opens");
    let fenced = Err(MemberError::Fenced { newer: Generation(5) });
    assert_eq!(host.ask(write(KEY, 3, data(0, &[1]))).map(drop), fenced);
    assert_eq!(host.ask(read(KEY, 0, 1)).map(drop), fenced);
    assert_eq!(host.ask(flush()).map(drop), fenced);
    assert_eq!(host.ask(fence(Generation(4))).map(drop), fenced);
    host.ask(fence(Generation(5))).expect("once more is the same");
}

/// The settled point is that below which every member has everything. The write at the point itself
/// may be on this disk alone: it was left out, and with several copies one without it could have
/// been read from.
#[test]
fn a_fence_lists_the_write_at_the_settled_point_and_none_before() {
    let mut host = new_host();
    for (index, sequence, settled) in [(0, 1, 1), (1, 2, 2), (2, 3, 2)] {
        let key = ObjectKey { index, ..KEY };
        let MemberRequest::Write(mut first) = write(key, sequence, data(0, &[7])) else {
            unreachable!("it is a write")
        };
        (first.previous, first.settled) = (support::stamp(0), stamp(settled));
        host.ask(MemberRequest::Write(first)).expect("written");
    }
    let fence = MemberRequest::Fence {
        lineage: LINEAGE,
        generation: Generation(5),
        list: true,
        after: ObjectKey::default(),
    };
    let Ok(MemberReply::Fenced { unsettled, .. }) = host.ask(fence) else { panic!("it is fenced") };
    let stamps: Vec<_> = unsettled.iter().map(|object| object.stamp).collect();
    assert_eq!(stamps, [stamp(2), stamp(3)]);
}

#[test]
fn deleting_gives_space_back_to_the_file_system() {
    let mut host = Host::formatted(600 << 20, None, 128 << 10);
    host.open().expect("it opens");
    for index in 0..60 {
        let key = ObjectKey { index, ..KEY };
        for sequence in 1..=4u64 {
            let first = (sequence as u32 - 1) * 256;
            let new: Vec<u64> = (1..=256).map(|at| u64::from(index) * 9999 + at).collect();
            host.ask(write(key, sequence, data(first, &new))).expect("written");
        }
    }
    let before = host.store().status().space.allocated_bytes;
    host.event(Event::DropLayer { lineage: LINEAGE, layer: LayerId(1) });
    for _ in 0..60 {
        host.pass(Duration::from_secs(1));
    }
    let status = host.store().status();
    assert_eq!(status.space.data_bytes, 0);
    let after = status.space.allocated_bytes;
    assert!(after + (64 << 20) <= before, "{before} bytes before, {after} after");
    assert_eq!(status.counters.given_back_bytes, before - after);
    host.store().check();
}
