//! Single cases of a volume whose parent lies elsewhere.

use super::layer_cases::go_on_with_a_clone;
use super::*;
use proto::OBJECT_SIZE;
use proto::limits::{
    SESSION_REQUESTS_MAX, SOURCE_PIECES_MAX, SOURCE_RETRY_MS, SOURCE_WAITING_REQUESTS_MAX,
};

const CALM: Faults = Faults { busy: 0, no_space: 0, corrupt: 0 };
const OBJECT_SECTORS: u64 = OBJECT_SIZE as u64 / SECTOR;

/// A volume whose source does not end with a block; nothing copies it yet.
fn world() -> World {
    let mut world = World::new(1, 8 << 20, CALM);
    world.settle();
    world.close();
    world.create_from_source(12 << 20, (9 << 20) + 5 * SECTOR);
    world.settle();
    world
}

/// Lets the time pass, with answers of all but what is down.
fn rest(world: &mut World, milliseconds: u64) {
    for _ in 0..milliseconds {
        world.advance();
    }
}

fn fill(world: &mut World) {
    world.tell(Event::Flatten { start: true });
    for _ in 0..200_000 {
        if world.session.flattening().is_none_or(|state| state.error.is_some()) {
            return;
        }
        world.advance();
    }
    panic!("it is never filled");
}

/// Reads the whole volume, lets all that is under way end, and closes the session.
fn read_all_and_end(world: &mut World) {
    world.read(0, 3 * OBJECT_SECTORS);
    world.settle();
    world.close();
    world.check_snapshots();
}

#[test]
fn a_volume_has_what_its_source_has_and_zeros_beyond() {
    let mut world = world();
    world.read(0, 3 * OBJECT_SECTORS);
    // Edges of unaligned changes lie in the source, and at its very end.
    world.write(1001, 3, false);
    world.write((9 << 11) + 6, 1, false);
    world.zero(4099, 4, true, false, false);
    read_all_and_end(&mut world);
}

#[test]
fn a_source_that_fails_is_waited_for_and_said_so_and_nothing_is_invented() {
    let mut world = world();
    world.source.down = Some("connection refused");
    let asked_at = world.now;
    world.read(0, 64);
    rest(&mut world, 5_000);
    assert_eq!(world.open.len(), 1, "it waits however long it takes");
    let waiting = world.session.waiting(world.now).expect("it waits");
    assert_eq!(waiting.since, asked_at);
    assert_eq!(waiting.reason, "waiting for nbd://far/away (connection refused)");
    let trouble = world.session.source_trouble().expect("it is known");
    assert_eq!(trouble.reason, "nbd://far/away (connection refused)");
    // Whole blocks can be written, and read, meanwhile; and flushed.
    world.write(800, 64, true);
    world.read(800, 64);
    world.flush();
    rest(&mut world, 100);
    assert_eq!(world.open.len(), 1);
    world.source.down = None;
    world.settle();
    assert_eq!((world.session.waiting(world.now), world.session.source_trouble()), (None, None));
    world.close();
    world.check_snapshots();
}

#[test]
fn a_source_that_fails_is_asked_one_thing_at_a_time() {
    let mut world = world();
    world.read(0, 2 * OBJECT_SECTORS);
    for _ in 0..1_000 {
        world.disk.step(&mut world.random);
        world.deliver();
    }
    assert_eq!(world.source.questions.len(), SOURCE_PIECES_MAX);
    world.source.down = Some("gone");
    rest(&mut world, 20);
    let mut most = 0;
    for _ in 0..3_000 {
        world.pass(Duration::from_millis(1));
        most = most.max(world.source.questions.len());
        world.deliver_source();
    }
    assert_eq!(most, 1);
    world.source.down = None;
    world.settle();
    world.close();
}

#[test]
fn a_guest_comes_before_the_filling() {
    let mut world = world();
    world.tell(Event::Flatten { start: true });
    for _ in 0..1_000 {
        world.disk.step(&mut world.random);
        world.deliver();
    }
    // The background leaves room.
    assert_eq!(world.source.questions.len(), SOURCE_PIECES_MAX / 2);
    world.read(9 * 2048 - 8, 8);
    world.disk.step(&mut world.random);
    world.deliver();
    let last = world.source.questions.last().expect("it was asked");
    assert_eq!(last.offset, (9 << 20) - 4096);
    // Its answer does not wait for the others'.
    world.source.questions.drain(..SOURCE_PIECES_MAX / 2);
    world.deliver_source();
    assert!(world.open.is_empty());
}

#[test]
fn guests_write_where_the_filling_waits_for_its_source() {
    let mut world = world();
    world.source.down = Some("no route to host");
    world.tell(Event::Flatten { start: true });
    rest(&mut world, 2_000);
    world.write(0, 2048, false);
    rest(&mut world, 200);
    assert!(world.open.is_empty(), "a write waits for the source");
    world.source.down = None;
    fill(&mut world);
    assert_eq!(world.flattened, 1);
    read_all_and_end(&mut world);
}

/// The filling stood in line behind a read that waited for the source, and guests' writes that need
/// nothing of it stood behind the filling.
#[test]
fn guests_write_where_the_filling_waits_for_one_that_waits_for_the_source() {
    for comes_first in [false, true] {
        let mut world = world();
        world.read(800, 16);
        while world.source.questions.is_empty() {
            world.disk.step(&mut world.random);
            world.deliver();
        }
        let question = world.source.questions.pop();
        if comes_first {
            // It is known to be away before the filling comes to these blocks.
            world.source.down = Some("no route to host");
            world.source.questions.extend(question);
            rest(&mut world, 10);
            world.tell(Event::Flatten { start: true });
            for _ in 0..1_000 {
                world.disk.step(&mut world.random);
                world.deliver();
            }
        } else {
            world.tell(Event::Flatten { start: true });
            rest(&mut world, 3_000);
            world.source.down = Some("no route to host");
            world.source.questions.extend(question);
        }
        rest(&mut world, 2_000);
        world.write(0, 512, false);
        world.write(1024, 512, false);
        rest(&mut world, 200);
        assert_eq!(world.open.len(), 1, "a write waits for the source");
        world.source.down = None;
        fill(&mut world);
        assert_eq!((world.flattened, world.open.len()), (1, 0));
        read_all_and_end(&mut world);
    }
}

/// A part of a filling that was stopped stood in line yet when the next began from the start; made
/// way for, it took the next one with it, past all that lay between.
#[test]
fn filling_that_begins_anew_leaves_nothing_out() {
    let mut world = world();
    world.read(2048 + 800, 16);
    while world.source.questions.is_empty() {
        world.disk.step(&mut world.random);
        world.deliver();
    }
    let question = world.source.questions.pop();
    world.tell(Event::Flatten { start: true });
    rest(&mut world, 3_000);
    world.tell(Event::Flatten { start: false });
    world.tell(Event::FillRate { bytes_per_s: 1 << 20 });
    world.tell(Event::Flatten { start: true });
    world.source.down = Some("no route to host");
    world.source.questions.extend(question);
    rest(&mut world, 500);
    world.session.check();
    world.source.down = None;
    world.tell(Event::FillRate { bytes_per_s: 0 });
    fill(&mut world);
    world.source.down = Some("gone for ever");
    world.tell_map();
    read_all_and_end(&mut world);
}

#[test]
fn a_filled_volume_needs_its_source_no_more_and_zeros_of_it_take_no_space() {
    let mut world = world();
    world.write(16, 16, false);
    world.discard(64, 16, false);
    fill(&mut world);
    assert_eq!((world.flattened, world.state.map().sources().count()), (1, 0));
    // Two runs in three of 100 sectors each are data; a block at both ends of each may be, too.
    let entries = world.disk.entries();
    assert!((1400..1700).contains(&entries), "{entries} entries");
    world.source.down = Some("gone for ever");
    world.tell_map();
    read_all_and_end(&mut world);
}

#[test]
fn a_snapshot_is_taken_and_a_session_closed_while_the_source_is_away() {
    let mut world = world();
    world.source.down = Some("gone");
    world.tell(Event::Flatten { start: true });
    world.write(0, 8, false);
    rest(&mut world, 100);
    assert!(world.snapshot());
    world.seal();
    // One that nobody waits for any more.
    world.read(4096, 8);
    world.write(5003, 2, false);
    rest(&mut world, 100);
    world.abandoned = true;
    world.tell(Event::Close);
    for _ in 0..100 {
        world.advance();
    }
    assert!(world.closed && world.open.is_empty());
    world.abandoned = false;
    world.source.down = None;
    world.attach(false);
    world.settle();
    world.close();
    world.check_snapshots();
}

#[test]
fn a_new_attachment_ends_what_waits_for_a_source() {
    let mut world = world();
    world.source.down = Some("gone");
    world.read(4096, 8);
    rest(&mut world, 100);
    let generation = Generation(world.generation.0 + 1);
    let lineage = world.map.layer(world.map.volume(world.volume).expect("it exists").head);
    let lineage = lineage.expect("its head").lineage;
    let after = proto::ObjectKey::default();
    let fence = MemberRequest::Fence { lineage, generation, list: false, after };
    world.disk.questions.push_back((MemberToken(u64::MAX), fence));
    world.disk.step(&mut world.random);
    world.disk.answers.clear();
    // The write that finds out is told first.
    world.fenced = true;
    world.write(0, 8, false);
    rest(&mut world, 10);
    assert!(world.open.is_empty());
}

#[test]
fn a_flatten_keeps_to_its_rate_and_tells_it() {
    let mut world = world();
    world.tell(Event::FillRate { bytes_per_s: 1 << 20 });
    world.tell(Event::Flatten { start: true });
    rest(&mut world, 5_000);
    let state = world.session.flattening().expect("it goes on");
    // What is under way was taken on credit.
    assert!((4..=6).contains(&(world.source.read_bytes >> 20)), "{}", world.source.read_bytes);
    assert!((700_000..1_500_000).contains(&state.bytes_per_s), "{state:?}");
    world.tell(Event::Flatten { start: false });
    let before = world.source.read_bytes;
    rest(&mut world, 5_000);
    assert_eq!(world.source.read_bytes, before, "it was stopped");
    world.tell(Event::FillRate { bytes_per_s: 0 });
    fill(&mut world);
    assert_eq!(world.flattened, 1);
}

#[test]
fn a_chain_is_shortened_onto_a_source_that_is_away_and_nothing_of_it_is_read() {
    let mut world = world();
    for generation in 0..3 {
        world.write(generation * 40, 40, false);
        world.discard(generation * 40 + 8, 16, false);
        // Where the source ends in the middle of a block, and beyond it.
        world.write((9 << 11) + generation, 1, false);
        go_on_with_a_clone(&mut world);
    }
    let chain = world.chain();
    let source = chain[3];
    assert_eq!((chain.len(), source.bytes), (4, (9 << 20) + 5 * SECTOR));
    let read_bytes = world.source.read_bytes;
    world.source.down = Some("connection refused");
    world.tell(Event::Shorten { parent: source.layer });
    rest(&mut world, 20_000);
    assert_eq!((world.shortened, world.source.read_bytes), (1, read_bytes));
    assert_eq!(world.chain(), [source]);
    world.read(0, 64);
    rest(&mut world, 2_000);
    world.read(4000, 64);
    rest(&mut world, 2_000);
    assert_eq!(world.open.len(), 1, "what was written is there, what is elsewhere is waited for");
    world.source.down = None;
    read_all_and_end(&mut world);
}

#[test]
fn an_answer_that_does_not_fit_is_none() {
    let mut world = world();
    world.read(0, 16);
    while world.source.questions.is_empty() {
        world.disk.step(&mut world.random);
        world.deliver();
    }
    let token = world.source.questions.pop().expect("just seen").token;
    let long = crate::SourceAnswer::Data(proto::Payload::zeroed(2 * BLOCK_SIZE));
    world.tell(Event::Source { token, result: Ok(long) });
    let absent = crate::SourceAnswer::Map(vec![(2, proto::BlockState::Absent)]);
    world.tell(Event::Source { token, result: Ok(absent) });
    assert_eq!(world.open.len(), 1);
    let reason = world.session.source_trouble().expect("it is known").reason;
    assert_eq!(reason, "nbd://far/away (it answered something else than was asked)");
    world.settle();
    world.close();
}

/// What a flatten had fetched before a shrink came back behind the end when the volume grew again.
#[test]
fn what_was_fetched_before_a_shrink_is_not_copied_after_it() {
    let mut world = World::new(1, 8 << 20, CALM);
    world.settle();
    world.close();
    world.create_from_source(2 << 20, 2 << 20);
    world.settle();
    world.tell(Event::Flatten { start: true });
    let mut held = None;
    for _ in 0..3_000 {
        world.disk.step(&mut world.random);
        world.deliver();
        let questions = &mut world.source.questions;
        if let Some(place) = questions.iter().position(|question| question.offset == 1 << 20) {
            held = Some(questions.remove(place));
        }
        world.deliver_source();
        world.pass(Duration::from_millis(1));
    }
    let held = held.expect("it was asked");
    assert!(world.source.questions.is_empty(), "all but one was fetched");
    let volume = world.volume;
    for bytes in [1 << 20, 2 << 20] {
        let resize = Command::ResizeVolume { volume, bytes, allow_shrink: true };
        world.state.apply(&resize).expect("no shrink is under way");
        rest(&mut world, 500);
        let map = world.state.map();
        assert_eq!(map.volume(volume).expect("it exists").pending_discard, None);
    }
    world.source.questions.push(held);
    rest(&mut world, 500);
    world.read(2048, 2048);
    world.settle();
    world.close();
    world.check_snapshots();
}

/// A question of status locks nothing. One that had been passed on to the source when the last
/// block was copied waited for ever if the source then went away for good, and with it the end of
/// the filling.
#[test]
fn a_status_that_waits_for_a_source_ends_when_all_was_copied() {
    for dies in [false, true] {
        let mut world = world();
        let what = What::Status { first: 4096, sectors: 16 };
        world.request(4096, 16, Operation::Status, what, None);
        while world.source.questions.is_empty() {
            world.disk.step(&mut world.random);
            world.deliver();
        }
        // These are never answered.
        world.source.questions.clear();
        world.tell(Event::Flatten { start: true });
        let mut has_died = false;
        for _ in 0..100_000 {
            if world.flattened > 0 {
                break;
            }
            let state = world.session.flattening().expect("it goes on");
            if dies && !has_died && state.done_bytes == state.total_bytes {
                has_died = true;
                world.die(true);
                world.reopen();
                world.tell_map();
            }
            world.advance();
        }
        assert_eq!((world.flattened, world.open.len(), has_died), (1, 0, dies));
        world.source.down = Some("gone for ever");
        read_all_and_end(&mut world);
    }
}

/// Reads that waited for a source that was away filled what a session works on at once, and then
/// nothing went on, not even what the source had nothing to do with.
#[test]
fn what_waits_for_a_source_takes_no_place_of_what_does_not() {
    const MANY: usize = SESSION_REQUESTS_MAX + 64;
    let mut world = world();
    world.write(2048, 64, true);
    world.settle();
    world.source.down = Some("gone");
    for number in 0..MANY as u64 {
        world.read(4096 + number % 64 * 8, 8);
        if number % 64 == 0 {
            rest(&mut world, 4);
        }
    }
    rest(&mut world, 1_500);
    assert_eq!(world.open.len(), MANY);
    assert!(world.session.works.len() <= SOURCE_WAITING_REQUESTS_MAX);
    world.read(2048, 64);
    world.write(3072, 64, false);
    world.write(2049, 3, true);
    world.flush();
    rest(&mut world, 100);
    assert_eq!(world.open.len(), MANY, "what is there does not go on");
    // What overlaps one that waits, waits behind it, and takes no place either.
    for number in 0..100 {
        world.write(4096 + number % 64 * 8, 8, false);
    }
    rest(&mut world, 200);
    assert_eq!(world.open.len(), MANY + 100);
    assert!(world.session.works.len() <= SOURCE_WAITING_REQUESTS_MAX);
    let told = world.session.waiting(world.now).expect("they wait");
    assert_eq!(told.reason, "waiting for nbd://far/away (gone)");
    world.source.down = None;
    world.settle();
    assert!(world.open.is_empty());
    world.close();
    world.check_snapshots();
}

/// Likewise, with few long ones: they filled what a session holds in memory at once.
#[test]
fn long_reads_that_wait_for_a_source_leave_room_in_memory() {
    let mut world = World::new(1, 8 << 20, CALM);
    world.settle();
    world.close();
    world.create_from_source(48 << 20, 40 << 20);
    world.settle();
    world.source.down = Some("gone");
    for _ in 0..8 {
        world.read(0, 40 << 11);
        rest(&mut world, 10);
    }
    rest(&mut world, 1_500);
    world.write(44 << 11, 64, false);
    world.read(44 << 11, 64);
    world.flush();
    rest(&mut world, 100);
    assert_eq!(world.open.len(), 8, "what is there does not go on");
    // One that nobody waits for any more ends with all of them.
    world.abandoned = true;
    world.tell(Event::Close);
    rest(&mut world, 100);
    assert!(world.closed && world.open.is_empty());
    world.abandoned = false;
}

/// Asks the disk, and answers all that it is asked; the source answers nothing.
fn ask_disks(world: &mut World) {
    while !world.disk.questions.is_empty() || !world.disk.answers.is_empty() {
        world.disk.step(&mut world.random);
        world.deliver();
    }
}

/// A write that came back from those put off found no room in work; when it had some, it went
/// before an earlier one that had been put off once more meanwhile, and that one's content stayed.
#[test]
fn what_comes_back_and_finds_no_room_does_not_overtake_what_is_put_off_again() {
    let mut world = World::new(1, 8 << 20, CALM);
    world.settle();
    world.close();
    world.create_from_source(12 << 20, 1 << 20);
    world.settle();
    world.source.down = Some("gone");
    // Blocks 0..8 with an edge in the source; 4..12; 8..16.
    world.write(3, 61, false);
    ask_disks(&mut world);
    world.write(32, 64, false);
    world.write(64, 64, false);
    // The rest of the places, and one more.
    for _ in 0..SESSION_REQUESTS_MAX - 2 {
        let what = What::Status { first: 4096, sectors: 8 };
        world.request(4096, 8, Operation::Status, what, None);
    }
    assert_eq!(world.session.works.len(), SESSION_REQUESTS_MAX);
    // Both are put off; the first one comes back, and the last one finds no place.
    world.deliver_source();
    assert!(world.session.has_returned());
    assert_eq!((world.session.works.len(), world.session.shelf.len()), (SESSION_REQUESTS_MAX, 0));
    // The first one is put off again.
    world.pass(Duration::from_millis(SOURCE_RETRY_MS));
    world.deliver_source();
    assert!(world.session.has_returned());
    assert_eq!(world.session.shelf.len(), 1);
    ask_disks(&mut world);
    assert_eq!(world.open.len(), 3);
    world.source.down = None;
    world.settle();
    world.read(0, 256);
    world.settle();
    world.close();
    world.check_snapshots();
}

/// A write that was being put off, and that nothing else waited with, was overtaken by what came
/// before it had left.
#[test]
fn what_is_being_put_off_is_not_overtaken_by_what_comes_before_it_has_left() {
    let mut world = world();
    world.write(8, 8, false);
    world.settle();
    world.session.shelf.most.requests = 1;
    world.read(4096, 8);
    ask_disks(&mut world);
    // Blocks 0 and 1: one edge in the source, and one that the disk has.
    world.write(3, 8, false);
    assert_eq!(world.disk.questions.len(), 2);
    let tail = world.disk.questions.pop_back().expect("just seen");
    ask_disks(&mut world);
    world.deliver_source();
    assert_eq!((world.open.len(), world.session.shelf.len()), (1, 0));
    assert_eq!((world.source.questions.len(), world.session.works.len()), (0, 1));
    world.write(0, 16, false);
    world.disk.questions.push_back(tail);
    ask_disks(&mut world);
    world.settle();
    world.read(0, 64);
    world.settle();
    world.close();
    world.check_snapshots();
}

/// A long read that was put off never found room beside short ones that came after it, as there
/// was always one.
#[test]
fn a_long_request_that_was_put_off_comes_back_whatever_comes_after_it() {
    let mut world = world();
    world.session.shelf.most.bytes = 4 * BLOCK_SIZE;
    world.read(4096, 24);
    ask_disks(&mut world);
    world.read(5000, 32);
    ask_disks(&mut world);
    assert_eq!(world.session.shelf.len(), 1);
    let long = RequestId(world.next);
    for number in 0..20 {
        // Each waits until the next one does.
        let first = 6000 + number * 8;
        world.read(first, 8);
        ask_disks(&mut world);
        let questions = std::mem::take(&mut world.source.questions).into_iter();
        let (last, others) = questions.partition(|question| question.offset == first * SECTOR);
        world.source.questions = others;
        while !world.source.questions.is_empty() {
            world.deliver_source();
        }
        world.source.questions.extend::<Vec<_>>(last);
        ask_disks(&mut world);
    }
    assert!(!world.open.contains_key(&long), "it waits for ever");
    world.settle();
    world.close();
}

/// One that had been put off waited for all that were being put off, also those that came after it:
/// of these there may always be one.
#[test]
fn what_was_put_off_comes_back_before_what_came_after_it_has_left() {
    let mut world = world();
    world.write(8, 8, false);
    world.settle();
    world.session.shelf.most.requests = 1;
    for first in [4096, 5000] {
        world.read(first, 8);
        ask_disks(&mut world);
    }
    assert_eq!(world.session.shelf.len(), 1);
    // One edge in the source, and one that the disk has.
    world.write(3, 8, false);
    let tail = world.disk.questions.pop_back().expect("two edges");
    ask_disks(&mut world);
    assert_eq!((world.session.works.len(), world.session.shelf.len()), (2, 1));
    world.deliver_source();
    ask_disks(&mut world);
    world.deliver_source();
    assert_eq!(world.open.len(), 1, "both reads have ended");
    world.disk.questions.push_back(tail);
    world.settle();
    world.read(0, 64);
    world.settle();
    world.close();
    world.check_snapshots();
}
