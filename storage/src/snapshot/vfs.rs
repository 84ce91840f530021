//! The `vfs` driver: every image unpacked whole, every container a copy of it. Slow and large, and works on any file system of any
//! kernel that has `mount_setattr` (5.12).
//!
//! In an image directory and in a container directory: `root/`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, Mode};

use crate::error::{FileError, SnapshotError};
use crate::files::DIRECTORY;
use crate::snapshot::{Driver, ImageLayers, View, measure, merge, mount, unpack};
use crate::{Kernel, RootfsOptions, Usage, files};

/// Where the files are.
pub(super) const ROOT: &str = "root";

/// The driver.
#[derive(Debug)]
pub(super) struct Vfs {
    pub(super) kernel: Kernel,
}

impl Driver for Vfs {
    fn name(&self) -> &'static str {
        "vfs"
    }

    fn build(&self, image: &ImageLayers, directory: &Path) -> Result<Usage, SnapshotError> {
        files::directory(&directory.join(ROOT))?;
        let usage = fill(image, directory)?;
        let top = open(directory)?;
        // One flush of the file system instead of one per file; then the names may become visible.
        fs::syncfs(&top).map_err(FileError::at("flush", directory))?;
        Ok(usage)
    }

    fn view(&self, image: &ImageLayers, directory: &Path) -> Result<View, SnapshotError> {
        Ok(View { lowers: vec![open(&directory.join(ROOT))?], image: image.clone() })
    }

    fn prepare(&self, view: &View, container: &Path) -> Result<(), SnapshotError> {
        let (root, making) = (container.join(ROOT), container.join("making"));
        if root.exists() {
            return Ok(());
        }
        // A copy that was interrupted is no copy.
        files::remove(&making)?;
        files::directory(&making)?;
        files::directory(&making.join(ROOT))?;
        fill(&view.image, &making)?;
        std::fs::rename(making.join(ROOT), &root).map_err(FileError::at("rename to", root))?;
        Ok(files::remove(&making)?)
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

    fn usage(&self, _view: Option<&View>, container: &Path) -> Result<Usage, SnapshotError> {
        measure::all(&container.join(ROOT))
    }
}

/// Unpacks the merged image into `directory/root`.
pub(super) fn fill(image: &ImageLayers, directory: &Path) -> Result<Usage, SnapshotError> {
    let tree = merge(image, |_, _, _| Ok(()))?;
    unpack::whole(&tree, &image.layers, &directory.join(ROOT))
}

pub(super) fn open(path: &Path) -> Result<OwnedFd, SnapshotError> {
    Ok(fs::open(path, DIRECTORY, Mode::empty()).map_err(FileError::at("open", path))?)
}

/// Refuses a label: what is mounted here is a directory like any other, whose files have labels of their own.
pub(super) fn without_labels(driver: &'static str, label: Option<&str>) -> Result<(), SnapshotError> {
    label.map_or(Ok(()), |_| Err(SnapshotError::Unsupported { driver, what: "SELinux mount labels" }))
}

/// A container's own copy, writable; the id mapping lies over the mount.
pub(super) fn mount_copy(
    driver: &'static str,
    root: &Path,
    options: &RootfsOptions<'_>,
) -> Result<OwnedFd, SnapshotError> {
    without_labels(driver, options.mount_label.as_deref())?;
    let target = root.display().to_string();
    let mount = mount::clone(&target, open(root)?)?;
    if let Some(map) = &options.idmap {
        (map.apply)(mount.as_fd(), map.userns).map_err(|source| SnapshotError::Mount {
            target,
            step: "mount_setattr: idmap",
            source,
        })?;
    }
    Ok(mount)
}

/// The image's own directory, read-only.
pub(super) fn mount_sealed(
    driver: &'static str,
    view: &View,
    kernel: &Kernel,
) -> Result<OwnedFd, SnapshotError> {
    let [root] = view.lowers.as_slice() else {
        return Err(SnapshotError::Unsupported { driver, what: "a view of several directories" });
    };
    let mount = mount::clone("image", root)?;
    (kernel.seal)(mount.as_fd()).map_err(|source| SnapshotError::Mount {
        target: view.image.id.clone(),
        step: "mount_setattr: read-only",
        source,
    })?;
    Ok(mount)
}
