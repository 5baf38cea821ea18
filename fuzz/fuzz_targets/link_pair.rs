//! Steps of two links, of the network between them and of the nodes behind them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(link::fuzz::pair::fuzz_pair(data)));
