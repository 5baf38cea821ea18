//! Guests that stand still while a snapshot is taken: `--freeze SOCKET`.
//!
//! A process of its own looks after each guest ([`guard`]). `dog` tells it to let go by closing a
//! pipe, which the kernel does too if `dog` is killed; and each lets go by itself at the deadline.

pub mod guard;
mod guest;

use super::{Context, Failure, arguments::FreezeOptions, print};
use crate::span::Span;
use guard::Report;
use proto::limits::{FREEZE_GUESTS_MAX, FREEZE_MS_MAX, FREEZE_RELEASE_WAIT_MS};
use serde::Serialize;
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

/// How much longer than its deadline a guard has to say what it did at its deadline.
const REPORT_PATIENCE: Duration = Duration::from_secs(2);

/// How long guests may stand still, out of the command line.
pub fn deadline(text: &str) -> Result<Span, String> {
    match text
        .parse::<Span>()
        .ok()
        .filter(|span| (1..=FREEZE_MS_MAX).contains(&span.milliseconds()))
    {
        Some(span) => Ok(span),
        None => Err(format!(
            "`{text}` is no time that guests may stand still; say a number with ms, s or m, at \
             most {}",
            Span::of_milliseconds(FREEZE_MS_MAX)
        )),
    }
}

/// How one guest was frozen; part of `--json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Stood {
    /// The guest's socket.
    pub socket: PathBuf,
    /// How many file systems were frozen; nothing: its processors were stopped instead.
    pub filesystems: Option<u64>,
    /// Whether its processors stood still before, and still do.
    pub was_paused: bool,
    /// For how long it stood still at most, in milliseconds.
    pub stood_ms: u64,
}

/// Guests that stand still until this is dropped.
struct Frozen {
    guards: Vec<Guard>,
    reports: Receiver<(usize, Option<Report>)>,
    deadline: Span,
    until: Instant,
}

/// One guest's guard, as `dog` sees it.
struct Guard {
    socket: PathBuf,
    child: Child,
    /// Closed to let the guest go.
    input: Option<ChildStdin>,
    frozen: Option<Report>,
    /// The last that it said, once its guest goes on or is lost.
    ended: Option<Report>,
    /// Whether it will say nothing more.
    silent: bool,
}

/// Takes a snapshot by `take`, while the guests that the options name stand still. `name` is that
/// of the snapshot; `undo` the command that deletes it.
pub fn around<T>(
    options: &FreezeOptions,
    name: &str,
    undo: &str,
    take: impl FnOnce() -> Result<T, Failure>,
) -> Result<(T, Vec<Stood>), Failure> {
    if options.freeze.is_empty() {
        return Ok((take()?, Vec::new()));
    }
    if options.freeze.len() > FREEZE_GUESTS_MAX {
        return Err(Failure::usage(format!(
            "one snapshot freezes {FREEZE_GUESTS_MAX} guests at most; take several"
        )));
    }
    let mut frozen = Frozen::begin(options)?;
    if let Err(why) = frozen.await_all() {
        let lost = frozen.let_go().err().unwrap_or_default();
        return Err(Failure::failed(format!("{why}; no snapshot was taken{lost}")));
    }
    let result = take();
    let is_late = Instant::now() >= frozen.until;
    let is_still = frozen.all_stand();
    let ended = frozen.let_go();
    let lost = ended.as_ref().err().cloned().unwrap_or_default();
    let taken = match result {
        Ok(taken) => taken,
        // What the daemon says counts more: there may be no snapshot at all.
        Err(mut failure) => {
            failure.sentence += &lost;
            return Err(failure);
        }
    };
    let why = match (is_late, is_still, frozen.went_on_before()) {
        (true, ..) => format!(
            "not within {}, so the guests were let go before it was certain (a longer \
             --freeze-deadline helps){lost}",
            frozen.deadline
        ),
        (_, false, _) => {
            format!("the processes that look after the guests were told to let them go{lost}")
        }
        (_, _, Some(socket)) => {
            format!(
                "the guest at {} went on meanwhile, by itself or through somebody else{lost}",
                socket.display()
            )
        }
        _ => match ended {
            Ok(stood) => return Ok((taken, stood)),
            Err(lost) => return Err(Failure::failed(format!("snapshot {name} was taken{lost}"))),
        },
    };
    Err(Failure::failed(format!(
        "snapshot {name} was taken, but {why}: it is of one moment, with guests' file systems as \
         after a power failure; keep it as such, or delete it with `{undo}` and try again"
    )))
}

impl Frozen {
    /// Starts a guard for each guest.
    fn begin(options: &FreezeOptions) -> Result<Frozen, Failure> {
        let (sender, reports) = channel();
        let deadline = options.freeze_deadline;
        let until = Instant::now() + deadline.duration();
        let mut frozen = Frozen { guards: Vec::new(), reports, deadline, until };
        for (number, socket) in options.freeze.iter().enumerate() {
            let guard =
                Guard::start(number, socket, deadline.duration(), &sender).map_err(|error| {
                    Failure::failed(format!(
                        "cannot start the process that looks after the guest at {}: {error}; no \
                     snapshot was taken",
                        socket.display()
                    ))
                })?;
            frozen.guards.push(guard);
        }
        Ok(frozen)
    }

    /// Waits until all guests stand still; otherwise says why one does not.
    fn await_all(&mut self) -> Result<(), String> {
        loop {
            for guard in &self.guards {
                if let Some(Report::Failed { why }) = &guard.frozen {
                    let socket = guard.socket.display();
                    return Err(format!("the guest at {socket} cannot be frozen: {why}"));
                }
            }
            let slow = self.guards.iter().find(|guard| guard.frozen.is_none() && !guard.silent);
            let Some(slow) = slow else { break };
            let socket = slow.socket.display().to_string();
            if !self.hear(self.until + REPORT_PATIENCE) {
                let deadline = self.deadline;
                return Err(format!(
                    "the guest at {socket} does not stand still within {deadline}"
                ));
            }
        }
        match self.guards.iter().find(|guard| guard.ended.is_some() || guard.silent) {
            None => Ok(()),
            Some(guard) => Err(format!(
                "the guest at {} does not stand still any more; give a longer --freeze-deadline, \
                 or see whether somebody ended the process that looks after it",
                guard.socket.display()
            )),
        }
    }

    /// Whether no guard has let its guest go yet.
    fn all_stand(&mut self) -> bool {
        while self.hear(Instant::now()) {}
        self.guards.iter().all(|guard| guard.ended.is_none() && !guard.silent)
    }

    /// Lets all guests go and waits until they do. The error is the end of a sentence.
    fn let_go(&mut self) -> Result<Vec<Stood>, String> {
        for guard in &mut self.guards {
            guard.input = None;
        }
        let until = Instant::now() + Duration::from_millis(FREEZE_RELEASE_WAIT_MS);
        while self.guards.iter().any(|guard| !guard.silent) && self.hear(until) {}
        let mut lost = String::new();
        let mut stood = Vec::new();
        for guard in &mut self.guards {
            let socket = guard.socket.display().to_string();
            let released = match (&guard.ended, &guard.frozen) {
                (Some(Report::Released { stood_ms, .. }), _) => Some(*stood_ms),
                (Some(Report::Lost { why }), _) => {
                    lost += &format!("; whether the guest at {socket} goes on is not known: {why}");
                    None
                }
                // It was not touched.
                (None, Some(Report::Failed { .. })) if guard.silent => None,
                (None, None) if guard.silent => None,
                _ if guard.silent => {
                    lost += &format!(
                        "; the process that looked after the guest at {socket} ended without a \
                         word: see whether the guest goes on"
                    );
                    None
                }
                _ => {
                    lost += &format!(
                        "; the guest at {socket} does not confirm that it goes on, which process \
                         {} goes on asking of it",
                        guard.child.id()
                    );
                    None
                }
            };
            if let (Some(stood_ms), Some(Report::Frozen { filesystems, was_paused })) =
                (released, &guard.frozen)
            {
                let (filesystems, was_paused) = (*filesystems, *was_paused);
                let socket = guard.socket.clone();
                stood.push(Stood { socket, filesystems, was_paused, stood_ms });
            }
            if guard.silent {
                let _ = guard.child.wait();
            }
        }
        if lost.is_empty() { Ok(stood) } else { Err(lost) }
    }

    /// The first guest that somebody else let go.
    fn went_on_before(&self) -> Option<&Path> {
        let went =
            |guard: &&Guard| matches!(guard.ended, Some(Report::Released { before: true, .. }));
        self.guards.iter().find(went).map(|guard| guard.socket.as_path())
    }

    /// Takes in what one guard says. False: none did until then.
    fn hear(&mut self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let (number, report) = match self.reports.recv_timeout(left) {
            Ok(heard) => heard,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
        };
        let guard = &mut self.guards[number];
        match report {
            None => guard.silent = true,
            Some(report @ (Report::Frozen { .. } | Report::Failed { .. })) => {
                guard.frozen = Some(report);
            }
            Some(report) => guard.ended = Some(report),
        }
        true
    }
}

impl Guard {
    fn start(
        number: usize,
        socket: &Path,
        deadline: Duration,
        reports: &Sender<(usize, Option<Report>)>,
    ) -> std::io::Result<Guard> {
        // The program that runs, even if another was installed in its place meanwhile.
        let mut child = Command::new("/proc/self/exe")
            .arg(guard::WORD)
            .arg(deadline.as_millis().to_string())
            .arg(socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let input = child.stdin.take();
        let output = child.stdout.take().expect("it was asked for");
        let reports = reports.clone();
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let report = line.ok().and_then(|line| serde_json::from_str(&line).ok());
                let Some(report) = report else { break };
                if reports.send((number, Some(report))).is_err() {
                    return;
                }
            }
            let _ = reports.send((number, None));
        });
        let socket = socket.to_path_buf();
        Ok(Guard { socket, child, input, frozen: None, ended: None, silent: false })
    }
}

/// Shows a snapshot that was taken, with what became of the guests if there were any.
pub fn show(
    context: &Context,
    snapshot: &impl Serialize,
    guests: &[Stood],
    text: &str,
) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Whole<'a, T> {
        #[serde(flatten)]
        snapshot: &'a T,
        #[serde(skip_serializing_if = "<[Stood]>::is_empty")]
        guests: &'a [Stood],
    }
    if context.json { print::json(&Whole { snapshot, guests }) } else { print::text(text) }
}

/// What was frozen, in the words of a sentence that begins with a snapshot: nothing if nothing was.
pub fn words(stood: &[Stood]) -> String {
    let mut words = String::new();
    for guest in stood {
        let what = match (guest.filesystems, guest.was_paused) {
            (Some(1), _) => "1 file system was frozen".to_string(),
            (Some(count), _) => format!("{count} file systems were frozen"),
            (None, false) => "its processors were stopped".to_string(),
            (None, true) => "its processors had been stopped before, and are".to_string(),
        };
        let (socket, time) = (guest.socket.display(), guest.stood_ms);
        words += &format!("guest at {socket}: {what}, for {time} ms at most\n");
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_bounded() {
        for (text, milliseconds) in [
            ("10s", 10_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("2min", 120_000),
            ("5m", FREEZE_MS_MAX),
        ] {
            let span = deadline(text).expect(text);
            assert_eq!(span.milliseconds(), milliseconds, "{text}");
        }
        for text in ["", "s", "10", "0s", "0", "6m", "-1s", "1h", "99999999999999999999s"] {
            let refused = deadline(text).expect_err(text);
            assert!(refused.contains("at most 5m"), "{refused}");
        }
    }
}
