//! Loading and attaching device programs to cgroups v2 (bpf(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;

/// `union bpf_attr`, as large as any kernel of today reads or writes: since 6.17 queries write past a short one.
#[repr(C, align(8))]
struct Attr([u8; 256]);

impl Attr {
    fn new() -> Self {
        Self([0; 256])
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn call(mut self, command: u32) -> io::Result<libc::c_long> {
        // SAFETY: the attribute is as large as the size says; every pointer put into it by the callers below refers to memory that
        // lives across the call.
        check(unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) })
    }
}

/// `BPF_PROG_TYPE_CGROUP_DEVICE`.
const TYPE_CGROUP_DEVICE: u32 = 15;
/// `BPF_CGROUP_DEVICE`.
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`.
const ALLOW_MULTI: u32 = 2;

/// Loads a cgroup device program of eight-byte instructions.
pub fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    let count = u32::try_from(instructions.len()).map_err(io::Error::other)?;
    let fd = Attr::new()
        .u32(0, TYPE_CGROUP_DEVICE)
        .u32(4, count)
        .u64(8, instructions.as_ptr() as u64)
        .u64(16, c"Apache-2.0".as_ptr() as u64)
        .call(5)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: BPF_PROG_LOAD succeeded and made a new descriptor that is ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device program to a cgroup; it stays for the cgroup's life.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    Attr::new()
        .u32(0, cgroup.as_raw_fd() as u32)
        .u32(4, program.as_raw_fd() as u32)
        .u32(8, ATTACH_CGROUP_DEVICE)
        .u32(12, ALLOW_MULTI)
        .call(8)
        .map(drop)
}
