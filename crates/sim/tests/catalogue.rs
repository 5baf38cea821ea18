//! Rows of the fault catalogue (RELIABILITY, section 4) that one disk can show, each by its number.

use proto::{BLOCK_SIZE, DiskError, Duration, MemberError, MemberReply};
use sim::{
    crashpoints::{check_offline, run_step},
    disk::{CrashState, Effect, Fault, Image, OperationKind, SimDisk, Unit},
    ledger::{Crash, Ledger, Step, Survey},
    onedisk::{OneDisk, Order, Setup},
    random::Random,
};
use store::{DamagedPart, MediumKind, Notice, OpenError, State};

const BLOCK: u64 = BLOCK_SIZE as u64;
const EIO: DiskError = DiskError::Io(5);

/// A disk that was used for a while, and its books.
struct Bench {
    setup: Setup,
    disk: OneDisk,
    ledger: Ledger,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Setup::default())
    }

    fn with(setup: Setup) -> Bench {
        let image = setup.formatted().expect("a blank medium can be formatted");
        let disk = OneDisk::open(&setup, image, Order::FirstFirst).expect("it opens");
        Bench { setup, disk, ledger: Ledger::default() }
    }

    fn run(&mut self, step: Step) {
        run_step(&mut self.disk, &mut self.ledger, step).expect("nothing fails");
    }

    /// Data in two objects, checkpointed, then more in the log, all of it flushed.
    fn filled() -> Bench {
        let mut bench = Bench::new();
        bench.run(Step::Write(0, 0, 8));
        bench.run(Step::Write(1, 4, 4));
        bench.run(Step::Flush);
        bench = bench.reopened();
        bench.run(Step::Write(0, 2, 3));
        bench.run(Step::Write(1, 12, 2));
        bench.run(Step::Flush);
        bench.run(Step::Write(0, 10, 1));
        bench.run(Step::Flush);
        // The disk notes on itself, within a moment, that all of this is durable: from then on rot
        // of the newest records is told from a torn write.
        bench.disk.idle(Duration::from_millis(200));
        bench
    }

    /// Closed in order and opened again.
    fn reopened(self) -> Bench {
        let Bench { setup, disk, mut ledger } = self;
        let image = disk.close().crashed(&CrashState::New);
        let mut disk = OneDisk::open(&setup, image, Order::FirstFirst).expect("it opens");
        ledger.verify(&mut disk, Crash::Kill).expect("a closed disk has everything");
        Bench { setup, disk, ledger }
    }

    /// What a power cut would leave if everything had been written in time.
    fn image(&self) -> Image {
        self.disk.disk().crashed(&CrashState::New)
    }

    /// Opens an image and reads everything from it.
    fn survey(&self, image: Image) -> Result<Survey, Refused> {
        let mut disk = OneDisk::open(&self.setup, image, Order::FirstFirst).map_err(Refused)?;
        let survey = self.ledger.clone().survey(&mut disk);
        Ok(survey.expect("what is served is right"))
    }

    /// Where on the medium a block of data lies, found by its content.
    fn address_of(&mut self, index: u32, block: u32) -> u64 {
        let wanted = self.ledger.content_of(index, block).expect("there is data");
        let image = self.image();
        let found: Vec<u64> =
            image.blocks().filter(|at| image.block(*at)[..] == wanted[..]).collect();
        assert_eq!(found.len(), 1, "one block holds it: {found:?}");
        found[0]
    }
}

#[derive(Debug)]
struct Refused(OpenError);

/// Which kind of region a block of the medium belongs to, by what it says of itself.
fn region(image: &Image, block: u64) -> &'static str {
    match &image.block(block)[..4] {
        b"SHEE" => "superblock",
        b"SLOG" => "log",
        b"SMAP" => "map page",
        b"SCKP" => match image.block(block)[6] {
            1 => "object table",
            2 => "space bitmap",
            3 => "lineages",
            4 => "state",
            5 => "root",
            other => panic!("a checkpoint page of kind {other}"),
        },
        b"SIMS" => "data",
        other => panic!("block {block} begins with {other:?}"),
    }
}

#[test]
fn row_09_torn_batches_are_cut_off_and_nothing_before_them_is() {
    let mut bench = Bench::new();
    bench.run(Step::Write(0, 0, 4));
    bench.run(Step::Flush);
    // Many records in one round: a batch of several blocks.
    let before = bench.disk.disk().image().clone();
    let mut asked = Vec::new();
    for number in 0..200 {
        let (step, request) = bench.ledger.begin(Step::Write(1, number % 12, 1));
        asked.push((bench.disk.ask(request.expect("a write")), step));
    }
    bench.disk.round();
    let medium = bench.disk.disk();
    let log = |unit: &Unit| match unit {
        Unit::Sector(sector) => {
            let block = sector / 8;
            let new = medium.crashed(&CrashState::New);
            !new.block(block).starts_with(b"SIMSTAMP") && new.block(block) != before.block(block)
        }
        Unit::Extent(_) => false,
    };
    let units: Vec<Unit> = medium.units().into_iter().filter(log).collect();
    assert!(units.len() > 8, "the batch has several blocks: {}", units.len());
    for unit in units {
        for state in [CrashState::OneOld(unit), CrashState::OneNew(unit)] {
            let image = medium.crashed(&state);
            let mut disk = OneDisk::open(&bench.setup, image, Order::FirstFirst).expect("it opens");
            let mut ledger = bench.ledger.clone();
            ledger.verify(&mut disk, Crash::Power).unwrap_or_else(|e| panic!("{state:?}: {e}"));
            check_offline(disk.disk()).unwrap_or_else(|e| panic!("{state:?}: {e}"));
        }
    }
}

/// One flipped bit, in every block that holds anything, in its head, middle and end: everything is
/// served right, or refused; the whole disk is refused only where more than one copy is needed.
#[test]
fn row_10_bit_rot_anywhere_is_survived_or_reported_but_never_served() {
    let bench = Bench::filled();
    let image = bench.image();
    let mut met = std::collections::BTreeMap::<_, [u32; 3]>::new();
    for block in image.blocks().collect::<Vec<_>>() {
        for byte in [9, 70, 300, 2_000, 4_095] {
            let mut rotten = image.clone();
            rotten.flip(block * BLOCK + byte, 3);
            let outcomes = met.entry(region(&image, block)).or_default();
            match bench.survey(rotten) {
                Ok(survey) if survey.refused.is_empty() => outcomes[0] += 1,
                Ok(_) => outcomes[1] += 1,
                Err(Refused(error)) => {
                    let loud = matches!(
                        error,
                        OpenError::LogDamaged { .. } | OpenError::TableDamaged { .. }
                    );
                    assert!(loud, "block {block} ({}): {error}", region(&image, block));
                    outcomes[2] += 1;
                }
            }
        }
    }
    println!("survived, blocks refused, disk refused: {met:?}");
    for part in ["superblock", "root", "object table", "space bitmap", "lineages", "state"] {
        let outcomes = met.get(part).copied().unwrap_or_else(|| panic!("no {part} was met"));
        assert_eq!(outcomes[1..], [0, 0], "one bad copy of the {part} is survived");
    }
    for part in ["data", "map page", "log"] {
        let outcomes = met.get(part).copied().unwrap_or_else(|| panic!("no {part} was met"));
        assert!(outcomes[1] + outcomes[2] > 0, "rot of the {part} is reported: {outcomes:?}");
    }
}

/// The same, while the disk is open: scrub finds every damage within one pass.
#[test]
fn row_10_bit_rot_under_an_open_disk_is_found_by_one_scrub_pass() {
    let bench = Bench::filled().reopened();
    let image = bench.image();
    for block in image.blocks().collect::<Vec<_>>() {
        let part = region(&image, block);
        if !matches!(part, "data" | "map page") {
            continue;
        }
        // Of what was overwritten or superseded something is left; only what is in use matters.
        let mut rotten = image.clone();
        rotten.flip(block * BLOCK + 900, 1);
        if bench.survey(rotten).is_ok_and(|survey| survey.refused.is_empty()) {
            continue;
        }
        let Bench { setup, .. } = &bench;
        let mut disk = OneDisk::open(setup, image.clone(), Order::FirstFirst).expect("it opens");
        disk.settle();
        disk.take_notices();
        disk.disk_mut().spoil(|image| image.flip(block * BLOCK + 900, 1));
        disk.event(store::Event::Scrub(store::ScrubCommand::Rate(store::ScrubRate(64 << 20))));
        disk.event(store::Event::Scrub(store::ScrubCommand::Start));
        disk.idle(Duration::from_secs(30));
        let notices = disk.take_notices();
        let done = notices.iter().any(|notice| matches!(notice, Notice::ScrubDone { .. }));
        assert!(done, "the pass ends: {notices:?}");
        let found = notices.iter().any(|notice| match notice {
            Notice::Damaged(damage) => damage.address == block,
            _ => false,
        });
        assert!(found, "damage of a {part} at block {block} is found: {notices:?}");
    }
}

#[test]
fn row_11_misdirected_write_is_noticed_at_both_places() {
    let mut bench = Bench::filled();
    let victim = bench.address_of(0, 0);
    // The next block of data goes astray, onto the victim.
    let probe = {
        let mut other = Bench::filled();
        other.run(Step::Write(1, 15, 1));
        other.address_of(1, 15)
    };
    let by = (victim as i64 - probe as i64) * BLOCK as i64;
    let fault = Fault::once(OperationKind::Write, Effect::Misdirect(by));
    bench.disk.disk_mut().add_fault(fault.within(probe * BLOCK..(probe + 1) * BLOCK));
    bench.run(Step::Write(1, 15, 1));
    bench.run(Step::Flush);
    assert_eq!(bench.disk.disk().counters().faults, 1, "the write went astray");
    let survey = bench.ledger.survey(&mut bench.disk).expect("never served wrong");
    assert_eq!(survey.refused, [(0, 0), (1, 15)]);
}

#[test]
fn row_11_misdirected_read_is_noticed_and_passes() {
    let mut bench = Bench::filled();
    let (from, to) = (bench.address_of(0, 0), bench.address_of(0, 1));
    let by = (to as i64 - from as i64) * BLOCK as i64;
    let fault = Fault::once(OperationKind::Read, Effect::Misdirect(by));
    bench.disk.disk_mut().add_fault(fault.within(from * BLOCK..(from + 1) * BLOCK));
    bench.ledger.survey(&mut bench.disk).expect("never served wrong");
    assert_eq!(bench.disk.disk().counters().faults, 1, "the read went astray");
    let mut disk = OneDisk::open(&bench.setup, bench.image(), Order::FirstFirst).expect("opens");
    let survey = bench.ledger.survey(&mut disk).expect("never served wrong");
    assert_eq!(survey.refused, [], "the medium itself is whole");
}

#[test]
fn row_12_lost_write_is_noticed_never_answered_with_what_was_there_before() {
    let mut bench = Bench::filled();
    let probe = {
        let mut other = Bench::filled();
        other.run(Step::Write(0, 0, 1));
        other.address_of(0, 0)
    };
    let fault = Fault::once(OperationKind::Write, Effect::Lose);
    bench.disk.disk_mut().add_fault(fault.within(probe * BLOCK..(probe + 1) * BLOCK));
    bench.run(Step::Write(0, 0, 1));
    bench.run(Step::Flush);
    assert_eq!(bench.disk.disk().counters().faults, 1, "the write was lost");
    let survey = bench.ledger.survey(&mut bench.disk).expect("never served wrong");
    assert_eq!(survey.refused, [(0, 0)]);
    let survey = bench.survey(bench.image()).expect("it opens");
    assert_eq!(survey.refused, [(0, 0)], "neither after a restart");
}

/// Old content comes back at any single place: an older superblock, table page, map page or data.
#[test]
fn row_12_stale_block_restored_from_before_is_noticed() {
    let mut bench = Bench::filled().reopened();
    let before = bench.image();
    bench.run(Step::Write(0, 0, 8));
    bench.run(Step::Write(1, 4, 2));
    bench.run(Step::Flush);
    bench = bench.reopened();
    let after = bench.image();
    for block in before.blocks().collect::<Vec<_>>() {
        if before.block(block) == after.block(block) {
            continue;
        }
        let mut stale = after.clone();
        stale.write(block * BLOCK, before.block(block));
        match bench.survey(stale) {
            Ok(_) => {}
            Err(Refused(error)) => assert!(
                matches!(error, OpenError::LogDamaged { .. } | OpenError::TableDamaged { .. }),
                "block {block}: {error}"
            ),
        }
    }
}

#[test]
fn row_13_read_error_fails_one_block_and_no_other() {
    let mut bench = Bench::filled().reopened();
    let address = bench.address_of(0, 3);
    let fault = Fault::always(OperationKind::Read, Effect::Error(EIO));
    bench.disk.disk_mut().add_fault(fault.within(address * BLOCK..(address + 1) * BLOCK));
    let survey = bench.ledger.survey(&mut bench.disk).expect("never served wrong");
    assert_eq!(survey.refused, [(0, 3)]);
    assert_eq!(bench.disk.store().status().state, State::Serving);
    bench.run(Step::Write(0, 3, 1));
    let survey = bench.ledger.survey(&mut bench.disk).expect("never served wrong");
    assert_eq!(survey.refused, [], "writing it anew mends it");
}

#[test]
fn row_13_random_read_errors_never_bring_wrong_data() {
    for seed in 0..20 {
        let bench = Bench::filled().reopened();
        let medium = SimDisk::new(bench.image(), bench.setup.capacity, Random::new(seed));
        let mut disk =
            OneDisk::open_disk(&bench.setup, medium, Order::FirstFirst).expect("it opens");
        let fault = Fault::always(OperationKind::Read, Effect::Error(EIO));
        disk.disk_mut().add_fault(fault.per_million(100_000));
        let mut ledger = bench.ledger.clone();
        ledger.survey(&mut disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        disk.disk_mut().clear_faults();
        let image = disk.disk().crashed(&CrashState::New);
        let survey = bench.survey(image).expect("it opens");
        assert_eq!(survey.refused, [], "seed {seed}: the medium itself is whole");
    }
}

/// Opens an image of which some blocks cannot be read, and reads everything from it.
fn open_without(bench: &Bench, image: &Image, unreadable: &[u64]) -> Result<OneDisk, OpenError> {
    let mut medium = SimDisk::new(image.clone(), bench.setup.capacity, Random::new(3));
    for block in unreadable {
        let fault = Fault::always(OperationKind::Read, Effect::Error(EIO));
        medium.add_fault(fault.within(block * BLOCK..(block + 1) * BLOCK));
    }
    let mut disk = OneDisk::start(&bench.setup, medium, Order::FirstFirst);
    while disk.opened().is_none() {
        assert!(disk.step() || disk.pass_time(), "{unreadable:?}: opening never ends");
    }
    if let Some(Err(error)) = disk.opened().cloned() {
        assert_eq!(disk.disk().image().key(), image.key(), "{unreadable:?}: touched ({error})");
        return Err(error);
    }
    let survey = bench.ledger.clone().survey(&mut disk).expect("never served wrong");
    assert_eq!(survey.refused, [], "{unreadable:?}");
    Ok(disk)
}

/// The places of damages that were told of and could not be read.
fn unreadable_places(disk: &mut OneDisk) -> Vec<(DamagedPart, u64)> {
    let notices = disk.take_notices().into_iter();
    let unreadable = notices.filter_map(|notice| match notice {
        Notice::Damaged(damage) if damage.unreadable => Some((damage.part, damage.address)),
        _ => None,
    });
    unreadable.collect()
}

#[test]
fn row_13_unreadable_superblock_is_replaced_by_the_other_one() {
    let bench = Bench::filled().reopened();
    let image = bench.image();
    for block in [0, 1] {
        let mut disk = open_without(&bench, &image, &[block]).expect("the other one rules");
        assert_eq!(unreadable_places(&mut disk), [(DamagedPart::Superblock, block)]);
        disk.settle();
        // It was written anew, and the other one is not needed any more.
        let mended = disk.disk().crashed(&CrashState::New);
        assert_eq!(mended.block(0), mended.block(1));
        open_without(&bench, &mended, &[1 - block]).expect("the one that was mended rules");
    }
    let both = open_without(&bench, &image, &[0, 1]).err();
    assert_eq!(both, Some(OpenError::Medium(EIO)));
    for block in [0, 1] {
        let mut rotten = image.clone();
        rotten.flip((1 - block) * BLOCK + 70, 3);
        let neither = open_without(&bench, &rotten, &[block]).err();
        assert_eq!(neither, Some(OpenError::Medium(EIO)), "block {block}");
        let mut gone = image.clone();
        gone.write((1 - block) * BLOCK, &[0; BLOCK_SIZE]);
        let neither = open_without(&bench, &gone, &[block]).err();
        assert_eq!(neither, Some(OpenError::Medium(EIO)), "block {block}");
    }
}

/// Every block of the log in turn: what is live and known to be durable is missed, everything else
/// is not. One that cannot be read is as good as one that has no batch.
#[test]
fn row_13_unreadable_block_of_the_log_matters_only_where_a_durable_batch_was() {
    let bench = Bench::filled();
    let image = bench.image();
    let number = |block: u64, at: usize| {
        u64::from_le_bytes(image.block(block)[at..at + 8].try_into().expect("eight bytes"))
    };
    // As `docs/formats/disk.md` draws them: where replay begins, and the sequence of a batch.
    let replay_sequence = number(0, 144).max(number(1, 144));
    let log = 3..3 + bench.setup.log_bytes / BLOCK;
    let is_batch = |block: &u64| image.block(*block).starts_with(b"SLOG");
    let is_live = |block: &u64| is_batch(block) && number(*block, 16) >= replay_sequence;
    let live: Vec<u64> = log.clone().filter(is_live).collect();
    let last = *live.iter().max_by_key(|block| number(**block, 16)).expect("there are some");
    assert!(live.len() > 3 && log.clone().filter(is_batch).count() > live.len(), "{live:?}");
    for block in log {
        let mut zeroed = image.clone();
        zeroed.write(block * BLOCK, &[0; BLOCK_SIZE]);
        let as_if = open_without(&bench, &zeroed, &[]).err();
        match open_without(&bench, &image, &[block]) {
            Err(error) => {
                assert!(live.contains(&block) && block != last, "block {block}: {error}");
                assert_eq!(error, OpenError::LogDamaged { address: block });
                assert_eq!(as_if, Some(error));
            }
            Ok(mut disk) => {
                // The last batch says that those before it are durable, and nothing else.
                assert!(!live.contains(&block) || block == last, "block {block} was live");
                assert_eq!(as_if, None);
                assert_eq!(unreadable_places(&mut disk), [(DamagedPart::Log, block)]);
                let mut ledger = bench.ledger.clone();
                ledger.verify(&mut disk, Crash::Kill).expect("nothing is lost");
                for step in [Step::Write(0, 1, 3), Step::Flush, Step::Write(1, 12, 2)] {
                    run_step(&mut disk, &mut ledger, step).expect("it serves");
                }
                disk.disk_mut().clear_faults();
                let image = disk.disk().crashed(&CrashState::New);
                let mut disk =
                    OneDisk::open(&bench.setup, image, Order::FirstFirst).expect("it opens");
                ledger.verify(&mut disk, Crash::Power).expect("the log goes on across the block");
                check_offline(disk.disk()).expect("the disk is whole");
            }
        }
    }
}

/// Asks for a write and a flush while the medium fails: neither may be acknowledged, and what was
/// flushed before must be there when the disk is opened again.
fn check_latched(on: OperationKind, times: Option<u32>) {
    let mut bench = Bench::filled();
    let fault = Fault { times, ..Fault::always(on, Effect::Error(EIO)) };
    bench.disk.disk_mut().add_fault(fault);
    let (_, write) = bench.ledger.begin(Step::Write(0, 0, 2));
    let written = bench.disk.call(write.expect("a write"));
    if on == OperationKind::Write {
        assert_eq!(written.err(), Some(MemberError::Retired), "never acknowledged");
    }
    let (_, flush) = bench.ledger.begin(Step::Flush);
    assert_eq!(bench.disk.call(flush.expect("a flush")).err(), Some(MemberError::Retired));
    assert!(matches!(bench.disk.store().status().state, State::Retired(_)));
    let flushes = bench.disk.disk().counters().flushes;
    let (_, flush) = bench.ledger.begin(Step::Flush);
    assert_eq!(bench.disk.call(flush.expect("a flush")).err(), Some(MemberError::Retired));
    bench.disk.idle(Duration::from_secs(5));
    assert_eq!(bench.disk.disk().counters().flushes, flushes, "nothing is tried again");
    let retired = bench.disk.take_notices();
    assert!(retired.iter().any(|notice| matches!(notice, Notice::Retired { .. })));
    for state in [CrashState::Old, CrashState::New] {
        let image = bench.disk.disk().crashed(&state);
        let mut disk = OneDisk::open(&bench.setup, image, Order::FirstFirst).expect("it opens");
        let mut ledger = bench.ledger.clone();
        ledger.verify(&mut disk, Crash::Power).unwrap_or_else(|e| panic!("{on:?} {state:?}: {e}"));
    }
    let mut medium = bench.disk.into_disk();
    medium.clear_faults();
    medium.kill();
    let mut disk = OneDisk::open_disk(&bench.setup, medium, Order::FirstFirst).expect("it opens");
    bench.ledger.verify(&mut disk, Crash::Power).unwrap_or_else(|e| panic!("{on:?}: {e}"));
}

#[test]
fn row_14_write_error_retires_the_disk_and_acknowledges_nothing() {
    check_latched(OperationKind::Write, Some(1));
    check_latched(OperationKind::Write, None);
}

#[test]
fn row_15_flush_error_is_never_tried_again_even_if_it_would_succeed() {
    check_latched(OperationKind::Flush, Some(1));
    check_latched(OperationKind::Flush, None);
}

/// Fills a disk to the brim: new data is refused, everything else goes on, and space comes back.
fn check_full(setup: Setup) {
    let mut bench = Bench::with(setup);
    bench.ledger.prepare(&mut bench.disk).expect("it is fenced");
    let mut written = 0;
    let refused = loop {
        let before = bench.ledger.clone();
        let (asked, request) = bench.ledger.begin(Step::Write(2 + written / 16, written % 16, 1));
        let answer = bench.disk.call(request.expect("a write"));
        match answer {
            Ok(MemberReply::Written { .. }) => {
                bench.ledger.answered(asked, answer).expect("it was asked for");
                written += 1;
            }
            Err(error) => {
                bench.ledger = before;
                break error;
            }
            other => panic!("{other:?}"),
        }
        assert!(written < 40_000, "the disk never fills");
    };
    assert_eq!(refused, MemberError::NoSpace);
    assert!(written > 256, "there was room for more than {written} blocks");
    // Overwriting goes on, round and round, as long as it is wanted; so do flush and discard.
    for round in 0..3 * written {
        bench.run(Step::Write(2 + (round % written) / 16, (round % written) % 16, 1));
    }
    bench.run(Step::Flush);
    bench.run(Step::Absent(2, 0, 16));
    bench.run(Step::Zero(3, 0, 16));
    bench.run(Step::Flush);
    bench.disk.idle(Duration::from_secs(2));
    for block in 0..16 {
        bench.run(Step::Write(4_000, block, 1));
    }
    bench = bench.reopened();
    check_offline(bench.disk.disk()).expect("the disk is whole");
    let Bench { disk, ledger, .. } = bench;
    sim::crashpoints::empty(disk, &ledger).expect("everything comes back");
}

#[test]
fn row_16_no_space_within_the_limit_of_a_file() {
    check_full(Setup { limit_bytes: Some(12 << 20), ..Setup::default() });
}

#[test]
fn row_16_no_space_in_the_file_system() {
    check_full(Setup { capacity: 76 << 20, limit_bytes: None, ..Setup::default() });
}

#[test]
fn row_16_no_space_on_a_device() {
    let kind = MediumKind::Device;
    check_full(Setup { kind, capacity: 12 << 20, limit_bytes: None, ..Setup::default() });
}

#[test]
fn row_17_slow_disk_is_waited_for_without_an_error() {
    let mut bench = Bench::filled();
    for on in [OperationKind::Write, OperationKind::Flush, OperationKind::Read] {
        bench.disk.disk_mut().add_fault(Fault::once(on, Effect::Hang));
    }
    // `run` waits for the answers; here operations end by hand, late but well.
    bench.run(Step::Write(0, 0, 4));
    bench.run(Step::Flush);
    let survey = bench.ledger.survey(&mut bench.disk).expect("never served wrong");
    assert_eq!(survey.refused, []);
    assert_eq!(bench.disk.store().status().state, State::Serving);
}

/// Whatever is missing at the end: the disk is refused by name, and not a byte of it is changed.
#[test]
fn row_20_truncated_medium_is_refused_untouched_or_serves_what_it_has() {
    let bench = Bench::filled().reopened();
    let image = bench.image();
    let blocks = image.length() / BLOCK;
    for length in [0, 1, 2, 3, 4, 16, blocks / 2, blocks - 256, blocks - 1] {
        let mut cut = image.clone();
        cut.set_length(length * BLOCK);
        let medium = SimDisk::new(cut.clone(), bench.setup.capacity, Random::new(0));
        let mut disk = OneDisk::start(&bench.setup, medium, Order::FirstFirst);
        while disk.opened().is_none() {
            assert!(disk.step() || disk.pass_time(), "{length}: opening never ends");
        }
        match disk.opened().expect("just seen").clone() {
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert_eq!(disk.disk().image().key(), cut.key(), "{length}: touched ({error})");
            }
            Ok(_) => {
                let survey = bench.ledger.clone().survey(&mut disk).expect("never served wrong");
                assert_eq!(survey.refused, [], "{length}: half served");
            }
        }
    }
}

#[test]
fn row_20_superblocks_gone_is_refused_untouched() {
    let bench = Bench::filled().reopened();
    for (name, damage) in [("zeroed", 0u8), ("overwritten", 0x5a)] {
        let mut image = bench.image();
        image.write(0, &[damage; 2 * BLOCK_SIZE]);
        let medium = SimDisk::new(image.clone(), bench.setup.capacity, Random::new(0));
        let mut disk = OneDisk::start(&bench.setup, medium, Order::FirstFirst);
        while disk.opened().is_none() {
            assert!(disk.step() || disk.pass_time(), "{name}: opening never ends");
        }
        assert!(disk.opened().is_some_and(Result::is_err), "{name}: opened");
        assert_eq!(disk.disk().image().key(), image.key(), "{name}: touched");
    }
    let mut image = bench.image();
    image.write(0, &[0; BLOCK_SIZE]);
    assert_eq!(bench.survey(image).expect("the other one rules").refused, []);
}

/// A newer attachment exists: what an older one still sends is refused, before and after a restart.
#[test]
fn row_36_writer_of_an_older_generation_changes_nothing() {
    let mut bench = Bench::filled();
    let mut old = bench.ledger.clone();
    bench.ledger.verify(&mut bench.disk, Crash::Kill).expect("a newer generation attaches");
    for _ in 0..2 {
        let (_, write) = old.begin(Step::Write(0, 0, 1));
        let answer = bench.disk.call(write.expect("a write"));
        assert!(matches!(answer, Err(MemberError::Fenced { .. })), "{answer:?}");
        let survey = bench.ledger.survey(&mut bench.disk).expect("never served wrong");
        assert_eq!(survey.refused, []);
        bench = bench.reopened();
    }
}

#[test]
fn row_21_every_copy_of_a_block_bad_fails_that_block_alone_and_a_good_copy_heals_it() {
    let mut bench = Bench::filled().reopened();
    let address = bench.address_of(0, 3);
    bench.disk.take_notices();
    bench.disk.disk_mut().spoil(|image| image.flip(address * BLOCK + 1_000, 5));
    let survey = bench.ledger.survey(&mut bench.disk).expect("never served wrong");
    assert_eq!(survey.refused, [(0, 3)]);
    let named = bench.disk.take_notices().iter().any(|notice| match notice {
        Notice::Damaged(damage) => {
            matches!(damage.part, DamagedPart::Data { key, block: 3, .. } if key.index == 0)
        }
        _ => false,
    });
    assert!(named, "the alarm names object and block");
    bench.disk.disk_mut().spoil(|image| image.flip(address * BLOCK + 1_000, 5));
    let survey = bench.ledger.survey(&mut bench.disk).expect("never served wrong");
    assert_eq!(survey.refused, [], "the copy was restored");
}
