//! Starting processes by an external runtime: bundle, plan of the go-between, verdict in the runtime's own words.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::launch::pipes;
use super::{START_TIME, Supervisor, blocking};
use crate::error::{Error, Kind};
use crate::exec::wire::{
    self, HAS_LOG, HAS_OOM, HAS_USER, Kind as Word, Message, OUTSIDE, POD_PID, TTY, Tag,
};
use crate::exec::wire::{STDIN, STDIN_ONCE};
use crate::exec::{ContainerLaunch, Exec, ExecLaunch, Process, cgroup};
use crate::external::plan::{self, Common};
use crate::external::{Bundle, Runtime, document};
use crate::native::failure::explain;
use crate::native::{compile, devices};
use crate::spec::NamespaceMode;
use crate::sys::{process, socket};

/// The node's mount namespace, as the daemon sees it.
fn node_mounts() -> Result<OwnedFd, Error> {
    let path = "/proc/self/ns/mnt";
    std::fs::File::open(path).map(Into::into).map_err(|e| Error::with(Kind::Internal, path, e))
}

impl Supervisor {
    /// Has a runtime make and start a container, whose cgroup is there. A failure leaves what [`Runtime::delete`] removes.
    pub(super) async fn start_outside(
        &self,
        runtime: &Arc<Runtime>,
        launch: ContainerLaunch<'_>,
        entrance: cgroup::Entrance,
        rdt: Option<OwnedFd>,
    ) -> Result<Message, Error> {
        let bundle = Bundle::of(&self.dir, launch.id)?;
        bundle.make()?;
        runtime.make_root()?;
        let tasks: Vec<OwnedFd> = rdt.into_iter().collect();
        let shm = launch.pod.security.namespaces.ipc != NamespaceMode::Node;
        self.write_config(&bundle, &launch, shm)?;
        let common = Common {
            runtime,
            bundle: &bundle,
            id: launch.id,
            tasks: tasks.len(),
            command: launch.process.args.first().map_or("", String::as_str),
            tty: launch.process.tty,
            uid: launch.process.user.uid,
            oom_score: compile::oom_score(launch.spec),
            suffix: "",
        };
        let plan = plan::container(&common, &launch.mounts, launch.process.stdin, shm)?;
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        let has = OUTSIDE
            | bit(launch.log.is_some(), HAS_LOG)
            | bit(entrance.oom.is_some(), HAS_OOM)
            | bit(launch.process.stdin, STDIN)
            | bit(launch.spec.stdin_once, STDIN_ONCE)
            | bit(launch.process.tty, TTY);
        let message = Message::new(Word::Start, 0)
            .put(Tag::Container, launch.id.as_bytes())
            .put(Tag::Cgroup, launch.cgroup.as_bytes())
            .number(Tag::Has, has);
        let mut message = self.carry(message, &plan)?;
        message.fds.extend([launch.log, entrance.oom].into_iter().flatten());
        message.fds.extend(common.descriptors(tasks)?);
        message.fds.push(launch.rootfs);
        message.fds.extend(launch.mounts.into_iter().map(|mount| mount.fd));
        if message.fds.len() > socket::MAX_FDS {
            let why = format!("{} mounts are more than one container can have", message.fds.len());
            return Err(Error::invalid("mounts", why));
        }
        let answer = self.call(message, START_TIME).await?;
        common.verdict(&plan, answer)
    }

    fn write_config(&self, bundle: &Bundle, launch: &ContainerLaunch<'_>, shm: bool) -> Result<(), Error> {
        let (devices, rules) = devices::resolve(launch.spec)?;
        let config = document::config(&document::Container {
            facts: &self.node.facts,
            spec: launch.spec,
            process: launch.process,
            mounts: &launch.mounts,
            devices: &devices,
            rules: &rules,
            labels: &self.node.labels(launch.spec, launch.selinux)?,
            mount_label: launch.selinux.map(|labels| &labels.file),
            seccomp: self.node.profile(&launch.spec.security)?,
            cgroup: launch.cgroup,
            pid: self.pid_of(launch)?,
            shm,
            bundle,
        })?;
        bundle.write("config.json", &config)
    }

    /// Whose PID namespace the container joins; `None`: a new one, or the node's.
    fn pid_of(&self, launch: &ContainerLaunch<'_>) -> Result<Option<i32>, Error> {
        let namespaces = &launch.spec.security.namespaces;
        let found = match namespaces.pid {
            NamespaceMode::Pod => self.kept(|kept| {
                let pod = kept.pod.as_ref().filter(|pod| pod.get(Tag::Has) & POD_PID != 0)?;
                let place = wire::POD_NAMESPACES + usize::from(pod.get(Tag::Has) & HAS_USER != 0);
                process::pid_of_pidfd(pod.fds.get(place)?.as_fd()).ok()
            }),
            NamespaceMode::Target => self.kept(|kept| {
                let target = kept.containers.get(&namespaces.target_id)?;
                target.all(Tag::Ended).next().is_none().then(|| target.int(Tag::Pid))
            }),
            NamespaceMode::Container | NamespaceMode::Node => return Ok(None),
        };
        let gone = || Error::new(Kind::NotFound, format!("pod {}: its PID namespace has gone", self.pod));
        found.filter(|pid| *pid > 0).map(Some).ok_or_else(gone)
    }

    /// Has a runtime start a process in a container, and hands out its streams.
    pub(super) async fn exec_outside(
        &self,
        runtime: &Arc<Runtime>,
        container: &str,
        process: &Process,
        launch: ExecLaunch<'_>,
    ) -> Result<Exec, Error> {
        let bundle = Bundle::of(&self.dir, container)?;
        let id = self.last_exec.fetch_add(1, Ordering::Relaxed);
        // Short: the path of the terminal's socket has to fit.
        let suffix = format!("{:x}", id & 0xffff_ffff);
        let tasks: Vec<OwnedFd> = self.node.rdt(launch.pod, launch.spec, false)?.into_iter().collect();
        let common = Common {
            runtime,
            bundle: &bundle,
            id: container,
            tasks: tasks.len(),
            command: process.args.first().map_or("", String::as_str),
            tty: process.tty,
            uid: process.user.uid,
            oom_score: compile::oom_score(launch.spec),
            suffix: &suffix,
        };
        let labels = self.node.labels(launch.spec, launch.selinux)?;
        let about = document::process(&self.node.facts, launch.spec, process, &labels)?;
        bundle.write(&common.file("process"), &about)?;
        let started = self.try_exec_outside(&common, process, launch, id, tasks).await;
        bundle.clear(&common.files());
        started
    }

    async fn try_exec_outside(
        &self,
        common: &Common<'_>,
        process: &Process,
        launch: ExecLaunch<'_>,
        id: u64,
        tasks: Vec<OwnedFd>,
    ) -> Result<Exec, Error> {
        let streams = [launch.stdin, launch.stdout, launch.stderr].map(|wanted| wanted && !process.tty);
        let plan = plan::exec(common, streams)?;
        let message = Message::new(Word::Exec, 0)
            .put(Tag::Container, common.id.as_bytes())
            .number(Tag::Exec, id)
            .number(Tag::Has, OUTSIDE | if process.tty { TTY } else { 0 });
        let mut message = self.carry(message, &plan)?;
        message.fds.extend(common.descriptors(tasks)?);
        let stdio = pipes(streams, &mut message.fds)?;
        self.run_exec(message, id, stdio, process.tty, |answer| common.verdict(&plan, answer)).await
    }

    /// Sends a signal by the runtime; a container that has ended is fine.
    pub(super) async fn signal_outside(
        &self,
        runtime: &Arc<Runtime>,
        container: &str,
        signal: i32,
    ) -> Result<(), Error> {
        let (runtime, id) = (runtime.clone(), container.to_owned());
        let sent = blocking(move || runtime.kill(&id, signal)).await;
        if sent.is_err() && self.has_ended(container) { Ok(()) } else { sent }
    }

    /// Whether a container's first process has ended, be it that nobody has said so yet.
    fn has_ended(&self, container: &str) -> bool {
        self.kept(|kept| {
            let Some(kept) = kept.containers.get(container) else { return true };
            kept.all(Tag::Ended).next().is_some() || kept.fds.first().is_none_or(process::is_over)
        })
    }
}

impl Common<'_> {
    /// The descriptors that the plans begin with.
    fn descriptors(&self, tasks: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, Error> {
        let mut fds = tasks;
        fds.push(node_mounts()?);
        if self.tty {
            fds.push(self.bundle.listen(&self.file("tty"))?);
        }
        Ok(fds)
    }

    /// The answer to a launch: running, or what the runtime has to say.
    fn verdict(&self, plan: &[u8], answer: Message) -> Result<Message, Error> {
        if answer.kind() != Word::Failed {
            return Ok(answer);
        }
        let error = explain(plan, super::launch::failure(&answer));
        let printed = answer.text(Tag::Message).trim().replace('\n', "; ");
        let said = self.bundle.said(&self.file("log")).or(Some(printed).filter(|said| !said.is_empty()));
        let about = format!("handler \"{}\" cannot run \"{}\"", self.runtime.name(), self.command);
        Err(match said {
            Some(said) => Error::new(error.kind(), format!("{about}: {said}")),
            None => error.context(about),
        })
    }
}
