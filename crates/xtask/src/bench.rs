//! `cargo xtask bench one`: the job set over NBD on a Unix socket, our `sheep` and
//! `qemu-storage-daemon` on a preallocated raw file in turn on the same file system, and what
//! memory, idling and starting cost. The figures go to `docs/performance.md`.

mod cluster;
mod fio;
mod layers;
mod machine;
mod report;
mod server;
mod table;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use fio::{Job, Sample};
use server::{Server, Sheep, StorageDaemon};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// What is compared.
#[derive(Subcommand)]
pub enum Bench {
    /// One copy on one node, against qemu-storage-daemon on a raw file
    One(One),
    /// Start, memory, snapshots and clones on a disk that describes a lot of data
    Table(table::Described),
    /// What snapshots and clones cost those who read and write
    Layers(layers::Layers),
    /// Three copies on three nodes of this machine, against the device itself
    Cluster(cluster::Cluster),
}

/// Options of `bench one`.
#[derive(Args, Clone)]
pub struct One {
    /// How long each job runs, in seconds
    #[arg(long, default_value_t = 15)]
    seconds: u32,
    /// How large the volume and the raw file are, as fio writes sizes
    #[arg(long, default_value = "4g")]
    size: String,
    /// How often each job runs on each system; the medians count
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How much is written before the start after kill -9 is timed, as fio writes sizes
    #[arg(long, default_value = "8g")]
    fill: String,
    /// How long the daemon idles while its processor time is measured, in seconds
    #[arg(long, default_value_t = 10)]
    idle_seconds: u64,
    /// Run only these jobs
    #[arg(long, value_name = "JOB")]
    job: Vec<String>,
    #[command(flatten)]
    common: Common,
}

/// Options that all have.
#[derive(Args, Clone)]
struct Common {
    /// Where volumes, disks and raw files are made: a directory with room for them on the file
    /// system to be measured
    #[arg(long, default_value = "scratch/bench")]
    directory: PathBuf,
    /// Where sheep and dog are; without it, they are built and taken from target/release
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Only print the figures
    #[arg(long)]
    print_only: bool,
}

impl Common {
    /// Where the programs are, built if nobody says so.
    fn programs(&self, root: &Path) -> Result<PathBuf> {
        self.programs.clone().map_or_else(|| build(root), Ok)
    }

    fn scratch(&self, root: &Path) -> Result<Scratch> {
        Scratch::new(&root.join(&self.directory))
    }

    /// Prints what was measured, and puts it into the document unless it is only to be printed.
    fn publish(&self, name: &str, text: &str) -> Result<()> {
        println!("{text}");
        if !self.print_only {
            let path = crate::tidy::root().join("docs/performance.md");
            report::put(&path, name, text)?;
            eprintln!("written to {}", path.display());
        }
        Ok(())
    }
}

/// The figures of one job on one system, one sample a round.
struct Row {
    job: Job,
    sheep: Vec<Sample>,
    peer: Vec<Sample>,
}

/// What is measured of `sheep` alone.
struct Costs {
    volume_bytes: u64,
    resident_bytes: u64,
    idle_processor_percent: f64,
    fill_bytes: u64,
    start_seconds: f64,
    stored_resident_bytes: u64,
}

pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::One(options) => run_one(options),
        Bench::Table(options) => table::run(options),
        Bench::Layers(options) => layers::run(options),
        Bench::Cluster(options) => cluster::run(options),
    }
}

fn run_one(options: &One) -> Result<()> {
    ensure!(options.rounds > 0 && options.seconds > 0, "give at least one round and one second");
    let root = crate::tidy::root();
    let programs = options.common.programs(&root)?;
    let size = fio::parse_size(&options.size)?;
    let fill = fio::parse_size(&options.fill)?;
    let scratch = options.common.scratch(&root)?;
    let jobs = fio::chosen(&root, &options.job)?;
    let started = Instant::now();
    let rows = compare(&root, &scratch.path, &programs, &jobs, size, options)?;
    let costs = costs(&root, &scratch.path, &programs, size, fill, options)?;
    let text = report::report(&rows, &costs, &machine::describe(&scratch.path), options);
    eprintln!("took {:.0} min", started.elapsed().as_secs_f64() / 60.0);
    options.common.publish("bench one", &text)
}

/// Builds the programs; where they are then.
fn build(root: &Path) -> Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_string());
    let status = Command::new(cargo)
        .args(["build", "--release", "--package", "node", "--bins"])
        .current_dir(root)
        .status()
        .context("cargo does not start")?;
    ensure!(status.success(), "sheep and dog do not build; mend that first");
    let target = std::env::var_os("CARGO_TARGET_DIR");
    Ok(root.join(target.unwrap_or("target".into())).join("release"))
}

/// A directory of ours; removed with all in it.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(parent: &Path) -> Result<Scratch> {
        // Short, for the sockets in it.
        let path = parent.join(format!("{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Scratch { path: path.canonicalize()? })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}; remove it by hand", self.path.display());
        }
    }
}

/// Runs every job on both systems in turn: A B A B ...
fn compare(
    root: &Path,
    scratch: &Path,
    programs: &Path,
    jobs: &[Job],
    size: u64,
    options: &One,
) -> Result<Vec<Row>> {
    let sheep = Sheep::start(programs, &scratch.join("sheep"), &[])?;
    sheep.create("bench", size)?;
    let peer = StorageDaemon::start(&scratch.join("peer"), size)?;
    let systems: [&dyn Server; 2] = [&sheep, &peer];
    for system in systems {
        eprintln!("filling {} ...", system.name());
        let fill = Job { name: "precond".to_string() };
        fio::run(root, scratch, &fill, system, size, options.seconds)?;
    }
    let mut rows: Vec<Row> = Vec::new();
    for job in jobs {
        let mut row = Row { job: job.clone(), sheep: Vec::new(), peer: Vec::new() };
        for round in 0..options.rounds {
            for (place, system) in systems.into_iter().enumerate() {
                let sample = fio::run(root, scratch, job, system, size, options.seconds)?;
                eprintln!(
                    "{} round {} {}: {:.0} operations/s",
                    job.name,
                    round + 1,
                    system.name(),
                    sample.operations_per_s
                );
                if place == 0 { row.sheep.push(sample) } else { row.peer.push(sample) }
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Measures what `sheep` costs beside its requests.
fn costs(
    root: &Path,
    scratch: &Path,
    programs: &Path,
    size: u64,
    fill: u64,
    options: &One,
) -> Result<Costs> {
    let data = scratch.join("costs");
    let mut sheep = Sheep::start(programs, &data, &[])?;
    sheep.create("bench", size)?;
    let job = |name: &str| Job { name: name.to_string() };
    eprintln!("measuring memory ...");
    fio::run(root, scratch, &job("precond"), &sheep, size, options.seconds)?;
    fio::run(root, scratch, &job("rw-4k-q32"), &sheep, size, options.seconds)?;
    let resident_bytes = machine::resident_bytes(sheep.process())?;
    eprintln!("measuring idling ...");
    // What the load left to be done in the background is not idling.
    thread::sleep(Duration::from_secs(2));
    let before = machine::processor_time(sheep.process())?;
    thread::sleep(Duration::from_secs(options.idle_seconds));
    let idle = machine::processor_time(sheep.process())? - before;
    sheep.delete("bench")?;
    eprintln!("measuring the start after kill -9 with {} written ...", options.fill);
    sheep.create("bench", fill)?;
    fio::run(root, scratch, &job("precond"), &sheep, fill, options.seconds)?;
    let stored_resident_bytes = machine::resident_bytes(sheep.process())?;
    sheep.kill()?;
    let started = Instant::now();
    let sheep = Sheep::start(programs, &data, &[])?;
    sheep.probe("bench")?;
    Ok(Costs {
        volume_bytes: size,
        resident_bytes,
        idle_processor_percent: idle.as_secs_f64() * 100.0 / options.idle_seconds.max(1) as f64,
        fill_bytes: fill,
        start_seconds: started.elapsed().as_secs_f64(),
        stored_resident_bytes,
    })
}

/// The output of a command that must succeed.
fn output_of(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().to_string();
    let output = command
        .output()
        .with_context(|| format!("{name} does not start: install it (`make deps`)"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
        bail!("{name} failed: {said}");
    }
    Ok(String::from_utf8_lossy(&output.stdout).to_string())
}
