//! Peers that mean harm, on the real socket: lengths that lie, bytes that trickle, floods.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Result, ensure};
use e2e::nbd::{Peer, command, go_body, option, request_header};
use e2e::{Node, Scratch, Tool};
use proto::limits::{
    NBD_CONNECTIONS_MAX, NBD_HANDSHAKE_MS_MAX, NBD_HANDSHAKES_PER_CLIENT_MAX, NBD_OPTION_BYTES_MAX,
    NBD_PAYLOAD_BYTES_MAX,
};
use std::net::TcpListener;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const VOLUME_BYTES: u64 = 64 * MIB;

/// A node with a volume `v` for the hostile and a volume `w` for the decent.
fn node(scratch: &Scratch, options: &[&str]) -> Result<Node> {
    let node = Node::start(&scratch.join("data"), options)?;
    node.dog_ok("volume create v 64M")?;
    node.dog_ok("volume create w 64M")?;
    Ok(node)
}

/// A decent client does something, and all of it works.
fn decent(node: &Node) -> Result<Duration> {
    let begin = Instant::now();
    Tool::new("qemu-io")
        .words("-f raw -t none -c")
        .arg("write -P 5 0 1M")
        .arg("-c")
        .arg("read -P 5 0 1M")
        .arg(node.uri("w"))
        .time_limit(Duration::from_secs(20))
        .ok()?;
    Ok(begin.elapsed())
}

/// A connection that has the volume `v`.
fn attached(node: &Node) -> Result<Peer> {
    let mut peer = Peer::unix(&node.nbd_socket())?;
    peer.greet()?;
    let size = peer.go("v")?;
    ensure!(matches!(size, Ok(VOLUME_BYTES)), "{size:?}");
    Ok(peer)
}

const LENGTHS: [u32; 9] = [
    0,
    1,
    4096,
    NBD_OPTION_BYTES_MAX as u32,
    NBD_OPTION_BYTES_MAX as u32 + 1,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    u32::MAX,
];

/// Row 46. Every length of the handshake lies in every way; each time the server answers or hangs
/// up, and goes on serving others with no more memory than before.
#[test]
fn lengths_that_lie_in_the_handshake_cost_only_their_connection() -> Result<()> {
    let scratch = Scratch::new()?;
    let node = node(&scratch, &[])?;
    decent(&node)?;
    let before = node.resident_bytes()?;
    let options = [
        option::EXPORT_NAME,
        option::ABORT,
        option::LIST,
        option::INFO,
        option::GO,
        option::STRUCTURED_REPLY,
        option::LIST_META_CONTEXT,
        0,
        4711,
        u32::MAX,
    ];
    for option in options {
        for claimed in LENGTHS {
            let mut peer = Peer::unix(&node.nbd_socket())?;
            peer.greet()?;
            // As much as fits is really sent, the rest is only claimed.
            let data = vec![0xff; claimed.min(16384) as usize];
            peer.option_claiming(option, claimed, &data)?;
        }
    }
    // Lengths inside an option: of the name, and counts of what follows it.
    for claimed in LENGTHS {
        for option in [option::GO, option::INFO, option::LIST_META_CONTEXT] {
            let mut peer = Peer::unix(&node.nbd_socket())?;
            peer.greet()?;
            peer.option(option, &go_body(claimed, b"v", &[]))?;
            let reply = peer.option_reply()?;
            let legal = claimed == 1 && option != option::LIST_META_CONTEXT;
            ensure!(reply.is_error() != legal, "length {claimed} in {option}: {reply:?}");
        }
    }
    decent(&node)?;
    let after = node.resident_bytes()?;
    ensure!(after < before + 64 * MIB, "memory grew from {before} to {after} bytes");
    Ok(())
}

/// Row 46. Every length and offset of a request lies; what cannot be is refused with an error and
/// the connection goes on, or it is closed, where the protocol cannot go on.
#[test]
fn lengths_that_lie_in_requests_are_refused() -> Result<()> {
    const REFUSED: u32 = 22; // EINVAL
    const NO_SPACE: u32 = 28; // ENOSPC
    let scratch = Scratch::new()?;
    let node = node(&scratch, &[])?;
    let before = node.resident_bytes()?;
    let offsets = [0, VOLUME_BYTES - 512, VOLUME_BYTES, 1 << 31, 1 << 63, u64::MAX - 511, u64::MAX];
    let payload_max = NBD_PAYLOAD_BYTES_MAX as u32;
    let lengths = [0, 1, 512, payload_max, payload_max + 512, 1 << 31, u32::MAX - 511, u32::MAX];
    let mut peer = attached(&node)?;
    let mut cookie = 0;
    for offset in offsets {
        for length in lengths {
            for command in [command::READ, command::TRIM, command::WRITE_ZEROES, command::FLUSH] {
                cookie += 1;
                peer.request(command, cookie, offset, length)?;
                let (error, answered) = peer.reply()?;
                ensure!(answered == cookie, "an answer to {answered} instead of {cookie}");
                let inside =
                    offset.checked_add(length.into()).is_some_and(|end| end <= VOLUME_BYTES);
                let legal = match command {
                    command::FLUSH => offset == 0 && length == 0,
                    command::READ => inside && length % 512 == 0 && length <= payload_max,
                    _ => inside && length % 512 == 0,
                };
                let what = format!("command {command}, offset {offset}, length {length}: {error}");
                if command == command::READ && error == 0 {
                    peer.payload(length as usize)?;
                }
                // An empty request is the client's folly, and either answer is right.
                ensure!(length == 0 || legal == (error == 0), "{what}");
                ensure!([0, REFUSED, NO_SPACE].contains(&error), "{what}");
            }
        }
    }
    peer.request(command::DISCONNECT, 0, 0, 0)?;
    peer.wait_closed(Duration::from_secs(10))?;

    // A write that is too long cannot be skipped at any price: the connection goes.
    for length in [payload_max + 512, 1 << 31, u32::MAX] {
        let mut peer = attached(&node)?;
        peer.request(command::WRITE, 7, 0, length)?;
        peer.wait_closed(Duration::from_secs(40))?;
    }
    // A request without its magic, too.
    let mut peer = attached(&node)?;
    peer.send(&[0x55; 28])?;
    peer.wait_closed(Duration::from_secs(40))?;
    decent(&node)?;
    let after = node.resident_bytes()?;
    ensure!(after < before + 128 * MIB, "memory grew from {before} to {after} bytes");
    Ok(())
}

/// Row 44. Who takes longer over the handshake than allowed is cut off, however busy he seems.
#[test]
fn a_handshake_that_trickles_is_cut_off() -> Result<()> {
    let scratch = Scratch::new()?;
    let node = node(&scratch, &[])?;
    let limit = Duration::from_millis(NBD_HANDSHAKE_MS_MAX);
    let begin = Instant::now();
    let mut silent = Vec::new();
    let mut greeted = Vec::new();
    for _ in 0..NBD_HANDSHAKES_PER_CLIENT_MAX / 2 - 2 {
        silent.push(Peer::unix(&node.nbd_socket())?);
        let mut peer = Peer::unix(&node.nbd_socket())?;
        peer.greet()?;
        greeted.push(peer);
    }
    let mut trickling = Peer::unix(&node.nbd_socket())?;
    trickling.greet()?;
    let option = [&0x4948_4156_454f_5054_u64.to_be_bytes()[..], &7_u32.to_be_bytes()].concat();
    for byte in option.iter().take(8) {
        trickling.send(&[*byte])?;
        std::thread::sleep(Duration::from_secs(1));
        ensure!(decent(&node)? < Duration::from_secs(5), "others have to wait");
    }
    let margin = Duration::from_secs(8);
    for peer in silent.iter_mut().chain(&mut greeted).chain([&mut trickling]) {
        peer.wait_closed((limit + margin).saturating_sub(begin.elapsed()))?;
    }
    let took = begin.elapsed();
    ensure!(took >= limit - Duration::from_secs(1), "cut off already after {took:?}");
    Ok(())
}

/// Row 44. Who asks for much and reads none of it is not served without end, and harms nobody.
#[test]
fn a_client_that_reads_no_replies_harms_nobody() -> Result<()> {
    let scratch = Scratch::new()?;
    let node = node(&scratch, &[])?;
    Tool::new("qemu-io").words("-f raw -c").arg("write -P 1 0 64M").arg(node.uri("v")).ok()?;
    let before = node.resident_bytes()?;
    let mut peer = attached(&node)?;
    for cookie in 0..24 {
        peer.request(command::READ, cookie, 0, NBD_PAYLOAD_BYTES_MAX as u32)?;
    }
    for _ in 0..5 {
        ensure!(decent(&node)? < Duration::from_secs(5), "others have to wait");
        let now = node.resident_bytes()?;
        ensure!(now < before + 192 * MIB, "memory grew from {before} to {now} bytes");
    }
    // It may still change its mind.
    for _ in 0..24 {
        let (error, _) = peer.reply()?;
        ensure!(error == 0, "error {error}");
        ensure!(peer.payload(NBD_PAYLOAD_BYTES_MAX)?.iter().all(|&byte| byte == 1), "wrong bytes");
    }
    Ok(())
}

/// Row 44. A payload that trickles holds its own request, and nobody else's.
#[test]
fn a_payload_that_trickles_holds_nobody_else() -> Result<()> {
    let scratch = Scratch::new()?;
    let node = node(&scratch, &[])?;
    let mut peer = attached(&node)?;
    peer.send(&request_header(command::WRITE, 1, 0, 8192))?;
    for _ in 0..5 {
        peer.send(&[0xab; 100])?;
        ensure!(decent(&node)? < Duration::from_secs(5), "others have to wait");
    }
    drop(peer);
    // What was not sent whole was not written at all.
    Tool::new("qemu-io").words("-f raw -c").arg("read -P 0 0 8k").arg(node.uri("v")).ok()?;
    Ok(())
}

/// Row 45. A flood of connections is capped for each client, and the others go on.
#[test]
fn a_flood_of_connections_is_capped_and_forgotten() -> Result<()> {
    let scratch = Scratch::new()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let node = node(&scratch, &["--nbd-listen", &format!("127.0.0.1:{port}")])?;
    decent(&node)?;
    let idle = node.descriptors()?;
    type Open<'a> = &'a dyn Fn() -> Result<Peer>;
    let unix: Open = &|| Peer::unix(&node.nbd_socket());
    let tcp: Open = &|| Peer::tcp(port);
    for open in [unix, tcp] {
        let mut peers = Vec::new();
        let mut greeted = 0;
        for _ in 0..NBD_HANDSHAKES_PER_CLIENT_MAX + 32 {
            if let Ok(mut peer) = open() {
                greeted += usize::from(peer.greet().is_ok());
                peers.push(peer);
            }
        }
        ensure!(greeted == NBD_HANDSHAKES_PER_CLIENT_MAX, "{greeted} were let in");
        ensure!(decent(&node)? < Duration::from_secs(5), "others have to wait");
        let now = node.descriptors()?;
        ensure!(now <= idle + NBD_HANDSHAKES_PER_CLIENT_MAX + 8, "{now} descriptors");
        drop(peers);
    }
    // Opened and dropped, more often than there may be connections in all.
    for _ in 0..2 * NBD_CONNECTIONS_MAX {
        drop(Peer::tcp(port)?);
    }
    let begin = Instant::now();
    while Peer::tcp(port).and_then(|mut peer| peer.greet()).is_err() {
        ensure!(begin.elapsed() < Duration::from_secs(10), "it does not recover");
    }
    decent(&node)?;
    Ok(())
}
