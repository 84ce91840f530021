//! The process that a daemon's supervisors are forked from: the program loaded and begun once for all of them.
//!
//! To execute it anew for each pod costs a millisecond of processor time (the loader, the C library's look at the processor, page
//! faults), and half of one more goes into the template; a fork costs a fifth. A supervisor that is born here is a child of the daemon
//! (clone(2), `CLONE_PARENT`), has the descriptors of a program that was executed, and shares with the others what nobody writes to: its
//! memory, and the template with its file systems. The zygote serves until its daemon has gone.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::fcntl_dupfd_cloexec;

use super::{IDLE, setup};
use crate::exec::wire::{self, HAS_CGROUP, Kind, Message, Tag};
use crate::sys::process::{self, Cloned, SingleThreaded};
use crate::sys::title::Title;
use crate::sys::{footprint, socket, thread};

/// Second argument of a zygote.
pub(crate) const ZYGOTE: &str = "zygote";
/// First argument of a zygote: room for the id of a pod, which is its place in a supervisor's arguments.
pub(crate) const ROOM: &str = "................................................................";

/// What a supervisor is born with.
pub(super) struct Birth {
    pub(super) listener: OwnedFd,
    pub(super) dir: OwnedFd,
}

/// So many pods have one procfs in common; see [`setup::renew_proc`].
const PODS_PER_PROC: u32 = 32;

/// Serves the daemon at the other end of descriptor 3, to which it says `Ok` first. `hierarchies` are directories for the template to have,
/// see [`setup::build_template`]. Comes back in each supervisor, and with `None` when the daemon has gone.
pub(super) fn serve(proof: &SingleThreaded, hierarchies: &[CString]) -> io::Result<Option<Birth>> {
    let line = process::inherited(proof, 3)?;
    setup::harden(c"podd-zygote")?;
    let title = Title::find(ROOM)?;
    thread::unshare(proof, libc::CLONE_NEWNS)?;
    setup::build_template(&[], hierarchies)?;
    socket::send(&line, Message::new(Kind::Ok, 0).bytes(), &[])?;
    let mut bytes = [0; 512];
    let mut born = 0;
    loop {
        if poll(&mut [PollFd::new(&line, PollFlags::IN)], Some(&IDLE)) == Ok(0) {
            footprint::forget_program();
        }
        // For as long as it takes: there is nothing more to give back.
        let mut fds = Vec::new();
        let length = socket::receive(&line, &mut bytes, &mut fds)?;
        if length == 0 {
            return Ok(None);
        }
        let Some(message) = Message::parse(&bytes[..length], fds) else { continue };
        let request = message.request();
        let answer = match bear(proof, message) {
            Ok(Born::Here { name, birth }) => {
                drop(line);
                title.set(&name);
                return birth.in_place().map(Some);
            }
            Ok(Born::Child(pidfd)) => {
                born += 1;
                let mut answer = Message::new(Kind::Ok, request);
                answer.fds.push(pidfd);
                answer
            }
            Err(e) => wire::error("fork", &e).with_number(request),
        };
        let fds: Vec<_> = answer.fds.iter().map(AsFd::as_fd).collect();
        socket::send(&line, answer.bytes(), &fds)?;
        if born == PODS_PER_PROC {
            born = 0;
            setup::renew_proc(proof)?;
        }
    }
}

/// Which side of the fork we are.
enum Born {
    Child(OwnedFd),
    Here { name: String, birth: Birth },
}

fn bear(proof: &SingleThreaded, mut message: Message) -> io::Result<Born> {
    let missing = || io::Error::from(io::ErrorKind::InvalidInput);
    if message.kind() != Kind::Fork {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut fds = std::mem::take(&mut message.fds).into_iter();
    let listener = fds.next().ok_or_else(missing)?;
    let dir = fds.next().ok_or_else(missing)?;
    let cgroup = if message.get(Tag::Has) & HAS_CGROUP != 0 { fds.next() } else { None };
    match process::clone_sibling(proof, 0, cgroup.as_ref().map(AsFd::as_fd))? {
        Cloned::Parent { pidfd, .. } => Ok(Born::Child(pidfd)),
        Cloned::Child => {
            Ok(Born::Here { name: message.text(Tag::Container).to_owned(), birth: Birth { listener, dir } })
        }
    }
}

impl Birth {
    /// Under the numbers that a program which is executed in this process later on finds them by.
    fn in_place(self) -> io::Result<Self> {
        let listener = fcntl_dupfd_cloexec(&self.listener, 3)?;
        drop(self.listener);
        let dir = fcntl_dupfd_cloexec(&self.dir, 3)?;
        Ok(Self { listener, dir })
    }
}
