//! What a node hears late: what others were told a moment ago, and that there is a new node.

use crate::support::{MIB, Net};
use crate::three;
use engine::admin::{AdminErrorKind, AdminReply, AdminRequest};
use engine::{ConnectionId, Input};
use volume::Answer;

/// What a client is answered that asks for a name.
fn answer(net: &mut Net, at: usize, connection: ConnectionId) -> Answer {
    net.until("it is answered", 10, |net| net.nodes[at].answers.contains_key(&connection));
    net.nodes[at].answers.remove(&connection).expect("just seen")
}

fn begin_describe(net: &mut Net, at: usize, number: u64, name: &str) -> ConnectionId {
    let connection = ConnectionId(2_000_000 + number);
    net.tell(at, Input::Describe { connection, name: name.into() });
    connection
}

/// It said that there is no volume of that name, for as long as it had not heard of it.
#[test]
fn what_one_node_was_told_is_there_for_whoever_asks_another_one_at_once() {
    let mut net = three(61);
    for round in 0..12_u64 {
        let (told, name) = (round as usize % 3, format!("v{round}"));
        net.create(told, &name);
        for at in (0..3).filter(|at| *at != told) {
            let number = round * 3 + at as u64;
            let described = begin_describe(&mut net, at, number, &name);
            let opened = (round % 2 == 0 && at != told).then(|| net.begin_open(at, &name));
            let request = AdminRequest::VolumeInfo { name: name.clone() };
            let reply = net.ask(at, request);
            assert!(matches!(reply, Ok(AdminReply::Volume(_))), "{name} at {at}: {reply:?}");
            let described = answer(&mut net, at, described);
            assert!(matches!(described, Answer::Described { .. }), "{described:?}");
            if let Some(connection) = opened {
                let opened = answer(&mut net, at, connection);
                assert!(matches!(opened, Answer::Opened { .. }), "{opened:?}");
                net.tell(at, Input::Close { connection });
            }
        }
        // What was deleted elsewhere is gone for whoever asks at once, too.
        net.until("nobody has it", 10, |net| {
            let request = AdminRequest::VolumeDelete {
                name: name.clone(),
                with_snapshots: false,
                keep_s: Some(0),
            };
            net.ask(told, request).is_ok()
        });
    }
}

/// Each question for a name that does not exist cost the cluster an entry of the log.
#[test]
fn names_that_do_not_exist_are_refused_and_cost_little() {
    let mut net = three(62);
    let last = |net: &Net, at: usize| {
        let voter = net.nodes[at].engine.as_ref().and_then(engine::Engine::voter);
        voter.expect("it votes").status().last
    };
    let before = last(&net, 0);
    let began = net.now;
    let mut asked = Vec::new();
    for number in 0..300 {
        asked.push(begin_describe(&mut net, 1, number, "nobody"));
    }
    for connection in asked {
        let answer = answer(&mut net, 1, connection);
        assert!(matches!(answer, Answer::Unknown { .. }), "{answer:?}");
    }
    for _ in 0..20 {
        let error = net.ask(2, AdminRequest::VolumeInfo { name: "nobody".into() }).unwrap_err();
        assert_eq!(error.kind, AdminErrorKind::NotFound, "{error:?}");
    }
    let pauses = net.now.since(began).as_millis() as u64 / proto::limits::LOOKUP_PAUSE_MS + 1;
    let entries = last(&net, 0) - before;
    assert!(entries <= 2 * pauses, "{entries} entries in {pauses} pauses of two nodes");
}

/// Nobody can say what was agreed: it is not said that there is no such volume.
#[test]
fn while_nobody_agrees_a_name_is_not_said_not_to_exist() {
    let mut net = three(63);
    let leader = net.status(0).agreement.leader.expect("there is one");
    let alone = (0..3).find(|&at| net.nodes[at].id != leader).expect("two do not lead");
    net.isolate(alone);
    let early = begin_describe(&mut net, alone, 1, "nobody");
    // A client that does not wait is forgotten.
    let impatient = begin_describe(&mut net, alone, 2, "nobody");
    net.tell(alone, Input::Close { connection: impatient });
    let early = answer(&mut net, alone, early);
    assert!(matches!(&early, Answer::Refused { sentence } if sentence.contains("may not have")));
    assert!(!net.nodes[alone].answers.contains_key(&impatient));
    net.until("it notices", 20, |net| net.status(alone).agreement.waiting.is_some());
    let late = begin_describe(&mut net, alone, 3, "nobody");
    let late = answer(&mut net, alone, late);
    assert!(matches!(late, Answer::Refused { .. }), "{late:?}");
    net.heal();
    net.until("it is led", 20, |net| net.status(alone).agreement.waiting.is_none());
    let healed = begin_describe(&mut net, alone, 4, "nobody");
    let healed = answer(&mut net, alone, healed);
    assert!(matches!(healed, Answer::Unknown { .. }), "{healed:?}");
}

/// The node attached what had the tag by then, held it for the one before, and ended.
#[test]
fn a_snapshot_that_is_taken_anew_under_its_tag_while_it_is_attached_is_another_one() {
    let mut net = three(64);
    let leader = net.status(0).agreement.leader.expect("there is one");
    let leader = (0..3).find(|&at| net.nodes[at].id == leader).expect("it is one of them");
    let late = (leader + 1) % 3;
    net.create(leader, "v");
    let (name, tag) = (String::from("v"), String::from("s"));
    let take = AdminRequest::SnapshotCreate { name: name.clone(), tag: tag.clone() };
    let delete = AdminRequest::SnapshotDelete { name, tag };
    net.ask(leader, take.clone()).expect("taken");
    net.until("it knows", 10, |net| {
        let connection = begin_describe(net, late, 1, "v@s");
        matches!(answer(net, late, connection), Answer::Described { .. })
    });
    // What it proposes is on its way for as long as it is cut off.
    net.isolate(late);
    let connection = net.begin_open(late, "v@s");
    net.pass(1);
    net.ask(leader, delete).expect("nobody reads it");
    net.ask(leader, take).expect("taken anew");
    net.pass(1);
    net.heal();
    let said = answer(&mut net, late, connection);
    let is_deleted = matches!(&said, Answer::Refused { sentence } if sentence.contains("deleted"));
    assert!(is_deleted, "{said:?}");
    net.pass(5);
    net.check();
    // Whoever asks now has the new one, and nothing is left of the other.
    let connection = net.open(late, "v@s");
    net.tell(late, Input::Close { connection });
    let delete = AdminRequest::SnapshotDelete { name: "v".into(), tag: "s".into() };
    net.until("nobody reads it", 10, |net| net.ask(leader, delete.clone()).is_ok());
}

/// It was never asked to follow the log: nothing had been heard of it since the leader began to
/// lead, as of one that is lost.
#[test]
fn a_node_joins_however_long_the_one_that_leads_has_led() {
    let mut net = three(65);
    net.pass(400);
    let new = net.add(40, &[400]);
    net.let_in(0, new);
    net.start(new);
    net.until("it serves", 30, |net| net.nodes[new].is_ready);
    let request = AdminRequest::VolumeCreate { name: "a".into(), bytes: MIB };
    assert!(net.ask(new, request).is_ok());
}
