//! Running one section of `bench/jobs.fio` and reading what fio says about it.

use super::{machine, output_of, server::Server};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{fs, path::Path, process::Command, time::Duration};

/// The jobs of the issue, in the order of the table.
const JOBS: &[&str] =
    &["rr-4k-q1", "rr-4k-q32", "rw-4k-q1", "rw-4k-q32", "rw-4k-q1-fsync", "sw-1m-q8", "sr-1m-q8"];

/// A section of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    pub name: String,
}

/// The figures of one run.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Sample {
    pub operations_per_s: f64,
    pub bytes_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// The slowest one.
    pub worst_us: f64,
    /// The daemon's processor time for each operation.
    pub processor_us: f64,
    /// What the daemon wrote for each byte that the client wrote; nothing for reads.
    pub written_per_byte: Option<f64>,
}

/// The jobs of these names, all of the without any.
pub fn chosen(root: &Path, names: &[String]) -> Result<Vec<Job>> {
    let text = fs::read_to_string(root.join("bench/jobs.fio")).context("bench/jobs.fio")?;
    let default: Vec<String> = JOBS.iter().map(|name| (*name).to_string()).collect();
    let names = if names.is_empty() { &default } else { names };
    for name in names {
        ensure!(
            text.contains(&format!("[{name}]")),
            "there is no job `{name}`: choose one of bench/jobs.fio"
        );
    }
    Ok(names.iter().map(|name| Job { name: name.clone() }).collect())
}

/// Runs a job against a system.
pub fn run(
    root: &Path,
    scratch: &Path,
    job: &Job,
    system: &dyn Server,
    size: u64,
    seconds: u32,
) -> Result<Sample> {
    let file = scratch.join("run.fio");
    let parts = [system.head(), "bench/jobs.fio"].map(|part| root.join(part));
    let text = parts.iter().map(fs::read_to_string).collect::<Result<Vec<_>, _>>()?.concat();
    fs::write(&file, text)?;
    let (processor, written) = used(system)?;
    let output = output_of(
        Command::new("fio")
            .args(["--output-format=json", &format!("--section={}", job.name)])
            .arg(&file)
            .env("TARGET", system.target())
            .env("SIZE", size.to_string())
            .env("RT", seconds.to_string())
            .current_dir(scratch),
    )?;
    let (processor_then, written_then) = used(system)?;
    parse(&output, processor_then - processor, written_then - written)
        .with_context(|| format!("job {}", job.name))
}

/// What all processes of a system have used and written until now.
fn used(system: &dyn Server) -> Result<(Duration, u64)> {
    let mut sum = (Duration::ZERO, 0);
    for process in system.processes() {
        sum.0 += machine::processor_time(process)?;
        sum.1 += machine::written_bytes(process)?;
    }
    Ok(sum)
}

/// Reads fio's JSON; lines before it are warnings.
fn parse(output: &str, processor: Duration, written: u64) -> Result<Sample> {
    let json = output.find('{').map(|start| &output[start..]).context("fio printed no JSON")?;
    let report: Value = serde_json::from_str(json).context("fio printed broken JSON")?;
    let job = &report["jobs"][0];
    ensure!(job["error"] == 0, "fio reports error {}", job["error"]);
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let (read, write) = (&job["read"], &job["write"]);
    let operations = number(&read["total_ios"]) + number(&write["total_ios"]);
    ensure!(operations > 0.0, "fio did nothing");
    // Where each write is followed by a flush, the flush is what is waited for.
    let flushes = &job["sync"]["lat_ns"];
    let latencies = if number(&job["sync"]["total_ios"]) > 0.0 {
        flushes
    } else if number(&read["total_ios"]) > 0.0 {
        &read["clat_ns"]
    } else {
        &write["clat_ns"]
    };
    let percentile = |name: &str| number(&latencies["percentile"][name]) / 1000.0;
    let client_wrote = number(&write["io_bytes"]);
    Ok(Sample {
        operations_per_s: number(&read["iops"]) + number(&write["iops"]),
        bytes_per_s: number(&read["bw_bytes"]) + number(&write["bw_bytes"]),
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        worst_us: number(&latencies["max"]) / 1000.0,
        processor_us: processor.as_secs_f64() * 1e6 / operations,
        written_per_byte: (client_wrote > 0.0).then(|| written as f64 / client_wrote),
    })
}

/// A size as fio writes it: `4g`, `256m`.
pub fn parse_size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().with_context(|| format!("`{text}` is no size: say 4g"))?;
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => anyhow::bail!("`{text}` has an unknown unit: use k, m, g or t"),
    };
    number.checked_shl(shift).filter(|bytes| bytes >> shift == number).context("too large")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fio_is_understood() {
        let output = "fio: warning\n{\"jobs\": [{\"error\": 0, \"read\": {\"total_ios\": 0}, \
            \"write\": {\"total_ios\": 1000, \"iops\": 500.5, \"bw_bytes\": 2048, \
            \"io_bytes\": 4096000, \"clat_ns\": {\"max\": 500000, \
            \"percentile\": {\"50.000000\": 90000, \"99.000000\": 120000}}}, \
            \"sync\": {\"total_ios\": 0}}]}";
        let sample = parse(output, Duration::from_millis(20), 8_192_000).expect("a report");
        let expected = Sample {
            operations_per_s: 500.5,
            bytes_per_s: 2048.0,
            p50_us: 90.0,
            p99_us: 120.0,
            worst_us: 500.0,
            processor_us: 20.0,
            written_per_byte: Some(2.0),
        };
        assert_eq!(sample, expected);
        let failed = output.replace("\"error\": 0", "\"error\": 5");
        assert!(parse(&failed, Duration::ZERO, 0).is_err());
        assert!(parse("", Duration::ZERO, 0).is_err());
    }

    #[test]
    fn sizes_are_understood() {
        let check = |text, bytes| assert_eq!(parse_size(text).ok(), bytes, "{text}");
        check("4g", Some(4 << 30));
        check("256M", Some(256 << 20));
        check("4096", Some(4096));
        check("x", None);
        check("4x", None);
        check("99999999999999999t", None);
    }

    #[test]
    fn every_job_of_the_table_is_in_the_file() {
        assert_eq!(chosen(&crate::tidy::root(), &[]).expect("all").len(), JOBS.len());
        assert!(chosen(&crate::tidy::root(), &["absent".to_string()]).is_err());
    }
}
