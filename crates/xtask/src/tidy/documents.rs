//! Rules for documents.

use super::{File, Finding, Tree};

/// Longest ARCHITECTURE.md, in lines: it is a map of a country, not of every street.
const ARCHITECTURE_LINES_MAX: usize = 300;

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.ending(".md") {
        check_headings(file, &mut findings);
    }
    for file in tree.files.iter().filter(|file| file.path == "ARCHITECTURE.md") {
        let lines = file.text.lines().count();
        if lines > ARCHITECTURE_LINES_MAX {
            let message = format!("{lines} lines: keep it under {ARCHITECTURE_LINES_MAX}");
            findings.push(Finding::new(&file.path, 0, message));
        }
    }
    check_promised_tests(tree, &mut findings);
    findings
}

/// One heading of the first level, and it comes first.
fn check_headings(file: &File, findings: &mut Vec<Finding>) {
    let mut fenced = false;
    let mut count = 0;
    for line in file.text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced && line.starts_with("# ") {
            count += 1;
        }
    }
    if count != 1 {
        let message = format!("{count} headings of the first level: a document has one");
        findings.push(Finding::new(&file.path, 0, message));
    }
}

/// Every test that PROMISES.md names in backquotes exists.
fn check_promised_tests(tree: &Tree, findings: &mut Vec<Finding>) {
    let Some(promises) = tree.files.iter().find(|file| file.path == "PROMISES.md") else {
        findings.push(Finding::new("PROMISES.md", 0, "it is missing: say what is promised"));
        return;
    };
    for (at, line) in promises.text.lines().enumerate() {
        for name in line.split('`').skip(1).step_by(2).filter(|name| is_test_name(name)) {
            let function = format!("fn {}(", name.rsplit("::").next().unwrap_or(name));
            if !tree.ending(".rs").any(|file| file.text.contains(&function)) {
                let message = format!("there is no test `{name}`: write it, or say \"untested\"");
                findings.push(Finding::new("PROMISES.md", at + 1, message));
            }
        }
    }
}

/// A test's name is a sentence: words joined by underscores, at least three of them.
fn is_test_name(name: &str) -> bool {
    let last = name.rsplit("::").next().unwrap_or(name);
    last.matches('_').count() >= 2
        && last.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_with_a_test_that_does_not_exist_is_found() {
        let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
        let promises = "# P\n`nothing_is_ever_lost` and `a::all_is_well_here`, `cargo test`\n";
        let tree = Tree {
            files: vec![file("PROMISES.md", promises), file("a.rs", "fn all_is_well_here() {}")],
        };
        let found = check(&tree);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].message.contains("nothing_is_ever_lost"));
        let two = Tree { files: vec![file("PROMISES.md", "# a\n# b\n```\n# c\n```\n")] };
        assert_eq!(check(&two).len(), 1);
    }
}
