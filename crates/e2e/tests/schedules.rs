//! Schedules of a real daemon that is killed: each slot has its snapshot once. The shortest slot is
//! too long to wait for, so what is due comes from the log: between two lives of the daemon, a
//! schedule is agreed there as it would be after a long time without one.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, bail, ensure};
use cluster::{Command, Effect, Event, Founding, PersistError, ProposalToken, Voter};
use e2e::{Node, Scratch};
use proto::{DiskDone, DiskOp, DiskRequest, NodeId, Time};
use serde_json::Value;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use store::journal::{self, Expected, Journal, Token};

/// The longest slot there is: none ends while a test runs.
const EVERY_S: u32 = 366 * 24 * 3600;
const PATIENCE: Duration = Duration::from_secs(60);

fn unix_s() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

fn perform(file: &File, op: DiskOp) -> Result<DiskDone> {
    let result = match op.request {
        DiskRequest::Read { offset, mut buffer } => {
            file.read_exact_at(buffer.as_mut_slice(), offset)?;
            Some(buffer)
        }
        DiskRequest::Write { mut offset, payloads } => {
            for payload in payloads {
                file.write_all_at(payload.as_slice(), offset)?;
                offset += payload.len() as u64;
            }
            None
        }
        DiskRequest::Allocate { offset, length, .. } => {
            let bytes = file.metadata()?.len().max(offset + length);
            file.set_len(bytes)?;
            None
        }
        DiskRequest::Flush | DiskRequest::Discard { .. } => None,
    };
    Ok(DiskDone { token: op.token, result: Ok(result) })
}

/// Puts commands into the log of a daemon that does not run.
fn agree(node: &Node, commands: Vec<Command>) -> Result<()> {
    let record = std::fs::read_to_string(node.data().join("node"))?;
    let id = record.lines().find_map(|line| line.strip_prefix("node ")).context("no node")?;
    let id = NodeId(u128::from_str_radix(id, 16)?);
    let file = OpenOptions::new().read(true).write(true).open(node.data().join("cluster"))?;
    let mut effects = Vec::new();
    let mut keeper = Journal::open(Expected::default(), file.metadata()?.len(), &mut effects);
    let mut queue: VecDeque<journal::Effect> = effects.into();
    let mut commands = commands.into_iter();
    let mut voter: Option<Voter> = None;
    loop {
        let mut said = Vec::new();
        match (queue.pop_front(), voter.as_mut()) {
            (Some(journal::Effect::Disk(op)), _) => {
                let mut more = Vec::new();
                keeper.handle(perform(&file, op)?, &mut more);
                queue.extend(more);
            }
            (Some(journal::Effect::Opened(Ok(found))), None) => {
                let snapshot = found.snapshot.as_deref();
                voter = Some(Voter::boot(id, Founding::Here, 1, snapshot, &found.records)?);
            }
            (Some(journal::Effect::Done { token, result }), Some(voter)) => {
                let request = cluster::RequestNumber(token.0);
                let result = result.map_err(|error| PersistError::Failed(error.to_string()));
                voter.handle(Time(1), Event::Persisted { request, result }, &mut said);
            }
            (Some(other), _) => bail!("the journal says {other:?}"),
            (None, Some(voter)) => match commands.next() {
                Some(command) => voter.propose(Time(1), ProposalToken(1), command, &mut said),
                None => return Ok(()),
            },
            (None, None) => bail!("the journal does not open"),
        }
        for effect in said {
            let mut more = Vec::new();
            match effect {
                Effect::Append { request, records } => {
                    keeper.append(Token(request.0), records, &mut more);
                }
                Effect::Snapshot { request, bytes } => {
                    keeper.snapshot(Token(request.0), bytes, &mut more);
                }
                Effect::Applied { result, .. } => drop(result?),
                other => bail!("nobody else takes part: {other:?}"),
            }
            queue.extend(more);
        }
    }
}

/// Makes a schedule of the volume `v` one whose last slot is long over.
fn backdate(node: &Node, volume: proto::VolumeId, keep: u32) -> Result<()> {
    let schedule = "yearly".to_owned();
    let remove = Command::RemoveSchedule { volume, schedule: schedule.clone() };
    let unix_s = unix_s()? - 3 * u64::from(EVERY_S);
    agree(
        node,
        vec![remove, Command::SetSchedule { volume, schedule, every_s: EVERY_S, keep, unix_s }],
    )
}

fn snapshots(node: &Node) -> Result<Vec<Value>> {
    let listed = node.dog_json("volume snapshots v")?;
    Ok(listed.as_array().context("no list of snapshots")?.clone())
}

/// Waits until there are so many snapshots, all readable; more are an error.
fn wait_for(node: &Node, count: usize) -> Result<Vec<Value>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = snapshots(node)?;
        ensure!(found.len() <= count, "more than {count} snapshots: {found:?}");
        if found.len() == count && found.iter().all(|snapshot| snapshot["sealing"] == false) {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "there never are {count} snapshots: {found:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_slot_has_its_snapshot_once_however_often_the_daemon_is_killed() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 4M")?;
    node.dog_ok("schedule set v yearly --every 366d --keep 100")?;
    let volume = proto::VolumeId(node.dog_json("volume info v")?["volume"].as_u64().context("id")?);
    ensure!(snapshots(&node)?.is_empty(), "the first one is that of the next slot");
    for round in 1..=6usize {
        node.dog("volume write v --offset 0").input(vec![round as u8; 4096]).ok()?;
        node.kill()?;
        backdate(&node, volume, 100)?;
        node.begin()?;
        if round % 2 == 0 {
            wait_for(&node, round)?;
        }
        // Otherwise it dies in the middle of it.
        node.kill()?;
        for _ in 0..2 {
            node.begin()?;
            let found = wait_for(&node, round)?;
            let tag = found[round - 1]["tag"].as_str().context("a tag")?;
            ensure!(tag.starts_with("yearly-"), "{tag}");
            ensure!(found[round - 1]["schedule"] == "yearly", "{found:?}");
            let name = format!("volume read v@{tag} --offset 0 --length 4096");
            let output = node.dog(&name).run()?;
            ensure!(output.stdout == vec![round as u8; 4096], "{tag} shows something else");
            node.kill()?;
        }
        node.begin()?;
    }
    // Fewer are kept from the next start on.
    node.stop()?;
    backdate(&node, volume, 2)?;
    node.begin()?;
    let deadline = Instant::now() + PATIENCE;
    while snapshots(&node)?.len() != 2 {
        ensure!(Instant::now() < deadline, "there are {:?}", snapshots(&node)?);
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn schedules_are_set_listed_and_removed() -> Result<()> {
    let scratch = Scratch::new()?;
    let node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 4M")?;
    node.dog_ok("volume create w 4M")?;
    let said = node.dog_ok("schedule set v hourly --every 1h --keep 24")?;
    ensure!(
        said.starts_with("volume v gets a snapshot hourly-DATE every 1h, of which 24"),
        "{said}"
    );
    node.dog_ok("schedule set w daily --every 1d --keep 7")?;
    let table = node.dog_ok("schedule list")?;
    for words in ["VOLUME", "hourly", "0 of 24", "daily", "0 of 7", "1d", " UTC "] {
        ensure!(table.contains(words), "{words} is not in {table}");
    }
    let listed = node.dog_json("schedule list v")?;
    ensure!(listed.as_array().is_some_and(|all| all.len() == 1), "{listed}");
    ensure!(listed[0]["every_s"] == 3600 && listed[0]["keep"] == 24, "{listed}");
    let next = listed[0]["next_unix_s"].as_u64().context("when")?;
    ensure!(next % 3600 == 0 && (1..=3600).contains(&(next - unix_s()?.min(next - 1))), "{next}");
    let info = node.dog_ok("volume info v")?;
    ensure!(info.contains("hourly every 1h, 0 of 24 kept, next "), "{info}");
    for (command, sentence) in [
        ("schedule set x hourly --every 1h --keep 24", "there is no volume named \"x\""),
        ("schedule set v hourly --every 1s --keep 24", "choose one minute to 366 days"),
        ("schedule set v hourly --every 1h --keep 0", "cannot keep 0 snapshots"),
        ("schedule set v a/b --every 1h --keep 1", "cannot be a schedule's name"),
        ("schedule remove v daily", "has no schedule \"daily\""),
    ] {
        let output = node.dog_refuses(command)?;
        ensure!(output.to_string().contains(sentence), "{command}: {output}");
    }
    node.dog_ok("schedule remove v hourly")?;
    let listed = node.dog_json("schedule list")?;
    ensure!(listed.as_array().is_some_and(|all| all.len() == 1), "{listed}");
    Ok(())
}
