//! Copiers between model disks.

use crate::disk_model::{Cell, ModelDisk, Random, block_of};
use crate::{Becomes, Copied, Copier, Copy, CopyError, CopyLayer};
use proto::limits::{COPY_QUESTIONS_MAX, MEMBER_RETRY_MS};
use proto::{
    BlockRange, Change, ConfigurationNumber, DiskId, Duration, Generation, LayerId, LineageId,
    MemberError, MemberReply, MemberRequest, ObjectKey, Permit, Stamp, Time, Under, Write,
};
use std::collections::BTreeMap;

const LINEAGE: LineageId = LineageId(1);
const LAYERS: [u64; 3] = [1, 2, 3];
const PERMIT: Permit = Permit::Attempt { under: UNDER, attempt: 5 };
const UNDER: Under = Under { copies: 3, bits: 2, number: ConfigurationNumber(1) };
const TARGET: usize = 0;

/// Disk 0 is the target, the others are sources.
struct Bench {
    disks: Vec<ModelDisk>,
    copier: Copier,
    now: Time,
}

fn key(layer: u64) -> ObjectKey {
    ObjectKey { layer: LayerId(layer), index: 0 }
}

fn stamp(generation: u64, sequence: u64) -> Stamp {
    Stamp { generation: Generation(generation), sequence }
}

fn write(disk: &mut ModelDisk, layer: u64, new: Stamp, change: Change) {
    let previous = disk.stamp(LINEAGE, key(layer)).stamp;
    let (key, settled) = (key(layer), Stamp::default());
    let write =
        Write { lineage: LINEAGE, key, under: UNDER, previous, stamp: new, settled, change };
    disk.handle(&MemberRequest::Write(write)).expect("it fits");
}

fn data(block: u32, word: u64) -> Change {
    Change::Data { first: block, payload: block_of(word), detect_zeroes: true }
}

fn with_layers(layers: u64) -> ModelDisk {
    let mut disk = ModelDisk::new();
    for layer in 2..=layers {
        let (layer, parent) = (LayerId(layer), LayerId(layer - 1));
        let (lineage, generation) = (LINEAGE, Generation(1));
        let open = MemberRequest::OpenLayer { lineage, generation, layer, parent };
        disk.handle(&open).expect("it is new");
    }
    disk
}

fn order(becomes: Becomes, sources: usize) -> Copy {
    let layer = |layer: u64| CopyLayer {
        layer: LayerId(layer),
        parent: LayerId(layer - 1),
        becomes,
        is_above: false,
    };
    Copy {
        lineage: LINEAGE,
        index: 0,
        layers: LAYERS.map(layer).to_vec(),
        sources: (1..=sources).map(|disk| DiskId(disk as u128)).collect(),
        target: DiskId(TARGET as u128),
        permit: PERMIT,
        generation: Generation(1),
    }
}

impl Bench {
    fn new(disks: Vec<ModelDisk>, becomes: Becomes) -> Bench {
        let copier = Copier::begin(order(becomes, disks.len() - 1));
        Bench { disks, copier, now: Time(1) }
    }

    /// Runs to the end. Whoever looks at a request may change the world before, and answer instead
    /// of the disk.
    fn run(
        &mut self,
        mut meddle: impl FnMut(
            &mut [ModelDisk],
            usize,
            &MemberRequest,
        ) -> Option<Result<MemberReply, MemberError>>,
    ) -> Result<Copied, CopyError> {
        for _ in 0..10_000 {
            if let Some(outcome) = self.copier.outcome() {
                return outcome.clone();
            }
            let mut asked = Vec::new();
            while let Some((question, disk, request)) = self.copier.poll(self.now) {
                asked.push((question, disk.0 as usize, request));
            }
            assert!(asked.len() <= COPY_QUESTIONS_MAX);
            if asked.is_empty() {
                self.now = self.copier.deadline().expect("it waits for something");
            }
            for (question, disk, request) in asked {
                let answer = meddle(&mut self.disks, disk, &request)
                    .unwrap_or_else(|| self.disks[disk].handle(&request));
                self.copier.handle(self.now, question, answer);
            }
        }
        panic!("a copy does not end");
    }

    fn is_equal(&self, source: usize) -> bool {
        LAYERS.iter().all(|layer| {
            let (one, other) = (&self.disks[TARGET], &self.disks[source]);
            let same_row = one.row(LINEAGE, key(*layer)).map(|row| row.stamp)
                == other.row(LINEAGE, key(*layer)).map(|row| row.stamp);
            same_row && one.cells(LINEAGE, key(*layer)) == other.cells(LINEAGE, key(*layer))
        })
    }
}

/// A disk with some history: few blocks, all kinds of content, some layers untouched.
fn random_disk(random: &mut Random, generation: u64) -> ModelDisk {
    let mut disk = with_layers(3);
    let mut sequence = 0;
    for layer in LAYERS {
        if random.chance(300) {
            continue;
        }
        for _ in 0..random.below(6) {
            sequence += 1;
            let blocks = BlockRange::new(random.below(20) as u32 * 50, 1 + random.below(3) as u32);
            let blocks = blocks.expect("blocks of an object");
            let change = match random.below(4) {
                0 => Change::Zero { blocks },
                1 => Change::Absent { blocks },
                _ => data(blocks.first(), random.below(5)),
            };
            write(&mut disk, layer, stamp(generation, sequence), change);
        }
    }
    disk
}

#[test]
fn whatever_two_disks_have_they_are_equal_afterwards() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let source = random_disk(&mut random, 5);
        let target = match random.below(3) {
            0 => ModelDisk::new(),
            _ => random_disk(&mut random, 4),
        };
        let mut bench = Bench::new(vec![target, source], Becomes::AsSource);
        let outcome = bench.run(|_, _, _| random.chance(100).then_some(Err(MemberError::Busy)));
        assert!(outcome.as_ref().is_ok_and(|copied| copied.is_complete), "{seed}: {outcome:?}");
        assert!(bench.is_equal(1), "seed {seed}");
    }
}

#[test]
fn a_newcomer_is_told_of_a_layer_below_which_everything_was_dropped() {
    let mut source = with_layers(2);
    write(&mut source, 2, stamp(5, 1), data(3, 7));
    let mut copy = order(Becomes::AsSource, 1);
    copy.layers.retain(|it| it.layer == LayerId(2));
    copy.layers[0].parent = LayerId(0);
    let disks = vec![ModelDisk::new(), source];
    let mut bench = Bench { disks, copier: Copier::begin(copy), now: Time(1) };
    assert!(bench.run(|_, _, _| None).is_ok_and(|copied| copied.is_complete));
    assert!(bench.is_equal(1));
}

#[test]
fn what_is_written_meanwhile_is_marked_as_incomplete() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let mut source = with_layers(3);
        (0..40).for_each(|at| write(&mut source, 3, stamp(5, at + 1), data(at as u32 * 2, at)));
        let mut history = BTreeMap::from([(stamp(5, 40), source.cells(LINEAGE, key(3)))]);
        let mut bench = Bench::new(vec![with_layers(3), source], Becomes::AsSource);
        let (mut sequence, mut written) = (100, 0);
        let outcome = bench.run(|disks, _, _| {
            if random.chance(20) {
                sequence += 1;
                written += 1;
                let block = random.below(80) as u32;
                write(&mut disks[1], 3, stamp(5, sequence), data(block, 1000 + sequence));
                history.insert(stamp(5, sequence), disks[1].cells(LINEAGE, key(3)));
            }
            None
        });
        let copied = outcome.expect("nothing is in the way");
        let has = bench.disks[TARGET].row(LINEAGE, key(3)).expect("it was adopted").stamp;
        assert_eq!(copied.is_complete, has != Stamp::INCOMPLETE, "seed {seed}");
        assert!(copied.is_complete || written > 0, "seed {seed}");
        // Equal stamps are equal content.
        let content = bench.disks[TARGET].cells(LINEAGE, key(3));
        assert!(!copied.is_complete || history[&has] == content, "seed {seed}");
    }
}

#[test]
fn a_given_stamp_is_given_even_where_content_is_equal() {
    let given = Becomes::Given { stamp: stamp(5, 1), settled_generation: Generation(9) };
    let mut disk = ModelDisk::new();
    write(&mut disk, 1, stamp(5, 1), data(7, 7));
    let mut bench = Bench::new(vec![disk.clone(), disk], given);
    let mut copy = order(given, 1);
    copy.layers.truncate(1);
    bench.copier = Copier::begin(copy);
    let copied = bench.run(|_, _, _| None).expect("nothing is in the way");
    assert_eq!(copied, Copied { is_complete: true, blocks: 0 });
    let row = bench.disks[TARGET].row(LINEAGE, key(1)).expect("it is there");
    assert_eq!((row.stamp, row.settled_by), (stamp(5, 1), Generation(9)));
}

#[test]
fn a_source_that_is_damaged_or_elsewhere_is_passed_over() {
    let mut good = with_layers(3);
    write(&mut good, 1, stamp(5, 1), data(7, 7));
    write(&mut good, 1, stamp(5, 2), data(9, 9));
    let mut damaged = good.clone();
    damaged.damaged.insert((key(1), 9));
    let disks = vec![ModelDisk::new(), damaged.clone(), good];
    let mut bench = Bench::new(disks, Becomes::AsSource);
    bench.run(|_, _, _| None).expect("the second source has it");
    assert!(bench.is_equal(2));
    assert_eq!(bench.disks[TARGET].cell(LINEAGE, key(1), 9), Cell::Data(9));

    let mut bench = Bench::new(vec![ModelDisk::new(), damaged], Becomes::AsSource);
    let outcome = bench.run(|_, _, _| None);
    let Err(CopyError::NoSource { disk, reason }) = outcome else { panic!("{outcome:?}") };
    assert!(disk == DiskId(1) && reason.contains("damaged"), "{reason}");
    assert_eq!(bench.disks[TARGET].row(LINEAGE, key(1)), None, "nothing was adopted");
}

#[test]
fn content_that_is_not_what_its_checksum_says_is_not_taken() {
    let mut good = with_layers(3);
    write(&mut good, 1, stamp(5, 1), data(7, 7));
    let mut bench = Bench::new(vec![ModelDisk::new(), good], Becomes::AsSource);
    let outcome = bench.run(|_, _, request| match request {
        MemberRequest::Read { .. } => {
            let content = vec![block_of(8)];
            Some(Ok(MemberReply::Data { content, absent: Vec::new() }))
        }
        _ => None,
    });
    assert!(matches!(outcome, Err(CopyError::NoSource { .. })), "{outcome:?}");
    assert_eq!(bench.disks[TARGET].row(LINEAGE, key(1)), None);
}

#[test]
fn a_target_that_lost_what_was_staged_gets_it_again() {
    let mut source = with_layers(3);
    write(&mut source, 1, stamp(5, 1), data(7, 7));
    write(&mut source, 2, stamp(5, 2), data(8, 8));
    let mut bench = Bench::new(vec![ModelDisk::new(), source], Becomes::AsSource);
    let mut deaths = 2;
    bench
        .run(|disks, _, request| {
            if matches!(request, MemberRequest::Adopt { .. }) && deaths > 0 {
                deaths -= 1;
                disks[TARGET].reopen(0, &mut Random(1));
            }
            None
        })
        .expect("it is there in the end");
    assert!(bench.is_equal(1));
    // One that never keeps anything is given up.
    let mut bench = Bench::new(vec![ModelDisk::new(), bench.disks[1].clone()], Becomes::AsSource);
    let outcome = bench.run(|disks, _, request| {
        if matches!(request, MemberRequest::Adopt { .. }) {
            disks[TARGET].reopen(0, &mut Random(1));
        }
        None
    });
    assert!(matches!(outcome, Err(CopyError::Target { .. })), "{outcome:?}");
}

#[test]
fn what_an_earlier_copier_left_is_dropped() {
    let mut source = with_layers(3);
    write(&mut source, 1, stamp(5, 1), data(7, 7));
    let mut target = ModelDisk::new();
    let change = data(7, 99);
    let stage = MemberRequest::Stage { permit: PERMIT, lineage: LINEAGE, key: key(1), change };
    target.handle(&stage).expect("nothing is there");
    let mut bench = Bench::new(vec![target, source], Becomes::AsSource);
    bench.run(|_, _, _| None).expect("nothing is in the way");
    assert!(bench.is_equal(1));
}

#[test]
fn what_ends_a_copy_says_so() {
    type Row = (MemberError, fn(&CopyError) -> bool);
    let table: [Row; 5] = [
        (MemberError::Fenced { newer: Generation(9) }, |e| matches!(e, CopyError::Fenced { .. })),
        (MemberError::Superseded { newer: 9 }, |e| matches!(e, CopyError::Superseded { .. })),
        (MemberError::NoSpace, |e| matches!(e, CopyError::NoSpace)),
        (MemberError::WrongConfiguration { have: ConfigurationNumber(9) }, |e| {
            matches!(e, CopyError::WrongConfiguration { .. })
        }),
        (MemberError::Retired, |e| matches!(e, CopyError::Target { .. })),
    ];
    let mut source = with_layers(3);
    write(&mut source, 1, stamp(5, 1), data(7, 7));
    for (error, is_right) in table {
        let disks = vec![ModelDisk::new(), source.clone()];
        let mut bench = Bench::new(disks, Becomes::AsSource);
        let outcome = bench.run(|_, _, request| {
            matches!(request, MemberRequest::Stage { .. }).then(|| Err(error.clone()))
        });
        assert!(outcome.as_ref().is_err_and(is_right), "{error:?}: {outcome:?}");
    }
}

#[test]
fn a_busy_disk_is_asked_again_later() {
    let mut source = with_layers(3);
    write(&mut source, 1, stamp(5, 1), data(7, 7));
    let mut bench = Bench::new(vec![ModelDisk::new(), source], Becomes::AsSource);
    let mut busy = 10;
    let begun = bench.now;
    let outcome = bench.run(|_, _, request| {
        busy -= i32::from(matches!(request, MemberRequest::Stage { .. }));
        let is_busy = busy > 0 && matches!(request, MemberRequest::Stage { .. });
        is_busy.then_some(Err(MemberError::Busy))
    });
    assert!(outcome.is_ok());
    assert!(bench.now >= begun + Duration::from_millis(9 * MEMBER_RETRY_MS));
}

#[test]
fn answers_that_make_no_sense_end_the_copy() {
    let mut source = with_layers(3);
    write(&mut source, 1, stamp(5, 1), data(7, 7));
    for nth in 0..12 {
        let mut bench = Bench::new(vec![ModelDisk::new(), source.clone()], Becomes::AsSource);
        let mut count = 0;
        let outcome = bench.run(|_, _, _| {
            count += 1;
            (count == nth + 1).then_some(Ok(MemberReply::Map(Vec::new())))
        });
        assert!(outcome.is_err() || count <= nth, "question {nth}: {outcome:?}");
    }
}

/// The target has the middle and the upper layer, and something else below them.
fn with_changed_below() -> (ModelDisk, ModelDisk) {
    let mut source = with_layers(3);
    write(&mut source, 1, stamp(5, 1), data(7, 7));
    write(&mut source, 2, stamp(5, 3), data(8, 8));
    write(&mut source, 3, stamp(5, 4), data(9, 9));
    let mut other = with_layers(3);
    write(&mut other, 1, stamp(4, 1), data(7, 77));
    write(&mut other, 1, stamp(4, 2), data(6, 66));
    write(&mut other, 2, stamp(5, 3), data(8, 8));
    write(&mut other, 3, stamp(5, 4), data(9, 9));
    (source, other)
}

fn lowest_only(becomes: Becomes, above: Becomes, sources: usize) -> Copy {
    let mut copy = order(becomes, sources);
    copy.layers.truncate(1);
    let layers = [(LayerId(2), LayerId(1)), (LayerId(3), LayerId(2))];
    copy.add_above(&layers, |_| above);
    copy
}

#[test]
fn what_lies_above_is_retracted_and_copied_again() {
    let given = Becomes::Given { stamp: stamp(5, 1), settled_generation: Generation(9) };
    for becomes in [given, Becomes::AsSource] {
        for above in [Becomes::AsBefore, Becomes::AsSource] {
            let (source, target) = with_changed_below();
            let mut bench = Bench::new(vec![target, source], becomes);
            bench.copier = Copier::begin(lowest_only(becomes, above, 1));
            let mut retracted = Vec::new();
            let outcome = bench.run(|_, _, request| {
                if let MemberRequest::Retract { key, .. } = request {
                    retracted.push(key.layer.0);
                }
                None
            });
            assert!(outcome.as_ref().is_ok_and(|it| it.is_complete), "{outcome:?}");
            assert_eq!(retracted, [3, 2]);
            assert!(bench.is_equal(1));
        }
    }
}

#[test]
fn what_lies_above_stays_unless_a_source_has_the_same_or_content_below_changes() {
    let given = Becomes::Given { stamp: stamp(5, 1), settled_generation: Generation(9) };
    let (mut source, target) = with_changed_below();
    write(&mut source, 3, stamp(5, 9), data(9, 10));
    let mut bench = Bench::new(vec![target.clone(), source.clone()], given);
    bench.copier = Copier::begin(lowest_only(given, Becomes::AsBefore, 1));
    let outcome = bench.run(|_, _, _| None);
    assert!(matches!(outcome, Err(CopyError::NoSource { .. })), "{outcome:?}");
    assert_eq!(bench.disks[TARGET].rows(), target.rows(), "nothing was retracted");

    let mut bench = Bench::new(vec![source.clone(), source], given);
    bench.copier = Copier::begin(lowest_only(given, Becomes::AsBefore, 1));
    let outcome = bench.run(|_, _, request| {
        assert!(!matches!(request, MemberRequest::Retract { .. }));
        None
    });
    assert!(outcome.is_ok(), "{outcome:?}");
    let row = bench.disks[TARGET].row(LINEAGE, key(1)).expect("it is there");
    assert_eq!(row.settled_by, Generation(9), "who has settled it may change below others");
}

#[test]
fn a_target_that_dies_while_it_retracts_gets_all_again() {
    let given = Becomes::Given { stamp: stamp(5, 1), settled_generation: Generation(9) };
    let (source, target) = with_changed_below();
    let mut bench = Bench::new(vec![target, source], given);
    bench.copier = Copier::begin(lowest_only(given, Becomes::AsBefore, 1));
    let mut deaths = 2;
    let outcome = bench.run(|disks, _, request| {
        if matches!(request, MemberRequest::Adopt { .. }) && deaths > 0 {
            deaths -= 1;
            disks[TARGET].reopen(0, &mut Random(1));
        }
        None
    });
    assert!(outcome.is_ok(), "{outcome:?}");
    assert!(bench.is_equal(1));
}

#[test]
fn a_write_between_the_look_and_the_adoption_is_found() {
    let mut source = with_layers(3);
    write(&mut source, 1, stamp(5, 1), data(7, 7));
    for becomes in [
        Becomes::AsSource,
        Becomes::Given { stamp: stamp(5, 1), settled_generation: Generation(9) },
    ] {
        let target = with_layers(3);
        let mut bench = Bench::new(vec![target, source.clone()], becomes);
        let mut copy = order(becomes, 1);
        copy.layers.truncate(1);
        bench.copier = Copier::begin(copy);
        let mut left = 2;
        let outcome = bench.run(|disks, _, request| {
            if matches!(request, MemberRequest::Adopt { .. }) && left > 0 {
                left -= 1;
                write(&mut disks[TARGET], 1, stamp(4, 9 - left), data(9 + left as u32, 99));
            }
            None
        });
        assert!(outcome.is_ok() && left == 0, "{outcome:?}");
        assert!(bench.is_equal(1));
    }
}

#[test]
fn a_write_before_what_lies_above_is_retracted_is_found() {
    let given = Becomes::Given { stamp: stamp(5, 1), settled_generation: Generation(9) };
    let (source, target) = with_changed_below();
    let mut bench = Bench::new(vec![target, source], given);
    bench.copier = Copier::begin(lowest_only(given, Becomes::AsBefore, 1));
    let mut is_written = false;
    let outcome = bench.run(|disks, _, request| {
        if matches!(request, MemberRequest::Retract { .. }) && !is_written {
            is_written = true;
            write(&mut disks[TARGET], 3, stamp(6, 9), data(1, 99));
        }
        None
    });
    // No source has that, so it stays.
    assert!(matches!(outcome, Err(CopyError::NoSource { .. })), "{outcome:?}");
    let row = bench.disks[TARGET].row(LINEAGE, key(3)).expect("it is there");
    assert_eq!(row.stamp, stamp(6, 9));
}
