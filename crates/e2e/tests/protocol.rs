//! What NBD can say since clients began to ask for it: lengths of 64 bits, sizes that change under
//! a client, and handshakes about very many volumes.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::nbd::{Peer, command, option};
use e2e::{Node, Scratch, Tool};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// A client that is attached, without extended headers.
fn attached(node: &Node, bytes: u64) -> Result<Peer> {
    let mut peer = Peer::unix(&node.nbd_socket())?;
    peer.greet()?;
    let size = peer.go("v")?.map_err(|refusal| anyhow::anyhow!(refusal.0))?;
    ensure!(size == bytes, "the volume has {size} bytes");
    Ok(peer)
}

/// The error of a request whose reply is simple, and a read's content.
fn ask(peer: &mut Peer, what: u16, offset: u64, data: &[u8]) -> Result<(u32, Vec<u8>)> {
    peer.request(what, 7, offset, u32::try_from(data.len())?)?;
    if what == command::WRITE {
        peer.send(data)?;
    }
    let (error, cookie) = peer.reply()?;
    ensure!(cookie == 7, "the reply to request {cookie}");
    let reads = what == command::READ && error == 0;
    Ok((error, if reads { peer.payload(data.len())? } else { Vec::new() }))
}

#[test]
fn one_request_zeroes_or_trims_more_than_4_gib() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 64G")?;
    let data = vec![0xa5; MIB as usize];
    let fill = || -> Result<()> {
        for gib in [0, 3, 4, 5, 17, 40, 63] {
            node.dog(&format!("volume write v --offset {}", gib * GIB)).input(data.clone()).ok()?;
        }
        ensure!(node.used_bytes("v")? == 7 * MIB, "{} are used", node.used_bytes("v")?);
        Ok(())
    };
    for what in [command::WRITE_ZEROES, command::TRIM] {
        fill()?;
        let mut peer = Peer::unix(&node.nbd_socket())?;
        peer.greet()?;
        peer.option(option::EXTENDED_HEADERS, &[])?;
        ensure!(!peer.option_reply()?.is_error(), "no extended headers");
        peer.go("v")?.map_err(|refusal| anyhow::anyhow!(refusal.0))?;
        // All but the first MiB and the last.
        peer.extended_request(0, what, 9, MIB, 64 * GIB - 2 * MIB)?;
        let reply = peer.extended_reply()?;
        ensure!((reply.kind, reply.cookie, reply.offset) == (0, 9, MIB), "{reply:?}");
        // What leaves the volume is refused, and the connection lives.
        for length in [64 * GIB, 1 << 63, u64::MAX - 511] {
            peer.extended_request(0, what, 10, 512, length)?;
            let reply = peer.extended_reply()?;
            let expected = if what == command::TRIM { EINVAL } else { ENOSPC };
            ensure!(reply.kind & 0x8000 != 0 && reply.error() == Some(expected), "{reply:?}");
        }
        peer.extended_request(0, command::READ, 11, 0, 512)?;
        let reply = peer.extended_reply()?;
        ensure!(reply.data[8..] == data[..512], "what was not zeroed has changed");
        peer.extended_request(0, command::DISCONNECT, 12, 0, 0)?;
        peer.wait_closed(Duration::from_secs(10))?;
        ensure!(node.used_bytes("v")? == MIB, "{} are used", node.used_bytes("v")?);
    }
    // The same by dog, whose client is another reading of the protocol.
    fill()?;
    node.dog_ok("volume zero v --offset 0 --length 64G")?;
    ensure!(node.used_bytes("v")? == 0, "{} are used", node.used_bytes("v")?);
    let map = node.dog_json("volume map v")?;
    let extents = map.as_array().context("no extents")?;
    ensure!(extents.len() == 1 && extents[0]["length"] == 64 * GIB, "{map}");
    node.stop()
}

#[test]
fn a_client_is_served_beyond_its_old_end_when_the_volume_has_grown() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 16M")?;
    let mut peer = attached(&node, 16 * MIB)?;
    let (sector, zeros) = (vec![0x77; 4096], vec![0; 4096]);
    ensure!(ask(&mut peer, command::READ, 16 * MIB, &zeros)?.0 == EINVAL);
    ensure!(ask(&mut peer, command::WRITE, 16 * MIB, &sector)?.0 == ENOSPC);

    let said = node.dog("volume resize v 32M").run()?;
    ensure!(said.to_string().contains("dog volume reconnect v"), "{said}");
    ensure!(ask(&mut peer, command::READ, 16 * MIB, &zeros)? == (0, zeros.clone()));
    ensure!(ask(&mut peer, command::WRITE, 32 * MIB - 4096, &sector)?.0 == 0);
    ensure!(ask(&mut peer, command::READ, 32 * MIB - 4096, &zeros)? == (0, sector.clone()));

    node.dog_refuses("volume resize v 8M")?;
    ensure!(ask(&mut peer, command::READ, 32 * MIB - 4096, &zeros)?.0 == 0, "nothing was cut off");
    node.dog_ok("volume resize v 8M --allow-shrink")?;
    for offset in [8 * MIB, 16 * MIB, 32 * MIB - 4096] {
        ensure!(ask(&mut peer, command::READ, offset, &zeros)?.0 == EINVAL);
        ensure!(ask(&mut peer, command::WRITE, offset, &sector)?.0 == ENOSPC);
    }
    ensure!(ask(&mut peer, command::READ, 8 * MIB - 4096, &zeros)? == (0, zeros.clone()));
    // What was cut off does not come back.
    node.dog_ok("volume resize v 32M")?;
    ensure!(ask(&mut peer, command::READ, 32 * MIB - 4096, &zeros)? == (0, zeros.clone()));

    // The client is let go, after what is in flight, so that it asks for the size again.
    node.dog_ok("volume resize v 48M --reconnect")?;
    peer.wait_closed(Duration::from_secs(10))?;
    attached(&node, 48 * MIB)?;
    node.stop()
}

/// Makes volumes over one connection to the admin socket.
fn create(socket: &Path, names: impl Iterator<Item = String>) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    let mut answers = BufReader::new(stream.try_clone()?);
    for name in names {
        let body = serde_json::json!({ "request": "volume_create", "name": name, "bytes": 4096 });
        let body = body.to_string();
        let length = body.len();
        let head = "POST /v1/request HTTP/1.1\r\nhost: sheep\r\ncontent-length: ";
        stream.write_all(format!("{head}{length}\r\n\r\n{body}").as_bytes())?;
        let mut line = String::new();
        answers.read_line(&mut line)?;
        ensure!(line.starts_with("HTTP/1.1 200"), "{name} was not made: {line}");
        let mut length = 0;
        while !line.trim().is_empty() {
            line.clear();
            answers.read_line(&mut line)?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        answers.read_exact(&mut vec![0; length])?;
    }
    Ok(())
}

#[test]
fn nbdinfo_lists_ten_thousand_volumes() -> Result<()> {
    const MAKERS: usize = 16;
    const EACH: usize = 625;
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    let socket = node.data().join("admin.sock");
    thread::scope(|scope| {
        let makers: Vec<_> = (0..MAKERS)
            .map(|maker| {
                let names = (0..EACH).map(move |number| format!("volume-{maker}-{number}"));
                scope.spawn(|| create(&socket, names))
            })
            .collect();
        makers.into_iter().try_for_each(|maker| maker.join().expect("no panic"))
    })?;
    let uri = format!("nbd+unix:///?socket={}", node.nbd_socket().display());
    let listed = Tool::new("nbdinfo").words("--list --json").arg(uri).ok()?;
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    let exports = listed["exports"].as_array().context("no exports")?;
    let names: BTreeSet<&str> = exports.iter().filter_map(|e| e["export-name"].as_str()).collect();
    ensure!(names.len() == MAKERS * EACH, "{} volumes are listed", names.len());
    ensure!(exports.iter().all(|export| export["export-size"] == 4096), "a size is missing");
    node.stop()
}
