//! A full disk is an error for new data, and for nothing else.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Result, ensure};
use e2e::{DiskSetup, Guest, LoopMount, Machine, Node, Scratch, Tool, ToolOutput};
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const GUEST_TIME_LIMIT: Duration = Duration::from_secs(180);

/// Runs qemu-io's commands in one connection; tells whether all went well.
fn qemu_io(node: &Node, volume: &str, commands: &[String]) -> Result<ToolOutput> {
    let mut tool = Tool::new("qemu-io").words("-f raw -t none -d unmap");
    for command in commands {
        tool = tool.arg("-c").arg(command);
    }
    tool.arg(node.uri(volume)).run()
}

/// Writes MiB after MiB until one is refused; gives how many there were.
fn fill(node: &Node, volume: &str, volume_mib: u64) -> Result<u64> {
    let writes: Vec<String> =
        (0..volume_mib).map(|mib| format!("write -P {} {mib}M 1M", mib % 250 + 1)).collect();
    let output = qemu_io(node, volume, &writes)?;
    let text = output.text() + &output.stderr;
    ensure!(text.contains("No space left on device"), "the disk never got full: {text}");
    // Behind the first refusal some more may have fitted into what its failed pieces left.
    let said = output.text();
    let (fitted, _) = said.split_once("write failed").unwrap_or((&said, ""));
    let written = fitted.matches("wrote 1048576/1048576").count() as u64;
    ensure!(written > 16 && written < volume_mib, "{written} MiB fitted");
    Ok(written)
}

/// All that must go on when the disk is full, and what must come back once there is space.
fn full_then_free(node: &mut Node) -> Result<()> {
    node.dog_ok("volume create v 2G")?;
    node.dog_ok("volume create w 64M")?;
    qemu_io(node, "w", &["write -P 99 0 4M".to_owned()])?;
    let written = fill(node, "v", 2048)?;
    let status = node.dog("status").run()?;
    ensure!(
        status.text().to_lowercase().contains("full") || status.text().contains("space"),
        "{status}"
    );

    // What was written is there.
    let last = written - 1;
    let read = ["read -P 1 0 1M".to_owned(), format!("read -P {} {last}M 1M", last % 250 + 1)];
    let output = qemu_io(node, "v", &read)?;
    ensure!(!output.text().contains("failed"), "reading back: {output}");

    // Reading, overwriting, zeroing, flushing and trimming go on.
    let go_on = [
        "write -P 77 0 1M".to_owned(),
        "write -P 78 512 512".to_owned(),
        "write -f -P 77 1M 64k".to_owned(),
        "flush".to_owned(),
        "read -P 77 4k 1020k".to_owned(),
        "write -z -u 2M 64k".to_owned(),
    ];
    for _ in 0..3 {
        let output = qemu_io(node, "v", &go_on)?;
        let text = output.text() + &output.stderr;
        ensure!(output.code == Some(0) && !text.contains("failed"), "on a full disk: {text}");
    }
    // A kill changes none of it.
    node.kill()?;
    node.begin()?;
    let output = qemu_io(node, "v", &go_on)?;
    ensure!(output.code == Some(0), "on a full disk after a kill: {output}");

    // Space that is trimmed can be written again.
    let again = [
        "discard 8M 8M".to_owned(),
        "flush".to_owned(),
        format!("write -P 55 {}M 4M", written + 4),
        format!("read -P 55 {}M 4M", written + 4),
    ];
    let output = qemu_io(node, "v", &again)?;
    let text = output.text() + &output.stderr;
    ensure!(output.code == Some(0) && !text.contains("failed"), "after a trim: {text}");

    // And so can what a deleted volume held.
    node.dog_ok("volume delete v --now --yes")?;
    node.dog_ok("volume create x 2G")?;
    let begin = std::time::Instant::now();
    loop {
        let output =
            qemu_io(node, "x", &["write -P 11 0 16M".to_owned(), "read -P 11 0 16M".to_owned()])?;
        if output.code == Some(0) && !output.text().contains("failed") {
            break;
        }
        ensure!(
            begin.elapsed() < Duration::from_secs(30),
            "no space comes back after delete: {output}"
        );
    }
    let output = qemu_io(node, "w", &["read -P 99 0 4M".to_owned()])?;
    ensure!(output.code == Some(0), "the other volume: {output}");
    Ok(())
}

#[test]
fn a_full_store_refuses_new_data_only() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &["--limit", "256M"])?;
    node.expect_log("space");
    node.expect_log("full");
    full_then_free(&mut node)?;
    node.stop()
}

#[test]
fn a_full_file_system_under_the_store_is_the_same() -> Result<()> {
    let scratch = Scratch::new()?;
    let mount = LoopMount::new(&scratch, "mkfs.ext4 -q -m 0", 384 * MIB, 512)?;
    let mut node = Node::start(&mount.path().join("data"), &[])?;
    node.expect_log("space");
    node.expect_log("full");
    full_then_free(&mut node)?;
    node.stop()
}

#[test]
fn somebody_else_fills_the_file_system_and_frees_it_again() -> Result<()> {
    let scratch = Scratch::new()?;
    let mount = LoopMount::new(&scratch, "mkfs.ext4 -q -m 0", 512 * MIB, 512)?;
    let mut node = Node::start(&mount.path().join("data"), &[])?;
    node.expect_log("space");
    node.expect_log("full");
    node.dog_ok("volume create v 1G")?;
    qemu_io(&node, "v", &["write -P 3 0 16M".to_owned()])?;
    let hog = mount.path().join("hog");
    eat_all_space(&hog)?;
    let written = fill(&node, "v", 1024)?;
    let output = qemu_io(
        &node,
        "v",
        &["write -P 4 0 1M".to_owned(), "flush".to_owned(), "read -P 4 0 1M".to_owned()],
    )?;
    ensure!(output.code == Some(0) && !output.text().contains("failed"), "overwriting: {output}");
    std::fs::remove_file(&hog)?;
    let more = format!("write -P 9 {}M 32M", written + 8);
    let begin = std::time::Instant::now();
    loop {
        let output = qemu_io(&node, "v", std::slice::from_ref(&more))?;
        if output.code == Some(0) && !(output.text() + &output.stderr).contains("failed") {
            break;
        }
        ensure!(begin.elapsed() < Duration::from_secs(30), "writing does not resume: {output}");
    }
    node.stop()
}

fn eat_all_space(hog: &Path) -> Result<()> {
    let output =
        Tool::new("dd").words("if=/dev/zero bs=1M").arg(format!("of={}", hog.display())).run()?;
    ensure!(output.stderr.contains("No space left"), "{output}");
    Ok(())
}

#[test]
fn a_guest_with_werror_enospc_pauses_and_resumes() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &["--limit", "256M"])?;
    node.expect_log("space");
    node.expect_log("full");
    node.dog_ok("volume create ballast 512M")?;
    qemu_io(&node, "ballast", &["write -P 1 0 96M".to_owned()])?;
    node.dog_ok("volume create v 512M")?;
    let mut guest = Guest::boot(Machine::Initramfs, &DiskSetup::new(&node.nbd_socket(), "v"))?;
    let fio = "fio --name=f --filename=/dev/vda --size=160m --rw=write --bs=256k --direct=1 \
               --ioengine=libaio --iodepth=4 --verify=crc32c --verify_fatal=1 \
               --output=/tmp/fio; code=$?; cat /tmp/fio; exit $code";
    let running = guest.begin(fio)?;
    guest.qmp().wait_event("STOP", GUEST_TIME_LIMIT)?;
    let error = guest.qmp().wait_event("BLOCK_IO_ERROR", Duration::from_secs(1))?;
    ensure!(error["data"]["nospace"] == true && error["data"]["action"] == "stop", "{error}");
    let state = guest.qmp().execute("query-status", serde_json::json!({}))?;
    ensure!(state["status"] == "io-error", "{state}");

    // Space is freed, the guest goes on; what it has not noticed, it cannot complain of.
    node.dog_ok("volume delete ballast --now --yes")?;
    let begin = std::time::Instant::now();
    loop {
        guest.qmp().execute("cont", serde_json::json!({}))?;
        // The space comes back in the background; too early a try pauses the guest again.
        if guest.qmp().wait_event("STOP", Duration::from_secs(2)).is_err() {
            break;
        }
        ensure!(begin.elapsed() < Duration::from_secs(60), "the guest cannot go on");
    }
    let output = guest.finish(running, GUEST_TIME_LIMIT)?;
    ensure!(output.code == 0, "fio in the guest: {}", output.output);
    let errors = guest.ok("dmesg | grep -iE 'I/O error' || true", GUEST_TIME_LIMIT)?;
    ensure!(errors.is_empty(), "the guest's kernel saw: {errors}");
    guest.power_off()?;
    node.stop()
}
