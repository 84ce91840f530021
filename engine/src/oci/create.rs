//! `create`, `start`, `run`.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};

use super::args::Parsed;
use super::launch::{self, Launched, Options};
use super::store::{Record, Status, process};
use super::terminal::{Console, hand_over};
use super::{Context, Outcome, absolute, bundle, compile, hooks, lifecycle, wait};
use crate::error::{Error, Kind};
use crate::exec::cgroup::CgroupDriver;
use crate::native::child::Failure;
use crate::native::failure;

/// `create ID`: everything but the program.
pub(super) fn create(context: &Context, parsed: &Parsed) -> Outcome {
    let mut console = Console::default();
    make(context, parsed, &mut console, true)?;
    Ok(0)
}

/// `start ID`: lets a created container run.
pub(super) fn start(context: &Context, parsed: &Parsed) -> Outcome {
    let record = context.store.read(parsed.id()?)?;
    go(context, &record)?;
    Ok(0)
}

/// `run ID`: both, and the whole life in the foreground unless detached.
pub(super) fn run(context: &Context, parsed: &Parsed) -> Outcome {
    let detached = parsed.has("detach");
    let mut console = Console::default();
    let (record, launched) = make(context, parsed, &mut console, detached)?;
    if let Err(error) = go(context, &record) {
        let _ = lifecycle::destroy(context, &record, true);
        return Err(error);
    }
    if detached {
        return Ok(0);
    }
    let code = wait::foreground(&launched, console.take());
    if !parsed.has("keep") {
        lifecycle::destroy(context, &record, true)?;
    }
    code
}

/// Makes a container; on failure nothing of it is left.
fn make(
    context: &Context,
    parsed: &Parsed,
    console: &mut Console,
    detached: bool,
) -> Result<(Record, Launched), Error> {
    let id = parsed.id()?;
    if parsed.has("no-pivot") {
        return Err(Error::new(Kind::Unimplemented, "--no-pivot is not built: the root is always pivoted"));
    }
    let directory = absolute(&parsed.path("bundle").unwrap_or_else(|| PathBuf::from(".")))?;
    let spec = bundle::read(&directory)?;
    let process = spec.process().as_ref().ok_or_else(|| Error::invalid("process", "is missing"))?;
    *console = Console::new(process, parsed.path("console-socket"), detached)?;
    let preserve = preserved(parsed)?;
    let root = spec.root().as_ref().ok_or_else(|| Error::invalid("root", "is missing"))?;
    let mut record = Record {
        id: id.to_owned(),
        pid: 0,
        started: 0,
        rootfs: directory.join(root.path()),
        bundle: directory,
        created: super::log::now(),
        cgroup: compile::cgroup(id, &spec, context.cgroups)?,
        systemd: context.cgroups == CgroupDriver::Systemd,
        spec,
    };
    context.store.claim(id)?;
    let options = Options { preserve, keyring: !parsed.has("no-new-keyring") };
    let made = context
        .store
        .write(&record)
        .and_then(|()| launch::launch(context, &record, &options, console))
        .and_then(|launched| {
            let told = tell(context, parsed, &mut record, &launched);
            told.inspect_err(|_| {
                lifecycle::end(&launched.pidfd);
                launch::clear_away(context, &record);
            })
            .map(|()| launched)
        });
    match made {
        Ok(launched) => Ok((record, launched)),
        Err(error) => {
            // Of its cgroup `launch` has left nothing, or it is another container's.
            let _ = context.store.remove(id);
            // A container that has failed on its way is destroyed as any other (runtime.md, "Lifecycle").
            lifecycle::poststop(context, &record);
            Err(error)
        }
    }
}

/// Writes down who the process is, for us and for the caller.
fn tell(context: &Context, parsed: &Parsed, record: &mut Record, launched: &Launched) -> Result<(), Error> {
    record.pid = launched.pid;
    record.started = process(launched.pid)
        .ok_or_else(|| Error::new(Kind::Internal, "the container's process has ended"))?
        .1;
    context.store.write(record)?;
    announce(parsed, launched)
}

/// `--pid-file` and `--pidfd-socket`.
pub(super) fn announce(parsed: &Parsed, launched: &Launched) -> Result<(), Error> {
    if let Some(path) = parsed.path("pidfd-socket") {
        hand_over(&path, &launched.pidfd)
            .map_err(|e| Error::with(Kind::Internal, format!("send the pidfd to {}", path.display()), e))?;
    }
    if let Some(path) = parsed.path("pid-file") {
        write_whole(&path, &launched.pid.to_string())
            .map_err(|e| Error::with(Kind::Internal, format!("write {}", path.display()), e))?;
    }
    Ok(())
}

/// Whoever reads the file sees all of it or nothing.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let temporary = path.with_file_name(name);
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}

/// How many descriptors the program gets; all of them must be there.
pub(super) fn preserved(parsed: &Parsed) -> Result<u32, Error> {
    let count: u32 = parsed.number("preserve-fds")?.unwrap_or(0);
    if count > 1024 {
        return Err(Error::invalid("--preserve-fds", "more than 1024"));
    }
    for number in 3..3 + count {
        if std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_err() {
            return Err(Error::invalid("--preserve-fds", format!("descriptor {number} is not open")));
        }
    }
    Ok(count)
}

/// Tells the waiting process to go on, and waits until its program runs.
fn go(context: &Context, record: &Record) -> Result<(), Error> {
    let id = &record.id;
    let wrong = |why: &str| {
        Err(Error::new(Kind::FailedPrecondition, format!("cannot start container \"{id}\": {why}")))
    };
    match context.store.status(record) {
        Status::Created => {}
        Status::Running | Status::Paused => return wrong("it was started before"),
        Status::Stopped => return wrong("it has stopped"),
        Status::Creating => return wrong("it was not created completely"),
    }
    let failed = |e: std::io::Error| Error::with(Kind::Internal, format!("start container \"{id}\""), e);
    // First the pipe for the answer: the question may be answered at once.
    let (Some(mut verdict), Some(go)) =
        (context.store.pipe(id, "verdict", false)?, context.store.pipe(id, "go", true)?)
    else {
        context.store.remove_pipes(id);
        return wrong("it was started before");
    };
    rustix::io::write(&go, b"G").map_err(|e| failed(e.into()))?;
    drop(go);
    wait::ready(&mut [PollFd::new(&verdict.as_fd(), PollFlags::IN)], None).map_err(failed)?;
    let mut bytes = [0; 16];
    let length = verdict.read(&mut bytes).map_err(failed)?;
    context.store.remove_pipes(id);
    if let Some(told) = Failure::decode(&bytes[..length]) {
        let error = failure::explain(&context.store.plan(id), told);
        lifecycle::poststop(context, record);
        return Err(error);
    }
    if let Some(all) = record.spec.hooks() {
        let state = hooks::state(id, "running", Some(record.pid), &record.bundle, &record.spec);
        hooks::run_all(&context.log, "poststart", all.poststart().as_ref(), &state, &record.bundle);
    }
    Ok(())
}
