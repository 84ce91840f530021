//! Namespaces made before anything runs in them (user_namespaces(7), clone(2)).

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use super::process::{block_all_signals, clone_args, clone3_call, exit, restore_signals, signal, wait};

/// New namespaces (`flags`, with `CLONE_NEWUSER` first among them), as descriptors by their names in /proc/PID/ns. A process that
/// shares our memory, runs nothing and ends before we return is their only member ever. `maps`: uid_map and gid_map.
pub fn make<const N: usize>(flags: c_int, maps: [&str; 2], names: [&str; N]) -> io::Result<[OwnedFd; N]> {
    let member = Member::new(flags)?;
    let proc = |name: &str| format!("/proc/{}/{name}", member.pid);
    std::fs::write(proc("uid_map"), maps[0])?;
    std::fs::write(proc("gid_map"), maps[1])?;
    let open = |name| std::fs::File::open(proc(&format!("ns/{name}"))).map(OwnedFd::from);
    let fds: Vec<OwnedFd> = names.into_iter().map(open).collect::<io::Result<_>>()?;
    fds.try_into().map_err(|_| io::Error::other("namespaces are missing"))
}

/// The process whose clone made them.
struct Member {
    pid: isize,
    pidfd: OwnedFd,
    /// It runs on this one.
    stack: Vec<u128>,
}

// === impl Member ===

impl Member {
    fn new(flags: c_int) -> io::Result<Self> {
        const STACK: usize = 16 << 10;
        let mut stack: Vec<u128> = vec![0; STACK / size_of::<u128>()];
        let mut pidfd: RawFd = -1;
        let mut args = clone_args((flags | libc::CLONE_VM | libc::CLONE_PIDFD) as u64, &mut pidfd, None);
        args.stack = stack.as_mut_ptr() as u64;
        args.stack_size = STACK as u64;
        let parent = std::ptr::without_provenance_mut(std::process::id() as usize);
        // Handlers must not run in the child, which shares our memory.
        let old = block_all_signals();
        // SAFETY: the child runs `sleep` on `stack`, which is its alone and 16-byte aligned, touches nothing else, and is waited for
        // before `stack` goes.
        let pid = unsafe { clone3_call(&raw mut args, sleep, parent) };
        restore_signals(&old);
        if pid < 0 {
            return Err(io::Error::from_raw_os_error(i32::try_from(-pid).unwrap_or(libc::EIO)));
        }
        // SAFETY: the call succeeded and made a new descriptor that is ours alone.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Self { pid, pidfd, stack })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let ended = signal(self.pidfd.as_fd(), libc::SIGKILL).and_then(|()| wait(&self.pidfd));
        if ended.is_err() {
            // It may be there still.
            std::mem::forget(std::mem::take(&mut self.stack));
        }
    }
}

/// All the member does: waits in one system call for SIGKILL, the only signal that is not blocked. It comes also when whoever made it
/// dies first; and it holds no descriptor, so neither lock nor socket of a daemon that was killed.
extern "C" fn sleep(parent: *mut c_void) -> ! {
    // SAFETY: asks for a signal to this process alone.
    unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: only asks.
    if unsafe { libc::getppid() } as usize != parent.addr() {
        exit(0);
    }
    // SAFETY: the process has a descriptor table of its own, and uses none of it.
    unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
    loop {
        let none = std::ptr::null_mut::<c_void>();
        // SAFETY: no descriptors, no timeout, no mask: all pointers may be null.
        unsafe { libc::syscall(libc::SYS_ppoll, none, 0, none, none, 0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Until it sleeps, when it has closed every descriptor.
    fn asleep() -> Member {
        let member = Member::new(0).unwrap();
        let fds = format!("/proc/{}/fd", member.pid);
        while std::fs::read_dir(&fds).unwrap().next().is_some() {
            std::thread::yield_now();
        }
        member
    }

    /// What the kernel does to the children of a thread that ends is what it does to those of a daemon that is killed.
    #[test]
    fn the_member_does_not_outlive_whoever_was_killed_while_making_it() {
        let maker = std::thread::spawn(|| {
            let member = asleep();
            let pidfd = member.pidfd.try_clone().unwrap();
            std::mem::forget(member);
            pidfd
        });
        assert_eq!(wait(&maker.join().unwrap()).unwrap(), (128 + libc::SIGKILL, libc::SIGKILL));
    }

    #[test]
    fn the_member_holds_no_descriptor_of_ours_and_ends_with_its_value() {
        let member = asleep();
        let pidfd = member.pidfd.try_clone().unwrap();
        drop(member);
        assert_eq!(wait(&pidfd).unwrap_err().raw_os_error(), Some(libc::ECHILD));
    }
}
