//! Where a source is: an NBD URI, or the path of a file or block device.

use std::path::PathBuf;

/// Where a server listens that does not say.
const PORT_DEFAULT: u16 = 10809;

/// A source's address, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// An NBD server.
    Tcp {
        /// A name or number, without brackets.
        host: String,
        /// Its port.
        port: u16,
        /// What it calls the export; may be empty.
        export: String,
    },
    /// An NBD server on this machine.
    Unix {
        /// Its socket.
        socket: PathBuf,
        /// What it calls the export; may be empty.
        export: String,
    },
    /// A regular file or a block device.
    File(PathBuf),
}

impl Address {
    /// Takes an address apart. The error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Address, String> {
        if text.starts_with('/') {
            return Ok(Address::File(PathBuf::from(text)));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err("it is neither an NBD URI (nbd://HOST/EXPORT, \
                        nbd+unix:///EXPORT?socket=PATH) nor an absolute path"
                .into());
        };
        match scheme {
            "nbd" | "nbd+tcp" => tcp(rest),
            "nbd+unix" => unix(rest),
            "nbds" | "nbds+tcp" | "nbds+unix" => {
                Err("NBD over TLS is not built yet; use nbd:// through a tunnel, or nbd+unix://"
                    .into())
            }
            "file" => {
                let path = rest.strip_prefix("localhost").unwrap_or(rest);
                match path.starts_with('/') {
                    true => Ok(Address::File(PathBuf::from(decode(path)?))),
                    false => Err("a file URI names an absolute path: file:///PATH".into()),
                }
            }
            other => Err(format!(
                "{other}:// is not a kind of source; use nbd://, nbd+unix:// or a path"
            )),
        }
    }
}

fn tcp(rest: &str) -> Result<Address, String> {
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    if export.contains(['?', '#']) || authority.contains(['?', '#', '@']) {
        return Err("only nbd://HOST:PORT/EXPORT is understood, without ? or @; write %3F or %40 \
                    in the export's name"
            .into());
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("a [ of it is not closed")?;
            match port.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if port.is_empty() => (host, None),
                None => return Err("behind the ] only a port may follow".into()),
            }
        }
        None => match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("an IPv6 address stands in brackets: nbd://[::1]/EXPORT".into());
            }
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return Err("it names no host: nbd://HOST/EXPORT".into());
    }
    let port = match port {
        None | Some("") => PORT_DEFAULT,
        Some(port) => match port.parse() {
            Ok(port) if port > 0 => port,
            _ => return Err(format!("{port:?} is no port")),
        },
    };
    Ok(Address::Tcp { host: decode(host)?, port, export: decode(export)? })
}

fn unix(rest: &str) -> Result<Address, String> {
    let usage = "a local NBD server is named as nbd+unix:///EXPORT?socket=PATH";
    let (path, query) = rest.split_once('?').ok_or(usage)?;
    let export = path.strip_prefix('/').ok_or(usage)?;
    let socket = query.strip_prefix("socket=").ok_or(usage)?;
    if query.contains('&') {
        return Err(usage.into());
    }
    let socket = decode(socket)?;
    if !socket.starts_with('/') {
        return Err("the path of its socket is not absolute".into());
    }
    Ok(Address::Unix { socket: PathBuf::from(socket), export: decode(export)? })
}

/// With %XX taken for what it stands for.
fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = tail;
            continue;
        }
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let byte = byte.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes
            .push(byte.filter(|byte| *byte != 0).ok_or("a % of it is not followed by two digits")?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16, export: &str) -> Option<Address> {
        Some(Address::Tcp { host: host.into(), port, export: export.into() })
    }

    fn unix(socket: &str, export: &str) -> Option<Address> {
        Some(Address::Unix { socket: socket.into(), export: export.into() })
    }

    #[test]
    fn addresses_are_understood_or_refused_in_words() {
        let table = [
            ("nbd://h", tcp("h", 10809, "")),
            ("nbd://h/", tcp("h", 10809, "")),
            ("nbd://h:1/a/b", tcp("h", 1, "a/b")),
            ("nbd://[::1]:99/a%20%3f", tcp("::1", 99, "a ?")),
            ("nbd://[::1]/a", tcp("::1", 10809, "a")),
            ("nbd+unix:///vm@monday?socket=/run/s", unix("/run/s", "vm@monday")),
            ("nbd+unix:///?socket=/run/a%26b", unix("/run/a&b", "")),
            ("/a b/c", Some(Address::File("/a b/c".into()))),
            ("file:///a%20b", Some(Address::File("/a b".into()))),
            ("file://localhost/a", Some(Address::File("/a".into()))),
            ("nbds://h/e", None),
            ("nbd:///e", None),
            ("nbd://h:0/e", None),
            ("nbd://h:70000/e", None),
            ("nbd://::1/e", None),
            ("nbd://[::1", None),
            ("nbd://[::1]x/e", None),
            ("nbd://u@h/e", None),
            ("nbd://h/e?x=y", None),
            ("nbd://h/%", None),
            ("nbd://h/%g0", None),
            ("nbd://h/%+1", None),
            ("nbd://h/%00", None),
            ("nbd://h/%ff", None),
            ("nbd+unix://h/e?socket=/s", None),
            ("nbd+unix:///e", None),
            ("nbd+unix:///e?socket=s", None),
            ("nbd+unix:///e?socket=/s&tls=1", None),
            ("file://h/a", None),
            ("http://h/e", None),
            ("relative/path", None),
            ("", None),
        ];
        for (text, wanted) in table {
            assert_eq!(Address::parse(text).ok(), wanted, "{text}");
        }
        let error = Address::parse("nbds://h/e").expect_err("TLS");
        assert!(error.contains("TLS is not built yet"), "{error}");
    }
}
