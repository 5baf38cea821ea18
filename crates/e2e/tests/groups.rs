//! Snapshots of groups: what several volumes show of one moment is of one moment, whoever writes or
//! dies meanwhile; and a real guest stands still for it.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{
    DiskSetup, Guest, Machine, Node, Scratch, Tool,
    nbd::{Peer, command},
};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const VOLUMES: usize = 3;
const CHAINS: usize = 6;
/// Blocks of one chain, which it writes round and round.
const SLOTS: u64 = 60;
const PATIENCE: Duration = Duration::from_secs(120);
const GUEST_TIME_LIMIT: Duration = Duration::from_secs(180);

/// Where write `number` of a chain goes: to which volume, and at which offset.
fn place(chain: usize, number: u64) -> (usize, u64) {
    let slot = number % SLOTS;
    let volume = (slot as usize + chain) % VOLUMES;
    (volume, (chain as u64 * SLOTS + slot) * BLOCK as u64)
}

/// A client that makes each write after the answer to the one before it, in another volume.
struct Chain {
    answered: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Chain {
    fn start(socket: PathBuf, chain: usize) -> Chain {
        let (answered, end) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, ended) = (answered.clone(), end.clone());
        let thread = thread::spawn(move || {
            // One that is killed is connected to again, and the write in doubt made again.
            while !ended.load(Ordering::Relaxed) {
                if write_on(&socket, chain, &count, &ended).is_err() {
                    thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Chain { answered, end, thread }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }
}

fn write_on(socket: &Path, chain: usize, count: &AtomicU64, end: &AtomicBool) -> Result<()> {
    let mut peers = Vec::new();
    for volume in 0..VOLUMES {
        let mut peer = Peer::unix(socket)?;
        peer.greet()?;
        ensure!(peer.go(&format!("v{volume}"))?.is_ok());
        peers.push(peer);
    }
    while !end.load(Ordering::Relaxed) {
        let number = count.load(Ordering::SeqCst) + 1;
        let (volume, offset) = place(chain, number);
        let peer = &mut peers[volume];
        peer.request(command::WRITE, number, offset, BLOCK as u32)?;
        peer.send(&number.to_le_bytes().repeat(BLOCK / 8))?;
        ensure!(peer.reply()? == (0, number));
        count.store(number, Ordering::SeqCst);
    }
    Ok(())
}

/// Whether the contents of all volumes are what a chain left at one moment: its last so many writes
/// without a gap. Gives back the last one.
fn check_chain(contents: &[Vec<u8>], chain: usize) -> Result<u64> {
    let mut found = Vec::new();
    for slot in 0..SLOTS {
        let (volume, offset) = place(chain, slot);
        let block = &contents[volume][offset as usize..offset as usize + BLOCK];
        let number = u64::from_le_bytes(block[..8].try_into()?);
        ensure!(block == number.to_le_bytes().repeat(BLOCK / 8), "a torn block");
        found.push(number);
    }
    let last = found.iter().copied().max().unwrap_or(0);
    for (slot, number) in found.into_iter().enumerate() {
        let slot = slot as u64;
        // The newest one of this slot that is not after the last.
        let expected = (last + SLOTS - slot) / SLOTS * SLOTS;
        let expected = (expected + slot).saturating_sub(SLOTS);
        ensure!(
            number == expected,
            "chain {chain}: write {last} is there, and slot {slot} has {number}, not {expected}"
        );
    }
    Ok(last)
}

/// What a group snapshot that was asked for may contain: at least, and at most if it was answered.
struct Taken {
    tag: String,
    before: Vec<u64>,
    after: Option<Vec<u64>>,
}

fn wait_for_writes(chains: &[Chain], more: u64) -> Result<()> {
    let before: Vec<u64> = chains.iter().map(Chain::answered).collect();
    let until = Instant::now() + PATIENCE;
    while chains.iter().zip(&before).any(|(chain, before)| chain.answered() < before + more) {
        ensure!(Instant::now() < until, "the chains do not go on");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn kills_during_group_snapshots_leave_cuts_through_all_volumes() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    for volume in 0..VOLUMES {
        node.dog_ok(&format!("volume create v{volume} 4M"))?;
    }
    node.dog_ok("group create g v0 v1 v2")?;
    node.expect_log("was being taken when the node ended and was deleted");
    let chains: Vec<Chain> =
        (0..CHAINS).map(|chain| Chain::start(node.nbd_socket(), chain)).collect();
    let answered = || chains.iter().map(Chain::answered).collect::<Vec<u64>>();
    let mut asked = Vec::new();
    for round in 0..12u64 {
        wait_for_writes(&chains, 50)?;
        let tag = format!("t{round}");
        let before = answered();
        let output = fs::File::create(scratch.join("dog.log"))?;
        let mut dog = node.dog(&format!("group snapshot g@{tag}")).spawn(output)?;
        let kills = round % 3 != 0;
        if kills {
            thread::sleep(Duration::from_millis(1 + round * 7 % 25));
            node.kill()?;
        }
        let success = dog.wait()?.success();
        ensure!(success || kills, "{}", fs::read_to_string(scratch.join("dog.log"))?);
        // A write that was under way then may be in it.
        let after = success.then(|| answered().iter().map(|number| number + 1).collect());
        asked.push(Taken { tag, before, after });
        if kills {
            node.begin()?;
        }
    }
    for chain in &chains {
        chain.end.store(true, Ordering::Relaxed);
    }
    for chain in chains {
        ensure!(chain.thread.join().is_ok(), "a chain panicked");
    }

    let group = node.dog_json("group info g")?;
    // Those that a kill interrupted go, or are known not to be of one moment until they have.
    let mut there = group["snapshots"].as_array().context("no snapshots")?.clone();
    there.retain(|snapshot| snapshot["complete"] == true);
    for snapshot in &there {
        ensure!(snapshot["sealing"] == false, "{snapshot}");
    }
    let mut checked = 0;
    for Taken { tag, before, after } in &asked {
        if !there.iter().any(|snapshot| snapshot["tag"] == tag.as_str()) {
            ensure!(after.is_none(), "an answered snapshot is gone: {tag}");
            continue;
        }
        let mut contents = Vec::new();
        for volume in 0..VOLUMES {
            let output =
                node.dog("volume export").arg(format!("v{volume}@{tag}")).arg("-").run()?;
            ensure!(output.code == Some(0), "{output}");
            contents.push(output.stdout);
        }
        for chain in 0..CHAINS {
            let last = check_chain(&contents, chain).with_context(|| format!("g@{tag}"))?;
            ensure!(last >= before[chain], "g@{tag}: {last} is before {}", before[chain]);
            let most = after.as_ref().map_or(u64::MAX, |after: &Vec<u64>| after[chain]);
            ensure!(last <= most, "g@{tag}: {last} is after {most}");
        }
        checked += 1;
    }
    ensure!(checked >= 4, "only {checked} snapshots survived");

    // All of it goes again, and the group with it.
    for snapshot in &there {
        let tag = snapshot["tag"].as_str().context("no tag")?;
        node.dog_ok(&format!("group delete g@{tag} --yes"))?;
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while node.dog_json("status")?["snapshots"] != 0 {
        ensure!(Instant::now() < deadline, "snapshots are left: {}", node.dog_json("group list")?);
        thread::sleep(Duration::from_millis(20));
    }
    node.dog_ok("group delete g")?;
    node.stop()
}

#[test]
fn refused_commands_on_groups_say_why_and_change_nothing() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 4M")?;
    node.dog_ok("volume create w 4M")?;
    node.dog_ok("group create g v w")?;
    node.dog_ok("group snapshot g@t")?;
    for (words, code, part) in [
        ("group create g", 4, "exists already"),
        ("group create h v nowhere", 3, "no volume named \"nowhere\""),
        ("group add h v", 3, "no group \"h\""),
        ("group add g nowhere", 3, "no volume named \"nowhere\""),
        ("group snapshot g@t", 4, "choose another tag"),
        ("group snapshot g", 2, "as in g@monday"),
        ("group snapshot g@u --freeze-deadline 5s", 2, "--freeze"),
        ("group rollback g@t", 4, "say --yes"),
        ("group rollback g@x --yes", 3, "no snapshot \"x\""),
        ("group delete g@t", 4, "say --yes"),
        ("group delete h", 3, "no group \"h\""),
        ("group info g@x", 3, "has no snapshot x"),
    ] {
        let output = node.dog_refuses(words)?;
        ensure!(output.code == Some(code), "{words}: {output}");
        ensure!(output.stderr.contains(part), "{words}: {output}");
    }
    let group = node.dog_json("group info g")?;
    ensure!(group["volumes"] == serde_json::json!(["v", "w"]), "{group}");
    ensure!(group["snapshots"].as_array().is_some_and(|all| all.len() == 1), "{group}");
    ensure!(node.dog_json("group list")?.as_array().is_some_and(|all| all.len() == 1));
    node.dog_ok("group remove g w")?;
    node.dog_ok("group rollback g@t --yes")?;
    node.dog_ok("group delete g@t --yes")?;
    node.stop()
}

/// QEMU stops the guest's processors for the snapshot of its two disks, and lets them go on.
#[test]
fn a_real_guest_stands_still_for_a_group_snapshot() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 64M")?;
    node.dog_ok("volume create w 64M")?;
    node.dog_ok("group create g v w")?;
    let socket = scratch.join("monitor");
    let nbd = node.nbd_socket();
    let mut arguments = vec![
        "-qmp".to_owned(),
        format!("unix:{},server=on,wait=off", socket.display()),
        "-blockdev".to_owned(),
        format!(
            "driver=nbd,node-name=second,server.type=unix,server.path={},export=w,\
             reconnect-delay=60,cache.direct=on",
            nbd.display()
        ),
    ];
    let first = DiskSetup::new(&nbd, "v");
    arguments.extend(first.arguments());
    arguments.extend(["-device".to_owned(), "virtio-blk-pci,drive=second".to_owned()]);
    let mut guest = Guest::boot_with(Machine::Initramfs, &arguments)?;
    // A chain across both disks: number i in the first, then in the second, then i + 1.
    let load = "i=0; while [ ! -e /tmp/stop ]; do i=$((i + 1)); for disk in vda vdb; do \
                printf %08d $i | dd of=/dev/$disk bs=512 count=1 conv=sync oflag=direct 2>&-; \
                done; done";
    guest.ok(&format!("({load}) >/dev/null 2>&1 &"), GUEST_TIME_LIMIT)?;
    let mut numbers = Vec::new();
    for round in 0..3 {
        let before = guest.ok("head -c 8 /dev/vda", GUEST_TIME_LIMIT)?;
        let words = format!("group snapshot g@t{round} --freeze-deadline 60s --freeze");
        let said = node.dog(&words).arg(&socket).ok()?;
        ensure!(said.contains("its processors were stopped"), "{said}");
        for event in ["STOP", "RESUME"] {
            guest.qmp().wait_event(event, GUEST_TIME_LIMIT)?;
        }
        let mut found = Vec::new();
        for volume in ["v", "w"] {
            let name = format!("volume read {volume}@t{round} --offset 0 --length 512");
            let output = node.dog(&name).run()?;
            ensure!(output.code == Some(0), "{output}");
            let text = String::from_utf8_lossy(&output.stdout[..8]).into_owned();
            found.push(text.trim_matches('\0').parse::<u64>().unwrap_or(0));
        }
        let [first, second] = [found[0], found[1]];
        ensure!(first == second || first == second + 1, "of two moments: {first} and {second}");
        ensure!(first >= before.trim_matches('\0').parse().unwrap_or(0), "{first} of {before}");
        numbers.push(first);
    }
    // The guest went on each time.
    ensure!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
    guest.ok("touch /tmp/stop", GUEST_TIME_LIMIT)?;
    guest.power_off()?;
    node.stop()
}

/// A program of e2fsprogs, which are not in every user's path.
fn e2fsprogs(program: &str) -> Tool {
    let path = std::env::var("PATH").unwrap_or_default();
    Tool::new("env").arg(format!("PATH={path}:/usr/sbin:/sbin")).arg(program)
}

/// What the guest had only in its memory is in the snapshot, and its file system needs no recovery.
#[test]
fn a_real_agent_freezes_the_file_systems_and_thaws_them() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 64M")?;
    node.dog_ok("group create g v")?;
    let socket = scratch.join("agent");
    let chardev = format!("socket,id=agent,path={},server=on,wait=off", socket.display());
    let mut arguments = DiskSetup::new(&node.nbd_socket(), "v").arguments();
    for word in [
        "-device",
        "virtio-serial-pci",
        "-chardev",
        &chardev,
        "-device",
        "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
    ] {
        arguments.push(word.to_owned());
    }
    let mut guest = Guest::boot_with(Machine::Initramfs, &arguments)?;
    guest.ok("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt", GUEST_TIME_LIMIT)?;
    let agent = "qemu-ga -m virtio-serial -p /dev/vport?p1 -t /tmp >/tmp/agent.log 2>&1 &";
    guest.ok(agent, GUEST_TIME_LIMIT)?;
    for round in 0..2 {
        let file = format!("file{round}");
        let script = format!(
            "dd if=/dev/urandom of=/mnt/{file} bs=64k count=16 2>/dev/null && \
                              sha256sum </mnt/{file}"
        );
        let digest = guest.ok(&script, GUEST_TIME_LIMIT)?;
        let words = format!("group snapshot g@t{round} --freeze-deadline 2min --freeze");
        let said = node.dog(&words).arg(&socket).ok()?;
        ensure!(said.contains("1 file system was frozen"), "{said}");

        let image = scratch.join("image");
        node.dog("volume export").arg(format!("v@t{round}")).arg(&image).ok()?;
        let state = e2fsprogs("dumpe2fs").arg("-h").arg(&image).ok()?;
        ensure!(!state.contains("needs_recovery"), "it was not frozen: {state}");
        e2fsprogs("e2fsck").words("-f -n").arg(&image).ok()?;
        let copy = scratch.join("file");
        let dump = format!("dump /{file} {}", copy.display());
        e2fsprogs("debugfs").arg("-R").arg(dump).arg(&image).ok()?;
        let found = Tool::new("sha256sum").arg(&copy).ok()?;
        let sum = |text: &str| text.split_whitespace().next().map(str::to_owned);
        ensure!(sum(&found) == sum(&digest), "{file} is not what the guest had written");
        fs::remove_file(&image)?;
        fs::remove_file(&copy)?;
        // It goes on: a frozen file system would keep this waiting.
        guest.ok("echo on >/mnt/on && sync", GUEST_TIME_LIMIT)?;
    }
    guest.power_off()?;
    node.stop()
}
