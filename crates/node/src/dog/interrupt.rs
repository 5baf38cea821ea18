//! Ctrl-C for long work: the first signal asks it to stop and clean up, the second ends it. Work
//! that does not stop by itself, because the daemon hangs for example, is ended too.

use super::{failure::Failure, print};
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};

/// How long interrupted work may take to stop by itself: people expect to be back within a second.
const STOP_PATIENCE: Duration = Duration::from_millis(700);
/// How long it may take more to remove what it made, which needs the daemon.
const CLEAN_PATIENCE: Duration = Duration::from_secs(10);

/// Whether somebody wants the work to end. Cheap to clone and to ask.
#[derive(Clone, Default, Debug)]
pub struct Interrupt(Arc<State>);

#[derive(Default, Debug)]
struct State {
    requested: AtomicBool,
    cleaning: AtomicBool,
    /// A file that is not whole: it does not outlive the process.
    partial: Mutex<Option<PathBuf>>,
}

impl Interrupt {
    /// One that signals do not touch.
    #[cfg(test)]
    pub fn never() -> Interrupt {
        Interrupt::default()
    }

    /// Listens for SIGINT, SIGTERM and SIGHUP until the process ends.
    pub fn listen() -> Result<Interrupt, Failure> {
        let interrupt = Interrupt::default();
        let failed = |error| Failure::failed(format!("cannot listen for signals: {error}"));
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        // Registered before the work begins, so that no early Ctrl-C skips the cleaning up.
        let (mut interrupts, mut terminations, mut hangups) = runtime.block_on(async {
            let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
                .map(signal);
            let [interrupts, terminations, hangups] = kinds;
            Ok::<_, Failure>((
                interrupts.map_err(failed)?,
                terminations.map_err(failed)?,
                hangups.map_err(failed)?,
            ))
        })?;
        let seen = interrupt.clone();
        thread::spawn(move || {
            runtime.block_on(async {
                let mut signalled = async || {
                    tokio::select! {
                        _ = interrupts.recv() => {}
                        _ = terminations.recv() => {}
                        _ = hangups.recv() => {}
                    }
                };
                signalled().await;
                seen.request();
                tokio::select! {
                    () = signalled() => {}
                    () = seen.out_of_patience() => {}
                }
                seen.exit();
            });
        });
        Ok(interrupt)
    }

    /// Asks the work to end.
    pub fn request(&self) {
        self.0.requested.store(true, Ordering::Relaxed);
    }

    /// Whether the work should end.
    pub fn requested(&self) -> bool {
        self.0.requested.load(Ordering::Relaxed)
    }

    /// Looks at it from elsewhere.
    pub fn watch(&self) -> Box<dyn Fn() -> bool + Send> {
        let watched = self.clone();
        Box::new(move || watched.requested())
    }

    /// From here on the work removes what it made, and gets time for it.
    pub fn clean_up(&self) {
        self.0.cleaning.store(true, Ordering::Relaxed);
    }

    /// Names the file to remove if the process is ended before the file is whole.
    pub fn will_remove(&self, partial: PathBuf) {
        *self.0.partial.lock().unwrap_or_else(PoisonError::into_inner) = Some(partial);
    }

    async fn out_of_patience(&self) {
        tokio::time::sleep(STOP_PATIENCE).await;
        if self.0.cleaning.load(Ordering::Relaxed) {
            tokio::time::sleep(CLEAN_PATIENCE).await;
        }
    }

    fn exit(&self) -> ! {
        let partial = self.0.partial.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(partial) = partial {
            // Once it is whole there is nothing under this name any more.
            let _ = std::fs::remove_file(partial);
        }
        let left = match self.0.cleaning.load(Ordering::Relaxed) {
            true => "interrupted before cleaning up was done; look at `dog volume list`",
            false => "interrupted",
        };
        let failure = Failure::interrupted(left);
        print::failure(&failure, std::env::args_os().any(|argument| argument == "--json"));
        std::process::exit(i32::from(failure.kind.exit_code()))
    }
}
