//! Replays the fuzz corpora, so that what a fuzzer once found stays found, and keeps the seeds in
//! them: each is written here, named for its way through the protocol. After a change of the
//! seeds, `UPDATE_CORPUS=1 cargo test -p front --test corpus` writes them anew.

#[path = "../../../fuzz/inputs/corpus.rs"]
mod corpus;

use front::nbd::fuzz::client::{
    Asked, Style, client_flags, handshake, info_data, meta_data, option,
};
use front::nbd::fuzz::{fuzz_handshake, fuzz_transmission};

type Seeds = Vec<(&'static str, Vec<u8>)>;

#[test]
fn corpus_of_handshakes() {
    corpus::check("nbd_handshake", handshakes(), fuzz_handshake);
}

#[test]
fn corpus_of_transmissions() {
    corpus::check("nbd_transmission", transmissions(), fuzz_transmission);
}

/// The client's flags, then these options.
fn options(parts: &[Vec<u8>]) -> Vec<u8> {
    [client_flags(3), parts.concat()].concat()
}

fn go(name: &str) -> Vec<u8> {
    option(7, &info_data(name, &[1, 3]))
}

/// An option that claims a length it does not have.
fn claims(number: u32, length: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = option(number, data);
    bytes[12..16].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn request(flags: u16, command: u16, offset: u64, length: u64) -> Vec<u8> {
    Asked { flags, command, offset, length }.bytes(u64::from(command) + 1)
}

/// With an extended header.
fn long(flags: u16, command: u16, offset: u64, length: u64) -> Vec<u8> {
    Asked { flags, command, offset, length }.extended_bytes(u64::from(command) + 1)
}

fn handshakes() -> Seeds {
    let all = meta_data("disk", &["base:allocation"]);
    let write = [request(1, 1, 512, 1024), vec![7; 1024]].concat();
    vec![
        ("empty", Vec::new()),
        ("flags-cut", vec![0, 0]),
        ("flags-unknown", client_flags(7)),
        ("flags-none-export-name", [client_flags(0), option(1, b"disk")].concat()),
        ("flags-none-list", [client_flags(0), option(3, &[])].concat()),
        ("export-name-without-zeroes", options(&[option(1, b"disk")])),
        ("export-name-empty", options(&[option(1, b"")])),
        ("export-name-unknown", options(&[option(1, b"nothing")])),
        ("export-name-read-only", options(&[option(1, b"fixed"), request(0, 0, 0, 512)])),
        ("magic-wrong", options(&[b"IHAVEOPX\0\0\0\x03\0\0\0\0".to_vec()])),
        ("abort", options(&[option(2, b"")])),
        ("abort-with-data", options(&[option(2, b"bye")])),
        ("list-twice", options(&[option(3, b""), option(3, b"")])),
        ("list-with-data", options(&[option(3, b"x")])),
        ("starttls", options(&[option(5, b""), go("disk")])),
        ("extended-headers", options(&[option(11, b""), go("disk")])),
        ("unknown-option", options(&[option(99, b"data"), go("disk")])),
        ("info-then-go", options(&[option(6, &info_data("disk", &[0, 1, 2, 3])), go("disk")])),
        ("info-unknown", options(&[option(6, &info_data("nothing", &[3]))])),
        ("info-name-empty", options(&[option(6, &info_data("", &[]))])),
        ("info-count-too-large", options(&[option(6, b"\0\0\0\x04disk\xff\xff\0\x03")])),
        ("info-name-too-long", options(&[option(6, b"\xff\xff\xff\xffdisk\0\0")])),
        ("info-not-utf-8", options(&[option(6, b"\0\0\0\x02\xff\xfe\0\0")])),
        ("go-taken-then-disk", options(&[go("taken"), go("disk"), request(0, 0, 0, 512)])),
        ("structured-with-data", options(&[option(8, b"x")])),
        ("context-before-structured", options(&[option(10, &all), go("disk")])),
        ("context-list-wildcard", {
            options(&[option(8, b""), option(9, &meta_data("disk", &["base:"]))])
        }),
        ("context-list-all", options(&[option(8, b""), option(9, &meta_data("disk", &[]))])),
        ("context-queries-too-many", {
            options(&[option(8, b""), option(10, b"\0\0\0\x04disk\xff\xff\xff\xff\0\0\0\0")])
        }),
        ("context-of-another-name", {
            let status = request(0, 7, 0, 4096);
            let other = meta_data("fixed", &["base:allocation"]);
            options(&[option(8, b""), option(10, &other), go("disk"), status])
        }),
        ("context-of-a-snapshot", {
            let both = meta_data("disk", &["sheepdog:dirty/monday", "base:allocation"]);
            let status = request(0, 7, 0, 65_536);
            options(&[option(8, b""), option(10, &both), go("disk"), write.clone(), status])
        }),
        ("context-of-a-snapshot-that-is-gone", {
            let gone = meta_data("disk", &["sheepdog:dirty/gone", "sheepdog:dirty/monday"]);
            options(&[option(8, b""), option(10, &gone), go("disk"), request(8, 7, 0, 8192)])
        }),
        ("context-list-snapshots", {
            let names = ["sheepdog:", "sheepdog:dirty/", "sheepdog:dirty/b1", "sheepdog:dirty"];
            options(&[option(8, b""), option(9, &meta_data("disk", &names)), go("disk")])
        }),
        ("contexts-too-many", {
            let names = ["tuesday", "monday", "b1", "b2", "b3", "b4", "b5", "b6", "b7"];
            let names = names.map(|tag| format!("sheepdog:dirty/{tag}"));
            let names = names.each_ref().map(String::as_str);
            let status = request(0, 7, 0, 4096);
            options(&[option(8, b""), option(10, &meta_data("disk", &names)), go("disk"), status])
        }),
        ("contexts-the-same-twice", {
            let names = ["sheepdog:dirty/b1", "sheepdog:dirty/b1", "base:allocation"];
            options(&[option(8, b""), option(10, &meta_data("disk", &names)), go("disk")])
        }),
        ("option-longest", options(&[option(99, &[7; 8192])])),
        ("option-too-long", options(&[claims(99, 8193, b"")])),
        ("option-of-4-gib", options(&[claims(7, u32::MAX, b"disk")])),
        ("option-cut", options(&[claims(7, 100, b"disk")])),
        ("go-then-everything", {
            let parts = [
                handshake("disk", Style::Structured, true),
                write.clone(),
                request(4, 0, 0, 4096),
                request(8, 7, 0, 65_536),
                request(2, 6, 0, 8192),
                request(0, 4, 0, 8192),
                request(0, 5, 0, 8192),
                request(0, 3, 0, 0),
                request(0, 2, 0, 0),
            ];
            parts.concat()
        }),
        ("go-then-simple-replies", {
            let parts =
                [handshake("disk", Style::Simple, false), write.clone(), request(0, 0, 0, 4096)];
            parts.concat()
        }),
        ("go-then-write-read-only", {
            [handshake("fixed", Style::Structured, false), write, request(0, 2, 0, 0)].concat()
        }),
        ("go-then-write-too-long", {
            [handshake("disk", Style::Structured, false), request(0, 1, 0, (32 << 20) + 512)]
                .concat()
        }),
        ("go-then-offset-overflow", {
            [handshake("huge", Style::Structured, false), request(0, 0, u64::MAX - 511, 1024)]
                .concat()
        }),
        ("go-then-everything-extended", {
            let parts = [
                handshake("huge", Style::Extended, true),
                [long(33, 1, 512, 1024), vec![7; 1024]].concat(),
                long(4, 0, 0, 4096),
                long(0, 7, 0, 1 << 40),
                long(2, 6, 0, 5 << 30),
                long(0, 4, 0, 1 << 40),
                long(0, 5, 0, 1 << 33),
                long(0, 3, 0, 0),
                [long(32, 6, 0, 64), vec![9; 64]].concat(),
                long(0, 1, 0, 4096),
                long(0, 6, 512, u64::MAX - 511),
                long(0, 2, 0, 0),
            ];
            parts.concat()
        }),
        ("extended-then-structured", options(&[option(11, b""), option(8, b""), go("disk")])),
        ("extended-then-export-name", options(&[option(11, b""), option(1, b"disk")])),
        ("extended-with-data", options(&[option(11, b"x"), go("disk")])),
        ("extended-after-context", {
            let parts = [option(8, b""), option(10, &all), option(11, b""), go("disk")];
            [options(&parts), long(0, 7, 0, 1 << 20)].concat()
        }),
        ("extended-with-contexts-of-snapshots", {
            let names = ["sheepdog:dirty/monday", "base:allocation", "sheepdog:dirty/b7"];
            let parts = [option(11, b""), option(10, &meta_data("huge", &names)), go("huge")];
            let write = [long(33, 1, 4096, 4096), vec![7; 4096]].concat();
            [options(&parts), write, long(0, 7, 0, 1 << 50), long(8, 7, 512, 1 << 40)].concat()
        }),
        ("extended-between-contexts-and-go", {
            let names = ["sheepdog:dirty/monday", "sheepdog:dirty/gone"];
            let chosen = option(10, &meta_data("disk", &names));
            let parts = [option(8, b""), chosen, option(11, b""), go("disk")];
            [options(&parts), long(0, 7, 0, 1 << 20), long(0, 0, 0, 512)].concat()
        }),
        ("extended-then-short-header", {
            [options(&[option(11, b""), go("disk")]), request(0, 0, 0, 512), vec![0; 4]].concat()
        }),
        ("extended-payload-too-long", {
            [handshake("disk", Style::Extended, true), long(32, 1, 0, 1 << 40)].concat()
        }),
        (
            "go-then-magic-wrong",
            [handshake("disk", Style::Structured, false), vec![0x25; 28]].concat(),
        ),
        (
            "go-then-header-cut",
            [handshake("disk", Style::Structured, false), vec![0x25, 0x60, 0x95]].concat(),
        ),
    ]
}

// Steps as `fuzz_transmission` reads them. Settings: 1 several connections, 2 structured,
// 4 contexts, 4 without 2 extended headers, 8 and 16 the size of pieces, 32 all at once, 64 and
// 128 the volume.
const SIMPLE: u8 = 0;
const SEVERAL: u8 = 1;
const CHUNKS: u8 = 2 + 4;
const EXTENDED: u8 = 4;
const PIECES_OF_4096: u8 = 8;
const PIECES_OF_29: u8 = 16;
const BYTEWISE: u8 = 24;
const AT_ONCE: u8 = 32;
const READ_ONLY: u8 = 64;
const HUGE: u8 = 128;

/// Asks for a known command at the start of the volume; lengths count in sectors.
fn ask(command: u8, sectors: u8) -> Vec<u8> {
    vec![0, command, 0, 47 + sectors]
}

/// Asks with the offset and length of these choices.
fn ask_at(command: u8, offset: u8, length: u8) -> Vec<u8> {
    vec![0, command, offset, length]
}

/// Pays so many bytes of the payload, up to 128.
fn pay(bytes: u8) -> Vec<u8> {
    vec![6, bytes - 1]
}

/// Pays so many blocks of the payload, up to 128.
fn pay_blocks(blocks: u8) -> Vec<u8> {
    vec![6, 127 + blocks]
}

fn complete(index: u8) -> Vec<u8> {
    vec![8, index]
}

/// Completes the first request with the error of this number.
fn fail(error: u8) -> Vec<u8> {
    vec![10, error, 0]
}

/// Reads up to 2^n bytes.
fn read(n: u8) -> Vec<u8> {
    vec![11, n]
}

/// Lets 2^n milliseconds pass.
fn pass(n: u8) -> Vec<u8> {
    vec![12, n]
}

fn steps(settings: u8, parts: &[Vec<u8>]) -> Vec<u8> {
    [vec![settings], parts.concat()].concat()
}

fn transmissions() -> Seeds {
    let every = |settings| {
        let mut parts: Vec<Vec<u8>> = [0, 3, 4, 5, 6, 7].map(|command| ask(command, 8)).into();
        parts.extend([ask(1, 3), pay(128), pay_blocks(1), ask_at(3, 0, 0)]);
        steps(settings, &parts)
    };
    let overlapping = [ask(1, 16), pay_blocks(2), ask(0, 16), ask(1, 8), pay_blocks(1), ask(0, 9)];
    vec![
        ("nothing", steps(SIMPLE, &[])),
        ("every-command-simple", every(SIMPLE | AT_ONCE)),
        ("every-command-in-chunks", every(CHUNKS | AT_ONCE)),
        ("every-command-read-only", every(CHUNKS | READ_ONLY)),
        ("every-command-bytewise", every(CHUNKS | BYTEWISE)),
        ("every-command-huge", every(CHUNKS | HUGE)),
        ("overlapping-in-order", {
            let ends = [0, 0, 0, 0].map(complete);
            steps(CHUNKS | PIECES_OF_29, &[overlapping.concat(), ends.concat(), read(20)])
        }),
        ("overlapping-out-of-order", {
            let ends = [3, 2, 1, 0].map(complete);
            steps(SIMPLE | PIECES_OF_4096, &[overlapping.concat(), ends.concat(), read(20)])
        }),
        ("every-error", {
            let fails = (0..9).map(|error| [ask(0, 4), fail(error)].concat()).collect::<Vec<_>>();
            steps(CHUNKS, &[fails.concat(), read(20)])
        }),
        ("every-command-extended", {
            // 176 takes the length from the byte behind it: sectors.
            let ask = |command: u8, sectors: u8| vec![0, command, 0, 176, 47 + sectors];
            let mut parts: Vec<Vec<u8>> = [0, 3, 4, 5, 6, 7].map(|command| ask(command, 8)).into();
            parts.extend([ask(1, 3), pay(128), pay_blocks(1), vec![0, 3, 0, 176, 0]]);
            steps(EXTENDED, &parts)
        }),
        ("every-long-length", {
            let asks = [4, 5, 6, 7, 0].map(|command| {
                (0..7).map(|length| ask_at(command, 0, length)).collect::<Vec<_>>().concat()
            });
            steps(EXTENDED | AT_ONCE | HUGE, &asks)
        }),
        ("extended-payload-where-none-belongs", {
            // A flag of one bit, the fifth, with a trim.
            let trim = vec![0, (24 << 3) + 4, 5, 0, 176, 48];
            steps(EXTENDED | PIECES_OF_29, &[trim, pay_blocks(1), ask_at(6, 0, 0)])
        }),
        ("extended-write-without-the-flag", {
            let write = vec![0, (28 << 3) + 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 176, 48];
            steps(EXTENDED, &[write, ask_at(6, 0, 0)])
        }),
        ("every-length", {
            let asks = (0..48).map(|length| ask_at(0, 0, length)).collect::<Vec<_>>();
            steps(CHUNKS | AT_ONCE | HUGE, &asks[10..])
        }),
        ("every-offset", {
            let asks = (0..96).map(|offset| ask_at(0, offset, 48)).collect::<Vec<_>>();
            steps(CHUNKS | AT_ONCE, &asks[..80])
        }),
        ("write-longest-at-the-end", steps(CHUNKS | HUGE, &[ask_at(1, 5, 7), pay_blocks(128)])),
        ("write-too-long", steps(CHUNKS, &[ask(0, 1), ask_at(1, 0, 8)])),
        ("write-skipped", {
            steps(
                CHUNKS | READ_ONLY | PIECES_OF_29,
                &[ask(1, 8), pay(100), pay_blocks(2), ask(0, 1)],
            )
        }),
        ("write-of-nothing", steps(CHUNKS, &[ask_at(1, 0, 0), ask(0, 1)])),
        ("payload-that-stops", steps(CHUNKS, &[ask(1, 100), pay_blocks(5), pass(15)])),
        ("payload-that-trickles", {
            let drops = [pay(1), pass(12)].concat().repeat(9);
            steps(SIMPLE, &[ask(1, 100), drops])
        }),
        ("replies-unread", {
            let asks = [ask(0, 192), complete(0)].concat().repeat(30);
            steps(CHUNKS, &[asks, pass(15), read(10), pass(15), pass(15)])
        }),
        ("in-flight-to-the-limit", {
            let parts = [ask(0, 8).repeat(260), complete(5), read(14), complete(9)];
            steps(CHUNKS, &parts)
        }),
        ("bytes-to-the-limit", {
            let longest = ask_at(0, 0, 7).repeat(4);
            steps(CHUNKS | HUGE, &[longest, complete(0), read(26), complete(0), read(26)])
        }),
        ("resize-down-in-flight", {
            let parts = [ask_at(0, 7, 60), vec![13, 2], ask_at(0, 7, 60), complete(0), complete(0)];
            steps(CHUNKS, &parts)
        }),
        ("disc-in-flight", {
            steps(CHUNKS, &[ask(0, 8), vec![0, 2, 2, 0, 0], ask(0, 8), complete(0), read(20)])
        }),
        ("eof-in-payload", steps(CHUNKS, &[ask(0, 8), ask(1, 8), pay(9), vec![15, 0]])),
        ("stop-in-flight", {
            steps(CHUNKS, &[ask(0, 8), vec![15, 20], complete(0), read(3), read(20)])
        }),
        ("several-contexts-out-of-order", {
            let asks = [ask(7, 100), ask(1, 16), pay_blocks(2), ask(7, 32)].concat();
            let ends = [0, 2, 1, 2, 0, 1].map(complete).concat();
            steps(CHUNKS, &[asks, ends, fail(0), read(20), complete(0), read(20)])
        }),
        ("several-contexts-to-the-limit", {
            steps(CHUNKS, &[ask(7, 8).repeat(260), complete(5), read(14), complete(9)])
        }),
        ("several-contexts-and-goodbye", {
            steps(CHUNKS, &[ask(7, 8), vec![0, 2, 2, 0, 0], complete(0), complete(0), read(20)])
        }),
        ("several-contexts-extended", {
            // All of the volume, in three contexts of which one is gone.
            steps(EXTENDED | AT_ONCE | HUGE, &[ask_at(7, 0, 1), read(20), ask_at(7, 0, 2)])
        }),
        ("several-contexts-extended-out-of-order", {
            // 176 takes the length from the byte behind it: sectors.
            let status = |sectors: u8| vec![0, 7, 0, 176, 47 + sectors];
            let write = [vec![0, 1, 0, 176, 47 + 16], pay_blocks(2)].concat();
            let asks = [status(100), write, ask_at(7, 0, 1), status(32)].concat();
            let ends = [0, 2, 1, 3, 0, 1, 2].map(complete).concat();
            let parts = [asks, ends, fail(0), read(20), complete(0), complete(0), read(20)];
            steps(EXTENDED | PIECES_OF_29, &parts)
        }),
        ("several-contexts-extended-to-the-limit", {
            let parts = [ask_at(7, 0, 1).repeat(260), complete(5), read(14), complete(9)];
            steps(EXTENDED | HUGE, &parts)
        }),
        ("one-context-extended", steps(SEVERAL | EXTENDED | HUGE | AT_ONCE, &[ask_at(7, 0, 1)])),
        ("several-contexts-and-a-long-trim-at-a-stop", {
            let asks = [ask_at(7, 0, 1), ask_at(4, 0, 1), complete(0), complete(0)].concat();
            steps(EXTENDED | HUGE, &[asks, vec![15, 20], complete(0), complete(0), read(20)])
        }),
        ("unknown-command", steps(CHUNKS, &[vec![0, 2, 9, 0, 48], ask(0, 8)])),
        ("unknown-command-long", steps(CHUNKS, &[vec![0, 2, 9, 0, 8], ask(0, 8)])),
        ("flags-wrong", steps(SIMPLE, &[vec![0, 24 * 8, 2, 0, 48], ask(0, 8)])),
        ("babble", steps(CHUNKS, &[ask(0, 8), vec![14, 28], vec![0x25; 28], ask(0, 8)])),
        ("babble-like-a-request", {
            steps(CHUNKS | AT_ONCE, &[vec![14, 28], request(0, 0, 0, 4096), ask(0, 8)])
        }),
    ]
}
