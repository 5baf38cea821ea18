use super::*;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// A small device driven by hand: operations end when told, in the order told.
struct Hand {
    disk: SimDisk,
    next: u64,
}

impl Hand {
    fn new() -> Hand {
        let image = Image::device(64 * BLOCK);
        Hand { disk: SimDisk::new(image, 64 * BLOCK, Random::new(1)), next: 0 }
    }

    fn submit(&mut self, request: DiskRequest) -> DiskToken {
        let token = DiskToken(self.next);
        self.next += 1;
        self.disk.submit(Time(0), DiskOp { token, request });
        token
    }

    fn write(&mut self, block: u64, byte: u8) -> DiskToken {
        let payload = Buffer::copy_of(&[byte; BLOCK_SIZE]).freeze();
        self.submit(DiskRequest::Write { offset: block * BLOCK, payloads: vec![payload] })
    }

    fn end(&mut self, token: DiskToken) -> Result<Option<Buffer>, DiskError> {
        self.disk.complete(token).result
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        let token = self.submit(DiskRequest::Flush);
        self.end(token).map(|_| ())
    }

    fn read(&mut self, block: u64) -> Result<Vec<u8>, DiskError> {
        let buffer = Buffer::zeroed(BLOCK_SIZE);
        let token = self.submit(DiskRequest::Read { offset: block * BLOCK, buffer });
        self.end(token).map(|buffer| buffer.expect("a read brings data").as_slice().to_vec())
    }
}

#[test]
fn a_write_is_visible_when_done_and_durable_when_flushed() {
    let mut hand = Hand::new();
    let token = hand.write(3, 7);
    hand.end(token).expect("no fault");
    assert_eq!(hand.read(3).expect("no fault")[0], 7);
    assert_eq!(hand.disk.crashed(&CrashState::Old).block(3)[0], 0);
    hand.flush().expect("no fault");
    assert_eq!(hand.disk.crashed(&CrashState::Old).block(3)[0], 7);
    assert!(!hand.disk.is_unsynced());
}

#[test]
fn a_flush_covers_only_what_had_completed_when_it_was_asked_for() {
    let mut hand = Hand::new();
    let early = hand.write(1, 1);
    let late = hand.write(2, 2);
    hand.end(early).expect("no fault");
    let flush = hand.submit(DiskRequest::Flush);
    hand.end(late).expect("no fault");
    hand.end(flush).expect("no fault");
    let left = hand.disk.crashed(&CrashState::Old);
    assert_eq!((left.block(1)[0], left.block(2)[0]), (1, 0));
}

#[test]
fn every_unsynced_sector_is_a_unit_of_its_own() {
    let mut hand = Hand::new();
    let token = hand.write(5, 9);
    let units = hand.disk.units();
    assert_eq!(units.len(), 8);
    for unit in &units {
        let Unit::Sector(sector) = *unit else { panic!("only sectors were written") };
        let one_old = hand.disk.crashed(&CrashState::OneOld(*unit));
        let one_new = hand.disk.crashed(&CrashState::OneNew(*unit));
        for other in 40..48 {
            assert_eq!(one_old.sector(other)[0] == 9, other != sector);
            assert_eq!(one_new.sector(other)[0] == 9, other == sector);
        }
    }
    hand.end(token).expect("no fault");
    assert_eq!(hand.disk.units(), units);
}

#[test]
fn mixtures_tear_and_repeat() {
    let mut hand = Hand::new();
    for block in 0..4 {
        let token = hand.write(block, 1);
        hand.end(token).expect("no fault");
    }
    let cut = |seed| hand.disk.crashed(&CrashState::Mixture(Mixture { seed }));
    let torn = (0..16).filter(|&seed| {
        let image = cut(seed);
        (0..4).any(|block| {
            let kept = (0..8).filter(|s| image.sector(block * 8 + s)[0] == 1).count();
            (1..8).contains(&kept)
        })
    });
    assert!(torn.count() >= 4);
    assert_eq!(cut(3).key(), cut(3).key());
}

#[test]
fn a_failed_flush_leaves_its_writes_unknown_whatever_succeeds_later() {
    let mut kept = 0;
    for seed in 0..64 {
        let mut hand = Hand::new();
        hand.disk.random = Random::new(seed);
        let token = hand.write(1, 1);
        hand.end(token).expect("no fault");
        let error = DiskError::Io(5);
        hand.disk.add_fault(Fault::once(OperationKind::Flush, Effect::Error(error)));
        assert_eq!(hand.flush(), Err(error));
        hand.flush().expect("the fault is spent");
        assert_eq!(hand.disk.crashed(&CrashState::Old).block(1)[0], 0);
        hand.disk.kill();
        assert!(!hand.disk.is_unsynced());
        kept += u32::from(hand.disk.image().block(1)[0] == 1);
    }
    assert!((16..48).contains(&kept), "{kept}");
}

#[test]
fn a_kill_keeps_completed_writes_and_tears_those_in_flight() {
    let mut hand = Hand::new();
    let done = hand.write(1, 1);
    hand.end(done).expect("no fault");
    for block in 2..10 {
        hand.write(block, 2);
    }
    hand.disk.kill();
    assert!(hand.disk.image().block(1).iter().all(|&b| b == 1));
    let kept = (16..80).filter(|&s| hand.disk.image().sector(s)[0] == 2).count();
    assert!((8..56).contains(&kept), "{kept}");
    assert_eq!(hand.disk.crashed(&CrashState::Old).block(1)[0], 0);
    hand.flush().expect("no fault");
    assert_eq!(hand.disk.crashed(&CrashState::Old).key(), hand.disk.image().key());
}

#[test]
fn space_runs_out_at_the_capacity_and_comes_back_with_discards() {
    let mut disk = SimDisk::new(Image::empty(), 8 * BLOCK, Random::new(1));
    let run = |disk: &mut SimDisk, request| {
        disk.submit(Time(0), DiskOp { token: DiskToken(1), request });
        disk.complete(DiskToken(1)).result.map(|_| ())
    };
    let allocate = |offset, length| DiskRequest::Allocate { offset, length, zero: false };
    assert_eq!(run(&mut disk, allocate(0, 6 * BLOCK)), Ok(()));
    assert_eq!(run(&mut disk, allocate(6 * BLOCK, 3 * BLOCK)), Err(DiskError::NoSpace));
    assert_eq!(disk.length(), 6 * BLOCK);
    assert_eq!(run(&mut disk, DiskRequest::Discard { offset: 0, length: BLOCK }), Ok(()));
    assert_eq!(run(&mut disk, allocate(6 * BLOCK, 3 * BLOCK)), Ok(()));
    assert_eq!(disk.image().allocated_bytes(), 8 * BLOCK);
}

#[test]
fn a_lost_allocation_takes_the_writes_inside_with_it() {
    let mut disk = SimDisk::new(Image::empty(), 64 * BLOCK, Random::new(1));
    let allocate = DiskRequest::Allocate { offset: 0, length: 4 * BLOCK, zero: false };
    disk.submit(Time(0), DiskOp { token: DiskToken(1), request: allocate });
    disk.complete(DiskToken(1)).result.expect("there is room");
    let payloads = vec![Buffer::copy_of(&[5; BLOCK_SIZE]).freeze()];
    let write = DiskRequest::Write { offset: BLOCK, payloads };
    disk.submit(Time(0), DiskOp { token: DiskToken(2), request: write });
    disk.complete(DiskToken(2)).result.expect("there is room");
    let left = disk.crashed(&CrashState::OneOld(Unit::Extent(0)));
    assert_eq!((left.length(), left.block(1)[0]), (0, 0));
    let left = disk.crashed(&CrashState::OneNew(Unit::Sector(8)));
    assert_eq!((left.length(), left.block(1)[0]), (4 * BLOCK, 5));
    assert_eq!(disk.counters().writes_unallocated, 0);
}

#[test]
fn misdirected_and_lost_writes_are_reported_as_done() {
    let mut hand = Hand::new();
    let fault = Fault::once(OperationKind::Write, Effect::Misdirect(2 * BLOCK as i64));
    hand.disk.add_fault(fault);
    hand.disk.add_fault(Fault::once(OperationKind::Write, Effect::Lose));
    let first = hand.write(1, 1);
    hand.end(first).expect("reported as done");
    let second = hand.write(4, 4);
    hand.end(second).expect("reported as done");
    let seen: Vec<u8> = (0..6).map(|block| hand.disk.image().block(block)[0]).collect();
    assert_eq!(seen, [0, 0, 0, 1, 0, 0]);
}

#[test]
fn faults_hit_only_their_range_and_only_so_often() {
    let mut hand = Hand::new();
    let error = Effect::Error(DiskError::Io(5));
    let fault = Fault { times: Some(2), ..Fault::always(OperationKind::Read, error) };
    hand.disk.add_fault(fault.within(4 * BLOCK..5 * BLOCK));
    let outcomes: Vec<bool> =
        [3, 4, 5, 4, 4].into_iter().map(|block| hand.read(block).is_ok()).collect();
    assert_eq!(outcomes, [true, false, true, false, true]);
}

#[test]
fn what_hangs_or_takes_longer_ends_when_released() {
    let delay = Duration::from_secs(5);
    for (effect, is_endless) in [(Effect::Hang, true), (Effect::Delay(delay), false)] {
        let mut hand = Hand::new();
        hand.disk.add_fault(Fault::once(OperationKind::Flush, effect));
        hand.submit(DiskRequest::Flush);
        assert_eq!(hand.disk.next_due().is_none(), is_endless);
        hand.disk.release(Time(9));
        assert_eq!(hand.disk.next_due(), Some(Time(9)));
        assert!(hand.disk.complete_due(Time(8)).is_none());
        assert!(hand.disk.complete_due(Time(9)).is_some());
    }
}
