//! The file `identity` of a data directory: who this node is to others, with its keys. Only the
//! owner may read it.
//!
//! A text of lines like the record beside it: a title with the version, one fact a line, and last
//! the CRC-64/NVMe of all bytes before that line. It is written whole, in place of the one before.

use super::{
    Credentials, Trust,
    authority::{Authority, NodeKey},
    text::{from_hex, hex},
    token::{SEEDS_MAX, Seed},
};
use crate::directory::replace;
use proto::{ClusterId, NodeId, crc64};
use rustls::pki_types::{CertificateDer, UnixTime};
use std::{fmt::Write as _, fs, io, os::unix::fs::PermissionsExt, path::Path, time::Duration};
use webpki::KeyUsage;

/// The first line, up to the version.
const TITLE: &str = "sheepdog identity, version ";
/// The version that is written.
const VERSION: u32 = 1;
/// Longest file that is read, in bytes.
const BYTES_MAX: u64 = 64 << 10;
/// Only the owner may read or write it.
const MODE: u32 = 0o600;

/// Who this node is to others.
#[derive(Debug)]
pub struct Identity {
    /// The cluster that it belongs to, or wants to join.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Its own key, which never leaves it.
    pub key: NodeKey,
    /// Nothing while it has not been let in.
    pub membership: Option<Membership>,
    /// Other nodes, as they were when this one was let in, at most [`NEIGHBOURS_MAX`]; the agreed
    /// map says what they are now.
    pub neighbours: Vec<Neighbour>,
}

/// Another node of the cluster, and where it may be found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// Which node.
    pub node: NodeId,
    /// At most as many addresses as a token has.
    pub addresses: Vec<Seed>,
}

/// Nodes that a newcomer is told of. It needs one that is there; of the others it learns from that.
pub const NEIGHBOURS_MAX: usize = 16;

/// What makes a node one of the cluster.
#[derive(Debug)]
pub struct Membership {
    /// What certifies nodes.
    pub authority: Authority,
    /// That of this node.
    pub certificate: CertificateDer<'static>,
}

impl Identity {
    /// That of the first node of a new cluster.
    pub fn found(cluster: ClusterId, node: NodeId) -> Identity {
        let (authority, key) = (Authority::found(cluster), NodeKey::draw());
        let certificate = authority.certify(node, &key.public());
        let membership = Some(Membership { authority, certificate });
        Identity { cluster, node, key, membership, neighbours: Vec::new() }
    }

    /// That of a machine that is to ask to be let in as this node. It is to be written before it
    /// asks: who asks again with the same key is the same machine.
    pub fn applying(cluster: ClusterId, node: NodeId) -> Identity {
        let (key, neighbours) = (NodeKey::draw(), Vec::new());
        Identity { cluster, node, key, membership: None, neighbours }
    }

    /// What it shows on connections, if it has been let in.
    pub fn credentials(&self) -> Option<Credentials> {
        let member = self.membership.as_ref()?;
        let authority = member.authority.certificate();
        let made = Credentials::new(self.cluster, authority, &member.certificate, &self.key);
        Some(made.expect("the certificate is that of the key"))
    }

    /// Puts in what another node handed over. The error is to be put behind what was handed over.
    pub fn admit(
        &mut self,
        membership: Membership,
        mut neighbours: Vec<Neighbour>,
    ) -> Result<(), &'static str> {
        vet(self.cluster, self.node, &self.key, &membership)?;
        neighbours.truncate(NEIGHBOURS_MAX);
        (self.membership, self.neighbours) = (Some(membership), neighbours);
        Ok(())
    }

    /// Reads the file, if there is one. The error is one sentence.
    pub fn read(path: &Path) -> Result<Option<Identity>, String> {
        let shown = path.display();
        let cannot = |error: io::Error| {
            format!("{shown} cannot be read: {error}; run sheep as the user who owns it")
        };
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(cannot(error)),
            Ok(metadata) if metadata.len() > BYTES_MAX => {
                return Err(format!("{shown} is too long to be an identity; restore it"));
            }
            Ok(metadata) if is_open_to_others(&metadata) => {
                return Err(format!(
                    "{shown} can be read by others; run `chmod 600 {shown}`, and know that who \
                     has read it can be a node of this cluster"
                ));
            }
            Ok(_) => {}
        }
        let bytes = fs::read(path).map_err(cannot)?;
        Identity::parse(&bytes).map(Some).map_err(|what| {
            format!(
                "{shown} {what}; restore it from a backup, or let this machine join as a new node, \
                 with another data directory"
            )
        })
    }

    /// Writes the file in place of the one at this path, at once and durably.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace(path, self.print().as_bytes(), MODE)
    }

    fn print(&self) -> String {
        let mut text = format!(
            "{TITLE}{VERSION}\ncluster {}\nnode {}\nkey {}\n",
            self.cluster,
            self.node,
            hex(&self.key.bytes())
        );
        if let Some(Membership { authority, certificate }) = &self.membership {
            let _ = writeln!(text, "authority {}", hex(authority.certificate()));
            let _ = writeln!(text, "authority-key {}", hex(&authority.key().bytes()));
            let _ = writeln!(text, "certificate {}", hex(certificate));
        }
        for Neighbour { node, addresses } in &self.neighbours {
            let _ = write!(text, "neighbour {node}");
            for address in addresses {
                let _ = write!(text, " {address}");
            }
            text.push('\n');
        }
        let checksum = crc64(text.as_bytes());
        let _ = writeln!(text, "checksum {checksum:016x}");
        text
    }

    fn parse(bytes: &[u8]) -> Result<Identity, String> {
        let damaged = || "is damaged".to_string();
        let text = std::str::from_utf8(bytes).map_err(|_| "is no text".to_string())?;
        let version = text.lines().next().and_then(|line| line.strip_prefix(TITLE));
        match version.map(str::parse::<u32>) {
            Some(Ok(VERSION)) => {}
            Some(Ok(version)) => {
                return Err(format!("is of version {version}, which this sheep does not know"));
            }
            _ => return Err("is no identity".to_string()),
        }
        let body = text.strip_suffix('\n').and_then(|text| text.rsplit_once('\n'));
        let (body, last) = body.ok_or_else(damaged)?;
        let checksum = crc64(&text.as_bytes()[..=body.len()]);
        if last != format!("checksum {checksum:016x}") {
            return Err(damaged());
        }
        let mut lines = body.split('\n').skip(1).peekable();
        let identity = Identity::parse_lines(&mut lines).ok_or_else(damaged)?;
        if lines.next().is_some() {
            return Err(damaged());
        }
        if let Some(membership) = &identity.membership {
            vet(identity.cluster, identity.node, &identity.key, membership)?;
        }
        Ok(identity)
    }

    fn parse_lines<'a>(
        lines: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
    ) -> Option<Identity> {
        let mut fact = |name: &str| {
            let line = lines.next_if(|line| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' '))
            })?;
            Some(&line[name.len() + 1..])
        };
        let number = |text: &str| u128::from_str_radix(text, 16).ok().filter(|&id| id != 0);
        let cluster = ClusterId(number(fact("cluster")?)?);
        let node = NodeId(number(fact("node")?)?);
        let key = NodeKey::from_bytes(&from_hex(fact("key")?)?)?;
        let membership = match fact("authority") {
            None => None,
            Some(authority) => {
                let key = from_hex(fact("authority-key")?)?;
                let authority = Authority::from_parts(cluster, &from_hex(authority)?, &key)?;
                let certificate = CertificateDer::from(from_hex(fact("certificate")?)?);
                Some(Membership { authority, certificate })
            }
        };
        let mut neighbours = Vec::new();
        while let Some(line) = fact("neighbour") {
            let mut words = line.split(' ');
            let node = NodeId(number(words.next()?)?);
            let addresses: Vec<Seed> =
                words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
            if addresses.len() > SEEDS_MAX || neighbours.len() == NEIGHBOURS_MAX {
                return None;
            }
            neighbours.push(Neighbour { node, addresses });
        }
        Some(Identity { cluster, node, key, membership, neighbours })
    }
}

/// Whether anybody but the owner may do something with this file.
pub fn is_open_to_others(metadata: &fs::Metadata) -> bool {
    metadata.permissions().mode() & 0o077 != 0
}

/// Whether these make this node one of this cluster.
fn vet(
    cluster: ClusterId,
    node: NodeId,
    key: &NodeKey,
    membership: &Membership,
) -> Result<(), &'static str> {
    let Membership { authority, certificate } = membership;
    let trust = Trust::new(cluster, authority.certificate());
    // Any time between the dates in certificates.
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1 << 31));
    let named = [KeyUsage::client_auth(), KeyUsage::server_auth()]
        .map(|usage| trust.node_of(certificate, &[], now, usage));
    if named.iter().any(|named| named.as_ref() != Ok(&node)) {
        return Err("has a certificate that is not that of this node");
    }
    Credentials::new(cluster, authority.certificate(), certificate, key)
        .map(drop)
        .map_err(|_| "has a certificate that is not that of its key")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(0xabc);
    const NODE: NodeId = NodeId(5);

    fn neighbours() -> Vec<Neighbour> {
        let addresses = ["192.0.2.1:7117", "[::1]:1"].map(|text| text.parse().expect("right"));
        let one = Neighbour { node: NodeId(1), addresses: addresses.to_vec() };
        vec![one, Neighbour { node: NodeId(2), addresses: Vec::new() }]
    }

    #[test]
    fn what_is_written_is_read_and_is_nobody_elses_to_read() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let path = directory.path().join("identity");
        assert!(Identity::read(&path).expect("none").is_none());
        let mut applying = Identity::applying(CLUSTER, NODE);
        // What an attempt that was cut off left may have any mode.
        let left = path.with_extension("new");
        fs::write(&left, "torn").expect("written");
        fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).expect("set");
        applying.write(&path).expect("written");
        let read = Identity::read(&path).expect("read").expect("there");
        assert!(read.membership.is_none() && read.credentials().is_none());
        assert_eq!((read.cluster, read.node), (CLUSTER, NODE));
        assert_eq!(read.key.public(), applying.key.public());

        let authority = Authority::found(CLUSTER);
        let certificate = authority.certify(NODE, &applying.key.public());
        applying.admit(Membership { authority, certificate }, neighbours()).expect("they fit");
        applying.write(&path).expect("written");
        let read = Identity::read(&path).expect("read").expect("there");
        assert_eq!(read.print(), applying.print());
        assert_eq!(read.neighbours, neighbours());
        assert!(read.credentials().is_some());
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1);
    }

    #[test]
    fn what_belongs_to_another_node_key_or_cluster_is_not_taken() {
        let mut identity = Identity::applying(CLUSTER, NODE);
        let public = identity.key.public();
        let authority = || Authority::found(CLUSTER);
        let mut refused = |authority: Authority, certificate| {
            let membership = Membership { authority, certificate };
            identity.admit(membership, neighbours()).expect_err("refused");
            assert!(identity.membership.is_none());
        };
        let one = authority();
        let certificate = one.certify(NodeId(6), &public);
        refused(one, certificate);
        let one = authority();
        let certificate = one.certify(NODE, &NodeKey::draw().public());
        refused(one, certificate);
        refused(authority(), authority().certify(NODE, &public));
        let foreign = Authority::found(ClusterId(1));
        let certificate = foreign.certify(NODE, &public);
        refused(foreign, certificate);
    }

    #[test]
    fn damage_is_noticed() {
        let text = Identity::found(CLUSTER, NODE).print();
        assert!(Identity::parse(text.as_bytes()).is_ok());
        for length in (0..text.len()).step_by(7) {
            assert!(Identity::parse(&text.as_bytes()[..length]).is_err(), "cut at {length}");
        }
        for byte in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[byte] ^= 1 << (byte % 8);
            assert!(Identity::parse(&bytes).is_err(), "byte {byte}");
        }
        let sealed = |from: &str, to: &str| {
            let mut text = text.replacen(from, to, 1);
            text.truncate(text.find("checksum").expect("a checksum"));
            let checksum = crc64(text.as_bytes());
            let _ = writeln!(text, "checksum {checksum:016x}");
            Identity::parse(text.as_bytes()).expect_err(to)
        };
        assert!(sealed("version 1", "version 2").contains("version 2, which"));
        assert!(sealed("sheepdog", "goatdog").contains("no identity"));
        let (node, other) = (format!("node {NODE}"), format!("node {}", NodeId(6)));
        assert!(sealed(&node, &other).contains("not that of this node"));
        let (cluster, other) = (format!("cluster {CLUSTER}"), format!("cluster {}", ClusterId(6)));
        assert_eq!(sealed(&cluster, &other), "is damaged");
        assert_eq!(sealed("\nkey ", "\nkey 00"), "is damaged");
        assert_eq!(sealed("\nauthority-key ", "\nauthority-kay "), "is damaged");
    }
}
