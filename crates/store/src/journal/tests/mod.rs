//! The journal against crashes, rot, a full and a failing medium.

mod medium;

use super::layout::{COPIES, FRAME_HEADER_BYTES, FrameHeader, Header, HeaderBlock};
use super::{AppendError, Expected, OpenError, Recovered};
use medium::{Bench, Crash, Dice, Medium, header};
use proto::{ClusterId, DiskError, NodeId};

/// What a journal should hold.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Content {
    snapshot: Option<Vec<u8>>,
    records: Vec<Vec<u8>>,
}

impl Content {
    fn of(recovered: Recovered) -> Content {
        Content { snapshot: recovered.snapshot, records: recovered.records }
    }
}

/// One thing that is asked of a journal.
#[derive(Clone, Debug)]
enum Wish {
    Append(Vec<Vec<u8>>),
    Snapshot(Vec<u8>),
}

impl Wish {
    fn random(dice: &mut Dice) -> Wish {
        let length = |dice: &mut Dice| match dice.below(4) {
            0 => dice.below(9000),
            _ => dice.below(60),
        };
        if dice.below(5) == 0 {
            let length = length(dice);
            return Wish::Snapshot(dice.bytes(length));
        }
        let count = 1 + dice.below(3);
        let record = |_| {
            let length = length(dice);
            dice.bytes(length)
        };
        Wish::Append((0..count).map(record).collect())
    }

    fn begin(&self, bench: &mut Bench) {
        match self {
            Wish::Append(records) => bench.begin_append(records.clone()),
            Wish::Snapshot(bytes) => bench.begin_snapshot(bytes.clone()),
        }
    }

    fn applied_to(&self, content: &Content) -> Content {
        match self {
            Wish::Append(records) => {
                let mut content = content.clone();
                content.records.extend(records.iter().cloned());
                content
            }
            Wish::Snapshot(bytes) => Content { snapshot: Some(bytes.clone()), records: Vec::new() },
        }
    }
}

const HALF_BLOCKS: u32 = 24;

/// A history up to its `performed_max`-th disk operation: what was answered, and what was under
/// way. Nothing if creation had not ended.
fn run(bench: &mut Bench, wishes: &[Wish], performed_max: usize) -> Option<(Content, Content)> {
    if !bench.run(performed_max) {
        return None;
    }
    let mut content =
        bench.take_opened().expect("it is created").map(Content::of).expect("created");
    for wish in wishes {
        wish.begin(bench);
        let ended = bench.run(performed_max);
        match bench.take_done() {
            Some(Ok(())) => content = wish.applied_to(&content),
            Some(Err(error)) => assert_eq!(error, AppendError::NoSpace),
            None => {
                assert!(!ended);
                let next = wish.applied_to(&content);
                return Some((content, next));
            }
        }
    }
    Some((content.clone(), content))
}

/// Opens what a crash left, checks what is found, and that the journal goes on from there, twice.
fn check_crash(left: Medium, allowed: Option<&(Content, Content)>, seed: u64, what: &str) {
    let mut dice = Dice(seed);
    // Half of the openings are cut off too.
    let cut = dice.below(24);
    let mut first = Bench::open(left.clone(), seed);
    let ended = first.run(cut);
    let opened = first.take_opened().filter(|_| ended).and_then(Result::ok).map(Content::of);
    let how = Crash::Mixture(seed ^ cut as u64);
    let mut bench = Bench::open(first.medium.crash(&first.in_flight, how), seed);
    let Some((acknowledged, next)) = allowed else {
        match bench.opened() {
            Ok(recovered) => assert_eq!(Content::of(recovered), Content::default(), "{what}"),
            Err(error) => {
                assert_eq!(error, OpenError::Blank, "{what}");
                let created = Bench::create(bench.medium, HALF_BLOCKS, seed).opened();
                assert_eq!(created.map(Content::of), Ok(Content::default()), "{what}");
            }
        }
        return;
    };
    let found = bench.opened().unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut content = Content::of(found);
    assert!(content == *acknowledged || content == *next, "{what}: something else is found");
    assert!(opened.is_none_or(|opened| opened == content), "{what}: what was open is lost");
    for round in 0..2 {
        let wish = Wish::random(&mut dice);
        wish.begin(&mut bench);
        assert!(bench.run(usize::MAX));
        match bench.take_done().expect("it ended") {
            Ok(()) => content = wish.applied_to(&content),
            Err(error) => assert_eq!(error, AppendError::NoSpace, "{what}"),
        }
        bench = Bench::open(bench.medium.crash(&[], Crash::AllOld), seed);
        let found = bench.opened().unwrap_or_else(|error| panic!("{what}, {round}: {error}"));
        assert_eq!(Content::of(found), content, "{what}, {round}");
    }
}

#[test]
fn a_crash_at_any_point_leaves_all_that_was_answered() {
    for seed in 0..8 {
        let mut dice = Dice(seed);
        let wishes: Vec<Wish> = (0..8).map(|_| Wish::random(&mut dice)).collect();
        let pages_max = (seed % 3 == 0).then(|| 30 + dice.below(40));
        let medium = || Medium::limited(pages_max);
        let mut whole = Bench::create(medium(), HALF_BLOCKS, seed);
        run(&mut whole, &wishes, usize::MAX);
        for point in 0..=whole.performed {
            let mut bench = Bench::create(medium(), HALF_BLOCKS, seed);
            let allowed = run(&mut bench, &wishes, point);
            let ways = [Crash::AllOld, Crash::AllNew].into_iter();
            let ways = ways.chain((0..8).map(|torn| Crash::OneTorn(torn * 7 + dice.below(7))));
            let ways = ways.chain((0..8).map(|mixture| Crash::Mixture(seed * 1000 + mixture)));
            for how in ways {
                let left = bench.medium.crash(&bench.in_flight, how);
                let what = format!("seed {seed}, operation {point}, {how:?}");
                check_crash(left, allowed.as_ref(), seed ^ point as u64, &what);
            }
            for killed in 0..6 {
                let left = bench.medium.kill(&bench.in_flight, killed);
                let what = format!("seed {seed}, operation {point}, killed {killed}");
                check_crash(left, allowed.as_ref(), seed ^ point as u64 ^ killed, &what);
            }
        }
    }
}

/// A journal after a history that ended in order, and what it holds.
fn settled(seed: u64) -> (Vec<u8>, Content) {
    let mut dice = Dice(seed);
    let mut wishes: Vec<Wish> = (0..6).map(|_| Wish::random(&mut dice)).collect();
    wishes.push(Wish::Append(vec![b"the last one".to_vec()]));
    let mut bench = Bench::create(Medium::default(), HALF_BLOCKS, seed);
    let (content, _) = run(&mut bench, &wishes, usize::MAX).expect("it ended");
    (bench.medium.crash(&[], Crash::AllOld).durable, content)
}

/// Where the frames of the ruling half lie in one copy: offset, bytes in use, blocks.
fn frames(bytes: &[u8], copy: usize) -> Vec<(usize, usize, usize)> {
    let HeaderBlock::Valid(header) = Header::decode(&bytes[..4096]) else { panic!("no header") };
    let mut frames = Vec::new();
    let mut block = 0;
    loop {
        let at = header.half_offset(copy, header.generation, block) as usize;
        let Some(frame) = FrameHeader::decode(&bytes[at..at + 4096]) else { return frames };
        let used = u32::from_le_bytes(bytes[at + 60..at + 64].try_into().expect("4 bytes"));
        frames.push((at, FRAME_HEADER_BYTES + used as usize, frame.blocks() as usize));
        block += frame.blocks();
    }
}

/// Opens damaged bytes: what is found, and whether both copies are whole and equal afterwards.
fn open_damaged(bytes: Vec<u8>) -> Result<Content, OpenError> {
    let mut bench = Bench::open(Medium::of(bytes), 1);
    let content = Content::of(bench.opened()?);
    let bytes = bench.medium.crash(&[], Crash::AllOld).durable;
    assert_eq!(bytes[..4096], bytes[4096..8192], "the headers differ");
    let copies = COPIES.map(|copy| frames(&bytes, copy));
    for ((first, used, _), (second, ..)) in copies[0].iter().zip(&copies[1]) {
        assert_eq!(bytes[*first..first + used], bytes[*second..second + used]);
    }
    assert_eq!(copies[0].len(), copies[1].len());
    for (at, _, blocks) in copies.iter().map(|frames| frames.last().expect("a snapshot")) {
        let behind = &bytes[at + blocks * 4096..at + (blocks + 1) * 4096];
        assert!(proto::is_zero(behind), "the block behind the last frame is not zero");
    }
    Ok(content)
}

#[test]
fn a_flipped_bit_anywhere_in_one_copy_is_survived_and_repaired() {
    let mut dice = Dice(3);
    for seed in 0..6 {
        let (bytes, content) = settled(seed);
        for copy in COPIES {
            let header = copy * 4096..copy * 4096 + 80;
            let frames = frames(&bytes, copy);
            let end = frames.last().map(|(at, _, blocks)| at + blocks * 4096).expect("frames");
            let bytes_of_frames = frames.iter().flat_map(|&(at, used, blocks)| {
                (at..at + FRAME_HEADER_BYTES)
                    .chain((at..at + used).step_by(37))
                    .chain((at + used..at + blocks * 4096).step_by(509))
            });
            for at in header.chain(bytes_of_frames).chain((end..end + 4096).step_by(97)) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << dice.below(8);
                assert_eq!(open_damaged(damaged).as_ref(), Ok(&content), "byte {at} of {seed}");
            }
        }
    }
}

#[test]
fn a_whole_copy_that_is_garbage_or_gone_is_survived() {
    for seed in 0..6 {
        let (bytes, content) = settled(seed);
        let mut dice = Dice(seed);
        for copy in COPIES {
            for fill in [0, 1] {
                let mut damaged = bytes.clone();
                let halves = (2 + copy * 2 * HALF_BLOCKS as usize) * 4096;
                let end = (halves + 2 * HALF_BLOCKS as usize * 4096).min(bytes.len());
                for byte in &mut damaged[halves..end] {
                    *byte = if fill == 0 { 0 } else { dice.below(256) as u8 };
                }
                damaged[copy * 4096] ^= 0xff;
                assert_eq!(open_damaged(damaged).as_ref(), Ok(&content), "copy {copy} of {seed}");
            }
        }
        for cut in 0..2 {
            let mut damaged = bytes.clone();
            damaged.truncate((2 + 2 * HALF_BLOCKS as usize) * 4096 + cut * 5000);
            assert_eq!(open_damaged(damaged).as_ref(), Ok(&content), "cut short, {seed}");
        }
    }
}

#[test]
fn verifying_finds_rot_while_the_journal_is_open() {
    let mut dice = Dice(9);
    for seed in 0..6 {
        let (bytes, content) = settled(seed);
        let copies = COPIES.map(|copy| frames(&bytes, copy));
        let check = |damage: &[usize], append: bool, repaired: Option<u32>| {
            let mut bench = Bench::open(Medium::of(bytes.clone()), seed);
            assert_eq!(bench.opened().map(Content::of).as_ref(), Ok(&content));
            for at in damage {
                bench.medium.durable[*at] ^= 1;
            }
            bench.begin_verify();
            let wish = Wish::Append(vec![b"meanwhile".to_vec()]);
            if append {
                wish.begin(&mut bench);
            }
            assert!(bench.run(usize::MAX));
            let found = bench.take_verified().expect("it ended");
            assert_eq!(found.as_ref().ok(), repaired.as_ref(), "seed {seed}");
            assert_eq!(bench.take_done(), append.then_some(Ok(())));
            let mut expected = content.clone();
            if append {
                expected = wish.applied_to(&expected);
            }
            if found.is_err() {
                let wish = Wish::Snapshot(b"all anew".to_vec());
                wish.begin(&mut bench);
                assert!(bench.run(usize::MAX));
                expected = wish.applied_to(&expected);
            }
            let bytes = bench.medium.crash(&[], Crash::AllOld).durable;
            assert_eq!(open_damaged(bytes), Ok(expected));
        };
        check(&[], false, Some(0));
        check(&[], true, Some(0));
        check(&[dice.below(80)], true, Some(1));
        check(&[dice.below(80), 4096 + dice.below(80)], false, Some(2));
        for (first, second) in copies[0].iter().zip(&copies[1]) {
            let (first, second) = (first.0 + dice.below(first.1), second.0 + dice.below(second.1));
            check(&[first], true, Some(1));
            check(&[second], false, Some(1));
            check(&[first, second], false, None);
        }
        let (last, _, blocks) = copies[1].last().expect("frames");
        check(&[last + blocks * 4096 + 9], true, Some(1));
    }
}

#[test]
fn verifying_notices_a_last_record_that_became_zeros_in_both_copies() {
    let (bytes, _) = settled(1);
    let mut bench = Bench::open(Medium::of(bytes.clone()), 1);
    bench.opened().expect("whole");
    for copy in COPIES {
        let (at, _, blocks) = *frames(&bytes, copy).last().expect("frames");
        bench.medium.durable[at..at + blocks * 4096].fill(0);
    }
    bench.begin_verify();
    assert!(bench.run(usize::MAX));
    assert!(matches!(bench.take_verified(), Some(Err(OpenError::Damaged { .. }))));
    assert!(bench.journal.is_ready(), "a snapshot can make it good");
}

#[test]
fn rot_of_a_record_in_both_copies_is_refused() {
    let mut dice = Dice(4);
    for seed in 0..40 {
        let (bytes, _) = settled(seed);
        let copies = COPIES.map(|copy| frames(&bytes, copy));
        for (first, second) in copies[0].iter().zip(&copies[1]) {
            let mut damaged = bytes.clone();
            for (at, used, _) in [first, second] {
                damaged[at + dice.below(*used)] ^= 1 << dice.below(8);
            }
            let found = open_damaged(damaged);
            assert!(matches!(found, Err(OpenError::Damaged { .. })), "seed {seed}: {found:?}");
        }
        let mut damaged = bytes.clone();
        damaged[dice.below(80)] ^= 1;
        damaged[4096 + dice.below(80)] ^= 1;
        assert_eq!(open_damaged(damaged), Err(OpenError::NoHeader), "seed {seed}");
    }
}

#[test]
fn a_record_lost_in_both_copies_before_later_ones_is_refused() {
    for seed in 0..10 {
        let (bytes, _) = settled(seed);
        let copies = COPIES.map(|copy| frames(&bytes, copy));
        for place in 0..copies[0].len() - 1 {
            let mut damaged = bytes.clone();
            for (at, _, blocks) in copies.iter().map(|frames| frames[place]) {
                damaged[at..at + blocks * 4096].fill(0);
            }
            let found = open_damaged(damaged);
            assert!(matches!(found, Err(OpenError::Damaged { .. })), "seed {seed}: {found:?}");
        }
    }
}

#[test]
fn unreadable_sectors_of_one_copy_are_survived_and_of_both_refused() {
    for seed in 0..6 {
        let (bytes, content) = settled(seed);
        let copies = COPIES.map(|copy| frames(&bytes, copy));
        for place in 0..=copies[0].len() {
            let at = |copy: usize| match copies[copy].get(place) {
                Some((at, ..)) => at / 512,
                None => {
                    copies[copy].last().map(|(at, _, blocks)| (at + blocks * 4096) / 512).unwrap()
                }
            };
            for bad in [vec![at(0)], vec![at(1)], vec![at(0), at(1)], vec![copies[0].len() % 2 * 8]]
            {
                let mut medium = Medium::of(bytes.clone());
                medium.unreadable = bad.iter().copied().collect();
                let found = Bench::open(medium, 1).opened().map(Content::of);
                if bad.len() == 1 {
                    assert_eq!(found.as_ref(), Ok(&content), "seed {seed}, place {place}");
                } else {
                    assert!(matches!(found, Err(OpenError::Damaged { .. })), "{found:?}");
                }
            }
        }
    }
}

#[test]
fn without_space_an_append_is_refused_and_nothing_is_lost() {
    let mut bench = Bench::create(Medium::default(), HALF_BLOCKS, 1);
    bench.opened().expect("created");
    bench.medium.pages_max = Some(0);
    let (mut content, mut refused) = (Content::default(), 0);
    for number in 0..20u8 {
        let wish = match number {
            15 => Wish::Snapshot(vec![number; 100]),
            _ => Wish::Append(vec![vec![number; 100]]),
        };
        wish.begin(&mut bench);
        assert!(bench.run(usize::MAX));
        match bench.take_done().expect("it ended") {
            Ok(()) => content = wish.applied_to(&content),
            Err(error) => {
                assert_eq!(error, AppendError::NoSpace);
                refused += 1;
            }
        }
        let reopened = Bench::open(bench.medium.crash(&[], Crash::AllOld), 1).opened();
        assert_eq!(reopened.map(Content::of).as_ref(), Ok(&content));
    }
    assert!(content.snapshot.is_some(), "a snapshot finds its place on a full medium");
    assert!(content.records.len() >= 3, "and appends do behind it");
    assert!(refused > 5);
    bench.medium.pages_max = None;
    let wish = Wish::Append(vec![vec![1; 9000]]);
    wish.begin(&mut bench);
    assert!(bench.run(usize::MAX));
    assert_eq!(bench.take_done(), Some(Ok(())), "space is there again");
}

/// The half for the next snapshot has space from when it was made, or from its last time; but a
/// snapshot was refused because there was none to prepare blocks behind it ahead of need.
#[test]
fn without_space_a_snapshot_that_fits_into_its_half_is_taken() {
    let mut bench = Bench::create(Medium::default(), HALF_BLOCKS, 1);
    bench.opened().expect("created");
    bench.medium.pages_max = Some(0);
    for length in [100, 5000, 13_000] {
        let wish = Wish::Snapshot(vec![1; length]);
        wish.begin(&mut bench);
        assert!(bench.run(usize::MAX));
        assert_eq!(bench.take_done(), Some(Ok(())), "a snapshot of {length} bytes");
        let reopened = Bench::open(bench.medium.crash(&[], Crash::AllOld), 1).opened();
        assert_eq!(reopened.map(Content::of), Ok(wish.applied_to(&Content::default())));
    }
    let wish = Wish::Snapshot(vec![1; 17_000]);
    wish.begin(&mut bench);
    assert!(bench.run(usize::MAX));
    assert_eq!(bench.take_done(), Some(Err(AppendError::NoSpace)), "there is no more");
}

/// Want of space in one copy hid that the other one had failed, and the medium was used again.
#[test]
fn a_failure_beside_want_of_space_is_a_failure() {
    for seed in 0..8 {
        let mut bench = Bench::create(Medium::default(), HALF_BLOCKS, seed);
        bench.opened().expect("created");
        bench.medium.pages_max = Some(0);
        bench.fail_after = Some(1);
        Wish::Snapshot(vec![1; 17_000]).begin(&mut bench);
        assert!(bench.run(usize::MAX));
        let failed = Some(Err(AppendError::Failed(DiskError::Io(5))));
        assert_eq!(bench.take_done(), failed, "seed {seed}");
    }
}

#[test]
fn after_a_failed_operation_nothing_more_is_taken() {
    for fails in 0..8 {
        let mut bench = Bench::create(Medium::default(), HALF_BLOCKS, 1);
        bench.opened().expect("created");
        bench.fail_after = Some(fails);
        let wish = Wish::Snapshot(vec![1; 100]);
        wish.begin(&mut bench);
        assert!(bench.run(usize::MAX));
        let failed = Some(Err(AppendError::Failed(DiskError::Io(5))));
        assert_eq!(bench.take_done(), failed, "operation {fails}");
        let performed = bench.performed;
        Wish::Append(vec![vec![1]]).begin(&mut bench);
        assert!(bench.run(usize::MAX));
        assert_eq!(bench.take_done(), failed);
        assert_eq!(bench.performed, performed, "a failed medium is used again");
    }
}

#[test]
fn another_identity_or_version_or_nothing_at_all_is_refused_unchanged() {
    let (bytes, _) = settled(1);
    let open = |bytes: &[u8], cluster, node| {
        let expected = Expected { cluster, node };
        let mut effects = Vec::new();
        let journal = super::Journal::open_sized(expected, 4, bytes.len() as u64, &mut effects);
        drop(journal);
        let HeaderBlock::Valid(header) = Header::decode(bytes) else { return None };
        super::opening::check(header, expected).err()
    };
    assert_eq!(open(&bytes, Some(ClusterId(11)), Some(NodeId(22))), None);
    let (found, expected) = (ClusterId(11), ClusterId(12));
    let wrong = Some(OpenError::WrongCluster { found, expected });
    assert_eq!(open(&bytes, Some(expected), None), wrong);
    let (found, expected) = (NodeId(22), NodeId(23));
    assert_eq!(open(&bytes, None, Some(expected)), Some(OpenError::WrongNode { found, expected }));
    let create = |bytes: Vec<u8>| {
        let mut bench = Bench::create(Medium::of(bytes.clone()), HALF_BLOCKS, 1);
        let result = bench.opened().map(|_| ());
        assert!(result.is_ok() || bench.medium.crash(&[], Crash::AllNew).durable == bytes);
        result
    };
    assert_eq!(create(bytes.clone()), Err(OpenError::Exists));
    assert_eq!(create(vec![7; 40960]), Err(OpenError::NoHeader));
    assert_eq!(create(Vec::new()), Ok(()));
    let found = |bytes| Bench::open(Medium::of(bytes), 1).opened().map(|_| ());
    assert_eq!(found(Vec::new()), Err(OpenError::Blank));
    assert_eq!(found(vec![0; 40960]), Err(OpenError::Blank));
    assert_eq!(found(vec![7; 40960]), Err(OpenError::NoHeader));
    let mut later = bytes;
    for copy in COPIES {
        later[copy * 4096 + 8] = 2;
        later[copy * 4096 + 16..copy * 4096 + 24].fill(0);
        let checksum = proto::crc64(&later[copy * 4096..copy * 4096 + 80]);
        later[copy * 4096 + 16..copy * 4096 + 24].copy_from_slice(&checksum.to_le_bytes());
    }
    assert_eq!(found(later), Err(OpenError::Version(2)));
    assert_eq!(header(5).half_offset(1, 1, 2), (2 + 15 + 2) * 4096);
}
