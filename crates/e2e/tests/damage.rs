//! Rot on the disk of a single node. There is no other copy: the promise is an error, loudly, and
//! never a wrong byte.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{Node, Scratch, Tool};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
/// Found nowhere else on the disk.
const MARK: &[u8; 32] = b"the block that rots in this test";

/// Offsets in the disk's file where a block with the mark lies.
fn find_mark(disk: &Path) -> Result<Vec<u64>> {
    let file = File::open(disk)?;
    let length = file.metadata()?.len();
    let mut found = Vec::new();
    let mut block = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < length {
        let count = file.read_at(&mut block, offset)?;
        for (place, bytes) in block[..count].chunks(BLOCK).enumerate() {
            if bytes.starts_with(MARK) {
                found.push(offset + (place * BLOCK) as u64);
            }
        }
        offset += count as u64;
    }
    Ok(found)
}

fn marked_block() -> Vec<u8> {
    let mut block = MARK.to_vec();
    block.resize(BLOCK, 0xa5);
    block
}

/// A node with a volume `v` whose block at 64 KiB has the mark, and that may report damage.
fn start_with_marked_block(scratch: &Scratch) -> Result<Node> {
    let mut node = Node::start(&scratch.join("data"), &["--limit", "256M"])?;
    for word in ["damage", "scrub", "checksum"] {
        node.expect_log(word);
    }
    node.dog_ok("volume create v 64M")?;
    node.dog("volume write v --offset 0").input(vec![7; 1 << 20]).ok()?;
    node.dog("volume write v --offset 64K").input(marked_block()).ok()?;
    Ok(node)
}

/// Row 21.
#[test]
fn a_block_without_a_good_copy_fails_its_reads_and_the_volume_lives_on() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = start_with_marked_block(&scratch)?;
    node.stop()?;
    let disk = node.data().join("disk");
    let places = find_mark(&disk)?;
    ensure!(places.len() == 1, "the block lies at {places:?}");
    let file = File::options().read(true).write(true).open(&disk)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, places[0] + 1000)?;
    file.write_all_at(&[byte[0] ^ 0x10], places[0] + 1000)?;
    node.begin()?;

    // That block fails, again and again; its neighbours do not.
    let read = |range: &str| {
        Tool::new("qemu-io").words("-f raw -t none -c").arg(range).arg(node.uri("v")).run()
    };
    for _ in 0..2 {
        let output = read("read 64k 4k")?;
        let text = output.text() + &output.stderr;
        ensure!(text.contains("Input/output error"), "{text}");
    }
    ensure!(read("read -P 7 0 64k")?.code == Some(0), "the block before it");
    ensure!(read("read -P 7 68k 900k")?.code == Some(0), "the block behind it");

    // The alarm names block and volume.
    let status = node.dog("status").run()?;
    ensure!(status.code == Some(1), "all is well? {status}");
    let damages = node.dog_json("disk list")?[0]["damages"].to_string();
    ensure!(damages.contains("volume v, 4096 bytes from 65536 on"), "{damages}");

    // Writing it again heals it.
    node.dog("volume write v --offset 64K").input(marked_block()).ok()?;
    let bytes = node.dog("volume read v --offset 64K --length 4K").run()?.stdout;
    ensure!(bytes == marked_block(), "it is not healed");
    node.stop()
}

/// Row 10, the flipped bit that nobody reads: a scrub pass finds it.
#[test]
fn scrub_finds_a_flipped_bit_in_one_pass() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = start_with_marked_block(&scratch)?;
    node.dog_ok("volume flush v")?;
    // In the file of a running node.
    let disk = node.data().join("disk");
    let places = find_mark(&disk)?;
    ensure!(places.len() == 1, "the block lies at {places:?}");
    File::options().write(true).open(&disk)?.write_all_at(&[0], places[0] + 1000)?;
    node.dog_ok("disk scrub rate 100M")?;
    node.dog_ok("disk scrub start")?;
    let begin = Instant::now();
    loop {
        let disks = node.dog_json("disk list")?;
        let damaged = disks[0]["damaged_blocks"].as_u64().context("no damaged_blocks")?;
        if damaged == 1 {
            break;
        }
        ensure!(begin.elapsed() < Duration::from_secs(30), "not found: {disks}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = node.dog("status").run()?.text();
    ensure!(said.contains("has 1 damaged block; `dog disk list --json` names it:"), "{said}");
    node.stop()
}
