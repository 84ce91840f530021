//! Calls this crate cannot make, because no safe crate offers them and it has no unsafe code: a table that its user fills.
//!
//! The default table answers "not supported" to everything, so a driver that needs one of them fails its probe and says so.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

/// The table. Every function takes descriptors and returns what the system call said.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Makes a detached mount read-only: `mount_setattr(2)`, `MOUNT_ATTR_RDONLY`.
    pub seal: fn(BorrowedFd<'_>) -> io::Result<()>,
    /// Creates an empty subvolume in a directory: `BTRFS_IOC_SUBVOL_CREATE` (btrfs-ioctl, linux/btrfs.h).
    pub create_subvolume: fn(BorrowedFd<'_>, &CStr) -> io::Result<()>,
    /// Makes a writable snapshot of a subvolume (first) in a directory (second): `BTRFS_IOC_SNAP_CREATE_V2`.
    pub snapshot: fn(BorrowedFd<'_>, BorrowedFd<'_>, &CStr) -> io::Result<()>,
    /// Deletes a subvolume of a directory: `BTRFS_IOC_SNAP_DESTROY`.
    pub delete_subvolume: fn(BorrowedFd<'_>, &CStr) -> io::Result<()>,
    /// Puts the calling thread behind everybody else, at the disk and at the processors: `ioprio_set(2)`, `sched_setscheduler(2)`.
    pub idle: fn() -> io::Result<()>,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            seal: |_| unsupported(),
            create_subvolume: |_, _| unsupported(),
            snapshot: |_, _, _| unsupported(),
            delete_subvolume: |_, _| unsupported(),
            idle: unsupported,
        }
    }
}

fn unsupported() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
