//! Processes in the foreground: their end, signals meant for them, and their terminal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::launch::Launched;
use super::terminal::{Raw, follow_size};
use crate::error::{Error, Kind};
use crate::sys::{process, thread};

/// Waits for a process and passes on to it what comes for us; returns its exit code.
pub(super) fn foreground(launched: &Launched, master: Option<OwnedFd>) -> Result<u8, Error> {
    let failed = |e: io::Error| Error::with(Kind::Internal, "wait for the process", e);
    let signals = passed_on();
    thread::set_mask(signals).map_err(failed)?;
    let signals = thread::signalfd(signals).map_err(failed)?;
    let code = match master {
        Some(master) => with_terminal(launched, &signals, &master),
        None => until_end(launched, &signals),
    };
    code.map_err(failed).map(|code| u8::try_from(code).unwrap_or(u8::MAX))
}

/// Every signal that is somebody's wish: not SIGCHLD, not what the kernel sends to stop or warn us, not what cannot be caught.
fn passed_on() -> u64 {
    let own = [
        libc::SIGCHLD,
        libc::SIGURG,
        libc::SIGPIPE,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGTSTP,
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
    ];
    own.iter().fold(u64::MAX, |mask, signal| mask & !(1 << (signal - 1)))
}

/// Passes one signal on; `Some`: it was a change of our terminal's size.
fn pass_on(launched: &Launched, signals: &OwnedFd) -> io::Result<bool> {
    // `struct signalfd_siginfo` begins with the signal's number.
    let mut info = [0u8; 128];
    if rustix::io::read(signals, &mut info)? < info.len() {
        return Ok(false);
    }
    let signal = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
    if signal == libc::SIGWINCH {
        return Ok(true);
    }
    process::signal(launched.pidfd.as_fd(), signal)?;
    Ok(false)
}

fn is_ready(fd: &PollFd<'_>) -> bool {
    !fd.revents().is_empty()
}

/// poll(2), repeated when interrupted.
pub(super) fn ready(fds: &mut [PollFd<'_>], limit: Option<&Timespec>) -> io::Result<usize> {
    loop {
        match poll(fds, limit) {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

fn until_end(launched: &Launched, signals: &OwnedFd) -> io::Result<i32> {
    loop {
        let mut fds = [PollFd::new(&launched.pidfd, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        ready(&mut fds, None)?;
        let [ended, signalled] = fds.each_ref().map(is_ready);
        if ended {
            return process::wait(&launched.pidfd).map(|(code, _)| code);
        }
        if signalled {
            pass_on(launched, signals)?;
        }
    }
}

fn with_terminal(launched: &Launched, signals: &OwnedFd, master: &OwnedFd) -> io::Result<i32> {
    let raw = Raw::take();
    follow_size(master.as_fd());
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let mut typing = true;
    loop {
        let keys = if typing { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = [
            PollFd::new(&launched.pidfd, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(master, PollFlags::IN),
            PollFd::new(&stdin, keys),
        ];
        ready(&mut fds, None)?;
        let [ended, signalled, output, input] = fds.each_ref().map(is_ready);
        if signalled && pass_on(launched, signals)? {
            follow_size(master.as_fd());
        }
        if output {
            copy(master.as_fd(), stdout.as_fd())?;
        }
        if input && typing {
            typing = copy(stdin.as_fd(), master.as_fd())?;
        }
        if ended {
            drain(master, stdout.as_fd());
            drop(raw);
            return process::wait(&launched.pidfd).map(|(code, _)| code);
        }
    }
}

/// Copies what is there; `false`: the end.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
    let mut buffer = [0; 16384];
    let length = match rustix::io::read(from, &mut buffer) {
        // A terminal without a process at the other end.
        Err(Errno::IO) | Ok(0) => return Ok(false),
        Err(Errno::AGAIN | Errno::INTR) => return Ok(true),
        other => other?,
    };
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            // Nobody wants it any more.
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

/// What the process wrote last.
fn drain(master: &OwnedFd, to: BorrowedFd<'_>) {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        let mut fds = [PollFd::new(master, PollFlags::IN)];
        let there = ready(&mut fds, Some(&now)).is_ok_and(|n| n > 0);
        if !there || !fds[0].revents().contains(PollFlags::IN) || !copy(master.as_fd(), to).unwrap_or(false) {
            return;
        }
    }
}
