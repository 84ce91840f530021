//! [`Store`]: the one object the engine holds.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use crate::error::FileError;
use crate::{
    Config, Credentials, Image, OpenError, PullError, PullProgress, RemoveError, RootfsOptions,
    SnapshotError, Usage,
};

/// The image store of one root directory.
#[derive(Debug)]
pub struct Store {
    config: Config,
}

impl Store {
    /// Opens (and creates) the store. Blocking.
    pub fn open(config: Config) -> Result<Arc<Self>, OpenError> {
        std::fs::create_dir_all(&config.root).map_err(FileError::at("create", &config.root))?;
        Ok(Arc::new(Self { config }))
    }

    /// Pulls an image; dropping the future aborts and leaves nothing visible.
    pub async fn pull(
        self: &Arc<Self>,
        image: &str,
        _credentials: Option<Credentials>,
        _progress: watch::Sender<PullProgress>,
    ) -> Result<Arc<Image>, PullError> {
        Err(PullError::Interrupted { image: image.to_owned() })
    }

    /// All images; never waits.
    pub fn images(&self) -> Vec<Arc<Image>> {
        Vec::new()
    }

    /// By tag, digest reference, id or id prefix.
    pub fn find(&self, _name: &str) -> Option<Arc<Image>> {
        None
    }

    /// Removes all names of an image and the image; absent is `Ok`, in use is an error.
    pub fn remove(&self, _name: &str) -> Result<(), RemoveError> {
        Ok(())
    }

    /// Bytes and inodes of all images.
    pub fn usage(&self) -> Usage {
        Usage::default()
    }

    /// [`Config::root`].
    pub fn root(&self) -> &Path {
        &self.config.root
    }

    /// The driver in use.
    pub fn driver_name(&self) -> &'static str {
        "none"
    }

    /// Creates a container's writable layer and pins the image; idempotent.
    pub fn prepare(&self, image_id: &str, _container: &str) -> Result<(), SnapshotError> {
        Err(SnapshotError::NoImage(image_id.to_owned()))
    }

    /// A detached mount of the container's root; idempotent.
    pub fn mount(&self, container: &str, _options: &RootfsOptions<'_>) -> Result<OwnedFd, SnapshotError> {
        Err(SnapshotError::NoContainer(container.to_owned()))
    }

    /// Drops the container's writable layer and the pin; absent is `Ok`.
    pub fn release(&self, _container: &str) -> Result<(), SnapshotError> {
        Ok(())
    }

    /// Drops what no live container owns; returns what was dropped.
    pub fn retain(&self, _live: &dyn Fn(&str) -> bool) -> Vec<String> {
        Vec::new()
    }

    /// The container's writable layer.
    pub fn container_usage(&self, _container: &str) -> Option<Usage> {
        None
    }

    /// A read-only detached mount of an image or of a path in it.
    pub fn mount_image(&self, image_id: &str, _sub_path: &str) -> Result<OwnedFd, SnapshotError> {
        Err(SnapshotError::NoImage(image_id.to_owned()))
    }
}

