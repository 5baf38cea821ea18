//! See `inputs/journal_records.rs`; the corpus is replayed by a test of the parser's crate.
#![no_main]

#[path = "../inputs/journal_records.rs"]
mod journal_records;

libfuzzer_sys::fuzz_target!(|data: &[u8]| journal_records::journal_records(data));
