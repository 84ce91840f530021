//! `berth oci`: an OCI runtime command line with runc's verbs and options, over the plans and the interpreter of [`crate::native`].
//!
//! There is no daemon behind it and no supervisor: `create` clones the container's first process, which does its plan and then waits
//! on a pipe; the command ends, and whoever is the subreaper (containerd's shim, conmon) gets the process as its child. `start` lets
//! it go on.
//!
//! ```text
//!   (nothing) ──create──▶ created ──start──▶ running ◀──pause/resume──▶ paused
//!                            └──────kill──────▶└──ends──▶ stopped ──delete──▶ (nothing)
//! ```
//!
//! Reading order: [`args`] (the command line), [`store`] (what is kept of a container), [`bundle`] (reading `config.json`),
//! [`compile`] (bundle → plan; pure), [`prepare`] (what the plan's descriptors are), [`launch`] (cgroup, clone, hooks), then one file
//! per verb: [`create`] with start and run, [`exec`], [`lifecycle`] (kill, delete, pause, resume, ps), [`show`] (state, list, spec,
//! features), [`events`], [`update`]. [`rdt`] is the container's resctrl group, [`hooks`] runs hooks, [`terminal`] and [`wait`] serve processes in the foreground, [`sealed`]
//! keeps containers from reaching this program.
//!
//! Spawns no thread: clones are only made by a process that has one. Files owned: everything below `--root` (default
//! `/run/berth/oci`), one directory per container.

mod args;
mod bundle;
mod compile;
mod create;
mod events;
mod exec;
mod hooks;
mod launch;
mod lifecycle;
mod log;
mod prepare;
pub(crate) mod rdt;
mod sealed;
mod show;
mod store;
mod terminal;
mod update;
mod wait;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use self::args::{Global, Parsed};
use self::log::Log;
use self::store::Store;
use crate::error::{Error, Kind};
use crate::exec::cgroup::CgroupDriver;

/// The version of the runtime specification that is understood (github.com/opencontainers/runtime-spec).
pub const SPEC_VERSION: &str = "1.2.1";

/// The moments at which hooks run (config.md, "POSIX-platform Hooks").
pub(crate) const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// What every verb has.
#[derive(Debug)]
struct Context {
    store: Store,
    log: Log,
    /// Who makes the cgroups of new containers.
    cgroups: CgroupDriver,
}

/// What a verb ends with: an exit code, or an error for standard error and the log.
type Outcome = Result<u8, Error>;

/// Entry point of `berth oci ARGS`, to be called before any thread or runtime is started. `arguments` begin after `oci`.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let (global, verb, rest) = match Global::parse(arguments) {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error),
    };
    let log = Log::new(global.log.as_deref(), global.json, global.debug);
    if let Some(refused) = global.refused() {
        return report(&log, &refused);
    }
    let Some(verb) = verb else {
        say(args::HELP);
        return ExitCode::from(64);
    };
    let Some((_, options, run)) = VERBS.iter().find(|(name, ..)| *name == verb) else {
        return match verb.as_str() {
            "help" | "--help" | "-h" => {
                say(args::HELP);
                ExitCode::SUCCESS
            }
            "--version" | "-v" => {
                say(&format!("runc compatible: berth {}\nspec: {SPEC_VERSION}\n", env!("CARGO_PKG_VERSION")));
                ExitCode::SUCCESS
            }
            "checkpoint" | "restore" => report(
                &log,
                &Error::new(Kind::Unimplemented, format!("{verb} is not built: Berth does not drive CRIU")),
            ),
            _ => usage(&format!("\"{verb}\" is no command; `berth oci help` lists them")),
        };
    };
    if rest.first().is_some_and(|word| word == "--help" || word == "-h") {
        say(&args::help(&verb, options));
        return ExitCode::SUCCESS;
    }
    let parsed = match Parsed::parse(options, &rest, verb == "exec") {
        Ok(parsed) => parsed,
        Err(error) => return usage(&format!("{verb}: {error}")),
    };
    if let "create" | "run" | "exec" = verb.as_str()
        && let Err(error) = sealed::ensure(arguments)
    {
        return report(&log, &error);
    }
    let cgroups = if global.systemd { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs };
    let context = Context { store: Store::new(global.root), log, cgroups };
    match run(&context, &parsed) {
        Ok(code) => ExitCode::from(code),
        Err(error) => report(&context.log, &error),
    }
}

/// A verb: its name, its options, and what it does.
type Verb = (&'static str, &'static [args::Option], fn(&Context, &Parsed) -> Outcome);

const VERBS: [Verb; 17] = [
    ("create", args::CREATE, create::create),
    ("start", args::NONE, create::start),
    ("run", args::RUN, create::run),
    ("exec", args::EXEC, exec::exec),
    ("state", args::NONE, show::state),
    ("list", args::LIST, show::list),
    ("ps", args::PS, lifecycle::ps),
    ("kill", args::KILL, lifecycle::kill),
    ("delete", args::DELETE, lifecycle::delete),
    ("pause", args::NONE, lifecycle::pause),
    ("resume", args::NONE, lifecycle::resume),
    ("update", args::UPDATE, update::update),
    ("events", args::EVENTS, events::events),
    ("spec", args::SPEC, show::spec),
    ("features", args::NONE, show::features),
    ("version", args::NONE, show::version),
    // Some callers of runc ask for it before anything else.
    ("init", args::NONE, |_, _| Err(Error::new(Kind::Unimplemented, "init is not for calling"))),
];

/// Prints to standard output; a closed pipe is no error.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn usage(why: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "berth oci: {why}");
    ExitCode::from(64)
}

/// Tells an error on standard error and in the log.
fn report(log: &Log, error: &Error) -> ExitCode {
    log.error(&error.chain());
    ExitCode::FAILURE
}

/// The path of a bundle or file, absolute.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path)
        .map_err(|e| Error::with(Kind::Internal, format!("find the way to {}", path.display()), e))
}

/// A configuration as far as it goes without a node: for `crate::fuzzing`.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzzed(bytes: &[u8]) {
    let Ok(spec) = bundle::parse(bytes) else { return };
    if bundle::check(&spec).is_err() {
        return;
    }
    for driver in [CgroupDriver::Cgroupfs, CgroupDriver::Systemd] {
        let path = compile::cgroup("id", &spec, driver);
        assert!(
            path.is_err() || path.is_ok_and(|p| p.starts_with('/') && !p.split('/').any(|part| part == ".."))
        );
    }
    let limits = spec.linux().as_ref().and_then(|l| l.resources().as_ref());
    let _ = compile::resources::device_rules(limits);
    let _ = limits.map(compile::resources::limits);
    let mounts: Result<Vec<_>, _> = spec.mounts().iter().flatten().map(compile::mounts::request).collect();
    let Ok(mounts) = mounts else { return };
    let plan = compile::container(&compile::Container {
        id: "id",
        spec: &spec,
        bundle: Path::new("/bundle"),
        rootfs: Path::new("/bundle/rootfs"),
        facts: &crate::native::compile::Facts::default(),
        slots: &compile::Slots::default(),
        mounts: &mounts,
        labels: &[],
        mount_label: b"",
        filter: None,
        preserve: 0,
        keyring: true,
    });
    assert!(plan.map_or(true, |plan| crate::native::plan::verify(&plan)), "an OCI plan that does not decode");
}
