//! `kill -9` of the daemon under a running guest. The guest sees a pause, no error and no wrong
//! byte.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Result, ensure};
use e2e::{DiskSetup, Guest, LoopMount, Machine, Node, Scratch, VerifiedLoad, direct_io_alignment};
use std::path::Path;
use std::time::Duration;

const KILLS: u32 = 10;
/// How long fio writes and verifies in the guest: longer than ten kills take.
const LOAD_S: u32 = 32;
const GUEST_TIME_LIMIT: Duration = Duration::from_secs(240);

/// Kills and restarts a daemon on `data` ten times while fio writes and verifies in a guest.
fn ten_kills(data: &Path) -> Result<()> {
    let mut node = Node::start(data, &[])?;
    node.dog_ok("volume create v 512M")?;
    let mut guest = Guest::boot(Machine::Initramfs, &DiskSetup::new(&node.nbd_socket(), "v"))?;

    let load = VerifiedLoad { seconds: LOAD_S, half_mib: 256, written_mib: 96, backlog: 512 };
    let running = guest.begin_load(load)?;
    for kill in 0..KILLS {
        // At ever other moments: in the middle of a batch, of a flush, of a reconnect.
        std::thread::sleep(Duration::from_millis(600 + u64::from(kill * 397 % 1100)));
        node.kill()?;
        std::thread::sleep(Duration::from_millis(u64::from(kill * 211 % 500)));
        node.begin()?;
    }
    guest.finish_load(running, GUEST_TIME_LIMIT)?;

    // And once more after a kill with nothing in flight: all of it is there.
    let sum = "dd if=/dev/vda bs=1M count=352 iflag=direct 2>/dev/null | sha256sum";
    let before = guest.ok(sum, GUEST_TIME_LIMIT)?;
    node.kill()?;
    node.begin()?;
    let after = guest.ok(sum, GUEST_TIME_LIMIT)?;
    ensure!(before == after, "the volume changed over a kill: {before} {after}");
    guest.power_off()?;
    node.stop()
}

#[test]
fn ten_kills_under_fio_lose_nothing() -> Result<()> {
    let scratch = Scratch::new()?;
    ten_kills(&scratch.join("data"))
}

#[test]
fn ten_kills_where_direct_io_wants_512_byte_buffers_lose_nothing() -> Result<()> {
    let scratch = Scratch::new()?;
    let mount = LoopMount::new(&scratch, "mkfs.xfs -q", 1536 << 20, 512)?;
    println!(
        "direct I/O here wants buffers aligned to {} bytes",
        direct_io_alignment(mount.path())?
    );
    ten_kills(&mount.path().join("data"))
}

#[test]
fn a_disk_with_4096_byte_sectors_serves_sectors_of_512() -> Result<()> {
    let scratch = Scratch::new()?;
    let mount = LoopMount::new(&scratch, "mkfs.ext4 -q", 512 << 20, 4096)?;
    let mut node = Node::start(&mount.path().join("data"), &[])?;
    node.dog_ok("volume create v 64M")?;
    let uri = node.uri("v");
    let odd = |commands: &[&str]| {
        let mut tool = e2e::Tool::new("qemu-io").words("-f raw");
        for command in commands {
            tool = tool.arg("-c").arg(command);
        }
        tool.arg(&uri).ok()
    };
    odd(&["write -P 1 0 64k", "write -P 2 512 512", "write -P 3 7680 1024", "flush"])?;
    node.kill()?;
    node.begin()?;
    odd(&["read -P 1 0 512", "read -P 2 512 512", "read -P 3 7680 1024", "read -P 1 8704 1k"])?;
    node.stop()
}
