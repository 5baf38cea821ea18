//! A connection that was accepted, before anybody knows whose it is.

use crate::CloseReason;
use crate::incoming::{Incoming, Progress};
use proto::limits::LINK_HELLO_MS_MAX;
use proto::wire::{HEADER_BYTES, Hello, Identity, Kind, Seal, note};
use proto::{Duration, Time};

/// Reads the first frame of an accepted connection. Holds no more than one hello, and no longer
/// than `LINK_HELLO_MS_MAX`.
#[derive(Debug)]
pub struct Greeter {
    own: Identity,
    incoming: Incoming,
    deadline: Time,
}

impl Greeter {
    /// Somebody has connected to this node.
    pub fn new(now: Time, own: Identity) -> Greeter {
        let deadline = now + Duration::from_millis(LINK_HELLO_MS_MAX);
        Greeter { own, incoming: Incoming::new(), deadline }
    }

    /// Takes bytes of the other side. Once the hello is there, it belongs to the link of the node
    /// that it names; if there is none, the reason is [`CloseReason::UnknownNode`]. After a reason
    /// the connection is to be closed, with [`Greeter::farewell`].
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<Option<Hello>, CloseReason> {
        let mut rest = bytes;
        match self.incoming.take(&mut rest, Seal::HELLO)? {
            Progress::Incomplete => return Ok(None),
            Progress::Asks(_) => return Err(CloseReason::BeforeHello),
            Progress::Complete => {}
        }
        let (header, head, _) = self.incoming.finish();
        if header.kind != Kind::Hello {
            return Err(CloseReason::BeforeHello);
        }
        let hello = Hello::decode(&header, &head[HEADER_BYTES..])?;
        judge(&self.own, &hello)?;
        if !rest.is_empty() {
            return Err(CloseReason::BeforeHello);
        }
        Ok(Some(hello))
    }

    /// When the other side has taken too long: [`CloseReason::HelloTooSlow`].
    pub fn deadline(&self) -> Time {
        self.deadline
    }

    /// What to write to a connection that is refused before it has had our hello.
    pub fn farewell(reason: &CloseReason) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(why) = reason.farewell() {
            note::put_goodbye(&mut bytes, Seal::HELLO, why, &reason.to_string());
        }
        bytes
    }
}

/// Whether a hello is for this node at all.
pub fn judge(own: &Identity, hello: &Hello) -> Result<(), CloseReason> {
    let Identity { cluster, node, .. } = hello.identity;
    if cluster != own.cluster {
        return Err(CloseReason::OtherCluster { theirs: cluster, ours: own.cluster });
    }
    if node == own.node {
        return Err(CloseReason::OwnIdentity { node });
    }
    if hello.peer != own.node {
        return Err(CloseReason::MeantForAnother { own: own.node, meant: hello.peer });
    }
    Ok(())
}
