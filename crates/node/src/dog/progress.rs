//! How far long work is: a bar where somebody looks at a terminal, else a line every few seconds.

use super::print;
use crate::size::Size;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

/// How often a log gets a line.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// How often a terminal is drawn.
const BAR_INTERVAL: Duration = Duration::from_millis(100);

/// Shows the progress of one piece of work on standard error until it is dropped.
pub struct Progress {
    /// What is being done, in one word: "importing".
    verb: &'static str,
    /// How much there is, where that is known.
    total: Option<u64>,
    /// What was done before: it counts, but says nothing about the pace.
    before: u64,
    done: u64,
    started: Instant,
    shown: Instant,
    /// Nothing: lines instead.
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Work of `total` bytes begins.
    pub fn new(verb: &'static str, total: Option<u64>) -> Progress {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total.unwrap_or(0));
            let template = if total.is_some() { "[{bar:30}] {msg}" } else { "{spinner} {msg}" };
            let style = ProgressStyle::with_template(template).expect("a constant template");
            bar.set_style(style.progress_chars("=> "));
            bar
        });
        let now = Instant::now();
        Progress { verb, total, before: 0, done: 0, started: now, shown: now, bar }
    }

    /// Work of `total` bytes goes on, of which `before` are done.
    pub fn resumed(verb: &'static str, before: u64, total: u64) -> Progress {
        let mut progress = Progress::new(verb, Some(total));
        (progress.before, progress.done) = (before, before);
        progress
    }

    /// `bytes` more are done.
    pub fn advance(&mut self, bytes: u64) {
        self.reach(self.done + bytes);
    }

    /// `done` bytes are done in all.
    pub fn reach(&mut self, done: u64) {
        self.done = done;
        let interval = if self.bar.is_some() { BAR_INTERVAL } else { LINE_INTERVAL };
        let now = Instant::now();
        if now.duration_since(self.shown) < interval {
            return;
        }
        self.shown = now;
        let took = now.duration_since(self.started);
        let line = describe(self.verb, self.before, self.done, self.total, took);
        match &self.bar {
            Some(bar) => {
                bar.set_message(line);
                bar.set_position(self.done);
            }
            None => eprintln!("{line}"),
        }
    }

    /// The work is done: what to say about it.
    pub fn summary(&self, past: &str, took: Duration) -> String {
        format!("{past} {} in {} ({})", Size(self.done), span(took), rate(self.done, took))
    }

    /// How long it has been going on.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Shows on a terminal that something goes on of which nobody knows how far it is, until it is
/// dropped.
pub struct Waiting {
    spinner: Option<ProgressBar>,
}

impl Waiting {
    /// It begins.
    pub fn new(what: &'static str) -> Waiting {
        let spinner = io::stderr().is_terminal().then(|| {
            let spinner = ProgressBar::new_spinner();
            let template = "{spinner} {msg}: {elapsed}";
            spinner.set_style(ProgressStyle::with_template(template).expect("a constant template"));
            spinner.set_message(what);
            spinner.enable_steady_tick(BAR_INTERVAL);
            spinner
        });
        Waiting { spinner }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

/// A span of time, with a tenth of a second where that says something.
fn span(took: Duration) -> String {
    match took.as_secs() {
        0..10 => format!("{:.1} s", took.as_secs_f64()),
        seconds => print::span(seconds),
    }
}

fn rate(bytes: u64, took: Duration) -> String {
    let seconds = took.as_secs_f64().max(0.001);
    format!("{}/s", Size((bytes as f64 / seconds) as u64))
}

/// One line: how far, how fast, how long it will still take at this pace.
fn describe(verb: &str, before: u64, done: u64, total: Option<u64>, took: Duration) -> String {
    let since = done.saturating_sub(before);
    let Some(total) = total else {
        return format!("{verb}: {}, {}", Size(done), rate(since, took));
    };
    let percent = if total == 0 { 100.0 } else { done as f64 * 100.0 / total as f64 };
    let left = if since == 0 {
        "time left unknown".to_string()
    } else {
        let seconds = took.as_secs_f64() * total.saturating_sub(done) as f64 / since as f64;
        format!("{} left", print::span(seconds.ceil() as u64))
    };
    let (done_size, total_size) = (Size(done), Size(total));
    format!("{verb}: {done_size} of {total_size} ({percent:.0} %), {}, {left}", rate(since, took))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_rate_and_time_left() {
        let check_resumed = |before, done, total, seconds, text: &str| {
            let took = Duration::from_secs(seconds);
            assert_eq!(describe("importing", before, done, total, took), text);
        };
        let check = |done, total, seconds, text: &str| check_resumed(0, done, total, seconds, text);
        check(
            1 << 30,
            Some(4 << 30),
            10,
            "importing: 1.0 GiB of 4.0 GiB (25 %), 102.4 MiB/s, 30 s left",
        );
        check(0, Some(1024), 1, "importing: 0 B of 1.0 KiB (0 %), 0 B/s, time left unknown");
        check(2048, None, 2, "importing: 2.0 KiB, 1.0 KiB/s");
        check(0, Some(0), 0, "importing: 0 B of 0 B (100 %), 0 B/s, time left unknown");
        check(10, Some(5), 1, "importing: 10 B of 5 B (200 %), 10 B/s, 0 s left");
        check_resumed(
            3 << 10,
            4 << 10,
            Some(6 << 10),
            1,
            "importing: 4.0 KiB of 6.0 KiB (67 %), 1.0 KiB/s, 2 s left",
        );
        check_resumed(
            3 << 10,
            3 << 10,
            Some(6 << 10),
            1,
            "importing: 3.0 KiB of 6.0 KiB (50 %), 0 B/s, time left unknown",
        );
    }
}
