//! Spans of time as people write and read them: `500ms`, `90s`, `15m`, `24h`, `7d`.

use std::{fmt, str::FromStr, time::Duration};

/// A whole number of milliseconds. Parsed from a number with ms, s, m (or min), h, d or w; 0 needs
/// no unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Span {
    milliseconds: u64,
}

/// Why a text is no span of time: one sentence with the remedy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is no span of time; write a number with s, m, h, d or w, as in 90s, 15m, 1h or 7d")]
pub struct SpanError(String);

/// The units with their lengths in milliseconds, the longest first. Those without a mark are only
/// read: seven days say more than a week.
const UNITS: [(&str, u64, bool); 7] = [
    ("w", 7 * 24 * 3_600_000, false),
    ("d", 24 * 3_600_000, true),
    ("h", 3_600_000, true),
    ("m", 60_000, true),
    ("min", 60_000, false),
    ("s", 1_000, true),
    ("ms", 1, true),
];

impl Span {
    /// So many milliseconds.
    pub const fn of_milliseconds(milliseconds: u64) -> Span {
        Span { milliseconds }
    }

    /// So many seconds, as far as can be counted.
    pub const fn of_seconds(seconds: u64) -> Span {
        Span { milliseconds: seconds.saturating_mul(1_000) }
    }

    /// In milliseconds.
    pub fn milliseconds(self) -> u64 {
        self.milliseconds
    }

    /// In seconds. A part of one counts as one, so that only nothing is nothing.
    pub fn seconds(self) -> u64 {
        self.milliseconds.div_ceil(1_000)
    }

    /// As programs count it.
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.milliseconds)
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Span, SpanError> {
        let trimmed = text.trim();
        if trimmed == "0" {
            return Ok(Span::default());
        }
        let split = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let known = UNITS.iter().find(|(name, ..)| *name == unit);
        let length =
            known.and_then(|(_, length, _)| number.parse::<u64>().ok()?.checked_mul(*length));
        match length {
            Some(milliseconds) => Ok(Span { milliseconds }),
            None => Err(SpanError(text.to_string())),
        }
    }
}

impl fmt::Display for Span {
    /// In the largest unit of which it is a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.milliseconds == 0 {
            return f.pad("0s");
        }
        let fits = |(_, length, written): &&(&str, u64, bool)| {
            *written && self.milliseconds.is_multiple_of(*length)
        };
        let (unit, length, _) = UNITS.iter().find(fits).expect("a millisecond divides everything");
        f.pad(&format!("{}{unit}", self.milliseconds / length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time_are_read_and_written() {
        for (text, milliseconds, written) in [
            ("0", 0, "0s"),
            ("0d", 0, "0s"),
            ("500ms", 500, "500ms"),
            ("1500ms", 1_500, "1500ms"),
            ("2000ms", 2_000, "2s"),
            ("60s", 60_000, "1m"),
            ("90s", 90_000, "90s"),
            ("15m", 900_000, "15m"),
            ("2min", 120_000, "2m"),
            ("1h", 3_600_000, "1h"),
            ("36h", 129_600_000, "36h"),
            ("7d", 604_800_000, "7d"),
            ("1w", 604_800_000, "7d"),
            (" 366d ", 31_622_400_000, "366d"),
        ] {
            let read: Span = text.parse().expect("it is one");
            assert_eq!((read.milliseconds, read.to_string().as_str()), (milliseconds, written));
        }
    }

    #[test]
    fn what_is_no_span_of_time_is_refused() {
        for text in [
            "",
            "60",
            "h",
            "1 hour",
            "-1h",
            "1.5h",
            "1M",
            "7D",
            "3 years",
            "1h30m",
            "+1h",
            "99999999999999w",
        ] {
            let error = text.parse::<Span>().expect_err(text);
            assert!(error.to_string().contains("as in 90s, 15m, 1h or 7d"), "{error}");
        }
    }

    /// `--keep 500ms` must not mean "not at all".
    #[test]
    fn a_part_of_a_second_is_one_where_seconds_are_counted() {
        for (milliseconds, seconds) in [(0, 0), (1, 1), (999, 1), (1_000, 1), (1_001, 2)] {
            assert_eq!(Span::of_milliseconds(milliseconds).seconds(), seconds);
        }
        assert_eq!(Span::of_seconds(u64::MAX).milliseconds(), u64::MAX);
    }
}
