//! Three daemons that are one cluster, with TLS between them and three copies of everything, under
//! a client that writes, reads and flushes on the first: what dies and comes back costs it a moment
//! and nothing else.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, Load, Node, Scratch, Tool, patchy_file, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::time::{Duration, Instant};

const VOLUME_BYTES: usize = 64 << 20;
/// Writes and reads that must go on before and after whatever is done.
const SOME: u64 = 300;
/// What the death of a daemon may cost a request: promise P7.
const STALL_MAX: Duration = Duration::from_secs(1);
/// What a machine may add to that on which other tests run, or a compiler: no bound of the
/// product's, but a request that waits for an exclusion, a grace time or a restart takes longer.
const BUSY_MACHINE: Duration = Duration::from_secs(2);

/// What happened when, for who looks at how long it takes.
fn tell(begin: Instant, what: &str) {
    println!("{:6.1} s: {what}", begin.elapsed().as_secs_f64());
}

/// How many whole copies of the only volume there are, as a node tells.
fn copies(node: &Node) -> Result<u64> {
    node.dog_json("volume info v")?["copies"].as_u64().context("no number of copies")
}

/// The same check for all: nobody's answer took too long, nobody's connection ended.
fn check_stall(begin: Instant, load: &Load, what: &str) -> Result<()> {
    let longest = load.longest_wait();
    tell(begin, &format!("{what}: the longest wait was {} ms", longest.as_millis()));
    let limit = STALL_MAX + BUSY_MACHINE;
    ensure!(longest <= limit, "{what}: a request took {} ms", longest.as_millis());
    Ok(())
}

/// One node becomes three while its volume is used; each of the others is killed and comes back;
/// all are killed at once; the one with the client is killed and does not come back before another
/// one has the volume. At every step what the client was told is so.
#[test]
fn what_a_client_was_told_is_so_whatever_daemons_die_under_it() -> Result<()> {
    let begin = Instant::now();
    let scratch = Scratch::new()?;
    let mut cluster = Cluster::found(&scratch)?;
    let file = scratch.join("base.raw");
    patchy_file(&file, VOLUME_BYTES as u64)?;
    cluster.nodes[0].dog_ok("volume create v 64M")?;
    let uri = cluster.nodes[0].uri("v");
    Tool::new("qemu-img").words("convert -n -f raw -O raw").arg(&file).arg(&uri).ok()?;
    let base = std::fs::read(&file)?;

    let socket = cluster.nodes[0].nbd_socket();
    let load = Load::start_with_reads(&socket, "v", base.clone());
    load.wait_for_writes(SOME)?;
    check_stall(begin, &load, "alone")?;
    cluster.grow()?;
    cluster.grow()?;
    tell(begin, "three nodes");
    cluster.wait_whole()?;
    load.wait_for_writes(SOME)?;
    check_stall(begin, &load, "one node becomes three")?;

    for victim in [1, 2] {
        cluster.nodes[victim].kill()?;
        load.wait_for_writes(SOME)?;
        if victim == 2 {
            wait_until("the others go on without it", || Ok(copies(&cluster.nodes[0])? == 2))?;
            load.wait_for_writes(SOME)?;
            check_stall(begin, &load, "node 2 is killed and left out")?;
        }
        cluster.nodes[victim].begin()?;
        cluster.wait_whole()?;
        load.wait_for_writes(SOME)?;
        check_stall(begin, &load, &format!("node {victim} is killed and comes back"))?;
    }
    cluster.wait_voters(3)?;
    tell(begin, "all vote");
    let history = load.stop()?;
    ensure!(history.connections() == 1, "{} connections", history.connections());
    let now = cluster.content(2, "v")?;
    history.check_latest(&now)?;

    // All at once, in the middle of writes, and back in another order.
    let load = Load::start_with_reads(&socket, "v", now);
    load.wait_for_writes(SOME)?;
    for node in &mut cluster.nodes {
        node.kill()?;
    }
    for at in [2, 0, 1] {
        cluster.nodes[at].launch()?;
    }
    for node in &mut cluster.nodes {
        node.wait_ready()?;
    }
    tell(begin, "all were killed and serve again");
    load.wait_for_writes(SOME)?;
    cluster.wait_whole()?;
    let history = load.stop()?;
    ensure!(history.connections() == 2, "{} connections", history.connections());
    let now = cluster.content(1, "v")?;
    history.check_latest(&now)?;
    tell(begin, "nothing was lost by that");

    // The node of the client: another one has the volume when its attachment is given back, which
    // the dead one's next start does, and then without it.
    let load = Load::start_with_reads(&socket, "v", now);
    load.wait_for_writes(SOME)?;
    cluster.nodes[0].kill()?;
    let history = load.give_up()?;
    let refused = cluster.nodes[1].dog("volume export v -").run()?;
    ensure!(refused.code != Some(0), "two nodes have one volume: {refused}");
    cluster.nodes[0].begin()?;
    cluster.wait_free(1, "v")?;
    cluster.nodes[0].kill()?;
    let now = cluster.content(1, "v")?;
    history.check_latest(&now)?;
    let load = Load::start_with_reads(&cluster.nodes[1].nbd_socket(), "v", now);
    load.wait_for_writes(SOME)?;
    let history = load.stop()?;
    history.check_latest(&cluster.content(2, "v")?)
}

/// What `dog` says on a log while it replaces a machine, once it says that.
fn wait_said(log: &std::path::Path, what: &str) -> Result<()> {
    let said = || std::fs::read_to_string(log);
    wait_until(&format!("it says {what:?}"), || Ok(said()?.contains(what)))
        .with_context(|| format!("it says: {}", said().unwrap_or_default()))
}

/// Four machines, one of which takes the place of another one under a client. Whoever replaces it
/// is interrupted, and goes on where it was.
#[test]
fn a_machine_takes_the_place_of_another_one_under_a_client() -> Result<()> {
    let begin = Instant::now();
    let scratch = Scratch::new()?;
    let mut cluster = Cluster::found(&scratch)?;
    cluster.nodes[0].dog_ok("volume create v 16M")?;
    for _ in 0..3 {
        cluster.grow()?;
    }
    let load = Load::start(&cluster.nodes[0].nbd_socket(), "v", vec![0; 16 << 20]);
    cluster.wait_whole()?;
    tell(begin, "four nodes");
    let id = |node: &Node| -> Result<String> {
        Ok(node.dog_json("node info")?["node"].as_str().context("no id")?.to_owned())
    };
    let (old, new) = (id(&cluster.nodes[1])?, id(&cluster.nodes[3])?);
    // Not with itself, nor with nobody.
    cluster.nodes[0].dog_refuses(&format!("node replace {old} {old}"))?;
    cluster.nodes[0].dog_refuses(&format!("node replace {old} nobody"))?;

    let words = format!("node replace {old} {new}");
    let log = scratch.join("replace.log");
    let mut first = cluster.nodes[0].dog(&words).spawn(std::fs::File::create(&log)?)?;
    wait_said(&log, "goes to other nodes")?;
    kill_process(Pid::from_child(&first), Signal::INT)?;
    ensure!(first.wait()?.code() == Some(130), "it was not interrupted");
    wait_said(&log, "goes on by itself")?;

    let mut second = cluster.nodes[0].dog(&words).spawn(std::fs::File::create(&log)?)?;
    wait_said(&log, "stop sheep there")?;
    tell(begin, "it is empty");
    let used = cluster.nodes[1].dog_json("disk list")?;
    let of_old = |disk: &&Value| disk["node"] == old.as_str();
    let held = used.as_array().context("a list")?.iter().find(of_old).context("its disk")?;
    ensure!(held["partitions"] == 0, "it still holds copies: {held}");
    cluster.nodes[1].stop()?;
    ensure!(second.wait()?.code() == Some(0), "{}", std::fs::read_to_string(&log)?);
    tell(begin, "it is replaced");
    cluster.nodes.remove(1);
    cluster.wait_whole()?;
    load.wait_for_writes(SOME)?;
    check_stall(begin, &load, "a machine is replaced")?;
    let history = load.stop()?;
    ensure!(history.connections() == 1, "{} connections", history.connections());
    history.check_latest(&cluster.content(2, "v")?)
}

/// Two that store and a witness, which is started again without options: one that stores is killed,
/// and the other goes on, as do the agreement and the guest.
#[test]
fn with_a_witness_one_of_two_machines_may_die() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut cluster = Cluster::found(&scratch)?;
    cluster.grow()?;
    cluster.grow_witness()?;
    cluster.nodes[0].dog_ok("volume create v 16M --min-copies 1")?;
    cluster.nodes[2].kill()?;
    cluster.nodes[2].begin()?;
    let status = cluster.nodes[2].dog("status").run()?.text();
    ensure!(status.contains("witness: it votes and stores no data"), "{status}");
    let listed = cluster.nodes[1].dog_ok("node list")?;
    ensure!(listed.matches("witness").count() == 1, "{listed}");
    cluster.wait_voters(3)?;
    wait_until("both have all", || cluster.has_copies(0, 2))?;
    let load = Load::start(&cluster.nodes[0].nbd_socket(), "v", vec![0; 16 << 20]);
    load.wait_for_writes(SOME)?;
    cluster.nodes[1].kill()?;
    // It is left out after five seconds.
    load.wait_for_writes(SOME)?;
    wait_until("there is one copy", || Ok(copies(&cluster.nodes[0])? == 1))?;
    cluster.nodes[0].dog_ok("volume create w 16M --min-copies 1")?;
    cluster.nodes[2].dog_ok("volume create x 16M --min-copies 1")?;
    let history = load.stop()?;
    ensure!(history.connections() == 1, "{} connections", history.connections());
    cluster.nodes[1].begin()?;
    wait_until("both have all", || cluster.has_copies(0, 2))?;
    history.check_latest(&cluster.content(2, "v")?)
}
