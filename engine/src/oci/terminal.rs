//! A process's terminal: handed to whoever asked for it, or served here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Process;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::termios::{OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::error::{Error, Kind};
use crate::sys::socket;

/// What becomes of a process's terminal.
#[derive(Debug, Default)]
pub(super) struct Console {
    /// Socket that wants it (`--console-socket`).
    socket: Option<PathBuf>,
    size: Option<Winsize>,
    /// The terminal's master, if we keep it.
    master: Option<OwnedFd>,
}

impl Console {
    /// Checks that terminal and socket fit each other: a terminal that nobody serves would hang its process.
    pub(super) fn new(process: &Process, socket: Option<PathBuf>, detached: bool) -> Result<Self, Error> {
        let terminal = process.terminal() == Some(true);
        match (terminal, &socket) {
            (false, Some(_)) => {
                return Err(Error::invalid("--console-socket", "the process has no terminal"));
            }
            (true, None) if detached => {
                return Err(Error::invalid("--console-socket", "is needed for a process with a terminal"));
            }
            _ => {}
        }
        let cells = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
        let size = process.console_size().map(|size| Winsize {
            ws_row: cells(size.height()),
            ws_col: cells(size.width()),
            ws_xpixel: 0,
            ws_ypixel: 0,
        });
        Ok(Self { socket, size, master: None })
    }

    /// The process has opened its terminal.
    pub(super) fn opened(&mut self, master: Option<OwnedFd>) -> Result<(), Error> {
        let failed = |what: String| move |e: io::Error| Error::with(Kind::Internal, what, e);
        let master =
            master.ok_or_else(|| Error::new(Kind::Internal, "a terminal came without its master"))?;
        if let Some(size) = self.size {
            tcsetwinsize(&master, size).map_err(|e| failed("size the terminal".into())(e.into()))?;
        }
        match &self.socket {
            Some(path) => {
                let what = format!("send the terminal to {}", path.display());
                hand_over(path, &master).map_err(failed(what))
            }
            None => {
                self.master = Some(master);
                Ok(())
            }
        }
    }

    /// The master, if it stays here.
    pub(super) fn take(&mut self) -> Option<OwnedFd> {
        self.master.take()
    }
}

/// Sends a descriptor to a listening stream socket, as containerd and conmon expect it.
pub(super) fn hand_over(path: &Path, fd: &OwnedFd) -> io::Result<()> {
    let peer = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A way through our descriptor table: no path is too deep for sun_path then.
    let (directory, name) = match (path.parent(), path.file_name()) {
        (Some(directory), Some(name)) if !directory.as_os_str().is_empty() => (directory, name),
        (_, Some(name)) => (Path::new("."), name),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let directory = std::fs::File::open(directory)?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&directory);
    let address = SocketAddrUnix::new(Path::new(&format!("/proc/self/fd/{number}")).join(name))?;
    connect(&peer, &address)?;
    socket::send(&peer, b"terminal", &[fd.as_fd()])
}

/// Our own terminal while it serves a container's: every key goes there untouched. Restored when dropped.
#[derive(Debug)]
pub(super) struct Raw {
    before: Option<Termios>,
}

impl Raw {
    /// Takes the terminal of standard input, if it is one.
    pub(super) fn take() -> Self {
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd()).ok();
        if let Some(mut raw) = before.clone() {
            raw.make_raw();
            let _ = tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw);
        }
        Self { before }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, before);
        }
    }
}

/// Gives a container's terminal the size of ours.
pub(super) fn follow_size(master: BorrowedFd<'_>) {
    if let Ok(size) = tcgetwinsize(std::io::stdin().as_fd()) {
        let _ = tcsetwinsize(master, size);
    }
}
