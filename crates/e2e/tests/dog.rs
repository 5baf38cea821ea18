//! `dog` as people and scripts meet it: what hangs, what goes away, and what programs read.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{Node, Scratch, Tool, dog};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// Stops a daemon for as long as it lives, as one that hangs.
struct Hung(Pid);

impl Hung {
    fn new(node: &Node) -> Result<Hung> {
        let number = node.pid().context("it runs")?;
        let pid = Pid::from_raw(i32::try_from(number)?).context("a pid")?;
        kill_process(pid, Signal::STOP)?;
        let hung = Hung(pid);
        // The signal is only sent: until it is taken, threads go on and greet who connects.
        let begin = Instant::now();
        while !is_stopped(number)? {
            ensure!(begin.elapsed() < Duration::from_secs(30), "it is not stopped");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(hung)
    }
}

/// Whether no thread of a process runs.
fn is_stopped(pid: u32) -> Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let state = status.lines().find_map(|line| line.strip_prefix("State:"));
        if !state.context("a state")?.trim().starts_with('T') {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// `dog status` waited ten minutes for a daemon that hung.
#[test]
fn a_daemon_that_hangs_does_not_hang_dog() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 64M")?;
    let hung = Hung::new(&node)?;
    let gives_up = |words: &str| -> Result<()> {
        let begin = Instant::now();
        let output = node.dog(words).run()?;
        ensure!(output.code == Some(1), "dog {words}: {output}");
        ensure!(begin.elapsed() < Duration::from_secs(40), "{:?}: {words}", begin.elapsed());
        ensure!(output.stderr.contains("not answer"), "dog {words}: {output}");
        Ok(())
    };
    std::thread::scope(|scope| -> Result<()> {
        let commands = ["status", "volume list", "volume read v --offset 0 --length 4K"];
        let all: Vec<_> = commands.iter().map(|words| scope.spawn(|| gives_up(words))).collect();
        // Whoever does not want to wait is back at once.
        let mut child = std::process::Command::new(dog())
            .arg("--data")
            .arg(node.data())
            .args(["volume", "export", "v"])
            .arg(scratch.join("image"))
            .stderr(File::create(scratch.join("err"))?)
            .spawn()?;
        // Before it has begun to listen to signals, this one would end it with another code.
        let status = format!("/proc/{}/status", child.id());
        let hears = |line: &str| -> Option<bool> {
            let mask = u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok()?;
            Some(mask >> (Signal::INT.as_raw() - 1) & 1 == 1)
        };
        let begin = Instant::now();
        while !fs::read_to_string(&status)?.lines().find_map(hears).context("a mask")? {
            ensure!(begin.elapsed() < Duration::from_secs(30), "it never listens to signals");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(300));
        let begin = Instant::now();
        kill_process(Pid::from_child(&child), Signal::INT)?;
        let code = child.wait()?.code();
        ensure!(code == Some(130), "{code:?}: {}", fs::read_to_string(scratch.join("err"))?);
        ensure!(begin.elapsed() < Duration::from_secs(5), "it took {:?}", begin.elapsed());
        all.into_iter().try_for_each(|one| one.join().expect("no panic"))
    })?;
    drop(hung);
    node.dog_ok("status")?;
    node.stop()
}

#[test]
fn reading_spares_a_file_that_is_there() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 64M")?;
    node.dog("volume write v --offset 0").input(vec![7; MIB]).ok()?;
    let file = scratch.join("file");
    fs::write(&file, "dear reader")?;
    let read = |words: &str| node.dog("volume read v --length 1M").words(words).arg(&file);
    let refused = read("--offset 0").run()?;
    ensure!(refused.code == Some(4) && refused.stderr.contains("--overwrite"), "{refused}");
    ensure!(fs::read(&file)? == b"dear reader", "it was touched");
    // What fails touches it neither, and leaves nothing beside it.
    let failed = read("--overwrite --offset 64M").run()?;
    ensure!(failed.code == Some(2), "{failed}");
    ensure!(fs::read(&file)? == b"dear reader", "it was touched");
    read("--overwrite --offset 0").ok()?;
    ensure!(fs::read(&file)? == vec![7; MIB], "it has something else");
    let beside = fs::read_dir(scratch.path())?.count();
    ensure!(beside == 4, "{beside} entries, not data, log, notify and file");
    node.stop()
}

#[test]
fn scrubbing_that_would_never_move_is_not_begun() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &["--scrub-rate", "0"])?;
    let refused = node.dog("disk scrub start").run()?;
    ensure!(refused.code == Some(4) && refused.stderr.contains("scrub rate"), "{refused}");
    node.dog_ok("disk scrub rate 64M")?;
    node.dog_ok("disk scrub start")?;
    node.dog_ok("disk scrub rate 0")?;
    ensure!(node.dog("disk scrub start").run()?.code == Some(4), "it is off again");
    node.stop()
}

/// `dog ... | head` is no reason for a complaint.
#[test]
fn a_reader_that_goes_away_ends_dog_quietly() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 64M")?;
    for words in ["volume export v -", "volume read v --offset 0 --length 64M"] {
        let output = Tool::new("bash")
            .arg("-c")
            .arg(format!(r#""$0" --data "$1" {words} | head -c 1; echo "${{PIPESTATUS[0]}}""#))
            .arg(dog())
            .arg(node.data())
            .run()?;
        ensure!(output.text().ends_with("141\n") && output.stderr.is_empty(), "{output}");
    }
    let full = Tool::new("sh")
        .arg("-c")
        .arg(r#""$0" --data "$1" volume list >/dev/full"#)
        .arg(dog())
        .arg(node.data())
        .run()?;
    ensure!(full.code == Some(1) && full.stderr.contains("standard output"), "{full}");
    node.dog_ok("volume delete v --yes")?;
    node.stop()
}

#[test]
fn every_command_answers_programs_in_json() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    let image = scratch.join("image");
    fs::write(&image, vec![3; MIB])?;
    let out = scratch.join("out");
    let (image, out) = (image.display(), out.display());
    for words in [
        "volume create v 64M",
        "volume list",
        "volume info v",
        "volume resize v 128M",
        "volume resize v 64M --allow-shrink",
        "volume rename v w",
        "volume snapshot w@a",
        "volume snapshots w",
        "volume snapshots w --reclaimable",
        "volume info w@a",
        "volume clone w@a c",
        "volume flatten c",
        "volume tree",
        "volume rollback w@a --yes",
        "volume attach w",
        "volume attach w@a",
        "volume map w",
        "volume zero w --offset 0 --length 1M",
        "volume discard w --offset 0 --length 1M",
        "volume flush w",
        &format!("volume write w --offset 0 {image}"),
        &format!("volume import {image} i"),
        &format!("volume export i {out}"),
        "volume delete w@a --yes",
        "volume delete w --yes",
        "disk list",
        "disk scrub rate 64M",
        "disk scrub start",
        "disk scrub stop",
        "node info",
        "status",
        "bench --seconds 1 --size 64M --job rr-4k-q1",
    ] {
        let output = node.dog(&format!("--json {words}")).run()?;
        let parsed = serde_json::from_slice::<serde_json::Value>(&output.stdout);
        ensure!(output.code == Some(0) && parsed.is_ok(), "dog {words}: {output}");
        ensure!(output.stderr.is_empty(), "dog {words} says more than JSON: {output}");
    }
    // Failures are JSON too, on standard error.
    for words in ["volume info nothere", "volume create x", "volume create x 20X", "surplus"] {
        let output = node.dog(&format!("--json {words}")).run()?;
        let error: serde_json::Value = serde_json::from_str(&output.stderr)
            .with_context(|| format!("dog {words}: {output}"))?;
        ensure!(output.stdout.is_empty() && error["error"]["sentence"].is_string(), "{output}");
    }
    node.stop()
}
