//! `cargo xtask bench cluster`: three daemons on this machine, three copies of everything, against
//! the device itself and against `qemu-storage-daemon`, which has one copy.

use super::{
    Common,
    fio::{self, Job, Sample},
    machine, output_of,
    report::median,
    server::{Server, Sheep, StorageDaemon},
};
use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;
use std::{
    fmt::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// How long the copies may take to be made.
const WHOLE_PATIENCE: Duration = Duration::from_secs(600);

/// Options of `bench cluster`.
#[derive(Args, Clone)]
pub struct Cluster {
    /// How long each job runs, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// How large the volumes and the raw files are, as fio writes sizes. The directory must have
    /// room for eight of them
    #[arg(long, default_value = "4g")]
    size: String,
    /// How often each job runs on each system; the medians count
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Run only these jobs
    #[arg(long, value_name = "JOB")]
    job: Vec<String>,
    #[command(flatten)]
    common: Common,
}

/// What is wanted of a job.
#[derive(Clone, Copy)]
enum Wanted {
    /// So much of the device's operations at least.
    Speed(f64),
    /// So many times the device's latency at most.
    Latency(f64),
    /// Only told.
    Nothing,
}

/// What three copies are allowed to cost, by job: of the speed, and of the processor time of one
/// copy behind NBD.
fn wanted(job: &str) -> (Wanted, f64) {
    let speed = match job {
        "rw-4k-q32" => Wanted::Speed(0.24),
        "rw-4k-q1" => Wanted::Latency(4.0),
        "rw-4k-q1-fsync" => Wanted::Speed(0.3),
        "rr-4k-q32" => Wanted::Speed(0.47),
        "sw-1m-q8" => Wanted::Speed(0.21),
        "sr-1m-q8" => Wanted::Speed(0.65),
        _ => Wanted::Nothing,
    };
    (speed, if job.starts_with("rr") || job.starts_with("sr") { 1.5 } else { 5.0 })
}

/// Three daemons; the client is at the first.
struct Three {
    name: &'static str,
    nodes: Vec<Sheep>,
}

impl Three {
    /// Founds a cluster, has two more nodes join it, makes a volume and waits for its copies.
    fn start(programs: &Path, scratch: &Path, plain: bool, bytes: u64) -> Result<Three> {
        let name = if plain { "plain" } else { "tls" };
        let mut three = Three { name, nodes: Vec::new() };
        let mut token: Option<String> = None;
        for number in 0..3 {
            let listen = free_address()?;
            let mut options = vec!["--listen", &listen];
            if plain {
                options.extend(["--plain-peers", "loopback"]);
            }
            if let Some(token) = &token {
                options.extend(["--join", token]);
            }
            let sheep = Sheep::start(programs, &scratch.join(format!("{name}{number}")), &options)?;
            if token.is_none() {
                let said = sheep.ask_dog(&["cluster", "token", "--uses", "2"])?;
                token = Some(said.trim().to_string());
            }
            three.nodes.push(sheep);
        }
        three.first().create("bench", bytes)?;
        three.wait_whole()?;
        Ok(three)
    }

    fn first(&self) -> &Sheep {
        &self.nodes[0]
    }

    fn wait_whole(&self) -> Result<()> {
        let until = Instant::now() + WHOLE_PATIENCE;
        while Instant::now() < until {
            let text = self.first().ask_dog(&["volume", "info", "bench", "--json"])?;
            let info: Value = serde_json::from_str(&text).context("dog prints broken JSON")?;
            if info["copies"] == 3 {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(200));
        }
        anyhow::bail!("the volume has no three copies after {} s", WHOLE_PATIENCE.as_secs())
    }
}

impl Server for Three {
    fn name(&self) -> &'static str {
        self.name
    }

    fn processes(&self) -> Vec<u32> {
        self.nodes.iter().flat_map(Server::processes).collect()
    }

    fn target(&self) -> String {
        self.first().target()
    }
}

/// The file system and the device below it, by io_uring: there is no daemon.
struct Raw {
    file: PathBuf,
}

impl Raw {
    fn new(directory: &Path, bytes: u64) -> Result<Raw> {
        let file = directory.join("bare");
        output_of(Command::new("fallocate").args(["-l", &bytes.to_string()]).arg(&file))?;
        Ok(Raw { file })
    }
}

impl Server for Raw {
    fn name(&self) -> &'static str {
        "raw io_uring"
    }

    fn processes(&self) -> Vec<u32> {
        Vec::new()
    }

    fn target(&self) -> String {
        self.file.display().to_string()
    }

    fn head(&self) -> &'static str {
        "bench/head-uring.fio"
    }
}

/// A port that is free now, on an address that this process has for itself.
fn free_address() -> Result<String> {
    let [.., high, low] = std::process::id().to_be_bytes();
    let host = format!("127.77.{high}.{low}");
    let listener = TcpListener::bind((host.as_str(), 0)).context("no free port")?;
    Ok(listener.local_addr()?.to_string())
}

/// The samples of one job, a list a system, in the order in which they were measured.
struct Row {
    job: Job,
    plain: Vec<Sample>,
    tls: Vec<Sample>,
    raw: Vec<Sample>,
    peer: Vec<Sample>,
}

pub fn run(options: &Cluster) -> Result<()> {
    ensure!(options.rounds > 0 && options.seconds > 0, "give at least one round and one second");
    let root = crate::tidy::root();
    let programs = options.common.programs(&root)?;
    let size = fio::parse_size(&options.size)?;
    let scratch = options.common.scratch(&root)?;
    let jobs = fio::chosen(&root, &options.job)?;
    let rows = measure(&root, &scratch.path, &programs, &jobs, size, options)?;
    let text = describe(&rows, &machine::describe(&scratch.path), options);
    options.common.publish("bench cluster", &text)
}

fn measure(
    root: &Path,
    scratch: &Path,
    programs: &Path,
    jobs: &[Job],
    size: u64,
    options: &Cluster,
) -> Result<Vec<Row>> {
    eprintln!("three daemons in plain mode, and three with TLS ...");
    let plain = Three::start(programs, scratch, true, size)?;
    let tls = Three::start(programs, scratch, false, size)?;
    let raw = Raw::new(scratch, size)?;
    let peer = StorageDaemon::start(&scratch.join("peer"), size)?;
    let systems: [&dyn Server; 4] = [&plain, &tls, &raw, &peer];
    for system in systems {
        eprintln!("filling {} ...", system.name());
        let fill = Job { name: "precond".to_string() };
        fio::run(root, scratch, &fill, system, size, options.seconds)?;
    }
    let mut rows = Vec::new();
    for job in jobs {
        let mut samples = [const { Vec::new() }; 4];
        for round in 1..=options.rounds {
            for (system, samples) in systems.iter().zip(&mut samples) {
                let sample = fio::run(root, scratch, job, *system, size, options.seconds)?;
                let (name, speed) = (system.name(), sample.operations_per_s);
                eprintln!("{} round {round} {name}: {speed:.0} operations/s", job.name);
                samples.push(sample);
            }
        }
        let [plain, tls, raw, peer] = samples;
        rows.push(Row { job: job.clone(), plain, tls, raw, peer });
    }
    Ok(rows)
}

fn describe(rows: &[Row], machine: &[String], options: &Cluster) -> String {
    let mut text = String::new();
    let mut line = |words: &str| writeln!(text, "{words}").expect("a string takes everything");
    line(&format!(
        "`cargo xtask bench cluster --seconds {} --size {} --rounds {}`",
        options.seconds, options.size, options.rounds
    ));
    line("");
    for fact in machine {
        line(&format!("- {fact}"));
    }
    line("");
    line(
        "| job | plain /s | TLS /s | raw /s | plain : raw | wanted | plain p50/p99 us | raw \
         p50/p99 us | CPU us/op, plain | TLS | peer | plain : peer | wanted |",
    );
    line("| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |");
    for row in rows {
        line(&table_row(row));
    }
    text
}

fn table_row(row: &Row) -> String {
    let Row { job, plain, tls, raw, peer } = row;
    let speed = |samples: &[Sample]| median(samples, |sample| sample.operations_per_s);
    let p50 = |samples: &[Sample]| median(samples, |sample| sample.p50_us);
    let p99 = |samples: &[Sample]| median(samples, |sample| sample.p99_us);
    let processor = |samples: &[Sample]| median(samples, |sample| sample.processor_us);
    let (wanted, processor_max) = wanted(&job.name);
    let missed = |is_met: bool| if is_met { "" } else { " (missed)" };
    let (ratio, wanted) = match wanted {
        Wanted::Speed(least) => {
            let ratio = speed(plain) / speed(raw);
            (format!("{ratio:.2}{}", missed(ratio >= least)), format!(">= {least}"))
        }
        Wanted::Latency(most) => {
            let ratio = p50(plain) / p50(raw);
            let told = format!("{ratio:.1} times the latency{}", missed(ratio <= most));
            (told, format!("<= {most}"))
        }
        Wanted::Nothing => (format!("{:.2}", speed(plain) / speed(raw)), "-".to_string()),
    };
    let cost = processor(plain) / processor(peer);
    format!(
        "| {} | {:.0} | {:.0} | {:.0} | {ratio} | {wanted} | {:.0} / {:.0} | {:.0} / {:.0} | {:.1} \
         | {:.1} | {:.1} | {cost:.1}{} | <= {processor_max} |",
        job.name,
        speed(plain),
        speed(tls),
        speed(raw),
        p50(plain),
        p99(plain),
        p50(raw),
        p99(raw),
        processor(plain),
        processor(tls),
        processor(peer),
        missed(cost <= processor_max),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missed_is_told() {
        let sample = |operations_per_s: f64, p50_us: f64, processor_us: f64| {
            vec![Sample { operations_per_s, p50_us, processor_us, ..Sample::default() }]
        };
        let row = |name: &str, plain: Vec<Sample>| Row {
            job: Job { name: name.to_string() },
            plain,
            tls: sample(200.0, 60.0, 50.0),
            raw: sample(1000.0, 10.0, 0.0),
            peer: sample(900.0, 12.0, 10.0),
        };
        let check = |name: &str, plain: Vec<Sample>, ratio: &str, cost: &str| {
            let line = table_row(&row(name, plain));
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            assert_eq!((cells[5], cells[12]), (ratio, cost), "{line}");
        };
        check("rw-4k-q32", sample(240.0, 0.0, 50.0), "0.24", "5.0");
        check("rw-4k-q32", sample(200.0, 0.0, 51.0), "0.20 (missed)", "5.1 (missed)");
        check("rw-4k-q1", sample(0.0, 40.0, 1.0), "4.0 times the latency", "0.1");
        check("rw-4k-q1", sample(0.0, 41.0, 1.0), "4.1 times the latency (missed)", "0.1");
        check("rr-4k-q1", sample(100.0, 40.0, 16.0), "0.10", "1.6 (missed)");
    }

    #[test]
    fn three_daemons_have_addresses_of_their_own() {
        let addresses = [(); 2].map(|()| free_address().expect("a free port"));
        assert!(addresses.iter().all(|address| address.starts_with("127.77.")), "{addresses:?}");
    }
}
