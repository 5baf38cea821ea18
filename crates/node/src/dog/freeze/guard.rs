//! The process that makes one guest stand still and lets it go on again, whatever happens to the
//! `dog` that started it: the end of its standard input, a signal, or the deadline is the word to
//! let go, and it tries until the guest's agent or monitor confirms, or its socket is gone.
//!
//! It runs in a session of its own, so that what ends `dog` does not end it. What it says, on its
//! standard output, is one [`Report`] a line.

use super::guest::{
    FreezeError, Guest, Release, Stillness, Trouble, Wait, agent_words, socket_words,
};
use proto::limits::{FREEZE_ATTEMPT_MS, FREEZE_CONNECT_RETRY_MS, FREEZE_RELEASE_MS_MAX};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};
use tokio::signal::unix::{SignalKind, signal};

/// The word that makes a process of `dog` a guard, instead of a command.
pub const WORD: &str = "freeze-guard";

/// What a guard says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case")]
pub enum Report {
    /// The guest stands still.
    Frozen {
        /// File systems that were frozen; nothing: its processors were stopped.
        filesystems: Option<u64>,
        /// Whether its processors were stopped before, by somebody else.
        was_paused: bool,
    },
    /// It does not, and why, after "the guest at PATH cannot be frozen: ". What was begun is
    /// undone.
    Failed {
        /// Words of a sentence.
        why: String,
    },
    /// It goes on.
    Released {
        /// It was let go because the deadline had come.
        late: bool,
        /// It went on before it was let go: somebody else did that.
        before: bool,
        /// For how long it stood still at most, in milliseconds.
        stood_ms: u64,
    },
    /// It is not known whether it goes on, and why.
    Lost {
        /// Words of a sentence.
        why: String,
    },
}

/// Whether the guest is to be let go.
#[derive(Clone, Default)]
struct Word(Arc<(Mutex<bool>, Condvar)>);

impl Word {
    fn give(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    fn is_given(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for it, at most until then. Gives back whether it came.
    fn wait_until(&self, until: Instant) -> bool {
        let given = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = until.saturating_duration_since(Instant::now());
        let waited = self.0.1.wait_timeout_while(given, left, |given| !*given);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The guard that the process's arguments ask for, if they do: `freeze-guard MILLISECONDS SOCKET`.
pub fn asked_for() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != WORD {
        return None;
    }
    let milliseconds: u64 = arguments.next()?.to_str()?.parse().ok()?;
    let socket = PathBuf::from(arguments.next()?);
    if arguments.next().is_some() {
        return None;
    }
    // It fails only for who has a session already.
    let _ = rustix::process::setsid();
    let deadline = Instant::now() + Duration::from_millis(milliseconds);
    let word = Word::default();
    if let Err(error) = listen(&word) {
        say(&Report::Failed { why: format!("cannot listen for signals: {error}") });
        return Some(ExitCode::FAILURE);
    }
    guard(&socket, deadline, &word);
    Some(ExitCode::SUCCESS)
}

/// The end of the input, and every signal that can be caught, is the word.
fn listen(word: &Word) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupts, mut terminations, mut hangups) = runtime.block_on(async {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupts, terminations, hangups] = kinds.map(signal);
        Ok::<_, io::Error>((interrupts?, terminations?, hangups?))
    })?;
    let signalled = word.clone();
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupts.recv() => {}
                _ = terminations.recv() => {}
                _ = hangups.recv() => {}
            }
        });
        signalled.give();
        // The runtime stays, and with it what catches further signals.
        std::mem::forget(runtime);
    });
    let ended = word.clone();
    thread::spawn(move || {
        // Nothing is ever written there.
        let _ = io::stdin().lock().read(&mut [0]);
        ended.give();
    });
    Ok(())
}

/// Says something to the `dog` that may be gone.
fn say(report: &Report) {
    let line = serde_json::to_string(report).expect("reports are always JSON");
    let mut output = io::stdout().lock();
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

fn guard(socket: &Path, deadline: Instant, word: &Word) {
    let wait = Wait { until: deadline, stop: &|| word.is_given() };
    let began = Instant::now();
    let mut guest = match Guest::connect(socket, &wait) {
        Ok(guest) => guest,
        Err(trouble) => return say(&Report::Failed { why: socket_words(trouble) }),
    };
    let stillness = match guest.freeze(&wait) {
        Ok(stillness) => stillness,
        Err(FreezeError::Untouched(why)) => return say(&Report::Failed { why }),
        Err(FreezeError::Unknown(why)) => {
            say(&Report::Failed { why });
            // It may have stood still, or may do so any time: nothing is known of how many.
            return release(socket, Some(guest), Stillness::FileSystems(0), true, began);
        }
    };
    say(&match stillness {
        Stillness::FileSystems(count) => {
            Report::Frozen { filesystems: Some(count), was_paused: false }
        }
        Stillness::Paused => Report::Frozen { filesystems: None, was_paused: false },
        Stillness::WasPaused => Report::Frozen { filesystems: None, was_paused: true },
    });
    let late = !word.wait_until(deadline);
    release(socket, Some(guest), stillness, late, began);
}

/// Lets the guest go on, however often that has to be tried.
fn release(
    socket: &Path,
    mut guest: Option<Guest>,
    stillness: Stillness,
    late: bool,
    began: Instant,
) {
    let give_up = Instant::now() + Duration::from_millis(FREEZE_RELEASE_MS_MAX);
    let mut last = None;
    while Instant::now() < give_up {
        let until = Instant::now() + Duration::from_millis(FREEZE_ATTEMPT_MS);
        let wait = Wait { until, stop: &|| false };
        let connected = match guest.take() {
            Some(guest) => Ok(guest),
            None => Guest::connect(socket, &wait),
        };
        let result = connected.and_then(|mut connected| {
            let result = connected.thaw(stillness, &wait);
            // One that is only slow is asked again where it was asked before.
            if matches!(result, Err(Trouble::Late)) {
                guest = Some(connected);
            }
            result
        });
        match result {
            Ok(release) => {
                let before = release == Release::WentOnBefore;
                let stood_ms = began.elapsed().as_millis() as u64;
                return say(&Report::Released { late, before, stood_ms });
            }
            Err(Trouble::Gone(error)) if is_final(&error) => {
                return say(&Report::Lost {
                    why: format!(
                        "its socket is gone ({error}), and with it most likely the machine"
                    ),
                });
            }
            Err(trouble) => last = Some(agent_words(trouble)),
        }
        thread::sleep(Duration::from_millis(FREEZE_CONNECT_RETRY_MS));
    }
    let why = last.unwrap_or_else(|| "it does not answer".into());
    say(&Report::Lost { why });
}

/// Whether nobody can be there again: the end of one conversation may be followed by another.
fn is_final(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
