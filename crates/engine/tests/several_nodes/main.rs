//! Several nodes: they form a cluster, agree, lose one another and come back, and use the disks of
//! one another.

mod changing;
mod copies;
mod cuts;
mod durable;
mod explain;
mod kept;
mod late;
mod people;
mod recover;
mod reports;
mod rot;
mod support;
mod witness;

use engine::admin::{AdminErrorKind, AdminReply, AdminRequest};
use support::{MIB, Net};

/// Founded by the one in the middle, so that it dials one of the others and is dialled by the
/// other; only the first has a disk.
const THREE: &[(u128, &[u128])] = &[(20, &[200]), (10, &[]), (30, &[])];

fn three(seed: u64) -> Net {
    let mut net = Net::cluster(seed, THREE);
    net.until("all three vote", 90, |net| {
        (0..3).map(|at| net.status(at).agreement).all(|all| all.voters.len() == 3 && !all.changing)
    });
    net
}

#[test]
fn what_one_node_is_told_the_others_know() {
    let mut net = three(1);
    net.create(1, "a");
    net.create(2, "b");
    for at in 0..3 {
        net.until("it knows both", 5, |net| net.volumes(at) == Some(vec!["a".into(), "b".into()]));
        let status = net.status(at);
        assert_eq!(status.peers.len(), 2);
        assert!(status.peers.iter().all(|peer| peer.up && peer.lost_connections == 0));
        assert!(status.peers.iter().all(|peer| !peer.addresses.is_empty()));
        assert_eq!(status.agreement.waiting, None);
    }
    // A name that is taken is refused by whoever is asked.
    let request = AdminRequest::VolumeCreate { name: "a".into(), bytes: MIB };
    assert_eq!(net.ask(2, request).unwrap_err().kind, AdminErrorKind::Conflict);
    let epochs: Vec<u64> = (0..3).map(|at| net.status(at).node.epoch).collect();
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{epochs:?}");
}

/// Not lasting: who is told that it is no member does not try again for long.
#[test]
fn a_node_whose_journal_opens_does_not_say_that_its_peers_are_strangers() {
    let mut net = three(9);
    net.kill(0);
    let (now, peer) = (net.now, net.nodes[1].id);
    let mut early = net.engine_that_opens(0);
    let own = early.identity();
    let hello = proto::wire::Hello {
        identity: proto::wire::Identity { node: peer, instance: 5, ..own },
        peer: own.node,
        version_min: proto::wire::VERSION.into(),
        version_max: proto::wire::VERSION.into(),
        features: 0,
        nonce: 1,
        requests: 1,
        bytes: 1 << 20,
        era: proto::wire::Era::default(),
    };
    let answer = early.handle_accepted(now, &hello, 2, &mut Vec::new());
    assert_eq!(answer, Err(link::CloseReason::Starting));
}

/// A token that somebody found, with what everybody may know of a node, is no word on where it is.
#[test]
fn who_asks_again_to_be_let_in_changes_no_address() {
    let mut net = three(10);
    let (id, secret) = (5, cluster::Digest([0x11; 32]));
    let secret_digest = "11".repeat(32);
    let add = AdminRequest::TokenAdd { id, secret_digest, uses: 1, expires_s: 3600 };
    net.ask(0, add).expect("made");
    let (node, key) = (proto::NodeId(40), cluster::Digest([2; 32]));
    let applicant = cluster::Applicant { token: cluster::TokenId(id), secret, node, key };
    for address in ["192.0.2.1:1", "192.0.2.66:6"] {
        net.apply(0, applicant, vec![address.to_string()]).expect("let in");
        let status = net.status(0);
        let known = status.peers.iter().find(|peer| peer.node == node).expect("a node");
        assert_eq!(known.addresses, ["192.0.2.1:1"]);
    }
}

#[test]
fn two_of_three_go_on_and_one_alone_waits_and_says_so() {
    let mut net = three(2);
    let leader = net.status(0).agreement.leader.expect("there is one");
    let leader = (0..3).find(|&at| net.nodes[at].id == leader).expect("it is one of them");
    let [next, last] = [(leader + 1) % 3, (leader + 2) % 3];
    net.kill(leader);
    net.until("another one leads", 10, |net| {
        let agreement = net.status(next).agreement;
        agreement.leader.is_some_and(|node| node != net.nodes[leader].id)
    });
    net.until("it is known", 5, |net| net.volumes(next).is_some());
    net.create(next, "a");
    let peers = net.status(next).peers;
    let lost = peers.iter().find(|peer| peer.node == net.nodes[leader].id).expect("listed");
    assert!(!lost.up && lost.reason.is_some() && lost.lost_connections == 1, "{lost:?}");

    net.kill(last);
    net.until("it notices", 10, |net| net.status(next).agreement.waiting.is_some());
    let error = net.ask(next, AdminRequest::VolumeList).unwrap_err();
    assert_eq!(error.kind, AdminErrorKind::Unavailable);
    assert!(error.sentence.contains("majority"), "{}", error.sentence);
    assert!(error.sentence.contains(&format!("n{last}")), "{}", error.sentence);
    assert!(net.status(next).warnings.iter().any(|warning| warning.contains("majority")));

    net.start(last);
    net.until("two are a majority", 20, |net| net.nodes[last].is_ready);
    net.until("it is known", 5, |net| net.volumes(next).is_some());
    net.create(next, "b");
    net.start(leader);
    net.until("it is back", 20, |net| net.nodes[leader].is_ready);
    for at in 0..3 {
        net.until("it knows both", 5, |net| net.volumes(at) == Some(vec!["a".into(), "b".into()]));
    }
}

/// A proposal that was on its way when the majority was lost is carried out when it is back.
#[test]
fn a_node_that_is_cut_off_answers_nothing_and_loses_nothing() {
    let mut net = three(3);
    net.create(0, "a");
    net.isolate(1);
    let token = net.begin(1, AdminRequest::VolumeCreate { name: "b".into(), bytes: MIB });
    net.until("it notices", 10, |net| net.status(1).agreement.waiting.is_some());
    assert_eq!(net.volumes(1), None);
    net.create(0, "c");
    assert!(!net.nodes[1].replies.contains_key(&token));
    net.heal();
    net.until("the cut is over", 20, |net| net.nodes[1].replies.contains_key(&token));
    let reply = net.nodes[1].replies.remove(&token).expect("just seen");
    assert!(matches!(reply, Ok(AdminReply::Volume(_))), "{reply:?}");
    for at in 0..3 {
        net.until("it knows all", 5, |net| net.volumes(at).is_some_and(|all| all.len() == 3));
    }
}

#[test]
fn every_node_can_be_restarted_and_all_at_once() {
    let mut net = three(4);
    net.create(0, "a");
    for at in 0..3 {
        net.tell(at, engine::Input::Stop);
        net.until("it stops", 20, |net| net.nodes[at].is_stopped);
        net.kill(at);
        net.start(at);
        net.until("it serves again", 20, |net| net.nodes[at].is_ready);
    }
    (0..3).for_each(|at| net.kill(at));
    net.pass(3);
    (0..3).for_each(|at| net.start(at));
    net.until("all serve", 30, |net| net.nodes.iter().all(|node| node.is_ready));
    net.create(2, "b");
    net.until("it knows both", 5, |net| net.volumes(0).is_some_and(|all| all.len() == 2));
}

/// Without a majority nothing can be agreed on, but a node can be stopped.
#[test]
fn a_node_without_a_majority_stops() {
    let mut net = three(5);
    net.create(0, "a");
    net.open(0, "a");
    net.kill(1);
    net.kill(2);
    net.until("it notices", 10, |net| net.status(0).agreement.waiting.is_some());
    net.tell(0, engine::Input::Stop);
    net.until("it stops", 20, |net| net.nodes[0].is_stopped);
    net.kill(0);
    (0..3).for_each(|at| net.start(at));
    net.until("all serve", 30, |net| net.nodes.iter().all(|node| node.is_ready));
    // What it had attached was given back.
    net.open(2, "a");
}

/// The first node votes and has no disk: all data lies on the second one's.
const ELSEWHERE: &[(u128, &[u128])] = &[(20, &[]), (10, &[100]), (30, &[])];

#[test]
fn a_disk_of_another_node_is_written_and_read() {
    let mut net = Net::cluster(6, ELSEWHERE);
    for reader in [0, 2] {
        let name = format!("v{reader}");
        net.create(reader, &name);
        let connection = net.open(reader, &name);
        net.write(reader, connection, 0, 1, MIB);
        net.write(reader, connection, 5 * MIB, 2, 4096);
        net.flush(reader, connection);
        assert!(net.read(reader, connection, 0, MIB).iter().all(|byte| *byte == 1));
        let read = net.read(reader, connection, 5 * MIB, 8192);
        assert!(read[..4096].iter().all(|byte| *byte == 2) && read[4096..] == [0; 4096]);
        net.tell(reader, engine::Input::Close { connection });
    }
    assert!(net.disks(0).is_empty());
    assert!(net.disks(1)[0].data_bytes >= 2 * MIB);
    // Its own node asks it without the network.
    net.isolate(1);
    net.heal();
    let connection = net.open(1, "v0");
    assert!(net.read(1, connection, 0, MIB).iter().all(|byte| *byte == 1));
}

#[test]
fn requests_wait_for_a_disk_whose_node_is_away_and_go_on_when_it_is_back() {
    let mut net = Net::cluster(7, ELSEWHERE);
    net.create(0, "v");
    let connection = net.open(0, "v");
    net.write(0, connection, 0, 1, 64 << 10);
    // The connection breaks: the same process is asked again.
    net.isolate(1);
    let id = net.begin_write(0, connection, 4096, 2, 4096);
    net.pass(5);
    assert!(!net.nodes[0].completions.contains_key(&id));
    net.heal();
    net.completed(0, id);
    // The process is another one, and the disk another opening.
    net.kill(1);
    let write = net.begin_write(0, connection, 8192, 3, 4096);
    net.pass(2);
    assert!(!net.nodes[0].completions.contains_key(&write));
    net.start(1);
    net.until("it serves again", 20, |net| net.nodes[1].is_ready);
    net.completed(0, write);
    let read = net.read(0, connection, 0, 16 << 10);
    let expected = [[1; 4096], [2; 4096], [3; 4096], [1; 4096]].concat();
    assert!(read == expected, "{:?}", [read[0], read[4096], read[8192], read[12288]]);
    net.flush(0, connection);
}

/// A guest that moves is opened at once where it goes on, while the node that had it drains. It was
/// told that the volume is attached.
#[test]
fn who_opens_what_another_node_is_closing_waits_for_it() {
    let mut net = Net::cluster(13, ELSEWHERE);
    net.create(0, "v");
    let mut before = net.open(0, "v");
    for (from, to) in [(0, 2), (2, 1), (1, 0)] {
        net.write(from, before, 0, to as u8 + 1, MIB);
        net.tell(from, engine::Input::Close { connection: before });
        before = net.open(to, "v");
        assert!(net.read(to, before, 0, MIB).iter().all(|byte| *byte == to as u8 + 1));
    }
    // One that stays is waited for as long as it could take, and then said so.
    let late = net.begin_open(2, "v");
    let begun = net.now;
    net.until("it is refused", 8, |net| net.nodes[2].answers.contains_key(&late));
    assert!(net.now.since(begun).as_millis() >= 4_900, "{:?}", net.now.since(begun));
    let Some(volume::Answer::Refused { sentence }) = net.nodes[2].answers.remove(&late) else {
        panic!("it has another writer")
    };
    assert!(sentence.contains("is attached by client"), "{sentence}");
    net.write(0, before, 0, 9, 4096);
    // One that went while it waited does not get it, and is in nobody's way.
    let gone = net.begin_open(2, "v");
    net.pass(1);
    net.tell(2, engine::Input::Close { connection: gone });
    net.tell(0, engine::Input::Close { connection: before });
    net.pass(1);
    assert!(!net.nodes[2].answers.contains_key(&gone));
    let connection = net.open(1, "v");
    assert!(net.read(1, connection, 0, 4096).iter().all(|byte| *byte == 9));
    // Nor does it keep its node from stopping.
    net.begin_open(2, "v");
    net.pass(1);
    net.tell(2, engine::Input::Stop);
    net.until("it stops", 20, |net| net.nodes[2].is_stopped);
}

/// The map tells of a new opening before the process that has it is connected: what the session
/// asked then was given back as if the disk were out of service, and the session waited for ever.
#[test]
fn a_disk_that_was_opened_anew_behind_a_cut_is_used_again() {
    let mut net = Net::cluster(12, ELSEWHERE);
    net.create(2, "v");
    let connection = net.open(2, "v");
    net.write(2, connection, 0, 1, 64 << 10);
    net.cut(1, 2);
    net.kill(1);
    net.start(1);
    net.until("it serves again", 20, |net| net.nodes[1].is_ready);
    let write = net.begin_write(2, connection, 0, 2, 4096);
    net.until("the map tells", 20, |net| {
        let map = net.nodes[2].engine.as_ref().expect("it runs").map().clone();
        map.disks().all(|disk| disk.incarnation == proto::Incarnation(2))
    });
    net.pass(3);
    assert!(!net.nodes[2].completions.contains_key(&write));
    net.heal();
    net.completed(2, write);
    assert!(net.read(2, connection, 0, 4096).iter().all(|byte| *byte == 2));
}

/// What a disk had not flushed is lost with its machine's power. The session of another node learns
/// of it before it reads from there again, and says so with the next flush, once.
#[test]
fn what_another_node_lost_with_its_power_is_said_with_the_next_flush() {
    let mut net = Net::cluster(11, ELSEWHERE);
    net.create(0, "v");
    let connection = net.open(0, "v");
    net.write(0, connection, 0, 1, 64 << 10);
    net.flush(0, connection);
    net.follow(1, 100);
    net.write(0, connection, 0, 2, 4096);
    net.cut_power(1);
    let read = net.request(0, connection, (0, 4096), volume::Operation::Read);
    net.start(1);
    net.until("it serves again", 20, |net| net.nodes[1].is_ready);
    let volume::Completion::Data(parts) = net.completed(0, read) else { panic!("no data") };
    assert!(parts[0].as_slice().iter().all(|byte| *byte == 1), "it was not flushed");
    let map = net.nodes[0].engine.as_ref().expect("it runs").map().clone();
    let opened = map.disks().next().expect("there is one").incarnation;
    assert_eq!(opened, proto::Incarnation(2));
    let flush = net.request(0, connection, (0, 0), volume::Operation::Flush);
    net.until("the flush ends", 30, |net| net.nodes[0].completions.contains_key(&flush));
    assert!(net.nodes[0].completions[&flush].is_err(), "the loss is not told");
    net.write(0, connection, 0, 3, 4096);
    net.flush(0, connection);
    assert!(net.read(0, connection, 0, 4096).iter().all(|byte| *byte == 3));
}

/// Layers were dropped only on disks of the node that was asked.
#[test]
fn what_one_node_deletes_goes_from_the_disks_of_the_others() {
    let mut net = Net::cluster(8, ELSEWHERE);
    net.create(0, "v");
    let connection = net.open(0, "v");
    net.write(0, connection, 0, 1, 2 * MIB);
    let seal = AdminRequest::SnapshotCreate { name: "v".into(), tag: "s".into() };
    assert!(matches!(net.ask(0, seal), Ok(AdminReply::Snapshot(_))));
    net.write(0, connection, 0, 2, MIB);
    net.tell(0, engine::Input::Close { connection });
    net.until("all of it is there", 10, |net| net.disks(1)[0].data_bytes == 3 * MIB);
    let request = AdminRequest::SnapshotDelete { name: "v".into(), tag: "s".into() };
    let reply = net.ask(0, request);
    assert!(matches!(reply, Ok(AdminReply::Done)), "{reply:?}");
    net.until("the snapshot's went", 20, |net| net.disks(1)[0].data_bytes == 2 * MIB);
    // Asked of a node that has no part in it.
    let (name, with_snapshots) = ("v".into(), true);
    let request = AdminRequest::VolumeDelete { name, with_snapshots, keep_s: Some(0) };
    let reply = net.ask(2, request);
    assert!(matches!(reply, Ok(AdminReply::Done)), "{reply:?}");
    net.until("all of it went", 20, |net| net.disks(1)[0].data_bytes == 0);
}

/// Whoever is asked for a snapshot of what nobody has, one node has the volume for it, and the one
/// that was asked answers.
#[test]
fn a_snapshot_of_what_nobody_has_is_finished_by_one_node() {
    let mut net = Net::cluster(9, ELSEWHERE);
    net.create(2, "v");
    for at in [2, 1, 0] {
        let request = AdminRequest::SnapshotCreate { name: "v".into(), tag: format!("s{at}") };
        match net.ask(at, request) {
            Ok(AdminReply::Snapshot(snapshot)) => assert!(!snapshot.sealing),
            other => panic!("{other:?}"),
        }
    }
    let request = AdminRequest::VolumeResize { name: "v".into(), bytes: MIB, allow_shrink: true };
    assert!(matches!(net.ask(2, request), Ok(AdminReply::Volume(_))));
}

#[test]
fn a_node_has_several_disks_and_gets_more_while_it_runs() {
    let mut net = Net::cluster(10, &[(20, &[200, 201])]);
    let weights = |net: &Net, at: usize| {
        let map = net.nodes[at].engine.as_ref().expect("it runs").map().clone();
        map.disks().map(|disk| (disk.id.0, disk.bytes, disk.incarnation.0)).collect::<Vec<_>>()
    };
    let rows = weights(&net, 0);
    assert_eq!(rows.iter().map(|row| (row.0, row.2)).collect::<Vec<_>>(), [(200, 1), (201, 1)]);
    let is_size = |bytes: u64| (100 * MIB..=128 * MIB).contains(&bytes);
    assert!(rows.iter().all(|row| is_size(row.1)), "{rows:?}");
    net.add_disk(0, 202);
    let disk = proto::DiskId(202);
    net.until("it is added", 5, |net| net.nodes[0].added.contains_key(&disk));
    assert_eq!(net.nodes[0].added[&disk], Ok(()));
    let added = weights(&net, 0)[2];
    assert!((added.0, added.2) == (202, 1) && is_size(added.1), "{added:?}");
    assert_eq!(net.disks(0).len(), 3);
    assert!(net.disks(0).iter().all(|disk| disk.state == "serving"));
    let scrub = engine::admin::ScrubAction::Start;
    let reply = net.ask(0, AdminRequest::DiskScrub { disk: None, action: scrub });
    assert!(matches!(reply, Ok(AdminReply::Done)));

    net.create(0, "v");
    let connection = net.open(0, "v");
    net.write(0, connection, 0, 1, MIB);
    net.flush(0, connection);
    net.kill(0);
    // One that cannot be opened does not keep the others from serving.
    net.spoil(0, 201);
    net.start(0);
    net.until("it serves again", 20, |net| net.nodes[0].is_ready);
    let states: Vec<String> = net.disks(0).into_iter().map(|disk| disk.state).collect();
    assert_eq!(states, ["serving", "refused", "serving"]);
    assert_eq!(weights(&net, 0).iter().map(|row| row.2).collect::<Vec<_>>(), [2, 1, 2]);
    let status = net.status(0);
    assert!(!status.healthy && status.warnings.iter().any(|warning| warning.contains("disk-201")));
    net.tell(0, engine::Input::Stop);
    net.until("it stops", 20, |net| net.nodes[0].is_stopped);
}

/// Nodes die, and are cut off, and come back, while all of them are asked: nothing that was
/// answered is lost, and in the end all know the same.
#[test]
fn nothing_that_was_answered_is_lost_whatever_breaks() {
    let mut all = 0;
    for seed in 0..3 {
        let mut net = three(100 + seed);
        net.delay_ms_max = 40;
        let (mut asked, mut created) = (Vec::new(), Vec::new());
        for round in 0..30 {
            let at = net.draw(3) as usize;
            match net.draw(6) {
                0 if net.nodes[at].engine.is_some() => net.kill(at),
                1 => net.isolate(at),
                2 => net.heal(),
                _ => {}
            }
            let at = net.draw(3) as usize;
            if net.nodes[at].engine.is_some() {
                let name = format!("v{round}");
                let request = AdminRequest::VolumeCreate { name: name.clone(), bytes: MIB };
                asked.push((at, net.begin(at, request), name));
            }
            net.pass(1);
            asked.retain(|(at, token, name)| match net.nodes[*at].replies.remove(token) {
                Some(Ok(_)) => {
                    created.push(name.clone());
                    false
                }
                Some(Err(_)) => false,
                None => true,
            });
            for at in 0..3 {
                if net.nodes[at].engine.is_none() && net.draw(4) == 0 {
                    net.start(at);
                }
            }
        }
        net.heal();
        for at in 0..3 {
            if net.nodes[at].engine.is_none() {
                net.start(at);
            }
        }
        net.until("all serve", 60, |net| net.nodes.iter().all(|node| node.is_ready));
        net.until("all know the same", 30, |net| {
            let [one, two, three] = [0, 1, 2].map(|at| net.volumes(at));
            one.is_some() && one == two && two == three
        });
        let known = net.volumes(0).expect("just seen");
        all += created.len();
        assert!(created.iter().all(|name| known.contains(name)), "seed {seed}");
    }
    assert!(all > 15, "too little was done");
}
