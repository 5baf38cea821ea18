//! Machines with a network of their own, three copies of everything and TLS between them, under a
//! client that writes, reads and flushes: cables are pulled and shaken, packets are lost on some of
//! the ways, machines and disks fail. What the client was told is so, its requests wait no longer
//! than promised and none fails, and everything is whole again without a command.
//!
//! The numbers in the names are the rows of the catalogue in docs/reliability.md.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, History, Load, Network, Scratch, wait_until};
use std::time::{Duration, Instant};

const VOLUME_BYTES: usize = 16 << 20;
/// Writes and reads that must go on before, during and after whatever is done.
const SOME: u64 = 200;
/// What the death of a daemon may cost a request: promise P7.
const DEATH_STALL_MAX: Duration = Duration::from_secs(1);
/// What a machine may cost a request that vanishes from the network: promise P7.
const VANISHED_STALL_MAX: Duration = Duration::from_secs(5);
/// What a machine may add to that on which other tests run, or a compiler: no bound of the
/// product's.
const BUSY_MACHINE: Duration = Duration::from_secs(2);
/// After so long whoever is cut off has noticed it and has given up whom it does not hear.
const NOTICED: Duration = Duration::from_secs(4);

/// A cluster with a volume, and a client of it on one of its nodes.
struct Bench {
    begin: Instant,
    cluster: Cluster,
    /// What the volume contained when the client came.
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
        cluster.nodes[0].dog_ok(&format!("volume create v {VOLUME_BYTES}"))?;
        let mut bench = Bench { begin, cluster, load: None, client_at: 0 };
        bench.tell("all nodes are there");
        bench.cluster.wait_whole()?;
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
        goes_on().with_context(|| what.to_owned())
    }

    /// All is well again by itself.
    fn recovers(&self, what: &str) -> Result<()> {
        self.cluster.wait_whole().with_context(|| what.to_owned())?;
        self.goes_on(&format!("{what}, and whole again"), VANISHED_STALL_MAX)
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

/// Rows 5, 23, 24, 26 and 27.
#[test]
fn rows_05_23_24_26_27_a_bad_network_costs_moments_and_nothing_else() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(3, &scratch, &[])?;
    // Until the others vote, which takes half a minute, the first must see itself: it does.
    row_26_a_slow_cable(&bench)?;
    row_05_a_cable_that_is_loose(&bench)?;
    row_27_large_packets_are_lost_and_connections_end_before_their_answers(&bench)?;
    bench.cluster.wait_voters(3)?;
    bench.tell("all vote");
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
    bench.goes_on("a slow cable", VANISHED_STALL_MAX)?;
    bench.load().wait_for_writes(5 * SOME)?;
    bench.goes_on("a cable that is slow for a while", VANISHED_STALL_MAX)?;
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
    bench.net().lose_large(0, 2)?;
    std::thread::sleep(NOTICED);
    bench.goes_on("large packets are lost", VANISHED_STALL_MAX)?;
    bench.net().heal()?;
    bench.recovers("large packets were lost")?;
    for _ in 0..5 {
        // What node 1 answers to requests that it has executed meets a closed door.
        bench.net().reset(1, 0)?;
        std::thread::sleep(Duration::from_millis(200));
        bench.net().heal()?;
        bench.goes_on("answers are cut off", VANISHED_STALL_MAX)?;
    }
    bench.recovers("answers were cut off")
}

fn row_23_one_machine_is_unplugged(bench: &Bench) -> Result<()> {
    bench.net().unplug(1)?;
    std::thread::sleep(NOTICED);
    bench.goes_on("machine 1 is unplugged", VANISHED_STALL_MAX)?;
    bench.net().heal()?;
    bench.recovers("machine 1 was unplugged")
}

fn row_24_packets_are_lost_in_one_direction(bench: &Bench) -> Result<()> {
    for (from, to) in [(0, 1), (2, 0), (1, 2)] {
        let what = format!("nothing comes from {from} to {to}");
        bench.net().cut_one_way(from, to)?;
        std::thread::sleep(NOTICED);
        bench.goes_on(&what, VANISHED_STALL_MAX)?;
        bench.net().heal()?;
        bench.recovers(&format!("{what} for a while"))?;
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
        Ok(created.code == Some(0) || created.code == Some(4))
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
