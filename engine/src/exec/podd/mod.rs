//! The supervisor of one pod: a single thread that clones, logs, reaps and records.

use std::ffi::OsString;
use std::process::ExitCode;

/// Entry point of `berth podd ARGS`, to be called before any thread or runtime is started. `args` begin after `podd`.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let _ = args.into_iter();
    ExitCode::FAILURE
}
