//! The execution driver: everything that runs processes for pods.
//!
//! The daemon never forks. It starts one supervisor (`podd`) per pod and talks to it through [`Supervisor`]; the supervisor clones,
//! reaps, logs and records. A driver is chosen by RuntimeClass handler; `native` is ours, [`external`](crate::external) other people's runtimes over it.

pub(crate) mod ahead;
pub mod cgroup;
pub mod classes;
pub(crate) mod file;
pub mod podd;
pub(crate) mod program;
pub(crate) mod rdt;
pub mod user;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::selinux::{ContainerLabels, Context};
use crate::spec::{ContainerSpec, PodSpec};

/// A future of the driver.
pub type Call<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// What is needed to start the supervisor of a pod.
#[derive(Debug)]
pub struct PodLaunch<'a> {
    /// Pod id.
    pub pod: &'a str,
    /// Private directory on tmpfs (`/run/berth/pods/<id>`, 0700, exists): control socket, exit records.
    pub dir: &'a Path,
    /// The pod as requested: namespaces, sysctls, host name.
    pub spec: &'a PodSpec,
    /// The pod's network namespace; `None`: the node's.
    pub netns: Option<BorrowedFd<'a>>,
    /// What [`Driver::namespaces`] made.
    pub owned: Option<PodNamespaces>,
    /// SELinux label of the file systems that are the pod's; `None`: SELinux is off.
    pub label: Option<&'a Context>,
}

/// A user namespace, and the namespaces it owns.
#[derive(Debug)]
pub struct PodNamespaces {
    /// The user namespace.
    pub user: OwnedFd,
    /// Host name; the node's for a pod with the node's network.
    pub uts: OwnedFd,
    /// IPC.
    pub ipc: OwnedFd,
    /// Network, without any link up; `None`: the node's.
    pub net: Option<OwnedFd>,
}

/// A process to be started, with image defaults already merged in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// argv; never empty.
    pub args: Vec<String>,
    /// `NAME=value` as bytes, image first, overridden by name, PATH and HOME supplied when absent.
    pub env: Vec<Vec<u8>>,
    /// Absolute working directory.
    pub cwd: String,
    /// Numeric identity, already looked up in the image.
    pub user: ResolvedUser,
    /// Runs on a terminal.
    pub tty: bool,
    /// Has a stdin.
    pub stdin: bool,
}

/// A numeric identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResolvedUser {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// All supplementary groups, the primary one included.
    pub groups: Vec<u32>,
}

/// One mount of a container, already opened on the node by the volume driver.
#[derive(Debug)]
pub struct PreparedMount {
    /// A detached mount, or for [`Propagation::Bidirectional`](crate::spec::Propagation) a detached clone that keeps its peer group.
    pub fd: OwnedFd,
    /// Path in the container.
    pub destination: String,
    /// The source is a directory (else the mount point is a file).
    pub directory: bool,
    /// The request, for propagation, read-only and option flags.
    pub spec: crate::spec::MountSpec,
}

/// What is needed to start a container.
#[derive(Debug)]
pub struct ContainerLaunch<'a> {
    /// Container id.
    pub id: &'a str,
    /// Pod as requested.
    pub pod: &'a PodSpec,
    /// Container as requested.
    pub spec: &'a ContainerSpec,
    /// The first process.
    pub process: &'a Process,
    /// Detached mount of the root file system, with the ids of the pod's user namespace.
    pub rootfs: OwnedFd,
    /// Volumes, image volumes, then /etc/hosts, /etc/hostname, /etc/resolv.conf, in mount order.
    pub mounts: Vec<PreparedMount>,
    /// Cgroup in cgroupfs spelling, relative to each hierarchy's root; made by the driver at start, unless that has been prepared.
    pub cgroup: &'a str,
    /// The opened log file, append mode; `None`: output is discarded.
    pub log: Option<OwnedFd>,
    /// Its SELinux labels; `None`: SELinux is off.
    pub selinux: Option<&'a ContainerLabels>,
}

/// Why and how a process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// Killed by the cgroup's OOM killer.
    pub oom: bool,
    /// Nanoseconds since the epoch, taken by the supervisor.
    pub at: i64,
}

/// A started container.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// Pid on the node.
    pub pid: i32,
    /// Nanoseconds since the epoch.
    pub at: i64,
}

/// What a supervisor reports by itself.
#[derive(Clone, Debug)]
pub enum Event {
    /// The first process of a container has ended.
    Exited {
        /// Container id.
        container: String,
        /// How.
        exit: Exit,
    },
    /// The supervisor's connection ended. The receiver reconnects, or adopts if it is dead.
    Gone,
}

/// What a supervisor knows of a container when the daemon comes back.
#[derive(Clone, Debug)]
pub struct Survivor {
    /// Container id.
    pub id: String,
    /// Pid on the node.
    pub pid: i32,
    /// Start, nanoseconds since the epoch.
    pub started: i64,
    /// Set when it has ended.
    pub exit: Option<Exit>,
}

/// A supervisor and what it has to say.
#[derive(Debug)]
pub struct Connection {
    /// Calls go here.
    pub supervisor: Arc<dyn Supervisor>,
    /// Events come from here, in order; every exit exactly once per connection, also those in `survivors` are not repeated.
    pub events: tokio::sync::mpsc::UnboundedReceiver<Event>,
    /// Containers known when the connection was made.
    pub survivors: Vec<Survivor>,
}

/// The daemon's ends of a process's stdio.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Write end of stdin.
    pub stdin: Option<OwnedFd>,
    /// Read end of stdout; with a terminal: its master, for both directions.
    pub stdout: Option<OwnedFd>,
    /// Read end of stderr; none with a terminal.
    pub stderr: Option<OwnedFd>,
}

/// A running exec. Dropping it does not end the process.
pub struct Exec {
    /// Id for `resize` and `kill_exec`.
    pub id: u64,
    /// Pid on the node; 0: it is not known yet.
    pub pid: i32,
    /// Streams, straight to the process.
    pub stdio: Stdio,
    /// Resolves when the process has ended, or could not be started.
    pub exit: BoxFuture<'static, Result<Exit, Error>>,
}

impl std::fmt::Debug for Exec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exec").field("id", &self.id).field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// Features of a handler, reported in Status.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// Recursive read-only mounts.
    pub recursive_readonly_mounts: bool,
    /// noexec, nodev and nosuid on single mounts.
    pub mount_options: bool,
    /// Whether the image's groups count can be chosen.
    pub supplemental_groups_policy: bool,
    /// User namespaces with idmapped mounts.
    pub user_namespaces: bool,
    /// User namespaces for pods with the node's network.
    pub user_namespaces_host_network: bool,
}

/// Starts supervisors and finds them again. One value serves the node.
pub trait Driver: Send + Sync + std::fmt::Debug {
    /// Handler name (`native`).
    fn name(&self) -> &str;
    /// What it can do here; probed once.
    fn features(&self) -> Features;
    /// Whether an OCI runtime makes its containers, which runs the hooks that devices ask for.
    fn has_runtime(&self) -> bool {
        false
    }
    /// Refuses by name, when a container is made, what a start could not honour on this node: security modules, profiles. Reads small
    /// files of the node, and once loads the default profile of AppArmor (some 20 ms, at most ten seconds).
    fn check(&self, _pod: &PodSpec, _container: &ContainerSpec) -> Result<(), Error> {
        Ok(())
    }
    /// The namespaces of a pod that has a user namespace of its own, for which they have to be made first; else `None`. Blocking.
    fn namespaces(&self, _pod: &PodSpec) -> Result<Option<PodNamespaces>, Error> {
        Ok(None)
    }
    /// Starts the supervisor of a pod, with its namespaces made and sysctls applied.
    fn launch<'a>(&'a self, launch: PodLaunch<'a>) -> Call<'a, Connection>;
    /// Starts the process of a pod's supervisor ahead of `launch`, while the pod's namespace is being made. What fails here is left to
    /// `launch`, which starts one itself.
    fn prepare_supervisor<'a>(&'a self, pod: &'a str, dir: &'a Path) -> Call<'a, ()> {
        let _ = (pod, dir);
        Box::pin(std::future::ready(Ok(())))
    }
    /// Connects to the supervisor of a pod started earlier; `None`: it is dead. Its recorded exits are then in `dir`.
    fn connect<'a>(&'a self, pod: &'a str, dir: &'a Path) -> Call<'a, Option<Connection>>;
    /// Exits recorded on tmpfs by a supervisor that no longer runs.
    fn recorded_exits(&self, dir: &Path) -> BTreeMap<String, Exit>;
    /// Makes the cgroup of a container that is going to be started, so that the start need not wait for it. What fails here is
    /// left to the start, which makes what is missing and says what is wrong.
    fn prepare_cgroup<'a>(&'a self, cgroup: &'a str, spec: Arc<ContainerSpec>) -> Call<'a, ()> {
        let _ = (cgroup, spec);
        Box::pin(std::future::ready(Ok(())))
    }
    /// Makes the cgroup that the cgroups of a pod's containers are made in. What fails here is left to the first of them.
    fn prepare_pod_cgroup<'a>(&'a self, cgroup: &'a str) -> Call<'a, ()> {
        let _ = cgroup;
        Box::pin(std::future::ready(Ok(())))
    }
    /// Kills whatever still runs in a cgroup and removes the cgroup on every hierarchy; absent is fine.
    fn remove_cgroup<'a>(&'a self, cgroup: &'a str) -> Call<'a, ()>;
    /// Lets go of what is kept of a container beside its cgroup, after that was removed; `dir` as for [`Driver::connect`]. Absent is fine.
    fn discard<'a>(&'a self, container: &'a str, dir: &'a Path) -> Call<'a, ()> {
        let _ = (container, dir);
        Box::pin(std::future::ready(Ok(())))
    }
    /// Changes the limits of a live cgroup. Blocking.
    fn update_cgroup(&self, cgroup: &str, resources: &crate::spec::Resources) -> Result<(), Error>;
    /// Changes the limits of the cgroup that a pod's containers are made in, and makes it if no container has been started
    /// yet. Blocking.
    fn update_pod_cgroup(&self, cgroup: &str, resources: &crate::spec::Resources) -> Result<(), Error>;
    /// The daemon ends: pods go on, what is the driver's own goes with it. Blocking, a second at most.
    fn leave(&self) {}
}

/// A pod's supervisor. All calls are safe to repeat; every call has an internal deadline of its own.
pub trait Supervisor: Send + Sync + std::fmt::Debug {
    /// Pid of the supervisor.
    fn pid(&self) -> i32;
    /// The pod's user namespace; `None`: the node's.
    fn user_namespace(&self) -> Option<OwnedFd> {
        None
    }
    /// Makes the cgroup with its limits if it is not prepared, then clones, sets up and executes. Returns once execve has succeeded; a failure in the child
    /// names the step and the object and leaves nothing.
    fn start<'a>(&'a self, launch: ContainerLaunch<'a>) -> Call<'a, Started>;
    /// Starts a process in a container.
    fn exec<'a>(&'a self, container: &'a str, process: &'a Process, launch: ExecLaunch<'a>)
    -> Call<'a, Exec>;
    /// Sends a signal to the container's first process; already ended: fine.
    fn signal<'a>(&'a self, container: &'a str, signal: i32) -> Call<'a, ()>;
    /// Kills every process of the container's cgroup.
    fn kill<'a>(&'a self, container: &'a str) -> Call<'a, ()>;
    /// Kills an exec and its children as far as they can be told apart.
    fn kill_exec<'a>(&'a self, container: &'a str, exec: u64) -> Call<'a, ()>;
    /// Switches both streams to a new log file at a line boundary.
    fn reopen_log<'a>(&'a self, container: &'a str, log: OwnedFd) -> Call<'a, ()>;
    /// Sets the terminal size of a container (`exec` `None`) or an exec.
    fn resize<'a>(&'a self, container: &'a str, exec: Option<u64>, columns: u16, rows: u16) -> Call<'a, ()>;
    /// Duplicates the output of a container to the returned pipes from now on, and gives a way into its stdin. A reader that is too slow
    /// is dropped; the container never waits.
    fn attach<'a>(&'a self, container: &'a str, stdin: bool, stdout: bool, stderr: bool) -> Call<'a, Stdio>;
    /// Ends the supervisor. Containers must have ended; whatever still runs is killed.
    fn shutdown(&self) -> Call<'_, ()>;
}

/// What an exec needs beyond its process.
#[derive(Clone, Copy, Debug)]
pub struct ExecLaunch<'a> {
    /// The container's request: capabilities, seccomp, no_new_privs, namespaces are taken from it.
    pub spec: &'a ContainerSpec,
    /// The pod as requested.
    pub pod: &'a PodSpec,
    /// Cgroup of the container.
    pub cgroup: &'a str,
    /// SELinux labels of the container; `None`: SELinux is off.
    pub selinux: Option<&'a ContainerLabels>,
    /// Which streams are wanted.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Only its end matters: whoever asks need not be told when it runs. Its output may come to an end no sooner than `Exec::exit` does, so
    /// that both are to be waited for together.
    pub until_end: bool,
}

/// Where a supervisor keeps things; shared by daemon and supervisor.
pub fn control_socket(dir: &Path) -> PathBuf {
    dir.join("ctl")
}

/// Nanoseconds since the epoch.
pub fn nanos(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}
