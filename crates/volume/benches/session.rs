//! What session and coordinator cost per request, without any disk: `cargo bench -p volume`.
//!
//! Random 4 KiB requests over a volume of 8 GiB, 32 in flight, answered in another order.
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]
#![allow(missing_docs)]

use cluster::{Command, State};
use proto::{
    Buffer, ClusterId, DiskId, Generation, Incarnation, MemberReply, MemberRequest, MemberToken,
    NodeId, ObjectStamp, Payload, Stamp, Time,
};
use std::sync::Arc;
use std::time::Instant;
use volume::{Effect, Event, Operation, Request, RequestId, Session, View};

const DEPTH: usize = 32;
const ROUNDS: usize = 1_000_000;
const BYTES: u64 = 8 << 30;
const VIEW: View = View::Head { read_only: false };

fn main() {
    for (name, share_of_writes) in [("read", 0), ("write", 100), ("half and half", 50)] {
        let mut best = u128::MAX;
        for _ in 0..5 {
            best = best.min(measure(share_of_writes));
        }
        println!("4 KiB random {name}, {DEPTH} in flight: {best} ns per request");
    }
}

/// Nanoseconds per request.
fn measure(share_of_writes: u64) -> u128 {
    let mut state = State::default();
    let (node, disk) = (NodeId(1), DiskId(1));
    let mut apply = |command| state.apply(&command).expect("a good command");
    apply(Command::CreateCluster { cluster: ClusterId(1), partition_bits: 12, unix_s: 0 });
    apply(Command::AddNode { node, name: "alpha".into() });
    apply(Command::OpenDisk { disk, node, incarnation: Incarnation(1) });
    apply(Command::CreateVolume { name: "vm".into(), bytes: BYTES, unix_s: 0 });
    let map = state.map();
    let volume = map.volume_named("vm").expect("just created").id;
    let content = Payload::zeroed(4096);
    let mut effects = Vec::new();
    let mut session =
        Session::open(Time(1), volume, Generation(1), VIEW, Arc::clone(&map), &mut effects);
    let mut questions: Vec<(MemberToken, MemberRequest)> = Vec::new();
    let (mut x, mut next, mut completed) = (1u64, 0u64, 0usize);
    let (mut started, mut in_flight) = (Instant::now(), 0);
    let warm = ROUNDS / 10;
    while completed < warm + ROUNDS {
        for effect in effects.drain(..) {
            match effect {
                Effect::Member { token, request, .. } => questions.push((token, request)),
                Effect::Complete { result, .. } => {
                    result.expect("the disk is kind");
                    in_flight -= 1;
                    completed += 1;
                    if completed == warm {
                        started = Instant::now();
                    }
                }
                _ => {}
            }
        }
        while in_flight < DEPTH {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            next += 1;
            in_flight += 1;
            let offset = (x >> 33) % (BYTES / 4096) * 4096;
            let operation = if (x >> 20) % 100 < share_of_writes {
                Operation::Write { buffer: Buffer::stale(4096), fua: false }
            } else {
                Operation::Read
            };
            let request = Request { id: RequestId(next), offset, length: 4096, operation };
            session.handle(Time(next), Event::Request(request), &mut effects);
        }
        for effect in effects.drain(..) {
            if let Effect::Member { token, request, .. } = effect {
                questions.push((token, request));
            }
        }
        let count = questions.len();
        for place in 0..count {
            let (token, request) = questions.swap_remove(place * 7 % (count - place));
            let reply = answer(request, &content);
            session.handle(
                Time(next),
                Event::Member { disk, token, result: Ok(reply) },
                &mut effects,
            );
        }
    }
    started.elapsed().as_nanos() / ROUNDS as u128
}

fn answer(request: MemberRequest, content: &Payload) -> MemberReply {
    let incarnation = Incarnation(1);
    match request {
        MemberRequest::Fence { .. } => MemberReply::Fenced {
            incarnation,
            settled: proto::Stamp::default(),
            unsettled: Vec::new(),
            more: false,
        },
        MemberRequest::Stamp { key, .. } => {
            let settled_generation = Generation(0);
            MemberReply::Stamp(ObjectStamp { key, stamp: Stamp::default(), settled_generation })
        }
        MemberRequest::Write(_) => MemberReply::Written { incarnation },
        MemberRequest::Read { .. } => {
            MemberReply::Data { content: vec![content.clone()], absent: Vec::new() }
        }
        _ => panic!("not asked here"),
    }
}
