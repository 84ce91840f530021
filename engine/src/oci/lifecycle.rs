//! `kill`, `delete`, `pause`, `resume`, `ps`.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::args::Parsed;
use super::rdt::Rdt;
use super::store::{Record, Status, process};
use super::{Context, Outcome, hooks, say, wait};
use crate::error::{Error, Kind};
use crate::exec::cgroup;
use crate::exec::rdt::Resctrl;
use crate::sys::process::signal;

/// Seconds a killed process may take to end.
const PATIENCE: i64 = 10;

/// `kill ID [SIGNAL]`.
pub(super) fn kill(context: &Context, parsed: &Parsed) -> Outcome {
    let record = context.store.read(parsed.id()?)?;
    let name = parsed.rest().first().map_or("TERM".into(), |word| word.to_string_lossy());
    let number = signal_of(&name)?;
    if parsed.has("all") {
        return kill_all(&record, number).map(|()| 0);
    }
    match context.store.status(&record) {
        Status::Created | Status::Running | Status::Paused => {}
        _ => {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!("cannot kill container \"{}\": container not running", record.id),
            ));
        }
    }
    let pidfd = pidfd_of(&record)?;
    signal(pidfd.as_fd(), number)
        .map_err(|e| Error::with(Kind::Internal, format!("kill container \"{}\"", record.id), e))?;
    Ok(0)
}

/// A signal for every member of the container's cgroup. Absent is fine: nobody is left.
fn kill_all(record: &Record, number: i32) -> Result<(), Error> {
    if number == libc::SIGKILL {
        return cgroup::kill(&record.cgroup);
    }
    for pid in cgroup::members(&record.cgroup)? {
        let Some(pid) = Pid::from_raw(pid) else { continue };
        // It may have ended since.
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
            let _ = signal(pidfd.as_fd(), number);
        }
    }
    Ok(())
}

/// A signal by number or name, with or without `SIG` (signal(7)).
fn signal_of(text: &str) -> Result<i32, Error> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let bad = || Error::invalid("SIGNAL", format!("{text:?} is no signal"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(bad()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(at) = NAMES.iter().position(|n| *n == name) {
        return i32::try_from(at + 1).map_err(|_| bad());
    }
    // The C library keeps two real-time signals to itself: the first for programs is 34.
    let (base, rest) = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => (34, rest),
        (_, Some(rest)) => (64, rest),
        _ => return Err(bad()),
    };
    let offset: i32 = if rest.is_empty() { 0 } else { rest.parse().map_err(|_| bad())? };
    Some(base + offset).filter(|number| (34..=64).contains(number)).ok_or_else(bad)
}

/// The pidfd of a container's first process, and of no other process that got its pid.
pub(super) fn pidfd_of(record: &Record) -> Result<OwnedFd, Error> {
    let gone = || {
        Error::new(Kind::FailedPrecondition, format!("container \"{}\": container not running", record.id))
    };
    let pid = Pid::from_raw(record.pid).ok_or_else(gone)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
    // Looked at after the pidfd was opened: from here on the two belong together.
    match process(record.pid) {
        Some((_, started)) if started == record.started => Ok(pidfd),
        _ => Err(gone()),
    }
}

/// `delete ID`.
pub(super) fn delete(context: &Context, parsed: &Parsed) -> Outcome {
    let (id, force) = (parsed.id()?, parsed.has("force"));
    let record = match context.store.read(id) {
        Ok(record) => record,
        Err(error) if force && error.kind() == Kind::NotFound => return Ok(0),
        // Nothing is known of it but that it is there: its `create` was killed before it could say.
        Err(_) if force && context.store.exists(id) => return context.store.remove(id).map(|()| 0),
        Err(error) => return Err(error),
    };
    let status = context.store.status(&record);
    if status != Status::Stopped && !force {
        return Err(Error::new(
            Kind::FailedPrecondition,
            format!("cannot delete container \"{id}\" that is not stopped: {}", status.word()),
        ));
    }
    destroy(context, &record, force)?;
    Ok(0)
}

/// Removes everything a container has; `force` ends what runs.
pub(super) fn destroy(context: &Context, record: &Record, force: bool) -> Result<(), Error> {
    if force && let Ok(pidfd) = pidfd_of(record) {
        end(&pidfd);
    }
    record.manager().remove(&record.cgroup)?;
    if let Some(rdt) = Rdt::of(&record.id, &record.spec) {
        rdt.remove(&Resctrl::default())?;
    }
    context.store.remove(&record.id)?;
    poststop(context, record);
    Ok(())
}

/// Hooks after a container's end; a failure is worth a warning (runtime.md, "Lifecycle").
pub(super) fn poststop(context: &Context, record: &Record) {
    if let Some(all) = record.spec.hooks() {
        let state = hooks::state(&record.id, "stopped", Some(record.pid), &record.bundle, &record.spec);
        hooks::run_all(&context.log, "poststop", all.poststop().as_ref(), &state, &record.bundle);
    }
}

/// Kills a process and waits for its end.
pub(super) fn end(pidfd: &OwnedFd) {
    let _ = signal(pidfd.as_fd(), libc::SIGKILL);
    let limit = Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
    let _ = wait::ready(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit));
    // Ours or somebody else's child: either way it is reaped.
    let _ = crate::sys::process::try_wait(pidfd);
}

/// `pause ID`.
pub(super) fn pause(context: &Context, parsed: &Parsed) -> Outcome {
    let record = context.store.read(parsed.id()?)?;
    match context.store.status(&record) {
        Status::Running | Status::Created => cgroup::freeze(&record.cgroup, true).map(|()| 0),
        other => Err(Error::new(
            Kind::FailedPrecondition,
            format!("cannot pause container \"{}\": it is {}", record.id, other.word()),
        )),
    }
}

/// `resume ID`.
pub(super) fn resume(context: &Context, parsed: &Parsed) -> Outcome {
    let record = context.store.read(parsed.id()?)?;
    match context.store.status(&record) {
        Status::Paused => cgroup::freeze(&record.cgroup, false).map(|()| 0),
        other => Err(Error::new(
            Kind::FailedPrecondition,
            format!("cannot resume container \"{}\": it is {}", record.id, other.word()),
        )),
    }
}

/// `ps ID [OPTIONS OF ps]`.
pub(super) fn ps(context: &Context, parsed: &Parsed) -> Outcome {
    let record = context.store.read(parsed.id()?)?;
    let pids = cgroup::members(&record.cgroup)?;
    match parsed.string("format")?.as_deref() {
        Some("json") => {
            say(&format!("{}\n", serde_json::json!(pids)));
            return Ok(0);
        }
        None | Some("table") => {}
        Some(other) => return Err(Error::invalid("--format", format!("{other} is neither table nor json"))),
    }
    let mut command = Command::new("ps");
    if parsed.rest().is_empty() {
        command.arg("-ef")
    } else {
        command.args(parsed.rest())
    };
    let output = command.output().map_err(|e| Error::with(Kind::FailedPrecondition, "run ps", e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::new(Kind::InvalidArgument, format!("ps: {said}")));
    }
    say(&table(&String::from_utf8_lossy(&output.stdout), &pids)?);
    Ok(0)
}

/// The title and the lines of these processes.
fn table(text: &str, pids: &[i32]) -> Result<String, Error> {
    let mut lines = text.lines();
    let title = lines.next().unwrap_or_default();
    let column = title.split_whitespace().position(|word| word == "PID");
    let column = column.ok_or_else(|| Error::invalid("ps", "its output has no column PID"))?;
    let ours = lines.filter(|line| {
        line.split_whitespace()
            .nth(column)
            .and_then(|w| w.parse().ok())
            .is_some_and(|pid| pids.contains(&pid))
    });
    Ok([title].into_iter().chain(ours).fold(String::new(), |out, line| out + line + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_numbers_and_names() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("SYS", 31),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-14", 50),
            ("64", 64),
        ] {
            assert_eq!(signal_of(text).unwrap(), number, "{text}");
        }
        for bad in ["0", "65", "-1", "", "NOPE", "RTMIN-1", "RTMAX+1", "SIG"] {
            signal_of(bad).unwrap_err();
        }
    }

    #[test]
    fn ps_shows_the_containers_processes_alone() {
        let text = "UID PID CMD\nroot 1 init\nroot 22 sleep 1\nroot 23 22\n";
        assert_eq!(table(text, &[22]).unwrap(), "UID PID CMD\nroot 22 sleep 1\n");
        table("a b\n", &[1]).unwrap_err();
    }
}
