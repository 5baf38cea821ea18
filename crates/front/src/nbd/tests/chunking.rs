//! The same bytes in other pieces give the same output.

use super::*;
use proptest::prelude::*;

/// Something a client may say after the handshake, with its payload.
fn message() -> impl Strategy<Value = (Asked, Vec<u8>)> {
    let sane = (0u16..10, 0u64..256, prop_oneof![0u64..16, Just(130), Just(300)], 0u16..4);
    sane.prop_map(|(command, sector, sectors, flags)| {
        let command = if command == 2 { 1 } else { command };
        let asked = Asked { flags, command, offset: sector * 512, length: sectors * 512 };
        let payload_bytes = if command == 1 { sectors * 512 } else { 0 };
        let payload = (0..payload_bytes).map(|at| (at / 512 + at % 7) as u8).collect();
        (asked, payload)
    })
}

/// All the client says, and where it is cut.
fn script() -> impl Strategy<Value = (Vec<u8>, Vec<prop::sample::Index>)> {
    let ends = prop_oneof![
        4 => Just(Vec::new()),
        1 => Just(Asked { flags: 0, command: 2, offset: 0, length: 0 }.bytes(0)),
        1 => prop::collection::vec(any::<u8>(), 28..60),
    ];
    let options = prop_oneof![
        3 => Just(Vec::new()),
        1 => Just([3, 5, 77, 8].map(|number| client::option(number, &[])).concat()),
    ];
    let messages = prop::collection::vec(message(), 0..20);
    let name = prop_oneof![5 => Just("disk"), 1 => Just("fixed"), 1 => Just("taken")];
    let style = prop::sample::select(&Style::ALL[..]);
    let parts = (name, style, any::<bool>(), options, messages, ends);
    let bytes = parts.prop_map(|(name, style, allocation, options, messages, end)| {
        let mut bytes = client::handshake(name, style, allocation);
        bytes.splice(4..4, options);
        for (asked, payload) in messages {
            bytes.extend(asked.bytes_in(style, asked.length * 256 + asked.offset / 512));
            bytes.extend(payload);
        }
        bytes.extend(end);
        bytes
    });
    (bytes, prop::collection::vec(any::<prop::sample::Index>(), 0..40))
}

/// The server's output when the pieces end at `cuts`. Requests are completed at the end, so that
/// their replies come in the same order.
fn output(bytes: &[u8], cuts: &[usize]) -> (Vec<u8>, Option<CloseReason>) {
    let mut rig = Rig::new(Settings { can_multi_conn: true, is_local: false });
    rig.at_once = false;
    let mut read = Vec::new();
    let mut start = 0;
    for &end in cuts.iter().chain([&bytes.len()]) {
        rig.feed(&bytes[start..end]);
        start = end;
        while !rig.questions.is_empty() {
            read.extend(rig.read_all());
            rig.answer();
            rig.pump();
        }
    }
    while !rig.requests.is_empty() {
        rig.complete(0, None);
    }
    while !rig.sent.is_empty() {
        read.extend(rig.read_all());
    }
    (read, rig.closed)
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn pieces_do_not_matter((bytes, cuts) in script()) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let whole = output(&bytes, &[]);
        prop_assert!(whole == output(&bytes, &cuts), "cut at {cuts:?}");
        if bytes.len() < 20_000 {
            let every: Vec<usize> = (0..bytes.len()).collect();
            prop_assert!(whole == output(&bytes, &every), "cut everywhere");
        }
    }
}
