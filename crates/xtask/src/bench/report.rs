//! The figures as a section of `docs/performance.md`.

use super::{Costs, One, Row, fio::Sample};
use anyhow::{Context, Result};
use std::{fmt::Write, fs, path::Path};

/// The least ratio to the peer that is good enough.
const RATIO_MIN: f64 = 0.9;

/// The middle of some figures.
pub fn median(samples: &[Sample], figure: impl Fn(&Sample) -> f64) -> f64 {
    let mut figures: Vec<f64> = samples.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => 0.0,
        count if count % 2 == 1 => figures[count / 2],
        count => (figures[count / 2 - 1] + figures[count / 2]) / 2.0,
    }
}

/// Everything as Markdown.
pub fn report(rows: &[Row], costs: &Costs, machine: &[String], options: &One) -> String {
    let mut text = String::new();
    let mut line = |words: &str| writeln!(text, "{words}").expect("a string takes everything");
    line(&format!(
        "`cargo xtask bench one --seconds {} --size {} --rounds {} --fill {}`",
        options.seconds, options.size, options.rounds, options.fill
    ));
    line("");
    for fact in machine {
        line(&format!("- {fact}"));
    }
    line("");
    line(
        "| job | sheep /s | peer /s | ratio | sheep p50/p99 us | peer p50/p99 us | sheep CPU us/op \
         | peer CPU us/op | sheep written/byte | peer written/byte |",
    );
    line("| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |");
    for row in rows {
        line(&table_row(row));
    }
    line("");
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    line(&format!(
        "- memory: {:.0} MiB resident after {:.0} MiB were filled and overwritten at random, {:.0} \
         MiB with {:.0} MiB stored",
        mib(costs.resident_bytes),
        mib(costs.volume_bytes),
        mib(costs.stored_resident_bytes),
        mib(costs.fill_bytes)
    ));
    line(&format!(
        "- idle: {:.2} % of a processor over {} s",
        costs.idle_processor_percent, options.idle_seconds
    ));
    line(&format!(
        "- start: {:.2} s from `kill -9` with {:.0} MiB written to the first read over NBD",
        costs.start_seconds,
        mib(costs.fill_bytes)
    ));
    text
}

fn table_row(row: &Row) -> String {
    let (sheep, peer) = (&row.sheep, &row.peer);
    let speeds = (
        median(sheep, |sample| sample.operations_per_s),
        median(peer, |sample| sample.operations_per_s),
    );
    let ratio = if speeds.1 > 0.0 { speeds.0 / speeds.1 } else { 0.0 };
    let verdict = if ratio < RATIO_MIN { " (missed)" } else { "" };
    let latencies = |samples: &[Sample]| {
        let (p50, p99) = (median(samples, |s| s.p50_us), median(samples, |s| s.p99_us));
        format!("{p50:.0} / {p99:.0}")
    };
    let written = |samples: &[Sample]| {
        if samples.iter().any(|sample| sample.written_per_byte.is_none()) {
            return "-".to_string();
        }
        format!("{:.2}", median(samples, |sample| sample.written_per_byte.unwrap_or(0.0)))
    };
    format!(
        "| {} | {:.0} | {:.0} | {ratio:.2}{verdict} | {} | {} | {:.1} | {:.1} | {} | {} |",
        row.job.name,
        speeds.0,
        speeds.1,
        latencies(sheep),
        latencies(peer),
        median(sheep, |sample| sample.processor_us),
        median(peer, |sample| sample.processor_us),
        written(sheep),
        written(peer),
    )
}

/// Replaces the program's part of the document, between two lines with its name.
pub fn put(path: &Path, name: &str, text: &str) -> Result<()> {
    let old =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    fs::write(path, replaced(&old, name, text)?)?;
    Ok(())
}

fn replaced(old: &str, name: &str, text: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- {name}: begin -->"), format!("<!-- {name}: end -->"));
    let lost = || format!("the lines {begin} and {end} are missing: put them back");
    let (head, rest) = old.split_once(&begin).with_context(lost)?;
    let (_, tail) = rest.split_once(&end).with_context(lost)?;
    Ok(format!("{head}{begin}\n{text}{end}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fio::Job;

    fn sample(operations_per_s: f64) -> Sample {
        Sample { operations_per_s, p50_us: 10.0, p99_us: 20.0, ..Sample::default() }
    }

    #[test]
    fn medians_and_ratios_are_told() {
        let row = Row {
            job: Job { name: "rw".to_string() },
            sheep: [800.0, 100.0, 900.0].map(sample).to_vec(),
            peer: [1000.0, 1000.0].map(sample).to_vec(),
        };
        let line = table_row(&row);
        assert!(line.starts_with("| rw | 800 | 1000 | 0.80 (missed) | 10 / 20 | "), "{line}");
        assert!(line.ends_with("| - | - |"), "{line}");
    }

    #[test]
    fn only_our_part_of_the_document_is_replaced() {
        let document = |part: &str| {
            format!("# Title\nwords\n<!-- x: begin -->\n{part}\n<!-- x: end -->\nmore words\n")
        };
        assert_eq!(replaced(&document("old"), "x", "new\n").expect("marks"), document("new"));
        assert!(replaced(&document("old"), "y", "new").is_err());
    }
}
