//! What the kernel says about processes and about this machine.

use anyhow::{Context, Result};
use std::{fs, path::Path, process::Command, time::Duration};

/// What Linux counts a process's time in: 100 a second on every architecture we run on.
const TICK: Duration = Duration::from_millis(10);

/// Processor time a process has used, all threads together.
pub fn processor_time(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))
        .with_context(|| format!("process {process} is gone"))?;
    // The name in brackets may hold anything.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    let ticks: Vec<u32> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(TICK * ticks.iter().sum())
}

/// Bytes a process has sent to its disks.
pub fn written_bytes(process: u32) -> Result<u64> {
    field(&format!("/proc/{process}/io"), "write_bytes:")
}

/// Memory of a process that is in use now.
pub fn resident_bytes(process: u32) -> Result<u64> {
    Ok(field(&format!("/proc/{process}/status"), "VmRSS:")? << 10)
}

/// Memory of a process that is resident, now and at most since it started.
pub fn resident_and_peak_bytes(process: u32) -> Result<(u64, u64)> {
    // In this order: it may grow between the two.
    let now = resident_bytes(process)?;
    Ok((now, field(&format!("/proc/{process}/status"), "VmHWM:")? << 10))
}

fn field(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok())
        .with_context(|| format!("{path} has no {name}"))
}

/// The machine in a few lines of a list.
pub fn describe(scratch: &Path) -> Vec<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let first = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split(':').nth(1)).unwrap_or("unknown").trim().to_string()
    };
    let processors = read("/proc/cpuinfo");
    let count = processors.lines().filter(|line| line.starts_with("processor")).count();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).to_string());
        text.unwrap_or_default().lines().next().unwrap_or("unknown").trim().to_string()
    };
    let output = Command::new("df").arg("--output=fstype").arg(scratch).output();
    let system = output.map(|output| String::from_utf8_lossy(&output.stdout).to_string());
    let system = system.unwrap_or_default();
    let system = system.lines().nth(1).unwrap_or("unknown").trim();
    vec![
        format!("processor: {} x {}", count, first(&processors, "model name")),
        format!("memory: {}", first(&read("/proc/meminfo"), "MemTotal")),
        format!("kernel: Linux {}", read("/proc/sys/kernel/osrelease").trim()),
        format!("file system: {system}"),
        format!("peer: {}", run("qemu-storage-daemon", &["--version"])),
        format!("load: {}", run("fio", &["--version"])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_measured() {
        let process = std::process::id();
        assert!(processor_time(process).is_ok() && written_bytes(process).is_ok());
        let (now, peak) = resident_and_peak_bytes(process).expect("sizes");
        assert!(now > 100_000 && now <= peak);
        assert!(processor_time(u32::MAX).is_err());
    }
}
