//! What people see of a cluster and do about it: what is at risk, machines that are taken out, and
//! attachments that are ended by force.

use crate::support::{MIB, Net};
use engine::admin::{AdminErrorKind, AdminReply, AdminRequest};
use engine::{Client, ConnectionId, Input};
use proto::DiskId;
use volume::{Answer, Error, Operation};

const ONE_DISK: &[(u128, &[u128])] = &[(20, &[200]), (10, &[]), (30, &[])];
const THREE_DISKS: &[(u128, &[u128])] = &[(20, &[200]), (10, &[100]), (30, &[300])];

/// Three nodes with a disk each, and a copy of everything on each of them.
fn three_whole(seed: u64) -> Net {
    let mut net = Net::cluster(seed, THREE_DISKS);
    net.until("every partition has three copies", 240, |net| {
        let report = net.report(0);
        let is_whole = |disk: &engine::admin::ClusterDiskReport| disk.partitions == 4096;
        report.disks.len() == 3 && report.disks.iter().all(is_whole) && report.attempts.is_empty()
    });
    net.until_all_vote();
    net
}

#[track_caller]
fn done(net: &mut Net, at: usize, request: AdminRequest) {
    let reply = net.ask(at, request);
    assert!(matches!(reply, Ok(AdminReply::Done)), "{reply:?}");
}

/// What a request is refused with.
#[track_caller]
fn refused(net: &mut Net, at: usize, request: AdminRequest) -> String {
    let error = net.ask(at, request).expect_err("it is refused");
    assert_eq!(error.kind, AdminErrorKind::Conflict, "{error:?}");
    error.sentence
}

/// A connection that wants a volume, and what it was answered.
fn open(net: &mut Net, at: usize, number: u64, name: &str) -> Answer {
    let connection = ConnectionId(1_000_000 + number);
    let who = format!("impatient client {number}");
    let client = Client { identity: who.clone(), description: who };
    net.tell(at, Input::Open { connection, client, name: name.into() });
    net.until("it is answered", 30, |net| net.nodes[at].answers.contains_key(&connection));
    net.nodes[at].answers.remove(&connection).expect("just seen")
}

fn detach(name: &str) -> AdminRequest {
    AdminRequest::VolumeDetach { name: name.into(), tag: None }
}

#[test]
fn what_is_at_risk_is_said_with_what_is_waited_for() {
    let mut net = three_whole(41);
    for at in 0..3 {
        let report = net.report(at);
        assert!(report.healthy && report.warnings.is_empty(), "{report:?}");
        assert!(report.notes.is_empty(), "{:?}", report.notes);
        assert_eq!(report.nodes.iter().filter(|node| node.up && node.votes).count(), 3);
        assert_eq!(report.nodes.iter().filter(|node| node.leads).count(), 1);
        let all = &report.copies[..];
        let of_three = all.iter().find(|copies| copies.copies == 3).expect("a table");
        assert_eq!((of_three.possible, of_three.partitions, of_three.fewer), (3, 4096, 0));
        assert!(report.disks.iter().all(|disk| disk.away_s.is_none() && disk.recovering == 0));
        assert!(report.disks.iter().all(|disk| (333..=334).contains(&disk.share_permille)));
    }
    net.kill(2);
    net.until("it is missed", 30, |net| !net.report(0).healthy);
    let missed = net.report(0);
    let of_three = missed.copies.iter().find(|copies| copies.copies == 3).expect("a table");
    assert_eq!((of_three.fewer, of_three.single, of_three.waiting), (4096, 0, 0));
    let away = missed.nodes.iter().find(|node| !node.up).expect("one is away");
    assert_eq!((away.node, away.name.as_str()), (net.nodes[2].id, "n2"));
    let said = missed.warnings.join("\n");
    assert!(said.contains("node n2 has been away for"), "{said}");
    assert!(said.contains("4096 copies of partitions"), "{said}");
    assert!(said.contains("4096 of 4096 partitions have fewer than 3 copies"), "{said}");

    // Two are away before the members could be changed: what they hold waits.
    net.kill(1);
    net.until("it waits", 30, |net| net.report(0).agreement.waiting.is_some());
    let alone = net.report(0);
    let said = alone.warnings.join("\n");
    assert!(said.contains("a majority of the nodes that vote"), "{said}");
    assert!(said.contains("cannot be written"), "{said}");
    assert!(said.contains(&format!("disk {} of node n1 (away for", DiskId(100))), "{said}");
    for at in [1, 2] {
        net.start(at);
    }
    net.until("all is well again", 240, |net| net.report(0).healthy);
}

#[test]
fn a_machine_is_taken_out_in_order_and_the_last_copy_never() {
    let mut net = three_whole(42);
    net.create(0, "v");
    let connection = net.open(0, "v");
    net.write(0, connection, 0, 5, MIB);
    net.flush(0, connection);
    let remove_node = |node: &str| AdminRequest::NodeRemove { node: node.into() };
    let remove_disk = |disk: u128| AdminRequest::DiskRemove { disk: DiskId(disk) };
    let sentence = refused(&mut net, 0, remove_node("n2"));
    assert!(sentence.contains("dog node drain n2"), "{sentence}");
    let unknown = net.ask(0, remove_node("n7")).unwrap_err();
    assert_eq!(unknown.kind, AdminErrorKind::NotFound);

    // Where no other disks are, a drain keeps what there is.
    done(&mut net, 1, AdminRequest::NodeDrain { node: "n2".into(), wanted: true });
    net.until("it is known", 5, |net| net.report(0).nodes.iter().any(|node| node.draining));
    net.pass(5);
    let draining = net.report(0);
    let disk = draining.disks.iter().find(|disk| disk.disk == DiskId(300)).expect("listed");
    assert_eq!((disk.standing.as_str(), disk.partitions), ("draining", 4096));
    assert!(draining.notes.iter().any(|note| note.contains("being drained")), "{draining:?}");

    done(&mut net, 0, remove_disk(300));
    net.until("no partition lists it", 120, |net| net.report(0).disks.len() == 2);
    net.until("only that it runs is in the way", 60, |net| {
        refused(net, 0, remove_node("n2")).contains("still runs")
    });
    net.until("it says the same of itself", 60, |net| {
        refused(net, 2, remove_node("n2")).contains("ask another node")
    });
    net.tell(2, Input::Stop);
    net.until("it stops", 20, |net| net.nodes[2].is_stopped);
    net.kill(2);
    net.until("it is missed", 20, |net| net.report(0).nodes.iter().any(|node| !node.up));
    done(&mut net, 0, remove_node("n2"));
    net.until("two are left, and one votes", 60, |net| {
        let report = net.report(0);
        report.nodes.len() == 2 && report.agreement.voters.len() == 1 && report.healthy
    });
    // Started all the same it says what is the matter, not that it is starting.
    net.start(2);
    net.until("it says so", 60, |net| {
        let warnings = net.status(2).warnings;
        warnings.iter().any(|it| it.contains("refused by") && it.contains("empty data directory"))
    });
    net.write(0, connection, MIB, 6, MIB);
    net.flush(0, connection);

    assert!(net.read(0, connection, 0, MIB).iter().all(|byte| *byte == 5));
    assert!(net.read(0, connection, MIB, MIB).iter().all(|byte| *byte == 6));
}

/// What both of two disks held waited for ever when one was taken out.
#[test]
fn a_disk_without_which_too_few_would_be_left_is_not_taken_out() {
    let mut net = Net::cluster(46, &[(20, &[200]), (10, &[100])]);
    net.create(0, "v");
    let connection = net.open(0, "v");
    net.write(0, connection, 0, 5, MIB);
    let has_all = |net: &mut Net, disks: usize| {
        let report = net.report(0);
        let is_whole = |disk: &engine::admin::ClusterDiskReport| disk.partitions == 4096;
        report.disks.len() == disks && report.disks.iter().all(is_whole)
    };
    net.until("both have all", 120, |net| has_all(net, 2));
    net.pass(5);
    let remove = |disk: u128| AdminRequest::DiskRemove { disk: DiskId(disk) };
    let drain = |disk: u128| AdminRequest::DiskDrain { disk: DiskId(disk), wanted: true };
    let map = |net: &Net| net.nodes[0].engine.as_ref().expect("it runs").map().clone();
    let before = map(&net);
    let drain_node = AdminRequest::NodeDrain { node: "n1".into(), wanted: true };
    for request in [remove(100), remove(200), drain(100), drain(200), drain_node] {
        for at in 0..2 {
            let sentence = refused(&mut net, at, request.clone());
            assert!(sentence.contains("let another machine with a disk join first"), "{sentence}");
            assert!(sentence.contains("ask for 2 copies at least"), "{sentence}");
        }
    }
    let after = map(&net);
    assert_eq!((after.epoch(), &*after), (before.epoch(), &*before), "nothing changed");
    net.write(0, connection, MIB, 6, MIB);

    let third = net.add(30, &[300]);
    net.let_in(0, third);
    net.start(third);
    net.until("all three have all", 240, |net| has_all(net, 3));
    // While the third is away it is as if it were not there.
    net.kill(third);
    net.until("it is missed", 30, |net| net.report(0).nodes.iter().any(|node| !node.up));
    let sentence = refused(&mut net, 0, remove(100));
    assert!(sentence.contains("bring other disks back first"), "{sentence}");
    net.until("it is left out", 30, |net| {
        net.report(0).disks.iter().any(|disk| disk.partitions == 0)
    });
    let sentence = refused(&mut net, 0, remove(100));
    assert!(sentence.contains("bring back what is away"), "{sentence}");
    net.start(third);
    net.until("all three have all again", 240, |net| has_all(net, 3));
    done(&mut net, 0, remove(100));
    net.until("no partition lists it", 120, |net| net.report(0).disks.len() == 2);
    net.write(0, connection, 2 * MIB, 7, MIB);
    net.flush(0, connection);
    for (at, byte) in [(0, 5), (1, 6), (2, 7)] {
        assert!(net.read(0, connection, at * MIB, MIB).iter().all(|read| *read == byte));
    }
}

/// It held its volumes for ever: nobody else could attach them.
#[test]
fn a_machine_that_died_does_not_hold_its_volumes() {
    let mut net = Net::cluster(43, ONE_DISK);
    net.until_all_vote();
    net.create(0, "v");
    net.pass(1); // until the others know it
    let sentence = refused(&mut net, 0, detach("v"));
    assert!(sentence.contains("not attached"), "{sentence}");
    let connection = net.open(1, "v");
    net.write(1, connection, 0, 1, MIB);
    net.flush(1, connection);
    net.kill(1);
    net.until("the others go on", 30, |net| net.volumes(0).is_some() && net.volumes(2).is_some());
    let answer = open(&mut net, 2, 1, "v");
    assert!(matches!(answer, Answer::Refused { .. }), "{answer:?}");
    done(&mut net, 2, detach("v"));
    let connection = net.open(2, "v");
    assert!(net.read(2, connection, 0, MIB).iter().all(|byte| *byte == 1));
    net.write(2, connection, 0, 2, MIB);
    net.start(1);
    net.until("it is back", 30, |net| net.nodes[1].is_ready);
    let answer = open(&mut net, 1, 2, "v");
    assert!(matches!(answer, Answer::Refused { .. }), "{answer:?}");
    assert!(net.read(2, connection, 0, MIB).iter().all(|byte| *byte == 2));
}

#[test]
fn who_lives_loses_its_volume_at_once_and_every_request_is_answered() {
    let mut net = Net::cluster(44, ONE_DISK);
    net.until_all_vote();
    net.create(0, "v");
    net.pass(1); // until the others know it
    let connection = net.open(1, "v");
    net.write(1, connection, 0, 1, MIB);
    // What is asked waits for the disk when the attachment ends.
    net.nodes[0].stalled.insert(DiskId(200));
    let waiting = net.begin_write(1, connection, 0, 9, MIB);
    net.pass(1);
    assert!(!net.nodes[1].completions.contains_key(&waiting));
    done(&mut net, 2, detach("v"));
    net.until("it is answered", 10, |net| net.nodes[1].completions.contains_key(&waiting));
    let result = net.nodes[1].completions.remove(&waiting).expect("just seen");
    assert!(matches!(result, Err(Error::Fenced)), "{result:?}");
    let late = net.request(1, connection, (0, 4096), Operation::Read);
    net.until("it is answered", 10, |net| net.nodes[1].completions.contains_key(&late));
    let result = net.nodes[1].completions.remove(&late).expect("just seen");
    assert!(matches!(result, Err(Error::Fenced)), "{result:?}");
    net.resume(0);
    let connection = net.open(2, "v");
    net.write(2, connection, 0, 3, MIB);
    assert!(net.read(2, connection, 0, MIB).iter().all(|byte| *byte == 3));
    // A reader of a snapshot is no other case.
    let request = AdminRequest::SnapshotCreate { name: "v".into(), tag: "s".into() };
    let reply = net.ask(0, request);
    assert!(matches!(reply, Ok(AdminReply::Snapshot(_))), "{reply:?}");
    net.pass(1); // until the other node knows it
    let reader = net.open(1, "v@s");
    assert!(net.read(1, reader, 0, MIB).iter().all(|byte| *byte == 3));
    let tag = Some("s".to_string());
    done(&mut net, 0, AdminRequest::VolumeDetach { name: "v".into(), tag });
    net.pass(2);
    let request = AdminRequest::SnapshotDelete { name: "v".into(), tag: "s".into() };
    done(&mut net, 0, request);
    assert!(net.read(2, connection, 0, MIB).iter().all(|byte| *byte == 3));
}

#[test]
fn who_does_not_hear_of_it_is_fenced_and_gives_up_when_it_does() {
    let mut net = Net::cluster(45, THREE_DISKS);
    net.until_all_vote();
    net.create(0, "v");
    net.until("every partition has three copies", 240, |net| {
        net.report(0).disks.iter().all(|disk| disk.partitions == 4096)
    });
    let old = net.open(1, "v");
    net.write(1, old, 0, 1, MIB);
    net.isolate(1);
    net.until("the others go on", 30, |net| net.volumes(0).is_some() && net.volumes(2).is_some());
    let cut_off = net.begin_write(1, old, 0, 9, MIB);
    done(&mut net, 0, detach("v"));
    let connection = net.open(2, "v");
    assert!(net.read(2, connection, 0, MIB).iter().all(|byte| *byte == 1));
    net.write(2, connection, 0, 2, MIB);
    assert!(!net.nodes[1].completions.contains_key(&cut_off));
    net.heal();
    net.until("it is answered", 60, |net| net.nodes[1].completions.contains_key(&cut_off));
    let result = net.nodes[1].completions.remove(&cut_off).expect("just seen");
    assert!(matches!(result, Err(Error::Fenced)), "{result:?}");
    let answer = open(&mut net, 1, 3, "v");
    assert!(matches!(answer, Answer::Refused { .. }), "{answer:?}");
    assert!(net.read(2, connection, 0, MIB).iter().all(|byte| *byte == 2));
}
