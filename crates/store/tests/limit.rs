//! The limit of a disk is that of its opening, and what is not needed goes back to the medium.

mod support;

use proto::{Duration, Generation, LayerId, MemberError, MemberRequest, ObjectKey};
use store::{Event, Notice};
use support::{Host, KEY, LINEAGE, data, write};

const MIB: u64 = 1 << 20;

/// Writes all of an object, or says why it cannot be.
fn fill(host: &mut Host, index: u32, sequence: u64) -> Result<(), MemberError> {
    for part in 0..4 {
        let values: Vec<u64> = (1..=256).collect();
        let change = data(part * 256, &values);
        host.ask(write(ObjectKey { index, ..KEY }, 4 * sequence + u64::from(part) + 1, change))?;
    }
    Ok(())
}

fn opened(limit_bytes: Option<u64>) -> Host {
    let mut host = Host::formatted(900 << 20, limit_bytes, 4 << 20);
    host.open().expect("it opens");
    host
}

fn reopen(host: &mut Host, limit_bytes: Option<u64>) {
    host.close();
    host.limit_bytes = limit_bytes;
    host.open().expect("it opens again");
}

/// A disk that was once opened with a limit kept it for ever.
#[test]
fn an_opening_without_a_limit_has_none() {
    let mut host = opened(Some(64 * MIB));
    let full = (0..32).find(|&index| fill(&mut host, index, 0).is_err());
    assert!(full.is_some(), "the limit is kept");
    reopen(&mut host, None);
    assert_eq!(host.store().status().space.limit_bytes, None);
    for index in 100..132 {
        fill(&mut host, index, 0).expect("there is no limit any more");
    }
    host.store().check();
}

/// 300 MiB of new data were taken under a limit of 100 MiB, because the disk had more than that
/// from before.
#[test]
fn a_limit_below_what_is_taken_counts_at_once_for_new_data() {
    let mut host = opened(None);
    for index in 0..24 {
        fill(&mut host, index, 0).expect("no limit yet");
    }
    host.event(Event::DropLayer { lineage: LINEAGE, layer: KEY.layer });
    host.settle();
    let layer = LayerId(KEY.layer.0 + 1);
    let fill_next = |host: &mut Host, index: u32, sequence: u64| {
        for part in 0..4 {
            let values: Vec<u64> = (1..=256).collect();
            let key = ObjectKey { layer, index };
            let change = data(part * 256, &values);
            host.ask(write(key, 4 * sequence + u64::from(part) + 1, change))?;
        }
        Ok::<(), MemberError>(())
    };
    let taken = host.store().status().space.allocated_bytes;
    assert!(taken >= 96 * MIB, "{taken}");
    let limit = 64 * MIB;
    reopen(&mut host, Some(limit));
    let (lineage, generation, parent) = (LINEAGE, Generation(1), LayerId(0));
    host.ask(MemberRequest::OpenLayer { lineage, generation, layer, parent }).expect("opened");
    let refused = (0..24).find(|&index| fill_next(&mut host, index, 0).is_err());
    let refused = refused.expect("the limit counts");
    let used = host.store().status().space.data_bytes;
    assert!(used < limit && used > limit / 4, "{used} of {limit} are used by new data");
    // What replaces other data goes on.
    assert!(host.store().status().space.full);
    fill_next(&mut host, 0, 1).expect("overwriting");
    // And with room there is an end of that, though nobody asks.
    host.event(Event::DropLayer { lineage: LINEAGE, layer });
    (0..3).for_each(|_| host.pass(Duration::from_secs(6)));
    assert!(!host.store().status().space.full, "{refused}");
    assert!(host.notices.contains(&Notice::NoLongerFull));
    host.store().check();
}

/// 64 MiB went back each 5 seconds, with nothing else to do.
#[test]
fn what_is_spare_goes_back_without_pauses() {
    let mut host = opened(Some(512 * MIB));
    for index in 0..64 {
        fill(&mut host, index, 0).expect("it fits");
    }
    host.event(Event::DropLayer { lineage: LINEAGE, layer: KEY.layer });
    host.settle();
    // A flush covers what was freed, and then it must be spare for a while.
    host.pass(Duration::from_secs(6));
    host.pass(Duration::from_secs(6));
    let before = host.store().status().space.allocated_bytes;
    assert!(before >= 256 * MIB, "{before}");
    host.pass(Duration::from_secs(6));
    // From then on no more time passes than one wait.
    host.pass(Duration::from_secs(11));
    let after = host.store().status().space.allocated_bytes;
    assert!(after <= 96 * MIB, "{after} bytes are still taken");
    host.store().check();
}
