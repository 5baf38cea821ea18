//! How many connections there may be: in all, of one peer, and of one peer before it decided.

use super::socket::Peer;
use proto::limits::{
    NBD_CONNECTIONS_MAX, NBD_CONNECTIONS_PER_CLIENT_MAX, NBD_HANDSHAKES_PER_CLIENT_MAX,
};
use std::collections::BTreeMap;

/// Counts connections.
#[derive(Debug, Default)]
pub struct Caps {
    peers: BTreeMap<Peer, Count>,
    connections: usize,
}

#[derive(Debug, Default)]
struct Count {
    connections: usize,
    negotiating: usize,
}

impl Caps {
    /// Counts one more connection of this peer, which negotiates. Why not, if a cap is reached.
    pub fn admit(&mut self, peer: &Peer) -> Result<(), &'static str> {
        if self.connections >= NBD_CONNECTIONS_MAX {
            return Err("there are too many NBD connections");
        }
        let count = self.peers.entry(peer.clone()).or_default();
        if count.connections >= NBD_CONNECTIONS_PER_CLIENT_MAX {
            return Err("this client has too many NBD connections");
        }
        if count.negotiating >= NBD_HANDSHAKES_PER_CLIENT_MAX {
            return Err("this client has too many NBD connections without a volume");
        }
        count.connections += 1;
        count.negotiating += 1;
        self.connections += 1;
        Ok(())
    }

    /// A connection of this peer has attached its volume.
    pub fn settle(&mut self, peer: &Peer) {
        self.count(peer).negotiating -= 1;
    }

    /// A connection of this peer is gone.
    pub fn release(&mut self, peer: &Peer, negotiating: bool) {
        let count = self.count(peer);
        count.connections -= 1;
        count.negotiating -= usize::from(negotiating);
        if count.connections == 0 {
            self.peers.remove(peer);
        }
        self.connections -= 1;
    }

    fn count(&mut self, peer: &Peer) -> &mut Count {
        self.peers.get_mut(peer).expect("only admitted peers are told of")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_cannot_take_the_place_of_the_others() {
        let (greedy, modest) = (Peer::Process(1, 1), Peer::Process(2, 1));
        let mut caps = Caps::default();
        for _ in 0..NBD_HANDSHAKES_PER_CLIENT_MAX {
            caps.admit(&greedy).expect("below the cap");
        }
        assert!(caps.admit(&greedy).expect_err("capped").contains("without a volume"));
        caps.settle(&greedy);
        caps.admit(&greedy).expect("one has decided");
        caps.admit(&modest).expect("others are not disturbed");
        caps.release(&greedy, true);
        caps.admit(&greedy).expect("one has gone");

        let mut caps = Caps::default();
        for _ in 0..NBD_CONNECTIONS_PER_CLIENT_MAX {
            caps.admit(&greedy).expect("below the cap");
            caps.settle(&greedy);
        }
        assert!(caps.admit(&greedy).is_err());
        for _ in 0..NBD_CONNECTIONS_PER_CLIENT_MAX {
            caps.release(&greedy, false);
        }
        assert!(caps.peers.is_empty() && caps.connections == 0);
    }

    #[test]
    fn there_is_a_cap_over_all() {
        let mut caps = Caps::default();
        for pid in 0..NBD_CONNECTIONS_MAX {
            caps.admit(&Peer::Process(pid as i32, 0)).expect("below the cap");
        }
        assert!(caps.admit(&Peer::UnknownProcess).is_err());
        caps.release(&Peer::Process(5, 0), true);
        caps.admit(&Peer::UnknownProcess).expect("one has gone");
    }
}
