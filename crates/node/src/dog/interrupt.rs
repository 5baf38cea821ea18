//! Ctrl-C for long work: the first signal asks it to stop and clean up, the second ends it.

use super::failure::{Failure, FailureKind};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use tokio::signal::unix::{SignalKind, signal};

/// Whether somebody wants the work to end. Cheap to clone and to ask.
#[derive(Clone, Default, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

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
                loop {
                    tokio::select! {
                        _ = interrupts.recv() => {}
                        _ = terminations.recv() => {}
                        _ = hangups.recv() => {}
                    }
                    if seen.requested() {
                        std::process::exit(i32::from(FailureKind::Interrupted.exit_code()));
                    }
                    seen.request();
                }
            });
        });
        Ok(interrupt)
    }

    /// Asks the work to end.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the work should end.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
