//! Transcripts of handshakes, byte by byte in both directions.

use super::*;
use crate::nbd::fuzz::rig;
use client::{info_data, meta_data, option};
use proto::limits;

const GREETING: &str = "4e42444d41474943 49484156454f5054 0003";
/// What every reply to an option begins with.
const REPLY: &str = "0003e889045565a9";

pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A reply to an option, data in hex.
pub fn reply(number: u32, kind: u32, data: &str) -> Vec<u8> {
    reply_bytes(number, kind, &hex(data))
}

pub fn reply_bytes(number: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = hex(REPLY);
    bytes.extend(number.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFO: u32 = 3;
const CONTEXT: u32 = 4;
const UNSUP: u32 = 0x8000_0001;
const POLICY: u32 = 0x8000_0002;
const INVALID: u32 = 0x8000_0003;
const UNKNOWN: u32 = 0x8000_0006;
const TOO_BIG: u32 = 0x8000_0009;

pub struct Talk {
    pub rig: Rig,
}

impl Talk {
    /// A client that answered the greeting with these flags.
    pub fn new(flags: u32) -> Talk {
        let mut rig = Rig::new(Settings { can_multi_conn: true, is_local: false });
        assert_eq!(rig.read_all(), hex(GREETING));
        rig.feed(&flags.to_be_bytes());
        Talk { rig }
    }

    /// The client says this; the server must say exactly that.
    pub fn check(&mut self, said: &[u8], answer: &[u8]) -> &mut Talk {
        self.rig.feed(said);
        let read = self.rig.read_all();
        assert_eq!(read, answer, "\n{}\n{}", show(&read), show(answer));
        self
    }

    /// The client says this; the server refuses with this kind and some sentence.
    pub fn refused(&mut self, said: &[u8], kind: u32) -> &mut Talk {
        let number = u32::from_be_bytes(said[8..12].try_into().unwrap());
        self.rig.feed(said);
        let read = self.rig.read_all();
        let sentence = read.get(20..).expect("a refusal").to_vec();
        assert_eq!(read, reply_bytes(number, kind, &sentence), "{}", show(&read));
        let sentence = String::from_utf8(sentence).expect("a sentence");
        assert!(sentence.ends_with('.') && sentence.contains(' '), "{sentence:?}");
        self
    }

    pub fn open(&self) {
        assert_eq!(self.rig.closed, None);
    }

    pub fn closed(&self) -> &CloseReason {
        self.rig.closed.as_ref().expect("the connection is closed")
    }
}

fn show(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn go_with_everything() {
    // size 64 MiB; flags: has, flush, fua, trim, zeroes, df, multi, cache, fast zero
    let export = "0000 0000000004000000 0ded";
    let mut answer = reply(7, INFO, export);
    answer.extend(reply(7, INFO, "0001 6469736b"));
    answer.extend(reply(7, INFO, "0003 00000200 00001000 02000000"));
    answer.extend(reply(7, ACK, ""));
    Talk::new(3)
        .check(&option(8, &[]), &reply(8, ACK, ""))
        .check(
            &option(10, &meta_data("disk", &["base:allocation"])),
            &[
                reply_bytes(10, CONTEXT, &[&[0, 0, 0, 1][..], b"base:allocation"].concat()),
                reply(10, ACK, ""),
            ]
            .concat(),
        )
        .check(&option(7, &info_data("disk", &[1, 3, 2, 900])), &answer)
        // a read of 512 bytes of zeros
        .check(
            &hex("25609513 0000 0000 00000000000000aa 0000000000001000 00000200"),
            &[hex("668e33ef 0001 0001 00000000000000aa 00000208 0000000000001000"), vec![0; 512]]
                .concat(),
        )
        .open();
}

#[test]
fn go_with_little_in_simple_words() {
    let mut talk = Talk::new(3);
    talk.rig.memory.bytes = 0;
    talk.check(
        &option(7, &info_data("fixed", &[])),
        // read only: no trim, no zeroes; no chunks: no df
        &[reply(7, INFO, "0000 0000000000100000 050f"), reply(7, ACK, "")].concat(),
    )
    .check(
        &hex("25609513 0000 0000 00000000000000aa 0000000000001000 00000200"),
        &[hex("67446698 00000000 00000000000000aa"), vec![0; 512]].concat(),
    )
    .check(
        &hex("25609513 0000 0003 00000000000000ab 0000000000000000 00000000"),
        &hex("67446698 00000000 00000000000000ab"),
    )
    .open();
}

#[test]
fn one_connection_only_is_not_told_to_open_more() {
    let mut rig = Rig::new(Settings { can_multi_conn: false, is_local: false });
    rig.feed(&client::handshake("disk", Style::Simple, false));
    let read = rig.read_all();
    let export = reply(7, INFO, "0000 0000000004000000 0c6d");
    assert!(read.windows(export.len()).any(|window| window == export), "{}", show(&read));
}

#[test]
fn export_name_with_and_without_padding() {
    let size_and_flags = hex("0000000004000000 0d6d");
    for (flags, padding) in [(3, 0), (1, 124), (0, 124), (2, 0)] {
        let answer = [size_and_flags.clone(), vec![0; padding]].concat();
        Talk::new(flags).check(&option(1, b"disk"), &answer).open();
    }
}

#[test]
fn export_name_that_cannot_be_had_hangs_up() {
    for name in [&b"nothing"[..], b"taken", b"", b"\xff", b"a\0b", &[b'a'; 256], &[b'a'; 8192]] {
        let mut talk = Talk::new(3);
        talk.check(&option(1, name), b"");
        assert!(matches!(talk.closed(), CloseReason::Refused(_)), "{:?}", talk.closed());
    }
    let mut talk = Talk::new(0);
    talk.check(&option(1, b"taken"), b"");
    assert_eq!(*talk.closed(), CloseReason::Refused("Process 4711 holds the volume.".into()));
}

#[test]
fn list_names_every_volume() {
    let mut answer = Vec::new();
    for name in ["disk", "fixed", "huge", "taken"] {
        let data = [&(name.len() as u32).to_be_bytes(), name.as_bytes()].concat();
        answer.extend(reply_bytes(3, SERVER, &data));
    }
    answer.extend(reply(3, ACK, ""));
    let mut talk = Talk::new(3);
    talk.check(&option(3, &[]), &answer).refused(&option(3, b"x"), INVALID);
    talk.rig.offers.clear();
    talk.check(&option(3, &[]), &reply(3, ACK, "")).open();
}

#[test]
fn info_does_not_attach_and_may_be_repeated() {
    let answer = [reply(6, INFO, "0000 0000000004000000 0d6d"), reply(6, ACK, "")].concat();
    let mut talk = Talk::new(3);
    talk.check(&option(6, &info_data("disk", &[])), &answer);
    talk.check(&option(6, &info_data("disk", &[0, 0])), &answer);
    assert_eq!(talk.rig.memory.bytes, 0, "nothing is attached");
    talk.refused(&option(6, &info_data("nothing", &[])), UNKNOWN)
        .refused(&option(6, &info_data("taken", &[])), POLICY)
        .refused(&option(7, &info_data("taken", &[])), POLICY)
        .open();
}

#[test]
fn refused_go_says_who_holds_the_volume() {
    let mut talk = Talk::new(3);
    let sentence = b"Process 4711 holds the volume.";
    talk.check(&option(7, &info_data("taken", &[])), &reply_bytes(7, POLICY, sentence));
    // and the client may go on
    talk.check(&option(2, &[]), &reply(2, ACK, ""));
    assert_eq!(*talk.closed(), CloseReason::Disconnected);
}

#[test]
fn names_that_make_no_sense_are_refused() {
    for number in [6, 7] {
        let mut talk = Talk::new(3);
        let long = "a".repeat(256);
        talk.refused(&option(number, &info_data("", &[3])), UNKNOWN)
            .refused(&option(number, &info_data(&long, &[])), UNKNOWN)
            .refused(&option(number, &info_data("a\0b", &[])), INVALID)
            .refused(&option(number, b"\0\0\0\x02\xff\xfe\0\0"), INVALID)
            .open();
        let read = {
            talk.rig.feed(&option(number, &info_data("", &[])));
            String::from_utf8_lossy(&talk.rig.read_all()).into_owned()
        };
        assert!(read.contains("nbdinfo --list"), "{read}");
    }
}

#[test]
fn lengths_inside_options_are_checked() {
    for number in [6, 7] {
        for data in [
            &b""[..],
            b"\0\0\0",
            b"\0\0\0\x04disk",               // no count
            b"\0\0\0\x05disk\0\0",           // name too long for the option
            b"\xff\xff\xff\xffdisk\0\0",     // name of 4 GiB
            b"\0\0\0\x04disk\0\x01",         // one request, none there
            b"\0\0\0\x04disk\xff\xff\0\x03", // 65535 requests, one there
            b"\0\0\0\x04disk\0\x01\0\x03\0", // one byte too many
            b"\0\0\0\x03disk\0\0",           // name too short
        ] {
            Talk::new(3).refused(&option(number, data), INVALID).open();
        }
    }
    for number in [9, 10] {
        for data in [
            &b""[..],
            b"\0\0\0\x04disk",
            b"\0\0\0\x04disk\0\0\0\x01",
            b"\0\0\0\x04disk\xff\xff\xff\xff",
            b"\0\0\0\x04disk\0\0\0\x01\xff\xff\xff\xffbase:",
            b"\0\0\0\x04disk\0\0\0\x01\0\0\0\x06base:",
            b"\0\0\0\x04disk\0\0\0\x00x",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x01\xff\0\0\0\0",
        ] {
            Talk::new(3)
                .check(&option(8, &[]), &reply(8, ACK, ""))
                .refused(&option(number, data), INVALID)
                .open();
        }
    }
}

#[test]
fn contexts_are_listed_and_chosen() {
    let listed = [
        reply_bytes(9, CONTEXT, &[&[0, 0, 0, 0][..], b"base:allocation"].concat()),
        reply(9, ACK, ""),
    ]
    .concat();
    let mut talk = Talk::new(3);
    talk.refused(&option(9, &meta_data("disk", &[])), INVALID) // no chunks yet
        .refused(&option(10, &meta_data("disk", &["base:allocation"])), INVALID)
        .check(&option(8, &[]), &reply(8, ACK, ""));
    for queries in [&[][..], &["base:"], &["base:allocation"], &["x:y", "base:", "base:allocation"]]
    {
        // A name that nothing has: it is not looked up for this context.
        talk.check(&option(9, &meta_data("nothing", queries)), &listed);
    }
    for queries in [&["x:y"][..], &["base:other"], &["base"], &["qemu:"], &[""]] {
        talk.check(&option(9, &meta_data("disk", queries)), &reply(9, ACK, ""));
    }
    for queries in [&[][..], &["base:"], &["x:y"], &["base:allocation2"]] {
        talk.check(&option(10, &meta_data("disk", queries)), &reply(10, ACK, ""));
    }
    talk.open();
}

/// A reply that names a context.
fn context(option: u32, id: u32, name: &str) -> Vec<u8> {
    reply_bytes(option, CONTEXT, &[&id.to_be_bytes()[..], name.as_bytes()].concat())
}

#[test]
fn contexts_of_snapshots_are_listed_and_chosen() {
    let every: Vec<u8> = rig::BASES
        .iter()
        .flat_map(|(tag, _)| context(9, 0, &format!("sheepdog:dirty/{tag}")))
        .collect();
    let ack = reply(9, ACK, "");
    let list = |queries: &[&str]| option(9, &meta_data("disk", queries));
    let mut talk = Talk::new(3);
    talk.check(&option(8, &[]), &reply(8, ACK, ""));
    let allocation = context(9, 0, "base:allocation");
    talk.check(&list(&[]), &[&allocation[..], &every, &ack].concat())
        .check(&list(&["sheepdog:"]), &[&every[..], &ack].concat())
        .check(&list(&["sheepdog:dirty/"]), &[&every[..], &ack].concat())
        .check(&list(&["sheepdog:dirty/never"]), &ack)
        .check(
            &list(&["sheepdog:dirty/b1"]),
            &[&context(9, 0, "sheepdog:dirty/b1")[..], &ack].concat(),
        )
        .check(&option(9, &meta_data("nothing", &["sheepdog:"])), &ack)
        .check(&option(10, &meta_data("disk", &["sheepdog:"])), &reply(10, ACK, ""))
        .check(
            &option(
                10,
                &meta_data(
                    "disk",
                    &["sheepdog:dirty/monday", "sheepdog:dirty/x", "base:allocation"],
                ),
            ),
            &[
                context(10, 1, "base:allocation"),
                context(10, 2, "sheepdog:dirty/monday"),
                reply(10, ACK, ""),
            ]
            .concat(),
        )
        .check(&option(7, &info_data("disk", &[])), &{
            let mut answer = reply(7, INFO, "0000 0000000004000000 0ded");
            answer.extend(reply(7, ACK, ""));
            answer
        })
        // Block status of 8 KiB: zeros, and nothing differs.
        .check(
            &hex("25609513 0000 0007 00000000000000aa 0000000000001000 00002000"),
            &hex("668e33ef 0000 0005 00000000000000aa 0000000c 00000001 00002000 00000003
                  668e33ef 0001 0005 00000000000000aa 0000000c 00000002 00002000 00000000"),
        )
        .open();
}

#[test]
fn more_contexts_than_the_limit_are_refused_and_none_is_kept() {
    let names: Vec<String> =
        rig::BASES.iter().map(|(tag, _)| format!("sheepdog:dirty/{tag}")).collect();
    let queries: Vec<&str> = names.iter().map(String::as_str).collect();
    let limit = limits::NBD_CONTEXTS_MAX;
    let set = |count: usize| option(10, &meta_data("disk", &queries[..count]));
    let mut talk = Talk::new(3);
    talk.check(&option(8, &[]), &reply(8, ACK, ""));
    talk.rig.feed(&set(limit));
    assert!(talk.rig.read_all().ends_with(&reply(10, ACK, "")));
    talk.refused(&set(limit + 1), TOO_BIG);
    talk.rig.feed(&option(7, &info_data("disk", &[])));
    talk.rig.read_all();
    let status = Asked { flags: 0, command: 7, offset: 0, length: 4096 };
    assert_eq!(code(&ask(&mut talk.rig, Style::Structured, status, &[])), 22);
}

#[test]
fn a_snapshot_deleted_since_fails_the_request_and_not_the_connection() {
    let mut talk = Talk::new(3);
    talk.check(&option(8, &[]), &reply(8, ACK, ""));
    let queries = ["base:allocation", "sheepdog:dirty/gone"];
    talk.rig.feed(&option(10, &meta_data("disk", &queries)));
    talk.rig.feed(&option(7, &info_data("disk", &[])));
    talk.rig.read_all();
    let status = Asked { flags: 0, command: 7, offset: 0, length: 4096 };
    let outcome = ask_in(&mut talk.rig, Style::Structured, 2, status, &[]);
    assert_eq!(outcome, Outcome::Error(22, volume::Error::UnknownBase.to_string()));
    let read = Asked { flags: 0, command: 0, offset: 0, length: 512 };
    assert_eq!(ask(&mut talk.rig, Style::Structured, read, &[]), Outcome::Data(vec![0; 512]));
    talk.open();
}

/// What a client may do with block status after it chose contexts so.
fn check_context(chosen: &[(&str, &[&str])], works: bool) {
    let mut rig = Rig::new(Settings { can_multi_conn: true, is_local: false });
    rig.feed(&client::client_flags(3));
    rig.feed(&option(8, &[]));
    for (name, queries) in chosen {
        rig.feed(&option(10, &meta_data(name, queries)));
    }
    rig.feed(&option(7, &info_data("disk", &[])));
    rig.read_all();
    let status = Asked { flags: 0, command: 7, offset: 0, length: 4096 };
    let outcome = ask(&mut rig, Style::Structured, status, &[]);
    assert_eq!(code(&outcome), if works { 0 } else { 22 }, "{chosen:?}");
}

#[test]
fn only_the_last_choice_for_the_same_name_counts() {
    let all: &[&str] = &["base:allocation"];
    check_context(&[("disk", all)], true);
    check_context(&[("fixed", all)], false);
    check_context(&[("disk", all), ("fixed", all)], false);
    check_context(&[("fixed", all), ("disk", all)], true);
    check_context(&[("disk", all), ("disk", &["base:"])], false);
    check_context(&[("disk", all), ("disk", &[])], false);
    check_context(&[], false);
}

#[test]
fn a_choice_that_fails_forgets_the_one_before() {
    let mut rig = Rig::new(Settings { can_multi_conn: true, is_local: false });
    rig.feed(&client::client_flags(3));
    rig.feed(&option(8, &[]));
    rig.feed(&option(10, &meta_data("disk", &["base:allocation"])));
    rig.feed(&option(10, b"\0\0\0\x04disk"));
    rig.feed(&option(7, &info_data("disk", &[])));
    rig.read_all();
    let status = Asked { flags: 0, command: 7, offset: 0, length: 4096 };
    assert_eq!(code(&ask(&mut rig, Style::Structured, status, &[])), 22);
}

#[test]
fn what_is_not_offered_is_refused_and_the_handshake_goes_on() {
    let mut talk = Talk::new(3);
    talk.refused(&option(5, &[]), UNSUP) // STARTTLS
        .refused(&option(5, b"x"), INVALID)
        .refused(&option(4, b"disk"), UNSUP) // peek, withdrawn
        .refused(&option(0, &[]), UNSUP)
        .refused(&option(u32::MAX, &[7; 8192]), UNSUP)
        .refused(&option(8, b"x"), INVALID)
        .check(&option(8, &[]), &reply(8, ACK, ""))
        .check(&option(8, &[]), &reply(8, ACK, ""))
        .check(&option(2, b"bye"), &reply(2, ACK, ""));
    assert_eq!(*talk.closed(), CloseReason::Disconnected);
}

#[test]
fn wrong_magic_and_wrong_flags_hang_up() {
    for flags in [4, 0x8000_0000, u32::MAX] {
        let talk = Talk::new(flags);
        assert!(protocol(&talk.rig.closed));
    }
    let mut talk = Talk::new(3);
    talk.check(b"IHAVEOPX\0\0\0\x03\0\0\0\0", b"");
    assert!(protocol(&talk.rig.closed));
    // before fixed newstyle there was only one option
    let mut talk = Talk::new(2);
    talk.check(&option(3, &[]), b"");
    assert!(protocol(&talk.rig.closed));
}

#[test]
fn options_longer_than_the_limit_are_refused_before_they_arrive() {
    let max = proto::limits::NBD_OPTION_BYTES_MAX as u32;
    for length in [max + 1, 1 << 31, u32::MAX] {
        for number in [1, 2, 3, 7, 10, 99] {
            let mut header = option(number, &[]);
            header[12..].copy_from_slice(&length.to_be_bytes());
            let mut talk = Talk::new(3);
            talk.refused(&header, TOO_BIG);
            assert!(protocol(&talk.rig.closed), "{number} of {length}");
        }
    }
    let longest = vec![b'x'; max as usize];
    Talk::new(3).refused(&option(99, &longest), UNSUP).open();
}

/// As `nbdinfo --list` does: the names, and then of each what it is and which contexts it has.
#[test]
fn ten_thousand_volumes_are_asked_about_in_one_handshake() {
    let mut rig = Rig::new(Settings { can_multi_conn: true, is_local: true });
    let names: Vec<String> = (0..10_000).map(|number| format!("volume-{number}")).collect();
    rig.offers.truncate(1);
    rig.names = names.clone();
    rig.feed(&client::client_flags(3));
    rig.feed(&option(11, &[]));
    rig.feed(&option(3, &[]));
    let listed = rig.read_all();
    let mut expected: Vec<u8> = Vec::new();
    for name in ["disk"].into_iter().chain(names.iter().map(String::as_str)) {
        let data = [&(name.len() as u32).to_be_bytes(), name.as_bytes()].concat();
        expected.extend(reply_bytes(3, SERVER, &data));
    }
    expected.extend(reply(3, ACK, ""));
    assert!(listed.ends_with(&expected), "not all names are listed");
    for name in &names {
        rig.feed(&option(9, &meta_data(name, &[])));
        rig.feed(&option(6, &info_data("disk", &[1, 2, 3])));
        // A slow client: all of it takes more than the time of a handshake.
        rig.pass(proto::Duration::from_millis(5));
        let read = rig.read_all();
        assert_eq!(read[read.len() - 8..], [0, 0, 0, 1, 0, 0, 0, 0], "{name}: no ACK at the end");
    }
    assert_eq!(rig.closed, None);
}

#[test]
fn a_handshake_has_a_budget_of_bytes() {
    let mut talk = Talk::new(3);
    talk.rig.names = vec!["a".repeat(255); 100_000];
    let mut lists = 0;
    let bytes = loop {
        talk.rig.feed(&option(3, &[]));
        let read = talk.rig.read_all().len();
        if talk.rig.closed.is_some() {
            break read;
        }
        lists += 1;
        assert!(lists < 100, "it goes on and on");
    };
    assert_eq!(lists, (proto::limits::NBD_HANDSHAKE_BYTES_MAX / (100_000 * 279)) + 1);
    assert!(bytes < 200, "a refusal only");
    assert!(protocol(&talk.rig.closed));
}

#[test]
fn a_client_that_leaves_while_it_is_asked_for_closes() {
    let mut rig = Rig::new(Settings { can_multi_conn: true, is_local: false });
    rig.at_once = false;
    rig.feed(&client::handshake("disk", Style::Simple, false));
    assert!(rig.connection.wants_input(), "to notice that the client leaves");
    rig.act(|connection, now, effects| connection.handle_eof(now, effects));
    assert_eq!(rig.closed, Some(CloseReason::Vanished));
    rig.answer(); // too late, and ignored
    assert!(rig.connection.is_closed());
}
