//! Between the sockets of other nodes and the engine, which has the links.

use super::DataThread;
use crate::{
    identity::{Neighbour, Seed},
    join::{Application, Verdict},
    peers::{Arrival, Links, PORT_DEFAULT, Peers},
};
use engine::{
    Engine, Input, Output, PeerInput,
    admin::{AdminError, AdminErrorKind, AdminReply, AdminToken},
};
use link::CloseReason;
use proto::{NodeId, Time, wire::Hello};
use std::net::SocketAddr;

/// The links as the sockets see them.
struct EngineLinks<'a> {
    engine: &'a mut Engine,
    outputs: &'a mut Vec<Output>,
}

impl EngineLinks<'_> {
    fn tell(&mut self, now: Time, node: NodeId, input: PeerInput) {
        self.engine.handle(now, Input::Peer { node, input }, self.outputs);
    }
}

impl Links for EngineLinks<'_> {
    fn accepted(&mut self, now: Time, hello: &Hello, nonce: u64) -> Result<u64, CloseReason> {
        let accepted = self.engine.handle_accepted(now, hello, nonce, self.outputs);
        accepted.map(|(_, connection)| connection)
    }

    fn dialled(&mut self, now: Time, peer: NodeId, connection: u64, nonce: u64) {
        self.tell(now, peer, PeerInput::Dialled { connection, nonce });
    }

    fn dial_failed(&mut self, now: Time, peer: NodeId, connection: u64) {
        self.tell(now, peer, PeerInput::DialFailed { connection });
    }

    fn lost(&mut self, now: Time, peer: NodeId, connection: u64) {
        self.tell(now, peer, PeerInput::Lost { connection });
    }

    fn bytes(&mut self, now: Time, peer: NodeId, connection: u64, bytes: &[u8]) {
        self.engine.handle_peer_bytes(now, peer, connection, bytes, self.outputs);
    }

    fn payload_target(&mut self, peer: NodeId, connection: u64) -> Option<&mut [u8]> {
        self.engine.peer_payload_target(peer, connection)
    }

    fn payload(&mut self, now: Time, peer: NodeId, connection: u64, filled: usize) {
        self.engine.handle_peer_payload(now, peer, connection, filled, self.outputs);
    }

    fn with_output(&self) -> Vec<(NodeId, u64)> {
        self.engine.peers_with_output().collect()
    }

    fn output(&self, peer: NodeId, connection: u64) -> impl Iterator<Item = &[u8]> {
        self.engine.peer_output(peer, connection)
    }

    fn sent(&mut self, now: Time, peer: NodeId, connection: u64, count: usize) {
        self.engine.handle_peer_sent(now, peer, connection, count);
    }
}

impl DataThread {
    fn with_peers(&mut self, act: impl FnOnce(&mut Peers, &mut EngineLinks<'_>)) {
        let mut links = EngineLinks { engine: &mut self.engine, outputs: &mut self.outputs };
        act(&mut self.peers, &mut links);
    }

    /// Carries bytes between sockets and links, and lets machines ask that want to join.
    pub(super) fn turn_peers(&mut self, now: Time) {
        if !self.peers.wants_turn(now) {
            return;
        }
        self.expect_nodes();
        self.with_peers(|peers, links| peers.turn(now, links));
        self.engine_owes = true;
        for Arrival { id, application, from } in self.peers.arrivals() {
            let Application { applicant, name, mut addresses } = application;
            if addresses.is_empty() {
                // Where it asks from, and the port that nodes listen at.
                let guess = SocketAddr::new(from.ip(), PORT_DEFAULT).to_string();
                addresses.extend(guess.parse::<Seed>());
            }
            let token = AdminToken(self.next_token);
            self.next_token += 1;
            self.applications.insert(token, (id, applicant.node, from));
            let addresses = addresses.iter().map(Seed::to_string);
            let addresses = addresses.take(proto::limits::NODE_ADDRESSES_MAX).collect();
            self.tell(now, Input::Admit { token, applicant, name, addresses });
        }
    }

    /// Tells the sockets where nodes are, when another map is there.
    fn expect_nodes(&mut self) {
        let map = self.engine.map();
        if std::mem::replace(&mut self.expected, map.epoch()) == map.epoch() {
            return;
        }
        let addresses = map.nodes().flat_map(|node| map.addresses_of(node.id));
        let addresses = addresses.filter_map(|text| text.parse::<SocketAddr>().ok());
        self.peers.expect(addresses.map(|address| address.ip()));
    }

    /// Writes what links have for their sockets.
    pub(super) fn write_peers(&mut self, now: Time) {
        if self.engine.peers_with_output().next().is_some() {
            self.with_peers(|peers, links| peers.write(now, links));
            // A socket that takes nothing must not keep the loop going round.
            self.engine_owes |= !self.outputs.is_empty();
        }
    }

    pub(super) fn dial(&mut self, now: Time, node: NodeId, connection: u64, to: &[String]) {
        // Names would have to be looked up, which waits: agreed addresses are numbers.
        let addresses: Vec<SocketAddr> = to.iter().filter_map(|text| text.parse().ok()).collect();
        self.with_peers(|peers, links| peers.dial(now, node, connection, &addresses, links));
        self.engine_owes = true;
    }

    /// The end of an application, if the token is that of one.
    pub(super) fn decide(
        &mut self,
        now: Time,
        token: AdminToken,
        result: &Result<AdminReply, AdminError>,
    ) {
        let Some((id, node, from)) = self.applications.remove(&token) else { return };
        let verdict = match result {
            Ok(_) => {
                tracing::info!(%node, %from, "a machine has joined the cluster");
                let neighbours = self.engine.known_nodes().into_iter().map(|(node, addresses)| {
                    let addresses = addresses.iter().filter_map(|text| text.parse().ok());
                    Neighbour { node, addresses: addresses.collect() }
                });
                let neighbours = neighbours.filter(|known| known.node != node).collect();
                Verdict::Admitted { neighbours }
            }
            Err(error) => {
                tracing::warn!(%node, %from, "a machine was not let in: {error}");
                let try_again = error.kind == AdminErrorKind::Unavailable;
                Verdict::Refused { try_again, sentence: error.sentence.clone() }
            }
        };
        self.peers.decide(now, id, verdict);
    }
}
