//! The built-in plugins as executables: what other runtimes would see of them.
//!
//! This program is its own plugin: called by a plugin's name it acts as that plugin, else it runs its tests. [`lab`] is
//! what they work with, [`behaviour`] is what pods notice, [`devices`] the same for kinds of links that not every kernel
//! has, [`reference`] compares with the reference plugins, configuration by configuration ([`configurations`]).
//!
//! Environment: `CNI_REFERENCE_PATH` names the directory of the reference plugins; without it they are not compared with.
//! `CNI_VERSIONS` is `all` or a list of versions to compare in, instead of one of each form. `CNI_CASE` chooses
//! configurations by parts of their names, separated by commas. `CNI_EVERYTHING=1` makes a kind of link that the kernel
//! lacks a failure. Arguments choose tests by a part of their name.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod behaviour;
mod chains;
mod configurations;
mod devices;
mod lab;
mod reference;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use lab::Lab;

/// Name and body; the text says what was left out.
type Test = (&'static str, fn(&Lab) -> Option<String>);

fn main() -> ExitCode {
    let argv0 = std::env::args().next().unwrap_or_default();
    if let Some(code) = netplugins::cni_main(&argv0, lab::make_tap) {
        return code;
    }
    let lab = Lab::new();
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let tests = [behaviour::TESTS, chains::TESTS, devices::TESTS, reference::TESTS].concat();
    for (name, test) in tests {
        if !wanted.is_empty() && !wanted.iter().any(|w| name.contains(w.as_str())) {
            continue;
        }
        let outcome = match catch_unwind(AssertUnwindSafe(|| test(&lab))) {
            Ok(None) => {
                passed += 1;
                "ok".into()
            }
            Ok(Some(why)) if lab::everything() => {
                failed += 1;
                format!("FAILED ({why})")
            }
            Ok(Some(why)) => {
                skipped += 1;
                format!("ignored, {why}")
            }
            Err(_) => {
                failed += 1;
                "FAILED".into()
            }
        };
        say(&format!("test {name} ... {outcome}"));
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    say(&format!("test result: {word}. {passed} passed; {failed} failed; {skipped} ignored"));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "a test program reports on standard output")]
fn say(line: &str) {
    println!("{line}");
}
