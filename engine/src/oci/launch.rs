//! From a bundle to a process that waits to be started: cgroup, descriptors, plan, clone, hooks.
//!
//! [`launch`] is the recipe. On any failure nothing is left: the process is killed and reaped, the cgroup removed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType as Namespace, Spec};

use super::compile::resources::Limits;
use super::compile::{self, mounts, resources, stage};
use super::prepare::{self, Wanted};
use super::rdt::Rdt;
use super::store::Record;
use super::terminal::Console;
use super::{Context, bundle, hooks};
use crate::error::{Error, Kind};
use crate::exec::cgroup::{self, Holder, Made, Manager};
use crate::exec::rdt::Resctrl;
use crate::native::child::{
    self, BIND, FAILED, Failure, Inherited, LISTENER, Prepared, READY, STAGE, TERMINAL,
};
use crate::native::listener::{self, Agent, Guard};
use crate::native::{failure, seccomp};
use crate::sys::process::{self, Cloned, SingleThreaded};
use crate::sys::{socket, thread};

/// How a container is launched, beyond its bundle.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) preserve: u32,
    pub(super) keyring: bool,
}

/// A process, and its pidfd.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

/// Takes a container to the point where it waits to be started.
pub(super) fn launch(
    context: &Context,
    record: &Record,
    options: &Options,
    console: &mut Console,
) -> Result<Launched, Error> {
    let limits = record.spec.linux().as_ref().and_then(|l| l.resources().as_ref());
    let Made { entrance, holder } = make_cgroup(&record.manager(), &record.cgroup, limits)?;
    let result = in_cgroup(context, record, options, console, entrance);
    // Either the container is in its cgroup, or nobody is to be.
    drop(holder);
    result.inspect_err(|_| clear_away(context, record))
}

/// Kills what is in the cgroup that was made for a container, and removes it.
pub(super) fn clear_away(context: &Context, record: &Record) {
    let group = Rdt::of(&record.id, &record.spec).map_or(Ok(()), |rdt| rdt.remove(&Resctrl::default()));
    let cgroup = record.manager().remove(&record.cgroup);
    for left in [group, cgroup].into_iter().filter_map(Result::err) {
        context.log.warn(&left.context("after a failed create").chain());
    }
}

/// Makes the cgroup with all limits. One that has members is somebody else's.
fn make_cgroup(
    manager: &Manager,
    path: &str,
    wanted: Option<&oci_spec::runtime::LinuxResources>,
) -> Result<Made, Error> {
    let members = cgroup::members(path)?;
    if !members.is_empty() {
        return Err(Error::new(
            Kind::FailedPrecondition,
            format!("linux.cgroupsPath: cgroup {path} is not empty: {} processes", members.len()),
        ));
    }
    let devices = resources::device_rules(wanted)?;
    let Limits { common, v1, v2 } = wanted.map(resources::limits).transpose()?.unwrap_or_default();
    manager.create(
        &cgroup::Wanted { cgroup: path, resources: &common, v1: &v1, v2: &v2, devices: &devices },
        hold,
    )
}

/// A copy of this process that stands in the container's scope until the container does.
fn hold() -> Result<Holder, Error> {
    let failed = |e: io::Error| Error::with(Kind::Internal, "start the process that holds the cgroup", e);
    let proof = SingleThreaded::prove().map_err(failed)?;
    let (end, line) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    match process::clone(&proof, 0, None).map_err(failed)? {
        Cloned::Child => {
            // Ours would keep the line open.
            drop(line);
            let _ = rustix::io::read(&end, &mut [0]);
            process::exit(0)
        }
        Cloned::Parent { pid, pidfd } => Ok(Holder::new(pid, pidfd, line)),
    }
}

fn in_cgroup(
    context: &Context,
    record: &Record,
    options: &Options,
    console: &mut Console,
    entrance: cgroup::Entrance,
) -> Result<Launched, Error> {
    let spec = &record.spec;
    let mut entrance = entrance;
    if let Some(rdt) = Rdt::of(&record.id, spec) {
        entrance.tasks.extend(rdt.make(&Resctrl::default())?);
    }
    let requests: Vec<_> = spec.mounts().iter().flatten().map(mounts::request).collect::<Result<_, _>>()?;
    let facts = crate::native::facts(&crate::native::Config::default())?;
    let pipes = context.store.make_pipes(&record.id)?;
    let wanted = Wanted { spec, rootfs: &record.rootfs, cgroup: &record.cgroup, mounts: &requests };
    let prepared = prepare::prepare(&wanted, entrance.tasks, pipes)?;
    let labels = spec.process().as_ref().map(bundle::labels).transpose()?.unwrap_or_default();
    let mount_label = bundle::mount_label(spec)?;
    let filter = filter(spec, spec.process().as_ref(), facts.bounding)?;
    let about = hooks::state(&record.id, "creating", None, &record.bundle, spec);
    let agent = agent(filter.as_deref(), &about)?;
    let plan = compile::container(&compile::Container {
        id: &record.id,
        spec,
        bundle: &record.bundle,
        rootfs: &record.rootfs,
        facts: &facts,
        slots: &prepared.slots,
        mounts: &requests,
        labels: &labels,
        mount_label: &mount_label,
        filter: filter.as_deref().map(|filter| Guard::new(filter, agent.as_ref())),
        preserve: options.preserve,
        keyring: options.keyring,
    })?;
    context.store.keep_plan(&record.id, &plan)?;
    let joins = Joins::open(spec)?;
    let birth =
        Birth { flags: new_namespaces(spec), cgroup: entrance.v2, joins: Some(&joins), spec: Some(spec) };
    let (launched, channel) = birth.clone(&plan, prepared.fds)?;
    let told = Told { context, record, plan: &plan, mounts: &requests, channel, process: &launched, agent };
    match told.listen(console) {
        Ok(()) => Ok(launched),
        Err(error) => {
            let _ = process::signal(launched.pidfd.as_fd(), libc::SIGKILL);
            let _ = process::wait(&launched.pidfd);
            Err(error)
        }
    }
}

/// The compiled filter of a process.
pub(super) fn filter(
    spec: &Spec,
    process: Option<&oci_spec::runtime::Process>,
    available: u64,
) -> Result<Option<std::sync::Arc<seccomp::Filter>>, Error> {
    let (Some(profile), Some(process)) = (spec.linux().as_ref().and_then(|l| l.seccomp().as_ref()), process)
    else {
        return Ok(None);
    };
    let text = serde_json::to_vec(profile)
        .map_err(|e| Error::with(Kind::Internal, "write the seccomp profile down", e))?;
    let capabilities = compile::process::Sets::of(process, available).effective;
    let cache = seccomp::Cache::new(seccomp::Node { kernel: crate::native::kernel() });
    cache.text("linux.seccomp", &text, capabilities)
}

/// The agent of a filter, waiting for a process of the container that `about` is the state of.
pub(super) fn agent(
    filter: Option<&seccomp::Filter>,
    about: &serde_json::Value,
) -> Result<Option<Agent>, Error> {
    filter.map_or(Ok(None), |filter| Agent::reach(filter, about))
}

/// A process has its filter and says under which number it has the listener: the agent gets that, and the process hears how it went.
/// The connection to the agent is for this one message.
pub(super) fn filtered(
    agent: &mut Option<Agent>,
    process: &Launched,
    channel: &OwnedFd,
    message: &[u8],
) -> io::Result<()> {
    let handed = match (agent.take(), message.first_chunk::<5>()) {
        (Some(agent), Some([_, number @ ..])) => {
            agent.hand_over(process.pidfd.as_fd(), process.pid, i32::from_le_bytes(*number))
        }
        _ => Err(io::ErrorKind::NotConnected.into()),
    };
    rustix::io::write(channel, &[listener::verdict(&handed)])?;
    Ok(())
}

/// Flags for the namespaces the clone makes. Cgroup and time namespaces come about otherwise.
fn new_namespaces(spec: &Spec) -> u64 {
    let made = [
        Namespace::Mount,
        Namespace::Uts,
        Namespace::Ipc,
        Namespace::User,
        Namespace::Pid,
        Namespace::Network,
    ];
    made.into_iter().filter(|kind| compile::is_new(spec, *kind)).map(|kind| kind as u64).sum()
}

/// Namespaces of others that a process is born into: we enter them, clone, and go back.
#[derive(Debug)]
pub(super) struct Joins {
    /// Kind, theirs, ours.
    list: Vec<(Namespace, OwnedFd, OwnedFd)>,
    /// A user namespace has no way back.
    user: Option<OwnedFd>,
}

impl Joins {
    fn open(spec: &Spec) -> Result<Self, Error> {
        let mut list = Vec::new();
        for kind in [Namespace::Network, Namespace::Ipc, Namespace::Uts, Namespace::Pid, Namespace::Time] {
            if let Some(Some(path)) = bundle::namespace(spec, kind) {
                list.push((kind, prepare::open_namespace(path)?, own(kind)?));
            }
        }
        let user = match bundle::namespace(spec, Namespace::User) {
            Some(Some(path)) => Some(prepare::open_namespace(path)?),
            _ => None,
        };
        Ok(Self { list, user })
    }

    /// Namespaces of a process by pidfd: its PID namespace, and nothing else, decides where a clone is born.
    pub(super) fn pids_of(pidfd: OwnedFd) -> Result<Self, Error> {
        Ok(Self { list: vec![(Namespace::Pid, pidfd, own(Namespace::Pid)?)], user: None })
    }

    fn enter(&self) -> Result<(), Error> {
        for (kind, theirs, _) in &self.list {
            thread::setns(theirs.as_fd(), *kind as i32).map_err(|e| {
                Error::with(Kind::InvalidArgument, format!("linux.namespaces: enter the {kind} namespace"), e)
            })?;
        }
        Ok(())
    }

    fn leave(&self) -> Result<(), Error> {
        for (kind, _, ours) in &self.list {
            thread::setns(ours.as_fd(), *kind as i32)
                .map_err(|e| Error::with(Kind::Internal, format!("leave the {kind} namespace"), e))?;
        }
        Ok(())
    }
}

/// Our own namespace.
fn own(kind: Namespace) -> Result<OwnedFd, Error> {
    prepare::open_namespace(Path::new(&format!("/proc/self/ns/{kind}")))
}

/// What a process is born with.
#[derive(Debug)]
pub(super) struct Birth<'a> {
    pub(super) flags: u64,
    pub(super) cgroup: Option<OwnedFd>,
    pub(super) joins: Option<&'a Joins>,
    /// For a first process: whether it gets a time namespace.
    pub(super) spec: Option<&'a Spec>,
}

impl Birth<'_> {
    /// Clones a process that does a plan. The second part is our end of its channel.
    pub(super) fn clone(self, plan: &[u8], fds: Vec<OwnedFd>) -> Result<(Launched, OwnedFd), Error> {
        let failed = |what: &'static str| move |e: io::Error| Error::with(Kind::Internal, what, e);
        // To look which ones are ignored would take as long, for this one child.
        let prepared = Prepared::new(plan, Inherited { ignored: thread::IGNORABLE, oom_score: None })
            .ok_or_else(|| Error::new(Kind::Internal, "the plan does not decode"))?;
        let proof = SingleThreaded::prove().map_err(failed("clone"))?;
        let undumpable = rustix::process::DumpableBehavior::NotDumpable;
        rustix::process::set_dumpable_behavior(undumpable).map_err(|e| failed("clone")(e.into()))?;
        let (ours, theirs) = socket::pair().map_err(failed("make a channel"))?;
        // Signals for us are not for it; it gives itself a fresh mask before its program.
        thread::set_mask(u64::MAX).map_err(failed("block signals"))?;
        let entered = self.joins.map_or(Ok(()), Joins::enter).and_then(|()| self.enter_time(&proof));
        let user = self.joins.and_then(|joins| joins.user.as_ref());
        let cloned = entered.and_then(|()| match user {
            Some(user) => self.through_user(&proof, user),
            None => process::clone(&proof, self.flags, self.cgroup.as_ref().map(AsFd::as_fd))
                .map_err(failed("clone")),
        });
        if let Ok(Cloned::Child) = cloned {
            child::run(&prepared, &proof, fds, theirs);
        }
        drop((fds, theirs));
        if let Some(joins) = self.joins {
            joins.leave()?;
        }
        thread::set_mask(0).map_err(failed("unblock signals"))?;
        match cloned? {
            Cloned::Parent { pid, pidfd } => Ok((Launched { pid, pidfd }, ours)),
            Cloned::Child => Err(Error::new(Kind::Internal, "a child returned")),
        }
    }

    /// A time namespace is made for children, and its offsets are set before the first of them is born (time_namespaces(7)).
    fn enter_time(&self, proof: &SingleThreaded) -> Result<(), Error> {
        let Some(spec) = self.spec.filter(|spec| compile::is_new(spec, Namespace::Time)) else {
            return Ok(());
        };
        let failed = |e: io::Error| Error::with(Kind::Internal, "linux.timeOffsets", e);
        thread::unshare(proof, libc::CLONE_NEWTIME).map_err(failed)?;
        let offsets = spec.linux().as_ref().and_then(|l| l.time_offsets().as_ref());
        let mut text = String::new();
        for (clock, offset) in offsets.into_iter().flatten() {
            let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
            text.push_str(&format!("{clock} {seconds} {nanoseconds}\n"));
        }
        if text.is_empty() {
            Ok(())
        } else {
            std::fs::write("/proc/self/timens_offsets", text).map_err(failed)
        }
    }

    /// Into a user namespace there is no way back, so a process in between goes, and has a sister born there for us.
    fn through_user(&self, proof: &SingleThreaded, user: &OwnedFd) -> Result<Cloned, Error> {
        let failed = |e: io::Error| Error::with(Kind::InvalidArgument, "enter the user namespace", e);
        let (ours, theirs) = socket::pair().map_err(failed)?;
        let between = process::clone(proof, 0, self.cgroup.as_ref().map(AsFd::as_fd)).map_err(failed)?;
        let Cloned::Parent { pidfd, .. } = between else {
            let born = thread::setns(user.as_fd(), libc::CLONE_NEWUSER)
                .and_then(|()| process::clone_sibling(proof, self.flags, None));
            match born {
                Ok(Cloned::Child) => return Ok(Cloned::Child),
                Ok(Cloned::Parent { pidfd, .. }) => {
                    let _ = socket::send(&theirs, &[0], &[pidfd.as_fd()]);
                    process::exit(0)
                }
                Err(e) => {
                    let errno = e.raw_os_error().unwrap_or(libc::EIO);
                    let _ = socket::send(&theirs, &errno.to_le_bytes(), &[]);
                    process::exit(1)
                }
            }
        };
        drop(theirs);
        let (mut bytes, mut fds) = ([0; 4], Vec::new());
        let length = socket::receive(&ours, &mut bytes, &mut fds).map_err(failed)?;
        let _ = process::wait(&pidfd);
        match (length, fds.pop()) {
            (1, Some(pidfd)) => {
                let pid = pid_of(&pidfd).map_err(failed)?;
                Ok(Cloned::Parent { pid, pidfd })
            }
            (4, None) => Err(failed(io::Error::from_raw_os_error(i32::from_le_bytes(bytes)))),
            _ => Err(failed(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

/// The pid behind a pidfd, as we see it (proc(5), fdinfo).
fn pid_of(pidfd: &OwnedFd) -> io::Result<i32> {
    use std::os::fd::AsRawFd;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// What a first process tells on its way.
struct Told<'a> {
    context: &'a Context,
    record: &'a Record,
    plan: &'a [u8],
    mounts: &'a [mounts::Request],
    channel: OwnedFd,
    process: &'a Launched,
    agent: Option<Agent>,
}

impl Told<'_> {
    /// Serves the process until it waits to be started.
    fn listen(mut self, console: &mut Console) -> Result<(), Error> {
        let failed = |e: io::Error| Error::with(Kind::Internal, "talk to the container's process", e);
        loop {
            let (mut bytes, mut fds) = ([0; 16], Vec::new());
            let length = socket::receive(&self.channel, &mut bytes, &mut fds).map_err(failed)?;
            match (bytes[0], length) {
                (_, 0) => return Err(Error::new(Kind::Internal, "the container's process was killed")),
                (STAGE, _) => {
                    self.stage(bytes[1])?;
                    rustix::io::write(&self.channel, &[0]).map_err(|e| failed(e.into()))?;
                }
                (BIND, _) => {
                    let request = self.mounts.get(usize::from(u16::from_le_bytes([bytes[1], bytes[2]])));
                    let request = request.ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
                    let bind = prepare::bind(request, &self.record.bundle)?;
                    socket::send(&self.channel, &[0], &[bind.as_fd()]).map_err(failed)?;
                }
                (TERMINAL, _) => console.opened(fds.pop())?,
                (LISTENER, _) => {
                    filtered(&mut self.agent, self.process, &self.channel, &bytes[..length])
                        .map_err(failed)?;
                }
                (READY, _) => return Ok(()),
                (FAILED, _) => {
                    let failure = Failure::decode(&bytes[..length])
                        .ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
                    return Err(failure::explain(self.plan, failure));
                }
                _ => return Err(failed(io::ErrorKind::InvalidData.into())),
            }
        }
    }

    fn stage(&self, reached: u8) -> Result<(), Error> {
        let record = self.record;
        self.context.log.debug(&format!("container {}: stage {reached}", record.id));
        if reached == stage::IDS {
            return map_ids(self.process.pid, &record.spec);
        }
        let Some(all) = record.spec.hooks() else { return Ok(()) };
        // Hooks of the old kind were made for a container that is created.
        let state =
            |status| hooks::state(&record.id, status, Some(self.process.pid), &record.bundle, &record.spec);
        #[allow(deprecated, reason = "old bundles have them")]
        let prestart = all.prestart().as_ref();
        hooks::run("prestart", prestart, &state("created"), &record.bundle)?;
        hooks::run("createRuntime", all.create_runtime().as_ref(), &state("creating"), &record.bundle)
    }
}

/// Writes the id maps of a new user namespace (user_namespaces(7)).
fn map_ids(pid: i32, spec: &Spec) -> Result<(), Error> {
    let linux = spec.linux().as_ref();
    let lines = |list: Option<&Vec<LinuxIdMapping>>| {
        list.into_iter()
            .flatten()
            .map(|m| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size()))
            .collect::<String>()
    };
    let maps = [
        ("uid_map", "linux.uidMappings", linux.and_then(|l| l.uid_mappings().as_ref())),
        ("gid_map", "linux.gidMappings", linux.and_then(|l| l.gid_mappings().as_ref())),
    ];
    for (file, field, list) in maps {
        let text = lines(list);
        if !text.is_empty() {
            std::fs::write(format!("/proc/{pid}/{file}"), text)
                .map_err(|e| Error::with(Kind::InvalidArgument, field, e))?;
        }
    }
    Ok(())
}
