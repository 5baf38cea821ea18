//! What differs from a snapshot: told to other people's clients, and carried to a copy, which is
//! the original byte for byte whatever is damaged, killed or interrupted on the way.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::nbd::{Peer, command, option};
use e2e::{Node, Scratch, Tool, ToolOutput, content, dog};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{PipeWriter, Write};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(60);

fn same(node: &Node, one: &str, other: &str) -> Result<()> {
    let (found, expected) = (content(node, one)?, content(node, other)?);
    ensure!(found.len() == expected.len(), "{one} has {} bytes", found.len());
    let place = (0..found.len()).find(|&place| found[place] != expected[place]);
    ensure!(place.is_none(), "byte {place:?} of {one} is not that of {other}");
    Ok(())
}

/// No import is under way or left over, not in the trash either.
fn nothing_left(node: &Node) -> Result<()> {
    for list in ["volume list", "trash list"] {
        let list = node.dog_ok(list)?;
        ensure!(!list.contains(".import"), "{list}");
    }
    let status = node.dog_ok("status")?;
    ensure!(!status.contains("warning"), "{status}");
    Ok(())
}

/// Waits until the daemon knows that nobody receives changes into `copy`, and tells what is left.
fn left_over(node: &Node) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let list = loop {
        let list = node.dog_ok("volume list")?;
        if list.contains("marks an unfinished import of changes into copy, begun 20") {
            break list;
        }
        ensure!(Instant::now() < deadline, "nobody sees that it is not finished: {list}");
    };
    ensure!(!list.contains("unfinished import of copy"), "{list}");
    let status = node.dog_ok("status")?;
    ensure!(status.contains("dog volume import-diff FILE copy --resume"), "{status}");
    Ok(())
}

/// The stream of these ends.
fn stream(node: &Node, ends: &str) -> Result<Vec<u8>> {
    let output = node.dog(&format!("volume export-diff {ends} -")).run()?;
    ensure!(output.code == Some(0), "{output}");
    Ok(output.stdout)
}

fn receive(node: &Node, stream: &[u8], words: &str) -> Result<ToolOutput> {
    node.dog(&format!("volume import-diff - {words}")).input(stream).run()
}

fn receive_ok(node: &Node, stream: &[u8], words: &str) -> Result<()> {
    let output = receive(node, stream, words)?;
    ensure!(output.code == Some(0), "{output}");
    Ok(())
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % bound as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}

/// Something happens to a volume of `bytes`; gives back its size after it.
fn live_a_little(node: &Node, name: &str, bytes: usize, random: &mut Random) -> Result<usize> {
    let unit = BLOCK * (1 + random.below(3) * random.below(40));
    let (blocks, length) = (bytes / BLOCK, unit.min(bytes));
    let offset = random.below(blocks - length / BLOCK + 1) * BLOCK;
    match random.below(10) {
        0..=4 => {
            let odd = 512 * random.below(4);
            let content = random.bytes(length - odd);
            let place = format!("volume write {name} --offset {}", offset + odd);
            node.dog(&place).input(content).ok()?;
        }
        5 => {
            let place = format!("volume write {name} --offset {offset}");
            node.dog(&place).input(vec![0; length]).ok()?;
        }
        6 => {
            node.dog_ok(&format!("volume zero {name} --offset {offset} --length {length}"))?;
        }
        7 | 8 => {
            node.dog_ok(&format!("volume discard {name} --offset {offset} --length {length}"))?;
        }
        _ => {
            let bytes = BLOCK * (512 + random.below(2048));
            node.dog_ok(&format!("volume resize {name} {bytes} --allow-shrink"))?;
            return Ok(bytes);
        }
    }
    Ok(bytes)
}

#[test]
fn chains_of_streams_equal_the_original_over_random_histories() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    let mut random = Random(20_261_128);
    for name in ["v0", "v1"] {
        let mut bytes = 8 * MIB;
        node.dog_ok(&format!("volume create {name} {bytes}"))?;
        // The second one is a clone: what shows through is part of what is carried.
        if name == "v1" {
            node.dog_ok("volume delete v1 --yes")?;
            node.dog_ok("volume clone v0@s3 v1")?;
            bytes = content(&node, "v1")?.len();
        }
        for round in 0..6 {
            for _ in 0..6 {
                bytes = live_a_little(&node, name, bytes, &mut random)?;
            }
            if name == "v1" && round == 3 {
                node.dog_ok("volume flatten v1 --wait")?;
            }
            node.dog_ok(&format!("volume snapshot {name}@s{round}"))?;
            let (to, copy) = (format!("{name}@s{round}"), format!("copy-{name}"));
            let ends = match round {
                0 => format!("--full {to}"),
                _ => format!("{name}@s{} {to}", round - 1),
            };
            if round % 2 == 0 {
                receive_ok(&node, &stream(&node, &ends)?, &copy)?;
            } else {
                let file = scratch.join("changes");
                node.dog(&format!("volume export-diff --overwrite {ends}")).arg(&file).ok()?;
                node.dog("volume import-diff").arg(&file).arg(&copy).ok()?;
                let again = node.dog("volume import-diff").arg(&file).arg(&copy).run()?;
                let told = again.stderr.contains(&format!("{copy}@s{round} already"));
                ensure!(again.code == Some(4) && told, "{again}");
            }
            same(&node, &format!("{copy}@s{round}"), &to)?;
            same(&node, &copy, &to)?;
        }
        // Across several snapshots at once, and to the volume as it is.
        receive_ok(&node, &stream(&node, &format!("--full {name}@s1"))?, &format!("late-{name}"))?;
        live_a_little(&node, name, bytes, &mut random)?;
        let output = stream(&node, &format!("{name}@s1 {name}"))?;
        receive_ok(&node, &output, &format!("late-{name}"))?;
        same(&node, &format!("late-{name}"), name)?;
        nothing_left(&node)?;
    }
    node.stop()
}

/// A volume `v` with snapshots a and b, and `copy` that is what v was at a.
fn pair(node: &Node, changed: usize) -> Result<()> {
    node.dog_ok("volume create v 64M")?;
    let mut random = Random(7);
    node.dog("volume write v --offset 0").input(random.bytes(MIB)).ok()?;
    node.dog_ok("volume snapshot v@a")?;
    receive_ok(node, &stream(node, "--full v@a")?, "copy")?;
    node.dog("volume write v --offset 8M").input(random.bytes(changed)).ok()?;
    node.dog_ok("volume discard v --offset 64K --length 64K")?;
    node.dog_ok("volume snapshot v@b")?;
    Ok(())
}

/// The copy is what v was at a, and nothing else is there.
fn unchanged(node: &Node) -> Result<()> {
    same(node, "copy", "v@a")?;
    let diff = node.dog_json("volume diff copy@a")?;
    ensure!(diff["changed"].as_array().is_some_and(Vec::is_empty), "{diff}");
    nothing_left(node)
}

#[test]
fn a_damaged_stream_is_refused_with_its_place_and_the_target_is_unchanged() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    pair(&node, 2 * MIB + MIB / 2)?;
    let whole = stream(&node, "v@a v@b")?;
    let head =
        usize::from_le_bytes([&whole[12..16], &[0; 4]].concat().try_into().expect("eight bytes"));
    let second = head + 32;
    let spoil = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let file = scratch.join("changes");
    // What is wrong, the place of it in the stream, and up to where in the volume all was well.
    let end = whole.len() - 64;
    let cases: [(Vec<u8>, usize, Option<usize>); 9] = [
        (spoil(3), 0, None),
        (spoil(50), 0, None),
        (spoil(head + 9), head, Some(0)),
        (spoil(second + 5), second, Some(128 << 10)),
        (spoil(second + 32 + 700_000), second, Some(128 << 10)),
        (spoil(end - 5), end - 32 - MIB / 2, Some(10 * MIB)),
        (spoil(end + 40), end, Some(10 * MIB + MIB / 2)),
        (whole[..second + 32 + MIB + 100].to_vec(), second + 32 + MIB + 100, Some(9 * MIB)),
        ([&whole[..], b"more"].concat(), whole.len(), Some(64 * MIB)),
    ];
    for (bytes, at, volume_at) in cases {
        fs::write(&file, &bytes)?;
        let from_file = node.dog("volume import-diff").arg(&file).arg("copy").run()?;
        for output in [from_file, receive(&node, &bytes, "copy")?] {
            ensure!(output.code == Some(1), "{output}");
            ensure!(output.stderr.contains(&format!(", at byte {at} of the stream")), "{output}");
            if let Some(offset) = volume_at {
                ensure!(output.stderr.contains(&format!("before byte {offset};")), "{output}");
            }
            unchanged(&node)?;
        }
    }
    // Streams that are whole, and not for this volume.
    node.dog_ok("volume create other 64M")?;
    node.dog("volume write other --offset 0").input(vec![9; MIB]).ok()?;
    for tag in ["a", "b"] {
        node.dog_ok(&format!("volume snapshot other@{tag}"))?;
    }
    let foreign = stream(&node, "other@a other@b")?;
    let full = stream(&node, "--full v@a")?;
    node.dog_ok("volume snapshot v@c")?;
    let late = stream(&node, "v@b v@c")?;
    for (bytes, word) in
        [(foreign, "another volume"), (full, "exists"), (late, "newest snapshot of volume copy")]
    {
        let output = receive(&node, &bytes, "copy")?;
        ensure!(output.code == Some(4) && output.stderr.contains(word), "{output}");
        unchanged(&node)?;
    }
    // A target that was written since, or that somebody has.
    node.dog("volume write copy --offset 32M").input(vec![1; BLOCK]).ok()?;
    let output = receive(&node, &whole, "copy")?;
    ensure!(output.code == Some(4), "{output}");
    ensure!(output.stderr.contains("was written since (4.0 KiB)"), "{output}");
    node.dog_ok("volume rollback copy@a --yes")?;
    receive_ok(&node, &whole, "copy")?;
    same(&node, "copy@b", "v@b")?;
    node.stop()
}

/// An import that reads a pipe which the test fills.
struct Importing {
    child: Child,
    pipe: Option<PipeWriter>,
}

impl Importing {
    fn begin(node: &Node, scratch: &Path, words: &str) -> Result<Importing> {
        let (reader, writer) = std::io::pipe()?;
        let child = Command::new(dog())
            .arg("--data")
            .arg(node.data())
            .args("volume import-diff -".split(' '))
            .args(words.split(' '))
            .stdin(reader)
            .stdout(File::create(scratch.join("out"))?)
            .stderr(File::create(scratch.join("err"))?)
            .spawn()?;
        Ok(Importing { child, pipe: Some(writer) })
    }

    /// Fills the pipe, and waits until the target has so many bytes.
    fn feed(&mut self, node: &Node, bytes: &[u8], used: u64) -> Result<()> {
        self.pipe.as_mut().context("it was closed")?.write_all(bytes)?;
        let deadline = Instant::now() + PATIENCE;
        while node.used_bytes("copy")? < used {
            ensure!(Instant::now() < deadline, "the import does not come as far");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn end(mut self, scratch: &Path) -> Result<(Option<i32>, String)> {
        self.pipe = None;
        let status = self.child.wait()?;
        Ok((status.code(), fs::read_to_string(scratch.join("err"))?))
    }
}

/// The number behind `--start` in what was said.
fn start_of(said: &str) -> Result<u64> {
    let (_, rest) = said.split_once("--start ").with_context(|| said.to_owned())?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

/// What is there of a broken import is only gone on with if nobody has had the copy since.
#[test]
fn what_happens_to_a_copy_between_import_and_resume_never_ends_in_a_mixture() -> Result<()> {
    let happenings: [&[&str]; 3] = [
        // A snapshot of its own, then back to where the import began.
        &["volume snapshot copy@own", "volume rollback copy@a --yes"],
        &["volume snapshot copy@own"],
        &["volume write copy --offset 0"],
    ];
    let scratch = Scratch::new()?;
    let node = Node::start(&scratch.join("data"), &[])?;
    pair(&node, 40 * MIB)?;
    let whole = stream(&node, "v@a v@b")?;
    for happening in happenings {
        let broken = receive(&node, &whole[..30 * MIB], "copy --keep-partial")?;
        ensure!(broken.code != Some(0), "{broken}");
        for command in happening {
            node.dog(command).input(vec![9; 4096]).ok()?;
        }
        let before = node.dog("volume export copy -").run()?.stdout;
        let resumed = receive(&node, &whole, "copy --resume")?;
        ensure!(resumed.code == Some(4) && resumed.stderr.lines().count() == 1, "{resumed}");
        let after = node.dog("volume export copy -").run()?.stdout;
        ensure!(before == after, "a refused import changed the copy after {happening:?}");
        // The way back that the manual tells.
        if node.dog("volume info copy@own").run()?.code == Some(0) {
            node.dog_ok("volume rollback copy@a --yes")?;
            node.dog_ok("volume delete copy@own --yes")?;
        } else {
            node.dog_ok("volume rollback copy@a --yes")?;
        }
    }
    // Another stream than the one that was begun is refused without touching what has arrived.
    let broken = receive(&node, &whole[..30 * MIB], "copy --keep-partial")?;
    ensure!(broken.code != Some(0), "{broken}");
    let start = start_of(&broken.stderr)?;
    let refused = receive(&node, &stream(&node, "--full v@b")?, "copy --resume")?;
    ensure!(refused.code == Some(4), "{refused}");
    // Only what is missing is sent: all that had arrived is still there.
    receive_ok(&node, &stream(&node, &format!("v@a v@b --start {start}"))?, "copy --resume")?;
    same(&node, "copy@b", "v@b")?;
    nothing_left(&node)
}

#[test]
fn a_killed_dog_leaves_a_trace_and_the_import_goes_on_where_it_was() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    pair(&node, 40 * MIB)?;
    let whole = stream(&node, "v@a v@b")?;
    let mut importing = Importing::begin(&node, scratch.path(), "copy")?;
    importing.feed(&node, &whole[..30 * MIB], 22 * MIB as u64)?;
    importing.child.kill()?;
    importing.end(scratch.path())?;
    left_over(&node)?;

    // Nobody goes on by accident, and the state is told.
    let told = receive(&node, &whole, "copy")?;
    ensure!(told.code == Some(4) && told.stderr.contains("--resume"), "{told}");
    let start = start_of(&told.stderr)?;
    ensure!(start >= 16 * MIB as u64 && start < 48 * MIB as u64, "{told}");
    let too_late = stream(&node, &format!("v@a v@b --start {}", start + BLOCK as u64))?;
    let refused = receive(&node, &too_late, "copy --resume")?;
    ensure!(refused.code == Some(4) && refused.stderr.contains("has arrived"), "{refused}");
    // Only the rest is sent, and a part of that is killed again.
    let rest = stream(&node, &format!("v@a v@b --start {start}"))?;
    ensure!(rest.len() < whole.len() - 15 * MIB, "the rest has {} bytes", rest.len());
    receive_ok(&node, &rest, "copy --resume")?;
    same(&node, "copy@b", "v@b")?;
    same(&node, "copy", "v@b")?;
    nothing_left(&node)?;

    // A full one too, with all of the stream again.
    let full = stream(&node, "--full v@b")?;
    node.dog_ok("volume delete copy --with-snapshots --now --yes")?;
    let mut importing = Importing::begin(&node, scratch.path(), "copy")?;
    importing.feed(&node, &full[..30 * MIB], 22 * MIB as u64)?;
    importing.child.kill()?;
    importing.end(scratch.path())?;
    left_over(&node)?;
    let told = receive(&node, &full, "copy")?;
    ensure!(told.code == Some(4) && told.stderr.contains("--resume"), "{told}");
    receive_ok(&node, &full, "copy --resume")?;
    same(&node, "copy@b", "v@b")?;
    nothing_left(&node)?;
    node.stop()
}

#[test]
fn a_killed_sheep_ends_the_import_and_another_stream_begins_anew() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    pair(&node, 40 * MIB)?;
    let whole = stream(&node, "v@a v@b")?;
    let mut importing = Importing::begin(&node, scratch.path(), "copy")?;
    importing.feed(&node, &whole[..30 * MIB], 22 * MIB as u64)?;
    node.kill()?;
    // It may end before it has read everything.
    let _ = importing.pipe.as_mut().context("a pipe")?.write_all(&whole[30 * MIB..]);
    let (code, said) = importing.end(scratch.path())?;
    ensure!(code == Some(1) && said.contains("--resume"), "{code:?}: {said}");
    node.begin()?;
    receive_ok(&node, &whole, "copy --resume")?;
    same(&node, "copy@b", "v@b")?;
    nothing_left(&node)?;

    // What was begun with one stream is not mixed with another: v itself changes meanwhile.
    node.dog_ok("volume delete copy@b --yes")?;
    node.dog_ok("volume rollback copy@a --yes")?;
    let mut importing = Importing::begin(&node, scratch.path(), "copy")?;
    importing.feed(&node, &whole[..30 * MIB], 22 * MIB as u64)?;
    importing.child.kill()?;
    importing.end(scratch.path())?;
    node.dog_ok("volume rollback v@a --yes")?;
    node.dog("volume write v --offset 60M").input(vec![5; MIB]).ok()?;
    let live = stream(&node, "v@a v")?;
    receive_ok(&node, &live, "copy --resume")?;
    same(&node, "copy", "v")?;
    nothing_left(&node)?;
    node.stop()
}

#[test]
fn an_interrupted_import_of_changes_is_undone_or_kept_as_asked() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    pair(&node, 40 * MIB)?;
    let whole = stream(&node, "v@a v@b")?;
    for signal in [Signal::INT, Signal::TERM] {
        let mut importing = Importing::begin(&node, scratch.path(), "copy")?;
        importing.feed(&node, &whole[..30 * MIB], 22 * MIB as u64)?;
        kill_process(Pid::from_child(&importing.child), signal)?;
        let code = importing.child.wait()?.code();
        let said = fs::read_to_string(scratch.join("err"))?;
        ensure!(code == Some(130) && said.contains("is what it was at copy@a"), "{code:?}: {said}");
        unchanged(&node)?;
    }
    // A stream that breaks off is kept when that was asked for, up to the last whole record.
    let broken = receive(&node, &whole[..30 * MIB], "copy --keep-partial")?;
    ensure!(broken.code == Some(1), "{broken}");
    let start = start_of(&broken.stderr)?;
    ensure!(start >= 36 * MIB as u64, "{broken}");
    receive_ok(&node, &stream(&node, &format!("v@a v@b --start {start}"))?, "copy --resume")?;
    same(&node, "copy@b", "v@b")?;
    nothing_left(&node)?;
    // Half a new volume is of no use to anybody: it is deleted for good.
    let full = stream(&node, "--full v@b")?;
    let broken = receive(&node, &full[..30 * MIB], "fresh")?;
    ensure!(broken.code == Some(1) && broken.stderr.contains("fresh was deleted"), "{broken}");
    for list in ["volume list", "trash list"] {
        let list = node.dog_ok(list)?;
        ensure!(!list.contains("fresh"), "{list}");
    }
    nothing_left(&node)?;
    node.stop()
}

/// Of all of `v` in one question, in two contexts.
fn extended_headers_tell_the_same(node: &Node) -> Result<()> {
    let mut peer = Peer::unix(&node.nbd_socket())?;
    peer.greet()?;
    peer.option(option::EXTENDED_HEADERS, &[])?;
    ensure!(!peer.option_reply()?.is_error(), "no extended headers");
    let mut chosen = b"\0\0\0\x01v\0\0\0\x02".to_vec();
    for context in ["base:allocation", "sheepdog:dirty/a"] {
        chosen.extend((context.len() as u32).to_be_bytes());
        chosen.extend(context.as_bytes());
    }
    peer.option(option::SET_META_CONTEXT, &chosen)?;
    for _ in 0..3 {
        ensure!(!peer.option_reply()?.is_error(), "two contexts, and an end");
    }
    peer.go("v")?.map_err(|refusal| anyhow::anyhow!(refusal.0))?;
    peer.extended_request(0, command::BLOCK_STATUS, 5, 0, 64 << 20)?;
    let k = BLOCK as u64;
    let rest = (64 << 20) - 2 * k;
    let expected: [&[(u64, u64)]; 2] =
        [&[(2 * k, 0), (rest, 3)], &[(k, 0), (k, 1), (k, 3), (rest - k, 0)]];
    for (place, runs) in expected.into_iter().enumerate() {
        let (is_last, reply) = peer.extended_chunk()?;
        ensure!((is_last, reply.kind) == (place == 1, 6), "{is_last}: {reply:?}");
        let mut data = (place as u32 + 1).to_be_bytes().to_vec();
        data.extend((runs.len() as u32).to_be_bytes());
        runs.iter()
            .for_each(|run| data.extend([run.0.to_be_bytes(), run.1.to_be_bytes()].concat()));
        ensure!(reply.data == data, "{reply:?}");
    }
    peer.extended_request(0, command::DISCONNECT, 6, 0, 0)?;
    peer.wait_closed(Duration::from_secs(10))?;
    Ok(())
}

#[test]
fn other_clients_are_told_what_differs() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 64M")?;
    node.dog("volume write v --offset 0").input(vec![1; BLOCK]).ok()?;
    node.dog("volume write v --offset 8K").input(vec![1; BLOCK]).ok()?;
    node.dog_ok("volume snapshot v@a")?;
    node.dog("volume write v --offset 4K").input(vec![1; BLOCK]).ok()?;
    node.dog_ok("volume discard v --offset 8K --length 4K")?;
    node.dog_ok("volume snapshot v@b")?;
    let list = Tool::new("nbdinfo").arg("--list").arg(node.uri("")).ok()?;
    ensure!(list.matches("sheepdog:dirty/a").count() == 2, "{list}");
    ensure!(list.matches("sheepdog:dirty/b").count() == 1, "{list}");
    for export in ["v", "v%40b"] {
        let words = "--json --map=sheepdog:dirty/a";
        let map = Tool::new("nbdinfo").words(words).arg(node.uri(export)).ok()?;
        let map: Vec<serde_json::Value> = serde_json::from_str(&map)?;
        let found: Vec<(u64, u64, u64)> = map
            .iter()
            .map(|run| {
                let number = |key: &str| run[key].as_u64().unwrap_or(u64::MAX);
                (number("offset"), number("length"), number("type"))
            })
            .collect();
        let k = BLOCK as u64;
        let rest = (64 << 20) - 3 * k;
        ensure!(found == [(0, k, 0), (k, k, 1), (2 * k, k, 3), (3 * k, rest, 0)], "{found:?}");
    }
    extended_headers_tell_the_same(&node)?;
    // QEMU takes a set bit 0 for a hole: what differs is what is no data.
    let socket = node.nbd_socket();
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export=v,x-dirty-bitmap=sheepdog:dirty/a",
        socket.display()
    );
    let map = Tool::new("qemu-img").words("map --output=json --image-opts").arg(&options).ok()?;
    let map: Vec<serde_json::Value> = serde_json::from_str(&map)?;
    let holes: Vec<_> = map.iter().filter(|run| run["data"] == false).collect();
    let bytes: u64 = holes.iter().filter_map(|run| run["length"].as_u64()).sum();
    ensure!(holes[0]["start"] == 4096 && bytes == 2 * BLOCK as u64, "{map:?}");
    // After a rollback the branch that was left is not offered.
    node.dog_ok("volume snapshot v@c")?;
    node.dog_ok("volume rollback v@a --yes")?;
    let refused = node.dog_refuses("volume diff v@b")?;
    ensure!(refused.code == Some(4) && refused.stderr.contains("rollback left it"), "{refused}");
    node.dog_ok("volume rollback v@b --yes")?;
    let delete =
        format!("{} --data {} volume delete v@a --yes", dog().display(), node.data().display());
    let path = std::env::var("PATH").unwrap_or_default();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nbdsh/changes.py");
    Tool::new("nbdsh")
        .words("-c -")
        .input(fs::read(script)?)
        .env("PATH", format!("/usr/bin:{path}"))
        .env("SOCKET", node.nbd_socket())
        .env("VOLUME", "v")
        .env("DELETE", delete)
        .ok()?;
    node.stop()
}
