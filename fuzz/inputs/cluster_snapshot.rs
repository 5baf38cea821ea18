/// A snapshot of the agreed state, or a command of its log. The first byte says which, and whether
/// the snapshot's checksum is made to fit. What is accepted must be whole: it can be used, and
/// written again as it was.
pub fn cluster_snapshot(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else { return };
    if choice % 3 == 2 {
        if let Ok(command) = cluster::Command::decode(bytes) {
            // A log holds only what was bounded.
            if let Ok(command) = command.bounded() {
                let again = cluster::Command::decode(&command.encode());
                assert_eq!(again.as_ref(), Ok(&command));
            }
        }
        return;
    }
    let mut bytes = bytes.to_vec();
    if choice % 3 == 1 && bytes.len() >= 9 {
        let checksum = proto::crc64(&bytes[9..]) ^ u64::from(bytes[0]);
        bytes[1..9].copy_from_slice(&checksum.to_le_bytes());
    }
    if let Ok(state) = cluster::State::decode(&bytes) {
        state.check();
        let again = cluster::State::decode(&state.encode()).expect("what we write we can read");
        assert_eq!(again.encode(), state.encode());
    }
}
