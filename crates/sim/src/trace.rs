//! What happened in a run, line by line, and its hash: equal seeds must give equal hashes.

use crate::random::mix;
use proto::{Time, crc64};
use std::fmt::Write;

/// The trace of a run. Lines are always hashed, and printed where wanted.
#[derive(Debug)]
pub struct Trace {
    print: bool,
    hash: u64,
    lines: u64,
    buffer: String,
}

impl Trace {
    /// An empty trace, which prints its lines to standard output or not.
    pub fn new(print: bool) -> Trace {
        Trace { print, hash: 0, lines: 0, buffer: String::new() }
    }

    /// Adds a line.
    pub fn line(&mut self, now: Time, text: std::fmt::Arguments<'_>) {
        self.buffer.clear();
        let _ = write!(self.buffer, "{:>14.6} {text}", now.0 as f64 / 1e9);
        self.hash = mix(self.hash.rotate_left(9) ^ crc64(self.buffer.as_bytes()));
        self.lines += 1;
        if self.print {
            println!("{}", self.buffer);
        }
    }

    /// Of all lines so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many lines there were.
    pub fn lines(&self) -> u64 {
        self.lines
    }
}
