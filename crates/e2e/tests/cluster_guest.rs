//! A guest whose volume has three copies on three nodes: each node is killed in turn, that of the
//! guest too, and comes back. The guest sees pauses, no error and no wrong byte.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Result, ensure};
use e2e::{Cluster, DiskSetup, Guest, Machine, Network, Scratch};
use std::time::Duration;

/// How long fio writes and verifies in the guest: longer than the three kills take.
const LOAD_S: u32 = 14;
const GUEST_TIME_LIMIT: Duration = Duration::from_secs(120);
/// How long a node is away.
const AWAY: Duration = Duration::from_millis(1500);

#[test]
fn a_guest_on_three_nodes_sees_nothing_of_the_death_of_each_of_them() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut cluster = Cluster::found_in(Network::new(3)?, &scratch, &[])?;
    cluster.grow()?;
    cluster.grow()?;
    cluster.nodes[1].dog_ok("volume create v 64M")?;
    // Not that of the node that founded the cluster and leads it.
    let disk = DiskSetup::new(&cluster.nodes[1].nbd_socket(), "v");
    let mut guest = Guest::boot(Machine::Initramfs, &disk)?;
    cluster.wait_whole()?;
    cluster.wait_voters(3)?;

    let load = format!(
        "fio --filename=/dev/vda --direct=1 --ioengine=libaio --time_based --runtime={LOAD_S} \
         --thread --verify=crc32c --verify_fatal=1 --verify_backlog=256 --serialize_overlap=1 \
         --output=/tmp/fio \
         --name=blocks --size=24m --rw=randwrite --bs=4k --iodepth=16 --fsync=64 \
         --name=odd --offset=32m --size=24m --rw=randwrite --bsrange=512-64k \
         --blockalign=512 --iodepth=8"
    );
    let running = guest.begin(&format!(
        "{load}; code=$?; grep -iE 'err=|verify|bad magic|error' /tmp/fio; exit $code"
    ))?;
    for victim in [0, 1, 2] {
        std::thread::sleep(Duration::from_secs(1));
        cluster.nodes[victim].kill()?;
        std::thread::sleep(AWAY);
        cluster.nodes[victim].begin()?;
        // Only one at a time is promised.
        cluster.wait_whole()?;
    }
    let output = guest.finish(running, GUEST_TIME_LIMIT)?;
    ensure!(output.code == 0, "fio in the guest: {}", output.output);
    ensure!(output.output.matches("err= 0").count() == 2, "fio in the guest: {}", output.output);
    let errors =
        guest.ok("dmesg | grep -iE 'I/O error|blk_update|timeout' || true", GUEST_TIME_LIMIT)?;
    ensure!(errors.is_empty(), "the guest's kernel saw: {errors}");
    let sum = "dd if=/dev/vda bs=1M iflag=direct 2>/dev/null | sha256sum";
    let seen = guest.ok(sum, GUEST_TIME_LIMIT)?;
    guest.power_off()?;

    // And each of the others shows what the guest saw.
    for at in [0, 2] {
        let content = cluster.content(at, "v")?;
        let file = scratch.join("content");
        std::fs::write(&file, content)?;
        let there = e2e::Tool::new("sh").arg("-c").arg("sha256sum <\"$0\"").arg(&file).ok()?;
        ensure!(there == seen, "node {at} shows something else than the guest saw");
    }
    Ok(())
}
