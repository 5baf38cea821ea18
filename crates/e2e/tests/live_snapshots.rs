//! Snapshots of a running guest's file system: each recovers as after a power failure, and all that
//! the guest had synced before is in it.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{DiskSetup, Guest, Machine, Node, Scratch, Tool};
use std::fs;
use std::path::Path;
use std::time::Duration;

const SNAPSHOTS: usize = 5;
const GUEST_TIME_LIMIT: Duration = Duration::from_secs(180);

/// A program of e2fsprogs, which are not in every user's path.
fn e2fsprogs(program: &str) -> Tool {
    let path = std::env::var("PATH").unwrap_or_default();
    Tool::new("env").arg(format!("PATH={path}:/usr/sbin:/sbin")).arg(program)
}

/// Replays the journal of an image as e2fsck does at boot, which refuses all that is not safe to
/// mend by itself; then nothing may be wrong.
fn recover(image: &Path) -> Result<()> {
    let output = e2fsprogs("e2fsck").words("-f -p").arg(image).run()?;
    ensure!(output.code.is_some_and(|code| code <= 1), "{output}");
    ensure!(output.text().contains("recovering journal"), "it was not in use: {output}");
    e2fsprogs("e2fsck").words("-f -n").arg(image).ok()?;
    Ok(())
}

/// The digest of a file in an image of a file system.
fn digest_in(image: &Path, file: &str, scratch: &Scratch) -> Result<String> {
    let copy = scratch.join("file");
    let dump = format!("dump /{file} {}", copy.display());
    e2fsprogs("debugfs").arg("-R").arg(dump).arg(image).ok()?;
    let said = Tool::new("sha256sum").arg(&copy).ok()?;
    fs::remove_file(&copy)?;
    Ok(said.split_whitespace().next().unwrap_or_default().to_owned())
}

#[test]
fn file_systems_of_live_snapshots_recover_with_all_that_was_synced() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 192M")?;
    let mut guest = Guest::boot(Machine::Initramfs, &DiskSetup::new(&node.nbd_socket(), "v"))?;
    // The load: files that are written, synced, renamed and removed without end.
    let load = "cd /mnt && i=0; while [ ! -e /tmp/stop ]; do i=$((i + 1)); mkdir -p d$((i % 7)); \
                dd if=/dev/urandom of=d$((i % 7))/new bs=4k count=$((i % 50 + 1)) 2>/dev/null; \
                [ $((i % 5)) != 0 ] || sync; mv d$((i % 7))/new d$((i % 7))/f$((i % 31)); \
                [ $((i % 11)) != 0 ] || rm -rf d$((i % 3)); done";
    guest.ok("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt", GUEST_TIME_LIMIT)?;
    guest.ok(&format!("({load}) >/dev/null 2>&1 &"), GUEST_TIME_LIMIT)?;
    let mut digests = Vec::new();
    for number in 1..=SNAPSHOTS {
        let script = format!(
            "dd if=/dev/urandom of=/mnt/file{number} bs=64k count=16 conv=fsync 2>/dev/null && \
             sha256sum </mnt/file{number}"
        );
        let said = guest.ok(&script, GUEST_TIME_LIMIT)?;
        digests.push(said.split_whitespace().next().unwrap_or_default().to_owned());
        node.dog_ok(&format!("volume snapshot v@{number}"))?;
    }
    guest.ok("touch /tmp/stop", GUEST_TIME_LIMIT)?;

    // Each is cloned while the guest still has the volume.
    for number in 1..=SNAPSHOTS {
        let image = scratch.join("image");
        node.dog_ok(&format!("volume clone v@{number} c{number}"))?;
        node.dog("volume export").arg(format!("c{number}")).arg(&image).ok()?;
        recover(&image).with_context(|| format!("snapshot {number}"))?;
        for (place, expected) in digests.iter().enumerate() {
            let file = format!("file{}", place + 1);
            if place < number {
                let found = digest_in(&image, &file, &scratch)?;
                ensure!(found == *expected, "{file} of snapshot {number} is not what was synced");
            }
        }
        fs::remove_file(&image)?;
    }
    guest.power_off()?;

    // The clones need neither the volume nor its snapshots.
    node.dog_ok("volume delete v --with-snapshots --now --yes")?;
    let image = scratch.join("image");
    node.dog("volume export c5").arg(&image).ok()?;
    recover(&image)?;
    node.stop()
}
