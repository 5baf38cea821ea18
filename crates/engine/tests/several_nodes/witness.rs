//! Two nodes with disks, and one that only votes.

use crate::support::{MIB, Net};
use engine::admin::{AdminReply, AdminRequest};

/// The witness founds none: it joins as the third.
const TWO_AND_A_WITNESS: &[(u128, &[u128])] = &[(20, &[200]), (10, &[100]), (30, &[])];
const WITNESS: usize = 2;

fn cluster(seed: u64) -> Net {
    let mut net = Net::cluster(seed, TWO_AND_A_WITNESS);
    net.until_all_vote();
    net
}

/// Which node leads, as this one knows.
fn leader(net: &mut Net, at: usize) -> Option<usize> {
    let leader = net.status(at).agreement.leader?;
    net.nodes.iter().position(|node| node.id == leader)
}

fn keep(name: &str) -> AdminRequest {
    AdminRequest::VolumeKeep { name: name.into(), copies: None, min_copies: Some(1) }
}

#[test]
fn with_a_witness_one_of_two_nodes_may_die() {
    for (seed, dies) in [(61, 0), (62, 1)] {
        let mut net = cluster(seed);
        let lives = 1 - dies;
        net.create(lives, "v");
        assert!(matches!(net.ask(lives, keep("v")), Ok(AdminReply::Volume(_))));
        net.until("both have all", 120, |net| {
            net.report(lives).copies.iter().all(|copies| copies.possible == 2 && copies.fewer == 0)
        });
        let connection = net.open(lives, "v");
        net.write(lives, connection, 0, 7, 4096);
        net.kill(dies);
        // What waits for the dead one is answered once that is left out.
        net.write(lives, connection, 4096, 8, 4096);
        net.create(lives, "w");
        let other = net.open(lives, "w");
        net.write(lives, other, 0, 9, 4096);
        assert_eq!(net.read(lives, connection, 0, 4096), [7; 4096]);
        net.until("the witness leads no more", 60, |net| leader(net, lives) == Some(lives));
        net.start(dies);
        net.until("it serves again", 60, |net| net.nodes[dies].is_ready);
        net.until("both have all", 120, |net| {
            net.report(lives).copies.iter().all(|copies| copies.fewer == 0)
        });
        net.write(lives, connection, 0, 10, 4096);
    }
}

#[test]
fn a_witness_has_no_copies_answers_everything_and_gives_the_lead_back() {
    let mut net = cluster(63);
    let report = net.report(WITNESS);
    let witness = report.nodes.iter().find(|node| node.node == net.nodes[WITNESS].id);
    assert!(witness.is_some_and(|node| node.disks.is_empty() && node.votes), "{report:?}");
    assert!(report.copies.iter().all(|copies| copies.possible <= 2), "{report:?}");
    let Ok(AdminReply::Node(node)) = net.ask(WITNESS, AdminRequest::NodeInfo) else { panic!() };
    assert!(node.witness);
    let Ok(AdminReply::Node(node)) = net.ask(0, AdminRequest::NodeInfo) else { panic!() };
    assert!(!node.witness);
    // A session there asks the disks of the others.
    net.create(WITNESS, "v");
    let connection = net.open(WITNESS, "v");
    net.write(WITNESS, connection, 0, 7, MIB);
    assert!(net.read(WITNESS, connection, 0, MIB).iter().all(|byte| *byte == 7));
    net.tell(WITNESS, engine::Input::Close { connection });
    net.pass(5);
    // Whoever else could lead is away: then it does, until one of them can again.
    net.kill(0);
    net.kill(1);
    net.start(0);
    net.until("one of the two that are left leads", 60, |net| leader(net, WITNESS).is_some());
    net.until("a node with a disk leads", 90, |net| leader(net, WITNESS) == Some(0));
    net.start(1);
    net.until("it serves again", 60, |net| net.nodes[1].is_ready);
    net.pass(40);
    assert!(leader(&mut net, WITNESS).is_some_and(|leader| leader != WITNESS));
}

#[test]
fn a_witness_that_is_lost_is_taken_out_and_replaced() {
    let mut net = cluster(64);
    net.kill(WITNESS);
    net.until("it is known to be away", 20, |net| {
        let away = net.nodes[WITNESS].id;
        net.report(0).nodes.iter().any(|node| node.node == away && !node.up)
    });
    let node = net.nodes[WITNESS].id.to_string();
    let reply = net.ask(0, AdminRequest::NodeRemove { node });
    assert!(matches!(reply, Ok(AdminReply::Done)), "{reply:?}");
    let at = net.add(40, &[]);
    net.let_in(0, at);
    net.start(at);
    net.until("the new one votes", 120, |net| {
        let id = net.nodes[at].id;
        net.status(0).agreement.voters.contains(&id)
    });
    assert_eq!(net.status(0).agreement.voters.len(), 3);
}
