//! One connection as a stream of bytes: TLS, or plain where that was asked for by name.

use crate::{
    identity::{ALPN_JOIN, ALPN_PEER, Credentials},
    join::BINDING,
};
use mio::{Interest, Registry, Token, event::Event, net::TcpStream};
use rustls::{
    ClientConfig, ClientConnection, Connection,
    pki_types::{CertificateDer, ServerName},
    server::Acceptor,
};
use std::{
    io::{self, ErrorKind, IoSlice, Read, Write},
    net::Shutdown,
    sync::Arc,
};

/// Bytes that TLS takes before the socket has taken those that it took before.
const TLS_BYTES_MAX: usize = 256 << 10;
/// First byte of whatever TLS client.
const TLS_FIRST: u8 = 0x16;

/// What a connection is for, as its first message says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A link between two nodes.
    Peer,
    /// A machine wants to join.
    Join,
}

enum Layer {
    /// Accepted where plain connections are allowed: its first byte tells.
    Unknown,
    Plain,
    /// Its first message has not come.
    Accepting(Box<Acceptor>),
    Tls(Box<Connection>),
}

/// One connection. Calls that would wait say [`ErrorKind::WouldBlock`].
pub struct Stream {
    socket: TcpStream,
    layer: Layer,
    /// Whether the socket may have something, and room, as far as events have told.
    readable: bool,
    writable: bool,
}

impl Stream {
    /// A connection that is being made; TLS unless there is no configuration.
    pub fn dialled(socket: TcpStream, tls: Option<&Arc<ClientConfig>>) -> io::Result<Stream> {
        let layer = match tls {
            None => Layer::Plain,
            Some(config) => {
                // Not told to the other side: the certificates say who is who.
                let name = ServerName::try_from("node.sheepdog.invalid").expect("a name");
                let connection = ClientConnection::new(Arc::clone(config), name);
                let mut connection = connection.map_err(io::Error::other)?;
                connection.set_buffer_limit(Some(TLS_BYTES_MAX));
                Layer::Tls(Box::new(connection.into()))
            }
        };
        Ok(Stream { socket, layer, readable: false, writable: false })
    }

    /// A connection that was accepted.
    pub fn accepted(socket: TcpStream, plain_allowed: bool) -> Stream {
        let layer = match plain_allowed {
            true => Layer::Unknown,
            false => Layer::Accepting(Box::default()),
        };
        Stream { socket, layer, readable: true, writable: true }
    }

    /// Events tell when something may have changed.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.socket.set_nodelay(true)?;
        registry.register(&mut self.socket, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// No events any more.
    pub fn deregister(&mut self, registry: &Registry) {
        // It goes with the socket otherwise.
        let _ = registry.deregister(&mut self.socket);
    }

    /// Takes what an event tells.
    pub fn handle_event(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
    }

    /// For a connection that was dialled: whether the socket is there.
    pub fn is_connected(&mut self) -> io::Result<bool> {
        if !self.writable {
            return Ok(false);
        }
        if let Some(error) = self.socket.take_error()? {
            return Err(error);
        }
        match self.socket.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Goes on with the greeting below what is said: true once bytes can be said. The other side
    /// has shown who it is by then if this side was dialled; if it dialled, with its first bytes.
    pub fn advance(&mut self, credentials: &Credentials) -> io::Result<bool> {
        loop {
            match &mut self.layer {
                Layer::Plain => return Ok(true),
                Layer::Unknown => {
                    let mut first = [0];
                    let peeked = self.socket.peek(&mut first);
                    match noting(&mut self.readable, peeked)? {
                        0 => return Err(ErrorKind::UnexpectedEof.into()),
                        _ if first[0] == TLS_FIRST => {
                            self.layer = Layer::Accepting(Box::default());
                        }
                        _ => self.layer = Layer::Plain,
                    }
                }
                Layer::Accepting(acceptor) => {
                    let read = acceptor.read_tls(&mut self.socket);
                    if noting(&mut self.readable, read)? == 0 {
                        return Err(ErrorKind::UnexpectedEof.into());
                    }
                    match acceptor.accept() {
                        Ok(None) => {}
                        Ok(Some(accepted)) => {
                            let hello = accepted.client_hello();
                            let offers = |wanted: &[u8]| {
                                hello.alpn().is_some_and(|mut all| all.any(|one| one == wanted))
                            };
                            let config = match (offers(ALPN_PEER), offers(ALPN_JOIN)) {
                                (true, false) => &credentials.accept,
                                (false, true) => &credentials.host,
                                _ => return Err(bad("it does not say what it wants")),
                            };
                            let connection = accepted.into_connection(Arc::clone(config));
                            let mut connection = connection.map_err(|(error, mut alert)| {
                                let _ = alert.write_all(&mut self.socket);
                                bad(error)
                            })?;
                            connection.set_buffer_limit(Some(TLS_BYTES_MAX));
                            self.layer = Layer::Tls(Box::new(connection.into()));
                        }
                        Err((error, mut alert)) => {
                            let _ = alert.write_all(&mut self.socket);
                            return Err(bad(error));
                        }
                    }
                }
                Layer::Tls(connection) => {
                    let was_handshaking = connection.is_handshaking();
                    if !was_handshaking {
                        self.flush()?;
                        return Ok(true);
                    }
                    if connection.wants_write() {
                        self.flush()?;
                        continue;
                    }
                    self.take_tls()?;
                }
            }
        }
    }

    /// Who the other side has shown itself to be, by certificates that were believed; nothing where
    /// it has not, or TLS is not spoken.
    pub fn certificates(&self) -> Option<&[CertificateDer<'static>]> {
        match &self.layer {
            Layer::Tls(connection) => connection.peer_certificates(),
            _ => None,
        }
    }

    /// Whether TLS is spoken.
    pub fn is_tls(&self) -> bool {
        matches!(self.layer, Layer::Tls(_))
    }

    /// What it is for, once [`Stream::advance`] was through.
    pub fn purpose(&self) -> io::Result<Purpose> {
        match &self.layer {
            Layer::Plain => Ok(Purpose::Peer),
            Layer::Tls(connection) => match connection.alpn_protocol() {
                Some(ALPN_PEER) => Ok(Purpose::Peer),
                Some(ALPN_JOIN) => Ok(Purpose::Join),
                _ => Err(bad("the two sides do not agree on what it is for")),
            },
            Layer::Unknown | Layer::Accepting(_) => Err(bad("it has not begun")),
        }
    }

    /// What ties a request to join to this connection, once [`Stream::advance`] was through.
    pub fn join_binding(&self) -> io::Result<[u8; 32]> {
        match &self.layer {
            Layer::Tls(connection) => {
                connection.export_keying_material([0; 32], BINDING, None).map_err(bad)
            }
            _ => Err(bad("machines join with TLS")),
        }
    }

    /// Reads what is there; 0 is the end.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match &mut self.layer {
                Layer::Tls(connection) => match connection.reader().read(into) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => self.take_tls()?,
                    other => return other,
                },
                Layer::Plain if !self.readable => return Err(ErrorKind::WouldBlock.into()),
                Layer::Plain => {
                    let read = self.socket.read(into);
                    return noting(&mut self.readable, read);
                }
                Layer::Unknown | Layer::Accepting(_) => return Err(bad("it has not begun")),
            }
        }
    }

    /// Writes what there is room for.
    pub fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.layer {
            Layer::Plain if !self.writable => Err(ErrorKind::WouldBlock.into()),
            Layer::Plain => {
                let written = self.socket.write_vectored(from);
                noting(&mut self.writable, written)
            }
            Layer::Tls(_) => {
                // What TLS has taken must be gone first: the rest waits where it is counted.
                self.flush()?;
                let Layer::Tls(connection) = &mut self.layer else { unreachable!("as above") };
                let taken = connection.writer().write_vectored(from)?;
                match self.flush() {
                    Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
                    _ => Ok(taken),
                }
            }
            Layer::Unknown | Layer::Accepting(_) => Err(bad("it has not begun")),
        }
    }

    /// Writes what TLS has taken and the socket has not.
    pub fn flush(&mut self) -> io::Result<()> {
        let Layer::Tls(connection) = &mut self.layer else { return Ok(()) };
        while connection.wants_write() {
            if !self.writable {
                return Err(ErrorKind::WouldBlock.into());
            }
            let written = connection.write_tls(&mut self.socket);
            if noting(&mut self.writable, written)? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Whether TLS holds something for the socket.
    pub fn wants_flush(&self) -> bool {
        match &self.layer {
            Layer::Tls(connection) => connection.wants_write(),
            _ => false,
        }
    }

    /// Says that nothing more will be said.
    pub fn finish(&mut self) {
        if let Layer::Tls(connection) = &mut self.layer {
            connection.send_close_notify();
        }
        // Who is gone need not be told.
        let _ = self.flush();
        if !self.wants_flush() {
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    /// Reads more of what TLS is to make sense of.
    fn take_tls(&mut self) -> io::Result<()> {
        let Layer::Tls(connection) = &mut self.layer else { unreachable!("the caller looked") };
        if !self.readable {
            return Err(ErrorKind::WouldBlock.into());
        }
        let read = connection.read_tls(&mut self.socket);
        if noting(&mut self.readable, read)? == 0 && connection.is_handshaking() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if let Err(error) = connection.process_new_packets() {
            // The other side learns why.
            let _ = self.flush();
            return Err(bad(error));
        }
        Ok(())
    }
}

/// The result, and what it tells about readiness.
fn noting(ready: &mut bool, result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            *ready = false;
            Err(error)
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => Err(ErrorKind::WouldBlock.into()),
        other => other,
    }
}

fn bad(why: impl ToString) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why.to_string())
}
