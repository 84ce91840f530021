//! Seccomp profiles in either spelling.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| engine::fuzzing::seccomp(bytes));
