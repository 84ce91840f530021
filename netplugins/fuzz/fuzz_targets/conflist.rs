//! Network configurations, of any bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| netplugins::fuzz::conflist(bytes));
