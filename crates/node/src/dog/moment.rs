//! Points in time on the command line: `2026-12-31`, `2026-12-31T12:00Z`, `+30d`.

use crate::span::Span;
use proto::calendar;
use std::{
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

/// A point in time to come, in universal time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// In seconds since 1970.
    At(u64),
    /// So long from now.
    After(Span),
}

/// Why a text is no point in time: one sentence with the remedy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is no date; write it like 2026-12-31, 2026-12-31T12:00Z or +30d")]
pub struct MomentError(String);

impl FromStr for Moment {
    type Err = MomentError;

    fn from_str(text: &str) -> Result<Moment, MomentError> {
        let wrong = || MomentError(text.to_string());
        if let Some(span) = text.strip_prefix('+') {
            return span.parse().map(Moment::After).map_err(|_| wrong());
        }
        let (day, clock) = match text.split_once('T') {
            Some((day, clock)) => (day, Some(clock.strip_suffix('Z').ok_or_else(wrong)?)),
            None => (text, None),
        };
        let [year, month, day] = numbers(day, '-', [4, 2, 2]).ok_or_else(wrong)?;
        let midnight = calendar::unix_s_of(year, month, day).ok_or_else(wrong)?;
        let seconds = match clock {
            None => 0,
            Some(clock) => {
                let parsed = match clock.len() {
                    5 => numbers(clock, ':', [2, 2]).map(|[hour, minute]| [hour, minute, 0]),
                    _ => numbers(clock, ':', [2, 2, 2]),
                };
                let [hour, minute, second] = parsed.ok_or_else(wrong)?;
                if hour > 23 || minute > 59 || second > 59 {
                    return Err(wrong());
                }
                hour * 3600 + minute * 60 + second
            }
        };
        Ok(Moment::At(midnight + seconds))
    }
}

impl Moment {
    /// In seconds since 1970, by this machine's clock.
    pub fn unix_s(self) -> u64 {
        match self {
            Moment::At(unix_s) => unix_s,
            Moment::After(span) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                now.as_secs().saturating_add(span.seconds())
            }
        }
    }
}

/// Numbers of so many digits each.
fn numbers<const N: usize>(text: &str, between: char, digits: [usize; N]) -> Option<[u64; N]> {
    let parts: Vec<&str> = text.split(between).collect();
    let mut numbers = [0; N];
    if parts.len() != N {
        return None;
    }
    for ((part, digits), number) in parts.iter().zip(digits).zip(&mut numbers) {
        if part.len() != digits || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_spans_are_moments_and_nothing_else_is() {
        let check = |text: &str, shown: &str| {
            let moment: Moment = text.parse().expect(text);
            assert_eq!(calendar::date(moment.unix_s()), shown, "{text}");
        };
        check("2026-12-31", "2026-12-31 00:00:00 UTC");
        check("2026-12-31T12:00Z", "2026-12-31 12:00:00 UTC");
        check("2024-02-29T23:59:59Z", "2024-02-29 23:59:59 UTC");
        assert_eq!("+30d".parse(), Ok(Moment::After(Span::of_seconds(30 * 24 * 3600))));
        for text in [
            "",
            "+",
            "+30y",
            "30d",
            "2026-2-3",
            "2026-02-29",
            "2026-12-31T12:00",
            "2026-12-31T24:00Z",
            "2026-12-31T12:60Z",
            "2026-12-31T+2:00Z",
            "2026-12-31T12Z",
            "2026-12-31 12:00Z",
            "tomorrow",
        ] {
            assert!(text.parse::<Moment>().is_err(), "{text}");
        }
    }
}
