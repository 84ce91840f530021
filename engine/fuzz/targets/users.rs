//! passwd, group and who asks, with a zero byte between them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| engine::fuzzing::users(bytes));
