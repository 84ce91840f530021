//! `exec`: another process in a container.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{Capability, LinuxNamespaceType as Namespace, Process, Spec, User};

use super::args::Parsed;
use super::create::{announce, preserved};
use super::launch::{Birth, Joins, Launched, agent, filter, filtered};
use super::lifecycle::pidfd_of;
use super::rdt::Rdt;
use super::store::{Record, Status};
use super::terminal::Console;
use super::{Context, Outcome, bundle, compile, hooks, wait};
use crate::error::{Error, Kind};
use crate::exec::cgroup;
use crate::exec::rdt::Resctrl;
use crate::exec::user::Name;
use crate::native::child::{FAILED, Failure, LISTENER, TERMINAL};
use crate::native::failure;
use crate::native::listener::{Agent, Guard};
use crate::sys::socket;

/// `exec ID COMMAND…`, or with `--process FILE`.
pub(super) fn exec(context: &Context, parsed: &Parsed) -> Outcome {
    let record = context.store.read(parsed.id()?)?;
    let wrong = |why: &str| {
        let text = format!("cannot exec in container \"{}\": {why}", record.id);
        Err(Error::new(Kind::FailedPrecondition, text))
    };
    match context.store.status(&record) {
        Status::Stopped | Status::Creating => return wrong("container not running"),
        Status::Paused if !parsed.has("ignore-paused") => return wrong("it is paused"),
        _ => {}
    }
    if parsed.string("cgroup")?.is_some_and(|text| !text.is_empty()) {
        return Err(Error::new(Kind::Unimplemented, "--cgroup is not built"));
    }
    let mut process = process(parsed, &record.spec)?;
    if let Some(profile) = parsed.string("apparmor")?.filter(|profile| !profile.is_empty()) {
        process.set_apparmor_profile(Some(profile));
    }
    if let Some(label) = parsed.string("process-label")?.filter(|label| !label.is_empty()) {
        process.set_selinux_label(Some(label));
    }
    let detached = parsed.has("detach");
    let mut console = Console::new(&process, parsed.path("console-socket"), detached)?;
    let launched = launch(&record, &process, preserved(parsed)?, &mut console)?;
    if let Err(error) = announce(parsed, &launched) {
        super::lifecycle::end(&launched.pidfd);
        return Err(error);
    }
    if detached { Ok(0) } else { wait::foreground(&launched, console.take()) }
}

/// The process: a document, or the container's own with another command.
fn process(parsed: &Parsed, spec: &Spec) -> Result<Process, Error> {
    if let Some(path) = parsed.path("process") {
        let mut process = bundle::read_process(&path)?;
        if parsed.has("tty") {
            process.set_terminal(Some(true));
        }
        return Ok(process);
    }
    let mut process = spec.process().clone().ok_or_else(|| Error::invalid("process", "is missing"))?;
    let words: Option<Vec<String>> =
        parsed.rest().iter().map(|word| word.to_str().map(str::to_owned)).collect();
    let words = words.ok_or_else(|| Error::invalid("COMMAND", "is not UTF-8"))?;
    if words.is_empty() {
        return Err(Error::invalid("COMMAND", "is missing (or --process)"));
    }
    process.set_args(Some(words)).set_terminal(Some(parsed.has("tty")));
    if let Some(cwd) = parsed.path("cwd") {
        if !cwd.is_absolute() {
            return Err(Error::invalid("--cwd", format!("{} is not absolute", cwd.display())));
        }
        process.set_cwd(cwd);
    }
    let mut env = process.env().clone().unwrap_or_default();
    for pair in parsed.all("env").map(|pair| pair.to_string_lossy().into_owned()) {
        // What is said now replaces what the container has under this name.
        let name = |pair: &str| pair.split('=').next().map(str::to_owned);
        env.retain(|have| name(have) != name(&pair));
        env.push(pair);
    }
    process.set_env(Some(env));
    if parsed.has("no-new-privs") {
        process.set_no_new_privileges(Some(true));
    }
    capabilities(parsed, &mut process)?;
    user(parsed, &mut process)?;
    Ok(process)
}

/// `--cap`: bounding, permitted and effective, never inheritable (CVE-2022-29162, CVE-2025-27612).
fn capabilities(parsed: &Parsed, process: &mut Process) -> Result<(), Error> {
    let mut added = Vec::new();
    for name in parsed.all("cap") {
        let name = name.to_string_lossy().to_ascii_uppercase();
        let short = name.strip_prefix("CAP_").unwrap_or(&name);
        let capability: Capability = short
            .parse()
            .map_err(|_| Error::invalid("--cap", format!("no capability is called \"{name}\"")))?;
        added.push(capability);
    }
    if added.is_empty() {
        return Ok(());
    }
    let mut sets = process.capabilities().clone().unwrap_or_default();
    let with = |set: &Option<std::collections::HashSet<Capability>>| {
        Some(set.iter().flatten().copied().chain(added.iter().copied()).collect())
    };
    let (bounding, permitted, effective) =
        (with(sets.bounding()), with(sets.permitted()), with(sets.effective()));
    sets.set_bounding(bounding).set_permitted(permitted).set_effective(effective);
    process.set_capabilities(Some(sets));
    Ok(())
}

/// `--user UID[:GID]` and `--additional-gids`: numbers, and no number is anything but itself (CVE-2026-30892).
fn user(parsed: &Parsed, process: &mut Process) -> Result<(), Error> {
    let id = |field: &str, text: &str| match Name::parse(text) {
        Ok(Name::Id(id)) => Ok(id),
        Ok(Name::Name(_)) => Err(Error::invalid(field, format!("{text:?} is not a number"))),
        Err(why) => Err(Error::invalid(field, why)),
    };
    if let Some(text) = parsed.string("user")? {
        let (uid, gid) = text.split_once(':').map_or((text.as_str(), None), |(u, g)| (u, Some(g)));
        let mut user = User::default();
        user.set_uid(id("--user", uid)?);
        if let Some(gid) = gid {
            user.set_gid(id("--user", gid)?);
        }
        user.set_umask(process.user().umask());
        process.set_user(user);
    }
    let mut groups = process.user().additional_gids().clone().unwrap_or_default();
    for list in parsed.all("additional-gids") {
        for text in list.to_string_lossy().split(',') {
            groups.push(id("--additional-gids", text)?);
        }
    }
    if !groups.is_empty() {
        process.user_mut().set_additional_gids(Some(groups));
    }
    Ok(())
}

/// Namespaces that a process of the container enters by itself; its PID namespace it is born into.
fn flags(spec: &Spec) -> u64 {
    let kinds = [
        Namespace::Mount,
        Namespace::Uts,
        Namespace::Ipc,
        Namespace::User,
        Namespace::Network,
        Namespace::Cgroup,
        Namespace::Time,
    ];
    kinds.into_iter().filter(|kind| bundle::has_namespace(spec, *kind)).map(|kind| kind as u64).sum()
}

fn launch(
    record: &Record,
    process: &Process,
    preserve: u32,
    console: &mut Console,
) -> Result<Launched, Error> {
    let failed = |e: io::Error| Error::with(Kind::Internal, "prepare the process", e);
    let facts = crate::native::facts(&crate::native::Config::default())?;
    let mut entrance = cgroup::enter(&record.cgroup)?;
    if let Some(rdt) = Rdt::of(&record.id, &record.spec) {
        entrance.tasks.extend(rdt.enter(&Resctrl::default())?);
    }
    let pidfd = pidfd_of(record)?;
    let tasks = entrance.tasks.len();
    let mut fds = entrance.tasks;
    for stream in [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()] {
        fds.push(stream.try_clone_to_owned().map_err(failed)?);
    }
    fds.push(pidfd.try_clone().map_err(failed)?);
    let change_root = !bundle::has_namespace(&record.spec, Namespace::Mount);
    if change_root {
        let root = std::fs::File::open(format!("/proc/{}/root", record.pid)).map_err(failed)?;
        fds.push(root.into());
    }
    let labels = bundle::labels(process).map_err(|e| e.context("process"))?;
    let filter = filter(&record.spec, Some(process), facts.bounding)?;
    let about = hooks::state(&record.id, "running", None, &record.bundle, &record.spec);
    let agent = agent(filter.as_deref(), &about)?;
    let plan = compile::exec(&compile::Exec {
        process,
        facts: &facts,
        tasks,
        flags: flags(&record.spec),
        change_root,
        user_namespace: bundle::has_namespace(&record.spec, Namespace::User),
        labels: &labels,
        filter: filter.as_deref().map(|filter| Guard::new(filter, agent.as_ref())),
        preserve,
        keyring: &format!("_ses.{}", record.id),
    })?;
    let joins = match bundle::namespace(&record.spec, Namespace::Pid) {
        Some(_) => Some(Joins::pids_of(pidfd)?),
        None => None,
    };
    let birth = Birth { flags: 0, cgroup: entrance.v2, joins: joins.as_ref(), spec: None };
    let (launched, channel) = birth.clone(&plan, fds)?;
    match verdict(&channel, &plan, console, &launched, agent) {
        Ok(()) => Ok(launched),
        Err(error) => {
            super::lifecycle::end(&launched.pidfd);
            Err(error)
        }
    }
}

/// Waits until the program runs, which closes the channel, or never will.
fn verdict(
    channel: &OwnedFd,
    plan: &[u8],
    console: &mut Console,
    launched: &Launched,
    mut agent: Option<Agent>,
) -> Result<(), Error> {
    let failed = |e: io::Error| Error::with(Kind::Internal, "talk to the process", e);
    loop {
        let (mut bytes, mut fds) = ([0; 16], Vec::new());
        let length = socket::receive(channel, &mut bytes, &mut fds).map_err(failed)?;
        match bytes[0] {
            _ if length == 0 => return Ok(()),
            TERMINAL => console.opened(fds.pop())?,
            LISTENER => filtered(&mut agent, launched, channel, &bytes[..length]).map_err(failed)?,
            FAILED => {
                let told = Failure::decode(&bytes[..length])
                    .ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
                return Err(failure::explain(plan, told));
            }
            _ => return Err(failed(io::ErrorKind::InvalidData.into())),
        }
    }
}
