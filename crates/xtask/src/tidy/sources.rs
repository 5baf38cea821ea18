//! Rules for Rust sources and the root manifest.

use super::{File, Finding, Tree};

/// Longest line, in characters.
const COLUMNS_MAX: usize = 100;
/// Longest file without a justification in its header, in lines.
const LINES_MAX: usize = 1000;
/// Crates whose product code must be pure.
const CORE: &[&str] =
    &["proto", "cluster", "store", "replica", "volume", "front", "link", "engine"];
/// Where unsafe code is allowed, each block with its proof.
const UNSAFE_ALLOWED: &[&str] =
    &["crates/node/src/", "crates/front/src/vhost_user/", "crates/e2e/"];
/// How unsafe code begins: a block of its own, a value, a function. In halves, as below.
const UNSAFE: &[[&str; 2]] = &[["unsa", "fe {"], ["unsa", "fe fn"], ["unsa", "fe impl"]];
/// File names that say nothing.
const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "common", "manager", "misc"];

/// Text that may not stand in any source, and what to do instead. Written in two halves so that
/// this file passes its own rule.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("todo", "!(", "build it, or leave it visibly absent"),
    ("unimplemented", "!(", "build it, or leave it visibly absent"),
    ("dbg", "!(", "trace it, or drop it"),
    ("#[igno", "re", "mend the test or delete it"),
    ("fn get", "_", "name it for what it gives, without the prefix"),
    ("FIX", "ME", "mend it now"),
    ("TO", "DO", "do it, or write an issue"),
];

/// Text that may not stand in product code of a core crate.
const IMPURE: &[(&str, &str)] = &[
    ("std::fs", "only `node` opens files"),
    ("std::net", "only `node` opens sockets"),
    ("std::thread::spawn", "machines have no threads"),
    ("Instant::now", "time comes in with each event"),
    ("SystemTime", "wall time decides nothing"),
    ("HashMap", "its order differs from run to run: use BTreeMap"),
    ("HashSet", "its order differs from run to run: use BTreeSet"),
    ("rand::", "randomness comes in from outside"),
    ("println!", "only `node` prints"),
];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.ending(".rs") {
        check_lines(file, &mut findings);
        check_file(file, &mut findings);
    }
    check_limits(tree, &mut findings);
    check_manifest(tree, &mut findings);
    check_planted(tree, &mut findings);
    findings
}

/// The part of a file before its tests.
fn product(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

fn crate_of(path: &str) -> Option<&str> {
    path.strip_prefix("crates/")?.split('/').next()
}

fn check_lines(file: &File, findings: &mut Vec<Finding>) {
    let mut report = |line: usize, message: String| {
        findings.push(Finding::new(&file.path, line + 1, message));
    };
    let pure = crate_of(&file.path).is_some_and(|name| CORE.contains(&name))
        && file.path.contains("/src/")
        && !is_test_file(&file.path);
    let product_lines = product(&file.text).lines().count();
    for (at, line) in file.text.lines().enumerate() {
        if line.chars().count() > COLUMNS_MAX {
            report(at, format!("longer than {COLUMNS_MAX} columns: break the line"));
        }
        if line.contains('\t') {
            report(at, "a tab: use spaces".into());
        }
        for (head, tail, remedy) in FORBIDDEN {
            let word = format!("{head}{tail}");
            // `Vec` and others have one of this name, and what behaves like them may too.
            if line.contains(&word) && !line.contains("fn get_mut(") {
                report(at, format!("`{word}`: {remedy}"));
            }
        }
        let code = line.split("//").next().unwrap_or(line);
        if pure && at < product_lines {
            for (word, remedy) in IMPURE {
                if code.contains(word) {
                    report(at, format!("`{word}` in the core: {remedy}"));
                }
            }
        }
        let unsafe_here = UNSAFE.iter().any(|words| code.contains(&words.concat()));
        if unsafe_here && !UNSAFE_ALLOWED.iter().any(|path| file.path.starts_with(path)) {
            report(at, "unsafe code outside the modules that may: find a safe way".into());
        }
        if ["src", "dst"].iter().any(|name| declares(code, name)) {
            report(at, "`src` and `dst`: call them source and target".into());
        }
    }
}

/// Whether a line declares something of exactly this name.
fn declares(code: &str, name: &str) -> bool {
    [format!("let {name} "), format!("let mut {name} "), format!(" {name}: "), format!("({name}: ")]
        .iter()
        .any(|pattern| code.contains(pattern.as_str()))
}

fn is_test_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    path.contains("/tests/") || path.contains("/model/") || matches!(name, "tests.rs" | "model.rs")
}

fn check_file(file: &File, findings: &mut Vec<Finding>) {
    let name = file.path.rsplit('/').next().unwrap_or(&file.path).trim_end_matches(".rs");
    if EMPTY_NAMES.contains(&name) {
        let message = format!("`{name}` says nothing: name the file for its one noun");
        findings.push(Finding::new(&file.path, 0, message));
    }
    let lines = file.text.lines().count();
    let justified = file.text.lines().take(40).any(|line| line.contains("Long because"));
    if lines > LINES_MAX && !justified {
        let message = format!(
            "{lines} lines: split it, or justify it in its header with a line that begins \
             \"Long because\""
        );
        findings.push(Finding::new(&file.path, 0, message));
    }
    let opens = ["lib.rs", "main.rs"].contains(&file.path.rsplit('/').next().unwrap_or_default());
    if opens && !file.text.starts_with("//!") {
        let message = "a crate opens with `//!`: what it is, what it must never do, its main type";
        findings.push(Finding::new(&file.path, 1, message));
    }
}

/// Every limit is used somewhere but where it is defined.
fn check_limits(tree: &Tree, findings: &mut Vec<Finding>) {
    const LIMITS: &str = "crates/proto/src/limits.rs";
    let Some(limits) = tree.files.iter().find(|file| file.path == LIMITS) else { return };
    for (at, line) in limits.text.lines().enumerate() {
        let Some(rest) = line.strip_prefix("pub const ") else { continue };
        let name = rest.split(':').next().unwrap_or(rest);
        let used = tree.ending(".rs").any(|f| f.path != LIMITS && f.text.contains(name));
        if !used {
            let message = format!("{name} is used nowhere: enforce it or delete it");
            findings.push(Finding::new(LIMITS, at + 1, message));
        }
    }
}

/// What is released has no mistakes in it that could be planted (decision 0011), and nobody plants
/// one but the simulator.
fn check_planted(tree: &Tree, findings: &mut Vec<Finding>) {
    for file in tree.ending(".rs") {
        let may = matches!(crate_of(&file.path), Some("proto" | "sim" | "xtask"));
        for (at, line) in file.text.lines().enumerate() {
            let plants = line.contains("proto::plant(") || line.contains("proto::plant;");
            if plants && !may {
                let message = "only the simulator plants mistakes".to_string();
                findings.push(Finding::new(&file.path, at + 1, message));
            }
        }
    }
    let Some(manifest) = tree.files.iter().find(|file| file.path == "Cargo.toml") else { return };
    let mut is_released = false;
    for (at, line) in manifest.text.lines().enumerate() {
        if line.starts_with('[') {
            is_released = line.starts_with("[profile.release");
        } else if is_released && line.starts_with("debug-assertions") {
            let message = "debug assertions put mistakes into what is released: leave them off";
            findings.push(Finding::new("Cargo.toml", at + 1, message));
        }
    }
}

/// Every outside crate has its reason beside it in the root manifest.
fn check_manifest(tree: &Tree, findings: &mut Vec<Finding>) {
    let Some(manifest) = tree.files.iter().find(|file| file.path == "Cargo.toml") else { return };
    let mut inside = false;
    for (at, line) in manifest.text.lines().enumerate() {
        if line.starts_with('[') {
            inside = line == "[workspace.dependencies]";
        } else if inside && line.contains('=') && !line.contains("path =") && !line.contains('#') {
            let message = "a dependency without its reason: say why in a comment on the line";
            findings.push(Finding::new("Cargo.toml", at + 1, message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let file = File { path: path.into(), text: text.into() };
        check(&Tree { files: vec![file] }).into_iter().map(|f| f.to_string()).collect()
    }

    #[test]
    fn each_rule_finds_its_breach() {
        let long = format!("//! x\nconst A: &str = \"{}\";\n", "a".repeat(100));
        let tests_may = "//! x\n#[cfg(test)]\nmod tests { use std::collections::HashMap; }\n";
        let table = [
            ("crates/store/src/log.rs", "//! x\nfn a() {}\n", 0),
            ("crates/store/src/lib.rs", "fn a() {}\n", 1),
            ("crates/store/src/log.rs", long.as_str(), 1),
            ("crates/store/src/log.rs", "//! x\nuse std::collections::HashMap;\n", 1),
            ("crates/store/src/log.rs", tests_may, 0),
            ("crates/node/src/log.rs", "//! x\nuse std::collections::HashMap;\n", 0),
            ("crates/store/src/utils.rs", "//! x\n", 1),
            ("crates/store/src/log.rs", "//! x\nfn a() { let src = 1; }\n", 1),
            ("crates/store/src/log.rs", "//! x\nfn a() { UNSAFE { b() } }\n", 1),
            ("crates/node/src/log.rs", "//! x\nfn a() { UNSAFE { b() } }\n", 0),
        ];
        for (path, text, count) in table {
            let text = text.replace("UNSAFE", &UNSAFE[0].concat().replace(" {", ""));
            let found = findings(path, &text);
            assert_eq!(found.len(), count, "{path}: {text:?}: {found:?}");
        }
        let placeholder = ["//! x\nfn a() { todo", "!() }\n"].concat();
        assert_eq!(findings("crates/node/src/a.rs", &placeholder).len(), 1);
        let endless = format!("//! x\n{}", "fn a() {}\n".repeat(1000));
        assert_eq!(findings("crates/node/src/a.rs", &endless).len(), 1);
        let justified = format!("//! Long because x\n{}", "fn a() {}\n".repeat(1000));
        assert!(findings("crates/node/src/a.rs", &justified).is_empty());
    }

    #[test]
    fn a_limit_nobody_enforces_and_a_dependency_without_reason_are_found() {
        let limit = "//! x\npub const QUEUE_MAX: usize = 1;\n";
        assert_eq!(findings("crates/proto/src/limits.rs", limit).len(), 1);
        let manifest = "[workspace.dependencies]\na = \"1\"\nb = \"1\" # needed\n";
        assert_eq!(findings("Cargo.toml", manifest).len(), 1);
    }

    #[test]
    fn mistakes_in_what_is_released_are_found() {
        for profile in ["[profile.release]", "[profile.release.package.store]"] {
            let manifest = format!("{profile}\ndebug-assertions = true\n");
            assert_eq!(findings("Cargo.toml", &manifest).len(), 1, "{profile}");
        }
        assert!(findings("Cargo.toml", "[profile.hunt]\ndebug-assertions = true\n").is_empty());
        let plants = "//! x\nfn a() { proto::plant(None) }\n";
        assert_eq!(findings("crates/node/src/a.rs", plants).len(), 1);
        assert!(findings("crates/sim/src/a.rs", plants).is_empty());
    }
}
