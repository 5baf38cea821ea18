//! What may be in flight, and what is refused beyond it.

use super::*;
use proto::MemberError;
use proto::limits::*;
use proto::wire::note::{self, Channel};
use proto::wire::request;

/// The credit of the tests: eight requests, 2 MiB; half of it for one disk.
const ONE_DISK: usize = 4;

#[test]
fn no_more_is_sent_than_was_granted_and_one_disk_gets_half() {
    let (mut one, mut other) = pair();
    (1..=20).for_each(|token| one.ask(token, 1, write(token, 1)));
    talk(&mut one, &mut other);
    let first = other.questions();
    assert_eq!(first.len(), ONE_DISK, "one disk");
    (21..=40).for_each(|token| one.ask(token, 2, write(token, 1)));
    talk(&mut one, &mut other);
    let second = other.questions();
    assert_eq!(second.len(), 8 - ONE_DISK, "another disk gets the rest");
    // An answer makes room for one more of the same disk, in order.
    other.written(first[2].0);
    talk(&mut one, &mut other);
    assert_eq!(one.ended(), [(3, true)]);
    let next: Vec<u64> = other.questions().iter().map(|(_, r)| sequence_of(r)).collect();
    assert_eq!(next, [5]);
    for (question, _) in first.into_iter().chain(second).filter(|(q, _)| q.id != 3) {
        other.written(question);
    }
    // Then everything, half and half.
    loop {
        talk(&mut one, &mut other);
        let questions = other.questions();
        if questions.is_empty() {
            break;
        }
        questions.into_iter().for_each(|(question, _)| other.written(question));
    }
    assert_eq!(one.link.pending(), 1, "the fifth was taken away by the test");
}

#[test]
fn bytes_count_for_what_is_written_and_for_what_is_read() {
    let (mut one, mut other) = pair();
    one.ask(1, 1, read(200));
    one.ask(2, 1, read(200));
    one.ask(3, 2, write(1, 200));
    one.ask(4, 2, flush());
    talk(&mut one, &mut other);
    let questions = other.questions();
    assert_eq!(questions.len(), 3, "200 and 200 blocks of two disks, and a flush of the second");
    let (question, _) = questions[0];
    let content = vec![content(100, 1), content(100, 2)];
    let result = Ok(MemberReply::Data { content, absent: Vec::new() });
    other.handle(Event::Answer { question, promise: Duration::ZERO, result });
    talk(&mut one, &mut other);
    assert_eq!(other.questions().len(), 1, "the second read follows the first one's answer");
    assert_eq!(one.ended(), [(1, true)]);
}

#[test]
fn a_peer_that_asks_for_more_is_cut_off() {
    let say = |requests: &[MemberRequest]| {
        let (_, mut other) = pair();
        let mut seal = seal();
        for (id, request) in (1..).zip(requests) {
            let mut bytes = Vec::new();
            let payload = request::put(&mut bytes, seal, id, DiskId(1), request).cloned();
            seal = seal.next();
            other.bytes(&bytes);
            payload.iter().for_each(|payload| other.bytes(payload.as_slice()));
        }
        (other.link.is_up(), other.questions().len())
    };
    let many = |count: usize, request: fn() -> MemberRequest| {
        std::iter::repeat_with(request).take(count).collect::<Vec<_>>()
    };
    assert_eq!(say(&many(8, flush)), (true, 8));
    assert_eq!(say(&many(9, flush)), (false, 8));
    assert_eq!(say(&many(2, || read(256))), (true, 2));
    assert_eq!(say(&many(3, || read(256))), (false, 2));
    assert_eq!(say(&many(2, || write(1, 256))), (true, 2));
    assert_eq!(say(&many(3, || write(1, 256))), (false, 2));
    assert_eq!(say(&many(2, || stage(256))), (true, 2));
    assert_eq!(say(&many(3, || stage(256))), (false, 2));
}

#[test]
fn memory_is_not_given_to_what_was_not_granted() {
    memory_is_not_given_to(write(1, 256));
    memory_is_not_given_to(stage(256));
}

fn memory_is_not_given_to(request: MemberRequest) {
    let (_, mut other) = pair();
    let mut seal = seal();
    let mut say = |other: &mut End, request: MemberRequest, id| {
        let mut bytes = Vec::new();
        request::put(&mut bytes, seal, id, DiskId(1), &request);
        seal = seal.next();
        other.bytes(&bytes);
    };
    say(&mut other, read(256), 1);
    say(&mut other, read(256), 2);
    // Its content need not come for it to be refused.
    say(&mut other, request, 3);
    assert_eq!(other.closed(), Some(CloseReason::BeyondCredit));
}

/// Lists count with all the rows that may answer them.
#[test]
fn no_more_lists_are_asked_for_than_the_credit_holds() {
    let (mut one, mut other) = pair();
    let rows = (MEMBER_ROWS_MAX * 40) as u64;
    assert_eq!(request::cost(&fence()), rows);
    one.ask(1, 1, read(256 - (rows / 4096) as u32));
    one.ask(2, 1, fence());
    one.ask(3, 1, fence());
    talk(&mut one, &mut other);
    assert_eq!(other.questions().len(), 2, "a half of the credit for one disk");
}

#[test]
fn an_answer_frees_its_request_only_when_the_socket_has_it() {
    let (_, mut other) = pair();
    let mut seal = seal();
    let mut say = |other: &mut End, id| {
        let mut bytes = Vec::new();
        request::put(&mut bytes, seal, id, DiskId(1), &read(256));
        seal = seal.next();
        other.bytes(&bytes);
    };
    other.take();
    say(&mut other, 1);
    say(&mut other, 2);
    for (question, _) in other.questions() {
        let content = vec![content(256, 1)];
        let result = Ok(MemberReply::Data { content, absent: Vec::new() });
        other.handle(Event::Answer { question, promise: Duration::ZERO, result });
    }
    // The first answer is out but for a byte.
    let connection = other.link.connection().expect("up");
    other.link.handle_sent(other.now, connection, 64 + (1 << 20) - 1);
    other.link.check();
    other.link.handle_sent(other.now, connection, 1);
    say(&mut other, 3);
    assert_eq!(other.closed(), None, "one was freed ...");
    say(&mut other, 4);
    assert_eq!(other.closed(), Some(CloseReason::BeyondCredit), "... and not two");
}

#[test]
fn what_an_earlier_connection_left_counts_and_comes_back() {
    let (mut one, mut other) = pair();
    let mut left = Vec::new();
    // Twice all that was granted stays with the disk, and who asked does not want it any more.
    for round in 0..2 {
        for token in 1..=8 {
            one.ask(round * 10 + token, u128::from(token), flush());
        }
        talk(&mut one, &mut other);
        left.extend(other.questions());
        (1..=8).for_each(|t| one.handle(Event::Cancel { token: MemberToken(round * 10 + t) }));
        let connection = one.link.connection().expect("up");
        one.handle(Event::Lost { connection });
        one.pass(LINK_RETRY_MS_MAX);
        other.now = one.now;
        connect(&mut one, &mut other);
    }
    assert_eq!(left.len(), 16);
    one.ask(30, 1, flush());
    talk(&mut one, &mut other);
    assert_eq!(other.questions().len(), 0, "nothing more is granted");
    // The disk answers: nobody hears it, but there is room again.
    for (question, _) in left {
        other.written(question);
    }
    talk(&mut one, &mut other);
    assert_eq!(one.ended(), []);
    let questions = other.questions();
    assert_eq!(questions.len(), 1);
    other.written(questions[0].0);
}

#[test]
fn a_credit_is_not_taken_back() {
    let (mut one, _) = pair();
    let mut bytes = Vec::new();
    note::put_credit(&mut bytes, seal(), 7, 2 << 20);
    one.bytes(&bytes);
    let why = CloseReason::Protocol("a credit that was given is taken back");
    assert_eq!(one.closed(), Some(why));
}

#[test]
fn beyond_what_a_link_keeps_the_answer_is_busy() {
    let mut end = dialler();
    let count = LINK_PENDING_MAX as u64;
    (1..=count).for_each(|token| {
        let event = Event::Ask { token: MemberToken(token), disk: DiskId(1), request: flush() };
        end.link.handle(end.now, event, &mut end.effects);
    });
    end.wanted();
    end.ask(count + 1, 1, flush());
    let effects = end.wanted();
    let [Effect::Answered { token, result: Err(MemberError::Busy), .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(token.0, count + 1);
    // One that no frame can carry is refused as a disk here would.
    end.handle(Event::Cancel { token: MemberToken(1) });
    end.ask(count + 2, 1, read(257));
    let effects = end.wanted();
    let [Effect::Answered { result: Err(error), .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(*error, MemberError::invalid("the read is too long"));
    end.handle(Event::Stop);
    assert_eq!(end.ended().len(), LINK_PENDING_MAX - 1, "each ends");
}

#[test]
fn control_messages_are_dropped_rather_than_kept_without_end() {
    let mut end = dialler();
    let send = |end: &mut End, bytes: usize| {
        let message = Buffer::zeroed(bytes).freeze().slice(0, bytes);
        end.handle(Event::Control { channel: Channel::RAFT, message });
        end.link.counters().controls_dropped
    };
    assert_eq!(send(&mut end, 100), 1, "there is no connection");
    let (mut one, mut other) = pair();
    for _ in 0..8 {
        assert_eq!(send(&mut one, 1 << 20), 0);
    }
    assert_eq!(send(&mut one, 1), 1, "too many bytes wait");
    talk(&mut one, &mut other);
    for _ in 0..LINK_CONTROL_QUEUE_MAX {
        assert_eq!(send(&mut one, 2), 1);
    }
    assert_eq!(send(&mut one, 1), 2, "too many wait");
    other.wanted();
    talk(&mut one, &mut other);
    assert_eq!(other.wanted().len(), LINK_CONTROL_QUEUE_MAX);
}

#[test]
fn promises_do_not_pile_up_for_a_peer_that_only_beats() {
    let (_, mut other) = pair();
    other.take();
    let mut seal = seal();
    for number in 0..100 {
        let mut bytes = Vec::new();
        note::put_beat(&mut bytes, seal, number);
        seal = seal.next();
        other.bytes(&bytes);
        for effect in other.wanted() {
            let Effect::Beat { beat } = effect else { panic!("{effect:?}") };
            other.handle(Event::Promise { beat, promises: Vec::new() });
        }
    }
    assert_eq!(other.take().len(), LINK_BEATS_KEPT_MAX * 64);
}
