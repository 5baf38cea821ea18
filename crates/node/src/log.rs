//! The log: events to standard error, and the last words of a panic.

use std::io::{IsTerminal, stderr};
use tracing_subscriber::fmt;

/// Sends events of this level and above to standard error. A panic is logged and ends the process
/// at once: half a daemon would be worse than none.
pub fn start(level: tracing::Level) {
    let log = fmt()
        .with_writer(stderr)
        .with_max_level(level)
        .with_target(false)
        // A log that takes no more (its file system is full, its reader gone) is no reason to
        // stop serving; a complaint about it would go there too, and panic.
        .log_internal_errors(false)
        .with_ansi(stderr().is_terminal());
    // The journal of systemd stamps each line itself.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.init();
    }
    std::panic::set_hook(Box::new(|panic| {
        let trace = std::backtrace::Backtrace::force_capture();
        tracing::error!(
            "this is a bug in sheep, which ends now; nothing acknowledged is lost: {panic}\n{trace}"
        );
        std::process::abort();
    }));
}
