//! The direction of the crates, from cargo's own metadata.

use super::Finding;
use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, MetadataCommand};
use std::path::Path;

/// Which of our crates each of our crates may build on (tests of a crate may use any).
const ALLOWED: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("cluster", &["proto"]),
    ("store", &["proto"]),
    ("replica", &["proto", "cluster"]),
    ("volume", &["proto", "cluster", "replica"]),
    ("front", &["proto", "volume"]),
    ("link", &["proto"]),
    ("engine", &["proto", "cluster", "store", "replica", "volume", "link"]),
    ("node", &["proto", "cluster", "store", "replica", "volume", "front", "link", "engine"]),
    ("sim", &["proto", "cluster", "store", "replica", "volume", "front", "link", "engine"]),
    ("e2e", &[]),
    ("xtask", &["proto", "store"]),
];

pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cargo metadata describes the workspace")?;
    let ours: Vec<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        let path = format!("crates/{name}/Cargo.toml");
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            let message = "unknown crate: give it a row in xtask/src/tidy/borders.rs";
            findings.push(Finding::new(&path, 0, message));
            continue;
        };
        for dependency in &package.dependencies {
            let target = dependency.name.as_str();
            let inside = ours.contains(&target) && dependency.kind == DependencyKind::Normal;
            if inside && !allowed.contains(&target) {
                let message = format!(
                    "{name} may not build on {target} (docs/decisions/0001): pass a message or \
                     move the type down"
                );
                findings.push(Finding::new(&path, 0, message));
            }
        }
    }
    Ok(findings)
}
