//! Two nodes do not see each other, and others see both.

use crate::support::{MIB, Net};
use crate::three;
use engine::admin::AdminRequest;

/// Who leads, and two that do not.
fn roles(net: &mut Net) -> (usize, usize, usize) {
    let leader = net.status(0).agreement.leader.expect("there is one");
    let leader = (0..3).find(|&at| net.nodes[at].id == leader).expect("it is one of them");
    (leader, (leader + 1) % 3, (leader + 2) % 3)
}

fn term(net: &Net, at: usize) -> u64 {
    net.nodes[at].engine.as_ref().and_then(engine::Engine::voter).expect("it votes").status().term
}

fn is_up(net: &mut Net, at: usize, other: usize) -> bool {
    let other = net.nodes[other].id;
    net.status(at).peers.iter().any(|peer| peer.node == other && peer.up)
}

/// Before it notices, and hears of others, it may have missed enough to ask who else would lead.
fn until_led(net: &mut Net, at: usize) {
    net.until("it is led", 4, |net| net.status(at).agreement.waiting.is_none());
}

/// What was agreed did not reach a node that did not see who leads, and what it proposed waited,
/// for as long as that lasted.
#[test]
fn a_node_that_does_not_see_who_leads_goes_on() {
    let mut net = three(31);
    let (leader, blind, third) = roles(&mut net);
    let before = term(&net, leader);
    net.cut(leader, blind);
    net.until("they notice", 10, |net| !is_up(net, blind, leader) && !is_up(net, leader, blind));
    until_led(&mut net, blind);
    net.create(blind, "a");
    net.create(leader, "b");
    for at in [leader, blind, third] {
        net.until("it knows both", 5, |net| net.volumes(at) == Some(vec!["a".into(), "b".into()]));
    }
    net.pass(30);
    // It is led, by the one that it does not see, and had nobody elected anew.
    assert!(!is_up(&mut net, blind, leader));
    for at in [leader, blind, third] {
        let agreement = net.status(at).agreement;
        assert_eq!(agreement.waiting, None);
        assert_eq!(agreement.leader, Some(net.nodes[leader].id));
        assert_eq!(term(&net, at), before);
    }
    // Whoever passes it on can go, and then nobody can be told; and come back.
    net.kill(third);
    let name = "c".into();
    let token = net.begin(blind, AdminRequest::VolumeCreate { name, bytes: MIB });
    net.pass(20);
    assert!(!net.nodes[blind].replies.contains_key(&token));
    net.start(third);
    net.until("it is agreed", 30, |net| net.nodes[blind].replies.remove(&token).is_some());
    net.heal();
    net.until("they see each other", 15, |net| is_up(net, blind, leader));
    net.create(blind, "d");
}

#[test]
fn a_link_that_comes_and_goes_has_nobody_elected_anew() {
    let mut net = three(32);
    let (leader, blind, third) = roles(&mut net);
    let before = term(&net, leader);
    for round in 0..12 {
        net.cut(leader, blind);
        net.pass(1 + round % 4);
        until_led(&mut net, blind);
        net.create(blind, &format!("v{round}"));
        net.heal();
        net.pass(round % 3);
    }
    for at in [leader, blind, third] {
        net.until("it knows all", 5, |net| net.volumes(at).is_some_and(|all| all.len() == 12));
        assert_eq!(term(&net, at), before, "{at}");
    }
}

/// A node that joins has no map, and hears for the first time of the one that leads from another.
#[test]
fn a_node_that_never_saw_who_leads_joins() {
    let mut net = three(33);
    // Not the one that the new node is told of.
    if roles(&mut net).0 == 0 {
        net.tell(0, engine::Input::Stop);
        net.until("it stops", 20, |net| net.nodes[0].is_stopped);
        net.kill(0);
        net.start(0);
        net.until("it serves again", 20, |net| net.nodes[0].is_ready);
    }
    let (leader, ..) = roles(&mut net);
    assert_ne!(leader, 0);
    let new = net.add(40, &[]);
    net.cut(new, leader);
    net.let_in(0, new);
    net.start(new);
    net.until("it serves", 30, |net| net.nodes[new].is_ready);
    net.create(new, "a");
    assert!(!is_up(&mut net, new, leader));
}

/// Only the node with the lower id of two dialled, and knew only the address of before.
#[test]
fn a_node_that_comes_back_at_another_address_is_found() {
    let mut net = three(34);
    // The highest: all others dial it.
    let moved = 2;
    assert!(net.nodes.iter().all(|node| node.id <= net.nodes[moved].id));
    net.kill(moved);
    net.move_away(moved);
    net.start(moved);
    net.until("it serves again", 30, |net| net.nodes[moved].is_ready);
    let all_up = |net: &mut Net| (0..3).all(|at| net.status(at).peers.iter().all(|peer| peer.up));
    net.until("all see each other", 20, all_up);
    net.create(moved, "a");
    // They know where it is now, and find it by themselves.
    for at in [0, 1] {
        net.kill(at);
    }
    net.pass(1);
    for at in [0, 1] {
        net.start(at);
    }
    net.until("all serve", 30, |net| net.nodes.iter().all(|node| node.is_ready));
    net.until("all see each other", 5, all_up);
    net.pass(20);
    for at in 0..3 {
        assert!(net.status(at).peers.iter().all(|peer| peer.up && peer.lost_connections <= 2));
        net.create(at, &format!("v{at}"));
    }
}
