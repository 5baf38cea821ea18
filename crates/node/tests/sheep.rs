//! The daemon as a process: it starts from nothing, serves a volume to a client of its own, and
//! keeps what was written over stops and kills. What other programs see of it is tested in `e2e`.
#![allow(clippy::disallowed_methods, reason = "it waits for a real process")]

use engine::admin::{AdminErrorKind, AdminReply, AdminRequest};
use node::{
    api,
    client::{Client, ClientError},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

/// How long a daemon may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(30);
const VOLUME_BYTES: u64 = 64 << 20;

/// A running daemon; killed when it is dropped.
struct Sheep {
    child: Child,
    data: PathBuf,
}

fn command(data: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sheep"));
    // Neither the machine's configuration nor the caller's environment counts here.
    command.env_clear().env("SHEEP_CONFIG", "/dev/null").env("SHEEP_LISTEN", "none");
    command.arg("--data").arg(data).args(options);
    command
}

impl Sheep {
    fn start(data: &Path, options: &[&str]) -> Sheep {
        let child = command(data, options).stderr(Stdio::null()).spawn().expect("started");
        let sheep = Sheep { child, data: data.to_path_buf() };
        let until = Instant::now() + PATIENCE;
        loop {
            match sheep.client().request(&AdminRequest::Status) {
                Ok(AdminReply::Status(report)) => {
                    assert!(report.healthy, "{report:?}");
                    return sheep;
                }
                other => assert!(Instant::now() < until, "does not start: {other:?}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn client(&self) -> Client {
        Client::new(api::admin_socket(&self.data))
    }

    fn create(&self, name: &str) -> Result<AdminReply, ClientError> {
        let (name, bytes) = (name.to_string(), VOLUME_BYTES);
        self.client().request(&AdminRequest::VolumeCreate { name, bytes })
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("signalled");
    }

    fn wait(mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("waited") {
                return status;
            }
            assert!(Instant::now() < until, "does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Sheep {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An NBD client of the plainest kind: one request at a time, simple replies.
struct Nbd(UnixStream);

impl Nbd {
    const OPTION_GO: u32 = 7;
    const READ: u16 = 0;
    const WRITE: u16 = 1;
    const FLUSH: u16 = 3;

    /// Attaches a volume, or brings the number and sentence of the refusal.
    fn attach(data: &Path, name: &str) -> Result<Nbd, (u32, String)> {
        let mut nbd = Nbd(UnixStream::connect(api::nbd_socket(data)).expect("connected"));
        assert_eq!(&nbd.take(18)[..16], b"NBDMAGICIHAVEOPT");
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend_from_slice(b"IHAVEOPT");
        hello.extend_from_slice(&Nbd::OPTION_GO.to_be_bytes());
        hello.extend_from_slice(&(name.len() as u32 + 6).to_be_bytes());
        hello.extend_from_slice(&(name.len() as u32).to_be_bytes());
        hello.extend_from_slice(name.as_bytes());
        hello.extend_from_slice(&[0, 0]);
        nbd.0.write_all(&hello).expect("sent");
        loop {
            let head = nbd.take(20);
            let kind = u32::from_be_bytes(head[12..16].try_into().expect("four bytes"));
            let length = u32::from_be_bytes(head[16..20].try_into().expect("four bytes"));
            let body = nbd.take(length as usize);
            match kind {
                1 => return Ok(nbd),
                3 => {}
                kind => return Err((kind, String::from_utf8_lossy(&body).into_owned())),
            }
        }
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).expect("received");
        bytes
    }

    /// One request; the error number of its reply must be 0.
    fn ask(&mut self, command: u16, offset: u64, length: u32, payload: &[u8]) {
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend_from_slice(&[0, 0]);
        request.extend_from_slice(&command.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&length.to_be_bytes());
        request.extend_from_slice(payload);
        self.0.write_all(&request).expect("sent");
        let reply = self.take(16);
        assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "an error");
        assert_eq!(reply[8..], offset.to_be_bytes(), "another request's reply");
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.ask(Nbd::WRITE, offset, bytes.len() as u32, bytes);
    }

    fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        self.ask(Nbd::READ, offset, length as u32, &[]);
        self.take(length)
    }

    fn flush(&mut self) {
        self.ask(Nbd::FLUSH, 0, 0, &[]);
    }
}

/// Bytes that name their place.
fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 512) as u8 ^ (at as u8).wrapping_mul(7) ^ seed).collect()
}

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let data = directory.path().join("data");
    (directory, data)
}

/// What a daemon that does not start says, and its exit code.
fn refused(data: &Path, options: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = command(data, options).output().expect("ran");
    let text = String::from_utf8(stderr).expect("text");
    let last = text.lines().last().unwrap_or_default().to_string();
    (status.code().expect("an exit code"), last)
}

#[test]
fn what_was_written_is_there_after_a_stop_and_after_a_kill() {
    for engine in ["uring", "threads"] {
        let (_directory, data) = scratch();
        let options = ["--disk-engine", engine];
        let sheep = Sheep::start(&data, &options);
        sheep.create("v").expect("created");
        let (long, odd) = (pattern(1, 3 << 20), pattern(2, 1536));
        let mut nbd = Nbd::attach(&data, "v").expect("attached");
        nbd.write(1 << 20, &long);
        nbd.write(512, &odd);
        nbd.flush();
        assert_eq!(nbd.read(1 << 20, long.len()), long);
        drop(nbd);
        sheep.signal(Signal::TERM);
        assert_eq!(sheep.wait().code(), Some(0));
        assert!(!api::nbd_socket(&data).exists() && !api::admin_socket(&data).exists());

        let sheep = Sheep::start(&data, &options);
        let mut nbd = Nbd::attach(&data, "v").expect("attached");
        assert_eq!(nbd.read(1 << 20, long.len()), long);
        assert_eq!(nbd.read(512, odd.len()), odd);
        assert!(nbd.read(0, 512).iter().all(|&byte| byte == 0));
        // Acknowledged and not flushed: the kernel has it.
        nbd.write(8 << 20, &odd);
        sheep.signal(Signal::KILL);
        sheep.wait();

        let sheep = Sheep::start(&data, &options);
        let mut nbd = Nbd::attach(&data, "v").expect("attached");
        assert_eq!(nbd.read(8 << 20, odd.len()), odd);
        assert_eq!(nbd.read(1 << 20, long.len()), long);
        drop(nbd);
        sheep.signal(Signal::INT);
        assert_eq!(sheep.wait().code(), Some(0));
    }
}

#[test]
fn connections_of_one_process_share_a_volume() {
    let (_directory, data) = scratch();
    let sheep = Sheep::start(&data, &[]);
    sheep.create("v").expect("created");
    let mut first = Nbd::attach(&data, "v").expect("attached");
    let mut second = Nbd::attach(&data, "v").expect("attached");
    let bytes = pattern(3, 4096);
    first.write(4096, &bytes);
    assert_eq!(second.read(4096, 4096), bytes);
    match sheep.client().request(&AdminRequest::VolumeInfo { name: "v".into() }) {
        Ok(AdminReply::Volume(report)) => {
            let attachment = report.attachment.expect("attached");
            assert_eq!(attachment.connections, 2);
            let pid = std::process::id();
            assert!(attachment.holder.starts_with(&format!("process {pid} (")), "{attachment:?}");
        }
        other => panic!("{other:?}"),
    }
    let (_, sentence) = Nbd::attach(&data, "none").err().expect("refused");
    assert!(sentence.contains("none"), "{sentence}");
}

#[test]
fn a_name_that_exists_is_refused_with_its_kind() {
    let (_directory, data) = scratch();
    let sheep = Sheep::start(&data, &[]);
    sheep.create("v").expect("created");
    match sheep.create("v") {
        Err(ClientError::Refused(error)) => assert_eq!(error.kind, AdminErrorKind::Conflict),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_daemon_that_cannot_start_says_why_in_its_last_line() {
    let (_directory, data) = scratch();
    let (code, line) = refused(&data, &["--limit", "20X"]);
    assert_eq!(code, 2, "{line}");
    assert!(line.starts_with("sheep: --limit: `20X`"), "{line}");
    assert!(!data.exists());

    let (code, line) = refused(&data, &["--disk", "/dev/no-such-device"]);
    assert_eq!(code, 1, "{line}");
    assert!(line.contains("there is no device /dev/no-such-device"), "{line}");
    assert!(!data.exists());

    // Too small to be a disk: what was begun is taken back.
    let (code, line) = refused(&data, &["--limit", "64K"]);
    assert_eq!(code, 1, "{line}");
    assert!(line.contains("ERROR"), "{line}");
    assert!(!data.exists());

    let sheep = Sheep::start(&data, &[]);
    let (code, line) = refused(&data, &[]);
    assert_eq!(code, 1, "{line}");
    assert!(line.contains(&format!("already in use by process {}", sheep.child.id())), "{line}");
    // And the one that runs is not disturbed.
    sheep.create("v").expect("created");
}

#[test]
fn a_second_signal_ends_a_stop_that_takes_too_long() {
    let (_directory, data) = scratch();
    let sheep = Sheep::start(&data, &[]);
    // Harmless whichever of the two it meets; the process must end either way.
    sheep.signal(Signal::TERM);
    let _ = kill_process(Pid::from_child(&sheep.child), Signal::TERM);
    sheep.wait();
    let sheep = Sheep::start(&data, &[]);
    // A closed terminal is no reason to end.
    sheep.signal(Signal::HUP);
    sheep.create("v").expect("created");
}

/// `timeout` signals the process and then its group: a clean stop was taken for an order to end at
/// once.
#[test]
fn two_signals_at_once_are_one_clean_stop() {
    let place = tempfile::tempdir().expect("a directory");
    let data = place.path().join("data");
    for _ in 0..3 {
        let sheep = Sheep::start(&data, &[]);
        // Two kinds, because one kind twice may arrive as one.
        sheep.signal(Signal::TERM);
        sheep.signal(Signal::INT);
        assert!(sheep.wait().success());
    }
}

/// systemd was told of the start and of nothing else.
#[test]
fn systemd_is_told_what_the_daemon_does_and_that_it_lives() {
    let place = tempfile::tempdir().expect("a directory");
    let data = place.path().join("data");
    let path = place.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut command = command(&data, &[]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "600000");
    let child = command.stderr(Stdio::null()).spawn().expect("started");
    let sheep = Sheep { child, data };
    let mut heard = String::new();
    let mut hear = |wanted: &str| {
        let until = Instant::now() + PATIENCE;
        let mut message = [0; 4096];
        while !heard.contains(wanted) {
            assert!(Instant::now() < until, "{wanted} is not in {heard}");
            let length = socket.recv(&mut message).expect("something is told");
            heard += &String::from_utf8_lossy(&message[..length]);
        }
        heard.drain(..heard.find(wanted).expect("just found") + wanted.len());
    };
    hear("STATUS=starting");
    hear("READY=1");
    hear("STATUS=serving 0 volumes, 0 attached");
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    sheep.signal(Signal::TERM);
    hear("STOPPING=1");
    hear("STATUS=stopping");
    assert!(sheep.wait().success());
}
