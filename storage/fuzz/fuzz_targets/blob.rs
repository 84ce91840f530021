//! Any bytes as a layer's blob: gzip, zstd or plain.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| storage::fuzzing::blob(bytes));
