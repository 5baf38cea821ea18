//! Every record of a disk, as its medium may give it back.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| store::fuzzing::disk_record(data));
