//! The driver against real files, with both performers, and compared with a model.

use super::*;
use proto::{BLOCK_SIZE, Buffer, DiskError, DiskRequest, DiskToken, Payload};
use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    path::Path,
    time::{Duration, Instant},
};
use store::MediumKind;

/// How long a completion may take before the test calls it lost.
const PATIENCE: Duration = Duration::from_secs(10);
const TOKEN: Token = Token(7);

/// A driver with its poll: waits for completions as the daemon does.
struct Rig {
    driver: Driver,
    poll: mio::Poll,
    next: u64,
}

impl Rig {
    fn new(path: &Path, performer: Performer, direct: bool) -> Rig {
        let how = OpenHow { kind: MediumKind::File, create: true, direct };
        Rig::on(Medium::open(path, how).expect("the medium opens"), performer)
    }

    fn on(medium: Medium, performer: Performer) -> Rig {
        let driver = Driver::new(vec![medium], performer).expect("a driver");
        let poll = mio::Poll::new().expect("a poll");
        driver.register(poll.registry(), TOKEN).expect("registered");
        Rig { driver, poll, next: 0 }
    }

    fn begin(&mut self, request: DiskRequest) -> DiskToken {
        let token = DiskToken(self.next);
        self.next += 1;
        self.driver.begin(0, DiskOp { token, request });
        token
    }

    /// Waits for everything in flight.
    fn settle(&mut self) -> BTreeMap<u64, Result<Option<Buffer>, DiskError>> {
        let (mut ends, mut done) = (BTreeMap::new(), Vec::new());
        let mut events = mio::Events::with_capacity(8);
        while self.driver.in_flight() > 0 {
            let started = Instant::now();
            let waited = self.driver.wait(&mut self.poll, &mut events, Some(PATIENCE), &mut done);
            waited.expect("waited");
            assert!(started.elapsed() < PATIENCE, "{} are lost", self.driver.in_flight());
            for (medium, end) in done.drain(..) {
                assert_eq!(medium, 0);
                assert!(ends.insert(end.token.0, end.result).is_none(), "ended twice");
            }
        }
        ends
    }

    fn run(&mut self, request: DiskRequest) -> Result<Option<Buffer>, DiskError> {
        let token = self.begin(request);
        self.settle().remove(&token.0).expect("the operation ended")
    }

    fn read(&mut self, block: u64, blocks: usize) -> Result<Buffer, DiskError> {
        let buffer = Buffer::stale(blocks * BLOCK_SIZE);
        let request = DiskRequest::Read { offset: block * BLOCK_SIZE as u64, buffer };
        self.run(request).map(|buffer| buffer.expect("a read brings its buffer"))
    }
}

fn filled(blocks: usize, byte: u8) -> Payload {
    let mut buffer = Buffer::zeroed(blocks * BLOCK_SIZE);
    buffer.as_mut_slice().fill(byte);
    buffer.freeze()
}

fn at(block: u64) -> u64 {
    block * BLOCK_SIZE as u64
}

/// Runs the test with each performer on a fresh file.
fn with_each(test: impl Fn(Rig)) {
    let directory = tempfile::tempdir().expect("a scratch directory");
    for (name, performer) in [("ring", Performer::Ring), ("threads", Performer::Threads)] {
        test(Rig::new(&directory.path().join(name), performer, true));
    }
}

#[test]
fn every_operation_does_what_it_says() {
    with_each(|mut rig| {
        let allocate = DiskRequest::Allocate { offset: 0, length: at(1024), zero: true };
        assert!(matches!(rig.run(allocate), Ok(None)));
        assert!(rig.read(0, 1024).expect("zeroed").as_slice().iter().all(|&byte| byte == 0));

        let payloads = vec![filled(1, 1), filled(2, 2), filled(1, 3)];
        assert!(matches!(rig.run(DiskRequest::Write { offset: at(5), payloads }), Ok(None)));
        assert!(matches!(rig.run(DiskRequest::Flush), Ok(None)));
        let read = rig.read(4, 6).expect("written");
        let bytes: Vec<u8> = read.as_slice().chunks(BLOCK_SIZE).map(|block| block[7]).collect();
        assert_eq!(bytes, [0, 1, 2, 2, 3, 0]);

        // Allocation without zeroing keeps what is there, and grows the medium.
        let allocate = DiskRequest::Allocate { offset: at(5), length: at(2048), zero: false };
        assert!(matches!(rig.run(allocate), Ok(None)));
        assert_eq!(rig.read(5, 1).expect("kept").as_slice()[0], 1);
        assert_eq!(rig.read(2000, 1).expect("new").as_slice()[0], 0);

        let discard = DiskRequest::Discard { offset: at(0), length: at(256) };
        assert!(matches!(rig.run(discard), Ok(None)));
        assert_eq!(rig.read(5, 1).expect("a hole").as_slice()[0], 0);
    });
}

#[test]
fn reading_past_the_end_is_an_error() {
    with_each(|mut rig| {
        rig.run(DiskRequest::Write { offset: 0, payloads: vec![filled(2, 1)] }).expect("written");
        assert_eq!(rig.read(1, 2).expect_err("short"), DiskError::Io(libc::EIO));
        assert_eq!(rig.read(9, 1).expect_err("nothing"), DiskError::Io(libc::EIO));
    });
}

#[test]
fn more_operations_than_the_ring_holds_all_end() {
    with_each(|mut rig| {
        let count = 3 * proto::limits::DISK_OPERATIONS_IN_FLIGHT_MAX as u64;
        for number in 0..count {
            let payloads = vec![filled(1, number as u8)];
            rig.begin(DiskRequest::Write { offset: at(number), payloads });
        }
        let ends = rig.settle();
        assert_eq!(ends.len(), count as usize);
        assert!(ends.values().all(|end| matches!(end, Ok(None))));
        let all = rig.read(0, count as usize).expect("written");
        for (number, block) in all.as_slice().chunks(BLOCK_SIZE).enumerate() {
            assert!(block.iter().all(|&byte| byte == number as u8), "block {number}");
        }
    });
}

#[test]
fn a_write_of_more_pieces_than_one_call_takes_is_whole() {
    with_each(|mut rig| {
        let payloads: Vec<_> = (0..2500).map(|number| filled(1, number as u8)).collect();
        rig.run(DiskRequest::Write { offset: 0, payloads }).expect("written");
        let all = rig.read(0, 2500).expect("written");
        for (number, block) in all.as_slice().chunks(BLOCK_SIZE).enumerate() {
            assert_eq!(block[0], number as u8);
        }
    });
}

#[test]
fn a_full_medium_is_told_apart_from_a_broken_one() {
    for performer in [Performer::Ring, Performer::Threads] {
        let file = OpenOptions::new().read(true).write(true).open("/dev/full").expect("opens");
        let mut rig = Rig::on(Medium::for_test(file, MediumKind::File, 0), performer);
        let write = DiskRequest::Write { offset: 0, payloads: vec![filled(1, 1)] };
        assert_eq!(rig.run(write).expect_err("full"), DiskError::NoSpace);
    }
}

#[test]
fn a_device_has_only_the_space_it_has() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    for performer in [Performer::Ring, Performer::Threads] {
        let path = directory.path().join("device");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.expect("opens");
        file.set_len(at(64)).expect("sized");
        let mut rig = Rig::on(Medium::for_test(file, MediumKind::Device, at(64)), performer);
        let allocate = |offset, length, zero| DiskRequest::Allocate { offset, length, zero };
        assert!(rig.run(allocate(0, at(64), false)).is_ok());
        assert_eq!(rig.run(allocate(at(60), at(5), false)).expect_err(""), DiskError::NoSpace);
        assert_eq!(
            rig.run(allocate(u64::MAX - 4095, at(5), true)).expect_err(""),
            DiskError::NoSpace
        );
        rig.run(DiskRequest::Write { offset: 0, payloads: vec![filled(64, 5)] }).expect("written");
        assert!(rig.run(allocate(at(1), at(2), true)).is_ok());
        let all = rig.read(0, 4).expect("read");
        let bytes: Vec<u8> = all.as_slice().chunks(BLOCK_SIZE).map(|block| block[0]).collect();
        assert_eq!(bytes, [5, 0, 0, 5]);
        // A file is no device: the discard is refused by the kernel, which is no error.
        assert!(rig.run(DiskRequest::Discard { offset: 0, length: at(64) }).is_ok());
        assert_eq!(rig.read(0, 1).expect("read").as_slice()[0], 5);
    }
}

#[test]
fn operations_without_length_end_at_once() {
    with_each(|mut rig| {
        assert!(rig.run(DiskRequest::Write { offset: 0, payloads: vec![] }).is_ok());
        assert!(rig.run(DiskRequest::Discard { offset: 0, length: 0 }).is_ok());
        assert!(rig.run(DiskRequest::Allocate { offset: 0, length: 0, zero: true }).is_ok());
    });
}

#[test]
fn a_driver_that_is_dropped_waits_for_what_is_in_flight() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    for performer in [Performer::Ring, Performer::Threads] {
        let path = directory.path().join("disk");
        let mut rig = Rig::new(&path, performer, true);
        for block in 0..64 {
            rig.begin(DiskRequest::Write { offset: at(block), payloads: vec![filled(1, 9)] });
        }
        rig.driver.enter();
        drop(rig);
        let bytes = std::fs::read(&path).expect("readable");
        assert!(performer == Performer::Threads || bytes.len() == 64 * BLOCK_SIZE);
        std::fs::remove_file(&path).expect("removed");
    }
}

/// Splitmix64: a seeded stream of numbers.
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut x = *state;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[test]
fn random_operations_agree_with_a_model() {
    const BLOCKS: u64 = 128;
    with_each(|mut rig| {
        let mut state = 4711;
        let allocate = DiskRequest::Allocate { offset: 0, length: at(BLOCKS), zero: true };
        rig.run(allocate).expect("allocated");
        let mut model = vec![0u8; BLOCKS as usize];
        for _ in 0..100 {
            // Within a round the ranges do not overlap: what runs at once has no order.
            let (mut reads, mut block) = (Vec::new(), draw(&mut state) % 4);
            while block < BLOCKS {
                let count = (1 + draw(&mut state) % 8).min(BLOCKS - block);
                let range = block as usize..(block + count) as usize;
                match draw(&mut state) % 8 {
                    0..=2 => {
                        let byte = draw(&mut state) as u8;
                        model[range].fill(byte);
                        let payloads = vec![filled(1, byte); count as usize];
                        rig.begin(DiskRequest::Write { offset: at(block), payloads });
                    }
                    3 => {
                        model[range].fill(0);
                        let (offset, length) = (at(block), at(count));
                        rig.begin(DiskRequest::Allocate { offset, length, zero: true });
                    }
                    4 => {
                        rig.begin(DiskRequest::Flush);
                    }
                    _ => {
                        let buffer = Buffer::stale(count as usize * BLOCK_SIZE);
                        let token = rig.begin(DiskRequest::Read { offset: at(block), buffer });
                        reads.push((token, model[range].to_vec()));
                    }
                }
                block += count + draw(&mut state) % 3;
            }
            let mut ends = rig.settle();
            for (token, expected) in reads {
                let end = ends.remove(&token.0).expect("ended").expect("read").expect("buffer");
                let found: Vec<u8> = end.as_slice().chunks(BLOCK_SIZE).map(|b| b[99]).collect();
                assert_eq!(found, expected);
            }
            assert!(ends.values().all(|end| matches!(end, Ok(None))));
        }
    });
}

#[test]
fn a_medium_has_one_owner() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = directory.path().join("disk");
    let how = OpenHow { kind: MediumKind::File, create: true, direct: true };
    let first = Medium::open(&path, how).expect("opens");
    let error = Medium::open(&path, how).expect_err("locked");
    assert!(error.contains("already in use"), "{error}");
    drop(first);
    Medium::open(&path, how).expect("opens again");
}

#[test]
fn media_that_cannot_be_used_are_refused_with_a_remedy() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let file = |create| OpenHow { kind: MediumKind::File, create, direct: true };
    let device = OpenHow { kind: MediumKind::Device, create: false, direct: true };
    let check = |path: &Path, how, part: &str| {
        let error = Medium::open(path, how).expect_err(part);
        assert!(error.contains(part), "{error}");
    };
    check(&directory.path().join("absent"), file(false), "is missing");
    check(&directory.path().join("absent"), device, "no device");
    check(directory.path(), file(false), "cannot open");
    std::fs::write(directory.path().join("file"), b"").expect("written");
    check(&directory.path().join("file"), device, "no block device");
    check(Path::new("/dev/null"), OpenHow { direct: false, ..device }, "no block device");
    let how = OpenHow { direct: false, ..file(false) };
    check(Path::new("/dev/null"), how, "no regular file");
    check(Path::new("/dev/null"), file(false), "--direct-io off");
}

/// Operations run on the first medium all the while.
#[test]
fn media_come_and_go_while_others_work() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let how = OpenHow { kind: MediumKind::File, create: true, direct: true };
    let open = |name: &str| Medium::open(&directory.path().join(name), how).expect("it opens");
    for performer in [Performer::Ring, Performer::Threads] {
        let mut rig = Rig::on(open("first"), performer);
        let begin = |rig: &mut Rig, medium: usize, block: u64, byte: u8| {
            let token = DiskToken(rig.next);
            rig.next += 1;
            let request = DiskRequest::Write { offset: at(block), payloads: vec![filled(1, byte)] };
            rig.driver.begin(medium, DiskOp { token, request });
        };
        let settle = |rig: &mut Rig| {
            let (mut events, mut done) = (mio::Events::with_capacity(8), Vec::new());
            while rig.driver.in_flight() > 0 {
                let waited = rig.driver.wait(&mut rig.poll, &mut events, Some(PATIENCE), &mut done);
                waited.expect("waited");
                done.drain(..).for_each(|(_, end)| assert!(matches!(end.result, Ok(None))));
            }
        };
        (0..64).for_each(|block| begin(&mut rig, 0, block, 1));
        let second = rig.driver.add(open("second")).expect("it is taken");
        let third = rig.driver.add(open("third")).expect("it is taken");
        assert_eq!((second, third), (1, 2));
        for block in 0..64 {
            begin(&mut rig, 0, 64 + block, 1);
            begin(&mut rig, second, block, 2);
            begin(&mut rig, third, block, 3);
        }
        // It goes once what was begun on it has ended; the others keep their numbers.
        rig.driver.remove(second);
        begin(&mut rig, 0, 128, 1);
        begin(&mut rig, third, 64, 3);
        settle(&mut rig);
        assert_eq!(rig.driver.count(), 2);
        let content = |name: &str| std::fs::read(directory.path().join(name)).expect("read");
        for (name, byte, blocks) in [("first", 1, 129), ("second", 2, 64), ("third", 3, 65)] {
            let content = content(name);
            assert_eq!(content.len(), blocks * BLOCK_SIZE, "{name}");
            assert!(content.iter().all(|at| *at == byte), "{name}");
        }
        // It is closed, so that it can be opened again, and its number is another one's then.
        let started = Instant::now();
        let fourth = rig.driver.add(open("second")).expect("it is taken");
        assert_eq!(fourth, second);
        assert!(started.elapsed() < PATIENCE / 2, "it was open still");
        begin(&mut rig, fourth, 0, 4);
        settle(&mut rig);
        assert_eq!(content("second")[0], 4);
        drop(rig);
        for name in ["first", "second", "third"] {
            std::fs::remove_file(directory.path().join(name)).expect("removed");
        }
    }
}

#[test]
fn more_media_than_a_node_may_have_are_refused() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let how = OpenHow { kind: MediumKind::File, create: true, direct: false };
    let open = |number: usize| {
        Medium::open(&directory.path().join(number.to_string()), how).expect("it opens")
    };
    let mut driver = Driver::new(vec![open(0)], Performer::Auto).expect("a driver");
    for number in 1..=proto::limits::NODE_DISKS_MAX {
        assert_eq!(driver.add(open(number)), Ok(number));
    }
    let sentence = driver.add(open(1000)).expect_err("it is full");
    assert!(sentence.contains("64 disks at most"), "{sentence}");
    driver.remove(7);
    assert_eq!(driver.add(open(1001)), Ok(7));
}
