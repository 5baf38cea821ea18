//! What people are told of a volume's copies: how they are, where they are, and which loss hurts.

use crate::support::{MIB, Net};
use engine::admin::{AdminErrorKind, AdminReply, AdminRequest, ExplainReport, LocateReport};
use proto::{DiskId, NodeId};

const THREE: &[(u128, &[u128])] = &[(20, &[200]), (10, &[100]), (30, &[300])];

fn explain(net: &mut Net, at: usize) -> ExplainReport {
    match net.ask(at, AdminRequest::VolumeExplain { name: "v".into() }) {
        Ok(AdminReply::Explained(report)) => *report,
        other => panic!("{other:?}"),
    }
}

fn locate(net: &mut Net, at: usize, index: Option<u64>) -> LocateReport {
    match net.ask(at, AdminRequest::VolumeLocate { name: "v".into(), index }) {
        Ok(AdminReply::Located(report)) => *report,
        other => panic!("{other:?}"),
    }
}

/// How many of the bytes of its parts are held in each state, by disk.
fn states(report: &ExplainReport, disk: u128) -> Vec<(String, u64)> {
    let mut sums = std::collections::BTreeMap::new();
    for group in &report.groups {
        for member in group.members.iter().filter(|member| member.disk == DiskId(disk)) {
            *sums.entry(member.state.clone()).or_default() += group.bytes;
        }
    }
    sums.into_iter().collect()
}

fn says(report: &ExplainReport, what: &str) {
    assert!(report.summary.iter().any(|sentence| sentence.contains(what)), "{what}: {report:#?}");
}

#[test]
fn a_volume_is_explained_on_every_node_while_copies_come_and_go() {
    let mut net = Net::cluster(51, THREE);
    net.create(0, "v");
    let connection = net.open(0, "v");
    net.write(0, connection, 0, 1, 8 * MIB);
    net.until("copies are being made", 60, |net| {
        net.report(0).whole_in_s.is_some() && !explain(net, 0).whole
    });
    let building = explain(&mut net, 0);
    says(&building, "have fewer whole copies than they could have");
    says(&building, "until it is whole: about");
    assert!(building.whole_in_s.is_some_and(|left| left < 600), "{:?}", building.whole_in_s);
    let doing = net.report(0).doing.join("\n");
    assert!(doing.contains("are still to be made: about"), "{doing}");
    net.until("all is whole", 240, |net| (0..3).all(|at| explain(net, at).whole));
    net.until_all_vote();
    for at in 0..3 {
        let whole = explain(&mut net, at);
        assert_eq!((whole.copies, whole.min_copies, whole.possible), (3, 2, 3));
        assert_eq!(whole.groups.iter().map(|group| group.bytes).sum::<u64>(), 16 * MIB);
        for disk in [100, 200, 300] {
            assert_eq!(states(&whole, disk), [("whole".to_string(), 16 * MIB)]);
        }
        assert!(whole.losses.is_empty(), "{whole:?}");
        says(&whole, "3 copies of all of it, all there and whole");
        says(&whole, "losing any one node now would not be felt; losing node");
        says(&whole, "would make 16.0 MiB wait until one of them is back");
        let elsewhere = whole.summary.iter().any(|it| it.contains("attached on node"));
        assert_eq!(elsewhere, at != 0, "{:?}", whole.summary);
        assert!(net.report(at).doing.is_empty());
    }
    // One is away: a second one more is felt, a third one takes the last copy.
    net.kill(2);
    // For a moment others may see it yet.
    net.until("it is missed", 3, |net| {
        explain(net, 1).summary.iter().any(|it| it.contains("is left out if it is away for 5 s"))
    });
    let missed = explain(&mut net, 1);
    assert_eq!(states(&missed, 300), [("away".to_string(), 16 * MIB)]);
    says(&missed, &format!("disk {} of node n2 (away for", DiskId(300)));
    says(&missed, "is left out if it is away for 5 s");
    assert_eq!(missed.losses.len(), 2, "{:?}", missed.losses);
    assert!(missed.losses.iter().all(|loss| loss.waiting_bytes == 16 * MIB));
    assert!(missed.losses.iter().all(|loss| loss.lost_bytes == 0));
    says(&missed, "now would make 16.0 MiB of it wait until it, or another that is away, is back");
    says(&missed, "losing also node");
    says(&missed, "would lose 16.0 MiB");
    assert!(missed.groups.iter().all(|group| group.writable && group.doing.is_some()));
    // Another: it waits, and says so on the one that is left, though nothing can be agreed on.
    net.kill(1);
    net.until("it is missed", 30, |net| net.report(0).agreement.waiting.is_some());
    let alone = explain(&mut net, 0);
    assert!(alone.groups.iter().all(|group| !group.writable));
    says(&alone, "16.0 MiB wait for disk");
    says(&alone, "without them nobody knows all that was written");
    says(&alone, "all this is what was known last");
    let waiting = net.begin_write(0, connection, 0, 2, MIB);
    net.pass(3);
    says(&explain(&mut net, 0), "the oldest request has been waiting for");
    let lost = alone.losses.iter().map(|loss| (loss.node, loss.lost_bytes)).collect::<Vec<_>>();
    assert_eq!(lost, [(net.nodes[0].id, 16 * MIB)]);
    says(&alone, "would lose 16.0 MiB: no other whole copy is there");
    net.start(1);
    net.start(2);
    net.completed(0, waiting);
    net.until("all is whole again", 240, |net| (0..3).all(|at| explain(net, at).whole));
}

#[test]
fn every_object_is_located_where_the_map_has_it() {
    let mut net = Net::cluster(52, &[(20, &[200]), (10, &[])]);
    net.create(0, "v");
    net.pass(1); // until the other knows it
    for at in 0..2 {
        let all = locate(&mut net, at, None);
        assert_eq!((all.objects, all.located.len()), (4, 1), "{all:?}");
        let only = &all.located[0];
        assert_eq!((only.objects, only.bytes, only.part.as_str()), (4, 16 * MIB, "v"));
        assert_eq!((only.member.disk, only.member.node), (DiskId(200), NodeId(20)));
        assert_eq!(only.member.state, "whole");
        let one = locate(&mut net, at, Some(3));
        assert_eq!((one.located.len(), one.located[0].objects), (1, 1));
        assert_eq!(one.located[0].bytes, 4 * MIB);
        let request = AdminRequest::VolumeLocate { name: "v".into(), index: Some(4) };
        let error = net.ask(at, request).expect_err("there is none");
        assert_eq!(error.kind, AdminErrorKind::Invalid);
        assert!(error.sentence.contains("has no object 4: it has 4 objects"), "{error:?}");
        let request = AdminRequest::VolumeExplain { name: "w".into() };
        assert_eq!(net.ask(at, request).unwrap_err().kind, AdminErrorKind::NotFound);
    }
    // A clone shows another's too, as far as that reaches.
    let snapshot = AdminRequest::SnapshotCreate { name: "v".into(), tag: "s".into() };
    let reply = net.ask(0, snapshot);
    assert!(matches!(reply, Ok(AdminReply::Snapshot(_))), "{reply:?}");
    let (name, tag, new_name) = ("v".into(), "s".into(), "c".into());
    let reply = net.ask(0, AdminRequest::VolumeClone { name, tag, new_name });
    assert!(matches!(reply, Ok(AdminReply::Volume(_))), "{reply:?}");
    let (name, bytes, allow_shrink) = ("c".into(), 24 * MIB, false);
    let reply = net.ask(0, AdminRequest::VolumeResize { name, bytes, allow_shrink });
    assert!(matches!(reply, Ok(AdminReply::Volume(_))), "{reply:?}");
    for (index, parts) in [(3, vec!["c", "v@s"]), (4, vec!["c"])] {
        let request = AdminRequest::VolumeLocate { name: "c".into(), index: Some(index) };
        let Ok(AdminReply::Located(report)) = net.ask(0, request) else { panic!("located") };
        let named: Vec<&str> = report.located.iter().map(|it| it.part.as_str()).collect();
        assert_eq!(named, parts);
    }
}

/// The founder was the only one that voted for half a minute, and nobody was told.
#[test]
fn a_cluster_that_would_stop_without_its_founder_says_so() {
    let mut net = Net::cluster(53, &[(20, &[200])]);
    assert!(net.report(0).healthy);
    for (at, id) in [(1, 10), (2, 30)] {
        net.add(id, &[]);
        net.let_in(0, at);
        net.start(at);
        net.until("it serves", 30, |net| net.nodes[at].is_ready);
        if at == 1 {
            let two = net.report(0);
            assert!(two.notes.iter().any(|it| it.contains("of two nodes one votes")), "{two:?}");
        }
    }
    net.pass(5);
    let warned = |net: &mut Net, at: usize| {
        let report = net.report(at);
        let found = report.warnings.iter().find(|it| it.contains("on the state of the cluster"));
        assert_eq!(report.healthy, report.warnings.is_empty());
        found.cloned()
    };
    let leader = warned(&mut net, 0).expect("it says so");
    assert!(leader.contains("and 3 should: if one of them is lost, nothing can be"), "{leader}");
    let left = leader.split(" vote in ").nth(1).and_then(|it| it.split(' ').next());
    let left: u64 = left.expect("it says when").parse().expect("in seconds");
    assert!((10..=31).contains(&left), "{leader}");
    let other = warned(&mut net, 1).expect("it says so");
    assert!(other.contains("once they have been there for half a minute"), "{other}");
    net.pass(left + 10);
    assert!((0..3).all(|at| warned(&mut net, at).is_none()), "they vote");
    // One is away: no more may be.
    net.kill(2);
    net.until("it is missed", 30, |net| !net.report(0).healthy);
    let report = net.report(0);
    let thin = report.warnings.iter().any(|it| it.contains("2 of the 3 nodes that vote"));
    assert!(thin, "{:?}", report.warnings);
}
