//! Spans of time as people write and read them: `24h`, `7d`, `90`.

use std::{fmt, str::FromStr};

/// A number of seconds. Parsed from plain seconds, or a number with s, m, h, d or w.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Span(pub u64);

/// Why a text is no span: one sentence with the remedy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct SpanError(String);

/// The units with their seconds.
const UNITS: [(&str, u64); 5] =
    [("s", 1), ("m", 60), ("h", 3600), ("d", 24 * 3600), ("w", 7 * 24 * 3600)];

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Span, SpanError> {
        let text = text.trim();
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let no_span = || SpanError(format!("`{text}` is no time; write it like 24h, 7d or 90s"));
        let number: u64 = number.parse().map_err(|_| no_span())?;
        let factor = match unit {
            "" => 1,
            _ => {
                let known = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(|| {
                    SpanError(format!(
                        "`{unit}` in `{text}` is no unit of time; use s, m, h, d or w"
                    ))
                })?;
                known.1
            }
        };
        number.checked_mul(factor).map(Span).ok_or_else(no_span)
    }
}

/// For people, in the largest unit that divides it; weeks are told in days.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, unit) = match self.0 {
            seconds if seconds > 0 && seconds.is_multiple_of(24 * 3600) => {
                (seconds / (24 * 3600), "day")
            }
            seconds if seconds > 0 && seconds.is_multiple_of(3600) => (seconds / 3600, "hour"),
            seconds if seconds > 0 && seconds.is_multiple_of(60) => (seconds / 60, "minute"),
            seconds => (seconds, "second"),
        };
        let plural = if count == 1 { "" } else { "s" };
        f.pad(&format!("{count} {unit}{plural}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written() {
        let check = |text: &str, seconds, shown: &str| {
            let span: Span = text.parse().expect(text);
            assert_eq!((span.0, span.to_string().as_str()), (seconds, shown), "{text}");
        };
        check("0", 0, "0 seconds");
        check("90", 90, "90 seconds");
        check("1s", 1, "1 second");
        check("15m", 900, "15 minutes");
        check("24h", 86_400, "1 day");
        check("36h", 129_600, "36 hours");
        check("2w", 1_209_600, "14 days");
        for (text, part) in [
            ("", "no time"),
            ("d", "no time"),
            ("-5h", "no time"),
            ("1.5h", "no unit"),
            ("3 years", "no unit"),
            ("7D", "no unit"),
            ("99999999999999999w", "no time"),
        ] {
            let error = text.parse::<Span>().expect_err(text).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
