//! Bytes as text that survives being copied: hexadecimal, and base64 for URLs (RFC 4648, section 5)
//! without padding.

use std::fmt::Write as _;

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Two digits for each byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// From [`hex`], small letters only.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |letter: u8| match letter {
        b'0'..=b'9' => Some(letter - b'0'),
        b'a'..=b'f' => Some(letter - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |&[high, low]: &[u8; 2]| Some(digit(high)? << 4 | digit(low)?);
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

/// Four digits for three bytes.
pub fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut three = [0; 4];
        three[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(three);
        for place in 0..=chunk.len() {
            let digit = bits >> (18 - 6 * place) & 63;
            text.push(DIGITS[digit as usize].into());
        }
    }
    text
}

/// From [`base64`]: exactly what it makes, nothing else that would mean the same.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.as_bytes().chunks(4) {
        let mut bits = 0u32;
        for (place, letter) in chunk.iter().enumerate() {
            let digit = DIGITS.iter().position(|known| known == letter)?;
            bits |= (digit as u32) << (18 - 6 * place);
        }
        let [_, three @ ..] = bits.to_be_bytes();
        let count = chunk.len() * 6 / 8;
        if count == 0 || three[count..].iter().any(|&byte| byte != 0) {
            return None;
        }
        bytes.extend_from_slice(&three[..count]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_have_one_text() {
        for (bytes, text) in
            [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "-_8");
        for length in 0..70u8 {
            let bytes: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(37)).collect();
            assert_eq!(from_base64(&base64(&bytes)).as_ref(), Some(&bytes));
            assert_eq!(from_hex(&hex(&bytes)), Some(bytes));
        }
        for wrong in ["Z", "Zh", "Zm9", "Zm9vY", "Zm9v=", "Zm 9", "Zm+v", "Zm9v\n"] {
            assert_eq!(from_base64(wrong), None, "{wrong}");
        }
        for wrong in ["0", "0G", "AB", "0x"] {
            assert_eq!(from_hex(wrong), None, "{wrong}");
        }
    }
}
