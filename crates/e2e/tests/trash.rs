//! The trash with real processes: what was deleted comes back whole or goes for good, whenever the
//! daemon dies; and who gets the space then sees nothing of it.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{Node, Scratch, Tool, below, content, wait_empty, wait_until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

const MIB: usize = 1 << 20;
const VOLUME_BYTES: usize = 8 * MIB;

fn names(list: &Value) -> Vec<String> {
    let entries = list.as_array().into_iter().flatten();
    entries.filter_map(|entry| entry["name"].as_str().map(str::to_owned)).collect()
}

fn in_trash(node: &Node) -> Result<Vec<String>> {
    Ok(names(&node.dog_json("trash list")?))
}

/// Writes the same everywhere, of an odd place and length.
fn write(node: &Node, name: &str, offset: usize, bytes: &[u8]) -> Result<()> {
    node.dog(&format!("volume write {name} --offset {offset}")).input(bytes).ok()?;
    Ok(())
}

#[test]
fn a_deleted_volume_comes_back_with_content_and_snapshots_intact() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 8M")?;
    write(&node, "v", 512, &vec![3; 3 * MIB])?;
    node.dog_ok("volume snapshot v@a")?;
    write(&node, "v", MIB + 1024, &vec![4; 2 * MIB])?;
    let (head, snapshot) = (content(&node, "v")?, content(&node, "v@a")?);
    let used = node.used_bytes("v")?;

    let refused = node.dog_refuses("volume delete v")?;
    ensure!(refused.code == Some(4) && refused.stderr.contains("--with-snapshots"), "{refused}");
    let said = node.dog_ok("volume delete v --with-snapshots")?;
    ensure!(said.contains("`dog trash undelete v` brings it back"), "{said}");
    let list = node.dog_json("trash list")?;
    ensure!(list[0]["used_bytes"] == used && list[0]["snapshots"] == 1, "{list}");
    let (since, until) = (list[0]["deleted_unix_s"].as_u64(), list[0]["expires_unix_s"].as_u64());
    ensure!(until == since.map(|since| since + 24 * 3600), "{list}");
    let status = node.dog_ok("status")?;
    ensure!(status.contains("1 volume keeps"), "{status}");
    // Nobody sees it.
    let exports = Tool::new("nbdinfo").words("--list --json").arg(node.uri("")).run()?;
    ensure!(!exports.text().contains("\"v\"") && !exports.text().contains("v@a"), "{exports}");
    for words in ["volume info v", "volume export v -", "volume snapshots v", "volume info v@a"] {
        let refused = node.dog_refuses(words)?;
        ensure!(refused.code == Some(3) && !refused.stderr.contains("trash"), "{refused}");
    }
    let opened = Tool::new("nbdinfo").arg(node.uri("v")).run()?;
    ensure!(opened.code != Some(0) && !opened.stderr.contains("trash"), "{opened}");

    // Another one of that name, deleted as well, for a week.
    node.dog_ok("volume create v 4M")?;
    let second = node.dog_json("volume delete v --keep 7d")?;
    let kept = second["expires_unix_s"].as_u64().zip(second["deleted_unix_s"].as_u64());
    ensure!(kept.is_some_and(|(to, from)| to - from == 7 * 24 * 3600), "{second}");
    let refused = node.dog_refuses("trash undelete v")?;
    ensure!(refused.code == Some(4) && refused.stderr.contains("2 volumes named v"), "{refused}");
    for words in ["trash purge v", "trash purge --all"] {
        let refused = node.dog_refuses(words)?;
        ensure!(refused.code == Some(4) && refused.stderr.contains("--yes"), "{refused}");
    }
    ensure!(in_trash(&node)? == ["v", "v"]);

    let first = list[0]["volume"].as_u64().context("no id")?;
    let said = node.dog_ok(&format!("trash undelete {first} --name back"))?;
    ensure!(said.contains("volume back is back"), "{said}");
    ensure!(content(&node, "back")? == head, "the volume is not what it was");
    ensure!(content(&node, "back@a")? == snapshot, "the snapshot is not what it was");
    node.dog_ok("volume delete back --with-snapshots")?;
    let said = node.dog_ok("trash purge --all --yes")?;
    ensure!(said.contains("the trash is empty"), "{said}");
    ensure!(in_trash(&node)?.is_empty());
    wait_empty(&node)?;
    node.stop()
}

/// `--now`, `--keep 0`, and a node that keeps no trash: nothing of that without --yes.
#[test]
fn what_is_deleted_for_good_needs_a_yes() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &["--trash-expiry", "0"])?;
    node.dog_ok("volume create v 8M")?;
    write(&node, "v", 0, &vec![3; MIB])?;
    for (words, part) in [
        ("volume delete v", "keeps no trash"),
        ("volume delete v --now", "for good"),
        ("volume delete v --keep 0", "for good"),
    ] {
        let refused = node.dog_refuses(words)?;
        ensure!(refused.code == Some(4) && refused.stderr.contains(part), "{refused}");
        ensure!(refused.stderr.contains("say --yes"), "{refused}");
    }
    node.dog_ok("volume delete v --keep 1h")?;
    ensure!(in_trash(&node)? == ["v"]);
    node.dog_ok("trash undelete v")?;
    node.dog_ok("volume delete v --yes")?;
    ensure!(in_trash(&node)?.is_empty());
    wait_empty(&node)?;
    node.stop()
}

/// The daemon is killed around each step; afterwards the step was done or not, and nothing else.
#[test]
fn kills_around_each_step_of_the_trash_lose_nothing() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 8M")?;
    write(&node, "v", 1024, &vec![5; 5 * MIB])?;
    node.dog_ok("volume snapshot v@a")?;
    write(&node, "v", 512, &vec![6; MIB])?;
    let (head, snapshot) = (content(&node, "v")?, content(&node, "v@a")?);
    let log = fs::File::create(scratch.join("dog.log"))?;
    let is_deleted = |node: &Node| -> Result<bool> {
        let (there, gone) = (names(&node.dog_json("volume list")?), in_trash(node)?);
        ensure!(there.len() + gone.len() == 1, "{there:?} and in the trash {gone:?}");
        Ok(gone == ["v"])
    };
    let mut done = [0; 2];
    for round in 0..16u64 {
        let before = is_deleted(&node)?;
        let step = if before { "trash undelete v" } else { "volume delete v --with-snapshots" };
        let mut dog = node.dog(step).spawn(log.try_clone()?)?;
        std::thread::sleep(Duration::from_millis(round * 5 % 31));
        node.kill()?;
        let answered = dog.wait()?.success();
        node.begin()?;
        let after = is_deleted(&node)?;
        ensure!(after != before || !answered, "{step} was answered and is not done");
        done[usize::from(before)] += usize::from(after != before);
        if !after {
            ensure!(content(&node, "v")? == head, "after {step}");
            ensure!(content(&node, "v@a")? == snapshot, "after {step}");
        }
    }
    // Each of both was done at least once, with a kill before or after it.
    if !is_deleted(&node)? {
        node.dog_ok("volume delete v --with-snapshots")?;
    }
    ensure!(done.iter().sum::<usize>() > 0, "no step was ever done");
    let mut dog = node.dog("trash purge v --yes").spawn(log.try_clone()?)?;
    std::thread::sleep(Duration::from_millis(10));
    node.kill()?;
    let answered = dog.wait()?.success();
    node.begin()?;
    if !in_trash(&node)?.is_empty() {
        ensure!(!answered, "an answered purge is not done");
        node.dog_ok("trash purge v --yes")?;
    }
    wait_empty(&node)?;
    node.stop()
}

#[test]
fn what_has_expired_goes_by_itself_and_over_a_kill() -> Result<()> {
    let scratch = Scratch::new()?;
    let options = ["--trash-expiry", "1s", "--trash-grace", "0"];
    let mut node = Node::start(&scratch.join("data"), &options)?;
    for name in ["a", "b", "kept"] {
        node.dog_ok(&format!("volume create {name} 8M"))?;
        write(&node, name, 0, &vec![7; MIB])?;
    }
    node.dog_ok("volume delete kept --keep 1h")?;
    node.dog_ok("volume delete a")?;
    wait_until("a is gone", || Ok(in_trash(&node)? == ["kept"]))?;
    // While nothing runs, time goes on.
    node.dog_ok("volume delete b --keep 2s")?;
    node.kill()?;
    node.begin()?;
    wait_until("b is gone", || Ok(in_trash(&node)? == ["kept"]))?;
    let kept = MIB as u64;
    wait_until("its space is free", || Ok(node.dog_json("status")?["used_bytes"] == kept))?;
    node.dog_ok("trash undelete kept")?;
    ensure!(content(&node, "kept")?[..MIB] == vec![7; MIB]);
    let log = node.log_text()?;
    ensure!(log.contains("the time of volume a (id 1) in the trash is over"), "{log}");
    node.stop()
}

/// A guest that writes at the rate of a busy machine sees no error while there is anything in the
/// trash that can give way.
#[test]
fn a_full_disk_empties_the_trash_in_order_while_a_client_writes() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &["--limit", "384M"])?;
    node.expect_log("short of space");
    for (name, keep) in [("first", "1h"), ("third", "3h"), ("second", "2h")] {
        node.dog_ok(&format!("volume create {name} 96M"))?;
        let fill = format!("write -P 9 0 {}M", 80);
        let output = Tool::new("qemu-io").words("-f raw -c").arg(fill).arg(node.uri(name)).run()?;
        ensure!(output.code == Some(0), "{output}");
        node.dog_ok(&format!("volume delete {name} --keep {keep}"))?;
    }
    node.dog_ok("volume create new 512M")?;
    let mut order = vec![in_trash(&node)?];
    ensure!(order[0] == ["first", "second", "third"], "{order:?}");
    let log = scratch.join("fio.log");
    let mut fio = Tool::new("fio")
        .words("--name=fill --ioengine=nbd --rw=write --bs=256k --iodepth=8 --size=290m")
        .words("--rate=60m --verify=crc32c --verify_fatal=1 --exitall_on_error")
        .arg(format!("--uri={}", node.uri("new")))
        .spawn(fs::File::create(&log)?)?;
    let status = loop {
        let now = in_trash(&node)?;
        if order.last() != Some(&now) {
            order.push(now);
        }
        if let Some(status) = fio.try_wait()? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    ensure!(status.success(), "fio: {}", fs::read_to_string(&log)?);
    // One after the other, the soonest to expire first.
    let expected: [&[&str]; 4] =
        [&["first", "second", "third"], &["second", "third"], &["third"], &[]];
    for (was, expected) in order.iter().zip(expected) {
        ensure!(was == expected, "{order:?}");
    }
    ensure!(order.len() >= 3, "{order:?}");
    let status = node.dog_json("status")?;
    ensure!(status["trash_gave_way"].as_u64() == Some(order.len() as u64 - 1), "{status}");
    ensure!(status["warnings"].to_string().contains("went from the trash"), "{status}");
    node.stop()
}

/// Whoever asks for it, and over a restart.
#[test]
fn a_locked_snapshot_cannot_be_deleted_by_anybody() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &["--trash-expiry", "1s"])?;
    node.dog_ok("volume create v 8M")?;
    write(&node, "v", 0, &vec![7; MIB])?;
    node.dog_ok("volume snapshot v@a")?;
    let snapshot = content(&node, "v@a")?;
    let refused = node.dog_refuses("volume lock v@a --until 2020-01-01")?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("is over"), "{refused}");
    let said = node.dog_ok("volume lock v@a --until +2d")?;
    ensure!(said.contains("v@a is locked until"), "{said}");
    for _ in 0..2 {
        for (words, part) in [
            ("volume delete v@a --yes", "is locked until"),
            ("volume delete v --with-snapshots", "is locked until"),
            ("volume delete v --with-snapshots --now --yes", "is locked until"),
            ("volume delete v --with-snapshots --keep 1s", "is locked until"),
            ("volume lock v@a --until +1d", "cannot be made shorter"),
        ] {
            let refused = node.dog_refuses(words)?;
            let told = refused.stderr.contains(part);
            ensure!(refused.code == Some(4) && told, "dog {words}: {refused}");
        }
        let list = node.dog_ok("volume snapshots v")?;
        ensure!(list.contains("locked until"), "{list}");
        ensure!(content(&node, "v@a")? == snapshot, "the snapshot is not what it was");
        node.kill()?;
        node.begin()?;
    }
    node.dog_ok("volume lock v@a --until +3d")?;
    node.stop()
}

/// Volumes are written, discarded, resized, snapshotted, cloned, deleted and taken out of the trash
/// in any order, with kills: each shows what it showed.
#[test]
fn row_34_volumes_in_and_out_of_the_trash_keep_every_byte_over_kills() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    let mut random = 0x5eed_u64;
    // What each volume and snapshot contains, by name, and which volumes are in the trash.
    let mut contents: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut trashed: Vec<String> = Vec::new();
    let mut next = 0;
    for step in 0..120 {
        let is_out = |name: &String| {
            let volume = name.split('@').next().unwrap_or(name);
            !trashed.iter().any(|trashed| trashed == volume)
        };
        let out: Vec<String> = contents.keys().filter(|name| is_out(name)).cloned().collect();
        let (snapshots, volumes): (Vec<String>, Vec<String>) =
            out.into_iter().partition(|name| name.contains('@'));
        let pick = |random: &mut u64, from: &[String]| -> Option<String> {
            (!from.is_empty()).then(|| from[below(random, from.len())].clone())
        };
        let (volume, snapshot) = (pick(&mut random, &volumes), pick(&mut random, &snapshots));
        let kind = below(&mut random, 12);
        match (kind, volume, snapshot) {
            (0..=1, Some(volume), _) => {
                let tag = format!("{volume}@t{step}");
                node.dog_ok(&format!("volume snapshot {tag}"))?;
                contents.insert(tag, contents[&volume].clone());
            }
            (2, _, Some(snapshot)) if volumes.len() < 6 => {
                next += 1;
                node.dog_ok(&format!("volume clone {snapshot} c{next}"))?;
                contents.insert(format!("c{next}"), contents[&snapshot].clone());
            }
            (3..=4, Some(volume), _) => {
                node.dog_ok(&format!("volume delete {volume} --with-snapshots"))?;
                trashed.push(volume);
            }
            (5..=6, ..) if !trashed.is_empty() => {
                let volume = trashed.swap_remove(below(&mut random, trashed.len()));
                node.dog_ok(&format!("trash undelete {volume}"))?;
            }
            (7, ..) if trashed.len() > 2 => {
                let volume = trashed.swap_remove(below(&mut random, trashed.len()));
                node.dog_ok(&format!("trash purge {volume} --yes"))?;
                let of_it = format!("{volume}@");
                contents.retain(|name, _| *name != volume && !name.starts_with(&of_it));
            }
            (8, Some(volume), _) => {
                let bytes = 4 * MIB + below(&mut random, 1024) * 4096;
                node.dog_ok(&format!("volume resize {volume} {bytes} --allow-shrink"))?;
                contents.get_mut(&volume).context("unknown")?.resize(bytes, 0);
            }
            (9, ..) => {
                node.kill()?;
                node.begin()?;
            }
            (_, Some(volume), _) => {
                let content = contents.get_mut(&volume).context("unknown")?;
                let length = 512 * (1 + below(&mut random, 300));
                let offset = 512 * below(&mut random, (content.len() - length) / 512);
                let fill = 1 + below(&mut random, 255) as u8;
                content[offset..offset + length].fill(fill);
                write(&node, &volume, offset, &vec![fill; length])?;
                let (from, length) = (offset / 4096 * 4096, 16 * 4096);
                if kind == 10 && from + length <= content.len() {
                    content[from..from + length].fill(0);
                    let range = format!("--offset {from} --length {length}");
                    node.dog_ok(&format!("volume discard {volume} {range}"))?;
                }
            }
            _ => {
                next += 1;
                node.dog_ok(&format!("volume create n{next} {VOLUME_BYTES}"))?;
                contents.insert(format!("n{next}"), vec![0; VOLUME_BYTES]);
            }
        }
    }
    for volume in trashed {
        node.dog_ok(&format!("trash undelete {volume}"))?;
    }
    for (name, expected) in &contents {
        ensure!(content(&node, name)? == *expected, "{name} is not what it was");
    }
    for volume in contents.keys().filter(|name| !name.contains('@')) {
        node.dog_ok(&format!("volume delete {volume} --with-snapshots"))?;
    }
    node.dog_ok("trash purge --all --yes")?;
    wait_empty(&node)?;
    node.stop()
}

/// A new owner of blocks that were freed reads zeros around what it wrote itself.
#[test]
fn row_49_a_new_volume_never_reads_what_was_deleted_purged_or_discarded() -> Result<()> {
    let scratch = Scratch::new()?;
    let options = ["--limit", "128M", "--trash-grace", "0"];
    let mut node = Node::start(&scratch.join("data"), &options)?;
    let secret = vec![0xee; 48 * MIB];
    for free in [
        "volume delete secret --now --yes",
        "trash purge secret --yes",
        "volume delete secret --keep 1s",
        "volume discard secret --offset 0 --length 48M",
    ] {
        node.dog_ok("volume create secret 48M")?;
        write(&node, "secret", 0, &secret)?;
        if free.starts_with("trash") {
            node.dog_ok("volume delete secret")?;
        }
        node.dog_ok(free)?;
        wait_empty(&node)?;
        node.dog_ok("volume create next 48M")?;
        let empty = content(&node, "next")?;
        ensure!(empty.iter().all(|byte| *byte == 0), "after {free} a new volume is not empty");
        // Half a sector of each block is its own.
        let mut expected = vec![0; 48 * MIB];
        let mut qemu_io = Tool::new("qemu-io").words("-f raw -t none");
        for at in (0..48 * MIB).step_by(MIB / 2) {
            expected[at + 512..at + 1024].fill(1);
            qemu_io = qemu_io.arg("-c").arg(format!("write -P 1 {} 512", at + 512));
        }
        let output = qemu_io.arg(node.uri("next")).run()?;
        ensure!(output.code == Some(0), "{output}");
        ensure!(content(&node, "next")? == expected, "after {free} old data shows");
        node.dog_ok("volume delete next --now --yes")?;
        if free.contains("discard") {
            node.dog_ok("volume delete secret --now --yes")?;
        }
        wait_empty(&node)?;
    }
    node.stop()
}
