//! Single cases around one session.

use super::*;
use proto::BlockState;
use proto::limits::{REQUEST_PIECES_MAX, SESSION_BYTES_MAX};

const CALM: Faults = Faults { busy: 0, no_space: 0, corrupt: 0 };

fn world(bytes: u64) -> World {
    let mut world = World::new(1, bytes, CALM);
    world.settle();
    world
}

/// Answers everything that one session asks, in order, and gives back what it said else.
fn converse(world: &mut World, session: &mut Session, event: Event) -> Vec<Effect> {
    let (mut said, mut effects) = (Vec::new(), Vec::new());
    session.handle(world.now, event, &mut effects);
    while !effects.is_empty() {
        for effect in std::mem::take(&mut effects) {
            let Effect::Member { member, token, request } = effect else {
                said.push(effect);
                continue;
            };
            world.disk.questions.push_back((token, request));
            world.disk.step(&mut world.random);
            let (token, result) = world.disk.answers.pop().expect("answered at once");
            let disk = member.disk;
            session.handle(world.now, Event::Member { disk, token, result }, &mut effects);
        }
    }
    session.check();
    said
}

fn write_of(id: u64, byte: u8) -> Event {
    let mut buffer = Buffer::zeroed(BLOCK_SIZE);
    buffer.as_mut_slice().fill(byte);
    let operation = Operation::Write { buffer, fua: false };
    Event::Request(Request { id: RequestId(id), offset: 0, length: BLOCK_SIZE as u64, operation })
}

#[test]
fn a_session_whose_volume_was_attached_elsewhere_changes_nothing() {
    let mut world = world(8 << 20);
    world.write(0, 8, false);
    world.settle();
    // The old session does not know yet.
    let (volume, map) = (world.volume, Arc::clone(&world.map));
    let (now, newer) = (world.now, Generation(world.generation.0 + 1));
    let mut effects = Vec::new();
    let mut new =
        Session::open(now, volume, newer, View::Head { read_only: false }, map, &mut effects);
    let Some(Effect::Member { token, request, .. }) = effects.pop() else { panic!("a fence") };
    world.disk.questions.push_back((token, request));
    world.disk.step(&mut world.random);
    let (token, result) = world.disk.answers.pop().expect("answered");
    converse(&mut world, &mut new, Event::Member { disk: DISK, token, result });

    let placeholder = Session::open(now, volume, newer, READER, world.map.clone(), &mut Vec::new());
    let mut old = std::mem::replace(&mut world.session, placeholder);
    let said = converse(&mut world, &mut old, write_of(77, 9));
    assert!(matches!(
        said[..],
        [Effect::Complete { id: RequestId(77), result: Err(Error::Fenced) }, Effect::Fenced]
    ));
    let said = converse(&mut world, &mut old, write_of(78, 9));
    assert!(matches!(said[..], [Effect::Complete { result: Err(Error::Fenced), .. }]));
    let said = converse(&mut world, &mut old, Event::Close);
    assert!(matches!(said[..], [Effect::Closed]));

    let operation = Operation::Read;
    let read = Request { id: RequestId(1), offset: 0, length: 512, operation };
    let said = converse(&mut world, &mut new, Event::Request(read));
    let [Effect::Complete { result: Ok(Completion::Data(content)), .. }] = &said[..] else {
        panic!("{said:?}")
    };
    assert_eq!(tag_of(content[0].as_slice()), 1);
}

#[test]
fn io_waits_for_a_disk_out_of_service_and_says_so() {
    let mut world = world(8 << 20);
    world.die(false);
    let asked_at = world.now;
    world.write(0, 8, false);
    for _ in 0..50 {
        world.disk.step(&mut world.random);
        world.deliver();
        world.pass(Duration::from_secs(60));
    }
    assert_eq!(world.open.len(), 1, "it waits however long it takes");
    let waiting = world.session.waiting(world.now).expect("it waits");
    assert_eq!(waiting.since, asked_at);
    let wanted = format!("waiting for disk {DISK}: it is out of service");
    assert!(waiting.reason.starts_with(&wanted), "{}", waiting.reason);
    world.settle();
    assert_eq!(world.session.waiting(world.now), None);
}

/// A client that waits to be attached had no request yet, and so nothing told what it waits for.
#[test]
fn an_attachment_that_waits_for_a_disk_says_so() {
    let mut world = world(8 << 20);
    world.close();
    world.die(false);
    world.pass(Duration::from_secs(60));
    let asked_at = world.now;
    world.attach(false);
    for _ in 0..5 {
        world.disk.step(&mut world.random);
        world.deliver();
        world.pass(Duration::from_secs(60));
    }
    assert_eq!(world.opened, None);
    let waiting = world.session.waiting(world.now).expect("it waits");
    assert_eq!(waiting.since, asked_at);
    let wanted = format!("waiting for disk {DISK}: it is out of service");
    assert!(waiting.reason.starts_with(&wanted), "{}", waiting.reason);
    world.settle();
    assert_eq!(world.session.waiting(world.now), None);
}

#[test]
fn a_close_waits_a_while_for_a_disk_out_of_service_and_not_for_ever() {
    let mut world = world(8 << 20);
    world.write(0, 8, false);
    world.settle();
    world.die(false);
    world.tell(Event::Close);
    world.disk.step(&mut world.random);
    world.deliver();
    assert!(!world.closed);
    world.pass(Duration::from_secs(9));
    assert!(!world.closed);
    world.pass(Duration::from_secs(1));
    assert!(world.closed);
    assert_eq!(world.session.deadline(), None);
}

#[test]
fn a_session_that_only_reads_refuses_changes_and_fences_nobody() {
    let mut world = world(8 << 20);
    world.write(0, 8, false);
    world.close();
    world.attach(true);
    assert_eq!(world.opened, Some(Ok(())));
    assert!(world.disk.questions.is_empty());
    world.read(0, 16);
    world.flush();
    for operation in [
        Operation::Write { buffer: Buffer::zeroed(BLOCK_SIZE), fua: false },
        Operation::Discard { fua: false },
        Operation::WriteZeroes { may_unmap: true, fast_only: false, fua: false },
    ] {
        let error = Some(Error::ReadOnly);
        world.request(0, 8, operation, What::Other, error);
    }
    world.close();
}

#[test]
fn discarding_an_empty_volume_leaves_no_trace() {
    let mut world = world(1 << 30);
    let sectors = world.sectors();
    world.discard(0, sectors, true);
    world.settle();
    assert_eq!(world.disk.objects(), 0);
    world.write(8, 8, false);
    world.settle();
    assert_eq!((world.disk.objects(), world.disk.entries()), (1, 1));
    world.discard(0, sectors, true);
    world.settle();
    assert_eq!((world.disk.objects(), world.disk.entries()), (1, 0));
}

#[test]
fn zeros_keep_their_space_unless_it_may_be_given_back() {
    let mut world = world(8 << 20);
    let states = |world: &mut World| {
        let request = Request {
            id: RequestId(1 << 40),
            offset: 0,
            length: 4 * BLOCK_SIZE as u64,
            operation: Operation::Status,
        };
        let placeholder = world.session_to_spare();
        let mut session = std::mem::replace(&mut world.session, placeholder);
        let said = converse(world, &mut session, Event::Request(request));
        world.session = session;
        let [Effect::Complete { result: Ok(Completion::Status(extents)), .. }] = &said[..] else {
            panic!("{said:?}")
        };
        extents.iter().map(|e| (e.length / BLOCK_SIZE as u64, e.state)).collect::<Vec<_>>()
    };
    world.zero(0, 16, false, false, false);
    world.settle();
    assert_eq!(states(&mut world), [(2, BlockState::Data), (2, BlockState::Absent)]);
    world.zero(0, 8, true, true, false);
    world.settle();
    assert_eq!(
        states(&mut world),
        [(1, BlockState::Absent), (1, BlockState::Data), (2, BlockState::Absent)]
    );
    // A write of zeros is thin.
    world.change(0, 8, 0, 8, 0, zero_write(), false, None);
    world.settle();
    let wanted = [(1, BlockState::Zero), (1, BlockState::Data), (2, BlockState::Absent)];
    assert_eq!(states(&mut world), wanted);
}

/// What a request asks of the disk while nothing is answered, in bytes of content; and how many
/// questions that are.
fn asked_without_answers(world: &mut World, requests: u64, operation: fn() -> Operation) -> usize {
    let length = world.sectors() * SECTOR;
    for _ in 0..requests {
        let open = Open { place: 0, error: None, what: What::Other };
        world.submit(0, length, operation(), open);
    }
    let bytes = |request: &MemberRequest| match request {
        MemberRequest::Read { blocks, .. } => blocks.bytes(),
        _ => 0,
    };
    world.disk.questions.iter().map(|(_, request)| bytes(request)).sum()
}

/// Prefetches were not counted: a client could have a session hold four times what it may.
#[test]
fn prefetches_count_for_what_a_session_holds() {
    let mut world = world(1 << 30);
    let asked = asked_without_answers(&mut world, 40, || Operation::Prefetch);
    assert!(asked > 0 && asked <= SESSION_BYTES_MAX, "{asked} bytes at once");
    world.settle();
}

/// Each status of a volume in small runs read the maps of all its objects, up to 4 GiB of it, and
/// kept a million runs of which 4096 went into the answer.
#[test]
fn a_status_looks_no_further_than_its_answer_goes() {
    let mut world = world(1 << 30);
    for place in (0..65_536).step_by(16) {
        world.write(place, 8, false);
        if place % 4096 == 0 {
            world.settle();
        }
    }
    world.settle();
    let sectors = world.sectors();
    let what = What::Status { first: 0, sectors };
    world.request(0, sectors, Operation::Status, what, None);
    let mut questions = 0;
    while !world.open.is_empty() {
        questions += usize::from(!world.disk.questions.is_empty());
        world.advance();
    }
    assert!(questions <= 2 * REQUEST_PIECES_MAX, "{questions} questions for one answer");
}

/// What a client that is gone had asked for and that was not begun went on, gigabytes of zeros
/// perhaps, and whoever wanted the volume next waited for it.
#[test]
fn a_close_begins_nothing_more_of_what_was_asked_for() {
    let mut world = world(1 << 30);
    let sectors = world.sectors();
    for _ in 0..3 {
        let operation = Operation::WriteZeroes { may_unmap: false, fast_only: false, fua: false };
        let open = Open { place: 0, error: None, what: What::Other };
        world.submit(0, sectors * SECTOR, operation, open);
    }
    world.submit(0, 0, Operation::Flush, Open { place: 0, error: None, what: What::Other });
    world.abandoned = true;
    world.tell(Event::Close);
    for _ in 0..100_000 {
        if world.closed {
            break;
        }
        world.advance();
    }
    assert!(world.closed && world.open.is_empty());
    let blocks = world.disk.entries();
    assert!(blocks <= REQUEST_PIECES_MAX * 256, "{blocks} blocks were written for nobody");
}

fn zero_write() -> Operation {
    Operation::Write { buffer: Buffer::zeroed(BLOCK_SIZE), fua: false }
}

#[test]
fn more_than_the_limits_waits_and_never_fails() {
    let mut world = world(64 << 20);
    for place in 0..3000 {
        world.read(place % 16 * 8, 8);
    }
    for place in 0..40 {
        // 16 MiB each, together more than a session holds at once.
        world.read(place * 512, 32768);
    }
    world.write(0, 131072, false);
    world.read(0, 131072);
    world.settle();
}

#[test]
fn requests_that_make_no_sense_are_refused_by_name() {
    let mut world = world(8 << 20);
    let end = 16384;
    let table: [(u64, u64, Operation, Error); 5] = [
        (end - 1, 2, Operation::Read, Error::OutOfRange),
        (end, 1, Operation::Status, Error::OutOfRange),
        (u64::MAX / 512, 1, Operation::Read, Error::OutOfRange),
        (
            0,
            1,
            Operation::WriteZeroes { may_unmap: true, fast_only: true, fua: false },
            Error::NotFast,
        ),
        (
            0,
            8,
            Operation::WriteZeroes { may_unmap: false, fast_only: true, fua: false },
            Error::NotFast,
        ),
    ];
    for (first, sectors, operation, error) in table {
        let open = Open { place: 0, error: Some(error), what: What::Other };
        world.submit(first * SECTOR, sectors * SECTOR, operation, open);
    }
    for (offset, length) in [(1, 512), (0, 100), (4096, 4095)] {
        let open = Open { place: 0, error: Some(Error::Misaligned), what: What::Other };
        world.submit(offset, length, Operation::Read, open);
    }
    assert!(world.open.is_empty());
    world.read(end - 1, 1);
    world.settle();
}

#[test]
fn a_write_of_which_a_part_was_lost_is_done_again_before_it_ends() {
    let mut lost = 0;
    for seed in 0..20 {
        let mut world = World::new(seed, 8 << 20, CALM);
        world.settle();
        // Two pieces; the stamp is asked for first.
        world.write(0, 4096, false);
        world.disk.step(&mut world.random);
        world.deliver();
        world.disk.step(&mut world.random);
        world.deliver();
        assert_eq!((world.disk.entries(), world.open.len()), (256, 1));
        world.die(true);
        lost += world.disk.losses;
        world.settle();
        assert_eq!(world.disk.entries(), 512, "seed {seed}");
    }
    assert!(lost > 0, "no seed took the first piece away");
}

/// A write with FUA failed for a write of somebody else's that was lost, and the flush after it
/// succeeded: whoever had done the lost write and flushed it then never heard of that.
#[test]
fn a_change_with_fua_does_not_take_the_report_of_a_loss_from_the_next_flush() {
    let mut lost = 0;
    for seed in 0..20 {
        let mut world = World::new(seed, 12 << 20, CALM);
        world.settle();
        world.write(0, 8, false);
        world.settle();
        world.die(true);
        lost += world.disk.losses;
        // When it ends, the loss has been noticed.
        world.read(0, 8);
        world.settle();
        let block = BLOCK_SIZE as u64;
        let elsewhere = 8 << 20;
        let buffer = Buffer::zeroed(BLOCK_SIZE);
        let whole = world.ask(elsewhere, block, Operation::Write { buffer, fua: true });
        let nothing = world.ask(elsewhere + 512, 512, Operation::Discard { fua: true });
        for result in [whole, nothing] {
            assert!(matches!(result, Ok(Completion::Done)), "seed {seed}: {result:?}");
        }
        // What was lost must be told now.
        world.flush();
        world.settle();
        assert!(!world.unreported, "seed {seed}");
    }
    assert!(lost > 0, "no seed lost the write");
}

#[test]
fn a_shrink_is_reported_when_it_is_stable_and_not_before() {
    for seed in 0..20 {
        let mut world = World::new(seed, 8 << 20, CALM);
        world.settle();
        world.write(8192, 64, true);
        world.settle();
        assert_eq!(world.disk.entries(), 8);
        let (volume, bytes, allow_shrink) = (world.volume, 4 << 20, true);
        let resize = Command::ResizeVolume { volume, bytes, allow_shrink };
        world.state.apply(&resize).expect("it may shrink");
        while world.state.map().volume(volume).expect("it exists").pending_discard.is_some() {
            world.advance();
        }
        world.die(true);
        world.settle();
        assert_eq!(world.disk.entries(), 0, "seed {seed}");
    }
}

#[test]
fn what_lies_beyond_a_former_end_is_not_served_before_it_is_discarded() {
    let mut world = world(8 << 20);
    world.write(8192, 64, true);
    world.settle();
    world.close();
    let (volume, generation) = (world.volume, world.generation);
    world.state.apply(&Command::Detach { volume, generation }).expect("it is attached");
    world.generation = Generation(0);
    for bytes in [4 << 20, 8 << 20] {
        let resize = Command::ResizeVolume { volume, bytes, allow_shrink: true };
        world.state.apply(&resize).expect("smaller, then larger again");
    }
    world.attach(false);
    assert_eq!(world.sectors(), 8192);
    let error = Some(Error::OutOfRange);
    world.request(8192, 8, Operation::Read, What::Other, error);
    while world.opened.is_none() {
        world.advance();
    }
    assert!(world.open.is_empty());
    while world.sectors() == 8192 {
        world.advance();
    }
    world.read(8192, 64);
    world.settle();
}
