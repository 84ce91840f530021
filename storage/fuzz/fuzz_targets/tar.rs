//! Any bytes as a tar.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| storage::fuzzing::tar(bytes));
