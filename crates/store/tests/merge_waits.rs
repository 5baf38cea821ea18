//! No layer goes while a record that would be replayed has copied a page from it. A layer is
//! dropped at once after a page was copied from it, and the power cut after every single step of
//! what follows, until long after it is gone and its space used again.

mod support;

use proto::{
    BlockRange, Duration, Generation, LayerId, MemberError, MemberReply, MemberRequest, ObjectKey,
    Stamp,
};
use std::collections::BTreeSet;
use store::{Event, Usage, check};
use support::{GENERATION, Host, LINEAGE, Random, data, stamp, values, write};

const LOWER: LayerId = LayerId(1);
const UPPER: LayerId = LayerId(2);
const KEY: ObjectKey = ObjectKey { layer: UPPER, index: 0 };
/// Random cuts at each step.
const CUTS: u64 = 4;

/// What is known of the upper layer when the lower one is dropped.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Known {
    /// It is open for good; its change is not flushed.
    Open,
    /// Its change is flushed too.
    Flushed,
}

fn ask(host: &mut Host, request: MemberRequest) -> MemberReply {
    for _ in 0..1000 {
        match host.ask(request.clone()) {
            Err(MemberError::Busy) => drop(host.complete(0)),
            reply => return reply.expect("it is not refused"),
        }
    }
    panic!("busy for ever");
}

fn flush(host: &mut Host) {
    ask(
        host,
        MemberRequest::Flush {
            lineage: LINEAGE,
            generation: GENERATION,
            settled: Stamp::default(),
        },
    );
}

fn open_upper(host: &mut Host) {
    let (lineage, generation, layer, parent) = (LINEAGE, GENERATION, UPPER, LOWER);
    ask(host, MemberRequest::OpenLayer { lineage, generation, layer, parent });
}

/// A disk with four blocks in the lower layer, long saved, and one of them changed in the upper
/// one, which copies their page. Then the lower one is dropped.
fn dropped_at_once(known: Known) -> Host {
    let mut host = Host::formatted(16 << 20, Some(12 << 20), 64 << 10);
    host.open().expect("a new disk opens");
    let lower = ObjectKey { layer: LOWER, index: 0 };
    ask(&mut host, write(lower, 1, data(0, &[1, 2, 3, 4])));
    host.close();
    host.open().expect("it opens");
    open_upper(&mut host);
    flush(&mut host);
    ask(&mut host, write(KEY, 2, data(1, &[100])));
    if known == Known::Flushed {
        flush(&mut host);
    }
    host.event(Event::DropLayer { lineage: LINEAGE, layer: LOWER });
    host
}

/// Runs so many steps of what follows: other objects are written, so that what the lower layer
/// gives back is used again, and flushed. Returns how many there were, if it came to the end.
fn run(host: &mut Host, steps: u64) -> Option<u64> {
    let mut done = 0;
    for round in 0..6 {
        host.poll();
        while host.in_flight() > 0 {
            if done == steps {
                return None;
            }
            done += 1;
            host.complete(0);
            host.poll();
        }
        host.now = host.now + Duration::from_secs(1);
        let key = ObjectKey { index: 1 + round, ..KEY };
        host.request(write(key, 1, data(0, &[1000 + u64::from(round); 40])));
        host.poll();
        if round % 2 == 1 {
            host.request(MemberRequest::Flush {
                lineage: LINEAGE,
                generation: GENERATION,
                settled: Stamp::default(),
            });
        }
    }
    Some(done)
}

fn read(host: &mut Host) -> Vec<u64> {
    let (lineage, key, generation) = (LINEAGE, KEY, Generation::SEALED);
    let blocks = BlockRange::new(0, 5).expect("inside");
    values(&ask(host, MemberRequest::Read { lineage, key, generation, under: None, blocks }))
}

fn check_after_cut(mut host: Host, known: Known, seed: u64) -> BTreeSet<u64> {
    host.crash(&mut Random::new(seed), true);
    let report = check::check(&mut &host.medium.written[..]).expect("it opens");
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
    host.open().expect("it opens");
    open_upper(&mut host);
    host.event(Event::DropLayer { lineage: LINEAGE, layer: LOWER });
    let request = MemberRequest::Stamp { lineage: LINEAGE, key: KEY, generation: GENERATION };
    let MemberReply::Stamp(at) = ask(&mut host, request) else { panic!("no stamp") };
    let changed = if at.stamp == stamp(1) && known == Known::Open { 2 } else { 100 };
    let wanted = vec![1, changed, 3, 4, 0];
    assert_eq!(read(&mut host), wanted);
    host.pass(Duration::from_secs(60));
    assert_eq!(read(&mut host), wanted, "once the lower layer is gone");
    host.store().check();
    assert_eq!(host.store().usage(LOWER), Usage::default());
    host.event(Event::DropLayer { lineage: LINEAGE, layer: UPPER });
    host.pass(Duration::from_secs(60));
    let status = host.store().status();
    assert_eq!((status.space.data_bytes, status.space.map_bytes), (0, 0), "{status:?}");
    assert_eq!((status.objects, status.layers_dropping, status.lost_blocks), (0, 0, 0));
    BTreeSet::from([changed])
}

#[test]
fn a_layer_dropped_at_once_after_a_page_was_copied_from_it_takes_nothing_along() {
    for known in [Known::Open, Known::Flushed] {
        let mut seen = BTreeSet::new();
        let mut steps = 0;
        loop {
            let mut end = None;
            for cut in 0..CUTS {
                let mut host = dropped_at_once(known);
                end = run(&mut host, steps);
                seen.extend(check_after_cut(host, known, steps * CUTS + cut));
            }
            steps += 1;
            if end.is_some() {
                break;
            }
        }
        assert!(steps > 15, "only {steps} steps");
        let both = BTreeSet::from([2, 100]);
        assert!(known == Known::Flushed || seen == both, "no cut lost the change: {seen:?}");
        println!("{known:?}: the power was cut at {steps} steps");
    }
}
