//! Datagrams of netlink sockets, of any bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| netplugins::fuzz::netlink(bytes));
