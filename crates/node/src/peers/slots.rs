//! One place for each connection, and how many there may be of those that nobody knows yet.

use super::stream::Stream;
use crate::join::Host;
use link::Greeter;
use proto::{
    NodeId, Time,
    limits::{PEER_GREETINGS_MAX, PEER_GREETINGS_PER_ADDRESS_MAX},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

/// One connection.
pub struct Slot {
    pub stream: Stream,
    /// Where its other end is.
    pub remote: SocketAddr,
    pub state: State,
    /// When something is to be done about it.
    pub deadline: Time,
    /// Whether it counts among those that have not shown who they are.
    pub is_greeting: bool,
}

/// How far it has come.
pub enum State {
    /// It is being made for a link.
    Dialling { peer: NodeId, connection: u64 },
    /// It was accepted, and has not said what it is for.
    Unknown,
    /// A node, by its certificate; its hello is awaited.
    Greeting(Box<Greeter>),
    /// A machine that wants to join.
    Joining(Box<Host>),
    /// A link has it.
    Open { peer: NodeId, connection: u64 },
    /// All was said, and the other side is given a moment to hear it.
    Closing,
}

/// Counts connections whose other side has not shown who it is.
#[derive(Debug, Default)]
pub struct Greetings {
    by_address: BTreeMap<IpAddr, usize>,
    all: usize,
}

impl Greetings {
    /// Counts one more from this address. Why not, if there are too many.
    pub fn admit(&mut self, address: IpAddr) -> Result<(), &'static str> {
        if self.all >= PEER_GREETINGS_MAX {
            return Err("too many connections have not shown who they are");
        }
        let count = self.by_address.entry(address).or_default();
        if *count >= PEER_GREETINGS_PER_ADDRESS_MAX {
            return Err("too many connections of its address have not shown who they are");
        }
        *count += 1;
        self.all += 1;
        Ok(())
    }

    /// One from this address has shown who it is, or is gone.
    pub fn release(&mut self, address: IpAddr) {
        let count = self.by_address.get_mut(&address).expect("only admitted ones are told of");
        *count -= 1;
        if *count == 0 {
            self.by_address.remove(&address);
        }
        self.all -= 1;
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_the_place_of_all_others() {
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let mut greetings = Greetings::default();
        for _ in 0..PEER_GREETINGS_PER_ADDRESS_MAX {
            greetings.admit(address(1)).expect("below the cap");
        }
        assert!(greetings.admit(address(1)).is_err());
        for last in 2.. {
            if greetings.all == PEER_GREETINGS_MAX {
                break;
            }
            greetings.admit(address(last)).expect("below the cap");
        }
        assert!(greetings.admit(address(255)).is_err());
        greetings.release(address(1));
        greetings.admit(address(255)).expect("one is gone");
    }
}
