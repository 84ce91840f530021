//! Hooks that run on the node (config.md, "POSIX-platform Hooks").
//!
//! A hook gets the state on its standard input, the environment of its own and nothing of the image's or ours, the bundle as its
//! directory, and no descriptor (CVE-2025-23266).

use std::io::{Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use oci_spec::runtime::{Hook, Spec};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Value, json};

use super::SPEC_VERSION;
use super::log::Log;
use crate::error::{Error, Kind};
use crate::sys::{process, thread};

/// The state of a container (runtime.md, "State"). Without a pid it is as for one that has none.
pub(super) fn state(id: &str, status: &str, pid: Option<i32>, bundle: &Path, spec: &Spec) -> Value {
    let mut state = json!({
        "ociVersion": SPEC_VERSION,
        "id": id,
        "status": status,
        "bundle": bundle,
        "annotations": spec.annotations().clone().unwrap_or_default(),
    });
    if let (Some(pid), Some(object)) = (pid, state.as_object_mut()) {
        object.insert("pid".into(), pid.into());
    }
    state
}

/// How long a hook may take; 0: as long as it likes.
pub(super) fn seconds(hook: &Hook) -> u64 {
    hook.timeout().and_then(|t| u64::try_from(t).ok()).unwrap_or(0)
}

/// Runs hooks one after the other; the first failure is the last.
pub(super) fn run(name: &str, hooks: Option<&Vec<Hook>>, state: &Value, bundle: &Path) -> Result<(), Error> {
    hooks.into_iter().flatten().try_for_each(|hook| one(name, hook, state, bundle))
}

/// Runs hooks whose failure is only worth a warning.
pub(super) fn run_all(log: &Log, name: &str, hooks: Option<&Vec<Hook>>, state: &Value, bundle: &Path) {
    for hook in hooks.into_iter().flatten() {
        if let Err(error) = one(name, hook, state, bundle) {
            log.warn(&error.chain());
        }
    }
}

fn one(name: &str, hook: &Hook, state: &Value, bundle: &Path) -> Result<(), Error> {
    let path = hook.path();
    let what = || format!("{name} hook {}", path.display());
    let failed = |e: std::io::Error| Error::with(Kind::FailedPrecondition, what(), e);
    if !path.is_absolute() {
        return Err(Error::invalid(&format!("hooks.{name}"), format!("{} is not absolute", path.display())));
    }
    // Whatever whoever calls us has left open is none of its business either.
    thread::close_on_exec_from(3).map_err(failed)?;
    let mut command = Command::new(path);
    if let Some((zero, rest)) = hook.args().as_ref().and_then(|args| args.split_first()) {
        command.arg0(zero).args(rest);
    }
    command.env_clear().current_dir(bundle).stdin(input(state).map_err(failed)?);
    // What a hook prints is for whoever looks for the reason of a failure.
    command.stdout(Stdio::null());
    for pair in hook.env().iter().flatten() {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        command.env(key, value);
    }
    let mut child = command.spawn().map_err(failed)?;
    if !ended_in_time(&child, seconds(hook)).map_err(failed)? {
        let _ = child.kill();
        let _ = child.wait();
        return Err(Error::new(
            Kind::DeadlineExceeded,
            format!("{}: did not end within {} s", what(), seconds(hook)),
        ));
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::new(Kind::FailedPrecondition, format!("{}: {status}", what())))
}

/// The state as a file at its beginning: a hook that does not read it blocks nobody.
fn input(state: &Value) -> std::io::Result<Stdio> {
    let fd = memfd_create("berth-state", MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(state.to_string().as_bytes())?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file.into())
}

/// Without a number the hook may take as long as it likes.
fn ended_in_time(child: &Child, seconds: u64) -> std::io::Result<bool> {
    if seconds == 0 { Ok(true) } else { process::ended_within(child, Duration::from_secs(seconds)) }
}
