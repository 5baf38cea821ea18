//! Completions as the shells themselves make them of the scripts that `dog completions` prints.

use anyhow::{Context, Result, ensure};
use e2e::{Node, Scratch, Tool, dog};
use std::ffi::OsString;

/// Offers what the function of the script leaves behind.
const BASH: &str = r#"
    source <("$DOG" completions bash)
    COMP_WORDBREAKS=$' \t\n"\'@><=;|&(:'
    COMP_LINE=$LINE COMP_POINT=${#LINE}
    _dog "$DOG"
    printf '%s\n' "${COMPREPLY[@]}"
"#;

/// Types the line and a tab into a shell on a terminal, whose `compadd` says what it is given.
const ZSH: &str = r#"
    mkdir -p "$FUNCTIONS" && dog completions zsh >"$FUNCTIONS/_dog" || exit
    zmodload zsh/zpty && zpty shell zsh -f -i || exit
    zpty -w shell "PS1=; unsetopt prompt_cr; fpath=(${(q)FUNCTIONS} \$fpath)"
    zpty -w shell 'autoload -Uz compinit; compinit -u -D'
    zpty -w shell 'compadd() {
        local hit; local -a hits; builtin compadd -A hits "$@"
        for hit in $hits; do print -r -- "<$hit>"; done
        builtin compadd "$@"
    }'
    zpty -w shell 'finish() { print "<<end"">>"; BUFFER= }; zle -N finish'
    zpty -w shell 'bindkey "^I" complete-word; bindkey "^X" finish; print "<<ready"">>"'
    zpty -r -m shell said '*<<ready>>*' || exit
    zpty -w -n shell "$LINE"$'\t\x18'
    zpty -r -m shell said '*<<end>>*' || exit
    print -r -- "$said" | tr -d '\r' | sed -n 's/.*<\([^<>]\{1,\}\)>$/\1/p'
"#;

/// Asks for completions, which come with a tab and their description.
const FISH: &str = r#"
    dog completions fish | source
    complete --do-complete "$LINE" | string replace --regex '\t.*' ''
    true
"#;

/// What a shell offers for this line, with the cursor at its end; sorted, each once.
fn completed(node: &Node, shell: &str, line: &str) -> Result<Vec<String>> {
    let (options, script) = match shell {
        "bash" => ("--norc --noprofile -c", BASH),
        "zsh" => ("-f -c", ZSH),
        _ => ("--no-config -c", FISH),
    };
    let dog = dog();
    let mut path = OsString::from(dog.parent().context("dog lies in no directory")?);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let said = Tool::new(shell)
        .words(options)
        .arg(script)
        .env("PATH", path)
        .env("DOG", &dog)
        .env("LINE", line)
        .env("FUNCTIONS", node.data().with_file_name("functions"))
        .env("HOME", node.data().with_file_name("home"))
        .env("SHEEP_DATA", node.data())
        .ok()?;
    let mut found: Vec<String> = said.lines().map(|line| line.trim().to_owned()).collect();
    found.retain(|line| !line.is_empty());
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn node(scratch: &Scratch) -> Result<Node> {
    let node = Node::start(&scratch.join("data"), &[])?;
    for name in ["disk1", "disk2", "other"] {
        node.dog_ok(&format!("volume create {name} 1M"))?;
    }
    node.dog_ok("volume snapshot disk1@monday")?;
    node.dog_ok("volume snapshot disk1@tuesday")?;
    Ok(node)
}

#[test]
fn bash_completes_the_names_of_volumes_and_snapshots() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = node(&scratch)?;
    let check = |line: &str, expected: &[&str]| -> Result<()> {
        let found = completed(&node, "bash", line)?;
        ensure!(found == expected, "`{line}` is completed to {found:?}");
        Ok(())
    };
    check("dog volume info d", &["disk1", "disk2"])?;
    check("dog volume clone oth", &["other@"])?;
    // bash takes what is behind the @ for a word of its own.
    check("dog volume info disk1@", &["monday", "tuesday"])?;
    check("dog volume rollback disk1@t", &["tuesday"])?;
    check("dog volume info nothere@", &[])?;
    check("dog volume snapshots", &["snapshots"])?;
    check("dog volume resize disk1 2M --allow", &["--allow-shrink"])?;
    check("dog volume export disk1 f --format=q", &["qcow2"])?;
    let disk = node.dog_json("disk list")?[0]["disk"].as_str().context("no disk")?.to_owned();
    check("dog disk scrub start --disk ", &[&disk])?;
    let data = node.data().display().to_string();
    check(&format!("dog --data {data} volume flush o"), &["other"])?;
    check(
        &format!("dog volume write disk1 --offset 0 {data}/admin"),
        &[&format!("{data}/admin.sock")],
    )?;
    node.stop()?;
    // Nobody answers: nothing is said.
    ensure!(completed(&node, "bash", "dog volume info d")?.is_empty());
    Ok(())
}

#[test]
fn zsh_and_fish_complete_the_names_of_volumes_and_snapshots() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = node(&scratch)?;
    let disk = node.dog_json("disk list")?[0]["disk"].as_str().context("no disk")?.to_owned();
    let data = node.data().display().to_string();
    let flush = format!("dog --data {data} volume flush o");
    for shell in ["zsh", "fish"] {
        for (line, expected) in [
            ("dog volume info d", &["disk1", "disk2"][..]),
            ("dog volume clone oth", &["other@"]),
            ("dog volume info disk1@", &["disk1@monday", "disk1@tuesday"]),
            ("dog volume rollback disk1@t", &["disk1@tuesday"]),
            ("dog volume info nothere@", &[]),
            ("dog volume snapshots", &["snapshots"]),
            ("dog volume resize disk1 2M --allow", &["--allow-shrink"]),
            ("dog volume export disk1 f --format=q", &["--format=qcow2"]),
            ("dog disk scrub start --disk ", &[&disk]),
            (&flush, &["other"]),
        ] {
            let found = completed(&node, shell, line)?;
            ensure!(found == expected, "{shell} completes `{line}` to {found:?}");
        }
        // Files, of which each shell offers what is missing in a way of its own.
        let line = format!("dog volume write disk1 --offset 0 {data}/admin");
        let found = completed(&node, shell, &line)?;
        let is_file = found.iter().any(|found| found.ends_with("admin.sock"));
        ensure!(is_file, "{shell} completes `{line}` to {found:?}");
    }
    node.stop()?;
    // Nobody answers: nothing is said.
    for shell in ["zsh", "fish"] {
        ensure!(completed(&node, shell, "dog volume info d")?.is_empty());
    }
    Ok(())
}
