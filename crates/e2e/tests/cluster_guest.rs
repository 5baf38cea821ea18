//! A guest whose volume has three copies on three nodes: each node is killed in turn, that of the
//! guest too, and comes back. The guest sees pauses, no error and no wrong byte.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Result, ensure};
use e2e::{Cluster, DiskSetup, Guest, Machine, Network, Scratch, VerifiedLoad};
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

    let load = VerifiedLoad { seconds: LOAD_S, half_mib: 32, written_mib: 24, backlog: 256 };
    let running = guest.begin_load(load)?;
    for victim in [0, 1, 2] {
        std::thread::sleep(Duration::from_secs(1));
        cluster.nodes[victim].kill()?;
        std::thread::sleep(AWAY);
        cluster.nodes[victim].begin()?;
        // Only one at a time is promised.
        cluster.wait_whole()?;
    }
    guest.finish_load(running, GUEST_TIME_LIMIT)?;
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
