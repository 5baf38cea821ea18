//! One disk among several: fences in pieces, configurations that are refused, marks, attempts to
//! change the members, and what a disk says of the power of its machine.

mod support;

use proto::{
    Batch, BlockRange, BlockSum, ConfigurationNumber, Generation, Incarnation, LayerId, LineageId,
    MemberError, MemberReply, MemberRequest, ObjectKey, ObjectStamp, PartitionId, Permit, Stamp,
    Under, Write, limits, partition_of,
};
use store::{Event, check};
use support::{GENERATION, Host, KEY, LINEAGE, Random, data, stamp, values, write};

const BITS: u8 = 12;

fn host() -> Host {
    let mut host = Host::formatted(96 << 20, Some(64 << 20), 1 << 20);
    host.open().expect("a new disk opens");
    host
}

fn under(number: u64) -> Under {
    Under { copies: 1, bits: BITS, number: ConfigurationNumber(number) }
}

fn key(layer: u64, index: u32) -> ObjectKey {
    ObjectKey { layer: LayerId(layer), index }
}

fn place(index: u32, bits: u8) -> PartitionId {
    partition_of(LINEAGE, index, bits)
}

/// What an attempt asks of one partition: to leave a configuration.
fn batch(attempt: u64, bits: u8, partition: PartitionId, number: u64) -> Batch {
    let partitions = vec![(partition, ConfigurationNumber(number))];
    Batch { copies: 1, bits, partitions, attempt }
}

fn refuse(host: &mut Host, attempt: u64, number: u64) -> Result<MemberReply, MemberError> {
    host.ask(MemberRequest::Refuse(batch(attempt, BITS, place(0, BITS), number)))
}

fn install(host: &mut Host, attempt: u64, number: u64) -> Result<MemberReply, MemberError> {
    let batch = batch(attempt, BITS, place(0, BITS), number);
    host.ask(MemberRequest::Install { batch, fences: Vec::new(), last: true })
}

fn by_attempt(attempt: u64) -> Permit {
    Permit::Attempt { under: under(1), attempt }
}

fn by_session(generation: u64) -> Permit {
    Permit::Session { generation: Generation(generation), under: under(1) }
}

fn stage(host: &mut Host, permit: Permit, first: u32, new: &[u64]) -> Result<(), MemberError> {
    let (lineage, change) = (LINEAGE, data(first, new));
    host.ask(MemberRequest::Stage { permit, lineage, key: KEY, change }).map(drop)
}

/// What a disk shows now.
fn stamp_of(host: &mut Host, key: ObjectKey) -> Stamp {
    let (lineage, generation) = (LINEAGE, Generation::SEALED);
    match host.ask(MemberRequest::Stamp { lineage, key, generation }) {
        Ok(MemberReply::Stamp(found)) => found.stamp,
        other => panic!("{other:?}"),
    }
}

fn retract(host: &mut Host, key: ObjectKey, permit: Permit) -> Result<MemberReply, MemberError> {
    let replaces = stamp_of(host, key);
    host.ask(MemberRequest::Retract { permit, lineage: LINEAGE, key, replaces })
}

fn adopt(
    host: &mut Host,
    permit: Permit,
    staged: u32,
    (stamp, settled_by): (Stamp, u64),
) -> Result<(), MemberError> {
    let settled_generation = Generation(settled_by);
    let lineage = LINEAGE;
    let (key, replaces) = (KEY, stamp_of(host, KEY));
    host.ask(MemberRequest::Adopt {
        permit,
        lineage,
        key,
        staged,
        stamp,
        settled_generation,
        replaces,
    })
    .map(drop)
}

fn fence(host: &mut Host, generation: u64, list: bool) -> Result<MemberReply, MemberError> {
    let (generation, after) = (Generation(generation), ObjectKey::default());
    host.ask(MemberRequest::Fence { lineage: LINEAGE, generation, list, after })
}

fn mark(host: &mut Host, generation: u64, settled: Stamp) -> Result<(), MemberError> {
    let MemberReply::Confirmed { refusals, .. } = confirm(host, generation, 0)? else { panic!() };
    let (lineage, generation) = (LINEAGE, Generation(generation));
    host.ask(MemberRequest::Mark { lineage, generation, settled, refusals }).map(drop)
}

fn confirm(host: &mut Host, generation: u64, refusals: u64) -> Result<MemberReply, MemberError> {
    let (lineage, generation) = (LINEAGE, Generation(generation));
    host.ask(MemberRequest::Confirm { lineage, generation, refusals })
}

fn flush(host: &mut Host, generation: u64) {
    let (lineage, generation, settled) = (LINEAGE, Generation(generation), Stamp::default());
    host.ask(MemberRequest::Flush { lineage, generation, settled }).expect("it is flushed");
}

fn stands(host: &mut Host, key: ObjectKey) -> ObjectStamp {
    let (lineage, generation) = (LINEAGE, Generation::SEALED);
    match host.ask(MemberRequest::Stamp { lineage, key, generation }) {
        Ok(MemberReply::Stamp(found)) => found,
        other => panic!("{other:?}"),
    }
}

fn settled_by(host: &mut Host) -> u64 {
    stands(host, KEY).settled_generation.0
}

fn content(host: &mut Host, key: ObjectKey, blocks: u32) -> Vec<u64> {
    let blocks = BlockRange::new(0, blocks).expect("inside");
    let (lineage, generation, under) = (LINEAGE, Generation::SEALED, None);
    let read = MemberRequest::Read { lineage, key, generation, under, blocks };
    values(&host.ask(read).expect("it is read"))
}

/// The same until it is not busy any more.
fn ask(host: &mut Host, request: &MemberRequest) -> MemberReply {
    for _ in 0..100 {
        match host.ask(request.clone()) {
            Err(MemberError::Busy) => host.settle(),
            reply => return reply.expect("it is done"),
        }
    }
    panic!("it stays busy");
}

/// The machine loses power, whatever is not flushed is lost, and the disk is opened again.
fn cut_power(host: &mut Host) {
    host.crash(&mut Random::new(1), false);
    // All that was not flushed is as before.
    for (sector, old) in std::mem::take(&mut host.medium.unsynced) {
        host.medium.written[sector * 512..(sector + 1) * 512].copy_from_slice(&old);
    }
    let report = check::check(&mut &host.medium.written[..]).expect("it opens");
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
    host.open().expect("it opens");
    host.store().check();
}

/// The same in order: all is in a checkpoint.
fn reopen(host: &mut Host) {
    host.close();
    host.open().expect("it opens");
    host.store().check();
}

fn write_under(number: u64, sequence: u64) -> MemberRequest {
    match write(KEY, sequence, data(0, &[sequence])) {
        MemberRequest::Write(write) => {
            MemberRequest::Write(Write { under: under(number), ..write })
        }
        _ => unreachable!(),
    }
}

#[test]
fn a_fence_lists_what_is_unsettled_in_pieces_and_walks_nothing_where_no_list_is_wanted() {
    let mut host = host();
    let (count, step) = (2500, 3);
    for index in (0..count).rev() {
        host.request(write(key(1, index * step), 1, data(0, &[7])));
        if index % 50 == 0 {
            host.settle();
        }
    }
    host.replies.clear();
    let before = host.store().status().counters.rows_visited;
    let Ok(MemberReply::Fenced { unsettled, more, .. }) = fence(&mut host, 5, false) else {
        panic!("it is fenced")
    };
    assert!(unsettled.is_empty() && !more);
    assert_eq!(host.store().status().counters.rows_visited, before, "rows were walked");
    let (mut listed, mut after, mut pieces) = (Vec::new(), ObjectKey::default(), 0);
    loop {
        let (lineage, generation) = (LINEAGE, Generation(5));
        let request = MemberRequest::Fence { lineage, generation, list: true, after };
        let Ok(MemberReply::Fenced { unsettled, more, .. }) = host.ask(request) else {
            panic!("it is fenced")
        };
        assert!(unsettled.len() <= limits::MEMBER_ROWS_MAX);
        pieces += 1;
        listed.extend(unsettled.iter().map(|object| object.key.index));
        if !more {
            break;
        }
        after = unsettled.last().expect("there are more").key;
    }
    assert_eq!(pieces, 3);
    assert!(listed.iter().copied().eq((0..count).map(|index| index * step)));
    let walked = host.store().status().counters.rows_visited - before;
    assert!(walked < u64::from(count) * 2, "{walked} rows for {count}: not for each piece anew");
    assert!(matches!(host.ask(write(KEY, 2, data(0, &[8]))), Err(MemberError::Fenced { .. })));
}

#[test]
fn a_survey_is_in_order_and_walks_each_lineage_once() {
    let mut host = host();
    let (lineage, generation) = (LINEAGE, GENERATION);
    let mut wanted = Vec::new();
    for layer in 1..4 {
        if layer > 1 {
            let (parent, layer) = (LayerId(layer - 1), LayerId(layer));
            let open = MemberRequest::OpenLayer { lineage, generation, layer, parent };
            host.ask(open).expect("it is opened");
        }
        for index in 0..700 {
            host.request(write(key(layer, index), layer, data(0, &[layer])));
        }
        host.settle();
    }
    let other = LineageId(50);
    for index in 0..100 {
        let request = write(key(50, index), 1, data(0, &[9]));
        let MemberRequest::Write(write) = request else { unreachable!() };
        host.request(MemberRequest::Write(Write { lineage: other, ..write }));
    }
    host.settle();
    for (lineage, layer, count) in [(LINEAGE, 1, 700), (LINEAGE, 2, 700), (LINEAGE, 3, 700)]
        .into_iter()
        .chain([(other, 50, 100)])
    {
        wanted.extend((0..count).map(|index| (lineage, key(layer, index))));
    }
    // Half of all partitions.
    let partitions: Vec<PartitionId> = (0..128).map(PartitionId).collect();
    wanted.retain(|&(lineage, key)| partition_of(lineage, key.index, 8).0 < 128);
    let before = host.store().status().counters.rows_visited;
    let (mut found, mut after) = (Vec::new(), Default::default());
    for _ in 0..10 {
        let (partitions, unsettled) = (partitions.clone(), false);
        let survey = MemberRequest::Survey { bits: 8, partitions, unsettled, after };
        let Ok(MemberReply::Survey { objects, more, .. }) = host.ask(survey) else { panic!() };
        found.extend(objects.iter().map(|&(lineage, object)| (lineage, object.key)));
        if !more {
            break;
        }
        after = *found.last().expect("there are more");
    }
    assert_eq!(found, wanted);
    let walked = host.store().status().counters.rows_visited - before;
    assert!(walked <= 2200, "{walked} rows were visited");
    // Settled up to the first two of them: with the point itself that leaves two.
    flush(&mut host, 1);
    let settled = stamp(2);
    host.ask(MemberRequest::Flush { lineage, generation, settled }).expect("it is flushed");
    let survey = MemberRequest::Survey {
        bits: 0,
        partitions: vec![PartitionId(0)],
        unsettled: true,
        after: Default::default(),
    };
    let Ok(MemberReply::Survey { objects, more, .. }) = host.ask(survey) else { panic!() };
    assert!(more && objects.iter().all(|(_, object)| object.stamp >= stamp(2)));
    assert_eq!(objects.first().map(|(_, object)| object.key), Some(key(2, 0)));
    let Ok(MemberReply::Lineages { lineages, more: false }) =
        host.ask(MemberRequest::Lineages { after: LineageId(0) })
    else {
        panic!("they are listed")
    };
    assert_eq!(lineages.iter().map(|l| l.lineage).collect::<Vec<_>>(), [LINEAGE, other]);
    assert_eq!(lineages[0].settled, stamp(2));
}

#[test]
fn a_refused_configuration_is_refused_for_everything_and_for_ever() {
    let mut host = host();
    host.ask(write_under(1, 1)).expect("it is written");
    refuse(&mut host, 3, 1).expect("it is refused");
    // It was durable when it was answered.
    for round in 0..3 {
        let (lineage, key, generation) = (LINEAGE, KEY, GENERATION);
        let blocks = BlockRange::new(0, 1).expect("inside");
        let old = Some(under(1));
        let under = under(1);
        let requests = [
            write_under(1, 2),
            MemberRequest::Settle { lineage, key, generation, under, stamp: stamp(1) },
            MemberRequest::Read { lineage, key, generation, under: old, blocks },
            MemberRequest::Map { lineage, key, generation, under: old, blocks },
            MemberRequest::Difference {
                lineage,
                key,
                generation,
                under: old,
                base: LayerId(0),
                blocks,
            },
        ];
        for request in requests {
            let shown = format!("{request:?}");
            let expected = MemberError::WrongConfiguration { have: ConfigurationNumber(2) };
            assert_eq!(host.ask(request).err(), Some(expected), "{round}: {shown}");
        }
        // What needs no configuration goes on.
        let under = None;
        host.ask(MemberRequest::Read { lineage, key, generation, under, blocks }).expect("read");
        match round {
            0 => cut_power(&mut host),
            _ => reopen(&mut host),
        }
    }
    // Other numbers of partitions: both ways.
    for bits in [0, 11, 13, 16] {
        let under = Under { bits, ..under(1) };
        let MemberRequest::Write(write) = write_under(1, 2) else { unreachable!() };
        let reply = host.ask(MemberRequest::Write(Write { under, ..write }));
        assert!(matches!(reply, Err(MemberError::WrongConfiguration { .. })), "{bits} bits");
    }
    assert_eq!(host.store().status().partitions_refused, 1);
    // The next configuration is not concerned; this object was lost with the power.
    host.ask(write_under(2, 1)).expect("it is written");
}

#[test]
fn confirmations_list_what_was_refused_since_each_partition_once() {
    let mut host = host();
    let listed = |host: &mut Host, refusals| {
        let Ok(MemberReply::Confirmed { refusals, refused, more: false, .. }) =
            confirm(host, 1, refusals)
        else {
            panic!("it is confirmed")
        };
        (refusals, refused.iter().map(|r| (r.partition.0, r.under.number.0)).collect::<Vec<_>>())
    };
    assert_eq!(listed(&mut host, 0), (0, vec![]));
    for (attempt, partition, number) in [(1, 7, 1), (2, 5, 1), (3, 7, 2)] {
        let batch = batch(attempt, BITS, PartitionId(partition), number);
        host.ask(MemberRequest::Refuse(batch)).expect("it is refused");
    }
    assert_eq!(listed(&mut host, 0), (3, vec![(5, 1), (7, 2)]));
    assert_eq!(listed(&mut host, 2), (3, vec![(7, 2)]));
    assert_eq!(listed(&mut host, 3), (3, vec![]));
    // Marks know of it.
    let (lineage, generation, settled) = (LINEAGE, GENERATION, Stamp::default());
    let late = host.ask(MemberRequest::Mark { lineage, generation, settled, refusals: 2 });
    assert_eq!(late.err(), Some(MemberError::RefusedMore { refusals: 3 }));
    cut_power(&mut host);
    // A new count, which begins with all of it.
    assert_eq!(listed(&mut host, 0), (2, vec![(5, 1), (7, 2)]));
    fence(&mut host, 9, false).expect("it is fenced");
    assert!(matches!(confirm(&mut host, 1, 0), Err(MemberError::Fenced { .. })));
    // More than one answer takes.
    for first in [0u32, 256, 512, 768, 1024] {
        let partitions = (first..first + 256).map(|p| (PartitionId(p), ConfigurationNumber(9)));
        let batch = Batch { copies: 2, bits: BITS, partitions: partitions.collect(), attempt: 9 };
        host.ask(MemberRequest::Refuse(batch)).expect("it is refused");
    }
    let Ok(MemberReply::Confirmed { refusals, refused, more: true, .. }) = confirm(&mut host, 9, 0)
    else {
        panic!("there are more")
    };
    assert_eq!(refused.len(), limits::MEMBER_ROWS_MAX);
    let Ok(MemberReply::Confirmed { refusals: all, refused, more: false, .. }) =
        confirm(&mut host, 9, refusals)
    else {
        panic!("that is all")
    };
    assert_eq!((all, refused.len()), (1282, 1282 - limits::MEMBER_ROWS_MAX));
}

#[test]
fn an_attempt_that_ended_or_is_old_is_superseded_also_after_a_power_cut() {
    let mut host = host();
    refuse(&mut host, 5, 1).expect("it is refused");
    refuse(&mut host, 5, 1).expect("the same again");
    let superseded = |newer| Some(MemberError::Superseded { newer });
    assert_eq!(refuse(&mut host, 4, 1).err(), superseded(5));
    cut_power(&mut host);
    assert_eq!(refuse(&mut host, 4, 1).err(), superseded(5));
    // The first thing that a newer one asks makes it known for ever.
    stage(&mut host, by_attempt(6), 0, &[1]).expect("it is staged");
    cut_power(&mut host);
    assert_eq!(stage(&mut host, by_attempt(5), 0, &[1]).err(), superseded(6));
    assert_eq!(install(&mut host, 5, 1).err(), superseded(6));
    for _ in 0..2 {
        install(&mut host, 6, 1).expect("it ends");
        assert_eq!(refuse(&mut host, 6, 1).err(), superseded(6));
        assert_eq!(stage(&mut host, by_attempt(6), 0, &[1]).err(), superseded(6));
        let adopted = adopt(&mut host, by_attempt(6), 0, (stamp(1), 1));
        assert_eq!(adopted.err(), superseded(6));
        cut_power(&mut host);
    }
    reopen(&mut host);
    assert_eq!(refuse(&mut host, 6, 1).err(), superseded(6));
    // One of half of the partition, and one that knows only a whole that has more.
    let half = batch(7, BITS + 1, place(0, BITS + 1), 2);
    host.ask(MemberRequest::Refuse(half)).expect("it is newer");
    assert_eq!(refuse(&mut host, 6, 1).err(), superseded(7));
    let whole = batch(6, BITS - 1, place(0, BITS - 1), 2);
    assert_eq!(host.ask(MemberRequest::Refuse(whole)).err(), superseded(7));
}

#[test]
fn an_installed_attempt_has_raised_fences_and_flushed_what_it_adopted() {
    let mut host = host();
    stage(&mut host, by_attempt(1), 0, &[1, 2]).expect("it is staged");
    adopt(&mut host, by_attempt(1), 2, (stamp(4), 1)).expect("it is adopted");
    let batch = batch(1, BITS, place(0, BITS), 3);
    let fences: Vec<_> = (1..=1024).map(|l| (LineageId(l), Generation(9))).collect();
    let (last, more) = (true, batch.clone());
    let install = MemberRequest::Install { batch, fences: fences.clone(), last };
    for _ in 0..2 {
        let Ok(MemberReply::Installed { .. }) = host.ask(install.clone()) else { panic!() };
    }
    cut_power(&mut host);
    assert_eq!(content(&mut host, KEY, 3), [1, 2, 0]);
    assert_eq!(stands(&mut host, KEY).stamp, stamp(4));
    for lineage in [1, 512, 1024].map(LineageId) {
        let (generation, refusals) = (Generation(8), 0);
        let reply = host.ask(MemberRequest::Confirm { lineage, generation, refusals });
        assert_eq!(reply.err(), Some(MemberError::Fenced { newer: Generation(9) }));
    }
    let have = ConfigurationNumber(4);
    assert_eq!(fence(&mut host, 9, false).map(drop), Ok(()));
    let stale = match write_under(3, 1) {
        MemberRequest::Write(write) => MemberRequest::Write(Write {
            stamp: Stamp { generation: Generation(9), sequence: 1 },
            previous: stamp(4),
            ..write
        }),
        _ => unreachable!(),
    };
    assert_eq!(host.ask(stale).err(), Some(MemberError::WrongConfiguration { have }));
    // A piece of its fences that comes late.
    let fences = [11, 10].map(|fence| (LineageId(3), Generation(fence))).to_vec();
    host.ask(MemberRequest::Install { batch: more, fences, last: false }).expect("it is taken");
    for _ in 0..2 {
        let (lineage, generation, refusals) = (LineageId(3), Generation(10), 0);
        let reply = host.ask(MemberRequest::Confirm { lineage, generation, refusals });
        assert_eq!(reply.err(), Some(MemberError::Fenced { newer: Generation(11) }));
        cut_power(&mut host);
    }
}

/// Rule 10: an object that was adopted has been settled by whom the adoption says, and a mark that
/// was set before says nothing of it; one that is set later does.
#[test]
fn a_mark_counts_for_what_was_adopted_before_it_and_not_for_what_was_adopted_later() {
    for path in 0..4 {
        let after = |host: &mut Host| match path {
            0 => {}
            1 => {
                flush(host, 7);
                cut_power(host);
            }
            2 => reopen(host),
            // Only the marks are in a checkpoint when the adoption happens.
            _ => host.settle(),
        };
        let mut host = host();
        host.ask(write(KEY, 1, data(0, &[1]))).expect("it is written");
        assert_eq!(settled_by(&mut host), 1, "a write settles its object");
        fence(&mut host, 7, false).expect("it is fenced");
        mark(&mut host, 7, stamp(5)).expect("it is marked");
        if path == 3 {
            reopen(&mut host);
        }
        after(&mut host);
        assert_eq!(settled_by(&mut host), 7);
        // So is what was never written.
        assert_eq!(stands(&mut host, key(1, 9)).settled_generation.0, 7);
        adopt(&mut host, by_attempt(1), 0, (stamp(1), 3)).expect("it is adopted");
        assert_eq!(settled_by(&mut host), 3);
        after(&mut host);
        assert_eq!(settled_by(&mut host), 3, "path {path}: the older mark does not count");
        assert_eq!(stands(&mut host, key(1, 9)).settled_generation.0, 7);
        mark(&mut host, 7, stamp(5)).expect("it is marked");
        assert_eq!(settled_by(&mut host), 7);
        after(&mut host);
        assert_eq!(settled_by(&mut host), 7, "path {path}: the later mark counts");
        // What is above the point is not concerned.
        adopt(&mut host, by_attempt(1), 0, (stamp(6), 2)).expect("it is adopted");
        mark(&mut host, 8, stamp(5)).expect("it is marked");
        assert_eq!(settled_by(&mut host), 2);
        // What is incomplete counts for nothing.
        adopt(&mut host, by_attempt(1), 0, (Stamp::INCOMPLETE, 7)).expect("it is adopted");
        after(&mut host);
        let found = stands(&mut host, KEY);
        assert_eq!((found.stamp, found.settled_generation.0), (Stamp::INCOMPLETE, 0));
    }
}

#[test]
fn a_mark_of_a_fenced_session_or_one_that_was_not_flushed_does_not_count() {
    let mut host = host();
    host.ask(write(KEY, 1, data(0, &[1]))).expect("it is written");
    flush(&mut host, 1);
    fence(&mut host, 7, false).expect("it is fenced");
    let (lineage, generation, settled, refusals) = (LINEAGE, GENERATION, stamp(5), 0);
    let late = host.ask(MemberRequest::Mark { lineage, generation, settled, refusals });
    assert_eq!(late.err(), Some(MemberError::Fenced { newer: Generation(7) }));
    mark(&mut host, 7, stamp(5)).expect("it is marked");
    host.crash(&mut Random::new(1), false);
    let synced = std::mem::take(&mut host.medium.unsynced);
    for (sector, old) in synced {
        host.medium.written[sector * 512..(sector + 1) * 512].copy_from_slice(&old);
    }
    host.open().expect("it opens");
    assert_eq!(settled_by(&mut host), 1);
}

#[test]
fn staged_content_is_seen_when_it_is_adopted_and_not_before() {
    let mut host = host();
    let old: Vec<u64> = (1..=300).collect();
    for (sequence, part) in old.chunks(100).enumerate() {
        let first = sequence as u32 * 100;
        host.ask(write(KEY, sequence as u64 + 1, data(first, part))).expect("it is written");
    }
    fence(&mut host, 2, false).expect("it is fenced");
    let permit = by_session(2);
    stage(&mut host, permit, 250, &[9; 20]).expect("it is staged");
    stage(&mut host, permit, 0, &[8; 10]).expect("it is staged");
    for first in [0, 9, 245, 269] {
        let overlaps = stage(&mut host, permit, first, &[7; 10]);
        assert!(matches!(overlaps, Err(MemberError::Invalid(_))), "{overlaps:?}");
    }
    stage(&mut host, permit, 10, &[0]).expect("zeros take no space");
    assert_eq!(content(&mut host, KEY, 255), old[..255]);
    assert_eq!(host.store().status().space.staged_bytes, 30 << 12);
    for staged in [0, 30, 32] {
        let reply = adopt(&mut host, permit, staged, (stamp(9), 2));
        assert_eq!(reply.err(), Some(MemberError::NotStaged { have: 31 }));
        // All of it is sent again.
        assert_eq!(host.store().status().space.staged_bytes, 0);
        stage(&mut host, permit, 250, &[9; 20]).expect("it is staged");
        stage(&mut host, permit, 0, &[8; 10]).expect("it is staged");
        stage(&mut host, permit, 10, &[0]).expect("zeros take no space");
    }
    adopt(&mut host, permit, 31, (stamp(9), 2)).expect("it is adopted");
    // Said again: its answer was lost.
    adopt(&mut host, permit, 31, (stamp(9), 2)).expect("it was adopted");
    let mut new = old.clone();
    new[250..270].fill(9);
    new[..10].fill(8);
    new[10] = 0;
    assert_eq!(content(&mut host, KEY, 255), new[..255]);
    let found = stands(&mut host, KEY);
    assert_eq!((found.stamp, found.settled_generation.0), (stamp(9), 2));
    host.store().check();
    flush(&mut host, 2);
    cut_power(&mut host);
    assert_eq!(content(&mut host, KEY, 255), new[..255]);
    // The next write follows it.
    let MemberRequest::Write(next) = write(KEY, 10, data(0, &[5])) else { unreachable!() };
    let stamp = Stamp { generation: Generation(2), sequence: 10 };
    host.ask(MemberRequest::Write(Write { stamp, ..next })).expect("it is written");
    reopen(&mut host);
    assert_eq!(content(&mut host, KEY, 2), [5, 8]);
}

#[test]
fn checksums_tell_copies_apart() {
    let mut host = host();
    host.ask(write(KEY, 1, data(0, &[1, 0, 3]))).expect("it is written");
    let mut other = Host::formatted(96 << 20, Some(64 << 20), 1 << 20);
    other.open().expect("it opens");
    other.ask(write(KEY, 1, data(0, &[1, 0, 4]))).expect("it is written");
    let mut sums = [&mut host, &mut other].map(|host| {
        let (lineage, blocks) = (LINEAGE, BlockRange::new(0, 4).expect("inside"));
        match host.ask(MemberRequest::Checksums { lineage, key: KEY, blocks }) {
            Ok(MemberReply::Checksums(sums)) => sums,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(sums[0][..2], sums[1][..2]);
    assert_eq!((sums[0][1], sums[0][3]), (BlockSum::Zero, BlockSum::Absent));
    assert_ne!(sums[0][2], sums[1][2]);
    sums[0].clear();
    let (lineage, blocks) = (LINEAGE, BlockRange::new(0, 2).expect("inside"));
    let unwritten = host.ask(MemberRequest::Checksums { lineage, key: key(1, 8), blocks });
    assert!(matches!(unwritten, Ok(MemberReply::Checksums(s)) if s == [BlockSum::Absent; 2]));
}

#[test]
fn staged_content_goes_with_its_permit_and_gives_its_space_back() {
    for end in 0..6 {
        let mut host = host();
        fence(&mut host, 2, false).expect("it is fenced");
        let permit = if end < 3 { by_session(2) } else { by_attempt(4) };
        stage(&mut host, permit, 0, &[1; 100]).expect("it is staged");
        // One more, whose data is still on its way.
        let change = data(500, &[2; 50]);
        let late = MemberRequest::Stage { permit, lineage: LINEAGE, key: KEY, change };
        let number = host.request(late);
        let free = host.store().status().space.free_bytes;
        match end {
            0 => drop(fence(&mut host, 3, false).expect("it is fenced")),
            1 => drop(refuse(&mut host, 1, 1).expect("it is refused")),
            2 | 5 => {
                host.event(Event::DropLayer { lineage: LINEAGE, layer: LayerId(1) });
            }
            3 => drop(refuse(&mut host, 5, 1).expect("a newer attempt")),
            _ => drop(install(&mut host, 4, 1).expect("it ends")),
        }
        host.settle();
        let reply = host.replies.remove(&number).expect("it is answered");
        if end != 2 && end != 5 {
            assert!(reply.is_err(), "{end}: {reply:?}");
        }
        host.store().check();
        let status = host.store().status();
        if end == 2 || end == 5 {
            // Nothing was of the layer: the lineage's first one may be written anew.
            continue;
        }
        assert_eq!(status.space.staged_bytes, 0, "{end}: it is still staged");
        assert_eq!(status.space.free_bytes, free + (150 << 12), "{end}");
        let reply = adopt(&mut host, permit, 150, (stamp(9), 2));
        assert!(reply.is_err(), "{end}: {reply:?}");
        assert_eq!(stands(&mut host, KEY).stamp, Stamp::default());
    }
}

#[test]
fn a_permit_must_hold() {
    let mut host = host();
    fence(&mut host, 3, false).expect("it is fenced");
    let reply = stage(&mut host, by_session(2), 0, &[1]);
    assert_eq!(reply.err(), Some(MemberError::Fenced { newer: Generation(3) }));
    let reply = stage(&mut host, by_session(4), 0, &[1]);
    assert!(matches!(reply, Err(MemberError::Invalid(_))), "its fence is not here: {reply:?}");
    stage(&mut host, by_session(3), 0, &[1]).expect("it is the session");
    refuse(&mut host, 1, 1).expect("it is refused");
    let have = ConfigurationNumber(2);
    let reply = stage(&mut host, by_session(3), 5, &[1]);
    assert_eq!(reply.err(), Some(MemberError::WrongConfiguration { have }));
    let reply = retract(&mut host, KEY, by_session(3));
    assert_eq!(reply.err(), Some(MemberError::WrongConfiguration { have }));
}

#[test]
fn so_many_objects_are_staged_and_no_more() {
    let mut host = host();
    let (permit, lineage) = (by_attempt(1), LINEAGE);
    for index in 0..=limits::STAGED_OBJECTS_MAX as u32 {
        let under = under(1);
        let _ = under;
        let (key, change) = (key(1, index), data(0, &[1]));
        let reply = host.ask(MemberRequest::Stage { permit, lineage, key, change });
        if index < limits::STAGED_OBJECTS_MAX as u32 {
            reply.expect("it is staged");
        } else {
            assert_eq!(reply.err(), Some(MemberError::Busy));
        }
    }
    // A part more of one of them finds room.
    stage(&mut host, permit, 8, &[2]).expect("it is staged");
    adopt(&mut host, permit, 2, (stamp(1), 1)).expect("it is adopted");
    let (key, change) = (key(1, 900), data(0, &[1]));
    host.ask(MemberRequest::Stage { permit, lineage, key, change }).expect("there is room again");
    cut_power(&mut host);
    assert_eq!(host.store().status().space.staged_bytes, 0);
    host.pass(proto::Duration::from_secs(60));
    host.store().check();
}

/// The longest record there can be, in the shortest log there can be.
#[test]
fn a_whole_object_in_pieces_is_adopted_at_once() {
    let mut host = Host::formatted(96 << 20, Some(64 << 20), 64 << 10);
    host.open().expect("it opens");
    let old: Vec<u64> = (1..=1024).collect();
    // Written block by block, each apart from its neighbours: all of it is in pieces.
    for sequence in 1..=1024u64 {
        let block = (sequence * 5 % 1024) as u32;
        let request = write(KEY, sequence, data(block, &[old[block as usize]]));
        host.ask(request).expect("it is written");
    }
    let (generation, after) = (Generation(2), ObjectKey::default());
    let fence = MemberRequest::Fence { lineage: LINEAGE, generation, list: false, after };
    ask(&mut host, &fence);
    for round in 0..8u64 {
        let new: Vec<u64> = (0..1024).map(|block| (round + 1) * 5000 + block).collect();
        for block in 0..1024u32 {
            let at = block * 7 % 1024;
            stage(&mut host, by_session(2), at, &[new[at as usize]]).expect("it is staged");
        }
        let settled = (stamp(2000 + round), 2);
        adopt(&mut host, by_session(2), 1024, settled).expect("it is adopted");
        flush(&mut host, 2);
        assert_eq!(content(&mut host, KEY, 256), new[..256]);
        if round % 4 == 3 {
            cut_power(&mut host);
            assert_eq!(content(&mut host, KEY, 256), new[..256]);
        }
    }
    host.pass(proto::Duration::from_secs(60));
    host.store().check();
    assert_eq!(host.store().status().space.data_bytes, 4 << 20);
}

#[test]
fn a_full_disk_stages_nothing_and_keeps_nothing_of_it() {
    let mut host = Host::formatted(64 << 20, Some(12 << 20), 64 << 10);
    host.open().expect("it opens");
    fence(&mut host, 2, false).expect("it is fenced");
    let mut refused = false;
    for part in 0..40u32 {
        let (permit, lineage) = (by_session(2), LINEAGE);
        let (key, change) = (key(1, part / 4), data(part % 4 * 256, &[u64::from(part) + 1; 256]));
        match host.ask(MemberRequest::Stage { permit, lineage, key, change }) {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error, MemberError::NoSpace);
                refused = true;
            }
        }
        host.store().check();
        if refused {
            // The parts of that object before it went with it.
            let whole = u64::from(part / 4) << 22;
            assert_eq!(host.store().status().space.staged_bytes, whole);
            break;
        }
    }
    assert!(refused, "the disk has no end");
    fence(&mut host, 3, false).expect("it is fenced");
    host.settle();
    assert_eq!(host.store().status().space.staged_bytes, 0);
    stage(&mut host, by_session(3), 0, &[1; 256]).expect("there is space again");
}

#[test]
fn a_layers_object_that_is_retracted_shows_what_lies_below_again() {
    let mut host = host();
    let (lineage, generation) = (LINEAGE, GENERATION);
    host.ask(write(KEY, 1, data(0, &[1, 2, 3]))).expect("it is written");
    let (layer, parent) = (LayerId(2), LayerId(1));
    host.ask(MemberRequest::OpenLayer { lineage, generation, layer, parent }).expect("opened");
    let above = key(2, 0);
    host.ask(write(above, 2, data(1, &[7]))).expect("it is written");
    assert_eq!(content(&mut host, above, 3), [1, 7, 3]);
    let permit = by_attempt(1);
    // The upper one borrows from it.
    let reply = stage(&mut host, permit, 0, &[9]);
    assert!(matches!(reply, Err(MemberError::Invalid(_))), "{reply:?}");
    assert!(matches!(retract(&mut host, KEY, permit), Err(MemberError::Invalid(_))));
    for round in 0..3 {
        retract(&mut host, above, permit).expect("it is retracted");
        retract(&mut host, above, permit).expect("it was retracted");
        let below = if round == 0 { 3 } else { 9 + round };
        assert_eq!(content(&mut host, above, 3), [1, 2, below]);
        host.store().check();
        if round == 1 {
            flush(&mut host, 1);
            cut_power(&mut host);
        }
        // There again, and on another one below.
        stage(&mut host, permit, 2, &[10 + round]).expect("it is staged");
        adopt(&mut host, permit, 1, (stamp(3 + round), 1)).expect("it is adopted");
        let change = data(0, &[20 + round]);
        host.ask(MemberRequest::Stage { permit, lineage, key: above, change }).expect("staged");
        let replaces = stamp_of(&mut host, above);
        host.ask(MemberRequest::Adopt {
            permit,
            lineage,
            key: above,
            replaces,
            staged: 1,
            stamp: stamp(9 + round),
            settled_generation: Generation(1),
        })
        .expect("it is adopted");
        for again in 0..2 {
            assert_eq!(content(&mut host, above, 3), [20 + round, 2, 10 + round], "{again}");
            assert_eq!(content(&mut host, KEY, 3), [1, 2, 10 + round]);
            flush(&mut host, 1);
            cut_power(&mut host);
        }
    }
    retract(&mut host, above, permit).expect("it is retracted");
    // What replay would copy from it must be in a checkpoint first: it is busy until then.
    let (key, replaces) = (KEY, stamp_of(&mut host, KEY));
    ask(&mut host, &MemberRequest::Retract { permit, lineage, key, replaces });
    host.pass(proto::Duration::from_secs(60));
    assert_eq!(host.store().status().objects, 0);
    host.store().check();
}

#[test]
fn a_disk_knows_since_when_its_machine_has_kept_its_power() {
    let mut host = Host::formatted(96 << 20, Some(64 << 20), 1 << 20);
    let mut attempt = 0;
    let mut since = |host: &mut Host, boot: u8| {
        let mut options = host.options();
        options.boot = [boot; 16];
        host.open_with(options).expect("it opens");
        attempt += 1;
        let Ok(MemberReply::Refused { incarnation, lossless_from }) = refuse(host, attempt, 1)
        else {
            panic!("it is refused")
        };
        assert_eq!(host.store().status().lossless_from, lossless_from);
        (incarnation, lossless_from)
    };
    let is = |incarnation, lossless_from| (Incarnation(incarnation), Incarnation(lossless_from));
    assert_eq!(since(&mut host, 1), is(1, 1));
    host.close();
    assert_eq!(since(&mut host, 1), is(2, 1));
    host.crash(&mut Random::new(2), false);
    assert_eq!(since(&mut host, 1), is(3, 1));
    host.crash(&mut Random::new(3), true);
    assert_eq!(since(&mut host, 2), is(4, 4));
    host.close();
    // Whoever does not say which boot it is gets nothing, and neither does the next.
    assert_eq!(since(&mut host, 0), is(5, 5));
    host.close();
    assert_eq!(since(&mut host, 0), is(6, 6));
    host.close();
    assert_eq!(since(&mut host, 2), is(7, 7));
    host.crash(&mut Random::new(4), false);
    assert_eq!(since(&mut host, 2), is(8, 7));
}

/// What was acknowledged before a flush failed may be gone although the machine kept its power.
#[test]
fn a_disk_that_failed_has_lost_what_it_acknowledged_before() {
    for flushes in [true, false] {
        let mut host = host();
        host.close();
        let mut options = host.options();
        options.boot = [1; 16];
        host.open_with(options.clone()).expect("it opens");
        host.ask(write(KEY, 1, data(0, &[1]))).expect("it is written");
        host.request(MemberRequest::Flush {
            lineage: LINEAGE,
            generation: GENERATION,
            settled: Stamp::default(),
        });
        host.request(write(KEY, 2, data(0, &[2])));
        match flushes {
            true => host.medium.fails_flushes = true,
            // The first of them: what comes later finds the medium well again.
            false => host.medium.fails_writes = true,
        }
        host.poll();
        while !matches!(host.store().status().state, store::State::Retired(_)) {
            assert!(host.complete(0), "nothing has failed");
        }
        host.medium.fails_writes = false;
        host.medium.fails_flushes = false;
        host.settle();
        host.crash(&mut Random::new(1), false);
        options.medium_bytes = host.medium.written.len() as u64;
        let opened = host.open_with(options).expect("it opens");
        assert_eq!(host.store().status().lossless_from, opened.incarnation);
    }
}

/// A disk that was made before disks knew of copies.
#[test]
fn a_disk_of_the_version_before_is_opened_and_becomes_one_of_this() {
    let mut host = host();
    host.ask(write(KEY, 1, data(0, &[1]))).expect("it is written");
    host.close();
    for block in [0, 1] {
        let superblock = &mut host.medium.written[block << 12..(block + 1) << 12];
        assert_eq!(superblock[8..12], 2u32.to_le_bytes());
        superblock[8..12].copy_from_slice(&1u32.to_le_bytes());
        // What it says of boots comes last.
        superblock[212..].fill(0);
        let sum = proto::crc64_around(superblock, 16);
        superblock[16..24].copy_from_slice(&sum.to_le_bytes());
    }
    let mut options = host.options();
    options.boot = [3; 16];
    let opened = host.open_with(options).expect("it opens");
    assert_eq!(host.store().status().lossless_from, opened.incarnation);
    assert_eq!(content(&mut host, KEY, 1), [1]);
    assert_eq!(host.medium.written[8..12], 2u32.to_le_bytes());
    refuse(&mut host, 1, 1).expect("it is refused");
    cut_power(&mut host);
    assert!(host.ask(write_under(1, 2)).is_err());
}

/// A settled point is in the log only as part of what is written anyway: a sole member's flushes
/// cost what they did.
#[test]
fn a_settled_point_costs_no_write_of_its_own() {
    let mut host = host();
    let (lineage, generation) = (LINEAGE, GENERATION);
    host.ask(write(KEY, 1, data(0, &[1]))).expect("it is written");
    flush(&mut host, 1);
    host.settle();
    let before = host.store().status().counters;
    host.ask(MemberRequest::Flush { lineage, generation, settled: stamp(1) }).expect("flushed");
    host.settle();
    let now = host.store().status().counters;
    assert_eq!((now.flushes, now.log_batches), (before.flushes, before.log_batches));
    host.ask(write(key(1, 5), 1, data(0, &[1]))).expect("it is written");
    flush(&mut host, 1);
    cut_power(&mut host);
    let Ok(MemberReply::Fenced { settled, .. }) = fence(&mut host, 2, true) else { panic!() };
    assert_eq!(settled, stamp(1));
}

#[test]
fn who_has_settled_an_object_may_change_though_a_layer_above_has_it() {
    let mut host = host();
    let (lineage, generation) = (LINEAGE, GENERATION);
    host.ask(write(KEY, 1, data(0, &[1, 2, 3]))).expect("it is written");
    let (layer, parent) = (LayerId(2), LayerId(1));
    host.ask(MemberRequest::OpenLayer { lineage, generation, layer, parent }).expect("opened");
    let above = key(2, 0);
    host.ask(write(above, 2, data(1, &[7]))).expect("it is written");
    let permit = by_attempt(1);
    adopt(&mut host, permit, 0, (stamp(1), 5)).expect("no content changes");
    for again in 0..2 {
        let settled = match host.ask(MemberRequest::Stamp {
            lineage,
            key: KEY,
            generation: Generation::SEALED,
        }) {
            Ok(MemberReply::Stamp(found)) => (found.stamp, found.settled_generation),
            other => panic!("{other:?}"),
        };
        assert_eq!(settled, (stamp(1), Generation(5)), "{again}");
        assert_eq!(content(&mut host, above, 3), [1, 7, 3]);
        assert_eq!(content(&mut host, KEY, 3), [1, 2, 3]);
        host.store().check();
        flush(&mut host, 1);
        cut_power(&mut host);
    }
    // Sent again it is the same; another stamp is other content.
    adopt(&mut host, permit, 0, (stamp(1), 5)).expect("it is so already");
    let reply = adopt(&mut host, permit, 0, (stamp(9), 5));
    assert!(matches!(reply, Err(MemberError::Invalid(_))), "{reply:?}");
}

#[test]
fn what_was_changed_since_it_was_looked_at_is_neither_adopted_nor_retracted() {
    let mut host = host();
    let (lineage, key, permit) = (LINEAGE, KEY, by_attempt(1));
    let adopt = |staged, replaces| MemberRequest::Adopt {
        permit,
        lineage,
        key,
        staged,
        stamp: stamp(7),
        settled_generation: Generation(1),
        replaces,
    };
    host.ask(write(KEY, 1, data(0, &[1]))).expect("it is written");
    // It was looked at; then a write comes.
    host.ask(write(KEY, 2, data(1, &[2]))).expect("it is written");
    let have = stamp(2);
    let wrong = Some(MemberError::WrongStamp { have });
    assert_eq!(host.ask(adopt(0, stamp(1))).err(), wrong);
    stage(&mut host, permit, 0, &[9]).expect("it is staged");
    assert_eq!(host.ask(adopt(1, Stamp::default())).err(), wrong);
    host.settle();
    assert_eq!(host.store().status().space.staged_bytes, 0, "all is begun anew");
    let replaces = stamp(1);
    let retract = MemberRequest::Retract { permit, lineage, key, replaces };
    assert_eq!(host.ask(retract).err(), wrong);
    assert_eq!(content(&mut host, KEY, 2), [1, 2]);
    assert_eq!(stamp_of(&mut host, KEY), have);
    stage(&mut host, permit, 0, &[9]).expect("it is staged");
    host.ask(adopt(1, have)).expect("it is adopted");
    host.ask(adopt(1, have)).expect("it was adopted");
    assert_eq!(content(&mut host, KEY, 2), [9, 2]);
    host.store().check();
}
