//! Guests that stand still for a snapshot: in which order it goes, and that they go on whatever
//! happens to `dog`, to `sheep` or to what answers for the guest. The guests' sockets are played by
//! the tests.
#![allow(clippy::disallowed_methods, reason = "it waits for real processes")]

use engine::admin::{AdminReply, AdminRequest};
use node::{api, client::Client};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, mpsc::channel},
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);
const VOLUME_BYTES: u64 = 64 << 20;

/// What a guest's socket does.
#[derive(Clone, Copy, Default)]
struct Habits {
    /// It is a monitor, not an agent.
    is_monitor: bool,
    /// Somebody else froze it, or stopped its processors.
    stands: bool,
    /// What lies in the channel for somebody who went away.
    stale: bool,
    /// This command is not answered, and its connection is ended after a while.
    silent: Option<&'static str>,
    /// This command is refused.
    refuses: Option<&'static str>,
    /// So many releases find the connection ended instead of an answer.
    deaf_releases: usize,
    /// It went on by itself before it was let go, and says that as an error.
    thaws_itself: bool,
}

/// A guest as its socket shows it.
#[derive(Clone)]
struct Guest {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    habits: Habits,
    stands: bool,
    /// Commands it was given, in order; and what others noted among them.
    heard: Vec<String>,
}

impl Guest {
    fn play(directory: &Path, name: &str, habits: Habits) -> Guest {
        let socket = directory.join(name);
        let listener = UnixListener::bind(&socket).expect("a socket");
        let state = State { habits, stands: habits.stands, heard: Vec::new() };
        let guest = Guest { socket, state: Arc::new(Mutex::new(state)) };
        let played = guest.clone();
        thread::spawn(move || {
            // One caller at a time, as QEMU has it.
            for stream in listener.incoming() {
                let _ = played.converse(&stream.expect("a caller"));
            }
        });
        guest
    }

    fn converse(&self, stream: &UnixStream) -> std::io::Result<()> {
        let mut output = stream;
        let habits = self.state.lock().expect("no panics").habits;
        if habits.is_monitor {
            writeln!(output, "{}", json!({ "QMP": { "version": {}, "capabilities": [] } }))?;
        } else if habits.stale {
            // The end of an answer, and two whole ones to questions of somebody else.
            output.write_all(b"turn\": 3}\n{\"return\": 17}\n\xff{\"return\": 5}\n")?;
        }
        let mut input = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            if input.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            let line = line.strip_prefix(b"\xff").unwrap_or(&line);
            let question: Value = serde_json::from_slice(line).expect("JSON");
            let command = question["execute"].as_str().expect("a command").to_string();
            if habits.silent == Some(&command) {
                self.note(&command);
                // Whoever asked gets nothing, however long it waits.
                let _ = input.read(&mut [0]);
                return Ok(());
            }
            let Some(mut answer) = self.answer(&command) else { return Ok(()) };
            if command == "guest-sync-delimited" {
                if habits.stale {
                    output.write_all(b"\xff{\"return\": 6}\n")?;
                }
                output.write_all(b"\xff")?;
                answer = json!({ "return": question["arguments"]["id"] });
            }
            if habits.is_monitor {
                writeln!(output, "{}", json!({ "event": "STOP", "timestamp": {} }))?;
                answer["id"] = question["id"].clone();
            }
            writeln!(output, "{answer}")?;
        }
    }

    /// Nothing: the connection ends.
    fn answer(&self, command: &str) -> Option<Value> {
        let mut state = self.state.lock().expect("no panics");
        if !matches!(command, "guest-sync-delimited" | "qmp_capabilities" | "query-status") {
            state.heard.push(command.to_string());
        }
        if state.habits.refuses == Some(command) {
            let text = format!("The command {command} has been disabled for this instance.");
            return Some(json!({ "error": { "class": "CommandNotFound", "desc": text } }));
        }
        let stands = state.stands;
        let brings = match command {
            "guest-fsfreeze-status" => json!(if stands { "frozen" } else { "thawed" }),
            "guest-fsfreeze-freeze" | "stop" => {
                state.stands = true;
                if command == "stop" { json!({}) } else { json!(2) }
            }
            "guest-fsfreeze-thaw" if state.habits.thaws_itself => {
                state.stands = false;
                return Some(json!({ "error": { "class": "GenericError", "desc": "timeout" } }));
            }
            "guest-fsfreeze-thaw" | "cont" if state.habits.deaf_releases > 0 => {
                state.habits.deaf_releases -= 1;
                return None;
            }
            "guest-fsfreeze-thaw" => {
                state.stands = false;
                json!(if stands { 2 } else { 0 })
            }
            "cont" => {
                state.stands = false;
                json!({})
            }
            "query-status" => json!({ "running": !stands, "status": "whatever" }),
            _ => json!({}),
        };
        Some(json!({ "return": brings }))
    }

    fn note(&self, what: &str) {
        self.state.lock().expect("no panics").heard.push(what.to_string());
    }

    fn heard(&self) -> Vec<String> {
        self.state.lock().expect("no panics").heard.clone()
    }

    fn stands(&self) -> bool {
        self.state.lock().expect("no panics").stands
    }

    /// Waits until it stands still, or goes on.
    fn wait(&self, stands: bool) {
        let until = Instant::now() + PATIENCE;
        while self.stands() != stands {
            assert!(Instant::now() < until, "it never does: {:?}", self.heard());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn heard_in_time(&self, command: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.heard().iter().any(|heard| heard == command) {
            assert!(Instant::now() < until, "nothing of {command}: {:?}", self.heard());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A daemon that the test plays: it has group `g`, and does as told when asked for a snapshot.
struct Daemon {
    directory: tempfile::TempDir,
}

impl Daemon {
    /// `take` is called for each snapshot that is asked for; without an answer the connection ends.
    fn play(take: impl Fn() -> Option<Value> + Send + 'static) -> Daemon {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let listener = UnixListener::bind(api::admin_socket(directory.path())).expect("a socket");
        thread::spawn(move || {
            for stream in listener.incoming() {
                Daemon::converse(&stream.expect("a caller"), &take);
            }
        });
        Daemon { directory }
    }

    fn converse(stream: &UnixStream, take: &impl Fn() -> Option<Value>) {
        let mut input = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            if input.read_line(&mut line).expect("a line") == 0 {
                return;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a number");
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        input.read_exact(&mut body).expect("a body");
        let question: Value = serde_json::from_slice(&body).expect("JSON");
        let content = match question["request"].as_str() {
            Some("group_info") => {
                let group =
                    json!({ "name": "g", "created_unix_s": 1, "volumes": [], "snapshots": [] });
                Some(json!({ "reply": "group", "content": group }))
            }
            Some("group_snapshot") => take(),
            other => panic!("dog asks for {other:?}"),
        };
        let Some(content) = content else { return };
        let text = content.to_string();
        // It may have been killed meanwhile.
        let _ = write!(
            &mut &*stream,
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
    }

    /// The answer to a snapshot that was taken.
    fn taken() -> Value {
        let snapshot = json!({
            "group": "g", "tag": "t", "created_unix_s": 1, "count": 0, "complete": true,
            "sealing": false, "members": [],
        });
        json!({ "reply": "group_snapshot", "content": snapshot })
    }

    fn dog(&self, deadline: &str, guests: &[&Guest]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dog"));
        command.env_clear().arg("--data").arg(self.directory.path());
        command.args(["group", "snapshot", "g@t", "--freeze-deadline", deadline]);
        for guest in guests {
            command.arg("--freeze").arg(&guest.socket);
        }
        command
    }
}

fn ended(output: &Output) -> (i32, String) {
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code().expect("it ends by itself"), text.into_owned())
}

/// A running daemon with group `g` of volumes `a` and `b`; killed when it is dropped.
struct Sheep {
    child: Child,
    directory: tempfile::TempDir,
}

impl Sheep {
    fn start() -> Sheep {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let child = Command::new(env!("CARGO_BIN_EXE_sheep"))
            .env_clear()
            .env("SHEEP_CONFIG", "/dev/null")
            .env("SHEEP_LISTEN", "none")
            .arg("--data")
            .arg(directory.path().join("data"))
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let sheep = Sheep { child, directory };
        let until = Instant::now() + PATIENCE;
        while sheep.client().request(&AdminRequest::Status).is_err() {
            assert!(Instant::now() < until, "it does not start");
            thread::sleep(Duration::from_millis(10));
        }
        for name in ["a", "b"] {
            let request = AdminRequest::VolumeCreate { name: name.into(), bytes: VOLUME_BYTES };
            sheep.client().request(&request).expect("a volume");
        }
        let volumes = vec!["a".into(), "b".into()];
        let request = AdminRequest::GroupCreate { name: "g".into(), volumes };
        sheep.client().request(&request).expect("a group");
        sheep
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn client(&self) -> Client {
        Client::new(api::admin_socket(&self.path().join("data")))
    }

    fn tags(&self) -> Vec<String> {
        match self.client().request(&AdminRequest::GroupInfo { name: "g".into() }) {
            Ok(AdminReply::Group(group)) => group.snapshots.into_iter().map(|s| s.tag).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn command(&self, words: &str, guests: &[&Guest]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dog"));
        command.env_clear().arg("--data").arg(self.path().join("data"));
        command.args(words.split_whitespace());
        for guest in guests {
            command.arg("--freeze").arg(&guest.socket);
        }
        command
    }

    fn dog(&self, words: &str, guests: &[&Guest]) -> (i32, String) {
        ended(&self.command(words, guests).output().expect("dog runs"))
    }
}

impl Drop for Sheep {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn file_systems_are_frozen_before_the_snapshot_and_thawed_after_it() {
    let sheep = Sheep::start();
    let guests = ["one", "two"].map(|name| Guest::play(sheep.path(), name, Habits::default()));
    let (code, text) = sheep.dog("group snapshot g@t", &[&guests[0], &guests[1]]);
    assert_eq!(code, 0, "{text}");
    assert!(text.ends_with("snapshot g@t of 2 volumes taken\n"), "{text}");
    assert_eq!(text.matches("2 file systems were frozen").count(), 2, "{text}");
    for guest in &guests {
        assert!(!guest.stands());
        assert_eq!(
            guest.heard(),
            ["guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]
        );
    }
    // One volume alone, and for programs.
    let (code, text) = sheep.dog("--json volume snapshot a@t2", &[&guests[0]]);
    assert_eq!(code, 0, "{text}");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&report["tag"], &report["guests"][0]["filesystems"]), (&json!("t2"), &json!(2)));
}

#[test]
fn the_snapshot_is_taken_while_all_guests_stand_still() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let monitor = Habits { is_monitor: true, ..Habits::default() };
    let guests = [("agent", Habits::default()), ("monitor", monitor)]
        .map(|(name, habits)| Guest::play(scratch.path(), name, habits));
    let seen = guests.clone();
    let daemon = Daemon::play(move || {
        for guest in &seen {
            assert!(guest.stands());
            guest.note("snapshot");
        }
        Some(Daemon::taken())
    });
    let output = daemon.dog("60s", &[&guests[0], &guests[1]]).output().expect("dog runs");
    assert_eq!(ended(&output).0, 0, "{}", ended(&output).1);
    let agent =
        ["guest-fsfreeze-status", "guest-fsfreeze-freeze", "snapshot", "guest-fsfreeze-thaw"];
    assert_eq!(guests[0].heard(), agent);
    assert_eq!(guests[1].heard(), ["stop", "snapshot", "cont"]);
}

#[test]
fn a_dog_that_is_killed_leaves_no_guest_frozen() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    for is_monitor in [false, true] {
        let habits = Habits { is_monitor, ..Habits::default() };
        let guest = Guest::play(scratch.path(), &format!("guest-{is_monitor}"), habits);
        let (sender, asked) = channel();
        let (end, until) = channel::<()>();
        let daemon = Daemon::play(move || {
            sender.send(()).expect("the test waits");
            let _ = until.recv();
            None
        });
        let mut dog = daemon
            .dog("5min", &[&guest])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("dog runs");
        asked.recv_timeout(PATIENCE).expect("the snapshot is asked for");
        assert!(guest.stands());
        dog.kill().expect("killed");
        dog.wait().expect("gone");
        guest.wait(false);
        drop(end);
    }
}

#[test]
fn a_daemon_that_hangs_holds_no_guest_longer_than_the_deadline() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let guest = Guest::play(scratch.path(), "guest", Habits::default());
    let (end, until) = channel::<()>();
    let daemon = Daemon::play(move || {
        let _ = until.recv();
        Some(Daemon::taken())
    });
    let dog = daemon
        .dog("1s", &[&guest])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("dog runs");
    guest.wait(true);
    // Only the deadline can let it go now.
    guest.wait(false);
    drop(end);
    let (code, text) = ended(&dog.wait_with_output().expect("it ends"));
    assert_eq!(code, 1, "{text}");
    for part in ["snapshot g@t was taken, but not within 1s", "dog group delete g@t --yes"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_daemon_that_dies_leaves_no_guest_frozen() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let guest = Guest::play(scratch.path(), "guest", Habits::default());
    let daemon = Daemon::play(|| None);
    let (code, text) = ended(&daemon.dog("5min", &[&guest]).output().expect("dog runs"));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("check whether the request took effect"), "{text}");
    assert_eq!((guest.stands(), guest.heard().len()), (false, 3), "{:?}", guest.heard());
}

/// Somebody else thaws it while the snapshot is taken: then its file systems may have been written.
#[test]
fn a_guest_that_went_on_before_makes_the_snapshot_doubtful() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    for is_monitor in [false, true] {
        let habits = Habits { is_monitor, ..Habits::default() };
        let guest = Guest::play(scratch.path(), &format!("guest-{is_monitor}"), habits);
        let meddler = guest.clone();
        let daemon = Daemon::play(move || {
            meddler.state.lock().expect("no panics").stands = false;
            Some(Daemon::taken())
        });
        let (code, text) = ended(&daemon.dog("60s", &[&guest]).output().expect("dog runs"));
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("went on meanwhile"), "{text}");
        assert!(!guest.heard().contains(&"cont".into()), "it runs already");
    }
    let thaws_itself = true;
    let habits = Habits { thaws_itself, ..Habits::default() };
    let guest = Guest::play(scratch.path(), "impatient", habits);
    let daemon = Daemon::play(|| Some(Daemon::taken()));
    let (code, text) = ended(&daemon.dog("60s", &[&guest]).output().expect("dog runs"));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("went on meanwhile"), "{text}");
}

/// One guest that does not answer in time must not keep the others.
#[test]
fn an_agent_that_hangs_costs_the_snapshot_and_nothing_else() {
    let sheep = Sheep::start();
    let guest = Guest::play(sheep.path(), "guest", Habits::default());
    for (number, silent) in
        ["guest-sync-delimited", "guest-fsfreeze-status"].into_iter().enumerate()
    {
        let habits = Habits { silent: Some(silent), ..Habits::default() };
        let mute = Guest::play(sheep.path(), &format!("mute{number}"), habits);
        let words = "group snapshot g@t --freeze-deadline 1s";
        let (code, text) = sheep.dog(words, &[&guest, &mute]);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("its agent does not answer"), "{text}");
        assert!(text.contains("no snapshot was taken"), "{text}");
        assert!(!guest.stands());
    }
    assert!(sheep.tags().is_empty());
}

#[test]
fn a_snapshot_that_is_refused_or_a_guest_that_fails_thaws_the_others() {
    let sheep = Sheep::start();
    let guest = Guest::play(sheep.path(), "guest", Habits::default());
    // Volume `b` has a snapshot of this tag: the daemon refuses, after the guest was frozen.
    assert_eq!(sheep.dog("volume snapshot b@t", &[]).0, 0);
    let (code, text) = sheep.dog("group snapshot g@t", &[&guest]);
    assert_eq!(code, 4, "{text}");
    assert!(!guest.stands() && guest.heard().contains(&"guest-fsfreeze-freeze".to_string()));

    let fails = |name: &str, habits: Habits, words: &str| {
        let other = Guest::play(sheep.path(), name, habits);
        let (code, text) = sheep.dog("group snapshot g@u", &[&guest, &other]);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(words) && text.contains("no snapshot was taken"), "{text}");
        assert!(!guest.stands());
        assert_eq!(other.stands(), habits.stands, "{:?}", other.heard());
        other
    };
    let refuses = Some("guest-fsfreeze-freeze");
    fails("disabled", Habits { refuses, ..Habits::default() }, "has been disabled");
    let stands = true;
    let other = fails("frozen", Habits { stands, ..Habits::default() }, "somebody else has frozen");
    assert!(!other.heard().contains(&"guest-fsfreeze-thaw".to_string()), "not ours to thaw");
    let missing = Guest { socket: sheep.path().join("nowhere"), state: Arc::default() };
    let (code, text) = sheep.dog("group snapshot g@u", &[&guest, &missing]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("nobody is there") && !guest.stands(), "{text}");
    assert!(sheep.tags().is_empty());
}

/// The agent got the command and says nothing: it may freeze any time, so it is thawed all the
/// same, over a new connection where the old one is of no use.
#[test]
fn a_guest_that_may_have_frozen_is_thawed() {
    let sheep = Sheep::start();
    let silent = Some("guest-fsfreeze-freeze");
    let guest = Guest::play(sheep.path(), "guest", Habits { silent, ..Habits::default() });
    let mut dog = sheep
        .command("group snapshot g@t --freeze-deadline 1s", &[&guest])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("dog runs");
    guest.heard_in_time("guest-fsfreeze-freeze");
    guest.heard_in_time("guest-fsfreeze-thaw");
    assert_eq!(dog.wait().expect("it ends").code(), Some(1));
    assert!(sheep.tags().is_empty());
}

#[test]
fn answers_to_questions_of_others_are_not_taken_for_ours() {
    let sheep = Sheep::start();
    let habits = Habits { stale: true, deaf_releases: 2, ..Habits::default() };
    let guest = Guest::play(sheep.path(), "guest", habits);
    let (code, text) = sheep.dog("group snapshot g@t", &[&guest]);
    assert_eq!(code, 0, "{text}");
    assert!(!guest.stands());
    let thaws = guest.heard().iter().filter(|heard| *heard == "guest-fsfreeze-thaw").count();
    assert_eq!(thaws, 3, "it is asked until it confirms");
}

#[test]
fn processors_are_stopped_and_go_on_only_if_they_ran() {
    let sheep = Sheep::start();
    let is_monitor = true;
    let guest = Guest::play(sheep.path(), "runs", Habits { is_monitor, ..Habits::default() });
    let habits = Habits { is_monitor, stands: true, ..Habits::default() };
    let paused = Guest::play(sheep.path(), "paused", habits);
    let (code, text) = sheep.dog("group snapshot g@t", &[&guest, &paused]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("its processors were stopped, for"), "{text}");
    assert!(text.contains("its processors had been stopped before"), "{text}");
    assert_eq!((guest.heard(), guest.stands()), (vec!["stop".into(), "cont".into()], false));
    assert_eq!((paused.heard(), paused.stands()), (Vec::new(), true));
}
