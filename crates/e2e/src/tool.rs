//! Other programs, each with a time limit.

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// What a program may take unless the test says otherwise.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// A program that is about to be run.
pub struct Tool {
    command: Command,
    words: Vec<OsString>,
    input: Vec<u8>,
    time_limit: Duration,
}

/// How a program ended and what it said.
pub struct ToolOutput {
    /// The command line, for messages.
    pub command: String,
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed to its standard output.
    pub stdout: Vec<u8>,
    /// What it printed to its standard error.
    pub stderr: String,
}

impl Tool {
    /// A program by name or path.
    pub fn new(program: impl AsRef<OsStr>) -> Tool {
        let mut command = Command::new(program.as_ref());
        command.env("LC_ALL", "C");
        // Those that tell the tests what to do; sheep refuses what it does not know.
        let ours = |name: &OsString| name.as_encoded_bytes().starts_with(b"SHEEP_");
        std::env::vars_os().map(|(name, _)| name).filter(ours).for_each(|name| {
            command.env_remove(name);
        });
        Tool {
            command,
            words: vec![program.as_ref().to_owned()],
            input: Vec::new(),
            time_limit: TIME_LIMIT,
        }
    }

    /// One more argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Tool {
        self.command.arg(argument.as_ref());
        self.words.push(argument.as_ref().to_owned());
        self
    }

    /// More arguments.
    pub fn args<S: AsRef<OsStr>>(self, arguments: impl IntoIterator<Item = S>) -> Tool {
        arguments.into_iter().fold(self, Tool::arg)
    }

    /// The arguments in a text, which are split at white space.
    pub fn words(self, text: &str) -> Tool {
        self.args(text.split_whitespace())
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Tool {
        self.command.env(name, value);
        self
    }

    /// The directory it runs in.
    pub fn directory(mut self, path: impl AsRef<std::path::Path>) -> Tool {
        self.command.current_dir(path);
        self
    }

    /// What it reads from its standard input, which is otherwise empty.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Tool {
        self.input = bytes.into();
        self
    }

    /// What it may take before it is killed.
    pub fn time_limit(mut self, limit: Duration) -> Tool {
        self.time_limit = limit;
        self
    }

    /// Runs it to its end, whatever that is. Fails when it is not installed or takes too long.
    pub fn run(mut self) -> Result<ToolOutput> {
        let text = self.text();
        let mut output = tempfile::tempfile().context("no scratch file")?;
        let mut errors = tempfile::tempfile().context("no scratch file")?;
        let mut input = tempfile::tempfile().context("no scratch file")?;
        input.write_all(&self.input)?;
        input.seek(SeekFrom::Start(0))?;
        let mut child = self
            .command
            .stdin(input)
            .stdout(output.try_clone()?)
            .stderr(errors.try_clone()?)
            .spawn()
            .with_context(|| {
                format!("cannot run `{text}`; tools/install-build-deps installs it")
            })?;
        let Some(status) = wait(&mut child, self.time_limit)? else {
            child.kill()?;
            child.wait()?;
            let seconds = self.time_limit.as_secs();
            bail!("`{text}` was not done within {seconds} s\n{}", content(&mut errors)?);
        };
        let mut stdout = Vec::new();
        output.seek(SeekFrom::Start(0))?;
        output.read_to_end(&mut stdout)?;
        Ok(ToolOutput { command: text, code: status.code(), stdout, stderr: content(&mut errors)? })
    }

    /// Runs it, demands exit code 0 and gives what it printed.
    pub fn ok(self) -> Result<String> {
        let output = self.run()?;
        if output.code != Some(0) {
            bail!("{output}");
        }
        Ok(output.text())
    }

    /// Starts it and leaves it running; what it prints goes to a file.
    pub fn spawn(mut self, output: File) -> Result<Child> {
        let text = self.text();
        self.command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot run `{text}`; tools/install-build-deps installs it"))
    }

    fn text(&self) -> String {
        let words: Vec<_> = self.words.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }
}

impl ToolOutput {
    /// Its standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl fmt::Display for ToolOutput {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code.map_or("a signal".to_owned(), |code| format!("code {code}"));
        writeln!(formatter, "`{}` ended with {code}", self.command)?;
        let text = self.text();
        let tail = text.len().saturating_sub(8192);
        writeln!(formatter, "{}{}", text.get(tail..).unwrap_or(""), self.stderr)
    }
}

/// Waits for a child's end, at most this long; `None` when it still runs.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs())?,
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    loop {
        match poll(&mut fds, Some(&limit)) {
            Ok(0) => return Ok(child.try_wait()?),
            Ok(_) => return Ok(Some(child.wait()?)),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("poll of a pidfd"),
        }
    }
}

fn content(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
