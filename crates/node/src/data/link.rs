//! One NBD connection: its socket, its machine, and the bytes on their way out.

use super::socket::{Peer, Socket};
use engine::Client;
use front::nbd::{Connection, Effect, Segment, Settings};
use mio::{Registry, Token};
use proto::{Time, limits::NBD_INPUT_BYTES_MAX};
use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
};

/// Bytes one connection may bring in one round, before the others have their turn.
const ROUND_BYTES_MAX: usize = 1 << 20;
/// Pieces that one system call writes at most.
const PIECES_MAX: usize = 64;
/// How much is read at once beside a payload's own memory, in bytes.
pub const SCRATCH_BYTES: usize = 128 << 10;

const _: () = assert!(SCRATCH_BYTES <= NBD_INPUT_BYTES_MAX);

/// One NBD connection.
#[derive(Debug)]
pub struct Link {
    /// What its events carry.
    token: Token,
    /// Who is there.
    pub client: Client,
    /// What it is counted by.
    pub peer: Peer,
    /// Whether no volume is attached yet.
    pub negotiating: bool,
    /// The protocol.
    pub machine: Connection,
    /// Whether it stands in the list of links to be written.
    pub touched: bool,
    /// When a timer is set for it.
    pub timer: Option<Time>,
    socket: Socket,
    /// Whether the socket may have bytes for us.
    readable: bool,
    /// Whether the client closed its side: then only reading to the end tells that all was read.
    read_closed: bool,
    /// Whether the socket may take bytes.
    writable: bool,
    /// Whether events tell when it may again.
    watches_writable: bool,
    outgoing: VecDeque<Segment>,
    /// Bytes of the first segment that the socket has taken.
    taken: usize,
    /// Bytes in `outgoing` that the socket has not taken. Bounded by the machine, which wants no
    /// input while too much of it waits.
    unsent: usize,
}

impl Link {
    /// A connection that was accepted.
    pub fn new(
        now: Time,
        token: Token,
        socket: Socket,
        (peer, client): (Peer, Client),
        effects: &mut Vec<Effect>,
    ) -> Link {
        let settings = Settings { can_multi_conn: peer.is_one_client(), is_local: peer.is_local() };
        Link {
            token,
            client,
            peer,
            negotiating: true,
            machine: Connection::new(now, settings, effects),
            touched: false,
            timer: None,
            socket,
            readable: true,
            read_closed: false,
            writable: true,
            watches_writable: false,
            outgoing: VecDeque::new(),
            taken: 0,
            unsent: 0,
        }
    }

    /// The socket has news.
    pub fn handle_event(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.read_closed |= event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
    }

    /// Whether the socket may have bytes, wanted or not.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether reading would bring something, as far as is known.
    pub fn wants_read(&self) -> bool {
        self.readable && self.machine.wants_input()
    }

    /// Reads what the socket has, up to a round's share, and gives it to the machine.
    pub fn read(&mut self, now: Time, scratch: &mut [u8], effects: &mut Vec<Effect>) {
        let mut share = ROUND_BYTES_MAX;
        while self.wants_read() && share > 0 {
            let target = self.machine.payload_target().unwrap_or_default();
            let wanted = target.len();
            let room = wanted + scratch.len();
            let mut slices = [IoSliceMut::new(target), IoSliceMut::new(scratch)];
            let skipped = usize::from(wanted == 0);
            match self.socket.read_vectored(&mut slices[skipped..]) {
                Ok(0) => {
                    self.readable = false;
                    self.machine.handle_eof(now, effects);
                }
                Ok(count) => {
                    // Less than asked for: the socket is empty, and news will come as an event.
                    self.readable = count == room || self.read_closed;
                    share = share.saturating_sub(count);
                    let filled = count.min(wanted);
                    if filled > 0 {
                        self.machine.handle_payload(now, filled, effects);
                    }
                    if count > filled {
                        self.machine.handle_bytes(now, &scratch[..count - filled], effects);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(_) => {
                    self.readable = false;
                    self.machine.handle_eof(now, effects);
                }
            }
        }
    }

    /// Appends to what goes out.
    pub fn send(&mut self, segment: Segment) {
        self.unsent += segment.as_slice().len();
        self.outgoing.push_back(segment);
    }

    /// Writes what the socket takes, and tells the machine what it did not.
    pub fn write(&mut self, now: Time, registry: &Registry, effects: &mut Vec<Effect>) {
        while self.unsent > 0 && self.writable {
            let mut slices = [IoSlice::new(&[]); PIECES_MAX];
            let mut count = 0;
            for (slice, segment) in slices.iter_mut().zip(&self.outgoing) {
                *slice =
                    IoSlice::new(&segment.as_slice()[if count == 0 { self.taken } else { 0 }..]);
                count += 1;
            }
            match self.socket.write_vectored(&slices[..count]) {
                Ok(bytes) => self.handle_written(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    if !self.watches_writable {
                        self.watches_writable = true;
                        if self.socket.watch(registry, self.token, true).is_err() {
                            return self.machine.handle_eof(now, effects);
                        }
                    }
                }
                Err(_) => {
                    self.writable = false;
                    return self.machine.handle_eof(now, effects);
                }
            }
        }
        self.machine.handle_unsent(now, self.unsent, effects);
    }

    /// Whether output could be written now.
    pub fn wants_write(&self) -> bool {
        self.unsent > 0 && self.writable
    }

    /// Ends the events about writing once they tell nothing that is wanted.
    pub fn unwatch(&mut self, registry: &Registry) -> io::Result<()> {
        if !self.watches_writable || self.unsent > 0 {
            return Ok(());
        }
        self.watches_writable = false;
        self.socket.watch(registry, self.token, false)
    }

    fn handle_written(&mut self, bytes: usize) {
        self.unsent -= bytes;
        self.taken += bytes;
        while let Some(first) = self.outgoing.front()
            && self.taken >= first.as_slice().len()
        {
            self.taken -= first.as_slice().len();
            self.outgoing.pop_front();
        }
    }
}
