//! QEMU's control socket.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Events that arrived while something else was awaited; older ones are dropped beyond this.
const EVENTS_MAX: usize = 1024;
const ANSWER_TIME_LIMIT: Duration = Duration::from_secs(60);

/// A connection to a running QEMU.
pub struct Qmp {
    input: BufReader<UnixStream>,
    output: UnixStream,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Greets QEMU; its socket must be there.
    pub fn connect(stream: UnixStream) -> Result<Qmp> {
        let mut qmp = Qmp {
            input: BufReader::new(stream.try_clone()?),
            output: stream,
            events: VecDeque::new(),
        };
        let greeting = qmp.message(Instant::now() + ANSWER_TIME_LIMIT)?;
        if greeting.get("QMP").is_none() {
            bail!("not QEMU's greeting: {greeting}");
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and gives its return value; an error of QEMU is an error here.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.output, "{request}")?;
        let deadline = Instant::now() + ANSWER_TIME_LIMIT;
        loop {
            let mut message = self.message(deadline)?;
            if message.get("event").is_some() {
                self.remember(message);
            } else if let Some(error) = message.get("error") {
                bail!("QEMU refused {command}: {error}");
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// The next event of this name, one that came earlier or one that comes within the limit.
    pub fn wait_event(&mut self, name: &str, limit: Duration) -> Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(place) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(place).expect("the place was just found"));
            }
            let message =
                self.message(deadline).with_context(|| format!("no event {name} from QEMU"))?;
            self.remember(message);
        }
    }

    fn remember(&mut self, event: Value) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn message(&mut self, deadline: Instant) -> Result<Value> {
        let mut line = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("QEMU said nothing in time");
            }
            self.output.set_read_timeout(Some(left))?;
            match self.input.read_line(&mut line) {
                Ok(0) => bail!("QEMU closed its control socket"),
                Ok(_) if line.trim().is_empty() => line.clear(),
                Ok(_) => return Ok(serde_json::from_str(&line)?),
                // What was read so far stays in `line`.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("QEMU's control socket"),
            }
        }
    }
}
