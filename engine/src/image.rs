//! The image driver: images, and the root file systems made of them.
//!
//! Contract: an image that [`find`](Driver::find) returns is complete, verified and durable. [`prepare`](Driver::prepare)
//! pins it until [`release`](Driver::release); both may be repeated. Calls other than `pull` block: the engine runs
//! those that touch the disk on blocking threads; `images`, `find`, `usage` answer from memory.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use storage::{Credentials, ErrorKind, Image, PullProgress, RootfsOptions, Store, Usage};
use tokio::sync::watch;

use crate::selinux::Context;
use crate::{Error, Kind};

/// Keeps images and containers' layers.
pub trait Driver: Send + Sync + std::fmt::Debug {
    /// Fetches, verifies and makes durable. Dropping the future aborts the pull.
    fn pull(
        self: Arc<Self>,
        image: String,
        credentials: Option<Credentials>,
        progress: watch::Sender<PullProgress>,
    ) -> BoxFuture<'static, Result<Arc<Image>, Error>>;
    /// All images; never waits.
    fn images(&self) -> Vec<Arc<Image>>;
    /// By tag, digest reference, id or unique id prefix; never waits.
    fn find(&self, name: &str) -> Option<Arc<Image>>;
    /// Removes all names of an image; absent is fine, in use is an error.
    fn remove(&self, name: &str) -> Result<(), Error>;
    /// Bytes and inodes of everything stored; never walks.
    fn usage(&self) -> Usage;
    /// Directory of the store.
    fn root(&self) -> &Path;
    /// Name of the snapshot driver in use.
    fn driver_name(&self) -> &'static str;
    /// Makes the writable layer of a container and pins its image; idempotent.
    fn prepare(&self, image_id: &str, container: &str) -> Result<(), Error>;
    /// Detached mount of a container's root; idempotent.
    fn mount(&self, container: &str, options: &RootfsOptions<'_>) -> Result<OwnedFd, Error>;
    /// Removes the writable layer and unpins; absent is fine.
    fn release(&self, container: &str) -> Result<(), Error>;
    /// Removes the layers of containers that are not live; names them.
    fn retain(&self, live: &dyn Fn(&str) -> bool) -> Vec<String>;
    /// Use of a container's writable layer, without walking it.
    fn container_usage(&self, container: &str) -> Option<Usage>;
    /// Read-only detached mount of an image or a path in it. `label`: SELinux label of its files; `None`: they have none.
    fn mount_image(&self, image_id: &str, sub_path: &str, label: Option<&Context>) -> Result<OwnedFd, Error>;
    /// The store itself, for what only administrators ask of it (save, load, push, check); `None`: it is somewhere else.
    fn local(self: Arc<Self>) -> Option<Arc<Store>> {
        None
    }
}

/// The system calls the store borrows from [`sys`](crate::sys).
#[must_use]
pub fn kernel() -> storage::Kernel {
    use crate::sys::{btrfs, mount, thread};
    storage::Kernel {
        seal: mount::seal,
        create_subvolume: btrfs::create_subvolume,
        snapshot: btrfs::snapshot,
        delete_subvolume: btrfs::delete_subvolume,
        idle: thread::be_idle,
    }
}

impl Driver for Store {
    fn pull(
        self: Arc<Self>,
        image: String,
        credentials: Option<Credentials>,
        progress: watch::Sender<PullProgress>,
    ) -> BoxFuture<'static, Result<Arc<Image>, Error>> {
        async move {
            // The store's text comes first as it is: the kubelet looks there for words like `RegistryUnavailable`.
            Store::pull(&self, &image, credentials, progress).await.map_err(|e| Error::of(kind(e.kind()), &e))
        }
        .boxed()
    }

    fn images(&self) -> Vec<Arc<Image>> {
        Store::images(self)
    }

    fn find(&self, name: &str) -> Option<Arc<Image>> {
        Store::find(self, name)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        Store::remove(self, name).map_err(|e| Error::of(kind(e.kind()), &e))
    }

    fn usage(&self) -> Usage {
        Store::usage(self)
    }

    fn root(&self) -> &Path {
        Store::root(self)
    }

    fn driver_name(&self) -> &'static str {
        Store::driver_name(self)
    }

    fn prepare(&self, image_id: &str, container: &str) -> Result<(), Error> {
        Store::prepare(self, image_id, container).map_err(|e| Error::of(kind(e.kind()), &e))
    }

    fn mount(&self, container: &str, options: &RootfsOptions<'_>) -> Result<OwnedFd, Error> {
        Store::mount(self, container, options).map_err(|e| Error::of(kind(e.kind()), &e))
    }

    fn release(&self, container: &str) -> Result<(), Error> {
        Store::release(self, container).map_err(|e| Error::of(kind(e.kind()), &e))
    }

    fn retain(&self, live: &dyn Fn(&str) -> bool) -> Vec<String> {
        Store::retain(self, live)
    }

    fn container_usage(&self, container: &str) -> Option<Usage> {
        Store::container_usage(self, container)
    }

    fn mount_image(&self, image_id: &str, sub_path: &str, label: Option<&Context>) -> Result<OwnedFd, Error> {
        let label = label.map(Context::to_string);
        Store::mount_image(self, image_id, sub_path, label.as_deref())
            .map_err(|e| Error::of(kind(e.kind()), &e))
    }

    fn local(self: Arc<Self>) -> Option<Arc<Store>> {
        Some(self)
    }
}

/// The store of an engine.
pub(crate) fn local(engine: &crate::Engine) -> Result<Arc<Store>, Error> {
    let none = || {
        Error::new(
            Kind::Unimplemented,
            "this image driver keeps no images that could be saved, loaded or checked",
        )
    };
    engine.images.clone().local().ok_or_else(none)
}

/// The class of a store's error here.
pub fn kind(kind: ErrorKind) -> Kind {
    match kind {
        ErrorKind::NotFound => Kind::NotFound,
        ErrorKind::InvalidArgument => Kind::InvalidArgument,
        ErrorKind::PermissionDenied => Kind::PermissionDenied,
        ErrorKind::Unavailable => Kind::Unavailable,
        ErrorKind::FailedPrecondition => Kind::FailedPrecondition,
        ErrorKind::ResourceExhausted => Kind::ResourceExhausted,
        ErrorKind::DeadlineExceeded => Kind::DeadlineExceeded,
        ErrorKind::Internal => Kind::Internal,
    }
}
