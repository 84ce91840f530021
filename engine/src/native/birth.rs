//! How supervisors come into the world: forked from a zygote, or executed where there is none.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use super::node::Started;
use crate::error::{Error, Kind};
use crate::exec::podd::zygote::{ROOM, ZYGOTE};
use crate::exec::wire::{self, HAS_CGROUP, Message, Tag};
use crate::exec::{self, cgroup};
use crate::sys::{process, socket, spawn};

/// How long a zygote may take for a fork.
const FORK_TIME: Duration = Duration::from_secs(5);
/// How long it may take to end.
const END_TIME: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What all supervisors of a driver are made from.
#[derive(Debug)]
pub(super) struct Nursery {
    program: Arc<OwnedFd>,
    /// The words that make the program a supervisor.
    role: Vec<OsString>,
    /// Directories for its template to have.
    hierarchies: Vec<String>,
    /// None after it was lost.
    zygote: Mutex<Option<Zygote>>,
}

/// The process that supervisors are forked from.
#[derive(Debug)]
struct Zygote {
    line: OwnedFd,
    pidfd: OwnedFd,
}

impl Zygote {
    /// Lets it go, and sees it end.
    fn end(self) {
        let Self { line, pidfd } = self;
        drop(line);
        if poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&END_TIME)) != Ok(1) {
            let _ = process::signal(pidfd.as_fd(), libc::SIGKILL);
        }
        let _ = process::wait(&pidfd);
    }
}

impl Nursery {
    /// Starts the zygote, whose template has directories for these `hierarchies` of cgroups. Blocking, some milliseconds.
    pub(super) fn new(program: Arc<OwnedFd>, role: Vec<OsString>, hierarchies: Vec<String>) -> Self {
        let mut nursery = Self { program, role, hierarchies, zygote: Mutex::default() };
        match nursery.zygote() {
            Ok(zygote) => nursery.zygote = Mutex::new(Some(zygote)),
            Err(error) => {
                tracing::warn!(%error, "there is no zygote; supervisors are executed by themselves");
            }
        }
        nursery
    }

    /// Starts a supervisor for a pod: it listens, and waits for its `Setup`. Blocking, less than a millisecond while there is a zygote.
    pub(super) fn bear(&self, entrance: &cgroup::Entrance, pod: &str, dir: &Path) -> Result<Started, Error> {
        let failed =
            |what: &str, e: io::Error| Error::with(Kind::Internal, format!("{what} of pod {pod}"), e);
        crate::journal::file::make_dir(dir)?;
        let directory = File::open(dir).map_err(|e| failed("open the directory", e))?;
        let listener = listen_in(&directory).map_err(|e| failed("make the control socket", e))?;
        let cgroup = entrance.v2.as_ref().map(AsFd::as_fd);
        let forked = self.fork(pod, [listener.as_fd(), directory.as_fd()], cgroup);
        let pidfd = forked.or_else(|error| {
            tracing::warn!(pod, %error, "the zygote does not bear a supervisor; it is executed by itself");
            self.execute(&[pod], &[listener.as_fd(), directory.as_fd()], cgroup)
        });
        let pidfd = pidfd.map_err(|e| failed("start the supervisor", e))?;
        let connection = connect_in(&directory).map_err(|e| failed("connect to the supervisor", e))?;
        Ok((pidfd, connection))
    }

    /// Ends the zygote.
    pub(super) fn close(&self) {
        if let Some(zygote) = self.zygote.lock().unwrap_or_else(PoisonError::into_inner).take() {
            zygote.end();
        }
    }

    /// Has the zygote bear a supervisor. One that does not answer is let go of, and ends; the next pod has a new one.
    fn fork(
        &self,
        pod: &str,
        fds: [BorrowedFd<'_>; 2],
        cgroup: Option<BorrowedFd<'_>>,
    ) -> io::Result<OwnedFd> {
        let mut zygote = self.zygote.lock().unwrap_or_else(PoisonError::into_inner);
        let here = zygote.take().map_or_else(|| self.zygote(), Ok)?;
        let has = if cgroup.is_some() { HAS_CGROUP } else { 0 };
        let message =
            Message::new(wire::Kind::Fork, 1).put(Tag::Container, pod.as_bytes()).number(Tag::Has, has);
        let fds: Vec<_> = fds.into_iter().chain(cgroup).collect();
        match socket::send(&here.line, message.bytes(), &fds).and_then(|()| answer(&here.line)) {
            Ok(mut answer) => {
                *zygote = Some(here);
                answer.fds.pop().ok_or_else(|| io::Error::other(answer.text(Tag::Message).to_owned()))
            }
            Err(e) => {
                here.end();
                Err(e)
            }
        }
    }

    /// Starts a zygote, and waits until it can be asked.
    fn zygote(&self) -> io::Result<Zygote> {
        let (ours, theirs) = socket::pair()?;
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&ours, timeout, Some(FORK_TIME))?;
        }
        let words: Vec<&str> =
            [ROOM, ZYGOTE].into_iter().chain(self.hierarchies.iter().map(String::as_str)).collect();
        let pidfd = self.execute(&words, &[theirs.as_fd()], None)?;
        // Else its end would not be noticed.
        drop(theirs);
        let zygote = Zygote { line: ours, pidfd };
        match answer(&zygote.line) {
            Ok(_) => Ok(zygote),
            Err(e) => {
                zygote.end();
                Err(e)
            }
        }
    }

    /// Executes the program as [`execute`] does: its pidfd.
    fn execute(
        &self,
        more: &[&str],
        fds: &[BorrowedFd<'_>],
        cgroup: Option<BorrowedFd<'_>>,
    ) -> io::Result<OwnedFd> {
        execute(&self.program, &self.role, more, fds, cgroup).map(|(_, pidfd)| pidfd)
    }
}

/// Executes the supervisors' program, with these words behind those of its role and these descriptors from 3 on: its pid and pidfd.
pub(super) fn execute(
    program: &OwnedFd,
    role: &[OsString],
    more: &[&str],
    fds: &[BorrowedFd<'_>],
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<(i32, OwnedFd)> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let words = words(role, more)?;
    let arguments: Vec<_> = words.iter().map(CString::as_c_str).collect();
    let fds: Vec<_> = [null.as_fd(); 3].into_iter().chain(fds.iter().copied()).collect();
    spawn::spawn(program.as_fd(), &arguments, &fds, cgroup)
}

/// What a zygote says next.
fn answer(line: &OwnedFd) -> io::Result<Message> {
    let (mut bytes, mut fds) = ([0; 1024], Vec::new());
    let length = socket::receive(line, &mut bytes, &mut fds)?;
    Message::parse(&bytes[..length], fds).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The arguments of a supervisor, or of a process in its stead.
pub(super) fn words(role: &[OsString], more: &[&str]) -> Result<Vec<CString>, std::ffi::NulError> {
    let more = more.iter().map(OsString::from);
    let words = [OsString::from("berth")].into_iter().chain(role.iter().cloned()).chain(more);
    words.map(|word| CString::new(word.into_encoded_bytes())).collect()
}

/// The control socket's address: reached through the directory's descriptor, so that no root is too deep for sun_path.
fn address(directory: &File) -> io::Result<SocketAddrUnix> {
    let name = exec::control_socket(Path::new(""));
    Ok(SocketAddrUnix::new(Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name))?)
}

fn listen_in(directory: &File) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let _ =
        rustix::fs::unlinkat(directory, exec::control_socket(Path::new("")), rustix::fs::AtFlags::empty());
    bind(&socket, &address(directory)?)?;
    listen(&socket, 16)?;
    Ok(socket)
}

/// Connects to the supervisor that listens in a pod's directory.
pub(super) fn connect_in(directory: &File) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    connect(&socket, &address(directory)?)?;
    Ok(socket)
}
