//! Reports about volumes are those of the whole cluster, on whichever node they are asked for; what
//! is not known is said.

use crate::support::{MIB, Net};
use engine::admin::{AdminReply, AdminRequest, VolumeReport};
use proto::DiskId;

const NODES: &[(u128, &[u128])] = &[(20, &[200]), (10, &[100]), (30, &[])];

fn info(net: &mut Net, at: usize) -> VolumeReport {
    match net.ask(at, AdminRequest::VolumeInfo { name: "v".into() }) {
        Ok(AdminReply::Volume(report)) => report,
        other => panic!("{other:?}"),
    }
}

/// What a snapshot, the layers and the trash of a node add up to, in bytes.
fn others(net: &mut Net, at: usize) -> (u64, u64, u64) {
    let request = AdminRequest::SnapshotList { name: "v".into(), reclaimable: false };
    let Ok(AdminReply::Snapshots(snapshots)) = net.ask(at, request) else { panic!("snapshots") };
    let layers = net.ask(at, AdminRequest::LayerList { name: None });
    let Ok(AdminReply::Layers(layers)) = layers else { panic!("layers") };
    let Ok(AdminReply::Trash(trash)) = net.ask(at, AdminRequest::TrashList) else { panic!() };
    (
        snapshots.iter().map(|snapshot| snapshot.used_bytes).sum(),
        layers.iter().map(|layer| layer.used_bytes).sum(),
        trash.iter().map(|volume| volume.used_bytes).sum(),
    )
}

#[test]
fn every_node_tells_the_same_of_a_volume_and_names_who_does_not_answer() {
    let mut net = Net::cluster(61, NODES);
    net.create(0, "v");
    net.pass(1); // until the others know it
    let connection = net.open(1, "v");
    net.write(1, connection, 0, 1, 8 * MIB);
    net.flush(1, connection);
    net.until("all vote, and two copies are whole", 240, |net| {
        let is_whole = |net: &mut Net, at: usize| {
            let report = info(net, at);
            report.copies == 2 && net.status(at).agreement.voters.len() == 3
        };
        (0..3).all(|at| is_whole(net, at))
    });
    let snapshot = AdminRequest::SnapshotCreate { name: "v".into(), tag: "s".into() };
    let reply = net.ask(0, snapshot);
    assert!(matches!(reply, Ok(AdminReply::Snapshot(_))), "{reply:?}");
    net.write(1, connection, 0, 2, MIB);
    net.flush(1, connection);
    net.create(0, "w");
    let other = net.open(0, "w");
    net.write(0, other, 0, 1, 2 * MIB);
    net.tell(0, engine::Input::Close { connection: other });
    net.pass(2);
    let (name, keep_s) = ("w".into(), Some(1000));
    let request = AdminRequest::VolumeDelete { name, with_snapshots: false, keep_s };
    let reply = net.ask(0, request);
    assert!(matches!(reply, Ok(AdminReply::Trashed(_))), "{reply:?}");
    net.pass(1);
    for at in 0..3 {
        let report = info(&mut net, at);
        // Two copies of each byte.
        assert_eq!((report.head_bytes, report.snapshots_bytes), (2 * MIB, 16 * MIB), "{at}");
        assert_eq!(report.used_bytes, 18 * MIB);
        assert!(report.unknown_nodes.is_empty(), "{report:?}");
        let held = report.attachment.expect("it is attached");
        assert_eq!((held.node, held.connections, held.unknown), (net.nodes[1].id, 1, false));
        assert_eq!(others(&mut net, at), (16 * MIB, 22 * MIB, 4 * MIB), "{at}");
    }
    // What waits is said everywhere, too.
    net.nodes[0].stalled.insert(DiskId(200));
    let waiting = net.begin_write(1, connection, MIB, 3, MIB);
    net.pass(3);
    let report = info(&mut net, 2);
    assert!(report.waiting.is_some_and(|reason| reason.contains(" s")), "it waits");
    net.resume(0);
    net.completed(1, waiting);
    // Who is cut off does not answer: the report comes all the same, and says what is missing.
    net.isolate(1);
    let before = net.now;
    let report = info(&mut net, 2);
    assert!(net.now.since(before).as_millis() <= 1_100, "{:?}", net.now.since(before));
    assert_eq!(report.unknown_nodes, ["n1"]);
    let held = report.attachment.expect("it is attached");
    assert!(held.unknown && held.is_client() && held.connections == 0, "{held:?}");
    net.until("it is known to be away", 20, |net| net.status(2).peers.iter().any(|it| !it.up));
    net.until("another one leads", 30, |net| net.volumes(2).is_some());
    let report = info(&mut net, 2);
    assert_eq!(report.unknown_nodes, ["n1"]);
    net.heal();
    net.until("all is known again", 60, |net| info(net, 2).unknown_nodes.is_empty());
    assert_eq!(info(&mut net, 2).attachment.map(|held| held.connections), Some(1));
}
