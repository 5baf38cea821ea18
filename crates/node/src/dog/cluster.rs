//! `dog cluster`: whether anything is at risk, and join tokens, with which other machines become
//! nodes.

use super::{
    Context, Failure,
    arguments::{TokenOptions, TokenVerb},
    failure::AT_RISK_EXIT_CODE,
    name::NodeName,
    print,
};
use crate::{
    identity::{SEEDS_MAX, Seed, TokenText, from_hex, hex, random},
    size::Size,
    span::Span,
};
use cluster::{Digest, TokenId};
use engine::admin::{
    AdminReply, AdminRequest, AttemptReport, ClusterNodeReport, ClusterReport, RecoveryReport,
    TokenReport,
};
use proto::{
    ClusterId, NodeId,
    limits::{TOKEN_SPAN_S_MAX, TOKEN_USES_MAX},
};
use serde::Serialize;
use std::process::ExitCode;

/// `dog cluster token`: makes one unless told otherwise.
pub fn token(
    context: &Context,
    verb: Option<TokenVerb>,
    options: &TokenOptions,
) -> Result<(), Failure> {
    match verb {
        None => make(context, options),
        Some(TokenVerb::Revoke { token }) => revoke(context, token.0),
        Some(TokenVerb::List) => list(context),
    }
}

/// `dog cluster status`. The exit code says whether anything is at risk.
pub fn status(context: &Context) -> Result<ExitCode, Failure> {
    let report = report(context)?;
    if context.json {
        print::json(&report)?;
    } else {
        print::text(&describe(&report))?;
    }
    let code = if report.healthy { 0 } else { AT_RISK_EXIT_CODE };
    Ok(ExitCode::from(code))
}

/// `dog cluster recover`.
pub fn recover(context: &Context, lost: &[NodeName], yes: bool) -> Result<(), Failure> {
    let lost = lost.iter().map(|node| node.0.clone()).collect();
    let AdminReply::Recovery(report) = context.ask(&AdminRequest::ClusterRecover { yes, lost })?
    else {
        return Err(Failure::mismatch());
    };
    if context.json {
        print::json(&report)?;
    } else {
        print::text(&describe_recovery(&report))?;
    }
    if report.done {
        return context.done(
            "the cluster goes on from what this node has; now take each node that was given up \
             out with `dog node remove NAME --yes`, see `dog cluster status`, and look at every \
             volume before it is used",
        );
    }
    Err(Failure::conflict(
        "nothing was done; if all that is said above is understood and the nodes are lost for \
         ever, say `dog cluster recover --yes`",
    ))
}

fn describe_recovery(report: &RecoveryReport) -> String {
    let columns = [
        ("NODE", false),
        ("STATE", false),
        ("VOTES", false),
        ("KNOWS TERM", true),
        ("ENTRY", true),
        ("COPIES", true),
        ("AFTERWARDS", false),
    ];
    let number = |known: Option<u64>| known.map_or("-".to_string(), |known| known.to_string());
    let rows = report.nodes.iter().map(|node| {
        let here = if node.up { "up for" } else { "away for" };
        let afterwards = match (node.node == report.asked, node.lost, node.up) {
            (true, ..) => "goes on from here",
            (false, true, _) => "given up",
            (false, false, true) => "follows",
            (false, false, false) => "follows if it knows no more",
        };
        vec![
            node.name.clone(),
            format!("{here} {}", print::span(node.since_s)),
            if node.votes { "yes" } else { "no" }.to_string(),
            number(node.term),
            number(node.index),
            node.partitions.to_string(),
            afterwards.to_string(),
        ]
    });
    let mut page = print::table(&columns, rows.collect());
    for warning in &report.warnings {
        page += &format!("\nWARNING: {warning}");
    }
    page + "\n"
}

/// The cluster as the daemon knows it.
pub fn report(context: &Context) -> Result<Box<ClusterReport>, Failure> {
    match context.ask(&AdminRequest::ClusterStatus)? {
        AdminReply::Cluster(report) => Ok(report),
        _ => Err(Failure::mismatch()),
    }
}

/// What a node is called: its name if it has one, else its id.
pub fn node_words(node: &ClusterNodeReport) -> String {
    match node.name.is_empty() {
        true => node.node.to_string(),
        false => node.name.clone(),
    }
}

fn describe(report: &ClusterReport) -> String {
    let name = |id: &NodeId| {
        let known = report.nodes.iter().find(|node| node.node == *id);
        known.map_or_else(|| id.to_string(), node_words)
    };
    let names = |ids: &[NodeId]| ids.iter().map(name).collect::<Vec<_>>().join(", ");
    let agreement = &report.agreement;
    let up = report.nodes.iter().filter(|node| node.up).count();
    let present = report.disks.iter().filter(|disk| disk.away_s.is_none()).count();
    let changing = if agreement.changing { ", being changed" } else { "" };
    let mut fields = vec![
        ("Health", if report.healthy { "ok" } else { "at risk" }.to_string()),
        ("Cluster", report.cluster.to_string()),
        ("Epoch", report.epoch.to_string()),
        ("Nodes", format!("{}, {up} up", report.nodes.len())),
        ("Disks", format!("{}, {present} present", report.disks.len())),
        ("Leader", agreement.leader.as_ref().map_or("nobody".to_string(), name)),
        ("Voters", format!("{}{changing}", names(&agreement.voters))),
    ];
    if !agreement.learners.is_empty() {
        fields.push(("Followers", names(&agreement.learners)));
    }
    if let Some(recovered) = &agreement.recovered {
        let (date, node) = (proto::calendar::date(recovered.unix_s), name(&recovered.node));
        fields.push(("Recovered", format!("{}, last on {date} from {node}", recovered.count)));
    }
    let mut page = print::fields(&fields);
    page += "\n";
    page += &copies_table(report);
    if !report.attempts.is_empty() {
        page += "\n";
        page += &attempts_table(&report.attempts);
    }
    for warning in &report.warnings {
        page += &format!("\nwarning: {warning}");
    }
    for doing in &report.doing {
        page += &format!("\nnow: {doing}");
    }
    for note in &report.notes {
        page += &format!("\nnote: {note}");
    }
    if !page.ends_with('\n') {
        page += "\n";
    }
    page
}

fn copies_table(report: &ClusterReport) -> String {
    let columns = [
        ("COPIES", true),
        ("POSSIBLE", true),
        ("PARTITIONS", true),
        ("WITH FEWER", true),
        ("WITH ONE", true),
        ("WAITING", true),
    ];
    let rows = report.copies.iter().map(|copies| {
        vec![
            copies.copies.to_string(),
            copies.possible.to_string(),
            copies.partitions.to_string(),
            copies.fewer.to_string(),
            copies.single.to_string(),
            copies.waiting.to_string(),
        ]
    });
    print::table(&columns, rows.collect())
}

fn attempts_table(attempts: &[AttemptReport]) -> String {
    let columns = [
        ("CHANGE", true),
        ("BY NODE", false),
        ("PARTITIONS", true),
        ("STAGE", false),
        ("DONE", true),
        ("TO DO", true),
        ("SENT", true),
        ("WAITS FOR", false),
    ];
    let rows = attempts.iter().map(|attempt| {
        let mut row = vec![
            attempt.number.to_string(),
            attempt.owner_name.clone(),
            attempt.partitions.to_string(),
        ];
        match &attempt.progress {
            Some(progress) => {
                let disks = progress.waiting_for.iter().map(ToString::to_string);
                row.extend([
                    progress.stage.clone(),
                    progress.done.to_string(),
                    progress.to_do.to_string(),
                    Size(progress.bytes).to_string(),
                    disks.collect::<Vec<_>>().join(", "),
                ]);
            }
            // That node alone knows.
            None => {
                row.push("under way".to_string());
                row.extend(vec!["-".to_string(); 4]);
            }
        }
        row
    });
    print::table(&columns, rows.collect())
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
pub(super) mod tests {
    use super::*;
    use engine::admin::{AgreementReport, AttemptProgressReport, ClusterDiskReport, CopiesReport};
    use proto::DiskId;

    /// Two nodes with a disk each, of which one is away and was being drained.
    pub fn report() -> ClusterReport {
        let node = |id: u128, up: bool, since_s| ClusterNodeReport {
            node: NodeId(id),
            name: format!("n{}", id - 1),
            addresses: vec![format!("192.0.2.{id}:7117")],
            zone: String::new(),
            draining: !up,
            lost: false,
            up,
            since_s,
            reason: None,
            votes: true,
            leads: up,
            disks: vec![DiskId(id)],
            attachments: if up { 2 } else { 0 },
        };
        let disk = |id: u128, away_s: Option<u64>| ClusterDiskReport {
            disk: DiskId(id),
            node: NodeId(id),
            node_name: format!("n{}", id - 1),
            standing: if away_s.is_some() { "draining" } else { "in" }.to_string(),
            away_s,
            size_bytes: 1 << 40,
            partitions: 4096,
            recovering: 0,
            share_permille: 500,
        };
        ClusterReport {
            healthy: false,
            warnings: vec!["node n1 has been away".to_string()],
            notes: vec!["there are two disks".to_string()],
            doing: vec!["9 copies are still to be made".to_string()],
            missing_copies: 9,
            whole_in_s: None,
            cluster: ClusterId(9),
            epoch: 12,
            asked: NodeId(1),
            agreement: AgreementReport {
                leader: Some(NodeId(1)),
                voters: vec![NodeId(1), NodeId(2)],
                changing: true,
                learners: Vec::new(),
                waiting: None,
                recovered: None,
            },
            nodes: vec![node(1, true, 100), node(2, false, 7)],
            disks: vec![disk(1, None), disk(2, Some(7))],
            copies: vec![CopiesReport {
                copies: 3,
                possible: 2,
                partitions: 4096,
                fewer: 4096,
                single: 4096,
                doubled: 0,
                waiting: 0,
            }],
            attempts: vec![
                AttemptReport {
                    number: 5,
                    owner: NodeId(1),
                    owner_name: "n0".to_string(),
                    copies: 3,
                    partitions: 64,
                    disks: vec![DiskId(1)],
                    progress: Some(AttemptProgressReport {
                        stage: "copying".to_string(),
                        to_do: 17,
                        done: 4,
                        bytes: 1 << 20,
                        waiting_for: vec![DiskId(2)],
                    }),
                },
                AttemptReport {
                    number: 6,
                    owner: NodeId(2),
                    owner_name: "n1".to_string(),
                    copies: 3,
                    partitions: 64,
                    disks: vec![DiskId(1)],
                    progress: None,
                },
            ],
        }
    }

    #[test]
    fn the_cluster_is_told_on_one_page() {
        let page = describe(&report());
        for part in [
            "Health:  at risk\n",
            "Nodes:   2, 1 up\n",
            "Disks:   2, 1 present\n",
            "Leader:  n0\n",
            "Voters:  n0, n1, being changed\n",
            "copying       4     17  1.0 MiB  00000000000000000000000000000002\n",
            "under way     -      -",
            "\nwarning: node n1 has been away\nnow: 9 copies are still to be made\n",
            "\nnote: there are two disks\n",
        ] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
    }

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
