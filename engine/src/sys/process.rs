//! Processes: clone3(2) from a single-threaded process, execve(2), waiting, pidfds.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::check;

/// Proof that the process has one thread, so that a forked child may run any code. Not `Send`, and nothing in the supervisor
/// starts threads.
#[derive(Debug)]
pub struct SingleThreaded(PhantomData<*const ()>);

impl SingleThreaded {
    /// Asks the kernel. Fails when there is more than one thread.
    pub fn prove() -> io::Result<Self> {
        if std::fs::read_dir("/proc/self/task")?.count() == 1 {
            Ok(Self(PhantomData))
        } else {
            Err(io::Error::other("the process has more than one thread"))
        }
    }
}

/// Which side of a clone we are.
#[derive(Debug)]
pub enum Cloned {
    /// The new process.
    Child,
    /// The old one, with the new one's pid and pidfd.
    Parent {
        /// Pid in the caller's namespace.
        pid: i32,
        /// Its pidfd.
        pidfd: OwnedFd,
    },
}

/// Makes a copy of this process in new namespaces (`flags`: `CLONE_NEW*`) and, with `cgroup`, directly in that cgroup v2.
pub fn clone(_proof: &SingleThreaded, flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let mut args = clone_args(flags | libc::CLONE_PIDFD as u64, &mut pidfd, cgroup);
    // SAFETY: without CLONE_VM the child runs on a copy of this address space, so nothing of ours is shared with it. The witness
    // says that no other thread existed whose locks could be copied in a held state. `args` and `pidfd` outlive the call.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel stored a new descriptor, ours alone, because CLONE_PIDFD was set and the call succeeded.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid: pid_of(pid), pidfd })
}

/// Common arguments of clone3.
pub(super) fn clone_args(flags: u64, pidfd: &mut RawFd, cgroup: Option<BorrowedFd<'_>>) -> libc::clone_args {
    // SAFETY: clone_args is plain integers; all zero is its documented neutral value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.pidfd = std::ptr::from_mut(pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    args
}

/// As [`clone`], but the new process becomes a child of our parent, who has to be told of it: nobody else knows its pidfd.
pub fn clone_sibling(
    _proof: &SingleThreaded,
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let mut args = clone_args(flags | (libc::CLONE_PIDFD | libc::CLONE_PARENT) as u64, &mut pidfd, cgroup);
    // The signal that tells our parent of the end is ours, and must not be named again.
    args.exit_signal = 0;
    // SAFETY: as in `clone`.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: as in `clone`.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid: pid_of(pid), pidfd })
}

/// The pid, in our PID namespace, of a pidfd's process (proc_pid_fdinfo(5)).
pub fn pid_of_pidfd(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|n| n.trim().parse().ok());
    pid.filter(|pid| *pid > 0).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The user namespace that owns a namespace (`NS_GET_USERNS`, ioctl_nsfs(2)).
pub fn owning_user_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// `_IO(0xb7, 0x1)`.
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: the request takes no argument and makes a descriptor.
    let fd = check(libc::c_long::from(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) }))?;
    // SAFETY: the call succeeded and made a new descriptor that is ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A pid from a register.
fn pid_of(value: libc::c_long) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// `CLONE_INTO_CGROUP` (clone3 only: it does not fit libc's c_int).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// `CLONE_CLEAR_SIGHAND` (clone3 only).
pub(super) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// clone3 where the child calls `run(argument)` on its own stack and never returns here.
///
/// # Safety
/// `args` must be valid for clone3 with a stack that is large enough and not used by anybody else while the child shares our
/// memory; `run` must not return, and `argument` must be valid for it.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn clone3_call(
    args: *mut libc::clone_args,
    run: extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> isize {
    let result: isize;
    // SAFETY: the parent continues after the block with its registers intact but for the declared ones. The child sees rax = 0 on
    // the fresh stack, whose top is 16-byte aligned as the ABI wants before `call`, and never leaves `run`.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") args,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") argument,
            in("r13") run,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// clone3 where the child calls `run(argument)` on its own stack and never returns here.
///
/// # Safety
/// As for the other architecture.
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn clone3_call(
    args: *mut libc::clone_args,
    run: extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> isize {
    let result: isize;
    // SAFETY: as for the other architecture; `svc` preserves every register but x0.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk #1",
            "2:",
            inlateout("x0") args => result,
            in("x1") size_of::<libc::clone_args>(),
            in("x8") libc::SYS_clone3,
            in("x20") argument,
            in("x21") run,
        );
    }
    result
}

/// Blocks every signal of the calling thread and returns the mask before.
pub(super) fn block_all_signals() -> libc::sigset_t {
    // SAFETY: sigset_t is plain integers.
    let (mut all, mut old): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: both sets are valid for writing; the calls affect this thread's mask only.
    unsafe { libc::sigfillset(&mut all) };
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old) };
    old
}

/// Undoes [`block_all_signals`].
pub(super) fn restore_signals(old: &libc::sigset_t) {
    // SAFETY: `old` was filled in by the kernel.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, old, std::ptr::null_mut()) };
}

/// A null-terminated array of C strings that lie in memory borrowed for its lifetime, for [`execve`].
#[derive(Debug)]
pub struct Strings<'a> {
    pointers: Vec<*const c_char>,
    memory: PhantomData<&'a CStr>,
}

impl<'a> Strings<'a> {
    /// Collects the strings.
    pub fn new(strings: impl Iterator<Item = &'a CStr>) -> Self {
        let mut pointers: Vec<_> = strings.map(CStr::as_ptr).collect();
        pointers.push(std::ptr::null());
        Self { pointers, memory: PhantomData }
    }
}

/// Replaces this process's program. Returns only on failure.
pub fn execve(path: &CStr, argv: &Strings<'_>, envp: &Strings<'_>) -> io::Error {
    let (argv, envp) = (argv.pointers.as_ptr(), envp.pointers.as_ptr());
    // SAFETY: `path` and all strings are NUL-terminated, both arrays null-terminated, all alive; execve only reads them.
    unsafe { libc::execve(path.as_ptr(), argv, envp) };
    io::Error::last_os_error()
}

/// Replaces this process's program by the one behind a descriptor, with an empty environment. Returns only on failure.
pub fn execveat(program: BorrowedFd<'_>, argv: &Strings<'_>) -> io::Error {
    let environment: [*const c_char; 1] = [std::ptr::null()];
    let (argv, envp) = (argv.pointers.as_ptr(), environment.as_ptr());
    // SAFETY: as in `execve`.
    unsafe {
        libc::syscall(libc::SYS_execveat, program.as_raw_fd(), c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH)
    };
    io::Error::last_os_error()
}

/// As [`execveat`], with an environment.
pub fn execveat_with(program: BorrowedFd<'_>, argv: &Strings<'_>, envp: &Strings<'_>) -> io::Error {
    let (argv, envp) = (argv.pointers.as_ptr(), envp.pointers.as_ptr());
    // SAFETY: as in `execve`.
    unsafe {
        libc::syscall(libc::SYS_execveat, program.as_raw_fd(), c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH)
    };
    io::Error::last_os_error()
}

/// Ends this process at once, running nothing.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// How a process ended: exit code, or 128 + signal; the second part is the signal, 0 for none.
pub fn wait(pidfd: &OwnedFd) -> io::Result<(i32, i32)> {
    wait_with(pidfd, 0)?.ok_or_else(|| io::Error::from(io::ErrorKind::WouldBlock))
}

/// As [`wait`], but `None` when it still runs.
pub fn try_wait(pidfd: &OwnedFd) -> io::Result<Option<(i32, i32)>> {
    wait_with(pidfd, libc::WNOHANG)
}

/// waitid(2) on a pidfd, of a process that is not traced.
fn wait_with(pidfd: &OwnedFd, options: c_int) -> io::Result<Option<(i32, i32)>> {
    let told = tell(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, options)?;
    Ok(told.and_then(|told| match told {
        Told::Ended { code, signal, .. } => Some((code, signal)),
        Told::Stopped { .. } => None,
    }))
}

/// What the kernel has to tell of a child, or of a process that is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It has ended.
    Ended {
        /// Pid.
        pid: i32,
        /// Exit code, or 128 + signal.
        code: i32,
        /// The signal that ended it; 0: none.
        signal: i32,
    },
    /// It has stopped for us, its tracer, and waits for [`super::trace::go_on`].
    Stopped {
        /// Pid.
        pid: i32,
        /// The signal, with the event of ptrace(2) above its lowest byte.
        status: i32,
    },
}

/// What there is to tell of any child or traced process. A stop is told once, an end until the process is reaped by [`reap`].
pub fn told() -> io::Result<Option<Told>> {
    loop {
        let told = tell(libc::P_ALL, 0, libc::WNOHANG | libc::WNOWAIT)?;
        let Some(Told::Stopped { pid, .. }) = told else { return Ok(told) };
        match tell(libc::P_PID, pid.cast_unsigned(), libc::WNOHANG) {
            // Another of its threads has executed a program meanwhile: the number belongs to somebody we do not trace.
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => {}
            Ok(None) => {}
            // Who is killed meanwhile is told of as ended, and reaped.
            taken => return taken,
        }
    }
}

/// Reaps a child that has ended; one that is reaped already is fine.
pub fn reap(pid: i32) {
    let _ = tell(libc::P_PID, pid.cast_unsigned(), libc::WNOHANG);
}

/// What there is to tell of one process; nothing is told twice, and who has ended is reaped.
pub fn told_of(pidfd: BorrowedFd<'_>) -> io::Result<Option<Told>> {
    tell(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, libc::WNOHANG)
}

/// waitid(2), repeated when interrupted. It tells a tracer of stops whether they are asked for or not.
fn tell(kind: libc::idtype_t, id: libc::id_t, options: c_int) -> io::Result<Option<Told>> {
    loop {
        // SAFETY: siginfo_t is plain data; all zero is what waitid leaves when there is nothing to tell.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is valid for writing.
        let result = unsafe { libc::waitid(kind, id, &mut info, libc::WEXITED | libc::__WALL | options) };
        match check(result.into()) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        // SAFETY: waitid has filled in the SIGCHLD part of the union, or left it zero.
        let pid = unsafe { info.si_pid() };
        // SAFETY: as above.
        let status = unsafe { info.si_status() };
        return Ok((pid != 0).then_some(match info.si_code {
            libc::CLD_TRAPPED => Told::Stopped { pid, status },
            libc::CLD_EXITED => Told::Ended { pid, code: status, signal: 0 },
            _ => Told::Ended { pid, code: 128 + status, signal: status },
        }));
    }
}

/// Whether a child ends within a time. It has to be waited for all the same. Blocking.
pub fn ended_within(child: &std::process::Child, limit: Duration) -> io::Result<bool> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    // A time beyond the clock's range is none.
    let end = Instant::now().checked_add(limit);
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let left =
            left.map(|t| Timespec { tv_sec: t.as_secs().cast_signed(), tv_nsec: t.subsec_nanos().into() });
        match poll(&mut [PollFd::new(&pidfd.as_fd(), PollFlags::IN)], left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// Whether a pidfd's process has ended, reaped or not.
pub fn is_over(pidfd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Sends a signal, real-time ones included; an ended process is fine.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means kill(2)-like information.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    match check(result) {
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}

/// Exit status of a process that somebody else may have reaped already: code and signal (pidfd `PIDFD_GET_INFO`, Linux 6.15).
/// `None`: it still runs, or this kernel does not say.
pub fn exit_info(pidfd: BorrowedFd<'_>) -> io::Result<Option<(i32, i32)>> {
    /// `struct pidfd_info` of linux/pidfd.h.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    /// Information about the exit is wanted and given.
    const EXIT: u64 = 1 << 3;
    /// `_IOWR(0xFF, 11, struct pidfd_info)`.
    const GET_INFO: libc::Ioctl = ((3 << 30) | (size_of::<Info>() << 16) | (0xFF << 8) | 11) as libc::Ioctl;
    let mut info = Info { mask: EXIT, ..Info::default() };
    // SAFETY: `info` has the layout and the size that the request number encodes, and is valid for writing.
    check(libc::c_long::from(unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, &raw mut info) }))?;
    if info.mask & EXIT == 0 {
        return Ok(None);
    }
    let signal = info.exit_code & 0x7f;
    Ok(Some(if signal == 0 { ((info.exit_code >> 8) & 0xff, 0) } else { (128 + signal, signal) }))
}

/// The whole life of a pod's shared first process: lets go of every descriptor, then reaps whatever is orphaned to it until SIGTERM
/// ends it. Runs in a fresh clone.
pub fn idle(_proof: &SingleThreaded) -> ! {
    let mask: u64 = 1 << (libc::SIGTERM - 1) | 1 << (libc::SIGCHLD - 1);
    // SAFETY: this function never returns and uses no descriptor, so no owner of one is deceived in this process.
    unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
    if super::thread::set_mask(mask).is_err() {
        exit(1);
    }
    loop {
        let (info, timeout) = (std::ptr::null_mut::<libc::siginfo_t>(), std::ptr::null::<libc::timespec>());
        // SAFETY: `mask` is eight bytes; null pointers are allowed for the rest and mean "not wanted" and "for ever".
        let signal = unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &raw const mask, info, timeout, 8) };
        if signal == libc::c_long::from(libc::SIGTERM) {
            exit(0);
        }
        while let Ok(Some(_)) = tell(libc::P_ALL, 0, libc::WNOHANG) {}
    }
}

/// Takes over a descriptor that came to us through execve(2) under an agreed number; each can be taken once.
pub fn inherited(_proof: &SingleThreaded, number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: F_GETFD only asks; it fails for a number that is not open.
    let flags = check(unsafe { libc::fcntl(number, libc::F_GETFD) }.into())?;
    // Whatever this program opens closes on exec, and so does what was taken here: only what is inherited does not.
    if flags & libc::c_long::from(libc::FD_CLOEXEC) != 0 {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // SAFETY: F_SETFD only marks.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // SAFETY: the descriptor is open, came to us by inheritance, so that no value of ours owns it, and is taken only here, once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether a pidfd's process is a child of ours or traced by us, ended or not.
pub fn is_child(pidfd: BorrowedFd<'_>) -> bool {
    tell(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, libc::WNOHANG | libc::WNOWAIT).is_ok()
}
