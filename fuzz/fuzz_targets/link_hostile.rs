//! Steps of a link and of a peer that says what it likes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(link::fuzz::hostile::fuzz_hostile(data)));
