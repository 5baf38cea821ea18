//! Volumes whose acknowledgements promise that what was written is stable.

use crate::support::Net;
use engine::admin::{AdminErrorKind, AdminReply, AdminRequest, Durability, VolumeReport};

const THREE: &[(u128, &[u128])] = &[(20, &[200]), (10, &[100]), (30, &[300])];

fn three(seed: u64) -> Net {
    let mut net = Net::cluster(seed, THREE);
    net.until_all_vote();
    for (at, disk) in [(0, 200), (1, 100), (2, 300)] {
        net.follow(at, disk);
    }
    net
}

fn promise(durability: Durability) -> AdminRequest {
    AdminRequest::VolumeDurability { name: "v".into(), durability }
}

#[track_caller]
fn info(net: &mut Net, at: usize) -> VolumeReport {
    match net.ask(at, AdminRequest::VolumeInfo { name: "v".into() }) {
        Ok(AdminReply::Volume(report)) => report,
        other => panic!("{other:?}"),
    }
}

fn lose_all_power(net: &mut Net) {
    (0..3).for_each(|at| net.cut_power(at));
    (0..3).for_each(|at| net.start(at));
    net.until("all serve again", 60, |net| net.nodes.iter().all(|node| node.is_ready));
}

#[test]
fn a_promise_holds_on_whichever_node_the_volume_is_attached_when_the_command_returns() {
    let mut net = three(51);
    net.create(0, "v");
    net.until("it is known", 5, |net| net.volumes(1).is_some_and(|all| !all.is_empty()));
    let connection = net.open(1, "v");
    let reply = net.ask(2, promise(Durability::Ack));
    let Ok(AdminReply::Volume(report)) = reply else { panic!("{reply:?}") };
    assert_eq!((report.durability, report.durability_awaited), (Durability::Ack, false));
    // Twice is once.
    assert!(net.ask(0, promise(Durability::Ack)).is_ok());
    for round in 1..4u8 {
        net.write(1, connection, u64::from(round) * 4096, round, 4096);
        net.write(1, connection, 512, round, 512);
    }
    lose_all_power(&mut net);
    let connection = net.open(2, "v");
    for round in 1..4u8 {
        let read = net.read(2, connection, u64::from(round) * 4096, 4096);
        assert!(read.iter().all(|byte| *byte == round), "what was acknowledged is gone");
    }
    assert_eq!(net.read(2, connection, 512, 512), [3; 512]);
    assert_eq!(info(&mut net, 0).durability, Durability::Ack);
    // Less is promised at once.
    assert!(net.ask(0, promise(Durability::Flush)).is_ok());
    let report = info(&mut net, 0);
    assert_eq!((report.durability, report.durability_awaited), (Durability::Flush, false));
}

#[test]
fn who_hears_nothing_of_a_promise_is_waited_for_and_named() {
    let mut net = three(52);
    net.create(0, "v");
    let leader = net.status(0).agreement.leader.expect("there is one");
    let leader = (0..3).find(|&at| net.nodes[at].id == leader).expect("it is one of them");
    let [holder, other] = [(leader + 1) % 3, (leader + 2) % 3];
    net.until("it is known", 5, |net| net.volumes(holder).is_some_and(|all| !all.is_empty()));
    net.open(holder, "v");
    net.isolate(holder);
    let token = net.begin(other, promise(Durability::Ack));
    net.pass(10);
    assert!(!net.nodes[other].replies.contains_key(&token), "it has heard nothing");
    net.until("it has waited long enough", 40, |net| net.nodes[other].replies.contains_key(&token));
    let refused = net.nodes[other].replies.remove(&token).expect("just seen").expect_err("no word");
    assert_eq!(refused.kind, AdminErrorKind::Unavailable);
    let named = format!("node n{holder}, which has it attached, has not said so for 30 s");
    assert!(refused.sentence.contains(&named), "{}", refused.sentence);
    net.heal();
    net.until("it has heard of it", 30, |net| !info(net, other).durability_awaited);
    assert_eq!(info(&mut net, other).durability, Durability::Ack);
}
