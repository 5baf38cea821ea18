//! A peer that is slow, silent, stuck or gone.

use super::*;
use proto::limits::*;
use proto::wire::note::Promise;

#[test]
fn a_peer_that_cannot_be_reached_is_tried_again_less_and_less_often() {
    let mut end = dialler();
    let mut waits = Vec::new();
    for _ in 0..8 {
        let connection = end.link.connection().expect("it dials");
        end.handle(Event::DialFailed { connection });
        assert_eq!(end.closed(), Some(CloseReason::Unreachable));
        let at = end.link.deadline().expect("it tries again");
        waits.push(at.since(end.now).as_millis());
        end.pass(LINK_RETRY_MS_MAX.min(at.since(end.now).as_millis() as u64));
    }
    assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    // No answer at all.
    end.wanted();
    end.pass(LINK_CONNECT_MS_MAX);
    assert_eq!(end.closed(), Some(CloseReason::ConnectTooSlow));
}

#[test]
fn a_connection_that_lasted_is_made_anew_at_once() {
    for (lasted, wait) in [(LINK_STEADY_MS, LINK_RETRY_MS), (LINK_STEADY_MS / 2, 400)] {
        let mut end = dialler();
        for _ in 0..2 {
            let connection = end.link.connection().expect("it dials");
            end.handle(Event::DialFailed { connection });
            end.pass(400);
        }
        let mut other = listener();
        (other.now, end.now) = (end.now, end.now);
        connect(&mut end, &mut other);
        for _ in 0..lasted / 100 {
            end.pass(100);
            other.pass(100);
            talk(&mut end, &mut other);
        }
        let connection = end.link.connection().expect("it is up");
        end.handle(Event::Lost { connection });
        let at = end.link.deadline().expect("it tries again");
        assert_eq!(at.since(end.now), Duration::from_millis(wait), "after {lasted} ms");
    }
}

#[test]
fn a_hello_takes_ten_seconds_at_most() {
    let greeter = Greeter::new(START, settings(2, 22, 1, 1).identity);
    assert_eq!(greeter.deadline().since(START), Duration::from_millis(LINK_HELLO_MS_MAX));
    let mut end = dialler();
    let connection = end.link.connection().expect("it dials");
    end.handle(Event::Dialled { connection, nonce: 1 });
    end.take();
    end.wanted();
    end.pass(LINK_HELLO_MS_MAX - 1);
    assert_eq!(end.closed(), None);
    end.pass(1);
    assert_eq!(end.closed(), Some(CloseReason::HelloTooSlow));
}

#[test]
fn a_hello_that_trickles_is_not_waited_for() {
    let mut end = dialler();
    let connection = end.link.connection().expect("it dials");
    end.handle(Event::Dialled { connection, nonce: 1 });
    end.take();
    let mut hello = Vec::new();
    hello_of(&settings(2, 22, 8, 1 << 20), 1, 2).put(&mut hello);
    end.wanted();
    for byte in &hello[..20] {
        end.bytes(&[*byte]);
        end.pass(1000);
    }
    assert_eq!(end.closed(), Some(CloseReason::FrameTooSlow));
}

#[test]
fn a_silent_peer_is_gone_after_two_seconds_and_beats_keep_it_there() {
    let (mut one, mut other) = pair();
    for _ in 0..40 {
        one.pass(LINK_BEAT_MS);
        other.pass(LINK_BEAT_MS);
        talk(&mut one, &mut other);
    }
    assert!(one.link.is_up() && other.link.is_up());
    one.wanted();
    // The other one stands still; what we send is taken by its kernel.
    for _ in 0..LINK_SILENT_MS_MAX / LINK_BEAT_MS - 1 {
        one.pass(LINK_BEAT_MS);
        one.take();
    }
    assert_eq!(one.closed(), None);
    one.pass(LINK_BEAT_MS);
    assert_eq!(one.closed(), Some(CloseReason::Silent));
}

#[test]
fn half_a_frame_is_waited_for_five_seconds() {
    let (mut one, mut other) = pair();
    one.ask(1, 1, write(1, 8));
    let bytes = one.take();
    // A byte a second keeps nobody from it.
    let (head, rest) = bytes.split_at(bytes.len() - 20);
    other.bytes(head);
    for byte in &rest[..5] {
        assert_eq!(other.closed(), None);
        other.pass(1000);
        other.take();
        other.bytes(&[*byte]);
    }
    assert_eq!(other.closed(), Some(CloseReason::FrameTooSlow));
}

#[test]
fn a_peer_that_never_reads_is_given_up() {
    let (mut one, _) = pair();
    one.take();
    one.ask(1, 1, write(1, 256));
    let connection = one.link.connection().expect("up");
    // It takes a byte now and then, and says something itself; that helps nothing.
    let beats = std::iter::successors(Some(seal()), |seal| Some(seal.next()));
    for (seal, second) in beats.zip(0..20) {
        let mut beat = Vec::new();
        proto::wire::note::put_beat(&mut beat, seal, second);
        one.bytes(&beat);
        one.link.handle_sent(one.now, connection, 1);
        let closed = one.closed();
        if closed.is_some() {
            assert_eq!(closed, Some(CloseReason::NotReading));
            assert_eq!(second * 500, LINK_STALL_MS_MAX);
            return;
        }
        one.pass(500);
    }
    panic!("it is still waited for");
}

#[test]
fn promises_count_from_the_question() {
    let (mut one, mut other) = pair();
    one.pass(300);
    let asked_at = Time(START.0 + 250_000_000);
    other.now = one.now;
    let beats = one.take();
    assert_eq!(kinds(&beats, seal()), [Kind::Beat, Kind::Beat], "at once, and after 250 ms");
    other.bytes(&beats);
    let wanted = other.wanted().into_iter();
    let beats: Vec<_> = wanted
        .filter_map(|effect| match effect {
            Effect::Beat { beat } => Some(beat),
            _ => None,
        })
        .collect();
    let span = Duration::from_millis(1000);
    let promise = Promise { disk: DiskId(1), incarnation: Incarnation(9), span };
    other.handle(Event::Promise { beat: beats[1], promises: vec![promise] });
    one.pass(100);
    let answer = other.take();
    one.bytes(&answer);
    let told = one.wanted().into_iter().find_map(|effect| match effect {
        Effect::Promised { asked_at, promises } => Some((asked_at, promises)),
        _ => None,
    });
    assert_eq!(told, Some((asked_at, vec![promise])));
    // A disk's answer carries one too.
    one.ask(1, 1, write(1, 1));
    let asked_at = one.now;
    talk(&mut one, &mut other);
    let (question, _) = other.questions()[0];
    other.written(question);
    one.pass(50);
    talk(&mut one, &mut other);
    let told = one.wanted().into_iter().find_map(|effect| match effect {
        Effect::Answered { asked_at, promise, .. } => Some((asked_at, promise)),
        _ => None,
    });
    assert_eq!(told, Some((asked_at, Duration::from_millis(800))));
}
