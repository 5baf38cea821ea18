//! Bad starts and bad commands: one sentence with cause and remedy, an exit code, nothing changed.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Result, ensure};
use e2e::{Node, Scratch, Tool, ToolOutput, digest, sheep};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// RELIABILITY row 41: a daemon that refuses to start does so within this.
const REFUSAL_TIME: Duration = Duration::from_secs(5);

/// Demands that a program refused in one sentence that names what is wrong.
fn refused_with(output: &ToolOutput, code: i32, words: &[&str]) -> Result<()> {
    ensure!(output.code == Some(code), "exit code {code} expected: {output}");
    let text = output.stderr.trim();
    let sentences = text.lines().count();
    ensure!(sentences == 1 || text.contains("Usage:"), "one sentence expected: {output}");
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in: {text}");
    }
    ensure!(!text.contains("panicked") && !text.contains("RUST_BACKTRACE"), "{text}");
    Ok(())
}

/// Starts a daemon that must refuse, and must change nothing in `kept`.
fn start_refused(kept: &Path, arguments: &[&str], words: &[&str]) -> Result<()> {
    start_tool_refused(kept, Tool::new(sheep()).args(arguments), words)
}

fn start_tool_refused(kept: &Path, tool: Tool, words: &[&str]) -> Result<()> {
    let before = digest(kept)?;
    let begin = Instant::now();
    let output = tool.time_limit(Duration::from_secs(30)).run()?;
    let took = begin.elapsed();
    ensure!(output.code.is_some_and(|code| code != 0), "it did not refuse: {output}");
    let text = output.stderr.trim().to_owned();
    ensure!(!text.is_empty() && text.lines().count() <= 2, "one sentence expected: {output}");
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in: {output}");
    }
    ensure!(took < REFUSAL_TIME, "it took {took:?} to refuse: {output}");
    let after = digest(kept)?;
    ensure!(before == after, "a refused start changed {before:#?} into {after:#?}");
    Ok(())
}

/// A node that was used and stopped: a volume `v` with something in it.
fn used_node(scratch: &Scratch, name: &str) -> Result<Node> {
    let mut node = Node::start(&scratch.join(name), &["--limit", "256M"])?;
    node.dog_ok("volume create v 64M")?;
    node.dog("volume write v --offset 0").input(vec![7; 1 << 20]).ok()?;
    node.stop()?;
    Ok(node)
}

fn path(path: &Path) -> &str {
    path.to_str().expect("scratch paths are plain")
}

#[test]
fn options_that_make_no_sense_start_nothing() -> Result<()> {
    let scratch = Scratch::new()?;
    let data = scratch.join("data");
    let data = path(&data);
    let config = scratch.join("sheep.toml");
    let with_config = |text: &str| fs::write(&config, text);
    for (arguments, word) in [
        (vec!["--limit", "nonsense"], "limit"),
        (vec!["--limit", "0"], "limit"),
        (vec!["--limit", "99999999999999999999"], "limit"),
        (vec!["--map-cache", "1"], "map-cache"),
        (vec!["--nbd-listen", "0.0.0.0:10809"], "loopback"),
        (vec!["--nbd-listen", "nowhere"], "nbd-listen"),
        (vec!["--surplus"], "surplus"),
        (vec!["--log-level", "shout"], "log-level"),
        (vec!["--socket-group", "no-such-group-here"], "no-such-group-here"),
        (vec!["--config", "/nonexistent/sheep.toml"], "/nonexistent/sheep.toml"),
        (vec!["--disk", "/nonexistent/device"], "/nonexistent/device"),
    ] {
        let output = Tool::new(sheep()).arg("--data").arg(data).args(&arguments).run()?;
        ensure!(output.code.is_some_and(|code| code != 0), "{arguments:?}: {output}");
        ensure!(output.stderr.contains(word), "{arguments:?}: {word:?} is not in {output}");
        ensure!(!Path::new(data).exists(), "{arguments:?} made the data directory");
    }
    for (text, word) in [
        ("limmit = \"1G\"\n", "limmit"),
        ("limit = [1]\n", "limit"),
        ("limit = \n", "sheep.toml"),
        ("config = \"x\"\n", "config"),
    ] {
        with_config(text)?;
        let arguments = ["--data", data, "--config", path(&config)];
        let output = Tool::new(sheep()).args(arguments).run()?;
        ensure!(output.code.is_some_and(|code| code != 0), "{text:?}: {output}");
        ensure!(output.stderr.contains(word), "{text:?}: {word:?} is not in {output}");
        ensure!(!Path::new(data).exists(), "{text:?} made the data directory");
    }
    let output = Tool::new(sheep()).arg("--data").arg(data).env("SHEEP_LIMIT", "nonsense").run()?;
    ensure!(output.code != Some(0) && output.stderr.contains("SHEEP_LIMIT"), "{output}");
    let output = Tool::new(sheep()).arg("--data").arg(data).env("SHEEP_LIMT", "1G").run()?;
    ensure!(output.code == Some(2) && output.stderr.contains("SHEEP_LIMT;"), "{output}");
    ensure!(!Path::new(data).exists(), "a misspelt variable made the data directory");
    Ok(())
}

#[test]
fn places_that_cannot_be_used_stay_as_they_are() -> Result<()> {
    let scratch = Scratch::new()?;
    // A directory of somebody else.
    let foreign = scratch.join("foreign");
    fs::create_dir(&foreign)?;
    fs::write(foreign.join("letters.txt"), "dear reader")?;
    start_refused(&foreign, &["--data", path(&foreign)], &["letters.txt", "not empty"])?;
    // A file.
    start_refused(&foreign, &["--data", path(&foreign.join("letters.txt"))], &["letters.txt"])?;
    // No permission.
    let public = Scratch::public()?;
    let closed = public.join("closed");
    fs::create_dir(&closed)?;
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500))?;
    let program = public.join("sheep");
    fs::copy(sheep(), &program)?;
    let tool = as_nobody(&program).arg("--data").arg(closed.join("data"));
    start_tool_refused(&closed, tool, &["ermission denied"])?;
    // A path too long for a socket.
    let long = scratch.join(&"x".repeat(120));
    start_refused(&foreign, &["--data", path(&long)], &["too long"])?;
    ensure!(!long.exists(), "it was made all the same");
    Ok(())
}

/// A program run by a user who may do nothing; root may do all, and is not refused anything.
fn as_nobody(program: &Path) -> Tool {
    if rustix::process::geteuid().is_root() {
        Tool::new("setpriv").words("--reuid=65534 --regid=65534 --clear-groups").arg(program)
    } else {
        Tool::new(program)
    }
}

#[test]
fn a_directory_in_use_is_refused_and_its_owner_undisturbed() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 64M")?;
    let output = Tool::new(sheep()).arg("--data").arg(node.data()).run()?;
    refused_with(&output, 1, &["in use"])?;
    let pid = node.pid().expect("it runs").to_string();
    ensure!(output.stderr.contains(&pid), "by whom? {output}");
    Tool::new("qemu-io").words("-f raw -c").arg("write 0 1M").arg(node.uri("v")).ok()?;
    node.stop()
}

#[test]
fn a_port_in_use_is_refused() -> Result<()> {
    let scratch = Scratch::new()?;
    let holder = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = holder.local_addr()?.to_string();
    for option in ["--nbd-listen", "--metrics-listen"] {
        let data = scratch.join("data");
        let arguments = ["--data", path(&data), option, &address];
        start_refused(scratch.path(), &arguments, &[&address])?;
        let mut node = used_node(&scratch, "used")?;
        let used = node.data().to_owned();
        start_refused(&used, &["--data", path(&used), option, &address], &[&address])?;
        node.begin()?;
        node.stop()?;
        fs::remove_dir_all(&used)?;
    }
    Ok(())
}

/// Row 19. Disks swapped between nodes, and journals too: each is refused by name.
#[test]
fn a_disk_of_another_cluster_is_refused() -> Result<()> {
    let scratch = Scratch::new()?;
    for (file, word) in
        [("disk", "belongs"), ("cluster", "belongs"), ("node", "is that of another node")]
    {
        let (mut one, two) = (used_node(&scratch, "one")?, used_node(&scratch, "two")?);
        let kept = scratch.join("kept");
        fs::rename(one.data().join(file), &kept)?;
        fs::copy(two.data().join(file), one.data().join(file))?;
        let data = one.data().to_owned();
        start_refused(&data, &["--data", path(&data)], &[word])?;
        // With its own file it serves again what it had.
        fs::rename(&kept, one.data().join(file))?;
        one.begin()?;
        check_content(&one)?;
        one.stop()?;
        drop((one, two));
        fs::remove_dir_all(scratch.join("one"))?;
        fs::remove_dir_all(scratch.join("two"))?;
    }
    Ok(())
}

/// Row 19. An old copy of the disk comes back while the record of the cluster went on.
#[test]
fn an_old_copy_of_the_disk_is_refused() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = used_node(&scratch, "data")?;
    let disk = node.data().join("disk");
    let (old, new) = (scratch.join("old"), scratch.join("new"));
    Tool::new("cp").arg("--sparse=always").arg(&disk).arg(&old).ok()?;
    node.begin()?;
    node.dog("volume write v --offset 0").input(vec![8; 1 << 20]).ok()?;
    node.stop()?;
    fs::rename(&disk, &new)?;
    fs::rename(&old, &disk)?;
    let data = node.data().to_owned();
    start_refused(&data, &["--data", path(&data)], &["old"])?;
    fs::rename(&new, &disk)?;
    node.begin()?;
    let bytes = node.dog("volume read v --offset 0 --length 1M").run()?.stdout;
    ensure!(bytes == vec![8; 1 << 20], "the volume changed");
    node.stop()
}

/// Row 19. An old copy of the cluster's journal comes back while the disk went on.
#[test]
fn an_old_copy_of_the_journal_is_refused() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = used_node(&scratch, "data")?;
    let journal = node.data().join("cluster");
    let (old, new) = (scratch.join("old"), scratch.join("new"));
    Tool::new("cp").arg("--sparse=always").arg(&journal).arg(&old).ok()?;
    node.begin()?;
    node.dog_ok("volume create never-written 64M")?;
    node.stop()?;
    fs::rename(&journal, &new)?;
    fs::rename(&old, &journal)?;
    let data = node.data().to_owned();
    start_refused(&data, &["--data", path(&data)], &["an old copy of the journal"])?;
    fs::rename(&new, &journal)?;
    node.begin()?;
    node.dog_ok("volume info never-written")?;
    node.stop()
}

fn check_content(node: &Node) -> Result<()> {
    let bytes = node.dog("volume read v --offset 0 --length 1M").run()?.stdout;
    ensure!(bytes == vec![7; 1 << 20], "the volume changed");
    Ok(())
}

/// Row 20. Files that are gone, cut short or overwritten: refused, never half served.
#[test]
fn damaged_directories_are_refused_and_left_alone() -> Result<()> {
    let scratch = Scratch::new()?;
    let node = used_node(&scratch, "data")?;
    let data = node.data().to_owned();
    let pristine = scratch.join("pristine");
    Tool::new("cp").words("-a --sparse=always").arg(&data).arg(&pristine).ok()?;
    type Damage = fn(&Path) -> Result<()>;
    let damages: &[(&str, Damage)] = &[
        ("disk gone", |data| Ok(fs::remove_file(data.join("disk"))?)),
        ("cluster gone", |data| Ok(fs::remove_file(data.join("cluster"))?)),
        ("node gone", |data| Ok(fs::remove_file(data.join("node"))?)),
        ("disk empty", |data| Ok(fs::write(data.join("disk"), "")?)),
        ("cluster empty", |data| Ok(fs::write(data.join("cluster"), "")?)),
        ("node empty", |data| Ok(fs::write(data.join("node"), "")?)),
        ("disk short", |data| truncate(&data.join("disk"), 1 << 20)),
        ("disk superblocks zero", |data| overwrite(&data.join("disk"), 0, &[0; 8192])),
        ("disk superblocks foreign", |data| overwrite(&data.join("disk"), 0, &[0xe5; 8192])),
        ("cluster foreign", |data| {
            let length = fs::metadata(data.join("cluster"))?.len().min(1 << 20);
            overwrite(&data.join("cluster"), 0, &vec![0xe5; usize::try_from(length)?])
        }),
        ("node foreign", |data| Ok(fs::write(data.join("node"), "# not a record\n")?)),
    ];
    drop(node);
    for (name, damage) in damages {
        fs::remove_dir_all(&data)?;
        Tool::new("cp").words("-a --sparse=always").arg(&pristine).arg(&data).ok()?;
        damage(&data)?;
        let word = name.split(' ').next().unwrap_or("");
        start_refused(&data, &["--data", path(&data)], &[word])
            .map_err(|error| error.context((*name).to_owned()))?;
    }
    Ok(())
}

fn truncate(file: &Path, bytes: u64) -> Result<()> {
    Ok(File::options().write(true).open(file)?.set_len(bytes)?)
}

fn overwrite(file: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    Ok(File::options().write(true).open(file)?.write_all_at(bytes, offset)?)
}

/// One superblock is enough; the damage is told.
#[test]
fn one_bad_superblock_is_mended() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = used_node(&scratch, "data")?;
    node.expect_log("superblock");
    for offset in [0, 4096] {
        overwrite(&node.data().join("disk"), offset, &[0xe5; 4096])?;
        node.begin()?;
        check_content(&node)?;
        node.stop()?;
    }
    node.begin()?;
    check_content(&node)?;
    node.stop()
}

#[test]
fn a_device_that_is_not_blank_is_refused() -> Result<()> {
    let scratch = Scratch::new()?;
    let image = scratch.join("device.img");
    File::create(&image)?.set_len(512 << 20)?;
    let device = LoopDevice::new(&image)?;
    Tool::new("sh").arg("-c").arg(format!("PATH=$PATH:/sbin mke2fs -q {}", device.0)).ok()?;
    let data = scratch.join("data");
    start_refused(
        scratch.path(),
        &["--data", path(&data), "--disk", &device.0],
        &[&device.0, "blank"],
    )?;
    ensure!(!data.exists(), "the data directory was made");
    // Wiped it is taken; then another node may not have it, nor the same one twice.
    Tool::new("dd")
        .words("if=/dev/zero bs=1M count=512 conv=fsync status=none")
        .arg(format!("of={}", device.0))
        .ok()?;
    let mut node = Node::start(&data, &["--disk", &device.0])?;
    node.dog_ok("volume create v 64M")?;
    node.dog("volume write v --offset 0").input(vec![7; 1 << 20]).ok()?;
    let other = scratch.join("other");
    let output = Tool::new(sheep())
        .args(["--data", path(&other), "--disk", &device.0])
        .time_limit(Duration::from_secs(30))
        .run()?;
    ensure!(output.code.is_some_and(|code| code != 0), "two nodes on one disk: {output}");
    node.kill()?;
    start_refused(scratch.path(), &["--data", path(&other), "--disk", &device.0], &[&device.0])?;
    node.begin()?;
    check_content(&node)?;
    node.stop()
}

struct LoopDevice(String);

impl LoopDevice {
    fn new(image: &Path) -> Result<LoopDevice> {
        let device = Tool::new("losetup").words("--find --show --direct-io=on").arg(image).ok()?;
        Ok(LoopDevice(device.trim().to_owned()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Tool::new("losetup").arg("--detach").arg(&self.0).run();
    }
}

#[test]
fn bad_commands_say_why_and_change_nothing() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &["--limit", "1G"])?;
    node.dog_ok("volume create v 64M")?;
    node.dog("volume write v --offset 0").input(vec![7; 1 << 20]).ok()?;
    let long = "n".repeat(256);
    let table: Vec<(String, i32, &str)> = vec![
        ("volume info nothere".into(), 3, "nothere"),
        ("volume create v 1G".into(), 4, "v"),
        ("volume create w 0".into(), 2, "size"),
        ("volume create w 4097".into(), 2, "4096"),
        ("volume create w 2P".into(), 2, ""),
        ("volume create w 20X".into(), 2, "20X"),
        ("volume create a/b 1G".into(), 2, "name"),
        ("volume create a@b 1G".into(), 2, "name"),
        (format!("volume create {long} 1G"), 2, "255"),
        ("volume resize v 32M".into(), 4, "allow-shrink"),
        ("volume resize nothere 32M".into(), 3, "nothere"),
        ("volume rename nothere w".into(), 3, "nothere"),
        ("volume rename v a/b".into(), 2, "name"),
        ("volume delete nothere --now --yes".into(), 3, "nothere"),
        ("volume delete v --now".into(), 4, "--yes"),
        ("volume delete v --keep soon".into(), 2, "soon"),
        ("volume delete v --keep 999w".into(), 2, "3660 days"),
        ("volume lock v --until +1d".into(), 2, "tag"),
        ("volume lock v@nothere --until +1d".into(), 3, "nothere"),
        ("volume lock v@nothere --until tomorrow".into(), 2, "2026-12-31"),
        ("trash undelete v".into(), 3, "trash list"),
        ("trash undelete 999".into(), 3, "trash list"),
        ("trash purge v --yes".into(), 3, "trash list"),
        ("trash purge v".into(), 3, "trash list"),
        ("trash purge --all".into(), 4, "--yes"),
        ("volume read v --offset 0 --length 1".into(), 2, "512"),
        ("volume read v --offset 64M --length 4K".into(), 2, ""),
        ("volume read nothere --offset 0 --length 4K".into(), 3, "nothere"),
        ("volume export nothere -".into(), 3, "nothere"),
        ("volume import /nonexistent/file w".into(), 3, "/nonexistent/file"),
        ("volume import /nonexistent/file v".into(), 3, "/nonexistent/file"),
        ("volume attach nothere".into(), 3, "nothere"),
        ("volume reconnect nothere".into(), 3, "nothere"),
        ("surplus".into(), 2, "surplus"),
    ];
    for (words, code, word) in &table {
        let output = node.dog(words).run()?;
        refused_with(&output, *code, &[word])
            .map_err(|error| error.context(format!("dog {words}")))?;
        // For programs the same, as JSON.
        let output = node.dog(&format!("--json {words}")).run()?;
        ensure!(output.code == Some(*code), "dog --json {words}: {output}");
    }
    // An attached volume is not deleted.
    let mut peer = e2e::nbd::Peer::unix(&node.nbd_socket())?;
    peer.greet()?;
    ensure!(peer.go("v")?.is_ok(), "the volume can be attached");
    let output = node.dog("volume delete v --now --yes").run()?;
    refused_with(&output, 4, &["attached"])?;
    drop(peer);

    let list = node.dog_json("volume list")?;
    ensure!(list.as_array().is_some_and(|list| list.len() == 1), "{list}");
    check_content(&node)?;

    // An NBD name that does not exist.
    let output = Tool::new("nbdinfo").arg(node.uri("nothere")).run()?;
    ensure!(output.code != Some(0) && output.stderr.contains("nothere"), "{output}");

    // No daemon.
    node.stop()?;
    let output = node.dog("volume list").run()?;
    refused_with(&output, 1, &["sheep"])?;
    Ok(())
}
