//! Any bytes as a PAX header in front of a file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| storage::fuzzing::pax(bytes));
