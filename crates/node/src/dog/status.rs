//! `dog status` and `dog node info`.

use super::{Context, Failure, cluster, disk, failure::AT_RISK_EXIT_CODE, print};
use crate::size::Size;
use engine::admin::{AdminReply, AdminRequest, ClusterReport, NodeReport, StatusReport};
use serde_json::{Value, json};
use std::process::ExitCode;

/// `dog status`: the whole on one page. The exit code says whether all is well: with the node that
/// is asked first, then with the cluster.
pub fn status(context: &Context) -> Result<ExitCode, Failure> {
    let report = status_report(context)?;
    let cluster = match report.peers.is_empty() {
        true => None,
        false => Some(cluster::report(context)?),
    };
    let cluster = cluster.as_deref();
    if context.json {
        print::json(&whole(&report, cluster))?;
    } else {
        print::text(&describe(&report, cluster))?;
    }
    Ok(match (report.healthy, cluster) {
        (false, _) => ExitCode::FAILURE,
        (true, Some(cluster)) if !cluster.healthy => ExitCode::from(AT_RISK_EXIT_CODE),
        _ => ExitCode::SUCCESS,
    })
}

/// The report of the node, with what is at risk in its cluster if it has others.
fn whole(report: &StatusReport, cluster: Option<&ClusterReport>) -> Value {
    let mut whole = serde_json::to_value(report).expect("always JSON");
    if let (Some(cluster), Value::Object(fields)) = (cluster, &mut whole) {
        let at_risk = json!({ "healthy": cluster.healthy, "warnings": cluster.warnings });
        fields.insert("cluster".to_string(), at_risk);
    }
    whole
}

/// `dog node info`.
pub fn node(context: &Context) -> Result<(), Failure> {
    let AdminReply::Node(node) = context.ask(&AdminRequest::NodeInfo)? else {
        return Err(Failure::mismatch());
    };
    if context.json {
        return print::json(&node);
    }
    let mut fields = node_fields(&node);
    fields.push(("Admin socket", context.client.socket().display().to_string()));
    fields.push(("NBD socket", context.nbd_socket.display().to_string()));
    print::text(&print::fields(&fields))
}

/// The daemon's own account of itself.
pub fn status_report(context: &Context) -> Result<StatusReport, Failure> {
    match context.ask(&AdminRequest::Status)? {
        AdminReply::Status(report) => Ok(report),
        _ => Err(Failure::mismatch()),
    }
}

/// The sentence about volumes that were promised more than the disks could hold, if so, and if
/// this node has all of them.
pub fn overcommit_warning(report: &StatusReport) -> Option<String> {
    // Among others this node's disks are not all there are, and each copy takes room.
    (report.peers.is_empty() && report.provisioned_bytes > report.capacity_bytes).then(|| {
        format!(
            "the volumes may grow to {} together, but the disks hold {}: add space before they \
             are full, or writes of new data will be refused",
            Size(report.provisioned_bytes),
            Size(report.capacity_bytes)
        )
    })
}

fn node_fields(node: &NodeReport) -> Vec<(&'static str, String)> {
    let what = node.witness.then(|| "witness: it votes and stores no data".to_string());
    let fields = vec![
        ("Node", node.node.to_string()),
        ("Cluster", node.cluster.to_string()),
        ("Epoch", node.epoch.to_string()),
        ("Version", node.version.clone()),
        ("Running for", print::span(node.uptime_s)),
    ];
    fields.into_iter().chain(what.map(|what| ("Is a", what))).collect()
}

/// The number of snapshots, and what is kept beside them.
fn snapshots(report: &StatusReport) -> String {
    match report.hidden_layers {
        0 => report.snapshots.to_string(),
        1 => format!(
            "{}, and 1 hidden layer that others build on ({})",
            report.snapshots,
            Size(report.hidden_bytes)
        ),
        hidden => format!(
            "{}, and {hidden} hidden layers that others build on ({})",
            report.snapshots,
            Size(report.hidden_bytes)
        ),
    }
}

/// What is in the trash.
fn trash(report: &StatusReport) -> String {
    match report.trash_volumes {
        0 => "empty".to_string(),
        1 => format!("1 volume keeps {}", Size(report.trash_bytes)),
        count => format!("{count} volumes keep {}", Size(report.trash_bytes)),
    }
}

fn describe(report: &StatusReport, cluster: Option<&ClusterReport>) -> String {
    let part = |bytes: u64| match report.capacity_bytes {
        0 => String::new(),
        capacity => format!(" ({:.0} %)", bytes as f64 * 100.0 / capacity as f64),
    };
    // Others have disks too.
    let (here, promised) = match report.peers.is_empty() {
        true => ("", part(report.provisioned_bytes)),
        false => (", on this node", ", in the whole cluster".to_string()),
    };
    let health = if report.healthy { "ok" } else { "needs attention" };
    let mut fields = vec![("Health", health.to_string())];
    fields.extend(cluster.map(|cluster| {
        let words = if cluster.healthy { "ok" } else { "at risk, see `dog cluster status`" };
        ("Copies", words.to_string())
    }));
    fields.extend(node_fields(&report.node));
    fields.extend([
        ("Volumes", format!("{}, {} attached", report.volumes, report.attached)),
        ("Snapshots", snapshots(report)),
        ("Trash", trash(report)),
        ("Capacity", format!("{}{here}", Size(report.capacity_bytes))),
        ("Used", format!("{}{}{here}", Size(report.used_bytes), part(report.used_bytes))),
        ("Provisioned", format!("{}{promised}", Size(report.provisioned_bytes))),
    ]);
    let mut page = print::fields(&fields);
    page += "\n";
    page += &disk::tabulate(&report.disks);
    let of_cluster = cluster.into_iter().flat_map(|cluster| &cluster.warnings);
    // Some are about both.
    let more = of_cluster.filter(|warning| !report.warnings.contains(warning));
    for warning in report.warnings.iter().chain(more) {
        page += &format!("\nwarning: {warning}");
    }
    if !page.ends_with('\n') {
        page += "\n";
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::admin::{AgreementReport, SourcesReport};
    use proto::{ClusterId, NodeId};

    fn report(provisioned_bytes: u64) -> StatusReport {
        StatusReport {
            healthy: true,
            warnings: vec!["something to know".to_string()],
            node: NodeReport {
                node: NodeId(1),
                cluster: ClusterId(2),
                epoch: 9,
                version: "0.1.0".to_string(),
                uptime_s: 3700,
                trash_expiry_s: 86_400,
                witness: false,
            },
            disks: Vec::new(),
            volumes: 2,
            attached: 1,
            provisioned_bytes,
            capacity_bytes: 100 << 30,
            used_bytes: 25 << 30,
            snapshots: 3,
            hidden_layers: 1,
            hidden_bytes: 1 << 30,
            trash_volumes: 3,
            trash_bytes: 12 << 30,
            trash_gave_way: 0,
            sources: SourcesReport::default(),
            peers: Vec::new(),
            agreement: AgreementReport::default(),
        }
    }

    #[test]
    fn more_promised_than_there_is_space_is_said() {
        assert_eq!(overcommit_warning(&report(100 << 30)), None);
        let warning = overcommit_warning(&report(101 << 30)).expect("a warning");
        assert!(warning.contains("101.0 GiB") && warning.contains("100.0 GiB"), "{warning}");
        let page = describe(&report(101 << 30), None);
        assert!(page.contains("Provisioned: 101.0 GiB (101 %)"), "{page}");
    }

    /// It compared what all volumes may grow to with the disks of one of several nodes.
    #[test]
    fn among_others_capacity_is_told_as_that_of_one_node() {
        let peer = engine::admin::PeerReport {
            node: NodeId(2),
            name: "n2".to_string(),
            addresses: Vec::new(),
            up: true,
            since_s: 1,
            reason: None,
            lost_connections: 0,
            waiting_requests: 0,
        };
        let report = StatusReport { peers: vec![peer], ..report(101 << 30) };
        assert_eq!(overcommit_warning(&report), None);
        let mut cluster = crate::dog::cluster::tests::report();
        let page = describe(&report, Some(&cluster));
        assert!(page.contains("Copies:      at risk, see `dog cluster status`\n"), "{page}");
        let warning = cluster.warnings[0].clone();
        assert_eq!(page.matches(&warning).count(), 1, "{page}");
        let value = whole(&report, Some(&cluster));
        assert_eq!(
            (&value["cluster"]["healthy"], &value["healthy"]),
            (&json!(false), &json!(true))
        );
        assert_eq!(value["cluster"]["warnings"][0], json!(warning));
        assert!(whole(&report, None).get("cluster").is_none());
        (cluster.healthy, cluster.warnings) = (true, Vec::new());
        let page = describe(&report, Some(&cluster));
        assert!(page.contains("Copies:      ok\n"), "{page}");
        for part in [
            "Capacity:    100.0 GiB, on this node\n",
            "Used:        25.0 GiB (25 %), on this node\n",
            "Provisioned: 101.0 GiB, in the whole cluster\n",
        ] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
    }

    #[test]
    fn status_shows_health_space_and_warnings() {
        let page = describe(&report(0), None);
        for part in [
            "Health:      ok\n",
            "Snapshots:   3, and 1 hidden layer that others build on (1.0 GiB)\n",
            "Trash:       3 volumes keep 12.0 GiB\n",
            "Used:        25.0 GiB (25 %)\n",
            "warning: something to know\n",
        ] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
    }
}
