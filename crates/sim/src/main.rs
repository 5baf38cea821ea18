//! The simulator's command: replays a seed, or runs fresh seeds for some time.

// The shell around the runs has a wall clock to stop by; no run ever sees it.
#![allow(clippy::disallowed_methods)]

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use proto::Mistake;
use sim::{
    cluster::ClusterWorld,
    crashpoints::{random_bases, random_workload},
    entropy,
    plants::{self, Kind},
    world::World,
};
use std::ops::RangeInclusive;
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
    /// Plants a mistake in the product, of those that `sim hunt --list` names.
    #[arg(long, requires = "seed")]
    plant: Option<String>,
    /// Lets one disk of that cluster rot, in a quarter of the seeds.
    #[arg(long, requires = "cluster")]
    rot: bool,
    /// Lets acknowledgements of some volumes of that cluster promise that what was written is
    /// stable.
    #[arg(long, requires = "cluster", conflicts_with = "rot")]
    ack: bool,
    /// Makes the failing run of a cluster's seed as small as a minute allows.
    #[arg(long, requires = "cluster")]
    shrink: bool,
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
    /// Looks for the first seed that notices a mistake planted in the product. Needs a program
    /// with debug assertions: `cargo run --profile hunt -p sim -- hunt`.
    Hunt {
        /// Which; all of them if none is named.
        #[arg(long)]
        plant: Vec<String>,
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// How many seeds are tried.
        #[arg(long, default_value_t = 5000)]
        seeds: u64,
        /// For how many minutes at most, for each mistake.
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// In what: `disk`, `node`, `cluster`, `rot`, `ack`. All in turns if none is named.
        #[arg(long)]
        world: Vec<String>,
        /// Only names them.
        #[arg(long)]
        list: bool,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mistake = arguments.plant.as_deref().map(mistake_called).transpose()?;
    plants::plant(mistake);
    match (arguments.seed, arguments.command) {
        (Some(seed), None) if arguments.disk => {
            let tally = random_workload(&random_bases(), seed).map_err(anyhow::Error::msg)?;
            println!("seed {seed} passes: {tally:?}");
        }
        (Some(seed), None) if arguments.shrink => shrink(seed, mistake, arguments.trace)?,
        (Some(seed), None) if arguments.cluster => {
            let world = match (arguments.rot, arguments.ack) {
                (true, _) => ClusterWorld::rotting(seed, arguments.trace),
                (_, true) => ClusterWorld::acknowledging(seed, arguments.trace),
                _ => ClusterWorld::new(seed, arguments.trace),
            };
            let summary = world.run().map_err(anyhow::Error::msg)?;
            println!("seed {seed} passes: {summary:?}");
        }
        (Some(seed), None) => {
            let summary = World::new(seed, arguments.trace).run().map_err(anyhow::Error::msg)?;
            println!("seed {seed} passes: {summary:?}");
        }
        (None, Some(Command::Hunt { plant, from, seeds, minutes, world, list })) => {
            let wanted: Result<Vec<Mistake>> =
                plant.iter().map(String::as_str).map(mistake_called).collect();
            let wanted = match plant.is_empty() {
                true => Mistake::ALL.to_vec(),
                false => wanted?,
            };
            if list {
                wanted.into_iter().for_each(|mistake| println!("{}", plants::name(mistake)));
                return Ok(());
            }
            let kinds: Result<Vec<Kind>> = world.iter().map(|name| kind_called(name)).collect();
            let kinds = match world.is_empty() {
                true => vec![Kind::Disk, Kind::Node, Kind::Cluster, Kind::Rot, Kind::Ack],
                false => kinds?,
            };
            hunt(&wanted, &kinds, from..=from + seeds, Duration::from_secs(60 * minutes))?;
        }
        (None, Some(Command::Soak { minutes })) => soak(Duration::from_secs(60 * minutes))?,
        _ => bail!("say either --seed N or soak; --help tells more"),
    }
    Ok(())
}

fn mistake_called(name: &str) -> Result<Mistake> {
    plants::by_name(name)
        .with_context(|| format!("no mistake is called {name}; `sim hunt --list` names them"))
}

fn kind_called(name: &str) -> Result<Kind> {
    Ok(match name {
        "disk" => Kind::Disk,
        "node" => Kind::Node,
        "cluster" => Kind::Cluster,
        "rot" => Kind::Rot,
        "ack" => Kind::Ack,
        _ => bail!("a seed is run in `disk`, `node`, `cluster`, `rot` or `ack`, not in {name:?}"),
    })
}

/// Looks for a seed that notices each of the mistakes. Fails if one goes unnoticed.
fn hunt(
    wanted: &[Mistake],
    kinds: &[Kind],
    seeds: RangeInclusive<u64>,
    span: Duration,
) -> Result<()> {
    // What is noticed by a panic is printed as what was noticed.
    std::panic::set_hook(Box::new(|_| {}));
    let mut unnoticed = Vec::new();
    for &mistake in wanted {
        let begin = Instant::now();
        let mut tried = seeds.clone().flat_map(|seed| kinds.iter().map(move |kind| (seed, *kind)));
        let found = tried.find_map(|(seed, kind)| {
            if begin.elapsed() > span {
                return Some(None);
            }
            let error = plants::run(kind, seed, Some(mistake)).err()?;
            // A seed that fails anyway shows nothing but itself.
            match plants::run(kind, seed, None) {
                Ok(_) => Some(Some((seed, kind, error))),
                Err(real) => {
                    println!("{kind:?} {seed} fails with nothing planted: {real}");
                    None
                }
            }
        });
        let (name, took) = (plants::name(mistake), begin.elapsed());
        match found.flatten() {
            Some((seed, kind, error)) => {
                println!("(Mistake::{mistake:?}, {kind:?}, {seed}), // {took:.0?} {error:.150}");
            }
            None => {
                println!("{name} goes unnoticed after {took:.0?}");
                unnoticed.push(name);
            }
        }
    }
    match unnoticed.is_empty() {
        true => Ok(()),
        false => bail!("these go unnoticed: {}", unnoticed.join(", ")),
    }
}

fn shrink(seed: u64, mistake: Option<Mistake>, trace: bool) -> Result<()> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let end = Instant::now() + Duration::from_secs(60);
    let setup = || plants::plant(mistake);
    let shrunk = sim::cluster::shrink(seed, setup, || Instant::now() < end);
    std::panic::set_hook(hook);
    let Some(shrunk) = shrunk else {
        println!("seed {seed} passes");
        return Ok(());
    };
    if trace {
        let world = ClusterWorld::with_mix(seed, shrunk.mix.clone(), true);
        // It fails, as is said below.
        let _ = world.sparing(shrunk.spared.clone()).run();
    }
    println!("{:#?}", shrunk.mix);
    println!("faults that are left: {:?}", shrunk.faults());
    bail!("after {} runs: {}", shrunk.runs, shrunk.error);
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
    let mut faults = [0; 6];
    for worker in outcome {
        let Ok(tally) = worker else { bail!("a seed panicked; it is named above") };
        let tally = tally.map_err(anyhow::Error::msg)?;
        seeds += tally.seeds;
        requests += tally.requests;
        crashes += tally.crashes;
        simulated += tally.simulated;
        faults.iter_mut().zip(tally.faults).for_each(|(sum, count)| *sum += count);
    }
    let [kills, power_cuts, pauses, cuts, resets, disks] = faults;
    println!(
        "in clusters: {kills} kills, {power_cuts} power cuts, {pauses} pauses, {cuts} cuts of the \
         network, {resets} resets, {disks} failures of disks"
    );
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
    /// Of clusters: as they have them.
    faults: [u64; 6],
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
        tally.faults.iter_mut().zip(summary.faults).for_each(|(sum, count)| *sum += count);
        tally.simulated += summary.simulated;
    }
    Ok(tally)
}
