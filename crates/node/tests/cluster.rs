//! Several daemons on this machine that form a cluster: a token, joining, a restart without
//! options, and everybody who is turned away.
#![allow(clippy::disallowed_methods, reason = "it waits for real processes")]

use engine::admin::{AdminReply, AdminRequest, StatusReport};
use node::{api, client::Client};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running daemon; killed when it is dropped.
struct Sheep {
    child: Child,
    data: PathBuf,
}

impl Drop for Sheep {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the node with this data directory listens: the others look for it there after a restart,
/// so it is the same each time. A port that was free when it was first asked for.
fn address_of(data: &Path) -> String {
    let known = data.with_extension("address");
    fs::read_to_string(&known).unwrap_or_else(|_| {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("bound").to_string();
        fs::write(known, &address).expect("written");
        address
    })
}

fn command(data: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sheep"));
    command.env_clear().env("SHEEP_CONFIG", "/dev/null").env("SHEEP_LISTEN", address_of(data));
    command.arg("--data").arg(data).args(options);
    command
}

impl Sheep {
    fn spawn(data: &Path, options: &[&str]) -> Sheep {
        let log = fs::File::create(data.with_extension("log")).expect("a log");
        let child = command(data, options).stderr(log).spawn().expect("started");
        Sheep { child, data: data.to_path_buf() }
    }

    fn start(data: &Path, options: &[&str]) -> Sheep {
        let mut sheep = Sheep::spawn(data, options);
        sheep.wait("it serves", |status| status.healthy);
        sheep
    }

    fn ask(&self, request: &AdminRequest) -> Option<AdminReply> {
        Client::new(api::admin_socket(&self.data)).request(request).ok()
    }

    fn wait(&mut self, what: &str, so: impl Fn(&StatusReport) -> bool) {
        let until = Instant::now() + PATIENCE;
        loop {
            let reply = self.ask(&AdminRequest::Status);
            match &reply {
                Some(AdminReply::Status(status)) if so(status) => return,
                _ => {}
            }
            let log = || fs::read_to_string(self.data.with_extension("log")).unwrap_or_default();
            if let Some(code) = self.child.try_wait().expect("asked") {
                panic!("{what}: it ended with {code}:\n{}", log());
            }
            assert!(Instant::now() < until, "{what}: {reply:?}\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `dog` with this node.
    fn dog(&self, arguments: &[&str]) -> Output {
        let mut dog = Command::new(env!("CARGO_BIN_EXE_dog"));
        dog.env_clear().arg("--data").arg(&self.data).args(arguments);
        dog.output().expect("it runs")
    }

    fn token(&self, arguments: &[&str]) -> String {
        let output = self.dog(&[&["cluster", "token"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text").trim().to_string()
    }
}

/// What a daemon says that does not start.
fn refused(data: &Path, options: &[&str]) -> String {
    let output = command(data, options).stdout(Stdio::null()).output().expect("it runs");
    assert!(!output.status.success(), "it started: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn machines_join_with_a_token_and_are_there_again_after_a_restart() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let path = |name: &str| scratch.path().join(name);
    let mut first = Sheep::start(&path("a"), &[]);
    let token = first.token(&["--uses", "2"]);
    assert!(token.starts_with("sheepdog-join-") && token.lines().count() == 1, "{token}");

    // Refused before the token is used.
    let sentence = refused(&path("d"), &["--join", &token, "--listen", "none"]);
    assert!(sentence.contains("without --listen none"), "{sentence}");
    let second = Sheep::start(&path("b"), &["--join", &token]);
    fs::write(path("token"), format!("{token}\n")).expect("written");
    let token_file = path("token");
    fs::set_permissions(&token_file, fs::Permissions::from_mode(0o600)).expect("set");
    let third = ["--token-file", token_file.to_str().expect("text")];
    let third = Sheep::start(&path("c"), &third);
    first.wait("all are there", |status| status.peers.iter().filter(|peer| peer.up).count() == 2);
    // A used-up token, an altered one, and one of another cluster.
    let sentence = refused(&path("d"), &["--join", &token]);
    assert!(sentence.contains("all of the 2 nodes"), "{sentence}");
    let altered = token.replace("sheepdog-join-A", "sheepdog-join-B");
    assert!(refused(&path("d"), &["--join", &altered]).contains("copy the whole line"));
    let other = Sheep::start(&path("e"), &[]);
    let foreign = other.token(&[]);
    drop(second);
    let sentence = refused(&path("b"), &["--join", &foreign]);
    assert!(sentence.contains("this node belongs to cluster"), "{sentence}");

    // A volume made on one node is known to another, and to one that was away.
    let created = third.dog(&["volume", "create", "vm1", "1G"]);
    assert!(created.status.success(), "{created:?}");
    let mut second = Sheep::start(&path("b"), &[]);
    second.wait("all are there again", |status| {
        status.peers.iter().filter(|peer| peer.up).count() == 2
    });
    let listed = second.dog(&["volume", "list"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("vm1"), "{listed:?}");
    // The same token once more is without effect.
    drop(second);
    drop(Sheep::start(&path("b"), &["--join", &token]));
}

/// One machine that was always alone: nothing of it is to be found on the network.
#[test]
fn a_node_that_is_alone_does_not_listen_and_makes_no_token_that_nobody_could_use() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let data = scratch.path().join("a");
    let log = fs::File::create(data.with_extension("log")).expect("a log");
    let mut command = command(&data, &[]);
    command.env_remove("SHEEP_LISTEN").stderr(log);
    let child = command.spawn().expect("started");
    let mut sheep = Sheep { child, data };
    sheep.wait("it serves", |status| status.healthy);
    let log = fs::read_to_string(sheep.data.with_extension("log")).expect("a log");
    assert!(log.contains("serving") && !log.contains("other nodes"), "{log}");
    let output = sheep.dog(&["cluster", "token"]);
    let sentence = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && sentence.contains("start sheep with --listen"),
        "{output:?}"
    );
}
