//! See `inputs/diff_stream.rs`; the corpus is replayed by a test of `node`.
#![no_main]

#[path = "../inputs/diff_stream.rs"]
mod diff_stream;

libfuzzer_sys::fuzz_target!(|data: &[u8]| diff_stream::diff_stream(data));
