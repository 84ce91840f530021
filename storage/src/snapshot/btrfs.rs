//! The `btrfs` driver: every image unpacked once into a subvolume, every container a snapshot of it, made in constant time.
//!
//! Needs a store on btrfs; Linux 5.15 for idmapped mounts of it. In an image directory and in a container directory: `root`, a subvolume.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs;

use crate::error::{FileError, SnapshotError};
use crate::snapshot::vfs::{ROOT, fill, mount_copy, mount_sealed, open, without_labels};
use crate::snapshot::{Driver, ImageLayers, View, measure};
use crate::{Kernel, RootfsOptions, Usage};

/// `BTRFS_SUPER_MAGIC` of linux/magic.h.
const MAGIC: u64 = 0x9123_683e;

/// The driver.
#[derive(Debug)]
pub(super) struct Btrfs {
    pub(super) kernel: Kernel,
}

impl Driver for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn build(&self, image: &ImageLayers, directory: &Path) -> Result<Usage, SnapshotError> {
        let top = open(directory)?;
        let kind = fs::fstatfs(&top).map_err(FileError::at("identify", directory))?.f_type;
        if u64::try_from(kind).ok() != Some(MAGIC) {
            return Err(SnapshotError::Unsupported {
                driver: "btrfs",
                what: "a store on another file system",
            });
        }
        (self.kernel.create_subvolume)(top.as_fd(), c"root")
            .map_err(FileError::at("create subvolume", directory.join(ROOT)))?;
        let usage = fill(image, directory)?;
        fs::syncfs(&top).map_err(FileError::at("flush", directory))?;
        Ok(usage)
    }

    fn view(&self, image: &ImageLayers, directory: &Path) -> Result<View, SnapshotError> {
        Ok(View { lowers: vec![open(&directory.join(ROOT))?], image: image.clone() })
    }

    fn prepare(&self, view: &View, container: &Path) -> Result<(), SnapshotError> {
        let root = container.join(ROOT);
        if root.exists() {
            return Ok(());
        }
        let [image] = view.lowers.as_slice() else {
            return Err(SnapshotError::Unsupported {
                driver: "btrfs",
                what: "a view of several directories",
            });
        };
        (self.kernel.snapshot)(image.as_fd(), open(container)?.as_fd(), c"root")
            .map_err(FileError::at("snapshot the image to", root))?;
        Ok(())
    }

    fn mount(
        &self,
        _view: &View,
        container: &Path,
        options: &RootfsOptions<'_>,
    ) -> Result<OwnedFd, SnapshotError> {
        mount_copy(self.name(), &container.join(ROOT), options)
    }

    fn mount_view(&self, view: &View, label: Option<&str>) -> Result<OwnedFd, SnapshotError> {
        without_labels(self.name(), label)?;
        mount_sealed(self.name(), view, &self.kernel)
    }

    fn usage(&self, view: Option<&View>, container: &Path) -> Result<Usage, SnapshotError> {
        let root = container.join(ROOT);
        match view.and_then(|view| view.lowers.first()) {
            // A snapshot keeps inode numbers and change times: what has others was written by the container.
            Some(image) => measure::changed(&root, image),
            None => measure::all(&root),
        }
    }

    fn discard(&self, directory: &Path) -> Result<(), SnapshotError> {
        if !directory.join(ROOT).exists() {
            return Ok(());
        }
        // What this cannot do, unlinking file by file still can (rmdir(2) of an empty subvolume works since 4.18).
        match (self.kernel.delete_subvolume)(open(directory)?.as_fd(), c"root") {
            Err(error) if error.kind() != std::io::ErrorKind::Unsupported => {
                Err(FileError::at("delete subvolume", directory.join(ROOT))(error).into())
            }
            _ => Ok(()),
        }
    }
}
