//! Starting a program from a threaded process without copying anything of it: the child shares memory and descriptors, and leaves
//! both as it executes.
//!
//! A daemon has some fifteen descriptors for each pod. A child with a table of its own has a copy of each: made at its birth,
//! closed at its execve(2), and until then every lock and every socket of the daemon is its as well. So the child is born into our
//! table, and leaves it with what lies in a few low places (close_range(2), `CLOSE_RANGE_UNSHARE`), where we have laid what it is to
//! have: what it costs does not depend on how many descriptors there are.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::{DupFlags, dup3, fcntl_dupfd_cloexec};

use super::process::{
    CLONE_CLEAR_SIGHAND, block_all_signals, clone_args, clone3_call, restore_signals, wait,
};

/// The program and what it inherits: at most so many descriptors.
const PLACES: usize = 6;
/// So many programs can be started at once from low places.
const TRAYS: usize = 4;

/// Descriptor numbers of ours, into which what a child inherits is laid. Between uses they are all /dev/null.
struct Tray {
    null: OwnedFd,
    places: [OwnedFd; PLACES],
}

/// Trays that are not in use.
static FREE: Mutex<Vec<Tray>> = Mutex::new(Vec::new());

/// Reserves low descriptor numbers for [`spawn`], and is to be called before many are open. Without it, or when all are in use,
/// children have larger tables, and nothing else is different.
pub fn reserve() -> io::Result<()> {
    let trays = (0..TRAYS).map(|_| Tray::new()).collect::<io::Result<Vec<_>>>()?;
    *FREE.lock().unwrap_or_else(PoisonError::into_inner) = trays;
    Ok(())
}

impl Tray {
    fn new() -> io::Result<Self> {
        let null: OwnedFd = std::fs::File::options().read(true).write(true).open("/dev/null")?.into();
        // Above the standard streams, which may be closed.
        let place = || fcntl_dupfd_cloexec(&null, 3);
        let places = [place()?, place()?, place()?, place()?, place()?, place()?];
        Ok(Self { null, places })
    }

    fn take() -> io::Result<Self> {
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.map_or_else(Self::new, Ok)
    }

    /// Lays copies of these into the first places.
    fn lay(&mut self, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if fds.len() > PLACES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "more descriptors than a child can have",
            ));
        }
        let laid =
            self.places.iter_mut().zip(fds).try_for_each(|(place, fd)| dup3(fd, place, DupFlags::CLOEXEC));
        Ok(laid?)
    }

    /// Lets go of what was laid here and puts the tray back.
    fn clear(mut self, used: usize) {
        let clear = |place| dup3(&self.null, place, DupFlags::CLOEXEC);
        // One that cannot be cleared is closed whole.
        if self.places.iter_mut().take(used).try_for_each(clear).is_ok() {
            FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self);
        }
    }

    /// The first number above every place.
    fn end(&self) -> RawFd {
        self.places.iter().map(AsRawFd::as_raw_fd).max().unwrap_or(2) + 1
    }
}

/// Everything the child reads; it lives in the suspended parent's frame.
struct Spawn<'a> {
    argv: &'a [*const c_char],
    /// Where the program lies, and behind it what it inherits.
    places: &'a [RawFd],
    /// The first descriptor that the child does not take with it.
    end: RawFd,
    errno: c_int,
}

/// Starts a program given by descriptor, from any thread: the child does nothing but arrange descriptors and exec, and we sleep until
/// then. Its descriptors are exactly `fds`, at most five, numbered from 0; its environment is empty; all signals are at their defaults
/// except that ignored ones stay ignored, and all are blocked.
pub fn spawn(
    program: BorrowedFd<'_>,
    arguments: &[&CStr],
    fds: &[BorrowedFd<'_>],
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<(i32, OwnedFd)> {
    let given: Vec<_> = [program].iter().chain(fds).copied().collect();
    let mut tray = Tray::take()?;
    let started = tray.lay(&given).and_then(|()| {
        let places: Vec<RawFd> = tray.places.iter().take(given.len()).map(AsRawFd::as_raw_fd).collect();
        spawn_laid(arguments, &places, tray.end(), cgroup)
    });
    tray.clear(given.len());
    started
}

/// Starts the program in the first of the places with the others as its descriptors.
fn spawn_laid(
    arguments: &[&CStr],
    places: &[RawFd],
    end: RawFd,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<(i32, OwnedFd)> {
    const STACK: usize = 64 << 10;
    let mut argv: Vec<*const c_char> = arguments.iter().map(|a| a.as_ptr()).collect();
    argv.push(std::ptr::null());
    let mut spawn = Spawn { argv: &argv, places, end, errno: 0 };
    let mut stack: Vec<u128> = vec![0; STACK / size_of::<u128>()];
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_VFORK | libc::CLONE_PIDFD;
    let mut args = clone_args(flags as u64 | CLONE_CLEAR_SIGHAND, &mut pidfd, cgroup);
    args.stack = stack.as_mut_ptr() as u64;
    args.stack_size = STACK as u64;
    // Handlers must not run in the child, which shares our memory.
    let old = block_all_signals();
    // SAFETY: the child runs `spawn_child` on `stack`, which is its alone, 16-byte aligned and alive until we return; CLONE_VFORK
    // keeps this thread, and so `spawn`, `argv`, `places` and `stack`, in place until the child has left our memory by exec or exit.
    let pid = unsafe { clone3_call(&raw mut args, spawn_child, (&raw mut spawn).cast()) };
    restore_signals(&old);
    if pid < 0 {
        return Err(io::Error::from_raw_os_error(i32::try_from(-pid).unwrap_or(libc::EIO)));
    }
    // SAFETY: the kernel stored a new descriptor, ours alone, because CLONE_PIDFD was set and the call succeeded.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if spawn.errno != 0 {
        let _ = wait(&pidfd);
        return Err(io::Error::from_raw_os_error(spawn.errno));
    }
    Ok((i32::try_from(pid).unwrap_or(i32::MAX), pidfd))
}

/// The child of `spawn`: system calls only, no allocation, no lock.
extern "C" fn spawn_child(spawn: *mut c_void) -> ! {
    // SAFETY: `spawn` is the pointer handed to clone3_call, valid while the parent sleeps, and nobody else uses it meanwhile.
    let spawn = unsafe { &mut *spawn.cast::<Spawn<'_>>() };
    spawn.errno = spawn_exec(spawn);
    // SAFETY: _exit ends only this process; the parent goes on and reads `errno`.
    unsafe { libc::_exit(127) }
}

/// Leaves the shared table, numbers the descriptors and execs; returns the errno of what failed.
fn spawn_exec(spawn: &Spawn<'_>) -> c_int {
    let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    // SAFETY: with this flag the kernel gives us a table of our own, without what lies from `end` on, and closes nothing of anybody's.
    if unsafe { libc::syscall(libc::SYS_close_range, spawn.end, u32::MAX, libc::CLOSE_RANGE_UNSHARE) } < 0 {
        return errno();
    }
    // SAFETY (all calls below): the table is our own now, so nothing here touches the parent's; the arguments are plain integers
    // and, for execveat, NUL-terminated strings with a null-terminated array that outlive our use.
    let mut high = [-1; PLACES];
    for (slot, place) in high.iter_mut().zip(spawn.places) {
        // Above everything that is dup'ed to, so that no source is overwritten before it is copied.
        // SAFETY: see above.
        *slot = unsafe { libc::fcntl(*place, libc::F_DUPFD_CLOEXEC, spawn.end.max(PLACES as RawFd)) };
        if *slot < 0 {
            return errno();
        }
    }
    let [program, inherited @ ..] = &high[..spawn.places.len()] else { return libc::EINVAL };
    for (target, fd) in (0..).zip(inherited) {
        // SAFETY: see above.
        if unsafe { libc::dup2(*fd, target) } < 0 {
            return errno();
        }
    }
    let first = inherited.len();
    // SAFETY: see above. Nothing but the wanted descriptors survives the exec.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    let environment: [*const c_char; 1] = [std::ptr::null()];
    let (argv, environment) = (spawn.argv.as_ptr(), environment.as_ptr());
    // SAFETY: see above. Only returns on failure.
    unsafe {
        libc::syscall(libc::SYS_execveat, *program, c"".as_ptr(), argv, environment, libc::AT_EMPTY_PATH)
    };
    errno()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::fd::AsFd;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    /// Tests of one process share the trays.
    static ALONE: Mutex<()> = Mutex::new(());

    fn laid() -> Vec<String> {
        let trays = FREE.lock().unwrap();
        let places = trays.iter().flat_map(|tray| &tray.places);
        let link = |place: &OwnedFd| fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd())).unwrap();
        places.map(|place| link(place).display().to_string()).collect()
    }

    #[test]
    fn a_child_has_what_it_is_given_and_we_keep_nothing_of_it() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        reserve().unwrap();
        let many: Vec<_> = (0..300).map(|_| File::open("/dev/null").unwrap()).collect();
        let (program, null) = (File::open("/bin/ls").unwrap(), File::open("/dev/null").unwrap());
        let (mut read, write) = pipe_with(PipeFlags::CLOEXEC).map(|(r, w)| (File::from(r), w)).unwrap();
        let fds = [null.as_fd(), write.as_fd(), null.as_fd(), null.as_fd()];
        let (_, pidfd) = spawn(program.as_fd(), &[c"ls", c"/proc/self/fd"], &fds, None).unwrap();
        drop(write);
        let mut listed = String::new();
        // It ends when no copy of the writing end is left, with us neither.
        read.read_to_string(&mut listed).unwrap();
        assert_eq!(listed, "0\n1\n2\n3\n4\n", "four given, and the directory it lists");
        assert_eq!(wait(&pidfd).unwrap(), (0, 0));
        assert_eq!(many.iter().filter(|file| file.metadata().is_ok()).count(), 300);
        assert_eq!(laid(), ["/dev/null"; TRAYS * PLACES]);
    }

    #[test]
    fn a_program_that_cannot_be_executed_is_an_error_and_leaves_nothing() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        reserve().unwrap();
        let null = File::open("/dev/null").unwrap();
        let error = spawn(null.as_fd(), &[c"null"], &[null.as_fd(); 5], None).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        let error = spawn(null.as_fd(), &[c"null"], &[null.as_fd(); 6], None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(laid(), ["/dev/null"; TRAYS * PLACES]);
    }
}
