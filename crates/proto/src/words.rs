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
}
