//! Row 7: too few descriptors, too little memory, hardly any processor time. The daemon sheds or
//! ends as a whole; it is never half alive.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Result, ensure};
use e2e::nbd::Peer;
use e2e::{Node, Scratch, Tool, sheep};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

fn limit(node: &Node, resource: Resource, value: u64) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(node.pid().expect("it runs"))?);
    let limit = Rlimit { current: Some(value), maximum: Some(value) };
    prlimit(pid, resource, limit)?;
    Ok(())
}

fn serves(node: &Node) -> Result<()> {
    Tool::new("qemu-io")
        .words("-f raw -c")
        .arg("write -P 3 0 1M")
        .arg("-c")
        .arg("read -P 3 0 1M")
        .arg(node.uri("v"))
        .ok()?;
    Ok(())
}

#[test]
fn without_descriptors_clients_wait_and_those_that_have_one_go_on() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.expect_log("accept");
    node.expect_log("descriptors");
    node.dog_ok("volume create v 64M")?;
    node.dog_ok("volume create w 64M")?;
    serves(&node)?;
    let mut early = Peer::unix(&node.nbd_socket())?;
    early.greet()?;
    ensure!(early.go("w")?.is_ok(), "w can be attached");
    let room = u64::try_from(node.descriptors()?)? + 4;
    limit(&node, Resource::Nofile, room)?;
    let crowd: Vec<_> = (0..24).filter_map(|_| Peer::unix(&node.nbd_socket()).ok()).collect();
    for cookie in 0..100 {
        early.request(e2e::nbd::command::READ, cookie, 0, 4096)?;
        ensure!(early.reply()? == (0, cookie), "who is in must be served");
        early.payload(4096)?;
    }
    drop(crowd);
    let begin = Instant::now();
    while serves(&node).is_err() {
        ensure!(begin.elapsed() < Duration::from_secs(15), "it does not recover");
    }
    early.request(e2e::nbd::command::DISCONNECT, 0, 0, 0)?;
    node.stop()
}

#[test]
fn a_start_without_descriptors_or_memory_ends_with_a_sentence() -> Result<()> {
    let scratch = Scratch::new()?;
    let megabytes = |count: u64| format!("--as={}", count << 20);
    let limits = [4, 12].map(|count| format!("--nofile={count}"));
    for limit in limits.into_iter().chain([16, 20, 24, 28].map(megabytes)) {
        let data = scratch.join("data");
        let begin = Instant::now();
        let output = Tool::new("timeout")
            .words("--signal=KILL 6 prlimit")
            .arg(&limit)
            .arg(sheep())
            .arg("--data")
            .arg(&data)
            .run()?;
        let ended = begin.elapsed() < Duration::from_secs(6);
        let alive = output.stderr.contains("serving NBD");
        ensure!(ended != alive, "neither alive nor dead with {limit}: {output}");
        ensure!(!output.stderr.is_empty(), "it said nothing with {limit}: {output}");
        // Whatever it did, the directory is usable afterwards.
        let mut node = Node::start(&data, &[])?;
        node.dog_ok("volume create v 64M")?;
        serves(&node)?;
        node.stop()?;
        drop(node);
        std::fs::remove_dir_all(&data)?;
    }
    Ok(())
}

#[test]
fn killed_for_want_of_memory_it_loses_nothing() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 64M")?;
    serves(&node)?;
    // From now on no more memory: it may go on with what it has, or end, but as a whole.
    let pid = node.pid().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let size = status.lines().find(|line| line.starts_with("VmSize:")).unwrap_or("");
    let kib: u64 = size.split_whitespace().nth(1).unwrap_or("0").parse()?;
    limit(&node, Resource::As, kib * 1024 + (1 << 20))?;
    let write = Tool::new("qemu-io").words("-f raw -c").arg("write -P 4 0 32M");
    let output = write.arg(node.uri("v")).time_limit(Duration::from_secs(30)).run()?;
    let written = output.code == Some(0) && !(output.text() + &output.stderr).contains("failed");
    if node.wait_end(Duration::from_millis(500)).is_err() {
        node.kill()?;
    }
    node.expect_log("memory");
    node.begin()?;
    let pattern = if written { "read -P 4 0 32M" } else { "read 0 32M" };
    Tool::new("qemu-io").words("-f raw -c").arg(pattern).arg(node.uri("v")).ok()?;
    serves(&node)?;
    node.stop()
}

#[test]
fn a_log_that_takes_no_more_stops_nobody() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start_logging_to(Path::new("/dev/full"), &scratch.join("data"))?;
    node.dog_ok("volume create v 64M")?;
    serves(&node)?;
    node.stop()?;
    node.begin()?;
    serves(&node)?;
    node.stop()
}

/// Lets a daemon run for a tenth of the time, as a processor quota does, as long as it lives. A
/// quota itself needs a control group that may be written, which there is not everywhere.
struct Quota {
    pid: Pid,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<u32>>,
}

impl Quota {
    const RUN: Duration = Duration::from_millis(10);
    const STOPPED: Duration = Duration::from_millis(90);

    fn impose(node: &Node) -> Result<Quota> {
        let pid = Pid::from_raw(i32::try_from(node.pid().expect("it runs"))?).expect("not 0");
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let thread = std::thread::spawn(move || {
            let mut periods = 0;
            while !ended.load(SeqCst) {
                let _ = kill_process(pid, Signal::STOP);
                std::thread::sleep(Quota::STOPPED);
                let _ = kill_process(pid, Signal::CONT);
                std::thread::sleep(Quota::RUN);
                periods += 1;
            }
            periods
        });
        Ok(Quota { pid, end, thread: Some(thread) })
    }

    /// Ends it; gives how often the daemon was stopped.
    fn lift(mut self) -> u32 {
        self.end.store(true, SeqCst);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or(0)
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        self.end.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
            let _ = kill_process(self.pid, Signal::CONT);
        }
    }
}

#[test]
fn with_a_tenth_of_a_processor_everything_is_slow_and_nothing_fails() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 64M")?;
    let quota = Quota::impose(&node)?;
    let begin = Instant::now();
    Tool::new("fio")
        .words("--ioengine=nbd --name=starved --rw=randrw --bs=4k --iodepth=16 --fsync=64")
        .words("--size=32m --io_size=8m --verify=crc32c --verify_fatal=1 --serialize_overlap=1")
        .words("--randseed=1 --output-format=terse")
        .arg(format!("--uri={}", node.uri("v")))
        .directory(scratch.path())
        .ok()?;
    // Those who manage it are served too, and a new client gets in.
    node.dog_ok("status")?;
    node.dog_ok("volume snapshot v@slow")?;
    node.dog_ok("volume create w 64M")?;
    node.dog_ok("volume delete w --yes")?;
    serves(&node)?;
    let (took, periods) = (begin.elapsed(), quota.lift());
    ensure!(periods > 5, "it was stopped {periods} times in {took:?}");
    // The same again at full speed: it has caught up.
    serves(&node)?;
    node.stop()
}
