//! What is linked in, from cargo's own metadata and `deny.toml`: licences, crates that are banned,
//! and where crates come from. `cargo deny` checks the same and more, where it is installed; this
//! is checked everywhere.

use super::Finding;
use anyhow::{Context, Result, ensure};
use cargo_metadata::{Metadata, MetadataCommand, Package};
use serde::Deserialize;
use std::path::Path;

/// The only registry. Others are an attacker's way in.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";
const MANIFEST: &str = "Cargo.toml";

/// What is read of `deny.toml`; the rest is for `cargo deny`.
#[derive(Deserialize)]
struct Rules {
    graph: Graph,
    licenses: Licences,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    triple: String,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_git: Vec<String>,
}

pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let text = std::fs::read_to_string(root.join("deny.toml")).context("deny.toml is missing")?;
    let rules: Rules = toml::from_str(&text).context("deny.toml cannot be read")?;
    // Locked: what is looked at is what is built.
    let mut options = vec!["--locked".to_string()];
    for target in &rules.graph.targets {
        options.extend(["--filter-platform".to_string(), target.triple.clone()]);
    }
    let metadata = MetadataCommand::new()
        .manifest_path(root.join(MANIFEST))
        .other_options(options)
        .exec()
        .context("cargo metadata describes what is built")?;
    ensure!(metadata.packages.iter().any(|package| package.source.is_some()), "no dependencies?");
    Ok(check_metadata(&metadata, &rules))
}

fn check_metadata(metadata: &Metadata, rules: &Rules) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let ours = package.source.is_none();
        findings.extend(check_package(package, rules, ours));
        let wild = package.dependencies.iter().filter(|dependency| {
            let version = dependency.req.to_string();
            ours && version == "*" && dependency.path.is_none()
        });
        findings.extend(wild.map(|dependency| {
            let message = format!("{} takes any version; name one", dependency.name);
            Finding::new(&format!("crates/{}/{MANIFEST}", package.name), 0, message)
        }));
    }
    findings
}

fn check_package(package: &Package, rules: &Rules, ours: bool) -> Vec<Finding> {
    let name = package.name.as_str();
    let mut messages = Vec::new();
    if let Some(ban) = rules.bans.deny.iter().find(|ban| ban.name == name) {
        messages.push(format!("{name} is banned in deny.toml: {}", ban.reason));
    }
    let source = package.source.as_ref().map_or("", |source| source.repr.as_str());
    let git = rules.sources.allow_git.iter().any(|url| source.contains(url.as_str()));
    if !ours && source != REGISTRY && !git {
        messages.push(format!("{name} comes from {source}, which deny.toml does not allow"));
    }
    match &package.license {
        // Ours is said once, in the workspace.
        _ if ours => {}
        None => messages.push(format!("{name} names no licence; read it, or do without the crate")),
        Some(text) => match is_allowed(text, &rules.licenses.allow) {
            Some(true) => {}
            Some(false) => messages.push(format!(
                "{name} is licensed {text}, which deny.toml does not allow: do without the crate"
            )),
            None => messages.push(format!("the licence of {name} cannot be read: {text}")),
        },
    }
    messages.into_iter().map(|message| Finding::new(MANIFEST, 0, message)).collect()
}

/// Whether an SPDX expression is satisfied by the allowed licences: one side of `OR`, both of
/// `AND`. Nothing if it is no such expression.
fn is_allowed(text: &str, allowed: &[String]) -> Option<bool> {
    // The way to write OR before there were expressions.
    let text = text.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = text.split_whitespace().peekable();
    let result = either(&mut words, allowed)?;
    words.next().is_none().then_some(result)
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words, allowed: &[String]) -> Option<bool> {
    let mut result = both(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        result |= both(words, allowed)?;
    }
    Some(result)
}

fn both(words: &mut Words, allowed: &[String]) -> Option<bool> {
    let mut result = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        result &= one(words, allowed)?;
    }
    Some(result)
}

fn one(words: &mut Words, allowed: &[String]) -> Option<bool> {
    let word = words.next()?;
    if word == "(" {
        let inner = either(words, allowed)?;
        return (words.next()? == ")").then_some(inner);
    }
    if ["OR", "AND", "WITH", ")"].contains(&word) {
        return None;
    }
    let mut licence = word.to_string();
    if words.next_if_eq(&"WITH").is_some() {
        licence = format!("{licence} WITH {}", words.next()?);
    }
    Some(allowed.contains(&licence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read_as_spdx_means_them() {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"];
        let allowed = allowed.map(String::from);
        let check = |text, expected| assert_eq!(is_allowed(text, &allowed), expected, "{text}");
        check("MIT", Some(true));
        check("GPL-3.0-only", Some(false));
        check("MIT OR GPL-3.0-only", Some(true));
        check("GPL-3.0-only OR MIT", Some(true));
        check("MIT AND GPL-3.0-only", Some(false));
        check("MIT/GPL-3.0", Some(true));
        check("GPL-2.0-only / GPL-3.0-only", Some(false));
        // AND binds closer than OR.
        check("MIT OR Apache-2.0 AND GPL-3.0-only", Some(true));
        check("GPL-3.0-only AND MIT OR Apache-2.0", Some(true));
        check("(MIT OR Apache-2.0) AND GPL-3.0-only", Some(false));
        check("(MIT OR Apache-2.0) AND Unicode-3.0", Some(true));
        check("Apache-2.0 WITH LLVM-exception OR GPL-3.0-only", Some(true));
        check("GPL-2.0-only WITH Classpath-exception-2.0", Some(false));
        // An exception is not allowed because the licence alone is.
        check("MIT WITH LLVM-exception", Some(false));
        for text in ["", "MIT OR", "AND MIT", "(MIT", "MIT)", "MIT MIT", "MIT WITH", "()"] {
            check(text, None);
        }
    }

    #[test]
    fn what_may_not_be_linked_is_found() {
        let rules = r#"
            graph = { targets = [] }
            licenses = { allow = ["MIT"] }
            bans = { deny = [{ crate = "bad", reason = "no" }] }
            sources = { allow-git = [] }
        "#;
        let rules: Rules = toml::from_str(rules).expect("rules");
        let check = |name: &str, source: Option<&str>, licence: Option<&str>, words: &[&str]| {
            let package = serde_json::json!({
                "name": name, "version": "1.0.0", "id": "x", "license": licence,
                "source": source, "dependencies": [], "targets": [], "features": {},
                "manifest_path": "/x/Cargo.toml",
            });
            let package: Package = serde_json::from_value(package).expect("a package");
            let findings = check_package(&package, &rules, source.is_none());
            assert_eq!(findings.len(), words.len(), "{findings:?}");
            for (finding, word) in findings.iter().zip(words) {
                assert!(finding.message.contains(word), "{word} is not in {finding}");
            }
        };
        let git = Some("git+https://example.org/good");
        check("good", Some(REGISTRY), Some("MIT"), &[]);
        check("bad", Some(REGISTRY), Some("MIT"), &["banned in deny.toml: no"]);
        check("good", git, Some("MIT"), &["comes from git+https"]);
        check("good", Some(REGISTRY), Some("GPL-3.0-only"), &["licensed GPL-3.0-only"]);
        check("good", Some(REGISTRY), None, &["names no licence"]);
        check("good", Some(REGISTRY), Some("MIT AND"), &["cannot be read"]);
        check("bad", git, None, &["banned", "comes from", "names no licence"]);
        check("ours", None, None, &[]);
    }
}
