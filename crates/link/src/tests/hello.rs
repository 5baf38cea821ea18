//! Who may speak: everybody else hears one sentence.

use super::*;
use proto::wire::note;
use proto::{ClusterId, limits};

#[test]
fn both_sides_learn_version_process_and_what_both_can() {
    let one = Settings { version_max: 3, features: 0b0110, ..settings(1, 11, 8, 1 << 20) };
    let other = Settings { version_max: 2, features: 0b0011, ..settings(2, 22, 9, 1 << 20) };
    let (mut one, mut other) = (End::new(one, 2), End::new(other, 1));
    connect(&mut one, &mut other);
    for (end, peer) in [(&mut one, 22), (&mut other, 11)] {
        let up = end.wanted().into_iter().find_map(|effect| match effect {
            Effect::Up { instance, version, features } => Some((instance, version, features)),
            _ => None,
        });
        assert_eq!(up, Some((peer, 2, 0b0010)));
    }
    // And go on in that version.
    one.ask(1, 1, flush());
    talk(&mut one, &mut other);
    assert_eq!(other.questions().len(), 1);
}

/// What a listener says to a hello, and what the dialler then knows.
fn check_dialler(change: impl Fn(&mut Hello), sentence: &str) {
    let mut dialler = dialler();
    let connection = dialler.link.connection().expect("it dials");
    dialler.handle(Event::Dialled { connection, nonce: DIALLER_NONCE });
    dialler.take();
    dialler.wanted();
    let mut hello = hello_of(&settings(2, 22, 8, 1 << 20), 1, LISTENER_NONCE);
    change(&mut hello);
    let mut bytes = Vec::new();
    hello.put(&mut bytes);
    dialler.bytes(&bytes);
    let effects = dialler.wanted();
    let [Effect::Close { reason, farewell, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(reason.to_string(), sentence);
    // Who sent that hello can read it.
    assert_eq!(said(farewell, seal()), sentence);
    // It is not tried again at once.
    let retry = dialler.link.deadline().expect("it tries again").since(dialler.now);
    assert_eq!(retry, Duration::from_millis(proto::limits::LINK_RETRY_MS_MAX));
}

/// What a listener says to the hello of a dialler.
fn check_listener(change: impl Fn(&mut Hello), sentence: &str) {
    let mut hello = hello_of(&settings(1, 11, 8, 1 << 20), 2, DIALLER_NONCE);
    change(&mut hello);
    let mut bytes = Vec::new();
    hello.put(&mut bytes);
    let mut listener = listener();
    let mut greeter = Greeter::new(START, settings(2, 22, 1, 1).identity);
    let farewell = match greeter.handle_bytes(&bytes) {
        Err(reason) => Greeter::farewell(&reason),
        Ok(hello) => {
            let hello = hello.expect("whole");
            let effects = &mut listener.effects;
            let number = listener.link.handle_accepted(START, &hello, LISTENER_NONCE, effects);
            let Some(Effect::Close { connection, farewell, .. }) = effects.pop() else {
                panic!("it was taken")
            };
            assert_eq!(connection, number);
            farewell
        }
    };
    assert_eq!(said(&farewell, Seal::HELLO), sentence);
    assert!(!listener.link.is_up());
}

/// The sentence of a goodbye.
fn said(farewell: &[u8], seal: Seal) -> String {
    let header = Header::parse(farewell.first_chunk().expect("a header"), seal).expect("sound");
    let body = &farewell[HEADER_BYTES..];
    header.verify(body, &[]).expect("sound");
    note::goodbye(&header, body).expect("a goodbye").1
}

#[test]
fn everybody_else_hears_one_sentence() {
    check_dialler(
        |hello| hello.identity.cluster = ClusterId(8),
        "the node belongs to cluster 00000000000000000000000000000008 and this one to \
         00000000000000000000000000000007; correct the address",
    );
    check_listener(
        |hello| hello.identity.cluster = ClusterId(8),
        "the node belongs to cluster 00000000000000000000000000000008 and this one to \
         00000000000000000000000000000007; correct the address",
    );
    check_dialler(
        |hello| hello.identity.node = NodeId(1),
        "the other side is node 00000000000000000000000000000001, as this one is; if its disks \
         are a copy of this node's, stop it, else correct the address",
    );
    check_listener(
        |hello| hello.identity.node = NodeId(2),
        "the other side is node 00000000000000000000000000000002, as this one is; if its disks \
         are a copy of this node's, stop it, else correct the address",
    );
    check_dialler(
        |hello| hello.identity.node = NodeId(3),
        "node 00000000000000000000000000000003 answers at the address of node \
         00000000000000000000000000000002; correct the address",
    );
    check_listener(
        |hello| hello.peer = NodeId(3),
        "the node took this one, 00000000000000000000000000000002, for node \
         00000000000000000000000000000003; correct the address it has",
    );
    check_dialler(
        |hello| (hello.version_min, hello.version_max) = (2, 4),
        "the node speaks versions 2 to 4 and this one 1 to 1; upgrade the older one first",
    );
    check_listener(
        |hello| (hello.version_min, hello.version_max) = (2, 4),
        "the node speaks versions 2 to 4 and this one 1 to 1; upgrade the older one first",
    );
    let unknown = CloseReason::UnknownNode { node: NodeId(9) };
    assert_eq!(
        said(&Greeter::farewell(&unknown), Seal::HELLO),
        "node 00000000000000000000000000000009 is not a member of this cluster; let it join first"
    );
}

#[test]
fn of_two_connections_that_cross_one_stays() {
    // Node 2 has dialled node 1 too. Whoever is not connected, or has not said a hello, takes it.
    let hello = |instance| hello_of(&settings(2, instance, 8, 1 << 20), 1, 9);
    let mut end = dialler();
    let dialled = end.link.connection();
    let number = end.link.handle_accepted(START, &hello(22), 10, &mut end.effects);
    let effects = end.wanted();
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Close { connection, .. }
        if Some(*connection) == dialled)));
    assert!(end.link.is_up() && end.link.connection() == Some(number));

    // Else that of the lower id stays, at both ends.
    let refuses = |end: &mut End, instance| {
        let before = end.link.connection();
        let number = end.link.handle_accepted(START, &hello(instance), 10, &mut end.effects);
        let is_refused = end.wanted().iter().any(|effect| match effect {
            Effect::Close { connection, reason, farewell } if *connection == number => {
                assert_eq!(*reason, CloseReason::Superseded);
                !farewell.is_empty()
            }
            _ => false,
        });
        assert_eq!(end.link.connection() == before, is_refused);
        is_refused
    };
    let mut end = dialler();
    let connection = end.link.connection().expect("it dials");
    end.handle(Event::Dialled { connection, nonce: DIALLER_NONCE });
    assert!(refuses(&mut end, 22));
    let (mut end, mut other) = pair();
    assert!(refuses(&mut end, 22));
    end.handle(Event::Lost { connection: end.link.connection().expect("connected") });
    end.wanted();
    assert!(!refuses(&mut end, 23), "it was restarted");
    // The other end dials when nobody came for a while, and drops that for what comes.
    other.handle(Event::Lost { connection: other.link.connection().expect("connected") });
    other.pass(limits::LINK_RETRY_MS_MAX - 1);
    assert_eq!(other.link.connection(), None);
    other.pass(1);
    let connection = other.link.connection().expect("it dials");
    other.handle(Event::Dialled { connection, nonce: LISTENER_NONCE });
    let mut first = dialler();
    let dialled = first.link.connection().expect("it dials");
    first.handle(Event::Dialled { connection: dialled, nonce: DIALLER_NONCE });
    accept(&mut other, &first.take());
    assert!(other.link.is_up());
    assert_ne!(other.link.connection(), Some(connection));
}

#[test]
fn nothing_is_heard_before_a_hello() {
    let mut beat = Vec::new();
    note::put_beat(&mut beat, Seal::HELLO, 1);
    let greet = |bytes: &[u8]| {
        Greeter::new(START, settings(2, 22, 1, 1).identity).handle_bytes(bytes).map(drop)
    };
    assert_eq!(greet(&beat), Err(CloseReason::BeforeHello));
    // Nor behind it, before the answer.
    let mut hello = Vec::new();
    hello_of(&settings(1, 11, 8, 1 << 20), 2, 1).put(&mut hello);
    assert_eq!(greet(&hello), Ok(()));
    assert_eq!(greet(&[hello, beat.clone()].concat()), Err(CloseReason::BeforeHello));
    let garbage =
        greet(b"GET / HTTP/1.1\r\nHost: sheep\r\nUser-Agent: somebody who is lost\r\n\r\n");
    assert_eq!(
        garbage.expect_err("no frame").to_string(),
        "what came is no frame of Sheepdog; see which program speaks at that address"
    );

    let mut dialler = dialler();
    let connection = dialler.link.connection().expect("it dials");
    dialler.handle(Event::Dialled { connection, nonce: DIALLER_NONCE });
    dialler.wanted();
    dialler.bytes(&beat);
    assert_eq!(dialler.closed(), Some(CloseReason::BeforeHello));
}

#[test]
fn a_hello_comes_once() {
    let (_, mut listener) = pair();
    // A hello is never sealed for a connection, so it is not even the frame that should follow.
    let mut hello = Vec::new();
    hello_of(&settings(1, 11, 8, 1 << 20), 2, 1).put(&mut hello);
    listener.bytes(&hello);
    assert!(matches!(listener.closed(), Some(CloseReason::Frame(_))));
}

#[test]
fn a_goodbye_is_told_in_the_words_of_the_other_side() {
    let (mut dialler, mut listener) = pair();
    listener.handle(Event::Stop);
    let effects = listener.wanted();
    let [Effect::Close { farewell, .. }, Effect::Down { .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    dialler.bytes(farewell);
    let reason = dialler.closed().expect("closed").to_string();
    let told =
        "the node ended the connection: this node ends the connection; nothing is to be done";
    assert_eq!(reason, told);
}

#[test]
fn a_process_that_comes_back_after_its_successor_is_a_twin() {
    let mut listener = listener();
    assert!(comes(&mut listener, 11, 1));
    assert!(comes(&mut listener, 11, 2), "it has connected anew");
    let connection = listener.link.connection().expect("connected");
    listener.handle(Event::Lost { connection });
    assert!(comes(&mut listener, 12, 3), "it was restarted");
    assert!(!comes(&mut listener, 11, 4), "the one before it is a copy");
    assert!(comes(&mut listener, 12, 5));
    let twins = listener.wanted().into_iter().filter(|effect| {
        matches!(effect, Effect::Close { reason: CloseReason::Twin { node: NodeId(1) }, .. })
    });
    assert_eq!(twins.count(), 1);
}

/// Whether a process of node 1 is taken.
fn comes(listener: &mut End, instance: u64, nonce: u64) -> bool {
    let hello = hello_of(&settings(1, instance, 8, 1 << 20), 2, nonce);
    let End { now, link, effects } = listener;
    let number = link.handle_accepted(*now, &hello, nonce, effects);
    link.connection() == Some(number)
}

/// It was let in, and put the one that ran out.
#[test]
fn a_copy_of_a_process_that_lives_is_refused_and_that_one_goes_on() {
    let (mut dialler, mut listener) = pair();
    let connection = listener.link.connection();
    let mut nonce = 100;
    let mut reasons = Vec::new();
    for _ in 0..30 {
        nonce += 1;
        assert!(!comes(&mut listener, 99, nonce));
        reasons.extend(listener.wanted().into_iter().filter_map(|effect| match effect {
            Effect::Close { reason, .. } => Some(reason),
            _ => None,
        }));
        dialler.pass(100);
        listener.pass(100);
        talk(&mut dialler, &mut listener);
    }
    let node = NodeId(1);
    assert_eq!(reasons[0], CloseReason::Undecided { node });
    assert_eq!(reasons.last(), Some(&CloseReason::Twin { node }));
    assert!(listener.link.is_up() && listener.link.connection() == connection);
    // Nor is it taken when the other one ends, which is started anew.
    listener.handle(Event::Lost { connection: connection.expect("connected") });
    assert!(!comes(&mut listener, 99, 1));
    assert!(comes(&mut listener, 12, 2));
}

/// Its machine lost its power, say, or moved: nobody has told that its connections are gone.
#[test]
fn a_process_whose_forerunner_died_without_a_word_comes_in_once_that_is_silent() {
    let (_, mut listener) = pair();
    assert!(!comes(&mut listener, 12, 2));
    let said = listener.wanted().into_iter().find_map(|effect| match effect {
        Effect::Close { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(said, Some(CloseReason::Undecided { node: NodeId(1) }));
    listener.pass(limits::LINK_SILENT_MS_MAX);
    listener.wanted();
    assert!(comes(&mut listener, 12, 3));
}
