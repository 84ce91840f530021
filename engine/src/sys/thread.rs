//! What a thread does to itself: namespaces, signals, seccomp, keyring, descriptors.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;
use super::process::SingleThreaded;

/// Leaves namespaces (`CLONE_NEW*`) for new ones.
pub fn unshare(_proof: &SingleThreaded, flags: i32) -> io::Result<()> {
    // SAFETY: the witness says that there is no other thread that could be parted from its descriptors or directories.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// Makes the calling thread one that runs before all others: in real time, at the lowest priority of `SCHED_RR` (sched(7)). Where that is not
/// allowed, it goes ahead of them as far as it may ([`go_ahead`]): a cgroup has no share of real time until it is given one (cpu.rt_runtime_us),
/// on a kernel with `CONFIG_RT_GROUP_SCHED`. Threads and processes that it starts are like any other (nice 0).
pub fn go_first() -> io::Result<()> {
    let first =
        |now| Scheduling { policy: libc::SCHED_RR.cast_unsigned(), nice: 0, priority: 1, runtime: 0, ..now };
    match reschedule(first) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => go_ahead(-20),
        other => other,
    }
}

/// Makes the calling thread one that runs often and for a short time, and that is ahead of others by `nice` (negative: sooner; nice(2)).
/// The scheduler then lets it interrupt threads with long slices (since Linux 6.12; before that only `nice` counts). A process that may not
/// go ahead of others gets the short slices alone. Threads and processes that it starts are like any other (nice 0).
pub fn go_ahead(nice: i32) -> io::Result<()> {
    /// The shortest slice there is, in nanoseconds.
    const SHORTEST: u64 = 100_000;
    let short = |now| Scheduling { runtime: SHORTEST, ..now };
    match reschedule(|now| Scheduling { nice, ..short(now) }) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => reschedule(short),
        other => other,
    }
}

/// Changes how the calling thread is scheduled, and lets nobody inherit that. A thread under another policy than the normal one is left
/// alone: somebody has decided about it.
fn reschedule(change: impl Fn(Scheduling) -> Scheduling) -> io::Result<()> {
    const SIZE: u32 = size_of::<Scheduling>() as u32;
    let mut now = Scheduling::default();
    // SAFETY: the kernel fills at most SIZE bytes of a structure of its own layout, of the calling thread (0).
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut now, SIZE, 0) })?;
    if now.policy != libc::SCHED_OTHER.cast_unsigned() {
        return Ok(());
    }
    let new = change(now);
    set_scheduling(Scheduling { flags: new.flags | libc::SCHED_FLAG_RESET_ON_FORK as u64, ..new })
}

/// The kernel's `struct sched_attr`, first version (sched_setattr(2)). Times in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Scheduling {
    size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// -20 to 19, for policies without real-time demands.
    pub nice: i32,
    /// 1 to 99, for those with a fixed priority.
    pub priority: u32,
    /// Of SCHED_DEADLINE.
    pub runtime: u64,
    /// Of SCHED_DEADLINE.
    pub deadline: u64,
    /// Of SCHED_DEADLINE.
    pub period: u64,
}

/// Sets the calling thread's policy, priority and times (sched_setattr(2)).
pub fn set_scheduling(scheduling: Scheduling) -> io::Result<()> {
    let scheduling = Scheduling { size: size_of::<Scheduling>() as u32, ..scheduling };
    // SAFETY: the structure is complete and says its size; nothing of it is kept.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const scheduling, 0) }).map(drop)
}

/// Sets the calling thread's I/O class and priority, as one number (ioprio_set(2)).
pub fn set_io_priority(value: u64) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: integers, of which 0 stands for the calling thread.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value as libc::c_long) })
        .map(drop)
}

/// Enters the namespace of a descriptor, or those of a pidfd's process (`CLONE_NEW*`; setns(2)).
pub fn setns(fd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: setns takes integers and changes only the calling thread.
    check(unsafe { libc::setns(fd.as_raw_fd(), flags) }.into()).map(drop)
}

/// The kernel's `struct sigaction`; glibc's wrapper refuses the two signals it keeps for itself.
#[repr(C)]
struct Action {
    handler: usize,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

const DEFAULT: Action = Action { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };

/// All signals that a process can ignore.
pub const IGNORABLE: u64 = !(1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1));

/// The signals that this process ignores; bit n - 1 stands for signal n.
pub fn ignored_signals() -> io::Result<u64> {
    let mut ignored = 0;
    for signal in 1..=64 {
        let mut now = DEFAULT;
        let none = std::ptr::null::<Action>();
        // SAFETY: the kernel fills a structure of its own layout in.
        check(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, none, &raw mut now, 8) })?;
        if now.handler == libc::SIG_IGN {
            ignored |= 1 << (signal - 1);
        }
    }
    Ok(ignored)
}

/// Gives the signals that are ignored their default disposition and unblocks all: that, and a mask, would survive execve(2), which itself
/// takes handlers away.
pub fn reset_signals(ignored: u64) -> io::Result<()> {
    let default = DEFAULT;
    for signal in (1..=64).filter(|signal| ignored & (1 << (signal - 1)) != 0) {
        let none = std::ptr::null_mut::<Action>();
        // SAFETY: `default` has the kernel's layout and installs no handler, so no code of ours can run later.
        check(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, none, 8) })?;
    }
    set_mask(0)
}

/// Replaces the calling thread's signal mask; bit n - 1 stands for signal n.
pub fn set_mask(mask: u64) -> io::Result<()> {
    let none = std::ptr::null_mut::<u64>();
    // SAFETY: the kernel reads eight bytes of `mask`.
    check(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, none, 8) })
        .map(drop)
}

/// A descriptor that becomes readable when a blocked signal of the mask is pending (signalfd(2)).
pub fn signalfd(mask: u64) -> io::Result<OwnedFd> {
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the kernel reads eight bytes of `mask`.
    let fd = check(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, flags) })?;
    owned(fd)
}

/// A new descriptor from a system call's result.
fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: only called with the result of a successful call that makes a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Marks every descriptor from `first` on to be closed by execve(2).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: only flags change; no descriptor is closed, so no owner is deceived.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// Lets the descriptors `first` to `first + count - 1`, as far as they are open, survive execve(2).
pub fn keep_on_exec(first: u32, count: u32) {
    for number in first..first.saturating_add(count) {
        // SAFETY: only a flag changes; no descriptor is closed or made.
        unsafe { libc::fcntl(number as i32, libc::F_SETFD, 0) };
    }
}

/// Sets the execution domain of the calling process (personality(2)).
pub fn personality(domain: u64) -> io::Result<()> {
    // SAFETY: personality takes an integer.
    check(unsafe { libc::personality(domain as libc::c_ulong) }.into()).map(drop)
}

/// Makes `target` another name of `fd`, inheritable. Only for the standard descriptors, which no value owns.
pub fn dup_standard(fd: BorrowedFd<'_>, target: i32) -> io::Result<()> {
    if !(0..=2).contains(&target) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    if fd.as_raw_fd() == target {
        // dup2 would do nothing and leave close-on-exec set.
        // SAFETY: clears a flag of a descriptor that exists for the borrow.
        return check(unsafe { libc::fcntl(target, libc::F_SETFD, 0) }.into()).map(drop);
    }
    // SAFETY: 0, 1 and 2 are owned by no `OwnedFd` in this program; replacing them deceives nobody.
    check(unsafe { libc::dup2(fd.as_raw_fd(), target) }.into()).map(drop)
}

/// One instruction of classic BPF (linux/filter.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SockFilter {
    /// Operation.
    pub code: u16,
    /// Distance when true.
    pub jt: u8,
    /// Distance when false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Installs a seccomp filter given as raw instructions of eight bytes each (seccomp(2)).
pub fn seccomp(program: &[u8], flags: u32) -> io::Result<()> {
    install(program, flags).map(drop)
}

/// As [`seccomp`], with `SECCOMP_FILTER_FLAG_NEW_LISTENER` among the flags: the listener (seccomp_unotify(2)).
pub fn seccomp_listener(program: &[u8], flags: u32) -> io::Result<OwnedFd> {
    owned(install(program, flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32)?)
}

fn install(program: &[u8], flags: u32) -> io::Result<libc::c_long> {
    let length = u16::try_from(program.len() / 8).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies `len` instructions of eight bytes, which lie within the slice, byte by byte (no alignment is
    // needed), verifies them and keeps no pointer.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    })
}

/// Joins a new session keyring of this name, so that keys of the starter cannot be read (keyctl(2)).
pub fn new_session_keyring(name: &CStr) -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: `name` is NUL-terminated and only read.
    check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) }).map(drop)
}

/// Whether the working directory can be named from the root directory. One that cannot lies outside of it (CVE-2024-21626).
pub fn cwd_is_below_root() -> bool {
    let mut buffer = [0u8; 4096];
    // SAFETY: the kernel writes at most the given number of bytes.
    let result = unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) };
    // A path too long for the buffer is a path below the root: unreachable ones are marked at their beginning and fit.
    result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ERANGE)
        || result > 0 && buffer[0] == b'/'
}

/// Sets a resource limit; what cannot be raised stays where it is.
pub fn set_limit(resource: u32, wanted: libc::rlimit) -> io::Result<()> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both structures are valid for the call.
    check(unsafe { libc::getrlimit(resource, &mut now) }.into())?;
    // SAFETY: as above.
    match check(unsafe { libc::setrlimit(resource, &wanted) }.into()) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let hard = wanted.rlim_max.min(now.rlim_max);
            let adapted = libc::rlimit { rlim_cur: wanted.rlim_cur.min(hard), rlim_max: hard };
            // SAFETY: as above.
            check(unsafe { libc::setrlimit(resource, &adapted) }.into()).map(drop)
        }
        other => other.map(drop),
    }
}

/// One part of this many of the descriptors that the process may have (RLIMIT_NOFILE).
pub fn share_of_descriptors(part: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| limit as usize) / part
}

/// Puts the calling thread behind everybody else: the disk's idle class (ioprio_set(2)) and `SCHED_IDLE` (sched(7)). For good.
pub fn be_idle() -> io::Result<()> {
    /// `IOPRIO_WHO_PROCESS`; 0 as its argument is the calling thread.
    const THREAD: libc::c_int = 1;
    /// `IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0)`.
    const IDLE_CLASS: libc::c_int = 3 << 13;
    // SAFETY: the call takes integers and changes only the calling thread.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, THREAD, 0, IDLE_CLASS) })?;
    // musl's wrapper refuses it.
    let priority: libc::c_int = 0;
    // SAFETY: `struct sched_param` is one integer, read during the call, which changes only the calling thread.
    check(unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_IDLE, &raw const priority) })
        .map(drop)
}

/// Closes every descriptor from `first` on but these. Only for a cloned child on its way to execve(2): it never returns to code that owns
/// one of the others.
pub fn close_others(_proof: &SingleThreaded, mut first: u32, keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    // Few are kept, so looking for the next one each time is cheap.
    while let Some(next) =
        keep.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).filter(|fd| *fd >= first).min()
    {
        close_range(first, next.wrapping_sub(1))?;
        first = next + 1;
    }
    close_range(first, u32::MAX)
}

/// close_range(2); an empty range is fine.
fn close_range(first: u32, last: u32) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: the caller is a child that ends in execve or _exit and uses none of these descriptors; no destructor runs there.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Policy and nice value, which counts for the normal policy alone, of the calling thread: the 41st and the 19th field of its stat file (proc_pid_stat(5)); the second one, its name,
    /// is in parentheses.
    fn scheduling() -> (i32, i32) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        match fields[38].parse().unwrap() {
            libc::SCHED_OTHER => (libc::SCHED_OTHER, fields[16].parse().unwrap()),
            other => (other, 0),
        }
    }

    /// Whether a thread that did that to itself is scheduled like this, and one that it starts like any other.
    fn alone(go: fn() -> io::Result<()>, expected: &'static [(i32, i32)]) {
        let here = scheduling();
        std::thread::spawn(move || {
            go().unwrap();
            let ahead = scheduling();
            // Who may not go ahead stays.
            assert!(
                expected.contains(&ahead) || (ahead == here && !rustix::process::geteuid().is_root()),
                "{ahead:?}"
            );
            let started = std::thread::spawn(scheduling).join().unwrap();
            assert!(started == here || started == (libc::SCHED_OTHER, 0), "{started:?}");
        })
        .join()
        .unwrap();
        assert_eq!(scheduling(), here);
    }

    #[test]
    fn a_thread_goes_ahead_alone() {
        alone(|| go_ahead(-20), &[(libc::SCHED_OTHER, -20)]);
    }

    #[test]
    fn a_thread_goes_first_alone_in_real_time_or_as_far_as_it_may() {
        alone(go_first, &[(libc::SCHED_RR, 0), (libc::SCHED_OTHER, -20)]);
    }
}
