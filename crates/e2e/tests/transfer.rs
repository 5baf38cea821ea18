//! Images go in and come out as they were: content, size and holes.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Result, ensure};
use e2e::{Node, Scratch, Tool, dog, patchy_file};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
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
