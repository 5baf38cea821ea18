//! `dog cluster`: join tokens, with which other machines become nodes.

use super::{
    Context, Failure,
    arguments::{ClusterVerb, TokenOptions, TokenVerb},
    print,
};
use crate::{
    identity::{SEEDS_MAX, Seed, TokenText, from_hex, hex, random},
    span::Span,
};
use cluster::{Digest, TokenId};
use engine::admin::{AdminReply, AdminRequest, TokenReport};
use proto::{
    ClusterId,
    limits::{TOKEN_SPAN_S_MAX, TOKEN_USES_MAX},
};
use serde::Serialize;

/// Runs one verb.
pub fn run(context: &Context, verb: ClusterVerb) -> Result<(), Failure> {
    match verb {
        ClusterVerb::Token { verb: None, options } => make(context, &options),
        ClusterVerb::Token { verb: Some(TokenVerb::Revoke { token }), .. } => {
            revoke(context, token.0)
        }
        ClusterVerb::Token { verb: Some(TokenVerb::List), .. } => list(context),
    }
}

/// A token that was made, for programs.
#[derive(Serialize)]
struct Made {
    token: String,
    id: String,
    cluster: ClusterId,
    uses: u32,
    expires_unix_s: u64,
    addresses: Vec<String>,
}

/// Draws a token and has the cluster take it. The secret stays with who asks for it.
fn make(context: &Context, options: &TokenOptions) -> Result<(), Failure> {
    let expires_s = options.expires.seconds();
    if !(1..=TOKEN_SPAN_S_MAX).contains(&expires_s) {
        let expires = options.expires;
        return Err(Failure::usage(format!(
            "a token cannot hold for {expires}; choose one second to 31 days"
        )));
    }
    if !(1..=TOKEN_USES_MAX).contains(&options.uses) {
        let uses = options.uses;
        return Err(Failure::usage(format!(
            "a token cannot let in {uses} nodes; choose 1 to {TOKEN_USES_MAX}"
        )));
    }
    let AdminReply::Node(node) = context.ask(&AdminRequest::NodeInfo)? else {
        return Err(Failure::mismatch());
    };
    let id = TokenId(u64::from_le_bytes(random()).max(1));
    let secret: [u8; 16] = random();
    let digest = TokenText::secret_digest(node.cluster, id, &secret);
    let request = AdminRequest::TokenAdd {
        id: id.0,
        secret_digest: hex(&digest.0),
        uses: options.uses,
        expires_s,
    };
    let AdminReply::Token(report) = context.ask(&request)? else {
        return Err(Failure::mismatch());
    };
    let token = text_of(&report, secret).ok_or_else(Failure::mismatch)?;
    if context.json {
        return print::json(&Made {
            token: token.print(),
            id: id.to_string(),
            cluster: report.cluster,
            uses: report.uses,
            expires_unix_s: report.expires_unix_s,
            addresses: report.addresses,
        });
    }
    context.note(&format!(
        "Token {id} lets in {}, until {}. Whoever has it can become a node and read all data. On \
         the new machine: sheep --data DIR --token-file FILE",
        if report.uses == 1 {
            "one machine".to_string()
        } else {
            format!("{} machines", report.uses)
        },
        proto::calendar::date(report.expires_unix_s)
    ));
    if token.seeds.is_empty() {
        context.note(
            "It names no address, as no node listens for others; start sheep with --listen first, \
             and make another one.",
        );
    }
    print::text(&format!("{}\n", token.print()))
}

/// The token of a report and its secret; nothing if the report is not right.
fn text_of(report: &TokenReport, secret: [u8; 16]) -> Option<TokenText> {
    let authority = Digest(from_hex(&report.authority_digest)?.try_into().ok()?);
    let known = report.addresses.iter().filter_map(|address| address.parse::<Seed>().ok());
    Some(TokenText {
        cluster: report.cluster,
        id: TokenId(report.id),
        secret,
        authority,
        expires_unix_s: report.expires_unix_s,
        uses: report.uses,
        seeds: known.take(SEEDS_MAX).collect(),
    })
}

fn revoke(context: &Context, id: TokenId) -> Result<(), Failure> {
    context.tell(&AdminRequest::TokenRevoke { id: id.0 })?;
    context.done(&format!("token {id} revoked; nodes that came by it stay"))
}

fn list(context: &Context) -> Result<(), Failure> {
    let AdminReply::Tokens(tokens) = context.ask(&AdminRequest::TokenList)? else {
        return Err(Failure::mismatch());
    };
    if context.json {
        return print::json(&tokens);
    }
    let columns = [("TOKEN", false), ("USED", true), ("EXPIRES", false)];
    let rows = tokens.iter().map(|token| {
        vec![
            TokenId(token.id).to_string(),
            format!("{} of {}", token.admitted.len(), token.uses),
            proto::calendar::date(token.expires_unix_s),
        ]
    });
    print::text(&print::table(&columns, rows.collect()))
}

/// The name of a token, as it is printed.
#[derive(Clone, Copy, Debug)]
pub struct TokenName(pub TokenId);

impl std::str::FromStr for TokenName {
    type Err = String;

    fn from_str(text: &str) -> Result<TokenName, String> {
        let parsed = match TokenText::parse(text) {
            Ok(token) => Some(token.id.0),
            Err(_) if text.len() == 16 => u64::from_str_radix(text, 16).ok(),
            Err(_) => None,
        };
        let id = parsed.filter(|&id| id != 0).ok_or_else(|| {
            "it is no token; give the 16 digits that `dog cluster token list` shows, or the whole \
             token"
                .to_string()
        })?;
        Ok(TokenName(TokenId(id)))
    }
}

/// How long a token holds unless told otherwise.
pub const EXPIRES_DEFAULT: Span = Span::of_seconds(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_named_by_its_digits_or_by_itself() {
        let report = TokenReport {
            id: 0xab,
            cluster: ClusterId(1),
            uses: 2,
            admitted: Vec::new(),
            created_unix_s: 3,
            expires_unix_s: 4,
            authority_digest: "07".repeat(32),
            addresses: vec!["192.0.2.7:7117".to_string(), "no address".to_string()],
        };
        let token = text_of(&report, [9; 16]).expect("right");
        assert_eq!(token.seeds.len(), 1);
        for name in [token.print(), "00000000000000ab".to_string()] {
            assert_eq!(name.parse::<TokenName>().expect("right").0, TokenId(0xab));
        }
        for wrong in ["", "ab", "0000000000000000", "000000000000000g", "sheepdog-join-"] {
            assert!(wrong.parse::<TokenName>().is_err(), "{wrong}");
        }
        assert!(
            text_of(&TokenReport { authority_digest: String::new(), ..report }, [9; 16]).is_none()
        );
    }
}
