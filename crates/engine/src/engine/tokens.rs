//! Join tokens, and machines that come with one.

use super::{Engine, Phase, Purpose, Work, administer::refused};
use crate::{
    Output,
    admin::{AdminError, AdminErrorKind, AdminReply, AdminToken, TokenReport},
};
use cluster::{Applicant, Command, Digest, Token, TokenId};
use proto::NodeId;

impl Engine {
    /// Has a token agreed.
    pub(super) fn add_token(
        &mut self,
        token: AdminToken,
        id: u64,
        secret_digest: &str,
        uses: u32,
        expires_s: u64,
    ) -> Result<(), AdminError> {
        let Some(secret) = digest_of(secret_digest) else {
            let sentence =
                "the digest of a token's secret has 64 hexadecimal digits; use a dog of \
                            the same version as sheep"
                    .to_string();
            return Err(AdminError { kind: AdminErrorKind::Invalid, sentence });
        };
        let (id, unix_s) = (TokenId(id), self.unix_s());
        let expires_unix_s = unix_s.saturating_add(expires_s);
        let command = Command::AddToken { id, secret, uses, unix_s, expires_unix_s };
        self.work.push_back(Work::Propose(command, Purpose::AdminToken(token, id)));
        Ok(())
    }

    /// What came of it.
    pub(super) fn token_report(&self, id: TokenId) -> Result<AdminReply, AdminError> {
        let Some(token) = self.map.tokens().find(|token| token.id == id) else {
            let refusal = cluster::Refusal::NoSuchToken { id };
            return Err(refused(&refusal));
        };
        let known = self.known_nodes().into_iter().flat_map(|(_, addresses)| addresses);
        let report = TokenReport { addresses: known.collect(), ..self.report_token(token) };
        Ok(AdminReply::Token(report))
    }

    pub(super) fn token_reports(&self) -> Vec<TokenReport> {
        self.map.tokens().map(|token| self.report_token(token)).collect()
    }

    fn report_token(&self, token: &Token) -> TokenReport {
        TokenReport {
            id: token.id.0,
            cluster: self.map.cluster(),
            uses: token.uses,
            admitted: token.admitted.iter().map(|known| known.node).collect(),
            created_unix_s: token.created_unix_s,
            expires_unix_s: token.expires_unix_s,
            authority_digest: String::new(),
            addresses: Vec::new(),
        }
    }

    /// The nodes whose addresses are known, this one first and those that vote before the others.
    pub fn known_nodes(&self) -> Vec<(NodeId, Vec<String>)> {
        let own = self.settings.node;
        let agreement = self.agreement_report();
        let votes = |node: NodeId| agreement.voters.contains(&node);
        let mut nodes: Vec<NodeId> = self.map.nodes().map(|node| node.id).collect();
        nodes.sort_by_key(|&node| (node != own, !votes(node), node));
        let known = nodes.into_iter().map(|node| (node, self.map.addresses_of(node).to_vec()));
        known.filter(|(_, addresses)| !addresses.is_empty()).collect()
    }

    /// A machine wants to be a node. Who has nothing to show for it does not get as far as the log.
    pub(super) fn handle_applicant(
        &mut self,
        token: AdminToken,
        applicant: Applicant,
        name: String,
        addresses: Vec<String>,
        outputs: &mut Vec<Output>,
    ) {
        let unavailable = |sentence| AdminError { kind: AdminErrorKind::Unavailable, sentence };
        let unix_s = self.unix_s();
        let vetted = if self.phase != Phase::Serving {
            Err(unavailable(self.not_serving()))
        } else if let Some(sentence) = self.leaderless() {
            Err(unavailable(sentence))
        } else {
            self.map.vet_applicant(&applicant, unix_s).map_err(|refusal| refused(&refusal))
        };
        if let Err(error) = vetted {
            return outputs.push(Output::Admin { token, result: Box::new(Err(error)) });
        }
        let Applicant { token: id, secret, node, key } = applicant;
        let command = Command::AdmitNode { token: id, secret, node, key, name, unix_s };
        // Who is a node already says itself where it is: a token is no word on that.
        let purpose = match self.map.node(node) {
            Some(_) => Purpose::AdminDone(token),
            None => Purpose::AdminNode(token, node, addresses),
        };
        self.work.push_back(Work::Propose(command, purpose));
    }
}

/// A digest from 64 hexadecimal digits.
fn digest_of(text: &str) -> Option<Digest> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |letter: u8| char::from(letter).to_digit(16);
    let byte = |&[high, low]: &[u8; 2]| Some((digit(high)? << 4 | digit(low)?) as u8);
    let bytes: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>()?;
    if rest.is_empty() { bytes.try_into().ok().map(Digest) } else { None }
}
