//! Join tokens: what lets a machine that the cluster does not know become one of its nodes.
//!
//! Of the secret in a token the cluster keeps a digest only, and counts uses in the agreed log, so
//! that a token that is used up is used up everywhere. Expiry goes by the clock of the node that is
//! asked: what a wrong clock can do is to admit, or turn away, who has a secret that was made for
//! admission (decision 0010).

use crate::command::Answer;
use crate::layer::hold;
use crate::map::Map;
use crate::refusal::Refusal;
use crate::state::State;
use proto::NodeId;
use proto::limits::{TOKEN_SPAN_S_MAX, TOKEN_USES_MAX, TOKENS_MAX};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// One join token, drawn at random. 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct TokenId(pub u64);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// SHA-256 of something: of a token's secret, or of a public key. Comparing two takes the same time
/// wherever they differ.
#[derive(Clone, Copy, Eq, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl PartialEq for Digest {
    fn eq(&self, other: &Digest) -> bool {
        self.0.iter().zip(other.0).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

/// A node that a token let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Admission {
    /// Which node.
    pub node: NodeId,
    /// That of its public key: the same node with the same key asks again when the answer was lost,
    /// with another key it is another machine.
    pub key: Digest,
}

/// What the cluster knows of a join token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Token {
    /// Its name.
    pub id: TokenId,
    /// That of its secret.
    pub secret: Digest,
    /// How many nodes it lets in, in all: 1 to `TOKEN_USES_MAX`.
    pub uses: u32,
    /// When it was made, in seconds since 1970.
    pub created_unix_s: u64,
    /// From when on it lets nobody in.
    pub expires_unix_s: u64,
    /// Whom it let in, in order.
    pub admitted: Vec<Admission>,
}

impl Token {
    /// Whether it lets nobody new in any more.
    pub fn is_spent(&self, unix_s: u64) -> bool {
        unix_s >= self.expires_unix_s || self.admitted.len() >= self.uses as usize
    }
}

/// Who wants to be let in, and with what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Applicant {
    /// The token that it has.
    pub token: TokenId,
    /// The digest of the secret that it shows.
    pub secret: Digest,
    /// The identity it has chosen.
    pub node: NodeId,
    /// The digest of its public key.
    pub key: Digest,
}

impl Map {
    /// All join tokens that were not revoked, spent ones among them, in order of id.
    pub fn tokens(&self) -> impl ExactSizeIterator<Item = &Token> {
        self.tokens.iter()
    }

    /// Whether this machine would be let in, at this time. Says no more to who does not have the
    /// secret than that it has not.
    pub fn vet_applicant(&self, applicant: &Applicant, unix_s: u64) -> Result<(), Refusal> {
        let known = self.tokens.iter().find(|token| token.id == applicant.token);
        // Compared also where there is nothing to compare with: the way is the same.
        let secret = known.map_or(Digest([0; 32]), |token| token.secret);
        let is_right = secret == applicant.secret;
        let Some(token) = known.filter(|_| is_right) else {
            return Err(Refusal::TokenUnknown);
        };
        if applicant.node == NodeId(0) {
            return Err(Refusal::ZeroId { what: "node" });
        }
        // Also for who was let in before: a token that is found later is worth nothing.
        if unix_s >= token.expires_unix_s {
            let expired_unix_s = token.expires_unix_s;
            return Err(Refusal::TokenExpired { expired_unix_s, asked_unix_s: unix_s });
        }
        let admission = Admission { node: applicant.node, key: applicant.key };
        if token.admitted.contains(&admission) && self.node(applicant.node).is_some() {
            return Ok(());
        }
        if self.node(applicant.node).is_some() {
            return Err(Refusal::NodeTaken { node: applicant.node });
        }
        if token.admitted.iter().any(|known| known.node == applicant.node) {
            return Err(Refusal::NodeWasRemoved { node: applicant.node });
        }
        if token.admitted.len() >= token.uses as usize {
            return Err(Refusal::TokenUsedUp { uses: token.uses });
        }
        Ok(())
    }
}

impl State {
    pub(crate) fn add_token(
        &mut self,
        id: TokenId,
        secret: Digest,
        uses: u32,
        unix_s: u64,
        expires_unix_s: u64,
    ) -> Result<Answer, Refusal> {
        if id == TokenId(0) {
            return Err(Refusal::ZeroId { what: "token" });
        }
        if !(1..=TOKEN_USES_MAX).contains(&uses) {
            return Err(Refusal::BadTokenUses { uses });
        }
        let span_s = expires_unix_s.saturating_sub(unix_s);
        if !(1..=TOKEN_SPAN_S_MAX).contains(&span_s) {
            return Err(Refusal::BadTokenSpan);
        }
        let admitted = Vec::new();
        let token = Token { id, secret, uses, created_unix_s: unix_s, expires_unix_s, admitted };
        if let Some(known) = self.map.tokens.iter().find(|known| known.id == id) {
            let is_this = Token { admitted: Vec::new(), ..known.clone() } == token;
            return if is_this { Ok(Answer::Done) } else { Err(Refusal::TokenTaken { id }) };
        }
        // Those that let nobody in any more make room, but only then: until they go, who uses one
        // is told what is the matter with it.
        let is_full = self.map.tokens.len() >= TOKENS_MAX;
        if is_full && !self.map.tokens.iter().any(|known| known.is_spent(unix_s)) {
            return Err(Refusal::TooManyTokens);
        }
        let tokens = Arc::make_mut(&mut self.change().tokens);
        if is_full {
            tokens.retain(|known| !known.is_spent(unix_s));
        }
        let place = tokens.partition_point(|known| known.id < id);
        tokens.insert(place, token);
        Ok(Answer::Done)
    }

    pub(crate) fn revoke_token(&mut self, id: TokenId) -> Result<Answer, Refusal> {
        if !self.map.tokens.iter().any(|known| known.id == id) {
            return Err(Refusal::NoSuchToken { id });
        }
        Arc::make_mut(&mut self.change().tokens).retain(|known| known.id != id);
        Ok(Answer::Done)
    }

    pub(crate) fn admit_node(
        &mut self,
        applicant: &Applicant,
        name: &str,
        unix_s: u64,
    ) -> Result<Answer, Refusal> {
        self.map.vet_applicant(applicant, unix_s)?;
        if self.map.node(applicant.node).is_some() {
            return Ok(Answer::Done);
        }
        self.add_node(applicant.node, name)?;
        let admission = Admission { node: applicant.node, key: applicant.key };
        // The node was added above, in the same change.
        let tokens = Arc::make_mut(&mut Arc::make_mut(&mut self.map).tokens);
        let token = tokens.iter_mut().find(|known| known.id == applicant.token);
        token.expect("vetted above").admitted.push(admission);
        Ok(Answer::Done)
    }
}

/// The first invariant that does not hold for the tokens.
pub(crate) fn contradiction(map: &Map) -> Result<(), &'static str> {
    hold(map.tokens.len() <= TOKENS_MAX, "too many join tokens")?;
    let mut last = TokenId(0);
    for token in map.tokens() {
        hold(token.id > last, "the order of join tokens")?;
        last = token.id;
        hold((1..=TOKEN_USES_MAX).contains(&token.uses), "the uses of a join token")?;
        hold(token.admitted.len() <= token.uses as usize, "a join token that was used too often")?;
        let span_s = token.expires_unix_s.saturating_sub(token.created_unix_s);
        hold((1..=TOKEN_SPAN_S_MAX).contains(&span_s), "when a join token expires")?;
        let nodes: BTreeSet<NodeId> = token.admitted.iter().map(|known| known.node).collect();
        hold(nodes.len() == token.admitted.len(), "a node that was let in twice")?;
        hold(!nodes.contains(&NodeId(0)), "a node without an id")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, RefusalKind};
    use proto::ClusterId;

    const SECRET: Digest = Digest([7; 32]);
    const KEY: Digest = Digest([8; 32]);
    const ID: TokenId = TokenId(5);
    const NOW: u64 = 1_800_000_000;

    fn add(id: TokenId, uses: u32, expires_unix_s: u64) -> Command {
        Command::AddToken { id, secret: SECRET, uses, unix_s: NOW, expires_unix_s }
    }

    fn admit(node: u128) -> Command {
        let (node, name) = (NodeId(node), "beta".to_owned());
        Command::AdmitNode { token: ID, secret: SECRET, node, key: KEY, name, unix_s: NOW + 10 }
    }

    fn done(state: &mut State, command: &Command) {
        assert_eq!(Command::decode(&command.encode()).as_ref(), Ok(command));
        let before = state.clone();
        assert_eq!(state.apply(command), Ok(Answer::Done), "{command:?}");
        state.check();
        assert_eq!(State::decode(&state.encode()).as_ref(), Ok(&*state));
        let grown = state.map().epoch().0 - before.map().epoch().0;
        assert_eq!(grown, u64::from(*state != before), "{command:?}");
    }

    #[track_caller]
    fn refused(state: &mut State, command: &Command, kind: RefusalKind, part: &str) -> String {
        let before = state.clone();
        let refusal = state.apply(command).expect_err(part);
        assert_eq!(*state, before, "{command:?} was refused and changed something");
        let sentence = refusal.to_string();
        assert!(sentence.contains(part) && refusal.kind() == kind, "{sentence}");
        sentence
    }

    fn state() -> State {
        let mut state = State::default();
        let cluster = ClusterId(1);
        done(&mut state, &Command::CreateCluster { cluster, partition_bits: 1, unix_s: 0 });
        done(&mut state, &Command::AddNode { node: NodeId(1), name: "alpha".to_owned() });
        done(&mut state, &add(ID, 2, NOW + 3600));
        state
    }

    #[test]
    fn a_token_lets_in_as_many_as_it_says_and_each_once() {
        let mut state = state();
        done(&mut state, &admit(2));
        assert_eq!(state.map().node(NodeId(2)).expect("let in").name, "beta");
        // The answer was lost: asking again uses nothing.
        for _ in 0..3 {
            done(&mut state, &admit(2));
        }
        done(&mut state, &admit(3));
        refused(&mut state, &admit(4), RefusalKind::Full, "all of the 2 nodes");
        // Who was let in may still lose the answer.
        done(&mut state, &admit(3));
        let map = state.map();
        let token = map.tokens().next().expect("kept");
        assert!(token.is_spent(NOW) && token.admitted.len() == 2);
    }

    #[test]
    fn who_has_not_the_secret_learns_nothing() {
        let mut state = state();
        done(&mut state, &admit(2));
        let with = |token, secret| {
            let (node, name) = (NodeId(9), String::new());
            Command::AdmitNode { token, secret, node, key: KEY, name, unix_s: NOW }
        };
        let mut sentences = BTreeSet::new();
        let mut wrong = |state: &mut State, token, secret| {
            let part = "does not know this token";
            let command = with(token, secret);
            sentences.insert(refused(state, &command, RefusalKind::Invalid, part));
        };
        let mut almost = SECRET;
        almost.0[31] ^= 1;
        wrong(&mut state, ID, almost);
        wrong(&mut state, ID, Digest([0; 32]));
        wrong(&mut state, TokenId(6), SECRET);
        wrong(&mut state, TokenId(6), Digest([0; 32]));
        done(&mut state, &Command::RevokeToken { id: ID });
        wrong(&mut state, ID, SECRET);
        assert_eq!(sentences.len(), 1, "{sentences:?}");
    }

    #[test]
    fn a_node_that_there_is_cannot_be_taken_over() {
        let mut state = state();
        refused(&mut state, &admit(1), RefusalKind::Exists, "there is a node");
        done(&mut state, &admit(2));
        let twin = Command::AdmitNode {
            token: ID,
            secret: SECRET,
            node: NodeId(2),
            key: Digest([9; 32]),
            name: "twin".to_owned(),
            unix_s: NOW,
        };
        refused(&mut state, &twin, RefusalKind::Exists, "there is a node");
        refused(&mut state, &admit(0), RefusalKind::Invalid, "id 0");
        done(&mut state, &Command::RemoveNode { node: NodeId(2) });
        refused(&mut state, &admit(2), RefusalKind::Exists, "was removed from this cluster");
    }

    #[test]
    fn tokens_expire_and_make_room() {
        let mut state = state();
        let late = |unix_s| {
            let (node, name) = (NodeId(7), String::new());
            Command::AdmitNode { token: ID, secret: SECRET, node, key: KEY, name, unix_s }
        };
        let expired = RefusalKind::Invalid;
        refused(&mut state, &late(NOW + 3600), expired, "expired at");
        // A clock that was never set is no reason to refuse: it decides nothing else either.
        done(&mut state, &late(0));
        done(&mut state, &late(NOW + 3599));
        refused(&mut state, &late(NOW + 3600), expired, "expired at");

        let invalid = RefusalKind::Invalid;
        refused(&mut state, &add(TokenId(0), 1, NOW + 1), invalid, "id 0");
        refused(&mut state, &add(TokenId(9), 0, NOW + 1), invalid, "choose 1 to");
        refused(&mut state, &add(TokenId(9), TOKEN_USES_MAX + 1, NOW + 1), invalid, "choose 1 to");
        refused(&mut state, &add(TokenId(9), 1, NOW), invalid, "one second to");
        let beyond = NOW + TOKEN_SPAN_S_MAX + 1;
        refused(&mut state, &add(TokenId(9), 1, beyond), invalid, "one second to");
        done(&mut state, &add(ID, 2, NOW + 3600));
        refused(&mut state, &add(ID, 3, NOW + 3600), RefusalKind::Exists, "draw another");
        refused(
            &mut state,
            &Command::RevokeToken { id: TokenId(77) },
            RefusalKind::NotFound,
            "000000000000004d",
        );

        for id in 0..TOKENS_MAX as u64 - 1 {
            done(&mut state, &add(TokenId(100 + id), 1, NOW + 100));
        }
        refused(&mut state, &add(TokenId(9), 1, NOW + 1), RefusalKind::Full, "revoke one");
        let later = Command::AddToken {
            id: TokenId(9),
            secret: SECRET,
            uses: 1,
            unix_s: NOW + 100,
            expires_unix_s: NOW + 200,
        };
        done(&mut state, &later);
        let left: Vec<TokenId> = state.map().tokens().map(|token| token.id).collect();
        assert_eq!(left, [ID, TokenId(9)]);
    }
}
