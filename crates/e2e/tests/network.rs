//! Machines with a network of their own, three copies of everything and TLS between them, under a
//! client that writes, reads and flushes: cables are pulled and shaken, packets are lost on some of
//! the ways, machines and disks fail. What the client was told is so, its requests wait no longer
//! than promised and none fails, and everything is whole again without a command.
//!
//! The numbers in the names are the rows of the catalogue in docs/reliability.md.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, FaultDisk, History, Load, Network, Scratch, Tool, ToolOutput, wait_until};
use serde_json::Value;
use std::time::{Duration, Instant};

const VOLUME_BYTES: usize = 16 << 20;
/// The disk that gets full: what the volume takes many times, and no more than is filled fast.
const SMALL_DISK_BYTES: u64 = 256 << 20;
/// What its node logs then.
const FULL: &str = "is full: new data is refused";
/// Writes and reads that must go on before, during and after whatever is done.
const SOME: u64 = 200;
/// What the death of a daemon may cost a request: promise P7.
const DEATH_STALL_MAX: Duration = Duration::from_secs(1);
/// What a machine may cost a request that vanishes from the network: promise P7.
const VANISHED_STALL_MAX: Duration = Duration::from_secs(5);
/// What a machine may add to that on which other tests run, or a compiler: no bound of the
/// product's.
const BUSY_MACHINE: Duration = Duration::from_secs(2);
/// How `dog` ends where what is to be made is there.
const CONFLICT: i32 = 4;
/// Who looks after the copies looks about twice in that time.
const QUIET: Duration = Duration::from_millis(1200);
/// After so long whoever is cut off has noticed it and has given up whom it does not hear.
const NOTICED: Duration = Duration::from_secs(4);

/// A cluster with a volume, and a client of it on one of its nodes.
struct Bench {
    begin: Instant,
    cluster: Cluster,
    load: Option<Load>,
    client_at: usize,
}

impl Bench {
    /// So many nodes, and the client on the first of them.
    fn new(nodes: usize, scratch: &Scratch, variables: &[(&str, &str)]) -> Result<Bench> {
        let begin = Instant::now();
        let mut cluster = Cluster::found_in(Network::new(nodes)?, scratch, variables)?;
        for _ in 1..nodes {
            cluster.grow()?;
        }
        Bench::of(cluster, begin)
    }

    /// The client on the first of these nodes.
    fn of(cluster: Cluster, begin: Instant) -> Result<Bench> {
        cluster.nodes[0].dog_ok(&format!("volume create v {VOLUME_BYTES}"))?;
        let mut bench = Bench { begin, cluster, load: None, client_at: 0 };
        bench.tell("all nodes are there");
        bench.settles("all nodes are there")?;
        bench.tell("all copies are whole");
        bench.attach(0, vec![0; VOLUME_BYTES]);
        bench.load().wait_for_writes(SOME)?;
        bench.load().longest_wait();
        Ok(bench)
    }

    /// What happened when, for who looks at how long it takes.
    fn tell(&self, what: &str) {
        println!("{:6.1} s: {what}", self.begin.elapsed().as_secs_f64());
    }

    /// A fault is made, lasts until everybody has noticed it, and ends; it really was one.
    fn is_felt(&self, what: &str, fault: impl Fn() -> Result<()>) -> Result<()> {
        let before = self.lost_connections()?;
        fault()?;
        let begin = Instant::now();
        let mut lost = before;
        while begin.elapsed() < NOTICED && lost == before {
            std::thread::sleep(Duration::from_millis(50));
            lost = self.lost_connections()?;
        }
        ensure!(lost > before, "{what}: nobody lost a connection within {NOTICED:?}");
        self.goes_on(what, VANISHED_STALL_MAX)?;
        self.net().heal()?;
        self.recovers(&format!("{what} no more"))
    }

    fn lost_connections(&self) -> Result<u64> {
        (0..self.cluster.nodes.len()).map(|at| self.sum_of_peers(at, "lost_connections")).sum()
    }

    /// A number that a node tells of each of the others.
    fn sum_of_peers(&self, at: usize, name: &str) -> Result<u64> {
        let status = self.cluster.ask(at, "status")?;
        let peers = status["peers"].as_array().context("no peers")?;
        peers.iter().map(|peer| peer[name].as_u64().context("no such number")).sum()
    }

    /// Who leads, as the first node tells.
    fn leader(&self) -> Result<usize> {
        let leads = self.cluster.status(0)?["agreement"]["leader"].clone();
        for at in 0..self.cluster.nodes.len() {
            if self.cluster.status(at)?["asked"] == leads {
                return Ok(at);
            }
        }
        anyhow::bail!("nobody leads")
    }

    fn net(&self) -> &Network {
        self.cluster.network()
    }

    fn load(&self) -> &Load {
        self.load.as_ref().expect("a client is there")
    }

    fn attach(&mut self, at: usize, base: Vec<u8>) {
        let socket = self.cluster.nodes[at].nbd_socket();
        self.load = Some(Load::start_with_reads(&socket, "v", base));
        self.client_at = at;
    }

    /// The client goes on, and nothing that it asked for has taken longer.
    fn goes_on(&self, what: &str, stall_max: Duration) -> Result<()> {
        let goes_on = || -> Result<()> {
            self.load().wait_for_writes(SOME)?;
            let longest = self.load().longest_wait();
            self.tell(&format!("{what}: the longest wait was {} ms", longest.as_millis()));
            ensure!(longest <= stall_max + BUSY_MACHINE, "a request took {longest:?}");
            Ok(())
        };
        goes_on().with_context(|| format!("{what}\n{}", self.statuses()))
    }

    /// What the nodes that run say, for who looks at why something is not so.
    fn statuses(&self) -> String {
        let run = self.cluster.nodes.iter().filter(|node| node.pid().is_some());
        let said = run.map(|node| match node.dog("cluster status").run() {
            Ok(output) => output.to_string(),
            Err(error) => format!("{error:#}"),
        });
        said.collect()
    }

    /// All is well again by itself.
    fn recovers(&self, what: &str) -> Result<()> {
        self.settles(what)?;
        self.goes_on(&format!("{what}, and whole again"), VANISHED_STALL_MAX)
    }

    /// Every copy is whole, and nothing more is agreed on about that for a while: what a session
    /// alone knows to be behind is not seen before.
    fn settles(&self, what: &str) -> Result<()> {
        let mut agreed = Value::Null;
        let whole = wait_until("all is whole and stays so", || {
            self.cluster.wait_whole()?;
            let before = std::mem::replace(&mut agreed, self.cluster.status(0)?["epoch"].clone());
            let stays_so = before == agreed;
            if !stays_so {
                std::thread::sleep(QUIET);
            }
            Ok(stays_so)
        });
        whole.with_context(|| format!("{what}\n{}", self.statuses()))
    }

    /// The client goes; every node shows all that it was told, and they show the same.
    fn detach(&mut self, connections: u32) -> Result<(History, Vec<u8>)> {
        let history = self.load.take().expect("a client is there").stop()?;
        let seen = history.connections();
        ensure!(seen == connections, "{seen} connections instead of {connections}");
        let content = self.check_everywhere(&history)?;
        Ok((history, content))
    }

    fn check_everywhere(&self, history: &History) -> Result<Vec<u8>> {
        let content = self.cluster.content(self.client_at, "v")?;
        history.check_latest(&content)?;
        for at in 0..self.cluster.nodes.len() {
            let same = self.cluster.content(at, "v")? == content;
            ensure!(same, "node {at} reads what node {} does not", self.client_at);
        }
        Ok(content)
    }
}

#[test]
fn rows_05_23_24_26_27_a_bad_network_costs_moments_and_nothing_else() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(3, &scratch, &[])?;
    // Half a minute, which begins anew for whoever is disturbed.
    bench.cluster.wait_voters(3)?;
    bench.tell("all vote");
    row_26_a_slow_cable(&bench)?;
    row_05_a_cable_that_is_loose(&bench)?;
    row_27_large_packets_are_lost_and_connections_end_before_their_answers(&bench)?;
    row_23_one_machine_is_unplugged(&bench)?;
    row_24_packets_are_lost_in_one_direction(&bench)?;
    row_23_the_machine_of_the_client_is_unplugged(&bench)?;
    bench.detach(1)?;
    bench.tell("nothing was lost");
    Ok(())
}

/// A megabit a second: what the machine misses has to be made up for later.
fn row_26_a_slow_cable(bench: &Bench) -> Result<()> {
    bench.net().slow(2, 1_000_000)?;
    for _ in 0..3 {
        std::thread::sleep(Duration::from_secs(1));
        bench.goes_on("a slow cable", VANISHED_STALL_MAX)?;
        let waiting = bench.sum_of_peers(0, "waiting_requests")?;
        ensure!(waiting > 100, "the cable is not slow: {waiting} requests wait");
    }
    bench.net().heal()?;
    bench.recovers("a cable that was slow")
}

fn row_05_a_cable_that_is_loose(bench: &Bench) -> Result<()> {
    for shake in 0..6 {
        bench.net().unplug(2)?;
        std::thread::sleep(Duration::from_millis(150 + 250 * shake));
        bench.net().plug(2)?;
        std::thread::sleep(Duration::from_millis(400));
    }
    bench.goes_on("a loose cable", VANISHED_STALL_MAX)?;
    bench.recovers("a cable that was loose")
}

fn row_27_large_packets_are_lost_and_connections_end_before_their_answers(
    bench: &Bench,
) -> Result<()> {
    bench.is_felt("large packets are lost", || bench.net().lose_large(0, 2))?;
    // What node 1 answers to requests that it has executed meets a closed door.
    for _ in 0..2 {
        bench.is_felt("answers are cut off", || bench.net().refuse(1, 0))?;
    }
    Ok(())
}

fn row_23_one_machine_is_unplugged(bench: &Bench) -> Result<()> {
    bench.is_felt("machine 1 is unplugged", || bench.net().unplug(1))
}

fn row_24_packets_are_lost_in_one_direction(bench: &Bench) -> Result<()> {
    for (from, to) in [(0, 1), (2, 0), (1, 2)] {
        let what = format!("nothing comes from {from} to {to}");
        bench.is_felt(&what, || bench.net().cut_one_way(from, to))?;
    }
    Ok(())
}

/// A minority: it waits and refuses, while the others can do anything; it goes on by itself.
fn row_23_the_machine_of_the_client_is_unplugged(bench: &Bench) -> Result<()> {
    bench.net().unplug(0)?;
    std::thread::sleep(NOTICED);
    let nothing_since = bench.load().moment();
    // Whoever the others let lead.
    wait_until("the others agree without it", || {
        let created = bench.cluster.nodes[1].dog("volume create w 16M").run()?;
        Ok(created.code == Some(0) || created.code == Some(CONFLICT))
    })?;
    bench.tell("the majority goes on");
    let refused = bench.cluster.nodes[1].dog("volume export v -").run()?;
    ensure!(refused.code != Some(0), "two nodes have one volume: {refused}");
    let now = bench.load().moment();
    ensure!(now == nothing_since + 1, "a minority answered {} times", now - nothing_since - 1);
    bench.net().heal()?;
    bench.load().wait_for_writes(SOME)?;
    bench.load().longest_wait();
    bench.recovers("the machine of the client was unplugged")?;
    bench.cluster.nodes[0].dog_ok("volume info w")?;
    Ok(())
}

/// Four machines, of which three hold each part of the volume.
#[test]
fn rows_01_02_06_30_33_36_machines_die_for_good_return_late_and_are_held_up() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(4, &scratch, &[("SHEEP_REBUILD_AFTER", "6s")])?;
    row_30_one_that_was_replaced_returns_and_finds_the_world_changed(&mut bench)?;
    bench.cluster.wait_voters(3)?;
    bench.tell("three vote");
    row_33_another_dies_while_one_catches_up(&mut bench)?;
    row_01_the_one_that_leads_dies_under_the_client_of_another(&mut bench)?;
    row_02_all_die_at_once(&mut bench)?;
    rows_06_and_36_the_client_is_held_up_and_another_takes_the_volume(&mut bench)?;
    Ok(())
}

/// Promise P8: a machine is gone for longer than it is waited for, and all copies are there again
/// without it. What was deleted meanwhile stays deleted when it returns.
fn row_30_one_that_was_replaced_returns_and_finds_the_world_changed(
    bench: &mut Bench,
) -> Result<()> {
    let first = &bench.cluster.nodes[0];
    first.dog_ok("volume create gone 16M")?;
    first.dog("volume write gone --offset 0").input(vec![9; 1 << 20]).ok()?;
    bench.cluster.nodes[3].kill()?;
    bench.goes_on("a machine dies", DEATH_STALL_MAX)?;
    bench.cluster.nodes[0].dog_ok("volume delete gone --now --yes")?;
    wait_until("three copies without it", || bench.cluster.has_copies(0, 3))?;
    bench.goes_on("three copies without the dead machine", VANISHED_STALL_MAX)?;
    bench.cluster.nodes[3].begin()?;
    bench.recovers("it is back")?;
    bench.cluster.nodes[3].dog_refuses("volume info gone")?;
    Ok(())
}

/// One returns, and before it has what it missed another dies.
fn row_33_another_dies_while_one_catches_up(bench: &mut Bench) -> Result<()> {
    let [early, late] = [1, 2];
    bench.cluster.nodes[early].kill()?;
    bench.load().wait_for_writes(5 * SOME)?;
    bench.cluster.nodes[early].launch()?;
    bench.cluster.nodes[late].kill()?;
    bench.cluster.nodes[early].wait_ready()?;
    bench.goes_on("one dies while another catches up", VANISHED_STALL_MAX)?;
    bench.cluster.nodes[late].begin()?;
    bench.recovers("both are back")
}

fn row_01_the_one_that_leads_dies_under_the_client_of_another(bench: &mut Bench) -> Result<()> {
    let (_, content) = bench.detach(1)?;
    let leader = bench.leader()?;
    let other = (leader + 1) % bench.cluster.nodes.len();
    bench.attach(other, content);
    bench.goes_on("the client moves to another node", VANISHED_STALL_MAX)?;
    bench.cluster.nodes[leader].kill()?;
    bench.goes_on("the leader dies", DEATH_STALL_MAX)?;
    bench.cluster.nodes[leader].begin()?;
    bench.recovers("the leader is back")
}

fn row_02_all_die_at_once(bench: &mut Bench) -> Result<()> {
    bench.load().wait_for_writes(SOME)?;
    for node in &mut bench.cluster.nodes {
        node.kill()?;
    }
    // Three are enough for most, and nobody is there to help.
    for at in [3, 1, 0, 2] {
        bench.cluster.nodes[at].launch()?;
    }
    for node in &mut bench.cluster.nodes {
        node.wait_ready()?;
    }
    bench.load().wait_for_writes(SOME)?;
    bench.load().longest_wait();
    bench.recovers("all died at once")
}

/// The node of the client is stopped in the middle of writes; another one takes the volume by
/// force; then the first wakes and knows nothing of it.
fn rows_06_and_36_the_client_is_held_up_and_another_takes_the_volume(
    bench: &mut Bench,
) -> Result<()> {
    let held_up = bench.client_at;
    let other = (held_up + 2) % bench.cluster.nodes.len();
    bench.load().wait_for_writes(SOME)?;
    bench.cluster.nodes[held_up].pause()?;
    std::thread::sleep(NOTICED);
    let old = bench.load.take().context("a client is there")?;
    wait_until("the volume is taken from who is held up", || {
        let detached = bench.cluster.nodes[other].dog("volume detach v --force --yes").run()?;
        Ok(detached.code == Some(0))
    })?;
    let content = bench.cluster.content(other, "v")?;
    bench.attach(other, content.clone());
    bench.load().wait_for_writes(SOME)?;
    bench.tell("another has the volume");
    bench.cluster.nodes[held_up].wake()?;
    // It finds out: what was in flight is not done, and it is refused from now on.
    let old = old.give_up()?;
    old.check_latest(&content)?;
    bench.load().wait_for_writes(SOME)?;
    bench.load().longest_wait();
    bench.recovers("the other is awake again")?;
    bench.detach(1)?;
    bench.tell("nothing of the old client rose, and nothing was lost");
    Ok(())
}

/// One disk of three is small, gets full, and fails in the end.
#[test]
fn rows_14_16_18_a_disk_is_full_and_then_fails_and_is_replaced() -> Result<()> {
    let (begin, scratch) = (Instant::now(), Scratch::new()?);
    let disk = FaultDisk::new(&scratch, SMALL_DISK_BYTES)?;
    let variables = [("SHEEP_REBUILD_AFTER", "6s")];
    let mut cluster = Cluster::found_in(Network::new(4)?, &scratch, &variables)?;
    cluster.grow()?;
    cluster.grow_on(&disk.path().join("data"))?;
    let mut bench = Bench::of(cluster, begin)?;
    bench.cluster.nodes[2].expect_log(FULL);
    row_16_the_smallest_disk_is_full(&bench)?;
    rows_14_and_18_a_disk_fails_and_a_machine_takes_its_place(&mut bench, &disk)
}

/// What finds no space on one of three disks is acknowledged by the two others. What is deleted
/// gives space again, and then the third gets what it has missed.
fn row_16_the_smallest_disk_is_full(bench: &Bench) -> Result<()> {
    let first = &bench.cluster.nodes[0];
    first.dog_ok("volume create big 512M")?;
    let write = |volume: &str, mib: u64| -> Result<ToolOutput> {
        let writes = (0..mib).map(|at| format!("write -P {} {at}M 1M", at % 250 + 1));
        let words = writes.flat_map(|write| ["-c".to_owned(), write]);
        Tool::new("qemu-io").words("-f raw").args(words).arg(first.uri(volume)).run()
    };
    let output = write("big", SMALL_DISK_BYTES >> 20)?;
    ensure!(output.code == Some(0) && !output.stderr.contains("failed"), "{output}");
    let log = bench.cluster.nodes[2].log_text()?;
    ensure!(log.contains(FULL), "the disk never got full");
    bench.goes_on("a disk is full", VANISHED_STALL_MAX)?;
    first.dog_ok("volume delete big --now --yes")?;
    bench.recovers("a disk was full")
}

/// It fails under writes; two copies go on at once; and when a machine with another disk is there,
/// three.
fn rows_14_and_18_a_disk_fails_and_a_machine_takes_its_place(
    bench: &mut Bench,
    disk: &FaultDisk,
) -> Result<()> {
    bench.cluster.nodes[2].expect_log("");
    disk.fail();
    bench.goes_on("a disk fails", DEATH_STALL_MAX)?;
    wait_until("a disk is missing", || {
        let disks = bench.cluster.status(0)?["disks"].clone();
        Ok(disks.as_array().is_some_and(|all| all.iter().any(|disk| !disk["away_s"].is_null())))
    })?;
    bench.cluster.grow()?;
    wait_until("three copies without it", || bench.cluster.has_copies(0, 3))?;
    bench.goes_on("another disk has taken its place", VANISHED_STALL_MAX)?;
    let history = bench.load.take().context("a client is there")?.stop()?;
    let content = bench.cluster.content(0, "v")?;
    history.check_latest(&content)?;
    for at in [1, 3] {
        ensure!(bench.cluster.content(at, "v")? == content, "node {at} reads something else");
    }
    bench.tell("nothing was lost");
    Ok(())
}
