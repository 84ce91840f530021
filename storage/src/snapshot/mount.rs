//! The mount calls of the drivers: fsopen(2), fsconfig(2), fsmount(2), open_tree(2), one step each.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};

use crate::error::SnapshotError;

/// A closure that names the step that failed.
fn failed(target: &str, step: &'static str) -> impl FnOnce(Errno) -> SnapshotError {
    move |errno| SnapshotError::Mount { target: target.to_owned(), step, source: errno.into() }
}

fn c_path(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)
}

/// A file-backed EROFS image and its device files, read-only and detached. `label`: SELinux label of all of its files.
pub(super) fn erofs(
    id: &str,
    image: &Path,
    devices: &[&Path],
    label: Option<&str>,
) -> Result<OwnedFd, SnapshotError> {
    let fs = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed(id, "erofs: fsopen"))?;
    let source = c_path(image).map_err(failed(id, "erofs: source path"))?;
    fsconfig_set_string(&fs, "source", &source).map_err(failed(id, "erofs: source"))?;
    for device in devices {
        let path = c_path(device).map_err(failed(id, "erofs: device path"))?;
        fsconfig_set_string(&fs, "device", &path).map_err(failed(id, "erofs: device"))?;
    }
    if let Some(label) = label {
        fsconfig_set_string(&fs, "context", label).map_err(failed(id, "erofs: context"))?;
    }
    // The image cannot be written anyway; the flag keeps the kernel from asking.
    fsconfig_set_flag(&fs, "ro").map_err(failed(id, "erofs: ro"))?;
    fsconfig_create(&fs).map_err(failed(id, "erofs: create"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed(id, "erofs: fsmount"))
}

/// The directories of a writable layer.
#[derive(Debug)]
pub(super) struct Writable<'a> {
    /// Where changes go.
    pub(super) upper: &'a OwnedFd,
    /// overlayfs' workshop, on the same file system.
    pub(super) work: &'a OwnedFd,
}

/// An overlay over `lowers`, topmost first, detached. Without a writable layer it is read-only.
pub(super) fn overlay(
    target: &str,
    lowers: &[&OwnedFd],
    writable: Option<&Writable<'_>>,
    label: Option<&str>,
) -> Result<OwnedFd, SnapshotError> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed(target, "overlay: fsopen"))?;
    fsconfig_set_string(&fs, "source", "berth").map_err(failed(target, "overlay: source"))?;
    for lower in lowers {
        layer(&fs, "lowerdir+", lower).map_err(failed(target, "overlay: lowerdir+"))?;
    }
    if let Some(writable) = writable {
        layer(&fs, "upperdir", writable.upper).map_err(failed(target, "overlay: upperdir"))?;
        layer(&fs, "workdir", writable.work).map_err(failed(target, "overlay: workdir"))?;
        // A writable layer dies with its container: what a crash loses of it, nobody reads. Without this, removing a container
        // waits for the disk (kernel doc overlayfs.rst, "Volatile mount").
        fsconfig_set_flag(&fs, "volatile").map_err(failed(target, "overlay: volatile"))?;
    }
    if let Some(label) = label {
        fsconfig_set_string(&fs, "context", label).map_err(failed(target, "overlay: context"))?;
    }
    fsconfig_create(&fs).map_err(failed(target, "overlay: create"))?;
    let attributes =
        if writable.is_some() { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_RDONLY };
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed(target, "overlay: fsmount"))
}

/// Names a layer by descriptor (6.13), by its magic link before.
fn layer(fs: &OwnedFd, key: &str, directory: &OwnedFd) -> Result<(), Errno> {
    match fsconfig_set_fd(fs, key, directory) {
        Err(Errno::INVAL | Errno::BADF) => {
            fsconfig_set_string(fs, key, format!("/proc/self/fd/{}", directory.as_raw_fd()))
        }
        result => result,
    }
}

/// An empty file system, detached.
pub(super) fn empty(target: &str) -> Result<OwnedFd, SnapshotError> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed(target, "tmpfs: fsopen"))?;
    fsconfig_create(&fs).map_err(failed(target, "tmpfs: create"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed(target, "tmpfs: fsmount"))
}

/// A detached copy of a mount, at the directory or file `at`.
pub(super) fn clone(target: &str, at: impl AsFd) -> Result<OwnedFd, SnapshotError> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(at, "", flags).map_err(failed(target, "open_tree"))
}
