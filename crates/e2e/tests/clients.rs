//! Other people's NBD clients against a live node. What they expect of a server, they expect of
//! any.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{Node, Scratch, Tool, patchy_file};
use std::fs;
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn node(scratch: &Scratch) -> Result<Node> {
    Node::start(&scratch.join("data"), &[])
}

/// A script of `tests/nbdsh` on the volume `v`.
fn nbdsh(node: &Node, script: &str) -> Result<String> {
    // nbdsh takes the first python3 in the path; libnbd's module belongs to the distribution's.
    let path = std::env::var("PATH").unwrap_or_default();
    Tool::new("nbdsh")
        .words("-c -")
        .input(fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nbdsh").join(script))?)
        .env("PATH", format!("/usr/bin:{path}"))
        .env("SOCKET", node.nbd_socket())
        .env("VOLUME", "v")
        .ok()
}

#[test]
fn qemu_img_converts_compares_maps_and_benches() -> Result<()> {
    let scratch = Scratch::new()?;
    let node = node(&scratch)?;
    let file = scratch.join("patchy.raw");
    patchy_file(&file, 64 * MIB)?;
    node.dog_ok("volume create v 64M")?;
    let uri = node.uri("v");

    Tool::new("qemu-img").words("convert -n -f raw -O raw").arg(&file).arg(&uri).ok()?;
    Tool::new("qemu-img").words("compare -f raw -F raw").arg(&file).arg(&uri).ok()?;
    // Ten MiB of random bytes; the MiB of zeros and the holes take nothing.
    ensure!(node.used_bytes("v")? == 10 * MIB, "{} bytes are used", node.used_bytes("v")?);

    let map = Tool::new("qemu-img").words("map --output=json -f raw").arg(&uri).ok()?;
    let map: Vec<serde_json::Value> = serde_json::from_str(&map)?;
    let of_data = map.iter().filter(|extent| extent["data"] == true);
    let data: u64 = of_data.filter_map(|extent| extent["length"].as_u64()).sum();
    ensure!(data == 10 * MIB, "qemu-img sees {data} bytes of data in {map:?}");

    let copy = scratch.join("copy.qcow2");
    Tool::new("qemu-img").words("convert -f raw -O qcow2").arg(&uri).arg(&copy).ok()?;
    Tool::new("qemu-img").words("compare -f raw -F qcow2").arg(&file).arg(&copy).ok()?;
    Tool::new("qemu-img").words("check").arg(&copy).ok()?;

    for words in [
        "-w -c 4000 -d 32 -s 4096",
        "-w -c 2000 -d 16 -s 4096 --flush-interval=32",
        "-c 4000 -d 64 -s 8192",
    ] {
        Tool::new("qemu-img").words("bench -f raw -t none").words(words).arg(&uri).ok()?;
    }
    Ok(())
}

#[test]
fn qemu_io_reads_back_every_pattern() -> Result<()> {
    let scratch = Scratch::new()?;
    let node = node(&scratch)?;
    node.dog_ok("volume create v 32M")?;
    // Aligned, of one sector, across a block, across an object, and at the very end.
    let script = [
        "write -P 0x11 0 64k",
        "write -P 0x22 512 512",
        "write -P 0x33 3584 1024",
        "write -P 0x44 4193792 1024",
        "write -P 0x55 33553920 512",
        "write -f -P 0x66 1M 4k",
        "read -P 0x11 0 512",
        "read -P 0x22 512 512",
        "read -P 0x11 1024 2560",
        "read -P 0x33 3584 1024",
        "read -P 0x11 4608 60928",
        "read -P 0x44 4193792 1024",
        "read -P 0x55 33553920 512",
        "read -P 0x66 1M 4k",
        "read -P 0 2M 1M",
        "write -z 8k 8k",
        "read -P 0 8k 8k",
        "write -z -u 16k 8k",
        "read -P 0 16k 8k",
        "discard 32k 16k",
        "read -P 0 32k 16k",
        "read -P 0x11 48k 16k",
        "flush",
    ];
    let mut tool = Tool::new("qemu-io").words("-f raw -t none -d unmap");
    for command in script {
        tool = tool.arg("-c").arg(command);
    }
    let said = tool.arg(node.uri("v")).ok()?;
    ensure!(!said.contains("Pattern verification failed"), "{said}");
    Ok(())
}

#[test]
fn nbdinfo_sees_what_is_offered() -> Result<()> {
    let scratch = Scratch::new()?;
    let node = node(&scratch)?;
    node.dog_ok("volume create first 64M")?;
    node.dog_ok("volume create second 12M")?;
    let info = Tool::new("nbdinfo").arg("--json").arg(node.uri("first")).ok()?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    ensure!(info["protocol"] == "newstyle-fixed", "{info}");
    let export = &info["exports"][0];
    let expected = [
        ("export-size", serde_json::json!(64 * MIB)),
        ("is_read_only", false.into()),
        ("can_flush", true.into()),
        ("can_fua", true.into()),
        ("can_trim", true.into()),
        ("can_zero", true.into()),
        ("can_fast_zero", true.into()),
        ("can_cache", true.into()),
        ("can_multi_conn", true.into()),
        ("is_rotational", false.into()),
        ("block_size_minimum", 512.into()),
        ("block_size_preferred", 4096.into()),
        ("block_size_maximum", (32 * MIB).into()),
    ];
    for (field, value) in expected {
        ensure!(export[field] == value, "{field} is {} instead of {value}", export[field]);
    }
    let contexts = export["contexts"].as_array().context("no contexts")?;
    ensure!(contexts.iter().any(|context| context == "base:allocation"), "{contexts:?}");

    let socket = node.nbd_socket();
    let list = Tool::new("nbdinfo")
        .words("--list --json")
        .arg(format!("nbd+unix://?socket={}", socket.display()))
        .ok()?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let exports = list["exports"].as_array().context("no exports")?;
    let names: Vec<_> =
        exports.iter().filter_map(|export| export["export-name"].as_str()).collect();
    ensure!(names == ["first", "second"], "{names:?}");

    Tool::new("qemu-io").words("-f raw -c").arg("write -P 1 1M 1M").arg(node.uri("first")).ok()?;
    let map = Tool::new("nbdinfo").words("--map --json").arg(node.uri("first")).ok()?;
    let map: Vec<serde_json::Value> = serde_json::from_str(&map)?;
    let runs: Vec<_> = map
        .iter()
        .map(|run| (run["offset"].as_u64(), run["length"].as_u64(), run["type"].as_u64()))
        .collect();
    let expected = [(0, MIB, 3), (MIB, MIB, 0), (2 * MIB, 62 * MIB, 3)];
    let expected = expected.map(|(offset, length, kind)| (Some(offset), Some(length), Some(kind)));
    ensure!(runs == expected, "{map:?}");
    Ok(())
}

#[test]
fn nbdcopy_there_and_back() -> Result<()> {
    let scratch = Scratch::new()?;
    let node = node(&scratch)?;
    let (file, back) = (scratch.join("patchy.raw"), scratch.join("back.raw"));
    patchy_file(&file, 96 * MIB)?;
    node.dog_ok("volume create v 96M")?;
    // Several connections, many requests each: it does so only where the server allows it.
    Tool::new("nbdcopy")
        .words("--connections=4 --requests=64 --flush")
        .arg(&file)
        .arg(node.uri("v"))
        .ok()?;
    Tool::new("nbdcopy")
        .words("--connections=4 --requests=64")
        .arg(node.uri("v"))
        .arg(&back)
        .ok()?;
    Tool::new("cmp").arg(&file).arg(&back).ok()?;
    // From one volume to another, both on this node.
    node.dog_ok("volume create w 96M")?;
    Tool::new("nbdcopy").arg(node.uri("v")).arg(node.uri("w")).ok()?;
    Tool::new("qemu-img").words("compare -f raw -F raw").arg(&file).arg(node.uri("w")).ok()?;
    Ok(())
}

#[test]
fn nbdsh_tries_every_command_and_every_refusal() -> Result<()> {
    let scratch = Scratch::new()?;
    let node = node(&scratch)?;
    node.dog_ok("volume create v 64M")?;
    nbdsh(&node, "commands.py")?;
    Ok(())
}

#[test]
fn a_second_client_is_refused_with_the_name_of_the_first() -> Result<()> {
    let scratch = Scratch::new()?;
    let node = node(&scratch)?;
    node.dog_ok("volume create v 64M")?;
    nbdsh(&node, "one_writer.py")?;
    // When the first one has gone, the next may have it at once.
    Tool::new("qemu-io").words("-f raw -c").arg("write 0 4k").arg(node.uri("v")).ok()?;
    Ok(())
}

#[test]
fn fio_finds_every_byte_again() -> Result<()> {
    let scratch = Scratch::new()?;
    let node = node(&scratch)?;
    node.dog_ok("volume create v 128M")?;
    for (name, words) in [
        ("4k", "--rw=randwrite --bs=4k --iodepth=32"),
        ("odd", "--rw=randwrite --bsrange=512-48k --blockalign=512 --bs_unaligned=0 --iodepth=16"),
        ("mixed", "--rw=randrw --bs=16k --iodepth=16 --fsync=32"),
        ("big", "--rw=write --bs=1m --iodepth=4"),
    ] {
        let run = |tool: Tool| {
            tool.words("--ioengine=nbd")
                .arg(format!("--name={name}"))
                .arg(format!("--uri={}", node.uri("v")))
                .words("--size=96m --io_size=64m --verify=crc32c --verify_fatal=1")
                .words("--serialize_overlap=1")
                .words("--randseed=1 --output-format=terse")
                .words(words)
                .directory(scratch.path())
                .time_limit(Duration::from_secs(180))
                .ok()
        };
        run(Tool::new("fio").words("--verify_backlog=512")).with_context(|| name.to_owned())?;
    }
    Ok(())
}

#[test]
fn tcp_on_loopback_serves_one_connection_a_volume() -> Result<()> {
    let scratch = Scratch::new()?;
    let port = free_port()?;
    let node = Node::start(&scratch.join("data"), &["--nbd-listen", &format!("127.0.0.1:{port}")])?;
    node.dog_ok("volume create v 64M")?;
    let uri = format!("nbd://127.0.0.1:{port}/v");
    let info = Tool::new("nbdinfo").arg("--json").arg(&uri).ok()?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    // Without certificates every connection is a client of its own, so several must not be
    // promised.
    ensure!(info["exports"][0]["can_multi_conn"] == false, "{info}");
    Tool::new("qemu-io")
        .words("-f raw -c")
        .arg("write -P 7 0 1M")
        .arg("-c")
        .arg("read -P 7 0 1M")
        .arg(&uri)
        .ok()?;
    let mut first = e2e::nbd::Peer::tcp(port)?;
    first.greet()?;
    ensure!(first.go("v")?.is_ok(), "the first connection must have it");
    let mut second = e2e::nbd::Peer::tcp(port)?;
    second.greet()?;
    let refusal = second.go("v")?.err().context("the second connection must be refused")?;
    ensure!(refusal.0.contains("127.0.0.1"), "who holds it? {:?}", refusal.0);
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[test]
fn attach_prints_what_qemu_and_libvirt_take() -> Result<()> {
    let scratch = Scratch::new()?;
    let node = node(&scratch)?;
    node.dog_ok("volume create v 64M")?;
    let printed = node.dog_ok("volume attach v")?;
    let begin = printed.find("<disk").context("no XML")?;
    let end = printed.find("</disk>").context("no end of the XML")? + "</disk>".len();
    let domain = format!(
        "<domain type='qemu'><name>t</name><memory unit='MiB'>512</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>\
         <emulator>/usr/bin/qemu-system-x86_64</emulator>{}</devices></domain>\n",
        &printed[begin..end]
    );
    let file = scratch.join("domain.xml");
    fs::write(&file, domain)?;
    Tool::new("virt-xml-validate").arg(&file).arg("domain").ok()?;
    Ok(())
}
