//! Numbers as people read them. One place, so that the daemon, the engine and `dog` say them alike.

/// The letters of the units of size, each 1024 times the one before; the first is 1024 bytes.
pub const SIZE_UNITS: [char; 5] = ['K', 'M', 'G', 'T', 'P'];

/// A number of bytes with the unit that suits it: `20.0 GiB`, `512 B`.
pub fn size_in_words(bytes: u64) -> String {
    let mut unit = None;
    let mut value = bytes as f64;
    for letter in SIZE_UNITS {
        // 1023.95 and above would be printed as 1024.0.
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = Some(letter);
    }
    match unit {
        None => format!("{bytes} B"),
        Some(letter) => format!("{value:.1} {letter}iB"),
    }
}

/// So many of something: `1 block`, `2 blocks`.
pub fn counted(count: u64, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

/// A point in time in words, in universal time: `2026-11-21 05:33:19 UTC`.
pub fn date_in_words(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02} UTC", second % 60)
}

/// Year, month and day of a day counted from 1970-01-01, by the Gregorian calendar: years begin
/// in March here, so that a leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_get_the_unit_that_suits_them() {
        let check = |bytes: u64, text: &str| assert_eq!(size_in_words(bytes), text);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1024, "1.0 KiB");
        check(20 << 30, "20.0 GiB");
        check((1 << 30) - 1, "1.0 GiB");
        check(u64::MAX, "16384.0 PiB");
    }

    #[test]
    fn one_is_not_several() {
        let check = |count, text: &str| assert_eq!(counted(count, "block", "blocks"), text);
        check(0, "0 blocks");
        check(1, "1 block");
        check(2, "2 blocks");
    }

    #[test]
    fn dates_follow_the_calendar() {
        let check = |unix_s, text: &str| assert_eq!(date_in_words(unix_s), text);
        check(0, "1970-01-01 00:00:00 UTC");
        check(951_782_399, "2000-02-28 23:59:59 UTC");
        check(951_782_400, "2000-02-29 00:00:00 UTC");
        check(1_700_000_000, "2023-11-14 22:13:20 UTC");
        check(4_107_542_400, "2100-03-01 00:00:00 UTC");
    }
}
