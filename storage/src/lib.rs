//! The image store: registry client, layers, images, snapshot drivers.
//!
//! The public face is [`Store`]; everything else is reached through it. Interface fixed for the engine:

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// Where and how images are kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// `/var/lib/berth`.
    pub root: PathBuf,
    /// Driver forced by configuration; `None`: the best one that works here.
    pub driver: Option<String>,
    /// Directories of `<host>/hosts.toml`, first that exists wins, read at each pull.
    pub registry_config: Vec<PathBuf>,
    /// Memory for all running pulls, in bytes.
    pub pull_memory: u64,
}

/// Credentials for one pull; `Debug` never prints them.
#[derive(Clone, Default)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// base64 of `user:password`.
    pub auth: String,
    /// OAuth refresh token.
    pub identity_token: String,
    /// Bearer token sent as it is.
    pub registry_token: String,
    /// The registry these credentials are for; empty: the image's.
    pub server_address: String,
}
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// An image in the store: complete, verified and durable.
#[derive(Clone, Debug)]
pub struct Image {
    /// Config digest, `sha256:…`: the image's one identifier everywhere.
    pub id: String,
    /// Fully qualified tags.
    pub repo_tags: Vec<String>,
    /// `name@sha256:…`.
    pub repo_digests: Vec<String>,
    /// Bytes on disk.
    pub size: u64,
    /// What the image config says of the process.
    pub config: ImageConfig,
    /// Never removed by the kubelet's GC.
    pub pinned: bool,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// When it was pulled.
    pub pulled_at: SystemTime,
}

/// The process half of an OCI image config.
#[derive(Clone, Debug, Default)]
pub struct ImageConfig {
    /// `user[:group]`, names or numbers.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Cmd.
    pub cmd: Vec<String>,
    /// Working directory.
    pub working_dir: String,
    /// Stop signal as written (`SIGTERM`, `15`, `SIGRTMIN+3`).
    pub stop_signal: String,
    /// Image-declared volumes.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Exposed ports.
    pub exposed_ports: Vec<String>,
}

/// Progress of a running pull, readable at any time.
#[derive(Clone, Debug, Default)]
pub struct PullProgress {
    /// Bytes to fetch, as far as known.
    pub total: u64,
    /// Bytes fetched.
    pub done: u64,
    /// One line for a person.
    pub phase: String,
}

/// Bytes and inodes used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Bytes on disk.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// How a container's root is mounted.
#[derive(Debug, Default)]
pub struct RootfsOptions<'a> {
    /// No writable layer.
    pub readonly: bool,
    /// User namespace whose mapping the image's ids get (idmapped lower layers, no copies).
    pub idmap: Option<BorrowedFd<'a>>,
    /// SELinux mount label.
    pub mount_label: Option<String>,
}

// pub struct Store; with:
//   pub fn open(config: Config) -> Result<Arc<Store>, OpenError>                       blocking
//   pub async fn pull(self: &Arc<Self>, image: &str, credentials: Option<Credentials>,
//                     progress: watch::Sender<PullProgress>) -> Result<Arc<Image>, PullError>   cancel-safe: dropping aborts
//   pub fn images(&self) -> Vec<Arc<Image>>                                            snapshot, never waits
//   pub fn find(&self, name: &str) -> Option<Arc<Image>>                               tag, digest ref, id, id prefix
//   pub fn remove(&self, name: &str) -> Result<(), RemoveError>                        all tags of that id; absent = Ok; in use = Err
//   pub fn usage(&self) -> Usage / pub fn root(&self) -> &Path / pub fn driver_name(&self) -> &'static str
//   pub fn prepare(&self, image_id: &str, container: &str) -> Result<(), SnapshotError>    upper+work dirs, pins the image; idempotent
//   pub fn mount(&self, container: &str, options: &RootfsOptions) -> Result<OwnedFd, SnapshotError>  detached mount; idempotent
//   pub fn release(&self, container: &str) -> Result<(), SnapshotError>                absent = Ok; unpins
//   pub fn retain(&self, live: &dyn Fn(&str) -> bool) -> Vec<String>                   sweep containers' layers after a crash; names what was swept
//   pub fn container_usage(&self, container: &str) -> Option<Usage>                    writable layer
//   pub fn mount_image(&self, image_id: &str, sub_path: &str) -> Result<OwnedFd, SnapshotError>  read-only detached mount (image volumes)
// Every error has `fn kind(&self) -> ErrorKind { NotFound, InvalidArgument, PermissionDenied, Unavailable, FailedPrecondition, ResourceExhausted, DeadlineExceeded, Internal }`.
