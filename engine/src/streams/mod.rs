//! Interactive streams: exec, attach, port-forward.
//!
//! Bytes flow between the client's connection and the process directly; the engine hands over the ends and steps aside.

mod connect;
mod pipe;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

pub use pipe::Pipe;

use crate::api::{Reader, Session, Stream, Writer};
use crate::container::{Container, ContainerPhase};
use crate::exec::{Exec, ExecLaunch, Exit, Stdio};
use crate::pod::Pod;
use crate::{Engine, Error, Kind};

/// Which streams a client wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Standard input.
    pub(crate) stdin: bool,
    /// Standard output.
    pub(crate) stdout: bool,
    /// Standard error; not with a terminal.
    pub(crate) stderr: bool,
    /// On a terminal.
    pub(crate) tty: bool,
    /// Only the end of the process matters.
    pub(crate) until_end: bool,
}

impl Engine {
    /// Starts a command in a running container with its streams attached.
    pub async fn exec(
        self: &Arc<Self>,
        id: &str,
        command: &[String],
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> Result<Session, Error> {
        let wanted = Wanted { stdin, stdout, stderr, tty, until_end: false };
        let (pod, container) = self.container_state(id)?;
        let Exec { id: number, stdio, exit, .. } = start_exec(&pod, &container, command, wanted).await?;
        session(&pod, &container, Some(number), wanted, stdio, exit)
    }

    /// Joins the streams of a running container's first process.
    pub async fn attach(
        self: &Arc<Self>,
        id: &str,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> Result<Session, Error> {
        let wanted = Wanted { stdin, stdout, stderr, tty, until_end: false };
        let (pod, container) = self.container_state(id)?;
        must_run(&container)?;
        let spec = &container.record.spec;
        if wanted.tty != spec.tty {
            let why = if spec.tty { "the container has a terminal" } else { "the container has no terminal" };
            return Err(Error::invalid("tty", why));
        }
        let stdin = wanted.stdin && spec.stdin;
        let supervisor = pod.supervisor()?;
        let stdio =
            supervisor.attach(&container.record.id, stdin, wanted.stdout, wanted.stderr && !spec.tty).await?;
        let exit = end_of(pod.clone(), container.record.id.clone());
        session(&pod, &container, None, wanted, stdio, exit)
    }

    /// Connects to a port on the loopback addresses of a ready pod.
    pub async fn port_forward(self: &Arc<Self>, pod: &str, port: u16) -> Result<Box<dyn Stream>, Error> {
        let pod = self.find_pod(pod)?;
        let state = pod.snapshot().state.clone();
        state.must_be_ready()?;
        let own = state.status.holds.namespace.then(|| (self.network.clone(), pod.id().clone()));
        Ok(Box::new(connect::loopback(own, port).await?))
    }
}

/// Starts a process in a running container, as its user and with its environment.
pub(crate) async fn start_exec(
    pod: &Arc<Pod>,
    container: &Container,
    command: &[String],
    wanted: Wanted,
) -> Result<Exec, Error> {
    must_run(container)?;
    if command.first().is_none_or(String::is_empty) || command.iter().any(|arg| arg.contains('\0')) {
        return Err(Error::invalid("cmd", "must not be empty nor contain a NUL byte"));
    }
    let mut process = container.process();
    process.args = command.to_vec();
    (process.tty, process.stdin) = (wanted.tty, wanted.stdin);
    if wanted.tty {
        crate::container::process::add_default(&mut process.env, "TERM", "xterm");
    }
    let snapshot = pod.snapshot();
    let launch = ExecLaunch {
        spec: &container.current_spec(),
        pod: &snapshot.state.record.spec,
        cgroup: &container.record.cgroup,
        selinux: container.record.selinux.as_ref(),
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr && !wanted.tty,
        until_end: wanted.until_end,
    };
    pod.supervisor()?.exec(&container.record.id, &process, launch).await
}

fn must_run(container: &Container) -> Result<(), Error> {
    match container.status.phase {
        ContainerPhase::Running => Ok(()),
        _ => Err(Error::new(
            Kind::FailedPrecondition,
            format!("container \"{}\" is not running", container.record.id),
        )),
    }
}

/// The end of a container's first process, as the pod's task publishes it.
fn end_of(pod: Arc<Pod>, id: Arc<str>) -> BoxFuture<'static, Result<Exit, Error>> {
    async move {
        let ended = pod.wait(|s| s.state.containers.get(&id).is_none_or(|c| !c.status.phase.alive())).await;
        let exit = ended.state.containers.get(&id).and_then(|c| c.status.exit.clone());
        exit.ok_or_else(|| Error::not_found("container", &id))
    }
    .boxed()
}

fn session(
    pod: &Arc<Pod>,
    container: &Container,
    exec: Option<u64>,
    wanted: Wanted,
    stdio: Stdio,
    exit: BoxFuture<'static, Result<Exit, Error>>,
) -> Result<Session, Error> {
    let stdout = stdio.stdout.map(Pipe::new).transpose()?;
    // A terminal is one descriptor for both directions.
    let stdin = match (stdio.stdin, &stdout) {
        (Some(fd), _) => Some(Pipe::new(fd)?),
        (None, Some(terminal)) if wanted.tty && wanted.stdin => Some(terminal.try_clone()?),
        _ => None,
    };
    let stderr = stdio.stderr.map(Pipe::new).transpose()?;
    let (resize, sizes) = mpsc::unbounded_channel();
    if wanted.tty {
        tokio::spawn(resizes(pod.clone(), container.record.id.clone(), exec, sizes));
    }
    Ok(Session {
        stdin: stdin.map(|pipe| Box::new(pipe) as Writer),
        stdout: stdout.map(|pipe| Box::new(pipe) as Reader),
        stderr: stderr.map(|pipe| Box::new(pipe) as Reader),
        resize,
        exit,
    })
}

/// Passes terminal sizes on; only the newest of those that have gathered. Ends with its session.
async fn resizes(
    pod: Arc<Pod>,
    id: Arc<str>,
    exec: Option<u64>,
    mut sizes: mpsc::UnboundedReceiver<(u16, u16)>,
) {
    while let Some(mut size) = sizes.recv().await {
        while let Ok(newer) = sizes.try_recv() {
            size = newer;
        }
        let Ok(supervisor) = pod.supervisor() else { return };
        // The process may have ended: then nobody looks at the terminal.
        let _ = supervisor.resize(&id, exec, size.0, size.1).await;
    }
}
