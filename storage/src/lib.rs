//! The image store: registry client, layers, images, snapshot drivers.
//!
//! The public face is [`Store`]; everything else is reached through it.
//!
//! Modules, in reading order:
//! [`reference`] and [`digest`] (names) · [`manifest`] (what a registry says an image is) · [`registry`] (client: hosts, TLS,
//! tokens, retries) · [`layer`] (tar, compression, the one-pass pipeline) · `tree` (layers merged by the OCI rules) · `erofs`
//! (metadata writer) · [`snapshot`] (the drivers) · `graph` (records on disk) · [`policy`] (what may be pulled) · `pull` (one pull, start to
//! end), `artifact` (a pull of what is no image) · [`archive`] (save and load), `push` · `collect` · [`store`].
//!
//! Image verbs, all on [`Store`]: `pull` (async, with progress) · `images`, `find` (never wait) · `remove` · `tag` · `pin` · `usage` ·
//! `scrub` and `heal` · `save`, `unpack` and `load` · `push`, `search`, `remote_tags` · `inspect` · `collect`. Containers: `prepare`, `mount`, `release`, `retain`, `container_usage`. Image volumes: `mount_image`. Beside it: [`remove_tree`].
//! Not built yet, and therefore not here: saving and pushing artifacts, signatures by GPG, Fulcio or Rekor.
//!
//! Tasks spawned: one tokio task per layer being fetched and, beside it, blocking threads that hash and inflate; all of them end
//! when the last pull that waits for the layer is dropped.
//!
//! Files owned, all under [`Config::root`], directories 0700:
//! ```text
//! lock                        flock, one process per store
//! layers/sha256/<diffID>/     tar (uncompressed, as in the image), entries (parsed headers), blob.<alg>.<hex> (as transferred; kept only
//!                             where it cannot be had again, see `image.keep_blobs`)
//! images/<config hex>/        config, manifest, record.json, and what the driver builds (index.erofs)
//! refs.json                   tags and digest references of all images
//! containers/<name>/          record.json, upper/, work/
//! staging/                    being written; emptied at open
//! trash/                      renamed here to vanish atomically, then unlinked
//! ```
//! Written, `fdatasync`ed, renamed, directory `fsync`ed, in that order: what a name leads to is complete and durable.

#![forbid(unsafe_code)]

#[cfg(test)]
extern crate self as storage; // what unit and integration tests share names it so

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::SystemTime;

pub mod archive;
mod artifact;
mod collect;
mod containers;
pub mod digest;
mod erofs;
pub mod error;
mod files;
mod flight;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod graph;
mod kernel;
pub mod layer;
pub mod manifest;
pub mod policy;
mod pull;
mod push;
pub mod reference;
pub mod registry;
mod scrub;
pub mod snapshot;
pub mod store;
#[cfg(test)]
mod support;
mod tree;

pub use collect::Collected;
pub use digest::Digest;
pub use error::{ErrorKind, FileError, OpenError, PullError, RemoveError, SnapshotError};
pub use files::remove as remove_tree;
pub use kernel::Kernel;
pub use push::Pushed;
pub use reference::ImageRef;
pub use scrub::Damage;
pub use store::Store;

/// Where and how images are kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// `/var/lib/berth`.
    pub root: PathBuf,
    /// Driver forced by configuration; `None`: the best one that works here.
    pub driver: Option<String>,
    /// Where registries are described: directories of `<host>/hosts.toml`, and `registries.conf` files (names that end in `.conf`); the
    /// first that knows a registry wins; read at each pull.
    pub registry_config: Vec<PathBuf>,
    /// Where a `policy.json` may lie; the first that exists counts, read at each pull; none: everything is accepted.
    pub policy: Vec<PathBuf>,
    /// A directory of image verifiers, all of which must agree.
    pub verifiers: Option<PathBuf>,
    /// Memory for all running pulls, in bytes.
    pub pull_memory: u64,
    /// System calls lent by the user of this crate.
    pub kernel: Kernel,
    /// Keep each layer's blob beside its tar, so that save and push need no registry; costs the compressed size on disk.
    pub keep_blobs: bool,
    /// SELinux label of everything stored; `None`: what the node gives it.
    pub label: Option<Label>,
}

/// A SELinux label for layers, and the call that gives it to a directory and what is in it already; what is made there later has it
/// from its parent. A container's root has the label of its mount, but the kernel maps programs from the layers themselves, and asks
/// about their label.
#[derive(Clone, Debug)]
pub struct Label {
    /// `user:role:type[:level]`.
    pub text: String,
    /// Labels a directory (first) with everything below it, unless it has the label (second).
    pub apply: fn(BorrowedFd<'_>, &str) -> std::io::Result<()>,
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
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct PullProgress {
    /// Bytes to fetch, as far as known.
    pub total: u64,
    /// Bytes fetched.
    pub done: u64,
    /// One line for a person.
    pub phase: String,
    /// Layer by layer, lowest first; empty until they are known.
    pub layers: Vec<LayerProgress>,
}

/// Progress of one layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LayerProgress {
    /// Digest of its blob.
    pub digest: String,
    /// Length of the blob in bytes.
    pub total: u64,
    /// Bytes moved.
    pub done: u64,
    /// Nothing more will happen to it: it is there, or it was there.
    pub done_for_good: bool,
}

impl PullProgress {
    /// Bytes of a layer have moved.
    pub(crate) fn moved(&mut self, layer: usize, bytes: u64) {
        self.set(layer, |layer| layer.done = layer.total.min(layer.done + bytes));
    }

    /// A layer begins anew.
    pub(crate) fn restart(&mut self, layer: usize) {
        self.set(layer, |layer| layer.done = 0);
    }

    /// A layer is where it should be.
    pub(crate) fn finish(&mut self, layer: usize) {
        self.set(layer, |layer| (layer.done, layer.done_for_good) = (layer.total, true));
    }

    fn set(&mut self, layer: usize, change: impl FnOnce(&mut LayerProgress)) {
        if let Some(layer) = self.layers.get_mut(layer) {
            change(layer);
        }
        self.done = self.layers.iter().map(|layer| layer.done).sum();
    }
}

/// Bytes and inodes used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// Bytes on disk.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// The id mapping of a user namespace, and the call that lays it over a detached mount (`mount_setattr(2)`, `MOUNT_ATTR_IDMAP`), which
/// this crate cannot make: it has no unsafe code.
#[derive(Clone, Copy, Debug)]
pub struct IdMap<'a> {
    /// The user namespace.
    pub userns: BorrowedFd<'a>,
    /// Applies the mapping of the namespace (second) to the detached mount (first).
    pub apply: fn(BorrowedFd<'_>, BorrowedFd<'_>) -> std::io::Result<()>,
}

/// How a container's root is mounted.
#[derive(Debug, Default)]
pub struct RootfsOptions<'a> {
    /// The container may not write. The caller seals the mount once its mount points are made, and these go to the writable layer, so a
    /// driver that has one treats both cases alike.
    pub readonly: bool,
    /// User namespace whose mapping the image's ids get (idmapped lower layers, no copies).
    pub idmap: Option<IdMap<'a>>,
    /// SELinux mount label.
    pub mount_label: Option<String>,
}
