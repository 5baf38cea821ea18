//! Who may do what on the local sockets: the group attaches, the owner manages, others do neither.
//! Needs root, to be several users.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Result, ensure};
use e2e::{Node, Scratch, Tool, dog};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Somebody else's number, and that of the group which may attach. No such accounts are needed.
const STRANGER: u32 = 64_999;
const GROUP: u32 = 64_998;

fn as_stranger(group: u32, program: &str) -> Tool {
    Tool::new("setpriv")
        .arg(format!("--reuid={STRANGER}"))
        .arg(format!("--regid={group}"))
        .arg("--clear-groups")
        .arg(program)
}

#[test]
fn the_group_attaches_and_only_the_owner_manages() -> Result<()> {
    let scratch = Scratch::public()?;
    let data = scratch.join("data");
    let mut node = Node::start(&data, &["--socket-group", &GROUP.to_string()])?;
    node.dog_ok("volume create v 64M")?;
    let program = scratch.join("dog");
    fs::copy(dog(), &program)?;
    let program = program.to_str().expect("scratch paths are plain");
    let manage = |group| {
        as_stranger(group, program).arg("--data").arg(&data).words("volume create w 64M").run()
    };

    let write = ["-f", "raw", "-c", "write -P 1 0 1M"];
    as_stranger(GROUP, "qemu-io").args(write).arg(node.uri("v")).ok()?;
    let refused = as_stranger(STRANGER, "qemu-io").args(write).arg(node.uri("v")).run()?;
    ensure!(refused.code != Some(0), "a stranger attaches: {refused}");
    for group in [GROUP, STRANGER] {
        let refused = manage(group)?;
        ensure!(refused.code == Some(1), "a stranger manages: {refused}");
        ensure!(refused.stderr.contains("ermission"), "{refused}");
    }
    // Nor is the data for anybody else.
    for file in ["disk", "cluster"] {
        let mode = fs::metadata(data.join(file))?.permissions().mode();
        ensure!(mode & 0o077 == 0, "{file} has mode {mode:o}");
    }
    let listed = as_stranger(GROUP, "ls").arg(&data).run()?;
    ensure!(listed.code != Some(0), "a stranger lists the directory: {listed}");
    node.stop()
}
