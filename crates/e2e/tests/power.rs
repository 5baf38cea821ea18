//! Power cuts under a real file system: what was not flushed is lost, under sheep and under ext4.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{FaultDisk, Load, LoopMount, Moment, Node, Scratch, Unflushed};
use std::path::{Path, PathBuf};

const MIB: usize = 1 << 20;
const DISK_BYTES: u64 = 512 << 20;
const VOLUME_BYTES: usize = 16 * MIB;
/// Cuts under load.
const CUTS: u64 = 8;
/// What is written between two of them.
const WRITES: u64 = 300;

/// One power cut: the medium as it was found, and between which moments it was.
struct Cut {
    image: PathBuf,
    from: Moment,
    to: Moment,
    /// How many snapshots had been taken.
    snapshots: u64,
}

fn unflushed(cut: u64) -> Unflushed {
    if cut.is_multiple_of(2) { Unflushed::Lost } else { Unflushed::Mixed(cut) }
}

/// Row 3.
#[test]
fn power_cuts_under_a_file_system_lose_nothing_that_was_flushed() -> Result<()> {
    let scratch = Scratch::new()?;
    let disk = FaultDisk::new(&scratch, DISK_BYTES)?;
    let mut node = Node::start(&disk.path().join("data"), &[])?;
    node.dog_ok(&format!("volume create v {VOLUME_BYTES}"))?;
    let created = scratch.join("created");
    disk.cut(&created, Unflushed::Lost)?;

    let load = Load::start(&node.nbd_socket(), "v", vec![0; VOLUME_BYTES]);
    let mut cuts = Vec::new();
    let mut lost = 0;
    for cut in 0..CUTS {
        load.wait_for_writes(WRITES)?;
        if cut % 3 == 2 {
            node.dog_ok(&format!("volume snapshot v@s{cut}"))?;
        }
        let image = scratch.join(&format!("cut{cut}"));
        let from = load.moment();
        lost += disk.cut(&image, unflushed(cut))?;
        cuts.push(Cut { image, from, to: load.moment(), snapshots: (cut + 1) / 3 });
    }
    let history = load.stop()?;
    node.stop()?;
    ensure!(lost > 0 && disk.flushes() > CUTS, "{lost} sectors lost, {} flushes", disk.flushes());
    drop((node, disk));

    // What was answered is there, though nobody asked for a flush.
    check(&created, |node| {
        node.dog_ok("volume info v")?;
        Ok(())
    })?;
    for (number, cut) in cuts.iter().enumerate() {
        check(&cut.image, |node| {
            let read = format!("volume read v --offset 0 --length {VOLUME_BYTES}");
            let content = node.dog(&read).run()?.stdout;
            history.check_power_cut(&content, cut.from, cut.to)?;
            let info = node.dog_json("volume info v")?;
            ensure!(info["snapshots"] == cut.snapshots, "{info}");
            // And it goes on.
            node.dog("volume write v --offset 0").input(vec![7; MIB]).ok()?;
            Ok(())
        })
        .with_context(|| format!("after cut {number}, {:?}", unflushed(number as u64)))?;
    }
    Ok(())
}

/// Starts a node on what a power cut left, looks at it, and stops it.
fn check(image: &Path, look: impl Fn(&Node) -> Result<()>) -> Result<()> {
    let mount_point = image.with_extension("mount");
    // ext4 replays its journal here.
    let mount = LoopMount::of_image(image, &mount_point, 4096)?;
    let mut node = Node::start(&mount.path().join("data"), &[])?;
    ensure!(node.dog_json("status")?["healthy"] == true, "it is not well");
    look(&node)?;
    node.stop()?;
    drop((node, mount));
    Ok(std::fs::remove_file(image)?)
}
