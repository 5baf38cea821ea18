//! Clients that want more than their share: what they can make the node hold.

use super::*;
use crate::nbd::fuzz::rig::BASES;
use proto::limits::{
    NBD_BYTES_PER_CONNECTION_MAX, NBD_CONTEXTS_MAX, NBD_INPUT_BYTES_MAX,
    NBD_OPTION_UNREAD_BYTES_MAX, NBD_PAYLOAD_BYTES_MAX, NBD_REQUESTS_PER_CONNECTION_MAX,
    NBD_STATUS_EXTENTS_MAX,
};

fn asked(command: u16, length: u64) -> Asked {
    Asked { flags: 0, command, offset: 0, length }
}

#[test]
fn requests_in_flight_are_counted() {
    let mut rig = served("disk", Style::Structured, false);
    rig.at_once = false;
    let count = 3 * NBD_REQUESTS_PER_CONNECTION_MAX;
    for cookie in 0..count {
        rig.feed(&asked(5, 4096).bytes(cookie as u64));
    }
    assert_eq!(rig.requests.len(), NBD_REQUESTS_PER_CONNECTION_MAX);
    assert!(!rig.connection.wants_input());
    let mut replies = Replies::new(Style::Structured);
    replies.open.extend((0..count as u64).map(|cookie| (cookie, asked(5, 4096))));
    for completed in 0..count {
        rig.complete(0, None);
        rig.pump();
        let left = count - completed - 1;
        assert_eq!(rig.requests.len(), left.min(NBD_REQUESTS_PER_CONNECTION_MAX));
    }
    let outcomes = replies.take(&rig.read_all());
    assert_eq!(outcomes.len(), count);
    assert!(outcomes.windows(2).all(|pair| pair[0].0 < pair[1].0), "in the order they came");
}

#[test]
fn bytes_in_flight_are_counted_until_they_are_read() {
    let mut rig = served("disk", Style::Structured, false);
    rig.at_once = false;
    let reads = 1000;
    for cookie in 0..reads {
        rig.feed(&asked(0, 1 << 20).bytes(cookie));
    }
    assert_eq!(rig.requests.len(), 64);
    while !rig.requests.is_empty() {
        rig.complete(0, None); // the client does not read
    }
    let held = rig.held_bytes();
    assert!(held <= NBD_BYTES_PER_CONNECTION_MAX + 4096, "{held}");
    assert!(!rig.connection.wants_input());
    let mut replies = Replies::new(Style::Structured);
    replies.open.extend((0..reads).map(|cookie| (cookie, asked(0, 1 << 20))));
    let mut count = 0;
    while !rig.sent.is_empty() {
        count += replies.take(&rig.read(1 << 20)).len();
        rig.pump();
        while !rig.requests.is_empty() {
            rig.complete(0, None);
        }
        assert!(rig.held_bytes() <= NBD_BYTES_PER_CONNECTION_MAX + 4096);
    }
    assert_eq!(count as u64, reads);
}

#[test]
fn two_of_the_longest_requests_fit_and_a_third_waits() {
    let longest = NBD_PAYLOAD_BYTES_MAX as u64;
    for command in [0, 1] {
        let mut rig = served("disk", Style::Structured, false);
        rig.at_once = false;
        let payload = vec![7; if command == 1 { longest as usize } else { 0 }];
        for cookie in 0..3 {
            rig.feed(&asked(command, longest).bytes(cookie));
            rig.feed(&payload);
        }
        assert_eq!(rig.requests.len(), 2);
        assert!(!rig.connection.wants_input());
        assert!(rig.held_bytes() <= NBD_BYTES_PER_CONNECTION_MAX);
    }
}

/// Blocks with and without data by turns: as many extents as there are blocks.
fn striped(rig: &mut Rig, style: Style, blocks: u64) {
    for block in (0..blocks).step_by(2) {
        let write = Asked { offset: block * 4096, ..asked(1, 4096) };
        rig.feed(&write.bytes_in(style, 0));
        rig.feed(&[7; 4096]);
        rig.read_all();
    }
}

#[test]
fn block_status_that_nobody_reads_counts_with_its_longest_replies() {
    let mut chosen = vec!["base:allocation".to_owned()];
    let bases = BASES.iter().take(NBD_CONTEXTS_MAX - 1);
    chosen.extend(bases.map(|(tag, _)| format!("sheepdog:dirty/{tag}")));
    let contexts: Vec<&str> = chosen.iter().map(String::as_str).collect();
    for style in [Style::Structured, Style::Extended] {
        let mut rig = Rig::new(Settings { can_multi_conn: true, is_local: false });
        rig.feed(&client::handshake_with("disk", style, &contexts));
        let blocks = NBD_STATUS_EXTENTS_MAX as u64;
        striped(&mut rig, style, blocks);
        rig.at_once = false;
        let status = asked(7, blocks * 4096);
        let count = 200;
        for cookie in 0..count {
            rig.feed(&status.bytes_in(style, cookie));
        }
        while !rig.requests.is_empty() {
            rig.complete(0, None); // the client does not read
        }
        assert!(rig.unread() <= NBD_BYTES_PER_CONNECTION_MAX, "{}", rig.unread());
        assert!(!rig.connection.wants_input());
        let mut replies = Replies::new(style);
        replies.contexts = contexts.len();
        replies.open.extend((0..count).map(|cookie| (cookie, status)));
        let mut answered = 0;
        while !rig.sent.is_empty() {
            for (_, outcome) in replies.take(&rig.read_all()) {
                let Outcome::Contexts(told) = outcome else { panic!("{outcome:?}") };
                assert!(told.iter().all(|extents| extents.len() == NBD_STATUS_EXTENTS_MAX));
                answered += 1;
            }
            rig.pump();
            while !rig.requests.is_empty() {
                rig.complete(0, None);
            }
            assert!(rig.unread() <= NBD_BYTES_PER_CONNECTION_MAX);
        }
        assert_eq!(answered, count);
    }
}

#[test]
fn a_flood_in_one_piece_is_worked_off_in_order() {
    let mut rig = served("disk", Style::Structured, false);
    rig.at_once = false;
    let count = NBD_INPUT_BYTES_MAX / 28;
    let flood: Vec<u8> =
        (0..count).flat_map(|cookie| asked(0, 4096).bytes(cookie as u64)).collect();
    rig.feed(&flood);
    assert!(rig.socket.is_empty(), "it was taken in one piece");
    let mut replies = Replies::new(Style::Structured);
    replies.open.extend((0..count as u64).map(|cookie| (cookie, asked(0, 4096))));
    let mut cookies = Vec::new();
    while !rig.requests.is_empty() {
        rig.complete(0, None);
        let read = rig.read_all();
        cookies.extend(replies.take(&read).into_iter().map(|(cookie, _)| cookie));
    }
    assert_eq!(cookies, (0..count as u64).collect::<Vec<u64>>());
    assert!(rig.connection.wants_input());
}

#[test]
fn refusals_nobody_reads_have_an_end() {
    let mut rig = served("disk", Style::Structured, false);
    rig.at_once = false;
    let flood = asked(99, 0).bytes(1).repeat(NBD_INPUT_BYTES_MAX / 28);
    let mut fed = 0;
    while rig.connection.wants_input() {
        rig.feed(&flood);
        fed += flood.len();
        assert!(fed < 1 << 30, "it goes on and on");
    }
    assert!(rig.held_bytes() <= NBD_BYTES_PER_CONNECTION_MAX + 4096);
    rig.read_all();
    assert!(rig.connection.wants_input());
}

#[test]
fn lists_nobody_reads_have_an_end() {
    let mut rig = Rig::new(Settings { can_multi_conn: true, is_local: false });
    rig.offers = vec![rig.offers[0].clone(); 10_000];
    rig.at_once = false;
    rig.feed(&client::client_flags(3));
    rig.feed(&client::option(3, &[]).repeat(100));
    let mut lists = 0;
    while !rig.questions.is_empty() {
        rig.answer();
        lists += 1;
    }
    assert_eq!(lists, 1);
    assert!(rig.unread() > NBD_OPTION_UNREAD_BYTES_MAX && !rig.connection.wants_input());
    while !rig.sent.is_empty() {
        rig.read_all();
        rig.pump();
        rig.answer();
        lists += 1;
    }
    assert_eq!(lists, 101, "one answer more than questions: the last round asked nothing");
    assert!(rig.connection.wants_input());
}

#[test]
#[should_panic(expected = "input came although none was wanted")]
fn a_driver_that_does_not_stop_is_a_bug() {
    let mut rig = served("disk", Style::Structured, false);
    rig.at_once = false;
    let flood = asked(5, 4096).bytes(1).repeat(NBD_INPUT_BYTES_MAX / 28);
    for _ in 0..3 {
        rig.act(|connection, now, effects| connection.handle_bytes(now, &flood, effects));
    }
}
