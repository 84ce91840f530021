//! The one module with unsafe code: system calls that no safe crate offers, each wrapped into a safe function with an argument
//! for its safety.
//!
//! In reading order: [`process`] (clone, exec, wait), [`trace`] (exit codes of others), [`spawn`] (a program from a threaded process), [`namespaces`] (made ahead of their members), [`thread`] (namespaces,
//! signals, seccomp, descriptors of the calling thread), [`mount`] (mount_setattr), [`memory`] (sealed memfds seen as slices), [`bpf`] (device programs), [`socket`] (messages
//! with descriptors), [`btrfs`] (subvolumes), [`tap`] (links of virtual machines), [`footprint`] (memory given back), [`title`] (what ps(1) shows). What rustix
//! offers safely is used from there.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "integers cross the kernel's boundary in its own widths and signs"
)]

pub mod bpf;
pub mod btrfs;
pub mod footprint;
pub mod memory;
pub mod mount;
pub mod namespaces;
pub mod process;
pub mod socket;
pub mod spawn;
pub mod tap;
pub mod thread;
pub mod title;
pub mod trace;

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The result of a raw system call as libc's `syscall` gives it.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Bytes of a page of memory.
fn page_size() -> usize {
    // SAFETY: sysconf reads a constant of the kernel's.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(1 << 16)
}

/// Registers a descriptor with the runtime's poller, for what there is to read. Must be called inside a runtime. Not for room to write as
/// well: a socket's poller is told of that with each message the other end has taken, and a thread would be woken for nothing.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd, Interest::READABLE)
}

/// Waits until there is room to write. `fd` is a copy for this alone: a poller takes each descriptor once.
pub async fn writable(fd: OwnedFd) -> io::Result<()> {
    register(fd, Interest::WRITABLE)?.writable().await.map(drop)
}

/// Does some work when this thread has nothing else to do, and so once an answer that it must not hold up is on its way. Must be called
/// inside a runtime.
pub fn later(work: impl FnOnce() + Send + 'static) {
    tokio::spawn(async move {
        tokio::task::yield_now().await;
        work();
    });
}

fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always names the same descriptor, which stays open until it is dropped, and AsyncFd deregisters before that.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(|e| io::Error::other(e.to_string()))
}
