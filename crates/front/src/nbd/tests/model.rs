//! A client with an obvious model of the volume: random requests, valid and not, and what each
//! must bring.

use super::*;
use proptest::prelude::*;
use proto::{LayerId, limits};

/// Of the volume, in bytes. Not a whole number of blocks.
const BYTES: usize = 64 * 4096 + 512;

#[derive(Clone, Debug)]
struct Step {
    asked: Asked,
    /// What a write writes, byte after byte.
    fill: u8,
}

fn step() -> impl Strategy<Value = Step> {
    let command = prop_oneof![
        6 => Just(0u16), 6 => Just(1), 1 => Just(3), 3 => Just(4), 1 => Just(5), 3 => Just(6),
        3 => Just(7), 1 => 8u16..12,
    ];
    let flags = prop_oneof![6 => Just(0u16), 2 => Just(1), 2 => 0u16..64];
    let sectors = BYTES as u64 / 512;
    let offset = prop_oneof![
        12 => (0..sectors + 8).prop_map(|sector| sector * 512),
        1 => 0..BYTES as u64 * 2,
        1 => prop_oneof![Just(u64::MAX), Just(u64::MAX - 511), Just(1 << 63)],
    ];
    let length = prop_oneof![
        12 => (0u64..40).prop_map(|sectors| sectors * 512),
        1 => 0u64..4096,
        1 => (0u64..600).prop_map(|sectors| sectors * 512),
        1 => prop_oneof![Just(1 << 32), Just(u64::MAX), Just(u64::MAX - 511), Just(1 << 63)],
    ];
    (command, flags, offset, length, any::<u8>()).prop_map(
        |(command, flags, offset, length, fill)| {
            let (offset, length) =
                if command == 3 && fill < 250 { (0, 0) } else { (offset, length) };
            Step { asked: Asked { flags, command, offset, length }, fill }
        },
    )
}

/// What the protocol says must come of a request to a volume of `content`, for a client that has
/// asked for what differs from `base` if there is one.
fn expected(
    content: &mut [u8],
    base: Option<&[u8]>,
    read_only: bool,
    style: Style,
    step: &Step,
) -> Outcome {
    let Asked { flags, command, offset, length } = step.asked;
    let error = |number| Outcome::Error(number, String::new());
    let known_flags = match command {
        0 if style.has_chunks() => 1 | 4,
        1 if style == Style::Extended => 1 | 32,
        0 | 1 | 3 | 4 | 5 => 1,
        6 => 1 | 2 | 16,
        7 => 1 | 8,
        _ => return error(22),
    };
    if flags & !known_flags != 0 {
        return error(22);
    }
    if command == 3 {
        return if offset == 0 && length == 0 { Outcome::Done } else { error(22) };
    }
    if command == 7 && (!style.has_chunks() || length == 0) {
        return error(22);
    }
    if read_only && matches!(command, 1 | 4 | 6) {
        return error(1);
    }
    if offset % 512 != 0 || length % 512 != 0 {
        return error(22);
    }
    if command == 0 && length > limits::NBD_PAYLOAD_BYTES_MAX as u64 {
        return error(if flags & 4 != 0 { 75 } else { 22 });
    }
    if u128::from(offset) + u128::from(length) > content.len() as u128 {
        return error(if matches!(command, 1 | 6) { 28 } else { 22 });
    }
    let range = &mut content[offset as usize..offset as usize + length as usize];
    match command {
        0 if length == 0 && style.has_chunks() => return Outcome::Done,
        0 => return Outcome::Data(range.to_vec()),
        1 => range.fill(step.fill),
        4 | 6 => range.fill(0), // ours reads zeros after a trim, which no client may rely on
        7 => {
            let one = flags & 8 != 0;
            let zero = |block: &[u8]| block.iter().all(|&byte| byte == 0);
            let here = extents(content.len(), offset, length, one, |block| {
                if zero(&content[block]) { 3 } else { 0 }
            });
            let Some(base) = base else { return Outcome::Extents(here) };
            let dirty = extents(content.len(), offset, length, one, |block| {
                match (content[block.clone()] == base[block.clone()], zero(&content[block])) {
                    (true, _) => 0,
                    (false, false) => 1,
                    (false, true) => 3,
                }
            });
            return Outcome::Contexts(vec![here, dirty]);
        }
        _ => {}
    }
    Outcome::Done
}

/// Runs of blocks with equal flags.
fn extents(
    bytes: usize,
    offset: u64,
    length: u64,
    one: bool,
    flags_of: impl Fn(std::ops::Range<usize>) -> u32,
) -> Vec<(u64, u32)> {
    let mut runs: Vec<(u64, u32)> = Vec::new();
    for sector in (offset as usize..offset as usize + length as usize).step_by(512) {
        let block = sector / 4096 * 4096;
        let flags = flags_of(block..(block + 4096).min(bytes));
        match runs.last_mut() {
            Some(run) if run.1 == flags => run.0 += 512,
            _ => runs.push((512, flags)),
        }
    }
    runs.truncate(if one { 1 } else { usize::MAX });
    runs
}

fn check(steps: &[Step], style: Style, dirty: bool, read_only: bool) {
    let mut rig = Rig::new(Settings { can_multi_conn: true, is_local: false });
    rig.offers[0].bytes = BYTES as u64;
    rig.offers[0].read_only = read_only;
    let contexts: &[&str] = match (style.has_chunks(), dirty) {
        (false, _) => &[],
        (true, false) => &["base:allocation"],
        (true, true) => &["sheepdog:dirty/monday", "base:allocation"],
    };
    rig.feed(&client::handshake_with("disk", style, contexts));
    rig.read_all();
    let mut content = vec![0; BYTES];
    let mut base = content.clone();
    for (place, step) in steps.iter().enumerate() {
        if place == steps.len() / 2 {
            rig.memory.keep(LayerId(11));
            base.clone_from(&content);
        }
        let mut step = step.clone();
        if step.asked.length >= 1 << 32 && step.asked.payload_bytes(Style::Extended) > 0
            || style != Style::Extended
        {
            // Neither can be said: the one closes the connection, the other has 32 bits.
            step.asked.length %= 1 << 18;
        }
        let step = &step;
        let payload = vec![step.fill; step.asked.payload_bytes(style) as usize];
        let base = (style.has_chunks() && dirty).then_some(&base[..]);
        let outcome = match ask_in(&mut rig, style, contexts.len(), step.asked, &payload) {
            Outcome::Error(number, _) => Outcome::Error(number, String::new()),
            other => other,
        };
        let expected = expected(&mut content, base, read_only, style, step);
        assert!(outcome == expected, "{step:?} brought {outcome:?}, not {expected:?}");
    }
    assert_eq!(rig.closed, None);
    rig.feed(&Asked { flags: 0, command: 2, offset: 0, length: 0 }.bytes_in(style, 0));
    assert_eq!(rig.closed, Some(CloseReason::Disconnected));
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn every_request_brings_what_the_model_says(
        steps in prop::collection::vec(step(), 0..60),
        style in prop::sample::select(&Style::ALL[..]),
        dirty in any::<bool>(),
        read_only in prop::bool::weighted(0.1),
    ) {
        check(&steps, style, dirty, read_only);
    }

    /// The steps of the fuzzer, without a fuzzer: orders of messages nobody thought of.
    #[test]
    fn any_order_of_messages_leaves_the_server_standing(
        data in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        crate::nbd::fuzz::fuzz_transmission(&data);
    }

    #[test]
    fn any_order_of_options_leaves_the_server_standing(
        options in prop::collection::vec((0u32..13, 0usize..8), 0..30),
        tail in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let datas: [&[u8]; 8] = [
            b"",
            b"disk",
            &client::info_data("disk", &[1, 3]),
            &client::info_data("nothing", &[]),
            &client::meta_data("disk", &["base:allocation"]),
            &client::meta_data("disk", &["base:"]),
            &client::meta_data("disk", &["sheepdog:", "base:allocation", "sheepdog:dirty/b1"]),
            &client::meta_data("disk", &[]),
        ];
        let mut bytes = client::client_flags(3);
        for (number, data) in options {
            bytes.extend(client::option(number, datas[data]));
        }
        bytes.extend(tail);
        crate::nbd::fuzz::fuzz_handshake(&bytes);
    }
}
