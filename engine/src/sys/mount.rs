//! Attributes of mounts (mount_setattr(2)), which rustix does not have yet.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or 0.
    pub propagation: u64,
    /// User namespace for an idmapped mount; only read with `MOUNT_ATTR_IDMAP`.
    pub userns_fd: u64,
}

/// Makes a mount read-only.
pub fn seal(mount: BorrowedFd<'_>) -> io::Result<()> {
    set_attributes(mount, false, &Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() })
}

/// Lays the mapping of a user namespace over a detached mount (`MOUNT_ATTR_IDMAP`); what is mounted below it stays as it is.
pub fn map_ids(mount: BorrowedFd<'_>, user: BorrowedFd<'_>) -> io::Result<()> {
    let userns_fd = u64::try_from(user.as_raw_fd()).map_err(io::Error::other)?;
    set_attributes(
        mount,
        false,
        &Attributes { set: libc::MOUNT_ATTR_IDMAP, userns_fd, ..Attributes::default() },
    )
}

/// Whether the kernel lets attributes of mounts be set, for whole trees as well (Linux 5.12, and not forbidden by a filter).
pub fn can_set_attributes() -> bool {
    // SAFETY: -1 names no mount, so the call only tells whether it exists; nothing is read through the null pointer before that.
    let refused = check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            -1,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::null::<Attributes>(),
            0,
        )
    });
    refused.is_err_and(|e| !matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)))
}

/// Changes the mount behind a descriptor, and with `recursive` all below.
pub fn set_attributes(mount: BorrowedFd<'_>, recursive: bool, attributes: &Attributes) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attributes` has the kernel's layout and the size that is passed; the path is an empty C string.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<Attributes>(),
        )
    })
    .map(drop)
}
