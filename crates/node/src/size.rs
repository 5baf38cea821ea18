//! Sizes as people write and read them: `20G`, `1.5TiB`, `4096`.

use proto::SIZE_UNITS;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

/// A number of bytes. Parsed from plain bytes or a number with K, M, G, T or P (or KiB, MiB, ...),
/// all powers of 1024, as `qemu-img` and `zfs` take them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Size(pub u64);

/// Why a text is no size: one sentence with the remedy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct SizeError(String);

/// Digits after the point that are looked at: more than a byte of a pebibyte can need.
const FRACTION_DIGITS_MAX: usize = 15;

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Size, SizeError> {
        let text = text.trim();
        if text.starts_with('-') {
            return Err(no_size(text));
        }
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let factor = parse_unit(text, unit.trim())?;
        parse_number(number, factor).map(Size).ok_or_else(|| no_size(text))
    }
}

fn no_size(text: &str) -> SizeError {
    SizeError(format!(
        "`{text}` is no size in whole bytes below 16 EiB; write it like 20G, 512M or 4096"
    ))
}

/// How many bytes the unit is.
fn parse_unit(text: &str, unit: &str) -> Result<u64, SizeError> {
    let upper = unit.to_ascii_uppercase();
    if upper.is_empty() || upper == "B" {
        return Ok(1);
    }
    let letter = upper.chars().next().unwrap_or_default();
    let power = SIZE_UNITS.iter().position(|&unit| unit == letter);
    match (power, &upper[letter.len_utf8()..]) {
        (Some(power), "" | "IB") => Ok(1u64 << (10 * (power + 1))),
        (Some(_), "B") => Err(SizeError(format!(
            "the unit of `{text}` may mean powers of 1000 or of 1024; write {letter}iB (or just \
             {letter}) for 1024, or plain bytes"
        ))),
        _ => Err(SizeError(format!(
            "`{unit}` in `{text}` is no unit of size; use K, M, G, T or P (powers of 1024)"
        ))),
    }
}

/// `number * factor` for a decimal number, if it is whole and fits.
fn parse_number(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > FRACTION_DIGITS_MAX {
        return None;
    }
    let bytes = u128::from(whole.parse::<u64>().ok()?) * u128::from(factor);
    let part = match fraction {
        "" if number.ends_with('.') => return None,
        "" => 0,
        digits => {
            let scale = 10u128.pow(digits.len() as u32);
            let scaled = u128::from(digits.parse::<u64>().ok()?) * u128::from(factor);
            if scaled % scale != 0 {
                return None;
            }
            scaled / scale
        }
    };
    u64::try_from(bytes + part).ok()
}

/// For people: three or four significant digits with a unit, like `20.0 GiB`, `512 B`.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&proto::size_in_words(self.0))
    }
}

/// In configuration files and JSON: the plain number of bytes.
impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// From a plain number of bytes or a text with a unit.
impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(Size(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_mean_what_people_expect() {
        let check = |text: &str, bytes: u64| {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        };
        check("0", 0);
        check("4096", 4096);
        check("4096B", 4096);
        check("1k", 1024);
        check("20G", 20 << 30);
        check("20GiB", 20 << 30);
        check("20 GiB", 20 << 30);
        check(" 3t ", 3 << 40);
        check("1.5T", 3 << 39);
        check("0.5K", 512);
        check("1P", 1 << 50);
        check("18446744073709551615", u64::MAX);
    }

    #[test]
    fn nonsense_is_refused_with_a_remedy() {
        let texts = [
            "",
            "G",
            "-1",
            "1.5",
            "0.0001K",
            "1..5G",
            "1.G",
            ".5G",
            "20GB",
            "20X",
            "16384P",
            "18446744073709551616",
            "1e9",
            "20Gi",
            "ten",
            "1.0000000000000000G",
            "9 9",
            "2\u{e9}",
        ];
        for text in texts {
            let error = text.parse::<Size>().expect_err(text);
            assert!(error.to_string().contains("write") || error.to_string().contains("use"));
        }
    }

    #[test]
    fn printed_sizes_have_a_unit_and_a_width() {
        assert_eq!(Size(20 << 30).to_string(), "20.0 GiB");
        assert_eq!(format!("{:>10}", Size(1024)), "   1.0 KiB");
    }

    #[test]
    fn configuration_takes_numbers_and_texts() {
        #[derive(Deserialize)]
        struct Two {
            a: Size,
            b: Size,
        }
        let two: Two = toml::from_str("a = 4096\nb = \"1M\"").expect("both forms");
        assert_eq!((two.a, two.b), (Size(4096), Size(1 << 20)));
        assert!(toml::from_str::<Two>("a = -1\nb = 1").is_err());
    }
}
