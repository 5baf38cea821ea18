//! Images go in and come out as they were: content, size and holes.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{Node, Scratch, Tool, dog, patchy_file};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn allocated(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}

#[test]
fn images_come_out_as_they_went_in() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    let raw = scratch.join("in.raw");
    patchy_file(&raw, 64 * MIB)?;
    let qcow2 = scratch.join("in.qcow2");
    Tool::new("qemu-img").words("convert -f raw -O qcow2").arg(&raw).arg(&qcow2).ok()?;

    node.dog("volume import").arg(&raw).arg("raw").ok()?;
    node.dog("volume import").arg(&qcow2).arg("qcow2").ok()?;
    node.dog("volume import - piped --size 64M").input(fs::read(&raw)?).ok()?;
    for volume in ["raw", "qcow2", "piped"] {
        let used = node.used_bytes(volume)?;
        ensure!(used == 10 * MIB, "{volume} uses {used} bytes");
        let out = scratch.join("out.raw");
        node.dog("volume export").arg(volume).arg(&out).ok()?;
        Tool::new("cmp").arg(&raw).arg(&out).ok()?;
        let taken = allocated(&out)?;
        ensure!(taken <= 11 * MIB, "the export of {volume} takes {taken} bytes");
        // A file that is there is not written over unless that is said.
        let refused = node.dog("volume export").arg(volume).arg(&out).run()?;
        ensure!(refused.code == Some(4), "{refused}");
        fs::remove_file(&out)?;

        let out = scratch.join("out.qcow2");
        node.dog("volume export --format qcow2").arg(volume).arg(&out).ok()?;
        Tool::new("qemu-img").words("compare -f raw -F qcow2").arg(&raw).arg(&out).ok()?;
        fs::remove_file(&out)?;
    }
    let piped = node.dog("volume export raw -").run()?;
    ensure!(piped.stdout == fs::read(&raw)?, "the pipe brings something else");

    // Importing over a volume replaces all of it, also what the new image has as holes.
    let refused = node.dog("volume import").arg(&raw).arg("raw").run()?;
    ensure!(refused.code == Some(4), "{refused}");
    node.dog("volume write raw --offset 40M").input(vec![9; 1 << 20]).ok()?;
    node.dog("volume import --overwrite").arg(&raw).arg("raw").ok()?;
    Tool::new("qemu-img").words("compare -f raw -F raw").arg(&raw).arg(node.uri("raw")).ok()?;
    ensure!(node.used_bytes("raw")? == 10 * MIB, "what was there before is still there");
    node.stop()
}

#[test]
fn an_interrupted_import_leaves_nothing_behind() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    // A pipe that never ends keeps the import going until it is interrupted. Nothing comes out of
    // it, so nothing could be recognised in it either.
    let (reader, writer) = std::io::pipe()?;
    let mut child = std::process::Command::new(dog())
        .arg("--data")
        .arg(node.data())
        .args(["volume", "import", "-", "v", "--size", "1G", "--format", "raw"])
        .stdin(reader)
        .stdout(File::create(scratch.join("out"))?)
        .stderr(File::create(scratch.join("err"))?)
        .spawn()?;
    let begin = Instant::now();
    while node.dog_json("volume list")?.as_array().is_none_or(Vec::is_empty) {
        ensure!(begin.elapsed() < Duration::from_secs(20), "the import never begins");
    }
    kill_process(Pid::from_child(&child), Signal::INT)?;
    let status = child.wait()?;
    drop(writer);
    let said = fs::read_to_string(scratch.join("err"))?;
    ensure!(status.code() == Some(130), "{status:?} {:?}: {said}", status.signal());
    let list = node.dog_json("volume list")?;
    ensure!(list.as_array().is_some_and(Vec::is_empty), "{list}");
    node.stop()
}

/// Begins an import from a pipe, kills dog when it has the volume, and gives the name of the
/// volume that is left.
fn killed_import(node: &Node, scratch: &Scratch, options: &[&str]) -> Result<String> {
    let (reader, mut writer) = std::io::pipe()?;
    let mut child = std::process::Command::new(dog())
        .arg("--data")
        .arg(node.data())
        .args(["volume", "import", "-", "v"])
        .args(options)
        .stdin(reader)
        .stdout(File::create(scratch.join("out"))?)
        .stderr(File::create(scratch.join("err"))?)
        .spawn()?;
    writer.write_all(&vec![0x55; 24 * MIB as usize])?;
    let name = wait_for_import(node, |volume| !volume["attachment"].is_null())?;
    child.kill()?;
    child.wait()?;
    drop(writer);
    // The daemon learns of the death when the connection ends.
    wait_for_import(node, |volume| volume["attachment"].is_null())?;
    Ok(name)
}

/// Waits for the volume that is being imported to be as `wanted` says; gives its name.
fn wait_for_import(node: &Node, wanted: impl Fn(&Value) -> bool) -> Result<String> {
    let begin = Instant::now();
    loop {
        let list = node.dog_json("volume list")?;
        let volumes = list.as_array().context("a list")?;
        let importing = volumes.iter().find(|volume| volume["importing"] == "v");
        if let Some(volume) = importing.filter(|volume| wanted(volume)) {
            return Ok(volume["name"].as_str().context("a name")?.to_owned());
        }
        ensure!(begin.elapsed() < Duration::from_secs(20), "the import does not get there: {list}");
    }
}

/// A volume that was half filled when dog was killed looked like any other.
#[test]
fn what_a_killed_import_leaves_is_no_volume_and_is_told() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    let left = killed_import(&node, &scratch, &["--format", "raw"])?;
    let missing = node.dog_refuses("volume info v")?;
    ensure!(missing.code == Some(3), "{missing}");
    let list = node.dog_ok("volume list")?;
    ensure!(list.contains("unfinished import of v, begun 20"), "{list}");
    let remedy = format!("volume delete {left} --now --yes");
    let status = node.dog_ok("status")?;
    ensure!(status.contains(&format!("dog {remedy}")), "{status}");
    // What the status says helps.
    node.dog_ok(&remedy)?;
    let status = node.dog_ok("status")?;
    ensure!(!status.contains("warning"), "{status}");
    let image = vec![0x66; 4 * MIB as usize];
    node.dog("volume import - v --format raw").input(image).ok()?;
    let list = node.dog_json("volume list")?;
    ensure!(list[0]["name"] == "v" && list[0]["importing"].is_null(), "{list}");
    node.stop()
}

/// As above, for an import that replaces what a volume had.
#[test]
fn a_volume_half_replaced_by_a_killed_import_is_told_from_a_whole_one() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    let image = scratch.join("image");
    fs::write(&image, vec![0x77; 8 * MIB as usize])?;
    node.dog_ok("volume create v 64M")?;
    let left = killed_import(&node, &scratch, &["--format", "raw", "--overwrite"])?;
    ensure!(node.dog_refuses("volume info v")?.code == Some(3), "half a volume is to be had");
    let list = node.dog_ok("volume list")?;
    ensure!(list.contains("unfinished import over v"), "{list}");
    let remedy = format!("volume rename {left} v");
    let status = node.dog_ok("status")?;
    ensure!(status.contains(&format!("dog {remedy}")), "{status}");
    node.dog_ok(&remedy)?;
    node.dog("volume import --overwrite --format raw").arg(&image).arg("v").ok()?;
    ensure!(node.used_bytes("v")? == 8 * MIB, "it is not replaced");
    ensure!(!node.dog_ok("status")?.contains("warning"), "there is still something to say");
    // An image that turns out too long: the volume has its name again, and the failure is told.
    node.dog_ok("volume resize v 4M --allow-shrink")?;
    let failed = Tool::new("sh")
        .words("-c")
        .arg("cat \"$0\" | \"$1\" --data \"$2\" volume import - v --overwrite --format raw")
        .arg(&image)
        .arg(dog())
        .arg(node.data())
        .run()?;
    ensure!(failed.code == Some(2) && failed.stderr.contains("overwritten in part"), "{failed}");
    ensure!(node.dog_json("volume info v")?["importing"].is_null(), "it lost its name");
    node.stop()
}

/// Somebody made a volume of that name while a long import was under way.
#[test]
fn an_import_whose_name_was_taken_meanwhile_is_not_lost() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    let (reader, mut writer) = std::io::pipe()?;
    let child = std::process::Command::new(dog())
        .arg("--data")
        .arg(node.data())
        .args(["volume", "import", "-", "v", "--format", "raw"])
        .stdin(reader)
        .stderr(File::create(scratch.join("err"))?)
        .spawn()?;
    let name = wait_for_import(&node, |_| true)?;
    writer.write_all(&vec![0x55; 4 * MIB as usize])?;
    node.dog_ok("volume create v 64M")?;
    drop(writer);
    let output = child.wait_with_output()?;
    let said = fs::read_to_string(scratch.join("err"))?;
    ensure!(output.status.code() == Some(4), "{:?}: {said}", output.status);
    ensure!(said.contains(&format!("dog volume rename {name} NAME")), "{said}");
    node.dog_ok(&format!("volume rename {name} w"))?;
    let content = node.dog("volume read w --offset 0 --length 4M").run()?.stdout;
    ensure!(content == vec![0x55; 4 * MIB as usize], "it is not whole");
    node.stop()
}
