//! Spans of time as people write and read them: `15m`, `1h`, `7d`.

use std::{fmt, str::FromStr};

/// A whole number of seconds, at least one. Parsed from a number with s, m, h, d or w.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Interval(pub u32);

/// Why a text is no span of time: one sentence with the remedy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is no span of time; write a number with s, m, h, d or w, as in 90s, 15m, 1h or 7d")]
pub struct IntervalError(String);

/// The units with their lengths in seconds, the longest first.
const UNITS: [(&str, u32); 5] =
    [("w", 7 * 24 * 3600), ("d", 24 * 3600), ("h", 3600), ("m", 60), ("s", 1)];

impl FromStr for Interval {
    type Err = IntervalError;

    fn from_str(text: &str) -> Result<Interval, IntervalError> {
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let length = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, length)| *length);
        let seconds = length.and_then(|length| number.parse::<u32>().ok()?.checked_mul(length));
        match seconds {
            Some(seconds) if seconds > 0 => Ok(Interval(seconds)),
            _ => Err(IntervalError(text.to_string())),
        }
    }
}

impl fmt::Display for Interval {
    /// In the largest unit of which it is a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Weeks are only read: seven days say more.
        let mut fitting = UNITS[1..].iter().filter(|(_, length)| self.0.is_multiple_of(*length));
        let (unit, length) = fitting.next().expect("a second divides everything");
        write!(f, "{}{unit}", self.0 / length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time_are_read_and_written() {
        for (text, seconds, written) in [
            ("60s", 60, "1m"),
            ("90s", 90, "90s"),
            ("15m", 900, "15m"),
            ("1h", 3600, "1h"),
            ("36h", 129_600, "36h"),
            ("7d", 604_800, "7d"),
            ("1w", 604_800, "7d"),
            ("366d", 31_622_400, "366d"),
        ] {
            let read: Interval = text.parse().expect("it is one");
            assert_eq!((read.0, read.to_string().as_str()), (seconds, written));
        }
    }

    #[test]
    fn what_is_no_span_of_time_is_refused() {
        for text in ["", "60", "h", "1 hour", "-1h", "0s", "1.5h", "1M", "99999999w", "1h30m"] {
            let error = text.parse::<Interval>().expect_err(text);
            assert!(error.to_string().contains("as in 90s, 15m, 1h or 7d"), "{error}");
        }
    }
}
