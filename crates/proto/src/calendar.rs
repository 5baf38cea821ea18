//! Dates, for people: seconds since 1970 in universal time, by the Gregorian calendar.

/// A point in time in words, in universal time: `2026-11-21 05:33:19 UTC`.
pub fn date(unix_s: u64) -> String {
    let (year, month, day) = day_of(unix_s / 86_400);
    let second = unix_s % 86_400;
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02} UTC", second % 60)
}

/// The same short enough for a name, to the second: `20261121T053319Z`.
pub fn stamp(unix_s: u64) -> String {
    let (year, month, day) = day_of(unix_s / 86_400);
    let second = unix_s % 86_400;
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{:02}Z", second % 60)
}

/// Year, month and day of a day counted from 1970-01-01: years begin in March here, so that a leap
/// day is the last of its year.
fn day_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The first second of a day, in seconds since 1970; nothing if there is no such day.
pub fn unix_s_of(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let shifted_year = year - u64::from(month <= 2);
    let (era, year_of_era) = (shifted_year / 400, shifted_year % 400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    (day_of(days) == (year, month, day)).then_some(days * 86_400)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        let check = |unix_s, text: &str| assert_eq!(date(unix_s), text);
        check(0, "1970-01-01 00:00:00 UTC");
        check(951_782_399, "2000-02-28 23:59:59 UTC");
        check(951_782_400, "2000-02-29 00:00:00 UTC");
        check(1_700_000_000, "2023-11-14 22:13:20 UTC");
        check(4_107_542_400, "2100-03-01 00:00:00 UTC");
    }

    #[test]
    fn every_day_is_found_again_and_no_other() {
        for day in (0..2_900_000u64).step_by(97).chain(0..800) {
            let (year, month, day_of_month) = day_of(day);
            let found = unix_s_of(year, month, day_of_month);
            assert_eq!(found, (year <= 9999).then_some(day * 86_400), "{year}-{month}");
        }
        for (year, month, day) in [(2026, 2, 29), (2026, 13, 1), (2026, 4, 31), (1969, 1, 1)] {
            assert_eq!(unix_s_of(year, month, day), None);
        }
        assert_eq!(unix_s_of(2024, 2, 29).map(stamp).as_deref(), Some("20240229T000000Z"));
    }
}
