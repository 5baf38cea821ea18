//! The API over a real socket, with a stand-in for the data thread.

use super::*;
use crate::{
    asker::Command,
    client::{Client, ClientError},
};
use engine::admin::{
    AgreementReport, AttachmentReport, ClusterReport, DiskCounters, DiskReport, LayerKind,
    LayerReport, NodeReport, ScheduleReport, ScrubReport, SnapshotReport, SourcesReport,
    StatusReport, VolumeReport,
};
use proto::{ClusterId, DiskId, Generation, Incarnation, LayerId, NodeId, VolumeId};
use std::{
    io::{Read, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    thread,
    time::Instant,
};

/// A served socket whose requests `answer` answers.
struct Rig {
    directory: tempfile::TempDir,
}

impl Rig {
    fn new(
        router: fn(Asker) -> Router,
        answer: impl Fn(AdminRequest) -> Result<AdminReply, AdminError> + Send + 'static,
    ) -> Rig {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let listener = std::os::unix::net::UnixListener::bind(directory.path().join("admin.sock"));
        let listener = listener.expect("bound");
        listener.set_nonblocking(true).expect("set");
        let poll = mio::Poll::new().expect("a poll");
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).expect("a waker");
        let (asker, commands) = Asker::new(waker);
        thread::spawn(move || {
            let _poll = poll;
            while let Ok(command) = commands.recv() {
                if let Command::Admin { request, reply } = command {
                    reply.send(answer(request));
                }
            }
        });
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let served = async {
                let listener = tokio::net::UnixListener::from_std(listener).expect("taken over");
                serve_unix(listener, router(asker)).await
            };
            match tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), served) {}
        });
        Rig { directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("admin.sock")
    }

    fn get(&self, path: &str) -> (u16, String) {
        let (status, body) = Client::new(self.socket()).get(path).expect("answered");
        (status, String::from_utf8(body).expect("text"))
    }

    /// Sends these bytes and returns all that comes back.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.socket()).expect("connected");
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

fn node() -> NodeReport {
    NodeReport {
        node: NodeId(7),
        cluster: ClusterId(8),
        epoch: 9,
        version: "1.2.3".to_string(),
        uptime_s: 10,
        trash_expiry_s: 86_400,
        witness: false,
    }
}

fn disk() -> DiskReport {
    DiskReport {
        disk: DiskId(5),
        incarnation: Incarnation(1),
        path: "/data/disk".to_string(),
        state: "serving".to_string(),
        reason: None,
        capacity_bytes: 1 << 40,
        data_bytes: 4096,
        metadata_bytes: 8192,
        quarantined_bytes: 0,
        allocated_bytes: 1 << 20,
        available_bytes: 1 << 39,
        damaged_blocks: 0,
        damage_found: 3,
        damage_mended: 3,
        damage_mending: 0,
        damage_again: 0,
        lost_blocks: 0,
        scrub: ScrubReport::default(),
        counters: DiskCounters { write_operations: 42, ..DiskCounters::default() },
        full: false,
        limit_bytes: None,
        damages: Vec::new(),
    }
}

fn volume() -> VolumeReport {
    VolumeReport {
        volume: VolumeId(1),
        name: "we\"ird\\name".to_string(),
        bytes: 1 << 30,
        used_bytes: 4096,
        head_bytes: 0,
        snapshots_bytes: 4096,
        metadata_bytes: 4096,
        snapshots: 1,
        sealing: false,
        origin: None,
        flatten: None,
        shorten: None,
        copies: 1,
        copies_wanted: 3,
        min_copies: 2,
        durability: engine::admin::Durability::Ack,
        durability_awaited: true,
        created_unix_s: 0,
        attachment: Some(AttachmentReport {
            node: NodeId(7),
            generation: Generation(1),
            holder: "process 1 (qemu)".to_string(),
            connections: 2,
            read_only: false,
            unknown: false,
        }),
        waiting: None,
        importing: None,
        schedules: vec![schedule()],
        unknown_nodes: Vec::new(),
    }
}

fn cluster() -> ClusterReport {
    ClusterReport {
        healthy: false,
        warnings: vec!["node n2 has been away for 7 s".to_string()],
        notes: Vec::new(),
        doing: Vec::new(),
        missing_copies: 0,
        whole_in_s: None,
        cluster: ClusterId(8),
        epoch: 9,
        asked: NodeId(7),
        agreement: AgreementReport::default(),
        nodes: Vec::new(),
        disks: Vec::new(),
        copies: Vec::new(),
        attempts: Vec::new(),
    }
}

fn schedule() -> ScheduleReport {
    ScheduleReport {
        volume: "we\"ird\\name".to_string(),
        schedule: "hourly".to_string(),
        every_s: 3600,
        keep: 24,
        next_unix_s: Some(3600),
        last_slot: 0,
        snapshots: 0,
        last_snapshot_unix_s: None,
        problem: Some("there is no room".to_string()),
        failing: true,
    }
}

fn status(healthy: bool) -> StatusReport {
    StatusReport {
        healthy,
        warnings: vec!["the disk is nearly full; add one".to_string()],
        node: node(),
        disks: vec![disk()],
        volumes: 1,
        attached: 1,
        provisioned_bytes: 1 << 30,
        capacity_bytes: 1 << 40,
        used_bytes: 4096,
        snapshots: 1,
        hidden_layers: 0,
        hidden_bytes: 0,
        trash_volumes: 2,
        trash_bytes: 4096,
        trash_gave_way: 1,
        sources: SourcesReport {
            volumes: 2,
            filled_bytes: 4096,
            to_fill_bytes: 8192,
            read_bytes: 12_288,
            failures: 3,
            waiting_s: 17,
        },
        peers: Vec::new(),
        agreement: AgreementReport::default(),
    }
}

fn snapshot() -> SnapshotReport {
    SnapshotReport {
        volume: "a b".to_string(),
        tag: "monday".to_string(),
        layer: LayerId(3),
        bytes: 1 << 30,
        created_unix_s: 0,
        used_bytes: 4096,
        metadata_bytes: 4096,
        reclaimable_bytes: None,
        sealing: false,
        readers: Vec::new(),
        clones: vec!["c".to_string()],
        schedule: None,
        locked_until_unix_s: None,
        unknown_nodes: Vec::new(),
    }
}

fn layer() -> LayerReport {
    LayerReport {
        layer: LayerId(3),
        parent: None,
        kind: LayerKind::Snapshot,
        name: Some("a b@monday".to_string()),
        volume: Some("a b".to_string()),
        bytes: Some(1 << 30),
        used_bytes: 4096,
        sealing: false,
        in_trash: false,
        unknown_nodes: Vec::new(),
    }
}

/// Answers as a healthy node would.
fn well(request: AdminRequest) -> Result<AdminReply, AdminError> {
    match request {
        AdminRequest::Status => Ok(AdminReply::Status(status(true))),
        AdminRequest::NodeInfo => Ok(AdminReply::Node(node())),
        AdminRequest::DiskList => Ok(AdminReply::Disks(vec![disk()])),
        AdminRequest::VolumeList => Ok(AdminReply::Volumes(vec![volume()])),
        AdminRequest::VolumeInfo { name } if name == "a b" => Ok(AdminReply::Volume(volume())),
        AdminRequest::VolumeInfo { name } => Err(AdminError {
            kind: AdminErrorKind::NotFound,
            sentence: format!("there is no volume `{name}`"),
        }),
        AdminRequest::SnapshotList { name, reclaimable: false } if name == "a b" => {
            Ok(AdminReply::Snapshots(vec![snapshot()]))
        }
        AdminRequest::SnapshotCreate { .. } => Ok(AdminReply::Snapshot(snapshot())),
        AdminRequest::ClusterStatus => Ok(AdminReply::Cluster(Box::new(cluster()))),
        AdminRequest::LayerList { name: None } => Ok(AdminReply::Layers(vec![layer()])),
        AdminRequest::VolumeCreate { .. } => {
            Err(AdminError { kind: AdminErrorKind::Conflict, sentence: "it exists".to_string() })
        }
        _ => Ok(AdminReply::Done),
    }
}

#[test]
fn requests_and_refusals_come_through_unchanged() {
    let rig = Rig::new(admin_router, well);
    let client = Client::new(rig.socket());
    let reply = client.request(&AdminRequest::Status).expect("answered");
    assert_eq!(reply, AdminReply::Status(status(true)));
    let reply = client.request(&AdminRequest::VolumeDelete {
        name: "x".into(),
        with_snapshots: true,
        keep_s: Some(0),
    });
    assert_eq!(reply.expect("answered"), AdminReply::Done);
    let taken = AdminRequest::SnapshotCreate { name: "a b".into(), tag: "monday".into() };
    let reply = client.request(&taken).expect("answered");
    assert_eq!(reply, AdminReply::Snapshot(snapshot()));
    let reply = client.request(&AdminRequest::LayerList { name: None }).expect("answered");
    assert_eq!(reply, AdminReply::Layers(vec![layer()]));
    match client.request(&AdminRequest::VolumeCreate { name: "x".into(), bytes: 1 }) {
        Err(ClientError::Refused(error)) => assert_eq!(error.kind, AdminErrorKind::Conflict),
        other => panic!("{other:?}"),
    }
}

#[test]
fn people_with_curl_get_the_same_content() {
    let rig = Rig::new(admin_router, well);
    let check = |path: &str, status: u16, part: &str| {
        let (found, body) = rig.get(path);
        assert_eq!(found, status, "{path}: {body}");
        assert!(body.contains(part), "{path}: {body}");
    };
    check("/v1/status", 200, "\"healthy\":true");
    check("/v1/node", 200, "\"version\":\"1.2.3\"");
    check("/v1/disks", 200, "\"path\":\"/data/disk\"");
    check("/v1/volumes", 200, "\"used_bytes\":4096");
    check("/v1/volumes/a%20b", 200, "\"copies\":1");
    check("/v1/volumes/a%20b/snapshots", 200, "\"clones\":[\"c\"]");
    check("/v1/layers", 200, "\"kind\":\"snapshot\"");
    check("/v1/cluster", 200, "node n2 has been away for 7 s");
    check("/v1/volumes/none", 404, "there is no volume `none`");
    check("/v2/status", 404, "there is nothing at this path");
    check("/v1/request", 405, "POST at /v1/request");
    check("/health", 200, "healthy\nthe disk is nearly full; add one\n");
}

#[test]
fn an_unhealthy_node_says_so_to_machines_too() {
    let rig = Rig::new(watching_router, |_| Ok(AdminReply::Status(status(false))));
    let (status, body) = rig.get("/health");
    assert_eq!(status, 503);
    assert!(body.starts_with("unhealthy\nthe disk"), "{body}");
}

#[test]
fn a_network_address_tells_and_changes_nothing_else() {
    let rig = Rig::new(watching_router, well);
    assert_eq!(rig.get("/v1/status").0, 404);
    assert_eq!(rig.get("/v1/volumes").0, 404);
    assert_eq!(rig.get("/v1/layers").0, 404);
    let delete =
        AdminRequest::VolumeDelete { name: "x".into(), with_snapshots: false, keep_s: Some(0) };
    let error = Client::new(rig.socket()).request(&delete);
    assert!(matches!(error, Err(ClientError::Refused(_))), "{error:?}");
    assert_eq!(rig.get("/metrics").0, 200);
}

#[test]
fn metrics_carry_units_and_quote_names() {
    let rig = Rig::new(watching_router, well);
    let (_, text) = rig.get("/metrics");
    let id = DiskId(5);
    for line in [
        "sheep_healthy 1.0".to_string(),
        "sheep_volumes_attached 1.0".to_string(),
        "sheep_snapshots 1.0".to_string(),
        "sheep_schedules 1.0".to_string(),
        "sheep_schedules_failing 1.0".to_string(),
        "sheep_hidden_bytes 0.0".to_string(),
        "sheep_trash_volumes 2.0".to_string(),
        "sheep_trash_bytes 4096.0".to_string(),
        "sheep_trash_gave_way_total 1".to_string(),
        "sheep_source_volumes 2.0".to_string(),
        "sheep_source_filled_bytes 4096.0".to_string(),
        "sheep_source_to_fill_bytes 8192.0".to_string(),
        "sheep_source_read_bytes_total 12288".to_string(),
        "sheep_source_failures_total 3".to_string(),
        "sheep_source_waiting_seconds 17.0".to_string(),
        "sheep_volume_snapshots_used_bytes{volume=\"we\\\"ird\\\\name\",id=\"1\"} 4096.0"
            .to_string(),
        format!("sheep_disk_capacity_bytes{{disk=\"{id}\"}} 1099511627776.0"),
        format!("sheep_disk_writes_total{{disk=\"{id}\"}} 42"),
        format!("sheep_disk_damage_found_total{{disk=\"{id}\"}} 3"),
        "sheep_volume_size_bytes{volume=\"we\\\"ird\\\\name\",id=\"1\"} 1073741824.0".to_string(),
        "# TYPE sheep_disk_writes counter".to_string(),
        "# EOF".to_string(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("sheep_process_cpu_seconds_total "), "{text}");
    assert!(text.contains("sheep_process_resident_memory_bytes "), "{text}");
}

#[test]
fn hostile_requests_are_refused_and_harm_nobody() {
    let rig = Rig::new(admin_router, well);
    let post = |body: &str| {
        let head = format!(
            "POST /v1/request HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                            content-length: {}\r\n\r\n",
            body.len()
        );
        rig.exchange(format!("{head}{body}").as_bytes())
    };
    for body in [
        "",
        "nonsense",
        "{}",
        "{\"request\":\"fly\"}",
        &"[".repeat(10_000),
        &"x".repeat(ADMIN_REQUEST_BYTES_MAX + 1),
    ] {
        let answer = post(body);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("\"kind\":\"invalid\""), "{answer}");
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    for bytes in [&b"\x00\xff\x00"[..], b"GET\r\n\r\n", long.as_bytes(), b"\r\n\r\n\r\n"] {
        let stream = UnixStream::connect(rig.socket()).expect("connected");
        let _ = (&stream).write_all(bytes);
        drop(stream);
    }
    assert_eq!(rig.get("/v1/node").0, 200);
}

#[test]
fn requests_beyond_the_bound_are_told_to_come_back() {
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let rig = Rig::new(admin_router, move |request| {
        if matches!(request, AdminRequest::NodeInfo) {
            // Until the test lets go.
            let _ = held.lock().map(|held| held.recv());
        }
        well(request)
    });
    let socket = rig.socket();
    // One more than fits: all wait for the one that is held.
    let clients: Vec<_> = (0..=proto::limits::ADMIN_REQUESTS_MAX)
        .map(|number| {
            let client = Client::new(&socket);
            let first = AdminRequest::NodeInfo;
            let request = if number == 0 { first } else { AdminRequest::DiskList };
            let asked = thread::spawn(move || client.request(&request));
            if number == 0 {
                // The held one comes first, as the stand-in answers in order.
                thread::sleep(Duration::from_millis(50));
            }
            asked
        })
        .collect();
    // Somebody is refused while the others wait: only then is the first let go.
    while !clients.iter().any(thread::JoinHandle::is_finished) {
        thread::yield_now();
    }
    drop(hold);
    let results: Vec<_> = clients.into_iter().map(|c| c.join().expect("no panic")).collect();
    let refused = results.iter().filter(|result| match result {
        Err(ClientError::Refused(error)) => error.kind == AdminErrorKind::Unavailable,
        other => other.is_err(),
    });
    assert_eq!(refused.count(), 1);
}

/// Each listener had half of the connections; 256 of them sat there without a word, and the
/// administrator waited up to ten seconds for one to be cut.
#[test]
fn idle_connections_keep_no_administrator_waiting() {
    let rig = Rig::new(admin_router, well);
    let begin = [
        &b""[..],
        b"GET /v1/no",
        b"POST /v1/request HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf",
        b"GET /v1/node HTTP/1.1\r\nhost: x\r\n\r\n",
    ];
    let sit = |number: usize| {
        let mut stream = UnixStream::connect(rig.socket()).expect("connected");
        // Where there is no room any more the oldest are cut, which may be this one.
        let _ = stream.write_all(begin[number % begin.len()]);
        stream
    };
    let mut idle: Vec<_> = (0..proto::limits::ADMIN_CONNECTIONS_MAX).map(sit).collect();
    for _ in 0..20 {
        let asked = Instant::now();
        assert_eq!(rig.get("/v1/node").0, 200);
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(5), "the administrator waited {took:?}");
        idle.push(sit(idle.len()));
    }
}

#[test]
fn a_request_that_is_being_answered_is_not_cut_for_others() {
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let rig = Rig::new(admin_router, move |request| {
        if matches!(request, AdminRequest::NodeInfo) {
            let _ = tell.send(());
            let _ = held.lock().map(|held| held.recv());
        }
        well(request)
    });
    let socket = rig.socket();
    let asked = thread::spawn(move || Client::new(socket).request(&AdminRequest::NodeInfo));
    told.recv().expect("asked");
    // What is there when the answer comes is newer than the question.
    let idle: Vec<_> = (0..2 * proto::limits::ADMIN_CONNECTIONS_MAX)
        .map(|_| UnixStream::connect(rig.socket()).expect("connected"))
        .collect();
    let unknown = rig.exchange(b"GET /nothing HTTP/1.1\r\nconnection: close\r\nhost: x\r\n\r\n");
    assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
    assert!(!asked.is_finished());
    drop(hold);
    let answer = asked.join().expect("no panic");
    assert!(matches!(answer, Ok(AdminReply::Node(_))), "{answer:?}");
    drop(idle);
}
