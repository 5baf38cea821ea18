//! The side that asks: a machine before it is a node. It has nothing else to do, so it waits.

use super::{
    BINDING,
    message::{Message, Refusal, Request, Welcome},
};
use crate::identity::{
    Authority, Identity, Membership, Neighbour, NodeKey, Seed, TokenText, digest, joining_config,
};
use rustls::{
    CertificateError, ClientConfig, ClientConnection,
    pki_types::{CertificateDer, ServerName},
};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// How long one address may take to be connected to.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long one address may take for everything: the cluster's time to decide, and some.
const ASK_MAX: Duration = Duration::from_secs(45);
/// How long it is waited until all addresses are tried again.
const ROUND_PAUSE: Duration = Duration::from_secs(1);

const _: () = assert!(
    proto::limits::JOIN_DECIDE_MS_MAX + proto::limits::PEER_GREETING_MS_MAX
        < ASK_MAX.as_millis() as u64
);

/// How asking one address failed.
#[derive(Debug)]
enum Failure {
    /// Another address, or another time, may do.
    Elsewhere(String),
    /// The cluster has said no.
    Refused(String),
}

/// Asks the nodes that a token names, and those of `found`, to let this machine in as the node of
/// `identity`, until one of them does, the cluster says no, or `patience` is over. The identity has
/// what it needs then; it is still to be written. The error is one sentence.
pub fn join(
    identity: &mut Identity,
    token: &TokenText,
    name: &str,
    addresses: &[Seed],
    found: &[Seed],
    patience: Duration,
) -> Result<(), String> {
    let config = joining_config(token.cluster, token.authority)
        .map_err(|error| format!("cannot make a TLS configuration: {error}; report this bug"))?;
    let request = Request {
        cluster: token.cluster,
        token: token.id.0,
        secret: token.secret,
        node: identity.node,
        key: identity.key.public(),
        name: name.to_string(),
        addresses: addresses.to_vec(),
        signature: [0; 64],
    };
    let seeds: Vec<&Seed> = found.iter().chain(&token.seeds).collect();
    if seeds.is_empty() {
        return Err("the token names no address of a node, and none was found; make a token on a \
                    node that listens, or add --discover on the same network"
            .to_string());
    }
    let until = Instant::now() + patience;
    loop {
        let mut failures = Vec::new();
        for seed in &seeds {
            match ask(seed, &config, (&request, &identity.key), until).and_then(|welcome| {
                let from = |what: &str| Failure::Elsewhere(format!("{seed}: {what}"));
                let (membership, neighbours) = unpack(welcome, token).map_err(from)?;
                identity.admit(membership, neighbours).map_err(|what| {
                    Failure::Elsewhere(format!("{seed}: its answer {what}; report this bug"))
                })
            }) {
                Ok(()) => return Ok(()),
                Err(Failure::Refused(sentence)) => {
                    return Err(format!("the cluster does not let this machine in: {sentence}"));
                }
                Err(Failure::Elsewhere(what)) => failures.push(what),
            }
        }
        let rest = until.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            failures.dedup();
            return Err(format!(
                "no node of the cluster let this machine in ({}); see that they run, and that \
                 their addresses can be reached from here",
                failures.join("; ")
            ));
        }
        tracing::info!("not in the cluster yet, asking again: {}", failures.join("; "));
        thread::sleep(ROUND_PAUSE.min(rest));
    }
}

/// Asks one node.
fn ask(
    seed: &Seed,
    config: &Arc<ClientConfig>,
    request: (&Request, &NodeKey),
    until: Instant,
) -> Result<Welcome, Failure> {
    let elsewhere = |what: String| Failure::Elsewhere(format!("{seed}: {what}"));
    let resolved = seed.as_str().to_socket_addrs();
    let addresses: Vec<SocketAddr> = match resolved {
        Ok(addresses) => addresses.take(4).collect(),
        Err(error) => return Err(elsewhere(format!("its name is not known ({error})"))),
    };
    let mut last = "its name has no address".to_string();
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_MAX) {
            Ok(socket) => {
                let until = until.max(Instant::now() + CONNECT_MAX).min(Instant::now() + ASK_MAX);
                return converse(socket, config, request, until).map_err(|failure| match failure {
                    Failure::Elsewhere(what) => elsewhere(what),
                    refused => refused,
                });
            }
            Err(error) => last = error.to_string(),
        }
    }
    Err(elsewhere(last))
}

/// Says the request on a connection and takes the answer.
fn converse(
    socket: TcpStream,
    config: &Arc<ClientConfig>,
    (request, key): (&Request, &NodeKey),
    until: Instant,
) -> Result<Welcome, Failure> {
    let name = ServerName::try_from("node.sheepdog.invalid").expect("a name");
    let connection = ClientConnection::new(Arc::clone(config), name);
    let mut connection =
        connection.map_err(|error| Failure::Elsewhere(format!("TLS cannot begin: {error}")))?;
    let mut socket = Timed { socket, until };
    // The handshake first: nothing is said before the other side has shown who it is.
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).map_err(explained)?;
    }
    let binding = connection.export_keying_material([0; 32], BINDING, None);
    let binding =
        binding.map_err(|error| Failure::Elsewhere(format!("TLS cannot go on: {error}")))?;
    let mut request = request.clone();
    request.sign(key, &binding);
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    stream.write_all(&Message::Request(request).encode()).map_err(explained)?;
    stream.flush().map_err(explained)?;
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match Message::decode(&bytes) {
            Ok(Some(Message::Welcome(welcome))) => return Ok(welcome),
            Ok(Some(Message::Refusal(Refusal { try_again: true, sentence }))) => {
                return Err(Failure::Elsewhere(sentence));
            }
            Ok(Some(Message::Refusal(Refusal { try_again: false, sentence }))) => {
                return Err(Failure::Refused(sentence));
            }
            Ok(Some(Message::Request(_))) => {
                return Err(Failure::Elsewhere("it asks instead of answering".to_string()));
            }
            Ok(None) => {}
            Err(error) => return Err(Failure::Elsewhere(error.to_string())),
        }
        match stream.read(&mut piece) {
            Ok(0) => return Err(Failure::Elsewhere("it closed the connection".to_string())),
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(explained(error)),
        }
    }
}

/// What a node handed over, if it is what the token promised.
fn unpack(
    welcome: Welcome,
    token: &TokenText,
) -> Result<(Membership, Vec<Neighbour>), &'static str> {
    if welcome.cluster != token.cluster || digest(&welcome.authority) != token.authority {
        return Err("it answers for another cluster");
    }
    let authority =
        Authority::from_parts(welcome.cluster, &welcome.authority, &welcome.authority_key);
    let authority = authority.ok_or("it has an authority whose parts do not fit together")?;
    let certificate = CertificateDer::from(welcome.certificate);
    Ok((Membership { authority, certificate }, welcome.neighbours))
}

/// What went wrong on a connection, for people.
fn explained(error: io::Error) -> Failure {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    Failure::Elsewhere(match (tls, error.kind()) {
        (Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)), _) => {
            "it belongs to another cluster than the token, or is no node".to_string()
        }
        (Some(other), _) => format!("it does not speak as a node does ({other})"),
        (None, ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            "it did not answer in time".to_string()
        }
        (None, ErrorKind::UnexpectedEof) => "it closed the connection".to_string(),
        (None, _) => error.to_string(),
    })
}

/// A socket whose calls end at a time, all together.
struct Timed {
    socket: TcpStream,
    until: Instant,
}

impl Timed {
    fn rest(&self) -> io::Result<Option<Duration>> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            rest => Ok(Some(rest)),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.rest()?)?;
        self.socket.read(into)
    }
}

impl Write for Timed {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.rest()?)?;
        self.socket.write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}
