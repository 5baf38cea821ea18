//! A node that runs gets one more disk, and lets go of it again, under load and over kills.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{Load, Node, Scratch, Tool, content, wait_free, wait_until};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

const MIB: usize = 1 << 20;
const VOLUME_BYTES: usize = 16 * MIB;
/// What is written between two events.
const WRITES: u64 = 300;

/// A block device made of a file.
struct LoopDevice(String);

impl LoopDevice {
    fn new(scratch: &Scratch, bytes: u64) -> Result<LoopDevice> {
        let image = scratch.join("device.img");
        fs::File::create(&image)?.set_len(bytes)?;
        let words = "--find --show --direct-io=on";
        let device = Tool::new("losetup").words(words).arg(&image).ok()?;
        Ok(LoopDevice(device.trim().to_owned()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Tool::new("losetup").arg("--detach").arg(&self.0).run();
    }
}

fn add(node: &Node, path: &Path) -> Result<String> {
    let added = node.dog_json(&format!("disk add {}", path.display()))?;
    Ok(added["disk"].as_str().context("an id")?.to_owned())
}

/// Paths of the node's disks, with their states.
fn disks(node: &Node) -> Result<Vec<(String, String)>> {
    let list = node.dog_json("disk list")?;
    let text = |disk: &Value, name: &str| disk[name].as_str().unwrap_or_default().to_owned();
    let rows = list.as_array().context("a list")?.iter();
    Ok(rows.map(|disk| (text(disk, "path"), text(disk, "state"))).collect())
}

fn wait_copies(node: &Node, count: u64) -> Result<()> {
    wait_until("all copies are whole", || {
        // It exits with another code while there are warnings.
        let output = node.dog("--json cluster status").run()?;
        let status: Value = serde_json::from_slice(&output.stdout)?;
        let kept = status["copies"].as_array().context("no copies")?;
        let is_whole =
            |kept: &Value| kept["possible"] == count && kept["fewer"] == 0 && kept["waiting"] == 0;
        let is_done = status["attempts"].as_array().is_some_and(Vec::is_empty);
        Ok(is_done && kept.iter().all(is_whole))
    })
}

fn refused(node: &Node, words: &str, part: &str) -> Result<()> {
    let output = node.dog_refuses(words)?;
    ensure!(output.stderr.contains(part), "{part} is not in: {output}");
    Ok(())
}

#[test]
fn a_disk_is_added_and_taken_out_under_load_and_kills() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok(&format!("volume create v {VOLUME_BYTES}"))?;
    let load = Load::start_with_reads(&node.nbd_socket(), "v", vec![0; VOLUME_BYTES]);
    load.wait_for_writes(WRITES)?;

    let second = scratch.join("second");
    let id = add(&node, &second)?;
    ensure!(disks(&node)?.len() == 2, "it is listed at once");
    load.wait_for_writes(WRITES)?;
    node.kill()?;
    node.begin()?;
    wait_copies(&node, 2)?;
    load.wait_for_writes(WRITES)?;
    refused(&node, &format!("disk add {}", second.display()), &id)?;
    node.kill()?;
    node.begin()?;
    load.wait_for_writes(WRITES)?;

    // Both are needed for what is written, unless less is asked for.
    refused(&node, &format!("disk remove --yes {id}"), "ask for 2 copies at least")?;
    node.dog_ok("volume set v --min-copies 1")?;
    node.dog_ok(&format!("disk remove --yes {id}"))?;
    let file = second.join("disk");
    wait_until("the disk is closed", || {
        let is_free = Tool::new("flock").arg("--nonblock").arg(&file).arg("true").run()?;
        Ok(disks(&node)?.len() == 1 && is_free.code == Some(0))
    })?;
    wait_until("the record has forgotten it", || {
        Ok(!fs::read_to_string(node.data().join("node"))?.contains("second"))
    })?;
    refused(&node, &format!("disk add {}", second.display()), "which was one of this node")?;
    load.wait_for_writes(WRITES)?;
    node.kill()?;
    node.begin()?;
    load.wait_for_writes(WRITES)?;
    let history = load.stop()?;
    wait_free(&node, "v")?;
    history.check_latest(&content(&node, "v")?)?;
    ensure!(node.dog_json("status")?["healthy"] == true, "it is not well");
    node.stop()
}

#[test]
fn a_disk_is_added_or_not_wherever_the_node_is_killed() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.expect_log("was being added when sheep ended");
    node.dog_ok(&format!("volume create v {VOLUME_BYTES}"))?;
    node.dog("volume write v --offset 0").input(vec![7; VOLUME_BYTES]).ok()?;
    for (round, after_ms) in [0, 2, 4, 6, 9, 13, 20, 40].into_iter().enumerate() {
        let path = scratch.join(&format!("disk{round}"));
        let adding = std::thread::spawn({
            let tool = node.dog(&format!("disk add {}", path.display()));
            move || tool.run()
        });
        std::thread::sleep(Duration::from_millis(5 + after_ms));
        node.kill()?;
        node.begin()?;
        // Its `dog` may have asked the node that was started since.
        adding.join().expect("no panic")?;
        // What was begun is over a moment after the start.
        let name = path.join("disk").display().to_string();
        wait_until("it is used, or can be added", || {
            let is_used = |disk: &(String, String)| disk.0 == name && disk.1 == "serving";
            if disks(&node)?.iter().any(is_used) {
                return Ok(true);
            }
            Ok(node.dog(&format!("disk add {}", path.display())).run()?.code == Some(0))
        })?;
        ensure!(disks(&node)?.len() == round + 2, "{:?}", disks(&node)?);
        let record = fs::read_to_string(node.data().join("node"))?;
        println!("{after_ms} ms: {record}");
    }
    wait_until("no disk is being made", || {
        Ok(!fs::read_to_string(node.data().join("node"))?.contains("making"))
    })?;
    ensure!(content(&node, "v")? == vec![7; VOLUME_BYTES], "the volume has changed");
    node.stop()
}

#[test]
fn a_device_that_is_pulled_does_not_keep_the_node_from_starting_and_comes_back() -> Result<()> {
    let scratch = Scratch::new()?;
    let device = LoopDevice::new(&scratch, 256 << 20)?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok(&format!("volume create v {VOLUME_BYTES} --min-copies 1"))?;
    node.dog("volume write v --offset 0").input(vec![7; VOLUME_BYTES]).ok()?;

    // What holds something is not taken.
    let format = format!("PATH=$PATH:/usr/sbin mkfs.ext4 -q {}", device.0);
    Tool::new("sh").arg("-c").arg(format).ok()?;
    refused(&node, &format!("disk add {}", device.0), "an ext2, ext3 or ext4 file system")?;
    refused(&node, &format!("disk add {}", node.data().display()), "of this node")?;
    Tool::new("dd")
        .words("if=/dev/zero bs=1M count=4 oflag=direct")
        .arg(format!("of={}", device.0))
        .ok()?;
    refused(&node, &format!("disk add {} --limit 1M", device.0), "give it more room")?;
    let id = add(&node, Path::new(&device.0))?;
    wait_copies(&node, 2)?;
    refused(&node, &format!("disk add {}", device.0), &id)?;
    node.stop()?;

    // Another device is there under its name: the node serves without it, and says so.
    node.expect_log("does not hold this node's disk");
    let head = scratch.join("head");
    let copy = |from: &Path, to: &Path| {
        let [from, to] =
            [("if", from), ("of", to)].map(|(word, at)| format!("{word}={}", at.display()));
        Tool::new("dd").words("bs=8k count=1 conv=notrunc,fsync").arg(from).arg(to).ok()
    };
    copy(Path::new(&device.0), &head)?;
    copy(Path::new("/dev/zero"), Path::new(&device.0))?;
    node.begin()?;
    let status = node.dog_json("status");
    ensure!(status.is_err() || status?["healthy"] == false, "it is well without a disk");
    ensure!(disks(&node)?.iter().any(|disk| disk.1 == "refused"), "{:?}", disks(&node)?);
    node.stop()?;

    // It is plugged in again.
    copy(&head, Path::new(&device.0))?;
    node.begin()?;
    node.dog("volume write v --offset 0").input(vec![8; MIB]).ok()?;
    wait_copies(&node, 2)?;
    node.dog_ok(&format!("disk remove --yes {id}"))?;
    wait_until("it is let go", || Ok(disks(&node)?.len() == 1))?;
    let expected = [vec![8; MIB], vec![7; VOLUME_BYTES - MIB]].concat();
    ensure!(content(&node, "v")? == expected, "the volume has changed");
    node.stop()
}
