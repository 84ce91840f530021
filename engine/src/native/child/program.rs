//! The last steps: standard streams, working directory, execve.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fchown, fstat, statat};
use rustix::io::Errno;

use super::{Child, Detail, Done, plain, template};
use crate::sys::{process, thread};

/// Whether the working directory is one of the container's.
pub(super) fn below_root() -> Done {
    if thread::cwd_is_below_root() { Ok(()) } else { Err((Errno::NOENT, Detail::Outside)) }
}

impl<'p> Child<'p> {
    /// Pipes are given to the user, so that /dev/stdout can be opened anew (proc(5), /proc/self/fd); 4294967295 leaves them as they are.
    pub(super) fn stdio(&self, streams: [u64; 3], uid: u64) -> Done {
        for (target, stream) in (0..).zip(streams) {
            if stream == u64::MAX {
                // Before the template is left this is its own device; an exec has the container's, whose type is checked.
                let null = self.null().map_err(plain)?;
                thread::dup_standard(null.as_fd(), target).map_err(plain)?;
                continue;
            }
            let fd = self.fd(stream)?;
            if let Some(uid) = u32::try_from(uid).ok().filter(|uid| *uid != u32::MAX) {
                let now = fstat(fd).map_err(plain)?;
                if FileType::from_raw_mode(now.st_mode) == FileType::Fifo && now.st_uid != uid {
                    fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None).map_err(plain)?;
                }
            }
            thread::dup_standard(fd, target).map_err(plain)?;
        }
        Ok(())
    }

    /// The template's null device.
    fn null(&self) -> Result<std::os::fd::OwnedFd, Errno> {
        let fd = rustix::fs::open(
            template::NULL,
            OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
        )?;
        if fstat(&fd)?.st_rdev == rustix::fs::makedev(1, 3) { Ok(fd) } else { Err(Errno::NODEV) }
    }

    /// As root first, as the user later if root may not (root squash).
    pub(super) fn chdir(&mut self, path: &'p CStr) -> Done {
        // Not even our own descriptor of the root may serve as a path.
        self.root = None;
        match rustix::process::chdir(path) {
            Err(Errno::ACCESS) => self.cwd = Some(path),
            other => other.map_err(plain)?,
        }
        below_root()
    }

    /// Before a filter is in place: profiles older than close_range(2) have no good word for it.
    pub(super) fn close_on_exec(&mut self) -> Done {
        if !self.closed {
            thread::close_on_exec_from(3).map_err(plain)?;
            thread::keep_on_exec(3, self.preserved);
            self.closed = true;
        }
        Ok(())
    }

    /// Ends in the program. Whatever descriptor is still open is closed by the kernel on the way.
    pub(super) fn exec(&mut self) -> Done {
        self.close_on_exec()?;
        thread::reset_signals(self.prepared.inherited.ignored).map_err(plain)?;
        rustix::process::umask(Mode::from_raw_mode(self.umask));
        let command = self.prepared.command.ok_or((Errno::INVAL, Detail::None))?;
        if command.to_bytes().contains(&b'/') {
            return Err(self.try_program(command));
        }
        self.search(self.prepared.path, command)
    }

    /// Tries each directory of PATH; a program that may not be run is worth mentioning only if no other is found.
    fn search(&self, path: &[u8], command: &CStr) -> Done {
        let mut worst = (Errno::NOENT, Detail::None);
        for directory in path.split(|b| *b == b':') {
            let mut candidate = [0; 4096];
            let directory = if directory.is_empty() { b".".as_slice() } else { directory };
            let parts = [directory, b"/", command.to_bytes()];
            let mut length = 0;
            for part in parts {
                if let Some(room) = candidate.get_mut(length..length + part.len()) {
                    room.copy_from_slice(part);
                }
                length += part.len();
            }
            if length >= candidate.len() {
                continue;
            }
            let Ok(candidate) = CStr::from_bytes_until_nul(&candidate) else { continue };
            // To look is cheaper than to try.
            if let Err(Errno::NOENT | Errno::NOTDIR) = statat(CWD, candidate, AtFlags::empty()) {
                continue;
            }
            match self.try_program(candidate) {
                (Errno::NOENT | Errno::NOTDIR, Detail::None) => {}
                (Errno::ACCESS, detail) => worst = (Errno::ACCESS, detail),
                found => return Err(found),
            }
        }
        Err(worst)
    }

    /// Returns only on failure.
    fn try_program(&self, path: &CStr) -> super::Cause {
        let cause = plain(process::execve(path, &self.prepared.arguments, &self.prepared.environment));
        let exists = || statat(CWD, path, AtFlags::empty()).is_ok();
        if cause.0 == Errno::NOENT && exists() { (Errno::NOENT, Detail::Interpreter) } else { cause }
    }
}
