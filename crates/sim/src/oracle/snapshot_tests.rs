//! The oracle's judgement of snapshots: right cuts must pass, wrong ones must not.

use super::*;

const BLOCK: u64 = BLOCK_SIZE as u64;
const VOLUME: u64 = 1;
const SNAPSHOT: u64 = 100;

fn oracle() -> Oracle {
    let mut oracle = Oracle::new();
    oracle.create(VOLUME, 4 * BLOCK);
    oracle
}

/// Begins a write of some blocks; returns it and what one block of it holds, by its number.
fn begin(oracle: &mut Oracle, first: u64, count: u64) -> (OperationId, Vec<u8>) {
    let id = oracle.invoke(VOLUME, 0, Action::Write, first * BLOCK, count * BLOCK);
    let mut content = vec![0; (count * BLOCK) as usize];
    oracle.fill(id, &mut content);
    (id, content)
}

fn write(oracle: &mut Oracle, first: u64, count: u64) -> Vec<u8> {
    let (id, content) = begin(oracle, first, count);
    oracle.ok(id, false);
    content
}

fn read(oracle: &mut Oracle, volume: u64, first: u64, content: &[u8]) -> Result<(), Wrong> {
    let length = content.len() as u64;
    let id = oracle.invoke(volume, 0, Action::Read, first * BLOCK, length);
    oracle.ok_read(id, content).map_err(|violation| violation.kind)
}

fn taken(oracle: &mut Oracle) {
    let id = oracle.invoke_snapshot(VOLUME);
    oracle.ok_snapshot(id, SNAPSHOT);
}

#[test]
fn a_snapshot_has_what_ended_before_it_and_nothing_that_began_after_it() {
    let mut oracle = oracle();
    let before = write(&mut oracle, 0, 1);
    taken(&mut oracle);
    let after = write(&mut oracle, 0, 1);
    let zeros = vec![0; BLOCK_SIZE];
    for (content, outcome) in
        [(&zeros, Err(Wrong::Stale)), (&after, Err(Wrong::Stale)), (&before, Ok(()))]
    {
        assert_eq!(read(&mut oracle, SNAPSHOT, 0, content), outcome);
    }
    assert_eq!(read(&mut oracle, VOLUME, 0, &after), Ok(()));
    assert_eq!(read(&mut oracle, SNAPSHOT, 0, &before), Ok(()), "read again");
    oracle.power_cut();
    assert_eq!(read(&mut oracle, SNAPSHOT, 0, &before), Ok(()), "it is stable when it is answered");
    assert_eq!(read(&mut oracle, VOLUME, 0, &zeros), Err(Wrong::Stale), "and so is what it shows");
}

#[test]
fn what_is_under_way_may_be_in_it_or_not_once_and_for_all() {
    for is_in in [false, true] {
        let mut oracle = oracle();
        let old = write(&mut oracle, 0, 1);
        let (early, new) = begin(&mut oracle, 0, 1);
        let id = oracle.invoke_snapshot(VOLUME);
        oracle.ok(early, true);
        let newest = write(&mut oracle, 0, 1);
        oracle.ok_snapshot(id, SNAPSHOT);
        let (shown, other) = if is_in { (&new, &old) } else { (&old, &newest) };
        assert_eq!(read(&mut oracle, SNAPSHOT, 0, shown), Ok(()));
        assert_eq!(read(&mut oracle, SNAPSHOT, 0, other), Err(Wrong::Stale));
    }
}

#[test]
fn half_of_a_write_in_a_snapshot_is_noticed() {
    let mut oracle = oracle();
    let old = write(&mut oracle, 0, 2);
    let (id, new) = begin(&mut oracle, 0, 2);
    let taking = oracle.invoke_snapshot(VOLUME);
    oracle.ok(id, false);
    oracle.ok_snapshot(taking, SNAPSHOT);
    let (first, second) = (&old[..BLOCK_SIZE], &new[BLOCK_SIZE..]);
    let half = [first, second].concat();
    assert_eq!(read(&mut oracle, SNAPSHOT, 0, &half), Err(Wrong::NoCut));
}

#[test]
fn a_write_without_the_one_that_ended_before_it_is_noticed() {
    let mut oracle = oracle();
    let old = write(&mut oracle, 0, 1);
    let taking = oracle.invoke_snapshot(VOLUME);
    write(&mut oracle, 0, 1);
    let later = write(&mut oracle, 1, 1);
    oracle.ok_snapshot(taking, SNAPSHOT);
    assert_eq!(read(&mut oracle, SNAPSHOT, 1, &later), Ok(()));
    assert_eq!(read(&mut oracle, SNAPSHOT, 0, &old), Err(Wrong::NoCut));
}

#[test]
fn a_snapshot_that_a_crash_interrupted_shows_what_the_crash_left() {
    for power in [false, true] {
        let mut oracle = oracle();
        let flushed = write(&mut oracle, 0, 1);
        let flush = oracle.invoke(VOLUME, 0, Action::Flush, 0, 0);
        oracle.ok(flush, false);
        let last = write(&mut oracle, 0, 1);
        oracle.invoke_snapshot(VOLUME);
        if power {
            oracle.power_cut()
        } else {
            oracle.killed()
        }
        assert!(oracle.recover_snapshot(VOLUME, SNAPSHOT, false));
        let zeros = vec![0; BLOCK_SIZE];
        assert_eq!(read(&mut oracle, SNAPSHOT, 0, &zeros), Err(Wrong::Stale));
        let lost = if power { Ok(()) } else { Err(Wrong::Stale) };
        assert_eq!(read(&mut oracle.clone(), SNAPSHOT, 0, &flushed), lost);
        assert_eq!(read(&mut oracle, SNAPSHOT, 0, &last), Ok(()));
        assert!(!oracle.recover_snapshot(VOLUME, SNAPSHOT + 1, false), "one was being taken");
    }
}

#[test]
fn a_clone_and_a_volume_rolled_back_show_the_snapshot_until_they_are_written() {
    let mut oracle = oracle();
    let old = write(&mut oracle, 0, 1);
    taken(&mut oracle);
    let new = write(&mut oracle, 0, 1);
    oracle.clone_snapshot(SNAPSHOT, 2);
    assert_eq!(read(&mut oracle, 2, 0, &new), Err(Wrong::Stale));
    assert_eq!(read(&mut oracle, 2, 0, &old), Ok(()));
    oracle.roll_back(VOLUME, SNAPSHOT);
    assert_eq!(read(&mut oracle, VOLUME, 0, &new), Err(Wrong::Stale));
    assert_eq!(read(&mut oracle, VOLUME, 0, &old), Ok(()));
    let newer = write(&mut oracle, 0, 1);
    assert_eq!(read(&mut oracle, 2, 0, &newer), Err(Wrong::Stale));
    assert_eq!(read(&mut oracle, VOLUME, 0, &newer), Ok(()));
}
