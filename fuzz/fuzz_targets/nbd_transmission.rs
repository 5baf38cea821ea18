//! Steps of a client, a volume and a socket after the handshake.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| front::nbd::fuzz::fuzz_transmission(data));
