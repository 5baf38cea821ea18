//! The simulator's command: replays a seed, or runs fresh seeds for some time.

// The shell around the runs has a wall clock to stop by; no run ever sees it.
#![allow(clippy::disallowed_methods)]

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use sim::{
    cluster::ClusterWorld,
    crashpoints::{random_bases, random_workload},
    entropy,
    world::World,
};
use std::time::{Duration, Instant};

/// Runs the real machines of one node, or of a cluster, on simulated media, driven by one seed.
#[derive(Parser)]
struct Arguments {
    /// Replays this seed and prints how it ended.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints every step of the replayed seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Replays the seed of a random workload on one disk without the rest of the node.
    #[arg(long, requires = "seed", conflicts_with = "trace")]
    disk: bool,
    /// Replays the seed of a cluster of several nodes.
    #[arg(long, requires = "seed", conflicts_with = "disk")]
    cluster: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs fresh seeds, of one node and of clusters in turns, on all cores until the time is over
    /// or one fails.
    Soak {
        /// For how long.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match (arguments.seed, arguments.command) {
        (Some(seed), None) if arguments.disk => {
            let tally = random_workload(&random_bases(), seed).map_err(anyhow::Error::msg)?;
            println!("seed {seed} passes: {tally:?}");
        }
        (Some(seed), None) if arguments.cluster => {
            let world = ClusterWorld::new(seed, arguments.trace);
            let summary = world.run().map_err(anyhow::Error::msg)?;
            println!("seed {seed} passes: {summary:?}");
        }
        (Some(seed), None) => {
            let summary = World::new(seed, arguments.trace).run().map_err(anyhow::Error::msg)?;
            println!("seed {seed} passes: {summary:?}");
        }
        (None, Some(Command::Soak { minutes })) => soak(Duration::from_secs(60 * minutes))?,
        _ => bail!("say either --seed N or soak; --help tells more"),
    }
    Ok(())
}

/// Fresh seeds, one after the other on each core.
fn soak(span: Duration) -> Result<()> {
    let end = Instant::now() + span;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let outcome = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(move || soak_one(end))).collect();
        workers.into_iter().map(|worker| worker.join()).collect::<Vec<_>>()
    });
    let (mut seeds, mut requests, mut crashes, mut simulated) = (0, 0, 0, Duration::ZERO);
    for worker in outcome {
        let Ok(tally) = worker else { bail!("a seed panicked; it is named above") };
        let tally = tally.map_err(anyhow::Error::msg)?;
        seeds += tally.seeds;
        requests += tally.requests;
        crashes += tally.crashes;
        simulated += tally.simulated;
    }
    println!(
        "{seeds} seeds pass: {requests} requests, {crashes} crashes, {simulated:.0?} simulated"
    );
    Ok(())
}

#[derive(Default)]
struct Tally {
    seeds: u64,
    requests: u64,
    crashes: u64,
    simulated: Duration,
}

fn soak_one(end: Instant) -> Result<Tally, String> {
    let mut tally = Tally::default();
    while Instant::now() < end {
        let summary = World::new(entropy(), false).run()?;
        tally.seeds += 1;
        tally.requests += summary.requests;
        tally.crashes += summary.crashes.iter().sum::<u64>();
        tally.simulated += summary.simulated;
        let summary = ClusterWorld::new(entropy(), false).run()?;
        tally.seeds += 1;
        tally.requests += summary.requests;
        tally.crashes += summary.faults[..2].iter().sum::<u64>();
        tally.simulated += summary.simulated;
    }
    Ok(tally)
}
