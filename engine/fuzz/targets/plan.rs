//! Plans as a supervisor gets them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| engine::fuzzing::plan(bytes));
