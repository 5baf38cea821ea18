//! The three messages of joining, as bytes: a head of 8 bytes, then fields in the order in which
//! they stand in the types. Integers are little-endian; whatever has a length has a limit.

use crate::identity::{
    NEIGHBOURS_MAX, Neighbour, NodeKey, PublicKey, SEEDS_MAX as ADDRESSES_MAX, Seed,
};
use proto::{ClusterId, NodeId};

/// What each message begins with.
const MAGIC: [u8; 4] = *b"SdJo";
/// The version of all messages.
const VERSION: u8 = 1;
/// Length of a head: magic, version, kind, length of the body.
pub const HEAD_BYTES: usize = 8;
/// Longest message, in bytes, with its head.
pub const MESSAGE_BYTES_MAX: usize = 60 << 10;
/// Longest certificate or key that is taken, in bytes.
const CREDENTIAL_BYTES_MAX: usize = 2048;
/// Longest name of a node, in bytes.
const NAME_BYTES_MAX: usize = proto::limits::NODE_NAME_BYTES_MAX;
/// Longest sentence of a refusal, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

const _: () = assert!(
    HEAD_BYTES
        + 16
        + 3 * (2 + CREDENTIAL_BYTES_MAX)
        + 1
        + NEIGHBOURS_MAX * (16 + 1 + ADDRESSES_MAX * 257)
        <= MESSAGE_BYTES_MAX
);

/// A machine asks to be let in.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// Into which cluster.
    pub cluster: ClusterId,
    /// The name of its token.
    pub token: u64,
    /// The token's secret.
    pub secret: [u8; 16],
    /// The identity that it has chosen.
    pub node: NodeId,
    /// The public half of its key.
    pub key: PublicKey,
    /// What people call it, at most `NODE_NAME_BYTES_MAX` bytes.
    pub name: String,
    /// Where others may reach it, at most as many as a token has. Empty: at the address that it
    /// asks from.
    pub addresses: Vec<Seed>,
    /// By the key, over all of this and the connection that it is said on: see [`Request::sign`].
    pub signature: [u8; 64],
}

/// What the bytes that are signed begin with: a signature over them is one for joining.
const SIGNED: &[u8] = b"sheepdog join request 1";

impl Request {
    /// Proves that the private half of the key is here, on the connection with this binding (see
    /// [`super::BINDING`]) and on no other.
    pub fn sign(&mut self, key: &NodeKey, binding: &[u8; 32]) {
        self.signature = key.sign(&self.signed(binding));
    }

    /// Whether who made it has the private half of the key, and made it for this connection.
    pub fn is_signed(&self, binding: &[u8; 32]) -> bool {
        self.key.has_signed(&self.signed(binding), &self.signature)
    }

    fn signed(&self, binding: &[u8; 32]) -> Vec<u8> {
        let mut out = [SIGNED, binding].concat();
        self.put(&mut out);
        out
    }

    /// All but the signature.
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.cluster.0.to_le_bytes());
        out.extend_from_slice(&self.token.to_le_bytes());
        out.extend_from_slice(&self.secret);
        out.extend_from_slice(&self.node.0.to_le_bytes());
        out.extend_from_slice(&self.key.0);
        put_bytes(out, cut(&self.name, NAME_BYTES_MAX).as_bytes());
        put_addresses(out, &self.addresses);
    }
}

/// Without the secret.
impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {} ({:?}) with token {:016x}", self.node, self.name, self.token)
    }
}

/// It is let in.
#[derive(Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The cluster, once more.
    pub cluster: ClusterId,
    /// The certificate of the cluster's authority.
    pub authority: Vec<u8>,
    /// The authority's key, with which the new node will let in others.
    pub authority_key: Vec<u8>,
    /// The new node's certificate.
    pub certificate: Vec<u8>,
    /// Nodes of the cluster, at most [`NEIGHBOURS_MAX`].
    pub neighbours: Vec<Neighbour>,
}

/// Without keys.
impl std::fmt::Debug for Welcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "welcome to cluster {} with {:?}", self.cluster, self.neighbours)
    }
}

/// It is not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Whether asking again, or another node, may do better.
    pub try_again: bool,
    /// One sentence with cause and remedy, at most 1024 bytes.
    pub sentence: String,
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    Request(Request),
    Welcome(Welcome),
    Refusal(Refusal),
}

/// Why bytes are no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MessageError {
    /// It is something else.
    #[error("what came is no message about joining; see what runs at that address")]
    Magic,
    /// Of a later version.
    #[error(
        "the other side speaks version {0} about joining and this one {VERSION}; run the same \
         version of sheep on both"
    )]
    Version(u8),
    /// Longer than any.
    #[error("a message about joining is longer than its limit; see what runs at that address")]
    TooLong,
    /// Not well-formed.
    #[error("a message about joining is malformed; see what runs at that address")]
    Malformed,
}

impl Message {
    /// As bytes. Texts that are too long are cut, and addresses that are too many left out.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEAD_BYTES];
        let kind = match self {
            Message::Request(request) => {
                request.put(&mut out);
                out.extend_from_slice(&request.signature);
                1
            }
            Message::Welcome(welcome) => {
                out.extend_from_slice(&welcome.cluster.0.to_le_bytes());
                for credential in [&welcome.authority, &welcome.authority_key, &welcome.certificate]
                {
                    assert!(credential.len() <= CREDENTIAL_BYTES_MAX, "ours are much shorter");
                    put_bytes(&mut out, credential);
                }
                let told = welcome.neighbours.len().min(NEIGHBOURS_MAX);
                out.push(told as u8);
                for neighbour in &welcome.neighbours[..told] {
                    out.extend_from_slice(&neighbour.node.0.to_le_bytes());
                    put_addresses(&mut out, &neighbour.addresses);
                }
                2
            }
            Message::Refusal(refusal) => {
                out.push(refusal.try_again.into());
                put_bytes(&mut out, cut(&refusal.sentence, TEXT_BYTES_MAX).as_bytes());
                3
            }
        };
        let length = (out.len() - HEAD_BYTES) as u16;
        out[..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = kind;
        out[6..HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
        out
    }

    /// The message at the start of these bytes, which must be all there is; nothing while some of
    /// it is missing. What cannot become one is refused as soon as that shows.
    pub fn decode(bytes: &[u8]) -> Result<Option<Message>, MessageError> {
        let known = bytes.len().min(MAGIC.len());
        if bytes[..known] != MAGIC[..known] {
            return Err(MessageError::Magic);
        }
        if let Some(&version) = bytes.get(4)
            && version != VERSION
        {
            return Err(MessageError::Version(version));
        }
        let Some((head, body)) = bytes.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let length = usize::from(u16::from_le_bytes([head[6], head[7]]));
        if HEAD_BYTES + length > MESSAGE_BYTES_MAX {
            return Err(MessageError::TooLong);
        }
        if body.len() < length {
            return Ok(None);
        }
        if body.len() > length {
            return Err(MessageError::Malformed);
        }
        let mut fields = Fields(body);
        let message = match head[5] {
            1 => fields.request().map(Message::Request),
            2 => fields.welcome().map(Message::Welcome),
            3 => fields.refusal().map(Message::Refusal),
            _ => None,
        };
        match message {
            Some(message) if fields.0.is_empty() => Ok(Some(message)),
            _ => Err(MessageError::Malformed),
        }
    }
}

/// The longest beginning of a text that has at most so many bytes.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_addresses(out: &mut Vec<u8>, addresses: &[Seed]) {
    let addresses = &addresses[..addresses.len().min(ADDRESSES_MAX)];
    out.push(addresses.len() as u8);
    for address in addresses {
        put_bytes(out, address.as_str().as_bytes());
    }
}

/// What is left of a body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn bytes(&mut self, max: usize) -> Option<&'a [u8]> {
        let length = usize::from(u16::from_le_bytes(self.take()?));
        let (taken, rest) = self.0.split_at_checked(length).filter(|_| length <= max)?;
        self.0 = rest;
        Some(taken)
    }

    fn text(&mut self, max: usize) -> Option<String> {
        String::from_utf8(self.bytes(max)?.to_vec()).ok()
    }

    fn id(&mut self) -> Option<u128> {
        Some(u128::from_le_bytes(self.take()?)).filter(|&id| id != 0)
    }

    fn addresses(&mut self) -> Option<Vec<Seed>> {
        let [count] = self.take()?;
        if usize::from(count) > ADDRESSES_MAX {
            return None;
        }
        (0..count).map(|_| self.text(256)?.parse().ok()).collect()
    }

    fn neighbours(&mut self) -> Option<Vec<Neighbour>> {
        let [count] = self.take()?;
        if usize::from(count) > NEIGHBOURS_MAX {
            return None;
        }
        let one = |_| Some(Neighbour { node: NodeId(self.id()?), addresses: self.addresses()? });
        (0..count).map(one).collect()
    }

    fn request(&mut self) -> Option<Request> {
        Some(Request {
            cluster: ClusterId(self.id()?),
            token: u64::from_le_bytes(self.take()?),
            secret: self.take()?,
            node: NodeId(self.id()?),
            key: PublicKey(self.take()?),
            name: self.text(NAME_BYTES_MAX)?,
            addresses: self.addresses()?,
            signature: self.take()?,
        })
    }

    fn welcome(&mut self) -> Option<Welcome> {
        Some(Welcome {
            cluster: ClusterId(self.id()?),
            authority: self.bytes(CREDENTIAL_BYTES_MAX)?.to_vec(),
            authority_key: self.bytes(CREDENTIAL_BYTES_MAX)?.to_vec(),
            certificate: self.bytes(CREDENTIAL_BYTES_MAX)?.to_vec(),
            neighbours: self.neighbours()?,
        })
    }

    fn refusal(&mut self) -> Option<Refusal> {
        let [try_again] = self.take()?;
        if try_again > 1 {
            return None;
        }
        let sentence = self.text(TEXT_BYTES_MAX)?;
        Some(Refusal { try_again: try_again == 1, sentence })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn request() -> Request {
        Request {
            cluster: ClusterId(1),
            token: 2,
            secret: [3; 16],
            node: NodeId(4),
            key: PublicKey([5; 32]),
            name: "beta".to_string(),
            addresses: vec!["192.0.2.1:7117".parse().expect("right")],
            signature: [6; 64],
        }
    }

    fn welcome() -> Welcome {
        let addresses = vec!["h:1".parse().expect("right"); ADDRESSES_MAX];
        Welcome {
            cluster: ClusterId(1),
            authority: vec![1; CREDENTIAL_BYTES_MAX],
            authority_key: Vec::new(),
            certificate: vec![3; 300],
            neighbours: vec![Neighbour { node: NodeId(9), addresses }; NEIGHBOURS_MAX],
        }
    }

    fn messages() -> Vec<Message> {
        let refusal = |try_again| Refusal { try_again, sentence: "no, because".to_string() };
        vec![
            Message::Request(request()),
            Message::Request(Request { name: String::new(), addresses: vec![], ..request() }),
            Message::Welcome(welcome()),
            Message::Refusal(refusal(false)),
            Message::Refusal(refusal(true)),
        ]
    }

    #[test]
    fn messages_come_back_and_each_beginning_of_one_waits_for_the_rest() {
        for message in messages() {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes), Ok(Some(message)));
            for length in 0..bytes.len() {
                assert_eq!(Message::decode(&bytes[..length]), Ok(None), "{length}");
            }
            let more = [&bytes[..], &[0]].concat();
            assert_eq!(Message::decode(&more), Err(MessageError::Malformed));
        }
        assert!(!format!("{:?}", request()).contains("3, 3"));
    }

    #[test]
    fn a_signature_holds_for_one_key_one_connection_and_every_field() {
        let key = NodeKey::draw();
        let mut right = Request { key: key.public(), ..request() };
        right.sign(&key, &[9; 32]);
        assert!(right.is_signed(&[9; 32]));
        assert!(!right.is_signed(&[8; 32]), "another connection");
        let Ok(Some(Message::Request(read))) =
            Message::decode(&Message::Request(right.clone()).encode())
        else {
            panic!()
        };
        assert!(read.is_signed(&[9; 32]));
        let other = PublicKey([5; 32]);
        let addresses = vec!["192.0.2.66:7117".parse().expect("right")];
        for wrong in [
            Request { cluster: ClusterId(2), ..right.clone() },
            Request { token: 3, ..right.clone() },
            Request { secret: [4; 16], ..right.clone() },
            Request { node: NodeId(5), ..right.clone() },
            Request { key: other, ..right.clone() },
            Request { key: NodeKey::draw().public(), ..right.clone() },
            Request { name: "gamma".to_string(), ..right.clone() },
            Request { addresses, ..right.clone() },
            Request { signature: [0; 64], ..right.clone() },
        ] {
            assert!(!wrong.is_signed(&[9; 32]), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_too_long_is_cut_where_it_is_made_and_refused_where_it_is_read() {
        let name = "ä".repeat(NAME_BYTES_MAX);
        let long = Message::Request(Request { name, ..request() });
        let Ok(Some(Message::Request(cut))) = Message::decode(&long.encode()) else { panic!() };
        assert_eq!(cut.name.len(), NAME_BYTES_MAX - 1);
        let head =
            |kind, length: u16| [&MAGIC[..], &[VERSION, kind], &length.to_le_bytes()].concat();
        assert_eq!(Message::decode(&head(1, 60 << 10)), Err(MessageError::TooLong));
        assert_eq!(Message::decode(&head(4, 0)), Err(MessageError::Malformed));
        assert_eq!(Message::decode(b"GET "), Err(MessageError::Magic));
        assert_eq!(Message::decode(b"SdJo\x02"), Err(MessageError::Version(2)));
    }

    proptest! {
        /// Whatever comes is a message, the beginning of one, or refused: never a panic, and what
        /// is taken is what would be written.
        #[test]
        fn any_bytes_are_judged(
            kind in 0u8..6,
            body in prop::collection::vec(any::<u8>(), 0..600),
            claimed in prop::option::of(any::<u16>()),
        ) {
            let length = claimed.unwrap_or(body.len() as u16);
            let bytes = [&MAGIC[..], &[VERSION, kind], &length.to_le_bytes(), &body].concat();
            if let Ok(Some(message)) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }

        /// The same near what is right.
        #[test]
        fn spoiled_messages_are_judged(which in 0usize..5, place in any::<u16>(), with: u8) {
            let mut bytes = messages()[which].encode();
            let place = usize::from(place) % bytes.len();
            bytes[place] = with;
            if let Ok(Some(message)) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
