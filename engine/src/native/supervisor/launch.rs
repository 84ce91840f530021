//! Starting processes: the plan, its descriptors, the request, and the verdict.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::oneshot;

use super::super::child::Failure;
use super::super::listener::{Agent, Guard};
use super::super::seccomp::Filter;
use super::super::{Prepared, compile, devices, failure, userns};
use super::{START_TIME, Supervisor, blocking};
use crate::error::{Error, Kind};
use crate::exec::wire::{
    self, HAS_AGENT, HAS_CGROUP, HAS_LOG, HAS_OOM, JOIN_PID, Kind as Word, LINE, Message, STDIN, STDIN_ONCE,
    TTY, Tag,
};
use crate::exec::{ContainerLaunch, Exec, ExecLaunch, Process, Started, Stdio, cgroup};
use crate::oci::rdt::Rdt;
use crate::spec::{ContainerSpec, NamespaceMode, Resources};
use crate::sys::{self, memory, socket};

impl Supervisor {
    /// Makes the cgroup if it is not prepared, and has the process made in it.
    pub(super) async fn start(&self, launch: ContainerLaunch<'_>) -> Result<Started, Error> {
        let (id, cgroup) = (launch.id.to_owned(), launch.cgroup.to_owned());
        let Prepared { nodes, entrance, views, holder, .. } = self.node.cgroup(&cgroup, launch.spec).await?;
        let classed = self.classes(&launch, &cgroup).await;
        let runtime = self.node.runtime_of(launch.spec).cloned();
        let started = match (classed, runtime.clone()) {
            (Ok(rdt), Some(runtime)) => self.start_outside(&runtime, launch, entrance, rdt).await,
            (Ok(rdt), None) => self.start_native(launch, nodes, (entrance, views), rdt).await,
            (Err(e), _) => Err(e),
        };
        match started {
            Ok(answer) => {
                self.waiting().cgroups.insert(id, cgroup);
                let started = Started { pid: answer.int(Tag::Pid), at: answer.get(Tag::At).cast_signed() };
                self.keep(answer);
                if holder.is_some() {
                    // The container is in its scope, and keeps it.
                    let end = move || {
                        drop(holder);
                        Ok(())
                    };
                    blocking(end).await?;
                }
                Ok(started)
            }
            Err(e) => {
                let (node, dir, name) = (self.node.clone(), self.dir.clone(), id.clone());
                let removed = blocking(move || {
                    drop(holder);
                    let removed = node.cgroups.remove(&cgroup);
                    let deleted = runtime.map_or(Ok(()), |runtime| runtime.delete(&name, &dir));
                    removed.and(deleted)
                });
                if let Err(left) = removed.await {
                    tracing::warn!(container = id, "what is left of a failed start: {}", left.chain());
                }
                Err(e)
            }
        }
    }

    /// Sends plan and descriptors, and waits for the verdict.
    async fn start_native(
        &self,
        mut launch: ContainerLaunch<'_>,
        mut nodes: Vec<compile::Node>,
        (mut entrance, mut views): (cgroup::Entrance, Vec<OwnedFd>),
        rdt: Option<OwnedFd>,
    ) -> Result<Message, Error> {
        let user = self.user();
        let shared = match userns::of(&launch.pod.security.namespaces) {
            // Nothing may ever run in the node's user namespace that was to run in another.
            Some(_) if user.is_none() => {
                Err(Error::new(Kind::Internal, format!("pod {} has lost its user namespace", self.pod)))
            }
            Some(_) => devices::as_mounts(std::mem::take(&mut nodes)),
            None => Ok(Vec::new()),
        };
        let guarded = self.guarded(launch.id, launch.spec, "creating").await?;
        launch.mounts.splice(0..0, shared?);
        // The first exec takes the same way, and would look for it in each hierarchy.
        let (cgroup, kept) = (launch.cgroup.to_owned(), entrance.copy()?);
        entrance.tasks.extend(rdt);
        if !compile::private_cgroups(launch.spec, user.is_some()) {
            views = blocking(|| cgroup::views("/")).await?;
        }
        let (message, plan) = self.start_message(launch, &nodes, (entrance, views), user, guarded)?;
        let answer = self.call(message, START_TIME).await.and_then(|answer| verdict(&plan, answer))?;
        self.node.keep_entrance(&cgroup, kept);
        Ok(answer)
    }

    /// Gives a container's cgroup the limits of its class of block I/O, and opens the group of its RDT class, which is joined as v1 cgroups
    /// are.
    async fn classes(&self, launch: &ContainerLaunch<'_>, cgroup: &str) -> Result<Option<OwnedFd>, Error> {
        if let Some(limits) = self.node.blockio(launch.pod, launch.spec)? {
            let (node, cgroup) = (self.node.clone(), cgroup.to_owned());
            let write = move || node.cgroups.update(&cgroup, &Resources::default(), &limits.v1, &limits.v2);
            blocking(write).await?;
        }
        self.node.rdt(launch.pod, launch.spec, true)
    }

    /// The request to start a container, and its plan.
    fn start_message(
        &self,
        launch: ContainerLaunch<'_>,
        nodes: &[compile::Node],
        (entrance, views): (cgroup::Entrance, Vec<OwnedFd>),
        user: Option<OwnedFd>,
        (filter, agent): Guarded,
    ) -> Result<(Message, Vec<u8>), Error> {
        let security = &launch.spec.security;
        let namespaces = &launch.pod.security.namespaces;
        let own_network = namespaces.network == NamespaceMode::Pod;
        let map = userns::of(namespaces).filter(|_| user.is_some());
        let node_shm = launch.pod.security.namespaces.ipc == NamespaceMode::Node;
        let labels = self.node.labels(launch.spec, launch.selinux)?;
        let plan = compile::container(
            &self.node.facts,
            &compile::Container {
                id: launch.id,
                spec: launch.spec,
                process: launch.process,
                mounts: &launch.mounts,
                devices: nodes,
                seccomp: filter.as_deref().map(|filter| Guard::new(filter, agent.as_ref())),
                labels: &labels,
                mount_label: launch.selinux.map(|labels| &labels.file),
                tasks: entrance.tasks.len(),
                node_shm,
                user: map.map(|map| compile::User { map, own_network }),
            },
        )?;
        let (flags, join) = compile::pid_namespace(&security.namespaces);
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        let has = bit(launch.log.is_some(), HAS_LOG)
            | bit(entrance.v2.is_some(), HAS_CGROUP)
            | bit(entrance.oom.is_some(), HAS_OOM)
            | bit(agent.is_some(), HAS_AGENT)
            | bit(launch.process.stdin, STDIN)
            | bit(launch.spec.stdin_once, STDIN_ONCE)
            | bit(launch.process.tty, TTY)
            | bit(join, JOIN_PID);
        let mut message = Message::new(Word::Start, 0)
            .put(Tag::Container, launch.id.as_bytes())
            .put(Tag::Cgroup, launch.cgroup.as_bytes())
            .put(Tag::PidOf, security.namespaces.target_id.as_bytes())
            // With a user namespace the plan itself makes them, once it is there.
            .number(Tag::Flags, if user.is_some() { 0 } else { flags | wire::int(libc::CLONE_NEWNS) })
            .number(Tag::Has, has);
        message = self.carry(message, &plan)?;
        let agent = agent.map(|agent| agent.socket);
        message.fds.extend([launch.log, entrance.v2, entrance.oom, agent].into_iter().flatten());
        message.fds.extend(entrance.tasks);
        message.fds.push(launch.rootfs);
        message.fds.extend(launch.mounts.into_iter().map(|mount| mount.fd));
        message.fds.extend(of_the_node(node_shm, user, own_network)?);
        message.fds.extend(views);
        if message.fds.len() > socket::MAX_FDS {
            let why = format!("{} mounts are more than one container can have", message.fds.len());
            return Err(Error::invalid("mounts", why));
        }
        Ok((message, plan))
    }

    /// Starts a process in a container and hands out its streams.
    pub(super) async fn exec(
        &self,
        container: &str,
        process: &Process,
        launch: ExecLaunch<'_>,
    ) -> Result<Exec, Error> {
        let entrance = self.node.entrance(launch.cgroup)?;
        let mut groups: Vec<_> = self.node.rdt(launch.pod, launch.spec, false)?.into_iter().collect();
        if let Some(rdt) = &launch.spec.runtime_edits.intel_rdt {
            groups.extend(Rdt::new(container, rdt).enter(&self.node.resctrl)?);
        }
        let streams = [launch.stdin, launch.stdout, launch.stderr].map(|wanted| wanted && !process.tty);
        let (filter, agent) = self.guarded(container, launch.spec, "running").await?;
        let labels = self.node.labels(launch.spec, launch.selinux)?;
        let plan = compile::exec(
            &self.node.facts,
            &compile::Exec {
                spec: launch.spec,
                process,
                seccomp: filter.as_deref().map(|filter| Guard::new(filter, agent.as_ref())),
                labels: &labels,
                tasks: entrance.tasks.len() + groups.len(),
                streams,
                user: userns::of(&launch.pod.security.namespaces),
            },
        )?;
        let id = self.last_exec.fetch_add(1, Ordering::Relaxed);
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        // A terminal and an agent are handed over by the supervisor, which has to hear of them from the child.
        let alone = launch.until_end && streams == [false, true, true] && agent.is_none();
        let kit = if alone { self.kit()? } else { None };
        let has = bit(entrance.v2.is_some(), HAS_CGROUP)
            | bit(agent.is_some(), HAS_AGENT)
            | bit(process.tty, TTY)
            | bit(kit.is_some(), LINE);
        let mut message = Message::new(Word::Exec, 0)
            .put(Tag::Container, container.as_bytes())
            .number(Tag::Exec, id)
            .number(Tag::Has, has);
        message = self.carry(message, &plan)?;
        let Some(kit) = kit else {
            let entrance = entrance.copy()?;
            message.fds.extend(entrance.v2);
            message.fds.extend(agent.map(|agent| agent.socket));
            message.fds.extend(entrance.tasks.into_iter().chain(groups));
            let stdio = pipes(streams, &mut message.fds)?;
            return self.run_exec(message, id, stdio, process.tty, |answer| verdict(&plan, answer)).await;
        };
        let line = sys::watch(kit.line).map_err(|e| Error::with(Kind::Internal, "wait for an exec", e))?;
        let (writers, theirs) = kit.theirs;
        let cgroups = entrance.v2.iter().chain(&entrance.tasks).chain(&groups);
        let sent = message.fds.iter().chain(cgroups).chain(&writers).chain([&theirs]);
        let sent: Vec<_> = sent.map(AsFd::as_fd).collect();
        self.send(message.bytes(), &sent).await.map_err(|e| self.lost(e))?;
        let [stdout, stderr] = kit.outputs.map(Some);
        let exit = self.end_on(line, plan, writers);
        Ok(Exec { id, pid: 0, stdio: Stdio { stdin: None, stdout, stderr }, exit: Box::pin(exit) })
    }

    /// Sends the request for an exec, and waits for the verdict.
    pub(super) async fn run_exec(
        &self,
        message: Message,
        id: u64,
        mut stdio: Stdio,
        tty: bool,
        verdict: impl FnOnce(Message) -> Result<Message, Error>,
    ) -> Result<Exec, Error> {
        let (sender, ended) = oneshot::channel();
        self.waiting().execs.insert(id, sender);
        let answer = self.call(message, START_TIME).await.and_then(verdict);
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(e) => {
                self.waiting().execs.remove(&id);
                return Err(e);
            }
        };
        if tty {
            stdio.stdout = answer.fds.pop();
        }
        let pod = self.pod.clone();
        let exit = async move {
            ended.await.map_err(|_| {
                Error::new(Kind::Unavailable, format!("the supervisor of pod {pod} ended before the exec"))
            })
        };
        Ok(Exec { id, pid: answer.int(Tag::Pid), stdio, exit: Box::pin(exit) })
    }
}

/// The filter of a process, and the agent that waits for its notifications.
type Guarded = (Option<Arc<Filter>>, Option<Agent>);

impl Supervisor {
    /// The filter of a process of a container; its agent, if it has one, is connected to. The state says of the container what the
    /// client has said of it, and nothing that its image says.
    async fn guarded(&self, id: &str, spec: &ContainerSpec, status: &str) -> Result<Guarded, Error> {
        let filter = self.node.filter(&spec.security)?;
        let Some(filter) = filter else { return Ok((None, None)) };
        if filter.listener.is_none() {
            return Ok((Some(filter), None));
        }
        let annotations: BTreeMap<_, _> = spec.labels.iter().chain(&spec.annotations).collect();
        let about = serde_json::json!({
            "ociVersion": crate::oci::SPEC_VERSION,
            "id": id,
            "status": status,
            "bundle": self.dir,
            "annotations": annotations,
        });
        blocking(move || Agent::reach(&filter, &about).map(|agent| (Some(filter), agent))).await
    }

    /// Gives a request its plan: in the message itself if it fits and the supervisor is not too old for it, otherwise in a sealed memfd,
    /// which is the first of the descriptors.
    pub(super) fn carry(&self, mut message: Message, plan: &[u8]) -> Result<Message, Error> {
        if self.plan_fields.load(Ordering::Relaxed) && plan.len() <= wire::MAX_VALUE {
            return Ok(message.put(Tag::Plan, plan));
        }
        let sealed = memory::seal("berth-plan", plan);
        message.fds.push(sealed.map_err(|e| Error::with(Kind::Internal, "seal a plan", e))?);
        Ok(message)
    }
}

/// The answer to a launch: running, or the step that failed.
fn verdict(plan: &[u8], answer: Message) -> Result<Message, Error> {
    if answer.kind() != Word::Failed {
        return Ok(answer);
    }
    Err(failure::explain(plan, failure(&answer)))
}

/// Which step failed, and how.
pub(super) fn failure(answer: &Message) -> Failure {
    let detail = u8::try_from(answer.get(Tag::Detail)).unwrap_or(0);
    let step = u32::try_from(answer.get(Tag::Step)).unwrap_or(u32::MAX);
    Failure::from_parts(step, answer.int(Tag::Errno), detail)
}

/// Pipes for an exec: the child's ends go to the message.
pub(super) fn pipes(streams: [bool; 3], theirs: &mut Vec<OwnedFd>) -> Result<Stdio, Error> {
    let make = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::with(Kind::Internal, "make a pipe", e));
    let mut stdio = Stdio::default();
    if streams[0] {
        let (read, write) = make()?;
        theirs.push(read);
        stdio.stdin = Some(write);
    }
    for (wanted, ours) in [(streams[1], &mut stdio.stdout), (streams[2], &mut stdio.stderr)] {
        if wanted {
            let (read, write) = make()?;
            theirs.push(write);
            *ours = Some(read);
        }
    }
    Ok(stdio)
}

/// What is attached behind the mounts, in the order of [`compile::Container`].
fn of_the_node(shm: bool, user: Option<OwnedFd>, own_network: bool) -> Result<Vec<OwnedFd>, Error> {
    let shm = if shm { Some(node_mount(c"/dev/shm")?) } else { None };
    let sys = if user.is_some() && !own_network { Some(node_mount(c"/sys")?) } else { None };
    Ok([shm, user, sys].into_iter().flatten().collect())
}

/// A tree of the node: its /dev/shm for pods in the node's IPC namespace, its /sys for user namespaces in the node's network.
fn node_mount(path: &std::ffi::CStr) -> Result<OwnedFd, Error> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(rustix::fs::CWD, path, flags)
        .map_err(|e| Error::with(Kind::Internal, format!("open the node's {}", path.to_string_lossy()), e))
}
