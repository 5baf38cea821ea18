//! Tests of the whole machine, each file for one side of it.

mod chunking;
mod deadlines;
mod extended;
mod handshake;
mod limits;
mod model;
mod transmission;

use super::fuzz::client::{self, Asked, Outcome, Replies, Style};
use super::fuzz::rig::Rig;
use super::{CloseReason, Settings};

/// So many random cases; a failure is kept as a test of its own, not in a file.
fn cases(cases: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config { cases, failure_persistence: None, ..Default::default() }
}

/// A client that is served `name`.
fn served(name: &str, style: Style, allocation: bool) -> Rig {
    let mut rig = Rig::new(Settings { can_multi_conn: true, is_local: false });
    rig.feed(&client::handshake(name, style, allocation));
    rig.read_all();
    assert_eq!(rig.closed, None);
    rig
}

/// One request with its payload, and its only reply.
fn ask(rig: &mut Rig, style: Style, asked: Asked, payload: &[u8]) -> Outcome {
    ask_in(rig, style, 1, asked, payload)
}

/// The same of a client with so many contexts.
fn ask_in(rig: &mut Rig, style: Style, contexts: usize, asked: Asked, payload: &[u8]) -> Outcome {
    let mut replies = Replies::new(style);
    replies.contexts = contexts.max(1);
    replies.open.insert(77, asked);
    rig.feed(&asked.bytes_in(style, 77));
    rig.feed(payload);
    let mut outcomes = replies.take(&rig.read_all());
    assert!(!replies.is_inside(), "half a reply to {asked:?}");
    assert_eq!(outcomes.len(), 1, "one reply to {asked:?}");
    outcomes.remove(0).1
}

/// The shape of an outcome: 0 for success, else the error's number.
fn code(outcome: &Outcome) -> u32 {
    match outcome {
        Outcome::Error(number, _) => *number,
        _ => 0,
    }
}

fn protocol(reason: &Option<CloseReason>) -> bool {
    matches!(reason, Some(CloseReason::Protocol(_)))
}
