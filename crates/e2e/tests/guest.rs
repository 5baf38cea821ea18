//! A real guest with a stock distribution kernel, and a volume as its virtio disk.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{DiskSetup, Guest, Machine, Node, Scratch, guest_file};
use serde_json::json;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const GUEST_TIME_LIMIT: Duration = Duration::from_secs(180);

#[test]
fn a_guest_formats_verifies_trims_and_grows() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 256M")?;
    let mut guest = Guest::boot(Machine::Initramfs, &DiskSetup::new(&node.nbd_socket(), "v"))?;

    // The disk that the guest sees.
    let size = guest.ok("blockdev --getsize64 /dev/vda", GUEST_TIME_LIMIT)?;
    ensure!(size.trim() == (256 * MIB).to_string(), "the guest sees {size} bytes");
    guest.ok("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt", GUEST_TIME_LIMIT)?;
    let formatted = node.used_bytes("v")?;
    ensure!(formatted < 32 * MIB, "an empty file system uses {formatted} bytes");

    // Data, verified by fio as it goes and again with its cache dropped.
    let fio = "fio --name=f --directory=/mnt --size=64m --rw=randwrite --bs=4k --direct=1 \
               --ioengine=libaio --iodepth=16 \
               --verify=crc32c --verify_fatal=1 --end_fsync=1 --output=/tmp/fio";
    guest.ok(&format!("{fio} || {{ cat /tmp/fio; exit 1; }}"), GUEST_TIME_LIMIT)?;
    guest
        .ok(&format!("echo 3 >/proc/sys/vm/drop_caches; {fio} --verify_only"), GUEST_TIME_LIMIT)?;
    let full = node.used_bytes("v")?;
    ensure!(
        full >= formatted + 64 * MIB,
        "{full} bytes are used with 64 MiB more than {formatted}"
    );

    // Deleting gives nothing back, trimming does.
    guest.ok("rm /mnt/f* && sync && fstrim /mnt", GUEST_TIME_LIMIT)?;
    let trimmed = node.used_bytes("v")?;
    ensure!(trimmed <= formatted + 8 * MIB, "{trimmed} bytes are used after the trim");

    // Growing online: sheep knows the new size at once; QEMU's client learns it by reconnecting,
    // which it does for its next request; the guest is told by block_resize.
    node.dog_ok("volume resize v 512M --reconnect")?;
    let touch = json!({ "command-line": "qemu-io volume \"read 0 512\"" });
    guest.qmp().execute("human-monitor-command", touch)?;
    let size = json!({ "node-name": "volume", "size": 512 * MIB });
    guest.qmp().execute("block_resize", size)?;
    let size = guest.ok("blockdev --getsize64 /dev/vda", GUEST_TIME_LIMIT)?;
    ensure!(size.trim() == (512 * MIB).to_string(), "the guest sees {size} bytes after growing");
    guest.ok("resize2fs /dev/vda", GUEST_TIME_LIMIT)?;
    let blocks = guest.ok("df -m /mnt | awk 'END { print $2 }'", GUEST_TIME_LIMIT)?;
    ensure!(blocks.trim().parse::<u64>()? > 400, "the file system has {blocks} MiB after growing");
    // What is new is as good as what is old.
    let fio = fio.replace("--size=64m", "--size=300m --bs=64k");
    guest.ok(&format!("{fio} || {{ cat /tmp/fio; exit 1; }}"), GUEST_TIME_LIMIT)?;
    guest.ok("umount /mnt && e2fsck -fn /dev/vda", GUEST_TIME_LIMIT)?;
    guest.power_off()?;
    node.stop()
}

#[test]
fn a_guest_boots_from_an_imported_disk_as_attach_says() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog("volume import").arg(guest_file("disk.img")).arg("boot").ok()?;
    let attach = node.dog_json("volume attach boot")?;
    let arguments: Vec<String> = attach["qemu_arguments"]
        .as_array()
        .context("no qemu_arguments")?
        .iter()
        .map(|word| word.as_str().map(str::to_owned).context("not a word"))
        .collect::<Result<_>>()?;
    let mut guest = Guest::boot_with(Machine::Disk, &arguments)?;
    let root = guest.ok("grep ' / ' /proc/mounts", GUEST_TIME_LIMIT)?;
    ensure!(root.starts_with("/dev/vda2 / ext4"), "the guest's root: {root}");
    guest
        .ok("dd if=/dev/urandom of=/file bs=1M count=8 conv=fsync 2>/dev/null", GUEST_TIME_LIMIT)?;
    let sum = guest.ok("sha256sum /file", GUEST_TIME_LIMIT)?;
    guest.power_off()?;

    // It boots again from a daemon that was stopped and started, and the file is there.
    node.stop()?;
    node.begin()?;
    let mut guest = Guest::boot_with(Machine::Disk, &arguments)?;
    ensure!(guest.ok("sha256sum /file", GUEST_TIME_LIMIT)? == sum, "the file changed");
    guest.power_off()?;
    node.stop()
}
