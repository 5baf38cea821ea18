//! What is spoken with a guest that is to stand still: the guest agent's protocol, or QMP.
//!
//! Which of them a socket speaks is found out: QEMU's monitor greets, the agent does not. The
//! agent's answers may be late, and an answer of an earlier conversation may come first; therefore
//! every question to it begins with a number drawn for it, and all before its echo is thrown away.

use proto::limits::{
    FREEZE_ATTEMPT_MS, FREEZE_CONNECT_RETRY_MS, FREEZE_GREETING_MS, FREEZE_MESSAGE_BYTES_MAX,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::{Value, json};
use std::{
    io::{self, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// Sent before a question to make the agent forget half a question that came before, and sent by
/// the agent before the answer to it.
const DELIMITER: u8 = 0xff;
/// How often it is looked whether somebody wants the waiting to end.
const LOOK: Duration = Duration::from_millis(50);

/// Why a conversation did not come to its end.
#[derive(Debug)]
pub enum Trouble {
    /// Nobody is there, or not any more.
    Gone(io::Error),
    /// No answer in time, or nobody wants it any more.
    Late,
    /// It speaks neither protocol.
    Nonsense(String),
    /// It says no, in its own words.
    Refused(String),
}

/// What a guest does when it stands still.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stillness {
    /// So many file systems are frozen.
    FileSystems(u64),
    /// Its processors are stopped.
    Paused,
    /// Its processors were stopped before, by somebody else.
    WasPaused,
}

/// What came of letting it go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Release {
    /// It was still standing, and goes on.
    GoesOn,
    /// Somebody else let it go on before.
    WentOnBefore,
}

/// Why a guest does not stand still.
#[derive(Debug)]
pub enum FreezeError {
    /// It was not touched, or is as it was: in a sentence's words.
    Untouched(String),
    /// It was asked and did not answer: it may stand still, now or later.
    Unknown(String),
}

/// When waiting ends.
pub struct Wait<'a> {
    /// At the latest then.
    pub until: Instant,
    /// Or when this is so.
    pub stop: &'a dyn Fn() -> bool,
}

impl Wait<'_> {
    /// For at most so long from now on.
    fn at_most(&self, limit: Duration) -> Wait<'_> {
        Wait { until: self.until.min(Instant::now() + limit), stop: self.stop }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until || (self.stop)()
    }
}

/// A conversation with a guest.
pub struct Guest {
    channel: Channel,
    is_monitor: bool,
    /// The last number of a question to the agent.
    number: u64,
}

impl Guest {
    /// Connects to a socket and finds out what it speaks.
    pub fn connect(socket: &Path, wait: &Wait<'_>) -> Result<Guest, Trouble> {
        let channel = Channel::connect(socket, wait)?;
        // Numbers of other conversations with the same agent are others, as good as certainly.
        let mut bytes = [0; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Trouble::Gone(error.into()))?;
        let number = u64::from_le_bytes(bytes) >> 16;
        let mut guest = Guest { channel, is_monitor: false, number };
        let greeting_wait = wait.at_most(Duration::from_millis(FREEZE_GREETING_MS));
        let greeting = guest.channel.message(&greeting_wait);
        guest.is_monitor = match &greeting {
            Ok(greeting) => greeting.get("QMP").is_some(),
            Err(Trouble::Gone(_)) => return Err(greeting.expect_err("just seen")),
            Err(_) => false,
        };
        if !guest.is_monitor {
            // What came may be what the agent still had to say to somebody else.
            match (guest.synchronize(wait), greeting) {
                // A monitor that took its time.
                (Err(Trouble::Nonsense(text)), _) if is_greeting(text.as_bytes()) => {
                    guest.is_monitor = true;
                }
                (Err(Trouble::Late), Err(trouble @ Trouble::Nonsense(_))) => return Err(trouble),
                (result, _) => result?,
            }
        }
        if guest.is_monitor {
            guest.call("qmp_capabilities", wait)?;
        }
        Ok(guest)
    }

    /// Makes the guest stand still.
    pub fn freeze(&mut self, wait: &Wait<'_>) -> Result<Stillness, FreezeError> {
        if self.is_monitor { self.pause(wait) } else { self.freeze_file_systems(wait) }
    }

    /// Lets it go on. Done already is done.
    pub fn thaw(&mut self, stillness: Stillness, wait: &Wait<'_>) -> Result<Release, Trouble> {
        if self.is_monitor {
            return self.resume(stillness, wait);
        }
        self.synchronize(wait)?;
        let thawed = match self.call("guest-fsfreeze-thaw", wait) {
            // Some systems let go by themselves after a while, and then refuse to do it again.
            Err(refused @ Trouble::Refused(_)) => {
                match self.call("guest-fsfreeze-status", wait)? == "thawed" {
                    true => return Ok(Release::WentOnBefore),
                    false => return Err(refused),
                }
            }
            result => result?,
        };
        let frozen = !matches!(stillness, Stillness::FileSystems(0));
        Ok(match thawed.as_u64() {
            Some(0) if frozen => Release::WentOnBefore,
            _ => Release::GoesOn,
        })
    }

    fn freeze_file_systems(&mut self, wait: &Wait<'_>) -> Result<Stillness, FreezeError> {
        let untouched = |trouble: Trouble| FreezeError::Untouched(agent_words(trouble));
        let status = self.call("guest-fsfreeze-status", wait).map_err(untouched)?;
        if status == "frozen" {
            return Err(FreezeError::Untouched(
                "somebody else has frozen it already, so it is left as it is".into(),
            ));
        }
        match self.call("guest-fsfreeze-freeze", wait) {
            Ok(count) => Ok(Stillness::FileSystems(count.as_u64().unwrap_or(0))),
            // The agent itself thaws what it froze before it failed.
            Err(trouble @ Trouble::Refused(_)) => Err(untouched(trouble)),
            Err(trouble) => Err(FreezeError::Unknown(agent_words(trouble))),
        }
    }

    fn pause(&mut self, wait: &Wait<'_>) -> Result<Stillness, FreezeError> {
        let untouched = |trouble: Trouble| FreezeError::Untouched(monitor_words(trouble));
        if !self.is_running(wait).map_err(untouched)? {
            return Ok(Stillness::WasPaused);
        }
        // Its requests in flight have ended, and are flushed, when this is answered.
        match self.call("stop", wait) {
            Ok(_) => Ok(Stillness::Paused),
            Err(trouble @ Trouble::Refused(_)) => Err(untouched(trouble)),
            Err(trouble) => Err(FreezeError::Unknown(monitor_words(trouble))),
        }
    }

    fn resume(&mut self, stillness: Stillness, wait: &Wait<'_>) -> Result<Release, Trouble> {
        if stillness == Stillness::WasPaused {
            return Ok(Release::GoesOn);
        }
        if self.is_running(wait)? {
            return Ok(Release::WentOnBefore);
        }
        self.call("cont", wait)?;
        Ok(Release::GoesOn)
    }

    fn is_running(&mut self, wait: &Wait<'_>) -> Result<bool, Trouble> {
        let status = self.call("query-status", wait)?;
        let running = status.get("running").and_then(Value::as_bool);
        running.ok_or_else(|| Trouble::Nonsense(status.to_string()))
    }

    /// Throws away all that an agent says to questions of before.
    fn synchronize(&mut self, wait: &Wait<'_>) -> Result<(), Trouble> {
        self.number += 1;
        let number = self.number;
        let question = json!({ "execute": "guest-sync-delimited", "arguments": { "id": number } });
        self.channel.send(&format!("{question}\n"), true)?;
        loop {
            self.channel.skip_to_delimiter(wait)?;
            match self.channel.message(wait) {
                Ok(answer) if answer.get("return") == Some(&json!(number)) => return Ok(()),
                // Another conversation's, or what came before was cut.
                Ok(_) | Err(Trouble::Nonsense(_)) => {}
                Err(trouble) => return Err(trouble),
            }
        }
    }

    /// One command without arguments, and what it brings.
    fn call(&mut self, command: &str, wait: &Wait<'_>) -> Result<Value, Trouble> {
        if self.is_monitor {
            // The answers to questions that nobody waited for have other numbers.
            self.number += 1;
        }
        let mut question = json!({ "execute": command });
        if self.is_monitor {
            question["id"] = json!(self.number);
        }
        self.channel.send(&format!("{question}\n"), false)?;
        loop {
            let mut answer = self.channel.message(wait)?;
            if self.is_monitor && answer.get("id") != Some(&json!(self.number)) {
                continue; // an event, or a late answer
            }
            if let Some(error) = answer.get("error") {
                let words =
                    error.get("desc").and_then(Value::as_str).unwrap_or("it gives no reason");
                return Err(Trouble::Refused(words.trim_end_matches('.').to_string()));
            }
            if let Some(brought) = answer.get_mut("return") {
                return Ok(brought.take());
            }
        }
    }
}

/// A socket that JSON comes from, line by line.
struct Channel {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Channel {
    /// Connects. A server whose queue of callers is full is asked again.
    fn connect(path: &Path, wait: &Wait<'_>) -> Result<Channel, Trouble> {
        let gone = |error: rustix::io::Errno| Trouble::Gone(error.into());
        let address = SocketAddrUnix::new(path).map_err(gone)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            let kind = SocketType::STREAM;
            let socket = socket_with(AddressFamily::UNIX, kind, flags, None).map_err(gone)?;
            match connect(&socket, &address) {
                Ok(()) => {
                    let stream = UnixStream::from(socket);
                    stream.set_nonblocking(false).map_err(Trouble::Gone)?;
                    stream.set_read_timeout(Some(LOOK)).map_err(Trouble::Gone)?;
                    let limit = Duration::from_millis(FREEZE_ATTEMPT_MS);
                    stream.set_write_timeout(Some(limit)).map_err(Trouble::Gone)?;
                    return Ok(Channel { stream, received: Vec::new() });
                }
                Err(rustix::io::Errno::AGAIN) if wait.is_over() => return Err(Trouble::Late),
                Err(rustix::io::Errno::AGAIN) => {
                    thread::sleep(Duration::from_millis(FREEZE_CONNECT_RETRY_MS));
                }
                Err(error) => return Err(gone(error)),
            }
        }
    }

    fn send(&mut self, text: &str, delimited: bool) -> Result<(), Trouble> {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        bytes.extend(delimited.then_some(DELIMITER));
        bytes.extend_from_slice(text.as_bytes());
        match self.stream.write_all(&bytes) {
            Ok(()) => Ok(()),
            Err(error) if is_timeout(&error) => Err(Trouble::Late),
            Err(error) => Err(Trouble::Gone(error)),
        }
    }

    /// The next line, as JSON.
    fn message(&mut self, wait: &Wait<'_>) -> Result<Value, Trouble> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                let line = line.strip_prefix(&[DELIMITER]).unwrap_or(&line).trim_ascii();
                if line.is_empty() {
                    continue;
                }
                return serde_json::from_slice(line).map_err(|_| nonsense(line));
            }
            self.receive(wait)?;
        }
    }

    /// Throws away everything before a delimiter, and it too.
    fn skip_to_delimiter(&mut self, wait: &Wait<'_>) -> Result<(), Trouble> {
        loop {
            if let Some(place) = self.received.iter().position(|byte| *byte == DELIMITER) {
                self.received.drain(..=place);
                return Ok(());
            }
            if is_greeting(&self.received) {
                let line = std::mem::take(&mut self.received);
                return Err(nonsense(&line));
            }
            // Nothing of it is wanted, but for a delimiter.
            if self.received.len() >= FREEZE_MESSAGE_BYTES_MAX {
                self.received.clear();
            }
            self.receive(wait)?;
        }
    }

    fn receive(&mut self, wait: &Wait<'_>) -> Result<(), Trouble> {
        if self.received.len() >= FREEZE_MESSAGE_BYTES_MAX {
            return Err(nonsense(&self.received));
        }
        let mut bytes = [0; 4096];
        loop {
            if wait.is_over() {
                return Err(Trouble::Late);
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Trouble::Gone(ErrorKind::UnexpectedEof.into())),
                Ok(length) => {
                    self.received.extend_from_slice(&bytes[..length]);
                    return Ok(());
                }
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(Trouble::Gone(error)),
            }
        }
    }
}

/// Whether a monitor says that it is one.
fn is_greeting(bytes: &[u8]) -> bool {
    bytes.windows(5).any(|window| window == b"\"QMP\"")
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn nonsense(bytes: &[u8]) -> Trouble {
    let shown = &bytes[..bytes.len().min(200)];
    Trouble::Nonsense(String::from_utf8_lossy(shown).trim().to_string())
}

/// A trouble with an agent, after "the guest at PATH cannot be frozen: ".
pub fn agent_words(trouble: Trouble) -> String {
    match trouble {
        Trouble::Late => "its agent does not answer; see whether qemu-guest-agent runs in the \
                          guest and whether something else, such as libvirt, has the socket"
            .into(),
        Trouble::Refused(words) => format!(
            "its agent refuses ({words}); see which commands its configuration allows \
             (guest-fsfreeze-freeze, -status and -thaw are needed)"
        ),
        other => socket_words(other),
    }
}

/// A trouble with a monitor.
pub fn monitor_words(trouble: Trouble) -> String {
    match trouble {
        Trouble::Late => "QEMU does not answer".into(),
        Trouble::Refused(words) => format!("QEMU refuses ({words})"),
        other => socket_words(other),
    }
}

/// A trouble before it is known who is there.
pub fn socket_words(trouble: Trouble) -> String {
    match trouble {
        Trouble::Gone(error) if error.kind() == ErrorKind::UnexpectedEof => {
            "the other side ended the conversation; see whether the machine still runs".into()
        }
        Trouble::Gone(error) => {
            format!(
                "nobody is there ({error}); name the socket of QEMU's monitor (-qmp) or of the \
                     guest agent's channel"
            )
        }
        Trouble::Nonsense(text) => format!(
            "it speaks neither QMP nor the guest agent's protocol (it said {text:?}); name \
             another socket"
        ),
        other => agent_words(other),
    }
}
