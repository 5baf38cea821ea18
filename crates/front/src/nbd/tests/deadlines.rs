//! Clients that take their time: each clock, to the millisecond, and what does not start it.

use super::*;
use proto::{Duration, limits};

const HANDSHAKE: Duration = Duration::from_millis(limits::NBD_HANDSHAKE_MS_MAX);
const REQUEST: Duration = Duration::from_millis(limits::NBD_REQUEST_MS_MAX);
const STALL: Duration = Duration::from_millis(limits::NBD_WRITE_STALL_MS_MAX);
const TICK: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(7 * 24 * 3600);

/// Sends one byte per `step` until the connection closes; returns why and how long that took.
fn trickle(rig: &mut Rig, bytes: &[u8], step: Duration) -> (CloseReason, Duration) {
    let start = rig.now;
    for byte in bytes {
        rig.feed(&[*byte]);
        rig.read_all();
        rig.pass(step);
        if let Some(reason) = &rig.closed {
            return (reason.clone(), rig.now.since(start));
        }
    }
    panic!("the connection is still open after {:?}", rig.now.since(start));
}

fn write(length: u64) -> Vec<u8> {
    let asked = Asked { flags: 0, command: 1, offset: 0, length };
    [asked.bytes(1), vec![7; length as usize]].concat()
}

fn read(length: u64) -> Vec<u8> {
    Asked { flags: 0, command: 0, offset: 0, length }.bytes(2)
}

#[test]
fn a_handshake_that_trickles_is_cut_in_time() {
    let mut rig = Rig::new(Settings { can_multi_conn: false, is_local: false });
    let bytes = client::handshake("disk", Style::Structured, true);
    let (reason, took) = trickle(&mut rig, &bytes, Duration::from_secs(1));
    assert_eq!((reason, took), (CloseReason::HandshakeTooSlow, HANDSHAKE));
}

#[test]
fn a_client_that_says_nothing_is_cut_in_time() {
    let mut rig = Rig::new(Settings { can_multi_conn: false, is_local: false });
    rig.pass(HANDSHAKE - TICK);
    assert_eq!(rig.closed, None);
    rig.pass(TICK);
    assert_eq!(rig.closed, Some(CloseReason::HandshakeTooSlow));
}

#[test]
fn options_without_end_do_not_prolong_the_handshake() {
    let mut rig = Rig::new(Settings { can_multi_conn: false, is_local: false });
    rig.feed(&client::client_flags(3));
    let options = client::option(3, &[]).repeat(1000);
    let (reason, took) = trickle(&mut rig, &options, Duration::from_millis(10));
    assert_eq!((reason, took), (CloseReason::HandshakeTooSlow, HANDSHAKE));
}

/// One option now and then is progress of a local client, and of no other; and there is an end.
#[test]
fn a_local_client_that_makes_progress_may_go_on_for_a_while() {
    let run = |is_local: bool, step: Duration| {
        let mut rig = Rig::new(Settings { can_multi_conn: false, is_local });
        rig.feed(&client::client_flags(3));
        let start = rig.now;
        while rig.closed.is_none() {
            rig.feed(&client::option(6, &client::info_data("disk", &[])));
            rig.read_all();
            rig.pass(step);
        }
        assert_eq!(rig.closed, Some(CloseReason::HandshakeTooSlow));
        rig.now.since(start)
    };
    let local = Duration::from_millis(limits::NBD_HANDSHAKE_LOCAL_MS_MAX);
    let step = Duration::from_secs(1);
    assert_eq!(run(false, step), HANDSHAKE);
    assert_eq!(run(true, step), local);
    assert_eq!(run(true, HANDSHAKE + TICK), HANDSHAKE + TICK, "no option in all the time");
    // Half an option is none.
    let mut rig = Rig::new(Settings { can_multi_conn: false, is_local: true });
    let bytes = client::handshake("disk", Style::Structured, true);
    let (reason, took) = trickle(&mut rig, &bytes[..30], Duration::from_secs(1));
    assert_eq!((reason, took), (CloseReason::HandshakeTooSlow, HANDSHAKE));
}

#[test]
fn the_time_an_answer_takes_is_not_the_clients() {
    let mut rig = Rig::new(Settings { can_multi_conn: false, is_local: false });
    rig.at_once = false;
    rig.feed(&client::client_flags(3));
    rig.pass(HANDSHAKE - TICK);
    rig.feed(&client::option(7, &client::info_data("taken", &[])));
    rig.read_all();
    rig.pass(LONG);
    assert_eq!(rig.closed, None, "it is the node that is slow");
    rig.answer();
    rig.read_all();
    assert_eq!(rig.closed, None);
    rig.pass(TICK);
    assert_eq!(rig.closed, Some(CloseReason::HandshakeTooSlow));
}

#[test]
fn an_idle_client_may_stay() {
    let mut rig = served("disk", Style::Structured, false);
    assert_eq!(rig.connection.deadline(), None);
    rig.pass(LONG);
    rig.feed(&write(4096));
    rig.read_all();
    assert_eq!(rig.connection.deadline(), None);
    rig.pass(LONG);
    assert_eq!(rig.closed, None);
}

#[test]
fn a_header_that_trickles_is_cut_in_time() {
    let mut rig = served("disk", Style::Structured, false);
    rig.pass(LONG);
    let (reason, took) = trickle(&mut rig, &read(512), Duration::from_secs(2));
    assert_eq!((reason, took), (CloseReason::RequestTooSlow, REQUEST));
}

#[test]
fn a_payload_that_trickles_is_cut_in_time() {
    for name in ["disk", "fixed"] {
        // served, or skipped because the volume is read only
        let mut rig = served(name, Style::Structured, false);
        let (reason, took) = trickle(&mut rig, &write(1 << 20), Duration::from_millis(100));
        assert_eq!((reason, took), (CloseReason::RequestTooSlow, REQUEST), "{name}");
    }
}

#[test]
fn each_request_has_its_own_time() {
    for request in [read(512), write(512)] {
        for name in ["disk", "fixed"] {
            let mut rig = served(name, Style::Structured, false);
            let (first, second) = request.split_at(request.len() / 2);
            rig.feed(first);
            for _ in 0..20 {
                rig.pass(REQUEST - TICK);
                // the rest of one and the start of the next come together
                rig.feed(&[second, first].concat());
                rig.read_all();
                assert_eq!(rig.closed, None);
            }
            rig.pass(REQUEST);
            assert_eq!(rig.closed, Some(CloseReason::RequestTooSlow));
        }
    }
}

#[test]
fn waiting_for_room_is_not_the_clients_time() {
    let mut rig = served("disk", Style::Structured, false);
    rig.at_once = false;
    let longest = limits::NBD_PAYLOAD_BYTES_MAX as u64;
    rig.feed(&[read(longest), read(longest), write(4096)].concat());
    assert_eq!(rig.requests.len(), 2);
    assert!(!rig.connection.wants_input());
    rig.pass(LONG);
    assert_eq!(rig.closed, None);
    rig.complete(0, None);
    rig.read_all();
    assert_eq!(rig.requests.len(), 2, "there is room for the write now");
    assert_eq!(rig.connection.deadline(), None);
}

#[test]
fn a_payload_has_its_time_from_when_there_is_room() {
    let mut rig = served("disk", Style::Structured, false);
    rig.at_once = false;
    let longest = limits::NBD_PAYLOAD_BYTES_MAX as u64;
    rig.feed(&[read(longest), read(longest), write(4096)[..1000].to_vec()].concat());
    rig.pass(LONG);
    rig.complete(0, None);
    rig.read_all();
    rig.pass(REQUEST - TICK);
    assert_eq!(rig.closed, None);
    rig.pass(TICK);
    assert_eq!(rig.closed, Some(CloseReason::RequestTooSlow));
}

#[test]
fn a_client_that_does_not_read_is_cut_in_time() {
    let mut rig = served("disk", Style::Structured, false);
    rig.at_once = false;
    rig.feed(&read(1 << 20));
    rig.pass(LONG); // the volume may take its time
    rig.complete(0, None);
    rig.pass(STALL - TICK);
    assert_eq!(rig.closed, None);
    rig.pass(TICK);
    assert_eq!(rig.closed, Some(CloseReason::NotReading));
}

#[test]
fn a_byte_now_and_then_is_not_reading() {
    let mut rig = served("disk", Style::Structured, false);
    rig.at_once = false;
    rig.feed(&read(1 << 20));
    rig.complete(0, None);
    let start = rig.now;
    while rig.closed.is_none() {
        rig.read(1);
        rig.pass(Duration::from_secs(1));
    }
    assert_eq!(rig.closed, Some(CloseReason::NotReading));
    assert_eq!(rig.now.since(start), STALL);
}

#[test]
fn a_client_that_reads_all_in_time_may_be_behind_for_ever() {
    let mut rig = served("disk", Style::Structured, false);
    rig.at_once = false;
    rig.feed(&read(1 << 20));
    rig.complete(0, None);
    for _ in 0..100 {
        rig.pass(STALL / 2);
        rig.feed(&read(1 << 20));
        rig.complete(0, None);
        let old = rig.unread() - (1 << 20) - 28;
        rig.read(old);
        assert_eq!(rig.closed, None);
        assert!(rig.unread() > 0);
    }
    rig.read_all();
    assert_eq!(rig.connection.deadline(), None);
}

#[test]
fn a_goodbye_does_not_wait_for_ever_for_its_reader() {
    let mut rig = served("disk", Style::Structured, false);
    rig.at_once = false;
    rig.feed(&read(4096));
    rig.complete(0, None);
    rig.feed(&Asked { flags: 0, command: 2, offset: 0, length: 0 }.bytes(3));
    assert_eq!(rig.closed, None);
    rig.pass(STALL);
    assert_eq!(rig.closed, Some(CloseReason::NotReading));
}
