//! The one module with unsafe code: system calls that no safe crate offers, each wrapped into a safe function with an argument
//! for its safety.
