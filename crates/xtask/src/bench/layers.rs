//! `cargo xtask bench layers`: what snapshots and clones cost those who read and write. One
//! `sheep`, two volumes of equal size and content: a plain one, and one with layers, measured in
//! turn.

use super::{
    Common,
    fio::{self, Job, Sample},
    machine,
    report::median,
    server::{Sheep, Volume},
};
use anyhow::{Context, Result, ensure};
use clap::Args;
use proto::limits::CHAIN_LINEAGES_MAX;
use serde_json::json;
use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How often a snapshot is taken under load.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);
/// How many clones lie on one another.
const CLONE_DEPTH: usize = 10;
/// How long the node may take to shorten the chain by itself.
const BACKGROUND_PATIENCE: Duration = Duration::from_secs(300);
/// Written before each snapshot or clone, so that there is something in its layer.
const WRITTEN_PIECES: usize = 4;
const PIECE_BYTES: u64 = 64 << 10;
/// The volume that reads of those with layers are compared with.
const READ_ALONE: &str = "alone";

/// Options of `bench layers`.
#[derive(Args, Clone)]
pub struct Layers {
    /// How long each job runs, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// How large the volumes are, as fio writes sizes
    #[arg(long, default_value = "2g")]
    size: String,
    /// How often each job runs on each volume; the medians count
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How many snapshots the volume with many has
    #[arg(long, default_value_t = 1000)]
    snapshots: usize,
    #[command(flatten)]
    common: Common,
}

/// One bench in progress.
struct Bench<'a> {
    root: &'a Path,
    scratch: &'a Path,
    sheep: &'a Sheep,
    size: u64,
    options: &'a Layers,
}

pub fn run(options: &Layers) -> Result<()> {
    ensure!(options.rounds > 0 && options.seconds > 0, "give at least one round and one second");
    let root = crate::tidy::root();
    let programs = options.common.programs(&root)?;
    let size = fio::parse_size(&options.size)?;
    let scratch = options.common.scratch(&root)?;
    let sheep = Sheep::start(&programs, &scratch.path.join("sheep"), &[])?;
    let bench = Bench { root: &root, scratch: &scratch.path, sheep: &sheep, size, options };
    let mut lines = vec![
        format!(
            "`cargo xtask bench layers --seconds {} --size {} --rounds {} --snapshots {}`",
            options.seconds, options.size, options.rounds, options.snapshots
        ),
        String::new(),
    ];
    lines.extend(machine::describe(&scratch.path).iter().map(|fact| format!("- {fact}")));
    lines.push(String::new());
    lines.push(
        "| what | with, /s | without, /s | ratio | wanted | slowest with / without, ms |".into(),
    );
    lines.push("| --- | --: | --: | --: | --: | --: |".into());
    bench.fill("plain")?;
    lines.push(bench.snapshot_each_second()?);
    lines.push(bench.many_snapshots()?);
    lines.extend(bench.deep_clone()?);
    lines.push(String::new());
    let text = lines.join("\n");
    options.common.publish("bench layers", &text)
}

impl Bench<'_> {
    fn volume(&self, name: &'static str) -> Volume<'_> {
        Volume { sheep: self.sheep, name }
    }

    fn job(&self, name: &str, volume: &'static str) -> Result<Sample> {
        let job = Job { name: name.into() };
        let (size, seconds) = (self.size, self.options.seconds);
        let sample = fio::run(self.root, self.scratch, &job, &self.volume(volume), size, seconds)?;
        eprintln!("{name} on {volume}: {:.0} operations/s", sample.operations_per_s);
        Ok(sample)
    }

    /// Makes a volume and writes all of it.
    fn fill(&self, name: &'static str) -> Result<()> {
        self.sheep.create(name, self.size)?;
        self.job("precond", name).map(|_| ())
    }

    fn snapshot(&self, volume: &str, tag: &str) -> Result<Duration> {
        let request = json!({"request": "snapshot_create", "name": volume, "tag": tag});
        Ok(self.sheep.ask(&request)?.1)
    }

    /// Something in the present layer of a volume.
    fn scribble(&self, volume: &str, number: usize) -> Result<()> {
        let file = self.scratch.join("piece");
        if !file.exists() {
            let bytes: Vec<u8> = (0..PIECE_BYTES).map(|at| (at % 251) as u8 + 1).collect();
            std::fs::write(&file, bytes)?;
        }
        let file = file.to_str().context("the directory has no name in UTF-8")?;
        for piece in 0..WRITTEN_PIECES {
            // Spread over the volume, the same in every run.
            let place = (number * WRITTEN_PIECES + piece) as u64 * 7919 * PIECE_BYTES;
            let offset = (place % (self.size - PIECE_BYTES)) / PIECE_BYTES * PIECE_BYTES;
            let offset = offset.to_string();
            self.sheep.dog(&["volume", "write", volume, "--offset", &offset, file])?;
        }
        Ok(())
    }

    /// Random writes while a snapshot is taken each second, and without, in turn.
    fn snapshot_each_second(&self) -> Result<String> {
        self.fill("bench")?;
        let (mut with, mut without, mut longest) = (Vec::new(), Vec::new(), Duration::ZERO);
        for round in 0..self.options.rounds {
            without.push(self.job("rw-4k-q32", "plain")?);
            let ended = AtomicBool::new(false);
            let sample = thread::scope(|scope| -> Result<Sample> {
                let ended = &ended;
                let snapshots = scope.spawn(move || -> Result<Duration> {
                    let (mut longest, mut number) = (Duration::ZERO, 0);
                    let mut next = Instant::now() + SNAPSHOT_INTERVAL;
                    while !ended.load(Ordering::Relaxed) {
                        thread::sleep(Duration::from_millis(10));
                        if Instant::now() >= next {
                            next += SNAPSHOT_INTERVAL;
                            number += 1;
                            let took = self.snapshot("bench", &format!("r{round}-{number}"))?;
                            longest = longest.max(took);
                        }
                    }
                    Ok(longest)
                });
                let sample = self.job("rw-4k-q32", "bench");
                ended.store(true, Ordering::Relaxed);
                longest = longest.max(snapshots.join().expect("it does not panic")?);
                sample
            })?;
            with.push(sample);
        }
        eprintln!("the slowest snapshot took {:.1} ms", longest.as_secs_f64() * 1000.0);
        Ok(row("4k random write q32, a snapshot each second", &with, &without, 0.9))
    }

    /// Random reads of a volume with many snapshots, and of one without, in turn. Both are written
    /// anew, one after the other: the disk (or the host below it) may answer slowly for what was
    /// written long ago, as that of the writes before was.
    fn many_snapshots(&self) -> Result<String> {
        self.fill("many")?;
        self.fill(READ_ALONE)?;
        for number in 0..self.options.snapshots {
            self.scribble("many", number)?;
            self.snapshot("many", &format!("s{number}"))?;
        }
        let what = format!("4k random read q32, {} snapshots", self.options.snapshots);
        let (with, without) = self.in_turn("rr-4k-q32", "many")?;
        Ok(row(&what, &with, &without, 0.95))
    }

    /// Random reads of a clone of a clone of a clone ..., before and after what the node does about
    /// it in the background by itself.
    fn deep_clone(&self) -> Result<Vec<String>> {
        const NAMES: [&str; CLONE_DEPTH + 1] =
            ["many", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9", "c10"];
        self.snapshot("many", "base")?;
        let used_before = self.sheep.stored_bytes()?;
        for depth in 1..=CLONE_DEPTH {
            let (below, name) = (NAMES[depth - 1], NAMES[depth]);
            let clone = json!({
                "request": "volume_clone", "name": below, "tag": "base", "new_name": name
            });
            self.sheep.ask(&clone)?;
            self.scribble(name, depth)?;
            if depth < CLONE_DEPTH {
                self.snapshot(name, "base")?;
            }
        }
        let deepest = NAMES[CLONE_DEPTH];
        let (with, without) = self.in_turn("rr-4k-q32", deepest)?;
        let what = format!("4k random read q32, clone depth {CLONE_DEPTH}, at once");
        let first = row(&what, &with, &without, 0.0);
        let used = self.wait_until_shortened(deepest)?;
        let (with, without) = self.in_turn("rr-4k-q32", deepest)?;
        let taken = used.saturating_sub(used_before);
        ensure!(
            taken < self.size / 2,
            "the clones take {taken} bytes of the disk: something was copied that nobody asked for"
        );
        let mib = taken >> 20;
        let what = format!("the same, when the node is done with it ({mib} MiB for all clones)");
        Ok(vec![first, row(&what, &with, &without, 0.9)])
    }

    /// Waits until the node has done what it does about a long chain; what is stored then.
    fn wait_until_shortened(&self, name: &str) -> Result<u64> {
        let request = json!({"request": "volume_info", "name": name});
        let until = Instant::now() + BACKGROUND_PATIENCE;
        loop {
            let volume = self.sheep.ask(&request)?.0["content"].take();
            let lineages = volume["origin"]["lineages"].as_u64();
            let is_short = lineages.is_some_and(|lineages| lineages <= CHAIN_LINEAGES_MAX as u64);
            if is_short && volume["shorten"].is_null() {
                break;
            }
            ensure!(Instant::now() < until, "{name} is not shortened by itself: {volume}");
            thread::sleep(Duration::from_millis(200));
        }
        // What is being freed is gone soon.
        let mut used = self.sheep.stored_bytes()?;
        loop {
            thread::sleep(Duration::from_secs(2));
            let now = self.sheep.stored_bytes()?;
            if now == used || Instant::now() > until {
                return Ok(now);
            }
            used = now;
        }
    }

    /// A job on a volume and on the one without layers, in turn.
    fn in_turn(&self, job: &str, name: &'static str) -> Result<(Vec<Sample>, Vec<Sample>)> {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..self.options.rounds {
            with.push(self.job(job, name)?);
            without.push(self.job(job, READ_ALONE)?);
        }
        Ok((with, without))
    }
}

/// A line of the table.
fn row(what: &str, with: &[Sample], without: &[Sample], wanted: f64) -> String {
    let speed = |samples: &[Sample]| median(samples, |sample| sample.operations_per_s);
    let worst = |samples: &[Sample]| median(samples, |sample| sample.worst_us) / 1000.0;
    let (fast, plain) = (speed(with), speed(without));
    let ratio = if plain > 0.0 { fast / plain } else { 0.0 };
    let verdict = if ratio < wanted { " (missed)" } else { "" };
    let wanted = if wanted > 0.0 { format!("{wanted:.2}") } else { "-".into() };
    format!(
        "| {what} | {fast:.0} | {plain:.0} | {ratio:.2}{verdict} | {wanted} | {:.1} / {:.1} |",
        worst(with),
        worst(without)
    )
}
