//! What unit tests and integration tests share.
#![allow(
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    dead_code,
    reason = "shared with the integration tests"
)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "tests fail by panicking"
)]

#[path = "../tests/support/faulty.rs"]
pub mod faulty;
#[path = "../tests/support/kernel.rs"]
pub mod kernel;
#[path = "../tests/support/tar.rs"]
pub mod tar;
