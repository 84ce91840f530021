//! What the outside sees of pods, containers, statistics and events: plain views, cheap to clone, never locked.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::exec::{Exit, ResolvedUser};
use crate::spec::{ContainerSpec, PodSpec, Resources};

/// What the server has made of a view or a reading. These never change once they are shared, so it is made once. A copy starts without:
/// it may be changed.
#[derive(Default)]
pub struct Rendering(OnceLock<Arc<[u8]>>);

impl Rendering {
    /// What was made, by `make` if nobody has.
    pub fn made(&self, make: impl FnOnce() -> Vec<u8>) -> &Arc<[u8]> {
        self.0.get_or_init(|| make().into())
    }
}

impl Clone for Rendering {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl std::fmt::Debug for Rendering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Rendering").field(&self.0.get().map(|made| made.len())).finish()
    }
}

/// State of a pod sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodState {
    /// Everything is up.
    Ready,
    /// Stopped, failed, or from before a reboot.
    NotReady,
}

/// A pod as List and Status show it.
#[derive(Clone, Debug)]
pub struct PodView {
    /// 64 hex digits.
    pub id: String,
    /// As requested.
    pub spec: Arc<PodSpec>,
    /// State.
    pub state: PodState,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Addresses, primary first; empty with the node's network.
    pub ips: Vec<std::net::IpAddr>,
    /// Pid of the supervisor; 0: none.
    pub pid: i32,
    /// Network namespace path.
    pub netns: Option<PathBuf>,
    /// As lists show it.
    pub rendering: Rendering,
}

/// State of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited,
    /// Its end was not seen by anybody.
    Unknown,
}

/// A container as List and Status show it.
#[derive(Clone, Debug)]
pub struct ContainerView {
    /// 64 hex digits.
    pub id: String,
    /// Pod id.
    pub pod: String,
    /// As requested; `resources` holds the current ones.
    pub spec: Arc<ContainerSpec>,
    /// Image id (config digest).
    pub image_id: String,
    /// `name@sha256:…` of the image, else its id.
    pub image_ref: String,
    /// State.
    pub state: ContainerState,
    /// Nanoseconds since the epoch; 0: not yet.
    pub created_at: i64,
    /// Nanoseconds since the epoch; 0: not yet.
    pub started_at: i64,
    /// How it ended: code, OOM, time.
    pub exit: Option<Exit>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `Unknown` or empty.
    pub reason: &'static str,
    /// For a person.
    pub message: String,
    /// Absolute log path; empty: none.
    pub log_path: PathBuf,
    /// Identity of the first process.
    pub user: ResolvedUser,
    /// Signal number that stops it.
    pub stop_signal: i32,
    /// Resources in force.
    pub resources: Resources,
    /// Pid on the node; 0: not running.
    pub pid: i32,
    /// As lists show it.
    pub rendering: Rendering,
}

/// Result of ExecSync; each stream at most 16 MiB, the rest is read and dropped.
#[derive(Clone, Debug, Default)]
pub struct ExecOutput {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Exit code.
    pub code: i32,
}

/// A writer handed to the streaming server.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;
/// A reader handed to the streaming server.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// A running interactive exec or attach.
pub struct Session {
    /// Way in; dropping it is end of file for the process.
    pub stdin: Option<Writer>,
    /// Standard output, or the terminal.
    pub stdout: Option<Reader>,
    /// Standard error.
    pub stderr: Option<Reader>,
    /// Terminal size, columns then rows; sending never waits.
    pub resize: tokio::sync::mpsc::UnboundedSender<(u16, u16)>,
    /// Resolves with the end of the process.
    pub exit: futures_util::future::BoxFuture<'static, Result<Exit, crate::Error>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// A byte stream to a port of a pod.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What happened, for GetContainerEvents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A pod or container was made.
    Created,
    /// Started.
    Started,
    /// Stopped.
    Stopped,
    /// Deleted.
    Deleted,
}

/// An event with the complete pod at that time.
#[derive(Clone, Debug)]
pub struct PodEvent {
    /// Container id, or the pod's own id.
    pub subject: String,
    /// What.
    pub what: Happening,
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// The pod.
    pub pod: Arc<PodView>,
    /// All its containers.
    pub containers: Vec<Arc<ContainerView>>,
}

/// Pressure stall information (Documentation/accounting/psi.rst); totals in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Psi {
    /// some: avg10, avg60, avg300 in percent.
    pub some: [f64; 3],
    /// some: total stall time.
    pub some_total: u64,
    /// full: averages.
    pub full: [f64; 3],
    /// full: total stall time.
    pub full_total: u64,
}

/// How much of a cgroup is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// What statistics show.
    #[default]
    Statistics,
    /// That, and what only metrics show.
    Metrics,
}

/// One reading of a cgroup. `None`: this kernel or hierarchy does not say.
#[derive(Clone, Debug, Default)]
pub struct CgroupStats {
    /// Nanoseconds since the epoch of the reading.
    pub at: i64,
    /// Whether it has the values that only metrics show, which are marked with (m). Without them a reading opens and reads half as many
    /// files.
    pub detail: Detail,
    /// CPU time in nanoseconds: all, user (m), system (m).
    pub cpu: Option<[u64; 3]>,
    /// CPU use in nano-cores between the last two readings.
    pub nano_cores: Option<u64>,
    /// CFS periods, throttled periods, throttled time in nanoseconds.
    pub throttling: Option<[u64; 3]>,
    /// Memory in use, working set, anonymous (rss), page cache, mapped files, kernel, bytes.
    pub memory: Option<[u64; 6]>,
    /// Memory limit; `None`: none.
    pub memory_limit: Option<u64>,
    /// Highest memory use (m).
    pub memory_peak: Option<u64>,
    /// Page faults: minor and major.
    pub faults: Option<[u64; 2]>,
    /// Times the limit was hit; OOM kills (m).
    pub memory_failures: Option<[u64; 2]>,
    /// Swap in use; limit.
    pub swap: Option<(u64, Option<u64>)>,
    /// Processes and threads (m) now; limit of tasks (m).
    pub tasks: Option<(u64, u64, Option<u64>)>,
    /// Bytes read, written, operations read, written per device `major:minor` (m).
    pub io: Vec<(String, [u64; 4])>,
    /// Huge pages: size, use, highest use in bytes (m).
    pub hugetlb: Vec<(String, u64, u64)>,
    /// cpu, memory, io pressure.
    pub psi: [Option<Psi>; 3],
}

/// Statistics of a container.
#[derive(Clone, Debug)]
pub struct ContainerStats {
    /// The container.
    pub container: Arc<ContainerView>,
    /// Its cgroup.
    pub cgroup: CgroupStats,
    /// Its writable layer; `None`: not measured, or not yet.
    pub writable: Option<storage::Usage>,
    /// As lists show it.
    pub rendering: Rendering,
}

/// Statistics of a pod.
#[derive(Clone, Debug)]
pub struct PodStats {
    /// The pod.
    pub pod: Arc<PodView>,
    /// Its cgroup.
    pub cgroup: CgroupStats,
    /// Interfaces, the default one first.
    pub network: Vec<netplugins::InterfaceStats>,
    /// Running containers.
    pub containers: Vec<Arc<ContainerStats>>,
    /// As lists show it.
    pub rendering: Rendering,
}

/// A reading that was just taken.
#[derive(Clone, Copy, Debug)]
pub enum Reading<'a> {
    /// Of a container.
    Container(&'a ContainerStats),
    /// Of a pod, after those of its containers.
    Pod(&'a PodStats),
}

/// Readiness, for Status.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// Runtime: ok, or why not and what to do.
    pub runtime: Result<(), String>,
    /// Network: ok, or why not and what to do.
    pub network: Result<(), String>,
    /// Something that is wrong with the network although pods can be attached.
    pub notice: Option<String>,
}

/// A running or recent job, for `berth jobs`.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct JobView {
    /// Number.
    pub id: u64,
    /// Name of the job (`RunPodSandbox`).
    pub name: String,
    /// What it is about (pod or container id, image).
    pub subject: String,
    /// Nanoseconds since the epoch.
    pub started_at: i64,
    /// Total time so far.
    pub took: Duration,
    /// `running`, `ok`, or the error.
    pub outcome: String,
    /// How far a transfer is, where there is one.
    pub progress: Option<storage::PullProgress>,
    /// Steps: name, offset from the start, duration.
    pub steps: Vec<(String, Duration, Duration)>,
}
