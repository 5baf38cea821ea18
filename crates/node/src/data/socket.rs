//! The two kinds of sockets that serve NBD, and who is at their other end.

use engine::Client;
use mio::{
    Interest, Registry, Token,
    event::Source,
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};
use rustix::net::sockopt::{
    set_socket_send_buffer_size, set_socket_send_buffer_size_force, set_tcp_nodelay,
    socket_peercred,
};
use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::IpAddr,
};

/// Bytes of replies that a Unix socket holds for its client: a reply of a MiB goes out with two or
/// three system calls instead of eight with as many changes between the processes.
const SEND_BYTES: usize = 1 << 20;

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket of the data directory.
    Unix(UnixListener),
    /// A loopback address.
    Tcp(TcpListener),
}

/// One connection.
#[derive(Debug)]
pub enum Socket {
    /// From a process of this machine.
    Unix(UnixStream),
    /// From a loopback address.
    Tcp(TcpStream),
}

/// What connections are counted by, so that one peer cannot take the place of all others.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Peer {
    /// A process: its id, and when it started in clock ticks since boot. Together they name a
    /// process for ever, as ids are reused.
    Process(i32, u64),
    /// A process that the kernel does not tell: of another process namespace.
    UnknownProcess,
    /// A network address.
    Address(IpAddr),
}

impl Peer {
    /// Whether all its connections are those of one client, which share an attachment.
    pub fn is_one_client(&self) -> bool {
        matches!(self, Peer::Process(..))
    }

    /// Whether it is a process that the data directory's rights have let in.
    pub fn is_local(&self) -> bool {
        !matches!(self, Peer::Address(_))
    }
}

impl Listener {
    /// Takes one connection that waits.
    pub fn accept(&self) -> io::Result<Socket> {
        match self {
            Listener::Unix(listener) => listener.accept().map(|(stream, _)| Socket::Unix(stream)),
            Listener::Tcp(listener) => listener.accept().map(|(stream, _)| Socket::Tcp(stream)),
        }
    }

    /// Events tell when connections wait.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Listener::Unix(listener) => listener.register(registry, token, Interest::READABLE),
            Listener::Tcp(listener) => listener.register(registry, token, Interest::READABLE),
        }
    }
}

impl Socket {
    /// Events tell when it can be read.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            // Replies are gathered by us; held back they would only be late.
            Socket::Tcp(stream) => set_tcp_nodelay(&*stream, true)?,
            Socket::Unix(stream) => {
                // Only root may go beyond the system's bound; that much is as good as can be then.
                set_socket_send_buffer_size_force(&*stream, SEND_BYTES)
                    .or_else(|_| set_socket_send_buffer_size(&*stream, SEND_BYTES))?;
            }
        }
        self.source().register(registry, token, Interest::READABLE)
    }

    /// Events tell when it can be read and, if wanted, when it can be written: otherwise each
    /// reply that a client reads would be an event.
    pub fn watch(&mut self, registry: &Registry, token: Token, writable: bool) -> io::Result<()> {
        let interest = match writable {
            true => Interest::READABLE | Interest::WRITABLE,
            false => Interest::READABLE,
        };
        self.source().reregister(registry, token, interest)
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Socket::Unix(stream) => stream,
            Socket::Tcp(stream) => stream,
        }
    }

    /// Reads what is there.
    pub fn read_vectored(&mut self, into: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.read_vectored(into),
            Socket::Tcp(stream) => stream.read_vectored(into),
        }
    }

    /// Writes what there is room for.
    pub fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.write_vectored(from),
            Socket::Tcp(stream) => stream.write_vectored(from),
        }
    }

    /// Who is at the other end; `number` tells connections apart that show nothing else.
    pub fn peer(&self, number: u64) -> io::Result<(Peer, Client)> {
        match self {
            Socket::Unix(stream) => {
                let pid = socket_peercred(stream)?.pid.as_raw_pid();
                Ok(client_of_process(pid, number))
            }
            Socket::Tcp(stream) => {
                let address = stream.peer_addr()?;
                let client = Client {
                    identity: format!("connection {number}"),
                    description: address.to_string(),
                };
                Ok((Peer::Address(address.ip()), client))
            }
        }
    }
}

fn client_of_process(pid: i32, number: u64) -> (Peer, Client) {
    if pid <= 0 {
        let client = Client {
            identity: format!("connection {number}"),
            description: "a process of another process namespace".to_string(),
        };
        return (Peer::UnknownProcess, client);
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let (name, started) = parse_stat(&stat).unwrap_or(("?", 0));
    let client = Client {
        identity: format!("pid {pid} started {started}"),
        description: format!("process {pid} ({name})"),
    };
    (Peer::Process(pid, started), client)
}

/// Name and start time out of `/proc/PID/stat`. The name may hold anything, parentheses too.
fn parse_stat(stat: &str) -> Option<(&str, u64)> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    // The state is field 3 and the first behind the name; the start time is field 22.
    let started = tail.split_ascii_whitespace().nth(22 - 3)?.parse().ok()?;
    Some((name, started))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_processes_cannot_fake_their_start() {
        let tail = "S 1 2 3 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 88123 1 2 3";
        let check = |name: &str| {
            let stat = format!("4711 ({name}) {tail}");
            assert_eq!(parse_stat(&stat), Some((name, 88123)));
        };
        check("qemu-system-x86");
        check("a b");
        check(") S 1 2 3");
        check("((");
        assert_eq!(parse_stat(""), None);
        assert_eq!(parse_stat("1 (x) S 1 2"), None);
    }

    #[test]
    fn connections_of_one_process_are_one_client() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let path = directory.path().join("socket");
        let listener = Listener::Unix(UnixListener::bind(&path).expect("bound"));
        let peer_of = |number| {
            let _client = UnixStream::connect(&path).expect("connected");
            listener.accept().expect("accepted").peer(number).expect("known")
        };
        let (first, second) = (peer_of(1), peer_of(2));
        assert_eq!(first, second);
        let pid = std::process::id();
        assert!(first.1.identity.starts_with(&format!("pid {pid} started ")), "{first:?}");
        assert!(!first.1.identity.ends_with(" 0"), "{first:?}");
        assert!(first.1.description.starts_with(&format!("process {pid} (")), "{first:?}");
    }

    /// A process that the kernel does not tell was told that it may open several connections, and
    /// each but the first was refused, as if another client had the volume.
    #[test]
    fn only_whose_connections_share_an_attachment_is_told_to_open_several() {
        for pid in [0, std::process::id() as i32] {
            let ((peer, first), (_, second)) =
                (client_of_process(pid, 1), client_of_process(pid, 2));
            assert_eq!(peer.is_one_client(), first == second, "process {pid}");
        }
        assert!(!Peer::Address(IpAddr::from([127, 0, 0, 1])).is_one_client());
    }

    #[test]
    fn each_connection_over_the_network_is_a_client_of_its_own() {
        let address = "127.0.0.1:0".parse().expect("an address");
        let listener = TcpListener::bind(address).expect("bound");
        let address = listener.local_addr().expect("bound");
        let listener = Listener::Tcp(listener);
        let peer_of = |number| {
            let _client = std::net::TcpStream::connect(address).expect("connected");
            let socket = loop {
                match listener.accept() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    accepted => break accepted.expect("accepted"),
                }
            };
            socket.peer(number).expect("known")
        };
        let (first, second) = (peer_of(1), peer_of(2));
        assert_eq!(first.0, second.0);
        assert_ne!(first.1.identity, second.1.identity);
    }
}
