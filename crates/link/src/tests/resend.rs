//! What becomes of requests when connections and processes end.

use super::*;
use proto::wire::{reply, request};

/// The dialler's connection breaks, and is made anew.
fn reconnect(one: &mut End, other: &mut End) {
    let connection = one.link.connection().expect("up");
    one.handle(Event::Lost { connection });
    one.pass(proto::limits::LINK_RETRY_MS_MAX);
    other.now = one.now;
    connect(one, other);
}

fn sequences(questions: &[(crate::Question, MemberRequest)]) -> Vec<u64> {
    questions.iter().map(|(_, request)| sequence_of(request)).collect()
}

#[test]
fn what_was_not_answered_is_sent_again_in_order_under_the_same_ids() {
    let (mut one, mut other) = pair();
    (1..=6).for_each(|token| one.ask(token, 1, write(token, 1)));
    talk(&mut one, &mut other);
    let questions = other.questions();
    assert_eq!(sequences(&questions), [1, 2, 3, 4]);
    // The second is answered, and the answer is lost with the connection.
    other.written(questions[1].0);
    other.take();
    reconnect(&mut one, &mut other);
    talk(&mut one, &mut other);
    let again = other.questions();
    // The disk still works on three of them: they are not asked twice.
    assert_eq!(sequences(&again), [2]);
    assert_eq!(again[0].0, questions[1].0, "under the same id");
    assert_eq!(one.link.counters().resent, 4);
    assert_eq!(other.link.counters().adopted, 3);
    // Their answers go to the new connection.
    for question in [questions[0].0, again[0].0, questions[3].0, questions[2].0] {
        other.written(question);
    }
    talk(&mut one, &mut other);
    assert_eq!(one.ended(), [(1, true), (2, true), (4, true), (3, true)]);
    assert_eq!(sequences(&other.questions()), [5, 6]);
}

#[test]
fn an_answer_to_what_has_not_come_again_is_dropped() {
    let (mut one, mut other) = pair();
    one.ask(1, 1, flush());
    talk(&mut one, &mut other);
    let (question, _) = other.questions()[0];
    one.handle(Event::Cancel { token: MemberToken(1) });
    reconnect(&mut one, &mut other);
    other.written(question);
    talk(&mut one, &mut other);
    assert_eq!(one.ended(), []);
    assert!(one.link.is_up() && one.link.pending() == 0);
}

#[test]
fn a_cancelled_request_is_not_sent_or_its_answer_not_told() {
    let (mut one, mut other) = pair();
    (1..=6).for_each(|token| one.ask(token, 1, flush()));
    talk(&mut one, &mut other);
    let questions = other.questions();
    for token in [2, 5, 77] {
        one.handle(Event::Cancel { token: MemberToken(token) });
    }
    questions.iter().for_each(|(question, _)| {
        let result = Ok(MemberReply::Flushed { incarnation: Incarnation(1) });
        other.handle(Event::Answer { question: *question, promise: Duration::ZERO, result });
    });
    talk(&mut one, &mut other);
    assert_eq!(one.ended(), [(1, true), (3, true), (4, true)]);
    assert_eq!(other.questions().len(), 1, "the sixth, not the fifth");
}

#[test]
fn a_restarted_peer_is_told_with_everything_forgotten_before_it_is_up() {
    let (mut one, mut other) = pair();
    (1..=5).for_each(|token| one.ask(token, 1, write(token, 1)));
    talk(&mut one, &mut other);
    let connection = one.link.connection().expect("up");
    one.handle(Event::Lost { connection });
    one.pass(1000);
    one.ask(6, 1, flush());
    let mut other = End::new(settings(2, 23, 8, 2 << 20), 1);
    other.now = one.now;
    one.wanted();
    let connection = one.link.connection().expect("it dials");
    one.handle(Event::Dialled { connection, nonce: DIALLER_NONCE });
    let hello = one.take();
    accept(&mut other, &hello);
    let hello = other.take();
    one.bytes(&hello);
    let told: Vec<String> = one
        .wanted()
        .iter()
        .map(|effect| match effect {
            Effect::Forgotten { token } => format!("forgotten {}", token.0),
            Effect::Up { instance, .. } => format!("up {instance}"),
            other => format!("{other:?}"),
        })
        .collect();
    let forgotten = (1..=6).map(|token| format!("forgotten {token}"));
    assert_eq!(told, forgotten.chain(["up 23".to_owned()]).collect::<Vec<_>>());
    // What is asked from now on goes there.
    one.ask(7, 1, flush());
    talk(&mut one, &mut other);
    assert_eq!(other.questions().len(), 1);
}

/// A new process numbers its requests from 1 again.
#[test]
fn the_same_id_of_another_process_is_another_request() {
    let (mut one, mut other) = pair();
    one.ask(1, 1, flush());
    talk(&mut one, &mut other);
    let (before, _) = other.questions()[0];
    let mut one = End::new(settings(1, 12, 8, 2 << 20), 2);
    other.handle(Event::Lost { connection: other.link.connection().expect("connected") });
    connect(&mut one, &mut other);
    one.ask(5, 1, flush());
    talk(&mut one, &mut other);
    let (after, _) = other.questions()[0];
    assert_ne!(before, after);
    let flushed = || Ok(MemberReply::Flushed { incarnation: Incarnation(1) });
    let promise = Duration::ZERO;
    other.handle(Event::Answer { question: before, promise, result: flushed() });
    talk(&mut one, &mut other);
    assert_eq!(one.ended(), [], "that was for the process before");
    other.handle(Event::Answer { question: after, promise, result: flushed() });
    talk(&mut one, &mut other);
    assert_eq!(one.ended(), [(5, true)]);
}

#[test]
fn an_id_means_one_request() {
    let say = |other: &mut End, seal, id, request: &MemberRequest| {
        let mut bytes = Vec::new();
        request::put(&mut bytes, seal, id, DiskId(1), request);
        other.bytes(&bytes);
    };
    let (_, mut other) = pair();
    say(&mut other, seal(), 1, &flush());
    say(&mut other, seal().next(), 1, &flush());
    assert_eq!(other.closed(), Some(CloseReason::Protocol("two requests have one id")));

    let (mut one, mut other) = pair();
    say(&mut other, seal(), 1, &flush());
    reconnect(&mut one, &mut other);
    other.wanted();
    say(&mut other, seal(), 1, &fence());
    let why = CloseReason::Protocol("a request comes again as another one");
    assert_eq!(other.closed(), Some(why));
}

#[test]
fn answers_to_nothing_or_of_another_kind_end_the_connection() {
    let answer = |id: u64, result: MemberReply| {
        let (mut one, mut other) = pair();
        one.ask(1, 1, read(2));
        talk(&mut one, &mut other);
        // The listener has said nothing but its hello so far.
        let mut bytes = Vec::new();
        reply::put(&mut bytes, seal(), id, Duration::ZERO, &Ok(result));
        one.bytes(&bytes);
        one.closed()
    };
    let nothing = CloseReason::Protocol("it answers what was not asked");
    let content = |blocks| MemberReply::Data { content: vec![content(blocks, 0)], absent: vec![] };
    assert_eq!(answer(2, MemberReply::Done), Some(nothing.clone()));
    // A payload is not even awaited.
    assert_eq!(answer(2, content(2)), Some(nothing));
    for result in [MemberReply::Done, content(1), content(3)] {
        assert!(matches!(answer(1, result), Some(CloseReason::Frame(_))));
    }
    assert_eq!(answer(1, content(2)), None, "its content is awaited");
}

/// In whatever two pieces a conversation comes, what follows from it is the same.
#[test]
fn a_stream_may_be_cut_into_pieces_at_every_byte() {
    let (mut one, mut other) = pair();
    one.ask(1, 1, write(1, 2));
    one.ask(2, 1, read(1));
    one.ask(3, 2, fence());
    let message = content(1, 9).slice(0, 100);
    one.handle(Event::Control { channel: proto::wire::note::Channel::RAFT, message });
    let bytes = one.take();
    other.bytes(&bytes);
    let whole = format!("{:?}", other.wanted());
    for cut in 1..bytes.len() {
        let (_, mut other) = pair();
        other.bytes(&bytes[..cut]);
        other.bytes(&bytes[cut..]);
        assert_eq!(format!("{:?}", other.wanted()), whole, "cut at {cut}");
    }
    // And cut off there, nothing is made of the rest.
    for cut in (1..bytes.len()).step_by(7) {
        let (_, mut other) = pair();
        other.bytes(&bytes[..cut]);
        assert!(other.link.is_up() && format!("{:?}", other.wanted()).len() < whole.len());
    }
}

/// One piece of a list, which the asker has go on by itself.
#[test]
fn a_list_that_goes_on_is_an_answer_of_its_own() {
    let (mut one, mut other) = pair();
    one.ask(1, 1, fence());
    talk(&mut one, &mut other);
    let (question, _) = other.questions()[0];
    let row = |index| proto::ObjectStamp {
        key: ObjectKey { index, ..KEY },
        stamp: Stamp::default(),
        settled_generation: Generation(0),
    };
    let unsettled = (0..proto::limits::MEMBER_ROWS_MAX as u32).map(row).collect();
    let (incarnation, settled, more) = (Incarnation(1), Stamp::default(), true);
    let result = Ok(MemberReply::Fenced { incarnation, settled, unsettled, more });
    other.handle(Event::Answer { question, promise: Duration::ZERO, result });
    talk(&mut one, &mut other);
    let effects = one.wanted();
    let [Effect::Answered { result: Ok(MemberReply::Fenced { unsettled, more, .. }), .. }] =
        &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!((unsettled.len(), *more), (proto::limits::MEMBER_ROWS_MAX, true));
    assert_eq!(one.link.pending(), 0);
}
