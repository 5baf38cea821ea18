//! Which cluster a node belongs to, found out at its start: it founds one, joins one, or goes on in
//! the one that it was in.
//!
//! In an order that a crash can stop anywhere. Who founds writes the record first and then its
//! keys; who joins writes its keys first, asks with them, writes what it was given, and then the
//! record. So keys without a record are those of a machine that joins, and whoever asks a second
//! time is known by its key.

use crate::{
    directory::{self, DataDirectory},
    identity::{Identity, Seed, TokenText},
    join,
};
use proto::NodeId;
use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

/// How long a machine asks to be let in before it gives up.
const JOIN_PATIENCE: Duration = Duration::from_secs(120);

/// Who this node is to others. Asks a cluster to let it in if that is wanted and was not done yet;
/// that may take [`JOIN_PATIENCE`]. The error is one sentence.
pub fn settle(
    token: Option<&TokenText>,
    directory: &mut DataDirectory,
    addresses: &[Seed],
) -> Result<Identity, String> {
    let path = directory.identity();
    let found = Identity::read(&path)?;
    let record = directory.record().clone();
    if let Some(token) = token
        && !record.founding
        && token.cluster != record.cluster
    {
        return Err(format!(
            "this node belongs to cluster {} and the token is for cluster {}; to join that, start \
             with a new data directory",
            record.cluster, token.cluster
        ));
    }
    let is_of_record = |known: &Identity| {
        known.cluster == record.cluster && known.node == record.node && known.membership.is_some()
    };
    if !record.founding || record.joined {
        return match found {
            Some(known) if is_of_record(&known) => Ok(known),
            // Of before there were keys, and so alone.
            None if !record.joined && !record.keyed => {
                Ok(Identity::found(record.cluster, record.node))
            }
            other => {
                let what = if other.is_some() { "is that of another node" } else { "is missing" };
                Err(format!(
                    "{} {what}; restore it from a backup, or let this machine join as a new node, \
                     with another data directory",
                    path.display()
                ))
            }
        };
    }
    // Nothing was ever served from here.
    let identity = match (token, found) {
        (None, None) => return Ok(Identity::found(record.cluster, record.node)),
        (None, Some(known)) if is_of_record(&known) => return Ok(known),
        (None, Some(known)) if known.membership.is_none() => {
            return Err(format!(
                "this machine has asked to join cluster {} and was not let in yet; start it with \
                 --join again, or with another data directory",
                known.cluster
            ));
        }
        (None, Some(known)) => known,
        (Some(token), Some(known)) if known.cluster == token.cluster => {
            admitted(known, token, directory, addresses)?
        }
        (Some(token), Some(known)) if known.membership.is_some() && !is_of_record(&known) => {
            return Err(format!(
                "this machine was let into cluster {} and the token is for cluster {}; to join \
                 that, start with a new data directory",
                known.cluster, token.cluster
            ));
        }
        (Some(token), _) => {
            let new = Identity::applying(token.cluster, NodeId(directory::draw()?));
            admitted(new, token, directory, addresses)?
        }
    };
    directory.become_node(identity.cluster, identity.node);
    Ok(identity)
}

/// The identity once the cluster has let it in.
fn admitted(
    mut identity: Identity,
    token: &TokenText,
    directory: &DataDirectory,
    addresses: &[Seed],
) -> Result<Identity, String> {
    if identity.membership.is_some() {
        return Ok(identity);
    }
    let path = directory.identity();
    let cannot = |error: io::Error| {
        format!("cannot write {}: {error}; free space, or choose another place", path.display())
    };
    identity.write(&path).map_err(cannot)?;
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    tracing::info!("asking cluster {} to let this machine in", token.cluster);
    join::join(&mut identity, token, &name, addresses, &[], JOIN_PATIENCE)?;
    identity.write(&path).map_err(cannot)?;
    tracing::info!("this machine is node {} of cluster {}", identity.node, identity.cluster);
    Ok(identity)
}

/// Opens an address for other nodes. The error is one sentence.
pub fn open_listener(address: SocketAddr) -> Result<TcpListener, String> {
    try_listener(address).map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::AddrInUse => "stop who uses it, or choose another port",
            ErrorKind::PermissionDenied => "choose a port of 1024 or above",
            _ => "choose another address",
        };
        format!("cannot listen on {address} (--listen): {error}; {remedy}")
    })
}

/// Opens the usual port at all addresses.
pub fn open_usual(port: u16) -> io::Result<TcpListener> {
    // Takes IPv4 too, where the machine has IPv6 at all.
    match try_listener(SocketAddr::from(([0; 16], port))) {
        Err(error) if error.kind() != ErrorKind::AddrInUse => {
            try_listener(SocketAddr::from(([0; 4], port)))
        }
        other => other,
    }
}

fn try_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Where others reach who listens here: at this address or, if that is all addresses, at the one
/// that the way out of this machine begins at. Nothing if there is none: no guess is better.
pub fn reachable(listening: SocketAddr) -> Option<SocketAddr> {
    reachable_by(listening, way_out)
}

fn reachable_by(
    listening: SocketAddr,
    way_out: impl FnOnce() -> Option<IpAddr>,
) -> Option<SocketAddr> {
    if !listening.ip().is_unspecified() {
        return Some(listening);
    }
    let found = way_out().filter(|ip| !ip.is_loopback() && !ip.is_unspecified())?;
    Some(SocketAddr::new(found, listening.port()))
}

fn way_out() -> Option<IpAddr> {
    // Nothing is sent: the kernel only looks up the route. Addresses for documentation.
    let way_out = |from: IpAddr, to: &str| {
        let socket = UdpSocket::bind(SocketAddr::new(from, 0)).ok()?;
        socket.connect(to).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    way_out(Ipv4Addr::UNSPECIFIED.into(), "192.0.2.1:9")
        .or_else(|| way_out([0u16; 8].into(), "[2001:db8::1]:9"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        directory::Record,
        identity::{Authority, Membership},
    };
    use proto::ClusterId;
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    fn token(cluster: u128) -> TokenText {
        TokenText {
            cluster: ClusterId(cluster),
            id: cluster::TokenId(1),
            secret: [2; 16],
            authority: cluster::Digest([3; 32]),
            expires_unix_s: 4,
            uses: 5,
            seeds: Vec::new(),
        }
    }

    fn open(path: &Path) -> DataDirectory {
        DataDirectory::open(path, None).expect("opens")
    }

    /// Serves once, as the daemon does.
    fn serve(path: &Path, token: Option<&TokenText>) -> Identity {
        let mut directory = open(path);
        let identity = settle(token, &mut directory, &[]).expect("settled");
        directory.begin().expect("begun");
        identity.write(&directory.identity()).expect("written");
        directory.finish().expect("finished");
        identity
    }

    fn refused(path: &Path, token: Option<&TokenText>, part: &str) {
        let mut directory = open(path);
        let sentence = settle(token, &mut directory, &[]).expect_err(part);
        assert!(sentence.contains(part), "{sentence}");
    }

    /// Keys that a cluster has let in, as they are before the record is written.
    fn let_in(path: &Path, cluster: u128) -> Identity {
        let authority = Authority::found(ClusterId(cluster));
        let mut identity = Identity::applying(ClusterId(cluster), NodeId(77));
        let certificate = authority.certify(NodeId(77), &identity.key.public());
        identity.admit(Membership { authority, certificate }, Vec::new()).expect("they fit");
        identity.write(&open(path).identity()).expect("written");
        identity
    }

    #[test]
    fn a_founder_stays_who_it_is_and_joins_no_other_cluster() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let path = scratch.path().join("data");
        let first = serve(&path, None);
        let again = serve(&path, None);
        assert_eq!((again.node, again.cluster), (first.node, first.cluster));
        assert_eq!(again.key.public(), first.key.public());
        refused(&path, Some(&token(9)), "with a new data directory");
        let own = token(first.cluster.0);
        assert_eq!(serve(&path, Some(&own)).node, first.node, "without effect");
        // Lost keys: a second authority would be none to the nodes that the first let in.
        fs::remove_file(path.join("identity")).expect("removed");
        refused(&path, None, "is missing; restore it");
        // A node of before there were keys, which founded its cluster and so is alone.
        let record = open(&path).record().clone();
        Record { keyed: false, ..record }.write(&path.join("node")).expect("written");
        assert_eq!(serve(&path, None).cluster, first.cluster);
    }

    #[test]
    fn who_was_let_in_needs_no_token_any_more_and_never_becomes_somebody_else() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let path = scratch.path().join("data");
        // The crash came right after the answer.
        let_in(&path, 9);
        refused(&path, Some(&token(8)), "was let into cluster");
        let identity = serve(&path, None);
        assert_eq!((identity.cluster, identity.node), (ClusterId(9), NodeId(77)));
        {
            let directory = open(&path);
            let record = directory.record();
            assert!(record.joined && !record.founding && record.node == NodeId(77));
        }
        serve(&path, Some(&token(9)));
        refused(&path, Some(&token(8)), "belongs to cluster");
        let kept = fs::read(path.join("identity")).expect("read");
        let_in(&path, 8);
        refused(&path, None, "is that of another node");
        fs::remove_file(path.join("identity")).expect("removed");
        refused(&path, None, "is missing; restore it");
        fs::write(path.join("identity"), kept).expect("written");
        let mode = |bits| fs::Permissions::from_mode(bits);
        fs::set_permissions(path.join("identity"), mode(0o640)).expect("set");
        refused(&path, None, "can be read by others; run `chmod 600");
        fs::set_permissions(path.join("identity"), mode(0o600)).expect("set");
        serve(&path, None);
    }

    #[test]
    fn who_asked_and_was_not_let_in_founds_nothing() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let path = scratch.path().join("data");
        refused(&path, Some(&token(9)), "names no address of a node");
        let key = |path: &Path| {
            let identity = Identity::read(&path.join("identity")).expect("read").expect("kept");
            identity.key.public()
        };
        let first = key(&path);
        refused(&path, None, "start it with --join again");
        refused(&path, Some(&token(9)), "names no address of a node");
        assert_eq!(key(&path), first, "it asks as the same machine");
        refused(&path, Some(&token(8)), "names no address of a node");
        assert_ne!(key(&path), first, "of another cluster it is another node");
    }

    #[test]
    fn all_addresses_are_no_address_for_others() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let by = |ip: &str| Some(ip.parse::<IpAddr>().expect("an address"));
        let all = address("0.0.0.0:7117");
        assert_eq!(reachable_by(all, || by("192.0.2.9")), Some(address("192.0.2.9:7117")));
        // A machine whose network is not there yet keeps the address that was agreed.
        assert_eq!(reachable_by(all, || None), None);
        assert_eq!(reachable_by(all, || by("127.0.0.1")), None);
        assert_eq!(reachable_by(all, || by("0.0.0.0")), None);
        assert!(reachable(all).is_none_or(|found| !found.ip().is_loopback()));
        let named = address("127.0.0.1:1");
        assert_eq!(reachable_by(named, || None), Some(named), "said by name");
    }
}
