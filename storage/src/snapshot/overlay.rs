//! The `overlay` driver: each layer unpacked into a directory, overlayfs over them; and the writable layer both overlay-based drivers
//! share.
//!
//! Needs Linux 6.8 (`lowerdir+`, so no option-length limit). In an image directory: `0/`, `1/`, … one per layer, lowest first.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, Mode};

use crate::error::{FileError, SnapshotError};
use crate::files::DIRECTORY;
use crate::snapshot::mount::Writable;
use crate::snapshot::{Driver, ImageLayers, View, measure, merge, mount, unpack};
use crate::tree::Hidden;
use crate::{RootfsOptions, Usage, files};

/// The driver; it keeps no state.
#[derive(Debug)]
pub(super) struct Overlay;

impl Driver for Overlay {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn build(&self, image: &ImageLayers, directory: &Path) -> Result<Usage, SnapshotError> {
        let mut usage = Usage::default();
        let tree = merge(image, |number, tree, hidden| {
            let into = layer_directory(directory, number);
            files::directory(&into)?;
            let written = unpack::layer(tree, number, &hidden, &image.layers, &into)?;
            usage.bytes += written.bytes;
            usage.inodes += written.inodes;
            Ok(())
        })?;
        if image.layers.is_empty() {
            let into = layer_directory(directory, 0);
            files::directory(&into)?;
            usage = unpack::layer(&tree, 0, &Hidden::default(), &[], &into)?;
        }
        // One flush of the file system instead of one per file; then the names may become visible.
        let top = open_directory(directory)?;
        fs::syncfs(&top).map_err(FileError::at("flush", directory))?;
        Ok(usage)
    }

    fn view(&self, image: &ImageLayers, directory: &Path) -> Result<View, SnapshotError> {
        let numbers = (0..image.layers.len().max(1)).rev();
        let lowers = numbers.map(|number| open_directory(&layer_directory(directory, number)));
        Ok(View { lowers: lowers.collect::<Result<_, _>>()?, image: image.clone() })
    }

    fn prepare(&self, _view: &View, container: &Path) -> Result<(), SnapshotError> {
        prepare(container)
    }

    fn mount(
        &self,
        view: &View,
        container: &Path,
        options: &RootfsOptions<'_>,
    ) -> Result<OwnedFd, SnapshotError> {
        mount_container(self.name(), view, container, options)
    }

    fn mount_view(&self, view: &View, label: Option<&str>) -> Result<OwnedFd, SnapshotError> {
        mount_lowers("image", view, label)
    }

    fn usage(&self, _view: Option<&View>, container: &Path) -> Result<Usage, SnapshotError> {
        measure::all(&container.join("upper"))
    }
}

fn layer_directory(image: &Path, number: usize) -> PathBuf {
    image.join(number.to_string())
}

fn open_directory(path: &Path) -> Result<OwnedFd, SnapshotError> {
    Ok(fs::open(path, DIRECTORY, Mode::empty()).map_err(FileError::at("open", path))?)
}

// === the writable layer ===

/// `upper/` now, `work/` with the first mount.
pub(super) fn prepare(container: &Path) -> Result<(), SnapshotError> {
    Ok(files::directory(&container.join("upper"))?)
}

/// The image with the container's writable layer over it.
pub(super) fn mount_container(
    driver: &'static str,
    view: &View,
    container: &Path,
    options: &RootfsOptions<'_>,
) -> Result<OwnedFd, SnapshotError> {
    let target = container.display().to_string();
    let mapped = match &options.idmap {
        None => None,
        Some(map) => {
            let copies = view.lowers.iter().map(|lower| {
                let copy = mount::clone(&target, lower)?;
                (map.apply)(copy.as_fd(), map.userns).map_err(|source| SnapshotError::Mount {
                    target: target.clone(),
                    step: "mount_setattr: idmap",
                    source,
                })?;
                Ok::<_, SnapshotError>(copy)
            });
            Some(View { lowers: copies.collect::<Result<_, _>>()?, image: view.image.clone() })
        }
    };
    let view = mapped.as_ref().unwrap_or(view);
    let top =
        view.lowers.first().ok_or(SnapshotError::Unsupported { driver, what: "an image without layers" })?;
    let upper = open_directory(&container.join("upper"))?;
    let work = container.join("work");
    if !work.exists() {
        // The root of an overlay has the attributes of its upper directory.
        let stat = fs::fstat(top).map_err(FileError::at("stat the root of", container))?;
        let (uid, gid) = (fs::Uid::from_raw(stat.st_uid), fs::Gid::from_raw(stat.st_gid));
        fs::fchown(&upper, Some(uid), Some(gid)).map_err(FileError::at("chown", container.join("upper")))?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        fs::fchmod(&upper, mode).map_err(FileError::at("chmod", container.join("upper")))?;
        files::directory(&work)?;
    }
    // What a volatile mount leaves behind forbids the next one, until someone says it is fine.
    match std::fs::remove_dir_all(work.join("work/incompat/volatile")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(FileError { what: "clear", path: work, source: error }.into());
        }
        _ => {}
    }
    let work = open_directory(&work)?;
    let lowers: Vec<&OwnedFd> = view.lowers.iter().collect();
    mount::overlay(
        &target,
        &lowers,
        Some(&Writable { upper: &upper, work: &work }),
        options.mount_label.as_deref(),
    )
}

/// The image alone: its own mount when that is enough, else a read-only overlay.
pub(super) fn mount_lowers(target: &str, view: &View, label: Option<&str>) -> Result<OwnedFd, SnapshotError> {
    match (view.lowers.as_slice(), label) {
        // EROFS cannot be written to, so a copy of its mount is read-only.
        ([one], None) if is_readonly(one) => mount::clone(target, one),
        ([one], label) => {
            // overlayfs wants two lowers when there is no upper: the second is an empty tmpfs.
            let empty = mount::empty(target)?;
            mount::overlay(target, &[one, &empty], None, label)
        }
        (lowers, label) => mount::overlay(target, &lowers.iter().collect::<Vec<_>>(), None, label),
    }
}

fn is_readonly(fd: &OwnedFd) -> bool {
    fs::fstatvfs(fd).is_ok_and(|s| s.f_flag.contains(fs::StatVfsMountFlags::RDONLY))
}
