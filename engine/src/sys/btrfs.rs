//! Subvolumes of btrfs: the ioctls of linux/btrfs.h.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// `struct btrfs_ioctl_vol_args_v2`: a descriptor, flags, and a name of up to 4039 bytes.
#[repr(C)]
struct Arguments {
    fd: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `_IOW(0x94, number, struct btrfs_ioctl_vol_args_v2)`.
const fn request(number: libc::c_ulong) -> libc::c_ulong {
    (1 << 30) | ((size_of::<Arguments>() as libc::c_ulong) << 16) | (0x94 << 8) | number
}

const SNAP_CREATE_V2: libc::c_ulong = request(23);
const SUBVOL_CREATE_V2: libc::c_ulong = request(24);
const SNAP_DESTROY_V2: libc::c_ulong = request(63);

fn call(request: libc::c_ulong, directory: BorrowedFd<'_>, fd: i64, name: &CStr) -> io::Result<()> {
    let mut arguments = Box::new(Arguments { fd, transaction: 0, flags: 0, unused: [0; 4], name: [0; 4040] });
    let bytes = name.to_bytes();
    let room = arguments.name.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidFilename)?;
    room.copy_from_slice(bytes);
    if bytes.len() == arguments.name.len() {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    // SAFETY: the request encodes the size of `Arguments`, which has the kernel's layout, is initialised in full, ends its name with
    // a NUL, and outlives the call; the kernel only reads it, or writes within it.
    let result =
        unsafe { libc::ioctl(directory.as_raw_fd(), request as _, std::ptr::from_mut(&mut *arguments)) };
    check(result.into()).map(drop)
}

/// Creates an empty subvolume (`BTRFS_IOC_SUBVOL_CREATE_V2`).
pub fn create_subvolume(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    call(SUBVOL_CREATE_V2, directory, 0, name)
}

/// Makes a writable snapshot of a subvolume (`BTRFS_IOC_SNAP_CREATE_V2`).
pub fn snapshot(source: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    call(SNAP_CREATE_V2, directory, source.as_raw_fd().into(), name)
}

/// Deletes a subvolume with all that is in it (`BTRFS_IOC_SNAP_DESTROY_V2`, Linux 5.7).
pub fn delete_subvolume(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    call(SNAP_DESTROY_V2, directory, 0, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_kernels_size() {
        assert_eq!(size_of::<Arguments>(), 4096);
        assert_eq!(SNAP_CREATE_V2, 0x5000_9417);
    }
}
