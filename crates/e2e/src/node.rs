//! One `sheep` on a scratch directory.

use crate::programs;
use crate::scratch::beside;
use crate::tool::{Tool, ToolOutput, wait};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

/// A daemon must serve within this; the promise is far shorter, the machine may be busy.
const START_TIME_LIMIT: Duration = Duration::from_secs(60);
const STOP_TIME_LIMIT: Duration = Duration::from_secs(60);

/// A daemon on a data directory. Ended when dropped; its log is then searched for what nobody
/// expected.
pub struct Node {
    data: PathBuf,
    log: PathBuf,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    expected: Vec<String>,
    /// The network namespace that it runs in, if not that of the test.
    namespace: Option<PathBuf>,
    child: Option<Child>,
    /// Where the daemon says that it serves, as it would to systemd.
    notify: UnixDatagram,
    notify_path: PathBuf,
}

/// A line of a daemon's log that a person would look at.
pub type LogLine = String;

impl Node {
    /// Starts a daemon on `data`, which need not exist, and waits until it serves. Its log lies
    /// in the scratch directory, with `.log` behind its name.
    pub fn start(data: &Path, options: &[&str]) -> Result<Node> {
        let mut node = Node::prepare(data, options)?;
        node.begin()?;
        Ok(node)
    }

    /// As [`Node::start`], with variables in its environment.
    pub fn start_with(data: &Path, options: &[&str], variables: &[(&str, &str)]) -> Result<Node> {
        let mut node = Node::prepare(data, options)?;
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        node.environment = variables.iter().map(owned).collect();
        node.begin()?;
        Ok(node)
    }

    /// A daemon that other nodes reach at `address`: the first of a cluster, or with a token one
    /// that joins another's. It is started again without the token, as people do.
    pub fn start_member(data: &Path, address: &str, token: Option<&str>) -> Result<Node> {
        let options = token.map_or(vec![], |token| vec!["--join", token]);
        Node::start_member_with(data, address, &options)
    }

    /// As [`Node::start_member`], with options for its first start that its later ones go without.
    pub fn start_member_with(data: &Path, address: &str, options: &[&str]) -> Result<Node> {
        let mut node = Node::start_with(data, options, &[("SHEEP_LISTEN", address)])?;
        node.options.clear();
        Ok(node)
    }

    /// As [`Node::start_member`], on a machine of a [`crate::Network`], with variables in its
    /// environment.
    pub fn start_member_in(
        namespace: &Path,
        data: &Path,
        address: &str,
        token: Option<&str>,
        variables: &[(&str, &str)],
    ) -> Result<Node> {
        let options = token.map_or(vec![], |token| vec!["--join", token]);
        let mut node = Node::prepare(data, &options)?;
        let listen = ("SHEEP_LISTEN", address);
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        node.environment = variables.iter().chain([&listen]).map(owned).collect();
        node.namespace = Some(namespace.to_owned());
        node.begin()?;
        node.options.clear();
        Ok(node)
    }

    /// As [`Node::start`], with another file as its log.
    pub fn start_logging_to(log: &Path, data: &Path) -> Result<Node> {
        let mut node = Node::prepare(data, &[])?;
        node.log = log.to_owned();
        node.begin()?;
        Ok(node)
    }

    fn prepare(data: &Path, options: &[&str]) -> Result<Node> {
        let notify_path = beside(data, ".notify");
        let _ = fs::remove_file(&notify_path);
        let notify = UnixDatagram::bind(&notify_path)
            .with_context(|| format!("cannot make {}", notify_path.display()))?;
        Ok(Node {
            data: data.to_owned(),
            log: beside(data, ".log"),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            environment: Vec::new(),
            expected: Vec::new(),
            namespace: None,
            child: None,
            notify,
            notify_path,
        })
    }

    /// Starts the daemon again after [`Node::kill`] or [`Node::stop`] and waits until it serves.
    pub fn begin(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// The first half of [`Node::begin`]: one that needs others to serve is not waited for.
    pub fn launch(&mut self) -> Result<()> {
        assert!(self.child.is_none(), "the daemon still runs");
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let program = match &self.namespace {
            Some(namespace) => crate::netns::within(namespace, programs::sheep()),
            None => Tool::new(programs::sheep()),
        };
        let mut tool = program
            .arg("--data")
            .arg(&self.data)
            .args(&self.options)
            .env("NOTIFY_SOCKET", &self.notify_path)
            .env("NO_COLOR", "1")
            // Tests run side by side, and a machine has the usual port once.
            .env("SHEEP_LISTEN", "none");
        for (name, value) in &self.environment {
            tool = tool.env(name, value);
        }
        self.child = Some(tool.spawn(log)?);
        Ok(())
    }

    /// The second half of [`Node::begin`]: waits until a daemon that was launched serves.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIME_LIMIT;
        let child = self.child.as_mut().expect("it was just started");
        let mut message = [0; 512];
        self.notify.set_read_timeout(Some(Duration::from_millis(20)))?;
        loop {
            if let Ok(length) = self.notify.recv(&mut message) {
                let text = String::from_utf8_lossy(&message[..length]);
                if text.lines().any(|line| line == "READY=1") {
                    return Ok(());
                }
            }
            if let Some(status) = child.try_wait()? {
                self.child = None;
                bail!("sheep ended at start with {status}:\n{}", self.log_text()?);
            }
            if Instant::now() > deadline {
                bail!("sheep does not serve after a minute:\n{}", self.log_text()?);
            }
        }
    }

    /// SIGKILL, as the kernel does it when memory runs out.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the daemon does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGSTOP: it answers nothing, while the kernel goes on taking what is sent to it.
    pub fn pause(&self) -> Result<()> {
        let child = self.child.as_ref().context("the daemon does not run")?;
        Ok(kill_process(Pid::from_child(child), Signal::STOP)?)
    }

    /// SIGCONT: it goes on as if no time had passed.
    pub fn wake(&self) -> Result<()> {
        let child = self.child.as_ref().context("the daemon does not run")?;
        Ok(kill_process(Pid::from_child(child), Signal::CONT)?)
    }

    /// SIGTERM, as systemd does it; demands a clean end.
    pub fn stop(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the daemon does not run")?;
        kill_process(Pid::from_child(&child), Signal::TERM)?;
        match wait(&mut child, STOP_TIME_LIMIT)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("sheep ended with {status} on SIGTERM:\n{}", self.log_text()?),
            None => {
                child.kill()?;
                child.wait()?;
                bail!("sheep did not end on SIGTERM:\n{}", self.log_text()?)
            }
        }
    }

    /// Waits for a daemon that ends by itself and gives its exit code.
    pub fn wait_end(&mut self, limit: Duration) -> Result<Option<i32>> {
        let child = self.child.as_mut().context("the daemon does not run")?;
        match wait(child, limit)? {
            Some(status) => {
                self.child = None;
                Ok(status.code())
            }
            None => bail!("sheep still runs:\n{}", self.log_text()?),
        }
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The NBD socket.
    pub fn nbd_socket(&self) -> PathBuf {
        self.data.join("nbd.sock")
    }

    /// The NBD address of a volume, as other programs take it.
    pub fn uri(&self, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.nbd_socket().display())
    }

    /// `dog` with this data directory, not yet run.
    pub fn dog(&self, words: &str) -> Tool {
        Tool::new(programs::dog()).arg("--data").arg(&self.data).words(words)
    }

    /// Runs `dog`, demands success and gives what it printed.
    pub fn dog_ok(&self, words: &str) -> Result<String> {
        self.dog(words).ok()
    }

    /// Runs `dog --json`, demands success and gives what it printed as a value.
    pub fn dog_json(&self, words: &str) -> Result<Value> {
        let text = self.dog(&format!("--json {words}")).ok()?;
        serde_json::from_str(&text)
            .with_context(|| format!("`dog {words}` printed no JSON: {text}"))
    }

    /// Runs `dog`, demands failure and gives how it failed.
    pub fn dog_refuses(&self, words: &str) -> Result<ToolOutput> {
        let output = self.dog(words).run()?;
        if output.code == Some(0) {
            bail!("was not refused: {output}");
        }
        Ok(output)
    }

    /// Bytes that a volume's blocks use, exactly, as `dog volume info` tells them.
    pub fn used_bytes(&self, volume: &str) -> Result<u64> {
        let info = self.dog_json(&format!("volume info {volume}"))?;
        info["used_bytes"].as_u64().with_context(|| format!("no used_bytes in {info}"))
    }

    /// Lines with WARN or ERROR that hold `text` belong to the test.
    pub fn expect_log(&mut self, text: &str) {
        self.expected.push(text.to_owned());
    }

    /// All that it logged, over all its lives.
    pub fn log_text(&self) -> Result<String> {
        let is_file = fs::metadata(&self.log)?.is_file();
        Ok(if is_file { fs::read_to_string(&self.log)? } else { String::new() })
    }

    /// The lines with WARN or ERROR, or of a panic, that nobody expected.
    pub fn unexpected(&self) -> Result<Vec<LogLine>> {
        let loud =
            |line: &&str| ["WARN", "ERROR", "panicked"].iter().any(|word| line.contains(word));
        let expected = |line: &str| self.expected.iter().any(|text| line.contains(text.as_str()));
        let text = self.log_text()?;
        let lines = text.lines().filter(loud).filter(|line| !expected(line));
        Ok(lines.map(str::to_owned).collect())
    }

    /// Pages in memory, in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        let pid = self.pid().context("the daemon does not run")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(kib.context("no VmRSS")?.parse::<u64>()? * 1024)
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> Result<usize> {
        let pid = self.pid().context("the daemon does not run")?;
        Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.notify_path);
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let text = self.log_text().unwrap_or_default();
        if std::thread::panicking() {
            let tail = text.len().saturating_sub(16384);
            eprintln!("--- log of sheep ---\n{}", text.get(tail..).unwrap_or(&text));
            return;
        }
        let lines = self.unexpected().unwrap_or_default();
        assert!(lines.is_empty(), "unexpected lines in the log of sheep:\n{}", lines.join("\n"));
    }
}

/// Makes an empty file; here because a test of a node often wants one.
impl Node {
    /// A sparse file of that many bytes beside the data directory.
    pub fn blank_file(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let path = self.data.with_file_name(name);
        File::create(&path)?.set_len(bytes)?;
        Ok(path)
    }
}
