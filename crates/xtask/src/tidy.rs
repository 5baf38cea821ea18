//! The rules of the house that a program can check. Each rule is a function from the tree's files
//! to findings, and each finding names its remedy.

mod borders;
mod documents;
mod licences;
mod sources;

use anyhow::{Context, Result};
use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

/// One breach of a rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    path: String,
    /// From 1; 0: the file as a whole.
    line: usize,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Finding {
        Finding { path: path.into(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}

/// One file of the tree.
#[derive(Debug)]
struct File {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
}

/// All files that git tracks or would track, as text; others (corpora, images) are left out.
struct Tree {
    files: Vec<File>,
}

impl Tree {
    fn read(root: &Path) -> Result<Tree> {
        let output = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .context("git lists the files: install git")?;
        let names = String::from_utf8(output.stdout).context("file names are not UTF-8")?;
        let mut files = Vec::new();
        for name in names.lines().filter(|name| !name.contains("/corpus/")) {
            // A file may have been removed but not yet from the index.
            if let Ok(text) = std::fs::read_to_string(root.join(name)) {
                files.push(File { path: name.into(), text });
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files.dedup_by(|a, b| a.path == b.path);
        Ok(Tree { files })
    }

    fn ending(&self, ending: &str) -> impl Iterator<Item = &File> {
        self.files.iter().filter(move |file| file.path.ends_with(ending))
    }
}

/// The root of the work tree this program was built from.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().and_then(Path::parent).expect("crates/xtask lies two below").to_path_buf()
}

/// Applies every rule to the work tree.
pub fn check_workspace() -> Result<Vec<Finding>> {
    let root = root();
    let tree = Tree::read(&root)?;
    let mut findings = borders::check(&root)?;
    findings.extend(licences::check(&root)?);
    findings.extend(sources::check(&tree));
    findings.extend(documents::check(&tree));
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_keeps_the_rules_of_the_house() {
        let findings = check_workspace().expect("the tree can be read");
        let list: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(list.is_empty(), "{} findings:\n{}", list.len(), list.join("\n"));
    }
}
