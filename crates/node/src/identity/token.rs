//! The text of a join token: one line that holds all a new machine needs to find the cluster, to
//! know it, and to be let in.

use super::text::{base64, from_base64};
use cluster::{Digest, TokenId};
use proto::{ClusterId, crc64};
use std::{fmt, str::FromStr};

/// What a token begins with, so that one is recognised as such, also by who looks for secrets.
const PREFIX: &str = "sheepdog-join-";
/// The version of its content, the first byte.
const VERSION: u8 = 1;
/// Bytes of a secret.
pub(crate) const SECRET_BYTES: usize = 16;
/// Addresses in a token.
pub const SEEDS_MAX: usize = 8;
/// Longest address, in bytes.
pub(crate) const SEED_BYTES_MAX: usize = 255;
/// Longest token that is looked at, in bytes.
pub(crate) const TEXT_BYTES_MAX: usize = 4096;

/// Where a node may be found: `HOST:PORT`, an IPv6 address in brackets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Seed(String);

impl Seed {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Seed, String> {
        let wrong = || {
            "is no address with port; write it like 192.0.2.7:7117, [2001:db8::7]:7117 or \
             host.example:7117"
                .to_string()
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let is_port =
            port.parse::<u16>().is_ok_and(|number| number.to_string() == port) && port != "0";
        let is_host = match host.strip_prefix('[') {
            Some(rest) => rest
                .strip_suffix(']')
                .is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok()),
            None => {
                let is_fine = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
                !host.is_empty() && host.bytes().all(is_fine)
            }
        };
        if text.len() > SEED_BYTES_MAX || !is_port || !is_host {
            return Err(wrong());
        }
        Ok(Seed(text.to_string()))
    }
}

/// What a token says.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenText {
    /// The cluster that it is for.
    pub cluster: ClusterId,
    /// Its name there.
    pub id: TokenId,
    /// What only who has the token knows.
    pub secret: [u8; SECRET_BYTES],
    /// That of the certificate of the cluster's authority.
    pub authority: Digest,
    /// When it expires, in seconds since 1970; for people, the cluster goes by its own.
    pub expires_unix_s: u64,
    /// How many nodes it lets in; for people, too.
    pub uses: u32,
    /// Where nodes of the cluster may be found, at most [`SEEDS_MAX`].
    pub seeds: Vec<Seed>,
}

/// Without the secret.
impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "token {} of cluster {} at {:?}", self.id, self.cluster, self.seeds)
    }
}

impl TokenText {
    /// The digest of the secret, which is all that the cluster keeps of it. The cluster's and the
    /// token's names go into it, so that equal secrets would not be seen to be.
    pub fn secret_digest(cluster: ClusterId, id: TokenId, secret: &[u8]) -> Digest {
        let mut bytes = b"sheepdog join secret 1".to_vec();
        bytes.extend_from_slice(&cluster.0.to_le_bytes());
        bytes.extend_from_slice(&id.0.to_le_bytes());
        bytes.extend_from_slice(secret);
        super::digest(&bytes)
    }

    /// As the line that people copy.
    ///
    /// # Panics
    /// If there are too many seeds.
    pub fn print(&self) -> String {
        assert!(self.seeds.len() <= SEEDS_MAX, "more seeds than a token holds");
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.cluster.0.to_le_bytes());
        bytes.extend_from_slice(&self.id.0.to_le_bytes());
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&self.authority.0);
        bytes.extend_from_slice(&self.expires_unix_s.to_le_bytes());
        bytes.extend_from_slice(&self.uses.to_le_bytes());
        bytes.push(self.seeds.len() as u8);
        for seed in &self.seeds {
            bytes.push(seed.0.len() as u8);
            bytes.extend_from_slice(seed.0.as_bytes());
        }
        let checksum = crc64(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        format!("{PREFIX}{}", base64(&bytes))
    }

    /// From that line; white space around it does not matter. The error is to be put behind what
    /// the token was found in.
    pub fn parse(text: &str) -> Result<TokenText, String> {
        let text = text.trim();
        if text.len() > TEXT_BYTES_MAX {
            return Err("is too long for a join token; copy that line alone".to_string());
        }
        let Some(body) = text.strip_prefix(PREFIX) else {
            return Err(format!(
                "is no join token; copy the whole line that `dog cluster token` prints, from \
                 `{PREFIX}` on"
            ));
        };
        let altered = || {
            "is damaged; copy the whole line that `dog cluster token` prints once more".to_string()
        };
        let bytes = from_base64(body).ok_or_else(altered)?;
        let (content, checksum) = bytes.split_last_chunk::<8>().ok_or_else(altered)?;
        if crc64(content).to_le_bytes() != *checksum {
            return Err(altered());
        }
        match content.first() {
            Some(&VERSION) => {}
            Some(version) => {
                return Err(format!(
                    "is of version {version}, which this sheep does not know; install the version \
                     that the cluster runs"
                ));
            }
            None => return Err(altered()),
        }
        TokenText::parse_fields(&content[1..]).ok_or_else(altered)
    }

    fn parse_fields(mut rest: &[u8]) -> Option<TokenText> {
        fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
            let (taken, left) = rest.split_first_chunk::<N>()?;
            *rest = left;
            Some(*taken)
        }
        let cluster = ClusterId(u128::from_le_bytes(take(&mut rest)?));
        let id = TokenId(u64::from_le_bytes(take(&mut rest)?));
        let secret = take(&mut rest)?;
        let authority = Digest(take(&mut rest)?);
        let expires_unix_s = u64::from_le_bytes(take(&mut rest)?);
        let uses = u32::from_le_bytes(take(&mut rest)?);
        let [count] = take(&mut rest)?;
        if usize::from(count) > SEEDS_MAX || cluster.0 == 0 || id.0 == 0 {
            return None;
        }
        let mut seeds = Vec::new();
        for _ in 0..count {
            let [length] = take(&mut rest)?;
            let (text, left) = rest.split_at_checked(usize::from(length))?;
            rest = left;
            seeds.push(std::str::from_utf8(text).ok()?.parse().ok()?);
        }
        let token = TokenText { cluster, id, secret, authority, expires_unix_s, uses, seeds };
        rest.is_empty().then_some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> TokenText {
        TokenText {
            cluster: ClusterId(7),
            id: TokenId(8),
            secret: [9; SECRET_BYTES],
            authority: Digest([10; 32]),
            expires_unix_s: 1_800_000_000,
            uses: 3,
            seeds: vec![
                "192.0.2.7:7117".parse().expect("right"),
                "[2001:db8::7]:7117".parse().expect("right"),
            ],
        }
    }

    #[test]
    fn a_token_is_one_line_that_comes_back() {
        let text = token().print();
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)), "{text}");
        assert!(text.len() < 250, "{} letters", text.len());
        assert_eq!(TokenText::parse(&text), Ok(token()));
        assert_eq!(TokenText::parse(&format!(" {text}\n")), Ok(token()));
        assert!(!format!("{:?}", token()).contains("9, 9"));
        let full = TokenText { seeds: vec![token().seeds[0].clone(); SEEDS_MAX], ..token() };
        assert_eq!(TokenText::parse(&full.print()), Ok(full));
    }

    #[test]
    fn every_altered_letter_and_every_cut_is_noticed() {
        let text = token().print();
        for place in 0..text.len() {
            for letter in ["A", "b", "7", "-", " "] {
                let mut altered = text.clone();
                altered.replace_range(place..=place, letter);
                if altered == text {
                    continue;
                }
                let sentence = TokenText::parse(&altered).expect_err(&altered);
                assert!(sentence.contains("copy the whole line"), "{sentence}");
            }
            assert!(TokenText::parse(&text[..place]).is_err(), "cut at {place}");
        }
        assert!(TokenText::parse(&format!("{text}{text}")).is_err());
        assert!(TokenText::parse(&"x".repeat(5000)).expect_err("long").contains("too long"));
    }

    #[test]
    fn content_that_lies_is_refused_behind_a_checksum_that_fits() {
        let sealed = |change: &dyn Fn(&mut Vec<u8>)| {
            let text = token().print();
            let mut bytes = from_base64(&text[PREFIX.len()..]).expect("right");
            bytes.truncate(bytes.len() - 8);
            change(&mut bytes);
            let checksum = crc64(&bytes);
            bytes.extend_from_slice(&checksum.to_le_bytes());
            TokenText::parse(&format!("{PREFIX}{}", base64(&bytes)))
        };
        assert_eq!(sealed(&|_| ()), Ok(token()));
        assert!(sealed(&|bytes| bytes[0] = 2).expect_err("later").contains("version 2"));
        for place in 1 + 16 + 8 + 16 + 32 + 8 + 4..token().print().len() / 2 {
            // Counts and lengths that promise more, or less, than there is.
            let _ = sealed(&|bytes| {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte ^= 0x81;
                }
            });
            let _ = sealed(&|bytes| bytes.truncate(place));
        }
        assert!(sealed(&|bytes| bytes.push(0)).is_err());
        assert!(sealed(&|bytes| bytes[1..17].fill(0)).is_err());
        assert!(sealed(&|bytes| bytes[85] = 9).is_err());
        assert!(sealed(&Vec::clear).is_err());
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for right in ["127.0.0.1:1", "[::1]:7117", "host.example:65535", "a-b_c:7"] {
            assert_eq!(right.parse::<Seed>().expect(right).as_str(), right);
        }
        let long = format!("{}:1", "h".repeat(SEED_BYTES_MAX));
        for wrong in [
            "",
            "host",
            ":1",
            "host:",
            "host:0",
            "host:65536",
            "host:07",
            "::1:7",
            "[::1]",
            "a b:1",
            "[x]:1",
            "h/x:1",
            "h\n:1",
            &long,
        ] {
            assert!(wrong.parse::<Seed>().is_err(), "{wrong}");
        }
    }
}
