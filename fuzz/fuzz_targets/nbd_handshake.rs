//! All a client may say from its first byte on.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| front::nbd::fuzz::fuzz_handshake(data));
