//! Volumes whose content lies elsewhere: right from the first second, under kill -9 of either side,
//! waiting when the source is away, and needing it no more in the end.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{Load, Node, Scratch, Tool, content, nbd::Peer, nbd::command, patchy_file, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File, OpenOptions};
use std::os::unix::{fs::FileExt, net::UnixListener};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// More than what a load covers; no whole number of blocks.
const SOURCE_BYTES: u64 = 36 * MIB + 3 * 512;

/// Somebody else's NBD server with one file. Killed when dropped.
struct Server {
    socket: PathBuf,
    file: PathBuf,
    child: Option<Child>,
}

impl Server {
    fn start(scratch: &Scratch) -> Result<Server> {
        let file = scratch.join("source.raw");
        patchy_file(&file, SOURCE_BYTES)?;
        // Something in the last, half block.
        let last = OpenOptions::new().write(true).open(&file)?;
        last.write_all_at(&[7; 1000], SOURCE_BYTES - 1000)?;
        let mut server = Server { socket: scratch.join("source.sock"), file, child: None };
        server.begin()?;
        Ok(server)
    }

    fn begin(&mut self) -> Result<()> {
        let _ = fs::remove_file(&self.socket);
        let path = self.file.with_extension("log");
        let log = OpenOptions::new().create(true).append(true).open(path)?;
        let qemu = Tool::new("qemu-nbd").words("-r -t -e 8 -f raw -x disk -k");
        self.child = Some(qemu.arg(&self.socket).arg(&self.file).spawn(log)?);
        wait_until("qemu-nbd listens", || Ok(self.socket.exists()))
    }

    fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("it does not run")?;
        Ok(kill_process(Pid::from_child(child), signal)?)
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.socket.display())
    }

    /// What a volume shows of it: whole blocks.
    fn content(&self) -> Result<Vec<u8>> {
        let mut content = fs::read(&self.file)?;
        content.resize(content.len().next_multiple_of(4096), 0);
        Ok(content)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn create(node: &Node, name: &str, from: &str) -> Result<()> {
    node.dog(&format!("volume create {name} --from")).arg(from).ok().map(|_| ())
}

fn is_filled(node: &Node, name: &str) -> Result<bool> {
    Ok(node.dog_json(&format!("volume info {name}"))?["origin"].is_null())
}

fn wait_filled(node: &Node, name: &str) -> Result<()> {
    wait_until("it is filled", || is_filled(node, name))
}

fn info(node: &Node, name: &str) -> Result<String> {
    node.dog_ok(&format!("volume info {name}"))
}

fn attach(node: &Node, name: &str) -> Result<Peer> {
    let mut peer = Peer::unix(&node.nbd_socket())?;
    peer.greet()?;
    peer.go(name)?.map_err(|refusal| anyhow::anyhow!(refusal.0))?;
    Ok(peer)
}

/// The kinds of the layers that a tree shows.
fn kinds(node: &Node) -> Result<Vec<String>> {
    let layers = node.dog_json("volume tree")?;
    let layers = layers.as_array().context("no list of layers")?;
    Ok(layers.iter().filter_map(|layer| layer["kind"].as_str().map(str::to_owned)).collect())
}

#[test]
fn a_volume_has_what_its_source_has_from_the_first_second_and_needs_it_no_more_in_the_end()
-> Result<()> {
    let scratch = Scratch::new()?;
    let mut server = Server::start(&scratch)?;
    let mut node = Node::start(&scratch.join("data"), &["--fill-rate", "6M"])?;
    create(&node, "v", &server.uri())?;
    ensure!(content(&node, "v")? == server.content()?, "it is another content");
    let compared = Tool::new("qemu-img").words("compare -f raw -F raw").arg(node.uri("v"));
    compared.arg(&server.file).ok()?;
    let map = node.dog_json("volume map v")?;
    ensure!(map.as_array().is_some_and(|runs| runs.len() > 4), "holes are not told: {map}");
    ensure!(!is_filled(&node, "v")?, "it was filled before it was looked at");
    let described = info(&node, "v")?;
    ensure!(described.contains(&format!("Source:       {}", server.uri())), "{described}");
    ensure!(described.contains("Filling:"), "{described}");
    ensure!(kinds(&node)? == ["source", "head"]);
    let tree = node.dog_ok("volume tree")?;
    ensure!(tree.contains(&server.uri()), "{tree}");
    wait_until("the pace is told", || Ok(info(&node, "v")?.contains("/s, ")))?;
    wait_filled(&node, "v")?;
    server.kill()?;
    fs::rename(&server.file, scratch.join("gone"))?;
    server.file = scratch.join("gone");
    ensure!(kinds(&node)? == ["head"]);
    ensure!(content(&node, "v")? == server.content()?, "it is another content now");
    let used = node.used_bytes("v")?;
    ensure!(used <= 11 * MIB, "zeros of the source take space: {used}");
    node.kill()?;
    node.begin()?;
    ensure!(content(&node, "v")? == server.content()?, "it is another content now");
    let status = node.dog_json("status")?;
    ensure!(status["healthy"] == true, "{status}");
    Ok(())
}

#[test]
fn writes_and_what_was_never_written_survive_kill_9_of_either_side() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut server = Server::start(&scratch)?;
    let base = server.content()?;
    let data = scratch.join("data");
    let mut node = Node::start(&data, &["--fill-rate", "1M"])?;
    create(&node, "v", &server.uri())?;
    let load = Load::start(&node.nbd_socket(), "v", base);
    for round in 0..4 {
        load.wait_for_writes(200)?;
        server.kill()?;
        std::thread::sleep(Duration::from_millis(200 * round));
        if round % 2 == 1 {
            node.kill()?;
            node.begin()?;
        }
        server.begin()?;
        load.wait_for_writes(100)?;
        node.kill()?;
        if round % 2 == 0 {
            server.kill()?;
            server.begin()?;
        }
        node.begin()?;
    }
    load.wait_for_writes(100)?;
    let history = load.stop()?;
    node.dog_ok("volume snapshot v@half")?;
    let found = content(&node, "v")?;
    history.check_latest(&found)?;
    ensure!(!is_filled(&node, "v")?, "it was filled too early to show anything");
    drop(node);
    let node = Node::start(&data, &["--fill-rate", "0"])?;
    wait_filled(&node, "v")?;
    ensure!(content(&node, "v")? == found, "filling changed it");
    ensure!(content(&node, "v@half")? == found, "its snapshot shows something else");
    // The snapshot was taken before all was there: it shows the source until it is deleted.
    ensure!(kinds(&node)?.contains(&"source".to_owned()));
    node.dog_ok("volume delete v@half --yes")?;
    ensure!(kinds(&node)? == ["head"]);
    ensure!(content(&node, "v")? == found, "deleting its snapshot changed it");
    Ok(())
}

#[test]
fn a_source_that_is_away_is_waited_for_and_everything_else_goes_on() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut server = Server::start(&scratch)?;
    let wanted = server.content()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    create(&node, "v", &server.uri())?;
    node.dog_ok("volume flatten v --stop")?;
    let mut peer = attach(&node, "v")?;
    peer.request(command::WRITE, 1, 0, 8192)?;
    peer.send(&[9; 8192])?;
    ensure!(peer.reply()? == (0, 1));
    server.kill()?;
    // Right away, and again when it has been found out.
    peer.request(command::READ, 2, 18 * MIB, 4096)?;
    wait_until("it says what it waits for", || {
        Ok(info(&node, "v")?.contains(&format!("waiting for {} (", server.uri())))
    })?;
    let status = node.dog("status").run()?;
    ensure!(status.code == Some(1) && status.text().contains("waiting for nbd+unix"), "{status}");
    peer.request(command::WRITE, 3, 20 * MIB, 4096)?;
    peer.send(&[8; 4096])?;
    ensure!(peer.reply()? == (0, 3), "a write of a whole block waits");
    peer.request(command::READ, 4, 4096, 4096)?;
    ensure!(peer.reply()? == (0, 4) && peer.payload(4096)? == [9; 4096]);
    peer.request(command::FLUSH, 5, 0, 0)?;
    ensure!(peer.reply()? == (0, 5));
    node.dog_ok("volume snapshot v@while-away")?;
    // Another one comes in its place.
    let file = OpenOptions::new().write(true).open(&server.file)?;
    file.set_len(SOURCE_BYTES + 4096)?;
    server.begin()?;
    let size = format!("and had {SOURCE_BYTES} when the volume was made");
    wait_until("another size is told", || Ok(info(&node, "v")?.contains(&size)))?;
    server.kill()?;
    file.set_len(SOURCE_BYTES)?;
    server.begin()?;
    // It goes on by itself.
    ensure!(peer.reply()? == (0, 2));
    let place = 18 * MIB as usize;
    ensure!(peer.payload(4096)? == wanted[place..place + 4096]);
    // A server that hangs keeps nobody waiting but those who want something of it.
    server.signal(Signal::STOP)?;
    peer.request(command::READ, 6, 19 * MIB, 4096)?;
    wait_until("it is told", || Ok(info(&node, "v")?.contains("(it does not answer)")))?;
    peer.request(command::READ, 7, 4096, 4096)?;
    ensure!(peer.reply()? == (0, 7) && peer.payload(4096)? == [9; 4096]);
    node.dog_ok("volume create other 8M")?;
    server.signal(Signal::CONT)?;
    ensure!(peer.reply()? == (0, 6));
    peer.payload(4096)?;
    // The guest goes while it waits: the volume is given back, and the node stops.
    server.kill()?;
    peer.request(command::READ, 8, 17 * MIB, 4096)?;
    wait_until("it waits", || Ok(info(&node, "v")?.contains("waiting for nbd+unix")))?;
    drop(peer);
    wait_until("it is given back", || Ok(node.dog_json("volume info v")?["attachment"].is_null()))?;
    node.dog_ok("volume flatten v")?;
    wait_until("the filling says why it waits", || {
        let volume = node.dog_json("volume info v")?;
        Ok(volume["flatten"]["waiting"].as_str().is_some_and(|why| why.contains("nbd+unix")))
    })?;
    let before = Instant::now();
    node.stop()?;
    ensure!(before.elapsed() < Duration::from_secs(8), "the stop took {:?}", before.elapsed());
    server.begin()?;
    node.begin()?;
    wait_filled(&node, "v")?;
    let mut wanted = wanted;
    wanted[..8192].fill(9);
    wanted[20 * MIB as usize..][..4096].fill(8);
    ensure!(content(&node, "v")? == wanted, "it is another content");
    ensure!(content(&node, "v@while-away")? == wanted, "its snapshot is another content");
    Ok(())
}

#[test]
fn filling_goes_on_where_it_was_after_kill_9() -> Result<()> {
    let scratch = Scratch::new()?;
    let file = scratch.join("random.raw");
    let dd = format!("if=/dev/urandom of={} bs=1M count=40 status=none", file.display());
    Tool::new("dd").words(&dd).ok()?;
    let data = scratch.join("data");
    let mut node = Node::start(&data, &["--fill-rate", "4M"])?;
    // A path is as good, and so is one that begins here.
    let name = file.file_name().context("it has a name")?;
    node.dog("volume create v --from").arg(name).directory(scratch.path()).ok()?;
    wait_until("a half is there", || Ok(node.used_bytes("v")? > 16 * MIB))?;
    node.dog_ok("volume flush v")?;
    let before = node.used_bytes("v")?;
    node.kill()?;
    node.begin()?;
    let after = node.used_bytes("v")?;
    ensure!(after >= before && after < 40 * MIB, "{before} became {after}");
    wait_until("it goes on", || Ok(node.used_bytes("v")? > after))?;
    // It was not begun anew: what is there is only looked at.
    let done = node.dog_json("volume info v")?["flatten"]["done_bytes"].as_u64();
    ensure!(done.is_some_and(|done| done >= before), "{done:?} of {before} are done");
    wait_filled(&node, "v")?;
    let wanted = fs::read(&file)?;
    fs::remove_file(&file)?;
    ensure!(content(&node, "v")? == wanted, "it is another content");
    Ok(())
}

#[test]
fn a_file_that_shrinks_is_an_error_and_not_zeros() -> Result<()> {
    let scratch = Scratch::new()?;
    let file = scratch.join("source.raw");
    patchy_file(&file, 32 * MIB)?;
    let wanted = fs::read(&file)?;
    let node = Node::start(&scratch.join("data"), &["--fill-rate", "1M"])?;
    create(&node, "v", &format!("file://{}", file.display()))?;
    let open = OpenOptions::new().write(true).open(&file)?;
    open.set_len(18 * MIB)?;
    let told = format!("it has {} bytes now and had {}", 18 * MIB, 32 * MIB);
    wait_until("it is told", || Ok(info(&node, "v")?.contains(&told)))?;
    open.set_len(32 * MIB)?;
    open.write_all_at(&wanted, 0)?;
    let waited = node.dog("volume flatten v --wait").run()?;
    ensure!(waited.code == Some(0), "{waited}");
    fs::remove_file(&file)?;
    ensure!(content(&node, "v")? == wanted, "it is another content");
    Ok(())
}

/// A port that nobody listens on just now.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A server that takes connections and says nothing.
fn deaf(path: &Path) -> Result<UnixListener> {
    UnixListener::bind(path).with_context(|| format!("cannot bind {}", path.display()))
}

#[test]
fn what_cannot_be_a_source_is_refused_in_one_sentence_and_no_volume_is_made() -> Result<()> {
    let scratch = Scratch::new()?;
    let server = Server::start(&scratch)?;
    let node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create there 8M")?;
    let empty = scratch.join("empty.raw");
    File::create(&empty)?;
    let huge = scratch.join("huge.raw");
    let _deaf = deaf(&scratch.join("deaf.sock"))?;
    let local = |name: &str| format!("nbd+unix:///disk?socket={}", scratch.join(name).display());
    let own = |name: &str| format!("nbd+unix:///{name}?socket={}", node.nbd_socket().display());
    let mut refusals = vec![
        ("nbd://127.0.0.1:1/e".to_owned(), "", "connection refused"),
        (local("nothing.sock"), "", "no such file or socket"),
        (local("deaf.sock"), "", "it does not answer"),
        (server.uri().replace("/disk", "/other"), "", "it has no export named \"other\""),
        (server.uri(), "8M", "the new volume would have only 8388608"),
        (empty.display().to_string(), "", "is empty; name a source that holds something"),
        (scratch.join("missing").display().to_string(), "", "no such file or socket"),
        (scratch.path().display().to_string(), "", "neither a regular file nor a block device"),
        (own("there"), "", "take a snapshot of it and clone that"),
        (own("new"), "", "it has no export named \"new\""),
    ];
    // Where the file system takes files that long.
    if File::create(&huge)?.set_len((1 << 50) + 4096).is_ok() {
        refusals.push((huge.display().to_string(), "", "name a smaller source"));
    }
    for (from, told) in [
        ("nbds://h/e", "NBD over TLS is not built yet"),
        ("http://h/e", "http:// is not a kind of source"),
        ("nbd://h:x/e", "is no port"),
    ] {
        let refused = node.dog("volume create new --from").arg(from).run()?;
        ensure!(refused.code == Some(2), "{refused}");
        refusals.push((from.to_owned(), "", told));
    }
    for (from, size, told) in refusals {
        let refused = node.dog(&format!("volume create new {size} --from")).arg(&from).run()?;
        ensure!(refused.code != Some(0) && refused.stderr.contains(told), "{refused}");
        ensure!(refused.stderr.trim().lines().count() == 1, "{refused}");
    }
    let refused = node.dog("volume create there --from").arg(server.uri()).run()?;
    ensure!(refused.code == Some(4), "{refused}");
    let volumes = node.dog_json("volume list")?;
    ensure!(volumes.as_array().is_some_and(|volumes| volumes.len() == 1), "{volumes}");
    Ok(())
}

#[test]
fn an_export_of_this_very_node_is_no_source_and_nothing_can_wait_for_itself() -> Result<()> {
    let scratch = Scratch::new()?;
    let port = format!("127.0.0.1:{}", free_port()?);
    let node = Node::start(&scratch.join("data"), &["--nbd-listen", &port])?;
    node.dog_ok("volume create a 8M")?;
    node.dog_ok("volume snapshot a@s")?;
    let own = format!("nbd+unix:///a@s?socket={}", node.nbd_socket().display());
    for address in [own, format!("nbd://{port}/a%40s")] {
        let refused = node.dog("volume create b --from").arg(address).run()?;
        let told = refused.stderr.contains("clone it with `dog volume clone a@s NEW`");
        ensure!(refused.code != Some(0) && told, "{refused}");
    }
    // The node was asked by itself, and has let go of the snapshot.
    node.dog_ok("volume clone a@s b")?;
    wait_until("the snapshot is given back", || {
        let snapshot = node.dog_json("volume info a@s")?;
        Ok(snapshot["readers"].as_array().is_some_and(Vec::is_empty))
    })?;
    Ok(())
}

#[test]
fn a_client_waits_for_the_filling_and_may_be_interrupted() -> Result<()> {
    let scratch = Scratch::new()?;
    let server = Server::start(&scratch)?;
    let node = Node::start(&scratch.join("data"), &["--fill-rate", "4M"])?;
    let output = File::create(scratch.join("dog.log"))?;
    let create = node.dog("volume create v --wait --from").arg(server.uri());
    let mut dog = create.spawn(output)?;
    wait_until("the volume is there", || {
        Ok(node.dog_json("volume list")?.as_array().is_some_and(|volumes| !volumes.is_empty()))
    })?;
    kill_process(Pid::from_child(&dog), Signal::INT)?;
    ensure!(dog.wait()?.code() == Some(130));
    let said = fs::read_to_string(scratch.join("dog.log"))?;
    ensure!(said.contains("goes on in the background"), "{said}");
    node.dog_ok("volume flatten v --stop")?;
    let stopped = info(&node, "v")?;
    ensure!(stopped.contains("Filling:      stopped"), "{stopped}");
    ensure!(!is_filled(&node, "v")?);
    let waited = node.dog_ok("volume flatten v --wait")?;
    ensure!(waited.contains("needs nothing but itself"), "{waited}");
    let other = node.dog("volume create w 40M --wait --from").arg(server.uri()).ok()?;
    ensure!(other.contains("has all of its source"), "{other}");
    let mut wanted = server.content()?;
    wanted.resize(40 * MIB as usize, 0);
    ensure!(content(&node, "w")? == wanted, "it is another content");
    Ok(())
}
