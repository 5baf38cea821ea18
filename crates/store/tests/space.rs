//! How much of the medium is fetched, and in how many pieces long writes lie, after short writes
//! have cut everything up.

mod support;

use proto::{BlockRange, Duration, MemberReply, MemberRequest, ObjectKey};
use std::collections::BTreeMap;
use store::Event;
use support::{GENERATION, Host, KEY, LINEAGE, Random, data, write};

const OBJECTS: u32 = 16;
const BLOCKS: u32 = 1024;

/// A store with objects that are written over, and the stamps of these.
struct Written {
    host: Host,
    sequences: BTreeMap<u32, u64>,
}

impl Written {
    fn write(&mut self, index: u32, first: u32, values: &[u64]) {
        let sequence = self.sequences.entry(index).or_default();
        *sequence += 1;
        let request = write(ObjectKey { index, ..KEY }, *sequence, data(first, values));
        self.host.ask(request).expect("written");
    }

    /// Writes everything in order.
    fn write_all(&mut self, salt: u64) {
        for index in 0..OBJECTS {
            for first in (0..BLOCKS).step_by(256) {
                let values: Vec<u64> = (salt..salt + 256).collect();
                self.write(index, first, &values);
            }
        }
    }

    /// Operations of the medium that it takes to read a MiB, on average.
    fn pieces(&mut self) -> f64 {
        let mut pieces = 0;
        for index in 0..OBJECTS {
            for first in (0..BLOCKS).step_by(256) {
                let key = ObjectKey { index, ..KEY };
                let blocks = BlockRange::new(first, 256).expect("inside");
                let (lineage, generation) = (LINEAGE, GENERATION);
                self.host.request(MemberRequest::Read {
                    lineage,
                    key,
                    generation,
                    under: None,
                    blocks,
                });
                pieces += self.host.in_flight();
                while self.host.complete(0) {}
            }
        }
        assert!(
            self.host.replies.values().all(|reply| matches!(reply, Ok(MemberReply::Data { .. })))
        );
        self.host.replies.clear();
        f64::from(pieces as u32) / f64::from(OBJECTS * BLOCKS / 256)
    }

    fn allocated(&self) -> u64 {
        self.host.store().status().space.allocated_bytes
    }
}

fn written(limit_bytes: Option<u64>) -> Written {
    let mut host = Host::formatted(900 << 20, limit_bytes, 4 << 20);
    let mut options = host.options();
    options.map_cache_bytes = 8 << 20;
    host.open_with(options).expect("it opens");
    let mut written = Written { host, sequences: BTreeMap::new() };
    written.write_all(1);
    written
}

fn shred(written: &mut Written) {
    let mut random = Random::new(3);
    for round in 0..2 * u64::from(OBJECTS * BLOCKS) {
        let index = random.below(u64::from(OBJECTS)) as u32;
        written.write(index, random.below(u64::from(BLOCKS)) as u32, &[round + 1]);
    }
}

#[test]
fn what_is_written_in_order_lies_in_long_runs_whatever_was_before() {
    let mut written = written(None);
    assert!(written.pieces() < 1.2);
    let before = written.allocated();
    shred(&mut written);
    let live = u64::from(OBJECTS) << 22;
    let shredded = written.allocated();
    assert!(shredded <= before + live / 4 + (48 << 20), "{before}, then {shredded}");
    written.write_all(2);
    let pieces = written.pieces();
    assert!(pieces < 2.0, "{pieces} pieces for each MiB");
    let all = written.allocated();
    assert!(all <= before + live + (64 << 20), "{before}, then {all}");
    // And nothing of that stays for good.
    (0..60).for_each(|_| written.host.pass(Duration::from_secs(1)));
    let after = written.allocated();
    assert!(after <= live + (160 << 20), "{after} bytes stay");
    written.host.store().check();
}

#[test]
fn a_file_system_with_little_space_is_not_emptied_for_long_runs() {
    let mut written = written(None);
    let before = written.allocated();
    written.host.event(Event::MediumSpace { free_bytes: 0 });
    shred(&mut written);
    written.write_all(2);
    assert!(written.allocated() <= before + (64 << 20), "{before} then {}", written.allocated());
    written.host.store().check();
}

#[test]
fn a_limit_is_kept_and_everything_fits_below_it() {
    let limit = 160 << 20;
    let mut written = written(Some(limit));
    shred(&mut written);
    written.write_all(2);
    assert!(written.allocated() <= limit);
    written.host.store().check();
}
