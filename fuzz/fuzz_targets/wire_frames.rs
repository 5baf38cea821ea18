//! See `inputs/wire_frames.rs`; the corpus is replayed by a test of the parser's crate.
#![no_main]

#[path = "../inputs/wire_frames.rs"]
mod wire_frames;

libfuzzer_sys::fuzz_target!(|data: &[u8]| wire_frames::wire_frames(data));
