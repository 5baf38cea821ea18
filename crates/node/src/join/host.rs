//! The side that is asked: one connection of a machine that wants to join.

use super::message::{Message, MessageError, Refusal, Request, Welcome};
use crate::identity::{Authority, Neighbour, PublicKey, Seed, TokenText, digest};
use cluster::{Applicant, TokenId};
use proto::{
    ClusterId, Duration, NodeId, Time,
    limits::{JOIN_DECIDE_MS_MAX, JOIN_REFUSE_MS, JOIN_REQUEST_MS_MAX},
};

/// What came of looking at a request. Everything that the agreed state decides on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Application {
    /// To be vetted by the map, then to be put to the log.
    pub applicant: Applicant,
    /// What people call the machine.
    pub name: String,
    /// Where others may reach it; empty: at the address that it asks from.
    pub addresses: Vec<Seed>,
}

/// What the cluster says to an application.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is a node now.
    Admitted {
        /// Nodes of the cluster.
        neighbours: Vec<Neighbour>,
    },
    /// It is not.
    Refused {
        /// Whether asking again, or another node, may do better.
        try_again: bool,
        /// One sentence with cause and remedy.
        sentence: String,
    },
}

/// Why a connection ends without an answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HostError {
    /// What came is no request.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// An answer, or a second request.
    #[error("a machine that wants to join said something out of turn; report this bug")]
    OutOfTurn,
    /// It took too long.
    #[error("a machine that wants to join did not say who it is in time")]
    TooSlow,
    /// It shows a public key that is somebody else's, or a request of another connection.
    #[error("a machine that wants to join has not proved that it has the key that it shows")]
    NoProof,
}

#[derive(Debug)]
enum State {
    /// The request is awaited.
    Reading,
    /// The cluster decides.
    Deciding { applicant: Applicant, key: PublicKey },
    /// The answer is known, and is given at this time.
    Answering { at: Time, answer: Message },
    /// The answer was given.
    Done,
}

/// One connection of a machine that wants to join. Holds no more than one message.
///
/// All refusals are given at the same time after the request came, so that it does not show how
/// far the request got.
#[derive(Debug)]
pub struct Host {
    cluster: ClusterId,
    /// What the request must be signed for.
    binding: [u8; 32],
    incoming: Vec<u8>,
    state: State,
    deadline: Time,
    /// Refusals are given from then on.
    refuse_at: Time,
}

impl Host {
    /// A machine has connected, on the connection with this binding (see [`super::BINDING`]).
    pub fn new(now: Time, cluster: ClusterId, binding: [u8; 32]) -> Host {
        let deadline = now + Duration::from_millis(JOIN_REQUEST_MS_MAX);
        let (incoming, state) = (Vec::new(), State::Reading);
        Host { cluster, binding, incoming, state, deadline, refuse_at: now }
    }

    /// Takes bytes of the machine. Once the request is there, the cluster is to be asked;
    /// [`Host::answer`] says what came of it.
    pub fn handle_bytes(
        &mut self,
        now: Time,
        bytes: &[u8],
    ) -> Result<Option<Application>, HostError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let State::Reading = self.state else { return Err(HostError::OutOfTurn) };
        self.incoming.extend_from_slice(bytes);
        let request = match Message::decode(&self.incoming)? {
            None => return Ok(None),
            Some(Message::Request(request)) => request,
            Some(_) => return Err(HostError::OutOfTurn),
        };
        // Node ids and public keys are known to many, and who is welcome gets the authority's key.
        if !request.is_signed(&self.binding) {
            return Err(HostError::NoProof);
        }
        self.incoming = Vec::new();
        self.refuse_at = now + Duration::from_millis(JOIN_REFUSE_MS);
        self.deadline = now + Duration::from_millis(JOIN_DECIDE_MS_MAX);
        let Request { cluster, token, secret, node, key, name, addresses, .. } = request;
        let token = TokenId(token);
        let applicant = Applicant {
            token,
            secret: TokenText::secret_digest(cluster, token, &secret),
            node,
            key: digest(&key.0),
        };
        self.state = State::Deciding { applicant, key };
        if cluster != self.cluster {
            // It does not show whether the token exists: it cannot be one of ours.
            let sentence = cluster::Refusal::TokenUnknown.to_string();
            self.refuse(Refusal { try_again: false, sentence });
            return Ok(None);
        }
        Ok(Some(Application { applicant, name, addresses }))
    }

    /// The cluster has decided.
    pub fn answer(&mut self, now: Time, verdict: Verdict, authority: &Authority) {
        let State::Deciding { applicant, key } = &self.state else { return };
        match verdict {
            Verdict::Admitted { neighbours } => {
                let answer = Message::Welcome(Welcome {
                    cluster: self.cluster,
                    authority: authority.certificate().to_vec(),
                    authority_key: authority.key().bytes(),
                    certificate: authority.certify(applicant.node, key).to_vec(),
                    neighbours,
                });
                self.state = State::Answering { at: now, answer };
            }
            Verdict::Refused { try_again, sentence } => {
                self.refuse(Refusal { try_again, sentence });
            }
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        let answer = Message::Refusal(refusal);
        self.state = State::Answering { at: self.refuse_at, answer };
    }

    /// What is to be written, and after it the connection is to be closed; nothing while there is
    /// nothing to say yet.
    pub fn output(&mut self, now: Time) -> Option<Vec<u8>> {
        match &self.state {
            State::Answering { at, answer } if *at <= now => {
                let bytes = answer.encode();
                self.state = State::Done;
                Some(bytes)
            }
            _ => None,
        }
    }

    /// Whether the machine has shown a request.
    pub fn has_asked(&self) -> bool {
        !matches!(self.state, State::Reading)
    }

    /// Whether the cluster is to decide on it.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::Deciding { .. })
    }

    /// The node that it wants to be, once it has asked.
    pub fn applicant(&self) -> Option<NodeId> {
        match &self.state {
            State::Deciding { applicant, .. } => Some(applicant.node),
            _ => None,
        }
    }

    /// When something is to be written, or [`Host::handle_deadline`] wants to be called.
    pub fn deadline(&self) -> Time {
        match &self.state {
            State::Answering { at, .. } => *at,
            _ => self.deadline,
        }
    }

    /// Time has come: who did not ask in time is closed, and who waits for the cluster is told to
    /// try again.
    pub fn handle_deadline(&mut self, now: Time) -> Result<(), HostError> {
        if now < self.deadline {
            return Ok(());
        }
        match self.state {
            State::Reading => Err(HostError::TooSlow),
            State::Deciding { .. } => {
                let sentence = "the cluster could not decide in time, as when most of its nodes \
                                are away; try again when `dog status` says that all is well"
                    .to_string();
                self.refuse(Refusal { try_again: true, sentence });
                Ok(())
            }
            State::Answering { .. } | State::Done => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::request as unsigned;
    use super::*;
    use crate::identity::NodeKey;

    const CLUSTER: ClusterId = ClusterId(1);
    const START: Time = Time(1_000_000_000);

    fn later(ms: u64) -> Time {
        START + Duration::from_millis(ms)
    }

    const BINDING: [u8; 32] = [9; 32];

    /// A request that is right on the connection with [`BINDING`].
    fn request() -> Request {
        let key = NodeKey::draw();
        let mut request = Request { key: key.public(), ..unsigned() };
        request.sign(&key, &BINDING);
        request
    }

    fn asked() -> (Host, Application) {
        let mut host = Host::new(START, CLUSTER, BINDING);
        let bytes = Message::Request(request()).encode();
        let (last, first) = bytes.split_last().expect("not empty");
        for byte in first {
            assert_eq!(host.handle_bytes(START, &[*byte]), Ok(None));
        }
        let application = host.handle_bytes(START, &[*last]).expect("right").expect("whole");
        (host, application)
    }

    #[test]
    fn who_is_let_in_gets_everything_at_once() {
        let (mut host, application) = asked();
        let request = request();
        assert_eq!(application.name, request.name);
        assert_eq!(application.applicant.node, request.node);
        let secret = TokenText::secret_digest(CLUSTER, TokenId(2), &request.secret);
        assert_eq!(application.applicant.secret, secret);
        assert_eq!(host.output(START), None);
        let authority = Authority::found(CLUSTER);
        let neighbours = vec![Neighbour { node: NodeId(7), addresses: request.addresses }];
        let admitted = Verdict::Admitted { neighbours: neighbours.clone() };
        host.answer(START, admitted, &authority);
        let bytes = host.output(START).expect("at once");
        let Ok(Some(Message::Welcome(welcome))) = Message::decode(&bytes) else { panic!() };
        assert_eq!((welcome.cluster, welcome.neighbours), (CLUSTER, neighbours));
        assert_eq!(welcome.authority, authority.certificate().to_vec());
        assert_eq!(host.output(later(9999)), None, "once");
    }

    /// Who has a wrong token of another cluster, one that is unknown here and one that was used up
    /// must not be told apart by a clock.
    #[test]
    fn all_refusals_come_at_the_same_time() {
        let authority = Authority::found(CLUSTER);
        let mut refusals = Vec::new();
        for ms in [0, 1, JOIN_REFUSE_MS - 1] {
            let (mut host, _) = asked();
            let (try_again, sentence) = (false, "no".to_string());
            host.answer(later(ms), Verdict::Refused { try_again, sentence }, &authority);
            refusals.push(host);
        }
        let mut foreign = Host::new(START, ClusterId(9), BINDING);
        let bytes = Message::Request(request()).encode();
        assert_eq!(foreign.handle_bytes(START, &bytes), Ok(None), "nobody need be asked");
        refusals.push(foreign);
        for mut host in refusals {
            assert_eq!(host.deadline(), later(JOIN_REFUSE_MS));
            assert_eq!(host.output(later(JOIN_REFUSE_MS - 1)), None);
            let bytes = host.output(later(JOIN_REFUSE_MS)).expect("then");
            assert!(matches!(Message::decode(&bytes), Ok(Some(Message::Refusal(_)))));
        }
    }

    #[test]
    fn time_is_bounded_on_either_side_of_the_request() {
        let mut silent = Host::new(START, CLUSTER, BINDING);
        assert_eq!(silent.deadline(), later(JOIN_REQUEST_MS_MAX));
        assert_eq!(silent.handle_deadline(later(JOIN_REQUEST_MS_MAX - 1)), Ok(()));
        assert_eq!(silent.handle_deadline(later(JOIN_REQUEST_MS_MAX)), Err(HostError::TooSlow));
        let (mut host, _) = asked();
        assert_eq!(host.deadline(), later(JOIN_DECIDE_MS_MAX));
        host.handle_deadline(later(JOIN_DECIDE_MS_MAX)).expect("it is told");
        let bytes = host.output(later(JOIN_DECIDE_MS_MAX)).expect("it is told");
        let Ok(Some(Message::Refusal(refusal))) = Message::decode(&bytes) else { panic!() };
        assert!(refusal.try_again);
        // What the cluster says afterwards comes too late.
        let neighbours = Vec::new();
        host.answer(later(90_000), Verdict::Admitted { neighbours }, &Authority::found(CLUSTER));
        assert_eq!(host.output(later(90_000)), None);
    }

    /// Node ids and public keys stand in certificates, which whoever reaches the port may see.
    #[test]
    fn a_public_key_alone_gets_as_far_as_no_question() {
        for wrong in [
            Request { signature: [0; 64], ..request() },
            Request { key: NodeKey::draw().public(), ..request() },
            Request { addresses: Vec::new(), ..request() },
        ] {
            let mut host = Host::new(START, CLUSTER, BINDING);
            let bytes = Message::Request(wrong).encode();
            assert_eq!(host.handle_bytes(START, &bytes), Err(HostError::NoProof));
            assert!(!host.has_asked());
        }
        // What was heard on another connection.
        let mut host = Host::new(START, CLUSTER, [8; 32]);
        let bytes = Message::Request(request()).encode();
        assert_eq!(host.handle_bytes(START, &bytes), Err(HostError::NoProof));
    }

    #[test]
    fn nothing_but_one_request_is_taken() {
        let (mut host, _) = asked();
        let bytes = Message::Request(request()).encode();
        assert_eq!(host.handle_bytes(START, &bytes), Err(HostError::OutOfTurn));
        let mut host = Host::new(START, CLUSTER, BINDING);
        let refusal = Refusal { try_again: true, sentence: String::new() };
        let answer = Message::Refusal(refusal).encode();
        assert_eq!(host.handle_bytes(START, &answer), Err(HostError::OutOfTurn));
        let mut host = Host::new(START, CLUSTER, BINDING);
        let twice = [&bytes[..], &bytes].concat();
        assert!(host.handle_bytes(START, &twice).is_err());
        let mut host = Host::new(START, CLUSTER, BINDING);
        assert!(host.handle_bytes(START, b"GET / HTTP/1.1\r\n").is_err());
    }
}
