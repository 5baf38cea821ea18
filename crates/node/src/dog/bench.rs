//! `dog bench`: the job set on a scratch volume over NBD, one job after the other.

use super::{
    Context, Failure,
    arguments::Bench,
    interrupt::Interrupt,
    jobs::{self, Job},
    print,
    source::interrupted,
    status::status_report,
    with_remainder,
};
use crate::{
    nbd_client::{Command, NbdClient},
    size::Size,
};
use engine::admin::AdminRequest;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

/// Smallest scratch volume: the largest operation in flight at the largest depth has to fit.
const SIZE_MIN: u64 = 64 << 20;
/// Longest latency that is told from a longer one, in nanoseconds.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
/// What Linux counts a process's time in, on every architecture we run on: 100 a second.
const TICK: Duration = Duration::from_millis(10);

/// One job's figures.
#[derive(Debug, Serialize)]
struct Figures {
    job: String,
    operations: u64,
    seconds: f64,
    operations_per_s: f64,
    bytes_per_s: f64,
    /// Of an operation; of a write and its flush where the job flushes after each.
    p50_us: f64,
    p99_us: f64,
    /// Time on a processor that the daemon spent per operation, where the system tells.
    daemon_cpu_us_per_operation: Option<f64>,
}

/// Runs the command.
pub fn run(context: &Context, options: &Bench) -> Result<(), Failure> {
    let chosen = choose(jobs::jobs(), &options.job)?;
    check_size(context, options.size)?;
    let interrupt = Interrupt::listen()?;
    let name = format!("dog-bench-{}", std::process::id());
    let bytes = options.size.0;
    context.ask_for_volume(&AdminRequest::VolumeCreate { name: name.clone(), bytes })?;
    let span = Duration::from_secs(u64::from(options.seconds));
    let measured = measure(context, &name, &chosen, span, &interrupt);
    let removed = context.delete_when_free(&name, &interrupt);
    let figures = match (measured, removed) {
        (Ok(figures), Ok(())) => figures,
        (Err(failure), Ok(())) => return Err(with_remainder(failure, "nothing was left behind")),
        (Ok(_), Err(failure)) => {
            let remedy =
                format!("delete the scratch volume: `dog volume delete {name} --now --yes`");
            return Err(with_remainder(failure, &remedy));
        }
        (Err(failure), Err(_)) => {
            let remedy = format!(
                "the scratch volume is left: delete it with `dog volume delete {name} \
                         --now --yes`"
            );
            return Err(with_remainder(failure, &remedy));
        }
    };
    if context.json { print::json(&figures) } else { print::text(&tabulate(&figures)) }
}

/// The jobs of these names, all without any; the one that fills the volume comes first in any case.
fn choose(all: Vec<Job>, names: &[String]) -> Result<Vec<Job>, Failure> {
    if let Some(unknown) = names.iter().find(|name| all.iter().all(|job| job.name != **name)) {
        let known: Vec<&str> = all.iter().map(|job| job.name.as_str()).collect();
        return Err(Failure::usage(format!(
            "there is no job `{unknown}`; choose from {}",
            known.join(", ")
        )));
    }
    let wanted = |job: &Job| job.once || names.is_empty() || names.contains(&job.name);
    Ok(all.into_iter().filter(wanted).collect())
}

fn check_size(context: &Context, size: Size) -> Result<(), Failure> {
    if size.0 < SIZE_MIN {
        return Err(Failure::usage(format!(
            "a scratch volume of {size} is too small to measure anything; give {} or more",
            Size(SIZE_MIN)
        )));
    }
    let available: u64 =
        status_report(context)?.disks.iter().map(|disk| disk.available_bytes).sum();
    // Half as much again: overwritten blocks are freed only behind the writes.
    let needed = size.0.saturating_add(size.0 / 2);
    if available < needed {
        return Err(Failure::conflict(format!(
            "the scratch volume would need {}, and {} are available; give a smaller --size",
            Size(needed),
            Size(available)
        )));
    }
    Ok(())
}

fn measure(
    context: &Context,
    name: &str,
    jobs: &[Job],
    span: Duration,
    interrupt: &Interrupt,
) -> Result<Vec<Figures>, Failure> {
    let mut client = context.attach(name, interrupt)?;
    let mut figures = Vec::new();
    for job in jobs {
        context.note(&format!("running {} ...", job.name));
        figures.push(Run::new(job, &client, span, interrupt).perform(&mut client)?);
    }
    client.disconnect()?;
    Ok(figures)
}

/// One job under way.
struct Run<'a> {
    job: &'a Job,
    interrupt: &'a Interrupt,
    /// How many operations fit into the volume.
    places: u64,
    /// How many operations to do in all, where time does not decide.
    operations_max: Option<u64>,
    span: Duration,
    random: Random,
    /// What writes are cut from.
    pattern: Vec<u8>,
    started_operations: u64,
    done_operations: u64,
    /// Writes whose flush is still to come, by the flush's cookie: when the write began.
    flushes: BTreeMap<u64, Instant>,
    latencies: Histogram<u64>,
}

impl Run<'_> {
    fn new<'a>(
        job: &'a Job,
        client: &NbdClient,
        span: Duration,
        interrupt: &'a Interrupt,
    ) -> Run<'a> {
        let places = client.export().bytes / u64::from(job.block);
        let mut random = Random(0x5eed_5eed_5eed_5eed);
        let pattern = (0..job.block as usize / 8 + 512).flat_map(|_| random.next().to_le_bytes());
        Run {
            job,
            interrupt,
            places,
            operations_max: job.once.then_some(places),
            span,
            pattern: pattern.collect(),
            random,
            started_operations: 0,
            done_operations: 0,
            flushes: BTreeMap::new(),
            latencies: Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)
                .expect("the bounds are constants"),
        }
    }

    fn perform(mut self, client: &mut NbdClient) -> Result<Figures, Failure> {
        let process = client.peer_process();
        let cpu_before = process.and_then(cpu_time);
        let started = Instant::now();
        loop {
            let more = match self.operations_max {
                Some(most) => self.started_operations < most,
                None => started.elapsed() < self.span,
            };
            if more && client.in_flight() < self.job.depth {
                self.start(client)?;
                continue;
            }
            interrupted(self.interrupt)?;
            let Some(reply) = client.wait()? else { break };
            reply.result?;
            let now = Instant::now();
            if let Some(began) = self.flushes.remove(&reply.cookie) {
                self.record(now.duration_since(began));
            } else if self.job.sync {
                let cookie = client.submit(Command::Flush)?;
                self.flushes.insert(cookie, now.checked_sub(reply.elapsed).unwrap_or(now));
            } else {
                self.record(reply.elapsed);
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let cpu_after = process.and_then(cpu_time);
        if self.job.once {
            // What was filled in must not be flushed at the cost of the first job.
            client.call(Command::Flush)?;
        }
        let operations = self.done_operations.max(1) as f64;
        let percentile = |percent| self.latencies.value_at_percentile(percent) as f64 / 1000.0;
        Ok(Figures {
            job: self.job.name.clone(),
            operations: self.done_operations,
            seconds,
            operations_per_s: self.done_operations as f64 / seconds,
            bytes_per_s: self.done_operations as f64 * f64::from(self.job.block) / seconds,
            p50_us: percentile(50.0),
            p99_us: percentile(99.0),
            daemon_cpu_us_per_operation: cpu_before.zip(cpu_after).map(|(before, after)| {
                after.saturating_sub(before).as_secs_f64() * 1e6 / operations
            }),
        })
    }

    /// Sends the next operation.
    fn start(&mut self, client: &mut NbdClient) -> Result<(), Failure> {
        let place = if self.job.random {
            self.random.next() % self.places
        } else {
            self.started_operations % self.places
        };
        self.started_operations += 1;
        let (offset, length) = (place * u64::from(self.job.block), self.job.block);
        let command = if self.random.next() % 100 < u64::from(self.job.read_percent) {
            Command::Read { offset, length }
        } else {
            let from = (self.random.next() % 4096) as usize;
            let data = self.pattern[from..from + length as usize].to_vec();
            Command::Write { offset, data, fua: false }
        };
        client.submit(command)?;
        Ok(())
    }

    fn record(&mut self, latency: Duration) {
        self.done_operations += 1;
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_NS_MAX);
        self.latencies.saturating_record(nanoseconds.max(1));
    }
}

/// Marsaglia's xorshift: enough to spread accesses, and the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Time on a processor that a process has used.
fn cpu_time(process: u32) -> Option<Duration> {
    parse_cpu_time(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// User and system time out of `/proc/PID/stat`. The name in it may hold spaces and brackets.
fn parse_cpu_time(stat: &str) -> Option<Duration> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(TICK * user.checked_add(system)?)
}

fn tabulate(figures: &[Figures]) -> String {
    let columns = [
        ("JOB", false),
        ("IOPS", true),
        ("MB/s", true),
        ("P50", true),
        ("P99", true),
        ("DAEMON CPU/OP", true),
    ];
    let rows = figures.iter().map(|figures| {
        vec![
            figures.job.clone(),
            format!("{:.0}", figures.operations_per_s),
            format!("{:.1}", figures.bytes_per_s / 1e6),
            describe_latency(figures.p50_us),
            describe_latency(figures.p99_us),
            figures
                .daemon_cpu_us_per_operation
                .map_or_else(|| "-".to_string(), |micros| format!("{micros:.1} us")),
        ]
    });
    print::table(&columns, rows.collect())
}

fn describe_latency(micros: f64) -> String {
    if micros < 10_000.0 { format!("{micros:.0} us") } else { format!("{:.1} ms", micros / 1e3) }
}

#[cfg(test)]
mod tests {
    use super::{super::failure::FailureKind, *};

    #[test]
    fn processor_time_is_read_whatever_the_process_is_called() {
        let stat = "4711 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0 77";
        assert_eq!(parse_cpu_time(stat), Some(Duration::from_secs(3)));
        assert_eq!(parse_cpu_time(""), None);
        assert_eq!(parse_cpu_time("1 (x) S 1"), None);
        assert!(cpu_time(std::process::id()).is_some());
    }

    #[test]
    fn jobs_are_chosen_by_name_and_the_volume_is_always_filled() {
        let names = |chosen: Vec<Job>| chosen.into_iter().map(|job| job.name).collect::<Vec<_>>();
        let chosen = choose(jobs::jobs(), &["rw-4k-q1".to_string()]).expect("a known job");
        assert_eq!(names(chosen), ["precond", "rw-4k-q1"]);
        assert_eq!(choose(jobs::jobs(), &[]).expect("all").len(), jobs::jobs().len());
        let failure = choose(jobs::jobs(), &["x".to_string()]).expect_err("unknown");
        assert_eq!(failure.kind, FailureKind::Usage);
        assert!(failure.sentence.contains("rw-4k-q32"), "{failure}");
    }

    #[test]
    fn figures_are_tabulated() {
        let figures = Figures {
            job: "rw-4k-q1".to_string(),
            operations: 1000,
            seconds: 1.0,
            operations_per_s: 1000.0,
            bytes_per_s: 4_096_000.0,
            p50_us: 90.4,
            p99_us: 12_345.0,
            daemon_cpu_us_per_operation: Some(15.25),
        };
        let expected = "\
JOB       IOPS  MB/s    P50      P99  DAEMON CPU/OP
rw-4k-q1  1000   4.1  90 us  12.3 ms        15.2 us
";
        assert_eq!(tabulate(&[figures]), expected);
    }
}
