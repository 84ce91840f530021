//! Any bytes as a manifest, an index or a configuration.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| storage::fuzzing::manifest(bytes));
