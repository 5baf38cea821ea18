//! Two of three nodes are lost for ever: the third goes on with what it has, and nobody listens to
//! the others any more.

use crate::copies::three;
use crate::support::{MIB, Net};
use engine::admin::{AdminError, AdminErrorKind, AdminReply, AdminRequest, RecoveryReport};
use engine::{ConnectionId, Input};
use volume::Completion;

fn ask(net: &mut Net, at: usize, yes: bool, lost: &[&str]) -> Result<RecoveryReport, AdminError> {
    let lost = lost.iter().map(|name| name.to_string()).collect();
    match net.ask(at, AdminRequest::ClusterRecover { yes, lost }) {
        Ok(AdminReply::Recovery(report)) => Ok(*report),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    }
}

#[track_caller]
fn refused(net: &mut Net, at: usize, part: &str) {
    let error = ask(net, at, true, &[]).expect_err("refused");
    assert_eq!(error.kind, AdminErrorKind::Conflict, "{error}");
    assert!(error.sentence.contains(part), "{part} is not in: {error}");
}

fn until_leaderless(net: &mut Net, at: usize) {
    net.until("nobody leads", 30, |net| {
        let engine = net.nodes[at].engine.as_ref().expect("it runs");
        engine.voter().is_some_and(|voter| !voter.is_led())
    });
    net.pass(2);
}

fn remove(net: &mut Net, at: usize, node: &str) -> Result<AdminReply, AdminError> {
    net.ask(at, AdminRequest::NodeRemove { node: node.into() })
}

/// Nodes 1 and 2 are lost, and node 0 has gone on; what was flushed before lies in volume v, which
/// somebody there has.
fn recovered(seed: u64) -> (Net, ConnectionId) {
    let mut net = three(seed);
    net.create(0, "v");
    let connection = net.open(0, "v");
    net.write(0, connection, 0, 7, MIB);
    net.write(0, connection, 9 * MIB, 8, MIB);
    net.flush(0, connection);
    refused(&mut net, 0, "there is nothing to recover from");
    net.kill(1);
    net.until("a leader", 30, |net| net.volumes(0).is_some());
    refused(&mut net, 0, "there is nothing to recover from");
    net.kill(2);
    until_leaderless(&mut net, 0);
    let report = ask(&mut net, 0, false, &[]).expect("it is said what it would do");
    assert!(!report.done);
    let lost: Vec<bool> = report.nodes.iter().map(|node| node.lost).collect();
    assert_eq!(lost, [true, false, true], "by id: nodes 1, 0 and 2");
    assert!(report.warnings.iter().any(|it| it.contains("must NEVER be started again")));
    assert_eq!(net.volumes(0), None, "nothing was done");
    assert!(ask(&mut net, 0, true, &[]).expect("nothing else helps").done);
    net.until("it leads", 10, |net| net.volumes(0) == Some(vec!["v".into()]));
    (net, connection)
}

#[test]
fn what_was_flushed_is_read_and_written_after_two_of_three_are_lost() {
    let (mut net, connection) = recovered(61);
    refused(&mut net, 0, "there is nothing to recover from");
    let report = net.report(0);
    assert_eq!(report.agreement.recovered.as_ref().map(|one| one.count), Some(1));
    let words = report.warnings.join("\n");
    for name in ["n1", "n2"] {
        assert!(words.contains(&format!("dog node remove {name} --yes")), "{words}");
    }
    // Who had it goes on once nothing is waited for that will not come.
    let waits = net.begin_write(0, connection, 2 * MIB, 6, MIB);
    net.pass(10);
    assert!(!net.nodes[0].completions.contains_key(&waits));
    remove(&mut net, 0, "n1").expect("given up");
    remove(&mut net, 0, "n2").expect("given up");
    assert!(matches!(net.completed(0, waits), Completion::Done));
    let all_are = |bytes: Vec<u8>, byte: u8| bytes.iter().all(|it| *it == byte);
    assert!(all_are(net.read(0, connection, 0, MIB), 7));
    assert!(all_are(net.read(0, connection, 9 * MIB, MIB), 8));
    net.write(0, connection, 4 * MIB, 9, MIB);
    net.flush(0, connection);
    net.create(0, "w");
    assert_eq!(net.report(0).nodes.len(), 1);
    // It has it after a start, too.
    net.cut_power(0);
    net.start(0);
    net.until("it serves", 30, |net| net.nodes[0].is_ready);
    let connection = net.open(0, "v");
    assert!(all_are(net.read(0, connection, 4 * MIB, MIB), 9));
    // New machines bring the copies back.
    for (id, disk) in [(41, 410), (42, 420)] {
        let at = net.add(id, &[disk]);
        net.let_in(0, at);
        net.start(at);
        net.until("it serves", 30, |net| net.nodes[at].is_ready);
    }
    net.until("all copies are there", 240, |net| {
        let report = net.report(0);
        report.missing_copies == 0 && report.copies.iter().all(|it| it.fewer == 0)
    });
    net.until("all three vote", 120, |net| {
        let agreement = net.status(0).agreement;
        agreement.voters.len() == 3 && !agreement.changing
    });
    net.tell(0, Input::Close { connection });
    net.pass(2);
    net.kill(0);
    let connection = net.open(3, "v");
    assert!(all_are(net.read(3, connection, 4 * MIB, MIB), 9));
    assert!(all_are(net.read(3, connection, 9 * MIB, MIB), 8));
}

#[test]
fn a_lost_node_that_comes_back_is_told_so_and_ends() {
    let (mut net, connection) = recovered(62);
    net.start(1);
    let until_ended = |net: &mut Net, at: usize| {
        for _ in 0..60 {
            net.pass(1);
            if net.nodes[at].failed.is_some() {
                break;
            }
        }
        let sentence = net.nodes[at].failed.take().expect("it is told");
        assert!(sentence.contains("recovered without this node"), "{sentence}");
        assert!(sentence.contains("wipe its data directory"), "{sentence}");
        net.kill(at);
    };
    until_ended(&mut net, 1);
    // Two together are a majority of before. Once each has met the recovered one they end.
    assert_eq!(net.volumes(0), Some(vec!["v".into()]));
    remove(&mut net, 0, "n1").expect("given up");
    remove(&mut net, 0, "n2").expect("given up");
    // It is no node any more, and the sentence is another one.
    net.start(2);
    net.pass(10);
    let report = net.status(2);
    let said = report.peers.iter().filter_map(|peer| peer.reason.clone());
    let said: Vec<String> = said.collect();
    assert!(said.iter().any(|it| it.contains("is not a member of this cluster")), "{said:?}");
    assert!(!net.nodes[2].is_ready, "it does not serve");
    assert!(net.read(0, connection, 0, MIB).iter().all(|byte| *byte == 7));
}

#[test]
fn a_survivor_follows_and_who_knows_more_is_to_be_asked() {
    let nodes: Vec<(u128, &[u128])> =
        vec![(20, &[200]), (10, &[100]), (30, &[300]), (40, &[400]), (50, &[500])];
    let mut net = Net::cluster(63, &nodes);
    net.until("three vote, and all follow", 120, |net| {
        let agreement = net.status(0).agreement;
        agreement.voters.len() == 3 && agreement.learners.len() == 2 && !agreement.changing
    });
    net.create(0, "v");
    let agreement = net.status(0).agreement;
    let place = |net: &Net, id: &proto::NodeId| {
        net.nodes.iter().position(|node| node.id == *id).expect("it is one of them")
    };
    let voters: Vec<usize> = agreement.voters.iter().map(|id| place(&net, id)).collect();
    let learners: Vec<usize> = agreement.learners.iter().map(|id| place(&net, id)).collect();
    // One that follows misses something.
    net.kill(learners[0]);
    net.create(voters[2], "w");
    net.pass(2);
    net.kill(voters[0]);
    net.kill(voters[1]);
    net.start(learners[0]);
    for at in [voters[2], learners[0], learners[1]] {
        until_leaderless(&mut net, at);
    }
    refused(&mut net, learners[0], "recover there");
    let away = net.nodes[learners[1]].id.to_string();
    let error = ask(&mut net, voters[2], true, &[&away]).expect_err("it answers");
    assert!(error.sentence.contains("so it is not lost"), "{error}");
    // One is switched off meanwhile.
    net.kill(learners[1]);
    net.pass(1);
    let report = ask(&mut net, voters[2], true, &[]).expect("nothing else helps");
    assert_eq!(report.nodes.iter().filter(|node| node.lost).count(), 2);
    net.start(learners[1]);
    for at in [learners[0], learners[1]] {
        net.until("it follows", 60, |net| {
            net.nodes[at].is_ready && net.volumes(at) == Some(vec!["v".into(), "w".into()])
        });
    }
    net.until("three vote again", 120, |net| {
        let agreement = net.status(voters[2]).agreement;
        agreement.voters.len() == 3 && !agreement.changing
    });
    net.create(learners[1], "x");
}

#[test]
fn both_sides_of_a_cut_that_are_recovered_stay_apart() {
    let mut net = three(64);
    net.create(0, "v");
    net.kill(2);
    net.cut(0, 1);
    for at in [0, 1] {
        until_leaderless(&mut net, at);
        assert!(ask(&mut net, at, true, &[]).expect("nobody else is seen").done);
        net.until("it leads", 10, |net| net.volumes(at).is_some());
    }
    net.create(0, "a");
    net.create(1, "b");
    net.heal();
    net.pass(60);
    assert_eq!(net.volumes(0), Some(vec!["a".into(), "v".into()]));
    assert_eq!(net.volumes(1), Some(vec!["b".into(), "v".into()]));
}

/// It was let in by everybody, and the one that ran was put out until the leader was started anew.
#[test]
fn a_copy_of_a_node_that_runs_is_refused_and_the_node_goes_on() {
    let mut net = three(65);
    net.create(1, "v");
    let connection = net.open(1, "v");
    net.write(1, connection, 0, 1, MIB);
    let copy = net.copy(1);
    net.start(copy);
    for round in 0..4 {
        net.write(1, connection, round * MIB, round as u8 + 1, MIB);
        net.pass(1);
    }
    for _ in 0..30 {
        net.pass(u64::from(net.nodes[copy].failed.is_none()));
    }
    let sentence = net.nodes[copy].failed.take().expect("it is told");
    assert!(sentence.contains("another process runs as this node"), "{sentence}");
    net.kill(copy);
    let status = net.status(1);
    assert!(status.peers.iter().all(|peer| peer.up && peer.lost_connections == 0), "{status:?}");
    net.write(1, connection, 9 * MIB, 9, MIB);
    net.flush(1, connection);
    assert_eq!(net.read(1, connection, 3 * MIB, 4096), vec![4; 4096]);
    // Killed and started again it is back at once.
    net.kill(1);
    net.start(1);
    net.until("it serves again", 5, |net| net.nodes[1].is_ready);
    // Also where its peers have not heard that it is gone.
    net.isolate(1);
    net.kill(1);
    net.pass(1);
    net.heal();
    net.start(1);
    net.until("it serves again", 10, |net| net.nodes[1].is_ready);
}
