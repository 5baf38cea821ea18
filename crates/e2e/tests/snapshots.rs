//! Snapshots, clones, rollback, flattening, deletion: what each shows is what was written, whoever
//! writes, reads, deletes or dies meanwhile.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{
    Load, Moment, Node, Scratch, Tool, below, content, nbd::Peer, nbd::command, wait_empty,
    wait_free, wait_until,
};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
/// Three objects.
const VOLUME_BYTES: usize = 12 * MIB;

fn tags(node: &Node, volume: &str) -> Result<Vec<String>> {
    let snapshots = node.dog_json(&format!("volume snapshots {volume}"))?;
    let snapshots = snapshots.as_array().context("no list of snapshots")?;
    Ok(snapshots.iter().filter_map(|s| s["tag"].as_str().map(str::to_owned)).collect())
}

/// A node, and beside it what its volumes and snapshots must contain: a map of bytes by name.
struct Pair {
    node: Node,
    contents: BTreeMap<String, Vec<u8>>,
    random: u64,
}

impl Pair {
    fn new(scratch: &Scratch, seed: u64) -> Result<Pair> {
        let node = Node::start(&scratch.join("data"), &[])?;
        Ok(Pair { node, contents: BTreeMap::new(), random: seed.wrapping_mul(2) + 1 })
    }

    /// A number below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        below(&mut self.random, bound)
    }

    fn create(&mut self, name: &str) -> Result<()> {
        self.node.dog_ok(&format!("volume create {name} 12M"))?;
        self.contents.insert(name.to_owned(), vec![0; VOLUME_BYTES]);
        Ok(())
    }

    /// Changes a volume somewhere: writes of odd sizes, zeroing, discarding.
    fn scribble(&mut self, name: &str) -> Result<()> {
        let bytes = self.contents[name].len();
        for kind in ["write", "write", "write", ["zero", "discard"][self.below(2)]] {
            // Often in the same few places, so that layers have something of one another.
            let length = if kind == "write" { 512 * (1 + self.below(200)) } else { 64 * BLOCK };
            let unit = if kind == "write" { 512 } else { BLOCK };
            let spread = [512 * 1024, bytes - length][self.below(2)];
            let offset = self.below(spread / unit) * unit;
            let fill = 1 + self.below(255) as u8;
            let range = offset..offset + length;
            let content = self.contents.get_mut(name).context("no such volume")?;
            let place = format!("volume {kind} {name} --offset {offset}");
            if kind == "write" {
                content[range].fill(fill);
                self.node.dog(&place).input(vec![fill; length]).ok()?;
            } else {
                content[range].fill(0);
                self.node.dog_ok(&format!("{place} --length {length}"))?;
            }
        }
        Ok(())
    }

    fn snapshot(&mut self, volume: &str, tag: &str) -> Result<()> {
        let name = format!("{volume}@{tag}");
        self.node.dog_ok(&format!("volume snapshot {name}"))?;
        self.contents.insert(name, self.contents[volume].clone());
        Ok(())
    }

    fn clone(&mut self, snapshot: &str, name: &str) -> Result<()> {
        self.node.dog_ok(&format!("volume clone {snapshot} {name}"))?;
        self.contents.insert(name.to_owned(), self.contents[snapshot].clone());
        Ok(())
    }

    fn rollback(&mut self, snapshot: &str) -> Result<()> {
        self.node.dog_ok(&format!("volume rollback {snapshot} --yes"))?;
        let (volume, _) = snapshot.split_once('@').context("no snapshot")?;
        self.contents.insert(volume.to_owned(), self.contents[snapshot].clone());
        Ok(())
    }

    fn delete(&mut self, name: &str) -> Result<()> {
        self.node.dog_ok(&format!("volume delete {name} --now --yes"))?;
        self.contents.remove(name);
        Ok(())
    }

    fn check(&self) -> Result<()> {
        for (name, expected) in &self.contents {
            let found = content(&self.node, name)?;
            ensure!(found.len() == expected.len(), "{name} has {} bytes", found.len());
            if let Some(place) = (0..found.len()).find(|&place| found[place] != expected[place]) {
                let (found, expected) = (found[place], expected[place]);
                let tree = self.node.dog_ok("volume tree")?;
                anyhow::bail!("byte {place} of {name} is {found}, not {expected}\n{tree}");
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let names: Vec<String> = self.contents.keys().cloned().collect();
        for name in names.iter().filter(|name| !name.contains('@')) {
            self.node.dog_ok(&format!("volume delete {name} --with-snapshots --now --yes"))?;
        }
        wait_empty(&self.node)?;
        self.node.stop()
    }
}

#[test]
fn a_random_life_of_volumes_snapshots_and_clones_is_as_in_a_map_of_bytes() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut pair = Pair::new(&scratch, 20_261_121)?;
    pair.create("v0")?;
    let mut serial = 0;
    for step in 0..48 {
        serial += 1;
        let names: Vec<String> = pair.contents.keys().cloned().collect();
        let (snapshots, volumes): (Vec<_>, Vec<_>) =
            names.iter().partition(|name| name.contains('@'));
        let volume = volumes[pair.below(volumes.len())].clone();
        let snapshot = (!snapshots.is_empty()).then(|| snapshots[pair.below(snapshots.len())]);
        match (pair.below(12), snapshot) {
            (0..4, _) => pair.scribble(&volume)?,
            (4..7, _) if snapshots.len() < 8 => pair.snapshot(&volume, &format!("t{serial}"))?,
            (7, Some(snapshot)) if volumes.len() < 4 => {
                pair.clone(snapshot, &format!("v{serial}"))?;
            }
            (8, Some(snapshot)) => pair.rollback(snapshot)?,
            (9, Some(snapshot)) => pair.delete(snapshot)?,
            (10, _) => {
                let info = pair.node.dog_json(&format!("volume info {volume}"))?;
                if !info["origin"].is_null() {
                    pair.node.dog_ok(&format!("volume flatten {volume} --wait"))?;
                }
            }
            (11, _) => {
                let bytes = (8 + pair.below(8)) * MIB;
                let words = format!("volume resize {volume} {bytes} --allow-shrink");
                pair.node.dog_ok(&words)?;
                pair.contents.get_mut(&volume).context("no such volume")?.resize(bytes, 0);
            }
            _ => pair.scribble(&volume)?,
        }
        if step % 6 == 5 {
            pair.check().with_context(|| format!("after step {step}"))?;
        }
        if step % 16 == 15 {
            pair.node.kill()?;
            pair.node.begin()?;
            pair.check().with_context(|| format!("after a kill behind step {step}"))?;
        }
    }
    pair.finish()
}

#[test]
fn snapshots_go_in_any_order_and_the_others_stay_as_they_were() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut pair = Pair::new(&scratch, 5)?;
    for round in 0..4 {
        // Four layers of v with a branch, and a clone with a snapshot of its own.
        pair.create("v")?;
        for tag in ["1", "2", "3"] {
            pair.scribble("v")?;
            pair.snapshot("v", tag)?;
        }
        pair.rollback("v@1")?;
        pair.scribble("v")?;
        pair.snapshot("v", "4")?;
        pair.scribble("v")?;
        pair.clone("v@2", "c")?;
        pair.scribble("c")?;
        pair.snapshot("c", "1")?;
        pair.scribble("c")?;
        pair.check()?;
        let mut names = vec!["v@1", "v@2", "v@3", "v@4", "c@1"];
        let mut order = Vec::new();
        while !names.is_empty() {
            order.push(names.remove(pair.below(names.len())));
        }
        for name in &order {
            pair.delete(name)?;
            pair.check().with_context(|| format!("round {round}, {name} of {order:?} went"))?;
        }
        let volumes = if round % 2 == 0 { ["v", "c"] } else { ["c", "v"] };
        for name in volumes {
            pair.delete(name)?;
            pair.check().with_context(|| format!("round {round}, {order:?} and {name} went"))?;
        }
        wait_empty(&pair.node)?;
    }
    pair.finish()
}

#[test]
fn what_deleting_would_free_is_what_it_frees() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 12M")?;
    let write = |offset_mib: usize, length_mib: usize, fill: u8| {
        let words = format!("volume write v --offset {offset_mib}M");
        node.dog(&words).input(vec![fill; length_mib * MIB]).ok()
    };
    write(0, 4, 1)?;
    node.dog_ok("volume snapshot v@a")?;
    write(0, 3, 2)?; // three of the four MiB are shown by a alone
    node.dog_ok("volume snapshot v@b")?;
    write(1, 1, 3)?; // one of b's three is shown by b alone
    node.dog_ok("volume clone v@a c")?;
    let used = || -> Result<u64> {
        node.dog_json("status")?["used_bytes"].as_u64().context("no used_bytes")
    };
    let freed = |tag: &str| -> Result<u64> {
        let snapshots = node.dog_json("volume snapshots v --reclaimable")?;
        let mut all = snapshots.as_array().context("no list")?.iter();
        let snapshot = all.find(|snapshot| snapshot["tag"] == tag).context("not in the list")?;
        snapshot["reclaimable_bytes"].as_u64().context("nothing is told")
    };
    ensure!(used()? == 8 * MIB as u64, "{} bytes are used", used()?);
    // The clone shows what a has; so nothing of a would come back.
    for (tag, mib) in [("a", 0), ("b", 1)] {
        ensure!(freed(tag)? == mib * MIB as u64, "{} bytes by deleting {tag}", freed(tag)?);
    }
    node.dog_ok("volume delete c --now --yes")?;
    for (tag, mib, left) in [("a", 3, 5), ("b", 1, 4)] {
        ensure!(freed(tag)? == mib * MIB as u64, "{} bytes by deleting {tag}", freed(tag)?);
        node.dog_ok(&format!("volume delete v@{tag} --yes"))?;
        wait_until("its space is free", || Ok(used()? == left * MIB as u64))?;
    }
    ensure!(node.used_bytes("v")? == 4 * MIB as u64, "{} bytes", node.used_bytes("v")?);
    node.dog_ok("volume delete v --now --yes")?;
    wait_empty(&node)?;
    node.stop()
}

#[test]
fn snapshots_of_a_volume_under_load_are_points_in_time() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 12M")?;
    let load = Load::start(&node.nbd_socket(), "v", vec![0; VOLUME_BYTES]);
    load.wait_for_writes(2000)?;
    let mut taken: Vec<(String, Moment, Moment, Vec<u8>)> = Vec::new();
    for number in 0..8 {
        let name = format!("v@{number}");
        let from = load.moment();
        node.dog_ok(&format!("volume snapshot {name}"))?;
        let to = load.moment();
        load.wait_for_writes(500)?;
        // It can be saved while the writer goes on, and the volume itself cannot.
        let file = scratch.join("image");
        node.dog("volume export").arg(&name).arg(&file).ok()?;
        taken.push((name, from, to, fs::read(&file)?));
        fs::remove_file(&file)?;
        let refused = node.dog("volume export v").arg(&file).run()?;
        ensure!(refused.code == Some(4) && refused.stderr.contains("snapshot v@"), "{refused}");
        if number % 3 == 2 {
            node.dog_ok(&format!("volume delete v@{} --yes", number - 1))?;
        }
    }
    node.dog("volume export v@7 --format qcow2").arg(scratch.join("image.qcow2")).ok()?;
    let history = load.stop()?;
    for (name, from, to, content) in &taken {
        history.check(content, *from, *to).with_context(|| name.clone())?;
    }
    history.check_latest(&content(&node, "v")?)?;
    // What they show did not change since, and those that are left survive the volume's client.
    let left = tags(&node, "v")?;
    ensure!(left == ["0", "2", "3", "5", "6", "7"], "{left:?}");
    for (name, _, _, before) in &taken {
        if left.iter().any(|tag| name.ends_with(tag)) {
            ensure!(content(&node, name)? == *before, "{name} changed");
        }
    }
    let raw = scratch.join("image.raw");
    fs::write(&raw, &taken[7].3)?;
    Tool::new("qemu-img")
        .words("compare -f raw -F qcow2")
        .arg(&raw)
        .arg(scratch.join("image.qcow2"))
        .ok()?;
    node.dog_ok("volume delete v --with-snapshots --now --yes")?;
    wait_empty(&node)?;
    node.stop()
}

#[test]
fn fio_verifies_every_byte_while_snapshots_come_and_go() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 64M")?;
    let log = fs::File::create(scratch.join("fio.log"))?;
    let mut fio = Tool::new("fio")
        .words("--ioengine=nbd --name=v --size=48m --io_size=256m --rw=randwrite --iodepth=16")
        .words("--bsrange=512-32k --blockalign=512 --verify=crc32c --verify_fatal=1")
        .words("--verify_backlog=256 --serialize_overlap=1 --randseed=7")
        .words("--time_based --runtime=4")
        .arg(format!("--uri={}", node.uri("v")))
        .directory(scratch.path())
        .spawn(log)?;
    let mut number = 0;
    while fio.try_wait()?.is_none() {
        number += 1;
        node.dog_ok(&format!("volume snapshot v@{number}"))?;
        if number > 4 {
            node.dog_ok(&format!("volume delete v@{} --yes", number - 4 + number % 3))?;
        }
        ensure!(number < 1000, "fio does not end");
        std::thread::sleep(Duration::from_millis(100));
    }
    let said = fs::read_to_string(scratch.join("fio.log"))?;
    ensure!(fio.wait()?.success() && said.contains("err= 0"), "{said}");
    ensure!(number > 5, "only {number} snapshots were taken");
    node.dog_ok("volume delete v --with-snapshots --now --yes")?;
    wait_empty(&node)?;
    node.stop()
}

#[test]
fn kills_while_snapshots_come_and_go_lose_nothing() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 12M")?;
    let load = Load::start(&node.nbd_socket(), "v", vec![0; VOLUME_BYTES]);
    let mut taken: BTreeMap<String, (Moment, Moment)> = BTreeMap::new();
    for round in 0..10u64 {
        load.wait_for_writes(300)?;
        let tag = format!("t{round}");
        let from = load.moment();
        let output = fs::File::create(scratch.join("dog.log"))?;
        let mut dog = node.dog(&format!("volume snapshot v@{tag}")).spawn(output.try_clone()?)?;
        // In odd rounds another one goes at the same time.
        let leaving = taken.keys().next().cloned().filter(|_| round % 2 == 1);
        let mut deleting = match &leaving {
            Some(leaving) => {
                let words = format!("volume delete v@{leaving} --yes");
                Some(node.dog(&words).spawn(output)?)
            }
            None => None,
        };
        std::thread::sleep(Duration::from_millis(1 + round * 7 % 25));
        node.kill()?;
        let answered = dog.wait()?.success();
        let deleted = match &mut deleting {
            Some(deleting) => deleting.wait()?.success(),
            None => false,
        };
        node.begin()?;
        wait_until("the snapshot is settled", || {
            Ok(node.dog_json("volume info v")?["sealing"] == false)
        })?;
        let to = load.moment();
        let there = tags(&node, "v")?;
        ensure!(there.contains(&tag) || !answered, "an answered snapshot is gone: {there:?}");
        if there.contains(&tag) {
            taken.insert(tag, (from, to));
        }
        if let Some(leaving) = leaving {
            ensure!(!there.contains(&leaving) || !deleted, "v@{leaving} is back: {there:?}");
            taken.retain(|tag, _| *tag != leaving || there.contains(tag));
        }
        ensure!(there.len() == taken.len(), "{there:?} instead of {:?}", taken.keys());
    }
    let history = load.stop()?;
    for (tag, (from, to)) in &taken {
        let content = content(&node, &format!("v@{tag}"))?;
        history.check(&content, *from, *to).with_context(|| format!("v@{tag}"))?;
    }
    history.check_latest(&content(&node, "v")?)?;
    ensure!(!taken.is_empty(), "no snapshot survived");
    node.dog_ok("volume delete v --with-snapshots --now --yes")?;
    wait_empty(&node)?;
    node.stop()
}

#[test]
fn a_clone_of_ten_generations_is_shortened_under_load_and_kills_and_shares_its_image() -> Result<()>
{
    const BYTES: usize = 32 * MIB;
    const DEPTH: usize = 10;
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &["--fill-rate", "1M"])?;
    let mut content_of = vec![
        (0..BYTES / 8).flat_map(|place| (place as u64 * 7 + 1).to_le_bytes()).collect::<Vec<u8>>(),
    ];
    let image = scratch.join("image");
    fs::write(&image, &content_of[0])?;
    node.dog("volume import").arg(&image).arg("c0").ok()?;
    for depth in 1..=DEPTH {
        let below = depth - 1;
        node.dog_ok(&format!("volume snapshot c{below}@s"))?;
        node.dog_ok(&format!("volume clone c{below}@s c{depth}"))?;
        let mut content = content_of[below].clone();
        if depth < DEPTH {
            // At once, so that nothing is done about those in between.
            node.dog_ok(&format!("volume snapshot c{depth}@early"))?;
            // One block a generation; every third one of zeros.
            let place = depth * 3 * MIB;
            content[place..place + BLOCK].fill(if depth % 3 == 0 { 0 } else { depth as u8 });
            let part = scratch.join("part");
            fs::write(&part, &content[place..place + BLOCK])?;
            node.dog(&format!("volume write c{depth} --offset {place}")).arg(&part).ok()?;
        }
        content_of.push(content);
    }
    let info = node.dog_json("volume info c10")?;
    ensure!(info["origin"]["lineages"] == 10, "{info}");
    let load = Load::start(&node.nbd_socket(), "c10", content_of[DEPTH].clone());
    for _ in 0..3 {
        load.wait_for_writes(50)?;
        node.kill()?;
        node.begin()?;
    }
    let shortened = || Ok(node.dog_json("volume info c10")?["origin"]["lineages"] == 1);
    wait_until("the chain is short", shortened)?;
    load.wait_for_writes(50)?;
    let history = load.stop()?;
    wait_free(&node, "c10")?;
    history.check_latest(&content(&node, "c10")?)?;
    let info = node.dog_json("volume info c10")?;
    ensure!(info["origin"]["name"] == "c0@s" && info["shorten"].is_null(), "{info}");
    // Each generation in between goes, and leaves the others what they were.
    for (depth, was) in content_of.iter().enumerate().take(DEPTH).skip(1) {
        ensure!(content(&node, &format!("c{depth}"))? == *was, "c{depth}");
        node.dog_ok(&format!("volume delete c{depth} --with-snapshots --now --yes"))?;
    }
    let before = content(&node, "c10")?;
    let used = node.used_bytes("c10")?;
    wait_until("only the image and what was written is left", || {
        Ok(node.dog_json("status")?["used_bytes"] == used + BYTES as u64)
    })?;
    ensure!(used < BYTES as u64 / 2, "{used} bytes of the image were copied or written");
    ensure!(content(&node, "c10")? == before, "the others were needed");
    node.stop()
}

#[test]
fn kills_while_a_clone_is_flattened_under_load_lose_nothing() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    const BYTES: usize = 96 * MIB;
    let base: Vec<u8> =
        (0..BYTES / 8).flat_map(|place| (place as u64 * 7 + 1).to_le_bytes()).collect();
    let image = scratch.join("image");
    fs::write(&image, &base)?;
    node.dog("volume import").arg(&image).arg("v").ok()?;
    node.dog_ok("volume snapshot v@a")?;
    node.dog_ok("volume clone v@a c")?;
    ensure!(node.used_bytes("c")? == 0, "a clone takes space");
    let load = Load::start(&node.nbd_socket(), "c", base.clone());
    load.wait_for_writes(500)?;
    node.dog_ok("volume flatten c")?;
    for round in 0..4 {
        // The first comes before much can be done; how far it is at the others, chance decides.
        std::thread::sleep(Duration::from_millis(round * 30));
        node.kill()?;
        node.begin()?;
        load.wait_for_writes(100)?;
    }
    node.dog_ok("volume flatten c --wait")?;
    let info = node.dog_json("volume info c")?;
    ensure!(info["origin"].is_null() && info["flatten"].is_null(), "{info}");
    let history = load.stop()?;
    history.check_latest(&content(&node, "c")?)?;
    ensure!(content(&node, "v@a")? == base, "the origin changed");
    // It needs its origin no more.
    node.dog_ok("volume delete v --with-snapshots --now --yes")?;
    let used = node.used_bytes("c")?;
    wait_until("what the origin had is free", || {
        Ok(node.dog_json("status")?["used_bytes"] == used)
    })?;
    history.check_latest(&content(&node, "c")?)?;
    node.dog_ok("volume delete c --now --yes")?;
    wait_empty(&node)?;
    node.stop()
}

#[test]
fn any_number_of_clients_read_a_snapshot_and_none_writes_it() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 12M")?;
    node.dog("volume write v --offset 1M").input(vec![7; MIB]).ok()?;
    node.dog_ok("volume snapshot v@a")?;
    let before = content(&node, "v@a")?;

    let list = format!("nbd+unix:///?socket={}", node.nbd_socket().display());
    let list = Tool::new("nbdinfo").words("--list --json").arg(list).ok()?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let exports = list["exports"].as_array().context("no exports")?;
    let export = |name: &str| exports.iter().find(|export| export["export-name"] == name);
    ensure!(export("v").context("v is not listed")?["is_read_only"] == false, "{list}");
    ensure!(export("v@a").context("v@a is not listed")?["is_read_only"] == true, "{list}");

    // A writer of the volume, two readers of the snapshot in this process, and other programs.
    let mut peers = Vec::new();
    for name in ["v", "v@a", "v@a"] {
        let mut peer = Peer::unix(&node.nbd_socket())?;
        peer.greet()?;
        let size = peer.go(name)?.map_err(|refusal| anyhow::anyhow!("{name}: {}", refusal.0))?;
        ensure!(size == VOLUME_BYTES as u64, "{name} has {size} bytes");
        peers.push(peer);
    }
    peers[0].request(command::WRITE, 1, MIB as u64, 4096)?;
    peers[0].send(&[9; 4096])?;
    ensure!(peers[0].reply()? == (0, 1), "the volume is not written");
    for peer in &mut peers[1..] {
        peer.request(command::READ, 1, MIB as u64, 4096)?;
        ensure!(peer.reply()? == (0, 1), "the snapshot is not read");
        ensure!(peer.payload(4096)? == [7; 4096], "the snapshot changed");
        for command in [command::TRIM, command::WRITE_ZEROES] {
            peer.request(command, 2, 0, 4096)?;
            ensure!(peer.reply()? == (1, 2), "{command} is not refused with EPERM");
        }
        peer.request(command::WRITE, 3, 0, 4096)?;
        peer.send(&[1; 4096])?;
        ensure!(peer.reply()? == (1, 3), "a write is not refused with EPERM");
    }
    let copy = scratch.join("copy");
    Tool::new("nbdcopy").arg(node.uri("v@a")).arg(&copy).ok()?;
    ensure!(fs::read(&copy)? == before, "nbdcopy reads something else");
    let read = |options: &str, commands: &str| {
        Tool::new("qemu-io").words(options).arg("-c").arg(commands).arg(node.uri("v@a")).run()
    };
    let output = read("-r -f raw", "read -P 7 1M 1M")?;
    ensure!(output.code == Some(0), "{output}");
    let output = read("-f raw", "write -P 1 0 4k")?;
    ensure!(output.code != Some(0), "qemu-io writes a snapshot: {output}");

    // It is in use, so it stays; then it can go, and nobody finds it any more.
    let refused = node.dog_refuses("volume delete v@a --yes")?;
    let told = refused.stderr.contains("snapshot \"v@a\" is read by process");
    ensure!(refused.code == Some(4) && told, "{refused}");
    let readers = node.dog_json("volume snapshots v")?;
    ensure!(readers[0]["readers"].as_array().is_some_and(|all| !all.is_empty()), "{readers}");
    ensure!(content(&node, "v@a")? == before, "the snapshot changed");
    drop(peers);
    wait_until("nobody reads it", || {
        Ok(node.dog("volume delete v@a --yes").run()?.code == Some(0))
    })?;
    let refused = node.dog_refuses("volume read v@a --offset 0 --length 4K")?;
    ensure!(refused.code == Some(3), "{refused}");
    node.stop()
}

#[test]
fn refused_commands_on_snapshots_say_why_and_change_nothing() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut pair = Pair::new(&scratch, 1)?;
    pair.create("v")?;
    pair.scribble("v")?;
    pair.snapshot("v", "a")?;
    // Though nothing was written since: somebody could write while it is looked at.
    let refused = pair.node.dog_refuses("volume rollback v@a")?;
    ensure!(refused.code == Some(4) && refused.stderr.contains("say --yes"), "{refused}");
    pair.scribble("v")?;
    pair.clone("v@a", "c")?;
    let long = "t".repeat(256);
    let table: Vec<(String, i32, &str)> = vec![
        ("volume snapshot v".into(), 2, "v@"),
        ("volume snapshot v@".into(), 2, "tag"),
        ("volume snapshot v@a".into(), 4, "another tag"),
        ("volume snapshot v@a/b".into(), 2, "tag"),
        (format!("volume snapshot v@{long}"), 2, "255"),
        ("volume snapshot nothere@a".into(), 3, "nothere"),
        ("volume snapshots nothere".into(), 3, "nothere"),
        ("volume info v@nothere".into(), 3, "nothere"),
        ("volume clone v@nothere d".into(), 3, "nothere"),
        ("volume clone v@a c".into(), 4, "c"),
        ("volume clone v@a d@e".into(), 2, "name"),
        ("volume rollback v@a".into(), 4, "--yes"),
        ("volume rollback v@nothere --yes".into(), 3, "nothere"),
        ("volume export-diff v@a v@a -".into(), 2, "stands there twice"),
        ("volume lock v@a --until +3700d".into(), 4, "say --yes"),
        ("volume lock v@a --until +36530d --yes".into(), 2, "name an earlier time"),
        ("volume flatten nothere".into(), 3, "nothere"),
        ("volume delete v@a".into(), 4, "--yes"),
        ("volume delete v --now --yes".into(), 4, "--with-snapshots"),
        ("volume delete v".into(), 4, "--with-snapshots"),
        ("volume delete v --now".into(), 4, "--with-snapshots --yes"),
        ("volume delete v@a --keep 1h".into(), 2, "--keep"),
        ("volume delete v@nothere --yes".into(), 3, "nothere"),
        ("volume resize v@a 1G".into(), 2, "clone"),
        ("volume rename v@a b".into(), 2, "clone"),
        ("volume export v@nothere -".into(), 3, "nothere"),
        ("volume attach v@nothere".into(), 3, "nothere"),
        ("volume tree nothere".into(), 3, "nothere"),
    ];
    for (words, code, word) in &table {
        let output = pair.node.dog(words).run()?;
        let text = output.stderr.trim();
        ensure!(output.code == Some(*code) && text.contains(word), "dog {words}: {output}");
        ensure!(text.lines().count() == 1, "one sentence expected: {output}");
    }
    pair.check()?;
    // A volume that somebody has attached is not rolled back.
    let mut peer = Peer::unix(&pair.node.nbd_socket())?;
    peer.greet()?;
    ensure!(peer.go("v")?.is_ok(), "the volume can be attached");
    let refused = pair.node.dog_refuses("volume rollback v@a --yes")?;
    ensure!(refused.code == Some(4) && refused.stderr.contains("attached"), "{refused}");
    drop(peer);
    // A clone stays when what it was cloned from goes.
    wait_until("the volume is free", || {
        let words = "volume delete v --with-snapshots --now --yes";
        Ok(pair.node.dog(words).run()?.code == Some(0))
    })?;
    pair.contents.retain(|name, _| name == "c");
    pair.check()?;
    let info = pair.node.dog_json("volume info c")?;
    ensure!(info["origin"]["name"].is_null() && !info["origin"].is_null(), "{info}");
    pair.finish()
}
