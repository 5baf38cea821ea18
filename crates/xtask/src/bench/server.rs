//! The systems under comparison, as processes of ours that end with their values.

use super::output_of;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long a system may take to start.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether it has.
const START_INTERVAL: Duration = Duration::from_millis(5);

/// Something that exports a volume over NBD.
pub trait Server {
    /// In messages.
    fn name(&self) -> &'static str;
    /// Its processes.
    fn processes(&self) -> Vec<u32>;
    /// The volume, as fio takes it.
    fn target(&self) -> String;
    /// How fio reaches it: a file of the project.
    fn head(&self) -> &'static str {
        "bench/head-nbd.fio"
    }
}

/// One volume of our daemon as a system of its own.
pub struct Volume<'a> {
    /// The daemon.
    pub sheep: &'a Sheep,
    /// The volume's name.
    pub name: &'static str,
}

impl Server for Volume<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn processes(&self) -> Vec<u32> {
        self.sheep.processes()
    }

    fn target(&self) -> String {
        self.sheep.uri_of(self.name)
    }
}

/// Our daemon.
pub struct Sheep {
    child: Child,
    data: PathBuf,
    dog: PathBuf,
}

impl Sheep {
    /// Starts it with these options and waits until it listens.
    pub fn start(programs: &Path, data: &Path, options: &[&str]) -> Result<Sheep> {
        fs::create_dir_all(data)?;
        let log = data.with_extension("log");
        let child = Command::new(programs.join("sheep"))
            .arg("--data")
            .arg(data)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&log)?)
            .spawn()
            .context("sheep does not start: give --programs, or leave it away")?;
        let mut sheep = Sheep { child, data: data.to_path_buf(), dog: programs.join("dog") };
        wait_for_socket(&mut sheep.child, &data.join("nbd.sock"), &log)?;
        Ok(sheep)
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Makes a volume.
    pub fn create(&self, name: &str, bytes: u64) -> Result<()> {
        self.dog(&["volume", "create", name, &bytes.to_string()])
    }

    /// Deletes a volume.
    pub fn delete(&self, name: &str) -> Result<()> {
        self.dog(&["volume", "delete", name, "--now", "--yes"])
    }

    /// Attaches a volume and reads of it: then the daemon really serves.
    pub fn probe(&self, name: &str) -> Result<()> {
        let mut command = self.command();
        command.args(["volume", "read", name, "--offset", "0", "--length", "4096"]);
        output_of(&mut command).map(|_| ())
    }

    /// Bytes of data that its only disk holds.
    pub fn stored_bytes(&self) -> Result<u64> {
        let text = output_of(self.command().args(["disk", "list", "--json"]))?;
        let disks: serde_json::Value = serde_json::from_str(&text)?;
        disks[0]["data_bytes"].as_u64().context("dog tells no data_bytes")
    }

    /// Kills it as nothing else does: no handler runs.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks the daemon as `dog` does, without the time that starting `dog` takes. Gives back the
    /// reply and how long it took.
    pub fn ask(&self, request: &Value) -> Result<(Value, Duration)> {
        let body = request.to_string();
        let started = Instant::now();
        let mut socket = UnixStream::connect(self.data.join("admin.sock"))?;
        let length = body.len();
        write!(
            socket,
            "POST /v1/request HTTP/1.1\r\nHost: sheep\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let took = started.elapsed();
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer of HTTP")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{request} was refused: {body}");
        Ok((serde_json::from_str(body).context("broken JSON")?, took))
    }

    /// Where a volume is exported.
    pub fn uri_of(&self, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.data.join("nbd.sock").display())
    }

    /// Has `dog` do something.
    pub fn dog(&self, arguments: &[&str]) -> Result<()> {
        self.ask_dog(arguments).map(|_| ())
    }

    /// Likewise; what it printed.
    pub fn ask_dog(&self, arguments: &[&str]) -> Result<String> {
        output_of(self.command().args(arguments))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.dog);
        command.arg("--data").arg(&self.data);
        command
    }
}

impl Server for Sheep {
    fn name(&self) -> &'static str {
        "sheep"
    }

    fn processes(&self) -> Vec<u32> {
        vec![self.child.id()]
    }

    fn target(&self) -> String {
        self.uri_of("bench")
    }
}

impl Drop for Sheep {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// QEMU's block layer alone, with a raw file that is written once before.
pub struct StorageDaemon {
    child: Child,
    socket: PathBuf,
}

impl StorageDaemon {
    /// Makes the file, starts it and waits until it listens.
    pub fn start(directory: &Path, bytes: u64) -> Result<StorageDaemon> {
        fs::create_dir_all(directory)?;
        let (file, socket) = (directory.join("raw"), directory.join("nbd.sock"));
        output_of(Command::new("fallocate").args(["-l", &bytes.to_string()]).arg(&file))?;
        let log = directory.join("log");
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!(
                "driver=file,node-name=file,filename={},cache.direct=on,aio=io_uring",
                file.display()
            ))
            .args(["--blockdev", "driver=raw,node-name=raw,file=file,cache.direct=on"])
            .args(["--nbd-server", &format!("addr.type=unix,addr.path={}", socket.display())])
            .args(["--export", "type=nbd,id=export,node-name=raw,name=bench,writable=on"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("qemu-storage-daemon does not start: install it (`make deps`)")?;
        let mut daemon = StorageDaemon { child, socket };
        wait_for_socket(&mut daemon.child, &daemon.socket, &log)?;
        Ok(daemon)
    }
}

impl Server for StorageDaemon {
    fn name(&self) -> &'static str {
        "qemu-storage-daemon"
    }

    fn processes(&self) -> Vec<u32> {
        vec![self.child.id()]
    }

    fn target(&self) -> String {
        format!("nbd+unix:///bench?socket={}", self.socket.display())
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A process of ours that is not needed any more; its data goes with the scratch directory.
fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

fn wait_for_socket(child: &mut Child, socket: &Path, log: &Path) -> Result<()> {
    let until = Instant::now() + START_PATIENCE;
    while Instant::now() < until {
        if UnixStream::connect(socket).is_ok() {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            let said = fs::read_to_string(log).unwrap_or_default();
            bail!("it ended at once ({status}): {said}");
        }
        thread::sleep(START_INTERVAL);
    }
    bail!("nobody listens on {} after {} s", socket.display(), START_PATIENCE.as_secs())
}
