//! The oracle itself is put to the test: right histories must pass, wrong ones must not.

use super::*;
use crate::random::Random;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// A medium that does what it is told, right or wrong, and a client that asks the oracle.
struct Bench {
    oracle: Oracle,
    bytes: Vec<u8>,
}

impl Bench {
    fn new() -> Bench {
        let mut oracle = Oracle::new();
        oracle.create(1, 8 * BLOCK);
        Bench { oracle, bytes: vec![0; 8 * BLOCK_SIZE] }
    }

    /// Begins a write and returns what it would put there.
    fn begin(&mut self, offset: u64, length: u64) -> (OperationId, Vec<u8>) {
        let id = self.oracle.invoke(1, 0, Action::Write, offset, length);
        let mut content = vec![0; length as usize];
        self.oracle.fill(id, &mut content);
        (id, content)
    }

    fn put(&mut self, offset: u64, content: &[u8]) {
        self.bytes[offset as usize..offset as usize + content.len()].copy_from_slice(content);
    }

    fn write(&mut self, offset: u64, length: u64) -> Vec<u8> {
        let (id, content) = self.begin(offset, length);
        self.put(offset, &content);
        self.oracle.ok(id, false);
        content
    }

    fn flush(&mut self) {
        let id = self.oracle.invoke(1, 0, Action::Flush, 0, 0);
        self.oracle.ok(id, false);
    }

    fn read(&mut self, offset: u64, length: u64) -> Result<(), Wrong> {
        let id = self.oracle.invoke(1, 0, Action::Read, offset, length);
        let content = &self.bytes[offset as usize..(offset + length) as usize];
        self.oracle.ok_read(id, content).map_err(|violation| violation.kind)
    }
}

#[test]
fn what_was_written_may_be_read() {
    let mut bench = Bench::new();
    assert_eq!(bench.read(0, 8 * BLOCK), Ok(()));
    bench.write(0, 2 * BLOCK);
    bench.write(BLOCK + 512, 1024);
    assert_eq!(bench.read(0, 8 * BLOCK), Ok(()));
    assert_eq!(bench.read(BLOCK + 1024, 512), Ok(()));
    assert_eq!(bench.oracle.data_blocks(1), 2..=2);
}

#[test]
fn a_lost_acknowledged_write_is_noticed() {
    let mut bench = Bench::new();
    let old = bench.write(0, BLOCK);
    bench.write(0, BLOCK);
    bench.put(0, &old);
    assert_eq!(bench.read(0, BLOCK), Err(Wrong::Stale));
    bench.put(0, &[0; BLOCK_SIZE]);
    assert_eq!(bench.read(0, BLOCK), Err(Wrong::Stale));
}

#[test]
fn a_kill_may_lose_nothing_that_was_acknowledged() {
    let mut bench = Bench::new();
    let old = bench.write(0, BLOCK);
    bench.flush();
    bench.write(0, BLOCK);
    bench.oracle.killed();
    assert_eq!(bench.read(0, BLOCK), Ok(()));
    bench.put(0, &old);
    assert_eq!(bench.read(0, BLOCK), Err(Wrong::Stale));
}

#[test]
fn a_power_cut_may_lose_what_was_not_flushed_but_not_more() {
    let mut bench = Bench::new();
    let first = bench.write(0, BLOCK);
    let second = bench.write(0, BLOCK);
    bench.flush();
    let third = bench.write(0, BLOCK);
    bench.write(0, BLOCK);
    for (content, outcome) in [(&first, Err(Wrong::Stale)), (&second, Ok(())), (&third, Ok(()))] {
        let mut after = Bench { oracle: bench.oracle.clone(), bytes: bench.bytes.clone() };
        after.oracle.power_cut();
        after.put(0, content);
        assert_eq!(after.read(0, BLOCK), outcome);
        assert_eq!(after.read(0, BLOCK), outcome, "repeated reads agree");
        if outcome.is_ok() {
            after.put(0, if *content == second { &third } else { &second });
            assert_eq!(after.read(0, BLOCK), Err(Wrong::Stale), "once seen, no other");
        }
    }
}

/// A machine that has nothing of it lost its power, and then the one that has it.
#[test]
fn what_a_loss_has_left_is_lost_with_the_next_but_not_what_was_flushed_before() {
    let mut bench = Bench::new();
    let first = bench.write(0, BLOCK);
    let second = bench.write(0, BLOCK);
    bench.flush();
    let third = bench.write(0, BLOCK);
    bench.oracle.lost_power([]);
    assert_eq!(bench.read(0, BLOCK), Ok(()), "it is there still");
    bench.oracle.lost_power([]);
    for (content, outcome) in [(&first, Err(Wrong::Stale)), (&second, Ok(())), (&third, Ok(()))] {
        let mut after = Bench { oracle: bench.oracle.clone(), bytes: bench.bytes.clone() };
        after.put(0, content);
        assert_eq!(after.read(0, BLOCK), outcome);
        if outcome.is_ok() {
            after.put(0, if *content == second { &third } else { &second });
            assert_eq!(after.read(0, BLOCK), Err(Wrong::Stale), "once seen, no other");
        }
    }
}

#[test]
fn a_flush_covers_only_what_was_acknowledged_before_it_began() {
    let mut bench = Bench::new();
    let flush = bench.oracle.invoke(1, 0, Action::Flush, 0, 0);
    bench.write(0, BLOCK);
    bench.oracle.ok(flush, false);
    bench.oracle.power_cut();
    bench.put(0, &[0; BLOCK_SIZE]);
    assert_eq!(bench.read(0, BLOCK), Ok(()));
}

#[test]
fn a_write_through_is_durable_at_once() {
    let mut bench = Bench::new();
    let (id, content) = bench.begin(0, BLOCK);
    bench.put(0, &content);
    bench.oracle.ok(id, true);
    bench.oracle.power_cut();
    assert_eq!(bench.read(0, BLOCK), Ok(()));
    bench.put(0, &[0; BLOCK_SIZE]);
    assert_eq!(bench.read(0, BLOCK), Err(Wrong::Stale));
}

/// Seed 16522237285447745181: a write through to stable media was answered after a later write to
/// the same block, which the power cut then took. The oracle had thrown the two together, and
/// called what was left torn.
#[test]
fn a_write_through_keeps_nothing_of_a_later_write_that_was_answered_before_it() {
    let mut bench = Bench::new();
    bench.write(0, BLOCK);
    bench.flush();
    let (through, content) = bench.begin(2560, 1536);
    bench.put(2560, &content);
    let stable = bench.bytes[..BLOCK_SIZE].to_vec();
    bench.write(0, BLOCK);
    bench.oracle.ok(through, true);
    bench.put(0, &stable);
    bench.oracle.power_cut();
    assert_eq!(bench.read(0, BLOCK), Ok(()));
    // But the write through itself may not be missing.
    let mut bench = Bench::new();
    let old = bench.write(0, BLOCK);
    bench.flush();
    let (through, _) = bench.begin(2560, 1536);
    bench.write(0, BLOCK);
    bench.oracle.ok(through, true);
    bench.put(0, &old);
    bench.oracle.power_cut();
    assert!(bench.read(0, BLOCK).is_err());
}

#[test]
fn parts_of_a_block_may_not_survive_out_of_order() {
    let mut bench = Bench::new();
    let whole = bench.write(0, BLOCK);
    bench.flush();
    let first = bench.write(0, 512);
    let second = bench.write(512, 512);
    let none: (u64, &[u8]) = (0, &[]);
    for (parts, outcome) in [
        ([none, none], Ok(())),
        ([(0, &first), none], Ok(())),
        ([(0, &first), (512, &second)], Ok(())),
        ([none, (512, &second)], Err(Wrong::Torn)),
    ] {
        let mut after = Bench { oracle: bench.oracle.clone(), bytes: bench.bytes.clone() };
        after.oracle.power_cut();
        after.put(0, &whole);
        parts.into_iter().for_each(|(offset, content)| after.put(offset, content));
        assert_eq!(after.read(0, BLOCK), outcome);
    }
}

#[test]
fn a_torn_block_is_noticed() {
    let mut bench = Bench::new();
    let old = bench.write(0, BLOCK);
    bench.write(0, BLOCK);
    bench.put(1024, &old[1024..2048]);
    assert_eq!(bench.read(0, BLOCK), Err(Wrong::Torn));
    assert_eq!(bench.read(0, 1024), Ok(()));
    assert_eq!(bench.read(1024, 512), Err(Wrong::Stale));
}

#[test]
fn a_torn_write_of_unknown_outcome_is_noticed_after_a_crash() {
    let mut bench = Bench::new();
    bench.write(0, BLOCK);
    let (_, content) = bench.begin(0, BLOCK);
    bench.put(0, &content[..512]);
    bench.oracle.killed();
    assert_eq!(bench.read(0, BLOCK), Err(Wrong::Torn));
    bench.put(0, &content);
    assert_eq!(bench.read(0, BLOCK), Ok(()));
}

#[test]
fn rotten_misplaced_and_invented_sectors_are_noticed() {
    let mut bench = Bench::new();
    let content = bench.write(0, BLOCK);
    bench.put(BLOCK, &content);
    assert_eq!(bench.read(BLOCK, BLOCK), Err(Wrong::Misdirected));
    bench.bytes[17] ^= 1;
    assert_eq!(bench.read(0, BLOCK), Err(Wrong::Garbage));
    let stamp = Stamp { volume: 1, sector: 0, writer: 0, serial: 99, epoch: 0, generation: 0 };
    let mut sector = [0; SECTOR_SIZE];
    stamp.fill(&mut sector);
    bench.put(0, &sector);
    assert_eq!(bench.read(0, 512), Err(Wrong::Invented));
}

#[test]
fn an_unknown_write_appears_or_not_once_and_for_all() {
    for appears in [false, true] {
        let mut bench = Bench::new();
        let old = bench.write(0, BLOCK);
        let (_, new) = bench.begin(0, BLOCK);
        let (there, other) = if appears { (&new, &old) } else { (&old, &new) };
        bench.oracle.killed();
        bench.put(0, there);
        assert_eq!(bench.read(0, BLOCK), Ok(()));
        bench.put(0, other);
        assert_eq!(bench.read(0, BLOCK), Err(Wrong::Stale));
    }
}

#[test]
fn a_pending_write_may_appear_late_but_not_after_its_client_is_fenced() {
    let mut bench = Bench::new();
    let old = bench.write(0, BLOCK);
    let (_, new) = bench.begin(0, BLOCK);
    assert_eq!(bench.read(0, BLOCK), Ok(()));
    let mut late = Bench { oracle: bench.oracle.clone(), bytes: bench.bytes.clone() };
    late.put(0, &new);
    assert_eq!(late.read(0, BLOCK), Ok(()), "still pending");
    late.put(0, &old);
    assert_eq!(late.read(0, BLOCK), Err(Wrong::Stale), "seen once, so it stays");
    bench.oracle.attached(1);
    assert_eq!(bench.read(0, BLOCK), Ok(()));
    bench.put(0, &new);
    assert_eq!(bench.read(0, BLOCK), Err(Wrong::Stale), "risen after the fence");
}

#[test]
fn a_failed_write_is_there_or_not_once_and_for_all() {
    let mut bench = Bench::new();
    let old = bench.write(0, BLOCK);
    let (id, new) = bench.begin(0, BLOCK);
    bench.oracle.failed(id);
    assert_eq!(bench.read(0, BLOCK), Ok(()));
    bench.put(0, &new);
    assert_eq!(bench.read(0, BLOCK), Err(Wrong::Stale));
    bench.put(0, &old);
    assert_eq!(bench.read(0, BLOCK), Ok(()));
}

#[test]
fn concurrent_writes_end_in_either_order_but_all_readers_agree() {
    let mut bench = Bench::new();
    let (first, one) = bench.begin(0, BLOCK);
    let (second, two) = bench.begin(0, BLOCK);
    bench.oracle.ok(second, false);
    bench.oracle.ok(first, false);
    for (there, other) in [(&one, &two), (&two, &one)] {
        let mut after = Bench { oracle: bench.oracle.clone(), bytes: bench.bytes.clone() };
        after.put(0, there);
        assert_eq!(after.read(0, BLOCK), Ok(()));
        after.put(0, other);
        assert_eq!(after.read(0, BLOCK), Err(Wrong::Stale));
    }
}

#[test]
fn a_read_that_overlaps_a_write_returns_the_old_or_the_new() {
    for (new_first, new_second, right) in
        [(false, false, true), (false, true, true), (true, true, true), (true, false, false)]
    {
        let mut bench = Bench::new();
        let old = bench.write(0, BLOCK);
        let early = bench.oracle.invoke(1, 0, Action::Read, 0, BLOCK);
        let (write, new) = bench.begin(0, BLOCK);
        let pick = |wants_new: bool| if wants_new { &new } else { &old };
        assert_eq!(bench.oracle.ok_read(early, pick(new_first)), Ok(()));
        let late = bench.oracle.invoke(1, 0, Action::Read, 0, BLOCK);
        bench.oracle.ok(write, false);
        assert_eq!(bench.oracle.ok_read(late, pick(new_second)).is_ok(), right);
    }
}

#[test]
fn zeros_are_matched_against_whatever_explains_them() {
    let mut bench = Bench::new();
    bench.write(0, 2 * BLOCK);
    let zero = bench.oracle.invoke(1, 0, Action::Zero, 512, BLOCK);
    bench.bytes[512..BLOCK_SIZE + 512].fill(0);
    bench.oracle.ok(zero, false);
    assert_eq!(bench.read(0, 2 * BLOCK), Ok(()));
    let trim = bench.oracle.invoke(1, 0, Action::Discard, 512, 2 * BLOCK - 512);
    bench.oracle.ok(trim, false);
    assert_eq!(bench.read(0, BLOCK), Ok(()), "parts of blocks may stay");
    assert_eq!(bench.read(BLOCK, BLOCK), Err(Wrong::Torn), "whole blocks may not");
}

/// A perfect medium under random overlapping operations and kills never breaks a rule.
#[test]
fn random_histories_of_a_perfect_medium_pass() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut bench = Bench::new();
        let mut open: Vec<(OperationId, u64, Vec<u8>)> = Vec::new();
        for step in 0..120 {
            match random.below(10) {
                0..4 if open.len() < 4 => {
                    let sector = random.below(24);
                    let length = random.between(1, 24 - sector) * 512;
                    let (id, content) = bench.begin(sector * 512, length);
                    open.push((id, sector * 512, content));
                }
                0..7 if !open.is_empty() => {
                    let which = random.below(open.len() as u64) as usize;
                    let (id, offset, content) = open.swap_remove(which);
                    bench.put(offset, &content);
                    bench.oracle.ok(id, false);
                }
                7 => bench.flush(),
                8 if step % 3 == 0 => {
                    open.clear();
                    bench.oracle.killed();
                }
                _ => assert_eq!(bench.read(0, 4 * BLOCK), Ok(()), "seed {seed} step {step}"),
            }
        }
    }
}
